//! The real binary, told to stop a second time while it serves.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/payer.rs"]
mod payer;
#[path = "support/serve.rs"]
mod serve;

use std::sync::Arc;
use std::time::Duration;

use peaje::chain::KeyRef;
use peaje::config::Config;
use peaje::devnet::{Devnet, DevnetConfig};
use peaje::protocol::Address;
use peaje::protocol::x402::PAYMENT_SIGNATURE;
use peaje::store::sqlite::Reader;
use tokio::sync::Notify;

use payer::Payer;
use serve::{Peaje, Settings};

const PRICE: u128 = 2_000;
const DEPOSIT: u128 = 50_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_cut_off_by_a_second_signal_is_not_charged() {
    let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = socket.local_addr().unwrap();
    let asked = Arc::new(Notify::new());
    let hears = Arc::clone(&asked);
    let slow = move || {
        hears.notify_one();
        std::future::pending::<&str>()
    };
    let api = axum::Router::new().route("/slow", axum::routing::get(slow)).fallback(|| async { "served" });
    let api = tokio::spawn(async move { axum::serve(socket, api).await });
    let rpc = devnet.rpc_url();
    let mut peaje = Peaje::start(&Settings {
        rpc: &rpc,
        upstream,
        pay_to: "0x00000000000000000000000000000000c0ffee01".to_owned(),
        price: "$0.002",
        min_deposit: "$0.15",
        log: "info",
        books: None,
        redeem: "on_shutdown = false",
        within: None,
    })
    .await;
    let config = Config::load(&peaje.books().with_file_name("peaje.toml")).unwrap();
    let authorizer: Address = "dev:authorizer".parse::<KeyRef>().unwrap().load(true).unwrap().address();
    let payer = Payer::new(1, &config.terms(authorizer), PRICE);
    devnet.mint_dollars(alloy::primitives::Address::new(payer.address().0), DEPOSIT).unwrap();
    let client = serve::http_client();
    let ask = |path: &str, payment: &payer::Payment| {
        client.get(peaje.url(path)).header(PAYMENT_SIGNATURE, payment.header()).send()
    };
    assert_eq!(ask("/thing", &payer.deposit(DEPOSIT, PRICE)).await.unwrap().status(), 200);
    let cut_off = tokio::spawn(ask("/slow", &payer.voucher(2 * PRICE)));
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
    api.abort();
    devnet.shutdown().await;
}
