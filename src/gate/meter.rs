//! What a served request really cost.
//!
//! **Owns** the reading of the `Settlement-Overrides` header, by which an upstream reports less than the quoted price:
//! `{"amount": "1234"}` in atomic units, `"50%"` of the price (two decimals at most, rounded down), or `"$0.05"`.
//! **Promises** a charge of at most the price: it is the ceiling the payer signed for. A report that cannot be read
//! charges the price, which is what the quote said. **Does not** read bodies.

use http::HeaderMap;
use serde_json::Value;

use crate::protocol::Amount;

/// The upstream's report. It never reaches the client.
pub const SETTLEMENT_OVERRIDES: &str = "settlement-overrides";

/// The charge for an answer with these headers. `id` is the request's, for the log.
pub(super) fn charge(headers: &HeaderMap, price: Amount, decimals: u8, id: Option<&str>) -> Amount {
    let Some(report) = headers.get(SETTLEMENT_OVERRIDES) else { return price };
    match read(report.as_bytes(), price, decimals) {
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
    }
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
    use super::*;

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
            assert_eq!(charge(&headers, Amount::new(2000), 6, None), Amount::new(expected), "{report}");
        }
        assert_eq!(charge(&HeaderMap::new(), Amount::new(2000), 6, None), Amount::new(2000));
    }
}
