//! Limits on what an agent may spend.
//!
//! **Owns** dollars as the unit people set limits in, and the limits. **Promises** that amounts of a token are rounded
//! up when they are held against a limit and limits are rounded down when they become an amount. **Does not** count
//! what was spent (see `spending`), nor know exchange rates: a unit of a known token is a dollar.

use std::fmt;
use std::str::FromStr;

use crate::protocol::Amount;
use crate::protocol::amount::AmountError;

/// Decimal places of [`Dollars`].
const DECIMALS: u8 = 6;

/// Money as people set limits in it: a whole number of millionths of a dollar. Text is `$1.25`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dollars(Amount);

impl Dollars {
    /// Nothing.
    pub const ZERO: Self = Self(Amount::ZERO);
    /// As good as no limit.
    pub const MAX: Self = Self(Amount::MAX);

    /// So many millionths of a dollar.
    pub const fn from_micros(micros: u128) -> Self {
        Self(Amount::new(micros))
    }

    /// The number of millionths of a dollar.
    pub const fn micros(self) -> u128 {
        self.0.units()
    }

    /// What an amount of a dollar token with so many `decimals` is worth, rounded up.
    pub fn of(amount: Amount, decimals: u8) -> Self {
        let units = amount.units();
        let micros = match decimals.checked_sub(DECIMALS) {
            Some(more) => match 10u128.checked_pow(u32::from(more)) {
                Some(scale) => units.div_ceil(scale),
                None => u128::from(units > 0),
            },
            None => units.saturating_mul(10u128.saturating_pow(u32::from(DECIMALS - decimals))),
        };
        Self::from_micros(micros)
    }

    /// How much of a dollar token with so many `decimals` this buys, rounded down; at most what the contract can hold.
    pub fn to_amount(self, decimals: u8) -> Amount {
        let micros = self.micros();
        Amount::new(match decimals.checked_sub(DECIMALS) {
            Some(more) => micros.saturating_mul(10u128.saturating_pow(u32::from(more))),
            None => micros / 10u128.saturating_pow(u32::from(DECIMALS - decimals)),
        })
    }

    /// The sum; it stops at [`Dollars::MAX`], which is above every limit worth the name.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self::from_micros(self.micros().saturating_add(other.micros()))
    }

    /// The difference, or zero where `other` is larger.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Dollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_price(DECIMALS))
    }
}

impl FromStr for Dollars {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        Amount::from_price(text, DECIMALS).map(Self)
    }
}

impl serde::Serialize for Dollars {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Dollars {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What an agent may spend. A limit is inclusive: spending exactly as much is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The most one request may cost.
    pub max_per_request: Dollars,
    /// The most one host may be paid: by this agent since it was made, and, all agents with the same book directory
    /// taken together, in one day (UTC).
    pub max_per_host: Dollars,
    /// The most that may be spent in one day (UTC), by all agents with the same book directory.
    pub max_per_day: Dollars,
    /// The most one deposit may lock up. It stays ours until it is charged.
    pub max_deposit: Dollars,
    /// How many requests a deposit should pay for, where the server names no minimum.
    pub deposit_multiplier: u32,
}

impl Default for Budget {
    /// A dollar a request, ten a host, twenty a day, five a deposit; a deposit pays for five requests.
    fn default() -> Self {
        Self {
            max_per_request: Dollars::from_micros(1_000_000),
            max_per_host: Dollars::from_micros(10_000_000),
            max_per_day: Dollars::from_micros(20_000_000),
            max_deposit: Dollars::from_micros(5_000_000),
            deposit_multiplier: 5,
        }
    }
}

/// Which limit refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// [`Budget::max_per_request`].
    Request,
    /// [`Budget::max_per_host`].
    Host,
    /// [`Budget::max_per_day`].
    Day,
    /// [`Budget::max_deposit`].
    Deposit,
}

/// A payment the budget refuses. Nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct BudgetRefusal {
    /// Which limit.
    pub limit: Limit,
    /// What the payment, or the deposit, would be.
    pub asked: Dollars,
    /// The limit.
    pub allowed: Dollars,
    /// What counts against the limit already, payments in flight included.
    pub spent: Dollars,
}

impl fmt::Display for BudgetRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, asked, allowed, spent } = self;
        match limit {
            Limit::Request => write!(f, "the request may cost {asked}, the limit per request is {allowed}"),
            Limit::Deposit => write!(f, "the channel needs a deposit of {asked}, the limit per deposit is {allowed}"),
            Limit::Host => write!(
                f,
                "the request may cost {asked}, the limit for this host is {allowed} and {spent} of it is spent"
            ),
            Limit::Day => {
                write!(f, "the request may cost {asked}, the limit per day is {allowed} and {spent} of it is spent")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_round_against_the_spender() {
        let cases: [(u128, u8, u128); 8] = [
            (2_000, 6, 2_000),
            (0, 18, 0),
            (1, 18, 1),
            (1_000_000_000_000, 18, 1),
            (1_000_000_000_001, 18, 2),
            (7, 2, 70_000),
            (1, 255, 1),
            (u128::MAX, 0, u128::MAX),
        ];
        for (units, decimals, micros) in cases {
            assert_eq!(Dollars::of(Amount::new(units), decimals).micros(), micros, "{units} at {decimals}");
        }
        assert_eq!(Dollars::from_micros(19_999).to_amount(2), Amount::new(1));
        assert_eq!(Dollars::from_micros(1).to_amount(18), Amount::new(1_000_000_000_000));
        assert_eq!(Dollars::MAX.to_amount(18), Amount::MAX);
    }

    #[test]
    fn dollars_are_written_as_people_write_them() {
        assert_eq!("$1.25".parse::<Dollars>().unwrap().to_string(), "$1.25");
        assert_eq!("$0.002".parse::<Dollars>().unwrap().micros(), 2_000);
        assert!("1.25".parse::<Dollars>().is_err());
    }
}
