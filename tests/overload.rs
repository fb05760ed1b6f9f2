//! More than there is room for, and clients that mean no good: real sockets on both sides.
//!
//! Loopback has as many addresses as one likes, so peers here are really different ones.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on should say so at once")]

#[path = "support/payer.rs"]
mod payer;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use peaje::gate::desk::Question;
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Policy, Price, Route};
use peaje::gate::{Desk, Gate, Limits, Questions};
use peaje::ledger::View;
use peaje::protocol::{Amount, Voucher};
use peaje::proxy::{Bounds, Cors, Listener, Upstream, UpstreamSettings};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use payer::{Payer, usual_terms as terms};

const PRICE: u128 = 2_000;

/// How long any one step may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the tests that wait for a limit set it to.
const SHORT: Duration = Duration::from_millis(200);

/// How long an answer to a forger is held back.
const HELD_BACK: Duration = Duration::from_secs(1);

const FORGED: &str = "invalid_batch_settlement_evm_voucher_signature";
const NOT_FOUND: &str = "invalid_batch_settlement_evm_channel_not_found";
const STEP: &str = "invalid_batch_settlement_evm_cumulative_amount_mismatch";
const LIMITED: (u16, &str) = (429, "payment_rate_limited");
const OVERLOADED: (u16, &str) = (503, "overloaded");
const SERVED: (u16, &str) = (200, "");

const HERE: u8 = 1;
const ELSEWHERE: u8 = 2;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this should not take so long")
}

// ---- the proxy

struct Setup {
    upstream: SocketAddr,
    bad_signatures_per_minute: u32,
    bounds: Bounds,
    write_pause: Option<Duration>,
    per_peer: Option<usize>,
}

struct Site {
    address: SocketAddr,
    gate: Gate,
    questions: Questions,
    _stop: tokio_util::sync::DropGuard,
}

impl Setup {
    fn new(upstream: SocketAddr) -> Self {
        let bounds = Bounds::default();
        Self { upstream, bad_signatures_per_minute: 3, bounds, write_pause: None, per_peer: None }
    }

    /// `/paid/*` costs something, everything else is free.
    async fn open(self) -> Site {
        let route = |path: &str, price| Route::new(PathPattern::parse(path).unwrap(), price);
        let routes = vec![route("/*", Price::Free), route("/paid/*", Price::Fixed(Amount::new(PRICE)))];
        let (desk, questions) = Desk::new();
        let limits = Limits { bad_signatures_per_minute: self.bad_signatures_per_minute, ..Limits::default() };
        let policy = Policy::new(terms(), "https://api.example.com", routes).unwrap();
        let gate = Gate::new(policy, desk).with_limits(limits);
        let upstream = Upstream::new(&UpstreamSettings {
            connect_timeout: PATIENCE,
            response_timeout: PATIENCE,
            ..UpstreamSettings::of(format!("http://{}", self.upstream).parse().unwrap())
        })
        .unwrap();
        // What is counted is counted over all cores.
        let cores = NonZeroUsize::new(2).unwrap();
        let mut listener = Listener::bind_cores("127.0.0.1:0".parse().unwrap(), cores).await.unwrap();
        if let Some(limit) = self.write_pause {
            listener = listener.write_pause(limit);
        }
        if let Some(limit) = self.per_peer {
            listener = listener.connections_per_peer(limit);
        }
        let address = listener.address().unwrap();
        let stop = CancellationToken::new();
        let stack = peaje::proxy::stack(&gate, upstream, Cors::Off, self.bounds);
        tokio::spawn(listener.serve(stack, stop.clone(), PATIENCE, || ()));
        Site { address, gate, questions, _stop: stop.drop_guard() }
    }
}

impl Site {
    /// The `n`th wallet, with a channel that has a deposit.
    fn payer(&self, n: u8) -> Payer {
        let payer = Payer::new(n, &terms(), PRICE);
        let view = View { block: 1, balance: Amount::new(1_000_000), ..View::default() };
        self.gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
        payer
    }

    fn charged(&self, payer: &Payer) -> u128 {
        self.gate.accounts().statement(&payer.id()).unwrap().charged.units()
    }

    /// The header of the payer's next request.
    fn next(&self, payer: &Payer) -> String {
        payer.voucher(self.charged(payer) + PRICE).header()
    }

    async fn client(&self, from: u8) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, from), 0).into()).unwrap();
        let stream = soon(socket.connect(self.address)).await.unwrap();
        Client { stream, buffer: Vec::new() }
    }

    /// A paid request on a connection of its own.
    async fn pay(&self, from: u8, payment: &str) -> (u16, String) {
        self.client(from).await.ask(&paid(payment)).await.told()
    }

    /// Uses up what the peer has, with vouchers of a channel nobody knows.
    async fn exhaust(&self, from: u8) {
        let stranger = Payer::new(99, &terms(), PRICE);
        for _ in 0..3 {
            assert_told(&self.pay(from, &forged(&stranger, PRICE)).await, (402, FORGED));
        }
        assert_told(&self.pay(from, &forged(&stranger, PRICE)).await, LIMITED);
    }
}

/// A voucher of this channel that somebody else signed.
fn forged(victim: &Payer, max: u128) -> String {
    let forger = Payer::new(77, &terms(), PRICE);
    let voucher = Voucher { channel: victim.id(), max_claimable: Amount::new(max) };
    let signed = voucher.sign(&victim.settlement(), &forger.key);
    victim.voucher(max).set("/payload/voucher", serde_json::to_value(signed).unwrap()).header()
}

fn paid(payment: &str) -> String {
    format!("GET /paid/x HTTP/1.1\r\nhost: h\r\npayment-signature: {payment}\r\n\r\n")
}

fn free() -> String {
    "GET /x HTTP/1.1\r\nhost: h\r\n\r\n".to_owned()
}

#[track_caller]
fn assert_told(told: &(u16, String), expected: (u16, &str)) {
    assert_eq!((told.0, told.1.as_str()), expected);
}

// ---- a client that sees the bytes

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let of = |line: &&str| line.split_once(':').is_some_and(|(key, _)| key.eq_ignore_ascii_case(name));
        self.head.lines().find(of).map(|line| line.split_once(':').unwrap().1.trim())
    }

    /// Status and error; no error where it was served.
    fn told(&self) -> (u16, String) {
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        (self.status, json["error"].as_str().unwrap_or_default().to_owned())
    }
}

impl Client {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    async fn ask(&mut self, request: &str) -> Answer {
        self.send(request).await;
        self.answer().await.expect("an answer that is whole")
    }

    /// Asks again for as long as there is no room. What it was told in the end, and how long it waited for that.
    async fn ask_until_room(&mut self, request: &str) -> ((u16, String), Duration) {
        loop {
            let asked = Instant::now();
            let told = self.ask(request).await.told();
            if told.0 != OVERLOADED.0 {
                return (told, asked.elapsed());
            }
        }
    }

    /// False at the end of the stream. A reset is an end, too.
    async fn more(&mut self) -> bool {
        let mut chunk = vec![0; 64 * 1024];
        match soon(self.stream.read(&mut chunk)).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                true
            }
        }
    }

    async fn take(&mut self, marker: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(marker.len()).position(|window| window == marker) {
                return Some(self.buffer.drain(..at + marker.len()).collect());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// `None` if the connection ended before the answer did.
    async fn answer(&mut self) -> Option<Answer> {
        let head = String::from_utf8(self.take(b"\r\n\r\n").await?).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new() };
        let length: usize = answer.header("content-length").map_or(0, |text| text.parse().unwrap());
        while self.buffer.len() < length {
            if !self.more().await {
                return None;
            }
        }
        answer.body = self.buffer.drain(..length).collect();
        Some(answer)
    }

    async fn ends(&mut self) -> bool {
        while self.more().await {}
        true
    }
}

// ---- upstreams

/// An upstream that does with each connection what a test says.
async fn script<F>(talk: impl Fn(Client) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(talk(Client { stream, buffer: Vec::new() }));
        }
    });
    address
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

async fn plain() -> SocketAddr {
    script(|mut peer| async move {
        while peer.take(b"\r\n\r\n").await.is_some() {
            let _ = peer.stream.write_all(OK).await;
        }
    })
    .await
}

/// An upstream that answers one request for each permit.
struct Gated {
    address: SocketAddr,
    may: Arc<Semaphore>,
    arrived: mpsc::UnboundedReceiver<()>,
}

async fn gated() -> Gated {
    let may = Arc::new(Semaphore::new(0));
    let (sender, arrived) = mpsc::unbounded_channel();
    let gate = Arc::clone(&may);
    let address = script(move |mut peer| {
        let (gate, sender) = (Arc::clone(&gate), sender.clone());
        async move {
            while peer.take(b"\r\n\r\n").await.is_some() {
                let _ = sender.send(());
                gate.acquire().await.unwrap().forget();
                let _ = peer.stream.write_all(OK).await;
            }
        }
    })
    .await;
    Gated { address, may, arrived }
}

impl Gated {
    async fn arrive(&mut self, count: usize) {
        for _ in 0..count {
            soon(self.arrived.recv()).await.unwrap();
        }
    }
}

// ---- vouchers that come to nothing

#[tokio::test]
async fn a_peer_that_forges_is_refused_early_and_others_are_not() {
    let site = Setup::new(plain().await).open().await;
    let (payer, stranger) = (site.payer(1), Payer::new(99, &terms(), PRICE));
    let mut forger = site.client(HERE).await;
    for _ in 0..3 {
        assert_told(&forger.ask(&paid(&forged(&stranger, PRICE))).await.told(), (402, FORGED));
    }
    let refused = forger.ask(&paid(&forged(&stranger, PRICE))).await;
    assert_told(&refused.told(), LIMITED);
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert!(refused.header("payment-required").is_none(), "a quote would ask for the next one at once");
    // Its connection, and what costs no signature, are as they were.
    assert_eq!(forger.ask(&free()).await.status, 200);
    assert_eq!(forger.ask("GET /paid/x HTTP/1.1\r\nhost: h\r\n\r\n").await.status, 402);
    // A good voucher is not looked at either, until it comes from elsewhere.
    let good = site.next(&payer);
    assert_told(&site.pay(HERE, &good).await, LIMITED);
    assert_told(&site.pay(ELSEWHERE, &good).await, SERVED);
    assert_eq!(site.charged(&payer), PRICE);
}

#[tokio::test]
async fn a_channel_that_paid_from_there_lately_goes_on_beside_a_forger() {
    let site = Setup::new(plain().await).open().await;
    let (payer, other) = (site.payer(1), site.payer(2));
    assert_told(&site.pay(HERE, &site.next(&payer)).await, SERVED);
    assert_told(&site.pay(ELSEWHERE, &site.next(&other)).await, SERVED);
    site.exhaust(HERE).await;
    for _ in 0..5 {
        assert_told(&site.pay(HERE, &site.next(&payer)).await, SERVED);
    }
    // A client that lost count is corrected, and goes on.
    assert_told(&site.pay(HERE, &payer.voucher(PRICE).header()).await, (402, STEP));
    assert_told(&site.pay(HERE, &site.next(&payer)).await, SERVED);
    assert_told(&site.pay(HERE, &site.next(&other)).await, LIMITED);
    assert_told(&site.pay(ELSEWHERE, &site.next(&other)).await, SERVED);
    // It has moved, and its new address does not know the forger.
    assert_told(&site.pay(ELSEWHERE, &site.next(&payer)).await, SERVED);
    assert_told(&site.pay(HERE, &site.next(&payer)).await, LIMITED);
}

#[tokio::test]
async fn vouchers_forged_elsewhere_do_not_harm_the_channel_they_name() {
    let site = Setup { bad_signatures_per_minute: 30, ..Setup::new(plain().await) }.open().await;
    let payer = site.payer(1);
    assert_told(&site.pay(HERE, &site.next(&payer)).await, SERVED);
    for _ in 0..30 {
        assert_told(&site.pay(ELSEWHERE, &forged(&payer, 2 * PRICE)).await, (402, FORGED));
    }
    assert_told(&site.pay(ELSEWHERE, &forged(&payer, 2 * PRICE)).await, LIMITED);
    let stranger = Payer::new(99, &terms(), PRICE);
    for _ in 0..30 {
        assert_told(&site.pay(HERE, &forged(&stranger, PRICE)).await, (402, FORGED));
    }
    assert_told(&site.pay(HERE, &forged(&stranger, PRICE)).await, LIMITED);
    assert_told(&site.pay(HERE, &site.next(&payer)).await, SERVED);
}

#[tokio::test]
async fn a_forger_beside_the_payer_costs_no_more_than_a_few_signatures() {
    let site = Setup::new(plain().await).open().await;
    let payer = site.payer(1);
    assert_told(&site.pay(HERE, &site.next(&payer)).await, SERVED);
    // Out of step, as somebody is who does not know what was charged: three use up the peer's minute, eight the channel's.
    for _ in 0..8 {
        assert_told(&site.pay(HERE, &forged(&payer, 50 * PRICE)).await, (402, FORGED));
    }
    assert_told(&site.pay(HERE, &forged(&payer, 50 * PRICE)).await, LIMITED);
    assert_told(&site.pay(HERE, &payer.voucher(50 * PRICE).header()).await, LIMITED);
    for _ in 0..3 {
        assert_told(&site.pay(HERE, &site.next(&payer)).await, SERVED);
    }
    // In step, as only somebody is who does.
    for _ in 0..8 {
        assert_told(&site.pay(HERE, &forged(&payer, 5 * PRICE)).await, (402, FORGED));
    }
    assert_told(&site.pay(HERE, &forged(&payer, 5 * PRICE)).await, LIMITED);
    assert_told(&site.pay(HERE, &site.next(&payer)).await, LIMITED);
    assert_told(&site.pay(ELSEWHERE, &site.next(&payer)).await, SERVED);
}

#[tokio::test]
async fn refused_forgeries_are_held_back_and_take_no_place_meanwhile() {
    const FORGERS: u32 = 20;
    let bounds = Bounds { max_requests: 1, ..Bounds::default() };
    let site = Setup { bounds, ..Setup::new(plain().await) }.open().await;
    site.exhaust(HERE).await;
    let forgery = paid(&forged(&Payer::new(99, &terms(), PRICE), PRICE));
    let forgers = (0..FORGERS).map(|_| {
        let (site, forgery) = (&site, &forgery);
        async move {
            let (told, took) = site.client(HERE).await.ask_until_room(forgery).await;
            assert_told(&told, LIMITED);
            assert!(took >= HELD_BACK, "{took:?}");
        }
    });
    let mut neighbour = site.client(HERE).await;
    let request = free();
    let begun = Instant::now();
    let (_, (told, _)) = tokio::join!(futures_util::future::join_all(forgers), neighbour.ask_until_room(&request));
    assert_told(&told, SERVED);
    // Kept in the place, they would have been told one after the other.
    assert!(begun.elapsed() < HELD_BACK * FORGERS / 2, "{:?}", begun.elapsed());
}

/// Answers every question with this balance, and counts them.
fn answer(mut questions: Questions, balance: u128) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Some(question) = questions.recv().await {
            count.fetch_add(1, Ordering::SeqCst);
            let Question::View { reply, .. } = question else { panic!("{question:?}") };
            let _ = reply.send(Ok(View { block: 1, balance: Amount::new(balance), ..View::default() }));
        }
    });
    asked
}

#[tokio::test]
async fn strangers_make_us_ask_a_node_only_so_often() {
    let mut site = Setup::new(plain().await).open().await;
    let asked = answer(std::mem::replace(&mut site.questions, Desk::new().1), 0);
    for n in 0..3 {
        let stranger = Payer::new(100 + n, &terms(), PRICE);
        assert_told(&site.pay(HERE, &stranger.voucher(PRICE).header()).await, (402, NOT_FOUND));
    }
    let stranger = Payer::new(110, &terms(), PRICE);
    assert_told(&site.pay(HERE, &stranger.voucher(PRICE).header()).await, LIMITED);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    assert_told(&site.pay(ELSEWHERE, &stranger.voucher(PRICE).header()).await, (402, NOT_FOUND));
}

#[tokio::test]
async fn questions_about_channels_that_are_there_are_not_held_against_anybody() {
    let mut site = Setup::new(plain().await).open().await;
    let asked = answer(std::mem::replace(&mut site.questions, Desk::new().1), 1_000_000);
    for n in 0..10 {
        let newcomer = Payer::new(100 + n, &terms(), PRICE);
        assert_told(&site.pay(HERE, &newcomer.voucher(PRICE).header()).await, SERVED);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 10);
}

#[tokio::test]
async fn questions_under_way_count_until_they_are_answered() {
    let mut site = Setup::new(plain().await).open().await;
    let mut waiting = Vec::new();
    let mut replies = Vec::new();
    for n in 0..3 {
        let mut client = site.client(HERE).await;
        client.send(paid(&Payer::new(100 + n, &terms(), PRICE).voucher(PRICE).header())).await;
        waiting.push(client);
        let Some(Question::View { reply, .. }) = soon(site.questions.recv()).await else { panic!("a question") };
        replies.push(reply);
    }
    let fourth = Payer::new(104, &terms(), PRICE).voucher(PRICE).header();
    assert_told(&site.pay(HERE, &fourth).await, LIMITED);
    for (reply, client) in replies.into_iter().zip(&mut waiting) {
        let view = View { block: 1, balance: Amount::new(1_000_000), ..View::default() };
        reply.send(Ok(view)).unwrap();
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    answer(std::mem::replace(&mut site.questions, Desk::new().1), 1_000_000);
    assert_told(&site.pay(HERE, &fourth).await, SERVED);
}

#[tokio::test]
async fn a_channel_that_has_spent_all_does_not_make_us_ask_for_each_request() {
    let mut site = Setup::new(plain().await).open().await;
    let payer = Payer::new(1, &terms(), PRICE);
    let view = View { block: 1, balance: Amount::new(PRICE), ..View::default() };
    site.gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
    let asked = answer(std::mem::replace(&mut site.questions, Desk::new().1), PRICE);
    assert_told(&site.pay(HERE, &site.next(&payer)).await, SERVED);
    for expected in [1, 2, 3, 3, 3] {
        assert_told(&site.pay(HERE, &site.next(&payer)).await, (402, STEP));
        assert_eq!(asked.load(Ordering::SeqCst), expected);
    }
    assert_told(&site.pay(ELSEWHERE, &site.next(&payer)).await, (402, STEP));
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

// ---- a crowd

#[tokio::test]
async fn what_there_is_no_room_for_is_told_so_and_the_same_voucher_is_good_afterwards() {
    let mut upstream = gated().await;
    let bounds = Bounds { max_requests: 4, ..Bounds::default() };
    let site = Setup { bounds, ..Setup::new(upstream.address) }.open().await;
    let (first, second) = (site.payer(1), site.payer(2));
    let mut served = Vec::new();
    for _ in 0..3 {
        let mut client = site.client(HERE).await;
        client.send(free()).await;
        upstream.arrive(1).await;
        served.push(client);
    }
    // Three quarters are taken: what pays nothing waits outside, even if it brings something along that looks like a
    // payment.
    let mut outside = site.client(HERE).await;
    let pretended = "GET /x HTTP/1.1\r\nhost: h\r\npayment-signature: e30=\r\n\r\n";
    let upload = format!("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 100000\r\n\r\n{}", "a".repeat(100_000));
    for request in [free().as_str(), pretended, &upload, "GET /paid/x HTTP/1.1\r\nhost: h\r\n\r\n"] {
        let refused = outside.ask(request).await;
        assert_told(&refused.told(), OVERLOADED);
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert_eq!(refused.header("content-type"), Some("application/json"));
        assert!(refused.header("payment-required").is_none());
    }
    // What pays finds room, until there is none at all.
    let mut paying = site.client(HERE).await;
    paying.send(paid(&site.next(&first))).await;
    upstream.arrive(1).await;
    let payment = site.next(&second);
    assert_told(&outside.ask(&paid(&payment)).await.told(), OVERLOADED);
    // Who leaves makes room, and who was refused was not charged.
    drop(served);
    upstream.may.add_permits(1_000);
    assert_eq!(paying.answer().await.unwrap().status, 200);
    let mut told = outside.ask(&paid(&payment)).await.told();
    while told.0 == 503 {
        told = outside.ask(&paid(&payment)).await.told();
    }
    assert_told(&told, SERVED);
    assert_eq!((site.charged(&first), site.charged(&second)), (PRICE, PRICE));
}

#[tokio::test]
async fn head_is_told_that_there_is_no_room_without_a_body() {
    let mut upstream = gated().await;
    let bounds = Bounds { max_requests: 1, ..Bounds::default() };
    let site = Setup { bounds, ..Setup::new(upstream.address) }.open().await;
    let mut served = site.client(HERE).await;
    served.send(free()).await;
    upstream.arrive(1).await;
    let io = TokioIo::new(site.client(HERE).await.stream);
    let (mut client, connection) =
        soon(http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), io)).await.unwrap();
    tokio::spawn(connection);
    let answer = soon(client.send_request(Request::head("http://h/x").body(Empty::new()).unwrap())).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    assert!(soon(answer.into_body().collect()).await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn an_answer_whose_head_has_left_takes_no_place_any_more() {
    let endless = script(|mut peer| async move {
        peer.take(b"\r\n\r\n").await.unwrap();
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await;
        std::future::pending().await
    })
    .await;
    let bounds = Bounds { max_requests: 1, ..Bounds::default() };
    let site = Setup { bounds, ..Setup::new(endless) }.open().await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut client = site.client(HERE).await;
        client.send(free()).await;
        assert!(client.take(b"\r\n\r\n").await.unwrap().starts_with(b"HTTP/1.1 200"));
        streams.push(client);
    }
}

#[tokio::test]
async fn one_peer_does_not_take_all_connections() {
    let site = Setup { per_peer: Some(2), ..Setup::new(plain().await) }.open().await;
    let (mut first, mut second) = (site.client(HERE).await, site.client(HERE).await);
    for client in [&mut first, &mut second] {
        assert_eq!(client.ask(&free()).await.status, 200);
    }
    assert!(site.client(HERE).await.ends().await, "one too many");
    assert_eq!(site.client(ELSEWHERE).await.ask(&free()).await.status, 200);
    assert_eq!(second.ask(&free()).await.status, 200, "those it has stay");
    drop(first);
    // Its end is noticed in a moment.
    loop {
        let mut third = site.client(HERE).await;
        if third.stream.write_all(free().as_bytes()).await.is_ok() && third.answer().await.is_some() {
            break;
        }
    }
}

// ---- slow clients

#[tokio::test]
async fn a_body_that_pauses_is_cut_off_and_half_a_request_costs_nothing() {
    let seen = Arc::new(Mutex::new(None));
    let (told, mut ended) = mpsc::unbounded_channel();
    let log = Arc::clone(&seen);
    let upstream = script(move |mut peer| {
        let (log, told) = (Arc::clone(&log), told.clone());
        async move {
            while peer.more().await {}
            *log.lock().unwrap() = Some(peer.buffer);
            let _ = told.send(());
        }
    })
    .await;
    let bounds = Bounds { body_time: SHORT, ..Bounds::default() };
    let site = Setup { bounds, ..Setup::new(upstream) }.open().await;
    let payer = site.payer(1);
    let mut client = site.client(HERE).await;
    let payment = site.next(&payer);
    client
        .send(format!(
            "POST /paid/x HTTP/1.1\r\nhost: h\r\npayment-signature: {payment}\r\ncontent-length: 9\r\n\r\nhalf"
        ))
        .await;
    let answer = client.answer().await.unwrap();
    assert_told(&answer.told(), (408, "body_timeout"));
    assert!(answer.header("payment-response").is_none());
    assert!(client.ends().await, "what would come next is the rest of a body");
    soon(ended.recv()).await.unwrap();
    assert!(seen.lock().unwrap().as_ref().unwrap().ends_with(b"half"));
    assert_eq!(site.charged(&payer), 0);
}

#[tokio::test]
async fn a_body_may_take_as_long_as_it_likes_if_it_does_not_pause() {
    let upstream = script(|mut peer| async move {
        peer.take(b"end").await.unwrap();
        let _ = peer.stream.write_all(OK).await;
    })
    .await;
    let bounds = Bounds { body_time: Duration::from_secs(3), ..Bounds::default() };
    let site = Setup { bounds, ..Setup::new(upstream) }.open().await;
    let mut client = site.client(HERE).await;
    client.send("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 11\r\n\r\n").await;
    // Longer in all than any pause may be.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.send("x").await;
    }
    client.send("end").await;
    assert_eq!(client.answer().await.unwrap().status, 200);
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_let_go_and_has_paid() {
    let (told, mut broken) = mpsc::unbounded_channel();
    let upstream = script(move |mut peer| {
        let told = told.clone();
        async move {
            peer.take(b"\r\n\r\n").await.unwrap();
            peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x1_0000));
            while peer.stream.write_all(chunk.as_bytes()).await.is_ok() {}
            let _ = told.send(());
        }
    })
    .await;
    let site = Setup { write_pause: Some(SHORT), ..Setup::new(upstream) }.open().await;
    let payer = site.payer(1);
    let mut client = site.client(HERE).await;
    client.send(paid(&site.next(&payer))).await;
    // The upstream's connection is free again, although the client's is open at its end.
    soon(broken.recv()).await.unwrap();
    assert_eq!(site.charged(&payer), PRICE);
    assert!(client.ends().await);
}

#[tokio::test]
async fn a_stream_whose_client_takes_nothing_lets_the_upstream_go_and_its_neighbours_go_on() {
    let answer = a_stream_that_stands_still(&http2::Builder::new(TokioExecutor::new())).await;
    // It has not come to its end, and does not look so.
    assert!(soon(answer.into_body().collect()).await.is_err());
}

#[tokio::test]
async fn a_stream_whose_window_never_opens_lets_the_upstream_go_as_well() {
    let mut shut = http2::Builder::new(TokioExecutor::new());
    shut.initial_stream_window_size(0);
    a_stream_that_stands_still(&shut).await;
}

/// An answer without an end of which nothing is taken: it costs, the upstream is let go, and the connection is well.
async fn a_stream_that_stands_still(http: &http2::Builder<TokioExecutor>) -> http::Response<hyper::body::Incoming> {
    let (told, mut broken) = mpsc::unbounded_channel();
    let upstream = script(move |mut peer| {
        let told = told.clone();
        async move {
            let head = peer.take(b"\r\n\r\n").await.unwrap();
            if head.starts_with(b"GET /free") {
                peer.send(OK).await;
                return;
            }
            peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x1_0000));
            while peer.stream.write_all(chunk.as_bytes()).await.is_ok() {}
            let _ = told.send(());
        }
    })
    .await;
    let bounds = Bounds { answer_time: SHORT, ..Bounds::default() };
    let site = Setup { bounds, ..Setup::new(upstream) }.open().await;
    let payer = site.payer(1);
    let io = TokioIo::new(site.client(HERE).await.stream);
    let (mut client, connection) = soon(http.handshake::<_, Empty<Bytes>>(io)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://h/paid/x").header("payment-signature", site.next(&payer));
    let answer = soon(client.send_request(request.body(Empty::new()).unwrap())).await.unwrap();
    assert_eq!(answer.status(), 200);
    soon(broken.recv()).await.unwrap();
    assert_eq!(site.charged(&payer), PRICE);
    let neighbour = Request::get("http://h/free").body(Empty::new()).unwrap();
    assert_eq!(soon(client.send_request(neighbour)).await.unwrap().status(), 200);
    answer
}

#[tokio::test]
async fn a_stream_whose_upstream_is_silent_is_not_let_go() {
    let mut upstream = gated_body().await;
    let bounds = Bounds { answer_time: SHORT / 4, ..Bounds::default() };
    let site = Setup { bounds, ..Setup::new(upstream.address) }.open().await;
    let io = TokioIo::new(site.client(HERE).await.stream);
    let (mut client, connection) =
        soon(http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), io)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://h/x").body(Empty::new()).unwrap();
    let mut body = soon(client.send_request(request)).await.unwrap().into_body();
    upstream.arrive(1).await;
    for _ in 0..3 {
        upstream.may.add_permits(1);
        assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "tick");
        tokio::time::sleep(SHORT).await;
    }
}

/// An upstream that sends a piece of its answer for each permit.
async fn gated_body() -> Gated {
    let may = Arc::new(Semaphore::new(0));
    let (sender, arrived) = mpsc::unbounded_channel();
    let gate = Arc::clone(&may);
    let address = script(move |mut peer| {
        let (gate, sender) = (Arc::clone(&gate), sender.clone());
        async move {
            peer.take(b"\r\n\r\n").await.unwrap();
            peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            let _ = sender.send(());
            loop {
                gate.acquire().await.unwrap().forget();
                peer.send("4\r\ntick\r\n").await;
            }
        }
    })
    .await;
    Gated { address, may, arrived }
}
