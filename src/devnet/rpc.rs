//! The listener: one JSON-RPC endpoint over HTTP.
//!
//! Owns the envelope (single requests and batches), the limits on what a client may send, and the lock around the
//! chain. Promises that a request is answered by one consistent chain, and that a batch is answered in order.

use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::{get, post};
use serde_json::Value;
use tokio::sync::watch;

use super::Mining;
use super::chain::Chain;
use super::filters::Filters;
use super::rpc_types::{Params, Request, Response, RpcError};
use super::{control, eth};

/// What the node calls itself.
pub(super) const CLIENT_VERSION: &str = concat!("peaje-devnet/", env!("CARGO_PKG_VERSION"));

/// Bytes of one HTTP request's body: a transaction of 128 KiB as hex, many times over.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// Requests in one batch.
const MAX_BATCH: usize = 1_000;

/// What the listener, the miner and the handle share.
#[derive(Debug)]
pub(super) struct Node {
    chain: Mutex<Chain>,
    filters: Mutex<Filters>,
    mining: watch::Sender<Mining>,
}

impl Node {
    pub(super) fn new(chain: Chain) -> Self {
        let mining = watch::Sender::new(chain.mining);
        Self { chain: Mutex::new(chain), filters: Mutex::default(), mining }
    }

    /// Never held across an await, nor taken while the filters' lock is held.
    pub(super) fn chain(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().expect("a panic while the chain is locked ends the devnet")
    }

    pub(super) fn filters(&self) -> MutexGuard<'_, Filters> {
        self.filters.lock().expect("a panic while the filters are locked ends the devnet")
    }

    pub(super) fn set_mining(&self, mining: Mining) {
        self.chain().set_mining(mining);
        self.mining.send_replace(mining);
    }

    pub(super) fn watch_mining(&self) -> watch::Receiver<Mining> {
        self.mining.subscribe()
    }

    fn answer(&self, request: Request) -> Response {
        let outcome = Params::new(request.params).and_then(|params| {
            eth::answer(self, &request.method, &params)
                .or_else(|| control::answer(self, &request.method, &params))
                .unwrap_or_else(|| Err(RpcError::unknown_method(&request.method)))
        });
        if let Err(error) = &outcome {
            tracing::debug!(method = %request.method, ?error, "a request was refused");
        }
        Response::new(request.id, outcome)
    }
}

pub(super) fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/", post(serve).merge(get(|| async { "POST JSON-RPC here.\n" })))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(node)
}

async fn serve(State(node): State<Arc<Node>>, body: Bytes) -> HttpResponse {
    let Ok(message) = serde_json::from_slice::<Value>(&body) else {
        return json(&Response::new(Value::Null, Err(RpcError::parse())));
    };
    match message {
        Value::Array(batch) if batch.is_empty() => {
            json(&Response::new(Value::Null, Err(RpcError::invalid_request("empty batch"))))
        }
        Value::Array(batch) if batch.len() > MAX_BATCH => {
            json(&Response::new(Value::Null, Err(RpcError::limit(format!("batch larger than {MAX_BATCH}")))))
        }
        Value::Array(batch) => json(&batch.into_iter().map(|message| respond(&node, message)).collect::<Vec<_>>()),
        message => json(&respond(&node, message)),
    }
}

fn respond(node: &Node, message: Value) -> Response {
    match serde_json::from_value::<Request>(message) {
        Ok(request) => node.answer(request),
        Err(error) => Response::new(Value::Null, Err(RpcError::invalid_request(format!("invalid request: {error}")))),
    }
}

fn json<T: serde::Serialize>(value: &T) -> HttpResponse {
    let body = serde_json::to_vec(value).expect("answers are plain JSON values");
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}
