//! What a long answer cost, where its server says so after it.
//!
//! **Owns** the receipt that comes in the trailers of an answer. **Promises** that it is believed as far as one in the head
//! is, and moves the books only if nobody paid from the channel since: whoever did was told by the server where the channel
//! stands. Until it comes, and if it never does, the payment counts as if all that was signed for were spent.

use std::sync::Arc;

use http::header::TRAILER;
use http::{HeaderMap, HeaderValue};

use super::ahead::Lane;
use super::answer::PaymentMade;
use super::book::{Book, Record};
use super::budget::Dollars;
use super::error::AgentError;
use super::judge::{Asked, judge_receipt};
use super::on_disk;
use super::pay::Slot;
use super::spending::Spending;
use crate::listed;
use crate::protocol::Amount;
use crate::protocol::x402::PAYMENT_RESPONSE;

/// A payment whose receipt is still to come.
#[derive(Debug)]
pub(super) struct Late {
    /// What was offered.
    pub(super) asked: Amount,
    /// As it was known when the head had come.
    pub(super) payment: PaymentMade,
    /// Where it is booked; nowhere, where it was signed ahead: others were on their way beside it.
    pub(super) books: Option<Books>,
}

/// What is needed to book it.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) lane: Arc<Lane>,
    pub(super) book: Book,
    pub(super) spending: Arc<Spending>,
    /// The channel as it was written down when the head of the answer had come.
    pub(super) sent: Record,
    /// The ceiling that was signed for it.
    pub(super) max: Amount,
    /// Up to which sum the budget had counted the channel before.
    pub(super) counted: Amount,
    /// When it was sent, days since 1970.
    pub(super) day: u64,
}

/// Whether a server says that its receipt comes at the end.
pub(super) fn comes_late(head: &HeaderMap) -> bool {
    listed::has(head, TRAILER, PAYMENT_RESPONSE)
}

impl Late {
    /// The answer ended with these trailers. What is known of its payment now.
    ///
    /// # Cancellation
    /// As if the trailers had not come.
    pub(super) async fn hear(self: Box<Self>, trailers: HeaderMap) -> Result<PaymentMade, AgentError> {
        let Self { asked, mut payment, books } = *self;
        let receipt = trailers.get(PAYMENT_RESPONSE).map(HeaderValue::as_bytes);
        let verdict = judge_receipt(receipt, Asked { amount: asked, deposit: None });
        (payment.receipt, payment.doubt) = (verdict.receipt, verdict.doubt);
        if let Some(charged) = verdict.charged {
            payment.charged = charged;
            let booked = match books {
                Some(books) => books.add(charged).await?,
                None => None,
            };
            payment.remaining = booked.map_or(payment.remaining, |record| record.remaining());
        }
        Ok(payment)
    }
}

impl Books {
    /// Books what it cost. Nothing, if somebody paid from the channel since.
    async fn add(self, charged: Amount) -> Result<Option<Record>, AgentError> {
        let Self { lane, book, spending, sent, max, counted, day } = self;
        let alone = lane.alone().await;
        let channel = sent.channel;
        let known = on_disk(&book, move |book| book.load(channel)).await?;
        let Some(mut record) = known.filter(|record| *record == sent) else { return Ok(None) };
        record.charged = record.charged.checked_add(charged).ok_or(AgentError::Overflow)?;
        record.top = max;
        record.spent = if record.spent > record.charged { max } else { Amount::ZERO };
        record.counted = counted.max(record.charged);
        let too_much = Dollars::of(sent.counted.saturating_sub(record.counted), record.decimals);
        // The channel first: should we end between the two, the day counts too much and not too little.
        let Slot { record, .. } = Slot::new(record, alone).save(&book).await?;
        spending.take_back(&record.host, too_much, day);
        spending.save(&book).await?;
        Ok(Some(record))
    }
}
