//! JSON as it passes: where it is, and the numbers of a usage report.

use super::{Count, Field, Fields, Found, MAX_COUNT};

/// How deep a JSON text may be nested; a deeper one is read no further.
const MAX_DEPTH: usize = 128;

/// How many of the outer levels can matter: the whole, `response`, `usage`, its details.
const TRACKED: usize = 4;

/// The longest key that matters, `cache_creation_input_tokens`.
const MAX_KEY_BYTES: usize = 27;

/// Reads JSON texts, one after the other.
#[derive(Debug, Clone)]
pub(super) struct JsonReader {
    state: State,
    /// How many objects and arrays are open.
    depth: usize,
    /// Which of them are arrays, the outermost in the lowest bit.
    arrays: u128,
    /// What the outer ones are.
    places: [Place; TRACKED],
    key: Key,
    number: Number,
    /// The report that is being read.
    report: Fields,
    found: Found,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A value comes.
    Value,
    /// A value comes, or the end of the array that has just begun.
    FirstValue,
    /// A key comes, or the end of the object that has just begun.
    FirstKey,
    NextKey,
    InKey,
    /// The byte after a backslash.
    KeyEscape,
    Colon,
    InString,
    StringEscape,
    InNumber,
    /// In `true`, `false` or `null`, with what is left of it.
    InWord(&'static [u8]),
    AfterValue,
    /// It is no JSON.
    Broken,
}

/// What an object or array is, as far as usage reports go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The whole.
    Whole,
    /// `response`, or `message`, which says what is known at the beginning.
    Envelope {
        beginning: bool,
    },
    /// `usage`.
    Usage {
        beginning: bool,
    },
    /// `prompt_tokens_details` or `input_tokens_details` in it.
    Details,
    Other,
}

/// The key of the value that is being read.
#[derive(Debug, Clone, Copy)]
struct Key {
    bytes: [u8; MAX_KEY_BYTES],
    /// How long it is; none where it is too long or escaped to be one that matters.
    length: Option<usize>,
}

impl Key {
    const EMPTY: Self = Self { bytes: [0; MAX_KEY_BYTES], length: Some(0) };

    fn push(&mut self, run: &[u8]) {
        self.length = self.length.and_then(|length| {
            let end = length.checked_add(run.len())?;
            self.bytes.get_mut(length..end)?.copy_from_slice(run);
            Some(end)
        });
    }

    fn text(&self) -> &[u8] {
        self.length.and_then(|length| self.bytes.get(..length)).unwrap_or_default()
    }
}

/// A number that is being read.
#[derive(Debug, Clone, Copy)]
struct Number {
    /// Its value so far; none where it is no whole one.
    value: Option<u64>,
    begun: bool,
}

impl Number {
    const EMPTY: Self = Self { value: Some(0), begun: false };

    fn push(&mut self, byte: u8) {
        self.value = match (byte, self.value) {
            // No number begins with a zero but zero itself.
            (b'0'..=b'9', Some(value)) if value > 0 || !self.begun => {
                Some(value.saturating_mul(10).saturating_add(u64::from(byte - b'0')).min(MAX_COUNT))
            }
            _ => None,
        };
        self.begun = true;
    }

    fn count(self) -> Count {
        self.value.map_or(Count::Spoiled, Count::Is)
    }
}

impl Default for JsonReader {
    fn default() -> Self {
        Self {
            state: State::Value,
            depth: 0,
            arrays: 0,
            places: [Place::Other; TRACKED],
            key: Key::EMPTY,
            number: Number::EMPTY,
            report: Fields::default(),
            found: Found::default(),
        }
    }
}

impl JsonReader {
    /// What was found so far.
    pub(super) fn found(&self) -> &Found {
        &self.found
    }

    /// Begins another text, whatever became of the one before.
    pub(super) fn begin(&mut self) {
        *self = Self { found: self.found, ..Self::default() };
    }

    /// Reads on.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while let Some((byte, rest)) = bytes.split_first() {
            match self.state {
                State::Broken => return,
                // Most of an answer is inside strings.
                State::InString | State::InKey => {
                    let end = bytes.iter().position(|byte| matches!(byte, b'"' | b'\\')).unwrap_or(bytes.len());
                    let (run, rest) = bytes.split_at(end);
                    if self.state == State::InKey {
                        self.key.push(run);
                    }
                    bytes = match rest.split_first() {
                        Some((end, rest)) => {
                            self.end_run(*end);
                            rest
                        }
                        None => rest,
                    };
                }
                // What ends a number is not part of it.
                State::InNumber if !is_of_number(*byte) => self.end_scalar(self.number.count()),
                _ => {
                    self.step(*byte);
                    bytes = rest;
                }
            }
        }
    }

    /// A quote or a backslash, in a string.
    fn end_run(&mut self, byte: u8) {
        match (self.state, byte) {
            (State::InKey, b'"') => self.state = State::Colon,
            (State::InKey, _) => {
                // Nobody writes a key that matters so.
                self.key.length = None;
                self.state = State::KeyEscape;
            }
            (_, b'"') => self.end_scalar(Count::Spoiled),
            _ => self.state = State::StringEscape,
        }
    }

    fn step(&mut self, byte: u8) {
        let space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match self.state {
            State::KeyEscape => self.state = State::InKey,
            State::StringEscape => self.state = State::InString,
            State::InNumber => self.number.push(byte),
            State::InWord(left) => self.in_word(byte, left),
            _ if space => {}
            State::FirstValue if byte == b']' => self.close(),
            State::Value | State::FirstValue => self.begin_value(byte),
            State::FirstKey if byte == b'}' => self.close(),
            State::FirstKey | State::NextKey if byte == b'"' => {
                self.key = Key::EMPTY;
                self.state = State::InKey;
            }
            State::Colon if byte == b':' => self.state = State::Value,
            State::AfterValue => match (byte, self.in_array()) {
                (b',', true) => self.state = State::Value,
                (b',', false) => self.state = State::NextKey,
                (b']', true) | (b'}', false) => self.close(),
                _ => self.state = State::Broken,
            },
            _ => self.state = State::Broken,
        }
    }

    fn begin_value(&mut self, byte: u8) {
        match byte {
            b'{' => self.open(false),
            b'[' => self.open(true),
            b'"' => self.state = State::InString,
            b'-' | b'0'..=b'9' => {
                self.number = Number::EMPTY;
                self.number.push(byte);
                self.state = State::InNumber;
            }
            b't' => self.state = State::InWord(b"rue"),
            b'f' => self.state = State::InWord(b"alse"),
            b'n' => self.state = State::InWord(b"ull"),
            _ => self.state = State::Broken,
        }
    }

    fn in_word(&mut self, byte: u8, left: &'static [u8]) {
        match left.split_first() {
            Some((expected, rest)) if *expected == byte => match (rest.is_empty(), byte) {
                (false, _) => self.state = State::InWord(rest),
                // Only `null` ends so: nothing is said.
                (true, b'l') => self.end_value(),
                (true, _) => self.end_scalar(Count::Spoiled),
            },
            _ => self.state = State::Broken,
        }
    }

    fn in_array(&self) -> bool {
        self.depth.checked_sub(1).is_some_and(|level| (self.arrays >> level) & 1 == 1)
    }

    /// What the innermost object or array is.
    fn place(&self) -> Place {
        let place = self.depth.checked_sub(1).and_then(|level| self.places.get(level));
        place.copied().unwrap_or(Place::Other)
    }

    fn open(&mut self, array: bool) {
        if self.depth >= MAX_DEPTH {
            self.state = State::Broken;
            return;
        }
        // In the place of a count, it spoils that.
        if let Some(field) = self.field() {
            self.report.set(field, Count::Spoiled);
        }
        let place = if array { Place::Other } else { self.place_within() };
        if matches!(place, Place::Usage { .. }) {
            self.report = Fields::default();
        }
        if let Some(level) = self.places.get_mut(self.depth) {
            *level = place;
        }
        let bit = 1 << self.depth;
        self.arrays = if array { self.arrays | bit } else { self.arrays & !bit };
        self.depth = self.depth.saturating_add(1);
        self.state = if array { State::FirstValue } else { State::FirstKey };
    }

    /// What an object is that begins here.
    fn place_within(&self) -> Place {
        if self.depth == 0 {
            return Place::Whole;
        }
        match (self.place(), self.key.text()) {
            (Place::Whole, b"usage") => Place::Usage { beginning: false },
            (Place::Whole, b"response") => Place::Envelope { beginning: false },
            (Place::Whole, b"message") => Place::Envelope { beginning: true },
            (Place::Envelope { beginning }, b"usage") => Place::Usage { beginning },
            (Place::Usage { .. }, b"prompt_tokens_details" | b"input_tokens_details") => Place::Details,
            _ => Place::Other,
        }
    }

    /// Which field of a report the value of this key is.
    fn field(&self) -> Option<Field> {
        match (self.place(), self.key.text()) {
            (Place::Usage { .. }, b"prompt_tokens") => Some(Field::Prompt),
            (Place::Usage { .. }, b"input_tokens") => Some(Field::Input),
            (Place::Usage { .. }, b"completion_tokens" | b"output_tokens") => Some(Field::Output),
            (Place::Usage { .. }, b"cache_read_input_tokens") => Some(Field::CacheRead),
            (Place::Usage { .. }, b"cache_creation_input_tokens") => Some(Field::CacheWrite),
            (Place::Details, b"cached_tokens") => Some(Field::Cached),
            _ => None,
        }
    }

    fn end_scalar(&mut self, count: Count) {
        if let Some(field) = self.field() {
            self.report.set(field, count);
        }
        self.end_value();
    }

    fn close(&mut self) {
        if let Place::Usage { beginning } = self.place() {
            self.found.add(self.report, beginning);
        }
        self.depth = self.depth.saturating_sub(1);
        self.end_value();
    }

    fn end_value(&mut self) {
        // Another text may follow the one that ends here.
        self.state = if self.depth == 0 { State::Value } else { State::AfterValue };
    }
}

fn is_of_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}
