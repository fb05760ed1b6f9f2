//! The real binary, told to stop a second time while it serves.

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
    // It listens for the next signal from about now on.
    tokio::time::sleep(Duration::from_millis(200)).await;
    peaje.terminate();
    assert_eq!(peaje.ended().await.code(), Some(1), "{}", peaje.log());
    assert!(cut_off.await.unwrap().is_err(), "nothing was served");
    let row = Reader::open(&peaje.books()).unwrap().channel(&payer.id()).unwrap().unwrap();
    assert_eq!(row.snapshot.charged.units(), PRICE);
    stage.strike().await;
}
