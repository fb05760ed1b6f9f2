//! How often a peer's payments may come to nothing.
//!
//! A voucher that somebody else signed costs us a signature's verification, and a channel that nobody funded a question
//! to a node; whoever sends it pays nothing. **Owns** the count of both for each peer, over a minute that begins with the
//! first. **Promises** that a peer that used its minute up is refused before curve and chain, that this does not reach
//! the channels that paid from there lately, that what is said of a channel elsewhere does not reach it either, that memory
//! is fixed ([`MAX_DOUBTED`] peers), and that a paid request takes no lock for it. **Does not** count what arithmetic
//! refuses, correctives among it, nor what failed through no fault of the payer's.
//!
//! Behind a load balancer all are one peer. There, and behind one address of a household or a cloud, an honest payer must
//! not be refused because of its neighbour. So the channels that paid from the same peer in the last
//! [`VOUCHED_FOR_S`] are looked at all the same. Whoever knows such a channel could forge vouchers of it from there;
//! after [`MAX_FORGERIES`] in a minute the channel is in the same boat as its peer, until the minute is over. Vouchers
//! that are in step are counted apart from the others: without the channel's sums, which only its payer is told, a forger
//! can take away its correctives and no more.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::admit::{Admission, Claimed};
use super::answer::Refusal;
use super::{Gate, Peer};
use crate::clock;
use crate::protocol::Code;

/// How many peers are counted at once. For one more, one of those with the smallest counts is forgotten.
pub const MAX_DOUBTED: usize = SETS * WAYS;

/// What is meant by a minute, seconds.
pub(super) const WINDOW_S: u64 = 60;

/// How long after a paid request its channel is looked at whatever else comes from its peer, seconds.
pub(super) const VOUCHED_FOR_S: u64 = 3_600;

/// How many vouchers of one channel may be forged in a minute, from where it pays, before it is looked at no more than its
/// peer is.
pub(super) const MAX_FORGERIES: u32 = 8;

const SETS: usize = 16_384;
/// Places in a set; a peer is in one of them.
const WAYS: usize = 4;

/// How often a count is tried again that another thread changed meanwhile. One that is lost is no harm.
const MAX_TRIES: usize = 16;

/// The parts of a place: whose it is, since when (seconds, of which so many bits are kept), how many.
const TAG_BITS: u32 = 24;
const SINCE_BITS: u32 = 20;
const COUNT_BITS: u32 = 20;

/// The counts of the last minute: a table of fixed size, one word for a peer, changed by compare and swap.
#[derive(Debug)]
pub(super) struct Patience {
    sets: Box<[[AtomicU64; WAYS]]>,
    /// Peers must not be able to choose whose place they share.
    seed: RandomState,
}

/// What a word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    tag: u64,
    since: u64,
    count: u64,
}

impl Count {
    fn unpack(word: u64) -> Self {
        let low = |word: u64, bits: u32| word & ((1 << bits) - 1);
        Self {
            tag: word >> (SINCE_BITS + COUNT_BITS),
            since: low(word >> COUNT_BITS, SINCE_BITS),
            count: low(word, COUNT_BITS),
        }
    }

    fn pack(self) -> u64 {
        (self.tag << (SINCE_BITS + COUNT_BITS)) | (self.since << COUNT_BITS) | self.count
    }

    /// Seconds since its minute began. A clock that was set back reads as a long time, and begins a new minute.
    fn age(self, now: u64) -> u64 {
        now.wrapping_sub(self.since) & ((1 << SINCE_BITS) - 1)
    }

    fn counts(self, now: u64) -> bool {
        self.count > 0 && self.age(now) < WINDOW_S
    }
}

impl Default for Patience {
    fn default() -> Self {
        let sets = (0..SETS).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect();
        Self { sets, seed: RandomState::new() }
    }
}

impl Patience {
    /// Whether the peer may be looked at; if not, after how many seconds it may.
    fn check(&self, peer: u64, limit: u32, now: u64) -> Result<(), u64> {
        let (set, tag) = self.set(peer);
        for place in set {
            let held = Count::unpack(place.load(Ordering::Relaxed));
            if held.tag == tag && held.counts(now) && held.count >= u64::from(limit) {
                return Err(WINDOW_S.saturating_sub(held.age(now)).max(1));
            }
        }
        Ok(())
    }

    /// Counts one, whether there is room for it or not. Returns when its minute began.
    fn count(&self, peer: u64, now: u64) -> u64 {
        let (set, tag) = self.set(peer);
        let fresh = Count { tag, since: now & ((1 << SINCE_BITS) - 1), count: 1 };
        for _ in 0..MAX_TRIES {
            // The peer's own place, or else the one that is missed least.
            let ranked = set.iter().map(|place| {
                let word = place.load(Ordering::Relaxed);
                let held = Count::unpack(word);
                let own = held.tag == tag && held.counts(now);
                let missed = if held.counts(now) { held.count } else { 0 };
                ((!own, missed), place, word, own.then_some(held))
            });
            let Some((_, place, word, own)) = ranked.min_by_key(|(rank, ..)| *rank) else { break };
            let most = (1 << COUNT_BITS) - 1;
            let next = own.map_or(fresh, |held| Count { count: (held.count + 1).min(most), ..held });
            if place.compare_exchange(word, next.pack(), Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return next.since;
            }
        }
        fresh.since
    }

    /// One of the minute that began then was none.
    fn take_back(&self, peer: u64, since: u64) {
        let (set, tag) = self.set(peer);
        for place in set {
            let taken = place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                let held = Count::unpack(word);
                let ours = held.tag == tag && held.since == since && held.count > 0;
                ours.then(|| Count { count: held.count.saturating_sub(1), ..held }.pack())
            });
            if taken.is_ok() {
                return;
            }
        }
    }

    fn set(&self, peer: u64) -> (&[AtomicU64; WAYS], u64) {
        let hash = self.seed.hash_one(peer);
        let at = usize::try_from(hash >> TAG_BITS).unwrap_or(usize::MAX) % SETS;
        let set = self.sets.get(at).expect("a remainder of the number of sets is the place of one");
        (set, hash & ((1 << TAG_BITS) - 1))
    }
}

/// One payment that is being looked at.
#[derive(Debug)]
pub(super) struct Look {
    /// The peer, if one is known; without, nothing is counted.
    peer: Option<u64>,
    /// The minute in which its question to the chain was counted, until that turns out to have been worth it. Who asks and
    /// leaves has asked.
    asked: OnceLock<u64>,
    /// Only a request that is served makes it worth the question.
    strict: AtomicBool,
}

impl Look {
    /// At a payment that came from there.
    pub(super) fn at(peer: Option<Peer>) -> Self {
        Self { peer: peer.map(Peer::key), asked: OnceLock::new(), strict: AtomicBool::new(false) }
    }

    /// The peer, if one is known.
    pub(super) fn peer(&self) -> Option<u64> {
        self.peer
    }
}

/// Answers that were not worth their signature's verification.
fn is_forgery(refusal: &Refusal) -> bool {
    refusal.is_one_of(&[
        Code::VoucherSignature,
        Code::ReceiveAuthorizationSignature,
        Code::Permit2InvalidSignature,
        Code::Eip2612InvalidSignature,
    ])
}

/// Answers that were not worth a question to a node.
fn is_nothing(refusal: &Refusal) -> bool {
    let codes = [
        Code::ChannelNotFound,
        Code::InsufficientBalance,
        Code::DepositSimulationFailed,
        Code::Permit2AllowanceRequired,
        Code::RefundSimulationFailed,
    ];
    is_forgery(refusal) || refusal.is_one_of(&codes)
}

impl Gate {
    /// Refuses where the peer has used its minute up and nothing vouches for the channel.
    pub(super) fn bear(&self, claimed: &Claimed<'_>) -> Result<(), Refusal> {
        let Some(peer) = claimed.look.peer else { return Ok(()) };
        match self.patience.check(peer, self.limits().bad_signatures_per_minute, clock::now_s()) {
            Ok(()) => Ok(()),
            Err(_) if self.vouched(claimed, peer) => Ok(()),
            Err(seconds) => Err(Refusal::from(Code::PaymentRateLimited).retry_after(seconds)),
        }
    }

    /// Before a node is asked for somebody who may be a stranger. Questions under way count as those that came to nothing
    /// do: a thousand must not be asked before the first is answered.
    pub(super) fn ask(&self, claimed: &Claimed<'_>) -> Result<(), Refusal> {
        let Look { peer: Some(peer), asked, .. } = &claimed.look else { return Ok(()) };
        if asked.get().is_some() {
            return Ok(());
        }
        self.bear(claimed)?;
        asked.get_or_init(|| self.patience.count(*peer, clock::now_s()));
        Ok(())
    }

    /// Whether a node may be asked if a channel that has spent all it had got more meanwhile. Nothing vouches for that: the
    /// books hear of a deposit by themselves, and a payer could ask at each request.
    pub(super) fn may_ask_again(&self, claimed: &Claimed<'_>) -> bool {
        let Look { peer: Some(peer), asked, strict } = &claimed.look else { return true };
        strict.store(true, Ordering::Relaxed);
        let now = clock::now_s();
        if asked.get().is_none() {
            if self.patience.check(*peer, self.limits().bad_signatures_per_minute, now).is_err() {
                return false;
            }
            asked.get_or_init(|| self.patience.count(*peer, now));
        }
        true
    }

    /// What became of it.
    pub(super) fn looked(&self, claimed: &Claimed<'_>, outcome: &Result<Admission, Refusal>) {
        let Look { peer: Some(peer), asked, strict } = &claimed.look else { return };
        match outcome {
            // One that is served vouches for its channel when it is charged.
            Ok(_) => {}
            Err(refusal) => {
                if is_forgery(refusal) {
                    let now = clock::now_s();
                    self.accounts.forged(&claimed.id, *peer, self.in_step(claimed), now);
                    if asked.get().is_none() {
                        self.patience.count(*peer, now);
                    }
                }
                if is_nothing(refusal) || (strict.load(Ordering::Relaxed) && refusal.is_the_clients()) {
                    return;
                }
            }
        }
        if let Some(since) = asked.get() {
            self.patience.take_back(*peer, *since);
        }
    }

    fn vouched(&self, claimed: &Claimed<'_>, peer: u64) -> bool {
        self.accounts.is_vouched_for(&claimed.id, peer, self.in_step(claimed), clock::now_s())
    }

    /// Whether arithmetic has nothing against the voucher. That of a refund is in no step: it pays for nothing.
    fn in_step(&self, claimed: &Claimed<'_>) -> bool {
        let Claimed { limits, id, voucher, order, due: Some(price), .. } = claimed else { return false };
        let preview = self.accounts.read(id, |channel| {
            channel.preview_hold(voucher.max_claimable, *price, *order, *limits, clock::now_s()).is_ok()
        });
        preview.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_800_000_000;

    #[test]
    fn a_peer_has_so_many_a_minute_and_others_have_theirs() {
        let patience = Patience::default();
        assert_eq!(patience.check(1, 1, NOON), Ok(()), "nothing is counted yet");
        for counted in 1..=3 {
            assert_eq!(patience.check(1, 3, NOON + counted), Ok(()));
            patience.count(1, NOON + counted);
        }
        assert_eq!(patience.check(1, 3, NOON + 3), Err(58), "its minute began with the first");
        assert_eq!(patience.check(1, 4, NOON + 3), Ok(()));
        assert_eq!(patience.check(2, 1, NOON + 3), Ok(()));
        assert_eq!(patience.check(1, 3, NOON + 60), Err(1));
        assert_eq!(patience.check(1, 3, NOON + 61), Ok(()), "a new minute");
        patience.count(1, NOON + 61);
        assert_eq!(patience.check(1, 2, NOON + 61), Ok(()), "begins with one");
        assert_eq!(patience.check(1, 1, NOON + 61), Err(60));
    }

    #[test]
    fn what_was_worth_it_is_taken_back_and_what_is_of_another_minute_is_not() {
        let patience = Patience::default();
        let first = patience.count(7, NOON);
        let second = patience.count(7, NOON + 5);
        assert_eq!(first, second, "it is the minute that counts");
        patience.take_back(7, first);
        assert_eq!((patience.check(7, 2, NOON), patience.check(7, 1, NOON)), (Ok(()), Err(60)));
        patience.count(7, NOON + 60);
        patience.take_back(7, first);
        assert_eq!(patience.check(7, 1, NOON + 60), Err(60));
        patience.take_back(8, first);
    }

    #[test]
    fn a_clock_that_is_set_back_begins_a_new_minute() {
        let patience = Patience::default();
        patience.count(7, NOON);
        assert_eq!(patience.check(7, 1, NOON - 1), Ok(()));
        patience.count(7, NOON - 1);
        assert_eq!(patience.check(7, 1, NOON - 1), Err(60));
    }

    #[test]
    fn a_count_does_not_run_over_into_its_neighbours() {
        let most = (1 << COUNT_BITS) - 1;
        let full = Count { tag: (1 << TAG_BITS) - 1, since: (1 << SINCE_BITS) - 1, count: most };
        assert_eq!((full.pack(), Count::unpack(u64::MAX)), (u64::MAX, full));
        let patience = Patience::default();
        patience.count(7, NOON);
        let (set, _) = patience.set(7);
        let place = set.iter().find(|place| place.load(Ordering::Relaxed) != 0).unwrap();
        let held = Count::unpack(place.load(Ordering::Relaxed));
        place.store(Count { count: most, ..held }.pack(), Ordering::Relaxed);
        patience.count(7, NOON);
        assert_eq!(Count::unpack(place.load(Ordering::Relaxed)), Count { count: most, ..held });
        // No limit that a config allows is above what can be counted.
        assert!(most >= 1_000_000);
    }

    /// Peers that share a set.
    fn neighbours(patience: &Patience) -> Vec<u64> {
        let set = |peer| patience.set(peer).0.as_ptr();
        (2..).filter(|peer| set(*peer) == set(1)).take(WAYS + 1).collect()
    }

    #[test]
    fn memory_is_fixed_and_whoever_did_least_is_forgotten_first() {
        let patience = Patience::default();
        let neighbours = neighbours(&patience);
        let (last, first) = neighbours.split_last().unwrap();
        for (index, peer) in first.iter().enumerate() {
            for _ in 0..=index {
                patience.count(*peer, NOON);
            }
        }
        assert!(first.iter().all(|peer| patience.check(*peer, 1, NOON).is_err()), "there is a place for each");
        patience.count(*last, NOON);
        let remembered: Vec<_> = neighbours.iter().map(|peer| patience.check(*peer, 1, NOON).is_err()).collect();
        assert_eq!(remembered, [false, true, true, true, true]);
        assert!(patience.check(first[WAYS - 1], 4, NOON).is_err(), "and those that did most keep their counts");
        // Those whose minute is over go before anybody else.
        patience.count(first[0], NOON + 60);
        patience.count(first[0], NOON + 60);
        let remembered: Vec<_> = neighbours.iter().map(|peer| patience.check(*peer, 1, NOON + 60).is_err()).collect();
        assert_eq!(remembered, [true, false, false, false, false]);
        assert_eq!(patience.sets.len() * WAYS, MAX_DOUBTED);
    }

    #[test]
    fn counts_from_many_threads_all_count() {
        let patience = Patience::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        patience.count(7, NOON);
                    }
                });
            }
        });
        // One that loses its race too often may be lost; that is no way out.
        assert!(patience.check(7, 3_900, NOON).is_err());
        assert!(patience.check(7, 4_001, NOON).is_ok());
    }
}
