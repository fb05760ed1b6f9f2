//! Numbers modulo the group's order n, taken apart for table lookups.
//!
//! **Owns** the inverse of `s`, the split of a multiple into two halves by the curve's endomorphism, and signed digits.
//! **Promises** that digits and halves add up to the number. **Does not** multiply: products modulo n are k256's.

use k256::Scalar;
use k256::elliptic_curve::PrimeField as _;

use super::field::{Fe, limbs_of, mul_wide};
use super::inverse::{self, Modulus};

/// n.
const ORDER: Modulus = Modulus::new([0x2d_a173_2fc9_bebf, 0x1544_8c65_42dd_7f11, 0x14]);

/// β: the endomorphism takes (x, y) to (βx, y), and every point to its λ-fold.
pub(super) const BETA: Fe =
    Fe::from_limbs([0xc139_6c28_7195_01ee, 0x9cf0_4975_12f5_8995, 0x6e64_479e_ac34_34e9, 0x7ae9_6a2b_657c_0710]);

/// The shortest (i, j) with i + jλ = 0 modulo n are (a₁, -b₁) and (a₂, a₁), with these three numbers (Gallant, Lambert and
/// Vanstone, "Faster point multiplication on elliptic curves with efficient endomorphisms", 2001, section 4).
const A1: [u64; 4] = [0xe86c_90e4_9284_eb15, 0x3086_d221_a7d4_6bcd, 0, 0];
const B1: [u64; 4] = [0x6f54_7fa9_0abf_e4c3, 0xe443_7ed6_010e_8828, 0, 0];
const A2: [u64; 4] = [0x57c1_108d_9d44_cfd8, 0x14ca_50f7_a8e2_f3f6, 1, 0];

/// 2³⁸⁴ a₁ / n and 2³⁸⁴ b₁ / n, rounded.
const A1_BY_N: [u64; 4] = [0xe893_209a_45db_b031, 0x3daa_8a14_71e8_ca7f, 0xe86c_90e4_9284_eb15, 0x3086_d221_a7d4_6bcd];
const B1_BY_N: [u64; 4] = [0x1571_b4ae_8ac4_7f71, 0x2212_08ac_9df5_06c6, 0x6f54_7fa9_0abf_e4c4, 0xe443_7ed6_010e_8828];

/// Limbs of 64 bits, from low to high.
pub(super) fn limbs(scalar: &Scalar) -> [u64; 4] {
    limbs_of(&scalar.to_repr().into())
}

/// The inverse modulo n; of zero, zero.
pub(super) fn invert(scalar: &Scalar) -> Scalar {
    let [i0, i1, i2, i3] = inverse::invert(limbs(scalar), &ORDER).map(u64::to_be_bytes);
    let mut bytes = [0u8; 32];
    let (words, _) = bytes.as_chunks_mut::<8>();
    words.copy_from_slice(&[i3, i2, i1, i0]);
    Option::from(Scalar::from_repr(bytes.into())).expect("an inverse is below the modulus")
}

/// One half of a multiple: a sign and a number below 2¹²⁸.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Half {
    pub(super) negative: bool,
    pub(super) size: u128,
}

/// `(i, j)` with `i + jλ = k` modulo n, and neither above 0.64 times 2¹²⁸ (half of a₁ + a₂).
pub(super) fn halves(k: &Scalar) -> (Half, Half) {
    let k = limbs(k);
    let c1 = share(&k, &A1_BY_N);
    let c2 = share(&k, &B1_BY_N);
    // Modulo 2²⁵⁶, which is as good as the numbers themselves: the results are small.
    let i = sub(sub(k, product(&c1, &A1)), product(&c2, &A2));
    let j = sub(product(&c1, &B1), product(&c2, &A1));
    (half(i), half(j))
}

/// k times a fraction that is given in 2⁻³⁸⁴, rounded.
fn share(k: &[u64; 4], fraction: &[u64; 4]) -> [u64; 4] {
    let [.., p5, p6, p7] = mul_wide(k, fraction);
    let (low, carry) = p6.overflowing_add(p5 >> 63);
    [low, p7.wrapping_add(u64::from(carry)), 0, 0]
}

fn product(a: &[u64; 4], b: &[u64; 4]) -> [u64; 4] {
    let [p0, p1, p2, p3, ..] = mul_wide(a, b);
    [p0, p1, p2, p3]
}

fn sub([a0, a1, a2, a3]: [u64; 4], [b0, b1, b2, b3]: [u64; 4]) -> [u64; 4] {
    let (r0, borrow) = a0.borrowing_sub(b0, false);
    let (r1, borrow) = a1.borrowing_sub(b1, borrow);
    let (r2, borrow) = a2.borrowing_sub(b2, borrow);
    [r0, r1, r2, a3.wrapping_sub(b3).wrapping_sub(u64::from(borrow))]
}

/// A number modulo 2²⁵⁶ that is small, whichever sign it has.
fn half(value: [u64; 4]) -> Half {
    let [.., top] = value;
    let negative = top >> 63 == 1;
    let [low, high, ..] = if negative { sub([0; 4], value) } else { value };
    Half { negative, size: (u128::from(high) << 64) | u128::from(low) }
}

/// A signed digit of a window: a size and whether it counts negatively.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digit {
    pub(super) negative: bool,
    pub(super) size: u64,
}

/// The digits of one number, windows of `WIDTH` bits from low to high, sizes from 0 to 2^(WIDTH - 1). What is left of the
/// number above the windows that are taken is lost.
#[derive(Debug)]
pub(super) struct Digits<const WIDTH: u32> {
    rest: [u64; 4],
    carry: u64,
}

impl<const WIDTH: u32> Digits<WIDTH> {
    pub(super) fn new(rest: [u64; 4]) -> Self {
        Self { rest, carry: 0 }
    }

    pub(super) fn of_half(half: Half) -> Self {
        let [low, high] = [half.size, half.size >> 64].map(low_limb);
        Self::new([low, high, 0, 0])
    }

    /// The next window's digit.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Digit {
        let [r0, r1, r2, r3] = self.rest;
        let raw = (r0 & ((1 << WIDTH) - 1)) + self.carry;
        let up = 64 - WIDTH;
        self.rest = [(r0 >> WIDTH) | (r1 << up), (r1 >> WIDTH) | (r2 << up), (r2 >> WIDTH) | (r3 << up), r3 >> WIDTH];
        // The upper half of the sizes counts from the next window down.
        let negative = raw > 1 << (WIDTH - 1);
        self.carry = u64::from(negative);
        Digit { negative, size: if negative { (1 << WIDTH) - raw } else { raw } }
    }
}

fn low_limb(value: u128) -> u64 {
    let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = value.to_le_bytes();
    u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7])
}

#[cfg(test)]
mod tests {
    use k256::elliptic_curve::ops::Reduce as _;
    use k256::elliptic_curve::point::AffineCoordinates as _;
    use k256::{FieldBytes, ProjectivePoint};
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::hot::field::tests::{big_endian, limbs as any_limbs};

    const LAMBDA: [u64; 4] =
        [0xdf02_967c_1b23_bd72, 0x122e_22ea_2081_6678, 0xa526_1c02_8812_645a, 0x5363_ad4c_c05c_30e0];

    fn scalar(limbs: [u64; 4]) -> Scalar {
        Scalar::reduce(&FieldBytes::from(big_endian(limbs)))
    }

    fn value(half: Half) -> Scalar {
        let size = Scalar::from(half.size);
        if half.negative { -size } else { size }
    }

    fn check_halves(k: Scalar) {
        let (i, j) = halves(&k);
        assert_eq!(value(i) + value(j) * scalar(LAMBDA), k);
        // What the digits of 26 windows have room for: 0.64 · 2¹²⁸.
        assert!(i.size < 164 << 120 && j.size < 164 << 120, "{i:?} {j:?}");
    }

    /// The digits' sum, and whether all were in range and none left over.
    fn digits_of<const WIDTH: u32>(limbs: [u64; 4], windows: usize) -> Scalar {
        let mut digits = Digits::<WIDTH>::new(limbs);
        let mut weight = Scalar::ONE;
        let mut sum = Scalar::ZERO;
        for _ in 0..windows {
            let Digit { negative, size } = digits.next();
            assert!(size <= 1 << (WIDTH - 1));
            sum += weight * if negative { -Scalar::from(size) } else { Scalar::from(size) };
            (0..WIDTH).for_each(|_| weight += weight);
        }
        assert_eq!((digits.rest, digits.carry), ([0; 4], 0));
        sum
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn halves_add_up(k in any_limbs()) {
            check_halves(scalar(k));
        }

        #[test]
        fn digits_add_up(k in any_limbs()) {
            prop_assert_eq!(digits_of::<11>(k, 24), scalar(k));
            let [low, high, ..] = k;
            // As large as a half may be.
            let half = [low, high.min(0xa3ff_ffff_ffff_ffff), 0, 0];
            prop_assert_eq!(digits_of::<5>(half, 26), scalar(half));
        }

        #[test]
        fn inverses_are_k256s(k in any_limbs()) {
            let k = scalar(k);
            prop_assert_eq!(invert(&k), Option::from(k.invert()).unwrap_or(Scalar::ZERO));
        }
    }

    #[test]
    fn halves_of_edges_add_up() {
        let lambda = scalar(LAMBDA);
        let mut power = Scalar::ONE;
        for _ in 0..256 {
            for k in [power, -power, power - Scalar::ONE, power * lambda, -power * lambda] {
                check_halves(k);
                assert_eq!(invert(&k), Option::from(k.invert()).unwrap_or(Scalar::ZERO));
            }
            power += power;
        }
        // Where the roundings turn, the halves are largest.
        for (a, b) in [(A1, B1), (A2, A1)] {
            let k = (scalar(a) + scalar(b) * lambda) * Scalar::from(2u64).invert().unwrap();
            for k in [k, k + Scalar::ONE, k - Scalar::ONE, k + lambda, k - lambda] {
                check_halves(k);
            }
        }
        assert_eq!(halves(&Scalar::ZERO), (Half { negative: false, size: 0 }, Half { negative: false, size: 0 }));
    }

    #[test]
    fn beta_does_what_lambda_does() {
        let point = ProjectivePoint::GENERATOR * Scalar::from(5u64);
        let (there, here) = ((point * scalar(LAMBDA)).to_affine(), point.to_affine());
        assert!(Fe::from_bytes(&here.x().into()).mul(BETA) == Fe::from_bytes(&there.x().into()));
        assert_eq!(here.y(), there.y());
    }
}
