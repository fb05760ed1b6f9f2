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
use crate::config::diff::unit_in_words;
use crate::gate::explain::Explanation;
use crate::gate::policy::{Asked, Policy, Price, Verdict};
use crate::pricing::{End, Measured, StatusRule, Tariff, Tokens, Unit};
use crate::protocol::{Address, Amount};

const MORE: &str = "\
Explain says which route of the price list decides about a request and why the
others do not, what the quote would say, what would be charged for answers of
several kinds, and who may pay. It reads the config only: no proxy need run.

It ends with 0 if the request would be served, paid or free, or its body decides
and was not given, and with 1 if it would be refused whatever it brings.

Examples:
  peaje explain \"POST /v1/chat\"
  peaje explain \"GET /v1/models?limit=3\" --host api.example.com --header \"x-tier: gold\"
      A request is its target, its host and its headers.
  peaje explain /report --at 2026-12-24T23:30:00Z --config new.toml
      At another time, by another price list. Without a method it is GET.
  peaje explain \"POST /v1/chat\" --body '{\"model\": \"large\"}' --payer 0x…
      With the body, where the price depends on it, and for one payer.
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
    /// Its body, where the price depends on it.
    #[arg(long, value_name = "TEXT")]
    pub body: Option<String>,
    /// Who pays, where that decides what is charged.
    #[arg(long, value_name = "ADDRESS")]
    pub payer: Option<Address>,
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
struct Told {
    request: String,
    why: Explanation,
    /// What the request costs, in words.
    price: Option<String>,
    quote: Option<Amount>,
    decimals: u8,
    /// What an answer would be charged.
    examples: Vec<(String, Amount)>,
    /// Whether the payer that was named may pay.
    may_pay: Option<bool>,
}

/// Judges and prints.
pub fn run(args: &ExplainArgs, output: &Output) -> Outcome {
    let config = super::load(&args.config.config, output.json_result(args.json), output)?;
    // No key is read: whose it is makes no price.
    let policy = config
        .policy(Address::ZERO)
        .map_err(|_| Failure::message(Exit::Config, "two routes of the config match the same requests"))?;
    let told = explain(args, &config, &policy)?;
    if output.json_result(args.json) {
        output.json(&as_json(&told));
    } else {
        output.text(&as_text(&told, output));
    }
    let served = told.why.decision != "refused" && told.may_pay != Some(false);
    if served { Ok(()) } else { Err(Failure::reported(Exit::Failed)) }
}

fn explain(args: &ExplainArgs, config: &Config, policy: &Policy) -> Result<Told, Failure> {
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
    let body = args.body.as_deref().map(str::as_bytes);
    let decimals = config.chain.token.decimals;
    let listing = match policy.judge_whole(&asked, body) {
        Verdict::Paid(listing) => Some(listing),
        _ => None,
    };
    let rules = listing.and_then(|listing| listing.route.rules.as_deref());
    let own = args.payer.zip(rules).and_then(|(payer, rules)| rules.price_for(&payer));
    let price = own.or(listing.map(|listing| &listing.preferred.charged));
    let rule = listing.map(|listing| &listing.route.status_rule);
    Ok(Told {
        request: format!("{method} {target}"),
        why: policy.explain(&asked, body),
        price: price.map(|price| price.describe(decimals)),
        quote: listing.map(|listing| listing.preferred.price),
        decimals,
        examples: price.zip(rule).map(|(price, rule)| examples(price, rule)).unwrap_or_default(),
        may_pay: args.payer.map(|payer| rules.is_none_or(|rules| rules.admit(&payer))),
    })
}

/// What answers of several kinds would be charged.
fn examples(price: &Price, rule: &StatusRule) -> Vec<(String, Amount)> {
    let (mut examples, most) = match price {
        Price::Free => return Vec::new(),
        Price::Fixed(amount) => (Vec::new(), *amount),
        Price::Metered(tariff) => {
            let mut examples = vec![("an answer that used nothing".to_owned(), tariff.charge(&used(tariff, None)))];
            for (index, rate) in tariff.rates.iter().enumerate() {
                let what = format!("one with {EXAMPLE_COUNT} {}", unit_in_words(&rate.unit));
                examples.push((what, tariff.charge(&used(tariff, Some(index)))));
            }
            (examples, tariff.most())
        }
    };
    for (_, charge) in &mut examples {
        *charge = rule.charge(OK, *charge);
    }
    let of_status = |status: u16| (format!("at most, with status {status}"), rule.charge(status, most));
    examples.extend(EXAMPLE_STATUSES.map(of_status));
    examples
}

/// The status of examples that say nothing of one.
const OK: u16 = 200;

/// Of these it is told what they cost.
const EXAMPLE_STATUSES: [u16; 4] = [OK, 302, 404, 500];

/// An answer that used some of what the rate of this index counts, and of all others nothing.
fn used(tariff: &Tariff, index: Option<usize>) -> Measured {
    let mut measured = Measured { tokens: Some(Tokens::default()), ..Measured::nothing(OK, End::Complete) };
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

fn as_json(Told { request, why, price, quote, decimals: _, examples, may_pay }: &Told) -> Value {
    let examples: Vec<_> = examples.iter().map(|(what, charge)| json!({"answer": what, "charge": charge})).collect();
    json!({
        "request": request, "decision": why.decision, "status": why.status, "code": why.code, "message": why.message,
        "route": why.route, "price": price, "quote": quote, "rules": why.rules, "payer_may_pay": may_pay,
        "charges": examples, "routes": why.considered,
    })
}

fn as_text(told: &Told, output: &Output) -> String {
    let Told { request, why, price, quote, decimals, examples, may_pay } = told;
    let paint = output.paint();
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let verdict = match (why.status, &why.message) {
        (Some(status), Some(message)) => format!("{}: {status}, {message}", why.decision),
        // It begins with the very word.
        (None, Some(message)) if message.starts_with(why.decision) => message.clone(),
        _ => why.decision.to_owned(),
    };
    let mut rows = vec![row("verdict", verdict)];
    rows.extend(why.route.clone().map(|route| row("route", route)));
    rows.extend(price.clone().map(|price| row("price", price)));
    rows.extend(quote.map(|quote| row("quote", format!("{} at most", quote.to_price(*decimals)))));
    rows.extend(why.rules.iter().map(|rule| row("rule", rule.clone())));
    rows.extend(may_pay.map(|may| row("payer", if may { "may pay" } else { "may not pay" }.to_owned())));
    let charges = examples.iter().map(|(what, charge)| vec![what.clone(), charge.to_price(*decimals)]).collect();
    let candidates = why.considered.iter().filter(|route| route.may_decide).map(|route| {
        let price =
            route.price.map_or_else(|| "free".to_owned(), |most| format!("{} at most", most.to_price(*decimals)));
        let wanted =
            if route.conditions.is_empty() { "any other body".to_owned() } else { route.conditions.join(", ") };
        vec![route.route.clone(), price, wanted]
    });
    let others = why.considered.iter().filter(|route| !route.decides && !route.may_decide);
    let others = others.map(|route| row(&route.route, route.why.clone())).collect();
    let mut text = format!("{}\n", paint.bold(request));
    for (heading, rows) in
        [("", rows), ("charged", charges), ("candidates", candidates.collect()), ("other routes", others)]
    {
        if !heading.is_empty() && !rows.is_empty() {
            text.push_str(&format!("{}\n", paint.bold(heading)));
        }
        for line in aligned(&[Side::Left, Side::Left, Side::Left], &rows) {
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
        let told: Vec<_> = examples(&Price::Metered(Arc::new(tariff)), &StatusRule::default())
            .into_iter()
            .map(|(what, _)| what)
            .collect();
        assert_eq!(told.len(), 1 + 3 + EXAMPLE_STATUSES.len(), "{told:?}");
    }
}
