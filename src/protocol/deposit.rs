//! A deposit the payer only signs: ERC-3009 `ReceiveWithAuthorization`, relayed by somebody with gas.
//!
//! **Owns** the authorization digest and its nonce. **Promises** that an authorization is bound to one channel: the
//! nonce is made of the channel id. **Does not** send anything.

use super::amount::Amount;
use super::bytes::{Address, ChannelId, Hash, keccak256};
use super::contracts::ERC3009_COLLECTOR;
use super::eip712::{Domain, TypeHash, Words};
use super::signature::Signature;

static RECEIVE_TYPE: TypeHash = TypeHash::of(
    b"ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,\
uint256 validBefore,bytes32 nonce)",
);

/// The shortest validity an authorization must have left when it is checked, in seconds; less could not be mined.
pub const MIN_AUTHORIZATION_LEFT_S: u64 = 6;

/// A signed ERC-3009 authorization for a deposit, as it stands in a payment header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// Unix time before which the token refuses it, seconds.
    pub valid_after: u64,
    /// Unix time from which the token refuses it, seconds.
    pub valid_before: u64,
    /// Any number of the payer's; with the channel id it makes the nonce. 32 bytes, big endian.
    pub salt: Hash,
    /// The payer's signature.
    pub signature: Signature,
}

impl Authorization {
    /// The token's replay protection: `keccak256(abi.encode(channelId, salt))`.
    pub fn nonce(channel: ChannelId, salt: Hash) -> Hash {
        let mut bytes = [0u8; 64];
        let (id, rest) = bytes.split_at_mut(32);
        id.copy_from_slice(&channel.0);
        rest.copy_from_slice(&salt.0);
        keccak256(&bytes)
    }

    /// The digest the payer signs, under the token's own domain. The recipient is the collector contract.
    pub fn digest(
        token: &Domain,
        payer: Address,
        amount: Amount,
        valid_after: u64,
        valid_before: u64,
        nonce: Hash,
    ) -> Hash {
        let mut words = Words::new(RECEIVE_TYPE.hash());
        words.address(payer);
        words.address(ERC3009_COLLECTOR);
        words.number(amount.units());
        words.number(u128::from(valid_after));
        words.number(u128::from(valid_before));
        words.hash(nonce);
        token.digest(words.finish())
    }
}
