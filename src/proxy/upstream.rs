//! The upstream: the API that is sold.
//!
//! **Owns** the connection pool and the failures of reaching it, each with its status. **Promises** that bodies stream
//! through, and that an answer never takes longer to begin than the configured time. **Does not** retry what was sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower::Service;

use super::body::{BodyBroken, RequestBody};
use super::headers;
use crate::causes::causes;
use crate::gate::refusal;
use crate::tls;

/// How long an idle connection to the upstream is kept: less than the five seconds after which common servers close theirs,
/// because a request that meets the close halfway cannot be sent again safely.
const POOL_IDLE: Duration = Duration::from_secs(4);

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
    /// The request's target cannot be expressed as a URL of the upstream.
    #[error("the request target cannot be forwarded")]
    Target,
}

impl UpstreamError {
    fn code(self) -> (StatusCode, &'static str) {
        match self {
            Self::Unreachable => (StatusCode::BAD_GATEWAY, "upstream_unreachable"),
            Self::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout"),
            Self::Body => (StatusCode::BAD_REQUEST, "body_broken"),
            Self::BodyPaused => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
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

/// The service at the bottom of the stack. Cloning shares the pool.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: Client<HttpsConnector<HttpConnector>, RequestBody>,
    scheme: Scheme,
    authority: Authority,
    base: String,
    response_timeout: Duration,
    client_scheme: HeaderValue,
}

impl Upstream {
    /// Makes a pool; nothing is connected yet.
    pub fn new(settings: &UpstreamSettings) -> Result<Self, NoUpstream> {
        let parts = settings.url.clone().into_parts();
        let scheme =
            parts.scheme.filter(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme)).ok_or(NoUpstream::Url)?;
        let authority = parts.authority.ok_or(NoUpstream::Url)?;
        if scheme == Scheme::HTTPS && !tls::has_roots() {
            return Err(NoUpstream::NoRoots);
        }
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(settings.connect_timeout));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client_config())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(connector);
        let base = settings.url.path().trim_end_matches('/').to_owned();
        let client_scheme = HeaderValue::from_static("http");
        Ok(Self { client, scheme, authority, base, response_timeout: settings.response_timeout, client_scheme })
    }

    /// Tells the upstream with which scheme clients come. We speak no TLS ourselves: where it ends in front of us, only
    /// the public URL knows, and an upstream that is told `http` may redirect to `https` for ever.
    pub(super) fn seen_at(self, public_url: &str) -> Self {
        let https = public_url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        Self { client_scheme: HeaderValue::from_static(if https { "https" } else { "http" }), ..self }
    }

    async fn forward(&self, mut request: Request<RequestBody>) -> Result<Response<Incoming>, UpstreamError> {
        headers::prepare(&mut request, &self.client_scheme);
        *request.uri_mut() = self.target(request.uri()).ok_or(UpstreamError::Target)?;
        *request.version_mut() = Version::HTTP_11;
        let answer = tokio::time::timeout(self.response_timeout, self.client.request(request));
        let mut response = answer.await.map_err(|_| UpstreamError::TimedOut)?.map_err(|error| {
            if let Some(broken) = of_the_clients(&error) {
                return match broken {
                    BodyBroken::Off(_) => UpstreamError::Body,
                    BodyBroken::Paused => UpstreamError::BodyPaused,
                };
            }
            tracing::warn!(error = %causes(&error), "the upstream gave no answer");
            UpstreamError::Unreachable
        })?;
        if response.status().is_informational() {
            // No upgrade is ever asked for, so this is no answer, and what follows it no HTTP.
            tracing::warn!(status = response.status().as_u16(), "the upstream switched protocols unasked");
            return Err(UpstreamError::Unreachable);
        }
        // The version belongs to the connection: the client's says how its answer is framed.
        *response.version_mut() = Version::HTTP_11;
        headers::strip_hop_by_hop(response.headers_mut());
        Ok(response)
    }

    /// The same path and query at the upstream, behind its base path.
    fn target(&self, uri: &Uri) -> Option<Uri> {
        let path_and_query = match (self.base.as_str(), uri.path_and_query()) {
            ("", Some(same)) => same.clone(),
            (base, Some(rest)) => PathAndQuery::try_from(format!("{base}{rest}")).ok()?,
            (_, None) => return None,
        };
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path_and_query)
            .build()
            .ok()
    }
}

impl Service<Request<RequestBody>> for Upstream {
    type Response = Response<Either<Incoming, Full<Bytes>>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let upstream = self.clone();
        Box::pin(async move {
            Ok(match upstream.forward(request).await {
                Ok(response) => response.map(Either::Left),
                Err(error) => respond(error).map(Either::Right),
            })
        })
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
