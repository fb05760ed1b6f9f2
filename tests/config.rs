//! The config file, as an operator meets it.

use std::collections::BTreeSet;
use std::time::Duration;

use peaje::config::{Config, Cors, Deposits, Limits, LogFormat, LogLevel, MaxLag, Seen, known_keys};
use peaje::gate::policy::{Price, Transfer};
use peaje::pricing::{Rate, StatusRule, Tier, Unit};
use peaje::protocol::{Address, Amount};
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../config.example.toml");

const MINIMAL: &str = r#"[upstream]
url = "http://127.0.0.1:8080"

[chain]
network = "base-sepolia"
rpc = "env:PEAJE_RPC"

[receiver]
pay_to = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
authorizer_key = "env:PEAJE_AUTHORIZER_KEY"

[[route]]
path = "/v1/*"
price = "$0.002"
"#;

const KEY: &str = "ab5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed5aAeb6053F3E94C9b9A09f";

/// The minimal config with one text replaced by another.
fn changed(from: &str, to: &str) -> String {
    assert!(MINIMAL.contains(from), "{from}");
    MINIMAL.replace(from, to)
}

/// The minimal config with more at its end.
fn with(more: &str) -> String {
    format!("{MINIMAL}{more}\n")
}

/// The minimal config with more of `[chain]`, in line 7.
fn in_chain(line: &str) -> String {
    changed("rpc = \"env:PEAJE_RPC\"", &format!("rpc = \"env:PEAJE_RPC\"\n{line}"))
}

/// The minimal config with more of `[upstream]`, in line 3.
fn in_upstream(line: &str) -> String {
    changed("8080\"", &format!("8080\"\n{line}"))
}

/// The minimal config where gas may take so much and has a price.
fn priced(share: &str) -> String {
    with(&format!("[redeem]\ncoin_price = \"$3000\"\nmax_gas_share = \"{share}\""))
}

/// All that a token without a preset needs.
const OWN_TOKEN: &str = "[chain.token]\naddress = \"0x036CbD53842c5426634e7929541eC2318f3dCF7e\"\ndecimals = 6\n\
                         domain_name = \"X\"\ndomain_version = \"1\"\n";

/// The first line of each error.
fn errors(text: &str) -> Vec<String> {
    let errors = match Config::parse(text, "c.toml") {
        Ok(_) => return Vec::new(),
        Err(errors) => errors,
    };
    let lines: Vec<_> = errors
        .to_string()
        .lines()
        .filter_map(|line| line.strip_prefix("error: c.toml"))
        .map(|line| line.trim_start_matches(':').trim_start().to_owned())
        .collect();
    assert_eq!(lines.len(), errors.errors().len());
    lines
}

#[test]
fn a_minimal_config_is_short_and_the_rest_has_defaults() {
    assert!(MINIMAL.lines().count() < 20);
    let config = Config::parse(MINIMAL, "c.toml").unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:4020");
    assert_eq!(config.server.public_url, "http://127.0.0.1:4020");
    assert_eq!(config.admin.listen.unwrap().to_string(), "127.0.0.1:9402");
    assert_eq!(config.chain.chain_id, 84532);
    assert_eq!(config.chain.network, Some("base-sepolia"));
    assert_eq!(config.chain.token.domain_name, "USDC");
    assert_eq!(config.receiver.gas_key, config.receiver.authorizer_key);
    assert_eq!(config.channel.withdraw_delay, Duration::from_secs(86_400));
    assert_eq!(config.channel.min_deposit, None);
    assert_eq!(config.redeem.max_rows, 200);
    assert_eq!((config.chain.confirmations, config.chain.max_lag), (1, MaxLag::Unsaid));
    assert_eq!(config.chain.token.transfer, Transfer::Eip3009);
    assert_eq!(config.channel.withdraw_margin, Duration::from_secs(300));
    assert_eq!((config.channel.refund_idle, config.channel.max_wallet_exposure), (None, Amount::new(1_000_000)));
    let deposits = Deposits { instant: Amount::ZERO, per_peer_per_hour: 200, per_hour: 1_000 };
    assert_eq!(config.deposits, deposits);
    let limits = Limits {
        max_connections: 16_384,
        max_requests: 4_096,
        header_timeout: Duration::from_secs(15),
        body_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_secs(180),
        max_header_bytes: 64 << 10,
        max_headers: 100,
        max_body: None,
        max_tunnels: 1_024,
        bad_signatures_per_minute: 60,
        hot_keys_bytes: 384 << 20,
        max_matched_body: 1 << 20,
        per_payer: None,
        unpaid: None,
    };
    assert_eq!((&config.limits, config.server.cores), (&limits, None));
    let channel = &config.channel;
    assert_eq!((channel.max_in_flight, channel.max_waiting, channel.max_wait), (32, 64, Duration::from_secs(10)));
    let redeem = &config.redeem;
    let sums = [redeem.max_unclaimed, redeem.max_unclaimed_per_channel, redeem.max_unclaimed_per_payer];
    assert_eq!((sums, redeem.max_age), ([None; 3], None));
    assert_eq!((redeem.max_gas_share_bps, redeem.coin_price), (None, None));
    assert_eq!((redeem.max_fee_wei, redeem.urgent_max_fee_wei), (50_000_000_000, 500_000_000_000));
    let times = [redeem.interval, redeem.bump_after, redeem.stuck_after, redeem.sweep_interval];
    assert_eq!(times, [600, 30, 3_600, 600].map(Duration::from_secs));
    assert_eq!(config.facilitator, None);
    assert_eq!(config.cors, Cors::Any);
    assert_eq!((config.log.level, config.log.format), (LogLevel::Info, LogFormat::Auto));
    let upstream = &config.upstream;
    let times = [upstream.connect_timeout, upstream.response_timeout, upstream.idle_timeout];
    assert_eq!(times, [5, 60, 300].map(Duration::from_secs));
    assert_eq!((upstream.http2, &upstream.health, upstream.breaker, config.upstreams.len()), (false, &None, None, 0));
    assert_eq!((&upstream.ca, &upstream.client, &upstream.server_name), (&None, &None, &None));
    assert_eq!(config.routes[0].way, None);
    assert_eq!(config.routes.len(), 1);
    assert_eq!(&*config.routes[0].name, "/v1/*");
    assert_eq!(config.routes[0].price, Price::Fixed(Amount::new(2_000)));
    let policy = config.policy(Address([7; 20])).unwrap();
    assert_eq!(policy.terms().max_timeout_s, 300);
    assert_eq!(policy.terms().receiver_authorizer, Address([7; 20]));
}

#[test]
fn the_example_shows_the_defaults() {
    let example = Config::parse(EXAMPLE, "config.example.toml").unwrap();
    let mut minimal = Config::parse(MINIMAL, "c.toml").unwrap();
    minimal.routes = example.routes.clone();
    assert_eq!(format!("{example:#?}"), format!("{minimal:#?}"));
}

#[test]
fn the_example_is_complete() {
    let mut heading = String::new();
    let mut shown: BTreeSet<(String, String)> = BTreeSet::new();
    for line in EXAMPLE.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if line.starts_with('[') && line.ends_with(']') {
            // Upstreams with names have the keys of the one without.
            let line = if line.starts_with("[upstreams.") { "[upstream]" } else { line };
            let name = |heading: &str| heading.trim_matches(['[', ']']).to_owned();
            // A section within another is a key of that one.
            if let Some((outer, key)) = name(line).rsplit_once('.')
                && let Some((outer, _)) = shown.iter().find(|(shown, _)| name(shown) == outer)
            {
                shown.insert((outer.clone(), key.to_owned()));
            }
            heading = line.to_owned();
            continue;
        }
        let Some((key, value)) = line.split_once(" = ") else { continue };
        assert!(key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{line}");
        let parsed = format!("{key} = {value}").parse::<toml::Table>().expect(line);
        // A table on one line shows its own keys.
        if let Some(toml::Value::Table(table)) = parsed.get(key).filter(|_| key == "tls") {
            let inner = format!("{}.{key}]", heading.trim_end_matches(']'));
            shown.extend(table.keys().map(|key| (inner.clone(), key.clone())));
        }
        shown.insert((heading.clone(), key.to_owned()));
    }
    let known: BTreeSet<_> = known_keys()
        .into_iter()
        .filter(|(heading, _)| !heading.is_empty())
        .map(|(heading, key)| (heading, key.to_owned()))
        .collect();
    assert_eq!(shown, known);
    assert!(known.len() > 50);
}

fn is_key(line: &str) -> bool {
    line.split_once(" = ")
        .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
}

#[test]
fn the_examples_comments_are_a_config_too() {
    let own_token = EXAMPLE.replace("token = \"usdc\"\n", "");
    let uncommented: String = own_token
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if is_key(rest) || (rest.starts_with('[') && rest.ends_with(']')) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    // One of the two sends the transactions.
    let gas_key = "gas_key = \"env:PEAJE_GAS_KEY\"\n";
    assert_eq!(errors(&uncommented).len(), 1, "{:?}", errors(&uncommented));
    let config = Config::parse(&uncommented.replace(gas_key, ""), "c.toml").unwrap();
    let facilitator = config.facilitator.unwrap();
    assert_eq!(
        (facilitator.url.host(), facilitator.timeout),
        (Some("facilitator.example.com"), Duration::from_secs(90))
    );
    let (before, rest) = uncommented.split_once("[facilitator]\n").unwrap();
    let (_, after) = rest.split_once("\n\n").unwrap();
    let config = Config::parse(&format!("{before}\n{after}"), "c.toml").unwrap();
    assert_eq!(config.redeem.max_gas_share_bps, Some(1_000));
    assert_eq!(config.redeem.coin_price, Some(Amount::new(3_000_000_000)));
    assert_eq!(config.redeem.max_unclaimed_per_channel, Some(Amount::new(5_000_000)));
    assert_eq!(config.channel.refund_idle, Some(Duration::from_secs(30 * 86_400)));
    assert_eq!(config.chain.max_lag, MaxLag::Of(Duration::from_secs(60)));
    assert_eq!(config.channel.min_deposit, Some(Amount::new(100_000)));
    assert_eq!(config.receiver.gas_key.as_str(), "env:PEAJE_GAS_KEY");
    assert_eq!(config.routes[0].extensions["bazaar"]["info"]["input"]["method"], "GET");
    assert_eq!(config.routes[0].methods.len(), 2);
    let way = config.routes[0].way.as_ref().unwrap();
    assert!(way.upgrades_to("WebSocket") && !way.upgrades_to("h2c"));
    assert_eq!(way.upstream.as_deref(), Some("reports"));
    let reports = &config.upstreams[0].1;
    assert_eq!(reports.ca.as_deref(), Some("upstream-ca.pem".as_ref()));
    assert_eq!(reports.client, Some(("client.pem".into(), "client.key".into())));
    let breaker = config.upstream.breaker.unwrap();
    assert_eq!((breaker.failures, breaker.open_for), (5, Duration::from_secs(10)));
    let health = config.upstream.health.unwrap();
    let times = [health.interval, health.timeout].map(|time| time.as_secs());
    assert_eq!((times, health.unhealthy_after, health.healthy_after), ([5, 1], 2, 2));
}

#[test]
fn every_error_says_where_what_and_how_to_fix_it() {
    let cases: &[(String, &str)] = &[
        // Syntax.
        (
            changed("\"$0.002\"", "$0.002"),
            "14:9 not valid TOML: string values must be quoted, expected literal string; put text in quotes, as in \
             listen = \"127.0.0.1:4020\"",
        ),
        // Unknown keys.
        (with("pric = 3"), "15:1 [[route]].pric: unknown key; did you mean \"price\"?"),
        (with("[sever]"), "15:2 sever: unknown section or key; did you mean \"server\"?"),
        (with("[log]\nallow_origins = []"), "16:1 [log].allow_origins: unknown key; it belongs under [cors]"),
        (with("[log]\nlevle = \"info\""), "16:1 [log].levle: unknown key; did you mean \"level\"?"),
        (with("[server]\nlsiten = \"\""), "16:1 [server].lsiten: unknown key; did you mean \"listen\"?"),
        (
            with("[[route]]\npath = \"/x\"\nprice = \"free\"\nnmae = \"x\""),
            "18:1 [[route]].nmae: unknown key; did you mean \"name\"?",
        ),
        (with("[log]\nzzz = 1"), "16:1 [log].zzz: unknown key; known here: access, format, level"),
        (with("[log]\n\"a b\" = 1"), "16:1 [log].\"a b\": unknown key; known here: access, format, level"),
        // Types and sections.
        (
            with("[redeem]\non_shutdown = \"yes\""),
            "16:15 [redeem].on_shutdown: expected true or false, found text; write true or false, without quotes",
        ),
        (with("[redeem]\nmax_rows = \"7\""), "16:12 [redeem].max_rows: expected a whole number, found text"),
        (
            with("[redeem]\nmax_rows = 273"),
            "16:12 [redeem].max_rows: 273 is not between 1 and 272, which is what one transaction holds",
        ),
        (with("[redeem]\nmax_rows = -1"), "16:12 [redeem].max_rows: expected a whole number, found the number -1"),
        (
            with("[redeem]\ninterval = 600"),
            "16:12 [redeem].interval: expected text, found the number 600; put it in quotes",
        ),
        (format!("log = 3\n{MINIMAL}"), "1:7 log: is a section; write [log] on a line of its own"),
        (changed("[[route]]", "[route]"), "12:1 route: is a list of sections; write [[route]], with two brackets"),
        (
            with("[cors]\nallow_origins = \"*\""),
            "16:17 [cors].allow_origins: expected a list, found text; write it in brackets, as in [\"…\"]",
        ),
        // What must be there.
        (
            changed("url = \"http://127.0.0.1:8080\"\n", ""),
            "1:1 [upstream].url: is missing; add url = \"http://127.0.0.1:8080\"",
        ),
        (
            changed("[upstream]\nurl = \"http://127.0.0.1:8080\"\n", ""),
            "[upstream].url: is missing; add url = \"http://127.0.0.1:8080\" under [upstream]",
        ),
        (
            changed("network = \"base-sepolia\"\n", ""),
            "4:1 [chain].network: is missing; add network = \"base\" (\"base\", \"base-sepolia\", \"arbitrum\", \
             \"arbitrum-sepolia\", \"polygon\")",
        ),
        (changed("price = \"$0.002\"\n", ""), "12:1 [[route]].price: is missing; add price = \"$0.001\", or \"free\""),
        (
            changed("[[route]]\npath = \"/v1/*\"\nprice = \"$0.002\"\n", ""),
            "[[route]]: nothing is for sale, and what no route names is not served; add [[route]] with path = \"/*\" \
             and price = \"$0.001\"",
        ),
        // Durations.
        (with("[server]\nquote_grace = \"61m\""), "16:15 [server].quote_grace: \"61m\" is not between 0s and 1h"),
        (
            with("[log]\naccess = \"logs/\""),
            "16:10 [log].access: is no file; write a path such as \"access.jsonl\", or leave it out",
        ),
        (
            with("[server]\nshutdown_timeout = \"30\""),
            "16:20 [server].shutdown_timeout: \"30\" is refused: a duration needs a unit (ms, s, m, h, d), as in \
             \"30s\"",
        ),
        (
            with("[channel]\nwithdraw_delay = \"899s\""),
            "16:18 [channel].withdraw_delay: \"899s\" is not between 15m and 30d",
        ),
        (
            with("[channel]\nwithdraw_delay = \"2592001s\""),
            "16:18 [channel].withdraw_delay: \"2592001s\" is not between 15m and 30d",
        ),
        (
            with("[channel]\nmax_timeout = \"100500ms\""),
            "16:15 [channel].max_timeout: \"100500ms\" is not a whole number of seconds",
        ),
        (
            with("[channel]\nmax_timeout = \"60s\""),
            "16:15 [channel].max_timeout: 1m must be longer than [upstream].response_timeout, which is 1m; raise it, \
             or \
             lower response_timeout: an agent must not give up before the upstream may",
        ),
        (
            with("[redeem]\ninterval = \"1d\""),
            "16:12 [redeem].interval: 1d is not below [channel].withdraw_delay, 1d; redeem more often than a payer can \
             withdraw",
        ),
        // Addresses to listen on.
        (
            with("[server]\nlisten = \"localhost:80\""),
            "16:10 [server].listen: \"localhost:80\" is not an IP address and a port; write \"127.0.0.1:80\"",
        ),
        (
            with("[server]\nlisten = \":80\""),
            "16:10 [server].listen: \":80\" is not an IP address and a port; write \"0.0.0.0:80\" for every interface, \
             \"127.0.0.1:80\" for this machine",
        ),
        (
            with("[server]\nlisten = \"0.0.0.0:80\""),
            "15:1 [server].public_url: is missing, and agents cannot reach http://0.0.0.0:80; add public_url = \
             \"https://api.example.com\", as agents see it",
        ),
        (
            with("[admin]\nlisten = \"0.0.0.0:9402\""),
            "16:10 [admin].listen: 0.0.0.0:9402 can be reached by others, and this listener asks no password; use a \
             loopback address such as \"127.0.0.1:9402\", or \"off\"",
        ),
        (
            with("[admin]\nlisten = \"127.0.0.1:4020\""),
            "16:10 [admin].listen: 127.0.0.1:4020 is taken by [server].listen; give it a port of its own",
        ),
        // URLs.
        (
            changed("http://127.0.0.1:8080", "127.0.0.1:8080"),
            "2:7 [upstream].url: \"127.0.0.1:8080\" is not an http or https URL; write it like \
             \"http://127.0.0.1:8080\"",
        ),
        (
            changed("http://127.0.0.1:8080", "http://localhost:4020/x"),
            "2:7 [upstream].url: \"http://localhost:4020/x\" is where Peaje itself listens; name the address of the \
             API \
             that is sold",
        ),
        (
            changed("http://127.0.0.1:8080", "http://h/?a=b"),
            "2:7 [upstream].url: has a query or a fragment; end it with the path",
        ),
        (
            changed("http://127.0.0.1:8080", "http://me:s3cret@h"),
            "2:7 [upstream].url: holds credentials; leave user and password out of the URL",
        ),
        (
            with("[server]\npublic_url = \"api.example.com\""),
            "16:14 [server].public_url: \"api.example.com\" is not an http or https URL; write it like \
             \"https://api.example.com\"",
        ),
        // Upstreams.
        (in_upstream("idle_timeout = \"0ms\""), "3:16 [upstream].idle_timeout: \"0ms\" is not between 1ms and 1d"),
        (
            in_upstream("http2 = \"yes\""),
            "3:9 [upstream].http2: expected true or false, found text; write true or false, without quotes",
        ),
        (
            changed("\"http://127.0.0.1:8080\"", "[\"http://a\", \"b\"]"),
            "2:7 [upstream].url: no. 2: \"b\" is not an http or https URL; write it like \"http://127.0.0.1:8080\"",
        ),
        (
            changed("\"http://127.0.0.1:8080\"", "[]"),
            "2:7 [upstream].url: names nothing; add one, as in url = \"http://127.0.0.1:8080\"",
        ),
        (
            changed("\"http://127.0.0.1:8080\"", "[\"http://a\", \"http://b\", \"http://a\"]"),
            "2:7 [upstream].url: names one of them twice; the one with the fewest requests is asked, so once is enough",
        ),
        (
            in_upstream("ca = \"ca.pem\""),
            "3:6 [upstream].ca: is about TLS, and no url begins with https://; write https:// in url, or remove it",
        ),
        (
            with("[upstreams.a]\nurl = \"https://a\"\nclient_cert = \"c.pem\""),
            "15:12 [upstreams.a].client_key: is missing; add client_key, the file of the certificate's key",
        ),
        (
            with(
                "[upstreams.a]\nurl = \"https://a\"\nclient_cert = \"c.pem\"\nclient_key = \"-----BEGIN PRIVATE KEY-----\"",
            ),
            "18:14 [upstreams.a].client_key: this is what belongs into a file; write the name of that file",
        ),
        (
            with("[upstreams.a]\nurl = \"https://a\"\nserver_name = \"a b\""),
            "17:15 [upstreams.a].server_name: \"a b\" is no name of a server; write it like \"api.internal\"",
        ),
        (
            with("[upstream.health]\ninterval = \"1s\""),
            "15:1 [upstream.health].path: is missing; add path = \"/healthz\"",
        ),
        (
            with("[upstream.health]\npath = \"healthz\""),
            "16:8 [upstream.health].path: \"healthz\" is not a path; write it like \"/healthz\"",
        ),
        (with("[upstream.breaker]\nfailures = 0"), "16:12 [upstream.breaker].failures: 0 is not between 1 and 1000"),
        (with("[upstreams.a]"), "15:12 [upstreams.a].url: is missing; add url = \"http://127.0.0.1:8080\""),
        (
            with("[upstreams.a]\nurl = \"http://a\"\nulr = \"http://b\""),
            "17:1 [upstreams.a].ulr: unknown key; did you mean \"url\"?",
        ),
        (
            with("[upstreams.\"a b\"]\nurl = \"http://a\""),
            "15:12 [upstreams.\"a b\"]: \"a b\" is no name for an upstream; name it like [upstreams.images]",
        ),
        (with("[upstreams]\na = \"http://a\""), "16:5 [upstreams.a]: is a section, not a value"),
        (
            with("[upstreams.a]\nurl = \"http://a\"\nresponse_timeout = \"5m\""),
            "17:20 [upstreams.a].response_timeout: 5m must be shorter than [channel].max_timeout, which is 5m; lower it, or \
             raise max_timeout",
        ),
        (
            with("upstream = \"imagse\"\n[upstreams.images]\nurl = \"http://a\""),
            "15:12 [[route]].upstream: there is no [upstreams.imagse]; did you mean \"images\"?",
        ),
        (
            with("upstream = \"x\""),
            "15:12 [[route]].upstream: there is no [upstreams.x]; add it, or leave upstream out for the one in [upstream]",
        ),
        (
            with("upgrade = [\"h2c\"]"),
            "15:12 [[route]].upgrade: \"h2c\" would be a way around the prices; leave it out",
        ),
        (
            with("upgrade = [\"web socket\"]"),
            "15:12 [[route]].upgrade: \"web socket\" is no protocol; write it like \"websocket\"",
        ),
        (
            with("upgrade = [\"websocket\"]\nupstream = \"a\"\n[upstreams.a]\nurl = \"http://a\"\nhttp2 = true"),
            "15:11 [[route]].upgrade: its upstream speaks HTTP/2, which knows no upgrade; remove it, or name an upstream \
             without http2",
        ),
        (with("[limits]\nmax_tunnels = 0"), "16:15 [limits].max_tunnels: 0 is not between 1 and 1000000"),
        // The chain.
        (
            changed("base-sepolia", "base-seplia"),
            "5:11 [chain].network: \"base-seplia\" is not a known network; did you mean \"base-sepolia\"?",
        ),
        (
            changed("base-sepolia", "ethereum"),
            "5:11 [chain].network: \"ethereum\" is not a known network; use \"base\", \"base-sepolia\", \"arbitrum\", \
             \"arbitrum-sepolia\", \"polygon\", or chain_id and a [chain.token] table instead",
        ),
        (
            changed("rpc = ", "chain_id = 8453\nrpc = "),
            "6:12 [chain].chain_id: 8453 is not base-sepolia, whose chain id is 84532; remove chain_id or network",
        ),
        (
            changed("network = \"base-sepolia\"", "chain_id = 7"),
            "4:1 [chain].token: is missing; add a [chain.token] table with address, decimals, domain_name and \
             domain_version, because chain 7 has no preset",
        ),
        (
            changed("rpc = ", "token = \"dai\"\nrpc = "),
            "6:9 [chain].token: \"dai\" is not a token known on chain 84532; use \"usdc\", or write a [chain.token] \
             table with address, decimals, domain_name and domain_version",
        ),
        (
            with(
                "[chain.token]\naddress = \"0x036CbD53842c5426634e7929541eC2318f3dCF7e\"\ndecimals = 6\ndomain_name \
                 = \"X\"",
            ),
            "15:1 [chain.token].domain_version: is missing; add domain_version, the version in the token's EIP-712 \
             domain",
        ),
        (
            changed("env:PEAJE_RPC", "wss://node.example/v2/s3cret"),
            "6:7 [chain].rpc: an RPC endpoint is a URL that begins with http:// or https://, or \"env:NAME\" for a \
             variable that holds one",
        ),
        (
            changed("\"env:PEAJE_RPC\"", "[\"env:A\", \"wss://node.example/v2/s3cret\"]"),
            "6:7 [chain].rpc: no. 2: an RPC endpoint is a URL that begins with http:// or https://, or \"env:NAME\" for \
             a variable that holds one",
        ),
        (changed("\"env:PEAJE_RPC\"", "[]"), "6:7 [chain].rpc: names no endpoint; add one, as in [\"env:PEAJE_RPC\"]"),
        (
            changed("\"env:PEAJE_RPC\"", "[\"env:A\", \"env:B\", \"env:C\", \"env:D\", \"env:E\", \"env:F\"]"),
            "6:7 [chain].rpc: 6 endpoints are more than 5; keep the best of them",
        ),
        (
            changed("\"env:PEAJE_RPC\"", "[\"env:A\", \"env:B\", \"env:A\"]"),
            "6:7 [chain].rpc: names an endpoint twice; a second one helps if it is somebody else's",
        ),
        (
            changed("\"env:PEAJE_RPC\"", "[7]"),
            "6:7 [chain].rpc: no. 1: expected text, found the number 7; put it in quotes",
        ),
        (changed("\"env:PEAJE_RPC\"", "7"), "6:7 [chain].rpc: expected text, found the number 7; put it in quotes"),
        (in_chain("confirmations = 0"), "7:17 [chain].confirmations: 0 is not between 1 and 120"),
        (in_chain("confirmations = 121"), "7:17 [chain].confirmations: 121 is not between 1 and 120"),
        (in_chain("max_lag = \"999ms\""), "7:11 [chain].max_lag: \"999ms\" is not between 1s and 1h"),
        (
            in_chain("max_lag = \"never\""),
            "7:11 [chain].max_lag: \"never\" is refused: a duration is a whole number and a unit (ms, s, m, h, d), as in \
             \"30s\"",
        ),
        (
            with(&format!("{OWN_TOKEN}transfer = \"erc20\"")),
            "20:12 [chain.token].transfer: \"erc20\" is not known here; use \"eip3009\", \"permit2\"",
        ),
        (
            with(&format!("{OWN_TOKEN}sponsored = false")),
            "20:13 [chain.token].sponsored: is about Permit2, which is not how this token is taken; remove it, or write \
             transfer = \"permit2\"",
        ),
        (
            with(&format!("{OWN_TOKEN}transfer = \"permit2\"\n[facilitator]\nurl = \"https://f.example\"")),
            "22:7 [facilitator].url: cannot be used with transfer = \"permit2\": no deposit would be relayed; remove \
             [facilitator], and name receiver.gas_key",
        ),
        // Channels and deposits.
        (
            in_chain("poll = \"301s\"") + "[channel]\nwithdraw_delay = \"15m\"\n[redeem]\ninterval = \"1m\"\n",
            "17:18 [channel].withdraw_delay: 15m is too short for [chain].poll, which is 301s; lower poll: a withdrawal must \
             be seen while there is time to claim",
        ),
        (
            with("[channel]\nwithdraw_delay = \"15m\"\nwithdraw_margin = \"15m\"\n[redeem]\ninterval = \"1m\""),
            "17:19 [channel].withdraw_margin: 15m is not below withdraw_delay, 15m; lower it: nothing would be sold to a \
             payer that announces a withdrawal",
        ),
        (
            with("[channel]\nrefund_idle = \"3599s\""),
            "16:15 [channel].refund_idle: \"3599s\" is not between 1h and 3650d",
        ),
        (with("[server]\ncores = 0"), "16:9 [server].cores: 0 is not between 1 and 1024"),
        (with("[channel]\nmax_in_flight = 0"), "16:17 [channel].max_in_flight: 0 is not between 1 and 1024"),
        (with("[limits]\nmax_requests = 16385"), "16:16 [limits].max_requests: 16385 is not between 1 and 16384"),
        (
            with("[limits]\nhot_keys_memory = \"1 MB\""),
            "16:19 [limits].hot_keys_memory: \"1 MB\" is no size: a size is a whole number and a unit (KiB, MiB, GiB), as in \
             \"384 MiB\"; \"0\" is nothing",
        ),
        (
            with("[channel]\nmax_wallet_exposure = \"1\""),
            "16:23 [channel].max_wallet_exposure: \"1\" is not a price; write it with a dollar sign: \"$1\"",
        ),
        (
            with("[deposits]\ninstant = \"$0.0000001\""),
            "16:11 [deposits].instant: \"$0.0000001\" is finer than the token, which has 6 decimal places; use a \
             multiple of $0.000001",
        ),
        (
            with("[deposits]\nper_peer_per_hour = 0"),
            "16:21 [deposits].per_peer_per_hour: 0 is not between 1 and 1000000",
        ),
        (with("[deposits]\nper_hour = 0"), "16:12 [deposits].per_hour: 0 is not between 1 and 1000000"),
        (with("[deposits]\nper_hour = 1000001"), "16:12 [deposits].per_hour: 1000001 is not between 1 and 1000000"),
        // When to redeem.
        (
            with("[redeem]\nmax_unclaimed = \"$0\""),
            "16:17 [redeem].max_unclaimed: would claim every voucher by itself, which costs more than it brings; write \
             what may be unclaimed, \"$5\" say",
        ),
        (
            with("[redeem]\nmax_unclaimed_per_channel = \"5\""),
            "16:29 [redeem].max_unclaimed_per_channel: \"5\" is not a price; write it with a dollar sign: \"$5\"",
        ),
        (
            with("[redeem]\nmax_unclaimed_per_payer = 5"),
            "16:27 [redeem].max_unclaimed_per_payer: expected text, found the number 5; put it in quotes",
        ),
        (with("[redeem]\nmax_age = \"500ms\""), "16:11 [redeem].max_age: \"500ms\" is not between 1s and 30d"),
        (
            with("[redeem]\nmax_gas_share = \"10%\""),
            "16:17 [redeem].max_gas_share: says nothing while nobody knows what gas costs in dollars; add coin_price = \
             \"$3000\", what one of the chain's own coins is worth",
        ),
        (
            priced("0%"),
            "17:17 [redeem].max_gas_share: \"0%\" is not above 0% and at most 100%; write it like \"10%\" or \"0.25%\"",
        ),
        (
            priced("100.01%"),
            "17:17 [redeem].max_gas_share: \"100.01%\" is not above 0% and at most 100%; write it like \"10%\" or \
             \"0.25%\"",
        ),
        (
            priced("0.001%"),
            "17:17 [redeem].max_gas_share: \"0.001%\" is not a percentage of at most two decimal places; write it like \
             \"10%\" or \"0.25%\"",
        ),
        (
            priced("0.1"),
            "17:17 [redeem].max_gas_share: \"0.1\" is not a percentage; write it like \"10%\" or \"0.25%\"",
        ),
        (
            with("[redeem]\ncoin_price = \"$0\""),
            "16:14 [redeem].coin_price: a coin that is worth nothing makes gas free; leave coin_price out",
        ),
        (
            with("[redeem]\ncoin_price = \"$0.0000001\""),
            "16:14 [redeem].coin_price: \"$0.0000001\" is finer than the token, which has 6 decimal places; use a \
             multiple of $0.000001",
        ),
        (
            with("[redeem]\nmax_fee = \"50\""),
            "16:11 [redeem].max_fee: \"50\" is not a price of gas: it needs a unit, wei or gwei; write it like \"50 \
             gwei\", \"0.05 gwei\" or \"1000 wei\"",
        ),
        (
            with("[redeem]\nmax_fee = \"0.5 wei\""),
            "16:11 [redeem].max_fee: \"0.5 wei\" is not a price of gas: a number of whole wei, then wei or gwei; write it \
             like \"50 gwei\", \"0.05 gwei\" or \"1000 wei\"",
        ),
        (
            with("[redeem]\nmax_fee = \"0 gwei\""),
            "16:11 [redeem].max_fee: \"0 gwei\" buys no gas; write it like \"50 gwei\", \"0.05 gwei\" or \"1000 wei\"",
        ),
        (
            with("[redeem]\nurgent_max_fee = \"1000000001 gwei\""),
            "16:18 [redeem].urgent_max_fee: \"1000000001 gwei\" is more than a whole coin for a unit of gas; write it like \
             \"50 gwei\", \"0.05 gwei\" or \"1000 wei\"",
        ),
        (
            with("[redeem]\nurgent_max_fee = \"49.5 gwei\""),
            "16:18 [redeem].urgent_max_fee: 49.5 gwei is less than max_fee, 50 gwei; raise it, or lower max_fee: what is \
             urgent must not bid less",
        ),
        (
            with("[redeem]\nmax_fee = \"501 gwei\""),
            "15:1 [redeem].urgent_max_fee: 500 gwei is less than max_fee, 501 gwei; raise it, or lower max_fee: what \
             is urgent must not bid less",
        ),
        (with("[redeem]\nbump_after = \"999ms\""), "16:14 [redeem].bump_after: \"999ms\" is not between 1s and 1h"),
        (with("[redeem]\nstuck_after = \"59s\""), "16:15 [redeem].stuck_after: \"59s\" is not between 1m and 30d"),
        (
            with("[redeem]\nsweep_interval = \"86401s\""),
            "16:18 [redeem].sweep_interval: \"86401s\" is not between 1s and 1d",
        ),
        // The facilitator.
        (
            with("[facilitator]\ntimeout = \"90s\""),
            "15:1 [facilitator].url: is missing; add url = \"https://…\", the facilitator's address",
        ),
        (
            with("[facilitator]\nurl = \"http://f.example\""),
            "16:7 [facilitator].url: is not encrypted, so what it says about payments can be forged on the way; write \
             https, or use one on this machine",
        ),
        (
            with("[facilitator]\nurl = \"ftp://f.example\""),
            "16:7 [facilitator].url: \"ftp://f.example\" is not an http or https URL; write it like \
             \"https://facilitator.example.com\"",
        ),
        (
            with("[facilitator]\nurl = \"https://f.example\"\ntimeout = \"0s\""),
            "17:11 [facilitator].timeout: \"0s\" is not between 1s and 1h",
        ),
        (
            changed("[[route]]", "gas_key = \"env:G\"\n[facilitator]\nurl = \"https://f.example\"\n[[route]]"),
            "12:11 [receiver].gas_key: is not used where a [facilitator] sends the transactions; remove it, or \
             [facilitator]",
        ),
        // The receiver.
        (
            changed("0x209693Bc", "0x209693bc"),
            "9:10 [receiver].pay_to: \"0x209693bc6afc0C5328bA36FaF03C514EF312287C\" fails its checksum, so it may be \
             mistyped; if your wallet shows the same digits, write \"0x209693Bc6afc0C5328bA36FaF03C514EF312287C\"",
        ),
        (
            changed("0x209693Bc6afc0C5328bA36FaF03C514EF312287C", "0x0000000000000000000000000000000000000000"),
            "9:10 [receiver].pay_to: is the zero address, which nobody owns",
        ),
        (
            changed("0x209693Bc6afc0C5328bA36FaF03C514EF312287C", "0x209693Bc"),
            "9:10 [receiver].pay_to: \"0x209693Bc\" is not an address: expected 40 hex digits, found 8; write 0x and \
             40 \
             hex digits",
        ),
        (
            changed("0x209693Bc6afc0C5328bA36FaF03C514EF312287C", "0x036CbD53842c5426634e7929541eC2318f3dCF7e"),
            "9:10 [receiver].pay_to: this is the token's contract; name the account that should be paid",
        ),
        (
            changed("env:PEAJE_AUTHORIZER_KEY", KEY),
            "10:18 [receiver].authorizer_key: this is a private key, and config files are read by many; put the key in \
             an environment variable or a file; write \"env:PEAJE_AUTHORIZER_KEY\" and set that variable",
        ),
        // Prices.
        (
            changed("$0.002", "0.002"),
            "14:9 [[route]].price: \"0.002\" is not a price; write it with a dollar sign: \"$0.002\"",
        ),
        (
            changed("\"$0.002\"", "0.002"),
            "14:9 [[route]].price: 0.002 is not a price; write it as text with a dollar sign: \"$0.002\"",
        ),
        (changed("$0.002", "cheap"), "14:9 [[route]].price: \"cheap\" is not a price; write it like \"$0.002\""),
        (changed("$0.002", "Free"), "14:9 [[route]].price: \"Free\" is not a price; write \"free\", in lower case"),
        (changed("$0.002", "$0.00"), "14:9 [[route]].price: \"$0.00\" is no price; write \"free\" if you mean it"),
        (
            changed("$0.002", "$0.0000001"),
            "14:9 [[route]].price: \"$0.0000001\" is finer than the token, which has 6 decimal places; use a \
             multiple of \
             $0.000001",
        ),
        (
            with("[channel]\nmin_deposit = \"$0\""),
            "16:15 [channel].min_deposit: a deposit of nothing is no limit; leave min_deposit out to accept any",
        ),
        // Routes.
        (changed("/v1/*", "v1/*"), "13:8 [[route]].path: \"v1/*\" is refused: a path begins with /; write \"/v1/*\""),
        (
            changed("/v1/*", "/v*"),
            "13:8 [[route]].path: \"/v*\" is refused: * may only stand as the whole last segment, as in /v1/*; write \
             it \
             like \"/v1/models\", \"/v1/users/{id}\" or \"/v1/*\"",
        ),
        (
            with("methods = [\"get\"]"),
            "15:12 [[route]].methods: \"get\" is not a method; methods are upper case: \"GET\"",
        ),
        (with("methods = [\"GTE\"]"), "15:12 [[route]].methods: \"GTE\" is not a method; did you mean \"GET\"?"),
        (
            with("methods = [\"HEAD\"]"),
            "15:12 [[route]].methods: \"HEAD\" has no price of its own; write \"GET\", which covers it",
        ),
        (with("methods = []"), "15:11 [[route]].methods: no method is allowed; leave methods out to allow all"),
        (
            with("mime_type = \"json\""),
            "15:13 [[route]].mime_type: \"json\" is not a media type; write it like \"application/json\"",
        ),
        (
            with("name = \"a\\nb\""),
            "15:8 [[route]].name: holds a line break or a control character; write it on one line",
        ),
        (with("extensions = 3"), "15:14 [[route]].extensions: expected a table, found the number 3"),
        (with("extensions = { x = nan }"), "15:14 [[route]].extensions: holds a number that JSON cannot express"),
        (
            with(
                "[[route]]\npath = \"/v1/*\"\nmethods = [\"GET\"]\nprice = \"free\"\n\n[[route]]\npath = \
                 \"/v1/*/\"\nprice = \"free\"",
            ),
            "21:8 [[route]].path: matches the same requests as the route in line 13, \"/v1/*\"; give one of them \
             another path, other methods or other conditions, or remove it",
        ),
        // CORS and log.
        (
            with("[cors]\nallow_origins = [\"*\", \"https://a.example\"]"),
            "16:18 [cors].allow_origins: \"*\" allows every origin, so the others mean nothing; write [\"*\"], or the \
             origins alone",
        ),
        (
            with("[cors]\nallow_origins = [\"https://a.example/\"]"),
            "16:18 [cors].allow_origins: \"https://a.example/\" is not an origin; write scheme and host only, in lower \
             case, as in \"https://app.example.com\"",
        ),
        (
            with("[log]\nlevel = \"loud\""),
            "16:9 [log].level: \"loud\" is not known here; use \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(errors(text), [*expected], "{text}");
    }
}

/// The minimal config with more of its route, from line 15 on, and a list of payers at the end.
fn in_route(lines: &str) -> String {
    with(&format!("{lines}\n[payers]\npartners = [\"0x209693Bc6afc0C5328bA36FaF03C514EF312287C\"]"))
}

#[test]
fn what_a_route_asks_of_requests_and_payers_is_checked() {
    let given_away = "free = { requests = 1, per = \"1d\", by = \"network\" }";
    let own_price = |lines: &str| in_route(&format!("[[route.for]]\n{lines}"));
    let cases: &[(String, &str)] = &[
        (in_route("host = \"http://x\""), "15:8 [[route]].host: \"http://x\" is refused: a host is a name"),
        (in_route("host = \"a.*.b\""), "15:8 [[route]].host: \"a.*.b\" is refused: * may only stand at the beginning"),
        (in_route("match = \"x\""), "15:9 [[route]].match: expected a table, found text; write it like match = {"),
        (in_route("match = {}"), "15:9 [[route]].match: asks for nothing; leave match out to take all requests"),
        (
            in_route("match = { heder.a = \"b\", query.a = \"b\" }"),
            "15:11 [route.match].heder: unknown key; did you mean",
        ),
        (
            in_route("match = { header = { host = \"x\" } }"),
            "15:29 [route.match.header].host: the header \"host\" is not",
        ),
        (
            in_route("match = { header = { X-A = \"x\", x-a = \"y\" } }"),
            "15:39 [route.match.header].x-a: is named twice",
        ),
        (in_route("match = { query = { a = 1 } }"), "15:25 [route.match.query].a: expected text, found the number 1"),
        (
            in_route("match = { query = { \"a[]\" = \"1\" } }"),
            "15:29 [route.match.query].\"a[]\": \"a[]\" is not the name",
        ),
        (in_route("match = { body = { a = \"x*y\" } }"), "15:24 [route.match.body].a: \"x*y\" is refused: * may only"),
        (in_route("match = { body = { a = \"x?\" } }"), "15:24 [route.match.body].a: \"x?\" is refused: ? stands for"),
        (
            in_route("match = { body = { a = { b = 1.5 } } }"),
            "15:30 [route.match.body.a].b: expected text, true, false",
        ),
        (
            in_route("allow = [\"partner\"]"),
            "15:10 [[route]].allow: there is no list \"partner\"; did you mean \"partners\"?",
        ),
        (
            in_route("allow = [\"friends\"]"),
            "15:10 [[route]].allow: there is no list \"friends\"; name one that is there, \"partners\", or add this one under",
        ),
        (
            in_route("allow = [\"parnters\"]"),
            "15:10 [[route]].allow: there is no list \"parnters\"; did you mean \"partners\"?",
        ),
        (
            in_route("rate = { per_payer = \"20/s\" }"),
            "15:22 [route.rate].per_payer: \"20/s\" does not say in how long; write \"20 / 1s\"",
        ),
        (in_route("rate = { per_payer = \"20/parsec\" }"), "15:22 [route.rate].per_payer: "),
        (
            changed("\"$0.002\"", "{ output_tokens = \"$10 per 1M\", most = \"$1\" }"),
            "14:27 [route.price].output_tokens: \"$10 per 1M\" is not a rate; write \"$10 / 1M\"",
        ),
        (
            changed("\"$0.002\"", "\"$10 per 1M\""),
            "14:9 [[route]].price: \"$10 per 1M\" is a rate, and this is the price of a request; say what is counted",
        ),
        (
            changed("\"$0.002\"", "{ output_tokens = \"$10 / 1M\", most = \"$1\", max = \"$1\" }"),
            "14:52 [route.price].max: unknown key; did you mean \"most\"?",
        ),
        (with("[server]\ngrace = \"1m\""), "16:1 [server].grace: unknown key; did you mean \"quote_grace\"?"),
        (in_upstream("timeout = \"1m\""), "3:1 [upstream].timeout: unknown key; did you mean \"response_timeout\"?"),
        (in_route("deny = []"), "15:8 [[route]].deny: names nobody; leave it out"),
        (
            in_route("free = { requests = 0, per = \"1d\", by = \"payer\" }"),
            "15:21 [route.free].requests: 0 is not between",
        ),
        (
            in_route("free = { requests = 1, per = \"1d\", by = \"all\" }"),
            "15:41 [route.free].by: \"all\" is not known here",
        ),
        (in_route("free = { requests = 1, per = \"1d\" }"), "15:8 [route.free].by: is missing; add by = \"payer\", or"),
        (
            in_route(&format!("{given_away}\nallow = [\"partners\"]")),
            "15:8 [[route]].free: serves whoever comes, and allow",
        ),
        (
            in_route("cap = { payer = \"$0\", per = \"1d\" }"),
            "15:17 [route.cap].payer: \"$0\" is no cap; write price = \"free\"",
        ),
        (
            in_route("cap = { payer = \"$1\", per = \"1500ms\" }"),
            "15:29 [route.cap].per: \"1500ms\" is not a whole number",
        ),
        (
            in_route("rate = { per_payer = \"20\" }"),
            "15:22 [route.rate].per_payer: \"20\" is no rate; write it like \"20 / 1s\"",
        ),
        (
            with("[limits]\nrate = { unpaid = \"0 / 1s\" }"),
            "16:19 [limits.rate].unpaid: 0 is not between 1 and 1000000",
        ),
        (
            with("[limits]\nmax_matched_body = \"17 MiB\""),
            "16:20 [limits].max_matched_body: \"17 MiB\" is not between 0 KiB and 16384 KiB",
        ),
        (
            own_price("payers = [\"partners\"]\nprice = \"$0.0021\""),
            "17:9 [[route.for]].price: is above the route's own",
        ),
        (own_price("price = \"free\""), "15:1 [[route.for]].payers: is missing; add payers = [\"partners\"]"),
        (own_price("payers = [\"partners\"]"), "15:1 [[route.for]].price: is missing; add price ="),
        (
            changed("\"$0.002\"", "\"free\"\ndeny = [\"x\"]"),
            "15:8 [[route]].deny: has no effect: the route is free, for",
        ),
        (
            changed("\"$0.002\"", "{ events = \"$1 / 1K\", most = \"$1\" }\nupgrade = [\"websocket\"]"),
            "15:11 [[route]].upgrade: its price counts events, and no events are seen in an upgraded connection; charge for",
        ),
        (
            in_route(
                "upgrade = [\"websocket\"]\n[[route.at]]\ndays = \"mon\"\nprice = { events = \"$1 / 1K\", most = \"$1\" }",
            ),
            "15:11 [[route]].upgrade: its price counts events",
        ),
        (
            in_route(
                "upgrade = [\"websocket\"]\n[[route.for]]\npayers = [\"partners\"]\nprice = { events = \"$1 / 1M\", most = \
                 \"$0.001\" }",
            ),
            "15:11 [[route]].upgrade: its price counts events",
        ),
        (
            changed(
                "\"$0.002\"",
                &format!("{{ time = \"$1 / 1h\", most = \"$1\" }}\nupgrade = [\"websocket\"]\n{given_away}"),
            ),
            "16:8 [[route]].free: one free request would be an upgraded connection that nothing is ever charged for; write",
        ),
        (with("[payers]\nx = [\"0x0\"]"), "16:5 [payers].x: \"0x0\" is not an address"),
        (with("[payers]\nx = []"), "16:5 [payers].x: names nobody; leave the list out"),
        (
            with("[payers]\nx = \"partners.txt\""),
            "16:5 [payers].x: expected a list of addresses, or a file; write [\"0x…\"]",
        ),
        (with("[payers]\nx = \"file:no-such-file\""), "16:5 [payers].x: \"no-such-file\" cannot be read: No such file"),
        (with("[payers]\nx = \"file:src\""), "16:5 [payers].x: \"src\" cannot be read: it is no file"),
        (
            with("[payers]\nx = \"file:Cargo.toml\""),
            "16:5 [payers].x: line 1 of \"Cargo.toml\" is not an address; write one",
        ),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in cases {
        let errors = errors(text);
        if errors.len() != 1 || !errors[0].starts_with(expected) {
            wrong.push((errors, *expected));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let upgrade = "upgrade = [\"websocket\"]";
    let by_time = "{ time = \"$1 / 1h\", most = \"$1\" }";
    for fine in [
        changed("\"$0.002\"", &format!("{by_time}\n{upgrade}\n{}", given_away.replace("network", "payer"))),
        changed("\"$0.002\"", &format!("{by_time}\n{given_away}")),
        in_route(&format!("{upgrade}\n{given_away}")),
        changed("\"$0.002\"", "{ events = \"$1 / 1K\", most = \"$1\" }"),
    ] {
        assert!(Config::parse(&fine, "c.toml").is_ok(), "{fine}: {:?}", errors(&fine));
    }
}

#[test]
fn a_route_that_costs_something_at_some_hours_is_a_paid_one() {
    let window = "[[route.at]]\ndays = \"mon-fri\"\nprice = \"$0.01\"\n";
    let lines = "deny = [\"partners\"]\ncap = { payer = \"$5\", per = \"1d\" }\nbazaar = true\n";
    let own = "[[route.for]]\npayers = [\"partners\"]\nprice = \"$0.01\"\n";
    let free = |more: &str| in_route(&format!("{lines}{more}")).replace("price = \"$0.002\"", "price = \"free\"");
    let route = Config::parse(&free(&(window.to_owned() + own)), "c.toml").unwrap().routes.remove(0);
    assert!(route.is_ever_paid() && route.rules.is_some());
    assert!(route.extensions.contains_key("bazaar") && route.extensions.contains_key("payment-identifier"));
    assert_eq!(errors(&free("")).len(), 2, "deny and cap");
    assert!(errors(&free(&(window.to_owned() + &own.replace("0.01", "0.02"))))[0].contains("is above the route's own"));
}

#[test]
fn of_two_routes_one_is_the_more_specific_or_a_third_decides() {
    let routes = |all: &[&str]| {
        let one = |lines: &&str| format!("[[route]]\npath = \"/v2\"\nprice = \"$1\"\n{lines}\n");
        with(&all.iter().map(one).collect::<String>())
    };
    let (body, query) = ("match = { body = { a = 1 } }", "match.query.b = \"x*\"");
    let decided: &[&[&str]] = &[
        &[body, ""],
        &[body, query, "match = { query = { b = \"x*\" }, body = { a = 1 } }"],
        &[body, "match = { body = { a = 2 } }", "match = { body = { a = \"*\" } }"],
        &["match.body.a = \"x*\"", "match.body.a = \"xy*\"", "match.body.a = \"xyz\"", "match.body.a = true"],
        &["host = \"a.b\"", "host = \"*.b\"", "host = \"*.a.b\"", ""],
        &["methods = [\"GET\"]\nmatch.query.b = \"x\"", body],
        &["methods = [\"GET\"]\nmatch.query.b = \"x\"", "methods = [\"POST\"]\nmatch.body.a = 1"],
    ];
    for all in decided {
        assert_eq!(errors(&routes(all)), [""; 0], "{all:?}");
    }
    let beside = "\"/v2\"; give one of them another path, other methods or other conditions, or remove it";
    let third = "\"/v2\"; add a route for requests of both: match = { query.b = \"x*\", body.a = 1 }";
    let get = ["methods = [\"GET\", \"PUT\"]\nmatch.query.b = \"x*\"", "methods = [\"GET\"]\nmatch.body.a = 1"];
    let decides = "match = { query.b = \"x*\", body.a = 1 }";
    let undecided: &[(&[&str], &str)] = &[
        (&[body, body], beside),
        (&["host = \"A.b\"", "host = \"a.B\""], beside),
        (&[body, query], third),
        (&[body, query, "match = { query = { b = \"xy*\" }, body = { a = 1 } }"], third),
        (&get, third),
        (&[get[0], get[1], decides], third),
    ];
    for (all, expected) in undecided {
        let errors = errors(&routes(all));
        assert!(!errors.is_empty() && errors.iter().all(|error| error.ends_with(expected)), "{errors:#?}\n{all:?}");
    }
    let settled = format!("methods = [\"GET\"]\n{decides}");
    assert_eq!(errors(&routes(&[get[0], get[1], &settled])), [""; 0]);
}

#[test]
fn a_list_of_payers_is_read_from_beside_the_config() {
    let folder = tempfile::tempdir().unwrap();
    let text = with("allow = [\"partners\"]\n[payers]\npartners = \"file:lists/partners.txt\"");
    std::fs::write(folder.path().join("peaje.toml"), text).unwrap();
    std::fs::create_dir(folder.path().join("lists")).unwrap();
    let list = folder.path().join("lists/partners.txt");
    std::fs::write(&list, "# who helps\n\n0x209693bc6afc0c5328ba36faf03c514ef312287c # us\n").unwrap();
    let config = Config::load(&folder.path().join("peaje.toml")).unwrap();
    let rules = config.routes[0].rules.as_ref().unwrap();
    assert_eq!((rules.allow.len(), rules.allow[0].members.len()), (1, 1));
    assert!(rules.admit(&"0x209693Bc6afc0C5328bA36FaF03C514EF312287C".parse().unwrap()));
    assert!(!rules.admit(&Address([1; 20])));
    assert_eq!(config.beside.iter().map(Seen::path).collect::<Vec<_>>(), [list]);
}

#[test]
fn every_limit_holds_at_its_boundary() {
    let fine = [
        with("[channel]\nwithdraw_delay = \"15m\""),
        with("[channel]\nwithdraw_delay = \"30d\""),
        with("[channel]\nmax_timeout = \"61s\""),
        with("[redeem]\ninterval = \"86399s\""),
        with("[redeem]\nmax_rows = 1"),
        changed("\"env:PEAJE_RPC\"", "[\"env:A\"]"),
        changed("\"env:PEAJE_RPC\"", "[\n  \"env:A\",\n  \"env:B\", \"env:C\", \"https://d\", \"http://e/x\",\n]"),
        in_chain("confirmations = 1"),
        in_chain("confirmations = 120"),
        in_chain("max_lag = \"off\""),
        in_chain("max_lag = \"1s\""),
        in_chain("max_lag = \"1h\""),
        with(&format!("{OWN_TOKEN}transfer = \"permit2\"")),
        with("[channel]\nwithdraw_margin = \"86399999ms\""),
        with("[channel]\nwithdraw_margin = \"0s\""),
        with("[server]\nquote_grace = \"0s\""),
        with("[server]\nquote_grace = \"1h\""),
        with("[log]\naccess = \"/var/log/peaje/access.jsonl\""),
        in_chain("poll = \"5m\"") + "[channel]\nwithdraw_delay = \"15m\"\n[redeem]\ninterval = \"1m\"\n",
        with("[channel]\nrefund_idle = \"1h\""),
        with("[channel]\nmax_wallet_exposure = \"$0\""),
        with("[deposits]\ninstant = \"$0.000001\"\nper_peer_per_hour = 1\nper_hour = 1"),
        with("[deposits]\nper_peer_per_hour = 1000000\nper_hour = 1000000"),
        with("[redeem]\nmax_unclaimed = \"$0.000001\"\nmax_unclaimed_per_channel = \"$1\""),
        with("[redeem]\nmax_unclaimed_per_payer = \"$1\"\nmax_age = \"1s\""),
        with("[redeem]\nmax_age = \"30d\"\ncoin_price = \"$0.000001\""),
        priced("0.01%"),
        priced("100%"),
        priced("100.00%"),
        with("[redeem]\nmax_fee = \"1 wei\"\nurgent_max_fee = \"1wei\""),
        with("[redeem]\nmax_fee = \"0.000000001 gwei\"\nurgent_max_fee = \"1000000000 gwei\""),
        with("[redeem]\nmax_fee = \"500 gwei\""),
        with("[redeem]\nbump_after = \"1s\"\nstuck_after = \"1m\"\nsweep_interval = \"1s\""),
        with("[redeem]\nbump_after = \"1h\"\nstuck_after = \"30d\"\nsweep_interval = \"1d\""),
        with("[facilitator]\nurl = \"https://f.example/base\"\ntimeout = \"1s\""),
        with("[facilitator]\nurl = \"http://127.0.0.1:4022\""),
        with("[facilitator]\nurl = \"http://localhost:4022\""),
        with("[facilitator]\nurl = \"http://[::1]:4022\""),
        changed("[[route]]", "gas_key = \"env:G\"\n[[route]]"),
        with("[redeem]\nmax_rows = 272"),
        with("[redeem]\nmax_rows = 0x64"),
        with("[admin]\nlisten = \"[::1]:9402\""),
        with("[admin]\nlisten = \"off\""),
        with("[server]\nlisten = \"0.0.0.0:80\"\npublic_url = \"https://a.example/base/\""),
        with("[cors]\nallow_origins = []"),
        with("[cors]\nallow_origins = [\"https://a.example\", \"http://localhost:3000\"]"),
        with("methods = [\"GET\", \"POST\", \"PROPFIND\", \"M-SEARCH\"]"),
        with("mime_type = \"text/plain; charset=utf-8\""),
        with("[route.extensions.bazaar]\ninfo = { a = [1, 2.5, true, 1979-05-27] }"),
        with("[[route]]\npath = \"/v1/*\"\nmethods = [\"GET\"]\nprice = \"free\""),
        changed("$0.002", "$0.000001"),
        changed("http://127.0.0.1:8080", "https://upstream.example/base"),
        changed("0x209693Bc6afc0C5328bA36FaF03C514EF312287C", "0x209693bc6afc0c5328ba36faf03c514ef312287c"),
        changed("network = \"base-sepolia\"", "chain_id = 84532"),
    ];
    for text in fine {
        assert_eq!(errors(&text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn a_chain_without_a_preset_is_described() {
    let text = changed("network = \"base-sepolia\"", "chain_id = 31337")
        + "[chain.token]\naddress = \"0x036CbD53842c5426634e7929541eC2318f3dCF7e\"\ndecimals = 2\ndomain_name = \
            \"Test\"\n\
           domain_version = \"1\"\n";
    assert_eq!(errors(&text).len(), 1, "a price of $0.002 is too fine for two decimal places");
    let config = Config::parse(&text.replace("$0.002", "$0.02"), "c.toml").unwrap();
    assert_eq!((config.chain.network, config.chain.chain_id), (None, 31337));
    assert_eq!(config.routes[0].price, Price::Fixed(Amount::new(2)));
}

/// The minimal config with another price, as TOML has it.
fn priced_at(price: &str) -> String {
    changed("\"$0.002\"", price)
}

#[test]
fn every_error_of_a_price_says_where_what_and_how_to_fix_it() {
    let cases: &[(String, &str)] = &[
        (
            priced_at("\"02 units\""),
            "14:9 [[route]].price: \"02 units\" is no number of units; units are whole, and written without a sign \
             or leading zeros: \"2000 units\"",
        ),
        (
            priced_at("\"units\""),
            "14:9 [[route]].price: \"units\" is no number of units; units are whole, and written without a sign or \
             leading zeros: \"2000 units\"",
        ),
        (
            priced_at("\"1.5 units\""),
            "14:9 [[route]].price: \"1.5 units\" is no number of units; units are whole, and written without a sign \
             or leading zeros: \"2000 units\"",
        ),
        (priced_at("\"0 units\""), "14:9 [[route]].price: \"0 units\" is no price; write \"free\" if you mean it"),
        (
            priced_at("\"340282366920938463463374607431768211456 units\""),
            "14:9 [[route]].price: \"340282366920938463463374607431768211456 units\" is more than there can be",
        ),
        (
            priced_at("\"$2.50 / 1M\""),
            "14:9 [[route]].price: \"$2.50 / 1M\" is a rate, and this is the price of a request; say what is \
             counted, as in price = { output_tokens = \"$10 / 1M\", most = \"$0.25\" }",
        ),
        (
            priced_at("[\"$1\"]"),
            "14:9 [[route]].price: expected a price, found a list; write it like \"$0.002\", or \"free\"",
        ),
        (
            priced_at("{}"),
            "14:9 [[route]].price: says no rate of anything that is counted; add one, such as response_bytes = \
             \"$0.01 / 1 MiB\", or write \"$0.002\" for a fixed price",
        ),
        (
            priced_at("{ most = \"$1\" }"),
            "14:9 [[route]].price: says no rate of anything that is counted; add one, such as response_bytes = \
             \"$0.01 / 1 MiB\", or write \"$0.002\" for a fixed price",
        ),
        (
            priced_at("{ base = \"$0.001\", most = \"$1\" }"),
            "14:9 [[route]].price: says no rate of anything that is counted; add one, such as response_bytes = \
             \"$0.01 / 1 MiB\", or write \"$0.002\" for a fixed price",
        ),
        (
            priced_at("{ events = \"$0.1\" }"),
            "14:9 [route.price].most: is missing; add most = \"$0.25\", the most a request may cost: the quote says \
             it and the agent signs for it",
        ),
        (
            priced_at("{ events = \"$0.1\", most = \"$0\" }"),
            "14:35 [route.price].most: nothing could be charged; write the most a request may cost, \"$0.25\" say",
        ),
        (
            priced_at("{ base = \"$2\", events = \"$0.1\", most = \"$1\" }"),
            "14:48 [route.price].most: is less than the base, which every charged request costs; raise it, or lower \
             the base",
        ),
        (
            priced_at("{ events = 3, most = \"$1\" }"),
            "14:20 [route.price].events: expected a rate, found the number 3; write it like \"$0.10 / 1K\"",
        ),
        (
            priced_at("{ events = \"cheap\", most = \"$1\" }"),
            "14:20 [route.price].events: \"cheap\" is not a price; write it like \"$0.002\"",
        ),
        (
            priced_at("{ events = \"0.1\", most = \"$1\" }"),
            "14:20 [route.price].events: \"0.1\" is not a price; write it with a dollar sign: \"$0.1\"",
        ),
        (
            priced_at("{ events = \"$0\", most = \"$1\" }"),
            "14:20 [route.price].events: costs nothing however much it is; leave it out",
        ),
        (
            priced_at("{ event = \"$0.1\", most = \"$1\" }"),
            "14:11 [route.price].event: unknown key; did you mean \"events\"?",
        ),
        (
            priced_at("{ input_tokens = \"$2.50\", most = \"$1\" }"),
            "14:26 [route.price].input_tokens: \"$2.50\" does not say for how much; write it like \"$2.50 / 1M\"",
        ),
        (
            priced_at("{ input_tokens = \"free\", most = \"$1\" }"),
            "14:26 [route.price].input_tokens: \"free\" is not a price; write it like \"$0.002\"",
        ),
        (
            priced_at("{ input_tokens = \"$2.50 / 1m\", most = \"$1\" }"),
            "14:26 [route.price].input_tokens: \"1m\" is not a count; write it like \"1M\", with K, M or B for \
             thousands, millions or billions",
        ),
        (
            priced_at("{ input_tokens = \"$2.50 / 0\", most = \"$1\" }"),
            "14:26 [route.price].input_tokens: \"0\" is nothing; write it like \"1M\", with K, M or B for thousands, \
             millions or billions",
        ),
        (
            priced_at("{ input_tokens = \"$2.50 /\", most = \"$1\" }"),
            "14:26 [route.price].input_tokens: \"\" is not a count; write it like \"1M\", with K, M or B for \
             thousands, millions or billions",
        ),
        (
            priced_at("{ input_tokens = \"$0.0000000000000000001 / 1\", most = \"$1\" }"),
            "14:26 [route.price].input_tokens: \"$0.0000000000000000001\" is too fine to be counted; write the price \
             of more of it, as in \"$2.50 / 1M\"",
        ),
        (
            priced_at("{ input_tokens = \"$0.000000000001 / 99999999999999\", most = \"$1\" }"),
            "14:26 [route.price].input_tokens: \"$0.000000000001\" is too fine to be counted; write the price of \
             more of it, as in \"$2.50 / 1M\"",
        ),
        (
            priced_at("{ input_tokens = \"$1 / 99999999999999999999\", most = \"$1\" }"),
            "14:26 [route.price].input_tokens: \"99999999999999999999\" is not a count; write it like \"1M\", with \
             K, M or B for thousands, millions or billions",
        ),
        (
            priced_at("{ response_bytes = \"$1 / 1 MB\", most = \"$1\" }"),
            "14:28 [route.price].response_bytes: \"1 MB\" is not a count; write it like \"1 MiB\", with KiB, MiB, \
             GiB or TiB",
        ),
        (
            priced_at("{ response_bytes = \"$1\", most = \"$1\" }"),
            "14:28 [route.price].response_bytes: \"$1\" does not say for how much; write it like \"$0.01 / 1 MiB\"",
        ),
        (
            priced_at("{ time = \"$1\", most = \"$1\" }"),
            "14:18 [route.price].time: \"$1\" does not say for how much; write it like \"$0.0005 / 1s\"",
        ),
        (
            priced_at("{ time = \"$1 / 1\", most = \"$1\" }"),
            "14:18 [route.price].time: \"1\" is no time: a duration needs a unit (ms, s, m, h, d), as in \"30s\"; \
             write it like \"10s\"",
        ),
        (
            priced_at("{ time = \"$1 / 0s\", most = \"$1\" }"),
            "14:18 [route.price].time: \"0s\" is nothing; write it like \"10s\"",
        ),
        (
            priced_at(
                "{ events = \"$1 / 18446744073709551557\", response_bytes = \"$1 / 18446744073709551533\", request_bytes = \"$1 / 3\", most = \"$1\" }",
            ),
            "14:9 [[route]].price: the rates make fractions of a unit that cannot be added up exactly; write the \
             prices of round numbers of things, such as 1K, 1M or 1 MiB",
        ),
        (
            priced_at("{ output_tokens = [], most = \"$1\" }"),
            "14:27 [route.price].output_tokens: has 0 tiers, and there may be 1 to 8; write them like [{ up_to = \
             \"1M\", price = \"$2.50 / 1M\" }, { price = \"$2.50 / 1M\" }]",
        ),
        (
            priced_at("{ output_tokens = [1], most = \"$1\" }"),
            "14:28 [route.price].output_tokens: expected a tier, found the number 1; write them like [{ up_to = \
             \"1M\", price = \"$2.50 / 1M\" }, { price = \"$2.50 / 1M\" }]",
        ),
        (
            priced_at("{ output_tokens = [{ up_to = \"1K\", price = \"$1 / 1M\" }], most = \"$1\" }"),
            "14:28 [route.price].output_tokens: is the last tier and has an end; leave up_to out there: what is \
             beyond it costs something too",
        ),
        (
            priced_at("{ output_tokens = [{ price = \"$1 / 1M\" }, { price = \"$1 / 1M\" }], most = \"$1\" }"),
            "14:28 [route.price].output_tokens: has no end and is not the last tier; add up_to",
        ),
        (
            priced_at(
                "{ output_tokens = [{ up_to = \"2K\", price = \"$1 / 1M\" }, { up_to = 2000, price = \"$1 / 1M\" }, { price = \"$1 / 1M\" }], most = \"$1\" }",
            ),
            "14:65 [route.price].output_tokens: ends where it begins, or before; write the tiers from the lowest \
             count to the highest",
        ),
        (
            priced_at(
                "{ output_tokens = [{ upto = \"2K\", price = \"$1 / 1M\" }, { price = \"$1 / 1M\" }], most = \"$1\" }",
            ),
            "14:37 [route.price].output_tokens.upto: unknown key; did you mean \"up_to\"?",
        ),
        (
            priced_at("{ output_tokens = [{ up_to = \"2K\" }, { price = \"$1 / 1M\" }], most = \"$1\" }"),
            "14:28 [route.price].output_tokens: has no price; add price = \"$2.50 / 1M\"",
        ),
        (
            priced_at("{ time = [{ up_to = 10, price = \"$1 / 1s\" }, { price = \"$1 / 1h\" }], most = \"$1\" }"),
            "14:29 [route.price].time.up_to: expected a count, found the number 10; write it like \"10s\"",
        ),
        (
            priced_at("{ reported = 3, most = \"$1\" }"),
            "14:22 [route.price].reported: expected a table of headers and their prices, found the number 3; write \
             it like reported = { x-units-used = \"$0.0002\" }",
        ),
        (
            priced_at("{ reported = {}, most = \"$1\" }"),
            "14:22 [route.price].reported: names no header; write it like reported = { x-units-used = \"$0.0002\" }",
        ),
        (
            priced_at("{ reported = { X-Units = \"$1\" }, most = \"$1\" }"),
            "14:34 [route.price].reported.X-Units: \"X-Units\" is not in lower case; write \"x-units\"; an upstream \
             may write it as it likes",
        ),
        (
            priced_at("{ reported = { \"x units\" = \"$1\" }, most = \"$1\" }"),
            "14:36 [route.price].reported.\"x units\": \"x units\" is not the name of a header; write it like \
             reported = { x-units-used = \"$0.0002\" }",
        ),
        (
            priced_at("{ reported = { x-units = 3 }, most = \"$1\" }"),
            "14:34 [route.price].reported.x-units: expected a rate, found the number 3; write it like \"$0.10 / 1K\"",
        ),
        (
            with("charge_on = \"10%\""),
            "15:13 [[route]].charge_on: expected a table of statuses and shares, found text; write it like charge_on \
             = { \"404\" = \"10%\", \"3xx\" = \"0%\" }",
        ),
        (
            with("charge_on = { 404 = 10 }"),
            "15:21 [[route]].charge_on.404: expected a percentage, found the number 10; write it like \"10%\"",
        ),
        (
            with("charge_on = { 404 = \"10\" }"),
            "15:21 [[route]].charge_on.404: \"10\" is not a percentage; write it like \"10%\" or \"0.25%\"",
        ),
        (
            with("charge_on = { 404 = \"101%\" }"),
            "15:21 [[route]].charge_on.404: \"101%\" is more than the price; write it like \"10%\" or \"0.25%\"",
        ),
        (
            with("charge_on = { 404 = \"0.001%\" }"),
            "15:21 [[route]].charge_on.404: \"0.001%\" is not a percentage of at most two decimal places; write it \
             like \"10%\" or \"0.25%\"",
        ),
        (
            with("charge_on = { 402 = \"10%\" }"),
            "15:21 [[route]].charge_on.402: 402 cannot be charged: an answer that only asks for credentials or a \
             payment is not paid; leave it out",
        ),
        (
            with("charge_on = { 5xx = \"10%\" }"),
            "15:21 [[route]].charge_on.5xx: 5xx cannot be charged: a server that failed is not paid; leave it out",
        ),
        (
            with("charge_on = { 503 = \"1%\" }"),
            "15:21 [[route]].charge_on.503: 503 cannot be charged: a server that failed is not paid; leave it out",
        ),
        (
            with("charge_on = { 1xx = \"1%\" }"),
            "15:21 [[route]].charge_on.1xx: \"1xx\" is not a status; an upgraded connection counts as 2xx",
        ),
        (
            with("charge_on = { 6xx = \"1%\" }"),
            "15:21 [[route]].charge_on.6xx: \"6xx\" is not a status; write one status, such as \"404\", or a class: \
             \"2xx\", \"3xx\", \"4xx\"",
        ),
        (
            with("charge_on = { 600 = \"1%\" }"),
            "15:21 [[route]].charge_on.600: 600 cannot be charged: no answer has this status; statuses are 100 to \
             599",
        ),
        (
            with("charge_on = { ok = \"1%\" }"),
            "15:20 [[route]].charge_on.ok: \"ok\" is not a status; write one status, such as \"404\", or a class: \
             \"2xx\", \"3xx\", \"4xx\"",
        ),
        (with("at = 3"), "15:6 [[route]].at: is a list of sections; write [[route.at]], with two brackets"),
        (
            with("[[route.at]]\nprice = \"$1\""),
            "15:1 [[route.at]].hours: says no time, so it would always be in force; add days = \"mon-fri\" or hours \
             = \"08:00-18:00\"",
        ),
        (
            with("[[route.at]]\ndays = \"mon-fri\""),
            "15:1 [[route.at]].price: is missing; add price = \"$0.001\", or \"free\"",
        ),
        (
            with("[[route.at]]\ndays = \"monday\"\nprice = \"$1\""),
            "16:8 [[route.at]].days: \"monday\" names no days; write them like \"mon-fri\" or \"sat,sun\": mon, tue, \
             wed, thu, fri, sat, sun",
        ),
        (
            with("[[route.at]]\nhours = \"8-18\"\nprice = \"$1\""),
            "16:9 [[route.at]].hours: \"8-18\" begins at no time; write them like \"08:00-18:00\", or \
             \"22:00-06:00\" over midnight; \"24:00\" is the end of a day",
        ),
        (
            with("[[route.at]]\nhours = \"24:00-06:00\"\nprice = \"$1\""),
            "16:9 [[route.at]].hours: \"24:00-06:00\" begins at no time; write them like \"08:00-18:00\", or \
             \"22:00-06:00\" over midnight; \"24:00\" is the end of a day",
        ),
        (
            with("[[route.at]]\nhours = \"08:00\"\nprice = \"$1\""),
            "16:9 [[route.at]].hours: \"08:00\" is no part of a day; write them like \"08:00-18:00\", or \
             \"22:00-06:00\" over midnight; \"24:00\" is the end of a day",
        ),
        (
            with("[[route.at]]\nhours = \"08:00-08:00\"\nprice = \"$1\""),
            "16:9 [[route.at]].hours: \"08:00-08:00\" ends when it begins; leave hours out for whole days",
        ),
        (
            with("[[route.at]]\ndays = \"sat\"\nzone = \"europe/madird\"\nprice = \"$1\""),
            "17:8 [[route.at]].zone: \"europe/madird\" is not a time zone; did you mean \"Europe/Madrid\"?",
        ),
        (
            with("[[route.at]]\ndays = \"sat\"\nzone = \"+02:00\"\nprice = \"$1\""),
            "17:8 [[route.at]].zone: \"+02:00\" is not a time zone; write it like \"Europe/Madrid\" or \"UTC\"",
        ),
        (
            with("[[route.at]]\ndays = \"sat\"\nprice = \"cheap\""),
            "17:9 [[route.at]].price: \"cheap\" is not a price; write it like \"$0.002\"",
        ),
        (
            with("[[route.at]]\ndays = \"sat\"\nprice = { events = \"$1\" }"),
            "17:9 [route.at.price].most: is missing; add most = \"$0.25\", the most a request may cost: the quote \
             says it and the agent signs for it",
        ),
        (
            with(
                "[[route.at]]\ndays = \"sat,sun\"\nprice = \"$1\"\n[[route.at]]\nhours = \"23:00-01:00\"\nprice = \"free\"",
            ),
            "18:1 [[route.at]]: holds at a time when the window in line 15 does; change the days or hours of one of \
             them: one price is in force at a time",
        ),
        (
            with(
                "[[route.at]]\ndays = \"sat,sun\"\nprice = \"$1\"\n[[route.at]]\nhours = \"23:00-01:00\"\nzone = \"Asia/Tokyo\"\nprice = \"free\"",
            ),
            "18:1 [[route.at]]: has another zone than the window in line 15; give all windows of a route the same \
             zone",
        ),
        (
            with("[[route.at]]\ndays = \"sat\"\nhour = \"23:00-01:00\"\nprice = \"$1\""),
            "17:1 [[route.at]].hour: unknown key; did you mean \"hours\"?",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(errors(text), [*expected], "{text}");
    }
}

#[test]
fn a_unit_is_a_price_only_where_there_is_one_token() {
    let other = "{ address = \"0x036Cbd53842c5426634E7929541EC2318F3dcf70\", decimals = 18, domain_name = \"X\", \
                 domain_version = \"1\" }";
    let two = |price: &str| in_chain(&format!("token = [\"usdc\", {other}]")).replace("\"$0.002\"", price);
    assert_eq!(errors(&two("\"$0.002\"")), Vec::<String>::new());
    let refused = |place: &str| {
        let problem = "\"2 units\" is another sum in each of the tokens; write it in dollars";
        format!("{place}: {problem}")
    };
    assert_eq!(errors(&two("\"2 units\"")), [refused("15:9 [[route]].price")]);
    let most = errors(&two("{ events = \"$1\", most = \"2 units\" }"));
    assert_eq!(most, [refused("15:33 [route.price].most")]);
    let rate = errors(&two("{ events = \"2 units / 1K\", most = \"$1\" }"));
    assert_eq!(rate, [refused("15:20 [route.price].events")]);
}

#[test]
fn every_limit_of_a_price_holds_at_its_boundary() {
    let tiers = |count: usize| {
        let bounded: String = (1..count).map(|number| format!("{{ up_to = {number}, price = \"$1\" }}, ")).collect();
        priced_at(&format!("{{ events = [{bounded}{{ price = \"$1\" }}], most = \"$1\" }}"))
    };
    let headers = |count: usize| {
        let prices: Vec<_> = (0..count).map(|number| format!("x-{number} = \"$1\"")).collect();
        priced_at(&format!("{{ reported = {{ {} }}, most = \"$1\" }}", prices.join(", ")))
    };
    let windows = |count: usize| {
        let window =
            |number| format!("[[route.at]]\nhours = \"00:{number:02}-00:{:02}\"\nprice = \"$1\"\n", number + 1);
        with(&(0..count).map(window).collect::<String>())
    };
    let named = |length: usize| {
        let name = "x".repeat(length);
        priced_at(&format!("{{ reported = {{ {name} = \"$1\" }}, most = \"$1\" }}"))
    };
    // What a sentence has beside the name.
    let around = "$1.00 for each of ; at most $1.00, also if the usage is not reported; the sum is rounded up to a whole unit \
                  of the token";
    let fine = [
        tiers(1),
        tiers(8),
        headers(8),
        windows(32),
        named(1_000 - around.len()),
        priced_at("{ events = \"$0.000000000000000001\", most = \"1 unit\" }"),
        priced_at("{ events = \"1 unit\", base = \"$1\", most = \"$1\" }"),
        priced_at("{ time = \"$1 / 1ms\", most = \"$1\" }"),
        priced_at("{ input_tokens = \"$1 / 18446744073709551615\", most = \"$1\" }"),
        priced_at("{ input_tokens = \"$1 / 1M\", cached_input_tokens = \"$0 / 1M\", most = \"$1\" }"),
        priced_at("\"340282366920938463463374607431768211455 units\""),
        with("charge_on = {}"),
        with("charge_on = { 404 = \"0.01%\", 4xx = \"100%\", 5xx = \"0%\", 402 = \"0%\", 101 = \"50%\" }"),
        with("[[route.at]]\nhours = \"23:59-24:00\"\nprice = \"free\""),
        with(
            "[[route.at]]\nhours = \"00:00-23:59\"\nprice = \"free\"\n[[route.at]]\nhours = \"23:59-00:00\"\nprice = \"$1\"",
        ),
        with(
            "[[route.at]]\ndays = \"mon, wed-fri\"\nzone = \"europe/MADRID\"\nprice = { events = \"$1\", most = \"$1\" }",
        ),
    ];
    for text in fine {
        assert_eq!(errors(&text), Vec::<String>::new(), "{text}");
    }
    let beyond = [
        tiers(9),
        headers(9),
        windows(33),
        named(1_001 - around.len()),
        priced_at("{ events = \"$0.0000000000000000001\", most = \"$1\" }"),
        priced_at("{ events = \"1 unit\", base = \"$1.000001\", most = \"$1\" }"),
        priced_at("{ input_tokens = \"$1 / 18446744073709551616\", most = \"$1\" }"),
        with("charge_on = { 404 = \"100.01%\" }"),
        with("charge_on = { 99 = \"1%\" }"),
        with("[[route.at]]\nhours = \"23:59-24:01\"\nprice = \"free\""),
        with("[[route.at]]\nhours = \"23:60-24:00\"\nprice = \"free\""),
    ];
    for text in beyond {
        assert_eq!(errors(&text).len(), 1, "{text}: {:?}", errors(&text));
    }
}

#[test]
fn a_price_means_what_it_says() {
    let route = |text: &str| Config::parse(text, "c.toml").unwrap().routes.swap_remove(0);
    let tier = |up_to, price, per| Tier { up_to, price: Amount::new(price), per };
    let rates = "{ base = \"$0.001\", request_bytes = \"$1 / 1 GiB\", response_bytes = \"3 units / 4096\", \
                 time = \"$0.03 / 1m\", events = \"$0.0001\", input_tokens = \"$2.50 / 1M\", \
                 cached_input_tokens = \"$0.0000000025 / 1\", cache_write_tokens = \"$3.125/1M\", \
                 output_tokens = [{ up_to = \"10K\", price = \"$10 / 1M\" }, { up_to = 20000, price = \"$9 / 1B\" }, \
                 { price = \"1 unit / 1\" }], reported = { x-a = \"$0.50 / 1K\", x-b = \"2 units\" }, most = \"$0.25\" }";
    let Price::Metered(tariff) = route(&priced_at(rates)).price else { panic!("a table is a tariff") };
    assert_eq!((tariff.base, tariff.most), (Amount::new(1_000), Amount::new(250_000)));
    let expected = [
        (Unit::RequestBytes, vec![tier(None, 1_000_000, 1 << 30)]),
        (Unit::ResponseBytes, vec![tier(None, 3, 4_096)]),
        (Unit::Milliseconds, vec![tier(None, 30_000, 60_000)]),
        (Unit::Events, vec![tier(None, 100, 1)]),
        (Unit::InputTokens, vec![tier(None, 2_500_000, 1_000_000)]),
        (Unit::CachedInputTokens, vec![tier(None, 25, 10_000)]),
        (Unit::CacheWriteTokens, vec![tier(None, 3_125_000, 1_000_000)]),
        (
            Unit::OutputTokens,
            vec![
                tier(Some(10_000), 10_000_000, 1_000_000),
                tier(Some(20_000), 9_000_000, 1_000_000_000),
                tier(None, 1, 1),
            ],
        ),
        (Unit::Reported("x-a".into()), vec![tier(None, 500_000, 1_000)]),
        (Unit::Reported("x-b".into()), vec![tier(None, 2, 1)]),
    ];
    let expected = expected.map(|(unit, tiers)| Rate { unit, tiers });
    assert_eq!(tariff.rates, expected);
    assert_eq!(route(&priced_at("\"2000 units\"")).price, Price::Fixed(Amount::new(2_000)));

    let plain = route(MINIMAL);
    assert!(plain.schedule.is_empty() && plain.status_rule == StatusRule::default());
    let rule = route(&with("charge_on = { 404 = \"12.5%\", 3xx = \"0%\" }")).status_rule;
    assert_eq!(rule.to_string(), "2xx 100%, 3xx 0%, 4xx 0%, 404 12.5%");
    let schedule = route(&with(
        "[[route.at]]\ndays = \"fri-mon\"\nprice = \"free\"\n[[route.at]]\ndays = \"tue,wed\"\n\
         hours = \"22:00-06:00\"\nzone = \"UTC\"\nprice = \"$1\"",
    ))
    .schedule;
    let written: Vec<_> =
        schedule.windows().iter().map(|(window, price)| (window.to_string(), price.clone())).collect();
    let dollar = Price::Fixed(Amount::new(1_000_000));
    let expected = [("mon,fri-sun 00:00-24:00 UTC", Price::Free), ("tue,wed 22:00-06:00 UTC", dollar)];
    assert_eq!(written, expected.map(|(window, price)| (window.to_owned(), price)));
}

/// The minimal config with several tokens, in line 7.
fn with_tokens(list: &str) -> String {
    in_chain(&format!("token = [{list}]"))
}

/// A token in a list, with so many decimal places.
fn listed(byte: u8, decimals: u8) -> String {
    let address = format!("0x{}", format!("{byte:02x}").repeat(20));
    format!("{{address = \"{address}\", decimals = {decimals}, domain_name = \"T{byte}\", domain_version = \"1\"}}")
}

#[test]
fn several_tokens_are_taken_in_the_order_they_are_named_in() {
    let decimals = |text: &str| {
        let chain = Config::parse(text, "c.toml").unwrap().chain;
        chain.tokens().map(|token| (token.domain_name.clone(), token.decimals)).collect::<Vec<_>>()
    };
    let named =
        |names: &[(&str, u8)]| names.iter().map(|(name, places)| ((*name).to_owned(), *places)).collect::<Vec<_>>();
    assert_eq!(decimals(MINIMAL), named(&[("USDC", 6)]));
    assert_eq!(decimals(&with_tokens("\"usdc\"")), named(&[("USDC", 6)]));
    let own = listed(0x11, 18);
    assert_eq!(decimals(&with_tokens(&format!("\"usdc\", {own}"))), named(&[("USDC", 6), ("T17", 18)]));
    assert_eq!(decimals(&with_tokens(&format!("{own}, \"USDC\""))), named(&[("T17", 18), ("USDC", 6)]));
    let tables = with(
        &OWN_TOKEN
            .replace("[chain.token]", "[[chain.token]]")
            .replace("0x036CbD53842c5426634e7929541eC2318f3dCF7e", "0x1111111111111111111111111111111111111111"),
    );
    let two = format!("{tables}{}", OWN_TOKEN.replace("[chain.token]", "[[chain.token]]").replace("\"X\"", "\"Y\""));
    assert_eq!(decimals(&two), named(&[("X", 6), ("Y", 6)]));
}

#[test]
fn what_a_token_cannot_express_is_an_error_that_names_it() {
    let coarse = format!("\"usdc\", {}", listed(0x11, 2));
    let fine = format!("\"usdc\", {}", listed(0x11, 18));
    let twice = format!("{}, \"usdc\", {}", listed(0x11, 2), listed(0x11, 6));
    let many: Vec<_> = (1..=9).map(|byte| listed(byte, 6)).collect();
    let cases = [
        (
            with_tokens(&coarse),
            "15:9 [[route]].price: $0.002 is finer than the token T17 at 0x1111111111111111111111111111111111111111, \
             which has 2 decimal places; use a multiple of $0.01, or leave that token out",
        ),
        (
            with_tokens(&coarse).replace("$0.002", "$0.02") + "[channel]\nmin_deposit = \"$0.155\"\n",
            "17:15 [channel].min_deposit: $0.155 is finer than the token T17 at \
             0x1111111111111111111111111111111111111111, which has 2 decimal places; use a multiple of $0.01, or leave \
             that token out",
        ),
        (
            with_tokens(&fine) + "[deposits]\ninstant = \"$1\"\n",
            "17:11 [deposits].instant: cannot be said for tokens of one chain with different decimal places; leave instant out, or \
             take tokens of one kind",
        ),
        (with_tokens(""), "7:9 [chain].token: names no token; add one, as in [\"usdc\"]"),
        (
            with_tokens("\"usdc\", 7"),
            "7:18 [chain].token: expected a token's symbol, found the number 7; write \"usdc\", or a [chain.token] table \
             with address, decimals, domain_name and domain_version",
        ),
        (
            with_tokens(&many.join(", ")),
            "7:9 [chain].token: 9 tokens are more than 8; keep those that agents have: each makes every quote longer",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(errors(&text), [expected], "{text}");
    }
    // The prices of some hours and of some payers stand elsewhere.
    let cheap = |more: &str| {
        in_route(more).replace("$0.002", "$0.02").replace("[receiver]", &format!("token = [{coarse}]\n[receiver]"))
    };
    for (table, lines) in [("at", "days = \"mon\""), ("for", "payers = [\"partners\"]")] {
        let found = errors(&cheap(&format!("[[route.{table}]]\n{lines}\nprice = \"$0.015\"")));
        let expected = format!("18:9 [[route.{table}]].price: $0.015 is finer than the token T17");
        assert!(found.len() == 1 && found[0].starts_with(&expected), "{found:?}");
    }
    let twice = errors(&with_tokens(&twice).replace("$0.002", "$0.02"));
    assert_eq!(twice.len(), 1, "{twice:?}");
    assert!(twice[0].contains("is named twice"), "{twice:?}");
    for fine in [
        with_tokens(&fine) + "[deposits]\ninstant = \"$0\"\n",
        with_tokens(&coarse).replace("$0.002", "$0.02"),
        with_tokens(&coarse).replace("$0.002", "$0.02") + "[channel]\nmin_deposit = \"$0.15\"\n",
        with_tokens(&coarse).replace("$0.002", "free"),
    ] {
        assert_eq!(errors(&fine), Vec::<String>::new(), "{fine}");
    }
    // The receiver must be none of them, and a facilitator relays deposits by authorization only.
    let receiver = with_tokens(&format!("\"usdc\", {}", listed(0x11, 6)))
        .replace("0x209693Bc6afc0C5328bA36FaF03C514EF312287C", "0x1111111111111111111111111111111111111111");
    assert!(errors(&receiver)[0].contains("this is the token's contract"), "{:?}", errors(&receiver));
    let permit2 = listed(0x11, 6).replace('}', ", transfer = \"permit2\"}");
    let facilitated = with_tokens(&format!("\"usdc\", {permit2}")) + "[facilitator]\nurl = \"https://f.example\"\n";
    assert!(errors(&facilitated)[0].contains("cannot be used with transfer"), "{:?}", errors(&facilitated));
}

/// The minimal config with another chain behind its own.
fn with_chain(lines: &str) -> String {
    changed("[chain]", "[[chain]]").replace("[receiver]", &format!("[[chain]]\n{lines}\n[receiver]"))
}

#[test]
fn several_chains_have_what_is_theirs_and_share_the_rest() {
    let polygon = "network = \"polygon\"\nrpc = \"env:POLYGON\"";
    let text = with_chain(polygon) + "[redeem]\ncoin_price = \"$3000\"\nmax_fee = \"7 gwei\"\n";
    let config = Config::parse(&text, "c.toml").unwrap();
    let chains =
        |config: &Config| config.of_each_chain().iter().map(|config| config.chain.chain_id).collect::<Vec<_>>();
    assert_eq!(chains(&config), [84_532, 137]);
    let each = config.of_each_chain();
    let books = |config: &Config| config.store.directory.display().to_string();
    assert_eq!((books(&each[0]), books(&each[1])), ("books".to_owned(), "books/polygon".to_owned()));
    let fees = |config: &Config| (config.redeem.max_fee_wei, config.redeem.coin_price.map(Amount::units));
    assert_eq!(fees(&each[0]), (7_000_000_000, Some(3_000_000_000)));
    assert_eq!(fees(&each[1]), (500_000_000_000, None), "what gas costs on one chain says nothing of another");
    assert!(each.iter().all(|config| config.receiver.gas_key == each[0].receiver.gas_key));
    let policy = config.policy(Address([7; 20])).unwrap();
    let networks: Vec<_> = policy.tenders().iter().map(|tender| tender.network.as_str()).collect();
    assert_eq!(networks, ["eip155:84532", "eip155:137"]);

    let own = "gas_key = \"env:GAS_2\"\nbooks = \"other\"\ncoin_price = \"$0.5\"\nmax_fee = \"90 gwei\"";
    let config = Config::parse(&with_chain(&format!("{polygon}\n{own}")), "c.toml").unwrap();
    let second = config.of_each_chain().remove(1);
    assert_eq!((books(&second), fees(&second)), ("other".to_owned(), (90_000_000_000, Some(500_000))));
    assert_eq!(second.redeem.urgent_max_fee_wei, 5_000_000_000_000, "ten times the network's, which is more than 90");
    assert_eq!(second.receiver.gas_key.as_str(), "env:GAS_2");
    assert_ne!(config.of_each_chain()[0].receiver.gas_key, second.receiver.gas_key);
    // One chain in two brackets is one chain.
    assert_eq!(chains(&Config::parse(&changed("[chain]", "[[chain]]"), "c.toml").unwrap()), [84_532]);
}

#[test]
fn an_urgent_fee_that_is_said_is_the_one_that_is_paid() {
    let gwei = |text: &str| -> Vec<_> {
        let each = Config::parse(text, "c.toml").unwrap_or_else(|errors| panic!("{text}\n{errors}")).of_each_chain();
        each.iter().map(|chain| chain.redeem.urgent_max_fee_wei / 1_000_000_000).collect()
    };
    let own = |lines: &str| in_chain(lines).replace("[chain]", "[[chain]]");
    let said = "[redeem]\nurgent_max_fee = \"200 gwei\"\n";
    assert_eq!(gwei(&(own("max_fee = \"100 gwei\"") + said)), [200]);
    assert_eq!(gwei(&(own("max_fee = \"1 gwei\"") + said)), [200]);
    assert_eq!(gwei(&(own("max_fee = \"200 gwei\"") + said)), [200]);
    assert_eq!(gwei(&(own("urgent_max_fee = \"60 gwei\"") + said)), [60], "the chain's own goes before");
    assert_eq!(gwei(&own("max_fee = \"1 gwei\"")), [500], "a low fee is no reason to lose money");
    assert_eq!(gwei(&own("max_fee = \"100 gwei\"")), [1_000]);
    let base = "network = \"base\"\nrpc = \"env:B\"\n";
    assert_eq!(gwei(&(with_chain(base) + said)), [200, 200]);
    assert_eq!(gwei(&(with_chain(&format!("{base}urgent_max_fee = \"70 gwei\"")) + said)), [200, 70]);
    let low = errors(&(own("max_fee = \"201 gwei\"") + said));
    let told = "7:11 [chain].urgent_max_fee: 200 gwei of [redeem].urgent_max_fee is less than what is paid on base-sepolia \
                without haste, 201 gwei; give this chain an urgent_max_fee of its own, or lower its max_fee";
    assert_eq!(low, [told]);
    let polygon = "network = \"polygon\"\nrpc = \"env:B\"\n";
    let low = errors(&(with_chain(polygon) + said));
    assert!(
        low.len() == 1 && low[0].starts_with("9:11 ") && low[0].contains("on polygon without haste, 500 gwei"),
        "{low:?}"
    );
    let low = errors(&own("max_fee = \"60 gwei\"\nurgent_max_fee = \"59 gwei\""));
    assert_eq!(
        low,
        [
            "8:18 [chain].urgent_max_fee: 59 gwei is less than max_fee, 60 gwei; raise it, or lower max_fee: what is urgent must not bid less"
        ]
    );
}

#[test]
fn a_coin_price_of_the_chain_is_one_for_its_gas_share() {
    let share = "[redeem]\nmax_gas_share = \"10%\"\n";
    let own = in_chain("coin_price = \"$3000\"").replace("[chain]", "[[chain]]");
    let config = Config::parse(&(own + share), "c.toml").unwrap().of_each_chain().remove(0);
    assert_eq!(
        (config.redeem.max_gas_share_bps, config.redeem.coin_price),
        (Some(1_000), Some(Amount::new(3_000_000_000)))
    );
    assert!(errors(&with(share))[0].contains("says nothing while nobody knows"));
}

#[test]
fn several_chains_are_checked_against_each_other() {
    let again = errors(&with_chain("network = \"base-sepolia\"\nrpc = \"env:B\""));
    assert_eq!(again, ["8:1 [chain]: this chain is there already; keep one of the two"], "{again:?}");
    let coarse = format!("chain_id = 7\nrpc = \"env:B\"\ntoken = {}", listed(0x11, 2));
    let price = errors(&with_chain(&coarse));
    assert_eq!(price.len(), 1, "{price:?}");
    assert!(price[0].contains("[[route]].price: $0.002 is finer than the token T17"), "{price:?}");
    let missing = errors(&with_chain("network = \"polygon\""));
    assert!(missing.len() == 1 && missing[0].contains("[chain].rpc: is missing"), "{missing:?}");
    let slow = errors(
        &with_chain("network = \"polygon\"\nrpc = \"env:B\"\npoll = \"50m\"")
            .replace("[receiver]", "[channel]\nwithdraw_delay = \"1h\"\n[receiver]"),
    );
    assert!(slow.iter().any(|error| error.contains("too short for [chain].poll")), "{slow:?}");
    let listed: Vec<_> = (1..=8).map(|byte| listed(byte, 6)).collect();
    let many = errors(&with_chain(&format!("chain_id = 7\nrpc = \"env:B\"\ntoken = [{}]", listed.join(", "))));
    assert!(many.len() == 1 && many[0].contains("9 tokens on all chains are more than 8"), "{many:?}");
}

#[test]
fn what_is_said_is_what_is_meant() {
    let config = |text: &str| Config::parse(text, "c.toml").unwrap();
    let rpc = config(&changed("\"env:PEAJE_RPC\"", "[\"env:B\", \"https://a.example/s3cret\"]")).chain.rpc;
    assert_eq!(rpc.iter().map(ToString::to_string).collect::<Vec<_>>(), ["env:B", "https://a.example/…"]);
    let redeem = config(&with(
        "[redeem]\nmax_unclaimed = \"$5\"\nmax_unclaimed_per_channel = \"$0.5\"\nmax_unclaimed_per_payer = \"$2\"\n\
         max_age = \"1h\"\nmax_gas_share = \"0.25%\"\ncoin_price = \"$3012.5\"\nmax_fee = \"0.05 gwei\"\n\
         urgent_max_fee = \"70000000 wei\"\nbump_after = \"12s\"\nstuck_after = \"2h\"\nsweep_interval = \"5m\"",
    ))
    .redeem;
    let sums = [redeem.max_unclaimed, redeem.max_unclaimed_per_channel, redeem.max_unclaimed_per_payer];
    assert_eq!(sums, [5_000_000, 500_000, 2_000_000].map(|units| Some(Amount::new(units))));
    assert_eq!((redeem.max_age, redeem.max_gas_share_bps), (Some(Duration::from_secs(3_600)), Some(25)));
    assert_eq!(redeem.coin_price, Some(Amount::new(3_012_500_000)));
    assert_eq!((redeem.max_fee_wei, redeem.urgent_max_fee_wei), (50_000_000, 70_000_000));
    let times = [redeem.bump_after, redeem.stuck_after, redeem.sweep_interval];
    assert_eq!(times, [12, 7_200, 300].map(Duration::from_secs));
    let token = config(&with(&format!("{OWN_TOKEN}transfer = \"permit2\""))).chain.token;
    assert_eq!((token.transfer, token.sponsored), (Transfer::Permit2, true));
    for sponsored in [true, false] {
        let lines = format!("{OWN_TOKEN}transfer = \"permit2\"\nsponsored = {sponsored}");
        assert_eq!(config(&with(&lines)).chain.token.sponsored, sponsored);
    }
    let deposits = config(&with("[deposits]\ninstant = \"$2\"\nper_peer_per_hour = 3\nper_hour = 4")).deposits;
    assert_eq!(deposits, Deposits { instant: Amount::new(2_000_000), per_peer_per_hour: 3, per_hour: 4 });
}

#[test]
fn confirmations_are_those_of_the_network_unless_said() {
    let of = |text: String| Config::parse(&text, "c.toml").unwrap().chain.confirmations;
    for (network, confirmations) in [("base", 1), ("arbitrum", 1), ("polygon", 8)] {
        assert_eq!(of(changed("base-sepolia", network)), confirmations, "{network}");
    }
    let unknown = changed("network = \"base-sepolia\"", "chain_id = 31337") + OWN_TOKEN;
    assert_eq!(of(unknown), 1);
    assert_eq!(of(in_chain("confirmations = 3").replace("base-sepolia", "polygon")), 3);
}

#[test]
fn fees_are_those_of_the_network_unless_said() {
    let of = |text: String| {
        let redeem = Config::parse(&text, "c.toml").unwrap().redeem;
        [redeem.max_fee_wei, redeem.urgent_max_fee_wei].map(|wei| wei / 1_000_000_000)
    };
    for (network, fees) in [("base", [50, 500]), ("arbitrum", [50, 500]), ("polygon", [500, 5_000])] {
        assert_eq!(of(changed("base-sepolia", network)), fees, "{network}");
    }
    let unknown = changed("network = \"base-sepolia\"", "chain_id = 31337") + OWN_TOKEN;
    assert_eq!(of(unknown), [50, 500]);
    let said = with("[redeem]\nmax_fee = \"7 gwei\"").replace("base-sepolia", "polygon");
    assert_eq!(of(said), [7, 5_000]);
}

#[test]
fn lag_is_watched_where_the_chain_is_not_on_this_machine() {
    let of = |text: &str| Config::parse(text, "c.toml").unwrap().chain.max_lag;
    let minute = Some(Duration::from_secs(60));
    assert_eq!((of(MINIMAL).limit(false), of(MINIMAL).limit(true)), (minute, None));
    let off = of(&in_chain("max_lag = \"off\""));
    assert_eq!((off.limit(false), off.limit(true)), (None, None));
    let said = of(&in_chain("max_lag = \"1m\""));
    assert_eq!((said.limit(false), said.limit(true)), (minute, minute));
}

#[test]
fn all_errors_are_found_at_once_and_none_that_follows_from_another() {
    let text = changed("base-sepolia", "bas").replace("$0.002", "0").replace("/v1/*", "v1") + "colour = \"red\"\n";
    let found = errors(&text);
    let places: Vec<_> = found.iter().map(|error| error.split(' ').next().unwrap()).collect();
    assert_eq!(places, ["5:11", "13:8", "14:9", "15:1"]);
    let nothing = errors("");
    assert_eq!(nothing.len(), 6, "{nothing:#?}");
    assert_eq!(errors("chain = 1\nreceiver = 2\nupstream = 3\nroute = 4").len(), 4);
}

#[test]
fn an_error_shows_its_line() {
    let shown = Config::parse(&changed("$0.002", "0.002"), "c.toml").unwrap_err().to_string();
    let expected = "error: c.toml:14:9 [[route]].price: \"0.002\" is not a price; write it with a dollar sign: \
        \"$0.002\"\n  \
                    14 | price = \"0.002\"\n     |         ^^^^^^^\n1 error in c.toml";
    assert_eq!(shown, expected);
}

#[test]
fn an_error_can_be_read_by_programs() {
    let errors = Config::parse(&changed("$0.002", "0.002"), "c.toml").unwrap_err();
    let json = errors.to_json();
    assert_eq!(json[0]["line"], 14);
    assert_eq!(json[0]["column"], 9);
    assert_eq!(json[0]["key"], "[[route]].price");
    assert_eq!(json[0]["fix"], "write it with a dollar sign: \"$0.002\"");
    assert!(!errors.render(false).contains('\u{1b}') && errors.render(true).contains('\u{1b}'));
}

#[test]
fn columns_count_characters() {
    let text = "[log]\nlevel = \"é\"\r\n\"ü\" = 1";
    let found = errors(text);
    assert!(found.iter().any(|error| error.starts_with("2:9 [log].level")), "{found:#?}");
    assert!(found.iter().any(|error| error.starts_with("3:1 [log].\"ü\"")), "{found:#?}");
}

#[test]
fn no_secret_is_shown() {
    let prefixed = format!("0x{KEY}");
    let texts = [
        changed("env:PEAJE_AUTHORIZER_KEY", KEY),
        changed("env:PEAJE_AUTHORIZER_KEY", &prefixed),
        changed("\"env:PEAJE_AUTHORIZER_KEY\"", &prefixed),
        changed("\"env:PEAJE_AUTHORIZER_KEY\"", KEY),
        changed("\"env:PEAJE_AUTHORIZER_KEY\"", &format!("\"{KEY}")),
        changed("env:PEAJE_AUTHORIZER_KEY", &format!("hex:{KEY}")),
        changed("env:PEAJE_AUTHORIZER_KEY", &KEY[1..]),
        changed("env:PEAJE_AUTHORIZER_KEY", &format!("env:{KEY}")).replace("pay_to", "payto"),
        with(&format!("secret = \"{KEY}\"")),
        with(&format!("description = \"{KEY}")),
        with(&format!("{KEY} = 1")),
        with(&format!("name = [\"{KEY}\"]")),
        changed("env:PEAJE_RPC", "wss://node.example/s3cret"),
        changed("\"env:PEAJE_RPC\"", "https://node.example/s3cret"),
        changed("\"env:PEAJE_RPC\"", "\"https://node.example/s3cret"),
        changed("rpc = \"env:PEAJE_RPC\"", "rcp = \"https://node.example/s3cret\""),
        changed("rpc = \"env:PEAJE_RPC\"", "chian = { rcp = \"https://node.example/s3cret\" }"),
        changed("http://127.0.0.1:8080", "http://me:s3cret@host/"),
        changed("\"env:PEAJE_RPC\"", "[\n \"env:A\",\n \"node.example/s3cret\",\n]"),
        changed("\"env:PEAJE_RPC\"", "[\n \"https://node.example/s3cret\",\n \"https://node.example/s3cret\",\n]"),
        with("[facilitator]\nurl = \"https://me:s3cret@f.example\""),
        with("[facilitator]\nurl = \"https://f.example/?key=s3cret\""),
    ];
    for text in texts {
        let errors = Config::parse(&text, "c.toml").unwrap_err();
        let shown = format!("{errors} {} {errors:?}", errors.to_json());
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(!shown.contains(&KEY[1..60]), "{shown}");
    }
    let config = Config::parse(&changed("env:PEAJE_RPC", "https://node.example/s3cret"), "c.toml").unwrap();
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn a_file_that_cannot_be_read_is_one_error() {
    let missing = Config::load("no/such/file.toml".as_ref()).unwrap_err();
    assert!(missing.to_string().contains("no/such/file.toml cannot be read"), "{missing}");
    assert_eq!(missing.errors().len(), 1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.toml");
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(Config::load(&path).unwrap_err().to_string().contains("larger than"));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(Config::load(&path).is_err());
    std::fs::write(&path, MINIMAL).unwrap();
    assert!(Config::load(&path).is_ok());
}

#[test]
fn a_hopeless_file_is_refused_in_good_time() {
    for text in ["x\n".repeat(200_000), "[".repeat(400_000), "a = 1\n".repeat(100_000), "[[route]]\n".repeat(50_000)] {
        let errors = Config::parse(&text, "c.toml").unwrap_err();
        assert!(errors.errors().len() <= 100);
    }
}

/// The text, or nothing worse than errors that can all be shown.
fn survives(text: &str) {
    if let Err(errors) = Config::parse(text, "c.toml") {
        assert!(!errors.errors().is_empty());
        let _ = (errors.render(true), errors.to_json());
    }
}

/// Where to change a text, how many characters to take out, and what to put there.
fn change() -> impl Strategy<Value = (prop::sample::Index, usize, String)> {
    (any::<prop::sample::Index>(), 0usize..40, "[\\PC\n\t\r\u{0}\"=\\[\\]{}.0-9]{0,12}")
}

fn keys_of_sections() -> Vec<(String, &'static str)> {
    known_keys().into_iter().filter(|(heading, _)| !heading.is_empty()).collect()
}

/// Something TOML can hold, often of the wrong kind.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "\"[a-z0-9$:/.*+-]{0,20}\"",
        "-?[0-9]{1,30}",
        "[0-9]{1,9}\\.[0-9]{1,30}",
        "\\[\"\\*?[a-z:/]{0,9}\"(, \"[A-Z]{0,5}\")?\\]",
        prop::sample::select(vec!["true", "{ a = 1 }", "\"$0.1\"", "1979-05-27"]).prop_map(str::to_owned),
    ]
}

proptest! {
    #[test]
    fn any_text_is_accepted_or_refused(text in "\\PC*") {
        survives(&text);
    }

    #[test]
    fn any_bytes_are_accepted_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        survives(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_change_of_the_example_is_accepted_or_refused(
        changes in proptest::collection::vec(change(), 1..6)
    ) {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (at, length, new) in changes {
            let start = at.index(text.len());
            let end = (start + length).min(text.len());
            text.splice(start..end, new.chars());
        }
        survives(&text.into_iter().collect::<String>());
    }

    #[test]
    fn any_value_of_any_key_is_accepted_or_refused(
        key in prop::sample::select(keys_of_sections()),
        value in value(),
    ) {
        let (heading, name) = key;
        survives(&format!("{heading}\n{name} = {value}\n"));
        survives(&format!("{MINIMAL}{heading}\n{name} = {value}\n"));
    }
}

#[test]
fn a_key_reference_is_what_the_chain_can_read() {
    use peaje::chain::KeyRef;
    use peaje::config::KeyReference;

    let prefixed = format!("file:0x{KEY}");
    let texts = [
        "env:A",
        "env:1",
        "env:",
        "env:A B",
        "file:/x",
        "file:",
        "keystore:k.json",
        "keystore:",
        "dev:gas",
        "dev:agent",
        "dev:9",
        "dev:10",
        "dev:x",
        "dev:",
        "",
        "x",
        "vault:y",
        ":",
        "ENV:A",
        KEY,
        &prefixed,
    ];
    for text in texts {
        assert_eq!(text.parse::<KeyReference>().is_ok(), text.parse::<KeyRef>().is_ok(), "{text}");
    }
    for (name, _) in peaje::chain::DEV_KEY_NAMES {
        assert!(format!("dev:{name}").parse::<KeyReference>().is_ok(), "{name}");
    }
}

#[test]
fn the_readmes_config_is_one() {
    let readme = include_str!("../README.md");
    let blocks: Vec<_> =
        readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect();
    assert_eq!(blocks.len(), 3);
    Config::parse(&blocks[0], "README.md").unwrap();
    let config = Config::parse(&blocks.concat(), "README.md").unwrap();
    assert_eq!(config.routes.len(), 4);
    assert_eq!(config.redeem.max_gas_share_bps, Some(1_000));
}
