//! Payments: what a client sends to be served.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::direct;
use super::header::{self, HeaderError};
use super::offer::{Accepted, Echo, SCHEME, VERSION, WrittenOffer};
use crate::protocol::amount::Amount;
use crate::protocol::bytes::{Address, ChannelId, Hash, decode_decimal};
use crate::protocol::channel::ChannelConfig;
use crate::protocol::code::Code;
use crate::protocol::deposit::{Authorization, EIP2612_SPONSORING, Permission, Permit2Authorization, TokenPermit};
use crate::protocol::signature::Signature;
use crate::protocol::voucher::SignedVoucher;

/// The `PAYMENT-SIGNATURE` header, read and well-formed; nothing in it is verified.
#[derive(Debug, Clone)]
pub struct Payment<'o> {
    /// The offer it answers.
    pub accepted: Echo<'o>,
    /// Extensions the client echoes or adds.
    pub extensions: Map<String, Value>,
    /// The channel it draws on.
    pub config: ChannelConfig,
    /// The voucher that pays, or proves who asks.
    pub voucher: SignedVoucher,
    /// What is asked for.
    pub action: Action,
    /// How the voucher was signed.
    pub order: Order,
}

/// How a client signs the vouchers of its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// One after the other: each is the price above what was charged before.
    #[default]
    InTurn,
    /// Ahead of the answers to those before it, the price above the one before: `"signedAhead": true` in the payload, where
    /// the offer says how many ([`super::MAX_IN_FLIGHT`]). They may arrive in any order.
    Ahead,
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
    pub authorization: Permission,
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
    permit2_authorization: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Erc3009Part {
    valid_after: Value,
    valid_before: Value,
    salt: Hash,
    signature: Signature,
}

#[derive(Deserialize)]
struct Permit2Part {
    from: Address,
    permitted: PermittedPart,
    spender: Address,
    nonce: String,
    deadline: Value,
    witness: WitnessPart,
    signature: Signature,
}

#[derive(Deserialize)]
struct PermittedPart {
    token: Address,
    amount: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WitnessPart {
    channel_id: ChannelId,
}

#[derive(Deserialize)]
struct PermitPart {
    from: Address,
    asset: Address,
    spender: Address,
    amount: String,
    nonce: String,
    deadline: Value,
    signature: Signature,
}

impl Payment<'static> {
    /// Reads the header. Checks in the order a client would want to hear about them: encoding, version, offer, payload.
    pub fn read(text: &[u8]) -> Result<Self, PaymentError> {
        Self::of(header::decode(text)?)
    }

    fn of(envelope: Envelope) -> Result<Self, PaymentError> {
        if envelope.x402_version.as_u64() != Some(VERSION) {
            let shown: String = envelope.x402_version.to_string().chars().take(MAX_SHOWN_CHARS).collect();
            return Err(PaymentError::Version(shown));
        }
        if envelope.accepted.get("scheme").and_then(Value::as_str) != Some(SCHEME) {
            return Err(PaymentError::Accepted);
        }
        let accepted: Accepted = serde_json::from_value(envelope.accepted).map_err(|_| PaymentError::Accepted)?;
        let kind = Kind::of(&envelope.payload)?;
        let config = part(&envelope.payload, "channelConfig", kind.malformed())?;
        let voucher = voucher(&envelope.payload, kind)?;
        let extensions = envelope.extensions.unwrap_or_default();
        let action = match kind {
            Kind::Voucher => Action::Pay,
            Kind::Deposit => Action::DepositAndPay(deposit(&envelope.payload, &accepted, &extensions)?),
            Kind::Refund => Action::Refund(refund(&envelope.payload)?),
        };
        let ahead = matches!(kind, Kind::Voucher) && envelope.payload.get(SIGNED_AHEAD) == Some(&Value::Bool(true));
        let order = if ahead { Order::Ahead } else { Order::InTurn };
        Ok(Self { accepted: Echo::Other(accepted), extensions, config, voucher, action, order })
    }
}

impl<'o> Payment<'o> {
    /// Reads the header of a request that these were offered for. The result is that of [`Payment::read`], errors included;
    /// a plain voucher that answers one of the offers takes a small part of the time, the smallest for the first.
    pub fn read_for(
        text: &[u8],
        offers: impl IntoIterator<Item = &'o WrittenOffer> + Clone,
    ) -> Result<Self, PaymentError> {
        header::with_json(text, |json| match direct::read(json, offers) {
            Some(payment) => Ok(payment),
            None => Payment::of(header::parse(json)?),
        })?
    }
}

/// The key of a payload whose voucher was signed ahead.
pub const SIGNED_AHEAD: &str = "signedAhead";

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

fn deposit(payload: &Value, accepted: &Accepted, extensions: &Map<String, Value>) -> Result<Deposit, PaymentError> {
    let part: DepositPart = part(payload, "deposit", Code::DepositPayload)?;
    let AuthorizationPart { erc3009_authorization, permit2_authorization } = part.authorization;
    let authorization = match (erc3009_authorization, permit2_authorization, accepted.asks_permit2()) {
        (Some(_), Some(_), _) => {
            return Err(malformed("payload.deposit.authorization must hold exactly one authorization"));
        }
        (Some(authorization), None, _) => erc3009(authorization)?.into(),
        (None, Some(authorization), true) => {
            let part = Permit2Part::deserialize(authorization)
                .map_err(|error| malformed(&format!("payload.deposit.authorization.permit2Authorization: {error}")))?;
            permit2(part, token_permit(extensions)?)?.into()
        }
        (None, None, true) => return Err(missing(Code::Permit2AuthorizationRequired, "permit2Authorization")),
        // Whatever else is there, it is not what was asked for.
        (None, _, false) => return Err(missing(Code::Erc3009AuthorizationRequired, "erc3009Authorization")),
    };
    if part.amount.is_zero() {
        return Err(malformed("payload.deposit.amount must be above zero"));
    }
    Ok(Deposit { amount: part.amount, authorization })
}

fn missing(code: Code, name: &str) -> PaymentError {
    PaymentError::Payload { code, detail: format!("payload.deposit.authorization.{name} is missing") }
}

fn malformed(detail: &str) -> PaymentError {
    PaymentError::Payload { code: Code::DepositPayload, detail: detail.to_owned() }
}

/// A time beyond 64 bits of seconds is later than any chain's clock; the digest needs the exact number, so it is refused
/// and not clamped.
fn seconds(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => text.parse::<Amount>().ok().and_then(|amount| u64::try_from(amount.units()).ok()),
        Value::Number(number) => number.as_u64(),
        _ => None,
    }
}

fn erc3009(part: Erc3009Part) -> Result<Authorization, PaymentError> {
    let time =
        |value: &Value, name: &str| seconds(value).ok_or_else(|| malformed(&format!("{name} must be Unix seconds")));
    Ok(Authorization {
        valid_after: time(&part.valid_after, "validAfter")?,
        valid_before: time(&part.valid_before, "validBefore")?,
        salt: part.salt,
        signature: part.signature,
    })
}

fn permit2(part: Permit2Part, permit: Option<TokenPermit>) -> Result<Permit2Authorization, PaymentError> {
    let Permit2Part { from, permitted, spender, nonce, deadline, witness, signature } = part;
    let unreadable = |name: &str, what: &str| malformed(&format!("permit2Authorization.{name} must be {what}"));
    Ok(Permit2Authorization {
        from,
        token: permitted.token,
        amount: amount(&permitted.amount, Code::DepositPayload, Code::Permit2AmountMismatch)?,
        spender,
        nonce: decode_decimal(&nonce).ok_or_else(|| unreadable("nonce", "a decimal number of 256 bits"))?,
        deadline: seconds(&deadline).ok_or_else(|| unreadable("deadline", "Unix seconds"))?,
        channel: witness.channel_id,
        signature,
        permit,
    })
}

/// An amount of a contract's: more than any deposit can be is another amount than the deposit's, and nothing worse.
fn amount(text: &str, malformed: Code, too_large: Code) -> Result<Amount, PaymentError> {
    text.parse::<Amount>().map_err(|error| {
        let code = if decode_decimal(text).is_some() { too_large } else { malformed };
        PaymentError::Payload { code, detail: format!("the permitted amount: {error}") }
    })
}

/// The EIP-2612 permit among the extensions. A client that needs none echoes what it was offered, which has no part of a
/// permit; one that has some parts must have them all.
fn token_permit(extensions: &Map<String, Value>) -> Result<Option<TokenPermit>, PaymentError> {
    const PARTS: [&str; 7] = ["from", "asset", "spender", "amount", "nonce", "deadline", "signature"];
    let info = extensions.get(EIP2612_SPONSORING).and_then(|extension| extension.get("info"));
    let Some(info) = info.filter(|info| PARTS.iter().any(|part| info.get(part).is_some())) else { return Ok(None) };
    let code = Code::Eip2612InvalidFormat;
    let unreadable = |detail: String| PaymentError::Payload { code, detail };
    let part = PermitPart::deserialize(info).map_err(|error| unreadable(error.to_string()))?;
    if part.signature.parts().is_none() {
        return Err(unreadable("the signature of a permit has 65 bytes".to_owned()));
    }
    let nonce = decode_decimal(&part.nonce);
    Ok(Some(TokenPermit {
        owner: part.from,
        token: part.asset,
        spender: part.spender,
        amount: amount(&part.amount, code, Code::Eip2612AmountMismatch)?,
        nonce: nonce.ok_or_else(|| unreadable("nonce must be a decimal number of 256 bits".to_owned()))?,
        deadline: seconds(&part.deadline).ok_or_else(|| unreadable("deadline must be Unix seconds".to_owned()))?,
        signature: part.signature,
    }))
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
