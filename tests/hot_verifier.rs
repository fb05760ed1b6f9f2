//! The verifier for keys that pay often says what the recovery of the signer says, whatever it is given.
//!
//! The recovery is k256's and as strict as the contract (`protocol::signature`). `PEAJE_SEED` repeats a run, and
//! `PEAJE_CASES=1000000 cargo test --release --test hot_verifier -- --ignored` makes it a long one.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a test")]

#[path = "fuzz/hot_case.rs"]
mod hot_case;
#[path = "support/payer.rs"]
mod payer;

use std::convert::Infallible;
use std::fs;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use k256::ecdsa::signature::hazmat::PrehashVerifier as _;
use k256::elliptic_curve::PrimeField as _;
use k256::elliptic_curve::point::{AffineCoordinates as _, DecompressPoint as _};
use k256::elliptic_curve::scalar::IsHigh as _;
use k256::elliptic_curve::sec1::ToSec1Point as _;
use k256::{AffinePoint, ProjectivePoint, Scalar};
use peaje::gate::hot::PROVEN_AFTER;
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Policy, Price, Route};
use peaje::gate::{Desk, Gate};
use peaje::ledger::View;
use peaje::protocol::bytes::{decode_hex, keccak256};
use peaje::protocol::hot::KeyTable;
use peaje::protocol::signature::SignatureError;
use peaje::protocol::x402::{self, PAYMENT_SIGNATURE};
use peaje::protocol::{Amount, Hash, LocalKey, Signature, Voucher};
use serde_json::{Value, json};
use tower::{Layer as _, ServiceExt as _, service_fn};

use hot_case::{agree, is_odd, run, scalar_of, signature_of, table_of};
use payer::usual_terms;

/// Cases of a usual run.
const CASES: u64 = 20_000;

/// Numbers at whose edges checks and arithmetic turn: 0, 1, 2, n ± 1, n, n / 2 and its neighbours, p - n and its
/// neighbours, p ± 1, p, 2²⁵⁶ - 1, and what a limb or a window begins and ends with.
const EDGES: [&str; 22] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000001",
    "0000000000000000000000000000000000000000000000000000000000000002",
    "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364140",
    "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141",
    "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364142",
    "7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b209f",
    "7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0",
    "7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a1",
    "000000000000000000000000000000014551231950b75fc4402da1722fc9baed",
    "000000000000000000000000000000014551231950b75fc4402da1722fc9baee",
    "000000000000000000000000000000014551231950b75fc4402da1722fc9baef",
    "fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2e",
    "fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f",
    "fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc30",
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "000000000000000000000000000000000000000000000000ffffffffffffffff",
    "0000000000000000000000000000000000000000000000010000000000000000",
    "00000000000000000000000000000000ffffffffffffffffffffffffffffffff",
    "0000000000000000000000000000000100000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000400",
    "0000000000000000000000000000000000000000000000000000000000000401",
];

/// Numbers that look random and can be repeated (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next().to_be_bytes()[0])
    }

    /// 32 bytes: an edge, or near one, or any.
    fn number(&mut self) -> [u8; 32] {
        match self.below(3) {
            0 => edge(self.below(EDGES.len())),
            1 => {
                let near = scalar_of(&edge(self.below(EDGES.len()))) + Scalar::from(self.next() % 5);
                near.to_repr().into()
            }
            _ => self.bytes(),
        }
    }
}

fn edge(index: usize) -> [u8; 32] {
    decode_hex(&format!("0x{}", EDGES[index])).unwrap().try_into().unwrap()
}

fn seed() -> u64 {
    let seed = std::env::var("PEAJE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x00c0_ffee);
    println!("PEAJE_SEED={seed}");
    seed
}

/// A good signature of a usual key, with what was done to it; how many of each kind were accepted.
fn mutated(cases: u64) -> Vec<(&'static str, u64, u64)> {
    const KINDS: [&str; 9] =
        ["good", "bit of r", "bit of s", "v", "bit of the digest", "other key", "high s", "edge r or s", "edge digest"];
    let mut numbers = Numbers(seed());
    let mut secrets: Vec<[u8; 32]> = vec![edge(1), edge(2), edge(3)];
    secrets.extend((0..5).map(|_| numbers.bytes::<32>()));
    let keys: Vec<(LocalKey, KeyTable)> = secrets
        .iter()
        .map(|secret| {
            let key = LocalKey::from_bytes(secret).unwrap();
            let table = KeyTable::recover(Hash([9; 32]), &key.sign(Hash([9; 32]))).unwrap();
            assert_eq!(table.signer(), key.address());
            (key, table)
        })
        .collect();
    let mut counts = KINDS.map(|kind| (kind, 0, 0));
    for case in 0..cases {
        let kind = usize::try_from(case).unwrap() % KINDS.len();
        let (key, table) = &keys[numbers.below(keys.len())];
        let mut digest = Hash(if KINDS[kind] == "edge digest" { numbers.number() } else { numbers.bytes() });
        let mut bytes = key.sign(digest).as_bytes().to_vec();
        let mut table = table;
        let bit = numbers.below(256);
        match KINDS[kind] {
            "good" | "edge digest" => {}
            "bit of r" => bytes[bit / 8] ^= 1 << (bit % 8),
            "bit of s" => bytes[32 + bit / 8] ^= 1 << (bit % 8),
            "v" => bytes[64] = if bit.is_multiple_of(2) { 55 - bytes[64] } else { numbers.bytes::<1>()[0] },
            "bit of the digest" => digest.0[bit / 8] ^= 1 << (bit % 8),
            "other key" => table = &keys[numbers.below(keys.len())].1,
            "high s" => {
                let s = -scalar_of(bytes[32..64].try_into().unwrap());
                bytes[32..64].copy_from_slice(&s.to_repr());
                bytes[64] = 55 - bytes[64];
            }
            _ => {
                let place = if bit.is_multiple_of(2) { 0..32 } else { 32..64 };
                bytes[place].copy_from_slice(&numbers.number());
                if bit.is_multiple_of(3) {
                    bytes[..32].copy_from_slice(&numbers.number());
                }
            }
        }
        let accepted = agree(table, digest, &Signature::from_bytes(bytes).unwrap());
        counts[kind].1 += 1;
        counts[kind].2 += u64::from(accepted);
    }
    counts.into()
}

fn check_mutated(cases: u64) {
    for (kind, tried, accepted) in mutated(cases) {
        println!("{kind}: {accepted} of {tried} accepted");
        match kind {
            "good" | "edge digest" => assert_eq!(accepted, tried, "{kind}"),
            // Now and then the byte is what it was, or the other key the same.
            "v" => assert!(accepted < tried / 10, "{kind}"),
            "other key" => assert!(accepted > 0 && accepted < tried / 4, "{kind}"),
            _ => assert_eq!(accepted, 0, "{kind}"),
        }
    }
}

/// Signatures made for the sums they cause, by keys that meet the generator's multiples; accepted, refused, impossible.
fn check_crafted(cases: u64) {
    let mut numbers = Numbers(seed());
    let (mut accepted, mut refused, mut impossible) = (0u64, 0u64, 0u64);
    for case in 0..cases {
        let mut data = numbers.bytes::<101>();
        let length = match case % 4 {
            1 | 3 => {
                data[4..36].copy_from_slice(&numbers.number());
                data[36..68].copy_from_slice(&numbers.number());
                101
            }
            2 => {
                // Small digits in low places, which meet more often.
                data[4..].iter_mut().enumerate().for_each(|(at, byte)| *byte %= if at % 3 == 1 { 17 } else { 8 });
                4 + 6 * (1 + numbers.below(4))
            }
            _ => 101,
        };
        data[0] = u8::try_from(case % 4).unwrap();
        match run(&data[..length]) {
            Some(true) => accepted += 1,
            Some(false) => refused += 1,
            None => impossible += 1,
        }
    }
    println!("{accepted} accepted, {refused} refused, {impossible} impossible");
    assert!(accepted > cases / 8 && refused > cases / 8 && impossible < cases / 4);
}

#[test]
fn what_was_done_to_a_signature_makes_the_same_difference_to_both() {
    check_mutated(CASES);
}

#[test]
fn sums_that_meet_equal_and_opposite_points_are_sums_all_the_same() {
    check_crafted(CASES / 2);
}

#[test]
#[ignore = "minutes; see above"]
fn a_million_cases_agree() {
    let cases = std::env::var("PEAJE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1_000_000);
    std::thread::scope(|scope| {
        scope.spawn(|| check_mutated(cases / 2));
        scope.spawn(|| check_crafted(cases - cases / 2));
    });
}

#[test]
fn every_edge_of_r_and_s_gets_the_same_verdict() {
    let key = LocalKey::from_bytes(&[7; 32]).unwrap();
    let digest = Hash([9; 32]);
    let table = KeyTable::recover(digest, &key.sign(digest)).unwrap();
    for r in 0..EDGES.len() {
        for s in 0..EDGES.len() {
            for v in [0, 26, 27, 28, 29] {
                assert!(!agree(&table, digest, &signature_of(edge(r), edge(s), v)));
            }
        }
    }
}

#[test]
fn lengths_are_refused_alike() {
    let key = LocalKey::from_bytes(&[7; 32]).unwrap();
    let digest = Hash([9; 32]);
    let good = key.sign(digest);
    let table = KeyTable::recover(digest, &good).unwrap();
    for length in 0..65 {
        assert!(!agree(&table, digest, &Signature::from_bytes(&good.as_bytes()[..length]).unwrap()));
    }
    assert!(!agree(&table, digest, &Signature::from_bytes([good.as_bytes(), &[0]].concat()).unwrap()));
    assert!(agree(&table, digest, &good));
}

#[test]
fn an_x_above_the_order_is_not_its_remainder() {
    // The first x from n on that is on the curve. Nobody knows the multiple that leads there, and nobody needs to.
    let order = scalar_bytes(-Scalar::ONE);
    let (r, point) = (1u64..)
        .find_map(|n| {
            let mut x = order;
            // n - 1, whose last bytes leave room.
            let low = u64::from_be_bytes(x[24..].try_into().unwrap()).checked_add(n).unwrap();
            x[24..].copy_from_slice(&low.to_be_bytes());
            let point = Option::<AffinePoint>::from(AffinePoint::decompress(&x.into(), 0.into()))?;
            (n > 1).then(|| (Scalar::from(n - 1), ProjectivePoint::from(point)))
        })
        .unwrap();
    for s in [Scalar::from(3u64), Scalar::from(0x1234_5678u64)] {
        // The key to which (r, s) over z is good if x is read modulo n.
        let z = Scalar::from(99u64);
        let key = (point * s - ProjectivePoint::GENERATOR * z) * r.invert().unwrap();
        let table = table_of(key);
        let loose = k256::ecdsa::VerifyingKey::from_affine(key.to_affine()).unwrap();
        let pair = k256::ecdsa::Signature::from_scalars(r, s).unwrap();
        assert!(loose.verify_prehash(&z.to_repr(), &pair).is_ok());
        for v in [27, 28] {
            assert!(!agree(&table, Hash(scalar_bytes(z)), &signature_of(scalar_bytes(r), scalar_bytes(s), v)));
        }
    }
}

#[test]
fn a_signature_that_fits_infinity_only_names_no_key() {
    let key = LocalKey::from_bytes(&[7; 32]).unwrap();
    let table = KeyTable::recover(Hash([9; 32]), &key.sign(Hash([9; 32]))).unwrap();
    for k in [1u64, 5, 0x1234_5678_9abc] {
        let k = Scalar::from(k);
        let point = (ProjectivePoint::GENERATOR * k).to_affine();
        let s = Scalar::from(77u64);
        let v = if is_odd(&point) { 28 } else { 27 };
        let signature = signature_of(point.x().into(), scalar_bytes(s), v);
        let digest = Hash(scalar_bytes(s * k));
        assert_eq!(signature.recover(digest), Err(SignatureError::NoKey));
        assert!(!agree(&table, digest, &signature));
        // With the other byte there is a key, another one.
        assert!(!agree(&table, digest, &signature_of(point.x().into(), scalar_bytes(s), 55 - v)));
    }
}

fn scalar_bytes(scalar: Scalar) -> [u8; 32] {
    scalar.to_repr().into()
}

/// r and s as the contract would be given them; `None` where there is no such pair of 32 bytes.
fn pair_of(encoding: &str, bytes: &[u8]) -> Option<([u8; 32], [u8; 32])> {
    if encoding == "p1363" {
        let (r, s) = bytes.split_at_checked(32)?;
        return Some((r.try_into().ok()?, s.try_into().ok()?));
    }
    // DER: two integers in a sequence, no more bytes than needed, no sign.
    let (integers, rest) = der(0x30, bytes)?;
    let (r, after) = der(2, integers)?;
    let (s, end) = der(2, after)?;
    (rest.is_empty() && end.is_empty()).then_some(())?;
    let integer = |bytes: &[u8]| {
        let positive = match bytes {
            [0, next, ..] if *next < 0x80 => return None,
            [0, rest @ ..] => rest,
            [first, ..] if *first >= 0x80 => return None,
            [] => return None,
            bytes => bytes,
        };
        let mut number = [0u8; 32];
        number.get_mut(32usize.checked_sub(positive.len())?..)?.copy_from_slice(positive);
        Some(number)
    };
    Some((integer(r)?, integer(s)?))
}

fn der(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    match bytes {
        [first, length, rest @ ..] if *first == tag && *length < 0x80 => rest.split_at_checked(usize::from(*length)),
        _ => None,
    }
}

#[test]
fn wycheproof_vectors_get_the_verdict_they_name() {
    let file: Value = serde_json::from_str(include_str!("vectors/wycheproof_secp256k1_sha256.json")).unwrap();
    let text = |value: &Value, field: &str| value[field].as_str().unwrap().to_owned();
    let (mut good, mut bad, mut unreadable, mut above) = (0, 0, 0, 0);
    for group in file["groups"].as_array().unwrap() {
        let key = decode_hex(&format!("0x{}", text(group, "key"))).unwrap();
        let key = k256::PublicKey::from_sec1_bytes(&key).unwrap();
        let table = table_of(key.to_projective());
        let point = key.as_affine().to_sec1_point(false);
        assert_eq!(table.signer().0, keccak256(&point.as_bytes()[1..]).0[12..]);
        for test in group["tests"].as_array().unwrap() {
            let bytes = decode_hex(&format!("0x{}", text(test, "sig"))).unwrap();
            let digest = Hash(decode_hex(&format!("0x{}", text(test, "sha256"))).unwrap().try_into().unwrap());
            let valid = text(test, "result") == "valid";
            let name = format!("{} {}", text(group, "encoding"), test["tcId"]);
            let Some((r, s)) = pair_of(&text(group, "encoding"), &bytes) else {
                assert!(!valid, "{name}");
                unreadable += 1;
                continue;
            };
            // The vectors know no recovery byte. A high s is refused here, and its low twin stands for it; where the
            // vectors refuse a high s for being one (Bitcoin's do), nothing is left to compare.
            let given = |s| [27, 28].map(|v| agree(&table, digest, &signature_of(r, s, v)));
            let high = Option::<Scalar>::from(Scalar::from_repr(s.into())).filter(|s| bool::from(s.is_high()));
            let accepted = match high {
                Some(high) => {
                    assert_eq!(given(s), [false, false], "{name}");
                    given(scalar_bytes(-high))
                }
                None => given(s),
            };
            let accepted = accepted.iter().filter(|accepted| **accepted).count();
            if valid {
                // One of the two recovery bytes fits, and none where the point's x is above the order.
                let [r, s] = [r, s].map(|number| scalar_of(&number));
                let inverse = s.invert().unwrap();
                let sum =
                    ProjectivePoint::GENERATOR * (scalar_of(&digest.0) * inverse) + key.to_projective() * (r * inverse);
                let reduced = sum.to_affine().x() != r.to_repr();
                assert_eq!(accepted, usize::from(!reduced), "{name}");
                above += usize::from(reduced);
                good += accepted;
            } else if high.is_none() || text(group, "encoding") == "p1363" {
                assert_eq!(accepted, 0, "{name}");
                bad += 1;
            }
        }
    }
    println!("{good} good, {bad} bad, {unreadable} unreadable, {above} with an x above the order");
    assert!(good > 300 && bad > 100 && unreadable > 100 && above > 0);
}

#[test]
fn the_kept_corpus_agrees() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/corpus/hot_verifier");
    let mut cases = 0;
    for file in fs::read_dir(folder).unwrap() {
        cases += usize::from(run(&fs::read(file.unwrap().path()).unwrap()).is_some());
    }
    assert!(cases >= 8, "{cases}");
}

/// What a gate answers to vouchers of one channel after the other.
#[tokio::test]
async fn a_key_that_pays_often_is_served_as_before_and_a_forger_is_not() {
    const PRICE: Amount = Amount::new(2_000);
    let terms = usual_terms();
    let domain = terms.settlement();
    let policy = || {
        let route = Route::new(PathPattern::parse("/paid").unwrap(), Price::Fixed(PRICE));
        Policy::new(terms.clone(), "https://api.example.com", vec![route]).unwrap()
    };
    let (key, stranger) = (LocalKey::from_bytes(&[7; 32]).unwrap(), LocalKey::from_bytes(&[8; 32]).unwrap());
    let header = |of: &LocalKey, by: &LocalKey, number: u128| {
        let config = terms.channel_of(of.address());
        let voucher = Voucher { channel: config.id(&domain), max_claimable: Amount::new(PRICE.units() * number) }
            .sign(&domain, by);
        let payload = json!({"type": "voucher", "channelConfig": config, "voucher": voucher});
        x402::encode(&json!({"x402Version": 2, "accepted": terms.offer(PRICE), "payload": payload}))
    };
    for (hot_bytes, tables) in [(usize::MAX, 1), (0, 0)] {
        let gate = Gate::new(policy(), Desk::closed()).with_hot_keys(hot_bytes);
        let view = View { block: 1, balance: Amount::new(1_000_000_000), ..View::default() };
        let config = terms.channel_of(key.address());
        gate.accounts().observe(config.id(&domain), &config, view).unwrap();
        let service = gate.layer().layer(service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        }));
        let status = async |header: String| {
            let request = Request::get("/paid").header(PAYMENT_SIGNATURE, header).body(()).unwrap();
            service.clone().oneshot(request).await.unwrap().status()
        };
        // Good signatures, but no channel and so no deposit: they earn no table.
        for number in 1..=2 * u128::from(PROVEN_AFTER) {
            assert_ne!(status(header(&stranger, &stranger, number)).await, StatusCode::OK);
        }
        for number in 1..=u128::from(PROVEN_AFTER) {
            assert!(gate.hot_keys().is_empty());
            assert_eq!(status(header(&key, &stranger, number)).await, StatusCode::PAYMENT_REQUIRED);
            assert_eq!(status(header(&key, &key, number)).await, StatusCode::OK);
        }
        while gate.hot_keys().len() < tables {
            tokio::task::yield_now().await;
        }
        for number in u128::from(PROVEN_AFTER) + 1..30 {
            assert_eq!(status(header(&key, &stranger, number)).await, StatusCode::PAYMENT_REQUIRED);
            assert_eq!(status(header(&key, &key, number)).await, StatusCode::OK);
            assert_eq!(gate.hot_keys().len(), tables);
        }
    }
}
