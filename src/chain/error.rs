//! What can go wrong with a chain, told apart by what the caller can do about it.

use crate::protocol::Hash;

/// A cause that is kept for the log. It never names the RPC address beyond its host.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a transaction must not leave.
pub type Objection = Box<dyn std::error::Error + Send + Sync>;

/// A question to the chain that got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// Nobody answered, or not in time, or not with success. Worth trying again.
    #[error("the chain node cannot be reached")]
    Unreachable {
        /// What happened on the way.
        #[source]
        source: Cause,
    },
    /// The contract said no. Trying the same again on the same state gives the same.
    #[error("the contract reverted: {}", name.as_deref().unwrap_or("it gave no reason"))]
    Reverted {
        /// The name of the custom error (`ClaimExceedsBalance`), or the text of a plain one. `None` where the contract
        /// gave no reason, or one that is not known here.
        name: Option<String>,
    },
    /// The node itself said no: a JSON-RPC error that is not a revert.
    #[error("the chain node refused the request: {message} (code {code})")]
    Refused {
        /// The JSON-RPC error code.
        code: i64,
        /// Its message, shortened and without secrets.
        message: String,
    },
    /// The node's answer makes no sense.
    #[error("the chain node's answer makes no sense: {what}")]
    Decode {
        /// What was expected.
        what: &'static str,
        /// How it was missed.
        #[source]
        source: Option<Cause>,
    },
    /// The node's newest block is too old to believe that it follows the chain. It may catch up.
    #[error("the chain node is behind: its newest block is {by_s} s old")]
    Behind {
        /// How old, seconds.
        by_s: u64,
    },
    /// Nodes say different things, and no majority says which is true. Worth trying again: nodes that follow a
    /// reorganisation differ for some seconds.
    #[error("the chain nodes disagree on {what}: {}", nodes.join(", "))]
    Disagreement {
        /// What was asked.
        what: &'static str,
        /// Those who were asked, without the secret parts of their addresses.
        nodes: Vec<String>,
    },
    /// A transaction that another key signed, or for another chain, cannot be replaced with this gas key.
    #[error("transaction {transaction} was not signed with this gas key for this chain")]
    ForeignTransaction {
        /// Which.
        transaction: Hash,
    },
    /// A transaction was sent and no block has it yet. It may still land.
    #[error("transaction {transaction} is not mined yet")]
    NotMined {
        /// Which.
        transaction: Hash,
    },
    /// Gas costs more than may be paid for it. It gets cheaper again.
    #[error("gas costs {asked_wei} wei a unit at the moment, and at most {ceiling_wei} may be paid")]
    TooDear {
        /// What the next block takes, wei a unit of gas.
        asked_wei: u128,
        /// What may be paid.
        ceiling_wei: u128,
    },
    /// Another transaction of the sender has this nonce.
    #[error("the nonce {nonce} is used already")]
    NonceUsed {
        /// Which.
        nonce: u64,
    },
    /// The facilitator that sends transactions for us said no, and names no contract's revert.
    #[error("the facilitator declined: {reason}")]
    Declined {
        /// Its code or words, shortened and without secrets.
        reason: String,
    },
    /// This chain was opened for reading only.
    #[error("this takes a gas key, and none is configured")]
    NoGasKey,
}

impl ChainError {
    /// The name of the custom error a contract reverted with.
    pub fn revert_name(&self) -> Option<&str> {
        match self {
            Self::Reverted { name } => name.as_deref(),
            _ => None,
        }
    }

    pub(crate) fn decode(what: &'static str) -> Self {
        Self::Decode { what, source: None }
    }

    pub(crate) fn decode_from(what: &'static str, source: impl Into<Cause>) -> Self {
        Self::Decode { what, source: Some(source.into()) }
    }
}

/// A transaction that was not simply broadcast.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It was certainly never broadcast: it failed its simulation, could not be paid for, or a node rejected it.
    #[error("the transaction was not sent")]
    Refused(#[source] ChainError),
    /// It was never broadcast, because its witness said no. Its nonce is free.
    #[error("the transaction was withheld")]
    Withheld(#[source] Objection),
    /// It may have been broadcast, and may land. Watch `hash`, or ask the chain for its effect.
    #[error("the transaction {hash} may or may not have been sent")]
    Unknown {
        /// The transaction; it was signed here, so its hash is known whatever the node answered.
        hash: Hash,
        /// Why that is not known.
        #[source]
        source: ChainError,
    },
}

impl SendError {
    /// The transaction that may land, if one may.
    pub fn maybe_sent(&self) -> Option<Hash> {
        match self {
            Self::Refused(_) | Self::Withheld(_) => None,
            Self::Unknown { hash, .. } => Some(*hash),
        }
    }
}
