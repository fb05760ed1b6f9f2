//! What a gate risks, and how much of its gas strangers may spend.
//!
//! **Owns** the count of deposits that were relayed in the last hour, for each peer and in all, and the same of refunds.
//! **Promises** bounded memory, however many peers there are, and that only what was sent stays counted: who has nothing
//! to deposit must not use up the budget of those who have, nor that of a load balancer behind which all are one peer.
//! **Does not** know who a peer is beyond the address it is told.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::tender::Tender;
use crate::ledger;
use crate::protocol::Amount;

/// How many peers are counted at once. The one whose hour began first is forgotten for one more.
pub const MAX_PEERS: usize = 65_536;

/// What is meant by an hour of deposits, seconds.
const WINDOW_S: u64 = 3_600;

/// How far a gate goes for its payers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many deposits are relayed at our expense.
    pub deposits: DepositLimits,
    /// How many payments of one peer may come to nothing in a minute: vouchers that somebody else signed, and questions to
    /// a node about channels without a deposit. Requests of which no peer is known are not counted.
    pub bad_signatures_per_minute: u32,
    /// How long before an announced withdrawal can be finished nothing is served on its channel any more, seconds.
    pub withdraw_margin_s: u64,
    /// The most that may wait to be claimed on a channel whose payer's own account approves its vouchers (a wallet, which
    /// may refuse at claim time), in units of the preferred token. A price above it is never served on such a channel.
    pub max_wallet_exposure: Amount,
    /// How many requests of one channel may wait for their turn, beside those that are being served.
    pub max_waiting: usize,
    /// How long they do; never longer than the offer promises an answer in.
    pub max_wait: Duration,
    /// How much of a body is read where the price depends on it, bytes; a larger one is refused.
    pub max_matched_body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let ledger::Limits { withdraw_margin_s, max_wallet_exposure, .. } = ledger::Limits::default();
        let (max_waiting, max_wait) = (64, Duration::from_secs(10));
        Self {
            deposits: DepositLimits::default(),
            bad_signatures_per_minute: 60,
            withdraw_margin_s,
            max_wallet_exposure,
            max_waiting,
            max_wait,
            max_matched_body: 1 << 20,
        }
    }
}

impl Limits {
    /// What the ledger has to know of it, and of the terms.
    pub(super) fn of_channels(self, tender: &Tender) -> ledger::Limits {
        let Self { withdraw_margin_s, max_wallet_exposure, .. } = self;
        let (max_wallet_exposure, max_in_flight) = (tender.units(max_wallet_exposure), tender.terms.max_in_flight);
        ledger::Limits { withdraw_margin_s, max_wallet_exposure, max_in_flight }
    }
}

/// How many deposits are relayed at our expense, and how many refunds are paid. A deposit that was tried and not sent does
/// not count once that is known: it cost no gas, and nothing to whoever signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DepositLimits {
    /// For one peer, in an hour that begins with its first. Requests of which no peer is known are not counted so.
    pub per_peer_per_hour: u32,
    /// For all together.
    pub per_hour: u32,
}

impl Default for DepositLimits {
    fn default() -> Self {
        Self { per_peer_per_hour: 200, per_hour: 1_000 }
    }
}

/// Where a request came from, as an extension of it. The listener puts in the address of the connection's other end; in
/// front of a load balancer that is the balancer for everybody, so the budget per peer is then one for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

impl Peer {
    /// What is counted as one: an address, or of version 6 the half that names a network. A household or a machine has
    /// such a half for itself, and as many addresses in it as it likes. No network of version 6 begins as the addresses of
    /// version 4 do here.
    pub(crate) fn key(self) -> u64 {
        match self.0.to_canonical() {
            IpAddr::V4(address) => MAPPED | u64::from(address.to_bits()),
            IpAddr::V6(address) => u64::try_from(address.to_bits() >> 64).unwrap_or(u64::MAX),
        }
    }
}

/// What stands before an address of version 4. As the beginning of one of version 6 that is `0:ffff::/32`, which nobody has.
const MAPPED: u64 = 0xffff << 32;

/// How many were counted since when, Unix seconds.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    since: u64,
    count: u32,
}

impl Count {
    fn is_over(&self, now: u64) -> bool {
        // A clock that was set back begins a new hour too.
        now < self.since || now - self.since >= WINDOW_S
    }

    /// Whether there is room for one more; if not, after how many seconds there is.
    fn check(&self, limit: u32, now: u64) -> Result<(), u64> {
        if self.is_over(now) {
            return if limit == 0 { Err(WINDOW_S) } else { Ok(()) };
        }
        if self.count < limit { Ok(()) } else { Err(self.since.saturating_add(WINDOW_S).saturating_sub(now).max(1)) }
    }

    /// Counts one; true where that began a new hour.
    fn add(&mut self, now: u64) -> bool {
        let begins = self.since == 0 || self.is_over(now);
        if begins {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        begins
    }

    /// One of the hour that began then was none.
    fn take_back(&mut self, since: u64) {
        if self.since == since {
            self.count = self.count.saturating_sub(1);
        }
    }
}

/// The deposits, or the refunds, of the last hour.
#[derive(Debug, Default)]
pub(super) struct Budget(Mutex<Counts>);

/// What one of them used up.
#[derive(Debug)]
pub(super) struct Spent {
    budget: Arc<Budget>,
    /// The hour it was counted in for all.
    since: u64,
    /// Its peer, and the hour it was counted in there.
    peer: Option<(u64, u64)>,
}

impl Spent {
    /// Nothing was sent.
    pub(super) fn give_back(self) {
        let mut counts = self.budget.counts();
        counts.all.take_back(self.since);
        if let Some((network, since)) = self.peer
            && let Some(count) = counts.peers.get_mut(&network)
        {
            count.take_back(since);
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    all: Count,
    peers: HashMap<u64, Count>,
    /// The peers in the order in which their hours began. One whose hour is over or began anew is in it once more.
    order: VecDeque<(u64, u64)>,
}

impl Budget {
    /// Counts one, if there is room for it; otherwise after how many seconds there is.
    pub(super) fn spend(self: &Arc<Self>, peer: Option<Peer>, limits: DepositLimits, now: u64) -> Result<Spent, u64> {
        let mut counts = self.counts();
        counts.spend(peer, limits, now)?;
        let since = |key: u64| counts.peers.get(&key).map(|count| (key, count.since));
        let peer = peer.map(Peer::key).and_then(since);
        Ok(Spent { budget: Arc::clone(self), since: counts.all.since, peer })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn spend(&mut self, peer: Option<Peer>, limits: DepositLimits, now: u64) -> Result<(), u64> {
        self.all.check(limits.per_hour, now)?;
        if let Some(network) = peer.map(Peer::key) {
            self.forget(now);
            // What is not counted is not remembered either.
            self.peers.get(&network).copied().unwrap_or_default().check(limits.per_peer_per_hour, now)?;
            if self.peers.entry(network).or_default().add(now) {
                self.order.push_back((now, network));
            }
        }
        self.all.add(now);
        Ok(())
    }

    /// Forgets peers whose hour is over, and the oldest where there are too many.
    fn forget(&mut self, now: u64) {
        while let Some((since, network)) = self.order.front().copied() {
            let over = Count { since, count: 0 }.is_over(now);
            if !over && self.order.len() < MAX_PEERS {
                break;
            }
            self.order.pop_front();
            if self.peers.get(&network).is_some_and(|count| count.since == since) {
                self.peers.remove(&network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: DepositLimits = DepositLimits { per_peer_per_hour: 2, per_hour: 5 };
    const NOON: u64 = 1_800_000_000;

    fn peer(text: &str) -> Option<Peer> {
        Some(Peer(text.parse().unwrap()))
    }

    #[test]
    fn a_peer_has_so_many_deposits_an_hour_and_all_have_so_many_together() {
        let mut counts = Counts::default();
        assert_eq!(counts.spend(peer("192.0.2.1"), LIMITS, NOON), Ok(()));
        assert_eq!(counts.spend(peer("192.0.2.1"), LIMITS, NOON + 10), Ok(()));
        assert_eq!(counts.spend(peer("192.0.2.1"), LIMITS, NOON + 10), Err(3_590));
        assert_eq!(counts.spend(peer("192.0.2.1"), LIMITS, NOON + 3_599), Err(1));
        assert_eq!(counts.spend(peer("192.0.2.2"), LIMITS, NOON + 20), Ok(()), "another peer has its own");
        assert_eq!(counts.spend(None, LIMITS, NOON + 20), Ok(()), "no peer, no budget of its own");
        assert_eq!(counts.spend(None, LIMITS, NOON + 20), Ok(()));
        assert_eq!(counts.spend(None, LIMITS, NOON + 20), Err(3_580), "but that of all");
        assert_eq!(counts.spend(peer("192.0.2.9"), LIMITS, NOON + 3_599), Err(1));
        assert_eq!(counts.spend(peer("192.0.2.9"), LIMITS, NOON + 3_600), Ok(()));
        assert_eq!(counts.spend(peer("192.0.2.1"), LIMITS, NOON + 3_600), Ok(()), "a new hour");
    }

    #[test]
    fn what_is_refused_is_not_counted() {
        let mut counts = Counts::default();
        for _ in 0..2 {
            assert_eq!(counts.spend(peer("192.0.2.1"), LIMITS, NOON), Ok(()));
        }
        for _ in 0..10 {
            assert!(counts.spend(peer("192.0.2.1"), LIMITS, NOON).is_err());
        }
        assert_eq!(counts.all.count, 2);
        let none = DepositLimits { per_peer_per_hour: 0, per_hour: 5 };
        assert_eq!(counts.spend(peer("192.0.2.7"), none, NOON), Err(3_600));
        assert_eq!((counts.all.count, counts.peers.len()), (2, 1), "nor remembered");
    }

    #[test]
    fn a_network_of_version_6_is_one_peer_and_a_mapped_address_is_what_it_maps() {
        let mut counts = Counts::default();
        let limits = DepositLimits { per_peer_per_hour: 1, per_hour: 100 };
        assert_eq!(counts.spend(peer("2001:db8:1:2::1"), limits, NOON), Ok(()));
        assert!(counts.spend(peer("2001:db8:1:2:ffff::9"), limits, NOON).is_err());
        assert_eq!(counts.spend(peer("2001:db8:1:3::1"), limits, NOON), Ok(()));
        assert_eq!(counts.spend(peer("::ffff:192.0.2.1"), limits, NOON), Ok(()));
        assert!(counts.spend(peer("192.0.2.1"), limits, NOON).is_err());
        assert_eq!(counts.spend(peer("192.0.2.2"), limits, NOON), Ok(()), "of version 4 each address is one");
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_is_forgotten_first() {
        let mut counts = Counts::default();
        let limits = DepositLimits { per_peer_per_hour: 1, per_hour: u32::MAX };
        let nth = |n: u32| Some(Peer(IpAddr::from(n.to_be_bytes())));
        let most = u32::try_from(MAX_PEERS).unwrap();
        for n in 0..most {
            assert_eq!(counts.spend(nth(n), limits, NOON), Ok(()));
        }
        assert_eq!((counts.peers.len(), counts.order.len()), (MAX_PEERS, MAX_PEERS));
        assert_eq!(counts.spend(nth(most), limits, NOON + 1), Ok(()));
        assert_eq!((counts.peers.len(), counts.order.len()), (MAX_PEERS, MAX_PEERS));
        assert!(counts.spend(nth(most - 1), limits, NOON + 1).is_err(), "a younger one is remembered");
        assert_eq!(counts.spend(nth(0), limits, NOON + 1), Ok(()), "the oldest is not");
        // After an hour all are forgotten.
        assert_eq!(counts.spend(nth(7), limits, NOON + 3_601), Ok(()));
        assert_eq!((counts.peers.len(), counts.order.len()), (1, 1));
    }

    #[test]
    fn what_was_not_sent_is_given_back() {
        let budget = Arc::new(Budget::default());
        let limits = DepositLimits { per_peer_per_hour: 1, per_hour: 2 };
        for n in 0..10 {
            for _ in 0..2 {
                budget.spend(Some(Peer(IpAddr::from([192, 0, 2, n]))), limits, NOON).unwrap().give_back();
            }
        }
        assert_eq!(budget.counts().order.len(), 10, "a peer is remembered once");
        let sent = budget.spend(peer("192.0.2.1"), limits, NOON).unwrap();
        assert_eq!(budget.spend(peer("192.0.2.1"), limits, NOON).err(), Some(3_600));
        drop(budget.spend(peer("192.0.2.2"), limits, NOON).unwrap());
        assert_eq!(budget.spend(peer("192.0.2.3"), limits, NOON).err(), Some(3_600), "what was sent stays counted");
        // The count of another hour is not its own.
        drop(budget.spend(peer("192.0.2.3"), limits, NOON + 3_600).unwrap());
        sent.give_back();
        drop(budget.spend(peer("192.0.2.5"), limits, NOON + 3_600).unwrap());
        assert!(budget.spend(peer("192.0.2.4"), limits, NOON + 3_600).is_err());
    }

    #[test]
    fn a_clock_that_is_set_back_begins_a_new_hour() {
        let mut counts = Counts::default();
        let limits = DepositLimits { per_peer_per_hour: 1, per_hour: 1 };
        assert_eq!(counts.spend(peer("192.0.2.1"), limits, NOON), Ok(()));
        assert_eq!(counts.spend(peer("192.0.2.1"), limits, NOON - 1), Ok(()));
        assert!(counts.spend(peer("192.0.2.1"), limits, NOON).is_err());
    }
}
