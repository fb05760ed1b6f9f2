//! The payment header.
//!
//! **Owns** the JSON of `PAYMENT-SIGNATURE`. **Promises** that an offer is echoed as it came. **Does not** decide what
//! goes into it.

use http::HeaderValue;
use serde_json::{Map, Value, json};

use super::AgentError;
use crate::protocol::deposit::Authorization;
use crate::protocol::x402::{MAX_PAYMENT_HEADER_BYTES, VERSION, encode};
use crate::protocol::{Amount, ChannelConfig, SignedVoucher};

/// What a payment asks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind<'a> {
    Voucher,
    Deposit(Amount, &'a Authorization),
    /// Of so much, or of all that is left.
    Refund(Option<Amount>),
}

/// What the server made of itself in its quote, to be echoed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Echo<'a> {
    pub(super) accepted: &'a Value,
    pub(super) resource: Option<&'a Value>,
    pub(super) extensions: Option<&'a Value>,
}

/// Makes the header. It is marked sensitive, so that no log shows it.
pub(super) fn header(
    echo: Echo<'_>,
    config: &ChannelConfig,
    voucher: &SignedVoucher,
    kind: Kind<'_>,
) -> Result<HeaderValue, AgentError> {
    let mut payload = Map::new();
    let kind_name = match kind {
        Kind::Voucher => "voucher",
        Kind::Deposit(amount, authorization) => {
            let authorization = json!({ "erc3009Authorization": {
                "validAfter": authorization.valid_after.to_string(),
                "validBefore": authorization.valid_before.to_string(),
                "salt": authorization.salt,
                "signature": authorization.signature,
            }});
            payload.insert("deposit".to_owned(), json!({ "amount": amount, "authorization": authorization }));
            "deposit"
        }
        Kind::Refund(amount) => {
            if let Some(amount) = amount {
                payload.insert("amount".to_owned(), json!(amount));
            }
            "refund"
        }
    };
    payload.insert("type".to_owned(), json!(kind_name));
    payload.insert("channelConfig".to_owned(), json!(config));
    payload.insert("voucher".to_owned(), json!(voucher));
    let mut object = Map::new();
    object.insert("x402Version".to_owned(), json!(VERSION));
    object.insert("accepted".to_owned(), echo.accepted.clone());
    object.insert("payload".to_owned(), Value::Object(payload));
    for (key, value) in [("resource", echo.resource), ("extensions", echo.extensions)] {
        if let Some(value) = value {
            object.insert(key.to_owned(), value.clone());
        }
    }
    let text = encode(&object);
    if text.len() > MAX_PAYMENT_HEADER_BYTES {
        return Err(AgentError::PaymentTooLarge { bytes: text.len() });
    }
    let mut value = HeaderValue::try_from(text).expect("base64 is visible ASCII");
    value.set_sensitive(true);
    Ok(value)
}
