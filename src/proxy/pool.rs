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

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use tower::BoxError;

use super::dial::{Dialer, Line};
use super::streams::{FailedBefore, Stream};
use super::transfer::Upload;
use crate::causes::causes;

/// How many ticks an idle connection is kept: less than the five seconds after which common servers close
/// theirs, because a request that meets the close halfway cannot be sent again safely.
const POOL_IDLE_TICKS: u64 = 4;
/// How often idle connections are looked through. Nothing reads a clock for each request.
const TICK: Duration = Duration::from_secs(1);
/// How many idle connections a core keeps; the one that has waited longest makes room for one more.
const MAX_IDLE: usize = 1_024;

/// An answer, and the stream it takes up where connections are shared.
pub(super) type Answer = (Response<Incoming>, Option<Stream>);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// There was no connection to send it on. Nothing of it was written, so it can go elsewhere.
    #[error("no connection")]
    Connect {
        /// Why there was none.
        #[source]
        source: BoxError,
        /// The request.
        unsent: Box<Request<Upload>>,
    },
    /// The connection failed before the head of the answer, or the request's own body did.
    #[error("no answer")]
    Answer(#[source] hyper::Error),
}

impl SendError {
    pub(super) fn connect(source: impl Into<BoxError>, unsent: Request<Upload>) -> Self {
        Self::Connect { source: source.into(), unsent: Box::new(unsent) }
    }

    /// Whether it is that of a connection that another request had to wait for, and was told of.
    pub(super) fn was_anothers(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if source.is::<FailedBefore>())
    }

    /// Of a connection that was given a request.
    pub(super) fn of_sending(mut error: TrySendError<Request<Upload>>) -> Self {
        match error.take_message() {
            Some(unsent) => Self::connect(error.into_error(), unsent),
            None => Self::Answer(error.into_error()),
        }
    }
}

/// The connections of one core to one target.
#[derive(Debug)]
pub(super) struct Pool {
    dialer: Dialer,
    idle: Arc<Idle>,
}

impl Pool {
    /// A pool for what the dialer reaches; nothing is connected yet.
    pub(super) fn new(dialer: Dialer) -> Self {
        Self { dialer, idle: Arc::default() }
    }

    pub(super) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Sends a request in origin form that has its `Host`.
    ///
    /// # Cancellation
    /// A connection whose answer nobody waits for any more is closed: HTTP/1 knows no other way to take a request back.
    pub(super) async fn send(&self, request: Request<Upload>) -> Result<Answer, SendError> {
        // In a box is what is needed once in a connection's life: a request has its room for as long as it is served.
        let unsent = match self.idle.take() {
            None => request,
            Some(kept) => match kept.send(request).await {
                Ok(response) => return Ok((response, None)),
                // The upstream closed it while it was idle, and we hear of that only now.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => unsent,
                    None => return Err(SendError::Answer(error.into_error())),
                },
            },
        };
        let fresh = match Box::pin(self.connect()).await {
            Ok(fresh) => fresh,
            Err(error) => return Err(SendError::connect(error, unsent)),
        };
        fresh.send(unsent).await.map(|response| (response, None)).map_err(SendError::of_sending)
    }

    /// Sends a request that may change the protocol of its connection, which is therefore used for nothing else.
    pub(super) async fn send_alone(&self, request: Request<Upload>) -> Result<Answer, SendError> {
        let (mut sender, connection) = match self.shake_hands().await {
            Ok(fresh) => fresh,
            Err(error) => return Err(SendError::connect(error, request)),
        };
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(error = %causes(&error), "a connection to the upstream ended badly");
            }
        });
        let sent = sender.try_send_request(request).await;
        sent.map(|response| (response, None)).map_err(SendError::of_sending)
    }

    async fn connect(&self) -> Result<Kept, BoxError> {
        let (sender, connection) = self.shake_hands().await?;
        let place = Arc::new(Place::default());
        tokio::spawn(keep(connection, Arc::clone(&place), Arc::downgrade(&self.idle)));
        self.idle.look_through();
        Ok(Kept { sender, place })
    }

    async fn shake_hands(&self) -> Result<(SendRequest<Upload>, http1::Connection<Line, Upload>), BoxError> {
        Ok(http1::handshake(self.dialer.dial().await?).await?)
    }
}

/// A connection that can take a request now.
#[derive(Debug)]
struct Kept {
    sender: SendRequest<Upload>,
    place: Arc<Place>,
}

/// Where the sender of a busy connection waits until the connection is idle again.
#[derive(Debug, Default)]
struct Place(Mutex<Option<SendRequest<Upload>>>);

impl Kept {
    fn send(
        mut self,
        request: Request<Upload>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Upload>>>> {
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
        let tick = waiting.tick;
        let old =
            |(since, kept): &&(u64, Kept)| since.saturating_add(POOL_IDLE_TICKS) <= tick || kept.sender.is_closed();
        let old = waiting.kept.iter().take_while(old).count();
        waiting.kept.drain(..old).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::body;
    use http::Uri;
    use hyper_util::rt::TokioIo;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    /// A connection whose other end is never read.
    async fn kept() -> (Kept, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(1_024);
        let (sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection);
        (Kept { sender, place: Arc::default() }, far)
    }

    #[tokio::test]
    async fn who_waited_too_long_is_closed_and_who_was_used_last_is_used_first() {
        let idle = Idle::default();
        let mut far = Vec::new();
        let mut places = Vec::new();
        for _ in 0..2 {
            let (kept, end) = kept().await;
            far.push(end);
            places.push(Arc::clone(&kept.place));
            idle.put(kept);
            assert_eq!(idle.tick().len(), 0);
        }
        assert!(Arc::ptr_eq(&idle.take().unwrap().place, &places[1]));
        // The other one has waited for two ticks already.
        for _ in 3..POOL_IDLE_TICKS {
            assert_eq!(idle.tick().len(), 0);
        }
        assert_eq!(idle.tick().len(), 1);
        assert!(idle.take().is_none());
    }

    #[tokio::test]
    async fn no_more_than_so_many_wait_and_the_oldest_makes_room() {
        let idle = Idle::default();
        let (oldest, _far) = kept().await;
        let place = Arc::clone(&oldest.place);
        idle.put(oldest);
        let mut far = Vec::new();
        for _ in 1..MAX_IDLE {
            let (kept, end) = kept().await;
            far.push(end);
            idle.put(kept);
        }
        let has_oldest = || idle.lock().kept.iter().any(|(_, kept)| Arc::ptr_eq(&kept.place, &place));
        assert!(has_oldest() && idle.lock().kept.len() == MAX_IDLE);
        let (kept, _far) = kept().await;
        idle.put(kept);
        assert!(!has_oldest() && idle.lock().kept.len() == MAX_IDLE);
    }

    /// Reads the head of a request and answers it.
    fn answer(stream: &mut TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    }

    #[tokio::test]
    async fn a_request_for_a_connection_that_was_closed_meanwhile_goes_out_on_a_new_one() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri: Uri = format!("http://{}", socket.local_addr().unwrap()).parse().unwrap();
        let (order, close) = std::sync::mpsc::channel();
        let (tell, closed) = std::sync::mpsc::channel();
        let upstream = std::thread::spawn(move || {
            let (mut first, _) = socket.accept().unwrap();
            answer(&mut first);
            close.recv().unwrap();
            drop(first);
            tell.send(()).unwrap();
            answer(&mut socket.accept().unwrap().0);
        });
        let pool = Pool::new(Dialer::new(crate::tls::client_config(), None, uri, Duration::from_secs(5), false));
        let request = || Request::get("/x").header("host", "h").body(Upload::of(body::none())).unwrap();
        pool.send(request()).await.unwrap();
        while pool.idle.lock().kept.is_empty() {
            tokio::task::yield_now().await;
        }
        order.send(()).unwrap();
        closed.recv().unwrap();
        // The runtime learns of it, and has no time to tell the connection before the next request.
        tokio::task::yield_now().await;
        assert!(!pool.idle.lock().kept.front().unwrap().1.sender.is_closed());
        pool.send(request()).await.unwrap();
        upstream.join().unwrap();
    }
}
