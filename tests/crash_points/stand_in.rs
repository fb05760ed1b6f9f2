//! A small store over plain SQLite, and a workload of paid requests for it.
//!
//! It is what the simulator is tried on: done well ([`Habits::good`]) it must pass, and with any one of its habits left
//! out the simulator must notice.

use std::collections::BTreeMap;

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};

use crate::dice::Dice;
use crate::store::{Refusal, Store, Workload};

/// Where the books are on the disk.
const PATH: &str = "/books.db";

/// A checkpoint every few commits, so that a short run crosses many and starts its WAL anew after each.
const CHECKPOINT_PAGES: u32 = 24;

/// As many as make the tables deeper than one page.
const CHANNELS: usize = 48;

/// The length of a voucher's signature, and of a signed transaction.
const SIGNATURE: usize = 65;
const TRANSACTION: usize = 300;

/// How the stand-in treats its disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    /// The books do not open unless they are in WAL mode.
    pub(crate) insist_on_wal: bool,
    /// `PRAGMA synchronous`.
    pub(crate) synchronous: &'static str,
    /// After a commit failed, no other is tried.
    pub(crate) latch: bool,
    /// After a commit failed, a row is committed over what is left of it in the WAL.
    pub(crate) overwrite_refused: bool,
    /// What a WAL holds when the books are opened is brought into the database, and synced, before anything else.
    pub(crate) checkpoint_on_open: bool,
}

impl Habits {
    /// What durable books need.
    pub(crate) fn good() -> Self {
        Self {
            insist_on_wal: true,
            synchronous: "FULL",
            latch: true,
            overwrite_refused: true,
            checkpoint_on_open: true,
        }
    }
}

/// One change of the books.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Opened { channel: usize, balance: i64 },
    Charged { channel: usize, amount: i64, signature: Vec<u8> },
    Viewed { channel: usize, block: i64, balance: i64 },
    Refunded { channel: usize, amount: i64 },
    CursorMoved { block: i64 },
    TransactionSigned { nonce: i64, bytes: Vec<u8> },
    TransactionMined { nonce: i64 },
}

/// A channel's row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Row {
    version: i64,
    block: i64,
    balance: i64,
    charged: i64,
    signature: Vec<u8>,
}

/// Everything in the books.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    channels: BTreeMap<i64, Row>,
    /// Charges are only ever added: how many of a channel, and their sum.
    charges: BTreeMap<i64, (i64, i64)>,
    cursor: i64,
    transactions: BTreeMap<i64, Vec<u8>>,
}

impl State {
    fn apply(&mut self, entry: &Entry) {
        let mut change = |channel: usize, change: &mut dyn FnMut(&mut Row)| {
            let row = self.channels.entry(key(channel)).or_default();
            row.version += 1;
            change(row);
        };
        match entry {
            Entry::Opened { channel, balance } => change(*channel, &mut |row| row.balance = *balance),
            Entry::Charged { channel, amount, signature } => {
                change(*channel, &mut |row| {
                    row.charged += amount;
                    row.signature.clone_from(signature);
                });
                let (count, sum) = self.charges.entry(key(*channel)).or_default();
                (*count, *sum) = (*count + 1, *sum + amount);
            }
            Entry::Viewed { channel, block, balance } => {
                change(*channel, &mut |row| (row.block, row.balance) = (*block, *balance));
            }
            Entry::Refunded { channel, amount } => change(*channel, &mut |row| row.balance -= amount),
            Entry::CursorMoved { block } => self.cursor = *block,
            Entry::TransactionSigned { nonce, bytes } => {
                self.transactions.insert(*nonce, bytes.clone());
            }
            Entry::TransactionMined { nonce } => {
                self.transactions.insert(*nonce, Vec::new());
            }
        }
    }
}

/// The store itself.
pub(crate) struct StandIn {
    connection: Connection,
    habits: Habits,
    latched: bool,
}

impl StandIn {
    pub(crate) fn open(vfs: &str, habits: Habits) -> Result<Self, rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags_and_vfs(PATH, flags, vfs)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", habits.synchronous)?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        if habits.checkpoint_on_open {
            let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
            assert_eq!(busy, 0, "nobody else has the books open");
        }
        let opening = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        opening.execute_batch(
            "CREATE TABLE IF NOT EXISTS channels (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, block INTEGER NOT NULL,
                balance INTEGER NOT NULL, charged INTEGER NOT NULL, signature BLOB NOT NULL) STRICT;
             CREATE TABLE IF NOT EXISTS charges (number INTEGER PRIMARY KEY, channel INTEGER NOT NULL,
                amount INTEGER NOT NULL) STRICT;
             CREATE TABLE IF NOT EXISTS cursor (one INTEGER PRIMARY KEY, block INTEGER NOT NULL) STRICT;
             CREATE TABLE IF NOT EXISTS transactions (nonce INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
             CREATE TABLE IF NOT EXISTS incidents (number INTEGER PRIMARY KEY, what TEXT NOT NULL) STRICT;",
        )?;
        opening.commit()?;
        // The switch to WAL answers "wal" before it commits, and goes on answering that if the commit fails, until a
        // transaction has begun anew. What is used then is a rollback journal, whose deletion, which is the commit, is not
        // synced.
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if habits.insist_on_wal && mode != "wal" {
            return Err(rusqlite::Error::InvalidQuery);
        }
        Ok(Self { connection, habits, latched: false })
    }

    fn try_commit(&mut self, batch: &[Entry]) -> Result<(), rusqlite::Error> {
        let writing = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for entry in batch {
            let change = |id: usize, balance: i64, relative: bool, charged: i64, block: i64, signature: &[u8]| {
                writing
                    .prepare_cached(
                        "INSERT INTO channels VALUES (?1, 1, ?5, ?2, ?4, ?6) ON CONFLICT (id) DO UPDATE SET
                            version = version + 1, charged = charged + ?4, block = max(block, ?5),
                            balance = CASE ?3 WHEN 1 THEN balance + ?2 ELSE ?2 END,
                            signature = CASE length(?6) WHEN 0 THEN signature ELSE ?6 END",
                    )?
                    .execute(params![key(id), balance, relative, charged, block, signature])
            };
            match entry {
                Entry::Opened { channel, balance } => change(*channel, *balance, false, 0, 0, &[])?,
                Entry::Charged { channel, amount, signature } => {
                    change(*channel, 0, true, *amount, 0, signature)?;
                    writing
                        .prepare_cached("INSERT INTO charges (channel, amount) VALUES (?1, ?2)")?
                        .execute(params![key(*channel), amount])?
                }
                Entry::Viewed { channel, block, balance } => change(*channel, *balance, false, 0, *block, &[])?,
                Entry::Refunded { channel, amount } => change(*channel, -amount, true, 0, 0, &[])?,
                Entry::CursorMoved { block } => {
                    writing.prepare_cached("INSERT OR REPLACE INTO cursor VALUES (1, ?1)")?.execute([block])?
                }
                Entry::TransactionSigned { nonce, bytes } => writing
                    .prepare_cached("INSERT INTO transactions VALUES (?1, ?2)")?
                    .execute(params![nonce, bytes])?,
                Entry::TransactionMined { nonce } => {
                    writing.prepare_cached("UPDATE transactions SET bytes = x'' WHERE nonce = ?1")?.execute([nonce])?
                }
            };
        }
        writing.commit()
    }

    fn note_incident(&mut self) -> Result<(), rusqlite::Error> {
        let noting = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        noting.execute("INSERT INTO incidents (what) VALUES ('a commit failed')", [])?;
        noting.commit()
    }
}

impl Store for StandIn {
    type Batch = Vec<Entry>;
    type State = State;

    fn commit(&mut self, batch: &Vec<Entry>) -> Result<(), Refusal> {
        if self.latched {
            return Err(Refusal::Latched);
        }
        let Err(_) = self.try_commit(batch) else { return Ok(()) };
        self.latched = self.habits.latch;
        if self.habits.overwrite_refused && self.note_incident().is_err() {
            return Err(Refusal::Undecided);
        }
        Err(Refusal::NotInTheBooks)
    }

    fn state(&mut self) -> Result<State, String> {
        let read = || -> Result<State, rusqlite::Error> {
            let mut state = State::default();
            let db = &self.connection;
            let mut rows = db.prepare_cached("SELECT id, version, block, balance, charged, signature FROM channels")?;
            for row in rows.query_map([], |row| {
                let (version, block, balance) = (row.get(1)?, row.get(2)?, row.get(3)?);
                Ok((row.get(0)?, Row { version, block, balance, charged: row.get(4)?, signature: row.get(5)? }))
            })? {
                let (id, row) = row?;
                state.channels.insert(id, row);
            }
            let mut rows = db.prepare_cached("SELECT channel, count(*), sum(amount) FROM charges GROUP BY channel")?;
            for row in rows.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))? {
                let (id, sums) = row?;
                state.charges.insert(id, sums);
            }
            state.cursor = db.query_row("SELECT coalesce(max(block), 0) FROM cursor", [], |row| row.get(0))?;
            let mut rows = db.prepare_cached("SELECT nonce, bytes FROM transactions")?;
            for row in rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
                let (nonce, bytes) = row?;
                state.transactions.insert(nonce, bytes);
            }
            Ok(state)
        };
        read().map_err(|error| error.to_string())
    }

    fn check(&mut self, state: &State) -> Result<(), String> {
        let verdict: Result<String, _> = self.connection.query_row("PRAGMA integrity_check", [], |row| row.get(0));
        match verdict {
            Ok(verdict) if verdict == "ok" => {}
            Ok(verdict) => return Err(format!("integrity_check: {verdict}")),
            Err(error) => return Err(format!("integrity_check: {error}")),
        }
        for (id, row) in &state.channels {
            let (_, sum) = state.charges.get(id).copied().unwrap_or_default();
            if row.charged != sum || row.charged > row.balance {
                return Err(format!("channel {id}: charged {} of {}, by its charges {sum}", row.charged, row.balance));
            }
        }
        Ok(())
    }
}

/// So many batches of what a proxy writes, the same for the same seed.
pub(crate) fn workload(seed: u64, batches: usize, habits: Habits) -> Workload<StandIn> {
    let mut dice = Dice::new(seed);
    let mut state = State::default();
    let mut workload = Workload {
        open: Box::new(move |vfs| StandIn::open(vfs, habits).map_err(|error| error.to_string())),
        batches: Vec::new(),
        states: vec![state.clone()],
    };
    let mut block = 1_000;
    let mut nonce = 0;
    for _ in 0..batches {
        // Most commits carry one or two entries; now and then many requests waited for the disk together.
        let entries = if dice.once_in(12) { 6 + dice.below(20) } else { 1 + dice.below(3) };
        let mut batch = Vec::new();
        for _ in 0..entries {
            let channel = dice.below(CHANNELS);
            let entry = match (state.channels.get(&key(channel)), dice.below(20)) {
                (None, _) => Entry::Opened { channel, balance: 1_000_000 },
                (Some(row), 0) => {
                    block += 1;
                    Entry::Viewed { channel, block, balance: row.balance + amount(&mut dice) }
                }
                (Some(row), 1) if row.balance - row.charged > 10_000 => {
                    Entry::Refunded { channel, amount: amount(&mut dice) }
                }
                (Some(_), 2) => {
                    block += 1;
                    Entry::CursorMoved { block }
                }
                (Some(_), 3) => {
                    nonce += 1;
                    Entry::TransactionSigned { nonce, bytes: noise(&mut dice, TRANSACTION) }
                }
                (Some(_), 4) if state.transactions.get(&nonce).is_some_and(|bytes| !bytes.is_empty()) => {
                    Entry::TransactionMined { nonce }
                }
                (Some(_), _) => {
                    let (amount, signature) = (amount(&mut dice), noise(&mut dice, SIGNATURE));
                    Entry::Charged { channel, amount, signature }
                }
            };
            state.apply(&entry);
            batch.push(entry);
        }
        workload.batches.push(batch);
        workload.states.push(state.clone());
    }
    workload
}

fn key(channel: usize) -> i64 {
    i64::try_from(channel).expect("there are few")
}

fn amount(dice: &mut Dice) -> i64 {
    key(1 + dice.below(5_000))
}

fn noise(dice: &mut Dice, length: usize) -> Vec<u8> {
    std::iter::repeat_with(|| dice.throw().to_le_bytes()).flatten().take(length).collect()
}
