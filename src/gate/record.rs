//! What became of each request, for whoever wants it written down.
//!
//! **Owns** the record of a request and the bounded queue to its reader. **Promises** that a request never waits for its
//! record: where the reader is behind, records are dropped and counted; that a request whose client left has one too; and
//! that it holds no payment header, no query value and no header, unless a route matches on them. **Does not** write
//! files.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use http::Request;
use serde::{Deserialize, Serialize};

use super::policy::{Asked, Policy, Verdict};
use super::tender::Tender;
use crate::clock;
use crate::pricing::{End, Measured, Tokens};
use crate::protocol::{Address, Amount};

/// How many records may wait for the reader; some seconds' worth on a busy day.
pub const MAX_WAITING_RECORDS: usize = 16_384;

/// A path is recorded up to so many bytes; longer ones are no routes' but somebody's game.
const MAX_PATH_BYTES: usize = 2_048;

/// What became of one request. Fields that say nothing are left out in JSON, and unknown ones are passed over, so that
/// versions can read each other's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRecord {
    /// When its head was there, Unix milliseconds.
    pub time_ms: u64,
    /// Its method.
    pub method: String,
    /// The host it was for, if it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its path, without the query.
    pub path: String,
    /// What else its route matched on, by kind and name: `query model` and
    /// `header x-tier` with their texts, `body ["model"]` (the keys on the way to it) with its JSON.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub matched: BTreeMap<String, String>,
    /// The route that decided, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The price list it was judged by; see [`Policy::generation`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The status of the answer; nothing where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it was refused: a stable code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Who paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<Address>,
    /// The chain of the token that it was paid in, or would be, as `eip155:` and the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// That token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asset: Option<Address>,
    /// The most it could cost, atomic units of the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote: Option<Amount>,
    /// What it cost, atomic units of the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charge: Option<Amount>,
    /// What was counted of it, where a price depends on that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// From its head to the end of what is recorded here, milliseconds.
    pub elapsed_ms: u64,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Served, at no price.
    Free,
    /// Served and charged.
    Paid,
    /// Paid for, not served and not charged: the answer was a failure.
    Void,
    /// It brought no payment and was told the price.
    Unpaid,
    /// Its payment, or the request itself, was refused; `code` says why.
    Refused,
    /// Nothing that is sold: an unknown path, another method, `OPTIONS`.
    NotSold,
    /// A channel's rest was given back.
    Refunded,
    /// Its route's prices are being tried out: it was served as if it were free.
    Shadow,
    /// There was no room for it.
    Overloaded,
    /// Its client left before there was an answer; what was charged for it is in the books.
    #[default]
    Left,
}

/// What was counted of a request and its answer, as [`Measured`] has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Bytes of its body.
    #[serde(default)]
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    #[serde(default)]
    pub response_bytes: u64,
    /// From the upstream's being asked to the end, milliseconds.
    #[serde(default)]
    pub elapsed_ms: u64,
    /// Server-sent events, or messages.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub events: u64,
    /// Tokens a model read, read from its cache, wrote to its cache, and wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<[u64; 4]>,
    /// What the upstream reported, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reported: BTreeMap<String, u64>,
    /// Whether the answer was whole.
    #[serde(default)]
    pub complete: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands references in")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl From<&Measured> for Counts {
    fn from(measured: &Measured) -> Self {
        let tokens = measured
            .tokens
            .map(|Tokens { input, cached_input, cache_write, output }| [input, cached_input, cache_write, output]);
        Self {
            request_bytes: measured.request_bytes,
            response_bytes: measured.response_bytes,
            elapsed_ms: measured.elapsed_ms,
            events: measured.events,
            tokens,
            reported: measured.reported.iter().map(|(name, count)| (name.to_string(), *count)).collect(),
            complete: measured.end == End::Complete,
        }
    }
}

impl Counts {
    /// The same as tariffs read it. An answer that was not whole counts as one its payer left: nothing more is known.
    pub fn measured(&self, status: u16) -> Measured {
        let tokens = self.tokens.map(|[input, cached_input, cache_write, output]| Tokens {
            input,
            cached_input,
            cache_write,
            output,
        });
        Measured {
            status,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            elapsed_ms: self.elapsed_ms,
            events: self.events,
            tokens,
            reported: self.reported.iter().map(|(name, count)| (Arc::from(name.as_str()), *count)).collect(),
            end: if self.complete { End::Complete } else { End::PayerLeft },
        }
    }
}

/// Where records go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: SyncSender<AccessRecord>,
    dropped: Arc<AtomicU64>,
}

impl Recorder {
    /// A recorder and the end at which its records come out.
    pub fn new() -> (Self, Receiver<AccessRecord>) {
        let (queue, records) = sync_channel(MAX_WAITING_RECORDS);
        (Self { queue, dropped: Arc::default() }, records)
    }

    /// Counts records that their reader could not keep.
    pub fn lost(&self, records: u64) {
        self.dropped.fetch_add(records, Ordering::Relaxed);
    }

    /// How many records were dropped because the reader was behind, gone, or could not keep them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Hands a record over, or drops it.
    pub fn record(&self, record: AccessRecord) {
        if self.queue.try_send(record).is_err() {
            self.lost(1);
        }
    }

    /// Begins the record of a request. What is not said of it until it is dropped, its record does not have.
    pub(crate) fn begin<B>(&self, request: &Request<B>) -> Draft {
        let Asked { host, path, .. } = Asked::of(request);
        let path = path.get(..MAX_PATH_BYTES).unwrap_or(path);
        let record = AccessRecord {
            time_ms: clock::now_ms(),
            method: request.method().to_string(),
            host: host.map(str::to_owned),
            path: path.to_owned(),
            ..AccessRecord::default()
        };
        Draft(Box::new((record, self.clone(), Instant::now())))
    }
}

/// A record that is not complete yet. It is handed over when this is dropped, whoever drops it: a request whose client
/// leaves is recorded as far as it came.
#[derive(Debug)]
pub(crate) struct Draft(Box<(AccessRecord, Recorder, Instant)>);

impl Draft {
    /// What is said so far.
    pub(crate) fn record(&mut self) -> &mut AccessRecord {
        &mut self.0.0
    }

    /// What the price list says of the request.
    pub(crate) fn judged(&mut self, policy: &Policy, verdict: &Verdict<'_>) {
        let record = self.record();
        record.route = verdict.route().map(|route| route.name.to_string());
        record.generation = Some(policy.generation());
        match verdict {
            Verdict::Paid(listing) => self.is_in(&listing.preferred.tender, listing.preferred.price),
            _ => self.record().quote = None,
        }
    }

    /// In which token it is paid, and what that may cost at most.
    pub(crate) fn is_in(&mut self, tender: &Tender, quote: Amount) {
        let record = self.record();
        (record.network, record.asset) = (Some(tender.network.clone()), Some(tender.terms.token.address));
        record.quote = Some(quote);
    }

    /// What became of it, and what it was answered with.
    pub(crate) fn ended(&mut self, outcome: Outcome, status: u16) {
        let record = self.record();
        (record.outcome, record.status) = (outcome, Some(status));
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let (record, recorder, begun) = &mut *self.0;
        record.elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        recorder.record(std::mem::take(record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request<()> {
        Request::get("http://api.example/v1/x?secret=1").header("payment-signature", "cGF5").body(()).unwrap()
    }

    #[test]
    fn a_request_is_recorded_when_it_is_over_whoever_ends_it() {
        let (recorder, records) = Recorder::new();
        let mut draft = recorder.begin(&request());
        assert!(records.try_recv().is_err());
        draft.ended(Outcome::Paid, 200);
        drop(draft);
        drop(recorder.begin(&request()));
        let [paid, left] = [records.recv().unwrap(), records.recv().unwrap()];
        assert_eq!((paid.outcome, paid.status, paid.path.as_str()), (Outcome::Paid, Some(200), "/v1/x"));
        assert_eq!((left.outcome, left.status, left.host.as_deref()), (Outcome::Left, None, Some("api.example")));
        let text = serde_json::to_string(&paid).unwrap();
        assert!(!text.contains("secret") && !text.contains("cGF5"), "{text}");
    }

    #[test]
    fn a_reader_that_is_behind_or_gone_costs_records_and_no_time() {
        let (recorder, records) = Recorder::new();
        for _ in 0..MAX_WAITING_RECORDS + 7 {
            drop(recorder.begin(&request()));
        }
        assert_eq!(recorder.dropped(), 7);
        assert_eq!(records.try_iter().count(), MAX_WAITING_RECORDS);
        drop(records);
        drop(recorder.begin(&request()));
        assert_eq!(recorder.dropped(), 8);
    }

    #[test]
    fn counts_are_what_was_measured() {
        let tokens = Some(Tokens { input: 1, cached_input: 2, cache_write: 3, output: 4 });
        let reported = vec![(Arc::from("x-units"), 5)];
        let measured = Measured {
            status: 200,
            request_bytes: 6,
            response_bytes: 7,
            elapsed_ms: 8,
            events: 9,
            tokens,
            reported,
            end: End::Complete,
        };
        let text = serde_json::to_string(&Counts::from(&measured)).unwrap();
        let counts: Counts = serde_json::from_str(&text).unwrap();
        assert_eq!(counts.measured(200), measured);
        let broken = Measured { end: End::UpstreamFailed, ..measured };
        assert_eq!(Counts::from(&broken).measured(200).end, End::PayerLeft);
    }
}
