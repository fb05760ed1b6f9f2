//! The real binary, killed while a claim is on its way, again and again.
//!
//! What stands between the proxy and its node sees each claim leave, and the kill comes a moment later: before the node has
//! it, while it waits for a block, or just after. Gas must not be spent twice: for each nonce a process signs once, its
//! successor sends the same bytes or one replacement, and no claim is in a block whose rows were claimed before. The books
//! are compared with what payers hold after each kill, and with the chain at the end.
//!
//! `cargo test --test kill9_claims` kills some times, `-- --ignored` fifty times. `PEAJE_SEED` repeats a run's moments.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/agent.rs"]
mod agent;
#[path = "crash_points/dice.rs"]
mod dice;
#[path = "support/onchain.rs"]
mod onchain;
#[path = "support/payer.rs"]
mod payer;
#[path = "support/serve.rs"]
mod serve;
#[path = "support/stage.rs"]
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::eips::Decodable2718 as _;
use alloy::primitives::hex;
use alloy::sol_types::SolCall as _;
use axum::Json;
use axum::extract::State;
use peaje::chain::{AlloyChain, Chain as _};
use peaje::devnet::{Mining, genesis};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use agent::Agent;
use dice::Dice;
use onchain::{Rpc, abi};
use serve::{Peaje, Settings};
use stage::{PRICE, Stage};

const AGENTS: u8 = 8;

/// Between two blocks: a claim waits about as long as the kill takes.
const BLOCKS: Duration = Duration::from_millis(25);

/// The latest moment of the kill after a claim left, milliseconds.
const LATEST_MS: usize = 20;

/// How long a claim may be waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The bytes that each process sent for each nonce.
type Sent = BTreeMap<u64, BTreeMap<usize, BTreeSet<Vec<u8>>>>;

/// Where transactions are seen on their way to the node.
struct Lane {
    rpc: String,
    http: reqwest::Client,
    /// A claim is leaving.
    claims: Notify,
    /// Whether the next claim is lost with the process that sends it.
    lose: AtomicBool,
    sent: Mutex<Sent>,
    /// Which process runs.
    process: Mutex<usize>,
}

impl Lane {
    async fn open(rpc: &str) -> (Arc<Self>, String) {
        let (claims, lose, sent, process) = Default::default();
        let lane = Arc::new(Self { rpc: rpc.to_owned(), http: serve::http_client(), claims, lose, sent, process });
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let router = axum::Router::new().fallback(axum::routing::post(pass)).with_state(Arc::clone(&lane));
        tokio::spawn(async move { axum::serve(socket, router).await.unwrap() });
        (lane, url)
    }
}

async fn pass(State(lane): State<Arc<Lane>>, Json(question): Json<Value>) -> Json<Value> {
    if question["method"] == "eth_sendRawTransaction" {
        let raw = hex::decode(question["params"][0].as_str().unwrap()).unwrap();
        let transaction = TxEnvelope::decode_2718(&mut &*raw).unwrap();
        let process = *lane.process.lock().unwrap();
        lane.sent.lock().unwrap().entry(transaction.nonce()).or_default().entry(process).or_default().insert(raw);
        if is_claim(transaction.input()) {
            lane.claims.notify_waiters();
            if lane.lose.load(Ordering::SeqCst) {
                return std::future::pending().await;
            }
        }
    }
    let answer = lane.http.post(&lane.rpc).json(&question).send().await.unwrap().json::<Value>().await;
    Json(answer.unwrap())
}

fn is_claim(input: &[u8]) -> bool {
    [abi::claimCall::SELECTOR, abi::claimWithSignatureCall::SELECTOR].iter().any(|claim| input.starts_with(claim))
}

/// Past the harness, which keeps what is printed to itself.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "kill9_claims: {line}");
}

async fn kill(times: usize) {
    let seed = std::env::var("PEAJE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(payer::now_s);
    say(&format!("PEAJE_SEED={seed}"));
    let mut dice = Dice::new(seed);
    let stage = Stage::set().await;
    let (lane, url) = Lane::open(&stage.rpc).await;
    let settings = Settings { log: "warn", redeem: "interval = \"1s\"", rpc: &url, ..stage.settings() };
    let mut peaje = Peaje::start(&settings).await;
    let mut agents = Vec::new();
    for number in 1..=AGENTS {
        agents.push(Agent::opened(&stage, &peaje, number).await);
    }
    stage.devnet.set_mining(Mining::Interval(BLOCKS));

    for round in 1..=times {
        let stop = CancellationToken::new();
        let claim = lane.claims.notified();
        lane.lose.store(dice.once_in(3), Ordering::SeqCst);
        let spending: Vec<_> = agents
            .into_iter()
            .map(|agent| tokio::spawn(agent.spend(stage.client.clone(), peaje.url("/thing"), stop.clone())))
            .collect();
        tokio::time::timeout(PATIENCE, claim).await.expect("a claim leaves");
        tokio::time::sleep(Duration::from_millis(u64::try_from(dice.below(LATEST_MS + 1)).unwrap())).await;
        peaje.kill();
        agents = Vec::new();
        for task in spending {
            agents.push(task.await.unwrap());
        }
        peaje.crash_is_over();
        agent::compare_with_books(&agents, &peaje, round);
        *lane.process.lock().unwrap() += 1;
        lane.lose.store(false, Ordering::SeqCst);
        peaje.start_again().await;
    }
    // The last doubts are cleared up, and then everything is claimed.
    let stop = CancellationToken::new();
    let (client, thing) = (stage.client.clone(), peaje.url("/thing"));
    let spending: Vec<_> = agents
        .into_iter()
        .map(|agent| tokio::spawn(agent.spend(client.clone(), thing.clone(), stop.clone())))
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.cancel();
    agents = Vec::new();
    for task in spending {
        agents.push(task.await.unwrap());
    }
    let report = peaje.redeem();
    assert!(report.is_complete(), "{report:?}");
    // Everything that was begun is at its end.
    peaje.succeed(&["ledger", "verify", "--chain"]);

    let chain = AlloyChain::connect(stage.rpc.parse().unwrap(), None).await.unwrap();
    let mut sum = 0;
    for agent in &agents {
        assert!(!agent.in_doubt);
        let view = chain.channel(agent.payer.id()).await.unwrap();
        assert_eq!(view.total_claimed.units(), agent.acknowledged, "every voucher is claimed");
        sum += agent.acknowledged;
    }
    assert_eq!(stage.received(), sum, "and settled");
    gas(&stage, &lane).await;
    say(&format!("{times} kills, {} requests, {sum} units claimed", sum / PRICE));
    peaje.stop().await;
    stage.strike().await;
}

/// Nothing was signed twice without need, and nothing was paid for twice.
async fn gas(stage: &Stage, lane: &Lane) {
    let sent = lane.sent.lock().unwrap().clone();
    let mut replaced = 0;
    for (nonce, by_process) in &sent {
        let mut known = BTreeSet::new();
        for (process, versions) in by_process {
            let new = versions.iter().filter(|raw| known.insert((*raw).clone())).count();
            assert!(new <= 1, "process {process} signed {new} transactions for nonce {nonce}");
        }
        replaced += known.len() - 1;
    }
    let nonces: Vec<_> = sent.keys().copied().collect();
    let all: Vec<_> = (0..u64::try_from(nonces.len()).unwrap()).collect();
    assert_eq!(nonces, all, "every nonce was used");

    let rpc = Rpc::new(&stage.rpc);
    let ours = genesis::SETTLEMENT.to_string().to_lowercase();
    let (mut claims, mut mined) = (0, 0);
    for number in 0..=stage.devnet.block_number() {
        let block = rpc.ask("eth_getBlockByNumber", json!([format!("{number:#x}"), true])).await;
        for transaction in block["transactions"].as_array().unwrap() {
            mined += 1;
            let input = hex::decode(transaction["input"].as_str().unwrap()).unwrap();
            if !is_claim(&input) {
                continue;
            }
            claims += 1;
            let receipt = rpc.ask("eth_getTransactionReceipt", json!([transaction["hash"]])).await;
            assert_eq!(receipt["status"], "0x1", "{receipt}");
            let logs = receipt["logs"].as_array().unwrap();
            let events = logs.iter().filter(|log| log["address"].as_str().unwrap().to_lowercase() == ours).count();
            assert!(events > 0, "all rows of {} were claimed before", transaction["hash"]);
        }
    }
    assert_eq!(mined, sent.len(), "every nonce is in a block once");
    say(&format!("{mined} transactions mined, {claims} of them claims; {replaced} replacements"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_the_middle_of_a_claim_spend_no_gas_twice() {
    kill(8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn fifty_kills_in_the_middle_of_a_claim_spend_no_gas_twice() {
    kill(50).await;
}
