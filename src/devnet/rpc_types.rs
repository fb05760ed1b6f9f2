//! JSON-RPC on the wire: requests, errors, parameters, and the chain's objects as clients expect them.

use alloy::consensus::ReceiptEnvelope;
use alloy::eips::Encodable2718 as _;
use alloy::primitives::{Address, Bytes, U256};
use alloy::rpc::types::{Block, BlockTransactions, Header, Log, Transaction, TransactionReceipt};
use alloy::sol_types::{Panic, Revert, SolError as _};
use revm::context::result::ExecutionResult;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chain::{ChainError, Mined, MinedTx};
use super::execute::ExecuteError;

/// A request, or a notification when it has no id.
#[derive(Debug, Deserialize)]
pub(super) struct Request {
    #[serde(default)]
    pub(super) id: Value,
    pub(super) method: String,
    #[serde(default)]
    pub(super) params: Value,
}

/// An answer.
#[derive(Debug, Serialize)]
pub(super) struct Response {
    jsonrpc: &'static str,
    id: Value,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Result(Value),
    Error(RpcError),
}

impl Response {
    pub(super) fn new(id: Value, outcome: Result<Value, RpcError>) -> Self {
        let outcome = match outcome {
            Ok(value) => Outcome::Result(value),
            Err(error) => Outcome::Error(error),
        };
        Self { jsonrpc: "2.0", id, outcome }
    }
}

/// A refusal, with the codes of JSON-RPC and the messages of public nodes.
#[derive(Debug, Serialize)]
pub(super) struct RpcError {
    code: i32,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Bytes>,
}

impl RpcError {
    fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    pub(super) fn parse() -> Self {
        Self::new(-32700, "parse error")
    }

    pub(super) fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(-32600, message)
    }

    pub(super) fn unknown_method(method: &str) -> Self {
        Self::new(-32601, format!("the method {method} does not exist/is not available"))
    }

    pub(super) fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(-32602, message)
    }

    pub(super) fn server(message: impl Into<String>) -> Self {
        Self::new(-32000, message)
    }

    pub(super) fn limit(message: impl Into<String>) -> Self {
        Self::new(-32005, message)
    }

    /// A call that ran and failed.
    pub(super) fn failed(result: ExecutionResult) -> Self {
        match result {
            ExecutionResult::Revert { output, .. } => {
                let message = revert_reason(&output)
                    .map_or_else(|| "execution reverted".to_owned(), |reason| format!("execution reverted: {reason}"));
                Self { code: 3, message, data: Some(output) }
            }
            ExecutionResult::Halt { reason, .. } => Self::server(format!("{reason}")),
            ExecutionResult::Success { .. } => Self::server("the call succeeded"),
        }
    }
}

impl From<ChainError> for RpcError {
    fn from(error: ChainError) -> Self {
        Self::server(error.to_string())
    }
}

impl From<ExecuteError> for RpcError {
    fn from(error: ExecuteError) -> Self {
        Self::server(error.to_string())
    }
}

/// The text of `Error(string)` or `Panic(uint256)`; custom errors speak through their data.
fn revert_reason(output: &[u8]) -> Option<String> {
    if let Ok(revert) = Revert::abi_decode(output) {
        return Some(revert.reason);
    }
    Panic::abi_decode(output).ok().map(|panic| panic.to_string())
}

/// Positional parameters. Absent and null are the same.
#[derive(Debug)]
pub(super) struct Params(Vec<Value>);

impl Params {
    pub(super) fn new(params: Value) -> Result<Self, RpcError> {
        match params {
            Value::Null => Ok(Self(Vec::new())),
            Value::Array(values) => Ok(Self(values)),
            _ => Err(RpcError::invalid_params("parameters must be an array")),
        }
    }

    pub(super) fn optional<T: DeserializeOwned>(&self, index: usize) -> Result<Option<T>, RpcError> {
        match self.0.get(index) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|error| RpcError::invalid_params(format!("invalid argument {index}: {error}"))),
        }
    }

    pub(super) fn required<T: DeserializeOwned>(&self, index: usize) -> Result<T, RpcError> {
        self.optional(index)?
            .ok_or_else(|| RpcError::invalid_params(format!("missing value for required argument {index}")))
    }

    /// A quantity, as hex text, decimal text or number.
    pub(super) fn quantity(&self, index: usize) -> Result<Option<u64>, RpcError> {
        self.optional::<U256>(index)?
            .map(u64::try_from)
            .transpose()
            .map_err(|_| RpcError::invalid_params(format!("argument {index} is too large")))
    }

    /// Whether the argument is an object, for the methods that take one or a number.
    pub(super) fn is_object(&self, index: usize) -> bool {
        self.0.get(index).is_some_and(Value::is_object)
    }
}

pub(super) fn to_value<T: Serialize>(value: T) -> Result<Value, RpcError> {
    serde_json::to_value(value).map_err(|error| RpcError::server(error.to_string()))
}

pub(super) fn quantity(value: impl Into<u128>) -> Value {
    Value::String(format!("{:#x}", value.into()))
}

fn count(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// A block with its transactions, or their hashes.
pub(super) fn block(mined: &Mined, full: bool) -> Block {
    let transactions = if full {
        BlockTransactions::Full((0..mined.txs.len()).filter_map(|index| transaction(mined, index)).collect())
    } else {
        BlockTransactions::Hashes(mined.txs.iter().map(|mined| *mined.tx.tx_hash()).collect())
    };
    let body: usize = mined.txs.iter().map(|mined| mined.tx.encode_2718_len()).sum();
    let size = U256::from(count(body)).saturating_add(U256::from(600u64));
    let header = Header::from_consensus(mined.header.clone(), Some(U256::ZERO), Some(size));
    Block::new(header, transactions).with_withdrawals(Some(Vec::new().into()))
}

/// The `index`th transaction of a block.
pub(super) fn transaction(block: &Mined, index: usize) -> Option<Transaction> {
    let mined = block.txs.get(index)?;
    Some(Transaction {
        inner: mined.tx.as_ref().clone(),
        block_hash: Some(block.hash()),
        block_number: Some(block.number()),
        transaction_index: Some(count(index)),
        effective_gas_price: Some(mined.effective_gas_price),
        block_timestamp: Some(block.header.timestamp),
    })
}

/// The receipt of the `index`th transaction of a block.
pub(super) fn receipt(block: &Mined, index: usize) -> Option<TransactionReceipt> {
    let mined = block.txs.get(index)?;
    let mut position = 0;
    let logs = logs(block, index, mined);
    let inner: ReceiptEnvelope<Log> = mined.receipt.clone().map_logs(|_| {
        let log = logs.get(position).cloned().unwrap_or_default();
        position += 1;
        log
    });
    Some(TransactionReceipt {
        inner,
        transaction_hash: *mined.tx.tx_hash(),
        transaction_index: Some(count(index)),
        block_hash: Some(block.hash()),
        block_number: Some(block.number()),
        gas_used: mined.gas_used,
        effective_gas_price: mined.effective_gas_price,
        blob_gas_used: None,
        blob_gas_price: None,
        from: mined.tx.signer(),
        to: recipient(mined),
        contract_address: mined.created,
    })
}

fn recipient(mined: &MinedTx) -> Option<Address> {
    alloy::consensus::Transaction::to(mined.tx.inner())
}

/// The logs of one transaction, each with its place in the chain.
pub(super) fn logs(block: &Mined, index: usize, mined: &MinedTx) -> Vec<Log> {
    let place = |(nth, inner): (usize, &alloy::primitives::Log)| Log {
        inner: inner.clone(),
        block_hash: Some(block.hash()),
        block_number: Some(block.number()),
        block_timestamp: Some(block.header.timestamp),
        transaction_hash: Some(*mined.tx.tx_hash()),
        transaction_index: Some(count(index)),
        log_index: Some(count(mined.first_log + nth)),
        removed: false,
    };
    mined.receipt.logs().iter().enumerate().map(place).collect()
}
