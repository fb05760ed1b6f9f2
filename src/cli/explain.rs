//! `peaje explain`: what a request would cost, and why.
//!
//! **Promises** that the price list decides here as it decides in the proxy: it is asked in the same way. **Does not** ask
//! anybody, read keys, or charge anything.

use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use super::ledger::{Moment, Side, aligned};
use super::{ConfigArgs, Exit, Failure, Outcome, Output};
use crate::clock;
use crate::config::Config;
use crate::config::diff::{price_in_words, requests, unit_in_words};
use crate::gate::path::CleanPath;
use crate::gate::policy::{Asked, Policy, Price, Route, Verdict};
use crate::pricing::{End, Measured, Tariff, Tokens, Unit};
use crate::protocol::{Address, Amount};

const MORE: &str = "\
Explain says which route of the price list decides about a request and why the
others do not, what the quote would say, what would be charged for answers of
several kinds, and who may pay. It reads the config only: no proxy need run.

It ends with 0 if the request would be served, paid or free, and with 1 if it
would be refused whatever it brings.

Examples:
  peaje explain \"POST /v1/chat\"
  peaje explain \"GET /v1/models?limit=3\" --host api.example.com --header \"x-tier: gold\"
      A request is its target, its host and its headers.
  peaje explain /report --at 2026-12-24T23:30:00Z --config new.toml
      At another time, by another price list. Without a method it is GET.
  peaje explain \"POST /v1/chat\" --json | jq .quote
      For programs; stdout is JSON whenever it is no terminal.

Environment:
  PEAJE_CONFIG   the config file, where --config is not given
  NO_COLOR       no colours";

/// How much of something an example of a metered answer has.
const EXAMPLE_COUNT: u64 = 1_000;

/// The arguments of `peaje explain`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", super::exit::HELP))]
pub struct ExplainArgs {
    /// The request: a method and a path, perhaps with a query.
    #[arg(value_name = "REQUEST")]
    pub request: String,
    #[command(flatten)]
    /// Where the config is.
    pub config: ConfigArgs,
    /// The host it is for.
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// A header of it, as in "x-tier: gold"; as often as you like.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// When it comes: a date, a time, how long ago, or Unix seconds. Now, if nothing is said.
    #[arg(long, value_name = "TIME")]
    pub at: Option<Moment>,
    /// Print JSON, as is done anyway when stdout is no terminal.
    #[arg(long)]
    pub json: bool,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    // What is wrong is not repeated: headers hold credentials.
    let (name, value) = text.split_once(':').ok_or("expected a name, a colon and a value")?;
    let name = HeaderName::try_from(name.trim()).map_err(|_| "this is no header's name".to_owned())?;
    let value = HeaderValue::try_from(value.trim()).map_err(|_| "this is no header's value".to_owned())?;
    Ok((name, value))
}

/// What there is to say about a request.
#[derive(Debug)]
struct Explanation {
    request: String,
    /// The route that decides.
    decides: Option<String>,
    /// `paid`, `free`, or why it is refused.
    verdict: String,
    served: bool,
    /// In words.
    price: Option<String>,
    quote: Option<Amount>,
    decimals: u8,
    /// What an answer would be charged.
    examples: Vec<(String, Amount)>,
    /// The other routes, and why they do not decide.
    others: Vec<(String, &'static str)>,
}

/// Judges and prints.
pub fn run(args: &ExplainArgs, output: &Output) -> Outcome {
    let config = args.config.load()?;
    // No key is read: whose it is makes no price.
    let policy = config
        .policy(Address::ZERO)
        .map_err(|_| Failure::message(Exit::Config, "two routes of the config match the same requests"))?;
    let explanation = explain(args, &config, &policy)?;
    if output.json_result(args.json) {
        output.json(&as_json(&explanation));
    } else {
        output.text(&as_text(&explanation, output));
    }
    if explanation.served { Ok(()) } else { Err(Failure::reported(Exit::Failed)) }
}

fn explain(args: &ExplainArgs, config: &Config, policy: &Policy) -> Result<Explanation, Failure> {
    let wrong = |what: &str| Failure::message(Exit::Usage, what).hint("peaje explain \"POST /v1/chat\"");
    let text = args.request.trim();
    let (method, target) = text.split_once(char::is_whitespace).unwrap_or(("GET", text));
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| wrong("a request begins with a method"))?;
    let target = target.trim();
    if !target.starts_with('/') || target.contains(char::is_whitespace) {
        return Err(wrong("a request is a method and a path that begins with a slash"));
    }
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let headers: HeaderMap = args.headers.iter().cloned().collect();
    let now = clock::now_s();
    let at = args.at.map_or(now, |at| at.unix(now));
    let asked = Asked { method: &method, path, query, host: args.host.as_deref(), headers: &headers, at };
    let decimals = config.chain.token.decimals;
    let verdict = policy.judge(&asked);
    let decider: Option<&Route> = match &verdict {
        Verdict::Paid(listing) => Some(&listing.route),
        Verdict::Free(route) => Some(route),
        _ => None,
    };
    let (told, quote) = match &verdict {
        Verdict::Paid(listing) => ("paid".to_owned(), Some(listing.preferred.price)),
        Verdict::Free(_) => ("free".to_owned(), None),
        Verdict::OtherMethods(methods) => {
            let methods: Vec<_> = methods.iter().map(Method::as_str).collect();
            (format!("405: the path is sold for {} only", methods.join(", ")), None)
        }
        Verdict::Unknown => ("404: no route names the path".to_owned(), None),
        Verdict::Unclear(error) => (format!("400: {error}"), None),
        Verdict::NoneMet => ("404: the path is sold on conditions that the request does not meet".to_owned(), None),
        Verdict::Doubtful(doubt) => (format!("{}: {doubt}", doubt.code().0.as_u16()), None),
        Verdict::BodyNeeded => ("the price depends on the body: say it with --body".to_owned(), None),
        Verdict::Watched(_, code) => (format!("served for nothing, because its route only watches: {code}"), None),
    };
    Ok(Explanation {
        request: format!("{method} {target}"),
        decides: decider.map(named),
        verdict: told,
        served: decider.is_some(),
        price: decider.map(|route| price_in_words(&route.price, decimals)),
        quote,
        decimals,
        examples: decider.map(|route| examples(&route.price)).unwrap_or_default(),
        others: policy
            .routes()
            .filter(|route| !decider.is_some_and(|decider| std::ptr::eq(decider, &***route)))
            .map(|route| (named(route), why_not(route, decider.is_some(), &asked)))
            .collect(),
    })
}

fn named(route: &Route) -> String {
    let requests = requests(route);
    if requests == *route.name { requests } else { format!("{requests} ({})", route.name) }
}

/// Why a route does not decide.
fn why_not(route: &Route, decided: bool, asked: &Asked<'_>) -> &'static str {
    let Ok(path) = CleanPath::parse(asked.path) else { return "the path cannot be read" };
    if !route.pattern.matches(&path) {
        return "another path";
    }
    let method = if asked.method == Method::HEAD { &Method::GET } else { asked.method };
    if !route.methods.is_empty() && !route.methods.contains(method) {
        return "another method";
    }
    if decided { "matches too, and is less specific" } else { "matches, but a more specific path decides" }
}

/// What answers of several kinds would be charged.
fn examples(price: &Price) -> Vec<(String, Amount)> {
    let failed = ("an answer with status 400 or above".to_owned(), Amount::ZERO);
    match price {
        Price::Free => Vec::new(),
        Price::Fixed(amount) => vec![("an answer below status 400".to_owned(), *amount), failed],
        Price::Metered(tariff) => {
            let mut examples = vec![("an answer that used nothing".to_owned(), tariff.charge(&used(tariff, None)))];
            for (index, rate) in tariff.rates.iter().enumerate() {
                let what = format!("one with {EXAMPLE_COUNT} {}", unit_in_words(&rate.unit));
                examples.push((what, tariff.charge(&used(tariff, Some(index)))));
            }
            examples.extend([("the most".to_owned(), tariff.most()), failed]);
            examples
        }
    }
}

/// An answer that used some of what the rate of this index counts, and of all others nothing.
fn used(tariff: &Tariff, index: Option<usize>) -> Measured {
    let mut measured = Measured {
        status: 200,
        request_bytes: 0,
        response_bytes: 0,
        elapsed_ms: 0,
        events: 0,
        tokens: Some(Tokens::default()),
        reported: Vec::new(),
        end: End::Complete,
    };
    for (place, rate) in tariff.rates.iter().enumerate() {
        let count = if index == Some(place) { EXAMPLE_COUNT } else { 0 };
        let mut tokens = measured.tokens.unwrap_or_default();
        match &rate.unit {
            Unit::RequestBytes => measured.request_bytes = count,
            Unit::ResponseBytes => measured.response_bytes = count,
            Unit::Milliseconds => measured.elapsed_ms = count,
            Unit::Events => measured.events = count,
            Unit::InputTokens => tokens.input = count,
            Unit::CachedInputTokens => tokens.cached_input = count,
            Unit::CacheWriteTokens => tokens.cache_write = count,
            Unit::OutputTokens => tokens.output = count,
            Unit::Reported(name) => measured.reported.push((name.clone(), count)),
        }
        measured.tokens = Some(tokens);
    }
    measured
}

fn as_json(explanation: &Explanation) -> Value {
    let Explanation { request, decides, verdict, served, price, quote, decimals: _, examples, others } = explanation;
    let examples: Vec<_> = examples.iter().map(|(what, charge)| json!({"answer": what, "charge": charge})).collect();
    let others: Vec<_> = others.iter().map(|(route, why)| json!({"route": route, "why_not": why})).collect();
    json!({
        "request": request, "verdict": verdict, "served": served, "route": decides, "price": price, "quote": quote,
        "who_may_pay": served.then_some("anybody"), "charges": examples, "other_routes": others,
    })
}

fn as_text(explanation: &Explanation, output: &Output) -> String {
    let Explanation { request, decides, verdict, price, quote, decimals, examples, others, .. } = explanation;
    let paint = output.paint();
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![row("verdict", verdict.clone())];
    rows.extend(decides.clone().map(|route| row("route", route)));
    rows.extend(price.clone().map(|price| row("price", price)));
    rows.extend(quote.map(|quote| row("quote", format!("{} at most, from anybody", quote.to_price(*decimals)))));
    let charges = examples.iter().map(|(what, charge)| vec![what.clone(), charge.to_price(*decimals)]).collect();
    let others = others.iter().map(|(route, why)| row(route, (*why).to_owned())).collect();
    let mut text = format!("{}\n", paint.bold(request));
    for (heading, rows) in [("", rows), ("charged", charges), ("other routes", others)] {
        if !heading.is_empty() && !rows.is_empty() {
            text.push_str(&format!("{}\n", paint.bold(heading)));
        }
        for line in aligned(&[Side::Left, Side::Left], &rows) {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pricing::Rate;
    use std::sync::Arc;

    #[test]
    fn a_header_is_read_and_never_repeated() {
        assert_eq!(header("X-Tier: gold").unwrap(), ("x-tier".parse().unwrap(), "gold".parse().unwrap()));
        for wrong in ["s3cret", "s3 cret: x", "x: s3\ncret"] {
            assert!(!header(wrong).unwrap_err().contains("cret"), "{wrong}");
        }
    }

    #[test]
    fn each_rate_of_a_tariff_has_its_example() {
        let rate = |unit| Rate { unit, tiers: Vec::new() };
        let units = [Unit::ResponseBytes, Unit::OutputTokens, Unit::Reported("x-units".into())];
        let tariff = Tariff { base: Amount::ZERO, rates: units.into_iter().map(rate).collect(), most: Amount::new(9) };
        let measured = used(&tariff, Some(1));
        assert_eq!((measured.response_bytes, measured.tokens.unwrap().output), (0, EXAMPLE_COUNT));
        assert_eq!(measured.reported, vec![(Arc::from("x-units"), 0)]);
        let told: Vec<_> = examples(&Price::Metered(Arc::new(tariff))).into_iter().map(|(what, _)| what).collect();
        assert_eq!(told.len(), 1 + 3 + 2, "{told:?}");
    }
}
