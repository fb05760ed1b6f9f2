//! Clients that are slow on purpose, or gone.
//!
//! **Owns** the patience with a request's body that pauses, and with a client that does not take its answer. **Promises**
//! that neither holds an upstream's connection, a payer's hold or a place here for longer than is said. **Does not** ask for
//! speed: whatever moves at all, in time, goes on.

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a client may take nothing of what it is being written, unless said.
pub const MAX_WRITE_PAUSE: Duration = Duration::from_secs(30);

/// Measures one wait after the other. Nothing is set up before something has to be waited for.
#[derive(Debug)]
pub(super) struct Pause {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Pause {
    pub(super) fn up_to(limit: Duration) -> Self {
        Self { limit, timer: None, waiting: false }
    }

    /// There is still nothing. Ready if that has been so for too long.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
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
        let mut poll = |pause: &mut Pause| pause.poll(&mut Context::from_waker(std::task::Waker::noop()));
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
}
