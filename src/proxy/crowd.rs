//! How many requests are served at once.
//!
//! **Owns** the count of requests between their head and the head of their answer, those that wait for their channel's turn
//! or for a deposit included. **Promises** that one more than there is room for is told so at once (503, `overloaded`,
//! `Retry-After`), before its body or payment is looked at, costs nothing, and keeps its connection; and that requests that
//! pay find room where others find none: those that pay nothing may fill [`UNPAID_SHARE`] of it and no more; and that one
//! peer, whether it pays or not, has its share of it ([`Shares`]) and leaves the rest to others. **Does not** count bodies
//! that are on their way out: they are bounded by connections.
//!
//! A quote costs little more than the refusal, but one given now would be paid now, and refused then: so in a crowd there
//! are no quotes either. Quotes themselves make no crowd: they wait for nobody. Free routes do, where the upstream is slow.
//!
//! It also holds back what the gate wants to be held back ([`HoldBack`](crate::gate::HoldBack)), for [`HOLD_BACK`]: a
//! peer that forges vouchers, and waits for each answer, is as slow as that then. What is held back has no place in the
//! crowd, and is never more than [`MAX_HELD_BACK`]; more is answered at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Response, StatusCode};

use super::Caller;
use super::shares::{Account, Shares};
use crate::gate::refusal;

/// Of how many parts of the room the requests that pay nothing may fill all but one.
const UNPAID_SHARE: usize = 4;

/// After how many seconds a refused request may come again.
const RETRY_AFTER_S: u64 = 1;

/// How long an answer is held back.
const HOLD_BACK: Duration = Duration::from_secs(1);

/// How many answers are held back at once.
const MAX_HELD_BACK: usize = 4_096;

/// Bounds the requests that are served at once. All its clones count together.
#[derive(Debug, Clone)]
pub(super) struct Crowd {
    inside: Arc<Count>,
    shares: Arc<Shares>,
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
struct Place<'a>(&'a Count);

/// A request's place, and a part of its peer's share, until it is dropped.
#[derive(Debug)]
pub(super) struct Admitted<'a> {
    _place: Place<'a>,
    shares: &'a Shares,
    account: Account,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.shares.take_back(self.account, 1);
    }
}

impl Count {
    fn up_to(most: usize) -> Self {
        Self { now: AtomicUsize::new(0), most }
    }

    /// A place, if there is room for it. The last part is for those that may fill it up, asked only when it comes to that.
    fn enter(&self, may_fill_up: impl FnOnce() -> bool) -> Option<Place<'_>> {
        let before = self.now.fetch_add(1, Ordering::Relaxed);
        // From here on it is counted, and no longer once this is dropped.
        let place = Place(self);
        let shared = self.most - self.most / UNPAID_SHARE;
        (before < shared || (before < self.most && may_fill_up())).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Crowd {
    /// So many at once.
    pub(super) fn up_to(max_requests: usize) -> Self {
        let (inside, held_back) = (Arc::new(Count::up_to(max_requests)), Arc::new(Count::up_to(MAX_HELD_BACK)));
        Self { inside, shares: Arc::new(Shares::of(max_requests)), held_back }
    }

    /// A place for a request until the head of its answer leaves, if there is room for it and its peer has not its share
    /// already. `is_paying` is asked only where there is none for others.
    pub(super) fn enter(&self, caller: &Caller, is_paying: impl FnOnce() -> bool) -> Option<Admitted<'_>> {
        let place = self.inside.enter(is_paying)?;
        let (shares, account) = (&*self.shares, self.shares.account(caller));
        // Not before it is added: what is dropped is taken back.
        shares.add(account, 1).then(|| Admitted { _place: place, shares, account })
    }

    /// Waits before an answer that is to be held back, unless too many wait already.
    pub(super) async fn hold_back(&self) {
        if let Some(_place) = self.held_back.enter(|| true) {
            tokio::time::sleep(HOLD_BACK).await;
        }
    }
}

/// The answer to a request there is no room for.
pub(super) fn overloaded() -> Response<Bytes> {
    let message = "too many requests are being served; nothing was charged, and the same payment is good again";
    let mut response = refusal(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(count: &Count, paying: bool) -> Vec<Place<'_>> {
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

    #[test]
    fn one_peer_has_a_quarter_and_leaves_the_rest_to_others() {
        let crowd = Crowd::up_to(16);
        let caller = |text: &str| Caller::new(text.parse().unwrap());
        let (one, other, here) = (caller("192.0.2.1:1"), caller("192.0.2.2:1"), caller("127.0.0.1:1"));
        let mut its: Vec<_> = std::iter::from_fn(|| crowd.enter(&one, || true)).collect();
        assert_eq!(its.len(), 4);
        for _ in 0..100 {
            assert!(crowd.enter(&one, || true).is_none(), "it is refused, and not counted");
        }
        its.pop();
        its.extend(crowd.enter(&one, || false));
        assert_eq!((its.len(), crowd.inside.now.load(Ordering::Relaxed)), (4, 4));
        let of_many: Vec<_> = std::iter::from_fn(|| crowd.enter(&here, || true)).collect();
        assert_eq!(of_many.len(), 12, "who stands for many has all the rest");
        drop((its, of_many));
        assert!(crowd.enter(&one, || false).is_some() && crowd.enter(&other, || false).is_some());
        assert_eq!(crowd.inside.now.load(Ordering::Relaxed), 0);
    }
}
