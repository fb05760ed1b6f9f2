//! Bodies of requests that may not be read to their end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::headers;
use super::slow::Pause;
use crate::gate::{Content, Heard};

/// How much of an unwanted body is read and thrown away, in bytes. A client that wrote more finds its connection
/// closed.
const MAX_DRAINED_BYTES: usize = 16 * 1024 * 1024;
/// How long that may take.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(10);

/// A request's body. One that is dropped unread, because the request was refused, is drained in the background: on
/// HTTP/1 a client that is still writing would otherwise see its connection reset before it could read the answer.
#[derive(Debug)]
pub struct RequestBody {
    incoming: Option<Incoming>,
    drain: bool,
    pause: Pause,
    /// Who hears what is read, where the request may come again.
    heard: Option<Arc<Heard>>,
}

/// Puts the guard around a request's body, which may pause for so long.
pub(super) fn guard(request: Request<Incoming>, max_pause: Duration) -> Request<RequestBody> {
    // HTTP/2 resets the one stream by itself. A client that asked first (`Expect: 100-continue`) has sent nothing yet,
    // and reading would invite it to.
    let drain = request.version() <= Version::HTTP_11 && !request.headers().contains_key(EXPECT);
    request.map(|incoming| RequestBody { incoming: Some(incoming), drain, pause: Pause::up_to(max_pause), heard: None })
}

/// No body.
#[cfg(test)]
pub(super) fn none() -> RequestBody {
    RequestBody { incoming: None, drain: false, pause: Pause::up_to(Duration::MAX), heard: None }
}

/// Why a request's body is not whole.
#[derive(Debug, thiserror::Error)]
pub enum BodyBroken {
    /// The client broke its request off, or framed its body wrongly.
    #[error("the request's body broke off")]
    Off(#[source] hyper::Error),
    /// Nothing of it came for too long.
    #[error("the request's body paused for too long")]
    Paused,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        let Self { incoming, pause, heard, .. } = &mut *self;
        let Some(body) = incoming.as_mut() else { return Poll::Ready(None) };
        let frame = Pin::new(&mut *body).poll_frame(context).map_err(BodyBroken::Off);
        if frame.is_ready() {
            pause.end();
        } else if pause.poll(context).is_ready() {
            // Not drained either: what does not come cannot be thrown away.
            *incoming = None;
            return Poll::Ready(Some(Err(BodyBroken::Paused)));
        }
        if let Some(heard) = heard {
            listen(heard, &frame, body.is_end_stream());
        }
        frame.map_ok(|mut frame| {
            // What may not come as a header may not come as a trailer.
            if let Some(trailers) = frame.trailers_mut() {
                headers::strip_untrusted(trailers);
            }
            frame
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// Lets somebody hear a frame that was read.
fn listen<E>(heard: &Heard, frame: &Poll<Option<Result<Frame<Bytes>, E>>>, is_last: bool) {
    if let Poll::Ready(Some(Ok(frame))) = frame
        && let Some(data) = frame.data_ref()
    {
        heard.hear(data);
    }
    // Whoever reads need not ask once more where there is nothing more.
    if matches!(frame, Poll::Ready(None)) || matches!(frame, Poll::Ready(Some(Ok(_))) if is_last) {
        heard.end();
    }
}

impl Content for RequestBody {
    fn overheard(&mut self, heard: &Arc<Heard>) {
        if self.is_end_stream() {
            heard.end();
        } else {
            self.heard = Some(Arc::clone(heard));
        }
    }

    async fn is(&mut self, heard: &Heard) -> bool {
        let again = Arc::new(Heard::default());
        self.overheard(&again);
        while let Some(Ok(_)) = self.frame().await {}
        again.same_as(heard)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(incoming) = self.incoming.take().filter(|incoming| self.drain && !incoming.is_end_stream()) else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(MAX_DRAIN_TIME, drain(incoming)));
        }
    }
}

async fn drain(mut body: Incoming) {
    let mut left = MAX_DRAINED_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let read = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(read) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
