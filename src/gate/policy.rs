//! What is for sale, at what price, on which terms.
//!
//! **Owns** the routes and the offers made from them. **Promises** that the most specific route decides, that what no
//! route names is not served, and that a quote is a pure function of the policy and the request. **Does not** know who
//! pays; that is the accounts' business.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use http::header::HOST;
use http::{HeaderMap, Method, Request};
use serde_json::{Map, Value, json};

use super::answer;
use super::matching::{BodySeen, Conditions, Doubt, HostPattern, Looks, Place, Seen};
use super::path::{CleanPath, PathError, PathPattern};
use super::people::Rules;
use super::shop::{self, QuotePage, Shelf, Shop, Stock, Storefront};
use super::tender::Tender;
use super::way::Way;
use crate::clock;
use crate::pricing::{Measured, Schedule, StatusRule, Tariff};
use crate::protocol::bytes::keccak256;
use crate::protocol::deposit::EIP2612_SPONSORING;
use crate::protocol::x402::{
    Echo, MAX_IN_FLIGHT, Offer, PERMIT2_METHOD, Resource, SCHEME, TRANSFER_METHOD, network_of,
};
use crate::protocol::{Address, Amount, ChannelConfig, Dollars, Domain, Hash, Network, Token};

pub use super::tender::{Listing, Offered};

/// What every channel with this provider must agree to.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The chain's id.
    pub chain_id: u64,
    /// The token that is paid.
    pub token: TokenTerms,
    /// Who is paid.
    pub pay_to: Address,
    /// Whose key signs claims and refunds.
    pub receiver_authorizer: Address,
    /// The channel's withdraw delay, seconds.
    pub withdraw_delay_s: u64,
    /// How long one request may take, and how long a deposit authorization must hold, seconds.
    pub max_timeout_s: u64,
    /// The least deposit that is relayed; none means any.
    pub min_deposit: Option<Amount>,
    /// How many requests of one channel are served at once; 1 means one after the other, as the protocol has it.
    pub max_in_flight: u32,
}

/// How a payer's deposit is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transfer {
    /// By an authorization the token itself takes (ERC-3009), as USDC does.
    #[default]
    Eip3009,
    /// Through Permit2, for tokens without ERC-3009. Payers who have not allowed Permit2 before send an EIP-2612 permit
    /// along, where the token has that.
    Permit2,
}

/// A token and how its authorizations are signed.
#[derive(Debug, Clone)]
pub struct TokenTerms {
    /// Where it is.
    pub address: Address,
    /// Decimal places of a dollar.
    pub decimals: u8,
    /// The `name` of its EIP-712 domain.
    pub domain_name: String,
    /// The `version` of its EIP-712 domain.
    pub domain_version: String,
    /// How deposits of it are moved.
    pub transfer: Transfer,
    /// Whether EIP-2612 permits for Permit2 are relayed, so that payers need not have allowed it before. Where a token has
    /// none, some clients stop at the offer instead of paying with the allowance they gave.
    pub sponsored: bool,
}

impl TokenTerms {
    /// The terms of a token known by name.
    pub fn preset(token: &Token) -> Self {
        Self {
            address: token.address(),
            decimals: token.decimals,
            domain_name: token.domain_name.to_owned(),
            domain_version: token.domain_version.to_owned(),
            transfer: Transfer::Eip3009,
            sponsored: true,
        }
    }
}

impl Terms {
    /// The network's name in headers.
    pub fn network(&self) -> String {
        network_of(self.chain_id)
    }

    /// The domain vouchers and claims are signed under.
    pub fn settlement(&self) -> Domain {
        Domain::settlement(self.chain_id)
    }

    /// The token's own domain: ERC-3009 deposits and EIP-2612 permits are signed under it.
    pub fn token_domain(&self) -> Domain {
        Domain::new(&self.token.domain_name, &self.token.domain_version, self.chain_id, self.token.address)
    }

    /// The channel a payer that signs its own vouchers has on these terms.
    pub fn channel_of(&self, payer: Address) -> ChannelConfig {
        ChannelConfig {
            payer,
            payer_authorizer: payer,
            receiver: self.pay_to,
            receiver_authorizer: self.receiver_authorizer,
            token: self.token.address,
            withdraw_delay: self.withdraw_delay_s,
            salt: Hash::ZERO,
        }
    }

    /// The offer of one request at this price.
    pub fn offer(&self, price: Amount) -> Offer {
        let mut extra = Map::new();
        extra.insert("receiverAuthorizer".to_owned(), json!(self.receiver_authorizer));
        extra.insert("withdrawDelay".to_owned(), json!(self.withdraw_delay_s));
        extra.insert("name".to_owned(), json!(self.token.domain_name));
        extra.insert("version".to_owned(), json!(self.token.domain_version));
        if self.token.transfer == Transfer::Permit2 {
            extra.insert(TRANSFER_METHOD.to_owned(), json!(PERMIT2_METHOD));
        }
        // The protocol wants it to be at least the price; a dearer route asks for its own price.
        if let Some(min_deposit) = self.min_deposit {
            extra.insert("minDeposit".to_owned(), json!(min_deposit.max(price)));
        }
        if self.max_in_flight > 1 {
            extra.insert(MAX_IN_FLIGHT.to_owned(), json!(self.max_in_flight));
        }
        Offer {
            scheme: SCHEME.to_owned(),
            network: self.network(),
            amount: price,
            asset: self.token.address,
            pay_to: self.pay_to,
            max_timeout_seconds: self.max_timeout_s,
            extra,
        }
    }
}

/// What one route's requests cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Price {
    /// Nothing: the request goes straight through.
    Free,
    /// So much for each answer that is charged, unless the upstream reports less. Never zero.
    Fixed(Amount),
    /// What its tariff makes of what it used, which is known at its end.
    Metered(Arc<Tariff>),
}

impl Price {
    /// What the quote says and the payer signs for: the most a request can cost. Nothing where it is free.
    pub fn most(&self) -> Option<Amount> {
        match self {
            Self::Free => None,
            Self::Fixed(amount) => Some(*amount),
            Self::Metered(tariff) => Some(tariff.most()),
        }
    }

    /// What an answer costs that turned out like this, whatever its status.
    pub fn cost(&self, measured: &Measured) -> Amount {
        match self {
            Self::Free => Amount::ZERO,
            Self::Fixed(amount) => *amount,
            Self::Metered(tariff) => tariff.charge(measured),
        }
    }

    /// The price in words, for a token with so many `decimals`.
    pub fn describe(&self, decimals: u8) -> String {
        match self {
            Self::Free => "free".to_owned(),
            Self::Fixed(amount) => amount.to_price(decimals),
            Self::Metered(tariff) => tariff.describe(decimals),
        }
    }
}

/// What a request says of itself, as far as its price may depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The path of its target, as it came.
    pub path: &'a str,
    /// The query of its target, without the question mark.
    pub query: Option<&'a str>,
    /// The host it is for: of its target, or of its `Host` header.
    pub host: Option<&'a str>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// When it is judged, Unix seconds.
    pub at: u64,
}

impl<'a> Asked<'a> {
    /// What a request says of itself, now.
    pub fn of<B>(request: &'a Request<B>) -> Self {
        let uri = request.uri();
        let header = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
        Self {
            method: request.method(),
            path: uri.path(),
            query: uri.query(),
            host: uri.authority().map(|authority| authority.as_str()).or_else(header),
            headers: request.headers(),
            at: clock::now_s(),
        }
    }
}

/// One entry of the price list.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its name in logs and books; its path, if the operator gave none.
    pub name: Arc<str>,
    /// Which hosts; all, if none is named.
    pub host: Option<HostPattern>,
    /// Which paths.
    pub pattern: PathPattern,
    /// Which methods; empty means all. `GET` covers `HEAD`.
    pub methods: Vec<Method>,
    /// What else a request must have.
    pub conditions: Conditions,
    /// At what price, except at the hours of the schedule.
    pub price: Price,
    /// At which hours it costs something else.
    pub schedule: Schedule<Price>,
    /// Which part of the price is charged, by the answer's status.
    pub status_rule: StatusRule,
    /// Who may pay, how often, and who pays less; nothing of that, if there are none.
    pub rules: Option<Arc<Rules>>,
    /// What it is, for the quote.
    pub description: Option<String>,
    /// The type of its answers, for the quote.
    pub mime_type: Option<String>,
    /// What the quote advertises beside the price, by extension key.
    pub extensions: Map<String, Value>,
    /// The way of its requests behind the gate; none means the usual one.
    pub way: Option<Arc<Way>>,
    /// How it stands in the shop window.
    pub shelf: Shelf,
}

impl Route {
    /// A route for all methods with nothing but a price.
    pub fn new(pattern: PathPattern, price: Price) -> Self {
        Self {
            name: pattern.to_string().into(),
            host: None,
            pattern,
            methods: Vec::new(),
            conditions: Conditions::default(),
            price,
            schedule: Schedule::default(),
            status_rule: StatusRule::default(),
            rules: None,
            description: None,
            mime_type: None,
            extensions: Map::new(),
            way: None,
            shelf: Shelf::default(),
        }
    }

    pub(super) fn takes(&self, method: &Method) -> bool {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.methods.is_empty() || self.methods.contains(method)
    }

    /// Its prices for everybody, at whatever hour.
    pub fn prices(&self) -> impl Iterator<Item = &Price> {
        std::iter::once(&self.price).chain(self.schedule.windows().iter().map(|(_, price)| price))
    }

    /// Its price for everybody at this moment, Unix seconds.
    pub fn price_at(&self, at_s: u64) -> &Price {
        self.schedule.at(at_s).unwrap_or(&self.price)
    }

    /// Whether it costs something at any hour.
    pub fn is_ever_paid(&self) -> bool {
        self.prices().any(|price| *price != Price::Free)
    }

    /// Whether any price of it, somebody's own included, has a rate for what `counts` looks for.
    pub fn has_rate(&self, counts: impl Fn(&Tariff) -> bool) -> bool {
        let own = self.rules.iter().flat_map(|rules| rules.prices.iter().map(|own| &own.price));
        self.prices().chain(own).any(|price| matches!(price, Price::Metered(tariff) if counts(tariff)))
    }

    /// Whether it decides and logs, and never refuses.
    pub fn is_shadow(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.shadow)
    }

    /// Whether both are for exactly the same hosts and paths.
    pub fn stands_beside(&self, other: &Self) -> bool {
        self.host == other.host && self.pattern.same_paths(&other.pattern)
    }
}

/// Two routes that match one request with equal right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("routes {first} and {second} both match {pattern}, and neither is more specific")]
pub struct Ambiguity {
    /// Index of the earlier route, as given.
    pub first: usize,
    /// Index of the later route, as given.
    pub second: usize,
    /// The path they share.
    pub pattern: String,
    /// The conditions of a third route that would decide between the two, where they have different ones.
    pub missing: Option<Conditions>,
}

/// A price list with its terms: an immutable snapshot that one request uses from beginning to end.
#[derive(Debug)]
pub struct Policy {
    preferred: Arc<Tender>,
    /// All of them, the preferred one first.
    tenders: Vec<Arc<Tender>>,
    public_url: String,
    entries: Vec<Entry>,
    /// The most specific first.
    groups: Vec<Group>,
    index: Index,
    /// Whether any price depends on a body.
    needs_bodies: bool,
    /// See [`Policy::generation`].
    generation: u64,
    digest: String,
    /// What is shown of it, if anything is.
    shop: Option<Shop>,
}

/// A route, and what it is quoted as.
#[derive(Debug, Clone)]
struct Entry {
    route: Arc<Route>,
    /// Where it costs something.
    listing: Option<Arc<Listing>>,
    /// The same for each window of its schedule.
    by_window: Vec<Option<Arc<Listing>>>,
    /// Equal where route and listings are.
    digest: Hash,
}

/// How much of a digest is shown, hex digits: enough to tell price lists apart.
const SHOWN_DIGEST: usize = 12;

fn short(digest: Hash) -> String {
    digest.to_string().chars().skip(2).take(SHOWN_DIGEST).collect()
}

/// The routes of one host and path. Only they decide about its requests: a method or a condition they do not list must
/// not fall through to a wider, perhaps cheaper, route.
#[derive(Debug)]
struct Group {
    /// Any of them, for what they share.
    first: Arc<Route>,
    /// How specific they are; the least is the most.
    rank: (usize, Vec<u8>),
    /// Where they are among the entries.
    entries: Range<usize>,
    /// What they look at, if they look at anything but methods.
    looks: Option<Looks>,
    /// Whether none of them ever refuses.
    is_shadow: bool,
}

/// From the first segment of a path to the groups that may match, so that a long price list is not looked through for each
/// request.
#[derive(Debug, Default)]
struct Index {
    /// The groups whose paths begin with this segment in any case, and those that begin with any. Empty where the price list
    /// is short.
    by_first: HashMap<Vec<u8>, Vec<usize>>,
    /// The groups whose paths begin with any segment, or have none.
    others: Vec<usize>,
}

/// Price lists with fewer paths are looked through: that is as fast as looking up.
const MIN_INDEXED: usize = 24;

impl Entry {
    /// `common` is all that the listings are made of beside the route.
    fn new(route: Arc<Route>, tenders: &[Arc<Tender>], origin: &str, common: &str) -> Self {
        let Route { description, mime_type, .. } = &*route;
        let (description, mime_type) = (description.clone(), mime_type.clone());
        let resource = Resource { url: origin.to_owned(), description, mime_type };
        let listing = |price| Listing::of(&route, price, tenders, &resource).map(Arc::new);
        let by_window = route.schedule.windows().iter().map(|(_, price)| listing(price)).collect();
        let digest = keccak256(format!("{common}{route:?}").as_bytes());
        Self { listing: listing(&route.price), by_window, digest, route }
    }

    /// What is in force in this window of its schedule, or otherwise.
    fn listing_in(&self, window: Option<usize>) -> Option<&Listing> {
        match window {
            None => self.listing.as_deref(),
            Some(window) => self.by_window.get(window)?.as_deref(),
        }
    }

    /// What is in force at this moment, Unix seconds.
    fn listing_at(&self, at_s: u64) -> Option<&Listing> {
        self.listing_in(self.route.schedule.index_at(at_s))
    }
}

/// What the policy says of a request.
#[derive(Debug, Clone)]
pub enum Verdict<'p> {
    /// It costs nothing.
    Free(&'p Route),
    /// It costs so much.
    Paid(&'p Listing),
    /// The path is known, for these other methods.
    OtherMethods(Vec<Method>),
    /// No route names it.
    Unknown,
    /// The path has no single reading.
    Unclear(PathError),
    /// The path is sold on conditions of which this request meets none.
    NoneMet,
    /// The body decides, and was not looked at.
    BodyNeeded,
    /// What the price depends on cannot be told.
    Doubtful(Doubt),
    /// It would be refused with this code, but its path's routes only watch.
    Watched(&'p Route, &'static str),
}

impl<'p> Verdict<'p> {
    /// The route that decides, if one does.
    pub fn route(&self) -> Option<&'p Route> {
        match self {
            Self::Paid(listing) => Some(&listing.route),
            Self::Free(route) => Some(*route),
            _ => None,
        }
    }
}

impl Policy {
    /// Makes a policy. `public_url` is the origin clients see, without a trailing slash.
    pub fn new(terms: Terms, public_url: &str, routes: Vec<Route>) -> Result<Self, Vec<Ambiguity>> {
        Self::accepting(terms, Vec::new(), public_url, routes)
    }

    /// Makes a policy with several tokens, the preferred one first. The prices of `routes` are in units of that one; in the
    /// others they are the same dollars.
    pub fn accepting(
        preferred: Terms,
        others: Vec<Terms>,
        public_url: &str,
        routes: Vec<Route>,
    ) -> Result<Self, Vec<Ambiguity>> {
        let ambiguities = ambiguities(&routes);
        if !ambiguities.is_empty() {
            return Err(ambiguities);
        }
        let decimals = preferred.token.decimals;
        let preferred = Arc::new(Tender::of(preferred, decimals));
        let others = others.into_iter().map(|terms| Arc::new(Tender::of(terms, decimals)));
        let tenders: Vec<_> = std::iter::once(Arc::clone(&preferred)).chain(others).collect();
        let sponsored =
            |TokenTerms { transfer, sponsored, .. }: &TokenTerms| *transfer == Transfer::Permit2 && *sponsored;
        let sponsors = tenders.iter().any(|tender| sponsored(&tender.terms.token));
        let with_terms = |mut route: Route| {
            if sponsors {
                route.extensions.entry(EIP2612_SPONSORING).or_insert_with(sponsoring);
            }
            Arc::new(route)
        };
        let mut routes: Vec<_> = routes.into_iter().map(with_terms).collect();
        let rank = |route: &Route| (HostPattern::specificity(route.host.as_ref()), route.pattern.specificity());
        routes.sort_by_key(|route| rank(route));
        let origin = public_url.trim_end_matches('/');
        let terms: Vec<_> = tenders.iter().map(|tender| &tender.terms).collect();
        let common = format!("{terms:?}{origin:?}");
        let (mut entries, mut groups) = (Vec::new(), Vec::new());
        while let Some(first) = routes.first().cloned() {
            let (mut together, rest) = routes.into_iter().partition::<Vec<_>, _>(|route| route.stands_beside(&first));
            routes = rest;
            // Among equal paths a route that names its methods is the more specific one, and then one that asks for more.
            together.sort_by_key(|route| (route.methods.is_empty(), Reverse(route.conditions.weight())));
            let begin = entries.len();
            let looks = Looks::of(together.iter().map(|route| &route.conditions));
            let is_shadow = together.iter().all(|route| route.is_shadow());
            let entry = |route| Entry::new(route, &tenders, origin, &common);
            entries.extend(together.into_iter().map(entry));
            groups.push(Group { rank: rank(&first), first, entries: begin..entries.len(), looks, is_shadow });
        }
        let needs_bodies = groups.iter().filter_map(|group| group.looks.as_ref()).any(Looks::need_the_body);
        let index = Index::of(&groups);
        let mut digests = common.into_bytes();
        digests.extend(entries.iter().flat_map(|entry| entry.digest.0));
        let digest = short(keccak256(&digests));
        let public_url = origin.to_owned();
        Ok(Self {
            preferred,
            tenders,
            public_url,
            entries,
            groups,
            index,
            needs_bodies,
            generation: 1,
            digest,
            shop: None,
        })
    }

    /// The same price list, shown to those who look for it.
    #[must_use]
    pub fn with_storefront(mut self, front: &Storefront) -> Self {
        let stock = Stock {
            front,
            terms: self.terms(),
            origin: &self.public_url,
            listings: &self.listed(),
            free: &self.listed_free(),
        };
        let is_taken = |path: &str| self.routes().any(|route| shop::names(route, path));
        let headers = HeaderMap::new();
        let finds = |method: &Method, path: &str| {
            let asked = Asked { method, path, query: None, host: None, headers: &headers, at: clock::now_s() };
            match self.judge(&asked) {
                Verdict::Paid(listing) => Some(listing),
                _ => None,
            }
        };
        let shop = Shop::new(&stock, is_taken, finds);
        let page = |listing: &Option<Arc<Listing>>| {
            listing.as_deref().map(|listing| Arc::new(QuotePage::new(&stock, listing)))
        };
        let of_entry = |entry: &Entry| std::iter::once(&entry.listing).chain(&entry.by_window).map(page).collect();
        let pages: Vec<Vec<_>> = self.entries.iter().map(of_entry).collect();
        for (entry, pages) in self.entries.iter_mut().zip(pages) {
            for (listing, page) in std::iter::once(&mut entry.listing).chain(&mut entry.by_window).zip(pages) {
                if let Some(listing) = listing {
                    Arc::make_mut(listing).page = page;
                }
            }
        }
        // Another window of the shop is another price list, and its pages are other pages.
        let shown = keccak256(format!("{front:?}").as_bytes());
        for entry in &mut self.entries {
            entry.digest = keccak256(&[entry.digest.0, shown.0].concat());
        }
        self.digest = short(keccak256(&[self.digest.as_bytes(), &shown.0].concat()));
        Self { shop: Some(shop), ..self }
    }

    /// What is listed and costs something, if only at some hours. Where routes are for some hosts only, those of others are to
    /// be left out here.
    fn listed(&self) -> Vec<&Listing> {
        let listings =
            self.entries.iter().filter_map(|entry| entry.listing.iter().chain(entry.by_window.iter().flatten()).next());
        listings.map(|listing| &**listing).filter(|listing| listing.route.shelf.listed).collect()
    }

    /// What is listed and free.
    fn listed_free(&self) -> Vec<&Route> {
        let free = self.routes().filter(|route| !route.is_ever_paid()).map(|route| &**route);
        free.filter(|route| route.shelf.listed).collect()
    }

    /// What is shown of it, if anything is.
    pub(super) fn shop(&self) -> Option<&Shop> {
        self.shop.as_ref()
    }

    /// The how-manieth price list of its gate it is, from 1: in receipts and logs, so that a charge can be explained.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What it says, in a few hex digits: price lists of one version of this program that say the same have the same.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The same as the next list after `former`, with what did not change in common with it.
    pub(super) fn following(mut self, former: &Self) -> Self {
        let known: HashMap<Hash, &Entry> = former.entries.iter().map(|entry| (entry.digest, entry)).collect();
        for entry in &mut self.entries {
            if let Some(same) = known.get(&entry.digest) {
                *entry = (*same).clone();
            }
        }
        self.generation = former.generation.saturating_add(1);
        self
    }

    /// The terms of channels in the preferred token.
    pub fn terms(&self) -> &Terms {
        &self.preferred.terms
    }

    /// What is taken in payment, the preferred one first.
    pub fn tenders(&self) -> &[Arc<Tender>] {
        &self.tenders
    }

    /// How the tokens of a chain are counted together: in units of the preferred one, whichever chain that is on.
    pub fn dollars_on(&self, chain_id: u64) -> Dollars {
        let here = self.tenders.iter().map(|tender| &tender.terms).filter(|terms| terms.chain_id == chain_id);
        let taken = here.map(|terms| (terms.token.address, terms.token.decimals));
        // Books outlive the config they were begun under, so that what was taken once is counted too.
        let known = Network::by_chain_id(chain_id).map_or(&[][..], |network| network.tokens);
        let known = known.iter().map(|token| (token.address(), token.decimals));
        Dollars::new(self.terms().token.decimals, taken.chain(known))
    }

    /// The domain vouchers and claims are signed under.
    pub fn settlement(&self) -> &Domain {
        &self.preferred.settlement
    }

    /// The preferred network's name in headers.
    pub fn network(&self) -> &str {
        &self.preferred.network
    }

    /// The origin clients see.
    pub fn public_url(&self) -> &str {
        &self.public_url
    }

    /// The routes, most specific first.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.entries.iter().map(|entry| &entry.route)
    }

    /// What a request costs, as far as that can be told without its body.
    pub fn judge(&self, asked: &Asked<'_>) -> Verdict<'_> {
        self.judge_with(asked, None)
    }

    /// What a request costs whose body was looked at, if it was.
    pub(crate) fn judge_with(&self, asked: &Asked<'_>, body: Option<&Result<BodySeen, Doubt>>) -> Verdict<'_> {
        match self.deciding(asked, body) {
            Ok(entry) => entry.verdict(asked.at),
            Err(verdict) => verdict,
        }
    }

    /// The same for the moments of the `back_s` seconds before at which the price was another one, each with its Unix
    /// second; what is said now comes first.
    pub(super) fn judge_lately(
        &self,
        asked: &Asked<'_>,
        body: Option<&Result<BodySeen, Doubt>>,
        back_s: u64,
    ) -> impl Iterator<Item = (u64, Verdict<'_>)> {
        let (entry, verdict) = match self.deciding(asked, body) {
            Ok(entry) => (Some(entry), None),
            Err(verdict) => (None, Some((asked.at, verdict))),
        };
        let moments = entry.into_iter().flat_map(move |entry| {
            entry.route.schedule.lately(asked.at, back_s).map(move |moment| (moment, entry.verdict(moment)))
        });
        verdict.into_iter().chain(moments)
    }

    /// The route that decides about a request, or what is said where none does.
    fn deciding(&self, asked: &Asked<'_>, body: Option<&Result<BodySeen, Doubt>>) -> Result<&Entry, Verdict<'_>> {
        let Asked { method, .. } = *asked;
        let group = self.group(asked).map_err(Verdict::Unclear)?.ok_or(Verdict::Unknown)?;
        let mut entries = self.entries_of(group).iter();
        let other_methods = || group.refuses(Verdict::OtherMethods(self.listed_methods(group)));
        let Some(looks) = &group.looks else {
            return entries.find(|entry| entry.route.takes(method)).ok_or_else(other_methods);
        };
        let named = |entry: &Entry| entry.route.methods.contains(&Method::OPTIONS);
        let taken = |entry: &&Entry| entry.route.takes(method);
        // What is not asked for by name is answered for all of them.
        let unnamed_options = method == Method::OPTIONS && !entries.clone().any(named);
        if unnamed_options || !entries.clone().any(|entry| taken(&entry)) {
            return Err(other_methods());
        }
        let doubtful = |doubt| group.refuses(Verdict::Doubtful(doubt));
        let seen = looks.at_the_head(asked.headers, asked.query).map_err(doubtful)?;
        let seen = match body {
            None if looks.need_the_body() => return Err(Verdict::BodyNeeded),
            Some(Err(doubt)) => return Err(doubtful(doubt.clone())),
            Some(Ok(body)) => seen.with_body(body),
            None => seen,
        };
        let deciding = entries.find(|entry| taken(entry) && entry.route.conditions.hold_for(&seen));
        deciding.ok_or_else(|| group.refuses(Verdict::NoneMet))
    }

    /// The routes that decide about a request; none, if none names its path.
    fn group(&self, asked: &Asked<'_>) -> Result<Option<&Group>, PathError> {
        let path = CleanPath::parse(asked.path)?;
        let Some((place, group)) = self.first_group(asked.host, &path, PathPattern::matches) else { return Ok(None) };
        // An upstream that is laxer about paths than we are must not serve a dear route at the price of a wide one.
        let lax = path.without_parameters()?;
        let other = self.first_group(asked.host, &lax, PathPattern::matches_in_any_case);
        // Mostly it is the very same.
        if other.is_some_and(|(other_place, other)| other_place != place && other.rank < group.rank) {
            return Err(PathError::OtherRoute);
        }
        Ok(Some(group))
    }

    /// The most specific routes for this host whose path matches.
    fn first_group(
        &self,
        host: Option<&str>,
        path: &CleanPath<'_>,
        matches: impl Fn(&PathPattern, &CleanPath<'_>) -> bool,
    ) -> Option<(usize, &Group)> {
        let fits = |(_, group): &(usize, &Group)| {
            matches(&group.first.pattern, path)
                && group.first.host.as_ref().is_none_or(|own| host.is_some_and(|host| own.matches(host)))
        };
        match self.index.of_path(path) {
            None => self.groups.iter().enumerate().find(fits),
            Some(places) => {
                places.iter().filter_map(|place| self.groups.get(*place).map(|group| (*place, group))).find(fits)
            }
        }
    }

    fn entries_of(&self, group: &Group) -> &[Entry] {
        self.entries.get(group.entries.clone()).unwrap_or_default()
    }

    fn listed_methods(&self, group: &Group) -> Vec<Method> {
        self.entries_of(group).iter().flat_map(|entry| entry.route.methods.clone()).collect()
    }

    /// The methods a path is sold or given away for.
    pub fn methods_of(&self, asked: &Asked<'_>) -> Vec<Method> {
        let Ok(Some(group)) = self.group(asked) else { return Vec::new() };
        let methods =
            |route: &Route| if route.methods.is_empty() { USUAL_METHODS.to_vec() } else { route.methods.clone() };
        self.entries_of(group).iter().flat_map(|entry| methods(&entry.route)).collect()
    }

    /// Whether any price depends on a body.
    pub(super) fn needs_bodies(&self) -> bool {
        self.needs_bodies
    }

    /// What has to be looked at in the body of a request, if its price depends on that.
    pub(super) fn body_looks(&self, asked: &Asked<'_>) -> Option<&Looks> {
        if !matches!(self.judge(asked), Verdict::BodyNeeded) {
            return None;
        }
        self.group(asked).ok().flatten().and_then(|group| group.looks.as_ref())
    }

    /// What was seen of a request at the places that its routes look at, by kind and name.
    pub(super) fn matched(
        &self,
        asked: &Asked<'_>,
        body: Option<&Result<BodySeen, Doubt>>,
    ) -> BTreeMap<String, String> {
        let deciding = self.group(asked).ok().flatten();
        let seen = deciding.and_then(|group| group.seen(asked, body));
        seen.map(|seen| seen.told()).unwrap_or_default()
    }

    /// The routes that may decide about a request, by their path, and where they look for that; each place once.
    pub fn looked_at(&self, asked: &Asked<'_>) -> Option<(&PathPattern, BTreeSet<&Place>)> {
        let group = self.group(asked).ok().flatten()?;
        let taken = self.entries_of(group).iter().filter(|entry| entry.route.takes(asked.method));
        let places = taken.flat_map(|entry| entry.route.conditions.iter().map(|(place, _)| place)).collect();
        Some((&group.first.pattern, places))
    }

    /// How each route takes a request, the most specific first, as an operator asks for it: whether it is of the group that
    /// decides, and what was seen for that.
    pub(super) fn explained<R>(
        &self,
        asked: &Asked<'_>,
        body: Option<&Result<BodySeen, Doubt>>,
        mut explain: impl FnMut(&Route, bool, Option<&Seen<'_>>) -> R,
    ) -> Vec<R> {
        let deciding = self.group(asked).ok().flatten();
        let seen = deciding.and_then(|group| group.seen(asked, body));
        let decides = |route: &Route| deciding.is_some_and(|group| group.first.stands_beside(route));
        self.routes().map(|route| explain(route, decides(route), seen.as_ref())).collect()
    }

    /// The first route that costs something, for answers that need an offer without a paid path.
    pub fn first_paid(&self) -> Option<&Listing> {
        self.listings().next()
    }

    /// The first route with an offer on the terms that a refund names: not every route is offered in every token.
    pub(super) fn first_refunding(&self, echo: &Echo<'_>) -> Option<&Listing> {
        self.listings().find(|listing| listing.answered(echo, true).is_some())
    }

    fn listings(&self) -> impl Iterator<Item = &Listing> {
        self.entries
            .iter()
            .flat_map(|entry| entry.listing.iter().chain(entry.by_window.iter().flatten()))
            .map(|it| &**it)
    }
}

/// The offer to relay EIP-2612 permits for Permit2. Stock clients sign one only where this stands. Its `info` has nothing
/// that every client's own would not have: some send theirs in its place.
fn sponsoring() -> Value {
    let text = json!({"type": "string"});
    let fields = ["from", "asset", "spender", "amount", "nonce", "deadline", "signature", "version"];
    let properties: Map<_, _> = fields.iter().map(|field| ((*field).to_owned(), text.clone())).collect();
    json!({
        "info": {"version": "1"},
        "schema": {"type": "object", "properties": properties, "required": fields},
    })
}

/// What `Allow` lists for a route that takes every method.
const USUAL_METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

impl Entry {
    /// What it says at this moment, Unix seconds.
    fn verdict(&self, at_s: u64) -> Verdict<'_> {
        match self.listing_at(at_s) {
            Some(listing) => Verdict::Paid(listing),
            None => Verdict::Free(&self.route),
        }
    }
}

impl Group {
    /// What its routes look at, as far as it can be read: `None` where they look at nothing, or the head is doubtful.
    fn seen<'s>(&'s self, asked: &Asked<'s>, body: Option<&'s Result<BodySeen, Doubt>>) -> Option<Seen<'s>> {
        let seen = self.looks.as_ref()?.at_the_head(asked.headers, asked.query).ok()?;
        Some(match body {
            Some(Ok(body)) => seen.with_body(body),
            _ => seen,
        })
    }

    /// Refuses a request; where all routes only watch, only says so.
    fn refuses<'p>(&'p self, verdict: Verdict<'p>) -> Verdict<'p> {
        if !self.is_shadow {
            return verdict;
        }
        let code = match &verdict {
            Verdict::OtherMethods(_) => answer::METHOD_NOT_ALLOWED,
            Verdict::NoneMet => answer::NO_CONDITION_MET,
            Verdict::Doubtful(doubt) => doubt.code().1,
            _ => return verdict,
        };
        Verdict::Watched(&self.first, code)
    }
}

impl Index {
    fn of(groups: &[Group]) -> Self {
        let mut index = Self::default();
        if groups.len() < MIN_INDEXED {
            return index;
        }
        let firsts: Vec<_> = groups.iter().map(|group| group.first.pattern.first_literal()).collect();
        for (place, first) in firsts.iter().enumerate() {
            match first {
                Some(first) => index.by_first.entry(first.to_ascii_lowercase()).or_default().push(place),
                None => index.others.push(place),
            }
        }
        for places in index.by_first.values_mut() {
            places.extend(&index.others);
            places.sort_unstable();
        }
        index
    }

    /// The groups that may match, the most specific first; `None` where all may.
    fn of_path(&self, path: &CleanPath<'_>) -> Option<&[usize]> {
        if self.by_first.is_empty() {
            return None;
        }
        let first = path.first_segment().unwrap_or_default();
        let known = if first.iter().any(u8::is_ascii_uppercase) {
            self.by_first.get(first.to_ascii_lowercase().as_slice())
        } else {
            self.by_first.get(first)
        };
        Some(known.unwrap_or(&self.others))
    }
}

/// Pairs of routes of one host and path that both match some request although neither is more specific. Methods decide
/// before conditions do: a route that names a method goes before one that takes all.
fn ambiguities(routes: &[Route]) -> Vec<Ambiguity> {
    let mut found = Vec::new();
    for (second, later) in routes.iter().enumerate() {
        for (first, earlier) in routes.iter().enumerate().take(second) {
            if !earlier.stands_beside(later) || earlier.methods.is_empty() != later.methods.is_empty() {
                continue;
            }
            let shared: Vec<_> = earlier.methods.iter().filter(|method| later.methods.contains(method)).collect();
            if shared.is_empty() && !later.methods.is_empty() {
                continue;
            }
            let (one, other) = (&earlier.conditions, &later.conditions);
            let Some(both) = one.and(other) else { continue };
            // One of the two is the more specific.
            if one.implies(other) != other.implies(one) {
                continue;
            }
            let decides = |route: &&Route| {
                route.stands_beside(later)
                    && route.methods.is_empty() == later.methods.is_empty()
                    && route.conditions == both
            };
            let settled = |method: &&Method| routes.iter().filter(decides).any(|route| route.methods.contains(method));
            let is_settled = one != other
                && if shared.is_empty() {
                    routes.iter().any(|route| decides(&route))
                } else {
                    shared.iter().all(settled)
                };
            if !is_settled {
                let missing = (one != other).then_some(both);
                found.push(Ambiguity { first, second, pattern: later.pattern.to_string(), missing });
            }
        }
    }
    found
}

#[cfg(test)]
impl Terms {
    /// Those of a provider on Base Sepolia, for tests of whatever needs some.
    pub(crate) fn sample() -> Self {
        let network = crate::protocol::Network::by_name("base-sepolia").unwrap();
        Self {
            chain_id: network.chain_id,
            token: TokenTerms::preset(network.token("usdc").unwrap()),
            pay_to: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            withdraw_delay_s: 900,
            max_timeout_s: 60,
            max_in_flight: 32,
            min_deposit: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::matching::{HeaderText, Pattern, Place};
    use crate::pricing::{Days, End, Rate, Tier, Unit, Window};
    use crate::protocol::x402::{Quote, QuoteDetails};

    fn terms() -> Terms {
        Terms { min_deposit: Some(Amount::new(1000)), ..Terms::sample() }
    }

    fn route(pattern: &str, methods: &[Method], price: u128) -> Route {
        let price = if price == 0 { Price::Free } else { Price::Fixed(Amount::new(price)) };
        Route { methods: methods.to_vec(), ..Route::new(PathPattern::parse(pattern).unwrap(), price) }
    }

    fn quote(listing: &Listing, path_and_query: &str) -> Quote {
        let details = QuoteDetails { error: "Payment required", path_and_query, corrective: None };
        let (header, _) = listing.preferred.quote.write(details, None);
        crate::protocol::x402::decode(header.as_bytes()).unwrap()
    }

    fn judge<'p>(policy: &'p Policy, method: &Method, path: &str) -> Verdict<'p> {
        let headers = HeaderMap::new();
        policy.judge(&Asked { method, path, query: None, host: None, headers: &headers, at: 0 })
    }

    fn policy(routes: Vec<Route>) -> Policy {
        Policy::new(terms(), "https://api.example/", routes).unwrap()
    }

    #[test]
    fn the_most_specific_route_decides() {
        let policy = policy(vec![
            route("/*", &[], 0),
            route("/v1/*", &[], 10),
            route("/v1/chat", &[Method::POST], 20),
            route("/v1/chat", &[], 30),
            route("/v1/models", &[Method::GET], 40),
        ]);
        let cases = [
            (Method::GET, "/", Some(0)),
            (Method::GET, "/v1/other", Some(10)),
            (Method::POST, "/v1/chat", Some(20)),
            (Method::GET, "/v1/chat", Some(30)),
            (Method::GET, "/v1/models", Some(40)),
            (Method::HEAD, "/v1/models", Some(40)),
            (Method::POST, "/v1/models", None),
            (Method::GET, "/v1/%6dodels/", Some(40)),
        ];
        for (method, path, expected) in cases {
            let price = match judge(&policy, &method, path) {
                Verdict::Free(_) => Some(0),
                Verdict::Paid(listing) => Some(listing.preferred.price.units()),
                Verdict::OtherMethods(methods) => {
                    assert_eq!(methods, [Method::GET]);
                    None
                }
                other => panic!("{method} {path}: {other:?}"),
            };
            assert_eq!(price, expected, "{method} {path}");
        }
        assert!(matches!(judge(&policy, &Method::GET, "/v1/../x"), Verdict::Unclear(PathError::DotSegment)));
    }

    #[test]
    fn a_path_that_is_another_routes_to_a_laxer_server_is_refused() {
        let policy = policy(vec![
            route("/*", &[], 0),
            route("/v1/chat", &[], 20),
            route("/v1/{x}", &[], 10),
            route("/Files", &[], 5),
            route("/files", &[], 6),
        ]);
        let refused =
            ["/V1/chat", "/v1/CHAT", "/v1/chat;x=1", "/v1;y/chat", "/v1/cha%54", "/V1/other", "/v1/%63hat%3b"];
        for path in refused {
            let verdict = judge(&policy, &Method::GET, path);
            assert!(matches!(verdict, Verdict::Unclear(PathError::OtherRoute)), "{path}: {verdict:?}");
        }
        for path in ["/a/..;/v1/chat", "/;/v1/chat", "/a/.;x"] {
            assert!(matches!(judge(&policy, &Method::GET, path), Verdict::Unclear(_)), "{path}");
        }
        let taken = [("/v1/chat", 20), ("/v1/Other;x=1", 10), ("/Files", 5), ("/files", 6), ("/Else;x", 0)];
        for (path, expected) in taken {
            let price = match judge(&policy, &Method::GET, path) {
                Verdict::Free(_) => 0,
                Verdict::Paid(listing) => listing.preferred.price.units(),
                other => panic!("{path}: {other:?}"),
            };
            assert_eq!(price, expected, "{path}");
        }
    }

    #[test]
    fn routes_of_one_path_decide_together_wherever_they_stand() {
        let policy = policy(vec![
            route("/a", &[Method::GET], 1),
            route("/b", &[Method::GET], 2),
            route("/a", &[], 3),
            route("/b", &[Method::PUT], 4),
        ]);
        let price = |method: Method, path: &str| match judge(&policy, &method, path) {
            Verdict::Paid(listing) => Some(listing.preferred.price.units()),
            _ => None,
        };
        assert_eq!((price(Method::GET, "/a"), price(Method::POST, "/a")), (Some(1), Some(3)));
        assert_eq!(
            (price(Method::GET, "/b"), price(Method::PUT, "/b"), price(Method::POST, "/b")),
            (Some(2), Some(4), None)
        );
        assert_eq!(
            policy.methods_of(&Asked {
                method: &Method::GET,
                path: "/b",
                query: None,
                host: None,
                headers: &HeaderMap::new(),
                at: 0
            }),
            [Method::GET, Method::PUT]
        );
    }

    /// A route of one price with a host (none if empty) and conditions on the query.
    fn conditional(host: &str, pattern: &str, conditions: &[(&str, &str)], price: u128) -> Route {
        let host = (!host.is_empty()).then(|| HostPattern::parse(host).unwrap());
        let condition = |(name, text): &(&str, &str)| (Place::Query((*name).to_owned()), Pattern::parse(text).unwrap());
        let conditions = Conditions::new(conditions.iter().map(condition));
        Route { host, conditions, ..route(pattern, &[], price) }
    }

    /// The price of `GET` for a target that begins with a host; or why there is none.
    fn price_of(policy: &Policy, url: &str) -> Result<u128, String> {
        let request = Request::get(format!("http://{url}")).body(()).unwrap();
        match policy.judge(&Asked::of(&request)) {
            Verdict::Free(_) => Ok(0),
            Verdict::Paid(listing) => Ok(listing.preferred.price.units()),
            Verdict::NoneMet => Err("none met".to_owned()),
            Verdict::Unknown => Err("unknown".to_owned()),
            Verdict::Doubtful(_) => Err("doubtful".to_owned()),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_host_decides_first_then_the_path_then_the_conditions() {
        let policy = policy(vec![
            conditional("", "/*", &[], 1),
            conditional("", "/v1/chat", &[], 2),
            conditional("a.example", "/v1/*", &[], 3),
            conditional("*.example", "/v1/chat", &[], 4),
            conditional("", "/c", &[("m", "x*")], 5),
            conditional("", "/c", &[("m", "xy*")], 6),
            conditional("", "/c", &[("n", "*")], 7),
            conditional("", "/c", &[("m", "x*"), ("n", "*")], 8),
            conditional("", "/c", &[("m", "xy*"), ("n", "*")], 9),
            conditional("b.example", "/c", &[], 10),
        ]);
        let cases = [
            ("other/v1/chat", Ok(2)),
            ("A.example:80/v1/chat", Ok(3)),
            ("a.example/c?m=x", Ok(5)),
            ("x.example/v1/chat", Ok(4)),
            ("x.example/v1/other", Ok(1)),
            ("b.example/c?m=x", Ok(10)),
            ("h/c?m=xz", Ok(5)),
            ("h/c?m=xyz", Ok(6)),
            ("h/c?n", Ok(7)),
            ("h/c?n&m=x", Ok(8)),
            ("h/c?n&m=xy", Ok(9)),
            ("h/c", Err("none met")),
            ("h/c?m=y", Err("none met")),
            ("h/c?m=x&m=xy", Err("doubtful")),
        ];
        for (url, expected) in cases {
            assert_eq!(price_of(&policy, url), expected.map_err(str::to_owned), "{url}");
        }
    }

    #[test]
    fn a_long_price_list_is_judged_as_a_short_one() {
        let some = ["/*", "/a/*", "/A/b", "/{x}/b", "/a/b/c", "/", "/é"];
        let few: Vec<_> = (1..).zip(some).map(|(price, path)| route(path, &[], price)).collect();
        let fillers = (0..200).map(|n| route(&format!("/filler{n}/x"), &[], 1_000));
        let (short, long) = (policy(few.clone()), policy(few.into_iter().chain(fillers).collect()));
        assert!(short.index.by_first.is_empty() && !long.index.by_first.is_empty());
        for path in ["/", "/a", "/a/x", "/A/b", "/a/b", "/q/b", "/a/b/c", "/a;v=1/b/c", "/%61/b/c", "/%C3%A9", "/q/r/s"]
        {
            let verdicts = [&short, &long].map(|policy| format!("{:?}", price_of(policy, &format!("h{path}"))));
            assert_eq!(verdicts[0], verdicts[1], "{path}");
        }
        assert_eq!(price_of(&long, "h/filler7/x"), Ok(1_000));
        assert_eq!(price_of(&long, "h/filler7/y"), Ok(1));
    }

    #[test]
    fn a_path_whose_routes_only_watch_refuses_nothing() {
        let shadow = || Some(Arc::new(Rules { shadow: true, ..Rules::default() }));
        let watching = || Route { rules: shadow(), ..conditional("", "/c", &[("m", "x")], 5) };
        let strict = conditional("", "/c", &[("n", "x")], 5);
        let all = conditional("", "/c", &[("m", "x"), ("n", "x")], 5);
        let judged = |routes: Vec<Route>, url: &str| price_of(&policy(routes), url);
        assert!(judged(vec![watching()], "h/c").unwrap_err().contains("no_condition_met"));
        assert!(judged(vec![watching()], "h/c?m=x&m=x").unwrap_err().contains("unclear_request"));
        assert_eq!(judged(vec![watching(), strict, all], "h/c"), Err("none met".to_owned()), "one of them is strict");
    }

    #[test]
    fn an_explanation_decides_as_the_gate_does_and_says_why() {
        let policy = policy(vec![
            conditional("", "/*", &[], 1),
            conditional("a.example", "/c", &[], 3),
            conditional("", "/c", &[("m", "x*")], 5),
            Route { methods: vec![Method::POST], ..conditional("", "/c", &[], 6) },
        ]);
        let explain = |url: &str| {
            let request = Request::get(format!("http://{url}")).body(()).unwrap();
            policy.explain(&Asked::of(&request), None)
        };
        let explained = explain("h/c?m=xy");
        assert_eq!((explained.decision, explained.status, explained.price), ("paid", Some(402), Some(Amount::new(5))));
        let why: Vec<_> = explained.considered.iter().map(|route| (&*route.path, &*route.why)).collect();
        let expected = [
            ("/c", "its host is another"),
            ("/c", "it is not for GET"),
            ("/c", "the most specific that matches"),
            ("/*", "another route's host or path is more specific"),
        ];
        assert_eq!(why, expected);
        let explained = explain("h/c?m=y");
        assert_eq!(
            (explained.decision, explained.code, &explained.route),
            ("refused", Some("no_condition_met"), &None)
        );
        assert_eq!(explained.considered[2].why, "query.m = \"x*\" is not met");
        assert!(serde_json::to_string(&explained).unwrap().contains("no_condition_met"));
    }

    #[test]
    fn what_no_route_names_is_unknown() {
        let policy = policy(vec![route("/v1/*", &[], 10)]);
        assert!(matches!(judge(&policy, &Method::GET, "/"), Verdict::Unknown));
        assert!(matches!(judge(&policy, &Method::GET, "/v2"), Verdict::Unknown));
    }

    #[test]
    fn equal_routes_are_an_error_with_both_named() {
        let routes = vec![route("/a/{x}", &[], 1), route("/b", &[], 1), route("/a/{y}/", &[], 2)];
        let errors = Policy::new(terms(), "https://api.example", routes).unwrap_err();
        assert_eq!(errors.len(), 1);
        assert_eq!((errors[0].first, errors[0].second), (0, 2));
        let disjoint = vec![route("/a", &[Method::GET], 1), route("/a", &[Method::POST], 2), route("/a", &[], 3)];
        assert!(Policy::new(terms(), "https://api.example", disjoint).is_ok());
    }

    #[test]
    fn an_offer_holds_the_terms_and_never_asks_for_a_deposit_below_its_price() {
        let offer = terms().offer(Amount::new(2000));
        assert_eq!(offer.network, "eip155:84532");
        assert_eq!(offer.extra["minDeposit"], json!("2000"));
        assert_eq!(terms().offer(Amount::new(10)).extra["minDeposit"], json!("1000"));
        assert_eq!(offer.extra["withdrawDelay"], json!(900));
    }

    #[test]
    fn only_an_offer_of_a_permit2_token_says_so_and_offers_to_relay_permits() {
        let permit2 = Some(&json!("permit2"));
        for (transfer, sponsored, method) in
            [(Transfer::Eip3009, true, None), (Transfer::Permit2, true, permit2), (Transfer::Permit2, false, permit2)]
        {
            let mut terms = terms();
            (terms.token.transfer, terms.token.sponsored) = (transfer, sponsored);
            let policy = Policy::new(terms, "https://api.example", vec![route("/a", &[], 10)]).unwrap();
            let quote = quote(policy.first_paid().unwrap(), "/a");
            assert_eq!(quote.accepts[0].extra.get("assetTransferMethod"), method);
            let info = quote.extensions.get("eip2612GasSponsoring").map(|extension| &extension["info"]);
            assert_eq!(info, method.filter(|_| sponsored).map(|_| json!({"version": "1"})).as_ref());
        }
    }

    /// Every day from eight to nine, UTC, at this price.
    fn at_eight(price: Price) -> Schedule<Price> {
        let window = Window { days: Days::ALL, from_min: 480, until_min: 540, zone: jiff::tz::TimeZone::UTC };
        Schedule::new(vec![(window, price)]).unwrap()
    }

    const EIGHT: u64 = 8 * 3_600;
    const NINE: u64 = 9 * 3_600;

    fn judge_at<'p>(policy: &'p Policy, path: &str, at: u64) -> Verdict<'p> {
        let headers = HeaderMap::new();
        policy.judge(&Asked { method: &Method::GET, path, query: None, host: None, headers: &headers, at })
    }

    #[test]
    fn the_price_of_the_hour_is_in_force() {
        let fixed = |price| Price::Fixed(Amount::new(price));
        let policy = policy(vec![
            Route { schedule: at_eight(fixed(5)), ..route("/dearer", &[], 3) },
            Route { schedule: at_eight(Price::Free), ..route("/free", &[], 3) },
            Route { schedule: at_eight(fixed(5)), ..route("/paid", &[], 0) },
        ]);
        let price = |path: &str, at| match judge_at(&policy, path, at) {
            Verdict::Paid(listing) => {
                assert_eq!(listing.preferred.offer.offer().amount, listing.preferred.price);
                assert_eq!(quote(listing, path).accepts[0].amount, listing.preferred.price);
                listing.preferred.price.units()
            }
            Verdict::Free(_) => 0,
            other => panic!("{other:?}"),
        };
        for (path, at_eight, otherwise) in [("/dearer", 5, 3), ("/free", 0, 3), ("/paid", 5, 0)] {
            let prices = [EIGHT - 1, EIGHT, NINE - 1, NINE].map(|at| price(path, at));
            assert_eq!(prices, [otherwise, at_eight, at_eight, otherwise], "{path}");
        }
        let only_then = Policy::new(terms(), "", vec![Route { schedule: at_eight(fixed(5)), ..route("/a", &[], 0) }]);
        assert_eq!(only_then.unwrap().first_paid().map(|listing| listing.preferred.price), Some(Amount::new(5)));
    }

    #[test]
    fn only_the_offer_of_a_tariff_tells_it() {
        let rate = Rate { unit: Unit::Events, tiers: vec![Tier { up_to: None, price: Amount::new(100), per: 1 }] };
        let tariff = Tariff { base: Amount::new(50), rates: vec![rate], most: Amount::new(1_000) };
        let metered = Price::Metered(Arc::new(tariff));
        let policy = policy(vec![Route::new(PathPattern::parse("/m").unwrap(), metered), route("/f", &[], 7)]);
        let Verdict::Paid(listing) = judge(&policy, &Method::GET, "/m") else { panic!() };
        let offer = &quote(listing, "/m").accepts[0];
        assert_eq!(offer.amount, Amount::new(1_000));
        let text = "$0.00005 a request, $0.0001 an event; at most $0.001; the sum is rounded up to a whole unit of the \
                    token";
        assert_eq!(offer.extra["tariff"], json!(text));
        let measured = |status| Measured { events: 3, ..Measured::nothing(status, End::Complete) };
        assert_eq!(listing.charge(&listing.preferred, &measured(200)), Amount::new(350));
        assert_eq!(listing.charge(&listing.preferred, &measured(404)), Amount::ZERO);
        let Verdict::Paid(listing) = judge(&policy, &Method::GET, "/f") else { panic!() };
        assert_eq!(quote(listing, "/f").accepts[0].extra.get("tariff"), None);
        assert_eq!(listing.charge(&listing.preferred, &measured(200)), Amount::new(7));
    }

    #[test]
    fn a_quote_names_the_public_url() {
        let policy = policy(vec![route("/v1/*", &[], 10)]);
        let Verdict::Paid(listing) = judge(&policy, &Method::GET, "/v1/x") else { panic!() };
        let quote = quote(listing, "/v1/x?q=1");
        assert_eq!(quote.resource.url, "https://api.example/v1/x?q=1");
        assert_eq!(quote.accepts.len(), 1);
    }

    #[test]
    fn what_routes_look_at_is_told_and_nothing_else() {
        let conditions = Conditions::new(vec![
            (Place::Header(HeaderText("x-tier".parse().unwrap())), Pattern::parse("gold").unwrap()),
            (Place::Query("model".to_owned()), Pattern::parse("*").unwrap()),
            (Place::Body(vec!["a".to_owned(), "b".to_owned()]), Pattern::Flag(true)),
        ]);
        let policy = policy(vec![Route { conditions, ..route("/a", &[], 3) }, route("/b", &[], 4)]);
        let request = |path: &str| {
            let request = Request::get(format!("http://h{path}?model=big%20one&secret=x"));
            request.header("x-tier", "silver").header("authorization", "s3cret").body(()).unwrap()
        };
        let told = |path: &str| {
            let request = request(path);
            let asked = Asked::of(&request);
            let body = br#"{"a": {"b": true, "c": 1}, "d": "s3cret"}"#;
            let seen = policy.body_looks(&asked).map(|looks| looks.in_the_body(asked.headers, body));
            policy.matched(&asked, seen.as_ref())
        };
        let expected = [(r#"body ["a","b"]"#, "true"), ("header x-tier", "silver"), ("query model", "big one")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(told("/a").into_iter().collect::<Vec<_>>(), expected);
        assert!(told("/b").is_empty());
    }
}
