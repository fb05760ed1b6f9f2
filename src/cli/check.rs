//! `peaje check`: what would go wrong, before it does.
//!
//! **Owns** the comparison of the config with the world: the chain, the contracts, the token, the keys, the certificates, the
//! upstream, the books.
//! **Promises** to find everything at once, to change nothing, and to show no secret. What judges an answer is apart
//! from what asks for it, so that every judgement can be tested. **Does not** start anything.

mod front;
mod routes;

use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::connect::{Nodes, facilitator_settings};
use super::{ConfigArgs, Exit, Failure, Outcome, Output};
use crate::causes::causes;
use crate::chain::{self, AlloyChain, Chain as _, ChainError, GasPrice, Head, KeyRef, RpcUrl, TokenDomain};
use crate::clock;
use crate::config::{Config, KeyReference, MaxLag, Redeem};
use crate::facilitator::Client;
use crate::gate::policy::{Route, TokenTerms, Transfer};
use crate::local::is_this_machine;
use crate::protocol::contracts::{ERC3009_COLLECTOR, PERMIT2, PERMIT2_COLLECTOR, SETTLEMENT};
use crate::protocol::{Address, Amount, Domain, Hash};
use crate::proxy::TargetState;
use crate::redeem::{Rules, claim_cost};
use crate::store::sqlite::Reader;
use crate::store::{Identity, StoreError};

const MORE: &str = "\
Check reads the config and asks the chain and the upstream whether it is true:
that the RPC endpoint answers and is the configured chain, that the contracts
are there, that the token signs under the configured EIP-712 domain, that the
keys can be read and their accounts can pay for gas, that the upstream answers,
that TLS certificates are good for a while and for the public host, that the
books are of this chain and can be kept where the config says, as can the access
log, which routes are free or can hardly be meant as they are, and, where
redeem.coin_price is set, what a claim costs now. It finds everything at once and
changes nothing.

Examples:
  peaje check
      A checklist for peaje.toml.
  peaje check --offline --config new.toml
      The file only, as in CI, where there are neither keys nor a chain.
  peaje check --json | jq '.findings[] | select(.severity == \"error\")'
      The same for programs; stdout is JSON whenever it is no terminal.

Environment:
  PEAJE_CONFIG   the config file, where --config is not given
  NO_COLOR       no colours
  and whatever the config names with \"env:\", as a rule
  PEAJE_RPC, PEAJE_AUTHORIZER_KEY and PEAJE_GAS_KEY";

/// The arguments of `peaje check`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", super::exit::HELP))]
pub struct CheckArgs {
    #[command(flatten)]
    /// Where the config is.
    pub config: ConfigArgs,
    /// Check the file only; ask neither the chain nor the upstream, and read no keys.
    #[arg(long)]
    pub offline: bool,
    /// Print the findings as JSON, as is done anyway when stdout is no terminal.
    #[arg(long)]
    pub json: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// Somebody should look; it works all the same.
    Warning,
    /// It does not work. The exit code says whose turn it is.
    Error(Exit),
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at, in a word or two.
    pub what: String,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Finding {
    fn new(severity: Severity, what: &str, detail: impl Into<String>) -> Self {
        Self { severity, what: what.to_owned(), detail: detail.into(), fix: None }
    }

    fn fine(what: &str, detail: impl Into<String>) -> Self {
        Self::new(Severity::Fine, what, detail)
    }

    fn warning(what: &str, detail: impl Into<String>) -> Self {
        Self::new(Severity::Warning, what, detail)
    }

    fn error(exit: Exit, what: &str, detail: impl Into<String>) -> Self {
        Self::new(Severity::Error(exit), what, detail)
    }

    fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }

    fn to_json(&self) -> Value {
        let severity = match self.severity {
            Severity::Fine => "ok",
            Severity::Warning => "warning",
            Severity::Error(_) => "error",
        };
        json!({"severity": severity, "what": self.what, "detail": self.detail, "fix": self.fix})
    }
}

/// Checks and prints.
pub async fn run(args: CheckArgs, output: &Output) -> Outcome {
    let file = args.config.config.display().to_string();
    let as_json = output.json_result(args.json);
    let config = super::load(&args.config.config, as_json, output)?;
    let findings = if args.offline { in_file(&config) } else { all_findings(&config).await };
    if as_json {
        output.json(&as_json_report(&file, &findings));
    } else {
        output.text(&as_checklist(&file, &findings, output));
    }
    match exit_of(&findings) {
        Exit::Ok => Ok(()),
        exit => Err(Failure::reported(exit)),
    }
}

/// Everything there is to find on all chains. What is the same for each is said once.
async fn all_findings(config: &Config) -> Vec<Finding> {
    let of_chains = config.of_each_chain();
    let several = of_chains.len() > 1;
    let mut all: Vec<Finding> = Vec::new();
    for config in &of_chains {
        let found = findings(config).await;
        let new: Vec<_> = found.into_iter().filter(|finding| !all.contains(finding)).collect();
        if several {
            let name = chain_name(config);
            all.push(Finding::fine("network", format!("{name}, books in {}", config.store.directory.display())));
        }
        all.extend(new);
    }
    all
}

/// Everything there is to find on one chain, in the order in which it should be repaired.
pub async fn findings(config: &Config) -> Vec<Finding> {
    let nodes = nodes(config);
    // Where the node is not known, nothing can be said about development keys, so nothing is.
    let loopback = nodes.as_ref().map_or(true, Nodes::is_loopback);
    let keys = keys(config, loopback).await;
    // Where a facilitator sends transactions, nothing of ours pays for them.
    let gas_account = keys.as_ref().ok().map(|keys| keys.gas).filter(|_| config.facilitator.is_none());
    let (on_chain, upstream) =
        tokio::join!(async { chain_findings(config, nodes, gas_account).await }, upstream_findings(config));
    let mut findings = in_file(config);
    findings.extend(public_url_finding(&config.server.public_url, loopback));
    findings.extend(front::findings(&config.server, clock::now_s()));
    findings.extend(deposit_finding(config.channel.min_deposit, loopback));
    findings.extend(endpoint_findings(config.chain.rpc.len(), config.chain.max_lag, loopback));
    findings.extend(config.access_log.as_deref().map(access_finding));
    let identity = Identity { chain_id: config.chain.chain_id, settlement: SETTLEMENT };
    findings.push(books_finding(&config.store.directory, identity));
    findings.extend(match keys {
        Ok(_) if config.facilitator.is_some() => Vec::new(),
        Ok(keys) => role_findings(config.receiver.pay_to, &keys, loopback),
        Err(findings) => findings,
    });
    findings.extend(on_chain);
    findings.extend(facilitator_finding(config).await);
    findings.extend(upstream);
    findings
}

/// What the file alone tells.
fn in_file(config: &Config) -> Vec<Finding> {
    let count = config.routes.len();
    let mut findings =
        vec![Finding::fine("config", format!("{count} {}", if count == 1 { "route" } else { "routes" }))];
    findings.extend(free_findings(&config.routes));
    findings.extend(routes::findings(config));
    findings.extend(config.of_each_chain().iter().filter_map(share_finding));
    findings
}

/// What gas takes of a claim is known only where a coin has a price.
fn share_finding(chain: &Config) -> Option<Finding> {
    (chain.redeem.max_gas_share_bps.is_some() && chain.redeem.coin_price.is_none()).then(|| {
        let detail = format!("says nothing on {}: nobody knows what gas costs there in dollars", chain_name(chain));
        Finding::warning("max_gas_share", detail).fix("give that [[chain]] a coin_price")
    })
}

/// Free routes are listed by name. One that ends with `*` gives away whatever the API will ever have there.
fn free_findings(routes: &[Route]) -> Vec<Finding> {
    let free = || routes.iter().filter(|route| !route.is_ever_paid());
    let names = |wide: bool| {
        free().filter(move |route| route.pattern.to_string().ends_with('*') == wide).map(|route| &*route.name)
    };
    let (narrow, wide): (Vec<_>, Vec<_>) = (names(false).collect(), names(true).collect());
    let mut findings = Vec::new();
    if !narrow.is_empty() {
        findings.push(Finding::fine("free routes", narrow.join(", ")));
    }
    if !wide.is_empty() {
        let fix = "list the free paths one by one, or give the route a price";
        findings.push(Finding::warning("free routes", format!("{}, with all that is below", wide.join(", "))).fix(fix));
    }
    if !routes.is_empty() && free().count() == routes.len() {
        findings
            .push(Finding::warning("prices", "every route is free, so nothing is sold").fix("give a route a price"));
    }
    findings
}

/// What `serve` would find in the store's directory. A proxy that is running has it, which is no problem of the config.
fn books_finding(directory: &Path, identity: Identity) -> Finding {
    const WHAT: &str = "books";
    let shown = directory.display();
    if !directory.exists() {
        return match nearest_existing(directory) {
            Some(parent) if may_write(parent) => Finding::fine(WHAT, format!("{shown} will be made")),
            parent => {
                let parent = parent.map_or_else(|| shown.to_string(), |parent| parent.display().to_string());
                Finding::error(Exit::Books, WHAT, format!("{shown} cannot be made: {parent} may not be written"))
                    .fix("set store.directory to one that belongs to the user peaje runs as")
            }
        };
    }
    if !may_write(directory) {
        return Finding::error(Exit::Books, WHAT, format!("{shown} may not be written"))
            .fix("give it to the user peaje runs as");
    }
    match Reader::open(directory).and_then(|books| books.identity()) {
        Ok(found) if found == identity => Finding::fine(WHAT, format!("{shown}, of {found}")),
        Ok(found) => Finding::error(Exit::Books, WHAT, format!("{shown} has the books of {found}, not of {identity}"))
            .fix("give each chain a store.directory of its own"),
        Err(StoreError::Path { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Finding::fine(WHAT, format!("new books will be opened in {shown}"))
        }
        Err(error) => Finding::error(Exit::Books, WHAT, causes(&error)).fix(error.advice()),
    }
}

/// The file is made when the proxy starts, and its directory is not.
fn access_finding(file: &Path) -> Finding {
    const WHAT: &str = "log.access";
    let shown = file.display();
    let parent = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let fix = "set log.access to a file that belongs to the user peaje runs as";
    let problem = if file.is_dir() {
        format!("{shown} is a directory")
    } else if file.exists() {
        match std::fs::OpenOptions::new().append(true).open(file) {
            Ok(_) => return Finding::fine(WHAT, shown.to_string()),
            Err(error) => format!("{shown} may not be written: {error}"),
        }
    } else if !parent.is_dir() {
        format!("{shown} cannot be made: there is no directory {}", parent.display())
    } else if may_write(parent) {
        return Finding::fine(WHAT, format!("{shown} will be made"));
    } else {
        format!("{shown} cannot be made: {} may not be written", parent.display())
    };
    Finding::error(Exit::Config, WHAT, problem).fix(fix)
}

fn nearest_existing(path: &Path) -> Option<&Path> {
    // What a relative path begins in is the empty path, which is nowhere.
    path.ancestors()
        .skip(1)
        .map(|ancestor| if ancestor == Path::new("") { Path::new(".") } else { ancestor })
        .find(|ancestor| ancestor.exists())
}

/// By trying it with a file that has no name: permissions alone do not tell.
fn may_write(directory: &Path) -> bool {
    tempfile::tempfile_in(directory).is_ok()
}

fn public_url_finding(url: &str, chain_is_loopback: bool) -> Option<Finding> {
    let uri: http::Uri = url.parse().ok()?;
    (is_this_machine(uri.host()?) && !chain_is_loopback).then(|| {
        Finding::warning("public_url", format!("agents are shown {url}, which only this machine can reach"))
            .fix("set server.public_url to the address agents use")
    })
}

/// Each deposit is relayed with the provider's gas, whatever it is worth.
fn deposit_finding(min_deposit: Option<Amount>, chain_is_loopback: bool) -> Option<Finding> {
    (min_deposit.is_none() && !chain_is_loopback).then(|| {
        Finding::warning("min_deposit", "deposits of any size are relayed, and each costs you gas")
            .fix("set channel.min_deposit well above what a deposit and a claim cost, \"$0.10\" say")
    })
}

/// A node that hangs, lags or lies is noticed by comparing: with the clock, and with another node.
fn endpoint_findings(count: usize, max_lag: MaxLag, chain_is_loopback: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if count == 1 && !chain_is_loopback {
        let detail = "there is one endpoint only: while it is down nothing is claimed, and what it says is believed";
        findings.push(Finding::warning("rpc", detail).fix("add one of another provider: rpc = [\"…\", \"…\"]"));
    }
    if max_lag == MaxLag::Off && !chain_is_loopback {
        let detail = "a node that stands still goes unnoticed, and with it a payer that withdraws";
        findings.push(Finding::warning("max_lag", detail).fix("leave chain.max_lag out, or set it to \"1m\""));
    }
    findings
}

// Keys.

/// The accounts of the keys.
struct Keys {
    authorizer: Address,
    gas: Address,
}

async fn keys(config: &Config, loopback: bool) -> Result<Keys, Vec<Finding>> {
    let authorizer = account("authorizer_key", &config.receiver.authorizer_key, loopback).await;
    if config.receiver.gas_key == config.receiver.authorizer_key {
        return authorizer.map(|account| Keys { authorizer: account, gas: account }).map_err(|finding| vec![finding]);
    }
    match (authorizer, account("gas_key", &config.receiver.gas_key, loopback).await) {
        (Ok(authorizer), Ok(gas)) => Ok(Keys { authorizer, gas }),
        (authorizer, gas) => Err([authorizer.err(), gas.err()].into_iter().flatten().collect()),
    }
}

/// The account of a key, which is wiped again at once.
async fn account(what: &'static str, reference: &KeyReference, loopback: bool) -> Result<Address, Finding> {
    let refused = |error: &(dyn std::error::Error + 'static)| Finding::error(Exit::Config, what, causes(error));
    let key: KeyRef = reference.as_str().parse().map_err(|error: chain::KeyError| refused(&error))?;
    // This may ask on the terminal, and takes a second for a keystore.
    let loaded = tokio::task::spawn_blocking(move || key.load(loopback).map(|key| key.address()));
    match loaded.await {
        Ok(Ok(address)) => Ok(address),
        Ok(Err(error)) => Err(refused(&error)),
        Err(error) => Err(refused(&error)),
    }
}

fn role_findings(pay_to: Address, keys: &Keys, loopback: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if keys.authorizer == keys.gas {
        findings.push(Finding::fine("keys", format!("{} authorizes and pays for gas", keys.authorizer)));
    } else {
        findings.push(Finding::fine("keys", format!("{} authorizes, {} pays for gas", keys.authorizer, keys.gas)));
    }
    if pay_to == keys.gas || pay_to == keys.authorizer {
        let detail = format!("{pay_to} is paid, and its key is on this machine, where a thief would find it");
        findings.push(Finding::warning("pay_to", detail).fix("pay to an account whose key is kept elsewhere"));
    }
    if !loopback && chain::is_development_account(pay_to) {
        let detail = format!("{pay_to} is a development account, whose key everybody knows");
        findings.push(Finding::error(Exit::Config, "pay_to", detail).fix("pay to an account of your own"));
    }
    findings
}

// The chain.

/// A chain that is further behind, or a clock that is further off, is worth a word.
const MAX_HEAD_AGE_S: u64 = 120;

/// The nodes' addresses, or why there are none.
fn nodes(config: &Config) -> Result<Nodes, Finding> {
    Nodes::of(&config.chain)
        .map_err(|problem| Finding::error(Exit::Config, "rpc", causes(&problem)).fix("see [chain].rpc in the config"))
}

/// Whether the facilitator, where there is one, sends on this chain what we need.
async fn facilitator_finding(config: &Config) -> Option<Finding> {
    const WHAT: &str = "facilitator";
    let settings = match facilitator_settings(config.facilitator.as_ref()?) {
        Ok(settings) => settings,
        Err(error) => return Some(Finding::error(Exit::Config, WHAT, error.to_string())),
    };
    let url = settings.url.to_string();
    let supported = match Client::new(settings) {
        Ok(client) => client.supported(config.chain.chain_id).await,
        Err(error) => Err(error),
    };
    Some(match supported {
        Ok(_) => Finding::fine(WHAT, format!("{url} sends on this chain; claims are signed by our own authorizer")),
        Err(error) => Finding::error(Exit::Chain, WHAT, causes(&error)).fix(format!("see whether {url} is right")),
    })
}

/// Another node than the preferred one: that it answers, and is of the same chain.
async fn other_node_finding(config: &Config, url: &RpcUrl) -> Option<Finding> {
    match AlloyChain::connect(url.clone(), None).await {
        Ok(chain) => chain_id_finding(config, chain.chain_id(), url),
        Err(error) => Some(unanswered("rpc", &error).fix(format!("see whether {url} is the right address"))),
    }
}

async fn chain_findings(config: &Config, nodes: Result<Nodes, Finding>, gas: Option<Address>) -> Vec<Finding> {
    let nodes = match nodes {
        Ok(nodes) => nodes,
        Err(finding) => return vec![finding],
    };
    let url = nodes.first.clone();
    let mut findings: Vec<_> = nodes.all().filter_map(plain_http_finding).collect();
    for other in &nodes.others {
        findings.extend(other_node_finding(config, other).await);
    }
    let chain = match AlloyChain::connect(url.clone(), None).await {
        Ok(chain) => chain,
        Err(error) => {
            findings.push(unanswered("rpc", &error).fix(format!("see whether {url} is the right address")));
            return findings;
        }
    };
    if let Some(wrong) = chain_id_finding(config, chain.chain_id(), &url) {
        // Nothing that this chain says means anything.
        findings.push(wrong);
        return findings;
    }
    let (head, price, settlement, balance) =
        tokio::join!(chain.head(), chain.gas_price(), chain.has_code(SETTLEMENT), async {
            match gas {
                Some(account) => Some((account, chain.gas_balance(account).await)),
                None => None,
            }
        });
    findings.push(head_finding(config, head, clock::now_s()));
    findings.push(contract_finding("settlement contract", SETTLEMENT, settlement));
    for (transfer, what, at) in [
        (Transfer::Eip3009, "deposit collector", ERC3009_COLLECTOR),
        (Transfer::Permit2, "deposit collector", PERMIT2_COLLECTOR),
        (Transfer::Permit2, "Permit2", PERMIT2),
    ] {
        if config.chain.tokens().any(|token| token.transfer == transfer) {
            findings.push(contract_finding(what, at, chain.has_code(at).await));
        }
    }
    for token in config.chain.tokens() {
        if token.transfer == Transfer::Permit2 {
            findings.extend(permit_finding(token, chain.permit_nonce(token.address, config.receiver.pay_to).await));
        }
        let (code, domain) = tokio::join!(chain.has_code(token.address), chain.token_domain(token.address));
        findings.extend(token_findings(token, config.chain.chain_id, code, domain));
    }
    findings.extend(balance.map(|(account, balance)| gas_finding(account, balance)));
    // What a facilitator pays is its own affair: for us gas is free, and no claim waits for it.
    if config.facilitator.is_none() {
        findings.extend(price.as_ref().ok().and_then(|price| ceiling_finding(config.redeem.max_fee_wei, price)));
        findings.extend(claim_finding(&config.redeem, config.chain.token.decimals, price));
    }
    findings
}

fn plain_http_finding(url: &RpcUrl) -> Option<Finding> {
    (url.to_string().starts_with("http://") && !url.is_loopback()).then(|| {
        let detail = format!("{url} is not encrypted, so what it says about deposits can be forged on the way");
        Finding::warning("rpc", detail).fix("use https, or a node on this machine")
    })
}

fn chain_name(config: &Config) -> String {
    let id = config.chain.chain_id;
    config.chain.network.map_or_else(|| format!("chain {id}"), |name| format!("{name} (chain {id})"))
}

fn chain_id_finding(config: &Config, found: u64, url: &RpcUrl) -> Option<Finding> {
    (found != config.chain.chain_id).then(|| {
        let detail = format!("{url} is the node of chain {found}, and the config says {}", chain_name(config));
        Finding::error(Exit::Chain, "chain", detail).fix("correct [chain].network or [chain].rpc")
    })
}

fn head_finding(config: &Config, head: Result<Head, ChainError>, now: u64) -> Finding {
    let head = match head {
        Ok(head) => head,
        Err(error) => return unanswered("chain", &error),
    };
    let name = chain_name(config);
    let age = now.abs_diff(head.timestamp);
    if age <= MAX_HEAD_AGE_S {
        return Finding::fine("chain", format!("{name} is at block {}", head.number));
    }
    let side = if now > head.timestamp { "old" } else { "in the future" };
    let detail = format!("{name} is at block {}, which is {age} seconds {side}", head.number);
    Finding::warning("chain", detail).fix("see whether the node is in sync and this machine's clock is right")
}

fn contract_finding(what: &str, address: Address, code: Result<bool, ChainError>) -> Finding {
    match code {
        Ok(true) => Finding::fine(what, address.to_string()),
        Ok(false) => Finding::error(Exit::Chain, what, format!("there is no contract at {address} on this chain"))
            .fix("choose a network on which x402 batch settlement is deployed"),
        Err(error) => unanswered(what, &error),
    }
}

/// A permit is counted by its token, so one that counts none takes none.
fn permit_finding(token: &TokenTerms, nonce: Result<Option<Hash>, ChainError>) -> Option<Finding> {
    (token.sponsored && matches!(nonce, Ok(None))).then(|| {
        let detail = format!("token {} takes no permits, and agents are told to send one", token.address);
        Finding::warning("permits", detail).fix("write sponsored = false in [chain.token]")
    })
}

fn token_findings(
    token: &TokenTerms,
    chain_id: u64,
    code: Result<bool, ChainError>,
    domain: Result<TokenDomain, ChainError>,
) -> Vec<Finding> {
    let wrong = |detail: String| Finding::error(Exit::Chain, "token", detail);
    let found = match (code, domain) {
        (Ok(false), _) => {
            let detail = format!("there is no contract at {} on this chain", token.address);
            return vec![wrong(detail).fix("correct [chain].token")];
        }
        (Err(error), _) | (_, Err(error)) => return vec![unanswered("token", &error)],
        (Ok(true), Ok(found)) => found,
    };
    let mut findings = Vec::new();
    if found.decimals != token.decimals {
        let detail =
            format!("it has {} decimal places, not {}, so every price is wrong", found.decimals, token.decimals);
        findings.push(wrong(detail).fix(format!("set decimals = {}", found.decimals)));
    }
    let domain = Domain::new(&token.domain_name, &token.domain_version, chain_id, token.address);
    if domain.separator() != found.separator {
        let version = found.version.as_deref().unwrap_or("unknown");
        let detail = format!(
            "its EIP-712 domain is not name {:?}, version {:?}, so no deposit would be accepted; the contract says \
             name \
             {:?}, version {version:?}",
            token.domain_name, token.domain_version, found.name
        );
        findings
            .push(wrong(detail).fix("set domain_name and domain_version in [chain.token] as the contract has them"));
    }
    if findings.is_empty() {
        findings.push(Finding::fine("token", format!("{} at {}", found.name, token.address)));
    }
    findings
}

fn gas_finding(account: Address, balance: Result<u128, ChainError>) -> Finding {
    match balance {
        Ok(0) => Finding::error(Exit::Chain, "gas", format!("{account} has no coin to pay for transactions"))
            .fix("send it a little of the chain's own coin: without it no deposit is relayed and nothing is claimed"),
        Ok(wei) => {
            let coins = Amount::new(wei).to_price(18);
            Finding::fine("gas", format!("{account} has {} coins", coins.trim_start_matches('$')))
        }
        Err(error) => unanswered("gas", &error),
    }
}

/// Where gas costs more than is ever bid, nothing is claimed until it is cheaper.
fn ceiling_finding(max_fee_wei: u128, price: &GasPrice) -> Option<Finding> {
    let now = price.base_wei.saturating_add(price.tip_wei);
    let gwei = |wei: u128| Amount::new(wei).to_price(9).trim_start_matches('$').to_owned();
    (now > max_fee_wei).then(|| {
        let detail = format!("gas costs {} gwei now, and at most {} are paid", gwei(now), gwei(max_fee_wei));
        Finding::warning("max_fee", detail).fix("raise redeem.max_fee, unless it is only for a while")
    })
}

/// What claims cost now, where the config says what a coin is worth.
fn claim_finding(redeem: &Redeem, decimals: u8, price: Result<GasPrice, ChainError>) -> Option<Finding> {
    const WHAT: &str = "claims";
    let units_per_coin = redeem.coin_price?.units();
    let price = match price {
        Ok(price) => price,
        Err(error) => return Some(unanswered(WHAT, &error)),
    };
    let rules = Rules {
        units_per_coin: Some(units_per_coin),
        max_gas_share_bps: redeem.max_gas_share_bps,
        max_rows: redeem.max_rows,
        ..Rules::default()
    };
    let each = |rows| claim_cost(rows, &rules, &price);
    let (one, many) = (each(1)?, each(redeem.max_rows)?);
    let shown = |amount: Amount| amount.to_price(decimals);
    let detail =
        format!("a channel costs about {} to claim now, and {} among {}", shown(one), shown(many), redeem.max_rows);
    Some(match redeem.max_gas_share_bps.filter(|share| *share > 0) {
        None => Finding::fine(WHAT, detail),
        Some(share) => {
            let least = one.scaled_down(10_000, share.into()).unwrap_or(Amount::MAX);
            Finding::fine(WHAT, format!("{detail}; alone it is claimed from {}", shown(least)))
        }
    })
}

fn unanswered(what: &str, error: &ChainError) -> Finding {
    Finding::error(Exit::Chain, what, causes(error))
}

// The upstream.

async fn upstream_findings(config: &Config) -> Vec<Finding> {
    // Asked as the proxy asks: by the same connections, with the same trust.
    let upstream = match super::upstreams::upstream(config) {
        Ok(upstream) => upstream,
        Err(error) => return vec![Finding::error(Exit::Config, "upstream", error.to_string())],
    };
    let answers = upstream.look().await;
    let patience = |name: Option<&str>| {
        let named = config.upstreams.iter().find(|(other, _)| Some(&**other) == name);
        named.map_or(&config.upstream, |(_, upstream)| upstream).response_timeout
    };
    let judge = |(target, answer): (TargetState, Result<u16, String>)| {
        judge_upstream(&target.url, answer, patience(target.upstream.as_deref()))
    };
    answers.into_iter().map(judge).collect()
}

/// Any answer shows that somebody is there; which path is right for `HEAD`, only the API knows.
fn judge_upstream(url: &str, answer: Result<u16, String>, patience: Duration) -> Finding {
    match answer {
        Ok(status) if status >= 500 => Finding::warning("upstream", format!("{url} answers {status}"))
            .fix("see whether the API is well; failed answers are not charged"),
        Ok(_) => Finding::fine("upstream", format!("{url} answers")),
        Err(problem) => {
            let waited = crate::config::write_duration(patience);
            Finding::error(Exit::Server, "upstream", format!("{url} does not answer: {problem}"))
                .fix(format!("start the API or correct [upstream].url; it has {waited} to answer"))
        }
    }
}

// The report.

fn exit_of(findings: &[Finding]) -> Exit {
    let has = |exit: Exit| findings.iter().any(|finding| finding.severity == Severity::Error(exit));
    [Exit::Config, Exit::Books, Exit::Chain, Exit::Server].into_iter().find(|exit| has(*exit)).unwrap_or(Exit::Ok)
}

fn as_json_report(file: &str, findings: &[Finding]) -> Value {
    let ok = exit_of(findings) == Exit::Ok;
    json!({"config": file, "ok": ok, "findings": findings.iter().map(Finding::to_json).collect::<Vec<_>>()})
}

fn as_checklist(file: &str, findings: &[Finding], output: &Output) -> String {
    let paint = output.paint();
    let width = findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or_default();
    let mut out = format!("{}\n", paint.bold(file));
    let (mut errors, mut warnings) = (0_usize, 0_usize);
    for finding in findings {
        let sign = match finding.severity {
            Severity::Fine => paint.green("✓"),
            Severity::Warning => paint.yellow("!"),
            Severity::Error(_) => paint.red("✗"),
        };
        match finding.severity {
            Severity::Fine => {}
            Severity::Warning => warnings = warnings.saturating_add(1),
            Severity::Error(_) => errors = errors.saturating_add(1),
        }
        out.push_str(&format!("  {sign} {:width$}  {}\n", finding.what, finding.detail));
        if let Some(fix) = &finding.fix {
            out.push_str(&format!("    {:width$}  {} {fix}\n", "", paint.dim("→")));
        }
    }
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let verdict = match (errors, warnings) {
        (0, 0) => paint.green("all is well"),
        (0, warnings) => paint.yellow(&plural(warnings, "warning")),
        (errors, 0) => paint.red(&plural(errors, "error")),
        (errors, warnings) => paint.red(&format!("{}, {}", plural(errors, "error"), plural(warnings, "warning"))),
    };
    out.push_str(&format!("{verdict}\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../config.example.toml");

    fn config(change: impl Fn(&str) -> String) -> Config {
        Config::parse(&change(EXAMPLE), "c.toml").unwrap()
    }

    fn address(byte: u8) -> Address {
        Address([byte; 20])
    }

    fn unreachable() -> ChainError {
        ChainError::Unreachable { source: "connection refused".into() }
    }

    fn severities(findings: &[Finding]) -> Vec<Severity> {
        findings.iter().map(|finding| finding.severity).collect()
    }

    const CONFIG: Severity = Severity::Error(Exit::Config);
    const CHAIN: Severity = Severity::Error(Exit::Chain);
    const SERVER: Severity = Severity::Error(Exit::Server);

    #[test]
    fn a_token_without_permits_is_not_to_be_sponsored() {
        let mut token = config(str::to_owned).chain.token;
        assert_eq!(permit_finding(&token, Ok(None)).unwrap().severity, Severity::Warning);
        assert_eq!(permit_finding(&token, Ok(Some(Hash::ZERO))), None);
        assert_eq!(permit_finding(&token, Err(unreachable())), None);
        token.sponsored = false;
        assert_eq!(permit_finding(&token, Ok(None)), None);
    }

    #[test]
    fn books_of_another_chain_are_an_error_and_new_ones_are_not() {
        use crate::store::sqlite::SqliteStore;
        let folder = tempfile::tempdir().unwrap();
        let ours = Identity { chain_id: 84_532, settlement: SETTLEMENT };
        let theirs = Identity { chain_id: 8_453, ..ours };
        let books = folder.path().join("books");
        assert_eq!(books_finding(&books, ours).severity, Severity::Fine);
        // Beside a config that is named without a folder, as `peaje check` does.
        assert_eq!(books_finding(Path::new("no-books-here"), ours).severity, Severity::Fine);
        assert!(!books.exists(), "checking makes nothing");
        std::fs::create_dir(&books).unwrap();
        assert!(books_finding(&books, ours).detail.starts_with("new books"));
        // While a proxy has them, too.
        let _open = SqliteStore::open(&books, ours).unwrap();
        assert_eq!(books_finding(&books, ours).severity, Severity::Fine);
        assert_eq!(books_finding(&books, theirs).severity, Severity::Error(Exit::Books));
        std::fs::write(folder.path().join("file"), "").unwrap();
        let below_a_file = books_finding(&folder.path().join("file/books"), ours);
        assert_eq!(below_a_file.severity, Severity::Error(Exit::Books));
    }

    #[test]
    fn an_access_log_must_have_a_place() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| access_finding(&folder.path().join(name));
        assert_eq!(at("access.jsonl").severity, Severity::Fine);
        assert!(!folder.path().join("access.jsonl").exists(), "checking makes nothing");
        std::fs::write(folder.path().join("access.jsonl"), "").unwrap();
        assert_eq!(at("access.jsonl").severity, Severity::Fine);
        for (name, why) in [("no/access.jsonl", "there is no directory"), ("", "is a directory")] {
            let finding = at(name);
            assert_eq!(finding.severity, CONFIG);
            assert!(finding.detail.contains(why), "{}", finding.detail);
        }
        assert_eq!(access_finding(Path::new("access-that-is-not-there")).severity, Severity::Fine);
    }

    #[test]
    fn coins_without_a_price_are_named() {
        let text = include_str!("../../config.example.toml").replace("[chain]\n", "[[chain]]\ncoin_price = \"$1\"\n");
        let second = "[[chain]]\nnetwork = \"polygon\"\nrpc = \"env:P\"\n[receiver]\n";
        let text = text.replace("[receiver]\n", second).replace("[redeem]\n", "[redeem]\nmax_gas_share = \"10%\"\n");
        let findings = in_file(&Config::parse(&text, "c.toml").unwrap());
        let told: Vec<_> = findings.iter().filter(|finding| finding.what == "max_gas_share").collect();
        assert!(told.len() == 1 && told[0].detail.contains("polygon (chain 137)"), "{findings:?}");
    }

    #[test]
    fn free_routes_are_listed_and_wide_ones_warned_about() {
        let findings = in_file(&config(str::to_owned));
        assert_eq!(severities(&findings), [Severity::Fine, Severity::Fine]);
        assert_eq!(findings[1].detail, "/health");
        let wide = in_file(&config(|text| text.replace("\"/health\"", "\"/open/*\"\nname = \"open\"")));
        assert_eq!(severities(&wide), [Severity::Fine, Severity::Warning]);
        assert_eq!(wide[1].detail, "open, with all that is below");
        let all = in_file(&config(|text| text.replace("$0.002", "free")));
        assert!(all.iter().any(|finding| finding.what == "prices" && finding.severity == Severity::Warning));
    }

    #[test]
    fn a_public_chain_needs_a_public_address() {
        for url in ["http://127.0.0.1:4020", "http://localhost", "http://[::1]:80/base"] {
            assert!(public_url_finding(url, false).is_some(), "{url}");
            assert!(public_url_finding(url, true).is_none(), "{url}");
        }
        assert!(public_url_finding("https://api.example.com", false).is_none());
    }

    #[test]
    fn dust_deposits_are_warned_about_where_gas_costs_money() {
        assert!(deposit_finding(None, false).is_some_and(|finding| finding.severity == Severity::Warning));
        assert!(deposit_finding(None, true).is_none());
        assert!(deposit_finding(Some(Amount::new(100_000)), false).is_none());
    }

    #[test]
    fn one_endpoint_and_no_watch_over_it_are_warned_about_on_public_chains() {
        let lag = MaxLag::Of(Duration::from_secs(60));
        assert_eq!(endpoint_findings(2, MaxLag::Unsaid, false), []);
        assert_eq!(endpoint_findings(2, lag, false), []);
        let what = |findings: Vec<Finding>| findings.into_iter().map(|finding| finding.what).collect::<Vec<_>>();
        assert_eq!(what(endpoint_findings(1, lag, false)), ["rpc"]);
        assert_eq!(what(endpoint_findings(2, MaxLag::Off, false)), ["max_lag"]);
        assert_eq!(what(endpoint_findings(1, MaxLag::Off, false)), ["rpc", "max_lag"]);
        assert_eq!(endpoint_findings(1, MaxLag::Off, true), []);
    }

    #[test]
    fn gas_that_costs_more_than_is_paid_is_a_warning() {
        let price = GasPrice { base_wei: 49_000_000_000, tip_wei: 1_000_000_000, ..GasPrice::default() };
        assert_eq!(ceiling_finding(50_000_000_000, &price), None);
        let warned = ceiling_finding(49_999_999_999, &price).unwrap();
        assert_eq!(warned.severity, Severity::Warning);
        assert_eq!(warned.detail, "gas costs 50.00 gwei now, and at most 49.999999999 are paid");
    }

    #[test]
    fn what_a_claim_costs_is_told_where_a_coin_has_a_price() {
        // $3000 a coin and 0.1 gwei: 60,200 gas are $0.01806.
        let price = GasPrice { base_wei: 99_000_000, tip_wei: 1_000_000, data_wei_per_byte: 0, block_gas_limit: 0 };
        let with = |lines: &str| {
            let config = config(|text| text.replace("[redeem]\n", &format!("[redeem]\n{lines}")));
            claim_finding(&config.redeem, 6, Ok(price))
        };
        assert_eq!(with(""), None);
        let priced = with("coin_price = \"$3000\"\n").unwrap();
        assert_eq!(priced.severity, Severity::Fine);
        assert_eq!(priced.detail, "a channel costs about $0.01806 to claim now, and $0.00722 among 200");
        let shared = with("coin_price = \"$3000\"\nmax_gas_share = \"10%\"\n").unwrap();
        assert!(shared.detail.ends_with("alone it is claimed from $0.1806"), "{}", shared.detail);
        let config = config(|text| text.replace("[redeem]\n", "[redeem]\ncoin_price = \"$3000\"\n"));
        assert_eq!(claim_finding(&config.redeem, 6, Err(unreachable())).unwrap().severity, CHAIN);
    }

    #[test]
    fn roles_are_kept_apart() {
        let keys = Keys { authorizer: address(1), gas: address(2) };
        assert_eq!(severities(&role_findings(address(3), &keys, false)), [Severity::Fine]);
        for hot in [address(1), address(2)] {
            assert_eq!(severities(&role_findings(hot, &keys, false)), [Severity::Fine, Severity::Warning]);
        }
        let known: Address = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC".parse().unwrap();
        assert_eq!(severities(&role_findings(known, &keys, false)), [Severity::Fine, CONFIG]);
        assert_eq!(severities(&role_findings(known, &keys, true)), [Severity::Fine]);
    }

    #[test]
    fn the_node_must_be_of_the_configured_chain() {
        let (config, url) = (config(str::to_owned), "https://node.example/s3cret".parse().unwrap());
        assert_eq!(chain_id_finding(&config, 84_532, &url), None);
        let wrong = chain_id_finding(&config, 1, &url).unwrap();
        assert_eq!(wrong.severity, CHAIN);
        assert!(wrong.detail.contains("base-sepolia (chain 84532)") && !wrong.detail.contains("s3cret"));
    }

    #[test]
    fn a_node_over_plain_http_is_trusted_on_this_machine_only() {
        for (url, warned) in
            [("http://node.example", true), ("https://node.example", false), ("http://127.0.0.1:1", false)]
        {
            assert_eq!(plain_http_finding(&url.parse().unwrap()).is_some(), warned, "{url}");
        }
    }

    #[test]
    fn a_head_far_from_now_is_a_warning() {
        let config = config(str::to_owned);
        let at = |timestamp| head_finding(&config, Ok(Head { number: 7, hash: Default::default(), timestamp }), 1_000);
        for (timestamp, severity) in
            [(880, Severity::Fine), (1_120, Severity::Fine), (879, Severity::Warning), (1_121, Severity::Warning)]
        {
            assert_eq!(at(timestamp).severity, severity, "{timestamp}");
        }
        assert_eq!(head_finding(&config, Err(unreachable()), 0).severity, CHAIN);
    }

    #[test]
    fn contracts_must_be_there() {
        assert_eq!(contract_finding("c", SETTLEMENT, Ok(true)).severity, Severity::Fine);
        assert_eq!(contract_finding("c", SETTLEMENT, Ok(false)).severity, CHAIN);
        let unanswered = contract_finding("c", SETTLEMENT, Err(unreachable()));
        assert_eq!((unanswered.severity, unanswered.detail.ends_with("connection refused")), (CHAIN, true));
    }

    #[test]
    fn a_token_must_sign_as_configured() {
        let token = config(str::to_owned).chain.token;
        let domain = Domain::new(&token.domain_name, &token.domain_version, 84_532, token.address);
        let found = TokenDomain {
            name: "USDC".to_owned(),
            version: Some("2".to_owned()),
            separator: domain.separator(),
            decimals: 6,
        };
        let judge = |code: bool, found: &TokenDomain| token_findings(&token, 84_532, Ok(code), Ok(found.clone()));
        assert_eq!(severities(&judge(true, &found)), [Severity::Fine]);
        assert_eq!(severities(&judge(false, &found)), [CHAIN]);
        let other = TokenDomain { name: "USD Coin".to_owned(), separator: Default::default(), decimals: 18, ..found };
        let findings = judge(true, &other);
        assert_eq!(severities(&findings), [CHAIN, CHAIN]);
        assert_eq!(findings[0].fix.as_deref(), Some("set decimals = 18"));
        assert!(findings[1].detail.contains("\"USD Coin\""));
        assert_eq!(severities(&token_findings(&token, 84_532, Ok(true), Err(unreachable()))), [CHAIN]);
        assert_eq!(severities(&token_findings(&token, 84_532, Err(unreachable()), Ok(other))), [CHAIN]);
    }

    #[test]
    fn gas_must_not_be_nothing() {
        assert_eq!(gas_finding(address(1), Ok(0)).severity, CHAIN);
        let some = gas_finding(address(1), Ok(1));
        assert_eq!(some.severity, Severity::Fine);
        assert!(some.detail.ends_with("has 0.000000000000000001 coins"), "{}", some.detail);
        assert_eq!(gas_finding(address(1), Err(unreachable())).severity, CHAIN);
    }

    #[test]
    fn an_upstream_must_answer_something() {
        let judge = |answer| judge_upstream("http://h/", answer, Duration::from_secs(60)).severity;
        for (status, severity) in
            [(200, Severity::Fine), (404, Severity::Fine), (405, Severity::Fine), (499, Severity::Fine)]
        {
            assert_eq!(judge(Ok(status)), severity, "{status}");
        }
        assert_eq!(judge(Ok(500)), Severity::Warning);
        assert_eq!(judge(Err("connection refused".to_owned())), SERVER);
    }

    #[test]
    fn the_exit_code_is_the_first_thing_to_repair() {
        let of = |severities: &[Severity]| {
            let findings: Vec<_> = severities.iter().map(|severity| Finding::new(*severity, "x", "y")).collect();
            exit_of(&findings)
        };
        assert_eq!(of(&[]), Exit::Ok);
        assert_eq!(of(&[Severity::Fine, Severity::Warning]), Exit::Ok);
        assert_eq!(of(&[SERVER]), Exit::Server);
        assert_eq!(of(&[SERVER, CHAIN]), Exit::Chain);
        assert_eq!(of(&[SERVER, CHAIN, Severity::Error(Exit::Books)]), Exit::Books);
        assert_eq!(of(&[SERVER, CHAIN, Severity::Error(Exit::Books), CONFIG]), Exit::Config);
    }

    #[test]
    fn a_checklist_reads_as_a_list() {
        let findings = [
            Finding::fine("chain", "base (chain 8453) is at block 7"),
            Finding::error(Exit::Chain, "gas", "0x… has no coin").fix("send it some"),
            Finding::warning("pay_to", "is hot"),
        ];
        let expected = [
            "c.toml",
            "  ✓ chain   base (chain 8453) is at block 7",
            "  ✗ gas     0x… has no coin",
            "            → send it some",
            "  ! pay_to  is hot",
            "1 error, 1 warning",
        ];
        let checklist = as_checklist("c.toml", &findings, &Output::plain());
        assert_eq!(checklist.lines().collect::<Vec<_>>(), expected);
        let json = as_json_report("c.toml", &findings);
        assert_eq!((&json["ok"], &json["findings"][1]["severity"]), (&false.into(), &"error".into()));
    }
}
