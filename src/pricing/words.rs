//! Tariffs in words, for quotes and for people.

use super::tariff::{Rate, Tariff, Tier, Unit};

/// Counts that have a name, from the largest.
const THOUSANDS: [(&str, u64); 3] = [("B", 1_000_000_000), ("M", 1_000_000), ("K", 1_000)];
/// The same for bytes.
const BYTES: [(&str, u64); 4] = [(" TiB", 1 << 40), (" GiB", 1 << 30), (" MiB", 1 << 20), (" KiB", 1 << 10)];
/// The same for time, in milliseconds.
const TIMES: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Tariff {
    /// The tariff in one line of ASCII, for a token with so many `decimals`: `$0.001 a request, $2.50 per 1M input tokens; at
    /// most $0.25, also if the usage is not reported; the sum is rounded up to a whole unit of the token`.
    pub fn describe(&self, decimals: u8) -> String {
        let base = (!self.base.is_zero()).then(|| format!("{} a request", self.base.to_price(decimals)));
        let rates = self.rates.iter().map(|rate| rate.describe(decimals));
        let parts = base.into_iter().chain(rates).collect::<Vec<_>>().join(", ");
        let most = self.most.to_price(decimals);
        let unless = if self.needs_report() { ", also if the usage is not reported" } else { "" };
        format!("{parts}; at most {most}{unless}; the sum is rounded up to a whole unit of the token")
    }
}

impl Rate {
    fn describe(&self, decimals: u8) -> String {
        let mut text = String::new();
        let mut from = 0;
        for (index, tier) in self.tiers.iter().enumerate() {
            let price = price(tier, &self.unit, decimals, index == 0);
            text += if index == 0 { "" } else { ", then " };
            text += &price;
            if let Some(up_to) = tier.up_to {
                let (above, up_to) = (self.unit.count(from), self.unit.count(up_to));
                text += &if from == 0 { format!(" up to {up_to}") } else { format!(" from {above} to {up_to}") };
            }
            from = tier.up_to.unwrap_or(from);
        }
        text
    }
}

/// The price of a tier; the first of a rate says of what.
fn price(tier: &Tier, unit: &Unit, decimals: u8, named: bool) -> String {
    let price = if tier.price.is_zero() { "nothing".to_owned() } else { tier.price.to_price(decimals) };
    let count = match (unit, tier.per) {
        (Unit::Milliseconds, 1_000) => return format!("{price} a second"),
        (Unit::Milliseconds, 60_000) => return format!("{price} a minute"),
        (Unit::Milliseconds, 3_600_000) => return format!("{price} an hour"),
        (unit, per) => unit.count(per),
    };
    let (one, many) = match unit {
        Unit::RequestBytes => ("a byte of the request's body", "of the request's body"),
        Unit::ResponseBytes => ("a byte of the answer's body", "of the answer's body"),
        Unit::Milliseconds => return format!("{price} per {count}"),
        Unit::Events => ("an event", "events"),
        Unit::InputTokens => ("an input token", "input tokens"),
        Unit::CachedInputTokens => ("a cached input token", "cached input tokens"),
        Unit::CacheWriteTokens => ("a token written to the cache", "tokens written to the cache"),
        Unit::OutputTokens => ("an output token", "output tokens"),
        Unit::Reported(name) if named && tier.per == 1 => return format!("{price} for each of {name}"),
        Unit::Reported(name) => ("each", &**name),
    };
    match (named, tier.per) {
        (true, 1) => format!("{price} {one}"),
        (true, _) => format!("{price} per {count} {many}"),
        (false, 1) => format!("{price} each"),
        (false, _) => format!("{price} per {count}"),
    }
}

impl Unit {
    /// So many of it, as operators write it.
    fn count(&self, count: u64) -> String {
        let (names, plain): (&[_], _) = match self {
            Self::RequestBytes | Self::ResponseBytes => (&BYTES, if count == 1 { " byte" } else { " bytes" }),
            Self::Milliseconds => (&TIMES, "ms"),
            _ => (&THOUSANDS, ""),
        };
        let name = names.iter().find(|(_, size)| count > 0 && count.is_multiple_of(*size));
        let named = name.and_then(|(name, size)| Some(format!("{}{name}", count.checked_div(*size)?)));
        named.unwrap_or_else(|| format!("{count}{plain}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Amount;

    fn rate(unit: Unit, tiers: &[(Option<u64>, u128, u64)]) -> Rate {
        let tier = |(up_to, price, per): &(Option<u64>, u128, u64)| Tier {
            up_to: *up_to,
            price: Amount::new(*price),
            per: *per,
        };
        Rate { unit, tiers: tiers.iter().map(tier).collect() }
    }

    #[test]
    fn a_tariff_is_told_in_one_sentence() {
        let rates = vec![
            rate(Unit::InputTokens, &[(None, 2_500_000, 1_000_000)]),
            rate(Unit::CachedInputTokens, &[(None, 1, 3)]),
            rate(Unit::OutputTokens, &[(Some(1_000), 0, 1), (Some(5_500), 10_000_000, 1_000_000), (None, 5, 1)]),
            rate(Unit::Milliseconds, &[(None, 500, 1_000)]),
        ];
        let tariff = Tariff { base: Amount::new(1_000), rates, most: Amount::new(250_000) };
        assert_eq!(
            tariff.describe(6),
            "$0.001 a request, $2.50 per 1M input tokens, $0.000001 per 3 cached input tokens, nothing an output token \
             up to 1K, then $10.00 per 1M from 1K to 5500, then $0.000005 each, $0.0005 a second; at most \
             $0.25, also if the usage is not reported; the sum is rounded up to a whole unit of the token"
        );
        let rates = [
            rate(Unit::RequestBytes, &[(None, 1, 1)]),
            rate(Unit::ResponseBytes, &[(None, 10_000, 1 << 20)]),
            rate(Unit::Milliseconds, &[(Some(90_000), 3, 60_000), (None, 1, 10_000)]),
            rate(Unit::Events, &[(None, 100, 10)]),
            rate(Unit::CacheWriteTokens, &[(None, 1, 1_000)]),
        ];
        let tariff = Tariff { base: Amount::ZERO, rates: rates[..4].to_vec(), most: Amount::new(1) };
        assert_eq!(
            tariff.describe(0),
            "$1 a byte of the request's body, $10000 per 1 MiB of the answer's body, $3 a minute up to 90s, then $1 \
             per 10s, $100 per 10 events; at most $1; the sum is rounded up to a whole unit of the token"
        );
        let reported = rate(Unit::Reported("x-units".into()), &[(None, 2, 1)]);
        let tariff = Tariff { base: Amount::ZERO, rates: vec![rates[4].clone(), reported], most: Amount::new(100) };
        assert_eq!(
            tariff.describe(2),
            "$0.01 per 1K tokens written to the cache, $0.02 for each of x-units; at most $1.00, also if the usage is not \
             reported; the sum is rounded up to a whole unit of the token"
        );
    }
}
