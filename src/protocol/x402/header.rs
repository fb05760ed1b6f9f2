//! Base64 of JSON in a header, with a limit.

use std::cell::RefCell;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The quote's header.
pub const PAYMENT_REQUIRED: &str = "payment-required";
/// The payment's header.
pub const PAYMENT_SIGNATURE: &str = "payment-signature";
/// The receipt's header.
pub const PAYMENT_RESPONSE: &str = "payment-response";
/// The payment's header in x402 version 1, which has no `batch-settlement`; known only to be refused and stripped.
pub const X_PAYMENT: &str = "x-payment";
/// The receipt's header in x402 version 1; known only to be stripped.
pub const X_PAYMENT_RESPONSE: &str = "x-payment-response";

/// The longest payment header that is looked at, in bytes. A voucher takes about 1.5 kB, a deposit 2 kB; extensions and
/// long resource URLs add to that.
pub const MAX_PAYMENT_HEADER_BYTES: usize = 16 * 1024;

/// Why a header could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Above [`MAX_PAYMENT_HEADER_BYTES`].
    #[error("the header is longer than {MAX_PAYMENT_HEADER_BYTES} bytes")]
    TooLarge,
    /// Not base64 in the standard alphabet (padding is optional).
    #[error("the header is not base64 in the standard alphabet")]
    Base64,
    /// Base64, but of something else than the expected JSON.
    #[error("the header is not the expected JSON: {0}")]
    Json(String),
}

/// How much room a thread keeps for its next header, in bytes: what the longest header holds and some more.
const MAX_KEPT_BYTES: usize = 2 * MAX_PAYMENT_HEADER_BYTES;

/// The engine that uses the processor's vector instructions, where there is one for it.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
type Base64 = base64::engine::Simd;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Base64 = base64::engine::GeneralPurpose;

/// Standard alphabet; clients send padding or not, both are fine.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
static BASE64: LazyLock<Base64> = LazyLock::new(|| Base64::standard(LENIENT));
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
static BASE64: LazyLock<Base64> = LazyLock::new(|| Base64::new(&base64::alphabet::STANDARD, LENIENT));

thread_local! {
    /// Room for the JSON of one header at a time, so that a request needs none of its own.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Does something with an empty buffer that is used again. What is in it afterwards is gone, and so is room beyond
/// [`MAX_KEPT_BYTES`].
pub(super) fn with_room<R>(work: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    ROOM.with(|room| {
        // It is taken out meanwhile: should the work come here again, it finds another one.
        let mut buffer = room.take();
        let result = work(&mut buffer);
        buffer.clear();
        buffer.shrink_to(MAX_KEPT_BYTES);
        room.replace(buffer);
        result
    })
}

/// The header text of a value.
pub fn encode<T: Serialize>(value: &T) -> String {
    encode_written(|json| serde_json::to_writer(json, value).expect("header types have string keys and serialise"))
}

/// The header text of the JSON that `write` writes into an empty buffer.
pub(super) fn encode_written(write: impl FnOnce(&mut Vec<u8>)) -> String {
    with_room(|json| {
        write(json);
        base64_of(json)
    })
}

pub(super) fn base64_of(json: &[u8]) -> String {
    BASE64.encode(json)
}

/// Reads a header text.
pub fn decode<T: DeserializeOwned>(text: &[u8]) -> Result<T, HeaderError> {
    with_json(text, parse)?
}

/// Reads the JSON that was in a header.
pub(super) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, HeaderError> {
    serde_json::from_slice(json).map_err(|error| HeaderError::Json(error.to_string()))
}

/// Does something with the JSON in a header text.
pub(super) fn with_json<R>(text: &[u8], work: impl FnOnce(&[u8]) -> R) -> Result<R, HeaderError> {
    if text.len() > MAX_PAYMENT_HEADER_BYTES {
        return Err(HeaderError::TooLarge);
    }
    with_room(|json| match BASE64.decode_vec(text, json) {
        Ok(()) => Ok(work(json)),
        Err(_) => Err(HeaderError::Base64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::GeneralPurpose;
    use proptest::prelude::*;

    #[test]
    fn padding_is_optional_and_the_alphabet_is_not() {
        // {"a":"~~~?"} needs both padding and a character outside the URL-safe alphabet.
        let value = serde_json::json!({"a": "~~~??"});
        let text = encode(&value);
        assert!(text.ends_with('=') && (text.contains('/') || text.contains('+')), "{text}");
        assert_eq!(decode::<serde_json::Value>(text.as_bytes()), Ok(value.clone()));
        assert_eq!(decode::<serde_json::Value>(text.trim_end_matches('=').as_bytes()), Ok(value));
        let url_safe = text.replace('+', "-").replace('/', "_");
        assert_eq!(decode::<serde_json::Value>(url_safe.as_bytes()), Err(HeaderError::Base64));
    }

    #[test]
    fn the_limit_is_exact() {
        let at_limit = vec![b'!'; MAX_PAYMENT_HEADER_BYTES];
        assert_eq!(decode::<serde_json::Value>(&at_limit), Err(HeaderError::Base64));
        let above = vec![b'!'; MAX_PAYMENT_HEADER_BYTES + 1];
        assert_eq!(decode::<serde_json::Value>(&above), Err(HeaderError::TooLarge));
    }

    #[test]
    fn room_is_found_within_room_and_does_not_grow_for_good() {
        with_room(|outer| {
            outer.extend_from_slice(b"outer");
            with_room(|inner| assert!(inner.is_empty()));
            assert_eq!(outer, b"outer");
            outer.resize(10 * MAX_KEPT_BYTES, 0);
        });
        with_room(|room| assert!(room.is_empty() && room.capacity() <= MAX_KEPT_BYTES));
    }

    /// The scalar engine, by which the fast one is judged.
    const SCALAR: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);

    proptest! {
        #[test]
        fn vector_instructions_change_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let text = BASE64.encode(&bytes);
            prop_assert_eq!(&text, &SCALAR.encode(&bytes));
            prop_assert_eq!(BASE64.decode(&text), Ok(bytes));
        }

        #[test]
        fn what_is_no_base64_is_none_with_vector_instructions(
            bytes in proptest::collection::vec(any::<u8>(), 60..300),
            at: prop::sample::Index,
            wrong: u8,
            cut in 0usize..6,
        ) {
            let mut text = SCALAR.encode(&bytes).into_bytes();
            let at = at.index(text.len());
            text[at] = wrong;
            text.truncate(text.len() - cut);
            prop_assert_eq!(BASE64.decode(&text).ok(), SCALAR.decode(&text).ok());
        }
    }
}
