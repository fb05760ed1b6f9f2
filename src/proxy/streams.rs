//! Connections to the upstream that many requests share: HTTP/2, a few connections a core.
//!
//! **Owns** the connections and the one task each of them has. **Promises** that a connection is given no more requests than
//! the upstream lets it have while there may be another one; that no two are opened where one is on its way, and who waited
//! for one that could not be opened is told so and opens none; that one which has left several requests in a row unanswered
//! gets no more; that answers which nobody takes keep no other from coming; and that a request is written once. **Does not**
//! ping: gRPC servers count that as abuse, and TCP's own keep-alive and the answer's timeout find a peer that is gone.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::task::AtomicWaker;
use http::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower::BoxError;

use super::dial::Dialer;
use super::pool::{Answer, SendError};
use super::transfer::Upload;
use crate::causes::causes;

/// How many connections a core opens to one target. Beyond what they hold, requests wait for each other.
const MAX_LINES: usize = 8;
/// How many requests a connection is given at most, however many more the upstream would take.
const MAX_STREAMS: u32 = 256;
/// How much of an answer the upstream may send before it is taken, bytes: about what a connection of HTTP/1 reads ahead.
const STREAM_WINDOW: u32 = 512 * 1024;
/// How much of all answers on a connection: each of them its whole window, so that those that nobody takes never keep one
/// that is waited for from coming.
const LINE_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS;
/// After so many requests in a row that got no answer, a connection is left to those it still has. One answer is proof
/// that it is well.
const MAX_UNANSWERED: usize = 3;

/// The shared connections of one core to one target.
#[derive(Debug)]
pub(super) struct Streams {
    dialer: Dialer,
    lines: Mutex<Vec<SharedLine>>,
    /// Held by who opens a connection. With what was wrong with the last one that could not be.
    dialing: tokio::sync::Mutex<Arc<str>>,
    /// How many could not be.
    failed: AtomicUsize,
    /// How many requests the upstream lets a connection have, as the last connection that was told so knows. One that is
    /// new learns it only from the first thing it reads.
    room: Arc<AtomicU32>,
}

#[derive(Debug, Clone)]
struct SharedLine {
    sender: http2::SendRequest<Upload>,
    usage: Arc<Usage>,
}

#[derive(Debug, Default)]
struct Usage {
    streams: AtomicU32,
    unanswered: AtomicUsize,
    /// Wakes the connection's task, which looks again how many requests it may have.
    task: AtomicWaker,
}

/// One of a connection's requests, until it is dropped.
#[derive(Debug)]
pub(super) struct Stream {
    usage: Arc<Usage>,
    answered: bool,
}

impl Stream {
    fn on(usage: &Arc<Usage>) -> Self {
        usage.streams.fetch_add(1, Ordering::Relaxed);
        Self { usage: Arc::clone(usage), answered: false }
    }

    fn answered(&mut self) {
        self.answered = true;
        self.usage.unanswered.store(0, Ordering::Relaxed);
        // By now the upstream has said it, and its answer alone does not wake that task.
        self.usage.task.wake();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.usage.streams.fetch_sub(1, Ordering::Relaxed);
        if !self.answered {
            self.usage.unanswered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The connection that was waited for could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct FailedBefore(Arc<str>);

impl Streams {
    /// For what the dialer reaches; nothing is connected yet.
    pub(super) fn new(dialer: Dialer) -> Self {
        let room = Arc::new(AtomicU32::new(MAX_STREAMS));
        let dialing = tokio::sync::Mutex::new(Arc::from(""));
        Self { dialer, lines: Mutex::default(), dialing, failed: AtomicUsize::new(0), room }
    }

    pub(super) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Sends a request in absolute form.
    ///
    /// # Cancellation
    /// Its stream is reset.
    pub(super) async fn send(&self, request: Request<Upload>) -> Result<Answer, SendError> {
        let mut unsent = request;
        // A connection may turn out to be closed once. A new one that is closed at once is a failure.
        for is_last in [false, true] {
            let (mut line, mut stream) = match self.line().await {
                Ok(line) => line,
                Err(error) => return Err(SendError::connect(error, unsent)),
            };
            match line.sender.try_send_request(unsent).await {
                Ok(response) => {
                    stream.answered();
                    return Ok((response, Some(stream)));
                }
                Err(error) => match SendError::of_sending(error) {
                    SendError::Connect { unsent: again, .. } if !is_last => unsent = *again,
                    error => return Err(error),
                },
            }
        }
        unreachable!("the last turn returns")
    }

    /// A connection with room for one more, or the one with the most room if there may be no other. Who waits while one is
    /// opened fails with it: to try again, one after the other, would take the time that another target could have.
    async fn line(&self) -> Result<(SharedLine, Stream), BoxError> {
        if let Some(found) = self.with_room() {
            return Ok(found);
        }
        let failed_before = self.failed.load(Ordering::Relaxed);
        let mut dialing = self.dialing.lock().await;
        // Somebody may have opened one meanwhile.
        if let Some(found) = self.with_room() {
            return Ok(found);
        }
        if let Some(crowded) = self.crowded() {
            return Ok(crowded);
        }
        if self.failed.load(Ordering::Relaxed) != failed_before {
            return Err(FailedBefore(Arc::clone(&dialing)).into());
        }
        let line = match self.connect().await {
            Ok(line) => line,
            Err(error) => {
                *dialing = causes(&*error).into();
                self.failed.fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
        };
        let stream = Stream::on(&line.usage);
        self.lines().push(line.clone());
        Ok((line, stream))
    }

    fn with_room(&self) -> Option<(SharedLine, Stream)> {
        let mut lines = self.lines();
        lines.retain(|line| !line.sender.is_closed() && line.usage.unanswered.load(Ordering::Relaxed) < MAX_UNANSWERED);
        let room = self.room.load(Ordering::Relaxed).min(MAX_STREAMS);
        let has_room = |line: &&SharedLine| line.usage.streams.load(Ordering::Relaxed) < room;
        let line = lines.iter().find(has_room)?.clone();
        let stream = Stream::on(&line.usage);
        Some((line, stream))
    }

    /// The one with the fewest requests, if there may be no other.
    fn crowded(&self) -> Option<(SharedLine, Stream)> {
        let lines = self.lines();
        if lines.len() < MAX_LINES {
            return None;
        }
        let line = lines.iter().min_by_key(|line| line.usage.streams.load(Ordering::Relaxed))?.clone();
        let stream = Stream::on(&line.usage);
        Some((line, stream))
    }

    fn lines(&self) -> MutexGuard<'_, Vec<SharedLine>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<SharedLine, BoxError> {
        let line = self.dialer.dial().await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(LINE_WINDOW);
        let (sender, connection) = builder.timer(TokioTimer::new()).handshake(line).await?;
        let usage = Arc::new(Usage::default());
        let (room, looked_at) = (Arc::clone(&self.room), Arc::clone(&usage));
        let mut before = connection.current_max_send_streams();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            let ended = poll_fn(|context| {
                looked_at.task.register(context.waker());
                let polled = connection.as_mut().poll(context);
                if polled.is_pending() {
                    let now = connection.current_max_send_streams();
                    if std::mem::replace(&mut before, now) != now {
                        room.store(u32::try_from(now).unwrap_or(u32::MAX).max(1), Ordering::Relaxed);
                    }
                }
                polled
            });
            if let Err(error) = ended.await {
                tracing::debug!(error = %causes(&error), "a connection to the upstream ended badly");
            }
        });
        Ok(SharedLine { sender, usage })
    }
}
