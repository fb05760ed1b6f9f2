//! `[chain]`: where it is paid.

use std::time::Duration;

use super::other::directory;
use super::receiver::key_reference;
use super::redeem::{coin_price, fee};
use super::tokens::tokens;
use super::values::{HOUR, SECOND, counted, duration, names, read_duration};
use crate::config::reader::{Given, Problem, Section, closest, quoted};
use crate::config::{Chain, MaxLag, RpcReference};
use crate::protocol::Network;
use crate::protocol::networks::NETWORKS;

/// Each is followed all the time, and its offers are in every quote.
const MAX_CHAINS: usize = 8;

/// Nodes of one chain. Each is asked what the others say, so more only cost.
const MAX_ENDPOINTS: usize = 5;

/// Balances are read so many blocks back, and nodes that are no archives keep the states of 128.
const MAX_CONFIRMATIONS: u64 = 120;

/// Confirmations on a chain without a preset.
const DEFAULT_CONFIRMATIONS: u64 = 1;

/// The chains, the preferred one first.
pub(super) fn chains(sections: Vec<Section<'_>>) -> Vec<Option<Chain>> {
    let mut chains: Vec<Option<Chain>> = Vec::new();
    for section in sections {
        let place = section.place();
        let decimals = chains.first().and_then(Option::as_ref).map(|chain| chain.token.decimals);
        let (report, chain) = (section.report(), chain(section, decimals));
        let is_again = |other: &Chain| chain.as_ref().is_some_and(|chain| chain.chain_id == other.chain_id);
        if chains.iter().flatten().any(is_again) {
            report.error(
                place.clone(),
                "[chain]",
                Problem::new("this chain is there already").fix("keep one of the two"),
            );
        }
        if chains.len() == MAX_CHAINS {
            let problem = Problem::new(format!("more than {MAX_CHAINS} chains are too many"));
            report.error(place, "[chain]", problem.fix("each is watched all the time"));
        }
        chains.push(chain);
    }
    chains
}

/// `decimals` are those of the preferred token, where that is on another chain.
fn chain(mut section: Section<'_>, decimals: Option<u8>) -> Option<Chain> {
    let network = section.text("network", network);
    let chain_id =
        section.number("chain_id", |id| if id == 0 { Err(Problem::new("no chain has the id 0")) } else { Ok(id) });
    let rpc = section.text_or_texts("rpc", |text| text.parse::<RpcReference>().map_err(Problem::new));
    let span = rpc.span();
    let rpc = section.required("rpc", rpc, "rpc = \"env:PEAJE_RPC\", or the URL itself");
    if let Some(problem) = rpc.as_deref().and_then(bad_endpoints) {
        section.error("rpc", span, problem);
    }
    let poll = duration(&mut section, "poll", Duration::from_millis(50)..=HOUR).or(2 * SECOND);
    let confirmations = counted(&mut section, "confirmations", 1..=MAX_CONFIRMATIONS);
    let max_lag = section.text("max_lag", |text| match text {
        "off" => Ok(MaxLag::Off),
        lag => read_duration(lag, &(SECOND..=HOUR)).map(MaxLag::Of),
    });
    let chain = which_chain(&section, network, chain_id);
    let tokens = tokens(&mut section, chain.as_ref());
    let decimals = decimals.or(tokens.as_ref().and_then(|tokens| tokens.first()).map(|token| token.decimals));
    let gas_key = section.text("gas_key", |text| key_reference(text, "PEAJE_GAS_KEY")).optional();
    let books = section.text("books", directory).optional();
    let coin_price = section.text("coin_price", |text| coin_price(text, decimals)).optional();
    let max_fee_wei = section.text("max_fee", fee).optional();
    let urgent_max_fee_wei = section.text("urgent_max_fee", fee).optional();
    let Which { chain_id, preset } = chain?;
    let mut tokens = tokens?.into_iter();
    let network = preset.map(|preset| preset.name);
    let confirmations = confirmations.or(preset.map_or(DEFAULT_CONFIRMATIONS, |preset| preset.confirmations));
    Some(Chain {
        network,
        chain_id,
        rpc: rpc?,
        token: tokens.next()?,
        other_tokens: tokens.collect(),
        poll: poll?,
        confirmations: confirmations?,
        max_lag: max_lag.or(MaxLag::Unsaid)?,
        gas_key: gas_key?,
        books: books?,
        coin_price: coin_price?,
        max_fee_wei: max_fee_wei?,
        urgent_max_fee_wei: urgent_max_fee_wei?,
    })
}

fn bad_endpoints(endpoints: &[RpcReference]) -> Option<Problem> {
    let is_again =
        |(place, endpoint): (usize, &RpcReference)| endpoints.iter().take(place).any(|other| other == endpoint);
    if endpoints.is_empty() {
        Some(Problem::new("names no endpoint").fix("add one, as in [\"env:PEAJE_RPC\"]"))
    } else if endpoints.len() > MAX_ENDPOINTS {
        let count = endpoints.len();
        Some(Problem::new(format!("{count} endpoints are more than {MAX_ENDPOINTS}")).fix("keep the best of them"))
    } else if endpoints.iter().enumerate().any(is_again) {
        Some(Problem::new("names an endpoint twice").fix("a second one helps if it is somebody else's"))
    } else {
        None
    }
}

/// A chain, by preset or by number.
pub(super) struct Which {
    pub(super) chain_id: u64,
    pub(super) preset: Option<&'static Network>,
}

fn which_chain(section: &Section<'_>, network: Given<&'static Network>, chain_id: Given<u64>) -> Option<Which> {
    match (network, chain_id) {
        (Given::Absent, Given::Absent) => {
            section.missing("network", &format!("network = \"base\" ({})", names(NETWORKS.iter().map(|n| n.name))));
            None
        }
        (Given::Value(preset, _), Given::Absent) => Some(Which { chain_id: preset.chain_id, preset: Some(preset) }),
        (Given::Value(preset, _), Given::Value(id, span)) => {
            if preset.chain_id != id {
                let problem =
                    Problem::new(format!("{id} is not {}, whose chain id is {}", preset.name, preset.chain_id));
                section.error("chain_id", Some(span), problem.fix("remove chain_id or network"));
            }
            Some(Which { chain_id: preset.chain_id, preset: Some(preset) })
        }
        (Given::Absent, Given::Value(id, _)) => Some(Which { chain_id: id, preset: Network::by_chain_id(id) }),
        _ => None,
    }
}

fn network(text: &str) -> Result<&'static Network, Problem> {
    Network::by_name(text).ok_or_else(|| {
        let problem = Problem::new(format!("{} is not a known network", quoted(text)));
        match closest(text, NETWORKS.iter().map(|network| network.name)) {
            Some(name) => problem.fix(format!("did you mean \"{name}\"?")),
            None => problem.fix(format!(
                "use {}, or chain_id and a [chain.token] table instead",
                names(NETWORKS.iter().map(|network| network.name))
            )),
        }
    })
}
