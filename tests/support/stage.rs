//! What the real binary needs around it: a chain, an API to sell, and payers with money.
#![allow(dead_code, reason = "a toolbox: not every test needs every tool")]

use std::net::SocketAddr;

use axum::Router;
use peaje::chain::KeyRef;
use peaje::config::Config;
use peaje::devnet::{Devnet, DevnetConfig};
use peaje::protocol::Address;
use peaje::protocol::x402::PAYMENT_SIGNATURE;
use tokio::task::JoinHandle;

use super::payer::{Payer, Payment};
use super::serve::{self, Peaje, Settings};

/// What a request costs, atomic units.
pub(crate) const PRICE: u128 = 2_000;
/// What a payer deposits, atomic units; all it has.
pub(crate) const DEPOSIT: u128 = 50_000_000;
/// Who is paid. Nobody has its key.
pub(crate) const PAY_TO: &str = "0x00000000000000000000000000000000c0ffee01";

pub(crate) struct Stage {
    pub(crate) devnet: Devnet,
    pub(crate) rpc: String,
    pub(crate) client: reqwest::Client,
    upstream: SocketAddr,
    api: JoinHandle<std::io::Result<()>>,
}

impl Stage {
    /// With an API that answers everything at once.
    pub(crate) async fn set() -> Self {
        Self::set_with(Router::new().fallback(|| async { "served" })).await
    }

    pub(crate) async fn set_with(api: Router) -> Self {
        let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = socket.local_addr().unwrap();
        let api = tokio::spawn(async move { axum::serve(socket, api).await });
        Self { rpc: devnet.rpc_url(), devnet, client: serve::http_client(), upstream, api }
    }

    /// What the config of a proxy here says, if a test does not want it otherwise.
    pub(crate) fn settings(&self) -> Settings<'_> {
        Settings {
            rpc: &self.rpc,
            upstream: self.upstream,
            pay_to: PAY_TO.to_owned(),
            price: "$0.002",
            min_deposit: "$0.15",
            log: "info",
            books: None,
            redeem: "on_shutdown = false",
            within: None,
        }
    }

    /// The `n`th payer of a proxy, with [`DEPOSIT`] in its purse.
    pub(crate) fn payer(&self, peaje: &Peaje, n: u8) -> Payer {
        let config = Config::load(&peaje.books().with_file_name("peaje.toml")).unwrap();
        let authorizer = "dev:authorizer".parse::<KeyRef>().unwrap().load(true).unwrap().address();
        let payer = Payer::new(n, &config.terms(authorizer), PRICE);
        self.devnet.mint_dollars(alloy::primitives::Address::new(payer.address().0), DEPOSIT).unwrap();
        payer
    }

    /// What the provider has received, atomic units.
    pub(crate) fn received(&self) -> u128 {
        let pay_to: Address = PAY_TO.parse().unwrap();
        self.devnet.dollar_balance(alloy::primitives::Address::new(pay_to.0)).unwrap()
    }

    pub(crate) async fn strike(self) {
        self.api.abort();
        self.devnet.shutdown().await;
    }
}

/// A paid request, on whichever path.
pub(crate) async fn ask(client: &reqwest::Client, url: &str, payment: &Payment) -> reqwest::Result<reqwest::Response> {
    client.get(url).header(PAYMENT_SIGNATURE, payment.header()).send().await
}
