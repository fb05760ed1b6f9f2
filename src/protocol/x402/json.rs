//! JSON by hand, for the headers every request has: one pass over what comes, and text straight into a buffer.
//!
//! **Owns** a cursor that reads less than JSON allows, and the writing of strings and numbers. **Promises** that what the
//! cursor reads is JSON that `serde_json` reads too, with the same values; and that what is written is what `serde_json`
//! would write. **Does not** say what is wrong with a text: whatever it does not read is left to `serde_json`, which does.

use crate::protocol::amount::Amount;
use crate::protocol::bytes::decode_digits;

/// How deep values may be nested for the cursor; below what `serde_json` allows.
const MAX_DEPTH: usize = 32;

/// The longest number that is skipped, in bytes. Far below those that have no value as a 64-bit float.
const MAX_NUMBER_BYTES: usize = 40;

/// A place in a text that is valid UTF-8.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// The beginning of a text.
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text.as_bytes() }
    }

    /// That nothing follows but white space.
    pub(super) fn end(mut self) -> Option<()> {
        self.white_space();
        self.rest.is_empty().then_some(())
    }

    /// Passes over exactly these bytes.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(bytes)?;
        Some(())
    }

    /// Reads an object. `field` is called after each key and must read its value; keys with escapes are not read.
    pub(super) fn object(&mut self, mut field: impl FnMut(&'a [u8], &mut Self) -> Option<()>) -> Option<()> {
        self.take(b"{")?;
        self.white_space();
        if self.take(b"}").is_some() {
            return Some(());
        }
        loop {
            let key = self.string()?;
            self.white_space();
            self.take(b":")?;
            self.white_space();
            field(key, self)?;
            self.white_space();
            if self.take(b",").is_none() {
                return self.take(b"}");
            }
            self.white_space();
        }
    }

    /// Reads a string without escapes.
    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let text = self.rest.strip_prefix(b"\"")?;
        let end = text.iter().position(|byte| is_special(*byte))?;
        let (text, rest) = text.split_at_checked(end)?;
        self.rest = rest.strip_prefix(b"\"")?;
        Some(text)
    }

    /// Reads a string of `0x` and exactly `2 N` hex digits.
    pub(super) fn hex<const N: usize>(&mut self) -> Option<[u8; N]> {
        let digits = self.rest.strip_prefix(b"\"0x")?;
        let (digits, rest) = digits.split_at_checked(2 * N)?;
        self.rest = rest.strip_prefix(b"\"")?;
        let mut bytes = [0; N];
        decode_digits(digits, &mut bytes).then_some(bytes)
    }

    /// Reads an amount: a string of decimal digits in canonical form.
    pub(super) fn amount(&mut self) -> Option<Amount> {
        std::str::from_utf8(self.string()?).ok()?.parse().ok()
    }

    /// Reads a number without sign, fraction or exponent.
    pub(super) fn number(&mut self) -> Option<u64> {
        let length = self.rest.iter().position(|byte| !byte.is_ascii_digit())?;
        let (digits, rest) = self.rest.split_at_checked(length)?;
        if digits.is_empty() || (digits.len() > 1 && digits.starts_with(b"0")) || starts_a_fraction(rest) {
            return None;
        }
        self.rest = rest;
        digits.iter().try_fold(0u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
    }

    /// Reads `true` or `false`.
    pub(super) fn boolean(&mut self) -> Option<bool> {
        match self.take(b"true") {
            Some(()) => Some(true),
            None => self.take(b"false").map(|()| false),
        }
    }

    /// Passes over any value, and returns its text.
    pub(super) fn skip(&mut self) -> Option<&'a [u8]> {
        let begun = self.rest;
        self.skip_value(MAX_DEPTH)?;
        begun.get(..begun.len().checked_sub(self.rest.len())?)
    }

    fn skip_value(&mut self, depth: usize) -> Option<()> {
        match self.rest.first()? {
            b'"' => self.skip_string(),
            b'{' => {
                let depth = depth.checked_sub(1)?;
                self.object(|_, cursor| cursor.skip_value(depth))
            }
            b'[' => self.skip_array(depth.checked_sub(1)?),
            b't' | b'f' => self.boolean().map(drop),
            b'n' => self.take(b"null"),
            _ => self.skip_number(),
        }
    }

    fn skip_array(&mut self, depth: usize) -> Option<()> {
        self.take(b"[")?;
        self.white_space();
        if self.take(b"]").is_some() {
            return Some(());
        }
        loop {
            self.skip_value(depth)?;
            self.white_space();
            if self.take(b",").is_none() {
                return self.take(b"]");
            }
            self.white_space();
        }
    }

    /// A string, whose escapes are those of one letter. Those by number can name half a character.
    fn skip_string(&mut self) -> Option<()> {
        let mut rest = self.rest.strip_prefix(b"\"")?;
        loop {
            let special = rest.iter().position(|byte| is_special(*byte))?;
            match rest.get(special..)? {
                [b'"', tail @ ..] => {
                    self.rest = tail;
                    return Some(());
                }
                [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', tail @ ..] => rest = tail,
                _ => return None,
            }
        }
    }

    /// A number without an exponent.
    fn skip_number(&mut self) -> Option<()> {
        let begun = self.rest;
        self.rest = begun.strip_prefix(b"-").unwrap_or(begun);
        let whole = self.digits()?;
        if whole.len() > 1 && whole.starts_with(b"0") {
            return None;
        }
        if self.take(b".").is_some() {
            self.digits()?;
        }
        let length = begun.len().checked_sub(self.rest.len())?;
        (length <= MAX_NUMBER_BYTES && !starts_a_fraction(self.rest)).then_some(())
    }

    /// One digit or more.
    fn digits(&mut self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        (!digits.is_empty()).then_some(digits)
    }

    pub(super) fn white_space(&mut self) {
        while let [b' ' | b'\n' | b'\t' | b'\r', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }
}

/// What ends a run of plain characters in a string: its end, an escape, or a control character, which may not be there.
fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Whether digits before this were not the whole number.
fn starts_a_fraction(rest: &[u8]) -> bool {
    matches!(rest.first(), Some(b'.' | b'e' | b'E'))
}

/// Writes a string with its quotes.
pub(super) fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    write_part(out, text);
    out.push(b'"');
}

/// Writes a part of a string.
pub(super) fn write_part(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    while let Some((plain, special, tail)) =
        rest.iter().position(|byte| is_special(*byte)).and_then(|at| split_around(rest, at))
    {
        out.extend_from_slice(plain);
        match special {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', special]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            control => {
                let [high, low] = [control >> 4, control & 0x0f]
                    .map(|nibble| if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 });
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
        rest = tail;
    }
    out.extend_from_slice(rest);
}

fn split_around(bytes: &[u8], at: usize) -> Option<(&[u8], u8, &[u8])> {
    let (before, rest) = bytes.split_at_checked(at)?;
    let (byte, after) = rest.split_first()?;
    Some((before, *byte, after))
}

/// Writes a decimal number.
pub(super) fn write_number(out: &mut Vec<u8>, number: u128) {
    // Nearly all amounts fit in 64 bits, whose division is one instruction.
    match u64::try_from(number) {
        Ok(mut rest) => {
            let mut digits = [0u8; 20];
            let mut begun = digits.len();
            for digit in digits.iter_mut().rev() {
                *digit = b'0' + u8::try_from(rest % 10).expect("a remainder of ten is below ten");
                rest /= 10;
                begun -= 1;
                if rest == 0 {
                    break;
                }
            }
            out.extend_from_slice(digits.get(begun..).unwrap_or_default());
        }
        Err(_) => out.extend_from_slice(number.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn skipped(text: &str) -> bool {
        let mut cursor = Cursor::new(text);
        cursor.skip().is_some() && cursor.end().is_some()
    }

    #[test]
    fn what_is_skipped_is_json_and_what_is_not_json_is_not_skipped() {
        let good = [
            "{}",
            "[]",
            " [1, 2 ,3]\n",
            r#"{"a":{"b":[null,true,false,"x\n\"y\\"]}}"#,
            "0",
            "-0",
            "-1.25",
            "10",
            r#""é \/""#,
            "[[[[]]]]",
        ];
        for text in good {
            assert!(serde_json::from_str::<Value>(text).is_ok(), "{text}");
            assert!(skipped(text.trim_start()), "{text}");
        }
        let bad = [
            "",
            "{",
            "}",
            "[1,]",
            "[,1]",
            r#"{"a":1,}"#,
            r#"{"a"}"#,
            r#"{a:1}"#,
            "01",
            "-",
            "1.",
            ".5",
            "+1",
            "tru",
            "nul",
            "\"a",
            "\"a\nb\"",
            r#""\x""#,
            r#""\"#,
            "1 2",
            "[1}",
            "{\"a\":1]",
            "truee",
            "'a'",
            "NaN",
            "[1 2]",
            "\u{0}",
        ];
        for text in bad {
            assert!(serde_json::from_str::<Value>(text).is_err(), "{text}");
            assert!(!skipped(text), "{text}");
        }
        // JSON, and left to others.
        for text in [r#""\u0041""#, "1e5", "1.5E3", r#"{"\n":1}"#] {
            assert!(serde_json::from_str::<Value>(text).is_ok(), "{text}");
            assert!(!skipped(text), "{text}");
        }
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(skipped(&nested(MAX_DEPTH)));
        assert!(!skipped(&nested(MAX_DEPTH + 1)));
        assert!(skipped(&"1".repeat(MAX_NUMBER_BYTES)));
        assert!(!skipped(&"1".repeat(MAX_NUMBER_BYTES + 1)));
    }

    #[test]
    fn numbers_are_read_in_their_one_form() {
        let read = |text| Cursor::new(text).number();
        assert_eq!(
            [read("0,"), read("86400}"), read("18446744073709551615 ")],
            [Some(0), Some(86_400), Some(u64::MAX)]
        );
        for bad in ["18446744073709551616,", "01,", "1.0,", "1e3,", "-1,", ",", "", "\"1\",", "1"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_is_written_as_serde_writes_it(text in any::<String>(), number: u128, small: u64, tiny in 0u128..1000) {
            let mut out = Vec::new();
            write_string(&mut out, &text);
            prop_assert_eq!(&out, &serde_json::to_vec(&text).unwrap());
            for number in [number, u128::from(small), tiny, 10 * u128::from(small)] {
                out.clear();
                write_number(&mut out, number);
                prop_assert_eq!(std::str::from_utf8(&out).unwrap(), number.to_string());
            }
        }

        #[test]
        fn control_characters_are_escaped_as_serde_does(bytes in proptest::collection::vec(0u8..0x80, 0..40)) {
            let text = String::from_utf8(bytes).unwrap();
            let mut out = Vec::new();
            write_string(&mut out, &text);
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
        }

        #[test]
        fn whatever_is_skipped_is_json(text in r#"[\[\]{}:,"\\ 0-9.eE+\-truefalsn\n\t]{0,24}"#) {
            if skipped(&text) {
                prop_assert!(serde_json::from_str::<Value>(&text).is_ok(), "{}", text);
            }
        }
    }
}
