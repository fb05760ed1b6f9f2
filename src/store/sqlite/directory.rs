//! The directory of books: made, and owned by one process at a time.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// The database in a directory of books.
pub(super) const BOOKS_FILE: &str = "books.sqlite3";

/// The file whose lock is the right to write the directory.
const LOCK_FILE: &str = "lock";

/// How much of the log is read or written at a time, bytes.
const LOG_PIECE_BYTES: usize = 1 << 16;

/// The longest process id that is read from a lock file, in bytes.
const MAX_PROCESS_ID_BYTES: u64 = 20;

/// The right to write a directory of books, until it is dropped. The lock is the system's, so it ends with the process
/// however that ends; the file stays, and says nothing by being there.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    _file: File,
}

/// Makes a directory where there is none. Vouchers are worth money to whoever can claim them and tell who buys what, so
/// only the owner may look inside.
pub(super) fn create(directory: &Path) -> Result<(), StoreError> {
    if directory.is_dir() {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(unusable(directory))?;
    // The name of a directory is in its parent; without this a power cut could take the books with it.
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_directory(parent)?;
    }
    Ok(())
}

/// Takes a directory for this process.
///
/// # Errors
/// [`StoreError::InUse`] where another has it.
pub(super) fn lock(directory: &Path) -> Result<DirectoryLock, StoreError> {
    let path = directory.join(LOCK_FILE);
    let mut file = private().create(true).truncate(false).open(&path).map_err(unusable(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(StoreError::InUse { directory: directory.to_owned(), by: owner_in(file) });
        }
        Err(TryLockError::Error(error)) => return Err(unusable(&path)(error)),
    }
    // The number is for people, and for the refusal above; only the lock counts.
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(not_written(&path))?;
    Ok(DirectoryLock { _file: file })
}

/// The database file of a directory, made empty where there is none so that it is the owner's only; SQLite gives the
/// files beside it the same mode.
pub(super) fn books_file(directory: &Path) -> Result<PathBuf, StoreError> {
    let path = directory.join(BOOKS_FILE);
    match private().create_new(true).open(&path) {
        Ok(_) => sync_directory(directory)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unusable(&path)(error)),
    }
    Ok(path)
}

/// Gives the log beside a database its full length at once. What is beyond its last frame means nothing to SQLite, as after
/// every time it starts the log anew.
pub(super) fn reserve_log(database: &Path, length: u64) -> Result<(), StoreError> {
    let path = log_of(database);
    let extend = || {
        let mut log = OpenOptions::new().write(true).open(&path)?;
        let mut missing = length.saturating_sub(log.seek(SeekFrom::End(0))?);
        let zeros = vec![0; LOG_PIECE_BYTES];
        while missing > 0 {
            let piece = usize::try_from(missing).map_or(zeros.len(), |missing| missing.min(zeros.len()));
            log.write_all(zeros.get(..piece).unwrap_or_default())?;
            missing = missing.saturating_sub(u64::try_from(piece).unwrap_or(missing));
        }
        log.sync_all()
    };
    extend().map_err(not_written(&path))
}

/// Writes the log beside a database over with what is in it, and syncs it; whoever reads it meanwhile sees no change. Nobody
/// may append to it.
pub(super) fn rewrite_log(database: &Path) -> Result<(), StoreError> {
    let path = log_of(database);
    let rewrite = || {
        let mut log = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut piece = vec![0; LOG_PIECE_BYTES];
        let mut place = 0u64;
        loop {
            log.seek(SeekFrom::Start(place))?;
            let length = log.read(&mut piece)?;
            if length == 0 {
                return log.sync_all();
            }
            log.seek(SeekFrom::Start(place))?;
            log.write_all(piece.get(..length).unwrap_or_default())?;
            place = place.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
    };
    rewrite().map_err(not_written(&path))
}

fn log_of(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    PathBuf::from(path)
}

/// Makes names in a directory durable, where the system can.
pub(super) fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    if cfg!(unix) {
        File::open(directory).and_then(|file| file.sync_all()).map_err(unusable(directory))?;
    }
    Ok(())
}

/// For `map_err`.
pub(super) fn unusable(path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    move |source| StoreError::Path { path: path.to_owned(), source }
}

/// The same, for what takes room.
fn not_written(path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    move |error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StoreError::Full(error.into()),
        _ => unusable(path)(error),
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn owner_in(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(MAX_PROCESS_ID_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
