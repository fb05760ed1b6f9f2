//! Payments that may come again.
//!
//! **Owns** the order: what is known of such a payment goes before its verification, because it was spent the first time.
//! **Promises** that it is served once, and that the work for it is seen to its end. **Does not** keep answers
//! ([`super::replay`] does), nor judge or charge; that is done as for any other.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::BoxError;

use super::Gate;
use super::admit::{Admission, Admitted, Answered};
use super::answer::Refusal;
use super::body::AnswerBody;
use super::body::Whole;
use super::policy::Listing;
use super::replay::{Again, Content, MAX_WAIT, Serving, Slip};
use super::service::{Sale, Sent, Visit};
use crate::protocol::Code;
use crate::protocol::x402::Payment;

/// What became of a payment that may come again.
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one, and must not cost an allocation")]
pub(super) enum Once {
    /// It was judged; and its answer is kept, if it may come again.
    New(Admission, Option<Serving>),
    /// It had this answer before.
    Again(Box<Response<Whole>>),
}

impl Gate {
    /// Judges a payment, unless it has its answer already.
    async fn admit_once<B: Content>(
        &self,
        answered: Answered<'_>,
        payment: Payment<'_>,
        sent: &Sent,
        request: &mut Request<B>,
        Visit { peer, id, .. }: Visit<'_>,
    ) -> Result<Once, Refusal> {
        let slip = match sent {
            Sent::Payment(header) => self.replays.slip(answered.listing.identifiers, &payment, header, request)?,
            _ => None,
        };
        let Some(slip) = slip else {
            return Ok(Once::New(self.admit(answered, payment, peer, id).await?, None));
        };
        let longest = Duration::from_secs(answered.offered.tender.terms.max_timeout_s);
        // Its bytes, which none but its sender has, are what entitles to the answer.
        let was_read = match self.again(longest, &slip, request).await? {
            Again::Answer(answer) => return Ok(Once::Again(answer)),
            again => matches!(again, Again::Read),
        };
        match self.admit(answered, payment, peer, id).await {
            // Half a request cannot be served; and it was found out that the payment is spent.
            Ok(Admission::Serve(_)) if was_read => Err(Code::ChannelBusy.into()),
            Ok(Admission::Serve(admitted)) => {
                let serving = self.replays.begin(slip)?;
                request.body_mut().overheard(&serving.heard());
                Ok(Once::New(Admission::Serve(admitted), Some(serving)))
            }
            Ok(refunded @ Admission::Refunded { .. }) => Ok(Once::New(refunded, None)),
            // The same payment may have come side by side, and this one was the second.
            Err(refusal) if !was_read => match self.again(longest, &slip, request).await? {
                Again::Answer(answer) => Ok(Once::Again(answer)),
                Again::Anew | Again::Read => Err(refusal),
            },
            Err(refusal) => Err(refusal),
        }
    }

    /// Judges a payment at the till of the offer that it answers, if there is one.
    pub(super) async fn admit_or_recall<B: Content>(
        &self,
        listing: &Listing,
        answered: Option<(&Self, Answered<'_>)>,
        payment: Payment<'_>,
        sent: &Sent,
        request: &mut Request<B>,
        visit: Visit<'_>,
    ) -> Result<Once, Refusal> {
        match answered {
            Some((till, answered)) => till.admit_once(answered, payment, sent, request, visit).await,
            None => self.answered_before(listing, payment, sent, request).await,
        }
    }

    /// What a payment gets whose offer does not hold any more: the answer it had, if it came before, and no other.
    async fn answered_before<B: Content>(
        &self,
        listing: &Listing,
        payment: Payment<'_>,
        sent: &Sent,
        request: &mut Request<B>,
    ) -> Result<Once, Refusal> {
        let slip = match sent {
            // What is wrong with its identifier is of no matter.
            Sent::Payment(header) => self.replays.slip(listing.identifiers, &payment, header, request).ok().flatten(),
            _ => None,
        };
        if let Some(slip) = slip
            && let Again::Answer(answer) = self.again(MAX_WAIT, &slip, request).await?
        {
            return Ok(Once::Again(answer));
        }
        Err(Code::NoMatchingRequirements.into())
    }

    /// Whether a payment came before, and what it gets then.
    async fn again<B: Content>(
        &self,
        longest: Duration,
        slip: &Slip,
        request: &mut Request<B>,
    ) -> Result<Again, Refusal> {
        match self.replays.find(slip) {
            Some(entry) => entry.again(slip, request, longest).await,
            None => Ok(Again::Anew),
        }
    }

    /// Serves a request whoever waits for it, and keeps the answer.
    pub(super) async fn serve_to_the_end<B, R, E, F>(
        &self,
        sale: Sale<'_>,
        request: Request<B>,
        Visit { id, draft, .. }: Visit<'_>,
        inner: impl FnOnce(Request<B>) -> F + Send + 'static,
        admitted: Admitted,
        serving: Serving,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
        E: Send + 'static,
        F: Future<Output = Result<Response<R>, E>> + Send,
    {
        // What it needs is its own, because it may outlive the connection.
        let (gate, sale, id) = (self.clone(), sale.to_own(), id.map(str::to_owned));
        let rule = sale.status_rule().clone();
        let work = async move { gate.serve_paid(sale.as_sale(), request, id.as_deref(), inner, admitted, draft).await };
        Ok(serving.see_to_it(rule, work).await?.map(AnswerBody::kept))
    }
}
