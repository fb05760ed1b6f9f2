//! Which price is whose, over real connections: hosts, conditions on headers, query and body, lists of payers, quotas, caps,
//! rates and shadow mode, each as the config file says it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    reason = "a test that cannot go on should say so at once"
)]

#[path = "support/least.rs"]
mod least;
#[path = "support/payer.rs"]
mod payer;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use http::Method;
use least::HEAD;
use payer::{Payer, Payment};
use peaje::config::Config;
use peaje::gate::people::WatchedCounts;
use peaje::gate::policy::Policy;
use peaje::gate::{Desk, Gate, Limits};
use peaje::ledger::View;
use peaje::protocol::x402::{self, Quote};
use peaje::protocol::{Address, Amount};
use peaje::proxy::{Bounds, Cors, Listener, Upstream, UpstreamSettings};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// How long any one step may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Small, so that a body can be too large quickly.
const MAX_BODY: usize = 64 * 1024;

/// A tenth of a cent.
const UNIT: u128 = 1_000;

// ---- an upstream that notes what arrives

#[derive(Debug, Clone)]
struct Arrived {
    target: String,
    headers: http::HeaderMap,
    body: Bytes,
}

type Log = Arc<Mutex<Vec<Arrived>>>;

/// Answers with what the request asks for: a status in `x-answer`, one of gRPC in `x-grpc`, a report in `x-report`, after
/// `x-wait` milliseconds.
async fn answer(State(log): State<Log>, request: Request) -> http::Response<Body> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let text = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, grpc) = (text("x-answer"), text("x-grpc"));
    let (report, wait) = (text("x-report"), text("x-wait"));
    log.lock().unwrap().push(Arrived { target: parts.uri.to_string(), headers: parts.headers, body: body.clone() });
    tokio::time::sleep(Duration::from_millis(wait.map_or(0, |wait| wait.parse().unwrap()))).await;
    let mut response = http::Response::builder().status(status.map_or(200, |status| status.parse().unwrap()));
    if let Some(report) = report {
        response = response.header("settlement-overrides", report);
    }
    if let Some(status) = grpc {
        response = response.header("grpc-status", status);
    }
    response.body(Body::from(body)).unwrap()
}

// ---- the proxy in front of it

struct Site {
    address: SocketAddr,
    gate: Gate,
    log: Log,
    client: reqwest::Client,
}

/// A proxy whose price list is this.
async fn site(routes: &str) -> Site {
    let log = Log::default();
    let app = Router::new().fallback(answer).with_state(Arc::clone(&log));
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = socket.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(socket, app).await });
    let config = Config::parse(&format!("{HEAD}\n{routes}"), "routes.toml").unwrap_or_else(|errors| panic!("{errors}"));
    let limits = Limits { max_matched_body: MAX_BODY, ..Limits::default() };
    let gate = Gate::new(config.policy(Address([2; 20])).unwrap(), Desk::closed()).with_limits(limits);
    let upstream = Upstream::new(&UpstreamSettings {
        connect_timeout: PATIENCE,
        response_timeout: PATIENCE,
        ..UpstreamSettings::of(format!("http://{upstream}").parse().unwrap())
    })
    .unwrap();
    let listener = Listener::bind_cores("127.0.0.1:0".parse().unwrap(), NonZeroUsize::MIN).await.unwrap();
    let address = listener.address().unwrap();
    let stack = peaje::proxy::stack(&gate, upstream, Cors::Off, Bounds::default());
    tokio::spawn(listener.serve(stack, CancellationToken::new(), PATIENCE, || ()));
    peaje::chain::install_tls();
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    Site { address, gate, log, client }
}

/// An answer with what is looked at in these tests.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    /// The stable code of a refusal; or nothing.
    fn code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["error"].as_str().unwrap_or_default().to_owned()
    }

    /// The price that was quoted.
    fn quoted(&self) -> u128 {
        let quote: Quote = x402::decode(self.headers["payment-required"].as_bytes()).unwrap();
        quote.accepts[0].amount.units()
    }
}

impl Site {
    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut request = self.client.request(method, format!("http://{}{path}", self.address)).body(body.into());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, body: response.bytes().await.unwrap() }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask(Method::GET, path, headers, Bytes::new()).await
    }

    async fn post_json(&self, path: &str, body: &str) -> Answer {
        self.ask(Method::POST, path, &[("content-type", "application/json")], body.to_owned()).await
    }

    /// A payer with a channel and a dollar on it, which answers offers of this price.
    fn payer(&self, number: u8, price: u128) -> Payer {
        let payer = Payer::new(number, self.gate.policy().terms(), price);
        self.fund(&payer);
        payer
    }

    fn fund(&self, payer: &Payer) {
        let view = View { block: 1, balance: Amount::new(1_000_000), ..View::default() };
        self.gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
    }

    fn charged(&self, payer: &Payer) -> u128 {
        self.gate.accounts().statement(&payer.id()).unwrap().charged.units()
    }

    /// The voucher of the payer's next request at this price.
    fn next(&self, payer: &Payer, price: u128) -> Payment {
        payer.voucher(self.charged(payer) + price)
    }

    /// A paid request.
    async fn pay(&self, payer: &Payer, price: u128, path: &str, headers: &[(&str, &str)]) -> Answer {
        let payment = self.next(payer, price).header();
        let mut all = vec![("payment-signature", payment.as_str())];
        all.extend(headers);
        self.get(path, &all).await
    }

    fn arrived(&self) -> Vec<Arrived> {
        self.log.lock().unwrap().clone()
    }
}

/// A route of so many tenths of a cent, with more lines.
fn route(path: &str, price: u32, more: &str) -> String {
    let price = if price == 0 { "free".to_owned() } else { format!("$0.{price:03}") };
    format!("[[route]]\npath = \"{path}\"\nprice = \"{price}\"\n{more}\n")
}

/// The list of one payer, for the end of a price list.
fn partners(payer: &Payer) -> String {
    format!("[payers]\npartners = [\"{}\"]\n", payer.address())
}

fn anybody(number: u8) -> Payer {
    Payer::new(number, &payer::usual_terms(), 1)
}

// ---- conditions

#[tokio::test]
async fn host_header_query_and_body_decide_what_is_quoted() {
    let site = site(
        &[
            route("/c", 9, ""),
            route("/c", 1, "match.header.x-tier = \"pro\""),
            route("/q", 2, "match = { query = { model = \"gpt-4*\" } }"),
            route("/h", 3, "host = \"*.example.com\""),
            route("/h", 4, ""),
            route("/chat", 9, ""),
            route("/chat", 5, "match = { body = { model = \"small*\" } }"),
            route("/chat", 6, "match = { body = { model = \"small*\", options.stream = true } }"),
        ]
        .concat(),
    )
    .await;
    assert_eq!(site.get("/c", &[]).await.quoted(), 9 * UNIT);
    assert_eq!(site.get("/c", &[("x-tier", "pro")]).await.quoted(), UNIT);
    assert_eq!(site.get("/q?a&model=gpt-4o", &[]).await.quoted(), 2 * UNIT);
    assert_eq!(site.get("/h", &[("host", "A.example.com:99")]).await.quoted(), 3 * UNIT);
    assert_eq!(site.get("/h", &[("host", "example.com")]).await.quoted(), 4 * UNIT);
    for (body, price) in [
        (r#"{"model": "large"}"#, 9),
        (r#"{"model": "small-1"}"#, 5),
        (r#"{"model": "small-1", "options": {"stream": false}}"#, 5),
        (r#"{"model": "small-1", "options": {"stream": true}}"#, 6),
        ("", 9),
    ] {
        assert_eq!(site.post_json("/chat", body).await.quoted(), price * UNIT, "{body}");
    }
    assert!(site.arrived().is_empty());
}

#[tokio::test]
async fn what_meets_no_condition_or_has_two_readings_reaches_nobody() {
    let dear = "match = { body = { model = \"large\" } }";
    let site = site(
        &[
            route("/chat", 5, dear),
            route("/q", 5, "match = { query = { m = \"x\" } }"),
            route("/q", 6, "match = { header = { x-tier = \"pro\" }, query = { m = \"x\" } }"),
            route("/free", 0, "match = { query = { m = \"x\" } }"),
            route("/*", 0, ""),
        ]
        .concat(),
    )
    .await;
    let refused = async |path: &str, headers: &[(&str, &str)], body: &[u8]| {
        let method = if body.is_empty() { Method::GET } else { Method::POST };
        let answer = site.ask(method, path, headers, body.to_vec()).await;
        (answer.status, answer.code())
    };
    let json = [("content-type", "application/json")];
    let zipped = [("content-type", "application/json"), ("content-encoding", "gzip")];
    let large = format!("{{\"model\": \"{}\"}}", "x".repeat(MAX_BODY));
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [u8], (u16, &'a str));
    let cases: &[Case<'_>] = &[
        ("/chat", &json, br#"{"model": "small"}"#, (404, "no_condition_met")),
        ("/chat", &[("content-type", "text/plain")], b"model=large", (404, "no_condition_met")),
        ("/chat", &[], b"", (404, "no_condition_met")),
        ("/q?m=y", &[], b"", (404, "no_condition_met")),
        ("/free", &[], b"", (404, "no_condition_met")),
        ("/chat", &json, br#"{"model": "small", "model": "large"}"#, (400, "unclear_request")),
        ("/chat", &json, br#"{"Model": "large"}"#, (400, "unclear_request")),
        ("/chat", &json, b"{\"model\": \"large\xff\"}", (400, "unclear_request")),
        ("/chat", &json, b"{\"model\": ", (400, "unclear_request")),
        ("/chat", &[("content-type", "image/png")], br#"{"model": 7}"#, (400, "unclear_request")),
        ("/chat", &zipped, b"\x1f\x8b", (415, "matched_body_encoded")),
        ("/chat", &json, large.as_bytes(), (413, "matched_body_too_large")),
        ("/q?m=x&m=y", &[], b"", (400, "unclear_request")),
        ("/q?m=x&%6d=y", &[], b"", (400, "unclear_request")),
        ("/q?m=%zz", &[], b"", (400, "unclear_request")),
        ("/q?m=x", &[("x-tier", "a"), ("x-tier", "pro")], b"", (400, "unclear_request")),
        ("/q?m=x", &[("x-tier", "a"), ("x_tier", "pro")], b"", (400, "unclear_request")),
    ];
    for (path, headers, body, (status, code)) in cases {
        let refused = refused(path, headers, body).await;
        assert_eq!(refused, (*status, (*code).to_owned()), "{path} {headers:?} {}", String::from_utf8_lossy(body));
    }
    assert!(site.arrived().is_empty());
    // What no route of a path looks at may come in any shape.
    assert_eq!(site.get("/other?m=x&m=y&%zz", &[]).await.status, 200);
    assert_eq!(site.get("/free?m=x", &[]).await.status, 200);
}

#[tokio::test]
async fn a_body_that_was_looked_at_arrives_as_it_was_sent() {
    let site =
        site(&[route("/chat", 5, ""), route("/chat", 1, "match = { body = { model = \"small\" } }")].concat()).await;
    let payer = site.payer(1, UNIT);
    let payment = site.next(&payer, UNIT).header();
    let body = format!(" {{ \"x\": \"{}\",\n\"model\": \"small\" }}\n", "y".repeat(MAX_BODY / 2));
    let headers = [("content-type", "application/json"), ("payment-signature", &payment)];
    let answer = site.ask(Method::POST, "/chat", &headers, body.clone()).await;
    assert_eq!((answer.status, site.charged(&payer)), (200, UNIT));
    assert_eq!(site.arrived()[0].body, body);
    // In pieces, after the proxy said that it wants them, with a trailer.
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    let payment = site.next(&payer, UNIT).header();
    let head = format!(
        "POST /chat HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\
         expect: 100-continue\r\npayment-signature: {payment}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut heard = [0; 25];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"HTTP/1.1 100 Continue\r\n\r\n");
    for piece in ["1\r\n{\r\n", "8\r\n\"model\":\r\n", "8\r\n\"small\"}\r\n", "0\r\n\r\n"] {
        stream.write_all(piece.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut heard = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut heard)).await.unwrap().unwrap();
    assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
    assert_eq!((&site.arrived()[1].body[..], site.charged(&payer)), (&b"{\"model\":\"small\"}"[..], 2 * UNIT));
    // What cannot be JSON is not waited for, at any size, and costs what a request without conditions does.
    let dear = Payer { offer: Payer::new(1, &payer.terms, 5 * UNIT).offer, ..payer.clone() };
    let payment = site.next(&dear, 5 * UNIT).header();
    let upload = vec![b'-'; 40 * MAX_BODY];
    let headers = [("content-type", "multipart/form-data; boundary=x"), ("payment-signature", &payment)];
    let answer = site.ask(Method::POST, "/chat", &headers, upload.clone()).await;
    assert_eq!((answer.status, site.charged(&payer)), (200, 7 * UNIT));
    assert!(site.arrived()[2].body == upload);
}

#[tokio::test]
async fn a_body_nobody_looks_at_is_not_waited_for() {
    let site = site(&[route("/chat", 5, "match = { body = { a = 1 } }"), route("/other", 5, "")].concat()).await;
    let begin = |path: &str| format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n\r\n");
    let mut other = TcpStream::connect(site.address).await.unwrap();
    other.write_all(begin("/other").as_bytes()).await.unwrap();
    let mut heard = [0; 12];
    tokio::time::timeout(PATIENCE, other.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"HTTP/1.1 402");
    let mut chat = TcpStream::connect(site.address).await.unwrap();
    chat.write_all(begin("/chat").as_bytes()).await.unwrap();
    let silent = tokio::time::timeout(Duration::from_millis(200), chat.read_exact(&mut heard)).await;
    assert!(silent.is_err(), "its price depends on what comes");
    chat.write_all(b"{\"a\":1}").await.unwrap();
    tokio::time::timeout(PATIENCE, chat.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"HTTP/1.1 402");
}

#[tokio::test]
async fn options_of_a_path_with_conditions_are_answered_for_all_of_them() {
    let site = site(
        &[
            route("/c", 5, "methods = [\"POST\"]\nmatch = { body = { a = 1 } }"),
            route("/c", 5, "methods = [\"GET\"]\nmatch = { query = { a = \"1\" } }"),
        ]
        .concat(),
    )
    .await;
    let answer = site.ask(Method::OPTIONS, "/c", &[], Bytes::new()).await;
    assert_eq!((answer.status, &answer.headers["allow"]), (204, &"GET, HEAD, OPTIONS, POST".parse().unwrap()));
    let answer = site.ask(Method::PUT, "/c", &[], Bytes::new()).await;
    assert_eq!((answer.status, answer.code()), (405, "method_not_allowed".to_owned()));
}

// ---- lists of payers and prices of their own

#[tokio::test]
async fn who_may_not_pay_is_told_so_and_charged_nothing() {
    let (partner, stranger) = (anybody(1), anybody(2));
    let routes = [
        route("/allowed", 2, "allow = [\"partners\"]"),
        route("/denied", 2, "deny = [\"partners\"]"),
        partners(&partner),
    ];
    let site = site(&routes.concat()).await;
    let (partner, stranger) = (site.payer(1, 2 * UNIT), {
        assert_ne!(partner.address(), stranger.address());
        site.payer(2, 2 * UNIT)
    });
    for (payer, allowed, denied) in [(&partner, 200, 403), (&stranger, 403, 200)] {
        for (path, expected) in [("/allowed", allowed), ("/denied", denied)] {
            let before = site.charged(payer);
            let answer = site.pay(payer, 2 * UNIT, path, &[]).await;
            assert_eq!(answer.status, expected, "{path}");
            assert_eq!(answer.code(), if expected == 403 { "payer_not_allowed" } else { "" });
            assert_eq!(site.charged(payer) - before, if expected == 403 { 0 } else { 2 * UNIT });
        }
    }
    // Who signs for somebody else learns nothing of the list.
    let forged = site.next(&partner, 2 * UNIT).set("/payload/voucher/signature", format!("0x{}1b", "11".repeat(64)));
    let answer = site.get("/denied", &[("payment-signature", &forged.header())]).await;
    assert_eq!(answer.code(), "invalid_batch_settlement_evm_voucher_signature");
    // Anybody is told the price.
    assert_eq!(site.get("/allowed", &[]).await.quoted(), 2 * UNIT);
    assert_eq!(site.arrived().len(), 2);
}

#[tokio::test]
async fn a_payer_with_a_price_of_its_own_signs_for_the_quote_and_is_charged_that() {
    let (partner, friend) = (anybody(1), anybody(3));
    let routes = [
        route(
            "/x",
            10,
            "[[route.for]]\npayers = [\"partners\"]\nprice = \"$0.004\"\n[[route.for]]\npayers = [\"partners\", \"friends\"]\nprice = \"free\"",
        ),
        partners(&partner),
        format!("friends = [\"{}\"]\n", friend.address()),
    ];
    let site = site(&routes.concat()).await;
    assert_eq!(site.get("/x", &[]).await.quoted(), 10 * UNIT);
    for (number, expected, half, told) in [(1, 4, 2, "4000"), (2, 10, 5, "10000"), (3, 0, 0, "0")] {
        let payer = site.payer(number, 10 * UNIT);
        let answer = site.pay(&payer, 10 * UNIT, "/x", &[]).await;
        assert_eq!((answer.status, site.charged(&payer)), (200, expected * UNIT), "payer {number}");
        assert_eq!(site.arrived().last().unwrap().headers["x-peaje-charged"], told);
        let before = site.charged(&payer);
        site.pay(&payer, 10 * UNIT, "/x", &[("x-report", r#"{"amount":"50%"}"#)]).await;
        assert_eq!(site.charged(&payer) - before, half * UNIT, "half of what it would have been");
        let before = site.charged(&payer);
        site.pay(&payer, 10 * UNIT, "/x", &[("x-answer", "500")]).await;
        assert_eq!(site.charged(&payer), before);
    }
}

/// A price list that takes the place of a site's.
fn policy(routes: &[String]) -> Policy {
    let text = format!("{HEAD}\n{}", routes.concat());
    Config::parse(&text, "routes.toml").unwrap_or_else(|errors| panic!("{errors}")).policy(Address([2; 20])).unwrap()
}

#[tokio::test]
async fn who_names_somebody_else_as_the_payer_has_nothing_of_it() {
    let (partner, friend) = (anybody(1), anybody(3));
    let routes = [
        route("/own", 10, "[[route.for]]\npayers = [\"partners\"]\nprice = \"free\""),
        route("/allowed", 10, "allow = [\"partners\"]"),
        route("/denied", 10, "deny = [\"friends\"]"),
        partners(&partner),
        format!("friends = [\"{}\"]\n", friend.address()),
    ];
    let site = site(&routes.concat()).await;
    // The contract takes a deposit into such a channel from everybody.
    let naming = |named: &Payer| {
        let mut payer = Payer::new(2, site.gate.policy().terms(), 10 * UNIT);
        payer.config.payer = named.address();
        site.fund(&payer);
        payer
    };
    let impostor = naming(&partner);
    assert_eq!(site.pay(&impostor, 10 * UNIT, "/own", &[]).await.status, 200);
    assert_eq!(site.charged(&impostor), 10 * UNIT, "the price of whoever signed");
    let told = site.arrived().last().unwrap().headers["x-peaje-payer"].to_str().unwrap().to_owned();
    assert_eq!(told.to_lowercase(), impostor.address().to_string().to_lowercase(), "and so the upstream is told");
    assert_eq!(site.pay(&impostor, 10 * UNIT, "/allowed", &[]).await.code(), "payer_not_allowed");
    assert_eq!(site.pay(&impostor, 10 * UNIT, "/denied", &[]).await.status, 200);
    // Who is denied cannot have a fresh key sign.
    assert_eq!(site.pay(&naming(&friend), 10 * UNIT, "/denied", &[]).await.code(), "payer_not_allowed");
    // A payer's own price is for what its listed key signs, whatever account the money is from.
    let mut delegating = site.payer(1, 10 * UNIT);
    delegating.config.payer = friend.address();
    site.fund(&delegating);
    assert_eq!(site.pay(&delegating, 10 * UNIT, "/own", &[]).await.status, 200);
    assert_eq!(site.charged(&delegating), 0);
}

#[tokio::test]
async fn a_former_offer_holds_for_its_price_and_not_against_who_may_pay_now() {
    let partner = anybody(1);
    let of = |price, more: &str| vec![route("/x", price, more), partners(&partner)];
    let lists = ["deny = [\"partners\"]", "allow = [\"partners\"]"];
    for (list, denied, allowed) in [(lists[0], 1, 2), (lists[1], 2, 1)] {
        let site = site(&of(2, "").concat()).await;
        let [denied, allowed] = [denied, allowed].map(|number| site.payer(number, 2 * UNIT));
        site.gate.replace_policy(policy(&of(3, list)), PATIENCE);
        let answer = site.pay(&denied, 2 * UNIT, "/x", &[]).await;
        assert_eq!((answer.status, answer.code()), (403, "payer_not_allowed".to_owned()), "{list}");
        assert_eq!(site.pay(&allowed, 2 * UNIT, "/x", &[]).await.status, 200, "{list}");
        assert_eq!((site.charged(&denied), site.charged(&allowed)), (0, 2 * UNIT), "{list}");
    }
    // Who was not let pay by the former list pays by the one in force.
    let site = site(&of(2, lists[0]).concat()).await;
    let denied = site.payer(1, 2 * UNIT);
    site.gate.replace_policy(policy(&of(3, "")), PATIENCE);
    assert_eq!(site.pay(&denied, 2 * UNIT, "/x", &[]).await.status, 403, "its offer was never for this payer");
    let current = Payer::new(1, site.gate.policy().terms(), 3 * UNIT);
    assert_eq!(site.pay(&current, 3 * UNIT, "/x", &[]).await.status, 200);
}

#[tokio::test]
async fn what_only_watched_gives_nothing_away_once_it_does_not() {
    let of = |price, more: &str| vec![route("/x", price, more)];
    let shadow = "shadow = true";
    let site = site(&of(2, shadow).concat()).await;
    let payer = site.payer(1, 2 * UNIT);
    assert_eq!(site.pay(&payer, 2 * UNIT, "/x", &[]).await.status, 200);
    site.gate.replace_policy(policy(&of(3, "")), PATIENCE);
    let answer = site.pay(&payer, 2 * UNIT, "/x", &[]).await;
    assert_eq!((answer.status, answer.quoted()), (402, 3 * UNIT));
    // And what only watches now charges nobody by what it was before.
    site.gate.replace_policy(policy(&of(4, shadow)), PATIENCE);
    assert_eq!(site.pay(&payer, 3 * UNIT, "/x", &[]).await.status, 200);
    assert_eq!(site.charged(&payer), 0);
}

// ---- what was paid for before, and refunds

/// The header of a payment that has a name.
fn named(site: &Site, payer: &Payer, price: u128, id: &str) -> String {
    let mut payer = payer.clone();
    payer.extensions = site.gate.policy().first_paid().unwrap().route.extensions.clone();
    payer.extensions["payment-identifier"]["info"]["id"] = id.into();
    site.next(&payer, price).header()
}

#[tokio::test]
async fn an_answer_that_was_charged_comes_again_whatever_its_status_and_no_other_does() {
    let site = site(&route("/x", 10, "charge_on = { \"404\" = \"10%\", \"304\" = \"0%\" }")).await;
    let payer = site.payer(1, 10 * UNIT);
    for (number, status, charge) in [(1_u8, "404", 1), (2, "304", 0), (3, "200", 10), (4, "410", 0)] {
        let (before, arrived) = (site.charged(&payer), site.arrived().len());
        let payment = named(&site, &payer, 10 * UNIT, &format!("request-number-{number}"));
        let headers = [("payment-signature", payment.as_str()), ("x-answer", status)];
        for again in [false, true] {
            let answer = site.get("/x", &headers).await;
            assert_eq!(answer.status.to_string(), status, "{again}");
            assert_eq!(answer.headers.contains_key("idempotent-replayed"), again && charge > 0, "{status}");
            assert_eq!(site.charged(&payer) - before, charge * UNIT, "{status}");
        }
        assert_eq!(site.arrived().len() - arrived, if charge > 0 { 1 } else { 2 }, "{status}");
    }
}

#[tokio::test]
async fn a_lost_answer_is_there_when_its_offer_does_not_hold_any_more() {
    let of = |price| vec![route("/x", price, "")];
    let site = site(&of(2).concat()).await;
    let payer = site.payer(1, 2 * UNIT);
    let payment = named(&site, &payer, 2 * UNIT, "request-number-1");
    assert_eq!(site.get("/x", &[("payment-signature", &payment)]).await.status, 200);
    site.gate.replace_policy(policy(&of(3)), Duration::ZERO);
    let again = site.get("/x", &[("payment-signature", &payment)]).await;
    assert_eq!((again.status, again.headers.contains_key("idempotent-replayed")), (200, true));
    let other = named(&site, &payer, 2 * UNIT, "request-number-2");
    let other = site.get("/x", &[("payment-signature", &other)]).await;
    assert_eq!((other.status, other.quoted()), (402, 3 * UNIT), "what was not paid for costs what it costs now");
    assert_eq!((site.charged(&payer), site.arrived().len()), (2 * UNIT, 1));
}

#[tokio::test]
async fn a_refund_is_taken_on_any_path_whatever_it_costs_there() {
    let metered =
        "[[route]]\npath = \"/metered\"\n[route.price]\nmost = \"$0.01\"\nresponse_bytes = \"$0.001 / 1 KiB\"\n";
    let site = site(&[metered, &route("/x", 2, "")].concat()).await;
    let payer = site.payer(1, 2 * UNIT);
    for path in ["/x", "/metered", "/unknown"] {
        let refund = payer.refund(0, None).header();
        // No chain is behind this gate: so far comes only what is good.
        let answer = site.get(path, &[("payment-signature", &refund)]).await;
        assert_eq!(answer.code(), "invalid_batch_settlement_evm_rpc_read_failed", "{path}");
    }
}

// ---- quotas and caps

#[tokio::test]
async fn a_payers_first_requests_are_free_and_what_fails_is_none_of_them() {
    let site = site(&route("/x", 2, "free = { requests = 2, per = \"365d\", by = \"payer\" }")).await;
    let payer = site.payer(1, 2 * UNIT);
    assert_eq!(site.get("/x", &[]).await.status, 402, "a voucher is needed all the same");
    let mut sums = Vec::new();
    for status in ["500", "200", "404", "200", "200", "500", "200"] {
        site.pay(&payer, 2 * UNIT, "/x", &[("x-answer", status)]).await;
        sums.push(site.charged(&payer) / UNIT);
    }
    assert_eq!(sums, [0, 0, 0, 0, 2, 2, 4]);
    let other = site.payer(2, 2 * UNIT);
    site.pay(&other, 2 * UNIT, "/x", &[]).await;
    assert_eq!(site.charged(&other), 0, "others have theirs");
}

/// Requests of one payer on so many of its channels at once, and the sum of what they are charged.
async fn all_at_once(site: &Site, channels: u8, price: u128, headers: &[(&str, &str)]) -> u128 {
    let payer = site.payer(1, price);
    let payers: Vec<_> = (1..=channels).map(|salt| payer.with_salt(salt)).collect();
    payers.iter().for_each(|payer| site.fund(payer));
    let answers =
        futures_util::future::join_all(payers.iter().map(|payer| site.pay(payer, price, "/x", headers))).await;
    assert!(answers.iter().all(|answer| answer.status == 200 || answer.status == 500));
    payers.iter().map(|payer| site.charged(payer)).sum()
}

#[tokio::test]
async fn requests_at_once_never_use_more_than_the_free_ones() {
    let site = site(&route("/x", 2, "free = { requests = 7, per = \"365d\", by = \"payer\" }")).await;
    let sum = all_at_once(&site, 24, 2 * UNIT, &[("x-wait", "50")]).await;
    assert_eq!(sum, (24 - 7) * 2 * UNIT);
}

#[tokio::test]
async fn requests_at_once_are_never_charged_more_than_the_cap() {
    let site = site(&route("/x", 2, "cap = { payer = \"$0.025\", per = \"365d\" }")).await;
    let sum = all_at_once(&site, 24, 2 * UNIT, &[("x-wait", "50")]).await;
    assert_eq!(sum, 25 * UNIT);
    let payer = site.payer(1, 2 * UNIT);
    assert_eq!(site.pay(&payer, 2 * UNIT, "/x", &[]).await.status, 200);
    assert_eq!(site.charged(&payer), 0, "what comes after costs nothing");
    let other = site.payer(2, 2 * UNIT);
    site.pay(&other, 2 * UNIT, "/x", &[]).await;
    assert_eq!(site.charged(&other), 2 * UNIT);
}

#[tokio::test]
async fn who_leaves_is_charged_what_is_left_of_the_cap() {
    let site = site(&route("/x", 2, "cap = { payer = \"$0.001\", per = \"365d\" }")).await;
    let payer = site.payer(1, 2 * UNIT);
    let payment = site.next(&payer, 2 * UNIT).header();
    let headers = [("payment-signature", payment.as_str()), ("x-wait", "5000")];
    let arrives = async {
        while site.arrived().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        answer = site.get("/x", &headers) => panic!("it is not to be answered yet: {answer:?}"),
        () = arrives => {}
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while site.charged(&payer) == 0 {
        assert!(tokio::time::Instant::now() < deadline, "it was sent, so it is charged");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(site.charged(&payer), UNIT);
}

#[tokio::test]
async fn a_networks_first_requests_need_no_payment() {
    let site = site(&route("/x", 2, "free = { requests = 3, per = \"365d\", by = \"network\" }")).await;
    let payer = site.payer(1, 2 * UNIT);
    assert_eq!(site.pay(&payer, 2 * UNIT, "/x", &[]).await.status, 200);
    assert_eq!(site.charged(&payer), 2 * UNIT, "who pays is charged");
    for _ in 0..9 {
        assert_eq!(site.get("/x", &[("x-answer", "503")]).await.status, 503, "what fails does not count");
        assert_eq!(site.get("/x", &[("x-grpc", "14")]).await.status, 200, "nor does a call that fails");
    }
    let waited = [("x-wait", "50")];
    let answers = futures_util::future::join_all((0..12).map(|_| site.get("/x", &waited))).await;
    let (served, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!((served.len(), refused.len()), (3, 9));
    assert!(served.iter().all(|answer| answer.headers["cache-control"] == "private"));
    assert!(refused.iter().all(|answer| answer.status == 402 && answer.quoted() == 2 * UNIT));
    assert!(site.arrived().last().unwrap().headers.get("x-peaje-payer").is_none());
}

// ---- rates

#[tokio::test]
async fn who_comes_too_fast_is_told_when_to_come_again() {
    let rate = "rate = { per_payer = \"2 / 1d\", unpaid = \"3 / 1d\" }";
    let own = route("/own", 2, "rate = { per_payer = \"1 / 1d\" }");
    let site = site(&[route("/x", 2, ""), route("/y", 2, ""), own, format!("[limits]\n{rate}\n")].concat()).await;
    let payer = site.payer(1, 2 * UNIT);
    for path in ["/x", "/y"] {
        assert_eq!(site.pay(&payer, 2 * UNIT, path, &[]).await.status, 200);
    }
    let answer = site.pay(&payer, 2 * UNIT, "/x", &[]).await;
    assert_eq!((answer.status, answer.code()), (429, "payer_rate_limited".to_owned()));
    let retry: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((43_100..=43_200).contains(&retry), "{retry}");
    assert_eq!(site.charged(&payer), 4 * UNIT);
    assert_eq!(site.pay(&payer, 2 * UNIT, "/own", &[]).await.status, 200, "counted apart");
    assert_eq!(site.pay(&payer, 2 * UNIT, "/own", &[]).await.status, 429);
    let other = site.payer(2, 2 * UNIT);
    assert_eq!(site.pay(&other, 2 * UNIT, "/x", &[]).await.status, 200, "others have theirs");
    let unpaid = [site.get("/x", &[]).await, site.get("/y", &[]).await, site.get("/x", &[]).await];
    assert!(unpaid.iter().all(|answer| answer.status == 402));
    let answer = site.get("/y", &[]).await;
    assert_eq!((answer.status, answer.code()), (429, "unpaid_rate_limited".to_owned()));
    assert!(answer.headers.contains_key("retry-after") && !answer.headers.contains_key("payment-required"));
    for junk in [("x-payment", "1"), ("payment-signature", "e30="), ("payment-signature", "?")] {
        assert_eq!(site.get("/y", &[junk]).await.status, 429, "what answers no offer is no payment");
    }
    for _ in 0..5 {
        assert_eq!(site.get("/own", &[]).await.status, 402, "its own rate says nothing of the unpaid");
    }
    let stranger =
        Payer { offer: serde_json::json!(site.gate.policy().terms().offer(Amount::new(7))), ..other.clone() };
    let answer = site.get("/y", &[("payment-signature", &stranger.voucher(9 * UNIT).header())]).await;
    assert_eq!(answer.status, 429, "nor is what answers an offer that nobody made");
    // Whoever brings a payment is not among them.
    assert_eq!(site.pay(&other, 2 * UNIT, "/y", &[]).await.status, 200);
}

// ---- shadow mode

#[tokio::test]
async fn a_route_that_only_watches_serves_all_and_charges_nobody() {
    let shadow = "shadow = true\ndeny = [\"partners\"]\nmatch = { query = { m = \"*\" } }";
    let site = site(&[route("/x", 2, shadow), partners(&anybody(1))].concat()).await;
    let (denied, payer) = (site.payer(1, 2 * UNIT), site.payer(2, 2 * UNIT));
    let served = async |headers: &[(&str, &str)], path: &str| {
        let answer = site.get(path, headers).await;
        let of_payment = |name: &http::HeaderName| name.as_str().starts_with("payment-");
        assert_eq!((answer.status, answer.headers.keys().any(of_payment)), (200, false), "{path} {headers:?}");
    };
    served(&[], "/x?m=1").await;
    served(&[("payment-signature", "nonsense")], "/x?m=1").await;
    served(&[("payment-signature", &site.next(&denied, 2 * UNIT).header())], "/x?m=1").await;
    served(&[("payment-signature", &site.next(&payer, UNIT).header())], "/x?m=1").await;
    served(&[], "/x").await;
    served(&[], "/x?m=1&m=2").await;
    let counts = WatchedCounts { refused: 6, charged: 0, free: 0 };
    assert_eq!(site.gate.watched(), counts);
    let voucher = site.next(&payer, 2 * UNIT).header();
    for _ in 0..2 {
        served(&[("payment-signature", &voucher)], "/x?m=1").await;
    }
    assert_eq!(site.gate.watched(), WatchedCounts { charged: 2, ..counts });
    assert_eq!((site.charged(&payer), site.arrived().len()), (0, 8), "the same voucher is good again");
    assert!(site.arrived().iter().all(|arrived| !arrived.headers.contains_key("payment-signature")));
    assert_eq!(site.arrived()[4].target, "/x");
}
