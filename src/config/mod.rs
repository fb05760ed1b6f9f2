//! The operator's file: TOML in, one resolved [`Config`] out.
//!
//! **Owns** the keys of `config.example.toml`, their defaults and their limits. **Promises** that a [`Config`] is
//! whole: what is there was checked, in itself and against the rest, so nothing behind this room validates again; that a
//! refused file is refused with every error at once, each with its place and its fix; and that no secret is echoed.
//! **Does not** touch anything but the file and the lists of payers it names: keys and RPC URLs stay references, and
//! whether the chain behind them is the right one is `peaje check`'s business.
//!
//! ```
//! # use peaje::config::Config;
//! let config = Config::parse(
//!     r#"
//!     [upstream]
//!     url = "http://127.0.0.1:8080"
//!
//!     [chain]
//!     network = "base"
//!     rpc = "env:PEAJE_RPC"
//!
//!     [receiver]
//!     pay_to = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
//!     authorizer_key = "env:PEAJE_AUTHORIZER_KEY"
//!
//!     [[route]]
//!     path = "/*"
//!     price = "$0.002"
//!     "#,
//!     "peaje.toml",
//! )?;
//! assert_eq!(config.chain.chain_id, 8453);
//! # Ok::<(), peaje::config::ConfigErrors>(())
//! ```

pub mod diff;
mod error;
mod keys;
mod live;
mod reader;
mod reference;
mod resolve;
mod size;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};
use ipnet::IpNet;

pub use self::error::{ConfigError, ConfigErrors};
pub use self::keys::{KEYS, Key, When};
pub use self::live::{Loading, NotNow, ReloadFailure, ReloadState, Reloads};
pub(crate) use self::reader::closest;
pub use self::reference::{KeyReference, KeyReferenceError, RpcReference, RpcReferenceError};
pub use self::size::{SizeError, parse_size};
pub use crate::changed::Seen;
pub use crate::duration::{DurationError, parse_duration, write_duration};
use crate::gate::Idempotency;
use crate::gate::policy::{Ambiguity, Policy, Route, Terms, TokenTerms};
use crate::gate::quota::Rate;
use crate::gate::shop::{Storefront, check_openapi};
use crate::protocol::{Address, Amount};

/// The largest config file that is read, bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// The largest OpenAPI document that is read, bytes.
pub const MAX_OPENAPI_BYTES: u64 = 4 << 20;

/// Everything an operator can decide, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The public listener.
    pub server: Server,
    /// The operator's listener.
    pub admin: Admin,
    /// What is sold.
    pub upstream: Upstream,
    /// What else is sold: upstreams that routes choose by name. All that routes choose are here.
    pub upstreams: Vec<(Arc<str>, Upstream)>,
    /// Where it is paid, by preference.
    pub chain: Chain,
    /// Where else it may be paid, in order.
    pub other_chains: Vec<Chain>,
    /// Who is paid.
    pub receiver: Receiver,
    /// What every channel must agree to.
    pub channel: Channel,
    /// Which deposits are relayed.
    pub deposits: Deposits,
    /// What a crowd may take.
    pub limits: Limits,
    /// Where the books are kept.
    pub store: Store,
    /// When vouchers become money.
    pub redeem: Redeem,
    /// Who sends transactions, if it is not us.
    pub facilitator: Option<Facilitator>,
    /// Which web pages may pay.
    pub cors: Cors,
    /// What is logged, and how.
    pub log: LogOptions,
    /// `[log] access`: the file with a line for each request; none by default. A relative one is beside the config file.
    pub access_log: Option<PathBuf>,
    /// What is shown of the price list.
    pub discovery: Discovery,
    /// Which answers are kept for payments that come again.
    pub idempotency: Idempotency,
    /// The price list, in the file's order; at least one, and no two match a request with equal right.
    pub routes: Vec<Route>,
    /// The files that were read with this one, as they were before: lists of payers, an OpenAPI document.
    pub beside: Vec<Seen>,
}

/// `[server]`: the public listener.
#[derive(Debug, Clone)]
pub struct Server {
    /// Where agents connect.
    pub listen: SocketAddr,
    /// The URL agents see in quotes, before the request's path; no trailing slash.
    pub public_url: String,
    /// How long requests in flight may take once a shutdown began.
    pub shutdown_timeout: Duration,
    /// How many threads serve requests; `None` means one for each core there is.
    pub cores: Option<NonZeroUsize>,
    /// How long a quote stays good once the price list it came from was replaced.
    pub quote_grace: Duration,
    /// The certificates that are shown, the one for clients without a name first; none, and no TLS is spoken.
    pub tls: Vec<TlsFiles>,
    /// The proxies that are believed about where a request came from.
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they name the client.
    pub forwarded_header: ForwardedHeader,
    /// Whether every connection begins with a header of the PROXY protocol.
    pub proxy_protocol: bool,
}

/// `[server].tls`: a certificate and its key, both PEM. Relative paths are beside the config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by those between it and a root.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The header in which a trusted proxy names the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, with `X-Forwarded-Proto` and `X-Forwarded-Host`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// `[admin]`: the operator's listener.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Where it listens, always a loopback address; `None` if it is off.
    pub listen: Option<SocketAddr>,
}

/// `[upstream]` or `[upstreams.NAME]`: what is sold.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The absolute `http` or `https` URLs of its targets, at least one, perhaps with a base path; no query, no
    /// credentials.
    pub urls: Vec<Uri>,
    /// How long a connection to it may take.
    pub connect_timeout: Duration,
    /// How long its answer's head may take, once the request was sent.
    pub response_timeout: Duration,
    /// How long its answer's body, or an upgraded connection, may stand still.
    pub idle_timeout: Duration,
    /// Whether it speaks HTTP/2 and nothing else.
    pub http2: bool,
    /// The file of the certificates that may sign its own; `None` means those the system trusts.
    pub ca: Option<PathBuf>,
    /// The files of our certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Whose certificate it must have; `None` means its URL's host's.
    pub server_name: Option<String>,
    /// How its targets are asked how they are; `None` means they are not.
    pub health: Option<Health>,
    /// When a target is left alone; `None` means never.
    pub breaker: Option<Breaker>,
}

/// `[upstream.health]`: how targets are asked how they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// For which path.
    pub path: PathAndQuery,
    /// How often.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// After how many bad answers in a row a target is unhealthy; at least 1.
    pub unhealthy_after: u32,
    /// After how many good ones in a row it is healthy again; at least 1.
    pub healthy_after: u32,
}

/// `[upstream.breaker]`: when a target is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// After how many failures in a row; at least 1.
    pub failures: u32,
    /// For how long.
    pub open_for: Duration,
}

/// `[chain]`: where it is paid.
#[derive(Debug, Clone)]
pub struct Chain {
    /// The preset's name; `None` for a chain named by its id only.
    pub network: Option<&'static str>,
    /// Its EIP-155 chain id.
    pub chain_id: u64,
    /// Its nodes, the preferred one first; at least one, and none twice.
    pub rpc: Vec<RpcReference>,
    /// The token that is preferred. Prices, and all that is said in dollars, are in its units.
    pub token: TokenTerms,
    /// The others that are taken, in order; each can express every price and the least deposit.
    pub other_tokens: Vec<TokenTerms>,
    /// How often receipts and events are asked for.
    pub poll: Duration,
    /// How many blocks, its own included, a transaction must have on it before it is believed for good; at least 1.
    pub confirmations: u64,
    /// How far behind the clock a node's newest block may be.
    pub max_lag: MaxLag,
    /// The key that pays for transactions here, if it is another than [`Receiver::gas_key`].
    pub gas_key: Option<KeyReference>,
    /// The directory of its books, if it is said.
    pub books: Option<PathBuf>,
    /// What one of its own coins is worth, if it is said here; in units of the preferred chain's preferred token.
    pub coin_price: Option<Amount>,
    /// The most that is paid for a unit of gas, wei, if it is said here.
    pub max_fee_wei: Option<u128>,
    /// The same where a payer is withdrawing, if it is said here; not less.
    pub urgent_max_fee_wei: Option<u128>,
}

impl Chain {
    /// What is taken, the preferred token first.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenTerms> {
        std::iter::once(&self.token).chain(&self.other_tokens)
    }
}

/// How far behind the clock a node's newest block may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxLag {
    /// Nothing was said: [`MaxLag::DEFAULT`], and no limit on a chain of this machine, which may stand still.
    Unsaid,
    /// No limit.
    Off,
    /// So far.
    Of(Duration),
}

impl MaxLag {
    /// What is allowed where nothing was said.
    pub const DEFAULT: Duration = Duration::from_secs(60);

    /// The limit, once it is known whether all nodes are on this machine; none, if there is none.
    pub fn limit(self, all_on_this_machine: bool) -> Option<Duration> {
        match self {
            Self::Unsaid => (!all_on_this_machine).then_some(Self::DEFAULT),
            Self::Off => None,
            Self::Of(limit) => Some(limit),
        }
    }
}

/// `[receiver]`: who is paid, and with whose signatures.
#[derive(Debug, Clone)]
pub struct Receiver {
    /// Where the money goes. Needs no key here.
    pub pay_to: Address,
    /// The key that signs claims and refunds.
    pub authorizer_key: KeyReference,
    /// The key that pays for transactions; the authorizer's, if none is named.
    pub gas_key: KeyReference,
}

/// `[channel]`: what every channel must agree to.
#[derive(Debug, Clone)]
pub struct Channel {
    /// How long before a withdrawal its payer must announce it; whole seconds, within the contract's limits.
    pub withdraw_delay: Duration,
    /// The least deposit that is relayed; `None` means any.
    pub min_deposit: Option<Amount>,
    /// How long one request may take; whole seconds, longer than the upstream may.
    pub max_timeout: Duration,
    /// How long before a withdrawal can be finalized the last voucher is taken that it could take away; below
    /// `withdraw_delay`.
    pub withdraw_margin: Duration,
    /// After how long without a request a channel is given back to its payer; `None` means never.
    pub refund_idle: Option<Duration>,
    /// The most that may be unclaimed on a channel whose vouchers are approved by the payer's own account, which can
    /// change its mind.
    pub max_wallet_exposure: Amount,
    /// How many requests of one channel are served at once; 1 means one after the other.
    pub max_in_flight: u32,
    /// How many more wait for their turn.
    pub max_waiting: usize,
    /// How long they do.
    pub max_wait: Duration,
}

/// `[limits]`: what a crowd may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How many connections are served at once; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// How many requests are served at once; further ones are told to come back.
    pub max_requests: usize,
    /// How long a client may take to send the head of a request.
    pub header_timeout: Duration,
    /// How long it may pause while it sends the body.
    pub body_timeout: Duration,
    /// How long an HTTP/2 connection may be without a new request.
    pub idle_timeout: Duration,
    /// How large the head of a request may be, bytes.
    pub max_header_bytes: usize,
    /// How many headers a request may have.
    pub max_headers: usize,
    /// How large the body of a request may be, bytes; `None` means any.
    pub max_body: Option<u64>,
    /// How many connections may be upgraded to another protocol at once; further ones are told to come back.
    pub max_tunnels: usize,
    /// How many signatures by somebody else one peer may send in a minute.
    pub bad_signatures_per_minute: u32,
    /// What the tables of the keys that sign most may take, bytes; 0 means none.
    pub hot_keys_bytes: usize,
    /// How much of a request's body is read where its price depends on it, bytes.
    pub max_matched_body: usize,
    /// How often one payer is served, by all routes together that say nothing else; as often as it likes, if nothing is.
    pub per_payer: Option<Rate>,
    /// How often one network is told a price, as above.
    pub unpaid: Option<Rate>,
}

/// `[deposits]`: which deposits are relayed, each of which costs gas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deposits {
    /// What may be spent of a deposit that is mined and not confirmed yet.
    pub instant: Amount,
    /// How many are relayed for one peer in an hour; at least 1.
    pub per_peer_per_hour: u32,
    /// How many are relayed in an hour; at least 1.
    pub per_hour: u32,
}

/// `[facilitator]`: who sends transactions in our place, for providers without gas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facilitator {
    /// Its absolute URL: `https`, or `http` on this machine; no query, no credentials.
    pub url: Uri,
    /// How long an answer may take, which may be that of a transaction.
    pub timeout: Duration,
}

/// `[store]`: where the books are kept.
#[derive(Debug, Clone)]
pub struct Store {
    /// The directory, which belongs to one process at a time. A relative one is beside the config file, so that the same
    /// file always means the same books, wherever the process was started.
    pub directory: PathBuf,
}

/// `[redeem]`: when vouchers become money.
#[derive(Debug, Clone)]
pub struct Redeem {
    /// How often.
    pub interval: Duration,
    /// Earlier, once more is unclaimed in all.
    pub max_unclaimed: Option<Amount>,
    /// Earlier, once more is unclaimed on one channel.
    pub max_unclaimed_per_channel: Option<Amount>,
    /// Earlier, once more is unclaimed on the channels of one payer.
    pub max_unclaimed_per_payer: Option<Amount>,
    /// Earlier, once something was unclaimed for longer.
    pub max_age: Option<Duration>,
    /// The largest part of a claim that gas may take, in hundredths of a percent. The preferred chain has a coin price then.
    pub max_gas_share_bps: Option<u32>,
    /// What one of the chain's own coins is worth, atomic units of the token.
    pub coin_price: Option<Amount>,
    /// How many channels one claim transaction may hold.
    pub max_rows: usize,
    /// Whether a shutdown redeems what is left.
    pub on_shutdown: bool,
    /// The most that is paid for a unit of gas, wei.
    pub max_fee_wei: u128,
    /// The same where a payer is withdrawing; not less.
    pub urgent_max_fee_wei: u128,
    /// Whether that was said, and so holds for every chain that says nothing of its own.
    pub urgent_is_said: bool,
    /// How long a transaction may wait before it is replaced by one that pays more.
    pub bump_after: Duration,
    /// For how long redemption may fail before the proxy is unready.
    pub stuck_after: Duration,
    /// How often every open channel is read, in case an event was missed.
    pub sweep_interval: Duration,
}

/// `[cors]`: which web pages may pay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cors {
    /// No CORS headers at all.
    Off,
    /// Any page.
    Any,
    /// Pages of these origins.
    Origins(Vec<HeaderValue>),
}

/// `[discovery]`: what is shown of the price list.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovery {
    /// Whether anything is.
    pub enabled: bool,
    /// The site's name; the public URL's host, if there is none.
    pub name: Option<String>,
    /// What it is.
    pub description: Option<String>,
    /// The provider's own OpenAPI document, JSON. A relative path is beside the config file.
    pub openapi: Option<PathBuf>,
    /// What is in that file, read with the config.
    pub document: Option<Arc<serde_json::Value>>,
}

/// `[log]`: what is logged, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// The least important events that are shown; `RUST_LOG` overrides it.
    pub level: LogLevel,
    /// In which form.
    pub format: LogFormat,
}

/// How important an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Money or service is lost.
    Error,
    /// Somebody should look.
    Warn,
    /// What an operator wants to have read.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        Self::load_text(path, &Self::read(path)?)
    }

    /// The text of a file.
    ///
    /// # Errors
    /// It is not there, not text, or too large.
    pub fn read(path: &Path) -> Result<String, ConfigErrors> {
        read(path, MAX_FILE_BYTES).map_err(|problem| ConfigErrors::unreadable(&path.display().to_string(), &problem))
    }

    /// Checks the text of a file that was read already.
    pub fn load_text(path: &Path, text: &str) -> Result<Self, ConfigErrors> {
        let name = path.display().to_string();
        let config = resolve::resolve(text, &name, path.parent())?.seen_from(path.parent());
        config.with_openapi(&name)
    }

    fn seen_from(mut self, folder: Option<&Path>) -> Self {
        if let Some(folder) = folder {
            // An absolute path stays as it is.
            self.store.directory = folder.join(&self.store.directory);
            self.access_log = self.access_log.map(|file| folder.join(file));
            for files in &mut self.server.tls {
                files.cert = folder.join(&files.cert);
                files.key = folder.join(&files.key);
            }
            let upstreams = self.upstreams.iter_mut().map(|(_, upstream)| upstream);
            for Upstream { ca, client, .. } in upstreams.chain([&mut self.upstream]) {
                let keys = client.iter_mut().flat_map(|(certificate, key)| [certificate, key]);
                ca.iter_mut().chain(keys).for_each(|file| *file = folder.join(&*file));
            }
            self.discovery.openapi = self.discovery.openapi.map(|file| folder.join(file));
            for chain in std::iter::once(&mut self.chain).chain(&mut self.other_chains) {
                chain.books = chain.books.take().map(|books| folder.join(books));
            }
        }
        self
    }

    fn with_openapi(mut self, name: &str) -> Result<Self, ConfigErrors> {
        let Some(file) = self.discovery.openapi.as_ref().filter(|_| self.discovery.enabled) else { return Ok(self) };
        self.beside.push(Seen::before_reading(file.clone()));
        let document = read(file, MAX_OPENAPI_BYTES).and_then(|text| {
            let document = serde_json::from_str(&text).map_err(|error| format!("it is not JSON: {error}"))?;
            check_openapi(&document).map_err(|error| error.to_string())?;
            Ok(document)
        });
        match document {
            Ok(document) => self.discovery.document = Some(Arc::new(document)),
            Err(problem) => {
                let unusable = ConfigErrors::unusable(name, "[discovery].openapi", file, &problem);
                return Err(unusable.beside(self.beside));
            }
        }
        Ok(self)
    }

    /// Checks a text; `file_name` is what its errors call it. Relative paths in it stay relative.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ConfigErrors> {
        resolve::resolve(text, file_name, None)
    }

    /// The terms of channels in the preferred token, once the authorizer's key is known.
    pub fn terms(&self, receiver_authorizer: Address) -> Terms {
        self.terms_in(&self.chain, &self.chain.token, receiver_authorizer)
    }

    /// One config for each chain, the preferred one first, as if it were the only one there is. Dollars stay in units of
    /// the preferred chain's preferred token, but for [`Deposits::instant`], which a chain counts in its own.
    pub fn of_each_chain(&self) -> Vec<Self> {
        let others = self.other_chains.iter().map(|chain| {
            let mut config = self.of_chain(chain);
            let name = chain.network.map_or_else(|| chain.chain_id.to_string(), str::to_owned);
            config.store.directory = chain.books.clone().unwrap_or_else(|| self.store.directory.join(name));
            config.redeem.coin_price = chain.coin_price;
            config.bid(chain, chain.max_fee_wei.unwrap_or(resolve::usual_max_fee_wei(chain.chain_id)));
            config
        });
        let mut first = self.of_chain(&self.chain);
        first.redeem.coin_price = self.chain.coin_price.or(self.redeem.coin_price);
        first.store.directory = self.chain.books.clone().unwrap_or(first.store.directory);
        first.bid(&self.chain, self.chain.max_fee_wei.unwrap_or(self.redeem.max_fee_wei));
        std::iter::once(first).chain(others).collect()
    }

    fn of_chain(&self, chain: &Chain) -> Self {
        let mut config = Self { chain: chain.clone(), other_chains: Vec::new(), ..self.clone() };
        if let Some(gas_key) = &chain.gas_key {
            config.receiver.gas_key = gas_key.clone();
        }
        let (from, to) = (self.chain.token.decimals, chain.token.decimals);
        config.deposits.instant = self.deposits.instant.about_in_decimals(from, to);
        config
    }

    /// What is paid for gas on this chain. An urgent fee that was said is that one, whatever else is bid.
    fn bid(&mut self, chain: &Chain, max_fee_wei: u128) {
        let said = self.redeem.urgent_is_said.then_some(self.redeem.urgent_max_fee_wei);
        let usual = || resolve::usual_urgent_fee_wei(chain.chain_id, chain.max_fee_wei);
        self.redeem.max_fee_wei = max_fee_wei;
        self.redeem.urgent_max_fee_wei = chain.urgent_max_fee_wei.or(said).unwrap_or_else(usual);
    }

    fn terms_in(&self, chain: &Chain, token: &TokenTerms, receiver_authorizer: Address) -> Terms {
        let (from, to) = (self.chain.token.decimals, token.decimals);
        Terms {
            chain_id: chain.chain_id,
            token: token.clone(),
            pay_to: self.receiver.pay_to,
            receiver_authorizer,
            withdraw_delay_s: self.channel.withdraw_delay.as_secs(),
            max_timeout_s: self.channel.max_timeout.as_secs(),
            min_deposit: self.channel.min_deposit.map(|least| least.about_in_decimals(from, to)),
            max_in_flight: self.channel.max_in_flight,
        }
    }

    /// The policy, once the authorizer's key is known. A [`Config`] has no ambiguous routes, so one that was not
    /// changed by hand does not fail here.
    pub fn policy(&self, receiver_authorizer: Address) -> Result<Policy, Vec<Ambiguity>> {
        let terms = self.terms(receiver_authorizer);
        let chains = std::iter::once(&self.chain).chain(&self.other_chains);
        let tokens = chains.flat_map(|chain| chain.tokens().map(move |token| (chain, token))).skip(1);
        let others = tokens.map(|(chain, token)| self.terms_in(chain, token, receiver_authorizer)).collect();
        let policy = Policy::accepting(terms, others, &self.server.public_url, self.routes.clone())?;
        let Discovery { enabled, name, description, document, .. } = &self.discovery;
        let front = || Storefront { name: name.clone(), description: description.clone(), openapi: document.clone() };
        Ok(if *enabled { policy.with_storefront(&front()) } else { policy })
    }
}

/// Every key a config file can have, as section heading (empty for the document itself) and key: exactly those the
/// reader asks for.
pub fn known_keys() -> BTreeSet<(String, &'static str)> {
    resolve::known_keys()
}

fn read(path: &Path, max_bytes: u64) -> Result<String, String> {
    use std::io::Read as _;

    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    // One byte more than allowed tells a file that is just small enough from one that is too large.
    file.take(max_bytes + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if u64::try_from(text.len()).is_ok_and(|length| length <= max_bytes) {
        Ok(text)
    } else {
        Err(format!("it is larger than {max_bytes} bytes, which no config file is"))
    }
}
