//! The facilitator: somebody else's service that sends our transactions, for providers without gas.
//!
//! **Owns** the conversation with it (`/supported`, `/verify`, `/settle`), and a [`Chain`](crate::chain::Chain) that
//! sends through it and reads from the provider's own node ([`FacilitatedChain`]). **Promises** that nothing a
//! facilitator says about money is believed: it names transactions, and the provider's own node tells what they did; that
//! what it was asked is shown to a [`Witness`](crate::chain::Witness) first; and that what it may still carry out is
//! never reported as failed. **Does not** give it any key: claims and refunds are signed by our own receiver authorizer,
//! so that channels outlive a change of facilitator. A facilitator's own authorizer is not used.
//!
//! A facilitator sends as many rows in a claim as it likes (some take 25), and says no to more. It does not say why in a
//! way that could be relied on, so the operator sets `redeem.max_rows` to what it takes.

mod chain;
mod client;
mod wanted;
mod wire;

use std::time::Duration;

pub use chain::FacilitatedChain;
pub use client::{Client, FacilitatorError, FacilitatorUrl, FacilitatorUrlError, Supported};

/// How long a facilitator may take to answer, if the config does not say. It answers once a transaction is mined.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(90);

/// Which facilitator, and how it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FacilitatorSettings {
    /// Where it is.
    pub url: FacilitatorUrl,
    /// How long it may take to answer. What it has not answered by then may be done all the same.
    pub timeout: Duration,
}

/// What deposits of one token are asked for with: the part of the offer that is not in a channel's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DepositTerms {
    /// The token.
    pub token: crate::protocol::Address,
    /// The `name` of the token's EIP-712 domain.
    pub domain_name: String,
    /// The `version` of the token's EIP-712 domain.
    pub domain_version: String,
    /// How long a deposit authorization must hold, seconds.
    pub max_timeout_s: u64,
}
