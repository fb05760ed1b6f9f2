//! Section by section from TOML to a [`Config`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderValue, Method, Uri};
use toml::de::DeTable;

use super::error::ConfigErrors;
use super::reader::{Given, Problem, Report, Section, closest, quoted};
use super::{
    Admin, Chain, Channel, Config, Cors, Deposits, Facilitator, KeyReference, Limits, LogFormat, LogLevel, LogOptions,
    MaxLag, Redeem, RpcReference, Server, Store, Upstream, parse_duration, parse_size, write_duration,
};
use crate::gate::path::PathPattern;
use crate::gate::policy::{Policy, Price, Route, Terms, TokenTerms, Transfer};
use crate::protocol::amount::AmountError;
use crate::protocol::bytes::HexError;
use crate::protocol::channel::{MAX_WITHDRAW_DELAY_S, MIN_WITHDRAW_DELAY_S};
use crate::protocol::networks::NETWORKS;
use crate::protocol::{Address, Amount, Network, contracts};

/// How often the chain is looked at in a withdraw delay, at least: what a payer announces must be seen in time to claim.
const LOOKS_IN_A_DELAY: u32 = 3;
/// Every request looks through all routes.
const MAX_ROUTES: usize = 1_000;
/// Quotes travel in a header, and clients and proxies give headers little room.
const MAX_EXTENSIONS_BYTES: usize = 4_096;
/// As [`MAX_EXTENSIONS_BYTES`].
const MAX_TEXT_CHARS: usize = 500;
/// Names become metric labels.
const MAX_NAME_CHARS: usize = 64;
/// A transaction of more claims is larger than nodes accept (128 KiB).
const MAX_CLAIM_ROWS: u64 = 272;
/// Nodes of one chain. Each is asked what the others say, so more only cost.
const MAX_ENDPOINTS: usize = 5;
/// Balances are read so many blocks back, and nodes that are no archives keep the states of 128.
const MAX_CONFIRMATIONS: u64 = 120;
/// Confirmations on a chain without a preset.
const DEFAULT_CONFIRMATIONS: u64 = 1;
/// The most that is paid for a unit of gas on a chain without a preset, wei.
const DEFAULT_MAX_FEE_WEI: u128 = 50 * WEI_PER_GWEI;
/// How many times as much is paid for what is urgent, where nothing is said.
const URGENT_TIMES: u128 = 10;
/// A whole coin for a unit of gas is certainly a mistake.
const MAX_FEE_WEI: u128 = 1_000_000_000_000_000_000;
/// Wei in a gwei.
const WEI_PER_GWEI: u128 = 1_000_000_000;
/// Deposits relayed in an hour, at most: more than a second's worth of any chain's blocks, and still a number that counts.
const MAX_DEPOSITS_PER_HOUR: u64 = 1_000_000;
/// A deposit must be signed, broadcast and included within the offer's timeout.
const MIN_MAX_TIMEOUT: Duration = Duration::from_secs(10);
/// Prices are checked for their form with so many decimals while the token is not known.
const UNKNOWN_TOKEN_DECIMALS: u8 = 18;
/// What the tables of hot keys may take, for those who do not say.
const DEFAULT_HOT_KEYS_BYTES: usize = 384 << 20;
/// Requests at once: as many as may wait for their charges to be written.
const MAX_REQUESTS: u64 = 16_384;
/// Threads that serve; more than any machine has cores.
const MAX_CORES: u64 = 1_024;
/// Requests of one channel at once, or waiting for it. What one payer keeps open is bounded by this.
const MAX_AT_ONCE: u64 = 1_024;
/// More than any token has, and few enough that `$1` fits in 128 bits.
const MAX_DECIMALS: u64 = 30;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

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
    let chain = chain(root.section("chain"));
    let facilitator = facilitator(root.section("facilitator"), chain.as_ref().map(|chain| chain.token.transfer));
    let in_our_place = !matches!(facilitator, Some(None));
    let receiver = receiver(root.section("receiver"), chain.as_ref().map(|chain| chain.token.address), in_our_place);
    let decimals = chain.as_ref().map(|chain| chain.token.decimals);
    let channel = channel(root.section("channel"), chain.as_ref(), upstream.as_ref());
    let deposits = deposits(root.section("deposits"), decimals);
    let limits = limits(root.section("limits"));
    let store = store(root.section("store"));
    let redeem = redeem(root.section("redeem"), chain.as_ref(), channel.as_ref());
    let cors = cors(root.section("cors"));
    let log = log(root.section("log"));
    let routes = routes(report, &mut root, decimals);
    Some(Config {
        server: server?,
        admin: admin?,
        upstream: upstream?,
        chain: chain?,
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

fn server(mut section: Section<'_>) -> (Option<Server>, Option<SocketAddr>) {
    let listen = section.text("listen", socket_address).or(SocketAddr::from(([127, 0, 0, 1], 4020)));
    let public_url = section.text("public_url", public_url);
    let shutdown_timeout = duration(&mut section, "shutdown_timeout", Duration::ZERO..=HOUR).or(30 * SECOND);
    let cores = counted(&mut section, "cores", 1..=MAX_CORES).optional();
    if let (Given::Absent, Some(listen)) = (&public_url, listen)
        && listen.ip().is_unspecified()
    {
        let problem = Problem::new(format!("is missing, and agents cannot reach http://{listen}"));
        section.error(
            "public_url",
            None,
            problem.fix("add public_url = \"https://api.example.com\", as agents see it"),
        );
    }
    let default_url = listen.map(|listen| format!("http://{listen}"));
    let server = (|| {
        let public_url = public_url.optional()?.or(default_url)?;
        let cores = cores?.and_then(|cores| NonZeroUsize::new(usize::try_from(cores).ok()?));
        Some(Server { listen: listen?, public_url, shutdown_timeout: shutdown_timeout?, cores })
    })();
    (server, listen)
}

fn admin(mut section: Section<'_>, server: Option<SocketAddr>) -> Option<Admin> {
    let given = section.text("listen", |text| match text {
        "off" => Ok(None),
        address => match socket_address(address)? {
            address if address.ip().is_loopback() => Ok(Some(address)),
            address => {
                Err(Problem::new(format!("{address} can be reached by others, and this listener asks no password"))
                    .fix(format!("use a loopback address such as \"127.0.0.1:{}\", or \"off\"", address.port())))
            }
        },
    });
    let span = given.span();
    let listen = given.or(Some(SocketAddr::from(([127, 0, 0, 1], 9402))))?;
    if let (Some(listen), Some(server)) = (listen, server)
        && same_listener(listen, server)
    {
        let problem = Problem::new(format!("{listen} is taken by [server].listen")).fix("give it a port of its own");
        section.error("listen", span, problem);
    }
    Some(Admin { listen })
}

fn upstream(mut section: Section<'_>, server: Option<SocketAddr>) -> Option<Upstream> {
    let url = section.text("url", |text| upstream_url(text, server));
    let url = section.required("url", url, "url = \"http://127.0.0.1:8080\"");
    let connect_timeout = duration(&mut section, "connect_timeout", Duration::from_millis(1)..=MINUTE).or(5 * SECOND);
    let response_timeout = duration(&mut section, "response_timeout", Duration::from_millis(1)..=HOUR).or(MINUTE);
    Some(Upstream { url: url?, connect_timeout: connect_timeout?, response_timeout: response_timeout? })
}

fn chain(mut section: Section<'_>) -> Option<Chain> {
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

fn receiver(mut section: Section<'_>, token: Option<Address>, in_our_place: bool) -> Option<super::Receiver> {
    let pay_to = section.text("pay_to", |text| {
        let address = address(text)?;
        let contract = if Some(address) == token { Some("the token's") } else { None };
        let contract = contract.or((address == contracts::SETTLEMENT).then_some("the settlement"));
        match contract {
            Some(which) => {
                Err(Problem::new(format!("this is {which} contract")).fix("name the account that should be paid"))
            }
            None => Ok(address),
        }
    });
    let pay_to = section.required("pay_to", pay_to, "pay_to = \"0x…\", the account that is paid");
    let authorizer_key = section.text("authorizer_key", |text| key_reference(text, "PEAJE_AUTHORIZER_KEY"));
    let authorizer_key =
        section.required("authorizer_key", authorizer_key, "authorizer_key = \"env:PEAJE_AUTHORIZER_KEY\"");
    let gas_key = section.text("gas_key", |text| key_reference(text, "PEAJE_GAS_KEY"));
    if let (Given::Value(_, span), true) = (&gas_key, in_our_place) {
        let problem = Problem::new("is not used where a [facilitator] sends the transactions");
        section.error("gas_key", Some(span.clone()), problem.fix("remove it, or [facilitator]"));
    }
    let gas_key = gas_key.optional();
    let authorizer_key = authorizer_key?;
    Some(super::Receiver {
        pay_to: pay_to?,
        gas_key: gas_key?.unwrap_or_else(|| authorizer_key.clone()),
        authorizer_key,
    })
}

fn channel(mut section: Section<'_>, chain: Option<&Chain>, upstream: Option<&Upstream>) -> Option<Channel> {
    let decimals = chain.map(|chain| chain.token.decimals);
    let delays = Duration::from_secs(MIN_WITHDRAW_DELAY_S)..=Duration::from_secs(MAX_WITHDRAW_DELAY_S);
    let withdraw_delay = whole_seconds(&mut section, "withdraw_delay", delays);
    let span = withdraw_delay.span();
    let withdraw_delay = withdraw_delay.or(DAY);
    if let (Some(delay), Some(chain)) = (withdraw_delay, chain)
        && chain.poll > delay / LOOKS_IN_A_DELAY
    {
        let (mine, theirs) = (write_duration(delay), write_duration(chain.poll));
        let problem = Problem::new(format!("{mine} is too short for [chain].poll, which is {theirs}"));
        let fix = "lower poll: a withdrawal must be seen while there is time to claim";
        section.error("withdraw_delay", span, problem.fix(fix));
    }
    let min_deposit = section.text("min_deposit", |text| match amount(text, decimals)? {
        Amount::ZERO => {
            Err(Problem::new("a deposit of nothing is no limit").fix("leave min_deposit out to accept any"))
        }
        amount => Ok(amount),
    });
    let max_timeout = whole_seconds(&mut section, "max_timeout", MIN_MAX_TIMEOUT..=HOUR);
    let span = max_timeout.span();
    let max_timeout = max_timeout.or(5 * MINUTE);
    if let (Some(max_timeout), Some(upstream)) = (max_timeout, upstream)
        && max_timeout <= upstream.response_timeout
    {
        let (mine, theirs) = (write_duration(max_timeout), write_duration(upstream.response_timeout));
        let problem =
            Problem::new(format!("{mine} must be longer than [upstream].response_timeout, which is {theirs}"));
        let fix = "raise it, or lower response_timeout: an agent must not give up before the upstream may";
        section.error("max_timeout", span, problem.fix(fix));
    }
    let margin = duration(&mut section, "withdraw_margin", Duration::ZERO..=30 * DAY);
    let span = margin.span();
    let withdraw_margin = margin.or(5 * MINUTE);
    if let (Some(margin), Some(delay)) = (withdraw_margin, withdraw_delay)
        && margin >= delay
    {
        let (mine, theirs) = (write_duration(margin), write_duration(delay));
        let problem = Problem::new(format!("{mine} is not below withdraw_delay, {theirs}"));
        let fix = "lower it: nothing would be sold to a payer that announces a withdrawal";
        section.error("withdraw_margin", span, problem.fix(fix));
    }
    let refund_idle = duration(&mut section, "refund_idle", HOUR..=3_650 * DAY).optional();
    let exposure = section.text("max_wallet_exposure", |text| amount(text, decimals));
    let max_in_flight = counted(&mut section, "max_in_flight", 1..=MAX_AT_ONCE).or(32);
    let max_waiting = counted(&mut section, "max_waiting", 0..=MAX_AT_ONCE).or(64);
    let max_wait = duration(&mut section, "max_wait", Duration::from_millis(1)..=MINUTE).or(10 * SECOND);
    Some(Channel {
        withdraw_delay: withdraw_delay?,
        min_deposit: min_deposit.optional()?,
        max_timeout: max_timeout?,
        withdraw_margin: withdraw_margin?,
        refund_idle: refund_idle?,
        max_wallet_exposure: exposure.or(dollar(decimals))?,
        max_in_flight: u32::try_from(max_in_flight?).ok()?,
        max_waiting: usize::try_from(max_waiting?).ok()?,
        max_wait: max_wait?,
    })
}

fn deposits(mut section: Section<'_>, decimals: Option<u8>) -> Option<Deposits> {
    let instant = section.text("instant", |text| amount(text, decimals)).or(Amount::ZERO);
    let each = counted(&mut section, "per_peer_per_hour", 1..=MAX_DEPOSITS_PER_HOUR).or(200);
    let all = counted(&mut section, "per_hour", 1..=MAX_DEPOSITS_PER_HOUR).or(1_000);
    Some(Deposits {
        instant: instant?,
        per_peer_per_hour: u32::try_from(each?).ok()?,
        per_hour: u32::try_from(all?).ok()?,
    })
}

fn limits(mut section: Section<'_>) -> Option<Limits> {
    let connections = counted(&mut section, "max_connections", 1..=1_000_000).or(16_384);
    let requests = counted(&mut section, "max_requests", 1..=MAX_REQUESTS).or(4_096);
    let header_timeout = duration(&mut section, "header_timeout", SECOND..=5 * MINUTE).or(15 * SECOND);
    let body_timeout = duration(&mut section, "body_timeout", SECOND..=5 * MINUTE).or(30 * SECOND);
    let bad_signatures = counted(&mut section, "bad_signatures_per_minute", 1..=1_000_000).or(60);
    let memory = section.text("hot_keys_memory", |text| {
        parse_size(text).map_err(|error| Problem::new(format!("{} is no size: {error}", quoted(text))))
    });
    Some(Limits {
        max_connections: usize::try_from(connections?).ok()?,
        max_requests: usize::try_from(requests?).ok()?,
        header_timeout: header_timeout?,
        body_timeout: body_timeout?,
        bad_signatures_per_minute: u32::try_from(bad_signatures?).ok()?,
        hot_keys_bytes: memory.or(DEFAULT_HOT_KEYS_BYTES)?,
    })
}

/// Nothing, if something was refused; no facilitator, if none was named.
fn facilitator(mut section: Section<'_>, transfer: Option<Transfer>) -> Option<Option<Facilitator>> {
    let url = section.text("url", facilitator_url);
    let timeout = duration(&mut section, "timeout", SECOND..=HOUR).or(90 * SECOND);
    if !section.is_there() {
        return Some(None);
    }
    let span = url.span();
    let url = section.required("url", url, "url = \"https://…\", the facilitator's address");
    if let (Some(Transfer::Permit2), Some(span)) = (transfer, span) {
        let problem = Problem::new("cannot be used with transfer = \"permit2\": no deposit would be relayed");
        section.error("url", Some(span), problem.fix("remove [facilitator], and name receiver.gas_key"));
    }
    Some(Some(Facilitator { url: url?, timeout: timeout? }))
}

/// Where the books are, for those who do not say.
const DEFAULT_STORE: &str = "books";

fn store(mut section: Section<'_>) -> Option<Store> {
    let directory = section.text("directory", |text| {
        if text.trim().is_empty() || text.contains('\0') {
            return Err(Problem::new("is no directory").fix(format!("write a path such as \"{DEFAULT_STORE}\"")));
        }
        Ok(PathBuf::from(text))
    });
    Some(Store { directory: directory.or(PathBuf::from(DEFAULT_STORE))? })
}

fn redeem(mut section: Section<'_>, chain: Option<&Chain>, channel: Option<&Channel>) -> Option<Redeem> {
    let decimals = chain.map(|chain| chain.token.decimals);
    let interval = duration(&mut section, "interval", SECOND..=30 * DAY);
    let span = interval.span();
    let interval = interval.or(10 * MINUTE);
    let max_rows = section.number("max_rows", |rows| match usize::try_from(rows) {
        Ok(small) if (1..=MAX_CLAIM_ROWS).contains(&rows) => Ok(small),
        _ => Err(Problem::new(format!(
            "{rows} is not between 1 and {MAX_CLAIM_ROWS}, which is what one transaction holds"
        ))),
    });
    let max_rows = max_rows.or(200);
    let on_shutdown = section.flag("on_shutdown").or(true);
    let mut threshold = |key| section.text(key, |text| threshold(text, decimals)).optional();
    let max_unclaimed = threshold("max_unclaimed");
    let max_unclaimed_per_channel = threshold("max_unclaimed_per_channel");
    let max_unclaimed_per_payer = threshold("max_unclaimed_per_payer");
    let max_age = duration(&mut section, "max_age", SECOND..=30 * DAY).optional();
    let share = section.text("max_gas_share", percent);
    let coin_price = section.text("coin_price", |text| match amount(text, decimals)? {
        Amount::ZERO => Err(Problem::new("a coin that is worth nothing makes gas free").fix("leave coin_price out")),
        price => Ok(price),
    });
    if let (Given::Value(_, span), Given::Absent) = (&share, &coin_price) {
        let problem = Problem::new("says nothing while nobody knows what gas costs in dollars");
        let fix = "add coin_price = \"$3000\", what one of the chain's own coins is worth";
        section.error("max_gas_share", Some(span.clone()), problem.fix(fix));
    }
    let preset = chain.and_then(|chain| Network::by_chain_id(chain.chain_id));
    let usual_fee = preset.map_or(DEFAULT_MAX_FEE_WEI, |preset| preset.max_fee_wei);
    let max_fee = section.text("max_fee", fee).or(usual_fee);
    let urgent = section.text("urgent_max_fee", fee);
    let urgent_span = urgent.span();
    let urgent_max_fee = urgent.or(usual_fee.saturating_mul(URGENT_TIMES));
    if let (Some(max_fee), Some(urgent_max_fee)) = (max_fee, urgent_max_fee)
        && urgent_max_fee < max_fee
    {
        let problem = Problem::new(format!("{} is less than max_fee, {}", gwei(urgent_max_fee), gwei(max_fee)));
        let fix = "raise it, or lower max_fee: what is urgent must not bid less";
        section.error("urgent_max_fee", urgent_span, problem.fix(fix));
    }
    let bump_after = duration(&mut section, "bump_after", SECOND..=HOUR).or(30 * SECOND);
    let stuck_after = duration(&mut section, "stuck_after", MINUTE..=30 * DAY).or(HOUR);
    let sweep_interval = duration(&mut section, "sweep_interval", SECOND..=DAY).or(10 * MINUTE);
    if let (Some(interval), Some(channel)) = (interval, channel)
        && interval >= channel.withdraw_delay
    {
        let delay = write_duration(channel.withdraw_delay);
        let problem =
            Problem::new(format!("{} is not below [channel].withdraw_delay, {delay}", write_duration(interval)));
        section.error("interval", span, problem.fix("redeem more often than a payer can withdraw"));
    }
    Some(Redeem {
        interval: interval?,
        max_unclaimed: max_unclaimed?,
        max_unclaimed_per_channel: max_unclaimed_per_channel?,
        max_unclaimed_per_payer: max_unclaimed_per_payer?,
        max_age: max_age?,
        max_gas_share_bps: share.optional()?,
        coin_price: coin_price.optional()?,
        max_rows: max_rows?,
        on_shutdown: on_shutdown?,
        max_fee_wei: max_fee?,
        urgent_max_fee_wei: urgent_max_fee?,
        bump_after: bump_after?,
        stuck_after: stuck_after?,
        sweep_interval: sweep_interval?,
    })
}

fn cors(mut section: Section<'_>) -> Option<Cors> {
    let given = section.texts("allow_origins", |text| if text == "*" { Ok(None) } else { origin(text).map(Some) });
    let origins = match given {
        Given::Absent => return Some(Cors::Any),
        Given::Refused => return None,
        Given::Value(origins, _) => origins,
    };
    if origins.is_empty() {
        return Some(Cors::Off);
    }
    let any = origins.iter().find(|(origin, _)| origin.is_none()).map(|(_, span)| span.clone());
    match any {
        None => Some(Cors::Origins(origins.into_iter().filter_map(|(origin, _)| origin).collect())),
        Some(_) if origins.len() == 1 => Some(Cors::Any),
        Some(span) => {
            let problem = Problem::new("\"*\" allows every origin, so the others mean nothing");
            section.error("allow_origins", Some(span), problem.fix("write [\"*\"], or the origins alone"));
            None
        }
    }
}

fn log(mut section: Section<'_>) -> Option<LogOptions> {
    const LEVELS: [(&str, LogLevel); 5] = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    const FORMATS: [(&str, LogFormat); 3] =
        [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    let level = section.text("level", |text| one_of(text, &LEVELS)).or(LogLevel::Info);
    let format = section.text("format", |text| one_of(text, &FORMATS)).or(LogFormat::Auto);
    Some(LogOptions { level: level?, format: format? })
}

/// A route as far as it could be read, with the place of its path.
struct Draft {
    route: Route,
    whole: bool,
    span: Range<usize>,
}

fn routes(report: &Report<'_>, root: &mut Section<'_>, decimals: Option<u8>) -> Option<Vec<Route>> {
    let sections = root.sections("route");
    if sections.is_empty() {
        // A [route] that is no list was reported as such.
        if root.entry("route").is_none_or(|entry| entry.kind() == "a list") {
            let problem = Problem::new("nothing is for sale, and what no route names is not served");
            report.error(None, "[[route]]", problem.fix("add [[route]] with path = \"/*\" and price = \"$0.001\""));
        }
        return None;
    }
    if sections.len() > MAX_ROUTES {
        report.error(None, "[[route]]", Problem::new(format!("there are more than {MAX_ROUTES} routes")));
        return None;
    }
    let count = sections.len();
    let drafts: Vec<_> = sections.into_iter().filter_map(|section| route(section, decimals)).collect();
    let comparable = drafts.iter().map(|draft| draft.route.clone()).collect();
    if let Err(ambiguities) = Policy::new(placeholder_terms(), "", comparable) {
        for ambiguity in ambiguities {
            let (Some(first), Some(second)) = (drafts.get(ambiguity.first), drafts.get(ambiguity.second)) else {
                continue;
            };
            let (line, pattern) = (report.line(&first.span), first.route.pattern.to_string());
            let problem =
                Problem::new(format!("matches the same requests as the route in line {line}, {}", quoted(&pattern)));
            let fix = "give one of them another path or other methods, or remove it";
            report.error(Some(second.span.clone()), "[[route]].path", problem.fix(fix));
        }
    }
    let routes: Vec<_> = drafts.into_iter().filter(|draft| draft.whole).map(|draft| draft.route).collect();
    (routes.len() == count).then_some(routes)
}

/// Ambiguity is a matter of paths and methods; no term decides it.
fn placeholder_terms() -> Terms {
    Terms {
        chain_id: 0,
        token: TokenTerms {
            address: Address::ZERO,
            decimals: 0,
            domain_name: String::new(),
            domain_version: String::new(),
            transfer: Transfer::Eip3009,
            sponsored: true,
        },
        pay_to: Address::ZERO,
        receiver_authorizer: Address::ZERO,
        withdraw_delay_s: 0,
        max_timeout_s: 0,
        max_in_flight: 1,
        min_deposit: None,
    }
}

fn route(mut section: Section<'_>, decimals: Option<u8>) -> Option<Draft> {
    let pattern = section.text("path", |text| PathPattern::parse(text).map_err(|error| bad_pattern(text, &error)));
    let span = pattern.span();
    let pattern = section.required("path", pattern, "path = \"/*\"");
    let methods = section.texts("methods", method);
    if let Given::Value(list, span) = &methods
        && list.is_empty()
    {
        let problem = Problem::new("no method is allowed").fix("leave methods out to allow all");
        section.error("methods", Some(span.clone()), problem);
    }
    let methods = methods.or(Vec::new());
    let price = match section.entry("price") {
        None => {
            section.missing("price", "price = \"$0.001\", or \"free\"");
            None
        }
        Some(entry) => {
            let result = match entry.as_text() {
                Some(text) => price(text, decimals),
                None => Err(price_without_quotes(&entry.kind())),
            };
            result.map_err(|problem| section.refuse(&entry, problem)).ok()
        }
    };
    let name = section.text("name", |text| shown_text(text, MAX_NAME_CHARS)).optional();
    let description = section.text("description", |text| shown_text(text, MAX_TEXT_CHARS)).optional();
    let mime_type = section.text("mime_type", mime_type).optional();
    let extensions = section.json("extensions");
    if let Given::Value(map, span) = &extensions
        && serde_json::to_string(map).map_or(true, |text| text.len() > MAX_EXTENSIONS_BYTES)
    {
        let problem =
            Problem::new(format!("is more than {MAX_EXTENSIONS_BYTES} bytes of JSON; quotes travel in a header"));
        section.error("extensions", Some(span.clone()), problem);
    }
    let extensions = extensions.or(serde_json::Map::new());
    let whole = price.is_some()
        && name.is_some()
        && description.is_some()
        && mime_type.is_some()
        && extensions.is_some()
        && methods.is_some();
    // A route whose methods are unknown cannot be compared with another.
    let methods = methods?.into_iter().map(|(method, _)| method).collect();
    let mut route = Route { methods, ..Route::new(pattern?, price.unwrap_or(Price::Free)) };
    route.name = name.flatten().map_or(route.name, Into::into);
    route.description = description.flatten();
    route.mime_type = mime_type.flatten();
    route.extensions = extensions.unwrap_or_default();
    Some(Draft { route, whole, span: span? })
}

// Values.

fn duration(section: &mut Section<'_>, key: &'static str, range: RangeInclusive<Duration>) -> Given<Duration> {
    section.text(key, |text| read_duration(text, &range))
}

fn whole_seconds(section: &mut Section<'_>, key: &'static str, range: RangeInclusive<Duration>) -> Given<Duration> {
    section.text(key, |text| {
        let duration = read_duration(text, &range)?;
        if duration.subsec_nanos() == 0 {
            Ok(duration)
        } else {
            Err(Problem::new(format!("{} is not a whole number of seconds", quoted(text))))
        }
    })
}

fn read_duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, Problem> {
    let duration =
        parse_duration(text).map_err(|error| Problem::new(format!("{} is refused: {error}", quoted(text))))?;
    if range.contains(&duration) {
        Ok(duration)
    } else {
        let (least, most) = (write_duration(*range.start()), write_duration(*range.end()));
        Err(Problem::new(format!("{} is not between {least} and {most}", quoted(text))))
    }
}

/// A whole number within limits.
fn counted(section: &mut Section<'_>, key: &'static str, range: RangeInclusive<u64>) -> Given<u64> {
    section.number(key, |number| {
        let (least, most) = (range.start(), range.end());
        if range.contains(&number) {
            Ok(number)
        } else {
            Err(Problem::new(format!("{number} is not between {least} and {most}")))
        }
    })
}

/// A sum above which something happens.
fn threshold(text: &str, decimals: Option<u8>) -> Result<Amount, Problem> {
    match amount(text, decimals)? {
        Amount::ZERO => Err(Problem::new("would claim every voucher by itself, which costs more than it brings")
            .fix("write what may be unclaimed, \"$5\" say")),
        amount => Ok(amount),
    }
}

/// A dollar of the token.
fn dollar(decimals: Option<u8>) -> Amount {
    Amount::from_price("$1", decimals.unwrap_or(UNKNOWN_TOKEN_DECIMALS)).unwrap_or(Amount::MAX)
}

/// A part of a whole, in hundredths of a percent.
fn percent(text: &str) -> Result<u32, Problem> {
    let problem =
        |what: &str| Problem::new(format!("{} {what}", quoted(text))).fix("write it like \"10%\" or \"0.25%\"");
    let number = text.strip_suffix('%').ok_or_else(|| problem("is not a percentage"))?;
    let share = decimal(number, 2).ok_or_else(|| problem("is not a percentage of at most two decimal places"))?;
    match u32::try_from(share) {
        Ok(share @ 1..=10_000) => Ok(share),
        _ => Err(problem("is not above 0% and at most 100%")),
    }
}

/// The price of a unit of gas, in wei.
fn fee(text: &str) -> Result<u128, Problem> {
    let problem = |what: &str| {
        Problem::new(format!("{} {what}", quoted(text))).fix("write it like \"50 gwei\", \"0.05 gwei\" or \"1000 wei\"")
    };
    let (number, places) = match (text.strip_suffix("gwei"), text.strip_suffix("wei")) {
        (Some(number), _) => (number, 9),
        (None, Some(number)) => (number, 0),
        (None, None) => return Err(problem("is not a price of gas: it needs a unit, wei or gwei")),
    };
    let number = number.strip_suffix(' ').unwrap_or(number);
    match decimal(number, places) {
        Some(0) => Err(problem("buys no gas")),
        Some(wei) if wei <= MAX_FEE_WEI => Ok(wei),
        Some(_) => Err(problem("is more than a whole coin for a unit of gas")),
        None => Err(problem("is not a price of gas: a number of whole wei, then wei or gwei")),
    }
}

/// `12.5` as a number of its last decimal places: 1250 with two places. `None` if it is none or too fine.
fn decimal(text: &str, places: u8) -> Option<u128> {
    Amount::from_price(&format!("${text}"), places).ok().map(Amount::units)
}

fn gwei(wei: u128) -> String {
    format!("{} gwei", Amount::new(wei).to_price(9).trim_start_matches('$'))
}

fn socket_address(text: &str) -> Result<SocketAddr, Problem> {
    text.parse().map_err(|_| {
        let problem = Problem::new(format!("{} is not an IP address and a port", quoted(text)));
        let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
        match (text, port) {
            (_, Some(port)) if text.starts_with("localhost:") || port.to_string() == text => {
                problem.fix(format!("write \"127.0.0.1:{port}\""))
            }
            (_, Some(port)) if text.starts_with(':') || text.starts_with("*:") => problem
                .fix(format!("write \"0.0.0.0:{port}\" for every interface, \"127.0.0.1:{port}\" for this machine")),
            _ => problem.fix("write it like \"127.0.0.1:4020\""),
        }
    })
}

/// Whether two listeners would ask for the same port of one address.
fn same_listener(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && overlap
}

/// An absolute `http` or `https` URL without query, fragment or credentials.
fn plain_url(text: &str, example: &str) -> Result<Uri, Problem> {
    let write = || format!("write it like \"{example}\"");
    if text.contains('@') {
        return Err(Problem::new("holds credentials").fix("leave user and password out of the URL"));
    }
    if text.contains(['?', '#']) {
        return Err(Problem::new("has a query or a fragment").fix("end it with the path"));
    }
    let uri: Uri = text.parse().map_err(|_| Problem::new(format!("{} is not a URL", quoted(text))).fix(write()))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(uri),
        _ => Err(Problem::new(format!("{} is not an http or https URL", quoted(text))).fix(write())),
    }
}

fn public_url(text: &str) -> Result<String, Problem> {
    plain_url(text, "https://api.example.com")?;
    Ok(text.trim_end_matches('/').to_owned())
}

fn upstream_url(text: &str, server: Option<SocketAddr>) -> Result<Uri, Problem> {
    let uri = plain_url(text, "http://127.0.0.1:8080")?;
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let ip = if host == "localhost" { Some(std::net::Ipv4Addr::LOCALHOST.into()) } else { host.parse().ok() };
    let loops = server.zip(ip).is_some_and(|(server, ip)| same_listener(server, SocketAddr::new(ip, port)));
    if loops {
        return Err(Problem::new(format!("{} is where Peaje itself listens", quoted(text)))
            .fix("name the address of the API that is sold"));
    }
    Ok(uri)
}

fn facilitator_url(text: &str) -> Result<Uri, Problem> {
    let uri = plain_url(text, "https://facilitator.example.com")?;
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if uri.scheme_str() == Some("https") || local {
        return Ok(uri);
    }
    Err(Problem::new("is not encrypted, so what it says about payments can be forged on the way")
        .fix("write https, or use one on this machine"))
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

fn address(text: &str) -> Result<Address, Problem> {
    let address: Address = text.parse().map_err(|error: HexError| {
        Problem::new(format!("{} is not an address: {error}", quoted(text))).fix("write 0x and 40 hex digits")
    })?;
    if address.is_zero() {
        return Err(Problem::new("is the zero address, which nobody owns"));
    }
    let mixed =
        text.chars().skip(2).any(|c| c.is_ascii_uppercase()) && text.chars().skip(2).any(|c| c.is_ascii_lowercase());
    let checksummed = address.to_string();
    if mixed && text != checksummed {
        return Err(Problem::new(format!("{} fails its checksum, so it may be mistyped", quoted(text)))
            .fix(format!("if your wallet shows the same digits, write \"{checksummed}\"")));
    }
    Ok(address)
}

fn key_reference(text: &str, variable: &str) -> Result<KeyReference, Problem> {
    text.parse().map_err(|error: super::KeyReferenceError| {
        Problem::new(error).fix(format!("write \"env:{variable}\" and set that variable"))
    })
}

fn amount(text: &str, decimals: Option<u8>) -> Result<Amount, Problem> {
    Amount::from_price(text, decimals.unwrap_or(UNKNOWN_TOKEN_DECIMALS)).map_err(|error| match error {
        AmountError::NotExact { decimals } => {
            let least = Amount::new(1).to_price(decimals);
            Problem::new(format!("{} is finer than the token, which has {decimals} decimal places", quoted(text)))
                .fix(format!("use a multiple of {least}"))
        }
        AmountError::TooLarge => Problem::new(format!("{} is more than there can be", quoted(text))),
        AmountError::NotDecimal | AmountError::NotAPrice => {
            let problem = Problem::new(format!("{} is not a price", quoted(text)));
            let with_dollar = format!("${text}");
            match Amount::from_price(&with_dollar, u8::MAX) {
                Err(AmountError::NotAPrice | AmountError::NotDecimal) => problem.fix("write it like \"$0.002\""),
                _ => problem.fix(format!("write it with a dollar sign: {}", quoted(&with_dollar))),
            }
        }
    })
}

fn price(text: &str, decimals: Option<u8>) -> Result<Price, Problem> {
    if text == "free" {
        return Ok(Price::Free);
    }
    if text.eq_ignore_ascii_case("free") {
        return Err(Problem::new(format!("{} is not a price", quoted(text))).fix("write \"free\", in lower case"));
    }
    match amount(text, decimals)? {
        Amount::ZERO => Err(Problem::new(format!("{} is no price", quoted(text))).fix("write \"free\" if you mean it")),
        price => Ok(Price::Fixed(price)),
    }
}

/// A number is the likeliest mistake, so its error shows the number as it should be written.
fn price_without_quotes(kind: &str) -> Problem {
    match kind.strip_prefix("the number ") {
        Some(number) => Problem::new(format!("{number} is not a price"))
            .fix(format!("write it as text with a dollar sign: \"${number}\"")),
        None => Problem::new(format!("expected a price, found {kind}")).fix("write it like \"$0.002\", or \"free\""),
    }
}

fn bad_pattern(text: &str, error: &crate::gate::path::PatternError) -> Problem {
    let problem = Problem::new(format!("{} is refused: {error}", quoted(text)));
    let with_slash = format!("/{text}");
    match PathPattern::parse(&with_slash) {
        Ok(_) => problem.fix(format!("write {}", quoted(&with_slash))),
        Err(_) => problem.fix("write it like \"/v1/models\", \"/v1/users/{id}\" or \"/v1/*\""),
    }
}

fn method(text: &str) -> Result<Method, Problem> {
    const STANDARD: [&str; 8] = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
    let upper = text.to_ascii_uppercase();
    let bad = || Problem::new(format!("{} is not a method", quoted(text)));
    match upper.as_str() {
        "HEAD" => return Err(Problem::new("\"HEAD\" has no price of its own").fix("write \"GET\", which covers it")),
        "CONNECT" | "TRACE" => return Err(Problem::new(format!("{} cannot be sold", quoted(text)))),
        _ => {}
    }
    if upper != text {
        return Err(bad().fix(format!("methods are upper case: {}", quoted(&upper))));
    }
    if let Some(meant) = STANDARD.iter().find(|name| **name != text && strsim::osa_distance(name, text) == 1) {
        return Err(bad().fix(format!("did you mean \"{meant}\"?")));
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
        return Err(bad().fix("write methods like \"GET\" or \"POST\""));
    }
    Method::from_bytes(text.as_bytes()).map_err(|_| bad())
}

fn origin(text: &str) -> Result<HeaderValue, Problem> {
    let (scheme, host) = text.split_once("://").unwrap_or_default();
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic());
    let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    let value = HeaderValue::from_str(text).ok();
    match value {
        Some(value) if plain(scheme) && plain(host) && lower && !host.contains(['/', '?', '#', '@', '*', ',']) => {
            Ok(value)
        }
        _ => Err(Problem::new(format!("{} is not an origin", quoted(text)))
            .fix("write scheme and host only, in lower case, as in \"https://app.example.com\"")),
    }
}

fn mime_type(text: &str) -> Result<String, Problem> {
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    match essence.split_once('/') {
        Some((kind, subtype)) if token(kind) && token(subtype) => shown_text(text, MAX_TEXT_CHARS),
        _ => {
            Err(Problem::new(format!("{} is not a media type", quoted(text))).fix("write it like \"application/json\""))
        }
    }
}

fn some_text(text: &str) -> Result<String, Problem> {
    if text.is_empty() { Err(Problem::new("is empty")) } else { Ok(text.to_owned()) }
}

fn shown_text(text: &str, max_chars: usize) -> Result<String, Problem> {
    if text.contains(char::is_control) {
        return Err(Problem::new("holds a line break or a control character").fix("write it on one line"));
    }
    if text.chars().nth(max_chars).is_some() {
        return Err(Problem::new(format!("is longer than {max_chars} characters")));
    }
    some_text(text)
}

fn one_of<T: Copy>(text: &str, choices: &[(&'static str, T)]) -> Result<T, Problem> {
    choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let known = names(choices.iter().map(|(name, _)| *name));
        Problem::new(format!("{} is not known here", quoted(text))).fix(format!("use {known}"))
    })
}

fn names<'n>(all: impl Iterator<Item = &'n str>) -> String {
    all.map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}
