//! Server-sent events as they pass: their count, and the JSON texts that are their data.
//!
//! Lines and events are told apart as the standard has it (WHATWG HTML, 9.2.6): a line ends with CR, LF or both, an event
//! with an empty line, and one without data is none.

use super::Found;
use super::json::JsonReader;

/// The field that matters.
const DATA: &[u8] = b"data";
/// What may stand before everything else.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[derive(Debug, Clone)]
pub(super) struct EventReader {
    /// Nothing where events are only counted.
    json: Option<JsonReader>,
    line: Line,
    /// How much of the mark has come; nothing once it cannot come any more.
    mark: Option<usize>,
    /// Whether the last byte was a CR, so that an LF belongs to it.
    after_cr: bool,
    /// Whether the event has data.
    has_data: bool,
    count: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// In the field's name, of which so much is right.
    Name(usize),
    /// After the colon, where one space belongs to nobody.
    Colon,
    Data,
    /// Anything else.
    Other,
}

impl EventReader {
    pub(super) fn new(reads_data: bool) -> Self {
        let (json, line, mark) = (reads_data.then(JsonReader::default), Line::Name(0), Some(0));
        Self { json, line, mark, after_cr: false, has_data: false, count: 0 }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn found(&self) -> &Found {
        static NOTHING: Found = Found::NOTHING;
        self.json.as_ref().map_or(&NOTHING, JsonReader::found)
    }

    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while let Some((byte, rest)) = bytes.split_first() {
            let after_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if after_cr => bytes = rest,
                b'\n' | b'\r' => {
                    self.end_line();
                    self.after_cr = *byte == b'\r';
                    bytes = rest;
                }
                _ => bytes = self.in_line(bytes),
            }
        }
    }

    /// Reads what is left of a line, or as much of it as there is.
    fn in_line<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let Some((byte, rest)) = bytes.split_first() else { return bytes };
        if let Some(matched) = self.mark.take()
            && BYTE_ORDER_MARK.get(matched) == Some(byte)
        {
            let next = matched.saturating_add(1);
            self.mark = (next < BYTE_ORDER_MARK.len()).then_some(next);
            return rest;
        }
        match self.line {
            Line::Name(matched) if DATA.get(matched) == Some(byte) => {
                self.line = Line::Name(matched.saturating_add(1));
                rest
            }
            Line::Name(matched) if matched == DATA.len() && *byte == b':' => {
                self.begin_data();
                self.line = Line::Colon;
                rest
            }
            Line::Name(_) => {
                self.line = Line::Other;
                rest
            }
            Line::Colon => {
                self.line = Line::Data;
                if *byte == b' ' { rest } else { bytes }
            }
            Line::Data | Line::Other => {
                let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(bytes.len());
                let (run, rest) = bytes.split_at(end);
                if self.line == Line::Data
                    && let Some(json) = &mut self.json
                {
                    json.read(run);
                }
                rest
            }
        }
    }

    /// Several lines of data are one text with line feeds between.
    fn begin_data(&mut self) {
        if let Some(json) = self.json.as_mut().filter(|_| self.has_data) {
            json.read(b"\n");
        }
        self.has_data = true;
    }

    fn end_line(&mut self) {
        self.mark = None;
        match std::mem::replace(&mut self.line, Line::Name(0)) {
            // The name alone is data, and empty.
            Line::Name(matched) if matched == DATA.len() => self.begin_data(),
            Line::Name(0) => self.end_event(),
            _ => {}
        }
    }

    fn end_event(&mut self) {
        if std::mem::take(&mut self.has_data) {
            self.count = self.count.saturating_add(1);
            if let Some(json) = &mut self.json {
                json.begin();
            }
        }
    }
}
