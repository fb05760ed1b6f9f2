//! Answers that do not come to their end: the table of `peaje::manual::metering`, row by row.

use std::io;
use std::time::Duration;

use peaje::gate::identifier::Identifiers;
use peaje::gate::policy::Policy;
use peaje::protocol::x402::PAYMENT_IDENTIFIER;
use serde_json::json;

use super::llm::{anthropic, openai};
use super::payer::usual_terms;
use super::stage::*;

const SSE: &[(&str, &str)] = &[("content-type", "text/event-stream")];

async fn first_piece(answer: &mut Answer) {
    answer.piece().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_payer_that_leaves_pays_for_what_was_passed_on_so_far() {
    for version in ["h1", "h2"] {
        for (path, expected) in [("/bytes", 2 * 9), ("/events", 10)] {
            let site = Site::open().await;
            let frames = site.api.next_live(SSE);
            let mut answer = if version == "h1" { site.ask(path).await } else { site.ask_h2(path).await };
            send(&frames, "data: a\n\n").await;
            first_piece(&mut answer).await;
            assert_eq!(site.charged(), 0, "not before its end");
            answer.leave();
            assert_eq!(site.charged_soon().await, expected, "{path} {version}");
            eventually("the upstream is told", || frames.is_closed()).await;
        }
    }
}

#[tokio::test]
async fn a_payer_that_is_about_to_withdraw_pays_for_what_was_passed_on_so_far() {
    for (path, expected) in [("/bytes", 2 * 9), ("/events", 10), ("/tokens", price_of_tokens(0, 0, 0, 2))] {
        let site = Site::open().await;
        let frames = site.api.next_live(SSE);
        let mut answer = site.ask_h2(path).await;
        send(&frames, "data: a\n\n").await;
        first_piece(&mut answer).await;
        // More than the margin of five minutes is left: it goes on.
        withdraws(&site.gate, &site.payer, 400);
        assert!(tokio::time::timeout(Duration::from_millis(2_500), answer.piece()).await.is_err(), "{path}");
        withdraws(&site.gate, &site.payer, 200);
        answer.piece().await.unwrap().unwrap_err();
        if path == "/tokens" {
            assert_eq!(site.charged(), 0, "what the model says at its end counts");
            send(&frames, "data: {\"usage\":{\"completion_tokens\":2}}\n\n").await;
            drop(frames);
        }
        assert_eq!(site.charged_soon().await, expected, "{path}");
    }
}

#[tokio::test]
async fn a_payer_that_leaves_a_model_pays_for_its_report_which_is_read_without_it() {
    for (pieces, price) in [openai(), anthropic()] {
        for leaves_after in [1, 5, pieces.len() - 1] {
            let site = Site::open().await;
            let frames = site.api.next_live(SSE);
            let mut answer = site.ask("/tokens").await;
            for piece in &pieces[..leaves_after] {
                send(&frames, piece.clone()).await;
                first_piece(&mut answer).await;
            }
            answer.leave();
            for piece in &pieces[leaves_after..] {
                send(&frames, piece.clone()).await;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
            assert_eq!(site.charged(), 0, "its report may not be the last");
            drop(frames);
            assert_eq!(site.charged_soon().await, price, "after {leaves_after}");
        }
    }
}

#[tokio::test]
async fn a_payer_that_leaves_pays_for_what_is_said_in_the_trailers() {
    for (announced, trailer, expected) in
        [("x-pages", "6", 605), ("x-pages", "none", MOST), ("settlement-overrides", r#"{"amount":"11"}"#, 11)]
    {
        let site = Site::open().await;
        let frames = site.api.next_live(&[("trailer", announced)]);
        let mut answer = site.ask("/pages").await;
        send(&frames, "page 1").await;
        first_piece(&mut answer).await;
        answer.leave();
        send(&frames, "page 2").await;
        send_trailers(frames, &[(announced, trailer)]).await;
        assert_eq!(site.charged_soon().await, expected, "{announced}");
    }
}

#[tokio::test]
async fn what_is_read_after_the_payer_left_is_not_its() {
    let site = Site::open().await;
    let frames = site.api.next_live(&[("trailer", "settlement-overrides")]);
    let mut answer = site.ask("/bytes").await;
    send(&frames, "12345").await;
    first_piece(&mut answer).await;
    answer.leave();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        send(&frames, "more").await;
    }
    drop(frames);
    assert_eq!(site.charged_soon().await, 10);
}

#[tokio::test]
async fn a_payer_that_leaves_a_model_that_reports_nothing_pays_the_most() {
    let site = Site::open().await;
    let frames = site.api.next_live(SSE);
    let mut answer = site.ask("/tokens").await;
    send(&frames, "data: {\"choices\":[]}\n\n").await;
    first_piece(&mut answer).await;
    answer.leave();
    drop(frames);
    assert_eq!(site.charged_soon().await, MOST);
}

#[tokio::test]
async fn a_payer_that_leaves_before_the_head_pays_for_what_can_be_told() {
    for (path, expected) in [("/upload", 3 * 5), ("/tokens", MOST), ("/pages", MOST), ("/fixed", MOST)] {
        let site = Site::open().await;
        let seen = || site.api.seen().len();
        let request = site.request(path);
        let asking = site.ask_of(request, "12345");
        tokio::select! {
            answer = asking => panic!("nobody answers: {path} {} {:?}", answer.status, answer.headers),
            () = eventually("the upstream works", || seen() == 1) => {}
        }
        assert_eq!(site.charged_soon().await, expected, "{path}");
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_paid_for_what_came() {
    let broken = || Err(io::Error::other("out of order"));
    for (path, before, expected) in [
        ("/bytes", "data: a\n\n", 18),
        ("/events", "data: a\n\n", 10),
        ("/tokens", "data: {\"choices\":[]}\n\n", 7),
        ("/tokens", "data: {\"usage\":{\"prompt_tokens\":5}}\n\n", 7 + 15),
        ("/tokens", "data: {\"message\":{\"usage\":{\"input_tokens\":5,\"output_tokens\":1}}}\n\n", 7 + 15 + 15),
        ("/pages", "page", 5),
    ] {
        let site = Site::open().await;
        let frames = site.api.next_live(SSE);
        let mut answer = site.ask(path).await;
        send(&frames, before).await;
        first_piece(&mut answer).await;
        frames.send(broken()).await.unwrap();
        assert!(answer.piece().await.unwrap().is_err(), "{path}: it does not look whole");
        assert_eq!(site.charged_soon().await, expected, "{path} {before}");
    }
    // The payer left first, then the upstream broke.
    let site = Site::open().await;
    let frames = site.api.next_live(SSE);
    let mut answer = site.ask("/tokens").await;
    send(&frames, "data: {\"usage\":{\"prompt_tokens\":5}}\n\n").await;
    first_piece(&mut answer).await;
    answer.leave();
    tokio::time::sleep(Duration::from_millis(50)).await;
    frames.send(broken()).await.unwrap();
    assert_eq!(site.charged_soon().await, 7 + 15);
}

#[tokio::test]
async fn a_small_answer_that_breaks_off_was_never_seen_and_costs_nothing() {
    let site = Site::open().await;
    let frames = site.api.next_live(&[("content-length", "1000"), ("x-pages", "4")]);
    tokio::spawn(async move {
        send(&frames, "half").await;
        let _ = frames.send(Err(io::Error::other("out of order"))).await;
    });
    let mut answer = site.ask("/pages").await;
    assert_eq!((answer.status, answer.receipt()), (502, None));
    assert!(String::from_utf8(answer.rest().await).unwrap().contains("upstream_broke_off"));
    assert_eq!(site.charged(), 0);
}

#[tokio::test]
async fn when_we_stop_a_payer_pays_for_what_is_known_by_then() {
    for (path, expected) in [("/bytes", 18), ("/events", 10), ("/tokens", 7), ("/pages", 5)] {
        let mut site = Site::open().await;
        let frames = site.api.next_live(SSE);
        let mut answer = site.ask(path).await;
        send(&frames, "data: a\n\n").await;
        first_piece(&mut answer).await;
        site.stopped().await;
        assert!(answer.piece().await.unwrap().is_err(), "{path}: it does not look whole");
        assert_eq!(site.charged(), expected, "{path}");
    }
    // Nothing of it has come.
    let mut site = Site::open().await;
    let request = site.request("/upload");
    let seen = || site.api.seen().len();
    let asked = async {
        eventually("the upstream works", || seen() == 1).await;
        site.stop();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // It is cut off.
        () = asked => {}
        broken = site.try_ask(request, "12345") => assert!(broken.is_err()),
    }
    site.stopped().await;
    assert_eq!(site.charged(), 0);
}

/// The time there is when we stop: more than any test waits if what is waited for comes, and little if it does not.
fn drain_if(comes: bool) -> Duration {
    if comes { 2 * PATIENCE } else { Duration::from_millis(300) }
}

#[tokio::test]
async fn when_we_stop_the_report_of_a_payer_that_left_is_waited_for_until_the_deadline() {
    for (comes, expected) in [(true, price_of_tokens(0, 0, 0, 2)), (false, 7)] {
        let mut site = Site::stopping_within(drain_if(comes), policy()).await;
        let frames = site.api.next_live(SSE);
        let mut answer = site.ask("/tokens").await;
        send(&frames, "data: {\"choices\":[]}\n\n").await;
        first_piece(&mut answer).await;
        answer.leave();
        tokio::time::sleep(Duration::from_millis(50)).await;
        site.stop();
        if comes {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(site.charged(), 0, "it is read on");
            send(&frames, "data: {\"usage\":{\"completion_tokens\":2}}\n\n").await;
            drop(frames);
            site.stopped().await;
        } else {
            site.stopped().await;
            drop(frames);
        }
        assert_eq!(site.charged(), expected, "{comes}");
    }
}

/// A price list whose payments may have a name.
fn named() -> Policy {
    let mut routes = routes();
    for route in &mut routes {
        route.extensions.insert(PAYMENT_IDENTIFIER.to_owned(), Identifiers::Optional.extension().unwrap());
    }
    Policy::new(usual_terms(), "https://api.example.com", routes).unwrap()
}

#[tokio::test]
async fn when_we_stop_a_named_request_whose_payer_left_is_waited_for_until_the_deadline() {
    for (path, comes, expected) in
        [("/fixed", true, MOST), ("/fixed", false, 0), ("/bytes", true, 2 * 4), ("/bytes", false, 0)]
    {
        let mut site = Site::stopping_within(drain_if(comes), named()).await;
        let name = json!({PAYMENT_IDENTIFIER: {"info": {"required": false, "id": "order-0000000000001"}}});
        site.payer.extensions = name.as_object().unwrap().clone();
        let seen = || site.api.seen().len();
        tokio::select! {
            answer = site.ask(path) => panic!("nobody answers: {} {:?}", answer.status, answer.headers),
            () = eventually("the upstream works", || seen() == 1) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        site.stop();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(site.charged(), 0, "{path}: it is not served yet");
        if comes {
            site.api.next(whole(&[], "late"));
        }
        site.stopped().await;
        assert_eq!(site.charged(), expected, "{path} {comes}");
    }
}

#[tokio::test]
async fn a_hold_is_resolved_once_and_the_channel_goes_on() {
    let site = Site::open().await;
    let (pieces, price) = openai();
    for turn in 1..=5_u128 {
        let frames = site.api.next_live(SSE);
        let mut answer = site.ask("/tokens").await;
        send(&frames, pieces.concat()).await;
        first_piece(&mut answer).await;
        // Its report has come; some wait for the end, others do not.
        if turn % 2 == 0 {
            answer.leave();
            drop(frames);
        } else {
            drop(frames);
            answer.rest().await;
        }
        eventually("it is charged", || site.charged() == turn * price).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(site.charged(), 5 * price);
}
