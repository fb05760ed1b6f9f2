//! What is taken in payment.
//!
//! **Owns** the terms under which one token on one chain is taken, with what follows from them made once; and a route's
//! offer in each of them. **Promises** that every offer of a route asks for the same dollars, exactly: in a token that
//! cannot express a price a route is not offered. **Does not** choose: the order is the operator's, and which of them is
//! paid with is the payer's.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use http::HeaderValue;

use super::identifier::Identifiers;
use super::policy::{Price, Route, Terms};
use super::shop::QuotePage;
use crate::pricing::Measured;
use crate::protocol::x402::{Echo, Resource, TARIFF, WrittenOffer, WrittenQuote};
use crate::protocol::{Address, Amount, Domain};

/// A token on a chain that is taken in payment.
#[derive(Debug)]
pub struct Tender {
    /// What every channel in it must agree to.
    pub terms: Terms,
    /// The domain its vouchers and claims are signed under. Every payment needs it, and it takes five hashes.
    pub settlement: Domain,
    /// The chain's name in headers.
    pub network: String,
    /// The token's, by CAIP-19: `eip155:8453/erc20:0x…`.
    pub(super) asset: HeaderValue,
    /// Decimal places of the preferred tender, in whose units an operator's dollars are counted.
    preferred_decimals: u8,
}

impl Tender {
    /// Terms, beside those of the tender that is preferred.
    pub(super) fn of(terms: Terms, preferred_decimals: u8) -> Self {
        let network = terms.network();
        let asset = HeaderValue::try_from(format!("{network}/erc20:{}", terms.token.address));
        let asset = asset.expect("a network and an address are header text");
        Self { settlement: terms.settlement(), network, asset, terms, preferred_decimals }
    }

    /// Dollars in the units of this token, rounded down: what is said once for all tenders, in units of the preferred one.
    pub fn units(&self, dollars: Amount) -> Amount {
        dollars.about_in_decimals(self.preferred_decimals, self.terms.token.decimals)
    }

    /// What is counted of this token alone is counted under this.
    pub(super) fn key(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        (self.terms.chain_id, self.terms.token.address).hash(&mut hasher);
        hasher.finish()
    }

    /// A payer's own price of a route in the units of this token. Nothing where it has none, or the token cannot express it
    /// exactly: then it pays the route's.
    pub(super) fn own_price(&self, route: &Route, payer: &Address) -> Option<Price> {
        self.price(route.rules.as_ref()?.price_for(payer)?)
    }

    /// A price in the units of this token; nothing where that would not be exact.
    pub(super) fn price(&self, price: &Price) -> Option<Price> {
        price.in_decimals(self.preferred_decimals, self.terms.token.decimals)
    }
}

impl Price {
    /// The same price in a token with `to` decimal places instead of `from`; `None` where that would not be exact.
    pub fn in_decimals(&self, from: u8, to: u8) -> Option<Self> {
        match self {
            _ if from == to => Some(self.clone()),
            Self::Free => Some(Self::Free),
            Self::Fixed(amount) => amount.in_decimals(from, to).map(Self::Fixed),
            Self::Metered(tariff) => tariff.in_decimals(from, to).map(|tariff| Self::Metered(Arc::new(tariff))),
        }
    }
}

/// A price of a route that costs something, with what its requests have in common made once.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The route.
    pub route: Arc<Route>,
    /// What is sold, with the origin for its URL.
    pub resource: Resource,
    /// What is offered in the preferred tender.
    pub preferred: Offered,
    /// What is offered in the others, in order.
    pub others: Vec<Offered>,
    /// Whether its payments have identifiers, as its extensions say.
    pub identifiers: Identifiers,
    /// What a browser gets with the quote, if pages are shown.
    pub(super) page: Option<Arc<QuotePage>>,
}

/// What a route is offered for in one tender.
#[derive(Debug, Clone)]
pub struct Offered {
    /// In what.
    pub tender: Arc<Tender>,
    /// What its requests are charged, in units of this tender. Never free.
    pub charged: Price,
    /// The most a request costs, above zero.
    pub price: Amount,
    /// The offer of a request.
    pub offer: WrittenOffer,
    /// The quote of a request, with this offer before all others: a stock client that is corrected looks at the first.
    pub quote: WrittenQuote,
}

/// An offer before its quote is written, which has the others in it.
struct Draft<'t> {
    tender: &'t Arc<Tender>,
    charged: Price,
    price: Amount,
    offer: WrittenOffer,
}

impl Listing {
    /// What a route is offered for at this price; nothing where it is free. `resource` has the origin for its URL.
    pub(super) fn of(route: &Arc<Route>, price: &Price, tenders: &[Arc<Tender>], resource: &Resource) -> Option<Self> {
        let drafts: Vec<_> = tenders.iter().filter_map(|tender| Draft::of(route, price, tender)).collect();
        let offered = |place: usize| {
            let others = drafts.iter().enumerate().filter(|(other, _)| *other != place).map(|(_, draft)| &draft.offer);
            let Draft { tender, charged, price, offer } = drafts.get(place)?;
            let quote = WrittenQuote::new(resource, offer, others, &route.extensions);
            let (tender, charged, offer) = (Arc::clone(tender), charged.clone(), offer.clone());
            Some(Offered { tender, charged, price: *price, offer, quote })
        };
        let preferred = offered(0)?;
        let others = (1..drafts.len()).filter_map(offered).collect();
        let identifiers = Identifiers::of(&route.extensions);
        let (route, resource) = (Arc::clone(route), resource.clone());
        Some(Self { route, resource, preferred, others, identifiers, page: None })
    }

    /// What an answer is charged that turned out like this, in units of the tender of `offered`: what it costs, as far as its
    /// status is charged. Never above the price.
    pub fn charge(&self, offered: &Offered, measured: &Measured) -> Amount {
        self.route.status_rule.charge(measured.status, offered.charged.cost(measured))
    }

    /// What is offered, in order.
    pub fn offered(&self) -> impl Iterator<Item = &Offered> + Clone {
        std::iter::once(&self.preferred).chain(&self.others)
    }

    /// The offers, in order.
    pub(super) fn offers(&self) -> impl Iterator<Item = &WrittenOffer> + Clone {
        self.offered().map(|offered| &offered.offer)
    }

    /// What a payment answers. A refund answers an offer whatever its price: it draws on the channel's terms.
    pub(super) fn answered(&self, echo: &Echo<'_>, refund: bool) -> Option<&Offered> {
        let same = |offered: &&Offered| echo.is(offered.offer.offer());
        let answers = |offered: &&Offered| {
            let ours = offered.offer.offer();
            if refund { echo.answers_terms_of(ours) } else { echo.answers(ours) }
        };
        self.offered().find(same).or_else(|| self.offered().find(answers))
    }
}

impl<'t> Draft<'t> {
    fn of(route: &Route, price: &Price, tender: &'t Arc<Tender>) -> Option<Self> {
        let charged = tender.price(price)?;
        let price = charged.most()?;
        let mut offer = tender.terms.offer(price);
        if let Price::Metered(tariff) = &charged {
            offer.extra.insert(TARIFF.to_owned(), tariff.describe(tender.terms.token.decimals).into());
        }
        let offer = WrittenOffer::new(offer).beside(&route.extensions);
        Some(Self { tender, charged, price, offer })
    }
}

#[cfg(test)]
mod tests {
    use super::super::path::PathPattern;
    use super::super::policy::{Policy, TokenTerms};
    use super::*;
    use crate::protocol::ChannelId;
    use crate::protocol::x402::{self, ChannelState, Quote, QuoteDetails};

    fn terms(token: u8, decimals: u8) -> Terms {
        let sample = Terms::sample();
        let token = TokenTerms { address: Address([token; 20]), decimals, ..sample.token };
        Terms { token, ..sample }
    }

    fn policy(price: u128) -> Policy {
        let route = Route::new(PathPattern::parse("/*").unwrap(), Price::Fixed(Amount::new(price)));
        let others = vec![terms(4, 18), terms(5, 2)];
        Policy::accepting(terms(3, 6), others, "https://api.example", vec![route]).unwrap()
    }

    fn assets(quote: &WrittenQuote, corrective: Option<&ChannelState>) -> Vec<(u8, u128)> {
        let corrective = corrective.map(|state| (state, None));
        let (header, _) = quote.write(QuoteDetails { error: "x", path_and_query: "/", corrective }, None);
        let quote: Quote = x402::decode(header.as_bytes()).unwrap();
        for (place, offer) in quote.accepts.iter().enumerate() {
            assert_eq!(offer.extra.contains_key("channelState"), corrective.is_some() && place == 0);
        }
        quote.accepts.iter().map(|offer| (offer.asset.0[0], offer.amount.units())).collect()
    }

    #[test]
    fn a_route_is_offered_for_the_same_dollars_in_each_token_and_each_quote_begins_with_its_own() {
        let policy = policy(20_000);
        let listing = policy.first_paid().unwrap();
        let (dollar, wei, cents) = ((3, 20_000), (4, 20_000_000_000_000_000), (5, 2));
        let state = ChannelState {
            channel_id: ChannelId([1; 32]),
            balance: Amount::ZERO,
            total_claimed: Amount::ZERO,
            withdraw_requested_at: 0,
            refund_nonce: 0,
            charged_cumulative_amount: Amount::ZERO,
        };
        let quotes: Vec<_> = listing.offered().map(|offered| assets(&offered.quote, None)).collect();
        assert_eq!(quotes, [[dollar, wei, cents], [wei, dollar, cents], [cents, dollar, wei]]);
        let correctives = listing.offered().map(|offered| assets(&offered.quote, Some(&state)));
        assert!(correctives.eq(quotes));
        assert!(listing.offered().all(|offered| offered.charged.most() == Some(offered.price)));
    }

    #[test]
    fn a_token_that_cannot_express_a_price_is_not_offered_for_it() {
        let policy = policy(20_001);
        let tokens: Vec<_> = policy.first_paid().unwrap().offered().map(|offered| offered.price.units()).collect();
        assert_eq!(tokens, [20_001, 20_001_000_000_000_000]);
    }

    #[test]
    fn a_payment_is_told_by_the_offer_it_echoes() {
        let policy = policy(20_000);
        let listing = policy.first_paid().unwrap();
        for (place, offered) in listing.offered().enumerate() {
            let ours = offered.offer.offer();
            let echo = |change: &dyn Fn(&mut serde_json::Value)| {
                let mut value = serde_json::to_value(ours).unwrap();
                change(&mut value);
                Echo::Other(serde_json::from_value(value).unwrap())
            };
            let found = |echo: &Echo<'_>, refund| {
                let answered = listing.answered(echo, refund)?;
                listing.offered().position(|offered| std::ptr::eq(offered, answered))
            };
            assert_eq!(found(&Echo::Of(&offered.offer), false), Some(place));
            assert_eq!(found(&echo(&|_| ()), false), Some(place));
            let cheaper = echo(&|value| value["amount"] = serde_json::json!("1"));
            assert_eq!((found(&cheaper, false), found(&cheaper, true)), (None, Some(place)));
            let elsewhere = echo(&|value| value["network"] = serde_json::json!("eip155:1"));
            assert_eq!((found(&elsewhere, false), found(&elsewhere, true)), (None, None));
        }
    }

    #[test]
    fn what_is_said_in_dollars_holds_for_every_token() {
        let policy = policy(20_000);
        let units: Vec<_> = policy.tenders().iter().map(|tender| tender.units(Amount::new(1_000_000))).collect();
        assert_eq!(units, [1_000_000, 1_000_000_000_000_000_000, 100].map(Amount::new));
    }
}
