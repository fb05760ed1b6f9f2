//! How redemption is doing, for operators: what waits, since when, and what keeps it waiting.
//!
//! **Owns** the facts the other parts of this room note down for people, and the judgement of whether claims are stuck.
//! **Promises** that looking costs no request to the chain, and that a payer alone cannot make claims count as stuck: a
//! row that is in quarantine is told, and does not make the proxy unready. **Does not** act on any of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Office;
use super::flights::Flights;
use crate::chain::{Chain, NodeHealth};
use crate::clock;
use crate::gate::Accounts;
use crate::protocol::{Amount, ChannelId, Dollars, Hash};

/// How redemption is doing. Sums are dollars, in units of the preferred token, rounded down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vitals {
    /// Charged and not claimed, on all channels: what would be lost with the keys.
    pub unclaimed: Amount,
    /// Channels on which something is unclaimed.
    pub unclaimed_channels: usize,
    /// How long the oldest of it has waited, seconds.
    pub oldest_unclaimed_s: Option<u64>,
    /// Charged and no longer covered by deposits.
    pub shortfall: Amount,
    /// The claim that was mined last.
    pub last_claim: Option<LastClaim>,
    /// When the last round that did all it wanted to ended, Unix seconds.
    pub last_complete_round: Option<u64>,
    /// Since when no round could do all it wanted to, Unix seconds; nothing where the last one could.
    pub failing_since: Option<u64>,
    /// What went wrong with the last round that failed since then.
    pub problem: Option<String>,
    /// Channels whose row the contract refuses, and why.
    pub quarantined: Vec<Quarantined>,
    /// Transactions that wait for a block or for confirmations.
    pub in_flight: Vec<InFlight>,
    /// What the account that pays for transactions holds, wei, when it was last looked at.
    #[serde(with = "super::wei")]
    pub gas_balance_wei: Option<u128>,
    /// For how long that lasts at the pace of the last day or of this run, seconds; nothing where nothing was spent.
    pub gas_lasts_s: Option<u64>,
    /// How long the chain has not answered, seconds.
    pub chain_silence_s: u64,
    /// How far the newest block is behind the clock, seconds.
    pub chain_lag_s: Option<u64>,
    /// The nodes behind it, in the order of preference, when the follower last asked.
    pub nodes: Vec<NodeHealth>,
}

/// A claim that was mined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastClaim {
    /// When that was seen, Unix seconds.
    pub at: u64,
    /// The transaction, as people find it on chain.
    pub transaction: Hash,
    /// What it claimed, in dollars.
    pub claimed: Amount,
}

/// A channel that is left out of batches for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Which.
    pub channel: ChannelId,
    /// Why.
    pub reason: String,
    /// Since when, Unix seconds.
    pub since: u64,
    /// When it is tried again, Unix seconds.
    pub until: u64,
    /// What is unclaimed on it, in dollars.
    pub unclaimed: Amount,
}

/// A transaction on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// The version that was sent last.
    pub transaction: Hash,
    /// What for: claim, settle, deposit or refund.
    pub purpose: String,
    /// Its nonce.
    pub nonce: u64,
    /// When it was signed first, Unix seconds.
    pub since: u64,
    /// How often it was replaced by one that pays more.
    pub replaced: u32,
    /// The block that has it, while it waits for confirmations.
    pub block: Option<u64>,
}

impl Vitals {
    /// Whether claims have failed for longer than they may.
    pub fn is_stuck(&self, now: u64, stuck_after: Duration) -> bool {
        self.failing_since.is_some_and(|since| now.saturating_sub(since) > stuck_after.as_secs())
    }
}

/// How often the account that pays for transactions is looked at, beside after every round.
const GAS_LOOK_INTERVAL: Duration = Duration::from_secs(300);

/// For how long what was spent counts for the pace.
const PACE_WINDOW: Duration = Duration::from_secs(86_400);

/// How many fees are remembered apart; of more, the oldest are added up.
const MAX_FEES: usize = 1_024;

/// The shortest time a pace is reckoned over, so that the first transaction after a start does not look like a drain.
const MIN_PACE: Duration = Duration::from_secs(3_600);

/// Where the parts of this room note what operators should know.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    vitals: Vitals,
    pace: Pace,
}

/// What was spent on gas, and when.
#[derive(Debug)]
struct Pace {
    since: Instant,
    fees: VecDeque<(Instant, u128)>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: Instant::now(), fees: VecDeque::new() }
    }
}

impl Pace {
    fn spent(&mut self, wei: u128, now: Instant) {
        while self.fees.front().is_some_and(|(at, _)| now.duration_since(*at) > PACE_WINDOW) {
            self.fees.pop_front();
        }
        if self.fees.len() >= MAX_FEES
            && let Some((_, oldest)) = self.fees.pop_front()
            && let Some((_, next)) = self.fees.front_mut()
        {
            *next = next.saturating_add(oldest);
        }
        self.fees.push_back((now, wei));
    }

    /// For how long a balance lasts, seconds; rounded down.
    fn lasts(&self, balance_wei: u128, now: Instant) -> Option<u64> {
        let recent = self.fees.iter().filter(|(at, _)| now.duration_since(*at) <= PACE_WINDOW);
        let spent = recent.fold(0_u128, |sum, (_, wei)| sum.saturating_add(*wei));
        let over = now.duration_since(self.since).clamp(MIN_PACE, PACE_WINDOW);
        let lasts = balance_wei.saturating_mul(u128::from(over.as_secs())).checked_div(spent)?;
        Some(u64::try_from(lasts).unwrap_or(u64::MAX))
    }
}

impl Notes {
    /// Notes something down.
    pub(super) fn note<R>(&self, write: impl FnOnce(&mut Vitals) -> R) -> R {
        write(&mut self.noted().vitals)
    }

    /// The channels that are left out of batches now.
    pub(super) fn in_quarantine(&self, now: u64) -> Vec<Quarantined> {
        self.noted().vitals.quarantined.iter().filter(|row| row.until > now).cloned().collect()
    }

    /// Notes what a transaction cost, wei.
    pub(super) fn spent(&self, wei: u128) {
        self.noted().pace.spent(wei, Instant::now());
    }

    /// Since when claims have failed: those of a round, or those that wait for their transaction.
    pub(super) fn failing_since(&self, flights: &Flights) -> Option<u64> {
        earlier(self.noted().vitals.failing_since, flights.trouble().map(|(since, _)| since))
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was noted, with what the books say and what is in flight at this moment.
    pub(super) fn with_books(
        &self,
        accounts: &Accounts,
        flights: &Flights,
        silence: Duration,
        dollars: &Dollars,
    ) -> Vitals {
        let mut vitals = {
            let noted = self.noted();
            let gas_lasts_s = noted.vitals.gas_balance_wei.and_then(|wei| noted.pace.lasts(wei, Instant::now()));
            Vitals { gas_lasts_s, ..noted.vitals.clone() }
        };
        vitals.in_flight = flights.list();
        // A round that waits for its transaction has not failed yet, and claims nothing either.
        if let Some((since, trouble)) = flights.trouble() {
            vitals.failing_since = earlier(vitals.failing_since, Some(since));
            vitals.problem.get_or_insert(trouble);
        }
        let now = clock::now_s();
        let mut quarantined: BTreeMap<_, _> = vitals.quarantined.iter_mut().map(|row| (row.channel, row)).collect();
        let add = |sum: Amount, more: Amount| sum.saturating_add(more);
        for books in accounts.claimable() {
            let token = books.config.token;
            let unclaimed = dollars.of(token, books.unclaimed);
            vitals.unclaimed = add(vitals.unclaimed, unclaimed);
            vitals.shortfall = add(vitals.shortfall, dollars.of(token, books.shortfall));
            vitals.unclaimed_channels = vitals.unclaimed_channels.saturating_add(1);
            let waited = books.unclaimed_since.map(|since| now.saturating_sub(since));
            vitals.oldest_unclaimed_s = vitals.oldest_unclaimed_s.max(waited);
            if let Some(row) = quarantined.get_mut(&books.id) {
                row.unclaimed = unclaimed;
            }
        }
        vitals.chain_silence_s = silence.as_secs();
        vitals
    }
}

fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

impl<C: Chain> Office<C> {
    /// Notes what the account that pays for transactions holds. Where the node cannot say, the last answer stands.
    pub(super) async fn look_at_gas(&self) {
        let Some(sender) = self.chain.sender() else { return };
        match self.chain.gas_balance(sender).await {
            Ok(wei) => self.notes.note(|vitals| vitals.gas_balance_wei = Some(wei)),
            Err(error) => tracing::debug!(%error, "the gas account cannot be looked at"),
        }
    }
}

/// Looks at the gas account now and then, until told to stop.
pub(super) async fn watch_gas<C: Chain>(office: Office<C>) {
    loop {
        tokio::select! {
            () = office.stop.cancelled() => return,
            () = office.look_at_gas() => {}
        }
        tokio::select! {
            () = office.stop.cancelled() => return,
            () = tokio::time::sleep(GAS_LOOK_INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_stuck_once_they_have_failed_for_longer_than_they_may() {
        let failing = |since| Vitals { failing_since: since, ..Vitals::default() };
        let hour = Duration::from_secs(3_600);
        assert!(!failing(None).is_stuck(10_000, hour));
        assert!(!failing(Some(1_000)).is_stuck(4_600, hour));
        assert!(failing(Some(1_000)).is_stuck(4_601, hour));
        assert!(!failing(Some(9_000)).is_stuck(1_000, hour), "a clock that went back");
    }

    #[test]
    fn gas_lasts_as_long_as_it_would_at_the_pace_of_the_last_day() {
        let since = Instant::now();
        let mut pace = Pace { since, fees: VecDeque::new() };
        let at = |hours: u64| since + Duration::from_secs(3_600 * hours);
        assert_eq!(pace.lasts(1_000, at(2)), None, "nothing was spent");
        pace.spent(10, at(0));
        assert_eq!(pace.lasts(1_000, at(0)), Some(360_000), "not as if ten were spent every second");
        assert_eq!(pace.lasts(1_000, at(2)), Some(720_000));
        pace.spent(10, at(12));
        assert_eq!(pace.lasts(1_000, at(24)), Some(50 * 86_400));
        assert_eq!(pace.lasts(1_000, at(30)), Some(100 * 86_400), "the first is no longer counted");
        for _ in 0..2 * MAX_FEES {
            pace.spent(1, at(30));
        }
        assert!(pace.fees.len() <= MAX_FEES);
        let spent: u128 = pace.fees.iter().map(|(_, wei)| wei).sum();
        assert_eq!(spent, 10 + 2 * u128::try_from(MAX_FEES).unwrap());
    }
}
