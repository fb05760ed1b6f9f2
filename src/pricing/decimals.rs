//! The same tariff in another token: a dollar is a dollar, whatever number of units a token makes of it.

use super::tariff::{Rate, Tariff, Tier};

impl Tariff {
    /// The same tariff in a token with `to` decimal places instead of `from`; `None` where an amount of it is no whole
    /// number of that token's units. A rate may be finer than a unit: then it counts for more at a time.
    pub fn in_decimals(&self, from: u8, to: u8) -> Option<Self> {
        // Taken apart by name, so that an amount that is added to it is not forgotten here.
        let Self { base, rates, most } = self;
        let rates = rates.iter().map(|rate| in_decimals(rate, from, to)).collect::<Option<_>>()?;
        let other = Self { base: base.in_decimals(from, to)?, rates, most: most.in_decimals(from, to)? };
        // What does not add up would cost the most.
        (other.adds_up() || !self.adds_up()).then_some(other)
    }
}

fn in_decimals(Rate { unit, tiers }: &Rate, from: u8, to: u8) -> Option<Rate> {
    let tiers = tiers.iter().map(|tier| tier_in_decimals(*tier, from, to)).collect::<Option<_>>()?;
    Some(Rate { unit: unit.clone(), tiers })
}

fn tier_in_decimals(Tier { up_to, price, per }: Tier, from: u8, to: u8) -> Option<Tier> {
    if let Some(price) = price.in_decimals(from, to) {
        return Some(Tier { up_to, price, per });
    }
    let coarser = 10_u64.checked_pow(u32::from(from.checked_sub(to)?))?;
    Some(Tier { up_to, price, per: per.checked_mul(coarser)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pricing::Unit;
    use crate::protocol::Amount;

    fn tariff(base: u128, price: u128, per: u64, most: u128) -> Tariff {
        let tier = Tier { up_to: None, price: Amount::new(price), per };
        let rate = Rate { unit: Unit::ResponseBytes, tiers: vec![tier] };
        Tariff { base: Amount::new(base), rates: vec![rate], most: Amount::new(most) }
    }

    #[test]
    fn a_tariff_is_the_same_in_another_token_or_is_none() {
        let cases = [
            (tariff(5, 7, 3, 90), 6, 8, Some(tariff(500, 700, 3, 9_000))),
            (tariff(500, 700, 3, 9_000), 8, 6, Some(tariff(5, 7, 3, 90))),
            // Seven hundredths of a unit for three are seven units for three hundred.
            (tariff(500, 7, 3, 9_000), 8, 6, Some(tariff(5, 7, 300, 90))),
            (tariff(501, 7, 3, 9_000), 8, 6, None),
            (tariff(500, 7, 3, 9_001), 8, 6, None),
            (tariff(0, 7, u64::MAX, 9_000), 8, 6, None),
            (tariff(1, 1, 1, u128::MAX), 6, 7, None),
            (tariff(1, 1, 0, 2), 6, 7, Some(tariff(10, 10, 0, 20))),
        ];
        for (tariff, from, to, expected) in cases {
            assert_eq!(tariff.in_decimals(from, to), expected, "{tariff:?}");
        }
        // With a hundred times the denominators, which have little in common, there is none for all of them any more.
        let rates = [(1 << 57) - 1, (1 << 57) + 1, 1_021].map(|per| tariff(0, 1, per, 1).rates);
        let tariff = Tariff { base: Amount::ZERO, rates: rates.concat(), most: Amount::new(100) };
        assert!(tariff.adds_up() && tariff.in_decimals(6, 6).is_some());
        assert_eq!(tariff.in_decimals(8, 6), None);
    }
}
