//! The proxy as an HTTP intermediary: real sockets on both sides, bytes written and read as they are on the wire.
//!
//! What a payment is worth is tested elsewhere; here the question is whether a request and its answer arrive whole,
//! unchanged and at once, and whether any shape of request reaches a paid route without paying.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    reason = "a test that cannot go on should say so at once"
)]

#[path = "support/nobody.rs"]
mod nobody;
#[path = "support/payer.rs"]
mod payer;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use peaje::config::Reloads;
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Policy, Price, Route};
use peaje::gate::{DepositLimits, Desk, Gate, Limits};
use peaje::ledger::View;
use peaje::protocol::{Amount, ChannelId, LocalKey};
use peaje::proxy::{Bounds, Cors, Listener, Upstream, UpstreamSettings};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use nobody::nobody;
use payer::usual_terms as terms;

const PRICE: Amount = Amount::new(2_000);

/// How long any one step may take before the test fails: less than what the proxy gives a client that asks for nothing.
const PATIENCE: Duration = Duration::from_secs(10);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this should not take so long")
}

// ---- the proxy

/// A proxy with these routes: `/paid/*` and `/private/report` cost something, everything else is free.
struct Site {
    address: SocketAddr,
    gate: Gate,
    stop: CancellationToken,
    task: JoinHandle<()>,
    cut_off: Arc<AtomicBool>,
}

struct Setup {
    upstream: String,
    listen: &'static str,
    public_url: &'static str,
    cors: Cors,
    response_timeout: Duration,
    drain: Duration,
    header_time: Option<Duration>,
    max_connections: Option<usize>,
    limits: Limits,
    cores: usize,
}

impl Setup {
    fn new(upstream: SocketAddr) -> Self {
        Self {
            upstream: format!("http://{upstream}"),
            listen: "127.0.0.1:0",
            public_url: "https://api.example.com",
            cors: Cors::Off,
            response_timeout: PATIENCE,
            drain: PATIENCE,
            header_time: None,
            max_connections: None,
            limits: Limits::default(),
            cores: 1,
        }
    }

    async fn open(self) -> Site {
        let route = |path: &str, price| Route::new(PathPattern::parse(path).unwrap(), price);
        let routes = vec![
            route("/*", Price::Free),
            route("/paid/*", Price::Fixed(PRICE)),
            Route { methods: vec![Method::GET], ..route("/private/report", Price::Fixed(PRICE)) },
        ];
        let gate = Gate::new(Policy::new(terms(), self.public_url, routes).unwrap(), Desk::closed());
        let gate = gate.with_limits(self.limits);
        let upstream = Upstream::new(&UpstreamSettings {
            connect_timeout: Duration::from_secs(2),
            response_timeout: self.response_timeout,
            ..UpstreamSettings::of(self.upstream.parse().unwrap())
        })
        .unwrap();
        let cores = NonZeroUsize::new(self.cores).unwrap();
        let mut listener = Listener::bind_cores(self.listen.parse().unwrap(), cores).await.unwrap();
        if let Some(limit) = self.header_time {
            listener = listener.header_time(limit);
        }
        if let Some(limit) = self.max_connections {
            listener = listener.max_connections(limit);
        }
        let address = listener.address().unwrap();
        let stop = CancellationToken::new();
        let cut_off = Arc::new(AtomicBool::new(false));
        let (accounts, flag) = (gate.accounts().clone(), Arc::clone(&cut_off));
        let at_deadline = move || {
            accounts.abandon();
            flag.store(true, Ordering::SeqCst);
        };
        let stack = peaje::proxy::stack(&gate, upstream, self.cors, Bounds::default());
        let task = tokio::spawn(listener.serve(stack, stop.clone(), self.drain, at_deadline));
        Site { address, gate, stop, task, cut_off }
    }
}

async fn site(upstream: SocketAddr) -> Site {
    Setup::new(upstream).open().await
}

impl Site {
    async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Sends one request on a connection of its own.
    async fn ask(&self, request: &str) -> Answer {
        self.client().await.ask(request).await
    }
}

/// Somebody with a channel at a site.
struct Payer {
    wallet: payer::Payer,
    gate: Gate,
}

impl Payer {
    fn of(site: &Site) -> Self {
        let wallet = payer::Payer::new(7, &terms(), PRICE.units());
        let view = View { block: 1, balance: Amount::new(1_000_000), ..View::default() };
        site.gate.accounts().observe(wallet.id(), &wallet.config, view).unwrap();
        Self { wallet, gate: site.gate.clone() }
    }

    fn channel(&self) -> ChannelId {
        self.wallet.id()
    }

    fn charged(&self) -> u128 {
        self.gate.accounts().statement(&self.channel()).unwrap().charged.units()
    }

    /// The payment header of the next request.
    fn header(&self) -> String {
        self.wallet.voucher(self.charged() + PRICE.units()).header()
    }
}

/// Whoever is at the other end of the connection has a budget. A gate that is told of no peer knows only that of all.
#[tokio::test]
async fn deposits_are_counted_for_the_connections_peer() {
    let upstream = SocketAddr::from(([127, 0, 0, 1], 9));
    for (per_peer_per_hour, expected) in [
        (0, (429, "deposit_rate_limited")),
        // Nobody is at the desk, so it gets no further than there.
        (1, (503, "invalid_batch_settlement_evm_rpc_read_failed")),
    ] {
        let deposits = DepositLimits { per_peer_per_hour, ..DepositLimits::default() };
        let limits = Limits { deposits, ..Limits::default() };
        let site = Setup { limits, ..Setup::new(upstream) }.open().await;
        let payer = Payer::of(&site);
        let payment = payer.wallet.deposit(PRICE.units(), PRICE.units()).header();
        let head = "GET /paid/x HTTP/1.1\r\nhost: a\r\n";
        let answer = site.ask(&format!("{head}payment-signature: {payment}\r\nconnection: close\r\n\r\n")).await;
        assert_eq!((answer.status, answer.json()["error"].as_str().unwrap_or_default()), expected);
    }
}

// ---- a client that sees the bytes

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    /// The whole head, status line included.
    head: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn all(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let stream = soon(TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    async fn ask(&mut self, request: &str) -> Answer {
        self.send(request).await;
        self.answer(request.starts_with("HEAD ")).await
    }

    /// Reads on; false at the end of the stream. A reset is an end, too.
    async fn more(&mut self) -> bool {
        let mut chunk = vec![0; 16 * 1024];
        match soon(self.stream.read(&mut chunk)).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                true
            }
        }
    }

    async fn until(&mut self, marker: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(marker.len()).position(|window| window == marker) {
                return Some(self.buffer.drain(..at + marker.len()).collect());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.more().await {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    async fn head(&mut self) -> Option<Answer> {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await?).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(':').unwrap();
            let name: http::HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
        }
        Some(Answer { status, head, headers, body: Vec::new() })
    }

    /// One chunk of a chunked body; empty at its end.
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = String::from_utf8(self.until(b"\r\n").await?).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            return Some(Vec::new());
        }
        let mut data = self.exactly(size + 2).await?;
        data.truncate(size);
        Some(data)
    }

    async fn answer(&mut self, to_head: bool) -> Answer {
        self.try_answer(to_head).await.expect("an answer that is whole")
    }

    /// `None` if the connection ended before the answer did.
    async fn try_answer(&mut self, to_head: bool) -> Option<Answer> {
        let mut answer = self.head().await?;
        if to_head || answer.status < 200 || [204, 304].contains(&answer.status) {
            return Some(answer);
        }
        if let Some(length) = answer.header("content-length").map(|text| text.parse().unwrap()) {
            answer.body = self.exactly(length).await?;
        } else if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let chunk = self.chunk().await?;
                if chunk.is_empty() {
                    break;
                }
                answer.body.extend(chunk);
            }
            // Trailers, if any, and the empty line.
            let mut line = self.until(b"\r\n").await?;
            while line != b"\r\n" {
                let text = String::from_utf8(line).unwrap();
                let (name, value) = text.trim().split_once(':').unwrap();
                let name: http::HeaderName = format!("trailer-{name}").parse().unwrap();
                answer.headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
                line = self.until(b"\r\n").await?;
            }
        } else {
            while self.more().await {}
            answer.body = std::mem::take(&mut self.buffer);
        }
        Some(answer)
    }

    /// Whether the other side ends the connection without another byte.
    async fn ends(&mut self) -> bool {
        self.buffer.is_empty() && !self.more().await
    }
}

// ---- upstreams

/// A request as the upstream saw it.
#[derive(Debug, Clone)]
struct Seen {
    head: String,
    body: Vec<u8>,
}

impl Seen {
    fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    fn all(&self, name: &str) -> Vec<&str> {
        let of = |line: &'_ str| line.split_once(':').is_some_and(|(key, _)| key.eq_ignore_ascii_case(name));
        self.head.lines().skip(1).filter(|line| of(line)).map(|line| line.split_once(':').unwrap().1.trim()).collect()
    }
}

/// An upstream that reads whole requests and answers with the bytes a test gives it.
struct Api {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
}

impl Api {
    fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn only(&self) -> Seen {
        let seen = self.requests();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen[0].clone()
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok";

async fn api(answer: impl Fn(&Seen) -> String + Send + Sync + 'static) -> Api {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let connections = Arc::new(AtomicUsize::new(0));
    let (log, count, answer) = (Arc::clone(&seen), Arc::clone(&connections), Arc::new(answer));
    let address = script(move |stream| {
        count.fetch_add(1, Ordering::SeqCst);
        let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
        async move {
            let mut peer = Client { stream, buffer: Vec::new() };
            while let Some(request) = receive(&mut peer).await {
                let bytes = answer(&request);
                log.lock().unwrap().push(request);
                if peer.stream.write_all(bytes.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    Api { address, seen, connections }
}

async fn plain_api() -> Api {
    api(|_| OK.to_owned()).await
}

/// Reads one whole request; `None` if the connection ends first.
async fn receive(peer: &mut Client) -> Option<Seen> {
    let head = String::from_utf8(peer.until(b"\r\n\r\n").await?).unwrap();
    let mut request = Seen { head, body: Vec::new() };
    if let Some(length) = request.all("content-length").first().map(|text| text.parse().unwrap()) {
        request.body = peer.exactly(length).await?;
    } else if request.all("transfer-encoding") == ["chunked"] {
        loop {
            let chunk = peer.chunk().await?;
            if chunk.is_empty() {
                break;
            }
            request.body.extend(chunk);
        }
        let mut line = peer.until(b"\r\n").await?;
        while line != b"\r\n" {
            request.head.push_str(&format!("trailer-{}", String::from_utf8(line).unwrap()));
            line = peer.until(b"\r\n").await?;
        }
    }
    Some(request)
}

/// An upstream that does with each connection what a test says.
async fn script<F>(talk: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            tokio::spawn(talk(stream));
        }
    });
    address
}

/// An upstream that answers every request with the body it came with, as it comes.
async fn echo() -> SocketAddr {
    script(|stream| async move {
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
            Ok::<_, Infallible>(Response::new(request.into_body()))
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: api.example.com\r\n\r\n")
}

fn with(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: api.example.com\r\n{headers}\r\n\r\n")
}

// ---- what arrives at the upstream

#[tokio::test]
async fn path_query_and_escapes_arrive_as_they_were_sent() {
    let api = plain_api().await;
    let site = site(api.address).await;
    let targets = [
        "/a/b?x=1&y=%2F..%2f&z=a+b&empty=&q=?/",
        "/caf%C3%A9/%7euser/%41",
        "/trailing/",
        "/v1:batch@now/(a,b)!*'$",
        "/?",
        "/a?url=http://other.example/../x//y&a;b|c",
    ];
    let mut client = site.client().await;
    for target in targets {
        assert_eq!(client.ask(&get(target)).await.status, 200, "{target}");
    }
    let lines: Vec<_> = api.requests().iter().map(|seen| seen.line().to_owned()).collect();
    let expected: Vec<_> = targets.iter().map(|target| format!("GET {target} HTTP/1.1")).collect();
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn another_price_list_holds_from_the_next_request_on() {
    let site = site(plain_api().await.address).await;
    let request = "GET /paid/x HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(site.ask(request).await.json()["accepts"][0]["amount"], PRICE.to_string());
    let dearer = Route::new(PathPattern::parse("/paid/*").unwrap(), Price::Fixed(Amount::new(7)));
    site.gate.set_policy(Policy::new(terms(), "https://api.example.com", vec![dearer]).unwrap());
    assert_eq!(site.ask(request).await.json()["accepts"][0]["amount"], "7");
    assert_eq!(site.ask("GET /free HTTP/1.1\r\nhost: x\r\n\r\n").await.status, 404, "the free route is gone");
}

#[tokio::test]
async fn the_base_path_goes_before_the_path() {
    let api = plain_api().await;
    let upstream = format!("http://{}/base/v2/", api.address);
    let site = Setup { upstream, ..Setup::new(api.address) }.open().await;
    site.ask(&get("/a%20b?c=d")).await;
    site.ask(&get("http://other.example?c=d")).await;
    let lines: Vec<_> = api.requests().iter().map(|seen| seen.line().to_owned()).collect();
    assert_eq!(lines, ["GET /base/v2/a%20b?c=d HTTP/1.1", "GET /base/v2/?c=d HTTP/1.1"]);
}

#[tokio::test]
async fn the_upstream_is_addressed_by_its_own_name_and_told_the_clients() {
    let api = plain_api().await;
    let site = Setup { public_url: "http://api.example.com", ..Setup::new(api.address) }.open().await;
    // RFC 9112, 3.2.2: the target's host counts, whatever the header says.
    let request = "GET http://target.example:81/x HTTP/1.1\r\nhost: header.example\r\n\r\n";
    for (request, host) in [(get("/x").as_str(), "api.example.com"), (request, "target.example:81")] {
        assert_eq!(site.ask(request).await.status, 200);
        let seen = api.requests().pop().unwrap();
        assert_eq!(seen.line(), "GET /x HTTP/1.1");
        assert_eq!(seen.all("host"), [api.address.to_string()]);
        assert_eq!(seen.all("x-forwarded-host"), [host]);
        assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(seen.all("x-forwarded-proto"), ["http"]);
    }
}

#[tokio::test]
async fn the_scheme_is_the_one_clients_use_where_tls_ends_before_us() {
    let api = plain_api().await;
    let site = Setup { public_url: "https://api.example.com", ..Setup::new(api.address) }.open().await;
    site.ask(&get("/x")).await;
    assert_eq!(api.only().all("x-forwarded-proto"), ["https"]);
}

#[tokio::test]
async fn what_a_client_claims_about_itself_or_about_payment_ends_here() {
    let api = plain_api().await;
    let site = site(api.address).await;
    let claims = [
        "x-forwarded-for: 6.6.6.6",
        "x-forwarded-host: evil.example",
        "x-forwarded-proto: gopher",
        "x-forwarded-prefix: /paid",
        "x-forwarded-port: 1",
        "forwarded: for=6.6.6.6",
        "x-real-ip: 6.6.6.6",
        "x-original-url: /paid/x",
        "x-rewrite-url: /paid/x",
        "x-http-method-override: DELETE",
        "x-peaje-payer: 0x1",
        "x-peaje-anything: 1",
        "payment-signature: e30=",
        "payment_signature: e30=",
        "x-payment: e30=",
        "payment-response: e30=",
        "settlement-overrides: {}",
        // Servers that pass headers as environment variables cannot tell these from the above.
        "x_forwarded_for: 6.6.6.6",
        "x_peaje_payer: 0x1",
        "x-peaje_payer: 0x1",
        "x_original_url: /paid/x",
        "x_http_method_override: DELETE",
    ];
    let request = with("/x", &format!("x-kept: 1\r\nkept_too: 1\r\n{}", claims.join("\r\n")));
    assert_eq!(site.ask(&request).await.status, 200);
    let seen = api.only();
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
    let names: Vec<_> = seen.head.lines().skip(1).filter_map(|line| Some(line.split_once(':')?.0)).collect();
    let expected =
        ["x-kept", "kept_too", "x-request-id", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "host"];
    let mut sorted = (names.clone(), expected.to_vec());
    sorted.0.sort_unstable();
    sorted.1.sort_unstable();
    assert_eq!(sorted.0, sorted.1);
}

#[tokio::test]
async fn hop_by_hop_headers_end_here_in_both_directions() {
    let api = api(|_| {
        "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-inner\r\nkeep-alive: timeout=5\r\nx-inner: 1\r\nx-outer: 1\r\n\
         upgrade: h2c\r\nproxy-connection: close\r\ncontent-length: 2\r\n\r\nok"
            .to_owned()
    })
    .await;
    let site = site(api.address).await;
    let headers = "connection: keep-alive, X-Named, upgrade\r\nkeep-alive: timeout=9\r\nupgrade: websocket\r\nte: \
                   trailers\r\nproxy-connection: keep-alive\r\nx-named: 1\r\nx-kept: 1";
    let answer = site.ask(&with("/x", headers)).await;
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    for name in ["connection", "keep-alive", "x-inner", "upgrade", "proxy-connection"] {
        assert_eq!(answer.header(name), None, "{}", answer.head);
    }
    assert_eq!(answer.header("x-outer"), Some("1"));
    let seen = api.only();
    for name in ["connection", "keep-alive", "upgrade", "te", "proxy-connection", "x-named"] {
        assert!(seen.all(name).is_empty(), "{}", seen.head);
    }
    assert_eq!(seen.all("x-kept"), ["1"]);
}

#[tokio::test]
async fn a_client_cannot_name_our_headers_as_hop_by_hop() {
    let api = plain_api().await;
    let site = site(api.address).await;
    let payer = Payer::of(&site);
    let names = "x-peaje-payer, x-peaje-channel, x-peaje-charged, x-forwarded-for, x-request-id, host, content-length";
    let request = format!(
        "POST /paid/x HTTP/1.1\r\nhost: h\r\nconnection: {names}\r\npayment-signature: {}\r\ncontent-length: \
         4\r\n\r\nbody",
        payer.header()
    );
    assert_eq!(site.ask(&request).await.status, 200);
    let seen = api.only();
    assert_eq!(seen.body, b"body");
    assert_eq!(seen.all("x-peaje-payer"), [payer.wallet.address().to_string()]);
    assert_eq!(seen.all("x-peaje-channel"), [payer.channel().to_string()]);
    assert_eq!(seen.all("x-peaje-charged"), ["2000"]);
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.all("x-request-id").len(), 1);
    assert!(seen.all("payment-signature").is_empty());
}

#[tokio::test]
async fn a_request_id_is_kept_if_it_is_one_and_made_otherwise() {
    let api = plain_api().await;
    let site = site(api.address).await;
    let (long, longest) = ("a".repeat(129), "a".repeat(128));
    for (given, kept) in
        [("abc-DEF_0.1:9", true), (longest.as_str(), true), (long.as_str(), false), ("a b", false), ("a\"b", false)]
    {
        let answer = site.ask(&with("/x", &format!("x-request-id: {given}"))).await;
        let seen = api.requests().pop().unwrap();
        assert_eq!(seen.all("x-request-id"), answer.all("x-request-id"));
        assert_eq!(answer.header("x-request-id") == Some(given), kept, "{given}");
        assert!(!answer.header("x-request-id").unwrap().is_empty());
    }
    let two = site.ask(&with("/x", "x-request-id: a\r\nx-request-id: b")).await;
    assert_eq!(two.all("x-request-id").len(), 1);
    assert_eq!(api.requests().pop().unwrap().all("x-request-id"), two.all("x-request-id"));
    let unpaid = site.ask(&with("/paid/x", "x-request-id: mine")).await;
    assert_eq!((unpaid.status, unpaid.header("x-request-id")), (402, Some("mine")));
}

// ---- bodies

#[tokio::test]
async fn bodies_arrive_byte_for_byte_whatever_their_framing() {
    let upstream = echo().await;
    let site = site(upstream).await;
    let payer = Payer::of(&site);
    let bytes: Vec<u8> = (0..300_000_u32).map(|number| (number * 7 % 251) as u8).collect();
    for path in ["/x", "/paid/x"] {
        let mut client = site.client().await;
        for chunked in [false, true] {
            let payment =
                if path == "/x" { String::new() } else { format!("payment-signature: {}\r\n", payer.header()) };
            let framing = if chunked {
                "transfer-encoding: chunked".to_owned()
            } else {
                format!("content-length: {}", bytes.len())
            };
            client.send(format!("POST {path} HTTP/1.1\r\nhost: h\r\n{payment}{framing}\r\n\r\n")).await;
            let (stream, buffer) = (&mut client.stream, &mut client.buffer);
            let (mut reads, mut writes) = stream.split();
            let sending = async {
                for piece in bytes.chunks(70_001) {
                    let framed = if chunked {
                        [format!("{:x};ext=1\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
                    } else {
                        piece.to_vec()
                    };
                    writes.write_all(&framed).await.unwrap();
                }
                if chunked {
                    writes.write_all(b"0\r\n\r\n").await.unwrap();
                }
            };
            let receiving = async {
                // The echo is read while the rest is written: neither side waits for the other to be done.
                while buffer.len() < bytes.len() {
                    let mut chunk = vec![0; 65_536];
                    let count = reads.read(&mut chunk).await.unwrap();
                    assert!(count > 0);
                    buffer.extend_from_slice(&chunk[..count]);
                }
            };
            soon(async { tokio::join!(sending, receiving) }).await;
            let answer = client.answer(false).await;
            assert_eq!(answer.status, 200, "{path} {chunked}");
            assert!(answer.body == bytes, "{path} {chunked}");
            assert_eq!(answer.header("content-length").is_some(), !chunked);
        }
    }
    assert_eq!(payer.charged(), 4_000);
}

#[tokio::test]
async fn uploads_and_downloads_flow_before_they_are_complete() {
    let upstream = echo().await;
    let site = site(upstream).await;
    let payer = Payer::of(&site);
    for (path, payment) in [("/x", String::new()), ("/paid/x", format!("payment-signature: {}\r\n", payer.header()))] {
        let mut client = site.client().await;
        client.send(format!("POST {path} HTTP/1.1\r\nhost: h\r\n{payment}transfer-encoding: chunked\r\n\r\n")).await;
        for piece in ["one", "three"] {
            client.send(format!("{:x}\r\n{piece}\r\n", piece.len())).await;
            if piece == "one" {
                assert_eq!(client.head().await.unwrap().status, 200);
            }
            assert_eq!(client.chunk().await.unwrap(), piece.as_bytes());
        }
        client.send("0\r\n\r\n").await;
        assert_eq!(client.chunk().await.unwrap(), b"");
    }
}

#[tokio::test]
async fn a_large_body_passes_without_being_kept() {
    const MIB: usize = 1 << 20;
    const COUNT: usize = 200;
    /// What the sockets between the three may hold on loopback: a few mebibytes each.
    const IN_FLIGHT: usize = 40;
    let (read, written) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (Arc::clone(&read), Arc::clone(&written));
    let upstream = script(move |stream| {
        let (read, written) = (Arc::clone(&counters.0), Arc::clone(&counters.1));
        async move {
            let mut peer = Client { stream, buffer: Vec::new() };
            peer.until(b"\r\n\r\n").await.unwrap();
            // Whatever the client can write meanwhile, somebody keeps.
            tokio::time::sleep(Duration::from_millis(300)).await;
            read.store(peer.buffer.len(), Ordering::SeqCst);
            let mut piece = vec![0; MIB];
            while read.load(Ordering::SeqCst) < COUNT * MIB {
                read.fetch_add(peer.stream.read(&mut piece).await.unwrap(), Ordering::SeqCst);
            }
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", COUNT * MIB);
            peer.stream.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..COUNT {
                peer.stream.write_all(&piece).await.unwrap();
                written.fetch_add(MIB, Ordering::SeqCst);
            }
        }
    })
    .await;
    let site = Setup { response_timeout: Duration::from_secs(60), ..Setup::new(upstream) }.open().await;
    let mut client = site.client().await;
    client.send(format!("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", COUNT * MIB)).await;
    let mut piece = vec![0; MIB];
    let mut kept = 0;
    for number in 0..COUNT {
        client.send(&piece).await;
        kept = kept.max((number + 1) * MIB - read.load(Ordering::SeqCst));
    }
    assert!(kept < IN_FLIGHT * MIB, "{} MiB of the upload were kept", kept / MIB);
    let head = client.head().await.unwrap();
    assert_eq!(head.header("content-length"), Some("209715200"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let kept = written.load(Ordering::SeqCst);
    assert!(kept < IN_FLIGHT * MIB, "{} MiB of the answer were kept", kept / MIB);
    let mut left = COUNT * MIB - client.buffer.len();
    while left > 0 {
        let count = soon(client.stream.read(&mut piece)).await.unwrap();
        assert!(count > 0);
        left -= count;
    }
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let api = api(|seen| match seen.line().split(' ').nth(1).unwrap() {
        "/204" => "HTTP/1.1 204 No Content\r\nx-mark: 1\r\n\r\n".to_owned(),
        "/304" => "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 50\r\n\r\n".to_owned(),
        _ if seen.line().starts_with("HEAD") => "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n".to_owned(),
        _ => OK.to_owned(),
    })
    .await;
    let site = site(api.address).await;
    let mut client = site.client().await;
    let head = client.ask("HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("1234")));
    let empty = client.ask(&get("/204")).await;
    assert_eq!((empty.status, empty.header("content-length"), empty.header("transfer-encoding")), (204, None, None));
    let unchanged = client.ask(&get("/304")).await;
    assert_eq!((unchanged.status, unchanged.header("etag")), (304, Some("\"a\"")));
    // The connection is still in step.
    assert_eq!(client.ask(&get("/x")).await.text(), "ok");
    let unpaid = client.ask("HEAD /paid/x HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert_eq!(unpaid.status, 402);
    // RFC 9110, 8.6: to HEAD, the length is that of the answer to GET, or not said.
    let same = client.ask(&get("/paid/x")).await;
    let length = unpaid.header("content-length");
    assert!(length.is_none() || length == same.header("content-length"), "{length:?}");
    assert_eq!(client.ask(&get("/x")).await.text(), "ok");
    assert_eq!(site.gate.accounts().len(), 0);
}

/// On HTTP/1 hyper sees to it by itself. On HTTP/2 a body in answer to HEAD breaks the stream (RFC 9113, 8.1.1).
#[tokio::test]
async fn our_own_answers_to_head_have_no_body_either() {
    let (_held, gone) = nobody();
    let site = site(gone).await;
    let mut client = h2(&site).await;
    let mut plain = site.client().await;
    for (path, expected) in [("/x", 502), ("/paid/x", 402), ("//x", 400)] {
        let request = Request::head(format!("http://h{path}")).body(Full::default()).unwrap();
        let response = soon(client.send_request(request)).await.unwrap();
        assert_eq!(response.status().as_u16(), expected, "{path}");
        let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
        assert!(body.is_empty(), "{path}: {body:?}");
        let head = plain.ask(&format!("HEAD {path} HTTP/1.1\r\nhost: h\r\n\r\n")).await;
        assert_eq!((head.status, head.header("content-length")), (expected, None), "{path}");
    }
    // What the stack says without asking the gate.
    let odd = plain.ask("HEAD /x HTTP/1.1\r\n\r\n").await;
    assert_eq!((odd.status, odd.header("content-length")), (400, None));
}

/// RFC 9112, 6.3: where both are there the length is a lie, and whoever passes the message on must not pass that on.
#[tokio::test]
async fn a_length_beside_a_transfer_coding_does_not_get_through() {
    let api = api(|seen| match seen.line().split(' ').nth(1).unwrap() {
        "/both" => "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n"
            .to_owned(),
        _ => OK.to_owned(),
    })
    .await;
    let site = site(api.address).await;
    let mut client = site.client().await;
    let answer = client.ask(&get("/both")).await;
    assert_eq!((answer.text(), answer.header("content-length")), ("abcdef", None));
    assert_eq!(client.ask(&get("/x")).await.text(), "ok");
}

/// Whatever an upstream sends without being asked is nobody's answer.
#[tokio::test]
async fn what_follows_an_answer_unasked_is_no_answer() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let junk_may_come = Arc::new(Notify::new());
    let (order, (tell, mut ended)) = (Arc::clone(&junk_may_come), mpsc::channel(1));
    let upstream = script(move |stream| {
        count.fetch_add(1, Ordering::SeqCst);
        let (order, tell) = (Arc::clone(&order), tell.clone());
        async move {
            let mut peer = Client { stream, buffer: Vec::new() };
            let Some(request) = receive(&mut peer).await else { return };
            let junk = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\njunk";
            let later = request.line().contains("later");
            let first = if later { OK.to_owned() } else { format!("{OK}{junk}") };
            if peer.stream.write_all(first.as_bytes()).await.is_err() {
                return;
            }
            if later {
                order.notified().await;
                let _ = peer.stream.write_all(junk.as_bytes()).await;
            }
            assert!(receive(&mut peer).await.is_none(), "a connection that is out of step is not used again");
            if later {
                tell.send(()).await.unwrap();
            }
        }
    })
    .await;
    let site = site(upstream).await;
    let mut client = site.client().await;
    for path in ["/at-once", "/later"] {
        for _ in 0..5 {
            assert_eq!(client.ask(&get(path)).await.text(), "ok");
            if path == "/later" {
                junk_may_come.notify_one();
                // Once it is read the connection is closed.
                soon(ended.recv()).await.unwrap();
            }
        }
    }
    assert_eq!(connections.load(Ordering::SeqCst), 10);
}

/// An answer may be whole while its request is not. The connection is still in use then, and a request that was put on it
/// would be read as a part of that body.
#[tokio::test]
async fn a_connection_is_not_used_again_while_its_request_is_being_sent() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let upstream = script(move |stream| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut peer = Client { stream, buffer: Vec::new() };
            while let Some(head) = peer.until(b"\r\n\r\n").await {
                let head = String::from_utf8(head).unwrap();
                assert!(head.starts_with("GET ") || head.starts_with("POST "), "{head}");
                peer.stream.write_all(OK.as_bytes()).await.unwrap();
                if head.starts_with("POST ") {
                    assert_eq!(peer.exactly(10).await.unwrap(), b"0123456789");
                }
            }
        }
    })
    .await;
    let site = site(upstream).await;
    let mut slow = site.client().await;
    slow.send("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n01234").await;
    assert_eq!(slow.answer(false).await.text(), "ok");
    for _ in 0..3 {
        assert_eq!(site.ask(&get("/x")).await.text(), "ok");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    slow.send("56789").await;
    assert_eq!(slow.ask(&get("/x")).await.text(), "ok");
}

#[tokio::test]
async fn trailers_pass_except_those_that_are_ours() {
    let api = api(|_| {
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum, payment-response\r\n\r\n2\r\nok\r\n0\r\nx-sum: \
         9\r\npayment-response: forged\r\n\r\n"
            .to_owned()
    })
    .await;
    let site = site(api.address).await;
    let request = "POST /x HTTP/1.1\r\nhost: h\r\nte: trailers\r\ntransfer-encoding: chunked\r\ntrailer: x-sum, \
                   x-peaje-payer\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 7\r\nx-peaje-payer: 0x1\r\n\r\n";
    let answer = site.ask(request).await;
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    assert_eq!(answer.header("trailer-x-sum"), Some("9"));
    assert_eq!(answer.header("trailer-payment-response"), None);
    let seen = api.only();
    assert_eq!(seen.all("trailer-x-sum"), ["7"], "{}", seen.head);
    assert!(seen.all("trailer-x-peaje-payer").is_empty(), "{}", seen.head);
    // Who does not ask for trailers gets a whole answer without them.
    let plain = site.ask(&get("/x")).await;
    assert_eq!((plain.text(), plain.header("trailer-x-sum")), ("ok", None));
}

// ---- connections of clients

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_on_one_connection() {
    let api = api(|seen| {
        let path = seen.line().split(' ').nth(1).unwrap();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len())
    })
    .await;
    let site = site(api.address).await;
    let mut client = site.client().await;
    let post = "POST /2 HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nGET /";
    client.send([&get("/1"), post, &get("/paid/x"), &get("/4")].concat()).await;
    for (status, text) in [(200, Some("/1")), (200, Some("/2")), (402, None), (200, Some("/4"))] {
        let answer = client.answer(false).await;
        assert_eq!(answer.status, status);
        assert!(text.is_none_or(|text| answer.text() == text));
    }
    assert_eq!(api.requests()[1].body, b"GET /");
}

#[tokio::test]
async fn http_1_0_clients_are_served() {
    let api = api(|_| "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_owned()).await;
    let site = site(api.address).await;
    let mut client = site.client().await;
    let answer = client.ask("GET /x HTTP/1.0\r\n\r\n").await;
    assert_eq!((answer.status, answer.text(), answer.header("transfer-encoding")), (200, "ok", None));
    let unpaid = site.ask("GET /paid/x HTTP/1.0\r\n\r\n").await;
    assert_eq!(unpaid.status, 402);
    let mut kept = site.client().await;
    for _ in 0..2 {
        let answer = kept.ask("POST /paid/x HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nabc").await;
        assert_eq!((answer.status, answer.header("connection")), (402, Some("keep-alive")));
    }
    assert_eq!(api.only().line(), "GET /x HTTP/1.1");
}

#[tokio::test]
async fn an_http_1_0_upstream_does_not_make_us_one() {
    let upstream = script(|stream| async move {
        let mut peer = Client { stream, buffer: Vec::new() };
        receive(&mut peer).await;
        peer.stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nup to the end").await.unwrap();
    })
    .await;
    let site = site(upstream).await;
    let mut client = site.client().await;
    for _ in 0..2 {
        let answer = client.ask(&get("/x")).await;
        assert!(answer.head.starts_with("HTTP/1.1 200"), "{}", answer.head);
        assert_eq!((answer.header("connection"), answer.text()), (None, "up to the end"));
    }
}

async fn h2(site: &Site) -> http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(site.address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn http_2_is_spoken_by_prior_knowledge_with_many_streams() {
    let upstream = echo().await;
    let site = site(upstream).await;
    let payer = Payer::of(&site);
    let client = h2(&site).await;
    let streams = (0..300_usize).map(|number| {
        let mut client = client.clone();
        async move {
            client.ready().await.unwrap();
            let (path, body) = if number % 3 == 0 { ("/paid/x", "") } else { ("/x", "body") };
            let request = Request::post(format!("http://api.example.com{path}"))
                .body(Full::from(format!("{body}{number}").repeat(number)))
                .unwrap();
            let response = client.send_request(request).await.unwrap();
            let status = response.status().as_u16();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            match number % 3 {
                0 => assert_eq!(status, 402),
                _ => assert!(status == 200 && bytes == format!("body{number}").repeat(number)),
            }
        }
    });
    soon(futures_util::future::join_all(streams)).await;
    let mut client = client;
    let request = Request::get("http://h/paid/x").header("Payment-Signature", payer.header()).body(Full::default());
    let response = soon(client.send_request(request.unwrap())).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers().contains_key("payment-response"));
}

#[tokio::test]
async fn an_http_2_request_is_a_good_http_1_request_upstream() {
    let api = plain_api().await;
    let site = site(api.address).await;
    let mut client = h2(&site).await;
    let request = Request::post("http://authority.example/x?y=1")
        .header("host", "header.example")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Full::default())
        .unwrap();
    assert_eq!(soon(client.send_request(request)).await.unwrap().status(), 200);
    let seen = api.only();
    assert_eq!(seen.line(), "POST /x?y=1 HTTP/1.1");
    assert_eq!(seen.all("host"), [api.address.to_string()]);
    assert_eq!(seen.all("x-forwarded-host"), ["authority.example"]);
    // RFC 9113, 8.2.3.
    assert_eq!(seen.all("cookie"), ["a=1; b=2"]);
    assert_eq!(seen.all("content-length"), ["0"]);
}

#[tokio::test]
async fn an_unpaid_upload_gets_its_402_at_once_and_the_connection_goes_on() {
    let api = plain_api().await;
    let site = site(api.address).await;
    let mut client = site.client().await;
    let body = vec![b'x'; 10 << 20];
    for chunked in [false, true] {
        let framing = if chunked { "transfer-encoding: chunked" } else { "content-length: 10485760" };
        client.send(format!("POST /paid/x HTTP/1.1\r\nhost: h\r\n{framing}\r\n\r\n")).await;
        // The answer comes before the body was written.
        let answer = client.answer(false).await;
        assert_eq!((answer.status, answer.header("connection")), (402, None));
        for piece in body.chunks(1 << 20) {
            if chunked {
                client.send("100000\r\n").await;
            }
            client.send(piece).await;
            if chunked {
                client.send("\r\n").await;
            }
        }
        if chunked {
            client.send("0\r\n\r\n").await;
        }
        assert_eq!(client.ask(&get("/x")).await.text(), "ok");
    }
    assert_eq!(api.requests().len(), 2);
    let mut h2 = h2(&site).await;
    for _ in 0..2 {
        let request = Request::post("http://h/paid/x").body(Full::from(body.clone())).unwrap();
        assert_eq!(soon(h2.send_request(request)).await.unwrap().status(), 402);
    }
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_not_invited_unpaid() {
    let upstream = echo().await;
    let site = site(upstream).await;
    let head = |path| format!("POST {path} HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    let mut client = site.client().await;
    client.send(head("/paid/x")).await;
    assert_eq!(client.answer(false).await.status, 402);
    assert!(client.ends().await);
    let mut client = site.client().await;
    client.send(head("/x")).await;
    assert_eq!(client.answer(false).await.status, 100);
    client.send("body").await;
    assert_eq!(client.answer(false).await.text(), "body");
    assert_eq!(client.ask(&get("/x")).await.status, 200);
}

#[tokio::test]
async fn informational_answers_do_not_confuse_the_final_one() {
    let api = api(|_| format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{OK}")).await;
    let site = site(api.address).await;
    let mut client = site.client().await;
    for _ in 0..2 {
        assert_eq!(client.ask(&get("/x")).await.text(), "ok");
    }
}

#[tokio::test]
async fn an_upstream_that_switches_protocols_unasked_is_a_bad_one() {
    let api = api(|_| "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n".to_owned()).await;
    let site = site(api.address).await;
    let payer = Payer::of(&site);
    let upgrade = format!("connection: upgrade\r\nupgrade: x\r\npayment-signature: {}", payer.header());
    for request in [with("/x", "connection: upgrade\r\nupgrade: x"), with("/paid/x", &upgrade)] {
        let answer = site.ask(&request).await;
        assert_eq!((answer.status, answer.json()["error"].as_str()), (502, Some("upstream_unreachable")));
    }
    assert_eq!(payer.charged(), 0);
}

// ---- shapes that are none

#[tokio::test]
async fn no_shape_of_request_reaches_a_paid_route_unpaid() {
    let api = api(|_| OK.to_owned()).await;
    let site = site(api.address).await;
    let post = |headers: &str, body: &str| format!("POST /x HTTP/1.1\r\nhost: h\r\n{headers}\r\n\r\n{body}");
    let inner = "GET /paid/x HTTP/1.1\r\nhost: h\r\n\r\n";
    let shapes = [
        // Targets.
        get("/paid/x"),
        get("/paid"),
        get("/paid/"),
        get("/PAID/x"),
        get("/Paid/x"),
        get("/%70aid/x"),
        get("/%50aid/x"),
        get("/paid;v=1/x"),
        get("/paid;/x"),
        get("/x/..;/paid/x"),
        get("/x/../paid/x"),
        get("/x/%2e%2e/paid/x"),
        get("/x/.%2e/paid/x"),
        get("//paid/x"),
        get("/./paid/x"),
        get("/;/paid/x"),
        get("/x%2f..%2fpaid/x"),
        get("/x\\..\\paid/x"),
        get("/paid%2fx"),
        get("/paid%5cx"),
        get("/paid/x#fragment"),
        get("/paid/x?y=/x"),
        get("http://other.example/paid/x"),
        get("https://user@other.example:1/paid/x?y"),
        get("/private/report"),
        get("/private/Report;x"),
        "HEAD /private/report HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        "POST /private/report HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "OPTIONS /paid/x HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        "OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        "TRACE /x HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        "CONNECT paid.example:80 HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        "get /paid/x HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        "PROPFIND /paid/x HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        "GET /paid/x HTTP/1.0\r\n\r\n".to_owned(),
        "GET /paid/x\r\n".to_owned(),
        // Headers.
        with("/paid/x", "x-http-method-override: OPTIONS"),
        with("/paid/x", "payment-signature: e30=\r\npayment-signature: e30="),
        with("/paid/x", "connection: payment-signature"),
        with("/paid/x", "connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__"),
        with("/paid/x", "expect: 100-continue"),
        with("/paid/x", "origin: https://page.example\r\naccess-control-request-method: GET"),
        // Framing: whatever the inner request is taken for, it is not forwarded.
        post("content-length: 6\r\ntransfer-encoding: chunked", &format!("0\r\n\r\n{inner}")),
        post("transfer-encoding: chunked\r\ncontent-length: 6", &format!("0\r\n\r\n{inner}")),
        post("content-length: 0\r\ncontent-length: 44", inner),
        post("content-length: 0, 44", inner),
        post("content-length: +0", inner),
        post("content-length: -1", inner),
        post("content-length: 0x0", inner),
        post("content-length: 99999999999999999999", inner),
        post("transfer-encoding: xchunked", inner),
        post("transfer-encoding: chunked, identity", inner),
        post("transfer-encoding: identity", inner),
        post("transfer-encoding : chunked", inner),
        post("transfer-encoding:\x0bchunked", inner),
        post(" transfer-encoding: chunked", inner),
        post("x: 1\r\n transfer-encoding: chunked", inner),
        post("transfer-encoding: chunked", &format!("zz\r\n{inner}")),
        post("transfer-encoding: chunked", &format!("-1\r\n{inner}")),
        post("transfer-encoding: chunked", &format!("ffffffffffffffff1\r\n{inner}")),
        post("transfer-encoding: chunked", &format!("1\r\naXX0\r\n\r\n{inner}")),
        post("transfer-encoding: chunked", &format!("1 \r\na\r\n0\r\n\r\n{inner}")),
        post("x: a\rb: c", inner),
        post("x: a\0b", inner),
        "GET /x HTTP/1.1\nhost: h\n\nGET /paid/x HTTP/1.1\nhost: h\n\n".to_owned(),
        " GET /paid/x HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1 \r\nhost: h\r\n\r\n".to_owned(),
        "GET /x /paid/x HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        "GET /x HTTP/1.2\r\nhost: h\r\n\r\n".to_owned(),
    ];
    for shape in shapes {
        let mut client = site.client().await;
        client.send(&shape).await;
        // No answer in full may be waited for: some shapes leave the connection waiting for the rest.
        let mut text = String::new();
        while let Ok(true) = tokio::time::timeout(Duration::from_millis(40), client.more()).await {
            text = String::from_utf8_lossy(&client.buffer).into_owned();
        }
        assert!(!text.contains(" 500 "), "{shape:?}: {text}");
        for seen in api.seen.lock().unwrap().drain(..) {
            let path = seen.line().split(' ').nth(1).unwrap().to_ascii_lowercase();
            assert!(!path.contains("paid") && !path.contains("private"), "{shape:?}: {}", seen.head);
            assert!(!String::from_utf8_lossy(&seen.body).contains("paid"), "{shape:?}: {seen:?}");
        }
    }
}

#[tokio::test]
async fn ambiguous_framing_is_refused_or_ends_the_connection() {
    let api = plain_api().await;
    let site = site(api.address).await;
    // RFC 9112, 6.1: chunked counts, and nothing may follow on the connection.
    let mut client = site.client().await;
    client.send("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n").await;
    assert_eq!(client.answer(false).await.status, 200);
    assert!(client.ends().await);
    let seen = api.only();
    assert_eq!((seen.body.as_slice(), seen.all("content-length").len()), (b"hi".as_slice(), 0));
    let refused = [
        "content-length: 1\r\ncontent-length: 2",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked",
        "host: second.example",
    ];
    for headers in refused {
        let mut client = site.client().await;
        client.send(format!("POST /x HTTP/1.1\r\nhost: h\r\n{headers}\r\n\r\n0\r\n\r\n")).await;
        let answer = client.answer(false).await;
        assert!([400, 501].contains(&answer.status), "{headers}: {}", answer.head);
    }
    assert_eq!(site.ask("GET /x HTTP/1.1\r\n\r\n").await.status, 400);
    assert_eq!(api.requests().len(), 1);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_completed_upstream() {
    let ((begin, mut begun), (tell, mut told)) = (mpsc::channel(16), mpsc::channel(16));
    let upstream = script(move |stream| {
        let (begin, tell) = (begin.clone(), tell.clone());
        async move {
            let mut peer = Client { stream, buffer: Vec::new() };
            while !peer.buffer.windows(5).any(|window| window == b"hello") && peer.more().await {}
            begin.send(()).await.unwrap();
            while peer.more().await {}
            tell.send(String::from_utf8(peer.buffer).unwrap()).await.unwrap();
        }
    })
    .await;
    let site = site(upstream).await;
    let payer = Payer::of(&site);
    let chunked = "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let tails = [format!("{chunked}zz\r\n"), chunked.to_owned(), "content-length: 9\r\n\r\nhello".to_owned()];
    for tail in tails {
        let mut client = site.client().await;
        let payment = payer.header();
        client.send(format!("POST /paid/x HTTP/1.1\r\nhost: h\r\npayment-signature: {payment}\r\n{tail}")).await;
        // What has not been passed on when the client leaves need not be.
        soon(begun.recv()).await.unwrap();
        if tail.ends_with("zz\r\n") {
            // The client is to blame, and is told so if it is told anything.
            if let Some(answer) = client.try_answer(false).await {
                assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some("body_broken")));
            }
        }
        drop(client);
        let seen = soon(told.recv()).await.unwrap();
        assert!(seen.contains("hello"), "{seen}");
        assert!(!seen.ends_with("0\r\n\r\n"), "{seen}");
        // Half a request cannot be served and costs nothing.
        assert_eq!(payer.charged(), 0);
    }
}

#[tokio::test]
async fn our_own_refusals_are_json_and_say_what_is_allowed() {
    let api = plain_api().await;
    let site = site(api.address).await;
    let cases = [
        ("TRACE /x", 405, "method_not_allowed"),
        ("CONNECT h:80", 405, "method_not_allowed"),
        ("POST /private/report", 405, "method_not_allowed"),
        ("GET //x", 400, "unclear_path"),
        ("GET /PAID/x", 400, "unclear_path"),
        ("GET /paid/x", 402, "Payment required"),
    ];
    for (start, status, error) in cases {
        let answer = site.ask(&format!("{start} HTTP/1.1\r\nhost: h\r\n\r\n")).await;
        assert_eq!((answer.status, answer.json()["error"].as_str()), (status, Some(error)), "{start}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{start}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{start}");
        assert_eq!(answer.header("allow").is_some(), status == 405, "{start}");
        assert!(answer.header("x-request-id").is_some(), "{start}");
    }
    assert!(api.requests().is_empty());
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused_cleanly() {
    let api = plain_api().await;
    let site = site(api.address).await;
    let answer = site.ask(&with("/x", &format!("x-large: {}", "a".repeat(50 * 1024)))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(site.ask(&with("/x", &format!("x-large: {}", "a".repeat(65 * 1024)))).await.status, 431);
    let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
    assert_eq!(site.ask(&with("/x", many.trim_end())).await.status, 431);
    let long = site.ask(&get(&format!("/{}", "a".repeat(70 * 1024)))).await;
    assert!([414, 431].contains(&long.status), "{}", long.status);
    let mut client = h2(&site).await;
    let request = Request::get("http://h/x").header("x-large", "a".repeat(80 * 1024)).body(Full::default()).unwrap();
    let refused = soon(client.send_request(request)).await;
    assert!(refused.is_err() || refused.unwrap().status() == 431);
    assert_eq!(api.requests().len(), 1);
}

#[tokio::test]
async fn a_client_that_does_not_send_its_head_is_let_go() {
    let api = plain_api().await;
    let header_time = Some(Duration::from_millis(300));
    let site = Setup { header_time, ..Setup::new(api.address) }.open().await;
    // Nothing, half of either protocol's beginning, a head without an end, an HTTP/2 connection without a request.
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for beginning in ["", "PRI * HT", "GET /x HTTP/1.1\r\n", preface] {
        let mut client = site.client().await;
        client.send(beginning).await;
        let begun = Instant::now();
        while client.more().await {}
        assert!(begun.elapsed() < PATIENCE, "{beginning:?}");
    }
    // Who has asked may take its time with the body, and is idle afterwards no longer than that.
    let header_time = Duration::from_secs(3);
    let site = Setup { header_time: Some(header_time), ..Setup::new(api.address) }.open().await;
    let mut client = site.client().await;
    client.send("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\na").await;
    tokio::time::sleep(header_time * 4 / 3).await;
    client.send("b").await;
    assert_eq!(client.answer(false).await.text(), "ok");
    assert!(client.ends().await);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let api = plain_api().await;
    // The limit is one for all cores, whichever of them the connections come to.
    for cores in [1, 4] {
        let site = Setup { max_connections: Some(2), cores, ..Setup::new(api.address) }.open().await;
        let (mut first, mut second) = (site.client().await, site.client().await);
        for client in [&mut first, &mut second] {
            assert_eq!(client.ask(&get("/x")).await.status, 200);
        }
        let mut third = site.client().await;
        third.send(get("/x")).await;
        assert!(tokio::time::timeout(Duration::from_millis(100), third.more()).await.is_err());
        drop(first);
        assert_eq!(third.answer(false).await.status, 200);
        assert_eq!(second.ask(&get("/x")).await.status, 200);
    }
}

#[tokio::test]
async fn many_cores_serve_one_port_and_each_keeps_its_own_connections_to_the_upstream() {
    let api = plain_api().await;
    let site = Setup { cores: 3, ..Setup::new(api.address) }.open().await;
    let mut ids = std::collections::HashSet::new();
    for _ in 0..64 {
        let answer = site.ask(&get("/x")).await;
        assert_eq!(answer.status, 200);
        ids.insert(answer.header("x-request-id").unwrap().to_owned());
    }
    assert_eq!(ids.len(), 64);
    let connections = api.connections.load(Ordering::SeqCst);
    // One after the other, so no core needs a second one; that all 64 come to one core happens to nobody.
    assert!((2..=3).contains(&connections), "{connections}");
}

// ---- the upstream fails

#[tokio::test]
async fn an_upstream_that_gives_no_answer_is_named_and_costs_nothing() {
    let (_held, closed) = nobody();
    let resetting = script(|stream| async move {
        let mut peer = Client { stream, buffer: Vec::new() };
        peer.until(b"\r\n\r\n").await;
    })
    .await;
    let garbage = script(|stream| async move {
        let mut peer = Client { stream, buffer: Vec::new() };
        peer.until(b"\r\n\r\n").await;
        let _ = peer.stream.write_all(b"SSH-2.0-secret-version\r\n\r\n").await;
    })
    .await;
    let slow = script(|stream| async move {
        let mut peer = Client { stream, buffer: Vec::new() };
        peer.until(b"\r\n\r\n").await;
        tokio::time::sleep(PATIENCE).await;
    })
    .await;
    let cases = [
        (closed, 502, "upstream_unreachable"),
        (resetting, 502, "upstream_unreachable"),
        (garbage, 502, "upstream_unreachable"),
        (slow, 504, "upstream_timeout"),
    ];
    for (upstream, status, error) in cases {
        // Only of the slow one is it the time that is tested.
        let response_timeout = if status == 504 { Duration::from_millis(300) } else { PATIENCE };
        let site = Setup { response_timeout, ..Setup::new(upstream) }.open().await;
        let payer = Payer::of(&site);
        let mut client = site.client().await;
        let payment = format!("payment-signature: {}", payer.header());
        for request in [get("/x"), with("/paid/x", &payment), with("/paid/x", &payment)] {
            let answer = client.ask(&request).await;
            assert_eq!((answer.status, answer.json()["error"].as_str()), (status, Some(error)));
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            assert!(!answer.text().contains("secret") && !answer.text().contains("127.0.0.1"));
            assert!(answer.header("payment-response").is_none());
        }
        assert_eq!(payer.charged(), 0);
        // A body that nobody reads any more does not cost the connection.
        let post = format!("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 100000\r\n\r\n{}", "a".repeat(100_000));
        assert_eq!(client.ask(&post).await.status, status);
        assert_eq!(client.ask(&get("/paid/x")).await.status, 402);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_complete() {
    for framing in ["content-length: 100\r\n\r\nhello", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        let upstream = script(move |stream| async move {
            let mut peer = Client { stream, buffer: Vec::new() };
            peer.until(b"\r\n\r\n").await;
            peer.stream.write_all(format!("HTTP/1.1 200 OK\r\n{framing}").as_bytes()).await.unwrap();
        })
        .await;
        let site = site(upstream).await;
        let mut client = site.client().await;
        client.send(get("/x")).await;
        assert!(client.try_answer(false).await.is_none(), "{framing}");
        let mut client = h2(&site).await;
        let request = Request::get("http://h/x").body(Full::default()).unwrap();
        let response = soon(client.send_request(request)).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(soon(response.into_body().collect()).await.is_err(), "{framing}");
    }
}

#[tokio::test]
async fn an_early_answer_to_a_large_upload_passes() {
    let upstream = script(|stream| async move {
        let mut peer = Client { stream, buffer: Vec::new() };
        peer.until(b"\r\n\r\n").await;
        let answer = b"HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig";
        peer.stream.write_all(answer).await.unwrap();
        peer.stream.shutdown().await.unwrap();
        while peer.more().await {
            peer.buffer.clear();
        }
    })
    .await;
    let site = site(upstream).await;
    let mut client = site.client().await;
    client.send("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4000000\r\n\r\n").await;
    client.send(vec![b'a'; 100_000]).await;
    let answer = client.answer(false).await;
    assert_eq!((answer.status, answer.text()), (413, "big"));
    client.send(vec![b'a'; 3_900_000]).await;
    assert_eq!(client.ask(&get("/paid/x")).await.status, 402);
}

#[tokio::test]
async fn connections_to_the_upstream_are_used_again() {
    let api = plain_api().await;
    let site = site(api.address).await;
    for _ in 0..20 {
        assert_eq!(site.ask(&get("/x")).await.status, 200);
    }
    assert_eq!(api.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_idle_connection_the_upstream_closed_costs_no_request() {
    let (close, closed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (order, tell) = (Arc::clone(&close), Arc::clone(&closed));
    let upstream = script(move |stream| {
        let (order, tell) = (Arc::clone(&order), Arc::clone(&tell));
        async move {
            // Answers once as if the connection could be kept, and closes it when nobody uses it.
            let mut peer = Client { stream, buffer: Vec::new() };
            receive(&mut peer).await;
            peer.stream.write_all(OK.as_bytes()).await.unwrap();
            order.notified().await;
            drop(peer);
            tell.notify_one();
        }
    })
    .await;
    let site = site(upstream).await;
    let mut client = site.client().await;
    for _ in 0..20 {
        let request = "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbody";
        assert_eq!(client.ask(request).await.status, 200);
        close.notify_one();
        soon(closed.notified()).await;
    }
}

#[tokio::test]
async fn a_request_that_was_sent_is_never_sent_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let upstream = script(move |stream| {
        let counter = Arc::clone(&counter);
        async move {
            let mut peer = Client { stream, buffer: Vec::new() };
            receive(&mut peer).await;
            peer.stream.write_all(OK.as_bytes()).await.unwrap();
            // The second request on the connection is read, and the connection dies over it.
            if receive(&mut peer).await.is_some() {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let site = site(upstream).await;
    let mut client = site.client().await;
    let request = "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbody";
    assert_eq!(client.ask(request).await.status, 200);
    assert_eq!(client.ask(request).await.status, 502);
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

// ---- stopping

#[tokio::test]
async fn stopping_lets_requests_finish_and_takes_no_more() {
    for cores in [1, 3] {
        stopping_in_order(cores).await;
    }
}

async fn stopping_in_order(cores: usize) {
    let (go, gone) = tokio::sync::watch::channel(false);
    let upstream = script(move |stream| {
        let mut gone = gone.clone();
        async move {
            let mut peer = Client { stream, buffer: Vec::new() };
            receive(&mut peer).await;
            peer.stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nbegin").await.unwrap();
            gone.wait_for(|go| *go).await.unwrap();
            peer.stream.write_all(b"ended").await.unwrap();
        }
    })
    .await;
    let site = Setup { cores, ..Setup::new(upstream) }.open().await;
    let mut idle = site.client().await;
    assert_eq!(idle.ask(&get("/paid/x")).await.status, 402);
    let mut silent = site.client().await;
    let mut half = site.client().await;
    half.send("GET /x HT").await;
    let mut busy = site.client().await;
    busy.send(get("/x")).await;
    assert!(busy.until(b"begin").await.is_some());
    let mut second = h2(&site).await;
    let request = Request::get("http://h/x").body(Full::default()).unwrap();
    let streaming = soon(second.send_request(request)).await.unwrap();
    site.stop.cancel();
    assert!(idle.ends().await);
    assert!(silent.ends().await);
    // Each core closes its own socket.
    soon(async {
        while TcpStream::connect(site.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(!site.task.is_finished());
    go.send(true).unwrap();
    assert_eq!(busy.exactly(5).await.unwrap(), b"ended");
    assert_eq!(soon(streaming.into_body().collect()).await.unwrap().to_bytes(), "beginended");
    assert!(busy.ends().await);
    drop(half);
    soon(site.task).await.unwrap();
    assert!(!site.cut_off.load(Ordering::SeqCst));
}

#[tokio::test]
async fn the_deadline_cuts_off_what_does_not_finish_and_charges_nothing() {
    let (tell, mut told) = mpsc::channel(1);
    let upstream = script(move |stream| {
        let tell = tell.clone();
        async move {
            let mut peer = Client { stream, buffer: Vec::new() };
            receive(&mut peer).await;
            let _ = tell.send(()).await;
            while peer.more().await {}
        }
    })
    .await;
    let site = Setup { drain: Duration::from_millis(200), cores: 2, ..Setup::new(upstream) }.open().await;
    let payer = Payer::of(&site);
    let mut client = site.client().await;
    client.send(with("/paid/x", &format!("payment-signature: {}", payer.header()))).await;
    soon(told.recv()).await.unwrap();
    let begun = Instant::now();
    site.stop.cancel();
    soon(site.task).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert!(site.cut_off.load(Ordering::SeqCst));
    assert!(client.ends().await);
    assert_eq!(payer.charged(), 0);
}

// ---- browsers and caches

fn origins(names: &[&'static str]) -> Cors {
    Cors::Only(names.iter().map(|name| HeaderValue::from_static(name)).collect())
}

#[tokio::test]
async fn without_cors_preflights_are_requests() {
    let api = plain_api().await;
    let site = site(api.address).await;
    let preflight = "OPTIONS /x HTTP/1.1\r\nhost: h\r\norigin: https://a.example\r\naccess-control-request-method: \
                     GET\r\n\r\n";
    assert_eq!(site.ask(preflight).await.text(), "ok");
    let unpaid = site.ask(&with("/paid/x", "origin: https://a.example")).await;
    assert!(unpaid.headers.keys().all(|name| !name.as_str().starts_with("access-control")));
    assert_eq!(unpaid.header("vary"), None);
}

#[tokio::test]
async fn cors_lets_the_named_origins_read_every_answer() {
    let api = plain_api().await;
    let preflight = |origin: &str| {
        format!(
            "OPTIONS /paid/x HTTP/1.1\r\nhost: h\r\norigin: {origin}\r\naccess-control-request-method: \
             POST\r\naccess-control-request-headers: payment-signature, access-control-expose-headers\r\n\r\n"
        )
    };
    let named = || origins(&["https://a.example", "https://b.example"]);
    for (cors, origin, allowed) in [
        (Cors::Any, "https://c.example", Some("*")),
        (named(), "https://b.example", Some("https://b.example")),
        (named(), "https://c.example", None),
        (named(), "null", None),
    ] {
        let vary = matches!(cors, Cors::Only(_)).then_some("Origin");
        let site = Setup { cors, ..Setup::new(api.address) }.open().await;
        let answer = site.ask(&preflight(origin)).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (204, allowed));
        assert_eq!(answer.header("vary"), vary);
        if allowed.is_some() {
            assert_eq!(answer.header("access-control-allow-methods"), Some("POST"));
            let headers = Some("payment-signature, access-control-expose-headers");
            assert_eq!(answer.header("access-control-allow-headers"), headers);
        }
        // Every answer of ours can be read, refusals and failures too.
        let requests = ["GET /x", "GET /paid/x", "GET //x", "POST /private/report", "TRACE /x"];
        for start in requests {
            let answer = site.ask(&format!("{start} HTTP/1.1\r\nhost: h\r\norigin: {origin}\r\n\r\n")).await;
            assert_eq!(answer.all("access-control-allow-origin"), Vec::from_iter(allowed), "{start}");
            assert_eq!(answer.all("access-control-expose-headers").len(), usize::from(allowed.is_some()), "{start}");
            assert_eq!(answer.all("vary"), Vec::from_iter(vary), "{start}");
        }
    }
    assert!(api.requests().iter().all(|seen| seen.line().starts_with("GET /x ")));
}

#[tokio::test]
async fn what_the_upstream_says_of_origins_stays_and_is_not_doubled() {
    let api = api(|_| {
        "HTTP/1.1 200 OK\r\naccess-control-allow-origin: https://own.example\r\naccess-control-allow-credentials: \
         true\r\naccess-control-expose-headers: x-own\r\nvary: accept-encoding, origin\r\ncontent-length: 2\r\n\r\nok"
            .to_owned()
    })
    .await;
    for cors in [Cors::Any, origins(&["https://a.example"])] {
        let site = Setup { cors, ..Setup::new(api.address) }.open().await;
        let answer = site.ask(&with("/x", "origin: https://a.example")).await;
        assert_eq!(answer.all("access-control-allow-origin"), ["https://own.example"]);
        assert_eq!(answer.all("access-control-allow-credentials"), ["true"]);
        assert_eq!(answer.all("vary"), ["accept-encoding, origin"]);
        let exposed = answer.all("access-control-expose-headers").join(",").to_ascii_lowercase();
        assert!(exposed.contains("x-own") && exposed.contains("payment-response"), "{exposed}");
    }
}

#[tokio::test]
async fn no_shared_cache_may_keep_what_was_paid_for() {
    let api = api(|_| {
        "HTTP/1.1 200 OK\r\ncache-control: public, max-age=60, s-maxage=600\r\ncdn-cache-control: \
         max-age=600\r\nsurrogate-control: max-age=600\r\npayment-response: forged\r\nsettlement-overrides: \
         {\"amount\":\"500\"}\r\ncontent-length: 2\r\n\r\nok"
            .to_owned()
    })
    .await;
    let site = site(api.address).await;
    let payer = Payer::of(&site);
    let paid = site.ask(&with("/paid/x", &format!("payment-signature: {}", payer.header()))).await;
    assert_eq!(paid.all("cache-control"), ["private, max-age=60"]);
    assert_eq!((paid.header("cdn-cache-control"), paid.header("surrogate-control")), (None, None));
    assert_eq!(paid.all("payment-response").len(), 1);
    assert_ne!(paid.header("payment-response"), Some("forged"));
    assert_eq!(paid.header("settlement-overrides"), None);
    assert_eq!(payer.charged(), 500);
    // What is free may be cached as the upstream says.
    let free = site.ask(&get("/x")).await;
    assert_eq!(free.all("cache-control"), ["public, max-age=60, s-maxage=600"]);
    assert_eq!(free.header("cdn-cache-control"), Some("max-age=600"));
    assert_eq!((free.header("payment-response"), free.header("settlement-overrides")), (None, None));
}

#[tokio::test]
async fn ipv6_is_served_and_named() {
    let api = plain_api().await;
    let Ok(probe) = TcpListener::bind("[::1]:0").await else {
        eprintln!("no IPv6 on this machine");
        return;
    };
    drop(probe);
    let site = Setup { listen: "[::1]:0", ..Setup::new(api.address) }.open().await;
    assert_eq!(site.ask(&get("/x")).await.status, 200);
    assert_eq!(api.only().all("x-forwarded-for"), ["::1"]);
    // A client of version 4 that comes to a listener for both is named as such.
    let both = Setup { listen: "[::]:0", ..Setup::new(api.address) }.open().await;
    let four = SocketAddr::from(([127, 0, 0, 1], both.address.port()));
    assert_eq!(Client::connect(four).await.ask(&get("/x")).await.status, 200);
    assert_eq!(api.requests()[1].all("x-forwarded-for"), ["127.0.0.1"]);
}

// ---- what is written down

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_names_no_path_query_header_or_body() {
    let log = Log::default();
    let writer = log.clone();
    let filter = tracing_subscriber::EnvFilter::new("warn,peaje=trace");
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(move || writer.clone()).finish();
    // For the whole process: what the other tests do may not be told either.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let api = api(|seen| match seen.line() {
        line if line.contains("fail") => {
            "HTTP/1.1 500 No\r\nx: tell-none\r\ncontent-length: 9\r\n\r\ntell-none".to_owned()
        }
        line if line.contains("break") => "tell-none\r\n\r\n".to_owned(),
        line if line.contains("dear") => OK.replace("content-type", "settlement-overrides: none\r\ncontent-type"),
        _ => OK.to_owned(),
    })
    .await;
    let site = site(api.address).await;
    let payer = Payer::of(&site);
    let header = payer.header();
    let paid = format!("payment-signature: {header}");
    let bad = format!("payment-signature: {}tell-none", &header[..40]);
    let secret = "authorization: Bearer tell-none\r\ncookie: tell-none";
    for path in ["/x", "/paid/x", "/fail", "/break", "//x"] {
        for headers in [secret, &paid, &bad, "x-request-id: request-17", "x-request-id: tell-none \"quoted\""] {
            site.ask(&with(&format!("{path}?key=tell-none"), headers)).await;
        }
    }
    let payment = format!("payment-signature: {}\r\nx-request-id: request-18", payer.header());
    assert_eq!(site.ask(&with("/paid/dear", &payment)).await.status, 200);
    site.client().await.send("tell-none tell-none\r\n\r\n").await;
    let mut cut = site.client().await;
    cut.send("POST /x?tell-none HTTP/1.1\r\nhost: tell-none\r\ntransfer-encoding: chunked\r\n\r\ntell-none\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("request-17") && text.contains("the upstream gave no answer"), "{text}");
    // Whatever the level, a warning says which request it is about.
    let warned = text.lines().find(|line| line.contains("WARN") && line.contains("Settlement-Overrides")).unwrap();
    assert_eq!(warned.matches("request=\"request-18\"").count(), 1, "{warned}");
    assert!(!text.contains("tell-none") && !text.contains(&header[..40]) && !text.contains("/paid/x"), "{text}");
}

// ---- the operators' listener

mod operators {
    use super::*;
    use peaje::admin;
    use peaje::chain::{AlloyChain, RpcUrl};
    use peaje::devnet::{Devnet, DevnetConfig};
    use peaje::redeem::{Redemption, Settings};
    use peaje::store::Opening;

    struct Office {
        address: SocketAddr,
        gate: Gate,
        redemption: Redemption,
        unready: CancellationToken,
        stop: CancellationToken,
        task: JoinHandle<()>,
        devnet: Option<Devnet>,
    }

    async fn office() -> Office {
        office_with(Settings::default()).await
    }

    async fn office_with(settings: Settings) -> Office {
        let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
        let url: RpcUrl = devnet.rpc_url().parse().unwrap();
        let chain = Arc::new(AlloyChain::connect(url, None).await.unwrap());
        let route = Route::new(PathPattern::parse("/paid").unwrap(), Price::Fixed(PRICE));
        let (desk, questions) = Desk::new();
        let gate = Gate::new(Policy::new(terms(), "http://h", vec![route]).unwrap(), desk);
        let settings = Settings { poll: Duration::from_millis(20), ..settings };
        let authorizer = LocalKey::from_bytes(&[9; 32]).unwrap();
        let redemption = Redemption::start(gate.clone(), questions, chain, authorizer, settings, Opening::default());
        let socket = admin::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = socket.local_addr().unwrap();
        let (unready, stop) = (CancellationToken::new(), CancellationToken::new());
        let upstream = Upstream::new(&UpstreamSettings::of("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let (reloads, unready_too) = (Reloads::default(), unready.clone());
        let serving =
            admin::serve(socket, gate.clone(), redemption.clone(), reloads, upstream, unready_too, stop.clone());
        let task = tokio::spawn(serving);
        Office { address, gate, redemption, unready, stop, task, devnet: Some(devnet) }
    }

    impl Office {
        async fn ask(&self, start: &str, headers: &str) -> Answer {
            let request = format!("{start} HTTP/1.1\r\n{headers}content-length: 0\r\n\r\n");
            Client::connect(self.address).await.ask(&request).await
        }
    }

    #[tokio::test]
    async fn only_loopback_is_bound() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let refused = admin::bind(address.parse().unwrap()).await.unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied, "{address}");
        }
    }

    #[tokio::test]
    async fn only_who_means_this_machine_is_answered_and_only_on_purpose() {
        let office = office().await;
        let port = office.address.port();
        for host in
            ["localhost", "127.0.0.1", &format!("127.0.0.1:{port}"), &format!("LocalHost:{port}"), "[::1]", "[::1]:1"]
        {
            let host = format!("host: {host}\r\n");
            assert_eq!(office.ask("GET /livez", &host).await.status, 200, "{host}");
        }
        for host in [
            "",
            "host: evil.example\r\n",
            "host: 127.0.0.1.evil.example\r\n",
            "host: localhost.evil.example:1\r\n",
            "host: evil.example:127\r\n",
            "host: 10.0.0.1\r\n",
            "host: localhost\r\nhost: evil.example\r\n",
        ] {
            let starts = [
                "GET /livez",
                "GET /readyz",
                "GET /channels",
                "GET /redemption",
                "GET /redeem/plan",
                "POST /redeem",
                "GET /nothing",
            ];
            for start in starts {
                let answer = office.ask(start, &format!("{host}x-peaje-admin: 1\r\n")).await;
                assert_eq!(
                    (answer.status, answer.json()["error"].as_str()),
                    (421, Some("wrong_host")),
                    "{host} {start}"
                );
            }
        }
        let evil = office.ask("GET http://evil.example/channels", "host: localhost\r\n").await;
        assert_eq!(evil.status, 421);
        let local = "host: localhost\r\n";
        let forgotten = office.ask("POST /redeem", local).await;
        assert_eq!((forgotten.status, forgotten.json()["error"].as_str()), (403, Some("forbidden")));
        let ordered = office.ask("POST /redeem", &format!("{local}x-peaje-admin: 1\r\n")).await;
        assert_eq!(ordered.status, 200);
        assert_eq!(office.ask("GET /redeem", local).await.status, 405);
        let nothing = office.ask("GET /nothing", local).await;
        assert_eq!((nothing.status, nothing.json()["error"].as_str()), (404, Some("not_found")));
        let preflight = "origin: https://page.example\r\naccess-control-request-method: POST\r\n";
        let preflight = office.ask("OPTIONS /redeem", &format!("{local}{preflight}")).await;
        assert!(preflight.header("access-control-allow-origin").is_none());
    }

    #[tokio::test]
    async fn the_books_show_no_signature() {
        let office = office().await;
        let local = "host: localhost\r\n";
        assert_eq!(office.ask("GET /channels", local).await.json(), json!([]));
        let target = json!({"upstream": null, "url": "http://127.0.0.1:1", "standing": "up", "requests": null});
        assert_eq!(office.ask("GET /upstreams", local).await.json(), json!([target]));
        let key = LocalKey::from_bytes(&[7; 32]).unwrap();
        let terms = terms();
        let config = terms.channel_of(key.address());
        let view = View { block: 1, balance: Amount::new(5), ..View::default() };
        office.gate.accounts().observe(config.id(&terms.settlement()), &config, view).unwrap();
        let books = office.ask("GET /channels", local).await.json();
        let names: Vec<_> = books[0].as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "balance",
            "chain",
            "channel",
            "charged",
            "claimed",
            "payer",
            "shortfall",
            "token",
            "unclaimed",
            "withdrawing",
        ];
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected);
    }

    #[tokio::test]
    async fn readiness_ends_once_claims_are_stuck() {
        let mut office = office_with(Settings { stuck_after: Duration::ZERO, ..Settings::default() }).await;
        let (local, order) = ("host: localhost\r\n", "host: localhost\r\nx-peaje-admin: 1\r\n");
        assert!(office.ask("POST /redeem", order).await.json().get("problem").is_none());
        assert_eq!(office.ask("GET /readyz", local).await.status, 200);

        office.devnet.take().unwrap().shutdown().await;
        let report = office.ask("POST /redeem", order).await.json();
        let problem = report["problem"].as_str().expect("nobody can be asked what is owed");
        let failing = office.ask("GET /redemption", local).await.json();
        assert_eq!(failing["vitals"]["problem"], problem);
        let begun = tokio::time::Instant::now();
        let unready = loop {
            let answer = office.ask("GET /readyz", local).await;
            if answer.status != 200 {
                break answer;
            }
            assert!(begun.elapsed() < PATIENCE, "still ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(unready.status, 503);
        let why = unready.text();
        assert!(why.starts_with("claims are stuck: $0.00 unclaimed on 0 channels") && why.contains(problem), "{why}");
        let plan = office.ask("GET /redeem/plan", local).await;
        assert_eq!((plan.status, plan.json()["gas_price_wei"].is_null()), (200, true));
        assert!(plan.json()["problem"].is_string(), "a dry run says that it does not know what gas costs");
    }

    #[tokio::test]
    async fn readiness_ends_when_stopping_begins_and_liveness_does_not() {
        let office = office().await;
        let local = "host: localhost\r\n";
        assert_eq!(office.ask("GET /readyz", local).await.status, 200);
        office.unready.cancel();
        let unready = office.ask("GET /readyz", local).await;
        assert_eq!((unready.status, unready.text()), (503, "the proxy is stopping\n"));
        assert_eq!(office.ask("GET /livez", local).await.status, 200);
        // A request that is never finished does not keep the process.
        let mut half = Client::connect(office.address).await;
        half.send("POST /redeem HT").await;
        let mut body = Client::connect(office.address).await;
        body.send("POST /redeem HTTP/1.1\r\nhost: localhost\r\nx-peaje-admin: 1\r\ncontent-length: 5\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        office.redemption.stop().await;
        office.stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), office.task)
            .await
            .expect("a half-sent request held it up")
            .unwrap();
    }
}
