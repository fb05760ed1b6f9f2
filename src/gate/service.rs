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
use super::policy::{Policy, Verdict};
use super::{Gate, Peer, meter};
use crate::protocol::x402::{self, Payment, PaymentError, Receipt};
use crate::protocol::{Amount, Code, Hash};

/// The account that paid, on the request that reaches the inner service.
const X_PEAJE_PAYER: HeaderName = HeaderName::from_static("x-peaje-payer");
/// The channel that paid.
const X_PEAJE_CHANNEL: HeaderName = HeaderName::from_static("x-peaje-channel");
/// The most the request will be charged, atomic units.
const X_PEAJE_CHARGED: HeaderName = HeaderName::from_static("x-peaje-charged");

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
        Box::pin(async move { gate.serve(request, peer, move |request| inner.call(request)).await })
    }
}

impl Gate {
    /// The way of one request, for whoever needs neither a layer nor a box around it. `inner` is called only if the
    /// request is free or paid.
    pub(crate) async fn serve<B, R, E, F>(
        &self,
        mut request: Request<B>,
        peer: Option<Peer>,
        inner: impl FnOnce(Request<B>) -> F,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        F: Future<Output = Result<Response<R>, E>>,
    {
        let policy = self.policy();
        let payment = read_payment(take_payments(request.headers_mut()));
        let refund = matches!(&payment, Ok(Payment { action: x402::Action::Refund(_), .. }));
        let verdict = policy.judge(request.method(), request.uri().path());
        let offer = match verdict {
            Verdict::Paid(route, price) if request.method() != Method::OPTIONS => Some((route, price)),
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
        let target = target_of(&request);
        let offer = offer.as_ref().map(|(route, price)| (&**route, *price));
        let admission = match payment {
            // What a paid request needs is in boxes: a free one, or a connection at rest, has no room for it.
            Ok(payment) => Box::pin(self.admit(&policy, offer, payment, peer)).await,
            Err(refusal) => Err(refusal),
        };
        match admission {
            Ok(Admission::Serve(admitted)) => Box::pin(self.serve_paid(&policy, request, inner, admitted)).await,
            Ok(Admission::Refunded { receipt, state }) => Ok(own(&request, answer::refunded(&receipt, &state))),
            Err(refusal) => {
                tracing::debug!(route = offer.map(|(route, _)| &*route.name), error = refusal.error(), "refused");
                let hold_back = refusal.error() == Code::PaymentRateLimited.as_str();
                let mut response = own(&request, refusal.into_response(&policy, offer, &target));
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
            && matches!(self.policy().judge(request.method(), request.uri().path()), Verdict::Paid(..))
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
        policy: &Policy,
        mut request: Request<B>,
        inner: impl FnOnce(Request<B>) -> F,
        admitted: Admitted,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        F: Future<Output = Result<Response<R>, E>>,
    {
        let Admitted { mut hold, payer, deposited } = admitted;
        introduce(request.headers_mut(), payer, hold.price());
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
        let terms = policy.terms();
        let network = terms.network();
        let served = response.status() < StatusCode::BAD_REQUEST;
        let price = hold.price();
        let charge = if served { meter::charge(response.headers(), price, terms.token.decimals) } else { Amount::ZERO };
        strip_payment_headers(response.headers_mut());
        let receipt = if served {
            match hold.post(charge) {
                Ok(posted) => match posted.written().await {
                    Ok(charged) => Some(receipt(&network, payer, deposited, charged)),
                    Err(not_written) => {
                        let response = not_charged(policy, payer, deposited, not_written);
                        return Ok(response.map(|body| AnswerBody::own(if head_only { Bytes::new() } else { body })));
                    }
                },
                // The chain moved the channel under the request (our authorizer's key claimed elsewhere). The work is
                // done and cannot be charged; the client is told nothing it could book.
                Err(reject) => {
                    tracing::error!(channel = %payer.channel, %reject, "a served request could not be charged");
                    None
                }
            }
        } else {
            // Nothing was charged and the same voucher is good again. A deposit landed all the same.
            let state = hold.void();
            deposited.zip(state).map(|((transaction, amount), state)| {
                Receipt::deposited(&network, payer.address, transaction, amount, Amount::ZERO, &state)
            })
        };
        if let Some(receipt) = receipt {
            answer::insert(response.headers_mut(), x402::PAYMENT_RESPONSE, &x402::encode(&receipt));
        }
        if served {
            answer::make_private(response.headers_mut());
        }
        Ok(response.map(AnswerBody::upstream))
    }
}

/// What tells the payer of a charge that is in the books.
fn receipt(network: &str, payer: Payer, deposited: Option<(Hash, Amount)>, charged: Charged) -> Receipt {
    let Charged { charge, state } = charged;
    tracing::debug!(channel = %payer.channel, %charge, charged = %state.charged_cumulative_amount, "charged");
    match deposited {
        Some((transaction, amount)) => Receipt::deposited(network, payer.address, transaction, amount, charge, &state),
        None => Receipt::charged(network, payer.address, charge, &state),
    }
}

/// The answer in place of one whose charge did not reach the books: what is not in them was not charged, and what was
/// not charged is not shown. A deposit landed all the same.
fn not_charged(
    policy: &Policy,
    payer: Payer,
    deposited: Option<(Hash, Amount)>,
    NotWritten { latched, state }: NotWritten,
) -> Response<Bytes> {
    tracing::error!(channel = %payer.channel, reason = latched.reason(), "a served request could not be charged");
    let mut refusal = Refusal::from(Code::BooksUnavailable);
    if let Some((transaction, amount)) = deposited {
        let network = policy.terms().network();
        let nothing = Amount::ZERO;
        refusal =
            refusal.with_receipt(Receipt::deposited(&network, payer.address, transaction, amount, nothing, &state));
    }
    refusal.into_response(policy, None, "")
}

/// Takes the payment headers off the request, and every header that only Peaje may set.
fn take_payments(headers: &mut HeaderMap) -> Vec<(bool, HeaderValue)> {
    let mut payments = Vec::new();
    for (name, current) in [(x402::PAYMENT_SIGNATURE, true), (x402::X_PAYMENT, false)] {
        payments.extend(headers.get_all(name).iter().map(|value| (current, value.clone())));
    }
    strip_ours(headers);
    payments
}

/// Removes the payment headers and those only Peaje may set, from what a client sends: headers and trailers.
pub(crate) fn strip_ours(headers: &mut HeaderMap) {
    let ours = |name: &&HeaderName| {
        may_be_ours(name) && {
            let name = as_variable(name.as_str());
            name.starts_with(OWN_PREFIX) || PAYMENT_HEADERS.contains(&name.as_ref())
        }
    };
    let ours: Vec<HeaderName> = headers.keys().filter(ours).cloned().collect();
    for name in ours {
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
    if headers.keys().any(|name| may_be_ours(name) && PAYMENT_HEADERS.contains(&name.as_str())) {
        for name in PAYMENT_HEADERS {
            headers.remove(name);
        }
    }
}

/// The one payment header there may be. Two could disagree about who pays, so neither is taken.
fn read_payment(payments: Vec<(bool, HeaderValue)>) -> Result<Payment, Refusal> {
    let mut payments = payments.into_iter();
    match (payments.next(), payments.next()) {
        (None, _) => Err(Refusal::unpaid()),
        (Some(_), Some(_)) => {
            Err(Refusal::from(Code::DuplicatePayment).with_detail("send exactly one PAYMENT-SIGNATURE header"))
        }
        (Some((false, _)), None) => Err(Refusal::quoting("Unsupported x402 version: 1".to_owned())),
        (Some((true, value)), None) => Payment::read(value.as_bytes()).map_err(|error| match &error {
            PaymentError::Version(_) => Refusal::quoting(error.to_string()),
            PaymentError::Payload { detail, .. } => Refusal::from(error.code()).with_detail(detail.clone()),
            PaymentError::Header(header) => Refusal::from(error.code()).with_detail(header.to_string()),
            PaymentError::Accepted => Refusal::from(error.code()),
        }),
    }
}

/// Tells the inner service who pays.
fn introduce(headers: &mut HeaderMap, payer: Payer, price: Amount) {
    let texts = [
        (X_PEAJE_PAYER, payer.address.to_string()),
        (X_PEAJE_CHANNEL, payer.channel.to_string()),
        (X_PEAJE_CHARGED, price.to_string()),
    ];
    for (name, text) in texts {
        headers.insert(name, HeaderValue::try_from(text).expect("hex and digits are header text"));
    }
}

fn target_of<B>(request: &Request<B>) -> String {
    request.uri().path_and_query().map_or_else(|| "/".to_owned(), |target| target.as_str().to_owned())
}

/// An answer of our own; one to `HEAD` has no body.
fn own<B, R>(request: &Request<B>, response: Response<Bytes>) -> Response<AnswerBody<R>> {
    if request.method() == Method::HEAD {
        response.map(|_| AnswerBody::own(Bytes::new()))
    } else {
        response.map(AnswerBody::own)
    }
}
