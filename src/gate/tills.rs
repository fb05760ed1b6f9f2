//! Several chains behind one gate.
//!
//! **Owns** the choice of the till: each chain has books, a desk and a redeemer of its own, and a payment goes to those of
//! the chain that its offer names. **Promises** that an offer of a chain that does not answer is not quoted while another
//! chain's is, except to whoever pays with it. **Does not** watch chains; that is told with [`Gate::withhold`].

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::policy::{Listing, Offered};
use super::{Accounts, Desk, Gate};
use crate::protocol::x402::WrittenQuote;
use crate::protocol::{Address, Dollars, Domain};

impl Gate {
    /// A till for another chain of the same policy, with accounts and a desk of its own. Limits, and what is counted for
    /// them, are shared.
    pub fn beside(&self, chain_id: u64, desk: Desk, accounts: Accounts) -> Self {
        let settlement = Domain::settlement(chain_id);
        let (evidence, withheld) = Default::default();
        Self { chain_id, settlement, desk, accounts, evidence, withheld, others: Arc::default(), ..self.clone() }
    }

    /// The same gate with tills for other chains. Layers and clones that were made before have none.
    #[must_use]
    pub fn with_tills(self, others: Vec<Self>) -> Self {
        Self { others: others.into(), ..self }
    }

    /// Every till, one for each chain; this one first.
    pub fn tills(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&*self.others)
    }

    /// The till that an offer is paid at.
    pub(super) fn till_of(&self, offered: &Offered) -> Option<&Self> {
        let chain_id = offered.tender.terms.chain_id;
        self.tills().find(|till| till.chain_id == chain_id)
    }

    /// The chain of this till.
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// The domain its vouchers and claims are signed under.
    pub fn settlement(&self) -> &Domain {
        &self.settlement
    }

    /// How the tokens of its chain are counted together.
    pub fn dollars(&self) -> Dollars {
        self.policy().dollars_on(self.chain_id)
    }

    /// Whom the policy pays on its chain, and in what.
    pub(crate) fn payees(&self) -> Vec<(Address, Address)> {
        let policy = self.policy();
        let terms = policy.tenders().iter().map(|tender| &tender.terms);
        terms.filter(|terms| terms.chain_id == self.chain_id).map(|terms| (terms.pay_to, terms.token.address)).collect()
    }

    /// Says whether its offers are left out of quotes while another till has some. Payments are judged all the same.
    /// True where that is new.
    pub fn withhold(&self, withheld: bool) -> bool {
        self.withheld.swap(withheld, Ordering::Relaxed) != withheld
    }

    fn is_withheld(&self, offered: &Offered) -> bool {
        self.till_of(offered).is_none_or(|till| till.withheld.load(Ordering::Relaxed))
    }

    /// What is quoted: first the offer that was answered, if one was, and none that is withheld if there are others.
    pub(super) fn quote<'l>(&self, listing: &'l Listing, answered: Option<&'l Offered>) -> Cow<'l, WrittenQuote> {
        let as_ever = || Cow::Borrowed(&answered.unwrap_or(&listing.preferred).quote);
        // With one chain there is nothing to choose from.
        if self.others.is_empty() || !listing.offered().any(|offered| self.is_withheld(offered)) {
            return as_ever();
        }
        let good = listing.offered().filter(|offered| !self.is_withheld(offered));
        let good = good.filter(|offered| answered.is_none_or(|answered| !std::ptr::eq(answered, *offered)));
        let mut offers = answered.into_iter().chain(good).map(|offered| &offered.offer);
        match offers.next() {
            Some(first) => Cow::Owned(WrittenQuote::new(&listing.resource, first, offers, &listing.route.extensions)),
            None => as_ever(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::path::PathPattern;
    use super::super::policy::{Policy, Price, Route, Terms};
    use super::*;
    use crate::protocol::Amount;
    use crate::protocol::x402::{self, Quote, QuoteDetails};

    fn terms(chain_id: u64) -> Terms {
        Terms { chain_id, ..Terms::sample() }
    }

    fn gate() -> Gate {
        let route = Route::new(PathPattern::parse("/*").unwrap(), Price::Fixed(Amount::new(5)));
        let policy = Policy::accepting(terms(1), vec![terms(2), terms(3)], "https://a.example", vec![route]).unwrap();
        let gate = Gate::new(policy, Desk::closed());
        let others = [2, 3].map(|chain_id| gate.beside(chain_id, Desk::closed(), Accounts::in_memory()));
        gate.with_tills(others.into())
    }

    #[test]
    fn what_is_withheld_is_not_quoted_while_there_is_another() {
        let gate = gate();
        let policy = gate.policy();
        let listing = policy.first_paid().unwrap();
        let offered: Vec<_> = listing.offered().collect();
        let quoted = |withheld: [bool; 3], answered: Option<usize>| {
            for (till, withheld) in gate.tills().zip(withheld) {
                till.withhold(withheld);
            }
            let quote = gate.quote(listing, answered.map(|place| offered[place]));
            let (header, _) = quote.write(QuoteDetails { error: "x", path_and_query: "/y", corrective: None }, None);
            let quote: Quote = x402::decode(header.as_bytes()).unwrap();
            assert_eq!(quote.resource.url, "https://a.example/y");
            quote.accepts.iter().map(|offer| x402::chain_id_of(&offer.network).unwrap()).collect::<Vec<_>>()
        };
        let (no, yes) = (false, true);
        assert_eq!(quoted([no, no, no], None), [1, 2, 3]);
        assert_eq!(quoted([no, no, no], Some(2)), [3, 1, 2]);
        assert_eq!(quoted([yes, no, no], None), [2, 3]);
        assert_eq!(quoted([no, yes, no], None), [1, 3]);
        assert_eq!(quoted([no, yes, yes], Some(0)), [1]);
        assert_eq!(quoted([no, yes, no], Some(1)), [2, 1, 3], "whoever pays with it is told of it");
        assert_eq!(quoted([yes, yes, yes], None), [1, 2, 3], "there is no other");
        assert!(!gate.withhold(yes) && gate.withhold(no) && !gate.withhold(no));
    }

    #[test]
    fn an_offer_is_paid_at_the_till_of_its_chain() {
        let gate = gate();
        let policy = gate.policy();
        let listing = policy.first_paid().unwrap();
        let tills: Vec<_> = listing.offered().map(|offered| gate.till_of(offered).unwrap().chain_id()).collect();
        assert_eq!(tills, [1, 2, 3]);
        let alone = Gate::new(Policy::new(terms(1), "", Vec::new()).unwrap(), Desk::closed());
        assert_eq!(listing.offered().filter(|offered| alone.till_of(offered).is_some()).count(), 1);
        assert!(gate.tills().all(|till| *till.settlement() == Domain::settlement(till.chain_id())));
        assert_eq!(gate.others[0].payees(), [(Address([1; 20]), terms(2).token.address)]);
    }
}
