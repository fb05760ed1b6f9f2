//! What is written down.

use std::sync::Arc;

use crate::ledger::Snapshot;
use crate::protocol::{Address, Amount, ChannelConfig, ChannelId, Hash};

/// A channel as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelRow {
    /// Its books.
    pub snapshot: Snapshot,
    /// How often it was to be written, this time included; the first row of a channel has version 1. Of several in one
    /// commit the last may stand for all.
    pub version: u64,
    /// The last deposit that was relayed for it.
    pub last_deposit: Option<LastDeposit>,
}

/// The last deposit that was relayed for a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastDeposit {
    /// Its salt, so that the same payload is not relayed again.
    pub salt: Hash,
    /// What was charged in all when it landed, so that another one is not relayed before it is touched.
    pub charged: Amount,
}

/// One thing to write down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A channel changed.
    Channel(Box<ChannelEntry>),
    /// A transaction was signed and is about to be sent. One that was refused and is signed again with the same nonce and
    /// fees is the same transaction to the byte: where the books have its hash already, it is open again.
    Signed(Box<Transaction>),
    /// A transaction's fate is known.
    Ended(Box<Outcome>),
    /// The chain was followed up to here.
    Cursor(Cursor),
}

/// A channel's new row, and why its sum changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelEntry {
    /// The row, which replaces the one with the version below it.
    pub row: ChannelRow,
    /// What to book with it.
    pub booking: Booking,
}

/// Why the sum that a channel was charged in all changed, if it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Booking {
    /// It did not.
    Nothing,
    /// A request was charged, perhaps nothing.
    Charge {
        /// The route's name.
        route: Arc<str>,
        /// How much.
        amount: Amount,
        /// When, Unix seconds.
        at: u64,
    },
    /// The chain changed it past us.
    Adjustment {
        /// The sum before.
        from: Amount,
        /// The sum after.
        to: Amount,
        /// When, Unix seconds.
        at: u64,
        /// Why.
        why: Adjustment,
    },
}

/// Why a sum changed without a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adjustment {
    /// The books were opened on what the chain says was claimed before.
    Opened,
    /// More was claimed than was charged: by another instance with the same authorizer.
    ClaimedElsewhere,
    /// A reorganisation dropped a claim for which there is no voucher here.
    ClaimDropped,
}

impl Adjustment {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Opened, Self::ClaimedElsewhere, Self::ClaimDropped];

    /// Its name in the books.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::ClaimedElsewhere => "claimed_elsewhere",
            Self::ClaimDropped => "claim_dropped",
        }
    }
}

/// A signed transaction, written down before it is sent: after a crash these very bytes can be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Its hash.
    pub hash: Hash,
    /// The account that pays for it.
    pub sender: Address,
    /// Its nonce.
    pub nonce: u64,
    /// The signed bytes.
    pub raw: Vec<u8>,
    /// When it was signed, Unix seconds.
    pub signed_at: u64,
    /// What for.
    pub purpose: Purpose,
}

/// What a transaction is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Claims vouchers.
    Claim {
        /// The rows.
        rows: Vec<ClaimedRow>,
    },
    /// Pays out what claims credited.
    Settle {
        /// To whom.
        receiver: Address,
        /// In which token.
        token: Address,
    },
    /// Relays a payer's deposit.
    Deposit {
        /// The channel's terms; it may have no account yet.
        config: ChannelConfig,
        /// How much.
        amount: Amount,
        /// The salt of its authorization.
        salt: Hash,
        /// Until when the authorization holds, Unix seconds.
        valid_before: u64,
    },
    /// Claims a channel and gives money back to its payer.
    Refund {
        /// The channel.
        channel: ChannelId,
        /// How much is given back.
        amount: Amount,
        /// The refund's nonce.
        nonce: u128,
        /// What is claimed with it.
        rows: Vec<ClaimedRow>,
    },
}

impl Purpose {
    /// Its name in the books.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Claim { .. } => "claim",
            Self::Settle { .. } => "settle",
            Self::Deposit { .. } => "deposit",
            Self::Refund { .. } => "refund",
        }
    }

    /// What it claims.
    pub fn rows(&self) -> &[ClaimedRow] {
        match self {
            Self::Claim { rows } | Self::Refund { rows, .. } => rows,
            Self::Settle { .. } | Self::Deposit { .. } => &[],
        }
    }
}

/// A row of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimedRow {
    /// The channel.
    pub channel: ChannelId,
    /// What is claimed of it in all, claims before it included.
    pub total_claimed: Amount,
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The transaction.
    pub hash: Hash,
    /// When that was seen, Unix seconds.
    pub at: u64,
    /// How.
    pub fate: Fate,
}

/// The fates of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// A block has it.
    Mined {
        /// Which.
        block: u64,
        /// Whether it did what it was for.
        success: bool,
        /// Gas it took.
        gas_used: u64,
        /// What it cost its sender, wei; nothing where the node does not say.
        fee_wei: Option<u128>,
        /// What the contract's events say it moved.
        moved: Vec<Moved>,
    },
    /// The node refused it, or it was replaced before it was sent: no block will ever have it.
    NeverSent,
    /// It was sent, and another one with its nonce is in a block: no block will ever have it.
    Replaced,
    /// It was sent, and nothing is expected of it any more.
    GivenUp,
}

/// Money that a transaction moved, by the contract's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// From a payer into its channel.
    Deposited(ChannelId, Amount),
    /// From a channel to the receiver's credit.
    Claimed(ChannelId, Amount),
    /// From a channel back to its payer.
    Refunded(ChannelId, Amount),
    /// From the contract to the receiver.
    Settled(Amount),
}

/// How far the chain was followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The first block that was not read.
    pub next_block: u64,
}
