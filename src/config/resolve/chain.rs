//! `[chain]`: where it is paid.

use std::time::Duration;

use super::values::{HOUR, SECOND, address, counted, duration, names, one_of, read_duration, some_text};
use crate::config::reader::{Given, Problem, Section, closest, quoted};
use crate::config::{Chain, MaxLag, RpcReference};
use crate::gate::policy::{TokenTerms, Transfer};
use crate::protocol::Network;
use crate::protocol::networks::NETWORKS;

/// Nodes of one chain. Each is asked what the others say, so more only cost.
const MAX_ENDPOINTS: usize = 5;

/// Balances are read so many blocks back, and nodes that are no archives keep the states of 128.
const MAX_CONFIRMATIONS: u64 = 120;

/// Confirmations on a chain without a preset.
const DEFAULT_CONFIRMATIONS: u64 = 1;

/// More than any token has, and few enough that `$1` fits in 128 bits.
const MAX_DECIMALS: u64 = 30;

pub(super) fn chain(mut section: Section<'_>) -> Option<Chain> {
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
    let token = token(&mut section, chain.as_ref());
    let Which { chain_id, preset } = chain?;
    let network = preset.map(|preset| preset.name);
    let confirmations = confirmations.or(preset.map_or(DEFAULT_CONFIRMATIONS, |preset| preset.confirmations));
    Some(Chain {
        network,
        chain_id,
        rpc: rpc?,
        token: token?,
        poll: poll?,
        confirmations: confirmations?,
        max_lag: max_lag.or(MaxLag::Unsaid)?,
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
struct Which {
    chain_id: u64,
    preset: Option<&'static Network>,
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

fn token(section: &mut Section<'_>, chain: Option<&Which>) -> Option<TokenTerms> {
    const TABLE: &str = "a [chain.token] table with address, decimals, domain_name and domain_version";
    let preset = chain.and_then(|chain| chain.preset);
    let Some(entry) = section.entry("token") else {
        let default = preset.and_then(|preset| preset.tokens.first()).map(TokenTerms::preset);
        if let (Some(chain), None) = (chain, &default) {
            section.missing("token", &format!("{TABLE}, because chain {} has no preset", chain.chain_id));
        }
        return default;
    };
    if let Some(table) = section.table(&entry, "token") {
        return token_table(table);
    }
    let Some(symbol) = entry.as_text() else {
        let problem = Problem::new(format!("expected a token's symbol, found {}", entry.kind()));
        section.refuse(&entry, problem.fix(format!("write \"usdc\", or {TABLE}")));
        return None;
    };
    // Without a chain there is nothing to look the symbol up in, and the chain's own error stands already.
    let chain = chain?;
    let found = preset.and_then(|preset| preset.token(&symbol.to_ascii_lowercase())).map(TokenTerms::preset);
    if found.is_none() {
        let problem = Problem::new(format!("{} is not a token known on chain {}", quoted(symbol), chain.chain_id));
        let known = preset.map(|preset| names(preset.tokens.iter().map(|token| token.symbol)));
        let fix = known.map_or_else(|| format!("write {TABLE}"), |known| format!("use {known}, or write {TABLE}"));
        section.error("token", Some(entry.span()), problem.fix(fix));
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
