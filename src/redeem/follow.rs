//! The follower: watches the contract for what happens to our channels past us.
//!
//! An event is a hint to read the channel; what is booked is what the channel then says. So a repeated or a missed event
//! does no harm: the gate reads a channel again anyway before its view is too old to trust.

use std::collections::BTreeSet;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::round::Report;
use super::{Heard, Office};
use crate::chain::{Chain, ChainError, Happening};
use crate::protocol::ChannelId;

/// How many blocks are asked for at once; nodes refuse long ranges.
const MAX_BLOCKS_AT_ONCE: u64 = 500;

/// How many blocks are read again each time, so that a short reorganisation is noticed.
const REORG_OVERLAP_BLOCKS: u64 = 4;

pub(super) async fn run<C: Chain>(
    office: Office<C>,
    orders: mpsc::Sender<oneshot::Sender<Report>>,
    heard: Heard,
    stop: CancellationToken,
) {
    let mut next: Option<u64> = None;
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(office.settings.poll) => {}
        }
        match step(&office, &mut next).await {
            Ok(withdrawing) => {
                failing = false;
                heard.now();
                if withdrawing {
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

/// Reads new blocks; true if a payer of ours announced a withdrawal while something is unclaimed.
async fn step<C: Chain>(office: &Office<C>, next: &mut Option<u64>) -> Result<bool, ChainError> {
    let head = office.chain.head().await?.number;
    // Nothing new; or a reorganisation left fewer blocks, which will be more again in a moment.
    if next.is_some_and(|next| next > head) {
        return Ok(false);
    }
    let from = next.unwrap_or(head).saturating_sub(REORG_OVERLAP_BLOCKS);
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
    let ids: Vec<_> = touched.into_iter().collect();
    if !ids.is_empty() {
        for (id, view) in ids.iter().zip(office.chain.channels(&ids).await?) {
            let Some(statement) = office.accounts().statement(id) else { continue };
            if let Err(reject) = office.accounts().observe(*id, &statement.config, view) {
                tracing::error!(channel = %id, %reject, "the node's answer cannot be true");
            }
        }
    }
    *next = Some(to.saturating_add(1));
    let at_risk = |id: &ChannelId| {
        office.accounts().statement(id).is_some_and(|books| books.row.is_some() && books.view.withdrawal.is_some())
    };
    Ok(withdrawing.iter().any(at_risk))
}
