//! What a receiver signs to be paid, and to pay back.
//!
//! **Owns** the claim-batch and refund digests. **Does not** decide what to claim; the redeemer's plan does.

use super::amount::Amount;
use super::bytes::{ChannelId, Hash, keccak256};
use super::channel::ChannelConfig;
use super::eip712::{Domain, TypeHash, Words};
use super::signature::Signature;

static CLAIM_ENTRY_TYPE: TypeHash =
    TypeHash::of(b"ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)");
static CLAIM_BATCH_TYPE: TypeHash = TypeHash::of(
    b"ClaimBatch(ClaimEntry[] claims)\
ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)",
);
static REFUND_TYPE: TypeHash = TypeHash::of(b"Refund(bytes32 channelId,uint256 nonce,uint128 amount)");

/// One row of a claim transaction: a channel, its latest voucher, and the cumulative sum really charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRow {
    /// The channel's terms.
    pub config: ChannelConfig,
    /// The ceiling the payer signed.
    pub max_claimable: Amount,
    /// The payer's signature over the ceiling.
    pub signature: Signature,
    /// What is claimed in all, past claims included; at most the ceiling.
    pub total_claimed: Amount,
}

/// The digest the receiver's authorizer signs for a claim batch. The order of the rows counts.
pub fn claim_batch_digest(settlement: &Domain, rows: &[ClaimRow]) -> Hash {
    let entries = rows.iter().map(|row| (row.config.id(settlement), row.max_claimable, row.total_claimed));
    digest_of_entries(settlement, entries)
}

fn digest_of_entries(settlement: &Domain, entries: impl Iterator<Item = (ChannelId, Amount, Amount)>) -> Hash {
    let entry_type = CLAIM_ENTRY_TYPE.hash();
    let mut hashes = Vec::new();
    for (channel, max_claimable, total_claimed) in entries {
        let mut words = Words::new(entry_type);
        words.hash(Hash(channel.0));
        words.number(max_claimable.units());
        words.number(total_claimed.units());
        hashes.extend_from_slice(&words.finish().0);
    }
    let mut words = Words::new(CLAIM_BATCH_TYPE.hash());
    words.hash(keccak256(&hashes));
    settlement.digest(words.finish())
}

/// The digest the receiver's authorizer signs to give `amount` back to the payer; `nonce` is the channel's live one.
pub fn refund_digest(settlement: &Domain, channel: ChannelId, nonce: u128, amount: Amount) -> Hash {
    let mut words = Words::new(REFUND_TYPE.hash());
    words.hash(Hash(channel.0));
    words.number(nonce);
    words.number(amount.units());
    settlement.digest(words.finish())
}
