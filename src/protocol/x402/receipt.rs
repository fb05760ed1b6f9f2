//! Receipts: what a paid answer says of its payment.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::header::encode_written;
use super::json::{write_number, write_string};
use super::offer::ChannelState;
use crate::protocol::amount::Amount;
use crate::protocol::bytes::{Address, Hash};
use crate::protocol::code::Code;

/// The key in a receipt's `extra` that says by which price list was charged: a number, 1 for the one the server began
/// with. It is ours; clients that do not know it pass over it.
pub const PRICE_GENERATION: &str = "priceGeneration";

/// The `PAYMENT-RESPONSE` header.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Whether the payment went through.
    pub success: bool,
    /// The transaction's hash, empty where none was needed.
    pub transaction: String,
    /// The chain.
    pub network: String,
    /// Who paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<String>,
    /// Tokens moved on chain by this answer (a deposit or a refund), empty for a plain voucher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// `chargedAmount`, `channelState` and [`PRICE_GENERATION`].
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extra: Map<String, Value>,
}

impl Receipt {
    /// A request paid by a voucher alone; nothing moved on chain.
    pub fn charged(network: &str, payer: Address, charge: Amount, state: &ChannelState) -> Self {
        Self {
            success: true,
            transaction: String::new(),
            network: network.to_owned(),
            payer: Some(payer.to_string()),
            amount: Some(String::new()),
            error_reason: None,
            error_message: None,
            extra: extra(Some(charge), state),
        }
    }

    /// The same, with the number of the price list it was charged by: [`PRICE_GENERATION`].
    #[must_use]
    pub fn by_prices(mut self, generation: u64) -> Self {
        self.extra.insert(PRICE_GENERATION.to_owned(), Value::from(generation));
        self
    }

    /// The header's text of [`Receipt::charged`], [`Receipt::by_prices`] of this generation, written without making one.
    /// `payer` is an [`Address::text`].
    pub fn encode_charged(
        network: &str,
        payer: &[u8; 42],
        charge: Amount,
        state: &ChannelState,
        generation: u64,
    ) -> String {
        encode_written(|json| {
            json.extend_from_slice(b"{\"success\":true,\"transaction\":\"\",\"network\":");
            write_string(json, network);
            json.extend_from_slice(b",\"payer\":\"");
            json.extend_from_slice(payer);
            json.extend_from_slice(b"\",\"amount\":\"\",\"extra\":{\"channelState\":");
            state.write(json);
            json.extend_from_slice(b",\"chargedAmount\":\"");
            write_number(json, charge.units());
            json.extend_from_slice(b"\",\"priceGeneration\":");
            write_number(json, u128::from(generation));
            json.extend_from_slice(b"}}");
        })
    }

    /// A request that came with a deposit of `deposited`, mined as `transaction`.
    pub fn deposited(
        network: &str,
        payer: Address,
        transaction: Hash,
        deposited: Amount,
        charge: Amount,
        state: &ChannelState,
    ) -> Self {
        Self {
            transaction: transaction.to_string(),
            amount: Some(deposited.to_string()),
            ..Self::charged(network, payer, charge, state)
        }
    }

    /// A refund of `refunded`, mined as `transaction`.
    pub fn refunded(network: &str, payer: Address, transaction: Hash, refunded: Amount, state: &ChannelState) -> Self {
        Self {
            transaction: transaction.to_string(),
            amount: Some(refunded.to_string()),
            extra: extra(None, state),
            ..Self::charged(network, payer, Amount::ZERO, state)
        }
    }

    /// A settlement that failed for good.
    pub fn failed(network: &str, payer: Address, code: Code, message: &str) -> Self {
        Self {
            success: false,
            transaction: String::new(),
            network: network.to_owned(),
            payer: Some(payer.to_string()),
            amount: None,
            error_reason: Some(code.to_string()),
            error_message: Some(message.to_owned()),
            extra: Map::new(),
        }
    }

    /// The `chargedAmount`, where there is one and it is an amount.
    pub fn charged_amount(&self) -> Option<Amount> {
        self.extra.get("chargedAmount")?.as_str()?.parse().ok()
    }

    /// The number of the price list it was charged by, where it is said.
    pub fn price_generation(&self) -> Option<u64> {
        self.extra.get(PRICE_GENERATION)?.as_u64()
    }

    /// The `channelState`, where there is one.
    pub fn channel_state(&self) -> Option<ChannelState> {
        ChannelState::deserialize(self.extra.get("channelState")?).ok()
    }
}

fn extra(charge: Option<Amount>, state: &ChannelState) -> Map<String, Value> {
    let mut extra = Map::new();
    if let Some(charge) = charge {
        extra.insert("chargedAmount".to_owned(), Value::String(charge.to_string()));
    }
    let state = serde_json::to_value(state).expect("a channel state has string keys");
    extra.insert("channelState".to_owned(), state);
    extra
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::bytes::ChannelId;
    use crate::protocol::x402::encode;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_written_receipt_is_the_one_serde_writes(
            (network, payer, id) in (any::<String>(), any::<[u8; 20]>(), any::<[u8; 32]>()),
            (balance, claimed, charged, charge) in (any::<u128>(), any::<u128>(), any::<u128>(), any::<u128>()),
            (withdraw_requested_at, refund_nonce, generation) in (any::<u64>(), any::<u128>(), any::<u64>()),
        ) {
            let state = ChannelState {
                channel_id: ChannelId(id),
                balance: Amount::new(balance),
                total_claimed: Amount::new(claimed),
                withdraw_requested_at,
                refund_nonce,
                charged_cumulative_amount: Amount::new(charged),
            };
            let (payer, charge) = (Address(payer), Amount::new(charge));
            let written = Receipt::encode_charged(&network, &payer.text(), charge, &state, generation);
            let receipt = Receipt::charged(&network, payer, charge, &state).by_prices(generation);
            prop_assert_eq!(receipt.price_generation(), Some(generation));
            prop_assert_eq!(written, encode(&receipt));
        }
    }
}
