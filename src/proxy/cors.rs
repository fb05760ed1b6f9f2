//! CORS, so that an agent in a browser can pay.
//!
//! Answers preflights by itself (they are free and never reach the upstream), and lets scripts read the 402 and the
//! payment headers. What the upstream says about origins stays; ours is added where it says nothing. The official
//! fetch client sends `Access-Control-Expose-Headers` as a *request* header on paid retries, so whatever a preflight asks
//! to send is allowed: no credentials are involved, the payment is in the header itself.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};

use crate::listed;

/// The headers a script must be able to read to pay.
const EXPOSED: &str = "PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-PAYMENT-RESPONSE, Retry-After, X-Request-Id";

/// What a preflight may send when it does not say what it wants to.
const USUAL_REQUEST_HEADERS: &str = "PAYMENT-SIGNATURE, X-PAYMENT, Content-Type, Access-Control-Expose-Headers";

/// How long a browser may remember a preflight, seconds.
const PREFLIGHT_MAX_AGE_S: u64 = 600;

/// Which origins' scripts may use the site.
#[derive(Debug, Clone)]
pub enum Cors {
    /// No CORS headers; preflights are ordinary requests.
    Off,
    /// Every origin.
    Any,
    /// These origins.
    Only(Arc<[HeaderValue]>),
}

impl Cors {
    /// The value of `Access-Control-Allow-Origin` for this origin.
    fn allow(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        match self {
            Self::Off => None,
            Self::Any => Some(HeaderValue::from_static("*")),
            Self::Only(origins) => origin.filter(|origin| origins.contains(origin)).cloned(),
        }
    }

    /// Lets scripts of that origin read an answer.
    pub(super) fn add(&self, headers: &mut HeaderMap, origin: Option<&HeaderValue>) {
        if matches!(self, Self::Off) {
            return;
        }
        if matches!(self, Self::Only(_)) && !varies_by_origin(headers) {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        if !headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            let Some(allowed) = self.allow(origin) else { return };
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        }
        // Several lists are one list; what the upstream exposes stays exposed.
        headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }

    /// The answer to a request, if it only asks what a script may send.
    pub(super) fn preflight<B>(&self, request: &Request<B>) -> Option<Response<Bytes>> {
        let asked = request.headers();
        let asks = request.method() == Method::OPTIONS
            && asked.contains_key(ORIGIN)
            && asked.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if !asks || matches!(self, Self::Off) {
            return None;
        }
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        let copy = |from, otherwise| asked.get(from).cloned().unwrap_or(HeaderValue::from_static(otherwise));
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, copy(ACCESS_CONTROL_REQUEST_METHOD, "GET"));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, copy(ACCESS_CONTROL_REQUEST_HEADERS, USUAL_REQUEST_HEADERS));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(PREFLIGHT_MAX_AGE_S));
        Some(response)
    }
}

fn varies_by_origin(headers: &HeaderMap) -> bool {
    ["*", "origin"].iter().any(|name| listed::has(headers, VARY, name))
}
