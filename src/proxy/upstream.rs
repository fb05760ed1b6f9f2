//! The upstream: the API that is sold.
//!
//! **Owns** the failures of reaching it, each with its status. **Promises** that bodies stream through, and that an answer
//! never takes longer to begin than the configured time. **Does not** keep connections (the pool does), nor retry what was
//! sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;

use super::body::{BodyBroken, RequestBody};
use super::pool::Pool;
use super::{Caller, headers};
use crate::causes::causes;
use crate::gate::refusal;
use crate::tls;

/// Where the upstream is and how patient we are with it.
#[derive(Debug, Clone)]
pub struct UpstreamSettings {
    /// Its URL: scheme, authority, and perhaps a path that goes before every request's path.
    pub url: Uri,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long the head of an answer may take.
    pub response_timeout: Duration,
}

/// Why there is no answer of the upstream's. The client learns which, and is charged for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// No connection, or it broke before the head of the answer.
    #[error("the upstream cannot be reached")]
    Unreachable,
    /// The head of the answer took too long.
    #[error("the upstream took too long")]
    TimedOut,
    /// The client broke its request off.
    #[error("the request's body broke off")]
    Body,
    /// The client stopped in the middle of its request.
    #[error("the request's body paused for too long")]
    BodyPaused,
    /// The client sent more than a request's body may have.
    #[error("the request's body is larger than this server takes")]
    BodyTooLarge,
    /// The request's target cannot be expressed as a URL of the upstream.
    #[error("the request target cannot be forwarded")]
    Target,
}

impl UpstreamError {
    pub(super) fn code(self) -> (StatusCode, &'static str) {
        match self {
            Self::Unreachable => (StatusCode::BAD_GATEWAY, "upstream_unreachable"),
            Self::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout"),
            Self::Body => (StatusCode::BAD_REQUEST, "body_broken"),
            Self::BodyPaused => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::Target => (StatusCode::BAD_REQUEST, "bad_target"),
        }
    }
}

/// Why there is no upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoUpstream {
    /// Its URL cannot be used.
    #[error("the upstream needs an http or https URL with a host")]
    Url,
    /// It wants TLS, and there is nobody to trust.
    #[error("no trusted root certificates were found, so https cannot be used; install your system's CA certificates")]
    NoRoots,
}

/// The body of an answer: the upstream's, or ours where it gave none.
pub(super) type UpstreamBody = Either<Incoming, Full<Bytes>>;

/// The bottom of the stack. Cloning shares the pool.
#[derive(Debug, Clone)]
pub struct Upstream {
    pool: Arc<Pool>,
    /// The upstream's own name, for its `Host` header.
    host: HeaderValue,
    base: String,
    response_timeout: Duration,
    client_scheme: HeaderValue,
}

impl Upstream {
    /// Makes a pool; nothing is connected yet.
    pub fn new(settings: &UpstreamSettings) -> Result<Self, NoUpstream> {
        let url = &settings.url;
        let scheme = url
            .scheme()
            .filter(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme))
            .cloned()
            .ok_or(NoUpstream::Url)?;
        let name = url.host().ok_or(NoUpstream::Url)?;
        if scheme == Scheme::HTTPS && !tls::has_roots() {
            return Err(NoUpstream::NoRoots);
        }
        let usual_port = if scheme == Scheme::HTTPS { 443 } else { 80 };
        let host = match url.port_u16().filter(|port| *port != usual_port) {
            Some(port) => HeaderValue::try_from(format!("{name}:{port}")),
            None => HeaderValue::try_from(name),
        };
        let host = host.map_err(|_| NoUpstream::Url)?;
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(settings.connect_timeout));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client_config())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self {
            pool: Arc::new(Pool::new(connector, url.clone())),
            host,
            base: url.path().trim_end_matches('/').to_owned(),
            response_timeout: settings.response_timeout,
            client_scheme: HeaderValue::from_static("http"),
        })
    }

    /// The same upstream with connections of its own.
    pub(super) fn apart(&self) -> Self {
        Self { pool: Arc::new(self.pool.apart()), ..self.clone() }
    }

    /// Tells the upstream with which scheme clients come. We speak no TLS ourselves: where it ends in front of us, only
    /// the public URL knows, and an upstream that is told `http` may redirect to `https` for ever.
    pub(super) fn seen_at(self, public_url: &str) -> Self {
        let https = public_url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        Self { client_scheme: HeaderValue::from_static(if https { "https" } else { "http" }), ..self }
    }

    /// The upstream's answer, or ours in its place. `id` is the request's, for the log.
    pub(super) fn ask(
        &self,
        request: Request<RequestBody>,
        caller: &Caller,
        id: &HeaderValue,
    ) -> impl Future<Output = Response<UpstreamBody>> {
        // Out here, because what was looked at in there would keep its room beside the one it moves on to.
        let head_only = request.method() == Method::HEAD;
        async move {
            match self.forward(request, caller, id).await {
                Ok(response) => response.map(Either::Left),
                Err(error) => respond(error).map(|body| Either::Right(if head_only { Full::default() } else { body })),
            }
        }
    }

    async fn forward(
        &self,
        mut request: Request<RequestBody>,
        caller: &Caller,
        id: &HeaderValue,
    ) -> Result<Response<Incoming>, UpstreamError> {
        headers::prepare(&mut request, caller, &self.host, &self.client_scheme);
        let target = self.target(request.uri())?;
        *request.uri_mut() = target;
        *request.version_mut() = Version::HTTP_11;
        let answer = tokio::time::timeout(self.response_timeout, self.pool.send(request)).await;
        let mut response = answer.map_err(|_| UpstreamError::TimedOut)?.map_err(|error| {
            if let Some(broken) = of_the_clients(&error) {
                return match broken {
                    BodyBroken::Off(_) => UpstreamError::Body,
                    BodyBroken::Paused => UpstreamError::BodyPaused,
                    BodyBroken::TooLarge => UpstreamError::BodyTooLarge,
                };
            }
            tracing::warn!(request = headers::text(id), error = %causes(&error), "the upstream gave no answer");
            UpstreamError::Unreachable
        })?;
        if response.status().is_informational() {
            // No upgrade is ever asked for, so this is no answer, and what follows it no HTTP.
            let status = response.status().as_u16();
            tracing::warn!(request = headers::text(id), status, "the upstream switched protocols unasked");
            return Err(UpstreamError::Unreachable);
        }
        // The version belongs to the connection: the client's says how its answer is framed.
        *response.version_mut() = Version::HTTP_11;
        headers::strip_hop_by_hop(response.headers_mut());
        Ok(response)
    }

    /// The same path and query behind the upstream's base path, in origin form.
    fn target(&self, uri: &Uri) -> Result<Uri, UpstreamError> {
        let asked = uri.path_and_query().ok_or(UpstreamError::Target)?;
        if self.base.is_empty() {
            return Ok(Uri::from(asked.clone()));
        }
        PathAndQuery::try_from(format!("{}{asked}", self.base)).map(Uri::from).map_err(|_| UpstreamError::Target)
    }
}

/// How its own body broke, if a request failed because of that.
fn of_the_clients<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a BodyBroken> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
}

fn respond(error: UpstreamError) -> Response<Full<Bytes>> {
    let (status, code) = error.code();
    refusal(status, code, &error.to_string()).map(Full::new)
}
