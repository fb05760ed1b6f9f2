//! Fixed-size byte strings with a strict text form: addresses, channel ids, digests.
//!
//! **Owns** hexadecimal in and out. **Promises** that a value was read from exactly the right number of digits, and
//! that a [`ChannelId`] can be used as a storage key (only `0x` and 64 hex digits ever parse).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha3::{Digest as _, Keccak256};

/// Why a byte string could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HexError {
    /// The text does not begin with `0x`.
    #[error("expected text that begins with 0x")]
    NoPrefix,
    /// The number of hex digits is not the one this type has.
    #[error("expected {expected} hex digits, found {found}")]
    Length {
        /// Digits the type has.
        expected: usize,
        /// Digits the text has.
        found: usize,
    },
    /// A character is no hex digit.
    #[error("a character is not a hex digit")]
    Digit,
}

/// Keccak-256, the hash of Ethereum and of every digest in this room.
pub fn keccak256(bytes: &[u8]) -> Hash {
    Hash(Keccak256::digest(bytes).into())
}

/// Reads `0x` followed by an even number of hex digits.
pub fn decode_hex(text: &str) -> Result<Vec<u8>, HexError> {
    let digits = text.strip_prefix("0x").ok_or(HexError::NoPrefix)?.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return Err(HexError::Length { expected: digits.len().saturating_add(1), found: digits.len() });
    }
    let mut out = Vec::with_capacity(digits.len() / 2);
    for pair in digits.chunks_exact(2) {
        out.push(byte_of(pair)?);
    }
    Ok(out)
}

/// Writes `0x` and lower-case hex digits.
pub fn encode_hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 + bytes.len() * 2);
    out.push_str("0x");
    for byte in bytes {
        out.push(hex_digit(byte >> 4));
        out.push(hex_digit(byte & 0x0f));
    }
    out
}

/// Reads `0x` and exactly `2 N` hex digits of either case.
pub fn decode_fixed<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let digits = text.strip_prefix("0x").ok_or(HexError::NoPrefix)?.as_bytes();
    if digits.len() != N * 2 {
        return Err(HexError::Length { expected: N * 2, found: digits.len() });
    }
    let mut out = [0u8; N];
    for (slot, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *slot = byte_of(pair)?;
    }
    Ok(out)
}

/// Reads a decimal number of up to 256 bits in its one canonical form, as a big-endian word.
pub fn decode_decimal(text: &str) -> Option<Hash> {
    if text.is_empty() || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    let mut word = [0u8; 32];
    for digit in text.bytes() {
        let mut carry = u16::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
        for byte in word.iter_mut().rev() {
            let [high, low] = (u16::from(*byte) * 10 + carry).to_be_bytes();
            (*byte, carry) = (low, u16::from(high));
        }
        if carry != 0 {
            return None;
        }
    }
    Some(Hash(word))
}

/// Writes a big-endian word as a decimal number.
pub fn encode_decimal(word: &Hash) -> String {
    let mut rest = word.0;
    let mut digits = Vec::with_capacity(78);
    while digits.is_empty() || rest.iter().any(|byte| *byte != 0) {
        let mut remainder = 0u16;
        for byte in &mut rest {
            let value = remainder * 256 + u16::from(*byte);
            let [_, quotient] = (value / 10).to_be_bytes();
            (*byte, remainder) = (quotient, value % 10);
        }
        let [_, digit] = remainder.to_be_bytes();
        digits.push(char::from(b'0' + digit));
    }
    digits.iter().rev().collect()
}

fn byte_of(pair: &[u8]) -> Result<u8, HexError> {
    match pair {
        [high, low] => Ok((nibble(*high)? << 4) | nibble(*low)?),
        _ => Err(HexError::Digit),
    }
}

fn nibble(digit: u8) -> Result<u8, HexError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(HexError::Digit),
    }
}

fn hex_digit(nibble: u8) -> char {
    char::from(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 })
}

macro_rules! byte_string {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The value whose bytes are all zero.
            pub const ZERO: Self = Self([0; $len]);

            /// Whether every byte is zero.
            pub fn is_zero(&self) -> bool {
                self.0.iter().all(|byte| *byte == 0)
            }

            /// The bytes, most significant first.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            fn from_str(text: &str) -> Result<Self, HexError> {
                decode_fixed(text).map(Self)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

byte_string!(
    /// An account or contract of the chain, 20 bytes. Text is the EIP-55 checksummed form; any case is read.
    Address,
    20
);
byte_string!(
    /// The id of a payment channel: the EIP-712 digest of its configuration, so it is bound to one chain and one
    /// settlement contract. Text is lower-case hex.
    ChannelId,
    32
);
byte_string!(
    /// A 32-byte hash, salt or transaction id. Text is lower-case hex.
    Hash,
    32
);

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_hex(&self.0))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_hex(&self.0))
    }
}

impl fmt::Display for Address {
    /// The mixed-case checksum of EIP-55: a letter is upper case where the hash of the lower-case digits has a nibble
    /// of 8 or more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lower = encode_hex(&self.0);
        let digits = lower.trim_start_matches("0x");
        let hash = keccak256(digits.as_bytes());
        let nibbles = hash.0.iter().flat_map(|byte| [byte >> 4, byte & 0x0f]);
        let mut out = String::with_capacity(42);
        out.push_str("0x");
        out.extend(digits.chars().zip(nibbles).map(
            |(digit, nibble)| {
                if nibble >= 8 { digit.to_ascii_uppercase() } else { digit }
            },
        ));
        f.write_str(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_carry_the_eip55_checksum() {
        for text in [
            "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
            "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
            "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
        ] {
            let address: Address = text.to_ascii_lowercase().replace("0X", "0x").parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn a_channel_id_is_exactly_64_hex_digits() {
        let good = format!("0x{}", "a".repeat(64));
        assert!(good.parse::<ChannelId>().is_ok());
        for bad in ["../x".to_owned(), format!("0x{}", "a".repeat(63)), format!("0x{}", "g".repeat(64)), "a".repeat(64)]
        {
            assert!(bad.parse::<ChannelId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keccak_of_nothing_is_the_known_constant() {
        assert_eq!(keccak256(b"").to_string(), "0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470");
    }

    #[test]
    fn a_word_is_read_from_its_one_decimal_form() {
        let most = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
        assert_eq!(decode_decimal(most), Some(Hash([0xff; 32])));
        assert_eq!(encode_decimal(&Hash([0xff; 32])), most);
        let beyond = most.replace("9935", "9936");
        for bad in ["", "00", "01", "+1", "-1", "1 ", "0x1", "1.0", &beyond, &format!("{most}0"), &"9".repeat(999)] {
            assert_eq!(decode_decimal(bad), None, "{bad}");
        }
        let mut word = Hash::ZERO;
        assert_eq!((decode_decimal("0"), encode_decimal(&word).as_str()), (Some(word), "0"));
        word.0[30] = 1;
        assert_eq!((decode_decimal("256"), encode_decimal(&word).as_str()), (Some(word), "256"));
    }
}
