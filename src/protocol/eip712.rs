//! EIP-712: how a typed message becomes the 32 bytes that are signed.
//!
//! **Owns** the domain separator and the final digest. **Does not** know any message; those live beside their type.

use std::sync::OnceLock;

use super::bytes::{Address, Hash, keccak256};

/// `EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)`.
static DOMAIN_TYPE: TypeHash =
    TypeHash::of(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");

/// The same of a contract without a version.
static UNVERSIONED_DOMAIN_TYPE: TypeHash =
    TypeHash::of(b"EIP712Domain(string name,uint256 chainId,address verifyingContract)");

/// A message's type as it is signed, hashed when it is first needed and never again.
pub(super) struct TypeHash {
    text: &'static [u8],
    hash: OnceLock<Hash>,
}

impl TypeHash {
    pub(super) const fn of(text: &'static [u8]) -> Self {
        Self { text, hash: OnceLock::new() }
    }

    pub(super) fn hash(&self) -> Hash {
        *self.hash.get_or_init(|| keccak256(self.text))
    }
}

/// A signing domain, reduced to its separator: a signature made for one chain and contract is worthless on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain {
    separator: Hash,
}

impl Domain {
    /// The domain of a contract that names itself `name`, `version` (a token, say).
    pub fn new(name: &str, version: &str, chain_id: u64, verifying_contract: Address) -> Self {
        let mut words = Words::new(DOMAIN_TYPE.hash());
        words.hash(keccak256(name.as_bytes()));
        words.hash(keccak256(version.as_bytes()));
        words.number(u128::from(chain_id));
        words.address(verifying_contract);
        Self { separator: words.finish() }
    }

    /// The domain of the x402 batch settlement contract on a chain.
    pub fn settlement(chain_id: u64) -> Self {
        Self::settlement_at(chain_id, super::contracts::SETTLEMENT)
    }

    /// The same for a contract at an address of its own.
    pub fn settlement_at(chain_id: u64, contract: Address) -> Self {
        Self::new("x402 Batch Settlement", "1", chain_id, contract)
    }

    /// The domain of Permit2 on a chain, which has no version.
    pub fn permit2(chain_id: u64) -> Self {
        let mut words = Words::new(UNVERSIONED_DOMAIN_TYPE.hash());
        words.hash(keccak256(b"Permit2"));
        words.number(u128::from(chain_id));
        words.address(super::contracts::PERMIT2);
        Self { separator: words.finish() }
    }

    /// The hash that stands for the domain.
    pub fn separator(&self) -> Hash {
        self.separator
    }

    /// The digest to sign: `keccak256(0x19 0x01 ‖ separator ‖ struct hash)`.
    pub fn digest(&self, struct_hash: Hash) -> Hash {
        let mut bytes = [0u8; 66];
        let (prefix, rest) = bytes.split_at_mut(2);
        prefix.copy_from_slice(&[0x19, 0x01]);
        let (separator, message) = rest.split_at_mut(32);
        separator.copy_from_slice(&self.separator.0);
        message.copy_from_slice(&struct_hash.0);
        keccak256(&bytes)
    }
}

/// The most words a message here has, its type hash included.
const MAX_WORDS: usize = 8;

/// Solidity's `abi.encode` for a struct of one-word fields, begun with its type hash.
pub(super) struct Words {
    bytes: [u8; 32 * MAX_WORDS],
    /// How many bytes of them are written.
    length: usize,
}

impl Words {
    pub(super) fn new(type_hash: Hash) -> Self {
        let mut words = Self { bytes: [0; 32 * MAX_WORDS], length: 0 };
        words.hash(type_hash);
        words
    }

    pub(super) fn hash(&mut self, word: Hash) {
        self.push(&word.0);
    }

    pub(super) fn number(&mut self, value: u128) {
        self.push(&value.to_be_bytes());
    }

    pub(super) fn address(&mut self, value: Address) {
        self.push(&value.0);
    }

    /// One word, with zeros before it.
    fn push(&mut self, value: &[u8]) {
        let end = self.length + 32;
        let word =
            self.bytes.get_mut(end - value.len()..end).expect("no message here has more words than there is room");
        word.copy_from_slice(value);
        self.length = end;
    }

    pub(super) fn finish(self) -> Hash {
        keccak256(self.bytes.get(..self.length).expect("what was written fits"))
    }
}
