//! Requests over the wire.
//!
//! **Owns** the connection pool, TLS and the time limits. **Promises** to send a payment to the URL it was made for and
//! nowhere else: redirects are not followed. **Does not** know what a payment is.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, TE, USER_AGENT};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::{AgentError, PayRequest};
use crate::protocol::x402::{PAYMENT_SIGNATURE, X_PAYMENT};
use crate::tls;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long idle connections are kept.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// How much of an unwanted body is read, in bytes, to keep its connection; and how long that may take.
const MAX_DRAINED_BYTES: usize = 64 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const OUR_NAME: HeaderValue = HeaderValue::from_static(concat!("peaje/", env!("CARGO_PKG_VERSION")));

#[derive(Debug)]
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Http {
    /// A system without certificates still gets a client, for plain `http`; `https` then fails with a clear error.
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client_config())
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(POOL_IDLE).build(connector);
        Self { client }
    }

    /// Sends a request, with a payment or without, and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        request: &PayRequest,
        uri: &Uri,
        payment: Option<HeaderValue>,
        patience: Duration,
    ) -> Result<Response<Incoming>, AgentError> {
        if uri.scheme() == Some(&Scheme::HTTPS) && !tls::has_roots() {
            return Err(AgentError::NoRoots);
        }
        let mut message = Request::new(Full::new(request.body.clone()));
        *message.method_mut() = request.method.clone();
        *message.uri_mut() = uri.clone();
        let headers = message.headers_mut();
        headers.extend(request.headers.clone());
        headers.entry(USER_AGENT).or_insert(OUR_NAME);
        // The connection's own: a caller's value would be about another connection.
        for name in ["content-length", "transfer-encoding", "connection", PAYMENT_SIGNATURE, X_PAYMENT] {
            headers.remove(name);
        }
        if let Some(payment) = payment {
            headers.insert(PAYMENT_SIGNATURE, payment);
            // What a stream cost is known at its end.
            headers.entry(TE).or_insert(HeaderValue::from_static("trailers"));
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        match tokio::time::timeout(patience, self.client.request(message)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(AgentError::Http(error.into())),
            Err(_) => Err(AgentError::Timeout(patience)),
        }
    }
}

/// Reads what is left of an answer nobody wants, so that its connection can be used again; gives up early, and then
/// returns nothing.
pub(super) async fn drain(body: Incoming) -> Bytes {
    match tokio::time::timeout(DRAIN_TIMEOUT, Limited::new(body, MAX_DRAINED_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) | Err(_) => Bytes::new(),
    }
}
