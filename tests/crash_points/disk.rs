//! A disk that can be stopped anywhere.
//!
//! **Owns** the files of one simulated machine, each as its processes see it and as the platter has it, and the ordered
//! list of what lies between: changes that were made and not yet synced. **Promises** that every operation that touches
//! the medium ([`Operation`]) is counted, can be recorded, and can be made to fail; that a recorded list of operations
//! brings any copy of the disk to the same state; and that what survives a stop is one of the images below and nothing
//! else. **Does not** know SQLite, locks or what the bytes mean.
//!
//! What a sync promises is what Linux file systems promise and no more: the bytes and the length of that one file, and
//! that its own name is in the directory. Other names become durable when somebody syncs the directory.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::dice::Dice;

/// What a disk writes as a whole when power fails.
const SECTOR: usize = 512;

/// Which file, whatever it is called now. Numbers are not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId(u64);

/// A change that is not durable before it is synced.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// A new, empty file gets a name.
    Create { name: String, file: FileId },
    /// A name goes; the file lives on for whoever has it open.
    Delete { name: String, file: FileId },
    /// Bytes at a place.
    Write { file: FileId, offset: usize, bytes: Arc<[u8]> },
    /// The file is cut or extended with zeros.
    Resize { file: FileId, length: usize },
}

impl Change {
    fn file(&self) -> FileId {
        match self {
            Self::Create { file, .. } | Self::Delete { file, .. } => *file,
            Self::Write { file, .. } | Self::Resize { file, .. } => *file,
        }
    }

    fn is_of_directory(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::Delete { .. })
    }
}

/// What touches the medium. The moment before each is a stop point.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    /// Something is changed.
    Change(Change),
    /// The changes of a file are made durable, and those of the directory if it is synced too.
    Sync { file: FileId, directory: bool },
}

/// What becomes of the bytes that a failed sync was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They reached the platter; only the answer was bad.
    Durable,
    /// They did not, and the next sync that succeeds takes them along.
    Waiting,
    /// They did not, and no later sync will: Linux marks the pages clean. Processes go on seeing them.
    Forgotten,
}

/// What goes wrong, counted in operations since the disk was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The sync at this operation fails; `again`: every later one too, with this fate.
    Sync { at: usize, fate: Fate, again: Option<Fate> },
    /// From this operation on, no file grows.
    NoRoomToGrow { from: usize },
    /// From this operation on, nothing can be written or created at all.
    NoRoom { from: usize },
    /// The change at this operation fails with half of its bytes written; `again`: every later one too.
    Change { at: usize, again: bool },
}

/// Why an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// EIO.
    Broken,
    /// ENOSPC.
    Full,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct File {
    seen: Vec<u8>,
    durable: Vec<u8>,
}

/// One simulated disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    files: BTreeMap<FileId, File>,
    names: BTreeMap<String, FileId>,
    durable_names: BTreeMap<String, FileId>,
    unsynced: Vec<Change>,
    created: u64,
    operations: usize,
    fault: Option<Fault>,
    first_failure: Option<usize>,
    /// Something was synced, and nothing failed after that.
    obeys: bool,
    record: Option<Vec<Operation>>,
}

impl Disk {
    // ------------------------------------------------------------------------------------------------ its machine's side

    /// Counts operations from zero, lets this go wrong, and records what is done if asked to.
    pub(crate) fn start(mut self, fault: Option<Fault>, recording: bool) -> Self {
        self.operations = 0;
        self.fault = fault;
        self.first_failure = None;
        self.obeys = false;
        self.record = recording.then(Vec::new);
        self
    }

    /// How many operations there were since it was started.
    pub(crate) fn operations(&self) -> usize {
        self.operations
    }

    /// The first operation that failed.
    pub(crate) fn first_failure(&self) -> Option<usize> {
        self.first_failure
    }

    /// Whether something was synced after the last operation that failed.
    pub(crate) fn obeys(&self) -> bool {
        self.obeys
    }

    /// What was recorded since it was started.
    pub(crate) fn take_record(&mut self) -> Vec<Operation> {
        self.record.take().unwrap_or_default()
    }

    /// The files by name, as its processes see them.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, FileId)> {
        self.names.iter().map(|(name, file)| (name.as_str(), *file))
    }

    // ---------------------------------------------------------------------------------------------- its processes' side

    /// The file of this name.
    pub(crate) fn find(&self, name: &str) -> Option<FileId> {
        self.names.get(name).copied()
    }

    /// Makes a file.
    pub(crate) fn create(&mut self, name: &str) -> Result<FileId, Trouble> {
        let file = FileId(self.created);
        self.created += 1;
        self.attempt(Operation::Change(Change::Create { name: name.to_owned(), file }))?;
        Ok(file)
    }

    /// Takes a name away; false if nothing has it.
    pub(crate) fn delete(&mut self, name: &str) -> Result<bool, Trouble> {
        let Some(file) = self.find(name) else { return Ok(false) };
        self.attempt(Operation::Change(Change::Delete { name: name.to_owned(), file }))?;
        Ok(true)
    }

    /// Writes bytes at a place.
    pub(crate) fn write(&mut self, file: FileId, offset: usize, bytes: &[u8]) -> Result<(), Trouble> {
        self.attempt(Operation::Change(Change::Write { file, offset, bytes: bytes.into() }))
    }

    /// Cuts or extends a file.
    pub(crate) fn resize(&mut self, file: FileId, length: usize) -> Result<(), Trouble> {
        self.attempt(Operation::Change(Change::Resize { file, length }))
    }

    /// Makes the changes of a file durable, and those of the directory if that is asked for.
    pub(crate) fn sync(&mut self, file: FileId, directory: bool) -> Result<(), Trouble> {
        self.attempt(Operation::Sync { file, directory })
    }

    /// A file as processes see it.
    pub(crate) fn contents(&self, file: FileId) -> &[u8] {
        self.files.get(&file).map_or(&[], |file| &file.seen)
    }

    fn attempt(&mut self, operation: Operation) -> Result<(), Trouble> {
        let at = self.operations;
        self.operations += 1;
        match self.failure(at, &operation) {
            None => {
                self.obeys |= matches!(operation, Operation::Sync { .. });
                if let Some(record) = &mut self.record {
                    record.push(operation.clone());
                }
                self.perform(operation);
                Ok(())
            }
            Some((what_is_left, trouble)) => {
                self.first_failure.get_or_insert(at);
                self.obeys = false;
                if let Some(operation) = what_is_left {
                    self.perform(operation);
                }
                Err(trouble)
            }
        }
    }

    /// What is done instead, and the answer, if this operation is to fail.
    fn failure(&mut self, at: usize, operation: &Operation) -> Option<(Option<Operation>, Trouble)> {
        let due = |when: usize, again: bool| at == when || (again && at > when);
        let write = |file: FileId, offset: usize, bytes: &[u8]| {
            (!bytes.is_empty()).then(|| Operation::Change(Change::Write { file, offset, bytes: bytes.into() }))
        };
        match (self.fault?, operation) {
            (Fault::Sync { at: first, fate, again }, Operation::Sync { file, .. }) if due(first, again.is_some()) => {
                match again.filter(|_| at > first).unwrap_or(fate) {
                    Fate::Durable => Some((Some(operation.clone()), Trouble::Broken)),
                    Fate::Waiting => Some((None, Trouble::Broken)),
                    Fate::Forgotten => {
                        self.unsynced.retain(|change| change.is_of_directory() || change.file() != *file);
                        Some((None, Trouble::Broken))
                    }
                }
            }
            (Fault::NoRoomToGrow { from }, Operation::Change(change)) if at >= from => match change {
                Change::Write { file, offset, bytes } => {
                    let room = self.contents(*file).len().saturating_sub(*offset);
                    let fits = bytes.get(..room)?;
                    Some((write(*file, *offset, fits), Trouble::Full)).filter(|_| room < bytes.len())
                }
                Change::Resize { file, length } if *length > self.contents(*file).len() => Some((None, Trouble::Full)),
                _ => None,
            },
            (Fault::NoRoom { from }, Operation::Change(change)) if at >= from => match change {
                Change::Write { .. } | Change::Create { .. } => Some((None, Trouble::Full)),
                Change::Resize { file, length } if *length > self.contents(*file).len() => Some((None, Trouble::Full)),
                _ => None,
            },
            (Fault::Change { at, again }, Operation::Change(change)) if due(at, again) => match change {
                Change::Write { file, offset, bytes } => {
                    Some((write(*file, *offset, &bytes[..bytes.len() / 2]), Trouble::Broken))
                }
                _ => Some((None, Trouble::Broken)),
            },
            _ => None,
        }
    }

    // ------------------------------------------------------------------------------------------------------- the medium

    /// Carries an operation out, uncounted: how a record is played back.
    pub(crate) fn perform(&mut self, operation: Operation) {
        match operation {
            Operation::Change(change) => {
                match &change {
                    Change::Create { name, file } => {
                        self.files.insert(*file, File::default());
                        self.names.insert(name.clone(), *file);
                        self.created = self.created.max(file.0 + 1);
                    }
                    Change::Delete { name, .. } => {
                        self.names.remove(name);
                    }
                    Change::Write { file, offset, bytes } => put(&mut self.file(*file).seen, *offset, bytes),
                    Change::Resize { file, length } => self.file(*file).seen.resize(*length, 0),
                }
                self.unsynced.push(change);
            }
            Operation::Sync { file, directory } => {
                for change in std::mem::take(&mut self.unsynced) {
                    let own_name = matches!(&change, Change::Create { file: created, .. } if *created == file);
                    let now = if change.is_of_directory() { directory || own_name } else { change.file() == file };
                    if now { self.persist(&change) } else { self.unsynced.push(change) }
                }
            }
        }
    }

    fn persist(&mut self, change: &Change) {
        match change {
            Change::Create { name, file } => {
                self.durable_names.insert(name.clone(), *file);
            }
            Change::Delete { name, file } => {
                if self.durable_names.get(name) == Some(file) {
                    self.durable_names.remove(name);
                }
            }
            Change::Write { file, offset, bytes } => put(&mut self.file(*file).durable, *offset, bytes),
            Change::Resize { file, length } => self.file(*file).durable.resize(*length, 0),
        }
    }

    fn file(&mut self, file: FileId) -> &mut File {
        self.files.get_mut(&file).expect("files outlive what is said of them")
    }

    // -------------------------------------------------------------------------------------------------- what survives it

    /// What an operating system still has when a process was killed: everything, synced or not.
    pub(crate) fn after_kill(&self) -> Self {
        let mut left = self.clone().start(None, false);
        let named: Vec<_> = left.names.values().chain(left.durable_names.values()).copied().collect();
        left.files.retain(|file, _| named.contains(file));
        left.unsynced.retain(|change| named.contains(&change.file()));
        left
    }

    /// Whether nothing on it is waiting, or was forgotten: what is seen is what is durable.
    pub(crate) fn is_durable(&self) -> bool {
        self.names == self.durable_names && self.files.values().all(|file| file.seen == file.durable)
    }

    /// Whether these are the same files, seen and durable.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.names == other.names && self.durable_names == other.durable_names && self.files == other.files
    }

    /// Power fails and everything unsynced is lost.
    pub(crate) fn after_power_cut(&self) -> Self {
        self.with_power_cut_after(std::iter::empty())
    }

    /// Power fails during the last write that was not synced: of that one a part, of all before it everything. `None` if
    /// there is none.
    pub(crate) fn after_torn_write(&self, dice: &mut Dice) -> Option<Self> {
        let last = self.unsynced.iter().rposition(|change| matches!(change, Change::Write { .. }))?;
        let whole = self.unsynced.iter().take(last).cloned();
        let torn = self.unsynced.get(last).and_then(|change| torn(change, dice));
        Some(self.with_power_cut_after(whole.chain(torn)))
    }

    /// Power fails while the disk writes in an order of its own: any part of what was not synced is there, some of it
    /// torn. `None` if everything was synced.
    pub(crate) fn after_scattered_writes(&self, dice: &mut Dice) -> Option<Self> {
        if self.unsynced.is_empty() {
            return None;
        }
        let some: Vec<_> = self
            .unsynced
            .iter()
            .filter_map(|change| match dice.below(5) {
                0 | 1 => None,
                2 | 3 => Some(change.clone()),
                _ => torn(change, dice),
            })
            .collect();
        Some(self.with_power_cut_after(some.into_iter()))
    }

    fn with_power_cut_after(&self, persisted: impl Iterator<Item = Change>) -> Self {
        let durable = |file: &File| File { seen: Vec::new(), durable: file.durable.clone() };
        let mut left = Self {
            files: self.files.iter().map(|(id, file)| (*id, durable(file))).collect(),
            durable_names: self.durable_names.clone(),
            created: self.created,
            ..Self::default()
        };
        for change in persisted {
            left.persist(&change);
        }
        left.names = left.durable_names.clone();
        let named: Vec<_> = left.names.values().copied().collect();
        left.files.retain(|file, _| named.contains(file));
        for file in left.files.values_mut() {
            file.seen.clone_from(&file.durable);
        }
        left
    }
}

/// A part of a change: a write loses its end, at a sector or anywhere, and sometimes the length of the file was written
/// before the bytes; what has no parts happened or did not.
fn torn(change: &Change, dice: &mut Dice) -> Option<Change> {
    match change {
        Change::Write { file, offset, bytes } => {
            let mut length = dice.below(bytes.len());
            if dice.once_in(2) {
                length -= length % SECTOR;
            }
            let mut bytes = bytes.to_vec();
            if dice.once_in(4) {
                bytes[length..].fill(0)
            } else {
                bytes.truncate(length)
            }
            Some(Change::Write { file: *file, offset: *offset, bytes: bytes.into() })
        }
        other => dice.once_in(2).then(|| other.clone()),
    }
}

fn put(contents: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if contents.len() < offset {
        contents.resize(offset, 0);
    }
    let (over, on) = bytes.split_at(bytes.len().min(contents.len() - offset));
    contents[offset..offset + over.len()].copy_from_slice(over);
    contents.extend_from_slice(on);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(disk: &Disk, name: &str) -> Option<Vec<u8>> {
        disk.find(name).map(|file| disk.contents(file).to_vec())
    }

    #[test]
    fn a_sync_is_of_one_file_and_its_name() {
        let mut disk = Disk::default();
        let (one, other) = (disk.create("one").unwrap(), disk.create("other").unwrap());
        disk.write(one, 0, b"1").unwrap();
        disk.write(other, 0, b"2").unwrap();
        disk.sync(one, false).unwrap();
        assert_eq!(seen(&disk.after_kill(), "other"), Some(b"2".to_vec()));
        let left = disk.after_power_cut();
        assert_eq!((seen(&left, "one"), seen(&left, "other")), (Some(b"1".to_vec()), None));
    }

    #[test]
    fn a_deletion_is_durable_with_the_directory() {
        let mut disk = Disk::default();
        let (kept, gone) = (disk.create("kept").unwrap(), disk.create("gone").unwrap());
        disk.sync(gone, false).unwrap();
        disk.delete("gone").unwrap();
        disk.sync(kept, false).unwrap();
        assert_eq!(seen(&disk.after_power_cut(), "gone"), Some(Vec::new()));
        disk.sync(kept, true).unwrap();
        assert_eq!(seen(&disk.after_power_cut(), "gone"), None);
    }

    #[test]
    fn what_a_failed_sync_forgot_is_seen_and_never_durable() {
        for (fate, left) in [(Fate::Durable, &b"01"[..]), (Fate::Waiting, b"01"), (Fate::Forgotten, b"0")] {
            let mut disk = Disk::default();
            let file = disk.create("file").unwrap();
            disk.write(file, 0, b"0").unwrap();
            disk.sync(file, false).unwrap();
            let mut disk = disk.start(Some(Fault::Sync { at: 1, fate, again: None }), false);
            disk.write(file, 1, b"1").unwrap();
            assert_eq!(disk.sync(file, false), Err(Trouble::Broken));
            disk.sync(file, false).unwrap();
            assert_eq!(disk.contents(file), b"01");
            assert_eq!(seen(&disk.after_power_cut(), "file").as_deref(), Some(left), "{fate:?}");
        }
    }

    #[test]
    fn a_full_disk_takes_what_fits() {
        let mut disk = Disk::default();
        let file = disk.create("file").unwrap();
        disk.write(file, 0, b"abc").unwrap();
        let mut disk = disk.start(Some(Fault::NoRoomToGrow { from: 0 }), false);
        assert_eq!(disk.write(file, 1, b"xyz"), Err(Trouble::Full));
        assert_eq!(disk.contents(file), b"axy");
        assert_eq!(disk.write(file, 0, b"abc"), Ok(()));
    }

    #[test]
    fn a_record_played_back_is_the_same_disk() {
        let mut disk = Disk::default().start(None, true);
        let file = disk.create("file").unwrap();
        disk.write(file, 3, b"abc").unwrap();
        disk.sync(file, true).unwrap();
        disk.resize(file, 2).unwrap();
        let mut copy = Disk::default();
        disk.take_record().into_iter().for_each(|operation| copy.perform(operation));
        for (image, of_copy) in
            [(disk.after_kill(), copy.after_kill()), (disk.after_power_cut(), copy.after_power_cut())]
        {
            assert_eq!(seen(&image, "file"), seen(&of_copy, "file"));
        }
        assert_eq!(seen(&disk.after_power_cut(), "file"), Some(b"\0\0\0abc".to_vec()));
    }
}
