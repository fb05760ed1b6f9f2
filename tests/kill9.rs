//! The real binary, killed without warning while 32 agents pay, again and again.
//!
//! An agent keeps what a payer keeps: the receipts it was given, and whether a request of its was on its way. After each
//! kill the books are read as the next start will read them, and compared with that: no charge that was acknowledged may
//! be missing, and beyond those there may be one at most, of the request that was on its way. At the end everything that
//! was charged is claimed.
//!
//! `cargo test --test kill9` kills 20 times, `-- --ignored` a hundred. `PEAJE_SEED` repeats a run's waiting times.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/payer.rs"]
mod payer;
#[path = "support/serve.rs"]
mod serve;
#[path = "support/stage.rs"]
mod stage;

use std::collections::HashMap;
use std::io::Write as _;
use std::time::Duration;

use peaje::chain::{AlloyChain, Chain as _};
use peaje::protocol::ChannelId;
use peaje::protocol::x402::{self, PAYMENT_REQUIRED, PAYMENT_RESPONSE};
use peaje::store::sqlite::Reader;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use payer::Payer;
use serve::{Peaje, Settings};
use stage::{DEPOSIT, PRICE, Stage, ask};

const AGENTS: u8 = 32;

/// How long a proxy lives, milliseconds: from before its first answer to well into its second redemption.
const SHORTEST_LIFE_MS: u64 = 20;
const LONGEST_LIFE_MS: u64 = 1_200;

/// A payer and what it knows.
struct Agent {
    payer: Payer,
    /// The sum in the last receipt it holds.
    acknowledged: u128,
    /// Whether a request was on its way when the connection broke, so that it may have been charged.
    in_doubt: bool,
    served: u64,
    /// Charges of requests whose answer it never saw.
    unseen: u64,
}

impl Agent {
    /// Pays until it is told to stop or the proxy is gone.
    async fn spend(mut self, client: reqwest::Client, url: String, stop: CancellationToken) -> Self {
        while !stop.is_cancelled() {
            let ceiling = self.acknowledged + PRICE;
            let doubted = std::mem::replace(&mut self.in_doubt, true);
            let answer = match ask(&client, &url, &self.payer.voucher(ceiling)).await {
                Ok(answer) => answer,
                Err(error) => {
                    // A request that could not even connect changes nothing.
                    self.in_doubt = doubted || !error.is_connect();
                    return self;
                }
            };
            self.in_doubt = false;
            match answer.status().as_u16() {
                200 => {
                    let receipt = decoded(&answer, PAYMENT_RESPONSE);
                    assert_eq!(sum_in(&receipt["extra"]["channelState"]), ceiling, "{receipt}");
                    self.acknowledged = ceiling;
                    self.served += 1;
                }
                402 => {
                    let quote = decoded(&answer, PAYMENT_REQUIRED);
                    let state = &quote["accepts"][0]["extra"]["channelState"];
                    assert!(state.is_object(), "{}: {quote}", self.payer.id());
                    assert!(doubted && sum_in(state) == ceiling, "charged without a request in doubt: {state}");
                    self.acknowledged = ceiling;
                    self.unseen += 1;
                }
                // It asks the chain again after its start, and a node under this load may be slow.
                503 => {
                    self.in_doubt = doubted;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => panic!("{other}"),
            }
        }
        self
    }
}

fn decoded(answer: &reqwest::Response, header: &str) -> Value {
    let value = answer.headers().get(header).unwrap_or_else(|| panic!("no {header}: {answer:?}"));
    x402::decode(value.as_bytes()).unwrap()
}

fn sum_in(state: &Value) -> u128 {
    state["chargedCumulativeAmount"].as_str().unwrap().parse().unwrap()
}

/// What the next start will find.
fn charged_in_books(peaje: &Peaje) -> HashMap<ChannelId, u128> {
    let mut charged = HashMap::new();
    let books = Reader::open(&peaje.books()).unwrap();
    books
        .channels(&mut |row| {
            charged.insert(row.snapshot.id, row.snapshot.charged.units());
            Ok(())
        })
        .unwrap();
    charged
}

/// Past the harness, which keeps what is printed to itself.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "kill9: {line}");
}

/// A generator for waiting times; good randomness is not needed, repeating it is.
struct Waits(u64);

impl Waits {
    fn seeded() -> Self {
        let seed = std::env::var("PEAJE_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(payer::now_s);
        say(&format!("PEAJE_SEED={seed}"));
        Self(seed | 1)
    }

    fn next(&mut self) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_millis(SHORTEST_LIFE_MS + self.0 % (LONGEST_LIFE_MS - SHORTEST_LIFE_MS))
    }
}

async fn kill(times: usize) {
    let stage = Stage::set().await;
    // Claims and settlements are on their way when the kill comes.
    let settings = Settings { log: "warn", redeem: "interval = \"1s\"", ..stage.settings() };
    let mut peaje = Peaje::start(&settings).await;
    let client = stage.client.clone();

    let mut agents = Vec::new();
    for number in 1..=AGENTS {
        let payer = stage.payer(&peaje, number);
        let answer = ask(&client, &peaje.url("/thing"), &payer.deposit(DEPOSIT, PRICE)).await.unwrap();
        assert_eq!(answer.status(), 200, "{answer:?}");
        agents.push(Agent { payer, acknowledged: PRICE, in_doubt: false, served: 1, unseen: 0 });
    }

    let mut waits = Waits::seeded();
    for round in 1..=times {
        agents = spend(agents, &client, &peaje, waits.next(), true).await;
        peaje.crash_is_over();
        let charged = charged_in_books(&peaje);
        for agent in &agents {
            let (id, known) = (agent.payer.id(), agent.acknowledged);
            let found = charged.get(&id).copied().unwrap_or_else(|| panic!("round {round}: channel {id} is missing"));
            let most = if agent.in_doubt { known + PRICE } else { known };
            assert!(
                (known..=most).contains(&found),
                "round {round}: {id} acknowledged {known}, found {found} of {most}"
            );
        }
        peaje.start_again().await;
    }
    // The last doubts are cleared up, and then everything is claimed.
    agents = spend(agents, &client, &peaje, Duration::from_millis(300), false).await;
    peaje.succeed(&["ledger", "verify", "--chain"]);
    let report = peaje.redeem();
    assert!(report.is_complete(), "{report:?}");

    let chain = AlloyChain::connect(stage.rpc.parse().unwrap(), None).await.unwrap();
    let mut sum = 0;
    for agent in &agents {
        assert!(!agent.in_doubt);
        let view = chain.channel(agent.payer.id()).await.unwrap();
        assert_eq!(view.total_claimed.units(), agent.acknowledged, "every voucher is claimed");
        sum += agent.acknowledged;
    }
    assert_eq!(stage.received(), sum, "and settled");
    // What is exported adds up to what is shown, and both to the chain.
    let shown: Value = serde_json::from_slice(&peaje.succeed(&["ledger", "show", "--json"])).unwrap();
    assert_eq!(shown["totals"]["charged"], sum.to_string());
    assert_eq!(shown["totals"]["claimed"], sum.to_string());
    let exported = peaje.succeed(&["ledger", "export", "--format", "jsonl"]);
    let amount = |line: &str| -> u128 {
        let line: Value = serde_json::from_str(line).unwrap();
        line["amount"].as_str().unwrap().parse().unwrap()
    };
    let exported: u128 = String::from_utf8(exported).unwrap().lines().map(amount).sum();
    assert_eq!(exported, sum);
    let (served, unseen) = agents.iter().fold((0, 0), |sum, agent| (sum.0 + agent.served, sum.1 + agent.unseen));
    assert_eq!(sum, u128::from(served + unseen) * PRICE);
    let kills = u64::try_from(times).unwrap();
    assert!(served > kills * u64::from(AGENTS), "{served} receipts: agents were served between the kills");
    say(&format!("{times} kills, {served} receipts, {unseen} charged without an answer, {sum} units claimed"));
    peaje.stop().await;
    stage.strike().await;
}

/// All agents pay for a while; then the proxy is killed, or the agents are told to stop.
async fn spend(agents: Vec<Agent>, client: &reqwest::Client, peaje: &Peaje, life: Duration, kill: bool) -> Vec<Agent> {
    let stop = CancellationToken::new();
    let url = peaje.url("/thing");
    let tasks: Vec<_> =
        agents.into_iter().map(|agent| tokio::spawn(agent.spend(client.clone(), url.clone(), stop.clone()))).collect();
    tokio::time::sleep(life).await;
    if kill {
        peaje.kill();
    } else {
        stop.cancel();
    }
    let mut agents = Vec::new();
    for task in tasks {
        agents.push(task.await.unwrap());
    }
    agents
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_lose_no_acknowledged_charge_and_invent_none() {
    kill(20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn a_hundred_kills_lose_no_acknowledged_charge_and_invent_none() {
    kill(100).await;
}
