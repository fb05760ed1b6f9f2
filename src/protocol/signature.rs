//! ECDSA over secp256k1, exactly as strict as the settlement contract.
//!
//! **Owns** signing with a local key and recovering a signer. **Promises** that a signature is accepted here if and only
//! if the contract's plain ECDSA check accepts it: 65 bytes `r ‖ s ‖ v`, `s` in the lower half of the group order, `v`
//! 27 or 28. Anything looser would be served here and could never be claimed there, and would revert the batch it is in.
//! **Does not** ask smart wallets: that takes a chain (see the gate).

use std::fmt;

use k256::Scalar;
use k256::ecdsa::{RecoveryId, Signature as EcdsaSignature, SigningKey, VerifyingKey};
use k256::elliptic_curve::scalar::IsHigh as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::bytes::{self, Address, Hash, keccak256};

/// The longest signature that is read at all, in bytes. Smart wallets (ERC-1271) may use more than 65.
pub const MAX_SIGNATURE_BYTES: usize = 2_048;

/// The length of a key's signature: `r ‖ s ‖ v`.
const KEY_SIGNATURE_BYTES: usize = 65;

/// The bytes of a signature, not yet checked against anything.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature(Form);

/// Nearly all signatures are a key's, and the books hold one for each channel: those take no allocation of their own.
/// Bytes of that length always have the first form, so that equal signatures are equal.
#[derive(Clone, PartialEq, Eq)]
enum Form {
    Key([u8; KEY_SIGNATURE_BYTES]),
    Other(Box<[u8]>),
}

/// Why a signature names no signer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not 65 bytes.
    #[error("a signature has 65 bytes, this one has {0}")]
    Length(usize),
    /// The last byte is neither 27 nor 28.
    #[error("the recovery byte must be 27 or 28, not {0}")]
    RecoveryByte(u8),
    /// `s` is in the upper half of the group order.
    #[error("s is in the upper half of the group order")]
    HighS,
    /// `r` or `s` is zero or not below the group order, or no curve point belongs to `r`.
    #[error("r and s belong to no key")]
    NoKey,
}

impl Signature {
    /// Takes bytes as they came. `None` above [`MAX_SIGNATURE_BYTES`].
    pub fn from_bytes(bytes: impl AsRef<[u8]>) -> Option<Self> {
        let bytes = bytes.as_ref();
        (bytes.len() <= MAX_SIGNATURE_BYTES).then(|| Self::of(bytes))
    }

    fn of(bytes: &[u8]) -> Self {
        Self(bytes.try_into().map_or_else(|_| Form::Other(bytes.into()), Form::Key))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Form::Key(bytes) => bytes,
            Form::Other(bytes) => bytes,
        }
    }

    /// `v`, `r` and `s`, for contracts that take them apart; nothing where this is not a key's 65 bytes.
    pub fn parts(&self) -> Option<(u8, Hash, Hash)> {
        let Form::Key([rs @ .., v]) = &self.0 else { return None };
        let (r, s) = rs.split_at(32);
        Some((*v, Hash(r.try_into().ok()?), Hash(s.try_into().ok()?)))
    }

    /// The account whose key made this signature over `digest`.
    pub fn recover(&self, digest: Hash) -> Result<Address, SignatureError> {
        self.recover_key(digest).map(|key| address_of(&key))
    }

    /// The key that made this signature over `digest`.
    pub(super) fn recover_key(&self, digest: Hash) -> Result<VerifyingKey, SignatureError> {
        let Strict { r, s, odd } = self.strict()?;
        let signature = EcdsaSignature::from_scalars(r, s).map_err(|_| SignatureError::NoKey)?;
        VerifyingKey::recover_from_prehash(&digest.0, &signature, RecoveryId::new(odd, false))
            .map_err(|_| SignatureError::NoKey)
    }

    /// Its numbers, if they have the one form the contract reads.
    pub(super) fn strict(&self) -> Result<Strict, SignatureError> {
        let Form::Key([rs @ .., v]) = &self.0 else { return Err(SignatureError::Length(self.as_bytes().len())) };
        let odd = match v {
            27 => false,
            28 => true,
            other => return Err(SignatureError::RecoveryByte(*other)),
        };
        let signature = EcdsaSignature::from_slice(rs).map_err(|_| SignatureError::NoKey)?;
        let (r, s) = signature.split_scalars();
        if s.is_high().into() {
            return Err(SignatureError::HighS);
        }
        Ok(Strict { r: *r, s: *s, odd })
    }
}

/// What a signature says: `r` and `s` are neither zero nor above the group order, `s` is in its lower half, and the
/// point with x = `r` has an odd y or not.
pub(super) struct Strict {
    pub(super) r: Scalar,
    pub(super) s: Scalar,
    pub(super) odd: bool,
}

impl fmt::Debug for Signature {
    /// A signature is worth money, so it is not printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({} bytes)", self.as_bytes().len())
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&bytes::encode_hex(self.as_bytes()))
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        if text.len() > 2 + 2 * MAX_SIGNATURE_BYTES {
            return Err(serde::de::Error::custom("the signature is too long"));
        }
        bytes::decode_hex(&text).map(|bytes| Self::of(&bytes)).map_err(serde::de::Error::custom)
    }
}

/// A private key in this process. It is wiped when dropped and never printed.
#[derive(Clone)]
pub struct LocalKey(SigningKey);

/// The bytes are no secp256k1 private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a secp256k1 private key (32 bytes, not zero, below the group order)")]
pub struct KeyError;

impl LocalKey {
    /// A key from its 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        SigningKey::from_slice(bytes).map(Self).map_err(|_| KeyError)
    }

    /// A key from 64 hex digits with or without `0x`; white space around them is ignored.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let prefixed = Zeroizing::new(format!("0x{digits}"));
        let bytes = Zeroizing::new(bytes::decode_fixed::<32>(&prefixed).map_err(|_| KeyError)?);
        Self::from_bytes(bytes.as_slice())
    }

    /// The account this key controls.
    pub fn address(&self) -> Address {
        address_of(self.0.verifying_key())
    }

    /// Signs a digest (deterministically, RFC 6979), in the form the contract accepts.
    pub fn sign(&self, digest: Hash) -> Signature {
        let (signature, recovery) = self.0.sign_prehash_recoverable(&digest.0);
        let low = signature.normalize_s();
        let odd = recovery.is_y_odd() ^ (low != signature);
        let mut bytes = [0u8; KEY_SIGNATURE_BYTES];
        let (rs, v) = bytes.split_at_mut(KEY_SIGNATURE_BYTES - 1);
        rs.copy_from_slice(&low.to_bytes());
        v.fill(if odd { 28 } else { 27 });
        Signature(Form::Key(bytes))
    }

    /// The secret itself, for a signer of another library. Wiped when dropped.
    pub fn expose(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes().into())
    }
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalKey({})", self.address())
    }
}

/// The last 20 bytes of the hash of the uncompressed public key.
pub(super) fn address_of(key: &VerifyingKey) -> Address {
    let point = key.to_sec1_point(false);
    let hash = keccak256(point.as_bytes().get(1..).expect("an uncompressed point begins with its tag"));
    let mut address = [0u8; 20];
    address.copy_from_slice(hash.0.get(12..).expect("a hash has 32 bytes"));
    Address(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> LocalKey {
        LocalKey::from_bytes(&[2; 32]).unwrap()
    }

    /// The order of the group, big endian: n.
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xba, 0xae,
        0xdc, 0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41,
    ];

    /// n - s, so that the signature is the other one of the pair.
    fn with_high_s(bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        let mut borrow = 0i16;
        for index in (0..32).rev() {
            let difference = i16::from(ORDER[index]) - i16::from(bytes[32 + index]) - borrow;
            borrow = i16::from(difference < 0);
            out[32 + index] = u8::try_from(difference.rem_euclid(256)).unwrap();
        }
        out[64] = 55 - out[64];
        out
    }

    #[test]
    fn a_signature_names_its_signer() {
        let digest = keccak256(b"toll");
        let signature = key().sign(digest);
        assert_eq!(signature.recover(digest), Ok(key().address()));
        assert_ne!(signature.recover(keccak256(b"other")), Ok(key().address()));
    }

    #[test]
    fn what_the_contract_refuses_is_refused() {
        let digest = keccak256(b"toll");
        let good = key().sign(digest).as_bytes().to_vec();
        let with_v = |v: u8| {
            let mut bytes = good.clone();
            bytes[64] = v;
            bytes
        };
        let mut long = good.clone();
        long.push(0);
        let mut zero_r = good.clone();
        zero_r[..32].fill(0);
        let mut big_r = good.clone();
        big_r[..32].copy_from_slice(&ORDER);
        let cases: [(Vec<u8>, SignatureError); 9] = [
            (Vec::new(), SignatureError::Length(0)),
            (good[..64].to_vec(), SignatureError::Length(64)),
            (long, SignatureError::Length(66)),
            (with_v(0), SignatureError::RecoveryByte(0)),
            (with_v(1), SignatureError::RecoveryByte(1)),
            (with_v(29), SignatureError::RecoveryByte(29)),
            (with_high_s(&good), SignatureError::HighS),
            (zero_r, SignatureError::NoKey),
            (big_r, SignatureError::NoKey),
        ];
        for (bytes, expected) in cases {
            let signature = Signature::from_bytes(bytes).unwrap();
            assert_eq!(signature.recover(digest), Err(expected));
        }
        // The other recovery byte names another key, never the same one.
        let flipped = Signature::from_bytes(with_v(55 - good[64])).unwrap();
        assert_ne!(flipped.recover(digest), Ok(key().address()));
    }

    #[test]
    fn keys_are_read_from_hex_and_never_printed() {
        let text = format!(" 0x{}\n", "02".repeat(32));
        let read = LocalKey::from_hex(&text).unwrap();
        assert_eq!(read.address(), key().address());
        assert!(!format!("{read:?}").contains("0202"));
        for bad in ["", "0x", &"00".repeat(32), &"ff".repeat(32), &"02".repeat(31)] {
            assert!(LocalKey::from_hex(bad).is_err());
        }
    }
}
