//! Section by section from TOML to a [`Config`]: one file for what belongs together.

mod chain;
mod channel;
mod hours;
mod limits;
mod matching;
mod other;
mod people;
mod price;
mod receiver;
mod redeem;
mod routes;
mod server;
mod shop;
mod statuses;
mod tokens;
mod upstream;
mod values;

use std::collections::BTreeSet;
use std::path::Path;

use toml::de::DeTable;

use super::error::ConfigErrors;
use super::reader::{Report, Section};
use super::{Chain, Config};
use crate::gate::policy::Transfer;
use chain::chains;
use channel::{channel, deposits};
use limits::limits;
use other::{cors, log, store};
use people::payers;
use price::Denomination;
use receiver::receiver;
use redeem::{check_fees, facilitator, redeem};
pub(super) use redeem::{usual_max_fee_wei, usual_urgent_fee_wei};
use routes::{Whose, routes};
use server::{admin, server};
use shop::{discovery, idempotency};
use upstream::{Named, upstream};

/// `folder` is the one that relative files are in.
pub(super) fn resolve(text: &str, file: &str, folder: Option<&Path>) -> Result<Config, ConfigErrors> {
    let report = Report::new(text);
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    // What a broken text seems to say is not worth judging.
    for error in &syntax_errors {
        report.syntax_error(error);
    }
    let config = if syntax_errors.is_empty() { read(&report, document.get_ref(), folder) } else { None };
    let beside = report.opened();
    let errors = report.finish();
    match config {
        Some(config) if errors.is_empty() => Ok(config),
        _ => Err(ConfigErrors::new(file, errors).beside(beside)),
    }
}

/// Every key there is, as section heading and key; a section's own name is a key of the section around it.
pub(super) fn known_keys() -> BTreeSet<(String, &'static str)> {
    let text = "[server.tls]\n[chain.token]\n[[route]]\n[route.price]\n[[route.at]]\n[[route.for]]\n";
    let (document, _) = DeTable::parse_recoverable(text);
    let report = Report::new(text);
    let _ = read(&report, document.get_ref(), None);
    report.known()
}

fn read<'a>(report: &'a Report<'a>, document: &'a DeTable<'a>, folder: Option<&Path>) -> Option<Config> {
    let mut root = Section::root(report, document);
    let (server, server_listen) = server(root.section("server"));
    let admin = admin(root.section("admin"), server_listen);
    let upstream = upstream(&mut root.section("upstream"), server_listen);
    let upstreams = Named::read(&mut root, server_listen);
    let chains = chains(root.one_or_more("chain"));
    let chain = chains.first().cloned().flatten();
    let taken: Vec<_> = chains.iter().flatten().flat_map(Chain::tokens).cloned().collect();
    tokens::check_count(report, &taken);
    let permit2 = taken.iter().any(|token| token.transfer == Transfer::Permit2);
    let facilitator = facilitator(root.section("facilitator"), permit2);
    let in_our_place = !matches!(facilitator, Some(None));
    let tokens: Vec<_> = taken.iter().map(|token| token.address).collect();
    let receiver = receiver(root.section("receiver"), &tokens, in_our_place);
    let whole: Vec<_> = chains.iter().flatten().cloned().collect();
    let channel = channel(root.section("channel"), &whole, upstream.as_ref());
    let deposits = deposits(root.section("deposits"), &whole);
    let limits = limits(root.section("limits"));
    let store = store(root.section("store"));
    let redeem = redeem(root.section("redeem"), chain.as_ref(), channel.as_ref());
    if let (Some(redeem), true) = (&redeem, whole.len() == chains.len()) {
        check_fees(report, &mut root, redeem, &whole);
    }
    let cors = cors(root.section("cors"));
    let log = log(root.section("log"));
    let (discovery, bazaar) = discovery(root.section("discovery"));
    let (idempotency, usual) = idempotency(root.section("idempotency"), bazaar);
    let payers = payers(root.section("payers"), folder);
    let rates = limits.as_ref().map(|limits| (limits.per_payer, limits.unpaid)).unwrap_or_default();
    let money = Denomination::of(chain.as_ref());
    let whose = Whose { payers: &payers, rates };
    let way = |route: &mut Section<'_>| upstreams.way(route, upstream.as_ref());
    let routes = routes(report, &mut root, money, &whose, usual, way);
    let upstreams = upstreams.whole(channel.as_ref());
    if let Some(routes) = &routes {
        tokens::check_prices(report, &mut root, &taken, routes);
    }
    let (log, access_log) = log?;
    let mut chains = chains.into_iter().collect::<Option<Vec<_>>>()?.into_iter();
    Some(Config {
        server: server?,
        admin: admin?,
        upstream: upstream?,
        upstreams: upstreams?,
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
        log,
        access_log,
        discovery: discovery?,
        idempotency: idempotency?,
        routes: routes?,
        beside: report.opened(),
    })
}
