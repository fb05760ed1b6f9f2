//! The books as they are read: one line a row, for people, exports and audits.

use super::Adjustment;
use crate::protocol::{Address, Amount, ChannelId, Hash};

/// Whose books these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The chain's id.
    pub chain_id: u64,
    /// The settlement contract.
    pub settlement: Address,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "chain {}, contract {}", self.chain_id, self.settlement)
    }
}

/// Which lines are wanted; nothing set means all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// From this moment on, Unix seconds; charges are booked by the minute they begin in.
    pub since: Option<u64>,
    /// Before this moment, Unix seconds.
    pub until: Option<u64>,
    /// Of this channel only.
    pub channel: Option<ChannelId>,
    /// On this route only.
    pub route: Option<String>,
}

/// What a channel was charged on one route in one minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChargeLine {
    /// When the minute began, Unix seconds.
    pub minute: u64,
    /// The channel.
    pub channel: ChannelId,
    /// Its payer.
    pub payer: Address,
    /// The route's name.
    pub route: String,
    /// How many requests.
    pub requests: u64,
    /// What they cost together, atomic units.
    pub amount: Amount,
}

/// A change of a channel's sum without a charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdjustmentLine {
    /// When, Unix seconds.
    pub at: u64,
    /// The channel.
    pub channel: ChannelId,
    /// The sum before.
    pub from: Amount,
    /// The sum after.
    pub to: Amount,
    /// Why.
    pub why: Adjustment,
}

/// A transaction and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionLine {
    /// Its hash.
    pub hash: Hash,
    /// What for: `claim`, `settle`, `deposit` or `refund`.
    pub purpose: String,
    /// The account that pays for it.
    pub sender: Address,
    /// Its nonce.
    pub nonce: u64,
    /// When it was signed, Unix seconds.
    pub signed_at: u64,
    /// Its state: `open`, `mined`, `reverted`, `never_sent`, `replaced` or `given_up`.
    pub state: String,
    /// When its end was seen, Unix seconds.
    pub ended_at: Option<u64>,
    /// The block that has it.
    pub block: Option<u64>,
    /// Gas it took.
    pub gas_used: Option<u64>,
    /// What it cost, wei.
    pub fee_wei: Option<u128>,
}

/// Money that a transaction moved, by the contract's events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovementLine {
    /// When that was seen, Unix seconds.
    pub at: u64,
    /// The transaction.
    pub transaction: Hash,
    /// `deposited`, `claimed`, `refunded` or `settled`.
    pub kind: String,
    /// The channel; a settlement is of none.
    pub channel: Option<ChannelId>,
    /// The token of a settlement; that of a channel is in its terms.
    pub token: Option<Address>,
    /// How much, atomic units.
    pub amount: Amount,
}
