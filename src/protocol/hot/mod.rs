//! Signatures of keys that sign often.
//!
//! **Owns** the verification of a signature by a key that is known beforehand, with a table of its multiples: about a
//! fifth of the time of a recovery. **Promises** the verdict of [`Signature::recover`] to the letter: what is accepted here
//! recovers to the table's signer, recovery byte and all, and what is refused is refused for the same reason.
//! **Does not** keep tables (see the gate), and is nothing for secrets: its time depends on everything it is given.
//!
//! With R = u₁ G + u₂ Q, where u₁ = z / s and u₂ = r / s, a signature (r, s, v) over z is Q's if and only if r, and not r + n,
//! is the x of R, and v tells whether its y is odd. u₁ G is the sum of 24 entries of the generator's table. u₂ is split in two
//! halves by the endomorphism, and u₂ Q is the sum of 52 entries of the key's. A sum that meets equal or opposite points on
//! its way, which whoever knows the key can bring about and nobody else, is left to [`Signature::recover`].
//!
//! One verification takes a little less than half of libsecp256k1's time and a fifth of that of k256's `verify_prehash`
//! (`cargo bench --bench line_rate`): half of it goes into the sum, a quarter into three inversions. Two checks cost half a
//! percent and stand between a mistake in the arithmetic here and a voucher that cannot be claimed: that s⁻¹ is the inverse
//! of s, by k256's product, and that the sum is on the curve. What fails one goes the long way.

mod field;
mod inverse;
mod scalar;
mod sum;
mod table;

use std::fmt;

use k256::Scalar;
use k256::elliptic_curve::PrimeField as _;
use k256::elliptic_curve::ops::Reduce as _;
use k256::elliptic_curve::point::DecompressPoint as _;
use k256::{AffinePoint, FieldBytes};

use super::bytes::{Address, Hash};
use super::signature::{Signature, SignatureError, Strict};
use sum::{Point, Points};
use table::KeyMultiples;

/// Why a signature is not the known key's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSigned {
    /// It names no signer at all.
    #[error(transparent)]
    Form(#[from] SignatureError),
    /// It is another key's, or over something else.
    #[error("signed by another key")]
    OtherSigner,
}

/// A key's multiples, and the account it controls.
pub struct KeyTable {
    signer: Address,
    multiples: KeyMultiples,
}

impl KeyTable {
    /// What a table takes, bytes, without what the allocator adds.
    pub const BYTES: usize = size_of::<Self>() + table::KEY_TABLE_BYTES;

    /// The table of the key that made this signature over `digest`. Takes some tenths of a millisecond.
    pub fn recover(digest: Hash, signature: &Signature) -> Result<Self, SignatureError> {
        let key = signature.recover_key(digest)?;
        let point = key.as_affine();
        Ok(Self { signer: super::signature::address_of(&key), multiples: KeyMultiples::new((*point).into()) })
    }

    /// Does what the first verification of a process would have to do before: builds the generator's table, 1.5 MiB that
    /// all keys share, in some ten milliseconds.
    pub fn prepare() {
        table::prepare();
    }

    /// The account whose key this is.
    pub fn signer(&self) -> Address {
        self.signer
    }

    /// Whether the key made this signature over `digest`: says so exactly where [`Signature::recover`] names
    /// [`Self::signer`], and otherwise returns the error of that, if it has one.
    pub fn verify(&self, digest: Hash, signature: &Signature) -> Result<(), NotSigned> {
        let Strict { r, s, odd } = signature.strict()?;
        let inverse = scalar::invert(&s);
        let z = Scalar::reduce(&FieldBytes::from(digest.0));
        let u1 = z * inverse;
        let sum = self.combine(&u1, &(r * inverse)).filter(|point| point.is_on_curve() && s * inverse == Scalar::ONE);
        let Some(point) = sum else { return self.recovers(digest, signature) };
        if point.x.canonical() == scalar::limbs(&r) && point.y.is_odd() == odd {
            return Ok(());
        }
        // A good signature never comes here. No point may have this x, or the key that fits may be infinity: where R is u₁ G.
        let named = AffinePoint::decompress(&r.to_repr(), u8::from(odd).into());
        if named.is_none().into() {
            return Err(SignatureError::NoKey.into());
        }
        match generated(&u1) {
            Some(point) if point.x.canonical() == scalar::limbs(&r) && point.y.is_odd() == odd => {
                Err(SignatureError::NoKey.into())
            }
            Some(_) => Err(NotSigned::OtherSigner),
            None => self.recovers(digest, signature),
        }
    }

    /// `u1` times the generator and `u2` times the key. `None` where the sum needs additions this module has not.
    fn combine(&self, u1: &Scalar, u2: &Scalar) -> Option<Point> {
        let mut points = Points::new();
        table::push_generator(&mut points, scalar::limbs(u1))?;
        self.multiples.push(&mut points, scalar::halves(u2))?;
        points.sum()
    }

    /// The long way.
    #[cold]
    fn recovers(&self, digest: Hash, signature: &Signature) -> Result<(), NotSigned> {
        if signature.recover(digest)? == self.signer { Ok(()) } else { Err(NotSigned::OtherSigner) }
    }
}

/// `u1` times the generator; see [`KeyTable::combine`].
fn generated(u1: &Scalar) -> Option<Point> {
    let mut points = Points::new();
    table::push_generator(&mut points, scalar::limbs(u1))?;
    points.sum()
}

impl fmt::Debug for KeyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyTable").field("signer", &self.signer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use k256::ProjectivePoint;
    use k256::elliptic_curve::point::AffineCoordinates as _;
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::LocalKey;
    use field::tests::{big_endian, limbs};

    fn table(secret: [u8; 32]) -> (Scalar, KeyTable) {
        let key = LocalKey::from_bytes(&secret).unwrap();
        let digest = Hash([9; 32]);
        let table = KeyTable::recover(digest, &key.sign(digest)).unwrap();
        assert_eq!(table.signer(), key.address());
        (Scalar::reduce(&FieldBytes::from(secret)), table)
    }

    /// The key 1, whose point is the generator.
    fn one() -> KeyTable {
        let mut secret = [0; 32];
        secret[31] = 1;
        table(secret).1
    }

    /// Whether the sum was found, and if so that it is k256's.
    fn found(table: &KeyTable, secret: Scalar, u1: Scalar, u2: Scalar) -> bool {
        let expected = (ProjectivePoint::GENERATOR * (u1 + u2 * secret)).to_affine();
        let Some(point) = table.combine(&u1, &u2) else { return false };
        assert_eq!(big_endian(point.x.canonical()), <[u8; 32]>::from(expected.x()));
        assert_eq!(big_endian(point.y.canonical()), <[u8; 32]>::from(expected.y()));
        true
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn sums_are_k256s(u1 in limbs(), u2 in limbs(), key in 0usize..3) {
            static KEYS: std::sync::LazyLock<[(Scalar, KeyTable); 3]> =
                std::sync::LazyLock::new(|| [table([7; 32]), table([0xa5; 32]), table([1; 32])]);
            let [u1, u2] = [u1, u2].map(|limbs| Scalar::reduce(&FieldBytes::from(big_endian(limbs))));
            let (secret, table) = &KEYS[key];
            let infinity = u1 + u2 * secret == Scalar::ZERO;
            prop_assert_eq!(found(table, *secret, u1, u2), !infinity);
        }
    }

    #[test]
    fn a_sum_that_meets_equal_or_opposite_points_is_left_to_others() {
        let small = |n: i64| {
            let size = Scalar::from(n.unsigned_abs());
            if n < 0 { -size } else { size }
        };
        let table = one();
        let alone = [(0, 1), (1, 0), (0, -16), (1_024, 0), (-1_024, 0)];
        let fine = [(4, 5), (4, 2_048 - 4), (1, 2), (1_024, 16), (1_024, 15), (3_000, 5_000)];
        for (u1, u2) in alone.into_iter().chain(fine) {
            assert!(found(&table, Scalar::ONE, small(u1), small(u2)), "{u1} {u2}");
        }
        // Two points that are equal, opposite; pairs whose sums are equal, opposite; nothing at all.
        for (u1, u2) in [(4, 4), (4, -4), (16, 16), (1_020 + 2_048, 4 - 1_024), (1_028, -1_028), (0, 0)] {
            assert!(!found(&table, Scalar::ONE, small(u1), small(u2)), "{u1} {u2}");
        }
    }

    #[test]
    fn a_table_takes_what_it_says() {
        assert_eq!(table::KEY_TABLE_BYTES, 26 << 10);
        assert_eq!(KeyTable::BYTES, table::KEY_TABLE_BYTES + size_of::<KeyTable>());
    }

    #[test]
    fn what_is_no_signature_makes_no_table() {
        let malformed = Signature::from_bytes([1; 65]).unwrap();
        assert_eq!(KeyTable::recover(Hash::ZERO, &malformed).map(drop), Err(SignatureError::RecoveryByte(1)));
    }

    #[test]
    fn a_table_is_printed_without_its_points() {
        let table = one();
        assert_eq!(format!("{table:?}"), format!("KeyTable {{ signer: {:?}, .. }}", table.signer()));
    }

    #[test]
    fn zero_has_no_inverse_and_breaks_nothing() {
        assert_eq!(scalar::invert(&Scalar::ZERO), Scalar::ZERO);
    }
}
