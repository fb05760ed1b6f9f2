//! The methods of a public node: `eth_`, `net_` and `web3_`.

use alloy::consensus::transaction::SignerRecoverable as _;
use alloy::consensus::{SignableTransaction as _, Transaction as _, TxEnvelope};
use alloy::eips::eip2718::Decodable2718 as _;
use alloy::network::TxSignerSync as _;
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::rpc::types::{BlockId, BlockNumberOrTag, FeeHistory, Filter, Transaction, TransactionRequest};
use serde_json::{Value, json};

use super::chain::{Chain, Mined, Moment, Point};
use super::execute::{self, Estimate};
use super::filters::{self, Changes};
use super::rpc::Node;
use super::rpc_types::{self, Params, RpcError, quantity, to_value};
use super::{genesis, rpc};

/// Tip the chain suggests, in wei per gas.
const SUGGESTED_TIP: u128 = 1_000_000;

/// Gas a call may use when it names no limit, and at most.
const CALL_GAS_CAP: u64 = 60_000_000;

/// Blocks one fee history may span.
const MAX_FEE_HISTORY: u64 = 1_024;

/// Answers `method`, or says that it is not one of these.
pub(super) fn answer(node: &Node, method: &str, params: &Params) -> Option<Result<Value, RpcError>> {
    let mut chain = node.chain();
    let chain = &mut *chain;
    Some(match method {
        "web3_clientVersion" => Ok(json!(rpc::CLIENT_VERSION)),
        "web3_sha3" => params.required::<Bytes>(0).map(|data| json!(keccak256(data))),
        "net_version" => Ok(json!(chain.chain_id.to_string())),
        "net_listening" => Ok(json!(true)),
        "net_peerCount" => Ok(quantity(0u64)),
        "eth_chainId" => Ok(quantity(chain.chain_id)),
        "eth_syncing" => Ok(json!(false)),
        "eth_mining" => Ok(json!(true)),
        "eth_protocolVersion" => Ok(json!("0x41")),
        "eth_accounts" => Ok(json!(genesis::dev_signers().iter().map(|signer| signer.address()).collect::<Vec<_>>())),
        "eth_blockNumber" => Ok(quantity(chain.head().number())),
        "eth_gasPrice" => Ok(quantity(u128::from(chain.next_base_fee()) + SUGGESTED_TIP)),
        "eth_maxPriorityFeePerGas" => Ok(quantity(SUGGESTED_TIP)),
        "eth_blobBaseFee" => Ok(quantity(1u64)),
        "eth_feeHistory" => fee_history(chain, params),
        "eth_getBalance" => at(chain, params, 1, |state, who| json!(state.balance(who))),
        "eth_getCode" => at(chain, params, 1, |state, who| json!(state.code(who))),
        "eth_getStorageAt" => storage_at(chain, params),
        "eth_getTransactionCount" => transaction_count(chain, params),
        "eth_call" => call(chain, params),
        "eth_estimateGas" => estimate_gas(chain, params),
        "eth_sendRawTransaction" => send_raw(chain, params),
        "eth_sendTransaction" => send_from_dev_account(chain, params),
        "eth_getTransactionByHash" => transaction_by_hash(chain, params),
        "eth_getTransactionByBlockNumberAndIndex" | "eth_getTransactionByBlockHashAndIndex" => {
            transaction_by_index(chain, params)
        }
        "eth_getRawTransactionByHash" => raw_transaction(chain, params),
        "eth_getTransactionReceipt" => receipt(chain, params),
        "eth_getBlockReceipts" => block_receipts(chain, params),
        "eth_getBlockByNumber" | "eth_getBlockByHash" => block(chain, params),
        "eth_getBlockTransactionCountByNumber" | "eth_getBlockTransactionCountByHash" => {
            block_at(chain, params, 0).map(|block| block.map_or(Value::Null, |block| count(block.txs.len())))
        }
        "eth_getUncleCountByBlockNumber" | "eth_getUncleCountByBlockHash" => Ok(quantity(0u64)),
        "eth_getLogs" => params.required::<Filter>(0).and_then(|filter| to_value(filters::query(&filter, chain)?)),
        "eth_newFilter" => {
            params.required::<Filter>(0).map(|filter| quantity(node.filters().install_logs(filter, chain)))
        }
        "eth_newBlockFilter" => Ok(quantity(node.filters().install_blocks(chain))),
        "eth_newPendingTransactionFilter" => Ok(quantity(node.filters().install_pending(chain))),
        "eth_getFilterChanges" => filter_id(params).and_then(|id| match node.filters().changes(id, chain)? {
            Changes::Hashes(hashes) => to_value(hashes),
            Changes::Logs(logs) => to_value(logs),
        }),
        "eth_getFilterLogs" => filter_id(params).and_then(|id| to_value(node.filters().logs(id, chain)?)),
        "eth_uninstallFilter" => filter_id(params).map(|id| json!(node.filters().uninstall(id))),
        _ => return None,
    })
}

fn count(value: usize) -> Value {
    quantity(u64::try_from(value).unwrap_or(u64::MAX))
}

fn filter_id(params: &Params) -> Result<u64, RpcError> {
    params.quantity(0)?.ok_or_else(|| RpcError::invalid_params("missing filter id"))
}

// ---- where to read

fn point(chain: &Chain, id: Option<BlockId>) -> Result<Option<Point>, RpcError> {
    let head = chain.head().number();
    let known = |number: u64| (number <= head).then_some(Point::Mined(number));
    Ok(match id.unwrap_or_default() {
        BlockId::Hash(hash) => match chain.block_by_hash(hash.block_hash) {
            Some(block) => Some(Point::Mined(block.number())),
            None => return Err(RpcError::server("header for hash not found")),
        },
        BlockId::Number(BlockNumberOrTag::Latest) => Some(Point::Mined(head)),
        BlockId::Number(BlockNumberOrTag::Pending) => Some(Point::Pending),
        BlockId::Number(BlockNumberOrTag::Earliest) => known(0),
        BlockId::Number(BlockNumberOrTag::Safe | BlockNumberOrTag::Finalized) => known(chain.finalized()),
        BlockId::Number(BlockNumberOrTag::Number(number)) => known(number),
    })
}

fn moment(chain: &Chain, id: Option<BlockId>) -> Result<Moment, RpcError> {
    let point = point(chain, id)?.ok_or_else(|| RpcError::server("header not found"))?;
    Ok(chain.moment(point)?)
}

fn at(
    chain: &Chain,
    params: &Params,
    block: usize,
    read: impl Fn(&super::state::State, Address) -> Value,
) -> Result<Value, RpcError> {
    let who = params.required(0)?;
    let moment = moment(chain, params.optional(block)?)?;
    Ok(read(&moment.state, who))
}

fn storage_at(chain: &Chain, params: &Params) -> Result<Value, RpcError> {
    let slot: U256 = params.required(1)?;
    at(chain, params, 2, |state, who| json!(B256::from(state.slot(who, slot))))
}

fn transaction_count(chain: &Chain, params: &Params) -> Result<Value, RpcError> {
    let who = params.required(0)?;
    let id = params.optional(1)?;
    if id == Some(BlockId::pending()) {
        return Ok(quantity(chain.pool().next_nonce(who, chain.state())));
    }
    Ok(quantity(moment(chain, id)?.state.nonce(who)))
}

// ---- simulation

fn call(chain: &Chain, params: &Params) -> Result<Value, RpcError> {
    let request: TransactionRequest = params.required(0)?;
    let moment = moment(chain, params.optional(1)?)?;
    let result = chain.call(&moment, execute::call_env(&request, chain.chain_id, CALL_GAS_CAP))?;
    if result.is_success() {
        return Ok(json!(result.into_output().unwrap_or_default()));
    }
    Err(RpcError::failed(result))
}

fn estimate_gas(chain: &Chain, params: &Params) -> Result<Value, RpcError> {
    let request: TransactionRequest = params.required(0)?;
    let id: Option<BlockId> = params.optional(1)?;
    let moment = moment(chain, Some(id.unwrap_or(BlockId::pending())))?;
    let mut tx = execute::call_env(&request, chain.chain_id, CALL_GAS_CAP);
    if tx.gas_price > 0 {
        // What the sender can pay for bounds the search, as it bounds the transaction.
        let spendable = moment.state.balance(tx.caller).saturating_sub(tx.value);
        let affordable = spendable.checked_div(U256::from(tx.gas_price)).unwrap_or_default();
        tx.gas_limit = tx.gas_limit.min(affordable.saturating_to());
    }
    match chain.estimate(&moment, &tx)? {
        Estimate::Gas(gas) => Ok(quantity(gas)),
        Estimate::Fails(result) => Err(RpcError::failed(result)),
    }
}

fn fee_history(chain: &Chain, params: &Params) -> Result<Value, RpcError> {
    let wanted = params.quantity(0)?.unwrap_or(1).min(MAX_FEE_HISTORY);
    let newest = match point(chain, params.optional(1)?)? {
        Some(Point::Mined(number)) => number,
        Some(Point::Pending) => chain.head().number(),
        None => return Err(RpcError::server("request beyond head block")),
    };
    let percentiles: Vec<f64> = params.optional(2)?.unwrap_or_default();
    let oldest = (newest + 1).saturating_sub(wanted).max(chain.blocks().first());
    let blocks: Vec<&Mined> =
        (oldest..=newest).filter_map(|number| chain.blocks().at(number)).map(AsRef::as_ref).collect();
    let mut base_fees: Vec<u128> = blocks.iter().map(|block| u128::from(block.base_fee())).collect();
    let after = chain.blocks().at(newest + 1).map_or_else(|| chain.next_base_fee(), |block| block.base_fee());
    base_fees.push(after.into());
    let history = FeeHistory {
        base_fee_per_gas: base_fees,
        gas_used_ratio: blocks.iter().map(|block| ratio(block.header.gas_used, block.header.gas_limit)).collect(),
        base_fee_per_blob_gas: vec![1; blocks.len() + 1],
        blob_gas_used_ratio: vec![0.0; blocks.len()],
        oldest_block: oldest,
        reward: (!percentiles.is_empty()).then(|| blocks.iter().map(|block| rewards(block, &percentiles)).collect()),
    };
    to_value(history)
}

fn ratio(part: u64, whole: u64) -> f64 {
    let thousandths = part.saturating_mul(1_000).checked_div(whole).unwrap_or_default();
    f64::from(u32::try_from(thousandths).unwrap_or(1_000)) / 1_000.0
}

/// The tips paid in a block at each percentile of its gas. A block without transactions suggests the usual tip, so that
/// a client that asks a quiet chain does not offer nothing.
fn rewards(block: &Mined, percentiles: &[f64]) -> Vec<u128> {
    let base_fee = u128::from(block.base_fee());
    let mut tips: Vec<(u128, u64)> =
        block.txs.iter().map(|mined| (mined.effective_gas_price.saturating_sub(base_fee), mined.gas_used)).collect();
    tips.sort_unstable();
    let total = block.header.gas_used;
    let reward = |percentile: &f64| {
        let mut used = 0;
        for (tip, gas) in &tips {
            used += gas;
            if ratio(used, total) * 100.0 >= *percentile {
                return *tip;
            }
        }
        tips.last().map_or(SUGGESTED_TIP, |(tip, _)| *tip)
    };
    percentiles.iter().map(reward).collect()
}

// ---- transactions

fn send_raw(chain: &mut Chain, params: &Params) -> Result<Value, RpcError> {
    let raw: Bytes = params.required(0)?;
    let mut rest = raw.as_ref();
    let tx = TxEnvelope::decode_2718(&mut rest)
        .map_err(|error| RpcError::invalid_params(format!("failed to decode signed transaction: {error}")))?;
    if !rest.is_empty() {
        return Err(RpcError::invalid_params("failed to decode signed transaction: trailing bytes"));
    }
    let tx = tx.try_into_recovered().map_err(|_| RpcError::server("invalid sender"))?;
    Ok(json!(chain.submit(tx)?))
}

/// Signs for the prefunded accounts only; their keys are public anyway.
fn send_from_dev_account(chain: &mut Chain, params: &Params) -> Result<Value, RpcError> {
    let request: TransactionRequest = params.required(0)?;
    let from = request.from.ok_or_else(|| RpcError::invalid_params("missing from"))?;
    let signer = genesis::dev_signers()
        .iter()
        .find(|signer| signer.address() == from)
        .ok_or_else(|| RpcError::server("unknown account"))?;
    let gas = match request.gas {
        Some(gas) => gas,
        None => {
            let tx = execute::call_env(&request, chain.chain_id, CALL_GAS_CAP);
            match chain.estimate(&chain.moment(Point::Pending)?, &tx)? {
                Estimate::Gas(gas) => gas,
                Estimate::Fails(result) => return Err(RpcError::failed(result)),
            }
        }
    };
    let cap = request.max_fee_per_gas.or(request.gas_price);
    let cap = cap.unwrap_or(u128::from(chain.next_base_fee()) * 2 + SUGGESTED_TIP);
    let mut tx = alloy::consensus::TxEip1559 {
        chain_id: chain.chain_id,
        nonce: request.nonce.unwrap_or_else(|| chain.pool().next_nonce(from, chain.state())),
        gas_limit: gas,
        max_fee_per_gas: cap,
        max_priority_fee_per_gas: request.max_priority_fee_per_gas.unwrap_or(SUGGESTED_TIP.min(cap)),
        to: request.to.unwrap_or_default(),
        value: request.value.unwrap_or_default(),
        access_list: request.access_list.clone().unwrap_or_default(),
        input: request.input.input().cloned().unwrap_or_default(),
    };
    let signature = signer.sign_transaction_sync(&mut tx).map_err(|error| RpcError::server(error.to_string()))?;
    let tx = TxEnvelope::from(tx.into_signed(signature));
    let tx = tx.try_into_recovered().map_err(|_| RpcError::server("invalid sender"))?;
    Ok(json!(chain.submit(tx)?))
}

fn transaction_by_hash(chain: &Chain, params: &Params) -> Result<Value, RpcError> {
    let hash: B256 = params.required(0)?;
    if let Some((block, index)) = chain.find_tx(hash) {
        return to_value(rpc_types::transaction(block, index));
    }
    let waiting = chain.pool().get(hash).map(|tx| Transaction {
        effective_gas_price: Some(tx.max_fee_per_gas()),
        inner: tx.as_ref().clone(),
        block_hash: None,
        block_number: None,
        transaction_index: None,
        block_timestamp: None,
    });
    to_value(waiting)
}

fn transaction_by_index(chain: &Chain, params: &Params) -> Result<Value, RpcError> {
    let index = params.quantity(1)?.and_then(|index| usize::try_from(index).ok());
    let block = block_at(chain, params, 0)?;
    to_value(block.zip(index).and_then(|(block, index)| rpc_types::transaction(&block, index)))
}

fn raw_transaction(chain: &Chain, params: &Params) -> Result<Value, RpcError> {
    let hash: B256 = params.required(0)?;
    let mined = chain.find_tx(hash).and_then(|(block, index)| block.txs.get(index)).map(|mined| &mined.tx);
    let tx = mined.or_else(|| chain.pool().get(hash));
    to_value(tx.map(|tx| Bytes::from(alloy::eips::Encodable2718::encoded_2718(tx.inner()))))
}

fn receipt(chain: &Chain, params: &Params) -> Result<Value, RpcError> {
    let found = chain.find_tx(params.required(0)?);
    to_value(found.and_then(|(block, index)| rpc_types::receipt(block, index)))
}

// ---- blocks

/// The block an argument names: a tag, a number, or a hash. Pending is worked out on the spot.
fn block_at(chain: &Chain, params: &Params, index: usize) -> Result<Option<std::sync::Arc<Mined>>, RpcError> {
    let id: BlockId = params.required(index)?;
    if let BlockId::Hash(hash) = id {
        return Ok(chain.block_by_hash(hash.block_hash).cloned());
    }
    Ok(match point(chain, Some(id))? {
        Some(Point::Mined(number)) => chain.blocks().at(number).cloned(),
        Some(Point::Pending) => Some(std::sync::Arc::new(chain.pending_block())),
        None => None,
    })
}

fn block(chain: &Chain, params: &Params) -> Result<Value, RpcError> {
    let full = params.optional(1)?.unwrap_or(false);
    to_value(block_at(chain, params, 0)?.map(|block| rpc_types::block(&block, full)))
}

fn block_receipts(chain: &Chain, params: &Params) -> Result<Value, RpcError> {
    let receipts = |block: std::sync::Arc<Mined>| {
        (0..block.txs.len()).filter_map(|index| rpc_types::receipt(&block, index)).collect::<Vec<_>>()
    };
    to_value(block_at(chain, params, 0)?.map(receipts))
}
