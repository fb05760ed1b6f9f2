//! Case 45: a payment that comes again. With an identifier the answer is given again, however the first one was lost; with
//! none, only if it is known to have been.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::harness::{Answer, Answered, PRICE, Payer, Payment, World, WorldOptions};

const SIGNATURE: &str = "payment-signature";

/// A world with some more lines of config.
async fn world(more: &str) -> World {
    World::start(WorldOptions { more: more.to_owned(), ..WorldOptions::default() }).await
}

/// The same payer, who gives its payments this name.
fn named(payer: &Payer, id: &str) -> Payer {
    let extensions = json!({"payment-identifier": {"info": {"required": false, "id": id}}});
    Payer { extensions: extensions.as_object().unwrap().clone(), ..payer.clone() }
}

async fn post(world: &World, path: &str, payment: &Payment, body: &'static str) -> Answered {
    world.send(Method::POST, path, &[(SIGNATURE, &payment.header())], body).await
}

/// Sends a paid request and leaves before its answer.
async fn send_and_leave(world: &World, payment: &Payment, calls: usize) {
    let mut socket = TcpStream::connect(world.site.address()).await.unwrap();
    let head = format!("GET /paid HTTP/1.1\r\nhost: a\r\n{SIGNATURE}: {}\r\n\r\n", payment.header());
    socket.write_all(head.as_bytes()).await.unwrap();
    world.eventually("the upstream is asked", async |world| world.upstream_calls() == calls).await;
}

async fn ask_as_a(world: &World, payment: &Payment) -> Answered {
    world.send(Method::GET, "/paid", &[("host", "a"), (SIGNATURE, &payment.header())], "").await
}

fn assert_same(again: &Answered, first: &Answered) {
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(again.receipt(), first.receipt());
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(first.header("idempotent-replayed"), None);
}

#[tokio::test]
async fn case_45_the_same_id_and_payment_get_the_stored_answer() {
    let world = world("").await;
    let payer = world.opened(1, 10 * PRICE).await;
    let payment = named(&payer, "order-0000000000001").voucher(2 * PRICE);
    world.upstream.next(Answer::ok("once").with("x-own", "kept"));
    let first = world.pay("/paid", &payment).await;
    first.assert_served_with("once").assert_voucher_receipt(PRICE, 2 * PRICE);
    let before = world.tally().await;
    for _ in 0..3 {
        let again = world.pay("/paid", &payment).await;
        assert_same(&again, &first);
        assert_eq!(again.header("x-own"), Some("kept"));
    }
    world.assert_untouched(&before).await;
    // The next one is as usual.
    world.pay("/paid", &named(&payer, "order-0000000000002").voucher(3 * PRICE)).await.assert_served();
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_45_the_same_id_with_another_payment_or_request_is_a_conflict() {
    let world = world("").await;
    let payer = world.opened(1, 10 * PRICE).await;
    let (a, b) = (named(&payer, "order-0000000000001"), named(&payer, "order-0000000000002"));
    let payment = a.voucher(2 * PRICE);
    post(&world, "/paid", &payment, "body").await.assert_served();
    let before = world.tally().await;
    let conflict = |answer: Answered| {
        answer.assert_refused(409, "payment_identifier_conflict");
    };
    conflict(post(&world, "/paid", &a.voucher(3 * PRICE), "body").await);
    conflict(post(&world, "/paid", &payment, "another body").await);
    conflict(post(&world, "/paid", &payment, "bod").await);
    conflict(post(&world, "/paid", &payment, "").await);
    conflict(post(&world, "/paid?a=1", &payment, "body").await);
    conflict(world.send(Method::PUT, "/paid", &[(SIGNATURE, &payment.header())], "body").await);
    conflict(world.send(Method::POST, "/paid", &[("host", "b.test"), (SIGNATURE, &payment.header())], "body").await);
    // Without the id it is another payment, and its voucher is spent.
    let bare = payer.voucher(2 * PRICE);
    world.pay("/paid", &bare).await.assert_corrective(2 * PRICE, 10 * PRICE, Some(2 * PRICE));
    world.assert_untouched(&before).await;
    // The same is still the same, and another payer may use the same name.
    let again = post(&world, "/paid", &payment, "body").await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    let other = world.opened(2, 10 * PRICE).await;
    post(&world, "/paid", &named(&other, "order-0000000000001").voucher(2 * PRICE), "body").await.assert_served();
    post(&world, "/paid", &b.voucher(3 * PRICE), "body").await.assert_served();
    world.finish(5 * PRICE).await;
}

#[tokio::test]
async fn case_45_a_required_id_is_missed_and_a_bad_one_is_refused() {
    let world = world("[[route]]\npath = \"/strict\"\nprice = \"$0.002\"\nidentifier = \"required\"").await;
    let payer = world.opened(1, 10 * PRICE).await;
    assert_eq!(world.quote("/strict").await["extensions"]["payment-identifier"]["info"], json!({"required": true}));
    let before = world.tally().await;
    world.pay("/strict", &payer.voucher(2 * PRICE)).await.assert_refused(400, "payment_identifier_required");
    let strict = |id: Value| {
        let extensions = json!({"payment-identifier": {"info": {"required": true, "id": id}}});
        Payer { extensions: extensions.as_object().unwrap().clone(), ..payer.clone() }
    };
    for bad in [json!("a".repeat(15)), json!("a".repeat(129)), json!("with spaces, sixteen"), json!(7)] {
        world.pay("/strict", &strict(bad).voucher(2 * PRICE)).await.assert_refused(400, "payment_identifier_invalid");
    }
    world.assert_untouched(&before).await;
    world.pay("/strict", &strict(json!("a".repeat(16))).voucher(2 * PRICE)).await.assert_served();
    world.pay("/strict", &strict(json!("a".repeat(128))).voucher(3 * PRICE)).await.assert_served();
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_45_what_was_not_charged_is_as_new() {
    let world = world("").await;
    let payer = world.opened(1, 10 * PRICE).await;
    let payment = named(&payer, "order-0000000000001").voucher(2 * PRICE);
    world.upstream.next(Answer::status(503));
    assert_eq!(world.pay("/paid", &payment).await.status, StatusCode::SERVICE_UNAVAILABLE);
    world.upstream.next(Answer::reset());
    assert_eq!(world.pay("/paid", &payment).await.status, StatusCode::BAD_GATEWAY);
    // Refused before it was served: the name is free for the payment that is right.
    let early = named(&payer, "order-0000000000002");
    world.pay("/paid", &early.voucher(5 * PRICE)).await.assert_corrective(PRICE, 10 * PRICE, Some(PRICE));
    world.pay("/paid", &payment).await.assert_served();
    world.pay("/paid", &early.voucher(3 * PRICE)).await.assert_served();
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_45_the_same_payment_waits_for_the_first_one() {
    let world = world("").await;
    let payer = world.opened(1, 10 * PRICE).await;
    let payment = named(&payer, "order-0000000000001").voucher(2 * PRICE);
    let released = Arc::new(Notify::new());
    world.upstream.next(Answer::ok("slow").when(&released));
    let release = async {
        world.eventually("the upstream is asked", async |world| world.upstream_calls() == 2).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        released.notify_one();
    };
    let (a, b, c, ()) =
        tokio::join!(world.pay("/paid", &payment), world.pay("/paid", &payment), world.pay("/paid", &payment), release);
    let mut replayed = 0;
    for answer in [&a, &b, &c] {
        answer.assert_served_with("slow").assert_voucher_receipt(PRICE, 2 * PRICE);
        replayed += usize::from(answer.header("idempotent-replayed").is_some());
    }
    assert_eq!((replayed, world.upstream_calls()), (2, 2));
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_45_who_left_finds_the_answer_there() {
    let world = world("").await;
    let payer = world.opened(1, 10 * PRICE).await;
    let payment = named(&payer, "order-0000000000001").voucher(2 * PRICE);
    let released = Arc::new(Notify::new());
    world.upstream.next(Answer::ok("late").when(&released));
    send_and_leave(&world, &payment, 2).await;
    released.notify_one();
    ask_as_a(&world, &payment).await.assert_served_with("late").assert_voucher_receipt(PRICE, 2 * PRICE);
    assert_eq!(world.upstream_calls(), 2);

    // What fails meanwhile is not charged, and served anew.
    let payment = named(&payer, "order-0000000000002").voucher(3 * PRICE);
    world.upstream.next(Answer::status(500).when(&released));
    send_and_leave(&world, &payment, 3).await;
    released.notify_one();
    ask_as_a(&world, &payment).await.assert_served_with("served").assert_voucher_receipt(PRICE, 3 * PRICE);
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_45_an_answer_that_is_cut_is_there_as_a_whole() {
    let world = world("").await;
    let payer = world.opened(1, 10 * PRICE).await;
    let payment = named(&payer, "order-0000000000001").voucher(2 * PRICE);
    let (answer, upstream) = Answer::live();
    world.upstream.next(answer);
    upstream.send(Ok("first ".into())).await.unwrap();
    let mut socket = TcpStream::connect(world.site.address()).await.unwrap();
    let head = format!("GET /paid HTTP/1.1\r\nhost: a\r\n{SIGNATURE}: {}\r\n\r\n", payment.header());
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("first ") {
        assert_ne!(socket.read_buf(&mut seen).await.unwrap(), 0);
    }
    drop(socket);
    upstream.send(Ok("second".into())).await.unwrap();
    drop(upstream);
    ask_as_a(&world, &payment).await.assert_served_with("first second").assert_voucher_receipt(PRICE, 2 * PRICE);
    assert_eq!(world.upstream_calls(), 2);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_45_what_is_too_long_is_not_given_again_and_not_paid_again() {
    let world = world("[idempotency]\nmax_answer = \"1 KiB\"").await;
    let payer = world.opened(1, 10 * PRICE).await;
    let long: &'static str = "x".repeat(1_025).leak();
    let exact: &'static str = "x".repeat(1_024).leak();
    for (max, body) in [(2, long), (3, exact)] {
        let payment = named(&payer, &format!("order-000000000000{max}")).voucher(max * PRICE);
        world.upstream.next(Answer::ok(body));
        world.pay("/paid", &payment).await.assert_served_with(body);
        let again = world.pay("/paid", &payment).await;
        if body.len() > 1_024 {
            again.assert_refused(409, "answer_not_kept");
        } else {
            again.assert_served_with(body);
        }
    }
    assert_eq!(world.upstream_calls(), 3);
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_45_answers_on_their_way_count_as_memory() {
    let world = world("[idempotency]\nmemory = \"96 KiB\"\nmax_answer = \"64 KiB\"").await;
    let long: &'static str = "x".repeat(56 << 10).leak();
    let mut answers = Vec::new();
    for number in [1, 2] {
        let payer = world.opened(number, 10 * PRICE).await;
        let payment = named(&payer, "order-0000000000001").voucher(2 * PRICE);
        let (answer, upstream) = Answer::live();
        world.upstream.next(answer);
        upstream.send(Ok(long.into())).await.unwrap();
        let mut socket = TcpStream::connect(world.site.address()).await.unwrap();
        let head = format!("GET /paid HTTP/1.1\r\nhost: a\r\n{SIGNATURE}: {}\r\n\r\n", payment.header());
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < long.len() {
            assert_ne!(socket.read_buf(&mut seen).await.unwrap(), 0);
        }
        answers.push((payment, upstream, socket));
    }
    for ((payment, upstream, mut socket), has_room) in answers.into_iter().zip([true, false]) {
        drop(upstream);
        let mut rest = Vec::new();
        while !rest.ends_with(b"0\r\n\r\n") {
            assert_ne!(socket.read_buf(&mut rest).await.unwrap(), 0);
        }
        let again = ask_as_a(&world, &payment).await;
        if has_room {
            again.assert_served_with(long);
        } else {
            again.assert_refused(409, "answer_not_kept");
        }
    }
    assert_eq!(world.upstream_calls(), 4);
    world.finish(4 * PRICE).await;
}

#[tokio::test]
async fn case_45_an_answer_is_kept_for_its_window() {
    let world = world("[idempotency]\nwindow = \"1s\"").await;
    let payer = world.opened(1, 10 * PRICE).await;
    let payment = named(&payer, "order-0000000000001").voucher(2 * PRICE);
    world.pay("/paid", &payment).await.assert_served();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    world.pay("/paid", &payment).await.assert_corrective(2 * PRICE, 10 * PRICE, Some(2 * PRICE));
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_45_ids_that_are_not_offered_are_not_heard() {
    let world = world("[idempotency]\nidentifier = \"off\"").await;
    assert!(world.quote("/paid").await.get("extensions").is_none());
    let payer = world.opened(1, 10 * PRICE).await;
    let payment = named(&payer, "order-0000000000001").voucher(2 * PRICE);
    world.pay("/paid", &payment).await.assert_served();
    world.pay("/paid", &payment).await.assert_corrective(2 * PRICE, 10 * PRICE, Some(2 * PRICE));
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_45_without_an_id_only_an_answer_that_was_lost_is_given_again() {
    let world = world("[idempotency]\nunidentified = true").await;
    let payer = world.opened(1, 10 * PRICE).await;
    // One that arrived: case 23.
    let arrived = payer.voucher(2 * PRICE);
    world.pay("/paid", &arrived).await.assert_served();
    world.pay("/paid", &arrived).await.assert_corrective(2 * PRICE, 10 * PRICE, Some(2 * PRICE));
    // One that did not.
    let lost = payer.voucher(3 * PRICE);
    let released = Arc::new(Notify::new());
    world.upstream.next(Answer::ok("late").when(&released));
    send_and_leave(&world, &lost, 3).await;
    // The proxy has to see that the connection is gone.
    tokio::time::sleep(Duration::from_millis(500)).await;
    released.notify_one();
    let again = ask_as_a(&world, &lost).await;
    again.assert_served_with("late").assert_voucher_receipt(PRICE, 3 * PRICE);
    // For another request the voucher is spent.
    let other = world.send(Method::POST, "/paid", &[("host", "a"), (SIGNATURE, &lost.header())], "x").await;
    other.assert_corrective(3 * PRICE, 10 * PRICE, Some(3 * PRICE));
    assert_eq!(world.upstream_calls(), 3);
    world.finish(3 * PRICE).await;
}
