//! Redemption over books that last: what is written before something is sent, and what the next process makes of what
//! the last one left. The chain is the development chain, behind a gateway that can lose what it is given; a crash is a
//! runtime that is shut down under everything that runs in it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy::primitives::hex;
use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tower::{Layer as _, ServiceExt as _};

use peaje::chain::{AlloyChain, Call, Chain as _, KeyRef};
use peaje::devnet::{Devnet, DevnetConfig, Mining, genesis};
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Policy, Price, Route, Terms, TokenTerms};
use peaje::gate::{Accounts, Desk, Gate};
use peaje::protocol::contracts::SETTLEMENT;
use peaje::protocol::deposit::Authorization;
use peaje::protocol::x402::{self, PAYMENT_SIGNATURE};
use peaje::protocol::{Address, Amount, ChannelConfig, ChannelId, Domain, Hash, LocalKey, Network, Voucher};
use peaje::redeem::{Redemption, Settings};
use peaje::store::sqlite::SqliteStore;
use peaje::store::{
    ChannelRow, ClaimedRow, Cursor, Entry, Fate, Identity, LedgerStore, Moved, Outcome, Purpose, StoreError,
    Transaction,
};

const CHAIN_ID: u64 = 84_532;
const PRICE: u128 = 2_000;
const DEPOSIT: u128 = 10 * PRICE;
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(30);

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn dev(name: &str) -> LocalKey {
    format!("dev:{name}").parse::<KeyRef>().unwrap().load(true).unwrap()
}

fn evm(address: Address) -> alloy::primitives::Address {
    alloy::primitives::Address::new(address.0)
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

// -------------------------------------------------------------------------------------------------------- the books

/// Books in memory that are strict about transactions: one at its end does not end again.
#[derive(Debug, Clone, Default)]
struct Books(Arc<Mutex<Pages>>);

#[derive(Debug, Default)]
struct Pages {
    channels: BTreeMap<ChannelId, ChannelRow>,
    transactions: Vec<Transaction>,
    open: Vec<Hash>,
    outcomes: BTreeMap<Hash, Outcome>,
    cursor: Option<Cursor>,
    /// What happened to transactions, in order: what for, and how it ended.
    story: Vec<(&'static str, Option<Fate>)>,
    /// The disk is full.
    full: bool,
}

impl Books {
    fn with<T>(&self, look: impl FnOnce(&mut Pages) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn read_up_to(&self) -> Option<u64> {
        self.with(|pages| pages.cursor.map(|cursor| cursor.next_block))
    }

    /// The transactions for a purpose, and how each ended.
    fn of(&self, purpose: &str) -> Vec<(Transaction, Option<Fate>)> {
        self.with(|pages| {
            let of = pages.transactions.iter().filter(|transaction| transaction.purpose.as_str() == purpose);
            let fate = |hash| pages.outcomes.get(hash).map(|outcome| outcome.fate.clone());
            of.map(|transaction| (transaction.clone(), fate(&transaction.hash))).collect()
        })
    }

    /// The one transaction for a purpose, once it has ended.
    async fn ended(&self, purpose: &str) -> (Transaction, Fate) {
        eventually("its end is written", async || self.of(purpose).iter().all(|(_, fate)| fate.is_some())).await;
        let mut found = self.of(purpose);
        assert_eq!(found.len(), 1, "{purpose}: {found:?}");
        let (transaction, fate) = found.pop().unwrap();
        (transaction, fate.unwrap())
    }
}

impl LedgerStore for Books {
    fn channels(&mut self, each: &mut dyn FnMut(ChannelRow) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let rows: Vec<_> = self.with(|pages| pages.channels.values().cloned().collect());
        rows.into_iter().try_for_each(each)
    }

    fn unfinished(&mut self) -> Result<Vec<Transaction>, StoreError> {
        Ok(self.with(|pages| {
            let open = |transaction: &&Transaction| pages.open.contains(&transaction.hash);
            pages.transactions.iter().filter(open).cloned().collect()
        }))
    }

    fn cursor(&mut self) -> Result<Option<Cursor>, StoreError> {
        Ok(self.with(|pages| pages.cursor))
    }

    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        self.with(|pages| {
            if pages.full {
                return Err(StoreError::Full("no room".into()));
            }
            for entry in entries {
                match entry {
                    Entry::Channel(entry) => {
                        pages.channels.insert(entry.row.snapshot.id, entry.row.clone());
                    }
                    Entry::Signed(transaction) => {
                        assert!(!pages.open.contains(&transaction.hash), "written twice: {transaction:?}");
                        pages.story.push((transaction.purpose.as_str(), None));
                        pages.transactions.retain(|known| known.hash != transaction.hash);
                        pages.transactions.push((**transaction).clone());
                        pages.outcomes.remove(&transaction.hash);
                        pages.open.push(transaction.hash);
                    }
                    Entry::Ended(outcome) => {
                        assert!(pages.open.contains(&outcome.hash), "ended twice: {outcome:?}");
                        pages.open.retain(|open| *open != outcome.hash);
                        let of = |known: &&Transaction| known.hash == outcome.hash;
                        let purpose = pages.transactions.iter().find(of).unwrap().purpose.as_str();
                        pages.story.push((purpose, Some(outcome.fate.clone())));
                        pages.outcomes.insert(outcome.hash, (**outcome).clone());
                    }
                    Entry::Cursor(cursor) => pages.cursor = Some(*cursor),
                }
            }
            Ok(())
        })
    }
}

// ------------------------------------------------------------------------------------------------------ the gateway

/// What becomes of a transaction that goes through the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The node gets it.
    Open,
    /// Nobody gets it, and the sender waits.
    Lost,
    /// The node gets it, and the sender waits.
    Silent,
    /// The node says no.
    Refused,
}

/// What stands between redemption and the node. It lets no transaction through that is not in the books.
#[derive(Clone)]
struct Gateway(Arc<Lane>);

struct Lane {
    to: String,
    http: reqwest::Client,
    books: Books,
    way: Mutex<Way>,
    /// The first block of every question for events.
    asked_from: Mutex<Vec<u64>>,
    sent: Mutex<Vec<Vec<u8>>>,
    unwritten: Mutex<Vec<Vec<u8>>>,
}

impl Gateway {
    async fn open(to: String, books: Books) -> (Self, String) {
        peaje::chain::install_tls();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let (asked_from, sent, unwritten) = Default::default();
        let lane = Arc::new(Lane { to, http, books, way: Mutex::new(Way::Open), asked_from, sent, unwritten });
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let router = axum::Router::new().fallback(axum::routing::post(pass)).with_state(Arc::clone(&lane));
        tokio::spawn(async move { axum::serve(socket, router).await.unwrap() });
        (Self(lane), url)
    }

    fn set(&self, way: Way) {
        *self.0.way.lock().unwrap() = way;
    }

    /// The transactions that were to be broadcast so far, repetitions included.
    fn sent(&self) -> Vec<Vec<u8>> {
        self.0.sent.lock().unwrap().clone()
    }
}

async fn pass(State(lane): State<Arc<Lane>>, Json(question): Json<Value>) -> Json<Value> {
    let ask = async || lane.http.post(&lane.to).json(&question).send().await.unwrap().json::<Value>().await.unwrap();
    match question["method"].as_str().unwrap() {
        "eth_sendRawTransaction" => {
            let raw = hex::decode(question["params"][0].as_str().unwrap()).unwrap();
            if !lane.books.with(|pages| pages.transactions.iter().any(|known| known.raw == raw)) {
                lane.unwritten.lock().unwrap().push(raw.clone());
            }
            lane.sent.lock().unwrap().push(raw);
            let way = *lane.way.lock().unwrap();
            match way {
                Way::Open => {}
                Way::Lost => std::future::pending().await,
                Way::Silent => {
                    ask().await;
                    std::future::pending().await
                }
                Way::Refused => {
                    let error = json!({"code": -32000, "message": "txpool is full"});
                    return Json(json!({"jsonrpc": "2.0", "id": 1, "error": error}));
                }
            }
        }
        "eth_getLogs" => {
            let from = question["params"][0]["fromBlock"].as_str().unwrap().trim_start_matches("0x");
            lane.asked_from.lock().unwrap().push(u64::from_str_radix(from, 16).unwrap());
        }
        _ => {}
    }
    Json(ask().await)
}

// -------------------------------------------------------------------------------------------------------- the place

/// What outlives a process: the chain and the books; and the accounts of the process that is alive.
struct Place {
    devnet: Devnet,
    books: Books,
    accounts: Mutex<Accounts>,
    gateway: Gateway,
    url: String,
    /// Past the gateway.
    chain: AlloyChain,
}

/// One process.
struct Life {
    runtime: tokio::runtime::Runtime,
    gate: Gate,
    redemption: Redemption,
    terms: Terms,
}

fn terms() -> Terms {
    let usdc = Network::by_chain_id(CHAIN_ID).unwrap().token("usdc").unwrap();
    Terms {
        chain_id: CHAIN_ID,
        token: TokenTerms::preset(usdc),
        pay_to: Address([0xc0; 20]),
        receiver_authorizer: dev("authorizer").address(),
        withdraw_delay_s: 900,
        max_timeout_s: 60,
        min_deposit: None,
    }
}

impl Place {
    async fn new() -> Self {
        let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
        let books = Books::default();
        let accounts = Mutex::new(Accounts::in_memory());
        let (gateway, url) = Gateway::open(devnet.rpc_url(), books.clone()).await;
        let chain = AlloyChain::connect(devnet.rpc_url().parse().unwrap(), Some(dev("5"))).await.unwrap();
        devnet.fund(evm(dev("5").address()), genesis::DEV_BALANCE);
        Self { devnet, books, accounts, gateway, url, chain }
    }

    async fn life(&self) -> Life {
        self.life_with(terms(), dev("authorizer"), POLL).await
    }

    async fn life_with(&self, terms: Terms, authorizer: LocalKey, poll: Duration) -> Life {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let routes = vec![Route::new(PathPattern::parse("/paid").unwrap(), Price::Fixed(Amount::new(PRICE)))];
        let policy = Policy::new(terms.clone(), "https://api.example", routes).unwrap();
        let (desk, questions) = Desk::new();
        self.accounts().journal().close();
        let (accounts, opening) = Accounts::open(self.books.clone()).unwrap();
        *self.accounts.lock().unwrap() = accounts.clone();
        let gate = Gate::with_accounts(policy, desk, accounts);
        let settings = Settings { poll, ..Settings::default() };
        let (url, at_work) = (self.url.parse().unwrap(), gate.clone());
        let started = runtime.spawn(async move {
            let chain = Arc::new(AlloyChain::connect(url, Some(dev("gas"))).await.unwrap());
            Redemption::start(at_work, questions, chain, authorizer, settings, opening)
        });
        let redemption = started.await.unwrap();
        Life { runtime, gate, redemption, terms }
    }

    fn accounts(&self) -> Accounts {
        self.accounts.lock().unwrap().clone()
    }

    fn payer(&self, number: u8) -> Payer {
        self.payer_of(&terms(), number)
    }

    fn payer_of(&self, terms: &Terms, number: u8) -> Payer {
        let key = LocalKey::from_bytes(&[number; 32]).unwrap();
        self.devnet.mint_dollars(evm(key.address()), 100 * DEPOSIT).unwrap();
        Payer { config: terms.channel_of(key.address()), terms: terms.clone(), valid_before: now_s() + 300, key }
    }

    /// How many transactions the proxy's key has in blocks and in the pool.
    async fn nonce(&self) -> u64 {
        let question = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getTransactionCount",
            "params": [evm(dev("gas").address()), "pending"]});
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer: Value =
            http.post(self.devnet.rpc_url()).json(&question).send().await.unwrap().json().await.unwrap();
        u64::from_str_radix(answer["result"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }

    /// What the chain says of a channel: balance, claimed.
    async fn on_chain(&self, payer: &Payer) -> (u128, u128) {
        let view = self.chain.channel(payer.id()).await.unwrap();
        (view.balance.units(), view.total_claimed.units())
    }

    fn earned(&self, receiver: Address) -> u128 {
        self.devnet.dollar_balance(evm(receiver)).unwrap()
    }

    /// Waits until something for this purpose is in the books and open.
    async fn written(&self, purpose: &str) -> Transaction {
        let open = || self.books.of(purpose).into_iter().find(|(_, fate)| fate.is_none());
        eventually("it is written", async || open().is_some()).await;
        open().unwrap().0
    }

    /// Waits until the gateway was given so many transactions, repetitions included.
    async fn sent(&self, count: usize) {
        eventually("it is sent", async || self.gateway.sent().len() >= count).await;
    }

    async fn past_the_proxy(&self, key: LocalKey, call: &Call) {
        self.devnet.fund(evm(key.address()), genesis::DEV_BALANCE);
        let chain = AlloyChain::connect(self.devnet.rpc_url().parse().unwrap(), Some(key)).await.unwrap();
        let hash = chain.send(call).await.unwrap();
        assert!(chain.await_receipt(hash, PATIENCE, POLL).await.unwrap().unwrap().success);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(*self.gateway.0.unwritten.lock().unwrap(), Vec::<Vec<u8>>::new(), "sent before it was written");
        }
    }
}

impl Life {
    /// Ends as by a power cut: nothing that runs gets another step.
    fn crash(self) {
        self.runtime.shutdown_background();
    }

    async fn stop(self) {
        self.redemption.stop().await;
        self.runtime.shutdown_background();
    }

    /// Sends a paid request, in the process's own runtime.
    fn paying(&self, payload: Value) -> tokio::task::JoinHandle<StatusCode> {
        let accepted = json!(self.terms.offer(Amount::new(PRICE)));
        let payment = json!({"x402Version": 2, "accepted": accepted, "payload": payload});
        let request = Request::get("/paid").header(PAYMENT_SIGNATURE, x402::encode(&payment)).body(()).unwrap();
        let served = tower::service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
        });
        let service = self.gate.layer().layer(served);
        self.runtime.spawn(async move { service.oneshot(request).await.unwrap().status() })
    }

    async fn pay(&self, payload: Value) -> StatusCode {
        tokio::time::timeout(PATIENCE, self.paying(payload)).await.expect("answered in time").unwrap()
    }

    /// Opens a channel and charges [`PRICE`] on it.
    async fn opened(&self, payer: &Payer) {
        assert_eq!(self.pay(payer.deposit(1, PRICE)).await, StatusCode::OK);
    }

    /// Orders a round and does not wait for it.
    fn redeeming(&self) {
        let redemption = self.redemption.clone();
        self.runtime.spawn(async move { redemption.redeem().await });
    }
}

struct Payer {
    key: LocalKey,
    config: ChannelConfig,
    terms: Terms,
    valid_before: u64,
}

impl Payer {
    fn id(&self) -> ChannelId {
        self.config.id(&Domain::settlement(CHAIN_ID))
    }

    fn signed(&self, max: u128) -> Value {
        let voucher = Voucher { channel: self.id(), max_claimable: Amount::new(max) };
        json!(voucher.sign(&self.terms.settlement(), &self.key))
    }

    fn voucher(&self, max: u128) -> Value {
        json!({"type": "voucher", "channelConfig": self.config, "voucher": self.signed(max)})
    }

    fn refund(&self, charged: u128) -> Value {
        json!({"type": "refund", "channelConfig": self.config, "voucher": self.signed(charged)})
    }

    fn authorization(&self, salt: u8) -> Authorization {
        let (salt, valid_before) = (Hash([salt; 32]), self.valid_before);
        let nonce = Authorization::nonce(self.id(), salt);
        let (token, payer) = (self.terms.token_domain(), self.config.payer);
        let digest = Authorization::digest(&token, payer, Amount::new(DEPOSIT), 0, valid_before, nonce);
        Authorization { valid_after: 0, valid_before, salt, signature: self.key.sign(digest) }
    }

    fn deposit(&self, salt: u8, max: u128) -> Value {
        let Authorization { valid_before, salt, signature, .. } = self.authorization(salt);
        json!({
            "type": "deposit",
            "channelConfig": self.config,
            "voucher": self.signed(max),
            "deposit": {"amount": Amount::new(DEPOSIT), "authorization": {"erc3009Authorization": {
                "validAfter": "0", "validBefore": valid_before.to_string(), "salt": salt, "signature": signature,
            }}},
        })
    }
}

/// The money that a successful end moved.
#[track_caller]
fn moved(fate: &Fate) -> &[Moved] {
    let Fate::Mined { success: true, fee_wei: Some(1..), gas_used: 1.., moved, .. } = fate else { panic!("{fate:?}") };
    moved
}

// --------------------------------------------------------------------------------------------------------- the tests

#[tokio::test]
async fn everything_is_written_before_it_is_sent_and_when_it_ended() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    life.opened(&payer).await;
    let report = life.redemption.redeem().await.unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(life.pay(payer.voucher(2 * PRICE)).await, StatusCode::OK);
    assert_eq!(life.pay(payer.refund(2 * PRICE)).await, StatusCode::OK);
    life.stop().await;
    place.accounts().journal().close();

    let story = place.books.with(|pages| pages.story.clone());
    let order: Vec<_> = story.iter().map(|(purpose, fate)| (*purpose, fate.is_some())).collect();
    let twice = |purpose| [(purpose, false), (purpose, true)];
    assert_eq!(order, [twice("deposit"), twice("claim"), twice("settle"), twice("refund")].concat());

    let (id, amount) = (payer.id(), Amount::new);
    let (deposit, fate) = place.books.ended("deposit").await;
    let Purpose::Deposit { config, salt, valid_before, .. } = deposit.purpose else { panic!("{deposit:?}") };
    assert_eq!((config, salt, valid_before), (payer.config, Hash([1; 32]), payer.valid_before));
    assert_eq!(moved(&fate), [Moved::Deposited(id, amount(DEPOSIT))]);
    let (claim, fate) = place.books.ended("claim").await;
    assert_eq!(claim.purpose.rows().iter().map(|row| row.total_claimed).collect::<Vec<_>>(), [amount(PRICE)]);
    assert_eq!(moved(&fate), [Moved::Claimed(id, amount(PRICE))]);
    assert_eq!(moved(&place.books.ended("settle").await.1), [Moved::Settled(amount(PRICE))]);
    let (refund, fate) = place.books.ended("refund").await;
    assert!(matches!(refund.purpose, Purpose::Refund { channel, nonce: 0, .. } if channel == id), "{refund:?}");
    let back = amount(DEPOSIT - 2 * PRICE);
    assert_eq!(moved(&fate), [Moved::Claimed(id, amount(PRICE)), Moved::Refunded(id, back)]);
    let all: Vec<_> = [deposit, claim, refund].iter().map(|each| (each.sender, each.nonce)).collect();
    assert_eq!(all, [0, 1, 3].map(|nonce| (dev("gas").address(), nonce)));
}

#[tokio::test]
async fn what_the_node_refuses_was_never_sent_and_the_same_bytes_may_be_written_again() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    life.opened(&payer).await;
    place.gateway.set(Way::Refused);
    for _ in 0..2 {
        assert!(life.redemption.redeem().await.unwrap().problem.is_some());
        assert!(place.books.ended("claim").await.1 == Fate::NeverSent);
    }
    place.gateway.set(Way::Open);
    assert!(life.redemption.redeem().await.unwrap().is_complete());
    eventually("all ends are written", async || place.books.with(|pages| pages.open.is_empty())).await;
    assert_eq!(place.earned(life.terms.pay_to), PRICE);
    life.stop().await;
}

#[test]
fn a_transaction_that_is_signed_again_is_open_again_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity { chain_id: CHAIN_ID, settlement: SETTLEMENT };
    let mut store = SqliteStore::open(folder.path(), identity).unwrap();
    let rows = vec![ClaimedRow { channel: ChannelId([1; 32]), total_claimed: Amount::new(5) }];
    let (hash, sender, purpose) = (Hash([2; 32]), Address([3; 20]), Purpose::Claim { rows });
    let signed = |signed_at| Transaction { hash, sender, nonce: 4, raw: vec![5], signed_at, purpose: purpose.clone() };
    let ended = |fate| Entry::Ended(Box::new(Outcome { hash, at: 20, fate }));
    for fate in [Fate::NeverSent, Fate::GivenUp] {
        store.commit(&[Entry::Signed(Box::new(signed(10)))]).unwrap();
        assert_eq!(store.unfinished().unwrap(), [signed(10)]);
        store.commit(&[ended(fate)]).unwrap();
        assert_eq!(store.unfinished().unwrap(), []);
        store.commit(&[Entry::Signed(Box::new(signed(30)))]).unwrap();
        assert_eq!(store.unfinished().unwrap(), [signed(10)], "as it was signed first");
    }
    // What a block has does not open again, and another transaction is not that one.
    let mined = Fate::Mined { block: 1, success: true, gas_used: 1, fee_wei: None, moved: Vec::new() };
    store.commit(&[ended(mined), Entry::Signed(Box::new(signed(40)))]).unwrap();
    assert_eq!(store.unfinished().unwrap(), []);
    let other = Transaction { raw: vec![6], ..signed(10) };
    store.commit(&[Entry::Signed(Box::new(other))]).unwrap_err();
}

#[tokio::test]
async fn nothing_is_sent_once_the_books_cannot_be_written() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    life.opened(&payer).await;
    let before = (place.nonce().await, place.gateway.sent().len());
    place.books.with(|pages| pages.full = true);
    // The first finds out, the second knows.
    for _ in 0..2 {
        let report = life.redemption.redeem().await.unwrap();
        assert!(report.problem.as_ref().is_some_and(|problem| problem.contains("disk is full")), "{report:?}");
    }
    assert!(place.accounts().journal().latch().is_some());
    let late = place.payer(10);
    assert_ne!(life.pay(late.deposit(1, PRICE)).await, StatusCode::OK);
    assert_ne!(life.pay(payer.refund(PRICE)).await, StatusCode::OK);
    assert_eq!((place.nonce().await, place.gateway.sent().len()), before);
    life.stop().await;
}

#[tokio::test]
async fn a_claim_that_was_written_and_not_sent_lands_exactly_once() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    life.opened(&payer).await;
    place.gateway.set(Way::Lost);
    life.redeeming();
    let signed = place.written("claim").await;
    place.sent(2).await;
    life.crash();
    assert_eq!((place.nonce().await, place.on_chain(&payer).await), (1, (DEPOSIT, 0)));

    place.gateway.set(Way::Open);
    let life = place.life().await;
    // Ordered at once: it waits for what the last process began, and only settles.
    let report = life.redemption.redeem().await.unwrap();
    assert_eq!((report.channels, report.settled.units(), report.transactions.len()), (0, PRICE, 1), "{report:?}");
    let (claim, fate) = place.books.ended("claim").await;
    assert_eq!((&claim, moved(&fate)), (&signed, &[Moved::Claimed(payer.id(), Amount::new(PRICE))][..]));
    assert_eq!(place.gateway.sent()[2], signed.raw, "the same bytes");
    assert_eq!((place.nonce().await, place.on_chain(&payer).await), (3, (DEPOSIT, PRICE)));
    life.stop().await;
}

#[tokio::test]
async fn a_claim_that_was_sent_before_the_crash_is_written_to_its_end_and_not_made_again() {
    for mined_while_down in [true, false] {
        let place = Place::new().await;
        let (life, payer) = (place.life().await, place.payer(9));
        life.opened(&payer).await;
        place.devnet.set_mining(Mining::Manual);
        place.gateway.set(Way::Silent);
        life.redeeming();
        place.sent(2).await;
        eventually("it waits", async || place.devnet.pending_transactions().len() == 1).await;
        life.crash();

        place.gateway.set(Way::Open);
        if mined_while_down {
            place.devnet.mine(1).unwrap();
        }
        let sends = place.gateway.sent().len();
        let life = place.life().await;
        if !mined_while_down {
            place.sent(sends + 1).await;
            assert!(place.books.of("claim")[0].1.is_none(), "it is not at its end");
        }
        place.devnet.set_mining(Mining::OnDemand);
        place.devnet.mine(1).unwrap();
        let (claim, fate) = place.books.ended("claim").await;
        assert_eq!(moved(&fate), [Moved::Claimed(payer.id(), Amount::new(PRICE))]);
        assert_eq!(place.accounts().statement(&payer.id()).unwrap().unclaimed, Amount::ZERO, "booked first");
        assert_eq!(place.nonce().await, 2);
        // Only the very same bytes, and none at all where they were mined.
        let again = place.gateway.sent().split_off(sends);
        assert!(again.iter().all(|raw| *raw == claim.raw) && again.is_empty() == mined_while_down);
        let report = life.redemption.redeem().await.unwrap();
        assert_eq!((report.channels, report.settled.units()), (0, PRICE), "{report:?}");
        life.stop().await;
    }
}

#[tokio::test]
async fn a_claim_whose_nonce_was_taken_was_never_sent_and_is_made_anew() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    life.opened(&payer).await;
    place.gateway.set(Way::Lost);
    life.redeeming();
    place.written("claim").await;
    place.sent(2).await;
    life.crash();
    // Somebody with the same key, which nobody should be.
    let settle = Call::Settle { receiver: Address([7; 20]), token: terms().token.address };
    place.past_the_proxy(dev("gas"), &settle).await;

    place.gateway.set(Way::Open);
    let life = place.life().await;
    assert_eq!(place.books.ended("claim").await.1, Fate::NeverSent);
    let report = life.redemption.redeem().await.unwrap();
    assert_eq!((report.claimed.units(), report.settled.units()), (PRICE, PRICE), "{report:?}");
    life.stop().await;
}

#[tokio::test]
async fn a_settlement_of_the_last_process_is_written_to_its_end() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    life.opened(&payer).await;
    // As a process would have left it that claimed, and crashed as it settled.
    place.past_the_proxy(dev("5"), &claim_of(&payer, PRICE)).await;
    place.gateway.set(Way::Silent);
    life.redeeming();
    place.written("settle").await;
    eventually("it is settled", async || place.earned(terms().pay_to) == PRICE).await;
    life.crash();
    place.gateway.set(Way::Open);
    let life = place.life().await;
    assert_eq!(moved(&place.books.ended("settle").await.1), [Moved::Settled(Amount::new(PRICE))]);
    assert_eq!(place.nonce().await, 2);
    life.stop().await;
}

fn claim_of(payer: &Payer, total: u128) -> Call {
    let voucher = Voucher { channel: payer.id(), max_claimable: Amount::new(total) };
    let signed = voucher.sign(&payer.terms.settlement(), &payer.key);
    let row = peaje::protocol::claim::ClaimRow {
        config: payer.config,
        max_claimable: signed.max_claimable,
        signature: signed.signature,
        total_claimed: Amount::new(total),
    };
    let digest = peaje::protocol::claim::claim_batch_digest(&payer.terms.settlement(), std::slice::from_ref(&row));
    Call::ClaimWithSignature { rows: vec![row], signature: dev("authorizer").sign(digest) }
}

#[tokio::test]
async fn a_deposit_that_was_written_and_not_sent_is_relayed_once_and_its_payload_serves() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    place.gateway.set(Way::Lost);
    let client = life.paying(payer.deposit(1, PRICE));
    let signed = place.written("deposit").await;
    place.sent(1).await;
    life.crash();
    drop(client);
    assert_eq!(place.nonce().await, 0);

    place.gateway.set(Way::Open);
    place.devnet.set_mining(Mining::Manual);
    let life = place.life().await;
    // The client comes back with the same payload while nobody knows.
    let client = life.paying(payer.deposit(1, PRICE));
    place.sent(2).await;
    tokio::time::sleep(5 * POLL).await;
    assert!(!client.is_finished(), "it waits for the first");
    place.devnet.set_mining(Mining::OnDemand);
    place.devnet.mine(1).unwrap();
    assert_eq!(client.await.unwrap(), StatusCode::OK);
    assert!(place.gateway.sent().iter().all(|raw| *raw == signed.raw));
    assert_eq!(moved(&place.books.ended("deposit").await.1), [Moved::Deposited(payer.id(), Amount::new(DEPOSIT))]);
    assert_eq!((place.nonce().await, place.on_chain(&payer).await), (1, (DEPOSIT, 0)));
    // And again, after it landed.
    assert_ne!(life.pay(payer.deposit(1, PRICE)).await, StatusCode::OK, "its voucher is used up");
    assert_eq!(life.pay(payer.voucher(2 * PRICE)).await, StatusCode::OK);
    assert_eq!(place.nonce().await, 1);
    life.stop().await;
}

#[tokio::test]
async fn a_deposit_that_landed_while_nobody_looked_is_booked() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    place.gateway.set(Way::Silent);
    drop(life.paying(payer.deposit(1, PRICE)));
    eventually("it landed", async || place.on_chain(&payer).await.0 == DEPOSIT).await;
    life.crash();
    assert!(!place.accounts().knows(&payer.id()));
    place.gateway.set(Way::Open);
    let life = place.life().await;
    moved(&place.books.ended("deposit").await.1);
    assert_eq!(place.accounts().statement(&payer.id()).unwrap().view.balance, Amount::new(DEPOSIT));
    assert_eq!(life.pay(payer.deposit(1, PRICE)).await, StatusCode::OK, "its deposit is known, its voucher pays");
    assert_eq!((place.nonce().await, place.on_chain(&payer).await.0), (1, DEPOSIT));
    life.stop().await;
}

#[tokio::test]
async fn a_deposit_that_somebody_else_relayed_meanwhile_landed() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    place.gateway.set(Way::Lost);
    drop(life.paying(payer.deposit(1, PRICE)));
    place.written("deposit").await;
    place.sent(1).await;
    life.crash();
    let authorization = payer.authorization(1);
    let call = Call::Deposit { config: payer.config, amount: Amount::new(DEPOSIT), authorization, payment: None };
    place.past_the_proxy(dev("5"), &call).await;
    place.gateway.set(Way::Open);
    let life = place.life().await;
    let (_, fate) = place.books.ended("deposit").await;
    assert!(matches!(fate, Fate::Mined { success: false, .. } | Fate::GivenUp), "ours did nothing: {fate:?}");
    assert_eq!(life.pay(payer.deposit(1, PRICE)).await, StatusCode::OK);
    assert_eq!(place.on_chain(&payer).await.0, DEPOSIT, "once");
    life.stop().await;
}

#[tokio::test]
async fn a_refund_that_was_sent_before_the_crash_is_booked_and_not_made_again() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    life.opened(&payer).await;
    place.devnet.set_mining(Mining::Manual);
    place.gateway.set(Way::Silent);
    drop(life.paying(payer.refund(PRICE)));
    place.written("refund").await;
    eventually("it waits", async || place.devnet.pending_transactions().len() == 1).await;
    life.crash();
    place.devnet.set_mining(Mining::OnDemand);
    place.devnet.mine(1).unwrap();
    place.gateway.set(Way::Open);
    let life = place.life().await;
    let (_, fate) = place.books.ended("refund").await;
    let back = Amount::new(DEPOSIT - PRICE);
    assert_eq!(moved(&fate), [Moved::Claimed(payer.id(), Amount::new(PRICE)), Moved::Refunded(payer.id(), back)]);
    let view = place.accounts().statement(&payer.id()).unwrap().view;
    assert_eq!((view.refund_nonce, view.balance.units()), (1, PRICE));
    assert_eq!(place.nonce().await, 2);
    life.stop().await;
}

// ---- the follower

#[tokio::test]
async fn the_follower_goes_on_where_the_last_process_stopped_without_resting() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    eventually("there is one from the beginning", async || place.books.read_up_to().is_some()).await;
    life.opened(&payer).await;
    let first = place.books.read_up_to();
    let asked = || place.gateway.0.asked_from.lock().unwrap().len();
    let before = asked();
    let looks = async || {
        place.devnet.mine(1).unwrap();
        asked() > before + 3
    };
    eventually("some more are read", looks).await;
    life.stop().await;
    place.accounts().journal().close();
    let cursor = place.books.read_up_to().unwrap();
    assert!(first < Some(cursor), "the last word is written at the end");

    // More blocks than one question asks for, and something of ours at the end of them.
    place.devnet.mine(3_000).unwrap();
    place.past_the_proxy(dev("5"), &claim_of(&payer, PRICE)).await;
    place.gateway.0.asked_from.lock().unwrap().clear();
    let poll = Duration::from_secs(2);
    let begun = tokio::time::Instant::now();
    let life = place.life_with(terms(), dev("authorizer"), poll).await;
    let head = place.devnet.block_number();
    eventually("it is followed", async || place.books.read_up_to() == Some(head + 1)).await;
    assert!(begun.elapsed() < 2 * poll, "{:?}", begun.elapsed());
    let asked = place.gateway.0.asked_from.lock().unwrap().clone();
    assert_eq!(asked[0], cursor - 4, "some blocks are read again");
    assert!(asked.len() >= 6 && asked.is_sorted(), "{asked:?}");
    assert_eq!(place.accounts().statement(&payer.id()).unwrap().unclaimed, Amount::ZERO);
    life.stop().await;
}

#[tokio::test]
async fn a_cursor_is_written_now_and_then_where_nothing_happens() {
    let place = Place::new().await;
    let life = place.life().await;
    eventually("there is one", async || place.books.read_up_to().is_some()).await;
    let first = place.books.read_up_to().unwrap();
    place.devnet.mine(10).unwrap();
    tokio::time::sleep(10 * POLL).await;
    assert_eq!(place.books.read_up_to(), Some(first), "not every time");
    place.devnet.mine(300).unwrap();
    eventually("it moves", async || place.books.read_up_to().unwrap() >= first + 300).await;
    life.stop().await;
}

#[tokio::test]
async fn a_withdrawal_announced_while_nobody_looked_is_answered_at_the_start() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    life.opened(&payer).await;
    life.stop().await;
    let call = Call::InitiateWithdraw { config: payer.config, amount: Amount::new(DEPOSIT) };
    place.past_the_proxy(payer.key.clone(), &call).await;
    // The books that say how far the chain was followed are lost, so the blocks do not tell.
    place.devnet.mine(20).unwrap();
    place.books.with(|pages| pages.cursor = None);
    let life = place.life().await;
    eventually("it is claimed", async || place.on_chain(&payer).await == (DEPOSIT, PRICE)).await;
    life.stop().await;
}

// ---- books of several terms

#[tokio::test]
async fn a_channel_of_another_authorizer_does_not_hold_up_the_others() {
    let place = Place::new().await;
    let old = Terms { receiver_authorizer: dev("receiver").address(), ..terms() };
    let (former, payer) = (place.payer_of(&old, 8), place.payer(9));
    let life = place.life_with(old, dev("receiver"), POLL).await;
    life.opened(&former).await;
    life.stop().await;

    let life = place.life().await;
    life.opened(&payer).await;
    let report = life.redemption.redeem().await.unwrap();
    assert_eq!((report.channels, report.claimed.units(), report.settled.units()), (1, PRICE, PRICE), "{report:?}");
    assert_eq!((report.left.units(), report.problem.as_ref()), (PRICE, None));
    let [failure] = &report.failures[..] else { panic!("{report:?}") };
    assert_eq!(failure.channel, former.id());
    assert!(failure.reason.contains(&dev("receiver").address().to_string()), "{failure:?}");
    // It costs nothing, however often.
    let before = place.nonce().await;
    assert_eq!(life.redemption.redeem().await.unwrap().failures.len(), 1);
    assert_eq!(place.nonce().await, before);
    life.stop().await;
}

#[tokio::test]
async fn a_former_receiver_is_paid_too() {
    let place = Place::new().await;
    let old = Terms { pay_to: Address([0xbb; 20]), ..terms() };
    let (former, payer) = (place.payer_of(&old, 8), place.payer(9));
    let life = place.life_with(old.clone(), dev("authorizer"), POLL).await;
    life.opened(&former).await;
    life.stop().await;

    let life = place.life().await;
    life.opened(&payer).await;
    let report = life.redemption.redeem().await.unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!((report.channels, report.settled.units(), report.transactions.len()), (2, 2 * PRICE, 3));
    assert_eq!((place.earned(old.pay_to), place.earned(terms().pay_to)), (PRICE, PRICE));
    life.stop().await;
}
