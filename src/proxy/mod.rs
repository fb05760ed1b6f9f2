//! The reverse proxy around the gate.
//!
//! **Owns** the listener, the stack every request goes down, the upstream and its pool, the hygiene of headers, CORS,
//! and the turning of errors into responses. **Promises** that bodies stream both ways without being collected, that
//! hop-by-hop headers end here, that `X-Forwarded-*` names the peer we saw and never what it said, and that a client
//! that sends a large body unpaid gets its 402 at once and a connection it can go on using. **Does not** price, charge
//! or speak to a chain.

mod body;
mod cors;
mod crowd;
mod headers;
mod listener;
mod peers;
mod slow;
mod upstream;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tower::ServiceBuilder;
use tower::util::BoxCloneSyncService;
use tower_http::ServiceBuilderExt as _;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::MakeRequestUuid;
use tower_http::trace::TraceLayer;

use crate::gate::{Gate, refusal};
use crowd::Crowd;

pub use body::{BodyBroken, RequestBody};
pub use cors::Cors;
pub use listener::{Listener, MAX_CONNECTIONS, MAX_HEADER_TIME};
pub use slow::MAX_WRITE_PAUSE;
pub use upstream::{NoUpstream, Upstream, UpstreamError, UpstreamSettings};

/// The address a connection came from.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The body of every answer that leaves.
pub type ResponseBody = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, tower::BoxError>;

/// The whole stack, ready to serve connections.
pub type Stack = BoxCloneSyncService<Request<Incoming>, Response<ResponseBody>, Infallible>;

/// What a crowd may take of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How many requests are served at once, each until the head of its answer leaves; further ones are told to come back.
    pub max_requests: usize,
    /// How long a request's body may pause while it is being sent on. Half a request cannot be served: the upstream's
    /// connection is ended, and nothing is charged. The client gets 408 if it has no answer yet.
    pub body_time: Duration,
    /// How long an answer on HTTP/2 may stand still because its client takes nothing more of it. Afterwards, or up to twice
    /// as late, the upstream's connection is let go; what was charged stays charged.
    pub answer_time: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { max_requests: 4_096, body_time: Duration::from_secs(30), answer_time: MAX_WRITE_PAUSE }
    }
}

/// Builds the stack. Read from the top, it is the way of a request.
pub fn stack(gate: &Gate, upstream: Upstream, cors: Cors, bounds: Bounds) -> Stack {
    let body_time = bounds.body_time;
    let upstream = upstream.seen_at(gate.policy().public_url());
    let service = ServiceBuilder::new()
        // The client's connection ends here, and with it the headers that are about it.
        .map_request(|mut request: Request<Incoming>| {
            headers::accept(&mut request);
            request
        })
        // A request is found again in the logs of both sides by its id; one that came with it is kept, if it is short
        // and plain.
        .set_x_request_id(MakeRequestUuid)
        // No path, query or header is logged: they carry what clients pay for. An upstream's 5xx is its own to log.
        .layer(TraceLayer::new_for_http().make_span_with(span).on_request(()).on_response(on_response).on_failure(()))
        .propagate_x_request_id()
        // Browsers must be able to read every answer, the 402 and failures too, so CORS is around all that answers.
        .layer(cors)
        // A bug in serving one request is that request's 500.
        .layer(CatchPanicLayer::custom(panicked))
        // What there is no room for is told so before anything is done for it.
        .layer(Crowd::within(bounds, gate.clone()))
        // Requests that would turn the proxy into something else, or that two servers could read differently.
        .layer(tower::layer::layer_fn(headers::RefuseOdd::new))
        // An unpaid client's body is drained, so that it can read its 402 and stay connected.
        .map_request(move |request| body::guard(request, body_time))
        // Nothing below is reached unpaid.
        .layer(gate.layer())
        .service(upstream);
    let service =
        ServiceBuilder::new().map_response(|response: Response<_>| response.map(body::boxed)).service(service);
    BoxCloneSyncService::new(service)
}

fn span<B>(request: &Request<B>) -> tracing::Span {
    let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    // Any token is a method, as long as a head may be; only the known ones are worth a line in the log.
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    let method = known.iter().find(|known| *known == request.method()).map_or("other", Method::as_str);
    tracing::info_span!("request", method, id)
}

fn on_response<B>(response: &Response<B>, latency: Duration, _: &tracing::Span) {
    tracing::debug!(status = response.status().as_u16(), latency_us = latency.as_micros(), "answered");
}

/// What the panic said is for the log, where the process's panic hook has put it.
fn panicked(_: Box<dyn std::any::Any + Send>) -> Response<Full<Bytes>> {
    tracing::error!("serving a request panicked");
    refusal(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the request could not be served").map(Full::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_tells_the_client_nothing() {
        let service = ServiceBuilder::new()
            .layer(CatchPanicLayer::custom(panicked))
            .service_fn(async |_: Request<()>| -> Result<Response<Full<Bytes>>, Infallible> { panic!("secret") });
        let response = tower::ServiceExt::oneshot(service, Request::new(())).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        assert_eq!(body, r#"{"error":"internal_error","message":"the request could not be served"}"#);
    }
}
