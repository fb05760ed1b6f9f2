//! What is wrong with a config file, in the form an operator can act on.
//!
//! **Promises** that nothing rendered here shows a secret: a source line that holds a key reference or an RPC URL is
//! cut behind its `=`, and a run of hex digits as long as a private key is blotted out wherever it stands.

use std::fmt;
use std::ops::Range;

use serde_json::{Value, json};

use crate::changed::Seen;

/// Digits of a private key in hex.
const KEY_DIGITS: usize = 64;
/// Source lines are shown up to this many characters.
const MAX_SHOWN_CHARS: usize = 120;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where in the file; `None` if it is about what is not there.
    pub place: Option<Place>,
    /// Which key, as in `[server].listen`; empty if it is about the file.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to write instead.
    pub fix: Option<String>,
}

/// A place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The character in it, from 1.
    pub column: usize,
    /// How many characters are meant.
    pub width: usize,
    /// The line itself, without secrets.
    pub source: String,
}

/// Everything that is wrong with a file, in the file's order; at least one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    file: String,
    errors: Vec<ConfigError>,
    /// The files that it names and that were read with it.
    beside: Vec<Seen>,
}

impl ConfigErrors {
    pub(super) fn new(file: &str, mut errors: Vec<ConfigError>) -> Self {
        let position = |error: &ConfigError| error.place.as_ref().map(|place| (place.line, place.column));
        // What is missing has no place and comes last.
        errors.sort_by_key(|error| (error.place.is_none(), position(error)));
        Self { file: file.to_owned(), errors, beside: Vec::new() }
    }

    /// The same of a file that names others, one of which may be what is wrong.
    #[must_use]
    pub(super) fn beside(self, files: Vec<Seen>) -> Self {
        Self { beside: files, ..self }
    }

    /// The files that it names and that were read with it, as they were before: a change of one of them may be the cure.
    pub fn files(&self) -> &[Seen] {
        &self.beside
    }

    /// A file that the config names and that cannot be used.
    pub(super) fn unusable(file: &str, key: &str, named: &std::path::Path, problem: &str) -> Self {
        let problem = format!("{} cannot be used: {problem}", named.display());
        Self::new(file, vec![ConfigError { place: None, key: key.to_owned(), problem, fix: None }])
    }

    pub(super) fn unreadable(file: &str, problem: &str) -> Self {
        let error = ConfigError {
            place: None,
            key: String::new(),
            problem: format!("cannot be read: {problem}"),
            fix: Some("name a config file with --config; config.example.toml is one to start from".to_owned()),
        };
        Self::new(file, vec![error])
    }

    /// The errors, in the file's order.
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }

    /// The file they are about, as it was named.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// For programs: an array of objects with `file`, `line`, `column`, `key`, `problem` and `fix`.
    pub fn to_json(&self) -> Value {
        let each = self.errors.iter().map(|error| {
            json!({
                "file": self.file,
                "line": error.place.as_ref().map(|place| place.line),
                "column": error.place.as_ref().map(|place| place.column),
                "key": (!error.key.is_empty()).then_some(&error.key),
                "problem": error.problem,
                "fix": error.fix,
            })
        });
        Value::Array(each.collect())
    }

    /// For people, each error with its source line; coloured if asked.
    pub fn render(&self, colour: bool) -> String {
        let paint = |code: &str, text: &str| {
            if colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
        };
        let mut out = String::new();
        for error in &self.errors {
            let place = error.place.as_ref();
            let at = place.map(|place| format!(":{}:{}", place.line, place.column)).unwrap_or_default();
            let key = if error.key.is_empty() { String::new() } else { format!("{}: ", error.key) };
            let fix = error.fix.as_ref().map(|fix| format!("; {fix}")).unwrap_or_default();
            let head = paint("1;31", "error:");
            out.push_str(&format!("{head} {}{at} {}{}{fix}\n", self.file, paint("1", &key), error.problem));
            if let Some(place) = place {
                out.push_str(&excerpt(place, paint));
            }
        }
        let count = match self.errors.len() {
            1 => "1 error".to_owned(),
            more => format!("{more} errors"),
        };
        out.push_str(&format!("{count} in {}\n", self.file));
        out
    }
}

fn excerpt(place: &Place, paint: impl Fn(&str, &str) -> String) -> String {
    let number = place.line.to_string();
    let shown: String = place.source.chars().take(MAX_SHOWN_CHARS).collect();
    let before = place.column.saturating_sub(1);
    let room = shown.chars().count().saturating_sub(before).max(1);
    if before > shown.chars().count() {
        return String::new();
    }
    let carets = "^".repeat(place.width.clamp(1, room));
    // Tabs stay tabs, so that the caret stands where the terminal puts the character.
    let indent: String = shown.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let blank = " ".repeat(number.len());
    format!("  {number} | {shown}\n  {blank} | {indent}{}\n", paint("31", &carets))
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for ConfigErrors {}

impl Place {
    /// The place of a byte range of `text`.
    ///
    /// `known` says that the line's key is one we know, so that its value cannot be a secret under a mistyped name.
    pub(super) fn of(text: &str, span: Range<usize>, known: bool) -> Self {
        let start = floor(text, span.start);
        let end = floor(text, span.end).max(start);
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline.saturating_add(1));
        let line = text.get(line_start..).unwrap_or_default().lines().next().unwrap_or_default();
        let meant = text.get(start..end).unwrap_or_default().lines().next().unwrap_or_default();
        Self {
            line: before.matches('\n').count().saturating_add(1),
            column: text.get(line_start..start).unwrap_or_default().chars().count().saturating_add(1),
            width: meant.chars().count().max(1),
            source: without_secrets(line, known),
        }
    }
}

/// The nearest character boundary at or before a byte.
fn floor(text: &str, byte: usize) -> usize {
    (0..=byte.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

fn without_secrets(line: &str, known: bool) -> String {
    let printable: String = line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
    let lower = printable.to_ascii_lowercase();
    // Generous: a line is cut rather than shown if it so much as looks like one with a secret.
    let suspect =
        ["rpc", "key", "secret", "@"].iter().any(|sign| lower.contains(sign)) || (!known && lower.contains("://"));
    if !suspect || !lower.contains(['"', '\'', '=']) {
        return blot(&printable);
    }
    match printable.split_once('=') {
        Some((key, _)) if !key.contains(['"', '\'']) => format!("{key}= …"),
        _ => "…".to_owned(),
    }
}

/// Replaces every run of hex digits that is long enough to be a private key.
pub(super) fn blot(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut run = String::new();
    for c in text.chars().map(Some).chain([None]) {
        if let Some(digit) = c.filter(char::is_ascii_hexdigit) {
            run.push(digit);
            continue;
        }
        out.push_str(if run.len() >= KEY_DIGITS { "…" } else { &run });
        run.clear();
        out.extend(c);
    }
    out
}
