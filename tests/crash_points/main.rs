//! The books after a stop: at every point of a long run, in every way a machine stops.
//!
//! A workload runs once on a simulated disk ([`disk`]), under SQLite's own code ([`vfs`]); everything that touches the
//! medium is recorded ([`history`]). Each moment between two operations is a stop point, and each is tried ([`trial`])
//! as:
//!
//! * `lost`: power fails, and what was not synced is gone;
//! * `torn`: power fails in the last write, of which a part is there, and all before it;
//! * `scattered`: power fails while the disk writes in an order of its own; any part of what was not synced is there;
//! * `kept`: the process is killed, and the operating system has everything it wrote;
//! * `sync error`: the sync fails, once or from then on; its bytes are durable, or wait, or are forgotten;
//! * `disk full`: from there on no file grows, or nothing can be written at all;
//! * `write error`: the write fails half-way, once or from then on.
//!
//! The first four are images that follow from the record. In the others the session runs again with the fault in it; the
//! store must latch, and is then killed, cut off from power, or closed and cut off. Where a fault has several forms, each
//! point draws one (of a sync's fates it gets each). What is left must be exactly what was acknowledged. The numbers are
//! printed; `CRASH_POINTS_SEED` tries another run.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

mod books;
mod dice;
mod disk;
mod history;
mod stand_in;
mod store;
mod sync_error;
mod trial;
mod vfs;

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use history::Session;
use stand_in::Habits;
use store::{Store, Workload};
use trial::{Stop, Tally, Trial};
use vfs::Machine;

/// The run that is tried unless another is asked for.
const SEED: u64 = 0x70ea_6e00;

/// How many commits it has; the books must survive at least that many.
const COMMITS: usize = 300;

/// How many a bad habit is given to show itself in.
const COMMITS_OF_A_HABIT: usize = 45;

#[test]
fn every_stop_point_recovers_to_exactly_what_was_acknowledged() {
    let seed = std::env::var("CRASH_POINTS_SEED").map_or(SEED, |seed| seed.parse().expect("a seed is a number"));
    survives("the books", &books::workload(seed, COMMITS + 1), COMMITS, seed);
}

/// The simulator asks for nothing that a careful store cannot do.
#[test]
fn a_store_with_good_habits_survives_every_stop_point() {
    let workload = stand_in::workload(SEED, COMMITS_OF_A_HABIT + 1, Habits::good());
    survives("the stand-in", &workload, COMMITS_OF_A_HABIT, SEED);
}

fn survives<S: Store>(what: &str, workload: &Workload<S>, commits: usize, seed: u64) {
    let started = Instant::now();
    let sessions = history::record(&Machine::new(), workload, commits);
    let tally = sweep(workload, &sessions, &Stop::ALL, seed);
    let variants: Vec<_> = tally.points.iter().map(|(variant, points)| format!("{variant} {points}")).collect();
    say(&format!(
        "crash_points: {what}: {} points tried ({}) of {commits} commits, {} recoveries, seed {seed}, {:.1} s",
        tally.total(),
        variants.join(", "),
        tally.images,
        started.elapsed().as_secs_f64()
    ));
    let reports = tally.reports.join("\n");
    assert_eq!(tally.contradictions, 0, "with CRASH_POINTS_SEED={seed}; the first are:\n{reports}");
}

/// A simulator that finds nothing proves nothing: each habit that keeps the stand-in sound is left out once.
#[test]
fn a_store_without_any_one_good_habit_is_found_out() {
    let good = Habits::good();
    let bad = [
        ("commits that are not synced", Stop::Outside, Habits { synchronous: "NORMAL", ..good }),
        ("no syncs at all", Stop::Outside, Habits { synchronous: "OFF", ..good }),
        ("a rollback journal taken for a WAL", Stop::Sync, Habits { insist_on_wal: false, ..good }),
        ("no latch", Stop::Sync, Habits { latch: false, ..good }),
        ("a WAL built on that was never durable", Stop::Sync, Habits { checkpoint_on_open: false, ..good }),
        ("refused frames left in the WAL", Stop::Sync, Habits { overwrite_refused: false, ..good }),
    ];
    for (habit, stop, habits) in bad {
        let workload = stand_in::workload(SEED, COMMITS_OF_A_HABIT + 1, habits);
        let sessions = history::record(&Machine::new(), &workload, COMMITS_OF_A_HABIT);
        let tally = sweep(&workload, &sessions, &[stop], SEED);
        say(&format!("crash_points: {habit}: {} contradictions in {} points", tally.contradictions, tally.total()));
        assert!(tally.contradictions > 0, "{habit}");
    }
}

/// Tries every point of every session; the workers take the next part that nobody has.
fn sweep<S: Store>(workload: &Workload<S>, sessions: &[Session], stops: &[Stop], seed: u64) -> Tally {
    let parts: Vec<_> = sessions.iter().flat_map(|session| stops.iter().map(move |stop| (session, *stop))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let machine = Machine::new();
        let mut tally = Tally::default();
        while let Some((session, stop)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            tally.add(Trial::run(&machine, workload, session, *stop, seed));
        }
        tally
    };
    let mut whole = Tally::default();
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in running {
            whole.add(worker.join().unwrap());
        }
    });
    whole
}

/// Prints although the test passes.
fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").unwrap();
}
