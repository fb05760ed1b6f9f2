//! The follower: watches the contract for what happens to our channels past us.
//!
//! An event is a hint to read the channel; what is booked is what the channel then says. So a repeated or a missed event
//! does no harm: the gate reads a channel again anyway before its view is too old to trust. Where the reading stopped is
//! written down, so that a process that was down for a day reads that day.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::round::Report;
use super::{Heard, Office};
use crate::chain::{Chain, ChainError, Happening};
use crate::gate::Statement;
use crate::protocol::{Amount, ChannelId};
use crate::store::{Cursor, Entry};

/// How many blocks are asked for at once; nodes refuse long ranges.
const MAX_BLOCKS_AT_ONCE: u64 = 500;

/// How many blocks are read again each time, so that a short reorganisation is noticed.
const REORG_OVERLAP_BLOCKS: u64 = 4;

/// How many blocks are read before the cursor is written, where nothing of ours happened in them. As many are read again
/// after a crash, at most.
const MAX_BLOCKS_UNWRITTEN: u64 = 300;

/// How many channels are read at once at the start.
const MAX_CHANNELS_AT_ONCE: usize = 1_000;

/// How many looks at the chain a round is given before a withdrawal calls for another; twice as many each time.
const POLLS_BEFORE_ANOTHER_CALL: u32 = 5;
/// The longest such pause: well below the shortest withdraw delay there is, 15 minutes.
const MAX_PAUSE: Duration = Duration::from_secs(120);

pub(super) struct Follower<C> {
    office: Office<C>,
    orders: mpsc::Sender<oneshot::Sender<Report>>,
    heard: Heard,
    /// The first block that was not read, once one was.
    next: Option<u64>,
    /// The same as the books have it.
    written: Option<u64>,
    leaving: Leaving,
}

/// What one look at the chain found.
struct Look {
    /// Channels of ours whose payers announced a withdrawal.
    announced: Vec<ChannelId>,
    /// Whether there are blocks that were not read yet.
    behind: bool,
}

impl<C: Chain> Follower<C> {
    pub(super) fn new(
        office: Office<C>,
        orders: mpsc::Sender<oneshot::Sender<Report>>,
        heard: Heard,
        cursor: Option<Cursor>,
    ) -> Self {
        let next = cursor.map(|cursor| cursor.next_block);
        Self { office, orders, heard, next, written: next, leaving: Leaving::default() }
    }

    /// Follows the chain until told to stop.
    pub(super) async fn run(mut self) {
        let stop = self.office.stop.clone();
        let (mut caught_up, mut failing, mut behind) = (false, false, true);
        while !stop.is_cancelled() {
            if !behind {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(self.office.settings.poll) => {}
                }
            }
            let look = if caught_up { self.step().await } else { self.catch_up().await };
            match look {
                Ok(look) => {
                    (caught_up, failing, behind) = (true, false, look.behind);
                    self.heard.now();
                    if self.leaving.calls_for_a_round(&self.office, look.announced) {
                        self.office.hurry();
                        // Nobody waits for the report; a full queue already holds an order for a round.
                        let _ = self.orders.try_send(oneshot::channel().0);
                    }
                }
                Err(error) => {
                    behind = false;
                    if !failing {
                        failing = true;
                        tracing::warn!(%error, "the chain cannot be followed");
                    }
                }
            }
        }
        self.write_cursor();
    }

    /// Reads every channel with something to claim: a withdrawal that was announced while nobody looked may be running,
    /// and the blocks that say so may be hours away.
    async fn catch_up(&self) -> Result<Look, ChainError> {
        let due: Vec<_> = self.office.accounts().claimable().iter().map(|books| (books.id, books.config)).collect();
        let mut announced = Vec::new();
        for channels in due.chunks(MAX_CHANNELS_AT_ONCE) {
            let views = self.office.refresh_since(channels, 0).await?;
            let leaving = channels.iter().zip(&views).filter(|(_, view)| view.withdrawal.is_some());
            announced.extend(leaving.map(|((id, _), _)| *id));
            self.heard.now();
            if self.office.stop.is_cancelled() {
                break;
            }
        }
        Ok(Look { announced, behind: true })
    }

    /// Reads new blocks.
    async fn step(&mut self) -> Result<Look, ChainError> {
        let office = &self.office;
        let head = office.chain.head().await?.number;
        let Some(from) = first_to_read(self.next, head) else {
            return Ok(Look { announced: Vec::new(), behind: false });
        };
        let to = head.min(from.saturating_add(MAX_BLOCKS_AT_ONCE));
        let mut touched = BTreeSet::new();
        let mut announced: Vec<ChannelId> = Vec::new();
        for event in office.chain.events(from, to).await? {
            let Some(channel) = event.what.channel().filter(|channel| office.accounts().knows(channel)) else {
                continue;
            };
            touched.insert(channel);
            if let Happening::WithdrawInitiated { .. } = event.what {
                announced.push(channel);
            }
        }
        let config_of = |id: &ChannelId| office.accounts().statement(id).map(|books| (*id, books.config));
        let channels: Vec<_> = touched.iter().filter_map(config_of).collect();
        office.refresh_since(&channels, 0).await?;
        let next = to.saturating_add(1);
        self.next = Some(next);
        let due = self.written.is_none_or(|written| next.abs_diff(written) >= MAX_BLOCKS_UNWRITTEN);
        if due || !channels.is_empty() {
            self.write_cursor();
        }
        Ok(Look { announced, behind: to < head })
    }

    /// What was read is booked, and the books are written in order: a cursor on disk is never ahead of them.
    fn write_cursor(&mut self) {
        if let Some(next_block) = self.next.filter(|next| self.written != Some(*next)) {
            self.office.accounts().journal().note(Entry::Cursor(Cursor { next_block }), None);
            self.written = Some(next_block);
        }
    }
}

/// Channels whose payers have announced a withdrawal. What they owe is claimed at once; and where the withdrawal would
/// take it, claiming is tried again and again, because the next round by the clock may be the last or come too late.
#[derive(Debug, Default)]
struct Leaving {
    channels: BTreeSet<ChannelId>,
    /// When a round was last called for, and how long to wait before the next call.
    called: Option<(Instant, Duration)>,
}

impl Leaving {
    /// Whether to redeem now. `announced` are the channels whose withdrawals were just heard of.
    fn calls_for_a_round<C: Chain>(&mut self, office: &Office<C>, announced: Vec<ChannelId>) -> bool {
        let books = |id: &ChannelId| office.accounts().statement(id);
        let owes =
            |id: &ChannelId| books(id).is_some_and(|books| books.row.is_some() && books.view.withdrawal.is_some());
        let at_once = announced.iter().any(owes);
        self.channels.extend(announced);
        self.channels.retain(|id| books(id).is_some_and(|books| books.view.withdrawal.is_some()));
        let exposed = |id: &ChannelId| {
            books(id).is_some_and(|Statement { row, view, charged, .. }| {
                let leaving = view.withdrawal.map_or(Amount::ZERO, |withdrawal| withdrawal.amount);
                row.is_some() && charged > view.balance.saturating_sub(leaving)
            })
        };
        let first = office.settings.poll.saturating_mul(POLLS_BEFORE_ANOTHER_CALL).min(MAX_PAUSE);
        let wait = match self.called {
            _ if at_once => first,
            _ if !self.channels.iter().any(exposed) => {
                self.called = None;
                return false;
            }
            Some((since, wait)) if since.elapsed() < wait => return false,
            Some((_, wait)) => wait.saturating_mul(2).min(MAX_PAUSE),
            None => first,
        };
        self.called = Some((Instant::now(), wait));
        true
    }
}

/// The first block to read, if there is one: some blocks before the first that is new. Where the chain is shorter than
/// what was read (a reorganisation, or a node that once named a block far ahead), its end is read again, so that nothing
/// is missed until it is as long as it was said to be.
fn first_to_read(next: Option<u64>, head: u64) -> Option<u64> {
    let beyond = head.saturating_add(1);
    (next != Some(beyond)).then(|| next.unwrap_or(head).min(beyond).saturating_sub(REORG_OVERLAP_BLOCKS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_became_shorter_is_read_again() {
        let cases = [
            (None, 100, Some(96)),
            (Some(101), 100, None),
            (Some(101), 101, Some(97)),
            (Some(101), 900, Some(97)),
            (Some(101), 99, Some(96)),
            (Some(101), 0, Some(0)),
            (Some(u64::MAX), 100, Some(97)),
        ];
        for (next, head, from) in cases {
            assert_eq!(first_to_read(next, head), from, "next {next:?}, head {head}");
        }
    }
}
