//! `peaje replay`: yesterday's requests at tomorrow's prices.
//!
//! **Owns** the judgement of recorded requests by another price list. **Promises** that a request is judged and charged as
//! the proxy would have done it, as far as the log tells; what it does not tell is said. **Does not** ask anybody, read
//! keys, or change anything. It cannot know who would have stayed away at another price.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Map, Value, json};

use super::ledger::{Side, aligned};
use super::{ConfigArgs, Exit, Failure, Outcome as Done, Output};
use crate::config::Config;
use crate::gate::matching::Place;
use crate::gate::people::{By, Cap, Free, Rules};
use crate::gate::policy::{Asked, Listing, Policy, Price, Route, Verdict};
use crate::gate::tender::Tender;
use crate::protocol::{Address, Amount};
use crate::telemetry::access::{AccessRecord, Outcome};

const MORE: &str = "\
Replay reads access logs (log.access in the config makes them) and judges every
request once more by the price list of --config: what it would have brought in,
and how many requests would have been refused, route by route, beside what the
log says happened; or, with --old, beside what another price list would have
made of the same requests.

A request that was served free and has a price now counts as refused: its agent
brought no payment. One that was paid is charged by the new list: by its payer's
own price, by its status, from what was counted of its answer, less what is free
for the payer or beyond its cap. The summary says what the log does not tell:
where it has no counts, a metered price counts in full; where it has nothing of
what the new list matches on, that counts as absent; where less was charged than
was quoted, no more is charged again. Rates and free requests by network are not
replayed, and who would have stayed away from a higher price, nobody knows.

Examples:
  peaje replay access.jsonl --config new.toml
      What the new prices would have made of yesterday.
  peaje replay access.jsonl access.jsonl.1 --config new.toml --old peaje.toml
      Both lists, the same requests.
  zcat access.jsonl.*.gz | peaje replay - --config new.toml --json | jq .total
      For programs; stdout is JSON whenever it is no terminal.

Environment:
  PEAJE_CONFIG   the config file, where --config is not given
  NO_COLOR       no colours";

/// The route of what no route decides about.
const NO_ROUTE: &str = "(no route)";

/// The arguments of `peaje replay`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", super::exit::HELP))]
pub struct ReplayArgs {
    /// The access logs; - is standard input.
    #[arg(value_name = "LOG", required = true)]
    pub logs: Vec<PathBuf>,
    #[command(flatten)]
    /// Where the config with the new prices is.
    pub config: ConfigArgs,
    /// Compare with what this config would have made of the requests, instead of what happened.
    #[arg(long, value_name = "FILE")]
    pub old: Option<PathBuf>,
    /// Print JSON, as is done anyway when stdout is no terminal.
    #[arg(long)]
    pub json: bool,
}

/// What a price list makes of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    requests: u64,
    revenue: Amount,
    refused: u64,
}

impl Sum {
    fn add(&mut self, judged: Judged) {
        self.requests = self.requests.saturating_add(1);
        match judged {
            Judged::Served(charge) => self.revenue = self.revenue.saturating_add(charge),
            Judged::Refused => self.refused = self.refused.saturating_add(1),
        }
    }

    fn to_json(self) -> Value {
        json!({"requests": self.requests, "revenue": self.revenue, "refused": self.refused})
    }
}

/// What became, or would become, of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judged {
    Served(Amount),
    Refused,
}

/// What became of all of them, by route: before, and after.
#[derive(Debug, Default)]
struct Replay {
    routes: BTreeMap<String, (Sum, Sum)>,
    records: u64,
    /// Lines that are no records.
    unreadable: u64,
    /// Metered charges that could only be guessed at.
    uncounted: u64,
    /// Charges that were below their quote, for a reason that the log does not tell.
    lowered: u64,
    /// Payments of nobody knows whom, by routes that have rules for some.
    anonymous: u64,
    /// Payments in tokens that the new list does not take.
    foreign: u64,
    /// Of each path, the places that its routes look at and the log has nothing of, with the number of such requests...
    unseen: BTreeMap<(String, Place), u64>,
    /// ...and those that it has something of in another request: there they were looked at, and nothing is nothing.
    seen: BTreeSet<(String, Place)>,
    /// What each payer was charged in each window of a route's cap.
    charged: BTreeMap<(*const Route, Address, u64), Amount>,
    /// How many free requests it had in each window.
    given: BTreeMap<(*const Route, Address, u64), u64>,
}

/// Reads, judges and prints.
pub fn run(args: &ReplayArgs, output: &Output) -> Done {
    let load = |path: &Path| super::load(path, output.json_result(args.json), output);
    let config = load(&args.config.config)?;
    let new = policy(&config)?;
    let old = args.old.as_deref().map(|old| policy(&load(old)?)).transpose()?;
    let mut replay = Replay::default();
    for log in &args.logs {
        let unreadable = |error: std::io::Error| {
            let error = anyhow::Error::new(error).context(format!("the access log {} cannot be read", log.display()));
            Failure::new(Exit::Failed, error)
        };
        read(log, |line| replay.line(line, old.as_ref(), &new)).map_err(unreadable)?;
    }
    if replay.records == 0 && replay.unreadable > 0 {
        return Err(Failure::message(Exit::Failed, "no line of the log is a record of a request")
            .hint("log.access in the config names the file that is meant"));
    }
    if output.json_result(args.json) {
        output.json(&replay.to_json());
    } else {
        output.text(&replay.to_text(config.chain.token.decimals, args.old.is_some(), output));
    }
    Ok(())
}

fn policy(config: &Config) -> Result<Policy, Failure> {
    let equal = |_| Failure::message(Exit::Config, "two routes of the config match the same requests");
    config.policy(Address::ZERO).map_err(equal)
}

fn read(log: &Path, mut line: impl FnMut(&str)) -> std::io::Result<()> {
    let reader: Box<dyn BufRead> = if log == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::io::BufReader::new(std::fs::File::open(log)?))
    };
    for text in reader.lines() {
        line(&text?);
    }
    Ok(())
}

impl Replay {
    fn line(&mut self, line: &str, old: Option<&Policy>, new: &Policy) {
        if line.trim().is_empty() {
            return;
        }
        let Ok(mut record) = serde_json::from_str::<AccessRecord>(line) else {
            self.unreadable = self.unreadable.saturating_add(1);
            return;
        };
        self.records = self.records.saturating_add(1);
        if !in_preferred(&mut record, new) {
            self.foreign = self.foreign.saturating_add(1);
        }
        let (route, before) = match old {
            Some(old) => self.judge(&record, old),
            None => (record.route.clone().unwrap_or_else(|| NO_ROUTE.to_owned()), happened(&record)),
        };
        self.routes.entry(route).or_default().0.add(before);
        let (route, after) = self.judge(&record, new);
        self.routes.entry(route).or_default().1.add(after);
    }

    /// What a price list makes of a request: which route, and what becomes of it.
    fn judge(&mut self, record: &AccessRecord, policy: &Policy) -> (String, Judged) {
        let Ok(method) = Method::from_bytes(record.method.as_bytes()) else {
            return (NO_ROUTE.to_owned(), Judged::Refused);
        };
        let (headers, query, body) = (headers(record), query(record), body(record));
        let asked = Asked {
            method: &method,
            path: &record.path,
            query: query.as_deref(),
            host: record.host.as_deref(),
            headers: &headers,
            at: record.time_ms / 1_000,
        };
        if let Some((path, places)) = policy.looked_at(&asked) {
            for place in places {
                let key = (path.to_string(), place.clone());
                if record.matched.contains_key(&place.recorded_as()) {
                    self.seen.insert(key);
                } else {
                    let count = self.unseen.entry(key).or_default();
                    *count = count.saturating_add(1);
                }
            }
        }
        match policy.judge_whole(&asked, Some(body.as_bytes())) {
            Verdict::Free(route) => (route.name.to_string(), Judged::Served(Amount::ZERO)),
            Verdict::Paid(listing) if listing.route.is_shadow() => {
                (listing.route.name.to_string(), Judged::Served(Amount::ZERO))
            }
            Verdict::Paid(listing) => (listing.route.name.to_string(), self.paid(record, listing)),
            _ => (NO_ROUTE.to_owned(), Judged::Refused),
        }
    }

    fn paid(&mut self, record: &AccessRecord, listing: &Listing) -> Judged {
        let rules = listing.route.rules.as_deref();
        let was_paid = match record.outcome {
            Outcome::Paid => true,
            // It was on its way when its client left: that is charged in full.
            Outcome::Left => record.charge.is_some(),
            // The answer was a failure, which the new list may charge: its status tells.
            Outcome::Void => true,
            Outcome::Refunded => return Judged::Served(Amount::ZERO),
            _ => false,
        };
        if !was_paid || rules.zip(record.payer).is_some_and(|(rules, payer)| !rules.admit(&payer)) {
            return Judged::Refused;
        }
        let charge = self.charge(record, listing);
        Judged::Served(match (rules, record.payer) {
            (Some(rules), Some(payer)) => self.due(&listing.route, rules, payer, record, charge),
            (Some(rules), None) => {
                let depends = !rules.prices.is_empty() || rules.free.is_some() || rules.cap.is_some();
                self.anonymous = self.anonymous.saturating_add(u64::from(depends));
                charge
            }
            (None, _) => charge,
        })
    }

    /// What the answer costs this payer, whatever it had free and was charged before.
    fn charge(&mut self, record: &AccessRecord, listing: &Listing) -> Amount {
        let own = record.payer.zip(listing.route.rules.as_ref()).and_then(|(payer, rules)| rules.price_for(&payer));
        let price = own.unwrap_or(&listing.preferred.charged);
        let most = price.most().unwrap_or(Amount::ZERO).min(listing.preferred.price);
        let by_status = |cost: Amount| match record.status {
            Some(status) => listing.route.status_rule.charge(status, cost).min(most),
            None => cost.min(most),
        };
        let failed = record.status.is_none_or(|status| status >= 400);
        if record.outcome == Outcome::Left {
            return most;
        }
        // A call that failed with a good status (gRPC) fails once more.
        if record.outcome == Outcome::Void && (!failed || record.status.is_none()) {
            return Amount::ZERO;
        }
        match (price, &record.counts) {
            (Price::Metered(_), Some(counts)) => by_status(price.cost(&counts.measured(record.status.unwrap_or(200)))),
            (Price::Metered(tariff), None) => {
                let charge = by_status(tariff.most());
                self.uncounted = self.uncounted.saturating_add(u64::from(!charge.is_zero()));
                charge
            }
            // The upstream reported less than the quote, or the payer had to pay less; it would be so again.
            _ if record.charge < record.quote && !failed => {
                self.lowered = self.lowered.saturating_add(1);
                by_status(most).min(record.charge.unwrap_or(Amount::ZERO))
            }
            _ => by_status(most),
        }
    }

    /// What is left of a charge, as the gate counts it: nothing of what is free, and nothing beyond the cap.
    fn due(&mut self, route: &Route, rules: &Rules, payer: Address, record: &AccessRecord, charge: Amount) -> Amount {
        let at_s = record.time_ms / 1_000;
        // What served and cost nothing was one of those that were free.
        let nothing = record.charge == Some(Amount::ZERO) && record.quote > record.charge;
        let was_given = nothing && record.outcome == Outcome::Paid && record.status.is_some_and(|status| status < 400);
        let window = |per_s: u64| (std::ptr::from_ref(route), payer, at_s.checked_div(per_s).unwrap_or_default());
        if let Some(Free { requests, per_s, by: By::Payer }) = rules.free {
            let given = self.given.entry(window(per_s)).or_default();
            if *given < requests && (was_given || !charge.is_zero()) {
                *given = given.saturating_add(1);
                return Amount::ZERO;
            }
        }
        let Some(Cap { payer: most, per_s }) = rules.cap else { return charge };
        let charged = self.charged.entry(window(per_s)).or_default();
        let due = charge.min(most.checked_sub(*charged).unwrap_or(Amount::ZERO));
        *charged = charged.saturating_add(due);
        due
    }

    /// What the log has nothing of although the price depends on it, by place, and in how many requests.
    fn not_told_apart(&self) -> BTreeMap<String, u64> {
        let mut told = BTreeMap::<String, u64>::new();
        for (key, count) in self.unseen.iter().filter(|(key, _)| !self.seen.contains(*key)) {
            let sum = told.entry(key.1.to_string()).or_default();
            *sum = sum.saturating_add(*count);
        }
        told
    }

    fn total(&self) -> (Sum, Sum) {
        let add = |sum: Sum, other: Sum| Sum {
            requests: sum.requests.saturating_add(other.requests),
            revenue: sum.revenue.saturating_add(other.revenue),
            refused: sum.refused.saturating_add(other.refused),
        };
        self.routes
            .values()
            .fold(Default::default(), |(old, new), (before, after)| (add(old, *before), add(new, *after)))
    }

    fn to_json(&self) -> Value {
        let routes: Vec<_> = self
            .routes
            .iter()
            .map(|(route, (old, new))| json!({"route": route, "old": old.to_json(), "new": new.to_json()}))
            .collect();
        let (old, new) = self.total();
        json!({
            "routes": routes,
            "total": {"old": old.to_json(), "new": new.to_json()},
            "records": self.records,
            "unreadable": self.unreadable,
            "charged_in_full_for_want_of_counts": self.uncounted,
            "charged_no_more_than_before": self.lowered,
            "paid_by_unknown_payers": self.anonymous,
            "paid_in_other_tokens": self.foreign,
            "not_told_apart": self.not_told_apart(),
        })
    }

    fn to_text(&self, decimals: u8, against_config: bool, output: &Output) -> String {
        let old = if against_config { "old" } else { "log" };
        let heading = ["route", old, "new", &format!("refused, {old}"), "new", &format!("revenue, {old}"), "new"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        let row = |route: &str, old: Sum, new: Sum| {
            let money = |amount: Amount| amount.to_price(decimals);
            let counts = [old.requests, new.requests, old.refused, new.refused].map(|count| count.to_string());
            let sums = [money(old.revenue), money(new.revenue)];
            std::iter::once(route.to_owned()).chain(counts).chain(sums).collect::<Vec<_>>()
        };
        rows.extend(self.routes.iter().map(|(route, (old, new))| row(route, *old, *new)));
        let (before, after) = self.total();
        rows.push(row("total", before, after));
        let mut sides = [Side::Right; 7];
        if let Some(first) = sides.first_mut() {
            *first = Side::Left;
        }
        let paint = output.paint();
        let mut lines = aligned(&sides, &rows).into_iter();
        let mut text = lines.next().map(|heading| format!("{}\n", paint.bold(&heading))).unwrap_or_default();
        lines.for_each(|line| text.push_str(&format!("{line}\n")));
        if self.unreadable > 0 {
            text.push_str(&format!("{} lines are no records and were passed over\n", self.unreadable));
        }
        if self.uncounted > 0 {
            text.push_str(&format!("{} metered charges are the most, for want of counts\n", self.uncounted));
        }
        if self.lowered > 0 {
            let lowered = self.lowered;
            text.push_str(&format!(
                "{lowered} charges were below their quote, and are no more now; why, the log does not say\n"
            ));
        }
        if self.anonymous > 0 {
            let anonymous = self.anonymous;
            text.push_str(&format!(
                "{anonymous} payments are charged as everybody's: the log does not say whose they were\n"
            ));
        }
        if self.foreign > 0 {
            let foreign = self.foreign;
            text.push_str(&format!(
                "{foreign} requests were of tokens that the list does not take: what they brought is not counted\n"
            ));
        }
        for (place, count) in self.not_told_apart() {
            text.push_str(&format!("{count} requests could not be told apart: the log has no {place}\n"));
        }
        text
    }
}

/// What the log says became of a request.
fn happened(record: &AccessRecord) -> Judged {
    match record.outcome {
        Outcome::Unpaid | Outcome::Refused | Outcome::NotSold | Outcome::Overloaded => Judged::Refused,
        _ => Judged::Served(record.charge.unwrap_or(Amount::ZERO)),
    }
}

/// Lets a record count in units of the preferred token, as everything here does. Where nobody knows what its token is worth,
/// it says nothing of what was charged; that is not the case for whatever says no token.
fn in_preferred(record: &mut AccessRecord, policy: &Policy) -> bool {
    let (Some(network), Some(asset)) = (&record.network, record.asset) else { return true };
    let is_of = |tender: &&Arc<Tender>| tender.network == *network && tender.terms.token.address == asset;
    let Some(tender) = policy.tenders().iter().find(is_of) else {
        (record.quote, record.charge) = (None, None);
        return false;
    };
    let (from, to) = (tender.terms.token.decimals, policy.terms().token.decimals);
    for amount in [&mut record.quote, &mut record.charge].into_iter().flatten() {
        *amount = amount.about_in_decimals(from, to);
    }
    true
}

/// The headers that were recorded because a route matches on them.
fn headers(record: &AccessRecord) -> HeaderMap {
    let named = |(name, value): (&String, &String)| {
        let name = HeaderName::try_from(name.strip_prefix("header ")?).ok()?;
        Some((name, HeaderValue::try_from(value).ok()?))
    };
    record.matched.iter().filter_map(named).collect()
}

/// The part of the query that was recorded because a route matches on it.
fn query(record: &AccessRecord) -> Option<String> {
    let named = |(name, value): (&String, &String)| {
        Some(format!("{}={}", escaped(name.strip_prefix("query ")?), escaped(value)))
    };
    let parts: Vec<_> = record.matched.iter().filter_map(named).collect();
    (!parts.is_empty()).then(|| parts.join("&"))
}

/// A text as it stands in a query.
fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// The part of the body that was recorded because a route matches on it.
fn body(record: &AccessRecord) -> String {
    let mut body = Value::Object(Map::new());
    for (name, value) in &record.matched {
        let keys = name.strip_prefix("body ").and_then(|keys| serde_json::from_str::<Vec<String>>(keys).ok());
        let (Some(keys), Ok(value)) = (keys, serde_json::from_str::<Value>(value)) else { continue };
        let mut place = &mut body;
        for key in keys {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            let Value::Object(object) = place else { break };
            place = object.entry(key).or_insert(Value::Null);
        }
        *place = value;
    }
    body.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(routes: &str) -> String {
        format!(
            "[upstream]\nurl = \"http://127.0.0.1:8080\"\n[chain]\nnetwork = \"base-sepolia\"\nrpc = \"env:R\"\n[receiver]\n\
             pay_to = \"0x209693Bc6afc0C5328bA36FaF03C514EF312287C\"\nauthorizer_key = \"env:K\"\n{routes}"
        )
    }

    fn listed(routes: &str) -> Policy {
        policy(&Config::parse(&config(routes), "c.toml").unwrap()).unwrap()
    }

    fn record(path: &str, outcome: &str, quote: Option<u128>, charge: Option<u128>) -> String {
        let amount = |amount: Option<u128>| amount.map(Amount::new);
        let route = if path == "/gone" { None } else { Some(path) };
        json!({
            "time_ms": 1_800_000_000_000u64, "method": "GET", "path": path, "route": route, "outcome": outcome,
            "quote": amount(quote), "charge": amount(charge), "status": 200, "elapsed_ms": 1,
        })
        .to_string()
    }

    #[test]
    fn requests_are_judged_once_more() {
        let new = listed(
            "[[route]]\npath = \"/a\"\nprice = \"$0.003\"\n[[route]]\npath = \"/f\"\nprice = \"$0.001\"\n[[route]]\npath = \
             \"/p\"\nprice = \"free\"\n",
        );
        let mut replay = Replay::default();
        for line in [
            record("/a", "paid", Some(2_000), Some(2_000)),
            record("/a", "paid", Some(2_000), Some(500)),
            record("/a", "void", Some(2_000), Some(0)),
            record("/a", "unpaid", Some(2_000), None),
            record("/a", "left", Some(2_000), Some(2_000)),
            record("/a", "left", Some(2_000), None),
            record("/f", "free", None, None),
            record("/p", "paid", Some(2_000), Some(2_000)),
            record("/p", "unpaid", Some(2_000), None),
            record("/gone", "not_sold", None, None),
            "no record".to_owned(),
            String::new(),
        ] {
            replay.line(&line, None, &new);
        }
        let sum = |requests, revenue, refused| Sum { requests, revenue: Amount::new(revenue), refused };
        let rows: Vec<_> = replay.routes.iter().map(|(route, sums)| (route.as_str(), *sums)).collect();
        let expected = [
            ("(no route)", (sum(1, 0, 1), sum(1, 0, 1))),
            ("/a", (sum(6, 4_500, 1), sum(6, 3_000 + 500 + 3_000, 2))),
            ("/f", (sum(1, 0, 0), sum(1, 0, 1))),
            ("/p", (sum(2, 2_000, 1), sum(2, 0, 0))),
        ];
        assert_eq!(rows, expected);
        assert_eq!((replay.records, replay.unreadable), (10, 1));
        assert_eq!(replay.total(), (sum(10, 6_500, 3), sum(10, 6_500, 4)));
    }

    const PAYER: &str = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C";

    /// A payment of this payer's, a dollar's tenth, and the answer's status.
    fn answered(status: u16) -> String {
        let mut record: Value = serde_json::from_str(&record("/a", "paid", Some(100_000), Some(100_000))).unwrap();
        (record["status"], record["payer"]) = (status.into(), PAYER.into());
        if status >= 400 {
            (record["outcome"], record["charge"]) = ("void".into(), "0".into());
        }
        record.to_string()
    }

    /// What a list makes of such payments.
    fn revenue(lines: &str, statuses: &[u16]) -> (u128, u64) {
        let new = listed(&format!(
            "[[route]]\npath = \"/a\"\nprice = \"$0.10\"\n{lines}\n[payers]\nours = [\"{PAYER}\"]\nothers = \
             [\"0x000000000000000000000000000000000000dEaD\"]\n"
        ));
        let mut replay = Replay::default();
        statuses.iter().for_each(|status| replay.line(&answered(*status), None, &new));
        let (_, after) = replay.total();
        (after.revenue.units(), after.refused)
    }

    #[test]
    fn the_new_list_charges_by_status_and_by_payer() {
        let own = |payers: &str, price: &str| format!("[[route.for]]\npayers = [\"{payers}\"]\nprice = \"{price}\"");
        let cases = [
            (String::new(), vec![200, 404, 500], (100_000, 0)),
            ("charge_on = { \"2xx\" = \"50%\" }".to_owned(), vec![200; 4], (200_000, 0)),
            ("charge_on = { \"404\" = \"10%\" }".to_owned(), vec![404], (10_000, 0)),
            ("charge_on = { \"404\" = \"10%\" }".to_owned(), vec![403, 500], (0, 0)),
            (own("ours", "free"), vec![200; 3], (0, 0)),
            (own("ours", "$0.04"), vec![200; 3], (120_000, 0)),
            (own("others", "free"), vec![200; 3], (300_000, 0)),
            ("cap = { payer = \"$0.25\", per = \"1d\" }".to_owned(), vec![200; 4], (250_000, 0)),
            (
                "free = { requests = 2, per = \"1d\", by = \"payer\" }".to_owned(),
                vec![404, 200, 200, 200],
                (100_000, 0),
            ),
            ("allow = [\"others\"]".to_owned(), vec![200; 3], (0, 3)),
            ("deny = [\"others\"]".to_owned(), vec![200; 3], (300_000, 0)),
            ("shadow = true".to_owned(), vec![200; 3], (0, 0)),
        ];
        for (lines, statuses, expected) in cases {
            assert_eq!(revenue(&lines, &statuses), expected, "{lines}");
        }
        // A log of the same list brings the same.
        let same = "free = { requests = 2, per = \"1d\", by = \"payer\" }\ncap = { payer = \"$0.25\", per = \"1d\" }";
        let new = listed(&format!("[[route]]\npath = \"/a\"\nprice = \"$0.10\"\n{same}\n"));
        let mut replay = Replay::default();
        for charge in [0, 0, 100_000, 100_000, 50_000, 0] {
            let record = answered(200).replace("\"charge\":\"100000\"", &format!("\"charge\":\"{charge}\""));
            replay.line(&record, None, &new);
        }
        assert_eq!((replay.total().1.revenue, replay.lowered), (replay.total().0.revenue, 4));
        // What was charged by its status before is charged by the new list's rule.
        let new = listed("[[route]]\npath = \"/a\"\nprice = \"$0.10\"\n");
        let mut replay = Replay::default();
        replay.line(&answered(404).replace("void", "paid").replace("\"0\"", "\"10000\""), None, &new);
        assert_eq!(replay.total().1.revenue, Amount::ZERO);
    }

    #[test]
    fn what_was_paid_in_other_tokens_counts_in_the_preferred_one() {
        let fine = "0xf1e0000000000000000000000000000000000018";
        let two = format!(
            "token = [\"usdc\", {{ address = \"{fine}\", decimals = 18, domain_name = \"D\", domain_version = \"1\" }}]"
        );
        let mut text = config("[[route]]\npath = \"/a\"\nprice = \"$0.01\"\n");
        text = text.replace("rpc = ", &format!("{two}\nrpc = "));
        let new = policy(&Config::parse(&text, "c.toml").unwrap()).unwrap();
        let usdc = new.terms().token.address;
        let mut replay = Replay::default();
        let elsewhere = Address([9; 20]);
        for (asset, charge) in [(usdc, 2_000), (fine.parse().unwrap(), 2_000_000_000_000_000), (elsewhere, 7)] {
            let mut record: Value = serde_json::from_str(&record("/a", "paid", Some(charge), Some(charge))).unwrap();
            (record["network"], record["asset"]) = ("eip155:84532".into(), json!(asset));
            replay.line(&record.to_string(), None, &new);
        }
        let (before, after) = replay.total();
        assert_eq!((before.revenue.units(), after.revenue.units(), replay.foreign), (4_000, 30_000, 1));
    }

    #[test]
    fn what_the_log_has_nothing_of_is_counted() {
        let route = |more: &str, price: &str| format!("[[route]]\npath = \"/a\"\nprice = \"{price}\"\n{more}\n");
        let condition = "match = { header = { x-tier = \"pro\" }, body = { model = \"large\" } }";
        let new = listed(&(route("", "$0.10") + &route(condition, "$0.90")));
        let mut record: AccessRecord = serde_json::from_str(&answered(200)).unwrap();
        let mut replay = Replay::default();
        replay.line(&answered(200), None, &new);
        record.matched.insert("header x-tier".to_owned(), "lite".to_owned());
        replay.line(&serde_json::to_string(&record).unwrap(), None, &new);
        // Where the log has it once, it was looked at, and the other request had none.
        assert_eq!(replay.not_told_apart(), BTreeMap::from([("body.model".to_owned(), 2)]));
        assert_eq!(replay.to_json()["not_told_apart"], json!({"body.model": 2}));
        let text = replay.to_text(6, false, &Output::plain());
        assert!(text.ends_with("2 requests could not be told apart: the log has no body.model\n"), "{text}");
    }

    #[test]
    fn with_another_list_both_judge_the_same_requests() {
        let old = listed("[[route]]\npath = \"/*\"\nprice = \"$0.001\"\n");
        let new = listed("[[route]]\npath = \"/*\"\nprice = \"$0.004\"\nname = \"all\"\n");
        let mut replay = Replay::default();
        replay.line(&record("/a", "paid", Some(2_000), Some(2_000)), Some(&old), &new);
        let revenue = |route: &str| replay.routes.get(route).map(|(old, new)| (old.revenue, new.revenue));
        assert_eq!(revenue("/*"), Some((Amount::new(1_000), Amount::ZERO)));
        assert_eq!(revenue("all"), Some((Amount::ZERO, Amount::new(4_000))));
    }

    #[test]
    fn what_routes_matched_on_is_asked_again() {
        let mut record: AccessRecord = serde_json::from_str(&record("/a", "free", None, None)).unwrap();
        assert_eq!((headers(&record).len(), query(&record)), (0, None));
        record.matched.insert("header x-tier".to_owned(), "gold".to_owned());
        record.matched.insert("query model".to_owned(), "big".to_owned());
        assert_eq!(headers(&record).get("x-tier").unwrap(), "gold");
        assert_eq!(query(&record).as_deref(), Some("model=big"));
        record.matched.insert("query model".to_owned(), "a b&c".to_owned());
        assert_eq!(query(&record).as_deref(), Some("model=a%20b%26c"));
        assert_eq!(body(&record), "{}");
        record.matched.insert(r#"body ["a","b"]"#.to_owned(), "1.5".to_owned());
        record.matched.insert(r#"body ["a","c"]"#.to_owned(), r#""x""#.to_owned());
        record.matched.insert(r#"body ["model"]"#.to_owned(), "null".to_owned());
        let expected = serde_json::json!({"a": {"b": 1.5, "c": "x"}, "model": null});
        assert_eq!(serde_json::from_str::<Value>(&body(&record)).unwrap(), expected);
    }
}
