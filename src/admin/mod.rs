//! The operator's listener, on loopback.
//!
//! | request | answer |
//! |---|---|
//! | `GET /livez` | 200 while the process answers |
//! | `GET /readyz` | 200 while paid work is taken, else 503 and why |
//! | `GET /status` | which prices are in force, and how the last change of the config went |
//! | `GET /channels` | the books, one object a channel |
//! | `GET /upstreams` | the upstreams' targets and how they stand |
//! | `GET /redemption` | how redemption is doing, and how it is run |
//! | `GET /redeem/plan` | a dry run: what a round would do now, cost and leave |
//! | `POST /redeem` | claims and settles now; the report |
//!
//! With several chains the last three are about the preferred one, or the one named with `?chain=` and its id.
//!
//! **Owns** what an operator can see and do from outside the process. **Promises** to show no key, signature or payment
//! header, and that a web page the operator happens to visit cannot order anything here: what changes something needs a
//! header that a page may not send, and a foreign `Host` is refused. **Does not** authenticate beyond that; whoever can
//! connect to loopback is trusted.

use std::future::IntoFuture as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::http::{StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::{ReloadState, Reloads};
use crate::gate::record::Recorder;
use crate::gate::{Gate, Statement};
use crate::local::is_this_machine;
use crate::protocol::{Address, Amount, ChannelId};
use crate::proxy::{TargetState, Upstream};
use crate::redeem::{Redemption, Settings, Vitals};
use crate::store::Latched;

/// The header that shows that a request is no web page's. Any value will do.
pub const ADMIN_HEADER: &str = "x-peaje-admin";

/// How long requests may take once the listener was told to stop; one that is never finished must not keep the process.
const MAX_FAREWELL: Duration = Duration::from_secs(2);

/// After this long without a word from the chain, beyond the pause that the config makes, the view of it is stale and
/// readiness fails.
pub const MAX_CHAIN_SILENCE: Duration = Duration::from_secs(60);

/// A commit that takes longer than this is one on a disk that hangs; paid requests wait for it.
pub const MAX_COMMIT: Duration = Duration::from_secs(5);

/// A channel in the books, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct ChannelLine {
    /// Which.
    pub channel: ChannelId,
    /// Whose.
    pub payer: Address,
    /// The id of its chain.
    #[serde(default)]
    pub chain: u64,
    /// In what it is paid.
    pub token: Address,
    /// Deposits less refunds and withdrawals, atomic units.
    pub balance: Amount,
    /// Charged in all, atomic units.
    pub charged: Amount,
    /// Claimed on chain, atomic units.
    pub claimed: Amount,
    /// Charged and not claimed, atomic units.
    pub unclaimed: Amount,
    /// Charged and no longer covered, atomic units.
    pub shortfall: Amount,
    /// Whether the payer announced a withdrawal.
    pub withdrawing: bool,
}

impl ChannelLine {
    fn of(chain: u64, statement: &Statement) -> Self {
        Self {
            channel: statement.id,
            payer: statement.config.payer,
            chain,
            token: statement.config.token,
            balance: statement.view.balance,
            charged: statement.charged,
            claimed: statement.view.total_claimed,
            unclaimed: statement.unclaimed,
            shortfall: statement.shortfall,
            withdrawing: statement.view.withdrawal.is_some(),
        }
    }
}

/// How redemption is doing, and how it is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedemptionState {
    /// How it is doing.
    pub vitals: Vitals,
    /// Whether claims have failed for longer than they may.
    pub stuck: bool,
    /// How it is run.
    pub settings: RedemptionSettings,
}

/// What an operator has decided about redemption. Amounts are dollars, in units of the preferred token; where nothing is
/// said, there is no such rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedemptionSettings {
    /// Decimal places of a dollar of the preferred token.
    pub decimals: u8,
    /// Between two rounds, seconds.
    pub interval_s: u64,
    /// Unclaimed in all before a round begins earlier.
    pub max_unclaimed: Option<Amount>,
    /// The same for one channel.
    pub max_unclaimed_per_channel: Option<Amount>,
    /// The same for one payer.
    pub max_unclaimed_per_payer: Option<Amount>,
    /// How long something may be unclaimed before a round begins earlier, seconds.
    pub max_age_s: Option<u64>,
    /// The part of a claim that gas may take, hundredths of a percent.
    pub max_gas_share_bps: Option<u32>,
    /// What a coin is worth.
    pub coin_price: Option<Amount>,
    /// Channels in a claim, at most.
    pub max_rows: usize,
    /// Blocks on a transaction before it is believed for good.
    pub confirmations: u64,
    /// How long claims may fail before the proxy is unready, seconds.
    pub stuck_after_s: u64,
}

impl RedemptionSettings {
    fn of(settings: &Settings, decimals: u8) -> Self {
        let Settings { rules, sending, stuck_after, .. } = settings;
        Self {
            decimals,
            interval_s: rules.interval.as_secs(),
            max_unclaimed: rules.max_unclaimed,
            max_unclaimed_per_channel: rules.max_unclaimed_per_channel,
            max_unclaimed_per_payer: rules.max_unclaimed_per_payer,
            max_age_s: rules.max_age.map(|age| age.as_secs()),
            max_gas_share_bps: rules.max_gas_share_bps,
            coin_price: rules.units_per_coin.map(Amount::new),
            max_rows: rules.max_rows,
            confirmations: sending.confirmations,
            stuck_after_s: stuck_after.as_secs(),
        }
    }
}

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of this program.
    pub version: String,
    /// The number of the price list in force, 1 for that of the start; receipts and the access log name it.
    pub price_generation: u64,
    /// What it says, in a few hex digits: proxies of one version with the same prices and terms show the same.
    pub price_digest: String,
    /// How many former price lists are kept for the sake of quotes that are still good.
    pub former_price_lists: usize,
    /// How changes of the config file went.
    #[serde(flatten)]
    pub config: ReloadState,
    /// How many lines the access log lacks; nothing where there is no access log.
    pub access_log_dropped: Option<u64>,
}

#[derive(Clone)]
struct Operators {
    /// One for each chain; the preferred one first.
    tills: Arc<[(Gate, Redemption)]>,
    reloads: Reloads,
    upstream: Upstream,
    unready: CancellationToken,
}

impl Operators {
    /// The till of the chain that a query names by its id, the preferred one where there is no query. Nothing where there
    /// is none of that chain.
    fn till(&self, uri: &Uri) -> Option<&(Gate, Redemption)> {
        let Some(query) = uri.query() else { return self.tills.first() };
        let chain: u64 = query.strip_prefix("chain=")?.parse().ok()?;
        self.tills.iter().find(|(gate, _)| gate.chain_id() == chain)
    }
}

fn no_such_chain() -> Response {
    refuse(StatusCode::NOT_FOUND, "unknown_chain", "this proxy is not paid on that chain")
}

/// Binds the operator's port. Only loopback: it has no password.
///
/// # Errors
/// An address that is not loopback, or one that is taken.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    if !address.ip().is_loopback() {
        let message = "the admin listener has no password, so it only listens on loopback";
        return Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, message));
    }
    TcpListener::bind(address).await
}

/// Serves operators until `stop`. `unready` is cancelled when the proxy begins to stop.
pub async fn serve(
    socket: TcpListener,
    gate: Gate,
    redemption: Redemption,
    reloads: Reloads,
    upstream: Upstream,
    unready: CancellationToken,
    stop: CancellationToken,
) {
    serve_all(socket, vec![(gate, redemption)], reloads, upstream, unready, stop).await;
}

/// The same for several chains, the preferred one first.
pub async fn serve_all(
    socket: TcpListener,
    tills: Vec<(Gate, Redemption)>,
    reloads: Reloads,
    upstream: Upstream,
    unready: CancellationToken,
    stop: CancellationToken,
) {
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/channels", get(channels))
        .route("/upstreams", get(upstreams))
        .route("/redemption", get(state))
        .route("/redeem/plan", get(plan))
        .route("/redeem", post(redeem).route_layer(middleware::from_fn(ordered_on_purpose)))
        .fallback(nothing_here)
        .layer(middleware::from_fn(asked_by_name))
        .with_state(Operators { tills: tills.into(), reloads, upstream, unready });
    let serving = axum::serve(socket, app).with_graceful_shutdown(stop.clone().cancelled_owned()).into_future();
    let out_of_patience = async {
        stop.cancelled().await;
        tokio::time::sleep(MAX_FAREWELL).await;
    };
    tokio::select! {
        ended = serving => if let Err(error) = ended {
            tracing::error!(%error, "the admin listener ended");
        },
        () = out_of_patience => tracing::debug!("an operator's request was not finished in time"),
    }
}

async fn readyz(State(operators): State<Operators>) -> Response {
    let stopping = operators.unready.is_cancelled();
    let journals = || operators.tills.iter().map(|(gate, _)| gate.accounts().journal());
    let latch = journals().find_map(|journal| journal.latch());
    let commit = journals().filter_map(|journal| journal.commit_in_progress()).max().unwrap_or_default();
    // While one chain answers it sells, and the offers of the others are not quoted.
    let silences = operators.tills.iter().map(|(_, redemption)| {
        let settings = redemption.settings();
        too_long(redemption.chain_silence(), settings.poll)
    });
    let silence = silences.min().flatten();
    let stuck = operators.tills.iter().find_map(|(gate, redemption)| {
        let decimals = gate.policy().terms().token.decimals;
        redemption.stuck().map(|vitals| stuck(&vitals, decimals, clock::now_s()))
    });
    match unreadiness(stopping, latch, commit, silence, stuck) {
        None => "ready\n".into_response(),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")).into_response(),
    }
}

/// A silence that is too long. Between two looks nobody asks the chain, and that is no silence of its.
fn too_long(silence: Duration, poll: Duration) -> Option<Duration> {
    Some(silence).filter(|silence| *silence > MAX_CHAIN_SILENCE.saturating_add(poll))
}

/// `silence` is one that is too long; `stuck` says that claims are stuck, and why.
fn unreadiness(
    stopping: bool,
    latch: Option<&Latched>,
    commit: Duration,
    silence: Option<Duration>,
    stuck: Option<String>,
) -> Option<String> {
    if let Some(latched) = latch {
        Some(latched.to_string())
    } else if stopping {
        Some("the proxy is stopping".to_owned())
    } else if commit > MAX_COMMIT {
        Some(format!("the disk of the books has not answered for {} s", commit.as_secs()))
    } else if let Some(silence) = silence {
        Some(format!("the chain has not answered for {} s", silence.as_secs()))
    } else {
        stuck
    }
}

/// What is at risk comes first: somebody is being woken.
fn stuck(vitals: &Vitals, decimals: u8, now: u64) -> String {
    let failing = vitals.failing_since.map_or(0, |since| now.saturating_sub(since));
    let (unclaimed, channels) = (vitals.unclaimed.to_price(decimals), vitals.unclaimed_channels);
    let oldest = vitals.oldest_unclaimed_s.unwrap_or_default();
    let problem = vitals.problem.as_deref().unwrap_or("no reason is known");
    format!(
        "claims are stuck: {unclaimed} unclaimed on {channels} channels, the oldest for {oldest} s; failing for \
         {failing} s: {problem}"
    )
}

async fn status(State(operators): State<Operators>) -> Response {
    let Some((gate, _)) = operators.tills.first() else { return no_such_chain() };
    let seen = operators.reloads.see(|config| {
        let policy = gate.policy();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            price_generation: policy.generation(),
            price_digest: policy.digest().to_owned(),
            former_price_lists: gate.former_policies(),
            config: config.clone(),
            access_log_dropped: gate.recorder().map(Recorder::dropped),
        }
    });
    Json(seen).into_response()
}

async fn channels(State(operators): State<Operators>) -> Json<Vec<ChannelLine>> {
    let lines = operators.tills.iter().flat_map(|(gate, _)| {
        let line = |statement: &Statement| ChannelLine::of(gate.chain_id(), statement);
        gate.accounts().statements().iter().map(line).collect::<Vec<_>>()
    });
    Json(lines.collect())
}

async fn upstreams(State(operators): State<Operators>) -> Json<Vec<TargetState>> {
    Json(operators.upstream.targets())
}

async fn state(State(operators): State<Operators>, uri: Uri) -> Response {
    let Some((gate, redemption)) = operators.till(&uri) else { return no_such_chain() };
    let settings = redemption.settings();
    let vitals = redemption.vitals();
    Json(RedemptionState {
        stuck: vitals.is_stuck(clock::now_s(), settings.stuck_after),
        settings: RedemptionSettings::of(settings, gate.policy().terms().token.decimals),
        vitals,
    })
    .into_response()
}

async fn plan(State(operators): State<Operators>, uri: Uri) -> Response {
    let Some((_, redemption)) = operators.till(&uri) else { return no_such_chain() };
    match redemption.plan().await {
        Ok(preview) => Json(preview).into_response(),
        Err(stopped) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": stopped.to_string()}))).into_response(),
    }
}

async fn redeem(State(operators): State<Operators>, uri: Uri) -> Response {
    let Some((_, redemption)) = operators.till(&uri) else { return no_such_chain() };
    match redemption.redeem().await {
        Ok(report) => Json(report).into_response(),
        Err(stopped) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": stopped.to_string()}))).into_response(),
    }
}

async fn ordered_on_purpose(request: Request, next: Next) -> Response {
    if request.headers().contains_key(ADMIN_HEADER) {
        return next.run(request).await;
    }
    refuse(StatusCode::FORBIDDEN, "forbidden", &format!("send the header {ADMIN_HEADER}: 1"))
}

async fn nothing_here() -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        "not_found",
        "there are /livez, /readyz, /status, /channels, /upstreams, /redemption, /redeem/plan and /redeem",
    )
}

fn refuse(status: StatusCode, error: &str, message: &str) -> Response {
    (status, Json(json!({"error": error, "message": message}))).into_response()
}

/// A page of another site can be made to resolve to loopback; its requests then carry that site's name.
async fn asked_by_name(request: Request, next: Next) -> Response {
    let mut hosts = request.headers().get_all(HOST).iter();
    let named = hosts.next().filter(|_| hosts.next().is_none());
    let named = named.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    if named.is_some_and(|host| is_local(&host)) && request.uri().authority().is_none_or(is_local) {
        return next.run(request).await;
    }
    refuse(StatusCode::MISDIRECTED_REQUEST, "wrong_host", "ask for localhost or a loopback address")
}

fn is_local(authority: &Authority) -> bool {
    is_this_machine(authority.host())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ChannelRow, Cursor, Entry, Journal, LedgerStore, StoreError, Transaction};

    /// A disk without room.
    struct Full;

    impl LedgerStore for Full {
        fn channels(&mut self, _: &mut dyn FnMut(ChannelRow) -> Result<(), StoreError>) -> Result<(), StoreError> {
            Ok(())
        }

        fn unfinished(&mut self) -> Result<Vec<Transaction>, StoreError> {
            Ok(Vec::new())
        }

        fn cursor(&mut self) -> Result<Option<Cursor>, StoreError> {
            Ok(None)
        }

        fn commit(&mut self, _: &[Entry]) -> Result<(), StoreError> {
            Err(StoreError::Full("no room".into()))
        }
    }

    #[tokio::test]
    async fn a_proxy_whose_books_cannot_be_written_is_unready() {
        let journal = Journal::start(Full).unwrap();
        journal.note(Entry::Cursor(Cursor { next_block: 1 }), None);
        journal.latched().await;
        let problem = unreadiness(false, journal.latch(), Duration::ZERO, None, None);
        assert_eq!(problem.as_deref(), Some("the disk is full: no room"));
    }

    #[test]
    fn a_proxy_that_stops_or_whose_chain_is_silent_is_unready() {
        let poll = Duration::from_secs(300);
        let unready =
            |stopping, commit, silence| unreadiness(stopping, None, commit, too_long(silence, Duration::ZERO), None);
        assert_eq!(too_long(MAX_CHAIN_SILENCE + poll, poll), None, "nobody asked in between");
        assert_eq!(too_long(Duration::from_secs(361), poll), Some(Duration::from_secs(361)));
        assert_eq!(unready(false, Duration::ZERO, Duration::ZERO), None);
        assert_eq!(unready(false, MAX_COMMIT, MAX_CHAIN_SILENCE), None);
        let silent = unready(false, MAX_COMMIT, MAX_CHAIN_SILENCE + Duration::from_secs(1));
        assert_eq!(silent.as_deref(), Some("the chain has not answered for 61 s"));
        let hanging = unready(false, MAX_COMMIT + Duration::from_secs(1), Duration::ZERO);
        assert_eq!(hanging.as_deref(), Some("the disk of the books has not answered for 6 s"));
        assert_eq!(unready(true, Duration::ZERO, Duration::ZERO).as_deref(), Some("the proxy is stopping"));
    }

    #[test]
    fn a_proxy_whose_claims_are_stuck_is_unready_and_says_what_is_at_risk() {
        let vitals = Vitals {
            unclaimed: Amount::new(12_340_000),
            unclaimed_channels: 3,
            oldest_unclaimed_s: Some(7_300),
            failing_since: Some(1_000),
            problem: Some("the node refused it: insufficient funds".to_owned()),
            ..Vitals::default()
        };
        let expected = "claims are stuck: $12.34 unclaimed on 3 channels, the oldest for 7300 s; failing for 4000 s: the \
                        node refused it: insufficient funds";
        let told = stuck(&vitals, 6, 5_000);
        assert_eq!(told, expected);
        let unready = |commit| unreadiness(false, None, commit, None, Some(told.clone()));
        assert_eq!(unready(Duration::ZERO).as_deref(), Some(expected));
        let hanging = unready(MAX_COMMIT + Duration::from_secs(1));
        assert!(
            hanging.is_some_and(|why| why.starts_with("the disk")),
            "what keeps claims from being made comes first"
        );
    }

    #[test]
    fn the_state_of_redemption_survives_json() {
        let state = RedemptionState {
            vitals: Vitals { gas_balance_wei: Some(u128::MAX), unclaimed: Amount::MAX, ..Vitals::default() },
            stuck: false,
            settings: RedemptionSettings::of(&Settings::default(), 6),
        };
        let text = serde_json::to_value(&state).unwrap().to_string();
        assert!(text.contains(&format!("\"gas_balance_wei\":\"{}\"", u128::MAX)), "{text}");
        assert_eq!(serde_json::from_str::<RedemptionState>(&text).unwrap(), state);
    }
}
