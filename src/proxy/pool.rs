//! Connections to the upstream that are kept between requests: one pool a core, so that no core waits for another.
//!
//! **Owns** the connections, idle and busy, and the one task each of them has. **Promises** that a request is written
//! once: it is sent again only if the connection it was meant for turns out to be closed before a byte of it was
//! written, and then once, on a new one. **Does not** limit how many connections are busy; that is the listener's.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use tower::{BoxError, ServiceExt as _};

use super::body::RequestBody;
use crate::causes::causes;

/// How long an idle connection is kept at most, in ticks: less than the five seconds after which common servers close
/// theirs, because a request that meets the close halfway cannot be sent again safely.
const POOL_IDLE_TICKS: u64 = 4;
/// How often idle connections are looked through. Nothing reads a clock for each request.
const TICK: Duration = Duration::from_secs(1);
/// How many idle connections a core keeps; the one that has waited longest makes room for one more.
const MAX_IDLE: usize = 1_024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// There was no connection to send it on.
    #[error("no connection")]
    Connect(#[source] BoxError),
    /// The connection failed before the head of the answer, or the request's own body did.
    #[error("no answer")]
    Answer(#[source] hyper::Error),
}

/// The connections of one core to one upstream.
#[derive(Debug)]
pub(super) struct Pool {
    connector: HttpsConnector<HttpConnector>,
    uri: Uri,
    idle: Arc<Idle>,
}

impl Pool {
    /// A pool for what `uri` names; nothing is connected yet.
    pub(super) fn new(connector: HttpsConnector<HttpConnector>, uri: Uri) -> Self {
        Self { connector, uri, idle: Arc::default() }
    }

    /// Another pool for the same upstream.
    pub(super) fn apart(&self) -> Self {
        Self::new(self.connector.clone(), self.uri.clone())
    }

    /// Sends a request in origin form that has its `Host`.
    ///
    /// # Cancellation
    /// A connection whose answer nobody waits for any more is closed: HTTP/1 knows no other way to take a request back.
    pub(super) async fn send(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        let unsent = match self.idle.take() {
            None => request,
            Some(kept) => match kept.send(request).await {
                Ok(response) => return Ok(response),
                // The upstream closed it while it was idle, and we hear of that only now.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => unsent,
                    None => return Err(SendError::Answer(error.into_error())),
                },
            },
        };
        let fresh = self.connect().await.map_err(SendError::Connect)?;
        fresh.send(unsent).await.map_err(|error| SendError::Answer(error.into_error()))
    }

    async fn connect(&self) -> Result<Kept, BoxError> {
        let stream = self.connector.clone().oneshot(self.uri.clone()).await?;
        let (sender, connection) = http1::handshake(stream).await?;
        let place = Arc::new(Place::default());
        tokio::spawn(keep(connection, Arc::clone(&place), Arc::downgrade(&self.idle)));
        self.idle.look_through();
        Ok(Kept { sender, place })
    }
}

/// A connection that can take a request now.
#[derive(Debug)]
struct Kept {
    sender: SendRequest<RequestBody>,
    place: Arc<Place>,
}

/// Where the sender of a busy connection waits until the connection is idle again.
#[derive(Debug, Default)]
struct Place(Mutex<Option<SendRequest<RequestBody>>>);

impl Kept {
    fn send(
        mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> {
        let place = self.place;
        // Held across both, so that the connection is never found idle with its sender on the way.
        let mut waiting = place.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = self.sender.try_send_request(request);
        *waiting = Some(self.sender);
        drop(waiting);
        sent
    }
}

/// Drives a connection to its end, and puts its sender among the idle ones whenever an exchange is over. So nobody has
/// to watch the bodies of answers for that.
async fn keep<C>(connection: C, place: Arc<Place>, idle: Weak<Idle>)
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = pin!(connection);
    let ended = poll_fn(|context| {
        let polled = connection.as_mut().poll(context);
        if polled.is_pending() {
            let mut waiting = place.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(sender) = waiting.take_if(|sender| sender.is_ready()) {
                drop(waiting);
                if let Some(idle) = idle.upgrade() {
                    idle.put(Kept { sender, place: Arc::clone(&place) });
                }
            }
            return Poll::Pending;
        }
        polled
    });
    if let Err(error) = ended.await {
        tracing::debug!(error = %causes(&error), "a connection to the upstream ended badly");
    }
}

/// The connections that wait for a request.
#[derive(Debug, Default)]
struct Idle(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    tick: u64,
    ticking: bool,
    /// With the tick since which each waits, the longest first.
    kept: VecDeque<(u64, Kept)>,
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, kept: Kept) {
        let mut waiting = self.lock();
        let too_many = if waiting.kept.len() < MAX_IDLE { None } else { waiting.kept.pop_front() };
        let since = waiting.tick;
        waiting.kept.push_back((since, kept));
        drop(waiting);
        drop(too_many);
    }

    /// The one that was used last: it is the likeliest to be open, and lets the others grow old.
    fn take(&self) -> Option<Kept> {
        let mut waiting = self.lock();
        while let Some((_, kept)) = waiting.kept.pop_back() {
            if !kept.sender.is_closed() {
                return Some(kept);
            }
        }
        None
    }

    /// Sees to it that those who waited too long are closed, for as long as the pool is there.
    fn look_through(self: &Arc<Self>) {
        if std::mem::replace(&mut self.lock().ticking, true) {
            return;
        }
        let idle = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                let Some(idle) = idle.upgrade() else { return };
                drop(idle.tick());
            }
        });
    }

    /// Counts one more, and hands out those that are to be closed.
    fn tick(&self) -> Vec<(u64, Kept)> {
        let mut waiting = self.lock();
        waiting.tick = waiting.tick.saturating_add(1);
        let oldest = waiting.tick.saturating_sub(POOL_IDLE_TICKS);
        let young = |(since, kept): &(u64, Kept)| *since > oldest && !kept.sender.is_closed();
        let old = waiting.kept.iter().take_while(|kept| !young(kept)).count();
        waiting.kept.drain(..old).collect()
    }
}
