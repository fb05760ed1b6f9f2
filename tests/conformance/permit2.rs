//! Deposits through Permit2, of a token without ERC-3009: what the official facilitator checks, each check once.

use std::sync::Arc;

use alloy::primitives::Bytes;
use alloy::sol_types::SolCall as _;
use peaje::agent::{Agent, AgentConfig, AgentError, KnownToken, NodeReader, PayRequest, Terms};
use peaje::chain::AlloyChain;
use peaje::devnet::{Mining, genesis};
use peaje::gate::policy::{TokenTerms, Transfer};
use peaje::protocol::bytes::encode_decimal;
use peaje::protocol::contracts::{ERC3009_COLLECTOR, PERMIT2, PERMIT2_COLLECTOR, SETTLEMENT};
use peaje::protocol::{Address, Domain, Hash, LocalKey};
use serde_json::{Value, json};

use super::harness::{Answer, PRICE, PURSE, Payer, Payment, World, WorldOptions, now_s};

const AUTHORIZATION: &str = "/payload/deposit/authorization/permit2Authorization";
const INFO: &str = "/extensions/eip2612GasSponsoring/info";
const DEPOSIT: u128 = 5 * PRICE;

mod abi {
    alloy::sol! {
        function permit(address owner, address spender, uint256 value, uint256 deadline, uint8 v, bytes32 r, bytes32 s);
        function nonceBitmap(address owner, uint256 word) external view returns (uint256);
        function nonces(address owner) external view returns (uint256);
    }
}

fn evm(address: Address) -> alloy::primitives::Address {
    alloy::primitives::Address::new(address.0)
}

fn plain_dollar() -> TokenTerms {
    TokenTerms {
        address: Address(genesis::PLAIN_DOLLAR.into_array()),
        decimals: 6,
        domain_name: "Plain Dollar".to_owned(),
        domain_version: "1".to_owned(),
        transfer: Transfer::Permit2,
        sponsored: true,
    }
}

async fn world() -> World {
    World::start(WorldOptions { token: Some(plain_dollar()), ..WorldOptions::default() }).await
}

/// A deposit with the permit it needs; `nonce` is the payer's with the token.
fn sponsored(payer: &Payer, amount: u128, max: u128, nonce: u8) -> Payment {
    payer.permit2(amount, max).with_permit(payer.permit(amount, nonce, now_s() + 60))
}

/// Somebody carries a permit to the token.
async fn carry(world: &World, info: &Value) {
    let text = |key: &str| info[key].as_str().unwrap().to_owned();
    let signature: Bytes = text("signature").parse().unwrap();
    let call = abi::permitCall {
        owner: text("from").parse().unwrap(),
        spender: text("spender").parse().unwrap(),
        value: text("amount").parse().unwrap(),
        deadline: text("deadline").parse().unwrap(),
        v: signature[64],
        r: alloy::primitives::B256::from_slice(&signature[..32]),
        s: alloy::primitives::B256::from_slice(&signature[32..64]),
    };
    let from = genesis::dev_signers()[9].address();
    let data = Bytes::from(call.abi_encode());
    let hash = world.rpc("eth_sendTransaction", json!([{"from": from, "to": genesis::PLAIN_DOLLAR, "data": data}]));
    let receipt = world.rpc("eth_getTransactionReceipt", json!([hash.await])).await;
    assert_eq!(receipt["status"], json!("0x1"));
}

/// A payer who has allowed Permit2 to move so much.
async fn allowing(world: &World, n: u8, allowance: u128) -> Payer {
    let payer = world.payer(n);
    carry(world, &payer.permit(allowance, 0, now_s() + 60)).await;
    payer
}

async fn allowance(world: &World, payer: &Payer) -> u128 {
    use peaje::chain::Chain as _;
    world.chain.allowance(payer.config.token, payer.address(), PERMIT2).await.unwrap().units()
}

#[tokio::test]
async fn a_deposit_with_a_permit_needs_nothing_of_the_payer_but_signatures() {
    let world = world().await;
    let quote = world.quote("/paid").await;
    assert_eq!(quote["accepts"][0]["extra"]["assetTransferMethod"], json!("permit2"));
    assert_eq!(quote["extensions"]["eip2612GasSponsoring"]["info"], json!({"version": "1"}));
    let payer = world.payer(1);

    let answer = world.pay("/paid", &sponsored(&payer, DEPOSIT, PRICE, 0)).await;

    answer.assert_served().assert_deposit_receipt(DEPOSIT, PRICE, PRICE);
    assert_eq!((world.transactions().await, world.onchain_deposits().await), (1, 1));
    assert_eq!((world.dollars(payer.address()), world.dollars(SETTLEMENT)), (PURSE - DEPOSIT, DEPOSIT));
    assert_eq!(allowance(&world, &payer).await, 0, "exactly what was deposited was allowed");
    world.pay("/paid", &payer.voucher(2 * PRICE)).await.assert_served().assert_voucher_receipt(PRICE, 2 * PRICE);
    // A top-up takes the next nonce of both.
    let answer = world.pay("/paid", &sponsored(&payer, DEPOSIT, 3 * PRICE, 1)).await;
    answer.assert_served().assert_deposit_receipt(DEPOSIT, PRICE, 3 * PRICE);
    world.finish(3 * PRICE).await;
}

#[tokio::test]
async fn without_a_permit_the_allowance_must_cover_the_deposit() {
    let world = world().await;
    let payer = world.payer(1);
    let before = world.tally().await;
    world.pay("/paid", &payer.permit2(DEPOSIT, PRICE)).await.assert_scheme_refusal("permit2_allowance_required");
    // What the quote offered comes back; that is no permit.
    let mut echoing = payer.clone();
    echoing.extensions = world.quote("/paid").await["extensions"].as_object().unwrap().clone();
    let answer = world.pay("/paid", &echoing.permit2(DEPOSIT, PRICE)).await;
    answer.assert_scheme_refusal("permit2_allowance_required");
    let short = allowing(&world, 2, DEPOSIT - 1).await;
    let answer = world.pay("/paid", &short.permit2(DEPOSIT, PRICE)).await;
    answer.assert_scheme_refusal("permit2_allowance_required");
    world.assert_untouched(&before).await;

    let allowed = allowing(&world, 3, DEPOSIT).await;
    let answer = world.pay("/paid", &allowed.permit2(DEPOSIT, PRICE)).await;
    answer.assert_served().assert_deposit_receipt(DEPOSIT, PRICE, PRICE);
    world.finish(PRICE).await;
}

/// Anybody may carry a permit to the token before us. Its nonce is used then, and its allowance there.
#[tokio::test]
async fn a_permit_that_somebody_used_before_us_is_no_obstacle() {
    let world = world().await;
    let payer = world.payer(1);
    let payment = sponsored(&payer, DEPOSIT, PRICE, 0);
    carry(&world, &payment.at(INFO)).await;
    world.pay("/paid", &payment).await.assert_served().assert_deposit_receipt(DEPOSIT, PRICE, PRICE);
    // A good signature over a nonce that is used and brought nothing is found out when the deposit is tried.
    let stale = sponsored(&payer, DEPOSIT, 2 * PRICE, 0);
    let before = world.tally().await;
    world.pay("/paid", &stale).await.assert_scheme_refusal("deposit_simulation_failed");
    world.assert_untouched(&before).await;
    world.finish(PRICE).await;
}

#[tokio::test]
async fn whatever_the_authorization_says_otherwise_has_its_code_and_is_not_broadcast() {
    let world = world().await;
    let payer = world.payer(1);
    let other = world.payer(2);
    let before = world.tally().await;
    let good = sponsored(&payer, DEPOSIT, PRICE, 0);
    let field = |field: &str, value: Value| good.clone().set(&format!("{AUTHORIZATION}/{field}"), value);
    let (until, domain) = (now_s() + 60, Domain::permit2(84_532));
    let nonce = Hash([9; 32]);
    let signed =
        |domain: &Domain, signer: &LocalKey| payer.permit2_signed(DEPOSIT, PRICE, until, nonce, domain, signer);
    let more = encode_decimal(&Hash([0xff; 32]));

    let refused = [
        ("permit2_invalid_signature", field("from", json!(other.address()))),
        ("permit2_invalid_signature", signed(&domain, &other.key)),
        ("permit2_invalid_signature", signed(&Domain::permit2(8_453), &payer.key)),
        ("permit2_invalid_signature", signed(&payer.terms.token_domain(), &payer.key)),
        ("permit2_invalid_signature", field("nonce", json!("1"))),
        ("permit2_invalid_signature", field("deadline", json!((until + 999).to_string()))),
        ("permit2_invalid_signature", field("signature", json!("0x"))),
        ("permit2_invalid_spender", field("spender", json!(ERC3009_COLLECTOR))),
        ("token_mismatch", field("permitted/token", json!(PERMIT2_COLLECTOR))),
        ("permit2_amount_mismatch", field("permitted/amount", json!((DEPOSIT - 1).to_string()))),
        ("permit2_amount_mismatch", field("permitted/amount", json!((DEPOSIT + 1).to_string()))),
        ("permit2_amount_mismatch", field("permitted/amount", json!(more))),
        ("channel_id_mismatch", field("witness/channelId", json!(other.id()))),
        ("permit2_deadline_expired", payer.permit2_until(DEPOSIT, PRICE, 0)),
        ("permit2_deadline_expired", payer.permit2_until(DEPOSIT, PRICE, now_s())),
        ("permit2_deadline_expired", payer.permit2_until(DEPOSIT, PRICE, now_s() + 5)),
        ("permit2_authorization_required", good.clone().without(AUTHORIZATION)),
        ("permit2_authorization_required", payer.deposit(DEPOSIT, PRICE)),
        ("deposit_payload", field("nonce", json!(7))),
        ("deposit_payload", field("nonce", json!("0x7"))),
        ("deposit_payload", field("nonce", json!("07"))),
        ("deposit_payload", field("nonce", json!(format!("{more}0")))),
        ("deposit_payload", field("deadline", json!("soon"))),
        ("deposit_payload", field("permitted", json!({}))),
        ("deposit_payload", field("permitted/amount", json!("1e3"))),
        ("deposit_payload", field("witness", json!({}))),
        ("deposit_payload", field("witness/channelId", json!("0x12"))),
        ("deposit_payload", good.clone().without(&format!("{AUTHORIZATION}/signature"))),
        (
            "deposit_payload",
            good.clone().set(
                "/payload/deposit/authorization/erc3009Authorization",
                payer.deposit(DEPOSIT, PRICE).at("/payload/deposit/authorization/erc3009Authorization"),
            ),
        ),
        ("insufficient_balance", sponsored(&payer, PURSE + 1, PRICE, 0)),
    ];
    for (code, payment) in refused {
        world.pay("/paid", &payment).await.assert_scheme_refusal(code);
    }
    world.assert_untouched(&before).await;
    assert!(world.books(payer.id()).is_none(), "no account was opened");

    world.pay("/paid", &good).await.assert_served();
    // A little longer than the six seconds, since a second may pass on the way.
    let soon = payer.with_salt(2);
    let payment = soon.permit2_until(DEPOSIT, PRICE, now_s() + 12).with_permit(soon.permit(DEPOSIT, 1, now_s() + 12));
    world.pay("/paid", &payment).await.assert_served();
    world.finish(2 * PRICE).await;
}

#[tokio::test]
async fn whatever_a_permit_says_otherwise_has_its_code_and_is_not_broadcast() {
    let world = world().await;
    let (payer, other) = (world.payer(1), world.payer(2));
    let before = world.tally().await;
    let good = sponsored(&payer, DEPOSIT, PRICE, 0);
    let field = |field: &str, value: Value| good.clone().set(&format!("{INFO}/{field}"), value);
    let permit = |amount, until| good.clone().with_permit(payer.permit(amount, 0, until));
    let most = encode_decimal(&Hash([0xff; 32]));

    let refused = [
        ("eip2612_owner_mismatch", field("from", json!(other.address()))),
        ("eip2612_asset_mismatch", field("asset", json!(PERMIT2))),
        ("eip2612_spender_mismatch", field("spender", json!(PERMIT2_COLLECTOR))),
        ("eip2612_deadline_expired", permit(DEPOSIT, 0)),
        ("eip2612_deadline_expired", permit(DEPOSIT, now_s() + 5)),
        ("eip2612_amount_mismatch", permit(DEPOSIT - 1, now_s() + 60)),
        ("eip2612_amount_mismatch", permit(DEPOSIT + 1, now_s() + 60)),
        ("eip2612_amount_mismatch", field("amount", json!(most))),
        ("eip2612_invalid_signature", field("signature", other.permit(DEPOSIT, 0, now_s() + 60)["signature"].clone())),
        ("eip2612_invalid_signature", field("nonce", json!("1"))),
        ("eip2612_invalid_signature", field("deadline", json!((now_s() + 999).to_string()))),
        ("eip2612_invalid_format", field("signature", json!("0x1234"))),
        ("eip2612_invalid_format", field("signature", json!(format!("0x{}", "11".repeat(64))))),
        ("eip2612_invalid_format", field("from", json!("0x12"))),
        ("eip2612_invalid_format", field("amount", json!("all"))),
        ("eip2612_invalid_format", field("nonce", json!("-1"))),
        ("eip2612_invalid_format", field("deadline", json!("never"))),
        ("eip2612_invalid_format", good.clone().without(&format!("{INFO}/signature"))),
        ("eip2612_invalid_format", good.clone().without(&format!("{INFO}/nonce"))),
    ];
    for (code, payment) in refused {
        world.pay("/paid", &payment).await.assert_scheme_refusal(code);
    }
    // An echo that lost what was advertised.
    let changed = world.pay("/paid", &field("version", json!("2"))).await;
    changed.assert_refused(402, "extension_echo_mismatch");
    world.assert_untouched(&before).await;
    world.pay("/paid", &good).await.assert_served();
    world.finish(PRICE).await;
}

#[tokio::test]
async fn a_token_with_erc3009_is_not_deposited_through_permit2() {
    let world = World::start(WorldOptions::default()).await;
    let payer = world.payer(1);
    let before = world.tally().await;
    let quote = world.quote("/paid").await;
    assert!(quote["accepts"][0]["extra"].get("assetTransferMethod").is_none());
    assert!(quote["extensions"].get("eip2612GasSponsoring").is_none());
    let answer = world.pay("/paid", &sponsored(&payer, DEPOSIT, PRICE, 0)).await;
    answer.assert_scheme_refusal("erc3009_authorization_required");
    // Neither if the client adds to its echo what was not offered.
    let added = sponsored(&payer, DEPOSIT, PRICE, 0).set("/accepted/extra/assetTransferMethod", "permit2");
    world.pay("/paid", &added).await.assert_scheme_refusal("erc3009_authorization_required");
    world.assert_untouched(&before).await;
    world.finish(0).await;
}

/// Permit2 asks an account that has code, and its key counts for nothing; so do we.
#[tokio::test]
async fn an_account_with_code_signs_by_its_code_alone() {
    let world = world().await;
    let [refuses, approves] = ["60006000f3", "631626ba7e60e01b60005260206000f3"]
        .map(|code| Bytes::from(alloy::primitives::hex::decode(code).unwrap()));
    let payer = allowing(&world, 1, DEPOSIT).await;
    let before = world.tally().await;

    world.devnet.set_code(evm(payer.address()), refuses).unwrap();
    let by_key = payer.permit2(DEPOSIT, PRICE);
    world.pay("/paid", &by_key).await.assert_scheme_refusal("permit2_invalid_signature");
    world.assert_untouched(&before).await;

    world.devnet.set_code(evm(payer.address()), approves).unwrap();
    let by_code = payer.permit2(DEPOSIT, PRICE).set(&format!("{AUTHORIZATION}/signature"), "0x010203");
    world.pay("/paid", &by_code).await.assert_served().assert_deposit_receipt(DEPOSIT, PRICE, PRICE);
    world.finish(PRICE).await;
}

#[tokio::test]
async fn a_replayed_deposit_neither_deposits_nor_serves_again() {
    let world = world().await;
    let payer = world.payer(1);
    let deposit = sponsored(&payer, DEPOSIT, PRICE, 0);
    world.upstream.next(Answer::status(500));
    assert_eq!(world.pay("/paid", &deposit).await.status, 500);
    // What it brought is there, and pays for the request that failed.
    world.pay("/paid", &deposit).await.assert_served().assert_voucher_receipt(PRICE, PRICE);
    let before = world.tally().await;
    assert_eq!((before.transactions, before.onchain_deposits), (1, 1));
    for _ in 0..2 {
        world.pay("/paid", &deposit).await.assert_corrective(PRICE, DEPOSIT, Some(PRICE));
    }
    world.assert_untouched(&before).await;
    world.finish(PRICE).await;
}

#[tokio::test]
async fn a_nonce_is_good_for_one_deposit_of_all_channels() {
    use peaje::chain::Chain as _;
    let world = world().await;
    let (payer, until, domain) = (world.payer(1), now_s() + 60, Domain::permit2(84_532));
    let nonce = |last: u8| {
        let mut nonce = Hash([3; 32]);
        nonce.0[31] = last;
        nonce
    };
    let deposit = |payer: &Payer, last: u8, permit: u8| {
        payer
            .permit2_signed(DEPOSIT, PRICE, until, nonce(last), &domain, &payer.key)
            .with_permit(payer.permit(DEPOSIT, permit, until))
    };
    let used = async |last: u8| world.chain.permit2_nonce_used(payer.address(), nonce(last)).await.unwrap();
    assert!(!used(255).await);
    world.pay("/paid", &deposit(&payer, 255, 0)).await.assert_served();
    assert!(used(255).await);
    assert!(!used(254).await && !used(0).await, "its neighbours in the word are free");

    let other = payer.with_salt(2);
    let before = world.tally().await;
    let answer = world.pay("/paid", &deposit(&other, 255, 1)).await;
    answer.assert_scheme_refusal("deposit_simulation_failed");
    world.assert_untouched(&before).await;
    world.pay("/paid", &deposit(&other, 254, 1)).await.assert_served();
    world.finish(2 * PRICE).await;
}

/// Our own agent, with the plain dollar allowed.
fn agent(world: &World, payer: &Payer) -> Agent<NodeReader<AlloyChain>> {
    let TokenTerms { address, decimals, domain_name, domain_version, .. } = plain_dollar();
    let token = KnownToken { chain_id: 84_532, address, decimals, domain_name, domain_version };
    let terms = Terms { tokens: vec![token], ..Terms::default() };
    let config = AgentConfig { terms, ..AgentConfig::new(payer.key.clone()) };
    Agent::new(config, NodeReader::new(Arc::clone(&world.chain))).unwrap()
}

#[tokio::test]
async fn our_agent_sends_a_permit_only_where_it_is_needed() {
    let world = world().await;
    let needy = world.payer(1);
    let allowed = allowing(&world, 2, PURSE).await;
    for (payer, left) in [(&needy, 0), (&allowed, PURSE - 5 * PRICE)] {
        let agent = agent(&world, payer);
        let opened = agent.pay(PayRequest::get(world.url("/paid"))).await.unwrap();
        assert_eq!(opened.status(), 200);
        assert_eq!(opened.payment.as_ref().unwrap().deposited.unwrap().units(), 5 * PRICE);
        assert_eq!(allowance(&world, payer).await, left);
        let next = agent.pay(PayRequest::get(world.url("/paid"))).await.unwrap();
        assert_eq!((next.attempts, next.payment.unwrap().deposited), (1, None));
    }
    assert_eq!(world.onchain_deposits().await, 2);
    world.finish(4 * PRICE).await;
}

/// Without anybody who relays permits the payer itself would have to act, and is told.
#[tokio::test]
async fn our_agent_signs_nothing_where_an_allowance_is_missing_and_cannot_be_sent() {
    let world = world().await;
    let payer = world.payer(1);
    // A token that takes no permits answers a question for their nonces with a revert.
    let code = world.rpc("eth_getCode", json!([genesis::PLAIN_DOLLAR, "latest"])).await;
    let without = code.as_str().unwrap().replace("7ecebe00", "00000000").parse().unwrap();
    world.devnet.set_code(genesis::PLAIN_DOLLAR, without).unwrap();
    let before = world.tally().await;
    let agent = agent(&world, &payer);
    let error = agent.pay(PayRequest::get(world.url("/paid"))).await.unwrap_err();
    assert!(matches!(error, AgentError::NeedsAllowance { token } if token == payer.config.token), "{error}");
    assert!(agent.book().channels().unwrap().is_empty());
    world.assert_untouched(&before).await;
    world.finish(0).await;
}

/// Anybody may relay a deposit. One that was relayed before ours is mined makes ours revert, and is there all the same.
#[tokio::test]
async fn a_deposit_that_somebody_relayed_before_us_has_landed() {
    let world =
        World::start(WorldOptions { token: Some(plain_dollar()), mining: Mining::Manual, ..WorldOptions::default() });
    let world = world.await;
    let payer = world.payer(1);
    let deposit = sponsored(&payer, DEPOSIT, PRICE, 0);

    let (answer, ()) = tokio::join!(world.pay("/paid", &deposit), async {
        world.sent_transactions(1).await;
        let pending = world.rpc("eth_getBlockByNumber", json!(["pending", true])).await;
        let ours = &pending["transactions"][0];
        let raw = world.rpc("eth_getRawTransactionByHash", json!([ours["hash"]])).await;
        // Blocks take transactions in the order they came.
        assert!(world.devnet.drop_transaction(ours["hash"].as_str().unwrap().parse().unwrap()));
        let from = genesis::dev_signers()[9].address();
        let relayed = json!([{"from": from, "to": ours["to"], "data": ours["input"], "gas": ours["gas"]}]);
        world.rpc("eth_sendTransaction", relayed).await;
        world.rpc("eth_sendRawTransaction", json!([raw])).await;
        world.devnet.mine(1).unwrap();
    });

    let ours = answer.assert_served().receipt().unwrap()["transaction"].clone();
    let receipt = world.rpc("eth_getTransactionReceipt", json!([ours])).await;
    assert_eq!(receipt["status"], json!("0x0"), "ours came second");
    answer.assert_deposit_receipt(DEPOSIT, PRICE, PRICE);
    assert_eq!((world.onchain_deposits().await, world.charged()), (1, PRICE));
    world.finish(PRICE).await;
}
