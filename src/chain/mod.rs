//! The chain: reading channels from it, sending transactions to it, following its events.
//!
//! **Owns** the [`Chain`] trait, its implementation over Ethereum JSON-RPC nodes ([`AlloyChain`]), the contract
//! bindings, and the way keys come into the process ([`KeyRef`]).
//! **Promises** that what a node says is checked before it is believed as far as that is possible (amounts that do not
//! fit, answers of the wrong shape are errors, and where there are several nodes, what money hangs on is compared), that no
//! error or log shows a key or an RPC address beyond its host,
//! that no transaction leaves before its [`Witness`] has seen it, and that a transaction is never reported as failed
//! while it may still land ([`SendError`]).
//! **Does not** decide anything: what to claim is the redeemer's, what to believe after a reorganisation is the
//! follower's, and confirmations are the caller's to wait for.

mod bindings;
mod broadcast;
mod call;
mod client;
mod error;
mod events;
mod fees;
mod gas;
mod keys;
mod node;
mod nodes;
mod reads;
mod rpc;
mod types;
mod url;

use std::future::Future;
use std::time::Duration;

use crate::protocol::voucher::PayerEvidence;
use crate::protocol::{Address, Amount, ChannelId, Hash, Signature};

pub use call::{Call, FirstPayment, through_permit2};
pub use client::{AlloyChain, ChainSettings, install_tls};
pub use error::{ChainError, Objection, SendError};
pub use keys::{DEV_KEY_NAMES, KeyError, KeyRef, PASSWORD_ENV, PASSWORD_FILE_ENV, is_development_account};
pub use types::{
    Bid, ChannelEvent, Counting, GasPrice, Happening, Head, LogPosition, Mined, NodeHealth, Nonces, Owed, Replacement,
    Resent, SignedTransaction, TokenDomain, View, Withdrawal,
};
pub use url::{RpcUrl, RpcUrlError};

/// Sees every transaction before anybody else does, so that it can be written down first.
pub trait Witness: Sync {
    /// A transaction was signed. It leaves only if this says yes. Where its nonce turns out to be used by somebody else's,
    /// it is signed again, and the new one is shown too; the one before it will never be in a block.
    fn sees(&self, transaction: &SignedTransaction) -> impl Future<Output = Result<(), Objection>> + Send;
}

/// A witness for those who have nothing to remember.
#[derive(Debug, Clone, Copy)]
pub struct Unwitnessed;

impl Witness for Unwitnessed {
    async fn sees(&self, _: &SignedTransaction) -> Result<(), Objection> {
        Ok(())
    }
}

/// What the other rooms may ask of a chain, and tell it.
///
/// Every request has a deadline of its own; a caller that wants a shorter one may drop the future. All reads are
/// idempotent and can be dropped at any time; for [`Chain::send_witnessed`] see there.
pub trait Chain: Send + Sync + 'static {
    /// The EIP-155 id of the chain, as the node named it when it was first asked.
    fn chain_id(&self) -> u64;

    /// The account that pays for transactions, if this chain was opened with a gas key.
    fn sender(&self) -> Option<Address>;

    /// When money that comes into a channel counts. Views follow it; this is for telling how long it takes.
    fn deposits_count_after(&self) -> Counting {
        Counting::default()
    }

    /// What is known of the nodes behind this chain, in the order of preference.
    fn nodes(&self) -> Vec<NodeHealth> {
        Vec::new()
    }

    /// How many transactions the sender has made.
    fn nonces(&self) -> impl Future<Output = Result<Nonces, ChainError>> + Send;

    /// What gas costs now.
    fn gas_price(&self) -> impl Future<Output = Result<GasPrice, ChainError>> + Send;

    /// A block by its number, if the chain is that long.
    fn block(&self, number: u64) -> impl Future<Output = Result<Option<Head>, ChainError>> + Send;

    /// The newest block; of several nodes, the newest that two of them have.
    fn head(&self) -> impl Future<Output = Result<Head, ChainError>> + Send;

    /// One channel, at the newest block. A channel that was never opened has no balance. Its balance is what counts
    /// ([`Counting`]): never more than what it has, and never less than what was claimed.
    fn channel(&self, id: ChannelId) -> impl Future<Output = Result<View, ChainError>> + Send;

    /// Several channels in the order asked for, all at one and the same block.
    fn channels(&self, ids: &[ChannelId]) -> impl Future<Output = Result<Vec<View>, ChainError>> + Send;

    /// What the chain says about a payer that authorizes its own vouchers: whether there is code at its address, and if
    /// so, whether it approves this signature (ERC-1271). A wallet that reverts has refused; only a node that cannot be
    /// asked is an error.
    fn payer_evidence(
        &self,
        payer: Address,
        digest: Hash,
        signature: &Signature,
    ) -> impl Future<Output = Result<PayerEvidence, ChainError>> + Send;

    /// Whether there is code at an address.
    fn has_code(&self, address: Address) -> impl Future<Output = Result<bool, ChainError>> + Send;

    /// An account's tokens, in atomic units. More than [`Amount::MAX`] is reported as that: no deposit can be larger.
    fn token_balance(&self, token: Address, owner: Address) -> impl Future<Output = Result<Amount, ChainError>> + Send;

    /// How many of an account's tokens somebody else may move, in atomic units. More than [`Amount::MAX`] is reported as
    /// that.
    fn allowance(
        &self,
        token: Address,
        owner: Address,
        spender: Address,
    ) -> impl Future<Output = Result<Amount, ChainError>> + Send;

    /// The nonce of an owner's next EIP-2612 permit, 32 bytes big endian; nothing where the token has none.
    fn permit_nonce(
        &self,
        token: Address,
        owner: Address,
    ) -> impl Future<Output = Result<Option<Hash>, ChainError>> + Send;

    /// Whether Permit2 has seen this nonce of a payer: used or invalidated, it will not be accepted again.
    fn permit2_nonce_used(&self, payer: Address, nonce: Hash) -> impl Future<Output = Result<bool, ChainError>> + Send;

    /// Whether a token has seen this ERC-3009 nonce of a payer: used or cancelled, it will not be accepted again.
    fn authorization_used(
        &self,
        token: Address,
        payer: Address,
        nonce: Hash,
    ) -> impl Future<Output = Result<bool, ChainError>> + Send;

    /// How a token names itself in signatures, to compare with what the config says.
    fn token_domain(&self, token: Address) -> impl Future<Output = Result<TokenDomain, ChainError>> + Send;

    /// An account's native coin, in wei; what is beyond 128 bits is cut off at the largest value.
    fn gas_balance(&self, address: Address) -> impl Future<Output = Result<u128, ChainError>> + Send;

    /// What a receiver was credited by claims and paid by settlements, in atomic units of a token.
    fn receivers(&self, receiver: Address, token: Address) -> impl Future<Output = Result<Owed, ChainError>> + Send;

    /// Tries a call on the newest state, from the gas key's account, without sending it; the gas it would take.
    fn simulate(&self, call: &Call) -> impl Future<Output = Result<u64, ChainError>> + Send;

    /// Signs a call, shows it to a witness, and broadcasts it; the transaction's hash, which is not yet mined. Nothing
    /// else is sent from the same key meanwhile, so of what witnesses have seen only the last may not have been broadcast.
    ///
    /// With a `nonce`, that one is used, and one that is taken is an error ([`ChainError::NonceUsed`]). Without, the
    /// node is asked for the next.
    ///
    /// # Cancellation
    ///
    /// A future that is dropped may have broadcast, and what its witness has seen may be sent again with
    /// [`Chain::resend`]. Nothing is stuck by that: the next call asks the node for the nonce again.
    fn send_witnessed<W: Witness>(
        &self,
        call: &Call,
        bid: Bid,
        nonce: Option<u64>,
        witness: &W,
    ) -> impl Future<Output = Result<Hash, SendError>> + Send;

    /// Signs what a transaction does once more with the same nonce and higher fees, shows it to a witness, and broadcasts
    /// it. At most one of the two will ever be in a block.
    ///
    /// # Errors
    /// [`SendError::Refused`] says that the new one was not sent; the old one may still land.
    ///
    /// # Cancellation
    ///
    /// As with [`Chain::send_witnessed`].
    fn replace_witnessed<W: Witness>(
        &self,
        transaction: &SignedTransaction,
        bid: Bid,
        witness: &W,
    ) -> impl Future<Output = Result<Replacement, SendError>> + Send;

    /// Signs and broadcasts a call that nobody has to write down, at any price.
    ///
    /// # Cancellation
    ///
    /// As with [`Chain::send_witnessed`], but the hash is lost, so spawn it where the hash matters.
    fn send(&self, call: &Call) -> impl Future<Output = Result<Hash, SendError>> + Send {
        self.send_witnessed(call, Bid::default(), None, &Unwitnessed)
    }

    /// Broadcasts these very bytes again, however often: a node that has the transaction already has it once. An error
    /// says that the node does not have it now; it may be tried again.
    fn resend(&self, transaction: &SignedTransaction) -> impl Future<Output = Result<Resent, ChainError>> + Send;

    /// What became of a transaction: `None` while no block has it (it may be pending, lost, or never sent).
    fn receipt(&self, transaction: Hash) -> impl Future<Output = Result<Option<Mined>, ChainError>> + Send;

    /// The settlement contract's events in these blocks, both included, in the order they happened.
    fn events(
        &self,
        from_block: u64,
        to_block: u64,
    ) -> impl Future<Output = Result<Vec<ChannelEvent>, ChainError>> + Send;

    /// Asks for a receipt every `poll` until there is one or `timeout` has passed. `None` says that it was not mined in
    /// time, which does not mean that it never will be. An error is only reported where the last request failed too.
    fn await_receipt(
        &self,
        transaction: Hash,
        timeout: Duration,
        poll: Duration,
    ) -> impl Future<Output = Result<Option<Mined>, ChainError>> + Send {
        async move {
            let deadline = tokio::time::Instant::now() + timeout;
            loop {
                let answer = self.receipt(transaction).await;
                let next = tokio::time::Instant::now() + poll;
                match answer {
                    Ok(Some(mined)) => return Ok(Some(mined)),
                    unfinished if next >= deadline => return unfinished,
                    _ => tokio::time::sleep_until(next).await,
                }
            }
        }
    }
}
