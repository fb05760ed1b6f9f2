//! Payments: what a client sends to be served.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::header::{self, HeaderError};
use super::offer::{Accepted, SCHEME, VERSION};
use crate::protocol::amount::Amount;
use crate::protocol::bytes::{ChannelId, Hash};
use crate::protocol::channel::ChannelConfig;
use crate::protocol::code::Code;
use crate::protocol::deposit::Authorization;
use crate::protocol::voucher::SignedVoucher;

/// The `PAYMENT-SIGNATURE` header, read and well-formed; nothing in it is verified.
#[derive(Debug, Clone)]
pub struct Payment {
    /// The offer it answers.
    pub accepted: Accepted,
    /// Extensions the client echoes or adds.
    pub extensions: Map<String, Value>,
    /// The channel it draws on.
    pub config: ChannelConfig,
    /// The voucher that pays, or proves who asks.
    pub voucher: SignedVoucher,
    /// What is asked for.
    pub action: Action,
}

/// What a payment asks for.
#[derive(Debug, Clone)]
pub enum Action {
    /// Serve the request and charge the channel.
    Pay,
    /// Relay this deposit, then serve the request and charge the channel.
    DepositAndPay(Deposit),
    /// Give back what is left; serve nothing.
    Refund(RefundRequest),
}

/// A deposit to relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deposit {
    /// How much is deposited, in atomic units.
    pub amount: Amount,
    /// The payer's permission to move it.
    pub authorization: Authorization,
}

/// How much a refund asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefundRequest {
    /// All that was not charged.
    Remainder,
    /// So much, or all that was not charged if that is less: the contract caps it the same way. Never zero.
    Amount(Amount),
}

/// Why a payment header is no payment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PaymentError {
    /// Not base64 of JSON.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A protocol version that is not ours.
    #[error("Unsupported x402 version: {0}")]
    Version(String),
    /// The echo of the offer is missing or has no readable form.
    #[error("No matching payment requirements")]
    Accepted,
    /// A part of the scheme's payload is malformed.
    #[error("{code}: {detail}")]
    Payload {
        /// Which part.
        code: Code,
        /// What is wrong with it.
        detail: String,
    },
}

impl PaymentError {
    /// The code to answer with, where it is not the version's own text.
    pub fn code(&self) -> Code {
        match self {
            Self::Header(HeaderError::TooLarge) => Code::PaymentTooLarge,
            Self::Header(_) | Self::Version(_) => Code::MalformedPayment,
            Self::Accepted => Code::NoMatchingRequirements,
            Self::Payload { code, .. } => *code,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    x402_version: Value,
    #[serde(default)]
    accepted: Value,
    #[serde(default)]
    payload: Value,
    #[serde(default)]
    extensions: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct DepositPart {
    amount: Amount,
    authorization: AuthorizationPart,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthorizationPart {
    erc3009_authorization: Option<Erc3009Part>,
    permit2_authorization: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Erc3009Part {
    valid_after: Value,
    valid_before: Value,
    salt: Hash,
    signature: crate::protocol::signature::Signature,
}

impl Payment {
    /// Reads the header. Checks in the order a client would want to hear about them: encoding, version, offer, payload.
    pub fn read(text: &[u8]) -> Result<Self, PaymentError> {
        let envelope: Envelope = header::decode(text)?;
        if envelope.x402_version.as_u64() != Some(VERSION) {
            let shown: String = envelope.x402_version.to_string().chars().take(MAX_SHOWN_CHARS).collect();
            return Err(PaymentError::Version(shown));
        }
        if envelope.accepted.get("scheme").and_then(Value::as_str) != Some(SCHEME) {
            return Err(PaymentError::Accepted);
        }
        let accepted = serde_json::from_value(envelope.accepted).map_err(|_| PaymentError::Accepted)?;
        let kind = Kind::of(&envelope.payload)?;
        let config = part(&envelope.payload, "channelConfig", kind.malformed())?;
        let voucher = voucher(&envelope.payload, kind)?;
        let action = match kind {
            Kind::Voucher => Action::Pay,
            Kind::Deposit => Action::DepositAndPay(deposit(&envelope.payload)?),
            Kind::Refund => Action::Refund(refund(&envelope.payload)?),
        };
        let extensions = envelope.extensions.unwrap_or_default();
        Ok(Self { accepted, extensions, config, voucher, action })
    }
}

/// How much of a client's own text goes into an error message, in characters.
const MAX_SHOWN_CHARS: usize = 40;

#[derive(Clone, Copy)]
enum Kind {
    Voucher,
    Deposit,
    Refund,
}

impl Kind {
    fn of(payload: &Value) -> Result<Self, PaymentError> {
        match payload.get("type").and_then(Value::as_str) {
            Some("voucher") => Ok(Self::Voucher),
            Some("deposit") => Ok(Self::Deposit),
            Some("refund") => Ok(Self::Refund),
            _ => Err(PaymentError::Payload {
                code: Code::PayloadType,
                detail: "payload.type must be \"voucher\", \"deposit\" or \"refund\"".to_owned(),
            }),
        }
    }

    fn malformed(self) -> Code {
        match self {
            Self::Voucher => Code::VoucherPayload,
            Self::Deposit => Code::DepositPayload,
            Self::Refund => Code::RefundPayload,
        }
    }
}

fn part<T: serde::de::DeserializeOwned>(payload: &Value, key: &str, code: Code) -> Result<T, PaymentError> {
    let value =
        payload.get(key).ok_or_else(|| PaymentError::Payload { code, detail: format!("payload.{key} is missing") })?;
    T::deserialize(value).map_err(|error| PaymentError::Payload { code, detail: format!("payload.{key}: {error}") })
}

/// The voucher. A malformed channel id has a code of its own, because ids become storage keys.
fn voucher(payload: &Value, kind: Kind) -> Result<SignedVoucher, PaymentError> {
    let id = payload.get("voucher").and_then(|voucher| voucher.get("channelId"));
    if let Some(Err(error)) = id.map(|id| id.as_str().unwrap_or_default().parse::<ChannelId>()) {
        let detail = format!("payload.voucher.channelId: {error}");
        return Err(PaymentError::Payload { code: Code::ChannelIdInvalid, detail });
    }
    part(payload, "voucher", kind.malformed())
}

fn deposit(payload: &Value) -> Result<Deposit, PaymentError> {
    let malformed = |detail: &str| PaymentError::Payload { code: Code::DepositPayload, detail: detail.to_owned() };
    let part: DepositPart = part(payload, "deposit", Code::DepositPayload)?;
    let authorization = match (part.authorization.erc3009_authorization, part.authorization.permit2_authorization) {
        (Some(_), Some(_)) => {
            return Err(malformed("payload.deposit.authorization must hold exactly one authorization"));
        }
        (None, _) => {
            return Err(PaymentError::Payload {
                code: Code::Erc3009AuthorizationRequired,
                detail: "payload.deposit.authorization.erc3009Authorization is missing".to_owned(),
            });
        }
        (Some(authorization), None) => authorization,
    };
    if part.amount.is_zero() {
        return Err(malformed("payload.deposit.amount must be above zero"));
    }
    let seconds = |value: &Value| match value {
        // A time beyond 64 bits of seconds is later than any chain's clock; the digest needs the exact number, so
        // it is refused and not clamped.
        Value::String(text) => text.parse::<Amount>().ok().and_then(|amount| u64::try_from(amount.units()).ok()),
        Value::Number(number) => number.as_u64(),
        _ => None,
    };
    let valid_after =
        seconds(&authorization.valid_after).ok_or_else(|| malformed("validAfter must be Unix seconds"))?;
    let valid_before =
        seconds(&authorization.valid_before).ok_or_else(|| malformed("validBefore must be Unix seconds"))?;
    Ok(Deposit {
        amount: part.amount,
        authorization: Authorization {
            valid_after,
            valid_before,
            salt: authorization.salt,
            signature: authorization.signature,
        },
    })
}

fn refund(payload: &Value) -> Result<RefundRequest, PaymentError> {
    let invalid = || PaymentError::Payload {
        code: Code::RefundAmountInvalid,
        detail: "payload.amount must be a decimal string above zero".to_owned(),
    };
    match payload.get("amount") {
        None | Some(Value::Null) => Ok(RefundRequest::Remainder),
        Some(value) => match value.as_str().map(str::parse::<Amount>) {
            Some(Ok(amount)) if !amount.is_zero() => Ok(RefundRequest::Amount(amount)),
            _ => Err(invalid()),
        },
    }
}
