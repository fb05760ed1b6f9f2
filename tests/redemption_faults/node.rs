//! The chain of a trial: ours in this process, or anvil in one of its own. Blocks come from a pump, so that they can stop
//! coming, cost more, and be replaced.

use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use alloy::primitives::{U256, hex};
use alloy::sol_types::SolCall as _;
use peaje::chain::{AlloyChain, Chain as _, Owed, View};
use peaje::devnet::{Devnet, DevnetConfig, Mining, genesis};
use peaje::protocol::{Address, ChannelId, LocalKey};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use super::onchain::{self, COINS, Deed, Rpc, abi, evm};
use super::package;
use super::payer::Payer;

pub(crate) const CHAIN_ID: u64 = 84_532;

/// The base fee of quiet times, wei a unit of gas.
const QUIET_FEE: u64 = 10_000_000;

/// How many channels one question is about.
const CHANNELS_AT_ONCE: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Devnet,
    Anvil,
}

enum Machine {
    Devnet(Devnet),
    Anvil(Child),
}

/// A transaction of the provider's gas key in a block.
#[derive(Debug)]
pub(crate) struct Landed {
    pub(crate) hash: String,
    /// The function it calls.
    pub(crate) selector: String,
    pub(crate) success: bool,
    /// Events of the settlement contract in it.
    pub(crate) events: usize,
}

pub(crate) struct Node {
    machine: Machine,
    pub(crate) rpc: String,
    /// For reading, past the gateway; it has no key.
    pub(crate) eyes: AlloyChain,
    plain: Rpc,
    paused: AtomicBool,
    /// What the next blocks take for a unit of gas, wei; 0 leaves it to the chain.
    fee: AtomicU64,
    /// Held while the pump makes a block; whoever holds it meanwhile sees a chain that stands still.
    making: Mutex<()>,
}

impl Node {
    pub(crate) async fn start(kind: Kind) -> Arc<Self> {
        let (machine, rpc) = match kind {
            Kind::Devnet => {
                let config = DevnetConfig { mining: Mining::Manual, ..DevnetConfig::default() };
                let devnet = Devnet::start(config).await.unwrap();
                let rpc = devnet.rpc_url();
                (Machine::Devnet(devnet), rpc)
            }
            Kind::Anvil => {
                let (child, rpc) =
                    package::start_anvil(CHAIN_ID, &["--no-mining", "--base-fee", &QUIET_FEE.to_string()]);
                (Machine::Anvil(child), rpc)
            }
        };
        let eyes = AlloyChain::connect(rpc.parse().unwrap(), None).await.unwrap();
        assert_eq!(eyes.chain_id(), CHAIN_ID);
        let plain = Rpc::new(&rpc);
        let (paused, fee, making) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(()));
        let node = Self { machine, rpc, eyes, plain, paused, fee, making };
        if kind == Kind::Anvil {
            for (address, code) in genesis::contracts() {
                node.ask("anvil_setCode", json!([address, code])).await;
            }
        }
        Arc::new(node)
    }

    // ---- blocks

    /// Makes blocks at this pace until it is dropped.
    pub(crate) fn pump(self: &Arc<Self>, every: Duration) -> tokio::task::JoinHandle<()> {
        let node = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                if !node.paused.load(Ordering::Relaxed) {
                    let _making = node.making.lock().await;
                    let fee = node.fee.load(Ordering::Relaxed);
                    if fee > 0 {
                        node.ask("anvil_setNextBlockBaseFeePerGas", json!([format!("{fee:#x}")])).await;
                    }
                    node.mine(1).await;
                }
                tokio::time::sleep(every).await;
            }
        })
    }

    pub(crate) async fn mine(&self, blocks: u64) {
        match &self.machine {
            Machine::Devnet(devnet) => devnet.mine(blocks).unwrap(),
            Machine::Anvil(_) => drop(self.ask("anvil_mine", json!([format!("{blocks:#x}")])).await),
        }
    }

    /// Keeps the pump from making blocks until it is dropped.
    pub(crate) async fn still(&self) -> MutexGuard<'_, ()> {
        self.making.lock().await
    }

    /// Whether blocks stay away.
    pub(crate) fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// What blocks take for a unit of gas from now on, wei; `None` ends that.
    pub(crate) async fn spike(&self, wei: Option<u64>) {
        self.fee.store(wei.unwrap_or(0), Ordering::Relaxed);
        if wei.is_none() {
            self.ask("anvil_setNextBlockBaseFeePerGas", json!([format!("{QUIET_FEE:#x}")])).await;
        }
    }

    /// Replaces the newest blocks by empty ones.
    pub(crate) async fn reorg(&self, depth: u64) {
        self.ask("anvil_reorg", json!([depth, []])).await;
    }

    /// Lets the chain's clock jump.
    pub(crate) async fn warp(&self, seconds: u64) {
        self.ask("evm_increaseTime", json!([seconds])).await;
        self.mine(1).await;
    }

    // ---- money

    pub(crate) async fn endow(&self, payers: &[(Address, u128)]) {
        for (payer, dollars) in payers {
            self.ask("anvil_setBalance", json!([payer, format!("{COINS:#x}")])).await;
            match &self.machine {
                Machine::Devnet(devnet) => devnet.mint_dollars(evm(*payer), *dollars).unwrap(),
                Machine::Anvil(_) => {
                    let data = abi::mintCall { to: evm(*payer), value: U256::from(*dollars) }.abi_encode();
                    let from = genesis::dev_signers()[9].address();
                    let call = json!([{"from": from, "to": genesis::DOLLAR, "data": hex::encode_prefixed(data),
                        "gas": "0x30d40"}]);
                    self.ask("eth_sendTransaction", call).await;
                }
            }
        }
        self.mine(1).await;
    }

    /// A payer's own transaction, if the node takes it.
    pub(crate) async fn does(&self, payer: &Payer, deed: Deed) -> Option<Vec<u8>> {
        self.plain.does(payer, deed).await
    }

    pub(crate) async fn send_raw(&self, raw: &[u8]) -> bool {
        self.plain.send_raw(raw).await
    }

    // ---- looking

    pub(crate) async fn views(&self, ids: &[ChannelId]) -> Vec<View> {
        let mut views = Vec::new();
        for some in ids.chunks(CHANNELS_AT_ONCE) {
            // A block may be replaced between two questions.
            let mut tries = 0;
            let seen = loop {
                match self.eyes.channels(some).await {
                    Ok(seen) => break seen,
                    Err(error) => {
                        tries += 1;
                        assert!(tries < 20, "the chain itself cannot be read: {error}");
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            };
            views.extend(seen);
        }
        views
    }

    pub(crate) async fn owed(&self, receiver: Address) -> Owed {
        self.eyes.receivers(receiver, Address(genesis::DOLLAR.into_array())).await.unwrap()
    }

    /// Test dollars of an account, atomic units.
    pub(crate) async fn dollars(&self, owner: Address) -> u128 {
        self.eyes.token_balance(Address(genesis::DOLLAR.into_array()), owner).await.unwrap().units()
    }

    /// What blocks have of an account's transactions.
    pub(crate) async fn landed(&self, sender: Address) -> Vec<Landed> {
        let head = self.eyes.head().await.unwrap().number;
        let sender = sender.to_string().to_lowercase();
        let mut landed = Vec::new();
        for block in 0..=head {
            let block = self.ask("eth_getBlockByNumber", json!([format!("{block:#x}"), true])).await;
            // Anvil has none where a reorganisation was a moment ago.
            for transaction in block["transactions"].as_array().into_iter().flatten() {
                if transaction["from"].as_str().unwrap().to_lowercase() != sender {
                    continue;
                }
                let hash = transaction["hash"].as_str().unwrap().to_owned();
                let receipt = self.ask("eth_getTransactionReceipt", json!([hash])).await;
                // Anvil lists a transaction in the block a reorganisation took it from, and has no receipt.
                let Some(logs) = receipt["logs"].as_array() else { continue };
                let ours = genesis::SETTLEMENT.to_string().to_lowercase();
                let events = logs.iter().filter(|log| log["address"].as_str().unwrap().to_lowercase() == ours).count();
                landed.push(Landed {
                    hash,
                    selector: transaction["input"].as_str().unwrap()[..10].to_owned(),
                    success: receipt["status"] == "0x1",
                    events,
                });
            }
        }
        landed
    }

    pub(crate) async fn ask(&self, method: &str, params: Value) -> Value {
        self.plain.ask(method, params).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Machine::Anvil(anvil) = &mut self.machine {
            let _ = anvil.kill();
            let _ = anvil.wait();
        }
    }
}

pub(crate) use onchain::number;

/// The account of a development key.
pub(crate) fn dev(name: &str) -> LocalKey {
    format!("dev:{name}").parse::<peaje::chain::KeyRef>().unwrap().load(true).unwrap()
}
