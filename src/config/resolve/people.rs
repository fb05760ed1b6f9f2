//! `[payers]`, and what a route makes of who asks: lists, prices of their own, quotas, caps, rates, shadow mode.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::price::{Denomination, price};
use super::values::{DAY, SECOND, address, counted, one_of, read_duration, whole_seconds};
use crate::config::parse_duration;
use crate::config::reader::{Entry, Given, Problem, Report, Section, closest, quoted};
use crate::gate::people::{By, Cap, Free, OwnPrice, Payers, Rules};
use crate::gate::policy::Price;
use crate::gate::quota::Rate;
use crate::protocol::{Address, Amount};

/// Accounts of one list.
const MAX_MEMBERS: usize = 100_000;

/// A file of so many accounts is not larger.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// Names of lists are shown in explanations.
const MAX_NAME_BYTES: usize = 64;

/// Prices of one route for some payers.
const MAX_OWN_PRICES: usize = 64;

/// A window may be so long.
const MAX_WINDOW: Duration = Duration::from_secs(366 * 86_400);

/// The lists of payers, by name.
pub(super) type Lists = BTreeMap<String, Arc<Payers>>;

/// How often a payer is served, and how often a network is told a price.
pub(super) type Rates = (Option<Rate>, Option<Rate>);

/// The lists of payers. One that was refused is there all the same, with nobody on it: a route that names it is no second
/// mistake.
pub(super) fn payers(mut section: Section<'_>, folder: Option<&Path>) -> Lists {
    let mut lists = Lists::new();
    for (name, entry) in section.own_keys(Some("partners")) {
        let members = if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
            Err(Problem::new(format!("{} is no name for a list", quoted(&name))))
        } else {
            members(section.report(), &entry, folder)
        };
        let members = members.unwrap_or_else(|problem| {
            section.refuse(&entry, problem);
            BTreeSet::new()
        });
        lists.insert(name.clone(), Arc::new(Payers { name: name.into(), members }));
    }
    lists
}

fn members(report: &Report<'_>, entry: &Entry<'_>, folder: Option<&Path>) -> Result<BTreeSet<Address>, Problem> {
    if let Some(text) = entry.as_text() {
        let Some(file) = text.strip_prefix("file:") else {
            return Err(Problem::new("expected a list of addresses, or a file")
                .fix("write [\"0x…\"], or \"file:partners.txt\""));
        };
        let path = folder.unwrap_or(Path::new("")).join(file);
        report.opens(&path);
        return from_file(&path, file);
    }
    let texts = entry.as_texts().ok_or_else(|| {
        Problem::new(format!("expected a list of addresses, found {}", entry.kind()))
            .fix("write [\"0x…\"], or \"file:partners.txt\"")
    })?;
    if texts.is_empty() {
        return Err(Problem::new("names nobody").fix("leave the list out"));
    }
    at_most(texts.len())?;
    texts.into_iter().map(address).collect()
}

/// One address a line; empty lines, and what follows a `#`, count for nothing. What stands in the file is not shown: it may
/// be the wrong one.
fn from_file(path: &Path, name: &str) -> Result<BTreeSet<Address>, Problem> {
    let unreadable = |why: String| Problem::new(format!("{} cannot be read: {why}", quoted(name)));
    let is_file = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.is_file();
    if !is_file {
        return Err(unreadable("it is no file".to_owned()));
    }
    let file = std::fs::File::open(path).map_err(|error| unreadable(error.to_string()))?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| unreadable(error.to_string()))?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_FILE_BYTES) {
        return Err(unreadable(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    let mut members = BTreeSet::new();
    for (number, line) in (1_usize..).zip(text.lines()) {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        let address = address(entry).map_err(|_| {
            let problem = Problem::new(format!("line {number} of {} is not an address", quoted(name)));
            problem.fix("write one address a line: 0x and 40 hex digits, in mixed case only with the right checksum")
        })?;
        members.insert(address);
    }
    if members.is_empty() {
        return Err(Problem::new(format!("{} names nobody", quoted(name))));
    }
    at_most(members.len())?;
    Ok(members)
}

fn at_most(members: usize) -> Result<(), Problem> {
    if members <= MAX_MEMBERS { Ok(()) } else { Err(Problem::new(format!("has more than {MAX_MEMBERS} addresses"))) }
}

/// What a route makes of who asks, if anything; `None` if something was refused. `prices` are its own at all hours, as far
/// as they could be read.
#[expect(clippy::option_option, reason = "a section that was refused, one that says nothing, one that does")]
pub(super) fn rules(
    route: &mut Section<'_>,
    prices: &[&Price],
    money: Denomination,
    lists: &Lists,
    defaults: Rates,
) -> Option<Option<Rules>> {
    let keys = ["allow", "deny", "for", "free", "cap", "rate", "shadow"];
    if !prices.is_empty() && prices.iter().all(|price| **price == Price::Free) {
        let mut said = false;
        for key in keys {
            if let Some(entry) = route.entry(key) {
                said = true;
                let problem = Problem::new("has no effect: the route is free, for everybody");
                route.refuse(&entry, problem.fix("give the route a price, or leave this out"));
            }
        }
        return (!said).then_some(None);
    }
    let allow = named(route, "allow", lists);
    let deny = named(route, "deny", lists);
    let highest = prices.iter().map(|price| price.most().unwrap_or(Amount::ZERO)).max();
    let prices = own_prices(route, highest, money, lists);
    let free = free(route);
    let cap = cap(route, money);
    let rates = rates(route);
    let shadow = route.flag("shadow").or(false);
    if let (Some(allow), Some(Some(Free { by: By::Network, .. }))) = (&allow, &free)
        && !allow.is_empty()
    {
        let problem = Problem::new("serves whoever comes, and allow lets only some pay");
        route.error("free", None, problem.fix("write by = \"payer\", or leave one of the two out"));
        return None;
    }
    let own_rates = rates?.is_some();
    let (per_payer, unpaid) = rates?.unwrap_or(defaults);
    let rules = Rules {
        allow: allow?,
        deny: deny?,
        prices: prices?,
        free: free?,
        cap: cap?,
        per_payer,
        unpaid,
        own_rates,
        shadow: shadow?,
    };
    Some((rules != Rules::default()).then_some(rules))
}

/// The lists of these names; none, if the key is not there.
fn named(section: &mut Section<'_>, key: &'static str, lists: &Lists) -> Option<Vec<Arc<Payers>>> {
    let given = section.texts(key, |name| {
        lists.get(name).cloned().ok_or_else(|| {
            let problem = Problem::new(format!("there is no list {}", quoted(name)));
            match closest(name, lists.keys().map(String::as_str)) {
                Some(meant) => problem.fix(format!("did you mean {}?", quoted(meant))),
                None if lists.is_empty() => problem.fix(format!("add {name} = [\"0x…\"] under [payers]")),
                None => {
                    let known = lists.keys().map(|known| quoted(known)).collect::<Vec<_>>().join(", ");
                    problem.fix(format!("name one that is there, {known}, or add this one under [payers]"))
                }
            }
        })
    });
    if let Given::Value(list, span) = &given
        && list.is_empty()
    {
        section.error(key, Some(span.clone()), Problem::new("names nobody").fix("leave it out"));
        return None;
    }
    Some(given.or(Vec::new())?.into_iter().map(|(list, _)| list).collect())
}

fn own_prices(
    route: &mut Section<'_>,
    highest: Option<Amount>,
    money: Denomination,
    lists: &Lists,
) -> Option<Vec<OwnPrice>> {
    let sections = route.sections("for");
    if sections.len() > MAX_OWN_PRICES {
        route.error("for", None, Problem::new(format!("there are more than {MAX_OWN_PRICES} prices for some")));
        return None;
    }
    let mut prices = Vec::new();
    let mut whole = true;
    for mut section in sections {
        let payers = named(&mut section, "payers", lists);
        if payers.as_ref().is_some_and(Vec::is_empty) {
            section.missing("payers", "payers = [\"partners\"]");
            whole = false;
        }
        let price = price(&mut section, "price", money);
        if let (Some(price), Some(highest)) = (&price, highest)
            && price.most().unwrap_or(Amount::ZERO) > highest
        {
            let problem = Problem::new("is above the route's own price, which is what the quote says");
            section.error("price", None, problem.fix("make the route's price the highest anybody pays"));
            whole = false;
        }
        match payers.zip(price) {
            Some((payers, price)) => prices.push(OwnPrice { payers, price }),
            None => whole = false,
        }
    }
    whole.then_some(prices)
}

/// A table that may be left out.
fn inner<'a>(section: &mut Section<'a>, key: &'static str, example: &str) -> Option<Option<Section<'a>>> {
    let Some(entry) = section.entry(key) else { return Some(None) };
    let inner = section.table(&entry, key);
    if inner.is_none() {
        let problem = Problem::new(format!("expected a table, found {}", entry.kind()));
        section.refuse(&entry, problem.fix(format!("write it like {key} = {{ {example} }}")));
    }
    inner.map(Some)
}

fn free(route: &mut Section<'_>) -> Option<Option<Free>> {
    let example = "requests = 100, per = \"1d\", by = \"payer\"";
    let Some(mut section) = inner(route, "free", example)? else { return Some(None) };
    let requests = counted(&mut section, "requests", 1..=1_000_000_000);
    let requests = section.required("requests", requests, "requests = 100");
    let per_s = window(&mut section);
    let by = section.text("by", |text| one_of(text, &[("payer", By::Payer), ("network", By::Network)]));
    let by = section.required("by", by, "by = \"payer\", or \"network\"");
    Some(Some(Free { requests: requests?, per_s: per_s?, by: by? }))
}

fn cap(route: &mut Section<'_>, money: Denomination) -> Option<Option<Cap>> {
    let Some(mut section) = inner(route, "cap", "payer = \"$5\", per = \"1d\"")? else { return Some(None) };
    let payer = section.text("payer", |text| match money.sum(text)? {
        Amount::ZERO => Err(Problem::new(format!("{} is no cap", quoted(text))).fix("write price = \"free\" instead")),
        amount => Ok(amount),
    });
    let payer = section.required("payer", payer, "payer = \"$5\"");
    let per_s = window(&mut section);
    Some(Some(Cap { payer: payer?, per_s: per_s? }))
}

fn window(section: &mut Section<'_>) -> Option<u64> {
    let per = whole_seconds(section, "per", SECOND..=MAX_WINDOW);
    section.required("per", per, "per = \"1d\"").map(|per| per.as_secs())
}

/// `rate`, where it is there.
pub(super) fn rates(section: &mut Section<'_>) -> Option<Option<Rates>> {
    let Some(mut section) = inner(section, "rate", "per_payer = \"20 / 1s\"")? else { return Some(None) };
    let per_payer = section.text("per_payer", rate).optional();
    let unpaid = section.text("unpaid", rate).optional();
    Some(Some((per_payer?, unpaid?)))
}

fn rate(text: &str) -> Result<Rate, Problem> {
    let bad = || Problem::new(format!("{} is no rate", quoted(text))).fix("write it like \"20 / 1s\"");
    let (count, per) = text.split_once('/').ok_or_else(bad)?;
    let count: u32 = count.trim().parse().map_err(|_| bad())?;
    if !(1..=1_000_000).contains(&count) {
        return Err(Problem::new(format!("{count} is not between 1 and 1000000")));
    }
    let one = format!("1{}", per.trim());
    if parse_duration(&one).is_ok() && parse_duration(per.trim()).is_err() {
        let problem = Problem::new(format!("{} does not say in how long", quoted(text)));
        return Err(problem.fix(format!("write \"{count} / {one}\"")));
    }
    let per = read_duration(per.trim(), &(Duration::from_millis(1)..=DAY))?;
    Ok(Rate { count, per })
}
