//! Durations as operators write them: a whole number and a unit, `500ms`, `30s`, `10m`, `1d`.

use std::time::Duration;

/// The units, from the largest to the smallest, with their milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Why a text is no duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not a whole number followed by a unit.
    #[error("a duration is a whole number and a unit (ms, s, m, h, d), as in \"30s\"")]
    Form,
    /// A number without a unit.
    #[error("a duration needs a unit (ms, s, m, h, d), as in \"30s\"")]
    NoUnit,
    /// More than can be counted.
    #[error("the duration is too long")]
    TooLong,
}

/// Reads a duration.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let end_of_digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end_of_digits);
    if digits.is_empty() {
        return Err(DurationError::Form);
    }
    if unit.is_empty() {
        return Err(DurationError::NoUnit);
    }
    let (_, unit_ms) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(DurationError::Form)?;
    let count: u64 = digits.parse().map_err(|_| DurationError::TooLong)?;
    count.checked_mul(*unit_ms).map(Duration::from_millis).ok_or(DurationError::TooLong)
}

/// Writes a duration in the largest unit that holds it exactly; anything below a millisecond is dropped.
pub fn write_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    UNITS
        .iter()
        .find(|(_, unit_ms)| ms.is_multiple_of(u128::from(*unit_ms)) && ms > 0)
        .and_then(|(name, unit_ms)| Some(format!("{}{name}", ms.checked_div(u128::from(*unit_ms))?)))
        .unwrap_or_else(|| "0s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        let cases = [
            ("500ms", Ok(500)),
            ("30s", Ok(30_000)),
            ("10m", Ok(600_000)),
            ("2h", Ok(7_200_000)),
            ("1d", Ok(86_400_000)),
            ("0s", Ok(0)),
            ("", Err(DurationError::Form)),
            ("s", Err(DurationError::Form)),
            ("-1s", Err(DurationError::Form)),
            ("1.5s", Err(DurationError::Form)),
            ("1 s", Err(DurationError::Form)),
            ("1m30s", Err(DurationError::Form)),
            ("1M", Err(DurationError::Form)),
            ("1w", Err(DurationError::Form)),
            ("30", Err(DurationError::NoUnit)),
            ("99999999999999999999s", Err(DurationError::TooLong)),
            ("18446744073709551615d", Err(DurationError::TooLong)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_duration_survives_its_text(ms in 0u64..=1 << 50) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&write_duration(duration)), Ok(duration));
        }
    }
}
