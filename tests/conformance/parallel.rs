//! Case 31: many requests of one channel at once.

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::Notify;

use peaje::agent::{Agent, AgentConfig, Book, NodeReader, PayRequest};
use peaje::chain::AlloyChain;

use super::harness::{Answer, Answered, PREFIX, PRICE, Payer, Payment, World, WorldOptions};

/// Enough for every case.
const DEPOSIT: u128 = 200 * PRICE;

/// A voucher for `count` prices in all, signed ahead of the answers to others.
fn ahead(payer: &Payer, count: u128) -> Payment {
    let mut payment = payer.voucher(count * PRICE);
    payment.0["payload"]["signedAhead"] = json!(true);
    payment
}

/// The next so many upstream calls are answered when the case says so.
fn held_back(world: &World, count: usize) -> Vec<Arc<Notify>> {
    let released: Vec<_> = (0..count).map(|_| Arc::new(Notify::new())).collect();
    released.iter().for_each(|released| world.upstream.next(Answer::ok("served").when(released)));
    released
}

fn release(held: &[Arc<Notify>]) {
    held.iter().for_each(|held| held.notify_one());
}

#[track_caller]
fn assert_out_of_step(answer: &Answered) {
    answer.assert_refused(402, &format!("{PREFIX}cumulative_amount_mismatch"));
}

#[tokio::test]
async fn case_31_vouchers_signed_ahead_are_served_side_by_side_and_each_once() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    assert_eq!(world.quote("/paid").await["accepts"][0]["extra"]["maxInFlight"], json!(32));
    // All that may be in flight, the highest first and none in order.
    let order: Vec<u128> = (0..32).map(|n| 2 + (31 - n) * 7 % 32).collect();
    let payments: Vec<_> = order.iter().map(|count| ahead(&payer, *count)).collect();
    let held = held_back(&world, 32);
    let all = join_all(payments.iter().map(|payment| world.pay("/paid", payment)));
    let (answers, ()) = tokio::join!(all, async {
        world.eventually("all are served at once", async |world| world.upstream_calls() == 33).await;
        assert_eq!(world.charged(), PRICE);
        release(&held);
    });
    let mut charged: Vec<u128> = Vec::new();
    for answer in &answers {
        answer.assert_served();
        let state = answer.state();
        charged.push(state["chargedCumulativeAmount"].as_str().unwrap().parse().unwrap());
    }
    charged.sort_unstable();
    assert_eq!(charged, (2..=33).map(|count| count * PRICE).collect::<Vec<_>>(), "each receipt counts one more");
    assert_eq!(world.charged(), 33 * PRICE);

    let before = world.tally().await;
    for payment in &payments {
        assert_out_of_step(&world.pay("/paid", payment).await);
    }
    world.assert_untouched(&before).await;
    world.pay("/paid", &payer.voucher(34 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 34 * PRICE);
    world.finish(34 * PRICE).await;
}

#[tokio::test]
async fn case_31_a_voucher_that_comes_late_fills_its_gap_once() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let mut charged = PRICE;
    for count in [3, 5, 4, 2] {
        charged += PRICE;
        world.pay("/paid", &ahead(&payer, count)).await.assert_served().assert_voucher_receipt(PRICE, charged);
        assert_out_of_step(&world.pay("/paid", &ahead(&payer, count)).await);
    }
    // What fails gives its piece back.
    world.upstream.next(Answer::status(500));
    assert_eq!(world.pay("/paid", &ahead(&payer, 7)).await.status, 500);
    world.pay("/paid", &ahead(&payer, 7)).await.assert_served();
    // The furthest that may be signed ahead, and one more.
    assert_out_of_step(&world.pay("/paid", &ahead(&payer, 7 + 33)).await);
    world.pay("/paid", &ahead(&payer, 7 + 32)).await.assert_served();
    world.finish(7 * PRICE).await;
}

#[tokio::test]
async fn case_31_where_the_operator_turned_it_off_requests_come_one_after_the_other() {
    let channel = "max_in_flight = 1".to_owned();
    let world = World::start(WorldOptions { channel, ..WorldOptions::default() }).await;
    let payer = world.opened(1, DEPOSIT).await;
    assert_eq!(world.quote("/paid").await["accepts"][0]["extra"].get("maxInFlight"), None);
    world.pay("/paid", &ahead(&payer, 3)).await.assert_corrective(PRICE, DEPOSIT, Some(PRICE));
    world.pay("/paid", &ahead(&payer, 2)).await.assert_served();
    // Those that will fit wait, whatever the order they came in.
    let held = held_back(&world, 1);
    let third = ahead(&payer, 3);
    let (first, later, ()) = tokio::join!(
        world.pay("/paid", &third),
        async {
            world.eventually("one is served", async |world| world.upstream_calls() == 3).await;
            let later = [6, 4, 5].map(|count| ahead(&payer, count));
            join_all(later.each_ref().map(|payment| world.pay("/paid", payment))).await
        },
        async {
            world.eventually("one is served", async |world| world.upstream_calls() == 3).await;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            assert_eq!(world.upstream_calls(), 3);
            release(&held);
        }
    );
    first.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    for (answer, count) in later.iter().zip([6, 4, 5]) {
        answer.assert_served().assert_voucher_receipt(PRICE, count * PRICE);
    }
    world.finish(6 * PRICE).await;
}

#[tokio::test]
async fn case_31_what_a_client_was_told_is_good_although_the_request_before_it_failed() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let released = Arc::new(Notify::new());
    world.upstream.next(Answer::status(500).when(&released));
    let second = payer.voucher(2 * PRICE);
    let (failed, ()) = tokio::join!(world.pay("/paid", &second), async {
        world.eventually("one is served", async |world| world.upstream_calls() == 2).await;
        let other = world.pay("/paid", &payer.voucher(2 * PRICE)).await;
        other.assert_corrective(2 * PRICE, DEPOSIT, Some(2 * PRICE));
        released.notify_one();
    });
    assert_eq!(failed.status, 500);
    assert_eq!(world.charged(), PRICE);
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    assert_out_of_step(&world.pay("/paid", &payer.voucher(3 * PRICE)).await);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_31_too_many_are_told_to_come_back() {
    let channel = "max_in_flight = 1\nmax_waiting = 2\nmax_wait = \"300ms\"".to_owned();
    let world = World::start(WorldOptions { channel, ..WorldOptions::default() }).await;
    let payer = world.opened(1, DEPOSIT).await;
    let held = held_back(&world, 1);
    let second = payer.voucher(2 * PRICE);
    let (served, ()) = tokio::join!(world.pay("/paid", &second), async {
        world.eventually("one is served", async |world| world.upstream_calls() == 2).await;
        let crowd = join_all((0..5).map(|_| async { world.pay("/paid", &payer.voucher(2 * PRICE)).await })).await;
        for answer in crowd {
            answer.assert_scheme_refusal("channel_busy");
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        // A stranger learns nothing and does not wait.
        let mut forged = payer.voucher(2 * PRICE);
        forged.0["payload"]["voucher"]["signature"] = json!(world.payer(2).signed(2 * PRICE).signature);
        world.pay("/paid", &forged).await.assert_scheme_refusal("voucher_signature");
        release(&held);
    });
    served.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

// ---- the paying agent

async fn agent(world: &World, payer: &Payer, at_once: u32, book: Book) -> Agent<NodeReader<AlloyChain>> {
    let chain = world.chain_as(payer.key.clone()).await;
    let config = AgentConfig { ahead: at_once, book, ..AgentConfig::new(payer.key.clone()) };
    Agent::new(config, NodeReader::new(Arc::new(chain))).unwrap()
}

/// So many payments at once; how many requests each took, and the status.
async fn buy(world: &World, agent: &Agent<NodeReader<AlloyChain>>, count: usize) -> Vec<(u16, u32)> {
    let all = join_all((0..count).map(|_| agent.pay(PayRequest::get(world.url("/paid"))))).await;
    all.into_iter().map(Result::unwrap).map(|answer| (answer.status().as_u16(), answer.attempts)).collect()
}

#[tokio::test]
async fn case_31_the_agent_signs_ahead_as_far_as_both_sides_agree() {
    let channel = "max_in_flight = 8".to_owned();
    let world = World::start(WorldOptions { channel, ..WorldOptions::default() }).await;
    let payer = world.payer(1);
    world.pay("/paid", &payer.deposit(DEPOSIT, PRICE)).await.assert_served();
    let agent = agent(&world, &payer, 32, Book::in_memory()).await;
    assert_eq!(buy(&world, &agent, 1).await, [(200, 3)], "an empty book is corrected");

    let held = held_back(&world, 8);
    let (bought, ()) = tokio::join!(buy(&world, &agent, 24), async {
        world.eventually("eight are served at once", async |world| world.upstream_calls() == 2 + 8).await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert_eq!(world.upstream_calls(), 2 + 8, "and no more");
        release(&held);
    });
    assert_eq!(bought, [(200, 1); 24], "nobody was corrected");
    let record = agent.book().channels().unwrap().remove(0);
    assert_eq!((record.charged.units(), record.signed_max.units()), (26 * PRICE, 26 * PRICE));

    // What failed is signed for again, before anything new is.
    for _ in 0..3 {
        world.upstream.next(Answer::status(500));
    }
    let failed = buy(&world, &agent, 8).await;
    assert_eq!(failed.iter().filter(|(status, _)| *status == 500).count(), 3);
    assert_eq!(buy(&world, &agent, 3).await, [(200, 1); 3]);
    let record = agent.book().channels().unwrap().remove(0);
    assert_eq!((record.charged.units(), record.signed_max.units()), (34 * PRICE, 34 * PRICE));
    world.finish(34 * PRICE).await;
}

#[tokio::test]
async fn case_31_an_agent_that_signed_ahead_goes_on_in_turn_and_back() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let folder = tempfile::tempdir().unwrap();
    let book = || Book::open(folder.path(), std::time::Duration::from_secs(10)).unwrap();
    world.pay("/paid", &payer.deposit(DEPOSIT, PRICE)).await.assert_served();
    let fast = agent(&world, &payer, 4, book()).await;
    assert_eq!(buy(&world, &fast, 1).await, [(200, 3)]);
    // Metered: less is charged than was signed for, so ceilings run ahead of charges.
    for _ in 0..8 {
        world.upstream.next(Answer::ok("half").with("settlement-overrides", r#"{"amount":"50%"}"#));
    }
    assert_eq!(buy(&world, &fast, 8).await, [(200, 1); 8]);
    assert_eq!(world.charged(), 2 * PRICE + 8 * PRICE / 2);
    drop(fast);
    let slow = agent(&world, &payer, 1, book()).await;
    for expected in [2, 1, 1, 1, 1, 1] {
        assert_eq!(buy(&world, &slow, 1).await, [(200, expected)], "both sides reckon the same base");
    }
    drop(slow);
    let fast = agent(&world, &payer, 4, book()).await;
    assert_eq!(buy(&world, &fast, 1).await, [(200, 2)]);
    assert_eq!(buy(&world, &fast, 8).await, [(200, 1); 8]);
    assert_eq!(world.charged(), 2 * PRICE + 4 * PRICE + 6 * PRICE + 9 * PRICE);
    world.finish(21 * PRICE).await;
}

#[tokio::test]
async fn case_31_an_agent_that_signs_ahead_tops_up_in_turn() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let agent = agent(&world, &payer, 8, Book::in_memory()).await;
    // Nothing is deposited yet, and five prices are deposited at a time.
    let bought = buy(&world, &agent, 12).await;
    assert!(bought.iter().all(|(status, _)| *status == 200), "{bought:?}");
    assert_eq!((world.charged(), world.onchain_deposits().await), (12 * PRICE, 3));
    world.finish(12 * PRICE).await;
}
