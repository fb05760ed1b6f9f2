//! Payers that withdraw while they go on paying: a hundred channels over real sockets, and none loses the provider a unit.
//!
//! Nothing redeems by the clock here, so only the watcher can. Whoever announces a withdrawal goes on paying as fast as it
//! is served, before it is seen, while it is claimed and after it is taken out, up to the last unit that the proxy takes;
//! some announce again and again. For each channel every answer with a receipt must be claimed and settled in the end.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/onchain.rs"]
mod onchain;
#[path = "support/payer.rs"]
mod payer;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use peaje::chain::{AlloyChain, Chain as _, KeyRef, View};
use peaje::cli::site::{Books, Site};
use peaje::config::Config;
use peaje::devnet::{Devnet, DevnetConfig, Mining};
use peaje::protocol::contracts::SETTLEMENT;
use peaje::protocol::x402::{self, PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE};
use peaje::protocol::{Address, Amount, ChannelId, LocalKey};
use peaje::store::Identity;
use peaje::store::sqlite::SqliteStore;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use onchain::{COINS, Deed, Rpc, evm};
use payer::Payer;

const CHANNELS: u8 = 100;
/// What a request costs, atomic units.
const PRICE: u128 = 2_000;
/// Requests a deposit is good for, and something that is good for none.
const REQUESTS: u128 = 20;
const DEPOSIT: u128 = REQUESTS * PRICE + 1_234;
/// Who is paid. Nobody has its key.
const PAY_TO: &str = "0x00000000000000000000000000000000c0ffee01";
/// The shortest delay there is.
const WITHDRAW_DELAY_S: u64 = 900;
/// Between two blocks.
const BLOCKS: Duration = Duration::from_millis(20);
/// Between two requests of one payer.
const PACE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 400 } else { 60 });
/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a payer withdraws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// All there is.
    All,
    /// A part, and it spends the rest to the last unit.
    Part,
    /// A small part, each time anew.
    Again,
    /// Never.
    Stays,
}

/// A payer that pays all the time.
struct Agent {
    payer: Payer,
    habit: Habit,
    /// The sum in the last receipt it holds.
    acknowledged: Mutex<u128>,
    /// Vouchers that were refused because a withdrawal does not leave enough.
    refused: AtomicU64,
    /// Vouchers that were refused because the balance does not cover them.
    drained: AtomicU64,
}

impl Agent {
    fn acknowledged(&self) -> u128 {
        *self.acknowledged.lock().unwrap()
    }

    /// Pays until it is told to stop.
    async fn pays(self: Arc<Self>, client: reqwest::Client, url: String, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            let ceiling = self.acknowledged() + PRICE;
            let header = self.payer.voucher(ceiling).header();
            let answer = client.get(&url).header(PAYMENT_SIGNATURE, header).send().await.unwrap();
            match answer.status().as_u16() {
                200 => {
                    let receipt = decoded(&answer, PAYMENT_RESPONSE);
                    assert_eq!(receipt["extra"]["channelState"]["chargedCumulativeAmount"], ceiling.to_string());
                    *self.acknowledged.lock().unwrap() = ceiling;
                }
                402 => {
                    let quote = decoded(&answer, PAYMENT_REQUIRED);
                    match quote["error"].as_str().unwrap() {
                        "invalid_batch_settlement_evm_cumulative_exceeds_balance" => {
                            self.refused.fetch_add(1, Ordering::Relaxed)
                        }
                        // What a client is told whose balance is gone; it does not deposit again here.
                        "invalid_batch_settlement_evm_cumulative_amount_mismatch" => {
                            let state = &quote["accepts"][0]["extra"]["channelState"];
                            let charged = state["chargedCumulativeAmount"].as_str().unwrap();
                            assert_eq!(charged, self.acknowledged().to_string(), "the books are the payer's");
                            self.drained.fetch_add(1, Ordering::Relaxed)
                        }
                        other => panic!("{}: {other}", self.payer.id()),
                    };
                    tokio::time::sleep(PACE).await;
                }
                // All of them come from one address, and there are only so many questions to the chain for one at once.
                429 | 503 => tokio::time::sleep(PACE).await,
                other => panic!("{other}"),
            }
            tokio::time::sleep(PACE).await;
        }
    }
}

fn decoded(answer: &reqwest::Response, header: &str) -> Value {
    let value = answer.headers().get(header).unwrap_or_else(|| panic!("no {header}: {answer:?}"));
    x402::decode(value.as_bytes()).unwrap()
}

fn dev(name: &str) -> LocalKey {
    format!("dev:{name}").parse::<KeyRef>().unwrap().load(true).unwrap()
}

/// Past the harness, which keeps what is printed to itself.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "withdrawal_race: {line}");
}

struct Race {
    devnet: Devnet,
    rpc: Rpc,
    eyes: AlloyChain,
    site: Site,
    agents: Vec<Arc<Agent>>,
    stop: Arc<AtomicBool>,
    paying: Vec<JoinHandle<()>>,
    _books: tempfile::TempDir,
}

impl Race {
    async fn begin() -> Self {
        let devnet = Devnet::start(DevnetConfig { mining: Mining::Manual, ..DevnetConfig::default() }).await.unwrap();
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = socket.local_addr().unwrap();
        let api = Router::new().fallback(|| async { "served" });
        tokio::spawn(async move { axum::serve(socket, api).await });
        let text = format!(
            r#"
            [server]
            listen = "127.0.0.1:0"
            [admin]
            listen = "off"
            [upstream]
            url = "http://{upstream}"
            [chain]
            network = "base-sepolia"
            rpc = "{}"
            poll = "50ms"
            [receiver]
            pay_to = "{PAY_TO}"
            authorizer_key = "dev:authorizer"
            gas_key = "dev:gas"
            [channel]
            withdraw_delay = "15m"
            [redeem]
            interval = "14m"
            [[route]]
            path = "/*"
            price = "$0.002"
            "#,
            devnet.rpc_url()
        );
        let config = Config::parse(&text, "race.toml").unwrap_or_else(|errors| panic!("{errors}"));
        let chain = AlloyChain::connect(devnet.rpc_url().parse().unwrap(), Some(dev("gas"))).await.unwrap();
        let terms = config.terms(dev("authorizer").address());
        let books = tempfile::tempdir().unwrap();
        let identity = Identity { chain_id: devnet.chain_id(), settlement: SETTLEMENT };
        let store = Books::open(SqliteStore::open(books.path(), identity).unwrap()).unwrap();
        let site = Site::open(&config, dev("authorizer"), Arc::new(chain), store).await.unwrap();

        let rpc = Rpc::new(&devnet.rpc_url());
        let habits = [Habit::All, Habit::Part, Habit::Again, Habit::Stays];
        let mut agents = Vec::new();
        for number in 0..CHANNELS {
            let payer = Payer::new(number, &terms, PRICE);
            devnet.mint_dollars(evm(payer.address()), DEPOSIT).unwrap();
            devnet.fund(evm(payer.address()), alloy::primitives::U256::from(COINS));
            assert!(rpc.does(&payer, Deed::Deposit(DEPOSIT)).await.is_some());
            let habit = habits[usize::from(number) % habits.len()];
            let (acknowledged, refused, drained) = Default::default();
            agents.push(Arc::new(Agent { payer, habit, acknowledged, refused, drained }));
        }
        devnet.mine(1).unwrap();
        devnet.set_mining(Mining::Interval(BLOCKS));

        let eyes = AlloyChain::connect(devnet.rpc_url().parse().unwrap(), None).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{}/thing", site.address());
        let pays = |agent: &Arc<Agent>| Arc::clone(agent).pays(client.clone(), url.clone(), Arc::clone(&stop));
        let paying = agents.iter().map(|agent| tokio::spawn(pays(agent))).collect();
        Self { devnet, rpc, eyes, site, agents, stop, paying, _books: books }
    }

    async fn views(&self) -> BTreeMap<ChannelId, View> {
        let ids: Vec<_> = self.agents.iter().map(|agent| agent.payer.id()).collect();
        let views = self.eyes.channels(&ids).await.unwrap();
        ids.into_iter().zip(views).collect()
    }

    async fn eventually(&self, what: &str, mut missing: impl AsyncFnMut() -> Option<String>) {
        let begun = Instant::now();
        while let Some(missing) = missing().await {
            assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}: {missing}");
            assert!(self.paying.iter().all(|task| !task.is_finished()), "a payer has given up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        say(&format!("{:>6.1} s until {what}", begun.elapsed().as_secs_f64()));
    }

    /// Those with one of these habits announce, while they pay.
    async fn announce(&self, habits: &[Habit]) {
        let leaving: Vec<_> = self.agents.iter().filter(|agent| habits.contains(&agent.habit)).collect();
        // What they have receipts for before they announce is what they could run away with.
        let known: BTreeMap<_, _> = leaving.iter().map(|agent| (agent.payer.id(), agent.acknowledged())).collect();
        let claimed = async || {
            let views = self.views().await;
            let (mut missing, mut announcing) = (None, Vec::new());
            for agent in &leaving {
                let (id, known) = (agent.payer.id(), Amount::new(known[&agent.payer.id()]));
                let view = views[&id];
                if view.withdrawal.is_none() && view.total_claimed == view.balance {
                    // On a slow machine it has paid all away before it could announce.
                    continue;
                }
                if view.withdrawal.is_none() {
                    // A claim that came first left less than it asked for; it asks again.
                    announcing.push(self.announcing(agent, view));
                    missing = Some(format!("{id} announces, {:?}: {view:?}", agent.habit));
                } else if view.total_claimed < known {
                    missing = Some(format!("{id}: {known} of {view:?}"));
                }
            }
            futures_util::future::join_all(announcing).await;
            missing
        };
        self.eventually("the watcher claims what those owe who leave", claimed).await;
    }

    /// Unless one is on its way.
    async fn announcing(&self, agent: &Agent, view: View) {
        let count = |at: &'static str| self.rpc.ask("eth_getTransactionCount", json!([agent.payer.address(), at]));
        let (mined, pending) = tokio::join!(count("latest"), count("pending"));
        if mined != pending {
            return;
        }
        let available = view.balance.saturating_sub(view.total_claimed).units();
        let amount = match agent.habit {
            Habit::All => available,
            Habit::Part => (available / 2 + 77).min(available),
            Habit::Again => (available / 8 + 7).min(available),
            Habit::Stays => unreachable!("it does not leave"),
        };
        assert!(self.rpc.does(&agent.payer, Deed::Announce(amount)).await.is_some(), "{:?}", agent.habit);
    }

    /// The delay passes, and whoever has announced takes its money out, while it pays.
    async fn take_out(&self) {
        // In a quarter of an hour even a slow machine has seen who leaves, and has claimed what would leave with them.
        let exposed = async || {
            let views = self.views().await;
            let mut leaving = views.into_iter().filter_map(|(id, view)| Some((id, view, view.withdrawal?)));
            let exposed = leaving.find(|(id, view, withdrawal)| {
                let books = self.site.gate().accounts().statement(id).unwrap();
                let stays = view.balance.saturating_sub(withdrawal.amount).max(view.total_claimed);
                books.view.withdrawal.is_none() || books.charged > stays
            });
            exposed.map(|(id, view, _)| format!("{id}: {view:?}"))
        };
        self.eventually("nothing that is owed can leave", exposed).await;
        self.devnet.increase_time(Duration::from_secs(WITHDRAW_DELAY_S + 1));
        let announced = async || {
            let views = self.views().await.into_values();
            views.filter(|view| view.withdrawal.is_some()).count()
        };
        // The first block after the delay.
        let before = self.devnet.block_number();
        let mined = async || (self.devnet.block_number() <= before).then(|| "a block".to_owned());
        self.eventually("time passes", mined).await;
        let views = self.views().await;
        for agent in &self.agents {
            if views[&agent.payer.id()].withdrawal.is_some() {
                assert!(self.rpc.does(&agent.payer, Deed::TakeOut).await.is_some());
            }
        }
        let out = async || {
            let left = announced().await;
            (left > 0).then(|| format!("{left} withdrawals"))
        };
        self.eventually("they take it out", out).await;
    }

    fn refusals(&self, habit: Habit) -> (u64, u64) {
        let agents = self.agents.iter().filter(|agent| agent.habit == habit);
        agents.fold((0, 0), |(refused, drained), agent| {
            let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
            (refused + of(&agent.refused), drained + of(&agent.drained))
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payers_that_withdraw_while_they_pay_cost_the_provider_nothing() {
    let begun = Instant::now();
    let mut race = Race::begin().await;
    say(&format!("{:>6.1} s until all is there", begun.elapsed().as_secs_f64()));
    let all_pay = async || {
        let idle = race.agents.iter().find(|agent| agent.acknowledged() < 3 * PRICE);
        idle.map(|agent| agent.payer.id().to_string())
    };
    race.eventually("everybody pays", all_pay).await;

    race.announce(&[Habit::All, Habit::Again]).await;
    let refused = async || (race.refusals(Habit::All).0 == 0).then(|| "nobody was refused".to_owned());
    race.eventually("what a withdrawal does not leave is not served on", refused).await;
    // The others announce while the first have not taken anything yet.
    race.announce(&[Habit::Part]).await;
    race.take_out().await;
    race.announce(&[Habit::Again]).await;
    race.take_out().await;
    race.announce(&[Habit::Again, Habit::Part]).await;
    // These go on until nothing is served to anybody any more.
    let spent = async || {
        let spending = race
            .agents
            .iter()
            .find(|agent| agent.refused.load(Ordering::Relaxed) + agent.drained.load(Ordering::Relaxed) == 0);
        spending.map(|agent| format!("{:?} {}", agent.habit, agent.acknowledged()))
    };
    race.eventually("everybody spends what is left to it", spent).await;
    race.take_out().await;

    race.stop.store(true, Ordering::Relaxed);
    for task in std::mem::take(&mut race.paying) {
        task.await.unwrap();
    }
    let statements = race.site.gate().accounts().statements();
    let short: Vec<_> = statements.iter().filter(|books| !books.shortfall.is_zero()).collect();
    assert!(short.is_empty(), "{short:?}");
    let count = |habit| race.refusals(habit);
    say(&format!(
        "refused for a withdrawal and for the balance: all {:?}, part {:?}, again {:?}, stays {:?}",
        count(Habit::All),
        count(Habit::Part),
        count(Habit::Again),
        count(Habit::Stays)
    ));
    assert_eq!(count(Habit::Stays).0, 0, "who has not announced is not held to it");

    let Race { devnet, eyes, site, agents, .. } = race;
    let stopping = Instant::now();
    // What was paid since the watcher's last claim, covered by what is left, waits for a round.
    let report = tokio::time::timeout(PATIENCE, site.close()).await.expect("the proxy stops in time").unwrap();
    assert!(report.is_complete(), "{report:?}");
    say(&format!("{:>6.1} s until the proxy stops", stopping.elapsed().as_secs_f64()));
    let mut sum = 0;
    for agent in &agents {
        let (id, served) = (agent.payer.id(), agent.acknowledged());
        let view = eyes.channel(id).await.unwrap();
        assert_eq!(view.total_claimed.units(), served, "{id} {:?}: everything served is claimed", agent.habit);
        let left = devnet.dollar_balance(evm(agent.payer.address())).unwrap();
        assert_eq!(left + view.balance.units(), DEPOSIT, "{id}: nothing is lost on the way");
        sum += served;
    }
    let pay_to: Address = PAY_TO.parse().unwrap();
    assert_eq!(devnet.dollar_balance(evm(pay_to)).unwrap(), sum, "and settled");
    say(&format!(
        "{} requests served, {sum} units claimed and settled, {:.1} s",
        sum / PRICE,
        begun.elapsed().as_secs_f64()
    ));
    devnet.shutdown().await;
}
