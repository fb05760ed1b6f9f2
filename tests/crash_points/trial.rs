//! Stopping a recorded run everywhere, in every way, and judging what the books say afterwards.
//!
//! **Promises** a verdict that is as strict as the truth is: what was acknowledged is there, what was refused is not, and
//! only a batch whose last frame was written and whose sync did not return may be there or not, as a whole. Every image
//! that survives is opened by the store itself, compared, checked and written to once more. One that a killed process
//! left, in which not all is durable that is seen, is then cut off from power and compared again. An image that was just
//! judged is not judged twice.

use std::collections::BTreeMap;

use crate::dice::Dice;
use crate::disk::{Change, Disk, Fate, Fault, Operation};
use crate::history::Session;
use crate::store::{Refusal, Store, Workload};
use crate::vfs::Machine;

/// How many contradictions are worth reading.
const REPORTED: usize = 8;

/// What may become of the bytes of a failed sync, and of those of later ones if they fail too.
const FATES: [Fate; 3] = [Fate::Durable, Fate::Waiting, Fate::Forgotten];
const AGAIN: [Option<Fate>; 3] = [None, Some(Fate::Waiting), Some(Fate::Forgotten)];

/// Whether a batch that was not acknowledged may be in the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It must not be.
    Absent,
    /// It must be.
    Present,
    /// Either, as a whole.
    Open,
}

/// What was tried, and what contradicted the books.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Points tried of each variant.
    pub(crate) points: BTreeMap<&'static str, usize>,
    /// Images that were recovered from; one that follows from several points counts once.
    pub(crate) images: usize,
    /// Contradictions found in all.
    pub(crate) contradictions: usize,
    /// The first of them.
    pub(crate) reports: Vec<String>,
}

impl Tally {
    /// Points tried in all.
    pub(crate) fn total(&self) -> usize {
        self.points.values().sum()
    }

    /// Adds what another worker tried.
    pub(crate) fn add(&mut self, other: Self) {
        for (variant, points) in other.points {
            *self.points.entry(variant).or_default() += points;
        }
        self.images += other.images;
        self.contradictions += other.contradictions;
        self.reports.extend(other.reports);
        self.reports.truncate(REPORTED);
    }

    fn count(&mut self, variant: &'static str) {
        *self.points.entry(variant).or_default() += 1;
    }

    fn contradiction(&mut self, report: String) {
        self.contradictions += 1;
        if self.reports.len() < REPORTED {
            self.reports.push(report);
        }
    }
}

/// What ends a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The power fails, or the process is killed: everything an image can be derived for from the record.
    Outside,
    /// A sync fails.
    Sync,
    /// The disk is full.
    Full,
    /// A write fails.
    Write,
}

impl Stop {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Outside, Self::Sync, Self::Full, Self::Write];
}

/// What a run with a fault in it leaves.
struct Aftermath {
    images: Vec<(&'static str, Disk)>,
    acknowledged: usize,
    next: Next,
}

/// One worker's tools.
pub(crate) struct Trial<'a, S: Store> {
    machine: &'a Machine,
    workload: &'a Workload<S>,
    dice: Dice,
    tally: Tally,
}

impl<'a, S: Store> Trial<'a, S> {
    /// Tries every point of a session.
    pub(crate) fn run(
        machine: &'a Machine,
        workload: &'a Workload<S>,
        session: &Session,
        stop: Stop,
        seed: u64,
    ) -> Tally {
        let mut trial = Self { machine, workload, dice: Dice::new(seed), tally: Tally::default() };
        match stop {
            Stop::Outside => trial.stop_from_outside(session),
            _ => {
                for (at, operation) in session.record.iter().enumerate() {
                    trial.fail_at(session, stop, at, operation);
                }
            }
        }
        trial.tally
    }

    // -------------------------------------------------------------------------------- the power fails, a process is killed

    fn stop_from_outside(&mut self, session: &Session) {
        let mut disk = session.start.clone();
        let mut last_lost = None;
        for point in 0..=session.record.len() {
            if let Some(last) = point.checked_sub(1).and_then(|last| session.record.get(last)) {
                disk.perform(last.clone());
            }
            let (acknowledged, under_way) = session.at(point);
            // How the batch under way fares where everything written stays, and where only what was synced does.
            let next = |written: Next, synced: Next| match under_way {
                None => (Next::Absent, Next::Absent),
                Some(span) if point > span.decided => (Next::Present, Next::Present),
                Some(span) if point == span.decided => (written, synced),
                Some(_) => (Next::Absent, Next::Absent),
            };
            let (kept, lost) = next(Next::Present, Next::Absent);
            let (open, _) = next(Next::Open, Next::Absent);
            let torn = disk.after_torn_write(&mut self.dice);
            let scattered = disk.after_scattered_writes(&mut self.dice);
            let images = [
                ("lost", Some(disk.after_power_cut()), lost),
                ("torn", torn, open),
                ("scattered", scattered, open),
                ("kept", Some(disk.after_kill()), kept),
            ];
            for (variant, image, next) in images {
                let Some(image) = image else { continue };
                self.tally.count(variant);
                if variant == "lost" {
                    let (known, lost) = (last_lost.take(), (image.clone(), acknowledged, next));
                    let same = known.is_some_and(|(known, before, then): (Disk, usize, Next)| {
                        (before, then) == (acknowledged, next) && known.is_same(&image)
                    });
                    last_lost = Some(lost);
                    if same {
                        continue;
                    }
                }
                // What a kill leaves is all going to be synced with the next commit; that is asked now and then.
                let cut_again = variant == "kept" && self.dice.once_in(4);
                if let Err(why) = self.judge(image, acknowledged, next, cut_again) {
                    self.contradiction(session, variant, &format!("before operation {point}"), &why);
                }
            }
        }
    }

    // --------------------------------------------------------------------------------------------------- an operation fails

    /// Each fate of a sync is tried, with one of the ways to go on; of the two ways in which a change can fail one, or
    /// the other if that one does not strike here.
    fn fail_at(&mut self, session: &Session, stop: Stop, at: usize, operation: &Operation) {
        let either = self.dice.once_in(2);
        match (stop, operation) {
            (Stop::Sync, Operation::Sync { .. }) => {
                for fate in FATES {
                    let again = AGAIN[self.dice.below(AGAIN.len())];
                    self.fail(session, "sync error", Fault::Sync { at, fate, again });
                }
            }
            (_, Operation::Sync { .. } | Operation::Change(Change::Delete { .. })) => {}
            (Stop::Full, Operation::Change(_)) => {
                let full = [Fault::NoRoomToGrow { from: at }, Fault::NoRoom { from: at }];
                if !self.fail(session, "disk full", full[usize::from(either)]) {
                    self.fail(session, "disk full", full[usize::from(!either)]);
                }
            }
            (Stop::Write, Operation::Change(_)) => {
                self.fail(session, "write error", Fault::Change { at, again: either });
            }
            _ => {}
        }
    }

    /// False if the fault does not strike.
    fn fail(&mut self, session: &Session, variant: &'static str, fault: Fault) -> bool {
        match self.play(session, fault) {
            Ok(Some(Aftermath { images, acknowledged, next })) => {
                self.tally.count(variant);
                for (index, (ending, image)) in images.iter().enumerate() {
                    if images.iter().take(index).any(|(_, judged)| judged.is_same(image)) {
                        continue;
                    }
                    if let Err(why) = self.judge(image.clone(), acknowledged, next, !image.is_durable()) {
                        self.contradiction(session, variant, &format!("{fault:?}, then {ending}"), &why);
                    }
                }
            }
            Ok(None) => return false,
            Err(why) => {
                self.tally.count(variant);
                self.contradiction(session, variant, &format!("{fault:?}"), &why);
            }
        }
        true
    }

    /// Plays the session again with a fault in it. `None` if the fault did not strike.
    fn play(&mut self, session: &Session, fault: Fault) -> Result<Option<Aftermath>, String> {
        self.machine.start(session.start.clone().start(Some(fault), false));
        let mut acknowledged = session.first;
        let mut next = Next::Absent;
        let store = match (self.workload.open)(self.machine.vfs()) {
            Err(_) => None,
            Ok(mut store) => {
                for span in &session.commits {
                    let Err(refusal) = store.commit(&self.workload.batches[acknowledged]) else {
                        acknowledged += 1;
                        continue;
                    };
                    let (failure, obeys) = self.machine.with_disk(|disk| (disk.first_failure(), disk.obeys()));
                    let Some(failure) = failure else { return Err(format!("{refusal:?} on a disk that serves")) };
                    // A batch whose last frame was not even begun cannot come back, whatever the store says. (Of one that
                    // was half written the other half may be there from before.) Nor can one that the store had the
                    // chance to overwrite.
                    let unwritten = (span.begins..span.decided - 1).contains(&failure);
                    let decided = refusal == Refusal::NotInTheBooks || unwritten || obeys;
                    next = if decided { Next::Absent } else { Next::Open };
                    let others = self.workload.batches.iter().skip(acknowledged).take(2);
                    if others.map(|batch| store.commit(batch)).any(|verdict| verdict.is_ok()) {
                        return Err("a commit was acknowledged after one had failed".to_owned());
                    }
                    break;
                }
                Some(store)
            }
        };
        let disk = self.machine.with_disk(|disk| disk.clone());
        drop(store);
        let closed = self.machine.stop();
        if disk.first_failure().is_none() {
            return Ok(None);
        }
        let mut images = vec![
            ("the process is killed", disk.after_kill()),
            ("power fails", disk.after_power_cut()),
            ("the books are closed and power fails", closed.after_power_cut()),
        ];
        images.extend(disk.after_scattered_writes(&mut self.dice).map(|image| ("power fails while it writes", image)));
        Ok(Some(Aftermath { images, acknowledged, next }))
    }

    // ------------------------------------------------------------------------------------------------------------ judgement

    /// Opens an image and compares it with what was acknowledged, and goes on from there.
    fn judge(&mut self, image: Disk, acknowledged: usize, next: Next, cut_again: bool) -> Result<(), String> {
        self.tally.images += 1;
        self.machine.start(image);
        let verdict = self.go_on(acknowledged, next, cut_again);
        self.machine.stop();
        verdict
    }

    fn go_on(&mut self, acknowledged: usize, next: Next, cut_again: bool) -> Result<(), String> {
        let mut store = self.open()?;
        let found = store.state()?;
        let expected = |batches: usize| self.workload.states.get(batches).ok_or("the workload is too short");
        let there = if found == *expected(acknowledged)? {
            acknowledged
        } else if self.workload.states.get(acknowledged + 1) == Some(&found) {
            acknowledged + 1
        } else {
            return Err(match self.workload.states.iter().position(|state| *state == found) {
                Some(other) => format!("{acknowledged} batches were acknowledged, {other} are there"),
                None => format!("{acknowledged} batches were acknowledged; what is there is no prefix of the run"),
            });
        };
        match (next, there > acknowledged) {
            (Next::Absent, true) => return Err(format!("batch {acknowledged} is there and must not be")),
            (Next::Present, false) => return Err(format!("batch {acknowledged} is not there and must be")),
            _ => {}
        }
        store.check(&found)?;
        let batch = self.workload.batches.get(there).ok_or("the workload is too short")?;
        store.commit(batch).map_err(|refusal| format!("going on: {refusal:?}"))?;
        if store.state()? != *expected(there + 1)? {
            return Err("what was committed after the recovery does not read back".to_owned());
        }
        if !cut_again {
            return Ok(());
        }
        let later = self.machine.stop().after_power_cut();
        drop(store);
        self.machine.start(later);
        if self.open()?.state()? != *expected(there + 1)? {
            return Err("what was acknowledged after the recovery is lost at the next power cut".to_owned());
        }
        Ok(())
    }

    fn open(&self) -> Result<S, String> {
        (self.workload.open)(self.machine.vfs()).map_err(|error| format!("the books do not open: {error}"))
    }

    fn contradiction(&mut self, session: &Session, variant: &str, place: &str, why: &str) {
        let first = session.first;
        self.tally.contradiction(format!("{variant}, session from batch {first}, {place}: {why}"));
    }
}
