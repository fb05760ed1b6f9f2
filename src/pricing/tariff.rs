//! Tariffs: so much for the request, so much for what it uses, and never more than the quote.

use std::sync::Arc;

use super::measured::{End, Measured, Tokens};
use super::sum::{self, Sum};
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
    /// What it costs; the first tier begins at zero, each of the others where the one before it ends. What is beyond the
    /// last one's end costs the same as what is in it.
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
    /// Server-sent events.
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

    /// What an answer costs, by the [rules of a charge](super) without its status.
    pub fn charge(&self, measured: &Measured) -> Amount {
        self.sum(measured).map_or(self.most, |sum| sum.min(self.most))
    }

    /// Whether the sum of any counts can be told exactly: whether the fractions of a unit that the rates make have a
    /// common denominator of less than 128 bits.
    pub fn adds_up(&self) -> bool {
        sum::adds_up(self.rates.iter().flat_map(|rate| &rate.tiers).map(|tier| (tier.price, tier.per)))
    }

    /// Whether a rate needs a count that only the upstream can report.
    pub fn needs_report(&self) -> bool {
        self.rates.iter().any(|rate| rate.unit.is_reported())
    }

    /// Whether there is a rate for what a model uses.
    pub fn counts_tokens(&self) -> bool {
        self.rates.iter().any(|rate| rate.unit.is_of_tokens())
    }

    /// Whether there is a rate for it.
    pub fn counts(&self, unit: &Unit) -> bool {
        self.rates.iter().any(|rate| rate.unit == *unit)
    }

    /// What was counted, rounded up. `None` where it cannot be told, or lacks what had to be reported.
    fn sum(&self, measured: &Measured) -> Option<Amount> {
        let mut sum = Sum::of(self.base);
        for rate in &self.rates {
            rate.add_to(&mut sum, self.count(&rate.unit, measured)?)?;
        }
        sum.rounded_up()
    }

    fn count(&self, unit: &Unit, measured: &Measured) -> Option<u64> {
        let unreported = || match measured.end {
            End::Complete | End::PayerLeft => None,
            End::UpstreamFailed | End::Stopped => Some(0),
        };
        let tokens = |count: &dyn Fn(&Tokens) -> u64| measured.tokens.as_ref().map(count).or_else(unreported);
        match unit {
            Unit::RequestBytes => Some(measured.request_bytes),
            Unit::ResponseBytes => Some(measured.response_bytes),
            Unit::Milliseconds => Some(measured.elapsed_ms),
            Unit::Events => Some(measured.events),
            Unit::InputTokens => tokens(&|tokens| self.input(tokens)),
            Unit::CachedInputTokens => tokens(&|tokens| tokens.cached_input),
            Unit::CacheWriteTokens => tokens(&|tokens| tokens.cache_write),
            Unit::OutputTokens => tokens(&|tokens| tokens.output),
            Unit::Reported(name) => {
                // A trailer comes after the headers and knows better.
                let last = measured.reported.iter().rev().find(|(reported, _)| reported == name);
                last.map(|(_, count)| *count).or_else(unreported)
            }
        }
    }

    /// Tokens read at the input rate: those of the caches too, where these have no rate of their own.
    fn input(&self, tokens: &Tokens) -> u64 {
        let without = |unit: &Unit, count: u64| if self.counts(unit) { 0 } else { count };
        tokens
            .input
            .saturating_add(without(&Unit::CachedInputTokens, tokens.cached_input))
            .saturating_add(without(&Unit::CacheWriteTokens, tokens.cache_write))
    }
}

impl Rate {
    fn add_to(&self, sum: &mut Sum, count: u64) -> Option<()> {
        let mut from = 0;
        let mut tiers = self.tiers.iter().peekable();
        while let Some(tier) = tiers.next() {
            let until = match tier.up_to {
                Some(up_to) if tiers.peek().is_some() => up_to.min(count).max(from),
                _ => count,
            };
            sum.add(tier.price, tier.per, until.saturating_sub(from))?;
            from = until;
        }
        Some(())
    }
}

impl Unit {
    /// Whether a model uses them.
    pub fn is_of_tokens(&self) -> bool {
        matches!(self, Self::InputTokens | Self::CachedInputTokens | Self::CacheWriteTokens | Self::OutputTokens)
    }

    /// Whether only the upstream can say how many there were.
    pub fn is_reported(&self) -> bool {
        self.is_of_tokens() || matches!(self, Self::Reported(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Part = (Option<u64>, u128, u64);

    fn tariff(base: u128, rates: &[(Unit, &[Part])], most: u128) -> Tariff {
        let tier = |(up_to, price, per): &Part| Tier { up_to: *up_to, price: Amount::new(*price), per: *per };
        let rate = |(unit, tiers): &(Unit, &[_])| Rate { unit: unit.clone(), tiers: tiers.iter().map(tier).collect() };
        Tariff { base: Amount::new(base), rates: rates.iter().map(rate).collect(), most: Amount::new(most) }
    }

    fn measured(end: End) -> Measured {
        Measured::nothing(200, end)
    }

    #[test]
    fn a_tier_prices_the_part_of_a_count_that_lies_in_it() {
        let tiers: &[_] = &[(Some(10), 3, 1), (Some(20), 2, 1), (None, 1, 1)];
        let tariff = tariff(5, &[(Unit::Events, tiers)], 1_000);
        for (events, expected) in [(0, 5), (1, 8), (10, 35), (11, 37), (20, 55), (21, 56), (30, 65), (965, 1_000)] {
            assert_eq!(tariff.charge(&Measured { events, ..measured(End::Complete) }).units(), expected, "{events}");
        }
    }

    #[test]
    fn what_is_beyond_the_last_tier_is_not_free() {
        let tariff = tariff(0, &[(Unit::Events, &[(Some(10), 3, 1), (Some(5), 2, 1)])], 1_000);
        assert_eq!(tariff.charge(&Measured { events: 12, ..measured(End::Complete) }).units(), 34);
    }

    #[test]
    fn what_was_not_reported_costs_the_most_unless_the_upstream_or_we_failed() {
        let reported = Unit::Reported("x-units".into());
        let tariff = tariff(5, &[(Unit::Events, &[(None, 1, 1)]), (reported, &[(None, 2, 1)])], 100);
        assert!(tariff.needs_report());
        for (end, expected) in
            [(End::Complete, 100), (End::PayerLeft, 100), (End::UpstreamFailed, 8), (End::Stopped, 8)]
        {
            let unreported = Measured { events: 3, ..measured(end) };
            assert_eq!(tariff.charge(&unreported).units(), expected, "{end:?}");
            let other = Measured { reported: vec![("x-other".into(), 4)], ..unreported.clone() };
            assert_eq!(tariff.charge(&other).units(), expected, "{end:?}");
            let known = Measured { reported: vec![("x-units".into(), 9), ("x-units".into(), 4)], ..unreported };
            assert_eq!(tariff.charge(&known).units(), 16, "{end:?}");
        }
    }

    #[test]
    fn tokens_of_a_cache_cost_what_others_cost_without_a_rate_of_their_own() {
        let tokens = Some(Tokens { input: 1, cached_input: 10, cache_write: 100, output: 1_000 });
        let answer = Measured { tokens, ..measured(End::Complete) };
        let input = (Unit::InputTokens, &[(None, 2, 1)][..]);
        let cached = (Unit::CachedInputTokens, &[(None, 1, 1)][..]);
        let written = (Unit::CacheWriteTokens, &[(None, 3, 1)][..]);
        let cost = |rates: &[(Unit, &[_])]| tariff(0, rates, 10_000).charge(&answer).units();
        assert_eq!(cost(std::slice::from_ref(&input)), 222);
        assert_eq!(cost(&[input.clone(), cached.clone()]), 212);
        assert_eq!(cost(&[input.clone(), written.clone()]), 322);
        assert_eq!(cost(&[input, cached.clone(), written]), 312);
        assert_eq!(cost(&[cached]), 10);
    }

    #[test]
    fn a_sum_that_cannot_be_told_costs_the_most() {
        let nothing = tariff(0, &[(Unit::Events, &[(None, 1, 0)])], 100);
        assert!(!nothing.adds_up());
        assert_eq!(nothing.charge(&measured(End::Complete)).units(), 100);
        let dear = tariff(u128::MAX, &[(Unit::Events, &[(None, u128::MAX, 1)])], 100);
        assert!(dear.adds_up());
        assert_eq!(dear.charge(&Measured { events: u64::MAX, ..measured(End::Complete) }).units(), 100);
    }
}
