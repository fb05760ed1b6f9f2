//! `[[route]]`: the price list.

use std::ops::Range;
use std::sync::Arc;

use http::Method;

use super::hours::schedule;
use super::matching::conditions;
use super::people::{Lists, Rates, rules};
use super::price::{Denomination, price};
use super::shop::{Usual, of_route};
use super::statuses::charge_on;
use super::values::shown_text;
use crate::config::reader::{Given, Problem, Report, Section, quoted};
use crate::gate::Way;
use crate::gate::matching::HostPattern;
use crate::gate::path::PathPattern;
use crate::gate::people::By;
use crate::gate::policy::{Policy, Price, Route, Terms, TokenTerms, Transfer};
use crate::pricing::Unit;
use crate::protocol::Address;

/// More than anybody writes down, and few enough to compare them all.
const MAX_ROUTES: usize = 1_000;

/// Quotes travel in a header, and clients and proxies give headers little room.
const MAX_EXTENSIONS_BYTES: usize = 4_096;

/// As [`MAX_EXTENSIONS_BYTES`].
const MAX_TEXT_CHARS: usize = 500;

/// Names become metric labels.
const MAX_NAME_CHARS: usize = 64;

/// What routes have in common of who pays.
pub(super) struct Whose<'a> {
    pub(super) payers: &'a Lists,
    pub(super) rates: Rates,
}

/// A route as far as it could be read, with the place of its path.
struct Draft {
    route: Route,
    whole: bool,
    span: Range<usize>,
}

pub(super) fn routes(
    report: &Report<'_>,
    root: &mut Section<'_>,
    money: Denomination,
    whose: &Whose<'_>,
    usual: Usual,
    way: impl Fn(&mut Section<'_>) -> Option<Way>,
) -> Option<Vec<Route>> {
    let sections = root.sections("route");
    if sections.is_empty() {
        // A [route] that is no list was reported as such.
        if root.entry("route").is_none_or(|entry| entry.kind() == "a list") {
            let problem = Problem::new("nothing is for sale, and what no route names is not served");
            report.error(None, "[[route]]", problem.fix("add [[route]] with path = \"/*\" and price = \"$0.001\""));
        }
        return None;
    }
    if sections.len() > MAX_ROUTES {
        report.error(None, "[[route]]", Problem::new(format!("there are more than {MAX_ROUTES} routes")));
        return None;
    }
    let count = sections.len();
    let read = |section| route(report, section, money, whose, usual, &way);
    let drafts: Vec<_> = sections.into_iter().filter_map(read).collect();
    let comparable = drafts.iter().map(|draft| draft.route.clone()).collect();
    if let Err(ambiguities) = Policy::new(placeholder_terms(), "", comparable) {
        for ambiguity in ambiguities {
            let (Some(first), Some(second)) = (drafts.get(ambiguity.first), drafts.get(ambiguity.second)) else {
                continue;
            };
            let (line, pattern) = (report.line(&first.span), first.route.pattern.to_string());
            let problem =
                Problem::new(format!("matches the same requests as the route in line {line}, {}", quoted(&pattern)));
            let fix = match &ambiguity.missing {
                None => "give one of them another path, other methods or other conditions, or remove it".to_owned(),
                Some(both) => format!("add a route for requests of both: match = {{ {both} }}"),
            };
            report.error(Some(second.span.clone()), "[[route]].path", problem.fix(fix));
        }
    }
    let routes: Vec<_> = drafts.into_iter().filter(|draft| draft.whole).map(|draft| draft.route).collect();
    (routes.len() == count).then_some(routes)
}

/// Ambiguity is a matter of paths and methods; no term decides it.
fn placeholder_terms() -> Terms {
    Terms {
        chain_id: 0,
        token: TokenTerms {
            address: Address::ZERO,
            decimals: 0,
            domain_name: String::new(),
            domain_version: String::new(),
            transfer: Transfer::Eip3009,
            sponsored: true,
        },
        pay_to: Address::ZERO,
        receiver_authorizer: Address::ZERO,
        withdraw_delay_s: 0,
        max_timeout_s: 0,
        max_in_flight: 1,
        min_deposit: None,
    }
}

fn route(
    report: &Report<'_>,
    mut section: Section<'_>,
    money: Denomination,
    whose: &Whose<'_>,
    usual: Usual,
    way: impl Fn(&mut Section<'_>) -> Option<Way>,
) -> Option<Draft> {
    let host = section.text("host", |text| {
        let bad = |error| Problem::new(format!("{} is refused: {error}", quoted(text)));
        HostPattern::parse(text).map_err(|error| bad(error).fix("write it like \"api.example.com\""))
    });
    let conditions = conditions(&mut section);
    let pattern = section.text("path", |text| PathPattern::parse(text).map_err(|error| bad_pattern(text, &error)));
    let span = pattern.span();
    let pattern = section.required("path", pattern, "path = \"/*\"");
    let methods = section.texts("methods", method);
    if let Given::Value(list, span) = &methods
        && list.is_empty()
    {
        let problem = Problem::new("no method is allowed").fix("leave methods out to allow all");
        section.error("methods", Some(span.clone()), problem);
    }
    let methods = methods.or(Vec::new());
    let price = price(&mut section, "price", money);
    let schedule = schedule(report, &mut section, money);
    let status_rule = charge_on(&mut section);
    let name = section.text("name", |text| shown_text(text, MAX_NAME_CHARS)).optional();
    let description = section.text("description", |text| shown_text(text, MAX_TEXT_CHARS)).optional();
    let mime_type = section.text("mime_type", mime_type).optional();
    let way = way(&mut section);
    let extensions = section.json("extensions");
    if let Given::Value(map, span) = &extensions
        && serde_json::to_string(map).map_or(true, |text| text.len() > MAX_EXTENSIONS_BYTES)
    {
        let problem =
            Problem::new(format!("is more than {MAX_EXTENSIONS_BYTES} bytes of JSON; quotes travel in a header"));
        section.error("extensions", Some(span.clone()), problem);
    }
    let extensions = extensions.or(serde_json::Map::new());
    let windows = schedule.iter().flat_map(|schedule| schedule.windows().iter().map(|(_, price)| price));
    // Where one of them could not be read, nothing is said about all of them.
    let prices: Vec<_> =
        price.iter().filter(|_| schedule.is_some()).chain(windows.filter(|_| price.is_some())).collect();
    let rules = rules(&mut section, &prices, money, whose.payers, whose.rates);
    let whole = price.is_some()
        && schedule.is_some()
        && status_rule.is_some()
        && rules.is_some()
        && name.is_some()
        && description.is_some()
        && mime_type.is_some()
        && extensions.is_some()
        && way.is_some()
        && methods.is_some();
    // A route whose hosts, methods or conditions are unknown cannot be compared with another. It is read to its end all the
    // same.
    let comparable = methods.is_some() && pattern.is_some() && conditions.is_some();
    let pattern = pattern.unwrap_or_else(PathPattern::all);
    let methods = methods.unwrap_or_default().into_iter().map(|(method, _)| method).collect();
    let (host, conditions) = (host.optional(), conditions.unwrap_or_default());
    let comparable = comparable && host.is_some();
    let route = Route::new(pattern, price.unwrap_or(Price::Free));
    let (host, rules) = (host.flatten(), rules.flatten().map(Arc::new));
    let mut route = Route { host, methods, conditions, rules, ..route };
    route.name = name.flatten().map_or(route.name, Into::into);
    route.schedule = schedule.unwrap_or_default();
    route.status_rule = status_rule.unwrap_or_default();
    route.description = description.flatten();
    route.mime_type = mime_type.flatten();
    route.extensions = extensions.unwrap_or_default();
    route.way = way.and_then(Way::unusual);
    let whole = of_route(&mut section, &mut route, usual).is_some() && whole;
    let whole = check_upgrade(&mut section, &route) && whole;
    comparable.then_some(())?;
    Some(Draft { route, whole, span: span? })
}

/// Whether what goes over an upgraded connection is counted where it costs something. It is bytes and time: nobody looks for
/// messages in it, and what needs no payment has no bill that anything could be counted for.
fn check_upgrade(section: &mut Section<'_>, route: &Route) -> bool {
    if route.way.as_ref().is_none_or(|way| way.upgrades.is_empty()) {
        return true;
    }
    let free = route.rules.as_ref().and_then(|rules| rules.free);
    if route.has_rate(|tariff| tariff.counts(&Unit::Events)) {
        let problem = Problem::new("its price counts events, and no events are seen in an upgraded connection");
        let fix = "charge for time, request_bytes or response_bytes instead, or leave upgrade out";
        section.error("upgrade", None, problem.fix(fix));
        return false;
    }
    if free.is_some_and(|free| free.by == By::Network) && route.has_rate(|_| true) {
        let problem = Problem::new("one free request would be an upgraded connection that nothing is ever charged for");
        let fix = "write by = \"payer\", give the free requests a route without upgrade, or charge a fixed price";
        section.error("free", None, problem.fix(fix));
        return false;
    }
    true
}

fn bad_pattern(text: &str, error: &crate::gate::path::PatternError) -> Problem {
    let problem = Problem::new(format!("{} is refused: {error}", quoted(text)));
    let with_slash = format!("/{text}");
    match PathPattern::parse(&with_slash) {
        Ok(_) => problem.fix(format!("write {}", quoted(&with_slash))),
        Err(_) => problem.fix("write it like \"/v1/models\", \"/v1/users/{id}\" or \"/v1/*\""),
    }
}

fn method(text: &str) -> Result<Method, Problem> {
    const STANDARD: [&str; 8] = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
    let upper = text.to_ascii_uppercase();
    let bad = || Problem::new(format!("{} is not a method", quoted(text)));
    match upper.as_str() {
        "HEAD" => return Err(Problem::new("\"HEAD\" has no price of its own").fix("write \"GET\", which covers it")),
        "CONNECT" | "TRACE" => return Err(Problem::new(format!("{} cannot be sold", quoted(text)))),
        _ => {}
    }
    if upper != text {
        return Err(bad().fix(format!("methods are upper case: {}", quoted(&upper))));
    }
    if let Some(meant) = STANDARD.iter().find(|name| **name != text && strsim::osa_distance(name, text) == 1) {
        return Err(bad().fix(format!("did you mean \"{meant}\"?")));
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
        return Err(bad().fix("write methods like \"GET\" or \"POST\""));
    }
    Method::from_bytes(text.as_bytes()).map_err(|_| bad())
}

fn mime_type(text: &str) -> Result<String, Problem> {
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    match essence.split_once('/') {
        Some((kind, subtype)) if token(kind) && token(subtype) => shown_text(text, MAX_TEXT_CHARS),
        _ => {
            Err(Problem::new(format!("{} is not a media type", quoted(text))).fix("write it like \"application/json\""))
        }
    }
}
