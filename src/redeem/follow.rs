//! The follower: watches the contract for what happens to our channels past us.
//!
//! An event is a hint to read the channel; what is booked is what the channel then says. So a repeated or a missed event
//! does no harm: the gate reads a channel again anyway before its view is too old to trust.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::round::Report;
use super::{Heard, Office};
use crate::chain::{Chain, ChainError, Happening};
use crate::gate::Statement;
use crate::protocol::{Amount, ChannelId};

/// How many blocks are asked for at once; nodes refuse long ranges.
const MAX_BLOCKS_AT_ONCE: u64 = 500;

/// How many blocks are read again each time, so that a short reorganisation is noticed.
const REORG_OVERLAP_BLOCKS: u64 = 4;

/// How many looks at the chain a round is given before a withdrawal calls for another; twice as many each time.
const POLLS_BEFORE_ANOTHER_CALL: u32 = 5;
/// The longest such pause: well below the shortest withdraw delay there is, 15 minutes.
const MAX_PAUSE: Duration = Duration::from_secs(120);

pub(super) async fn run<C: Chain>(
    office: Office<C>,
    orders: mpsc::Sender<oneshot::Sender<Report>>,
    heard: Heard,
    stop: CancellationToken,
) {
    let mut next: Option<u64> = None;
    let mut leaving = Leaving::default();
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(office.settings.poll) => {}
        }
        match step(&office, &mut next).await {
            Ok(announced) => {
                failing = false;
                heard.now();
                if leaving.calls_for_a_round(&office, announced) {
                    // Nobody waits for the report; a full queue already holds an order for a round.
                    let _ = orders.try_send(oneshot::channel().0);
                }
            }
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "the chain cannot be followed");
            }
            Err(_) => {}
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

/// Reads new blocks; the channels of ours whose payers announced a withdrawal in them.
async fn step<C: Chain>(office: &Office<C>, next: &mut Option<u64>) -> Result<Vec<ChannelId>, ChainError> {
    let head = office.chain.head().await?.number;
    let Some(from) = first_to_read(*next, head) else { return Ok(Vec::new()) };
    let to = head.min(from.saturating_add(MAX_BLOCKS_AT_ONCE));
    let mut touched = BTreeSet::new();
    let mut withdrawing: Vec<ChannelId> = Vec::new();
    for event in office.chain.events(from, to).await? {
        let Some(channel) = event.what.channel().filter(|channel| office.accounts().knows(channel)) else { continue };
        touched.insert(channel);
        if let Happening::WithdrawInitiated { .. } = event.what {
            withdrawing.push(channel);
        }
    }
    let config_of = |id: &ChannelId| office.accounts().statement(id).map(|books| (*id, books.config));
    let channels: Vec<_> = touched.iter().filter_map(config_of).collect();
    office.refresh_since(&channels, 0).await?;
    *next = Some(to.saturating_add(1));
    Ok(withdrawing)
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
