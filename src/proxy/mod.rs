//! The reverse proxy around the gate.
//!
//! **Owns** the listener and the threads that serve, the stack every request goes down, the upstream and its pools, the
//! hygiene of headers, CORS, and the turning of errors into responses. **Promises** that bodies stream both ways without
//! being collected, that hop-by-hop headers end here, that `X-Forwarded-*` names the client as we saw it, or as a proxy
//! that is trusted did, and never as it says itself, and that a client that sends a large body unpaid gets its 402 at
//! once and a connection it can go on using. **Does not** price, charge or speak to a chain.

mod answers;
mod balance;
mod body;
mod certificate;
mod cores;
mod cors;
mod crowd;
mod dial;
mod forwarded;
mod grpc;
mod headers;
mod health;
mod listener;
mod look;
mod peers;
mod pool;
mod preface;
mod shares;
mod slow;
mod streams;
mod tls;
mod transfer;
mod tunnel;
mod upstream;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::ORIGIN;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use tracing::Instrument as _;

use crate::gate::metered::{Metering, TakesTrailers};
use crate::gate::record::Outcome;
use crate::gate::{self, AnswerBody, Gate, HoldBack, refusal};
use crowd::Crowd;
use headers::RequestIds;
use slow::Wanted;
use transfer::UpstreamBody;
use tunnel::{Switch, Tunnels, Wish};

pub use balance::{Breaker, MAX_TARGETS, Standing};
pub use body::{BodyBroken, RequestBody};
pub use certificate::{Certificate, CertificateError, CertificateFiles};
pub use cors::Cors;
pub use dial::UpstreamTls;
pub use forwarded::{ForwardedHeader, Trusted};
pub use health::HealthCheck;
pub use listener::{
    DEFAULT_HEADER_BYTES, DEFAULT_HEADERS, LAST_REQUEST_TIME, Listener, MAX_CONNECTIONS, MAX_HANDSHAKE_TIME,
    MAX_HEADER_TIME, MAX_IDLE_TIME, is_taken,
};
pub use slow::MAX_WRITE_PAUSE;
pub use tls::{CERTIFICATE_POLL, Certificates};
pub use tunnel::MAX_TUNNELS;
pub use upstream::{MAX_ANSWER_PAUSE, NoUpstream, TargetState, Upstream, UpstreamError, UpstreamSettings};

/// The body of every answer that leaves: the gate's or the upstream's, or the stack's own.
type ResponseBody = Either<Wanted<AnswerBody<UpstreamBody>>, Full<Bytes>>;

/// Who sent a request: the other end of its connection, or whom a trusted proxy there names.
#[derive(Debug, Clone)]
struct Caller {
    address: IpAddr,
    /// The address as the upstream is told of it.
    name: HeaderValue,
    /// With which scheme it came, where that is known; otherwise the public URL's.
    scheme: Option<HeaderValue>,
    /// Whether others are behind it who are not known one by one: it is this machine, where somebody's TLS or balancer may
    /// be, or a trusted proxy that names nobody.
    stands_for_many: bool,
}

impl Caller {
    fn new(peer: SocketAddr) -> Self {
        let canonical = peer.ip().to_canonical();
        let name = HeaderValue::try_from(canonical.to_string()).expect("an address is header text");
        Self { address: peer.ip(), name, scheme: None, stands_for_many: canonical.is_loopback() }
    }
}

/// What a crowd may take of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How many requests are served at once, each until the head of its answer leaves, a quarter of them for one peer;
    /// further ones are told to come back.
    pub max_requests: usize,
    /// How long a request's body may pause while it is being sent on. Half a request cannot be served: the upstream's
    /// connection is ended, and nothing is charged. The client gets 408 if it has no answer yet.
    pub body_time: Duration,
    /// How long an answer on HTTP/2 may stand still because its client takes nothing more of it. Afterwards, or up to twice
    /// as late, the upstream's connection is let go; what was charged stays charged.
    pub answer_time: Duration,
    /// How large a request's body may be, bytes. A larger one is refused (413) before it is paid, if it says so; otherwise
    /// where it has become too large, and it costs nothing then.
    pub max_body: u64,
    /// How many headers a request may have, each line counted. On HTTP/1 the listener bounds them earlier.
    pub max_headers: usize,
    /// How many connections may have been upgraded to another protocol at once, a quarter of them by one peer; further
    /// ones are told to come back.
    pub max_tunnels: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            max_requests: 4_096,
            body_time: Duration::from_secs(30),
            answer_time: MAX_WRITE_PAUSE,
            max_body: u64::MAX,
            max_headers: DEFAULT_HEADERS,
            max_tunnels: MAX_TUNNELS,
        }
    }
}

/// The whole stack, ready to serve connections. Cheap to clone; all clones share one pool of upstream connections.
#[derive(Debug, Clone)]
pub struct Stack {
    layers: Arc<Layers>,
}

#[derive(Debug)]
struct Layers {
    ids: RequestIds,
    cors: Arc<ArcSwap<Cors>>,
    bounds: Bounds,
    crowd: Crowd,
    looks: look::Room,
    gate: Gate,
    upstream: Upstream,
    tunnels: Tunnels,
}

/// Builds the stack.
pub fn stack(gate: &Gate, upstream: Upstream, cors: Cors, bounds: Bounds) -> Stack {
    let upstream = upstream.seen_at(gate.policy().public_url());
    let (crowd, gate) = (Crowd::up_to(bounds.max_requests), gate.clone());
    let cors = Arc::new(ArcSwap::from_pointee(cors));
    let tunnels = Tunnels::up_to(bounds.max_tunnels);
    Stack {
        layers: Arc::new(Layers {
            ids: RequestIds::new(),
            cors,
            bounds,
            crowd,
            looks: look::Room::default(),
            gate,
            upstream,
            tunnels,
        }),
    }
}

impl Stack {
    /// The same stack for another core, which shares with the others what is one for all (the gate, the crowd) and nothing else.
    fn apart(&self) -> Self {
        let Layers { cors, bounds, crowd, looks, gate, upstream, tunnels, .. } = &*self.layers;
        let (cors, crowd, looks, gate) = (cors.clone(), crowd.clone(), looks.clone(), gate.clone());
        let (ids, bounds, upstream, tunnels) = (RequestIds::new(), *bounds, upstream.apart(), tunnels.apart());
        let layers = Layers { ids, cors, bounds, crowd, looks, gate, upstream, tunnels };
        Self { layers: Arc::new(layers) }
    }

    /// Other origins' scripts may use the site from now on. For all clones, on all cores.
    pub fn set_cors(&self, cors: Cors) {
        self.layers.cors.store(Arc::new(cors));
    }

    /// What each thread that serves does once, before its first connection and inside its runtime.
    fn attend(&self) {
        self.layers.gate.accounts().journal().attend();
        self.layers.upstream.attend();
    }

    /// Ends when nothing goes on any more for clients that have left.
    async fn unfinished(&self) {
        self.layers.gate.unfinished().await;
    }

    /// What this core's connections become when they stop speaking HTTP.
    fn tunnels(&self) -> &Tunnels {
        &self.layers.tunnels
    }

    /// The way of a request, read from the top.
    async fn serve(&self, mut request: Request<Incoming>, caller: &Caller) -> Response<ResponseBody> {
        let Layers { ids, cors, tunnels, .. } = &*self.layers;
        // Before the headers that say so are gone.
        Wish::note(&mut request);
        let grpc = grpc::is_call(request.version(), request.headers());
        // The client's connection ends here, and with it the headers that are about it.
        let framing = headers::accept(request.headers_mut());
        // A request is found again in the logs of both sides by its id; one that came with it is kept, if it is short
        // and plain.
        let id = ids.identify(request.headers_mut());
        // No path, query or header is logged: they carry what clients pay for. An upstream's 5xx is its own to log.
        let span = span(&request, &id);
        let begun = tracing::enabled!(tracing::Level::DEBUG).then(Instant::now);
        let head_only = request.method() == Method::HEAD;
        let mut response = async {
            // Browsers must be able to read every answer, the 402 and failures too, so CORS is around all that answers.
            let origin = request.headers().get(ORIGIN).cloned();
            let preflight = cors.load().preflight(&request);
            let mut response = match preflight {
                Some(preflight) => own(preflight),
                // A bug in serving one request is that request's 500.
                None => AssertUnwindSafe(self.answer(request, framing, caller, &id))
                    .catch_unwind()
                    .await
                    .unwrap_or_else(|_| panicked(&id)),
            };
            cors.load().add(response.headers_mut(), origin.as_ref());
            if let Some(begun) = begun {
                let latency_us = begun.elapsed().as_micros();
                tracing::debug!(status = response.status().as_u16(), latency_us, "answered");
            }
            response
        }
        .instrument(span)
        .await;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(switch) = response.extensions_mut().remove::<Switch>()
        {
            let metering = response.extensions_mut().remove::<Metering>();
            switch.open(response.headers_mut(), tunnels, &id, metering);
        }
        if grpc {
            grpc::explain(&mut response);
        }
        headers::name(response.headers_mut(), id);
        // HTTP/2 would send it, and break the stream by that; all else that answers knows the method.
        if head_only && let Either::Right(body) = response.body_mut() {
            *body = Full::default();
        }
        response
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        framing: headers::Framing,
        caller: &Caller,
        id: &HeaderValue,
    ) -> Response<ResponseBody> {
        let Layers { bounds, crowd, looks, gate, .. } = &*self.layers;
        // What there is no room for is told so before anything is done for it.
        let Some(place) = crowd.enter(caller, || gate.is_paying(&request)) else {
            record(gate, &request, Outcome::Overloaded, StatusCode::SERVICE_UNAVAILABLE);
            // Its client may be writing still, and wants to use the connection again.
            drop(body::guard(request, Duration::MAX, u64::MAX));
            return own(crowd::overloaded());
        };
        // Requests that would turn the proxy into something else, or that two servers could read differently.
        if let Some(refusal) = headers::oddity(&request, framing) {
            record(gate, &request, Outcome::Refused, refusal.status());
            return own(refusal);
        }
        if let Some(refusal) = too_much(&request, framing, bounds) {
            // As above: it may still be on its way.
            drop(body::guard(request, Duration::MAX, u64::MAX));
            return own(refusal);
        }
        // An unpaid client's body is drained, so that it can read its 402 and stay connected.
        // On HTTP/1 the connection is watched; on HTTP/2 it is well while one of its streams stands still.
        let watched = (request.version() == Version::HTTP_2).then_some(bounds.answer_time);
        let guarded = body::guard(request, bounds.body_time, bounds.max_body);
        let mut request = match look::look(gate, looks, caller, guarded).await {
            Ok(request) => request,
            Err(refusal) => return own(refusal),
        };
        if framing.takes_trailers && request.version() == Version::HTTP_11 {
            request.extensions_mut().insert(TakesTrailers);
        }
        // Nothing below is reached unpaid.
        // It may outlive the connection: a request that will be asked for again is seen to its end.
        let (layers, caller, name) = (Arc::clone(&self.layers), caller.clone(), id.clone());
        let peer = gate::Peer(caller.address);
        let below = move |mut request| async move {
            body::count(&mut request);
            let Layers { upstream, tunnels, .. } = &*layers;
            Ok::<_, Infallible>(upstream.ask(request, &caller, &name, tunnels).await)
        };
        let Ok(response) = gate.serve(request, Some(peer), Some(headers::text(id)), below).await;
        drop(place);
        if response.extensions().get::<HoldBack>().is_some() {
            Box::pin(crowd.hold_back()).await;
        }
        response.map(|body| {
            Either::Left(match watched {
                Some(limit) => Wanted::within(body, limit),
                None => Wanted::unwatched(body),
            })
        })
    }
}

/// The answer to a request that is larger than any may be, and says so.
fn too_much(request: &Request<Incoming>, framing: headers::Framing, bounds: &Bounds) -> Option<Response<Bytes>> {
    if framing.lines > bounds.max_headers {
        let message = "the request has too many headers";
        return Some(refusal(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_many", message));
    }
    (request.body().size_hint().lower() > bounds.max_body).then(too_large)
}

/// The answer to a request whose body is larger than any may be.
fn too_large() -> Response<Bytes> {
    let (status, code) = UpstreamError::BodyTooLarge.code();
    refusal(status, code, &UpstreamError::BodyTooLarge.to_string())
}

fn own(response: Response<Bytes>) -> Response<ResponseBody> {
    response.map(|body| Either::Right(Full::new(body)))
}

/// Records a request that does not reach the gate, where requests are recorded.
fn record<B>(gate: &Gate, request: &Request<B>, outcome: Outcome, status: StatusCode) {
    if let Some(recorder) = gate.recorder() {
        recorder.begin(request).ended(outcome, status.as_u16());
    }
}

/// Names the request to what is logged meanwhile. To make a span costs as much as a layer of the stack, so there is one
/// only for who wants to see every request; warnings and errors name the request themselves.
fn span<B>(request: &Request<B>, id: &HeaderValue) -> tracing::Span {
    // Any token is a method, as long as a head may be; only the known ones are worth a line in the log.
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    let method = || known.iter().find(|known| *known == request.method()).map_or("other", Method::as_str);
    tracing::debug_span!("request", method = method(), id = headers::text(id))
}

/// What the panic said is for the log, where the process's panic hook has put it.
fn panicked(id: &HeaderValue) -> Response<ResponseBody> {
    tracing::error!(request = headers::text(id), "serving a request panicked");
    own(refusal(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the request could not be served"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_takes_little_room() {
        fn size<A, F>(_: &impl FnOnce(A) -> F) -> usize {
            std::mem::size_of::<F>()
        }
        let stack = cores::tests::free("127.0.0.1:1".parse().unwrap());
        let caller = Caller::new("127.0.0.1:1".parse().unwrap());
        // Each connection has room for one request from its beginning on, and each request is written into it.
        let size = size(&|request| stack.serve(request, &caller));
        assert!(size <= 7 * 1024, "{size} bytes");
    }

    #[test]
    fn the_crowd_is_one_for_all_cores() {
        let one = cores::tests::free("127.0.0.1:1".parse().unwrap());
        let other = one.apart();
        let many = Caller::new("127.0.0.1:1".parse().unwrap());
        let places: Vec<_> = std::iter::from_fn(|| one.layers.crowd.enter(&many, || true)).collect();
        assert_eq!(places.len(), one.layers.bounds.max_requests);
        assert!(other.layers.crowd.enter(&many, || true).is_none());
        drop(places);
        assert!(other.layers.crowd.enter(&many, || false).is_some());
    }

    #[tokio::test]
    async fn a_panic_tells_the_client_nothing() {
        let response = panicked(&HeaderValue::from_static("id"));
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        assert_eq!(body, r#"{"error":"internal_error","message":"the request could not be served"}"#);
    }
}
