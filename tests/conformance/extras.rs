//! What cases 22 to 43 need beside the harness: events past the proxy, a way to the chain that counts and can be
//! blocked, a proxy that forgets, an upstream that breaks off, and a client that does what the official one does and no
//! more.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::network::{EthereumWallet, TransactionBuilder as _};
use alloy::primitives::U256;
use alloy::providers::{Provider as _, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use alloy::sol_types::SolCall as _;
use axum::extract::State;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use http::StatusCode;
use peaje::chain::{AlloyChain, Call, Chain as _, KeyRef, Mined};
use peaje::cli::site::{Books, Site};
use peaje::devnet::genesis;
use peaje::gate::Statement;
use peaje::protocol::claim::{ClaimRow, claim_batch_digest, refund_digest};
use peaje::protocol::x402::PAYMENT_SIGNATURE;
use peaje::protocol::{Address, Amount, LocalKey};
use peaje::redeem::Report;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use super::harness::{Answered, PATIENCE, PREFIX, PURSE, Payer, Payment, World, books_in};

/// A section for [`super::harness::WorldOptions::more`]: the proxy ends without claiming, as after a power cut.
pub const FORGETFUL: &str = "[redeem]\non_shutdown = false";

/// A development key.
pub fn dev(name: &str) -> LocalKey {
    format!("dev:{name}").parse::<KeyRef>().unwrap().load(true).unwrap()
}

pub fn evm(address: Address) -> alloy::primitives::Address {
    alloy::primitives::Address::new(address.0)
}

impl World {
    /// The books of a channel that is known.
    pub fn book(&self, payer: &Payer) -> Statement {
        self.books(payer.id()).expect("the channel is known")
    }

    /// What was charged on a channel.
    pub fn charged_on(&self, payer: &Payer) -> u128 {
        self.book(payer).charged.units()
    }

    /// What the chain says of a channel: balance, claimed.
    pub async fn on_chain(&self, payer: &Payer) -> (u128, u128) {
        let view = self.chain.channel(payer.id()).await.unwrap();
        (view.balance.units(), view.total_claimed.units())
    }

    /// What the contract says of the provider: claimed, settled.
    pub async fn owed(&self) -> (u128, u128) {
        let owed = self.chain.receivers(self.terms.pay_to, self.terms.token.address).await.unwrap();
        (owed.total_claimed.units(), owed.total_settled.units())
    }

    /// Claims and settles now.
    pub async fn redeem(&self) -> Report {
        self.site.redemption().redeem().await.unwrap()
    }

    /// Closes the proxy and opens another one with the world's config on the same books. The report of the first one's
    /// last redemption.
    pub async fn restart(&mut self) -> Option<Report> {
        let chain = Arc::clone(&self.chain);
        // Two cannot have the same books, so one with new ones is in its place meanwhile.
        let (books, report) = self.replace(Arc::clone(&chain)).await;
        let next = self.open_on(chain, books_in(books.path())).await;
        std::mem::replace(&mut self.site, next).close().await;
        self.folder = books;
        report
    }

    /// Closes the proxy and opens another one with the world's config on the same chain, with new books: all that was
    /// written is lost. The report of the first one's last redemption.
    pub async fn reopen(&mut self) -> Option<Report> {
        let chain = Arc::clone(&self.chain);
        self.reopen_on(chain).await
    }

    /// The same, with another way to the chain.
    pub async fn reopen_on(&mut self, chain: Arc<AlloyChain>) -> Option<Report> {
        self.replace(chain).await.1
    }

    async fn replace(&mut self, chain: Arc<AlloyChain>) -> (TempDir, Option<Report>) {
        let folder = tempfile::tempdir().unwrap();
        let next = self.open_on(chain, books_in(folder.path())).await;
        let report = std::mem::replace(&mut self.site, next).close().await;
        (std::mem::replace(&mut self.folder, folder), report)
    }

    async fn open_on(&self, chain: Arc<AlloyChain>, books: Books) -> Site {
        Site::open(&self.config, dev("authorizer"), chain, books).await.unwrap()
    }

    /// A way to the chain for another account.
    pub async fn chain_as(&self, key: LocalKey) -> AlloyChain {
        AlloyChain::connect(self.devnet.rpc_url().parse().unwrap(), Some(key)).await.unwrap()
    }

    /// Sends a call past the proxy, as `key`, and waits until it is carried out.
    pub async fn past_the_proxy(&self, key: LocalKey, call: &Call) -> Mined {
        self.devnet.fund(evm(key.address()), genesis::DEV_BALANCE);
        let chain = self.chain_as(key).await;
        let hash = chain.send(call).await.unwrap();
        let mined = chain.await_receipt(hash, PATIENCE, Duration::from_millis(10)).await.unwrap();
        let mined = mined.expect("mined in time");
        assert!(mined.success, "{mined:?}");
        mined
    }

    /// Another instance with the same authorizer's key claims `charged` and refunds the rest; this proxy is not asked,
    /// and follows.
    pub async fn refund_elsewhere(&self, payer: &Payer, charged: u128) {
        let authorizer = dev("authorizer");
        let view = self.chain.channel(payer.id()).await.unwrap();
        let rows = if charged > view.total_claimed.units() { vec![row(payer, charged, charged)] } else { Vec::new() };
        let amount = view.balance.checked_sub(Amount::new(charged)).unwrap();
        let (domain, nonce) = (payer.settlement(), view.refund_nonce);
        let call = Call::ClaimAndRefund {
            claim_signature: authorizer.sign(claim_batch_digest(&domain, &rows)),
            rows,
            config: payer.config,
            amount,
            nonce,
            refund_signature: authorizer.sign(refund_digest(&domain, payer.id(), nonce, amount)),
        };
        self.past_the_proxy(dev("5"), &call).await;
        let left = Amount::new(charged);
        self.eventually("the refund is followed", async |world| world.book(payer).view.balance == left).await;
    }

    /// Another instance claims `total` with a voucher up to `max`, and does not settle.
    pub async fn claim_elsewhere(&self, payer: &Payer, max: u128, total: u128) {
        let rows = vec![row(payer, max, total)];
        let signature = dev("authorizer").sign(claim_batch_digest(&payer.settlement(), &rows));
        self.past_the_proxy(dev("5"), &Call::ClaimWithSignature { rows, signature }).await;
    }

    /// A client of the case's own.
    pub fn client(&self) -> reqwest::Client {
        reqwest::Client::builder().no_proxy().build().unwrap()
    }

    /// An open connection on which a paid `GET` was sent, for clients that leave.
    pub async fn raw(&self, path: &str, payment: &Payment) -> TcpStream {
        let mut stream = TcpStream::connect(self.site.address()).await.unwrap();
        let payment = payment.header();
        let head = format!("GET {path} HTTP/1.1\r\nhost: peaje\r\n{PAYMENT_SIGNATURE}: {payment}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    /// Waits until the upstream has seen so many requests.
    pub async fn upstream_saw(&self, calls: usize) {
        self.eventually("the upstream is called", async |world| world.upstream_calls() == calls).await;
    }
}

fn row(payer: &Payer, max: u128, total: u128) -> ClaimRow {
    let signed = payer.signed(max);
    ClaimRow {
        config: payer.config,
        max_claimable: signed.max_claimable,
        signature: signed.signature,
        total_claimed: Amount::new(total),
    }
}

/// A `channelState` as receipts and correctives show it.
pub fn state(payer: &Payer, balance: u128, claimed: u128, charged: u128, refund_nonce: u128) -> Value {
    json!({
        "channelId": payer.id().to_string(), "balance": balance.to_string(), "totalClaimed": claimed.to_string(),
        "withdrawRequestedAt": 0, "refundNonce": refund_nonce.to_string(),
        "chargedCumulativeAmount": charged.to_string(),
    })
}

/// A `voucherState` as correctives show it.
pub fn voucher_state(payer: &Payer, max: u128) -> Value {
    json!({"signedMaxClaimable": max.to_string(), "signature": payer.signed(max).signature})
}

/// Puts an ERC-1271 wallet that `owner` signs for on the chain, with dollars in it.
pub async fn deploy_wallet(world: &World, owner: &LocalKey) -> Address {
    alloy::sol! {
        function init(address newOwner) external;
    }
    let deployer = EthereumWallet::from(world.devnet.dev_signer(6));
    let provider = ProviderBuilder::new().wallet(deployer).connect_http(world.devnet.rpc_url().parse().unwrap());
    provider.client().set_poll_interval(Duration::from_millis(10));
    let deploy = TransactionRequest::default().with_deploy_code(genesis::test_wallet_bytecode());
    let receipt = provider.send_transaction(deploy).await.unwrap().get_receipt().await.unwrap();
    let wallet = receipt.contract_address.unwrap();
    let init = initCall { newOwner: evm(owner.address()) }.abi_encode();
    let init = TransactionRequest::default().with_to(wallet).with_input(init).with_value(U256::ZERO);
    assert!(provider.send_transaction(init).await.unwrap().get_receipt().await.unwrap().status());
    world.devnet.mint_dollars(wallet, PURSE).unwrap();
    Address(wallet.into_array())
}

// ---- the stock client

/// A client that does what the official one does: it asks unpaid each time, signs for its own books, believes a
/// corrective once a call, and pays again on the terms of the first 402.
pub struct StockClient {
    pub payer: Payer,
    pub charged: u128,
    pub balance: u128,
    /// How often it was corrected.
    pub corrected: usize,
}

impl StockClient {
    pub fn new(payer: Payer, balance: u128, charged: u128) -> Self {
        Self { payer, charged, balance, corrected: 0 }
    }

    pub async fn fetch(&mut self, world: &World, path: &str) -> Answered {
        self.payer.offer = world.quote(path).await["accepts"][0].clone();
        let answer = self.attempt(world, path).await;
        // A receipt on a 402 stops it from recovering; a missing quote does too.
        let Some(quote) = answer.quote().filter(|_| answer.status == 402 && answer.receipt().is_none()) else {
            return answer;
        };
        if !self.recovers(world, &quote).await {
            return answer;
        }
        self.corrected += 1;
        self.attempt(world, path).await
    }

    async fn attempt(&mut self, world: &World, path: &str) -> Answered {
        let price = number(&self.payer.offer["amount"]);
        let max = self.charged + price;
        let deposits = max > self.balance;
        let payment = if deposits {
            self.payer.deposit((5 * price).max(max - self.balance), max)
        } else {
            self.payer.voucher(max)
        };
        let answer = world.pay(path, &payment).await;
        if let Some(receipt) = answer.receipt().filter(|receipt| receipt["success"] == true) {
            let charge = number(&receipt["extra"]["chargedAmount"]);
            assert!(charge <= price, "the client throws");
            if number(&receipt["extra"]["channelState"]["chargedCumulativeAmount"]) == self.charged + charge {
                self.charged += charge;
                if deposits {
                    self.balance += number(&receipt["amount"]);
                }
            }
        }
        answer
    }

    /// Whether a 402 is a corrective that is believed; then the books follow it and the chain.
    async fn recovers(&mut self, world: &World, quote: &Value) -> bool {
        let codes = ["cumulative_amount_mismatch", "cumulative_below_claimed"].map(|code| format!("{PREFIX}{code}"));
        if !codes.iter().any(|code| quote["error"] == *code) {
            return false;
        }
        let extra = &quote["accepts"][0]["extra"];
        let (balance, claimed) = world.on_chain(&self.payer).await;
        self.charged = match (extra.get("channelState"), extra.get("voucherState")) {
            (Some(state), Some(voucher)) if quote["error"] == codes[0] => {
                let charged = number(&state["chargedCumulativeAmount"]);
                let signed = number(&voucher["signedMaxClaimable"]);
                if charged > signed || charged < claimed || *voucher != voucher_state(&self.payer, signed) {
                    return false;
                }
                charged
            }
            _ => claimed,
        };
        self.balance = balance;
        true
    }
}

/// An amount as headers hold it: a string of digits.
pub fn number(value: &Value) -> u128 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no amount: {value}"))
}

// ---- the way to the chain

/// A way to the chain that counts what is asked by method, and can be blocked.
pub struct Gateway {
    state: Arc<GatewayState>,
    task: JoinHandle<()>,
}

struct GatewayState {
    to: String,
    http: reqwest::Client,
    blocked: AtomicBool,
    pool_full: AtomicBool,
    counts: Mutex<BTreeMap<String, usize>>,
}

impl Gateway {
    /// Makes the world's proxy go to the chain through a gateway. It forgets its books by that.
    pub async fn of(world: &mut World) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let (blocked, pool_full) = (AtomicBool::new(false), AtomicBool::new(false));
        let (to, counts) = (world.devnet.rpc_url(), Mutex::default());
        let state = Arc::new(GatewayState { to, http, blocked, pool_full, counts });
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let router = axum::Router::new().fallback(axum::routing::post(forward)).with_state(Arc::clone(&state));
        let task = tokio::spawn(async move { axum::serve(socket, router).await.unwrap() });
        let chain = AlloyChain::connect(url.parse().unwrap(), Some(dev("gas"))).await.unwrap();
        world.reopen_on(Arc::new(chain)).await;
        Self { state, task }
    }

    /// How often the node was asked about anything but new blocks and their events, which the follower does all the
    /// time.
    pub fn questions(&self) -> usize {
        let idle = ["eth_blockNumber", "eth_getBlockByNumber", "eth_getLogs"];
        let counts = self.state.counts.lock().unwrap();
        counts.iter().filter(|(method, _)| !idle.contains(&method.as_str())).map(|(_, count)| count).sum()
    }

    /// Waits until the follower has looked at everything that happened so far; then counts the questions.
    pub async fn settled(&self) -> usize {
        let looks = || self.state.counts.lock().unwrap().get("eth_getBlockByNumber").copied().unwrap_or_default();
        let before = looks();
        let begun = tokio::time::Instant::now();
        // The first look may have begun before, the second is whole, the third says that the second is done. A look asks for
        // the newest block, and for one or two others where it is new.
        while looks() < before + 9 {
            assert!(begun.elapsed() < PATIENCE, "nobody follows the chain");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.questions()
    }

    /// How often a transaction was sent.
    pub fn sends(&self) -> usize {
        self.state.counts.lock().unwrap().get("eth_sendRawTransaction").copied().unwrap_or_default()
    }

    /// From now on, or no longer, the node takes no transactions.
    pub fn fill_pool(&self, full: bool) {
        self.state.pool_full.store(full, Ordering::SeqCst);
    }

    /// From now on, or no longer, nothing gets through.
    pub fn block(&self, blocked: bool) {
        self.state.blocked.store(blocked, Ordering::SeqCst);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(State(state): State<Arc<GatewayState>>, body: Bytes) -> axum::response::Response {
    let question: Value = serde_json::from_slice(&body).unwrap();
    let method = question["method"].as_str().unwrap_or("a batch").to_owned();
    *state.counts.lock().unwrap().entry(method.clone()).or_default() += 1;
    if method == "eth_sendRawTransaction" && state.pool_full.load(Ordering::SeqCst) {
        let error = json!({"code": -32000, "message": "txpool is full"});
        return axum::Json(json!({"jsonrpc": "2.0", "id": question["id"], "error": error})).into_response();
    }
    if state.blocked.load(Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match state.http.post(&state.to).header("content-type", "application/json").body(body).send().await {
        Ok(answer) => answer.bytes().await.unwrap().into_response(),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

// ---- an upstream that breaks off

/// How a [`Breaker`] ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// In the middle of the head, by a TCP reset.
    HeadByReset,
    /// In the middle of the head, by an orderly end.
    HeadByEnd,
    /// In the middle of the body.
    Body,
    /// Not at all: it answers `served`.
    Never,
}

/// An upstream below HTTP: what it writes is no answer yet, or no whole one. It can also not be there.
pub struct Breaker {
    pub address: SocketAddr,
    next: Arc<Mutex<Break>>,
    seen: Arc<AtomicUsize>,
    task: JoinHandle<()>,
    /// Keeps the port while nobody listens there.
    _held: TcpSocket,
}

impl Breaker {
    /// Makes it the upstream of the world's proxy, which forgets its books by that.
    pub async fn of(world: &mut World) -> Self {
        let held = bound("127.0.0.1:0".parse().unwrap());
        let address = held.local_addr().unwrap();
        let socket = bound(address).listen(BACKLOG).unwrap();
        let (next, seen) = (Arc::new(Mutex::new(Break::Never)), Arc::<AtomicUsize>::default());
        let task = tokio::spawn(break_off(socket, Arc::clone(&next), Arc::clone(&seen)));
        world.config.upstream.urls = vec![format!("http://{address}").parse().unwrap()];
        world.reopen().await;
        Self { address, next, seen, task, _held: held }
    }

    /// From now on it ends connections so.
    pub fn set(&self, next: Break) {
        *self.next.lock().unwrap() = next;
    }

    /// Requests it has seen.
    pub fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }

    /// Stops listening: connections are refused.
    pub async fn down(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Listens again, where it did before.
    pub async fn up(&mut self) {
        let socket = bound(self.address).listen(BACKLOG).unwrap();
        self.task = tokio::spawn(break_off(socket, Arc::clone(&self.next), Arc::clone(&self.seen)));
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How many connections wait to be accepted.
const BACKLOG: u32 = 128;

/// A socket that shares its port with others of its kind. Until it listens, nobody is connected to it.
fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    // Connections that are not quite over do not keep the port.
    socket.set_reuseaddr(true).unwrap();
    #[cfg(unix)]
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn break_off(socket: TcpListener, next: Arc<Mutex<Break>>, seen: Arc<AtomicUsize>) {
    loop {
        let (mut stream, _) = socket.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
        seen.fetch_add(1, Ordering::SeqCst);
        let next = *next.lock().unwrap();
        let text: &[u8] = match next {
            Break::HeadByReset | Break::HeadByEnd => b"HTTP/1.1 200 OK\r\ncontent-le",
            Break::Body => b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it",
            Break::Never => b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nserved",
        };
        stream.write_all(text).await.unwrap();
        match next {
            // What was written must have been read, or the reset would overtake it.
            Break::HeadByReset => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                stream.set_zero_linger().unwrap();
            }
            Break::Body => tokio::time::sleep(Duration::from_millis(20)).await,
            Break::HeadByEnd | Break::Never => {}
        }
    }
}
