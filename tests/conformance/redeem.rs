//! Cases 35, 39, 41 and 43: the provider's money, through losses, withdrawals, crashes and shutdowns.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use peaje::chain::{Call, Chain as _, Happening};
use peaje::devnet::Mining;
use peaje::protocol::{Address, Amount, ChannelConfig, LocalKey};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::extras::{FORGETFUL, Gateway, StockClient, deploy_wallet, dev, evm, state};
use super::harness::{Answer, PAY_TO, PRICE, PURSE, Payer, World, WorldOptions};

const DEPOSIT: u128 = 10 * PRICE;

async fn forgetful() -> World {
    World::start(WorldOptions { more: FORGETFUL.to_owned(), ..WorldOptions::default() }).await
}

/// What the provider has.
fn earned(world: &World) -> u128 {
    world.dollars(PAY_TO.parse().unwrap())
}

#[tokio::test]
async fn case_34_a_restart_forgets_nothing() {
    let mut world = forgetful().await;
    let payer = world.payer(1);
    let deposit = payer.deposit(DEPOSIT, PRICE);
    world.pay("/paid", &deposit).await.assert_served();
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    let books = world.book(&payer);
    assert_eq!(world.restart().await, None, "nothing is redeemed on the way down");
    let again = world.book(&payer);
    assert_eq!((again.charged, again.unclaimed, &again.row), (books.charged, books.unclaimed, &books.row));

    // The deposit is remembered too: its payload is not relayed a second time.
    let before = world.tally().await;
    world.pay("/paid", &deposit).await.assert_corrective(2 * PRICE, DEPOSIT, Some(2 * PRICE));
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_corrective(2 * PRICE, DEPOSIT, Some(2 * PRICE));
    world.assert_untouched(&before).await;
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    world.config.redeem.on_shutdown = true;
    world.restart().await;
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_35_after_a_total_loss_the_chain_is_the_base_and_a_stale_client_recovers() {
    let mut world = forgetful().await;
    let payer = world.opened(1, DEPOSIT).await;
    let mut client = StockClient::new(payer.clone(), DEPOSIT, PRICE);
    client.fetch(&world, "/paid").await.assert_served();
    assert!(world.redeem().await.is_complete());
    for _ in 0..2 {
        client.fetch(&world, "/paid").await.assert_served();
    }
    assert_eq!((world.charged_on(&payer), world.on_chain(&payer).await), (4 * PRICE, (DEPOSIT, 2 * PRICE)));

    assert_eq!(world.reopen().await, None, "nothing is redeemed on the way down");
    assert!(world.site.gate().accounts().is_empty());
    let before = world.tally().await;
    // The client's word is no base, however well signed: not the one it paid with last, nor the one that would follow.
    for max in [4 * PRICE, 5 * PRICE, 3 * PRICE + 1, 2 * PRICE] {
        let answer = world.pay("/paid", &payer.voucher(max)).await;
        answer.assert_corrective(2 * PRICE, DEPOSIT, None);
        let shown = answer.corrective().unwrap().0;
        assert_eq!(shown, state(&payer, DEPOSIT, 2 * PRICE, 2 * PRICE, 0));
    }
    let mut after = world.tally().await;
    assert_eq!(after.charged, 2 * PRICE, "what was claimed is what was charged");
    after.charged = before.charged;
    assert_eq!(after, before);

    // The stock client recovers in one call, on the chain's base.
    client.fetch(&world, "/paid").await.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    assert_eq!(client.corrected, 1);
    client.fetch(&world, "/paid").await.assert_served().assert_voucher_receipt(PRICE, 4 * PRICE);
    world.config.redeem.on_shutdown = true;
    world.reopen().await;
    // The two that were lost were never charged to anybody again.
    assert_eq!(world.redeem().await.left, Amount::ZERO);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_35_after_a_total_loss_a_refund_starts_from_the_chain_too() {
    let mut world = forgetful().await;
    world.config.redeem.on_shutdown = true;
    let payer = world.opened(1, DEPOSIT).await;
    world.reopen().await;
    let before = world.tally().await;
    let answer = world.pay("/paid", &payer.refund(PRICE, None)).await;
    answer.assert_corrective(0, DEPOSIT, None);
    world.assert_untouched(&before).await;
    let answer = world.pay("/paid", &payer.refund(0, None)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(world.dollars(payer.address()), PURSE);
    world.finish(0).await;
}

#[tokio::test]
async fn case_39_a_withdrawal_is_seen_and_what_was_charged_is_claimed_at_once() {
    let channel = "withdraw_delay = \"15m\"\nmax_timeout = \"1h\"".to_owned();
    // No round comes by itself in the time of this case.
    let more = "[redeem]\ninterval = \"14m\"".to_owned();
    let world = World::start(WorldOptions { channel, more, ..WorldOptions::default() }).await;
    let payer = world.opened(1, DEPOSIT).await;
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    let call = Call::InitiateWithdraw { config: payer.config, amount: Amount::new(7 * PRICE) };
    world.past_the_proxy(payer.key.clone(), &call).await;
    let claimed = async |world: &World| world.on_chain(&payer).await == (DEPOSIT, 2 * PRICE);
    world.eventually("it is claimed", claimed).await;
    let settled = async |world: &World| earned(world) == 2 * PRICE;
    world.eventually("it is settled", settled).await;

    // What the withdrawal leaves can be spent, to the unit and no further.
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served();
    assert_ne!(world.book(&payer).view.withdrawal, None);
    // The last charge may be claimed meanwhile, so transactions are not counted here.
    let before = (world.upstream_calls(), world.charged());
    let answer = world.pay("/paid", &payer.voucher(4 * PRICE)).await;
    answer.assert_scheme_refusal("cumulative_exceeds_balance");
    assert_eq!((world.upstream_calls(), world.charged()), before);

    // It runs out while something is not claimed; the contract pays what was asked for, and the rest covers the charge.
    world.devnet.increase_time(Duration::from_secs(901));
    world.past_the_proxy(payer.key.clone(), &Call::FinalizeWithdraw { config: payer.config }).await;
    world.eventually("the end is followed", async |world| world.book(&payer).view.withdrawal.is_none()).await;
    assert_eq!(world.on_chain(&payer).await.0, 3 * PRICE);
    assert_eq!(world.dollars(payer.address()), PURSE - 3 * PRICE);
    assert_eq!(world.book(&payer).shortfall, Amount::ZERO);

    // A client that has not noticed is set right, and goes on with a deposit.
    let mut client = StockClient::new(payer.clone(), DEPOSIT, 3 * PRICE);
    client.fetch(&world, "/paid").await.assert_served().assert_deposit_receipt(5 * PRICE, PRICE, 4 * PRICE);
    assert_eq!(client.corrected, 1);
    world.finish(4 * PRICE).await;
}

/// An announced withdrawal leaves one chance to claim before it ends; a node's bad moment must not be that chance.
#[tokio::test]
async fn case_39_a_claim_that_a_withdrawal_calls_for_is_tried_until_it_succeeds() {
    let mut world = forgetful().await;
    world.config.redeem.on_shutdown = true;
    let gateway = Gateway::of(&mut world).await;
    let payer = world.opened(1, DEPOSIT).await;
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    gateway.fill_pool(true);
    let sends = gateway.sends();
    let call = Call::InitiateWithdraw { config: payer.config, amount: Amount::new(DEPOSIT) };
    world.past_the_proxy(payer.key.clone(), &call).await;
    world.eventually("the claim is tried", async |_| gateway.sends() > sends).await;
    // Long enough for the announcement to be history, by any count of blocks.
    for _ in 0..2 {
        world.devnet.mine(20).unwrap();
        gateway.settled().await;
    }
    assert_eq!(world.on_chain(&payer).await, (DEPOSIT, 0));
    gateway.fill_pool(false);
    world.eventually("it is settled", async |world| earned(world) == 2 * PRICE).await;
    assert_eq!(world.on_chain(&payer).await, (DEPOSIT, 2 * PRICE));
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_40_a_row_that_cannot_be_claimed_does_not_hold_up_the_others() {
    let world = World::start(WorldOptions::default()).await;
    let mut good = Vec::new();
    for number in 1..=4 {
        good.push(world.opened(number, DEPOSIT).await);
    }
    // A wallet that approved its voucher when it was served, and afterwards approves nothing any more.
    let key = LocalKey::from_bytes(&[0x31; 32]).unwrap();
    let wallet = deploy_wallet(&world, &key).await;
    let payer = world.payer(9);
    let config = ChannelConfig { payer: wallet, payer_authorizer: Address::ZERO, ..payer.config };
    let bad = Payer { key, config, ..payer };
    world.pay("/paid", &bad.deposit(DEPOSIT, PRICE)).await.assert_served();
    world.pay("/paid", &bad.voucher(2 * PRICE)).await.assert_served();
    let refuses_all = Bytes::from_static(&[0x60, 0x00, 0x60, 0x00, 0xfd]);
    world.devnet.set_code(evm(wallet), refuses_all.into()).unwrap();

    let report = world.redeem().await;
    assert!(!report.is_complete());
    assert_eq!((report.channels, report.claimed.units(), report.settled.units()), (4, 4 * PRICE, 4 * PRICE));
    assert_eq!(report.left.units(), 2 * PRICE);
    assert_eq!(report.failures.iter().map(|row| row.channel).collect::<Vec<_>>(), [bad.id()]);
    assert_eq!(report.problem, None);
    assert_eq!(earned(&world), 4 * PRICE);
    for payer in &good {
        assert_eq!(world.on_chain(payer).await, (DEPOSIT, PRICE));
    }
    // It is tried again, and does not hurt again.
    world.pay("/paid", &good[0].voucher(2 * PRICE)).await.assert_served();
    let report = world.redeem().await;
    assert_eq!((report.claimed.units(), report.failures.len()), (PRICE, 1));
    let before = world.tally().await;
    assert_eq!(world.redeem().await.failures.len(), 1);
    world.assert_untouched(&before).await;
}

#[tokio::test]
async fn case_41_what_was_charged_is_claimed_and_exactly_that_is_settled_and_once() {
    let world = World::start(WorldOptions::default()).await;
    let first = world.opened(1, DEPOSIT).await;
    let second = world.opened(2, DEPOSIT).await;
    let mut charged = [PRICE, PRICE];
    for (charge, report) in
        [(700, r#"{"amount":"700"}"#), (0, r#"{"amount":"0"}"#), (1, r#"{"amount":"1"}"#), (500, r#"{"amount":"25%"}"#)]
    {
        for (payer, charged) in [&first, &second].into_iter().zip(&mut charged).take(1 + usize::from(charge != 1)) {
            world.upstream.next(Answer::ok("metered").with("settlement-overrides", report));
            let answer = world.pay("/paid", &payer.voucher(*charged + PRICE)).await;
            *charged += charge;
            answer.assert_served().assert_voucher_receipt(charge, *charged);
        }
    }
    assert_eq!(charged, [PRICE + 1_201, PRICE + 1_200]);
    let sum = charged[0] + charged[1];
    let row = world.book(&first).row.unwrap();
    assert!(row.total_claimed < row.max_claimable, "the voucher's ceiling is above what it paid for");

    let before = world.tally().await;
    let report = world.redeem().await;
    assert!(report.is_complete(), "{report:?}");
    assert_eq!((report.channels, report.claimed.units(), report.settled.units()), (2, sum, sum));
    assert_eq!(report.transactions.len(), 2, "one for all claims, one to settle");
    assert_eq!(world.tally().await.transactions - before.transactions, 2);
    assert_eq!(world.on_chain(&first).await, (DEPOSIT, charged[0]));
    assert_eq!(world.on_chain(&second).await, (DEPOSIT, charged[1]));
    assert_eq!((world.owed().await, earned(&world)), ((sum, sum), sum));
    let settled = world.happenings().await.into_iter().filter(|what| matches!(what, Happening::Settled { .. }));
    assert_eq!(settled.count(), 1);

    // Again: nothing is due, nothing is sent, and that is no error.
    let before = world.tally().await;
    let report = world.redeem().await;
    assert!(report.is_complete() && report.transactions.is_empty(), "{report:?}");
    assert_eq!((report.channels, report.claimed, report.settled), (0, Amount::ZERO, Amount::ZERO));
    world.assert_untouched(&before).await;

    // The channels go on where they were.
    world.pay("/paid", &first.voucher(charged[0] + PRICE)).await.assert_served();
    let answer = world.pay("/paid", &first.voucher(charged[0] + PRICE)).await;
    answer.assert_corrective(charged[0] + PRICE, DEPOSIT, Some(charged[0] + PRICE));
    world.finish(sum + PRICE).await;
}

#[tokio::test]
async fn case_41_somebody_elses_settlement_and_claim_are_no_errors() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    world.claim_elsewhere(&payer, PRICE, PRICE).await;
    let settle = Call::Settle { receiver: world.terms.pay_to, token: world.terms.token.address };
    world.past_the_proxy(dev("5"), &settle).await;
    assert_eq!(earned(&world), PRICE);
    let report = world.redeem().await;
    assert!(report.is_complete() && report.transactions.is_empty(), "{report:?}");
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_43_a_crash_between_claim_and_settlement_costs_nothing() {
    let mut world = forgetful().await;
    let payer = world.opened(1, DEPOSIT).await;
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    // As the proxy would have sent it, had it not stopped right afterwards.
    world.claim_elsewhere(&payer, 2 * PRICE, 2 * PRICE).await;
    assert_eq!((world.owed().await, earned(&world)), ((2 * PRICE, 0), 0));

    world.config.redeem.on_shutdown = true;
    world.config.redeem.interval = Duration::from_secs(1);
    assert_eq!(world.reopen().await, None);
    assert!(world.site.gate().accounts().is_empty(), "nothing is left but what the contract says");
    world.eventually("the next round settles", async |world| earned(world) == 2 * PRICE).await;
    assert_eq!(world.owed().await, (2 * PRICE, 2 * PRICE));
    // The channel's base is what was claimed, and the client that was served so far goes on without a corrective.
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 3 * PRICE);
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn a_shutdown_lets_requests_finish_and_redeems_what_they_paid() {
    let mut world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let (address, released) = (world.site.address(), Arc::new(Notify::new()));
    world.upstream.next(Answer::ok("in time").when(&released));
    let payment = payer.voucher(2 * PRICE);
    let request = world.client().get(world.url("/paid")).header("payment-signature", payment.header());
    let in_flight = tokio::spawn(request.send());
    world.upstream_saw(2).await;

    let closing = tokio::spawn({
        let next = World::start(WorldOptions::default()).await.site;
        let site = std::mem::replace(&mut world.site, next);
        site.close()
    });
    world.eventually("nobody new is let in", async |_| TcpStream::connect(address).await.is_err()).await;
    assert!(!closing.is_finished() && !in_flight.is_finished());
    released.notify_one();
    let answer = in_flight.await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.headers().contains_key("payment-response"));
    assert_eq!(answer.bytes().await.unwrap(), "in time");
    let report = closing.await.unwrap().expect("stopping redeems");
    assert!(report.is_complete(), "{report:?}");
    assert_eq!((report.claimed.units(), report.settled.units()), (2 * PRICE, 2 * PRICE));
    assert_eq!(earned(&world), 2 * PRICE);
}

#[tokio::test]
async fn a_shutdown_does_not_charge_for_what_it_cuts_off() {
    let mut world = World::start(WorldOptions::default()).await;
    world.config.server.shutdown_timeout = Duration::from_millis(200);
    world.reopen().await;
    let payer = world.opened(1, DEPOSIT).await;
    let before = world.upstream_calls();
    world.upstream.next(Answer::ok("too late").when(&Arc::new(Notify::new())));
    let request = world.client().get(world.url("/paid"));
    let in_flight = tokio::spawn(request.header("payment-signature", payer.voucher(2 * PRICE).header()).send());
    world.upstream_saw(before + 1).await;
    let report = world.reopen().await.expect("stopping redeems");
    assert!(in_flight.await.unwrap().is_err(), "the client sees that there is no answer");
    assert_eq!((report.claimed.units(), report.left), (PRICE, Amount::ZERO));
    assert_eq!(world.on_chain(&payer).await, (DEPOSIT, PRICE));
    // The voucher that was cut off is the next one.
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    world.finish(2 * PRICE).await;
}

/// A deposit that is on its way when the proxy stops is on chain afterwards, and in the next proxy's books.
#[tokio::test]
async fn a_deposit_that_is_on_its_way_survives_a_shutdown() {
    let mut world = World::start(WorldOptions { mining: Mining::Manual, ..WorldOptions::default() }).await;
    world.config.server.shutdown_timeout = Duration::from_millis(200);
    world.reopen().await;
    let payer = world.payer(1);
    let payment = payer.deposit(DEPOSIT, PRICE);
    let connection = world.raw("/paid", &payment).await;
    world.sent_transactions(1).await;
    world.devnet.set_mining(Mining::Interval(Duration::from_millis(500)));
    world.reopen().await;
    drop(connection);
    world.devnet.set_mining(Mining::OnDemand);
    world.devnet.mine(1).unwrap();
    assert_eq!(world.chain.channel(payer.id()).await.unwrap().balance.units(), DEPOSIT);
    world.pay("/paid", &payer.voucher(PRICE)).await.assert_served().assert_voucher_receipt(PRICE, PRICE);
    assert_eq!(world.tally().await.onchain_deposits, 1);
    world.finish(PRICE).await;
}
