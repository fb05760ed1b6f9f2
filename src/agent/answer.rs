//! What a payment brought.
//!
//! **Owns** the answer as the caller sees it: the server's head and streaming body, and what was paid for it. **Does
//! not** hold the body back: read it with [`AnswerBody::chunk`], or as an [`http_body::Body`].

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use super::AgentError;
use super::judge::ReceiptFault;
use super::late::Late;
use crate::protocol::x402::Receipt;
use crate::protocol::{Amount, ChannelId, Hash};

/// A server's answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status and headers, with the receipt still in them.
    pub head: http::response::Parts,
    /// Its body, as it comes.
    pub body: AnswerBody,
    /// What was paid, as far as it was known with the head; `None` if nothing was asked, or the server failed and confirmed
    /// nothing. What a stream cost is known at its end: [`AnswerBody::late_payment`].
    pub payment: Option<PaymentMade>,
    /// How many requests it took, the unpaid one included.
    pub attempts: u32,
}

impl Answer {
    /// The status.
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Whether the status is 2xx.
    pub fn is_success(&self) -> bool {
        self.head.status.is_success()
    }

    /// What was charged, as far as it is believed; zero where nothing was.
    pub fn charged(&self) -> Amount {
        self.payment.as_ref().map(|payment| payment.charged).unwrap_or_default()
    }

    /// The whole body, if it is at most `limit` bytes long.
    ///
    /// # Errors
    /// [`AgentError::BodyTooLarge`], or [`AgentError::Http`] if the server stops in the middle.
    pub async fn bytes(self, limit: usize) -> Result<Bytes, AgentError> {
        match Limited::new(self.body, limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(AgentError::BodyTooLarge { limit }),
            Err(error) => Err(AgentError::Http(error)),
        }
    }
}

/// A payment, as our books have it.
#[derive(Debug, Clone)]
pub struct PaymentMade {
    /// What the books count as charged, in atomic units. Zero if the receipt was not believed; the next payment on the
    /// channel then settles the question.
    pub charged: Amount,
    /// What was deposited and is said to have landed, in atomic units.
    pub deposited: Option<Amount>,
    /// The transaction of the deposit.
    pub transaction: Option<Hash>,
    /// The channel that paid.
    pub channel: ChannelId,
    /// Its chain, as `eip155:` and the id.
    pub network: String,
    /// Decimal places of its token, to show amounts as dollars.
    pub decimals: u8,
    /// What is left on the channel, in atomic units.
    pub remaining: Amount,
    /// The receipt as it came. Untrusted.
    pub receipt: Option<Receipt>,
    /// What of the receipt was not believed.
    pub doubt: Option<ReceiptFault>,
}

impl fmt::Display for PaymentMade {
    /// One line for a person: `charged $0.002, deposited $0.01, $0.008 left on channel 0x…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "charged {}", self.charged.to_price(self.decimals))?;
        if let Some(deposited) = self.deposited {
            write!(f, ", deposited {}", deposited.to_price(self.decimals))?;
        }
        write!(f, ", {} left on channel {}", self.remaining.to_price(self.decimals), self.channel)?;
        if let Some(doubt) = &self.doubt {
            write!(f, " (not certain: {doubt})")?;
        }
        Ok(())
    }
}

/// The body of an answer. Dropping it closes the connection if it is unread; what was charged stays charged. Where the
/// receipt comes at the end, the channel is booked before the end is given out.
pub struct AnswerBody {
    body: Incoming,
    receipt: LateReceipt,
}

/// A receipt that comes after the body.
enum LateReceipt {
    None,
    Expected(Box<Late>),
    /// It came with these trailers, and is being booked.
    Booking(Pin<Box<dyn Future<Output = Result<PaymentMade, AgentError>> + Send>>, HeaderMap),
    Booked(Box<PaymentMade>),
}

impl AnswerBody {
    pub(super) fn new(body: Incoming, late: Option<Box<Late>>) -> Self {
        Self { body, receipt: late.map_or(LateReceipt::None, LateReceipt::Expected) }
    }

    /// What was paid, where the server said so at the end of the body and that was read.
    pub fn late_payment(&self) -> Option<&PaymentMade> {
        if let LateReceipt::Booked(payment) = &self.receipt { Some(payment) } else { None }
    }

    /// The next piece, or `None` at the end. Trailers are skipped.
    ///
    /// # Cancellation
    /// Safe: a piece is lost only if it was returned.
    ///
    /// # Errors
    /// When the server stops in the middle.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, AgentError> {
        while let Some(frame) = self.frame().await {
            match frame.map_err(|error| AgentError::Http(Box::new(error)))?.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            }
        }
        Ok(None)
    }
}

impl fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerBody").field("body", &self.body).finish_non_exhaustive()
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let LateReceipt::Booking(booking, _) = &mut self.receipt {
            let booked = ready!(booking.as_mut().poll(cx));
            let booked = booked.inspect_err(|error| tracing::warn!(%error, "a receipt that came late was not booked"));
            let next = booked.map_or(LateReceipt::None, |payment| LateReceipt::Booked(Box::new(payment)));
            let LateReceipt::Booking(_, trailers) = std::mem::replace(&mut self.receipt, next) else {
                return Poll::Ready(None);
            };
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let trailers = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.trailers_ref().cloned());
        let Some(trailers) = trailers else { return Poll::Ready(frame) };
        match std::mem::replace(&mut self.receipt, LateReceipt::None) {
            LateReceipt::Expected(late) => {
                self.receipt = LateReceipt::Booking(Box::pin(late.hear(trailers.clone())), trailers);
                self.poll_frame(cx)
            }
            other => {
                self.receipt = other;
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && !matches!(self.receipt, LateReceipt::Booking(..))
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
