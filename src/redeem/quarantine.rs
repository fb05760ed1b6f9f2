//! Quarantine: channels whose row the contract refuses.
//!
//! **Owns** which channels are left out of batches, why, and until when. **Promises** that a channel comes out as soon as
//! something about it changed for the better: a new voucher, a deposit, a claim. **Does not** read the chain, and is
//! forgotten with the process: the next one finds out by one simulation.

use std::collections::HashMap;

use super::vitals::Quarantined;
use crate::gate::Statement;
use crate::protocol::{Amount, ChannelId};

/// How long a channel stays out the first time, seconds; twice as long each time after that, up to
/// [`MAX_BACKOFF_S`].
const FIRST_BACKOFF_S: u64 = 600;
/// See [`FIRST_BACKOFF_S`].
const MAX_BACKOFF_S: u64 = 86_400;

/// How long one stays out whose payer is withdrawing, seconds, where it was refused for nothing: a node that was wrong
/// about it must not be what lets the money go.
const WITHDRAWING_BACKOFF_S: u64 = 60;

/// How many are remembered. A payer that wants more of them must deposit to each, and one simulation finds each again.
const MAX_REMEMBERED: usize = 10_000;

/// The channels in quarantine.
#[derive(Debug, Default)]
pub(super) struct Quarantine(HashMap<ChannelId, Kept>);

#[derive(Debug)]
struct Kept {
    reason: String,
    since: u64,
    until: u64,
    backoff_s: u64,
    /// What it was like when it was refused.
    before: Standing,
}

/// What must get better before a channel is tried early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    balance: Amount,
    claimed: Amount,
    max_claimable: Amount,
}

impl Standing {
    fn of(books: &Statement) -> Self {
        let max_claimable = books.row.as_ref().map_or(Amount::ZERO, |row| row.max_claimable);
        Self { balance: books.view.balance, claimed: books.view.total_claimed, max_claimable }
    }

    fn is_better_than(&self, before: &Self) -> bool {
        self.balance > before.balance || self.claimed > before.claimed || self.max_claimable > before.max_claimable
    }
}

impl Quarantine {
    /// Whether a channel is left out of this round. One whose standing got better is let out.
    pub(super) fn holds(&mut self, books: &Statement, now: u64) -> bool {
        if self.0.get(&books.id).is_some_and(|kept| Standing::of(books).is_better_than(&kept.before)) {
            self.0.remove(&books.id);
        }
        self.0.get(&books.id).is_some_and(|kept| now < kept.until)
    }

    /// Why a channel is in it.
    pub(super) fn reason(&self, channel: &ChannelId) -> Option<&str> {
        self.0.get(channel).map(|kept| kept.reason.as_str())
    }

    /// Puts a channel in, or keeps it for longer. `at_a_price` says that finding out cost gas.
    pub(super) fn put(&mut self, books: &Statement, reason: String, at_a_price: bool, now: u64) {
        let before = self.0.remove(&books.id);
        if self.0.len() >= MAX_REMEMBERED {
            self.0.retain(|_, kept| now < kept.until);
        }
        if self.0.len() >= MAX_REMEMBERED {
            return;
        }
        let backoff_s = before.as_ref().map_or(FIRST_BACKOFF_S, |kept| kept.backoff_s.saturating_mul(2));
        let backoff_s = backoff_s.min(MAX_BACKOFF_S);
        let wait_s = if books.view.withdrawal.is_some() && !at_a_price { WITHDRAWING_BACKOFF_S } else { backoff_s };
        let kept = Kept {
            reason,
            since: before.map_or(now, |kept| kept.since),
            until: now.saturating_add(wait_s),
            backoff_s,
            before: Standing::of(books),
        };
        self.0.insert(books.id, kept);
    }

    /// Lets out what was claimed after all.
    pub(super) fn keep_only(&mut self, claimable: &[Statement]) {
        if !self.0.is_empty() {
            let due: std::collections::HashSet<_> = claimable.iter().map(|books| books.id).collect();
            self.0.retain(|id, _| due.contains(id));
        }
    }

    /// Who is in it, for operators, the longest first.
    pub(super) fn list(&self, claimable: &[Statement]) -> Vec<Quarantined> {
        let listed = |books: &Statement| {
            let Kept { reason, since, until, .. } = self.0.get(&books.id)?;
            let (reason, unclaimed) = (reason.clone(), books.unclaimed);
            Some(Quarantined { channel: books.id, reason, since: *since, until: *until, unclaimed })
        };
        let mut list: Vec<_> = claimable.iter().filter_map(listed).collect();
        list.sort_by_key(|row| (row.since, row.channel));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{View, Withdrawal};
    use crate::protocol::claim::ClaimRow;
    use crate::protocol::{Address, ChannelConfig, Hash, LocalKey};

    fn books(balance: u128, claimed: u128, max: u128, leaving: bool) -> Statement {
        let config = ChannelConfig {
            payer: Address([9; 20]),
            payer_authorizer: Address([9; 20]),
            receiver: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            token: Address([3; 20]),
            withdraw_delay: 900,
            salt: Hash::ZERO,
        };
        let withdrawal = leaving.then_some(Withdrawal { amount: Amount::new(1), initiated_at: 1 });
        let (balance, total_claimed) = (Amount::new(balance), Amount::new(claimed));
        let signature = LocalKey::from_bytes(&[9; 32]).unwrap().sign(Hash::ZERO);
        let max_claimable = Amount::new(max);
        Statement {
            id: ChannelId([9; 32]),
            config,
            view: View { block: 1, balance, total_claimed, withdrawal, refund_nonce: 0 },
            charged: max_claimable,
            unclaimed: max_claimable.saturating_sub(total_claimed),
            unclaimed_since: Some(1),
            row: Some(ClaimRow { config, max_claimable, signature, total_claimed: max_claimable }),
            shortfall: Amount::ZERO,
        }
    }

    #[test]
    fn a_channel_stays_out_twice_as_long_each_time_up_to_a_day() {
        let (mut quarantine, books) = (Quarantine::default(), books(10, 0, 5, false));
        let mut now = 1_000;
        for wait in [600, 1_200, 2_400, 4_800, 9_600, 19_200, 38_400, 76_800, 86_400, 86_400] {
            assert!(!quarantine.holds(&books, now));
            quarantine.put(&books, "bad".to_owned(), false, now);
            assert!(quarantine.holds(&books, now + wait - 1));
            assert_eq!(quarantine.reason(&books.id), Some("bad"));
            now += wait;
        }
        assert_eq!(quarantine.list(std::slice::from_ref(&books))[0].since, 1_000, "since the first time");
    }

    #[test]
    fn a_channel_that_got_better_comes_out_and_begins_anew() {
        let worse = [books(10, 0, 5, false), books(9, 0, 5, false), books(10, 0, 4, false)];
        let better = [books(11, 0, 5, false), books(10, 1, 5, false), books(10, 0, 6, false)];
        for (changed, held) in worse.iter().map(|books| (books, true)).chain(better.iter().map(|books| (books, false)))
        {
            let mut quarantine = Quarantine::default();
            quarantine.put(&books(10, 0, 5, false), "bad".to_owned(), false, 1_000);
            quarantine.put(&books(10, 0, 5, false), "bad".to_owned(), false, 1_000);
            assert_eq!(quarantine.holds(changed, 1_001), held, "{:?}", changed.view);
            quarantine.put(changed, "bad".to_owned(), false, 2_000);
            assert_eq!(quarantine.holds(changed, 2_000 + 600), held);
        }
    }

    #[test]
    fn one_that_is_withdrawing_is_tried_soon_unless_trying_costs_gas() {
        let leaving = books(10, 0, 5, true);
        for (at_a_price, wait) in [(false, 60), (true, 600)] {
            let mut quarantine = Quarantine::default();
            quarantine.put(&leaving, "bad".to_owned(), at_a_price, 1_000);
            assert!(quarantine.holds(&leaving, 999 + wait));
            assert!(!quarantine.holds(&leaving, 1_000 + wait));
        }
    }

    #[test]
    fn what_is_claimed_is_forgotten() {
        let mut quarantine = Quarantine::default();
        quarantine.put(&books(10, 0, 5, false), "bad".to_owned(), false, 1_000);
        quarantine.keep_only(&[books(10, 0, 5, false)]);
        assert_eq!(quarantine.list(&[books(10, 0, 5, false)]).len(), 1);
        quarantine.keep_only(&[]);
        assert_eq!(quarantine.list(&[books(10, 0, 5, false)]).len(), 0);
    }
}
