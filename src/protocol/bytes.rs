//! Fixed-size byte strings with a strict text form: addresses, channel ids, digests.
//!
//! **Owns** hexadecimal in and out, by tables: a payment header has some 460 digits. **Promises** that a value was read from exactly the right number of digits, and
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
    let mut out = vec![0; digits.len() / 2];
    if decode_digits(digits, &mut out) { Ok(out) } else { Err(HexError::Digit) }
}

/// Writes `0x` and lower-case hex digits.
pub fn encode_hex(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(2 + bytes.len() * 2);
    out.extend_from_slice(b"0x");
    bytes.iter().for_each(|byte| out.extend_from_slice(&digits_of(*byte)));
    String::from_utf8(out).expect("hex digits are ASCII")
}

/// Reads `0x` and exactly `2 N` hex digits of either case.
pub fn decode_fixed<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let digits = text.strip_prefix("0x").ok_or(HexError::NoPrefix)?.as_bytes();
    if digits.len() != N * 2 {
        return Err(HexError::Length { expected: N * 2, found: digits.len() });
    }
    let mut out = [0u8; N];
    if decode_digits(digits, &mut out) { Ok(out) } else { Err(HexError::Digit) }
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

/// Reads two digits for each byte of `out`, and says whether all of them were hex digits. Both have the same length, in
/// bytes.
pub(super) fn decode_digits(digits: &[u8], out: &mut [u8]) -> bool {
    let mut odd = 0;
    for (slot, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return false };
        let (high, low) = (nibble(*high), nibble(*low));
        // No value of a digit has a bit in the upper half.
        odd |= high | low;
        *slot = (high << 4) | (low & 0x0f);
    }
    odd & 0xf0 == 0
}

/// What stands in [`NIBBLES`] for a character that is no hex digit.
const NO_DIGIT: u8 = 0xff;

/// The value of every hex digit.
static NIBBLES: [u8; 256] = {
    let mut table = [NO_DIGIT; 256];
    let (mut rest, mut digit): (&mut [u8], u8) = (&mut table, 0);
    // Const code has neither iterators nor ranges.
    while let Some((slot, tail)) = rest.split_first_mut() {
        *slot = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            b'A'..=b'F' => digit - b'A' + 10,
            _ => NO_DIGIT,
        };
        digit = digit.wrapping_add(1);
        rest = tail;
    }
    table
};

fn nibble(digit: u8) -> u8 {
    NIBBLES.get(usize::from(digit)).copied().unwrap_or(NO_DIGIT)
}

/// The two lower-case digits of a byte.
fn digits_of(byte: u8) -> [u8; 2] {
    [hex_digit(byte >> 4), hex_digit(byte & 0x0f)]
}

fn hex_digit(nibble: u8) -> u8 {
    b"0123456789abcdef".get(usize::from(nibble)).copied().unwrap_or(b'0')
}

/// Fills `text` with `0x` and the digits of `bytes`.
fn write_text(bytes: &[u8], text: &mut [u8]) {
    let (prefix, digits) = text.split_at_mut(2);
    prefix.copy_from_slice(b"0x");
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&digits_of(*byte));
    }
}

macro_rules! byte_string {
    ($(#[$doc:meta])* $name:ident, $len:literal, $text_len:literal) => {
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

            /// `0x` and lower-case hex digits, in ASCII.
            pub fn lower_text(&self) -> [u8; $text_len] {
                let mut text = [0; $text_len];
                write_text(&self.0, &mut text);
                text
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
    20,
    42
);
byte_string!(
    /// The id of a payment channel: the EIP-712 digest of its configuration, so it is bound to one chain and one
    /// settlement contract. Text is lower-case hex.
    ChannelId,
    32,
    66
);
byte_string!(
    /// A 32-byte hash, salt or transaction id. Text is lower-case hex.
    Hash,
    32,
    66
);

impl Address {
    /// The text, in ASCII: the mixed-case checksum of EIP-55, where a letter is upper case if the hash of the lower-case
    /// digits has a nibble of 8 or more. Takes a hash.
    pub fn text(&self) -> [u8; 42] {
        let mut text = self.lower_text();
        let (_, digits) = text.split_at_mut(2);
        let hash = keccak256(digits);
        let nibbles = hash.0.iter().flat_map(|byte| [byte >> 4, byte & 0x0f]);
        for (digit, nibble) in digits.iter_mut().zip(nibbles) {
            if nibble >= 8 {
                digit.make_ascii_uppercase();
            }
        }
        text
    }
}

fn show(text: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(std::str::from_utf8(text).expect("hex digits are ASCII"))
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&self.lower_text(), f)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&self.lower_text(), f)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&self.text(), f)
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
    fn every_byte_survives_its_two_digits_and_no_other_character_is_one() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode_hex(&encode_hex(&all)), Ok(all.clone()));
        assert_eq!(decode_hex(&encode_hex(&all).to_uppercase().replace("0X", "0x")), Ok(all.clone()));
        for other in all {
            let expected = other.is_ascii_hexdigit();
            let mut byte = [0];
            assert_eq!(decode_digits(&[other, b'0'], &mut byte), expected, "{other}");
            assert_eq!(decode_digits(&[b'f', other], &mut byte), expected, "{other}");
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
