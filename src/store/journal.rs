//! The one writer: everything that waits becomes one commit.
//!
//! A disk takes about as long to make one row durable as a hundred. So entries queue while a commit is on its way, and
//! the next commit takes all of them. Whoever needs to know waits for a [`Ticket`]; nobody else is held up.
//!
//! A fast disk alone would not group much: it is done before the next few entries come, and then the work around a commit
//! is what costs. So a commit waits a moment ([`MAX_GATHER`]) as long as more requests are being served than wait for it.
//! A request that is alone waits for nobody.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Entry, LedgerStore, StoreError};
use crate::causes::causes;

/// How many entries one commit takes at most, so that the first of them does not wait for thousands.
pub const MAX_ENTRIES_PER_COMMIT: usize = 1_024;

/// How long a commit waits for company at most.
pub const MAX_GATHER: Duration = Duration::from_micros(1_000);

/// How many requests may be between being let through and having their charge written. Each has one [`Permit`] from
/// beginning to end; taking a second one for the closing entry could wait for requests that wait for it.
pub const MAX_UNWRITTEN_CHARGES: usize = 16_384;

/// How many journals a thread remembers that it attends to; the oldest is forgotten, and told as before.
const MAX_ATTENDED: usize = 16;

/// How many runtimes may have a herald at once; those beyond are told as those that never asked.
const MAX_HERALDS: usize = 1_024;

/// The way to the books on disk. Cheap to clone; all clones are the same journal.
#[derive(Debug, Clone)]
pub struct Journal {
    /// Nothing where books are kept in memory only.
    desk: Option<Arc<Desk>>,
}

#[derive(Debug)]
struct Desk {
    /// Tells this journal from others in what a thread remembers.
    number: u64,
    /// One line for all, so that what is queued under a channel's lock keeps its order. It takes no lock.
    queue: Sender<Item>,
    /// How many were ever queued; counted once they are in the line.
    queued: AtomicU64,
    /// The count of `queued` that wakes the writer; [`AWAKE`] while it does not sleep.
    wake_at: AtomicU64,
    writer: OnceLock<Thread>,
    closed: AtomicBool,
    latch: OnceLock<Latched>,
    /// Cancelled once `latch` is set.
    latched: CancellationToken,
    /// There are as many permits out as there are other owners of this: one atomic count, and it cannot be wrong.
    permits: Arc<()>,
    heralds: Mutex<Vec<Herald>>,
    ending: Mutex<Option<JoinHandle<()>>>,
    commits: AtomicU64,
    entries: AtomicU64,
    started: Instant,
    /// When the commit that is on its way began: microseconds since `started`, and one more; nothing is 0.
    committing: AtomicU64,
}

/// See [`Desk::wake_at`].
const AWAKE: u64 = u64::MAX;

#[derive(Debug)]
struct Item {
    entry: Entry,
    closing: Closing,
    /// Who tells it, by the place in `heralds`.
    herald: Option<usize>,
}

/// What is left to do once an entry is written, or never will be.
#[derive(Debug)]
struct Closing {
    done: Option<oneshot::Sender<Result<(), Latched>>>,
    /// Given back with this.
    _permit: Option<Permit>,
}

impl Closing {
    /// Whoever waited may have gone.
    fn tell(self, outcome: Result<(), Latched>) {
        if let Some(done) = self.done {
            drop(done.send(outcome));
        }
    }
}

/// The right to one entry that closes a request.
#[derive(Debug)]
pub struct Permit {
    /// Nothing where there is no limit.
    _inner: Option<Arc<()>>,
}

/// The books cannot be written any more, and never will be by this process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Latched {
    reason: Arc<str>,
    advice: &'static str,
}

impl Latched {
    fn by(error: &StoreError) -> Self {
        Self { reason: causes(error).into(), advice: error.advice() }
    }

    fn ended() -> Self {
        Self { reason: "the writer has ended".into(), advice: "start again; nothing acknowledged is lost" }
    }

    /// Why.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What to do about it, for people.
    pub fn advice(&self) -> &'static str {
        self.advice
    }
}

/// Says when an entry is durable, or that it never will be.
///
/// # Cancellation
/// Dropping it changes nothing: the entry is written all the same.
#[derive(Debug)]
#[must_use = "an entry is durable only once its ticket says so"]
pub struct Ticket(Progress);

#[derive(Debug)]
enum Progress {
    Known(Result<(), Latched>),
    Waiting(oneshot::Receiver<Result<(), Latched>>),
}

impl Future for Ticket {
    type Output = Result<(), Latched>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Progress::Known(outcome) => Poll::Ready(outcome.clone()),
            // A writer that is gone has written nothing more.
            Progress::Waiting(receiver) => {
                Pin::new(receiver).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(Latched::ended())))
            }
        }
    }
}

impl Journal {
    /// Books in memory only: everything is done at once, and gone with the process.
    pub fn volatile() -> Self {
        Self { desk: None }
    }

    /// Starts the writer for a store.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn start(store: impl LedgerStore) -> Result<Self, StoreError> {
        static JOURNALS: AtomicU64 = AtomicU64::new(0);
        let (queue, line) = channel();
        let desk = Arc::new(Desk {
            number: JOURNALS.fetch_add(1, Ordering::Relaxed),
            queue,
            queued: AtomicU64::new(0),
            wake_at: AtomicU64::new(AWAKE),
            writer: OnceLock::new(),
            closed: AtomicBool::new(false),
            latch: OnceLock::new(),
            latched: CancellationToken::new(),
            permits: Arc::new(()),
            heralds: Mutex::default(),
            ending: Mutex::default(),
            commits: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            started: Instant::now(),
            committing: AtomicU64::new(0),
        });
        let (group, waiting) = (Vec::new(), Vec::new());
        let at_work = Writer { desk: Arc::clone(&desk), line, taken: 0, home: Herald::here(), group, waiting };
        let ending = std::thread::Builder::new()
            .name("peaje-books".to_owned())
            .spawn(move || at_work.write(store))
            .map_err(|error| StoreError::Io { doing: "written", source: Box::new(error) })?;
        drop(desk.writer.set(ending.thread().clone()));
        *desk.ending.lock().unwrap_or_else(PoisonError::into_inner) = Some(ending);
        Ok(Self { desk: Some(desk) })
    }

    /// Whether books are kept in memory only.
    pub fn is_volatile(&self) -> bool {
        self.desk.is_none()
    }

    /// Gives the runtime that this thread runs a herald of its own: what this thread writes from now on is told there,
    /// all of one commit with one waking. For runtimes of one thread; called once on each, from inside. Where there is no
    /// runtime it changes nothing, and when a runtime ends, those who still wait are told directly.
    pub fn attend(&self) {
        let Some(desk) = &self.desk else { return };
        let Some(herald) = Herald::here() else { return };
        let mut heralds = desk.heralds();
        let place = heralds.iter().position(Herald::is_gone).unwrap_or(heralds.len());
        match heralds.get_mut(place) {
            Some(gone) => *gone = herald,
            None if place < MAX_HERALDS => heralds.push(herald),
            None => return,
        }
        drop(heralds);
        ATTENDED.with_borrow_mut(|attended| {
            attended.retain(|(number, _)| *number != desk.number);
            if attended.len() == MAX_ATTENDED {
                attended.remove(0);
            }
            attended.push((desk.number, place));
        });
    }

    /// Queues an entry; the ticket says when it is durable. Never blocks on the disk, so it may be called under a lock.
    pub fn write(&self, entry: Entry, permit: Option<Permit>) -> Ticket {
        let Some(desk) = &self.desk else { return Ticket(Progress::Known(Ok(()))) };
        let (done, receiver) = oneshot::channel();
        match desk.push(entry, Closing { done: Some(done), _permit: permit }) {
            Ok(()) => Ticket(Progress::Waiting(receiver)),
            Err(latched) => Ticket(Progress::Known(Err(latched))),
        }
    }

    /// Queues an entry that nobody waits for. After the latch it is dropped, as everything is.
    pub fn note(&self, entry: Entry, permit: Option<Permit>) {
        if let Some(desk) = &self.desk {
            drop(desk.push(entry, Closing { done: None, _permit: permit }));
        }
    }

    /// The right to let one more request through; nothing when too many wait for the disk.
    pub fn permit(&self) -> Option<Permit> {
        let Some(desk) = &self.desk else { return Some(Permit { _inner: None }) };
        // Taken first and counted then, so that two who come at once cannot both be the last.
        let permit = Arc::clone(&desk.permits);
        (desk.served() <= MAX_UNWRITTEN_CHARGES).then_some(Permit { _inner: Some(permit) })
    }

    /// Why nothing is written any more, if so.
    pub fn latch(&self) -> Option<&Latched> {
        self.desk.as_ref().and_then(|desk| desk.latch.get())
    }

    /// Waits until nothing is written any more because of a failure; for ever, if all goes well.
    pub async fn latched(&self) -> Latched {
        if let Some(desk) = &self.desk {
            desk.latched.cancelled().await;
            return desk.latch.get().cloned().unwrap_or_else(Latched::ended);
        }
        std::future::pending().await
    }

    /// How long the commit that is on its way has taken so far: a disk that hangs reports no error.
    pub fn commit_in_progress(&self) -> Option<Duration> {
        let desk = self.desk.as_ref()?;
        let since = desk.committing.load(Ordering::Relaxed).checked_sub(1)?;
        Some(desk.started.elapsed().saturating_sub(Duration::from_micros(since)))
    }

    /// Commits and entries so far; their ratio is what grouping saves.
    pub fn written(&self) -> (u64, u64) {
        self.desk
            .as_ref()
            .map_or((0, 0), |desk| (desk.commits.load(Ordering::Relaxed), desk.entries.load(Ordering::Relaxed)))
    }

    /// Writes what waits, then lets go of the store. Blocks; entries that come later are dropped.
    pub fn close(&self) {
        let Some(desk) = &self.desk else { return };
        desk.closed.store(true, Ordering::SeqCst);
        desk.wake();
        let writer = desk.ending.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // One that panicked has said so, and has latched.
            drop(writer.join());
        }
    }
}

impl Desk {
    fn push(&self, entry: Entry, closing: Closing) -> Result<(), Latched> {
        if let Some(latched) = self.latch.get() {
            return Err(latched.clone());
        }
        if self.closed.load(Ordering::SeqCst) {
            return Err(Latched::ended());
        }
        let item = Item { entry, closing, herald: self.herald_of_this_thread() };
        // A writer that ends takes the line with it: what comes later is refused here, and what it had not read is
        // dropped, which those who wait for it hear.
        if self.queue.send(item).is_err() {
            return Err(self.latch.get().cloned().unwrap_or_else(Latched::ended));
        }
        // Either this sees that the writer sleeps, or the writer sees the new count before it does.
        let queued = self.queued.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        let wake_at = self.wake_at.load(Ordering::SeqCst);
        if queued >= wake_at
            && self.wake_at.compare_exchange(wake_at, AWAKE, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        {
            self.wake();
        }
        Ok(())
    }

    fn wake(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    fn herald_of_this_thread(&self) -> Option<usize> {
        ATTENDED.with_borrow(|attended| {
            attended.iter().find(|(number, _)| *number == self.number).map(|(_, herald)| *herald)
        })
    }

    fn heralds(&self) -> MutexGuard<'_, Vec<Herald>> {
        self.heralds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests are being served.
    fn served(&self) -> usize {
        Arc::strong_count(&self.permits).saturating_sub(1)
    }

    /// Final.
    fn latch(&self, latched: Latched) {
        drop(self.latch.set(latched));
        self.latched.cancel();
    }
}

/// The writer's thread.
struct Writer {
    desk: Arc<Desk>,
    line: Receiver<Item>,
    /// How many were ever taken from the line.
    taken: u64,
    /// For what comes from threads that have none: of the runtime the journal was started on, if it was.
    home: Option<Herald>,
    /// What one commit takes, in the order of the line; kept for its room.
    group: Vec<Entry>,
    /// Who waits for it: by herald, the home's first.
    waiting: Vec<Vec<Closing>>,
}

impl Writer {
    fn write(mut self, mut store: impl LedgerStore) {
        let desk = Arc::clone(&self.desk);
        let _guard = LatchOnPanic(&desk);
        while self.take() {
            let since = u64::try_from(desk.started.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1);
            desk.committing.store(since, Ordering::Relaxed);
            let outcome = store.commit(&self.group);
            desk.committing.store(0, Ordering::Relaxed);
            match outcome {
                Ok(()) => {
                    desk.commits.fetch_add(1, Ordering::Relaxed);
                    desk.entries.fetch_add(u64::try_from(self.group.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
                    self.tell();
                    self.group.clear();
                }
                Err(error) => {
                    let latched = Latched::by(&error);
                    tracing::error!(
                        reason = latched.reason(),
                        advice = latched.advice(),
                        "the books cannot be written"
                    );
                    desk.latch(latched.clone());
                    let behind = self.line.try_iter().map(|item| item.closing);
                    let waiting = self.waiting.drain(..).flatten().chain(behind);
                    waiting.for_each(|closing| closing.tell(Err(latched.clone())));
                    return;
                }
            }
        }
    }

    /// Waits for entries and takes them; false when the journal was closed and all is written.
    fn take(&mut self) -> bool {
        loop {
            self.sleep_until(1, None);
            // As many as half of the requests that are being served, or a moment.
            let company = self.desk.served().div_ceil(2).clamp(1, MAX_ENTRIES_PER_COMMIT);
            self.sleep_until(company, Some(Instant::now() + MAX_GATHER));
            // Looked at before the line: what was queued before it was closed is written.
            let closed = self.desk.closed.load(Ordering::SeqCst);
            for Item { entry, closing, herald } in self.line.try_iter().take(MAX_ENTRIES_PER_COMMIT) {
                self.group.push(entry);
                let place = herald.map_or(0, |herald| herald.saturating_add(1));
                if self.waiting.len() <= place {
                    self.waiting.resize_with(place.saturating_add(1), Vec::new);
                }
                if let Some(waiting) = self.waiting.get_mut(place) {
                    waiting.push(closing);
                }
            }
            self.taken = self.taken.saturating_add(u64::try_from(self.group.len()).unwrap_or(u64::MAX));
            if closed || !self.group.is_empty() {
                return !self.group.is_empty();
            }
        }
    }

    /// Sleeps until so many wait, a deadline has passed, or the journal is closed.
    fn sleep_until(&self, wanted: usize, deadline: Option<Instant>) {
        let desk = &*self.desk;
        let wake_at = self.taken.saturating_add(u64::try_from(wanted).unwrap_or(u64::MAX));
        loop {
            // Said before the count is looked at: see `push`.
            desk.wake_at.store(wake_at, Ordering::SeqCst);
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let enough = desk.queued.load(Ordering::SeqCst) >= wake_at || desk.closed.load(Ordering::SeqCst);
            if enough || left == Some(Duration::ZERO) {
                desk.wake_at.store(AWAKE, Ordering::SeqCst);
                return;
            }
            match left {
                Some(left) => std::thread::park_timeout(left),
                None => std::thread::park(),
            }
        }
    }

    /// Tells those who waited that their entries are durable.
    fn tell(&mut self) {
        let mut heralds = self.desk.heralds();
        for (place, waiting) in self.waiting.iter_mut().enumerate().filter(|(_, waiting)| !waiting.is_empty()) {
            let herald = place.checked_sub(1).map_or(self.home.as_mut(), |place| heralds.get_mut(place));
            let news = News(std::mem::take(waiting));
            match herald {
                Some(herald) => herald.bring(news),
                None => drop(news),
            }
        }
    }
}

/// Those whose entries became durable in one commit. They are told when this is dropped, wherever that happens: by their
/// herald, with a runtime that ends, or by the writer where there is no herald.
#[derive(Debug)]
struct News(Vec<Closing>);

impl Drop for News {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|closing| closing.tell(Ok(())));
    }
}

/// Brings news to those who wait on one runtime.
///
/// The writer's thread is none of the runtime's. To wake many tasks from outside costs a system call for nearly each, one
/// after the other; so one task is woken, and wakes the others from inside.
#[derive(Debug)]
struct Herald(Option<UnboundedSender<News>>);

impl Herald {
    /// On the runtime this is called from.
    fn here() -> Option<Self> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let (sender, mut news) = unbounded_channel::<News>();
        runtime.spawn(async move { while news.recv().await.is_some() {} });
        Some(Self(Some(sender)))
    }

    /// One that is gone leaves the news to whoever drops them.
    fn bring(&mut self, news: News) {
        let Some(sender) = &self.0 else { return };
        drop(sender.send(news));
        // A runtime that ends empties the channel, but may miss what is sent in that moment. Such news are dropped with
        // the channel itself, which lives as long as its sender.
        if sender.is_closed() {
            self.0 = None;
        }
    }

    fn is_gone(&self) -> bool {
        self.0.as_ref().is_none_or(UnboundedSender::is_closed)
    }
}

thread_local! {
    /// The journals whose heralds run on this thread's runtime, by number, and the places of those heralds.
    static ATTENDED: RefCell<Vec<(u64, usize)>> = const { RefCell::new(Vec::new()) };
}

/// A writer that panics must not leave requests waiting, or the proxy open. Those who wait hear it when the line is dropped.
struct LatchOnPanic<'a>(&'a Desk);

impl Drop for LatchOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.latch(Latched::ended());
        }
    }
}
