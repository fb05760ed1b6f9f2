//! `[discovery]` and `[idempotency]`, and what routes say about both.

use std::path::PathBuf;
use std::time::Duration;

use super::values::{HOUR, SECOND, duration, one_of, shown_text};
use crate::config::reader::{Given, Problem, Section, quoted};
use crate::config::{Discovery, parse_size};
use crate::gate::Idempotency;
use crate::gate::identifier::Identifiers;
use crate::gate::policy::Route;
use crate::gate::shop::{BAZAAR, Shelf, bazaar};
use crate::protocol::x402::PAYMENT_IDENTIFIER;

/// A site's name is a heading, and its description a paragraph.
const MAX_NAME_CHARS: usize = 64;
/// As [`MAX_NAME_CHARS`].
const MAX_TEXT_CHARS: usize = 500;
/// A quote travels in a header, and what it says for catalogues comes back with every payment.
const MAX_BAZAAR_BYTES: usize = 4_096;
/// What is kept must fit into what all of it may take.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Agents that wait longer than this before they ask again have other worries.
const MAX_WINDOW: Duration = HOUR;

/// What holds for routes that do not say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usual {
    bazaar: bool,
    identifiers: Identifiers,
}

pub(super) fn discovery(mut section: Section<'_>) -> (Option<Discovery>, bool) {
    let enabled = section.flag("enabled").or(true);
    let name = section.text("name", |text| shown_text(text, MAX_NAME_CHARS)).optional();
    let description = section.text("description", |text| shown_text(text, MAX_TEXT_CHARS)).optional();
    let openapi = section.text("openapi", |text| {
        if text.trim().is_empty() || text.contains('\0') {
            return Err(Problem::new("is no file").fix("write a path such as \"openapi.json\""));
        }
        Ok(PathBuf::from(text))
    });
    let openapi = openapi.optional();
    let bazaar = section.flag("bazaar").or(false).unwrap_or(false);
    let whole = || {
        Some(Discovery { enabled: enabled?, name: name?, description: description?, openapi: openapi?, document: None })
    };
    (whole(), bazaar)
}

/// The rules, and what routes usually ask for.
pub(super) fn idempotency(mut section: Section<'_>, bazaar: bool) -> (Option<Idempotency>, Usual) {
    let usual = Idempotency::default();
    let identifiers = section.text("identifier", |text| one_of(text, &IDENTIFIERS)).or(Identifiers::Optional);
    let window = duration(&mut section, "window", SECOND..=MAX_WINDOW).or(usual.window);
    let memory = size(&mut section, "memory").or(usual.memory);
    let max_answer = size(&mut section, "max_answer");
    if let Given::Value(bytes, span) = &max_answer {
        let most = memory.filter(|bytes| *bytes > 0).unwrap_or(MAX_ANSWER_BYTES).min(MAX_ANSWER_BYTES);
        if *bytes > most {
            let problem =
                Problem::new("is more than idempotency.memory or 16 MiB, so such an answer could not be kept");
            section.error("max_answer", Some(span.clone()), problem.fix("make it smaller, or the memory larger"));
        }
    }
    let max_answer = max_answer.or(usual.max_answer.min(memory.filter(|bytes| *bytes > 0).unwrap_or(usual.max_answer)));
    let unidentified = section.flag("unidentified").or(false);
    let identifiers = identifiers.unwrap_or_default();
    let rules =
        || Some(Idempotency { window: window?, memory: memory?, max_answer: max_answer?, unidentified: unidentified? });
    (rules(), Usual { bazaar, identifiers })
}

const IDENTIFIERS: [(&str, Identifiers); 3] =
    [("off", Identifiers::Off), ("optional", Identifiers::Optional), ("required", Identifiers::Required)];

fn size(section: &mut Section<'_>, key: &'static str) -> Given<usize> {
    section.text(key, |text| {
        parse_size(text).map_err(|error| Problem::new(format!("{} is no size: {error}", quoted(text))))
    })
}

/// Reads a route's own keys, and puts what follows from them into its quote. Nothing where one was refused.
pub(super) fn of_route(section: &mut Section<'_>, route: &mut Route, usual: Usual) -> Option<()> {
    let listed = section.flag("listed").or(true);
    let identifiers = section.text("identifier", |text| one_of(text, &IDENTIFIERS)).or(usual.identifiers);
    let in_bazaar = section.flag("bazaar");
    let span = in_bazaar.span();
    let in_bazaar = in_bazaar.or(usual.bazaar);
    let input_schema = section.json("input_schema").optional();
    let input_example = section.json("input_example").optional();
    let output_example = section.json("output_example").optional();
    route.shelf = Shelf {
        listed: listed?,
        input_schema: input_schema?,
        input_example: input_example?,
        output_example: output_example?,
    };
    let (identifiers, in_bazaar) = (identifiers?, in_bazaar?);
    if !route.is_ever_paid() {
        return Some(());
    }
    // What an operator wrote by hand stays as it is.
    if let Some(extension) = identifiers.extension()
        && !route.extensions.contains_key(PAYMENT_IDENTIFIER)
    {
        route.extensions.insert(PAYMENT_IDENTIFIER.to_owned(), extension);
    }
    if in_bazaar && !route.extensions.contains_key(BAZAAR) {
        let extension = bazaar(route);
        if extension.to_string().len() > MAX_BAZAAR_BYTES {
            let problem = Problem::new(format!("is more than {MAX_BAZAAR_BYTES} bytes of JSON for this route"));
            section.error(
                "bazaar",
                span,
                problem.fix("shorten input_schema and the examples; quotes travel in a header"),
            );
            return None;
        }
        route.extensions.insert(BAZAAR.to_owned(), extension);
    }
    Some(())
}
