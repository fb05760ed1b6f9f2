//! A proxy in this process, in front of upstreams of a test's choice, and somebody with a channel there.
//! Its routes cost a fixed price or what they use.
#![allow(dead_code, reason = "a toolbox: not every test needs every tool")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Asked, Policy, Price, Route, Verdict};
use peaje::gate::{Desk, Gate, Way};
use peaje::ledger::View;
use peaje::pricing::{Rate, Tariff, Tier, Unit};
use peaje::protocol::Amount;
use peaje::proxy::{Bounds, Cors, LAST_REQUEST_TIME, Listener, Upstream, UpstreamSettings};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::payer::{Payer, now_s, usual_terms};

pub(crate) const PRICE: u128 = 2_000;

/// How long any one step may take before the test fails. What a test waits for to its end has a time of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a stand is made of.
pub(crate) struct Setup {
    pub(crate) upstream: UpstreamSettings,
    pub(crate) named: Vec<(&'static str, UpstreamSettings)>,
    /// Paths that cost [`PRICE`], and the ways of their requests. All else is free.
    pub(crate) paid: Vec<(&'static str, Way)>,
    /// Paths that cost what they use.
    pub(crate) metered: Vec<(&'static str, Tariff, Way)>,
    pub(crate) bounds: Bounds,
    pub(crate) drain: Duration,
    pub(crate) last_request_time: Duration,
}

pub(crate) struct Stand {
    pub(crate) address: SocketAddr,
    pub(crate) gate: Gate,
    pub(crate) upstream: Upstream,
    wallet: Payer,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// An upstream with these targets, which has as much time as the test.
pub(crate) fn upstream_of(targets: &[SocketAddr]) -> UpstreamSettings {
    let urls: Vec<_> = targets.iter().map(|target| format!("http://{target}").parse().unwrap()).collect();
    UpstreamSettings {
        connect_timeout: PATIENCE,
        response_timeout: PATIENCE,
        urls: urls.clone(),
        ..UpstreamSettings::of(urls[0].clone())
    }
}

/// So much for each of these, and never more than `most`; atomic units.
pub(crate) fn tariff(unit: Unit, price: u128, most: u128) -> Tariff {
    let tiers = vec![Tier { up_to: None, price: Amount::new(price), per: 1 }];
    Tariff { base: Amount::ZERO, rates: vec![Rate { unit, tiers }], most: Amount::new(most) }
}

impl Setup {
    pub(crate) fn new(upstream: UpstreamSettings) -> Self {
        Self {
            upstream,
            named: Vec::new(),
            paid: vec![("/paid/*", Way::default())],
            metered: Vec::new(),
            bounds: Bounds::default(),
            drain: PATIENCE,
            last_request_time: LAST_REQUEST_TIME,
        }
    }

    pub(crate) async fn open(self) -> Stand {
        peaje::chain::install_tls();
        let terms = usual_terms();
        let route = |path: &str, price| Route::new(PathPattern::parse(path).unwrap(), price);
        let paid = self
            .paid
            .into_iter()
            .map(|(path, way)| Route { way: way.unusual(), ..route(path, Price::Fixed(Amount::new(PRICE))) });
        let metered = self
            .metered
            .into_iter()
            .map(|(path, tariff, way)| Route { way: way.unusual(), ..route(path, Price::Metered(Arc::new(tariff))) });
        let routes = paid.chain(metered).chain([route("/*", Price::Free)]).collect();
        let gate = Gate::new(Policy::new(terms.clone(), "http://h", routes).unwrap(), Desk::closed());
        let wallet = Payer::new(7, &terms, PRICE);
        let view = View { block: 1, balance: Amount::new(1_000_000_000), ..View::default() };
        gate.accounts().observe(wallet.id(), &wallet.config, view).unwrap();
        let upstream = Upstream::new(&self.upstream).unwrap();
        let upstream = upstream.with_named(self.named.iter().map(|(name, settings)| (*name, settings))).unwrap();
        let listener =
            Listener::bind_cores("127.0.0.1:0".parse().unwrap(), NonZeroUsize::new(1).unwrap()).await.unwrap();
        let listener = listener.last_request_time(self.last_request_time);
        let address = listener.address().unwrap();
        let stop = CancellationToken::new();
        let accounts = gate.accounts().clone();
        let stack = peaje::proxy::stack(&gate, upstream.clone(), Cors::Off, self.bounds);
        let serving = listener.serve(stack, stop.clone(), self.drain, move || accounts.abandon());
        let task = Some(tokio::spawn(serving));
        Stand { address, gate, upstream, wallet, stop, task }
    }
}

impl Stand {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What the channel was charged, atomic units.
    pub(crate) fn charged(&self) -> u128 {
        self.gate.accounts().statement(&self.wallet.id()).unwrap().charged.units()
    }

    /// The same, in prices.
    pub(crate) fn charges(&self) -> u128 {
        let charged = self.charged();
        assert_eq!(charged % PRICE, 0);
        charged / PRICE
    }

    /// The payment header of the next request, where one comes after the other.
    pub(crate) fn payment(&self) -> String {
        self.wallet.voucher((self.charges() + 1) * PRICE).header()
    }

    /// The same for what is sold there, whatever it costs: it says yes to the offer of that path.
    pub(crate) fn payment_for(&self, method: &http::Method, path: &str) -> String {
        let (policy, headers) = (self.gate.policy(), http::HeaderMap::new());
        let asked = Asked { method, path, query: None, host: None, headers: &headers, at: now_s() };
        let Verdict::Paid(listing) = policy.judge(&asked) else { panic!("{path} costs nothing") };
        let (offered, most) = (&listing.preferred.offer, listing.preferred.price.units());
        let wallet = Payer { offer: json!(offered.offer()), ..self.wallet.clone() };
        wallet.voucher(self.charged() + most).header()
    }

    /// Tells it to stop, and waits until it has.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        let task = self.task.take().unwrap();
        tokio::time::timeout(2 * PATIENCE, task).await.expect("it stops in time").unwrap();
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Waits until something is so.
pub(crate) async fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "it did not come to that");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
