//! Reading the books, beside the running proxy or after it.

use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, ToSql, params};

use super::directory::{BOOKS_FILE, sync_directory, unusable};
use super::failure::{damaged, opening, reading, refused, writing};
use super::row::{self, Cells};
use super::{BUSY_TIMEOUT, read, schema};
use crate::protocol::{Address, ChannelId, Hash};
use crate::store::{
    Adjustment, AdjustmentLine, ChannelRow, ChargeLine, Filter, Identity, MovementLine, StoreError, Transaction,
    TransactionLine,
};

/// How many pages a backup copies at a time, between two reports of how far it is.
const BACKUP_STEP_PAGES: i32 = 4_096;

/// How many problems of pages are listed at most; beyond that a file is lost anyway.
const MAX_PAGE_PROBLEMS: u32 = 100;

/// The books as they were at one moment: when this was opened. The proxy goes on writing meanwhile; its log grows until
/// this is dropped, so it should not be kept for hours.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    path: PathBuf,
    version: u32,
}

impl Reader {
    /// Opens the books in a directory, whether a proxy writes them or not.
    ///
    /// # Errors
    /// [`StoreError::Path`] where there are none; [`StoreError::TooNew`]; [`StoreError::OtherBooks`] for another
    /// program's file; [`StoreError::Damaged`] for one that is no database.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        Self::open_file(&directory.join(BOOKS_FILE))
    }

    /// Opens books in a file: a backup, say.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn open_file(path: &Path) -> Result<Self, StoreError> {
        let path = std::path::absolute(path).map_err(unusable(path))?;
        // SQLite would say no more than that it cannot open it.
        // Without opening it: a process that closes a file loses all its locks on it, SQLite's too.
        std::fs::metadata(&path).map_err(unusable(&path))?;
        match Self::open_connection(&path, Connection::open_with_flags(&path, READ_ONLY)) {
            // To read a file with a log, SQLite needs an index of the log beside it, and may not be allowed to make one.
            Err(StoreError::Path { .. } | StoreError::ReadOnly(_)) => Self::open_unshared(&path),
            opened => opened,
        }
    }

    /// Opens a file where nothing can be written beside it. That is sound while nobody changes it: where no log lies
    /// beside it, no writer has it open.
    fn open_unshared(path: &Path) -> Result<Self, StoreError> {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        if std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            let why = "a log lies beside it that only the user the books belong to can read; run this as that user";
            let source = std::io::Error::new(std::io::ErrorKind::PermissionDenied, why);
            return Err(StoreError::Path { path: path.to_owned(), source });
        }
        let uri = uri_of(path)
            .ok_or_else(|| unusable(path)(std::io::Error::new(std::io::ErrorKind::InvalidFilename, "not UTF-8")))?;
        Self::open_connection(path, Connection::open_with_flags(uri, READ_ONLY | OpenFlags::SQLITE_OPEN_URI))
    }

    fn open_connection(path: &Path, connection: rusqlite::Result<Connection>) -> Result<Self, StoreError> {
        let connection = connection.map_err(opening(path))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(opening(path))?;
        connection.pragma_update(None, "trusted_schema", false).map_err(opening(path))?;
        connection.pragma_update(None, "cell_size_check", true).map_err(opening(path))?;
        // The moment is the first read's, and lasts until the connection is closed.
        connection.execute_batch("BEGIN").map_err(opening(path))?;
        let version = schema::version_of(&connection, path, schema::newest(schema::MIGRATIONS))?;
        if version == 0 {
            let source =
                std::io::Error::new(std::io::ErrorKind::NotFound, "the file is empty: no books were opened in it");
            return Err(StoreError::Path { path: path.to_owned(), source });
        }
        Ok(Self { connection, path: path.to_owned(), version })
    }

    /// Whose books these are.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where they do not say.
    pub fn identity(&self) -> Result<Identity, StoreError> {
        schema::identity(&self.connection)?.ok_or_else(|| damaged("the table book is empty"))
    }

    /// The version of their schema.
    ///
    /// # Errors
    /// None today.
    pub fn schema_version(&self) -> Result<u32, StoreError> {
        Ok(self.version)
    }

    /// Hands out every channel, up to the first that is damaged.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], and whatever `each` returns.
    pub fn channels(&self, each: &mut dyn FnMut(ChannelRow) -> Result<(), StoreError>) -> Result<(), StoreError> {
        read::channels(&self.connection, &mut |row| each(row?))
    }

    /// Hands out every channel, or what is wrong with it: one damaged row does not hide the others.
    ///
    /// # Errors
    /// Where the file itself cannot be read on (see [`Reader::page_problems`]), and whatever `each` returns.
    pub fn channels_checked(
        &self,
        each: &mut dyn FnMut(Result<ChannelRow, StoreError>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        read::channels(&self.connection, each)
    }

    /// One channel.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn channel(&self, id: &ChannelId) -> Result<Option<ChannelRow>, StoreError> {
        read::channel(&self.connection, id)
    }

    /// What channels were charged, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], and whatever `each` returns.
    pub fn charges(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(ChargeLine) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        // A compound without a wrapping SELECT, so that the long half is read in the order of its key and never sorted.
        let [closed, latest] = [
            "SELECT h.minute, h.channel_number, h.route_number, c.id, c.payer, r.name, h.requests, h.amount \
             FROM charges h LEFT JOIN channels c ON c.number = h.channel_number \
             LEFT JOIN routes r ON r.number = h.route_number WHERE h.minute >= ?1 AND h.minute < ?2",
            "SELECT c.line_minute, c.number, c.line_route_number, c.id, c.payer, r.name, c.line_requests, c.line_amount \
             FROM channels c LEFT JOIN routes r ON r.number = c.line_route_number \
             WHERE c.line_minute >= ?1 AND c.line_minute < ?2",
        ];
        let wanted = "AND (?3 IS NULL OR c.id = ?3) AND (?4 IS NULL OR r.name = ?4)";
        let sql = format!("{} {wanted} UNION ALL {} {wanted} ORDER BY 1, 2, 3", closed, latest);
        let (since, until) = span(filter);
        let values = params![since, until, channel_of(filter), filter.route];
        // The two halves of a line come one after the other.
        let mut last: Option<(u64, ChargeLine)> = None;
        self.lines(&sql, values, "a line of charges", &mut |mut cells| {
            let minute = cells.number("minute")?;
            let (_, route_number) = (cells.number("channel_number")?, cells.number("route_number")?);
            let line = ChargeLine {
                minute,
                channel: ChannelId(cells.bytes("channel (by its channel_number)")?),
                payer: Address(cells.bytes("payer (by its channel_number)")?),
                route: cells.text("route (by its route_number)")?.to_owned(),
                requests: cells.number("requests")?,
                amount: cells.decimal("amount")?,
            };
            match &mut last {
                Some((route, last))
                    if (last.minute, last.channel, *route) == (line.minute, line.channel, route_number) =>
                {
                    let sum = last.amount.checked_add(line.amount).zip(last.requests.checked_add(line.requests));
                    (last.amount, last.requests) =
                        sum.ok_or_else(|| damaged("a line of charges is more than can be counted"))?;
                    Ok(())
                }
                last => last.replace((route_number, line)).map_or(Ok(()), |(_, line)| each(line)),
            }
        })?;
        last.map_or(Ok(()), |(_, line)| each(line))
    }

    /// What changed channels' sums without a charge, oldest first. Adjustments are of no route, so the filter's route
    /// does not matter.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], and whatever `each` returns.
    pub fn adjustments(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(AdjustmentLine) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let sql = "SELECT a.at, c.id, a.sum_before, a.sum_after, a.why FROM adjustments a \
             LEFT JOIN channels c ON c.number = a.channel_number \
             WHERE a.at >= ?1 AND a.at < ?2 AND (?3 IS NULL OR c.id = ?3) ORDER BY a.number";
        let (since, until) = span(filter);
        self.lines(sql, params![since, until, channel_of(filter)], "an adjustment", &mut |mut cells| {
            each(AdjustmentLine {
                at: cells.number("at")?,
                channel: ChannelId(cells.bytes("channel (by its channel_number)")?),
                from: cells.decimal("sum_before")?,
                to: cells.decimal("sum_after")?,
                why: adjustment(cells.text("why")?)?,
            })
        })
    }

    /// Transactions by the time they were signed at, in the order they were signed in. With a channel, those that are
    /// for it or claim of it. The filter's route does not matter.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], and whatever `each` returns.
    pub fn transactions(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(TransactionLine) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let sql = "SELECT hash, purpose, sender, nonce, signed_at, state, ended_at, block, gas_used, fee_wei \
             FROM transactions WHERE signed_at >= ?1 AND signed_at < ?2 \
             AND (?3 IS NULL OR channel = ?3 OR EXISTS \
             (SELECT 1 FROM claim_rows r WHERE r.transaction_number = transactions.number AND r.channel = ?3)) \
             ORDER BY number";
        let (since, until) = span(filter);
        self.lines(sql, params![since, until, channel_of(filter)], "a transaction", &mut |mut cells| {
            each(TransactionLine {
                hash: Hash(cells.bytes("hash")?),
                purpose: cells.text("purpose")?.to_owned(),
                sender: Address(cells.bytes("sender")?),
                nonce: cells.number("nonce")?,
                signed_at: cells.number("signed_at")?,
                state: cells.text("state")?.to_owned(),
                ended_at: cells.maybe_number("ended_at")?,
                block: cells.maybe_number("block")?,
                gas_used: cells.maybe_number("gas_used")?,
                fee_wei: cells.maybe_decimal("fee_wei")?.map(crate::protocol::Amount::units),
            })
        })
    }

    /// Money that transactions moved, in the order that was seen. With a channel, what moved into or out of it:
    /// settlements are of none. The filter's route does not matter.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], and whatever `each` returns.
    pub fn movements(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(MovementLine) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let sql = "SELECT m.at, t.hash, m.kind, m.channel, m.amount, t.token FROM movements m \
             LEFT JOIN transactions t ON t.number = m.transaction_number \
             WHERE m.at >= ?1 AND m.at < ?2 AND (?3 IS NULL OR m.channel = ?3) ORDER BY m.number";
        let (since, until) = span(filter);
        self.lines(sql, params![since, until, channel_of(filter)], "a movement", &mut |mut cells| {
            each(MovementLine {
                at: cells.number("at")?,
                transaction: Hash(cells.bytes("transaction (by its transaction_number)")?),
                kind: cells.text("kind")?.to_owned(),
                channel: cells.maybe_bytes("channel")?.map(ChannelId),
                amount: cells.decimal("amount")?,
                token: cells.maybe_bytes("token")?.map(Address),
            })
        })
    }

    /// The transactions whose fate is not known, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn unfinished(&self) -> Result<Vec<Transaction>, StoreError> {
        read::unfinished(&self.connection)
    }

    /// What SQLite finds wrong with the file's structure; nothing when all is well. Reads all of it.
    ///
    /// # Errors
    /// Where it cannot even be looked at.
    pub fn page_problems(&self) -> Result<Vec<String>, StoreError> {
        let mut problems = Vec::new();
        for check in [format!("PRAGMA integrity_check({MAX_PAGE_PROBLEMS})"), "PRAGMA foreign_key_check".to_owned()] {
            let mut statement = self.connection.prepare(&check).map_err(reading)?;
            let foreign_keys = statement.column_count() > 1;
            let mut rows = statement.query([]).map_err(reading)?;
            while let Some(found) = rows.next().map_err(reading)? {
                let text: String = found.get(0).map_err(reading)?;
                if foreign_keys {
                    problems.push(format!("a row of {text} refers to one that is not there"));
                } else if text != "ok" {
                    problems.push(text);
                }
            }
        }
        Ok(problems)
    }

    /// Copies the books to a new file, as they were when this was opened; the proxy goes on meanwhile. `progress` hears
    /// how many pages are done, and of how many. The copy is one file without a log, only its owner may read it, and it
    /// is there only once it is whole, durable, and was opened.
    ///
    /// # Errors
    /// [`StoreError::Path`] where a file is there already, or none can be made.
    pub fn backup(&self, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(), StoreError> {
        let to = std::path::absolute(to).map_err(unusable(to))?;
        let exists =
            || unusable(&to)(std::io::Error::new(std::io::ErrorKind::AlreadyExists, "a file is there already"));
        if to.symlink_metadata().is_ok() {
            return Err(exists());
        }
        let directory = to.parent().ok_or_else(exists)?;
        // Its mode is 0600.
        let file =
            tempfile::Builder::new().prefix(".peaje-backup-").tempfile_in(directory).map_err(unusable(directory))?;
        let mut copy = Connection::open_with_flags(file.path(), OpenFlags::SQLITE_OPEN_READ_WRITE)
            .map_err(opening(file.path()))?;
        self.copy_into(&mut copy, progress)?;
        schema::set(&copy, "journal_mode", "delete")?;
        drop(copy);
        file.as_file().sync_all().map_err(unusable(file.path()))?;
        if Self::open_file(file.path())?.identity()? != self.identity()? {
            return Err(refused("written", "the copy is not of these books"));
        }
        file.persist_noclobber(&to).map_err(|error| unusable(&to)(error.error))?;
        sync_directory(directory)
    }

    fn copy_into(&self, copy: &mut Connection, progress: &mut dyn FnMut(u64, u64)) -> Result<(), StoreError> {
        let backup = Backup::new(&self.connection, copy).map_err(writing)?;
        loop {
            let step = backup.step(BACKUP_STEP_PAGES).map_err(writing)?;
            let pages = backup.progress();
            let total = u64::try_from(pages.pagecount).unwrap_or(0);
            progress(total.saturating_sub(u64::try_from(pages.remaining).unwrap_or(0)), total);
            match step {
                StepResult::Done => return Ok(()),
                StepResult::More => {}
                _ => return Err(refused("read", format!("{} is locked", self.path.display()))),
            }
        }
    }

    fn lines(
        &self,
        sql: &str,
        values: &[&dyn ToSql],
        what: &'static str,
        each: &mut dyn FnMut(Cells<'_, '_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare(sql).map_err(reading)?;
        let mut rows = statement.query(values).map_err(reading)?;
        while let Some(found) = rows.next().map_err(reading)? {
            each(Cells::of(what, found))?;
        }
        Ok(())
    }
}

const READ_ONLY: OpenFlags = OpenFlags::SQLITE_OPEN_READ_ONLY.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// A path as SQLite reads it in a URI, for a file that does not change.
fn uri_of(path: &Path) -> Option<String> {
    let mut uri = "file:".to_owned();
    for letter in path.to_str()?.chars() {
        match letter {
            '%' => uri.push_str("%25"),
            '?' => uri.push_str("%3f"),
            '#' => uri.push_str("%23"),
            _ => uri.push(letter),
        }
    }
    uri.push_str("?immutable=1");
    Some(uri)
}

/// From when on and before when, as SQLite counts.
fn span(filter: &Filter) -> (i64, i64) {
    let second = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
    (filter.since.map_or(i64::MIN, second), filter.until.map_or(i64::MAX, second))
}

fn channel_of(filter: &Filter) -> Option<[u8; 32]> {
    filter.channel.map(|channel| channel.0)
}

fn adjustment(name: &str) -> Result<Adjustment, StoreError> {
    let known = Adjustment::ALL.into_iter().find(|why| why.as_str() == name);
    row::of("an adjustment", known.ok_or_else(|| damaged(format!("its reason is {name:?}, which there is not"))))
}
