//! Bodies on their way to and from the upstream, and how long either may stand still.
//!
//! **Owns** the wait for the head of an answer and the wait between two parts of its body. **Promises** that the time a
//! client takes to send its body is not the upstream's: the wait for the head counts from the last part that the upstream
//! took, and not while the client is the one who is waited for; and that it is known when the client broke its own body,
//! whatever the connection to the upstream says of that. **Does not** bound the client's own pauses; the request's
//! body does ([`RequestBody`]).

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use super::balance::Load;
use super::body::{RequestBody, is_cut_short};
use super::slow::Pause;
use super::streams::Stream;
use super::upstream::UpstreamError;

/// A request's body on its way to the upstream.
#[derive(Debug)]
pub(super) struct Upload {
    body: RequestBody,
    /// Where there is a body at all.
    progress: Option<Arc<Progress>>,
}

/// How far an upload is.
#[derive(Debug)]
pub(super) struct Progress {
    begun: Instant,
    /// When something was last taken or the end was reached, milliseconds from the beginning; [`WITH_CLIENT`] while the
    /// client is waited for.
    moved_ms: AtomicU64,
    /// How it broke, where it did. What failed because of that need not say so: a stream of HTTP/2 is only reset.
    broken: OnceLock<UpstreamError>,
}

/// The client has sent nothing more yet.
const WITH_CLIENT: u64 = u64::MAX;

impl Upload {
    pub(super) fn of(body: RequestBody) -> Self {
        // Nothing is set up for a request without a body.
        let progress = (!body.is_end_stream()).then(|| Arc::new(Progress::begin()));
        Self { body, progress }
    }

    /// How far it is, for whoever waits for the answer. None where there is nothing to send.
    pub(super) fn progress(&self) -> Option<Arc<Progress>> {
        self.progress.clone()
    }
}

impl Progress {
    fn begin() -> Self {
        Self { begun: Instant::now(), moved_ms: AtomicU64::new(0), broken: OnceLock::new() }
    }

    /// How its client broke it, if that is what happened.
    pub(super) fn broken(&self) -> Option<UpstreamError> {
        self.broken.get().copied()
    }

    fn note(&self, with_client: bool) {
        let elapsed = || u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(WITH_CLIENT - 1);
        self.moved_ms.store(if with_client { WITH_CLIENT } else { elapsed() }, Ordering::Relaxed);
    }

    /// Until when the upstream has time that was given `limit` after the last progress.
    fn deadline(&self, limit: Duration) -> Option<Instant> {
        match self.moved_ms.load(Ordering::Relaxed) {
            WITH_CLIENT => Instant::now().checked_add(limit),
            moved_ms => self.begun.checked_add(Duration::from_millis(moved_ms).saturating_add(limit)),
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = <RequestBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Some(progress) = &self.progress {
            progress.note(frame.is_pending());
            if let Poll::Ready(Some(Err(broken))) = &frame {
                let _ = progress.broken.set(broken.into());
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The head took too long.
#[derive(Debug, Clone, Copy)]
pub(super) struct TooLong;

pin_project! {
    /// Waits for the head of an answer, for so long after the upstream was sent all there is.
    pub(super) struct HeadWithin<F> {
        limit: Duration,
        progress: Option<Arc<Progress>>,
        #[pin]
        answer: F,
        #[pin]
        timer: Sleep,
    }
}

impl<F: Future> HeadWithin<F> {
    pub(super) fn new(limit: Duration, progress: Option<Arc<Progress>>, answer: F) -> Self {
        Self { limit, progress, answer, timer: tokio::time::sleep(limit) }
    }
}

impl<F: Future> Future for HeadWithin<F> {
    type Output = Result<F::Output, TooLong>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(answer) = this.answer.poll(context) {
            return Poll::Ready(Ok(answer));
        }
        loop {
            ready!(this.timer.as_mut().poll(context));
            // The timer is not moved with each part of the body: what it missed is made up for once it rings.
            match this.progress.as_ref().and_then(|progress| progress.deadline(*this.limit)) {
                Some(deadline) if deadline > Instant::now() => this.timer.as_mut().reset(deadline),
                _ => return Poll::Ready(Err(TooLong)),
            }
        }
    }
}

/// The body of an answer: the upstream's, or ours where it gave none.
#[derive(Debug)]
pub(super) struct UpstreamBody {
    inner: Inner,
    pause: Pause,
    /// What it takes up for as long as it lasts.
    taken: (Option<Load>, Option<Stream>),
}

#[derive(Debug)]
enum Inner {
    Upstream(Incoming),
    Own(Full<Bytes>),
}

impl UpstreamBody {
    /// The upstream's, which may pause for so long.
    pub(super) fn upstream(body: Incoming, max_pause: Duration, taken: (Option<Load>, Option<Stream>)) -> Self {
        Self { inner: Inner::Upstream(body), pause: Pause::up_to(max_pause), taken }
    }

    /// Ours.
    pub(super) fn own(body: Bytes) -> Self {
        Self { inner: Inner::Own(Full::new(body)), pause: Pause::up_to(Duration::MAX), taken: (None, None) }
    }
}

/// Why the body of an answer is not whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerBroken {
    /// The upstream broke it off, or framed it wrongly.
    #[error("the upstream broke its answer off")]
    Off(#[source] Option<hyper::Error>),
    /// Nothing of it came for too long.
    #[error("the upstream's answer paused for too long")]
    Paused,
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = AnswerBroken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerBroken>>> {
        let Self { inner, pause, taken: (_, stream) } = &mut *self;
        let body = match inner {
            Inner::Upstream(body) => body,
            Inner::Own(body) => return Pin::new(body).poll_frame(context).map_err(|never| match never {}),
        };
        let frame = Pin::new(&mut *body).poll_frame(context).map_err(|error| AnswerBroken::Off(Some(error)));
        if stream.is_some() && is_cut_short(&frame, body) {
            return Poll::Ready(Some(Err(AnswerBroken::Off(None))));
        }
        if frame.is_ready() {
            pause.end();
        } else if pause.poll(context).is_ready() {
            return Poll::Ready(Some(Err(AnswerBroken::Paused)));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Upstream(body) => body.is_end_stream(),
            Inner::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Upstream(body) => body.size_hint(),
            Inner::Own(body) => body.size_hint(),
        }
    }
}
