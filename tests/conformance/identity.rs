//! Cases 9 to 11: which channel a payment is about.

use peaje::protocol::{Amount, ChannelConfig, Domain, Voucher};
use serde_json::json;

use super::harness::{PRICE, Payer, World, WorldOptions};

#[tokio::test]
async fn case_09_the_channel_id_must_follow_from_the_config() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;
    let victim = world.opened(2, 5 * PRICE).await;
    let before = world.tally().await;
    let good = payer.voucher(2 * PRICE);

    // A good voucher of another channel, shown beside terms it was not signed for, both ways.
    let config = good.clone().set("/payload/channelConfig", json!(victim.config));
    world.pay("/paid", &config).await.assert_scheme_refusal("channel_id_mismatch");
    let id = good.clone().set("/payload/voucher/channelId", json!(victim.id()));
    world.pay("/paid", &id).await.assert_scheme_refusal("channel_id_mismatch");
    let salt = good.clone().set("/payload/channelConfig/salt", json!(victim.with_salt(9).config.salt));
    world.pay("/paid", &salt).await.assert_scheme_refusal("channel_id_mismatch");
    // The same with a deposit, and with a refund: nothing is broadcast, nothing given back.
    let deposit = payer.deposit(5 * PRICE, 2 * PRICE).set("/payload/voucher/channelId", json!(victim.id()));
    world.pay("/paid", &deposit).await.assert_scheme_refusal("channel_id_mismatch");
    let refund = payer.refund(PRICE, None).set("/payload/voucher/channelId", json!(victim.id()));
    world.pay("/paid", &refund).await.assert_scheme_refusal("channel_id_mismatch");
    world.assert_untouched(&before).await;

    world.pay("/paid", &good).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.pay("/paid", &victim.voucher(2 * PRICE)).await.assert_served();
    world.finish(4 * PRICE).await;
}

#[tokio::test]
async fn case_09_a_malformed_channel_id_is_refused_before_it_is_looked_up() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;
    let before = world.tally().await;
    let good = payer.voucher(2 * PRICE);
    let id = payer.id().to_string();

    let malformed = [
        json!("../x"),
        json!("../../../../etc/passwd"),
        json!(id[..65]),
        json!(format!("{id}0")),
        json!(&id[2..]),
        json!(format!("{}g", &id[..65])),
        json!(format!(" {id}")),
        json!(""),
        json!("0x"),
        json!(7),
        json!(null),
        json!([id]),
    ];
    for malformed in malformed {
        let payment = good.clone().set("/payload/voucher/channelId", malformed);
        world.pay("/paid", &payment).await.assert_scheme_refusal("channel_id_invalid");
    }
    world.assert_untouched(&before).await;
    assert_eq!(world.site.gate().accounts().len(), 1, "no account was opened");

    world.pay("/paid", &good).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

/// The id is a digest under the chain's domain, so terms agreed on one chain name another channel on the next.
#[tokio::test]
async fn case_10_a_channel_of_another_chain_is_another_channel() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;
    let before = world.tally().await;
    let base = Domain::settlement(8453);
    let there = payer.config.id(&base);
    assert_ne!(there, payer.id());

    let signed = Voucher { channel: there, max_claimable: Amount::new(2 * PRICE) }.sign(&base, &payer.key);
    let voucher = payer.payment(json!({"type": "voucher", "channelConfig": payer.config, "voucher": signed}));
    world.pay("/paid", &voucher).await.assert_scheme_refusal("channel_id_mismatch");
    // The right id, signed under the other chain's domain: a good signature over another digest.
    let signed = Voucher { channel: payer.id(), max_claimable: Amount::new(2 * PRICE) }.sign(&base, &payer.key);
    let voucher = payer.payment(json!({"type": "voucher", "channelConfig": payer.config, "voucher": signed}));
    world.pay("/paid", &voucher).await.assert_scheme_refusal("voucher_signature");
    world.assert_untouched(&before).await;

    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

/// Every term of the offer has its own code, for vouchers, deposits and refunds alike. What is signed is consistent in
/// itself; only the terms are not the site's.
#[tokio::test]
async fn case_11_the_terms_of_the_channel_must_be_the_offers() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.opened(1, 5 * PRICE).await;
    let before = world.tally().await;
    let somebody = world.payer(2).address();
    let ours = payer.config;
    let delay = |withdraw_delay| ChannelConfig { withdraw_delay, ..ours };

    let cases = [
        (ChannelConfig { receiver: somebody, ..ours }, "receiver_mismatch"),
        (ChannelConfig { token: somebody, ..ours }, "token_mismatch"),
        (ChannelConfig { receiver_authorizer: somebody, ..ours }, "receiver_authorizer_mismatch"),
        (delay(ours.withdraw_delay + 1), "withdraw_delay_mismatch"),
        (delay(900), "withdraw_delay_mismatch"),
        (delay(2_592_000), "withdraw_delay_mismatch"),
        (delay(899), "withdraw_delay_out_of_range"),
        (delay(2_592_001), "withdraw_delay_out_of_range"),
        (delay(0), "withdraw_delay_out_of_range"),
    ];
    for (config, code) in cases {
        let other = Payer { config, ..payer.clone() };
        world.pay("/paid", &other.voucher(PRICE)).await.assert_scheme_refusal(code);
        world.pay("/paid", &other.deposit(5 * PRICE, PRICE)).await.assert_scheme_refusal(code);
        world.pay("/paid", &other.refund(PRICE, None)).await.assert_scheme_refusal(code);
    }
    world.assert_untouched(&before).await;

    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    world.finish(2 * PRICE).await;
}

/// The contract's limits themselves are fine terms, where the site offers them.
#[tokio::test]
async fn case_11_the_bounds_of_the_withdraw_delay_are_usable() {
    for delay in ["900s", "2592000s"] {
        let channel = format!("withdraw_delay = \"{delay}\"");
        let more = "[redeem]\ninterval = \"10s\"";
        let world = World::start(WorldOptions { channel, more: more.to_owned(), ..WorldOptions::default() }).await;
        world.opened(1, 5 * PRICE).await;
        world.finish(PRICE).await;
    }
}
