//! What payers do on chain by themselves, past the proxy: deposit, announce a withdrawal, take it out. Their transactions
//! are made here and not by the code under test.
#![allow(dead_code, reason = "a toolbox: not every test needs every tool")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

use alloy::consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy::eips::Encodable2718 as _;
use alloy::network::TxSignerSync as _;
use alloy::primitives::{TxKind, U256, hex};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall as _, SolValue as _};
use peaje::devnet::genesis;
use peaje::protocol::bytes::keccak256;
use peaje::protocol::deposit::Authorization;
use peaje::protocol::{Address, Amount, ChannelConfig};
use serde_json::{Value, json};

use super::payer::Payer;

/// What a payer offers for a unit of gas, wei: more than any spike of a test takes.
const FEE: u128 = 500_000_000_000;
const TIP: u128 = 1_000_000;
/// Gas of a payer's transaction, at most.
const GAS: u64 = 300_000;

/// What a payer needs to pay for gas with, wei.
pub(crate) const COINS: u128 = 10_000_000_000_000_000_000;

/// Unix seconds, in a time that no clock of a test reaches.
pub(crate) const FAR_AWAY_S: u64 = 4_000_000_000;

pub(crate) mod abi {
    alloy::sol! {
        #[derive(Debug)]
        struct Config {
            address payer;
            address payerAuthorizer;
            address receiver;
            address receiverAuthorizer;
            address token;
            uint40 withdrawDelay;
            bytes32 salt;
        }
        struct Voucher {
            Config channel;
            uint128 maxClaimableAmount;
        }
        struct Row {
            Voucher voucher;
            bytes signature;
            uint128 totalClaimed;
        }
        function deposit(Config config, uint128 amount, address collector, bytes collectorData) external;
        function claim(Row[] rows) external;
        function claimWithSignature(Row[] rows, bytes signature) external;
        function settle(address receiver, address token) external;
        function initiateWithdraw(Config config, uint128 amount) external;
        function finalizeWithdraw(Config config) external;
        function mint(address to, uint256 value) external;
    }
}

/// What a payer does on chain.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Deed {
    /// Deposits so much, which works once for a channel.
    Deposit(u128),
    /// Announces that it takes so much out.
    Announce(u128),
    /// Takes it out.
    TakeOut,
}

/// A node, asked in plain JSON-RPC.
#[derive(Debug, Clone)]
pub(crate) struct Rpc {
    http: reqwest::Client,
    url: String,
}

impl Rpc {
    pub(crate) fn new(url: &str) -> Self {
        peaje::chain::install_tls();
        Self { http: reqwest::Client::builder().no_proxy().build().unwrap(), url: url.to_owned() }
    }

    /// An answer; an error fails the test.
    pub(crate) async fn ask(&self, method: &str, params: Value) -> Value {
        self.try_ask(method, params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// An answer or the error.
    pub(crate) async fn try_ask(&self, method: &str, params: Value) -> Result<Value, Value> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let sent = self.http.post(&self.url).json(&request).send().await;
        let answer: Value = sent.unwrap().json().await.unwrap();
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].clone()),
        }
    }

    /// Sends a payer's transaction, if the node takes it: its bytes. Whether it ever is in a block is another question.
    pub(crate) async fn does(&self, payer: &Payer, deed: Deed) -> Option<Vec<u8>> {
        let count = self.ask("eth_getTransactionCount", json!([payer.address(), "pending"])).await;
        let raw = transaction(payer, deed, number(&count));
        self.send_raw(&raw).await.then_some(raw)
    }

    /// Whether the node takes it.
    pub(crate) async fn send_raw(&self, raw: &[u8]) -> bool {
        self.try_ask("eth_sendRawTransaction", json!([hex::encode_prefixed(raw)])).await.is_ok()
    }
}

/// A payer's signed transaction.
pub(crate) fn transaction(payer: &Payer, deed: Deed, nonce: u64) -> Vec<u8> {
    let mut transaction = TxEip1559 {
        chain_id: payer.terms.chain_id,
        nonce,
        gas_limit: GAS,
        max_fee_per_gas: FEE,
        max_priority_fee_per_gas: TIP,
        to: TxKind::Call(genesis::SETTLEMENT),
        value: U256::ZERO,
        access_list: Default::default(),
        input: calldata(payer, deed).into(),
    };
    let signer = PrivateKeySigner::from_slice(&*payer.key.expose()).unwrap();
    let signature = signer.sign_transaction_sync(&mut transaction).unwrap();
    TxEnvelope::from(transaction.into_signed(signature)).encoded_2718()
}

fn calldata(payer: &Payer, deed: Deed) -> Vec<u8> {
    let config = abi_config(&payer.config);
    match deed {
        Deed::Deposit(amount) => {
            let salt = keccak256(&payer.id().0);
            let nonce = Authorization::nonce(payer.id(), salt);
            let domain = payer.terms.token_domain();
            let digest = Authorization::digest(&domain, payer.config.payer, Amount::new(amount), 0, FAR_AWAY_S, nonce);
            let signature = payer.key.sign(digest);
            let signature = alloy::primitives::Bytes::from(signature.as_bytes().to_vec());
            let data = (U256::ZERO, U256::from(FAR_AWAY_S), U256::from_be_bytes(salt.0), signature);
            let (collector, data) = (genesis::ERC3009_COLLECTOR, data.abi_encode_params().into());
            abi::depositCall { config, amount, collector, collectorData: data }.abi_encode()
        }
        Deed::Announce(amount) => abi::initiateWithdrawCall { config, amount }.abi_encode(),
        Deed::TakeOut => abi::finalizeWithdrawCall { config }.abi_encode(),
    }
}

/// Terms as the contract takes them.
pub(crate) fn abi_config(config: &ChannelConfig) -> abi::Config {
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
