//! Offers that were replaced and still hold.
//!
//! **Owns** the price lists that were in force until a moment ago. **Promises** that an agent which was quoted a price can
//! pay it for the whole grace after a change: its payment is judged, held, corrected and charged by the list its quote
//! came from; that a change of the list never costs what a list that did not change would not; and bounded memory,
//! however often the list is changed. **Does not** bring back what is not sold any more: a path that the list in force does
//! not sell is answered by the list in force, and whoever it does not let pay does not pay by a former one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::Request;

use super::look::Looked;
use super::matching::{BodySeen, Doubt};
use super::policy::{Asked, Listing, Policy, Verdict};
use crate::protocol::x402::{Action, Echo, PAYMENT_SIGNATURE, Payment};

/// How many former price lists are kept, at most; those that say the same are one. The oldest is forgotten for one more.
pub const MAX_FORMER: usize = 256;

/// How many routes the former price lists may have together. A list keeps the routes that did not change in common with
/// the next one, but who changes all of a thousand routes again and again should not fill the memory.
const MAX_FORMER_ROUTES: usize = 32_768;

/// In how many ways a body is read for the former lists of one path, at most. Those that look at something else again do
/// not hold for it.
const MAX_READINGS: usize = 8;

/// A list that was in force, and holds until a moment.
#[derive(Debug, Clone)]
struct FormerList {
    policy: Arc<Policy>,
    until: Instant,
}

/// The lists that were replaced and still hold, the latest first.
#[derive(Debug, Clone, Default)]
struct Lists {
    lists: Vec<FormerList>,
    /// How long a quote holds once its list was replaced, or its hour of the day is over.
    grace: Duration,
}

/// What was offered until a moment ago. One for all clones of a gate.
#[derive(Debug, Default)]
pub(super) struct Former {
    lists: ArcSwap<Lists>,
    replacing: Mutex<()>,
}

impl Former {
    /// For as long as this lives, nobody else replaces the list in force.
    pub(super) fn replacing(&self) -> MutexGuard<'_, ()> {
        self.replacing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long quotes hold from now on; those of lists that were replaced already hold as long as they were to.
    pub(super) fn set_grace(&self, grace: Duration) {
        let _alone = self.replacing();
        self.lists.store(Arc::new(Lists { grace, ..Lists::clone(&self.lists.load()) }));
    }

    /// Keeps the list that is about to be replaced. To be done before it is: a request that finds the next list in force
    /// must find this one here.
    pub(super) fn keep(&self, replaced: &Arc<Policy>, next: &Policy, grace: Duration, now: Instant) {
        self.lists.store(Arc::new(self.lists.load().with(replaced, next, grace, now)));
    }

    /// How many lists are kept; some of them may be over.
    pub(super) fn len(&self) -> usize {
        self.lists.load().lists.len()
    }

    /// Whether a list that still holds has to look at the body of a request whose payment may answer it.
    pub(super) fn wants_body<B>(&self, request: &Request<B>) -> bool {
        let lists = self.lists.load();
        if lists.lists.is_empty() || !request.headers().contains_key(PAYMENT_SIGNATURE) {
            return false;
        }
        let (asked, now) = (Asked::of(request), Instant::now());
        let mut holding = lists.lists.iter().filter(|list| list.until > now && list.policy.needs_bodies());
        holding.any(|list| list.policy.body_looks(&asked).is_some())
    }

    /// The list whose offer a payment answers; nothing if it answers the list in force, or none. `verdict` is what the list
    /// in force says of the request.
    pub(super) fn offering(
        &self,
        current: &Arc<Policy>,
        verdict: &Verdict<'_>,
        asked: &Asked<'_>,
        looked: Option<&Looked>,
        payment: &Payment<'_>,
    ) -> Option<FormerOffer> {
        // As nearly always: the payment was compared with the offer in force while it was read.
        let Echo::Other(_) = payment.accepted else { return None };
        // What only watches charges nobody, and quotes nobody a price.
        let may_be_charged = |listing: &Listing| !listing.route.is_shadow() || is_refund(payment);
        if offered(current, verdict, payment)
            .is_none_or(|listing| answers(payment, listing) || !may_be_charged(listing))
        {
            return None;
        }
        let lists = self.lists.load();
        let now = Instant::now();
        let former = lists.lists.iter().filter(|list| list.until > now).map(|list| &list.policy);
        let mut bodies = Bodies { asked, looked, seen: Vec::new() };
        for policy in std::iter::once(current).chain(former) {
            let body = bodies.seen_for(policy, current);
            // The hour of the day may have changed the price where the list did not.
            let mut lately = policy.judge_lately(asked, body.as_ref(), lists.grace.as_secs());
            let made = lately.find(|(_, verdict)| {
                let offered = offered(policy, verdict, payment);
                offered.is_some_and(|listing| answers(payment, listing) && may_be_charged(listing))
            });
            if let Some((at, _)) = made {
                drop(lately);
                return Some(FormerOffer { policy: Arc::clone(policy), at, body });
            }
        }
        None
    }
}

/// An offer that holds although another one is in force.
#[derive(Debug)]
pub(super) struct FormerOffer {
    /// The list that made it.
    pub(super) policy: Arc<Policy>,
    /// When, Unix seconds.
    pub(super) at: u64,
    /// What that list sees of the request's body.
    pub(super) body: Option<Result<BodySeen, Doubt>>,
}

/// What each list sees of a request's body: it is read once for all that look at the same.
struct Bodies<'a> {
    asked: &'a Asked<'a>,
    looked: Option<&'a Looked>,
    seen: Vec<(Arc<Policy>, Result<BodySeen, Doubt>)>,
}

impl Bodies<'_> {
    fn seen_for(&mut self, policy: &Arc<Policy>, current: &Arc<Policy>) -> Option<Result<BodySeen, Doubt>> {
        let looked = self.looked?;
        if Arc::ptr_eq(policy, current) {
            return looked.body.clone();
        }
        let looks = policy.body_looks(self.asked)?;
        let known = self.seen.iter().find(|(other, _)| other.body_looks(self.asked) == Some(looks));
        if let Some((_, seen)) = known {
            return Some(seen.clone());
        }
        // A body may be large, and whoever sends it has not paid yet.
        if self.seen.len() >= MAX_READINGS {
            return None;
        }
        let seen = looked.seen_by(looks, self.asked.headers);
        self.seen.push((Arc::clone(policy), seen.clone()));
        Some(seen)
    }
}

impl Lists {
    fn with(&self, replaced: &Arc<Policy>, next: &Policy, grace: Duration, now: Instant) -> Self {
        // Of those that say the same one is kept, which holds longest. That of the next list stays too: a request that
        // found the replaced one in force may bring its quote.
        let is_other = |list: &FormerList| list.policy.digest() != replaced.digest();
        let lasting = |list: &FormerList| {
            let until = if list.policy.digest() == next.digest() { list.until.max(now + grace) } else { list.until };
            FormerList { until, ..list.clone() }
        };
        let kept = self.lists.iter().filter(|list| list.until > now && is_other(list)).map(lasting);
        let latest = FormerList { policy: Arc::clone(replaced), until: now + grace };
        let latest = Some(latest).filter(|_| !grace.is_zero() && replaced.digest() != next.digest());
        let mut routes = 0usize;
        let lists = latest.into_iter().chain(kept).take(MAX_FORMER).take_while(|list| {
            let first = routes == 0;
            routes = routes.saturating_add(list.policy.routes().count());
            first || routes <= MAX_FORMER_ROUTES
        });
        Self { lists: lists.collect(), grace }
    }
}

/// What a list offers for a request; for a refund, whatever it offers at all.
fn offered<'p>(policy: &'p Policy, verdict: &Verdict<'p>, payment: &Payment<'_>) -> Option<&'p Listing> {
    match verdict {
        Verdict::Paid(listing) => Some(listing),
        _ if is_refund(payment) => policy.first_paid(),
        _ => None,
    }
}

fn answers(payment: &Payment<'_>, listing: &Listing) -> bool {
    listing.answered(&payment.accepted, is_refund(payment)).is_some()
}

fn is_refund(payment: &Payment<'_>) -> bool {
    matches!(payment.action, Action::Refund(_))
}

#[cfg(test)]
mod tests {
    use super::super::path::PathPattern;
    use super::super::policy::{Price, Route, Terms};
    use super::*;
    use crate::protocol::Amount;

    const GRACE: Duration = Duration::from_secs(30);

    fn list(prices: &[u128]) -> Arc<Policy> {
        let terms = Terms::sample();
        let route = |(index, price): (usize, &u128)| {
            Route::new(PathPattern::parse(&format!("/{index}")).unwrap(), Price::Fixed(Amount::new(*price)))
        };
        Arc::new(Policy::new(terms, "https://api.example", prices.iter().enumerate().map(route).collect()).unwrap())
    }

    fn digests(lists: &Lists) -> Vec<String> {
        lists.lists.iter().map(|list| list.policy.digest().to_string()).collect()
    }

    #[test]
    fn a_list_holds_for_the_grace_after_it_was_replaced_and_not_longer() {
        let (a, b, c) = (list(&[1]), list(&[2]), list(&[3]));
        let begun = Instant::now();
        let lists = Lists::default().with(&a, &b, GRACE, begun);
        assert_eq!(lists.lists.first().unwrap().until, begun + GRACE);
        let just = lists.with(&b, &c, GRACE, begun + GRACE - Duration::from_millis(1));
        assert_eq!(digests(&just), [b.digest(), a.digest()]);
        let over = lists.with(&b, &c, GRACE, begun + GRACE);
        assert_eq!(digests(&over), [b.digest()]);
        assert!(Lists::default().with(&a, &b, Duration::ZERO, begun).lists.is_empty(), "no grace is none");
    }

    #[test]
    fn what_comes_back_and_goes_again_is_kept_once() {
        let (a, b) = (list(&[1]), list(&[2]));
        let mut lists = Lists::default();
        let begun = Instant::now();
        for turn in 0..1_000 {
            let (from, to) = if turn % 2 == 0 { (&a, &b) } else { (&b, &a) };
            lists = lists.with(from, to, GRACE, begun);
            // A request that found the one in force may bring a quote of the other, which is in force when it is looked for.
            let both = [from.digest(), to.digest()];
            assert_eq!(digests(&lists), both.get(..2.min(turn + 1)).unwrap(), "turn {turn}");
        }
        assert_eq!(digests(&lists.with(&a, &a, GRACE, begun)), [b.digest()], "nothing new is nothing former");
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_list_is_forgotten_first() {
        let begun = Instant::now();
        let all: Vec<_> = (0..=300).map(|price| list(&[price + 1])).collect();
        let lists = all.windows(2).fold(Lists::default(), |lists, pair| lists.with(&pair[0], &pair[1], GRACE, begun));
        assert_eq!(lists.lists.len(), MAX_FORMER);
        assert_eq!(lists.lists.first().unwrap().policy.digest(), all[299].digest());
        let wide: Vec<_> = (0..40).map(|price| list(&[price + 1; 1_000])).collect();
        let lists = wide.windows(2).fold(Lists::default(), |lists, pair| lists.with(&pair[0], &pair[1], GRACE, begun));
        assert_eq!(lists.lists.len(), MAX_FORMER_ROUTES / 1_000);
        assert_eq!(lists.lists.first().unwrap().policy.digest(), wide[38].digest());
    }
}
