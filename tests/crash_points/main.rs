//! The books survive a stop at any point.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "in a test a panic is the report"
)]

mod dice;
mod disk;
mod history;
mod stand_in;
mod store;
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

const SEED: u64 = 0x5eed_0001;
const COMMITS: usize = 312;

fn sweep<S: Store>(workload: &Workload<S>, sessions: &[Session], stops: &[Stop], seed: u64) -> Tally {
    let tasks: Vec<_> = sessions.iter().flat_map(|session| stops.iter().map(move |stop| (session, *stop))).collect();
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut whole = Tally::default();
    std::thread::scope(|scope| {
        let work = || {
            let machine = Machine::new();
            let mut tally = Tally::default();
            while let Some((session, stop)) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                let started = Instant::now();
                let part = Trial::run(&machine, workload, session, *stop, seed ^ u64::try_from(session.first).unwrap());
                eprintln!("{stop:?} {} {:?} {:?}", session.first, part.points, started.elapsed());
                tally.add(part);
            }
            tally
        };
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in running {
            whole.add(worker.join().unwrap());
        }
    });
    whole
}

#[test]
fn every_stop_point_recovers_to_exactly_what_was_acknowledged() {
    let started = Instant::now();
    let workload = stand_in::workload(SEED, COMMITS + 1, Habits::good());
    let sessions = history::record(&Machine::new(), &workload, COMMITS);
    for s in &sessions { eprintln!("{} ops {:?}", s.record.len(), s.commits.last()); }
    eprintln!("recorded {:?}", started.elapsed());
    let tally = sweep(&workload, &sessions, &Stop::ALL, SEED);
    let mut out = std::io::stdout().lock();
    writeln!(out, "crash_points: {} points tried {:?}, {} images, seed {SEED:#x}, {:?}", tally.total(), tally.points, tally.images, started.elapsed()).unwrap();
    assert_eq!(tally.contradictions, 0, "{:#?}", tally.reports);
}
