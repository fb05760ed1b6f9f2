//! What calls for a round before the interval is over.
//!
//! **Owns** the judgement ([`calls_for_a_round`], pure) and the look at the books now and then. **Promises** that what a
//! round left on purpose calls for no other, so that rounds never spin; and that books without a threshold are not looked
//! at. **Does not** claim, and does not watch the chain: a payer that withdraws is the follower's to notice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::Settings;
use super::plan::{Plan, Rules, due_on};
use crate::clock;
use crate::gate::{Accounts, Statement};
use crate::protocol::{Address, Amount, ChannelId};

/// How often the books are looked at, at most: a look reads every channel.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How soon after a round that ended early the books may call for another.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Why a round begins before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// So much is unclaimed in all.
    Unclaimed(Amount),
    /// So much is unclaimed on this channel.
    UnclaimedOn(ChannelId, Amount),
    /// So much is unclaimed on this payer's channels.
    UnclaimedOf(Address, Amount),
    /// Something was unclaimed on this channel for too long.
    Age(ChannelId),
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unclaimed(units) => write!(f, "{units} units of a dollar are unclaimed"),
            Self::UnclaimedOn(channel, units) => {
                write!(f, "{units} units of a dollar are unclaimed on channel {channel}")
            }
            Self::UnclaimedOf(payer, units) => write!(f, "payer {payer} owes {units} units of a dollar"),
            Self::Age(channel) => write!(f, "channel {channel} was not claimed for long"),
        }
    }
}

/// What the last round left, so that it calls for no other by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// When, Unix seconds.
    at: u64,
    /// What was not worth its gas, or on its way already. What is charged on top of it counts again.
    postponed: BTreeMap<ChannelId, Amount>,
    /// What cannot be claimed at the moment, however much it is.
    out: BTreeSet<ChannelId>,
}

impl Leftovers {
    /// What a round that follows this plan leaves.
    pub fn by(plan: &Plan, now: u64) -> Self {
        let foreign = plan.foreign.iter().map(|foreign| foreign.channel);
        Self {
            at: now,
            postponed: plan.postponed.iter().map(|postponed| (postponed.channel, postponed.due)).collect(),
            out: foreign.chain(plan.quarantined.iter().map(|row| row.channel)).collect(),
        }
    }

    /// So much of this one is on its way.
    pub fn leave_to_flights(&mut self, channel: ChannelId, due: Amount) {
        self.postponed.insert(channel, due);
    }

    /// This one could not be claimed either.
    pub fn leave_out(&mut self, channel: ChannelId) {
        self.out.insert(channel);
    }
}

impl Rules {
    /// Whether anything but the interval calls for a round.
    fn has_thresholds(&self) -> bool {
        let sums = [self.max_unclaimed, self.max_unclaimed_per_channel, self.max_unclaimed_per_payer];
        self.max_age.is_some() || sums.iter().any(Option::is_some)
    }
}

/// Whether these books call for a round: because more than a threshold is unclaimed, or for longer. What the last round
/// left counts only as far as it grew since, or became old since.
pub fn calls_for_a_round(books: &[Statement], rules: &Rules, now: u64, left: &Leftovers) -> Option<Trigger> {
    let more = |limit: Option<Amount>, units: Amount| limit.is_some_and(|limit| units > limit);
    let add = |sum: Amount, units: Amount| sum.saturating_add(units);
    let mut total = Amount::ZERO;
    let mut of_payers: BTreeMap<Address, Amount> = BTreeMap::new();
    for statement in books.iter().filter(|statement| !left.out.contains(&statement.id)) {
        let (channel, payer) = (statement.id, statement.config.payer);
        let due = due_on(statement, &rules.dollars);
        let before = left.postponed.get(&channel).copied();
        let was_old = before.is_some() && rules.is_old(statement, left.at);
        if !due.is_zero() && rules.is_old(statement, now) && !was_old {
            return Some(Trigger::Age(channel));
        }
        let new = due.saturating_sub(before.unwrap_or_default());
        if more(rules.max_unclaimed_per_channel, new) {
            return Some(Trigger::UnclaimedOn(channel, new));
        }
        let of_payer = of_payers.entry(payer).or_default();
        *of_payer = add(*of_payer, new);
        if more(rules.max_unclaimed_per_payer, *of_payer) {
            return Some(Trigger::UnclaimedOf(payer, *of_payer));
        }
        total = add(total, new);
    }
    more(rules.max_unclaimed, total).then_some(Trigger::Unclaimed(total))
}

/// Looks at the books now and then.
#[derive(Debug)]
pub(super) struct Lookout {
    rules: Rules,
    every: Duration,
    left: Leftovers,
    next: Instant,
}

impl Lookout {
    pub(super) fn new(settings: &Settings) -> Self {
        let every = LOOK_EVERY.max(settings.poll);
        Self { rules: settings.rules.clone(), every, left: Leftovers::default(), next: Instant::now() + every }
    }

    /// Waits until the books call for a round; for ever, where no rule says when they do.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost: the next call goes on with the same pace.
    pub(super) async fn called(&mut self, accounts: &Accounts) -> Trigger {
        if !self.rules.has_thresholds() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep_until(self.next).await;
            self.next = Instant::now() + self.every;
            let books = accounts.claimable();
            if let Some(trigger) = calls_for_a_round(&books, &self.rules, clock::now_s(), &self.left) {
                return trigger;
            }
        }
    }

    /// A round ended and left this. After one that failed as a whole the books are quiet for a while: they would only
    /// call for the same again.
    pub(super) fn round_ended(&mut self, left: Leftovers, failed: bool) {
        self.left = left;
        self.next = Instant::now() + if failed { RETRY_AFTER } else { self.every };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::plan::tests::{OURS, since, some_books, some_price, some_rules, statement};
    use super::super::plan::{Due, Foreign, Postponed, Why, plan};
    use super::*;

    fn channel(number: u8) -> ChannelId {
        ChannelId([number; 32])
    }

    fn rules(change: impl FnOnce(&mut Rules)) -> Rules {
        let mut rules = Rules::default();
        change(&mut rules);
        rules
    }

    #[test]
    fn a_threshold_is_more_than() {
        let amount = |units| Some(Amount::new(units));
        let books = [statement(1, 100, 10, 40, false), statement(2, 100, 0, 25, false)];
        let total = |units| rules(|rules| rules.max_unclaimed = amount(units));
        let each = |units| rules(|rules| rules.max_unclaimed_per_channel = amount(units));
        let payer = |units| rules(|rules| rules.max_unclaimed_per_payer = amount(units));
        let old = |seconds| rules(|rules| rules.max_age = Some(Duration::from_secs(seconds)));
        // Unclaimed since 1, and it is 1001.
        let table = [
            ("no rules", Rules::default(), None),
            ("in all, exactly", total(55), None),
            ("in all, one more", total(54), Some(Trigger::Unclaimed(Amount::new(55)))),
            ("one channel, exactly", each(30), None),
            ("one channel, one more", each(29), Some(Trigger::UnclaimedOn(channel(1), Amount::new(30)))),
            ("one payer, exactly", payer(30), None),
            ("one payer, one more", payer(29), Some(Trigger::UnclaimedOf(Address([1; 20]), Amount::new(30)))),
            ("age, exactly", old(1_000), None),
            ("age, one more", old(999), Some(Trigger::Age(channel(1)))),
        ];
        for (name, rules, expected) in table {
            assert_eq!(calls_for_a_round(&books, &rules, 1_001, &Leftovers::default()), expected, "{name}");
        }
    }

    #[test]
    fn the_channels_of_a_payer_count_together() {
        let mut books = [statement(1, 100, 0, 30, false), statement(2, 100, 0, 25, false)];
        books[1].config.payer = books[0].config.payer;
        let rules = rules(|rules| rules.max_unclaimed_per_payer = Some(Amount::new(54)));
        let expected = Trigger::UnclaimedOf(Address([1; 20]), Amount::new(55));
        assert_eq!(calls_for_a_round(&books, &rules, 2, &Leftovers::default()), Some(expected));
    }

    #[test]
    fn what_is_gone_or_claimed_calls_for_nothing() {
        let rules = rules(|rules| {
            rules.max_unclaimed = Some(Amount::ZERO);
            rules.max_age = Some(Duration::ZERO);
        });
        let drained = statement(1, 30, 30, 50, false);
        let claimed = statement(2, 30, 20, 20, false);
        assert_eq!(calls_for_a_round(&[drained, claimed], &rules, 9_999, &Leftovers::default()), None);
    }

    #[test]
    fn what_a_round_left_calls_for_no_other_until_it_grows_or_ages() {
        let plan = Plan {
            postponed: vec![Postponed {
                channel: channel(1),
                due: Amount::new(30),
                cost: Amount::new(5),
                why: Why::GasShare,
            }],
            foreign: vec![Foreign { channel: channel(2), authorizer: Address([9; 20]), due: Amount::new(40) }],
            quarantined: vec![Due { channel: channel(3), due: Amount::new(50) }],
            ..Plan::default()
        };
        let mut left = Leftovers::by(&plan, 500);
        let books = |charged| {
            [
                statement(1, 999, 0, charged, false),
                statement(2, 999, 0, 900, false),
                statement(3, 999, 0, 900, false),
                statement(4, 999, 0, 9, false),
            ]
        };
        left.leave_out(channel(4));
        let sums = rules(|rules| rules.max_unclaimed = Some(Amount::new(20)));
        assert_eq!(calls_for_a_round(&books(50), &sums, 501, &left), None);
        assert_eq!(calls_for_a_round(&books(51), &sums, 501, &left), Some(Trigger::Unclaimed(Amount::new(21))));
        // It was 499 seconds old when it was left.
        let age = |seconds| rules(|rules| rules.max_age = Some(Duration::from_secs(seconds)));
        assert_eq!(calls_for_a_round(&books(30), &age(498), 9_999, &left), None, "old already, and left all the same");
        assert_eq!(calls_for_a_round(&books(30), &age(499), 501, &left), Some(Trigger::Age(channel(1))));
        left.leave_to_flights(channel(1), Amount::new(60));
        assert_eq!(calls_for_a_round(&books(80), &sums, 501, &left), None, "on its way");
        assert_eq!(calls_for_a_round(&books(81), &sums, 501, &left), Some(Trigger::Unclaimed(Amount::new(21))));
        let young = [since(statement(1, 999, 0, 30, false), 400)];
        assert_eq!(calls_for_a_round(&young, &age(498), 501, &left), None);
    }

    proptest! {
        #[test]
        fn rounds_never_spin(
            books in some_books(),
            rules in some_rules(),
            price in some_price(),
            limits in proptest::array::uniform3(prop::option::of(0u128..1_000)),
            now in 0u64..3_000,
        ) {
            let [max_unclaimed, max_unclaimed_per_channel, max_unclaimed_per_payer] =
                limits.map(|limit| limit.map(Amount::new));
            let rules = Rules { max_unclaimed, max_unclaimed_per_channel, max_unclaimed_per_payer, ..rules };
            let (books, quarantine): (Vec<_>, Vec<_>) = books.into_iter().unzip();
            let ids: BTreeSet<_> =
                books.iter().zip(quarantine).filter(|(_, out)| *out).map(|(books, _)| books.id).collect();
            let planned = plan(&books, OURS, &rules, price.as_ref(), &|channel| ids.contains(channel), now);
            let claimed: BTreeSet<_> =
                planned.batches.iter().flat_map(|batch| &batch.rows).map(|row| row.config.payer).collect();
            let after: Vec<_> =
                books.into_iter().filter(|books| !claimed.contains(&books.config.payer)).collect();
            let left = Leftovers::by(&planned, now);
            prop_assert_eq!(calls_for_a_round(&after, &rules, now, &left), None);
        }
    }

    #[test]
    fn books_are_looked_at_where_there_is_a_threshold() {
        let some = Some(Amount::new(1));
        assert!(!Rules::default().has_thresholds());
        assert!(!rules(|rules| rules.max_gas_share_bps = Some(1)).has_thresholds());
        assert!(rules(|rules| rules.max_unclaimed = some).has_thresholds());
        assert!(rules(|rules| rules.max_unclaimed_per_channel = some).has_thresholds());
        assert!(rules(|rules| rules.max_unclaimed_per_payer = some).has_thresholds());
        assert!(rules(|rules| rules.max_age = Some(Duration::ZERO)).has_thresholds());
    }
}
