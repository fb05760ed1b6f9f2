//! Vouchers: "of this channel, you may claim up to so much in all".
//!
//! **Owns** the voucher digest and the first two steps of the chain of proofs a payment goes through
//! ([`SignedVoucher`] → [`VerifiedVoucher`] → hold → receipt). **Promises** that a [`VerifiedVoucher`] can be claimed as
//! far as its signature goes. **Does not** know whether it is covered by a balance; the ledger does.

use serde::{Deserialize, Serialize};

use super::amount::Amount;
use super::bytes::{Address, ChannelId, Hash};
use super::channel::{Authorizer, BoundConfig, ChannelConfig};
use super::eip712::{Domain, TypeHash, Words};
use super::hot::{KeyTable, NotSigned};
use super::signature::{LocalKey, Signature, SignatureError};

static VOUCHER_TYPE: TypeHash = TypeHash::of(b"Voucher(bytes32 channelId,uint128 maxClaimableAmount)");

/// A cumulative promise. A later voucher of the same channel replaces it, so losing an old one costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voucher {
    /// The channel it draws on.
    pub channel: ChannelId,
    /// The most the receiver may ever have claimed of the channel, in atomic units.
    pub max_claimable: Amount,
}

impl Voucher {
    /// The digest that is signed.
    pub fn digest(&self, settlement: &Domain) -> Hash {
        let mut words = Words::new(VOUCHER_TYPE.hash());
        words.hash(Hash(self.channel.0));
        words.number(self.max_claimable.units());
        settlement.digest(words.finish())
    }

    /// Signs it.
    pub fn sign(self, settlement: &Domain, key: &LocalKey) -> SignedVoucher {
        SignedVoucher {
            channel: self.channel,
            max_claimable: self.max_claimable,
            signature: key.sign(self.digest(settlement)),
        }
    }
}

/// A voucher with a signature that nobody has checked yet, as it stands in a payment header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedVoucher {
    /// The channel it draws on.
    #[serde(rename = "channelId")]
    pub channel: ChannelId,
    /// The cumulative ceiling, in atomic units.
    #[serde(rename = "maxClaimableAmount")]
    pub max_claimable: Amount,
    /// Whoever made it.
    pub signature: Signature,
}

/// Why a voucher proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VoucherError {
    /// The signature has a form the contract refuses.
    #[error(transparent)]
    Form(#[from] SignatureError),
    /// A good signature by somebody else, or over something else.
    #[error("signed by another key")]
    OtherSigner,
    /// The voucher names another channel than the one with these terms.
    #[error("the voucher is of another channel")]
    OtherChannel,
    /// The payer is a contract and says no.
    #[error("the payer's wallet does not approve this voucher")]
    WalletRefused,
    /// The payer itself is the authorizer, so a chain must be asked first ([`SignedVoucher::verify_by_payer`]).
    #[error("the payer's wallet has to be asked")]
    AsksPayer,
}

/// What a chain said about a payer that authorizes its own vouchers, for one digest and signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayerEvidence {
    /// There is no code at the payer's address: its key decides.
    NoCode,
    /// There is code, and ERC-1271 `isValidSignature` returned its magic value.
    Approved,
    /// There is code, and it did not.
    Refused,
}

/// A voucher whose signature the settlement contract would accept. Only the `verify` functions make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedVoucher {
    channel: ChannelId,
    max_claimable: Amount,
    signature: Signature,
}

impl SignedVoucher {
    fn voucher(&self) -> Voucher {
        Voucher { channel: self.channel, max_claimable: self.max_claimable }
    }

    /// The digest this signature must be over.
    pub fn digest(&self, settlement: &Domain) -> Hash {
        self.voucher().digest(settlement)
    }

    /// Checks that the voucher is of the channel with these terms, and its signature by the key that signs that
    /// channel's vouchers; no chain is needed.
    pub fn verify(&self, settlement: &Domain, config: &ChannelConfig) -> Result<VerifiedVoucher, VoucherError> {
        self.verify_bound(&config.bound(settlement))
    }

    /// The same where the id of the channel with these terms is known.
    pub fn verify_bound(&self, bound: &BoundConfig) -> Result<VerifiedVoucher, VoucherError> {
        self.of_channel(bound)?;
        match bound.config().authorizer() {
            Authorizer::Key(signer) => self.verify_key(bound.settlement(), signer),
            Authorizer::Payer(_) => Err(VoucherError::AsksPayer),
        }
    }

    /// [`Self::verify_bound`] by the table of a key that signs often: the same verdict in a fifth of the time. A table of another
    /// key than the channel's finds the voucher signed by another key.
    pub fn verify_hot(&self, bound: &BoundConfig, table: &KeyTable) -> Result<VerifiedVoucher, VoucherError> {
        self.of_channel(bound)?;
        match bound.config().authorizer() {
            Authorizer::Key(signer) => self.verify_key_hot(bound.settlement(), signer, table),
            Authorizer::Payer(_) => Err(VoucherError::AsksPayer),
        }
    }

    /// Checks the signature of a channel whose payer authorizes its own vouchers, given what the chain said of it.
    pub fn verify_by_payer(
        &self,
        settlement: &Domain,
        config: &ChannelConfig,
        evidence: PayerEvidence,
    ) -> Result<VerifiedVoucher, VoucherError> {
        self.verify_bound_by_payer(&config.bound(settlement), evidence)
    }

    /// The same where the id of the channel with these terms is known.
    pub fn verify_bound_by_payer(
        &self,
        bound: &BoundConfig,
        evidence: PayerEvidence,
    ) -> Result<VerifiedVoucher, VoucherError> {
        self.of_channel(bound)?;
        match (bound.config().authorizer(), evidence) {
            (Authorizer::Key(signer), _) => self.verify_key(bound.settlement(), signer),
            (Authorizer::Payer(payer), PayerEvidence::NoCode) => self.verify_key(bound.settlement(), payer),
            (Authorizer::Payer(_), PayerEvidence::Approved) => Ok(self.proven()),
            (Authorizer::Payer(_), PayerEvidence::Refused) => Err(VoucherError::WalletRefused),
        }
    }

    /// Without this a voucher for a channel of the victim's would verify under terms the attacker wrote.
    fn of_channel(&self, bound: &BoundConfig) -> Result<(), VoucherError> {
        if bound.id() == self.channel { Ok(()) } else { Err(VoucherError::OtherChannel) }
    }

    fn verify_key(&self, settlement: &Domain, signer: Address) -> Result<VerifiedVoucher, VoucherError> {
        if self.signature.recover(self.digest(settlement))? == signer {
            Ok(self.proven())
        } else {
            Err(VoucherError::OtherSigner)
        }
    }

    fn verify_key_hot(
        &self,
        settlement: &Domain,
        signer: Address,
        table: &KeyTable,
    ) -> Result<VerifiedVoucher, VoucherError> {
        if table.signer() != signer {
            return Err(VoucherError::OtherSigner);
        }
        match table.verify(self.digest(settlement), &self.signature) {
            Ok(()) => Ok(self.proven()),
            Err(NotSigned::OtherSigner) => Err(VoucherError::OtherSigner),
            Err(NotSigned::Form(error)) => Err(error.into()),
        }
    }

    fn proven(&self) -> VerifiedVoucher {
        VerifiedVoucher { channel: self.channel, max_claimable: self.max_claimable, signature: self.signature.clone() }
    }
}

impl VerifiedVoucher {
    /// The channel it draws on.
    pub fn channel(&self) -> ChannelId {
        self.channel
    }

    /// The cumulative ceiling, in atomic units.
    pub fn max_claimable(&self) -> Amount {
        self.max_claimable
    }

    /// The signature that goes into the claim.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(payer_authorizer: Address) -> ChannelConfig {
        ChannelConfig {
            payer: Address([5; 20]),
            payer_authorizer,
            receiver: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            token: Address([3; 20]),
            withdraw_delay: 900,
            salt: Hash::ZERO,
        }
    }

    #[test]
    fn a_voucher_verifies_for_its_own_channel_only() {
        let key = LocalKey::from_bytes(&[7; 32]).unwrap();
        let domain = Domain::settlement(84532);
        let config = channel(key.address());
        let other = ChannelConfig { salt: Hash([1; 32]), ..config };
        let signed = Voucher { channel: config.id(&domain), max_claimable: Amount::new(9) }.sign(&domain, &key);
        assert!(signed.verify(&domain, &config).is_ok());
        assert_eq!(signed.verify(&domain, &other), Err(VoucherError::OtherChannel));
        assert_eq!(signed.verify_by_payer(&domain, &other, PayerEvidence::Approved), Err(VoucherError::OtherChannel));
        assert_eq!(signed.verify(&Domain::settlement(1), &config), Err(VoucherError::OtherChannel));
        let stranger = channel(Address([9; 20]));
        let forged = Voucher { channel: stranger.id(&domain), max_claimable: Amount::new(9) }.sign(&domain, &key);
        assert_eq!(forged.verify(&domain, &stranger), Err(VoucherError::OtherSigner));
    }

    #[test]
    fn a_hot_key_verifies_what_a_cold_one_does() {
        let key = LocalKey::from_bytes(&[7; 32]).unwrap();
        let other = LocalKey::from_bytes(&[8; 32]).unwrap();
        let domain = Domain::settlement(84532);
        let digest = Hash([1; 32]);
        let table = KeyTable::recover(digest, &key.sign(digest)).unwrap();
        let others = KeyTable::recover(digest, &other.sign(digest)).unwrap();
        let config = channel(key.address());
        let voucher = Voucher { channel: config.id(&domain), max_claimable: Amount::new(9) };
        let signed = voucher.sign(&domain, &key);
        assert_eq!(signed.verify_hot(&config.bound(&domain), &table), signed.verify(&domain, &config));
        assert!(signed.verify_hot(&config.bound(&domain), &table).is_ok());
        assert_eq!(signed.verify_hot(&config.bound(&domain), &others), Err(VoucherError::OtherSigner));
        let elsewhere = ChannelConfig { salt: Hash([1; 32]), ..config };
        assert_eq!(signed.verify_hot(&elsewhere.bound(&domain), &table), Err(VoucherError::OtherChannel));
        let forged = voucher.sign(&domain, &other);
        assert_eq!(forged.verify_hot(&config.bound(&domain), &table), Err(VoucherError::OtherSigner));
        assert_eq!(forged.verify_hot(&config.bound(&domain), &others), Err(VoucherError::OtherSigner));
        let malformed = SignedVoucher { signature: Signature::from_bytes([1; 64]).unwrap(), ..signed };
        assert_eq!(malformed.verify_hot(&config.bound(&domain), &table), Err(SignatureError::Length(64).into()));
        let by_payer = channel(Address::ZERO);
        let unasked = Voucher { channel: by_payer.id(&domain), max_claimable: Amount::new(9) }.sign(&domain, &key);
        assert_eq!(unasked.verify_hot(&by_payer.bound(&domain), &table), Err(VoucherError::AsksPayer));
    }

    #[test]
    fn a_payer_that_authorizes_itself_is_judged_by_what_the_chain_says() {
        let key = LocalKey::from_bytes(&[7; 32]).unwrap();
        let domain = Domain::settlement(84532);
        let config = ChannelConfig { payer: key.address(), ..channel(Address::ZERO) };
        let signed = Voucher { channel: config.id(&domain), max_claimable: Amount::new(9) }.sign(&domain, &key);
        assert_eq!(signed.verify(&domain, &config), Err(VoucherError::AsksPayer));
        for (evidence, good) in
            [(PayerEvidence::NoCode, true), (PayerEvidence::Approved, true), (PayerEvidence::Refused, false)]
        {
            assert_eq!(signed.verify_by_payer(&domain, &config, evidence).is_ok(), good, "{evidence:?}");
        }
        let wallet = ChannelConfig { payer: Address([8; 20]), ..config };
        let by_key = Voucher { channel: wallet.id(&domain), max_claimable: Amount::new(9) }.sign(&domain, &key);
        assert!(by_key.verify_by_payer(&domain, &wallet, PayerEvidence::NoCode).is_err());
        assert!(by_key.verify_by_payer(&domain, &wallet, PayerEvidence::Approved).is_ok());
    }
}
