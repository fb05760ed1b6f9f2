//! The real binary, killed without warning while 32 agents pay, again and again.
//!
//! An agent keeps what a payer keeps: the receipts it was given, and whether a request of its was on its way. After each
//! kill the books are read as the next start will read them, and compared with that: no charge that was acknowledged may
//! be missing, and beyond those there may be one at most, of the request that was on its way. At the end everything that
//! was charged is claimed.
//!
//! `cargo test --test kill9` kills 20 times, `-- --ignored` a hundred. `PEAJE_SEED` repeats a run's waiting times.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/payer.rs"]
mod payer;
#[path = "support/serve.rs"]
mod serve;
#[path = "support/stage.rs"]
mod stage;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use peaje::chain::{AlloyChain, Chain as _};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use agent::Agent;
use serve::{Peaje, Settings};
use stage::{PRICE, Stage};

const AGENTS: u8 = 32;

/// How long a proxy lives, milliseconds: from before its first answer to well into its second redemption.
const SHORTEST_LIFE_MS: u64 = 20;
const LONGEST_LIFE_MS: u64 = 1_200;

/// How many receipts agents are given in every other life at least, however long that takes: kills come between charges
/// that were acknowledged, on any machine.
const RECEIPTS: u64 = 64;

/// How long they may be waited for.
const PATIENCE: Duration = Duration::from_secs(60);

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

    let receipts = Arc::new(AtomicU64::new(0));
    let mut agents = Vec::new();
    for number in 1..=AGENTS {
        let opened = Agent::opened(&stage, &peaje, number).await;
        agents.push(Agent { receipts: Arc::clone(&receipts), ..opened });
    }

    let mut waits = Waits::seeded();
    let stop = CancellationToken::new();
    for round in 1..=times {
        let (life, before) = (waits.next(), receipts.load(Ordering::Relaxed));
        let end = async {
            tokio::time::sleep(life).await;
            if round.is_multiple_of(2) {
                reaches(&receipts, before + RECEIPTS).await;
            }
            peaje.kill();
        };
        agents = spend(agents, &client, peaje.url("/thing"), &stop, end).await;
        peaje.crash_is_over();
        agent::compare_with_books(&agents, &peaje, round);
        peaje.start_again().await;
    }
    // The last doubts are cleared up, and then everything is claimed.
    let end = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.cancel();
    };
    agents = spend(agents, &client, peaje.url("/thing"), &stop, end).await;
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

/// All agents pay until `end`, which kills the proxy or tells them to stop.
async fn spend(
    agents: Vec<Agent>,
    client: &reqwest::Client,
    url: String,
    stop: &CancellationToken,
    end: impl Future<Output = ()>,
) -> Vec<Agent> {
    let tasks: Vec<_> =
        agents.into_iter().map(|agent| tokio::spawn(agent.spend(client.clone(), url.clone(), stop.clone()))).collect();
    end.await;
    let mut agents = Vec::new();
    for task in tasks {
        agents.push(task.await.unwrap());
    }
    agents
}

/// Waits until so many receipts were given.
async fn reaches(receipts: &AtomicU64, count: u64) {
    let begun = Instant::now();
    while receipts.load(Ordering::Relaxed) < count {
        assert!(begun.elapsed() < PATIENCE, "agents are served");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
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
