//! A round of redemption: claim all that is due, then settle all that is owed.
//!
//! A batch that the contract would refuse is halved until the bad row is alone; the rest is claimed in the same round.
//! What is owed to be settled is read from the contract, so a crash between claim and settlement costs nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::plan::{self, Claimant, Foreign, plan};
use super::record::{CallError, fate_of, rows_of};
use super::{Office, Rules, Settings};
use crate::chain::{Call, Chain, ChainError, Happening, Mined};
use crate::clock;
use crate::protocol::claim::{ClaimRow, claim_batch_digest};
use crate::protocol::{Address, Amount, ChannelId, Hash};
use crate::store::Purpose;

/// How long a round waits for one of its transactions, seconds. After that the round ends, and the next one finds on
/// chain whatever became of it.
const MAX_RECEIPT_WAIT: Duration = Duration::from_secs(180);

/// How many channels that could not be claimed are named in the log, each round. The report has all.
const MAX_FAILURES_LOGGED: usize = 20;

/// How soon a round that ended early is tried again, where the interval is longer. An interval may be hours, and a payer
/// whose withdrawal is running does not wait that long.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// What a round did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Channels claimed.
    pub channels: usize,
    /// What they paid, as the `Claimed` events say, atomic units.
    pub claimed: Amount,
    /// What reached the receivers, as the `Settled` events say, atomic units.
    pub settled: Amount,
    /// What is still due on the channels we know, atomic units.
    pub left: Amount,
    /// The transactions, in order.
    pub transactions: Vec<Hash>,
    /// Rows that could not be claimed.
    pub failures: Vec<RowFailure>,
    /// What went wrong with the round as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A channel that could not be claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowFailure {
    /// Which.
    pub channel: ChannelId,
    /// Why.
    pub reason: String,
}

impl Report {
    /// Whether everything that was due is claimed and settled.
    pub fn is_complete(&self) -> bool {
        self.problem.is_none() && self.failures.is_empty() && self.left.is_zero()
    }
}

/// Runs rounds: on the interval and on orders.
pub(super) async fn run<C: Chain>(
    office: Office<C>,
    mut orders: mpsc::Receiver<oneshot::Sender<Report>>,
    stop: CancellationToken,
) {
    let Settings { rules: Rules { interval, .. }, .. } = office.settings;
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let order = tokio::select! {
            // An order that came before the stop is still carried out: the last round is ordered on the way down.
            biased;
            // Once nobody can order any more, the other two go on.
            Some(order) = orders.recv() => Some(order),
            () = stop.cancelled() => return,
            _ = ticks.tick() => None,
        };
        office.last_run.has_claimed().await;
        let report = round(&office).await;
        log(&report);
        note(&office, &report);
        if report.problem.is_some() {
            ticks.reset_after(RETRY_AFTER.min(interval));
        }
        if let Some(order) = order {
            // Whoever asked may have gone; the round was worth it.
            let _ = order.send(report);
        }
    }
}

/// A row that the contract refuses is its payer's affair; a round that could not go on is ours.
fn note<C: Chain>(office: &Office<C>, report: &Report) {
    let now = clock::now_s();
    office.notes.note(|vitals| match &report.problem {
        None => {
            (vitals.last_complete_round, vitals.failing_since, vitals.problem) = (Some(now), None, None);
        }
        Some(problem) => {
            vitals.failing_since.get_or_insert(now);
            vitals.problem = Some(problem.clone());
        }
    });
}

fn log(report: &Report) {
    let Report { channels, claimed, settled, left, .. } = report;
    for RowFailure { channel, reason } in report.failures.iter().take(MAX_FAILURES_LOGGED) {
        tracing::error!(%channel, reason, "a channel could not be claimed");
    }
    let more = report.failures.len().saturating_sub(MAX_FAILURES_LOGGED);
    if more > 0 {
        tracing::error!(more, "so many more channels could not be claimed");
    }
    match &report.problem {
        Some(problem) => tracing::error!(channels, %claimed, %settled, %left, problem, "redemption is incomplete"),
        None if report.transactions.is_empty() => tracing::debug!(%left, "nothing to redeem"),
        None => tracing::info!(channels, %claimed, %settled, %left, "redeemed"),
    }
}

async fn round<C: Chain>(office: &Office<C>) -> Report {
    let mut report = Report::default();
    if let Err(error) = claim_and_settle(office, &mut report).await {
        report.problem = Some(error.to_string());
    }
    report.left = plan::due(&office.accounts().claimable());
    report
}

async fn claim_and_settle<C: Chain>(office: &Office<C>, report: &mut Report) -> Result<(), CallError> {
    refresh_claimable(office).await?;
    let planned = plan(&office.accounts().claimable(), claimant(office), office.settings.rules.max_rows);
    report.failures.extend(planned.foreign.iter().map(|Foreign { channel, authorizer }| RowFailure {
        channel: *channel,
        reason: format!("only the key of its receiver authorizer {authorizer} claims it"),
    }));
    for batch in planned.batches {
        claim(office, batch.rows, report).await?;
    }
    settle(office, report).await
}

fn claimant<C: Chain>(office: &Office<C>) -> Claimant {
    Claimant { authorizer: office.authorizer.address(), sender: office.chain.sender() }
}

/// Reads every channel that has something to claim, all at one block, so that no row is built on an old balance.
async fn refresh_claimable<C: Chain>(office: &Office<C>) -> Result<(), ChainError> {
    let channels: Vec<_> = office.accounts().claimable().iter().map(|books| (books.id, books.config)).collect();
    office.refresh_since(&channels, 0).await.map(drop)
}

/// Claims rows; those the contract refuses are found by halving and reported.
async fn claim<C: Chain>(office: &Office<C>, rows: Vec<ClaimRow>, report: &mut Report) -> Result<(), CallError> {
    let mut waiting = vec![rows];
    while let Some(rows) = waiting.pop() {
        office.may_sign()?;
        let purpose = Purpose::Claim { rows: rows_of(&rows, &office.settlement()) };
        let sent = send(office, &claim_call(office, &rows), purpose).await;
        if let Ok(mined) = &sent {
            if mined.success {
                book_claims(office, &rows, mined, report).await;
            }
            office.ended(mined.hash, fate_of(mined));
        }
        match sent {
            Ok(mined) if mined.success => {}
            // Mined and reverted, though the node let it pass: one row's state moved in between, and the others must
            // not wait for it.
            Ok(mined) if rows.len() > 1 => {
                tracing::warn!(transaction = %mined.hash, rows = rows.len(), "a claim reverted when it was mined");
                waiting.extend(halves(&rows));
            }
            Ok(mined) => fail(office, &rows, &format!("transaction {} reverted", mined.hash), report),
            Err(CallError::Chain(ChainError::Reverted { .. })) if rows.len() > 1 => waiting.extend(halves(&rows)),
            Err(CallError::Chain(error @ ChainError::Reverted { .. })) => {
                fail(office, &rows, &error.to_string(), report)
            }
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// Both halves of a batch, as a stack takes them: the first is on top.
fn halves(rows: &[ClaimRow]) -> [Vec<ClaimRow>; 2] {
    let (first, second) = rows.split_at(rows.len() / 2);
    [second.to_vec(), first.to_vec()]
}

/// The receiver and its authorizer may claim by themselves, which is cheaper; anybody else shows the authorizer's
/// signature.
fn claim_call<C: Chain>(office: &Office<C>, rows: &[ClaimRow]) -> Call {
    let claimant = claimant(office);
    if rows.iter().all(|row| claimant.sends_for(row)) {
        Call::Claim { rows: rows.to_vec() }
    } else {
        let signature = office.authorizer.sign(claim_batch_digest(&office.settlement(), rows));
        Call::ClaimWithSignature { rows: rows.to_vec(), signature }
    }
}

fn fail<C: Chain>(office: &Office<C>, rows: &[ClaimRow], reason: &str, report: &mut Report) {
    let settlement = office.settlement();
    report
        .failures
        .extend(rows.iter().map(|row| RowFailure { channel: row.config.id(&settlement), reason: reason.to_owned() }));
}

/// Books what the events say, and reads the channels again.
async fn book_claims<C: Chain>(office: &Office<C>, rows: &[ClaimRow], mined: &Mined, report: &mut Report) {
    report.transactions.push(mined.on_chain());
    for event in &mined.events {
        if let Happening::Claimed { amount, .. } = event.what {
            report.channels += 1;
            report.claimed = report.claimed.checked_add(amount).unwrap_or(Amount::MAX);
        }
    }
    let settlement = office.settlement();
    let channels: Vec<_> = rows.iter().map(|row| (row.config.id(&settlement), row.config)).collect();
    if let Err(error) = office.refresh_since(&channels, mined.block).await {
        // The other batches do not wait for it: a row that is claimed again changes nothing.
        tracing::warn!(transaction = %mined.hash, %error, "claimed channels cannot be read yet");
    }
}

/// Settles what the contract says is owed, to everybody the books know and the policy names. Nothing owed is no error and
/// no transaction. A receiver that cannot be paid does not hold up the others.
async fn settle<C: Chain>(office: &Office<C>, report: &mut Report) -> Result<(), CallError> {
    let policy = office.gate.policy();
    let mut payees = office.accounts().payees();
    payees.insert((policy.terms().pay_to, policy.terms().token.address));
    let mut problem = None;
    for (receiver, token) in payees {
        if let Err(error) = settle_with(office, receiver, token, report).await {
            tracing::error!(%receiver, %token, %error, "a receiver could not be paid");
            problem.get_or_insert(error);
        }
    }
    problem.map_or(Ok(()), Err)
}

async fn settle_with<C: Chain>(
    office: &Office<C>,
    receiver: Address,
    token: Address,
    report: &mut Report,
) -> Result<(), CallError> {
    if office.chain.receivers(receiver, token).await?.due().is_zero() {
        return Ok(());
    }
    let mined = send(office, &Call::Settle { receiver, token }, Purpose::Settle { receiver, token }).await?;
    office.ended(mined.hash, fate_of(&mined));
    if !mined.success {
        return Err(ChainError::Reverted { name: Some("settle".to_owned()) }.into());
    }
    report.transactions.push(mined.on_chain());
    for event in &mined.events {
        if let Happening::Settled { amount, .. } = event.what {
            report.settled = report.settled.checked_add(amount).unwrap_or(Amount::MAX);
        }
    }
    Ok(())
}

/// Sends a call and waits until it is mined; its end is the caller's to write. One that is not mined in time is followed
/// further by others.
async fn send<C: Chain>(office: &Office<C>, call: &Call, purpose: Purpose) -> Result<Mined, CallError> {
    let transaction = office.send(call, purpose).await?;
    let hash = transaction.hash;
    let problem = match office.chain.await_receipt(hash, MAX_RECEIPT_WAIT, office.settings.poll).await {
        Ok(Some(mined)) => return Ok(mined),
        Ok(None) => ChainError::NotMined { transaction: hash },
        Err(error) => error,
    };
    office.leave(transaction);
    Err(problem.into())
}
