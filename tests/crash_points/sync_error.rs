//! What SQLite does after the sync of a commit failed, and why our store commits once more before it stops.
//!
//! In WAL mode the frames of such a commit are in the file, whole, with a valid commit mark; only the connection's own
//! idea of where the log ends leaves them out. Whoever opens the books next finds them. The connection stays usable: its
//! next commit starts at the very frame where the refused one did, and the checksums of a WAL are chained, so what is
//! left of the refused frames behind it can never be read again.

use crate::disk::{Change, Disk, Fate, Fault, Operation};
use crate::history::{self, SESSION, Session};
use crate::stand_in::{self, Entry, Habits, StandIn};
use crate::store::{Refusal, Store, Workload};
use crate::vfs::Machine;

/// The seed does not matter here, only that the runs are short.
const SEED: u64 = 7;
const COMMITS: usize = SESSION;

/// What is left when the sync of one commit failed, and where the WAL was written from then on.
struct Failed {
    verdict: Result<(), Refusal>,
    disk: Disk,
    frames: Vec<usize>,
}

fn fail(machine: &Machine, workload: &Workload<StandIn>, session: &Session, commit: usize, fate: Fate) -> Failed {
    let fault = Fault::Sync { at: session.commits[commit].decided, fate, again: None };
    machine.start(session.start.clone().start(Some(fault), true));
    let mut store = (workload.open)(machine.vfs()).unwrap();
    for batch in &workload.batches[..commit] {
        store.commit(batch).unwrap();
    }
    let before = machine.with_disk(|disk| disk.operations());
    let verdict = store.commit(&workload.batches[commit]);
    let mut disk = machine.stop();
    let wal = disk.find("/books.db-wal").unwrap();
    let frames = disk.take_record().into_iter().skip(before).filter_map(|operation| match operation {
        Operation::Change(Change::Write { file, offset, bytes }) if file == wal && bytes.len() == 24 => Some(offset),
        _ => None,
    });
    Failed { verdict, frames: frames.collect(), disk }
}

fn reopened(machine: &Machine, workload: &Workload<StandIn>, image: Disk) -> stand_in::State {
    machine.start(image);
    let state = (workload.open)(machine.vfs()).unwrap().state().unwrap();
    machine.stop();
    state
}

fn run(habits: Habits) -> (Machine, Workload<StandIn>, Session) {
    let machine = Machine::new();
    let workload = stand_in::workload(SEED, COMMITS + 1, habits);
    let session = history::record(&machine, &workload, COMMITS).remove(0);
    (machine, workload, session)
}

#[test]
fn a_commit_whose_sync_failed_is_there_after_a_restart_though_it_was_refused() {
    let (machine, workload, session) = run(Habits { overwrite_refused: false, ..Habits::good() });
    for commit in 0..COMMITS {
        for (fate, after_power_cut) in [(Fate::Durable, 1), (Fate::Waiting, 0), (Fate::Forgotten, 0)] {
            let failed = fail(&machine, &workload, &session, commit, fate);
            assert!(failed.verdict.is_err());
            let killed = reopened(&machine, &workload, failed.disk.after_kill());
            assert_eq!(killed, workload.states[commit + 1], "commit {commit}, {fate:?}: back after a restart");
            let cut = reopened(&machine, &workload, failed.disk.after_power_cut());
            assert_eq!(cut, workload.states[commit + after_power_cut], "commit {commit}, {fate:?}: by luck");
        }
    }
}

#[test]
fn a_small_commit_after_it_overwrites_what_was_refused_for_good() {
    let (machine, workload, session) = run(Habits::good());
    for commit in 0..COMMITS {
        for fate in [Fate::Durable, Fate::Waiting, Fate::Forgotten] {
            let failed = fail(&machine, &workload, &session, commit, fate);
            // The connection was usable, and what it wrote began where the refused frames did.
            assert_eq!(failed.verdict, Err(Refusal::NotInTheBooks));
            let starts = failed.frames.iter().filter(|offset| *offset == &failed.frames[0]).count();
            assert_eq!(starts, 2, "commit {commit}, {fate:?}: {:?}", failed.frames);
            for image in [failed.disk.after_kill(), failed.disk.after_power_cut()] {
                let state = reopened(&machine, &workload, image);
                assert_eq!(state, workload.states[commit], "commit {commit}, {fate:?}: gone");
            }
        }
    }
}

/// Linux forgets what it could not write and goes on showing it, also to the next process. Books that build on it lose
/// what they acknowledge later, unless what the WAL holds is first written and synced somewhere else.
#[test]
fn a_recovered_wal_that_was_never_durable_is_not_built_on() {
    for (checkpoint_on_open, survives) in [(false, false), (true, true)] {
        let (machine, workload, session) =
            run(Habits { overwrite_refused: false, checkpoint_on_open, ..Habits::good() });
        let failed = fail(&machine, &workload, &session, 1, Fate::Forgotten);
        machine.start(failed.disk.after_kill());
        let mut store = (workload.open)(machine.vfs()).unwrap();
        assert_eq!(store.state().unwrap(), workload.states[2]);
        store.commit(&vec![Entry::CursorMoved { block: i64::MAX }]).unwrap();
        let acknowledged = store.state().unwrap();
        let cut = machine.stop().after_power_cut();
        drop(store);
        assert_eq!(reopened(&machine, &workload, cut) == acknowledged, survives, "checkpoint: {checkpoint_on_open}");
    }
}
