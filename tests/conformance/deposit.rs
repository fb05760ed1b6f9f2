//! Cases 12 to 21: deposits.

use std::sync::Arc;

use peaje::chain::{Call, Chain as _};
use peaje::devnet::{Mining, genesis};
use peaje::protocol::deposit::Authorization;
use peaje::protocol::{Amount, Domain, Hash, LocalKey};
use serde_json::json;
use tokio::sync::Notify;

use super::extras::{dev, evm};
use super::harness::{Answer, PRICE, PURSE, Payer, Payment, World, WorldOptions, now_s};

const ERC3009: &str = "/payload/deposit/authorization/erc3009Authorization";

#[tokio::test]
async fn case_12_a_deposit_is_relayed_once_and_its_receipt_tells_all() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);

    let answer = world.pay("/paid", &payer.deposit(5 * PRICE, PRICE)).await;

    answer.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, PRICE);
    assert_eq!(answer.body, "served");
    assert_eq!(
        answer.state(),
        json!({
            "channelId": payer.id(),
            "balance": (5 * PRICE).to_string(),
            "totalClaimed": "0",
            "withdrawRequestedAt": 0,
            "refundNonce": "0",
            "chargedCumulativeAmount": PRICE.to_string(),
        })
    );
    let receipt = answer.receipt().unwrap();
    assert!(receipt["payer"].as_str().unwrap().eq_ignore_ascii_case(&payer.address().to_string()));
    assert!(receipt.get("errorReason").is_none());
    let mined = world.rpc("eth_getTransactionReceipt", json!([receipt["transaction"]])).await;
    assert_eq!(mined["status"], json!("0x1"));
    assert_eq!((world.transactions().await, world.onchain_deposits().await), (1, 1));
    assert_eq!(world.dollars(payer.address()), PURSE - 5 * PRICE);
    assert_eq!(world.upstream_calls(), 1);

    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    assert_eq!(world.transactions().await, 1);
    world.finish(2 * PRICE).await;
}

/// Whatever is signed otherwise than the token will check it is found out before gas is spent on it.
#[tokio::test]
async fn case_13_an_authorization_that_is_not_the_payers_is_not_broadcast() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let before = world.tally().await;
    let token = payer.terms.token.address;
    let stranger = LocalKey::from_bytes(&[9; 32]).unwrap();
    let deposit = payer.deposit(5 * PRICE, PRICE);

    let forged = [
        payer.deposit_with(5 * PRICE, PRICE, |it| it.domain = Domain::new("USD Coin", "2", 84_532, token)),
        payer.deposit_with(5 * PRICE, PRICE, |it| it.domain = Domain::new("USDC", "1", 84_532, token)),
        payer.deposit_with(5 * PRICE, PRICE, |it| it.domain = Domain::new("USDC", "2", 8_453, token)),
        payer.deposit_with(5 * PRICE, PRICE, |it| it.domain = Domain::new("USDC", "2", 84_532, payer.address())),
        payer.deposit_with(5 * PRICE, PRICE, |it| it.domain = payer.settlement()),
        payer.deposit_with(5 * PRICE, PRICE, |it| it.signer = stranger),
        payer.deposit_with(5 * PRICE, PRICE, |it| it.signed_salt = Hash([7; 32])),
        // Good signatures over something else than what the payload says.
        deposit.clone().set("/payload/deposit/amount", (5 * PRICE + 1).to_string()),
        deposit.clone().set(&format!("{ERC3009}/validBefore"), (now_s() + 999).to_string()),
        deposit.clone().set(&format!("{ERC3009}/validAfter"), "1"),
        deposit.set(&format!("{ERC3009}/signature"), payer.deposit(1, 1).at(&format!("{ERC3009}/signature"))),
    ];
    for payment in forged {
        world.pay("/paid", &payment).await.assert_scheme_refusal("receive_authorization_signature");
    }
    world.assert_untouched(&before).await;
    assert!(world.books(payer.id()).is_none(), "no account was opened");

    world.pay("/paid", &payer.deposit(5 * PRICE, PRICE)).await.assert_served();
    world.finish(PRICE).await;
}

#[tokio::test]
async fn case_14_the_authorization_must_be_valid_now_and_long_enough_to_be_mined() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let before = world.tally().await;
    let until = |valid_before| payer.deposit_with(5 * PRICE, PRICE, |it| it.valid_before = valid_before);
    let from = |valid_after| payer.deposit_with(5 * PRICE, PRICE, |it| it.valid_after = valid_after);

    for valid_before in [0, now_s() - 1, now_s(), now_s() + 5] {
        let answer = world.pay("/paid", &until(valid_before)).await;
        answer.assert_scheme_refusal("payload_authorization_valid_before");
    }
    for valid_after in [now_s() + 30, now_s() + 100_000, u64::MAX] {
        let answer = world.pay("/paid", &from(valid_after)).await;
        answer.assert_scheme_refusal("payload_authorization_valid_after");
    }
    world.assert_untouched(&before).await;

    // A little longer than the six seconds, since a second may pass on the way.
    let answer = world.pay("/paid", &until(now_s() + 12)).await;
    answer.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, PRICE);
    let other = payer.with_salt(2);
    let just_begun = other.deposit_with(5 * PRICE, PRICE, |it| it.valid_after = now_s() - 2);
    world.pay("/paid", &just_begun).await.assert_served();
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_15_the_payer_must_have_the_tokens() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let before = world.tally().await;

    let answer = world.pay("/paid", &payer.deposit(PURSE + 1, PRICE)).await;
    answer.assert_scheme_refusal("insufficient_balance");
    let most = world.pay("/paid", &payer.deposit(u128::MAX, PRICE)).await;
    most.assert_scheme_refusal("insufficient_balance");
    world.assert_untouched(&before).await;
    assert!(world.books(payer.id()).is_none());

    let answer = world.pay("/paid", &payer.deposit(PURSE, PRICE)).await;
    answer.assert_served().assert_deposit_receipt(PURSE, PRICE, PRICE);
    assert_eq!(world.dollars(payer.address()), 0);
    world.finish(PRICE).await;
}

#[tokio::test]
async fn case_15_the_deposit_must_cover_what_the_voucher_promises() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let before = world.tally().await;

    let answer = world.pay("/paid", &payer.deposit(PRICE - 1, PRICE)).await;
    answer.assert_scheme_refusal("cumulative_exceeds_balance");
    world.assert_untouched(&before).await;
    let answer = world.pay("/paid", &payer.deposit(PRICE, PRICE)).await;
    answer.assert_served().assert_deposit_receipt(PRICE, PRICE, PRICE);

    // The same for a top-up, on what is left: nothing.
    let before = world.tally().await;
    let answer = world.pay("/paid", &payer.deposit(PRICE - 1, 2 * PRICE)).await;
    answer.assert_scheme_refusal("cumulative_exceeds_balance");
    world.assert_untouched(&before).await;
    let answer = world.pay("/paid", &payer.deposit(PRICE, 2 * PRICE)).await;
    answer.assert_served().assert_deposit_receipt(PRICE, PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

/// Two channels of one payer who has tokens for one deposit: both would work when they are tried, one is left over when
/// they are mined.
#[tokio::test]
async fn case_16_a_deposit_that_reverts_costs_and_blocks_nothing() {
    let world = World::start(WorldOptions { mining: Mining::Manual, ..WorldOptions::default() }).await;
    let (payer, elsewhere) = (world.payer(1), world.payer(1).with_salt(2));
    let much = PURSE / 2 + 1;
    relay_elsewhere(&world, &elsewhere, much).await;

    let payment = payer.deposit(much, PRICE);
    let (reverted, ()) = tokio::join!(world.pay("/paid", &payment), async {
        world.sent_transactions(1).await;
        assert_eq!(world.upstream_calls(), 0, "nobody is served before its deposit is mined");
        world.devnet.mine(1).unwrap();
    });

    reverted.assert_settlement_failed("deposit_transaction_failed");
    assert_eq!((world.upstream_calls(), world.onchain_deposits().await, world.charged()), (0, 1, 0));
    assert!(world.books(payer.id()).is_none(), "no orphan is left behind");
    // The next attempt is a first attempt.
    world.devnet.set_mining(Mining::OnDemand);
    let unknown = world.pay("/paid", &payer.voucher(PRICE)).await;
    unknown.assert_scheme_refusal("channel_not_found");
    let answer = world.pay("/paid", &payer.deposit(5 * PRICE, PRICE)).await;
    answer.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, PRICE);
    world.finish(PRICE).await;
}

/// A top-up that reverts leaves the channel what it was.
#[tokio::test]
async fn case_16_a_top_up_that_reverts_leaves_the_channel_usable() {
    let world = World::start(WorldOptions::default()).await;
    let (payer, elsewhere) = (world.opened(1, PRICE).await, world.payer(1).with_salt(2));
    world.devnet.set_mining(Mining::Manual);
    let much = PURSE / 2 + 1;
    relay_elsewhere(&world, &elsewhere, much).await;

    let payment = payer.deposit(much, 2 * PRICE);
    let (reverted, ()) = tokio::join!(world.pay("/paid", &payment), async {
        world.sent_transactions(2).await;
        world.devnet.mine(1).unwrap();
    });

    reverted.assert_settlement_failed("deposit_transaction_failed");
    assert_eq!((world.upstream_calls(), world.charged()), (1, PRICE));
    world.devnet.set_mining(Mining::OnDemand);
    let answer = world.pay("/paid", &payer.deposit(PRICE, 2 * PRICE)).await;
    answer.assert_served().assert_deposit_receipt(PRICE, PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

/// Somebody else relays a deposit of the payer's to another channel. No block has it yet, so that one through the proxy
/// passes when it is tried, and finds the payer's money gone when it is mined.
async fn relay_elsewhere(world: &World, payer: &Payer, amount: u128) {
    let (salt, valid_before, amount) = (Hash([0x99; 32]), now_s() + 300, Amount::new(amount));
    let nonce = Authorization::nonce(payer.id(), salt);
    let digest = Authorization::digest(&payer.terms.token_domain(), payer.address(), amount, 0, valid_before, nonce);
    let authorization = Authorization { valid_after: 0, valid_before, salt, signature: payer.key.sign(digest) };
    let relayer = dev("5");
    world.devnet.fund(evm(relayer.address()), genesis::DEV_BALANCE);
    let call = Call::Deposit { config: payer.config, amount, authorization: authorization.into(), payment: None };
    world.chain_as(relayer).await.send(&call).await.unwrap();
}

/// A world where a request is given up on after ten seconds, the least an offer can say.
async fn impatient_world() -> World {
    let channel = "max_timeout = \"10s\"".to_owned();
    let upstream = "response_timeout = \"5s\"".to_owned();
    World::start(WorldOptions { mining: Mining::Manual, channel, upstream, ..WorldOptions::default() }).await
}

/// Signs so that the authorization outlives the wait.
fn lasting(payer: &Payer, amount: u128) -> Payment {
    payer.deposit_with(amount, PRICE, |it| it.valid_before = now_s() + 300)
}

#[tokio::test]
async fn case_17_a_deposit_that_is_mined_late_is_neither_lost_nor_made_twice() {
    let world = impatient_world().await;
    let payer = world.payer(1);
    let (deposit, other) = (lasting(&payer, 5 * PRICE), lasting(&payer, 7 * PRICE));

    let (slow, (again, different, voucher)) = tokio::join!(world.pay("/paid", &deposit), async {
        world.sent_transactions(1).await;
        let again = world.pay("/paid", &deposit);
        let different = world.pay("/paid", &other);
        let voucher = payer.voucher(PRICE);
        tokio::join!(again, different, world.pay("/paid", &voucher))
    });

    // Its fate is open, so nobody says it failed.
    for answer in [slow, again, different] {
        answer.assert_refused(503, "settlement_pending");
        assert_eq!(answer.header("retry-after"), Some("5"));
    }
    voucher.assert_scheme_refusal("channel_busy");
    assert_eq!(voucher.header("retry-after"), Some("1"));
    assert_eq!((world.transactions().await, world.upstream_calls(), world.charged()), (1, 0, 0));

    world.devnet.mine(1).unwrap();
    world.devnet.set_mining(Mining::OnDemand);
    world.eventually("the deposit is booked", async |world| world.books(payer.id()).is_some()).await;
    // A client that was told "pending" signs another deposit. It is told what it has instead.
    let before = world.tally().await;
    let fresh = world.pay("/paid", &payer.deposit(5 * PRICE, PRICE)).await;
    fresh.assert_corrective(0, 5 * PRICE, None);
    world.assert_untouched(&before).await;
    assert_eq!(before.onchain_deposits, 1);

    world.pay("/paid", &payer.voucher(PRICE)).await.assert_served().assert_voucher_receipt(PRICE, PRICE);
    // Now that it knows its balance, a further deposit is a wish.
    let answer = world.pay("/paid", &payer.deposit(5 * PRICE, 2 * PRICE)).await;
    answer.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, 2 * PRICE);
    assert_eq!(world.onchain_deposits().await, 2);
    world.finish(2 * PRICE).await;
}

/// The client that simply sends the same again is served once the deposit is mined.
#[tokio::test]
async fn case_17_the_same_payload_pays_after_the_late_deposit() {
    let world = impatient_world().await;
    let payer = world.payer(1);
    let deposit = lasting(&payer, 5 * PRICE);

    world.pay("/paid", &deposit).await.assert_refused(503, "settlement_pending");
    let (retried, ()) = tokio::join!(world.pay("/paid", &deposit), async {
        // It waits for five seconds. One that came after the block would pay with its voucher alone.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        world.devnet.mine(1).unwrap();
    });

    retried.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, PRICE);
    assert_eq!((world.transactions().await, world.onchain_deposits().await), (1, 1));
    assert_eq!((world.upstream_calls(), world.charged()), (1, PRICE));
    world.finish(PRICE).await;
}

/// A client that hangs up while its deposit is on its way finds it on the channel.
#[tokio::test]
async fn case_17_a_deposit_outlives_the_request_that_brought_it() {
    let world = World::start(WorldOptions { mining: Mining::Manual, ..WorldOptions::default() }).await;
    let payer = world.payer(1);

    tokio::select! {
        answer = async { world.pay("/paid", &payer.deposit(5 * PRICE, PRICE)).await } => panic!("{answer:?}"),
        () = world.sent_transactions(1) => {}
    }
    world.devnet.mine(1).unwrap();
    world.devnet.set_mining(Mining::OnDemand);

    world.eventually("the deposit is booked", async |world| world.books(payer.id()).is_some()).await;
    assert_eq!((world.upstream_calls(), world.charged()), (0, 0));
    // The watcher may book it a moment before the deposit's own end is known; until then the channel is busy.
    let voucher = payer.voucher(PRICE);
    world
        .eventually("the deposit has ended", async |world| {
            let answer = world.pay("/paid", &voucher).await;
            if answer.status == 402 {
                answer.assert_scheme_refusal("channel_busy");
                return false;
            }
            answer.assert_served().assert_voucher_receipt(PRICE, PRICE);
            true
        })
        .await;
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_18_a_replayed_deposit_neither_deposits_nor_serves_again() {
    let world = World::start(WorldOptions { mining: Mining::Manual, ..WorldOptions::default() }).await;
    let payer = world.payer(1);
    let deposit = payer.deposit(5 * PRICE, PRICE);
    let released = Arc::new(Notify::new());
    world.upstream.next(Answer::ok("served").when(&released));

    // While it is on its way, and while the first request is being served.
    let (one, two, ()) = tokio::join!(
        async {
            let answer = world.pay("/paid", &deposit).await;
            released.notify_one();
            answer
        },
        async {
            let answer = world.pay("/paid", &deposit).await;
            released.notify_one();
            answer
        },
        async {
            world.sent_transactions(1).await;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            world.devnet.mine(1).unwrap();
        },
    );
    let (served, refused) = if one.status == 200 { (one, two) } else { (two, one) };
    served.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, PRICE);
    // While the first is being served nothing is charged, and its voucher is used.
    refused.assert_corrective(PRICE, 5 * PRICE, Some(PRICE));
    assert_eq!((world.transactions().await, world.onchain_deposits().await), (1, 1));
    assert_eq!((world.upstream_calls(), world.charged()), (1, PRICE));

    // And afterwards.
    world.devnet.set_mining(Mining::OnDemand);
    let before = world.tally().await;
    for _ in 0..3 {
        world.pay("/paid", &deposit).await.assert_corrective(PRICE, 5 * PRICE, Some(PRICE));
    }
    world.assert_untouched(&before).await;
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

/// A deposit whose request failed upstream was not paid with; its payload is good for the request, not for tokens.
#[tokio::test]
async fn case_18_a_replay_after_a_failed_request_pays_from_the_first_deposit() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let (first, second) = (payer.deposit(5 * PRICE, PRICE), payer.deposit(5 * PRICE, PRICE));
    world.upstream.next(Answer::status(500));
    assert_eq!(world.pay("/paid", &first).await.status, 500);
    let before = world.tally().await;
    assert_eq!((before.onchain_deposits, before.charged), (1, 0));

    // Another one while the first is untouched: its payer lost our answer and does not know of the first.
    for _ in 0..2 {
        world.pay("/paid", &second).await.assert_corrective(0, 5 * PRICE, None);
    }
    world.assert_untouched(&before).await;
    // The first again: what it brought is there.
    let answer = world.pay("/paid", &first).await;
    answer.assert_served().assert_voucher_receipt(PRICE, PRICE);
    assert_eq!(answer.state()["balance"], json!((5 * PRICE).to_string()));
    assert_eq!((world.transactions().await, world.onchain_deposits().await), (1, 1));
    world.finish(PRICE).await;
}

#[tokio::test]
async fn case_19_a_failure_upstream_of_a_deposit_is_passed_on_and_not_charged() {
    for (answer, status, body) in [
        (Answer::status(500), 500, "upstream says no"),
        (Answer::status(404), 404, "upstream says no"),
        (Answer::reset(), 502, "upstream_unreachable"),
    ] {
        let world = World::start(WorldOptions::default()).await;
        let payer = world.payer(1);
        world.upstream.next(answer);

        let answer = world.pay("/paid", &payer.deposit(5 * PRICE, PRICE)).await;

        assert_eq!(answer.status, status);
        assert!(String::from_utf8_lossy(&answer.body).contains(body), "{answer:?}");
        assert!(answer.quote().is_none());
        // The deposit is on chain all the same, and both sides know it.
        answer.assert_deposit_receipt(5 * PRICE, 0, 0);
        assert_eq!(answer.state()["balance"], json!((5 * PRICE).to_string()));
        let books = world.books(payer.id()).unwrap();
        assert_eq!((books.charged.units(), books.view.balance.units()), (0, 5 * PRICE));
        // The very voucher that did not pay then pays now.
        let answer = world.pay("/paid", &payer.voucher(PRICE)).await;
        answer.assert_served().assert_voucher_receipt(PRICE, PRICE);
        assert_eq!(world.transactions().await, 1);
        world.finish(PRICE).await;
    }
}

#[tokio::test]
async fn case_20_a_top_up_goes_on_where_the_charges_stand() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 2 * PRICE).await;
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    let before = world.tally().await;

    // Spent: a bare voucher draws a corrective, from which a stock client learns that it must top up.
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_corrective(2 * PRICE, 2 * PRICE, Some(2 * PRICE));
    // A top-up's voucher continues the sum; one that starts over is out of step, and nothing is broadcast for it.
    world.pay("/paid", &payer.deposit(3 * PRICE, PRICE)).await.assert_corrective(2 * PRICE, 2 * PRICE, Some(2 * PRICE));
    world.assert_untouched(&before).await;

    let answer = world.pay("/paid", &payer.deposit(3 * PRICE, 3 * PRICE)).await;
    answer.assert_served().assert_deposit_receipt(3 * PRICE, PRICE, 3 * PRICE);
    assert_eq!(answer.state()["balance"], json!((5 * PRICE).to_string()));
    world.pay("/paid", &payer.voucher(4 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 4 * PRICE);
    world.finish(4 * PRICE).await;
}

#[tokio::test]
async fn case_21_a_deposit_below_the_minimum_is_refused() {
    let channel = "min_deposit = \"$0.01\"".to_owned();
    let more = "[[route]]\npath = \"/dear\"\nprice = \"$0.02\"".to_owned();
    let world = World::start(WorldOptions { channel, more, ..WorldOptions::default() }).await;
    let before = world.tally().await;

    let quote = world.quote("/paid").await;
    assert_eq!(quote["accepts"][0]["extra"]["minDeposit"], json!("10000"));
    // Where the price is above the minimum, the minimum is the price.
    let dear = world.quote("/dear").await;
    assert_eq!(dear["accepts"][0]["extra"]["minDeposit"], json!("20000"));
    let payer = world.payer(1);
    for amount in [PRICE, 9_999] {
        let answer = world.pay("/paid", &payer.deposit(amount, PRICE)).await;
        answer.assert_scheme_refusal("deposit_below_min_deposit");
        assert_eq!(answer.json()["message"], json!("at least 10000"));
        assert_eq!(answer.quote().unwrap().get("message"), None, "a client reads its code and nothing else");
    }
    let rich = Payer { offer: dear["accepts"][0].clone(), ..world.payer(2) };
    let answer = world.pay("/dear", &rich.deposit(19_999, 20_000)).await;
    answer.assert_scheme_refusal("deposit_below_min_deposit");
    world.assert_untouched(&before).await;

    let answer = world.pay("/paid", &payer.deposit(10_000, PRICE)).await;
    answer.assert_served().assert_deposit_receipt(10_000, PRICE, PRICE);
    // It holds for top-ups as well, and vouchers do not care.
    let answer = world.pay("/paid", &payer.deposit(9_999, 2 * PRICE)).await;
    answer.assert_scheme_refusal("deposit_below_min_deposit");
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    world.pay("/dear", &rich.deposit(20_000, 20_000)).await.assert_served();
    world.finish(2 * PRICE + 20_000).await;
}

#[tokio::test]
async fn case_21_without_a_minimum_any_deposit_that_covers_the_price_is_taken() {
    let world = World::start(WorldOptions::default()).await;
    let quote = world.quote("/paid").await;
    assert!(quote["accepts"][0]["extra"].get("minDeposit").is_none());

    world.opened(1, PRICE).await;
    world.finish(PRICE).await;
}
