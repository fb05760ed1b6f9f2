//! What the agent may ask a chain.
//!
//! **Owns** the question, not the node: an adapter over a real client implements [`ChainReader`]. **Promises** that an
//! agent without a node ([`NoChain`]) works, except where only the chain could tell (see
//! [`AgentError::NeedsChain`](super::AgentError::NeedsChain)).

use std::future::Future;

use crate::protocol::{Address, Amount, ChannelId, Hash};

/// A channel as the settlement contract holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainChannel {
    /// Deposits less refunds and withdrawals, in atomic units; claims do not lower it. Zero if never opened.
    pub balance: Amount,
    /// What the receiver has claimed in all, in atomic units.
    pub total_claimed: Amount,
}

/// Where a payer stands with a token, as far as deposits through Permit2 need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// What Permit2 may move, in atomic units.
    pub permit2: Amount,
    /// The nonce of the payer's next EIP-2612 permit, 32 bytes big endian; nothing where the token takes none.
    pub permit_nonce: Option<Hash>,
}

/// The chain could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("the chain node did not answer")]
pub struct ChainReadError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Reads channels from the settlement contract, and allowances from tokens.
pub trait ChainReader: Send + Sync + 'static {
    /// The channel `id` on `network` (`eip155:8453`, say). A channel that was never opened is `Some` with zeros; `None`
    /// means that there is no node for this network.
    ///
    /// # Errors
    /// When there is a node and it does not answer.
    fn channel(
        &self,
        network: &str,
        id: ChannelId,
    ) -> impl Future<Output = Result<Option<ChainChannel>, ChainReadError>> + Send;

    /// Where `owner` stands with `token` on `network`; `None` means that there is no node for this network.
    ///
    /// # Errors
    /// When there is a node and it does not answer.
    fn allowance(
        &self,
        network: &str,
        token: Address,
        owner: Address,
    ) -> impl Future<Output = Result<Option<Allowance>, ChainReadError>> + Send;
}

/// No node at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoChain;

impl ChainReader for NoChain {
    async fn channel(&self, _network: &str, _id: ChannelId) -> Result<Option<ChainChannel>, ChainReadError> {
        Ok(None)
    }

    async fn allowance(&self, _: &str, _: Address, _: Address) -> Result<Option<Allowance>, ChainReadError> {
        Ok(None)
    }
}

/// A node, if one is configured.
impl<R: ChainReader> ChainReader for Option<R> {
    async fn channel(&self, network: &str, id: ChannelId) -> Result<Option<ChainChannel>, ChainReadError> {
        match self {
            Some(reader) => reader.channel(network, id).await,
            None => Ok(None),
        }
    }

    async fn allowance(
        &self,
        network: &str,
        token: Address,
        owner: Address,
    ) -> Result<Option<Allowance>, ChainReadError> {
        match self {
            Some(reader) => reader.allowance(network, token, owner).await,
            None => Ok(None),
        }
    }
}
