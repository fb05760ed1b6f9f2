//! The stock client after a stream: what it has to know of it, it is told by the next corrective.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use peaje::chain::{AlloyChain, KeyRef};
use peaje::cli::site::{Books, Site};
use peaje::config::Config;
use peaje::devnet::{Devnet, DevnetConfig, genesis};
use peaje::gate::policy::Policy;
use peaje::protocol::contracts::SETTLEMENT;
use peaje::store::Identity;
use peaje::store::sqlite::SqliteStore;

use super::llm::{anthropic, openai};
use super::npm;
use super::stage::{Api, MOST, price_of_tokens, routes, send, whole};
use super::stock_client::Client;

/// What the payer has, atomic units.
const PURSE: u128 = 100_000_000;

/// The real proxy with the price list of these tests.
struct Stage {
    devnet: Devnet,
    site: Site,
    api: Api,
    client: Client,
    _folder: tempfile::TempDir,
}

fn dev_key(name: &str) -> peaje::protocol::LocalKey {
    name.parse::<KeyRef>().unwrap().load(true).unwrap()
}

fn config(rpc: &str, upstream: SocketAddr) -> Config {
    let text = format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        shutdown_timeout = "5s"
        [admin]
        listen = "off"
        [upstream]
        url = "http://{upstream}"
        [chain]
        network = "base-sepolia"
        rpc = "{rpc}"
        poll = "50ms"
        [receiver]
        pay_to = "0x00000000000000000000000000000000c0ffee01"
        authorizer_key = "dev:authorizer"
        gas_key = "dev:gas"
        [[route]]
        path = "/*"
        price = "$1"
        "#
    );
    Config::parse(&text, "streaming.toml").unwrap_or_else(|errors| panic!("{errors}"))
}

fn books_in(directory: &Path) -> Books {
    let identity = Identity { chain_id: 84_532, settlement: SETTLEMENT };
    Books::open(SqliteStore::open(directory, identity).unwrap()).unwrap()
}

impl Stage {
    async fn set() -> Self {
        let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
        let api = Api::start().await;
        let config = config(&devnet.rpc_url(), api.address);
        let chain = AlloyChain::connect(devnet.rpc_url().parse().unwrap(), Some(dev_key("dev:gas"))).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let authorizer = dev_key("dev:authorizer");
        let terms = config.terms(authorizer.address());
        let site = Site::open(&config, authorizer, Arc::new(chain), books_in(folder.path())).await.unwrap();
        site.gate().set_policy(Policy::new(terms, "http://127.0.0.1", routes()).unwrap());
        let payer = dev_key("dev:agent").address();
        devnet.mint_dollars(alloy::primitives::Address::new(payer.0), PURSE).unwrap();
        let client = Client::start(genesis::DEV_KEYS[3].to_string(), devnet.rpc_url()).await;
        Self { devnet, site, api, client, _folder: folder }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.site.address())
    }

    /// The next answer is this stream.
    fn stream(&self, pieces: Vec<String>) {
        let frames = self.api.next_live(&[("content-type", "text/event-stream")]);
        tokio::spawn(async move {
            for piece in pieces {
                send(&frames, piece).await;
            }
        });
    }

    fn charged(&self) -> u128 {
        self.site.gate().accounts().statements().iter().map(|books| books.charged.units()).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_client_goes_on_after_a_stream_and_nothing_is_paid_twice() {
    if npm::skipped() {
        let _ = writeln!(std::io::stderr(), "SKIPPED, told so by the environment: the stock client after a stream");
        return;
    }
    const CORRECTED: &[&str] = &["nothing 402", "voucher corrected by voucher", "voucher 200"];
    let mut stage = Stage::set().await;
    let (tokens, json) = (stage.url("/tokens"), ("content-type", "application/json"));
    let usage = r#"{"usage":{"prompt_tokens":10,"completion_tokens":1}}"#;
    let mut charged = 0;

    // The first one deposits: its receipt books the deposit and no charge, because none is known.
    let (pieces, price) = openai();
    stage.stream(pieces.clone());
    let first = stage.client.pay(&tokens).await;
    first.served_by(&["nothing 402", "deposit 200"]);
    charged += price;
    assert_eq!(first.body, pieces.concat());
    assert_eq!(first.receipt("/extra/chargedAmount"), "0");
    assert_eq!(first.receipt("/extra/channelState/chargedCumulativeAmount"), "0");
    assert_eq!(stage.charged(), charged);

    // The next one is told what the first one cost, and does not deposit again.
    let (pieces, price) = anthropic();
    stage.stream(pieces.clone());
    let second = stage.client.pay(&tokens).await;
    second.served_by(CORRECTED);
    charged += price;
    assert_eq!((second.body, second.receipt), (pieces.concat(), None));
    assert_eq!(stage.charged(), charged);

    // A small answer has its receipt, so the one after it needs no corrective.
    for story in [CORRECTED, &["nothing 402", "voucher 200"]] {
        stage.api.next(whole(&[json], usage));
        let small = stage.client.pay(&tokens).await;
        small.served_by(story);
        charged += price_of_tokens(10, 0, 0, 1);
        assert_eq!(small.receipt("/extra/chargedAmount"), price_of_tokens(10, 0, 0, 1).to_string());
        assert_eq!(small.receipt("/extra/channelState/chargedCumulativeAmount"), charged.to_string());
    }

    // One that costs nothing and one that costs the most.
    stage.stream(vec!["data: {\"usage\":{\"prompt_tokens\":0}}\n\n".to_owned()]);
    stage.client.pay(&tokens).await.served_by(&["nothing 402", "voucher 200"]);
    charged += 7;
    stage.stream(vec!["data: [DONE]\n\n".to_owned()]);
    stage.client.pay(&tokens).await.served_by(CORRECTED);
    charged += MOST;
    stage.api.next(whole(&[json], usage));
    stage.client.pay(&tokens).await.served_by(CORRECTED);
    charged += price_of_tokens(10, 0, 0, 1);
    assert_eq!(stage.charged(), charged);

    let chain = stage.site.close().await.expect("stopping redeems");
    assert!(chain.is_complete(), "{chain:?}");
    let pay_to = alloy::primitives::address!("00000000000000000000000000000000c0ffee01");
    assert_eq!(stage.devnet.dollar_balance(pay_to).unwrap(), charged, "the receiver has what was charged");
    stage.devnet.shutdown().await;
}
