//! `peaje redeem` beside the real binary: what a dry run says, what a redemption then does, and what calls for one.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/payer.rs"]
mod payer;
#[path = "support/serve.rs"]
mod serve;
#[path = "support/stage.rs"]
mod stage;

use std::time::Duration;

use peaje::admin::RedemptionState;
use peaje::chain::{AlloyChain, Chain as _};
use peaje::protocol::Amount;
use peaje::redeem::{Preview, Report, Why};

use payer::Payer;
use serve::{Peaje, Settings};
use stage::{DEPOSIT, PRICE, Stage, ask};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A proxy with these lines in `[redeem]`, and so many payers that paid once.
async fn open(stage: &Stage, redeem: &str, payers: u8) -> (Peaje, Vec<Payer>) {
    let redeem = format!("on_shutdown = false\n{redeem}");
    let peaje = Peaje::start(&Settings { redeem: &redeem, ..stage.settings() }).await;
    let mut all = Vec::new();
    for number in 1..=payers {
        let payer = stage.payer(&peaje, number);
        let answer = ask(&stage.client, &peaje.url("/thing"), &payer.deposit(DEPOSIT, PRICE)).await.unwrap();
        assert_eq!(answer.status(), 200);
        all.push(payer);
    }
    (peaje, all)
}

fn dry_run(peaje: &Peaje) -> Preview {
    serde_json::from_slice(&peaje.succeed(&["redeem", "--dry-run"])).unwrap()
}

fn status(peaje: &Peaje) -> RedemptionState {
    serde_json::from_slice(&peaje.succeed(&["redeem", "--status"])).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_tells_what_a_redemption_then_does() {
    let stage = Stage::set().await;
    let (peaje, _) = open(&stage, "interval = \"1h\"\ncoin_price = \"$3000\"\nmax_rows = 2", 3).await;

    let preview = dry_run(&peaje);
    let rows: Vec<_> = preview.batches.iter().map(|batch| (batch.rows, batch.urgent)).collect();
    assert_eq!((rows, preview.settlements), (vec![(2, false), (1, false)], 1), "{preview:?}");
    assert_eq!((preview.claims.units(), preview.leaves), (3 * PRICE, Amount::ZERO));
    assert!(preview.cost_wei.is_some_and(|wei| wei > 0) && preview.cost.is_some_and(|cost| !cost.is_zero()));
    assert_eq!(stage.received(), 0, "nothing was done");
    assert_eq!(dry_run(&peaje), preview, "and nothing changed");

    let report = peaje.redeem();
    assert_eq!((report.channels, report.claimed), (3, preview.claims));
    assert_eq!(stage.received(), 3 * PRICE);
    let chain = AlloyChain::connect(stage.rpc.parse().unwrap(), None).await.unwrap();
    for (transaction, planned) in report.transactions.iter().zip(&preview.batches) {
        let mined = chain.receipt(*transaction).await.unwrap().unwrap();
        // The first claim of a receiver takes 17,100 more; the rest is measured to be within a twentieth.
        let first = if planned.rows == 2 { 17_100 } else { 0 };
        let expected = planned.gas + first;
        let off = expected.abs_diff(mined.gas_used);
        assert!(off * 20 <= expected, "{} rows: {} planned, {} used", planned.rows, planned.gas, mined.gas_used);
    }
    let after = dry_run(&peaje);
    assert_eq!((after.batches.len(), after.gas, after.leaves), (0, 0, Amount::ZERO));
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_worth_its_gas_is_told_and_left() {
    let stage = Stage::set().await;
    let lines = "interval = \"1s\"\ncoin_price = \"$100000000\"\nmax_gas_share = \"10%\"\nmax_unclaimed = \"$0.001\"";
    let (peaje, payers) = open(&stage, lines, 1).await;

    let preview = dry_run(&peaje);
    assert_eq!((preview.batches.len(), preview.leaves.units()), (0, PRICE));
    let [postponed] = preview.postponed[..] else { panic!("{preview:?}") };
    assert_eq!((postponed.channel, postponed.due.units(), postponed.why), (payers[0].id(), PRICE, Why::NotWorthItsGas));
    assert!(postponed.cost.units() >= PRICE);

    let output = peaje.command(&["redeem", "--json"]);
    assert_eq!(output.status.code(), Some(0), "what waits because the rules say so is no failure: {output:?}");
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report.channels, report.left.units(), report.postponed), (0, PRICE, vec![postponed]));
    assert_eq!(stage.received(), 0);
    let vitals = status(&peaje).vitals;
    assert_eq!((vitals.unclaimed.units(), vitals.failing_since), (PRICE, None));
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_begins_once_more_than_a_threshold_is_unclaimed() {
    let stage = Stage::set().await;
    let (peaje, payers) = open(&stage, "interval = \"1h\"\nmax_unclaimed_per_channel = \"$0.003\"", 1).await;
    // Two looks at the books, and a bit.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(peaje.channel().await.claimed, Amount::ZERO, "it is not more than the threshold");

    let answer = ask(&stage.client, &peaje.url("/thing"), &payers[0].voucher(2 * PRICE)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let begun = tokio::time::Instant::now();
    while peaje.channel().await.claimed.units() != 2 * PRICE {
        assert!(begun.elapsed() < PATIENCE, "no round began");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_says_how_it_is_run_and_how_it_goes() {
    let stage = Stage::set().await;
    let lines = "interval = \"2h\"\nmax_unclaimed = \"$5\"\nmax_age = \"90m\"\nstuck_after = \"3h\"";
    let (mut peaje, _) = open(&stage, lines, 2).await;

    let RedemptionState { vitals, stuck, settings } = status(&peaje);
    assert!(!stuck);
    assert_eq!((vitals.unclaimed.units(), vitals.unclaimed_channels), (2 * PRICE, 2));
    assert!(vitals.oldest_unclaimed_s.is_some_and(|age| age < PATIENCE.as_secs()));
    assert_eq!((settings.interval_s, settings.stuck_after_s, settings.max_age_s), (7_200, 10_800, Some(5_400)));
    assert_eq!((settings.max_unclaimed, settings.max_rows), (Some(Amount::new(5_000_000)), 200));
    assert_eq!((settings.confirmations, settings.decimals), (1, 6));

    peaje.redeem();
    let vitals = status(&peaje).vitals;
    assert_eq!((vitals.unclaimed, vitals.oldest_unclaimed_s), (Amount::ZERO, None));
    assert!(vitals.last_complete_round.is_some());

    peaje.stop().await;
    for asked in ["--status", "--dry-run"] {
        assert_eq!(peaje.command(&["redeem", asked]).status.code(), Some(6), "nobody answers");
    }
    assert_eq!(peaje.command(&["redeem", "--status", "--dry-run"]).status.code(), Some(2), "one at a time");
    stage.strike().await;
}
