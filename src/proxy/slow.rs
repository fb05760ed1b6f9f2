//! Clients that are slow on purpose, or gone.
//!
//! **Owns** the patience with a request's body that pauses, and with a client that does not take its answer. **Promises**
//! that neither holds an upstream's connection, a payer's hold or a place here for longer than is said. **Does not** ask for
//! speed: whatever moves at all, in time, goes on.

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::task::AbortOnDropHandle;
use tower::BoxError;

/// How long a client may take nothing of what it is being written, unless said.
pub const MAX_WRITE_PAUSE: Duration = Duration::from_secs(30);

/// Measures one wait after the other. Nothing is set up before something has to be waited for.
#[derive(Debug)]
pub(super) struct Pause {
    /// In milliseconds: each request has one, and little room.
    limit_ms: u32,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Pause {
    pub(super) fn up_to(limit: Duration) -> Self {
        Self { limit_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX), timer: None, waiting: false }
    }

    /// There is still nothing. Ready if that has been so for too long.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let limit = Duration::from_millis(self.limit_ms.into());
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if !std::mem::replace(&mut self.waiting, true)
            && let Some(deadline) = Instant::now().checked_add(limit)
        {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(context)
    }

    /// Something has moved.
    pub(super) fn end(&mut self) {
        self.waiting = false;
    }
}

/// A connection that breaks when its other end takes nothing for too long. HTTP has no word for that, so the connection is
/// all there is to end.
#[derive(Debug)]
pub(super) struct Taken<T> {
    inner: T,
    pause: Pause,
}

impl<T> Taken<T> {
    pub(super) fn within(inner: T, limit: Duration) -> Self {
        Self { inner, pause: Pause::up_to(limit) }
    }

    fn watch<R>(&mut self, progress: Poll<io::Result<R>>, context: &mut Context<'_>) -> Poll<io::Result<R>> {
        if progress.is_ready() {
            self.pause.end();
            return progress;
        }
        self.pause.poll(context).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Taken<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Taken<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watch(progress, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.watch(progress, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.inner).poll_flush(context);
        self.watch(progress, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

pin_project! {
    /// An answer's body that is let go when nobody asks for more of it for too long.
    ///
    /// A stream of HTTP/2 stands still when its client opens no window for it, while its connection is well. Then nobody
    /// asks the body for anything, so it cannot notice by itself; somebody beside it does. What is let go is the
    /// upstream's connection; the stream's few bytes here stay for as long as its connection does, which is ended for
    /// that in its time ([`Answers`](super::answers::Answers)). A window that was never opened is one that does not open:
    /// the watch begins with the head.
    #[project = WantedProjection]
    #[derive(Debug)]
    pub(super) enum Wanted<B> {
        Unwatched { #[pin] body: B },
        Watched { shared: Arc<Shared<B>>, watcher: AbortOnDropHandle<()> },
    }
}

/// A body, and how it is asked for.
#[derive(Debug)]
pub(super) struct Shared<B>(Mutex<State<B>>);

#[derive(Debug)]
struct State<B> {
    /// Nothing, once it was let go: because its client took nothing, or because all of it was given out. What the client
    /// still has to take of it then keeps nothing of the upstream's.
    body: Option<B>,
    /// Whether all of it was given out.
    is_over: bool,
    /// How many frames of it were taken.
    taken: u64,
    /// Whether the client has to take the last of them, or the head, before it asks for more.
    with_client: bool,
}

impl<B> Shared<B> {
    fn state(&self) -> MutexGuard<'_, State<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client did not take the answer.
#[derive(Debug, thiserror::Error)]
#[error("the client takes nothing")]
struct NotTaken;

impl<B> Wanted<B> {
    /// Whatever becomes of it: on HTTP/1 a client that takes nothing is noticed by its connection ([`Taken`]).
    pub(super) fn unwatched(body: B) -> Self {
        Self::Unwatched { body }
    }

    /// Let go when nobody asks for more of it for so long, or up to twice as long.
    pub(super) fn within(body: B, limit: Duration) -> Self
    where
        B: Body + Send + 'static,
    {
        if body.is_end_stream() {
            return Self::unwatched(body);
        }
        let state = State { body: Some(body), is_over: false, taken: 0, with_client: true };
        let shared = Arc::new(Shared(Mutex::new(state)));
        let watcher = AbortOnDropHandle::new(tokio::spawn(watch(Arc::downgrade(&shared), limit)));
        Self::Watched { shared, watcher }
    }
}

impl<B> Body for Wanted<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let shared = match self.project() {
            WantedProjection::Unwatched { body } => return body.poll_frame(context).map_err(Into::into),
            WantedProjection::Watched { shared, .. } => shared,
        };
        let mut state = shared.state();
        state.with_client = false;
        if state.is_over {
            return Poll::Ready(None);
        }
        let Some(body) = state.body.as_mut() else { return Poll::Ready(Some(Err(NotTaken.into()))) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(context));
        let more = matches!(frame, Some(Ok(_))) && !body.is_end_stream();
        let mut given = None;
        if more {
            state.taken = state.taken.wrapping_add(1);
            state.with_client = true;
        } else if !matches!(frame, Some(Err(_))) {
            state.is_over = true;
            given = state.body.take();
        }
        drop(state);
        drop(given);
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Unwatched { body } => body.is_end_stream(),
            // One that was let go has not come to its end.
            Self::Watched { shared, .. } => {
                let state = shared.state();
                state.is_over || state.body.as_ref().is_some_and(Body::is_end_stream)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Unwatched { body } => body.size_hint(),
            Self::Watched { shared, .. } => {
                let state = shared.state();
                let rest = state.body.as_ref().map(Body::size_hint);
                rest.unwrap_or_else(|| if state.is_over { SizeHint::with_exact(0) } else { SizeHint::default() })
            }
        }
    }
}

/// Ends with the body, or lets it go.
async fn watch<B>(shared: Weak<Shared<B>>, limit: Duration) {
    let mut before = None;
    loop {
        tokio::time::sleep(limit).await;
        let Some(shared) = shared.upgrade() else { return };
        let mut state = shared.state();
        let now = state.with_client.then_some(state.taken);
        if now.is_some() && now == before {
            let body = state.body.take();
            drop(state);
            tracing::debug!("an answer was not taken");
            drop(body);
            return;
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_is_taken_is_written_and_what_is_not_taken_breaks_off() {
        let (near, mut far) = tokio::io::duplex(1);
        let mut near = Taken::within(near, Duration::from_millis(200));
        let writing = tokio::spawn(async move {
            let written = near.write_all(b"slow").await;
            (written.map_err(|error| error.kind()), near.write_all(b"never").await.map_err(|error| error.kind()))
        });
        for byte in b"slow" {
            assert_eq!(far.read_u8().await.unwrap(), *byte);
        }
        assert_eq!(writing.await.unwrap(), (Ok(()), Err(io::ErrorKind::TimedOut)));
    }

    #[tokio::test]
    async fn each_wait_has_the_whole_time_and_only_waits_count() {
        let limit = Duration::from_secs(3_600);
        let mut pause = Pause::up_to(limit);
        let deadline = |pause: &Pause| pause.timer.as_ref().unwrap().deadline();
        let poll = |pause: &mut Pause| pause.poll(&mut Context::from_waker(std::task::Waker::noop()));
        assert!(pause.timer.is_none(), "nothing is set up before something is waited for");
        assert!(poll(&mut pause).is_pending());
        let first = deadline(&pause);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(poll(&mut pause).is_pending());
        assert_eq!(deadline(&pause), first, "to look again is no progress");
        pause.end();
        assert!(poll(&mut pause).is_pending());
        assert!(deadline(&pause) > first);
    }

    /// A body of known length in two pieces.
    struct Pieces {
        left: Vec<&'static [u8]>,
        _kept: Arc<()>,
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            Poll::Ready(self.left.pop().map(|piece| Ok(Frame::data(Bytes::from_static(piece)))))
        }

        fn is_end_stream(&self) -> bool {
            self.left.is_empty()
        }
    }

    #[tokio::test]
    async fn an_answer_that_was_given_out_whole_keeps_nothing_although_its_client_has_not_taken_it() {
        let kept = Arc::new(());
        let pieces = Pieces { left: vec![b"last", b"first"], _kept: Arc::clone(&kept) };
        let mut body = Box::pin(Wanted::within(pieces, Duration::from_secs(3_600)));
        let mut next = || match body.as_mut().poll_frame(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(frame) => frame.map(|frame| frame.unwrap().into_data().unwrap()),
            Poll::Pending => panic!("it is there"),
        };
        assert_eq!((next().unwrap(), Arc::strong_count(&kept)), (Bytes::from("first"), 2));
        assert_eq!((next().unwrap(), Arc::strong_count(&kept)), (Bytes::from("last"), 1));
        assert!(next().is_none());
        assert!(body.is_end_stream() && body.size_hint().exact() == Some(0));
    }
}
