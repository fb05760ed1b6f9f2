//! What is asked of one node, and how its answers are read.
//!
//! **Promises** that an answer of the wrong shape is an error, never a looser reading. **Does not** choose the node, and does
//! not compare.

use alloy::primitives::{Address as EvmAddress, B256, Bytes, U64, U256, address, hex};
use alloy::sol_types::{SolCall, abi::AbiDecoderConfig};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use serde_json::json;

use super::bindings::{DataFeeOracle, Multicall3, Settlement, Token, Wallet, address_of, bytes_of, evm, hash_of, word};
use super::call::Call;
use super::error::ChainError;
use super::events::{self, RawLog};
use super::fees::MAX_TIP_WEI;
use super::gas::{WALLET_GAS, gas_allowance, says_too_much_gas, too_much_gas};
use super::node::{Node, RawHead};
use super::types::{ChannelEvent, Counting, GasPrice, Head, Mined, TokenDomain, View, Withdrawal};
use crate::protocol::contracts::SETTLEMENT;
use crate::protocol::voucher::PayerEvidence;
use crate::protocol::{Address, Amount, ChannelId, Hash, Signature};

/// The canonical Multicall3, at the same address on every chain that has it.
const MULTICALL3: EvmAddress = address!("0xcA11bde05977b3631167028862bE2a173976CA11");
/// The contract that knows what layer 1 takes for data, at the same address on every chain of the OP stack.
const DATA_FEE_ORACLE: EvmAddress = address!("0x420000000000000000000000000000000000000F");
/// The size of the transaction for which the data fee is asked, bytes; that of a claim of two rows. The oracle's fee grows
/// with the size and a small constant, so the fee a byte is a little too high for larger ones, and too low for a settlement
/// by less than the headroom that [`super::fees::can_pay`] adds.
const DATA_SAMPLE_BYTES: usize = 1_024;
/// The magic value of ERC-1271, `isValidSignature(bytes32,bytes)`, padded to a word.
const ERC1271_MAGIC: [u8; 32] = {
    let mut word = [0; 32];
    [word[0], word[1], word[2], word[3]] = [0x16, 0x26, 0xba, 0x7e];
    word
};
/// Channels read in one `eth_call` of the Multicall3, three reads each; well below any node's gas limit for calls.
const CHANNELS_PER_CALL: usize = 100;
/// Channels read at the same time where there is no Multicall3, with three requests each.
const CHANNELS_AT_ONCE: usize = 8;
/// Blocks asked for in one `eth_getLogs`; most providers allow this many.
const BLOCKS_PER_LOG_QUERY: u64 = 2_000;
/// The tip where a node does not suggest one, wei a unit of gas.
const DEFAULT_TIP_WEI: u128 = 10_000_000;

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

impl Node {
    /// Calls a contract without a transaction, at a block or at the newest one.
    async fn call(&self, to: EvmAddress, data: Vec<u8>, block: Option<u64>) -> Result<Bytes, ChainError> {
        let at = block.map_or("latest".to_owned(), |number| format!("{number:#x}"));
        let transaction = json!({"to": to, "data": hex::encode_prefixed(data)});
        Ok(self.ask("eth_call", json!([transaction, at])).await?)
    }

    pub(super) async fn read<C: SolCall>(
        &self,
        to: EvmAddress,
        call: C,
        block: Option<u64>,
    ) -> Result<C::Return, ChainError> {
        decode::<C>(&self.call(to, call.abi_encode(), block).await?)
    }

    /// A read that a contract need not have. Only a contract that cannot answer is `None`.
    pub(super) async fn read_optional<C: SolCall>(
        &self,
        to: EvmAddress,
        call: C,
    ) -> Result<Option<C::Return>, ChainError> {
        match self.read(to, call, None).await {
            Ok(value) => Ok(Some(value)),
            Err(ChainError::Reverted { .. } | ChainError::Decode { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn code_at(&self, address: Address) -> Result<Bytes, ChainError> {
        Ok(self.ask("eth_getCode", json!([evm(address), "latest"])).await?)
    }

    async fn has_multicall(&self) -> Result<bool, ChainError> {
        let ask = || async { Ok::<bool, ChainError>(!self.code_at(address_of(MULTICALL3)).await?.is_empty()) };
        self.has_multicall.get_or_try_init(ask).await.copied()
    }

    /// Channels in the order asked for, as they count at a block.
    pub(super) async fn channels(
        &self,
        ids: &[ChannelId],
        block: u64,
        counting: Counting,
    ) -> Result<Vec<View>, ChainError> {
        let settled_block = counting.settled_block(block);
        if counting.confirmations <= 1 {
            return self.views(ids, block).await;
        }
        let (views, earlier) = tokio::try_join!(self.views(ids, block), self.balances(ids, settled_block))?;
        Ok(views.into_iter().zip(earlier).map(|(view, earlier)| counting.counted(view, earlier)).collect())
    }

    async fn views(&self, ids: &[ChannelId], block: u64) -> Result<Vec<View>, ChainError> {
        if !self.has_multicall().await? {
            let reads = ids.iter().copied().map(|id| self.view_by_calls(id, block));
            return stream::iter(reads).buffered(CHANNELS_AT_ONCE).try_collect().await;
        }
        let mut views = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(CHANNELS_PER_CALL) {
            let reads = chunk.iter().flat_map(reads_of_channel).collect();
            let results = decode::<Multicall3::aggregate3Call>(&self.aggregate(reads, block).await?)?;
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

    async fn view_by_calls(&self, id: ChannelId, block: u64) -> Result<View, ChainError> {
        let [state, withdrawal, nonce] =
            reads_of_channel(&id).map(|data| self.call(evm(SETTLEMENT), data, Some(block)));
        let (state, withdrawal, nonce) = tokio::try_join!(state, withdrawal, nonce)?;
        view(&state, &withdrawal, &nonce, block)
    }

    /// What channels had at a block of the past. Where the contracts were not there yet, that is nothing.
    async fn balances(&self, ids: &[ChannelId], block: u64) -> Result<Vec<Amount>, ChainError> {
        if !self.has_multicall().await? {
            let one = async |id: ChannelId| -> Result<Amount, ChainError> {
                balance(&self.call(evm(SETTLEMENT), state_of_channel(&id), Some(block)).await?)
            };
            let reads = ids.iter().copied().map(one);
            return stream::iter(reads).buffered(CHANNELS_AT_ONCE).try_collect().await;
        }
        let mut balances = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(CHANNELS_PER_CALL) {
            let answer = self.aggregate(chunk.iter().map(state_of_channel).collect(), block).await?;
            if answer.is_empty() {
                balances.extend(chunk.iter().map(|_| Amount::ZERO));
                continue;
            }
            let results = decode::<Multicall3::aggregate3Call>(&answer)?;
            if results.len() != chunk.len() {
                return Err(ChainError::decode("one result for each call"));
            }
            for result in &results {
                balances.push(balance(&result.returnData)?);
            }
        }
        Ok(balances)
    }

    /// Several reads of the settlement contract in one.
    async fn aggregate(&self, reads: Vec<Vec<u8>>, block: u64) -> Result<Bytes, ChainError> {
        let calls = reads.into_iter().map(|data| Multicall3::Call3 {
            target: evm(SETTLEMENT),
            allowFailure: false,
            callData: data.into(),
        });
        let question = Multicall3::aggregate3Call { calls: calls.collect() };
        self.call(MULTICALL3, question.abi_encode(), Some(block)).await
    }

    pub(super) async fn token_domain(&self, token: Address) -> Result<TokenDomain, ChainError> {
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
            separator.ok_or(ChainError::decode("DOMAIN_SEPARATOR(), without which a token takes no signatures"))?;
        Ok(TokenDomain { name, version, separator: hash_of(separator), decimals })
    }

    pub(super) async fn price(&self) -> Result<GasPrice, ChainError> {
        let (newest, tip_wei, data_wei_per_byte) =
            tokio::try_join!(self.newest(), self.tip(), self.data_wei_per_byte())?;
        let base = newest.base_fee_per_gas.ok_or(ChainError::decode("a base fee (EIP-1559)"))?;
        let base_wei =
            u128::try_from(base).map_err(|error| ChainError::decode_from("a base fee of 128 bits", error))?;
        Ok(GasPrice { base_wei, tip_wei, data_wei_per_byte, block_gas_limit: newest.gas_limit.to::<u64>() })
    }

    async fn tip(&self) -> Result<u128, ChainError> {
        let suggested = self.ask::<U256>("eth_maxPriorityFeePerGas", json!([])).await.map_err(ChainError::from);
        match suggested {
            Ok(tip) => Ok(u128::try_from(tip).unwrap_or(MAX_TIP_WEI).min(MAX_TIP_WEI)),
            Err(ChainError::Refused { .. }) => Ok(DEFAULT_TIP_WEI),
            Err(error) => Err(error),
        }
    }

    /// What the OP stack takes for a byte that is put on layer 1, wei, rounded up; 0 on chains that are not of it. The
    /// contract is asked for its upper bound, and where it is too old to have one (before Fjord), for the fee of bytes that
    /// cost most.
    async fn data_wei_per_byte(&self) -> Result<u128, ChainError> {
        let look = || async { Ok::<bool, ChainError>(!self.code_at(address_of(DATA_FEE_ORACLE)).await?.is_empty()) };
        if !*self.has_data_fee_oracle.get_or_try_init(look).await? {
            return Ok(0);
        }
        let size = U256::from(DATA_SAMPLE_BYTES);
        let bound = DataFeeOracle::getL1FeeUpperBoundCall { unsignedTxSize: size };
        let fee = match self.read_optional(DATA_FEE_ORACLE, bound).await? {
            Some(fee) => Some(fee),
            None => {
                let sample = DataFeeOracle::getL1FeeCall { data: vec![0xff; DATA_SAMPLE_BYTES].into() };
                self.read_optional(DATA_FEE_ORACLE, sample).await?
            }
        };
        // What has code there and knows neither is something else.
        Ok(fee.map_or(0, |fee| u128::try_from(fee.div_ceil(size)).unwrap_or(u128::MAX)))
    }

    pub(super) async fn block(&self, number: u64) -> Result<Option<Head>, ChainError> {
        let params = json!([U64::from(number), false]);
        let block: Option<RawHead> = self.ask("eth_getBlockByNumber", params).await?;
        Ok(block.map(|block| block.head()))
    }

    pub(super) async fn gas_balance(&self, address: Address) -> Result<U256, ChainError> {
        Ok(self.ask("eth_getBalance", json!([evm(address), "latest"])).await?)
    }

    pub(super) async fn payer_evidence(
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
        match self.ask::<Bytes>("eth_call", json!([transaction, "latest"])).await.map_err(ChainError::from) {
            Ok(answer) if answer.first_chunk() == Some(&ERC1271_MAGIC) => Ok(PayerEvidence::Approved),
            Ok(_) | Err(ChainError::Reverted { .. }) => Ok(PayerEvidence::Refused),
            Err(error) => Err(error),
        }
    }

    /// The gas a call would take if this account sent it now.
    pub(super) async fn estimate(&self, sender: Address, call: &Call) -> Result<u64, ChainError> {
        let allowance = gas_allowance(call);
        let transaction = json!({
            "from": evm(sender), "to": evm(SETTLEMENT), "data": call.calldata(), "gas": U64::from(allowance),
        });
        let answer: Result<U64, _> = self.ask("eth_estimateGas", json!([transaction, "latest"])).await;
        match answer.map(|gas| gas.to::<u64>()).map_err(ChainError::from) {
            // Not every node keeps to the allowance.
            Ok(gas) if gas > allowance => Err(too_much_gas(allowance)),
            Err(ChainError::Refused { message, .. }) if says_too_much_gas(&message, allowance) => {
                Err(too_much_gas(allowance))
            }
            estimate => estimate,
        }
    }

    pub(super) async fn transaction_count(&self, account: Address, at: &'static str) -> Result<u64, ChainError> {
        let count: U64 = self.ask("eth_getTransactionCount", json!([evm(account), at])).await?;
        Ok(count.to::<u64>())
    }

    pub(super) async fn knows_transaction(&self, hash: Hash) -> Result<bool, ChainError> {
        let found: Option<serde::de::IgnoredAny> = self.ask("eth_getTransactionByHash", json!([word(hash)])).await?;
        Ok(found.is_some())
    }

    pub(super) async fn receipt(&self, transaction: Hash) -> Result<Option<Mined>, ChainError> {
        let receipt: Option<RawReceipt> = self.ask("eth_getTransactionReceipt", json!([word(transaction)])).await?;
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

    /// Fails where the node has not this block yet: it would answer for those it has, as if nothing had happened in the others.
    async fn has_reached(&self, block: u64) -> Result<(), ChainError> {
        let newest: U64 = self.ask("eth_blockNumber", json!([])).await?;
        if newest.to::<u64>() < block {
            Err(ChainError::decode("a node that has the blocks asked for"))
        } else {
            Ok(())
        }
    }

    /// The settlement contract's events in these blocks. With `complete`, not before the node has them all.
    pub(super) async fn events(
        &self,
        from_block: u64,
        to_block: u64,
        complete: bool,
    ) -> Result<Vec<ChannelEvent>, ChainError> {
        if complete {
            self.has_reached(to_block).await?;
        }
        let mut found = Vec::new();
        let mut from = from_block;
        let mut span = BLOCKS_PER_LOG_QUERY;
        while from <= to_block {
            let to = from.saturating_add(span.saturating_sub(1)).min(to_block);
            match self.logs(from, to).await {
                Ok(logs) => found.extend(events::read_range(&logs, from, to)?),
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

    async fn logs(&self, from_block: u64, to_block: u64) -> Result<Vec<RawLog>, ChainError> {
        let filter = json!({
            "address": evm(SETTLEMENT),
            "topics": [events::TOPICS],
            "fromBlock": format!("{from_block:#x}"),
            "toBlock": format!("{to_block:#x}"),
        });
        Ok(self.ask("eth_getLogs", json!([filter])).await?)
    }
}

fn state_of_channel(id: &ChannelId) -> Vec<u8> {
    Settlement::channelsCall { channelId: B256::new(id.0) }.abi_encode()
}

fn reads_of_channel(id: &ChannelId) -> [Vec<u8>; 3] {
    let channel = B256::new(id.0);
    [
        state_of_channel(id),
        Settlement::pendingWithdrawalsCall { channelId: channel }.abi_encode(),
        Settlement::refundNonceCall { channelId: channel }.abi_encode(),
    ]
}

fn balance(state: &[u8]) -> Result<Amount, ChainError> {
    if state.is_empty() {
        return Ok(Amount::ZERO);
    }
    Ok(Amount::new(decode::<Settlement::channelsCall>(state)?.balance))
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
