//! Cases 37 and 38: refunds, and what a client finds after one it did not ask for.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use peaje::agent::{Agent, AgentConfig, NodeReader, PayRequest};
use peaje::chain::{AlloyChain, Call, Chain as _, Happening};
use peaje::devnet::Mining;
use peaje::protocol::claim::refund_digest;
use peaje::protocol::x402::PAYMENT_SIGNATURE;
use peaje::protocol::{Amount, Hash, LocalKey};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::extras::{StockClient, dev, evm, state};
use super::harness::{Answer, Answered, PRICE, PURSE, Payer, World, WorldOptions};

const DEPOSIT: u128 = 10 * PRICE;

/// A confirmed refund: what the client is told, and the one transaction behind it.
async fn assert_refunded(
    world: &World,
    answer: &Answered,
    payer: &Payer,
    amount: u128,
    state: Value,
) -> Vec<Happening> {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.json(), json!({"message": "Refund acknowledged", "channelId": payer.id().to_string()}));
    assert_eq!(answer.quote(), None);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let receipt = answer.receipt().expect("a refund has a receipt");
    let transaction = receipt["transaction"].as_str().unwrap().to_owned();
    let expected = json!({
        "success": true, "transaction": transaction, "network": "eip155:84532",
        "payer": payer.config.payer.to_string(), "amount": amount.to_string(), "extra": {"channelState": state},
    });
    assert_eq!(receipt, expected, "this and nothing else; above all no chargedAmount");
    let mined = world.chain.receipt(transaction.parse().unwrap()).await.unwrap().expect("it is mined");
    assert!(mined.success);
    mined.events.into_iter().map(|event| event.what).collect()
}

#[tokio::test]
async fn case_37_a_full_refund_claims_and_gives_back_in_one_transaction() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    let before = world.tally().await;

    let answer = world.pay("/paid", &payer.refund(2 * PRICE, None)).await;
    let now = state(&payer, 2 * PRICE, 2 * PRICE, 2 * PRICE, 1);
    let events = assert_refunded(&world, &answer, &payer, 8 * PRICE, now).await;
    let (channel, claimed) = (payer.id(), Amount::new(2 * PRICE));
    let expected = [
        Happening::Claimed { channel, amount: claimed, new_total_claimed: claimed },
        Happening::Refunded { channel, amount: Amount::new(8 * PRICE) },
    ];
    assert_eq!(events, expected);
    let mut after = world.tally().await;
    assert_eq!(after.transactions - before.transactions, 1);
    after.transactions = before.transactions;
    assert_eq!(after, before, "upstream untouched, nothing charged");
    assert_eq!(world.on_chain(&payer).await, (2 * PRICE, 2 * PRICE));
    assert_eq!(world.dollars(payer.address()), PURSE - 2 * PRICE);

    // Nothing is left, and the channel can be used again.
    let before = world.tally().await;
    let answer = world.pay("/paid", &payer.refund(2 * PRICE, None)).await;
    answer.assert_scheme_refusal("refund_no_balance");
    world.assert_untouched(&before).await;
    let answer = world.pay("/paid", &payer.deposit(DEPOSIT, 3 * PRICE)).await;
    answer.assert_served().assert_deposit_receipt(DEPOSIT, PRICE, 3 * PRICE);
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_37_a_partial_refund_leaves_a_channel_that_pays() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;

    let part = (4 * PRICE + 1).to_string();
    let answer = world.pay("/paid", &payer.refund(PRICE, Some(&part))).await;
    let left = 6 * PRICE - 1;
    let now = state(&payer, left, PRICE, PRICE, 1);
    assert_refunded(&world, &answer, &payer, 4 * PRICE + 1, now).await;
    assert_eq!(world.dollars(payer.address()), PURSE - left);
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);

    // The next refund is signed with the next nonce, and claims what came since.
    let answer = world.pay("/paid", &payer.refund(2 * PRICE, Some("1"))).await;
    let now = state(&payer, left - 1, 2 * PRICE, 2 * PRICE, 2);
    assert_eq!(assert_refunded(&world, &answer, &payer, 1, now).await.len(), 2);
    // With everything claimed there is nothing to claim in the transaction.
    let answer = world.pay("/paid", &payer.refund(2 * PRICE, Some("1"))).await;
    let now = state(&payer, left - 2, 2 * PRICE, 2 * PRICE, 3);
    let events = assert_refunded(&world, &answer, &payer, 1, now).await;
    assert_eq!(events, [Happening::Refunded { channel: payer.id(), amount: Amount::new(1) }]);
    // More than is left is all that is left, as the contract has it.
    let answer = world.pay("/paid", &payer.refund(2 * PRICE, Some(&(100 * PRICE).to_string()))).await;
    let rest = left - 2 - 2 * PRICE;
    let now = state(&payer, 2 * PRICE, 2 * PRICE, 2 * PRICE, 4);
    assert_refunded(&world, &answer, &payer, rest, now).await;
    assert_eq!(world.dollars(payer.address()), PURSE - 2 * PRICE);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_37_a_refund_that_is_wrong_is_refused_and_sends_nothing() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let before = world.tally().await;
    for amount in [
        json!("0"),
        json!("abc"),
        json!(""),
        json!("-1"),
        json!("1.5"),
        json!("1e3"),
        json!("0x10"),
        json!(" 1"),
        json!(1000),
        json!(true),
        json!(["1"]),
        json!("340282366920938463463374607431768211456"),
    ] {
        let payment = payer.refund(PRICE, Some("1")).set("/payload/amount", amount.clone());
        println!("{amount}");
        world.pay("/paid", &payment).await.assert_scheme_refusal("refund_amount_invalid");
    }
    for max in [PRICE - 1, PRICE + 1, 2 * PRICE, 0, DEPOSIT] {
        let answer = world.pay("/paid", &payer.refund(max, None)).await;
        answer.assert_corrective(PRICE, DEPOSIT, Some(PRICE));
    }
    let nobody = world.payer(2);
    for max in [0, PRICE] {
        let answer = world.pay("/paid", &nobody.refund(max, None)).await;
        answer.assert_scheme_refusal("channel_not_found");
    }
    world.assert_untouched(&before).await;
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_37_a_refund_is_taken_on_any_path_and_never_goes_upstream() {
    let more = "[[route]]\npath = \"/post\"\nmethods = [\"POST\"]\nprice = \"$0.01\"".to_owned();
    let world = World::start(WorldOptions { more, ..WorldOptions::default() }).await;
    let mut payer = world.opened(1, DEPOSIT).await;
    let before = world.tally().await;
    let ask = async |payer: &Payer, method: Method, path: &str| {
        let payment = payer.refund(PRICE, Some("1")).header();
        world.send(method, path, &[(PAYMENT_SIGNATURE, &payment)], "").await
    };
    let places =
        [(Method::GET, "/nowhere"), (Method::GET, "/free"), (Method::GET, "/post"), (Method::POST, "/paid?x=1")];
    let mut refunds = 0;
    for (method, path) in &places {
        refunds += 1;
        let answer = ask(&payer, method.clone(), path).await;
        let now = state(&payer, DEPOSIT - refunds, PRICE, PRICE, refunds);
        assert_refunded(&world, &answer, &payer, 1, now).await;
    }
    // A client that only knows a dearer path echoes that path's offer.
    payer.offer = {
        let quote = world.send(Method::POST, "/post", &[], "").await.quote().unwrap();
        quote["accepts"][0].clone()
    };
    for (method, path) in [(Method::GET, "/paid"), (Method::POST, "/post")] {
        refunds += 1;
        let answer = ask(&payer, method, path).await;
        let now = state(&payer, DEPOSIT - refunds, PRICE, PRICE, refunds);
        assert_refunded(&world, &answer, &payer, 1, now).await;
    }
    assert_eq!(world.upstream_calls(), before.upstream_calls);
    assert_eq!(world.tally().await.transactions - before.transactions, u64::try_from(refunds).unwrap());

    // Six an hour: whoever has seen the last voucher of a channel can ask, and each one costs gas.
    let before = world.tally().await;
    let answer = ask(&payer, Method::GET, "/paid").await;
    answer.assert_refused(429, "refund_rate_limited");
    assert_eq!(answer.header("retry-after"), Some("60"));
    world.assert_untouched(&before).await;
    payer.offer = world.quote("/paid").await["accepts"][0].clone();
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_37_a_refund_waits_for_the_request_in_progress() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let released = Arc::new(Notify::new());
    world.upstream.next(Answer::ok("served").when(&released));
    let before = world.tally().await;
    let (first, second) = (payer.voucher(2 * PRICE), payer.refund(PRICE, None));
    let (served, ()) = tokio::join!(world.pay("/paid", &first), async {
        world.upstream_saw(2).await;
        for payment in [&second, &payer.refund(2 * PRICE, None)] {
            let answer = world.pay("/paid", payment).await;
            answer.assert_scheme_refusal("channel_busy");
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        released.notify_one();
    });
    served.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    assert_eq!(world.tally().await.transactions, before.transactions);
    // The voucher it came with is of before the request.
    world.pay("/paid", &second).await.assert_corrective(2 * PRICE, DEPOSIT, Some(2 * PRICE));
    let answer = world.pay("/paid", &payer.refund(2 * PRICE, None)).await;
    let now = state(&payer, 2 * PRICE, 2 * PRICE, 2 * PRICE, 1);
    assert_refunded(&world, &answer, &payer, 8 * PRICE, now).await;
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_37_a_refund_goes_on_without_its_client_and_nothing_is_served_meanwhile() {
    let channel = "max_wait = \"50ms\"".to_owned();
    let world = World::start(WorldOptions { channel, ..WorldOptions::default() }).await;
    let payer = world.opened(1, DEPOSIT).await;
    let before = world.tally().await;
    world.devnet.set_mining(Mining::Manual);
    let connection = world.raw("/paid", &payer.refund(PRICE, Some(&(4 * PRICE).to_string()))).await;
    world.sent_transactions(before.transactions + 1).await;
    for payment in [payer.voucher(2 * PRICE), payer.refund(PRICE, None), payer.deposit(DEPOSIT, 2 * PRICE)] {
        world.pay("/paid", &payment).await.assert_scheme_refusal("channel_busy");
    }
    drop(connection);
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_scheme_refusal("channel_busy");
    assert_eq!(world.upstream_calls(), before.upstream_calls);
    world.devnet.mine(1).unwrap();
    let booked = async |world: &World| world.book(&payer).view.balance.units() == 6 * PRICE;
    world.eventually("the refund is booked", booked).await;
    world.devnet.set_mining(Mining::OnDemand);
    let served = async |world: &World| world.pay("/paid", &payer.voucher(2 * PRICE)).await.status == StatusCode::OK;
    world.eventually("the channel is free", served).await;
    assert_eq!(world.on_chain(&payer).await, (6 * PRICE, PRICE));
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_42_a_refund_is_signed_with_the_live_nonce() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    // Another instance refunds while this proxy does not look: the follower is not waited for.
    let authorizer = dev("authorizer");
    for nonce in 0..3 {
        let amount = Amount::new(PRICE);
        let refund = refund_digest(&payer.settlement(), payer.id(), nonce, amount);
        let call = Call::ClaimAndRefund {
            rows: Vec::new(),
            claim_signature: authorizer.sign(refund),
            config: payer.config,
            amount,
            nonce,
            refund_signature: authorizer.sign(refund),
        };
        world.past_the_proxy(dev("5"), &call).await;
    }
    let answer = world.pay("/paid", &payer.refund(PRICE, Some(&PRICE.to_string()))).await;
    let now = state(&payer, 6 * PRICE, PRICE, PRICE, 4);
    assert_refunded(&world, &answer, &payer, PRICE, now).await;
    world.finish(PRICE).await;
}

// ---- case 38

async fn agent(world: &World, payer: &Payer) -> Agent<NodeReader<AlloyChain>> {
    let chain = world.chain_as(payer.key.clone()).await;
    Agent::new(AgentConfig::new(payer.key.clone()), NodeReader::new(Arc::new(chain))).unwrap()
}

/// Pays through the library's own client; what it cost.
async fn buy(world: &World, agent: &Agent<NodeReader<AlloyChain>>) -> u128 {
    let answer = agent.pay(PayRequest::get(world.url("/paid"))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    answer.charged().units()
}

#[tokio::test]
async fn case_38_the_agent_goes_on_after_a_refund_it_did_not_ask_for() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let agent = agent(&world, &payer).await;
    assert_eq!(buy(&world, &agent).await, PRICE);
    assert_eq!(buy(&world, &agent).await, PRICE);
    world.refund_elsewhere(&payer, 2 * PRICE).await;
    assert_eq!(world.dollars(payer.address()), PURSE - 2 * PRICE);

    assert_eq!(buy(&world, &agent).await, PRICE, "in one call");
    assert_eq!(buy(&world, &agent).await, PRICE);
    let onchain = world.tally().await;
    assert_eq!((onchain.onchain_deposits, onchain.charged), (2, 4 * PRICE));
    world.finish(4 * PRICE).await;
}

#[tokio::test]
async fn case_38_a_stock_client_goes_on_after_a_refund_it_did_not_ask_for() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let mut client = StockClient::new(payer.clone(), 0, 0);
    for _ in 0..2 {
        client.fetch(&world, "/paid").await.assert_served();
    }
    world.refund_elsewhere(&payer, 2 * PRICE).await;
    client.fetch(&world, "/paid").await.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, 3 * PRICE);
    assert_eq!(client.corrected, 1);
    client.fetch(&world, "/paid").await.assert_served().assert_voucher_receipt(PRICE, 4 * PRICE);

    // The same after a refund of our own that another copy of the client asked for.
    let answer = world.pay("/paid", &payer.refund(4 * PRICE, None)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    client.fetch(&world, "/paid").await.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, 5 * PRICE);
    assert_eq!(client.corrected, 2);
    world.finish(5 * PRICE).await;
}

/// A channel from which nothing was ever charged has nothing at all on chain after a refund, as if it had never been.
#[tokio::test]
async fn case_38_a_stock_client_goes_on_after_a_refund_of_an_uncharged_channel() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let mut client = StockClient::new(payer.clone(), 0, 0);
    world.upstream.next(Answer::status(500));
    assert_eq!(client.fetch(&world, "/paid").await.status, 500);
    assert_eq!((client.balance, client.charged), (5 * PRICE, 0), "the deposit is booked, the failure is not charged");
    world.refund_elsewhere(&payer, 0).await;
    assert_eq!(world.on_chain(&payer).await, (0, 0));

    client.fetch(&world, "/paid").await.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, PRICE);
    assert_eq!(client.corrected, 1);
    world.finish(PRICE).await;
}

/// The same when the proxy, too, has nothing left that reminds of the channel.
#[tokio::test]
async fn case_38_a_refund_of_an_uncharged_channel_is_remembered_by_the_chain_alone() {
    let mut world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    world.upstream.next(Answer::status(500));
    world.pay("/paid", &payer.deposit(DEPOSIT, PRICE)).await;
    world.refund_elsewhere(&payer, 0).await;
    world.reopen().await;
    let answer = world.pay("/paid", &payer.voucher(PRICE)).await;
    answer.assert_corrective(0, 0, None);
    assert_eq!(answer.corrective().unwrap().0, state(&payer, 0, 0, 0, 1));
    assert!(world.site.gate().accounts().is_empty());
    let mut client = StockClient::new(payer, DEPOSIT, 0);
    client.fetch(&world, "/paid").await.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, PRICE);
    world.finish(PRICE).await;
}

#[tokio::test]
async fn case_38_the_agent_goes_on_after_a_refund_of_an_uncharged_channel() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let agent = agent(&world, &payer).await;
    world.upstream.next(Answer::status(500));
    let answer = agent.pay(PayRequest::get(world.url("/paid"))).await.unwrap();
    assert_eq!((answer.status(), answer.charged()), (StatusCode::INTERNAL_SERVER_ERROR, Amount::ZERO));
    world.refund_elsewhere(&payer, 0).await;
    assert_eq!(buy(&world, &agent).await, PRICE);
    world.finish(PRICE).await;
}

/// What the payer's own client asks for ends the same way: the agent's refund, then a new deposit on the same channel.
#[tokio::test]
async fn case_38_a_refund_and_a_new_beginning_by_the_agent() {
    let world = World::start(WorldOptions::default()).await;
    let key = LocalKey::from_bytes(&[0x51; 32]).unwrap();
    let payer = Payer { key: key.clone(), ..world.payer(1) };
    world.devnet.mint_dollars(evm(key.address()), PURSE).unwrap();
    let agent = agent(&world, &payer).await;
    assert_eq!(buy(&world, &agent).await, PRICE);
    let refunded = agent.refund(&world.url("/paid"), None).await.unwrap();
    assert!(refunded.transaction.is_some_and(|hash| hash != Hash::ZERO));
    assert_eq!(world.dollars(key.address()), PURSE - PRICE);
    assert_eq!(buy(&world, &agent).await, PRICE);
    world.finish(2 * PRICE).await;
}
