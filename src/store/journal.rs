//! The one writer: everything that waits becomes one commit.
//!
//! A disk takes about as long to make one row durable as a hundred. So entries queue while a commit is on its way, and
//! the next commit takes all of them. Whoever needs to know waits for a [`Ticket`]; nobody else is held up.
//!
//! A fast disk alone would not group much: it is done before the next few entries come, and then the work around a commit
//! is what costs. So a commit waits a moment ([`MAX_GATHER`]) as long as more requests are being served than wait for it.
//! A request that is alone waits for nobody.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
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

/// The way to the books on disk. Cheap to clone; all clones are the same journal.
#[derive(Debug, Clone)]
pub struct Journal {
    /// Nothing where books are kept in memory only.
    desk: Option<Arc<Desk>>,
}

#[derive(Debug)]
struct Desk {
    queue: Mutex<Queue>,
    arrived: Condvar,
    latch: OnceLock<Latched>,
    /// Cancelled once `latch` is set.
    latched: CancellationToken,
    permits: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
    commits: AtomicU64,
    entries: AtomicU64,
    /// When the commit that is on its way began.
    committing: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Queue {
    waiting: Vec<Item>,
    closed: bool,
    /// How many must wait before the writer wants to be woken.
    wanted: usize,
}

#[derive(Debug)]
struct Item {
    entry: Entry,
    closing: Closing,
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
    _inner: Option<OwnedSemaphorePermit>,
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
        let desk = Arc::new(Desk {
            queue: Mutex::new(Queue { waiting: Vec::new(), closed: false, wanted: 1 }),
            arrived: Condvar::new(),
            latch: OnceLock::new(),
            latched: CancellationToken::new(),
            permits: Arc::new(Semaphore::new(MAX_UNWRITTEN_CHARGES)),
            writer: Mutex::new(None),
            commits: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            committing: Mutex::new(None),
        });
        let at_work = Arc::clone(&desk);
        let herald = Herald::new();
        let writer = std::thread::Builder::new()
            .name("peaje-books".to_owned())
            .spawn(move || write(&at_work, store, &herald))
            .map_err(|error| StoreError::Io { doing: "written", source: Box::new(error) })?;
        *desk.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        Ok(Self { desk: Some(desk) })
    }

    /// Whether books are kept in memory only.
    pub fn is_volatile(&self) -> bool {
        self.desk.is_none()
    }

    /// Queues an entry; the ticket says when it is durable. Never blocks on the disk, so it may be called under a lock.
    pub fn write(&self, entry: Entry, permit: Option<Permit>) -> Ticket {
        let Some(desk) = &self.desk else { return Ticket(Progress::Known(Ok(()))) };
        let (done, receiver) = oneshot::channel();
        match desk.push(Item { entry, closing: Closing { done: Some(done), _permit: permit } }) {
            Ok(()) => Ticket(Progress::Waiting(receiver)),
            Err(latched) => Ticket(Progress::Known(Err(latched))),
        }
    }

    /// Queues an entry that nobody waits for. After the latch it is dropped, as everything is.
    pub fn note(&self, entry: Entry, permit: Option<Permit>) {
        if let Some(desk) = &self.desk {
            drop(desk.push(Item { entry, closing: Closing { done: None, _permit: permit } }));
        }
    }

    /// The right to let one more request through; nothing when too many wait for the disk.
    pub fn permit(&self) -> Option<Permit> {
        match &self.desk {
            Some(desk) => {
                Arc::clone(&desk.permits).try_acquire_owned().ok().map(|inner| Permit { _inner: Some(inner) })
            }
            None => Some(Permit { _inner: None }),
        }
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
        let since = *desk.committing.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
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
        desk.lock().closed = true;
        desk.arrived.notify_one();
        let writer = desk.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // One that panicked has said so, and has latched.
            drop(writer.join());
        }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, item: Item) -> Result<(), Latched> {
        let mut queue = self.lock();
        if let Some(latched) = self.latch.get() {
            return Err(latched.clone());
        }
        if queue.closed {
            return Err(Latched::ended());
        }
        queue.waiting.push(item);
        let enough = queue.waiting.len() >= queue.wanted;
        drop(queue);
        if enough {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Waits for entries and takes them; nothing when the journal was closed and all is written.
    fn take(&self) -> Option<Vec<Item>> {
        let mut queue = self.lock();
        while queue.waiting.is_empty() {
            if queue.closed {
                return None;
            }
            queue.wanted = 1;
            queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue = self.gather(queue);
        if queue.waiting.len() <= MAX_ENTRIES_PER_COMMIT {
            return Some(std::mem::take(&mut queue.waiting));
        }
        Some(queue.waiting.drain(..MAX_ENTRIES_PER_COMMIT).collect())
    }

    /// Waits until half of the requests that are being served are here, or a moment.
    fn gather<'a>(&'a self, mut queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        let deadline = Instant::now() + MAX_GATHER;
        loop {
            let served = MAX_UNWRITTEN_CHARGES.saturating_sub(self.permits.available_permits());
            queue.wanted = served.div_ceil(2).clamp(1, MAX_ENTRIES_PER_COMMIT);
            let left = deadline.saturating_duration_since(Instant::now());
            if queue.waiting.len() >= queue.wanted || queue.closed || left.is_zero() {
                return queue;
            }
            queue = self.arrived.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Final: what waits fails, and whatever comes later too.
    fn latch(&self, latched: Latched) {
        let waiting = {
            let mut queue = self.lock();
            // Under the queue's lock, so that nothing is queued after the last look at it.
            drop(self.latch.set(latched.clone()));
            std::mem::take(&mut queue.waiting)
        };
        self.latched.cancel();
        for item in waiting {
            item.closing.tell(Err(latched.clone()));
        }
    }
}

/// The writer's thread.
fn write(desk: &Desk, mut store: impl LedgerStore, herald: &Herald) {
    let _guard = LatchOnPanic(desk);
    while let Some(items) = desk.take() {
        let (entries, closing): (Vec<_>, Vec<_>) = items.into_iter().map(|item| (item.entry, item.closing)).unzip();
        let committing = |since| *desk.committing.lock().unwrap_or_else(PoisonError::into_inner) = since;
        committing(Some(Instant::now()));
        let outcome = store.commit(&entries);
        committing(None);
        match outcome {
            Ok(()) => {
                desk.commits.fetch_add(1, Ordering::Relaxed);
                desk.entries.fetch_add(u64::try_from(entries.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
                herald.tell(closing);
            }
            Err(error) => {
                let latched = Latched::by(&error);
                tracing::error!(reason = latched.reason(), advice = latched.advice(), "the books cannot be written");
                desk.latch(latched.clone());
                closing.into_iter().for_each(|closing| closing.tell(Err(latched.clone())));
                return;
            }
        }
    }
}

/// Tells those who waited that their entries are durable.
///
/// The writer's thread is none of the runtime's. To wake many tasks from outside costs a system call for nearly each, one
/// after the other; so one task is woken, and wakes the others from inside.
#[derive(Debug)]
struct Herald(Option<mpsc::UnboundedSender<Vec<Closing>>>);

impl Herald {
    fn new() -> Self {
        Self(tokio::runtime::Handle::try_current().ok().map(|runtime| {
            let (sender, mut news) = mpsc::unbounded_channel::<Vec<Closing>>();
            runtime.spawn(async move {
                while let Some(closing) = news.recv().await {
                    closing.into_iter().for_each(|closing| closing.tell(Ok(())));
                }
            });
            sender
        }))
    }

    fn tell(&self, closing: Vec<Closing>) {
        let untold = match &self.0 {
            Some(sender) => sender.send(closing).err().map(|error| error.0),
            None => Some(closing),
        };
        untold.into_iter().flatten().for_each(|closing| closing.tell(Ok(())));
    }
}

/// A writer that panics must not leave requests waiting, or the proxy open.
struct LatchOnPanic<'a>(&'a Desk);

impl Drop for LatchOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.latch(Latched::ended());
        }
    }
}
