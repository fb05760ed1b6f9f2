//! The operator's listener, on loopback.
//!
//! | request | answer |
//! |---|---|
//! | `GET /livez` | 200 while the process answers |
//! | `GET /readyz` | 200 while paid work is taken, else 503 and why |
//! | `GET /channels` | the books, one object a channel |
//! | `POST /redeem` | claims and settles now; the report |
//!
//! **Owns** what an operator can see and do from outside the process. **Promises** to show no key, signature or payment
//! header, and that a web page the operator happens to visit cannot order anything here: what changes something needs a
//! header that a page may not send, and a foreign `Host` is refused. **Does not** authenticate beyond that; whoever can
//! connect to loopback is trusted.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::gate::{Gate, Statement};
use crate::protocol::{Address, Amount, ChannelId};
use crate::redeem::Redemption;

/// The header that shows that a request is no web page's. Any value will do.
pub const ADMIN_HEADER: &str = "x-peaje-admin";

/// After this long without a word from the chain the view of it is stale and readiness fails.
pub const MAX_CHAIN_SILENCE: Duration = Duration::from_secs(60);

/// A channel in the books, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct ChannelLine {
    /// Which.
    pub channel: ChannelId,
    /// Whose.
    pub payer: Address,
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

impl From<&Statement> for ChannelLine {
    fn from(statement: &Statement) -> Self {
        Self {
            channel: statement.id,
            payer: statement.config.payer,
            balance: statement.view.balance,
            charged: statement.charged,
            claimed: statement.view.total_claimed,
            unclaimed: statement.unclaimed,
            shortfall: statement.shortfall,
            withdrawing: statement.view.withdrawal.is_some(),
        }
    }
}

#[derive(Clone)]
struct Operators {
    gate: Gate,
    redemption: Redemption,
    unready: CancellationToken,
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
    unready: CancellationToken,
    stop: CancellationToken,
) {
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/channels", get(channels))
        .route("/redeem", post(redeem).route_layer(middleware::from_fn(ordered_on_purpose)))
        .layer(middleware::from_fn(asked_by_name))
        .with_state(Operators { gate, redemption, unready });
    if let Err(error) = axum::serve(socket, app).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!(%error, "the admin listener ended");
    }
}

async fn readyz(State(operators): State<Operators>) -> Response {
    let silence = operators.redemption.chain_silence();
    let problem = if operators.unready.is_cancelled() {
        Some("the proxy is stopping".to_owned())
    } else if silence > MAX_CHAIN_SILENCE {
        Some(format!("the chain has not answered for {} s", silence.as_secs()))
    } else {
        None
    };
    match problem {
        None => "ready\n".into_response(),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")).into_response(),
    }
}

async fn channels(State(operators): State<Operators>) -> Json<Vec<ChannelLine>> {
    Json(operators.gate.accounts().statements().iter().map(ChannelLine::from).collect())
}

async fn redeem(State(operators): State<Operators>) -> Response {
    match operators.redemption.redeem().await {
        Ok(report) => Json(report).into_response(),
        Err(stopped) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": stopped.to_string()}))).into_response(),
    }
}

async fn ordered_on_purpose(request: Request, next: Next) -> Response {
    if request.headers().contains_key(ADMIN_HEADER) {
        return next.run(request).await;
    }
    let message = format!("send the header {ADMIN_HEADER}: 1");
    (StatusCode::FORBIDDEN, Json(json!({"error": "forbidden", "message": message}))).into_response()
}

/// A page of another site can be made to resolve to loopback; its requests then carry that site's name.
async fn asked_by_name(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let local = bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if local { next.run(request).await } else { StatusCode::MISDIRECTED_REQUEST.into_response() }
}
