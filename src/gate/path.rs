//! Paths and the patterns that match them.
//!
//! **Owns** the one reading of a request path. **Promises** that a path two servers could read differently (dot
//! segments, doubled or encoded slashes, back-slashes; other case or `;parameters`, where that makes it another route's)
//! is refused before it is priced: otherwise a request could be matched by a cheap route here and served as a dear one
//! upstream. **Does not** change the path that is forwarded, nor know what else an upstream takes for one path (formats
//! such as `/report.json`, say): a price list without a free `/*` is the safer one.

use std::borrow::Cow;
use std::fmt;

/// A request path that has one reading: its segments, percent-decoded, without a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleanPath<'a> {
    segments: Vec<Cow<'a, [u8]>>,
}

/// Why a path has no single reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Does not begin with a slash.
    #[error("a path begins with /")]
    NotAbsolute,
    /// `.` or `..`, plain or encoded.
    #[error("the path has a dot segment")]
    DotSegment,
    /// Two slashes in a row.
    #[error("the path has an empty segment")]
    EmptySegment,
    /// An encoded slash, a back-slash, or a control character.
    #[error("the path has an encoded slash, a back-slash or a control character")]
    Separator,
    /// `%` without two hex digits.
    #[error("the path has a broken percent escape")]
    Escape,
    /// To a server that ignores case or `;parameters` it is the path of another, more specific route.
    #[error("without regard to case and ;parameters the path belongs to another route")]
    OtherRoute,
}

impl<'a> CleanPath<'a> {
    /// Reads the path component of a request target.
    pub fn parse(raw: &'a str) -> Result<Self, PathError> {
        let rest = raw.strip_prefix('/').ok_or(PathError::NotAbsolute)?;
        let rest = without_trailing_slash(rest);
        if rest.is_empty() {
            return Ok(Self { segments: Vec::new() });
        }
        let segments = rest.split('/').map(segment).collect::<Result<_, _>>()?;
        Ok(Self { segments })
    }
}

impl CleanPath<'_> {
    /// Its first segment; none, if it is `/`.
    pub(super) fn first_segment(&self) -> Option<&[u8]> {
        self.segments.first().map(AsRef::as_ref)
    }

    /// The path as servers read it to which `;` begins a parameter that is no part of the path. Fails where what is left
    /// is no clean path: `/a/..;x/b` has a dot segment for them.
    pub(super) fn without_parameters(&self) -> Result<Cow<'_, Self>, PathError> {
        if !self.segments.iter().any(|segment| segment.contains(&b';')) {
            return Ok(Cow::Borrowed(self));
        }
        let name = |segment: &[u8]| segment.split(|byte| *byte == b';').next().unwrap_or_default().to_vec();
        let segments = self.segments.iter().map(|segment| no_dots(name(segment).into())).collect::<Result<_, _>>()?;
        Ok(Cow::Owned(Self { segments }))
    }
}

/// One trailing slash does not make another path; a lone one is an empty segment.
fn without_trailing_slash(rest: &str) -> &str {
    rest.strip_suffix('/').filter(|rest| !rest.is_empty()).unwrap_or(rest)
}

fn segment(raw: &str) -> Result<Cow<'_, [u8]>, PathError> {
    let segment = if raw.contains('%') { Cow::Owned(unescaped(raw)?) } else { Cow::Borrowed(raw.as_bytes()) };
    let separates = |byte: &u8| *byte == b'/' || *byte == b'\\' || byte.is_ascii_control();
    if segment.iter().any(separates) {
        return Err(PathError::Separator);
    }
    no_dots(segment)
}

pub(super) fn unescaped(raw: &str) -> Result<Vec<u8>, PathError> {
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => match (bytes.next().and_then(hex), bytes.next().and_then(hex)) {
                (Some(high), Some(low)) => (high << 4) | low,
                _ => return Err(PathError::Escape),
            },
            plain => plain,
        });
    }
    Ok(out)
}

fn no_dots(segment: Cow<'_, [u8]>) -> Result<Cow<'_, [u8]>, PathError> {
    match &*segment {
        b"" => Err(PathError::EmptySegment),
        b"." | b".." => Err(PathError::DotSegment),
        _ => Ok(segment),
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// A pattern of the config file: `/v1/models`, `/v1/users/{id}`, `/v1/*`.
///
/// `{name}` stands for one segment, a final `*` for any number of them, none included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Literal(Vec<u8>),
    One,
    Rest,
}

/// Why a pattern is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A literal part is no clean path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// `*` somewhere else than as the whole last segment.
    #[error("* may only stand as the whole last segment, as in /v1/*")]
    Star,
    /// Braces that do not enclose a whole segment.
    #[error("{{name}} must be a whole segment, as in /v1/users/{{id}}")]
    Braces,
    /// A query string.
    #[error("a route's path has no query string")]
    Query,
}

impl PathPattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.contains(['?', '#']) {
            return Err(PatternError::Query);
        }
        let rest = text.strip_prefix('/').ok_or(PathError::NotAbsolute)?;
        let rest = without_trailing_slash(rest);
        let mut parts = Vec::new();
        if !rest.is_empty() {
            for raw in rest.split('/') {
                if parts.last() == Some(&Part::Rest) {
                    return Err(PatternError::Star);
                }
                parts.push(Self::part(raw)?);
            }
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The pattern of every path, `/*`.
    pub fn all() -> Self {
        Self { text: "/*".to_owned(), parts: vec![Part::Rest] }
    }

    fn part(raw: &str) -> Result<Part, PatternError> {
        if raw == "*" {
            return Ok(Part::Rest);
        }
        if raw.contains('*') {
            return Err(PatternError::Star);
        }
        if let Some(name) = raw.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            return if plain { Ok(Part::One) } else { Err(PatternError::Braces) };
        }
        if raw.contains(['{', '}']) {
            return Err(PatternError::Braces);
        }
        Ok(Part::Literal(segment(raw)?.into_owned()))
    }

    /// Whether the path is one of this pattern's.
    pub fn matches(&self, path: &CleanPath<'_>) -> bool {
        self.matches_by(path, |literal, segment| literal == segment)
    }

    /// Whether it is to a server that ignores case.
    pub(super) fn matches_in_any_case(&self, path: &CleanPath<'_>) -> bool {
        self.matches_by(path, |literal, segment| literal.eq_ignore_ascii_case(segment))
    }

    fn matches_by(&self, path: &CleanPath<'_>, equal: impl Fn(&[u8], &[u8]) -> bool) -> bool {
        let mut segments = path.segments.iter();
        for part in &self.parts {
            match part {
                Part::Rest => return true,
                Part::One => {
                    if segments.next().is_none() {
                        return false;
                    }
                }
                Part::Literal(literal) => {
                    if !segments.next().is_some_and(|segment| equal(literal, segment)) {
                        return false;
                    }
                }
            }
        }
        segments.next().is_none()
    }

    /// Orders patterns from the most specific to the least: segment by segment a literal goes before `{name}`, which
    /// goes before `*`. Two patterns that can match one path and neither is more specific have equal keys.
    pub(super) fn specificity(&self) -> Vec<u8> {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Literal(_) => 0,
                Part::One => 1,
                Part::Rest => 3,
            })
            // The end of a pattern that matches exactly here beats one that goes on with `*`.
            .chain((self.parts.last() != Some(&Part::Rest)).then_some(2))
            .collect()
    }

    /// The first segment of every path that matches; none, if that can be any.
    pub(super) fn first_literal(&self) -> Option<&[u8]> {
        match self.parts.first() {
            Some(Part::Literal(literal)) => Some(literal),
            _ => None,
        }
    }

    /// Whether both patterns match exactly the same paths.
    pub fn same_paths(&self, other: &Self) -> bool {
        self.parts == other.parts
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(raw: &str) -> CleanPath<'_> {
        CleanPath::parse(raw).unwrap()
    }

    #[test]
    fn a_path_with_two_readings_is_refused() {
        let cases = [
            ("v1", PathError::NotAbsolute),
            ("/a/../b", PathError::DotSegment),
            ("/a/./b", PathError::DotSegment),
            ("/a/%2e%2E/b", PathError::DotSegment),
            ("/a/..", PathError::DotSegment),
            ("//a", PathError::EmptySegment),
            ("/a//b", PathError::EmptySegment),
            ("/a//", PathError::EmptySegment),
            ("/a%2fb", PathError::Separator),
            ("/a%5Cb", PathError::Separator),
            ("/a\\b", PathError::Separator),
            ("/a%00", PathError::Separator),
            ("/a%0d%0a", PathError::Separator),
            ("/a%", PathError::Escape),
            ("/a%4", PathError::Escape),
            ("/a%zz", PathError::Escape),
        ];
        for (raw, expected) in cases {
            assert_eq!(CleanPath::parse(raw), Err(expected), "{raw}");
        }
    }

    #[test]
    fn escapes_and_trailing_slashes_do_not_hide_a_path() {
        let pattern = PathPattern::parse("/paid/report").unwrap();
        for raw in ["/paid/report", "/paid/report/", "/%70aid/report", "/paid/rep%6frt"] {
            assert!(pattern.matches(&path(raw)), "{raw}");
        }
        for raw in ["/paid", "/paid/report/x", "/Paid/report", "/"] {
            assert!(!pattern.matches(&path(raw)), "{raw}");
        }
    }

    #[test]
    fn wildcards_match_what_they_say() {
        let cases = [
            ("/", "/", true),
            ("/", "/a", false),
            ("/*", "/", true),
            ("/*", "/a/b", true),
            ("/v1/*", "/v1", true),
            ("/v1/*", "/v1/a/b", true),
            ("/v1/*", "/v2", false),
            ("/u/{id}", "/u/7", true),
            ("/u/{id}", "/u", false),
            ("/u/{id}", "/u/7/x", false),
            ("/u/{id}/x", "/u/7/x", true),
        ];
        for (pattern, raw, expected) in cases {
            assert_eq!(PathPattern::parse(pattern).unwrap().matches(&path(raw)), expected, "{pattern} {raw}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for bad in ["v1", "/a*", "/*/a", "/{}", "/{a b}", "/a{b}", "/a?b=c", "/a/../b", "//"] {
            assert!(PathPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_most_specific_pattern_sorts_first() {
        let mut patterns: Vec<_> =
            ["/*", "/v1/*", "/v1/{x}", "/v1/chat", "/{x}/chat", "/v1", "/v1/chat/*", "/v1/{x}/*"]
                .iter()
                .map(|text| PathPattern::parse(text).unwrap())
                .collect();
        patterns.sort_by_key(PathPattern::specificity);
        let order: Vec<_> = patterns.iter().map(ToString::to_string).collect();
        assert_eq!(order, ["/v1/chat", "/v1/chat/*", "/v1/{x}", "/v1/{x}/*", "/v1", "/v1/*", "/{x}/chat", "/*"]);
    }
}
