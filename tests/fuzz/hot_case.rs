//! What the fuzz target for hot keys and the differential test share: cases, and the claim that both verifiers agree.

use std::sync::LazyLock;

use k256::elliptic_curve::ops::Reduce as _;
use k256::elliptic_curve::point::AffineCoordinates as _;
use k256::elliptic_curve::scalar::IsHigh as _;
use k256::elliptic_curve::{Field as _, Group as _, PrimeField as _};
use k256::{AffinePoint, FieldBytes, ProjectivePoint, Scalar};
use peaje::protocol::hot::{KeyTable, NotSigned};
use peaje::protocol::{Hash, Signature};

/// A key whose secret is known, so that any multiples can be asked for.
pub(crate) struct Known {
    pub(crate) secret: Scalar,
    pub(crate) table: KeyTable,
}

/// Keys that meet the generator's multiples on their way, and one that does not.
pub(crate) static KEYS: LazyLock<Vec<Known>> = LazyLock::new(|| {
    let one = Scalar::ONE;
    let two = one + one;
    let half = two.invert().unwrap();
    let power = |n: u64| (0..n).fold(one, |power, _| power * two);
    // A root of unity: the endomorphism's factor, λ² + λ + 1 = 0.
    let lambda = (Scalar::ZERO - Scalar::from(3u64)).sqrt().unwrap() - one;
    let lambda = lambda * half;
    let usual = scalar_of(&[0x5a; 32]);
    [one, -one, two, -two, half, power(5), power(11), power(55), power(35).invert().unwrap(), lambda, usual]
        .map(|secret| Known { secret, table: table_of(ProjectivePoint::GENERATOR * secret) })
        .into()
});

/// Both verifiers on one signature: whether it was accepted, by both.
pub(crate) fn agree(table: &KeyTable, digest: Hash, signature: &Signature) -> bool {
    let hot = table.verify(digest, signature);
    let cold = match signature.recover(digest) {
        Ok(signer) if signer == table.signer() => Ok(()),
        Ok(_) => Err(NotSigned::OtherSigner),
        Err(error) => Err(NotSigned::Form(error)),
    };
    assert_eq!(hot, cold, "signer {}, digest {digest}, signature {:02x?}", table.signer(), signature.as_bytes());
    hot.is_ok()
}

/// The signature whose check adds `u1` times the generator and `u2` times the point, or the negative of both; `None` where
/// there is none, because the sum is infinity or its x is not below the order. It needs no secret.
pub(crate) fn craft(point: ProjectivePoint, u1: Scalar, u2: Scalar) -> Option<(Hash, Signature)> {
    let sum = ProjectivePoint::GENERATOR * u1 + point * u2;
    if bool::from(sum.is_identity()) {
        return None;
    }
    let sum = sum.to_affine();
    let r = Option::<Scalar>::from(Scalar::from_repr(sum.x()))?;
    let s = r * Option::<Scalar>::from(u2.invert())?;
    let z = u1 * s;
    let (s, odd) = if s.is_high().into() { (-s, !is_odd(&sum)) } else { (s, is_odd(&sum)) };
    Some((Hash(z.to_repr().into()), signature_of(r.to_repr().into(), s.to_repr().into(), if odd { 28 } else { 27 })))
}

/// The table of a key of which only the point is known.
pub(crate) fn table_of(point: ProjectivePoint) -> KeyTable {
    let any = (1..).find_map(|n: u64| craft(point, Scalar::from(n), Scalar::from(7 * n))).unwrap();
    KeyTable::recover(any.0, &any.1).unwrap()
}

/// `r ‖ s ‖ v`.
pub(crate) fn signature_of(r: [u8; 32], s: [u8; 32], v: u8) -> Signature {
    Signature::from_bytes([&r[..], &s[..], &[v]].concat()).unwrap()
}

pub(crate) fn is_odd(point: &AffinePoint) -> bool {
    point.y_is_odd().into()
}

/// The remainder of 32 bytes.
pub(crate) fn scalar_of(bytes: &[u8; 32]) -> Scalar {
    Scalar::reduce(&FieldBytes::from(*bytes))
}

/// A scalar of few digits, so that its sums meet others': each three bytes say which digit, its size and its sign.
pub(crate) fn sparse(width: u64, bytes: &[u8]) -> Scalar {
    let term = |bytes: &[u8]| {
        let &[place, size, sign] = bytes else { return Scalar::ZERO };
        let shift = width * (u64::from(place) % (256 / width));
        let term = (0..shift).fold(Scalar::from(1 + u64::from(size)), |term, _| term + term);
        if sign % 2 == 0 { term } else { -term }
    };
    bytes.chunks(3).map(term).sum()
}

/// One case from any bytes. Whether it was accepted; `None` where the bytes make no case.
pub(crate) fn run(data: &[u8]) -> Option<bool> {
    let (&[kind, key, flips, v], data) = data.split_first_chunk::<4>()?;
    let Known { secret, table } = KEYS.get(usize::from(key) % KEYS.len())?;
    let point = ProjectivePoint::GENERATOR * secret;
    let (digest, signature) = match kind % 4 {
        // The bytes themselves.
        0 => {
            let (digest, signature) = data.split_first_chunk::<32>()?;
            (Hash(*digest), Signature::from_bytes(signature)?)
        }
        // Any multiples.
        1 => {
            let (u1, rest) = data.split_first_chunk::<32>()?;
            craft(point, scalar_of(u1), scalar_of(rest.first_chunk::<32>()?))?
        }
        // Multiples of few digits.
        2 => {
            let (u1, u2) = data.split_at_checked(data.len() / 2)?;
            craft(point, sparse(11, u1), sparse(5, u2))?
        }
        // Any r and s over what makes the sum infinity.
        _ => {
            let (r, rest) = data.split_first_chunk::<32>()?;
            let z = -(scalar_of(r) * secret);
            (Hash(z.to_repr().into()), signature_of(*r, *rest.first_chunk::<32>()?, 27 + v % 2))
        }
    };
    let mut bytes = signature.as_bytes().to_vec();
    // One bit turned over, in every other case.
    if flips % 2 == 1 {
        let bit = usize::from(flips / 2) * 5 + usize::from(v % 5);
        if let Some(byte) = bytes.get_mut(bit / 8 % 65) {
            *byte ^= 1 << (bit % 8);
        }
    }
    Some(agree(table, digest, &Signature::from_bytes(bytes)?))
}
