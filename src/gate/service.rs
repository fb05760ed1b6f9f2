//! The gate as a tower layer.
//!
//! **Owns** the path of one request: quote, payment, hold, upstream, charge, receipt. **Promises** that the inner
//! service sees no payment header and no `X-Peaje-*` header but ours, and that a paid answer leaves with its charge in
//! the books.
//!
//! # Cancellation
//!
//! The future may be dropped at any await, as hyper does when a client hangs up. Before the inner service is called
//! that costs nobody anything; afterwards the hold posts in full (see [`super::accounts::Hold`]), or what a metered request
//! has used ([`super::metered`]). A deposit or refund that was sent goes on at the desk.

use std::borrow::Cow;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body::Body;
use tower::{BoxError, Layer, Service};

use super::accounts::{Charged, NotWritten, Payer};
use super::admit::{Admission, Admitted, Answered};
use super::answer::{self, Refusal};
use super::body::AnswerBody;
use super::former::FormerOffer;
use super::look::Looked;
use super::matching::Doubt;
use super::metered::{self, Course, Due, Receipts};
use super::once::Once;
use super::people::{FreeRequest, Watched};
use super::policy::{Asked, Listing, Policy, Price, Route, Verdict};
use super::record::{Draft, Outcome};
use super::replay::{Content, Unheard};
use super::served::{has_failed, is_served};
use super::tender::{Offered, Tender};
use super::way::Way;
use super::{Gate, Peer, meter, shop};
use crate::pricing::{End, Measured, StatusRule};
use crate::protocol::x402::{self, ChannelState, Payment, PaymentError, Receipt};
use crate::protocol::{Address, Amount, ChannelId, Code, Hash};

/// The account that signed for the payment, on the request that reaches the inner service.
const X_PEAJE_PAYER: HeaderName = HeaderName::from_static("x-peaje-payer");
/// The channel that paid.
const X_PEAJE_CHANNEL: HeaderName = HeaderName::from_static("x-peaje-channel");
/// The most the request will be charged, atomic units of its token.
const X_PEAJE_CHARGED: HeaderName = HeaderName::from_static("x-peaje-charged");
/// In which token that is, as CAIP-19 writes it.
const X_PEAJE_ASSET: HeaderName = HeaderName::from_static("x-peaje-asset");

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

/// How long a shadow route's payment is judged: it may have to wait for its channel or for a node, and the request does not.
const MAX_WATCHED_WAIT: Duration = Duration::from_millis(50);

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
    R::Error: Into<BoxError>,
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
        let inner = move |request: Request<Unheard<B>>| inner.call(request.map(|Unheard(body)| body));
        Box::pin(async move { gate.serve(request.map(Unheard), peer, None, inner).await })
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
        inner: impl FnOnce(Request<B>) -> F + Send + 'static,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        B: Content + Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
        E: Send + 'static,
        F: Future<Output = Result<Response<R>, E>> + Send,
    {
        let looked: Option<Looked> = request.extensions_mut().remove();
        let current = looked.as_ref().map_or_else(|| self.policy(), |looked| Arc::clone(&looked.policy));
        let mut draft = self.recorder.as_ref().map(|recorder| recorder.begin(&request));
        let former;
        let sent = take_payment(request.headers_mut());
        let is_unpaid = matches!(sent, Sent::Nothing);
        // Who brings a payment has not come to look.
        let shop = current.shop().filter(|_| is_unpaid);
        if let Some(document) = shop.and_then(|shop| shop.document(&request)) {
            note(&mut draft, Outcome::Free, &document);
            return Ok(own(&request, document));
        }
        // What is borrowed here and not needed afterwards must not take room in the future.
        let (policy, verdict, payment, in_force) = {
            let looked = looked;
            let mut body = looked.as_ref().and_then(|looked| looked.body.as_ref());
            let mut asked = Asked::of(&request);
            let mut verdict = current.judge_with(&asked, body);
            let mut payment = read_payment(&sent, &verdict);
            // Who was quoted a price a moment ago pays that one, although it was changed meanwhile.
            let offering = |sent| self.former.offering(&current, &verdict, &asked, looked.as_ref(), sent);
            former = payment.as_ref().ok().and_then(offering);
            let (mut policy, mut in_force) = (&current, None);
            if let Some(FormerOffer { policy: former, at, body: seen }) = &former {
                if let Verdict::Paid(listing) = verdict {
                    in_force = Some(listing);
                }
                (policy, asked.at, body) = (former, *at, seen.as_ref());
                verdict = policy.judge_with(&asked, body);
                payment = read_payment(&sent, &verdict);
            }
            if let Some(draft) = &mut draft {
                draft.judged(policy, &verdict);
                draft.record().matched = policy.matched(&asked, body);
            }
            let way = Way::of(&verdict).cloned();
            if let Some(way) = way {
                request.extensions_mut().insert(way);
            }
            (policy, verdict, payment, in_force)
        };
        let refund = matches!(payment, Ok(Payment { action: x402::Action::Refund(_), .. }));
        let listing = match verdict {
            Verdict::Paid(listing) if listing.route.is_shadow() && !refund => {
                let visit = Visit { peer, id, draft };
                return Box::pin(self.watch(request, visit, inner, listing, payment)).await;
            }
            Verdict::Paid(listing) if request.method() != Method::OPTIONS => Some(listing),
            // A refund is taken on any path of the site: a client may have no other URL than a free one.
            _ if refund => policy.first_paid(),
            Verdict::Free(_) => {
                // It keeps nothing of all that while it is served.
                drop(payment);
                return self.pass(request, inner, draft).await;
            }
            Verdict::NoneMet => return Ok(not_sold(&request, answer::no_condition_met(), draft)),
            Verdict::Doubtful(doubt) => return Ok(not_sold(&request, answer::doubtful(&doubt), draft)),
            Verdict::BodyNeeded => return Ok(not_sold(&request, answer::doubtful(&Doubt::Unread), draft)),
            Verdict::Watched(route, code) => {
                let watched = self.note_watched(&route.name, code.into(), id);
                drop(payment);
                return Box::pin(self.pass_watched(request, inner, watched, draft)).await;
            }
            Verdict::Unknown => {
                let home = shop.and_then(|shop| shop.home(&request));
                return Ok(not_sold(&request, home.unwrap_or_else(answer::unknown_route), draft));
            }
            Verdict::Unclear(error) => return Ok(not_sold(&request, answer::unclear_path(error), draft)),
            // The gate answers OPTIONS itself: a paid route's upstream must not work unpaid.
            Verdict::Paid(..) | Verdict::OtherMethods(_) if request.method() == Method::OPTIONS => {
                let options = answer::options(&policy.methods_of(&Asked::of(&request)));
                return Ok(not_sold(&request, options, draft));
            }
            Verdict::OtherMethods(methods) => return Ok(not_sold(&request, answer::other_methods(&methods), draft)),
            Verdict::Paid(..) => unreachable!("a paid route is either offered or an OPTIONS request"),
        };
        if is_unpaid
            && let Some(listing) = listing
            && let Some(given) = self.free_request(&listing.route, peer)
        {
            drop(payment);
            return Box::pin(self.give(request, inner, given, draft)).await;
        }
        let mut listing = listing;
        let mut answered = payment.as_ref().ok().and_then(|payment| listing?.answered(&payment.accepted, refund));
        if let (true, None, Ok(payment)) = (refund, answered, &payment)
            && let Some(other) = policy.first_refunding(&payment.accepted)
        {
            (listing, answered) = (Some(other), other.answered(&payment.accepted, true));
        }
        let till = answered.and_then(|offered| self.till_of(offered));
        let admission = match (payment, listing, answered, till) {
            // What a paid request needs is in boxes: a free one, or a connection at rest, has no room for it.
            (Ok(payment), Some(listing), offered, till) => {
                let visit = Visit { peer, id, draft: None };
                let in_force = in_force.unwrap_or(listing);
                let answered = offered.map(|offered| Answered { listing, offered, in_force });
                Box::pin(self.admit_or_recall(listing, till.zip(answered), payment, &sent, &mut request, visit)).await
            }
            (Ok(_), ..) => Err(Code::NoMatchingRequirements.into()),
            (Err(refusal), ..) => Err(refusal),
        };
        // Who brings nothing that answers an offer has come for the price, whatever it sent.
        let admission = match (admission, listing) {
            (Err(refusal), Some(listing)) if answered.is_none() => {
                self.within_unpaid_rate(&listing.route, peer).and(Err(refusal))
            }
            (admission, _) => admission,
        };
        match admission {
            Ok(Once::New(Admission::Serve(admitted), serving)) => {
                let (listing, offered) = listing.zip(answered).expect("without an offer nothing is admitted");
                let sale = Sale::of(policy, listing, offered);
                match serving {
                    None => Box::pin(self.serve_paid(sale, request, id, inner, admitted, draft)).await,
                    Some(serving) => {
                        let visit = Visit { peer, id, draft };
                        Box::pin(self.serve_to_the_end(sale, request, visit, inner, admitted, serving)).await
                    }
                }
            }
            Ok(Once::Again(answer)) => {
                note(&mut draft, Outcome::Free, &answer);
                Ok((*answer).map(AnswerBody::whole))
            }
            Ok(Once::New(Admission::Refunded { receipt, state }, _)) => {
                let response = answer::refunded(&receipt, &state);
                note(&mut draft, Outcome::Refunded, &response);
                Ok(own(&request, response))
            }
            Err(refusal) => {
                let (outcome, code) = if is_unpaid {
                    (Outcome::Unpaid, None)
                } else {
                    (Outcome::Refused, draft.is_some().then(|| refusal.error().to_owned()))
                };
                let route = listing.map(|listing| &*listing.route.name);
                tracing::debug!(route, error = refusal.error(), "refused");
                let hold_back = refusal.is_one_of(&[Code::PaymentRateLimited]);
                let quote = listing.map(|listing| self.quote(listing, answered));
                let response = refusal.into_response(quote.as_deref(), target_of(&request));
                if let Some(draft) = &mut draft {
                    draft.record().code = code;
                }
                note(&mut draft, outcome, &response);
                let mut response = own(&request, response);
                if let (true, Some(page)) = (is_unpaid, listing.and_then(|listing| listing.page.as_ref()))
                    && shop::is_browsing(&request)
                {
                    response = own(&request, answer::on_page(response, page.write(target_of(&request))));
                }
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
            && matches!(self.policy().judge(&Asked::of(request)), Verdict::Paid(..) | Verdict::BodyNeeded)
    }

    /// A free request: only the headers are cleaned.
    async fn pass<B, R, E, F>(
        &self,
        request: Request<B>,
        inner: impl FnOnce(Request<B>) -> F,
        draft: Option<Draft>,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        F: Future<Output = Result<Response<R>, E>>,
    {
        self.pass_as(Outcome::Free, request, inner, draft).await
    }

    /// A request that nobody pays for, and what that is called in its record.
    async fn pass_as<B, R, E, F>(
        &self,
        outcome: Outcome,
        request: Request<B>,
        inner: impl FnOnce(Request<B>) -> F,
        mut draft: Option<Draft>,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        F: Future<Output = Result<Response<R>, E>>,
    {
        let mut response = inner(request).await?;
        note(&mut draft, outcome, &response);
        strip_payment_headers(response.headers_mut());
        Ok(response.map(AnswerBody::upstream))
    }

    /// A request of a network that has free ones left. What fails is given back.
    async fn give<B, R, E, F>(
        &self,
        request: Request<B>,
        inner: impl FnOnce(Request<B>) -> F,
        given: FreeRequest,
        draft: Option<Draft>,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        F: Future<Output = Result<Response<R>, E>>,
    {
        let result = match AssertUnwindSafe(self.pass(request, inner, draft)).catch_unwind().await {
            Ok(result) => result,
            Err(panic) => {
                given.give_back();
                std::panic::resume_unwind(panic);
            }
        };
        match result {
            Ok(mut response) => {
                if !has_failed(&response) {
                    // The next one may not be free.
                    answer::make_private(response.headers_mut());
                } else {
                    given.give_back();
                }
                Ok(response)
            }
            Err(error) => {
                given.give_back();
                Err(error)
            }
        }
    }

    /// A request of a route that only watches: served for nothing whatever it brings. Its payment is judged, and let go: a
    /// voucher that is not charged is good again. No deposit is relayed, and nobody waits.
    async fn watch<B, R, E, F>(
        &self,
        request: Request<B>,
        Visit { peer, id, draft }: Visit<'_>,
        inner: impl FnOnce(Request<B>) -> F,
        listing: &Listing,
        payment: Result<Payment<'_>, Refusal>,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        F: Future<Output = Result<Response<R>, E>>,
    {
        let route = &listing.route;
        let would: Cow<'static, str> = match payment {
            _ if request.method() == Method::OPTIONS => Watched::FREE.into(),
            Err(refusal) if refusal.is_unpaid() => match self.free_request(route, peer) {
                Some(_used) => Watched::FREE.into(),
                None => match self.within_unpaid_rate(route, peer) {
                    Ok(()) => refusal.into_error(),
                    Err(too_fast) => too_fast.into_error(),
                },
            },
            Err(refusal) => refusal.into_error(),
            Ok(Payment { action: x402::Action::DepositAndPay(_), .. }) => "deposit".into(),
            Ok(payment) => match listing.answered(&payment.accepted, false) {
                None => Refusal::from(Code::NoMatchingRequirements).into_error(),
                Some(offered) => {
                    let till = self.till_of(offered).unwrap_or(self);
                    let answered = Answered { listing, offered, in_force: listing };
                    let admitted = till.admit(answered, payment, peer, id);
                    match tokio::time::timeout(MAX_WATCHED_WAIT, admitted).await {
                        Ok(Ok(_hold)) => Watched::PAID.into(),
                        Ok(Err(refusal)) => refusal.into_error(),
                        Err(_) => "waiting".into(),
                    }
                }
            },
        };
        let watched = self.note_watched(&route.name, would, id);
        self.pass_watched(request, inner, watched, draft).await
    }

    async fn pass_watched<B, R, E, F>(
        &self,
        request: Request<B>,
        inner: impl FnOnce(Request<B>) -> F,
        watched: Watched,
        mut draft: Option<Draft>,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        F: Future<Output = Result<Response<R>, E>>,
    {
        if let Some(draft) = &mut draft {
            draft.record().code = Some(watched.would.clone().into_owned());
        }
        let mut response = self.pass_as(Outcome::Shadow, request, inner, draft).await?;
        response.extensions_mut().insert(watched);
        Ok(response)
    }

    pub(super) async fn serve_paid<B, R, E, F>(
        &self,
        sale: Sale<'_>,
        mut request: Request<B>,
        id: Option<&str>,
        inner: impl FnOnce(Request<B>) -> F,
        admitted: Admitted,
        mut draft: Option<Draft>,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        F: Future<Output = Result<Response<R>, E>>,
        R: Body<Data = Bytes> + Send + 'static,
    {
        let Admitted { mut hold, payer, deposited } = admitted;
        let Sale { route, tender, generation, .. } = sale;
        let Tender { terms, network, .. } = &**tender;
        let most = hold.most();
        if let Some(draft) = &mut draft {
            draft.is_in(tender, hold.price());
            // As the hold does, should the client leave now.
            let record = draft.record();
            (record.payer, record.charge) = (Some(payer.account), Some(most));
        }
        // Made once: its checksum takes a hash. Nearly always both are the same.
        let payer_text = payer.address.text();
        let account_text = if payer.account == payer.address { payer_text } else { payer.account.text() };
        introduce(request.headers_mut(), &account_text, payer.channel, most, tender);
        let (head_only, trailers) = (request.method() == Method::HEAD, metered::takes_trailers(&request));
        let (price, decimals) = (sale.price_for(&payer.account), terms.token.decimals);
        hold.sent();
        let due = Due::of(hold, route, price, decimals, id, &mut request, draft);
        // A panic upstream of us is our failure, not the payer's: it voids, where a client that leaves posts.
        let result = match AssertUnwindSafe(inner(request)).catch_unwind().await {
            Ok(result) => result,
            Err(panic) => {
                due.void(None);
                std::panic::resume_unwind(panic);
            }
        };
        let mut response = match result {
            Ok(response) => response,
            Err(error) => {
                due.void(None);
                return Err(error);
            }
        };
        // Nothing is charged yet, or ever. A deposit landed all the same.
        let landed = |state: Option<ChannelState>| {
            deposited.zip(state).map(|((transaction, amount), state)| {
                let nothing = Amount::ZERO;
                x402::encode(&Receipt::deposited(network, payer.address, transaction, amount, nothing, &state))
            })
        };
        let status = response.status().as_u16();
        if !is_served(&route.status_rule, &response) {
            strip_payment_headers(response.headers_mut());
            // The same voucher is good again.
            return Ok(with_receipt(response.map(AnswerBody::upstream), landed(due.void(Some(status)))));
        }
        let (mut response, posted, mut draft) = match due {
            Due::Fixed(hold, price, mut draft) => {
                note(&mut draft, Outcome::Paid, &response);
                let said = meter::said(response.headers(), most, decimals, id);
                let measured = Measured::nothing(status, End::Complete);
                let charge = meter::charge_of(route, &price, most, &measured, said);
                strip_payment_headers(response.headers_mut());
                let posted = hold.post(charge);
                if let Err(reject) = &posted {
                    // The chain moved the channel under the request (our authorizer's key claimed elsewhere). The work is
                    // done and cannot be charged; the client is told nothing it could book.
                    let channel = payer.channel;
                    tracing::error!(request = id, %channel, %reject, "a served request could not be charged");
                    void(&mut draft);
                }
                (response.map(AnswerBody::upstream), posted.ok(), draft)
            }
            Due::Metered(bill) => {
                let receipts = Receipts { network: (**network).into(), payer: payer_text, generation };
                match bill.follow(response, trailers, receipts, &self.reading_on).await {
                    Course::Charged(response, posted, draft) => (response, posted, draft),
                    // Without a receipt a client finds out at its next request; but one that deposited would do so again.
                    Course::Open(mut response, state) => {
                        answer::make_private(response.headers_mut());
                        return Ok(with_receipt(response, landed(state)));
                    }
                    Course::Broken(state) => {
                        return Ok(with_receipt(answer::broken_off().map(AnswerBody::own), landed(state)));
                    }
                }
            }
        };
        if let Some(posted) = posted {
            match posted.written().await {
                Ok(charged) => {
                    if let Some(draft) = &mut draft {
                        draft.record().charge = Some(charged.charge);
                    }
                    let receipt = receipt((network, generation), payer, &payer_text, deposited, &charged);
                    answer::insert(response.headers_mut(), answer::PAYMENT_RESPONSE, receipt);
                }
                Err(not_written) => {
                    let response = not_charged(network, payer, id, deposited, not_written);
                    void(&mut draft);
                    note(&mut draft, Outcome::Void, &response);
                    return Ok(response.map(|body| AnswerBody::own(if head_only { Bytes::new() } else { body })));
                }
            }
        }
        answer::make_private(response.headers_mut());
        Ok(response)
    }
}

fn with_receipt<B>(mut response: Response<B>, receipt: Option<String>) -> Response<B> {
    if let Some(receipt) = receipt {
        answer::insert(response.headers_mut(), answer::PAYMENT_RESPONSE, receipt);
    }
    response
}

/// What a request was let through for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sale<'s> {
    /// Of which route.
    route: &'s Arc<Route>,
    /// In which token.
    tender: &'s Arc<Tender>,
    /// For what, in units of that token.
    charged: &'s Price,
    /// By which price list.
    generation: u64,
}

/// The same, for who outlives the price list.
#[derive(Debug)]
pub(super) struct OwnSale {
    route: Arc<Route>,
    tender: Arc<Tender>,
    charged: Price,
    generation: u64,
}

impl OwnSale {
    /// By which statuses it is charged.
    pub(super) fn status_rule(&self) -> &StatusRule {
        &self.route.status_rule
    }

    pub(super) fn as_sale(&self) -> Sale<'_> {
        let Self { route, tender, charged, generation } = self;
        Sale { route, tender, charged, generation: *generation }
    }
}

impl<'s> Sale<'s> {
    pub(super) fn to_own(self) -> OwnSale {
        let Self { route, tender, charged, generation } = self;
        OwnSale { route: Arc::clone(route), tender: Arc::clone(tender), charged: charged.clone(), generation }
    }

    pub(super) fn of(policy: &Policy, listing: &'s Listing, offered: &'s Offered) -> Self {
        let Offered { tender, charged, .. } = offered;
        Self { route: &listing.route, tender, charged, generation: policy.generation() }
    }

    /// What this payer is charged: a price of its own, or the one that was quoted.
    fn price_for(&self, payer: &Address) -> Price {
        self.tender.own_price(self.route, payer).unwrap_or_else(|| self.charged.clone())
    }
}

/// Who asks, and where what becomes of it is noted.
pub(super) struct Visit<'v> {
    pub(super) peer: Option<Peer>,
    pub(super) id: Option<&'v str>,
    pub(super) draft: Option<Draft>,
}

/// What tells the payer of a charge that is in the books, as a header's text.
fn receipt(
    (network, generation): (&str, u64),
    payer: Payer,
    payer_text: &[u8; 42],
    deposited: Option<(Hash, Amount)>,
    Charged { charge, state }: &Charged,
) -> String {
    let charged = state.charged_cumulative_amount;
    tracing::debug!(channel = %payer.channel, %charge, %charged, generation, "charged");
    match deposited {
        Some((transaction, amount)) => {
            let receipt = Receipt::deposited(network, payer.address, transaction, amount, *charge, state);
            x402::encode(&receipt.by_prices(generation))
        }
        None => Receipt::encode_charged(network, payer_text, *charge, state, generation),
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
pub(super) enum Sent {
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
fn read_payment<'p>(sent: &Sent, verdict: &Verdict<'p>) -> Result<Payment<'p>, Refusal> {
    let value = match sent {
        Sent::Nothing => return Err(Refusal::unpaid()),
        Sent::Several => {
            return Err(Refusal::from(Code::DuplicatePayment).with_detail("send exactly one PAYMENT-SIGNATURE header"));
        }
        Sent::OldPayment => return Err(Refusal::quoting("Unsupported x402 version: 1")),
        Sent::Payment(value) => value.as_bytes(),
    };
    let payment = match verdict {
        Verdict::Paid(listing) => Payment::read_for(value, listing.offers()),
        _ => Payment::read(value),
    };
    payment.map_err(|error| match &error {
        PaymentError::Version(_) => Refusal::quoting(error.to_string()),
        PaymentError::Payload { detail, .. } => Refusal::from(error.code()).with_detail(detail.clone()),
        PaymentError::Header(header) => Refusal::from(error.code()).with_detail(header.to_string()),
        PaymentError::Accepted => Refusal::from(error.code()),
    })
}

/// Tells the inner service who pays.
fn introduce(headers: &mut HeaderMap, payer_text: &[u8; 42], channel: ChannelId, price: Amount, tender: &Tender) {
    let of_text = |text: &[u8]| HeaderValue::from_bytes(text).expect("hex is header text");
    headers.insert(X_PEAJE_PAYER, of_text(payer_text));
    headers.insert(X_PEAJE_CHANNEL, of_text(&channel.lower_text()));
    let price = match u64::try_from(price.units()) {
        Ok(units) => HeaderValue::from(units),
        Err(_) => HeaderValue::try_from(price.to_string()).expect("digits are header text"),
    };
    headers.insert(X_PEAJE_CHARGED, price);
    headers.insert(X_PEAJE_ASSET, tender.asset.clone());
}

/// Writes down what became of a request, where anybody wants to know.
fn note<B>(draft: &mut Option<Draft>, outcome: Outcome, response: &Response<B>) {
    if let Some(draft) = draft {
        draft.ended(outcome, response.status().as_u16());
    }
}

/// Writes down that nothing was charged, so far.
fn void(draft: &mut Option<Draft>) {
    if let Some(draft) = draft {
        let record = draft.record();
        (record.outcome, record.charge) = (Outcome::Void, Some(Amount::ZERO));
    }
}

/// The answer to a request for nothing that is sold.
fn not_sold<B, R>(
    request: &Request<B>,
    response: Response<Bytes>,
    mut draft: Option<Draft>,
) -> Response<AnswerBody<R>> {
    note(&mut draft, Outcome::NotSold, &response);
    own(request, response)
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
