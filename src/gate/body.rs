//! The body of an answer that went through the gate: the upstream's, its data untouched, or our own.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use tower::BoxError;

use super::metered::MeteredBody;
use super::replay::Kept;
use super::service::strip_payment_headers;

pin_project! {
    /// The body of an answer that went through the gate. The upstream's frames pass one by one; only a small answer whose
    /// price depends on what is in it was collected before its head left.
    #[derive(Debug)]
    pub struct AnswerBody<B> {
        #[pin]
        inner: Inner<B>,
    }
}

pin_project! {
    #[project = InnerProjection]
    #[derive(Debug)]
    enum Inner<B> {
        Upstream { #[pin] body: B },
        // Our own, one that was collected, and one that is given again.
        Whole { whole: Whole },
        // In a box, so that the others need no room for it.
        Metered { body: Box<MeteredBody<B>> },
        // One that may be asked for again.
        Kept { kept: Kept<AnswerBody<B>> },
    }
}

/// What is left of a body that is all there.
#[derive(Debug, Default)]
pub(super) struct Whole {
    data: Bytes,
    /// In a box: there seldom are any.
    trailers: Option<Box<HeaderMap>>,
}

impl Whole {
    pub(super) fn new(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self { data, trailers: trailers.map(Box::new) }
    }

    /// The trailers, which there are from now on.
    pub(super) fn trailers(&mut self) -> &mut HeaderMap {
        self.trailers.get_or_insert_default()
    }

    /// The next frame.
    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        if self.data.is_empty() {
            return self.trailers.take().map(|trailers| Frame::trailers(*trailers));
        }
        Some(Frame::data(std::mem::take(&mut self.data)))
    }

    pub(super) fn is_over(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.data.len()).unwrap_or(u64::MAX))
    }
}

impl<B> AnswerBody<B> {
    pub(super) fn upstream(body: B) -> Self {
        Self { inner: Inner::Upstream { body } }
    }

    pub(super) fn kept(kept: Kept<Self>) -> Self {
        Self { inner: Inner::Kept { kept } }
    }

    pub(super) fn own(bytes: Bytes) -> Self {
        Self::whole(Whole::new(bytes, None))
    }

    pub(super) fn whole(whole: Whole) -> Self {
        Self { inner: Inner::Whole { whole } }
    }

    /// The upstream's, charged at its end.
    pub(super) fn metered(body: MeteredBody<B>) -> Self {
        Self { inner: Inner::Metered { body: Box::new(body) } }
    }
}

impl<B> Body for AnswerBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().inner.project() {
            InnerProjection::Upstream { body } => body.poll_frame(context).map_err(Into::into).map_ok(|mut frame| {
                // What may not come as a header may not come as a trailer.
                if let Some(trailers) = frame.trailers_mut() {
                    strip_payment_headers(trailers);
                }
                frame
            }),
            InnerProjection::Whole { whole } => Poll::Ready(whole.next().map(Ok)),
            InnerProjection::Metered { body } => body.poll_frame(context),
            InnerProjection::Kept { kept } => kept.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Upstream { body } => body.is_end_stream(),
            Inner::Whole { whole } => whole.is_over(),
            Inner::Metered { body } => body.is_end_stream(),
            Inner::Kept { kept } => kept.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Upstream { body } => body.size_hint(),
            Inner::Whole { whole } => whole.size_hint(),
            Inner::Metered { body } => body.size_hint(),
            Inner::Kept { kept } => kept.size_hint(),
        }
    }
}
