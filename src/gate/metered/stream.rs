//! The body of a metered answer, as it passes.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tower::BoxError;

use super::super::accounts::{Charged, NotWritten};
use super::super::answer::{PAYMENT_RESPONSE, insert};
use super::super::background::Background;
use super::super::body::Whole;
use super::super::service::strip_payment_headers;
use super::{Bill, LOOK_EVERY};
use crate::pricing::End;
use crate::protocol::x402::Receipt;

/// How long a metered answer may be that is kept until it is whole, so that its receipt is in its head, bytes. Longer ones,
/// those of unknown length and event streams pass at once.
pub const MAX_COLLECTED_BYTES: u64 = 256 * 1024;

/// How long an answer is read on for its report when its payer has left.
pub const MAX_READ_ON: Duration = Duration::from_secs(30);

/// How many answers are, at once. Where there is no place for one more, nothing was reported.
pub const MAX_READING_ON: usize = 256;

/// How the receipt of a streamed answer is written, at its end.
#[derive(Debug)]
pub(in super::super) struct Receipts {
    pub(in super::super) network: Box<str>,
    /// The payer's, as an [`Address::text`](crate::protocol::Address::text).
    pub(in super::super) payer: [u8; 42],
    /// Of the price list.
    pub(in super::super) generation: u64,
}

/// The upstream's body, measured as it passes and charged at its end.
#[derive(Debug)]
pub(in super::super) struct MeteredBody<B> {
    stage: Stage<B>,
    /// How long it says that it is. Its last frame is held back then until it is charged, because nothing comes after it.
    total: Option<u64>,
    given: u64,
    /// Where the client takes trailers.
    receipts: Option<Receipts>,
    reading_on: Background,
    /// A function, because what it needs of the body is not known where it is dropped.
    read_on: ReadOn<B>,
}

type ReadOn<B> = fn(Pin<Box<B>>, Box<Bill>, &Background);

enum Stage<B> {
    Passing(Passing<B>),
    /// All of it came, and its charge is on its way to the disk.
    Writing(Pin<Box<dyn Future<Output = Result<Charged, NotWritten>> + Send>>, Whole),
    /// Its charge is durable.
    Ending(Whole),
    Over,
}

struct Passing<B> {
    body: Pin<Box<B>>,
    bill: Box<Bill>,
    /// What makes it as long as it said, until it is known that nothing follows.
    held: Option<Bytes>,
    /// When it is looked whether its payer withdraws what is to pay for it.
    looks: Interval,
}

/// The answer's charge did not reach the books: an answer that nobody paid for must not look whole.
#[derive(Debug, thiserror::Error)]
#[error("the answer could not be charged")]
struct NotCharged;

/// The rest of the answer would be for nothing.
#[derive(Debug, thiserror::Error)]
#[error("the payer withdraws what was to pay for the answer")]
struct Withdrawn;

impl<B> fmt::Debug for Stage<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passing(_) => "Passing",
            Self::Writing(..) => "Writing",
            Self::Ending(_) => "Ending",
            Self::Over => "Over",
        })
    }
}

impl<B> MeteredBody<B>
where
    B: Body<Data = Bytes> + Send + 'static,
{
    /// One whose head leaves now. A client that takes trailers is told with `receipts` what it cost.
    pub(in super::super) fn new(body: B, bill: Box<Bill>, receipts: Option<Receipts>, reading_on: &Background) -> Self {
        let total = body.size_hint().exact();
        let mut looks = interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stage = Stage::Passing(Passing { body: Box::pin(body), bill, held: None, looks });
        Self { stage, total, given: 0, receipts, reading_on: reading_on.clone(), read_on }
    }
}

/// What became of asking the upstream for more.
enum Step<E> {
    Give(Bytes),
    /// All of it came; this is to be given out before the end, and that with it.
    Whole(Option<Bytes>, Whole),
    Broken(E),
    Again,
}

impl<B> Passing<B> {
    /// Whether its payer is about to withdraw what is to pay for it.
    fn is_being_withdrawn(&mut self, context: &mut Context<'_>) -> bool {
        self.looks.poll_tick(context).is_ready() && {
            // Asked once more, so that it wakes us for the next look.
            let _ = self.looks.poll_tick(context);
            self.bill.is_being_withdrawn()
        }
    }
}

impl<B> Passing<B>
where
    B: Body<Data = Bytes>,
{
    fn poll(&mut self, total: Option<u64>, context: &mut Context<'_>) -> Poll<Step<B::Error>> {
        let Self { body, bill, held, .. } = self;
        let frame = match ready!(body.as_mut().poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Step::Broken(error)),
            None => return Poll::Ready(Step::Whole(None, Whole::new(held.take().unwrap_or_default(), None))),
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                let Ok(mut trailers) = frame.into_trailers() else { return Poll::Ready(Step::Again) };
                bill.hear(&trailers);
                // What may not come as a header may not come as a trailer.
                strip_payment_headers(&mut trailers);
                let rest = Whole::new(held.take().unwrap_or_default(), Some(trailers));
                return Poll::Ready(Step::Whole(None, rest));
            }
        };
        bill.data(&data);
        let is_last = body.is_end_stream();
        Poll::Ready(match (total, is_last) {
            (None, false) => Step::Give(data),
            (None, true) => Step::Whole(Some(data), Whole::default()),
            (Some(_), true) => Step::Whole(held.take(), Whole::new(data, None)),
            (Some(total), false) if bill.response_bytes < total => Step::Give(data),
            (Some(_), false) => held.replace(data).map_or(Step::Again, Step::Give),
        })
    }
}

impl<B> MeteredBody<B> {
    pub(in super::super) fn is_end_stream(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    pub(in super::super) fn size_hint(&self) -> SizeHint {
        self.total.map_or_else(SizeHint::default, |total| SizeHint::with_exact(total.saturating_sub(self.given)))
    }

    fn count(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let length = frame.data_ref().map_or(0, Bytes::len);
        self.given = self.given.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        frame
    }

    /// All of it came.
    fn settle(&mut self, rest: Whole) {
        let Stage::Passing(Passing { mut bill, .. }) = std::mem::replace(&mut self.stage, Stage::Over) else { return };
        self.stage = match bill.post(End::Complete) {
            Some(Ok(posted)) => Stage::Writing(Box::pin(posted.written()), rest),
            // The chain moved the channel under the request. The work is done and cannot be charged; the client is told
            // nothing it could book.
            Some(Err(_)) | None => Stage::Ending(rest),
        };
    }

    fn written(&mut self, outcome: Result<Charged, NotWritten>, mut rest: Whole) -> Result<(), NotCharged> {
        match outcome {
            Ok(Charged { charge, state }) => {
                let channel = state.channel_id;
                tracing::debug!(%channel, %charge, charged = %state.charged_cumulative_amount, "charged at the end");
                if let Some(Receipts { network, payer, generation }) = &self.receipts {
                    let receipt = Receipt::encode_charged(network, payer, charge, &state, *generation);
                    insert(rest.trailers(), PAYMENT_RESPONSE, receipt);
                }
                self.stage = Stage::Ending(rest);
                Ok(())
            }
            Err(NotWritten { latched, state }) => {
                let (channel, reason) = (state.channel_id, latched.reason());
                tracing::error!(%channel, reason, "a served request could not be charged");
                self.stage = Stage::Over;
                Err(NotCharged)
            }
        }
    }
}

impl<B> MeteredBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    pub(in super::super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            match &mut self.stage {
                Stage::Passing(passing) => {
                    if passing.is_being_withdrawn(context) {
                        self.leave();
                        return Poll::Ready(Some(Err(Withdrawn.into())));
                    }
                    match ready!(passing.poll(self.total, context)) {
                        Step::Again => {}
                        Step::Give(data) => return Poll::Ready(Some(Ok(self.count(Frame::data(data))))),
                        Step::Whole(data, rest) => {
                            self.settle(rest);
                            if let Some(data) = data {
                                return Poll::Ready(Some(Ok(self.count(Frame::data(data)))));
                            }
                        }
                        Step::Broken(error) => {
                            passing.bill.close(End::UpstreamFailed);
                            self.stage = Stage::Over;
                            return Poll::Ready(Some(Err(error.into())));
                        }
                    }
                }
                Stage::Writing(written, rest) => {
                    let outcome = ready!(written.as_mut().poll(context));
                    let rest = std::mem::take(rest);
                    if let Err(error) = self.written(outcome, rest) {
                        return Poll::Ready(Some(Err(error.into())));
                    }
                }
                Stage::Ending(rest) => {
                    let frame = rest.next();
                    if rest.is_over() {
                        self.stage = Stage::Over;
                    }
                    let Some(frame) = frame else { continue };
                    return Poll::Ready(Some(Ok(self.count(frame))));
                }
                Stage::Over => return Poll::Ready(None),
            }
        }
    }
}

impl<B> MeteredBody<B> {
    /// Nobody gets any more of it.
    fn leave(&mut self) {
        if let Stage::Passing(Passing { body, bill, .. }) = std::mem::replace(&mut self.stage, Stage::Over)
            && bill.may_hear_more()
        {
            (self.read_on)(body, bill, &self.reading_on);
        }
    }
}

/// Hyper drops the body of an answer whose client has left, and may stop asking for more of one that is whole.
impl<B> Drop for MeteredBody<B> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Reads on for the report, in the background. Nothing else that comes is the payer's.
fn read_on<B>(mut body: Pin<Box<B>>, mut bill: Box<Bill>, reading_on: &Background)
where
    B: Body<Data = Bytes> + Send + 'static,
{
    let Some(place) = reading_on.enter() else { return };
    bill.leave();
    place.go_on(async move {
        let reading = async {
            loop {
                match poll_fn(|context| body.as_mut().poll_frame(context)).await {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => bill.data(&data),
                        Err(frame) => {
                            if let Ok(trailers) = frame.into_trailers() {
                                bill.hear(&trailers);
                            }
                        }
                    },
                    Some(Err(_)) => return End::UpstreamFailed,
                    None => return End::PayerLeft,
                }
            }
        };
        let end = tokio::time::timeout(MAX_READ_ON, reading).await;
        drop(body);
        match end {
            Ok(end) => bill.close(end),
            // What was said so far may not be the last word.
            Err(_) => bill.close_unreported(),
        }
    });
}

/// Collects a small answer, measuring it. Nothing, where it broke off.
///
/// # Cancellation
/// The payer has left; what is its own has the bill.
pub(in super::super) async fn collect<B>(body: B, bill: &mut Bill) -> Option<Whole>
where
    B: Body<Data = Bytes>,
{
    let mut body = Box::pin(body);
    let (mut first, mut more, mut trailers) = (Bytes::new(), BytesMut::new(), None);
    while !body.is_end_stream() {
        let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await else { break };
        match frame.ok()?.into_data() {
            Ok(data) => {
                bill.data(&data);
                // It said that it is small.
                if bill.response_bytes > MAX_COLLECTED_BYTES {
                    return None;
                }
                // Mostly it comes in one piece, which need not be copied.
                if first.is_empty() && more.is_empty() {
                    first = data;
                } else {
                    more.extend_from_slice(&std::mem::take(&mut first));
                    more.extend_from_slice(&data);
                }
            }
            Err(frame) => {
                if let Ok(mut said) = frame.into_trailers() {
                    bill.hear(&said);
                    strip_payment_headers(&mut said);
                    trailers = Some(said);
                }
            }
        }
    }
    let data = if more.is_empty() { first } else { more.freeze() };
    Some(Whole::new(data, trailers))
}
