//! The real binary, told to stop while it serves, once and twice.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/payer.rs"]
mod payer;
#[path = "support/serve.rs"]
mod serve;
#[path = "support/stage.rs"]
mod stage;

use std::sync::Arc;
use std::time::Duration;

use peaje::store::sqlite::Reader;
use serde_json::json;
use tokio::sync::Notify;

use serve::Peaje;
use stage::{DEPOSIT, PRICE, Stage, ask};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_cut_off_by_a_second_signal_is_not_charged() {
    let asked = Arc::new(Notify::new());
    let hears = Arc::clone(&asked);
    let slow = move || {
        hears.notify_one();
        std::future::pending::<&str>()
    };
    let api = axum::Router::new().route("/slow", axum::routing::get(slow)).fallback(|| async { "served" });
    let stage = Stage::set_with(api).await;
    let mut peaje = Peaje::start(&stage.settings()).await;
    let payer = stage.payer(&peaje, 1);
    let answer = ask(&stage.client, &peaje.url("/thing"), &payer.deposit(DEPOSIT, PRICE)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let cut_off = tokio::spawn({
        let (client, url, payment) = (stage.client.clone(), peaje.url("/slow"), payer.voucher(2 * PRICE));
        async move { ask(&client, &url, &payment).await }
    });
    asked.notified().await;

    peaje.terminate();
    while !peaje.log().contains("a second signal ends at once") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    peaje.terminate();
    assert_eq!(peaje.ended().await.code(), Some(1), "{}", peaje.log());
    assert!(cut_off.await.unwrap().is_err(), "nothing was served");
    let row = Reader::open(&peaje.books()).unwrap().channel(&payer.id()).unwrap().unwrap();
    assert_eq!(row.snapshot.charged.units(), PRICE);
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_request_whose_client_left_costs_what_its_answer_says_although_we_stop() {
    let (asked, answers) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (hears, waits) = (Arc::clone(&asked), Arc::clone(&answers));
    let slow = move || {
        let (hears, waits) = (Arc::clone(&hears), Arc::clone(&waits));
        async move {
            hears.notify_one();
            waits.notified().await;
            (axum::http::StatusCode::INTERNAL_SERVER_ERROR, "it failed, late")
        }
    };
    let api = axum::Router::new().route("/slow", axum::routing::get(slow)).fallback(|| async { "served" });
    let stage = Stage::set_with(api).await;
    let mut peaje = Peaje::start(&stage.settings()).await;
    let mut payer = stage.payer(&peaje, 1);
    let answer = ask(&stage.client, &peaje.url("/thing"), &payer.deposit(DEPOSIT, PRICE)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let name = json!({"payment-identifier": {"info": {"required": false, "id": "order-0000000000001"}}});
    payer.extensions = name.as_object().unwrap().clone();
    let leaves = tokio::spawn({
        let (client, url, payment) = (stage.client.clone(), peaje.url("/slow"), payer.voucher(2 * PRICE));
        async move { ask(&client, &url, &payment).await }
    });
    asked.notified().await;
    leaves.abort();
    assert!(leaves.await.is_err());
    peaje.terminate();
    while !peaje.log().contains("a second signal ends at once") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    answers.notify_one();
    assert_eq!(peaje.ended().await.code(), Some(0), "{}", peaje.log());
    let row = Reader::open(&peaje.books()).unwrap().channel(&payer.id()).unwrap().unwrap();
    assert_eq!(row.snapshot.charged.units(), PRICE, "the second one failed");
    stage.strike().await;
}
