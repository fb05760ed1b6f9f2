//! The chain, seen through a JSON-RPC node.
//!
//! **Owns** the connection, the gas key and the nonce: whoever sends from that key sends through here. **Promises**
//! that one nonce is not given to two different purposes, and that a transaction which may have left is reported as such.
//! **Does not** decide when to replace a transaction that is stuck, and does not wait for any.

use std::fmt;
use std::time::Duration;

use alloy::consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy::eips::{Decodable2718 as _, Encodable2718 as _};
use alloy::primitives::{Address as EvmAddress, B256, Bytes, TxKind, U64, U256, address, hex};
use alloy::sol_types::{SolCall, abi::AbiDecoderConfig};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

use super::bindings::{Multicall3, Settlement, Token, Wallet, bytes_of, evm, hash_of, word};
use super::call::Call;
use super::error::{ChainError, SendError};
use super::events::{self, RawLog};
use super::rpc::{Failure, Fate, Rpc};
use super::types::{
    Bid, ChannelEvent, GasPrice, Head, Mined, Nonces, Owed, Replacement, Resent, SignedTransaction, TokenDomain, View,
    Withdrawal,
};
use super::url::RpcUrl;
use super::{Chain, Witness};
use crate::protocol::contracts::SETTLEMENT;
use crate::protocol::voucher::PayerEvidence;
use crate::protocol::{Address, Amount, ChannelId, Hash, LocalKey, Signature};

/// The canonical Multicall3, at the same address on every chain that has it.
const MULTICALL3: EvmAddress = address!("0xcA11bde05977b3631167028862bE2a173976CA11");
/// Channels read in one `eth_call` of the Multicall3, three reads each; well below any node's gas limit for calls.
const CHANNELS_PER_CALL: usize = 100;
/// Channels read at the same time where there is no Multicall3, with three requests each.
const CHANNELS_AT_ONCE: usize = 8;
/// Blocks asked for in one `eth_getLogs`; most providers allow this many.
const BLOCKS_PER_LOG_QUERY: u64 = 2_000;

/// The magic value of ERC-1271, `isValidSignature(bytes32,bytes)`, padded to a word.
const ERC1271_MAGIC: [u8; 32] = {
    let mut word = [0; 32];
    [word[0], word[1], word[2], word[3]] = [0x16, 0x26, 0xba, 0x7e];
    word
};

/// The gas a payer's wallet may take to judge a signature, transaction overhead included. Every claim pays for that
/// again, so a wallet that needs more is refused; checking a passkey in Solidity takes about a third of this.
const WALLET_GAS: u64 = 1_000_000;

/// A base fee can double in six full blocks; a transaction that offers twice the current one outlasts them.
const BASE_FEE_HEADROOM: u128 = 2;
/// The tip where a node does not suggest one, wei a unit of gas.
const DEFAULT_TIP_WEI: u128 = 10_000_000;
/// The largest tip that is believed, wei a unit of gas: a lying node must not empty the gas account.
const MAX_TIP_WEI: u128 = 500_000_000_000;
/// How many times the usual tip is offered where something is lost if a transaction comes late.
const URGENT_TIP_FACTOR: u128 = 3;
/// The part that a replacement must offer more than what it replaces, in fee and tip: an eighth covers the tenth that
/// nodes ask for.
const REPLACEMENT_DIVISOR: u128 = 8;
/// The part of a gas estimate that is added to it: a quarter. The state may have moved when the transaction is mined.
const GAS_HEADROOM_DIVISOR: u64 = 4;
/// The gas of a settlement. Not estimated: a node that has not seen the claim before it yet estimates the path where
/// nothing is due, and the transaction would run out of gas. Real settlements take 45,000 to 90,000.
const SETTLE_GAS: u64 = 120_000;
/// The most gas one transaction may have (EIP-7825).
const MAX_TRANSACTION_GAS: u64 = 1 << 24;
/// The most a call that runs a wallet may take beside its rows and wallets. Deposits and refunds measure at a tenth of
/// this; the rest is for chains that charge for their data in gas.
const CALL_GAS: u64 = 2_000_000;
/// The most a claimed row may take beside its payer's wallet, in such a call.
const ROW_GAS: u64 = 60_000;
/// What nodes answer where a sender cannot pay.
const INSUFFICIENT_FUNDS: i64 = -32_000;
/// For so long after a transaction our own count of nonces is believed more than a node's, which may not have seen it
/// yet. After that the node's is right: it knows of transactions that were dropped.
const NONCE_TRUST: Duration = Duration::from_secs(30);

/// A chain behind a JSON-RPC node, and the account that pays for what is sent to it.
pub struct AlloyChain {
    rpc: Rpc,
    chain_id: u64,
    gas_key: Option<LocalKey>,
    /// The next nonce of the gas key and when that was learnt; nothing where the node has to be asked.
    nonce: Mutex<Option<(u64, Instant)>>,
    has_multicall: OnceCell<bool>,
}

/// Gives this process the ring provider, for clients of a caller's own that bring no settings; ours bring theirs. Doing it
/// again, or after somebody else, changes nothing.
pub fn install_tls() {
    // The error says that there is a provider already, which is all that is wanted.
    drop(rustls::crypto::ring::default_provider().install_default());
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawHead {
    number: U64,
    hash: B256,
    timestamp: U64,
    base_fee_per_gas: Option<U256>,
    #[serde(default)]
    gas_limit: U64,
}

impl RawHead {
    fn head(&self) -> Head {
        Head { number: self.number.to::<u64>(), hash: hash_of(self.hash), timestamp: self.timestamp.to::<u64>() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawReceipt {
    transaction_hash: B256,
    block_number: Option<U64>,
    block_hash: Option<B256>,
    status: U64,
    gas_used: U64,
    effective_gas_price: Option<U256>,
    /// What the OP stack takes for putting the transaction's data on layer 1.
    l1_fee: Option<U256>,
    logs: Vec<RawLog>,
}

impl RawReceipt {
    fn fee_wei(&self) -> Option<u128> {
        let execution = self.effective_gas_price?.checked_mul(U256::from(self.gas_used))?;
        u128::try_from(execution.checked_add(self.l1_fee.unwrap_or_default())?).ok()
    }
}

struct Fees {
    max_fee: u128,
    tip: u128,
}

impl AlloyChain {
    /// Connects to a node and asks for its chain id. Without a gas key everything but sending and simulating works.
    pub async fn connect(url: RpcUrl, gas_key: Option<LocalKey>) -> Result<Self, ChainError> {
        install_tls();
        let rpc = Rpc::new(url)?;
        let chain_id: U64 = rpc.ask("eth_chainId", json!([])).await?;
        Ok(Self {
            rpc,
            chain_id: chain_id.to::<u64>(),
            gas_key,
            nonce: Mutex::new(None),
            has_multicall: OnceCell::new(),
        })
    }

    /// Tries a call on the newest state as if this account sent it; the gas it would take. Takes no gas key.
    pub(crate) async fn simulate_from(&self, sender: Address, call: &Call) -> Result<u64, ChainError> {
        let allowance = gas_allowance(call);
        let transaction = json!({
            "from": evm(sender), "to": evm(SETTLEMENT), "data": call.calldata(), "gas": U64::from(allowance),
        });
        let answer: Result<U64, _> = self.rpc.ask("eth_estimateGas", json!([transaction, "latest"])).await;
        match answer.map(|gas| gas.to::<u64>()).map_err(ChainError::from) {
            // Not every node keeps to the allowance.
            Ok(gas) if gas > allowance => Err(too_much_gas(allowance)),
            Err(ChainError::Refused { message, .. }) if says_too_much_gas(&message, allowance) => {
                Err(too_much_gas(allowance))
            }
            estimate => estimate,
        }
    }

    fn gas_key(&self) -> Result<&LocalKey, ChainError> {
        self.gas_key.as_ref().ok_or(ChainError::NoGasKey)
    }

    async fn newest(&self) -> Result<RawHead, ChainError> {
        Ok(self.rpc.ask("eth_getBlockByNumber", json!(["latest", false])).await?)
    }

    /// Calls a contract without a transaction, at a block or at the newest one.
    async fn call(&self, to: EvmAddress, data: Vec<u8>, block: Option<u64>) -> Result<Bytes, ChainError> {
        let at = block.map_or("latest".to_owned(), |number| format!("{number:#x}"));
        let transaction = json!({"to": to, "data": hex::encode_prefixed(data)});
        Ok(self.rpc.ask("eth_call", json!([transaction, at])).await?)
    }

    async fn read<C: SolCall>(&self, to: EvmAddress, call: C, block: Option<u64>) -> Result<C::Return, ChainError> {
        decode::<C>(&self.call(to, call.abi_encode(), block).await?)
    }

    /// A read that a contract need not have. Only a contract that cannot answer is `None`.
    async fn read_optional<C: SolCall>(&self, to: EvmAddress, call: C) -> Result<Option<C::Return>, ChainError> {
        match self.read(to, call, None).await {
            Ok(value) => Ok(Some(value)),
            Err(ChainError::Reverted { .. } | ChainError::Decode { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn code_at(&self, address: Address) -> Result<Bytes, ChainError> {
        Ok(self.rpc.ask("eth_getCode", json!([evm(address), "latest"])).await?)
    }

    async fn channels_by_multicall(&self, ids: &[ChannelId], block: u64) -> Result<Vec<View>, ChainError> {
        let mut views = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(CHANNELS_PER_CALL) {
            let calls = chunk.iter().flat_map(reads_of_channel).map(|data| Multicall3::Call3 {
                target: evm(SETTLEMENT),
                allowFailure: false,
                callData: data.into(),
            });
            let results =
                self.read(MULTICALL3, Multicall3::aggregate3Call { calls: calls.collect() }, Some(block)).await?;
            if results.len() != chunk.len().saturating_mul(3) {
                return Err(ChainError::decode("one result for each call"));
            }
            for triple in results.chunks_exact(3) {
                let [state, withdrawal, nonce] = triple else {
                    return Err(ChainError::decode("three reads a channel"));
                };
                views.push(view(&state.returnData, &withdrawal.returnData, &nonce.returnData, block)?);
            }
        }
        Ok(views)
    }

    async fn channel_by_calls(&self, id: ChannelId, block: u64) -> Result<View, ChainError> {
        let [state, withdrawal, nonce] =
            reads_of_channel(&id).map(|data| self.call(evm(SETTLEMENT), data, Some(block)));
        let (state, withdrawal, nonce) = tokio::try_join!(state, withdrawal, nonce)?;
        view(&state, &withdrawal, &nonce, block)
    }

    async fn has_multicall(&self) -> Result<bool, ChainError> {
        let ask = || async {
            Ok::<bool, ChainError>(!self.code_at(super::bindings::address_of(MULTICALL3)).await?.is_empty())
        };
        self.has_multicall.get_or_try_init(ask).await.copied()
    }

    async fn price(&self) -> Result<GasPrice, ChainError> {
        let newest = self.newest().await?;
        let base = newest.base_fee_per_gas.ok_or(ChainError::decode("a base fee (EIP-1559)"))?;
        let base = u128::try_from(base).map_err(|error| ChainError::decode_from("a base fee of 128 bits", error))?;
        let suggested = self.rpc.ask::<U256>("eth_maxPriorityFeePerGas", json!([])).await.map_err(ChainError::from);
        let tip = match suggested {
            Ok(tip) => u128::try_from(tip).unwrap_or(MAX_TIP_WEI).min(MAX_TIP_WEI),
            Err(ChainError::Refused { .. }) => DEFAULT_TIP_WEI,
            Err(error) => return Err(error),
        };
        Ok(GasPrice {
            base_wei: base,
            tip_wei: tip,
            data_wei_per_byte: 0,
            block_gas_limit: newest.gas_limit.to::<u64>(),
        })
    }

    fn transaction(&self, call: &Call, nonce: u64, gas_limit: u64, fees: &Fees) -> TxEip1559 {
        TxEip1559 {
            chain_id: self.chain_id,
            nonce,
            gas_limit,
            max_fee_per_gas: fees.max_fee,
            max_priority_fee_per_gas: fees.tip,
            to: TxKind::Call(evm(SETTLEMENT)),
            value: U256::ZERO,
            access_list: Default::default(),
            input: call.calldata(),
        }
    }

    fn sign(&self, transaction: TxEip1559) -> Result<SignedTransaction, ChainError> {
        let key = self.gas_key()?;
        let nonce = transaction.nonce;
        let signature = key.sign(hash_of(transaction.signature_hash()));
        let signature = alloy::primitives::Signature::from_raw(signature.as_bytes())
            .expect("a local key signs with 65 bytes and a recovery byte of 27 or 28");
        let signed = transaction.into_signed(signature);
        let hash = hash_of(*signed.hash());
        Ok(SignedTransaction { hash, sender: key.address(), nonce, raw: signed.encoded_2718() })
    }

    /// The nonce for the next transaction: our own count while it is fresh, else the node's.
    async fn next_nonce(&self, known: Option<(u64, Instant)>) -> Result<u64, ChainError> {
        match known {
            Some((nonce, learnt)) if learnt.elapsed() < NONCE_TRUST => Ok(nonce),
            _ => {
                let account = evm(self.gas_key()?.address());
                let count: U64 = self.rpc.ask("eth_getTransactionCount", json!([account, "pending"])).await?;
                Ok(count.to::<u64>())
            }
        }
    }

    async fn broadcast(&self, signed: &SignedTransaction) -> Result<(), Broadcast> {
        let params = json!([hex::encode_prefixed(&signed.raw)]);
        match self.rpc.ask::<B256>("eth_sendRawTransaction", params).await {
            Ok(hash) if hash_of(hash) == signed.hash => Ok(()),
            Ok(_) => Err(Broadcast::Unclear(ChainError::decode("the hash of the transaction that was sent"))),
            Err(failure) => Err(judge(failure)),
        }
    }

    async fn knows_transaction(&self, hash: Hash) -> Result<bool, ChainError> {
        let found: Option<serde::de::IgnoredAny> =
            self.rpc.ask("eth_getTransactionByHash", json!([word(hash)])).await?;
        Ok(found.is_some())
    }

    async fn logs(&self, from_block: u64, to_block: u64) -> Result<Vec<RawLog>, ChainError> {
        let filter = json!({
            "address": evm(SETTLEMENT),
            "topics": [events::TOPICS],
            "fromBlock": format!("{from_block:#x}"),
            "toBlock": format!("{to_block:#x}"),
        });
        Ok(self.rpc.ask("eth_getLogs", json!([filter])).await?)
    }
}

impl Chain for AlloyChain {
    fn chain_id(&self) -> u64 {
        self.chain_id
    }

    fn sender(&self) -> Option<Address> {
        self.gas_key.as_ref().map(LocalKey::address)
    }

    async fn nonces(&self) -> Result<Nonces, ChainError> {
        let account = evm(self.gas_key()?.address());
        let count = |at: &'static str| self.rpc.ask::<U64>("eth_getTransactionCount", json!([account, at]));
        let (mined, pending) = tokio::try_join!(count("latest"), count("pending"))?;
        Ok(Nonces { mined: mined.to::<u64>(), pending: pending.to::<u64>() })
    }

    async fn gas_price(&self) -> Result<GasPrice, ChainError> {
        self.price().await
    }

    async fn block(&self, number: u64) -> Result<Option<Head>, ChainError> {
        let block: Option<RawHead> = self.rpc.ask("eth_getBlockByNumber", json!([U64::from(number), false])).await?;
        Ok(block.map(|block| block.head()))
    }

    async fn head(&self) -> Result<Head, ChainError> {
        Ok(self.newest().await?.head())
    }

    async fn channel(&self, id: ChannelId) -> Result<View, ChainError> {
        let views = self.channels(&[id]).await?;
        views.into_iter().next().ok_or(ChainError::decode("one channel"))
    }

    async fn channels(&self, ids: &[ChannelId]) -> Result<Vec<View>, ChainError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let block = self.newest().await?.number.to::<u64>();
        if self.has_multicall().await? {
            return self.channels_by_multicall(ids, block).await;
        }
        let reads = ids.iter().copied().map(|id| self.channel_by_calls(id, block));
        stream::iter(reads).buffered(CHANNELS_AT_ONCE).try_collect().await
    }

    async fn payer_evidence(
        &self,
        payer: Address,
        digest: Hash,
        signature: &Signature,
    ) -> Result<PayerEvidence, ChainError> {
        if self.code_at(payer).await?.is_empty() {
            return Ok(PayerEvidence::NoCode);
        }
        let question = Wallet::isValidSignatureCall { digest: word(digest), signature: bytes_of(signature) };
        // The wallet sees the caller it will see in the claim.
        let transaction = json!({
            "from": evm(SETTLEMENT),
            "to": evm(payer),
            "data": hex::encode_prefixed(question.abi_encode()),
            "gas": U64::from(WALLET_GAS),
        });
        match self.rpc.ask::<Bytes>("eth_call", json!([transaction, "latest"])).await.map_err(ChainError::from) {
            Ok(answer) if answer.first_chunk() == Some(&ERC1271_MAGIC) => Ok(PayerEvidence::Approved),
            Ok(_) | Err(ChainError::Reverted { .. }) => Ok(PayerEvidence::Refused),
            Err(error) => Err(error),
        }
    }

    async fn has_code(&self, address: Address) -> Result<bool, ChainError> {
        Ok(!self.code_at(address).await?.is_empty())
    }

    async fn token_balance(&self, token: Address, owner: Address) -> Result<Amount, ChainError> {
        let balance = self.read(evm(token), Token::balanceOfCall { owner: evm(owner) }, None).await?;
        Ok(Amount::new(u128::try_from(balance).unwrap_or(u128::MAX)))
    }

    async fn authorization_used(&self, token: Address, payer: Address, nonce: Hash) -> Result<bool, ChainError> {
        let question = Token::authorizationStateCall { authorizer: evm(payer), nonce: word(nonce) };
        self.read(evm(token), question, None).await
    }

    async fn token_domain(&self, token: Address) -> Result<TokenDomain, ChainError> {
        let at = evm(token);
        let (domain, name, version, separator, decimals) = tokio::try_join!(
            self.read_optional(at, Token::eip712DomainCall {}),
            self.read_optional(at, Token::nameCall {}),
            self.read_optional(at, Token::versionCall {}),
            self.read_optional(at, Token::DOMAIN_SEPARATORCall {}),
            self.read(at, Token::decimalsCall {}, None),
        )?;
        let (name, version) = match domain {
            Some(domain) => (domain.name, Some(domain.version)),
            None => (name.unwrap_or_default(), version),
        };
        let separator =
            separator.ok_or(ChainError::decode("DOMAIN_SEPARATOR(), without which a token takes no ERC-3009"))?;
        Ok(TokenDomain { name, version, separator: hash_of(separator), decimals })
    }

    async fn gas_balance(&self, address: Address) -> Result<u128, ChainError> {
        let wei: U256 = self.rpc.ask("eth_getBalance", json!([evm(address), "latest"])).await?;
        Ok(u128::try_from(wei).unwrap_or(u128::MAX))
    }

    async fn receivers(&self, receiver: Address, token: Address) -> Result<Owed, ChainError> {
        let question = Settlement::receiversCall { receiver: evm(receiver), token: evm(token) };
        let sums = self.read(evm(SETTLEMENT), question, None).await?;
        Ok(Owed { total_claimed: Amount::new(sums.totalClaimed), total_settled: Amount::new(sums.totalSettled) })
    }

    async fn simulate(&self, call: &Call) -> Result<u64, ChainError> {
        self.simulate_from(self.gas_key()?.address(), call).await
    }

    async fn send_witnessed<W: Witness>(
        &self,
        call: &Call,
        bid: Bid,
        chosen: Option<u64>,
        witness: &W,
    ) -> Result<Hash, SendError> {
        let estimate = self.simulate(call).await.map_err(SendError::Refused)?;
        let gas = gas_limit(call, estimate);
        let payer = self.gas_key().map_err(SendError::Refused)?.address();
        let (price, balance) = tokio::try_join!(self.price(), self.gas_balance(payer)).map_err(SendError::Refused)?;
        let fees = Fees::of(&price, bid).map_err(SendError::Refused)?;
        can_pay(balance, gas, &fees).map_err(SendError::Refused)?;

        let mut known = self.nonce.lock().await;
        // What is known is taken out first: where this future is dropped or fails, the next one asks the node.
        let mut count = known.take();
        let mut nonce = match chosen {
            Some(nonce) => nonce,
            None => self.next_nonce(count).await.map_err(SendError::Refused)?,
        };
        let mut asked_again = false;
        loop {
            let signed = self.sign(self.transaction(call, nonce, gas, &fees)).map_err(SendError::Refused)?;
            if let Err(objection) = witness.sees(&signed).await {
                *known = count;
                return Err(SendError::Withheld(objection));
            }
            let unknown = |source| SendError::Unknown { hash: signed.hash, source };
            match self.broadcast(&signed).await {
                Ok(()) => {
                    *known = Some((nonce.saturating_add(1), Instant::now()));
                    return Ok(signed.hash);
                }
                // This nonce is used: by somebody else with the same key, or by this very transaction, if a gateway on
                // the way delivered it twice.
                Err(Broadcast::NonceTooLow(source)) => {
                    if self.knows_transaction(signed.hash).await.map_err(unknown)? {
                        return Ok(signed.hash);
                    }
                    if let Some(nonce) = chosen {
                        return Err(SendError::Refused(ChainError::NonceUsed { nonce }));
                    }
                    if asked_again {
                        return Err(SendError::Refused(source));
                    }
                    asked_again = true;
                    count = None;
                    nonce = self.next_nonce(None).await.map_err(SendError::Refused)?;
                }
                Err(Broadcast::Refused(source)) => return Err(SendError::Refused(source)),
                Err(Broadcast::Unclear(source)) => return Err(unknown(source)),
            }
        }
    }

    async fn replace_witnessed<W: Witness>(
        &self,
        transaction: &SignedTransaction,
        bid: Bid,
        witness: &W,
    ) -> Result<Replacement, SendError> {
        let before = decode_transaction(&transaction.raw).map_err(SendError::Refused)?;
        let price = self.price().await.map_err(SendError::Refused)?;
        let old = Fees { max_fee: before.max_fee_per_gas, tip: before.max_priority_fee_per_gas };
        let Some(fees) = old.outbid(&price, bid) else { return Ok(Replacement::AtCeiling) };
        let next = TxEip1559 { max_fee_per_gas: fees.max_fee, max_priority_fee_per_gas: fees.tip, ..before };
        let signed = self.sign(next).map_err(SendError::Refused)?;
        // Not the count of nonces: this one was given away before.
        let _sending = self.nonce.lock().await;
        witness.sees(&signed).await.map_err(SendError::Withheld)?;
        let unknown = |source| SendError::Unknown { hash: signed.hash, source };
        match self.broadcast(&signed).await {
            Ok(()) => Ok(Replacement::Sent(signed.hash)),
            Err(Broadcast::NonceTooLow(_)) => match self.knows_transaction(signed.hash).await.map_err(unknown)? {
                true => Ok(Replacement::Sent(signed.hash)),
                false => Ok(Replacement::NonceUsed),
            },
            Err(Broadcast::Refused(source)) => Err(SendError::Refused(source)),
            Err(Broadcast::Unclear(source)) => Err(unknown(source)),
        }
    }

    async fn resend(&self, transaction: &SignedTransaction) -> Result<Resent, ChainError> {
        // What a facilitator was asked is no transaction, and no block will ever have it.
        if transaction.sender.is_zero() {
            return Ok(Resent::Replaced);
        }
        // A key sends one at a time, and what is not in the node's count yet must not be given away meanwhile.
        let mut known = self.nonce.lock().await;
        let (error, replaced) = match self.broadcast(transaction).await {
            Ok(()) => {
                let next = transaction.nonce.saturating_add(1);
                if self.sender() == Some(transaction.sender) && known.is_none_or(|(count, _)| count < next) {
                    *known = Some((next, Instant::now()));
                }
                return Ok(Resent::Known);
            }
            Err(Broadcast::NonceTooLow(error)) => (error, true),
            Err(Broadcast::Refused(error) | Broadcast::Unclear(error)) => (error, false),
        };
        match self.knows_transaction(transaction.hash).await? {
            true => Ok(Resent::Known),
            false if replaced => Ok(Resent::Replaced),
            false => Err(error),
        }
    }

    async fn receipt(&self, transaction: Hash) -> Result<Option<Mined>, ChainError> {
        let receipt: Option<RawReceipt> = self.rpc.ask("eth_getTransactionReceipt", json!([word(transaction)])).await?;
        let Some(receipt) = receipt else { return Ok(None) };
        // Some nodes answer for pending transactions too, without a block.
        let (Some(block), Some(block_hash)) = (receipt.block_number, receipt.block_hash) else { return Ok(None) };
        if hash_of(receipt.transaction_hash) != transaction {
            return Err(ChainError::decode("the receipt of the transaction that was asked for"));
        }
        Ok(Some(Mined {
            hash: transaction,
            block: block.to::<u64>(),
            block_hash: hash_of(block_hash),
            success: receipt.status == U64::from(1),
            gas_used: receipt.gas_used.to::<u64>(),
            fee_wei: receipt.fee_wei(),
            events: events::read(&receipt.logs)?,
        }))
    }

    async fn events(&self, from_block: u64, to_block: u64) -> Result<Vec<ChannelEvent>, ChainError> {
        let mut found = Vec::new();
        let mut from = from_block;
        let mut span = BLOCKS_PER_LOG_QUERY;
        while from <= to_block {
            let to = from.saturating_add(span.saturating_sub(1)).min(to_block);
            match self.logs(from, to).await {
                Ok(logs) => found.extend(events::read(&logs)?),
                // Providers differ in how many blocks and logs they give at once; they all refuse with an error.
                Err(ChainError::Refused { .. }) if to > from => {
                    span = to.saturating_sub(from).div_ceil(2);
                    continue;
                }
                Err(error) => return Err(error),
            }
            let Some(next) = to.checked_add(1) else { break };
            from = next;
        }
        Ok(found)
    }
}

impl fmt::Debug for AlloyChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlloyChain")
            .field("rpc", &self.rpc)
            .field("chain_id", &self.chain_id)
            .field("gas_key", &self.gas_key)
            .finish_non_exhaustive()
    }
}

impl Fees {
    /// What to offer at this price: enough to outlast a rise, as far as the bid allows.
    fn of(price: &GasPrice, bid: Bid) -> Result<Self, ChainError> {
        let tip = if bid.urgent { price.tip_wei.saturating_mul(URGENT_TIP_FACTOR) } else { price.tip_wei };
        let tip = tip.min(MAX_TIP_WEI);
        let asked_wei = price.base_wei.saturating_add(price.tip_wei);
        if asked_wei > bid.ceiling_wei {
            return Err(ChainError::TooDear { asked_wei, ceiling_wei: bid.ceiling_wei });
        }
        let roomy = price.base_wei.saturating_mul(BASE_FEE_HEADROOM).saturating_add(tip);
        let max_fee = roomy.min(bid.ceiling_wei);
        Ok(Self { max_fee, tip: tip.min(max_fee) })
    }

    /// What to offer for the nonce of a transaction with these fees: what nodes take for a replacement at least, and what
    /// gas costs now; nothing where that is more than the bid allows.
    fn outbid(&self, price: &GasPrice, bid: Bid) -> Option<Self> {
        let raised = |fee: u128| fee.saturating_add(fee.div_euclid(REPLACEMENT_DIVISOR)).saturating_add(1);
        let now = Self::of(price, bid).unwrap_or(Self { max_fee: 0, tip: 0 });
        let max_fee = raised(self.max_fee).max(now.max_fee);
        let tip = raised(self.tip).max(now.tip).min(max_fee);
        (max_fee <= bid.ceiling_wei).then_some(Self { max_fee, tip })
    }
}

/// Reads the bytes of a transaction of ours.
fn decode_transaction(raw: &[u8]) -> Result<TxEip1559, ChainError> {
    let what = "the bytes of a transaction that was sent";
    match TxEnvelope::decode_2718(&mut &*raw) {
        Ok(TxEnvelope::Eip1559(signed)) => Ok(signed.strip_signature()),
        Ok(_) => Err(ChainError::decode(what)),
        Err(error) => Err(ChainError::decode_from(what, error)),
    }
}

/// Whether a sender with this balance, wei, can pay for so much gas. The node would say so too, but only after the
/// transaction was shown to a witness, who writes it down; strangers could fill a disk with what is never sent.
fn can_pay(balance: u128, gas: u64, fees: &Fees) -> Result<(), ChainError> {
    let most = fees.max_fee.saturating_mul(u128::from(gas));
    if balance >= most {
        return Ok(());
    }
    let message = format!("insufficient funds for gas: {most} wei may be needed, {balance} are there");
    Err(ChainError::Refused { code: INSUFFICIENT_FUNDS, message })
}

/// Why a broadcast did not simply succeed.
enum Broadcast {
    NonceTooLow(ChainError),
    Refused(ChainError),
    Unclear(ChainError),
}

/// What an error of `eth_sendRawTransaction` says about the transaction.
fn judge(failure: Failure) -> Broadcast {
    let Failure { error, fate } = failure;
    match (fate, &error) {
        (Fate::Unread, _) => Broadcast::Refused(error),
        (Fate::Unclear, _) => Broadcast::Unclear(error),
        (Fate::Answered, ChainError::Refused { code, message }) => {
            let message = message.to_ascii_lowercase();
            let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
            if says(&["nonce too low", "nonce is too low"]) {
                Broadcast::NonceTooLow(error)
            } else if says(&[
                "already known",
                "known transaction",
                "already imported",
                "already exists",
                // What a gateway says of the node behind it, or a layer 2's node of the sequencer it forwards to.
                "timeout",
                "timed out",
                "deadline",
                "forward",
                "sequencer",
                "connection",
                "eof",
                "unavailable",
                "try again",
                "internal error",
            ]) || !is_verdict(*code)
            {
                Broadcast::Unclear(error)
            } else {
                Broadcast::Refused(error)
            }
        }
        (Fate::Answered, _) => Broadcast::Refused(error),
    }
}

/// Whether an error with this code is about the transaction or the request, so that the node did not pass it on. An
/// internal error (-32603) may come from a gateway whose node did.
fn is_verdict(code: i64) -> bool {
    matches!(code, -32000 | -32003 | -32005 | -32010 | -32600 | -32601 | -32602 | -32700)
}

/// The gas a call may take at most. A wallet is somebody else's code that runs at our expense, and one that takes what
/// the other rows of its batch need must be found out here, not when it is mined.
fn gas_allowance(call: &Call) -> u64 {
    let (rows, wallets) = match call {
        // The token asks the payer's account, which may be a wallet.
        Call::Deposit { .. } => (0, 1),
        Call::Claim { rows } | Call::ClaimWithSignature { rows, .. } | Call::ClaimAndRefund { rows, .. } => {
            (rows.len(), rows.iter().filter(|row| row.config.payer_authorizer.is_zero()).count())
        }
        Call::Settle { .. } | Call::InitiateWithdraw { .. } | Call::FinalizeWithdraw { .. } => (0, 0),
    };
    if wallets == 0 {
        return MAX_TRANSACTION_GAS;
    }
    let times = |gas: u64, count: usize| gas.saturating_mul(u64::try_from(count).unwrap_or(u64::MAX));
    CALL_GAS.saturating_add(times(ROW_GAS, rows)).saturating_add(times(WALLET_GAS, wallets)).min(MAX_TRANSACTION_GAS)
}

/// Whether a node means that a call takes more than it was allowed. The same words with another number speak of its
/// sender's balance.
fn says_too_much_gas(message: &str, allowance: u64) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("exceeds allowance") && message.contains(&allowance.to_string())
}

/// It is the call's fault, as a revert is: trying the same again gives the same.
fn too_much_gas(allowance: u64) -> ChainError {
    ChainError::Reverted { name: Some(format!("it takes more than {allowance} gas")) }
}

fn gas_limit(call: &Call, estimate: u64) -> u64 {
    let roomy = estimate.saturating_add(estimate.div_euclid(GAS_HEADROOM_DIVISOR)).min(MAX_TRANSACTION_GAS);
    match call {
        Call::Settle { .. } => roomy.max(SETTLE_GAS),
        _ => roomy,
    }
}

fn reads_of_channel(id: &ChannelId) -> [Vec<u8>; 3] {
    let id = B256::new(id.0);
    [
        Settlement::channelsCall { channelId: id }.abi_encode(),
        Settlement::pendingWithdrawalsCall { channelId: id }.abi_encode(),
        Settlement::refundNonceCall { channelId: id }.abi_encode(),
    ]
}

fn view(state: &[u8], withdrawal: &[u8], nonce: &[u8], block: u64) -> Result<View, ChainError> {
    let state = decode::<Settlement::channelsCall>(state)?;
    let pending = decode::<Settlement::pendingWithdrawalsCall>(withdrawal)?;
    let nonce = decode::<Settlement::refundNonceCall>(nonce)?;
    Ok(View {
        balance: Amount::new(state.balance),
        total_claimed: Amount::new(state.totalClaimed),
        withdrawal: (pending.amount != 0)
            .then(|| Withdrawal { amount: Amount::new(pending.amount), initiated_at: pending.initiatedAt.to::<u64>() }),
        refund_nonce: u128::try_from(nonce)
            .map_err(|error| ChainError::decode_from("a refund nonce of 128 bits", error))?,
        block,
    })
}

/// Reads what a contract returned, and nothing looser: a number that does not fit its type is an error.
fn decode<C: SolCall>(data: &[u8]) -> Result<C::Return, ChainError> {
    if data.is_empty() {
        return Err(ChainError::decode("a contract at this address (it returned nothing)"));
    }
    let checked = AbiDecoderConfig::new().validate(true).validate_allow_trailing_bytes(true);
    C::abi_decode_returns_with_config(data, checked).map_err(|error| ChainError::decode_from(C::SIGNATURE, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: i64, message: &str) -> Broadcast {
        let error = ChainError::Refused { code, message: message.to_owned() };
        judge(Failure { error, fate: Fate::Answered })
    }

    #[test]
    fn only_a_verdict_of_the_node_is_a_refusal() {
        for (code, message) in [
            (-32000, "insufficient funds for gas * price + value"),
            (-32000, "replacement transaction underpriced"),
            (-32003, "transaction rejected"),
            (-32601, "method not found"),
            (-32005, "rate limit exceeded"),
        ] {
            assert!(matches!(answered(code, message), Broadcast::Refused(_)), "{message}");
        }
        for (code, message) in [
            (-32000, "already known"),
            (-32000, "AlreadyKnown: known transaction: 0x12"),
            (-32000, "request timed out"),
            (-32000, "failed to forward tx to sequencer, please try again. Error message: 'context deadline exceeded'"),
            (-32000, "Post: EOF"),
            (-32603, "internal error"),
            (429, "what is this"),
        ] {
            assert!(matches!(answered(code, message), Broadcast::Unclear(_)), "{message}");
        }
        assert!(matches!(answered(-32000, "nonce too low: next nonce 5"), Broadcast::NonceTooLow(_)));

        let lost = |fate| judge(Failure { error: ChainError::decode("x"), fate });
        assert!(matches!(lost(Fate::Unread), Broadcast::Refused(_)));
        assert!(matches!(lost(Fate::Unclear), Broadcast::Unclear(_)));
    }

    #[test]
    fn a_wallet_has_its_allowance_and_a_batch_no_more_than_a_transaction() {
        let row = |payer_authorizer| crate::protocol::claim::ClaimRow {
            config: crate::protocol::ChannelConfig {
                payer: Address([1; 20]),
                payer_authorizer,
                receiver: Address([2; 20]),
                receiver_authorizer: Address([3; 20]),
                token: Address([4; 20]),
                withdraw_delay: 900,
                salt: Hash::ZERO,
            },
            max_claimable: Amount::new(1),
            signature: Signature::from_bytes([0; 65]).unwrap(),
            total_claimed: Amount::new(1),
        };
        let (key, wallet) = (row(Address([1; 20])), row(Address::ZERO));
        let claim = |rows: &[&crate::protocol::claim::ClaimRow]| Call::Claim {
            rows: rows.iter().map(|row| (*row).clone()).collect(),
        };
        assert_eq!(gas_allowance(&claim(&[&key; 100])), MAX_TRANSACTION_GAS);
        assert_eq!(gas_allowance(&claim(&[&key, &wallet])), CALL_GAS + 2 * ROW_GAS + WALLET_GAS);
        assert_eq!(gas_allowance(&claim(&[&wallet; 272])), MAX_TRANSACTION_GAS);
        assert!(says_too_much_gas("gas required exceeds allowance (460000)", 460_000));
        assert!(says_too_much_gas("Out of gas: gas required exceeds allowance: 460000", 460_000));
        assert!(!says_too_much_gas("gas required exceeds allowance (0)", 460_000), "an empty gas account");
    }

    #[test]
    fn gas_has_headroom_and_a_ceiling_and_a_settlement_its_own_floor() {
        let claim = Call::Claim { rows: Vec::new() };
        let settle = Call::Settle { receiver: Address::ZERO, token: Address::ZERO };
        assert_eq!(gas_limit(&claim, 100_000), 125_000);
        assert_eq!(gas_limit(&claim, u64::MAX), MAX_TRANSACTION_GAS);
        assert_eq!(gas_limit(&settle, 25_000), SETTLE_GAS);
        assert_eq!(gas_limit(&settle, 200_000), 250_000);
    }
}
