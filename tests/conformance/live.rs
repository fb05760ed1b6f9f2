//! Case 36: prices that change between a quote and its payment.

use std::time::Duration;

use http::StatusCode;
use peaje::config::Config;
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Price, Route};
use peaje::protocol::Amount;
use serde_json::{Value, json};

use super::harness::{Answered, PRICE, Payer, World, WorldOptions};

const DEPOSIT: u128 = 20 * PRICE;
const DEARER: u128 = 3 * PRICE;

/// The world's config at another price for `/paid`.
fn at(world: &World, price: u128, grace: Duration) -> Config {
    let mut config = world.config.clone();
    config.server.quote_grace = grace;
    let paid = config.routes.iter_mut().find(|route| &*route.name == "/paid").unwrap();
    paid.price = Price::Fixed(Amount::new(price));
    config
}

/// The same payer, who answers an offer of another price.
fn quoted(payer: &Payer, price: u128) -> Payer {
    Payer { offer: json!(payer.terms.offer(Amount::new(price))), ..payer.clone() }
}

fn generation(answer: &Answered) -> Value {
    answer.receipt().expect("a receipt")["extra"]["priceGeneration"].clone()
}

fn offered(answer: &Answered) -> Value {
    answer.quote().expect("a quote")["accepts"][0]["amount"].clone()
}

const LONG: Duration = Duration::from_secs(600);

#[tokio::test]
async fn case_36_an_old_quote_is_served_at_its_price_and_a_new_one_at_its_own() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    world.site.live().apply(&at(&world, DEARER, LONG)).unwrap();
    assert_eq!(world.quote("/paid").await["accepts"][0]["amount"], DEARER.to_string());

    // By a voucher, and by a deposit.
    let answer = world.pay("/paid", &payer.voucher(2 * PRICE)).await;
    answer.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    assert_eq!(generation(&answer), 1);
    let other = world.payer(2);
    let answer = world.pay("/paid", &other.deposit(DEPOSIT, PRICE)).await;
    answer.assert_served().assert_deposit_receipt(DEPOSIT, PRICE, PRICE);
    assert_eq!(generation(&answer), 1);

    let answer = world.pay("/paid", &quoted(&payer, DEARER).voucher(2 * PRICE + DEARER)).await;
    answer.assert_served().assert_voucher_receipt(DEARER, 2 * PRICE + DEARER);
    assert_eq!(generation(&answer), 2);
    // What nobody ever quoted stays refused, with the offer in force.
    let answer = world.pay("/paid", &quoted(&payer, PRICE - 1).voucher(3 * PRICE + DEARER - 1)).await;
    answer.assert_refused(402, "No matching payment requirements");
    assert_eq!(offered(&answer), DEARER.to_string());
    world.finish(3 * PRICE + DEARER).await;
}

#[tokio::test]
async fn case_36_whoever_is_out_of_step_with_an_old_quote_is_corrected_with_that_quote() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    world.site.live().apply(&at(&world, DEARER, LONG)).unwrap();
    // A stock client signs its next try for the offer it has.
    let answer = world.pay("/paid", &payer.voucher(7 * PRICE)).await;
    let (state, _) = answer.corrective().expect("a corrective");
    assert_eq!(
        (offered(&answer), &state["chargedCumulativeAmount"]),
        (json!(PRICE.to_string()), &json!(PRICE.to_string()))
    );
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_36_after_the_grace_the_new_offer_is_told() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    world.site.live().apply(&at(&world, DEARER, Duration::from_millis(50))).unwrap();
    let mut charged = PRICE;
    world
        .eventually("the old quote is over", async |world| {
            let answer = world.pay("/paid", &payer.voucher(charged + PRICE)).await;
            if answer.status == StatusCode::OK {
                charged += PRICE;
                return false;
            }
            answer.assert_refused(402, "No matching payment requirements");
            assert_eq!(offered(&answer), DEARER.to_string());
            true
        })
        .await;
    // Without a grace it is over at once.
    world.site.live().apply(&at(&world, 2 * PRICE, Duration::ZERO)).unwrap();
    let answer = world.pay("/paid", &quoted(&payer, DEARER).voucher(charged + DEARER)).await;
    answer.assert_refused(402, "No matching payment requirements");
    let answer = world.pay("/paid", &quoted(&payer, 2 * PRICE).voucher(charged + 2 * PRICE)).await;
    answer.assert_served();
    world.finish(charged + 2 * PRICE).await;
}

#[tokio::test]
async fn case_36_a_quote_outlives_its_route_where_the_path_is_still_sold() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let mut config = world.config.clone();
    config.server.quote_grace = LONG;
    let wide = Route::new(PathPattern::parse("/*").unwrap(), Price::Fixed(Amount::new(DEARER)));
    config.routes = vec![wide];
    world.site.live().apply(&config).unwrap();
    let answer = world.pay("/paid", &payer.voucher(2 * PRICE)).await;
    answer.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    let answer = world.pay("/free", &payer.voucher(3 * PRICE)).await;
    answer.assert_refused(402, "No matching payment requirements");
    // What is given away now costs nothing, whatever was quoted; what is not sold any more is not there.
    let free = Route::new(PathPattern::parse("/paid").unwrap(), Price::Free);
    config.routes = vec![free];
    world.site.live().apply(&config).unwrap();
    let answer = world.pay("/paid", &payer.voucher(3 * PRICE)).await;
    assert_eq!((answer.status, answer.receipt()), (StatusCode::OK, None));
    let elsewhere = Route::new(PathPattern::parse("/elsewhere").unwrap(), Price::Fixed(Amount::new(PRICE)));
    config.routes = vec![elsewhere];
    world.site.live().apply(&config).unwrap();
    assert_eq!(world.pay("/paid", &payer.voucher(3 * PRICE)).await.status, StatusCode::NOT_FOUND);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_36_a_refund_by_old_terms_is_paid_during_the_grace() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let mut config = world.config.clone();
    config.server.quote_grace = LONG;
    config.channel.max_timeout = Duration::from_secs(400);
    config.channel.max_in_flight = 7;
    let taken = world.site.live().apply(&config).unwrap();
    assert_eq!((taken.diff.keys.len(), taken.needs_restart.len()), (3, 0), "{taken:?}");
    assert_eq!(world.quote("/paid").await["accepts"][0]["maxTimeoutSeconds"], 400);
    let answer = world.pay("/free", &payer.refund(PRICE, Some("1000"))).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.receipt().expect("a receipt")["amount"], "1000");
    world.finish(PRICE).await;
}
