//! The stock client pays with a token that has no ERC-3009: it deposits through Permit2, and signs the EIP-2612 permit
//! that Permit2 needs where the quote offers to relay it. The payer never sends a transaction.
//!
//! The proxy runs in this process, put together as `peaje serve` does it.

use std::sync::Arc;

use peaje::chain::AlloyChain;
use peaje::cli::site::{Books, Site};
use peaje::config::Config;
use peaje::devnet::genesis;
use peaje::gate::policy::{TokenTerms, Transfer};
use peaje::protocol::Address;
use peaje::protocol::contracts::{PERMIT2, SETTLEMENT};

use super::chain::{Kind, TestChain, dev};
use super::client::Client;
use super::upstream::Upstream;
use super::{BY_DEPOSIT, BY_VOUCHER, PRICE, PURSE, npm, package, payer, receiver, units};

/// What the proxy asks as the least deposit, atomic units: four requests.
const DEPOSIT: u128 = 8_000;

struct Shop {
    chain: TestChain,
    site: Site,
    client: Client,
    /// The URL of what is sold.
    thing: String,
    _upstream: Upstream,
}

fn plain_dollar() -> TokenTerms {
    TokenTerms {
        address: Address(genesis::PLAIN_DOLLAR.into_array()),
        decimals: 6,
        domain_name: "Plain Dollar".to_owned(),
        domain_version: "1".to_owned(),
        transfer: Transfer::Permit2,
        sponsored: true,
    }
}

impl Shop {
    async fn open(kind: Kind) -> Self {
        package::directory();
        let token = plain_dollar();
        let chain = TestChain::start_with(kind, token.address).await;
        chain.mint(payer(), PURSE).await;
        let upstream = Upstream::start().await;
        let mut config = Config::parse(&config(&chain.rpc, &upstream, receiver()), "permit2.toml").unwrap();
        let asset = Some(token.address.to_string());
        config.chain.token = token;
        let node = AlloyChain::connect(chain.rpc.parse().unwrap(), Some(dev("gas"))).await.unwrap();
        let site = Site::open(&config, dev("authorizer"), Arc::new(node), Books::in_memory()).await.unwrap();
        // The key that `dev:agent` names.
        let client = Client::start_with(genesis::DEV_KEYS[3].to_string(), chain.rpc.clone(), asset).await;
        let thing = format!("http://{}/thing", site.address());
        Self { chain, site, client, thing, _upstream: upstream }
    }

    /// One request that deposits, with or without a permit.
    async fn pay_by_deposit(&mut self, permit: bool) {
        let answer = self.client.pay(&self.thing).await;
        answer.served_by(BY_DEPOSIT);
        assert_eq!(units(answer.receipt("/amount")), DEPOSIT);
        assert_eq!(answer.last().permit, permit);
    }

    async fn pay_by_voucher(&mut self, count: usize) {
        let answers = self.client.pay_times(&self.thing, count).await;
        answers.iter().for_each(|answer| answer.served_by(BY_VOUCHER));
    }

    /// The end: what was charged is claimed and settled, and no unit is lost.
    async fn close(self, charged: u128) {
        let report = self.site.close().await.expect("stopping redeems");
        assert!(report.is_complete(), "{report:?}");
        let (paid, locked) = (self.chain.dollars(receiver()).await, self.chain.dollars(SETTLEMENT).await);
        assert_eq!(paid, charged * PRICE, "the receiver has what was charged");
        assert!(self.chain.owed(receiver()).await.due().is_zero(), "nothing is left to settle");
        assert_eq!(self.chain.dollars(payer()).await + locked + paid, PURSE, "no unit is lost");
    }
}

fn config(rpc: &str, upstream: &Upstream, pay_to: Address) -> String {
    format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        public_url = "https://api.example.test"
        shutdown_timeout = "5s"
        [admin]
        listen = "off"
        [upstream]
        url = "http://{}"
        [chain]
        network = "base-sepolia"
        rpc = "{rpc}"
        poll = "50ms"
        [receiver]
        pay_to = "{pay_to}"
        authorizer_key = "dev:authorizer"
        gas_key = "dev:gas"
        [channel]
        min_deposit = "$0.008"
        [[route]]
        path = "/*"
        price = "$0.002"
        "#,
        upstream.address
    )
}

/// The payer has no gas, no allowance, and tokens.
async fn permits_come_along_with_deposits(kind: Kind) {
    let mut shop = Shop::open(kind).await;
    shop.pay_by_deposit(true).await;
    assert_eq!(shop.chain.deposits().await, [DEPOSIT]);
    shop.pay_by_voucher(3).await;
    // The channel ran out: a top-up, with a permit of the next nonce.
    shop.pay_by_deposit(true).await;
    shop.pay_by_voucher(1).await;
    assert_eq!(shop.chain.deposits().await, [DEPOSIT; 2]);
    let refund = shop.client.refund(&shop.thing, None).await;
    assert_eq!(units(refund.receipt("/amount")), 2 * DEPOSIT - 6 * PRICE, "{refund:#?}");
    // Refunded to nothing, it opens again.
    shop.pay_by_deposit(true).await;
    shop.close(7).await;
}

async fn who_allowed_permit2_before_signs_no_permit(kind: Kind) {
    let mut shop = Shop::open(kind).await;
    shop.chain.approve(payer(), PERMIT2, DEPOSIT).await;
    shop.pay_by_deposit(false).await;
    shop.pay_by_voucher(3).await;
    // The allowance is used up.
    shop.pay_by_deposit(true).await;
    shop.close(5).await;
}

macro_rules! on_both_chains {
    ($($claim:ident,)*) => {
        mod on_our_devnet {
            $(#[test] fn $claim() { super::run(super::$claim(super::Kind::Devnet)); })*
        }
        mod on_anvil {
            $(#[test] fn $claim() { super::run(super::$claim(super::Kind::Anvil)); })*
        }
    };
}

on_both_chains! {
    permits_come_along_with_deposits,
    who_allowed_permit2_before_signs_no_permit,
}

fn run(story: impl Future<Output = ()>) {
    if npm::skipped() {
        return;
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(story);
}
