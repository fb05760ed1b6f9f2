//! A proxy in this process for what happens at its listener, and certificates for it.
#![allow(dead_code, reason = "a toolbox: not every test needs every tool")]

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Policy, Price, Route};
use peaje::gate::{Desk, Gate, Limits};
use peaje::ledger::View;
use peaje::protocol::Amount;
use peaje::proxy::{Bounds, CertificateFiles, Cors, Listener, Upstream, UpstreamSettings};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::payer::{Payer, usual_terms as terms};
use super::raw::{Client, PATIENCE};

pub(crate) const PRICE: u128 = 2_000;

/// A proxy: `/paid/*` costs something, everything else is free.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    pub(crate) gate: Gate,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<()>,
}

pub(crate) struct Setup {
    pub(crate) upstream: SocketAddr,
    pub(crate) bounds: Bounds,
    pub(crate) limits: Limits,
    pub(crate) drain: Duration,
    pub(crate) cores: usize,
}

impl Setup {
    pub(crate) fn new(upstream: SocketAddr) -> Self {
        Self { upstream, bounds: Bounds::default(), limits: Limits::default(), drain: PATIENCE, cores: 1 }
    }

    pub(crate) async fn open(self) -> Site {
        self.open_with(|listener| listener).await
    }

    pub(crate) async fn open_with(self, settle: impl FnOnce(Listener) -> Listener) -> Site {
        let cores = NonZeroUsize::new(self.cores).unwrap();
        let listener = Listener::bind_cores("127.0.0.1:0".parse().unwrap(), cores).await.unwrap();
        self.open_on(settle(listener))
    }

    pub(crate) fn open_on(self, listener: Listener) -> Site {
        let route = |path: &str, price| Route::new(PathPattern::parse(path).unwrap(), price);
        let routes = vec![route("/*", Price::Free), route("/paid/*", Price::Fixed(Amount::new(PRICE)))];
        let policy = Policy::new(terms(), "http://api.example.com", routes).unwrap();
        let gate = Gate::new(policy, Desk::closed()).with_limits(self.limits);
        let upstream = Upstream::new(&UpstreamSettings {
            connect_timeout: PATIENCE,
            response_timeout: PATIENCE,
            ..UpstreamSettings::of(format!("http://{}", self.upstream).parse().unwrap())
        })
        .unwrap();
        let address = listener.address().unwrap();
        let stop = CancellationToken::new();
        let stack = peaje::proxy::stack(&gate, upstream, Cors::Off, self.bounds);
        let task = tokio::spawn(listener.serve(stack, stop.clone(), self.drain, || ()));
        Site { address, gate, stop, task }
    }
}

impl Site {
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// The `n`th wallet, with a channel that has a deposit.
    pub(crate) fn payer(&self, n: u8) -> Payer {
        let payer = Payer::new(n, &terms(), PRICE);
        let view = View { block: 1, balance: Amount::new(1_000_000), ..View::default() };
        self.gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
        payer
    }

    pub(crate) fn charged(&self, payer: &Payer) -> u128 {
        self.gate.accounts().statement(&payer.id()).unwrap().charged.units()
    }

    /// The header of the payer's next request.
    pub(crate) fn payment(&self, payer: &Payer) -> String {
        payer.voucher(self.charged(payer) + PRICE).header()
    }
}

/// Who signs the certificates of a test.
pub(crate) struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "a test's own authority");
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    /// Writes a certificate for these names, and its key, over what is there.
    pub(crate) fn issue(&self, directory: &Path, names: &[&str]) -> CertificateFiles {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = rcgen::CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = CertificateFiles { cert: directory.join("cert.pem"), key: directory.join("key.pem") };
        fs::write(&files.cert, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        #[cfg(unix)]
        fs::set_permissions(&files.key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        files
    }

    /// Its own certificate, as a file for clients.
    pub(crate) fn trusted_in(&self, directory: &Path) -> PathBuf {
        let path = directory.join("ca.pem");
        fs::write(&path, &self.pem).unwrap();
        path
    }

    /// A client's settings that trust it and offer these protocols.
    pub(crate) fn client(&self, protocols: &[&str]) -> Arc<rustls::ClientConfig> {
        use rustls_pki_types::pem::PemObject as _;

        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls_pki_types::CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = rustls::crypto::ring::default_provider();
        let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.into()
    }
}
