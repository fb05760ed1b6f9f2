//! What a facilitator is asked, as JSON.
//!
//! **Promises** the form the official server sends: a payment payload and the requirements it answers, which for a claim
//! and a settlement name the receiver and the token and ask for nothing. **Does not** send.

use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use super::DepositTerms;
use crate::chain::{Call, FirstPayment};
use crate::protocol::claim::ClaimRow;
use crate::protocol::deposit::{Authorization, Permission};
use crate::protocol::x402::{Offer, SCHEME, VERSION, network_of};
use crate::protocol::{Address, Amount, ChannelConfig, ChannelId, Domain, Hash, Signature, SignedVoucher};

/// The body of `/verify` and `/settle`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    x402_version: u64,
    payment_payload: Envelope,
    payment_requirements: Offer,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    x402_version: u64,
    accepted: Offer,
    payload: Payload,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Payload {
    /// Relay a payer's deposit.
    Deposit {
        /// The channel's terms.
        channel_config: ChannelConfig,
        /// The voucher of the payment it came with.
        voucher: SignedVoucher,
        /// The payer's permission.
        deposit: Deposit,
    },
    /// Claim, with the authorizer's signature.
    Claim {
        /// One a channel.
        claims: Vec<Row>,
        /// Over the rows in this order.
        claim_authorizer_signature: Signature,
    },
    /// Pay a receiver what claims have credited.
    Settle {
        /// Who.
        receiver: Address,
        /// In which token.
        token: Address,
    },
    /// Claim and give back.
    Refund {
        /// The channel's terms.
        channel_config: ChannelConfig,
        /// A voucher of the channel.
        voucher: SignedVoucher,
        /// How much to give back.
        amount: Amount,
        /// The channel's live refund nonce.
        refund_nonce: Amount,
        /// What to claim first.
        claims: Vec<Row>,
        /// Over the refund.
        refund_authorizer_signature: Signature,
        /// Over the rows, if there are any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        claim_authorizer_signature: Option<Signature>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Deposit {
    pub(super) amount: Amount,
    pub(super) authorization: DepositAuthorization,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DepositAuthorization {
    pub(super) erc3009_authorization: Erc3009,
}

/// Times are Unix seconds, as decimal text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Erc3009 {
    valid_after: Amount,
    pub(super) valid_before: Amount,
    pub(super) salt: Hash,
    signature: Signature,
}

/// A row of a claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    pub(super) voucher: RowVoucher,
    signature: Signature,
    pub(super) total_claimed: Amount,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RowVoucher {
    pub(super) channel: ChannelConfig,
    max_claimable_amount: Amount,
}

impl Request {
    /// What to ask for a call; or why no facilitator can be asked for it.
    pub(super) fn of(call: &Call, chain_id: u64, terms: &[DepositTerms]) -> Result<Self, &'static str> {
        match call {
            Call::Deposit { config, amount, authorization, payment } => {
                let FirstPayment { voucher, price } =
                    payment.as_ref().ok_or("a facilitator wants to see the voucher that a deposit came with")?;
                let Permission::Erc3009(authorization) = authorization else {
                    return Err("a deposit through Permit2 is relayed with a gas key of our own only");
                };
                let payload = Payload::Deposit {
                    channel_config: *config,
                    voucher: voucher.clone(),
                    deposit: Deposit { amount: *amount, authorization: DepositAuthorization::of(authorization) },
                };
                let terms = terms.iter().find(|terms| terms.token == config.token);
                let terms = terms.ok_or("deposits of this token are not taken any more")?;
                Ok(Self::new(payload, deposit_offer(config, *price, chain_id, terms)))
            }
            Call::ClaimWithSignature { rows, signature } => {
                let config = &rows.first().ok_or("a claim without rows")?.config;
                let claims = rows.iter().map(Row::of).collect();
                let payload = Payload::Claim { claims, claim_authorizer_signature: signature.clone() };
                Ok(Self::new(payload, bare_offer(config.receiver, config.token, chain_id)))
            }
            Call::Settle { receiver, token } => {
                let payload = Payload::Settle { receiver: *receiver, token: *token };
                Ok(Self::new(payload, bare_offer(*receiver, *token, chain_id)))
            }
            Call::ClaimAndRefund { rows, claim_signature, config, amount, nonce, refund_signature } => {
                let payload = Payload::Refund {
                    channel_config: *config,
                    voucher: shown_with_refund(config.id(&Domain::settlement(chain_id)), rows),
                    amount: *amount,
                    refund_nonce: Amount::new(*nonce),
                    claims: rows.iter().map(Row::of).collect(),
                    refund_authorizer_signature: refund_signature.clone(),
                    claim_authorizer_signature: (!rows.is_empty()).then(|| claim_signature.clone()),
                };
                Ok(Self::new(payload, bare_offer(config.receiver, config.token, chain_id)))
            }
            Call::Claim { .. } => Err("a facilitator claims with the authorizer's signature only"),
            Call::InitiateWithdraw { .. } | Call::FinalizeWithdraw { .. } => Err("a facilitator withdraws nothing"),
        }
    }

    fn new(payload: Payload, offer: Offer) -> Self {
        let payment_payload = Envelope { x402_version: VERSION, accepted: offer.clone(), payload };
        Self { x402_version: VERSION, payment_payload, payment_requirements: offer }
    }

    pub(super) fn payload(&self) -> &Payload {
        &self.payment_payload.payload
    }
}

/// The requirements of what is no payment.
fn bare_offer(receiver: Address, token: Address, chain_id: u64) -> Offer {
    Offer {
        scheme: SCHEME.to_owned(),
        network: network_of(chain_id),
        amount: Amount::ZERO,
        asset: token,
        pay_to: receiver,
        max_timeout_seconds: 0,
        extra: Map::new(),
    }
}

/// The offer that the payment with this deposit answered, as far as a facilitator checks it.
fn deposit_offer(config: &ChannelConfig, price: Amount, chain_id: u64, terms: &DepositTerms) -> Offer {
    let mut extra = Map::new();
    extra.insert("receiverAuthorizer".to_owned(), json!(config.receiver_authorizer));
    extra.insert("withdrawDelay".to_owned(), json!(config.withdraw_delay));
    extra.insert("name".to_owned(), json!(terms.domain_name));
    extra.insert("version".to_owned(), json!(terms.domain_version));
    Offer {
        amount: price,
        max_timeout_seconds: terms.max_timeout_s,
        extra,
        ..bare_offer(config.receiver, config.token, chain_id)
    }
}

/// A refund is recognised by the voucher in it, which has no part in what is sent. Where nothing is claimed with it,
/// there may be none: a channel that was never charged has seen no voucher.
fn shown_with_refund(channel: ChannelId, rows: &[ClaimRow]) -> SignedVoucher {
    let (max_claimable, signature) = match rows.first() {
        Some(row) => (row.max_claimable, row.signature.clone()),
        None => (Amount::ZERO, Signature::from_bytes([]).expect("no bytes are not too many")),
    };
    SignedVoucher { channel, max_claimable, signature }
}

impl DepositAuthorization {
    fn of(authorization: &Authorization) -> Self {
        let Authorization { valid_after, valid_before, salt, signature } = authorization;
        let erc3009_authorization = Erc3009 {
            valid_after: Amount::new(u128::from(*valid_after)),
            valid_before: Amount::new(u128::from(*valid_before)),
            salt: *salt,
            signature: signature.clone(),
        };
        Self { erc3009_authorization }
    }
}

impl Row {
    fn of(row: &ClaimRow) -> Self {
        Self {
            voucher: RowVoucher { channel: row.config, max_claimable_amount: row.max_claimable },
            signature: row.signature.clone(),
            total_claimed: row.total_claimed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const CHAIN_ID: u64 = 84_532;

    fn config() -> ChannelConfig {
        ChannelConfig {
            payer: Address([1; 20]),
            payer_authorizer: Address([1; 20]),
            receiver: Address([3; 20]),
            receiver_authorizer: Address([4; 20]),
            token: Address([5; 20]),
            withdraw_delay: 900,
            salt: Hash([6; 32]),
        }
    }

    fn signature(byte: u8) -> Signature {
        Signature::from_bytes([byte; 65]).unwrap()
    }

    fn row() -> ClaimRow {
        ClaimRow {
            config: config(),
            max_claimable: Amount::new(5_000),
            signature: signature(1),
            total_claimed: Amount::new(4_200),
        }
    }

    fn terms() -> [DepositTerms; 2] {
        let of = |token, name: &str| DepositTerms {
            token,
            domain_name: name.to_owned(),
            domain_version: "2".to_owned(),
            max_timeout_s: 60,
        };
        [of(Address([0xee; 20]), "Another"), of(config().token, "USDC")]
    }

    fn asked(call: &Call) -> Value {
        json!(Request::of(call, CHAIN_ID, &terms()).unwrap())
    }

    fn hex(byte: u8, count: usize) -> String {
        format!("0x{}", format!("{byte:02x}").repeat(count))
    }

    fn id() -> ChannelId {
        config().id(&Domain::settlement(CHAIN_ID))
    }

    fn config_json() -> Value {
        let address = |byte| Address([byte; 20]).to_string();
        json!({
            "payer": address(1), "payerAuthorizer": address(1), "receiver": address(3),
            "receiverAuthorizer": address(4), "token": address(5), "withdrawDelay": 900, "salt": hex(6, 32),
        })
    }

    fn row_json() -> Value {
        json!({
            "voucher": {"channel": config_json(), "maxClaimableAmount": "5000"},
            "signature": hex(1, 65),
            "totalClaimed": "4200",
        })
    }

    fn bare() -> Value {
        json!({
            "scheme": "batch-settlement", "network": "eip155:84532", "asset": Address([5; 20]).to_string(),
            "amount": "0", "payTo": Address([3; 20]).to_string(), "maxTimeoutSeconds": 0, "extra": {},
        })
    }

    /// Both places have the same requirements, and both versions are 2.
    fn whole(payload: Value, requirements: Value) -> Value {
        let accepted = requirements.clone();
        let payment = json!({"x402Version": 2, "accepted": accepted, "payload": payload});
        json!({"x402Version": 2, "paymentPayload": payment, "paymentRequirements": requirements})
    }

    #[test]
    fn a_claim_is_asked_for_as_the_official_server_does() {
        let call = Call::ClaimWithSignature { rows: vec![row(), row()], signature: signature(2) };
        let claims = [row_json(), row_json()];
        let payload = json!({"type": "claim", "claims": claims, "claimAuthorizerSignature": hex(2, 65)});
        assert_eq!(asked(&call), whole(payload, bare()));
    }

    #[test]
    fn a_settlement_names_receiver_and_token() {
        let (receiver, token) = (Address([3; 20]), Address([5; 20]));
        let payload = json!({"type": "settle", "receiver": receiver, "token": token});
        assert_eq!(asked(&Call::Settle { receiver, token }), whole(payload, bare()));
    }

    #[test]
    fn a_refund_claims_first_where_something_is_due() {
        let call = |rows| Call::ClaimAndRefund {
            rows,
            claim_signature: signature(2),
            config: config(),
            amount: Amount::new(9),
            nonce: 3,
            refund_signature: signature(4),
        };
        let refund = |max: &str, signature: String, claims: Value| {
            json!({
                "type": "refund",
                "channelConfig": config_json(),
                "voucher": {"channelId": id(), "maxClaimableAmount": max, "signature": signature},
                "amount": "9",
                "refundNonce": "3",
                "claims": claims,
                "refundAuthorizerSignature": hex(4, 65),
            })
        };
        let mut with_claim = refund("5000", hex(1, 65), json!([row_json()]));
        with_claim["claimAuthorizerSignature"] = json!(hex(2, 65));
        assert_eq!(asked(&call(vec![row()])), whole(with_claim, bare()));
        let alone = refund("0", "0x".to_owned(), json!([]));
        assert_eq!(asked(&call(Vec::new())), whole(alone, bare()));
    }

    fn deposit(payment: Option<FirstPayment>) -> Call {
        let authorization =
            Authorization { valid_after: 0, valid_before: 1_770_000_000, salt: Hash([7; 32]), signature: signature(8) };
        Call::Deposit { config: config(), amount: Amount::new(100_000), authorization: authorization.into(), payment }
    }

    #[test]
    fn a_deposit_is_the_payers_own_payment() {
        let voucher = SignedVoucher { channel: id(), max_claimable: Amount::new(2_000), signature: signature(9) };
        let call = deposit(Some(FirstPayment { voucher, price: Amount::new(2_000) }));
        let payload = json!({
            "type": "deposit",
            "channelConfig": config_json(),
            "voucher": {"channelId": id(), "maxClaimableAmount": "2000", "signature": hex(9, 65)},
            "deposit": {"amount": "100000", "authorization": {"erc3009Authorization": {
                "validAfter": "0", "validBefore": "1770000000", "salt": hex(7, 32), "signature": hex(8, 65),
            }}},
        });
        let mut requirements = bare();
        requirements["amount"] = json!("2000");
        requirements["maxTimeoutSeconds"] = json!(60);
        requirements["extra"] = json!({
            "receiverAuthorizer": Address([4; 20]), "withdrawDelay": 900, "name": "USDC", "version": "2",
        });
        assert_eq!(asked(&call), whole(payload, requirements));
    }

    #[test]
    fn what_is_written_down_is_read_again() {
        let calls = [
            Call::ClaimWithSignature { rows: vec![row()], signature: signature(2) },
            Call::Settle { receiver: Address([3; 20]), token: Address([5; 20]) },
        ];
        for call in calls {
            let request = Request::of(&call, CHAIN_ID, &terms()).unwrap();
            let bytes = serde_json::to_vec(&request).unwrap();
            assert_eq!(serde_json::from_slice::<Request>(&bytes).unwrap(), request);
        }
    }

    #[test]
    fn what_no_facilitator_does_is_not_asked_for() {
        for call in [
            Call::Claim { rows: vec![row()] },
            Call::ClaimWithSignature { rows: Vec::new(), signature: signature(2) },
            Call::InitiateWithdraw { config: config(), amount: Amount::new(1) },
            Call::FinalizeWithdraw { config: config() },
            deposit(None),
        ] {
            assert!(Request::of(&call, CHAIN_ID, &terms()).is_err(), "{call:?}");
        }
    }
}
