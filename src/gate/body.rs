//! The body of an answer that went through the gate: the upstream's, its data untouched, or our own.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use tower::BoxError;

use super::metered::{Collected, MeteredBody};
use super::replay::{Kept, Tail};
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
        Own { bytes: Option<Bytes> },
        // In boxes, so that the others need no room for them.
        Metered { body: Box<MeteredBody<B>> },
        Collected { body: Box<Collected> },
        // One that may be asked for again, and one that is.
        Kept { kept: Kept<AnswerBody<B>> },
        Again { tail: Tail },
    }
}

impl<B> AnswerBody<B> {
    pub(super) fn upstream(body: B) -> Self {
        Self { inner: Inner::Upstream { body } }
    }

    pub(super) fn kept(kept: Kept<Self>) -> Self {
        Self { inner: Inner::Kept { kept } }
    }

    pub(super) fn again(tail: Tail) -> Self {
        Self { inner: Inner::Again { tail } }
    }

    pub(super) fn own(bytes: Bytes) -> Self {
        Self { inner: Inner::Own { bytes: Some(bytes).filter(|bytes| !bytes.is_empty()) } }
    }

    /// The upstream's, charged at its end.
    pub(super) fn metered(body: MeteredBody<B>) -> Self {
        Self { inner: Inner::Metered { body: Box::new(body) } }
    }

    /// The upstream's, which has come already.
    pub(super) fn collected(body: Collected) -> Self {
        Self { inner: Inner::Collected { body: Box::new(body) } }
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
            InnerProjection::Own { bytes } => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            InnerProjection::Metered { body } => body.poll_frame(context),
            InnerProjection::Collected { body } => Poll::Ready(body.next().map(Ok)),
            InnerProjection::Kept { kept } => kept.poll_frame(context),
            InnerProjection::Again { tail } => Poll::Ready(tail.next().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Upstream { body } => body.is_end_stream(),
            Inner::Own { bytes } => bytes.is_none(),
            Inner::Metered { body } => body.is_end_stream(),
            Inner::Collected { body } => body.is_empty(),
            Inner::Kept { kept } => kept.is_end_stream(),
            Inner::Again { tail } => tail.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Upstream { body } => body.size_hint(),
            Inner::Own { bytes } => {
                let length = bytes.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
            }
            Inner::Metered { body } => body.size_hint(),
            Inner::Collected { body } => SizeHint::with_exact(body.length()),
            Inner::Kept { kept } => kept.size_hint(),
            Inner::Again { tail } => tail.size_hint(),
        }
    }
}
