//! Every answer the gate itself gives, made in one place.
//!
//! **Owns** refusals and their rendering: quotes, correctives, errors, refund confirmations. **Promises** that messages
//! to clients carry a stable code and no internals, and that no answer about a payment is cached. **Does not** judge.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use serde_json::json;

use crate::listed;
use crate::protocol::Code;
use crate::protocol::x402::{self, ChannelState, QuoteDetails, Receipt, VoucherState, WrittenQuote};

/// The error text of a quote nobody tried to pay yet; the official servers say the same.
pub(super) const PAYMENT_REQUIRED: &str = "Payment required";

/// The code of a method a path is not sold for.
pub(super) const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
/// The code of a request that meets no condition its path is sold on.
pub(super) const NO_CONDITION_MET: &str = "no_condition_met";

const PAYMENT_REQUIRED_HEADER: HeaderName = HeaderName::from_static(x402::PAYMENT_REQUIRED);
/// The receipt's header.
pub(super) const PAYMENT_RESPONSE: HeaderName = HeaderName::from_static(x402::PAYMENT_RESPONSE);

/// What some caches are told apart from all others.
const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

/// Why a request is not served, and what its sender should know.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    /// Nothing where the text is none of a code's.
    code: Option<Code>,
    /// The stable text: a code, letter by letter, wherever there is one.
    error: Cow<'static, str>,
    /// What is wrong in words; never what a client could mistake for the code.
    detail: Option<String>,
    retry_after_s: Option<u64>,
    /// The channel's true state, for a client that is out of step.
    corrective: Option<Box<(ChannelState, Option<VoucherState>)>>,
    /// A deposit that landed although the request is not served, or one that failed for good.
    receipt: Option<Box<Receipt>>,
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        let status = StatusCode::from_u16(code.status()).expect("codes have valid statuses, as their tests check");
        Self {
            status,
            code: Some(code),
            error: Cow::Borrowed(code.as_str()),
            detail: None,
            retry_after_s: code.retry_after_s(),
            corrective: None,
            receipt: None,
        }
    }
}

impl Refusal {
    /// A quote for somebody who has not paid.
    pub(super) fn unpaid() -> Self {
        Self::quoting(PAYMENT_REQUIRED)
    }

    /// A quote with an error text of its own.
    pub(super) fn quoting(error: impl Into<Cow<'static, str>>) -> Self {
        Self { code: None, error: error.into(), ..Self::from(Code::NoMatchingRequirements) }
    }

    /// The corrective a stock client recovers from: the mismatch code, exactly, and the true state.
    pub(super) fn corrective(state: ChannelState, voucher: Option<VoucherState>) -> Self {
        Self { corrective: Some(Box::new((state, voucher))), ..Self::from(Code::CumulativeAmountMismatch) }
    }

    pub(super) fn with_detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    /// After how many seconds it may be worth another try, where that is known better than from the code.
    pub(super) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// A corrective stays without: a client that finds a receipt does not recover, and one whose sums are not its own it
    /// does not book either. The corrective makes it read the chain, which says all that the receipt would.
    pub(super) fn with_receipt(self, receipt: Receipt) -> Self {
        if self.corrective.is_some() { self } else { Self { receipt: Some(Box::new(receipt)), ..self } }
    }

    /// Whether it is for something its sender did, not for our own state or the chain's.
    pub(super) fn is_the_clients(&self) -> bool {
        self.status.is_client_error()
    }

    /// Whether it is for one of these reasons.
    pub(super) fn is_one_of(&self, codes: &[Code]) -> bool {
        self.code.is_some_and(|code| codes.contains(&code))
    }

    /// Whether it is a quote for somebody who has not tried to pay.
    pub(super) fn is_unpaid(&self) -> bool {
        self.code.is_none() && self.error == PAYMENT_REQUIRED
    }

    /// The code or text.
    pub(super) fn into_error(self) -> Cow<'static, str> {
        self.error
    }

    /// The code or text, for the log.
    pub(super) fn error(&self) -> &str {
        &self.error
    }

    /// The answer. A 402 carries the quote, so that the client can try again at once, except where a receipt already
    /// says that the settlement failed.
    pub(super) fn into_response(self, offer: Option<&WrittenQuote>, path_and_query: &str) -> Response<Bytes> {
        let Self { status, code: _, error, detail, retry_after_s, corrective, receipt } = self;
        let failed_for_good = receipt.as_ref().is_some_and(|receipt| !receipt.success);
        let offer = offer.filter(|_| status == StatusCode::PAYMENT_REQUIRED && !failed_for_good);
        let (quote, body) = match offer {
            Some(quote) => {
                let corrective = corrective.as_deref().map(|(state, voucher)| (state, voucher.as_ref()));
                let details = QuoteDetails { error: &error, path_and_query, corrective };
                let (header, body) = quote.write(details, detail.as_deref());
                (Some(header), Bytes::from(body))
            }
            None => (None, refusal_body(&error, detail.as_deref())),
        };
        let mut response = json_response(status, body);
        let headers = response.headers_mut();
        if let Some(quote) = quote {
            insert(headers, PAYMENT_REQUIRED_HEADER, quote);
        }
        if let Some(receipt) = receipt {
            insert(headers, PAYMENT_RESPONSE, x402::encode(&*receipt));
        }
        if let Some(seconds) = retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A refusal that is about no payment: JSON with a stable `error` and a `message` for people, never cached.
pub fn refusal(status: StatusCode, error: &str, message: &str) -> Response<Bytes> {
    json_response(status, refusal_body(error, Some(message)))
}

/// The JSON body of a refusal.
fn refusal_body(error: &str, message: Option<&str>) -> Bytes {
    let body = match message {
        Some(message) => json!({"error": error, "message": message}),
        None => json!({"error": error}),
    };
    Bytes::from(body.to_string())
}

/// A quote as people see it: its status and headers, and a page.
pub(super) fn on_page<B>(quote: Response<B>, page: String) -> Response<Bytes> {
    let mut response = quote.map(|_| Bytes::from(page));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.append(VARY, HeaderValue::from_static("accept, sec-fetch-mode, user-agent"));
    super::shop::harden(headers);
    response
}

/// A refund that was paid.
pub(super) fn refunded(receipt: &Receipt, state: &ChannelState) -> Response<Bytes> {
    let body = json!({"message": "Refund acknowledged", "channelId": state.channel_id});
    let mut response = json_response(StatusCode::OK, Bytes::from(body.to_string()));
    insert(response.headers_mut(), PAYMENT_RESPONSE, x402::encode(receipt));
    response
}

/// In place of an upstream's answer that broke off before anything of it left.
pub(super) fn broken_off() -> Response<Bytes> {
    refusal(StatusCode::BAD_GATEWAY, "upstream_broke_off", "the upstream broke its answer off; nothing was charged")
}

/// A path that is not for sale: unknown paths are refused, never guessed.
pub(super) fn unknown_route() -> Response<Bytes> {
    refusal(StatusCode::NOT_FOUND, "unknown_route", "no route of this proxy's price list matches the path")
}

/// A path two servers could read differently.
pub(super) fn unclear_path(error: super::path::PathError) -> Response<Bytes> {
    refusal(StatusCode::BAD_REQUEST, "unclear_path", &error.to_string())
}

/// A path that is sold on conditions, of which none is met. What they are is the operator's to tell.
pub(super) fn no_condition_met() -> Response<Bytes> {
    let message = "this path is sold on conditions (on headers, query or body), and the request meets none of them";
    refusal(StatusCode::NOT_FOUND, NO_CONDITION_MET, message)
}

/// A request of which it cannot be told what it costs.
pub(super) fn doubtful(doubt: &super::matching::Doubt) -> Response<Bytes> {
    let (status, code) = doubt.code();
    refusal(status, code, &doubt.to_string())
}

/// A method the path is not sold for.
pub(super) fn other_methods(methods: &[Method]) -> Response<Bytes> {
    let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, refusal_body(METHOD_NOT_ALLOWED, None));
    response.headers_mut().insert(ALLOW, allow(methods));
    response
}

/// The answer to `OPTIONS`, which is free and never goes upstream.
pub(super) fn options(methods: &[Method]) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, allow(methods));
    response
}

fn allow(methods: &[Method]) -> HeaderValue {
    let mut names: Vec<_> = methods.iter().map(Method::as_str).collect();
    if names.contains(&"GET") {
        names.push("HEAD");
    }
    names.push("OPTIONS");
    names.sort_unstable();
    names.dedup();
    HeaderValue::try_from(names.join(", ")).expect("method names are header text")
}

fn json_response(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Puts a base64 header in.
pub(super) fn insert(headers: &mut HeaderMap, name: HeaderName, value: String) {
    // A string is taken over as it is, where a slice would be copied.
    let value = HeaderValue::try_from(value).expect("base64 is header text");
    headers.insert(name, value);
}

/// A paid answer is the payer's: a shared cache must not serve it to the next client. What the upstream said stays,
/// unless it said `public`.
pub(super) fn make_private(headers: &mut HeaderMap) {
    // A cache that finds a header of its own obeys that one (RFC 9213, 2.2), whatever `Cache-Control` says.
    let targeted = |name: &&HeaderName| name.as_str().ends_with("-cache-control") || *name == SURROGATE_CONTROL;
    // Nothing is allocated where there is none, as with nearly all answers.
    let targeted: Vec<HeaderName> = headers.keys().filter(targeted).cloned().collect();
    for name in targeted {
        headers.remove(name);
    }
    if !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
        return;
    }
    let directives = listed::members(headers, CACHE_CONTROL).filter(|directive| !directive.is_empty());
    let said: Vec<String> = directives.map(str::to_owned).collect();
    let has = |name: &str| said.iter().any(|directive| directive.eq_ignore_ascii_case(name));
    if has("private") || has("no-store") {
        return;
    }
    // `s-maxage` speaks to shared caches only, and `public` is the opposite of what is meant.
    let kept = said.iter().filter(|directive| {
        let directive = directive.to_ascii_lowercase();
        directive != "public" && !directive.starts_with("s-maxage")
    });
    let merged = std::iter::once("private").chain(kept.map(String::as_str)).collect::<Vec<_>>().join(", ");
    headers.insert(CACHE_CONTROL, HeaderValue::try_from(merged).unwrap_or(HeaderValue::from_static("private")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paid_answers_are_private() {
        let cases = [
            (None, "private"),
            (Some("max-age=60"), "private, max-age=60"),
            (Some("public, max-age=60, s-maxage=600"), "private, max-age=60"),
            (Some("no-store"), "no-store"),
            (Some("Private"), "Private"),
        ];
        for (said, expected) in cases {
            let mut headers = HeaderMap::new();
            if let Some(said) = said {
                headers.insert(CACHE_CONTROL, HeaderValue::from_static(said));
            }
            make_private(&mut headers);
            assert_eq!(headers.get(CACHE_CONTROL).unwrap(), expected);
        }
        let mut headers = HeaderMap::new();
        for name in ["cdn-cache-control", "example-cache-control", "surrogate-control"] {
            headers.insert(name, HeaderValue::from_static("max-age=60"));
        }
        make_private(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), [CACHE_CONTROL]);
    }

    #[test]
    fn options_lists_what_is_sold() {
        let response = options(&[Method::POST, Method::GET]);
        assert_eq!(response.headers().get(ALLOW).unwrap(), "GET, HEAD, OPTIONS, POST");
    }
}
