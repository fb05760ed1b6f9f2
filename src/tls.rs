//! TLS towards others: chain nodes, upstreams, the servers an agent pays.
//!
//! **Owns** whom we trust: the system's certificates, read once. **Promises** that a system without any can still speak
//! plain `http`, as everything on one machine does; whoever needs `https` asks [`has_roots`] and says what is missing.
//! **Does not** serve TLS.

use std::sync::LazyLock;

use rustls::{ClientConfig, RootCertStore};

struct Trust {
    config: ClientConfig,
    has_roots: bool,
}

static TRUST: LazyLock<Trust> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    // A certificate that cannot be read is one less that is trusted, never one more.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let has_roots = !roots.is_empty();
    let config = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Trust { config, has_roots }
});

/// The settings of a client's connections.
pub(crate) fn client_config() -> ClientConfig {
    TRUST.config.clone()
}

/// Whether there is anybody to trust. Without, every `https` connection fails.
pub(crate) fn has_roots() -> bool {
    TRUST.has_roots
}
