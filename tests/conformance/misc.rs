//! Cases 46 to 48: extensions, streams, and headers that cross or must not.

use bytes::Bytes;
use http::{HeaderMap, Method};
use peaje::protocol::x402;
use serde_json::{Value, json};

use super::harness::{Answer, Answered, PRICE, PUBLIC_URL, Payer, World, WorldOptions};

/// `/paid` advertises nothing; `/extended` advertises an extension.
async fn extended_world() -> World {
    let more = r#"
        [[route]]
        path = "/extended"
        price = "$0.002"
        [route.extensions.bazaar]
        info = { input = { method = "GET" }, tags = ["a", "b"] }
        schema = { type = "object" }
    "#;
    World::start(WorldOptions { more: more.to_owned(), ..WorldOptions::default() }).await
}

#[tokio::test]
async fn case_46_an_extension_that_is_echoed_must_be_echoed_whole() {
    let world = extended_world().await;
    let payer = world.opened(1, 5 * PRICE).await;
    let advertised = world.quote("/extended").await["extensions"].clone();
    assert_eq!(advertised["bazaar"]["info"], json!({"input": {"method": "GET"}, "tags": ["a", "b"]}));
    let before = world.tally().await;
    let echoing = |extensions: &Value| {
        let extensions = extensions.as_object().unwrap().clone();
        Payer { extensions, ..payer.clone() }
    };
    let changed = |change: fn(&mut Value)| {
        let mut extensions = advertised.clone();
        change(&mut extensions);
        echoing(&extensions)
    };

    let altered: [fn(&mut Value); 6] = [
        |it| it["bazaar"]["info"]["input"]["method"] = json!("POST"),
        |it| it["bazaar"]["info"]["tags"] = json!(["a"]),
        |it| it["bazaar"]["info"]["input"] = json!({}),
        |it| drop(it["bazaar"]["info"].as_object_mut().unwrap().remove("tags")),
        |it| drop(it["bazaar"].as_object_mut().unwrap().remove("info")),
        |it| it["bazaar"] = json!(null),
    ];
    for change in altered {
        let other = changed(change);
        world.pay("/extended", &other.voucher(2 * PRICE)).await.assert_refused(402, "extension_echo_mismatch");
        let deposit = other.deposit(5 * PRICE, 2 * PRICE);
        world.pay("/extended", &deposit).await.assert_refused(402, "extension_echo_mismatch");
    }
    world.assert_untouched(&before).await;

    // Whole, with additions, or not at all: all fine. So is an extension nobody advertised.
    let echoes: [fn(&mut Value); 4] = [
        |_| (),
        |it| it["bazaar"]["info"]["mine"] = json!(1),
        |it| *it = json!({}),
        |it| *it = json!({"sign-in-with-x": {"info": {"id": "0123456789abcdef"}}}),
    ];
    for (max, change) in (2..).zip(echoes) {
        let answer = world.pay("/extended", &changed(change).voucher(max * PRICE)).await;
        answer.assert_served().assert_voucher_receipt(PRICE, max * PRICE);
    }
    world.finish(5 * PRICE).await;
}

#[tokio::test]
async fn case_47_a_stream_is_passed_on_as_it_comes_and_the_next_call_works() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;
    let (answer, upstream) = Answer::live();
    world.upstream.next(answer.with("content-type", "text/event-stream"));
    let event = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));

    // The head and the first event arrive while the upstream is still holding the second back.
    let mut response = world.pay_streaming("/paid", &payer.voucher(2 * PRICE)).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    upstream.send(event("data: one\n\n")).await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: one\n\n");
    upstream.send(event("data: two\n\n")).await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: two\n\n");
    drop(upstream);
    assert!(response.chunk().await.unwrap().is_none(), "the stream ends as the upstream ended it");

    // Its receipt came with its head, and charges what was quoted.
    let head = Answered { status: response.status(), headers: response.headers().clone(), body: Bytes::new() };
    head.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    world.finish(3 * PRICE).await;
}

/// A channel is not blocked by a stream that is still running: its charge stands since its head left.
#[tokio::test]
async fn case_47_a_running_stream_does_not_block_its_channel() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;
    let (answer, upstream) = Answer::live();
    world.upstream.next(answer);

    let response = world.pay_streaming("/paid", &payer.voucher(2 * PRICE)).await;
    assert_eq!(response.status(), 200);
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    drop((response, upstream));
    world.finish(3 * PRICE).await;
}

/// A payment in the header of version 2.
fn current(value: &str) -> (&str, &str) {
    (x402::PAYMENT_SIGNATURE, value)
}

/// A payment in the header of version 1.
fn old(value: &str) -> (&str, &str) {
    (x402::X_PAYMENT, value)
}

#[tokio::test]
async fn case_48_two_payment_headers_are_one_too_many() {
    let world = World::start(WorldOptions::default()).await;
    let (payer, other) = (world.opened(1, 5 * PRICE).await, world.opened(2, 5 * PRICE).await);
    let before = world.tally().await;
    let (good, also) = (payer.voucher(2 * PRICE).header(), other.voucher(2 * PRICE).header());

    let pairs: [Vec<(&str, &str)>; 5] = [
        vec![current(&good), current(&good)],
        vec![current(&good), current(&also)],
        vec![current(&good), old(&good)],
        vec![old("garbage"), current(&good)],
        vec![old(&good), old(&good)],
    ];
    for pair in pairs {
        let answer = world.send(Method::GET, "/paid", &pair, "").await;
        answer.assert_refused(400, "duplicate_payment_header");
    }
    // Joined into one header, as some proxies do, it is no base64 any more.
    let joined = format!("{good}, {also}");
    let answer = world.send(Method::GET, "/paid", &[current(&joined)], "").await;
    answer.assert_refused(400, "malformed_payment");
    world.assert_untouched(&before).await;

    for paying in [&payer, &other] {
        let answer = world.pay("/paid", &paying.voucher(2 * PRICE)).await;
        answer.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    }
    world.finish(4 * PRICE).await;
}

/// What a client might send to pass for somebody else, or to be served something else than was priced.
const FORGED: [(&str, &str); 19] = [
    ("x-payment-response", "forged"),
    ("payment-required", "forged"),
    ("payment-response", "forged"),
    ("settlement-overrides", "{\"amount\":\"0\"}"),
    ("x-peaje-payer", "forged"),
    ("x-peaje-channel", "forged"),
    ("x-peaje-charged", "forged"),
    ("x-peaje-asset", "forged"),
    ("x-peaje-anything", "forged"),
    ("x-forwarded-for", "6.6.6.6"),
    ("x-forwarded-for", "7.7.7.7"),
    ("x-forwarded-host", "forged.example"),
    ("x-forwarded-proto", "gopher"),
    ("x-real-ip", "6.6.6.6"),
    ("forwarded", "for=6.6.6.6"),
    ("x-http-method-override", "DELETE"),
    ("x-original-url", "/forged"),
    ("x-rewrite-url", "/forged"),
    ("proxy-connection", "forged"),
];

#[tokio::test]
async fn case_48_the_upstream_sees_no_payment_and_no_forgery() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;
    let payment = payer.voucher(2 * PRICE).header();
    let host = world.site.address().to_string();

    let mut headers = FORGED.to_vec();
    headers.extend([(x402::PAYMENT_SIGNATURE, &*payment), ("x-kept", "kept"), ("accept", "text/plain")]);
    world.send(Method::POST, "/paid?a=1&b=%2F", &headers, "body").await.assert_served();

    let call = world.upstream.last_call();
    assert_eq!((call.method, call.target.as_str(), call.body_bytes), (Method::POST, "/paid?a=1&b=%2F", 4));
    assert_no_payment_headers(&call.headers);
    let text = |name: &str| call.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(text("x-peaje-payer"), Some(payer.address().to_string()));
    assert_eq!(text("x-peaje-channel"), Some(payer.id().to_string()));
    assert_eq!(text("x-peaje-charged"), Some(PRICE.to_string()));
    assert_eq!(text("x-peaje-asset"), Some(format!("eip155:84532/erc20:{}", world.terms.token.address)));
    assert_eq!(text("x-forwarded-for"), Some("127.0.0.1".to_owned()));
    assert_eq!(text("x-forwarded-host"), Some(host));
    assert_eq!(text("x-forwarded-proto"), Some("https".to_owned()), "the public URL's");
    assert_eq!((text("x-kept"), text("accept")), (Some("kept".to_owned()), Some("text/plain".to_owned())));
    let forged = |value: &http::HeaderValue| {
        let value = value.to_str().unwrap();
        ["forged", "6.6.6.6", "7.7.7.7", "DELETE"].iter().any(|bad| value.contains(bad))
    };
    assert!(!call.headers.values().any(forged), "{:?}", call.headers);

    // A free route is no way around it.
    world.send(Method::GET, "/free", &headers, "").await;
    let call = world.upstream.last_call();
    assert_eq!(call.target, "/free");
    assert_no_payment_headers(&call.headers);
    assert!(!call.headers.keys().any(|name| name.as_str().starts_with("x-peaje-")), "{:?}", call.headers);
    assert!(!call.headers.values().any(forged), "{:?}", call.headers);
    world.finish(2 * PRICE).await;
}

#[track_caller]
fn assert_no_payment_headers(headers: &HeaderMap) {
    for name in ["payment-signature", "payment-required", "payment-response", "x-payment", "x-payment-response"] {
        assert!(!headers.contains_key(name), "{name}: {headers:?}");
    }
    assert!(!headers.contains_key("settlement-overrides"), "{headers:?}");
}

/// An answer that would speak for the proxy.
fn impostor(status: u16) -> Answer {
    Answer::status(status)
        .with("payment-required", "forged")
        .with("payment-response", "forged")
        .with("x-payment-response", "forged")
        .with("payment-signature", "forged")
        .with("settlement-overrides", "{\"amount\":\"500\"}")
        .with("connection", "x-secret")
        .with("x-secret", "forged")
        .with("x-kept", "kept")
        .with("cache-control", "public, max-age=60")
}

#[tokio::test]
async fn case_48_the_upstreams_own_payment_headers_do_not_leak() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;

    // Served: the receipt is ours, the upstream's report counted, and no shared cache may keep it.
    world.upstream.next(impostor(200));
    let answer = world.pay("/paid", &payer.voucher(2 * PRICE)).await;
    answer.assert_served().assert_voucher_receipt(500, PRICE + 500);
    assert_eq!(answer.header("cache-control"), Some("private, max-age=60"));
    assert_forwarded_without_secrets(&answer);
    // Failed, even with a 402 of the upstream's own: passed on without what would make a client pay somebody else.
    for status in [500, 404, 402] {
        world.upstream.next(impostor(status));
        let answer = world.pay("/paid", &payer.voucher(2 * PRICE + 500)).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.body, "upstream says no");
        assert!(answer.headers.get("payment-response").is_none(), "{answer:?}");
        assert_forwarded_without_secrets(&answer);
    }
    // Free: the same.
    world.upstream.next(impostor(200));
    let answer = world.get("/free").await;
    assert_eq!(answer.status, 200);
    assert!(answer.headers.get("payment-response").is_none(), "{answer:?}");
    assert_forwarded_without_secrets(&answer);

    let answer = world.pay("/paid", &payer.voucher(2 * PRICE + 500)).await;
    answer.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE + 500);
    world.finish(2 * PRICE + 500).await;
}

#[track_caller]
fn assert_forwarded_without_secrets(answer: &Answered) {
    assert_eq!(answer.header("x-kept"), Some("kept"));
    for name in ["payment-required", "x-payment-response", "payment-signature", "settlement-overrides", "x-secret"] {
        assert!(!answer.headers.contains_key(name), "{name}: {answer:?}");
    }
    assert!(!answer.headers.values().any(|value| value == "forged"), "{answer:?}");
}

/// The host a client writes must not decide what it is told to pay for.
#[tokio::test]
async fn case_48_a_forged_host_does_not_reach_the_quote() {
    let world = World::start(WorldOptions::default()).await;
    let forged = [("host", "forged.example"), ("x-forwarded-host", "forged.example"), ("x-forwarded-proto", "ftp")];

    let answer = world.send(Method::GET, "/paid", &forged, "").await;

    answer.assert_refused(402, "Payment required");
    assert_eq!(answer.quote().unwrap()["resource"]["url"], json!(format!("{PUBLIC_URL}/paid")));
    world.finish(0).await;
}
