//! Redemption over books that last: what is written before something is sent, and what the next process makes of what
//! the last one left. The chain is the development chain, behind a gateway that can lose what it is given; a crash is a
//! runtime that is shut down under everything that runs in it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy::primitives::{hex, keccak256};
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
use peaje::redeem::{Redemption, Report, Sending, Settings};
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

    /// Waits until there are so many versions of the transaction for a purpose, all with one nonce, and none at its end.
    async fn versions(&self, purpose: &str, count: usize) {
        eventually("there are versions", async || self.of(purpose).len() >= count).await;
        let found = self.of(purpose);
        assert!(found.iter().all(|(version, fate)| version.nonce == found[0].0.nonce && fate.is_none()), "{found:?}");
    }

    /// The version that a block has, once all have ended and the others are replaced, or came too late to be sent.
    async fn landed(&self, purpose: &str) -> (Transaction, Fate) {
        eventually("their ends are written", async || self.of(purpose).iter().all(|(_, fate)| fate.is_some())).await;
        let ends = self.of(purpose).into_iter().map(|(version, fate)| (version, fate.unwrap()));
        let (mut landed, others): (Vec<_>, Vec<_>) = ends.partition(|(_, fate)| matches!(fate, Fate::Mined { .. }));
        assert_eq!(landed.len(), 1, "{purpose}: {landed:?}");
        let replaced = |(version, fate): &(Transaction, Fate)| {
            matches!(fate, Fate::Replaced | Fate::NeverSent) && version.nonce == landed[0].0.nonce
        };
        assert!(others.iter().all(replaced), "{purpose}: {others:?}");
        landed.pop().unwrap()
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
    /// Nobody gets it, and the sender hears that all is well.
    Swallowed,
    /// The node gets this one, and what comes after it is swallowed.
    Last,
}

/// What the gateway makes of the node's answers.
#[derive(Debug, Clone, Copy, Default)]
struct Lies {
    /// How many transactions more than it made the gas key is said to have made.
    nonce: i64,
    /// The base fee, wei.
    base_fee: Option<u64>,
    /// How many blocks what is newest is behind.
    lag: u64,
}

/// What stands between redemption and the node. It lets no transaction through that is not in the books.
#[derive(Clone)]
struct Gateway(Arc<Lane>);

struct Lane {
    to: String,
    http: reqwest::Client,
    books: Books,
    way: Mutex<Way>,
    lies: Mutex<Lies>,
    /// The first block of every question for events.
    asked_from: Mutex<Vec<u64>>,
    sent: Mutex<Vec<Vec<u8>>>,
    unwritten: Mutex<Vec<Vec<u8>>>,
}

impl Gateway {
    async fn open(to: String, books: Books) -> (Self, String) {
        peaje::chain::install_tls();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let (lies, asked_from, sent, unwritten) = Default::default();
        let lane = Arc::new(Lane { to, http, books, way: Mutex::new(Way::Open), lies, asked_from, sent, unwritten });
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let router = axum::Router::new().fallback(axum::routing::post(pass)).with_state(Arc::clone(&lane));
        tokio::spawn(async move { axum::serve(socket, router).await.unwrap() });
        (Self(lane), url)
    }

    fn set(&self, way: Way) {
        *self.0.way.lock().unwrap() = way;
    }

    fn lie(&self, lies: Lies) {
        *self.0.lies.lock().unwrap() = lies;
    }

    /// The transactions that were to be broadcast so far, repetitions included.
    fn sent(&self) -> Vec<Vec<u8>> {
        self.0.sent.lock().unwrap().clone()
    }
}

async fn pass(State(lane): State<Arc<Lane>>, Json(mut question): Json<Value>) -> Json<Value> {
    let lies = *lane.lies.lock().unwrap();
    let newest = question["method"] == "eth_getBlockByNumber" && question["params"][0] == "latest";
    if lies.lag > 0 && (newest || question["method"] == "eth_call" && question["params"][1] == "latest") {
        let ask = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []});
        let head: Value = lane.http.post(&lane.to).json(&ask).send().await.unwrap().json().await.unwrap();
        let behind = number(&head["result"]).saturating_sub(lies.lag);
        let tag = usize::from(!newest);
        question["params"][tag] = json!(format!("{behind:#x}"));
    }
    let ask = async || lane.http.post(&lane.to).json(&question).send().await.unwrap().json::<Value>().await.unwrap();
    match question["method"].as_str().unwrap() {
        "eth_sendRawTransaction" => {
            let raw = hex::decode(question["params"][0].as_str().unwrap()).unwrap();
            if !lane.books.with(|pages| pages.transactions.iter().any(|known| known.raw == raw)) {
                lane.unwritten.lock().unwrap().push(raw.clone());
            }
            lane.sent.lock().unwrap().push(raw);
            let way = {
                let mut way = lane.way.lock().unwrap();
                let next = if *way == Way::Last { Way::Swallowed } else { *way };
                std::mem::replace(&mut *way, next)
            };
            match way {
                Way::Open | Way::Last => {}
                Way::Lost => std::future::pending().await,
                Way::Silent => {
                    ask().await;
                    std::future::pending().await
                }
                Way::Refused => {
                    let error = json!({"code": -32000, "message": "txpool is full"});
                    return Json(json!({"jsonrpc": "2.0", "id": 1, "error": error}));
                }
                Way::Swallowed => {
                    let hash = keccak256(lane.sent.lock().unwrap().last().unwrap());
                    return Json(json!({"jsonrpc": "2.0", "id": 1, "result": hash}));
                }
            }
        }
        "eth_getTransactionCount" if question["params"][0] == json!(evm(dev("gas").address())) => {
            let mut answer = ask().await;
            let made = number(&answer["result"]).saturating_add_signed(lies.nonce);
            answer["result"] = json!(format!("{made:#x}"));
            return Json(answer);
        }
        "eth_getBlockByNumber" => {
            let mut answer = ask().await;
            if let Some(base_fee) = lies.base_fee {
                answer["result"]["baseFeePerGas"] = json!(format!("{base_fee:#x}"));
            }
            return Json(answer);
        }
        "eth_getLogs" => {
            lane.asked_from.lock().unwrap().push(number(&question["params"][0]["fromBlock"]));
        }
        _ => {}
    }
    Json(ask().await)
}

/// A quantity of JSON-RPC.
fn number(text: &Value) -> u64 {
    u64::from_str_radix(text.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
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
        max_in_flight: 32,
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
        self.life_of(terms, authorizer, Settings { poll, ..Settings::default() }).await
    }

    /// A process that bids more after so long, and wants so many confirmations.
    async fn life_sending(&self, bump_after: Duration, confirmations: u64) -> Life {
        let sending = Sending { bump_after, confirmations, ..Sending::default() };
        self.life_of(terms(), dev("authorizer"), Settings { sending, poll: POLL, ..Settings::default() }).await
    }

    async fn life_of(&self, terms: Terms, authorizer: LocalKey, settings: Settings) -> Life {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let routes = vec![Route::new(PathPattern::parse("/paid").unwrap(), Price::Fixed(Amount::new(PRICE)))];
        let policy = Policy::new(terms.clone(), "https://api.example", routes).unwrap();
        let (desk, questions) = Desk::new();
        self.accounts().journal().close();
        let (accounts, opening) = Accounts::open(self.books.clone()).unwrap();
        *self.accounts.lock().unwrap() = accounts.clone();
        let gate = Gate::with_accounts(policy, desk, accounts);
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
        number(&answer["result"])
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
    fn redeeming(&self) -> tokio::task::JoinHandle<Report> {
        let redemption = self.redemption.clone();
        self.runtime.spawn(async move { redemption.redeem().await.unwrap() })
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
async fn a_claim_whose_nonce_was_taken_while_nobody_looked_is_made_anew() {
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
    assert_eq!(place.books.ended("claim").await.1, Fate::Replaced);
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
    let call = Call::Deposit {
        config: payer.config,
        amount: Amount::new(DEPOSIT),
        authorization: authorization.into(),
        payment: None,
    };
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

// ---- transactions that land

const SOON: Duration = Duration::from_millis(150);
const NEVER: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn a_stuck_transaction_is_replaced_at_its_nonce_and_one_version_lands() {
    let place = Place::new().await;
    let (life, payer) = (place.life_sending(SOON, 1).await, place.payer(9));
    place.devnet.set_mining(Mining::Manual);
    let client = life.paying(payer.deposit(1, PRICE));
    place.books.versions("deposit", 3).await;
    place.devnet.set_mining(Mining::OnDemand);
    place.devnet.mine(1).unwrap();
    assert_eq!(client.await.unwrap(), StatusCode::OK);
    let (_, fate) = place.books.landed("deposit").await;
    assert_eq!(moved(&fate), [Moved::Deposited(payer.id(), Amount::new(DEPOSIT))]);

    place.devnet.set_mining(Mining::Manual);
    let round = life.redeeming();
    // Others that come meanwhile are answered by the next round, and claim nothing again.
    let next = life.redeeming();
    place.books.versions("claim", 3).await;
    eventually("operators see it", async || {
        let vitals = life.redemption.vitals();
        vitals.in_flight.iter().any(|flight| flight.purpose == "claim" && flight.nonce == 1 && flight.replaced > 1)
            && vitals.problem.is_some()
            && vitals.failing_since.is_some()
    })
    .await;
    assert_eq!(place.devnet.pending_transactions().len(), 1);
    place.devnet.set_mining(Mining::OnDemand);
    place.devnet.mine(1).unwrap();
    let (report, next) = (round.await.unwrap(), next.await.unwrap());
    assert!(report.is_complete() && next.is_complete(), "{report:?} {next:?}");
    assert_eq!((report.claimed.units(), report.settled.units(), next.transactions.len()), (PRICE, PRICE, 0));
    let (claim, fate) = place.books.landed("claim").await;
    assert_eq!(moved(&fate), [Moved::Claimed(payer.id(), Amount::new(PRICE))]);
    assert_eq!((place.nonce().await, place.earned(terms().pay_to)), (3, PRICE));
    let vitals = life.redemption.vitals();
    assert_eq!((vitals.in_flight.len(), vitals.problem, vitals.failing_since), (0, None, None));
    assert_eq!(vitals.last_claim.unwrap().transaction, claim.hash);
    assert!(vitals.gas_balance_wei.is_some() && vitals.gas_lasts_s.is_some());
    life.stop().await;
}

#[tokio::test]
async fn gas_above_the_ceiling_is_not_paid_and_the_claim_lands_after_it() {
    let place = Place::new().await;
    let (life, payer) = (place.life_sending(SOON, 1).await, place.payer(9));
    life.opened(&payer).await;
    let spike = Lies { base_fee: Some(60_000_000_000), ..Lies::default() };
    place.gateway.lie(spike);
    let report = life.redemption.redeem().await.unwrap();
    assert!(report.problem.as_ref().is_some_and(|problem| problem.contains("gas costs")), "{report:?}");
    assert_eq!(place.books.of("claim"), [], "nothing is signed");
    assert!(life.redemption.vitals().problem.is_some_and(|problem| problem.contains("gas costs")));

    // And while it is in flight.
    place.gateway.lie(Lies::default());
    place.devnet.set_mining(Mining::Manual);
    let round = life.redeeming();
    place.written("claim").await;
    place.gateway.lie(spike);
    // By then a bid at the price before is made.
    place.sent(place.gateway.sent().len() + 5).await;
    let waits = async || life.redemption.vitals().problem.is_some_and(|problem| problem.contains("gas costs"));
    eventually("it waits for cheaper gas", waits).await;
    let versions = place.books.of("claim").len();
    place.sent(place.gateway.sent().len() + 5).await;
    assert_eq!(place.books.of("claim").len(), versions, "it is sent again, and does not bid");
    place.gateway.lie(Lies::default());
    place.books.versions("claim", versions + 1).await;
    place.devnet.set_mining(Mining::OnDemand);
    place.devnet.mine(1).unwrap();
    assert!(round.await.unwrap().is_complete());
    place.books.landed("claim").await;
    assert_eq!((place.nonce().await, place.earned(terms().pay_to)), (3, PRICE));
    life.stop().await;
}

#[tokio::test]
async fn a_transaction_that_the_node_dropped_is_sent_again() {
    let place = Place::new().await;
    let (life, payer) = (place.life_sending(NEVER, 1).await, place.payer(9));
    life.opened(&payer).await;
    place.devnet.set_mining(Mining::Manual);
    let round = life.redeeming();
    let claim = place.written("claim").await;
    for _ in 0..2 {
        eventually("it waits", async || place.devnet.drop_transaction(claim.hash.0.into())).await;
    }
    eventually("it is there again", async || !place.devnet.pending_transactions().is_empty()).await;
    place.devnet.set_mining(Mining::OnDemand);
    place.devnet.mine(1).unwrap();
    assert!(round.await.unwrap().is_complete());
    assert_eq!(place.books.ended("claim").await.0, claim, "the same bytes");
    assert_eq!((place.nonce().await, place.earned(terms().pay_to)), (3, PRICE));
    life.stop().await;
}

#[tokio::test]
async fn a_node_that_counts_too_few_transactions_is_not_believed() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    life.opened(&payer).await;
    place.gateway.lie(Lies { nonce: -1, ..Lies::default() });
    assert!(life.redemption.redeem().await.unwrap().is_complete());
    let nonces = |purpose| place.books.of(purpose).iter().map(|(sent, _)| sent.nonce).collect::<Vec<_>>();
    assert_eq!((nonces("claim"), nonces("settle")), (vec![1], vec![2]));
    life.stop().await;

    // A process that has sent nothing yet learns it from the node.
    let life = place.life().await;
    assert_eq!(life.pay(payer.voucher(2 * PRICE)).await, StatusCode::OK);
    assert!(life.redemption.redeem().await.unwrap().is_complete());
    assert_eq!((nonces("claim"), nonces("settle")), (vec![1, 2, 3], vec![2, 4]));
    let ends: Vec<_> = place.books.of("claim").into_iter().map(|(_, fate)| fate.unwrap()).collect();
    assert!(matches!(&ends[..], [Fate::Mined { .. }, Fate::NeverSent, Fate::Mined { .. }]), "{ends:?}");
    assert_eq!(place.earned(terms().pay_to), 2 * PRICE);
    life.stop().await;
}

#[tokio::test]
async fn a_gap_that_a_lying_node_left_below_a_claim_is_filled() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    life.opened(&payer).await;
    life.stop().await;
    let life = place.life_sending(SOON, 1).await;
    place.gateway.lie(Lies { nonce: 2, ..Lies::default() });
    let round = life.redeeming();
    assert_eq!(place.written("claim").await.nonce, 3);
    place.gateway.lie(Lies::default());
    let report = round.await.unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.claimed.units(), PRICE);
    place.books.landed("claim").await;
    // Two that fill the gap and pay nothing, and the one that pays.
    let settles: BTreeMap<_, _> = place.books.of("settle").into_iter().map(|(sent, fate)| (sent.nonce, fate)).collect();
    assert_eq!(settles.keys().copied().collect::<Vec<_>>(), [1, 2, 4]);
    assert_eq!((place.nonce().await, place.earned(terms().pay_to)), (5, PRICE));
    life.stop().await;
}

#[tokio::test]
async fn a_claim_whose_nonce_is_far_ahead_is_given_up_and_made_anew() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    life.opened(&payer).await;
    life.stop().await;
    let life = place.life_sending(SOON, 1).await;
    place.gateway.lie(Lies { nonce: 1_000, ..Lies::default() });
    let round = life.redeeming();
    assert_eq!(place.written("claim").await.nonce, 1_001);
    place.gateway.lie(Lies::default());
    let report = round.await.unwrap();
    assert!(report.is_complete(), "{report:?}");
    let claims: Vec<_> = place.books.of("claim").into_iter().map(|(sent, fate)| (sent.nonce, fate.unwrap())).collect();
    let [(1_001, Fate::GivenUp), .., (1, Fate::Mined { success: true, .. })] = &claims[..] else {
        panic!("{claims:?}")
    };
    assert_eq!((place.nonce().await, place.earned(terms().pay_to)), (3, PRICE));
    life.stop().await;
}

#[tokio::test]
async fn a_claim_whose_nonce_somebody_else_took_is_made_anew_in_the_same_round() {
    let place = Place::new().await;
    let (life, payer) = (place.life_sending(NEVER, 1).await, place.payer(9));
    life.opened(&payer).await;
    place.gateway.set(Way::Swallowed);
    let round = life.redeeming();
    place.written("claim").await;
    place.sent(2).await;
    let settle = Call::Settle { receiver: Address([7; 20]), token: terms().token.address };
    place.past_the_proxy(dev("gas"), &settle).await;
    place.gateway.set(Way::Open);
    let report = round.await.unwrap();
    assert!(report.is_complete(), "{report:?}");
    let claims: Vec<_> = place.books.of("claim").into_iter().map(|(sent, fate)| (sent.nonce, fate.unwrap())).collect();
    let [(1, Fate::Replaced), (2, Fate::Mined { success: true, .. })] = &claims[..] else { panic!("{claims:?}") };
    assert_eq!(place.earned(terms().pay_to), PRICE);
    life.stop().await;
}

#[tokio::test]
async fn a_claim_that_reverts_is_told_from_one_that_was_replaced() {
    let place = Place::new().await;
    let (life, payer) = (place.life_sending(NEVER, 1).await, place.payer(9));
    life.opened(&payer).await;
    place.gateway.set(Way::Swallowed);
    let round = life.redeeming();
    place.written("claim").await;
    place.sent(2).await;
    // The deposit goes before the claim lands.
    let announce = Call::InitiateWithdraw { config: payer.config, amount: Amount::new(DEPOSIT) };
    place.past_the_proxy(payer.key.clone(), &announce).await;
    place.devnet.increase_time(Duration::from_secs(901));
    place.past_the_proxy(payer.key.clone(), &Call::FinalizeWithdraw { config: payer.config }).await;
    place.gateway.set(Way::Open);
    let report = round.await.unwrap();
    assert_eq!((report.channels, report.problem.as_ref(), report.left), (0, None, Amount::ZERO), "{report:?}");
    let (_, fate) = place.books.landed("claim").await;
    assert!(matches!(fate, Fate::Mined { success: false, .. }), "{fate:?}");
    assert_eq!(place.accounts().statement(&payer.id()).unwrap().shortfall, Amount::new(PRICE));
    assert_eq!(place.nonce().await, 2, "it is not sent again for nothing");
    life.stop().await;
}

#[tokio::test]
async fn a_claim_that_a_reorganisation_drops_before_it_is_deep_enough_lands_again_and_ends_once() {
    let place = Place::new().await;
    let (life, payer) = (place.life_sending(NEVER, 3).await, place.payer(9));
    life.opened(&payer).await;
    assert_eq!(place.books.of("deposit")[0].1, None, "it is not deep enough");
    place.devnet.mine(2).unwrap();
    place.books.ended("deposit").await;
    let report = life.redemption.redeem().await.unwrap();
    assert_eq!((report.claimed.units(), report.settled.units()), (PRICE, PRICE), "{report:?}");
    let (claim, fate) = place.books.of("claim").pop().unwrap();
    assert_eq!(fate, None, "it is not deep enough");
    let vitals = life.redemption.vitals();
    assert!(vitals.in_flight.iter().all(|flight| flight.block.is_some()) && vitals.in_flight.len() == 2, "{vitals:?}");

    assert_eq!(place.devnet.reorg(2).unwrap().len(), 2);
    eventually("both are there again", async || place.earned(terms().pay_to) == PRICE).await;
    place.devnet.mine(3).unwrap();
    assert_eq!(place.books.landed("claim").await.0, claim, "the same bytes");
    moved(&place.books.landed("settle").await.1);
    place.books.landed("deposit").await;
    assert_eq!((place.nonce().await, place.on_chain(&payer).await), (3, (DEPOSIT, PRICE)));
    assert!(life.redemption.redeem().await.unwrap().transactions.is_empty());
    life.stop().await;
}

#[tokio::test]
async fn of_two_versions_that_a_crash_left_open_one_lands_and_the_other_is_replaced() {
    for (older_lands, mined_while_down) in [(false, false), (false, true), (true, true)] {
        let place = Place::new().await;
        let (life, payer) = (place.life_sending(SOON, 1).await, place.payer(9));
        life.opened(&payer).await;
        place.devnet.set_mining(Mining::Manual);
        if older_lands {
            // The node never gets the others.
            place.gateway.set(Way::Last);
        }
        life.redeeming();
        let first = place.written("claim").await;
        eventually("it waits", async || !place.devnet.pending_transactions().is_empty()).await;
        place.books.versions("claim", 2).await;
        life.crash();

        if mined_while_down {
            place.devnet.mine(1).unwrap();
        }
        // Not before: what was on its way at the crash may still come.
        place.gateway.set(Way::Open);
        let life = place.life_sending(NEVER, 1).await;
        let round = life.redeeming();
        place.devnet.set_mining(Mining::OnDemand);
        place.devnet.mine(1).unwrap();
        let report = round.await.unwrap();
        assert_eq!((report.channels, report.settled.units()), (0, PRICE), "{report:?}");
        let (landed, _) = place.books.landed("claim").await;
        if older_lands {
            assert_eq!(landed, first);
        }
        assert_eq!((place.nonce().await, place.on_chain(&payer).await), (3, (DEPOSIT, PRICE)));
        life.stop().await;
    }
}

#[tokio::test]
async fn rows_in_flight_are_not_claimed_under_a_second_nonce_across_a_crash() {
    let place = Place::new().await;
    let (life, payer) = (place.life_sending(NEVER, 1).await, place.payer(9));
    life.opened(&payer).await;
    place.devnet.set_mining(Mining::Manual);
    life.redeeming();
    place.written("claim").await;
    eventually("it waits", async || place.devnet.pending_transactions().len() == 1).await;
    life.crash();
    // The next process bids more for the same nonce, and claims nothing else, however often it is asked.
    let life = place.life_sending(SOON, 1).await;
    let rounds = [life.redeeming(), life.redeeming()];
    place.books.versions("claim", 3).await;
    assert_eq!(place.devnet.pending_transactions().len(), 1);
    place.devnet.set_mining(Mining::OnDemand);
    place.devnet.mine(1).unwrap();
    for round in rounds {
        assert!(round.await.unwrap().is_complete());
    }
    place.books.landed("claim").await;
    assert_eq!((place.nonce().await, place.earned(terms().pay_to)), (3, PRICE));
    life.stop().await;
}

#[tokio::test]
async fn a_withdrawal_makes_what_is_in_flight_pay_more_at_once_and_is_claimed_next() {
    let place = Place::new().await;
    let (life, payer, leaving) = (place.life_sending(NEVER, 1).await, place.payer(9), place.payer(10));
    life.opened(&payer).await;
    place.gateway.set(Way::Swallowed);
    let round = life.redeeming();
    place.written("claim").await;
    place.sent(2).await;
    place.gateway.set(Way::Open);
    eventually("it landed", async || place.on_chain(&payer).await.1 == PRICE).await;
    assert!(round.await.unwrap().is_complete());

    assert_eq!(life.pay(payer.voucher(2 * PRICE)).await, StatusCode::OK);
    life.opened(&leaving).await;
    place.gateway.set(Way::Swallowed);
    let before = place.books.of("claim").len();
    let round = life.redeeming();
    eventually("the second is written", async || place.books.of("claim").len() > before).await;
    let announce = Call::InitiateWithdraw { config: leaving.config, amount: Amount::new(DEPOSIT) };
    place.past_the_proxy(leaving.key.clone(), &announce).await;
    eventually("it bids more", async || place.books.of("claim").len() > before + 1).await;
    place.gateway.set(Way::Open);
    assert!(round.await.unwrap().is_complete());
    for payer in [(&payer, 2 * PRICE), (&leaving, PRICE)] {
        assert_eq!(place.on_chain(payer.0).await, (DEPOSIT, payer.1));
    }
    life.stop().await;
}

#[tokio::test]
async fn a_deposit_that_can_only_revert_is_left_alone_until_something_waits_for_its_nonce() {
    let place = Place::new().await;
    let (life, payer) = (place.life_sending(SOON, 1).await, place.payer(9));
    place.gateway.set(Way::Swallowed);
    let client = life.paying(payer.deposit(1, PRICE));
    place.written("deposit").await;
    place.sent(1).await;
    place.devnet.increase_time(Duration::from_secs(400));
    place.devnet.mine(1).unwrap();
    assert_ne!(client.await.unwrap(), StatusCode::OK, "its authorization ran out");
    // What the pilot had begun before.
    tokio::time::sleep(SOON).await;
    let (sent, versions) = (place.gateway.sent().len(), place.books.of("deposit").len());
    tokio::time::sleep(3 * SOON).await;
    assert_eq!((place.gateway.sent().len(), place.books.of("deposit").len()), (sent, versions), "it is left alone");
    assert_eq!(life.redemption.vitals().failing_since, None, "and keeps nobody waiting");

    place.gateway.set(Way::Open);
    let other = Payer { valid_before: now_s() + 800, ..place.payer(10) };
    assert_eq!(life.pay(other.deposit(1, PRICE)).await, StatusCode::OK);
    let ended = async || place.books.of("deposit").iter().all(|(_, fate)| fate.is_some());
    eventually("both have ended", ended).await;
    let ends = place.books.of("deposit");
    let end = |nonce| {
        ends.iter().filter(|(sent, _)| sent.nonce == nonce).find_map(|(_, fate)| match fate {
            Some(Fate::Mined { success, .. }) => Some(*success),
            _ => None,
        })
    };
    assert_eq!((end(0), end(1)), (Some(false), Some(true)), "{ends:?}");
    assert_eq!(place.nonce().await, 2);
    life.stop().await;
}

#[tokio::test]
async fn what_was_claimed_is_settled_in_the_same_round_though_the_node_lags() {
    let place = Place::new().await;
    let (life, payer) = (place.life().await, place.payer(9));
    life.opened(&payer).await;
    place.devnet.set_mining(Mining::Manual);
    let round = life.redeeming();
    place.written("claim").await;
    place.gateway.lie(Lies { lag: 5, ..Lies::default() });
    let claimed = async || {
        place.devnet.mine(1).unwrap();
        place.on_chain(&payer).await.1 == PRICE
    };
    eventually("it is claimed", claimed).await;
    place.devnet.set_mining(Mining::OnDemand);
    // Longer than any one reading waits.
    tokio::time::sleep(40 * POLL).await;
    place.gateway.lie(Lies::default());
    let report = round.await.unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!((report.claimed.units(), report.settled.units()), (PRICE, PRICE));
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
    // One that rested would not come to it while it is waited for.
    let life = place.life_with(terms(), dev("authorizer"), 3 * PATIENCE).await;
    let head = place.devnet.block_number();
    eventually("it is followed", async || place.books.read_up_to() == Some(head + 1)).await;
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
