//! Sizes of memory as operators write them: a whole number and a unit, `64 KiB`, `384 MiB`, `2 GiB`.

/// The units with their bytes.
const UNITS: [(&str, usize); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Why a text is no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a whole number followed by a unit.
    #[error("a size is a whole number and a unit (KiB, MiB, GiB), as in \"384 MiB\"; \"0\" is nothing")]
    Form,
    /// More than can be counted.
    #[error("the size is too large")]
    TooLarge,
}

/// Reads a size, in bytes. A space before the unit is welcome and not needed; nothing needs no unit.
pub fn parse_size(text: &str) -> Result<usize, SizeError> {
    if text == "0" {
        return Ok(0);
    }
    let end_of_digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end_of_digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(SizeError::Form)?;
    if digits.is_empty() {
        return Err(SizeError::Form);
    }
    let count: usize = digits.parse().map_err(|_| SizeError::TooLarge)?;
    count.checked_mul(*bytes).ok_or(SizeError::TooLarge)
}

/// Writes a size in the largest unit that holds it exactly.
pub(super) fn write_size(bytes: usize) -> String {
    let whole = |(name, unit): &(&str, usize)| {
        let count = bytes.checked_div(*unit).filter(|_| bytes > 0 && bytes.is_multiple_of(*unit))?;
        Some(format!("{count} {name}"))
    };
    UNITS.iter().rev().find_map(whole).unwrap_or_else(|| bytes.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_and_a_unit() {
        let cases = [
            ("384 MiB", Ok(402_653_184)),
            ("64KiB", Ok(65_536)),
            ("2 GiB", Ok(2_147_483_648)),
            ("0", Ok(0)),
            ("0 MiB", Ok(0)),
            ("1", Err(SizeError::Form)),
            ("", Err(SizeError::Form)),
            ("MiB", Err(SizeError::Form)),
            ("1 MB", Err(SizeError::Form)),
            ("1  MiB", Err(SizeError::Form)),
            ("-1 MiB", Err(SizeError::Form)),
            ("1.5 GiB", Err(SizeError::Form)),
            ("99999999999 GiB", Err(SizeError::TooLarge)),
            ("99999999999999999999999 KiB", Err(SizeError::TooLarge)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_size(text), expected, "{text}");
        }
    }

    #[test]
    fn a_size_is_written_as_it_is_read() {
        for text in ["384 MiB", "64 KiB", "2 GiB", "1025 KiB", "0"] {
            assert_eq!(parse_size(text).map(write_size).as_deref(), Ok(text));
        }
        assert_eq!(write_size(1_000), "1000");
    }
}
