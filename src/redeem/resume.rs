//! The rest: transactions whose sender did not wait for their end.
//!
//! Those are what the last process left when it died, and what this one stopped waiting for. Each is in the books with its
//! bytes. Where the chain has it, what it changed is booked and its end written; where it has not, the very same bytes are
//! broadcast again, which does no harm however often. Nothing is signed anew: two transactions for one purpose cost
//! twice.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Office;
use super::record::{bytes_of, fate_of};
use crate::chain::{Chain, ChainError, Mined, Resent};
use crate::gate::desk::DepositPlace;
use crate::protocol::ChannelId;
use crate::store::{Fate, Purpose, Transaction};

/// How long what the last process left is sent again before anything new is: its nonces come first. A node that cannot
/// be reached for so long will refuse the new transactions too.
const MAX_SENDING_AGAIN: Duration = Duration::from_secs(60);

/// How long the first round waits for the claims of the last process, from the start on. Claiming the same again does no
/// harm, but costs gas.
const MAX_WAIT_FOR_CLAIMS: Duration = Duration::from_secs(180);

/// How long a claim, a settlement or a refund is followed before it is given up. Each can be made anew.
const MAX_PURSUIT: Duration = Duration::from_secs(3_600);

/// How many are followed at once. More are given up at once, or wait for their turn when the last process left them.
const MAX_PURSUITS: usize = 1_024;

/// How long one wait for a receipt lasts before a transaction is sent again: so many questions, and never longer than
/// this.
const QUESTIONS_BEFORE_RESENDING: u32 = 10;
const MAX_RECEIPT_WAIT: Duration = Duration::from_secs(15);

/// What the last process left, and the place at the desk that a deposit keeps.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) transaction: Transaction,
    pub(super) place: Option<DepositPlace>,
}

/// How far that has come.
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

    /// Waits until the end of every claim is known, or a while.
    pub(super) async fn has_claimed(&self) {
        let _ = tokio::time::timeout_at(self.since + MAX_WAIT_FOR_CLAIMS, self.claims.cancelled()).await;
    }
}

/// Brings what the last process left to its end. What is not at its end when this is stopped stays in the books.
pub(super) async fn run<C: Chain>(office: Office<C>, left: Vec<Left>) {
    let sent = office.last_run.sent.clone().drop_guard();
    let claims = office.last_run.claims.clone().drop_guard();
    let work = async {
        send_again(&office, &left).await;
        drop(sent);
        let of_deposit = |left: &Left| matches!(left.transaction.purpose, Purpose::Deposit { .. });
        let (deposits, others): (Vec<_>, Vec<_>) = left.into_iter().partition(of_deposit);
        let deposits = all(deposits.into_iter().map(|left| end_deposit(office.clone(), left)));
        let others = async {
            all(others.into_iter().map(|left| pursue(office.clone(), left.transaction))).await;
            drop(claims);
        };
        tokio::join!(deposits, others);
    };
    tokio::select! {
        biased;
        () = office.stop.cancelled() => {}
        () = work => {}
    }
}

/// At once, but not without a limit.
async fn all(work: impl Iterator<Item = impl Future<Output = ()>>) {
    stream::iter(work).buffer_unordered(MAX_PURSUITS).collect::<()>().await;
}

async fn end_deposit<C: Chain>(office: Office<C>, left: Left) {
    office.end_deposit(&left.transaction, left.place).await;
}

/// In their order, so that none waits for a nonce below its own.
async fn send_again<C: Chain>(office: &Office<C>, left: &[Left]) {
    let deadline = Instant::now() + MAX_SENDING_AGAIN;
    for Left { transaction, .. } in left {
        let (hash, purpose) = (transaction.hash, transaction.purpose.as_str());
        tracing::info!(transaction = %hash, purpose, "a transaction of the last run is not at its end");
        while let Err(error) = send_unless_mined(office, transaction).await {
            // A node that says no has been asked; one that says nothing is asked again.
            let answered = matches!(error, ChainError::Refused { .. } | ChainError::Reverted { .. });
            if answered || Instant::now() >= deadline {
                tracing::warn!(transaction = %hash, purpose, %error, "it cannot be sent again at the moment");
                break;
            }
            tokio::time::sleep(office.settings.poll).await;
        }
    }
}

async fn send_unless_mined<C: Chain>(office: &Office<C>, transaction: &Transaction) -> Result<(), ChainError> {
    if office.chain.receipt(transaction.hash).await?.is_none() {
        office.chain.resend(&bytes_of(transaction)).await?;
    }
    Ok(())
}

impl<C: Chain> Office<C> {
    /// Goes on following a transaction whose sender does not wait any longer.
    pub(super) fn leave(&self, transaction: Transaction) {
        if self.tasks.len() >= MAX_PURSUITS {
            return self.give_up(&transaction);
        }
        let (office, stop) = (self.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = pursue(office, transaction) => {}
            }
        });
    }

    /// How long to wait for a receipt before other signs are looked at.
    pub(super) fn receipt_wait(&self) -> Duration {
        self.settings.poll.saturating_mul(QUESTIONS_BEFORE_RESENDING).min(MAX_RECEIPT_WAIT)
    }

    pub(super) fn give_up(&self, transaction: &Transaction) {
        let purpose = transaction.purpose.as_str();
        tracing::warn!(transaction = %transaction.hash, purpose, "a transaction is not followed any more; it may still land");
        self.ended(transaction.hash, Fate::GivenUp);
    }
}

/// Tells whether a transaction that is sent again and again was replaced: one answer alone may come from a node that is
/// behind.
#[derive(Debug, Default)]
pub(super) struct Resending {
    replaced: bool,
}

impl Resending {
    /// Sends it again; whether it certainly was replaced.
    pub(super) async fn again<C: Chain>(&mut self, office: &Office<C>, transaction: &Transaction) -> bool {
        match office.chain.resend(&bytes_of(transaction)).await {
            Ok(Resent::Known) => self.replaced = false,
            Ok(Resent::Replaced) if self.replaced => return true,
            Ok(Resent::Replaced) => self.replaced = true,
            Err(error) => tracing::debug!(transaction = %transaction.hash, %error, "not taken again"),
        }
        false
    }
}

/// Follows a claim, a settlement or a refund to its end, up to [`MAX_PURSUIT`].
async fn pursue<C: Chain>(office: Office<C>, transaction: Transaction) {
    let deadline = Instant::now() + MAX_PURSUIT;
    let (hash, purpose) = (transaction.hash, transaction.purpose.as_str());
    let mut resending = Resending::default();
    while Instant::now() < deadline {
        match office.chain.await_receipt(hash, office.receipt_wait(), office.settings.poll).await {
            Ok(Some(mined)) => match book(&office, &transaction.purpose, &mined).await {
                Ok(()) => {
                    let (block, success) = (mined.block, mined.success);
                    tracing::info!(transaction = %hash, purpose, block, success, "a transaction reached its end late");
                    return office.ended(hash, fate_of(&mined));
                }
                Err(error) => tracing::warn!(transaction = %hash, %error, "its channels cannot be read yet"),
            },
            Ok(None) if resending.again(&office, &transaction).await => {
                tracing::warn!(transaction = %hash, purpose, "another transaction has the nonce of this one");
                return office.ended(hash, Fate::NeverSent);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(transaction = %hash, %error, "a transaction cannot be followed at the moment");
                tokio::time::sleep(office.settings.poll).await;
            }
        }
    }
    office.give_up(&transaction);
}

/// Reads the channels a transaction touched, as they are after it.
async fn book<C: Chain>(office: &Office<C>, purpose: &Purpose, mined: &Mined) -> Result<(), ChainError> {
    let mut touched: BTreeSet<ChannelId> = purpose.rows().iter().map(|row| row.channel).collect();
    if let Purpose::Refund { channel, .. } = purpose {
        touched.insert(*channel);
    }
    let config_of = |id: &ChannelId| office.accounts().statement(id).map(|books| (*id, books.config));
    let channels: Vec<_> = touched.iter().filter_map(config_of).collect();
    office.refresh_since(&channels, mined.block).await.map(drop)
}
