//! Redemption: the provider's money comes home by itself.
//!
//! **Owns** the other end of the gate's desk ([`Teller`]: deposits, refunds, reads), the plan of what to claim
//! ([`plan()`], pure), the loop that claims and settles, the nonces of the key that pays for transactions, and the follower
//! of the contract's events. **Promises** that
//! the books move by what the chain says after a transaction is mined, never by what was sent; that every transaction is
//! in the books before it leaves, and followed until its fate is known, across crashes; that one which is stuck is
//! replaced at its own nonce, so that nothing is paid for twice; and that the authorizer's key
//! signs claim batches and refunds made here and nothing else. **Does not** keep accounts or answer HTTP.

mod claims;
mod counting;
mod deposit;
mod flights;
mod follow;
mod idle;
mod pilot;
mod plan;
mod preview;
mod quarantine;
mod record;
mod resume;
mod round;
mod sweep;
mod teller;
mod triggers;
mod vitals;
mod wei;
mod window;

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::chain::{Chain, ChainError};
use crate::clock;
use crate::gate::{Accounts, Gate, Questions};
use crate::ledger::View;
use crate::protocol::{Address, ChannelConfig, ChannelId, Dollars, Domain, LocalKey};
use crate::store::Opening;
use flights::Flights;
use follow::Follower;
use resume::LastRun;
use vitals::Notes;

pub use plan::{
    Batch, CLAIM_GAS, Claimant, Due, Foreign, Plan, Postponed, ROW_GAS, Rules, SETTLE_GAS, WALLET_GAS, Why, claim_cost,
    plan,
};
pub use preview::{PlannedBatch, Preview};
pub use round::{Report, RowFailure, TokenSums};
pub use teller::Teller;
pub use triggers::{Leftovers, Trigger, calls_for_a_round};
pub use vitals::{InFlight, LastClaim, Quarantined, Vitals};

/// How redemption is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// When to claim, and what.
    pub rules: Rules,
    /// How transactions are brought into a block.
    pub sending: Sending,
    /// How the chain is watched.
    pub watch: Watch,
    /// For how long claims may fail before they count as stuck and the proxy as unready.
    pub stuck_after: Duration,
    /// Between two questions for a receipt or for new blocks.
    pub poll: Duration,
}

/// How transactions are brought into a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sending {
    /// How many blocks, its own included, a transaction must have on it before its end is written down for good.
    pub confirmations: u64,
    /// How long a transaction may wait for a block before it is replaced by one that pays more.
    pub bump_after: Duration,
    /// The most that is paid for a unit of gas, wei.
    pub max_fee_wei: u128,
    /// The same where something is lost if it comes late: a payer is withdrawing what it owes.
    pub urgent_max_fee_wei: u128,
}

/// How the chain is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// How often every open channel is read, in case an event was missed.
    pub sweep_interval: Duration,
    /// After how long without a request a channel is given back to its payer; never, if none.
    pub refund_idle: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            sending: Sending::default(),
            watch: Watch::default(),
            stuck_after: Duration::from_secs(3_600),
            poll: Duration::from_secs(2),
        }
    }
}

impl Default for Sending {
    fn default() -> Self {
        Self {
            confirmations: 1,
            bump_after: Duration::from_secs(30),
            max_fee_wei: 50_000_000_000,
            urgent_max_fee_wei: 500_000_000_000,
        }
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self { sweep_interval: Duration::from_secs(600), refund_idle: None }
    }
}

/// What every part of this room works with.
pub(crate) struct Office<C> {
    pub(crate) gate: Gate,
    pub(crate) chain: Arc<C>,
    pub(crate) authorizer: LocalKey,
    pub(crate) settings: Settings,
    /// What is on its way.
    flights: Flights,
    /// What the last process left.
    last_run: LastRun,
    /// What was booked of blocks that the follower may not have read.
    /// What operators should know.
    notes: Notes,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl<C> Clone for Office<C> {
    fn clone(&self) -> Self {
        Self {
            gate: self.gate.clone(),
            chain: Arc::clone(&self.chain),
            authorizer: self.authorizer.clone(),
            settings: self.settings.clone(),
            flights: self.flights.clone(),
            last_run: self.last_run.clone(),
            notes: self.notes.clone(),
            stop: self.stop.clone(),
            tasks: self.tasks.clone(),
        }
    }
}

impl<C: Chain> Office<C> {
    pub(crate) fn accounts(&self) -> &Accounts {
        self.gate.accounts()
    }

    /// How the tokens are counted together.
    pub(crate) fn dollars(&self) -> &Dollars {
        &self.settings.rules.dollars
    }

    /// In what a channel of the books is paid.
    fn token_of(&self, channel: &ChannelId) -> Option<Address> {
        self.accounts().statement(channel).map(|statement| statement.config.token)
    }

    /// The domain claims and refunds are signed under.
    pub(crate) fn settlement(&self) -> Domain {
        *self.gate.settlement()
    }

    /// Reads channels at `block` or later and books what the chain says. A node that lags behind the transaction we just
    /// saw mined is asked again, because its views would be older than our own; one that stays behind is an error, because
    /// what it says would read as if the transaction had not been.
    pub(crate) async fn refresh_since(
        &self,
        channels: &[(ChannelId, ChannelConfig)],
        block: u64,
    ) -> Result<Vec<View>, ChainError> {
        let ids: Vec<_> = channels.iter().map(|(id, _)| *id).collect();
        for _ in 0..MAX_LAGGING_READS {
            let views = self.chain.channels(&ids).await?;
            if views.iter().all(|view| view.block >= block) {
                for ((id, config), view) in channels.iter().zip(&views) {
                    if let Err(reject) = self.accounts().observe(*id, config, *view) {
                        tracing::error!(channel = %id, %reject, "the node's answer cannot be true");
                    }
                }
                return Ok(views);
            }
            tokio::time::sleep(self.settings.poll).await;
        }
        Err(ChainError::Decode { what: "a block as new as that of a transaction it reported", source: None })
    }
}

/// How often a node that is behind is asked again.
pub(super) const MAX_LAGGING_READS: usize = 30;

/// How many orders for a round may wait. One is enough to be served; more are the same order.
const MAX_ORDERS: usize = 16;

/// Redemption at work. Dropping it stops nothing; [`Redemption::stop`] does.
#[derive(Debug, Clone)]
pub struct Redemption {
    orders: mpsc::Sender<oneshot::Sender<Report>>,
    previews: mpsc::Sender<oneshot::Sender<Preview>>,
    stop: CancellationToken,
    tasks: TaskTracker,
    heard: Heard,
    accounts: Accounts,
    flights: Flights,
    notes: Notes,
    settings: Arc<Settings>,
}

/// When the chain last answered.
#[derive(Debug, Clone)]
struct Heard(Arc<std::sync::Mutex<Instant>>);

impl Heard {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn ago(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// Redemption has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("redemption has stopped")]
pub struct Stopped;

impl Redemption {
    /// Starts the teller, the follower and the loop for a gate. `opening` is what the last process left to be done, by the
    /// gate's books.
    pub fn start<C: Chain>(
        gate: Gate,
        questions: Questions,
        chain: Arc<C>,
        authorizer: LocalKey,
        mut settings: Settings,
        opening: Opening,
    ) -> Self {
        settings.rules.max_wallet_exposure = gate.limits().max_wallet_exposure;
        settings.rules.dollars = gate.dollars();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (flights, last_run, notes) = (Flights::default(), LastRun::new(), Notes::default());
        let (accounts, kept) = (gate.accounts().clone(), Arc::new(settings.clone()));
        let office = Office {
            gate,
            chain,
            authorizer,
            settings,
            flights: flights.clone(),
            last_run,
            notes: notes.clone(),
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        // Before the first request can bring one of these deposits again.
        let left = office.take_up(opening.unfinished);
        let (orders, waiting) = mpsc::channel(MAX_ORDERS);
        let (previews, curious) = mpsc::channel(preview::MAX_WAITING);
        let heard = Heard(Arc::new(std::sync::Mutex::new(Instant::now())));
        let redemption = Self { orders, previews, stop, tasks, heard, accounts, flights, notes, settings: kept };
        let stop = &redemption.stop;
        redemption.tasks.spawn(Teller::new(office.clone()).run(questions, stop.clone()));
        redemption.tasks.spawn(round::run(office.clone(), waiting, stop.clone()));
        redemption.tasks.spawn(preview::run(office.clone(), curious, stop.clone()));
        redemption.tasks.spawn(resume::run(office.clone(), left));
        redemption.tasks.spawn(vitals::watch_gas(office.clone()));
        redemption.tasks.spawn(idle::run(office.clone()));
        let follower = Follower::new(office, redemption.orders.clone(), redemption.heard.clone(), opening.cursor);
        redemption.tasks.spawn(follower.run());
        redemption.tasks.close();
        redemption
    }

    /// Claims and settles all there is, now; after a round that is in progress.
    pub async fn redeem(&self) -> Result<Report, Stopped> {
        let (reply, report) = oneshot::channel();
        self.orders.send(reply).await.map_err(|_| Stopped)?;
        report.await.map_err(|_| Stopped)
    }

    /// What a round would do now. Nothing is changed, and the chain is asked for the price of gas only.
    pub async fn plan(&self) -> Result<Preview, Stopped> {
        let (reply, preview) = oneshot::channel();
        self.previews.send(reply).await.map_err(|_| Stopped)?;
        preview.await.map_err(|_| Stopped)
    }

    /// How long the chain has not answered. The follower asks it all the time.
    pub fn chain_silence(&self) -> Duration {
        self.heard.ago()
    }

    /// How redemption is doing.
    pub fn vitals(&self) -> Vitals {
        self.notes.with_books(&self.accounts, &self.flights, self.heard.ago(), &self.settings.rules.dollars)
    }

    /// How redemption is doing, if claims have failed for longer than they may; otherwise this costs nothing.
    pub fn stuck(&self) -> Option<Vitals> {
        let failing_since = self.notes.failing_since(&self.flights);
        let stuck = Vitals { failing_since, ..Vitals::default() }.is_stuck(clock::now_s(), self.settings.stuck_after);
        stuck.then(|| self.vitals())
    }

    /// How it is run.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Stops everything. A round in progress ends first, and so do deposits and refunds on their way; but what waits for a
    /// block is followed a little longer only, and is in the books for the next process. The journal must be open until
    /// this returns.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}
