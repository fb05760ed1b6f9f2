//! A dry run: what a round would do now, what it would cost, and what it would leave.
//!
//! **Promises** to change nothing, and to ask the chain for the price of gas and nothing else: rows are planned on the
//! books as they are, where a round reads the channels first. **Does not** wait for a round that is in progress; its rows
//! are in the preview until they are claimed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::claims::claimant;
use super::plan::{Batch, Foreign, Plan, Postponed, Rules, plan};
use super::vitals::Quarantined;
use super::{Office, wei};
use crate::chain::{Chain, GasPrice};
use crate::clock;
use crate::protocol::Amount;

/// How many may wait for a preview at once.
pub(super) const MAX_WAITING: usize = 16;

/// What a round would do now. Sums are dollars, in units of the preferred token, rounded down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// The claim transactions, in order.
    pub batches: Vec<PlannedBatch>,
    /// Settlements after them, one for each receiver and token.
    pub settlements: usize,
    /// What all of it claims.
    pub claims: Amount,
    /// The gas all of it is expected to take, settlements included.
    pub gas: u64,
    /// What that is expected to cost, wei; nothing where the price of gas is not known.
    #[serde(with = "wei")]
    pub cost_wei: Option<u128>,
    /// The same in dollars; nothing where the config does not say what a coin is worth.
    pub cost: Option<Amount>,
    /// What is due and stays where it is: the sum of the next three.
    pub leaves: Amount,
    /// What is not worth its gas yet.
    pub postponed: Vec<Postponed>,
    /// What takes another key.
    pub foreign: Vec<Foreign>,
    /// What is left out for a while, and why.
    pub quarantined: Vec<Quarantined>,
    /// What a unit of gas costs, tip included, wei.
    #[serde(with = "wei")]
    pub gas_price_wei: Option<u128>,
    /// What a byte of data costs beside gas, wei.
    #[serde(with = "wei")]
    pub data_wei_per_byte: Option<u128>,
    /// Why the price of gas is not known. Without it nothing is postponed.
    pub problem: Option<String>,
}

/// A claim transaction that would be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedBatch {
    /// How many channels.
    pub rows: usize,
    /// Whether a payer is withdrawing what it claims.
    pub urgent: bool,
    /// What it claims, atomic units.
    pub claims: Amount,
    /// The gas it is expected to take.
    pub gas: u64,
    /// What that is expected to cost, wei.
    #[serde(with = "wei")]
    pub cost_wei: Option<u128>,
    /// The same in atomic units of the token.
    pub cost: Option<Amount>,
}

impl Preview {
    fn of(plan: Plan, rules: &Rules, price: Result<GasPrice, String>, quarantine: &[Quarantined]) -> Self {
        let (price, problem) = match price {
            Ok(price) => (Some(price), None),
            Err(problem) => (None, Some(problem)),
        };
        let planned = |batch: &Batch| {
            let cost_wei = price.as_ref().map(|price| batch.cost(price));
            let cost = cost_wei.and_then(|wei| rules.worth(wei));
            let Batch { rows, urgent, claims } = batch;
            PlannedBatch { rows: rows.len(), urgent: *urgent, claims: *claims, gas: batch.gas(), cost_wei, cost }
        };
        let cost_wei = price.as_ref().map(|price| plan.cost(price));
        let reasons: BTreeMap<_, _> = quarantine.iter().map(|row| (row.channel, row)).collect();
        let in_quarantine = plan.quarantined.iter().filter_map(|row| {
            let known = reasons.get(&row.channel)?;
            Some(Quarantined { unclaimed: row.due, ..Quarantined::clone(known) })
        });
        Self {
            batches: plan.batches.iter().map(planned).collect(),
            settlements: plan.settlements(),
            claims: plan.claims(),
            gas: plan.gas(),
            cost_wei,
            cost: cost_wei.and_then(|wei| rules.worth(wei)),
            leaves: plan.leaves(),
            quarantined: in_quarantine.collect(),
            postponed: plan.postponed,
            foreign: plan.foreign,
            gas_price_wei: price.map(|price| price.base_wei.saturating_add(price.tip_wei)),
            data_wei_per_byte: price.map(|price| price.data_wei_per_byte),
            problem,
        }
    }
}

/// Answers whoever asks for a preview, until told to stop.
pub(super) async fn run<C: Chain>(
    office: Office<C>,
    mut waiting: mpsc::Receiver<oneshot::Sender<Preview>>,
    stop: CancellationToken,
) {
    loop {
        let reply = tokio::select! {
            () = stop.cancelled() => return,
            Some(reply) = waiting.recv() => reply,
            else => return,
        };
        let preview = tokio::select! {
            () = stop.cancelled() => return,
            preview = preview(&office) => preview,
        };
        // Whoever asked may have gone.
        let _ = reply.send(preview);
    }
}

async fn preview<C: Chain>(office: &Office<C>) -> Preview {
    let price = office.chain.gas_price().await.map_err(|error| error.to_string());
    let now = clock::now_s();
    let quarantine = office.notes.in_quarantine(now);
    let rules = &office.settings.rules;
    let out: BTreeSet<_> = quarantine.iter().map(|row| row.channel).collect();
    let is_out = |channel: &_| out.contains(channel);
    let planned = plan(&office.accounts().claimable(), claimant(office), rules, price.as_ref().ok(), &is_out, now);
    Preview::of(planned, rules, price, &quarantine)
}
