//! Redemption under everything that goes wrong: a node that is down, slow, behind or lying, transactions that are
//! dropped, stuck or answered with silence, fees that jump, blocks that are replaced, crashes between any two steps, and
//! rows that no batch survives.
//!
//! One trial ([`trial`]) is a chain, books on disk, some dozens of channels whose payers pay through the gate, and
//! redemption that talks to its node through a gateway that injects faults ([`gateway`]). A seed decides what happens and
//! when. Then the faults stop, and within a bound of real time every voucher that can be claimed must be claimed and
//! settled, before the payers that are leaving may take their money: to the last unit, and without paying gas for the
//! same rows twice ([`judge`]). One trial in ten is played on anvil.
//!
//! `cargo test --release --test redemption_faults` tries 500 seeds, a debug build 24. `PEAJE_SEEDS` says how many,
//! `PEAJE_SEED` which one alone; `PEAJE_SKIP_NODE_TESTS=1` leaves anvil out. What seeds do not repeat is the machine's
//! timing; a seed that fails once in a few runs is a finding all the same.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    reason = "in a test a panic is the report"
)]

#[path = "../crash_points/dice.rs"]
mod dice;
mod gateway;
mod judge;
mod node;
#[path = "../support/npm.rs"]
mod npm;
#[path = "../support/onchain.rs"]
mod onchain;
#[path = "../stock_client/package.rs"]
mod package;
#[path = "../support/payer.rs"]
mod payer;
mod process;
mod trial;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use node::Kind;

/// The first seed of a run.
const FIRST_SEED: u64 = 1;

/// How many seeds a run has.
const SEEDS: u64 = if cfg!(debug_assertions) { 24 } else { 500 };

/// Every so many trials one is played on anvil.
const ANVIL_EVERY: u64 = 10;

/// Trials at once for each core: they mostly wait.
const TRIALS_PER_CORE: usize = 3;

/// How many failures are told in full.
const REPORTED: usize = 12;

/// What happened in trials.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Counts by name.
    counts: BTreeMap<String, u64>,
}

impl Tally {
    pub(crate) fn add(&mut self, what: impl Into<String>, count: u64) {
        *self.counts.entry(what.into()).or_default() += count;
    }

    fn merge(&mut self, other: Self) {
        for (what, count) in other.counts {
            self.add(what, count);
        }
    }
}

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[test]
fn after_the_faults_every_claimable_voucher_is_claimed_and_settled_to_the_last_unit() {
    let seeds = match number_in("PEAJE_SEED") {
        Some(seed) => seed..seed + 1,
        None => FIRST_SEED..FIRST_SEED + number_in("PEAJE_SEEDS").unwrap_or(SEEDS),
    };
    let anvil = !npm::skipped();
    if anvil {
        package::anvil();
    }
    let (begun, trials) = (Instant::now(), seeds.end - seeds.start);
    let next = AtomicU64::new(seeds.start);
    let (tally, failures) = (Mutex::new(Tally::default()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let kind = if anvil && seed.is_multiple_of(ANVIL_EVERY) { Kind::Anvil } else { Kind::Devnet };
            let one = std::thread::Builder::new().name(format!("seed {seed}")).spawn(move || trial::run(seed, kind));
            let verdict = one.unwrap().join().unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                (Tally::default(), Err(format!("panicked: {}", text.unwrap_or_default())))
            });
            let (of_one, outcome) = verdict;
            let mut tally = tally.lock().unwrap();
            tally.merge(of_one);
            tally.add(format!("trials on {kind:?}").to_lowercase(), 1);
            if let Err(why) = outcome {
                say(&format!("seed {seed} on {kind:?} failed: {}", why.lines().next().unwrap_or_default()));
                failures.lock().unwrap().push(format!("PEAJE_SEED={seed}, {kind:?}: {why}"));
            }
        }
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from) * TRIALS_PER_CORE;
        for _ in 0..workers.min(usize::try_from(trials).unwrap()) {
            scope.spawn(work);
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    say(&format!("{trials} trials in {seconds:.1} s, {:.2} s each", seconds / trials as f64));
    for (what, count) in &tally.lock().unwrap().counts {
        say(&format!("{count:>9} {what}"));
    }
    let failures = failures.into_inner().unwrap();
    let shown: Vec<_> = failures.iter().take(REPORTED).map(String::as_str).collect();
    assert!(failures.is_empty(), "{} of {trials} trials failed:\n\n{}", failures.len(), shown.join("\n\n"));
}

/// Past the harness, which keeps what is printed to itself.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "redemption_faults: {line}");
}
