//! Which keys a running process takes from a file that was changed, and which only a start reads.
//!
//! **Owns** the one table of that, with what each key is set to in words. **Promises** that every key a file can have is
//! in it exactly once, and that no secret is in the words. **Does not** apply anything.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use super::size::write_size;
use super::{
    Chain, Config, Cors, ForwardedHeader, LogFormat, LogLevel, MaxLag, RpcReference, Upstream, write_duration,
};
use crate::gate::policy::{TokenTerms, Transfer};
use crate::gate::quota::Rate;
use crate::pricing::Share;
use crate::protocol::Amount;

/// When a change of a key takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// As soon as the file is read again.
    Live,
    /// At the next start.
    Start,
}

/// A key of the config file.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its section's heading, as in `[server]`.
    pub section: &'static str,
    /// Its name.
    pub name: &'static str,
    /// When a change takes effect.
    pub when: When,
    /// What it is set to, in words. Nothing for keys of routes, which are compared route by route.
    show: Option<fn(&Config) -> String>,
    /// Whether two configs differ in it, where the words hide something.
    differs: Option<fn(&Config, &Config) -> bool>,
}

impl Key {
    /// What it is set to, in words; nothing for keys of routes.
    pub fn shown(&self, config: &Config) -> Option<String> {
        self.show.map(|show| show(config))
    }

    /// Whether two configs differ in it. Never so for keys of routes.
    pub fn differs(&self, one: &Config, other: &Config) -> bool {
        match self.differs {
            Some(differs) => differs(one, other),
            None => self.shown(one) != self.shown(other),
        }
    }
}

const fn start(section: &'static str, name: &'static str, show: fn(&Config) -> String) -> Key {
    Key { section, name, when: When::Start, show: Some(show), differs: None }
}

const fn live(section: &'static str, name: &'static str, show: fn(&Config) -> String) -> Key {
    Key { section, name, when: When::Live, show: Some(show), differs: None }
}

/// What routes have that say nothing of their own: compared with them.
const fn of_routes(section: &'static str, name: &'static str) -> Key {
    Key { section, name, when: When::Live, show: None, differs: None }
}

/// Every key there is, but for those of routes and the lists of payers that routes name: they are all
/// live, and compared route by route.
pub const KEYS: &[Key] = &[
    start("[server]", "listen", |c| c.server.listen.to_string()),
    start("[server]", "public_url", |c| c.server.public_url.clone()),
    start("[server]", "shutdown_timeout", |c| write_duration(c.server.shutdown_timeout)),
    live("[server]", "quote_grace", |c| write_duration(c.server.quote_grace)),
    start("[server]", "tls", |c| if c.server.tls.is_empty() { "off".to_owned() } else { "on".to_owned() }),
    start("[server.tls]", "cert", |c| files(c.server.tls.iter().map(|files| &files.cert))),
    start("[server.tls]", "key", |c| files(c.server.tls.iter().map(|files| &files.key))),
    start("[server]", "trusted_proxies", |c| list(&c.server.trusted_proxies)),
    start("[server]", "forwarded_header", |c| match c.server.forwarded_header {
        ForwardedHeader::XForwardedFor => "x-forwarded-for".to_owned(),
        ForwardedHeader::Forwarded => "forwarded".to_owned(),
    }),
    start("[server]", "proxy_protocol", |c| c.server.proxy_protocol.to_string()),
    start("[server]", "cores", |c| some(c.server.cores, "one for each core")),
    start("[admin]", "listen", |c| some(c.admin.listen, "off")),
    start("[upstream]", "url", |c| each(c, |u| u.urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))),
    start("[upstream]", "connect_timeout", |c| each(c, |u| write_duration(u.connect_timeout))),
    start("[upstream]", "response_timeout", |c| each(c, |u| write_duration(u.response_timeout))),
    start("[upstream]", "idle_timeout", |c| each(c, |u| write_duration(u.idle_timeout))),
    start("[upstream]", "http2", |c| each(c, |u| u.http2.to_string())),
    start("[upstream]", "ca", |c| each(c, |u| file(u.ca.as_ref()))),
    start("[upstream]", "client_cert", |c| each(c, |u| file(u.client.as_ref().map(|(cert, _)| cert)))),
    start("[upstream]", "client_key", |c| each(c, |u| file(u.client.as_ref().map(|(_, key)| key)))),
    start("[upstream]", "server_name", |c| each(c, |u| some(u.server_name.as_ref(), "its URL's"))),
    start("[upstream]", "health", |c| each(c, |u| some(u.health.as_ref().map(|_| "on"), "off"))),
    start("[upstream]", "breaker", |c| each(c, |u| some(u.breaker.as_ref().map(|_| "on"), "off"))),
    start("[upstream.health]", "path", |c| each(c, |u| some(u.health.as_ref().map(|h| &h.path), "off"))),
    start("[upstream.health]", "interval", |c| each(c, |u| age(u.health.as_ref().map(|h| h.interval)))),
    start("[upstream.health]", "timeout", |c| each(c, |u| age(u.health.as_ref().map(|h| h.timeout)))),
    start("[upstream.health]", "unhealthy_after", |c| {
        each(c, |u| some(u.health.as_ref().map(|h| h.unhealthy_after), "off"))
    }),
    start("[upstream.health]", "healthy_after", |c| {
        each(c, |u| some(u.health.as_ref().map(|h| h.healthy_after), "off"))
    }),
    start("[upstream.breaker]", "failures", |c| each(c, |u| some(u.breaker.as_ref().map(|b| b.failures), "off"))),
    start("[upstream.breaker]", "open_for", |c| each(c, |u| age(u.breaker.as_ref().map(|b| b.open_for)))),
    start("[chain]", "network", |c| chains(c, |x| some(x.network, "none"))),
    start("[chain]", "chain_id", |c| chains(c, |x| x.chain_id.to_string())),
    Key {
        differs: Some(|one, other| rpc(one).ne(rpc(other))),
        ..start("[chain]", "rpc", |c| chains(c, |x| list(&x.rpc)))
    },
    start("[chain]", "token", |c| tokens(c, |token| token.address.to_string())),
    start("[chain]", "poll", |c| chains(c, |x| write_duration(x.poll))),
    start("[chain]", "confirmations", |c| chains(c, |x| x.confirmations.to_string())),
    start("[chain]", "max_lag", |c| {
        chains(c, |x| match x.max_lag {
            MaxLag::Unsaid => "as usual".to_owned(),
            MaxLag::Off => "off".to_owned(),
            MaxLag::Of(lag) => write_duration(lag),
        })
    }),
    start("[chain]", "gas_key", |c| chains(c, |x| some(x.gas_key.as_ref(), "the receiver's"))),
    start("[chain]", "books", |c| chains(c, |x| file(x.books.as_ref()))),
    start("[chain]", "coin_price", |c| chains(c, |x| money(c, x.coin_price))),
    start("[chain]", "max_fee", |c| chains(c, |x| some(x.max_fee_wei.map(write_fee), "as usual"))),
    start("[chain]", "urgent_max_fee", |c| chains(c, |x| some(x.urgent_max_fee_wei.map(write_fee), "as usual"))),
    start("[chain.token]", "address", |c| tokens(c, |token| token.address.to_string())),
    start("[chain.token]", "decimals", |c| tokens(c, |token| token.decimals.to_string())),
    start("[chain.token]", "domain_name", |c| tokens(c, |token| token.domain_name.clone())),
    start("[chain.token]", "domain_version", |c| tokens(c, |token| token.domain_version.clone())),
    start("[chain.token]", "transfer", |c| {
        tokens(c, |token| match token.transfer {
            Transfer::Eip3009 => "eip3009".to_owned(),
            Transfer::Permit2 => "permit2".to_owned(),
        })
    }),
    start("[chain.token]", "sponsored", |c| tokens(c, |token| token.sponsored.to_string())),
    start("[receiver]", "pay_to", |c| c.receiver.pay_to.to_string()),
    start("[receiver]", "authorizer_key", |c| c.receiver.authorizer_key.to_string()),
    start("[receiver]", "gas_key", |c| c.receiver.gas_key.to_string()),
    start("[channel]", "withdraw_delay", |c| write_duration(c.channel.withdraw_delay)),
    live("[channel]", "min_deposit", |c| money(c, c.channel.min_deposit)),
    live("[channel]", "max_timeout", |c| write_duration(c.channel.max_timeout)),
    live("[channel]", "withdraw_margin", |c| write_duration(c.channel.withdraw_margin)),
    start("[channel]", "refund_idle", |c| some(c.channel.refund_idle.map(write_duration), "never")),
    start("[channel]", "max_wallet_exposure", |c| money(c, Some(c.channel.max_wallet_exposure))),
    live("[channel]", "max_in_flight", |c| c.channel.max_in_flight.to_string()),
    live("[channel]", "max_waiting", |c| c.channel.max_waiting.to_string()),
    live("[channel]", "max_wait", |c| write_duration(c.channel.max_wait)),
    start("[deposits]", "instant", |c| money(c, Some(c.deposits.instant))),
    live("[deposits]", "per_peer_per_hour", |c| c.deposits.per_peer_per_hour.to_string()),
    live("[deposits]", "per_hour", |c| c.deposits.per_hour.to_string()),
    start("[limits]", "max_connections", |c| c.limits.max_connections.to_string()),
    start("[limits]", "max_requests", |c| c.limits.max_requests.to_string()),
    start("[limits]", "header_timeout", |c| write_duration(c.limits.header_timeout)),
    start("[limits]", "body_timeout", |c| write_duration(c.limits.body_timeout)),
    start("[limits]", "idle_timeout", |c| write_duration(c.limits.idle_timeout)),
    start("[limits]", "max_header_bytes", |c| write_size(c.limits.max_header_bytes)),
    start("[limits]", "max_headers", |c| c.limits.max_headers.to_string()),
    start("[limits]", "max_body", |c| {
        some(
            c.limits.max_body.map(|bytes| usize::try_from(bytes).map_or_else(|_| bytes.to_string(), write_size)),
            "any",
        )
    }),
    start("[limits]", "max_tunnels", |c| c.limits.max_tunnels.to_string()),
    live("[limits]", "max_matched_body", |c| write_size(c.limits.max_matched_body)),
    live("[limits]", "rate", |c| {
        let rate = |rate: Option<Rate>| {
            some(rate.map(|Rate { count, per }| format!("{count} / {}", write_duration(per))), "none")
        };
        format!("per_payer {}, unpaid {}", rate(c.limits.per_payer), rate(c.limits.unpaid))
    }),
    live("[limits]", "bad_signatures_per_minute", |c| c.limits.bad_signatures_per_minute.to_string()),
    start("[limits]", "hot_keys_memory", |c| write_size(c.limits.hot_keys_bytes)),
    start("[store]", "directory", |c| c.store.directory.display().to_string()),
    start("[redeem]", "interval", |c| write_duration(c.redeem.interval)),
    start("[redeem]", "max_unclaimed", |c| money(c, c.redeem.max_unclaimed)),
    start("[redeem]", "max_unclaimed_per_channel", |c| money(c, c.redeem.max_unclaimed_per_channel)),
    start("[redeem]", "max_unclaimed_per_payer", |c| money(c, c.redeem.max_unclaimed_per_payer)),
    start("[redeem]", "max_age", |c| some(c.redeem.max_age.map(write_duration), "none")),
    start("[redeem]", "max_gas_share", |c| {
        some(c.redeem.max_gas_share_bps.and_then(|bps| Share::from_hundredths(u16::try_from(bps).ok()?)), "none")
    }),
    start("[redeem]", "coin_price", |c| money(c, c.redeem.coin_price)),
    start("[redeem]", "max_rows", |c| c.redeem.max_rows.to_string()),
    start("[redeem]", "on_shutdown", |c| c.redeem.on_shutdown.to_string()),
    start("[redeem]", "max_fee", |c| write_fee(c.redeem.max_fee_wei)),
    start("[redeem]", "urgent_max_fee", |c| match (c.redeem.urgent_is_said, write_fee(c.redeem.urgent_max_fee_wei)) {
        (true, said) => said,
        (false, usual) => format!("{usual}, as usual"),
    }),
    start("[redeem]", "bump_after", |c| write_duration(c.redeem.bump_after)),
    start("[redeem]", "stuck_after", |c| write_duration(c.redeem.stuck_after)),
    start("[redeem]", "sweep_interval", |c| write_duration(c.redeem.sweep_interval)),
    start("[facilitator]", "url", |c| some(c.facilitator.as_ref().map(|other| &other.url), "none")),
    start("[facilitator]", "timeout", |c| {
        some(c.facilitator.as_ref().map(|other| write_duration(other.timeout)), "none")
    }),
    live("[cors]", "allow_origins", |c| match &c.cors {
        Cors::Off => "none".to_owned(),
        Cors::Any => "*".to_owned(),
        Cors::Origins(origins) => {
            origins.iter().map(|origin| String::from_utf8_lossy(origin.as_bytes())).collect::<Vec<_>>().join(", ")
        }
    }),
    live("[discovery]", "enabled", |c| c.discovery.enabled.to_string()),
    live("[discovery]", "name", |c| some(c.discovery.name.as_ref(), "the host")),
    live("[discovery]", "description", |c| some(c.discovery.description.as_ref(), "none")),
    Key {
        // What is in the file counts, too.
        differs: Some(|one, other| {
            let part = |config: &Config| (config.discovery.openapi.clone(), config.discovery.document.clone());
            part(one) != part(other)
        }),
        ..live("[discovery]", "openapi", |c| file(c.discovery.openapi.as_ref()))
    },
    of_routes("[discovery]", "bazaar"),
    of_routes("[idempotency]", "identifier"),
    start("[idempotency]", "window", |c| write_duration(c.idempotency.window)),
    start("[idempotency]", "memory", |c| write_size(c.idempotency.memory)),
    start("[idempotency]", "max_answer", |c| write_size(c.idempotency.max_answer)),
    start("[idempotency]", "unidentified", |c| c.idempotency.unidentified.to_string()),
    live("[log]", "level", |c| {
        let level = match c.log.level {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        };
        level.to_owned()
    }),
    start("[log]", "format", |c| {
        let format = match c.log.format {
            LogFormat::Auto => "auto",
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        format.to_owned()
    }),
    start("[log]", "access", |c| some(c.access_log.as_ref().map(|file| file.display()), "none")),
];

/// What each chain has, the preferred one first.
fn chains(config: &Config, show: impl Fn(&Chain) -> String) -> String {
    std::iter::once(&config.chain).chain(&config.other_chains).map(show).collect::<Vec<_>>().join("; ")
}

/// What each token has that is taken, in order.
fn tokens(config: &Config, show: impl Fn(&TokenTerms) -> String) -> String {
    chains(config, |chain| chain.tokens().map(&show).collect::<Vec<_>>().join(", "))
}

fn rpc(config: &Config) -> impl Iterator<Item = &[RpcReference]> {
    std::iter::once(&config.chain).chain(&config.other_chains).map(|chain| &*chain.rpc)
}

/// What the upstream without a name has, and what those with names have.
fn each(config: &Config, show: impl Fn(&Upstream) -> String) -> String {
    let named = config.upstreams.iter().map(|(name, upstream)| format!("{name}: {}", show(upstream)));
    std::iter::once(show(&config.upstream)).chain(named).collect::<Vec<_>>().join("; ")
}

fn list(values: &[impl Display]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn files<'f>(files: impl Iterator<Item = &'f PathBuf>) -> String {
    files.map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn file(file: Option<&PathBuf>) -> String {
    some(file.map(|file| file.display()), "none")
}

fn age(duration: Option<Duration>) -> String {
    some(duration.map(write_duration), "off")
}

fn some(value: Option<impl Display>, none: &str) -> String {
    value.map_or_else(|| none.to_owned(), |value| value.to_string())
}

/// As the file writes it.
pub(super) fn write_fee(wei: u128) -> String {
    let gwei = Amount::new(wei).to_price(9);
    let number = gwei.trim_start_matches('$').trim_end_matches('0').trim_end_matches('.');
    format!("{number} gwei")
}

fn money(config: &Config, amount: Option<Amount>) -> String {
    some(amount.map(|amount| amount.to_price(config.chain.token.decimals)), "none")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::known_keys;

    #[test]
    fn values_are_spelled_as_in_the_file() {
        let text = include_str!("../../config.example.toml");
        let config = |text: &str| Config::parse(text, "c.toml").unwrap();
        let changed = text
            .replace(
                "# rate = { per_payer = \"20 / 1s\", unpaid = \"5 / 1s\" }\n\n",
                "rate = { per_payer = \"20 / 1m\" }\n\n",
            )
            .replace("forwarded_header = \"x-forwarded-for\"", "forwarded_header = \"forwarded\"")
            .replace(
                "[redeem]\n",
                "[redeem]\nmax_gas_share = \"10%\"\ncoin_price = \"$3000\"\nurgent_max_fee = \"60.5 gwei\"\n",
            )
            .replace("max_fee = \"50 gwei\"", "max_fee = \"0.05 gwei\"")
            .replace("# max_body = \"16 MiB\"", "max_body = \"16 MiB\"")
            .replace("hot_keys_memory = \"384 MiB\"", "hot_keys_memory = \"0\"");
        let changes = config(text).changes(&config(&changed));
        let told: Vec<_> = changes.iter().map(|change| (&*change.key, &*change.old, &*change.new)).collect();
        let expected = [
            ("[server].forwarded_header", "x-forwarded-for", "forwarded"),
            ("[limits].max_body", "any", "16 MiB"),
            ("[limits].rate", "per_payer none, unpaid none", "per_payer 20 / 1m, unpaid none"),
            ("[limits].hot_keys_memory", "384 MiB", "0"),
            ("[redeem].max_gas_share", "none", "10%"),
            ("[redeem].coin_price", "none", "$3000.00"),
            ("[redeem].max_fee", "50 gwei", "0.05 gwei"),
            ("[redeem].urgent_max_fee", "500 gwei, as usual", "60.5 gwei"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn every_key_is_read_live_or_at_start_and_not_both() {
        let of_routes =
            |section: &str| section.starts_with("[[route") || section.starts_with("[route") || section == "[payers]";
        let listed_here = |(section, _): &(String, _)| !section.is_empty() && !of_routes(section);
        let known: BTreeSet<_> = known_keys().into_iter().filter(listed_here).collect();
        let listed: BTreeSet<_> = KEYS.iter().map(|key| (key.section.to_owned(), key.name)).collect();
        assert_eq!(listed.len(), KEYS.len(), "a key is there twice");
        let missing: Vec<_> = known.difference(&listed).collect();
        let unknown: Vec<_> = listed.difference(&known).collect();
        assert!(missing.is_empty() && unknown.is_empty(), "missing {missing:?}, unknown {unknown:?}");
    }
}
