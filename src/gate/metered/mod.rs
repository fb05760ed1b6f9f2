//! Requests that cost what they use, which is known at their end.
//!
//! **Owns** what is measured of them, and the rule by which one that does not come to its end is charged
//! ([`manual::metering`](crate::manual::metering) has it as a table). **Promises** that whatever drops such a request, its
//! hold is resolved once; that no byte of a stream waits for anything; and that the end of one is given out only after its
//! charge is durable. **Does not** know prices; [`meter`](super::meter) makes a charge of what was measured.

mod course;
mod stream;
mod tunnel;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::header::{ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TE, TRAILER};
use http::{HeaderMap, HeaderValue, Method, Request};

use super::accounts::{Hold, Posted};
use super::meter::{SETTLEMENT_OVERRIDES, charge_of, is_reported, said};
use super::policy::{Price, Route};
use super::record::{Draft, Outcome};
use crate::ledger::Reject;
use crate::listed;
use crate::pricing::usage::MAX_COUNT;
use crate::pricing::{End, Measured, Tariff, Tokens, Unit, UsageReader};
use crate::protocol::Amount;
use crate::protocol::x402::ChannelState;

pub(super) use course::{Course, takes_trailers};
pub use stream::{MAX_COLLECTED_BYTES, MAX_READ_ON, MAX_READING_ON};
pub(super) use stream::{MeteredBody, Receipts};
pub use tunnel::Metering;

/// Counts the bytes of a request's body that are passed on, as an extension of a metered request. Whoever passes them on
/// takes it out, counts, and says if the client breaks the body; where nobody does, they are taken to be as many as
/// `Content-Length` says.
#[derive(Debug, Clone)]
pub struct Passed(Arc<Passing>);

#[derive(Debug)]
struct Passing {
    bytes: AtomicU64,
    broken: AtomicBool,
}

/// Nobody counts yet.
const NOT_COUNTED: u64 = u64::MAX;

impl Passed {
    fn new() -> Self {
        Self(Arc::new(Passing { bytes: AtomicU64::new(NOT_COUNTED), broken: AtomicBool::new(false) }))
    }

    /// From now on somebody counts.
    pub fn begin(&self) {
        let _ = self.0.bytes.compare_exchange(NOT_COUNTED, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// So many more were passed on.
    pub fn add(&self, bytes: usize) {
        self.begin();
        self.0.bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The client does not send the rest, or not as it said. What becomes of the answer afterwards is the client's doing.
    pub fn broke_off(&self) {
        self.0.broken.store(true, Ordering::Release);
    }

    fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::Acquire)
    }

    fn count(&self) -> Option<u64> {
        Some(self.0.bytes.load(Ordering::Relaxed)).filter(|count| *count != NOT_COUNTED)
    }
}

/// On a request whose client takes trailers, although it speaks HTTP/1.1. One of HTTP/2 always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakesTrailers;

/// How a request that was let through is going to be charged.
#[derive(Debug)]
pub(super) enum Due {
    /// When its head comes. With its price, and what is noted of it.
    Fixed(Hold, Price, Option<Draft>),
    /// At its end.
    Metered(Box<Bill>),
}

impl Due {
    /// Of a request that is about to be sent. One that is metered is told from here on what is needed of it.
    pub(super) fn of<B>(
        hold: Hold,
        route: &Arc<Route>,
        price: Price,
        decimals: u8,
        id: Option<&str>,
        request: &mut Request<B>,
        draft: Option<Draft>,
    ) -> Self {
        match price {
            Price::Free | Price::Fixed(_) => Self::Fixed(hold, price, draft),
            Price::Metered(tariff) => {
                let mut bill = Bill::open(hold, route, tariff, decimals, id, request);
                bill.draft = draft;
                Self::Metered(Box::new(bill))
            }
        }
    }

    /// It failed, with this status if there was an answer, and costs nothing. Returns the channel's state.
    pub(super) fn void(self, status: Option<u16>) -> Option<ChannelState> {
        match self {
            Self::Fixed(hold, _, mut draft) => {
                failed(&mut draft, status);
                hold.void()
            }
            Self::Metered(mut bill) => {
                bill.status = status;
                bill.void()
            }
        }
    }
}

/// Notes that a request failed and cost nothing.
fn failed(draft: &mut Option<Draft>, status: Option<u16>) {
    if let Some(draft) = draft {
        let record = draft.record();
        (record.outcome, record.charge, record.status) = (Outcome::Void, None, status.or(record.status));
    }
}

/// One metered request: its hold, and what was measured of it. One that is dropped was left by its payer, unless we are
/// stopping or panic.
#[derive(Debug)]
pub(super) struct Bill {
    /// Nothing once it is resolved.
    hold: Option<Hold>,
    most: Amount,
    route: Arc<Route>,
    tariff: Arc<Tariff>,
    /// Of the token, for what the upstream says in dollars.
    decimals: u8,
    /// The request's id, for the log.
    id: Option<Box<str>>,
    begun: Instant,
    passed: Passed,
    declared: u64,
    /// Once the head came.
    status: Option<u16>,
    response_bytes: u64,
    messages: u64,
    /// Nothing where the tariff needs nothing from inside the answer, or it cannot be read.
    reader: Option<UsageReader>,
    /// Whether it is compressed, so that what is inside cannot be counted.
    sealed: bool,
    /// Whether it is one that has no body, in which no model says anything.
    is_bodiless: bool,
    reported: Vec<(Arc<str>, u64)>,
    /// What the upstream said that it costs.
    said: Option<Amount>,
    /// Whether more may be said in trailers.
    trailers_come: bool,
    /// What there was when the payer left, if it has.
    left: Option<Left>,
    /// What is noted of it.
    draft: Option<Draft>,
}

/// What a payer that leaves has had: what is read after it is not its.
#[derive(Debug, Clone, Copy)]
struct Left {
    response_bytes: u64,
    events: u64,
    elapsed_ms: u64,
}

impl Bill {
    fn open<B>(
        hold: Hold,
        route: &Arc<Route>,
        tariff: Arc<Tariff>,
        decimals: u8,
        id: Option<&str>,
        request: &mut Request<B>,
    ) -> Self {
        let passed = Passed::new();
        request.extensions_mut().insert(passed.clone());
        let is_bodiless = request.method() == Method::HEAD;
        let headers = request.headers_mut();
        if tariff.counts(&Unit::Events) || tariff.counts_tokens() {
            // What is compressed cannot be read as it passes.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        // Some report in trailers, and some of those only to who says that it takes them (RFC 9110, 10.1.4).
        // Who asks for another protocol has said something else there.
        if !headers.contains_key(CONNECTION) {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let declared = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        Self {
            most: hold.most(),
            hold: Some(hold),
            route: Arc::clone(route),
            tariff,
            decimals,
            id: id.map(Into::into),
            begun: Instant::now(),
            passed,
            declared,
            status: None,
            response_bytes: 0,
            messages: 0,
            reader: None,
            sealed: false,
            is_bodiless,
            reported: Vec::new(),
            said: None,
            trailers_come: false,
            left: None,
            draft: None,
        }
    }

    /// The head came.
    fn head(&mut self, status: u16, headers: &HeaderMap) {
        self.status = Some(status);
        if let Some(draft) = &mut self.draft {
            draft.ended(Outcome::Paid, status);
        }
        self.hear(headers);
        self.trailers_come = listed::has(headers, TRAILER, SETTLEMENT_OVERRIDES);
        self.is_bodiless |= matches!(status, 204 | 304);
        let coded = |coding: &HeaderValue| !coding.as_bytes().eq_ignore_ascii_case(b"identity");
        self.sealed = headers.get_all(CONTENT_ENCODING).iter().any(coded);
        let (tokens, events) = (self.tariff.counts_tokens(), self.tariff.counts(&Unit::Events));
        self.reader = match (self.sealed, tokens, is_event_stream(headers)) {
            (false, true, true) => Some(UsageReader::of_events()),
            (false, true, false) => Some(UsageReader::of_json()),
            (false, false, true) if events => Some(UsageReader::counting_events()),
            _ => None,
        };
    }

    /// What reports there are in headers or trailers; a later one counts.
    fn hear(&mut self, headers: &HeaderMap) {
        self.said = said(headers, self.most, self.decimals, self.id.as_deref()).or(self.said);
        for rate in &self.tariff.rates {
            let Unit::Reported(name) = &rate.unit else { continue };
            let Some(value) = headers.get_all(&**name).iter().next_back() else { continue };
            self.reported.retain(|(said, _)| said != name);
            // One that cannot be read is none, and takes back what was said before.
            if let Some(count) = whole_number(value.as_bytes()) {
                self.reported.push((Arc::clone(name), count));
            }
        }
    }

    fn data(&mut self, bytes: &[u8]) {
        self.response_bytes = self.response_bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if let Some(reader) = &mut self.reader {
            reader.read(bytes);
        }
    }

    /// The payer has left, and somebody reads on for the report.
    fn leave(&mut self) {
        let Measured { response_bytes, events, elapsed_ms, .. } = self.measured(End::PayerLeft);
        self.left = Some(Left { response_bytes, events, elapsed_ms });
    }

    /// Whether what is still to come may say what it costs, when its payer has left.
    fn may_hear_more(&self) -> bool {
        let ours = std::thread::panicking() || self.hold.as_ref().is_none_or(Hold::is_abandoned);
        let measured = self.measured(End::PayerLeft);
        let may_come = |unit: &Unit| match unit {
            Unit::Reported(_) => !is_reported(unit, &measured),
            // Another report may follow the one that came.
            _ => unit.is_of_tokens() && self.reader.is_some(),
        };
        !ours && (self.trailers_come || self.tariff.rates.iter().any(|rate| may_come(&rate.unit)))
    }

    fn measured(&self, end: End) -> Measured {
        // A request that its client breaks is taken back from the upstream, whose answer then breaks off too.
        let end = if end == End::UpstreamFailed && self.passed.is_broken() { End::PayerLeft } else { end };
        let now = self.begun.elapsed().as_millis();
        let there = Left {
            response_bytes: self.response_bytes,
            events: self.messages.saturating_add(self.reader.as_ref().map_or(0, UsageReader::events)),
            elapsed_ms: u64::try_from(now).unwrap_or(u64::MAX),
        };
        let Left { response_bytes, events, elapsed_ms } = self.left.unwrap_or(there);
        let read = self.reader.as_ref().and_then(|reader| match end {
            End::Complete | End::PayerLeft => reader.report(),
            // What is not reported is not charged then, but what is known is.
            End::UpstreamFailed | End::Stopped => reader.so_far(),
        });
        let tokens = read.or_else(|| self.is_bodiless.then(Tokens::default));
        Measured {
            status: self.status.unwrap_or(NO_HEAD),
            request_bytes: self.passed.count().unwrap_or(self.declared),
            response_bytes,
            elapsed_ms,
            events,
            tokens,
            reported: self.reported.clone(),
            end,
        }
    }

    fn charge_for(&self, measured: &Measured) -> Amount {
        let uncounted = self.sealed && self.tariff.counts(&Unit::Events);
        if self.said.is_none() && uncounted && matches!(measured.end, End::Complete | End::PayerLeft) {
            return self.most;
        }
        charge_of(&self.route, &Price::Metered(Arc::clone(&self.tariff)), self.most, measured, self.said)
    }

    /// Charges what it costs. Nothing, if it is resolved already.
    fn post(&mut self, end: End) -> Option<Result<Posted, Reject>> {
        let measured = self.measured(end);
        self.post_measured(&measured)
    }

    fn post_measured(&mut self, measured: &Measured) -> Option<Result<Posted, Reject>> {
        let hold = self.hold.take()?;
        let (charge, channel) = (self.charge_for(measured), hold.channel());
        let posted = hold.post(charge);
        if let Err(reject) = &posted {
            let request = self.id.as_deref();
            tracing::error!(request, %channel, %reject, "a served request could not be charged");
        }
        if let Some(draft) = &mut self.draft {
            let record = draft.record();
            record.charge = posted.as_ref().ok().map(Posted::charge);
            record.counts = Some(measured.into());
        }
        Some(posted)
    }

    /// The same where nobody waits for it.
    fn close(&mut self, end: End) {
        let measured = self.measured(end);
        self.close_measured(&measured);
    }

    /// The same where the payer left, and what is read of tokens so far may not be the last word.
    fn close_unreported(&mut self) {
        let measured = Measured { tokens: None, ..self.measured(End::PayerLeft) };
        self.close_measured(&measured);
    }

    fn close_measured(&mut self, measured: &Measured) {
        if let Some(Ok(posted)) = self.post_measured(measured) {
            let (request, end, charge) = (self.id.as_deref(), measured.end, posted.charge());
            tracing::debug!(request, ?end, %charge, "an answer did not come to its end");
        }
    }

    /// It costs nothing. Returns the channel's state.
    fn void(&mut self) -> Option<ChannelState> {
        failed(&mut self.draft, self.status);
        self.hold.take().and_then(Hold::void)
    }

    /// Whether its payer is about to withdraw what is to pay for it.
    fn is_being_withdrawn(&self) -> bool {
        self.hold.as_ref().is_some_and(Hold::is_being_withdrawn)
    }

    /// The head leaves, and the rest may take long. Returns the channel's state.
    fn goes_on(&mut self) -> Option<ChannelState> {
        let hold = self.hold.as_mut()?;
        hold.goes_on();
        hold.state()
    }
}

/// How often it is looked whether the payer of something that goes on withdraws what is to pay for it.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What stands for the status of an answer whose head has not come: a payer that leaves before it pays as for one that did.
const NO_HEAD: u16 = 200;

impl Drop for Bill {
    fn drop(&mut self) {
        let Some(hold) = &self.hold else { return };
        let stopped = hold.is_abandoned() || self.left.is_some();
        if std::thread::panicking() || (stopped && self.status.is_none()) {
            self.void();
        } else {
            self.close(if stopped { End::Stopped } else { End::PayerLeft });
        }
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let essence = headers.get(CONTENT_TYPE).and_then(|of| of.to_str().ok()).and_then(|of| of.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// A count in a header: digits and nothing else, capped as those of models are.
fn whole_number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    let add = |count: u64, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte.saturating_sub(b'0')))?;
        Some(count.saturating_mul(10).saturating_add(digit).min(MAX_COUNT))
    };
    if text.is_empty() { None } else { text.iter().try_fold(0, add) }
}

#[cfg(test)]
mod tests;
