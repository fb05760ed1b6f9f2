//! Cases 22 to 28: vouchers that are served, and those that are not.

use k256::ecdsa::Signature as EcdsaSignature;
use peaje::chain::Call;
use peaje::protocol::bytes::encode_hex;
use peaje::protocol::{Address, Amount, ChannelConfig, LocalKey};
use serde_json::json;

use super::extras::{FORGETFUL, Gateway, deploy_wallet, dev, state, voucher_state};
use super::harness::{Answer, PREFIX, PRICE, PURSE, Payer, Payment, World, WorldOptions};

const DEPOSIT: u128 = 10 * PRICE;

/// A world whose proxy goes to the chain through a gateway.
async fn counted() -> (World, Gateway) {
    let mut world = World::start(WorldOptions { more: FORGETFUL.to_owned(), ..WorldOptions::default() }).await;
    world.config.redeem.on_shutdown = true;
    let gateway = Gateway::of(&mut world).await;
    (world, gateway)
}

#[tokio::test]
async fn case_22_a_correct_voucher_is_served_and_charged() {
    let (world, gateway) = counted().await;
    let payer = world.opened(1, DEPOSIT).await;
    let (before, asked) = (world.tally().await, gateway.settled().await);
    for number in 2..=5 {
        let charged = number * PRICE;
        let answer = world.pay("/paid", &payer.voucher(charged)).await;
        answer.assert_served().assert_voucher_receipt(PRICE, charged);
        assert_eq!(&answer.body[..], b"served");
        let receipt = json!({
            "success": true, "transaction": "", "network": "eip155:84532", "payer": payer.address().to_string(),
            "amount": "", "extra": {
                "chargedAmount": PRICE.to_string(), "channelState": state(&payer, DEPOSIT, 0, charged, 0),
                "priceGeneration": 1,
            },
        });
        assert_eq!(answer.receipt(), Some(receipt), "this and nothing else");
        assert_eq!(world.charged(), charged);
    }
    let mut after = world.tally().await;
    assert_eq!(after.upstream_calls - before.upstream_calls, 4, "each was served once");
    (after.upstream_calls, after.charged) = (before.upstream_calls, before.charged);
    assert_eq!(after, before, "no transaction");
    assert_eq!(gateway.questions(), asked, "and no question: the channel is fresh");
    world.finish(5 * PRICE).await;
}

#[tokio::test]
async fn case_22_a_fresh_channel_needs_no_node_and_what_needs_one_says_so() {
    let (world, gateway) = counted().await;
    let payer = world.opened(1, 3 * PRICE).await;
    let stranger = world.payer(2);
    gateway.block(true);
    for number in 2..=3 {
        world.pay("/paid", &payer.voucher(number * PRICE)).await.assert_served();
    }

    let before = world.tally().await;
    let top_up = payer.deposit(DEPOSIT, 4 * PRICE);
    let first = stranger.deposit(DEPOSIT, PRICE);
    for (payment, code) in [
        (&top_up, "rpc_read_failed"),
        (&payer.refund(3 * PRICE, None), "refund_no_balance"),
        (&first, "channel_state_read_failed"),
        (&stranger.voucher(PRICE), "channel_state_read_failed"),
        (&stranger.refund(PRICE, None), "channel_state_read_failed"),
    ] {
        let answer = world.pay("/paid", payment).await;
        let status = if code == "refund_no_balance" { 402 } else { 503 };
        answer.assert_refused(status, &format!("{PREFIX}{code}"));
        assert_eq!(answer.header("retry-after"), (status == 503).then_some("5"));
    }
    world.assert_untouched(&before).await;

    // Nothing was sent, so the very same payments are good once the node is back.
    gateway.block(false);
    let answer = world.pay("/paid", &top_up).await;
    answer.assert_served().assert_deposit_receipt(DEPOSIT, PRICE, 4 * PRICE);
    world.pay("/paid", &first).await.assert_served().assert_deposit_receipt(DEPOSIT, PRICE, PRICE);
    assert_eq!(world.on_chain(&payer).await, (3 * PRICE + DEPOSIT, 0));
    world.finish(5 * PRICE).await;
}

#[tokio::test]
async fn case_23_the_same_voucher_again_gets_the_corrective() {
    let (world, gateway) = counted().await;
    let mut payer = world.opened(1, DEPOSIT).await;
    let payment = payer.voucher(2 * PRICE);
    world.pay("/paid", &payment).await.assert_served();

    let (before, asked) = (world.tally().await, gateway.settled().await);
    for _ in 0..2 {
        let answer = world.pay("/paid", &payment).await;
        answer.assert_corrective(2 * PRICE, DEPOSIT, Some(2 * PRICE));
        let shown = (state(&payer, DEPOSIT, 0, 2 * PRICE, 0), Some(voucher_state(&payer, 2 * PRICE)));
        assert_eq!(answer.corrective(), Some(shown));
        // What the corrective adds to the offer may be echoed: it is still the same offer.
        payer.offer = answer.quote().unwrap()["accepts"][0].clone();
    }
    world.assert_untouched(&before).await;
    assert_eq!(gateway.questions(), asked, "the corrective is given from the books");
    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served();
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_24_a_ceiling_that_is_off_gets_the_corrective() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let before = world.tally().await;
    for max in [2 * PRICE - 1, 2 * PRICE + 1, PRICE, 0, 3 * PRICE, DEPOSIT, u128::MAX] {
        let answer = world.pay("/paid", &payer.voucher(max)).await;
        answer.assert_corrective(PRICE, DEPOSIT, Some(PRICE));
        assert_eq!(answer.corrective().unwrap().0, state(&payer, DEPOSIT, 0, PRICE, 0));
    }
    world.assert_untouched(&before).await;
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_25_a_signature_the_contract_would_refuse_is_refused() {
    let (world, gateway) = counted().await;
    let payer = world.opened(1, DEPOSIT).await;
    let (before, asked) = (world.tally().await, gateway.settled().await);
    let max = 2 * PRICE;
    let digest = payer.signed(max).digest(&payer.settlement());
    let good = payer.key.sign(digest).as_bytes().to_vec();
    let with_v = |v: u8| [&good[..64], &[v]].concat();
    let bad = [
        ("another key", other_key().sign(digest).as_bytes().to_vec()),
        ("the receiver's authorizer", dev("authorizer").sign(digest).as_bytes().to_vec()),
        ("another amount", payer.signed(max + 7).signature.as_bytes().to_vec()),
        ("another channel", payer.with_salt(9).signed(max).signature.as_bytes().to_vec()),
        ("v of 0 or 1", with_v(good[64] - 27)),
        ("the other v", with_v(55 - good[64])),
        ("v of 29", with_v(29)),
        ("high s", with_high_s(&good)),
        ("64 bytes", good[..64].to_vec()),
        ("64 bytes in the compact form", compact(&good)),
        ("66 bytes", [&good[..], &[0]].concat()),
        ("what a wallet contract may take", [&[0x11; 32], &good[..], &[0x22; 99]].concat()),
        ("nothing", Vec::new()),
        ("zeros", vec![0; 65]),
    ];
    for (what, bytes) in bad {
        println!("{what}");
        // Whoever cannot sign learns nothing of the channel, not even that the amount is off.
        for max in [max, max + 1] {
            let payment = signed_so(&payer.voucher(max), &bytes);
            world.pay("/paid", &payment).await.assert_scheme_refusal("voucher_signature");
        }
    }
    world.assert_untouched(&before).await;
    assert_eq!(gateway.questions(), asked, "a bad signature does not make us ask a node");
    world.pay("/paid", &payer.voucher(max)).await.assert_served();
    world.finish(max).await;
}

#[tokio::test]
async fn case_25_without_a_good_signature_no_payment_of_any_kind_reaches_the_node() {
    let (world, gateway) = counted().await;
    let payer = world.opened(1, DEPOSIT).await;
    let (before, asked) = (world.tally().await, gateway.settled().await);
    for owner in [payer.clone(), world.payer(2)] {
        let forger = Payer { key: other_key(), ..owner };
        for payment in [
            forger.voucher(2 * PRICE),
            forger.deposit(DEPOSIT, 2 * PRICE),
            forger.refund(PRICE, None),
            forger.refund(0, None),
        ] {
            world.pay("/paid", &payment).await.assert_scheme_refusal("voucher_signature");
        }
    }
    world.assert_untouched(&before).await;
    assert_eq!(gateway.questions(), asked);
    world.finish(PRICE).await;
}

fn other_key() -> LocalKey {
    LocalKey::from_bytes(&[0x77; 32]).unwrap()
}

fn signed_so(payment: &Payment, signature: &[u8]) -> Payment {
    payment.clone().set("/payload/voucher/signature", encode_hex(signature))
}

/// The same signature with `s` in the upper half of the order and the other `v`: as good by mathematics.
fn with_high_s(bytes: &[u8]) -> Vec<u8> {
    let (r, s) = EcdsaSignature::from_slice(&bytes[..64]).unwrap().split_scalars();
    let high = EcdsaSignature::from_scalars(r.to_bytes(), (-s).to_bytes()).unwrap();
    [&high.to_bytes()[..], &[55 - bytes[64]]].concat()
}

/// ERC-2098: the parity in the highest bit of `s`.
fn compact(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes[..64].to_vec();
    out[32] |= (bytes[64] - 27) << 7;
    out
}

#[tokio::test]
async fn case_26_a_payer_without_authorizer_signs_with_its_own_key() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let payer = Payer { config: ChannelConfig { payer_authorizer: Address::ZERO, ..payer.config }, ..payer };
    world.pay("/paid", &payer.deposit(DEPOSIT, PRICE)).await.assert_served();
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);

    let before = world.tally().await;
    let good = payer.signed(3 * PRICE).signature.as_bytes().to_vec();
    let forger = Payer { key: other_key(), ..payer.clone() };
    for bytes in [
        forger.signed(3 * PRICE).signature.as_bytes().to_vec(),
        [&good[..64], &[good[64] - 27]].concat(),
        with_high_s(&good),
        compact(&good),
        [&good[..], &[0]].concat(),
    ] {
        let payment = signed_so(&payer.voucher(3 * PRICE), &bytes);
        world.pay("/paid", &payment).await.assert_scheme_refusal("voucher_signature");
    }
    world.assert_untouched(&before).await;
    // What was served can be claimed.
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_26_a_wallet_contract_is_asked_about_its_vouchers() {
    let (world, gateway) = counted().await;
    let key = LocalKey::from_bytes(&[0x31; 32]).unwrap();
    let wallet = deploy_wallet(&world, &key).await;
    let payer = world.payer(1);
    let config = ChannelConfig { payer: wallet, payer_authorizer: Address::ZERO, ..payer.config };
    let payer = Payer { key, config, ..payer };

    // The deposit too is approved by the wallet: the token's form of the call that takes a signature as bytes.
    let answer = world.pay("/paid", &payer.deposit(DEPOSIT, PRICE)).await;
    answer.assert_served().assert_deposit_receipt(DEPOSIT, PRICE, PRICE);
    assert_eq!(world.dollars(wallet), PURSE - DEPOSIT);
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);

    let before = world.tally().await;
    let forger = Payer { key: other_key(), ..payer.clone() };
    world.pay("/paid", &forger.voucher(3 * PRICE)).await.assert_scheme_refusal("voucher_signature");
    let stranger = Payer { config: ChannelConfig { salt: forger.with_salt(5).config.salt, ..config }, ..forger };
    world.pay("/paid", &stranger.deposit(DEPOSIT, PRICE)).await.assert_scheme_refusal("voucher_signature");
    let mixed = payer.deposit_with(DEPOSIT, 3 * PRICE, |wish| wish.signer = other_key());
    world.pay("/paid", &mixed).await.assert_scheme_refusal("receive_authorization_signature");
    // Without a node nobody can say what the wallet thinks of a voucher it was not just asked about.
    gateway.block(true);
    let answer = world.pay("/paid", &payer.voucher(4 * PRICE)).await;
    answer.assert_refused(503, &format!("{PREFIX}rpc_read_failed"));
    gateway.block(false);
    world.assert_untouched(&before).await;

    world.pay("/paid", &payer.voucher(3 * PRICE)).await.assert_served();
    // What was served can be claimed.
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_27_a_ceiling_above_the_balance_is_not_served() {
    let (world, gateway) = counted().await;
    let payer = world.opened(1, PRICE + 1).await;
    let (before, asked) = (world.tally().await, gateway.settled().await);

    // A bare voucher: the client believes in money that is not there, and only the corrective makes it look.
    let answer = world.pay("/paid", &payer.voucher(2 * PRICE)).await;
    answer.assert_corrective(PRICE, PRICE + 1, Some(PRICE));
    assert!(gateway.questions() > asked, "the chain was asked before the balance was called too low");
    // A deposit that does not cover its own voucher.
    let answer = world.pay("/paid", &payer.deposit(PRICE - 2, 2 * PRICE)).await;
    answer.assert_scheme_refusal("cumulative_exceeds_balance");
    world.assert_untouched(&before).await;

    // One that just does.
    let answer = world.pay("/paid", &payer.deposit(PRICE - 1, 2 * PRICE)).await;
    answer.assert_served().assert_deposit_receipt(PRICE - 1, PRICE, 2 * PRICE);
    assert_eq!(world.on_chain(&payer).await, (2 * PRICE, 0));
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn case_27_an_unknown_channel_is_not_found() {
    let world = World::start(WorldOptions::default()).await;
    let stranger = world.payer(1);
    let before = world.tally().await;
    for max in [PRICE, 0, PRICE + 1, u128::MAX] {
        world.pay("/paid", &stranger.voucher(max)).await.assert_scheme_refusal("channel_not_found");
    }
    world.assert_untouched(&before).await;
    assert!(world.site.gate().accounts().is_empty(), "a stranger takes no room in the books");
    world.pay("/paid", &stranger.deposit(DEPOSIT, PRICE)).await.assert_served();
    world.finish(PRICE).await;
}

#[tokio::test]
async fn case_27_what_a_pending_withdrawal_takes_is_not_there() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let call = Call::InitiateWithdraw { config: payer.config, amount: Amount::new(DEPOSIT - 2 * PRICE) };
    world.past_the_proxy(payer.key.clone(), &call).await;
    world.eventually("the withdrawal is followed", async |world| world.book(&payer).view.withdrawal.is_some()).await;
    let redeemed = async |world: &World| world.owed().await == (PRICE, PRICE);
    world.eventually("what was charged is claimed and settled", redeemed).await;

    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served();
    // The last charge may be claimed meanwhile, so other transactions are not counted here.
    let moved = async || (world.upstream_calls(), world.charged(), world.onchain_deposits().await);
    let before = moved().await;
    let answer = world.pay("/paid", &payer.voucher(3 * PRICE)).await;
    answer.assert_scheme_refusal("cumulative_exceeds_balance");
    let answer = world.pay("/paid", &payer.deposit(PRICE - 1, 3 * PRICE)).await;
    answer.assert_scheme_refusal("cumulative_exceeds_balance");
    assert_eq!(moved().await, before);
    world.pay("/paid", &payer.deposit(PRICE, 3 * PRICE)).await.assert_served();
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn case_28_the_charge_is_what_the_upstream_reports_and_never_more_than_the_price() {
    let world = World::start(WorldOptions::default()).await;
    let deposit = 100 * PRICE;
    let payer = world.opened(1, deposit).await;
    let before = world.tally().await;
    let mut charged = PRICE;
    let reports = [
        (r#"{"amount":"0"}"#, 0),
        (r#"{"amount":"1"}"#, 1),
        (r#"{"amount":"1999"}"#, 1_999),
        (r#"{"amount":"2000"}"#, 2_000),
        (r#"{"amount":"2001"}"#, 2_000),
        (r#"{"amount":"340282366920938463463374607431768211456"}"#, 2_000),
        (r#"{"amount":"50%"}"#, 1_000),
        (r#"{"amount":"0.05%"}"#, 1),
        (r#"{"amount":"0.04%"}"#, 0),
        (r#"{"amount":"100%"}"#, 2_000),
        (r#"{"amount":"100.01%"}"#, 2_000),
        (r#"{"amount":"$0.0005"}"#, 500),
        (r#"{"amount":"-1"}"#, 2_000),
        ("nonsense", 2_000),
    ];
    for (report, charge) in reports {
        println!("{report}");
        // The base of a voucher is what was charged, not what was signed for.
        let max = charged + PRICE;
        let payment = payer.voucher(max);
        world.upstream.next(Answer::ok("metered").with("settlement-overrides", report));
        let answer = world.pay("/paid", &payment).await;
        charged += charge;
        answer.assert_served().assert_voucher_receipt(charge, charged);
        assert_eq!(answer.state(), state(&payer, deposit, 0, charged, 0));
        assert_eq!(answer.header("settlement-overrides"), None, "the report is between the upstream and us");
        assert_eq!(world.charged(), charged);
        // The same voucher is good again if, and only if, it cost nothing.
        let again = world.pay("/paid", &payment).await;
        if charge == 0 {
            charged += PRICE;
            again.assert_served().assert_voucher_receipt(PRICE, charged);
        } else {
            again.assert_corrective(charged, deposit, Some(max));
        }
    }
    assert_eq!(world.tally().await.transactions, before.transactions);
    world.finish(charged).await;
}

#[tokio::test]
async fn case_28_an_answer_below_400_is_served_and_a_free_one_is_free() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, DEPOSIT).await;
    let payment = payer.voucher(2 * PRICE);
    // A report, even with a payment at hand, makes no free answer cost anything.
    world.upstream.next(Answer::ok("free").with("settlement-overrides", r#"{"amount":"5"}"#));
    let answer = world.pay("/free", &payment).await;
    assert_eq!((answer.status.as_u16(), answer.receipt(), answer.quote()), (200, None, None));
    assert_eq!(answer.header("settlement-overrides"), None);
    assert_eq!(world.charged(), PRICE);

    world.upstream.next(Answer::status(304));
    let answer = world.pay("/paid", &payment).await;
    assert_eq!(answer.status, 304);
    answer.assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}
