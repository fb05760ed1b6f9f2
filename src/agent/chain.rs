//! An agent's view of a real chain.
//!
//! The agent reads channels itself rather than believe a server about them; it uses the chain room's reader and no
//! gas key.

use std::sync::Arc;

use super::reader::{Allowance, ChainChannel, ChainReadError, ChainReader};
use crate::chain::Chain;
use crate::protocol::contracts::PERMIT2;
use crate::protocol::x402;
use crate::protocol::{Address, ChannelId};

/// Reads channels from one node. Networks other than the node's have no node.
#[derive(Debug)]
pub struct NodeReader<C> {
    chain: Arc<C>,
}

impl<C> NodeReader<C> {
    /// A reader over a connected chain.
    pub fn new(chain: Arc<C>) -> Self {
        Self { chain }
    }
}

impl<C: Chain> ChainReader for NodeReader<C> {
    async fn channel(&self, network: &str, id: ChannelId) -> Result<Option<ChainChannel>, ChainReadError> {
        if x402::chain_id_of(network) != Some(self.chain.chain_id()) {
            return Ok(None);
        }
        let view = self.chain.channel(id).await.map_err(|error| ChainReadError(Box::new(error)))?;
        Ok(Some(ChainChannel { balance: view.balance, total_claimed: view.total_claimed }))
    }

    async fn allowance(
        &self,
        network: &str,
        token: Address,
        owner: Address,
    ) -> Result<Option<Allowance>, ChainReadError> {
        if x402::chain_id_of(network) != Some(self.chain.chain_id()) {
            return Ok(None);
        }
        let (permit2, permit_nonce) =
            tokio::try_join!(self.chain.allowance(token, owner, PERMIT2), self.chain.permit_nonce(token, owner))
                .map_err(|error| ChainReadError(Box::new(error)))?;
        Ok(Some(Allowance { permit2, permit_nonce }))
    }
}
