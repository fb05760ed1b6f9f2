//! `match`: what a route asks of a request beside its path and methods.

use http::HeaderName;

use crate::config::reader::{Entry, Problem, Section, quoted};
use crate::gate::matching::{Conditions, HeaderText, MAX_BODY_DEPTH, Pattern, Place};

/// Conditions of one route.
const MAX_CONDITIONS: usize = 32;

/// Names and patterns are compared with every request of their path.
const MAX_TEXT_BYTES: usize = 256;

/// Headers that do not go on as they came, come in several parts, or are about the connection or the payment.
const NOT_PASSED_ON: [&str; 20] = [
    "connection",
    "content-encoding",
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "payment-signature",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "true-client-ip",
    "upgrade",
    "x-client-ip",
    "x-payment",
    "x-real-ip",
    "x-request-id",
    "x-rewrite-url",
];

/// What reads the name of a header, or of a query parameter.
type ReadName = fn(&str) -> Result<Place, Problem>;

/// The conditions of a route; `None` if they were refused.
pub(super) fn conditions(route: &mut Section<'_>) -> Option<Conditions> {
    let Some(entry) = route.entry("match") else { return Some(Conditions::default()) };
    let Some(mut section) = route.table(&entry, "match") else {
        let problem = Problem::new(format!("expected a table, found {}", entry.kind()));
        route.refuse(&entry, problem.fix("write it like match = { body = { model = \"gpt-4*\" } }"));
        return None;
    };
    let mut all = Vec::new();
    let mut whole = true;
    let parts: [(&'static str, Option<ReadName>); 3] =
        [("header", Some(header)), ("query", Some(query)), ("body", None)];
    for (name, read) in parts {
        let Some(entry) = section.entry(name) else { continue };
        let Some(mut inner) = section.table(&entry, name) else {
            let problem = Problem::new(format!("expected a table, found {}", entry.kind()));
            section.refuse(&entry, problem.fix(format!("write it like {name} = {{ name = \"value\" }}")));
            whole = false;
            continue;
        };
        whole &= match read {
            Some(read) => head(&mut inner, read, &mut all),
            None => body(&mut inner, &[], &mut all),
        };
    }
    if all.is_empty() && whole {
        route.refuse(&entry, Problem::new("asks for nothing").fix("leave match out to take all requests"));
        return None;
    }
    if all.len() > MAX_CONDITIONS {
        route.refuse(&entry, Problem::new(format!("has more than {MAX_CONDITIONS} conditions")));
        return None;
    }
    whole.then(|| Conditions::new(all))
}

/// The conditions on headers, or on the query.
fn head(section: &mut Section<'_>, read: fn(&str) -> Result<Place, Problem>, all: &mut Vec<(Place, Pattern)>) -> bool {
    let mut whole = true;
    for (name, entry) in section.own_keys(None) {
        let pattern = || match entry.as_text() {
            Some(text) => pattern(text),
            None => Err(Problem::new(format!("expected text, found {}", entry.kind())).fix("put it in quotes")),
        };
        match read(&name).and_then(|place| pattern().map(|pattern| (place, pattern))) {
            Ok((place, _)) if all.iter().any(|(known, _)| *known == place) => {
                section.refuse(&entry, Problem::new("is named twice"));
                whole = false;
            }
            Ok(condition) => all.push(condition),
            Err(problem) => {
                section.refuse(&entry, problem);
                whole = false;
            }
        }
    }
    whole
}

/// The conditions on a body, or on what is below these keys of it.
fn body(section: &mut Section<'_>, above: &[String], all: &mut Vec<(Place, Pattern)>) -> bool {
    let mut whole = true;
    for (key, entry) in section.own_keys(None) {
        let mut keys = above.to_vec();
        keys.push(key.clone());
        let result = match section.table(&entry, &key) {
            Some(_) if keys.len() >= MAX_BODY_DEPTH => {
                Err(Problem::new(format!("is deeper than {MAX_BODY_DEPTH} levels")))
            }
            Some(mut below) => {
                whole &= body(&mut below, &keys, all);
                continue;
            }
            None => value(&entry),
        };
        let result = result.and_then(|pattern| if key.len() > MAX_TEXT_BYTES { Err(too_long()) } else { Ok(pattern) });
        match result {
            Ok(pattern) => all.push((Place::Body(keys), pattern)),
            Err(problem) => {
                section.refuse(&entry, problem);
                whole = false;
            }
        }
    }
    whole
}

fn value(entry: &Entry<'_>) -> Result<Pattern, Problem> {
    if let Some(text) = entry.as_text() {
        return pattern(text);
    }
    if let Some(flag) = entry.as_flag() {
        return Ok(Pattern::Flag(flag));
    }
    entry.as_number().map(Pattern::Number).ok_or_else(|| {
        Problem::new(format!("expected text, true, false or a whole number of 32 bits, found {}", entry.kind()))
    })
}

fn pattern(text: &str) -> Result<Pattern, Problem> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(too_long());
    }
    Pattern::parse(text).map_err(|error| Problem::new(format!("{} is refused: {error}", quoted(text))))
}

fn too_long() -> Problem {
    Problem::new(format!("is longer than {MAX_TEXT_BYTES} bytes"))
}

fn header(name: &str) -> Result<Place, Problem> {
    let parsed = HeaderName::try_from(name)
        .map_err(|_| Problem::new(format!("{} is not the name of a header", quoted(name))))?;
    let text = parsed.as_str();
    let ours = ["payment-", "x-peaje-", "x-forwarded-", "x-http-method", "x-original-", "proxy-"];
    if NOT_PASSED_ON.contains(&text) || ours.iter().any(|begin| text.starts_with(begin)) {
        return Err(Problem::new(format!("the header {} is not passed on as it came", quoted(text)))
            .fix("look at another one; host = \"…\" is for hosts"));
    }
    Ok(Place::Header(HeaderText(parsed)))
}

fn query(name: &str) -> Result<Place, Problem> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "&;=+%[]#".contains(c);
    if name.is_empty() || name.contains(odd) || name.len() > MAX_TEXT_BYTES {
        return Err(Problem::new(format!("{} is not the name of a query parameter", quoted(name)))
            .fix("write it decoded, without blanks, brackets or any of & ; = + % #"));
    }
    Ok(Place::Query(name.to_owned()))
}
