//! How redemption is doing, for operators: what waits, since when, and what keeps it waiting.
//!
//! **Owns** the facts the other parts of this room note down for people, and the judgement of whether claims are stuck.
//! **Promises** that looking costs no request to the chain, and that a payer alone cannot make claims count as stuck: a
//! row that is in quarantine is told, and does not make the proxy unready. **Does not** act on any of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::gate::Accounts;
use crate::protocol::{Amount, ChannelId, Hash};

/// How redemption is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vitals {
    /// Charged and not claimed, on all channels, atomic units: what would be lost with the keys.
    pub unclaimed: Amount,
    /// Channels on which something is unclaimed.
    pub unclaimed_channels: usize,
    /// How long the oldest of it has waited, seconds.
    pub oldest_unclaimed_s: Option<u64>,
    /// Charged and no longer covered by deposits, atomic units.
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
}

/// A claim that was mined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastClaim {
    /// When that was seen, Unix seconds.
    pub at: u64,
    /// The transaction.
    pub transaction: Hash,
    /// What it claimed, atomic units.
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
    /// What is unclaimed on it, atomic units.
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

/// Where the parts of this room note what operators should know.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes(Arc<Mutex<Vitals>>);

impl Notes {
    /// Notes something down.
    pub(super) fn note<R>(&self, write: impl FnOnce(&mut Vitals) -> R) -> R {
        write(&mut self.vitals())
    }

    /// The channels that are left out of batches now.
    pub(super) fn in_quarantine(&self, now: u64) -> Vec<Quarantined> {
        self.vitals().quarantined.iter().filter(|row| row.until > now).cloned().collect()
    }

    fn vitals(&self) -> MutexGuard<'_, Vitals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was noted, with what the books say at this moment.
    pub(super) fn with_books(&self, accounts: &Accounts, silence: Duration) -> Vitals {
        let mut vitals = self.vitals().clone();
        let now = clock::now_s();
        let add = |sum: Amount, more: Amount| sum.checked_add(more).unwrap_or(Amount::MAX);
        for books in accounts.claimable() {
            vitals.unclaimed = add(vitals.unclaimed, books.unclaimed);
            vitals.shortfall = add(vitals.shortfall, books.shortfall);
            vitals.unclaimed_channels = vitals.unclaimed_channels.saturating_add(1);
            let waited = books.unclaimed_since.map(|since| now.saturating_sub(since));
            vitals.oldest_unclaimed_s = vitals.oldest_unclaimed_s.max(waited);
            if let Some(row) = vitals.quarantined.iter_mut().find(|row| row.channel == books.id) {
                row.unclaimed = books.unclaimed;
            }
        }
        vitals.chain_silence_s = silence.as_secs();
        vitals
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
}
