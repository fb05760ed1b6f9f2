//! Inverses modulo a prime close below 2²⁵⁶.
//!
//! **Owns** the division steps of Bernstein and Yang ("Fast constant-time gcd computation and modular inversion", 2019), in
//! variable time: 62 steps at a time on the low words, then once on the whole numbers. A third of the time of k256's
//! `invert_vartime`, and a verification needs several. **Promises** the inverse of every number that has one, and zero for
//! zero. **Does not** suit secrets.

/// Steps that are done on single words before the whole numbers follow.
const STEPS: u32 = 62;

/// More rounds than any input needs: 741 steps are enough for 256 bits (theorem 11.2), and a round makes [`STEPS`].
const MAX_ROUNDS: u32 = 12;

/// The low 62 bits.
const LOW: u64 = u64::MAX >> 2;

/// A number in limbs of 62 bits, from low to high; the highest one carries the sign.
type Wide = [i64; 5];

/// A prime 2²⁵⁶ − d with d below 2¹⁸⁶.
#[derive(Debug)]
pub(super) struct Modulus {
    limbs: Wide,
    /// Its inverse modulo 2⁶².
    inverse: u64,
}

impl Modulus {
    /// The modulus 2²⁵⁶ − d, where `d` is odd and given in limbs of 62 bits.
    pub(super) const fn new(d: [u64; 3]) -> Self {
        let [d0, d1, d2] = d;
        // Negative limbs keep the zeros in between; each product with one of those costs nothing.
        let limbs = [-d0.cast_signed(), -d1.cast_signed(), -d2.cast_signed(), 0, 1 << 8];
        let low = d0.wrapping_neg();
        // Newton: an odd number is its own inverse modulo 8, and each step doubles the bits.
        let mut inverse = low;
        let mut bits = 3;
        while bits < 64 {
            inverse = inverse.wrapping_mul(2u64.wrapping_sub(low.wrapping_mul(inverse)));
            bits *= 2;
        }
        Self { limbs, inverse }
    }
}

/// What 62 steps make of f and g: `2⁶² f' = u f + v g` and `2⁶² g' = q f + r g`.
struct Steps {
    u: i64,
    v: i64,
    q: i64,
    r: i64,
}

/// The inverse of `value`, which is below the modulus; of zero, zero. Limbs of 64 bits, from low to high.
#[inline]
pub(super) fn invert(value: [u64; 4], modulus: &Modulus) -> [u64; 4] {
    // d · value = f and e · value = g modulo the modulus, all along.
    let (mut f, mut g) = (modulus.limbs, split(value));
    let (mut d, mut e): (Wide, Wide) = ([0; 5], [1, 0, 0, 0, 0]);
    carry(&mut f);
    let mut delta = 1;
    for _ in 0..MAX_ROUNDS {
        let steps;
        (delta, steps) = divide(delta, f[0].cast_unsigned(), g[0].cast_unsigned());
        apply_modulo(&mut d, &mut e, &steps, modulus);
        apply(&mut f, &mut g, &steps);
        if g.iter().fold(0, |all, limb| all | limb) == 0 {
            break;
        }
    }
    // f is 1 or -1 now, or the modulus itself where the value was zero and d still is.
    let [.., top] = f;
    normalize(d, top < 0, modulus)
}

/// 62 steps on the low words of f and g: f is odd, and both are complete as far as 62 steps look.
#[inline(always)]
fn divide(mut delta: i64, mut f: u64, mut g: u64) -> (i64, Steps) {
    let (mut u, mut v, mut q, mut r) = (1u64, 0u64, 0u64, 1u64);
    let mut left = STEPS;
    loop {
        // Steps that only halve an even g, as many as there are.
        let zeros = (g | (u64::MAX << left)).trailing_zeros();
        g >>= zeros;
        u <<= zeros;
        v <<= zeros;
        delta += i64::from(zeros);
        left -= zeros;
        if left == 0 {
            break;
        }
        if delta > 0 {
            delta = -delta;
            (f, g) = (g, f.wrapping_neg());
            (u, q) = (q, u.wrapping_neg());
            (v, r) = (r, v.wrapping_neg());
        }
        // Until delta is positive again each step adds f to g or does not, and halves: at once, the multiple of f that
        // makes as many low bits of g zero, six at most. f (2 - f²) is the inverse of f modulo 2⁶.
        let bits = (1 - delta).min(i64::from(left)).min(6);
        let mask = (1u64 << bits) - 1;
        let multiple = f.wrapping_mul(f.wrapping_mul(f).wrapping_sub(2)).wrapping_mul(g) & mask;
        g = g.wrapping_add(f.wrapping_mul(multiple));
        q = q.wrapping_add(u.wrapping_mul(multiple));
        r = r.wrapping_add(v.wrapping_mul(multiple));
    }
    let [u, v, q, r] = [u, v, q, r].map(u64::cast_signed);
    (delta, Steps { u, v, q, r })
}

/// The steps on f and g; the division by 2⁶² leaves no remainder.
#[inline(always)]
fn apply(f: &mut Wide, g: &mut Wide, steps: &Steps) {
    let [f0, f1, f2, f3, f4] = *f;
    let [g0, g1, g2, g3, g4] = *g;
    let row = |a: i64, b: i64| {
        let mut sum = (product(a, f0) + product(b, g0)) >> STEPS;
        let mut limb = |f: i64, g: i64| {
            sum += product(a, f) + product(b, g);
            let low = low_62(sum);
            sum >>= STEPS;
            low
        };
        let [r0, r1, r2, r3] = [limb(f1, g1), limb(f2, g2), limb(f3, g3), limb(f4, g4)];
        [r0, r1, r2, r3, low_64(sum)]
    };
    (*f, *g) = (row(steps.u, steps.v), row(steps.q, steps.r));
}

/// The steps on d and e modulo the modulus. Both stay between twice the negative modulus and the modulus.
#[inline(always)]
fn apply_modulo(d: &mut Wide, e: &mut Wide, steps: &Steps, modulus: &Modulus) {
    let [d0, d1, d2, d3, d4] = *d;
    let [e0, e1, e2, e3, e4] = *e;
    let [m0, m1, m2, m3, m4] = modulus.limbs;
    let row = |a: i64, b: i64| {
        let mut sum = product(a, d0) + product(b, e0);
        // One modulus is added to what is negative first, then as many are taken away as make the low bits zero.
        let lift = (a & (d4 >> 63)) + (b & (e4 >> 63));
        let excess = modulus.inverse.wrapping_mul(low_64(sum).cast_unsigned()).wrapping_add(lift.cast_unsigned()) & LOW;
        let times = lift - excess.cast_signed();
        sum += product(m0, times);
        sum >>= STEPS;
        let mut limb = |d: i64, e: i64, m: i64| {
            sum += product(a, d) + product(b, e) + product(m, times);
            let low = low_62(sum);
            sum >>= STEPS;
            low
        };
        let [r0, r1, r2, r3] = [limb(d1, e1, m1), limb(d2, e2, m2), limb(d3, e3, m3), limb(d4, e4, m4)];
        [r0, r1, r2, r3, low_64(sum)]
    };
    (*d, *e) = (row(steps.u, steps.v), row(steps.q, steps.r));
}

/// `d` or `-d`, from between twice the negative modulus and the modulus to between zero and the modulus.
fn normalize(mut d: Wide, negate: bool, modulus: &Modulus) -> [u64; 4] {
    let lift = |d: &mut Wide| {
        let [.., top] = *d;
        if top < 0 {
            d.iter_mut().zip(modulus.limbs).for_each(|(limb, more)| *limb += more);
            carry(d);
        }
    };
    lift(&mut d);
    if negate {
        d.iter_mut().for_each(|limb| *limb = -*limb);
        carry(&mut d);
    }
    lift(&mut d);
    let [d0, d1, d2, d3, d4] = d.map(i64::cast_unsigned);
    [d0 | (d1 << 62), (d1 >> 2) | (d2 << 60), (d2 >> 4) | (d3 << 58), (d3 >> 6) | (d4 << 56)]
}

/// Brings all limbs but the highest between zero and 2⁶².
fn carry(value: &mut Wide) {
    let mut over = 0;
    let [low @ .., top] = value;
    for limb in low {
        let sum = *limb + over;
        over = sum >> STEPS;
        *limb = (sum.cast_unsigned() & LOW).cast_signed();
    }
    *top += over;
}

/// A number below 2²⁵⁶ in limbs of 62 bits.
fn split([v0, v1, v2, v3]: [u64; 4]) -> Wide {
    let limbs = [v0, (v0 >> 62) | (v1 << 2), (v1 >> 60) | (v2 << 4), (v2 >> 58) | (v3 << 6), v3 >> 56];
    limbs.map(|limb| (limb & LOW).cast_signed())
}

#[inline(always)]
fn product(a: i64, b: i64) -> i128 {
    i128::from(a) * i128::from(b)
}

#[inline(always)]
fn low_62(sum: i128) -> i64 {
    (low_64(sum).cast_unsigned() & LOW).cast_signed()
}

#[inline(always)]
fn low_64(sum: i128) -> i64 {
    i64::from_le_bytes(first_half(sum.to_le_bytes()))
}

#[inline(always)]
fn first_half([b0, b1, b2, b3, b4, b5, b6, b7, ..]: [u8; 16]) -> [u8; 8] {
    [b0, b1, b2, b3, b4, b5, b6, b7]
}
