//! Case 36: prices that change between a quote and its payment.

use std::time::Duration;

use http::{Method, StatusCode};
use peaje::config::Config;
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Price, Route};
use peaje::protocol::{Amount, x402};
use serde_json::{Value, json};

use super::harness::{Answer, Answered, PRICE, Payer, Payment, World, WorldOptions, now_s};
use super::least::HEAD;

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

/// The world's config with other routes, as they stand in a file.
fn selling(world: &World, routes: &str) -> Config {
    let mut config = world.config.clone();
    config.server.quote_grace = LONG;
    config.routes =
        Config::parse(&format!("{HEAD}{routes}"), "routes.toml").unwrap_or_else(|errors| panic!("{errors}")).routes;
    let open = Route::new(PathPattern::parse("/paid").unwrap(), Price::Fixed(Amount::new(PRICE)));
    config.routes.push(open);
    config
}

/// A route of one path for those bodies.
fn model(model: &str, price: &str) -> String {
    format!("[[route]]\npath = \"/model\"\nprice = \"{price}\"\nmatch = {{ body = {{ model = \"{model}\" }} }}\n")
}

async fn ask_model(world: &World, payment: &Payment, model: &str) -> Answered {
    let signature = (x402::PAYMENT_SIGNATURE, &*payment.header());
    let headers = [signature, ("content-type", "application/json")];
    world.send(Method::POST, "/model", &headers, format!("{{\"model\": \"{model}\"}}")).await
}

#[tokio::test]
async fn case_36_a_quote_that_depends_on_the_body_outlives_what_others_look_at() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let apply = |routes: &str| world.site.live().apply(&selling(&world, routes)).map(drop).unwrap();
    apply(&[model("large", "$0.002"), model("small", "$0.001")].concat());
    apply(&[model("large", "$0.006"), model("small", "$0.001"), model("mini*", "$0.003")].concat());
    let answer = ask_model(&world, &payer.voucher(2 * PRICE), "large").await;
    answer.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    for other in ["small", "mini-1"] {
        let answer = ask_model(&world, &payer.voucher(3 * PRICE), other).await;
        answer.assert_refused(402, "No matching payment requirements");
    }
    // The list in force does not look at any body.
    apply("[[route]]\npath = \"/model\"\nprice = \"$0.006\"\n");
    let answer = ask_model(&world, &payer.voucher(3 * PRICE), "large").await;
    answer.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    let answer = ask_model(&world, &quoted(&payer, DEARER).voucher(3 * PRICE + DEARER), "small").await;
    answer.assert_served().assert_voucher_receipt(DEARER, 3 * PRICE + DEARER);
    assert_eq!(generation(&answer), 4);
    let answer = ask_model(&world, &payer.voucher(4 * PRICE + DEARER), "small").await;
    answer.assert_refused(402, "No matching payment requirements");
    world.finish(3 * PRICE + DEARER).await;
}

#[tokio::test]
async fn case_36_a_quote_of_a_short_hour_outlives_it_by_the_grace() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    // Three minutes that began five minutes ago, and are over by now.
    let clock = |minutes_ago: u64| {
        let minute = (now_s() / 60 + 1_440 - minutes_ago) % 1_440;
        format!("{:02}:{:02}", minute / 60, minute % 60)
    };
    let hours = format!("{}-{}", clock(5), clock(2));
    let at = format!("[[route.at]]\nhours = \"{hours}\"\nprice = \"$0.002\"\n");
    let routes = format!("[[route]]\npath = \"/hourly\"\nprice = \"$0.006\"\n{at}");
    world.site.live().apply(&selling(&world, &routes)).unwrap();
    assert_eq!(world.quote("/hourly").await["accepts"][0]["amount"], DEARER.to_string());
    let answer = world.pay("/hourly", &payer.voucher(2 * PRICE)).await;
    answer.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_36_a_tariff_is_not_charged_as_a_fixed_price_of_as_much() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let by_bytes = "{ response_bytes = \"$0.000001 / 1\", most = \"$0.002\" }";
    let route = |price: &str| format!("[[route]]\npath = \"/sized\"\nprice = {price}\n");
    world.site.live().apply(&selling(&world, &route(by_bytes))).unwrap();
    let offer = world.quote("/sized").await["accepts"][0].clone();
    assert_eq!(offer["amount"], PRICE.to_string());
    world.site.live().apply(&selling(&world, &route("\"$0.002\""))).unwrap();
    world.upstream.next(Answer::ok("seven b"));
    let answer = world.pay("/sized", &Payer { offer, ..payer.clone() }.voucher(2 * PRICE)).await;
    answer.assert_served_with("seven b").assert_voucher_receipt(7, PRICE + 7);
    world.finish(PRICE + 7).await;
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
