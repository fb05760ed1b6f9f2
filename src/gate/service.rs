//! The gate as a tower layer.
//!
//! **Owns** the path of one request: quote, payment, hold, upstream, charge, receipt. **Promises** that the inner
//! service sees no payment header and no `X-Peaje-*` header but ours, and that a paid answer leaves with its charge in
//! the books.
//!
//! # Cancellation
//!
//! The future may be dropped at any await, as hyper does when a client hangs up. Before the inner service is called
//! that costs nobody anything; afterwards the hold posts in full (see [`super::accounts::Hold`]). A deposit or refund
//! that was sent goes on at the desk.

use std::borrow::Cow;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use tower::{Layer, Service};

use super::accounts::{Charged, NotWritten, Payer};
use super::admit::{Admission, Admitted};
use super::answer::{self, Refusal};
use super::body::AnswerBody;
use super::policy::{Asked, Listing, Verdict};
use super::tender::Tender;
use super::{Gate, Peer, meter};
use crate::protocol::x402::{self, Payment, PaymentError, Receipt};
use crate::protocol::{Amount, ChannelId, Code, Hash};

/// The account that paid, on the request that reaches the inner service.
const X_PEAJE_PAYER: HeaderName = HeaderName::from_static("x-peaje-payer");
/// The channel that paid.
const X_PEAJE_CHANNEL: HeaderName = HeaderName::from_static("x-peaje-channel");
/// The most the request will be charged, atomic units.
const X_PEAJE_CHARGED: HeaderName = HeaderName::from_static("x-peaje-charged");

/// The payment's header.
const PAYMENT_SIGNATURE: HeaderName = HeaderName::from_static(x402::PAYMENT_SIGNATURE);
/// The payment's header in version 1.
const X_PAYMENT: HeaderName = HeaderName::from_static(x402::X_PAYMENT);

/// What begins the names of the headers that only Peaje may set.
const OWN_PREFIX: &str = "x-peaje-";

/// Headers of the protocol: an upstream does not see the client's, a client does not see the upstream's.
const PAYMENT_HEADERS: [&str; 6] = [
    x402::PAYMENT_SIGNATURE,
    x402::PAYMENT_REQUIRED,
    x402::PAYMENT_RESPONSE,
    x402::X_PAYMENT,
    x402::X_PAYMENT_RESPONSE,
    meter::SETTLEMENT_OVERRIDES,
];

/// On an answer that nobody should get at once, because its peer has sent too many payments that came to nothing: one that
/// waits for each answer then asks less often. The gate itself holds nothing back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldBack;

/// Puts a [`Gate`] in front of a service.
#[derive(Debug, Clone)]
pub struct PaymentLayer {
    gate: Gate,
}

impl PaymentLayer {
    pub(super) fn new(gate: Gate) -> Self {
        Self { gate }
    }
}

impl<S> Layer<S> for PaymentLayer {
    type Service = PaymentService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PaymentService { gate: self.gate.clone(), inner }
    }
}

/// A service that is called only for free or paid requests.
#[derive(Debug, Clone)]
pub struct PaymentService<S> {
    gate: Gate,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for PaymentService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<AnswerBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The service that was polled ready is the one to call; its clone takes its place.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let gate = self.gate.clone();
        let peer = request.extensions().get::<Peer>().copied();
        Box::pin(async move { gate.serve(request, peer, None, move |request| inner.call(request)).await })
    }
}

impl Gate {
    /// The way of one request, for whoever needs neither a layer nor a box around it. `inner` is called only if the
    /// request is free or paid. `id` is the request's, for the log.
    pub(crate) async fn serve<B, R, E, F>(
        &self,
        mut request: Request<B>,
        peer: Option<Peer>,
        id: Option<&str>,
        inner: impl FnOnce(Request<B>) -> F,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        F: Future<Output = Result<Response<R>, E>>,
    {
        let policy = self.policy();
        let sent = take_payment(request.headers_mut());
        let verdict = policy.judge(&Asked::of(&request));
        let listing = match verdict {
            Verdict::Paid(listing) => Some(listing),
            _ => None,
        };
        let payment = read_payment(&sent, listing);
        let refund = matches!(&payment, Ok(Payment { action: x402::Action::Refund(_), .. }));
        let listing = match verdict {
            Verdict::Paid(listing) if request.method() != Method::OPTIONS => Some(listing),
            // A refund is taken on any path of the site: a client may have no other URL than a free one.
            _ if refund => policy.first_paid(),
            Verdict::Free(_) => {
                drop(payment);
                return self.pass(request, inner).await;
            }
            Verdict::Unknown => return Ok(own(&request, answer::unknown_route())),
            Verdict::Unclear(error) => return Ok(own(&request, answer::unclear_path(error))),
            // The gate answers OPTIONS itself: a paid route's upstream must not work unpaid.
            Verdict::Paid(..) | Verdict::OtherMethods(_) if request.method() == Method::OPTIONS => {
                return Ok(own(&request, answer::options(&policy.methods_of(request.uri().path()))));
            }
            Verdict::OtherMethods(methods) => return Ok(own(&request, answer::other_methods(&methods))),
            Verdict::Paid(..) => unreachable!("a paid route is either offered or an OPTIONS request"),
        };
        let answered = payment.as_ref().ok().and_then(|payment| listing?.answered(&payment.accepted, refund));
        let till = answered.and_then(|offered| self.till_of(offered));
        let admission = match (payment, listing, answered, till) {
            // What a paid request needs is in boxes: a free one, or a connection at rest, has no room for it.
            (Ok(payment), Some(listing), Some(offered), Some(till)) => {
                Box::pin(till.admit(&listing.route, offered, payment, peer, id)).await
            }
            (Ok(_), ..) => Err(Code::NoMatchingRequirements.into()),
            (Err(refusal), ..) => Err(refusal),
        };
        match admission {
            Ok(Admission::Serve(admitted)) => Box::pin(self.serve_paid(request, id, inner, admitted)).await,
            Ok(Admission::Refunded { receipt, state }) => Ok(own(&request, answer::refunded(&receipt, &state))),
            Err(refusal) => {
                tracing::debug!(
                    route = listing.map(|listing| &*listing.route.name),
                    error = refusal.error(),
                    "refused"
                );
                let hold_back = refusal.is_one_of(&[Code::PaymentRateLimited]);
                let quote = listing.map(|listing| self.quote(listing, answered));
                let mut response = own(&request, refusal.into_response(quote.as_deref(), target_of(&request)));
                if hold_back {
                    response.extensions_mut().insert(HoldBack);
                }
                Ok(response)
            }
        }
    }

    /// Whether a request is for something that costs, and brings a payment along. Whether that pays is not looked at.
    pub(crate) fn is_paying<B>(&self, request: &Request<B>) -> bool {
        request.headers().contains_key(x402::PAYMENT_SIGNATURE)
            && matches!(self.policy().judge(&Asked::of(request)), Verdict::Paid(..))
    }

    /// A free request: only the headers are cleaned.
    async fn pass<B, R, E, F>(
        &self,
        request: Request<B>,
        inner: impl FnOnce(Request<B>) -> F,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        F: Future<Output = Result<Response<R>, E>>,
    {
        let mut response = inner(request).await?;
        strip_payment_headers(response.headers_mut());
        Ok(response.map(AnswerBody::upstream))
    }

    async fn serve_paid<B, R, E, F>(
        &self,
        mut request: Request<B>,
        id: Option<&str>,
        inner: impl FnOnce(Request<B>) -> F,
        admitted: Admitted<'_>,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        F: Future<Output = Result<Response<R>, E>>,
    {
        let Admitted { tender: Tender { terms, network, .. }, mut hold, payer, deposited } = admitted;
        // Made once: its checksum takes a hash.
        let payer_text = payer.address.text();
        introduce(request.headers_mut(), &payer_text, payer.channel, hold.price());
        let head_only = request.method() == Method::HEAD;
        hold.sent();
        // A panic upstream of us is our failure, not the payer's: it voids, where a client that leaves posts.
        let result = match AssertUnwindSafe(inner(request)).catch_unwind().await {
            Ok(result) => result,
            Err(panic) => {
                hold.void();
                std::panic::resume_unwind(panic);
            }
        };
        let mut response = match result {
            Ok(response) => response,
            Err(error) => {
                hold.void();
                return Err(error);
            }
        };
        let served = response.status() < StatusCode::BAD_REQUEST;
        let price = hold.price();
        let decimals = terms.token.decimals;
        let charge = if served { meter::charge(response.headers(), price, decimals, id) } else { Amount::ZERO };
        strip_payment_headers(response.headers_mut());
        let receipt = if served {
            match hold.post(charge) {
                Ok(posted) => match posted.written().await {
                    Ok(charged) => Some(receipt(network, payer, &payer_text, deposited, &charged)),
                    Err(not_written) => {
                        let response = not_charged(network, payer, id, deposited, not_written);
                        return Ok(response.map(|body| AnswerBody::own(if head_only { Bytes::new() } else { body })));
                    }
                },
                // The chain moved the channel under the request (our authorizer's key claimed elsewhere). The work is
                // done and cannot be charged; the client is told nothing it could book.
                Err(reject) => {
                    tracing::error!(request = id, channel = %payer.channel, %reject, "a served request could not be charged");
                    None
                }
            }
        } else {
            // Nothing was charged and the same voucher is good again. A deposit landed all the same.
            let state = hold.void();
            deposited.zip(state).map(|((transaction, amount), state)| {
                let nothing = Amount::ZERO;
                x402::encode(&Receipt::deposited(network, payer.address, transaction, amount, nothing, &state))
            })
        };
        if let Some(receipt) = receipt {
            answer::insert(response.headers_mut(), answer::PAYMENT_RESPONSE, receipt);
        }
        if served {
            answer::make_private(response.headers_mut());
        }
        Ok(response.map(AnswerBody::upstream))
    }
}

/// What tells the payer of a charge that is in the books, as a header's text.
fn receipt(
    network: &str,
    payer: Payer,
    payer_text: &[u8; 42],
    deposited: Option<(Hash, Amount)>,
    Charged { charge, state }: &Charged,
) -> String {
    tracing::debug!(channel = %payer.channel, %charge, charged = %state.charged_cumulative_amount, "charged");
    match deposited {
        Some((transaction, amount)) => {
            x402::encode(&Receipt::deposited(network, payer.address, transaction, amount, *charge, state))
        }
        None => Receipt::encode_charged(network, payer_text, *charge, state),
    }
}

/// The answer in place of one whose charge did not reach the books: what is not in them was not charged, and what was
/// not charged is not shown. A deposit landed all the same.
fn not_charged(
    network: &str,
    payer: Payer,
    id: Option<&str>,
    deposited: Option<(Hash, Amount)>,
    NotWritten { latched, state }: NotWritten,
) -> Response<Bytes> {
    let reason = latched.reason();
    tracing::error!(request = id, channel = %payer.channel, reason, "a served request could not be charged");
    let mut refusal = Refusal::from(Code::BooksUnavailable);
    if let Some((transaction, amount)) = deposited {
        let nothing = Amount::ZERO;
        refusal =
            refusal.with_receipt(Receipt::deposited(network, payer.address, transaction, amount, nothing, &state));
    }
    refusal.into_response(None, "")
}

/// What came where a payment would be.
#[derive(Debug)]
enum Sent {
    Nothing,
    Payment(HeaderValue),
    /// One of version 1.
    OldPayment,
    /// More than one.
    Several,
}

/// Takes the payment headers off the request, and every header that only Peaje may set.
fn take_payment(headers: &mut HeaderMap) -> Sent {
    let several = |name| headers.get_all(name).iter().nth(1).is_some();
    let (several, old) = (several(PAYMENT_SIGNATURE) || several(X_PAYMENT), headers.contains_key(X_PAYMENT));
    let sent = match (headers.remove(PAYMENT_SIGNATURE), old) {
        (Some(_), true) => Sent::Several,
        (Some(_), false) | (None, true) if several => Sent::Several,
        (Some(payment), false) => Sent::Payment(payment),
        (None, true) => Sent::OldPayment,
        (None, false) => Sent::Nothing,
    };
    strip_ours(headers);
    sent
}

/// Removes the payment headers and those only Peaje may set, from what a client sends: headers and trailers.
pub(crate) fn strip_ours(headers: &mut HeaderMap) {
    remove_where(headers, |name| {
        may_be_ours(name) && {
            let name = as_variable(name.as_str());
            name.starts_with(OWN_PREFIX) || PAYMENT_HEADERS.contains(&name.as_ref())
        }
    });
}

/// Removes the headers of these names. Where there is none, as mostly, nothing is allocated.
fn remove_where(headers: &mut HeaderMap, which: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| which(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// By its first letter. Most names are none of ours, and are seen in every request and every answer.
fn may_be_ours(name: &HeaderName) -> bool {
    matches!(name.as_str().as_bytes().first(), Some(b'p' | b's' | b'x'))
}

/// A header's name as servers see it that pass headers as environment variables: to them `X_Peaje-Payer` and
/// `X-Peaje-Payer` are one, so a client could set the one where it may not set the other.
pub(crate) fn as_variable(name: &str) -> Cow<'_, str> {
    let odd = |c: char| !c.is_ascii_alphanumeric() && c != '-';
    if name.contains(odd) { Cow::Owned(name.replace(odd, "-")) } else { Cow::Borrowed(name) }
}

/// Removes the payment headers from what an upstream sends: headers and trailers.
pub(super) fn strip_payment_headers(headers: &mut HeaderMap) {
    remove_where(headers, |name| may_be_ours(name) && PAYMENT_HEADERS.contains(&name.as_str()));
}

/// The one payment header there may be. Two could disagree about who pays, so neither is taken.
fn read_payment<'p>(sent: &Sent, offered: Option<&'p Listing>) -> Result<Payment<'p>, Refusal> {
    let value = match sent {
        Sent::Nothing => return Err(Refusal::unpaid()),
        Sent::Several => {
            return Err(Refusal::from(Code::DuplicatePayment).with_detail("send exactly one PAYMENT-SIGNATURE header"));
        }
        Sent::OldPayment => return Err(Refusal::quoting("Unsupported x402 version: 1")),
        Sent::Payment(value) => value.as_bytes(),
    };
    let payment = match offered {
        Some(listing) => Payment::read_for(value, listing.offers()),
        None => Payment::read(value),
    };
    payment.map_err(|error| match &error {
        PaymentError::Version(_) => Refusal::quoting(error.to_string()),
        PaymentError::Payload { detail, .. } => Refusal::from(error.code()).with_detail(detail.clone()),
        PaymentError::Header(header) => Refusal::from(error.code()).with_detail(header.to_string()),
        PaymentError::Accepted => Refusal::from(error.code()),
    })
}

/// Tells the inner service who pays.
fn introduce(headers: &mut HeaderMap, payer_text: &[u8; 42], channel: ChannelId, price: Amount) {
    let of_text = |text: &[u8]| HeaderValue::from_bytes(text).expect("hex is header text");
    headers.insert(X_PEAJE_PAYER, of_text(payer_text));
    headers.insert(X_PEAJE_CHANNEL, of_text(&channel.lower_text()));
    let price = match u64::try_from(price.units()) {
        Ok(units) => HeaderValue::from(units),
        Err(_) => HeaderValue::try_from(price.to_string()).expect("digits are header text"),
    };
    headers.insert(X_PEAJE_CHARGED, price);
}

fn target_of<B>(request: &Request<B>) -> &str {
    request.uri().path_and_query().map_or("/", |target| target.as_str())
}

/// An answer of our own; one to `HEAD` has no body.
fn own<B, R>(request: &Request<B>, response: Response<Bytes>) -> Response<AnswerBody<R>> {
    if request.method() == Method::HEAD {
        response.map(|_| AnswerBody::own(Bytes::new()))
    } else {
        response.map(AnswerBody::own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        headers
    }

    #[test]
    fn everything_that_is_stripped_begins_with_a_letter_that_is_looked_for() {
        let names = PAYMENT_HEADERS.into_iter().chain([OWN_PREFIX]);
        assert!(names.map(HeaderName::from_static).all(|name| may_be_ours(&name)));
    }

    #[test]
    fn one_payment_is_taken_and_nothing_of_ours_is_left() {
        let taken = |pairs: &[(&str, &str)]| {
            let mut headers = headers(pairs);
            headers.insert("x_peaje-payer", HeaderValue::from_static("0x0"));
            headers.insert("accept", HeaderValue::from_static("*/*"));
            let sent = take_payment(&mut headers);
            assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
            sent
        };
        let (new, old) = ((x402::PAYMENT_SIGNATURE, "a"), (x402::X_PAYMENT, "b"));
        assert!(matches!(taken(&[]), Sent::Nothing));
        assert!(matches!(taken(&[new]), Sent::Payment(value) if value == "a"));
        assert!(matches!(taken(&[old]), Sent::OldPayment));
        for several in [[new, new], [new, old], [old, new], [old, old]] {
            assert!(matches!(taken(&several), Sent::Several), "{several:?}");
        }
    }

    #[test]
    fn an_upstream_says_nothing_in_the_protocols_name() {
        let mut answer =
            headers(&[("payment-response", "a"), ("payment-response", "b"), ("server", "s"), ("x-own", "x")]);
        strip_payment_headers(&mut answer);
        assert_eq!(answer, headers(&[("server", "s"), ("x-own", "x")]));
    }
}
