//! A running proxy, put together: books, gate, redemption, listener, operators' listener.
//!
//! **Owns** the order in which the parts start and stop. **Promises** that on the way down nothing that was charged is
//! forgotten: no new requests, those in progress finish or are voided, then one last redemption, then the chain, and the
//! books last. A proxy whose books cannot be written any more takes no paid work, and does not redeem either: what it
//! has in memory may be ahead of what is written, and payers were told that this was not charged.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::live::Live;
use super::upstreams::upstream;
use crate::admin;
use crate::chain::Chain;
use crate::config::{self, Config};
use crate::gate::{Accounts, DepositLimits, Desk, Gate, Limits};
use crate::protocol::{Amount, Dollars, LocalKey};
use crate::proxy::{
    Bounds, CertificateError, CertificateFiles, Certificates, Cors, ForwardedHeader, Listener, Trusted, is_taken,
};
use crate::redeem::{Redemption, Report, Rules, Sending, Settings, Watch};
use crate::store::{Latched, LedgerStore, Opening, StoreError};
use crate::telemetry::access::AccessLog;

/// Why a site could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// A port is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A certificate cannot be shown.
    #[error("cannot speak TLS")]
    Tls(#[from] CertificateError),
    /// The upstream's URL cannot be used.
    #[error(transparent)]
    Upstream(#[from] crate::proxy::NoUpstream),
    /// The access log cannot be written.
    #[error("the access log {file} cannot be opened")]
    AccessLog {
        /// Which.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Two routes are equal; the config's own check finds that first.
    #[error("two routes match the same requests")]
    Routes,
}

/// The books a site works with.
#[derive(Debug)]
pub struct Books {
    accounts: Accounts,
    opening: Opening,
}

impl Books {
    /// Reads the books of a store and starts their writer. Blocks; with a million channels for some seconds.
    ///
    /// # Errors
    /// See [`Accounts::open`].
    pub fn open(store: impl LedgerStore) -> Result<Self, StoreError> {
        Accounts::open(store).map(|(accounts, opening)| Self { accounts, opening })
    }

    /// Books that are gone with the process, for measuring what durable ones cost.
    pub fn in_memory() -> Self {
        Self { accounts: Accounts::in_memory(), opening: Opening::default() }
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Site {
    address: SocketAddr,
    admin: Option<SocketAddr>,
    gate: Gate,
    live: Live,
    access: Option<Arc<AccessLog>>,
    redemption: Redemption,
    /// Those of the other chains, in the order of the gate's tills.
    other_redemptions: Vec<Redemption>,
    redeem_at_end: bool,
    /// Whether another process can come to have the port: no supervisor holds it, and it is one that can be known.
    can_be_followed: bool,
    unready: CancellationToken,
    stop_admin: CancellationToken,
    listener: JoinHandle<()>,
    operators: Option<JoinHandle<()>>,
}

impl Site {
    /// Binds the ports and starts everything.
    ///
    /// # Errors
    /// See [`SiteError`]; nothing is left running.
    pub async fn open<C: Chain>(
        config: &Config,
        authorizer: LocalKey,
        chain: Arc<C>,
        books: Books,
    ) -> Result<Self, SiteError> {
        Self::open_on_all(None, config, authorizer, (chain, books), Vec::new()).await
    }

    /// The same on a port that is bound already.
    ///
    /// # Errors
    /// See [`SiteError`]; nothing is left running.
    pub async fn open_on<C: Chain>(
        listener: Listener,
        config: &Config,
        authorizer: LocalKey,
        chain: Arc<C>,
        books: Books,
    ) -> Result<Self, SiteError> {
        Self::open_on_all(Some(listener), config, authorizer, (chain, books), Vec::new()).await
    }

    /// The same on several chains: `first` is the preferred one, and `others` are in the order of the config; on a port of
    /// its own, if none is bound already.
    ///
    /// # Errors
    /// See [`SiteError`]; nothing is left running.
    pub async fn open_on_all<C: Chain>(
        listener: Option<Listener>,
        config: &Config,
        authorizer: LocalKey,
        (chain, books): (Arc<C>, Books),
        others: Vec<(Arc<C>, Books)>,
    ) -> Result<Self, SiteError> {
        let listener = match listener {
            Some(listener) => listener,
            None => Listener::bind_cores(config.server.listen, cores(config))
                .await
                .map_err(|source| SiteError::Listen { address: config.server.listen, source })?,
        };
        let of_chains = config.of_each_chain();
        let mut of_chains = of_chains.iter();
        let policy = config.policy(authorizer.address()).map_err(|_| SiteError::Routes)?;
        let upstream = upstream(config)?;
        let can_be_followed = !listener.is_inherited() && config.server.listen.port() != 0;
        let listener = settled(listener, config)?;
        let address =
            listener.address().map_err(|source| SiteError::Listen { address: config.server.listen, source })?;
        let operators = match config.admin.listen {
            Some(address) => Some(admin::bind(address).await.map_err(|source| SiteError::Listen { address, source })?),
            None => None,
        };
        let admin = operators.as_ref().and_then(|socket| socket.local_addr().ok());

        let access = config.access_log.as_deref().map(access_log).transpose()?;

        let (desk, questions) = Desk::new();
        let Books { accounts, opening } = books;
        let gate = Gate::with_accounts(policy, desk, accounts)
            .with_limits(limits(config))
            .with_quote_grace(config.server.quote_grace);
        let gate = gate.with_hot_keys(config.limits.hot_keys_bytes);
        let mut gate = gate.with_idempotency(config.idempotency);
        if let Some(access) = &access {
            gate = gate.with_recorder(access.recorder());
        }
        let receiver_authorizer = authorizer.address();
        let settings_here = settings(of_chains.next().unwrap_or(config));
        let start = |gate: &Gate, questions, chain, settings, opening| {
            Redemption::start(gate.clone(), questions, chain, authorizer.clone(), settings, opening)
        };
        let redemption = start(&gate, questions, chain, settings_here, opening);
        let (mut tills, mut other_redemptions) = (Vec::new(), Vec::new());
        for (config, (chain, Books { accounts, opening })) in of_chains.zip(others) {
            let (desk, questions) = Desk::new();
            let till = gate.beside(config.chain.chain_id, desk, accounts);
            other_redemptions.push(start(&till, questions, chain, settings(config), opening));
            tills.push(till);
        }
        let gate = gate.with_tills(tills);
        let stack = crate::proxy::stack(&gate, upstream.clone(), cors(&config.cors), bounds(config));
        let live = Live::new(config, gate.clone(), stack.clone(), receiver_authorizer, access.clone());
        let unready = CancellationToken::new();
        let stop_admin = CancellationToken::new();
        let operators = operators.map(|socket| {
            let redemptions = std::iter::once(&redemption).chain(&other_redemptions);
            let tills = gate.tills().cloned().zip(redemptions.cloned()).collect();
            let (reloads, upstream) = (live.reloads().clone(), upstream.clone());
            tokio::spawn(admin::serve_all(socket, tills, reloads, upstream, unready.clone(), stop_admin.clone()))
        });
        if !other_redemptions.is_empty() {
            let redemptions = std::iter::once(&redemption).chain(&other_redemptions).cloned();
            tokio::spawn(withhold(gate.tills().cloned().zip(redemptions).collect(), stop_admin.clone()));
        }
        let tills = gate.clone();
        let drain = config.server.shutdown_timeout;
        let listener = tokio::spawn(listener.serve(stack, unready.clone(), drain, move || {
            tracing::warn!("the drain deadline passed; requests in progress are cut off and not charged");
            tills.tills().for_each(|till| till.accounts().abandon());
        }));
        Ok(Self {
            address,
            admin,
            gate,
            live,
            access,
            redemption,
            other_redemptions,
            redeem_at_end: config.redeem.on_shutdown,
            can_be_followed,
            unready,
            stop_admin,
            listener,
            operators,
        })
    }

    /// Where the proxy listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the operators' listener is, if it is on.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// The payment core.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What of it can be changed while it runs.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Redemption on the preferred chain.
    pub fn redemption(&self) -> &Redemption {
        &self.redemption
    }

    /// Waits until the books cannot be written any more; for ever, if all goes well. What is left to do then is
    /// [`Site::close`].
    pub async fn latched(&self) -> Latched {
        let latched = self.gate.tills().map(|till| Box::pin(till.accounts().journal().latched()));
        futures_util::future::select_all(latched).await.0
    }

    /// Waits until a thread that serves has broken and the rest are stopping for it; for ever, if all goes well. What is
    /// left to do then is [`Site::close`].
    pub async fn broken(&self) {
        self.unready.cancelled().await;
    }

    /// Stops in order. The report of the last redemption on the preferred chain, if there was one.
    pub async fn close(self) -> Option<Report> {
        self.close_all().await.into_iter().next().flatten()
    }

    /// The same with the reports of all chains, in their order.
    pub async fn close_all(self) -> Vec<Option<Report>> {
        self.unready.cancel();
        if let Err(error) = self.listener.await {
            tracing::error!(%error, "the listener did not end well");
        }
        if let Some(access) = self.access {
            drop(tokio::task::spawn_blocking(move || access.close()).await);
        }
        // Whoever has followed us waits for the books, and its clients wait for it.
        let followed = self.can_be_followed && is_taken_for_good(self.address).await;
        if followed {
            tracing::info!("another process has taken over the port; redemption is left to it");
        }
        let redeem = self.redeem_at_end && !followed;
        let redemptions = std::iter::once(&self.redemption).chain(&self.other_redemptions);
        let ends = self.gate.tills().zip(redemptions).map(|(till, redemption)| close(till, redemption, redeem));
        // Side by side: a chain that does not answer must not take the time of the others.
        let reports = futures_util::future::join_all(ends).await;
        self.stop_admin.cancel();
        if let Some(operators) = self.operators {
            let _ = operators.await;
        }
        for till in self.gate.tills() {
            let journal = till.accounts().journal().clone();
            if tokio::task::spawn_blocking(move || journal.close()).await.is_err() {
                tracing::error!("the books were not closed well; what was acknowledged is in them all the same");
            }
        }
        reports
    }
}

/// Whether somebody else listens there. A program that is just being started by this process holds what this process held
/// for a moment, so it is asked twice.
async fn is_taken_for_good(address: SocketAddr) -> bool {
    if !is_taken(address) {
        return false;
    }
    tokio::time::sleep(A_MOMENT).await;
    is_taken(address)
}

/// The last redemption of a chain, if there is to be one, and its end.
async fn close(till: &Gate, redemption: &Redemption, redeem: bool) -> Option<Report> {
    let journal = till.accounts().journal();
    let report = if redeem && journal.latch().is_none() {
        tokio::time::timeout(MAX_LAST_REDEMPTION, redemption.redeem()).await.ok().and_then(Result::ok)
    } else {
        None
    };
    let left = report.as_ref().map_or_else(|| unclaimed(till), |report| report.left);
    let chain = till.chain_id();
    if !left.is_zero() && journal.is_volatile() {
        tracing::error!(chain, %left, "stopping with vouchers that are not claimed; they are in memory only and will be lost");
    } else if !left.is_zero() {
        tracing::info!(chain, %left, "stopping with vouchers that are not claimed; they are in the books for the next start");
    }
    redemption.stop().await;
    report
}

/// Leaves out of quotes what is on a chain that does not answer, until told to stop. With none that answers, all are
/// quoted: vouchers are good without a chain for a while.
async fn withhold(tills: Vec<(Gate, Redemption)>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        for (till, redemption) in &tills {
            let silence = redemption.chain_silence();
            let silent = silence > MAX_SILENCE.saturating_add(redemption.settings().poll);
            if till.withhold(silent) {
                let (chain, silence_s) = (till.chain_id(), silence.as_secs());
                match silent {
                    true => tracing::warn!(chain, silence_s, "a chain does not answer; its offers are not quoted"),
                    false => tracing::info!(chain, "a chain answers again; its offers are quoted"),
                }
            }
        }
    }
}

/// How often it is looked whether the chains answer.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long a chain may not answer before another one is offered in its place. A payer would wait for it with its deposit.
const MAX_SILENCE: Duration = Duration::from_secs(10);

/// How long after a port was found taken it is looked at again. A program that is being started drops what it does not want
/// sooner.
const A_MOMENT: Duration = Duration::from_millis(100);

/// How long the last redemption may take.
const MAX_LAST_REDEMPTION: Duration = Duration::from_secs(300);

fn unclaimed(gate: &Gate) -> Amount {
    let (statements, dollars) = (gate.accounts().claimable(), gate.dollars());
    let each = statements.iter().map(|statement| dollars.of(statement.config.token, statement.unclaimed));
    each.fold(Amount::ZERO, Amount::saturating_add)
}

/// How many threads serve. Where nobody knows how many cores there are, one does.
pub(super) fn cores(config: &Config) -> NonZeroUsize {
    config.server.cores.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
}

/// How a config wants redemption to be run.
fn settings(config: &Config) -> Settings {
    let config::Redeem { interval, max_rows, max_age, max_gas_share_bps, .. } = config.redeem;
    let rules = Rules {
        dollars: Dollars::default(),
        interval,
        max_unclaimed: config.redeem.max_unclaimed,
        max_unclaimed_per_channel: config.redeem.max_unclaimed_per_channel,
        max_unclaimed_per_payer: config.redeem.max_unclaimed_per_payer,
        max_age,
        max_gas_share_bps,
        units_per_coin: config.redeem.coin_price.map(Amount::units),
        max_wallet_exposure: config.channel.max_wallet_exposure,
        max_rows,
    };
    let sending = Sending {
        confirmations: config.chain.confirmations,
        bump_after: config.redeem.bump_after,
        max_fee_wei: config.redeem.max_fee_wei,
        urgent_max_fee_wei: config.redeem.urgent_max_fee_wei,
    };
    let watch = Watch { sweep_interval: config.redeem.sweep_interval, refund_idle: config.channel.refund_idle };
    Settings { rules, sending, watch, stuck_after: config.redeem.stuck_after, poll: config.chain.poll }
}

/// How far a config lets the gate go.
pub(super) fn limits(config: &Config) -> Limits {
    let config::Deposits { per_peer_per_hour, per_hour, .. } = config.deposits;
    Limits {
        deposits: DepositLimits { per_peer_per_hour, per_hour },
        bad_signatures_per_minute: config.limits.bad_signatures_per_minute,
        withdraw_margin_s: config.channel.withdraw_margin.as_secs(),
        max_wallet_exposure: config.channel.max_wallet_exposure,
        max_waiting: config.channel.max_waiting,
        max_wait: config.channel.max_wait,
        max_matched_body: config.limits.max_matched_body,
    }
}

fn bounds(config: &Config) -> Bounds {
    let config::Limits { max_requests, body_timeout, max_body, max_headers, max_tunnels, .. } = config.limits;
    Bounds {
        max_requests,
        body_time: body_timeout,
        max_body: max_body.unwrap_or(u64::MAX),
        max_headers,
        max_tunnels,
        ..Bounds::default()
    }
}

/// A listener as the config wants it.
fn settled(listener: Listener, config: &Config) -> Result<Listener, CertificateError> {
    let config::Limits { header_timeout, idle_timeout, max_connections, max_header_bytes, max_headers, .. } =
        config.limits;
    let listener = listener
        .header_time(header_timeout)
        .idle_time(idle_timeout)
        .max_connections(max_connections)
        .header_bytes(max_header_bytes)
        .max_headers(max_headers)
        .trust(trusted(&config.server))
        .proxy_protocol(config.server.proxy_protocol);
    let files: Vec<_> = certificate_files(&config.server).collect();
    if files.is_empty() { Ok(listener) } else { Ok(listener.tls(Certificates::load(&files)?)) }
}

fn trusted(server: &config::Server) -> Trusted {
    let header = match server.forwarded_header {
        config::ForwardedHeader::XForwardedFor => ForwardedHeader::XForwardedFor,
        config::ForwardedHeader::Forwarded => ForwardedHeader::Forwarded,
    };
    Trusted::new(&server.trusted_proxies, header)
}

/// The certificates a config names.
pub(super) fn certificate_files(server: &config::Server) -> impl Iterator<Item = CertificateFiles> {
    server.tls.iter().map(|files| CertificateFiles { cert: files.cert.clone(), key: files.key.clone() })
}

fn access_log(path: &Path) -> Result<Arc<AccessLog>, SiteError> {
    let failed = |source| SiteError::AccessLog { file: path.display().to_string(), source };
    AccessLog::open(path).map(Arc::new).map_err(failed)
}

/// Which web pages a config lets pay.
pub(super) fn cors(config: &config::Cors) -> Cors {
    match config {
        config::Cors::Off => Cors::Off,
        config::Cors::Any => Cors::Any,
        config::Cors::Origins(origins) => Cors::Only(origins.clone().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_config_says_of_redemption_is_what_is_done() {
        let lines = "[redeem]\nmax_unclaimed = \"$1\"\nmax_unclaimed_per_channel = \"$2\"\nmax_unclaimed_per_payer = \"$3\"\n\
                     max_age = \"4h\"\nmax_gas_share = \"5%\"\ncoin_price = \"$6\"\n";
        let changes = [
            ("[redeem]\n", lines),
            ("interval = \"10m\"", "interval = \"7m\""),
            ("max_rows = 200", "max_rows = 8"),
            ("confirmations = 1", "confirmations = 9"),
            ("bump_after = \"30s\"", "bump_after = \"10s\""),
            ("max_fee = \"50 gwei\"", "max_fee = \"11 wei\""),
            ("# urgent_max_fee = \"500 gwei\"", "urgent_max_fee = \"12 wei\""),
            ("sweep_interval = \"10m\"", "sweep_interval = \"13m\""),
            ("# refund_idle = \"30d\"", "refund_idle = \"14h\""),
            ("stuck_after = \"1h\"", "stuck_after = \"15h\""),
            ("poll = \"2s\"", "poll = \"16s\""),
            ("max_wallet_exposure = \"$1\"", "max_wallet_exposure = \"$17\""),
        ];
        let text = changes.iter().fold(include_str!("../../config.example.toml").to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        });
        let Settings { rules, sending, watch, stuck_after, poll } = settings(&Config::parse(&text, "c.toml").unwrap());
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let dollars = |count: u128| Some(Amount::new(1_000_000 * count));
        let expected = Rules {
            dollars: Dollars::default(),
            interval: minutes(7),
            max_unclaimed: dollars(1),
            max_unclaimed_per_channel: dollars(2),
            max_unclaimed_per_payer: dollars(3),
            max_age: Some(minutes(240)),
            max_gas_share_bps: Some(500),
            units_per_coin: Some(6_000_000),
            max_wallet_exposure: Amount::new(17_000_000),
            max_rows: 8,
        };
        assert_eq!(rules, expected);
        let bump_after = Duration::from_secs(10);
        assert_eq!(sending, Sending { confirmations: 9, bump_after, max_fee_wei: 11, urgent_max_fee_wei: 12 });
        assert_eq!(watch, Watch { sweep_interval: minutes(13), refund_idle: Some(minutes(14 * 60)) });
        assert_eq!((stuck_after, poll), (minutes(15 * 60), Duration::from_secs(16)));
    }
}
