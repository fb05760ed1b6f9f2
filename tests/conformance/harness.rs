//! What every case needs: a [`World`] with a chain, an upstream and the proxy in it, and [`Payer`]s who sign.
//!
//! ```text
//! let world = World::start(WorldOptions::default()).await;
//! let payer = world.payer(1);
//! let answer = world.pay("/paid", &payer.deposit(10 * PRICE, PRICE)).await;
//! answer.assert_served().assert_deposit_receipt(10 * PRICE, PRICE, PRICE);
//! world.finish(PRICE).await;
//! ```
//!
//! A [`Payment`] is the JSON of the header before it is encoded, so that a case can change any field of it;
//! [`World::tally`] counts what must not have moved.
#![allow(dead_code, reason = "a toolbox: not every case needs every tool")]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};

use peaje::chain::{AlloyChain, Chain as _, Happening, KeyRef, RpcUrl};
use peaje::cli::site::{Books, Site};
use peaje::config::Config;
use peaje::devnet::{Devnet, DevnetConfig, Mining, genesis};
use peaje::gate::Statement;
use peaje::gate::policy::{Terms, TokenTerms};
use peaje::protocol::contracts::SETTLEMENT;
use peaje::protocol::x402;
use peaje::protocol::{Address, Amount, ChannelId, LocalKey};
use peaje::store::Identity;
use peaje::store::sqlite::SqliteStore;

pub(crate) use super::payer::{Payer, Payment, now_s};

/// What `/paid` costs, atomic units.
pub const PRICE: u128 = 2_000;
/// Test dollars every payer starts with, atomic units.
pub const PURSE: u128 = 100_000_000;
/// The origin in quotes; nothing listens there.
pub const PUBLIC_URL: &str = "https://api.example.test";
/// Whom the site pays. Nobody has its key.
pub const PAY_TO: &str = "0x00000000000000000000000000000000c0ffee01";
/// What every code of the scheme begins with.
pub const PREFIX: &str = "invalid_batch_settlement_evm_";
/// How long a case waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How a world differs from the usual one: `/paid` for [`PRICE`], `/free` for nothing, blocks on demand.
#[derive(Debug, Clone)]
pub struct WorldOptions {
    /// How blocks come about.
    pub mining: Mining,
    /// Lines of the config's `[channel]` section.
    pub channel: String,
    /// Lines of the config's `[upstream]` section, beside the URL.
    pub upstream: String,
    /// Another token than the dollar of the config.
    pub token: Option<TokenTerms>,
    /// Further sections of the config, `[[route]]`s for instance.
    pub more: String,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            mining: Mining::OnDemand,
            channel: String::new(),
            upstream: String::new(),
            token: None,
            more: String::new(),
        }
    }
}

/// One case's surroundings.
pub struct World {
    /// The chain.
    pub devnet: Devnet,
    /// The API that is sold.
    pub upstream: Upstream,
    /// The proxy.
    pub site: Site,
    /// Our view of the chain, past the proxy.
    pub chain: Arc<AlloyChain>,
    /// What the proxy asks of a channel.
    pub terms: Terms,
    /// The config the proxy runs with.
    pub config: Config,
    /// The proxy's books are in here.
    pub folder: tempfile::TempDir,
    http: reqwest::Client,
}

/// What must not move when a payment is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Requests the upstream saw.
    pub upstream_calls: usize,
    /// Transactions of the proxy, mined or waiting.
    pub transactions: u64,
    /// Deposits the contract has seen.
    pub onchain_deposits: usize,
    /// What the proxy has charged on all channels.
    pub charged: u128,
}

impl World {
    /// Starts everything.
    pub async fn start(options: WorldOptions) -> Self {
        let devnet = Devnet::start(DevnetConfig { mining: options.mining, ..DevnetConfig::default() }).await.unwrap();
        let upstream = Upstream::start().await;
        let text = config_text(&options, &devnet.rpc_url(), upstream.address);
        let mut config = Config::parse(&text, "conformance.toml").unwrap_or_else(|errors| panic!("{errors}"));
        config.chain.token = options.token.unwrap_or(config.chain.token);
        let url: RpcUrl = devnet.rpc_url().parse().unwrap();
        let chain = Arc::new(AlloyChain::connect(url, Some(dev_key("dev:gas"))).await.unwrap());
        let authorizer = dev_key("dev:authorizer");
        let terms = config.terms(authorizer.address());
        let folder = tempfile::tempdir().unwrap();
        let site = Site::open(&config, authorizer, Arc::clone(&chain), books_in(folder.path())).await.unwrap();
        Self { devnet, upstream, site, chain, terms, config, folder, http: client(false) }
    }

    /// The proxy's URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.site.address())
    }

    // ---- asking

    /// Sends a request with exactly these headers (and those HTTP needs).
    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answered {
        send(&self.http, method, &self.url(path), headers, body.into()).await
    }

    /// The same over HTTP/2 without TLS, by prior knowledge.
    pub async fn send_h2(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answered {
        send(&client(true), method, &self.url(path), headers, Bytes::new()).await
    }

    /// A `GET` without payment.
    pub async fn get(&self, path: &str) -> Answered {
        self.send(Method::GET, path, &[], "").await
    }

    /// A paid `GET`.
    pub async fn pay(&self, path: &str, payment: &Payment) -> Answered {
        self.send(Method::GET, path, &[(x402::PAYMENT_SIGNATURE, &payment.header())], "").await
    }

    /// A paid `GET` whose body is left to the case, for streams.
    pub async fn pay_streaming(&self, path: &str, payment: &Payment) -> reqwest::Response {
        let request = self.http.get(self.url(path)).header(x402::PAYMENT_SIGNATURE, payment.header());
        request.send().await.unwrap()
    }

    /// The quote for a path, as JSON.
    pub async fn quote(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED, "{answer:?}");
        answer.quote().expect("a 402 carries a quote")
    }

    // ---- payers

    /// The `n`th payer, with [`PURSE`] test dollars and an unopened channel. Asking again gives the same account.
    pub fn payer(&self, n: u8) -> Payer {
        let payer = Payer::new(n, &self.terms, PRICE);
        let account = alloy::primitives::Address::new(payer.address().0);
        if self.dollars(payer.address()) == 0 {
            let token = alloy::primitives::Address::new(self.terms.token.address.0);
            self.devnet.mint(token, account, PURSE).unwrap();
        }
        payer
    }

    /// A payer who has paid once: `deposit` on the channel, [`PRICE`] of it charged.
    pub async fn opened(&self, n: u8, deposit: u128) -> Payer {
        let payer = self.payer(n);
        let answer = self.pay("/paid", &payer.deposit(deposit, PRICE)).await;
        answer.assert_served().assert_deposit_receipt(deposit, PRICE, PRICE);
        payer
    }

    /// Test dollars an account holds.
    pub fn dollars(&self, owner: Address) -> u128 {
        let evm = |address: Address| alloy::primitives::Address::new(address.0);
        self.devnet.token_balance(evm(self.terms.token.address), evm(owner)).unwrap()
    }

    // ---- counting

    /// Requests the upstream saw.
    pub fn upstream_calls(&self) -> usize {
        self.upstream.calls().len()
    }

    /// Transactions the proxy sent, mined or waiting: the nonce of its gas account.
    pub async fn transactions(&self) -> u64 {
        let gas = genesis::dev_signers()[0].address();
        let count = self.rpc("eth_getTransactionCount", json!([gas, "pending"])).await;
        u64::from_str_radix(count.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }

    /// What the contract did so far.
    pub async fn happenings(&self) -> Vec<Happening> {
        let head = self.chain.head().await.unwrap().number;
        self.chain.events(0, head).await.unwrap().into_iter().map(|event| event.what).collect()
    }

    /// Deposits the contract has seen.
    pub async fn onchain_deposits(&self) -> usize {
        let deposit = |what: &Happening| matches!(what, Happening::Deposited { .. });
        self.happenings().await.iter().filter(|what| deposit(what)).count()
    }

    /// The proxy's books of a channel.
    pub fn books(&self, channel: ChannelId) -> Option<Statement> {
        self.site.gate().accounts().statement(&channel)
    }

    /// What the proxy has charged on all channels.
    pub fn charged(&self) -> u128 {
        self.site.gate().accounts().statements().iter().map(|books| books.charged.units()).sum()
    }

    /// All of it.
    pub async fn tally(&self) -> Tally {
        Tally {
            upstream_calls: self.upstream_calls(),
            transactions: self.transactions().await,
            onchain_deposits: self.onchain_deposits().await,
            charged: self.charged(),
        }
    }

    /// Nothing was served, sent or charged since `before`.
    #[track_caller]
    pub fn assert_untouched(&self, before: &Tally) -> impl Future<Output = ()> {
        let before = before.clone();
        let caller = std::panic::Location::caller();
        async move {
            let after = self.tally().await;
            assert!(after == before, "something moved, at {caller}\nbefore {before:?}\nafter  {after:?}");
        }
    }

    /// Waits until `condition` holds, [`PATIENCE`] at most.
    pub async fn eventually(&self, what: &str, mut condition: impl AsyncFnMut(&Self) -> bool) {
        let begun = tokio::time::Instant::now();
        while !condition(self).await {
            assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the proxy has sent its `n`th transaction, which no block need have.
    pub async fn sent_transactions(&self, n: u64) {
        self.eventually("a transaction is sent", async |world| world.transactions().await >= n).await;
    }

    /// A question to the chain's node.
    pub async fn rpc(&self, method: &str, params: Value) -> Value {
        let question = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let answer = self.http.post(self.devnet.rpc_url()).body(question.to_string());
        let answer = answer.header("content-type", "application/json").send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Stops the proxy, which redeems. `earned` is what must then have reached the provider: all that was charged in
    /// the case, to the unit.
    pub async fn finish(self, earned: u128) {
        self.devnet.set_mining(Mining::OnDemand);
        let Self { devnet, site, http, folder, terms, .. } = self;
        drop(http);
        let report = tokio::time::timeout(PATIENCE, site.close()).await.expect("the proxy stops in time");
        let report = report.expect("stopping redeems");
        assert!(report.is_complete(), "{report:?}");
        let pay_to: Address = PAY_TO.parse().unwrap();
        let evm = |address: Address| alloy::primitives::Address::new(address.0);
        let received = devnet.token_balance(evm(terms.token.address), evm(pay_to)).unwrap();
        assert_eq!(received, earned, "what the provider received is what was charged");
        devnet.shutdown().await;
        drop(folder);
    }
}

/// The books in a directory, new ones if there are none.
pub fn books_in(directory: &Path) -> Books {
    let identity = Identity { chain_id: 84_532, settlement: SETTLEMENT };
    Books::open(SqliteStore::open(directory, identity).unwrap()).unwrap()
}

fn dev_key(name: &str) -> LocalKey {
    name.parse::<KeyRef>().unwrap().load(true).unwrap()
}

fn config_text(options: &WorldOptions, rpc: &str, upstream: SocketAddr) -> String {
    let WorldOptions { channel, upstream: more_upstream, more, .. } = options;
    let price = Amount::new(PRICE).to_price(6);
    format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        public_url = "{PUBLIC_URL}"
        shutdown_timeout = "5s"

        [admin]
        listen = "off"

        [upstream]
        url = "http://{upstream}"
        {more_upstream}

        [chain]
        network = "base-sepolia"
        rpc = "{rpc}"
        poll = "50ms"

        [receiver]
        pay_to = "{PAY_TO}"
        authorizer_key = "dev:authorizer"
        gas_key = "dev:gas"

        [channel]
        {channel}

        [[route]]
        path = "/paid"
        price = "{price}"
        description = "Something worth paying for"
        mime_type = "text/plain"

        [[route]]
        path = "/free"
        price = "free"

        {more}
        "#
    )
}

// ---- the client

fn client(h2: bool) -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(PATIENCE);
    if h2 { builder.http2_prior_knowledge() } else { builder }.build().unwrap()
}

async fn send(http: &reqwest::Client, method: Method, url: &str, headers: &[(&str, &str)], body: Bytes) -> Answered {
    let mut all = HeaderMap::new();
    for (name, value) in headers {
        all.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
    }
    let response = http.request(method, url).headers(all).body(body).send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Answered { status, headers, body: response.bytes().await.unwrap() }
}

/// An answer of the proxy, as it came.
#[derive(Debug, Clone)]
pub struct Answered {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its whole body.
    pub body: Bytes,
}

impl Answered {
    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The JSON in a base64 header. A second header of that name, or one that cannot be read, is a failure.
    #[track_caller]
    fn decoded(&self, name: &str) -> Option<Value> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next()?;
        assert!(values.next().is_none(), "two {name} headers");
        Some(x402::decode(value.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}")))
    }

    /// What `PAYMENT-REQUIRED` says.
    #[track_caller]
    pub fn quote(&self) -> Option<Value> {
        self.decoded(x402::PAYMENT_REQUIRED)
    }

    /// What `PAYMENT-RESPONSE` says.
    #[track_caller]
    pub fn receipt(&self) -> Option<Value> {
        self.decoded(x402::PAYMENT_RESPONSE)
    }

    /// The channel's state and the last voucher in a corrective.
    #[track_caller]
    pub fn corrective(&self) -> Option<(Value, Option<Value>)> {
        let quote = self.quote()?;
        let extra = &quote["accepts"][0]["extra"];
        Some((extra.get("channelState")?.clone(), extra.get("voucherState").cloned()))
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// A refusal: this status and exactly this error, in the body and (on a 402) in a fresh quote; no receipt, not
    /// cacheable.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, error: &str) -> &Self {
        self.assert_refusal_without_quote_check(status, error);
        assert!(self.receipt().is_none(), "a refusal carries no receipt: {self:?}");
        if status == 402 {
            let quote = self.quote().expect("a 402 carries a quote, to try again at once");
            assert_eq!(quote["error"], error);
            let mut body = self.json();
            body.as_object_mut().unwrap().remove("message");
            assert_eq!(quote, body, "body and header say the same, and words are for people");
        } else {
            assert!(self.quote().is_none(), "only a 402 carries a quote: {self:?}");
        }
        self
    }

    /// A refusal with one of the scheme's own codes, given without its prefix.
    #[track_caller]
    pub fn assert_scheme_refusal(&self, code: &str) -> &Self {
        self.assert_refused(402, &format!("{PREFIX}{code}"));
        assert!(self.corrective().is_none(), "only a mismatch tells the channel's state: {self:?}");
        self
    }

    /// A corrective 402: the mismatch code, exactly, with the channel's state; `voucher_max` is the ceiling of the
    /// voucher it returns, if it returns one.
    #[track_caller]
    pub fn assert_corrective(&self, charged: u128, balance: u128, voucher_max: Option<u128>) -> &Self {
        self.assert_refused(402, &format!("{PREFIX}cumulative_amount_mismatch"));
        let (state, voucher) = self.corrective().expect("a mismatch tells the channel's state");
        assert_eq!(state["chargedCumulativeAmount"], json!(charged.to_string()), "{state}");
        assert_eq!(state["balance"], json!(balance.to_string()), "{state}");
        let shown = voucher.map(|voucher| voucher["signedMaxClaimable"].clone());
        assert_eq!(shown, voucher_max.map(|max| json!(max.to_string())));
        self
    }

    #[track_caller]
    fn assert_refusal_without_quote_check(&self, status: u16, error: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.json()["error"], error, "{self:?}");
        assert_eq!(self.header("cache-control"), Some("no-store"), "no answer about a payment is cached: {self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
    }

    /// A settlement that failed for good: 402 with the receipt that says so, and no quote.
    #[track_caller]
    pub fn assert_settlement_failed(&self, code: &str) -> &Self {
        let error = format!("{PREFIX}{code}");
        self.assert_refusal_without_quote_check(402, &error);
        assert!(self.quote().is_none(), "a failed settlement carries its receipt only: {self:?}");
        let receipt = self.receipt().expect("a failed settlement has a receipt");
        assert_eq!(receipt["success"], json!(false));
        assert_eq!(receipt["errorReason"], json!(error));
        assert_eq!(receipt["transaction"], json!(""));
        assert_eq!(receipt["network"], json!("eip155:84532"));
        assert!(receipt.pointer("/extra/chargedAmount").is_none(), "{receipt}");
        self
    }

    /// A paid answer: the upstream's own 200, private to the payer, with a receipt that says success.
    #[track_caller]
    pub fn assert_served(&self) -> &Self {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        assert!(self.quote().is_none(), "a paid answer carries no quote");
        let receipt = self.receipt().expect("a paid answer carries a receipt");
        assert_eq!(receipt["success"], json!(true), "{receipt}");
        assert_eq!(receipt["network"], json!("eip155:84532"), "{receipt}");
        let cache = self.header("cache-control").unwrap_or_default();
        assert!(cache.contains("private") || cache.contains("no-store"), "a paid answer is the payer's: {cache:?}");
        self
    }

    /// The same with this body.
    #[track_caller]
    pub fn assert_served_with(&self, body: &str) -> &Self {
        assert_eq!(self.body, body);
        self.assert_served()
    }

    /// The receipt of a deposit that landed: `deposited` came in, this request cost `charge`, the channel `charged` in
    /// all.
    #[track_caller]
    pub fn assert_deposit_receipt(&self, deposited: u128, charge: u128, charged: u128) -> &Self {
        let receipt = self.receipt().expect("a deposit has a receipt");
        let transaction = receipt["transaction"].as_str().unwrap();
        assert!(transaction.len() == 66 && transaction.starts_with("0x"), "{receipt}");
        assert_eq!(receipt["amount"], json!(deposited.to_string()), "{receipt}");
        self.assert_charge(&receipt, charge, charged);
        self
    }

    /// The receipt of a plain voucher: no transaction, no amount, this request cost `charge`, the channel `charged` in
    /// all.
    #[track_caller]
    pub fn assert_voucher_receipt(&self, charge: u128, charged: u128) -> &Self {
        let receipt = self.receipt().expect("a paid answer has a receipt");
        assert_eq!(receipt["transaction"], json!(""), "{receipt}");
        assert_eq!(receipt["amount"], json!(""), "{receipt}");
        self.assert_charge(&receipt, charge, charged);
        self
    }

    #[track_caller]
    fn assert_charge(&self, receipt: &Value, charge: u128, charged: u128) {
        assert_eq!(receipt["success"], json!(true), "{receipt}");
        assert_eq!(receipt["extra"]["chargedAmount"], json!(charge.to_string()), "{receipt}");
        let state = &receipt["extra"]["channelState"];
        assert_eq!(state["chargedCumulativeAmount"], json!(charged.to_string()), "{receipt}");
    }

    /// The channel's state in the receipt.
    #[track_caller]
    pub fn state(&self) -> Value {
        self.receipt().expect("there is a receipt")["extra"]["channelState"].clone()
    }
}

// ---- the upstream

/// The API that is sold: records every request, and answers as told.
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<UpstreamState>,
}

#[derive(Default)]
struct UpstreamState {
    calls: Mutex<Vec<Call>>,
    answers: Mutex<VecDeque<Answer>>,
    usual: Mutex<Option<Answer>>,
}

/// A request that reached the upstream.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub target: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// The bytes of its body; counted before the answer begins.
    pub body_bytes: usize,
}

/// What the upstream answers.
pub struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: AnswerBody,
    delay: Duration,
    released_by: Option<Arc<Notify>>,
}

enum AnswerBody {
    Whole(Bytes),
    /// What a case sends, as it sends it; an error breaks the connection.
    Live(mpsc::Receiver<Result<Bytes, Reset>>),
    /// No answer: the connection is closed.
    None,
}

/// The upstream breaks its connection.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the upstream breaks its connection")]
pub struct Reset;

impl Answer {
    /// A 200 with this body.
    pub fn ok(body: &'static str) -> Self {
        Self::whole(Bytes::from_static(body.as_bytes()))
    }

    /// An answer of this status.
    pub fn status(status: u16) -> Self {
        Self { status: StatusCode::from_u16(status).unwrap(), ..Self::ok("upstream says no") }
    }

    /// The connection is closed without an answer.
    pub fn reset() -> Self {
        Self { body: AnswerBody::None, ..Self::ok("") }
    }

    /// A 200 whose body is sent by the case through the sender; dropping it ends the body.
    pub fn live() -> (Self, mpsc::Sender<Result<Bytes, Reset>>) {
        let (sender, receiver) = mpsc::channel(16);
        (Self { body: AnswerBody::Live(receiver), ..Self::ok("") }, sender)
    }

    fn whole(body: Bytes) -> Self {
        Self {
            status: StatusCode::OK,
            headers: Vec::new(),
            body: AnswerBody::Whole(body),
            delay: Duration::ZERO,
            released_by: None,
        }
    }

    /// With this header too.
    pub fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((HeaderName::from_static(name), HeaderValue::from_static(value)));
        self
    }

    /// Not before so long.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Not before the case says so.
    pub fn when(mut self, released: &Arc<Notify>) -> Self {
        self.released_by = Some(Arc::clone(released));
        self
    }
}

impl Upstream {
    async fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let state = Arc::<UpstreamState>::default();
        tokio::spawn(serve_upstream(socket, Arc::clone(&state)));
        Self { address, state }
    }

    /// The next request is answered so; several queue up.
    pub fn next(&self, answer: Answer) {
        self.state.answers.lock().unwrap().push_back(answer);
    }

    /// Every request that saw the upstream, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.state.calls.lock().unwrap().clone()
    }

    /// The latest of them.
    #[track_caller]
    pub fn last_call(&self) -> Call {
        self.calls().pop().expect("the upstream was called")
    }
}

async fn serve_upstream(socket: TcpListener, state: Arc<UpstreamState>) {
    loop {
        let (stream, _) = socket.accept().await.unwrap();
        let state = Arc::clone(&state);
        let service = hyper::service::service_fn(move |request| answer_upstream(Arc::clone(&state), request));
        // A connection the case breaks ends with an error, as it should.
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer_upstream(
    state: Arc<UpstreamState>,
    request: Request<Incoming>,
) -> Result<Response<UnsyncBoxBody<Bytes, Reset>>, Reset> {
    let (head, body) = request.into_parts();
    let index = {
        let mut calls = state.calls.lock().unwrap();
        let target = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
        calls.push(Call { method: head.method, target, headers: head.headers, body_bytes: 0 });
        calls.len() - 1
    };
    let body = body.collect().await.map_err(|_| Reset)?.to_bytes();
    state.calls.lock().unwrap()[index].body_bytes = body.len();
    let answer = state.answers.lock().unwrap().pop_front().unwrap_or_else(|| Answer::ok("served"));
    tokio::time::sleep(answer.delay).await;
    if let Some(released) = answer.released_by {
        released.notified().await;
    }
    let body = match answer.body {
        AnswerBody::None => return Err(Reset),
        AnswerBody::Whole(bytes) => Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync(),
        AnswerBody::Live(receiver) => {
            let frames = futures_util::stream::unfold(receiver, async |mut receiver| {
                let frame = receiver.recv().await?;
                Some((frame.map(Frame::data), receiver))
            });
            StreamBody::new(frames).boxed_unsync()
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    for (name, value) in answer.headers {
        response.headers_mut().append(name, value);
    }
    Ok(response)
}
