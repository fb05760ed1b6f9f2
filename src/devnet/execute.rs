//! The EVM: runs one transaction or call against a state and says what would change.
//!
//! Owns the rules of the chain (which fork, which checks a call skips). Changes nothing itself: the caller commits or
//! drops the result.

use alloy::consensus::transaction::Recovered;
use alloy::consensus::{Header, Transaction as _, TxEnvelope, Typed2718 as _};
use alloy::primitives::{Address, Bytes, TxKind, U256};
use alloy::rpc::types::TransactionRequest;
use revm::context::result::{EVMError, ExecutionResult, InvalidTransaction, ResultAndState};
use revm::context::{BlockEnv, Context, TxEnv};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::context_interface::either::Either;
use revm::database_interface::WrapDatabaseRef;
use revm::primitives::eip4844::BLOB_BASE_FEE_UPDATE_FRACTION_PRAGUE;
use revm::primitives::hardfork::SpecId;
use revm::{ExecuteEvm as _, MainBuilder as _, MainContext as _};

use super::state::View;

/// The fork in force from genesis on. It has transient storage (EIP-1153), which the settlement's guard needs.
const FORK: SpecId = SpecId::PRAGUE;

/// Gas of a plain transfer, the least any transaction costs.
const TRANSFER_GAS: u64 = 21_000;

/// An estimate is within this fraction (in thousandths) of the least sufficient gas limit.
const ESTIMATE_TOLERANCE_PER_MILLE: u64 = 15;

/// Which checks apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// A signed transaction: every check.
    Transaction,
    /// A simulated call: any nonce, and the sender may be a contract.
    Call,
}

/// Why a transaction cannot run at all. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecuteError {
    #[error("{}", invalid_message(.0))]
    Invalid(InvalidTransaction),
    #[error("{0}")]
    Internal(String),
}

/// How an estimate ends.
#[derive(Debug)]
pub(super) enum Estimate {
    /// A gas limit that is enough.
    Gas(u64),
    /// It fails with any limit.
    Fails(ExecutionResult),
}

/// Runs `tx` on top of `view`, in the block `env`.
pub(super) fn transact(
    view: View<'_>,
    chain_id: u64,
    mut env: BlockEnv,
    tx: TxEnv,
    rules: Rules,
) -> Result<ResultAndState, ExecuteError> {
    if rules == Rules::Call && tx.gas_price == 0 {
        // A call that names no price runs for free, as on every public node.
        env.basefee = 0;
    }
    let mut evm = Context::mainnet()
        .with_db(WrapDatabaseRef(view))
        .modify_cfg_chained(|cfg| {
            cfg.set_spec_and_mainnet_gas_params(FORK);
            cfg.chain_id = chain_id;
            cfg.disable_nonce_check = rules == Rules::Call;
            cfg.disable_eip3607 = rules == Rules::Call;
        })
        .with_block(env)
        .build_mainnet();
    evm.transact(tx).map_err(|error| match error {
        EVMError::Transaction(reason) => ExecuteError::Invalid(reason),
        other => ExecuteError::Internal(other.to_string()),
    })
}

/// Finds a gas limit with which `tx` succeeds, by bisection from what it used.
pub(super) fn estimate(view: View<'_>, chain_id: u64, env: &BlockEnv, tx: &TxEnv) -> Result<Estimate, ExecuteError> {
    let run = |gas_limit: u64| {
        let tx = TxEnv { gas_limit, ..tx.clone() };
        transact(view, chain_id, env.clone(), tx, Rules::Call).map(|outcome| outcome.result)
    };
    let first = run(tx.gas_limit)?;
    if !first.is_success() {
        return Ok(Estimate::Fails(first));
    }
    if tx.data.is_empty() && first.tx_gas_used() == TRANSFER_GAS {
        return Ok(Estimate::Gas(TRANSFER_GAS));
    }
    let mut too_little = first.tx_gas_used().saturating_sub(1);
    let mut enough = tx.gas_limit;
    // What was spent before refunds, plus the 1/64 held back from inner calls, is enough for nearly every contract.
    let guess = first.gas().total_gas_spent().saturating_mul(64) / 63 + 2_300;
    let mut next = guess.clamp(too_little + 1, enough);
    while enough - too_little > 1 && (enough - too_little) * 1_000 / enough > ESTIMATE_TOLERANCE_PER_MILLE {
        // Too small a limit may be refused outright, which is one more way of not being enough.
        if next < enough && run(next).is_ok_and(|result| result.is_success()) {
            enough = next;
        } else if next < enough {
            too_little = next;
        }
        next = too_little + (enough - too_little) / 2;
    }
    Ok(Estimate::Gas(enough))
}

/// The block environment of a header, mined or about to be.
pub(super) fn block_env(header: &Header) -> BlockEnv {
    BlockEnv {
        number: U256::from(header.number),
        beneficiary: header.beneficiary,
        timestamp: U256::from(header.timestamp),
        gas_limit: header.gas_limit,
        basefee: header.base_fee_per_gas.unwrap_or_default(),
        difficulty: U256::ZERO,
        prevrandao: Some(header.mix_hash),
        blob_excess_gas_and_price: Some(BlobExcessGasAndPrice::new(0, BLOB_BASE_FEE_UPDATE_FRACTION_PRAGUE)),
        slot_num: 0,
    }
}

/// A signed transaction as the EVM takes it.
pub(super) fn signed_env(tx: &Recovered<TxEnvelope>) -> TxEnv {
    TxEnv {
        tx_type: tx.ty(),
        caller: tx.signer(),
        gas_limit: tx.gas_limit(),
        gas_price: tx.max_fee_per_gas(),
        kind: tx.kind(),
        value: tx.value(),
        data: tx.input().clone(),
        nonce: tx.nonce(),
        chain_id: tx.chain_id(),
        access_list: tx.access_list().cloned().unwrap_or_default(),
        gas_priority_fee: tx.max_priority_fee_per_gas(),
        blob_hashes: Vec::new(),
        max_fee_per_blob_gas: 0,
        authorization_list: tx
            .authorization_list()
            .map(|list| list.iter().cloned().map(Either::Left).collect())
            .unwrap_or_default(),
    }
}

/// A call request as the EVM takes it, with at most `gas_cap` gas.
pub(super) fn call_env(request: &TransactionRequest, chain_id: u64, gas_cap: u64) -> TxEnv {
    let gas_price = request.max_fee_per_gas.or(request.gas_price).unwrap_or_default();
    let authorization_list: Vec<_> = request.authorization_list.iter().flatten().cloned().map(Either::Left).collect();
    let mut tx = TxEnv {
        tx_type: 0,
        caller: request.from.unwrap_or_default(),
        gas_limit: request.gas.unwrap_or(gas_cap).min(gas_cap),
        gas_price,
        kind: request.to.unwrap_or(TxKind::Create),
        value: request.value.unwrap_or_default(),
        data: request.input.input().cloned().unwrap_or_default(),
        nonce: request.nonce.unwrap_or_default(),
        chain_id: Some(chain_id),
        access_list: request.access_list.clone().unwrap_or_default(),
        gas_priority_fee: (gas_price > 0).then_some(request.max_priority_fee_per_gas).flatten(),
        blob_hashes: Vec::new(),
        max_fee_per_blob_gas: 0,
        authorization_list,
    };
    // Only a missing recipient fails here, and then the type stays legacy and the EVM judges the rest.
    tx.derive_tx_type().ok();
    tx
}

/// A call the devnet makes on its own behalf.
pub(super) fn internal_call(from: Address, to: Address, data: Bytes, chain_id: u64, gas: u64) -> TxEnv {
    let request = TransactionRequest { from: Some(from), to: Some(TxKind::Call(to)), ..Default::default() };
    TxEnv { data, ..call_env(&request, chain_id, gas) }
}

/// The words public nodes use for a transaction that cannot run; clients match on them.
fn invalid_message(reason: &InvalidTransaction) -> String {
    match reason {
        InvalidTransaction::LackOfFundForMaxFee { fee, balance } => {
            format!("insufficient funds for gas * price + value: balance {balance}, tx cost {fee}")
        }
        InvalidTransaction::NonceTooLow { tx, state } => {
            format!("nonce too low: next nonce {state}, tx nonce {tx}")
        }
        InvalidTransaction::NonceTooHigh { tx, state } => {
            format!("nonce too high: next nonce {state}, tx nonce {tx}")
        }
        InvalidTransaction::CallGasCostMoreThanGasLimit { initial_gas, gas_limit } => {
            format!("intrinsic gas too low: gas {gas_limit}, minimum needed {initial_gas}")
        }
        InvalidTransaction::GasFloorMoreThanGasLimit { gas_floor, gas_limit } => {
            format!("intrinsic gas too low: gas {gas_limit}, minimum needed {gas_floor}")
        }
        InvalidTransaction::CallerGasLimitMoreThanBlock => "exceeds block gas limit".to_owned(),
        InvalidTransaction::GasPriceLessThanBasefee => "max fee per gas less than block base fee".to_owned(),
        InvalidTransaction::PriorityFeeGreaterThanMaxFee => {
            "max priority fee per gas higher than max fee per gas".to_owned()
        }
        other => other.to_string(),
    }
}
