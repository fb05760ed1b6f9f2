//! The simulated disk as a file system of SQLite.
//!
//! **Owns** what an operating system adds to a disk: open files, their locks and the shared memory of the WAL index.
//! **Promises** the manners of SQLite's own file system for Unix where they matter to durability: the same device
//! characteristics (a write changes no byte it was not asked to, nothing else is atomic, nothing is in order), so that
//! SQLite does the same writes and syncs as it does on a real disk; and a directory that is synced with the first sync
//! of a journal or WAL that was opened, and nowhere else. **Does not** serve several threads at once: a
//! [`Machine`] is one computer, and each is registered with SQLite under a name of its own.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sqlite_vfs::wip::{WalIndex, WalIndexLock};
use sqlite_vfs::{DatabaseHandle, LockKind, OpenAccess, OpenKind, OpenOptions, Vfs};

use crate::disk::{Disk, FileId, Trouble};

/// How many bytes of WAL index SQLite maps at a time.
const REGION: usize = 32_768;

/// A computer with one disk, as SQLite sees it.
#[derive(Clone)]
pub(crate) struct Machine {
    name: Arc<str>,
    system: Arc<Mutex<System>>,
}

/// What an operating system knows between two starts.
#[derive(Default)]
struct System {
    disk: Disk,
    /// Which start this is; files that an earlier one opened are of no use in a later one.
    starts: u64,
    opened: u64,
    temporary: u64,
    locks: BTreeMap<FileId, BTreeMap<u64, LockKind>>,
    shared: BTreeMap<FileId, Shared>,
}

/// The shared memory of one database.
#[derive(Default)]
struct Shared {
    regions: BTreeMap<u32, Box<[u8; REGION]>>,
    locks: BTreeMap<u8, BTreeMap<u64, WalIndexLock>>,
    users: usize,
}

impl Machine {
    /// A machine with an empty disk. SQLite never lets go of a file system, so make few.
    pub(crate) fn new() -> Self {
        static MACHINES: AtomicU64 = AtomicU64::new(0);
        let name = format!("crash-{}", MACHINES.fetch_add(1, Ordering::Relaxed));
        let machine = Self { name: name.as_str().into(), system: Arc::default() };
        sqlite_vfs::register(&name, machine.clone(), false).expect("the name is new");
        machine
    }

    /// The name of its file system, for SQLite.
    pub(crate) fn vfs(&self) -> &str {
        &self.name
    }

    /// Starts with this disk.
    pub(crate) fn start(&self, disk: Disk) {
        let mut system = self.system();
        let starts = system.starts + 1;
        *system = System { disk, starts, ..System::default() };
    }

    /// Stops, with whatever processes were doing: none of them can reach the disk from now on.
    pub(crate) fn stop(&self) -> Disk {
        let mut system = self.system();
        system.starts += 1;
        std::mem::take(&mut system.disk)
    }

    /// Looks at the disk, or mends it, while it runs.
    pub(crate) fn with_disk<T>(&self, act: impl FnOnce(&mut Disk) -> T) -> T {
        act(&mut self.system().disk)
    }

    fn system(&self) -> MutexGuard<'_, System> {
        self.system.lock().expect("nothing panics while it holds the system")
    }

    fn system_of(&self, start: u64) -> Result<MutexGuard<'_, System>, Error> {
        let system = self.system();
        if system.starts == start { Ok(system) } else { Err(Error::other("the machine was stopped")) }
    }
}

impl Vfs for Machine {
    type Handle = OpenFile;

    fn open(&self, name: &str, options: OpenOptions) -> Result<OpenFile, Error> {
        let mut system = self.system();
        let found = system.disk.find(name);
        let file = match (found, options.access) {
            (Some(_), OpenAccess::CreateNew) => return Err(ErrorKind::AlreadyExists.into()),
            (Some(file), _) => file,
            (None, OpenAccess::Read | OpenAccess::Write) => return Err(ErrorKind::NotFound.into()),
            (None, OpenAccess::Create | OpenAccess::CreateNew) => system.disk.create(name).map_err(error)?,
        };
        system.opened += 1;
        let journal = matches!(options.kind, OpenKind::MainJournal | OpenKind::SuperJournal | OpenKind::Wal);
        let (start, number) = (system.starts, system.opened);
        Ok(OpenFile { machine: self.clone(), start, number, file, directory_waits: journal })
    }

    fn delete(&self, name: &str) -> Result<(), Error> {
        let deleted = self.system().disk.delete(name).map_err(error)?;
        if deleted { Ok(()) } else { Err(ErrorKind::NotFound.into()) }
    }

    /// As SQLite's own file system for Unix has it, an empty file does not exist.
    fn exists(&self, name: &str) -> Result<bool, Error> {
        let system = self.system();
        Ok(system.disk.find(name).is_some_and(|file| !system.disk.contents(file).is_empty()))
    }

    fn temporary_name(&self) -> String {
        let mut system = self.system();
        system.temporary += 1;
        format!("temporary-{}-{}", system.starts, system.temporary)
    }

    fn random(&self, buffer: &mut [i8]) {
        buffer.fill(0);
    }

    fn sleep(&self, duration: Duration) -> Duration {
        duration
    }
}

/// A file somebody has open.
pub(crate) struct OpenFile {
    machine: Machine,
    start: u64,
    number: u64,
    file: FileId,
    /// The directory is to be synced with the file.
    directory_waits: bool,
}

impl OpenFile {
    fn system(&self) -> Result<MutexGuard<'_, System>, Error> {
        self.machine.system_of(self.start)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Ok(mut system) = self.system()
            && let Some(locks) = system.locks.get_mut(&self.file)
        {
            locks.remove(&self.number);
        }
    }
}

impl DatabaseHandle for OpenFile {
    type WalIndex = Index;

    fn size(&self) -> Result<u64, Error> {
        let length = self.system()?.disk.contents(self.file).len();
        u64::try_from(length).map_err(Error::other)
    }

    fn read_exact_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let offset = usize::try_from(offset).map_err(Error::other)?;
        let system = self.system()?;
        let there = system.disk.contents(self.file).get(offset..).unwrap_or_default();
        let read = there.len().min(buffer.len());
        let (filled, missing) = buffer.split_at_mut(read);
        filled.copy_from_slice(&there[..read]);
        // SQLite's contract: what a short read misses is zero.
        missing.fill(0);
        if missing.is_empty() { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let offset = usize::try_from(offset).map_err(Error::other)?;
        self.system()?.disk.write(self.file, offset, bytes).map_err(error)
    }

    fn sync(&mut self, _data_only: bool) -> Result<(), Error> {
        self.system()?.disk.sync(self.file, self.directory_waits).map_err(error)?;
        self.directory_waits = false;
        Ok(())
    }

    fn set_len(&mut self, size: u64) -> Result<(), Error> {
        let length = usize::try_from(size).map_err(Error::other)?;
        let mut system = self.system()?;
        // A hint of the size to come is answered this way too; one that changes nothing is not an operation.
        if system.disk.contents(self.file).len() == length {
            return Ok(());
        }
        system.disk.resize(self.file, length).map_err(error)
    }

    fn lock(&mut self, wanted: LockKind) -> Result<bool, Error> {
        let mut system = self.system()?;
        let locks = system.locks.entry(self.file).or_default();
        let highest = locks
            .iter()
            .filter(|(who, _)| **who != self.number)
            .map(|(_, kind)| *kind)
            .fold(LockKind::None, |highest, kind| if kind > highest { kind } else { highest });
        let granted = match wanted {
            LockKind::None => LockKind::None,
            LockKind::Shared if highest < LockKind::Pending => LockKind::Shared,
            LockKind::Reserved if highest < LockKind::Reserved => LockKind::Reserved,
            LockKind::Pending | LockKind::Exclusive if highest < LockKind::Shared => wanted,
            LockKind::Exclusive if highest < LockKind::Reserved => LockKind::Pending,
            _ => return Ok(false),
        };
        locks.insert(self.number, granted);
        Ok(granted == wanted)
    }

    fn reserved(&mut self) -> Result<bool, Error> {
        let system = self.system()?;
        Ok(system.locks.get(&self.file).is_some_and(|locks| locks.values().any(|kind| *kind >= LockKind::Reserved)))
    }

    fn current_lock(&self) -> Result<LockKind, Error> {
        let system = self.system()?;
        let kind = system.locks.get(&self.file).and_then(|locks| locks.get(&self.number));
        Ok(kind.copied().unwrap_or(LockKind::None))
    }

    fn wal_index(&self, _readonly: bool) -> Result<Index, Error> {
        let mut system = self.system()?;
        system.shared.entry(self.file).or_default().users += 1;
        Ok(Index { machine: self.machine.clone(), start: self.start, number: self.number, file: self.file })
    }
}

/// One user's view of the shared memory. It is memory, not disk: nothing in it is a stop point or survives one.
pub(crate) struct Index {
    machine: Machine,
    start: u64,
    number: u64,
    file: FileId,
}

impl Index {
    fn with<T>(&self, act: impl FnOnce(&mut Shared, u64) -> T) -> Result<T, Error> {
        let mut system = self.machine.system_of(self.start)?;
        Ok(act(system.shared.entry(self.file).or_default(), self.number))
    }
}

impl WalIndex for Index {
    fn map(&mut self, region: u32) -> Result<[u8; REGION], Error> {
        self.with(|shared, _| **shared.regions.entry(region).or_insert_with(|| Box::new([0; REGION])))
    }

    fn lock(&mut self, locks: Range<u8>, wanted: WalIndexLock) -> Result<bool, Error> {
        self.with(|shared, me| {
            let refused = locks.clone().any(|slot| {
                let others = shared.locks.get(&slot).into_iter().flatten().filter(|(who, _)| **who != me);
                others.into_iter().any(|(_, held)| match wanted {
                    WalIndexLock::None => false,
                    WalIndexLock::Shared => *held == WalIndexLock::Exclusive,
                    WalIndexLock::Exclusive => true,
                })
            });
            if refused {
                return false;
            }
            for slot in locks {
                let held = shared.locks.entry(slot).or_default();
                if wanted == WalIndexLock::None {
                    held.remove(&me)
                } else {
                    held.insert(me, wanted)
                };
            }
            true
        })
    }

    fn delete(self) -> Result<(), Error> {
        self.with(|shared, _| shared.regions.clear())
    }

    fn pull(&mut self, region: u32, mine: &mut [u8; REGION]) -> Result<(), Error> {
        self.with(|shared, _| {
            if let Some(bytes) = shared.regions.get(&region) {
                mine.copy_from_slice(&bytes[..]);
            }
        })
    }

    fn push(&mut self, region: u32, mine: &[u8; REGION]) -> Result<(), Error> {
        self.with(|shared, _| {
            shared.regions.insert(region, Box::new(*mine));
        })
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        // What is left after the last user is not to be trusted by the next: as on Unix, it starts from nothing. A
        // machine that was stopped has nothing to release.
        let _ = self.with(|shared, me| {
            for held in shared.locks.values_mut() {
                held.remove(&me);
            }
            shared.users -= 1;
            if shared.users == 0 {
                *shared = Shared::default();
            }
        });
    }
}

fn error(trouble: Trouble) -> Error {
    match trouble {
        // The kinds that the binding turns into SQLITE_FULL and SQLITE_IOERR.
        Trouble::Full => ErrorKind::WriteZero.into(),
        Trouble::Broken => Error::other("input/output error"),
    }
}
