//! The transactions this house sends, as data.

use crate::protocol::claim::ClaimRow;
use crate::protocol::deposit::Authorization;
use crate::protocol::{Address, Amount, ChannelConfig, Signature};

/// A call of the settlement contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Brings a payer's money into its channel through the ERC-3009 collector. Anybody may send it.
    Deposit {
        /// The channel's terms.
        config: ChannelConfig,
        /// How much, atomic units; exactly what the authorization was signed for.
        amount: Amount,
        /// What the payer signed.
        authorization: Authorization,
    },
    /// Claims for a sender that is receiver or receiver authorizer of every row.
    Claim {
        /// One row a channel. A single bad row reverts all of them.
        rows: Vec<ClaimRow>,
    },
    /// Claims for a receiver authorizer that only signed; anybody may send it. All rows have the same authorizer.
    ClaimWithSignature {
        /// One row a channel. A single bad row reverts all of them.
        rows: Vec<ClaimRow>,
        /// The authorizer's signature over the batch, in this order.
        signature: Signature,
    },
    /// Pays a receiver what claims have credited. Anybody may send it; without anything due it succeeds and does
    /// nothing.
    Settle {
        /// Who is paid.
        receiver: Address,
        /// In which token.
        token: Address,
    },
    /// Claims and refunds in one atomic transaction, both only signed by the receiver authorizer.
    ClaimAndRefund {
        /// What to claim first; empty to refund only.
        rows: Vec<ClaimRow>,
        /// The authorizer's signature over the rows; unused where there are none.
        claim_signature: Signature,
        /// The terms of the channel to refund.
        config: ChannelConfig,
        /// How much, atomic units; the contract gives back at most what is available.
        amount: Amount,
        /// The channel's live refund nonce.
        nonce: u128,
        /// The authorizer's signature over the refund.
        refund_signature: Signature,
    },
    /// Announces a withdrawal. The sender is the payer or its authorizer.
    InitiateWithdraw {
        /// The channel's terms.
        config: ChannelConfig,
        /// How much, atomic units.
        amount: Amount,
    },
    /// Takes out an announced withdrawal once the delay has passed. The sender is the payer or its authorizer.
    FinalizeWithdraw {
        /// The channel's terms.
        config: ChannelConfig,
    },
}
