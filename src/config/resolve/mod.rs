//! Section by section from TOML to a [`Config`]: one file for what belongs together.

mod chain;
mod channel;
mod limits;
mod other;
mod price;
mod receiver;
mod redeem;
mod routes;
mod server;
mod tokens;
mod upstream;
mod values;

use std::collections::BTreeSet;

use toml::de::DeTable;

use super::error::ConfigErrors;
use super::reader::{Report, Section};
use super::{Chain, Config};
use crate::gate::policy::Transfer;
use chain::chains;
use channel::{channel, deposits};
use limits::limits;
use other::{cors, log, store};
use receiver::receiver;
pub(super) use redeem::{DEFAULT_MAX_FEE_WEI, URGENT_TIMES};
use redeem::{facilitator, redeem};
use routes::routes;
use server::{admin, server};
use upstream::upstream;

pub(super) fn resolve(text: &str, file: &str) -> Result<Config, ConfigErrors> {
    let report = Report::new(text);
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    // What a broken text seems to say is not worth judging.
    for error in &syntax_errors {
        report.syntax_error(error);
    }
    let config = if syntax_errors.is_empty() { read(&report, document.get_ref()) } else { None };
    let errors = report.finish();
    match config {
        Some(config) if errors.is_empty() => Ok(config),
        _ => Err(ConfigErrors::new(file, errors)),
    }
}

/// Every key there is, as section heading and key; a section's own name is a key of the section around it.
pub(super) fn known_keys() -> BTreeSet<(String, &'static str)> {
    let text = "[chain.token]\n[[route]]\n";
    let (document, _) = DeTable::parse_recoverable(text);
    let report = Report::new(text);
    let _ = read(&report, document.get_ref());
    report.known()
}

fn read<'a>(report: &'a Report<'a>, document: &'a DeTable<'a>) -> Option<Config> {
    let mut root = Section::root(report, document);
    let (server, server_listen) = server(root.section("server"));
    let admin = admin(root.section("admin"), server_listen);
    let upstream = upstream(root.section("upstream"), server_listen);
    let chains = chains(root.one_or_more("chain"));
    let chain = chains.first().cloned().flatten();
    let taken: Vec<_> = chains.iter().flatten().flat_map(Chain::tokens).cloned().collect();
    tokens::check_count(report, &taken);
    let permit2 = taken.iter().any(|token| token.transfer == Transfer::Permit2);
    let facilitator = facilitator(root.section("facilitator"), permit2);
    let in_our_place = !matches!(facilitator, Some(None));
    let tokens: Vec<_> = taken.iter().map(|token| token.address).collect();
    let receiver = receiver(root.section("receiver"), &tokens, in_our_place);
    let decimals = chain.as_ref().map(|chain| chain.token.decimals);
    let whole: Vec<_> = chains.iter().flatten().cloned().collect();
    let channel = channel(root.section("channel"), &whole, upstream.as_ref());
    let deposits = deposits(root.section("deposits"), &whole);
    let limits = limits(root.section("limits"));
    let store = store(root.section("store"));
    let redeem = redeem(root.section("redeem"), chain.as_ref(), channel.as_ref());
    let cors = cors(root.section("cors"));
    let log = log(root.section("log"));
    let routes = routes(report, &mut root, decimals);
    if let Some(routes) = &routes {
        tokens::check_prices(report, &mut root, &taken, routes);
    }
    let mut chains = chains.into_iter().collect::<Option<Vec<_>>>()?.into_iter();
    Some(Config {
        server: server?,
        admin: admin?,
        upstream: upstream?,
        chain: chains.next()?,
        other_chains: chains.collect(),
        receiver: receiver?,
        channel: channel?,
        deposits: deposits?,
        limits: limits?,
        store: store?,
        redeem: redeem?,
        facilitator: facilitator?,
        cors: cors?,
        log: log?,
        routes: routes?,
    })
}
