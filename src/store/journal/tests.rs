//! What many threads must not be able to break.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Barrier, mpsc};
use std::task::{Wake, Waker};
use std::thread::{self, ThreadId};

use super::*;
use crate::store::{ChannelRow, Cursor, Transaction};

const THREADS: u64 = 6;
const EACH: u64 = 500;
const ROUNDS: usize = 12;

/// What a store has, and what it does at a commit.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Vec<u64>>>);

impl Disk {
    fn has(&self) -> Vec<u64> {
        self.0.lock().unwrap().clone()
    }
}

struct Store<F> {
    disk: Disk,
    /// Told how many entries were committed before.
    before: F,
}

impl<F: FnMut(usize) -> Result<(), StoreError> + Send + 'static> LedgerStore for Store<F> {
    fn channels(&mut self, _: &mut dyn FnMut(ChannelRow) -> Result<(), StoreError>) -> Result<(), StoreError> {
        Ok(())
    }

    fn unfinished(&mut self) -> Result<Vec<Transaction>, StoreError> {
        Ok(Vec::new())
    }

    fn cursor(&mut self) -> Result<Option<Cursor>, StoreError> {
        Ok(None)
    }

    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        assert!(!entries.is_empty() && entries.len() <= MAX_ENTRIES_PER_COMMIT);
        let committed = self.disk.0.lock().unwrap().len();
        (self.before)(committed)?;
        let mut disk = self.disk.0.lock().unwrap();
        for entry in entries {
            let Entry::Cursor(Cursor { next_block }) = entry else { panic!("{entry:?}") };
            disk.push(*next_block);
        }
        Ok(())
    }
}

fn full() -> StoreError {
    StoreError::Full("no room".into())
}

fn entry(number: u64) -> Entry {
    Entry::Cursor(Cursor { next_block: number })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Has threads write one entry after the other with permits, half of them from runtimes that attend; gives what each
/// entry's ticket said, by entry.
fn hammer(journal: &Journal, alongside: impl FnOnce()) -> BTreeMap<u64, Result<(), Latched>> {
    let begin = Barrier::new(usize::try_from(THREADS).unwrap() + 1);
    let write = |thread: u64| {
        let runtime = runtime();
        runtime.block_on(async {
            if thread.is_multiple_of(2) {
                journal.attend();
            }
            begin.wait();
            let mut told = Vec::new();
            let mut waiting = Vec::new();
            for number in (thread * EACH)..(thread + 1) * EACH {
                waiting.push((number, journal.write(entry(number), journal.permit())));
                if number % 7 == 0 {
                    for (number, ticket) in waiting.drain(..) {
                        told.push((number, ticket.await));
                    }
                }
            }
            for (number, ticket) in waiting {
                told.push((number, ticket.await));
            }
            told
        })
    };
    thread::scope(|scope| {
        let write = &write;
        let running: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || write(thread))).collect();
        begin.wait();
        alongside();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Tickets say what is on the disk, where every thread's entries are in their order and without a gap.
fn assert_true(told: &BTreeMap<u64, Result<(), Latched>>, disk: &Disk) {
    assert_eq!(u64::try_from(told.len()).unwrap(), THREADS * EACH);
    let mut next: BTreeMap<u64, u64> = (0..THREADS).map(|thread| (thread, thread * EACH)).collect();
    for number in disk.has() {
        let next = next.get_mut(&(number / EACH)).unwrap();
        assert_eq!(number, *next, "in order, each once");
        *next += 1;
    }
    for (number, outcome) in told {
        assert_eq!(outcome.is_ok(), *number < next[&(number / EACH)], "{number}: {outcome:?}");
    }
}

#[test]
fn every_ticket_says_what_is_on_the_disk_though_the_books_latch_in_the_middle() {
    for round in 0..ROUNDS {
        let (disk, limit) = (Disk::default(), round * usize::try_from(THREADS * EACH).unwrap() / (ROUNDS - 2));
        let before = move |committed| if committed >= limit { Err(full()) } else { Ok(()) };
        let journal = Journal::start(Store { disk: disk.clone(), before }).unwrap();
        let told = hammer(&journal, || ());
        assert_true(&told, &disk);
        let failed = told.values().filter(|outcome| outcome.is_err()).count();
        assert_eq!(failed > 0, journal.latch().is_some());
        assert!(limit > 0 || failed == told.len());
        if journal.latch().is_some() {
            journal.write(entry(0), None).0.known().unwrap_err();
        }
        journal.close();
        assert_eq!(journal.desk.unwrap().served(), 0, "every permit is back");
    }
}

#[test]
fn what_is_queued_while_the_journal_closes_is_written_or_refused() {
    for round in 0..ROUNDS {
        let disk = Disk::default();
        let journal = Journal::start(Store { disk: disk.clone(), before: |_| Ok(()) }).unwrap();
        let told = hammer(&journal, || {
            while disk.has().len() < round * 100 {
                thread::yield_now();
            }
            journal.close();
        });
        assert_true(&told, &disk);
        assert_eq!(journal.latch(), None);
        assert_eq!(journal.desk.unwrap().served(), 0);
    }
}

#[test]
fn what_was_queued_before_the_journal_closes_is_written() {
    let disk = Disk::default();
    let (go, wait) = mpsc::channel::<()>();
    let before = move |_| {
        let _ = wait.recv();
        Ok(())
    };
    let journal = Journal::start(Store { disk: disk.clone(), before }).unwrap();
    let many = u64::try_from(3 * MAX_ENTRIES_PER_COMMIT).unwrap();
    (0..many).for_each(|number| journal.note(entry(number), None));
    drop(go);
    journal.close();
    assert_eq!(disk.has(), (0..many).collect::<Vec<_>>());
    journal.write(entry(0), None).0.known().unwrap_err();
}

#[test]
fn a_store_that_panics_leaves_nobody_waiting() {
    let before = |_| panic!("on purpose");
    let journal = Journal::start(Store { disk: Disk::default(), before }).unwrap();
    let told = hammer(&journal, || ());
    assert!(told.values().all(Result::is_err));
    runtime().block_on(journal.latched());
    journal.close();
    assert_eq!(journal.desk.unwrap().served(), 0);
}

#[test]
fn there_are_as_many_permits_as_the_limit_says() {
    let journal = Journal::start(Store { disk: Disk::default(), before: |_| Ok(()) }).unwrap();
    let mut permits: Vec<_> = (0..MAX_UNWRITTEN_CHARGES).map(|_| journal.permit().unwrap()).collect();
    assert!(journal.permit().is_none());
    permits.pop();
    permits.push(journal.permit().unwrap());
    assert!(journal.permit().is_none());
    drop(permits);
    assert_eq!(journal.desk.as_ref().unwrap().served(), 0);
    journal.close();
}

impl Progress {
    fn known(self) -> Result<(), Latched> {
        match self {
            Self::Known(outcome) => outcome,
            Self::Waiting(receiver) => panic!("not known: {receiver:?}"),
        }
    }
}

/// Where it is woken.
#[derive(Default)]
struct Where(Mutex<Option<ThreadId>>, AtomicUsize);

impl Wake for Where {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() = Some(thread::current().id());
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// A journal that commits when it is told to.
fn held() -> (Journal, mpsc::Sender<()>) {
    let (go, wait) = mpsc::channel::<()>();
    let before = move |_| wait.recv().map_err(|_| full());
    (Journal::start(Store { disk: Disk::default(), before }).unwrap(), go)
}

/// Polls a ticket that is not known yet.
fn await_with(waker: &Arc<Where>, ticket: &mut Ticket) {
    let waker = Waker::from(Arc::clone(waker));
    assert!(Pin::new(ticket).poll(&mut Context::from_waker(&waker)).is_pending());
}

#[test]
fn a_thread_that_attends_is_told_on_its_own_runtime() {
    let (journal, go) = held();
    let mine = thread::current().id();
    for attends in [false, true] {
        let woken = Arc::new(Where::default());
        runtime().block_on(async {
            if attends {
                journal.attend();
            }
            let mut ticket = journal.write(entry(1), None);
            await_with(&woken, &mut ticket);
            go.send(()).unwrap();
            while woken.1.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            ticket.await.unwrap();
        });
        assert_eq!(woken.0.lock().unwrap().unwrap() == mine, attends);
    }
    journal.close();
}

#[test]
fn a_runtime_that_ends_takes_no_news_with_it() {
    // Ended before the commit, and with the news in its hands.
    for late in [false, true] {
        let (journal, go) = held();
        let runtime = runtime();
        let ticket = {
            let _inside = runtime.enter();
            journal.attend();
            journal.write(entry(1), None)
        };
        if late {
            go.send(()).unwrap();
            while journal.written().1 == 0 {
                thread::yield_now();
            }
            drop(runtime);
        } else {
            drop(runtime);
            go.send(()).unwrap();
        }
        self::runtime().block_on(ticket).unwrap();
        journal.close();
    }
}

#[test]
fn the_place_of_a_herald_that_is_gone_is_given_to_the_next() {
    let journal = Journal::start(Store { disk: Disk::default(), before: |_| Ok(()) }).unwrap();
    for _ in 0..MAX_HERALDS + 1 {
        runtime().block_on(async {
            journal.attend();
            journal.write(entry(1), None).await.unwrap();
        });
    }
    assert_eq!(journal.desk.as_ref().unwrap().heralds().len(), 1);
    // Without a runtime nothing changes.
    journal.attend();
    assert_eq!(journal.desk.as_ref().unwrap().heralds().len(), 1);
    journal.close();
}
