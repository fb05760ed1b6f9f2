//! Tables: CSV for spreadsheets, aligned columns for people.

/// Ends a record, says RFC 4180.
const RECORD_END: &str = "\r\n";

/// One record of CSV.
#[derive(Debug, Default)]
pub(super) struct Record(String);

impl Record {
    /// A record of column names.
    pub(super) fn of_names(names: &[&str]) -> Self {
        names.iter().fold(Self::default(), |record, name| record.text(name))
    }

    /// Adds a text that came from people or programs outside.
    ///
    /// A spreadsheet takes a field that begins with `=`, `+`, `-`, `@`, a tab or a line end for a formula and carries
    /// it out, quoted or not. Such a text gets an apostrophe before it, the spreadsheets' own sign for "this is text".
    /// So does one that begins with an apostrophe, so that removing one from each text that has it gives back what was
    /// there.
    #[must_use]
    pub(super) fn text(self, text: &str) -> Self {
        if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '\'']) {
            self.field(&format!("'{text}"))
        } else {
            self.field(text)
        }
    }

    /// Adds a value that was made here: a number, a time, an id.
    #[must_use]
    pub(super) fn value(self, value: impl std::fmt::Display) -> Self {
        self.field(&value.to_string())
    }

    /// Adds a value or, where there is none, nothing.
    #[must_use]
    pub(super) fn maybe(self, value: Option<impl std::fmt::Display>) -> Self {
        match value {
            Some(value) => self.value(value),
            None => self.field(""),
        }
    }

    fn field(mut self, field: &str) -> Self {
        if self.0.is_empty() {
            // The first field; where it is empty, quotes keep it apart from no field at all.
            self.0.push_str(&if field.is_empty() { "\"\"".to_owned() } else { quoted(field) });
        } else {
            self.0.push(',');
            self.0.push_str(&quoted(field));
        }
        self
    }

    /// The record with its end.
    pub(super) fn finish(mut self) -> String {
        self.0.push_str(RECORD_END);
        self.0
    }
}

fn quoted(field: &str) -> String {
    if field.contains(['"', ',', '\r', '\n']) || field.starts_with(' ') || field.ends_with(' ') {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

/// To which side of its column a cell goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Side {
    /// Names.
    Left,
    /// Numbers.
    Right,
}

/// Aligns rows; the first is the headings. No column is wider than its widest cell, and no line ends in spaces.
pub(in crate::cli) fn aligned(sides: &[Side], rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..sides.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(sides).zip(&widths).map(|((cell, side), width)| match side {
            Side::Left => format!("{cell:<width$}"),
            Side::Right => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// An id in few characters: enough to tell channels apart, and to ask for one.
pub(super) fn short(id: &str) -> String {
    match (id.get(..10), id.get(id.len().saturating_sub(4)..)) {
        (Some(start), Some(end)) if id.len() > 16 => format!("{start}…{end}"),
        _ => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_as_rfc_4180_says() {
        let record = Record::default().text("plain").text("a,b").text("say \"hi\"").text("two\r\nlines").text(" x ");
        assert_eq!(record.finish(), "plain,\"a,b\",\"say \"\"hi\"\"\",\"two\r\nlines\",\" x \"\r\n");
        let record = Record::default().text("").maybe(None::<u64>).maybe(Some(7)).value("é");
        assert_eq!(record.finish(), "\"\",,7,é\r\n");
        assert_eq!(Record::of_names(&["at", "route"]).finish(), "at,route\r\n");
    }

    #[test]
    fn no_text_from_outside_is_a_formula() {
        for (text, field) in [
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "\"'\r=1\""),
            ("\n=1", "\"'\n=1\""),
            ("=HYPERLINK(\"http://h\",\"x\")", "\"'=HYPERLINK(\"\"http://h\"\",\"\"x\"\")\""),
            ("'quoted'", "''quoted'"),
            ("/v1/a=b", "/v1/a=b"),
            ("a-b", "a-b"),
        ] {
            assert_eq!(Record::default().text(text).finish(), format!("{field}\r\n"), "{text:?}");
        }
        // Our own negative numbers are numbers.
        assert_eq!(Record::default().value(-500).finish(), "-500\r\n");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["CHANNEL", "CHARGED", ""], ["0x1234…", "$0.50", "leaving"], ["é", "$12.00", ""]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        let lines = aligned(&[Side::Left, Side::Right, Side::Left], &rows);
        assert_eq!(lines, ["CHANNEL  CHARGED", "0x1234…    $0.50  leaving", "é         $12.00"]);
    }

    #[test]
    fn ids_are_shortened_so_that_both_ends_show() {
        assert_eq!(short(&format!("0x{}", "0123456789abcdef".repeat(4))), "0x01234567…cdef");
        assert_eq!(short("0x12345678abcdef"), "0x12345678abcdef");
        assert_eq!(short(""), "");
    }
}
