//! How much somebody may have in a time: free requests, a sum, so many requests a second.
//!
//! **Owns** the counts, of payers and of networks, for each route. **Promises** that what is taken at once by many is never
//! more than there is; that what was not used can be given back; and bounded memory ([`MAX_COUNTS`], [`MAX_BUCKETS`]): where
//! it is full, those whose time is over are forgotten first, and then whoever used least. **Does not** survive the process:
//! after a restart every window is fresh, so that a payer may have its free requests once more, and be charged up to its cap
//! once more. A reload of the price list keeps the counts of routes whose name, host, path, methods and conditions stay.
//!
//! Windows begin at whole multiples of their length since 1970 in UTC: those of a day at midnight, those of an hour at the
//! full hour. One of a week begins on a Thursday.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Peer;
use crate::protocol::Address;

/// How many windows are counted at once, of all payers, networks and routes together.
pub const MAX_COUNTS: usize = SHARDS * MAX_IN_SHARD;

/// How many rates are watched at once, of all payers, networks and routes together.
pub const MAX_BUCKETS: usize = SHARDS * MAX_IN_SHARD;

/// Locks among which they are spread.
const SHARDS: usize = 64;

const MAX_IN_SHARD: usize = 1_024;

/// A window's count is believed to be of the future for so many windows: two threads may see its end in another order, and
/// a clock that was set back further begins anew.
const MAX_AHEAD: u64 = 2;

/// Who is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Who {
    Payer(Address),
    /// An address, or of version 6 the half that names a network.
    Network(u64),
}

impl From<Peer> for Who {
    fn from(peer: Peer) -> Self {
        Self::Network(peer.key())
    }
}

/// What is counted, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The route, and what of it.
    pub(super) what: u64,
    pub(super) who: Who,
}

/// A map of bounded size under many locks.
#[derive(Debug)]
struct Shards<K, V> {
    shards: Box<[Mutex<HashMap<K, V>>]>,
    /// Nobody must be able to choose whose shard they fill.
    seed: RandomState,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, seed: RandomState::new() }
    }
}

impl<K: Copy + Eq + Hash, V: Default> Shards<K, V> {
    fn shard(&self, key: &K) -> MutexGuard<'_, HashMap<K, V>> {
        let place = usize::try_from(self.seed.hash_one(key)).unwrap_or(usize::MAX) % SHARDS;
        let shard = self.shards.get(place).expect("a remainder of the number of shards is the place of one");
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a value, which begins as its default. `missed` says how much it would be missed: nothing where it may be
    /// forgotten.
    fn change<R>(&self, key: K, missed: impl Fn(&V) -> u128, change: impl FnOnce(&mut V) -> R) -> R {
        let mut shard = self.shard(&key);
        if shard.len() >= MAX_IN_SHARD && !shard.contains_key(&key) {
            shard.retain(|_, value| missed(value) > 0);
            if shard.len() >= MAX_IN_SHARD
                && let Some(least) = shard.iter().min_by_key(|(_, value)| missed(value)).map(|(key, _)| *key)
            {
                shard.remove(&least);
            }
        }
        change(shard.entry(key).or_default())
    }
}

/// What was used in a window.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// When it ends, Unix seconds. Windows of any length are compared by that.
    ends: u64,
    used: u128,
}

/// What somebody used of what it may have in a window. Those of another length are counted apart: for a moment after a
/// price list changed there are both.
#[derive(Debug, Default)]
pub(super) struct Counters(Shards<(Key, u64), Count>);

/// What was taken, to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// How much; perhaps nothing.
    pub(super) amount: u128,
    ends: u64,
    per_s: u64,
}

impl Counters {
    /// Takes up to `wanted` of what is left of `limit` in this window of so many seconds (not zero), or nothing where there
    /// is not enough and `whole` is wanted.
    pub(super) fn take(
        &self,
        key: Key,
        wanted: u128,
        whole: bool,
        limit: u128,
        per_s: u64,
        now: impl Fn() -> u64,
    ) -> Taken {
        let end = |now: u64| now.saturating_sub(now.checked_rem(per_s).unwrap_or(0)).saturating_add(per_s);
        let seen = now();
        let missed = |count: &Count| if count.ends <= seen { 0 } else { count.used.saturating_add(1) };
        self.0.change((key, per_s), missed, |count| {
            // Under the lock, so that no one counts in a window that others have left.
            let ends = end(now());
            if count.ends < ends || count.ends > ends.saturating_add(per_s.saturating_mul(MAX_AHEAD)) {
                *count = Count { ends, used: 0 };
            }
            let left = limit.saturating_sub(count.used);
            let amount = if whole && left < wanted { 0 } else { left.min(wanted) };
            count.used = count.used.saturating_add(amount);
            Taken { amount, ends: count.ends, per_s }
        })
    }

    /// Gives back what was not used after all; in another window there is nothing to give it back to.
    pub(super) fn give_back(&self, key: Key, Taken { amount, ends, per_s }: Taken) {
        let mut shard = self.0.shard(&(key, per_s));
        if let Some(count) = shard.get_mut(&(key, per_s))
            && count.ends == ends
        {
            count.used = count.used.saturating_sub(amount);
        }
    }
}

/// So many in so long, of which as many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    /// How many; not zero.
    pub count: u32,
    /// In how long; not nothing.
    pub per: Duration,
}

/// How fast somebody goes: token buckets, each as the moment when it will be full again.
#[derive(Debug)]
pub(super) struct Buckets {
    /// Nanoseconds after the beginning.
    full_at: Shards<Key, u64>,
    begun: Instant,
}

impl Default for Buckets {
    fn default() -> Self {
        Self { full_at: Shards::default(), begun: Instant::now() }
    }
}

impl Buckets {
    /// Takes one, if there is one; otherwise says when there will be.
    pub(super) fn take(&self, key: Key, rate: Rate) -> Result<(), Duration> {
        self.take_at(key, rate, nanoseconds(self.begun.elapsed()))
    }

    fn take_at(&self, key: Key, Rate { count, per }: Rate, now: u64) -> Result<(), Duration> {
        let (whole, one) = (nanoseconds(per), nanoseconds(per.checked_div(count).unwrap_or(per)));
        let missed = |full_at: &u64| u128::from(full_at.saturating_sub(now));
        self.full_at.change(key, missed, |full_at| {
            let next = (*full_at).max(now).saturating_add(one);
            match next.checked_sub(now.saturating_add(whole)) {
                None | Some(0) => {
                    *full_at = next;
                    Ok(())
                }
                Some(too_early) => Err(Duration::from_nanos(too_early)),
            }
        })
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const NOON: u64 = 1_800_000_000;

    fn key(number: u64) -> Key {
        Key { what: 1, who: Who::Network(number) }
    }

    fn take(counters: &Counters, number: u64, wanted: u128, limit: u128, now: u64) -> u128 {
        counters.take(key(number), wanted, false, limit, 60, || now).amount
    }

    #[test]
    fn a_window_has_so_much_and_the_next_one_again() {
        let counters = Counters::default();
        assert_eq!(take(&counters, 1, 7, 10, NOON), 7);
        assert_eq!(take(&counters, 1, 7, 10, NOON + 59), 3, "what is left");
        assert_eq!(take(&counters, 1, 7, 10, NOON + 59), 0);
        assert_eq!(take(&counters, 2, 7, 10, NOON + 59), 7, "others have theirs");
        assert_eq!(take(&counters, 1, 7, 10, NOON + 60), 7, "a new window");
        assert_eq!(take(&counters, 1, 7, 10, NOON + 59), 3, "a thread that is late counts in the new one");
        assert_eq!(take(&counters, 1, 7, 10, NOON - 600), 7, "a clock that was set back begins anew");
    }

    #[test]
    fn what_is_wanted_whole_is_not_taken_in_part() {
        let counters = Counters::default();
        let whole = |wanted| counters.take(key(1), wanted, true, 10, 60, || NOON).amount;
        assert_eq!((whole(11), whole(4), whole(7), whole(6)), (0, 4, 0, 6));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_not_in_another_window() {
        let counters = Counters::default();
        let taken = counters.take(key(1), 1, true, 1, 60, || NOON);
        assert_eq!(take(&counters, 1, 1, 1, NOON), 0);
        counters.give_back(key(1), taken);
        assert_eq!(take(&counters, 1, 1, 1, NOON), 1);
        assert_eq!(take(&counters, 1, 1, 1, NOON + 60), 1);
        counters.give_back(key(1), taken);
        assert_eq!(take(&counters, 1, 1, 1, NOON + 60), 0, "it was of the window before");
        counters.give_back(key(9), taken);
    }

    #[test]
    fn many_at_once_never_take_more_than_there_is() {
        const LIMIT: u64 = 1_000;
        let (counters, clock, sum) = (Counters::default(), AtomicU64::new(NOON), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for step in 0..2_000_u64 {
                        let taken =
                            counters.take(key(1), 3, false, LIMIT.into(), 3_600, || clock.load(Ordering::Relaxed));
                        if step % 7 == 0 {
                            counters.give_back(key(1), taken);
                        } else {
                            sum.fetch_add(u64::try_from(taken.amount).unwrap(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), LIMIT);
    }

    #[test]
    fn memory_is_bounded_and_whoever_used_least_is_forgotten_first() {
        let counters = Counters::default();
        for number in 0..100_000 {
            take(&counters, number, 1 + u128::from(number % 2), 10, NOON);
        }
        let held: usize = counters.0.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(held <= MAX_COUNTS, "{held}");
        let kept = |parity: u64| {
            (0..100_000)
                .map(|number| (number % 2, (key(number), 60)))
                .filter(|(odd, key)| *odd == parity && counters.0.shard(key).contains_key(key))
                .count()
        };
        assert!(kept(1) > kept(0) * 2, "{} {}", kept(1), kept(0));
        // Those whose window is over go before all others.
        for number in 200_000..260_000 {
            take(&counters, number, 1, 10, NOON + 60);
        }
        assert_eq!((kept(0), kept(1)), (0, 0));
    }

    #[test]
    fn windows_of_other_lengths_are_counted_apart_and_none_is_taken_for_over() {
        let counters = Counters::default();
        let take = |number: u64, per_s| counters.take(key(number), 7, false, 10, per_s, || NOON).amount;
        assert_eq!([take(1, 86_400), take(1, 3_600), take(1, 86_400), take(1, 3_600)], [7, 7, 3, 3]);
        // A crowd of short ones takes no place from those of a day that used more.
        for number in 1_000..81_000 {
            counters.take(key(number), 1, false, 10, 60, || NOON);
        }
        assert_eq!(take(1, 86_400), 0);
        for number in 100_000..180_000 {
            counters.take(key(number), 7, false, 10, 60, || NOON + 60);
        }
        assert_eq!(counters.take(key(1), 7, false, 10, 86_400, || NOON + 60).amount, 0);
    }

    #[test]
    fn a_bucket_holds_so_many_and_fills_again_at_its_rate() {
        let buckets = Buckets::default();
        let rate = Rate { count: 4, per: Duration::from_secs(1) };
        let ms = |ms: u64| ms * 1_000_000;
        for _ in 0..4 {
            assert_eq!(buckets.take_at(key(1), rate, ms(1_000)), Ok(()));
        }
        assert_eq!(buckets.take_at(key(1), rate, ms(1_000)), Err(Duration::from_millis(250)));
        assert_eq!(buckets.take_at(key(1), rate, ms(1_249)), Err(Duration::from_millis(1)));
        assert_eq!(buckets.take_at(key(2), rate, ms(1_249)), Ok(()), "others have theirs");
        assert_eq!(buckets.take_at(key(1), rate, ms(1_250)), Ok(()));
        assert!(buckets.take_at(key(1), rate, ms(1_250)).is_err());
        for _ in 0..4 {
            assert_eq!(buckets.take_at(key(1), rate, ms(60_000)), Ok(()), "never more than it holds");
        }
        assert!(buckets.take_at(key(1), rate, ms(60_000)).is_err());
    }
}
