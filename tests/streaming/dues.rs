//! What lowers the charge of a stream at its end: a price of one's own, free requests, a cap.

use http::StatusCode;
use peaje::config::Config;
use peaje::protocol::Address;

use super::least::HEAD;
use super::payer::{Payer, usual_terms};
use super::stage::*;

/// Who is on the lists; 7 is not.
const PARTNER: u8 = 1;
const FRIEND: u8 = 2;
const GUEST: u8 = 3;
const STRANGER: u8 = 7;

/// Two units a byte, a dollar at most; and with these lines.
fn route(path: &str, lines: &str) -> String {
    let price = r#"{ response_bytes = "2 units / 1", most = "$1" }"#;
    format!("[[route]]\npath = \"{path}\"\nprice = {price}\n{lines}\n")
}

/// Prices of their own: a lower rate, one for each request, and nothing.
const OWN: &str = r#"
[[route.for]]
payers = ["partners"]
price = { response_bytes = "1 unit / 1", most = "$0.50" }
[[route.for]]
payers = ["friends"]
price = "7 units"
[[route.for]]
payers = ["guests"]
price = "free"
"#;

async fn site(routes: &str) -> Site {
    let list = |name: &str, number| format!("{name} = [\"{}\"]\n", Payer::new(number, &usual_terms(), 1).address());
    let lists = [list("partners", PARTNER), list("friends", FRIEND), list("guests", GUEST)].concat();
    let text = format!("{HEAD}{routes}\n[payers]\n{lists}");
    let config = Config::parse(&text, "dues.toml").unwrap_or_else(|errors| panic!("{errors}"));
    Site::selling(config.policy(Address([2; 20])).unwrap()).await
}

/// A stream of this text to its end, and what it cost by the books, which say the same as its receipt.
async fn streamed(site: &Site, path: &str, text: &str, trailers: &'static [(&'static str, &'static str)]) -> u128 {
    let before = site.charged();
    let frames = site.api.next_live(&[("trailer", "settlement-overrides")]);
    let body = text.to_owned();
    tokio::spawn(async move {
        send(&frames, body).await;
        if !trailers.is_empty() {
            send_trailers(frames, trailers).await;
        }
    });
    let mut answer = site.ask_taking_trailers(path).await;
    assert_eq!(answer.rest().await, text.as_bytes());
    let charge = site.charged() - before;
    let receipt = answer.receipt().or(answer.late_receipt());
    assert_eq!(sums(receipt), Some((charge, before + charge)), "{path}");
    charge
}

/// Answers that fail: one with its status, and one that breaks off before anything of it left. Where a price is fixed the
/// second has left with its head, and is paid.
async fn failed(site: &Site, path: &str, is_fixed: bool) {
    let before = site.charged();
    let mut broken = whole(&[], "out of order");
    *broken.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    site.api.next(broken);
    assert_eq!(site.ask(path).await.status, 500);
    assert_eq!(site.charged(), before);
    if is_fixed {
        return;
    }
    let frames = site.api.next_live(&[("content-length", "1000")]);
    tokio::spawn(async move {
        send(&frames, "half").await;
        let _ = frames.send(Err(std::io::Error::other("out of order"))).await;
    });
    assert_eq!(site.ask(path).await.status, 502);
    assert_eq!(site.charged(), before);
}

/// The payer leaves a stream after these bytes.
async fn left(site: &Site, path: &str, text: &str) {
    let frames = site.api.next_live(&[]);
    let mut answer = site.ask(path).await;
    send(&frames, text.to_owned()).await;
    answer.piece().await.unwrap().unwrap();
    answer.leave();
    eventually("the upstream is told", || frames.is_closed()).await;
}

#[tokio::test]
async fn a_stream_costs_each_payer_its_own_price() {
    let fixed = format!("[[route]]\npath = \"/fixed\"\nprice = \"$1\"\n{OWN}");
    let mut site = site(&[route("/metered", OWN), fixed].concat()).await;
    let (long, half) = ("x".repeat(1_200_000), &[("settlement-overrides", r#"{"amount":"50%"}"#)]);
    // The payer; the most it is charged; five bytes, a stream that costs the most, and half of that as the upstream says;
    // and what five bytes cost it where the price of others is fixed.
    for (payer, most, five, all, halved, of_fixed) in [
        (STRANGER, MOST, 10, MOST, MOST / 2, MOST),
        (PARTNER, MOST / 2, 5, MOST / 2, MOST / 4, 5),
        (FRIEND, 7, 7, 7, 7, 7),
        (GUEST, 0, 0, 0, 0, 0),
    ] {
        site.is_paid_by(payer);
        assert_eq!(streamed(&site, "/metered", "12345", &[]).await, five, "payer {payer}");
        assert_eq!(site.api.seen().last().unwrap()["x-peaje-charged"], most.to_string());
        assert_eq!(streamed(&site, "/metered", &long, &[]).await, all, "payer {payer}");
        assert_eq!(streamed(&site, "/metered", "12345", half).await, halved, "payer {payer}");
        assert_eq!(streamed(&site, "/fixed", "12345", &[]).await, of_fixed, "payer {payer}");
        failed(&site, "/metered", five == all).await;
        let before = site.charged();
        left(&site, "/metered", "12345").await;
        if five > 0 {
            eventually("so far is charged", || site.charged() > before).await;
        }
        assert_eq!(site.charged() - before, five, "payer {payer}");
    }
}

#[tokio::test]
async fn free_streams_are_counted_at_their_end_and_those_that_fail_or_cost_nothing_are_none() {
    let mut site = site(&route("/x", "free = { requests = 3, per = \"365d\", by = \"payer\" }")).await;
    failed(&site, "/x", false).await;
    assert_eq!(streamed(&site, "/x", "", &[]).await, 0, "it costs nothing anyway");
    assert_eq!(streamed(&site, "/x", "12345", &[]).await, 0);
    failed(&site, "/x", false).await;
    left(&site, "/x", "12345").await;
    // Who leaves has used one all the same: two began while one was left, and the first that ends has it.
    let (late, early) = (site.api.next_live(&[]), site.api.next_live(&[]));
    let mut long = site.ask("/x").await;
    send(&late, "12").await;
    long.piece().await.unwrap().unwrap();
    let payer = site.payer.clone();
    site.payer = payer.with_salt(9);
    site.fund();
    let mut short = site.ask("/x").await;
    send(&early, "1234").await;
    drop(early);
    assert_eq!(short.rest().await, b"1234");
    assert_eq!(site.charged(), 0);
    site.payer = payer;
    assert_eq!(site.charged(), 0);
    drop(late);
    assert_eq!(long.rest().await, b"");
    assert_eq!(site.charged(), 4);
    assert_eq!(streamed(&site, "/x", "12345", &[]).await, 10);
    site.is_paid_by(PARTNER);
    assert_eq!(streamed(&site, "/x", "12345", &[]).await, 0, "others have theirs");
}

#[tokio::test]
async fn streams_cost_no_more_than_what_is_left_of_a_cap() {
    let site = site(&route("/x", "cap = { payer = \"25 units\", per = \"365d\" }")).await;
    assert_eq!(streamed(&site, "/x", "12345", &[]).await, 10);
    failed(&site, "/x", false).await;
    left(&site, "/x", "12345").await;
    eventually("so far is charged", || site.charged() == 20).await;
    assert_eq!(streamed(&site, "/x", "12345", &[]).await, 5, "what is left");
    assert_eq!(streamed(&site, "/x", "12345", &[]).await, 0);
    left(&site, "/x", "12345").await;
    failed(&site, "/x", false).await;
    assert_eq!(site.charged(), 25);
}

#[tokio::test]
async fn a_price_of_its_own_a_free_stream_and_a_cap_go_together() {
    let lines = format!(
        "free = {{ requests = 1, per = \"365d\", by = \"payer\" }}\ncap = {{ payer = \"8 units\", per = \"365d\" }}\n{OWN}"
    );
    let mut site = site(&route("/x", &lines)).await;
    for (payer, charges) in [(STRANGER, [0, 8, 0]), (PARTNER, [0, 5, 3]), (FRIEND, [0, 7, 1]), (GUEST, [0, 0, 0])] {
        site.is_paid_by(payer);
        for expected in charges {
            failed(&site, "/x", [FRIEND, GUEST].contains(&payer)).await;
            assert_eq!(streamed(&site, "/x", "12345", &[]).await, expected, "payer {payer}");
        }
    }
}
