//! What one peer may have of something that all share.
//!
//! **Owns** the sums, each under a keyed hash of its peer. **Promises** no lock, and the same memory however many peers
//! there are. Peers whose hashes fall together have one share; nobody can bring that about, because nobody knows the key.
//! **Does not** count who stands for many ([`Caller::stands_for_many`]), nor the whole of what is shared.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::Caller;
use crate::gate;

/// One peer has this part of all at most: one in so many.
const SHARE: usize = 4;

/// How many sums there are, as a power of two. With a thousand peers at once, one in four shares its sum with another.
const SUMS: u32 = 12;

/// The sums of all peers.
#[derive(Debug)]
pub(super) struct Shares {
    most: usize,
    key: u64,
    sums: Box<[AtomicUsize]>,
}

/// Where a peer's sum is; nowhere if it is not counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Account(Option<u16>);

impl Shares {
    /// Each peer may have its share of so much.
    pub(super) fn of(all: usize) -> Self {
        // Odd, so that no two peers are made equal.
        let key = getrandom::u64().expect("the system has random bytes: keys are made of them") | 1;
        let sums = (0..1_u64 << SUMS).map(|_| AtomicUsize::new(0)).collect();
        Self { most: (all / SHARE).max(1), key, sums }
    }

    /// Where this one's sum is.
    pub(super) fn account(&self, caller: &Caller) -> Account {
        if caller.stands_for_many {
            return Account(None);
        }
        let hash = gate::Peer(caller.address).key().wrapping_mul(self.key);
        Account(u16::try_from(hash >> (u64::BITS - SUMS)).ok())
    }

    /// Adds so much to it. False if that were more than its share, and nothing is added then.
    pub(super) fn add(&self, account: Account, more: usize) -> bool {
        let add = |sum: usize| sum.checked_add(more).filter(|sum| *sum <= self.most);
        self.sum(account).is_none_or(|sum| sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok())
    }

    /// Takes back so much of what was added.
    pub(super) fn take_back(&self, account: Account, less: usize) {
        if let Some(sum) = self.sum(account) {
            sum.fetch_sub(less, Ordering::Relaxed);
        }
    }

    fn sum(&self, Account(at): Account) -> Option<&AtomicUsize> {
        self.sums.get(usize::from(at?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(text: &str) -> Caller {
        Caller::new(std::net::SocketAddr::new(text.parse().unwrap(), 1))
    }

    #[test]
    fn a_peer_has_a_quarter_and_others_have_theirs() {
        let shares = Shares::of(8);
        let one = shares.account(&caller("192.0.2.1"));
        assert!(shares.add(one, 1) && shares.add(one, 1) && !shares.add(one, 1));
        let same = shares.account(&caller("::ffff:192.0.2.1"));
        assert!(!shares.add(same, 1), "the same one, otherwise written");
        let others = (2..=101).map(|n| shares.account(&caller(&format!("192.0.2.{n}"))));
        let served = others.filter(|other| shares.add(*other, 1)).count();
        assert!(served > 90, "few fall together: {served}");
        shares.take_back(one, 1);
        assert!(shares.add(one, 1) && !shares.add(one, 1));
        assert!(Shares::of(1).add(one, 1), "never less than one");
    }

    #[test]
    fn this_machine_has_as_much_as_it_wants() {
        let shares = Shares::of(8);
        for text in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            let account = shares.account(&caller(text));
            assert!((0..100).all(|_| shares.add(account, 1)));
            shares.take_back(account, 100);
        }
    }
}
