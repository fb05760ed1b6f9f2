//! The payment header.
//!
//! **Owns** the JSON of `PAYMENT-SIGNATURE`. **Promises** that an offer is echoed as it came. **Does not** decide what
//! goes into it.

use http::HeaderValue;
use serde_json::{Map, Value, json};

use super::AgentError;
use crate::protocol::bytes::encode_decimal;
use crate::protocol::deposit::{Authorization, EIP2612_SPONSORING, Permission, Permit2Authorization, TokenPermit};
use crate::protocol::x402::{MAX_PAYMENT_HEADER_BYTES, PAYMENT_IDENTIFIER, SIGNED_AHEAD, VERSION, encode};
use crate::protocol::{Amount, ChannelConfig, SignedVoucher};

/// What a payment asks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind<'a> {
    Voucher,
    /// A voucher signed ahead of the answers to others.
    Ahead,
    Deposit(Amount, &'a Permission),
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

/// Whether payments for a quote with these extensions have a name, by which the server knows one that comes again.
pub(super) fn is_named(extensions: Option<&Value>) -> bool {
    let pointer = |extensions: &Value| extensions.get(PAYMENT_IDENTIFIER)?.get("info").map(Value::is_object);
    extensions.and_then(pointer) == Some(true)
}

fn identifier_info(extensions: &mut Value) -> Option<&mut Map<String, Value>> {
    extensions.get_mut(PAYMENT_IDENTIFIER)?.get_mut("info")?.as_object_mut()
}

/// A name that no other payment has.
fn new_identifier() -> Result<String, AgentError> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).map_err(|_| AgentError::System("randomness"))?;
    Ok(format!("pay_{:032x}", u128::from_be_bytes(random)))
}

/// Makes the header, with a name of its own where the quote takes one. It is marked sensitive, so that no log shows it.
pub(super) fn header(
    echo: Echo<'_>,
    config: &ChannelConfig,
    voucher: &SignedVoucher,
    kind: Kind<'_>,
) -> Result<HeaderValue, AgentError> {
    let mut payload = Map::new();
    let mut permit = None;
    let kind_name = match kind {
        Kind::Voucher => "voucher",
        Kind::Ahead => {
            payload.insert(SIGNED_AHEAD.to_owned(), json!(true));
            "voucher"
        }
        Kind::Deposit(amount, permission) => {
            let authorization = match permission {
                Permission::Erc3009(authorization) => json!({ "erc3009Authorization": erc3009(authorization) }),
                Permission::Permit2(authorization) => {
                    permit = authorization.permit.as_ref();
                    json!({ "permit2Authorization": permit2(authorization) })
                }
            };
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
    if !matches!(kind, Kind::Refund(_))
        && let Some(info) = object.get_mut("extensions").and_then(identifier_info)
    {
        info.insert("id".to_owned(), json!(new_identifier()?));
    }
    if let Some(permit) = permit {
        add_permit(object.entry("extensions").or_insert_with(|| json!({})), permit);
    }
    let text = encode(&object);
    if text.len() > MAX_PAYMENT_HEADER_BYTES {
        return Err(AgentError::PaymentTooLarge { bytes: text.len() });
    }
    let mut value = HeaderValue::try_from(text).expect("base64 is visible ASCII");
    value.set_sensitive(true);
    Ok(value)
}

fn erc3009(authorization: &Authorization) -> Value {
    json!({
        "validAfter": authorization.valid_after.to_string(),
        "validBefore": authorization.valid_before.to_string(),
        "salt": authorization.salt,
        "signature": authorization.signature,
    })
}

fn permit2(authorization: &Permit2Authorization) -> Value {
    json!({
        "from": authorization.from,
        "permitted": { "token": authorization.token, "amount": authorization.amount },
        "spender": authorization.spender,
        "nonce": encode_decimal(&authorization.nonce),
        "deadline": authorization.deadline.to_string(),
        "witness": { "channelId": authorization.channel },
        "signature": authorization.signature,
    })
}

/// Puts a permit beside what the server advertised, which stays as it came.
fn add_permit(extensions: &mut Value, permit: &TokenPermit) {
    let ours = json!({
        "from": permit.owner,
        "asset": permit.token,
        "spender": permit.spender,
        "amount": permit.amount,
        "nonce": encode_decimal(&permit.nonce),
        "deadline": permit.deadline.to_string(),
        "signature": permit.signature,
        "version": "1",
    });
    let advertised = extensions.get(EIP2612_SPONSORING).cloned();
    let mut extension = advertised.filter(Value::is_object).unwrap_or_else(|| json!({}));
    let info = extension.get("info").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut whole = ours.as_object().cloned().unwrap_or_default();
    whole.extend(info);
    if let (Some(extension), Some(extensions)) = (extension.as_object_mut(), extensions.as_object_mut()) {
        extension.insert("info".to_owned(), Value::Object(whole));
        extensions.insert(EIP2612_SPONSORING.to_owned(), Value::Object(extension.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::x402::{Action, Order, Payment, RefundRequest};
    use crate::protocol::{Address, Domain, Hash, LocalKey, Voucher};

    #[test]
    fn a_server_reads_what_was_meant() {
        let offer = json!({
            "scheme": "batch-settlement", "network": "eip155:84532", "amount": "2000",
            "asset": "0x036cbd53842c5426634e7929541ec2318f3dcf7e",
            "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C", "maxTimeoutSeconds": 300,
            "extra": {"name": "USDC", "assetTransferMethod": "permit2", "unknown": [1]}
        });
        let key = LocalKey::from_bytes(&[3; 32]).unwrap();
        let domain = Domain::settlement(84_532);
        let config = ChannelConfig {
            payer: key.address(),
            payer_authorizer: key.address(),
            receiver: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            token: Address([3; 20]),
            withdraw_delay: 900,
            salt: Hash([4; 32]),
        };
        let voucher = Voucher { channel: config.id(&domain), max_claimable: Amount::new(7) }.sign(&domain, &key);
        let authorization = Authorization {
            valid_after: 0,
            valid_before: 9,
            salt: Hash([5; 32]),
            signature: voucher.signature.clone(),
        };
        let extensions = json!({"x": {"info": {}}});
        let echo = Echo { accepted: &offer, resource: None, extensions: Some(&extensions) };
        let read = |kind: Kind<'_>| {
            let value = header(echo, &config, &voucher, kind).unwrap();
            assert!(value.is_sensitive());
            Payment::read(value.as_bytes()).unwrap()
        };

        let payment = read(Kind::Voucher);
        assert!(payment.accepted.answers(&serde_json::from_value(offer.clone()).unwrap()));
        assert_eq!((payment.config, &payment.voucher), (config, &voucher));
        assert_eq!(Value::Object(payment.extensions), extensions);
        assert!(matches!(payment.action, Action::Pay));
        assert_eq!(payment.order, Order::InTurn);
        let ahead = read(Kind::Ahead);
        assert!(matches!(ahead.action, Action::Pay));
        assert_eq!((ahead.order, &ahead.voucher), (Order::Ahead, &voucher));

        let permit = TokenPermit {
            owner: Address([6; 20]),
            token: Address([7; 20]),
            spender: Address([8; 20]),
            amount: Amount::new(71),
            nonce: Hash([9; 32]),
            deadline: 10,
            signature: voucher.signature.clone(),
        };
        let by_permit2 = |permit| Permit2Authorization {
            from: Address([11; 20]),
            token: Address([12; 20]),
            amount: Amount::new(72),
            spender: Address([13; 20]),
            nonce: Hash([14; 32]),
            deadline: 15,
            channel: voucher.channel,
            signature: voucher.signature.clone(),
            permit,
        };
        for permission in [authorization.into(), by_permit2(None).into(), by_permit2(Some(permit)).into()] {
            let payment = read(Kind::Deposit(Amount::new(70), &permission));
            assert_eq!(payment.extensions.get("x"), extensions.get("x"));
            match payment.action {
                Action::DepositAndPay(deposit) => {
                    assert_eq!((deposit.amount, deposit.authorization), (Amount::new(70), permission));
                }
                other => panic!("{other:?}"),
            }
        }
        let all = read(Kind::Refund(None)).action;
        assert!(matches!(all, Action::Refund(RefundRequest::Remainder)));
        let part = read(Kind::Refund(Some(Amount::new(1)))).action;
        assert!(matches!(part, Action::Refund(RefundRequest::Amount(amount)) if amount == Amount::new(1)));

        let huge = json!("x".repeat(MAX_PAYMENT_HEADER_BYTES));
        let echo = Echo { accepted: &offer, resource: Some(&huge), extensions: None };
        let refused = header(echo, &config, &voucher, Kind::Voucher);
        assert!(matches!(refused, Err(AgentError::PaymentTooLarge { .. })));
    }
}
