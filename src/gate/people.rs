//! Who may pay for a route, who pays less, and how often anybody may come.
//!
//! **Owns** the rules of a route that depend on who asks: lists of payers, prices of their own, free quotas, caps, rates,
//! shadow mode. **Promises** that a rule only ever lowers a charge: the quote stays the most a request costs; and that
//! nobody is told anything of a list before it has signed for its channel. A payer is the account that signs the channel's
//! vouchers: whom the channel's terms name beside that is nobody's proof. **Does not** judge payments, nor know routes:
//! the gate asks it at three places, before a payment is held, when a charge is made (`Dues`, which every hold carries
//! that needs it), and where a request that pays nothing would be refused.
//!
//! # Free requests, caps and restarts
//!
//! A payer's free requests are those that would have been charged first in a window; what fails or costs nothing anyway
//! does not use them up. A cap is a fare cap: in one window a payer is never charged more than it on that route, and what
//! comes after costs nothing; each request still needs a voucher for its price. The counts are in memory only (see
//! [`super::quota`]).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::answer::Refusal;
use super::policy::{Listing, Offered, Price, Route};
use super::quota::{Buckets, Counters, Key, Rate, Taken, Who};
use super::{Gate, Peer};
use crate::clock;
use crate::protocol::{Address, Amount, Code};

/// A list of payers by the name the config gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payers {
    /// Its name.
    pub name: Arc<str>,
    /// Their accounts.
    pub members: BTreeSet<Address>,
}

/// What a route makes of who asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Only these may pay; everybody, if there is no list.
    pub allow: Vec<Arc<Payers>>,
    /// These may not.
    pub deny: Vec<Arc<Payers>>,
    /// Who pays another price than the route's, never a higher one; the first list that has the payer decides.
    pub prices: Vec<OwnPrice>,
    /// What is free.
    pub free: Option<Free>,
    /// What a payer is never charged more than.
    pub cap: Option<Cap>,
    /// How often one payer is served.
    pub per_payer: Option<Rate>,
    /// How often one network is told the price.
    pub unpaid: Option<Rate>,
    /// Whether the rates are counted for this route alone, or together with all routes that have none of their own.
    pub own_rates: bool,
    /// Decide and log, never refuse and never charge.
    pub shadow: bool,
}

/// A price for some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPrice {
    /// For whom.
    pub payers: Vec<Arc<Payers>>,
    /// What they pay.
    pub price: Price,
}

/// So many free requests in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// How many.
    pub requests: u64,
    /// In how many seconds; not zero.
    pub per_s: u64,
    /// For each of whom.
    pub by: By,
}

/// Who has a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Each payer: its requests bring a voucher, and are charged nothing.
    Payer,
    /// Each network (an address of version 4, a /64 of version 6): its requests need no payment.
    Network,
}

/// The most that one payer is charged in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    /// How much.
    pub payer: Amount,
    /// In how many seconds; not zero.
    pub per_s: u64,
}

fn on_any(lists: &[Arc<Payers>], payer: &Address) -> bool {
    lists.iter().any(|list| list.members.contains(payer))
}

impl Rules {
    /// Whether this payer may pay.
    pub fn admit(&self, payer: &Address) -> bool {
        (self.allow.is_empty() || on_any(&self.allow, payer)) && !on_any(&self.deny, payer)
    }

    /// The same of a payer whose channel's terms name another one: who is denied does not escape by having a fresh key sign.
    pub(super) fn admit_for(&self, payer: &Address, named: &Address) -> bool {
        self.admit(payer) && (payer == named || !on_any(&self.deny, named))
    }

    /// This payer's own price, if it has one.
    pub fn price_for(&self, payer: &Address) -> Option<&Price> {
        self.prices.iter().find(|own| on_any(&own.payers, payer)).map(|own| &own.price)
    }

    fn free_by(&self, by: By) -> Option<Free> {
        self.free.filter(|free| free.by == by)
    }
}

impl Route {
    /// What this payer's requests cost: its own price, or the route's.
    pub fn price_for(&self, payer: &Address) -> &Price {
        self.rules.as_ref().and_then(|rules| rules.price_for(payer)).unwrap_or(&self.price)
    }

    /// What its counts are kept under, the same in the next price list.
    fn key(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        let Self { name, host, pattern, methods, conditions, .. } = self;
        (name, host, pattern.to_string(), conditions).hash(&mut hasher);
        methods.iter().for_each(|method| method.as_str().hash(&mut hasher));
        hasher.finish()
    }
}

/// What is counted of a route.
#[derive(Debug, Clone, Copy)]
enum What {
    Free,
    Cap,
    PerPayer,
    Unpaid,
}

fn key(route: u64, what: What, who: Who) -> Key {
    let what = match what {
        What::Free => 1,
        What::Cap => 2,
        What::PerPayer => 3,
        What::Unpaid => 4,
    };
    Key { what: route.rotate_left(3) ^ what, who }
}

/// All counts of a gate, which outlive its price lists.
#[derive(Debug, Default)]
pub(super) struct Doorkeeper {
    counters: Counters,
    buckets: Buckets,
    would_refuse: AtomicU64,
    would_charge: AtomicU64,
    would_serve_free: AtomicU64,
}

/// How many requests of shadow routes would have ended how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct WatchedCounts {
    /// Refused, quotes included.
    pub refused: u64,
    /// Charged.
    pub charged: u64,
    /// Served for nothing.
    pub free: u64,
}

/// On an answer of a shadow route: what would have become of its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// The route's name.
    pub route: Arc<str>,
    /// `paid`, `free`, or the code it would have been refused with.
    pub would: Cow<'static, str>,
}

/// What lowers the charge of one request. A hold carries it, so that nothing is charged without it.
#[derive(Debug)]
pub(super) struct Dues {
    rules: Arc<Rules>,
    /// In units of the token that is paid.
    cap: Option<Cap>,
    route: u64,
    /// What the cap is counted under: each token has its own.
    token: u64,
    payer: Address,
    most: Amount,
    counts: Arc<Doorkeeper>,
}

/// What is due of a charge, and what it took to lower it.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) amount: Amount,
    free: Option<Taken>,
    cap: Option<Taken>,
}

impl Dues {
    /// The most this payer's request costs.
    pub(super) fn most(&self) -> Amount {
        self.most
    }

    /// What is left of a charge for this payer: at most its own price, nothing while it has free requests, and nothing
    /// beyond its cap. Counts it.
    pub(super) fn due(&self, charge: Amount) -> Due {
        let charge = charge.min(self.most);
        let mut due = Due { amount: charge, free: None, cap: None };
        if charge.is_zero() {
            return due;
        }
        if let Some(Free { requests, per_s, .. }) = self.rules.free_by(By::Payer) {
            let taken = self.counts.counters.take(self.key(What::Free), 1, true, requests.into(), per_s, clock::now_s);
            if taken.amount > 0 {
                return Due { amount: Amount::ZERO, free: Some(taken), ..due };
            }
        }
        if let Some(Cap { payer, per_s }) = self.cap {
            let key = self.key(What::Cap);
            let taken = self.counts.counters.take(key, charge.units(), false, payer.units(), per_s, clock::now_s);
            due = Due { amount: Amount::new(taken.amount), cap: Some(taken), ..due };
        }
        due
    }

    /// Nothing was charged after all.
    pub(super) fn give_back(&self, due: &Due) {
        for (what, taken) in [(What::Free, due.free), (What::Cap, due.cap)] {
            if let Some(taken) = taken {
                self.counts.counters.give_back(self.key(what), taken);
            }
        }
    }

    fn key(&self, what: What) -> Key {
        let counted = if matches!(what, What::Cap) { self.token } else { self.route };
        key(counted, what, Who::Payer(self.payer))
    }
}

/// One of a network's free requests, which is being served. Dropped, it stays used: its client has left, who must not have
/// any number of them by leaving. Given back where it failed.
#[derive(Debug)]
pub(super) struct FreeRequest {
    counts: Arc<Doorkeeper>,
    key: Key,
    taken: Taken,
}

impl FreeRequest {
    pub(super) fn give_back(self) {
        self.counts.counters.give_back(self.key, self.taken);
    }
}

impl Gate {
    /// How many requests of shadow routes would have ended how, since the start.
    pub fn watched(&self) -> WatchedCounts {
        let Doorkeeper { would_refuse, would_charge, would_serve_free, .. } = &*self.doorkeeper;
        let [refused, charged, free] =
            [would_refuse, would_charge, would_serve_free].map(|count| count.load(Ordering::Relaxed));
        WatchedCounts { refused, charged, free }
    }

    /// Notes what would have become of a request.
    pub(super) fn note_watched(&self, route: &Arc<str>, would: Cow<'static, str>, request: Option<&str>) -> Watched {
        let Doorkeeper { would_refuse, would_charge, would_serve_free, .. } = &*self.doorkeeper;
        let count = match &*would {
            Watched::PAID => would_charge,
            Watched::FREE => would_serve_free,
            _ => would_refuse,
        };
        count.fetch_add(1, Ordering::Relaxed);
        tracing::info!(request, route = %route, would = %would, "watched");
        Watched { route: Arc::clone(route), would }
    }

    /// What lowers the charges of this payer on this route, if anything does.
    pub(super) fn dues(&self, listing: &Listing, offered: &Offered, payer: Address) -> Option<Box<Dues>> {
        let rules = listing.route.rules.as_ref()?;
        let tender = &offered.tender;
        let own = tender.own_price(&listing.route, &payer);
        if own.is_none() && rules.cap.is_none() && rules.free_by(By::Payer).is_none() {
            return None;
        }
        let most = own.map_or(offered.price, |price| price.most().unwrap_or(Amount::ZERO).min(offered.price));
        let cap = rules.cap.map(|cap| Cap { payer: tender.units(cap.payer), ..cap });
        let (rules, counts) = (Arc::clone(rules), Arc::clone(&self.doorkeeper));
        let route = listing.route.key();
        let token = route ^ tender.key();
        Some(Box::new(Dues { rules, cap, route, token, payer, most, counts }))
    }

    /// Whether this payer may be served once more now.
    pub(super) fn within_rate(&self, route: &Route, payer: Address) -> Result<(), Refusal> {
        let Some(rules) = &route.rules else { return Ok(()) };
        let Some(rate) = rules.per_payer else { return Ok(()) };
        let key = key(rules.rate_key(route), What::PerPayer, Who::Payer(payer));
        self.doorkeeper.buckets.take(key, rate).map_err(|wait| {
            let Rate { count, per } = rate;
            Refusal::from(Code::PayerRateLimited)
                .with_detail(format!("{count} requests in {per:?} are served; nothing was charged"))
                .retry_after(whole_seconds(wait))
        })
    }

    /// Whether this network may be told the price once more now.
    pub(super) fn within_unpaid_rate(&self, route: &Route, peer: Option<Peer>) -> Result<(), Refusal> {
        let (Some(rules), Some(peer)) = (&route.rules, peer) else { return Ok(()) };
        let Some(rate) = rules.unpaid else { return Ok(()) };
        let key = key(rules.rate_key(route), What::Unpaid, peer.into());
        self.doorkeeper.buckets.take(key, rate).map_err(|wait| {
            Refusal::from(Code::UnpaidRateLimited)
                .with_detail("too many requests without a payment")
                .retry_after(whole_seconds(wait))
        })
    }

    /// One of the network's free requests, if it has one left.
    pub(super) fn free_request(&self, route: &Route, peer: Option<Peer>) -> Option<FreeRequest> {
        let Free { requests, per_s, .. } = route.rules.as_ref()?.free_by(By::Network)?;
        let key = key(route.key(), What::Free, peer?.into());
        let taken = self.doorkeeper.counters.take(key, 1, true, requests.into(), per_s, clock::now_s);
        let counts = Arc::clone(&self.doorkeeper);
        (taken.amount > 0).then_some(FreeRequest { counts, key, taken })
    }
}

impl Watched {
    /// It would have been charged.
    pub const PAID: &'static str = "paid";
    /// It would have been served for nothing.
    pub const FREE: &'static str = "free";
}

impl Rules {
    /// Rates that are not a route's own are counted for all such routes together.
    fn rate_key(&self, route: &Route) -> u64 {
        if self.own_rates { route.key() } else { 0 }
    }
}

/// Up, so that whoever waits so long has waited long enough.
fn whole_seconds(wait: std::time::Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(members: &[u8]) -> Vec<Arc<Payers>> {
        let members = members.iter().map(|number| Address([*number; 20])).collect();
        vec![Arc::new(Payers { name: "l".into(), members })]
    }

    #[test]
    fn denied_is_denied_even_if_allowed_and_without_a_list_all_may() {
        let rules = |allow: &[u8], deny: &[u8]| Rules {
            allow: if allow.is_empty() { Vec::new() } else { list(allow) },
            deny: if deny.is_empty() { Vec::new() } else { list(deny) },
            ..Rules::default()
        };
        let cases =
            [(rules(&[], &[]), true), (rules(&[1], &[]), true), (rules(&[2], &[]), false), (rules(&[1], &[1]), false)];
        for (rules, expected) in cases {
            assert_eq!(rules.admit(&Address([1; 20])), expected, "{rules:?}");
        }
    }

    #[test]
    fn the_first_list_that_has_a_payer_decides_its_price() {
        let own = |members: &[u8], price| OwnPrice { payers: list(members), price };
        let fixed = |units| Price::Fixed(Amount::new(units));
        let prices = vec![own(&[1], fixed(3)), own(&[1, 2], Price::Free)];
        let rules = Rules { prices, ..Rules::default() };
        let price = |number| rules.price_for(&Address([number; 20])).cloned();
        assert_eq!([price(1), price(2), price(3)], [Some(fixed(3)), Some(Price::Free), None]);
    }

    #[test]
    fn a_wait_is_told_in_whole_seconds_that_are_enough() {
        let cases = [(0, 1), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (59_001, 60)];
        for (ms, expected) in cases {
            assert_eq!(whole_seconds(std::time::Duration::from_millis(ms)), expected);
        }
    }

    proptest! {
        /// Windows of the whole time since 1970, so that none ends meanwhile.
        #[test]
        fn a_charge_is_only_ever_lowered_and_what_is_lowered_adds_up(
            charges in prop::collection::vec((0_u128..50, any::<bool>()), 0..60),
            most in 0_u128..60,
            free in prop::option::of(1_u64..10),
            cap in prop::option::of(1_u128..300),
        ) {
            let per_s = u64::MAX;
            let rules = Arc::new(Rules {
                free: free.map(|requests| Free { requests, per_s, by: By::Payer }),
                cap: cap.map(|payer| Cap { payer: Amount::new(payer), per_s }),
                ..Rules::default()
            });
            let (payer, counts) = (Address([1; 20]), Arc::default());
            let dues = Dues { cap: rules.cap, rules, route: 7, token: 8, payer, most: Amount::new(most), counts };
            let (mut sum, mut expected, mut free_left) = (0, 0, free.unwrap_or(0));
            for (charge, fails) in charges {
                let due = dues.due(Amount::new(charge));
                prop_assert!(due.amount.units() <= charge.min(most));
                if fails {
                    dues.give_back(&due);
                    continue;
                }
                sum += due.amount.units();
                if charge.min(most) > 0 && free_left > 0 {
                    free_left -= 1;
                } else {
                    expected += charge.min(most);
                }
            }
            prop_assert_eq!(sum, expected.min(cap.unwrap_or(u128::MAX)));
        }
    }
}
