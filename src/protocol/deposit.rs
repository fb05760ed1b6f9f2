//! A deposit the payer only signs, relayed by somebody with gas: ERC-3009 `ReceiveWithAuthorization`, or a Permit2
//! transfer for tokens without it, perhaps with the EIP-2612 permit that lets Permit2 move them.
//!
//! **Owns** the digests that are signed for it. **Promises** that a permission is bound to one channel: an ERC-3009
//! nonce is made of the channel id, a Permit2 transfer has it as its witness. **Does not** send anything.

use super::amount::Amount;
use super::bytes::{Address, ChannelId, Hash, keccak256};
use super::contracts::{ERC3009_COLLECTOR, PERMIT2, PERMIT2_COLLECTOR};
use super::eip712::{Domain, TypeHash, Words};
use super::signature::Signature;

static RECEIVE_TYPE: TypeHash = TypeHash::of(
    b"ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,\
uint256 validBefore,bytes32 nonce)",
);
static PERMIT2_TRANSFER_TYPE: TypeHash = TypeHash::of(
    b"PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,\
DepositWitness witness)DepositWitness(bytes32 channelId)TokenPermissions(address token,uint256 amount)",
);
static TOKEN_PERMISSIONS_TYPE: TypeHash = TypeHash::of(b"TokenPermissions(address token,uint256 amount)");
static WITNESS_TYPE: TypeHash = TypeHash::of(b"DepositWitness(bytes32 channelId)");
static PERMIT_TYPE: TypeHash =
    TypeHash::of(b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");

/// The shortest validity an authorization must have left when it is checked, in seconds; less could not be mined.
pub const MIN_AUTHORIZATION_LEFT_S: u64 = 6;

/// The key of the extension by which a server offers to relay EIP-2612 permits for Permit2, and a payer sends one.
pub const EIP2612_SPONSORING: &str = "eip2612GasSponsoring";

/// A payer's permission to move a deposit, as it stands in a payment header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    /// Of a token that takes it itself.
    Erc3009(Authorization),
    /// Through Permit2.
    Permit2(Box<Permit2Authorization>),
}

impl Permission {
    /// What tells a channel's deposits apart: the salt of an ERC-3009 authorization, the nonce of a Permit2 transfer.
    pub fn salt(&self) -> Hash {
        match self {
            Self::Erc3009(authorization) => authorization.salt,
            Self::Permit2(authorization) => authorization.nonce,
        }
    }

    /// The Unix time from which it is refused, seconds.
    pub fn valid_before(&self) -> u64 {
        match self {
            Self::Erc3009(authorization) => authorization.valid_before,
            // Permit2 takes it up to its deadline.
            Self::Permit2(authorization) => authorization.deadline.saturating_add(1),
        }
    }
}

impl From<Authorization> for Permission {
    fn from(authorization: Authorization) -> Self {
        Self::Erc3009(authorization)
    }
}

impl From<Permit2Authorization> for Permission {
    fn from(authorization: Permit2Authorization) -> Self {
        Self::Permit2(Box::new(authorization))
    }
}

/// A signed ERC-3009 authorization for a deposit.
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

/// A signed Permit2 transfer for a deposit. Whom, what, how much and for what it says it is for is there to be checked:
/// the digest is made of what it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit2Authorization {
    /// Whose tokens.
    pub from: Address,
    /// Which.
    pub token: Address,
    /// How many, atomic units.
    pub amount: Amount,
    /// Who may move them.
    pub spender: Address,
    /// Any number the payer has not used with Permit2. 32 bytes, big endian.
    pub nonce: Hash,
    /// The last Unix time at which Permit2 takes it, seconds.
    pub deadline: u64,
    /// The channel it is for.
    pub channel: ChannelId,
    /// The payer's signature.
    pub signature: Signature,
    /// The allowance that Permit2 needs, where the payer has not given it before.
    pub permit: Option<TokenPermit>,
}

impl Permit2Authorization {
    /// The digest the payer signs, under [`Domain::permit2`]. The spender is the collector contract.
    pub fn digest(
        permit2: &Domain,
        token: Address,
        amount: Amount,
        nonce: Hash,
        deadline: u64,
        channel: ChannelId,
    ) -> Hash {
        let mut permitted = Words::new(TOKEN_PERMISSIONS_TYPE.hash());
        permitted.address(token);
        permitted.number(amount.units());
        let mut witness = Words::new(WITNESS_TYPE.hash());
        witness.hash(Hash(channel.0));
        let mut words = Words::new(PERMIT2_TRANSFER_TYPE.hash());
        words.hash(permitted.finish());
        words.address(PERMIT2_COLLECTOR);
        words.hash(nonce);
        words.number(u128::from(deadline));
        words.hash(witness.finish());
        permit2.digest(words.finish())
    }
}

/// A signed EIP-2612 permit that lets Permit2 move a deposit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPermit {
    /// Whose tokens.
    pub owner: Address,
    /// Which.
    pub token: Address,
    /// Who may move them.
    pub spender: Address,
    /// How many, atomic units.
    pub amount: Amount,
    /// The owner's nonce with the token. 32 bytes, big endian.
    pub nonce: Hash,
    /// The last Unix time at which the token takes it, seconds.
    pub deadline: u64,
    /// The owner's signature: a key's, since the token gets it in parts.
    pub signature: Signature,
}

impl TokenPermit {
    /// The digest the owner signs, under the token's own domain. The spender is Permit2.
    pub fn digest(token: &Domain, owner: Address, amount: Amount, nonce: Hash, deadline: u64) -> Hash {
        let mut words = Words::new(PERMIT_TYPE.hash());
        words.address(owner);
        words.address(PERMIT2);
        words.number(amount.units());
        words.hash(nonce);
        words.number(u128::from(deadline));
        token.digest(words.finish())
    }
}
