//! The teller: answers what the gate asks of the chain.
//!
//! A deposit is tried before it is sent, and once sent it is followed until its fate is known: mined, reverted, or past
//! the time until which the payer's authorization holds. Nothing is reported as failed while it may land.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Office;
use crate::chain::{Call, Chain, ChainError, Happening, Mined, SendError};
use crate::gate::Questions;
use crate::gate::accounts::RefundTicket;
use crate::gate::desk::{DepositEnd, DepositPlace, DeskError, Question, RefundError, RefundSent};
use crate::ledger::{SentRefund, View};
use crate::protocol::claim::{ClaimRow, claim_batch_digest, refund_digest};
use crate::protocol::deposit::Authorization;
use crate::protocol::x402::Deposit;
use crate::protocol::{Amount, ChannelConfig, ChannelId, Hash};

/// How many questions are worked on at once.
const MAX_AT_ONCE: usize = 64;

/// How many deposits and refunds may be on their way at once. They are counted apart: one that is not mined for a long
/// time must not keep the others from being asked about.
const MAX_TRANSACTIONS: usize = 256;

/// How long transactions on their way are followed after the stop. What lands later is not lost: it is on chain, and the
/// channel is read when its payer comes back.
const MAX_STOP_WAIT: std::time::Duration = std::time::Duration::from_secs(30);

/// How long one wait for a receipt lasts before the other signs are looked at.
const RECEIPT_WAIT: std::time::Duration = std::time::Duration::from_secs(15);

/// How long a deposit is followed. The authorizations stock clients sign are long dead by then; one that a client signed
/// for longer, and whose transaction got lost, must not keep its channel waiting for years.
const MAX_DEPOSIT_FOLLOW: std::time::Duration = std::time::Duration::from_secs(2 * 3_600);

/// How often a refund is signed again because its nonce was used up by somebody else.
const MAX_REFUND_SIGNINGS: usize = 3;

/// How long a refund's receipt is waited for before its channel is served again, in waits of [`RECEIPT_WAIT`].
const MAX_REFUND_WAITS: usize = 40;

/// Answers the desk's questions.
pub struct Teller<C> {
    office: Arc<Office<C>>,
}

impl<C> Clone for Teller<C> {
    fn clone(&self) -> Self {
        Self { office: Arc::clone(&self.office) }
    }
}

impl<C: Chain> Teller<C> {
    pub(super) fn new(office: Office<C>) -> Self {
        Self { office: Arc::new(office) }
    }

    /// Takes questions until told to stop; those in progress are finished.
    pub(super) async fn run(self, mut questions: Questions, stop: CancellationToken) {
        let reads = Arc::new(Semaphore::new(MAX_AT_ONCE));
        let transactions = Arc::new(Semaphore::new(MAX_TRANSACTIONS));
        let tasks = TaskTracker::new();
        loop {
            let question = tokio::select! {
                () = stop.cancelled() => break,
                Some(question) = questions.recv() => question,
                else => break,
            };
            let permit = match &question {
                Question::View { .. } | Question::Evidence { .. } => Arc::clone(&reads).acquire_owned().await.ok(),
                Question::Deposit { .. } | Question::Refund { .. } => {
                    Arc::clone(&transactions).try_acquire_owned().ok()
                }
            };
            let Some(permit) = permit else {
                refuse(question);
                continue;
            };
            let teller = self.clone();
            tasks.spawn(async move {
                teller.answer(question).await;
                drop(permit);
            });
        }
        tasks.close();
        if tokio::time::timeout(MAX_STOP_WAIT, tasks.wait()).await.is_err() {
            tracing::warn!("stopping while transactions are still on their way");
        }
    }

    /// An answer nobody waits for any more is no loss.
    async fn answer(&self, question: Question) {
        match question {
            Question::View { channel, reply } => {
                let _ = reply.send(self.office.chain.channel(channel).await.map_err(|error| unreachable(&error)));
            }
            Question::Evidence { payer, digest, signature, reply } => {
                let evidence = self.office.chain.payer_evidence(payer, digest, &signature).await;
                let _ = reply.send(evidence.map_err(|error| unreachable(&error)));
            }
            Question::Deposit { config, deposit, place } => self.deposit(config, deposit, place).await,
            Question::Refund { config, row, amount, mut ticket, reply } => {
                let sent = self.refund(&config, row, amount, &mut ticket).await;
                // The channel serves again before its payer hears of the refund.
                drop(ticket);
                let _ = reply.send(sent);
            }
        }
    }

    async fn deposit(&self, config: ChannelConfig, deposit: Deposit, place: DepositPlace) {
        let id = config.id(&self.office.settlement());
        let Some(end) = self.deposit_end(&config, id, &deposit).await else {
            tracing::error!(channel = %id, amount = %deposit.amount, "a deposit is not followed any more; it may still land");
            return drop(place);
        };
        match &end {
            DepositEnd::Landed { transaction, view } => {
                tracing::info!(channel = %id, amount = %deposit.amount, balance = %view.balance, %transaction, "deposit landed");
            }
            other => tracing::warn!(channel = %id, amount = %deposit.amount, end = ?other, "deposit not made"),
        }
        place.end(end);
    }

    /// `None` where nobody can say how it ends.
    async fn deposit_end(&self, config: &ChannelConfig, id: ChannelId, deposit: &Deposit) -> Option<DepositEnd> {
        let chain = &self.office.chain;
        match chain.token_balance(config.token, config.payer).await {
            Ok(balance) if balance < deposit.amount => return Some(DepositEnd::PayerTooPoor),
            Ok(_) => {}
            Err(error) => return Some(not_sent(&error)),
        }
        let call =
            Call::Deposit { config: *config, amount: deposit.amount, authorization: deposit.authorization.clone() };
        // Sending begins with a simulation, so what the contract would refuse is never broadcast.
        let transaction = match chain.send(&call).await {
            Ok(hash) => hash,
            Err(SendError::Refused(error)) => return Some(not_sent(&error)),
            Err(SendError::Unknown { hash, .. }) => hash,
        };
        tracing::debug!(channel = %id, %transaction, "deposit sent");
        self.follow_deposit(config, id, deposit, transaction).await
    }

    /// Waits until the deposit's fate is known, up to [`MAX_DEPOSIT_FOLLOW`].
    ///
    /// The authorization decides it, not our transaction: anybody may relay the same one before us, and then ours
    /// reverts although the money is there.
    async fn follow_deposit(
        &self,
        config: &ChannelConfig,
        id: ChannelId,
        deposit: &Deposit,
        transaction: Hash,
    ) -> Option<DepositEnd> {
        let office = &self.office;
        let deadline = tokio::time::Instant::now() + MAX_DEPOSIT_FOLLOW;
        while tokio::time::Instant::now() < deadline {
            let receipt = office.chain.await_receipt(transaction, RECEIPT_WAIT, office.settings.poll).await;
            let end = match receipt {
                Ok(Some(mined)) if mined.success => Ok(Some(mined.block)),
                Ok(unsuccessful) => self.landed_without_us(config, id, deposit, unsuccessful.as_ref()).await,
                Err(error) => {
                    tracing::warn!(channel = %id, %transaction, %error, "a deposit cannot be followed at the moment");
                    tokio::time::sleep(office.settings.poll).await;
                    continue;
                }
            };
            match end {
                Ok(Some(block)) => {
                    if let Some(view) = self.book_deposit(config, id, deposit, block).await {
                        return Some(DepositEnd::Landed { transaction, view });
                    }
                }
                // Not known yet, or the node cannot say at the moment.
                Ok(None) => tokio::time::sleep(office.settings.poll).await,
                Err(why) => return Some(DepositEnd::Dead(why)),
            }
        }
        None
    }

    /// Whether the authorization was used by another transaction than ours, which reverted or is not mined: the block at
    /// which that was seen; nothing where it may still land; or why it cannot any more.
    async fn landed_without_us(
        &self,
        config: &ChannelConfig,
        id: ChannelId,
        deposit: &Deposit,
        reverted: Option<&Mined>,
    ) -> Result<Option<u64>, String> {
        let chain = &self.office.chain;
        // The block before the question: were it after, the deposit could land in between and be called dead.
        let Ok(head) = chain.head().await else { return Ok(None) };
        let nonce = Authorization::nonce(id, deposit.authorization.salt);
        match (chain.authorization_used(config.token, config.payer, nonce).await, reverted) {
            (Ok(true), _) => Ok(Some(head.number)),
            // This node has not seen yet what reverted it.
            (Ok(false), Some(mined)) if head.number < mined.block => Ok(None),
            (Ok(false), Some(mined)) => Err(format!("transaction {} reverted", mined.hash)),
            (Ok(false), None) if head.timestamp >= deposit.authorization.valid_before => {
                Err("the authorization ran out before it was mined".to_owned())
            }
            (Ok(false), None) | (Err(_), _) => Ok(None),
        }
    }

    async fn book_deposit(&self, config: &ChannelConfig, id: ChannelId, deposit: &Deposit, block: u64) -> Option<View> {
        match self.office.refresh_since(&[(id, *config)], block).await {
            Ok(views) => {
                self.office.accounts().note_deposit(&id, deposit.authorization.salt);
                views.first().copied()
            }
            Err(error) => {
                tracing::warn!(channel = %id, %error, "a deposit landed and its channel cannot be read yet");
                tokio::time::sleep(self.office.settings.poll).await;
                None
            }
        }
    }

    async fn refund(
        &self,
        config: &ChannelConfig,
        row: Option<ClaimRow>,
        amount: Amount,
        ticket: &mut RefundTicket,
    ) -> Result<RefundSent, RefundError> {
        let id = ticket.channel();
        let transaction = self.send_refund(config, row, amount, ticket).await?;
        let mut waits = 0;
        let mined = loop {
            match self.office.chain.await_receipt(transaction, RECEIPT_WAIT, self.office.settings.poll).await {
                Ok(Some(mined)) => break mined,
                _ if waits >= MAX_REFUND_WAITS => return Err(RefundError::Pending),
                Ok(None) => {}
                Err(_) => tokio::time::sleep(self.office.settings.poll).await,
            }
            waits += 1;
        };
        let refunded = refunded_in(&mined, id);
        if let Err(error) = self.office.refresh_since(&[(id, *config)], mined.block).await {
            tracing::warn!(channel = %id, %error, "a refunded channel cannot be read yet");
        }
        if !mined.success || refunded.is_zero() {
            return Err(RefundError::Failed(format!("transaction {transaction} refunded nothing")));
        }
        tracing::info!(channel = %id, amount = %refunded, %transaction, "refunded");
        Ok(RefundSent { transaction, amount: refunded })
    }

    /// Signs with the channel's live nonce. Somebody else's refund may use it up in between; then it is signed again.
    async fn send_refund(
        &self,
        config: &ChannelConfig,
        row: Option<ClaimRow>,
        amount: Amount,
        ticket: &mut RefundTicket,
    ) -> Result<Hash, RefundError> {
        let office = &self.office;
        let id = ticket.channel();
        let settlement = office.settlement();
        let rows: Vec<_> = row.into_iter().collect();
        for signing in 1..=MAX_REFUND_SIGNINGS {
            let view = office.chain.channel(id).await.map_err(|_| RefundError::Unreachable)?;
            let refund = SentRefund { nonce: view.refund_nonce, amount };
            ticket.sign(refund).await.map_err(|_| RefundError::Unreachable)?;
            let call = Call::ClaimAndRefund {
                claim_signature: office.authorizer.sign(claim_batch_digest(&settlement, &rows)),
                rows: rows.clone(),
                config: *config,
                amount,
                nonce: view.refund_nonce,
                refund_signature: office.authorizer.sign(refund_digest(&settlement, id, view.refund_nonce, amount)),
            };
            let error = match office.chain.send(&call).await {
                Ok(hash) | Err(SendError::Unknown { hash, .. }) => return Ok(hash),
                Err(SendError::Refused(error)) => error,
            };
            ticket.not_sent();
            match error.revert_name() {
                Some(name) if name.starts_with("InvalidRefundNonce") && signing < MAX_REFUND_SIGNINGS => {}
                Some(_) => return Err(RefundError::WouldFail(error.to_string())),
                None => {
                    tracing::error!(channel = %id, %error, "a refund could not be sent");
                    return Err(RefundError::Unreachable);
                }
            }
        }
        Err(RefundError::Failed("the refund nonce moved again and again".to_owned()))
    }
}

fn refunded_in(mined: &Mined, id: ChannelId) -> Amount {
    mined.events.iter().fold(Amount::ZERO, |sum, event| match event.what {
        Happening::Refunded { channel, amount } if channel == id => sum.checked_add(amount).unwrap_or(Amount::MAX),
        _ => sum,
    })
}

/// Too much is on its way; nothing was sent.
fn refuse(question: Question) {
    tracing::error!(MAX_TRANSACTIONS, "too many transactions are on their way; one more is refused");
    match question {
        Question::Deposit { place, .. } => place.end(DepositEnd::Unreachable),
        Question::Refund { reply, ticket, .. } => {
            drop(ticket);
            let _ = reply.send(Err(RefundError::Unreachable));
        }
        // Reads wait for their turn and are never refused.
        Question::View { .. } | Question::Evidence { .. } => {}
    }
}

fn unreachable(error: &ChainError) -> DeskError {
    tracing::warn!(%error, "the chain could not be read");
    DeskError::Unreachable
}

/// What an error before broadcasting means: the contract's no is the payer's affair, everything else is ours.
fn not_sent(error: &ChainError) -> DepositEnd {
    match error {
        ChainError::Reverted { .. } => DepositEnd::WouldFail(error.to_string()),
        other => {
            tracing::error!(error = %other, "a deposit could not be relayed");
            DepositEnd::Unreachable
        }
    }
}
