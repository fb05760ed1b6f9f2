//! Cases 29 and 30: upstreams that fail and clients that leave.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use peaje::devnet::Mining;
use peaje::protocol::x402::PAYMENT_SIGNATURE;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::extras::{Break, Breaker, FORGETFUL, state};
use super::harness::{Answer, PRICE, World, WorldOptions};

const DEPOSIT: u128 = 10 * PRICE;

#[tokio::test]
async fn case_29_an_error_of_the_upstream_costs_nothing_and_the_same_voucher_stays_good() {
    let upstream = "response_timeout = \"3s\"".to_owned();
    let world = World::start(WorldOptions { upstream, ..WorldOptions::default() }).await;
    let payer = world.opened(1, DEPOSIT).await;
    let payment = payer.voucher(2 * PRICE);
    let before = world.tally().await;
    let statuses = [400, 402, 404, 429, 500, 503];
    for status in statuses {
        // What it reports to cost is not believed either.
        let failure = Answer::status(status).with("x-own", "kept");
        world.upstream.next(failure.with("settlement-overrides", r#"{"amount":"1"}"#));
        let answer = world.pay("/paid", &payment).await;
        assert_eq!(answer.status, status);
        assert_eq!((answer.receipt(), answer.quote()), (None, None), "not our 402, and nothing to book");
        assert_eq!((&answer.body[..], answer.header("x-own")), (&b"upstream says no"[..], Some("kept")));
        assert_eq!(answer.header("settlement-overrides"), None);
        assert_eq!(world.charged(), PRICE);
    }
    world.upstream.next(Answer::ok("late").when(&Arc::new(Notify::new())));
    let answer = world.pay("/paid", &payment).await;
    assert_eq!(
        (answer.status, answer.json()["error"].as_str()),
        (StatusCode::GATEWAY_TIMEOUT, Some("upstream_timeout"))
    );
    assert_eq!((answer.receipt(), answer.quote()), (None, None));

    let mut after = world.tally().await;
    assert_eq!(after.upstream_calls - before.upstream_calls, statuses.len() + 1, "each was asked once");
    after.upstream_calls = before.upstream_calls;
    assert_eq!(after, before);
    world.pay("/paid", &payment).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_29_an_upstream_that_is_gone_or_breaks_off_costs_nothing() {
    let mut world = World::start(WorldOptions { more: FORGETFUL.to_owned(), ..WorldOptions::default() }).await;
    world.config.redeem.on_shutdown = true;
    let mut breaker = Breaker::of(&mut world).await;
    let payer = world.opened(1, DEPOSIT).await;
    let payment = payer.voucher(2 * PRICE);
    for how in [Break::HeadByReset, Break::HeadByEnd] {
        breaker.set(how);
        let before = breaker.seen();
        let answer = world.pay("/paid", &payment).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{how:?}");
        assert_eq!(answer.json()["error"], "upstream_unreachable");
        assert_eq!((answer.receipt(), answer.quote()), (None, None));
        assert_eq!(breaker.seen() - before, 1, "{how:?}: what was sent is not sent again");
        assert_eq!(world.charged(), PRICE);
    }
    breaker.set(Break::Never);
    breaker.down().await;
    let answer = world.pay("/paid", &payment).await;
    assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (502, Some("upstream_unreachable")));
    assert_eq!(world.charged(), PRICE);
    breaker.up().await;
    world.pay("/paid", &payment).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_29_a_body_that_breaks_off_was_begun_and_is_charged_once() {
    let mut world = World::start(WorldOptions { more: FORGETFUL.to_owned(), ..WorldOptions::default() }).await;
    world.config.redeem.on_shutdown = true;
    let breaker = Breaker::of(&mut world).await;
    let payer = world.opened(1, DEPOSIT).await;
    breaker.set(Break::Body);
    let payment = payer.voucher(2 * PRICE);
    let response = world.pay_streaming("/paid", &payment).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers().contains_key("payment-response"));
    assert!(response.bytes().await.is_err(), "the client sees that it is not whole");
    assert_eq!(world.charged(), 2 * PRICE);
    breaker.set(Break::Never);
    world.pay("/paid", &payment).await.assert_corrective(2 * PRICE, DEPOSIT, Some(2 * PRICE));
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served();
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_30_a_client_that_leaves_in_the_middle_of_the_body_is_charged_once() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let (answer, body) = Answer::live();
    world.upstream.next(answer);
    let mut connection = world.raw("/paid", &payer.voucher(2 * PRICE)).await;
    body.send(Ok(Bytes::from_static(b"half of it"))).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"half of it") {
        read.push(connection.read_u8().await.unwrap());
    }
    let head = String::from_utf8(read).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200") && head.contains("\r\npayment-response: "), "{head}");
    assert_eq!(world.charged(), 2 * PRICE, "the head left with its charge in the books");
    drop(connection);

    // The channel is free although the stream goes on, and whatever becomes of the stream, nothing more is charged.
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    world.eventually("the upstream is told", async |_| body.send(Ok(Bytes::from_static(b"more"))).await.is_err()).await;
    let answer = world.pay("/paid", &payer.voucher(4 * PRICE)).await;
    assert_eq!(answer.assert_served().state(), state(&payer, DEPOSIT, 0, 4 * PRICE, 0));
    world.finish(4 * PRICE).await;
}

#[tokio::test]
async fn case_30_a_client_that_leaves_before_the_head_is_charged_in_full() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let payment = payer.voucher(2 * PRICE);
    let released = Arc::new(Notify::new());
    world.upstream.next(Answer::ok("nobody hears this").when(&released));
    let connection = world.raw("/paid", &payment).await;
    world.upstream_saw(2).await;
    assert_eq!(world.charged(), PRICE, "not yet");
    world.pay("/paid", &payment).await.assert_corrective(2 * PRICE, DEPOSIT, Some(2 * PRICE));
    drop(connection);
    world.eventually("it is charged", async |world| world.charged() == 2 * PRICE).await;

    released.notify_one();
    world.pay("/paid", &payment).await.assert_corrective(2 * PRICE, DEPOSIT, Some(2 * PRICE));
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_30_an_http2_client_that_resets_its_stream_is_charged_in_full() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let paid = |max| {
        let request = client.request(Method::GET, world.url("/paid"));
        request.header(PAYMENT_SIGNATURE, payer.voucher(max).header()).send()
    };
    world.upstream.next(Answer::ok("nobody hears this").when(&Arc::new(Notify::new())));
    let call = tokio::spawn(paid(2 * PRICE));
    world.upstream_saw(2).await;
    call.abort();
    world.eventually("it is charged", async |world| world.charged() == 2 * PRICE).await;
    assert_eq!(paid(3 * PRICE).await.unwrap().status(), StatusCode::OK, "connection and channel go on");
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_30_a_client_that_leaves_while_its_deposit_is_mined_finds_it_booked_and_nothing_charged() {
    let world = World::start(WorldOptions { mining: Mining::Manual, ..WorldOptions::default() }).await;
    let payer = world.payer(1);
    let payment = payer.deposit(DEPOSIT, PRICE);
    let connection = world.raw("/paid", &payment).await;
    world.sent_transactions(1).await;
    drop(connection);
    // Long enough for the proxy to see that the client is gone; if it were not, the case would fail all the same.
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.devnet.mine(1).unwrap();
    let id = payer.id();
    world.eventually("the deposit is booked", async |world| world.books(id).is_some()).await;
    assert_eq!(world.book(&payer).view.balance.units(), DEPOSIT);
    assert_eq!((world.charged(), world.upstream_calls()), (0, 0), "it had not been sent upstream");

    // The same payload again: its deposit is not made twice, and its voucher is good.
    let answer = world.pay("/paid", &payment).await;
    answer.assert_served();
    assert_eq!(answer.state(), state(&payer, DEPOSIT, 0, PRICE, 0));
    let tally = world.tally().await;
    assert_eq!((tally.transactions, tally.onchain_deposits, tally.charged), (1, 1, PRICE));
    world.finish(PRICE).await;
}

/// Half a request cannot be served: it fails upstream, and what fails upstream costs nothing.
#[tokio::test]
async fn case_30_a_client_that_leaves_in_the_middle_of_its_own_body_is_charged_nothing() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let payment = payer.voucher(2 * PRICE);
    let mut connection = TcpStream::connect(world.site.address()).await.unwrap();
    let head = format!(
        "POST /paid HTTP/1.1\r\nhost: peaje\r\ncontent-length: 100\r\n{PAYMENT_SIGNATURE}: {}\r\n\r\nhalf",
        payment.header()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    world.upstream_saw(2).await;
    drop(connection);
    let served = async |world: &World| {
        let answer = world.pay("/paid", &payment).await;
        assert!(answer.status == StatusCode::OK || answer.status == StatusCode::PAYMENT_REQUIRED);
        answer.status == StatusCode::OK
    };
    world.eventually("the channel is free and the same voucher good", served).await;
    assert_eq!(world.charged(), 2 * PRICE);
    world.finish(2 * PRICE).await;
}
