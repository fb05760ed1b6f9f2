//! Numbers modulo the field's prime, p = 2²⁵⁶ − 2³² − 977.
//!
//! **Owns** the arithmetic of coordinates on the hot path. Four 64-bit limbs, where every value below 2²⁵⁶ stands for its
//! remainder: there is no magnitude to keep track of, a table entry is read as it lies in memory, and a product costs two
//! thirds of what k256's five limbs of 52 bits cost. **Promises** that every operation is right for all values of its
//! arguments; what it computes is compared with k256's `FieldElement` by test. **Does not** run in constant time: everything
//! here is public.

use super::inverse::{self, Modulus};

/// 2²⁵⁶ − p: what a carry out of the highest limb is worth.
const FOLD: u64 = 0x1_0000_03d1;

/// p.
const PRIME: Modulus = Modulus::new([FOLD, 0, 0]);

/// A remainder modulo p, as any number below 2²⁵⁶ that leaves it; limbs from low to high.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fe([u64; 4]);

impl Fe {
    pub(super) const ZERO: Self = Self([0; 4]);
    pub(super) const ONE: Self = Self([1, 0, 0, 0]);

    /// A number below 2²⁵⁶.
    pub(super) const fn from_limbs(limbs: [u64; 4]) -> Self {
        Self(limbs)
    }

    /// A number below 2²⁵⁶, big endian.
    pub(super) fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(limbs_of(bytes))
    }

    /// The remainder itself, below p.
    pub(super) fn canonical(self) -> [u64; 4] {
        // At most one p is too much, and adding 2²⁵⁶ − p carries exactly then.
        let (sum, carry) = add_small(self.0, FOLD);
        if carry { sum } else { self.0 }
    }

    pub(super) fn is_zero(self) -> bool {
        self.canonical() == [0; 4]
    }

    pub(super) fn is_odd(self) -> bool {
        let [low, ..] = self.canonical();
        low & 1 == 1
    }

    #[inline(always)]
    pub(super) fn add(self, other: Self) -> Self {
        let [a0, a1, a2, a3] = self.0;
        let [b0, b1, b2, b3] = other.0;
        let (r0, carry) = a0.carrying_add(b0, false);
        let (r1, carry) = a1.carrying_add(b1, carry);
        let (r2, carry) = a2.carrying_add(b2, carry);
        let (r3, carry) = a3.carrying_add(b3, carry);
        let (folded, again) = add_small([r0, r1, r2, r3], if carry { FOLD } else { 0 });
        // Having carried once more it is below FOLD, so the lowest limb takes another FOLD.
        let [r0, r1, r2, r3] = folded;
        Self([r0.wrapping_add(if again { FOLD } else { 0 }), r1, r2, r3])
    }

    #[inline(always)]
    pub(super) fn sub(self, other: Self) -> Self {
        let [a0, a1, a2, a3] = self.0;
        let [b0, b1, b2, b3] = other.0;
        let (r0, borrow) = a0.borrowing_sub(b0, false);
        let (r1, borrow) = a1.borrowing_sub(b1, borrow);
        let (r2, borrow) = a2.borrowing_sub(b2, borrow);
        let (r3, borrow) = a3.borrowing_sub(b3, borrow);
        let (r0, borrow) = r0.borrowing_sub(if borrow { FOLD } else { 0 }, false);
        let (r1, borrow) = r1.borrowing_sub(0, borrow);
        let (r2, borrow) = r2.borrowing_sub(0, borrow);
        let (r3, borrow) = r3.borrowing_sub(0, borrow);
        // Having borrowed once more it is at least 2²⁵⁶ − FOLD, so the lowest limb gives another FOLD.
        Self([r0.wrapping_sub(if borrow { FOLD } else { 0 }), r1, r2, r3])
    }

    /// Its negative, or itself, without a branch that nobody could predict.
    #[inline(always)]
    pub(super) fn negate_if(self, negate: bool) -> Self {
        let mask = 0u64.wrapping_sub(u64::from(negate));
        let Self([n0, n1, n2, n3]) = Self::ZERO.sub(self);
        let [a0, a1, a2, a3] = self.0;
        let pick = |a: u64, n: u64| a ^ ((a ^ n) & mask);
        Self([pick(a0, n0), pick(a1, n1), pick(a2, n2), pick(a3, n3)])
    }

    #[inline(always)]
    pub(super) fn double(self) -> Self {
        self.add(self)
    }

    #[inline]
    pub(super) fn mul(self, other: Self) -> Self {
        reduce(mul_wide(&self.0, &other.0))
    }

    #[inline]
    pub(super) fn square(self) -> Self {
        reduce(square_wide(&self.0))
    }

    /// The multiplicative inverse; of zero, zero.
    pub(super) fn invert(self) -> Self {
        Self(inverse::invert(self.canonical(), &PRIME))
    }
}

impl PartialEq for Fe {
    fn eq(&self, other: &Self) -> bool {
        self.canonical() == other.canonical()
    }
}

/// Limbs, from low to high, of a number in big endian.
pub(super) fn limbs_of(bytes: &[u8; 32]) -> [u64; 4] {
    let (words, _) = bytes.as_chunks::<8>();
    let word = |index: usize| words.get(index).map_or(0, |word| u64::from_be_bytes(*word));
    [word(3), word(2), word(1), word(0)]
}

/// `a + b`, and whether it carried.
#[inline(always)]
fn add_small(a: [u64; 4], b: u64) -> ([u64; 4], bool) {
    let [a0, a1, a2, a3] = a;
    let (r0, carry) = a0.carrying_add(b, false);
    let (r1, carry) = a1.carrying_add(0, carry);
    let (r2, carry) = a2.carrying_add(0, carry);
    let (r3, carry) = a3.carrying_add(0, carry);
    ([r0, r1, r2, r3], carry)
}

/// `a + b · c + carry` as a low and a high limb. It cannot overflow: (2⁶⁴ − 1)² + 2 (2⁶⁴ − 1) = 2¹²⁸ − 1.
#[inline(always)]
fn mac(a: u64, b: u64, c: u64, carry: u64) -> (u64, u64) {
    b.carrying_mul_add(c, a, carry)
}

/// The whole product.
#[inline(always)]
pub(super) fn mul_wide(a: &[u64; 4], b: &[u64; 4]) -> [u64; 8] {
    let [b0, b1, b2, b3] = *b;
    let row = |a: u64, [r0, r1, r2, r3]: [u64; 4]| {
        let (r0, carry) = mac(r0, a, b0, 0);
        let (r1, carry) = mac(r1, a, b1, carry);
        let (r2, carry) = mac(r2, a, b2, carry);
        let (r3, carry) = mac(r3, a, b3, carry);
        (r0, [r1, r2, r3, carry])
    };
    let [a0, a1, a2, a3] = *a;
    let (p0, rest) = row(a0, [0; 4]);
    let (p1, rest) = row(a1, rest);
    let (p2, rest) = row(a2, rest);
    let (p3, [p4, p5, p6, p7]) = row(a3, rest);
    [p0, p1, p2, p3, p4, p5, p6, p7]
}

/// The whole square: each product of two different limbs is computed once and counted twice.
#[inline(always)]
fn square_wide(a: &[u64; 4]) -> [u64; 8] {
    let [a0, a1, a2, a3] = *a;
    let (p1, carry) = mac(0, a0, a1, 0);
    let (p2, carry) = mac(0, a0, a2, carry);
    let (p3, p4) = mac(0, a0, a3, carry);
    let (p3, carry) = mac(p3, a1, a2, 0);
    let (p4, p5) = mac(p4, a1, a3, carry);
    let (p5, p6) = mac(p5, a2, a3, 0);
    let p7 = p6 >> 63;
    let p6 = (p6 << 1) | (p5 >> 63);
    let p5 = (p5 << 1) | (p4 >> 63);
    let p4 = (p4 << 1) | (p3 >> 63);
    let p3 = (p3 << 1) | (p2 >> 63);
    let p2 = (p2 << 1) | (p1 >> 63);
    let p1 = p1 << 1;
    let (p0, high) = mac(0, a0, a0, 0);
    let (p1, carry) = p1.carrying_add(high, false);
    let (low, high) = mac(0, a1, a1, 0);
    let (p2, carry) = p2.carrying_add(low, carry);
    let (p3, carry) = p3.carrying_add(high, carry);
    let (low, high) = mac(0, a2, a2, 0);
    let (p4, carry) = p4.carrying_add(low, carry);
    let (p5, carry) = p5.carrying_add(high, carry);
    let (low, high) = mac(0, a3, a3, 0);
    let (p6, carry) = p6.carrying_add(low, carry);
    // A square is below 2⁵¹², so nothing carries out of it.
    let p7 = p7.wrapping_add(high).wrapping_add(u64::from(carry));
    [p0, p1, p2, p3, p4, p5, p6, p7]
}

/// A number below 2⁵¹², folded below 2²⁵⁶.
#[inline(always)]
fn reduce(wide: [u64; 8]) -> Fe {
    let [p0, p1, p2, p3, p4, p5, p6, p7] = wide;
    let (r0, carry) = mac(p0, p4, FOLD, 0);
    let (r1, carry) = mac(p1, p5, FOLD, carry);
    let (r2, carry) = mac(p2, p6, FOLD, carry);
    let (r3, top) = mac(p3, p7, FOLD, carry);
    // `top` is at most FOLD, so what is added now is at most FOLD², a little above 2⁶⁴.
    let (r0, carry) = mac(r0, top, FOLD, 0);
    let (r1, carry) = r1.overflowing_add(carry);
    let (r2, carry) = r2.carrying_add(0, carry);
    let (r3, carry) = r3.carrying_add(0, carry);
    // Having carried it is below FOLD², so that its second limb, at most 1, takes the carry of another FOLD.
    let (r0, last) = r0.overflowing_add(if carry { FOLD } else { 0 });
    Fe([r0, r1.wrapping_add(u64::from(last)), r2, r3])
}

#[cfg(test)]
pub(super) mod tests {
    use k256::elliptic_curve::hazmat::FieldArithmetic;
    use k256::{FieldBytes, Secp256k1, U256};
    use proptest::prelude::*;

    use super::*;

    /// The same numbers by somebody else.
    type Theirs = <Secp256k1 as FieldArithmetic>::FieldElement;

    /// Numbers below 2²⁵⁶, with limbs at which carries turn more often than not.
    pub(in crate::protocol::hot) fn limbs() -> impl Strategy<Value = [u64; 4]> {
        let edge = prop::sample::select(vec![
            0,
            1,
            FOLD - 1,
            FOLD,
            FOLD + 1,
            1 << 63,
            u64::MAX - FOLD,
            u64::MAX - 1,
            u64::MAX,
        ]);
        let near_p = (0..3 * FOLD).prop_map(|below| [u64::MAX - below, u64::MAX, u64::MAX, u64::MAX]);
        let small = (0..3 * FOLD).prop_map(|low| [low, 0, 0, 0]);
        prop_oneof![
            4 => prop::array::uniform4(prop_oneof![edge, any::<u64>()]),
            1 => near_p,
            1 => small,
        ]
    }

    pub(in crate::protocol::hot) fn big_endian([l0, l1, l2, l3]: [u64; 4]) -> [u8; 32] {
        let bytes: Vec<u8> = [l3, l2, l1, l0].iter().flat_map(|limb| limb.to_be_bytes()).collect();
        bytes.try_into().unwrap()
    }

    fn theirs(ours: Fe) -> Theirs {
        let bytes = FieldBytes::from(big_endian(ours.0));
        Option::from(Theirs::from_bytes(&bytes)).unwrap_or_else(|| {
            let rest = U256::from_be_slice(&bytes).wrapping_add(&U256::from_u64(FOLD));
            Option::from(Theirs::from_bytes(&rest.to_be_bytes().into())).unwrap()
        })
    }

    #[track_caller]
    fn same(ours: Fe, other: Theirs) {
        assert_eq!(big_endian(ours.canonical()), <[u8; 32]>::from(other.normalize().to_bytes()), "{ours:x?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn sums_products_and_the_rest_are_k256s(a in limbs(), b in limbs()) {
            let (a, b) = (Fe(a), Fe(b));
            let (x, y) = (theirs(a), theirs(b));
            same(a, x);
            same(a.add(b), x + y);
            same(a.double(), x + x);
            same(a.sub(b), x + y.negate(1));
            same(a.negate_if(true), x.negate(1));
            same(a.negate_if(false), x);
            same(a.mul(b), x * y);
            same(a.square(), x.square());
            same(a.sub(b).mul(b.sub(a)).add(a.square()), (x + y.negate(1)) * (y + x.negate(1)) + x.square());
            prop_assert_eq!(a.is_zero(), bool::from(x.normalizes_to_zero()));
            prop_assert_eq!(a.is_odd(), bool::from(x.normalize().is_odd()));
            prop_assert_eq!(a == b, x.normalize() == y.normalize());
        }

        #[test]
        fn inverses_are_k256s(a in limbs()) {
            let a = Fe(a);
            same(a.invert(), Option::from(theirs(a).invert()).unwrap_or(Theirs::ZERO));
        }
    }

    #[test]
    fn zero_and_p_are_the_same() {
        let p = Fe([u64::MAX - FOLD + 1, u64::MAX, u64::MAX, u64::MAX]);
        let one_more = p.add(Fe::ONE);
        assert!(p.is_zero() && p == Fe::ZERO && !p.is_odd() && p.invert() == Fe::ZERO);
        assert!(one_more == Fe::ONE && one_more.is_odd() && one_more.invert() == Fe::ONE);
        assert!(Fe::from_bytes(&big_endian(p.0)).is_zero());
    }

    #[test]
    fn every_fold_that_carries_again_is_right() {
        // The largest of everything, where the second and third carries come.
        let most = [Fe([u64::MAX; 4]), Fe([u64::MAX - FOLD, u64::MAX, u64::MAX, u64::MAX]), Fe([0, 0, 0, 1 << 63])];
        for a in most {
            for b in most {
                same(a.add(b), theirs(a) + theirs(b));
                same(Fe::ZERO.sub(a).sub(b), theirs(a).negate(1) + theirs(b).negate(1));
                same(a.mul(b), theirs(a) * theirs(b));
            }
        }
        // The last fold of a product: the sum is 2²⁵⁶ + FOLD² - FOLD - 1 - x, so that it carries, and from this x on, for
        // FOLD numbers, the last FOLD makes the lowest limb carry too.
        let first = FOLD.wrapping_mul(FOLD) - FOLD;
        for x in [0, 1, first - 1, first, first + 1, first + FOLD - 1, first + FOLD] {
            let low = [u64::MAX - x, u64::MAX, u64::MAX, u64::MAX];
            let [l0, l1, l2, l3] = low;
            let folded = reduce([l0, l1, l2, l3, u64::MAX, u64::MAX, u64::MAX, u64::MAX]);
            same(folded, theirs(Fe(low)) + theirs(Fe([u64::MAX; 4])) * Theirs::from_u64(FOLD));
        }
    }
}
