//! Which headers cross the proxy.
//!
//! Hop-by-hop headers end here in both directions (RFC 9110, 7.6.1). What a client says about where it comes from is
//! replaced by what we saw. Headers by which some frameworks let a client change method or path are removed: the route
//! that was priced must be the one that is served.

use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{Either, Ready, ready};
use http::header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use tower::Service;

use super::{Peer, is_odd};
use crate::gate::refusal_body;

/// Headers that are about one connection.
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Headers with which a client could be served another resource than the one that was priced.
const OVERRIDES: [HeaderName; 5] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
];

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Removes what is about one connection: the known headers, and those the `Connection` header names. It cannot name ours:
/// a client would hide from the upstream who pays.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name: &HeaderName| !name.as_str().starts_with("x-peaje-"))
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Makes a client's request ready for the upstream.
pub(super) fn prepare<B>(request: &mut Request<B>) {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip().to_string());
    let authority = request.uri().authority().and_then(|authority| HeaderValue::try_from(authority.as_str()).ok());
    let headers = request.headers_mut();
    strip_hop_by_hop(headers);
    for name in &OVERRIDES {
        headers.remove(name);
    }
    let host = headers.remove(HOST).or(authority);
    for name in [FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REAL_IP] {
        headers.remove(name);
    }
    if let Some(peer) = peer.and_then(|peer| HeaderValue::try_from(peer).ok()) {
        headers.insert(X_FORWARDED_FOR, peer);
    }
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
}

/// Answers methods that make no sense here, before anything else looks at them.
#[derive(Debug, Clone)]
pub(super) struct RefuseOddMethods<S> {
    inner: S,
}

impl<S> RefuseOddMethods<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S, B, R> Service<Request<B>> for RefuseOddMethods<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<http_body_util::Either<R, Full<Bytes>>>;
    type Error = S::Error;
    type Future = Either<
        futures_util::future::MapOk<S::Future, fn(Response<R>) -> Self::Response>,
        Ready<Result<Self::Response, S::Error>>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if is_odd(request.method()) {
            let mut refusal = Response::new(http_body_util::Either::Right(Full::new(refusal_body(
                "method_not_allowed",
                Some("CONNECT and TRACE are not proxied"),
            ))));
            *refusal.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            return Either::Right(ready(Ok(refusal)));
        }
        let left: fn(Response<R>) -> Self::Response = |response| response.map(http_body_util::Either::Left);
        Either::Left(futures_util::TryFutureExt::map_ok(self.inner.call(request), left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_headers_and_those_named_by_connection_end_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("connection", "x-other, X-Peaje-Payer"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "trailers"),
            ("x-secret", "1"),
            ("x-other", "1"),
            ("x-kept", "1"),
            ("x-peaje-payer", "0x1"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept", "x-peaje-payer"]);
    }

    #[test]
    fn what_a_client_says_of_itself_is_not_believed() {
        let mut request = Request::get("/x")
            .header("host", "api.example")
            .header("x-forwarded-for", "6.6.6.6")
            .header("x-forwarded-proto", "https")
            .header("forwarded", "for=6.6.6.6")
            .header("x-original-url", "/paid")
            .header("x-http-method-override", "DELETE")
            .body(())
            .unwrap();
        request.extensions_mut().insert(Peer("127.0.0.1:9".parse().unwrap()));
        prepare(&mut request);
        let headers = request.headers();
        assert_eq!(headers.get("x-forwarded-for").unwrap(), "127.0.0.1");
        assert_eq!(headers.get("x-forwarded-host").unwrap(), "api.example");
        assert_eq!(headers.get("x-forwarded-proto").unwrap(), "http");
        assert_eq!(headers.len(), 3);
    }
}
