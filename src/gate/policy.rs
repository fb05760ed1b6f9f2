//! What is for sale, at what price, on which terms.
//!
//! **Owns** the routes and the offers made from them. **Promises** that the most specific route decides, that what no
//! route names is not served, and that a quote is a pure function of the policy and the request. **Does not** know who
//! pays; that is the accounts' business.

use std::sync::Arc;

use http::header::HOST;
use http::{HeaderMap, Method, Request};
use serde_json::{Map, Value, json};

use super::path::{CleanPath, PathError, PathPattern};
use super::tender::Tender;
use crate::clock;
use crate::pricing::Tariff;
use crate::protocol::deposit::EIP2612_SPONSORING;
use crate::protocol::x402::{MAX_IN_FLIGHT, Offer, PERMIT2_METHOD, Resource, SCHEME, TRANSFER_METHOD, network_of};
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
    /// So much for each answer below status 400, unless the upstream reports less. Never zero.
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
    /// Which paths.
    pub pattern: PathPattern,
    /// Which methods; empty means all. `GET` covers `HEAD`.
    pub methods: Vec<Method>,
    /// At what price.
    pub price: Price,
    /// What it is, for the quote.
    pub description: Option<String>,
    /// The type of its answers, for the quote.
    pub mime_type: Option<String>,
    /// What the quote advertises beside the price, by extension key.
    pub extensions: Map<String, Value>,
}

impl Route {
    /// A route for all methods with nothing but a price.
    pub fn new(pattern: PathPattern, price: Price) -> Self {
        Self {
            name: pattern.to_string().into(),
            pattern,
            methods: Vec::new(),
            price,
            description: None,
            mime_type: None,
            extensions: Map::new(),
        }
    }

    fn takes(&self, method: &Method) -> bool {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.methods.is_empty() || self.methods.contains(method)
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
}

/// A price list with its terms: an immutable snapshot that one request uses from beginning to end.
#[derive(Debug)]
pub struct Policy {
    preferred: Arc<Tender>,
    /// All of them, the preferred one first.
    tenders: Vec<Arc<Tender>>,
    public_url: String,
    entries: Vec<Entry>,
}

/// A route, and what it is quoted as.
#[derive(Debug)]
struct Entry {
    route: Arc<Route>,
    /// Where it costs something.
    listing: Option<Listing>,
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
        // Among equal paths a route that names its methods is the more specific one.
        routes.sort_by_key(|route| (route.pattern.specificity(), route.methods.is_empty()));
        let origin = public_url.trim_end_matches('/');
        let entry = |route: Arc<Route>| {
            let Route { description, mime_type, .. } = &*route;
            let (description, mime_type) = (description.clone(), mime_type.clone());
            let resource = Resource { url: origin.to_owned(), description, mime_type };
            Entry { listing: Listing::of(&route, &tenders, &resource), route }
        };
        let entries = routes.into_iter().map(entry).collect();
        Ok(Self { preferred, tenders, public_url: origin.to_owned(), entries })
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

    /// What a request costs.
    pub fn judge(&self, asked: &Asked<'_>) -> Verdict<'_> {
        let Asked { method, .. } = *asked;
        let path = match CleanPath::parse(asked.path) {
            Ok(path) => path,
            Err(error) => return Verdict::Unclear(error),
        };
        let mut siblings = self.siblings(&path).peekable();
        let Some(Entry { route: first, .. }) = siblings.peek() else { return Verdict::Unknown };
        // An upstream that is laxer about paths than we are must not serve a dear route at the price of a wide one.
        let lax = match path.without_parameters() {
            Ok(lax) => lax,
            Err(error) => return Verdict::Unclear(error),
        };
        let other = self.routes().find(|route| route.pattern.matches_in_any_case(&lax));
        // Mostly it is the very same.
        let other = other.filter(|other| !Arc::ptr_eq(other, first));
        if other.is_some_and(|other| other.pattern.specificity() < first.pattern.specificity()) {
            return Verdict::Unclear(PathError::OtherRoute);
        }
        match siblings.find(|entry| entry.route.takes(method)) {
            Some(Entry { listing: Some(listing), .. }) => Verdict::Paid(listing),
            Some(Entry { route, listing: None }) => Verdict::Free(route),
            None => Verdict::OtherMethods(self.siblings(&path).flat_map(|entry| entry.route.methods.clone()).collect()),
        }
    }

    /// The methods a path is sold or given away for.
    pub fn methods_of(&self, raw_path: &str) -> Vec<Method> {
        let Ok(path) = CleanPath::parse(raw_path) else { return Vec::new() };
        let methods =
            |route: &Route| if route.methods.is_empty() { USUAL_METHODS.to_vec() } else { route.methods.clone() };
        self.siblings(&path).flat_map(|entry| methods(&entry.route)).collect()
    }

    /// The routes of the most specific path that matches. Only they decide: a method they do not list must not fall
    /// through to a wider, perhaps cheaper, route.
    fn siblings<'p>(&'p self, path: &CleanPath<'_>) -> impl Iterator<Item = &'p Entry> {
        let mut on_path = self.entries.iter().filter(move |entry| entry.route.pattern.matches(path));
        let first = on_path.next();
        let same =
            move |entry: &&Entry| first.is_some_and(|first| entry.route.pattern.same_paths(&first.route.pattern));
        first.into_iter().chain(on_path.take_while(same))
    }

    /// The first route that costs something, for answers that need an offer without a paid path.
    pub fn first_paid(&self) -> Option<&Listing> {
        self.entries.iter().find_map(|entry| entry.listing.as_ref())
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

fn ambiguities(routes: &[Route]) -> Vec<Ambiguity> {
    let overlap = |a: &Route, b: &Route| match (a.methods.is_empty(), b.methods.is_empty()) {
        (true, true) => true,
        (false, false) => a.methods.iter().any(|method| b.methods.contains(method)),
        _ => false,
    };
    let mut found = Vec::new();
    for (second, later) in routes.iter().enumerate() {
        for (first, earlier) in routes.iter().enumerate().take(second) {
            if earlier.pattern.same_paths(&later.pattern) && overlap(earlier, later) {
                found.push(Ambiguity { first, second, pattern: later.pattern.to_string() });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::x402::{Quote, QuoteDetails};

    fn terms() -> Terms {
        let token = crate::protocol::Network::by_name("base-sepolia").unwrap().tokens[0];
        Terms {
            chain_id: 84532,
            token: TokenTerms::preset(&token),
            pay_to: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            withdraw_delay_s: 900,
            max_timeout_s: 60,
            max_in_flight: 32,
            min_deposit: Some(Amount::new(1000)),
        }
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
        assert_eq!(policy.methods_of("/b"), [Method::GET, Method::PUT]);
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

    #[test]
    fn a_quote_names_the_public_url() {
        let policy = policy(vec![route("/v1/*", &[], 10)]);
        let Verdict::Paid(listing) = judge(&policy, &Method::GET, "/v1/x") else { panic!() };
        let quote = quote(listing, "/v1/x?q=1");
        assert_eq!(quote.resource.url, "https://api.example/v1/x?q=1");
        assert_eq!(quote.accepts.len(), 1);
    }
}
