//! How a metered answer goes on once its head is there.

use bytes::Bytes;
use http::header::TRAILER;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body;

use super::super::accounts::Posted;
use super::super::background::Background;
use super::super::body::AnswerBody;
use super::super::record::Draft;
use super::super::service::strip_payment_headers;
use super::stream::{MAX_COLLECTED_BYTES, MeteredBody, Receipts, collect};
use super::{Bill, Metering, TakesTrailers, is_event_stream};
use crate::pricing::End;
use crate::protocol::x402::{ChannelState, PAYMENT_RESPONSE};

/// How a metered answer goes on.
#[derive(Debug)]
pub(in super::super) enum Course<R> {
    /// What it costs is known, and on its way to the disk; nothing is, where it could not be charged. With what is noted
    /// of it.
    Charged(Response<AnswerBody<R>>, Option<Posted>, Option<Draft>),
    /// Its head leaves now; it is charged at its end. With the channel's state as it is now.
    Open(Response<AnswerBody<R>>, Option<ChannelState>),
    /// It broke off before anything of it left, and costs nothing. With the channel's state.
    Broken(Option<ChannelState>),
}

/// Whether a client can be told in trailers, before it is known what it is told about.
pub(in super::super) fn takes_trailers<B>(request: &Request<B>) -> Trailers {
    match request.version() {
        Version::HTTP_2 => Trailers::Always,
        Version::HTTP_11 if request.extensions().get::<TakesTrailers>().is_some() => Trailers::WhereUnsized,
        _ => Trailers::Never,
    }
}

/// After which answers a client takes trailers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Trailers {
    Always,
    /// On HTTP/1.1 there are none after a body of known length.
    WhereUnsized,
    Never,
}

impl Bill {
    /// The head came, with a status that is paid for.
    ///
    /// # Cancellation
    /// The payer has left.
    pub(in super::super) async fn follow<R>(
        mut self: Box<Self>,
        mut response: Response<R>,
        trailers: Trailers,
        receipts: Receipts,
        reading_on: &Background,
    ) -> Course<R>
    where
        R: Body<Data = Bytes> + Send + 'static,
    {
        self.head(response.status().as_u16(), response.headers());
        strip_payment_headers(response.headers_mut());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let state = self.goes_on();
            response.extensions_mut().insert(Metering::new(self));
            return Course::Open(response.map(AnswerBody::upstream), state);
        }
        let length = response.body().size_hint().exact();
        if self.said.is_some() || response.body().is_end_stream() {
            let posted = self.post(End::Complete).and_then(Result::ok);
            return Course::Charged(response.map(AnswerBody::upstream), posted, self.draft.take());
        }
        if length.is_some_and(|length| length <= MAX_COLLECTED_BYTES) && !is_event_stream(response.headers()) {
            let (head, body) = response.into_parts();
            return match collect(body, &mut self).await {
                Some(body) => {
                    let posted = self.post(End::Complete).and_then(Result::ok);
                    Course::Charged(Response::from_parts(head, AnswerBody::whole(body)), posted, self.draft.take())
                }
                None => Course::Broken(self.void()),
            };
        }
        let state = self.goes_on();
        let told = match trailers {
            Trailers::Always => true,
            Trailers::WhereUnsized => length.is_none(),
            Trailers::Never => false,
        };
        if told {
            response.headers_mut().append(TRAILER, HeaderValue::from_static(PAYMENT_RESPONSE));
        }
        let receipts = told.then_some(receipts);
        Course::Open(
            response.map(|body| AnswerBody::metered(MeteredBody::new(body, self, receipts, reading_on))),
            state,
        )
    }
}
