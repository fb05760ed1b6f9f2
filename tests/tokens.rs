//! Several tokens side by side, through the real binary: each request is quoted in all of them, paid with any, and every
//! token is claimed and settled by itself. Two of the three differ in their decimal places.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/payer.rs"]
mod payer;
#[path = "support/serve.rs"]
mod serve;
#[path = "support/stage.rs"]
mod stage;

use std::time::{Duration, Instant};

use alloy::primitives::address;
use peaje::chain::KeyRef;
use peaje::config::Config;
use peaje::devnet::genesis;
use peaje::gate::policy::Terms;
use peaje::protocol::x402::{self, PAYMENT_REQUIRED};
use peaje::protocol::{Address, Amount};
use peaje::telemetry::access::{AccessRecord, Outcome};
use serde_json::{Value, json};

use payer::{Payer, Payment, now_s};
use serve::{Peaje, Settings};
use stage::{PAY_TO, PRICE, Stage, ask};

/// Where the token with eighteen decimal places is: the test dollar's code, which does not care.
const FINE: alloy::primitives::Address = address!("f1e0000000000000000000000000000000000018");
/// A unit of the preferred token in units of that one.
const FINER: u128 = 1_000_000_000_000;
/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn ours(address: alloy::primitives::Address) -> Address {
    Address(address.into_array())
}

/// The tokens of the config, the preferred one first, with what one unit of the preferred one is in them.
fn tokens() -> [(alloy::primitives::Address, u128); 3] {
    [(genesis::DOLLAR, 1), (FINE, FINER), (genesis::PLAIN_DOLLAR, 1)]
}

struct Shop {
    stage: Stage,
    peaje: Peaje,
    /// For each token.
    terms: Vec<Terms>,
}

impl Shop {
    /// With these lines in `[redeem]`.
    async fn open(redeem: &str) -> Self {
        let stage = Stage::set().await;
        let code = genesis::contracts().into_iter().find(|(at, _)| *at == genesis::DOLLAR).unwrap().1;
        stage.devnet.set_code(FINE, code).unwrap();
        let redeem = format!("on_shutdown = false\ninterval = \"1h\"\n{redeem}");
        let mut peaje = Peaje::prepare(&Settings { redeem: &redeem, ..stage.settings() });
        let list = format!(
            "token = [\"usdc\", {{ address = \"{}\", decimals = 18, domain_name = \"USDC\", domain_version = \"2\" }}, \
             {{ address = \"{}\", decimals = 6, domain_name = \"Plain Dollar\", domain_version = \"1\", transfer = \
             \"permit2\" }}]",
            ours(FINE),
            ours(genesis::PLAIN_DOLLAR)
        );
        peaje.amend("poll = \"50ms\"", &format!("poll = \"50ms\"\n{list}"));
        peaje.amend("[log]", "[log]\naccess = \"access.jsonl\"");
        peaje.start_again().await;
        let config = Config::load(&peaje.books().with_file_name("peaje.toml")).unwrap();
        let authorizer = "dev:authorizer".parse::<KeyRef>().unwrap().load(true).unwrap().address();
        let policy = config.policy(authorizer).unwrap();
        let terms = policy.tenders().iter().map(|tender| tender.terms.clone()).collect();
        Self { stage, peaje, terms }
    }

    /// The `n`th payer, with a dollar of a token in its purse and what the route costs in it in mind.
    fn payer(&self, n: u8, token: usize) -> (Payer, u128) {
        let (address, unit) = tokens()[token];
        let payer = Payer::new(n, &self.terms[token], PRICE * unit);
        let purse = alloy::primitives::Address::new(payer.address().0);
        self.stage.devnet.mint(address, purse, 1_000_000 * unit).unwrap();
        (payer, unit)
    }

    /// A payer that has deposited all it has and paid once.
    async fn opened(&self, n: u8, token: usize) -> (Payer, u128) {
        let (mut payer, unit) = self.payer(n, token);
        let (deposit, price) = (1_000_000 * unit, PRICE * unit);
        let quote = self.quote().await;
        payer.offer = quote["accepts"][token].clone();
        let payment = match token {
            2 => payer.permit2(deposit, price).with_permit(payer.permit(deposit, 0, now_s() + 60)),
            _ => payer.deposit(deposit, price),
        };
        let answer = self.ask(&payment).await;
        assert_eq!(answer.status(), 200, "token {token}: {:?}", answer.text().await);
        (payer, unit)
    }

    async fn ask(&self, payment: &Payment) -> reqwest::Response {
        ask(&self.stage.client, &self.peaje.url("/thing"), payment).await.unwrap()
    }

    /// Pays with this voucher, and must be served.
    async fn buy(&self, payment: &Payment) {
        let answer = self.ask(payment).await;
        assert_eq!(answer.status(), 200, "{:?}", quote_in(&answer));
    }

    async fn quote(&self) -> Value {
        let answer = self.stage.client.get(self.peaje.url("/thing")).send().await.unwrap();
        assert_eq!(answer.status(), 402);
        quote_in(&answer)
    }

    /// What the provider has of a token.
    fn received(&self, token: usize) -> u128 {
        let pay_to: Address = PAY_TO.parse().unwrap();
        self.stage.devnet.token_balance(tokens()[token].0, alloy::primitives::Address::new(pay_to.0)).unwrap()
    }

    fn received_of_each(&self) -> [u128; 3] {
        [0, 1, 2].map(|token| self.received(token))
    }

    fn verify(&self) -> Value {
        serde_json::from_slice(&self.peaje.succeed(&["ledger", "verify", "--chain", "--json"])).unwrap()
    }
}

fn quote_in(answer: &reqwest::Response) -> Value {
    x402::decode(answer.headers()[PAYMENT_REQUIRED].as_bytes()).unwrap()
}

fn sums_of(sums: &Value, what: &str) -> (Address, u128) {
    (sums["token"].as_str().unwrap().parse().unwrap(), sums[what].as_str().unwrap().parse().unwrap())
}

fn sorted(mut sums: Vec<(Address, u128)>) -> Vec<(Address, u128)> {
    sums.sort();
    sums
}

/// The assets a quote offers, in order, and which of them are correctives.
fn assets(quote: &Value) -> Vec<(Address, bool)> {
    let offers = quote["accepts"].as_array().unwrap();
    let asset = |offer: &Value| offer["asset"].as_str().unwrap().parse().unwrap();
    offers.iter().map(|offer| (asset(offer), offer["extra"].get("channelState").is_some())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_quoted_in_every_token_and_paid_with_any() {
    let mut shop = Shop::open("").await;
    let quote = shop.quote().await;
    let [dollar, fine, plain] = tokens().map(|(address, _)| ours(address));
    assert_eq!(assets(&quote), [(dollar, false), (fine, false), (plain, false)]);
    for (token, (_, unit)) in tokens().into_iter().enumerate() {
        let offer = &quote["accepts"][token];
        assert_eq!(offer["amount"], json!((PRICE * unit).to_string()));
        assert_eq!(offer["extra"]["minDeposit"], json!((150_000 * unit).to_string()));
        assert_eq!(offer["extra"].get("assetTransferMethod").is_some(), token == 2);
    }
    assert!(quote["extensions"]["eip2612GasSponsoring"].is_object(), "one of them takes permits");

    for (number, token) in [(1, 0), (2, 1), (3, 2), (1, 1)] {
        let (payer, unit) = shop.opened(number, token).await;
        shop.buy(&payer.voucher(2 * PRICE * unit)).await;
    }
    assert_eq!(shop.peaje.channels().await.len(), 4, "one payer has a channel in each of two tokens");

    // A crash, and all of it is there and goes on.
    shop.peaje.crash();
    shop.peaje.start_again().await;
    let (payer, unit) = shop.payer(2, 1);
    shop.buy(&payer.voucher(3 * PRICE * unit)).await;

    let report = shop.peaje.redeem();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(shop.received_of_each(), [2 * PRICE, 5 * PRICE * FINER, 2 * PRICE]);
    let exactly = |token| (report.tokens[&token].claimed.units(), report.tokens[&token].settled.units());
    assert_eq!(exactly(dollar), (2 * PRICE, 2 * PRICE));
    assert_eq!(exactly(fine), (5 * PRICE * FINER, 5 * PRICE * FINER));
    assert_eq!(exactly(plain), (2 * PRICE, 2 * PRICE));
    let all = Amount::new(9 * PRICE);
    assert_eq!((report.claimed, report.settled, report.left), (all, all, Amount::ZERO), "a dollar is a dollar");
    let verified = shop.verify();
    assert_eq!(verified["ok"], json!(true), "{verified}");
    let sums: Vec<_> = verified["sums"].as_array().unwrap().iter().map(|sums| sums_of(sums, "charged")).collect();
    let each = [(dollar, 2 * PRICE), (fine, 5 * PRICE * FINER), (plain, 2 * PRICE)];
    assert_eq!(sorted(sums), sorted(each.to_vec()));
    let settled: Vec<_> =
        verified["sums"].as_array().unwrap().iter().map(|sums| sums_of(sums, "settled_here")).collect();
    assert_eq!(sorted(settled), sorted(each.to_vec()));
    let charges =
        String::from_utf8(shop.peaje.succeed(&["ledger", "export", "--what", "charges", "--format", "jsonl"]));
    let lines: Vec<Value> = charges.unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let cents = |line: &Value| line["dollars"].as_str().unwrap().parse::<f64>().unwrap() * 1_000.0;
    assert_eq!(lines.iter().map(cents).sum::<f64>().round(), 18.0, "each line in its own token: {lines:?}");

    // A refund of the finer one: what was not charged comes back to the unit.
    let answer = shop.ask(&payer.refund(3 * PRICE * unit, None)).await;
    assert_eq!(answer.status(), 200);
    let purse = alloy::primitives::Address::new(payer.address().0);
    let back = shop.stage.devnet.token_balance(FINE, purse).unwrap();
    assert_eq!(back, (1_000_000 + 1_000_000 - 3 * PRICE) * unit, "it was given a dollar once more meanwhile");
    shop.peaje.stop().await;
    // Each request is recorded in the token that paid it.
    let log = std::fs::read_to_string(shop.peaje.books().with_file_name("access.jsonl")).unwrap();
    let records = log.lines().map(|line| serde_json::from_str::<AccessRecord>(line).unwrap());
    let paid: Vec<_> = records.filter(|record| record.outcome == Outcome::Paid).collect();
    assert!(paid.len() > 1, "those before the crash may be lost: {}", paid.len());
    let replayed: Value = serde_json::from_slice(&shop.peaje.succeed(&["replay", "access.jsonl"])).unwrap();
    let dollars = PRICE * u128::try_from(paid.len()).unwrap();
    assert_eq!(replayed["total"]["old"]["revenue"], dollars.to_string());
    assert_eq!(replayed["total"]["new"]["revenue"], dollars.to_string());
    for record in paid {
        let (_, unit) = tokens().into_iter().find(|(address, _)| Some(ours(*address)) == record.asset).unwrap();
        let price = Some(Amount::new(PRICE * unit));
        assert_eq!((record.quote, record.charge, record.network.as_deref()), (price, price, Some("eip155:84532")));
    }
    shop.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrective_begins_with_the_offer_that_was_paid_with() {
    let shop = Shop::open("").await;
    let addresses = tokens().map(|(address, _)| ours(address));
    for token in 0..3 {
        let (payer, unit) = shop.opened(1, token).await;
        // One that its channel is past.
        let answer = shop.ask(&payer.voucher(PRICE * unit)).await;
        assert_eq!(answer.status(), 402);
        let quote = quote_in(&answer);
        assert_eq!(quote["error"], json!("invalid_batch_settlement_evm_cumulative_amount_mismatch"));
        let mut expected = vec![(addresses[token], true)];
        expected.extend(addresses.iter().filter(|other| **other != addresses[token]).map(|other| (*other, false)));
        assert_eq!(assets(&quote), expected);
        let state = &quote["accepts"][0]["extra"]["channelState"];
        assert_eq!(state["chargedCumulativeAmount"], json!((PRICE * unit).to_string()));
    }
    shop.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_of_one_token_is_not_answered_with_another() {
    let shop = Shop::open("").await;
    let (dollar, _) = shop.opened(1, 0).await;
    let (fine, unit) = shop.opened(2, 1).await;
    // The price of the one in units of the other.
    let cheap = fine.voucher((PRICE + 1) * unit).set("/accepted/amount", PRICE.to_string());
    let answer = shop.ask(&cheap).await;
    assert_eq!(
        (answer.status().as_u16(), quote_in(&answer)["error"].clone()),
        (402, json!("No matching payment requirements"))
    );
    // A channel of the one under the offer of the other.
    let crossed = fine.voucher(2 * PRICE * unit).set("/accepted", dollar.offer.clone());
    let answer = shop.ask(&crossed).await;
    assert_eq!(quote_in(&answer)["error"], json!("invalid_batch_settlement_evm_token_mismatch"));
    // A deposit below the least, which is the same dollars in each.
    let (poor, unit) = shop.payer(3, 1);
    for (deposit, status) in [(150_000 * unit - 1, 402), (150_000 * unit, 200)] {
        let mut poor = poor.clone();
        poor.offer = shop.quote().await["accepts"][1].clone();
        let answer = shop.ask(&poor.deposit(deposit, PRICE * unit)).await;
        assert_eq!(answer.status(), status, "{deposit}");
    }
    shop.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unclaimed_in_all_tokens_counts_together_as_dollars() {
    let shop = Shop::open("max_unclaimed = \"$0.005\"").await;
    let (dollar, _) = shop.opened(1, 0).await;
    let (fine, unit) = shop.opened(2, 1).await;
    // $0.004 until now: so much of the finer token would be far more than the threshold if units were compared.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(shop.received_of_each(), [0; 3], "it is not more than the threshold");
    shop.buy(&dollar.voucher(2 * PRICE)).await;
    let deadline = Instant::now() + PATIENCE;
    while shop.received_of_each() != [2 * PRICE, PRICE * unit, 0] {
        assert!(Instant::now() < deadline, "{:?}", shop.received_of_each());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shop.buy(&fine.voucher(2 * PRICE * unit)).await;
    let state: Value = serde_json::from_slice(&shop.peaje.succeed(&["redeem", "--status"])).unwrap();
    assert_eq!(state["vitals"]["unclaimed"], json!(PRICE.to_string()), "{state}");
    assert_eq!(state["settings"]["decimals"], json!(6));
    let preview: Value = serde_json::from_slice(&shop.peaje.succeed(&["redeem", "--dry-run"])).unwrap();
    assert_eq!(preview["claims"], json!(PRICE.to_string()), "{preview}");
    shop.stage.strike().await;
}
