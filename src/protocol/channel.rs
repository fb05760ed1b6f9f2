//! A channel's configuration and the id that follows from it.
//!
//! **Owns** the seven immutable terms of a channel. **Promises** that an id is computed, never believed. **Does not**
//! know the channel's money; that is the ledger's.

use serde::{Deserialize, Serialize};

use super::bytes::{Address, ChannelId, Hash};
use super::eip712::{Domain, TypeHash, Words};

/// The shortest withdraw delay the contract accepts, in seconds.
pub const MIN_WITHDRAW_DELAY_S: u64 = 900;
/// The longest withdraw delay the contract accepts, in seconds (30 days).
pub const MAX_WITHDRAW_DELAY_S: u64 = 2_592_000;

static CHANNEL_CONFIG_TYPE: TypeHash = TypeHash::of(
    b"ChannelConfig(address payer,address payerAuthorizer,address receiver,\
address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)",
);

/// The terms two parties agreed on when the channel was opened. They never change; other terms are another channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelConfig {
    /// Whose tokens were deposited, and who gets the rest back.
    pub payer: Address,
    /// Whose key signs vouchers. Zero: the payer itself, which may be a smart wallet.
    pub payer_authorizer: Address,
    /// Who is paid.
    pub receiver: Address,
    /// Whose key signs claims and refunds for the receiver.
    pub receiver_authorizer: Address,
    /// The ERC-20 token.
    pub token: Address,
    /// Seconds between a payer's announcement of a withdrawal and the withdrawal.
    pub withdraw_delay: u64,
    /// Any 32 bytes, so that one payer can have several channels with the same terms.
    pub salt: Hash,
}

/// Who must have signed a voucher of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authorizer {
    /// The key of this account, by plain ECDSA. Can be checked without a chain.
    Key(Address),
    /// This payer: its key if it has no code, else the wallet's own judgement (ERC-1271). Takes a chain.
    Payer(Address),
}

impl Authorizer {
    /// The account whose signature that is. A channel's `payer` is a name that anybody can write into its terms: the
    /// contract takes a deposit from whoever brings the money. Whose vouchers are good has signed them.
    pub fn account(&self) -> Address {
        let (Self::Key(account) | Self::Payer(account)) = self;
        *account
    }
}

/// A channel's terms, the settlement domain, and the id that follows from both: the proof that a voucher for that id is a
/// voucher on those terms. Made by hashing ([`ChannelConfig::bound`]), or again by whoever saw it made for the very same
/// terms and domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundConfig {
    id: ChannelId,
    config: ChannelConfig,
    settlement: Domain,
}

impl BoundConfig {
    /// The same once more. The caller has seen [`ChannelConfig::bound`] give this id for these terms and this domain in this
    /// process, and knows that neither has changed.
    pub(crate) fn again(id: ChannelId, config: ChannelConfig, settlement: Domain) -> Self {
        debug_assert_eq!(config.id(&settlement), id, "the caller has seen it");
        Self { id, config, settlement }
    }

    /// The channel.
    pub fn id(&self) -> ChannelId {
        self.id
    }

    /// Its terms.
    pub fn config(&self) -> &ChannelConfig {
        &self.config
    }

    /// The domain its vouchers are signed under.
    pub fn settlement(&self) -> &Domain {
        &self.settlement
    }
}

impl ChannelConfig {
    /// These terms with their id.
    pub fn bound(self, settlement: &Domain) -> BoundConfig {
        BoundConfig { id: self.id(settlement), config: self, settlement: *settlement }
    }

    /// The channel's id: the EIP-712 digest of these terms under the settlement domain. A comment in the contract's
    /// header says `keccak256(abi.encode(config))`; its code, which decides, says this.
    pub fn id(&self, settlement: &Domain) -> ChannelId {
        let mut words = Words::new(CHANNEL_CONFIG_TYPE.hash());
        words.address(self.payer);
        words.address(self.payer_authorizer);
        words.address(self.receiver);
        words.address(self.receiver_authorizer);
        words.address(self.token);
        words.number(u128::from(self.withdraw_delay));
        words.hash(self.salt);
        ChannelId(settlement.digest(words.finish()).0)
    }

    /// Who must sign this channel's vouchers.
    pub fn authorizer(&self) -> Authorizer {
        if self.payer_authorizer.is_zero() {
            Authorizer::Payer(self.payer)
        } else {
            Authorizer::Key(self.payer_authorizer)
        }
    }

    /// Whether the contract would open a channel with this delay.
    pub fn withdraw_delay_in_range(&self) -> bool {
        (MIN_WITHDRAW_DELAY_S..=MAX_WITHDRAW_DELAY_S).contains(&self.withdraw_delay)
    }
}
