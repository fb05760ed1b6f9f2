//! The agent: one wallet, its channels, and the act of paying.
//!
//! **Owns** the order of things: what is written before it is sent, what is asked again and how often. **Promises**
//! that a call sends at most six requests, but for those that are sent again as they were because their answer was lost:
//! the paid one, the one before it that finds out the price (unpaid, or paid by an offer that turned out stale), one
//! signed ahead that was refused, and one more after each of a corrective, a deposit that is not there yet, and a balance
//! that is lower than we thought. **Does not** decide about money (see [`super::judge`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dashmap::DashMap;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use hyper::body::Incoming;
use serde_json::Value;

use super::ahead::{Alone, Lane, MAX_AHEAD};
use super::answer::{Answer, AnswerBody, PaymentMade};
use super::book::{Book, PendingDeposit, Record};
use super::budget::{Budget, Dollars};
use super::error::AgentError;
use super::http::{Http, drain};
use super::judge::{
    self, Asked, Choice, ChoiceFault, Funds, LooseQuote, OwnSide, Plan, PlanFault, ReceiptVerdict, Terms,
};
use super::late::{Books, Late, comes_late};
use super::on_disk;
use super::payload::{self, Echo, Kind};
use super::reader::ChainReader;
use super::spending::{Reservation, Spending};
use crate::protocol::contracts::{PERMIT2, PERMIT2_COLLECTOR};
use crate::protocol::deposit::{Authorization, EIP2612_SPONSORING, Permit2Authorization, TokenPermit};
use crate::protocol::x402::{PAYMENT_REQUIRED, PAYMENT_RESPONSE};
use crate::protocol::{Address, Amount, ChannelConfig, ChannelId, Code, Domain, Hash, LocalKey, Voucher};

/// How long an offer is used again without asking. The server refuses one it no longer honours, and is then asked.
const OFFER_TTL: Duration = Duration::from_secs(300);
/// The most offers that are remembered; beyond, all are forgotten, which costs one request each.
const MAX_OFFERS: usize = 1_024;
/// Above so many lanes, those nobody is in are dropped.
const MAX_IDLE_LANES: usize = 1_024;
/// How long to wait before each time that a payment is sent again as it is, because its answer was lost.
const RESEND_AFTER: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(2)];
/// The longest `Retry-After` that is passed on, in seconds.
const MAX_RETRY_AFTER_S: u64 = 86_400;
const SECONDS_A_DAY: u64 = 86_400;

/// What an agent is made of.
#[derive(Debug)]
pub struct AgentConfig {
    /// The wallet: whose tokens are deposited. It signs deposits, and vouchers unless another key does.
    pub key: LocalKey,
    /// A key that signs vouchers only. It is part of a channel's terms, so another key means other channels.
    pub voucher_key: Option<LocalKey>,
    /// What may be spent.
    pub budget: Budget,
    /// Which terms are agreed to.
    pub terms: Terms,
    /// Where the channels are written down.
    pub book: Book,
    /// Tells apart several channels with the same receiver and terms; zero will do for one.
    pub salt: Hash,
    /// How many payments of one channel may be on their way at once, where the server allows that too ([`super::MAX_AHEAD`]
    /// at most): their vouchers are signed ahead of the answers to those before them. With 1 they are made one at a time.
    pub ahead: u32,
    /// How long to wait for the head of an answer. A deposit is mined in that time, so minutes rather than seconds.
    pub patience: Duration,
}

impl AgentConfig {
    /// The defaults: an ordinary budget, preset tokens, a book in memory, salt zero, one payment at a time,
    /// five minutes of patience.
    pub fn new(key: LocalKey) -> Self {
        Self {
            key,
            voucher_key: None,
            budget: Budget::default(),
            terms: Terms::default(),
            book: Book::in_memory(),
            salt: Hash::ZERO,
            ahead: 1,
            patience: Duration::from_secs(300),
        }
    }
}

/// A request to be paid for. The body is held, because it is sent again with the payment.
#[derive(Debug, Clone)]
pub struct PayRequest {
    /// The method.
    pub method: Method,
    /// An absolute `http` or `https` URL.
    pub url: String,
    /// The caller's headers. Those of the connection and of payments are replaced.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl PayRequest {
    /// A request without headers or body.
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Self { method, url: url.into(), headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// A `GET`.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new(Method::GET, url)
    }
}

/// A wallet that pays. Clones share everything; use one from as many tasks as you like.
#[derive(Debug)]
pub struct Agent<R>(Arc<Inner<R>>);

impl<R> Clone for Agent<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<R> {
    config: AgentConfig,
    chain: R,
    http: Http,
    spending: Arc<Spending>,
    lanes: DashMap<ChannelId, Arc<Lane>>,
    offers: Mutex<HashMap<OfferKey, (Instant, Quoted)>>,
}

/// Where an offer holds: a price may depend on the method and the path. If it depends on the query, the server says so.
type OfferKey = (Method, String);

/// An acceptable offer and what is echoed with it.
#[derive(Debug, Clone)]
pub(super) struct Quoted {
    pub(super) choice: Choice,
    resource: Option<Value>,
    extensions: Option<Value>,
}

impl Quoted {
    pub(super) fn echo(&self) -> Echo<'_> {
        Echo { accepted: &self.choice.echo, resource: self.resource.as_ref(), extensions: self.extensions.as_ref() }
    }
}

/// A channel that nobody else of this process pays from, and its record.
pub(super) struct Slot {
    pub(super) record: Record,
    /// Held until the last write of the record is done, even if the caller goes away in the meantime.
    _alone: Alone,
}

impl Slot {
    pub(super) fn new(record: Record, alone: Alone) -> Self {
        Self { record, _alone: alone }
    }

    /// Makes the record durable. The channel stays locked until that is done, whether or not the caller waits for it.
    pub(super) async fn save(self, book: &Book) -> Result<Self, AgentError> {
        on_disk(book, move |book| book.save(&self.record).map(|()| self)).await
    }
}

/// Where a URL leads.
pub(super) struct Target {
    pub(super) uri: Uri,
    pub(super) host: String,
}

/// What was already tried in one call, so that nothing is tried twice.
#[derive(Debug, Default)]
struct Tried {
    /// The offer in use was remembered, not just read.
    offer_is_old: bool,
    /// The books were corrected.
    corrected: bool,
    /// The chain or the server said that the deposit we hoped for is not there.
    pending_is_absent: bool,
    /// The balance was looked up after the server found it too low.
    looked_up: bool,
}

/// What came of sending one payment.
enum Step {
    Done(Box<Answer>),
    /// Pay again, for this offer.
    Again(Box<(Quoted, Slot)>),
}

impl<R: ChainReader> Agent<R> {
    /// Makes an agent. Reads the day's spending from the book, which blocks on the disk.
    ///
    /// # Errors
    /// When the book cannot be read.
    pub fn new(config: AgentConfig, chain: R) -> Result<Self, AgentError> {
        let spending = Spending::resume(config.book.day()?);
        let http = Http::new();
        let inner = Inner { config, chain, http, spending, lanes: DashMap::new(), offers: Mutex::default() };
        Ok(Self(Arc::new(inner)))
    }

    /// The account whose tokens are deposited.
    pub fn address(&self) -> Address {
        self.0.config.key.address()
    }

    /// Where the channels are written down.
    pub fn book(&self) -> &Book {
        &self.0.config.book
    }

    /// Makes a request and pays for it if the server asks.
    ///
    /// An offer that was accepted for the same method, origin and path in the last five minutes is paid at once,
    /// without asking again; this saves the round trip of the 402. If the server refuses it, its fresh offer is taken.
    ///
    /// The answer may have any status: a server that fails after it was offered payment answers with its own error, and
    /// then nothing is booked as charged unless a receipt says so. The budget counts what was signed all the same, once
    /// for each ceiling: the server could claim it.
    ///
    /// # Cancellation
    /// Safe for the books. If the payment was sent, it may be served and charged without our hearing of it; the next
    /// payment on the channel is then corrected by the server, against our own signature.
    ///
    /// # Errors
    /// See [`AgentError`]. After [`AgentError::Http`] and [`AgentError::Timeout`] the request may have been served.
    pub async fn pay(&self, request: PayRequest) -> Result<Answer, AgentError> {
        let target = Target::of(&request.url)?;
        let key = target.offer_key(&request.method);
        let mut attempts = 0;
        let mut tried = Tried::default();
        let mut quoted = match self.remembered(&key) {
            Some(quoted) => {
                tried.offer_is_old = true;
                quoted
            }
            None => {
                attempts += 1;
                let response = self.0.http.send(&request, &target.uri, None, self.0.config.patience).await?;
                if response.status() != StatusCode::PAYMENT_REQUIRED {
                    return Ok(answer(response, None, None, attempts));
                }
                let quote = judge::read_quote(header(&response, PAYMENT_REQUIRED));
                drain(response.into_body()).await;
                self.choose(quote?, Some(self.0.config.budget.max_per_request))?
            }
        };
        if self.width(&quoted) > 1 {
            self.remember(&key, &quoted);
            match self.pay_ahead(&request, &target, &quoted, &mut attempts).await {
                Ok(Some(answer)) => return Ok(answer),
                // In turn, then, once the others are done.
                Ok(None) => {}
                Err(error) => {
                    self.forget(&key);
                    return Err(error);
                }
            }
        }
        let mut held: Option<Slot> = None;
        loop {
            self.remember(&key, &quoted);
            let (config, channel) = self.channel_of(&quoted.choice);
            let slot = match held.take() {
                Some(slot) if slot.record.channel == channel => slot,
                other => {
                    drop(other);
                    self.open(&quoted.choice, config, channel, &target.host).await?
                }
            };
            attempts += 1;
            match self.attempt(&request, &target, quoted, slot, &mut tried, attempts).await {
                Ok(Step::Done(answer)) => return Ok(*answer),
                Ok(Step::Again(next)) => {
                    let (next, slot) = *next;
                    (quoted, held) = (next, Some(slot));
                }
                Err(error) => {
                    // Whatever was wrong, the next call begins with a fresh offer.
                    self.forget(&key);
                    return Err(error);
                }
            }
        }
    }

    /// Sends one payment and judges what comes back.
    async fn attempt(
        &self,
        request: &PayRequest,
        target: &Target,
        quoted: Quoted,
        mut slot: Slot,
        tried: &mut Tried,
        attempts: u32,
    ) -> Result<Step, AgentError> {
        let Inner { config, spending, .. } = &*self.0;
        let choice = &quoted.choice;
        let now = now_s()?;
        let day = now / SECONDS_A_DAY;
        let in_dollars = |amount| Dollars::of(amount, choice.token.decimals);
        // What the server could claim before, and after this payment. The budget counts the difference, whatever the
        // server then says or leaves unsaid: it has our signature.
        let counted = slot.record.counted.max(slot.record.charged);
        let base = slot.record.base(choice.offer.amount);
        let ceiling = base.checked_add(choice.offer.amount).ok_or(AgentError::Overflow)?;
        let (price, fresh) = (in_dollars(choice.offer.amount), in_dollars(ceiling.saturating_sub(counted)));
        let mut reservation = spending.reserve(&config.budget, &target.host, price, fresh, day)?;

        self.look_for_pending(&mut slot.record, choice, tried, now).await?;
        let funds = Funds {
            charged: base,
            balance: slot.record.balance,
            pending: slot.record.pending_deposit,
            pending_is_absent: tried.pending_is_absent,
        };
        let (plan, max) = judge::plan(&funds, choice, &config.budget, now)?;
        let deposit = match plan {
            Plan::Voucher | Plan::VoucherOnPending => None,
            Plan::SameDeposit(pending) => Some(pending),
            Plan::NewDeposit(amount) => Some(new_deposit(amount, choice, now)?),
        };
        let permit = match deposit {
            Some(deposit) if deposit.by_permit2 => self.token_permit(&quoted, &slot.record, deposit).await?,
            _ => None,
        };
        let payment = self.sign(&quoted, &slot.record, max, deposit, permit)?;

        // What is about to be signed for is written down before anybody can hold us to it.
        let signed_before = slot.record.signed_max;
        slot.record.signed_max = signed_before.max(max);
        slot.record.counted = counted.max(max);
        slot.record.pending_deposit = deposit.or(slot.record.pending_deposit);
        target.host.clone_into(&mut slot.record.host);
        // From here on it counts as sent: what is written down as counted must be, whoever stops waiting for the disk.
        reservation.sent(day);
        slot = self.save(slot).await?;
        let response = match self.send_named(request, target, payment, &quoted).await {
            Ok(response) => response,
            Err(error) => {
                drop(reservation);
                self.save_day().await?;
                return Err(error);
            }
        };
        let asked = Asked { amount: choice.offer.amount, deposit: deposit.map(|deposit| deposit.amount) };
        let mut verdict = judge::judge_receipt(header(&response, PAYMENT_RESPONSE), asked);
        let status = response.status();
        let is_late = comes_late(response.headers());
        if is_late {
            // What it cost so far is not what it costs.
            verdict.charged = None;
        }

        if verdict.charged.is_some() || verdict.landed.is_some() {
            let charged = verdict.charged.unwrap_or_default();
            let record = &mut slot.record;
            // A voucher that was taken on a pending deposit proves that the server has seen it land.
            let landed = verdict.landed.is_some() || (plan == Plan::VoucherOnPending && verdict.charged.is_some());
            if let Some(pending) = record.pending_deposit.take_if(|_| landed) {
                record.balance = record.balance.checked_add(pending.amount).ok_or(AgentError::Overflow)?;
            }
            // It cannot exceed the ceiling just signed: the charge is at most the price.
            record.charged = record.charged.checked_add(charged).ok_or(AgentError::Overflow)?;
            // A receipt that names its charge is believed as far as the budget goes.
            if verdict.charged.is_some() {
                record.top = max;
                record.spent = if record.spent > record.charged { max } else { Amount::ZERO };
                record.counted = counted.max(record.charged);
                reservation.spend(in_dollars(record.charged.saturating_sub(counted)), day);
            } else {
                drop(reservation);
            }
            self.save_day().await?;
            slot = self.save(slot).await?;
            let payment = payment_made(&slot.record, charged, deposit, verdict);
            let late = is_late.then(|| self.late(&quoted, slot, max, counted, day, &payment));
            return Ok(Step::Done(Box::new(answer(response, Some(payment), late, attempts))));
        }
        drop(reservation);
        self.save_day().await?;

        let retry_after_s = retry_after(response.headers());
        let deposit_until = slot.record.pending_deposit.map(|pending| pending.valid_before);
        let pending = AgentError::SettlementPending { retry_after_s, deposit_until };
        if let Some((code, message)) = verdict.refusal.clone().filter(|_| !status.is_success()) {
            drain(response.into_body()).await;
            return Err(if code == Code::SettlementPending.as_str() {
                pending
            } else {
                AgentError::Refused { code, message, retry_after_s, deposit_until }
            });
        }
        let quote = judge::read_quote(header(&response, PAYMENT_REQUIRED));
        match quote {
            Ok(quote) if status.is_client_error() || status.is_server_error() => {
                drain(response.into_body()).await;
                self.refused(quote, quoted, slot, tried, plan, signed_before, (retry_after_s, deposit_until)).await
            }
            Err(fault) if status == StatusCode::PAYMENT_REQUIRED => Err(fault.into()),
            _ if deposit.is_some() && status == StatusCode::SERVICE_UNAVAILABLE && retry_after_s.is_some() => {
                Err(pending)
            }
            _ => {
                // The upstream's own answer. Without a receipt nothing is known to be charged; if it was, the next
                // payment is corrected.
                let served = status.is_success() || status.is_redirection();
                let payment = served.then(|| payment_made(&slot.record, Amount::ZERO, None, verdict));
                let late = payment.as_ref().filter(|_| is_late);
                let late = late.map(|payment| self.late(&quoted, slot, max, counted, day, payment));
                Ok(Step::Done(Box::new(answer(response, payment, late, attempts))))
            }
        }
    }

    /// What is to be done with the receipt that comes at the end of an answer.
    fn late(
        &self,
        quoted: &Quoted,
        slot: Slot,
        max: Amount,
        counted: Amount,
        day: u64,
        payment: &PaymentMade,
    ) -> Box<Late> {
        let Inner { config, spending, .. } = &*self.0;
        let books = Books {
            lane: self.lane(slot.record.channel, self.width(quoted)),
            book: config.book.share(),
            spending: Arc::clone(spending),
            sent: slot.record,
            max,
            counted,
            day,
        };
        Box::new(Late { asked: quoted.choice.offer.amount, payment: payment.clone(), books: Some(books) })
    }

    /// Decides whether a refusal can be answered, each cause once.
    #[expect(
        clippy::too_many_arguments,
        reason = "the one caller has them all at hand; a struct would only rename them"
    )]
    async fn refused(
        &self,
        quote: LooseQuote,
        quoted: Quoted,
        mut slot: Slot,
        tried: &mut Tried,
        plan: Plan,
        signed_before: Amount,
        (retry_after_s, deposit_until): (Option<u64>, Option<u64>),
    ) -> Result<Step, AgentError> {
        let code = quote.error.clone().unwrap_or_default();
        let refused = |message: &str| AgentError::Refused {
            code: if code.is_empty() { "no reason given".to_owned() } else { judge::shown(&code) },
            message: message.to_owned(),
            retry_after_s,
            deposit_until,
        };
        let max_price = Some(self.0.config.budget.max_per_request);
        if code == Code::SettlementPending.as_str() {
            return Err(AgentError::SettlementPending { retry_after_s, deposit_until });
        }
        // A voucher that hoped for the pending deposit was not taken: the deposit goes with the next one, once more.
        let hoped = plan == Plan::VoucherOnPending && !tried.pending_is_absent;
        if judge::is_corrective(&code) {
            if tried.corrected && !hoped {
                return Err(refused("the books were corrected once already in this call"));
            }
            let price = quoted.choice.offer.amount;
            let before = (slot.record.base(price), slot.record.balance);
            let asked_chain = match self.correct(&mut slot.record, &quote.accepts, &quoted.choice).await {
                Err(AgentError::NeedsChain { .. }) if hoped => false,
                other => other?,
            };
            let changed = before != (slot.record.base(price), slot.record.balance);
            tried.corrected |= changed || !hoped;
            tried.pending_is_absent |= hoped;
            tried.offer_is_old = false;
            // What turns out to be charged without our having heard of it was spent all the same, as far as it was
            // signed for here and is not counted yet.
            let counted = slot.record.counted.max(before.0);
            let unheard = slot.record.charged.min(signed_before).saturating_sub(counted);
            slot.record.counted = counted.max(slot.record.charged);
            if !unheard.is_zero() {
                let spent = Dollars::of(unheard, slot.record.decimals);
                self.0.spending.count(&slot.record.host, spent, now_s()? / SECONDS_A_DAY);
                self.save_day().await?;
            }
            slot = self.save(slot).await?;
            let fresh = self.choose(quote, max_price)?;
            if !changed && plan == Plan::Voucher && fresh.choice.echo == quoted.choice.echo {
                // The next voucher would be the same one.
                return Err(if asked_chain {
                    refused("the chain says the agent's book is right")
                } else {
                    AgentError::NeedsChain { channel: slot.record.channel }
                });
            }
            return Ok(Step::Again(Box::new((fresh, slot))));
        }
        if hoped && judge::says_pending_is_absent(&code) {
            tried.pending_is_absent = true;
            return Ok(Step::Again(Box::new((quoted, slot))));
        }
        if judge::is_underfunded(&code) {
            if std::mem::replace(&mut tried.looked_up, true) {
                return Err(refused("the chain was asked already and says otherwise"));
            }
            let Some(seen) = self.0.chain.channel(&slot.record.network, slot.record.channel).await? else {
                return Err(AgentError::NeedsChain { channel: slot.record.channel });
            };
            if seen.balance >= slot.record.balance {
                return Err(refused("the chain says the channel is funded"));
            }
            slot.record.balance = seen.balance;
            slot = self.save(slot).await?;
            return Ok(Step::Again(Box::new((quoted, slot))));
        }
        if std::mem::replace(&mut tried.offer_is_old, false) {
            let fresh = self.choose(quote, max_price)?;
            if fresh.choice.echo != quoted.choice.echo {
                return Ok(Step::Again(Box::new((fresh, slot))));
            }
        }
        Err(refused(""))
    }

    /// Follows a corrective, if it is proven. Says whether the chain was asked.
    pub(super) async fn correct(
        &self,
        record: &mut Record,
        accepts: &[Value],
        choice: &Choice,
    ) -> Result<bool, AgentError> {
        let state = judge::shown_state(accepts, record.channel).map_err(AgentError::Corrective)?;
        let chain = self.0.chain.channel(&record.network, record.channel).await?;
        match (state, chain) {
            (Some(state), chain) => {
                let own = OwnSide {
                    channel: record.channel,
                    settlement: Domain::settlement(choice.chain_id),
                    signer: record.config.payer_authorizer,
                    charged: record.charged,
                    balance: record.balance,
                };
                let to = judge::judge_corrective(&state, &own, chain).map_err(AgentError::Corrective)?;
                record.charged = to.charged;
                record.signed_max = record.signed_max.max(to.signed_max);
                record.balance = to.balance;
            }
            (None, Some(chain)) => {
                record.charged = chain.total_claimed;
                record.signed_max = record.signed_max.max(chain.total_claimed);
                record.balance = chain.balance;
            }
            (None, None) => return Err(AgentError::NeedsChain { channel: record.channel }),
        }
        // The base it tells is reckoned with all that was used.
        (record.top, record.spent) = (record.charged, Amount::ZERO);
        Ok(chain.is_some())
    }

    /// If a payment hangs on a deposit whose fate is open, asks the chain for it.
    async fn look_for_pending(
        &self,
        record: &mut Record,
        choice: &Choice,
        tried: &mut Tried,
        now: u64,
    ) -> Result<(), AgentError> {
        let max = record.base(choice.offer.amount).checked_add(choice.offer.amount).ok_or(AgentError::Overflow)?;
        let Some(pending) = record.pending_deposit.filter(|_| max > record.balance && !tried.pending_is_absent) else {
            return Ok(());
        };
        let Some(seen) = self.0.chain.channel(&record.network, record.channel).await? else { return Ok(()) };
        let landed = record.balance.checked_add(pending.amount).is_some_and(|landed| seen.balance >= landed);
        if landed || !judge::may_land(&pending, now) {
            record.balance = seen.balance;
            record.pending_deposit = None;
        } else {
            tried.pending_is_absent = true;
        }
        Ok(())
    }

    /// The terms of the channel an offer is paid from, and its id.
    pub(super) fn channel_of(&self, choice: &Choice) -> (ChannelConfig, ChannelId) {
        let AgentConfig { key, salt, .. } = &self.0.config;
        let config = ChannelConfig {
            payer: key.address(),
            payer_authorizer: self.voucher_key().address(),
            receiver: choice.offer.pay_to,
            receiver_authorizer: choice.receiver_authorizer,
            token: choice.offer.asset,
            withdraw_delay: choice.withdraw_delay,
            salt: *salt,
        };
        (config, config.id(&Domain::settlement(choice.chain_id)))
    }

    fn voucher_key(&self) -> &LocalKey {
        let AgentConfig { key, voucher_key, .. } = &self.0.config;
        voucher_key.as_ref().unwrap_or(key)
    }

    /// Waits until nobody else pays from the channel, and reads its record: from the book, else from the chain, else
    /// the channel is taken to be new.
    pub(super) async fn open(
        &self,
        choice: &Choice,
        config: ChannelConfig,
        channel: ChannelId,
        host: &str,
    ) -> Result<Slot, AgentError> {
        let width = self.0.config.ahead.min(choice.max_in_flight).clamp(1, MAX_AHEAD);
        let alone = self.lane(channel, width).alone().await;
        let record = match self.load(channel).await? {
            Some(record) => record,
            None => {
                let network = choice.offer.network.clone();
                let seen = self.0.chain.channel(&network, channel).await?;
                let claimed = seen.map(|seen| seen.total_claimed).unwrap_or_default();
                Record {
                    channel,
                    network,
                    config,
                    decimals: choice.token.decimals,
                    host: host.to_owned(),
                    charged: claimed,
                    signed_max: claimed,
                    counted: claimed,
                    top: claimed,
                    spent: Amount::ZERO,
                    balance: seen.map(|seen| seen.balance).unwrap_or_default(),
                    pending_deposit: None,
                }
            }
        };
        Ok(Slot::new(record, alone))
    }

    /// [`Slot::save`], into our book.
    pub(super) async fn save(&self, slot: Slot) -> Result<Slot, AgentError> {
        slot.save(&self.0.config.book).await
    }

    /// What the book says of a channel.
    pub(super) async fn load(&self, channel: ChannelId) -> Result<Option<Record>, AgentError> {
        on_disk(&self.0.config.book, move |book| book.load(channel)).await
    }

    pub(super) fn config(&self) -> &AgentConfig {
        &self.0.config
    }

    pub(super) fn lanes(&self) -> &DashMap<ChannelId, Arc<Lane>> {
        &self.0.lanes
    }

    pub(super) fn forget_idle_lanes(&self) {
        if self.0.lanes.len() > MAX_IDLE_LANES {
            self.0.lanes.retain(|_, lane| lane.is_used() || Arc::strong_count(lane) > 1);
        }
    }

    /// Room in the budget for one payment, of which `fresh` is not counted yet.
    pub(super) fn reserve(
        &self,
        host: &str,
        price: Dollars,
        fresh: Dollars,
        day: u64,
    ) -> Result<Reservation, AgentError> {
        Ok(self.0.spending.reserve(&self.0.config.budget, host, price, fresh, day)?)
    }

    pub(super) async fn save_day(&self) -> Result<(), AgentError> {
        self.0.spending.save(&self.0.config.book).await
    }

    fn sign(
        &self,
        quoted: &Quoted,
        record: &Record,
        max: Amount,
        deposit: Option<PendingDeposit>,
        permit: Option<TokenPermit>,
    ) -> Result<HeaderValue, AgentError> {
        let choice = &quoted.choice;
        let voucher = self.voucher(record, choice, max);
        let Some(deposit) = deposit else {
            return payload::header(quoted.echo(), &record.config, &voucher, Kind::Voucher);
        };
        let permission = if deposit.by_permit2 {
            self.permit2(choice, record, deposit, permit).into()
        } else {
            self.authorization(choice, record, deposit).into()
        };
        let kind = Kind::Deposit(deposit.amount, &permission);
        payload::header(quoted.echo(), &record.config, &voucher, kind)
    }

    fn authorization(&self, choice: &Choice, record: &Record, deposit: PendingDeposit) -> Authorization {
        let PendingDeposit { amount, salt, valid_before, .. } = deposit;
        let nonce = Authorization::nonce(record.channel, salt);
        let digest = Authorization::digest(&choice.token_domain(), record.config.payer, amount, 0, valid_before, nonce);
        Authorization { valid_after: 0, valid_before, salt, signature: self.0.config.key.sign(digest) }
    }

    fn permit2(
        &self,
        choice: &Choice,
        record: &Record,
        deposit: PendingDeposit,
        permit: Option<TokenPermit>,
    ) -> Permit2Authorization {
        let PendingDeposit { amount, salt: nonce, .. } = deposit;
        let (token, channel, deadline) = (choice.token.address, record.channel, last_second(deposit));
        let domain = Domain::permit2(choice.chain_id);
        let digest = Permit2Authorization::digest(&domain, token, amount, nonce, deadline, channel);
        Permit2Authorization {
            from: record.config.payer,
            token,
            amount,
            spender: PERMIT2_COLLECTOR,
            nonce,
            deadline,
            channel,
            signature: self.0.config.key.sign(digest),
            permit,
        }
    }

    /// The permit that Permit2 needs for a deposit; none where it may move so much already, or no node can say.
    async fn token_permit(
        &self,
        quoted: &Quoted,
        record: &Record,
        deposit: PendingDeposit,
    ) -> Result<Option<TokenPermit>, AgentError> {
        let Quoted { choice, extensions, .. } = quoted;
        let (token, owner) = (choice.token.address, record.config.payer);
        let PendingDeposit { amount, .. } = deposit;
        let allowance = self.0.chain.allowance(&record.network, token, owner).await?;
        let Some(allowance) = allowance.filter(|allowance| allowance.permit2 < amount) else { return Ok(None) };
        let relayed = extensions.as_ref().is_some_and(|extensions| extensions.get(EIP2612_SPONSORING).is_some());
        let nonce = allowance.permit_nonce.filter(|_| relayed).ok_or(AgentError::NeedsAllowance { token })?;
        let deadline = last_second(deposit);
        let digest = TokenPermit::digest(&choice.token_domain(), owner, amount, nonce, deadline);
        let signature = self.0.config.key.sign(digest);
        Ok(Some(TokenPermit { owner, token, spender: PERMIT2, amount, nonce, deadline, signature }))
    }

    pub(super) fn voucher(&self, record: &Record, choice: &Choice, max: Amount) -> crate::protocol::SignedVoucher {
        let domain = Domain::settlement(choice.chain_id);
        Voucher { channel: record.channel, max_claimable: max }.sign(&domain, self.voucher_key())
    }

    pub(super) fn choose(&self, quote: LooseQuote, max_price: Option<Dollars>) -> Result<Quoted, AgentError> {
        let choice = judge::choose(&quote.accepts, &self.0.config.terms, max_price)?;
        Ok(Quoted { choice, resource: quote.resource, extensions: quote.extensions })
    }

    pub(super) async fn send(
        &self,
        request: &PayRequest,
        target: &Target,
        payment: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, AgentError> {
        self.0.http.send(request, &target.uri, payment, self.0.config.patience).await
    }

    /// Sends a payment, and the very same again where the answer is lost and the server knows it again by its name: then it
    /// is served and charged once.
    pub(super) async fn send_named(
        &self,
        request: &PayRequest,
        target: &Target,
        payment: HeaderValue,
        quoted: &Quoted,
    ) -> Result<Response<Incoming>, AgentError> {
        let mut waits = RESEND_AFTER.iter().filter(|_| payload::is_named(quoted.extensions.as_ref()));
        loop {
            match (self.send(request, target, Some(payment.clone())).await, waits.next()) {
                (Err(AgentError::Http(error)), Some(wait)) => {
                    tracing::debug!(%error, "the answer to a payment was lost; it is sent again");
                    tokio::time::sleep(*wait).await;
                }
                (result, _) => return result,
            }
        }
    }

    pub(super) async fn on_chain(&self, record: &Record) -> Result<Option<super::ChainChannel>, AgentError> {
        Ok(self.0.chain.channel(&record.network, record.channel).await?)
    }

    fn remembered(&self, key: &OfferKey) -> Option<Quoted> {
        let offers = self.0.offers.lock().unwrap_or_else(PoisonError::into_inner);
        offers.get(key).filter(|(since, _)| since.elapsed() < OFFER_TTL).map(|(_, quoted)| quoted.clone())
    }

    /// An offer keeps the age it had when it was read.
    fn remember(&self, key: &OfferKey, quoted: &Quoted) {
        let mut offers = self.0.offers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = offers
            .get(key)
            .is_some_and(|(since, known)| since.elapsed() < OFFER_TTL && known.choice.echo == quoted.choice.echo);
        if is_known {
            return;
        }
        if offers.len() >= MAX_OFFERS {
            offers.clear();
        }
        offers.insert(key.clone(), (Instant::now(), quoted.clone()));
    }

    fn forget(&self, key: &OfferKey) {
        self.0.offers.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl Target {
    pub(super) fn of(url: &str) -> Result<Self, AgentError> {
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| AgentError::Url(error.to_string()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(AgentError::Url("it must begin with http:// or https://".to_owned()));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(AgentError::Url("put the name and password into a header instead".to_owned()));
        }
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| AgentError::Url("it has no host".to_owned()))?.to_ascii_lowercase();
        Ok(Self { uri, host })
    }

    fn offer_key(&self, method: &Method) -> OfferKey {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let authority = self.uri.authority().map(|authority| authority.as_str().to_ascii_lowercase());
        (method.clone(), format!("{scheme}://{}{}", authority.unwrap_or_default(), self.uri.path()))
    }
}

impl From<ChoiceFault> for AgentError {
    fn from(fault: ChoiceFault) -> Self {
        match fault {
            ChoiceFault::NoOffer(faults) => Self::NoOffer(faults),
            ChoiceFault::TooExpensive(refusal) => Self::Budget(refusal),
        }
    }
}

impl From<PlanFault> for AgentError {
    fn from(fault: PlanFault) -> Self {
        match fault {
            PlanFault::Budget(refusal) => Self::Budget(refusal),
            PlanFault::DepositOpen { seconds } => Self::DepositOpen { seconds },
            PlanFault::Overflow => Self::Overflow,
        }
    }
}

/// Permit2 and permits name the last second at which they are taken.
fn last_second(deposit: PendingDeposit) -> u64 {
    deposit.valid_before.saturating_sub(1)
}

/// A deposit that nobody has signed yet.
fn new_deposit(amount: Amount, choice: &Choice, now: u64) -> Result<PendingDeposit, AgentError> {
    let mut salt = [0u8; 32];
    getrandom::fill(&mut salt).map_err(|_| AgentError::System("randomness"))?;
    let valid_before = now.saturating_add(choice.offer.max_timeout_seconds.min(judge::MAX_AUTHORIZATION_S));
    Ok(PendingDeposit { amount, salt: Hash(salt), valid_before, by_permit2: choice.by_permit2 })
}

pub(super) fn payment_made(
    record: &Record,
    charged: Amount,
    deposit: Option<PendingDeposit>,
    verdict: ReceiptVerdict,
) -> PaymentMade {
    PaymentMade {
        charged,
        deposited: verdict.landed.and(deposit).map(|deposit| deposit.amount),
        transaction: verdict.landed,
        channel: record.channel,
        network: record.network.clone(),
        decimals: record.decimals,
        remaining: record.remaining(),
        receipt: verdict.receipt,
        doubt: verdict.doubt,
    }
}

pub(super) fn answer(
    response: Response<Incoming>,
    payment: Option<PaymentMade>,
    late: Option<Box<Late>>,
    attempts: u32,
) -> Answer {
    let (head, body) = response.into_parts();
    Answer { head, body: AnswerBody::new(body, late), payment, attempts }
}

pub(super) fn header<'a>(response: &'a Response<Incoming>, name: &str) -> Option<&'a [u8]> {
    response.headers().get(name).map(HeaderValue::as_bytes)
}

/// `Retry-After` in its form of seconds; the form of a date is not worth a clock.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<u64> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(seconds.min(MAX_RETRY_AFTER_S))
}

/// Days since 1970, UTC.
pub(super) fn today() -> Result<u64, AgentError> {
    now_s().map(|now| now / SECONDS_A_DAY)
}

fn now_s() -> Result<u64, AgentError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| AgentError::System("clock after 1970"))?;
    Ok(since.as_secs())
}
