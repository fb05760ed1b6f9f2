//! Sections of a TOML document, read key by key.
//!
//! **Owns** the collection of errors while a file is read. **Promises** that reading goes on behind an error, so that
//! all of them are found; that a key nobody asked for is an error; and that the set of known keys is the set of keys
//! that are asked for, and so cannot be outdated. **Does not** know what any key means.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value};
use toml::de::{DeInteger, DeTable, DeValue};

use super::error::{ConfigError, Place, blot};
use crate::changed::Seen;

/// So many errors are reported; who has more has another kind of problem.
const MAX_ERRORS: usize = 100;
/// Values from the file are quoted in errors up to this many characters.
const MAX_QUOTED_CHARS: usize = 80;
/// How alike two names must be for one to be offered for the other (Jaro-Winkler).
const ALIKE: f64 = 0.84;

/// What people write for keys that are called otherwise and do not look alike.
const MEANT: [(&str, &str); 3] = [("max", "most"), ("grace", "quote_grace"), ("timeout", "response_timeout")];

/// The errors found so far, and the keys that were asked for.
pub(super) struct Report<'a> {
    text: &'a str,
    errors: RefCell<Vec<ConfigError>>,
    known: RefCell<BTreeSet<(String, &'static str)>>,
    unknown: RefCell<Vec<Unknown>>,
    beside: RefCell<Vec<Seen>>,
}

struct Unknown {
    heading: String,
    known_as: String,
    key: String,
    span: Range<usize>,
}

/// What is wrong with a value, and what to write instead.
pub(super) struct Problem {
    what: String,
    fix: Option<String>,
}

impl Problem {
    pub(super) fn new(what: impl Display) -> Self {
        Self { what: what.to_string(), fix: None }
    }

    pub(super) fn fix(self, fix: impl Display) -> Self {
        Self { fix: Some(fix.to_string()), ..self }
    }
}

/// What the file says for a key.
pub(super) enum Given<T> {
    /// Nothing.
    Absent,
    /// Something that was refused and reported.
    Refused,
    /// This.
    Value(T, Range<usize>),
}

impl<T> Given<T> {
    /// The value, or the default where there is none. `None` if it was refused.
    pub(super) fn or(self, default: T) -> Option<T> {
        match self {
            Self::Absent => Some(default),
            other => other.value(),
        }
    }

    /// The value that may be left out. `None` if it was refused.
    pub(super) fn optional(self) -> Option<Option<T>> {
        match self {
            Self::Absent => Some(None),
            Self::Refused => None,
            Self::Value(value, _) => Some(Some(value)),
        }
    }

    pub(super) fn value(self) -> Option<T> {
        match self {
            Self::Value(value, _) => Some(value),
            _ => None,
        }
    }

    pub(super) fn span(&self) -> Option<Range<usize>> {
        match self {
            Self::Value(_, span) => Some(span.clone()),
            _ => None,
        }
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let (errors, known, unknown) = Default::default();
        Self { text, errors, known, unknown, beside: RefCell::default() }
    }

    /// Notes a file that is about to be read with this one.
    pub(super) fn opens(&self, file: &Path) {
        self.beside.borrow_mut().push(Seen::before_reading(file.to_owned()));
    }

    /// The files that were read with this one.
    pub(super) fn opened(&self) -> Vec<Seen> {
        self.beside.borrow().clone()
    }

    /// Records an error at a place, or about something that has none.
    pub(super) fn error(&self, span: Option<Range<usize>>, key: &str, problem: Problem) {
        self.push(span, true, key, problem);
    }

    /// Records that the text is no TOML.
    pub(super) fn syntax_error(&self, error: &toml::de::Error) {
        let problem = Problem::new(format!("not valid TOML: {}", error.message()));
        let message = error.message();
        let problem = if message.contains("duplicate") {
            problem.fix("keep one of the two; a section's keys stand together under one heading")
        } else if message.contains("quoted") || message.contains("invalid float") || message.contains("invalid integer")
        {
            problem.fix("put text in quotes, as in listen = \"127.0.0.1:4020\"")
        } else if message.contains("invalid basic string") {
            problem.fix("close the text with a quote on the same line")
        } else {
            problem
        };
        self.push(error.span(), false, "", problem);
    }

    fn push(&self, span: Option<Range<usize>>, known: bool, key: &str, problem: Problem) {
        let mut errors = self.errors.borrow_mut();
        // To find a place takes a look through the text, which is why it waits until it is certain to be shown.
        if errors.len() < MAX_ERRORS {
            errors.push(ConfigError {
                place: span.map(|span| Place::of(self.text, span, known)),
                key: key.to_owned(),
                problem: blot(&problem.what),
                fix: problem.fix.as_deref().map(blot),
            });
        }
    }

    /// The line a place is in, from 1.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        Place::of(self.text, span.clone(), true).line
    }

    /// The keys that were asked for, as section heading and key.
    pub(super) fn known(&self) -> BTreeSet<(String, &'static str)> {
        self.known.borrow().clone()
    }

    /// Reports the keys nobody asked for, and returns all errors.
    pub(super) fn finish(self) -> Vec<ConfigError> {
        let known = self.known.borrow();
        for unknown in self.unknown.borrow().iter() {
            let here = || known.iter().filter(|(heading, _)| *heading == unknown.known_as).map(|(_, key)| *key);
            let elsewhere: Vec<_> =
                known.iter().filter(|(_, key)| *key == unknown.key).map(|(heading, _)| heading.as_str()).collect();
            let what = if unknown.heading.is_empty() { "unknown section or key" } else { "unknown key" };
            let problem = Problem::new(what);
            let meant = MEANT.iter().find(|(typed, meant)| *typed == unknown.key && here().any(|key| key == *meant));
            let problem = match meant.map(|(_, meant)| *meant).or_else(|| closest(&unknown.key, here())) {
                Some(name) => problem.fix(format!("did you mean \"{name}\"?")),
                None if !elsewhere.is_empty() => problem.fix(format!("it belongs under {}", elsewhere.join(" or "))),
                None => problem.fix(format!("known here: {}", here().collect::<Vec<_>>().join(", "))),
            };
            let span = Some(unknown.span.clone());
            self.push(span, false, &path(&unknown.heading, &quoted_key(&unknown.key)), problem);
        }
        drop(known);
        self.errors.into_inner()
    }
}

/// A table of the document, or the place where one could be.
pub(super) struct Section<'a> {
    report: &'a Report<'a>,
    heading: String,
    /// The heading under which its keys are known: that of the section it is like.
    known_as: String,
    table: Option<&'a DeTable<'a>>,
    span: Option<Range<usize>>,
    /// Something else stands where the section should be; what it lacks is not worth a word.
    spoilt: bool,
    asked: BTreeSet<&'static str>,
    /// Its keys are names of the operator's own.
    is_open: bool,
}

/// A value of the document.
pub(super) struct Entry<'a> {
    value: &'a DeValue<'a>,
    span: Range<usize>,
    path: String,
}

impl<'a> Section<'a> {
    /// The document itself.
    pub(super) fn root(report: &'a Report<'a>, table: &'a DeTable<'a>) -> Self {
        Self::new(report, String::new(), String::new(), Some(table), None)
    }

    fn new(
        report: &'a Report<'a>,
        heading: String,
        known_as: String,
        table: Option<&'a DeTable<'a>>,
        span: Option<Range<usize>>,
    ) -> Self {
        Self { report, heading, known_as, table, span, spoilt: false, asked: BTreeSet::new(), is_open: false }
    }

    /// The section of this name; an empty one if it is not there or is none.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'a> {
        let (heading, known_as) = (nested(&self.heading, name), nested(&self.known_as, name));
        let (table, span, spoilt) = match self.entry(name) {
            None => (None, None, self.spoilt),
            Some(Entry { value: DeValue::Table(table), span, .. }) => (Some(table), Some(span), false),
            Some(entry) => {
                self.refuse(&entry, Problem::new("is a section").fix(format!("write {heading} on a line of its own")));
                (None, Some(entry.span), true)
            }
        };
        let mut section = Self::new(self.report, heading, known_as, table, span);
        section.spoilt = spoilt;
        section
    }

    /// The sections with names of the operator's choice in the section of this name, each with its name. They have the keys
    /// of the section `like`.
    pub(super) fn named(&mut self, name: &'static str, like: &str) -> Vec<(String, Section<'a>)> {
        let Some(entry) = self.entry(name) else { return Vec::new() };
        let heading = nested(&self.heading, name);
        let DeValue::Table(table) = entry.value else {
            self.refuse(&entry, Problem::new("is a section of sections").fix(format!("write [{name}.NAME]")));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (key, item) in table.iter() {
            let name = key.get_ref().to_string();
            let heading = nested(&heading, &quoted_key(&name));
            match item.get_ref() {
                DeValue::Table(table) => {
                    let section = Section::new(self.report, heading, like.to_owned(), Some(table), Some(key.span()));
                    sections.push((name, section));
                }
                _ => self.report.error(Some(item.span()), &heading, Problem::new("is a section, not a value")),
            }
        }
        sections
    }

    /// The section of this name, or the several of it where it is a list of sections.
    pub(super) fn one_or_more(&mut self, name: &'static str) -> Vec<Section<'a>> {
        let heading = nested(&self.heading, name);
        let tables: Option<Vec<_>> = self.entry(name).and_then(|entry| entry.items()).map(|items| {
            let table = |entry: &Entry<'a>| match entry.value {
                DeValue::Table(table) => Some((table, entry.span.clone())),
                _ => None,
            };
            items.iter().filter_map(table).collect()
        });
        match tables {
            // A list of something else is refused as what it is.
            Some(tables) if !tables.is_empty() => {
                let section = |(table, span)| {
                    Section::new(self.report, heading.clone(), heading.clone(), Some(table), Some(span))
                };
                tables.into_iter().map(section).collect()
            }
            _ => vec![self.section(name)],
        }
    }

    /// The sections of this repeated name.
    pub(super) fn sections(&mut self, name: &'static str) -> Vec<Section<'a>> {
        let heading = format!("[{}]", nested(&self.heading, name));
        let Some(entry) = self.entry(name) else { return Vec::new() };
        let DeValue::Array(array) = entry.value else {
            let problem = Problem::new("is a list of sections").fix(format!("write {heading}, with two brackets"));
            self.refuse(&entry, problem);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in array.iter() {
            match item.get_ref() {
                DeValue::Table(table) => {
                    let span = Some(item.span());
                    sections.push(Section::new(self.report, heading.clone(), heading.clone(), Some(table), span));
                }
                _ => self.report.error(Some(item.span()), &heading, Problem::new("is a section, not a value")),
            }
        }
        sections
    }

    /// The table that a key holds instead of a value, as a section.
    pub(super) fn table(&self, entry: &Entry<'a>, name: &str) -> Option<Section<'a>> {
        let DeValue::Table(table) = entry.value else { return None };
        let span = Some(entry.span.clone());
        let (heading, known_as) = (nested(&self.heading, name), nested(&self.known_as, name));
        Some(Section::new(self.report, heading, known_as, Some(table), span))
    }

    /// All that stands in a section whose keys are names of the operator's own. `example` stands for them among the known
    /// keys.
    pub(super) fn own_keys(&mut self, example: Option<&'static str>) -> Vec<(String, Entry<'a>)> {
        self.is_open = true;
        self.report.known.borrow_mut().extend(example.map(|key| (self.known_as.clone(), key)));
        let Some(table) = self.table else { return Vec::new() };
        let entry = |key: &str, value: &'a toml::Spanned<DeValue<'a>>| {
            let path = path(&self.heading, &quoted_key(key));
            (key.to_owned(), Entry { value: value.get_ref(), span: value.span(), path })
        };
        table.iter().map(|(key, value)| entry(key.get_ref(), value)).collect()
    }

    /// Where it begins, if it is there.
    pub(super) fn span(&self) -> Option<Range<usize>> {
        self.span.clone()
    }

    /// The table that a key holds, or each one of a list of them, as sections.
    pub(super) fn tables(&mut self, key: &'static str) -> Given<Vec<Section<'a>>> {
        let Some(entry) = self.entry(key) else { return Given::Absent };
        let (heading, known_as) = (nested(&self.heading, key), nested(&self.known_as, key));
        let items: Vec<_> = match entry.value {
            DeValue::Array(array) => array.iter().map(|item| (item.get_ref(), item.span())).collect(),
            value => vec![(value, entry.span.clone())],
        };
        let mut sections = Vec::new();
        for (value, span) in items {
            let DeValue::Table(table) = value else {
                self.refuse(&entry, Problem::new(format!("expected a table, found {}", kind(value))));
                return Given::Refused;
            };
            sections.push(Section::new(self.report, heading.clone(), known_as.clone(), Some(table), Some(span)));
        }
        Given::Value(sections, entry.span)
    }

    /// Where it stands.
    pub(super) fn place(&self) -> Option<Range<usize>> {
        self.span.clone()
    }

    /// Where its errors go.
    pub(super) fn report(&self) -> &'a Report<'a> {
        self.report
    }

    /// Whether the document has it.
    pub(super) fn is_there(&self) -> bool {
        self.table.is_some()
    }

    pub(super) fn entry(&mut self, key: &'static str) -> Option<Entry<'a>> {
        self.asked.insert(key);
        self.report.known.borrow_mut().insert((self.known_as.clone(), key));
        let value = self.table?.get(key)?;
        Some(Entry { value: value.get_ref(), span: value.span(), path: path(&self.heading, key) })
    }

    /// Text, as `read` understands it.
    pub(super) fn text<T>(&mut self, key: &'static str, read: impl FnOnce(&str) -> Result<T, Problem>) -> Given<T> {
        let Some(entry) = self.entry(key) else { return Given::Absent };
        let result = match entry.value {
            DeValue::String(text) => read(text),
            other => Err(not_text(other)),
        };
        self.given(&entry, result)
    }

    /// A whole number, as `read` understands it.
    pub(super) fn number<T>(&mut self, key: &'static str, read: impl FnOnce(u64) -> Result<T, Problem>) -> Given<T> {
        let Some(entry) = self.entry(key) else { return Given::Absent };
        let number = match entry.value {
            DeValue::Integer(number) => unsigned(number),
            _ => None,
        };
        let result = match number {
            Some(number) => read(number),
            None => Err(Problem::new(format!("expected a whole number, found {}", kind(entry.value)))),
        };
        self.given(&entry, result)
    }

    /// True or false.
    pub(super) fn flag(&mut self, key: &'static str) -> Given<bool> {
        let Some(entry) = self.entry(key) else { return Given::Absent };
        let result = match entry.value {
            DeValue::Boolean(flag) => Ok(*flag),
            other => Err(Problem::new(format!("expected true or false, found {}", kind(other)))
                .fix("write true or false, without quotes")),
        };
        self.given(&entry, result)
    }

    /// A list of texts, each as `read` understands it.
    pub(super) fn texts<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, Problem>,
    ) -> Given<Vec<(T, Range<usize>)>> {
        let Some(entry) = self.entry(key) else { return Given::Absent };
        let DeValue::Array(array) = entry.value else {
            let problem = Problem::new(format!("expected a list, found {}", kind(entry.value)));
            self.refuse(&entry, problem.fix("write it in brackets, as in [\"…\"]"));
            return Given::Refused;
        };
        let mut values = Vec::new();
        let mut refused = false;
        for item in array.iter() {
            let result = match item.get_ref() {
                DeValue::String(text) => read(text),
                other => Err(not_text(other)),
            };
            match result {
                Ok(value) => values.push((value, item.span())),
                Err(problem) => {
                    refused = true;
                    self.report.error(Some(item.span()), &entry.path, problem);
                }
            }
        }
        if refused { Given::Refused } else { Given::Value(values, entry.span) }
    }

    /// A text or a list of texts, each as `read` understands it. A problem is reported at the key, not at the text: a text
    /// on a line of its own may be a secret, which only its key's line would tell.
    pub(super) fn text_or_texts<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, Problem>,
    ) -> Given<Vec<T>> {
        let Some(entry) = self.entry(key) else { return Given::Absent };
        let (items, listed): (Vec<_>, bool) = match entry.value {
            DeValue::Array(array) => (array.iter().map(|item| item.get_ref()).collect(), true),
            other => (vec![other], false),
        };
        let mut values = Vec::new();
        let mut refused = false;
        for (number, item) in (1_usize..).zip(items) {
            let result = match item {
                DeValue::String(text) => read(text),
                other => Err(not_text(other)),
            };
            match result {
                Ok(value) => values.push(value),
                Err(problem) => {
                    refused = true;
                    let what = if listed { format!("no. {number}: {}", problem.what) } else { problem.what };
                    self.refuse(&entry, Problem { what, ..problem });
                }
            }
        }
        if refused { Given::Refused } else { Given::Value(values, entry.span) }
    }

    /// A table with keys of somebody else's choice, as JSON.
    pub(super) fn json(&mut self, key: &'static str) -> Given<Map<String, Value>> {
        let Some(entry) = self.entry(key) else { return Given::Absent };
        let result = match to_json(entry.value) {
            Some(Value::Object(map)) => Ok(map),
            Some(_) => Err(Problem::new(format!("expected a table, found {}", kind(entry.value)))),
            None => Err(Problem::new("holds a number that JSON cannot express")),
        };
        self.given(&entry, result)
    }

    /// The value of a key that must be there.
    pub(super) fn required<T>(&self, key: &'static str, given: Given<T>, example: &str) -> Option<T> {
        if matches!(given, Given::Absent) {
            self.missing(key, example);
        }
        given.value()
    }

    /// Reports a key that must be there and is not.
    pub(super) fn missing(&self, key: &'static str, example: &str) {
        if self.spoilt {
            return;
        }
        let fix = match self.span {
            Some(_) => format!("add {example}"),
            None => format!("add {example} under {}", self.heading),
        };
        self.report.error(self.span.clone(), &path(&self.heading, key), Problem::new("is missing").fix(fix));
    }

    /// Reports an error of a key that was read already, where it stands unless another place is given.
    pub(super) fn error(&self, key: &'static str, span: Option<Range<usize>>, problem: Problem) {
        let own = || self.table.and_then(|table| Some(table.get(key)?.span()));
        self.report.error(span.or_else(own).or_else(|| self.span.clone()), &path(&self.heading, key), problem);
    }

    fn given<T>(&self, entry: &Entry<'_>, result: Result<T, Problem>) -> Given<T> {
        match result {
            Ok(value) => Given::Value(value, entry.span.clone()),
            Err(problem) => {
                self.refuse(entry, problem);
                Given::Refused
            }
        }
    }

    pub(super) fn refuse(&self, entry: &Entry<'_>, problem: Problem) {
        self.report.error(Some(entry.span.clone()), &entry.path, problem);
    }
}

/// Every key must have been asked for by then.
impl Drop for Section<'_> {
    fn drop(&mut self) {
        let Some(table) = self.table.filter(|_| !self.is_open) else { return };
        let unknown = table.iter().filter(|(key, _)| !self.asked.contains(key.get_ref().as_ref()));
        self.report.unknown.borrow_mut().extend(unknown.take(MAX_ERRORS).map(|(key, _)| Unknown {
            heading: self.heading.clone(),
            known_as: self.known_as.clone(),
            key: key.get_ref().to_string(),
            span: key.span(),
        }));
    }
}

impl<'a> Entry<'a> {
    /// The values of a list.
    pub(super) fn items(&self) -> Option<Vec<Self>> {
        let DeValue::Array(array) = self.value else { return None };
        let item = |item: &'a toml::Spanned<DeValue<'a>>| Self {
            value: item.get_ref(),
            span: item.span(),
            path: self.path.clone(),
        };
        Some(array.iter().map(item).collect())
    }

    /// Where a key of a table stands, whoever reads it.
    pub(super) fn place_of(&self, key: &str) -> Option<Range<usize>> {
        let DeValue::Table(table) = self.value else { return None };
        Some(table.get(key)?.span())
    }

    /// What a key of a table holds, whoever reads it.
    pub(super) fn inner(&self, key: &str) -> Option<Self> {
        let DeValue::Table(table) = self.value else { return None };
        let item = table.get(key)?;
        Some(Self { value: item.get_ref(), span: item.span(), path: format!("{}.{key}", self.path) })
    }

    pub(super) fn as_text(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    pub(super) fn as_flag(&self) -> Option<bool> {
        self.value.as_bool()
    }

    pub(super) fn as_number<T: TryFrom<i64>>(&self) -> Option<T> {
        let DeValue::Integer(number) = self.value else { return None };
        i64::from_str_radix(number.as_str(), number.radix()).ok()?.try_into().ok()
    }

    /// The texts of a list; nothing where it is no list, or something else is in it.
    pub(super) fn as_texts(&self) -> Option<Vec<&'a str>> {
        self.value.as_array()?.iter().map(|item| item.get_ref().as_str()).collect()
    }

    pub(super) fn kind(&self) -> String {
        kind(self.value)
    }

    /// The keys of a table and their values, if it is one whose keys are somebody else's choice.
    pub(super) fn pairs(&self) -> Option<impl Iterator<Item = (&'a str, Entry<'a>)> + use<'a>> {
        let DeValue::Table(table) = self.value else { return None };
        let path = self.path.clone();
        Some(table.iter().map(move |(key, value)| {
            let key: &str = key.get_ref();
            let path = format!("{path}.{}", quoted_key(key));
            (key, Entry { value: value.get_ref(), span: value.span(), path })
        }))
    }
}

/// A value of the file as errors show it.
pub(super) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_QUOTED_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_QUOTED_CHARS).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

/// The candidate a mistyped name was probably meant to be.
pub(crate) fn closest<'n>(typed: &str, candidates: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let typed: String = typed.chars().take(MAX_QUOTED_CHARS).collect::<String>().to_ascii_lowercase();
    let mut best: Option<(f64, &str)> = None;
    for name in candidates {
        // Two letters that changed places make a short name look quite unlike itself.
        let one_slip = typed.len() > 2 && strsim::osa_distance(&typed, name) == 1;
        let likeness = if one_slip { 1.0 } else { strsim::jaro_winkler(&typed, name) };
        if likeness >= ALIKE && best.is_none_or(|(so_far, _)| likeness > so_far) {
            best = Some((likeness, name));
        }
    }
    best.map(|(_, name)| name)
}

fn nested(heading: &str, name: &str) -> String {
    let outer = heading.trim_start_matches('[').trim_end_matches(']');
    if outer.is_empty() { format!("[{name}]") } else { format!("[{outer}.{name}]") }
}

fn path(heading: &str, key: &str) -> String {
    match (heading, key) {
        ("", key) => key.to_owned(),
        (heading, "") => heading.to_owned(),
        (heading, key) => format!("{heading}.{key}"),
    }
}

fn quoted_key(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare && key.len() <= MAX_QUOTED_CHARS { blot(key) } else { blot(&quoted(key)) }
}

fn not_text(value: &DeValue<'_>) -> Problem {
    Problem::new(format!("expected text, found {}", kind(value))).fix("put it in quotes")
}

fn kind(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(_) => "text".to_owned(),
        DeValue::Integer(number) => format!("the number {}", short(&number.to_string())),
        DeValue::Float(number) => format!("the number {}", short(number.as_str())),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn short(number: &str) -> String {
    if number.len() <= MAX_QUOTED_CHARS { number.to_owned() } else { "…".to_owned() }
}

fn unsigned(number: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// Dates become text. `None` where a number has no JSON form.
fn to_json(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::from(number),
            Err(_) => Value::from(unsigned(number)?),
        },
        DeValue::Float(number) => Value::Number(serde_json::Number::from_f64(number.as_str().parse().ok()?)?),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Array(array) => Value::Array(array.iter().map(|item| to_json(item.get_ref())).collect::<Option<_>>()?),
        DeValue::Table(table) => Value::Object(
            table
                .iter()
                .map(|(key, value)| Some((key.get_ref().to_string(), to_json(value.get_ref())?)))
                .collect::<Option<_>>()?,
        ),
    })
}
