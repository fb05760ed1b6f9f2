//! Metered requests that were answered by another protocol.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Bill, LOOK_EVERY};
use crate::pricing::{End, Unit};

/// How often the clock is looked at where time costs something.
const TICK: Duration = Duration::from_millis(250);

/// A metered request that goes on as a tunnel: it was answered with 101, and is charged when the tunnel ends.
///
/// The gate puts it into the extensions of that answer, and charges nothing at the handshake. Whoever runs the tunnel takes
/// it out (`extensions_mut().remove::<Metering>()`), counts what passes, lets the tunnel end when [`Metering::exhausted`]
/// does, and says at last how it ended. On a route with a fixed price there is none: that was charged at the handshake.
///
/// Clones are the same request. Once the last of them is dropped without a word, its payer has left; if by then we are
/// stopping, it is we who ended it. Either way what was counted is charged, once.
///
/// ```
/// # use peaje::gate::metered::Metering;
/// # use peaje::pricing::End;
/// # async fn run(metering: Metering, mut from_client: tokio::sync::mpsc::Receiver<Vec<u8>>) {
/// let end = loop {
///     tokio::select! {
///         () = metering.exhausted() => break End::Complete,
///         bytes = from_client.recv() => match bytes {
///             Some(bytes) => metering.count_up(bytes.len()),
///             None => break End::PayerLeft,
///         },
///     }
/// };
/// metering.finish(end);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Metering {
    tunnel: Arc<Tunnel>,
}

#[derive(Debug)]
struct Tunnel {
    /// Nothing once it was finished.
    bill: Mutex<Option<Box<Bill>>>,
    /// Whether time costs something.
    timed: bool,
    spent: AtomicBool,
    exhausted: Notify,
}

impl Tunnel {
    fn bill(&self) -> MutexGuard<'_, Option<Box<Bill>>> {
        self.bill.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Metering {
    pub(in super::super) fn new(bill: Box<Bill>) -> Self {
        let timed = bill.tariff.counts(&Unit::Milliseconds);
        let (spent, exhausted) = (AtomicBool::new(false), Notify::new());
        Self { tunnel: Arc::new(Tunnel { bill: Mutex::new(Some(bill)), timed, spent, exhausted }) }
    }

    /// So many more bytes went from the client to the upstream: they count as the request's body.
    pub fn count_up(&self, bytes: usize) {
        self.count(|bill| bill.passed.add(bytes));
    }

    /// So many more bytes went from the upstream to the client: they count as the answer's body.
    pub fn count_down(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.count(|bill| bill.response_bytes = bill.response_bytes.saturating_add(bytes));
    }

    /// One more message went from the upstream to the client: it counts as an event.
    pub fn message(&self) {
        self.count(|bill| bill.messages = bill.messages.saturating_add(1));
    }

    /// Whether it has cost the most that its payer signed for. Whatever goes on after that, it gets for nothing.
    pub fn spent(&self) -> bool {
        if self.tunnel.spent.load(Ordering::Relaxed) {
            return true;
        }
        if self.tunnel.timed {
            self.count(|_| ());
        }
        self.tunnel.spent.load(Ordering::Relaxed)
    }

    /// Ends once it is spent, or its payer is about to withdraw what is to pay for it: the tunnel should be closed then.
    /// Where time costs something, up to a quarter of a second late; after a withdrawal, up to two seconds.
    ///
    /// # Cancellation
    /// Nothing is lost; ask again.
    pub async fn exhausted(&self) {
        loop {
            let told = self.tunnel.exhausted.notified();
            if self.spent() || self.tunnel.bill().as_ref().is_some_and(|bill| bill.is_being_withdrawn()) {
                return;
            }
            let tick = if self.tunnel.timed { TICK } else { LOOK_EVERY };
            let _ = tokio::time::timeout(tick, told).await;
        }
    }

    /// The tunnel has ended; what was counted is charged. A second word changes nothing.
    pub fn finish(&self, end: End) {
        let bill = self.tunnel.bill().take();
        if let Some(mut bill) = bill {
            bill.close(end);
        }
    }

    fn count(&self, add: impl FnOnce(&mut Bill)) {
        let mut bill = self.tunnel.bill();
        let Some(bill) = bill.as_mut() else { return };
        add(bill);
        // What nobody reports is not what it is spent by, nor what the upstream said at the handshake that it will cost.
        if !self.tunnel.spent.load(Ordering::Relaxed) && bill.tariff.charge(&bill.measured(End::Stopped)) >= bill.most {
            self.tunnel.spent.store(true, Ordering::Relaxed);
            self.tunnel.exhausted.notify_waiters();
        }
    }
}
