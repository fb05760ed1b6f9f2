//! What a served request really cost.
//!
//! **Owns** the reading of `Settlement-Overrides`, by which an upstream reports less than the quoted price:
//! `{"amount": "1234"}` in atomic units, `"50%"` of the price (two decimals at most, rounded down), or `"$0.05"`; and the
//! one place that decides what an answer costs. **Promises** a charge of at most the price: it is the ceiling the payer
//! signed for. A report that cannot be read charges the price, which is what the quote said. **Does not** measure anything.

use http::HeaderMap;
use serde_json::Value;

use super::policy::{Price, Route};
use crate::pricing::{Measured, Unit};
use crate::protocol::Amount;

/// The upstream's report. It never reaches the client.
pub const SETTLEMENT_OVERRIDES: &str = "settlement-overrides";

/// What an answer costs: what the upstream said; else the price, or what the tariff makes of what was measured; and of that
/// the share that its status is charged. Never more than `most`, which is held.
pub(super) fn charge_of(
    route: &Route,
    price: &Price,
    most: Amount,
    measured: &Measured,
    said: Option<Amount>,
) -> Amount {
    let cost = said.unwrap_or_else(|| match price {
        Price::Metered(tariff) => tariff.charge(measured),
        Price::Fixed(_) | Price::Free => most,
    });
    route.status_rule.charge(measured.status, cost.min(most)).min(most)
}

/// Whether a count is known: what we count ourselves always is.
pub(super) fn is_reported(unit: &Unit, measured: &Measured) -> bool {
    match unit {
        Unit::Reported(name) => measured.reported.iter().any(|(said, _)| said == name),
        _ => !unit.is_of_tokens() || measured.tokens.is_some(),
    }
}

/// What the upstream says in these headers, or trailers, that the answer costs; nothing if it does not say. `id` is the
/// request's, for the log.
pub(super) fn said(headers: &HeaderMap, price: Amount, decimals: u8, id: Option<&str>) -> Option<Amount> {
    let report = headers.get(SETTLEMENT_OVERRIDES)?;
    Some(match read(report.as_bytes(), price, decimals) {
        Some(amount) if amount <= price => amount,
        Some(amount) => {
            let message = "the upstream reported more than the quote; charging the quote";
            tracing::warn!(request = id, reported = %amount, %price, "{message}");
            price
        }
        None => {
            let message = "the upstream's Settlement-Overrides cannot be read; charging the quote";
            tracing::warn!(request = id, %price, "{message}");
            price
        }
    })
}

fn read(report: &[u8], price: Amount, decimals: u8) -> Option<Amount> {
    let report: Value = serde_json::from_slice(report).ok()?;
    let amount = report.get("amount")?.as_str()?;
    if let Some(percent) = amount.strip_suffix('%') {
        return percent_of(price, percent);
    }
    if amount.starts_with('$') {
        return Amount::from_price(amount, decimals).ok();
    }
    amount.parse().ok()
}

/// A percentage with at most two decimals, as hundredths of a percent.
fn percent_of(price: Amount, percent: &str) -> Option<Amount> {
    let (whole, fraction) = percent.split_once('.').unwrap_or((percent, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 2 || percent.ends_with('.') {
        return None;
    }
    let hundredths: u128 = format!("{whole}{fraction:0<2}").parse().ok()?;
    price.scaled_down(hundredths, 10_000)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::gate::path::PathPattern;
    use crate::pricing::{End, Rate, Tariff, Tier, Tokens};

    #[test]
    fn the_upstream_may_charge_less_and_never_more() {
        let cases = [
            (r#"{"amount":"0"}"#, 0),
            (r#"{"amount":"1"}"#, 1),
            (r#"{"amount":"2000"}"#, 2000),
            (r#"{"amount":"2001"}"#, 2000),
            (r#"{"amount":"50%"}"#, 1000),
            (r#"{"amount":"0.05%"}"#, 1),
            (r#"{"amount":"0.04%"}"#, 0),
            (r#"{"amount":"100%"}"#, 2000),
            (r#"{"amount":"100.01%"}"#, 2000),
            (r#"{"amount":"33.333%"}"#, 2000),
            (r#"{"amount":"-1%"}"#, 2000),
            (r#"{"amount":"$0.001"}"#, 1000),
            (r#"{"amount":"$0.0000001"}"#, 2000),
            (r#"{"amount":5}"#, 2000),
            (r#"{}"#, 2000),
            ("nonsense", 2000),
        ];
        for (report, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(SETTLEMENT_OVERRIDES, report.parse().unwrap());
            assert_eq!(said(&headers, Amount::new(2000), 6, None), Some(Amount::new(expected)), "{report}");
        }
        assert_eq!(said(&HeaderMap::new(), Amount::new(2000), 6, None), None);
    }

    fn route(price: Price) -> Route {
        Route::new(PathPattern::parse("/x").unwrap(), price)
    }

    fn measured(status: u16, end: End) -> Measured {
        Measured { response_bytes: 7, ..Measured::nothing(status, end) }
    }

    #[test]
    fn an_answer_that_is_paid_for_costs_what_was_said_or_its_price() {
        let fixed = route(Price::Fixed(Amount::new(5)));
        let charge = |status, said: Option<u128>| {
            charge_of(&fixed, &fixed.price, Amount::new(5), &measured(status, End::Complete), said.map(Amount::new))
                .units()
        };
        assert_eq!([200, 304, 399, 400, 500].map(|status| charge(status, None)), [5, 5, 5, 0, 0]);
        assert_eq!([0, 4, 5, 6].map(|said| charge(200, Some(said))), [0, 4, 5, 5]);
        assert_eq!(charge(400, Some(4)), 0);
    }

    #[test]
    fn what_nobody_reported_costs_the_most_unless_it_was_not_the_payer_who_ended_it() {
        let rate = |unit, price| Rate { unit, tiers: vec![Tier { up_to: None, price: Amount::new(price), per: 1 }] };
        let tariff = |units: Vec<Unit>| {
            let rates = units.into_iter().map(|unit| rate(unit, 10)).collect();
            route(Price::Metered(Arc::new(Tariff { base: Amount::new(1), rates, most: Amount::new(1_000) })))
        };
        let bytes = tariff(vec![Unit::ResponseBytes]);
        let tokens = tariff(vec![Unit::ResponseBytes, Unit::OutputTokens]);
        let reported = tariff(vec![Unit::ResponseBytes, Unit::Reported("x-pages".into())]);
        let ends = [End::Complete, End::PayerLeft, End::UpstreamFailed, End::Stopped];
        let charges = |route: &Route, with: fn(&mut Measured)| {
            ends.map(|end| {
                let mut measured = measured(200, end);
                with(&mut measured);
                charge_of(route, &route.price, Amount::new(1_000), &measured, None).units()
            })
        };
        assert_eq!(charges(&bytes, |_| {}), [71; 4]);
        for missing in [&tokens, &reported] {
            assert_eq!(charges(missing, |_| {}), [1_000, 1_000, 71, 71]);
        }
        assert_eq!(charges(&tokens, |it| it.tokens = Some(Tokens { output: 2, ..Tokens::default() })), [91; 4]);
        assert_eq!(charges(&reported, |it| it.reported.push(("x-pages".into(), 3))), [101; 4]);
        assert_eq!(charges(&reported, |it| it.reported.push(("x-lines".into(), 3))), [1_000, 1_000, 71, 71]);
        // What is held is the end of it, whatever the tariff says.
        let charge = charge_of(&bytes, &bytes.price, Amount::new(70), &measured(200, End::Complete), None);
        assert_eq!(charge, Amount::new(70));
    }
}
