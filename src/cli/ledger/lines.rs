//! The books' lines as JSON objects, the same wherever they are printed. Amounts are atomic units as text, times are UTC.

use serde_json::{Value, json};

use super::time::iso;
use crate::store::{AdjustmentLine, MovementLine, TransactionLine};

/// What a sum changed by, with its sign.
pub(super) fn change(line: &AdjustmentLine) -> String {
    match line.to.checked_sub(line.from) {
        Some(up) => up.to_string(),
        None => format!("-{}", line.from.saturating_sub(line.to)),
    }
}

pub(super) fn adjustment(line: &AdjustmentLine) -> Value {
    json!({
        "at": iso(line.at),
        "channel": line.channel,
        "from": line.from,
        "to": line.to,
        "change": change(line),
        "why": line.why.as_str(),
    })
}

pub(super) fn transaction(line: &TransactionLine) -> Value {
    json!({
        "hash": line.hash,
        "purpose": line.purpose,
        "sender": line.sender,
        "nonce": line.nonce,
        "signed_at": iso(line.signed_at),
        "state": line.state,
        "ended_at": line.ended_at.map(iso),
        "block": line.block,
        "gas_used": line.gas_used,
        "fee_wei": line.fee_wei.map(|fee| fee.to_string()),
    })
}

pub(super) fn movement(line: &MovementLine) -> Value {
    json!({
        "at": iso(line.at),
        "transaction": line.transaction,
        "kind": line.kind,
        "channel": line.channel,
        "amount": line.amount,
    })
}
