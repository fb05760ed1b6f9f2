//! One life of the provider's process: the gate, its books on disk, and redemption. It can die at any step.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use peaje::chain::{AlloyChain, ChainSettings, Counting};
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Policy, Price, Route, Terms};
use peaje::gate::{Accounts, Desk, Gate};
use peaje::protocol::Amount;
use peaje::protocol::contracts::SETTLEMENT;
use peaje::protocol::x402::PAYMENT_SIGNATURE;
use peaje::redeem::{Redemption, Settings};
use peaje::store::sqlite::SqliteStore;
use peaje::store::{ChannelRow, Cursor, Entry, Identity, LedgerStore, StoreError, Transaction};
use tower::{Layer as _, ServiceExt as _};

use super::gateway::{Gateway, Switch, When};
use super::node::{CHAIN_ID, dev};
use super::payer::Payment;

/// What a request costs by its path, atomic units.
pub(crate) const PRICES: [(&str, u128); 2] = [("/paid", 2_000), ("/odd", 777)];

/// How long a graceful stop may take.
const STOP: Duration = Duration::from_secs(20);

/// How long starting may take.
const START: Duration = Duration::from_secs(20);

pub(crate) const IDENTITY: Identity = Identity { chain_id: CHAIN_ID, settlement: SETTLEMENT };

/// Books on disk of a process that may die between any two commits, or in one.
struct Books {
    disk: SqliteStore,
    switch: Arc<Switch>,
}

impl LedgerStore for Books {
    fn channels(&mut self, each: &mut dyn FnMut(ChannelRow) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.disk.channels(each)
    }

    fn unfinished(&mut self) -> Result<Vec<Transaction>, StoreError> {
        self.disk.unfinished()
    }

    fn cursor(&mut self) -> Result<Option<Cursor>, StoreError> {
        self.disk.cursor()
    }

    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let dead = || Err(StoreError::Full("the process is dead".into()));
        let death = self.switch.at_commit();
        if death == Some(When::Before) {
            self.switch.kill();
        }
        if self.switch.is_dead() {
            return dead();
        }
        self.disk.commit(entries)?;
        if death == Some(When::After) {
            self.switch.kill();
            return dead();
        }
        Ok(())
    }
}

pub(crate) struct Life {
    runtime: tokio::runtime::Runtime,
    pub(crate) gate: Gate,
    pub(crate) redemption: Option<Redemption>,
    pub(crate) switch: Arc<Switch>,
}

impl Life {
    /// Starts a process on books that exist or not. It may die before it is up.
    pub(crate) async fn begin(
        books: &Path,
        gateway: &Gateway,
        switch: Arc<Switch>,
        terms: &Terms,
        settings: Settings,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let route = |(path, price): &(&str, u128)| {
            Route::new(PathPattern::parse(path).unwrap(), Price::Fixed(Amount::new(*price)))
        };
        let policy = Policy::new(terms.clone(), "https://api.example", PRICES.iter().map(route).collect()).unwrap();
        let (desk, questions) = Desk::new();
        let disk = open_books(books);
        let (accounts, opening) = Accounts::open(Books { disk, switch: Arc::clone(&switch) }).unwrap();
        let gate = Gate::with_accounts(policy, desk, accounts);
        let nodes: Vec<_> = gateway.addresses_of(&switch).iter().map(|url| url.parse().unwrap()).collect();
        // A deposit counts once it has as many blocks on it as a transaction must have to be believed.
        let deposits = Counting { confirmations: settings.sending.confirmations, instant: Amount::ZERO };
        let chain = ChainSettings { nodes, gas_key: Some(dev("gas")), deposits, max_lag: None };
        let at_work = gate.clone();
        let mut started = runtime.spawn(async move {
            // A supervisor starts a process again that could not reach its node.
            let chain = loop {
                match AlloyChain::open(chain.clone()).await {
                    Ok(chain) => break Arc::new(chain),
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            };
            Redemption::start(at_work, questions, chain, dev("authorizer"), settings, opening)
        });
        let begun = std::time::Instant::now();
        let redemption = loop {
            match tokio::time::timeout(Duration::from_millis(5), &mut started).await {
                Ok(redemption) => break Some(redemption.unwrap()),
                Err(_) if switch.is_dead() => break None,
                Err(_) => assert!(begun.elapsed() < START, "the process does not start"),
            }
        };
        Self { runtime, gate, redemption, switch }
    }

    pub(crate) fn accounts(&self) -> &Accounts {
        self.gate.accounts()
    }

    /// Ends as by a power cut: nothing that runs gets another step, nothing that waits is written.
    pub(crate) fn crash(self) {
        self.switch.kill();
        let journal = self.accounts().journal().clone();
        self.runtime.shutdown_background();
        journal.close();
    }

    /// Ends as told to; false if it does not.
    pub(crate) async fn stop(self) -> bool {
        let journal = self.accounts().journal().clone();
        let stopped = match &self.redemption {
            Some(redemption) => tokio::time::timeout(STOP, redemption.stop()).await.is_ok(),
            None => true,
        };
        self.runtime.shutdown_background();
        journal.close();
        stopped
    }

    /// Sends a paid request, in the process's own runtime.
    pub(crate) fn paying(&self, path: &str, payment: &Payment) -> tokio::task::JoinHandle<(StatusCode, HeaderMap)> {
        let request = Request::get(path).header(PAYMENT_SIGNATURE, payment.header()).body(()).unwrap();
        let served = tower::service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
        });
        let service = self.gate.layer().layer(served);
        self.runtime.spawn(async move {
            let (parts, _) = service.oneshot(request).await.unwrap().into_parts();
            (parts.status, parts.headers)
        })
    }
}

/// Opens the books. A process that crashed may hold them for a moment longer: its last thread has to see that it is over.
fn open_books(directory: &Path) -> SqliteStore {
    let begun = Instant::now();
    loop {
        match SqliteStore::open(directory, IDENTITY) {
            Err(StoreError::InUse { .. }) if begun.elapsed() < MAX_FAREWELL => {
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => return opened.unwrap(),
        }
    }
}

/// How long a crashed process may hold its books.
const MAX_FAREWELL: Duration = Duration::from_secs(10);
