//! Sums of fractions of a unit, exact until they are rounded.

use crate::protocol::Amount;

/// A sum of money that need not be whole units.
#[derive(Debug)]
pub(super) struct Sum {
    whole: u128,
    /// Below the denominator.
    numerator: u128,
    denominator: u128,
}

impl Sum {
    pub(super) fn of(amount: Amount) -> Self {
        Self { whole: amount.units(), numerator: 0, denominator: 1 }
    }

    /// Adds what `count` things cost at `price` for each `per` of them. `None` where the sum does not fit, or its fraction
    /// has no denominator that does.
    pub(super) fn add(&mut self, price: Amount, per: u64, count: u64) -> Option<()> {
        let (each, part, per) = lowest(price, per)?;
        let count = u128::from(count);
        // Below 2^128, because both are below 2^64.
        let parts = part.checked_mul(count)?;
        self.add_whole(each.checked_mul(count)?)?;
        self.add_whole(parts.checked_div(per)?)?;
        self.add_fraction(parts.checked_rem(per)?, per)
    }

    /// The next whole number of units.
    pub(super) fn rounded_up(&self) -> Option<Amount> {
        self.whole.checked_add(u128::from(self.numerator > 0)).map(Amount::new)
    }

    fn add_whole(&mut self, units: u128) -> Option<()> {
        self.whole = self.whole.checked_add(units)?;
        Some(())
    }

    fn add_fraction(&mut self, numerator: u128, denominator: u128) -> Option<()> {
        let common = common_denominator(self.denominator, denominator)?;
        let ours = self.numerator.checked_mul(common.checked_div(self.denominator)?)?;
        let theirs = numerator.checked_mul(common.checked_div(denominator)?)?;
        let sum = ours.checked_add(theirs)?;
        (self.numerator, self.denominator) = (sum, common);
        // Both were below one.
        if let Some(rest) = sum.checked_sub(common) {
            self.numerator = rest;
            self.add_whole(1)?;
        }
        Some(())
    }
}

/// Whether fractions of these prices always have a denominator that fits, however they are combined.
pub(super) fn adds_up(mut prices: impl Iterator<Item = (Amount, u64)>) -> bool {
    let all = prices.try_fold(1, |common, (price, per)| {
        let (_, _, per) = lowest(price, per)?;
        common_denominator(common, per)
    });
    all.is_some()
}

/// What one thing costs, as whole units and a fraction in lowest terms: its numerator is below its denominator.
fn lowest(price: Amount, per: u64) -> Option<(u128, u128, u128)> {
    let per = u128::from(per);
    let (each, part) = (price.units().checked_div(per)?, price.units().checked_rem(per)?);
    let common = common_divisor(per, part);
    Some((each, part.checked_div(common)?, per.checked_div(common)?))
}

/// The least common multiple, if two fractions below one that have it as their denominator can be added.
fn common_denominator(a: u128, b: u128) -> Option<u128> {
    let common = a.checked_div(common_divisor(a, b))?.checked_mul(b)?;
    (common <= u128::MAX / 2).then_some(common)
}

fn common_divisor(mut a: u128, mut b: u128) -> u128 {
    while let Some(rest) = a.checked_rem(b) {
        (a, b) = (b, rest);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(base: u128, parts: &[(u128, u64, u64)]) -> Option<u128> {
        let mut sum = Sum::of(Amount::new(base));
        for (price, per, count) in parts {
            sum.add(Amount::new(*price), *per, *count)?;
        }
        sum.rounded_up().map(Amount::units)
    }

    #[test]
    fn fractions_are_added_before_they_are_rounded() {
        type Part = (u128, u64, u64);
        let cases: &[(&[Part], u128)] = &[
            (&[], 7),
            (&[(5, 2, 0)], 7),
            (&[(1, 3, 1)], 8),
            (&[(1, 3, 1), (1, 3, 1)], 8),
            (&[(1, 3, 1), (1, 3, 1), (1, 3, 1)], 8),
            (&[(1, 3, 1), (1, 3, 1), (1, 3, 2)], 9),
            (&[(1, 2, 1), (1, 3, 1), (1, 6, 1)], 8),
            (&[(1, 2, 1), (1, 3, 1), (1, 7, 1)], 8),
            (&[(1, 2, 1), (1, 3, 1), (1, 5, 1)], 9),
            (&[(2_500_000, 1_000_000, 3)], 15),
        ];
        for (parts, expected) in cases {
            assert_eq!(sum(7, parts), Some(*expected), "{parts:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_no_sum_and_what_does_is_exact() {
        let max = u128::MAX;
        assert_eq!(sum(max, &[]), Some(max));
        assert_eq!(sum(max - 1, &[(1, u64::MAX, 1)]), Some(max));
        assert_eq!(sum(max, &[(1, u64::MAX, 1)]), None);
        assert_eq!(sum(1, &[(max, 1, 1)]), None);
        assert_eq!(sum(0, &[(max, u64::MAX, u64::MAX)]), Some(max));
        // Just below three more than the whole units.
        let (per, count) = (u64::MAX - 1, u64::MAX - 2);
        let whole = max / u128::from(per) * u128::from(count);
        assert_eq!((max % u128::from(per), sum(0, &[(max, per, count)])), (3, Some(whole + 3)));
        assert_eq!(sum(0, &[(1, 0, 1)]), None);
    }

    #[test]
    fn prices_add_up_where_they_have_a_common_denominator() {
        let adds_up = |prices: &[(u128, u64)]| adds_up(prices.iter().map(|(price, per)| (Amount::new(*price), *per)));
        assert!(adds_up(&[(1, 1_000_000_000), (3, 1 << 30), (7, 1_000)]));
        // Two primes, and a third that is one too many.
        let (a, b, c) = (u64::MAX - 58, u64::MAX - 82, 3);
        assert!(adds_up(&[(1, a)]));
        assert!(!adds_up(&[(1, a), (1, b), (1, c)]));
        assert!(adds_up(&[(u128::from(b), b), (1, a)]), "a whole number of units each has no fraction");
        assert!(!adds_up(&[(1, 0)]));
    }
}
