//! What one signature costs: a key's first ones by k256, those of a key that pays often by its table, and for scale
//! libsecp256k1.
//!
//! The three take turns in short rounds, so that what else the machine does hits all of them; the ratios are medians over
//! the rounds, each of which compares neighbours. Hot is the whole check from a digest and 65 bytes to the verdict; the others
//! get key and signature parsed, and do not look at a recovery byte.

use std::hint::black_box;

use k256::ecdsa::signature::hazmat::PrehashVerifier as _;
use peaje::protocol::bytes::keccak256;
use peaje::protocol::hot::KeyTable;
use peaje::protocol::{Hash, LocalKey, Signature};
use secp256k1::{Message, Secp256k1};

/// Rounds of all three.
const ROUNDS: usize = 300;

/// Signatures each verifies in a round; as many different ones are there, so that no branch is learned by heart.
const SIGNATURES: usize = 64;

/// Microseconds a signature, and ratios of times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verify {
    /// k256's `verify_prehash`.
    pub(crate) k256_us: f64,
    /// libsecp256k1's `verify_ecdsa`.
    pub(crate) libsecp256k1_us: f64,
    /// `KeyTable::verify`.
    pub(crate) hot_us: f64,
    /// How many times as fast as k256.
    pub(crate) verify_vs_k256: f64,
    /// Which part of libsecp256k1's time.
    pub(crate) verify_vs_libsecp256k1: f64,
}

/// Measures; takes some seconds.
pub(crate) fn run() -> Verify {
    let secret = [7; 32];
    let key = LocalKey::from_bytes(&secret).unwrap();
    let signed: Vec<(Hash, Signature)> = (0..SIGNATURES)
        .map(|number| {
            let digest = keccak256(&number.to_be_bytes());
            (digest, key.sign(digest))
        })
        .collect();

    KeyTable::prepare();
    let (digest, signature) = signed.first().unwrap();
    let table = KeyTable::recover(*digest, signature).unwrap();
    let hot = || {
        for (digest, signature) in black_box(&signed) {
            table.verify(*digest, signature).unwrap();
        }
    };

    let verifying = *k256::ecdsa::SigningKey::from_slice(&secret).unwrap().verifying_key();
    let parsed: Vec<_> = signed
        .iter()
        .map(|(digest, signature)| (digest.0, k256::ecdsa::Signature::from_slice(rs(signature)).unwrap()))
        .collect();
    let k256 = || {
        for (digest, signature) in black_box(&parsed) {
            verifying.verify_prehash(digest, signature).unwrap();
        }
    };

    let context = Secp256k1::verification_only();
    let public = secp256k1::PublicKey::from_slice(&verifying.to_sec1_bytes()).unwrap();
    let compact: Vec<_> = signed
        .iter()
        .map(|(digest, signature)| {
            let signature = secp256k1::ecdsa::Signature::from_compact(rs(signature)).unwrap();
            (Message::from_digest(digest.0), signature)
        })
        .collect();
    let libsecp256k1 = || {
        for (message, signature) in black_box(&compact) {
            context.verify_ecdsa(*message, signature, &public).unwrap();
        }
    };

    let (mut times, mut vs_k256, mut vs_libsecp256k1) = ([const { Vec::new() }; 3], Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let round = [micros_each(&hot), micros_each(&libsecp256k1), micros_each(&k256)];
        let [hot, libsecp256k1, k256] = round;
        vs_k256.push(k256 / hot);
        vs_libsecp256k1.push(hot / libsecp256k1);
        times.iter_mut().zip(round).for_each(|(times, time)| times.push(time));
    }
    let [hot_us, libsecp256k1_us, k256_us] = times.map(median);
    let (verify_vs_k256, verify_vs_libsecp256k1) = (median(vs_k256), median(vs_libsecp256k1));
    Verify { k256_us, libsecp256k1_us, hot_us, verify_vs_k256, verify_vs_libsecp256k1 }
}

/// The signature without its recovery byte.
fn rs(signature: &Signature) -> &[u8] {
    signature.as_bytes().get(..64).unwrap()
}

/// CPU time and not the clock's: on a busy machine a long turn is interrupted where a short one is not, and the ratio of the
/// two would flatter the short one.
fn micros_each(work: &impl Fn()) -> f64 {
    let begun = cpu_nanos();
    work();
    (cpu_nanos() - begun) / 1e3 / f64::from(u32::try_from(SIGNATURES).unwrap())
}

/// CPU time of this thread so far. The system brings the figure up to date when the thread offers to make room.
fn cpu_nanos() -> f64 {
    std::thread::yield_now();
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    spent.split_whitespace().next().unwrap().parse().unwrap()
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap()
}
