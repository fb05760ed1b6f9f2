//! Prices that change a thousand times while agents pay: nobody fails, and everybody is charged what it was quoted.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "support/payer.rs"]
mod payer;
#[path = "support/serve.rs"]
mod serve;
#[path = "support/stage.rs"]
mod stage;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use peaje::admin::Status;
use peaje::protocol::x402::{self, PAYMENT_REQUIRED, PAYMENT_RESPONSE};
use peaje::telemetry::access::{AccessRecord, Outcome};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use payer::Payer;
use serve::Peaje;
use stage::{Stage, ask};

const AGENTS: u8 = 32;
const RELOADS: u64 = 1_000;
/// Every so many reloads, one is of a file that is no config.
const BROKEN_EVERY: u64 = 50;
/// Every so many reloads, nobody orders one: the file is watched.
const WATCHED_EVERY: u64 = 100;
/// How often an agent pays a quote before it asks for another one.
const PAYMENTS_A_QUOTE: usize = 3;
const DEPOSIT: u128 = 50_000_000;
/// How long a reload, or anything else, may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The price lists the proxy goes through: other prices, other terms, another shape.
const LISTS: [&str; 5] = [
    "[[route]]\npath = \"/a\"\nprice = \"$0.002\"\n[[route]]\npath = \"/b/*\"\nprice = \"$0.001\"\n",
    "[[route]]\npath = \"/a\"\nprice = \"$0.003\"\n[[route]]\npath = \"/b/*\"\nprice = \"$0.001\"\n",
    "[[route]]\npath = \"/*\"\nprice = \"$0.0015\"\n",
    "[[route]]\npath = \"/{any}\"\nprice = \"$0.0005\"\n[[route]]\npath = \"/b/x\"\nprice = \"$0.004\"\n[[route]]\npath = \
     \"/b/*\"\nprice = \"$9\"\n",
    "[[route]]\npath = \"/a\"\nprice = \"$0.000001\"\nname = \"cheap\"\n[[route]]\npath = \"/b/x\"\nprice = \"$0.0021\"\n",
];

/// What an agent knows at the end.
struct Spent {
    payer: Payer,
    charged: u128,
    served: u64,
    /// The numbers of the price lists in its receipts.
    generations: std::collections::BTreeSet<u64>,
}

fn decoded(answer: &reqwest::Response, header: &str) -> Value {
    let value = answer.headers().get(header).unwrap_or_else(|| panic!("no {header}: {answer:?}"));
    x402::decode(value.as_bytes()).unwrap()
}

/// Asks for a price and pays it, over and over.
///
/// # Errors
/// A request without an answer: the proxy is gone, or it failed.
async fn spend(
    client: reqwest::Client,
    mut payer: Payer,
    url: String,
    stop: CancellationToken,
) -> reqwest::Result<Spent> {
    let (mut charged, mut served, mut deposited) = (0u128, 0, false);
    let mut generations = std::collections::BTreeSet::new();
    while !stop.is_cancelled() {
        let quote = client.get(&url).send().await?;
        assert_eq!(quote.status(), 402, "an unpaid request is quoted");
        payer.offer = decoded(&quote, PAYMENT_REQUIRED)["accepts"][0].clone();
        let price: u128 = payer.offer["amount"].as_str().unwrap().parse().unwrap();
        for _ in 0..PAYMENTS_A_QUOTE {
            let payment = if deposited { payer.voucher(charged + price) } else { payer.deposit(DEPOSIT, price) };
            let answer = ask(&client, &url, &payment).await?;
            assert_eq!(answer.status(), 200, "{answer:?}");
            let receipt = decoded(&answer, PAYMENT_RESPONSE);
            assert_eq!(receipt["extra"]["chargedAmount"], price.to_string(), "what was quoted is what is charged");
            charged += price;
            assert_eq!(receipt["extra"]["channelState"]["chargedCumulativeAmount"], charged.to_string());
            generations.insert(receipt["extra"]["priceGeneration"].as_u64().unwrap());
            (served, deposited) = (served + 1, true);
        }
    }
    Ok(Spent { payer, charged, served, generations })
}

/// The proxy's config file, and what in it is not the price list.
struct File {
    path: PathBuf,
    rest: String,
}

impl File {
    /// Puts a text in the place of the file, as deployments do.
    fn replace(&self, text: &str) {
        let new = self.path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &self.path).unwrap();
    }

    fn list(&self, number: u64) {
        let list = LISTS[usize::try_from(number).unwrap() % LISTS.len()];
        self.replace(&format!("{}\n{list}", self.rest));
    }
}

/// Waits until the status is as it should be.
async fn until(peaje: &Peaje, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
    let begun = Instant::now();
    loop {
        let status = peaje.status().await;
        if is_so(&status) {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}: {status:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until the log has all of these: what changed is in force a moment before it is told.
async fn logged(peaje: &Peaje, parts: &[&str]) {
    let begun = Instant::now();
    while !parts.iter().all(|part| peaje.log().contains(part)) {
        assert!(begun.elapsed() < PATIENCE, "{parts:?} in {}", peaje.log());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_reloads_fail_nobody_and_everybody_is_charged_what_it_was_quoted() {
    let stage = Stage::set().await;
    let settings = serve::Settings { log: "warn", ..stage.settings() };
    let mut peaje = Peaje::prepare(&settings);
    peaje.amend("[log]", "[log]\naccess = \"access.jsonl\"");
    let path = peaje.books().with_file_name("peaje.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (rest, _) = text.split_once("[[route]]").unwrap();
    let file = File { path, rest: rest.to_owned() };
    file.list(0);
    peaje.start_again().await;

    let stop = CancellationToken::new();
    let agents: Vec<_> = (0..AGENTS)
        .map(|number| {
            let payer = stage.payer(&peaje, number);
            let url = peaje.url(if number % 2 == 0 { "/a" } else { "/b/x" });
            tokio::spawn(spend(serve::http_client(), payer, url, stop.clone()))
        })
        .collect();

    let begun = Instant::now();
    let (mut generation, mut refused) = (1, 0);
    for number in 1..=RELOADS {
        if number % BROKEN_EVERY == 0 {
            file.replace(&format!("{}\n[[route]]\npath = \"/a\"\nprice = 7\n[[route]]\npath = \"/a\"\n", file.rest));
            peaje.hang_up();
            // The file before may have been refused twice: by the order, and by the watch over it.
            let is_refused = |status: &Status| status.config.refused > refused && status.config.failure.is_some();
            let status = until(&peaje, "a broken file is refused", is_refused).await;
            refused = status.config.refused;
            assert_eq!(status.price_generation, generation, "and changes nothing");
            let failure = status.config.failure.expect("and says why").errors;
            assert!(failure.len() >= 2 && failure[0].contains("peaje.toml:"), "{failure:?}");
        }
        file.list(number);
        if number % WATCHED_EVERY != 0 {
            peaje.hang_up();
        }
        let status = until(&peaje, "the list is in force", |status| status.price_generation > generation).await;
        generation += 1;
        assert_eq!((status.price_generation, &status.config.failure), (generation, &None));
    }
    let took = begun.elapsed();
    stop.cancel();
    let mut spent = Vec::new();
    for agent in agents {
        spent.push(agent.await.expect("no answer is wrong").expect("no request fails"));
    }

    let channels = peaje.channels().await;
    for Spent { payer, charged, served, .. } in &spent {
        let books = channels.iter().find(|channel| channel.channel == payer.id()).expect("a channel of its own");
        assert_eq!(books.charged.units(), *charged, "after {served} requests");
    }
    let charged: u128 = spent.iter().map(|agent| agent.charged).sum();
    let served: u64 = spent.iter().map(|agent| agent.served).sum();
    assert_eq!(channels.iter().map(|channel| channel.charged.units()).sum::<u128>(), charged);
    let generations: std::collections::BTreeSet<_> = spent.iter().flat_map(|agent| &agent.generations).collect();
    assert!(generations.len() > 100 && served > RELOADS, "{served} requests of {} lists", generations.len());
    println!("{RELOADS} reloads in {took:?}, meanwhile {served} paid requests by {} price lists", generations.len());

    // What was written down of it says the same.
    peaje.stop().await;
    let log = std::fs::read_to_string(file.path.with_file_name("access.jsonl")).unwrap();
    let records: Vec<AccessRecord> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let paid: Vec<_> = records.iter().filter(|record| record.outcome == Outcome::Paid).collect();
    assert_eq!(u64::try_from(paid.len()).unwrap(), served);
    assert_eq!(paid.iter().map(|record| record.charge.unwrap().units()).sum::<u128>(), charged);
    assert!(paid.iter().all(|record| record.quote == record.charge && record.payer.is_some()));
    let replayed: Value = serde_json::from_slice(&peaje.succeed(&["replay", "access.jsonl"])).unwrap();
    assert_eq!(replayed["total"]["old"]["revenue"], charged.to_string());
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_start_can_change_is_named_and_the_rest_is_in_force() {
    let stage = Stage::set().await;
    let settings = serve::Settings { log: "warn", ..stage.settings() };
    let peaje = Peaje::start(&settings).await;
    let path = peaje.books().with_file_name("peaje.toml");
    let before = std::fs::read_to_string(&path).unwrap();
    peaje.amend("shutdown_timeout = \"10s\"", "shutdown_timeout = \"11s\"\ncores = 1");
    peaje.amend("price = \"$0.002\"", "price = \"$0.004\"");
    peaje.amend("level = \"warn\"", "level = \"info\"");
    let status = until(&peaje, "the file is read", |status| status.price_generation == 2).await;
    let waiting: Vec<_> = status.config.needs_restart.iter().map(|change| change.key.as_str()).collect();
    assert_eq!(waiting, ["[server].shutdown_timeout", "[server].cores"]);
    logged(&peaje, &["[server].shutdown_timeout", "10s", "11s"]).await;
    // In place, by an editor that has no other way: back to what runs.
    std::fs::write(&path, before).unwrap();
    let status = until(&peaje, "the file is read again", |status| status.price_generation == 3).await;
    assert!(status.config.needs_restart.is_empty());
    // Another token's prices are no prices of ours.
    peaje.amend("network = \"base-sepolia\"", "network = \"base\"");
    let status = until(&peaje, "it is refused", |status| status.config.failure.is_some()).await;
    assert_eq!(status.price_generation, 3);
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_again_when_what_it_names_is_repaired() {
    let stage = Stage::set().await;
    let peaje = Peaje::start(&stage.settings()).await;
    let beside = |name: &str| peaje.books().with_file_name(name);
    let path = beside("peaje.toml");
    let before = std::fs::read_to_string(&path).unwrap();
    assert!(!before.contains("[discovery]"));
    let names = "[payers]\npartners = \"file:partners.txt\"\n[discovery]\nopenapi = \"api.json\"\n";
    std::fs::write(&path, format!("{before}\n{names}")).unwrap();
    let failure =
        |status: &Status| status.config.failure.as_ref().map(|failure| failure.errors.concat()).unwrap_or_default();
    until(&peaje, "no list is there", |status| failure(status).contains("partners.txt")).await;
    std::fs::write(beside("partners.txt"), "0x209693Bc6afc0C5328bA36FaF03C514EF312287C\n").unwrap();
    until(&peaje, "no document is there", |status| failure(status).contains("api.json")).await;
    std::fs::write(beside("api.json"), "{\"openapi\": \"3.1.0\", \"paths\": {}}").unwrap();
    let status = until(&peaje, "all is there", |status| status.config.failure.is_none()).await;
    assert_eq!(status.config.reloads, 1);
    // Another document is another config, although the file says what it said.
    std::fs::write(beside("api.json"), "{\"openapi\": \"3.1.0\", \"paths\": {}, \"info\": {}}").unwrap();
    until(&peaje, "the document is read again", |status| status.config.reloads == 2).await;
    logged(&peaje, &["[discovery].openapi"]).await;
    stage.strike().await;
}
