//! Which headers cross the proxy.
//!
//! Hop-by-hop headers end here in both directions (RFC 9110, 7.6.1). What a client says about where it comes from is
//! replaced by what we saw. Headers by which some frameworks let a client change method or path are removed: the route
//! that was priced must be the one that is served.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};

use super::Caller;
use crate::gate::{as_variable, refusal, strip_ours};
use crate::listed;

/// Headers that are about one connection.
static HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Headers with which a client could say where it comes from, or be served another resource than the one that was
/// priced; beside them, all that begins with `x-forwarded-`.
const CLAIMS: [&str; 10] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
];

/// The longest request id that is taken from a client.
const MAX_REQUEST_ID_BYTES: usize = 128;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Removes what is about one connection: the known headers, and those the `Connection` header names. It cannot name ours:
/// a client would hide from the upstream who pays.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // One look at each name there is costs less than a search for each of these.
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    let named: Vec<HeaderName> = listed::members(headers, CONNECTION)
        .filter_map(|name| name.parse().ok())
        .filter(|name: &HeaderName| !name.as_str().starts_with("x-peaje-") && ![HOST, CONTENT_LENGTH].contains(name))
        .collect();
    // A length beside a transfer coding is not the body's, and would end it early for the next reader (RFC 9112, 6.3).
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Ends what is about the client's connection, before anything is added that a client must not be able to name in
/// `Connection`.
pub(super) fn accept(headers: &mut HeaderMap) -> Framing {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let understood = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    let takes_trailers = listed::has(headers, TE, "trailers");
    let framing = Framing { understood: understood && codings.next().is_none(), takes_trailers, lines: headers.len() };
    strip_hop_by_hop(headers);
    framing
}

/// What the headers about a client's connection said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Framing {
    /// Whether the transfer coding was `chunked` and nothing else, which is all that is decoded.
    understood: bool,
    /// Whether the client takes trailers.
    pub(super) takes_trailers: bool,
    /// How many headers there were.
    pub(super) lines: usize,
}

/// How many digits an id has that is made here: one half says whose it is, the other counts.
const REQUEST_ID_DIGITS: usize = 32;

/// Makes the ids of requests that come without one. Both halves begin at random: an id is found once in all logs, and does
/// not tell, alone, how many requests there were.
#[derive(Debug)]
pub(super) struct RequestIds {
    maker: [u8; REQUEST_ID_DIGITS],
    next: AtomicU64,
}

impl RequestIds {
    pub(super) fn new() -> Self {
        let random = || getrandom::u64().expect("the system has random bytes: keys are made of them");
        let mut maker = [b'0'; REQUEST_ID_DIGITS];
        for (place, digit) in maker.iter_mut().zip(digits(random())) {
            *place = digit;
        }
        Self { maker, next: AtomicU64::new(random()) }
    }

    /// The request's id, which it has from here on: the one it came with, if it is one, or another.
    pub(super) fn identify(&self, headers: &mut HeaderMap) -> HeaderValue {
        let mut given = headers.get_all(X_REQUEST_ID).iter();
        if let (Some(id), None) = (given.next().filter(|id| is_request_id(id)), given.next()) {
            return id.clone();
        }
        let id = self.next();
        headers.insert(X_REQUEST_ID, id.clone());
        id
    }

    fn next(&self) -> HeaderValue {
        let mut id = self.maker;
        // From the end, so that its least digits are the last ones.
        for (place, digit) in id.iter_mut().rev().zip(digits(self.next.fetch_add(1, Ordering::Relaxed))) {
            *place = digit;
        }
        HeaderValue::from_bytes(&id).expect("hex digits are header text")
    }
}

/// Sixteen hex digits, the least first.
fn digits(number: u64) -> impl Iterator<Item = u8> {
    number.to_le_bytes().into_iter().flat_map(|byte| [byte & 0x0f, byte >> 4]).map(|digit| match digit {
        0..=9 => b'0' + digit,
        _ => b'a' + digit - 10,
    })
}

/// An id as the log has it.
pub(super) fn text(id: &HeaderValue) -> &str {
    id.to_str().unwrap_or_default()
}

/// Says in an answer which request it answers, unless the upstream has.
pub(super) fn name(answer: &mut HeaderMap, id: HeaderValue) {
    answer.entry(X_REQUEST_ID).or_insert(id);
}

/// It goes into logs, ours and the upstream's, so it is short and plain.
fn is_request_id(id: &HeaderValue) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(plain)
}

/// Removes what a client says of itself, and what could make another request of the one that was priced.
fn strip_claims(headers: &mut HeaderMap) {
    let claim = |name: &&HeaderName| {
        // By its first letter already, most names are none.
        matches!(name.as_str().as_bytes().first(), Some(b'f' | b't' | b'x')) && {
            let name = as_variable(name.as_str());
            name.starts_with("x-forwarded-") || CLAIMS.contains(&name.as_ref())
        }
    };
    let claims: Vec<HeaderName> = headers.keys().filter(claim).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

/// Removes from a client's trailers everything that would be removed from its headers.
pub(super) fn strip_untrusted(trailers: &mut HeaderMap) {
    strip_ours(trailers);
    strip_claims(trailers);
}

/// HTTP/2 clients may send each cookie in a header of its own; HTTP/1 has one header for all (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(b"; ".as_slice())) {
        headers.insert(COOKIE, joined);
    }
}

/// Makes a client's request ready for the upstream, whose name is `host`. `scheme` is the one clients use, where it is not
/// known of this one.
pub(super) fn prepare<B>(request: &mut Request<B>, caller: &Caller, host: &HeaderValue, scheme: &HeaderValue) {
    // Where the target names a host, that is the host, whatever the header says (RFC 9112, 3.2.2; RFC 9113, 8.3.1).
    let target = request.uri().authority().and_then(|authority| HeaderValue::try_from(authority.as_str()).ok());
    let headers = request.headers_mut();
    strip_claims(headers);
    join_cookies(headers);
    let header = headers.insert(HOST, host.clone());
    headers.insert(X_FORWARDED_FOR, caller.name.clone());
    if let Some(host) = target.or(header) {
        headers.insert(X_FORWARDED_HOST, host);
    }
    headers.insert(X_FORWARDED_PROTO, caller.scheme.as_ref().unwrap_or(scheme).clone());
}

/// Whether these could be a host and a port. Whether there is such a host is not asked.
fn is_host(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=".contains(byte))
}

/// The answer to a request that makes no sense here, before anything else looks at it.
pub(super) fn oddity<B>(request: &Request<B>, framing: Framing) -> Option<Response<Bytes>> {
    // `CONNECT` asks for a tunnel, `TRACE` for its own headers back.
    if [Method::CONNECT, Method::TRACE].contains(request.method()) {
        let message = "CONNECT and TRACE are not proxied";
        let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        let allowed = HeaderValue::from_static("DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT");
        response.headers_mut().insert(ALLOW, allowed);
        return Some(response);
    }
    // RFC 9112, 3.2: exactly one, and HTTP/1.1 cannot do without.
    let hosts = request.headers().get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Some(refusal(StatusCode::BAD_REQUEST, "bad_host", "send exactly one Host header"));
    }
    // What some read as a host with a user and others as a host with a path could be matched here and served there
    // (RFC 9110, 4.2.4; RFC 9112, 3.2).
    let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let header = request.headers().get(HOST).map(HeaderValue::as_bytes);
    if [target, header].into_iter().flatten().any(|host| !is_host(host)) {
        let message = "the host is a name or an address, and perhaps a port";
        return Some(refusal(StatusCode::BAD_REQUEST, "bad_host", message));
    }
    if !framing.understood {
        let message = "no transfer coding but chunked is understood";
        let mut response = refusal(StatusCode::NOT_IMPLEMENTED, "unknown_transfer_coding", message);
        // Where its body ends, and the next request begins, is not known for certain (RFC 9112, 6.1).
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Some(response);
    }
    None
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
            .header("x-forwarded-proto", "gopher")
            .header("forwarded", "for=6.6.6.6")
            .header("x-original-url", "/paid")
            .header("x-http-method-override", "DELETE")
            .body(())
            .unwrap();
        let caller = Caller::new("[::ffff:127.0.0.1]:9".parse().unwrap());
        let [host, scheme] = ["upstream.example", "https"].map(HeaderValue::from_static);
        prepare(&mut request, &caller, &host, &scheme);
        let headers = request.headers();
        assert_eq!(headers.get("host").unwrap(), "upstream.example");
        assert_eq!(headers.get("x-forwarded-for").unwrap(), "127.0.0.1");
        assert_eq!(headers.get("x-forwarded-host").unwrap(), "api.example");
        assert_eq!(headers.get("x-forwarded-proto").unwrap(), "https");
        assert_eq!(headers.len(), 4);
    }

    #[test]
    fn every_claim_is_found_however_it_is_written() {
        for name in CLAIMS.into_iter().chain(["x-forwarded-for", "x-forwarded-anything"]) {
            for written in [name.to_owned(), name.replace('-', "_")] {
                let mut headers = HeaderMap::new();
                headers.insert(HeaderName::try_from(&written).unwrap(), HeaderValue::from_static("1"));
                strip_claims(&mut headers);
                assert!(headers.is_empty(), "{written}");
            }
        }
    }

    #[test]
    fn ids_are_plain_and_no_two_are_equal() {
        let makers = [RequestIds::new(), RequestIds::new()];
        let ids: Vec<_> = (0..1_000).flat_map(|_| makers.each_ref().map(RequestIds::next)).collect();
        assert!(ids.iter().all(|id| is_request_id(id) && id.len() == REQUEST_ID_DIGITS));
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len());
        assert_eq!(digits(0x0123_4567_89ab_cdef).collect::<Vec<_>>(), b"fedcba9876543210");
    }
}
