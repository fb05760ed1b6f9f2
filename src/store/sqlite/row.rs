//! Rows in and out: how values are written, and how a row is known to be whole.
//!
//! SQLite's pages carry no checksum, so a bit that flips in a number goes unnoticed, and here numbers are money. Every
//! row that cannot be checked against another has a seal: a CRC-32 of everything in it, in one fixed encoding.

use std::fmt::Display;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row};

use super::failure::{damaged, reading};
use crate::ledger::{LatestVoucher, SentRefund, Snapshot, View, Withdrawal};
use crate::protocol::{Address, Amount, ChannelConfig, ChannelId, Hash, Signature};
use crate::store::{ChannelRow, ClaimedRow, LastDeposit, Purpose, StoreError, Transaction};

/// A number of up to 128 bits, as decimal text. It is made in place: a row has many of them.
pub(super) struct Decimal {
    digits: [u8; MAX_DIGITS],
    /// Where they begin.
    from: usize,
}

/// Of 2^128 - 1.
const MAX_DIGITS: usize = 39;

impl From<u128> for Decimal {
    fn from(number: u128) -> Self {
        let mut digits = [b'0'; MAX_DIGITS];
        let mut from = MAX_DIGITS;
        let mut places = digits.iter_mut().rev();
        let mut put = |digit: u8| {
            if let Some(place) = places.next() {
                *place = b'0'.saturating_add(digit);
                from = from.saturating_sub(1);
            }
        };
        // Nearly all are short, and short division is much faster.
        let mut long = number;
        let mut short = loop {
            match u64::try_from(long) {
                Ok(short) => break short,
                Err(_) => {
                    put(u8::try_from(long % 10).unwrap_or_default());
                    long /= 10;
                }
            }
        };
        loop {
            put(u8::try_from(short % 10).unwrap_or_default());
            short /= 10;
            if short == 0 {
                break;
            }
        }
        Self { digits, from }
    }
}

impl From<Amount> for Decimal {
    fn from(amount: Amount) -> Self {
        amount.units().into()
    }
}

impl rusqlite::ToSql for Decimal {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.digits.get(self.from..).unwrap_or_default())))
    }
}

/// The columns of a row, read from left to right.
pub(super) struct Cells<'row, 'statement> {
    row: &'row Row<'statement>,
    next: usize,
    what: &'static str,
}

impl<'row, 'statement> Cells<'row, 'statement> {
    /// Begins at the first column; `what` a row is, for people.
    pub(super) fn of(what: &'static str, row: &'row Row<'statement>) -> Self {
        Self { row, next: 0, what }
    }

    fn take<T>(
        &mut self,
        column: &'static str,
        decode: impl FnOnce(ValueRef<'row>) -> Option<T>,
    ) -> Result<T, StoreError> {
        let value = self.row.get_ref(self.next).map_err(reading)?;
        self.next = self.next.saturating_add(1);
        decode(value).ok_or_else(|| damaged(format!("{} has a {column} that cannot be read", self.what)))
    }

    /// A 64-bit number. SQLite's integers have a sign and these have none; those beyond 2^63 (no clock, block or nonce
    /// is there, but a hostile node or payer may say so) are written as negative ones and come back as they were.
    pub(super) fn number(&mut self, column: &'static str) -> Result<u64, StoreError> {
        self.take(column, number)
    }

    /// The same, where it may be missing.
    pub(super) fn maybe_number(&mut self, column: &'static str) -> Result<Option<u64>, StoreError> {
        self.take(column, |value| maybe(value, number))
    }

    /// A number of up to 128 bits.
    pub(super) fn decimal(&mut self, column: &'static str) -> Result<Amount, StoreError> {
        self.take(column, decimal)
    }

    /// The same, where it may be missing.
    pub(super) fn maybe_decimal(&mut self, column: &'static str) -> Result<Option<Amount>, StoreError> {
        self.take(column, |value| maybe(value, decimal))
    }

    /// So many bytes.
    pub(super) fn bytes<const N: usize>(&mut self, column: &'static str) -> Result<[u8; N], StoreError> {
        self.take(column, fixed)
    }

    /// The same, where they may be missing.
    pub(super) fn maybe_bytes<const N: usize>(&mut self, column: &'static str) -> Result<Option<[u8; N]>, StoreError> {
        self.take(column, |value| maybe(value, fixed))
    }

    /// Any bytes.
    pub(super) fn blob(&mut self, column: &'static str) -> Result<&'row [u8], StoreError> {
        self.take(column, |value| value.as_blob().ok())
    }

    /// The same, where they may be missing.
    pub(super) fn maybe_blob(&mut self, column: &'static str) -> Result<Option<&'row [u8]>, StoreError> {
        self.take(column, |value| maybe(value, |value| value.as_blob().ok()))
    }

    /// A text.
    pub(super) fn text(&mut self, column: &'static str) -> Result<&'row str, StoreError> {
        self.take(column, |value| value.as_str().ok())
    }
}

fn maybe<'a, T>(value: ValueRef<'a>, decode: impl FnOnce(ValueRef<'a>) -> Option<T>) -> Option<Option<T>> {
    if matches!(value, ValueRef::Null) { Some(None) } else { decode(value).map(Some) }
}

fn number(value: ValueRef<'_>) -> Option<u64> {
    value.as_i64().ok().map(i64::cast_unsigned)
}

fn decimal(value: ValueRef<'_>) -> Option<Amount> {
    value.as_str().ok()?.parse().ok()
}

fn fixed<const N: usize>(value: ValueRef<'_>) -> Option<[u8; N]> {
    value.as_blob().ok()?.try_into().ok()
}

/// What [`channel`] reads, in its order.
const SELECT_CHANNELS: &str = "SELECT c.id, c.version, c.payer, c.payer_authorizer, c.salt, \
     t.receiver, t.receiver_authorizer, t.token, t.withdraw_delay, c.charged, c.max_claimable, c.signature, \
     c.view_block, c.balance, c.total_claimed, c.withdrawal_amount, c.withdrawal_at, c.refund_nonce, c.viewed_at, \
     c.open_refund_nonce, c.open_refund_amount, c.last_deposit_salt, c.last_deposit_charged, \
     c.line_minute, c.line_route_number, c.line_requests, c.line_amount, c.opened_at, c.changed_at, c.seal, c.unclaimed_since, \
     c.spent_up_to \
     FROM channels c LEFT JOIN terms t ON t.number = c.terms_number";

/// The query for [`channel`], from books of any version there was.
pub(super) fn select_channels(connection: &Connection) -> Result<String, StoreError> {
    let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(reading)?;
    let later = [(2, "c.unclaimed_since"), (3, "c.spent_up_to")].into_iter().filter(|(since, _)| version < *since);
    Ok(later.fold(SELECT_CHANNELS.to_owned(), |query, (_, column)| query.replace(column, "NULL")))
}

/// What the books have of a channel beyond its row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extra {
    /// The latest line of its charges.
    pub(super) line: Option<Line>,
    /// When the row was first written, Unix seconds; kept for people.
    pub(super) opened_at: u64,
    /// When it was last written, Unix seconds; kept for people.
    pub(super) changed_at: u64,
}

/// What a channel was charged in one minute on one route, while both are the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) minute: u64,
    pub(super) route_number: i64,
    pub(super) requests: u64,
    pub(super) amount: Amount,
}

impl Line {
    /// Reads four columns.
    pub(super) fn read(cells: &mut Cells<'_, '_>) -> Result<Option<Self>, StoreError> {
        let minute = cells.maybe_number("line_minute")?;
        let route_number = cells.maybe_number("line_route_number")?.map(u64::cast_signed);
        let requests = cells.maybe_number("line_requests")?;
        let amount = cells.maybe_decimal("line_amount")?;
        let one = both("line_minute and line_route_number", minute, route_number)?;
        let other = both("line_requests and line_amount", requests, amount)?;
        Ok(both("the columns of its line", one, other)?.map(|((minute, route_number), (requests, amount))| Self {
            minute,
            route_number,
            requests,
            amount,
        }))
    }
}

/// Reads a row of [`SELECT_CHANNELS`], and checks its seal.
pub(super) fn channel(row: &Row<'_>) -> Result<ChannelRow, StoreError> {
    let mut cells = Cells::of("a channel", row);
    let id = ChannelId(cells.bytes("id")?);
    of(format_args!("channel {id}"), read_channel(id, cells))
}

fn read_channel(id: ChannelId, mut cells: Cells<'_, '_>) -> Result<ChannelRow, StoreError> {
    cells.what = "its row";
    let version = cells.number("version")?;
    let payer = Address(cells.bytes("payer")?);
    let payer_authorizer = Address(cells.bytes("payer_authorizer")?);
    let salt = Hash(cells.bytes("salt")?);
    let config = ChannelConfig {
        payer,
        payer_authorizer,
        receiver: Address(cells.bytes("receiver (by its terms_number)")?),
        receiver_authorizer: Address(cells.bytes("receiver_authorizer (by its terms_number)")?),
        token: Address(cells.bytes("token (by its terms_number)")?),
        withdraw_delay: cells.number("withdraw_delay (by its terms_number)")?,
        salt,
    };
    let charged = cells.decimal("charged")?;
    let max_claimable = cells.maybe_decimal("max_claimable")?;
    let signature = cells.maybe_blob("signature")?;
    let latest = both("max_claimable and signature", max_claimable, signature)?
        .map(|(max_claimable, signature)| {
            Signature::from_bytes(signature)
                .map(|signature| LatestVoucher { max_claimable, signature })
                .ok_or_else(|| damaged("its row has a signature that is too long"))
        })
        .transpose()?;
    let block = cells.number("view_block")?;
    let balance = cells.decimal("balance")?;
    let total_claimed = cells.decimal("total_claimed")?;
    let withdrawal_amount = cells.maybe_decimal("withdrawal_amount")?;
    let withdrawal_at = cells.maybe_number("withdrawal_at")?;
    let withdrawal = both("withdrawal_amount and withdrawal_at", withdrawal_amount, withdrawal_at)?
        .map(|(amount, initiated_at)| Withdrawal { amount, initiated_at });
    let refund_nonce = cells.decimal("refund_nonce")?.units();
    let viewed_at = cells.number("viewed_at")?;
    let open_nonce = cells.maybe_decimal("open_refund_nonce")?;
    let open_amount = cells.maybe_decimal("open_refund_amount")?;
    let open_refund = both("open_refund_nonce and open_refund_amount", open_nonce, open_amount)?
        .map(|(nonce, amount)| SentRefund { nonce: nonce.units(), amount });
    let deposit_salt = cells.maybe_bytes("last_deposit_salt")?;
    let deposit_charged = cells.maybe_decimal("last_deposit_charged")?;
    let last_deposit = both("last_deposit_salt and last_deposit_charged", deposit_salt, deposit_charged)?
        .map(|(salt, charged)| LastDeposit { salt: Hash(salt), charged });
    let line = Line::read(&mut cells)?;
    let extra = Extra { line, opened_at: cells.number("opened_at")?, changed_at: cells.number("changed_at")? };
    let view = View { block, balance, total_claimed, withdrawal, refund_nonce };
    let seal = cells.number("seal")?;
    let unclaimed_since = cells.maybe_number("unclaimed_since")?;
    let spent_up_to = cells.maybe_decimal("spent_up_to")?;
    let snapshot = Snapshot { id, config, view, viewed_at, charged, latest, spent_up_to, open_refund, unclaimed_since };
    let row = ChannelRow { snapshot, version, last_deposit };
    check_seal(seal, seal_of_channel(&row, extra))?;
    Ok(row)
}

/// Two columns that are there together or not at all.
fn both<A, B>(columns: &str, one: Option<A>, other: Option<B>) -> Result<Option<(A, B)>, StoreError> {
    match (one, other) {
        (Some(one), Some(other)) => Ok(Some((one, other))),
        (None, None) => Ok(None),
        _ => Err(damaged(format!("its row has one of {columns} without the other"))),
    }
}

/// Whether a row is as it was written.
pub(super) fn check_seal(found: u64, computed: u32) -> Result<(), StoreError> {
    if found == u64::from(computed) { Ok(()) } else { Err(damaged("its row does not match its seal")) }
}

/// The seal of a channel's row. What is taken apart here is sealed: a new field does not compile until it is, or is left
/// out on purpose.
pub(super) fn seal_of_channel(row: &ChannelRow, extra: Extra) -> u32 {
    let Extra { line, opened_at, changed_at } = extra;
    let ChannelRow { snapshot, version, last_deposit } = row;
    // `unclaimed_since` came later than the seal, and says when to claim, not how much.
    let Snapshot { id, config, view, viewed_at, charged, latest, spent_up_to, open_refund, unclaimed_since: _ } =
        snapshot;
    let View { block, balance, total_claimed, withdrawal, refund_nonce } = view;
    let mut seal = Seal::of(b"channel");
    seal.fixed(&id.0);
    seal.number(*version);
    seal.config(config);
    seal.amount(*charged);
    seal.maybe(latest.as_ref(), |seal, LatestVoucher { max_claimable, signature }| {
        seal.amount(*max_claimable);
        seal.bytes(signature.as_bytes());
    });
    seal.number(*block);
    seal.amount(*balance);
    seal.amount(*total_claimed);
    seal.maybe(withdrawal.as_ref(), |seal, Withdrawal { amount, initiated_at }| {
        seal.amount(*amount);
        seal.number(*initiated_at);
    });
    seal.long(*refund_nonce);
    seal.number(*viewed_at);
    seal.maybe(open_refund.as_ref(), |seal, SentRefund { nonce, amount }| {
        seal.long(*nonce);
        seal.amount(*amount);
    });
    seal.maybe(last_deposit.as_ref(), |seal, LastDeposit { salt, charged }| {
        seal.fixed(&salt.0);
        seal.amount(*charged);
    });
    seal.maybe(line.as_ref(), |seal, Line { minute, route_number, requests, amount }| {
        seal.number(*minute);
        seal.number(route_number.cast_unsigned());
        seal.number(*requests);
        seal.amount(*amount);
    });
    seal.number(opened_at);
    seal.number(changed_at);
    // It came later, too, and keeps payers from being charged twice for one voucher. Where there is none the row is sealed
    // as it always was; where there is one nothing else can be at the end.
    if let Some(spent_up_to) = spent_up_to {
        seal.amount(*spent_up_to);
    }
    seal.finish()
}

/// The seal of a transaction as it was signed; what becomes of it is the chain's to say.
pub(super) fn seal_of_transaction(transaction: &Transaction) -> u32 {
    let Transaction { hash, sender, nonce, raw, signed_at, purpose } = transaction;
    let mut seal = Seal::of(b"transaction");
    seal.fixed(&hash.0);
    seal.fixed(&sender.0);
    seal.number(*nonce);
    seal.bytes(raw);
    seal.number(*signed_at);
    seal.bytes(purpose.as_str().as_bytes());
    match purpose {
        Purpose::Claim { rows } => seal.claim(rows),
        Purpose::Settle { receiver, token } => {
            seal.fixed(&receiver.0);
            seal.fixed(&token.0);
        }
        Purpose::Deposit { config, amount, salt, valid_before } => {
            seal.config(config);
            seal.amount(*amount);
            seal.fixed(&salt.0);
            seal.number(*valid_before);
        }
        Purpose::Refund { channel, amount, nonce, rows } => {
            seal.fixed(&channel.0);
            seal.amount(*amount);
            seal.long(*nonce);
            seal.claim(rows);
        }
    }
    seal.finish()
}

/// The seal of how far the chain was followed.
pub(super) fn seal_of_cursor(next_block: u64) -> u32 {
    let mut seal = Seal::of(b"cursor");
    seal.number(next_block);
    seal.finish()
}

/// One fixed encoding: numbers big-endian in their full width, bytes of varying length after their length, a byte that
/// says whether what may be missing is there. No two different rows have the same.
struct Seal(Vec<u8>);

/// Room for nearly every row.
const USUAL_ROW_BYTES: usize = 512;

impl Seal {
    fn of(kind: &[u8]) -> Self {
        let mut seal = Self(Vec::with_capacity(USUAL_ROW_BYTES));
        seal.bytes(kind);
        seal
    }

    fn fixed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.fixed(bytes);
    }

    fn number(&mut self, number: u64) {
        self.fixed(&number.to_be_bytes());
    }

    fn long(&mut self, number: u128) {
        self.fixed(&number.to_be_bytes());
    }

    fn amount(&mut self, amount: Amount) {
        self.long(amount.units());
    }

    fn maybe<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Self, &T)) {
        self.fixed(&[u8::from(value.is_some())]);
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn config(&mut self, config: &ChannelConfig) {
        let ChannelConfig { payer, payer_authorizer, receiver, receiver_authorizer, token, withdraw_delay, salt } =
            config;
        for address in [payer, payer_authorizer, receiver, receiver_authorizer, token] {
            self.fixed(&address.0);
        }
        self.number(*withdraw_delay);
        self.fixed(&salt.0);
    }

    fn claim(&mut self, rows: &[ClaimedRow]) {
        self.number(u64::try_from(rows.len()).unwrap_or(u64::MAX));
        for ClaimedRow { channel, total_claimed } in rows {
            self.fixed(&channel.0);
            self.amount(*total_claimed);
        }
    }

    fn finish(self) -> u32 {
        crc32fast::hash(&self.0)
    }
}

/// Names what is damaged.
pub(super) fn of<T>(what: impl Display, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
    outcome.map_err(|error| match error {
        StoreError::Damaged { what: inner, source } => StoreError::Damaged { what: format!("{what}: {inner}"), source },
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::ToSql as _;

    use super::*;

    fn text(number: u128) -> String {
        let decimal = Decimal::from(number);
        let ToSqlOutput::Borrowed(ValueRef::Text(text)) = decimal.to_sql().unwrap() else { panic!("no text") };
        String::from_utf8(text.to_vec()).unwrap()
    }

    #[test]
    fn decimals_at_the_edges_are_the_numbers_they_stand_for() {
        let short = u128::from(u64::MAX);
        for number in [0, 1, 9, 10, 11, 99, 100, short - 1, short, short + 1, short * 10 + 9, u128::MAX - 1, u128::MAX]
        {
            assert_eq!(text(number), number.to_string());
        }
    }

    proptest! {
        #[test]
        fn a_decimal_is_the_number_it_stands_for(number: u128, shift in 0u32..128) {
            prop_assert_eq!(text(number >> shift), (number >> shift).to_string());
        }
    }
}
