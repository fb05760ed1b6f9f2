//! Money in the token's smallest unit.
//!
//! **Owns** arithmetic on money and its two text forms. **Promises** that no operation wraps, rounds or loses a unit:
//! every one is checked or stops at an end of the range, as its name says, and a human price that is no whole number of
//! units is refused. **Does not** know which token it counts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount of a token in atomic units (a millionth of a dollar for USDC), `0..=2^128-1`, as the contract counts.
///
/// Text is a canonical decimal string: digits only, no sign, no leading zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Amount(u128);

/// Why a text is no amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not a canonical decimal number.
    #[error("expected a whole number of atomic units in decimal digits, without sign or leading zero")]
    NotDecimal,
    /// More than 128 bits.
    #[error("the amount does not fit in 128 bits")]
    TooLarge,
    /// Not of the form `$1.25`.
    #[error("expected a price such as \"$0.002\"")]
    NotAPrice,
    /// The price has more decimal places than the token.
    #[error("the token has {decimals} decimal places, so this price cannot be charged exactly")]
    NotExact {
        /// Decimal places of the token.
        decimals: u8,
    },
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The most the contract can hold in one field.
    pub const MAX: Self = Self(u128::MAX);

    /// So many atomic units.
    pub const fn new(units: u128) -> Self {
        Self(units)
    }

    /// The number of atomic units.
    pub const fn units(self) -> u128 {
        self.0
    }

    /// Whether this is nothing.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, or `None` where it would not fit.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The sum, or the most there is where it would not fit: for totals that are shown or compared with a limit, never for
    /// what is owed.
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or `None` where `other` is larger.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// The difference, or zero where `other` is larger.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self * numerator / denominator`, rounded down; `None` where the product does not fit or `denominator` is 0.
    pub fn scaled_down(self, numerator: u128, denominator: u128) -> Option<Self> {
        self.0.checked_mul(numerator)?.checked_div(denominator).map(Self)
    }

    /// This amount so many times, or `None` where it would not fit.
    pub fn checked_mul(self, times: u128) -> Option<Self> {
        self.0.checked_mul(times).map(Self)
    }

    /// Reads a human price, `"$0.002"`, for a token with so many `decimals`. Exact or refused: no rounding.
    pub fn from_price(text: &str, decimals: u8) -> Result<Self, AmountError> {
        let number = text.strip_prefix('$').ok_or(AmountError::NotAPrice)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || number.ends_with('.') {
            return Err(AmountError::NotAPrice);
        }
        let significant = fraction.trim_end_matches('0');
        if significant.len() > usize::from(decimals) {
            return Err(AmountError::NotExact { decimals });
        }
        let padding = usize::from(decimals) - significant.len();
        let digits = format!("{whole}{significant}{}", "0".repeat(padding));
        let canonical = digits.trim_start_matches('0');
        if canonical.is_empty() { Ok(Self::ZERO) } else { canonical.parse() }
    }

    /// Writes a human price, `$0.002`, for a token with so many `decimals`; no trailing zeros beyond the cents.
    pub fn to_price(self, decimals: u8) -> String {
        let places = usize::from(decimals);
        let digits = format!("{:0>width$}", self.0, width = places + 1);
        let (whole, fraction) = digits.split_at(digits.len() - places);
        let mut fraction = fraction.trim_end_matches('0').to_owned();
        while fraction.len() < places.min(2) {
            fraction.push('0');
        }
        if fraction.is_empty() { format!("${whole}") } else { format!("${whole}.{fraction}") }
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let canonical = !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_digit())
            && (text == "0" || !text.starts_with('0'));
        if !canonical {
            return Err(AmountError::NotDecimal);
        }
        text.parse().map(Self).map_err(|_| AmountError::TooLarge)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prices_convert_exactly_or_not_at_all() {
        let cases = [
            ("$0.002", Ok(2_000)),
            ("$1", Ok(1_000_000)),
            ("$1.50", Ok(1_500_000)),
            ("$0.000001", Ok(1)),
            ("$0.0000010", Ok(1)),
            ("$0", Ok(0)),
            ("$007.5", Ok(7_500_000)),
            ("$0.0000001", Err(AmountError::NotExact { decimals: 6 })),
            ("0.002", Err(AmountError::NotAPrice)),
            ("$", Err(AmountError::NotAPrice)),
            ("$1.", Err(AmountError::NotAPrice)),
            ("$.5", Err(AmountError::NotAPrice)),
            ("$-1", Err(AmountError::NotAPrice)),
            ("$1e3", Err(AmountError::NotAPrice)),
            ("$1 ", Err(AmountError::NotAPrice)),
            ("$999999999999999999999999999999999999999", Err(AmountError::TooLarge)),
        ];
        for (text, expected) in cases {
            assert_eq!(Amount::from_price(text, 6), expected.map(Amount::new), "{text}");
        }
    }

    #[test]
    fn text_is_canonical() {
        assert_eq!("0".parse(), Ok(Amount::ZERO));
        assert_eq!("340282366920938463463374607431768211455".parse(), Ok(Amount::MAX));
        assert_eq!("340282366920938463463374607431768211456".parse::<Amount>(), Err(AmountError::TooLarge));
        for bad in ["", "00", "01", "+1", "-1", "1.0", " 1", "1e3", "0x1", "١"] {
            assert_eq!(bad.parse::<Amount>(), Err(AmountError::NotDecimal), "{bad}");
        }
    }

    #[test]
    fn arithmetic_is_checked() {
        assert_eq!(Amount::MAX.checked_add(Amount::new(1)), None);
        assert_eq!(Amount::ZERO.checked_sub(Amount::new(1)), None);
        assert_eq!(Amount::new(7).scaled_down(1, 2), Some(Amount::new(3)));
        assert_eq!(Amount::new(7).scaled_down(1, 0), None);
        assert_eq!(Amount::MAX.scaled_down(2, 2), None);
    }

    proptest! {
        #[test]
        fn a_price_survives_its_text(units in 0u128..=u128::from(u64::MAX), decimals in 0u8..=18) {
            let amount = Amount::new(units);
            prop_assert_eq!(Amount::from_price(&amount.to_price(decimals), decimals), Ok(amount));
        }

        #[test]
        fn units_survive_their_text(units: u128) {
            prop_assert_eq!(Amount::new(units).to_string().parse(), Ok(Amount::new(units)));
        }
    }
}
