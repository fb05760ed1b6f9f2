//! `[store]`, `[cors]` and `[log]`.

use std::path::PathBuf;

use http::HeaderValue;

use super::values::one_of;
use crate::config::reader::{Given, Problem, Section, quoted};
use crate::config::{Cors, LogFormat, LogLevel, LogOptions, Store};

/// Where the books are, for those who do not say.
const DEFAULT_STORE: &str = "books";

pub(super) fn store(mut section: Section<'_>) -> Option<Store> {
    let directory = section.text("directory", directory);
    Some(Store { directory: directory.or(PathBuf::from(DEFAULT_STORE))? })
}

pub(super) fn directory(text: &str) -> Result<PathBuf, Problem> {
    if text.trim().is_empty() || text.contains('\0') {
        return Err(Problem::new("is no directory").fix(format!("write a path such as \"{DEFAULT_STORE}\"")));
    }
    Ok(PathBuf::from(text))
}

pub(super) fn cors(mut section: Section<'_>) -> Option<Cors> {
    let given = section.texts("allow_origins", |text| if text == "*" { Ok(None) } else { origin(text).map(Some) });
    let origins = match given {
        Given::Absent => return Some(Cors::Any),
        Given::Refused => return None,
        Given::Value(origins, _) => origins,
    };
    if origins.is_empty() {
        return Some(Cors::Off);
    }
    let any = origins.iter().find(|(origin, _)| origin.is_none()).map(|(_, span)| span.clone());
    match any {
        None => Some(Cors::Origins(origins.into_iter().filter_map(|(origin, _)| origin).collect())),
        Some(_) if origins.len() == 1 => Some(Cors::Any),
        Some(span) => {
            let problem = Problem::new("\"*\" allows every origin, so the others mean nothing");
            section.error("allow_origins", Some(span), problem.fix("write [\"*\"], or the origins alone"));
            None
        }
    }
}

pub(super) fn log(mut section: Section<'_>) -> Option<(LogOptions, Option<PathBuf>)> {
    const LEVELS: [(&str, LogLevel); 5] = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    const FORMATS: [(&str, LogFormat); 3] =
        [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    let level = section.text("level", |text| one_of(text, &LEVELS)).or(LogLevel::Info);
    let format = section.text("format", |text| one_of(text, &FORMATS)).or(LogFormat::Auto);
    let access = section.text("access", |text| {
        if text.trim().is_empty() || text.contains('\0') || text.ends_with('/') {
            return Err(Problem::new("is no file").fix("write a path such as \"access.jsonl\", or leave it out"));
        }
        Ok(PathBuf::from(text))
    });
    Some((LogOptions { level: level?, format: format? }, access.optional()?))
}

fn origin(text: &str) -> Result<HeaderValue, Problem> {
    let (scheme, host) = text.split_once("://").unwrap_or_default();
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic());
    let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    let value = HeaderValue::from_str(text).ok();
    match value {
        Some(value) if plain(scheme) && plain(host) && lower && !host.contains(['/', '?', '#', '@', '*', ',']) => {
            Ok(value)
        }
        _ => Err(Problem::new(format!("{} is not an origin", quoted(text)))
            .fix("write scheme and host only, in lower case, as in \"https://app.example.com\"")),
    }
}
