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

use peaje::chain::{
    Bid, Call, Chain as _, ChainError, Objection, Replacement, Resent, SendError, SignedTransaction, Witness,
};
use peaje::devnet::Mining;
use peaje::facilitator::{Client, FacilitatorError, FacilitatorSettings};
use peaje::protocol::claim::claim_batch_digest;
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
    assert_eq!(report.transactions.first(), Some(&life.last_claim()), "operators are told what they can look up");
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
    stage.is_written(&["deposit", "deposit", "claim", "settle", "refund", "refund", "settle"].map(mined)).await;
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

#[test]
fn what_a_facilitator_supports_is_asked_and_checked() {
    tell(Mode::Facilitated, async |stage| {
        let client = |url: &str| {
            let settings =
                FacilitatorSettings { url: url.parse().unwrap(), timeout: std::time::Duration::from_secs(5) };
            Client::new(settings).unwrap()
        };
        let supported = client(&stage.facilitator).supported(84_532).await.unwrap();
        assert_eq!(supported.authorizer, None, "it was given no key for that");
        let elsewhere = client(&stage.facilitator).supported(8_453).await.unwrap_err();
        assert!(matches!(&elsewhere, FacilitatorError::Unsupported { network, .. } if network == "eip155:8453"));
        assert!(!elsewhere.is_temporary());
        let nobody = client("http://127.0.0.1:1/").supported(84_532).await.unwrap_err();
        assert!(nobody.is_temporary(), "{nobody}");
        let no_facilitator = client(&stage.devnet.rpc_url()).supported(84_532).await;
        assert!(no_facilitator.is_err(), "a chain node is none");
    });
}

// ---------------------------------------------------------------------------------------------------------- the faults

/// The end of every story with a fault: all that one payer owes is claimed and settled, and all units are there.
async fn all_is_well(stage: &Stage, life: &stage::Life, charged: u128) {
    // One settlement of another process may be in the way of ours for a moment.
    let all = charged * PRICE;
    eventually("all is settled", async || life.redeem().await.is_complete() && stage.received() >= all).await;
    assert_eq!(stage.received(), all);
    assert_eq!(stage.claims().await.iter().sum::<u128>(), charged * PRICE);
    assert_eq!(stage.locked(), stage.deposits().await.iter().sum::<u128>() - charged * PRICE);
}

#[test]
fn a_facilitator_that_is_away_costs_nothing_but_time() {
    tell(Mode::Facilitated, async |mut stage| {
        stage.patient = true;
        let (known, stranger) = (stage.payer(1), stage.payer(2));
        let life = stage.open().await;
        assert_eq!(life.pay(&known.deposit(DEPOSIT, PRICE)).await.status, 200);
        life.stop().await;

        let life = stage.open_with("http://127.0.0.1:1/".to_owned()).await;
        life.serve(&known, 1, 2).await;
        let refused = life.pay(&stranger.deposit(DEPOSIT, PRICE)).await;
        assert_eq!((refused.status, &refused.receipt), (503, &serde_json::Value::Null), "{refused:?}");
        let report = life.redeem().await;
        assert!(report.problem.is_some() && report.left == Amount::new(3 * PRICE), "{report:?}");
        stage.is_written(&[("deposit", "mined"), ("deposit", "never_sent"), ("claim", "never_sent")]).await;
        life.stop().await;

        let life = stage.open().await;
        assert_eq!(life.pay(&stranger.deposit(DEPOSIT, PRICE)).await.status, 200);
        all_is_well(&stage, &life, 4).await;
        assert_eq!(stage.deposits().await, [DEPOSIT, DEPOSIT]);
        life.stop().await;
    });
}

#[test]
fn a_deposit_whose_answer_is_lost_is_found_on_chain() {
    tell(Mode::Facilitated, async |stage| {
        let (life, payer) = (stage.open().await, stage.payer(1));
        for way in [Way::Lost, Way::Silent, Way::Pending] {
            let payer = payer.with_salt(u8::try_from(stage.office.asked().len()).unwrap());
            stage.office.set(way.clone());
            let answer = life.pay(&payer.deposit(DEPOSIT, PRICE)).await;
            assert_eq!(answer.status, 200, "{way:?}: {answer:?}");
            let transaction: Hash = answer.receipt["transaction"].as_str().unwrap().parse().unwrap();
            assert!(stage.is_on_chain(transaction).await, "{way:?}");
        }
        assert_eq!(stage.deposits().await, [DEPOSIT; 3]);
        assert_eq!(stage.office.asked_for("deposit"), 3, "and not asked for again");
        stage.office.set(Way::Open);
        all_is_well(&stage, &life, 3).await;
        life.stop().await;
    });
}

#[test]
fn a_deposit_that_was_never_got_is_asked_for_again_and_lands_once() {
    tell(Mode::Facilitated, async |stage| {
        let (life, payer) = (stage.open().await, stage.payer(1));
        stage.office.set(Way::Dropped);
        let payment = payer.deposit(DEPOSIT, PRICE);
        let request = life.begin(&payment);
        eventually("it was asked for", async || stage.office.asked_for("deposit") > 0).await;
        stage.office.set(Way::Open);
        let answer = request.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(stage.deposits().await, [DEPOSIT]);
        all_is_well(&stage, &life, 1).await;
        life.stop().await;
        stage.is_written(&[("deposit", "mined"), ("claim", "mined"), ("settle", "mined")]).await;
    });
}

#[test]
fn claims_and_settlements_whose_answers_are_lost_are_found_on_chain() {
    tell(Mode::Facilitated, async |stage| {
        let (life, payer) = (stage.open().await, stage.payer(1));
        assert_eq!(life.pay(&payer.deposit(DEPOSIT, PRICE)).await.status, 200);
        for (way, charged) in [(Way::Lost, 1), (Way::Pending, 2), (Way::Silent, 3)] {
            stage.office.set(way.clone());
            let report = life.redeem().await;
            assert!(report.is_complete(), "{way:?}: {report:?}");
            assert_eq!((report.claimed, report.settled), (Amount::new(PRICE), Amount::new(PRICE)), "{way:?}");
            assert_eq!(stage.received(), charged * PRICE);
            for transaction in report.transactions {
                assert!(stage.is_on_chain(transaction).await, "{way:?}");
            }
            life.serve(&payer, charged, 1).await;
        }
        assert_eq!((stage.office.asked_for("claim"), stage.office.asked_for("settle")), (3, 3));
        stage.office.set(Way::Open);
        all_is_well(&stage, &life, 4).await;
        life.stop().await;
    });
}

#[test]
fn a_lie_about_success_moves_nothing() {
    tell(Mode::Facilitated, async |stage| {
        let (life, payer, other) = (stage.open().await, stage.payer(1), stage.payer(2));
        let answer = life.pay(&other.deposit(DEPOSIT, PRICE)).await;
        let elsewhere = answer.receipt["transaction"].as_str().unwrap().to_owned();

        stage.office.set(Way::Lie(elsewhere));
        let request = life.begin(&payer.deposit(DEPOSIT, PRICE));
        eventually("it lied", async || stage.office.asked_for("deposit") > 1).await;
        let report = life.redeem().await;
        assert!(report.problem.is_some(), "{report:?}");
        assert_eq!((report.channels, report.claimed, report.left), (0, Amount::ZERO, Amount::new(PRICE)));
        let lost = ("claim".to_owned(), "replaced".to_owned());
        eventually("the claim counts as lost", async || stage.written().contains(&lost)).await;
        assert!(!request.is_finished(), "nobody says that the deposit landed, nor that it failed");
        assert_eq!((stage.deposits().await, stage.received()), (vec![DEPOSIT], 0));

        stage.office.set(Way::Open);
        let answer = request.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(stage.deposits().await, [DEPOSIT; 2]);
        all_is_well(&stage, &life, 2).await;
        life.stop().await;
    });
}

#[test]
fn a_refusal_is_told_at_once_and_nothing_is_sent() {
    tell(Mode::Facilitated, async |mut stage| {
        stage.patient = true;
        let (life, payers) = (stage.open().await, [stage.payer(1), stage.payer(2)]);
        let unsupported = "unsupported_scheme";
        for (way, status) in [(Way::Refused(unsupported), 503), (Way::Status(413), 503)] {
            stage.office.set(way);
            let answer = life.pay(&payers[0].deposit(DEPOSIT, PRICE)).await;
            assert_eq!(answer.status, status, "{answer:?}");
        }
        stage.office.set(Way::Open);
        for payer in &payers {
            assert_eq!(life.pay(&payer.deposit(DEPOSIT, PRICE)).await.status, 200);
        }

        // About the facilitator: nobody's row is to blame.
        stage.office.set(Way::Status(403));
        let report = life.redeem().await;
        let problem = report.problem.unwrap();
        assert!(problem.contains("declined") && problem.contains("403"), "{problem}");
        assert_eq!((stage.office.rows(), report.failures.len()), (vec![2], 0));
        // About a row: it is looked for.
        stage.office.set(Way::Refused("invalid_batch_settlement_evm_claim_simulation_failed"));
        let report = life.redeem().await;
        assert!(stage.office.rows().ends_with(&[2, 1, 1]) && report.failures.len() == 2, "{report:?}");
        assert!(report.failures[0].reason.contains("claim_simulation_failed"), "{report:?}");
        eventually("all ends are in the books", async || {
            let is = |state| move |(_, written): &(String, String)| written == state;
            let (written, mined) = (stage.written(), is("mined"));
            written.iter().filter(|one| mined(one)).count() == 2
                && written.iter().filter(|one| !mined(one)).all(is("never_sent"))
        })
        .await;

        // The next process does not know of any quarantine.
        life.stop().await;
        let life = stage.open().await;
        stage.office.set(Way::Open);
        all_is_well(&stage, &life, 2).await;
        assert_eq!(stage.deposits().await, [DEPOSIT; 2]);
        life.stop().await;
    });
}

#[test]
fn a_deposit_that_the_facilitator_would_not_take_is_refused_before_it_is_settled() {
    tell(Mode::Facilitated, async |stage| {
        let (life, payer) = (stage.open().await, stage.payer(1));
        for reason in ["insufficient_balance", "deposit_simulation_failed"] {
            stage.office.set(Way::Invalid(code(reason).leak()));
            let answer = life.pay(&payer.deposit(DEPOSIT, PRICE)).await;
            assert_eq!((answer.status, answer.error), (402, Some(code("deposit_simulation_failed"))));
        }
        assert_eq!((stage.deposits().await, stage.office.asked_for("deposit")), (vec![], 0));
        stage.is_written(&[("deposit", "never_sent"); 2]).await;
        // Its own trouble is no reason.
        stage.office.set(Way::Invalid("invalid_batch_settlement_evm_rpc_read_failed"));
        assert_eq!(life.pay(&payer.deposit(DEPOSIT, PRICE)).await.status, 200);
        life.stop().await;
    });
}

#[test]
fn after_a_crash_what_was_asked_for_is_found_or_asked_for_again() {
    tell(Mode::Facilitated, async |stage| {
        let (life, payer) = (stage.open().await, stage.payer(1));
        stage.office.set(Way::Held);
        let payment = payer.deposit(DEPOSIT, PRICE);
        let request = life.begin(&payment);
        eventually("the deposit was asked for", async || stage.office.asked_for("deposit") == 1).await;
        life.crash();
        // No answer; or that it could not be served, from a thread that outlived the others by a moment.
        assert!(
            !request.await.is_ok_and(|answer| answer.status != 503),
            "nothing is served for what is not in the books"
        );
        stage.is_written(&[("deposit", "open")]).await;

        stage.office.set(Way::Open);
        let life = stage.open().await;
        stage.is_written(&[("deposit", "mined")]).await;
        assert_eq!((stage.deposits().await, stage.office.asked_for("deposit")), (vec![DEPOSIT], 2));
        assert_eq!(life.pay(&payment).await.status, 200, "the same payment again pays with what landed");
        assert_eq!(stage.deposits().await, [DEPOSIT]);

        stage.office.set(Way::Held);
        life.begin_to_redeem();
        eventually("the claim was asked for", async || stage.office.asked_for("claim") == 1).await;
        life.crash();
        stage.office.carry_out_last().await;
        assert_eq!(stage.claims().await, [PRICE]);
        stage.is_written(&[("deposit", "mined"), ("claim", "open")]).await;
        stage.office.set(Way::Open);
        let life = stage.open().await;
        all_is_well(&stage, &life, 1).await;
        assert_eq!(stage.office.asked_for("claim"), 1, "it was found on chain");
        life.stop().await;
        stage.is_written(&[("deposit", "mined"), ("claim", "mined"), ("settle", "mined")]).await;
    });
}

#[test]
fn a_claim_that_is_too_large_for_the_facilitator_goes_in_parts() {
    tell(Mode::Facilitated, async |stage| {
        let (life, payers) = (stage.open().await, [1, 2, 3].map(|n| stage.payer(n)));
        for payer in &payers {
            assert_eq!(life.pay(&payer.deposit(DEPOSIT, PRICE)).await.status, 200);
        }
        stage.office.set(Way::AtMost(1));
        let report = life.redeem().await;
        assert!(report.is_complete() && report.channels == 3, "{report:?}");
        let rows = stage.office.rows();
        assert!(rows.ends_with(&[3, 1, 2, 1, 1]), "{rows:?}");
        all_is_well(&stage, &life, 3).await;
        life.stop().await;
    });
}

#[test]
fn deposits_of_many_payers_at_once_land_once_each() {
    tell(Mode::Facilitated, async |stage| {
        let life = stage.open().await;
        let payers: Vec<_> = (1..=8).map(|n| stage.payer(n)).collect();
        let requests: Vec<_> = payers.iter().map(|payer| life.begin(&payer.deposit(DEPOSIT, PRICE))).collect();
        for request in requests {
            let answer = request.await.unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        assert_eq!(stage.deposits().await, [DEPOSIT; 8]);
        all_is_well(&stage, &life, 8).await;
        life.stop().await;
    });
}

#[test]
fn a_refund_whose_answer_is_lost_is_paid_once() {
    tell(Mode::Facilitated, async |stage| {
        let (life, payer) = (stage.open().await, stage.payer(1));
        assert_eq!(life.pay(&payer.deposit(DEPOSIT, PRICE)).await.status, 200);
        stage.office.set(Way::Lost);
        let answer = life.pay(&payer.refund(PRICE, None)).await;
        assert_eq!((answer.status, &answer.receipt["amount"]), (200, &(DEPOSIT - PRICE).to_string().into()));
        assert_eq!((stage.dollars(payer.address()), stage.office.asked_for("refund")), (PURSE - PRICE, 1));
        stage.office.set(Way::Open);
        all_is_well_after_refunds(&stage, &life, 1).await;
        life.stop().await;
    });
}

/// A signature that was shown may be used for as long as its nonce is good, whatever its receiver says.
#[test]
fn what_a_refused_refund_would_take_is_not_sold_for() {
    tell(Mode::Facilitated, async |stage| {
        let (life, payer) = (stage.open().await, stage.payer(1));
        assert_eq!(life.pay(&payer.deposit(DEPOSIT, PRICE)).await.status, 200);
        stage.office.set(Way::Refused("invalid_batch_settlement_evm_refund_simulation_failed"));
        let answer = life.pay(&payer.refund(PRICE, Some(&(DEPOSIT - 2 * PRICE).to_string()))).await;
        assert_ne!(answer.status, 200, "{answer:?}");
        life.serve(&payer, 1, 1).await;
        let too_much = life.pay(&payer.voucher(3 * PRICE)).await;
        assert_eq!(too_much.status, 402, "{too_much:?}");
        stage.office.carry_out_last().await;
        assert_eq!(stage.locked(), 2 * PRICE, "it was paid after all");
        stage.office.set(Way::Open);
        all_is_well_after_refunds(&stage, &life, 2).await;
        life.stop().await;
    });
}

async fn all_is_well_after_refunds(stage: &Stage, life: &stage::Life, charged: u128) {
    eventually("all is claimed and settled", async || life.redeem().await.is_complete()).await;
    assert_eq!((stage.received(), stage.locked()), (charged * PRICE, 0));
}

#[test]
fn who_sends_may_change_with_something_on_its_way() {
    tell(Mode::Own, async |mut stage| {
        let (life, payer) = (stage.open().await, stage.payer(1));
        assert_eq!(life.pay(&payer.deposit(DEPOSIT, PRICE)).await.status, 200);
        stage.devnet.set_mining(Mining::Manual);
        life.begin_to_redeem();
        eventually("the claim waits for a block", async || stage.devnet.pending_transactions().len() == 1).await;
        life.crash();
        stage.is_written(&[("deposit", "mined"), ("claim", "open")]).await;
        assert!(stage.devnet.drop_transaction(stage.devnet.pending_transactions()[0]));
        stage.devnet.set_mining(Mining::OnDemand);

        let life = stage.open_as(Mode::Facilitated).await;
        stage.is_written(&[("deposit", "mined"), ("claim", "mined")]).await;
        assert_eq!((stage.claims().await, stage.office.asked_for("claim")), (vec![PRICE], 0), "the same bytes again");
        stage.office.set(Way::Held);
        life.begin_to_redeem();
        eventually("a settlement was asked for", async || stage.office.asked_for("settle") == 1).await;
        life.crash();

        let life = stage.open_as(Mode::Own).await;
        all_is_well(&stage, &life, 1).await;
        life.stop().await;
        let settled = [("settle", "replaced"), ("settle", "mined")];
        stage.is_written(&[&[("deposit", "mined"), ("claim", "mined")], &settled[..]].concat()).await;
    });
}

// ------------------------------------------------------------------------------------------------- the chain by itself

/// Notes what is about to be sent.
#[derive(Default)]
struct Notebook(std::sync::Mutex<Vec<SignedTransaction>>);

impl Witness for Notebook {
    async fn sees(&self, transaction: &SignedTransaction) -> Result<(), Objection> {
        self.0.lock().unwrap().push(transaction.clone());
        Ok(())
    }
}

struct Objector;

impl Witness for Objector {
    async fn sees(&self, _: &SignedTransaction) -> Result<(), Objection> {
        Err("no".into())
    }
}

#[test]
fn an_intent_plays_a_transaction() {
    tell(Mode::Facilitated, async |stage| {
        let (life, payer) = (stage.open().await, stage.payer(1));
        assert_eq!(life.pay(&payer.deposit(DEPOSIT, PRICE)).await.status, 200);
        let rows = vec![life.claimable().remove(0).row.unwrap()];
        let signature = stage::dev("authorizer").sign(claim_batch_digest(&payer.settlement(), &rows));
        let claim = Call::ClaimWithSignature { rows: rows.clone(), signature };
        let (chain, bid) = (stage.facilitated().await, Bid::default());
        let nonces = async || chain.nonces().await.map(|nonces| (nonces.mined, nonces.pending)).unwrap();

        assert_eq!((chain.sender(), nonces().await), (None, (0, 0)));
        assert!(chain.simulate(&claim).await.unwrap() > 21_000);
        let withheld = chain.send_witnessed(&claim, bid, None, &Objector).await;
        assert!(matches!(withheld, Err(SendError::Withheld(_))));
        let of_nobody = chain.send_witnessed(&Call::Claim { rows }, bid, None, &Objector).await;
        assert!(matches!(of_nobody, Err(SendError::Refused(ChainError::Declined { .. }))));
        assert_eq!((nonces().await, stage.office.asked_for("claim")), ((0, 0), 0), "nothing was asked for");

        let notebook = Notebook::default();
        let hash = chain.send_witnessed(&claim, bid, Some(0), &notebook).await.unwrap();
        let intent = notebook.0.lock().unwrap().remove(0);
        assert_eq!((intent.hash, intent.nonce), (hash, 0));
        let taken = chain.send_witnessed(&claim, bid, Some(0), &notebook).await;
        assert!(matches!(taken, Err(SendError::Refused(ChainError::NonceUsed { nonce: 0 }))), "{taken:?}");
        assert_eq!(nonces().await, (0, 1), "it is not over before it was seen in a block");
        assert_eq!(chain.replace_witnessed(&intent, bid, &notebook).await.unwrap(), Replacement::AtCeiling);
        eventually("it is mined", async || chain.receipt(hash).await.unwrap().is_some()).await;
        let mined = chain.receipt(hash).await.unwrap().unwrap();
        assert_eq!((mined.hash, mined.success, mined.fee_wei, mined.events.len()), (hash, true, Some(0), 1));
        assert!(mined.on_chain() != hash && stage.is_on_chain(mined.on_chain()).await);
        assert_eq!(nonces().await, (1, 1));

        // A block that is not in the chain any more takes the claim with it.
        assert_eq!(stage.devnet.reorg(1).unwrap().len(), 1);
        stage.use_nonce_of_facilitator().await;
        assert_eq!((chain.receipt(hash).await.unwrap(), stage.claims().await), (None, vec![]));
        assert_eq!(chain.resend(&intent).await.unwrap(), Resent::Known);
        eventually("it is claimed again", async || chain.receipt(hash).await.unwrap().is_some()).await;
        assert_eq!((stage.claims().await, stage.office.asked_for("claim")), (vec![PRICE], 2));

        // Another process knows it from its bytes alone, and finds it without asking.
        let chain = stage.facilitated().await;
        assert_eq!(chain.receipt(hash).await.unwrap(), None);
        assert_eq!(chain.resend(&intent).await.unwrap(), Resent::Known);
        assert!(chain.receipt(hash).await.unwrap().is_some_and(|mined| mined.success));
        assert_eq!(stage.office.asked_for("claim"), 2);
        life.stop().await;
    });
}
