//! One trial: what is there, what happens, and in which order.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use peaje::gate::policy::{Terms, TokenTerms};
use peaje::ledger::{LatestVoucher, Snapshot, View};
use peaje::protocol::bytes::keccak256;
use peaje::protocol::x402::{self, PAYMENT_REQUIRED};
use peaje::protocol::{Address, Amount, ChannelId, LocalKey, Network, Voucher};
use peaje::redeem::{Rules, Sending, Settings, Watch};
use peaje::store::sqlite::SqliteStore;
use peaje::store::{Booking, ChannelEntry, ChannelRow, Entry, LedgerStore as _};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use super::Tally;
use super::dice::Dice;
use super::gateway::{Death, Gateway, Spell, Switch, When};
use super::judge;
use super::node::{CHAIN_ID, Kind, Node, dev};
use super::onchain::{Deed, FAR_AWAY_S};
use super::payer::{Payer, Payment, now_s};
use super::process::{IDENTITY, Life, PRICES};

/// How many channels a trial has, from and to.
const CHANNELS: (usize, usize) = if cfg!(debug_assertions) { (20, 40) } else { (20, 100) };

/// How many things happen while faults are at work, from and to: some milliseconds each.
const STEPS: (usize, usize) = (120, 320);

/// How long one spell lasts, milliseconds, from and to.
const SPELL_MS: (usize, usize) = (15, 200);

/// How long after the faults everything must be claimed and settled.
fn patience() -> Duration {
    Duration::from_secs(super::number_in("PEAJE_PATIENCE_S").unwrap_or(60))
}

/// How long a reorganisation waits for something to replace.
const MOMENT: Duration = Duration::from_millis(80);

/// The delay of withdrawals, seconds: the shortest there is.
const WITHDRAW_DELAY_S: u64 = 900;

/// The base fee of a spike, wei a unit of gas: above what is paid for anything that can wait, or just much.
const SPIKES: [u64; 2] = [60_000_000_000, 400_000_000];

/// Requests that may be under way at once.
const MAX_PAYING: usize = 12;

/// What makes a row one that no batch survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Poison {
    /// Its voucher was signed by somebody else.
    BadSignature,
    /// It owes more than its channel has.
    Drained,
}

/// A channel and its payer.
pub(crate) struct Agent {
    pub(crate) payer: Payer,
    pub(crate) deposit: u128,
    /// Whether the proxy relays its deposit.
    by_gate: bool,
    pub(crate) poison: Option<Poison>,
    purse: Mutex<Purse>,
}

/// What a payer knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Purse {
    /// The sum in the last receipt it holds.
    pub(crate) acknowledged: u128,
    /// What may have been charged beyond that, by a request whose answer it never saw.
    pub(crate) doubt: u128,
    busy: bool,
    opened: bool,
    /// What it announced to take out, and whether it has.
    leaving: Option<bool>,
}

impl Agent {
    pub(crate) fn id(&self) -> ChannelId {
        self.payer.id()
    }

    pub(crate) fn purse<T>(&self, look: impl FnOnce(&mut Purse) -> T) -> T {
        look(&mut self.purse.lock().unwrap())
    }
}

pub(crate) struct Trial {
    dice: Dice,
    pub(crate) node: Arc<Node>,
    pub(crate) gateway: Gateway,
    pub(crate) agents: Vec<Arc<Agent>>,
    pub(crate) terms: Terms,
    settings: Settings,
    folder: tempfile::TempDir,
    life: Option<Life>,
    /// Deaths that are still to come.
    deaths: Vec<Death>,
    jobs: JoinSet<Result<(), String>>,
    /// The transactions payers sent themselves.
    sent: Vec<Vec<u8>>,
    /// Channels whose deposit a reorganisation dropped that was deeper than anybody waits.
    pub(crate) dropped: HashSet<ChannelId>,
    pub(crate) tally: Tally,
    pub(crate) reorgs: u64,
    pub(crate) crashes: u64,
    spikes_end: Option<Instant>,
    blocks_come_again: Option<Instant>,
    /// Whether faults are left out for the moment.
    calm: bool,
}

/// Plays a seed.
pub(crate) fn run(seed: u64, kind: Kind) -> (Tally, Result<(), String>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let result = runtime.block_on(async {
        let mut trial = Trial::set(seed, kind).await;
        let outcome = trial.play().await;
        if let Some(life) = trial.life.take() {
            life.crash();
        }
        trial.count();
        (std::mem::take(&mut trial.tally), outcome)
    });
    runtime.shutdown_background();
    result
}

impl Trial {
    async fn set(seed: u64, kind: Kind) -> Self {
        let mut dice = Dice::new(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
        let node = Node::start(kind).await;
        // Of three nodes one is at fault: its lies must not be believed then.
        let nodes = if dice.once_in(4) { 3 } else { 1 };
        let gateway = Gateway::open(&node.rpc, nodes, Dice::new(dice.throw())).await;
        let terms = terms();
        let count = between(&mut dice, CHANNELS);
        let poisoned = if count >= 50 || dice.once_in(3) { 2 } else { 1 };
        let first = dice.below(2);
        let mut agents = Vec::new();
        for number in 0..count + poisoned {
            let poison =
                number.checked_sub(count).map(|nth| [Poison::BadSignature, Poison::Drained][(nth + first) % 2]);
            let deposit = (between(&mut dice, (5, 30)) * 777 + dice.below(1_000)) as u128;
            let by_gate = poison.is_none() && dice.once_in(5);
            let payer = Payer::new(u8::try_from(number).unwrap(), &terms, PRICES[0].1);
            let purse = Mutex::new(Purse { opened: !by_gate, ..Purse::default() });
            agents.push(Arc::new(Agent { payer, deposit, by_gate, poison, purse }));
        }
        // One that did not hear of its deposit makes another.
        let endowments: Vec<_> = agents.iter().map(|agent| (agent.payer.address(), 20 * agent.deposit)).collect();
        node.endow(&endowments).await;
        node.ask("anvil_setBalance", json!([dev("gas").address(), "0x8ac7230489e80000"])).await;
        // What was given without a transaction must not be taken back by a reorganisation.
        node.mine(8).await;
        let mut sent = Vec::new();
        for agent in agents.iter().filter(|agent| !agent.by_gate) {
            sent.extend(node.does(&agent.payer, Deed::Deposit(agent.deposit)).await);
        }
        node.mine(5).await;
        let settings = settings(&mut dice);
        let deaths = (0..dice.below(4)).map(|_| death(&mut dice)).collect();
        let memory = std::path::Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        Self {
            dice,
            node,
            gateway,
            agents,
            terms,
            settings,
            folder,
            life: None,
            deaths,
            jobs: JoinSet::new(),
            sent,
            dropped: HashSet::new(),
            tally: Tally::default(),
            reorgs: 0,
            crashes: 0,
            spikes_end: None,
            blocks_come_again: None,
            calm: false,
        }
    }

    pub(crate) fn books(&self) -> PathBuf {
        self.folder.path().join("books")
    }

    pub(crate) fn life(&self) -> &Life {
        self.life.as_ref().unwrap()
    }

    pub(crate) fn confirmations(&self) -> u64 {
        self.settings.sending.confirmations
    }

    async fn play(&mut self) -> Result<(), String> {
        self.poison();
        let pace = Duration::from_millis(between(&mut self.dice, (8, 20)) as u64);
        let pump = self.node.pump(pace);
        let ended = self.under_faults().await;
        if ended.is_ok() {
            self.no_more_faults().await;
        }
        let outcome = match ended {
            Ok(()) => judge::verdict(self, patience()).await,
            Err(why) => Err(why),
        };
        pump.abort();
        outcome
    }

    /// Rows that no batch survives, as a bug, a restored backup or a lying node would have left them in the books.
    fn poison(&mut self) {
        let mut store = SqliteStore::open(&self.books(), IDENTITY).unwrap();
        for agent in &self.agents {
            let Some(poison) = agent.poison else { continue };
            let (payer, id) = (&agent.payer, agent.id());
            let (balance, charged) = match poison {
                Poison::BadSignature => (agent.deposit, agent.deposit / 2),
                Poison::Drained => (agent.deposit + 30_000, agent.deposit + 20_000),
            };
            let stranger = LocalKey::from_bytes(&[0x77; 32]).unwrap();
            let signer = if poison == Poison::BadSignature { &stranger } else { &payer.key };
            let max_claimable = Amount::new(charged);
            let voucher = Voucher { channel: id, max_claimable }.sign(&self.terms.settlement(), signer);
            let view = View { balance: Amount::new(balance), ..View::default() };
            let snapshot = Snapshot {
                id,
                config: payer.config,
                view,
                viewed_at: now_s(),
                charged: Amount::new(charged),
                latest: Some(LatestVoucher { max_claimable, signature: voucher.signature }),
                spent_up_to: None,
                open_refund: None,
                unclaimed_since: Some(now_s()),
            };
            let row = ChannelRow { snapshot, version: 1, last_deposit: None };
            let booking = Booking::Charge { route: "/paid".into(), amount: Amount::new(charged), at: now_s() };
            store.commit(&[Entry::Channel(Box::new(ChannelEntry { row, booking }))]).unwrap();
            agent.purse(|purse| purse.acknowledged = charged);
        }
    }

    // ---- while faults are at work

    async fn under_faults(&mut self) -> Result<(), String> {
        self.alive().await?;
        let steps = between(&mut self.dice, STEPS);
        let mut warps = self.dice.below(2);
        for _ in 0..steps {
            self.alive().await?;
            self.end_what_is_over().await;
            match self.dice.below(200) {
                0..=44 => self.spell().await,
                45..=50 => self.reorg().await,
                51..=57 => self.somebody_leaves().await,
                58 | 59 if warps > 0 => {
                    warps -= 1;
                    self.no_more_faults().await;
                    judge::leaving_are_safe(self, patience()).await?;
                    self.time_passes().await;
                    self.calm = false;
                }
                _ => self.somebody_pays(),
            }
            self.reap()?;
            tokio::time::sleep(Duration::from_millis(1 + self.dice.below(5) as u64)).await;
        }
        Ok(())
    }

    /// Starts the process, again where it has died.
    pub(crate) async fn alive(&mut self) -> Result<(), String> {
        while self.life.as_ref().is_none_or(|life| life.switch.is_dead()) {
            if let Some(life) = self.life.take() {
                self.crashes += 1;
                life.crash();
            }
            let switch = Switch::new(self.deaths.pop().unwrap_or(Death::Never));
            let settings = self.settings.clone();
            if self.crashes > 0 && self.dice.once_in(3) && !self.calm {
                self.spell().await;
            }
            self.life = Some(Life::begin(&self.books(), &self.gateway, switch, &self.terms, settings).await);
        }
        Ok(())
    }

    /// A new process on the same books.
    pub(crate) async fn restart(&mut self) -> Result<(), String> {
        self.life().switch.kill();
        self.alive().await
    }

    async fn spell(&mut self) {
        let spell = Spell::ALL[self.dice.below(Spell::ALL.len())];
        // What only meets transactions and counts of them has less to meet.
        let times = if spell.is_of_sending() { 3 } else { 1 };
        let lasts = Duration::from_millis((times * between(&mut self.dice, SPELL_MS)) as u64);
        match spell {
            Spell::FeeSpike => {
                self.gateway.count(spell);
                self.node.spike(Some(SPIKES[self.dice.below(SPIKES.len())])).await;
                self.spikes_end = Some(Instant::now() + lasts);
            }
            Spell::NoBlocks => {
                self.gateway.count(spell);
                self.node.pause(true);
                self.blocks_come_again = Some(Instant::now() + lasts);
            }
            _ => self.gateway.begin(spell, lasts),
        }
    }

    async fn end_what_is_over(&mut self) {
        let over = |end: &mut Option<Instant>| end.take_if(|end| *end <= Instant::now()).is_some();
        if over(&mut self.spikes_end) {
            self.node.spike(None).await;
        }
        if over(&mut self.blocks_come_again) {
            self.node.pause(false);
        }
    }

    async fn no_more_faults(&mut self) {
        self.calm = true;
        (self.spikes_end, self.blocks_come_again) = (None, None);
        self.gateway.calm();
        self.node.spike(None).await;
        self.node.pause(false);
    }

    /// No process dies from now on.
    pub(crate) fn no_more_crashes(&mut self) {
        self.deaths.clear();
        self.life().switch.spare();
    }

    async fn reorg(&mut self) {
        let depth = 1 + self.dice.below(3) as u64;
        if !self.dice.once_in(3) {
            self.a_transaction_lands().await;
        }
        let ids: Vec<_> = self.agents.iter().map(|agent| agent.id()).collect();
        // What a block between them did would be taken for the reorganisation's doing, or be missed.
        let still = self.node.still().await;
        let before = self.node.views(&ids).await;
        self.node.reorg(depth).await;
        let after = self.node.views(&ids).await;
        drop(still);
        self.reorgs += 1;
        for (id, (before, after)) in ids.iter().zip(before.iter().zip(&after)) {
            if after.balance < before.balance {
                self.tally.add("deposits dropped by reorganisations", 1);
                // Whoever waits for fewer blocks than are replaced has counted on it rightly.
                if depth >= self.confirmations() {
                    self.dropped.insert(*id);
                }
            }
            if after.total_claimed < before.total_claimed {
                self.tally.add("claimed rows dropped by reorganisations", 1);
            }
            if before.withdrawal.is_some() && after.withdrawal.is_none() && before.balance == after.balance {
                self.tally.add("announcements dropped by reorganisations", 1);
            }
        }
        if !self.dice.once_in(3) {
            for raw in &self.sent {
                self.node.send_raw(raw).await;
            }
        }
    }

    /// Waits a moment for a block with something of the provider's in it: replacing that is what hurts.
    async fn a_transaction_lands(&self) {
        let count = async || {
            let count = self.node.ask("eth_getTransactionCount", json!([dev("gas").address(), "latest"])).await;
            super::node::number(&count)
        };
        let (before, begun) = (count().await, Instant::now());
        while begun.elapsed() < MOMENT && count().await <= before {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    // ---- payers

    fn somebody_pays(&mut self) {
        if self.jobs.len() >= MAX_PAYING {
            return;
        }
        let agent = Arc::clone(&self.agents[self.dice.below(self.agents.len())]);
        self.pays(&agent);
    }

    pub(crate) fn pays(&mut self, agent: &Arc<Agent>) {
        if agent.poison.is_some() || agent.purse(|purse| std::mem::replace(&mut purse.busy, true)) {
            return;
        }
        let (path, price) = PRICES[self.dice.below(PRICES.len())];
        let Purse { acknowledged, opened, .. } = agent.purse(|purse| purse.clone());
        let mut payer = agent.payer.clone();
        payer.offer = json!(self.terms.offer(Amount::new(price)));
        let max = acknowledged + price;
        let payment: Payment = if opened {
            payer.voucher(max)
        } else {
            payer.deposit_with(agent.deposit, max, |wish| wish.valid_before = FAR_AWAY_S)
        };
        let life = self.life();
        let (answer, switch) = (life.paying(path, &payment), Arc::clone(&life.switch));
        self.jobs.spawn(receive(Arc::clone(agent), answer, switch, price));
    }

    /// What payers have found out.
    pub(crate) fn reap(&mut self) -> Result<(), String> {
        while let Some(done) = self.jobs.try_join_next() {
            done.map_err(|error| error.to_string())??;
        }
        Ok(())
    }

    /// Waits until nobody is paying any more.
    pub(crate) async fn all_have_paid(&mut self, deadline: Instant) -> Result<(), String> {
        while !self.jobs.is_empty() {
            self.reap()?;
            if Instant::now() > deadline {
                let busy = self.agents.iter().filter(|agent| agent.purse(|purse| purse.busy));
                let busy: Vec<_> = busy.map(|agent| agent.id().to_string()).collect();
                let vitals = self.life().redemption.as_ref().map(peaje::redeem::Redemption::vitals);
                return Err(format!("{} requests without an answer: {busy:?}\n{vitals:?}", busy.len()));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    async fn somebody_leaves(&mut self) {
        let leaving = self.agents.iter().filter(|agent| agent.purse(|purse| purse.leaving.is_some())).count();
        let agent = Arc::clone(&self.agents[self.dice.below(self.agents.len())]);
        if leaving * 4 > self.agents.len() || agent.poison.is_some() || agent.purse(|purse| purse.leaving.is_some()) {
            return;
        }
        let view = self.node.views(&[agent.id()]).await[0];
        let available = view.balance.saturating_sub(view.total_claimed).units();
        if available == 0 {
            return;
        }
        // All it can, mostly: that is what an honest payer leaves with, and what a dishonest one takes.
        let amount = if self.dice.once_in(3) { 1 + available / 2 } else { available };
        let Some(raw) = self.node.does(&agent.payer, Deed::Announce(amount)).await else { return };
        self.sent.push(raw);
        agent.purse(|purse| purse.leaving = Some(false));
        self.tally.add("withdrawals announced", 1);
        if self.dice.once_in(3) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.reorg().await;
        }
    }

    pub(crate) fn leaving(&self) -> Vec<Arc<Agent>> {
        self.agents.iter().filter(|agent| agent.purse(|purse| purse.leaving == Some(false))).cloned().collect()
    }

    /// The delay passes, and who has announced takes out what is left.
    pub(crate) async fn time_passes(&mut self) {
        self.node.warp(WITHDRAW_DELAY_S + 1).await;
        for agent in self.leaving() {
            agent.purse(|purse| purse.leaving = Some(true));
            if self.node.does(&agent.payer, Deed::TakeOut).await.is_some() {
                self.tally.add("withdrawals taken out", 1);
            }
        }
        self.node.mine(1).await;
    }

    /// Stops the process as an operator does.
    pub(crate) async fn stop(&mut self) -> bool {
        self.life.take().unwrap().stop().await
    }

    pub(crate) fn tally_of(&self, what: &str) -> u64 {
        self.tally.counts.get(what).copied().unwrap_or(0)
    }

    fn count(&mut self) {
        let faults: BTreeMap<Spell, u64> = self.gateway.read(|record| record.faults.clone());
        for (spell, count) in faults {
            self.tally.add(format!("faults: {spell:?}"), count);
        }
        self.tally.add("faults: crashes", self.crashes);
        self.tally.add("faults: reorganisations", self.reorgs);
        self.tally.add("questions to nodes", self.gateway.read(|record| record.questions));
        self.tally.add("channels", self.agents.len() as u64);
    }
}

/// Takes the answer of a paid request, and keeps what it says.
async fn receive(
    agent: Arc<Agent>,
    answer: JoinHandle<(StatusCode, HeaderMap)>,
    switch: Arc<Switch>,
    price: u128,
) -> Result<(), String> {
    let answer = answer.await;
    agent.purse(|purse| {
        purse.busy = false;
        let (status, headers) = match answer {
            Ok(answer) => answer,
            Err(error) if error.is_panic() => return Err(format!("the gate panicked: {error}")),
            Err(_) => {
                purse.doubt = purse.doubt.max(price);
                return Ok(());
            }
        };
        if status == StatusCode::OK {
            purse.acknowledged += price;
            (purse.doubt, purse.opened) = (0, true);
            return Ok(());
        }
        if switch.is_dead() {
            // A process in its last moments says no to what it may have written down.
            purse.doubt = purse.doubt.max(price);
            return Ok(());
        }
        if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
            return Err(format!("{}: {status}", agent.payer.id()));
        }
        let quote = headers.get(PAYMENT_REQUIRED).and_then(|value| x402::decode::<Value>(value.as_bytes()).ok());
        let state = quote.as_ref().map(|quote| &quote["accepts"][0]["extra"]["channelState"]);
        let Some(charged) = state.and_then(|state| state["chargedCumulativeAmount"].as_str()) else { return Ok(()) };
        let charged: u128 = charged.parse().unwrap();
        purse.opened = true;
        if !(purse.acknowledged..=purse.acknowledged + purse.doubt).contains(&charged) {
            let Purse { acknowledged, doubt, .. } = purse;
            let id = agent.payer.id();
            return Err(format!(
                "{id}: the proxy says {charged}, its payer has receipts for {acknowledged}, and {doubt} in doubt"
            ));
        }
        (purse.acknowledged, purse.doubt) = (charged, 0);
        Ok(())
    })
}

fn between(dice: &mut Dice, (from, to): (usize, usize)) -> usize {
    from + dice.below(to - from + 1)
}

fn death(dice: &mut Dice) -> Death {
    let when = if dice.once_in(2) { When::Before } else { When::After };
    if dice.once_in(2) {
        Death::AtRequest(1 + dice.below(150) as u64, when)
    } else {
        Death::AtCommit(1 + dice.below(25) as u64, when)
    }
}

fn terms() -> Terms {
    let usdc = Network::by_chain_id(CHAIN_ID).unwrap().token("usdc").unwrap();
    Terms {
        chain_id: CHAIN_ID,
        token: TokenTerms::preset(usdc),
        pay_to: Address(keccak256(b"who is paid").0[..20].try_into().unwrap()),
        receiver_authorizer: dev("authorizer").address(),
        withdraw_delay_s: WITHDRAW_DELAY_S,
        // A request waits so long for its deposit, and then comes again.
        max_timeout_s: 5,
        max_in_flight: 32,
        min_deposit: None,
    }
}

/// Everything is quicker than in life, so that a trial is short.
fn settings(dice: &mut Dice) -> Settings {
    let rules = Rules {
        interval: Duration::from_millis(between(dice, (30, 120)) as u64),
        max_rows: between(dice, (5, 60)),
        ..Rules::default()
    };
    let sending = Sending {
        confirmations: between(dice, (1, 4)) as u64,
        bump_after: Duration::from_millis(100),
        ..Sending::default()
    };
    let watch = Watch { sweep_interval: Duration::from_millis(150), ..Watch::default() };
    let poll = Duration::from_millis(between(dice, (5, 10)) as u64);
    Settings { rules, sending, watch, poll, ..Settings::default() }
}
