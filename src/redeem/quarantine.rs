//! Quarantine: channels whose row the contract refuses.
//!
//! **Owns** which channels are left out of batches, why, and until when. **Promises** that a channel comes out as soon as
//! something about it changed for the better (a new voucher, a deposit, a claim), and at once where its payer begins to
//! withdraw: what waits then may be gone. One whose refusal cost gas comes out for no voucher or deposit, or its payer
//! could make us pay again as often as it likes. **Does not** read the chain, and is forgotten with the process: the next
//! one finds out by one simulation.

use std::collections::HashMap;

use super::plan::claims_in_all;
use super::vitals::Quarantined;
use crate::gate::Statement;
use crate::protocol::{Amount, ChannelId, Dollars};

/// How long a channel stays out the first time, seconds; twice as long each time after that, up to
/// [`MAX_BACKOFF_S`].
const FIRST_BACKOFF_S: u64 = 600;
/// See [`FIRST_BACKOFF_S`].
const MAX_BACKOFF_S: u64 = 86_400;

/// How long one stays out whose payer is withdrawing, seconds, where it was refused for nothing: a node that was wrong
/// about it must not be what lets the money go.
const WITHDRAWING_BACKOFF_S: u64 = 60;

/// Where a withdrawal is running, the next try comes before half of what is left of its delay is over, and what it cost to
/// find out does not matter; so there are a few tries and no more. Of less than this, seconds, there is no half.
const MIN_HALVED_S: u64 = 60;

/// How many are remembered. A payer that wants more of them must deposit to each, and one simulation finds each again; those
/// that it does not find go before those that it does.
const MAX_REMEMBERED: usize = 10_000;

/// Why a channel is put in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// For people.
    pub(super) reason: String,
    /// What the row that was refused claims in all, atomic units. The books may ask for less since it was planned.
    pub(super) claims: Amount,
    /// Whether finding out cost gas.
    pub(super) at_a_price: bool,
    /// Whether no payer can bring it about, so that the fault may be ours, or the node's.
    pub(super) unexplained: bool,
}

/// The channels in quarantine.
#[derive(Debug, Default)]
pub(super) struct Quarantine(HashMap<ChannelId, Kept>);

#[derive(Debug)]
struct Kept {
    refusal: Refusal,
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
    /// What its row claims in all.
    claims: Amount,
    leaving: bool,
}

impl Standing {
    fn of(books: &Statement) -> Self {
        let max_claimable = books.row.as_ref().map_or(Amount::ZERO, |row| row.max_claimable);
        let claims = claims_in_all(books).unwrap_or(Amount::ZERO);
        let leaving = books.view.withdrawal.is_some();
        Self { balance: books.view.balance, claimed: books.view.total_claimed, max_claimable, claims, leaving }
    }

    /// Whether there is more to claim, more to claim it from, or another row than the one that was refused: a balance that
    /// a node made up, or a reorganisation took back, asks for less. A payer can bring that about whenever it likes.
    fn is_another_than(&self, before: &Self) -> bool {
        self.balance > before.balance || self.max_claimable > before.max_claimable || self.claims != before.claims
    }

    fn began_to_leave(&self, before: &Self) -> bool {
        self.leaving && !before.leaving
    }
}

impl Quarantine {
    /// Whether a channel is left out of this round. One whose standing got better is let out.
    pub(super) fn holds(&mut self, books: &Statement, now: u64) -> bool {
        let Some(kept) = self.0.get_mut(&books.id) else { return false };
        let (standing, before) = (Standing::of(books), kept.before);
        let begins_anew =
            standing.claimed > before.claimed || (!kept.refusal.at_a_price && standing.is_another_than(&before));
        if begins_anew {
            self.0.remove(&books.id);
            return false;
        }
        if standing.began_to_leave(&before) {
            kept.until = now;
        }
        kept.before.leaving = standing.leaving;
        now < kept.until
    }

    /// Lets everybody out whose refusal cost nothing; whoever is refused again is back.
    pub(super) fn let_out(&mut self) {
        for kept in self.0.values_mut().filter(|kept| !kept.refusal.at_a_price) {
            kept.until = 0;
        }
    }

    /// Why a channel is in it.
    pub(super) fn reason(&self, channel: &ChannelId) -> Option<&str> {
        self.0.get(channel).map(|kept| kept.refusal.reason.as_str())
    }

    /// Puts a channel in, or keeps it for longer.
    pub(super) fn put(&mut self, books: &Statement, refusal: Refusal, now: u64) {
        let claims = refusal.claims;
        let before = self.0.remove(&books.id);
        if self.0.len() >= MAX_REMEMBERED {
            self.0.retain(|_, kept| now < kept.until);
        }
        if self.0.len() >= MAX_REMEMBERED && !(refusal.at_a_price && self.forgets_one()) {
            return;
        }
        let backoff_s = before.as_ref().map_or(FIRST_BACKOFF_S, |kept| kept.backoff_s.saturating_mul(2));
        let backoff_s = backoff_s.min(MAX_BACKOFF_S);
        let wait_s = match &books.view.withdrawal {
            None => backoff_s,
            Some(_) if !refusal.at_a_price => WITHDRAWING_BACKOFF_S,
            Some(withdrawal) => {
                let left_s = withdrawal.initiated_at.saturating_add(books.config.withdraw_delay).saturating_sub(now);
                if left_s < MIN_HALVED_S { backoff_s } else { backoff_s.min(left_s / 2) }
            }
        };
        let unexplained = refusal.unexplained && before.as_ref().is_none_or(|kept| kept.refusal.unexplained);
        let kept = Kept {
            refusal: Refusal { unexplained, ..refusal },
            since: before.map_or(now, |kept| kept.since),
            until: now.saturating_add(wait_s),
            backoff_s,
            before: Standing { claims, ..Standing::of(books) },
        };
        self.0.insert(books.id, kept);
    }

    /// Forgets somebody who is found again for nothing, if there is one.
    fn forgets_one(&mut self) -> bool {
        let one = self.0.iter().find(|(_, kept)| !kept.refusal.at_a_price).map(|(id, _)| *id);
        one.is_some_and(|id| self.0.remove(&id).is_some())
    }

    /// The contract has claimed for others since: what it refuses is the affair of those rows alone.
    pub(super) fn others_are_claimed(&mut self) {
        self.0.values_mut().for_each(|kept| kept.refusal.unexplained = false);
    }

    /// Why the contract refuses what no payer can have spoilt, where it has claimed nothing since.
    pub(super) fn unexplained(&self, claimable: &[Statement]) -> Option<&str> {
        let kept = claimable.iter().filter_map(|books| self.0.get(&books.id));
        let oldest = kept.filter(|kept| kept.refusal.unexplained).min_by_key(|kept| kept.since)?;
        Some(&oldest.refusal.reason)
    }

    /// Lets out what was claimed after all.
    pub(super) fn keep_only(&mut self, claimable: &[Statement]) {
        if !self.0.is_empty() {
            let due: std::collections::HashSet<_> = claimable.iter().map(|books| books.id).collect();
            self.0.retain(|id, _| due.contains(id));
        }
    }

    /// Who is in it, for operators, the longest first.
    pub(super) fn list(&self, claimable: &[Statement], dollars: &Dollars) -> Vec<Quarantined> {
        let listed = |books: &Statement| {
            let Kept { refusal, since, until, .. } = self.0.get(&books.id)?;
            let (reason, unclaimed) = (refusal.reason.clone(), dollars.of(books.config.token, books.unclaimed));
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

    fn bad(at_a_price: bool) -> Refusal {
        Refusal { reason: "bad".to_owned(), claims: Amount::new(5), at_a_price, unexplained: true }
    }

    #[test]
    fn a_channel_stays_out_twice_as_long_each_time_up_to_a_day() {
        let (mut quarantine, books) = (Quarantine::default(), books(10, 0, 5, false));
        let mut now = 1_000;
        for wait in [600, 1_200, 2_400, 4_800, 9_600, 19_200, 38_400, 76_800, 86_400, 86_400] {
            assert!(!quarantine.holds(&books, now));
            quarantine.put(&books, bad(false), now);
            assert!(quarantine.holds(&books, now + wait - 1));
            assert_eq!(quarantine.reason(&books.id), Some("bad"));
            now += wait;
        }
        assert_eq!(
            quarantine.list(std::slice::from_ref(&books), &Dollars::default())[0].since,
            1_000,
            "since the first time"
        );
    }

    #[test]
    fn a_channel_that_got_better_comes_out_and_begins_anew() {
        let same = [books(10, 0, 5, false), books(9, 0, 5, false)];
        let better = [books(11, 0, 5, false), books(10, 1, 5, false), books(10, 0, 6, false), books(4, 0, 5, false)];
        for (changed, held) in same.iter().map(|books| (books, true)).chain(better.iter().map(|books| (books, false))) {
            let mut quarantine = Quarantine::default();
            quarantine.put(&books(10, 0, 5, false), bad(false), 1_000);
            quarantine.put(&books(10, 0, 5, false), bad(false), 1_000);
            assert_eq!(quarantine.holds(changed, 1_001), held, "{:?}", changed.view);
            quarantine.put(changed, bad(false), 2_000);
            assert_eq!(quarantine.holds(changed, 2_000 + 600), held);
        }
    }

    #[test]
    fn one_that_is_withdrawing_is_tried_soon_unless_trying_costs_gas() {
        let leaving = books(10, 0, 5, true);
        for (at_a_price, wait) in [(false, 60), (true, 600)] {
            let mut quarantine = Quarantine::default();
            quarantine.put(&leaving, bad(at_a_price), 1_000);
            assert!(quarantine.holds(&leaving, 999 + wait));
            assert!(!quarantine.holds(&leaving, 1_000 + wait));
        }
    }

    #[test]
    fn a_row_that_was_planned_on_an_older_balance_is_tried_again_as_it_is_now() {
        let (mut quarantine, now_less) = (Quarantine::default(), books(4, 0, 5, false));
        quarantine.put(&now_less, bad(false), 1_000);
        assert!(!quarantine.holds(&now_less, 1_001), "five were refused, and four are claimed now");
        quarantine.put(&now_less, Refusal { claims: Amount::new(4), ..bad(false) }, 1_001);
        assert!(quarantine.holds(&now_less, 1_002));
    }

    #[test]
    fn what_is_claimed_is_forgotten() {
        let mut quarantine = Quarantine::default();
        quarantine.put(&books(10, 0, 5, false), bad(false), 1_000);
        quarantine.keep_only(&[books(10, 0, 5, false)]);
        assert_eq!(quarantine.list(&[books(10, 0, 5, false)], &Dollars::default()).len(), 1);
        quarantine.keep_only(&[]);
        assert_eq!(quarantine.list(&[books(10, 0, 5, false)], &Dollars::default()).len(), 0);
    }

    /// Nothing but a finished withdrawal takes money away, and one may take no longer than a quarter of an hour.
    #[test]
    fn a_channel_whose_payer_begins_to_withdraw_comes_out_at_once() {
        for at_a_price in [false, true] {
            let (mut quarantine, mut now) = (Quarantine::default(), 1_000);
            for _ in 0..9 {
                quarantine.put(&books(10, 0, 5, false), bad(at_a_price), now);
                now += 1;
            }
            assert!(quarantine.holds(&books(10, 0, 5, false), now + 3_600), "for a day");
            assert!(!quarantine.holds(&books(10, 0, 5, true), now));
            assert!(!quarantine.holds(&books(10, 0, 5, true), now), "as long as nobody tried");
            quarantine.put(&books(10, 0, 5, true), bad(at_a_price), now);
            assert!(quarantine.holds(&books(10, 0, 5, true), now), "and once for each withdrawal");
        }
    }

    #[test]
    fn a_refusal_that_costs_gas_is_tried_a_few_times_before_the_withdrawal_is_over() {
        let mut leaving = books(10, 0, 5, true);
        leaving.view.withdrawal = Some(Withdrawal { amount: Amount::new(1), initiated_at: 10_000 });
        let mut quarantine = Quarantine::default();
        // A day is what it would wait otherwise.
        for _ in 0..9 {
            quarantine.put(&books(10, 0, 5, false), bad(true), 1_000);
        }
        let (mut now, mut tries) = (10_000, 0);
        while now < 10_900 {
            if !quarantine.holds(&leaving, now) {
                tries += 1;
                quarantine.put(&leaving, bad(true), now);
            }
            now += 1;
        }
        assert_eq!(tries, 5);
    }

    #[test]
    fn a_payer_cannot_make_us_pay_for_a_refusal_as_often_as_it_likes() {
        let mut quarantine = Quarantine::default();
        quarantine.put(&books(10, 0, 5, false), bad(true), 1_000);
        assert!(quarantine.holds(&books(99, 0, 50, false), 1_001), "for any voucher or deposit");
        assert!(!quarantine.holds(&books(10, 1, 5, false), 1_001), "a claim shows that it can be claimed");
    }

    #[test]
    fn whoever_is_let_out_is_one_that_costs_nothing_to_try() {
        let mut quarantine = Quarantine::default();
        for at_a_price in [false, true] {
            quarantine.put(&books(10, 0, 5, false), bad(at_a_price), 1_000);
            quarantine.let_out();
            assert_eq!(quarantine.holds(&books(10, 0, 5, false), 1_001), at_a_price);
        }
    }

    #[test]
    fn what_no_payer_can_have_spoilt_is_told_until_others_are_claimed() {
        let row = [books(10, 0, 5, false)];
        let mut quarantine = Quarantine::default();
        quarantine.put(&row[0], Refusal { unexplained: false, ..bad(false) }, 1_000);
        assert_eq!(quarantine.unexplained(&row), None);
        let mut quarantine = Quarantine::default();
        quarantine.put(&row[0], bad(false), 1_000);
        assert_eq!(quarantine.unexplained(&row), Some("bad"));
        assert_eq!(quarantine.unexplained(&[]), None, "nothing is due on it any more");
        quarantine.others_are_claimed();
        assert_eq!(quarantine.unexplained(&row), None);
        quarantine.put(&row[0], bad(false), 2_000);
        assert_eq!(quarantine.unexplained(&row), None, "and not because of the same row again");
    }

    #[test]
    fn what_costs_gas_to_find_is_remembered_before_what_does_not() {
        let numbered = |number: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            Statement { id: ChannelId(id), ..books(10, 0, 5, false) }
        };
        let mut quarantine = Quarantine::default();
        (0..MAX_REMEMBERED).for_each(|number| quarantine.put(&numbered(number), bad(false), 1_000));
        quarantine.put(&numbered(MAX_REMEMBERED), bad(false), 1_001);
        assert!(!quarantine.holds(&numbered(MAX_REMEMBERED), 1_001));
        quarantine.put(&numbered(MAX_REMEMBERED), bad(true), 1_001);
        assert!(quarantine.holds(&numbered(MAX_REMEMBERED), 1_001));
        assert_eq!(quarantine.0.len(), MAX_REMEMBERED);
    }
}
