//! Tariffs: so much for the request, so much for what it uses, and never more than the quote.

use std::sync::Arc;

use super::measured::Measured;
use crate::protocol::Amount;

/// What a metered route's requests cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tariff {
    /// For each request that is charged at all.
    pub base: Amount,
    /// Beside that, for what it uses.
    pub rates: Vec<Rate>,
    /// Never more than this, which the quote says and the payer signs for. Above zero.
    pub most: Amount,
}

/// The price of one thing that is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    /// What is counted.
    pub unit: Unit,
    /// What it costs; the first tier begins at zero, each of the others where the one before it ends.
    pub tiers: Vec<Tier>,
}

/// A part of a count, and its price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    /// Up to this count; without an end, if there is none.
    pub up_to: Option<u64>,
    /// So much...
    pub price: Amount,
    /// ...for so many. Not zero.
    pub per: u64,
}

/// What can be counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of the request's body.
    RequestBytes,
    /// Bytes of the answer's body.
    ResponseBytes,
    /// Time, in milliseconds.
    Milliseconds,
    /// Server-sent events, or messages of an upgraded connection.
    Events,
    /// Tokens a model read.
    InputTokens,
    /// Tokens it read from its cache.
    CachedInputTokens,
    /// Tokens it wrote to its cache.
    CacheWriteTokens,
    /// Tokens it wrote.
    OutputTokens,
    /// What the upstream reports in the header or trailer of this lower-case name.
    Reported(Arc<str>),
}

impl Tariff {
    /// The most a request can cost.
    pub fn most(&self) -> Amount {
        self.most
    }

    /// What an answer costs. Nothing that could be reported and was not makes it cheaper than it can be told: where a
    /// complete answer lacks a count that the tariff has a rate for, it costs the most.
    pub fn charge(&self, measured: &Measured) -> Amount {
        self.exact(measured).map_or(self.most, |charge| charge.min(self.most))
    }

    /// The sum, rounded up once; nothing where a count is missing or the sum is beyond all bounds.
    fn exact(&self, measured: &Measured) -> Option<Amount> {
        let mut sum = (self.base.units(), 1_u128);
        for Rate { unit, tiers } in &self.rates {
            let count = unit.count(measured)?;
            let mut below = 0;
            for Tier { up_to, price, per } in tiers {
                let within = count.min(up_to.unwrap_or(u64::MAX)).saturating_sub(below);
                sum = add(sum, (price.units().checked_mul(u128::from(within))?, u128::from(*per)))?;
                below = up_to.unwrap_or(u64::MAX);
            }
        }
        Some(Amount::new(sum.0.div_ceil(sum.1)))
    }
}

/// The sum of two fractions.
fn add(one: (u128, u128), other: (u128, u128)) -> Option<(u128, u128)> {
    let common = gcd(one.1, other.1);
    let (left, right) = (one.1.checked_div(common)?, other.1.checked_div(common)?);
    let sum = one.0.checked_mul(right)?.checked_add(other.0.checked_mul(left)?)?;
    Some((sum, one.1.checked_mul(right)?))
}

fn gcd(one: u128, other: u128) -> u128 {
    if other == 0 { one } else { gcd(other, one % other) }
}

impl Unit {
    /// How many there are; nothing where nobody said.
    fn count(&self, measured: &Measured) -> Option<u64> {
        let tokens = |count: fn(super::Tokens) -> u64| measured.tokens.map(count);
        match self {
            Self::RequestBytes => Some(measured.request_bytes),
            Self::ResponseBytes => Some(measured.response_bytes),
            Self::Milliseconds => Some(measured.elapsed_ms),
            Self::Events => Some(measured.events),
            Self::InputTokens => tokens(|tokens| tokens.input),
            Self::CachedInputTokens => tokens(|tokens| tokens.cached_input),
            Self::CacheWriteTokens => tokens(|tokens| tokens.cache_write),
            Self::OutputTokens => tokens(|tokens| tokens.output),
            Self::Reported(name) => {
                measured.reported.iter().rev().find(|(said, _)| said == name).map(|(_, count)| *count)
            }
        }
    }
}
