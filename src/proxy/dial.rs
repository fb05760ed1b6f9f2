//! Connections to one target: where it is, whom it must be, and who we are to it.
//!
//! **Owns** name lookup, TCP and TLS. **Promises** that all three together take no longer than the connect timeout.
//! **Does not** keep what it opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connection as _, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tower::{BoxError, ServiceExt as _};

use super::upstream::NoUpstream;
use crate::tls;

/// How long a connection may be silent before the system asks whether its other end is still there. Asking on HTTP/2 itself
/// is what some gRPC servers take for an attack.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// How an upstream is known, and how we are known to it, where TLS is spoken. Files are PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The certificates that may sign its own, instead of the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate (and those between it and its root), and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Whose certificate it must have, if not its URL's host's.
    pub server_name: Option<String>,
}

impl UpstreamTls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read or is not what it should be; or there is nobody to trust.
    pub(crate) fn client_config(&self) -> Result<ClientConfig, NoUpstream> {
        let refused = |path: &PathBuf, error: &dyn std::error::Error| NoUpstream::Tls {
            path: path.clone(),
            reason: error.to_string(),
        };
        if *self == (Self { server_name: self.server_name.clone(), ..Self::default() }) {
            return if tls::has_roots() { Ok(tls::client_config()) } else { Err(NoUpstream::NoRoots) };
        }
        let certificates = |path: &PathBuf| -> Result<Vec<CertificateDer<'static>>, NoUpstream> {
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            let read: Vec<_> = read.map_err(|error| refused(path, &error))?;
            let none = NoUpstream::Tls { path: path.clone(), reason: "it holds no certificate".to_owned() };
            if read.is_empty() { Err(none) } else { Ok(read) }
        };
        let roots = match &self.ca {
            None if !tls::has_roots() => return Err(NoUpstream::NoRoots),
            None => tls::roots(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| refused(path, &error))?;
                }
                Arc::new(roots)
            }
        };
        let config = tls::config_builder().with_root_certificates(roots);
        let Some((certificate, key)) = &self.client else { return Ok(config.with_no_client_auth()) };
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| refused(key, &error))?;
        config.with_client_auth_cert(certificates(certificate)?, secret).map_err(|error| refused(key, &error))
    }
}

/// What a connection is made of.
pub(super) type Line = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Opens connections to one target.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    connector: HttpsConnector<HttpConnector>,
    uri: Uri,
    connect_timeout: Duration,
    /// Whether HTTP/2 is spoken, and nothing else.
    http2: bool,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum NoLine {
    #[error("it took too long")]
    TooLong,
    #[error("it does not speak HTTP/2")]
    NotHttp2,
}

impl Dialer {
    /// For what `uri` names; `config` is for `https`.
    pub(super) fn new(
        config: ClientConfig,
        server_name: Option<ServerName<'static>>,
        uri: Uri,
        connect_timeout: Duration,
        http2: bool,
    ) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(connect_timeout));
        tcp.set_keepalive(Some(TCP_KEEPALIVE));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
        let builder = match server_name {
            Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name)),
            None => builder,
        };
        let connector =
            if http2 { builder.enable_http2().wrap_connector(tcp) } else { builder.enable_http1().wrap_connector(tcp) };
        Self { connector, uri, connect_timeout, http2 }
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2
    }

    /// A new connection.
    pub(super) async fn dial(&self) -> Result<Line, BoxError> {
        let dialing = self.connector.clone().oneshot(self.uri.clone());
        let line = tokio::time::timeout(self.connect_timeout, dialing).await.map_err(|_| NoLine::TooLong)??;
        let encrypted = self.uri.scheme() == Some(&Scheme::HTTPS);
        if self.http2 && encrypted && !line.connected().is_negotiated_h2() {
            return Err(NoLine::NotHttp2.into());
        }
        Ok(line)
    }
}
