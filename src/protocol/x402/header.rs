//! Base64 of JSON in a header, with a limit.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
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

/// Standard alphabet; clients send padding or not, both are fine.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The header text of a value.
pub fn encode<T: Serialize>(value: &T) -> String {
    STANDARD.encode(serde_json::to_vec(value).expect("header types have string keys and serialise"))
}

/// Reads a header text.
pub fn decode<T: DeserializeOwned>(text: &[u8]) -> Result<T, HeaderError> {
    if text.len() > MAX_PAYMENT_HEADER_BYTES {
        return Err(HeaderError::TooLarge);
    }
    let json = LENIENT.decode(text).map_err(|_| HeaderError::Base64)?;
    serde_json::from_slice(&json).map_err(|error| HeaderError::Json(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
