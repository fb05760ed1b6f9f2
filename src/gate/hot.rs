//! The tables of the keys that pay most.
//!
//! **Owns** a cache of [`KeyTable`]s by signer, and the count of vouchers after which a key gets one. **Promises** that memory
//! is bounded, that a table is built off the request's path, and that a lookup takes no lock but that of a shard, for
//! reading. **Does not** verify; without a table the curve work takes the long way and nothing else changes.
//!
//! Who could push honest tables out? Only vouchers that verified count, and only those of channels in the books, so that
//! each key costs its owner a deposit on chain. Somebody with more such keys than there is room, who sends
//! [`PROVEN_AFTER`] good vouchers with each, gets them all in, one or two at a time. What leaves then is what was not
//! used since the hand last came by; a table that is used stays for some rounds more. Pushed out, a key pays the long way
//! until its next [`PROVEN_AFTER`] vouchers: it gets slower, never refused.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;

use crate::protocol::hot::KeyTable;
use crate::protocol::{Address, Hash, Signature};

/// From how many verified vouchers on a key is worth a table, which costs as much to build as six verifications save.
pub const PROVEN_AFTER: u8 = 8;

/// How many keys are counted at once, some 3 MB. All counts begin anew for one more.
const MAX_COUNTED: usize = 65_536;

/// How many tables are built at once. A key that finds no place asks again with its next voucher.
const MAX_BUILDS: usize = 2;

/// How often the hand passes a table that was used often before it goes.
const MAX_USES: u8 = 3;

/// What a table takes in the cache, bytes: itself, its places in the map and in the round, and the allocator's share.
const TABLE_BYTES: usize = KeyTable::BYTES + 512;

/// Tables of keys that sign often. Cheap to clone; all clones are the same cache.
#[derive(Debug, Clone)]
pub struct HotKeys {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The most tables.
    capacity: usize,
    tables: DashMap<Address, Entry>,
    counts: Mutex<Counts>,
    /// The signers with a table, in the order in which the hand comes to them.
    round: Mutex<VecDeque<Address>>,
}

#[derive(Debug)]
struct Entry {
    table: Arc<KeyTable>,
    /// Uses since the hand came by, as far as [`MAX_USES`].
    uses: AtomicU8,
}

#[derive(Debug, Default)]
struct Counts {
    verified: HashMap<Address, u8>,
    building: Vec<Address>,
}

impl HotKeys {
    /// What the tables may take where nobody says otherwise, bytes: some 14,800 keys.
    pub const DEFAULT_BYTES: usize = 384 << 20;

    /// A cache of at most so many bytes. Less than one table takes, so zero too, turns it off.
    pub fn new(max_bytes: usize) -> Self {
        let (tables, counts, round) = (DashMap::new(), Mutex::default(), Mutex::default());
        Self { inner: Arc::new(Inner { capacity: max_bytes / TABLE_BYTES, tables, counts, round }) }
    }

    /// How many tables there are.
    pub fn len(&self) -> usize {
        self.inner.tables.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.inner.tables.is_empty()
    }

    /// The signer's table.
    pub(super) fn table(&self, signer: Address) -> Option<Arc<KeyTable>> {
        if self.inner.capacity == 0 {
            return None;
        }
        let entry = self.inner.tables.get(&signer)?;
        // Two at once may count as one, and a full count is not written: it would cost the other cores their copy.
        let uses = entry.uses.load(Ordering::Relaxed);
        if uses < MAX_USES {
            entry.uses.store(uses + 1, Ordering::Relaxed);
        }
        Some(entry.table.clone())
    }

    /// Counts a voucher that verified the long way and is of a channel in the books. `signed` says what was signed, and is
    /// asked when the key has proven itself; its table is built elsewhere, where there is a runtime.
    pub(super) fn proved(&self, signer: Address, signed: impl FnOnce() -> (Hash, Signature)) {
        if self.inner.capacity == 0 || !self.inner.count(signer) {
            return;
        }
        // Given back however the build ends.
        let place = Place { inner: self.inner.clone(), signer };
        let (digest, signature) = signed();
        let build = move || place.build(digest, &signature);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(build)),
            Err(_) => build(),
        }
    }
}

impl Default for HotKeys {
    fn default() -> Self {
        Self::new(Self::DEFAULT_BYTES)
    }
}

impl Inner {
    /// Counts one more; whether a table is to be built now.
    fn count(&self, signer: Address) -> bool {
        let mut counts = lock(&self.counts);
        if counts.verified.len() >= MAX_COUNTED && !counts.verified.contains_key(&signer) {
            counts.verified.clear();
        }
        let count = counts.verified.entry(signer).or_default();
        *count = count.saturating_add(1).min(PROVEN_AFTER);
        if *count < PROVEN_AFTER || counts.building.len() >= MAX_BUILDS || self.tables.contains_key(&signer) {
            return false;
        }
        counts.verified.remove(&signer);
        counts.building.push(signer);
        true
    }

    /// Takes a table in, and for it others out.
    fn insert(&self, table: KeyTable) {
        let signer = table.signer();
        let mut round = lock(&self.round);
        if self.tables.contains_key(&signer) {
            return;
        }
        while round.len() >= self.capacity {
            let Some(next) = round.pop_front() else { return };
            let used = self.tables.get(&next).is_some_and(|entry| {
                let uses = entry.uses.load(Ordering::Relaxed);
                entry.uses.store(uses.saturating_sub(1), Ordering::Relaxed);
                uses > 0
            });
            if used {
                round.push_back(next);
            } else {
                self.tables.remove(&next);
            }
        }
        round.push_back(signer);
        self.tables.insert(signer, Entry { table: Arc::new(table), uses: AtomicU8::new(0) });
    }
}

/// One of the [`MAX_BUILDS`].
struct Place {
    inner: Arc<Inner>,
    signer: Address,
}

impl Place {
    fn build(self, digest: Hash, signature: &Signature) {
        KeyTable::prepare();
        // It verified, so it recovers; if it did not, or to somebody else, there would be nothing to keep.
        if let Ok(table) = KeyTable::recover(digest, signature)
            && table.signer() == self.signer
        {
            self.inner.insert(table);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.inner.counts).building.retain(|signer| *signer != self.signer);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::LocalKey;

    const DIGEST: Hash = Hash([3; 32]);

    fn key(n: u8) -> LocalKey {
        LocalKey::from_bytes(&[n; 32]).unwrap()
    }

    /// So many good vouchers of a key; without a runtime, so that a table is there at once.
    fn prove(keys: &HotKeys, n: u8, vouchers: u8) {
        for _ in 0..vouchers {
            keys.proved(key(n).address(), || (DIGEST, key(n).sign(DIGEST)));
        }
    }

    fn has(keys: &HotKeys, n: u8) -> bool {
        keys.inner.tables.contains_key(&key(n).address())
    }

    #[test]
    fn a_key_has_a_table_from_its_eighth_voucher_on() {
        let keys = HotKeys::default();
        prove(&keys, 1, PROVEN_AFTER - 1);
        assert!(keys.table(key(1).address()).is_none());
        prove(&keys, 1, 1);
        let table = keys.table(key(1).address()).unwrap();
        assert_eq!(table.signer(), key(1).address());
        assert_eq!(table.verify(DIGEST, &key(1).sign(DIGEST)), Ok(()));
        assert!(keys.table(key(2).address()).is_none());
        prove(&keys, 1, 3 * PROVEN_AFTER);
        assert_eq!(keys.len(), 1);
    }

    #[test]
    fn a_signature_of_another_key_makes_no_table() {
        let keys = HotKeys::default();
        for _ in 0..2 * PROVEN_AFTER {
            keys.proved(key(1).address(), || (DIGEST, key(2).sign(DIGEST)));
        }
        assert!(keys.is_empty());
    }

    #[test]
    fn the_memory_is_bounded_and_what_is_used_stays() {
        let keys = HotKeys::new(3 * TABLE_BYTES);
        for n in 1..=3 {
            prove(&keys, n, PROVEN_AFTER);
        }
        assert_eq!(keys.len(), 3);
        for n in 4..=20 {
            assert!(keys.table(key(2).address()).is_some());
            prove(&keys, n, PROVEN_AFTER);
            assert_eq!((keys.len(), lock(&keys.inner.round).len()), (3, 3));
            assert!(has(&keys, n));
        }
        assert!(has(&keys, 2) && !has(&keys, 1) && !has(&keys, 3));
    }

    #[test]
    fn a_table_that_is_used_no_more_goes() {
        let keys = HotKeys::new(2 * TABLE_BYTES);
        prove(&keys, 1, PROVEN_AFTER);
        for _ in 0..100 {
            keys.table(key(1).address());
        }
        for n in 2..=10 {
            prove(&keys, n, PROVEN_AFTER);
        }
        assert!(!has(&keys, 1));
        prove(&keys, 1, PROVEN_AFTER);
        assert!(has(&keys, 1));
    }

    #[test]
    fn without_room_for_one_table_there_is_none() {
        for bytes in [0, TABLE_BYTES - 1] {
            let keys = HotKeys::new(bytes);
            prove(&keys, 1, 2 * PROVEN_AFTER);
            assert!(keys.is_empty() && keys.table(key(1).address()).is_none());
            assert!(lock(&keys.inner.counts).verified.is_empty());
        }
        let keys = HotKeys::new(TABLE_BYTES);
        prove(&keys, 1, PROVEN_AFTER);
        assert_eq!(keys.len(), 1);
    }

    #[test]
    fn as_many_keys_are_counted_as_are_bounded() {
        let keys = HotKeys::default();
        let address = |n: usize| {
            let mut bytes = [0u8; 20];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            Address(bytes)
        };
        for n in 0..MAX_COUNTED {
            assert!(!keys.inner.count(address(n)));
        }
        assert_eq!(lock(&keys.inner.counts).verified.len(), MAX_COUNTED);
        // One that is counted already needs no room.
        keys.inner.count(address(0));
        assert_eq!(lock(&keys.inner.counts).verified.len(), MAX_COUNTED);
        keys.inner.count(address(MAX_COUNTED));
        assert_eq!(lock(&keys.inner.counts).verified.len(), 1);
    }

    #[test]
    fn at_most_two_tables_are_built_at_once_and_none_twice() {
        let keys = HotKeys::default();
        let proven = |n: u8| (0..PROVEN_AFTER).filter(|_| keys.inner.count(key(n).address())).count() == 1;
        assert!(proven(1) && proven(2) && !proven(3));
        let place = Place { inner: keys.inner.clone(), signer: key(1).address() };
        place.build(DIGEST, &key(1).sign(DIGEST));
        // Its count was complete, so it gets the place that is free now.
        assert!(keys.inner.count(key(3).address()));
        assert_eq!(lock(&keys.inner.counts).building, [key(2).address(), key(3).address()]);
    }

    #[tokio::test]
    async fn where_there_is_a_runtime_the_table_is_built_beside_the_request() {
        let keys = HotKeys::default();
        prove(&keys, 1, PROVEN_AFTER);
        while keys.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(has(&keys, 1));
    }
}
