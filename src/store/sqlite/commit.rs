//! Entries into tables.

use std::collections::HashMap;
use std::hash::Hash as Key;
use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, OptionalExtension as _, params};

use super::failure::{damaged, refused, writing};
use super::read;
use super::row::{self, Cells, Decimal, Extra, Line, seal_of_channel, seal_of_cursor, seal_of_transaction};
use crate::ledger::{SentRefund, Snapshot, View};
use crate::protocol::{Address, Amount, ChannelConfig, ChannelId, Domain};
use crate::store::{
    Booking, ChannelEntry, ChannelRow, Cursor, Entry, Fate, LastDeposit, Moved, Outcome, Purpose, StoreError,
    Transaction,
};

/// How many terms and how many routes the writer remembers the numbers of. A provider has a few of each.
const MAX_REMEMBERED: usize = 1_024;

/// Charges are added up by the minute.
const MINUTE_S: u64 = 60;

const FIND_CHANNEL: &str = "SELECT number, version, line_minute, line_route_number, line_requests, line_amount, \
     opened_at FROM channels WHERE id = ?1";

const INSERT_CHANNEL: &str = "INSERT INTO channels (version, id, payer, payer_authorizer, salt, terms_number, charged, \
     max_claimable, signature, view_block, balance, total_claimed, withdrawal_amount, withdrawal_at, refund_nonce, \
     viewed_at, open_refund_nonce, open_refund_amount, last_deposit_salt, last_deposit_charged, line_minute, \
     line_route_number, line_requests, line_amount, opened_at, changed_at, seal, unclaimed_since, spent_up_to, number) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, \
     ?24, ?25, ?26, ?27, ?28, ?29, ?30)";

const REPLACE_CHANNEL: &str = "UPDATE channels SET version = ?1, payer = ?3, payer_authorizer = ?4, salt = ?5, \
     terms_number = ?6, charged = ?7, max_claimable = ?8, signature = ?9, view_block = ?10, balance = ?11, \
     total_claimed = ?12, withdrawal_amount = ?13, withdrawal_at = ?14, refund_nonce = ?15, viewed_at = ?16, \
     open_refund_nonce = ?17, open_refund_amount = ?18, last_deposit_salt = ?19, last_deposit_charged = ?20, \
     line_minute = ?21, line_route_number = ?22, line_requests = ?23, line_amount = ?24, opened_at = ?25, \
     changed_at = ?26, seal = ?27, unclaimed_since = ?28, spent_up_to = ?29 \
     WHERE number = ?30 AND id = ?2 AND version = ?31";

/// What a charge changes. Each value that is bound is copied, so those that are there already are not bound again.
const CHARGE_CHANNEL: &str = "UPDATE channels SET version = ?1, charged = ?2, max_claimable = ?3, signature = ?4, \
     line_minute = ?5, line_route_number = ?6, line_requests = ?7, line_amount = ?8, changed_at = ?9, seal = ?10, \
     unclaimed_since = ?11, spent_up_to = ?12 WHERE number = ?13 AND version = ?14";

/// `add_amounts` is ours: SQLite's own sums are of 64 bits, or floats.
const ADD_LINE: &str = "INSERT INTO charges (minute, channel_number, route_number, requests, amount) \
     VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET requests = requests + excluded.requests, \
     amount = add_amounts(amount, excluded.amount)";

const ADD_ADJUSTMENT: &str =
    "INSERT INTO adjustments (at, channel_number, sum_before, sum_after, why) VALUES (?1, ?2, ?3, ?4, ?5)";

const FIND_TERMS: &str = "SELECT number FROM terms \
     WHERE receiver = ?1 AND receiver_authorizer = ?2 AND token = ?3 AND withdraw_delay = ?4";
const ADD_TERMS: &str =
    "INSERT INTO terms (receiver, receiver_authorizer, token, withdraw_delay) VALUES (?1, ?2, ?3, ?4)";

const FIND_ROUTE: &str = "SELECT number FROM routes WHERE name = ?1";
const ADD_ROUTE: &str = "INSERT INTO routes (name) VALUES (?1)";

const ADD_TRANSACTION: &str = "INSERT INTO transactions (hash, sender, nonce, signed_at, raw, purpose, channel, amount, \
     receiver, token, payer, payer_authorizer, receiver_authorizer, withdraw_delay, channel_salt, deposit_salt, \
     valid_before, refund_nonce, seal) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)";
const ADD_CLAIM_ROW: &str =
    "INSERT INTO claim_rows (transaction_number, position, channel, total_claimed) VALUES (?1, ?2, ?3, ?4)";

const END_TRANSACTION: &str = "UPDATE transactions SET state = ?2, ended_at = ?3, block = ?4, gas_used = ?5, \
     fee_wei = ?6 WHERE hash = ?1 RETURNING number";
const REOPEN_TRANSACTION: &str = "UPDATE transactions SET state = 'open', ended_at = NULL WHERE hash = ?1 \
     AND state IN ('never_sent', 'replaced', 'given_up')";
const FORGET_MOVEMENTS: &str = "DELETE FROM movements WHERE transaction_number = ?1";
const ADD_MOVEMENT: &str =
    "INSERT INTO movements (at, transaction_number, kind, channel, amount) VALUES (?1, ?2, ?3, ?4, ?5)";

const SET_CURSOR: &str = "INSERT INTO cursor (only_row, next_block, seal) VALUES (1, ?1, ?2) \
     ON CONFLICT DO UPDATE SET next_block = excluded.next_block, seal = excluded.seal";

/// The numbers of what is written once and named often. Only what a commit in progress wrote can be wrong in it, and
/// after a commit that failed nothing is written any more.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    terms: Remembered<TermsKey>,
    routes: Remembered<Arc<str>>,
}

type TermsKey = (Address, Address, Address, u64);

#[derive(Debug)]
struct Remembered<K>(HashMap<K, i64>);

impl<K> Default for Remembered<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Key + Eq> Remembered<K> {
    fn keep(&mut self, key: K, number: i64) {
        if self.0.len() >= MAX_REMEMBERED {
            self.0.clear();
        }
        self.0.insert(key, number);
    }
}

/// The rows that were written last, so that the next charge need not look for its row or write all of it. As with
/// [`Numbers`], only a commit that fails can make it wrong. Whether the row on disk is still the one that is known here,
/// the statement that writes over it looks: by its version.
#[derive(Debug, Default)]
pub(super) struct KnownRows(HashMap<ChannelId, Box<Known>>);

/// How many rows are known at most: the hot ones, about 18 MB. When there are more, all are forgotten.
pub(super) const MAX_KNOWN_ROWS: usize = 32_768;

#[cfg(test)]
impl KnownRows {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// What a channel's new row is built on.
#[derive(Debug)]
struct Known {
    number: i64,
    version: u64,
    line: Option<Line>,
    opened_at: u64,
    /// Nothing where the row was only found.
    rest: Option<Rest>,
}

/// What a charge leaves as it is.
#[derive(Debug, PartialEq, Eq)]
struct Rest {
    config: ChannelConfig,
    view: View,
    viewed_at: u64,
    open_refund: Option<SentRefund>,
    last_deposit: Option<LastDeposit>,
}

impl Rest {
    /// What is not here is written by every charge: a new field of a row does not compile until it is in one of the two.
    fn of(row: &ChannelRow) -> Self {
        let ChannelRow { snapshot, version: _, last_deposit } = row;
        let Snapshot {
            id: _,
            config,
            view,
            viewed_at,
            charged: _,
            latest: _,
            spent_up_to: _,
            open_refund,
            unclaimed_since: _,
        } = snapshot;
        Self {
            config: *config,
            view: *view,
            viewed_at: *viewed_at,
            open_refund: *open_refund,
            last_deposit: *last_deposit,
        }
    }
}

/// A channel whose row is written at the end of the commit.
struct Pending<'e> {
    known: Box<Known>,
    /// The version that is on disk.
    on_disk: u64,
    row: &'e ChannelRow,
    changed_at: u64,
}

/// The entries of one commit. Of a channel that changes several times in it, the last row is written, once. The statements
/// of the hot path are looked up once for all of them.
pub(super) struct Batch<'c, 'e> {
    connection: &'c Connection,
    numbers: &'c mut Numbers,
    known: &'c mut KnownRows,
    domain: &'c Domain,
    pending: Vec<Pending<'e>>,
    /// By channel, the place in `pending`.
    places: HashMap<ChannelId, usize>,
    find_channel: Option<CachedStatement<'c>>,
    replace_channel: Option<CachedStatement<'c>>,
    charge_channel: Option<CachedStatement<'c>>,
    add_line: Option<CachedStatement<'c>>,
}

impl<'c, 'e> Batch<'c, 'e> {
    pub(super) fn of(
        connection: &'c Connection,
        numbers: &'c mut Numbers,
        known: &'c mut KnownRows,
        domain: &'c Domain,
        entries: usize,
    ) -> Self {
        Self {
            connection,
            numbers,
            known,
            domain,
            pending: Vec::with_capacity(entries),
            places: HashMap::with_capacity(entries),
            find_channel: None,
            replace_channel: None,
            charge_channel: None,
            add_line: None,
        }
    }

    pub(super) fn add(&mut self, entry: &'e Entry) -> Result<(), StoreError> {
        match entry {
            Entry::Channel(entry) => self.channel(entry),
            Entry::Signed(transaction) => self.signed(transaction),
            Entry::Ended(outcome) => self.ended(outcome),
            Entry::Cursor(cursor) => self.cursor(*cursor),
        }
    }

    /// Writes what was only collected. To be called after the last entry.
    pub(super) fn finish(mut self) -> Result<(), StoreError> {
        for pending in std::mem::take(&mut self.pending) {
            self.replace(pending)?;
        }
        Ok(())
    }

    fn channel(&mut self, entry: &'e ChannelEntry) -> Result<(), StoreError> {
        let ChannelEntry { row, booking } = entry;
        let id = row.snapshot.id;
        let Some(expected) = row.version.checked_sub(1) else {
            return Err(refused("written", format!("channel {id}: a row's first version is 1, not 0")));
        };
        let place = self.places.get(&id).copied();
        let known = match place.and_then(|place| self.pending.get(place)) {
            Some(pending) => Some((pending.known.number, pending.known.version, pending.known.line)),
            None => match self.known.0.remove(&id) {
                Some(known) => Some(self.collect(id, known, row)),
                None => self.find(id)?.map(|known| self.collect(id, Box::new(known), row)),
            },
        };
        let there = known.map(|(_, version, _)| version);
        if there.unwrap_or(0) != expected || there == Some(0) {
            return Err(StoreError::Conflict { channel: id, expected, found: there });
        }
        let changed_at = match booking {
            Booking::Charge { at, .. } | Booking::Adjustment { at, .. } => *at,
            Booking::Nothing => row.snapshot.viewed_at,
        };
        let (line, closed) = self.line(id, known.and_then(|(_, _, line)| line), booking)?;
        let number = match known {
            Some((number, ..)) => number,
            None => {
                let extra = Extra { line, opened_at: changed_at, changed_at };
                let number = self.insert(row, extra)?;
                let known =
                    Known { number, version: row.version, line, opened_at: changed_at, rest: Some(Rest::of(row)) };
                self.collect(id, Box::new(known), row);
                number
            }
        };
        let place = self.places.get(&id).copied();
        if let Some(pending) = place.and_then(|place| self.pending.get_mut(place)) {
            (pending.row, pending.changed_at) = (row, changed_at);
            (pending.known.version, pending.known.line) = (row.version, line);
        }
        if let Some(Line { minute, route_number, requests, amount }) = closed {
            let (minute, requests) = (minute.cast_signed(), requests.cast_signed());
            ready(&mut self.add_line, self.connection, ADD_LINE)?
                .execute(params![minute, number, route_number, requests, Decimal::from(amount)])
                .map_err(writing)?;
        }
        if let Booking::Adjustment { from, to, at, why } = booking {
            let values = params![at.cast_signed(), number, Decimal::from(*from), Decimal::from(*to), why.as_str()];
            self.execute(ADD_ADJUSTMENT, values)?;
        }
        Ok(())
    }

    /// Takes a channel into the commit as it is on disk; returns its number, version and line.
    fn collect(&mut self, id: ChannelId, known: Box<Known>, row: &'e ChannelRow) -> (i64, u64, Option<Line>) {
        let there = (known.number, known.version, known.line);
        self.places.insert(id, self.pending.len());
        self.pending.push(Pending { on_disk: known.version, known, row, changed_at: 0 });
        there
    }

    /// What is there of a channel.
    fn find(&mut self, id: ChannelId) -> Result<Option<Known>, StoreError> {
        let find = ready(&mut self.find_channel, self.connection, FIND_CHANNEL)?;
        let mut rows = find.query(params![id.0]).map_err(writing)?;
        let Some(found) = rows.next().map_err(writing)? else { return Ok(None) };
        let mut cells = Cells::of("its row", found);
        let found = (|| {
            Ok(Known {
                number: cells.number("number")?.cast_signed(),
                version: cells.number("version")?,
                line: Line::read(&mut cells)?,
                opened_at: cells.number("opened_at")?,
                rest: None,
            })
        })();
        row::of(format_args!("channel {id}"), found).map(Some)
    }

    /// The channel's latest line after a booking, and the one that is closed by it.
    fn line(
        &mut self,
        id: ChannelId,
        line: Option<Line>,
        booking: &Booking,
    ) -> Result<(Option<Line>, Option<Line>), StoreError> {
        let Booking::Charge { route, amount, at } = booking else { return Ok((line, None)) };
        let (minute, route_number, amount) = (at - at % MINUTE_S, self.route(route)?, *amount);
        match line {
            Some(line) if (line.minute, line.route_number) == (minute, route_number) => {
                let sum = line.amount.checked_add(amount).zip(line.requests.checked_add(1));
                let Some((amount, requests)) = sum else {
                    return Err(damaged(format!("channel {id}: its line of charges cannot grow by another")));
                };
                Ok((Some(Line { amount, requests, ..line }), None))
            }
            closed => Ok((Some(Line { minute, route_number, requests: 1, amount }), closed)),
        }
    }

    /// Writes the last row of a channel over the one that is there.
    fn replace(&mut self, pending: Pending<'e>) -> Result<(), StoreError> {
        let Pending { mut known, on_disk, row, changed_at } = pending;
        let id = row.snapshot.id;
        // One that was made in this commit and did not change again.
        if known.version != on_disk {
            let extra = Extra { line: known.line, opened_at: known.opened_at, changed_at };
            let rest = Rest::of(row);
            let changed = if known.rest.as_ref() == Some(&rest) {
                self.charge(row, extra, known.number, on_disk)?
            } else {
                known.rest = Some(rest);
                self.write(row, extra, Some((known.number, on_disk)))?
            };
            if changed != 1 {
                let found = self.find(id)?.map(|found| found.version);
                return Err(if found == Some(on_disk) {
                    damaged(format!("channel {id}: the index of ids leads to another's row"))
                } else {
                    StoreError::Conflict { channel: id, expected: on_disk, found }
                });
            }
        }
        if self.known.0.len() >= MAX_KNOWN_ROWS {
            self.known.0.clear();
        }
        self.known.0.insert(id, known);
        Ok(())
    }

    /// Writes what a charge changes over the row of a number and version; returns how many there were.
    fn charge(&mut self, row: &ChannelRow, extra: Extra, number: i64, on_disk: u64) -> Result<usize, StoreError> {
        let Snapshot { charged, latest, spent_up_to, unclaimed_since, .. } = &row.snapshot;
        let Extra { line, changed_at, .. } = extra;
        let values = params![
            row.version.cast_signed(),
            Decimal::from(*charged),
            latest.as_ref().map(|latest| Decimal::from(latest.max_claimable)),
            latest.as_ref().map(|latest| latest.signature.as_bytes()),
            line.map(|line| line.minute.cast_signed()),
            line.map(|line| line.route_number),
            line.map(|line| line.requests.cast_signed()),
            line.map(|line| Decimal::from(line.amount)),
            changed_at.cast_signed(),
            i64::from(seal_of_channel(row, extra)),
            unclaimed_since.map(u64::cast_signed),
            spent_up_to.map(Decimal::from),
            number,
            on_disk.cast_signed(),
        ];
        ready(&mut self.charge_channel, self.connection, CHARGE_CHANNEL)?.execute(values).map_err(writing)
    }

    /// Writes a new row; returns its number.
    fn insert(&mut self, row: &ChannelRow, extra: Extra) -> Result<i64, StoreError> {
        self.write(row, extra, None)?;
        Ok(self.connection.last_insert_rowid())
    }

    /// Writes a whole row, over the one of a number and version or as a new one; returns how many were written.
    fn write(&mut self, row: &ChannelRow, extra: Extra, over: Option<(i64, u64)>) -> Result<usize, StoreError> {
        let ChannelRow { snapshot, version, last_deposit } = row;
        let Extra { line, opened_at, changed_at } = extra;
        let (config, view) = (&snapshot.config, &snapshot.view);
        let terms = self.terms(config)?;
        let values = params![
            version.cast_signed(),
            snapshot.id.0,
            config.payer.0,
            config.payer_authorizer.0,
            config.salt.0,
            terms,
            Decimal::from(snapshot.charged),
            snapshot.latest.as_ref().map(|latest| Decimal::from(latest.max_claimable)),
            snapshot.latest.as_ref().map(|latest| latest.signature.as_bytes()),
            view.block.cast_signed(),
            Decimal::from(view.balance),
            Decimal::from(view.total_claimed),
            view.withdrawal.map(|withdrawal| Decimal::from(withdrawal.amount)),
            view.withdrawal.map(|withdrawal| withdrawal.initiated_at.cast_signed()),
            Decimal::from(view.refund_nonce),
            snapshot.viewed_at.cast_signed(),
            snapshot.open_refund.map(|refund| Decimal::from(refund.nonce)),
            snapshot.open_refund.map(|refund| Decimal::from(refund.amount)),
            last_deposit.map(|deposit| deposit.salt.0),
            last_deposit.map(|deposit| Decimal::from(deposit.charged)),
            line.map(|line| line.minute.cast_signed()),
            line.map(|line| line.route_number),
            line.map(|line| line.requests.cast_signed()),
            line.map(|line| Decimal::from(line.amount)),
            opened_at.cast_signed(),
            changed_at.cast_signed(),
            i64::from(seal_of_channel(row, extra)),
            snapshot.unclaimed_since.map(u64::cast_signed),
            snapshot.spent_up_to.map(Decimal::from),
            over.map(|(number, _)| number),
            over.map(|(_, version)| version.cast_signed()),
        ];
        match over {
            Some(_) => ready(&mut self.replace_channel, self.connection, REPLACE_CHANNEL)?.execute(values),
            // The last value is of the condition only.
            None => self
                .connection
                .prepare_cached(INSERT_CHANNEL)
                .and_then(|mut statement| statement.execute(values.get(..values.len() - 1).unwrap_or_default())),
        }
        .map_err(writing)
    }

    fn signed(&mut self, transaction: &Transaction) -> Result<(), StoreError> {
        let Transaction { hash, sender, nonce, raw, signed_at, purpose } = transaction;
        if let Some((_, known)) = read::transaction(self.connection, *hash)? {
            // It is about to be sent once more: refused before, it was signed again, and the same nonce and fees give the
            // same bytes. The books keep when it was signed first, and it is open again.
            return if known == (Transaction { signed_at: known.signed_at, ..transaction.clone() }) {
                self.execute(REOPEN_TRANSACTION, params![hash.0])
            } else {
                Err(refused("written", format!("transaction {hash} is already there, and is another")))
            };
        }
        let mut columns = Columns::default();
        match purpose {
            Purpose::Claim { .. } => {}
            Purpose::Settle { receiver, token } => {
                columns.receiver = Some(receiver.0);
                columns.token = Some(token.0);
            }
            Purpose::Deposit { config, amount, salt, valid_before } => {
                columns = Columns {
                    channel: Some(config.id(self.domain).0),
                    amount: Some(*amount),
                    receiver: Some(config.receiver.0),
                    token: Some(config.token.0),
                    payer: Some(config.payer.0),
                    payer_authorizer: Some(config.payer_authorizer.0),
                    receiver_authorizer: Some(config.receiver_authorizer.0),
                    withdraw_delay: Some(config.withdraw_delay.cast_signed()),
                    channel_salt: Some(config.salt.0),
                    deposit_salt: Some(salt.0),
                    valid_before: Some(valid_before.cast_signed()),
                    refund_nonce: None,
                };
            }
            Purpose::Refund { channel, amount, nonce, .. } => {
                columns.channel = Some(channel.0);
                columns.amount = Some(*amount);
                columns.refund_nonce = Some(*nonce);
            }
        }
        let values = params![
            hash.0,
            sender.0,
            nonce.cast_signed(),
            signed_at.cast_signed(),
            raw,
            purpose.as_str(),
            columns.channel,
            columns.amount.map(Decimal::from),
            columns.receiver,
            columns.token,
            columns.payer,
            columns.payer_authorizer,
            columns.receiver_authorizer,
            columns.withdraw_delay,
            columns.channel_salt,
            columns.deposit_salt,
            columns.valid_before,
            columns.refund_nonce.map(Decimal::from),
            i64::from(seal_of_transaction(transaction)),
        ];
        self.execute(ADD_TRANSACTION, values)?;
        let number = self.connection.last_insert_rowid();
        for (position, row) in (0i64..).zip(purpose.rows()) {
            self.execute(ADD_CLAIM_ROW, params![number, position, row.channel.0, Decimal::from(row.total_claimed)])?;
        }
        Ok(())
    }

    /// An outcome replaces the one before it: what was given up may be mined after all, and a block that a
    /// reorganisation dropped may be followed by another.
    fn ended(&mut self, outcome: &Outcome) -> Result<(), StoreError> {
        let Outcome { hash, at, fate } = outcome;
        let (state, block, gas_used, fee_wei, moved) = match fate {
            Fate::Mined { block, success, gas_used, fee_wei, moved } => {
                let state = if *success { read::MINED } else { read::REVERTED };
                (
                    state,
                    Some(block.cast_signed()),
                    Some(gas_used.cast_signed()),
                    fee_wei.map(Decimal::from),
                    moved.as_slice(),
                )
            }
            Fate::NeverSent => (read::NEVER_SENT, None, None, None, [].as_slice()),
            Fate::Replaced => (read::REPLACED, None, None, None, [].as_slice()),
            Fate::GivenUp => (read::GIVEN_UP, None, None, None, [].as_slice()),
        };
        let number: Option<i64> = self
            .connection
            .prepare_cached(END_TRANSACTION)
            .and_then(|mut statement| {
                let values = params![hash.0, state, at.cast_signed(), block, gas_used, fee_wei];
                statement.query_row(values, |row| row.get(0)).optional()
            })
            .map_err(writing)?;
        let Some(number) = number else {
            return Err(refused("written", format!("transaction {hash} ended and was never written down as signed")));
        };
        self.execute(FORGET_MOVEMENTS, params![number])?;
        for moved in moved {
            let (kind, channel, amount) = match moved {
                Moved::Deposited(channel, amount) => (read::DEPOSITED, Some(channel), amount),
                Moved::Claimed(channel, amount) => (read::CLAIMED, Some(channel), amount),
                Moved::Refunded(channel, amount) => (read::REFUNDED, Some(channel), amount),
                Moved::Settled(amount) => (read::SETTLED, None, amount),
            };
            let values =
                params![at.cast_signed(), number, kind, channel.map(|channel| channel.0), Decimal::from(*amount)];
            self.execute(ADD_MOVEMENT, values)?;
        }
        Ok(())
    }

    fn cursor(&mut self, cursor: Cursor) -> Result<(), StoreError> {
        let Cursor { next_block } = cursor;
        self.execute(SET_CURSOR, params![next_block.cast_signed(), i64::from(seal_of_cursor(next_block))])
    }

    fn terms(&mut self, config: &ChannelConfig) -> Result<i64, StoreError> {
        let ChannelConfig { receiver, receiver_authorizer, token, withdraw_delay, .. } = *config;
        let key = (receiver, receiver_authorizer, token, withdraw_delay);
        if let Some(number) = self.numbers.terms.0.get(&key) {
            return Ok(*number);
        }
        let values = params![receiver.0, receiver_authorizer.0, token.0, withdraw_delay.cast_signed()];
        let number = self.number_of(FIND_TERMS, ADD_TERMS, values)?;
        self.numbers.terms.keep(key, number);
        Ok(number)
    }

    fn route(&mut self, name: &Arc<str>) -> Result<i64, StoreError> {
        if let Some(number) = self.numbers.routes.0.get(name) {
            return Ok(*number);
        }
        let number = self.number_of(FIND_ROUTE, ADD_ROUTE, params![name])?;
        self.numbers.routes.keep(Arc::clone(name), number);
        Ok(number)
    }

    fn number_of(&self, find: &str, add: &str, values: &[&dyn rusqlite::ToSql]) -> Result<i64, StoreError> {
        let found = self
            .connection
            .prepare_cached(find)
            .and_then(|mut statement| statement.query_row(values, |row| row.get(0)).optional())
            .map_err(writing)?;
        if let Some(number) = found {
            return Ok(number);
        }
        self.execute(add, values)?;
        Ok(self.connection.last_insert_rowid())
    }

    fn execute(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(values))
            .map(drop)
            .map_err(writing)
    }
}

/// A statement, made when it is first needed.
fn ready<'a, 'c>(
    place: &'a mut Option<CachedStatement<'c>>,
    connection: &'c Connection,
    sql: &'static str,
) -> Result<&'a mut CachedStatement<'c>, StoreError> {
    if place.is_none() {
        *place = Some(connection.prepare_cached(sql).map_err(writing)?);
    }
    Ok(place.as_mut().expect("it was made above"))
}

/// What only some purposes have.
#[derive(Default)]
struct Columns {
    channel: Option<[u8; 32]>,
    amount: Option<Amount>,
    receiver: Option<[u8; 20]>,
    token: Option<[u8; 20]>,
    payer: Option<[u8; 20]>,
    payer_authorizer: Option<[u8; 20]>,
    receiver_authorizer: Option<[u8; 20]>,
    withdraw_delay: Option<i64>,
    channel_salt: Option<[u8; 32]>,
    deposit_salt: Option<[u8; 32]>,
    valid_before: Option<i64>,
    refund_nonce: Option<u128>,
}

/// `add_amounts(a, b)`: the exact sum of two amounts. A text that is none, or a sum beyond 128 bits, is damage.
pub(super) fn register_functions(connection: &Connection) -> rusqlite::Result<()> {
    use rusqlite::functions::FunctionFlags;
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_DIRECTONLY;
    connection.create_scalar_function("add_amounts", 2, flags, |context| {
        let amount = |index| context.get_raw(index).as_str().ok().and_then(|text| text.parse::<Amount>().ok());
        let sum = amount(0).zip(amount(1)).and_then(|(one, other)| one.checked_add(other));
        // No message: SQLite would make the code that of an ordinary error with it.
        let damage = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        sum.map(|sum| sum.to_string()).ok_or(rusqlite::Error::SqliteFailure(damage, None))
    })
}
