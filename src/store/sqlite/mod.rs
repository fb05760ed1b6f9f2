//! The books in a directory of their own, in SQLite.
//!
//! **Owns** the directory (one process at a time), the schema and its migrations, and the only connection that writes.
//! **Promises** what [`LedgerStore`] asks for, with an fsync in every commit; that a row that is not as it was written
//! is noticed when it is read; that the file can be read beside the running proxy, with [`Reader`] or the `sqlite3`
//! shell. **Does not** judge what the rows say: a channel's invariants are the ledger's.
//!
//! # Why so
//!
//! * *Write-ahead log, `synchronous=FULL`*: a commit appends to one file and waits for one fsync; readers do not wait
//!   for the writer, nor it for them.
//! * *The log's room is taken at the start*: a file that grows has to be entered into the file system's own journal at
//!   every fsync, one that is written over does not; and the room is there when the disk is full.
//! * *One page a charge*: what a commit costs is the pages it changes. A channel's latest line of charges is kept in the
//!   channel's own row, which every charge writes anyway, and goes to the table of charges once a minute or when the
//!   route changes. That saves every second page, and a third of the time.
//! * *The last rows are known*: what a charge builds on was written a moment ago, so it is not looked for, and only what a
//!   charge changes is bound and written over it; by its version the statement sees whether it is still there. Of a channel
//!   that changes often in one commit, the last row is written.
//! * *A small cache and no memory map*: the channels live in the proxy's memory already. Pages that are not in the cache
//!   are in the system's, which gives them up when memory is short; and a failing disk is an error here, where behind a
//!   map it is a signal.
//! * *No recovery of our own*: SQLite replays the log at the next start. What it cannot see (a bit that flips at rest) is
//!   what the seals are for, see [`Reader::channels_checked`] and [`Reader::page_problems`].

mod commit;
mod directory;
mod failure;
mod read;
mod reader;
mod row;
mod schema;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, params};

use self::commit::{Batch, KnownRows, Numbers};
use self::directory::DirectoryLock;
use self::failure::{opening, reading, refused, repeat, writing};
pub use self::reader::Reader;
use super::{ChannelRow, Cursor, Entry, Identity, LedgerStore, StoreError, Transaction};
use crate::clock;
use crate::protocol::Domain;

/// How many pages the log grows to before they are copied into the database. More means fewer copies of pages that
/// change again and again, and a longer pause for each.
pub const CHECKPOINT_PAGES: u32 = 4_096;

/// The size of a page in bytes, of books that are made new: a block of most file systems. Smaller ones were not faster.
const PAGE_BYTES: u32 = 4_096;

/// How much memory the writer's page cache may take, KiB.
const CACHE_KIB: i64 = 16_384;

/// How large the log may stay on disk once it is copied, bytes; a long-running reader can make it grow beyond.
const MAX_IDLE_LOG_BYTES: i64 = 64 * 1_024 * 1_024;

/// How large books may be for all their pages to be looked at by every start, bytes; about a second's work. Larger ones
/// are `peaje ledger verify`'s.
const MAX_BYTES_CHECKED_AT_START: i64 = 256 * 1_024 * 1_024;

/// How long the writer waits for somebody else's write: a shell that was told to change the books. Requests wait
/// meanwhile; after it the commit has failed.
const BUSY_TIMEOUT: Duration = Duration::from_millis(1_000);

/// How many statements are kept ready; there are not that many.
const MAX_STATEMENTS: usize = 64;

/// How SQLite is told to work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteOptions {
    /// The name of a registered VFS; nothing for the system's.
    pub vfs: Option<String>,
    /// See [`CHECKPOINT_PAGES`].
    pub checkpoint_pages: u32,
    /// Nobody else reads the file while it is open. A VFS without shared memory needs this.
    pub exclusive: bool,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { vfs: None, checkpoint_pages: CHECKPOINT_PAGES, exclusive: false }
    }
}

/// The books of one chain and contract. After a commit that failed it writes nothing any more.
#[derive(Debug)]
pub struct SqliteStore {
    // Before the lock: fields are dropped in this order, and the last writes are made when the connection closes.
    connection: Connection,
    numbers: Numbers,
    known: KnownRows,
    domain: Domain,
    latched: Option<StoreError>,
    _lock: Option<DirectoryLock>,
}

impl SqliteStore {
    /// Opens the books in a directory; makes both where there are none. They are this process's until it drops them.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::OtherBooks`], [`StoreError::TooNew`]; [`StoreError::Full`],
    /// [`StoreError::ReadOnly`] and [`StoreError::Path`] where nothing could be written later, for a row is written now.
    pub fn open(directory: &Path, identity: Identity) -> Result<Self, StoreError> {
        // SQLite would read a relative path that begins with "file:" as a URI.
        let directory = std::path::absolute(directory).map_err(directory::unusable(directory))?;
        directory::create(&directory)?;
        let lock = directory::lock(&directory)?;
        let path = directory::books_file(&directory)?;
        let options = SqliteOptions::default();
        let store = Self::open_path(&path, identity, &options, Some(lock))?;
        store.check_pages()?;
        directory::reserve_log(&path, log_bytes(options.checkpoint_pages))?;
        Ok(store)
    }

    /// Opens books in a file of any VFS, without a directory and its lock: whoever calls sees to it that nobody else
    /// writes.
    ///
    /// # Errors
    /// As [`SqliteStore::open`], without [`StoreError::InUse`].
    pub fn open_file(path: &str, identity: Identity, options: &SqliteOptions) -> Result<Self, StoreError> {
        Self::open_path(Path::new(path), identity, options, None)
    }

    fn open_path(
        path: &Path,
        identity: Identity,
        options: &SqliteOptions,
        lock: Option<DirectoryLock>,
    ) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = match &options.vfs {
            Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs.as_str()),
            None => Connection::open_with_flags(path, flags),
        }
        .map_err(opening(path))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(opening(path))?;
        if options.exclusive {
            // Before the file is looked at: in this mode the log's index is in memory, not in a shared file.
            schema::set(&connection, "locking_mode", "exclusive")?;
        }
        // Looked at before anything of it is changed: it may be somebody else's.
        let version = schema::version_of(&connection, path, schema::newest(schema::MIGRATIONS))?;
        if version > 0 {
            schema::check_identity(schema::identity(&connection)?, identity)?;
        }
        configure(&connection, options).map_err(opening(path))?;
        schema::set(&connection, "journal_mode", "wal")?;
        settle(&connection, lock.is_some().then_some(path))?;
        schema::migrate(&mut connection, version, schema::MIGRATIONS)?;
        schema::note_start(&mut connection, identity, clock::now_s())?;
        schema::insist(&connection, "journal_mode", "wal")?;
        commit::register_functions(&connection).map_err(opening(path))?;
        let domain = Domain::settlement_at(identity.chain_id, identity.settlement);
        Ok(Self {
            connection,
            numbers: Numbers::default(),
            known: KnownRows::default(),
            domain,
            latched: None,
            _lock: lock,
        })
    }

    /// Looks at the structure of every page, where that does not take long. Whatever the start relies on is read anyway;
    /// this finds damage in old charges before a commit does.
    fn check_pages(&self) -> Result<(), StoreError> {
        let bytes: i64 = self
            .connection
            .query_row("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", [], |row| row.get(0))
            .map_err(reading)?;
        if bytes > MAX_BYTES_CHECKED_AT_START {
            return Ok(());
        }
        let found: String =
            self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(reading)?;
        if found == "ok" { Ok(()) } else { Err(failure::damaged(found)) }
    }

    fn try_commit(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        self.execute("BEGIN IMMEDIATE")?;
        let Self { connection, numbers, known, domain, .. } = self;
        let mut batch = Batch::of(connection, numbers, known, domain, entries.len());
        for entry in entries {
            batch.add(entry)?;
        }
        batch.finish()?;
        self.execute("COMMIT")
    }

    fn execute(&self, sql: &str) -> Result<(), StoreError> {
        self.connection.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map(drop).map_err(writing)
    }

    /// Leaves the file so that nothing of a commit that failed can come back.
    ///
    /// When an fsync fails, the frames of that commit may be in the log already, commit mark and checksums and all. Here
    /// they are rolled back and their payers are told that they were not charged; but a restart replays the log, and
    /// would find them. The next commit is written over them, and the rest of their chain of checksums is broken by it;
    /// so one more is made, of a single row, and whether it succeeds does not matter as long as it reaches the file.
    /// Nothing may be copied into the database from a log that the disk did not confirm, so checkpoints end here.
    fn abandon(&mut self, error: &StoreError) {
        if !self.connection.is_autocommit() {
            drop(self.execute("ROLLBACK"));
        }
        drop(self.connection.pragma_update(None, "wal_autocheckpoint", 0));
        drop(self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true));
        let what = error.to_string();
        drop(
            self.connection.execute(
                "INSERT INTO incidents (at, what) VALUES (?1, ?2)",
                params![clock::now_s().cast_signed(), what],
            ),
        );
    }
}

/// Copies what the log holds into the database and starts the log anew, before anything is built on it.
///
/// After an fsync that failed, Linux shows what it could not write to every later process and never writes it again.
/// A commit that is appended to such frames is lost with them when power fails, though its own fsync succeeded. Copied
/// pages are written anew, and synced.
///
/// Somebody who reads the books (a backup that is being made, an audit) keeps the log from being started anew, for as long
/// as that takes; a proxy does not wait for it. Then the log itself is written anew, frame by frame as it is, and synced:
/// what is appended to it is built on what is on disk.
fn settle(connection: &Connection, on_disk: Option<&Path>) -> Result<(), StoreError> {
    let held: i64 = connection.query_row("PRAGMA wal_checkpoint(truncate)", [], |row| row.get(0)).map_err(writing)?;
    if held == 0 {
        return Ok(());
    }
    let busy = || refused("opened", "another program works with them; try again once it is done");
    let database = on_disk.ok_or_else(busy)?;
    // Nobody appends meanwhile.
    connection.execute_batch("BEGIN IMMEDIATE").map_err(|error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy) => busy(),
        _ => writing(error),
    })?;
    let rewritten = directory::rewrite_log(database);
    connection.execute_batch("ROLLBACK").map_err(writing)?;
    rewritten
}

/// How long the log is when it is copied into the database: a header, and a frame with a header of its own for each page.
fn log_bytes(checkpoint_pages: u32) -> u64 {
    const HEADER: u64 = 32;
    const FRAME_HEADER: u64 = 24;
    HEADER + u64::from(checkpoint_pages) * (FRAME_HEADER + u64::from(PAGE_BYTES))
}

/// What holds for the connection that writes.
fn configure(connection: &Connection, options: &SqliteOptions) -> rusqlite::Result<()> {
    let set = |name, value: i64| connection.pragma_update(None, name, value);
    set("page_size", i64::from(PAGE_BYTES))?;
    set("cache_size", -CACHE_KIB)?;
    set("wal_autocheckpoint", i64::from(options.checkpoint_pages))?;
    set("journal_size_limit", MAX_IDLE_LOG_BYTES)?;
    connection.pragma_update(None, "synchronous", "full")?;
    // Some systems report an fsync done while the data is in the drive's cache; they have another one that is true.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    // The numbers that rows refer by are made in the commit that uses them; `page_problems` looks whether all are there.
    connection.pragma_update(None, "foreign_keys", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.set_prepared_statement_cache_capacity(MAX_STATEMENTS);
    Ok(())
}

impl LedgerStore for SqliteStore {
    fn channels(&mut self, each: &mut dyn FnMut(ChannelRow) -> Result<(), StoreError>) -> Result<(), StoreError> {
        read::channels(&self.connection, &mut |row| each(row?))
    }

    fn unfinished(&mut self) -> Result<Vec<Transaction>, StoreError> {
        read::unfinished(&self.connection)
    }

    fn cursor(&mut self) -> Result<Option<Cursor>, StoreError> {
        read::cursor(&self.connection)
    }

    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        if let Some(latched) = &self.latched {
            return Err(repeat(latched));
        }
        self.try_commit(entries).inspect_err(|error| {
            self.abandon(error);
            self.latched = Some(repeat(error));
        })
    }
}
