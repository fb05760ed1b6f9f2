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
use super::look::Front;
use super::slow::Pause;
use crate::gate::metered::Passed;
use crate::gate::{Content, Heard};

/// How much of an unwanted body is read and thrown away, in bytes. A client that wrote more finds its connection
/// closed.
const MAX_DRAINED_BYTES: usize = 16 * 1024 * 1024;
/// How long that may take.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(10);

/// A request's body. One that is dropped unread, because the request was refused, is drained in the background: a client
/// that is still writing would otherwise see its connection reset before it could read the answer. On HTTP/2 it would be the
/// stream, which some clients (curl 7 is one) take for a failure although the answer is there.
#[derive(Debug)]
pub struct RequestBody {
    incoming: Option<Incoming>,
    on_http2: bool,
    drain: bool,
    pause: Pause,
    /// Who hears what is read, where the request may come again.
    heard: Option<Arc<Heard>>,
    /// Counts what is passed on, and is told of its end, where that costs something.
    passed: Option<Passed>,
    /// How many bytes of it may still come.
    room: u64,
    /// What was read of it before, and comes first.
    front: Option<Box<Front>>,
}

impl RequestBody {
    /// Puts what was read of it back before the rest.
    pub(super) fn put_back(&mut self, front: Front) {
        self.front = Some(Box::new(front));
    }
}

/// Puts the guard around a request's body, which may pause for so long and have so many bytes.
pub(super) fn guard(request: Request<Incoming>, max_pause: Duration, max_bytes: u64) -> Request<RequestBody> {
    // A client that asked first (`Expect: 100-continue`) has sent nothing yet, and reading would invite it to.
    let drain = !request.headers().contains_key(EXPECT);
    let on_http2 = request.version() == Version::HTTP_2;
    let pause = Pause::up_to(max_pause);
    let room = max_bytes;
    let (front, passed, heard) = Default::default();
    request.map(|incoming| RequestBody { incoming: Some(incoming), on_http2, drain, pause, room, front, passed, heard })
}

/// Whether a stream of HTTP/2 ends before its end: one that is reset without an error has no more for us, and says nothing.
pub(super) fn is_cut_short<T, E>(frame: &Poll<Option<Result<T, E>>>, body: &Incoming) -> bool {
    matches!(frame, Poll::Ready(None)) && !body.is_end_stream()
}

/// Lets the body count what is passed on of it, and say if it breaks, if the gate wants to know.
pub(super) fn count(request: &mut Request<RequestBody>) {
    if let Some(passed) = request.extensions_mut().remove::<Passed>() {
        passed.begin();
        request.body_mut().passed = Some(passed);
    }
}

/// No body.
pub(super) fn none() -> RequestBody {
    let pause = Pause::up_to(Duration::MAX);
    let (front, passed, heard) = Default::default();
    RequestBody { incoming: None, on_http2: false, drain: false, pause, room: 0, front, passed, heard }
}

impl RequestBody {
    /// Lets it pause for so long instead.
    pub(super) fn may_pause_for(&mut self, limit: Duration) {
        self.pause = Pause::up_to(limit);
    }
}

/// Why a request's body is not whole.
#[derive(Debug, thiserror::Error)]
pub enum BodyBroken {
    /// The client broke its request off, or framed its body wrongly.
    #[error("the request's body broke off")]
    Off(#[source] Option<hyper::Error>),
    /// Nothing of it came for too long.
    #[error("the request's body paused for too long")]
    Paused,
    /// There is more of it than there may be.
    #[error("the request's body is larger than this server takes")]
    TooLarge,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        let Self { incoming, on_http2, pause, room, front, passed, heard, .. } = &mut *self;
        if let Some(read) = front {
            match read.next() {
                Some(frame) => {
                    if let (Some(passed), Some(data)) = (passed, frame.data_ref()) {
                        passed.add(data.len());
                    }
                    let frame = Poll::Ready(Some(Ok(frame)));
                    if let Some(heard) = heard {
                        let is_last = read.is_over() && incoming.as_ref().is_none_or(Body::is_end_stream);
                        listen::<BodyBroken>(heard, &frame, is_last);
                    }
                    return frame;
                }
                None => *front = None,
            }
        }
        let Some(body) = incoming.as_mut() else { return Poll::Ready(None) };
        let mut frame = Pin::new(&mut *body).poll_frame(context).map_err(|error| BodyBroken::Off(Some(error)));
        if *on_http2 && is_cut_short(&frame, body) {
            frame = Poll::Ready(Some(Err(BodyBroken::Off(None))));
        }
        if frame.is_ready() {
            pause.end();
        } else if pause.poll(context).is_ready() {
            frame = Poll::Ready(Some(Err(BodyBroken::Paused)));
        }
        if let Poll::Ready(Some(Ok(read))) = &frame
            && let Some(data) = read.data_ref()
        {
            match u64::try_from(data.len()).ok().and_then(|length| room.checked_sub(length)) {
                Some(rest) => *room = rest,
                None => frame = Poll::Ready(Some(Err(BodyBroken::TooLarge))),
            }
        }
        if let (Poll::Ready(Some(Err(_))), Some(passed)) = (&frame, &*passed) {
            // Before the upstream hears of it.
            passed.broke_off();
        }
        if let Some(heard) = heard {
            listen(heard, &frame, body.is_end_stream());
        }
        if matches!(frame, Poll::Ready(Some(Err(BodyBroken::Paused)))) {
            // Not drained either: what does not come cannot be thrown away.
            *incoming = None;
        }
        frame.map_ok(|mut frame| {
            if let (Some(passed), Some(data)) = (passed, frame.data_ref()) {
                passed.add(data.len());
            }
            // What may not come as a header may not come as a trailer.
            if let Some(trailers) = frame.trailers_mut() {
                headers::strip_untrusted(trailers);
            }
            frame
        })
    }

    fn is_end_stream(&self) -> bool {
        self.front.as_ref().is_none_or(|front| front.is_over())
            && self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.incoming.as_ref().filter(|body| !body.is_end_stream());
        let mut hint = rest.map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        if let Some(front) = &self.front {
            let (least, most) = (hint.lower(), hint.upper().filter(|_| !front.has_trailers()));
            hint = SizeHint::new();
            hint.set_lower(least.saturating_add(front.len()));
            if let Some(most) = most {
                hint.set_upper(most.saturating_add(front.len()));
            }
        }
        hint
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
