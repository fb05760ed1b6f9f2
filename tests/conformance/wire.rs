//! Cases 1 to 8: the wire.

use http::{Method, StatusCode};
use peaje::protocol::x402::{self, MAX_PAYMENT_HEADER_BYTES};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::harness::{PAY_TO, PRICE, PUBLIC_URL, World, WorldOptions};

#[tokio::test]
async fn case_01_an_unpaid_get_is_quoted_and_the_upstream_never_hears_of_it() {
    let world = World::start(WorldOptions::default()).await;
    let before = world.tally().await;

    let answer = world.get("/paid?city=Madrid").await;

    answer.assert_refused(402, "Payment required");
    // Standard alphabet: a stock client throws at the URL-safe one.
    let header = answer.header(x402::PAYMENT_REQUIRED).unwrap();
    let (digits, padding) = header.split_at(header.trim_end_matches('=').len());
    assert!(digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')), "{header}");
    assert!(padding.len() <= 2, "{header}");
    let quote = answer.quote().unwrap();
    assert_eq!(quote["x402Version"], json!(2));
    assert_eq!(
        quote["resource"],
        json!({
            "url": format!("{PUBLIC_URL}/paid?city=Madrid"),
            "description": "Something worth paying for",
            "mimeType": "text/plain",
        })
    );
    let offer = &quote["accepts"][0];
    assert_eq!(offer["scheme"], json!("batch-settlement"));
    assert_eq!(offer["network"], json!("eip155:84532"));
    assert_eq!(offer["amount"], json!("2000"));
    assert_eq!(offer["asset"], json!("0x036CbD53842c5426634e7929541eC2318f3dCF7e"));
    assert!(offer["payTo"].as_str().unwrap().eq_ignore_ascii_case(PAY_TO));
    assert_eq!(offer["maxTimeoutSeconds"], json!(world.terms.max_timeout_s));
    let extra = &offer["extra"];
    assert_eq!(extra["receiverAuthorizer"], json!(world.terms.receiver_authorizer));
    assert_eq!(extra["withdrawDelay"], json!(world.terms.withdraw_delay_s), "a JSON number");
    assert_eq!((&extra["name"], &extra["version"]), (&json!("USDC"), &json!("2")));
    assert!(extra.get("channelState").is_none() && extra.get("minDeposit").is_none());
    assert_eq!(quote["accepts"].as_array().unwrap().len(), 1);
    world.assert_untouched(&before).await;
    world.finish(0).await;
}

/// The rest of a 10 MB body is sent after the answer was read, and the same socket serves the next request.
#[tokio::test]
async fn case_02_a_large_unpaid_post_is_refused_early_and_its_connection_lives_on() {
    const BODY: usize = 10 * 1024 * 1024;
    let world = World::start(WorldOptions::default()).await;
    let before = world.tally().await;
    let mut socket = TcpStream::connect(world.site.address()).await.unwrap();
    let head = format!("POST /paid HTTP/1.1\r\nhost: api.example.test\r\ncontent-length: {BODY}\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&[b'x'; 1024]).await.unwrap();

    let refusal = read_answer(&mut socket).await;

    assert!(refusal.starts_with("http/1.1 402 "), "{refusal}");
    assert!(refusal.contains("\r\npayment-required: "), "{refusal}");
    assert!(refusal.contains("\r\ncache-control: no-store\r\n"), "{refusal}");
    assert!(!refusal.contains("\r\nconnection: close"), "{refusal}");
    world.assert_untouched(&before).await;
    let rest = vec![b'x'; BODY - 1024];
    socket.write_all(&rest).await.unwrap();
    socket.write_all(b"GET /free HTTP/1.1\r\nhost: api.example.test\r\n\r\n").await.unwrap();
    let next = read_answer(&mut socket).await;
    assert!(next.starts_with("http/1.1 200 ") && next.ends_with("served"), "{next}");
    assert_eq!(world.upstream.last_call().target, "/free");
    assert_eq!(world.upstream_calls(), 1, "the body of the refused request went nowhere");
    world.finish(0).await;
}

/// There is a limit to what is read only to be thrown away: beyond it the answer still comes, and then the connection
/// ends.
#[tokio::test]
async fn case_02_an_endless_unpaid_post_is_answered_and_then_cut_off() {
    let world = World::start(WorldOptions::default()).await;
    let before = world.tally().await;
    let mut socket = TcpStream::connect(world.site.address()).await.unwrap();
    let head = "POST /paid HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();

    let refusal = read_answer(&mut socket).await;
    assert!(refusal.starts_with("http/1.1 402 "), "{refusal}");
    let mut chunk = b"10000\r\n".to_vec();
    chunk.extend([b'x'; 0x10000]);
    chunk.extend(b"\r\n");
    let mut written = 0;
    while socket.write_all(&chunk).await.is_ok() {
        written += chunk.len();
        assert!(written < 64 * 1024 * 1024, "nobody stops reading");
    }

    world.assert_untouched(&before).await;
    world.get("/paid").await.assert_refused(402, "Payment required");
    world.finish(0).await;
}

/// A client that asks before it sends is told the price instead of being invited to send.
#[tokio::test]
async fn case_02_a_client_that_expects_100_continue_is_quoted_instead() {
    let world = World::start(WorldOptions::default()).await;
    let before = world.tally().await;
    let mut socket = TcpStream::connect(world.site.address()).await.unwrap();
    let head = "POST /paid HTTP/1.1\r\nhost: x\r\ncontent-length: 10485760\r\nexpect: 100-continue\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();

    let refusal = read_answer(&mut socket).await;

    assert!(refusal.starts_with("http/1.1 402 "), "{refusal}");
    world.assert_untouched(&before).await;
    world.finish(0).await;
}

/// A paid POST of the same size arrives whole.
#[tokio::test]
async fn case_02_a_large_paid_post_arrives_whole() {
    let world = World::start(WorldOptions::default()).await;
    let payment = world.payer(1).deposit(5 * PRICE, PRICE);
    let body = vec![7; 10 * 1024 * 1024];

    let answer = world.send(Method::POST, "/paid", &[(x402::PAYMENT_SIGNATURE, &payment.header())], body).await;

    answer.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, PRICE);
    assert_eq!(world.upstream.last_call().body_bytes, 10 * 1024 * 1024);
    world.finish(PRICE).await;
}

#[tokio::test]
async fn case_03_head_costs_what_get_costs() {
    let more = "[[route]]\npath = \"/read\"\nmethods = [\"GET\"]\nprice = \"$0.002\"";
    let world = World::start(WorldOptions { more: more.to_owned(), ..WorldOptions::default() }).await;
    let before = world.tally().await;

    for path in ["/paid", "/read"] {
        let answer = world.send(Method::HEAD, path, &[], "").await;
        assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED);
        assert_eq!(answer.quote().unwrap()["error"], json!("Payment required"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert!(answer.receipt().is_none() && answer.body.is_empty());
    }
    world.assert_untouched(&before).await;
    // Paid for, it is served as what it is.
    let payment = world.payer(1).deposit(5 * PRICE, PRICE).header();
    let answer = world.send(Method::HEAD, "/read", &[(x402::PAYMENT_SIGNATURE, &payment)], "").await;
    answer.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, PRICE);
    assert_eq!(world.upstream.last_call().method, Method::HEAD);
    world.finish(PRICE).await;
}

#[tokio::test]
async fn case_04_a_preflight_is_free_and_browsers_may_read_every_answer() {
    const ORIGIN: (&str, &str) = ("origin", "https://agent.example");
    let world = World::start(WorldOptions::default()).await;
    let before = world.tally().await;

    let asked = "payment-signature, access-control-expose-headers";
    let ask = [ORIGIN, ("access-control-request-method", "GET"), ("access-control-request-headers", asked)];
    let preflight = world.send(Method::OPTIONS, "/paid", &ask, "").await;

    assert!(preflight.status.is_success(), "{preflight:?}");
    assert_eq!(preflight.header("access-control-allow-origin"), Some("*"));
    let allowed = preflight.header("access-control-allow-headers").unwrap().to_ascii_lowercase();
    for name in asked.split(", ") {
        assert!(allowed.split(',').any(|allowed| allowed.trim() == name), "{allowed}");
    }
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("GET"));
    assert!(preflight.quote().is_none());
    let unpaid = world.send(Method::GET, "/paid", &[ORIGIN], "").await;
    unpaid.assert_refused(402, "Payment required");
    assert_readable_by_scripts(&unpaid.headers);
    // An OPTIONS that is no preflight is free too, and the upstream of a paid route does not work for it.
    let options = world.send(Method::OPTIONS, "/paid", &[], "").await;
    assert!(options.status.is_success() && options.header("allow").unwrap().contains("GET"), "{options:?}");
    world.assert_untouched(&before).await;

    let payment = world.payer(1).deposit(5 * PRICE, PRICE).header();
    let expose = ("access-control-expose-headers", "PAYMENT-RESPONSE,X-PAYMENT-RESPONSE");
    let paid = world.send(Method::GET, "/paid", &[ORIGIN, expose, (x402::PAYMENT_SIGNATURE, &payment)], "").await;
    paid.assert_served();
    assert_readable_by_scripts(&paid.headers);
    world.finish(PRICE).await;
}

#[track_caller]
fn assert_readable_by_scripts(headers: &http::HeaderMap) {
    assert_eq!(headers.get("access-control-allow-origin").unwrap(), "*");
    let lists = headers.get_all("access-control-expose-headers").iter();
    let exposed: Vec<_> = lists.map(|list| list.to_str().unwrap().to_ascii_lowercase()).collect();
    let exposed = exposed.join(",");
    for name in ["payment-required", "payment-response", "x-payment-response"] {
        assert!(exposed.split(',').any(|exposed| exposed.trim() == name), "{name} in {exposed}");
    }
}

#[tokio::test]
async fn case_05_a_header_that_cannot_be_read_is_refused_and_harms_nobody() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;
    let before = world.tally().await;
    let good = payer.voucher(2 * PRICE);
    let base64 = |text: &str| base64_of(text.as_bytes());
    let url_safe = base64("{\"x402Version\": 2, \"?>?>?>\": \"~~~~~~\"}").replace('+', "-").replace('/', "_");
    assert!(url_safe.contains(['-', '_']));

    let unreadable = [
        "garbage!".to_owned(),
        String::new(),
        "=".to_owned(),
        "A".to_owned(),
        base64("not JSON"),
        base64("[]"),
        base64("{}"),
        base64("null"),
        base64(&"[".repeat(10_000)),
        base64("{\"x402Version\": 2"),
        base64_of(&[0xff, 0xfe, 0x00]),
        url_safe,
        format!("{}!", good.header()),
        good.header().chars().rev().collect(),
        "A".repeat(MAX_PAYMENT_HEADER_BYTES),
    ];
    for header in unreadable {
        let answer = world.send(Method::GET, "/paid", &[(x402::PAYMENT_SIGNATURE, &header)], "").await;
        answer.assert_refused(400, "malformed_payment");
    }
    // One byte above the limit, the header is not even looked at.
    let long = "A".repeat(MAX_PAYMENT_HEADER_BYTES + 1);
    let answer = world.send(Method::GET, "/paid", &[(x402::PAYMENT_SIGNATURE, &long)], "").await;
    answer.assert_refused(431, "payment_header_too_large");
    // Far above it, the listener itself refuses.
    let endless = "A".repeat(100 * 1024);
    let answer = world.send(Method::GET, "/paid", &[(x402::PAYMENT_SIGNATURE, &endless)], "").await;
    assert_eq!(answer.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    world.assert_untouched(&before).await;

    world.pay("/paid", &good).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

/// Well-formed JSON with a hole in it: the code says which part.
#[tokio::test]
async fn case_05_a_payload_that_is_incomplete_names_its_part() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;
    let before = world.tally().await;
    let (voucher, deposit) = (payer.voucher(2 * PRICE), payer.deposit(5 * PRICE, 2 * PRICE));
    let erc3009 = "/payload/deposit/authorization/erc3009Authorization";
    let permit2 = json!({"from": payer.address(), "signature": "0x"});

    let cases = [
        (voucher.clone().without("/payload/type"), "payload_type"),
        (voucher.clone().set("/payload/type", "claim"), "payload_type"),
        (voucher.clone().without("/payload"), "payload_type"),
        (voucher.clone().without("/payload/channelConfig"), "voucher_payload"),
        (voucher.clone().without("/payload/channelConfig/salt"), "voucher_payload"),
        (voucher.clone().without("/payload/voucher"), "voucher_payload"),
        (voucher.clone().without("/payload/voucher/signature"), "voucher_payload"),
        (voucher.clone().set("/payload/voucher/maxClaimableAmount", 4_000), "voucher_payload"),
        (voucher.clone().set("/payload/voucher/maxClaimableAmount", "-1"), "voucher_payload"),
        (voucher.clone().set("/payload/voucher/maxClaimableAmount", "4e3"), "voucher_payload"),
        (deposit.clone().without("/payload/deposit"), "deposit_payload"),
        (deposit.clone().set("/payload/deposit/amount", "0"), "deposit_payload"),
        (deposit.clone().set("/payload/deposit/amount", 10_000), "deposit_payload"),
        (deposit.clone().set(&format!("{erc3009}/validBefore"), "soon"), "deposit_payload"),
        (deposit.clone().without(erc3009), "erc3009_authorization_required"),
        (
            deposit
                .clone()
                .without(erc3009)
                .set("/payload/deposit/authorization/permit2Authorization", permit2.clone()),
            "erc3009_authorization_required",
        ),
        (deposit.set("/payload/deposit/authorization/permit2Authorization", permit2), "deposit_payload"),
    ];
    for (payment, code) in cases {
        world.pay("/paid", &payment).await.assert_scheme_refusal(code);
    }
    world.assert_untouched(&before).await;
    world.pay("/paid", &voucher).await.assert_served();
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_06_another_protocol_version_is_not_served() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;
    let before = world.tally().await;
    let good = payer.voucher(2 * PRICE);

    for (version, shown) in [(json!(1), "1"), (json!(3), "3"), (json!("2"), "\"2\""), (json!(-2), "-2")] {
        let answer = world.pay("/paid", &good.clone().set("/x402Version", version)).await;
        answer.assert_refused(402, &format!("Unsupported x402 version: {shown}"));
    }
    // Version 1 has a header of its own, under which nothing can be paid here, whatever is in it.
    let answer = world.send(Method::GET, "/paid", &[(x402::X_PAYMENT, &good.header())], "").await;
    answer.assert_refused(402, "Unsupported x402 version: 1");
    world.assert_untouched(&before).await;

    world.pay("/paid", &good).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_07_accepted_must_match_the_offer() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;
    let before = world.tally().await;
    let good = payer.voucher(2 * PRICE);
    let somebody = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C";

    let others: [(&str, Value); 17] = [
        ("scheme", json!("exact")),
        ("network", json!("eip155:8453")),
        ("network", json!("base-sepolia")),
        ("amount", json!("1999")),
        ("amount", json!("2001")),
        ("amount", json!(2000)),
        ("amount", json!("02000")),
        ("asset", json!(somebody)),
        ("payTo", json!(somebody)),
        ("maxTimeoutSeconds", json!(world.terms.max_timeout_s + 1)),
        ("maxTimeoutSeconds", json!(world.terms.max_timeout_s.to_string())),
        ("extra/receiverAuthorizer", json!(somebody)),
        ("extra/withdrawDelay", json!(world.terms.withdraw_delay_s + 1)),
        ("extra/withdrawDelay", json!(world.terms.withdraw_delay_s.to_string())),
        ("extra/name", json!("USD Coin")),
        ("extra/version", json!("1")),
        ("extra", json!({})),
    ];
    for (field, value) in others {
        let payment = good.clone().set(&format!("/accepted/{field}"), value.clone());
        world.pay("/paid", &payment).await.assert_refused(402, "No matching payment requirements");
    }
    let fields = ["scheme", "network", "amount", "asset", "payTo", "maxTimeoutSeconds", "extra", "extra/name"];
    for field in fields {
        let payment = good.clone().without(&format!("/accepted/{field}"));
        world.pay("/paid", &payment).await.assert_refused(402, "No matching payment requirements");
    }
    let payment = good.clone().without("/accepted");
    world.pay("/paid", &payment).await.assert_refused(402, "No matching payment requirements");
    world.assert_untouched(&before).await;

    world.pay("/paid", &good).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_07_the_client_may_add_keys_and_write_addresses_in_any_case() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;

    let added = payer.voucher(2 * PRICE).set("/accepted/extra/assetTransferMethod", "eip3009");
    let added = added.set("/accepted/extra/channelState", json!({"balance": "1"})).set("/accepted/mine", true);
    world.pay("/paid", &added).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);

    let mut lower = payer.voucher(3 * PRICE);
    for field in ["/accepted/asset", "/accepted/payTo", "/accepted/extra/receiverAuthorizer"] {
        let address = lower.at(field).as_str().unwrap().to_lowercase();
        lower = lower.set(field, address);
    }
    world.pay("/paid", &lower).await.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_08_base64_is_read_with_and_without_padding() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;
    // Some length of the URL makes the text end in "=".
    let padded = |max| {
        (0..3)
            .map(|extra| payer.voucher(max).set("/resource/url", "x".repeat(extra)).header())
            .find(|header| header.ends_with('='))
            .unwrap()
    };

    let header = padded(2 * PRICE);
    let answer = world.send(Method::GET, "/paid", &[(x402::PAYMENT_SIGNATURE, &header)], "").await;
    answer.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);

    let header = padded(3 * PRICE);
    let bare = header.trim_end_matches('=');
    let answer = world.send(Method::GET, "/paid", &[(x402::PAYMENT_SIGNATURE, bare)], "").await;
    answer.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    world.finish(3 * PRICE).await;
}

/// HTTP/2 has lower-case names only; HTTP/1.1 has any.
#[tokio::test]
async fn case_08_header_names_are_read_in_any_case_over_both_protocols() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;

    let unpaid = world.send_h2(Method::GET, "/paid", &[]).await;
    unpaid.assert_refused(402, "Payment required");
    let header = payer.voucher(2 * PRICE).header();
    let answer = world.send_h2(Method::GET, "/paid", &[("payment-signature", &header)]).await;
    answer.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);

    for (name, max) in [("PAYMENT-SIGNATURE", 3 * PRICE), ("pAYMENT-sIGNATURE", 4 * PRICE)] {
        let mut socket = TcpStream::connect(world.site.address()).await.unwrap();
        let header = payer.voucher(max).header();
        let request = format!("GET /paid HTTP/1.1\r\nhost: x\r\n{name}: {header}\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let answer = read_answer(&mut socket).await;
        assert!(answer.starts_with("http/1.1 200 ") && answer.contains("\r\npayment-response: "), "{answer}");
    }
    assert_eq!(world.charged(), 4 * PRICE);
    world.finish(4 * PRICE).await;
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Reads one answer with a `content-length` from a socket, in lower case.
async fn read_answer(socket: &mut TcpStream) -> String {
    let mut text = String::new();
    loop {
        let mut part = [0; 4096];
        let read = socket.read(&mut part).await.unwrap();
        assert!(read > 0, "the connection ended within an answer: {text}");
        text.push_str(&String::from_utf8_lossy(&part[..read]).to_lowercase());
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        if body.len() >= length.parse().unwrap() {
            return text;
        }
    }
}
