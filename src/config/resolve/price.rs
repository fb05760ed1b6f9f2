//! What a price is written like: dollars, units of the token, or a table of rates.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::values::amount;
use crate::config::reader::{Entry, Given, Problem, Section, closest, quoted};
use crate::config::{Chain, parse_duration};
use crate::gate::policy::Price;
use crate::pricing::{Rate, Tariff, Tier, Unit};
use crate::protocol::Amount;
use crate::protocol::amount::AmountError;

/// Every request that is charged goes through all tiers of a rate.
const MAX_TIERS: usize = 8;

/// As [`MAX_TIERS`], through all that is reported.
const MAX_REPORTED: usize = 8;

/// A tariff is told in its quote, which travels in a header. Bytes.
const MAX_TARIFF_BYTES: usize = 1_000;

/// So many decimal places a rate may have beyond those of its token.
const MAX_FINER: u8 = 12;

/// Rates are checked for their form with so many decimals while the token is not known.
const UNKNOWN_TOKEN_DECIMALS: u8 = 18;

/// What prices are in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Denomination {
    decimals: Option<u8>,
    has_units: bool,
}

impl Denomination {
    /// What a chain is paid in, as far as it is known: the units of the only token there is need no name. Beside others a
    /// unit is another sum of each of them, so prices are in dollars.
    pub(super) fn of(chain: Option<&Chain>) -> Self {
        let has_units = chain.is_none_or(|chain| chain.other_tokens.is_empty());
        Self { decimals: chain.map(|chain| chain.token.decimals), has_units }
    }

    /// A sum of money, which may be nothing.
    pub(super) fn sum(self, text: &str) -> Result<Amount, Problem> {
        match self.units(text) {
            Some(units) => units,
            None => amount(text, self.decimals),
        }
    }

    /// A sum that is the price of `per` things, which may be finer than the token; then the price of more things.
    fn rate(self, text: &str, per: u64) -> Result<(Amount, u64), Problem> {
        if let Some(units) = self.units(text) {
            return Ok((units?, per));
        }
        let decimals = self.decimals.unwrap_or(UNKNOWN_TOKEN_DECIMALS);
        let mut per = Some(per);
        for finer in 0..=MAX_FINER {
            match (Amount::from_price(text, decimals.saturating_add(finer)), per) {
                (Err(AmountError::NotExact { .. }), _) => per = per.and_then(|per| per.checked_mul(10)),
                (Ok(price), Some(per)) => return Ok((price, per)),
                (Ok(_), None) => break,
                (Err(_), _) => return amount(text, self.decimals).map(|price| (price, 1)),
            }
        }
        Err(Problem::new(format!("{} is too fine to be counted", quoted(text)))
            .fix("write the price of more of it, as in \"$2.50 / 1M\""))
    }

    /// `2000 units`, if that is what it wants to be.
    fn units(self, text: &str) -> Option<Result<Amount, Problem>> {
        let number = text.strip_suffix("units").or_else(|| text.strip_suffix("unit"))?;
        let number = number.strip_suffix(' ').unwrap_or(number);
        let shown = quoted(text);
        if !self.has_units {
            let problem = Problem::new(format!("{shown} is another sum in each of the tokens"));
            return Some(Err(problem.fix("write it in dollars")));
        }
        Some(number.parse().map_err(|error| {
            match error {
                AmountError::TooLarge => Problem::new(format!("{shown} is more than there can be")),
                _ => Problem::new(format!("{shown} is no number of units"))
                    .fix("units are whole, and written without a sign or leading zeros: \"2000 units\""),
            }
        }))
    }
}

/// The price under `key`: text, or a table of rates.
pub(super) fn price(section: &mut Section<'_>, key: &'static str, money: Denomination) -> Option<Price> {
    let Some(entry) = section.entry(key) else {
        section.missing(key, &format!("{key} = \"$0.001\", or \"free\""));
        return None;
    };
    if let Some(rates) = section.table(&entry, key) {
        return tariff(rates, section, &entry, money).map(|tariff| Price::Metered(Arc::new(tariff)));
    }
    let result = match entry.as_text() {
        Some(text) => plain(text, money),
        None => Err(price_without_quotes(&entry.kind())),
    };
    result.map_err(|problem| section.refuse(&entry, problem)).ok()
}

/// A price without rates.
pub(super) fn plain(text: &str, money: Denomination) -> Result<Price, Problem> {
    if text == "free" {
        return Ok(Price::Free);
    }
    if text.eq_ignore_ascii_case("free") {
        return Err(Problem::new(format!("{} is not a price", quoted(text))).fix("write \"free\", in lower case"));
    }
    if text.contains('/') || with_a_slash(text).is_some() {
        return Err(Problem::new(format!("{} is a rate, and this is the price of a request", quoted(text)))
            .fix("say what is counted, as in price = { output_tokens = \"$10 / 1M\", most = \"$0.25\" }"));
    }
    match money.sum(text)? {
        Amount::ZERO => Err(Problem::new(format!("{} is no price", quoted(text))).fix("write \"free\" if you mean it")),
        price => Ok(Price::Fixed(price)),
    }
}

/// `$10 / 1M` for `$10 per 1M`.
fn with_a_slash(text: &str) -> Option<String> {
    text.split_once(" per ").map(|(price, per)| format!("{} / {}", price.trim(), per.trim()))
}

/// A number is the likeliest mistake, so its error shows the number as it should be written.
fn price_without_quotes(kind: &str) -> Problem {
    match kind.strip_prefix("the number ") {
        Some(number) => Problem::new(format!("{number} is not a price"))
            .fix(format!("write it as text with a dollar sign: \"${number}\"")),
        None => Problem::new(format!("expected a price, found {kind}")).fix("write it like \"$0.002\", or \"free\""),
    }
}

/// How a count is written.
#[derive(Debug, Clone, Copy)]
enum Counted {
    Bytes,
    Time,
    Tokens,
    /// One by one, unless said.
    Things,
}

/// What has a rate of its own key.
const RATES: [(&str, Unit, Counted); 8] = [
    ("request_bytes", Unit::RequestBytes, Counted::Bytes),
    ("response_bytes", Unit::ResponseBytes, Counted::Bytes),
    ("time", Unit::Milliseconds, Counted::Time),
    ("events", Unit::Events, Counted::Things),
    ("input_tokens", Unit::InputTokens, Counted::Tokens),
    ("cached_input_tokens", Unit::CachedInputTokens, Counted::Tokens),
    ("cache_write_tokens", Unit::CacheWriteTokens, Counted::Tokens),
    ("output_tokens", Unit::OutputTokens, Counted::Tokens),
];

/// A table of rates; `entry` is where it stands in the section `around` it.
fn tariff(mut section: Section<'_>, around: &Section<'_>, entry: &Entry<'_>, money: Denomination) -> Option<Tariff> {
    let base = section.text("base", |text| money.sum(text));
    let mut rates = Some(Vec::new());
    let mut is_rated = false;
    for (key, unit, counted) in RATES {
        let Some(entry) = section.entry(key) else { continue };
        is_rated = true;
        let rate = rate(&section, &entry, unit, counted, money);
        rates = rates.zip(rate).map(|(rates, rate)| [rates, vec![rate]].concat());
    }
    if let Some(entry) = section.entry("reported") {
        is_rated = true;
        let reported = reported(&section, &entry, money);
        rates = rates.zip(reported).map(|(rates, reported)| [rates, reported].concat());
    }
    let most = section.text("most", |text| match money.sum(text)? {
        Amount::ZERO => {
            Err(Problem::new("nothing could be charged").fix("write the most a request may cost, \"$0.25\" say"))
        }
        most => Ok(most),
    });
    let known = |key: &str| ["base", "most", "reported"].contains(&key) || RATES.iter().any(|(name, ..)| *name == key);
    let is_mistyped = entry.pairs().into_iter().flatten().any(|(key, _)| !known(key));
    if !is_rated && !is_mistyped {
        let problem = Problem::new("says no rate of anything that is counted");
        let fix = "add one, such as response_bytes = \"$0.01 / 1 MiB\", or write \"$0.002\" for a fixed price";
        around.refuse(entry, problem.fix(fix));
    } else if is_rated && matches!(most, Given::Absent) {
        section.missing(
            "most",
            "most = \"$0.25\", the most a request may cost: the quote says it and the agent signs for it",
        );
    }
    if let (Given::Value(base, _), Given::Value(most, span)) = (&base, &most)
        && most < base
    {
        let problem = Problem::new("is less than the base, which every charged request costs");
        section.error("most", Some(span.clone()), problem.fix("raise it, or lower the base"));
        return None;
    }
    let tariff = Tariff { base: base.or(Amount::ZERO)?, rates: rates?, most: most.value()? };
    if !is_rated {
        return None;
    }
    let length = tariff.describe(money.decimals.unwrap_or(UNKNOWN_TOKEN_DECIMALS)).len();
    let problem = if !tariff.adds_up() {
        Problem::new("the rates make fractions of a unit that cannot be added up exactly")
            .fix("write the prices of round numbers of things, such as 1K, 1M or 1 MiB")
    } else if length > MAX_TARIFF_BYTES {
        Problem::new(format!(
            "takes {length} characters to say, and quotes travel in a header: at most {MAX_TARIFF_BYTES}"
        ))
        .fix("use fewer rates or tiers")
    } else {
        return Some(tariff);
    };
    around.refuse(entry, problem);
    None
}

/// What the upstream reports, by header.
fn reported(section: &Section<'_>, entry: &Entry<'_>, money: Denomination) -> Option<Vec<Rate>> {
    let example = "write it like reported = { x-units-used = \"$0.0002\" }";
    let Some(pairs) = entry.pairs() else {
        let problem = Problem::new(format!("expected a table of headers and their prices, found {}", entry.kind()));
        section.refuse(entry, problem.fix(example));
        return None;
    };
    let rates: Vec<_> = pairs
        .map(|(name, entry)| {
            let lower = HeaderName::from_bytes(name.as_bytes()).map(|lower| lower.as_str().to_owned());
            let problem = match &lower {
                Ok(lower) if lower == name => {
                    return rate(section, &entry, Unit::Reported(name.into()), Counted::Things, money);
                }
                Ok(lower) => Problem::new(format!("{} is not in lower case", quoted(name)))
                    .fix(format!("write {}; an upstream may write it as it likes", quoted(lower))),
                Err(_) => Problem::new(format!("{} is not the name of a header", quoted(name))).fix(example),
            };
            section.refuse(&entry, problem);
            None
        })
        .collect();
    let problem = match rates.len() {
        0 => Problem::new("names no header").fix(example),
        1..=MAX_REPORTED => return rates.into_iter().collect(),
        _ => Problem::new(format!("names more than {MAX_REPORTED} headers")),
    };
    section.refuse(entry, problem);
    None
}

/// A rate: one price, or a list of tiers.
fn rate(section: &Section<'_>, entry: &Entry<'_>, unit: Unit, counted: Counted, money: Denomination) -> Option<Rate> {
    let refuse = |problem| section.refuse(entry, problem);
    let tiers = match (entry.as_text(), entry.items()) {
        (Some(text), _) => {
            let priced = priced(text, counted, money).map_err(refuse).ok();
            priced.map(|(price, per)| vec![Tier { up_to: None, price, per }])
        }
        (None, Some(items)) => tiers(section, entry, items, counted, money),
        (None, None) => {
            let problem = Problem::new(format!("expected a rate, found {}", entry.kind()));
            refuse(problem.fix(format!("write it like {}", counted.example())));
            None
        }
    }?;
    // Those of a cache cost what others cost, unless it is said that they cost nothing.
    let may_be_free = matches!(unit, Unit::CachedInputTokens | Unit::CacheWriteTokens);
    if !may_be_free && tiers.iter().all(|tier| tier.price.is_zero()) {
        refuse(Problem::new("costs nothing however much it is").fix("leave it out"));
        return None;
    }
    Some(Rate { unit, tiers })
}

/// A list of tiers, each with its end except for the last.
fn tiers(
    section: &Section<'_>,
    entry: &Entry<'_>,
    items: Vec<Entry<'_>>,
    counted: Counted,
    money: Denomination,
) -> Option<Vec<Tier>> {
    let count = items.len();
    let example = format!(
        "[{{ up_to = {}, price = {} }}, {{ price = {} }}]",
        counted.end_example(),
        counted.example(),
        counted.example()
    );
    if !(1..=MAX_TIERS).contains(&count) {
        let problem = Problem::new(format!("has {count} tiers, and there may be 1 to {MAX_TIERS}"));
        section.refuse(entry, problem.fix(format!("write them like {example}")));
        return None;
    }
    let mut tiers = Some(Vec::new());
    let mut begin = 0;
    for (number, item) in (1..).zip(items) {
        let tier = tier(section, &item, counted, money, &example);
        if let Some(Tier { up_to, .. }) = tier {
            let problem = match up_to {
                Some(up_to) if up_to <= begin => Problem::new("ends where it begins, or before")
                    .fix("write the tiers from the lowest count to the highest"),
                Some(_) if number == count => Problem::new("is the last tier and has an end")
                    .fix("leave up_to out there: what is beyond it costs something too"),
                None if number < count => Problem::new("has no end and is not the last tier").fix("add up_to"),
                _ => {
                    begin = up_to.unwrap_or(begin);
                    tiers = tiers.zip(tier).map(|(tiers, tier)| [tiers, vec![tier]].concat());
                    continue;
                }
            };
            section.refuse(&item, problem);
        }
        tiers = None;
    }
    tiers
}

fn tier(
    section: &Section<'_>,
    entry: &Entry<'_>,
    counted: Counted,
    money: Denomination,
    example: &str,
) -> Option<Tier> {
    let Some(pairs) = entry.pairs() else {
        let problem = Problem::new(format!("expected a tier, found {}", entry.kind()));
        section.refuse(entry, problem.fix(format!("write them like {example}")));
        return None;
    };
    let (mut up_to, mut price, mut refused) = (None, None, false);
    for (key, value) in pairs {
        let not_text = || Problem::new(format!("expected text, found {}", value.kind())).fix("put it in quotes");
        let result = match key {
            "price" => value.as_text().ok_or_else(not_text).and_then(|text| {
                price = Some(priced(text, counted, money)?);
                Ok(())
            }),
            "up_to" => end(&value, counted).map(|end| up_to = Some(end)),
            _ => {
                let problem = Problem::new("unknown key");
                Err(match closest(key, ["up_to", "price"].into_iter()) {
                    Some(name) => problem.fix(format!("did you mean \"{name}\"?")),
                    None => problem.fix("known here: up_to, price"),
                })
            }
        };
        if let Err(problem) = result {
            section.refuse(&value, problem);
            refused = true;
        }
    }
    if price.is_none() && !refused {
        section.refuse(entry, Problem::new("has no price").fix(format!("add price = {}", counted.example())));
    }
    let (price, per) = price.filter(|_| !refused)?;
    Some(Tier { up_to, price, per })
}

fn end(value: &Entry<'_>, counted: Counted) -> Result<u64, Problem> {
    let problem = || Problem::new(format!("expected a count, found {}", value.kind()));
    match (value.as_number(), value.as_text()) {
        (Some(number), _) if !matches!(counted, Counted::Time) => Ok(number),
        (_, Some(text)) => counted.read(text),
        _ => Err(problem().fix(format!("write it like {}", counted.end_example()))),
    }
}

/// `$2.50 / 1M`: a price and for how many it is.
fn priced(text: &str, counted: Counted, money: Denomination) -> Result<(Amount, u64), Problem> {
    if let Some(meant) = with_a_slash(text) {
        return Err(Problem::new(format!("{} is not a rate", quoted(text))).fix(format!("write {}", quoted(&meant))));
    }
    let (price, per) = match (text.split_once('/'), counted) {
        (Some((price, per)), _) => (price.trim_end(), counted.read(per.trim_start())?),
        (None, Counted::Things) => (text, 1),
        (None, _) => {
            // A price that is none is the larger mistake.
            money.rate(text, 1)?;
            return Err(Problem::new(format!("{} does not say for how much", quoted(text)))
                .fix(format!("write it like {}", counted.example())));
        }
    };
    money.rate(price, per)
}

impl Counted {
    /// A count above zero.
    fn read(self, text: &str) -> Result<u64, Problem> {
        let refused = |what: &str| {
            let sizes = self.sizes();
            Problem::new(format!("{} {what}", quoted(text))).fix(format!("write it like {}{sizes}", self.end_example()))
        };
        let count = match self {
            Self::Time => {
                let time = parse_duration(text).map_err(|error| refused(&format!("is no time: {error}")))?;
                whole_ms(time)
            }
            Self::Bytes => scaled(text, &[(" TiB", 1 << 40), (" GiB", 1 << 30), (" MiB", 1 << 20), (" KiB", 1 << 10)]),
            Self::Tokens | Self::Things => scaled(text, &[("B", 1_000_000_000), ("M", 1_000_000), ("K", 1_000)]),
        };
        match count {
            Some(0) => Err(refused("is nothing")),
            Some(count) => Ok(count),
            None => Err(refused("is not a count")),
        }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Bytes => "\"$0.01 / 1 MiB\"",
            Self::Time => "\"$0.0005 / 1s\"",
            Self::Tokens => "\"$2.50 / 1M\"",
            Self::Things => "\"$0.10 / 1K\"",
        }
    }

    /// What can stand behind the number, for errors that do not say it themselves.
    fn sizes(self) -> &'static str {
        match self {
            Self::Bytes => ", with KiB, MiB, GiB or TiB",
            Self::Time => "",
            Self::Tokens | Self::Things => ", with K, M or B for thousands, millions or billions",
        }
    }

    fn end_example(self) -> &'static str {
        match self {
            Self::Bytes => "\"1 MiB\"",
            Self::Time => "\"10s\"",
            Self::Tokens | Self::Things => "\"1M\"",
        }
    }
}

fn whole_ms(time: Duration) -> Option<u64> {
    u64::try_from(time.as_millis()).ok()
}

/// A whole number, perhaps with one of these names of a size behind it; the space before it is welcome and not needed.
fn scaled(text: &str, sizes: &[(&str, u64)]) -> Option<u64> {
    let named = sizes.iter().find_map(|(name, size)| Some((text.strip_suffix(name.trim_start())?, *size)));
    let (number, size) = named.map_or((text, 1), |(number, size)| (number.trim_end(), size));
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(size)
}
