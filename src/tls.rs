//! TLS towards others: chain nodes, upstreams, the servers an agent pays.
//!
//! **Owns** whom we trust: the system's certificates, read once. **Promises** that a system without any can still speak
//! plain `http`, as everything on one machine does; whoever needs `https` asks [`has_roots`] and says what is missing.
//! **Does not** serve TLS.

use std::sync::{Arc, LazyLock};

use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};

struct Trust {
    config: ClientConfig,
    roots: Arc<RootCertStore>,
}

static TRUST: LazyLock<Trust> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    // A certificate that cannot be read is one less that is trusted, never one more.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let roots = Arc::new(roots);
    let config = config_builder().with_root_certificates(Arc::clone(&roots)).with_no_client_auth();
    Trust { config, roots }
});

/// Settings of a client's connections that say nothing yet of whom it trusts.
pub(crate) fn config_builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
}

/// The settings of a client's connections.
pub(crate) fn client_config() -> ClientConfig {
    TRUST.config.clone()
}

/// Whether there is anybody to trust. Without, every `https` connection fails.
pub(crate) fn has_roots() -> bool {
    !TRUST.roots.is_empty()
}

/// Whom the system trusts.
pub(crate) fn roots() -> Arc<RootCertStore> {
    Arc::clone(&TRUST.roots)
}
