//! Quotes: what a resource costs, and how it may be paid.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::json::{Cursor, write_number};
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
/// The key in an offer's `extra` that says in words how the charge of a request is made up, where it is not a fixed price:
/// the offer's amount is the most it can be. It is ours: clients that do not know it echo it.
pub const TARIFF: &str = "tariff";
/// The extension by which a client names a request, so that it is not paid twice.
pub const PAYMENT_IDENTIFIER: &str = "payment-identifier";
/// The key in an offer's `extra` that says whose key signs claims and refunds: an address, so its letter case is free.
const RECEIVER_AUTHORIZER: &str = "receiverAuthorizer";
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

/// An offer and what it looks like in JSON, so that an echo of it can be compared as text.
#[derive(Debug, Clone)]
pub struct WrittenOffer {
    offer: Offer,
    /// As it is quoted. Clients that keep the order of keys echo exactly this.
    text: String,
    /// With its keys in order, as clients echo it that keep objects in sorted maps.
    sorted: String,
    amount: String,
    max_timeout_seconds: String,
    /// The key and the value of each of its own terms, as JSON has them.
    extra: Vec<(String, String)>,
    /// The extensions that are quoted beside it, as JSON.
    extensions: String,
}

impl WrittenOffer {
    /// Writes an offer.
    pub fn new(offer: Offer) -> Self {
        let text = serde_json::to_string(&offer).expect("an offer has string keys");
        let fields: BTreeMap<&str, Value> = [
            ("scheme", Value::from(offer.scheme.as_str())),
            ("network", Value::from(offer.network.as_str())),
            ("amount", Value::from(offer.amount.to_string())),
            ("asset", Value::from(offer.asset.to_string())),
            ("payTo", Value::from(offer.pay_to.to_string())),
            ("maxTimeoutSeconds", Value::from(offer.max_timeout_seconds)),
            ("extra", Value::Object(offer.extra.clone())),
        ]
        .into();
        let sorted = serde_json::to_string(&fields).expect("an offer has string keys");
        let extra = offer.extra.iter().map(|(key, value)| (key.clone(), value.to_string())).collect();
        let (amount, max_timeout_seconds) = (offer.amount.to_string(), offer.max_timeout_seconds.to_string());
        let extensions = String::new();
        Self { offer, text, sorted, amount, max_timeout_seconds, extra, extensions }
    }

    /// The same offer where these extensions are quoted beside it.
    #[must_use]
    pub fn beside(self, extensions: &Map<String, Value>) -> Self {
        let extensions = if extensions.is_empty() { String::new() } else { json!(extensions).to_string() };
        Self { extensions, ..self }
    }

    /// Whether these are the extensions that are quoted beside it, in the very words.
    pub(super) fn is_quoted_beside(&self, extensions: &[u8]) -> bool {
        !self.extensions.is_empty() && self.extensions.as_bytes() == extensions
    }

    /// The offer.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Its JSON; its own terms are the end of it.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Passes over an echo that answers this offer. Nothing where it does not, or is written in an unusual way: whether
    /// it answers all the same is for [`Accepted::answers`] to say.
    pub(super) fn take_answer(&self, cursor: &mut Cursor<'_>) -> Option<()> {
        cursor
            .take(self.text.as_bytes())
            .or_else(|| cursor.take(self.sorted.as_bytes()))
            .or_else(|| self.compare(cursor))
    }

    /// The same field by field, for other orders, other letter case and added keys.
    fn compare(&self, cursor: &mut Cursor<'_>) -> Option<()> {
        let Self { offer, amount, max_timeout_seconds, extra, .. } = self;
        let mut seen = Seen::default();
        let mut extra_seen = extra.is_empty();
        cursor.object(|key, cursor| {
            let same = match key {
                b"scheme" => seen.once(0)? && cursor.string()? == offer.scheme.as_bytes(),
                b"network" => seen.once(1)? && cursor.string()? == offer.network.as_bytes(),
                b"amount" => seen.once(2)? && cursor.string()? == amount.as_bytes(),
                b"asset" => seen.once(3)? && cursor.hex()? == offer.asset.0,
                b"payTo" => seen.once(4)? && cursor.hex()? == offer.pay_to.0,
                b"maxTimeoutSeconds" => seen.once(5)? && cursor.take(max_timeout_seconds.as_bytes()).is_some(),
                b"extra" => {
                    extra_seen = true;
                    seen.once(6)? && self.compare_extra(cursor).is_some()
                }
                _ => cursor.skip().is_some(),
            };
            same.then_some(())
        })?;
        (seen.first(6) && extra_seen).then_some(())
    }

    fn compare_extra(&self, cursor: &mut Cursor<'_>) -> Option<()> {
        let mut seen = Seen::default();
        cursor.object(|key, cursor| {
            let known = self.extra.iter().zip(0u32..).find(|((name, _), _)| name.as_bytes() == key);
            let Some(((name, value), index)) = known else {
                // A client may add keys, but not turn a tariff into a fixed price of as much.
                return if key == TARIFF.as_bytes() { None } else { cursor.skip().map(drop) };
            };
            seen.once(index)?;
            // What follows the same text is a comma or a bracket, or else it was another, longer value.
            if cursor.take(value.as_bytes()).is_some() {
                return Some(());
            }
            let offered = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'))?;
            (name == RECEIVER_AUTHORIZER && cursor.string()?.eq_ignore_ascii_case(offered.as_bytes())).then_some(())
        })?;
        seen.first(u32::try_from(self.extra.len()).ok()?).then_some(())
    }
}

/// Which of some fields were there.
#[derive(Default)]
struct Seen(u64);

impl Seen {
    /// Notes one. Nothing for a second time, or for more than 64 fields: which of two counts is not for us to say.
    fn once(&mut self, index: u32) -> Option<bool> {
        let bit = 1u64.checked_shl(index)?;
        let first = self.0 & bit == 0;
        self.0 |= bit;
        first.then_some(true)
    }

    /// Whether all of the first so many were there.
    fn first(&self, count: u32) -> bool {
        self.0.trailing_ones() >= count
    }
}

/// What a payment says it answers.
#[derive(Debug, Clone)]
pub enum Echo<'o> {
    /// This offer: they were compared while the payment was read.
    Of(&'o WrittenOffer),
    /// Something that is still to be compared.
    Other(Accepted),
}

impl Echo<'_> {
    /// Whether this answers `offer`, see [`Accepted::answers`].
    pub fn answers(&self, offer: &Offer) -> bool {
        self.is(offer) || self.loosely(|accepted| accepted.answers(offer))
    }

    /// The same without the price, see [`Accepted::answers_terms_of`].
    pub fn answers_terms_of(&self, offer: &Offer) -> bool {
        self.is(offer) || self.loosely(|accepted| accepted.answers_terms_of(offer))
    }

    /// Whether it was found to answer this very one while it was read.
    pub fn is(&self, offer: &Offer) -> bool {
        matches!(self, Self::Of(written) if std::ptr::eq(&written.offer, offer))
    }

    fn loosely(&self, judge: impl FnOnce(&Accepted) -> bool) -> bool {
        match self {
            Self::Of(written) => serde_json::from_str(&written.text).is_ok_and(|accepted| judge(&accepted)),
            Self::Other(accepted) => judge(accepted),
        }
    }
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
        // What is quoted by a tariff is not answered by a fixed price of as much: that might cost more.
        let same_tariff = self.extra.contains_key(TARIFF) == offer.extra.contains_key(TARIFF);
        same_tariff && self.answers_except(offer, &[]) && self.amount == Value::String(offer.amount.to_string())
    }

    /// The same without the price and what follows from it: a refund draws on the channel's terms, whatever resource it
    /// is sent to.
    pub fn answers_terms_of(&self, offer: &Offer) -> bool {
        self.answers_except(offer, &["minDeposit", MAX_IN_FLIGHT, TARIFF])
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
        (RECEIVER_AUTHORIZER, Value::String(echo), Value::String(offered)) => echo.eq_ignore_ascii_case(offered),
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

impl ChannelState {
    /// Writes it as JSON, keys in order.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let Self { channel_id, balance, total_claimed, withdraw_requested_at, refund_nonce, charged_cumulative_amount } =
            self;
        out.extend_from_slice(b"{\"balance\":\"");
        write_number(out, balance.units());
        out.extend_from_slice(b"\",\"channelId\":\"");
        out.extend_from_slice(&channel_id.lower_text());
        out.extend_from_slice(b"\",\"chargedCumulativeAmount\":\"");
        write_number(out, charged_cumulative_amount.units());
        out.extend_from_slice(b"\",\"refundNonce\":\"");
        write_number(out, *refund_nonce);
        out.extend_from_slice(b"\",\"totalClaimed\":\"");
        write_number(out, total_claimed.units());
        out.extend_from_slice(b"\",\"withdrawRequestedAt\":");
        write_number(out, u128::from(*withdraw_requested_at));
        out.push(b'}');
    }
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
        let metered = |words: &str| {
            let mut offer = offer();
            offer.extra.insert(TARIFF.to_owned(), json!(words));
            offer
        };
        let echoing = |words: &str| echo(|v| v["extra"][TARIFF] = json!(words));
        assert!(echoing("a").answers(&metered("a")));
        assert!(!echoing("a").answers(&metered("b")) && !echo(|_| ()).answers(&metered("a")));
        assert!(!echoing("a").answers(&offer()), "as much at most is not as much");
        assert!(echoing("a").answers_terms_of(&offer()) && echo(|_| ()).answers_terms_of(&metered("a")));
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
            let mut changed = json!(offer());
            change(&mut changed);
            assert!(!taken(&changed.to_string()), "change {index}");
        }
    }

    /// Whether the offer takes this text for an echo of itself, and all of it.
    fn taken(echo: &str) -> bool {
        let mut cursor = Cursor::new(echo);
        WrittenOffer::new(offer()).take_answer(&mut cursor).is_some() && cursor.end().is_some()
    }

    #[test]
    fn an_echo_is_known_by_its_text_in_any_order_and_case_and_with_added_keys() {
        let quoted = serde_json::to_string(&offer()).unwrap();
        assert!(taken(&quoted));
        assert!(taken(&json!(offer()).to_string()), "sorted");
        let reordered = quoted.replacen("{\"scheme\":\"batch-settlement\",", "{", 1);
        assert!(!taken(&reordered), "no scheme");
        assert!(taken(&reordered.replacen('{', r#"{"mine" : [1, {"x":null}], "scheme": "batch-settlement" ,"#, 1)));
        assert!(taken(
            &quoted
                .to_lowercase()
                .replace("payto", "payTo")
                .replace("maxtimeout", "maxTimeout")
                .replace("seconds", "Seconds")
                .replace("receiverauth", "receiverAuth")
                .replace("withdrawdelay", "withdrawDelay")
                .replace("usdc", "USDC")
        ));
        assert!(taken(&quoted.replace("900,", r#"900,"channelState":{"balance":"1"},"#)));
        // JSON that other readers might take; here nobody decides on it by text.
        for odd in [
            quoted.replace("900", "900.0"),
            quoted.replace("900", "9000"),
            quoted.replace("300,", "3e2,"),
            quoted.replace("300,", "3000,"),
            quoted.replace("\"2000\"", "\"2000\",\"amount\":\"2000\""),
            quoted.replace("900", "900,\"withdrawDelay\":900"),
            quoted.replace("scheme", "sch\\u0065me"),
            format!("{quoted}}}"),
            quoted.replacen('}', "", 1),
        ] {
            assert!(!taken(&odd), "{odd}");
        }
    }

    #[test]
    fn an_echo_that_was_compared_answers_as_if_it_were_read() {
        let written = WrittenOffer::new(offer());
        let echo = Echo::Of(&written);
        assert!(echo.answers(written.offer()) && echo.answers_terms_of(written.offer()));
        assert!(echo.answers(&offer()), "another one that is equal");
        let dearer = Offer { amount: Amount::new(2001), ..offer() };
        assert!(!echo.answers(&dearer) && echo.answers_terms_of(&dearer));
        let elsewhere = Offer { network: "eip155:1".to_owned(), ..offer() };
        assert!(!echo.answers(&elsewhere) && !echo.answers_terms_of(&elsewhere));
    }

    #[test]
    fn a_refund_may_answer_an_offer_of_another_price() {
        let other_price = echo(|v| v["amount"] = json!("1"));
        assert!(!other_price.answers(&offer()));
        assert!(other_price.answers_terms_of(&offer()));
    }
}
