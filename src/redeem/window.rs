//! The window: what was read of the newest blocks, to notice when a reorganisation replaces them.
//!
//! **Owns** the hashes of blocks that were read and the channels of ours that had events in them. **Promises** that it
//! never spans more than [`WINDOW_BLOCKS`]. **Does not** ask the chain. Of blocks that were read many at once it knows the
//! last one and those with events; going back a little too far does no harm.

use std::collections::{BTreeMap, BTreeSet};

use crate::protocol::{ChannelId, Hash};

/// How far back blocks are remembered. A reorganisation that goes deeper is answered by reading every open channel.
pub(super) const WINDOW_BLOCKS: u64 = 256;

/// What was read of the newest blocks, by number.
#[derive(Debug, Default)]
pub(super) struct Window(BTreeMap<u64, Seen>);

#[derive(Debug)]
struct Seen {
    hash: Hash,
    touched: BTreeSet<ChannelId>,
}

impl Window {
    /// The newest block that was read, up to this one.
    pub(super) fn newest_up_to(&self, number: u64) -> Option<(u64, Hash)> {
        self.0.range(..=number).next_back().map(|(number, seen)| (*number, seen.hash))
    }

    /// The newest block that was read, below this one.
    pub(super) fn newest_below(&self, number: u64) -> Option<(u64, Hash)> {
        self.0.range(..number).next_back().map(|(number, seen)| (*number, seen.hash))
    }

    /// The oldest block that is remembered.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.0.keys().next().copied()
    }

    /// Notes a block that was read, and a channel that had an event in it. A block that is known by another hash keeps the
    /// one it was first read by: if that one was replaced, the next look finds out.
    pub(super) fn note(&mut self, number: u64, hash: Hash, channel: Option<ChannelId>) {
        self.0.entry(number).or_insert_with(|| Seen { hash, touched: BTreeSet::new() }).touched.extend(channel);
        let newest = self.0.keys().next_back().copied().unwrap_or(number);
        self.0 = self.0.split_off(&newest.saturating_sub(WINDOW_BLOCKS.saturating_sub(1)));
    }

    /// Forgets the blocks after `common`, all where there is none; the channels that had events in them.
    pub(super) fn drop_after(&mut self, common: Option<u64>) -> BTreeSet<ChannelId> {
        let dropped = self.0.split_off(&common.map_or(0, |common| common.saturating_add(1)));
        dropped.into_values().flat_map(|seen| seen.touched).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u8) -> Hash {
        Hash([n; 32])
    }

    fn channel(n: u8) -> ChannelId {
        ChannelId([n; 32])
    }

    #[test]
    fn what_had_events_after_the_common_block_is_told() {
        let mut window = Window::default();
        for (number, touched) in [(10, Some(1)), (11, None), (12, Some(2)), (12, Some(3)), (14, Some(2))] {
            window.note(number, hash(1), touched.map(channel));
        }
        assert_eq!(window.newest_up_to(14), Some((14, hash(1))));
        assert_eq!(window.newest_up_to(13), Some((12, hash(1))), "block 13 was not the last of what was read at once");
        assert_eq!((window.newest_below(12), window.newest_below(10)), (Some((11, hash(1))), None));
        assert_eq!(window.drop_after(Some(11)), BTreeSet::from([channel(2), channel(3)]));
        assert_eq!(window.newest_up_to(u64::MAX), Some((11, hash(1))));
        assert_eq!(window.drop_after(Some(11)), BTreeSet::new());
        assert_eq!(window.drop_after(None), BTreeSet::from([channel(1)]));
        assert_eq!(window.oldest(), None);
    }

    #[test]
    fn the_window_is_bounded_and_moves_with_the_chain() {
        let mut window = Window::default();
        for number in 0..1_000 {
            window.note(number, hash(1), Some(channel(1)));
        }
        assert_eq!((window.oldest(), window.0.len()), (Some(1_000 - WINDOW_BLOCKS), 256));
        window.note(5_000, hash(1), None);
        assert_eq!((window.oldest(), window.0.len()), (Some(5_000), 1));
        // One from before the window is none of its business.
        window.note(3, hash(1), Some(channel(1)));
        assert_eq!(window.oldest(), Some(5_000));
    }

    #[test]
    fn a_block_keeps_the_hash_it_was_first_read_by() {
        let mut window = Window::default();
        window.note(7, hash(1), None);
        window.note(7, hash(2), Some(channel(1)));
        assert_eq!(window.newest_up_to(7), Some((7, hash(1))));
        assert_eq!(window.drop_after(Some(6)), BTreeSet::from([channel(1)]));
    }
}
