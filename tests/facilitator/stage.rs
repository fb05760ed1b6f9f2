//! A proxy with its books on disk, in this process but with a runtime of its own: a crash is that runtime shut down under
//! everything that runs in it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use peaje::chain::{AlloyChain, Call, Chain, ChannelEvent, Happening, KeyRef, RpcUrl};
use peaje::cli::site::{Books, Site};
use peaje::config::Config;
use peaje::devnet::{Devnet, DevnetConfig, genesis};
use peaje::facilitator::{DepositTerms, FacilitatedChain, FacilitatorSettings};
use peaje::gate::Statement;
use peaje::gate::policy::Terms;
use peaje::protocol::contracts::SETTLEMENT;
use peaje::protocol::x402::{self, PAYMENT_SIGNATURE};
use peaje::protocol::{Address, Hash, LocalKey};
use peaje::redeem::Report;
use peaje::store::sqlite::SqliteStore;
use peaje::store::{Identity, StoreError};
use serde_json::Value;

use super::node::{self, Node};
use super::office::Office;
use super::payer::{Payer, Payment};

/// What a request costs, atomic units like all sums here.
pub(crate) const PRICE: u128 = 2_000;
/// What a payer has.
pub(crate) const PURSE: u128 = 1_000_000;
/// What it deposits.
pub(crate) const DEPOSIT: u128 = 100_000;

const CHAIN_ID: u64 = 84_532;
const PAY_TO: &str = "0x00000000000000000000000000000000c0ffee01";
const PATIENCE: Duration = Duration::from_secs(40);
/// How long the facilitator may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a patient proxy waits for a refusal.
const REFUSAL_WAIT: Duration = Duration::from_secs(10);

/// Who sends the provider's transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Its own gas key.
    Own,
    /// The facilitator.
    Facilitated,
}

pub(crate) fn dev(name: &str) -> LocalKey {
    format!("dev:{name}").parse::<KeyRef>().unwrap().load(true).unwrap()
}

/// What outlives a process.
pub(crate) struct Stage {
    mode: Mode,
    /// Whether the proxy hears every refusal before it goes on, however slow this machine is.
    pub(crate) patient: bool,
    pub(crate) devnet: Devnet,
    pub(crate) eyes: AlloyChain,
    pub(crate) office: Office,
    /// Where the facilitator is, as the proxy knows it.
    pub(crate) facilitator: String,
    directory: tempfile::TempDir,
    config: Config,
    http: reqwest::Client,
    _node: Node,
}

/// A process.
pub(crate) struct Life {
    runtime: tokio::runtime::Runtime,
    site: Option<Site>,
    url: String,
    http: reqwest::Client,
}

/// What a payer gets.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The receipt, or null.
    pub(crate) receipt: Value,
    /// The error of the quote, if there is one.
    pub(crate) error: Option<String>,
}

pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Stage {
    pub(crate) async fn set(mode: Mode) -> Self {
        let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
        let rpc = devnet.rpc_url();
        let node = Node::start(&rpc);
        let (office, facilitator) = Office::open(node.url.clone()).await;
        let eyes = AlloyChain::connect(rpc.parse().unwrap(), None).await.unwrap();
        let upstream = upstream().await;
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            r#"
            [server]
            listen = "127.0.0.1:0"
            [admin]
            listen = "127.0.0.1:0"
            [upstream]
            url = "http://{upstream}"
            [chain]
            network = "base-sepolia"
            rpc = "{rpc}"
            poll = "50ms"
            [receiver]
            pay_to = "{PAY_TO}"
            authorizer_key = "dev:authorizer"
            [store]
            directory = "books"
            [redeem]
            on_shutdown = false
            [[route]]
            path = "/*"
            price = "$0.002"
            "#
        );
        let config = Config::parse(&text, "peaje.toml").unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { mode, patient: false, devnet, eyes, office, facilitator, directory, config, http, _node: node }
    }

    pub(crate) fn terms(&self) -> Terms {
        self.config.terms(dev("authorizer").address())
    }

    /// The `n`th payer, with [`PURSE`].
    pub(crate) fn payer(&self, n: u8) -> Payer {
        let payer = Payer::new(n, &self.terms(), PRICE);
        self.devnet.mint_dollars(payer.address().0.into(), PURSE).unwrap();
        payer
    }

    /// The proxy, open.
    pub(crate) async fn open(&self) -> Life {
        self.open_with(self.facilitator.clone()).await
    }

    /// The proxy, open, from now on with this one as its sender.
    pub(crate) async fn open_as(&mut self, mode: Mode) -> Life {
        self.mode = mode;
        self.open().await
    }

    /// The same with a facilitator somewhere else.
    pub(crate) async fn open_with(&self, facilitator: String) -> Life {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let books = books_in(self.directory.path()).await;
        let (config, rpc, mode) = (self.config.clone(), self.devnet.rpc_url().parse().unwrap(), self.mode);
        let (terms, patient) = (self.terms(), self.patient);
        let opened = runtime.spawn(async move {
            let authorizer = dev("authorizer");
            match mode {
                Mode::Own => {
                    let chain = AlloyChain::connect(rpc, Some(dev("gas"))).await.unwrap();
                    Site::open(&config, authorizer, Arc::new(chain), books).await.unwrap()
                }
                Mode::Facilitated => {
                    let chain = facilitated(rpc, &facilitator, terms).await;
                    let chain = if patient { chain.refusal_wait(REFUSAL_WAIT) } else { chain };
                    Site::open(&config, authorizer, Arc::new(chain), books).await.unwrap()
                }
            }
        });
        let site = opened.await.unwrap();
        let url = format!("http://{}/thing", site.address());
        Life { runtime, site: Some(site), url, http: self.http.clone() }
    }

    /// A chain behind the facilitator, without a proxy.
    pub(crate) async fn facilitated(&self) -> FacilitatedChain {
        facilitated(self.devnet.rpc_url().parse().unwrap(), &self.facilitator, self.terms()).await
    }

    /// Dollars of an account.
    pub(crate) fn dollars(&self, owner: Address) -> u128 {
        self.devnet.dollar_balance(owner.0.into()).unwrap()
    }

    /// What the provider has.
    pub(crate) fn received(&self) -> u128 {
        self.dollars(PAY_TO.parse().unwrap())
    }

    /// Dollars in all channels.
    pub(crate) fn locked(&self) -> u128 {
        self.dollars(SETTLEMENT)
    }

    /// How many transactions a development account has made.
    pub(crate) async fn made_by(&self, key: LocalKey) -> u64 {
        let chain = AlloyChain::connect(self.devnet.rpc_url().parse().unwrap(), Some(key)).await.unwrap();
        chain.nonces().await.unwrap().mined
    }

    /// How many transactions the proxy's gas key and the facilitator have made.
    pub(crate) async fn made(&self) -> (u64, u64) {
        let facilitator = LocalKey::from_bytes(&genesis::DEV_KEYS[node::KEY].0).unwrap();
        (self.made_by(dev("gas")).await, self.made_by(facilitator).await)
    }

    /// Sends something from the facilitator's account. It does not notice that a block, and with it a nonce it used, is
    /// not there any more.
    pub(crate) async fn use_nonce_of_facilitator(&self) {
        let key = LocalKey::from_bytes(&genesis::DEV_KEYS[node::KEY].0).unwrap();
        let chain = AlloyChain::connect(self.devnet.rpc_url().parse().unwrap(), Some(key)).await.unwrap();
        let receiver = Address([0xee; 20]);
        chain.send(&Call::Settle { receiver, token: self.terms().token.address }).await.unwrap();
    }

    pub(crate) async fn events(&self) -> Vec<ChannelEvent> {
        self.eyes.events(0, self.eyes.head().await.unwrap().number).await.unwrap()
    }

    /// All deposits so far.
    pub(crate) async fn deposits(&self) -> Vec<u128> {
        let amount = |event: ChannelEvent| match event.what {
            Happening::Deposited { amount, .. } => Some(amount.units()),
            _ => None,
        };
        self.events().await.into_iter().filter_map(amount).collect()
    }

    /// All claims so far.
    pub(crate) async fn claims(&self) -> Vec<u128> {
        let amount = |event: ChannelEvent| match event.what {
            Happening::Claimed { amount, .. } => Some(amount.units()),
            _ => None,
        };
        self.events().await.into_iter().filter_map(amount).collect()
    }

    /// Whether a block has this transaction.
    pub(crate) async fn is_on_chain(&self, transaction: Hash) -> bool {
        self.eyes.receipt(transaction).await.unwrap().is_some()
    }

    /// The transactions in the books: what for, and how they ended.
    pub(crate) fn written(&self) -> Vec<(String, String)> {
        let path = self.directory.path().join("books.sqlite3");
        let books = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let mut rows = books.prepare("SELECT purpose, state FROM transactions ORDER BY number").unwrap();
        rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    }

    /// Waits until the transactions in the books are these.
    pub(crate) async fn is_written(&self, expected: &[(&str, &str)]) {
        let are = |written: &[(String, String)]| {
            written.iter().map(|(purpose, state)| (purpose.as_str(), state.as_str())).eq(expected.iter().copied())
        };
        eventually(&format!("{expected:?} is in the books"), async || are(&self.written())).await;
    }
}

impl Life {
    pub(crate) async fn pay(&self, payment: &Payment) -> Answer {
        ask(self.http.clone(), self.url.clone(), Some(payment.header())).await
    }

    /// The same, in a task of its own.
    pub(crate) fn begin(&self, payment: &Payment) -> tokio::task::JoinHandle<Answer> {
        let (http, url, header) = (self.http.clone(), self.url.clone(), payment.header());
        tokio::spawn(async move { ask(http, url, Some(header)).await })
    }

    pub(crate) async fn ask_unpaid(&self) -> Answer {
        ask(self.http.clone(), self.url.clone(), None).await
    }

    pub(crate) async fn redeem(&self) -> Report {
        let redemption = self.site.as_ref().unwrap().redemption().clone();
        self.runtime.spawn(async move { redemption.redeem().await.unwrap() }).await.unwrap()
    }

    /// The claim that operators are told was the last.
    pub(crate) fn last_claim(&self) -> Hash {
        self.site.as_ref().unwrap().redemption().vitals().last_claim.unwrap().transaction
    }

    /// What is due, by the books.
    pub(crate) fn claimable(&self) -> Vec<Statement> {
        self.site.as_ref().unwrap().gate().accounts().claimable()
    }

    /// Orders a redemption and does not wait for it.
    pub(crate) fn begin_to_redeem(&self) {
        let redemption = self.site.as_ref().unwrap().redemption().clone();
        tokio::spawn(async move { redemption.redeem().await });
    }

    /// Pays for `count` requests by voucher, after `before` of them.
    pub(crate) async fn serve(&self, payer: &Payer, before: u128, count: u128) {
        for number in before + 1..=before + count {
            let answer = self.pay(&payer.voucher(number * PRICE)).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }

    /// Stops as it should.
    pub(crate) async fn stop(mut self) {
        let site = self.site.take().unwrap();
        self.runtime.spawn(async move { site.close().await }).await.unwrap();
        self.runtime.shutdown_background();
    }

    /// Ends without warning. What is in the books stays there.
    pub(crate) fn crash(mut self) {
        let site = self.site.take().unwrap();
        let journal = site.gate().accounts().journal().clone();
        self.runtime.shutdown_background();
        journal.close();
        drop(site);
    }
}

/// The books of a process that has ended. One that another test has just started has our files until it becomes another
/// program, and their lock with them.
async fn books_in(directory: &Path) -> Books {
    let identity = Identity { chain_id: CHAIN_ID, settlement: SETTLEMENT };
    let begun = tokio::time::Instant::now();
    loop {
        match SqliteStore::open(directory, identity) {
            Err(StoreError::InUse { .. }) if begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            opened => return Books::open(opened.unwrap()).unwrap(),
        }
    }
}

async fn facilitated(rpc: RpcUrl, facilitator: &str, terms: Terms) -> FacilitatedChain {
    let settings = FacilitatorSettings { url: facilitator.parse().unwrap(), timeout: TIMEOUT };
    let inner = AlloyChain::connect(rpc, None).await.unwrap();
    let terms = DepositTerms {
        token: terms.token.address,
        domain_name: terms.token.domain_name,
        domain_version: terms.token.domain_version,
        max_timeout_s: terms.max_timeout_s,
    };
    FacilitatedChain::open(inner, settings, vec![terms]).await.unwrap()
}

async fn ask(http: reqwest::Client, url: String, header: Option<String>) -> Answer {
    let mut request = http.get(url);
    if let Some(header) = header {
        request = request.header(PAYMENT_SIGNATURE, header);
    }
    let answer = request.send().await.unwrap();
    let header = |name: &str| {
        let text = answer.headers().get(name)?.as_bytes();
        Some(x402::decode::<Value>(text).unwrap())
    };
    let quote = header("payment-required");
    let error = quote.and_then(|quote| quote["error"].as_str().map(str::to_owned));
    Answer { status: answer.status().as_u16(), receipt: header("payment-response").unwrap_or_default(), error }
}

async fn upstream() -> SocketAddr {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let api = Router::new().fallback(|| async { "served" });
    tokio::spawn(async move { axum::serve(socket, api).await });
    address
}
