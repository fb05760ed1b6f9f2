//! Redemption through the official facilitator (`@x402/core` and `@x402/evm` from npm, unchanged), which sends to our
//! development chain: the same story as with a gas key of our own, and what becomes of money while a facilitator is away,
//! forgets to answer, refuses, or lies.
//!
//! The npm packages are those of `tests/stock_client`; they are installed when needed. `PEAJE_SKIP_NODE_TESTS=1` skips.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

mod node;
#[path = "../support/npm.rs"]
mod npm;
mod office;
#[path = "../support/payer.rs"]
mod payer;
mod stage;

use std::io::Write as _;

use peaje::facilitator::{Client, FacilitatorError, FacilitatorSettings};
use peaje::protocol::{Amount, Hash};

use office::Way;
use stage::{DEPOSIT, Mode, PRICE, PURSE, Stage, eventually};

/// Runs a test that needs Node.
fn tell<F: Future<Output = ()>>(mode: Mode, story: impl FnOnce(Stage) -> F) {
    if npm::skipped() {
        // Past the test harness, which would swallow it: nobody shall believe that this was tested.
        let _ = writeln!(std::io::stderr(), "SKIPPED, told so by the environment");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { story(Stage::set(mode).await).await });
}

fn code(end: &str) -> String {
    format!("invalid_batch_settlement_evm_{end}")
}

// ------------------------------------------------------------------------------------------------------- the one story

/// What a provider and its payers go through, whoever sends the transactions.
async fn the_whole_story(stage: &Stage) {
    let life = stage.open().await;
    let (first, second) = (stage.payer(1), stage.payer(2));

    let unpaid = life.ask_unpaid().await;
    assert_eq!((unpaid.status, unpaid.error.as_deref()), (402, Some("Payment required")));

    for payer in [&first, &second] {
        let answer = life.pay(&payer.deposit(DEPOSIT, PRICE)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.receipt["amount"], DEPOSIT.to_string());
        let transaction: Hash = answer.receipt["transaction"].as_str().unwrap().parse().unwrap();
        assert!(stage.is_on_chain(transaction).await, "a payer is told of a transaction that it can look up");
        assert_eq!(stage.dollars(payer.address()), PURSE - DEPOSIT);
    }
    assert_eq!(stage.deposits().await, [DEPOSIT, DEPOSIT]);
    let head = stage.devnet.block_number();
    life.serve(&first, 1, 9).await;
    life.serve(&second, 1, 2).await;
    assert_eq!(stage.devnet.block_number(), head, "a voucher is no transaction");

    life.stop().await;
    let life = stage.open().await;
    life.serve(&first, 10, 1).await;

    let report = life.redeem().await;
    let amount = Amount::new(14 * PRICE);
    assert!(report.is_complete(), "{report:?}");
    assert_eq!((report.channels, report.claimed, report.settled, report.left), (2, amount, amount, Amount::ZERO));
    assert_eq!(report.transactions.len(), 2, "one claim for both, one settlement");
    for transaction in &report.transactions {
        assert!(stage.is_on_chain(*transaction).await);
    }
    assert_eq!(stage.received(), 14 * PRICE);
    let report = life.redeem().await;
    assert_eq!((report.is_complete(), report.transactions.len()), (true, 0), "nothing is claimed or settled twice");

    // One payer has paid for something since, the other has not.
    life.serve(&first, 11, 1).await;
    for (payer, charged) in [(&first, 12), (&second, 3)] {
        let answer = life.pay(&payer.refund(charged * PRICE, None)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.receipt["amount"], (DEPOSIT - charged * PRICE).to_string());
        let transaction: Hash = answer.receipt["transaction"].as_str().unwrap().parse().unwrap();
        assert!(stage.is_on_chain(transaction).await);
        assert_eq!(stage.dollars(payer.address()), PURSE - charged * PRICE);
    }
    let report = life.redeem().await;
    assert_eq!((report.is_complete(), report.claimed, report.settled), (true, Amount::ZERO, Amount::new(PRICE)));

    assert_eq!((stage.received(), stage.locked()), (15 * PRICE, 0), "every unit is where it belongs");
    life.stop().await;
    let mined = |purpose| (purpose, "mined");
    stage
        .is_written(&["deposit", "deposit", "claim", "settle", "refund", "refund", "settle"].map(mined))
        .await;
}

#[test]
fn the_story_with_a_gas_key_of_our_own() {
    tell(Mode::Own, async |stage| {
        the_whole_story(&stage).await;
        assert_eq!(stage.made().await, (7, 0), "transactions of ours and of the facilitator's");
    });
}

#[test]
fn the_same_story_with_a_facilitator() {
    tell(Mode::Facilitated, async |stage| {
        the_whole_story(&stage).await;
        assert_eq!(stage.made().await, (0, 7), "transactions of ours and of the facilitator's");
        assert_eq!(stage.office.asked(), ["deposit", "deposit", "claim", "settle", "refund", "refund", "settle"]);
    });
}
