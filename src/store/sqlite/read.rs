//! What both the writer and readers read.

use rusqlite::{Connection, Row, params};

use super::failure::{damaged, reading};
use super::row::{self, Cells, check_seal, seal_of_cursor, seal_of_transaction};
use crate::protocol::{Address, ChannelConfig, ChannelId, Hash};
use crate::store::{ChannelRow, ClaimedRow, Cursor, Purpose, StoreError, Transaction};

// The states of a transaction whose end is known, and the kinds of movements.
pub(super) const MINED: &str = "mined";
pub(super) const REVERTED: &str = "reverted";
pub(super) const NEVER_SENT: &str = "never_sent";
pub(super) const REPLACED: &str = "replaced";
pub(super) const GIVEN_UP: &str = "given_up";
pub(super) const DEPOSITED: &str = "deposited";
pub(super) const CLAIMED: &str = "claimed";
pub(super) const REFUNDED: &str = "refunded";
pub(super) const SETTLED: &str = "settled";

const SELECT_TRANSACTIONS: &str = "SELECT number, hash, sender, nonce, signed_at, raw, purpose, channel, amount, \
     receiver, token, payer, payer_authorizer, receiver_authorizer, withdraw_delay, channel_salt, deposit_salt, \
     valid_before, refund_nonce, seal FROM transactions";

/// Hands out every channel's row, or what is wrong with it.
pub(super) fn channels(
    connection: &Connection,
    each: &mut dyn FnMut(Result<ChannelRow, StoreError>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut statement = connection.prepare(&row::select_channels(connection)?).map_err(reading)?;
    let mut rows = statement.query([]).map_err(reading)?;
    while let Some(found) = rows.next().map_err(reading)? {
        each(row::channel(found))?;
    }
    Ok(())
}

/// One channel's row.
pub(super) fn channel(connection: &Connection, id: &ChannelId) -> Result<Option<ChannelRow>, StoreError> {
    let sql = format!("{} WHERE c.id = ?1", row::select_channels(connection)?);
    let mut statement = connection.prepare(&sql).map_err(reading)?;
    let mut rows = statement.query(params![id.0]).map_err(reading)?;
    rows.next().map_err(reading)?.map(row::channel).transpose()
}

/// How far the chain was followed.
pub(super) fn cursor(connection: &Connection) -> Result<Option<Cursor>, StoreError> {
    let mut statement = connection.prepare("SELECT next_block, seal FROM cursor").map_err(reading)?;
    let mut rows = statement.query([]).map_err(reading)?;
    let Some(found) = rows.next().map_err(reading)? else { return Ok(None) };
    let mut cells = Cells::of("the cursor", found);
    let next_block = cells.number("next_block")?;
    row::of("the cursor", check_seal(cells.number("seal")?, seal_of_cursor(next_block)))?;
    Ok(Some(Cursor { next_block }))
}

/// The transactions whose fate is not known, in the order they were signed in.
pub(super) fn unfinished(connection: &Connection) -> Result<Vec<Transaction>, StoreError> {
    let sql = format!("{SELECT_TRANSACTIONS} WHERE state = 'open' ORDER BY number");
    let mut statement = connection.prepare(&sql).map_err(reading)?;
    let mut rows = statement.query([]).map_err(reading)?;
    let mut transactions = Vec::new();
    while let Some(found) = rows.next().map_err(reading)? {
        transactions.push(transaction_in(connection, found)?.1);
    }
    Ok(transactions)
}

/// A transaction as it was signed, and its number.
pub(super) fn transaction(connection: &Connection, hash: Hash) -> Result<Option<(i64, Transaction)>, StoreError> {
    let mut statement =
        connection.prepare_cached(&format!("{SELECT_TRANSACTIONS} WHERE hash = ?1")).map_err(reading)?;
    let mut rows = statement.query(params![hash.0]).map_err(reading)?;
    rows.next().map_err(reading)?.map(|found| transaction_in(connection, found)).transpose()
}

fn transaction_in(connection: &Connection, found: &Row<'_>) -> Result<(i64, Transaction), StoreError> {
    let mut cells = Cells::of("a transaction", found);
    let number = cells.number("number")?.cast_signed();
    let hash = Hash(cells.bytes("hash")?);
    let transaction = row::of(format_args!("transaction {hash}"), read_transaction(connection, number, hash, cells))?;
    Ok((number, transaction))
}

fn read_transaction(
    connection: &Connection,
    number: i64,
    hash: Hash,
    mut cells: Cells<'_, '_>,
) -> Result<Transaction, StoreError> {
    let sender = Address(cells.bytes("sender")?);
    let nonce = cells.number("nonce")?;
    let signed_at = cells.number("signed_at")?;
    let raw = cells.blob("raw")?.to_vec();
    let purpose = cells.text("purpose")?;
    let channel = cells.maybe_bytes("channel")?.map(ChannelId);
    let amount = cells.maybe_decimal("amount")?;
    let receiver = cells.maybe_bytes("receiver")?.map(Address);
    let token = cells.maybe_bytes("token")?.map(Address);
    let payer = cells.maybe_bytes("payer")?.map(Address);
    let payer_authorizer = cells.maybe_bytes("payer_authorizer")?.map(Address);
    let receiver_authorizer = cells.maybe_bytes("receiver_authorizer")?.map(Address);
    let withdraw_delay = cells.maybe_number("withdraw_delay")?;
    let channel_salt = cells.maybe_bytes("channel_salt")?.map(Hash);
    let deposit_salt = cells.maybe_bytes("deposit_salt")?.map(Hash);
    let valid_before = cells.maybe_number("valid_before")?;
    let refund_nonce = cells.maybe_decimal("refund_nonce")?;
    let seal = cells.number("seal")?;
    let purpose = match purpose {
        "claim" => Purpose::Claim { rows: claim_rows(connection, number)? },
        "settle" => Purpose::Settle { receiver: needed("receiver", receiver)?, token: needed("token", token)? },
        "deposit" => Purpose::Deposit {
            config: ChannelConfig {
                payer: needed("payer", payer)?,
                payer_authorizer: needed("payer_authorizer", payer_authorizer)?,
                receiver: needed("receiver", receiver)?,
                receiver_authorizer: needed("receiver_authorizer", receiver_authorizer)?,
                token: needed("token", token)?,
                withdraw_delay: needed("withdraw_delay", withdraw_delay)?,
                salt: needed("channel_salt", channel_salt)?,
            },
            amount: needed("amount", amount)?,
            salt: needed("deposit_salt", deposit_salt)?,
            valid_before: needed("valid_before", valid_before)?,
        },
        "refund" => Purpose::Refund {
            channel: needed("channel", channel)?,
            amount: needed("amount", amount)?,
            nonce: needed("refund_nonce", refund_nonce)?.units(),
            rows: claim_rows(connection, number)?,
        },
        other => return Err(damaged(format!("its purpose is {other:?}, which there is not"))),
    };
    let transaction = Transaction { hash, sender, nonce, raw, signed_at, purpose };
    check_seal(seal, seal_of_transaction(&transaction))?;
    Ok(transaction)
}

fn needed<T>(column: &str, value: Option<T>) -> Result<T, StoreError> {
    value.ok_or_else(|| damaged(format!("its {column} is missing")))
}

fn claim_rows(connection: &Connection, number: i64) -> Result<Vec<ClaimedRow>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT channel, total_claimed FROM claim_rows WHERE transaction_number = ?1 ORDER BY position")
        .map_err(reading)?;
    let mut rows = statement.query(params![number]).map_err(reading)?;
    let mut claimed = Vec::new();
    while let Some(found) = rows.next().map_err(reading)? {
        let mut cells = Cells::of("a row of its claim", found);
        let channel = ChannelId(cells.bytes("channel")?);
        claimed.push(ClaimedRow { channel, total_claimed: cells.decimal("total_claimed")? });
    }
    Ok(claimed)
}
