//! The chain of a trial: ours in this process, or anvil in one of its own. Blocks come from a pump, so that they can stop
//! coming, cost more, and be replaced.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use alloy::consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy::eips::Encodable2718 as _;
use alloy::network::TxSignerSync as _;
use alloy::primitives::{TxKind, U256, hex};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall as _, SolValue as _};
use peaje::chain::{AlloyChain, Chain as _, Owed, View};
use peaje::devnet::{Devnet, DevnetConfig, Mining, genesis};
use peaje::protocol::deposit::Authorization;
use peaje::protocol::{Address, ChannelConfig, ChannelId, LocalKey};
use serde_json::{Value, json};

use super::package;
use super::payer::Payer;

pub(crate) const CHAIN_ID: u64 = 84_532;

/// What a payer offers for a unit of gas, wei: more than any spike takes.
const PAYERS_FEE: u128 = 500_000_000_000;
const PAYERS_TIP: u128 = 1_000_000;
/// Gas of a payer's transaction, at most.
const PAYERS_GAS: u64 = 300_000;
/// What a payer has to pay for gas with, wei.
const PAYERS_COINS: u128 = 10_000_000_000_000_000_000;

/// The base fee of quiet times, wei a unit of gas.
const QUIET_FEE: u64 = 10_000_000;

/// Unix seconds, in a time that no clock of these tests reaches.
pub(crate) const FAR_AWAY_S: u64 = 4_000_000_000;

/// How many channels one question is about.
const CHANNELS_AT_ONCE: usize = 200;

mod abi {
    alloy::sol! {
        struct Config {
            address payer;
            address payerAuthorizer;
            address receiver;
            address receiverAuthorizer;
            address token;
            uint40 withdrawDelay;
            bytes32 salt;
        }
        function deposit(Config config, uint128 amount, address collector, bytes collectorData) external;
        function initiateWithdraw(Config config, uint128 amount) external;
        function finalizeWithdraw(Config config) external;
        function mint(address to, uint256 value) external;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Devnet,
    Anvil,
}

enum Machine {
    Devnet(Devnet),
    Anvil(Child),
}

/// What a payer does on chain by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Deed {
    /// Deposits so much with its own transaction.
    Deposit(u128),
    /// Announces that it takes so much out.
    Announce(u128),
    /// Takes it out.
    TakeOut,
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
    http: reqwest::Client,
    paused: AtomicBool,
    /// What the next blocks take for a unit of gas, wei; 0 leaves it to the chain.
    fee: AtomicU64,
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
                let (child, rpc) = start_anvil();
                (Machine::Anvil(child), rpc)
            }
        };
        let eyes = AlloyChain::connect(rpc.parse().unwrap(), None).await.unwrap();
        assert_eq!(eyes.chain_id(), CHAIN_ID);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let node = Self { machine, rpc, eyes, http, paused: AtomicBool::new(false), fee: AtomicU64::new(0) };
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
            self.ask("anvil_setBalance", json!([payer, format!("{PAYERS_COINS:#x}")])).await;
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

    /// Sends a payer's own transaction. Whether the node took it; whether a block does is another question.
    pub(crate) async fn does(&self, payer: &Payer, deed: Deed) -> Option<Vec<u8>> {
        let config = abi_config(&payer.config);
        let input = match deed {
            Deed::Deposit(amount) => {
                let authorization = authorization_of(payer, amount);
                let Authorization { valid_after, valid_before, salt, signature } = authorization;
                let data = (
                    U256::from(valid_after),
                    U256::from(valid_before),
                    U256::from_be_bytes(salt.0),
                    alloy::primitives::Bytes::from(signature.as_bytes().to_vec()),
                );
                let collector = genesis::ERC3009_COLLECTOR;
                let data = data.abi_encode_params().into();
                abi::depositCall { config, amount, collector, collectorData: data }.abi_encode()
            }
            Deed::Announce(amount) => abi::initiateWithdrawCall { config, amount }.abi_encode(),
            Deed::TakeOut => abi::finalizeWithdrawCall { config }.abi_encode(),
        };
        let count = self.ask("eth_getTransactionCount", json!([payer.address(), "pending"])).await;
        let mut transaction = TxEip1559 {
            chain_id: CHAIN_ID,
            nonce: number(&count),
            gas_limit: PAYERS_GAS,
            max_fee_per_gas: PAYERS_FEE,
            max_priority_fee_per_gas: PAYERS_TIP,
            to: TxKind::Call(genesis::SETTLEMENT),
            value: U256::ZERO,
            access_list: Default::default(),
            input: input.into(),
        };
        let signer = PrivateKeySigner::from_slice(&*payer.key.expose()).unwrap();
        let signature = signer.sign_transaction_sync(&mut transaction).unwrap();
        let raw = TxEnvelope::from(transaction.into_signed(signature)).encoded_2718();
        self.send_raw(&raw).await.then_some(raw)
    }

    pub(crate) async fn send_raw(&self, raw: &[u8]) -> bool {
        self.try_ask("eth_sendRawTransaction", json!([hex::encode_prefixed(raw)])).await.is_ok()
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
            for transaction in block["transactions"].as_array().unwrap() {
                if transaction["from"].as_str().unwrap().to_lowercase() != sender {
                    continue;
                }
                let hash = transaction["hash"].as_str().unwrap().to_owned();
                let receipt = self.ask("eth_getTransactionReceipt", json!([hash])).await;
                let logs = receipt["logs"].as_array().unwrap();
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
        self.try_ask(method, params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    async fn try_ask(&self, method: &str, params: Value) -> Result<Value, Value> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let sent = self.http.post(&self.rpc).json(&request).send().await;
        let answer: Value = sent.unwrap().json().await.unwrap();
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].clone()),
        }
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

/// What a payer signs so that somebody deposits for it, whatever the chain's clock says.
fn authorization_of(payer: &Payer, amount: u128) -> Authorization {
    let salt = peaje::protocol::bytes::keccak256(&payer.id().0);
    let (valid_before, nonce) = (FAR_AWAY_S, Authorization::nonce(payer.id(), salt));
    let amount = peaje::protocol::Amount::new(amount);
    let domain = payer.terms.token_domain();
    let digest = Authorization::digest(&domain, payer.config.payer, amount, 0, valid_before, nonce);
    Authorization { valid_after: 0, valid_before, salt, signature: payer.key.sign(digest) }
}

fn abi_config(config: &ChannelConfig) -> abi::Config {
    abi::Config {
        payer: evm(config.payer),
        payerAuthorizer: evm(config.payer_authorizer),
        receiver: evm(config.receiver),
        receiverAuthorizer: evm(config.receiver_authorizer),
        token: evm(config.token),
        withdrawDelay: alloy::primitives::aliases::U40::from(config.withdraw_delay),
        salt: config.salt.0.into(),
    }
}

pub(crate) fn evm(address: Address) -> alloy::primitives::Address {
    alloy::primitives::Address::new(address.0)
}

/// A quantity in an answer.
pub(crate) fn number(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// The account of a development key.
pub(crate) fn dev(name: &str) -> LocalKey {
    format!("dev:{name}").parse::<peaje::chain::KeyRef>().unwrap().load(true).unwrap()
}

/// Starts anvil on a free port, which it tells.
fn start_anvil() -> (Child, String) {
    let mut anvil = Command::new(package::anvil())
        .args(["--host", "127.0.0.1", "--port", "0", "--no-mining", "--chain-id", &CHAIN_ID.to_string()])
        .args(["--base-fee", &QUIET_FEE.to_string()])
        .env_clear()
        .env("HOME", env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("anvil runs");
    let output = BufReader::new(anvil.stdout.take().unwrap());
    let (sender, address) = mpsc::channel();
    // Goes on reading after the address, so that anvil's pipe never fills.
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some((_, address)) = line.split_once("Listening on ") {
                let _ = sender.send(address.trim().to_owned());
            }
        }
    });
    match address.recv_timeout(Duration::from_secs(30)) {
        Ok(address) => (anvil, format!("http://{address}")),
        Err(error) => {
            let _ = anvil.kill();
            panic!("anvil does not listen: {error}");
        }
    }
}
