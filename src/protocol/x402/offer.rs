//! Quotes: what a resource costs, and how it may be paid.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::amount::Amount;
use crate::protocol::bytes::{Address, ChannelId};
use crate::protocol::signature::Signature;

/// The protocol version this speaks.
pub const VERSION: u64 = 2;
/// The payment scheme this speaks.
pub const SCHEME: &str = "batch-settlement";
/// The key in an offer's `extra` that says how its token is deposited; without it by ERC-3009.
pub const TRANSFER_METHOD: &str = "assetTransferMethod";
/// Its value where that is done through Permit2.
pub const PERMIT2_METHOD: &str = "permit2";
/// The key in an offer's `extra` that says how many vouchers of one channel a client may sign ahead; without it each waits
/// for the answer to the one before. It is ours: clients that do not know it echo it and go on one by one.
pub const MAX_IN_FLIGHT: &str = "maxInFlight";
/// What the name of an EVM network begins with (CAIP-2); the chain id follows in decimal.
const NETWORK_PREFIX: &str = "eip155:";

/// The name of a chain in headers, `eip155:8453`.
pub fn network_of(chain_id: u64) -> String {
    format!("{NETWORK_PREFIX}{chain_id}")
}

/// The chain a network's name stands for, if it is an EVM chain's in its one canonical form.
pub fn chain_id_of(network: &str) -> Option<u64> {
    let id = network.strip_prefix(NETWORK_PREFIX)?.parse().ok()?;
    (network_of(id) == network).then_some(id)
}

/// The `PAYMENT-REQUIRED` header.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quote {
    /// Always [`VERSION`].
    pub x402_version: u64,
    /// Why this is not the paid answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is for sale.
    pub resource: Resource,
    /// How it may be paid; the first a client supports is usually taken.
    pub accepts: Vec<Offer>,
    /// What else the server can do, by extension key.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extensions: Map<String, Value>,
}

/// What is for sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// Its public URL.
    pub url: String,
    /// What it is, for people and models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The type of the paid answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mime_type: Option<String>,
}

/// One way to pay: the terms a channel must have and the most one request will cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// [`SCHEME`] for the offers we make.
    pub scheme: String,
    /// The chain, as `eip155:` and its id.
    pub network: String,
    /// The most this request will cost, in atomic units.
    pub amount: Amount,
    /// The token.
    pub asset: Address,
    /// The receiver.
    pub pay_to: Address,
    /// How long the server may take, and how long a deposit authorization must be valid, in seconds.
    pub max_timeout_seconds: u64,
    /// The scheme's own terms.
    pub extra: Map<String, Value>,
}

/// A client's echo of an offer, as loosely typed as it came.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Accepted {
    scheme: String,
    network: String,
    amount: Value,
    asset: String,
    pay_to: String,
    max_timeout_seconds: Value,
    #[serde(default)]
    extra: Map<String, Value>,
}

impl Accepted {
    /// Whether this echoes `offer`: every core field equal, and every key of the offer's `extra` there with an equal
    /// value. The client may add keys of its own. Addresses are compared without their letter case.
    pub fn answers(&self, offer: &Offer) -> bool {
        self.answers_except(offer, &[]) && self.amount == Value::String(offer.amount.to_string())
    }

    /// The same without the price and what follows from it: a refund draws on the channel's terms, whatever resource it
    /// is sent to.
    pub fn answers_terms_of(&self, offer: &Offer) -> bool {
        self.answers_except(offer, &["minDeposit", MAX_IN_FLIGHT])
    }

    /// Whether the offer it echoes is one whose token is deposited through Permit2.
    pub fn asks_permit2(&self) -> bool {
        self.extra.get(TRANSFER_METHOD).and_then(Value::as_str) == Some(PERMIT2_METHOD)
    }

    fn answers_except(&self, offer: &Offer, ignored: &[&str]) -> bool {
        self.scheme == offer.scheme
            && self.network == offer.network
            && self.asset.parse() == Ok(offer.asset)
            && self.pay_to.parse() == Ok(offer.pay_to)
            && self.max_timeout_seconds.as_f64() == Value::from(offer.max_timeout_seconds).as_f64()
            && offer
                .extra
                .iter()
                .filter(|(key, _)| !ignored.contains(&key.as_str()))
                .all(|(key, value)| self.extra.get(key).is_some_and(|echo| same(key, echo, value)))
    }
}

/// Equality of an extra's value, where addresses may differ in letter case.
fn same(key: &str, echo: &Value, offered: &Value) -> bool {
    match (key, echo, offered) {
        ("receiverAuthorizer", Value::String(echo), Value::String(offered)) => echo.eq_ignore_ascii_case(offered),
        _ => echo == offered,
    }
}

/// The server's view of a channel, in correctives and receipts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelState {
    /// Which channel.
    pub channel_id: ChannelId,
    /// Deposits less refunds and withdrawals; claims do not lower it.
    pub balance: Amount,
    /// What the receiver has claimed on chain.
    pub total_claimed: Amount,
    /// When a pending withdrawal was announced, Unix seconds; 0 if none is.
    pub withdraw_requested_at: u64,
    /// The nonce the next refund must be signed with, a decimal string.
    #[serde(with = "decimal")]
    pub refund_nonce: u128,
    /// What has been charged in all: the base of the next voucher.
    pub charged_cumulative_amount: Amount,
}

/// The client's own latest voucher, returned to a client that lost it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VoucherState {
    /// The ceiling it signed.
    pub signed_max_claimable: Amount,
    /// Its signature, by which it knows its own hand.
    pub signature: Signature,
}

mod decimal {
    //! A number as a decimal string.

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn offer() -> Offer {
        serde_json::from_value(json!({
            "scheme": SCHEME, "network": "eip155:84532", "amount": "2000",
            "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
            "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
            "maxTimeoutSeconds": 300,
            "extra": {"receiverAuthorizer": "0x3325a78425F17a7E487Eb5666b2bFd93aBb06c70", "withdrawDelay": 900,
                      "name": "USDC", "version": "2"}
        }))
        .unwrap()
    }

    fn echo(change: impl Fn(&mut Value)) -> Accepted {
        let mut value = serde_json::to_value(offer()).unwrap();
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_echo_answers_its_offer_and_no_other() {
        assert!(echo(|_| ()).answers(&offer()));
        assert!(echo(|v| v["extra"]["channelState"] = json!({})).answers(&offer()), "added keys are the client's own");
        assert!(echo(|v| v["asset"] = json!("0x036cbd53842c5426634e7929541ec2318f3dcf7e")).answers(&offer()));
        let changes: [fn(&mut Value); 11] = [
            |v| v["scheme"] = json!("exact"),
            |v| v["network"] = json!("eip155:8453"),
            |v| v["amount"] = json!("2001"),
            |v| v["amount"] = json!(2000),
            |v| v["asset"] = json!("0x209693Bc6afc0C5328bA36FaF03C514EF312287C"),
            |v| v["payTo"] = json!("0x036CbD53842c5426634e7929541eC2318f3dCF7e"),
            |v| v["maxTimeoutSeconds"] = json!(301),
            |v| v["extra"]["withdrawDelay"] = json!(901),
            |v| v["extra"]["withdrawDelay"] = json!("900"),
            |v| v["extra"]["name"] = json!("usdc"),
            |v| {
                v["extra"].as_object_mut().unwrap().remove("version");
            },
        ];
        for (index, change) in changes.into_iter().enumerate() {
            assert!(!echo(change).answers(&offer()), "change {index}");
        }
    }

    #[test]
    fn a_refund_may_answer_an_offer_of_another_price() {
        let other_price = echo(|v| v["amount"] = json!("1"));
        assert!(!other_price.answers(&offer()));
        assert!(other_price.answers_terms_of(&offer()));
    }
}
