//! Payment headers read in one pass are read as they always were: what real clients send, and what is nearly that.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/read_payment.rs"]
mod read_payment;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peaje::protocol::x402::{self, WrittenOffer};
use peaje::protocol::{Address, Amount, ChannelConfig, Domain, Hash, LocalKey, SignedVoucher, Voucher};
use proptest::prelude::*;
use serde_json::{Value, json};

use read_payment::{check_header, fuzz, offer};

fn config(key: &LocalKey) -> ChannelConfig {
    ChannelConfig {
        payer: key.address(),
        payer_authorizer: key.address(),
        receiver: Address([1; 20]),
        receiver_authorizer: Address([2; 20]),
        token: Address([3; 20]),
        withdraw_delay: 900,
        salt: Hash([4; 32]),
    }
}

fn signed(max: u128) -> (ChannelConfig, SignedVoucher) {
    let key = LocalKey::from_bytes(&[3; 32]).unwrap();
    let (config, domain) = (config(&key), Domain::settlement(84_532));
    let voucher = Voucher { channel: config.id(&domain), max_claimable: Amount::new(max) };
    (config, voucher.sign(&domain, &key))
}

/// What the official client sends: keys in the order of its code, the offer as it was quoted.
fn stock(offer: &WrittenOffer, max: u128) -> String {
    let (config, voucher) = signed(max);
    format!(
        r#"{{"x402Version":2,"payload":{{"type":"voucher","channelConfig":{},"voucher":{}}},"resource":{},"accepted":{}}}"#,
        text(&config),
        text(&voucher),
        r#"{"url":"https://api.example.com/paid?q=a%20b","description":"Weather \"here\" \\ now\n","mimeType":"application/json"}"#,
        text(offer.offer()),
    )
}

/// JSON in the order of the fields.
fn text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

/// What our own agent sends: everything through sorted maps.
fn ours(offer: &WrittenOffer, max: u128) -> Value {
    let (config, voucher) = signed(max);
    json!({
        "x402Version": 2,
        "accepted": offer.offer(),
        "payload": {"type": "voucher", "channelConfig": config, "voucher": voucher},
        "resource": {"url": "https://api.example.com/paid"},
        "extensions": {"bazaar": {"info": {"a": [1, -2.5, null, true]}}},
    })
}

fn check(text: &str) -> bool {
    check_header(STANDARD.encode(text).as_bytes(), &offer())
}

#[test]
fn what_clients_send_is_read_in_one_pass() {
    let offer = offer();
    for max in [0, 1, 4_000, u128::from(u64::MAX) + 1, u128::MAX] {
        assert!(check(&stock(&offer, max)));
        assert!(check(&ours(&offer, max).to_string()));
    }
    let stock = stock(&offer, 4_000);
    let with = |part: &str, other: &str| {
        assert!(stock.contains(part), "{part}");
        stock.replacen(part, other, 1)
    };
    assert!(check(&with(r#""type":"voucher""#, r#""signedAhead":true,"type":"voucher""#)));
    assert!(check(&with(r#""type":"voucher""#, r#""type":"voucher","signedAhead" : false"#)));
    assert!(check(&with("{\"x402Version\":2,", " {\n  \"x402Version\" : 2 ,\r\n\t")));
    assert!(check(&with("\"accepted\"", "\"extensions\":{},\"accepted\"")));
    assert!(check(&with("\"withdrawDelay\":900}", "\"withdrawDelay\":900,\"channelState\":{}}").replacen(
        "\"maxInFlight\":32",
        "\"maxInFlight\":32,\"mine\":[]",
        1
    )));
    assert!(check(&stock.replace("0x036C", "0x036c")), "an address in another letter case");
    let header = STANDARD.encode(&stock);
    assert!(check_header(header.trim_end_matches('=').as_bytes(), &offer));
    assert_eq!(header, x402::encode(&serde_json::value::RawValue::from_string(stock).unwrap()));
}

#[test]
fn what_is_unusual_is_read_the_plain_way() {
    let stock = stock(&offer(), 4_000);
    let changes = [
        ("\"x402Version\":2", "\"x402Version\":1"),
        ("\"x402Version\":2", "\"x402Version\":2.0"),
        ("\"x402Version\":2", "\"x402Version\":2,\"x402Version\":2"),
        ("\"x402Version\":2", "\"x402Version\":\"2\""),
        ("\"type\":\"voucher\"", "\"type\":\"deposit\""),
        ("\"type\":\"voucher\"", "\"type\":\"refund\""),
        ("\"type\":\"voucher\"", "\"type\":\"voucher\",\"type\":\"voucher\""),
        ("\"type\":\"voucher\"", "\"type\":\"\\u0076oucher\""),
        ("\"type\":\"voucher\"", "\"type\":\"voucher\",\"signedAhead\":1"),
        ("\"type\":\"voucher\"", "\"type\":\"voucher\",\"signedAhead\":\"true\""),
        ("\"type\":\"voucher\"", "\"type\":\"voucher\",\"signedAhead\":true,\"signedAhead\":false"),
        ("\"type\":\"voucher\",", ""),
        ("\"maxClaimableAmount\":\"4000\"", "\"maxClaimableAmount\":4000"),
        ("\"maxClaimableAmount\":\"4000\"", "\"maxClaimableAmount\":\"04000\""),
        ("\"maxClaimableAmount\":\"4000\"", "\"maxClaimableAmount\":\"4000\",\"maxClaimableAmount\":\"4001\""),
        ("\"withdrawDelay\":900", "\"withdrawDelay\":900.0"),
        ("\"withdrawDelay\":900", "\"withdrawDelay\":9e2"),
        ("\"withdrawDelay\":900", "\"withdrawDelay\":-900"),
        ("\"withdrawDelay\":900", "\"withdrawDelay\":18446744073709551616"),
        ("\"salt\":\"0x", "\"salt\":\"0X"),
        ("\"salt\":\"0x04", "\"salt\":\"0x0g"),
        ("\"salt\":\"0x04", "\"salt\":\"0x4"),
        ("\"amount\":\"2000\"", "\"amount\":\"2001\""),
        ("\"amount\":\"2000\"", "\"amount\":2000"),
        ("\"maxTimeoutSeconds\":300", "\"maxTimeoutSeconds\":3000"),
        ("\"maxTimeoutSeconds\":300", "\"maxTimeoutSeconds\":300.0"),
        ("\"maxInFlight\":32", "\"maxInFlight\":33"),
        ("\"maxInFlight\":32,", ""),
        ("\"accepted\"", "\"accepted\":null,\"accepted\""),
        ("\"accepted\"", "\"extensions\":null,\"accepted\""),
        ("\"accepted\"", "\"extensions\":[],\"accepted\""),
        ("\"accepted\"", "\"extensions\":{\"a\":1e999},\"accepted\""),
        ("\"accepted\"", "\"mine\":1e999,\"accepted\""),
        ("\"accepted\"", "\"mine\":\"\\ud800\",\"accepted\""),
        ("\"accepted\"", "\"mine\":\"\\uD83D\\uDE00\",\"accepted\""),
        ("\"accepted\"", "\"\\u0061ccepted\":{},\"accepted\""),
    ];
    for (part, other) in changes {
        let changed = stock.replacen(part, other, 1);
        assert_ne!(changed, stock, "{part}");
        assert!(!check(&changed), "{other}");
    }
    for end in ["}}}x", "}}},", "}}}}", "}}", ""] {
        assert!(!check(&(stock.strip_suffix("}}}").unwrap().to_owned() + end)), "{end}");
    }
    // Bytes that are no UTF-8, in a value nobody reads.
    let mut odd = stock.clone().into_bytes();
    let at = stock.find("Weather").unwrap();
    odd[at] = 0xff;
    assert!(!check_header(STANDARD.encode(&odd).as_bytes(), &offer()));
    // A signature of a wallet's.
    let (_, voucher) = signed(4_000);
    let signature = json!(voucher.signature).as_str().unwrap().to_owned();
    assert!(!check(&stock.replace(&signature, &format!("{signature}00"))));
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    for (depth, direct) in [(30, true), (40, false), (126, false), (128, false)] {
        let changed = stock.replacen("\"accepted\"", &format!("\"mine\":{},\"accepted\"", nested(depth)), 1);
        assert_eq!(check(&changed), direct, "{depth}");
    }
}

/// Small steps away from a good header: each is taken at some place.
#[derive(Debug, Clone)]
enum Step {
    Flip(prop::sample::Index, u8),
    Remove(prop::sample::Index, usize),
    Insert(prop::sample::Index, &'static str),
    /// Some bytes again, or over others.
    Copy(prop::sample::Index, usize, prop::sample::Index),
    /// A character by its number.
    Escape(prop::sample::Index),
}

const SNIPPETS: [&str; 28] = [
    " ",
    "\n",
    "\t",
    "\r",
    ",",
    ":",
    "\"",
    "{",
    "}",
    "[",
    "]",
    "\\",
    "0",
    "-",
    ".",
    "e9",
    "null",
    "true",
    "\\u0061",
    "\\\"",
    "\\ud83d",
    "\"type\":\"voucher\",",
    "\"x402Version\":2,",
    "\"signedAhead\":true,",
    "\"a\":[{}],",
    "\"a\":1e400,",
    "é",
    "\u{0}",
];

fn step() -> impl Strategy<Value = Step> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, bits)| Step::Flip(at, bits)),
        (at(), 1usize..20).prop_map(|(at, length)| Step::Remove(at, length)),
        (at(), prop::sample::select(&SNIPPETS[..])).prop_map(|(at, text)| Step::Insert(at, text)),
        (at(), 1usize..120, at()).prop_map(|(from, length, to)| Step::Copy(from, length, to)),
        at().prop_map(Step::Escape),
    ]
}

fn take(step: &Step, text: &mut Vec<u8>) {
    let place = |at: &prop::sample::Index, text: &[u8]| at.index(text.len().max(1)).min(text.len());
    match step {
        Step::Flip(at, bits) => {
            let at = place(at, text);
            text.get_mut(at).into_iter().for_each(|byte| *byte ^= bits);
        }
        Step::Remove(at, length) => {
            let at = place(at, text);
            text.drain(at..(at + length).min(text.len()));
        }
        Step::Insert(at, snippet) => {
            let at = place(at, text);
            text.splice(at..at, snippet.bytes());
        }
        Step::Copy(from, length, to) => {
            let from = place(from, text);
            let copied = text[from..(from + length).min(text.len())].to_vec();
            let to = place(to, text);
            text.splice(to..to, copied);
        }
        Step::Escape(at) => {
            let at = place(at, text);
            let escaped = text.get(at).map(|byte| format!("\\u{:04x}", byte));
            text.splice(at..(at + 1).min(text.len()), escaped.unwrap_or_default().into_bytes());
        }
    }
}

/// Writes a value with its keys in some order, white space where it may stand, and now and then a key twice or escaped.
fn written(value: &Value, chance: &mut impl FnMut(usize) -> usize, odd: bool) -> String {
    let mut space = || [" ", "\n", "\t\r", "", "", "", "", ""][chance(8)];
    let (before, after) = (space(), space());
    let inner = match value {
        Value::Object(fields) => {
            let mut parts: Vec<String> = fields
                .iter()
                .flat_map(|(key, value)| {
                    let again = if odd && chance(40) == 0 { 2 } else { 1 };
                    let key = if odd && chance(60) == 0 {
                        key.chars().map(|c| format!("\\u{:04X}", u32::from(c))).collect()
                    } else {
                        key.clone()
                    };
                    (0..again).map(|_| format!("\"{key}\":{}", written(value, chance, odd))).collect::<Vec<_>>()
                })
                .collect();
            for last in (1..parts.len()).rev() {
                parts.swap(last, chance(last + 1));
            }
            format!("{{{before}{}}}", parts.join(","))
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| written(item, chance, odd)).collect();
            format!("[{before}{}]", items.join(","))
        }
        other => other.to_string(),
    };
    format!("{before}{inner}{after}")
}

fn chances(mut state: u64) -> impl FnMut(usize) -> usize {
    move |most| {
        // Knuth's constants; the upper bits are the good ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % most
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_header_with_a_few_errors_is_read_as_without_the_faster_way(
        steps in prop::collection::vec(step(), 1..4),
        sorted: bool,
        max: u128,
    ) {
        let offer = offer();
        let mut text = if sorted { ours(&offer, max).to_string() } else { stock(&offer, max) }.into_bytes();
        steps.iter().for_each(|step| take(step, &mut text));
        check_header(STANDARD.encode(&text).as_bytes(), &offer);
    }

    #[test]
    fn a_header_whose_base64_is_damaged_is_read_as_without_the_faster_way(step in step(), max: u128) {
        let offer = offer();
        let mut header = STANDARD.encode(stock(&offer, max)).into_bytes();
        take(&step, &mut header);
        check_header(&header, &offer);
    }

    #[test]
    fn order_and_white_space_do_not_matter(seed: u64, max: u128) {
        let text = written(&ours(&offer(), max), &mut chances(seed), false);
        prop_assert!(check(&text), "{}", text);
    }

    #[test]
    fn keys_that_come_twice_or_escaped_count_as_ever(seed: u64, max: u128) {
        check(&written(&ours(&offer(), max), &mut chances(seed), true));
    }

    #[test]
    fn any_bytes_are_read_as_without_the_faster_way(data in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz(&data);
    }
}
