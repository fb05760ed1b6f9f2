//! `[chain].token`: in what is paid, and whether all that is said in dollars can be.

use super::chain::Which;
use super::values::{address, names, one_of, some_text};
use crate::config::reader::{Entry, Given, Problem, Report, Section, quoted};
use crate::gate::policy::{Route, TokenTerms, Transfer};
use crate::protocol::Amount;

/// Each is an offer in every quote, and quotes travel in a header.
const MAX_TOKENS: usize = 8;

/// More than any token has, and few enough that `$1` fits in 128 bits.
const MAX_DECIMALS: u64 = 30;

const TABLE: &str = "a [chain.token] table with address, decimals, domain_name and domain_version";

/// The tokens, the preferred one first; at least one. They may be one, by its symbol or as a table, or a list of such.
pub(super) fn tokens(section: &mut Section<'_>, chain: Option<&Which>) -> Option<Vec<TokenTerms>> {
    let Some(entry) = section.entry("token") else {
        let default = chain?.preset.and_then(|preset| preset.tokens.first()).map(TokenTerms::preset);
        if let (Some(chain), None) = (chain, &default) {
            section.missing("token", &format!("{TABLE}, because chain {} has no preset", chain.chain_id));
        }
        return default.map(|token| vec![token]);
    };
    let Some(items) = entry.items() else { return token(section, &entry, chain).map(|token| vec![token]) };
    if items.is_empty() {
        section.refuse(&entry, Problem::new("names no token").fix("add one, as in [\"usdc\"]"));
        return None;
    }
    if items.len() > MAX_TOKENS {
        let problem = Problem::new(format!("{} tokens are more than {MAX_TOKENS}", items.len()));
        section.refuse(&entry, problem.fix("keep those that agents have: each makes every quote longer"));
        return None;
    }
    let read: Vec<_> = items.iter().map(|item| token(section, item, chain)).collect();
    for (place, (item, token)) in items.iter().zip(&read).enumerate() {
        let address = token.as_ref().map(|token| token.address);
        let is_again = |other: &Option<TokenTerms>| other.as_ref().map(|other| other.address) == address;
        if address.is_some() && read.iter().take(place).any(is_again) {
            section.refuse(item, Problem::new("is named twice").fix("keep it where its place in the order is right"));
        }
    }
    read.into_iter().collect()
}

fn token(section: &Section<'_>, entry: &Entry<'_>, chain: Option<&Which>) -> Option<TokenTerms> {
    let preset = chain.and_then(|chain| chain.preset);
    if let Some(table) = section.table(entry, "token") {
        return token_table(table);
    }
    let Some(symbol) = entry.as_text() else {
        let problem = Problem::new(format!("expected a token's symbol, found {}", entry.kind()));
        section.refuse(entry, problem.fix(format!("write \"usdc\", or {TABLE}")));
        return None;
    };
    // Without a chain there is nothing to look the symbol up in, and the chain's own error stands already.
    let chain = chain?;
    let found = preset.and_then(|preset| preset.token(&symbol.to_ascii_lowercase())).map(TokenTerms::preset);
    if found.is_none() {
        let problem = Problem::new(format!("{} is not a token known on chain {}", quoted(symbol), chain.chain_id));
        let known = preset.map(|preset| names(preset.tokens.iter().map(|token| token.symbol)));
        let fix = known.map_or_else(|| format!("write {TABLE}"), |known| format!("use {known}, or write {TABLE}"));
        section.refuse(entry, problem.fix(fix));
    }
    found
}

/// How a token that is not known by its symbol may be taken.
const TRANSFERS: [(&str, Transfer); 2] = [("eip3009", Transfer::Eip3009), ("permit2", Transfer::Permit2)];

fn token_table(mut section: Section<'_>) -> Option<TokenTerms> {
    let address = section.text("address", address);
    let address = section.required("address", address, "address = \"0x…\", the token's contract");
    let decimals = section.number("decimals", |decimals| match u8::try_from(decimals) {
        Ok(small) if decimals <= MAX_DECIMALS => Ok(small),
        _ => Err(Problem::new(format!("{decimals} decimal places are more than {MAX_DECIMALS}"))),
    });
    let decimals = section.required("decimals", decimals, "decimals = 6, as the token's contract says");
    let domain_name = section.text("domain_name", some_text);
    let domain_name =
        section.required("domain_name", domain_name, "domain_name, the name in the token's EIP-712 domain");
    let domain_version = section.text("domain_version", some_text);
    let domain_version =
        section.required("domain_version", domain_version, "domain_version, the version in the token's EIP-712 domain");
    let transfer = section.text("transfer", |text| one_of(text, &TRANSFERS)).or(Transfer::Eip3009);
    let sponsored = section.flag("sponsored");
    if let (Given::Value(false, span), Some(Transfer::Eip3009)) = (&sponsored, transfer) {
        let problem = Problem::new("is about Permit2, which is not how this token is taken");
        section.error("sponsored", Some(span.clone()), problem.fix("remove it, or write transfer = \"permit2\""));
    }
    Some(TokenTerms {
        address: address?,
        decimals: decimals?,
        domain_name: domain_name?,
        domain_version: domain_version?,
        transfer: transfer?,
        sponsored: sponsored.or(true)?,
    })
}

/// Whether an amount in units of the preferred token is as many dollars in every other one; if not, what to say.
pub(super) fn inexact<'t>(mut tokens: impl Iterator<Item = &'t TokenTerms>, amount: Amount) -> Option<Problem> {
    let from = tokens.next()?.decimals;
    let coarse = tokens.find(|token| amount.in_decimals(from, token.decimals).is_none())?;
    Some(cannot_express(&amount.to_price(from), coarse))
}

fn cannot_express(dollars: &str, token: &TokenTerms) -> Problem {
    let TokenTerms { address, decimals, domain_name, .. } = token;
    let what =
        format!("{dollars} is finer than the token {domain_name} at {address}, which has {decimals} decimal places");
    Problem::new(what).fix(format!("use a multiple of {}, or leave that token out", Amount::new(1).to_price(*decimals)))
}

/// Refuses more than there is room for in a quote.
pub(super) fn check_count(report: &Report<'_>, tokens: &[TokenTerms]) {
    if tokens.len() > MAX_TOKENS {
        let problem = Problem::new(format!("{} tokens on all chains are more than {MAX_TOKENS}", tokens.len()));
        report.error(None, "[chain].token", problem.fix("keep those that agents have: each makes every quote longer"));
    }
}

/// Refuses prices that one of the tokens cannot express. The price list is the whole one, in the file's order.
pub(super) fn check_prices(report: &Report<'_>, root: &mut Section<'_>, tokens: &[TokenTerms], routes: &[Route]) {
    let Some(from) = tokens.first().map(|token| token.decimals) else { return };
    let places = root.entry("route").and_then(|entry| entry.items()).unwrap_or_default();
    for (number, route) in routes.iter().enumerate() {
        let windows = route.schedule.windows().iter().map(|(_, price)| price);
        let own = route.rules.iter().flat_map(|rules| rules.prices.iter().map(|own| &own.price));
        let prices = std::iter::once((None, &route.price));
        let prices = prices.chain((0..).zip(windows).map(|(place, price)| (Some(("at", place)), price)));
        let prices = prices.chain((0..).zip(own).map(|(place, price)| (Some(("for", place)), price)));
        for (table, price) in prices {
            let Some(token) = tokens.iter().find(|token| price.in_decimals(from, token.decimals).is_none()) else {
                continue;
            };
            let here = places.get(number);
            let (place, key) = match table {
                None => (here.and_then(|route| route.place_of("price")), "[[route]].price".to_owned()),
                Some((name, nth)) => (
                    here.and_then(|route| route.inner(name)?.items()?.get(nth)?.place_of("price")),
                    format!("[[route.{name}]].price"),
                ),
            };
            let dollars = price.most().unwrap_or_default().to_price(from);
            report.error(place, &key, cannot_express(&dollars, token));
            break;
        }
    }
}
