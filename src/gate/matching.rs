//! What a route may ask of a request beside its path and method: its host, and conditions on headers, query and JSON body.
//!
//! **Owns** the patterns and the one reading of what they look at. **Promises** that a request of which two servers could
//! read what is looked at differently (it comes twice, in two spellings, as a value of another kind) is refused before it is
//! priced, so that it is not sold as the cheap one and served as the dear one; and that of two routes whose conditions can
//! hold for one request the more specific is known, or the price list is refused. **Does not** look at anything that no
//! condition names, nor change what is forwarded, nor read bodies: it is handed the bytes.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, StatusCode};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::json;

use super::service::as_variable;

/// How deep a condition may look into a body.
pub const MAX_BODY_DEPTH: usize = 16;

/// Which hosts a route is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This one, in lower case, without a port.
    Exactly(String),
    /// All whose names end with this, which begins with a dot, and are longer.
    Under(String),
}

/// Why a text is no host pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// It has something that no host name has: a scheme, a path, a port.
    #[error("a host is a name such as api.example.com or *.example.com, without scheme, port or path")]
    Form,
    /// `*` stands somewhere else than for the first labels.
    #[error("* may only stand at the beginning, as in *.example.com")]
    Star,
}

impl HostPattern {
    /// Reads a pattern of the config file. Case does not matter.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let lower = text.to_ascii_lowercase();
        let (name, under) = match lower.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (lower.as_str(), false),
        };
        if name.contains('*') {
            return Err(HostError::Star);
        }
        let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let is_address = !under && literal.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
        let label = |label: &str| {
            !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if !is_address && !name.split('.').all(label) {
            return Err(HostError::Form);
        }
        Ok(if under { Self::Under(format!(".{name}")) } else { Self::Exactly(name.to_owned()) })
    }

    /// Whether a host as a request names it, perhaps with a port, is one of these.
    pub fn matches(&self, host: &str) -> bool {
        let name = name_of(host);
        match self {
            Self::Exactly(own) => name.eq_ignore_ascii_case(own),
            Self::Under(end) => name
                .len()
                .checked_sub(end.len())
                .filter(|begin| *begin > 0)
                .and_then(|begin| name.get(begin..))
                .is_some_and(|rest| rest.eq_ignore_ascii_case(end)),
        }
    }

    /// Orders hosts from the most specific to the least; a route without a host comes after all of them.
    pub(super) fn specificity(host: Option<&Self>) -> usize {
        match host {
            Some(Self::Exactly(_)) => 0,
            Some(Self::Under(end)) => (usize::MAX - 1).saturating_sub(end.len()),
            None => usize::MAX,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(name) => f.write_str(name),
            Self::Under(end) => write!(f, "*{end}"),
        }
    }
}

/// The name in a host: without its port, without the dot that ends a whole name, and without the user that stands before it
/// in an old form of a target.
fn name_of(host: &str) -> &str {
    let host = host.rsplit('@').next().unwrap_or(host);
    let end = match host.rfind(':') {
        // The colons of an IPv6 address are inside its brackets.
        Some(colon) if host.get(colon..).is_some_and(|rest| !rest.contains(']')) => colon,
        _ => host.len(),
    };
    let name = host.get(..end).unwrap_or(host);
    name.strip_suffix('.').unwrap_or(name)
}

/// Where a condition looks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The header of this name.
    Header(HeaderText),
    /// The query parameter of this name, decoded.
    Query(String),
    /// The value of the JSON body that these keys lead to.
    Body(Vec<String>),
}

/// A header's name, in the order of texts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HeaderText(pub HeaderName);

impl PartialOrd for HeaderText {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HeaderText {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.as_str().cmp(other.0.as_str())
    }
}

impl Place {
    /// What it is called in records of requests.
    pub fn recorded_as(&self) -> String {
        match self {
            Self::Header(name) => format!("header {}", name.0),
            Self::Query(name) => format!("query {name}"),
            Self::Body(keys) => format!("body {}", json!(keys)),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header.{}", name.0),
            Self::Query(name) => write!(f, "query.{name}"),
            Self::Body(keys) => write!(f, "body.{}", keys.join(".")),
        }
    }
}

/// What has to be there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Anything but nothing and `null`.
    Present,
    /// A text that begins so.
    Begins(String),
    /// This text, letter by letter.
    Text(String),
    /// This truth; in bodies only.
    Flag(bool),
    /// This whole number; in bodies only.
    Number(i32),
}

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternTextError {
    /// `*` before the end.
    #[error("* may only stand at the end, as in gpt-4*")]
    Star,
    /// `?`, which does not stand for a letter here.
    #[error("? stands for nothing here; only a * at the end does")]
    QuestionMark,
    /// A control character, which no request could have there.
    #[error("it has a control character")]
    Control,
}

impl Pattern {
    /// Reads a text of the config file: `*` alone is presence, at the end it is for whatever follows.
    pub fn parse(text: &str) -> Result<Self, PatternTextError> {
        let (begin, open) = match text.strip_suffix('*') {
            Some(begin) => (begin, true),
            None => (text, false),
        };
        if begin.contains('*') {
            return Err(PatternTextError::Star);
        }
        if begin.contains('?') {
            return Err(PatternTextError::QuestionMark);
        }
        if begin.contains(char::is_control) {
            return Err(PatternTextError::Control);
        }
        Ok(match (begin, open) {
            ("", true) => Self::Present,
            (begin, true) => Self::Begins(begin.to_owned()),
            (text, false) => Self::Text(text.to_owned()),
        })
    }

    /// Whether whatever this holds for, the other holds for as well.
    fn implies(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Present) => true,
            (Self::Begins(own) | Self::Text(own), Self::Begins(begin)) => own.starts_with(begin),
            (own, other) => own == other,
        }
    }

    /// What holds exactly where both hold; `None` where they never do. Of two patterns that can both hold one always
    /// implies the other.
    fn and<'a>(&'a self, other: &'a Self) -> Option<&'a Self> {
        if self.implies(other) { Some(self) } else { other.implies(self).then_some(other) }
    }

    /// Grows with what it asks: one that implies another and is not implied by it weighs more.
    fn weight(&self) -> usize {
        match self {
            Self::Present => 0,
            Self::Begins(begin) => begin.len(),
            Self::Text(_) | Self::Flag(_) | Self::Number(_) => 1 << 32,
        }
    }

    fn holds_for(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (_, Value::Absent | Value::Null) => false,
            (Self::Present, _) => true,
            (Self::Begins(begin), Value::Text(text)) => text.starts_with(begin.as_str()),
            (Self::Text(own), Value::Text(text)) => own == text,
            (Self::Flag(own), Value::Flag(flag)) => own == flag,
            (Self::Number(own), Value::Number(number)) => f64::from(*own) == *number,
            _ => false,
        }
    }

    fn kind(&self) -> Option<Kind> {
        match self {
            Self::Present => None,
            Self::Begins(_) | Self::Text(_) => Some(Kind::Text),
            Self::Flag(_) => Some(Kind::Flag),
            Self::Number(_) => Some(Kind::Number),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("\"*\""),
            Self::Begins(begin) => write!(f, "{:?}", format!("{begin}*")),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// What kind of value a pattern is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Flag,
    Number,
}

/// What a route asks of a request: all of it, at most one pattern a place, in the order of places.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Conditions(Vec<(Place, Pattern)>);

impl Conditions {
    /// All of these; of two for one place the later one counts.
    pub fn new(conditions: impl IntoIterator<Item = (Place, Pattern)>) -> Self {
        let ordered: std::collections::BTreeMap<_, _> = conditions.into_iter().collect();
        Self(ordered.into_iter().collect())
    }

    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The conditions, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = (&Place, &Pattern)> {
        self.0.iter().map(|(place, pattern)| (place, pattern))
    }

    fn at(&self, place: &Place) -> Option<&Pattern> {
        self.0.iter().find(|(own, _)| own == place).map(|(_, pattern)| pattern)
    }

    /// Whether a request for which these hold is one for which the others hold.
    pub(super) fn implies(&self, other: &Self) -> bool {
        other.0.iter().all(|(place, pattern)| self.at(place).is_some_and(|own| own.implies(pattern)))
    }

    /// What holds exactly where both hold; `None` where they never do.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        let mut both = other.0.iter().filter(|(place, _)| self.at(place).is_none()).cloned().collect::<Vec<_>>();
        for (place, pattern) in &self.0 {
            let pattern = match other.at(place) {
                Some(theirs) => pattern.and(theirs)?,
                None => pattern,
            };
            both.push((place.clone(), pattern.clone()));
        }
        Some(Self::new(both))
    }

    /// Grows with what is asked: conditions that imply others and are not implied by them weigh more.
    pub(super) fn weight(&self) -> (usize, usize) {
        let sum = self.0.iter().fold(0_usize, |sum, (_, pattern)| sum.saturating_add(pattern.weight()));
        (self.0.len(), sum)
    }

    /// Whether all of them hold for what was seen.
    pub(super) fn hold_for(&self, seen: &Seen<'_>) -> bool {
        self.first_unmet(seen).is_none()
    }

    /// The first that does not hold.
    pub(super) fn first_unmet(&self, seen: &Seen<'_>) -> Option<(&Place, &Pattern)> {
        self.iter().find(|(place, pattern)| !seen.at(place).is_some_and(|value| pattern.holds_for(value)))
    }
}

/// As the config file has it.
impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (place, pattern)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{place} = {pattern}")?;
        }
        Ok(())
    }
}

/// Why what is looked at cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// A header that is looked at comes twice, or in another spelling beside it.
    #[error("the price depends on the header {0}: send it once, as it is spelled here")]
    Header(String),
    /// A header that is looked at holds something else than visible text.
    #[error("the price depends on the header {0}, whose value is no text")]
    HeaderText(String),
    /// A query parameter that is looked at comes twice, or in another spelling.
    #[error("the price depends on the query parameter {0}: send it once, as it is spelled here")]
    Query(String),
    /// Its value has two readings of which one meets a condition and one does not.
    #[error(
        "the price depends on the query parameter {0}, whose value has two readings: write a space as %20, + as %2B and ; as %3B"
    )]
    QueryValue(String),
    /// The query has a broken escape, or is no UTF-8 once it is decoded.
    #[error("the price depends on the query, which has a broken percent escape or is not UTF-8")]
    Escape,
    /// The body is no single JSON value in UTF-8.
    #[error("the price depends on the body, which is not one whole JSON value in UTF-8")]
    Json,
    /// A key on the way to what is looked at comes twice, or in another case.
    #[error("the price depends on the key {0} of the body: send it once, as it is spelled here")]
    Key(String),
    /// What is looked at is of another kind than any condition expects.
    #[error("the price depends on {0} of the body, which has to be {1}")]
    Kind(String, &'static str),
    /// The body is larger than so many bytes.
    #[error("the price depends on the body, of which at most {0} bytes are looked at")]
    TooLarge(usize),
    /// The body is compressed.
    #[error("the price depends on the body: send it without a Content-Encoding")]
    Encoded,
    /// Nobody read the body for the gate.
    #[error("the price depends on the body, which was not read here")]
    Unread,
}

impl Doubt {
    /// The status and the stable code it is answered with.
    pub fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "matched_body_too_large"),
            Self::Encoded => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "matched_body_encoded"),
            Self::Unread => (StatusCode::NOT_IMPLEMENTED, "matched_body_unread"),
            _ => (StatusCode::BAD_REQUEST, "unclear_request"),
        }
    }
}

/// Everything that the routes of one path look at, all together.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Looks {
    headers: Vec<HeaderName>,
    /// Each with the patterns it is compared with.
    query: Vec<(String, Vec<Pattern>)>,
    body: Option<Node>,
    /// Where the numbers of the body's tree lead.
    body_places: Vec<Vec<String>>,
}

/// A place in a JSON body, on the way to those that are looked at.
#[derive(Debug, Default, PartialEq)]
struct Node {
    below: Vec<(String, Node)>,
    /// Its number, if it is one of them, and the patterns it is compared with.
    looked_at: Option<(usize, Vec<Pattern>)>,
}

impl Looks {
    /// What these look at; `None` if they look at nothing.
    pub(super) fn of<'c>(conditions: impl Iterator<Item = &'c Conditions>) -> Option<Self> {
        let mut looks = Self::default();
        let mut any = false;
        for (place, pattern) in conditions.flat_map(Conditions::iter) {
            any = true;
            match place {
                Place::Header(HeaderText(name)) => {
                    if !looks.headers.contains(name) {
                        looks.headers.push(name.clone());
                    }
                }
                Place::Query(name) => {
                    let known = looks.query.iter_mut().find(|(known, _)| known == name);
                    match known {
                        Some((_, patterns)) => patterns.push(pattern.clone()),
                        None => looks.query.push((name.clone(), vec![pattern.clone()])),
                    }
                }
                Place::Body(keys) => {
                    let node = looks.body.get_or_insert_default().at(keys);
                    let number = looks.body_places.len();
                    let (own, patterns) = node.looked_at.get_or_insert_with(|| (number, Vec::new()));
                    patterns.push(pattern.clone());
                    if *own == number {
                        looks.body_places.push(keys.clone());
                    }
                }
            }
        }
        any.then_some(looks)
    }

    /// Whether the body has to be known.
    pub(super) fn need_the_body(&self) -> bool {
        self.body.is_some()
    }

    /// What is to be seen of a request beside its body.
    pub(super) fn at_the_head<'r>(&'r self, headers: &'r HeaderMap, query: Option<&str>) -> Result<Seen<'r>, Doubt> {
        let mut seen = Seen { looks: self, headers: Vec::new(), query: Vec::new(), body: None };
        for name in &self.headers {
            seen.headers.push(header(headers, name)?);
        }
        if !self.query.is_empty() {
            let parameters = parameters(query.unwrap_or_default())?;
            for (name, patterns) in &self.query {
                seen.query.push(parameter(&parameters, name, patterns)?);
            }
        }
        Ok(seen)
    }

    /// What is to be seen of a body, whose request has these headers.
    pub(super) fn in_the_body(&self, headers: &HeaderMap, body: &[u8]) -> Result<BodySeen, Doubt> {
        if is_encoded(headers) && !body.is_empty() {
            return Err(Doubt::Encoded);
        }
        let mut values: Vec<_> = self.body_places.iter().map(|_| Value::Absent).collect();
        let Some(tree) = &self.body else { return Ok(BodySeen(values)) };
        match kind_of_body(body) {
            BodyKind::Empty => return Ok(BodySeen(values)),
            BodyKind::Other if !says_json(headers) => return Ok(BodySeen(values)),
            BodyKind::Other | BodyKind::Json => {}
        }
        let text = std::str::from_utf8(body).map_err(|_| Doubt::Json)?;
        let doubt = Cell::new(None);
        let mut reader = serde_json::Deserializer::from_str(text);
        let read = Reading { node: tree, values: &mut values, doubt: &doubt }.deserialize(&mut reader);
        if let Some(doubt) = doubt.take() {
            return Err(doubt);
        }
        read.and_then(|()| reader.end()).map_err(|_| Doubt::Json)?;
        tree.check_kinds(&values, &self.body_places)?;
        Ok(BodySeen(values))
    }
}

/// What a body looks like to servers that take JSON whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyKind {
    /// There is nothing in it but white space.
    Empty,
    /// Its first character begins an object, or says in which encoding one follows.
    Json,
    Other,
}

/// What the first bytes of a body say of it. Many servers read JSON whatever the content type says, and in any encoding of
/// Unicode; what begins with a brace, or with the mark of an encoding, is JSON to somebody.
pub(crate) fn kind_of_body(begin: &[u8]) -> BodyKind {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0);
    let from = begin.iter().position(|byte| !is_blank(byte)).unwrap_or(begin.len());
    match begin.get(from..).unwrap_or_default() {
        [] => BodyKind::Empty,
        [b'{', ..] | [0xef, 0xbb, ..] | [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => BodyKind::Json,
        // A mark of which only the first byte is here.
        [0xef | 0xff | 0xfe] => BodyKind::Json,
        _ => BodyKind::Other,
    }
}

/// Whether the content type is JSON's, or one of those that are written in it.
pub(crate) fn says_json(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_TYPE).iter().any(|value| {
        let value = value.to_str().unwrap_or_default();
        let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
    })
}

/// Whether the body is compressed, or whatever else a content coding makes of it.
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    let identity = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    headers.get_all(CONTENT_ENCODING).iter().any(|value| !identity(value))
}

impl Node {
    fn at(&mut self, keys: &[String]) -> &mut Self {
        let Some((first, rest)) = keys.split_first() else { return self };
        let known = self.below.iter().position(|(key, _)| key == first);
        let index = known.unwrap_or_else(|| {
            self.below.push((first.clone(), Self::default()));
            self.below.len() - 1
        });
        let (_, below) = self.below.get_mut(index).expect("it was found, or put, there");
        below.at(rest)
    }

    fn check_kinds(&self, values: &[Value<'_>], places: &[Vec<String>]) -> Result<(), Doubt> {
        if let Some((number, patterns)) = &self.looked_at
            && let Some(value) = values.get(*number)
        {
            let kinds: Vec<_> = patterns.iter().filter_map(Pattern::kind).collect();
            let as_expected = match value {
                Value::Absent | Value::Null => true,
                _ if kinds.is_empty() => true,
                Value::Text(_) => kinds.contains(&Kind::Text),
                Value::Flag(_) => kinds.contains(&Kind::Flag),
                Value::Number(_) => kinds.contains(&Kind::Number),
                Value::Other => false,
            };
            if !as_expected {
                let expected = match kinds.first() {
                    Some(Kind::Flag) => "true or false",
                    Some(Kind::Number) => "a number",
                    _ => "a text",
                };
                let place = places.get(*number).map(|keys| keys.join(".")).unwrap_or_default();
                return Err(Doubt::Kind(place, expected));
            }
        }
        self.below.iter().try_for_each(|(_, below)| below.check_kinds(values, places))
    }
}

/// A value that is looked at.
#[derive(Debug, Clone, PartialEq)]
enum Value<'r> {
    Absent,
    Null,
    Flag(bool),
    Number(f64),
    Text(Cow<'r, str>),
    /// An object or a list.
    Other,
}

/// What is told of a text that was seen, at most.
const MAX_TOLD_CHARS: usize = 1_024;

/// What was seen of a request at the places that are looked at.
#[derive(Debug)]
pub(super) struct Seen<'r> {
    looks: &'r Looks,
    headers: Vec<Value<'r>>,
    query: Vec<Value<'r>>,
    body: Option<&'r BodySeen>,
}

/// What was seen of a body.
#[derive(Debug, Clone)]
pub(crate) struct BodySeen(Vec<Value<'static>>);

impl<'r> Seen<'r> {
    pub(super) fn with_body(self, body: &'r BodySeen) -> Self {
        Self { body: Some(body), ..self }
    }

    pub(super) fn has_body(&self) -> bool {
        self.body.is_some()
    }

    /// What was seen, by kind and name: texts of headers and parameters as they are, values of the body as JSON.
    pub(super) fn told(&self) -> BTreeMap<String, String> {
        let Looks { headers, query, body_places, .. } = self.looks;
        let headers = headers.iter().map(|name| format!("header {name}")).zip(&self.headers);
        let query = query.iter().map(|(name, _)| format!("query {name}")).zip(&self.query);
        let plain = headers.chain(query).filter_map(|(name, value)| match value {
            Value::Text(text) => Some((name, text.chars().take(MAX_TOLD_CHARS).collect())),
            _ => None,
        });
        let body = self.body.map(|body| &*body.0).unwrap_or_default();
        let body = body_places.iter().zip(body).filter_map(|(keys, value)| {
            let value = match value {
                Value::Absent | Value::Other => return None,
                Value::Null => json!(null),
                Value::Flag(flag) => json!(flag),
                Value::Number(number) => json!(number),
                Value::Text(text) => json!(text.chars().take(MAX_TOLD_CHARS).collect::<String>()),
            };
            Some((format!("body {}", json!(keys)), value.to_string()))
        });
        plain.chain(body).collect()
    }

    fn at(&self, place: &Place) -> Option<&Value<'r>> {
        match place {
            Place::Header(HeaderText(name)) => {
                let index = self.looks.headers.iter().position(|known| known == name)?;
                self.headers.get(index)
            }
            Place::Query(name) => {
                let index = self.looks.query.iter().position(|(known, _)| known == name)?;
                self.query.get(index)
            }
            Place::Body(keys) => {
                let index = self.looks.body_places.iter().position(|known| known == keys)?;
                self.body?.0.get(index)
            }
        }
    }
}

fn header<'r>(headers: &'r HeaderMap, name: &HeaderName) -> Result<Value<'r>, Doubt> {
    let doubt = || Doubt::Header(name.as_str().to_owned());
    // Servers that pass headers as environment variables know no difference between the two.
    let odd = |other: &HeaderName| other != name && as_variable(other.as_str()) == as_variable(name.as_str());
    if headers.keys().any(odd) {
        return Err(doubt());
    }
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(Value::Absent) };
    if values.next().is_some() {
        return Err(doubt());
    }
    let text = value.to_str().map_err(|_| Doubt::HeaderText(name.as_str().to_owned()))?;
    Ok(Value::Text(Cow::Borrowed(text.trim())))
}

/// A query parameter, decoded in the ways servers do it.
struct Parameter {
    /// Its name, `+` as it stands.
    name: String,
    /// What others may take for the name: without blanks around it, and without what follows a bracket.
    lax_name: String,
    /// Its value, `+` as it stands, as a space, and up to a semicolon.
    values: Vec<String>,
}

fn parameters(query: &str) -> Result<Vec<Parameter>, Doubt> {
    let mut all = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        // To some servers a semicolon separates parameters too.
        let mut pieces = part.split(';');
        let first = pieces.next().unwrap_or_default();
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let (short_name, short_value) = first.split_once('=').unwrap_or((first, ""));
        let values = [value.to_owned(), value.replace('+', " "), short_value.to_owned()];
        let values = values.iter().map(|value| decoded(value)).collect::<Result<_, _>>()?;
        all.push(Parameter { lax_name: lax(&decoded(short_name)?), name: decoded(name)?, values });
        for piece in pieces {
            let name = decoded(piece.split('=').next().unwrap_or_default())?;
            // Nobody who writes plainly sends one here: it has no name of its own, but a lax one.
            all.push(Parameter { lax_name: lax(&name), name: String::new(), values: Vec::new() });
        }
    }
    Ok(all)
}

fn decoded(text: &str) -> Result<String, Doubt> {
    if !text.contains('%') {
        return Ok(text.to_owned());
    }
    let bytes = super::path::unescaped(text).map_err(|_| Doubt::Escape)?;
    String::from_utf8(bytes).map_err(|_| Doubt::Escape)
}

fn lax(name: &str) -> String {
    let blank = |c: char| c.is_whitespace() || c == '+' || c == '\0';
    name.split(['[', '\0']).next().unwrap_or_default().trim_matches(blank).to_lowercase()
}

fn parameter(all: &[Parameter], name: &str, patterns: &[Pattern]) -> Result<Value<'static>, Doubt> {
    let lax_name = lax(name);
    let mut alike = all.iter().filter(|parameter| parameter.lax_name == lax_name || parameter.name == name);
    let Some(only) = alike.next() else { return Ok(Value::Absent) };
    if alike.next().is_some() || only.name != name {
        return Err(Doubt::Query(name.to_owned()));
    }
    let mut readings = only.values.iter().map(|value| Value::Text(Cow::Owned(value.clone())));
    let first = readings.next().unwrap_or(Value::Absent);
    for reading in readings {
        if patterns.iter().any(|pattern| pattern.holds_for(&reading) != pattern.holds_for(&first)) {
            return Err(Doubt::QueryValue(name.to_owned()));
        }
    }
    Ok(first)
}

/// Reads what is looked at out of a JSON value, and passes over the rest.
struct Reading<'a> {
    node: &'a Node,
    values: &'a mut [Value<'static>],
    doubt: &'a Cell<Option<Doubt>>,
}

impl Reading<'_> {
    fn note(&mut self, value: Value<'static>) {
        if let Some((number, _)) = self.node.looked_at
            && let Some(place) = self.values.get_mut(number)
        {
            *place = value;
        }
    }
}

impl<'de> DeserializeSeed<'de> for Reading<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Whether two keys are one to servers that ignore case, by the simple folding of all of Unicode: `ſ` is an `s` to them.
fn is_alike(one: &str, other: &str) -> bool {
    let folded = |text: &str| text.to_uppercase().to_lowercase();
    if one.is_ascii() && other.is_ascii() { one.eq_ignore_ascii_case(other) } else { folded(one) == folded(other) }
}

/// A key of an object.
struct Key<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

impl<'de> Visitor<'de> for Reading<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(mut self) -> Result<(), E> {
        self.note(Value::Null);
        Ok(())
    }

    fn visit_bool<E>(mut self, flag: bool) -> Result<(), E> {
        self.note(Value::Flag(flag));
        Ok(())
    }

    fn visit_f64<E>(mut self, number: f64) -> Result<(), E> {
        self.note(Value::Number(number));
        Ok(())
    }

    fn visit_i64<E>(mut self, number: i64) -> Result<(), E> {
        // What does not fit is none of the numbers that can be asked for.
        self.note(Value::Number(i32::try_from(number).map_or(f64::INFINITY, f64::from)));
        Ok(())
    }

    fn visit_u64<E>(mut self, number: u64) -> Result<(), E> {
        self.note(Value::Number(i32::try_from(number).map_or(f64::INFINITY, f64::from)));
        Ok(())
    }

    fn visit_str<E>(mut self, text: &str) -> Result<(), E> {
        self.note(Value::Text(Cow::Owned(text.to_owned())));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        self.note(Value::Other);
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<(), A::Error> {
        self.note(Value::Other);
        let Self { node, values, doubt } = self;
        let mut found = vec![false; node.below.len()];
        while let Some(Key(key)) = object.next_key()? {
            // To some servers two keys that differ in case are one.
            let alike = |(_, (own, _)): &(usize, &(String, Node))| is_alike(own, &key);
            let mut doubtful = false;
            let mut below = None;
            for (index, (own, node)) in node.below.iter().enumerate().filter(alike) {
                match found.get_mut(index) {
                    Some(found) if *own == key && !*found => (*found, below) = (true, Some(node)),
                    _ => doubtful = true,
                }
                if doubtful {
                    doubt.set(Some(Doubt::Key(own.clone())));
                    return Err(A::Error::custom("a key comes twice"));
                }
            }
            match below {
                Some(node) => object.next_value_seed(Reading { node, values, doubt })?,
                None => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn body(keys: &str, pattern: Pattern) -> (Place, Pattern) {
        (Place::Body(keys.split('.').map(str::to_owned).collect()), pattern)
    }

    fn query(name: &str, text: &str) -> (Place, Pattern) {
        (Place::Query(name.to_owned()), Pattern::parse(text).unwrap())
    }

    fn header_is(name: &'static str, text: &str) -> (Place, Pattern) {
        (Place::Header(HeaderText(HeaderName::from_static(name))), Pattern::parse(text).unwrap())
    }

    fn of(conditions: impl IntoIterator<Item = (Place, Pattern)>) -> Conditions {
        Conditions::new(conditions)
    }

    fn text(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    /// Whether the conditions hold for a body, seen for these alone.
    fn holds_in(conditions: &Conditions, content_type: &'static str, body: &[u8]) -> Result<bool, Doubt> {
        let looks = Looks::of([conditions].into_iter()).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let seen = looks.in_the_body(&headers, body)?;
        Ok(conditions.hold_for(&looks.at_the_head(&headers, None)?.with_body(&seen)))
    }

    fn holds_at(conditions: &Conditions, headers: &[(&str, &str)], query: &str) -> Result<bool, Doubt> {
        let looks = Looks::of([conditions].into_iter()).unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Ok(conditions.hold_for(&looks.at_the_head(&map, Some(query))?))
    }

    #[test]
    fn a_host_is_compared_without_case_port_and_last_dot() {
        let cases = [
            ("api.example.com", "api.example.com", true),
            ("API.example.com", "api.EXAMPLE.com:8443", true),
            ("api.example.com", "api.example.com.:80", true),
            ("api.example.com", "x.api.example.com", false),
            ("api.example.com", "user@api.example.com", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.Example.com:1", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "aexample.com", false),
            ("[::1]", "[::1]:80", true),
            ("[::1]", "[::1]", true),
            ("127.0.0.1", "127.0.0.1:80", true),
        ];
        for (pattern, host, expected) in cases {
            assert_eq!(HostPattern::parse(pattern).unwrap().matches(host), expected, "{pattern} {host}");
        }
        for bad in ["", "*", "*.", "a.*", "*a.b", "a:80", "a/b", "a..b", "[x]", "*.[::1]", "é.example"] {
            assert!(HostPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_query_parameter_is_compared_decoded() {
        let condition = of([query("model", "gpt-4*")]);
        let cases = [
            ("model=gpt-4", true),
            ("a=b&model=gpt-4o&c", true),
            ("m%6Fdel=gpt%2D4", true),
            ("model=gpt-3", false),
            ("model", false),
            ("", false),
            ("amodel=gpt-4", false),
        ];
        for (query, expected) in cases {
            assert_eq!(holds_at(&condition, &[], query), Ok(expected), "{query}");
        }
        assert_eq!(holds_at(&of([query("debug", "*")]), &[], "debug"), Ok(true));
        assert_eq!(holds_at(&of([query("q", "*")]), &[], "q=a+b;c"), Ok(true), "any reading will do");
    }

    #[test]
    fn a_query_that_can_be_read_in_two_ways_is_refused() {
        let condition = of([query("model", "a*"), query("n", "x y")]);
        for twice in [
            "model=a&model=b",
            "model=a&m%6fdel=b",
            "MODEL=a",
            "model[]=a",
            "model=b&model%5B0%5D=a",
            "x=1;model=a",
            "model=b&x=1;model=a",
            "%20model=a",
            "+model=a",
            "model%00x=a",
        ] {
            assert!(matches!(holds_at(&condition, &[], twice), Err(Doubt::Query(_))), "{twice}");
        }
        for query in ["n=x+y", "n=x%20y;z"] {
            assert!(matches!(holds_at(&condition, &[], query), Err(Doubt::QueryValue(_))), "{query}");
        }
        for query in ["model=%zz", "x=%", "model=%ff", "%c0%af=x"] {
            assert_eq!(holds_at(&condition, &[], query), Err(Doubt::Escape), "{query}");
        }
        assert_eq!(holds_at(&condition, &[], "model=a&n=x%20y"), Ok(true));
    }

    #[test]
    fn a_header_that_can_be_read_in_two_ways_is_refused() {
        let condition = of([header_is("x-tier", "pro")]);
        assert_eq!(holds_at(&condition, &[("x-tier", " pro ")], ""), Ok(true));
        assert_eq!(holds_at(&condition, &[("x-tier", "Pro")], ""), Ok(false));
        assert_eq!(holds_at(&condition, &[("x-other", "pro")], ""), Ok(false));
        let doubt = Err(Doubt::Header("x-tier".to_owned()));
        assert_eq!(holds_at(&condition, &[("x-tier", "pro"), ("x-tier", "pro")], ""), doubt);
        assert_eq!(holds_at(&condition, &[("x-tier", "basic"), ("x_tier", "pro")], ""), doubt);
        assert_eq!(holds_at(&condition, &[("x_tier", "pro")], ""), doubt);
        assert!(matches!(holds_at(&condition, &[("x-tier", "pró")], ""), Err(Doubt::HeaderText(_))));
    }

    #[test]
    fn a_value_of_a_body_is_compared_as_what_it_is() {
        let cases = [
            (body("model", text("gpt-4*")), r#"{"model": "gpt-4o", "x": [{"model": 1}]}"#, true),
            (body("model", text("gpt-4*")), r#"{"mod\u0065l": "gpt-\u0034"}"#, true),
            (body("model", text("gpt-4*")), r#"{"model": "gpt-3"}"#, false),
            (body("model", text("gpt-4*")), r#"{"x": {"model": "gpt-4"}}"#, false),
            (body("model", text("gpt-4*")), r#"{"model": null}"#, false),
            (body("model", text("gpt-4*")), r#"["gpt-4"]"#, false),
            (body("stream", Pattern::Flag(true)), r#"{"stream": true}"#, true),
            (body("stream", Pattern::Flag(true)), r#"{"stream": false}"#, false),
            (body("n", Pattern::Number(3)), r#"{"n": 3}"#, true),
            (body("n", Pattern::Number(3)), r#"{"n": 3.0}"#, true),
            (body("n", Pattern::Number(3)), r#"{"n": 30e-1}"#, true),
            (body("n", Pattern::Number(3)), r#"{"n": 3.5}"#, false),
            (body("n", Pattern::Number(3)), r#"{"n": 4294967299}"#, false),
            (body("n", Pattern::Number(-3)), r#"{"n": -3}"#, true),
            (body("a.b", text("x")), r#"{"a": {"b": "x"}, "b": "y"}"#, true),
            (body("a.b", text("x")), r#"{"a": "x"}"#, false),
            (body("a", Pattern::Present), r#"{"a": {}}"#, true),
            (body("a", Pattern::Present), r#"{"a": 0}"#, true),
            (body("a", Pattern::Present), r#"{"a": null}"#, false),
        ];
        for (condition, body, expected) in cases {
            let held = holds_in(&of([condition]), "application/json", body.as_bytes());
            assert_eq!(held, Ok(expected), "{body}");
        }
    }

    #[test]
    fn a_body_that_can_be_read_in_two_ways_is_refused() {
        let conditions =
            of([body("model", text("a*")), body("o.stream", Pattern::Flag(true)), body("n", Pattern::Number(1))]);
        let doubt = |body: &[u8]| holds_in(&conditions, "application/json", body).unwrap_err();
        for twice in [
            &br#"{"model": "a", "model": "b"}"#[..],
            br#"{"model": "a", "mod\u0065l": "b"}"#,
            br#"{"Model": "a"}"#,
            br#"{"model": "b", "MODEL": "a"}"#,
            br#"{"o": {}, "o": {"stream": true}}"#,
            br#"{"o": {"stream": true, "stream": true}}"#,
            "{\"o\": {\"\u{17f}tream\": true}}".as_bytes(),
        ] {
            assert!(matches!(doubt(twice), Doubt::Key(_)), "{}", String::from_utf8_lossy(twice));
        }
        for kind in [&br#"{"model": 1}"#[..], br#"{"model": ["a"]}"#, br#"{"o": {"stream": "true"}}"#, br#"{"n": "1"}"#]
        {
            assert!(matches!(doubt(kind), Doubt::Kind(..)), "{}", String::from_utf8_lossy(kind));
        }
        for broken in [
            &b"{"[..],
            br#"{"model": "a"} x"#,
            br#"{"model": "a"}{"model": "b"}"#,
            b"{\"model\": \"\xff\"}",
            br#"{"model": "\ud800"}"#,
            b"\xef\xbb\xbf{}",
            b"\xff\xfe{\0}\0",
            b"{'model': 'a'}",
            b"{\"model\": NaN}",
        ] {
            assert_eq!(doubt(broken), Doubt::Json, "{}", String::from_utf8_lossy(broken));
        }
        // What is looked at by nobody may be there twice.
        let other = br#"{"x": 1, "x": 2, "o": {"y": 1, "y": 2, "model": 1}, "model": "a"}"#;
        assert_eq!(holds_in(&of([body("model", text("a"))]), "application/json", other), Ok(true));
    }

    #[test]
    fn json_is_json_whatever_it_is_called() {
        let condition = of([body("model", text("dear"))]);
        let dear = br#" {"model": "dear"}"#;
        for name in ["application/json; charset=utf-8", "application/ld+json", "text/plain", "multipart/form-data", "x"]
        {
            assert_eq!(holds_in(&condition, name, dear), Ok(true), "{name}");
            assert_eq!(holds_in(&condition, name, b""), Ok(false), "{name}");
            assert!(holds_in(&condition, name, b"{").is_err(), "{name}");
        }
        assert_eq!(holds_in(&condition, "text/plain", b"model=dear"), Ok(false));
        assert_eq!(holds_in(&condition, "application/json", b"model=dear"), Err(Doubt::Json));
        let kinds = [
            (&b"  {"[..], BodyKind::Json),
            (b"\0{", BodyKind::Json),
            (b"\xff\xfe", BodyKind::Json),
            (b"\xff", BodyKind::Json),
            (b" \n", BodyKind::Empty),
            (b"--boundary", BodyKind::Other),
            (b"\xff\xd8\xff", BodyKind::Other),
            (b"[{", BodyKind::Other),
        ];
        for (begin, expected) in kinds {
            assert_eq!(kind_of_body(begin), expected, "{begin:?}");
        }
    }

    #[test]
    fn a_compressed_body_is_refused_and_an_empty_one_has_nothing_to_hide() {
        let conditions = of([body("a", Pattern::Present)]);
        let looks = Looks::of([&conditions].into_iter()).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(looks.in_the_body(&headers, b"x").unwrap_err(), Doubt::Encoded);
        assert!(looks.in_the_body(&headers, b"").is_ok());
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("Identity"));
        assert!(looks.in_the_body(&headers, b"{}").is_ok());
    }

    fn any_pattern() -> impl Strategy<Value = Pattern> {
        let word = "[ab]{0,3}";
        prop_oneof![
            Just(Pattern::Present),
            "[ab]{1,3}".prop_map(Pattern::Begins),
            word.prop_map(Pattern::Text),
            any::<bool>().prop_map(Pattern::Flag),
            (0..3).prop_map(Pattern::Number),
        ]
    }

    fn any_conditions() -> impl Strategy<Value = Conditions> {
        prop::collection::vec(("[xyz]", any_pattern()), 0..4)
            .prop_map(|all| of(all.into_iter().map(|(key, pattern)| body(&key, pattern))))
    }

    fn any_value() -> impl Strategy<Value = Value<'static>> {
        prop_oneof![
            Just(Value::Absent),
            Just(Value::Null),
            Just(Value::Other),
            any::<bool>().prop_map(Value::Flag),
            (0..3).prop_map(|number| Value::Number(f64::from(number))),
            "[ab]{0,3}".prop_map(|text| Value::Text(Cow::Owned(text))),
        ]
    }

    proptest! {
        #[test]
        fn what_implies_and_what_both_ask_is_true_of_every_body(
            one in any_conditions(), other in any_conditions(), values in prop::array::uniform3(any_value()),
        ) {
            // All three keys are looked at, in this order.
            let all = of(["x", "y", "z"].map(|key| body(key, Pattern::Present)));
            let looks = Looks::of([&all].into_iter()).unwrap();
            let (headers, body) = (HeaderMap::new(), BodySeen(values.to_vec()));
            let seen = looks.at_the_head(&headers, None).unwrap().with_body(&body);
            let (first, second) = (one.hold_for(&seen), other.hold_for(&seen));
            if one.implies(&other) {
                prop_assert!(!first || second);
                prop_assert!(other.implies(&one) || one.weight() > other.weight());
            }
            match one.and(&other) {
                Some(both) => prop_assert_eq!(both.hold_for(&seen), first && second),
                None => prop_assert!(!(first && second)),
            }
        }
    }
}
