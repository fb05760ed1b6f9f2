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
    pub fn charge(&self, _measured: &Measured) -> Amount {
        self.most
    }
}
