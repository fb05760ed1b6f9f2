//! One undisturbed run of a workload, recorded operation by operation.
//!
//! The run is cut into sessions: the books are opened, a dozen or so batches are committed, and the process ends, by
//! closing them, by being killed or with the power, each in turn. So the record holds recoveries and closings as well as
//! commits and checkpoints, and a stop point is reached again by replaying one short session from its first disk.

use crate::disk::{Change, Disk, Operation};
use crate::store::{Store, Workload};
use crate::vfs::Machine;

/// How many commits a session has.
pub(crate) const SESSION: usize = 15;

/// The length of a WAL's header; frames follow it.
const WAL_HEADER: usize = 32;

/// From opening the books to the end of the process.
pub(crate) struct Session {
    /// The disk it began with.
    pub(crate) start: Disk,
    /// What it did.
    pub(crate) record: Vec<Operation>,
    /// How many batches were in the books before it.
    pub(crate) first: usize,
    /// Its commits, in order.
    pub(crate) commits: Vec<Span>,
}

/// Where in the record a commit is, in operations before each moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// It was called.
    pub(crate) begins: usize,
    /// Its last frame was written; the sync that makes it durable is the next operation. A store that does not sync
    /// decides when it acknowledges.
    pub(crate) decided: usize,
    /// It was acknowledged.
    pub(crate) ends: usize,
}

impl Session {
    /// The commit that was under way after so many operations, if one was, and how many were acknowledged before.
    pub(crate) fn at(&self, operations: usize) -> (usize, Option<Span>) {
        let done = self.commits.partition_point(|span| span.ends <= operations);
        let under_way = self.commits.get(done).filter(|span| span.begins < operations);
        (self.first + done, under_way.copied())
    }
}

/// Runs the first `commits` batches of a workload. One more must be there for going on after the last.
pub(crate) fn record<S: Store>(machine: &Machine, workload: &Workload<S>, commits: usize) -> Vec<Session> {
    let distinct = workload.states.windows(2).all(|pair| pair[0] != pair[1]);
    assert!(distinct, "every batch can be told from what was there before");
    let mut sessions = Vec::new();
    let mut disk = Disk::default();
    while sessions.iter().map(|session: &Session| session.commits.len()).sum::<usize>() < commits {
        let first = sessions.len() * SESSION;
        let start = disk.clone();
        machine.start(disk.start(None, true));
        let mut store = (workload.open)(machine.vfs()).expect("an undisturbed disk serves");
        let mut calls = Vec::new();
        for batch in workload.batches.iter().take(commits).skip(first).take(SESSION) {
            let begins = machine.with_disk(|disk| disk.operations());
            store.commit(batch).expect("an undisturbed disk serves");
            calls.push((begins, machine.with_disk(|disk| disk.operations())));
        }
        let mut after = match sessions.len() % 3 {
            0 => {
                drop(store);
                machine.stop()
            }
            _ => {
                let disk = machine.stop();
                drop(store);
                disk
            }
        };
        let record = after.take_record();
        disk = if sessions.len() % 3 == 2 { after.after_power_cut() } else { after.after_kill() };
        let commits = decisions(&start, &record, &calls);
        sessions.push(Session { start, record, first, commits });
    }
    sessions
}

/// Finds the sync that decides each commit: the only sync of a WAL with frames waiting between its call and its return.
fn decisions(start: &Disk, record: &[Operation], calls: &[(usize, usize)]) -> Vec<Span> {
    let mut wals: Vec<_> = start.names().filter(|(name, _)| name.ends_with("-wal")).map(|(_, file)| file).collect();
    let mut frames_wait = false;
    let mut deciding = Vec::new();
    for (index, operation) in record.iter().enumerate() {
        match operation {
            Operation::Change(Change::Create { name, file, .. }) if name.ends_with("-wal") => wals.push(*file),
            Operation::Change(Change::Write { file, offset, .. }) if wals.contains(file) => {
                frames_wait |= *offset >= WAL_HEADER;
            }
            Operation::Sync { file, .. } if wals.contains(file) && std::mem::take(&mut frames_wait) => {
                deciding.push(index);
            }
            _ => {}
        }
    }
    let span = |(begins, ends): &(usize, usize)| {
        let within: Vec<_> = deciding.iter().filter(|index| (begins..ends).contains(index)).collect();
        assert!(within.len() <= 1, "one commit, one deciding sync: {within:?} in {begins}..{ends}");
        Span { begins: *begins, decided: within.first().map_or(*ends, |index| **index), ends: *ends }
    };
    calls.iter().map(span).collect()
}
