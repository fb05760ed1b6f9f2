//! What the last process left: transactions that are not at their end in the books.
//!
//! They are taken up as the flights they were, by nonce and in all their versions, before anything new is signed, so
//! that nothing else gets their nonces and no row they claim is claimed a second time. Where the chain has one, what it
//! changed is booked and its end written; where it has not, the newest version is broadcast again, the same bytes, which
//! does no harm however often. After that they are flights like any other: followed, and replaced at the same nonce if
//! need be.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Office;
use super::flights::{Seat, Slot, Stage};
use super::record::bytes_of;
use crate::chain::{Chain, ChainError};
use crate::gate::desk::DepositPlace;
use crate::store::{Purpose, Transaction};

/// How long what the last process left is sent again before anything new is: its nonces come first. A node that cannot
/// be reached for so long will refuse the new transactions too.
const MAX_SENDING_AGAIN: Duration = Duration::from_secs(60);

/// How long rounds wait for the claims of the last process, from the start on. Later they go on without the rows that are
/// still in flight. What the key of another sender sent, which is not here any more, counts as in flight for so long too;
/// nobody can make it pay more, so what it claims is claimed anew then.
const MAX_WAIT_FOR_CLAIMS: Duration = Duration::from_secs(180);

/// A flight of the last process, and the place at the desk that a deposit keeps.
#[derive(Debug)]
pub(super) struct Left {
    slot: Slot,
    seat: Seat,
    place: Option<DepositPlace>,
}

/// How far what the last process left has come.
#[derive(Debug, Clone)]
pub(crate) struct LastRun {
    since: Instant,
    sent: CancellationToken,
    claims: CancellationToken,
}

impl LastRun {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), sent: CancellationToken::new(), claims: CancellationToken::new() }
    }

    /// Waits until everything was sent again, or a while.
    pub(super) async fn is_sent(&self) {
        let _ = tokio::time::timeout_at(self.since + MAX_SENDING_AGAIN, self.sent.cancelled()).await;
    }

    /// Waits until a block has every claim, or a while.
    pub(super) async fn has_claimed(&self) {
        let _ = tokio::time::timeout_at(self.since + MAX_WAIT_FOR_CLAIMS, self.claims.cancelled()).await;
    }

    /// Whether what other senders claim is still taken for being on its way.
    pub(super) fn waits_for_claims(&self) -> bool {
        self.since.elapsed() < MAX_WAIT_FOR_CLAIMS
    }
}

impl<C: Chain> Office<C> {
    /// Takes transactions of the last process up as flights. Before anything new is sent.
    pub(super) fn take_up(&self, unfinished: Vec<Transaction>) -> Vec<Left> {
        let mut flights: BTreeMap<Slot, Vec<Transaction>> = BTreeMap::new();
        for transaction in unfinished {
            flights.entry(Slot::of(&transaction)).or_default().push(transaction);
        }
        let take_up = |(slot, versions): (Slot, Vec<Transaction>)| {
            let seat = self.flights.board(slot, versions, false);
            let place = match &seat.transaction.purpose {
                Purpose::Deposit { config, salt, .. } => self.gate.deposit_place(config, *salt),
                Purpose::Claim { .. } | Purpose::Settle { .. } | Purpose::Refund { .. } => None,
            };
            Left { slot, seat, place }
        };
        flights.into_iter().map(take_up).collect()
    }
}

/// Brings what the last process left to its end. What is not at its end when this is stopped stays in the books.
pub(super) async fn run<C: Chain>(office: Office<C>, left: Vec<Left>) {
    let sent = office.last_run.sent.clone().drop_guard();
    let claims = office.last_run.claims.clone().drop_guard();
    let work = async {
        for left in &left {
            send_again(&office, left).await;
        }
        drop(sent);
        let mut claiming = Vec::new();
        for Left { slot, seat, place } in left {
            office.follow(slot);
            if let Purpose::Deposit { .. } = seat.transaction.purpose {
                let office = office.clone();
                office.tasks.clone().spawn(async move { office.end_deposit(seat, place).await });
            } else if !seat.transaction.purpose.rows().is_empty() {
                claiming.push(seat);
            }
        }
        for mut seat in claiming {
            while let Stage::Aloft = seat.stage() {
                seat.changed().await;
            }
        }
        drop(claims);
    };
    tokio::select! {
        biased;
        () = office.stop.cancelled() => {}
        () = work => {}
    }
}

/// In the order of their nonces, so that none waits for one below its own.
async fn send_again<C: Chain>(office: &Office<C>, left: &Left) {
    let deadline = office.last_run.since + MAX_SENDING_AGAIN;
    let Left { slot, seat, .. } = left;
    let versions = office.flights.with(*slot, |flight| flight.versions.clone()).unwrap_or_default();
    let (hash, purpose) = (seat.transaction.hash, seat.transaction.purpose.as_str());
    let (nonce, count) = (slot.nonce, versions.len());
    tracing::info!(transaction = %hash, purpose, nonce, versions = count, "a transaction of the last run is not at its end");
    while let Err(error) = send_unless_mined(office, &versions).await {
        // A node that says no has been asked; one that says nothing is asked again.
        let answered = matches!(error, ChainError::Refused { .. } | ChainError::Reverted { .. });
        if answered || Instant::now() >= deadline {
            tracing::warn!(transaction = %hash, purpose, %error, "it cannot be sent again at the moment");
            break;
        }
        tokio::time::sleep(office.settings.poll).await;
    }
}

async fn send_unless_mined<C: Chain>(office: &Office<C>, versions: &[Transaction]) -> Result<(), ChainError> {
    for version in versions {
        if office.chain.receipt(version.hash).await?.is_some() {
            return Ok(());
        }
    }
    if let Some(newest) = versions.last() {
        office.chain.resend(&bytes_of(newest)).await?;
    }
    Ok(())
}
