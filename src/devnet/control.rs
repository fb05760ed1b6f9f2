//! The methods no public node has: mining, time, going back, and writing state.
//!
//! Names and units follow anvil (`evm_setIntervalMining` counts seconds); the `hardhat_` spellings of the shared ones
//! are understood too.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U256};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Mining;
use super::chain::Chain;
use super::rpc::Node;
use super::rpc_types::{Params, RpcError, quantity};

/// Arguments of `evm_mine` when they come as an object.
#[derive(Debug, Default, Deserialize)]
struct MineOptions {
    timestamp: Option<U256>,
    blocks: Option<u64>,
}

/// Answers `method`, or says that it is not one of these.
pub(super) fn answer(node: &Node, method: &str, params: &Params) -> Option<Result<Value, RpcError>> {
    let method = method.strip_prefix("hardhat_").map_or_else(|| method.to_owned(), |name| format!("anvil_{name}"));
    Some(match method.as_str() {
        "evm_setAutomine" => set_automine(node, params),
        "evm_setIntervalMining" => set_interval(node, params),
        "anvil_getAutomine" => Ok(json!(node.chain().mining == Mining::OnDemand)),
        "evm_mine" => evm_mine(&mut node.chain(), params),
        "anvil_mine" => mine(&mut node.chain(), params),
        "evm_increaseTime" => required(params, 0).map(|secs| json!(node.chain().increase_time(secs))),
        "evm_setNextBlockTimestamp" => set_next_timestamp(&mut node.chain(), params),
        "anvil_setNextBlockBaseFeePerGas" => required(params, 0).map(|wei| {
            node.chain().set_next_base_fee(wei);
            Value::Null
        }),
        "evm_snapshot" => Ok(quantity(node.chain().snapshot())),
        "evm_revert" => required(params, 0).map(|id| json!(node.chain().revert(id))),
        "anvil_reorg" => required(params, 0).and_then(|depth| {
            node.chain().reorg(depth)?;
            Ok(Value::Null)
        }),
        "anvil_setCode" => set_code(&mut node.chain(), params),
        "anvil_setBalance" => pair::<U256>(params).map(|(who, balance)| {
            node.chain().edit(|state| state.set_balance(who, balance));
            Value::Null
        }),
        "anvil_setNonce" => params.required(0).and_then(|who| {
            let nonce = required(params, 1)?;
            node.chain().edit(|state| state.set_nonce(who, nonce));
            Ok(Value::Null)
        }),
        "anvil_setStorageAt" => set_slot(&mut node.chain(), params),
        "anvil_dropTransaction" => {
            params.required::<B256>(0).map(|hash| json!(node.chain().drop_transaction(hash).then_some(hash)))
        }
        _ => return None,
    })
}

fn required(params: &Params, index: usize) -> Result<u64, RpcError> {
    params
        .quantity(index)?
        .ok_or_else(|| RpcError::invalid_params(format!("missing value for required argument {index}")))
}

fn pair<T: serde::de::DeserializeOwned>(params: &Params) -> Result<(Address, T), RpcError> {
    Ok((params.required(0)?, params.required(1)?))
}

fn set_automine(node: &Node, params: &Params) -> Result<Value, RpcError> {
    let on: bool = params.required(0)?;
    if on {
        node.set_mining(Mining::OnDemand);
    } else if node.chain().mining == Mining::OnDemand {
        node.set_mining(Mining::Manual);
    }
    Ok(Value::Null)
}

fn set_interval(node: &Node, params: &Params) -> Result<Value, RpcError> {
    let secs = required(params, 0)?;
    let mining = if secs == 0 { Mining::Manual } else { Mining::Interval(Duration::from_secs(secs)) };
    node.set_mining(mining);
    Ok(Value::Null)
}

fn evm_mine(chain: &mut Chain, params: &Params) -> Result<Value, RpcError> {
    let options = if params.is_object(0) {
        params.required(0)?
    } else {
        MineOptions { timestamp: params.optional(0)?, blocks: None }
    };
    if let Some(timestamp) = options.timestamp {
        chain.set_next_timestamp(timestamp.saturating_to())?;
    }
    chain.mine_many(options.blocks.unwrap_or(1), None)?;
    Ok(json!("0x0"))
}

fn mine(chain: &mut Chain, params: &Params) -> Result<Value, RpcError> {
    chain.mine_many(params.quantity(0)?.unwrap_or(1), params.quantity(1)?)?;
    Ok(Value::Null)
}

fn set_next_timestamp(chain: &mut Chain, params: &Params) -> Result<Value, RpcError> {
    chain.set_next_timestamp(required(params, 0)?)?;
    Ok(Value::Null)
}

fn set_code(chain: &mut Chain, params: &Params) -> Result<Value, RpcError> {
    let (who, code) = pair::<Bytes>(params)?;
    chain.set_code(who, code)?;
    Ok(Value::Null)
}

fn set_slot(chain: &mut Chain, params: &Params) -> Result<Value, RpcError> {
    let (who, slot) = pair::<U256>(params)?;
    let value: U256 = params.required(2)?;
    chain.edit(|state| state.set_slot(who, slot, value));
    Ok(json!(true))
}
