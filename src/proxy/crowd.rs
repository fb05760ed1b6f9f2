//! How many requests are served at once.
//!
//! **Owns** the count of requests between their head and the head of their answer, those that wait for their channel's turn
//! or for a deposit included. **Promises** that one more than there is room for is told so at once (503, `overloaded`,
//! `Retry-After`), before its body or payment is looked at, costs nothing, and keeps its connection; and that requests that
//! pay find room where others find none: those that pay nothing may fill [`UNPAID_SHARE`] of it and no more. **Does not**
//! count bodies that are on their way out: they are bounded by connections.
//!
//! A quote costs little more than the refusal, but one given now would be paid now, and refused then: so in a crowd there
//! are no quotes either. Quotes themselves make no crowd: they wait for nobody. Free routes do, where the upstream is slow.
//!
//! It also holds back what the gate wants to be held back ([`HoldBack`]), for [`HOLD_BACK`]: a peer that forges vouchers,
//! and waits for each answer, is as slow as that then. What is held back has no place in the crowd, and is never more than
//! [`MAX_HELD_BACK`]; more is answered at once.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::{Layer, Service};

use super::Bounds;
use super::body;
use super::slow::Wanted;
use crate::gate::{Gate, HoldBack, refusal};

/// Of how many parts of the room the requests that pay nothing may fill all but one.
const UNPAID_SHARE: usize = 4;

/// After how many seconds a refused request may come again.
const RETRY_AFTER_S: u64 = 1;

/// How long an answer is held back.
pub(super) const HOLD_BACK: Duration = Duration::from_secs(1);

/// How many answers are held back at once.
pub(super) const MAX_HELD_BACK: usize = 4_096;

/// Bounds the requests that are served at once by what is behind it. All its clones count together.
#[derive(Debug, Clone)]
pub(super) struct Crowd {
    gate: Gate,
    answer_time: Duration,
    inside: Arc<Count>,
    held_back: Arc<Count>,
}

/// How many there are, and may be.
#[derive(Debug)]
struct Count {
    now: AtomicUsize,
    most: usize,
}

/// One of them, until it is dropped.
#[derive(Debug)]
struct Place(Arc<Count>);

impl Count {
    fn up_to(most: usize) -> Arc<Self> {
        Arc::new(Self { now: AtomicUsize::new(0), most })
    }

    /// A place, if there is room for it. The last part is for those that may fill it up, asked only when it comes to that.
    fn enter(self: &Arc<Self>, may_fill_up: impl FnOnce() -> bool) -> Option<Place> {
        let before = self.now.fetch_add(1, Ordering::Relaxed);
        // From here on it is counted, and no longer once this is dropped.
        let place = Place(Arc::clone(self));
        let shared = self.most - self.most / UNPAID_SHARE;
        (before < shared || (before < self.most && may_fill_up())).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Crowd {
    /// Within these bounds. What pays is said by the gate.
    pub(super) fn within(bounds: Bounds, gate: Gate) -> Self {
        let Bounds { max_requests, answer_time, .. } = bounds;
        Self { gate, answer_time, inside: Count::up_to(max_requests), held_back: Count::up_to(MAX_HELD_BACK) }
    }
}

impl<S> Layer<S> for Crowd {
    type Service = InCrowd<S>;

    fn layer(&self, inner: S) -> InCrowd<S> {
        InCrowd { crowd: self.clone(), inner }
    }
}

/// A service that is called by so many requests at once.
#[derive(Debug, Clone)]
pub(super) struct InCrowd<S> {
    crowd: Crowd,
    inner: S,
}

impl<S, B> Service<Request<Incoming>> for InCrowd<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<Either<Wanted<B>, Full<Bytes>>>;
    type Error = Infallible;
    type Future = Served<S::Future, B>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let Crowd { gate, answer_time, inside, held_back } = &self.crowd;
        // On HTTP/1 the connection is watched; here it is well while one of its streams stands still.
        let watch = (request.version() == Version::HTTP_2).then_some(*answer_time);
        match inside.enter(|| gate.is_paying(&request)) {
            Some(place) => {
                let (place, held_back) = (Some(place), Arc::clone(held_back));
                Served::Serving { answer: self.inner.call(request), place, held_back, watch }
            }
            None => {
                // Its client may be writing still, and wants to use the connection again.
                drop(body::guard(request, Duration::MAX));
                Served::Refused { answer: Some(overloaded()) }
            }
        }
    }
}

fn overloaded() -> Response<Bytes> {
    let message = "too many requests are being served; nothing was charged, and the same payment is good again";
    let mut response = refusal(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    response
}

pin_project! {
    /// The answer to a request that has its place in the crowd, or has none.
    #[project = Projection]
    pub(super) enum Served<F, B> {
        Serving { #[pin] answer: F, place: Option<Place>, held_back: Arc<Count>, watch: Option<Duration> },
        HeldBack { answer: Option<Response<B>>, time: Pin<Box<Sleep>>, place: Place },
        Refused { answer: Option<Response<Bytes>> },
    }
}

impl<F, B> Future for Served<F, B>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<Either<Wanted<B>, Full<Bytes>>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let next = match self.as_mut().project() {
                Projection::Serving { answer, place, held_back, watch } => {
                    let Ok(answer) = ready!(answer.poll(context));
                    drop(place.take());
                    let hold_back = answer.extensions().get::<HoldBack>().is_some();
                    match hold_back.then(|| held_back.enter(|| true)).flatten() {
                        Some(place) => {
                            let time = Box::pin(tokio::time::sleep(HOLD_BACK));
                            Self::HeldBack { answer: Some(answer), time, place }
                        }
                        None => {
                            let wanted = |body| match *watch {
                                Some(limit) => Wanted::within(body, limit),
                                None => Wanted::unwatched(body),
                            };
                            return Poll::Ready(Ok(answer.map(wanted).map(Either::Left)));
                        }
                    }
                }
                Projection::HeldBack { answer, time, .. } => {
                    ready!(time.as_mut().poll(context));
                    let answer = answer.take().expect("a future that has ended is not polled again");
                    return Poll::Ready(Ok(answer.map(Wanted::unwatched).map(Either::Left)));
                }
                Projection::Refused { answer } => {
                    let answer = answer.take().expect("a future that has ended is not polled again");
                    return Poll::Ready(Ok(answer.map(|body| Either::Right(Full::new(body)))));
                }
            };
            self.set(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(count: &Arc<Count>, paying: bool) -> Vec<Place> {
        std::iter::from_fn(|| count.enter(|| paying)).collect()
    }

    #[test]
    fn who_pays_nothing_leaves_a_quarter_of_the_room() {
        for (most, unpaid) in [(1, 1), (2, 2), (3, 3), (4, 3), (8, 6), (4_096, 3_072)] {
            let count = Count::up_to(most);
            let free = fill(&count, false);
            let paid = fill(&count, true);
            assert_eq!((free.len(), paid.len()), (unpaid, most - unpaid));
            assert!(count.enter(|| true).is_none(), "it is full");
        }
    }

    #[test]
    fn who_is_not_let_in_is_not_counted_and_a_place_is_given_back() {
        let count = Count::up_to(8);
        let mut paid = fill(&count, true);
        assert_eq!(paid.len(), 8);
        for _ in 0..100 {
            assert!(count.enter(|| true).is_none());
        }
        assert_eq!(count.now.load(Ordering::Relaxed), 8);
        paid.pop();
        assert!(count.enter(|| false).is_none(), "that one is for somebody who pays");
        assert!(count.enter(|| true).is_some());
        drop(paid);
        assert_eq!(count.now.load(Ordering::Relaxed), 0);
        assert_eq!(fill(&count, false).len(), 6);
    }
}
