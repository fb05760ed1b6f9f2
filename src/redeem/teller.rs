//! The teller: answers what the gate asks of the chain.
//!
//! A deposit is tried before it is sent, and once sent it is followed until its fate is known: mined, reverted, or past
//! the time until which the payer's authorization holds. Nothing is reported as failed while it may land.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Office;
use super::flights::Seat;
use super::pilot::MAX_STOP_WAIT;
use super::record::{CallError, rows_of};
use crate::chain::{Call, Chain, ChainError, FirstPayment, Happening, Mined};
use crate::gate::Questions;
use crate::gate::accounts::RefundTicket;
use crate::gate::desk::{DepositEnd, DepositPlace, DeskError, Question, RefundError, RefundSent};
use crate::ledger::SentRefund;
use crate::protocol::claim::{ClaimRow, claim_batch_digest, refund_digest};
use crate::protocol::x402::Deposit;
use crate::protocol::{Amount, ChannelConfig, ChannelId};
use crate::store::Purpose;

/// How many questions are worked on at once.
const MAX_AT_ONCE: usize = 64;

/// How many deposits and refunds may be on their way at once. They are counted apart: one that is not mined for a long
/// time must not keep the others from being asked about.
const MAX_TRANSACTIONS: usize = 256;

/// How often a refund is signed again because its nonce was used up by somebody else.
const MAX_REFUND_SIGNINGS: usize = 3;

/// How long a refund's payer waits for a block before its channel is served again. The refund may land all the same.
const MAX_REFUND_WAIT: std::time::Duration = std::time::Duration::from_secs(600);

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
                Question::View { .. } | Question::Evidence { .. } | Question::Allowance { .. } => {
                    Arc::clone(&reads).acquire_owned().await.ok()
                }
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
            Question::Allowance { token, payer, spender, reply } => {
                let allowance = self.office.chain.allowance(token, payer, spender).await;
                let _ = reply.send(allowance.map_err(|error| unreachable(&error)));
            }
            Question::Deposit { config, deposit, voucher, price, place } => {
                self.deposit(config, deposit, FirstPayment { voucher, price }, place).await;
            }
            Question::Refund { config, row, amount, mut ticket, reply } => {
                let sent = self.refund(&config, row, amount, &mut ticket).await;
                // The channel serves again before its payer hears of the refund.
                drop(ticket);
                let _ = reply.send(sent);
            }
        }
    }

    async fn deposit(&self, config: ChannelConfig, deposit: Deposit, payment: FirstPayment, place: DepositPlace) {
        match self.send_deposit(config, &deposit, payment).await {
            Ok(seat) => {
                tracing::debug!(channel = %place.channel(), transaction = %seat.transaction.hash, "deposit sent");
                self.office.end_deposit(seat, Some(place)).await;
            }
            Err(end) => {
                tracing::warn!(channel = %place.channel(), amount = %deposit.amount, ?end, "deposit not made");
                place.end(end);
            }
        }
    }

    async fn send_deposit(
        &self,
        config: ChannelConfig,
        deposit: &Deposit,
        payment: FirstPayment,
    ) -> Result<Seat, DepositEnd> {
        let office = &self.office;
        office.last_run.is_sent().await;
        let balance = office.chain.token_balance(config.token, config.payer).await;
        if balance.map_err(|error| not_sent(&error.into()))? < deposit.amount {
            return Err(DepositEnd::PayerTooPoor);
        }
        let Deposit { amount, authorization } = deposit;
        let (amount, salt, valid_before) = (*amount, authorization.salt(), authorization.valid_before());
        let call = Call::Deposit { config, amount, authorization: authorization.clone(), payment: Some(payment) };
        // Sending begins with a simulation, so what the contract would refuse is never broadcast.
        let sent = office.launch(&call, Purpose::Deposit { config, amount, salt, valid_before }, false).await;
        sent.map_err(|error| not_sent(&error))
    }

    async fn refund(
        &self,
        config: &ChannelConfig,
        row: Option<ClaimRow>,
        amount: Amount,
        ticket: &mut RefundTicket,
    ) -> Result<RefundSent, RefundError> {
        let id = ticket.channel();
        self.office.last_run.is_sent().await;
        let mut seat = self.send_refund(config, row, amount, ticket).await?;
        let mined = match tokio::time::timeout(MAX_REFUND_WAIT, seat.landed()).await {
            Ok(Ok(mined)) => mined,
            Ok(Err(CallError::Left { .. })) | Err(_) => return Err(RefundError::Pending),
            Ok(Err(error)) => return Err(RefundError::Failed(error.to_string())),
        };
        let (transaction, refunded) = (mined.on_chain(), refunded_in(&mined, id));
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
    ) -> Result<Seat, RefundError> {
        let office = &self.office;
        let id = ticket.channel();
        let settlement = office.settlement();
        let rows: Vec<_> = row.into_iter().collect();
        for signing in 1..=MAX_REFUND_SIGNINGS {
            let view = office.chain.channel(id).await.map_err(|_| RefundError::Unreachable)?;
            let refund = SentRefund { nonce: view.refund_nonce, amount };
            ticket.sign(refund).await.map_err(|latched| {
                tracing::error!(channel = %id, reason = latched.reason(), "no refund is signed");
                RefundError::Unreachable
            })?;
            let call = Call::ClaimAndRefund {
                claim_signature: office.authorizer.sign(claim_batch_digest(&settlement, &rows)),
                rows: rows.clone(),
                config: *config,
                amount,
                nonce: view.refund_nonce,
                refund_signature: office.authorizer.sign(refund_digest(&settlement, id, view.refund_nonce, amount)),
            };
            let nonce = view.refund_nonce;
            let purpose = Purpose::Refund { channel: id, amount, nonce, rows: rows_of(&rows, &settlement) };
            let error = match office.launch(&call, purpose, false).await {
                Ok(sent) => return Ok(sent),
                Err(error) => error,
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
        Happening::Refunded { channel, amount } if channel == id => sum.saturating_add(amount),
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
        Question::View { .. } | Question::Evidence { .. } | Question::Allowance { .. } => {}
    }
}

fn unreachable(error: &ChainError) -> DeskError {
    tracing::warn!(%error, "the chain could not be read");
    DeskError::Unreachable
}

/// What an error before broadcasting means: the contract's no is the payer's affair, everything else is ours.
fn not_sent(error: &CallError) -> DepositEnd {
    match error {
        CallError::Chain(ChainError::Reverted { .. }) => DepositEnd::WouldFail(error.to_string()),
        other => {
            tracing::error!(error = %other, "a deposit could not be relayed");
            DepositEnd::Unreachable
        }
    }
}
