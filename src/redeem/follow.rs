//! The follower: watches the contract for what happens to our channels past us.
//!
//! An event is a hint to read the channel; what is booked is what the channel then says. So a repeated or a missed event
//! does no harm: the gate reads a channel again anyway before its view is too old to trust, and a sweep reads every open
//! channel from time to time. Where the reading stopped is written down, so that a process that was down for a day reads
//! that day.
//!
//! A reorganisation can take an event back without leaving one behind. So the newest blocks that were read are remembered,
//! each with its hash and the channels it touched; where the chain has another block in such a place, those channels are
//! read again, and reading goes on after the last block that is still there. Others read channels too, and book what a block
//! did before it is read here; such a channel is read again with its block, because that may be another one by then. After a
//! start nothing is remembered: the overlap and the sweep stand in for it.
//!
//! An older view never replaces a newer one, because nodes lag. That is wrong in two cases, and the follower says so to the
//! books ([`crate::ledger::Command::Rewind`]): when the block of the view in the books was reorganised away, and when the
//! books have a view of a block that the chain does not reach. The latter is believed only after a while, by a head that
//! moves and is of now, so that a node that lags or hangs cannot take the books back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::round::Report;
use super::sweep::{MAX_CHANNELS_AT_ONCE, Sweep};
use super::window::{WINDOW_BLOCKS, Window};
use super::{Heard, Office};
use crate::chain::{Chain, ChainError, Happening, Head};
use crate::clock;
use crate::gate::Statement;
use crate::protocol::{Amount, ChannelId, Hash};
use crate::store::{Cursor, Entry};

/// How many blocks are asked for at once; nodes refuse long ranges.
const MAX_BLOCKS_AT_ONCE: u64 = 500;

/// How many blocks are read again each time: nodes may have a block before they have its events.
const REORG_OVERLAP_BLOCKS: u64 = 4;

/// How many blocks are read before the cursor is written, where nothing of ours happened in them. As many are read again
/// after a crash, at most.
const MAX_BLOCKS_UNWRITTEN: u64 = 300;

/// How many looks at the chain a round is given before a withdrawal calls for another; twice as many each time.
const POLLS_BEFORE_ANOTHER_CALL: u32 = 5;
/// The longest such pause: well below the shortest withdraw delay there is, 15 minutes.
const MAX_PAUSE: Duration = Duration::from_secs(120);

/// How many looks long the chain must stay below the block of a view before that block is taken for one that is not in
/// it.
const POLLS_BEFORE_REWIND: u32 = 30;
/// How old the newest block may be then, seconds. An older one may be that of a node that hangs.
const MAX_HEAD_AGE_S: u64 = 60;
/// How many such views are kept in mind.
const MAX_SUSPECTS: usize = 4_096;

pub(super) struct Follower<C> {
    office: Office<C>,
    orders: mpsc::Sender<oneshot::Sender<Report>>,
    heard: Heard,
    /// The first block that was not read, once one was.
    next: Option<u64>,
    /// The same as the books have it.
    written: Option<u64>,
    window: Window,
    /// What a reorganisation dropped and is not read again yet.
    dropped: Option<Dropped>,
    /// Channels with views of blocks that the chain does not reach.
    suspects: BTreeMap<ChannelId, Suspect>,
    sweep: Sweep,
    /// Since when looks fail because a block below the newest is missing.
    missing_since: Option<Instant>,
    /// Channels of ours whose payers were seen to withdraw, and of which nothing was made yet.
    announced: Vec<ChannelId>,
    leaving: Leaving,
    wanted: Wanted,
}

/// The channels that had events in dropped blocks, and the last block that was not dropped.
#[derive(Debug)]
struct Dropped {
    channels: BTreeSet<ChannelId>,
    common: u64,
}

/// A view of a block that the chain does not reach.
#[derive(Debug, Clone, Copy)]
struct Suspect {
    block: u64,
    since: Instant,
    /// The newest block then.
    head: u64,
}

impl<C: Chain> Follower<C> {
    pub(super) fn new(
        office: Office<C>,
        orders: mpsc::Sender<oneshot::Sender<Report>>,
        heard: Heard,
        cursor: Option<Cursor>,
    ) -> Self {
        let next = cursor.map(|cursor| cursor.next_block);
        let sweep = Sweep::new(office.settings.watch.sweep_interval);
        Self {
            office,
            orders,
            heard,
            next,
            written: next,
            window: Window::default(),
            dropped: None,
            suspects: BTreeMap::new(),
            sweep,
            missing_since: None,
            announced: Vec::new(),
            leaving: Leaving::default(),
            wanted: Wanted::default(),
        }
    }

    /// Follows the chain until told to stop.
    pub(super) async fn run(mut self) {
        let (mut caught_up, mut failing, mut behind) = (false, false, true);
        while !self.office.stop.is_cancelled() {
            if !behind && !self.pause().await {
                break;
            }
            let look = if caught_up { self.look().await } else { self.catch_up().await.map(|()| true) };
            match look {
                Ok(more) => {
                    (caught_up, failing, behind) = (true, false, more);
                    self.heard.now();
                }
                Err(error) => {
                    behind = false;
                    if !failing {
                        failing = true;
                        tracing::warn!(%error, "the chain cannot be followed");
                    }
                }
            }
            // Also after an error: what was heard before it must not be forgotten.
            let announced = std::mem::take(&mut self.announced);
            let leaving = self.leaving.calls_for_a_round(&self.office, announced);
            if leaving {
                self.office.hurry();
            }
            if self.wanted.calls_for_a_round(self.first_pause()) || leaving {
                self.order();
            }
        }
        self.write_cursor();
    }

    /// Waits until the next look; false when told to stop. A claim that is wanted is ordered meanwhile.
    async fn pause(&mut self) -> bool {
        let next = Instant::now() + self.office.settings.poll;
        loop {
            tokio::select! {
                () = self.office.stop.cancelled() => return false,
                () = tokio::time::sleep_until(next) => return true,
                () = self.office.accounts().claim_wanted(), if !self.wanted.waits => {
                    self.wanted.waits = true;
                    if self.wanted.calls_for_a_round(self.first_pause()) {
                        self.order();
                    }
                }
            }
        }
    }

    fn order(&self) {
        // Nobody waits for the report; a full queue already holds an order for a round.
        let _ = self.orders.try_send(oneshot::channel().0);
    }

    fn first_pause(&self) -> Duration {
        first_pause(self.office.settings.poll)
    }

    /// Reads every channel with something to claim: a withdrawal that was announced while nobody looked may be running,
    /// and the blocks that say so may be hours away.
    async fn catch_up(&mut self) -> Result<(), ChainError> {
        let due: Vec<_> = self.office.accounts().claimable().iter().map(|books| (books.id, books.config)).collect();
        for channels in due.chunks(MAX_CHANNELS_AT_ONCE) {
            let views = self.office.refresh_since(channels, 0).await?;
            let leaving = channels.iter().zip(&views).filter(|(_, view)| view.withdrawal.is_some());
            self.announced.extend(leaving.map(|((id, _), _)| *id));
            self.heard.now();
            if self.office.stop.is_cancelled() {
                break;
            }
        }
        Ok(())
    }

    /// Reads what is new; whether there are blocks that were not read yet.
    async fn look(&mut self) -> Result<bool, ChainError> {
        let head = self.office.chain.head().await;
        // Also where none of them answers: that is when somebody looks.
        self.office.notes.note(|vitals| vitals.nodes = self.office.chain.nodes());
        let head = head?;
        let lag = clock::now_s().saturating_sub(head.timestamp);
        self.office.notes.note(|vitals| vitals.chain_lag_s = Some(lag));
        let behind = self.look_at_blocks(&head, lag).await;
        // Also where blocks cannot be read: that is what a sweep is for.
        let leaving = self.sweep.step(&self.office).await?;
        self.announced.extend(leaving);
        behind
    }

    async fn look_at_blocks(&mut self, head: &Head, lag: u64) -> Result<bool, ChainError> {
        self.notice_reorganisation(head).await?;
        self.read_dropped_again().await?;
        let behind = self.read_blocks(head).await?;
        self.doubt_views(head, lag).await?;
        // Whatever was missing is there, or is done without.
        self.missing_since = None;
        Ok(behind)
    }

    /// Compares the newest block that was read with the chain's, and goes back to the last that is still there.
    async fn notice_reorganisation(&mut self, head: &Head) -> Result<(), ChainError> {
        let Some((number, hash)) = self.window.newest_up_to(head.number) else { return Ok(()) };
        if self.hash_of(number, head).await? == Some(hash) {
            return Ok(());
        }
        let (mut common, mut below) = (None, number);
        while let Some((older, hash)) = self.window.newest_below(below) {
            if self.hash_of(older, head).await? == Some(hash) {
                common = Some(older);
                break;
            }
            below = older;
        }
        let oldest = self.window.oldest().unwrap_or(number);
        let channels = self.window.drop_after(common);
        if common.is_none() {
            tracing::error!(from = oldest, to = number, "a reorganisation goes back beyond all that is remembered");
            self.sweep.hurry();
        }
        let common = common.unwrap_or_else(|| oldest.saturating_sub(1));
        tracing::warn!(after = common, to = number, channels = channels.len(), "blocks were reorganised away");
        self.next = Some(common.saturating_add(1));
        let dropped = self.dropped.get_or_insert_with(|| Dropped { channels: BTreeSet::new(), common });
        dropped.channels.extend(channels);
        dropped.common = dropped.common.min(common);
        Ok(())
    }

    /// The hash of a block up to the newest. A node that does not have one is behind the one that told of the newest, and
    /// proves nothing; but where looks fail for that for long, there is none, and the chain is followed without it.
    async fn hash_of(&mut self, number: u64, head: &Head) -> Result<Option<Hash>, ChainError> {
        if number == head.number {
            return Ok(Some(head.hash));
        }
        if let Some(block) = self.office.chain.block(number).await? {
            return Ok(Some(block.hash));
        }
        let since = *self.missing_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.patience() {
            return Err(ChainError::Decode { what: "a block below the newest it told of", source: None });
        }
        tracing::warn!(block = number, head = head.number, "the chain has no such block, and is followed without it");
        Ok(None)
    }

    /// How long a chain is given to come to terms with itself.
    fn patience(&self) -> Duration {
        self.office.settings.poll.saturating_mul(POLLS_BEFORE_REWIND)
    }

    /// Reads the channels that had events in dropped blocks.
    async fn read_dropped_again(&mut self) -> Result<(), ChainError> {
        let Some(Dropped { channels, common }) = &self.dropped else { return Ok(()) };
        let common = *common;
        let gone = |id: &ChannelId| self.office.accounts().statement(id).map(|books| (books, common));
        let channels: Vec<_> = channels.iter().filter_map(gone).collect();
        let leaving = self.rewind(&channels, common).await?;
        self.announced.extend(leaving);
        self.dropped = None;
        Ok(())
    }

    /// Reads channels, at `block` or later, and books what the chain says; where the view in the books is of a block after
    /// the one beside it, in any case. Those that are being withdrawn from.
    async fn rewind(&self, channels: &[(Statement, u64)], block: u64) -> Result<Vec<ChannelId>, ChainError> {
        let office = &self.office;
        let mut leaving = Vec::new();
        for channels in channels.chunks(MAX_CHANNELS_AT_ONCE) {
            let ids: Vec<_> = channels.iter().map(|(books, _)| books.id).collect();
            let views = office.chain.channels(&ids).await?;
            if views.iter().any(|view| view.block < block) {
                return Err(ChainError::Decode { what: "a block as new as the chain it reported", source: None });
            }
            for ((books, last_good), view) in channels.iter().zip(views) {
                let Statement { id, config, view: before, .. } = books;
                let booked = if before.block > *last_good {
                    office.accounts().rewind(*id, config, view, before.block)
                } else {
                    office.accounts().observe(*id, config, view)
                };
                if let Err(reject) = booked {
                    tracing::error!(channel = %id, %reject, "the node's answer cannot be true");
                }
                if view.withdrawal.is_some() {
                    leaving.push(*id);
                }
            }
        }
        Ok(leaving)
    }

    /// Reads new blocks; whether there are more.
    async fn read_blocks(&mut self, head: &Head) -> Result<bool, ChainError> {
        let Some(from) = first_to_read(self.next, head.number) else { return Ok(false) };
        let to = head.number.min(from.saturating_add(MAX_BLOCKS_AT_ONCE));
        // Asked for before the events: were it after, the events could be of a block that was replaced in between.
        let recent = head.number.saturating_sub(to) < WINDOW_BLOCKS;
        let last = if recent { self.hash_of(to, head).await? } else { None };
        let office = &self.office;
        let mut touched = BTreeSet::new();
        let events = office.chain.events(from, to).await?;
        if let Some(last) = last {
            self.window.note(to, last, None);
        }
        for event in events {
            let Some(channel) = event.what.channel().filter(|channel| office.accounts().knows(channel)) else {
                continue;
            };
            touched.insert(channel);
            if recent {
                self.window.note(event.at.block, event.at.block_hash, Some(channel));
            }
            if let Happening::WithdrawInitiated { .. } = event.what {
                self.announced.push(channel);
            }
        }
        // Another block may be in the place of one that they were booked of, without an event that tells of it.
        let mut unread = office.accounts().unread().up_to(to);
        touched.extend(unread.keys());
        let config_of = |id: &ChannelId| office.accounts().statement(id).map(|books| (*id, books.config));
        let channels: Vec<_> = touched.iter().filter_map(config_of).collect();
        for channels in channels.chunks(MAX_CHANNELS_AT_ONCE) {
            let views = office.refresh_since(channels, 0).await?;
            for ((id, _), view) in channels.iter().zip(views) {
                if unread.get(id).is_some_and(|block| view.block < *block) {
                    // A node that lags says nothing about it: next time, perhaps.
                    unread.remove(id);
                } else if view.block <= to {
                    // What this very look booked of blocks that it read is remembered in the window.
                    unread.insert(*id, view.block);
                }
            }
        }
        office.accounts().unread().done(&unread);
        let next = to.saturating_add(1);
        self.next = Some(next);
        let due = self.written.is_none_or(|written| written > next || next - written >= MAX_BLOCKS_UNWRITTEN);
        if due || !channels.is_empty() {
            self.write_cursor();
        }
        Ok(to < head.number)
    }

    /// Looks after views of blocks that the chain does not reach. Once it has stayed below for a while and moved on
    /// meanwhile, there is no such block, and the view is replaced.
    async fn doubt_views(&mut self, head: &Head, lag: u64) -> Result<(), ChainError> {
        let now = Instant::now();
        for (id, block) in self.office.accounts().take_ahead() {
            if block > head.number && self.suspects.len() < MAX_SUSPECTS {
                let new = Suspect { block, since: now, head: head.number };
                let suspect = self.suspects.entry(id).or_insert(new);
                if suspect.block != block {
                    *suspect = new;
                }
            }
        }
        self.suspects.retain(|_, suspect| suspect.block > head.number);
        let patience = self.patience();
        let convicted =
            |suspect: &Suspect| suspect.since + patience <= now && suspect.head < head.number && lag <= MAX_HEAD_AGE_S;
        let convicted: Vec<_> = self.suspects.iter().filter(|(_, suspect)| convicted(suspect)).collect();
        let books = |(id, suspect): (&ChannelId, &Suspect)| {
            let books = self.office.accounts().statement(id).filter(|books| books.view.block == suspect.block)?;
            tracing::warn!(channel = %id, block = suspect.block, head = head.number, "a view is of a block that is not there");
            Some((books, head.number))
        };
        let channels: Vec<_> = convicted.iter().copied().filter_map(books).collect();
        let convicted: Vec<ChannelId> = convicted.iter().map(|(id, _)| **id).collect();
        let leaving = self.rewind(&channels, head.number).await?;
        self.announced.extend(leaving);
        for id in convicted {
            self.suspects.remove(&id);
        }
        Ok(())
    }

    /// What was read is booked, and the books are written in order: a cursor on disk is never ahead of them.
    fn write_cursor(&mut self) {
        if let Some(next_block) = self.next.filter(|next| self.written != Some(*next)) {
            self.office.accounts().journal().note(Entry::Cursor(Cursor { next_block }), None);
            self.written = Some(next_block);
        }
    }
}

fn first_pause(poll: Duration) -> Duration {
    poll.saturating_mul(POLLS_BEFORE_ANOTHER_CALL).min(MAX_PAUSE)
}

/// Claims that the gate wants soon. Whoever is refused because of them can ask as often as it likes; rounds are called for
/// with a pause in between.
#[derive(Debug, Default)]
struct Wanted {
    /// Whether a round is to be called for.
    waits: bool,
    called: Option<Instant>,
}

impl Wanted {
    fn calls_for_a_round(&mut self, pause: Duration) -> bool {
        if !self.waits || self.called.is_some_and(|called| called.elapsed() < pause) {
            return false;
        }
        (self.waits, self.called) = (false, Some(Instant::now()));
        true
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
        let first = first_pause(office.settings.poll);
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
