//! Payments that may come again.
//!
//! **Owns** the order: what is known of such a payment goes before its verification, because it was spent the first time.
//! **Promises** that it is served once, and that the work for it is seen to its end. **Does not** keep answers
//! ([`super::replay`] does), nor judge or charge; that is done as for any other.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;

use super::admit::{Admission, Admitted};
use super::answer::Refusal;
use super::body::AnswerBody;
use super::policy::{Listing, Policy};
use super::replay::{Again, Content, Serving, Slip, Tail};
use super::service::Sent;
use super::{Gate, Peer};
use crate::protocol::Code;
use crate::protocol::x402::Payment;

/// What became of a payment that may come again.
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one, and must not cost an allocation")]
pub(super) enum Once {
    /// It was judged; and its answer is kept, if it may come again.
    New(Admission, Option<Serving>),
    /// It had this answer before.
    Again(Box<Response<Tail>>),
}

impl Gate {
    /// Judges a payment, unless it has its answer already.
    #[expect(clippy::too_many_arguments, reason = "what a request has at hand; a struct would only rename it")]
    pub(super) async fn admit_once<B: Content>(
        &self,
        policy: &Policy,
        offer: Option<&Listing>,
        payment: Payment<'_>,
        sent: &Sent,
        request: &mut Request<B>,
        peer: Option<Peer>,
        id: Option<&str>,
    ) -> Result<Once, Refusal> {
        let slip = match (sent, offer) {
            (Sent::Payment(header), Some(listing)) => {
                self.replays.slip(listing.identifiers, &payment, header, request)?
            }
            _ => None,
        };
        let Some(slip) = slip else {
            return Ok(Once::New(self.admit(policy, offer, payment, peer, id).await?, None));
        };
        // Its bytes, which none but its sender has, are what entitles to the answer.
        let was_read = match self.again(policy, &slip, request).await? {
            Again::Answer(answer) => return Ok(Once::Again(answer)),
            again => matches!(again, Again::Read),
        };
        match self.admit(policy, offer, payment, peer, id).await {
            // Half a request cannot be served; and it was found out that the payment is spent.
            Ok(Admission::Serve(_)) if was_read => Err(Code::ChannelBusy.into()),
            Ok(Admission::Serve(admitted)) => {
                let serving = self.replays.begin(slip)?;
                request.body_mut().overheard(&serving.heard());
                Ok(Once::New(Admission::Serve(admitted), Some(serving)))
            }
            Ok(refunded @ Admission::Refunded { .. }) => Ok(Once::New(refunded, None)),
            // The same payment may have come side by side, and this one was the second.
            Err(refusal) if !was_read => match self.again(policy, &slip, request).await? {
                Again::Answer(answer) => Ok(Once::Again(answer)),
                Again::Anew | Again::Read => Err(refusal),
            },
            Err(refusal) => Err(refusal),
        }
    }

    /// Whether a payment came before, and what it gets then.
    async fn again<B: Content>(
        &self,
        policy: &Policy,
        slip: &Slip,
        request: &mut Request<B>,
    ) -> Result<Again, Refusal> {
        match self.replays.find(slip) {
            Some(entry) => entry.again(slip, request, Duration::from_secs(policy.terms().max_timeout_s)).await,
            None => Ok(Again::Anew),
        }
    }

    /// Serves a request whoever waits for it, and keeps the answer.
    pub(super) async fn serve_to_the_end<B, R, E, F>(
        &self,
        policy: &Arc<Policy>,
        request: Request<B>,
        id: Option<&str>,
        inner: impl FnOnce(Request<B>) -> F + Send + 'static,
        admitted: Admitted,
        serving: Serving,
    ) -> Result<Response<AnswerBody<R>>, E>
    where
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        E: Send + 'static,
        F: Future<Output = Result<Response<R>, E>> + Send,
    {
        // What it needs is its own, because it may outlive the connection.
        let (gate, policy, id) = (self.clone(), Arc::clone(policy), id.map(str::to_owned));
        let work = async move { gate.serve_paid(&policy, request, id.as_deref(), inner, admitted).await };
        Ok(serving.see_to_it(work).await?.map(AnswerBody::kept))
    }
}
