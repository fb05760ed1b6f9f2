//! Several chains side by side, through the real binary: each request is quoted on all of them and paid on any; each has
//! books, claims and settlements of its own; and one that is down keeps nobody from paying on the other.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/payer.rs"]
mod payer;
#[path = "support/serve.rs"]
mod serve;
#[path = "support/stage.rs"]
mod stage;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peaje::chain::KeyRef;
use peaje::config::Config;
use peaje::devnet::{Devnet, DevnetConfig, genesis};
use peaje::gate::policy::Terms;
use peaje::protocol::Address;
use peaje::protocol::x402::{self, PAYMENT_REQUIRED};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use payer::{Payer, Payment};
use serve::{Peaje, Settings};
use stage::{DEPOSIT, PAY_TO, PRICE, Stage, ask};

/// The other chain's id, which has no preset.
const OTHER: u64 = 31_337;
/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

struct Shop {
    stage: Stage,
    /// The second chain.
    other: Devnet,
    /// What leads to it.
    line: Line,
    peaje: Peaje,
    /// For each chain.
    terms: Vec<Terms>,
}

/// A connection to a node, which can be cut.
struct Line {
    address: SocketAddr,
    cut: watch::Sender<bool>,
}

impl Line {
    async fn to(node: SocketAddr) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (cut, is_cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = socket.accept().await {
                let mut is_cut = is_cut.clone();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(node).await.unwrap();
                    tokio::select! {
                        // Otherwise an answer may slip through before it is looked at.
                        biased;
                        _ = is_cut.wait_for(|cut| *cut) => {}
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    }
                });
            }
        });
        Self { address, cut }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

impl Shop {
    async fn open() -> Self {
        let stage = Stage::set().await;
        let other = Devnet::start(DevnetConfig { chain_id: OTHER, ..DevnetConfig::default() }).await.unwrap();
        let line = Line::to(other.addr()).await;
        let mut peaje =
            Peaje::prepare(&Settings { redeem: "on_shutdown = true\ninterval = \"1h\"", ..stage.settings() });
        let second = format!(
            "[[chain]]\nchain_id = {OTHER}\nrpc = \"{}\"\npoll = \"50ms\"\n[chain.token]\naddress = \"{}\"\ndecimals = \
             6\ndomain_name = \"USDC\"\ndomain_version = \"2\"\n[receiver]",
            line.url(),
            Address(genesis::DOLLAR.into_array())
        );
        peaje.amend("[chain]", "[[chain]]");
        peaje.amend("[receiver]", &second);
        peaje.start_again().await;
        let config = Config::load(&peaje.books().with_file_name("peaje.toml")).unwrap();
        let authorizer = "dev:authorizer".parse::<KeyRef>().unwrap().load(true).unwrap().address();
        let policy = config.policy(authorizer).unwrap();
        let terms = policy.tenders().iter().map(|tender| tender.terms.clone()).collect();
        Self { stage, other, line, peaje, terms }
    }

    fn devnet(&self, chain: usize) -> &Devnet {
        if chain == 0 { &self.stage.devnet } else { &self.other }
    }

    fn payer(&self, n: u8, chain: usize) -> Payer {
        Payer::new(n, &self.terms[chain], PRICE)
    }

    /// A payer with [`DEPOSIT`], which has deposited it and paid once.
    async fn opened(&self, n: u8, chain: usize) -> Payer {
        let payer = self.payer(n, chain);
        self.devnet(chain).mint_dollars(alloy::primitives::Address::new(payer.address().0), DEPOSIT).unwrap();
        self.buy(&payer.deposit(DEPOSIT, PRICE)).await;
        payer
    }

    async fn ask(&self, payment: &Payment) -> reqwest::Response {
        ask(&self.stage.client, &self.peaje.url("/thing"), payment).await.unwrap()
    }

    async fn buy(&self, payment: &Payment) {
        let answer = self.ask(payment).await;
        assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
    }

    /// The chains of a quote, in order.
    async fn quoted(&self) -> Vec<u64> {
        let answer = self.stage.client.get(self.peaje.url("/thing")).send().await.unwrap();
        networks(&answer)
    }

    async fn until_quoted(&self, expected: &[u64]) {
        let deadline = Instant::now() + PATIENCE;
        while self.quoted().await != expected {
            assert!(Instant::now() < deadline, "still {:?}", self.quoted().await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn received(&self, chain: usize) -> u128 {
        let pay_to: Address = PAY_TO.parse().unwrap();
        self.devnet(chain).dollar_balance(alloy::primitives::Address::new(pay_to.0)).unwrap()
    }

    /// What the channels of each chain were charged, by the running proxy.
    async fn charged(&self) -> [u128; 2] {
        let lines = self.peaje.channels().await;
        let of = |chain: u64| lines.iter().filter(|line| line.chain == chain).map(|line| line.charged.units()).sum();
        [of(84_532), of(OTHER)]
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.peaje.succeed(arguments)).unwrap()
    }
}

fn networks(answer: &reqwest::Response) -> Vec<u64> {
    assert_eq!(answer.status(), 402);
    let quote: Value = x402::decode(answer.headers()[PAYMENT_REQUIRED].as_bytes()).unwrap();
    let offers = quote["accepts"].as_array().unwrap();
    offers.iter().map(|offer| x402::chain_id_of(offer["network"].as_str().unwrap()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_paid_on_each_chain_is_in_its_books_and_redeemed_there() {
    let mut shop = Shop::open().await;
    assert_eq!(shop.quoted().await, [84_532, OTHER]);
    // The same wallet on both: its channels differ by the chain alone.
    let (here, there) = (shop.opened(1, 0).await, shop.opened(1, 1).await);
    assert_ne!(here.id(), there.id());
    shop.buy(&there.voucher(2 * PRICE)).await;
    assert_eq!(shop.charged().await, [PRICE, 2 * PRICE]);

    // A voucher is good on its own chain only.
    let crossed = here.voucher(2 * PRICE).set("/accepted", there.offer.clone());
    assert_eq!(shop.ask(&crossed).await.status(), 402);
    // Whoever pays with an offer finds it first.
    assert_eq!(networks(&shop.ask(&there.voucher(PRICE)).await), [OTHER, 84_532]);

    let preview = shop.json(&["redeem", "--dry-run"]);
    assert_eq!(preview["84532"]["claims"], json!(PRICE.to_string()), "{preview}");
    assert_eq!(preview["31337"]["claims"], json!((2 * PRICE).to_string()));
    let report = shop.json(&["redeem", "--network", "31337"]);
    assert_eq!(report["settled"], json!((2 * PRICE).to_string()), "{report}");
    assert_eq!((shop.received(0), shop.received(1)), (0, 2 * PRICE));
    let reports = shop.json(&["redeem"]);
    assert_eq!(reports["84532"]["settled"], json!(PRICE.to_string()), "{reports}");
    assert_eq!((shop.received(0), shop.received(1)), (PRICE, 2 * PRICE));
    assert!(!shop.peaje.command(&["redeem", "--network", "polygon"]).status.success());

    // A crash: each chain's books are there, and go on.
    shop.buy(&here.voucher(2 * PRICE)).await;
    shop.buy(&there.voucher(3 * PRICE)).await;
    shop.peaje.crash();
    shop.peaje.start_again().await;
    assert_eq!(shop.charged().await, [2 * PRICE, 3 * PRICE]);
    shop.buy(&here.voucher(3 * PRICE)).await;
    shop.buy(&there.voucher(4 * PRICE)).await;
    // A refund goes to its own chain.
    shop.buy(&there.refund(4 * PRICE, None)).await;
    let purse = alloy::primitives::Address::new(there.address().0);
    assert_eq!(shop.devnet(1).dollar_balance(purse).unwrap(), DEPOSIT - 4 * PRICE);
    assert_eq!(shop.devnet(0).dollar_balance(purse).unwrap(), 0);

    for network in ["base-sepolia", "31337"] {
        let verified = shop.json(&["ledger", "verify", "--chain", "--json", "--network", network]);
        assert_eq!(verified["ok"], json!(true), "{verified}");
    }
    assert!(!shop.peaje.command(&["ledger", "show"]).status.success(), "which of them?");
    assert!(shop.peaje.books().join("31337").is_dir());
    // On the way down both are redeemed.
    shop.peaje.stop().await;
    assert_eq!((shop.received(0), shop.received(1)), (3 * PRICE, 4 * PRICE));
    shop.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_is_down_is_not_quoted_and_the_other_sells() {
    let shop = Shop::open().await;
    let (here, there) = (shop.opened(1, 0).await, shop.opened(2, 1).await);
    shop.line.cut(true);
    shop.until_quoted(&[84_532]).await;
    // The other one sells, opens channels, and redeems.
    shop.buy(&here.voucher(2 * PRICE)).await;
    let _ = shop.opened(3, 0).await;
    // What was deposited on the chain that is down still pays: its vouchers need no chain.
    shop.buy(&there.voucher(2 * PRICE)).await;
    let report = shop.json(&["redeem", "--network", "base-sepolia"]);
    assert_eq!(report["settled"], json!((3 * PRICE).to_string()), "{report}");
    assert_eq!(shop.received(0), 3 * PRICE);
    shop.line.cut(false);
    shop.until_quoted(&[84_532, OTHER]).await;
    let _ = shop.opened(4, 1).await;
    shop.stage.strike().await;
}
