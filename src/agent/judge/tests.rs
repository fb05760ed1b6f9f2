use serde_json::json;

use super::*;
use crate::protocol::{ChannelConfig, LocalKey, Voucher};

const SEPOLIA: u64 = 84_532;

fn offered() -> Value {
    json!({
        "scheme": SCHEME, "network": "eip155:84532", "amount": "2000",
        "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
        "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
        "maxTimeoutSeconds": 300,
        "extra": {"receiverAuthorizer": "0x3325a78425F17a7E487Eb5666b2bFd93aBb06c70", "withdrawDelay": 900,
                  "name": "USDC", "version": "2"}
    })
}

fn with(change: impl Fn(&mut Value)) -> Value {
    let mut value = offered();
    change(&mut value);
    value
}

fn extra(key: &'static str, value: Value) -> Value {
    with(|offer| offer["extra"][key] = value.clone())
}

fn choice() -> Choice {
    choose(&[offered()], &Terms::default(), None).unwrap()
}

fn amounts<const N: usize>(units: [u128; N]) -> [Amount; N] {
    units.map(Amount::new)
}

fn dollars(micros: u128) -> Dollars {
    Dollars::from_micros(micros)
}

#[test]
fn an_offer_is_acceptable_or_says_why_not() {
    assert!(choose(&[offered()], &Terms::default(), Some(dollars(2_000))).is_ok());
    let without = |key: &'static str| {
        with(|offer| {
            offer["extra"].as_object_mut().unwrap().remove(key);
        })
    };
    let token: Address = "0x036CbD53842c5426634e7929541eC2318f3dCF7e".parse().unwrap();
    let other: Address = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913".parse().unwrap();
    let zero = Address::ZERO.to_string();
    let cases = [
        (with(|offer| offer["scheme"] = json!("exact")), OfferFault::Scheme("exact".to_owned())),
        (json!("nonsense"), OfferFault::Scheme(String::new())),
        (with(|offer| offer["network"] = json!("eip155:1")), OfferFault::Network("eip155:1".to_owned())),
        (with(|offer| offer["network"] = json!("eip155:084532")), OfferFault::Network("eip155:084532".to_owned())),
        (with(|offer| offer["network"] = json!("solana:x\u{1b}[2J")), OfferFault::Network("solana:x?[2J".to_owned())),
        (with(|offer| offer["asset"] = json!(other)), OfferFault::Token(other)),
        (extra("name", json!("USD Coin")), OfferFault::TokenDomain(token)),
        (extra("version", json!("1")), OfferFault::TokenDomain(token)),
        (extra("version", json!(2)), OfferFault::TokenDomain(token)),
        (without("name"), OfferFault::TokenDomain(token)),
        (with(|offer| offer["payTo"] = json!(zero)), OfferFault::PayTo),
        (extra("receiverAuthorizer", json!(zero)), OfferFault::ReceiverAuthorizer),
        (extra("receiverAuthorizer", json!("0x33")), OfferFault::ReceiverAuthorizer),
        (without("receiverAuthorizer"), OfferFault::ReceiverAuthorizer),
        (extra("withdrawDelay", json!(899)), OfferFault::WithdrawDelay),
        (extra("withdrawDelay", json!(2_592_001)), OfferFault::WithdrawDelay),
        (extra("withdrawDelay", json!("900")), OfferFault::WithdrawDelay),
        (without("withdrawDelay"), OfferFault::WithdrawDelay),
        (extra("assetTransferMethod", json!("erc7710")), OfferFault::TransferMethod("erc7710".to_owned())),
        (extra("assetTransferMethod", json!(2)), OfferFault::TransferMethod("2".to_owned())),
        (
            extra("voucherManager", json!("facilitator")),
            OfferFault::Variant { key: "voucherManager", value: "facilitator".to_owned() },
        ),
        (extra("paymentFlow", json!(7)), OfferFault::Variant { key: "paymentFlow", value: "7".to_owned() }),
        (with(|offer| offer["maxTimeoutSeconds"] = json!(0)), OfferFault::Timeout),
    ];
    for (offer, fault) in cases {
        let result = choose(std::slice::from_ref(&offer), &Terms::default(), None);
        assert_eq!(result.unwrap_err(), ChoiceFault::NoOffer(vec![fault]), "{offer}");
    }
    for malformed in [json!("-1"), json!(2000), json!("02000"), json!(null)] {
        let result = choose(&[with(|offer| offer["amount"] = malformed.clone())], &Terms::default(), None);
        assert!(
            matches!(&result, Err(ChoiceFault::NoOffer(faults)) if matches!(faults[..], [OfferFault::Malformed(_)]))
        );
    }
}

#[test]
fn what_an_offer_may_say_beside_the_terms() {
    for harmless in [
        extra("assetTransferMethod", json!("eip3009")),
        extra("assetTransferMethod", json!("permit2")),
        extra("assetTransferMethod", json!(null)),
        extra("paymentFlow", json!("authorization")),
        extra("voucherManager", json!("server")),
        extra("withdrawDelay", json!(2_592_000)),
        extra("somethingNew", json!({"a": 1})),
    ] {
        let choice = choose(std::slice::from_ref(&harmless), &Terms::default(), None).unwrap();
        assert_eq!(choice.echo, harmless, "an offer is echoed as it came");
        assert_eq!(choice.by_permit2, harmless == extra("assetTransferMethod", json!("permit2")));
    }
}

#[test]
fn the_echo_leaves_out_what_a_corrective_adds() {
    let corrective = with(|offer| {
        offer["extra"]["channelState"] = json!({"balance": "1"});
        offer["extra"]["voucherState"] = json!({});
    });
    assert_eq!(choose(&[corrective], &Terms::default(), None).unwrap().echo, offered());
}

#[test]
fn the_first_acceptable_offer_is_taken_and_a_price_is_refused_only_if_no_other_offer_fits() {
    let dear = with(|offer| offer["amount"] = json!("5000"));
    let exact = with(|offer| offer["scheme"] = json!("exact"));
    let terms = Terms::default();
    let taken = |accepts: &[Value], max| choose(accepts, &terms, max).map(|choice| choice.offer.amount.units());
    assert_eq!(taken(&[exact.clone(), dear.clone(), offered()], None), Ok(5_000));
    assert_eq!(taken(&[exact.clone(), dear.clone(), offered()], Some(dollars(2_000))), Ok(2_000));
    let refusal =
        BudgetRefusal { limit: Limit::Request, asked: dollars(2_000), allowed: dollars(1_999), spent: Dollars::ZERO };
    assert_eq!(taken(&[dear, exact, offered()], Some(dollars(1_999))), Err(ChoiceFault::TooExpensive(refusal)));
    assert_eq!(taken(&[], None), Err(ChoiceFault::NoOffer(Vec::new())));
}

#[test]
fn terms_narrow_chains_and_delays_and_widen_tokens() {
    let allowed = |terms: &Terms, offer: Value| choose(&[offer], terms, None).is_ok();
    let chains = |chains: &[u64]| Terms { chains: chains.to_vec(), ..Terms::default() };
    assert!(allowed(&chains(&[SEPOLIA]), offered()));
    assert!(!allowed(&chains(&[8_453]), offered()));
    let delay = Terms { max_withdraw_delay_s: 3_600, ..Terms::default() };
    assert!(allowed(&delay, extra("withdrawDelay", json!(3_600))));
    assert!(!allowed(&delay, extra("withdrawDelay", json!(3_601))));

    let token = KnownToken {
        chain_id: 31_337,
        address: Address([7; 20]),
        decimals: 18,
        domain_name: "Dev".to_owned(),
        domain_version: "9".to_owned(),
    };
    let local = with(|offer| {
        offer["network"] = json!("eip155:31337");
        offer["asset"] = json!(Address([7; 20]));
        offer["extra"]["name"] = json!("Dev");
        offer["extra"]["version"] = json!("9");
        offer["amount"] = json!("1000000000000000000");
    });
    let terms = Terms { tokens: vec![token], ..Terms::default() };
    assert!(!allowed(&Terms::default(), local.clone()));
    assert!(choose(std::slice::from_ref(&local), &terms, Some(dollars(1_000_000))).is_ok(), "18 decimals are a dollar");
    assert!(choose(&[local], &terms, Some(dollars(999_999))).is_err());
    assert!(allowed(&terms, offered()), "the presets stay");
}

#[test]
fn quotes_of_other_shapes_are_refused_by_name() {
    let read = |value: Value| read_quote(Some(x402::encode(&value).as_bytes()));
    let good = json!({"x402Version": 2, "error": "e", "accepts": [offered()], "resource": {"url": "u"},
                      "extensions": null});
    let quote = read(good).unwrap();
    assert_eq!((quote.error.as_deref(), quote.accepts.len()), (Some("e"), 1));
    assert_eq!((quote.resource, quote.extensions), (Some(json!({"url": "u"})), None));
    assert_eq!(read_quote(None).unwrap_err(), QuoteFault::Missing);
    assert_eq!(read_quote(Some(b"~")).unwrap_err(), QuoteFault::Header(HeaderError::Base64));
    assert_eq!(read(json!({"x402Version": 1, "accepts": []})).unwrap_err(), QuoteFault::Version);
    assert_eq!(read(json!({"x402Version": 2})).unwrap_err(), QuoteFault::NoOffers);
    assert!(matches!(read(json!([])).unwrap_err(), QuoteFault::Header(_)));
}

/// Balance, next ceiling, minDeposit, multiplier, cap in micro-dollars; deposit, or the limit and what it was asked.
type Case = (u128, u128, Option<&'static str>, u32, u128, Result<u128, (Limit, u128)>);

#[test]
fn deposits_are_sized_by_minimum_multiplier_gap_and_cap() {
    let refused = |asked| Err((Limit::Deposit, asked));
    let cases: [Case; 14] = [
        (0, 2_000, None, 5, 1_000_000, Ok(10_000)),
        (0, 2_000, None, 0, 1_000_000, Ok(2_000)),
        (0, 2_000, None, 1, 1_000_000, Ok(2_000)),
        (0, 90_000, None, 5, 1_000_000, Ok(90_000)),
        (1_999, 2_000, None, 5, 1_000_000, Ok(10_000)),
        (0, 2_000, None, 5, 4_000, Ok(4_000)),
        (0, 2_000, None, 5, 2_000, Ok(2_000)),
        (0, 2_000, None, 5, 1_999, refused(2_000)),
        (0, 2_000, Some("50000"), 5, 1_000_000, Ok(50_000)),
        (0, 60_000, Some("50000"), 5, 1_000_000, Ok(60_000)),
        (0, 2_000, Some("50000"), 5, 49_999, refused(50_000)),
        (0, 2_000, Some("1999"), 5, 1_000_000, Ok(10_000)),
        (0, 2_000, Some("0x99"), 5, 1_000_000, Ok(10_000)),
        (0, 2_000, None, u32::MAX, u128::MAX, Ok(2_000 * u128::from(u32::MAX))),
    ];
    for (index, (balance, max, least, multiplier, cap, expected)) in cases.into_iter().enumerate() {
        let offer = match least {
            Some(least) => extra("minDeposit", json!(least)),
            None => offered(),
        };
        let choice = choose(&[offer], &Terms::default(), None).unwrap();
        let budget = Budget { max_deposit: dollars(cap), deposit_multiplier: multiplier, ..Budget::default() };
        let size = deposit_size(Amount::new(balance), Amount::new(max), &choice, &budget);
        let size = size.map(Amount::units).map_err(|refusal| (refusal.limit, refusal.asked.micros()));
        assert_eq!(size, expected, "case {index}");
    }
}

#[test]
fn a_second_deposit_is_never_planned_while_the_first_may_land() {
    let pending =
        PendingDeposit { amount: Amount::new(10_000), salt: Hash([1; 32]), valid_before: 1_000, by_permit2: false };
    let small = PendingDeposit { amount: Amount::new(1_999), ..pending };
    let end = 1_000 + EXPIRY_MARGIN_S;
    let open = |seconds| Err(PlanFault::DepositOpen { seconds });
    let new = || Ok((Plan::NewDeposit(Amount::new(10_000)), Amount::new(2_000)));
    let max = Amount::new(2_000);
    // balance, pending, known to be absent, now; expected
    let cases = [
        (2_000, None, false, 0, Ok((Plan::Voucher, max))),
        (1_999, None, false, 0, new()),
        (2_000, Some(pending), true, 0, Ok((Plan::Voucher, max))),
        (0, Some(pending), false, 0, Ok((Plan::VoucherOnPending, max))),
        (0, Some(pending), false, end + 1, Ok((Plan::VoucherOnPending, max))),
        (0, Some(pending), true, 0, Ok((Plan::SameDeposit(pending), max))),
        (0, Some(pending), true, 993, Ok((Plan::SameDeposit(pending), max))),
        (0, Some(pending), true, 994, open(end - 994)),
        (0, Some(pending), true, end, open(0)),
        (0, Some(pending), true, end + 1, new()),
        (0, Some(small), false, 0, open(end)),
        (0, Some(small), true, end, open(0)),
        (0, Some(small), true, end + 1, new()),
        (1, Some(small), false, 0, Ok((Plan::VoucherOnPending, max))),
    ];
    for (index, (balance, pending, pending_is_absent, now, expected)) in cases.into_iter().enumerate() {
        let funds = Funds { charged: Amount::ZERO, balance: Amount::new(balance), pending, pending_is_absent };
        assert_eq!(plan(&funds, &choice(), &Budget::default(), now), expected, "case {index}");
    }
    let full = Funds { charged: Amount::MAX, balance: Amount::MAX, pending: None, pending_is_absent: false };
    assert_eq!(plan(&full, &choice(), &Budget::default(), 0), Err(PlanFault::Overflow));
}

#[test]
fn a_receipt_is_believed_as_far_as_it_was_offered_and_no_further() {
    let tx = Hash([9; 32]);
    let judge = |receipt: Value, deposit: Option<u128>| {
        let asked = Asked { amount: Amount::new(2_000), deposit: deposit.map(Amount::new) };
        let verdict = judge_receipt(Some(x402::encode(&receipt).as_bytes()), asked);
        (verdict.charged.map(Amount::units), verdict.landed, verdict.doubt)
    };
    let plain = |charged: Value| {
        json!({"success": true, "transaction": "", "network": "eip155:84532", "amount": "",
               "extra": {"chargedAmount": charged}})
    };
    let over = |charged| ReceiptFault::Overcharged { charged: Amount::new(charged), amount: Amount::new(2_000) };
    for (charged, expected) in [
        (json!("0"), (Some(0), None, None)),
        (json!("2000"), (Some(2_000), None, None)),
        (json!("2001"), (None, None, Some(over(2_001)))),
        (json!(2000), (None, None, Some(ReceiptFault::NoCharge))),
        (json!("-1"), (None, None, Some(ReceiptFault::NoCharge))),
        (json!("02000"), (None, None, Some(ReceiptFault::NoCharge))),
        (json!("1e3"), (None, None, Some(ReceiptFault::NoCharge))),
        (json!(null), (None, None, Some(ReceiptFault::NoCharge))),
    ] {
        assert_eq!(judge(plain(charged.clone()), None), expected, "{charged}");
    }
    let deposit = |transaction: &str, amount: &str, charged: Value| {
        json!({"success": true, "transaction": transaction, "network": "eip155:84532", "amount": amount,
               "extra": {"chargedAmount": charged}})
    };
    let hash = tx.to_string();
    for (receipt, expected) in [
        (deposit(&hash, "10000", json!("2000")), (Some(2_000), Some(tx), None)),
        (deposit(&hash, "10000", json!("0")), (Some(0), Some(tx), None)),
        (deposit(&hash, "10000", json!("2001")), (None, Some(tx), Some(over(2_001)))),
        (deposit(&hash, "9999", json!("2000")), (Some(2_000), None, Some(ReceiptFault::Deposit))),
        (deposit("", "10000", json!("2000")), (Some(2_000), None, Some(ReceiptFault::Deposit))),
        (deposit("0xabc", "10000", json!("2000")), (Some(2_000), None, Some(ReceiptFault::Deposit))),
    ] {
        assert_eq!(judge(receipt.clone(), Some(10_000)), expected, "{receipt}");
    }
    assert_eq!(judge(deposit(&hash, "10000", json!("1")), None).1, None, "no deposit was sent");
}

#[test]
fn a_receipt_that_is_missing_unreadable_or_a_refusal_charges_nothing() {
    let asked = Asked { amount: Amount::new(2_000), deposit: None };
    assert_eq!(judge_receipt(None, asked).doubt, Some(ReceiptFault::Missing));
    assert!(matches!(judge_receipt(Some(b"~"), asked).doubt, Some(ReceiptFault::Unreadable(_))));
    let refusal = json!({"success": false, "transaction": "", "network": "eip155:84532",
                         "errorReason": "no\n\u{7}", "errorMessage": "x".repeat(1_000),
                         "extra": {"chargedAmount": "2000"}});
    let verdict = judge_receipt(Some(x402::encode(&refusal).as_bytes()), asked);
    assert_eq!((verdict.charged, verdict.landed), (None, None));
    assert_eq!(verdict.refusal, Some(("no??".to_owned(), "x".repeat(200))));
}

#[test]
fn correctives_are_recognised_letter_by_letter() {
    assert!(is_corrective("invalid_batch_settlement_evm_cumulative_amount_mismatch"));
    assert!(is_corrective("invalid_batch_settlement_evm_cumulative_below_claimed"));
    assert!(!is_corrective("invalid_batch_settlement_evm_cumulative_amount_mismatch: expected 4000"));
    assert!(!is_corrective("cumulative_amount_mismatch"));
    assert!(is_underfunded("invalid_batch_settlement_evm_channel_not_found"));
    assert!(is_underfunded("invalid_batch_settlement_evm_cumulative_exceeds_balance"));
    assert!(!is_underfunded("invalid_batch_settlement_evm_channel_busy"));
    assert!(says_pending_is_absent("invalid_batch_settlement_evm_channel_busy"));
    assert!(!says_pending_is_absent("No matching payment requirements"));
}

struct Signed {
    key: LocalKey,
    domain: Domain,
    channel: ChannelId,
}

fn signed() -> Signed {
    let key = LocalKey::from_bytes(&[3; 32]).unwrap();
    let domain = Domain::settlement(SEPOLIA);
    let config = ChannelConfig {
        payer: key.address(),
        payer_authorizer: key.address(),
        receiver: Address([1; 20]),
        receiver_authorizer: Address([2; 20]),
        token: Address([3; 20]),
        withdraw_delay: 900,
        salt: Hash::ZERO,
    };
    Signed { channel: config.id(&domain), key, domain }
}

impl Signed {
    fn voucher(&self, max: u128) -> Signature {
        let voucher = Voucher { channel: self.channel, max_claimable: Amount::new(max) };
        voucher.sign(&self.domain, &self.key).signature
    }
}

#[test]
fn a_corrective_is_followed_only_with_our_own_signature_and_not_against_the_chain() {
    let ours = signed();
    let foreign = LocalKey::from_bytes(&[4; 32]).unwrap();
    let elsewhere = Voucher { channel: ChannelId([5; 32]), max_claimable: Amount::new(6_000) };
    let chain =
        |balance, claimed| Some(ChainChannel { balance: Amount::new(balance), total_claimed: Amount::new(claimed) });
    let forged =
        Voucher { channel: ours.channel, max_claimable: Amount::new(6_000) }.sign(&ours.domain, &foreign).signature;
    let moved = elsewhere.sign(&ours.domain, &ours.key).signature;
    let good = ours.voucher(6_000);
    let fault = Err::<[Amount; 3], CorrectiveFault>;
    let all = |units: [u128; 3]| Ok(amounts(units));
    // own: 2000 charged, 5000 deposited
    // charged, server's balance, signed, signature, chain; expected charged, signed, balance
    let cases = [
        (4_000, None, 6_000, &good, None, all([4_000, 6_000, 5_000])),
        (0, None, 6_000, &good, None, all([0, 6_000, 5_000])),
        (6_000, None, 6_000, &good, None, all([6_000, 6_000, 5_000])),
        (6_001, None, 6_000, &good, None, fault(CorrectiveFault::ChargedAboveSigned)),
        (4_000, Some(9_000), 6_000, &good, None, all([4_000, 6_000, 9_000])),
        (4_000, Some(4_000), 6_000, &good, None, all([4_000, 6_000, 5_000])),
        (4_000, Some(9_000), 6_000, &good, chain(7_000, 4_000), all([4_000, 6_000, 7_000])),
        (4_000, Some(9_000), 6_000, &good, chain(0, 0), all([4_000, 6_000, 5_000])),
        (2_000, Some(9_000), 6_000, &good, chain(3_000, 0), all([2_000, 6_000, 3_000])),
        (2_000, Some(3_000), 6_000, &good, None, all([2_000, 6_000, 5_000])),
        (4_000, None, 6_000, &good, chain(7_000, 4_001), fault(CorrectiveFault::BelowClaimed)),
        (4_000, None, 6_000, &forged, None, fault(CorrectiveFault::ForeignSignature)),
        (4_000, None, 6_000, &moved, None, fault(CorrectiveFault::ForeignSignature)),
        (4_000, None, 6_001, &good, None, fault(CorrectiveFault::ForeignSignature)),
    ];
    for (index, (charged, balance, signed_max, signature, chain, expected)) in cases.into_iter().enumerate() {
        let state = ShownState {
            charged: Amount::new(charged),
            balance: balance.map(Amount::new),
            signed_max: Amount::new(signed_max),
            signature: signature.clone(),
        };
        let [own_charged, balance] = amounts([2_000, 5_000]);
        let own = OwnSide {
            channel: ours.channel,
            settlement: ours.domain,
            signer: ours.key.address(),
            charged: own_charged,
            balance,
        };
        let verdict = judge_corrective(&state, &own, chain);
        let verdict = verdict.map(|to| [to.charged, to.signed_max, to.balance]);
        assert_eq!(verdict, expected, "case {index}");
    }
}

#[test]
fn the_state_of_another_channel_is_not_looked_at() {
    let ours = signed();
    let state = |id: Value, charged: Value| {
        let mut offer = offered();
        offer["extra"]["channelState"] = json!({"channelId": id, "balance": "9", "chargedCumulativeAmount": charged});
        offer["extra"]["voucherState"] = json!({"signedMaxClaimable": "8", "signature": "0x00"});
        offer
    };
    let id = json!(ours.channel);
    let other = json!(ChannelId([5; 32]));
    let charged =
        |accepts: &[Value]| shown_state(accepts, ours.channel).map(|state| state.map(|state| state.charged.units()));
    assert_eq!(charged(&[offered()]), Ok(None));
    assert_eq!(charged(&[state(other.clone(), json!("1"))]), Ok(None));
    assert_eq!(charged(&[state(other, json!("1")), state(id.clone(), json!("2"))]), Ok(Some(2)));
    assert_eq!(charged(&[state(json!(null), json!("3"))]), Ok(Some(3)), "an old server names no channel");
    assert_eq!(charged(&[state(id.clone(), json!(3))]), Err(CorrectiveFault::Malformed));
    let mut half = state(id, json!("1"));
    half["extra"].as_object_mut().unwrap().remove("voucherState");
    assert_eq!(charged(&[half]), Ok(None), "without a voucher nothing is proven");
}
