//! The book of channels: what was signed, what was charged, what is deposited.
//!
//! **Owns** one record a channel and the spending of the day, in memory or in a directory. **Promises** of a directory:
//! - a record is replaced as a whole or not at all (written beside, flushed, renamed, the directory flushed);
//! - a file name is made of the canonical channel id alone, so no server can name a file;
//! - one process at a time has it open, so two agents cannot sign over each other;
//! - files can be read by their owner only, and hold no key and no signature.
//!
//! **Does not** choose where the directory is, nor decide what to write when.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::budget::Dollars;

use crate::protocol::x402;
use crate::protocol::{Amount, ChannelConfig, ChannelId, Domain, Hash};

/// The version of the files' shape.
const VERSION: u32 = 1;
/// The file that is locked while the book is open.
const LOCK_FILE: &str = "lock";
/// The file with the day's spending.
const DAY_FILE: &str = "spent-today.json";
/// The longest file that is read, in bytes; a record takes less than one kilobyte.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// How often a lock that another process holds is tried again.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// What the agent knows of one channel. Amounts are atomic units of the channel's token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The channel.
    pub channel: ChannelId,
    /// Its chain, as `eip155:` and the id.
    pub network: String,
    /// Its terms.
    pub config: ChannelConfig,
    /// Decimal places of its token.
    pub decimals: u8,
    /// The host it was last used with, for people.
    pub host: String,
    /// What the server has charged in all, as far as it was believed: the base of the next voucher.
    pub charged: Amount,
    /// The highest ceiling ever signed: what the server can claim in the worst case.
    pub signed_max: Amount,
    /// Up to which sum the budget has counted this channel: what was charged, and every ceiling that was sent without a
    /// receipt coming back.
    #[serde(default)]
    pub counted: Amount,
    /// The highest ceiling the server may know of: vouchers signed ahead begin there.
    #[serde(default)]
    pub top: Amount,
    /// The highest ceiling signed ahead that was used or may be; nothing where none was, or the server told us the base
    /// since. No voucher at or below it is taken in turn.
    #[serde(default)]
    pub spent: Amount,
    /// What was deposited less what was refunded.
    pub balance: Amount,
    /// A deposit that was signed and has neither been seen to land nor become impossible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_deposit: Option<PendingDeposit>,
}

/// A deposit that may still land. The signature is not kept: it can be made again, for the same authorization only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingDeposit {
    /// How much, in atomic units.
    pub amount: Amount,
    /// What makes the authorization's nonce, with the channel id.
    pub salt: Hash,
    /// Unix time from which the token refuses it, seconds.
    pub valid_before: u64,
    /// Whether it is a Permit2 transfer, whose nonce the salt is then. It stays one even if the server changes its mind:
    /// the same deposit signed both ways could land twice.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_permit2: bool,
}

impl Record {
    /// What a voucher signed in turn is the price above, as the server reckons it too: what was charged, or so little
    /// more that no ceiling is used again.
    pub fn base(&self, price: Amount) -> Amount {
        let unused = self.spent.checked_add(Amount::new(1)).filter(|_| self.spent > self.charged);
        self.charged.max(unused.map_or(Amount::ZERO, |unused| unused.saturating_sub(price)))
    }

    /// What can still be spent: the balance less what was charged.
    pub fn remaining(&self) -> Amount {
        self.balance.saturating_sub(self.charged)
    }
}

/// What was spent on one day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaySpend {
    /// Days since 1970-01-01, UTC.
    pub day: u64,
    /// In all.
    pub total: Dollars,
    /// By host.
    pub hosts: BTreeMap<String, Dollars>,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    content: T,
}

/// Why the book cannot be used. The paths are the operator's own.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// A file or the directory could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process has the book open.
    #[error("another process is using the channel book {}; wait for it or choose another directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A file is not what this program wrote. Moving it away is safe if a chain node is configured.
    #[error(
        "{} is damaged ({why}); move it away: with a chain node configured, the channel is found again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file was written by a newer version of this program.
    #[error("{} has version {found}, this program reads version {VERSION}; use the newer program", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// The channels of one agent. It cannot be shared between agents, which would sign over each other: clone the agent. A
/// directory stays locked until the agent, and what it is still writing, is gone.
#[derive(Debug)]
pub struct Book(Arc<Place>);

#[derive(Debug)]
enum Place {
    Memory(Mutex<Shelf>),
    /// The lock file is open as long as the book is; closing it, a crash included, releases the lock.
    Directory {
        path: PathBuf,
        _lock: File,
    },
}

#[derive(Debug, Default)]
struct Shelf {
    records: HashMap<ChannelId, Record>,
    day: DaySpend,
}

impl Book {
    /// A book that is forgotten with the process. Money left in its channels is found again only with a chain node.
    pub fn in_memory() -> Self {
        Self(Arc::new(Place::Memory(Mutex::default())))
    }

    /// Opens the book in a directory, which is made if need be. Blocks up to `wait` while another process has it open.
    ///
    /// # Errors
    /// [`BookError::Locked`] if it stays open elsewhere, [`BookError::Io`] if the directory cannot be used.
    pub fn open(path: &Path, wait: Duration) -> Result<Self, BookError> {
        let io = |action, source| BookError::Io { action, path: path.to_owned(), source };
        make_private_directory(path).map_err(|source| io("make the directory", source))?;
        let lock = open_private(&path.join(LOCK_FILE)).map_err(|source| io("lock the directory", source))?;
        let deadline = Instant::now().checked_add(wait);
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self(Arc::new(Place::Directory { path: path.to_owned(), _lock: lock }))),
                Err(TryLockError::Error(source)) => return Err(io("lock the directory", source)),
                Err(TryLockError::WouldBlock) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                    return Err(BookError::Locked { path: path.to_owned() });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
            }
        }
    }

    /// The same book, for a thread that writes.
    pub(super) fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// Whether calls touch a disk.
    pub(super) fn is_on_disk(&self) -> bool {
        matches!(*self.0, Place::Directory { .. })
    }

    /// The record of a channel. Blocks on the disk.
    ///
    /// # Errors
    /// When the file is there and cannot be read or is not that channel's.
    pub fn load(&self, channel: ChannelId) -> Result<Option<Record>, BookError> {
        match &*self.0 {
            Place::Memory(shelf) => Ok(lock(shelf).records.get(&channel).cloned()),
            Place::Directory { path, .. } => {
                let path = path.join(file_name(channel));
                let Some(record) = read::<Record>(&path)? else { return Ok(None) };
                sound(&record, channel).map_err(|why| BookError::Damaged { path, why: why.to_owned() })?;
                Ok(Some(record))
            }
        }
    }

    /// Replaces the record of a channel. When this returns, it is durable. Blocks on the disk.
    ///
    /// # Errors
    /// When it cannot be written; the former record is then still there.
    pub fn save(&self, record: &Record) -> Result<(), BookError> {
        match &*self.0 {
            Place::Memory(shelf) => {
                lock(shelf).records.insert(record.channel, record.clone());
                Ok(())
            }
            Place::Directory { path, .. } => write(path, &file_name(record.channel), record),
        }
    }

    /// Every channel, in the order of their ids. Blocks on the disk.
    ///
    /// # Errors
    /// When the directory or one of its records cannot be read.
    pub fn channels(&self) -> Result<Vec<Record>, BookError> {
        let mut records = match &*self.0 {
            Place::Memory(shelf) => lock(shelf).records.values().cloned().collect::<Vec<_>>(),
            Place::Directory { path, .. } => {
                let io = |source| BookError::Io { action: "list", path: path.clone(), source };
                let mut records = Vec::new();
                for entry in fs::read_dir(path).map_err(io)? {
                    let name = entry.map_err(io)?.file_name();
                    let id = name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|id| id.parse().ok());
                    if let Some(id) = id {
                        records.extend(self.load(id)?);
                    }
                }
                records
            }
        };
        records.sort_by_key(|record| record.channel);
        Ok(records)
    }

    /// What was spent on the latest day anything was spent. Blocks on the disk.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn day(&self) -> Result<DaySpend, BookError> {
        match &*self.0 {
            Place::Memory(shelf) => Ok(lock(shelf).day.clone()),
            Place::Directory { path, .. } => Ok(read(&path.join(DAY_FILE))?.unwrap_or_default()),
        }
    }

    /// Replaces what was spent. Blocks on the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn save_day(&self, day: &DaySpend) -> Result<(), BookError> {
        match &*self.0 {
            Place::Memory(shelf) => {
                lock(shelf).day = day.clone();
                Ok(())
            }
            Place::Directory { path, .. } => write(path, DAY_FILE, day),
        }
    }
}

/// Every change of the shelf is one insertion, so a panic elsewhere leaves it whole.
fn lock(shelf: &Mutex<Shelf>) -> std::sync::MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

fn file_name(channel: ChannelId) -> String {
    format!("{channel}.json")
}

/// A record must be of the channel its file is named after: vouchers are signed for what it says.
fn sound(record: &Record, channel: ChannelId) -> Result<(), &'static str> {
    let chain = x402::chain_id_of(&record.network).ok_or("its network is not eip155")?;
    if record.channel != channel || record.config.id(&Domain::settlement(chain)) != channel {
        return Err("its terms are those of another channel");
    }
    if record.charged > record.signed_max {
        return Err("more was charged than was signed");
    }
    if record.top.max(record.spent) > record.signed_max {
        return Err("more was used than was signed");
    }
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, BookError> {
    let io = |source| BookError::Io { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(io)?;
    let damaged = |error: serde_json::Error| BookError::Damaged { path: path.to_owned(), why: error.to_string() };
    let Versioned { version, .. } = serde_json::from_slice::<Versioned<serde_json::Value>>(&bytes).map_err(damaged)?;
    if version != VERSION {
        return Err(BookError::Version { path: path.to_owned(), found: version });
    }
    serde_json::from_slice::<Versioned<T>>(&bytes).map(|file| Some(file.content)).map_err(damaged)
}

/// Beside, flushed, renamed, the directory flushed: after a crash there is the old file or the new one.
fn write<T: Serialize>(directory: &Path, name: &str, content: &T) -> Result<(), BookError> {
    let path = directory.join(name);
    let beside = directory.join(format!("{name}.new"));
    let io = |source| BookError::Io { action: "write", path: path.clone(), source };
    let bytes = serde_json::to_vec_pretty(&Versioned { version: VERSION, content })
        .expect("records have string keys and serialise");
    let mut file = open_private(&beside).map_err(io)?;
    file.set_len(0).map_err(io)?;
    file.write_all(&bytes).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&beside, &path).map_err(io)?;
    sync_directory(directory).map_err(io)
}

fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn make_private_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Makes a rename durable. Only Unix lets a directory be opened and flushed.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Address;

    fn record(salt: u8) -> Record {
        let config = ChannelConfig {
            payer: Address([1; 20]),
            payer_authorizer: Address([1; 20]),
            receiver: Address([2; 20]),
            receiver_authorizer: Address([3; 20]),
            token: Address([4; 20]),
            withdraw_delay: 900,
            salt: Hash([salt; 32]),
        };
        Record {
            channel: config.id(&Domain::settlement(84_532)),
            network: "eip155:84532".to_owned(),
            config,
            decimals: 6,
            host: "api.example".to_owned(),
            charged: Amount::new(1),
            signed_max: Amount::MAX,
            counted: Amount::new(2),
            top: Amount::new(6),
            spent: Amount::new(5),
            balance: Amount::new(3),
            pending_deposit: Some(PendingDeposit {
                amount: Amount::new(4),
                salt: Hash([9; 32]),
                valid_before: 5,
                by_permit2: true,
            }),
        }
    }

    fn open(path: &Path) -> Result<Book, BookError> {
        Book::open(path, Duration::ZERO)
    }

    #[test]
    fn what_was_saved_is_there_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("not/yet/there");
        let book = open(&path).unwrap();
        assert_eq!(book.load(record(1).channel).unwrap(), None);
        assert_eq!(book.day().unwrap(), DaySpend::default());
        book.save(&record(1)).unwrap();
        book.save(&record(2)).unwrap();
        book.save(&Record { pending_deposit: None, balance: Amount::new(7), ..record(2) }).unwrap();
        let hosts = [("a".to_owned(), Dollars::MAX)].into();
        let day = DaySpend { day: 20_000, total: Dollars::from_micros(2), hosts };
        book.save_day(&day).unwrap();
        drop(book);

        let book = open(&path).unwrap();
        assert_eq!(book.load(record(1).channel).unwrap(), Some(record(1)));
        assert_eq!(book.load(record(2).channel).unwrap().unwrap().balance, Amount::new(7));
        assert_eq!(book.channels().unwrap().len(), 2);
        assert_eq!(book.day().unwrap(), day);
    }

    #[test]
    fn a_file_that_a_crash_left_half_written_is_not_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let book = open(directory.path()).unwrap();
        book.save(&record(1)).unwrap();
        let beside = directory.path().join(format!("{}.new", file_name(record(1).channel)));
        fs::write(&beside, "{\"version\":1,\"chan").unwrap();
        assert_eq!(book.load(record(1).channel).unwrap(), Some(record(1)));
        assert_eq!(book.channels().unwrap(), [record(1)]);
        let next = Record { charged: Amount::new(2), ..record(1) };
        book.save(&next).unwrap();
        assert_eq!(book.load(record(1).channel).unwrap(), Some(next));
    }

    #[test]
    fn one_holder_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let book = open(directory.path()).unwrap();
        let second_handle = book.share();
        assert!(matches!(open(directory.path()), Err(BookError::Locked { .. })));
        drop(book);
        assert!(matches!(open(directory.path()), Err(BookError::Locked { .. })), "still being written");
        let path = directory.path().to_owned();
        let waiting = std::thread::spawn(move || Book::open(&path, Duration::from_secs(30)).is_ok());
        drop(second_handle);
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn damaged_files_are_refused_and_not_taken_for_new_channels() {
        let directory = tempfile::tempdir().unwrap();
        let book = open(directory.path()).unwrap();
        let path = directory.path().join(file_name(record(1).channel));
        book.save(&record(1)).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let other_terms = good.replace("\"withdrawDelay\": 900", "\"withdrawDelay\": 901");
        let overcharged = good.replace(&Amount::MAX.to_string(), "0");
        for bad in ["", "{}", &good[..good.len() / 2], &other_terms, &overcharged] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(book.load(record(1).channel), Err(BookError::Damaged { .. })), "{bad}");
        }
        fs::write(&path, good.replace("\"version\": 1", "\"version\": 2")).unwrap();
        assert!(matches!(book.load(record(1).channel), Err(BookError::Version { found: 2, .. })));
        fs::write(&path, r#"{"version": 2, "all": "different"}"#).unwrap();
        assert!(matches!(book.load(record(1).channel), Err(BookError::Version { found: 2, .. })));
        fs::write(&path, good).unwrap();
        assert!(book.load(record(1).channel).is_ok());
    }

    #[test]
    fn the_base_is_what_was_charged_unless_a_ceiling_would_be_used_again() {
        let cases = [
            (100, 0, 10, 100),
            (100, 99, 10, 100),
            (100, 100, 10, 100),
            (100, 101, 10, 100),
            (100, 109, 10, 100),
            (100, 110, 10, 101),
            (100, 130, 10, 121),
            (100, 130, 50, 100),
            (100, 130, 31, 100),
            (100, 130, 30, 101),
        ];
        for (charged, spent, price, expected) in cases {
            let record = Record { charged: Amount::new(charged), spent: Amount::new(spent), ..record(1) };
            assert_eq!(record.base(Amount::new(price)), Amount::new(expected), "{charged} {spent} {price}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_reads() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("book");
        let book = open(&path).unwrap();
        book.save(&record(1)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(file_name(record(1).channel))), 0o600);
    }
}
