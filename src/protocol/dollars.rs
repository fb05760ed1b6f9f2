//! One dollar in several tokens.
//!
//! **Owns** the conversion of amounts between tokens that are worth a dollar each and differ in their decimal places.
//! **Promises** that no conversion wraps, and that each says what it does with what a coarser token cannot express.
//! **Does not** know exchange rates: a dollar is a dollar.

use super::amount::Amount;
use super::bytes::Address;

impl Amount {
    /// The same dollars in a token with `to` decimal places instead of `from`; `None` where they are no whole number of its
    /// units, or do not fit.
    pub fn in_decimals(self, from: u8, to: u8) -> Option<Self> {
        match to.checked_sub(from) {
            Some(finer) => self.checked_mul(power(finer)?),
            None => {
                let coarser = power(from.saturating_sub(to))?;
                let exact = self.units().checked_rem(coarser) == Some(0);
                exact.then(|| self.scaled_down(1, coarser)).flatten()
            }
        }
    }

    /// The same, rounded down to whole units; the most there is where they do not fit. For sums that are shown or compared
    /// with a limit, never for what is owed.
    pub fn about_in_decimals(self, from: u8, to: u8) -> Self {
        if from == to {
            return self;
        }
        match to.checked_sub(from) {
            Some(finer) => power(finer).and_then(|finer| self.checked_mul(finer)).unwrap_or(if self.is_zero() {
                Self::ZERO
            } else {
                Self::MAX
            }),
            // A power that does not fit is more than any amount.
            None => {
                power(from.saturating_sub(to)).and_then(|coarser| self.scaled_down(1, coarser)).unwrap_or(Self::ZERO)
            }
        }
    }
}

fn power(places: u8) -> Option<u128> {
    10_u128.checked_pow(u32::from(places))
}

/// How dollars are counted where there are several tokens: in units of one of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dollars {
    /// Decimal places of what they are counted in.
    decimals: u8,
    /// Decimal places of the tokens in which a dollar has others.
    others: Vec<(Address, u8)>,
}

impl Dollars {
    /// Dollars with so many decimal places, as the first of the tokens has them. A token that is not named counts as if it
    /// had as many.
    pub fn new(decimals: u8, tokens: impl IntoIterator<Item = (Address, u8)>) -> Self {
        let others = tokens.into_iter().filter(|(_, other)| *other != decimals).collect();
        Self { decimals, others }
    }

    /// Decimal places of a dollar.
    pub fn decimals(&self) -> u8 {
        self.decimals
    }

    /// Decimal places of a token.
    pub fn decimals_of(&self, token: Address) -> u8 {
        self.others.iter().find(|(other, _)| *other == token).map_or(self.decimals, |(_, decimals)| *decimals)
    }

    /// So much of a token in dollars, rounded down.
    pub fn of(&self, token: Address, amount: Amount) -> Amount {
        amount.about_in_decimals(self.decimals_of(token), self.decimals)
    }

    /// So many dollars in a token, rounded down.
    pub fn in_token(&self, token: Address, dollars: Amount) -> Amount {
        dollars.about_in_decimals(self.decimals, self.decimals_of(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dollar_is_a_dollar_in_any_token_that_can_express_it() {
        let exact = |units, from, to| Amount::new(units).in_decimals(from, to).map(Amount::units);
        let about = |units, from, to| Amount::new(units).about_in_decimals(from, to).units();
        // Units, their decimals, those wanted; exactly, and about.
        let cases = [
            (2_000, 6, 6, Some(2_000), 2_000),
            (2_000, 6, 18, Some(2_000_000_000_000_000), 2_000_000_000_000_000),
            (2_000, 6, 3, Some(2), 2),
            (2_001, 6, 3, None, 2),
            (999, 6, 3, None, 0),
            (0, 6, 0, Some(0), 0),
            (1, 0, 38, Some(10_u128.pow(38)), 10_u128.pow(38)),
            (4, 0, 38, None, u128::MAX),
            (1, 0, 39, None, u128::MAX),
            (0, 0, 39, None, 0),
            (u128::MAX, 39, 0, None, 0),
        ];
        for (units, from, to, exactly, roughly) in cases {
            assert_eq!((exact(units, from, to), about(units, from, to)), (exactly, roughly), "{units} {from} {to}");
        }
    }

    #[test]
    fn tokens_are_counted_together_in_units_of_the_first() {
        let token = |number| Address([number; 20]);
        let dollars = Dollars::new(6, [(token(1), 6), (token(2), 18), (token(3), 2)]);
        let of = |number, units| dollars.of(token(number), Amount::new(units)).units();
        assert_eq!((of(1, 5), of(2, 5_999_999_999_999), of(3, 5)), (5, 5, 50_000));
        assert_eq!(of(4, 5), 5, "one nobody names counts as the first does");
        let back = |number| dollars.in_token(token(number), Amount::new(12_345)).units();
        assert_eq!((back(1), back(2), back(3)), (12_345, 12_345_000_000_000_000, 1));
        assert_eq!(Dollars::default().of(token(2), Amount::new(7)), Amount::new(7));
    }
}
