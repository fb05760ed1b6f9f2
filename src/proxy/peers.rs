//! How many connections one peer has.
//!
//! **Owns** the count for each address, of version 6 for each half that names a network. **Promises** that memory is
//! bounded by the connections there are. **Does not** count this machine's own, unless told to: whoever connects from there
//! is somebody's TLS or load balancer, and stands for all. One on another machine stands for all as well, and gets by with
//! the share of one peer, because it uses its connections again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::gate;

/// One peer has this part of all connections at most: one in so many.
const SHARE: usize = 4;

/// The connections of each peer. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    most: usize,
    counts_loopback: bool,
    counts: Arc<Mutex<HashMap<u64, usize>>>,
}

/// A connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    /// Nothing where it is not counted.
    counted: Option<(Peers, u64)>,
}

impl Peers {
    /// Each may have its share of so many connections.
    pub(super) fn sharing(connections: usize) -> Self {
        Self { most: (connections / SHARE).max(1), counts_loopback: false, counts: Arc::default() }
    }

    /// Each may have so many, this machine too.
    pub(super) fn up_to(most: usize) -> Self {
        Self { most, counts_loopback: true, counts: Arc::default() }
    }

    /// A seat for one more connection, if its peer may have it.
    pub(super) fn sit(&self, address: IpAddr) -> Option<Seat> {
        if address.to_canonical().is_loopback() && !self.counts_loopback {
            return Some(Seat { counted: None });
        }
        let peer = gate::Peer(address).key();
        let mut counts = self.counts();
        let count = counts.get(&peer).copied().unwrap_or(0);
        if count >= self.most {
            return None;
        }
        counts.insert(peer, count + 1);
        Some(Seat { counted: Some((self.clone(), peer)) })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some((peers, peer)) = &self.counted else { return };
        if let Entry::Occupied(mut count) = peers.counts().entry(*peer) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_peer_has_a_quarter_of_all_connections_and_others_have_theirs() {
        let peers = Peers::sharing(8);
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let first = peers.sit(one).unwrap();
        let second = peers.sit(one).unwrap();
        assert!(peers.sit(one).is_none());
        assert!(peers.sit(address("::ffff:192.0.2.1")).is_none(), "the same one, otherwise written");
        let third = peers.sit(other).unwrap();
        drop(first);
        let again = peers.sit(one).unwrap();
        assert!(peers.sit(one).is_none());
        drop((second, third, again));
        assert!(peers.counts().is_empty(), "who has none is not remembered");
    }

    #[test]
    fn a_network_of_version_6_is_one_peer() {
        let peers = Peers::sharing(4);
        let _seat = peers.sit(address("2001:db8:1:2::1")).unwrap();
        assert!(peers.sit(address("2001:db8:1:2:3::4")).is_none());
        assert!(peers.sit(address("2001:db8:1:3::1")).is_some());
    }

    #[test]
    fn this_machine_is_counted_only_if_said() {
        let peers = Peers::sharing(1);
        for text in ["127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1"] {
            let seats: Vec<_> = (0..9).map(|_| peers.sit(address(text))).collect();
            assert!(seats.iter().all(Option::is_some), "{text}");
        }
        let peers = Peers::up_to(1);
        let _seat = peers.sit(address("127.0.0.1")).unwrap();
        assert!(peers.sit(address("127.0.0.1")).is_none());
        assert!(Peers::up_to(0).sit(address("127.0.0.1")).is_none());
    }
}
