//! A chain to play on: ours in this process, or anvil in one of its own.

use std::process::Child;
use std::time::Duration;

use peaje::chain::{AlloyChain, Call, Chain as _, Happening, KeyRef, Mined, Owed};
use peaje::devnet::{Devnet, DevnetConfig, genesis};
use peaje::protocol::contracts::SETTLEMENT;
use peaje::protocol::{Address, Amount, ChannelId, LocalKey};
use serde_json::{Value, json};

use super::{PATIENCE, eventually, package};

/// Base Sepolia's id: stock clients know its dollar, and pay with tokens they know only.
const CHAIN_ID: u64 = 84_532;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Devnet,
    Anvil,
}

enum Node {
    Devnet(Devnet),
    Anvil(Child),
}

pub(crate) struct TestChain {
    node: Node,
    pub(crate) rpc: String,
    /// For reading; it has no key.
    pub(crate) eyes: AlloyChain,
    /// The token that is looked at.
    token: Address,
    client: reqwest::Client,
}

/// The account of a development key.
pub(crate) fn dev(name: &str) -> LocalKey {
    format!("dev:{name}").parse::<KeyRef>().unwrap().load(true).unwrap()
}

impl TestChain {
    pub(crate) async fn start(kind: Kind) -> Self {
        Self::start_with(kind, Address(genesis::DOLLAR.into_array())).await
    }

    /// The same with another dollar.
    pub(crate) async fn start_with(kind: Kind, token: Address) -> Self {
        let (node, rpc) = match kind {
            Kind::Devnet => {
                let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
                let rpc = devnet.rpc_url();
                (Node::Devnet(devnet), rpc)
            }
            Kind::Anvil => {
                let (child, rpc) = package::start_anvil(CHAIN_ID, &[]);
                (Node::Anvil(child), rpc)
            }
        };
        let eyes = AlloyChain::connect(rpc.parse().unwrap(), None).await.unwrap();
        assert_eq!(eyes.chain_id(), CHAIN_ID);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let chain = Self { node, rpc, eyes, token, client };
        if kind == Kind::Anvil {
            for (address, code) in genesis::contracts() {
                chain.ask("anvil_setCode", json!([address, code])).await;
            }
        }
        chain
    }

    /// Gives an account test dollars.
    pub(crate) async fn mint(&self, to: Address, amount: u128) {
        match &self.node {
            Node::Devnet(devnet) => devnet.mint(self.token.0.into(), to.0.into(), amount).unwrap(),
            Node::Anvil(_) => {
                let from = Address(genesis::dev_signers()[9].address().into_array());
                self.tell_token(from, "40c10f19", to, amount).await;
            }
        }
        // Anvil answers before it mines.
        eventually("the dollars are minted", || async { self.dollars(to).await == amount }).await;
    }

    /// Lets somebody move so many dollars of a development account.
    pub(crate) async fn approve(&self, owner: Address, spender: Address, amount: u128) {
        self.tell_token(owner, "095ea7b3", spender, amount).await;
        let allowed = || async { self.eyes.allowance(self.token, owner, spender).await.unwrap().units() == amount };
        eventually("the dollars may be moved", allowed).await;
    }

    /// A call of the token that takes an account and an amount, by a development account: nodes sign for those.
    async fn tell_token(&self, from: Address, selector: &str, who: Address, amount: u128) {
        let who = who.to_string();
        let data = format!("0x{selector}{:0>64}{amount:064x}", who.trim_start_matches("0x"));
        self.ask("eth_sendTransaction", json!([{"from": from, "to": self.token, "data": data}])).await;
    }

    /// Test dollars of an account, atomic units.
    pub(crate) async fn dollars(&self, owner: Address) -> u128 {
        self.eyes.token_balance(self.token, owner).await.unwrap().units()
    }

    /// Test dollars that all channels hold together.
    pub(crate) async fn locked(&self) -> u128 {
        self.dollars(SETTLEMENT).await
    }

    /// Balance and claims of a channel.
    pub(crate) async fn channel(&self, id: ChannelId) -> (u128, u128) {
        let view = self.eyes.channel(id).await.unwrap();
        (view.balance.units(), view.total_claimed.units())
    }

    pub(crate) async fn owed(&self, receiver: Address) -> Owed {
        self.eyes.receivers(receiver, self.token).await.unwrap()
    }

    /// The number of the newest block. Both chains make one for each transaction and none without.
    pub(crate) async fn head(&self) -> u64 {
        self.eyes.head().await.unwrap().number
    }

    /// What the settlement contract did so far.
    pub(crate) async fn happenings(&self) -> Vec<Happening> {
        let events = self.eyes.events(0, self.head().await).await.unwrap();
        events.into_iter().map(|event| event.what).collect()
    }

    /// All deposits so far, atomic units.
    pub(crate) async fn deposits(&self) -> Vec<u128> {
        let amount = |what| match what {
            Happening::Deposited { amount, .. } => Some(Amount::units(amount)),
            _ => None,
        };
        self.happenings().await.into_iter().filter_map(amount).collect()
    }

    /// All claims so far, atomic units.
    pub(crate) async fn claims(&self) -> Vec<u128> {
        let amount = |what| match what {
            Happening::Claimed { amount, .. } => Some(Amount::units(amount)),
            _ => None,
        };
        self.happenings().await.into_iter().filter_map(amount).collect()
    }

    /// Sends a call past Peaje, and waits until it is mined.
    pub(crate) async fn send(&self, key: LocalKey, call: &Call) -> Mined {
        let chain = AlloyChain::connect(self.rpc.parse().unwrap(), Some(key)).await.unwrap();
        let hash = chain.send(call).await.unwrap();
        let mined = chain.await_receipt(hash, PATIENCE, Duration::from_millis(20)).await.unwrap().unwrap();
        assert!(mined.success, "{mined:?}");
        mined
    }

    async fn ask(&self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let answer: Value = self.client.post(&self.rpc).json(&request).send().await.unwrap().json().await.unwrap();
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }
}

impl Drop for TestChain {
    fn drop(&mut self) {
        if let Node::Anvil(anvil) = &mut self.node {
            let _ = anvil.kill();
            let _ = anvil.wait();
        }
    }
}
