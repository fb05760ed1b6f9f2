//! The settlement contract's logs, read.
//!
//! **Promises** that only logs of the settlement contract become events, in the order they happened, and that logs a
//! reorganisation removed do not. **Does not** tell whose channels they are.

use alloy::primitives::{Address as EvmAddress, B256, Bytes, U64};
use alloy::sol_types::abi::AbiDecoderConfig;
use alloy::sol_types::{SolEvent as _, SolEventInterface as _};
use serde::Deserialize;

use super::bindings::Settlement::{self, SettlementEvents};
use super::bindings::{address_of, config_of, hash_of};
use super::error::ChainError;
use super::types::{ChannelEvent, Happening, LogPosition};
use crate::protocol::contracts::SETTLEMENT;
use crate::protocol::{Amount, ChannelId};

/// The first topic of every event that is followed.
pub(super) const TOPICS: [B256; 8] = [
    Settlement::ChannelCreated::SIGNATURE_HASH,
    Settlement::ChannelClosed::SIGNATURE_HASH,
    Settlement::Deposited::SIGNATURE_HASH,
    Settlement::Claimed::SIGNATURE_HASH,
    Settlement::Settled::SIGNATURE_HASH,
    Settlement::Refunded::SIGNATURE_HASH,
    Settlement::WithdrawInitiated::SIGNATURE_HASH,
    Settlement::WithdrawFinalized::SIGNATURE_HASH,
];

/// A log as a node sends it. Those of a pending block have no position.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawLog {
    address: EvmAddress,
    topics: Vec<B256>,
    data: Bytes,
    block_number: Option<U64>,
    block_hash: Option<B256>,
    transaction_hash: Option<B256>,
    log_index: Option<U64>,
    #[serde(default)]
    removed: bool,
}

/// Reads logs in any order and of any contract.
pub(super) fn read(logs: &[RawLog]) -> Result<Vec<ChannelEvent>, ChainError> {
    let ours = |log: &&RawLog| {
        let known = log.topics.first().is_some_and(|topic| TOPICS.contains(topic));
        address_of(log.address) == SETTLEMENT && known && !log.removed
    };
    let mut events = logs.iter().filter(ours).map(event).collect::<Result<Vec<_>, _>>()?;
    events.sort_by_key(|event| event.at);
    Ok(events)
}

/// Reads what a node gave for these blocks, in any order. It was asked for logs of the settlement contract in these blocks
/// and nothing else, so one that gives something else has not understood, and what it left out is anybody's guess.
pub(super) fn read_range(logs: &[RawLog], from_block: u64, to_block: u64) -> Result<Vec<ChannelEvent>, ChainError> {
    let asked_for = |log: &RawLog| {
        let known = log.topics.first().is_some_and(|topic| TOPICS.contains(topic));
        let inside = log.block_number.is_some_and(|block| (from_block..=to_block).contains(&block.to::<u64>()));
        address_of(log.address) == SETTLEMENT && known && inside
    };
    if !logs.iter().all(asked_for) {
        return Err(ChainError::decode("the logs that were asked for"));
    }
    let events = read(logs)?;
    let twice = |pair: &[ChannelEvent]| match pair {
        [one, next] => (one.at.block, one.at.log_index) == (next.at.block, next.at.log_index),
        _ => false,
    };
    if events.windows(2).any(twice) {
        return Err(ChainError::decode("one log at each place in a block"));
    }
    Ok(events)
}

fn event(log: &RawLog) -> Result<ChannelEvent, ChainError> {
    let decoded =
        SettlementEvents::decode_raw_log_with_config(&log.topics, &log.data, AbiDecoderConfig::new().validate(true))
            .map_err(|error| ChainError::decode_from("an event of the settlement contract", error))?;
    Ok(ChannelEvent { at: position(log).ok_or(ChainError::decode("a log's place in its block"))?, what: what(decoded) })
}

fn position(log: &RawLog) -> Option<LogPosition> {
    Some(LogPosition {
        block: log.block_number?.to::<u64>(),
        log_index: log.log_index?.to::<u64>(),
        block_hash: hash_of(log.block_hash?),
        transaction: hash_of(log.transaction_hash?),
    })
}

fn what(event: SettlementEvents) -> Happening {
    let id = |word: B256| ChannelId(word.0);
    match event {
        SettlementEvents::ChannelCreated(event) => {
            Happening::Created { channel: id(event.channelId), config: config_of(&event.config) }
        }
        SettlementEvents::ChannelClosed(event) => Happening::Closed { channel: id(event.channelId) },
        SettlementEvents::Deposited(event) => Happening::Deposited {
            channel: id(event.channelId),
            amount: Amount::new(event.amount),
            new_balance: Amount::new(event.newBalance),
        },
        SettlementEvents::Claimed(event) => Happening::Claimed {
            channel: id(event.channelId),
            amount: Amount::new(event.claimAmount),
            new_total_claimed: Amount::new(event.newTotalClaimed),
        },
        SettlementEvents::Settled(event) => Happening::Settled {
            receiver: address_of(event.receiver),
            token: address_of(event.token),
            amount: Amount::new(event.amount),
        },
        SettlementEvents::Refunded(event) => {
            Happening::Refunded { channel: id(event.channelId), amount: Amount::new(event.amount) }
        }
        SettlementEvents::WithdrawInitiated(event) => Happening::WithdrawInitiated {
            channel: id(event.channelId),
            amount: Amount::new(event.amount),
            finalize_after: event.finalizeAfter.to::<u64>(),
        },
        SettlementEvents::WithdrawFinalized(event) => {
            Happening::WithdrawFinalized { channel: id(event.channelId), amount: Amount::new(event.amount) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Hash;
    use alloy::primitives::hex;
    use serde_json::{Value, json};

    /// A `Deposited` log of 7 units, balance 9, as a node would send it.
    fn deposited(block: u64, index: u64) -> Value {
        let topic = |word: B256| hex::encode_prefixed(word);
        let who = EvmAddress::repeat_byte(0xcc).into_word();
        json!({
            "address": SETTLEMENT.to_string().to_lowercase(),
            "topics": [topic(Settlement::Deposited::SIGNATURE_HASH), topic(B256::repeat_byte(0xaa)), topic(who)],
            "data": format!("0x{:064x}{:064x}", 7, 9),
            "blockNumber": format!("{block:#x}"),
            "blockHash": topic(B256::repeat_byte(1)),
            "transactionHash": topic(B256::repeat_byte(2)),
            "transactionIndex": "0x0",
            "logIndex": format!("{index:#x}"),
            "removed": false,
        })
    }

    fn with(mut log: Value, field: &str, value: Value) -> Value {
        log[field] = value;
        log
    }

    fn events(logs: &[Value]) -> Result<Vec<ChannelEvent>, ChainError> {
        read(&logs.iter().map(|log| serde_json::from_value(log.clone()).unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn a_log_is_read_with_its_place() {
        let [event] = <[ChannelEvent; 1]>::try_from(events(&[deposited(5, 3)]).unwrap()).unwrap();
        let channel = ChannelId([0xaa; 32]);
        assert_eq!(event.what, Happening::Deposited { channel, amount: Amount::new(7), new_balance: Amount::new(9) });
        assert_eq!(event.what.channel(), Some(channel));
        let at = LogPosition { block: 5, log_index: 3, block_hash: Hash([1; 32]), transaction: Hash([2; 32]) };
        assert_eq!(event.at, at);
    }

    #[test]
    fn logs_come_in_the_order_they_happened() {
        let found = events(&[deposited(6, 0), deposited(5, 10), deposited(5, 9)]).unwrap();
        let places: Vec<_> = found.iter().map(|event| (event.at.block, event.at.log_index)).collect();
        assert_eq!(places, [(5, 9), (5, 10), (6, 0)]);
    }

    #[test]
    fn what_is_not_the_settlement_contracts_or_was_removed_is_no_event() {
        let foreign = with(deposited(1, 0), "address", json!(EvmAddress::repeat_byte(9)));
        let removed = with(deposited(1, 1), "removed", json!(true));
        let unknown = with(deposited(1, 2), "topics", json!([B256::repeat_byte(9)]));
        let anonymous = with(deposited(1, 3), "topics", json!([]));
        assert_eq!(events(&[foreign, removed, unknown, anonymous]).unwrap(), []);
    }

    #[test]
    fn a_range_of_blocks_holds_what_was_asked_for_and_nothing_else() {
        let ranged = |logs: &[Value]| {
            let logs: Vec<RawLog> = logs.iter().map(|log| serde_json::from_value(log.clone()).unwrap()).collect();
            read_range(&logs, 5, 7)
        };
        assert_eq!(ranged(&[deposited(7, 0), deposited(5, 0), deposited(5, 1)]).unwrap().len(), 3);
        assert_eq!(ranged(&[]).unwrap(), []);
        let cases = [
            deposited(4, 0),
            deposited(8, 0),
            with(deposited(5, 0), "blockNumber", Value::Null),
            with(deposited(5, 0), "address", json!(EvmAddress::repeat_byte(9))),
            with(deposited(5, 0), "topics", json!([B256::repeat_byte(9)])),
            with(deposited(5, 0), "topics", json!([])),
            with(deposited(6, 0), "transactionHash", json!(B256::repeat_byte(9))),
        ];
        for log in cases {
            let answer = ranged(&[deposited(6, 0), log.clone()]);
            assert!(matches!(answer, Err(ChainError::Decode { .. })), "{log}");
        }
    }

    #[test]
    fn a_log_that_makes_no_sense_is_an_error() {
        let too_large = format!("0x{}{:064x}", "ff".repeat(32), 9);
        let cases = [
            with(deposited(1, 0), "data", json!(too_large)),
            with(deposited(1, 0), "data", json!("0x")),
            with(deposited(1, 0), "topics", json!([Settlement::Deposited::SIGNATURE_HASH])),
            with(deposited(1, 0), "blockNumber", Value::Null),
        ];
        for log in cases {
            assert!(matches!(events(std::slice::from_ref(&log)), Err(ChainError::Decode { .. })), "{log}");
        }
    }
}
