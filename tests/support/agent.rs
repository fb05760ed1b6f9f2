//! An agent that pays until the proxy is gone, and keeps what a payer keeps: the receipts it was given, and whether a
//! request of its was on its way.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use peaje::protocol::ChannelId;
use peaje::protocol::x402::{self, PAYMENT_REQUIRED, PAYMENT_RESPONSE};
use peaje::store::sqlite::Reader;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::payer::Payer;
use super::serve::Peaje;
use super::stage::{DEPOSIT, PRICE, Stage, ask};

/// How long a doubt may take to be cleared up, where the proxy is there.
const PATIENCE: Duration = Duration::from_secs(60);

/// A payer and what it knows.
pub(crate) struct Agent {
    pub(crate) payer: Payer,
    /// The sum in the last receipt it holds.
    pub(crate) acknowledged: u128,
    /// Whether a request was on its way when the connection broke, so that it may have been charged.
    pub(crate) in_doubt: bool,
    pub(crate) served: u64,
    /// Counts its receipts while it spends, for all that share the counter.
    pub(crate) receipts: Arc<AtomicU64>,
    /// Charges of requests whose answer it never saw.
    pub(crate) unseen: u64,
}

impl Agent {
    /// The `n`th payer, which has deposited and paid once.
    pub(crate) async fn opened(stage: &Stage, peaje: &Peaje, number: u8) -> Self {
        let payer = stage.payer(peaje, number);
        let answer = ask(&stage.client, &peaje.url("/thing"), &payer.deposit(DEPOSIT, PRICE)).await.unwrap();
        assert_eq!(answer.status(), 200, "{answer:?}");
        Self { payer, acknowledged: PRICE, in_doubt: false, served: 1, receipts: Arc::default(), unseen: 0 }
    }

    /// Pays until the proxy is gone, or until it is told to stop and knows what it was charged.
    pub(crate) async fn spend(mut self, client: reqwest::Client, url: String, stop: CancellationToken) -> Self {
        let mut told = None;
        while !stop.is_cancelled() || self.in_doubt {
            if stop.is_cancelled() {
                let told = told.get_or_insert_with(Instant::now);
                assert!(told.elapsed() < PATIENCE, "{}: what it was charged is not said", self.payer.id());
            }
            let ceiling = self.acknowledged + PRICE;
            let doubted = std::mem::replace(&mut self.in_doubt, true);
            let answer = match ask(&client, &url, &self.payer.voucher(ceiling)).await {
                Ok(answer) => answer,
                Err(error) => {
                    // A request that could not even connect changes nothing.
                    self.in_doubt = doubted || !error.is_connect();
                    return self;
                }
            };
            self.in_doubt = false;
            match answer.status().as_u16() {
                200 => {
                    let receipt = decoded(&answer, PAYMENT_RESPONSE);
                    assert_eq!(sum_in(&receipt["extra"]["channelState"]), ceiling, "{receipt}");
                    self.acknowledged = ceiling;
                    self.served += 1;
                    self.receipts.fetch_add(1, Ordering::Relaxed);
                }
                402 => {
                    let quote = decoded(&answer, PAYMENT_REQUIRED);
                    let state = &quote["accepts"][0]["extra"]["channelState"];
                    assert!(state.is_object(), "{}: {quote}", self.payer.id());
                    assert!(doubted && sum_in(state) == ceiling, "charged without a request in doubt: {state}");
                    self.acknowledged = ceiling;
                    self.unseen += 1;
                }
                // It asks the chain again after its start, and a node under this load may be slow.
                503 => {
                    self.in_doubt = doubted;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => panic!("{other}"),
            }
        }
        self
    }
}

fn decoded(answer: &reqwest::Response, header: &str) -> Value {
    let value = answer.headers().get(header).unwrap_or_else(|| panic!("no {header}: {answer:?}"));
    x402::decode(value.as_bytes()).unwrap()
}

fn sum_in(state: &Value) -> u128 {
    state["chargedCumulativeAmount"].as_str().unwrap().parse().unwrap()
}

/// No charge that was acknowledged is missing, and beyond those there is one at most, of the request that was on its way.
pub(crate) fn compare_with_books(agents: &[Agent], peaje: &Peaje, round: usize) {
    let charged = charged_in_books(peaje);
    for agent in agents {
        let (id, known) = (agent.payer.id(), agent.acknowledged);
        let found = charged.get(&id).copied().unwrap_or_else(|| panic!("round {round}: channel {id} is missing"));
        let most = if agent.in_doubt { known + PRICE } else { known };
        assert!((known..=most).contains(&found), "round {round}: {id} acknowledged {known}, found {found} of {most}");
    }
}

/// What the next start will find.
fn charged_in_books(peaje: &Peaje) -> HashMap<ChannelId, u128> {
    let mut charged = HashMap::new();
    let books = Reader::open(&peaje.books()).unwrap();
    books
        .channels(&mut |row| {
            charged.insert(row.snapshot.id, row.snapshot.charged.units());
            Ok(())
        })
        .unwrap();
    charged
}
