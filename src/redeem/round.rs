//! A round of redemption: claim all that is due, then settle all that is owed.
//!
//! **Owns** the loop: when a round begins, what it claims, what it reports. **Promises** that a row which is in flight is
//! not claimed a second time: a round waits until a block has its claims, however long that takes, and leaves out what
//! other flights claim. A payer that announces a withdrawal meanwhile does not wait: what is in flight pays more at once
//! (`Office::hurry`), and what comes after it is planned anew. **Does not** know how a batch is claimed
//! ([`super::claims`]).
//!
//! What is owed to be settled is read from the contract, so a crash between claim and settlement costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::claims::{Work, claim, claimant};
use super::plan::{self, Batch, Due, Foreign, Plan, Postponed};
use super::quarantine::Quarantine;
use super::record::CallError;
use super::triggers::{Leftovers, Lookout};
use super::vitals::Quarantined;
use super::{MAX_LAGGING_READS, Office, Rules, Settings};
use crate::chain::{Call, Chain, ChainError, Happening};
use crate::clock;
use crate::gate::Statement;
use crate::protocol::{Address, Amount, ChannelId, Dollars, Hash};
use crate::store::Purpose;

/// How many channels that could not be claimed are named in the log, each round. The report has all.
const MAX_FAILURES_LOGGED: usize = 20;

/// How soon a round that ended early is tried again, where the interval is longer. An interval may be hours, and a payer
/// whose withdrawal is running does not wait that long.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// What a round did. Sums are dollars, in units of the preferred token, rounded down; what became of each token is exact
/// in [`Report::tokens`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Channels claimed.
    pub channels: usize,
    /// What they paid, as the `Claimed` events say.
    pub claimed: Amount,
    /// What reached the receivers, as the `Settled` events say.
    pub settled: Amount,
    /// What is still due on the channels we know.
    pub left: Amount,
    /// The same for each token of which something was claimed or settled, by its address.
    #[serde(default)]
    pub tokens: BTreeMap<Address, TokenSums>,
    /// The transactions, in order.
    pub transactions: Vec<Hash>,
    /// Rows that could not be claimed, those in quarantine included.
    pub failures: Vec<RowFailure>,
    /// Rows that are not worth their gas yet, and why.
    #[serde(default)]
    pub postponed: Vec<Postponed>,
    /// Channels whose row the contract refuses, and until when they are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<Quarantined>,
    /// What went wrong with the round as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a round did with one token, in its atomic units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSums {
    /// What was claimed, as the `Claimed` events say.
    pub claimed: Amount,
    /// What reached the receivers, as the `Settled` events say.
    pub settled: Amount,
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
    /// Whether everything that was due is claimed and settled, but for what waits because the rules say so.
    pub fn is_complete(&self) -> bool {
        let waits = self.postponed.iter().map(|row| row.due);
        let waits = waits.fold(Amount::ZERO, |sum, due| sum.saturating_add(due));
        self.problem.is_none() && self.failures.is_empty() && self.left <= waits
    }

    /// Counts what became of a token.
    pub(super) fn count(&mut self, token: Address, dollars: &Dollars, count: impl FnOnce(&mut TokenSums)) {
        count(self.tokens.entry(token).or_default());
        let in_dollars = |sum: fn(&TokenSums) -> Amount| {
            let each = self.tokens.iter().map(|(token, sums)| dollars.of(*token, sum(sums)));
            each.fold(Amount::ZERO, Amount::saturating_add)
        };
        (self.claimed, self.settled) = (in_dollars(|sums| sums.claimed), in_dollars(|sums| sums.settled));
    }

    /// Notes that a channel could not be claimed.
    pub(super) fn fail(&mut self, channel: ChannelId, reason: String) {
        self.failures.push(RowFailure { channel, reason });
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
    let mut quarantine = Quarantine::default();
    let mut lookout = Lookout::new(&office.settings);
    loop {
        let order = tokio::select! {
            // An order that came before the stop is still carried out: the last round is ordered on the way down.
            biased;
            // Once nobody can order any more, the other two go on.
            Some(order) = orders.recv() => Some(order),
            () = stop.cancelled() => return,
            _ = ticks.tick() => None,
            trigger = lookout.called(office.accounts()) => {
                tracing::debug!(%trigger, "a round begins before its time");
                None
            }
        };
        office.last_run.has_claimed().await;
        // Whoever waits for the report is an operator, who may know better; the follower does not wait for it.
        if order.as_ref().is_some_and(|order| !order.is_closed()) {
            quarantine.let_out();
        }
        let (report, left) = round(&office, &mut quarantine).await;
        lookout.round_ended(left, report.problem.is_some());
        log(&report);
        note(&office, &report);
        if report.problem.is_some() {
            ticks.reset_after(RETRY_AFTER.min(interval));
        }
        if let Some(order) = order {
            // Whoever asked may have gone; the round was worth it.
            let _ = order.send(report);
        }
        office.look_at_gas().await;
    }
}

/// A row that the contract refuses is its payer's affair; a round that could not go on is ours, and so is one in which the
/// contract refused what no payer can have spoilt and claimed nothing.
fn note<C: Chain>(office: &Office<C>, report: &Report) {
    let now = clock::now_s();
    office.notes.note(|vitals| {
        vitals.quarantined.clone_from(&report.quarantined);
        match &report.problem {
            None => {
                (vitals.last_complete_round, vitals.failing_since, vitals.problem) = (Some(now), None, None);
            }
            Some(problem) => {
                vitals.failing_since.get_or_insert(now);
                vitals.problem = Some(problem.clone());
            }
        }
    });
}

fn log(report: &Report) {
    let Report { channels, claimed, settled, left, .. } = report;
    for RowFailure { channel, reason } in report.failures.iter().take(MAX_FAILURES_LOGGED) {
        tracing::warn!(%channel, reason, "a channel could not be claimed");
    }
    let more = report.failures.len().saturating_sub(MAX_FAILURES_LOGGED);
    if more > 0 {
        tracing::warn!(more, "so many more channels could not be claimed");
    }
    match &report.problem {
        Some(problem) => tracing::error!(channels, %claimed, %settled, %left, problem, "redemption is incomplete"),
        None if report.transactions.is_empty() => tracing::debug!(%left, "nothing to redeem"),
        None => tracing::info!(channels, %claimed, %settled, %left, "redeemed"),
    }
}

/// A round, and what it left on purpose.
async fn round<C: Chain>(office: &Office<C>, quarantine: &mut Quarantine) -> (Report, Leftovers) {
    let mut work = Work { report: Report::default(), quarantine, block: 0 };
    let mut left = Leftovers::default();
    let outcome = claim_and_settle(office, &mut work, &mut left).await;
    let Work { mut report, quarantine, .. } = work;
    report.problem = outcome.err().map(|error| error.to_string());
    let claimable = office.accounts().claimable();
    quarantine.keep_only(&claimable);
    if report.channels > 0 {
        quarantine.others_are_claimed();
    }
    if let Some(reason) = quarantine.unexplained(&claimable) {
        let refusal =
            || format!("the contract refuses rows that no payer can have spoilt, and claims no others: {reason}");
        report.problem.get_or_insert_with(refusal);
    }
    report.quarantined = quarantine.list(&claimable, office.dollars());
    report.left = plan::due(&claimable, office.dollars());
    report.failures.iter().for_each(|failure| left.leave_out(failure.channel));
    (report, left)
}

async fn claim_and_settle<C: Chain>(
    office: &Office<C>,
    work: &mut Work<'_>,
    left: &mut Leftovers,
) -> Result<(), CallError> {
    // Nodes that disagree may do so until a withdrawal is over. The contract judges a claim by what is true, and trying one
    // that is built on old books costs nothing.
    let mut problem = refresh_claimable(office).await.err().map(CallError::from);
    let mut tried = BTreeSet::new();
    loop {
        let calls = office.flights.calls();
        let now = clock::now_s();
        let (plan, flying) = planned(office, &tried, work, now).await;
        *left = Leftovers::by(&plan, now);
        flying.iter().for_each(|books| left.leave_to_flights(books.id, plan::due_on(books, office.dollars())));
        let Plan { batches, foreign, postponed, quarantined } = plan;
        for Due { channel, .. } in quarantined {
            tried.insert(channel);
            let reason = work.quarantine.reason(&channel).unwrap_or_default().to_owned();
            work.report.fail(channel, reason);
        }
        work.report.postponed = postponed;
        for Foreign { channel, authorizer, .. } in foreign {
            tried.insert(channel);
            work.report.fail(channel, format!("only the key of its receiver authorizer {authorizer} claims it"));
        }
        let mut called = false;
        for Batch { rows, urgent, .. } in batches {
            if problem.is_some() && !urgent {
                continue;
            }
            tried.extend(rows.iter().map(|row| row.config.id(&office.settlement())));
            match claim(office, rows, urgent, work).await {
                Ok(()) => {}
                Err(error) if is_about_this_one(&error) => {
                    problem.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
            called = office.flights.calls() != calls;
            if called {
                break;
            }
        }
        if !called {
            break;
        }
    }
    if let Some(error) = problem.take_if(|_| work.report.transactions.is_empty()) {
        return Err(error);
    }
    let settled = settle(office, work).await;
    problem.map_or(settled, Err)
}

/// Whether another batch may fare better: it may be smaller, and one that is urgent may cost more. A node that does not
/// answer does not answer for the others either.
fn is_about_this_one(error: &CallError) -> bool {
    matches!(error, CallError::Chain(ChainError::TooDear { .. } | ChainError::Refused { .. }))
}

/// What to claim next, of the channels that this round has not tried; and apart from it, what a transaction claims already.
async fn planned<C: Chain>(
    office: &Office<C>,
    tried: &BTreeSet<ChannelId>,
    work: &mut Work<'_>,
    now: u64,
) -> (Plan, Vec<Statement>) {
    // A round does not depend on it: without a price nothing is postponed.
    let price = office.chain.gas_price().await.ok();
    let in_flight = office.flights.claiming(Some(office.sender()), office.last_run.waits_for_claims());
    let is_in_flight = |books: &Statement| {
        in_flight.get(&books.id).zip(plan::claims_in_all(books)).is_some_and(|(claimed, most)| *claimed >= most)
    };
    let (flying, mut books): (Vec<_>, Vec<_>) = office.accounts().claimable().into_iter().partition(is_in_flight);
    books.retain(|books| !tried.contains(&books.id));
    let held: BTreeSet<_> =
        books.iter().filter(|books| work.quarantine.holds(books, now)).map(|books| books.id).collect();
    let is_out = |channel: &ChannelId| held.contains(channel);
    let plan = plan::plan(&books, claimant(office), &office.settings.rules, price.as_ref(), &is_out, now);
    (plan, flying)
}

/// Reads every channel that has something to claim, all at one block, so that no row is built on an old balance.
async fn refresh_claimable<C: Chain>(office: &Office<C>) -> Result<(), ChainError> {
    let channels: Vec<_> = office.accounts().claimable().iter().map(|books| (books.id, books.config)).collect();
    office.refresh_since(&channels, 0).await.map(drop)
}

/// Settles what the contract says is owed, to everybody the books know and the policy names. Nothing owed is no error and
/// no transaction. A receiver that cannot be paid does not hold up the others.
async fn settle<C: Chain>(office: &Office<C>, work: &mut Work<'_>) -> Result<(), CallError> {
    reaches(office, work.block).await?;
    let mut payees = office.accounts().payees();
    payees.extend(office.gate.payees());
    let mut problem = None;
    for (receiver, token) in payees {
        if let Err(error) = settle_with(office, receiver, token, &mut work.report).await {
            tracing::error!(%receiver, %token, %error, "a receiver could not be paid");
            problem.get_or_insert(error);
        }
    }
    problem.map_or(Ok(()), Err)
}

/// Waits until the node has a block that it, or another, has named. Before that it would say that nothing is owed.
async fn reaches<C: Chain>(office: &Office<C>, block: u64) -> Result<(), ChainError> {
    for _ in 0..MAX_LAGGING_READS {
        if block == 0 || office.chain.head().await?.number >= block {
            return Ok(());
        }
        tokio::time::sleep(office.settings.poll).await;
    }
    Err(ChainError::Decode { what: "a block as new as that of a claim it reported", source: None })
}

async fn settle_with<C: Chain>(
    office: &Office<C>,
    receiver: Address,
    token: Address,
    report: &mut Report,
) -> Result<(), CallError> {
    // One that waits for a block pays what is owed once it is there.
    let settling = office.flights.is_settling(receiver, token, office.sender(), office.last_run.waits_for_claims());
    if settling || office.chain.receivers(receiver, token).await?.due().is_zero() {
        return Ok(());
    }
    let mined = office.carry_out(&Call::Settle { receiver, token }, Purpose::Settle { receiver, token }, false).await?;
    if !mined.success {
        return Err(ChainError::Reverted { name: Some("settle".to_owned()) }.into());
    }
    report.transactions.push(mined.on_chain());
    for event in &mined.events {
        if let Happening::Settled { amount, .. } = event.what {
            report.count(token, office.dollars(), |sums| sums.settled = sums.settled.saturating_add(amount));
        }
    }
    Ok(())
}
