//! What gRPC needs beyond HTTP/2 and trailers.
//!
//! **Owns** the `grpc-status` of answers that never reached a gRPC server. **Promises** that an answer of ours keeps its HTTP
//! status and its headers, the quote too, so that everybody who speaks HTTP reads it as before; clients of gRPC that look for
//! a status first find one, and the headers in its metadata. **Does not** touch an answer that has a `grpc-status`.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a request is a call of gRPC.
pub(super) fn is_call(version: Version, headers: &HeaderMap) -> bool {
    // HTTP/1 has none, and is not made to look for it.
    version == Version::HTTP_2
        && headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Says in gRPC's words what an answer says in HTTP's.
pub(super) fn explain<B>(answer: &mut Response<B>) {
    let (code, message) = match answer.status() {
        status if status.is_success() => return,
        // Not one that clients try again by themselves: first it must be paid.
        StatusCode::PAYMENT_REQUIRED => (9, "payment required: see the payment-required header"),
        StatusCode::BAD_REQUEST => (3, "the request was refused"),
        StatusCode::UNAUTHORIZED => (16, "unauthenticated"),
        StatusCode::FORBIDDEN => (7, "forbidden"),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => (12, "nothing is served here"),
        StatusCode::TOO_MANY_REQUESTS => (8, "too many requests"),
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => (4, "it took too long"),
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => (14, "unavailable"),
        _ => (2, "the answer was not gRPC"),
    };
    let headers = answer.headers_mut();
    if headers.contains_key(GRPC_STATUS) {
        return;
    }
    headers.insert(GRPC_STATUS, HeaderValue::from(code));
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(message));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_by_version_and_type() {
        let headers = |kind: &'static str| HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        assert!(is_call(Version::HTTP_2, &headers("application/grpc")));
        assert!(is_call(Version::HTTP_2, &headers("application/grpc+proto")));
        assert!(!is_call(Version::HTTP_11, &headers("application/grpc")));
        assert!(!is_call(Version::HTTP_2, &headers("application/json")));
        assert!(!is_call(Version::HTTP_2, &HeaderMap::new()));
    }

    #[test]
    fn a_refusal_has_a_status_of_both_kinds_and_an_answer_keeps_its_own() {
        let explained = |status: u16, given: Option<&'static str>| {
            let mut answer = Response::new(());
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            if let Some(given) = given {
                answer.headers_mut().insert(GRPC_STATUS, HeaderValue::from_static(given));
            }
            explain(&mut answer);
            assert_eq!(answer.status(), status);
            answer.headers().get(GRPC_STATUS).map(|status| status.to_str().unwrap().to_owned())
        };
        assert_eq!(explained(402, None).as_deref(), Some("9"));
        assert_eq!(explained(503, None).as_deref(), Some("14"));
        assert_eq!(explained(418, None).as_deref(), Some("2"));
        assert_eq!(explained(402, Some("5")).as_deref(), Some("5"));
        assert_eq!(explained(200, None), None);
    }
}
