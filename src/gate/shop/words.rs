//! Prices in words.

use crate::gate::policy::Price;
use crate::pricing::{Rate, StatusRule, Tariff, Unit};
use crate::protocol::Amount;

/// A price as a sentence without its full stop: "$0.01 a request and $3.00 per 1,000,000 input tokens, at most $0.50".
pub(super) fn price(price: &Price, decimals: u8) -> String {
    match price {
        Price::Free => "free".to_owned(),
        Price::Fixed(amount) => format!("{} a request", amount.to_price(decimals)),
        Price::Metered(tariff) => metered(tariff, decimals),
    }
}

/// What answers cost by their status, as a sentence.
pub(super) fn by_status(rule: &StatusRule) -> String {
    if *rule == StatusRule::default() {
        return "An answer of status 400 or above costs nothing.".to_owned();
    }
    format!("Of its price an answer costs, by its status: {rule}; 401, 402, 407 and 5xx cost nothing.")
}

fn metered(tariff: &Tariff, decimals: u8) -> String {
    let dollars = |amount: Amount| amount.to_price(decimals);
    let base = (!tariff.base.is_zero()).then(|| format!("{} a request", dollars(tariff.base)));
    let parts: Vec<_> = base.into_iter().chain(tariff.rates.iter().map(|rate| of_rate(rate, decimals))).collect();
    let most = dollars(tariff.most());
    if parts.is_empty() { format!("at most {most} a request") } else { format!("{}, at most {most}", join(&parts)) }
}

fn of_rate(rate: &Rate, decimals: u8) -> String {
    let mut tiers = rate.tiers.iter().peekable();
    let mut parts = Vec::new();
    while let Some(tier) = tiers.next() {
        let per = per(&rate.unit, tier.per);
        let price = tier.price.to_price(decimals);
        let end = tier.up_to.filter(|_| tiers.peek().is_some()).map(|end| format!(" up to {}", grouped(end)));
        parts.push(format!("{price} per {per}{}", end.unwrap_or_default()));
    }
    parts.join(", then ")
}

/// So many of a unit: "1,000 input tokens", "second", "MiB received".
fn per(unit: &Unit, count: u64) -> String {
    const SECOND: u64 = 1_000;
    const BYTES: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let bytes = |way: &str| match BYTES.iter().find(|(size, _)| *size == count) {
        Some((_, name)) => format!("{name} {way}"),
        None => format!("{} {way}", counted(count, "byte")),
    };
    match unit {
        Unit::RequestBytes => bytes("sent"),
        Unit::ResponseBytes => bytes("received"),
        Unit::Milliseconds if count == 3_600 * SECOND => "hour".to_owned(),
        Unit::Milliseconds if count == 60 * SECOND => "minute".to_owned(),
        Unit::Milliseconds if count.is_multiple_of(SECOND) && count > 0 => counted(count / SECOND, "second"),
        Unit::Milliseconds => counted(count, "millisecond"),
        Unit::Events => counted(count, "event"),
        Unit::InputTokens => counted(count, "input token"),
        Unit::CachedInputTokens => counted(count, "cached input token"),
        Unit::CacheWriteTokens => counted(count, "token written to the cache"),
        Unit::OutputTokens => counted(count, "output token"),
        Unit::Reported(name) if count == 1 => format!("unit of {name}"),
        Unit::Reported(name) => format!("{} units of {name}", grouped(count)),
    }
}

fn counted(count: u64, what: &str) -> String {
    let (first, rest) = what.split_once(' ').filter(|_| what.starts_with("token ")).unwrap_or((what, ""));
    let rest = if rest.is_empty() { String::new() } else { format!(" {rest}") };
    if count == 1 { format!("{first}{rest}") } else { format!("{} {first}s{rest}", grouped(count)) }
}

/// A number with commas: "1,000,000".
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// "a", "a and b", "a, b and c".
fn join(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pricing::Tier;
    use std::sync::Arc;

    fn rate(unit: Unit, tiers: &[(Option<u64>, u128, u64)]) -> Rate {
        let tier = |&(up_to, price, per)| Tier { up_to, price: Amount::new(price), per };
        Rate { unit, tiers: tiers.iter().map(tier).collect() }
    }

    #[test]
    fn a_price_is_a_sentence() {
        let metered = |base, rates, most| {
            Price::Metered(Arc::new(Tariff { base: Amount::new(base), rates, most: Amount::new(most) }))
        };
        let million = 1_000_000;
        let cases = [
            (Price::Free, "free"),
            (Price::Fixed(Amount::new(2_000)), "$0.002 a request"),
            (metered(0, vec![], 5_000), "at most $0.005 a request"),
            (
                metered(10_000, vec![rate(Unit::InputTokens, &[(None, 3_000_000, million)])], 500_000),
                "$0.01 a request and $3.00 per 1,000,000 input tokens, at most $0.50",
            ),
            (
                metered(
                    0,
                    vec![
                        rate(Unit::ResponseBytes, &[(Some(1 << 20), 10, 1 << 10), (None, 5, 1 << 10)]),
                        rate(Unit::Milliseconds, &[(None, 100, 1_000)]),
                        rate(Unit::Reported("frames".into()), &[(None, 1, 1)]),
                    ],
                    20_000,
                ),
                "$0.00001 per KiB received up to 1,048,576, then $0.000005 per KiB received, $0.0001 per second and \
                 $0.000001 per unit of frames, at most $0.02",
            ),
            (
                metered(0, vec![rate(Unit::CacheWriteTokens, &[(None, 1, 1_000)])], 1),
                "$0.000001 per 1,000 tokens written to the cache, at most $0.000001",
            ),
        ];
        for (given, expected) in cases {
            assert_eq!(price(&given, 6), expected);
        }
    }
}
