//! What was booked of blocks before the follower read them.
//!
//! A channel is read when a transaction of ours was mined, when somebody pays from it, and by the sweep; and a reorganisation
//! may take the block of that view away before the follower gets there: then there is no event that it could miss. **Owns**
//! the list of such channels. **Promises** that each stays on it until its block was read and it was read again. **Does not**
//! read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::protocol::ChannelId;

/// How many channels are kept in mind. The sweep finds what is wrong with others.
const MAX_UNREAD: usize = 4_096;

/// Channels, each with the block of the view that was booked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unread(Arc<Mutex<BTreeMap<ChannelId, u64>>>);

impl Unread {
    /// A view of this block was booked.
    pub(super) fn note(&self, channel: ChannelId, block: u64) {
        let mut unread = self.lock();
        if unread.len() < MAX_UNREAD || unread.contains_key(&channel) {
            let newest = unread.entry(channel).or_insert(block);
            *newest = block.max(*newest);
        }
    }

    /// The channels with views of blocks up to this one, and those blocks.
    pub(crate) fn up_to(&self, block: u64) -> BTreeMap<ChannelId, u64> {
        self.lock().iter().filter(|(_, of)| **of <= block).map(|(channel, of)| (*channel, *of)).collect()
    }

    /// These were read again, at these blocks. One that was noted with a later block meanwhile stays.
    pub(crate) fn done(&self, read: &BTreeMap<ChannelId, u64>) {
        self.lock().retain(|channel, block| read.get(channel).is_none_or(|read| *block > *read));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ChannelId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(n: u8) -> ChannelId {
        ChannelId([n; 32])
    }

    #[test]
    fn a_channel_stays_until_its_newest_view_was_read_again() {
        let unread = Unread::default();
        unread.note(channel(1), 7);
        unread.note(channel(2), 9);
        assert_eq!(unread.up_to(6), BTreeMap::new());
        let read = unread.up_to(7);
        assert_eq!(read, BTreeMap::from([(channel(1), 7)]));
        unread.note(channel(1), 8);
        unread.note(channel(1), 5);
        unread.done(&read);
        let read = unread.up_to(9);
        assert_eq!(read, BTreeMap::from([(channel(1), 8), (channel(2), 9)]));
        unread.done(&read);
        assert_eq!(unread.up_to(u64::MAX), BTreeMap::new());
    }

    #[test]
    fn there_are_no_more_than_said() {
        let unread = Unread::default();
        let channel = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            ChannelId(id)
        };
        (0..=MAX_UNREAD).for_each(|n| unread.note(channel(n), 1));
        assert_eq!(unread.up_to(1).len(), MAX_UNREAD);
        unread.note(channel(0), 2);
        assert_eq!(unread.up_to(2)[&channel(0)], 2);
    }
}
