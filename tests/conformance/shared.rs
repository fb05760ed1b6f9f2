//! Cases 32, 33 and 44: two proxies, handlers that take longer than the offer says, and a chain that changes its mind.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peaje::protocol::contracts::SETTLEMENT;
use peaje::store::sqlite::SqliteStore;
use peaje::store::{Identity, StoreError};
use tokio::sync::Notify;

use super::extras::FORGETFUL;
use super::harness::{Answer, Answered, PRICE, Payer, World, WorldOptions};

const DEPOSIT: u128 = 10 * PRICE;

/// A voucher is accepted once because its books have one owner: a second proxy does not get them, neither while the first
/// one serves nor while it holds them for nobody; and whoever has them next knows every voucher.
#[tokio::test]
async fn case_32_books_have_one_owner_and_the_next_one_knows_every_voucher() {
    let mut world = World::start(WorldOptions { more: FORGETFUL.to_owned(), ..WorldOptions::default() }).await;
    let payer = world.opened(1, DEPOSIT).await;
    let payment = payer.voucher(2 * PRICE);
    let identity = Identity { chain_id: 84_532, settlement: SETTLEMENT };
    let second = || SqliteStore::open(world.folder.path(), identity).map(drop);
    assert!(matches!(second(), Err(StoreError::InUse { .. })), "{:?}", second());
    world.pay("/paid", &payment).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    assert!(matches!(second(), Err(StoreError::InUse { .. })), "{:?}", second());

    // The first one gives them up, and another process has them.
    assert_eq!(world.restart().await, None, "nothing is redeemed on the way down");
    let before = world.tally().await;
    world.pay("/paid", &payment).await.assert_corrective(2 * PRICE, DEPOSIT, Some(2 * PRICE));
    world.assert_untouched(&before).await;
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    world.config.redeem.on_shutdown = true;
    world.restart().await;
    world.finish(3 * PRICE).await;
}

/// The offer's timeout is the shortest there may be, and the answer takes longer. It is delivered and charged once, and
/// whoever pays from the channel meanwhile pays for itself only.
#[tokio::test]
async fn case_33_an_answer_that_takes_longer_than_the_offer_says_is_delivered_and_charged_once() {
    let options = WorldOptions {
        channel: "max_timeout = \"10s\"".to_owned(),
        upstream: "response_timeout = \"9s\"".to_owned(),
        ..WorldOptions::default()
    };
    let world = World::start(options).await;
    let payer = world.opened(1, DEPOSIT).await;
    let (answer, upstream) = Answer::live();
    world.upstream.next(answer);
    let mut slow = world.pay_streaming("/paid", &payer.voucher(2 * PRICE)).await;
    upstream.send(Ok(Bytes::from_static(b"first "))).await.unwrap();
    assert_eq!(slow.chunk().await.unwrap().unwrap(), "first ");
    tokio::time::sleep(Duration::from_secs(11)).await;
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    upstream.send(Ok(Bytes::from_static(b"last"))).await.unwrap();
    drop(upstream);
    let (status, headers) = (slow.status(), slow.headers().clone());
    let mut body = Vec::new();
    while let Some(chunk) = slow.chunk().await.unwrap() {
        body.extend_from_slice(&chunk);
    }
    let slow = Answered { status, headers, body: body.into() };
    assert_eq!(slow.body, "last");
    slow.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    assert_eq!(world.charged(), 3 * PRICE);
    world.finish(3 * PRICE).await;
}

/// A head that does not come in time is the upstream's failure: it costs nothing, and its voucher is good again, for the
/// one who signed it and for nobody else's request.
#[tokio::test]
async fn case_33_a_handler_that_never_answers_costs_nothing_and_its_voucher_stays_good() {
    let upstream = "response_timeout = \"3s\"".to_owned();
    let world = World::start(WorldOptions { upstream, ..WorldOptions::default() }).await;
    let (payer, other) = (world.opened(1, DEPOSIT).await, world.opened(2, DEPOSIT).await);
    let payment = payer.voucher(2 * PRICE);
    world.upstream.next(Answer::ok("late").when(&Arc::new(Notify::new())));
    let late = world.pay("/paid", &payment).await;
    assert_eq!((late.status.as_u16(), late.receipt()), (504, None), "{late:?}");
    assert_eq!(world.charged(), 2 * PRICE);
    world.pay("/paid", &payment).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.pay("/paid", &other.voucher(2 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(4 * PRICE).await;
}

/// A claim that is gone is due again, and made again.
#[tokio::test]
async fn case_44_a_claim_that_a_reorganisation_drops_is_made_again() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    world.devnet.mine(6).unwrap();
    let before = world.devnet.block_number();
    world.claim_elsewhere(&payer, 2 * PRICE, 2 * PRICE).await;
    world.eventually("it is in the books", async |world| view(world, &payer) == Some((DEPOSIT, 2 * PRICE))).await;
    world.devnet.reorg(world.devnet.block_number() - before).unwrap();
    assert_eq!(world.on_chain(&payer).await, (DEPOSIT, 0));
    world.eventually("it is not", async |world| view(world, &payer) == Some((DEPOSIT, 0))).await;
    assert_eq!(world.charged(), 2 * PRICE, "what was charged stays charged");
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    world.finish(3 * PRICE).await;
}

/// A deposit that is gone covers nothing any more; what was charged stays charged.
#[tokio::test]
async fn case_44_a_deposit_that_a_reorganisation_drops_covers_nothing_any_more() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 2 * PRICE).await;
    world.devnet.mine(6).unwrap();
    let before = world.devnet.block_number();
    let topped_up = world.pay("/paid", &payer.deposit(DEPOSIT, 2 * PRICE)).await;
    topped_up.assert_served().assert_deposit_receipt(DEPOSIT, PRICE, 2 * PRICE);
    let balance = 2 * PRICE + DEPOSIT;
    world.eventually("it is in the books", async |world| view(world, &payer) == Some((balance, 0))).await;
    world.devnet.mine(2).unwrap();
    world.devnet.reorg(world.devnet.block_number() - before).unwrap();
    world.eventually("it is not", async |world| view(world, &payer) == Some((2 * PRICE, 0))).await;
    let calls = world.upstream_calls();
    let answer = world.pay("/paid", &payer.voucher(3 * PRICE)).await;
    assert_eq!((answer.status.as_u16(), world.upstream_calls()), (402, calls), "{answer:?}");
    assert_eq!(world.charged(), 2 * PRICE);
}

/// What the books believe of a payer's channel: its balance, and what was claimed.
fn view(world: &World, payer: &Payer) -> Option<(u128, u128)> {
    let view = world.books(payer.id())?.view;
    Some((view.balance.units(), view.total_claimed.units()))
}
