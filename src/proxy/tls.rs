//! TLS in front.
//!
//! **Owns** which certificate a client is shown, and following the files as they change. **Promises** TLS 1.2 and later
//! only, HTTP/2 before HTTP/1.1 for who offers both (ALPN), no data before the handshake is complete (a replayed payment
//! would be one), and that a changed pair of files that cannot be used leaves the one in use as it is, says why, and keeps no
//! other pair from being renewed. **Does not** ask clients for certificates.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::ServerName;
use tokio_util::sync::CancellationToken;

use super::certificate::{Certificate, CertificateError, CertificateFiles};
use crate::causes::causes;
use crate::changed::{Hangups, Mark};

/// How often the files are looked at. Whoever cannot wait sends SIGHUP.
pub const CERTIFICATE_POLL: Duration = Duration::from_secs(5);

/// The certificates of a listener. Clones show the same ones.
#[derive(Debug, Clone)]
pub struct Certificates {
    files: Arc<[CertificateFiles]>,
    /// What the files were like before they were read at start.
    loaded: Arc<[Option<Mark>]>,
    shown: Arc<Shown>,
    config: Arc<ServerConfig>,
}

/// Those in use, in the order of the files.
#[derive(Debug)]
struct Shown(ArcSwap<Vec<Arc<Certificate>>>);

impl Certificates {
    /// Reads all pairs.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn load(files: &[CertificateFiles]) -> Result<Self, CertificateError> {
        let loaded = marks(files).into();
        let all = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let shown = Arc::new(Shown(ArcSwap::from_pointee(all)));
        let mut config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("ring speaks both versions")
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Without, each core's clients would fill one small cache for all. A system without random bytes has none, and does
        // the whole handshake each time.
        if let Ok(ticketer) = ring::Ticketer::new() {
            config.ticketer = ticketer;
        }
        Ok(Self { files: files.into(), loaded, shown, config: config.into() })
    }

    /// What a handshake is made with.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Reads the files again. Each pair that cannot be used is as it was; why it cannot, in the order of the files.
    fn renew(&self) -> Vec<CertificateError> {
        let mut unusable = Vec::new();
        let present = self.shown.0.load();
        let renewed = self.files.iter().zip(present.iter()).map(|(files, present)| {
            read(files).unwrap_or_else(|error| {
                unusable.push(error);
                Arc::clone(present)
            })
        });
        let renewed = renewed.collect();
        self.shown.0.store(Arc::new(renewed));
        unusable
    }

    /// Reads the files again whenever they have changed, or a hang-up asks for it, until `stop`.
    pub(super) async fn follow(self, poll: Duration, stop: CancellationToken) {
        let mut hangups = Hangups::listen();
        let mut before = self.loaded.to_vec();
        loop {
            let told = tokio::select! {
                () = stop.cancelled() => return,
                () = hangups.next() => true,
                () = tokio::time::sleep(poll) => false,
            };
            // Looked at before they are read: what changes meanwhile is read the next time.
            let marks = marks(&self.files);
            if !told && marks == before {
                continue;
            }
            before = marks;
            let unusable = self.renew();
            for error in &unusable {
                tracing::error!(error = %causes(error), "a new TLS certificate cannot be used; the one in use stays");
            }
            if unusable.len() < self.files.len() {
                tracing::info!("the TLS certificates were read again");
            }
        }
    }
}

fn marks(files: &[CertificateFiles]) -> Vec<Option<Mark>> {
    files.iter().flat_map(|files| [Mark::of(&files.cert), Mark::of(&files.key)]).collect()
}

impl ResolvesServerCert for Shown {
    /// The first that is for the name the client asks for, or else the first: a client that asks for none, or for a name
    /// of its own, decides by itself what it thinks of that.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.load();
        let asked = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = asked.filter(|_| shown.len() > 1).and_then(|name| shown.iter().find(|one| one.is_for(&name)));
        named.or_else(|| shown.first()).map(|certificate| Arc::clone(&certificate.key))
    }
}

/// Reads a pair.
fn read(files: &CertificateFiles) -> Result<Arc<Certificate>, CertificateError> {
    let certificate = Certificate::read(files)?;
    if certificate.others_can_read_the_key() {
        tracing::warn!(key = %files.key.display(), "every account of this machine can read this private key");
    }
    Ok(Arc::new(certificate))
}

#[cfg(test)]
mod tests {
    use super::super::certificate::tests::issue;
    use super::*;

    #[test]
    fn a_renewed_pair_is_shown_and_a_broken_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let files = issue(directory.path(), &["old.example"], (2040, 1, 1));
        let certificates = Certificates::load(std::slice::from_ref(&files)).unwrap();
        let covers = |host: &str| certificates.shown.0.load().first().unwrap().covers(host);
        let marks = || marks(&certificates.files);
        assert_eq!(marks(), *certificates.loaded);
        std::fs::write(&files.key, "half").unwrap();
        assert_ne!(marks(), *certificates.loaded);
        assert_eq!(certificates.renew().len(), 1);
        assert!(covers("old.example"));
        issue(directory.path(), &["new.example"], (2040, 1, 1));
        assert!(certificates.renew().is_empty());
        assert!(covers("new.example") && !covers("old.example"));
        std::fs::remove_file(&files.cert).unwrap();
        assert_eq!(marks().first(), Some(&None));
        assert_eq!(certificates.renew().len(), 1);
        assert!(covers("new.example"));
    }

    #[test]
    fn a_broken_pair_keeps_no_other_from_being_renewed() {
        let directories = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let files = directories.each_ref().map(|directory| issue(directory.path(), &["old.example"], (2040, 1, 1)));
        let certificates = Certificates::load(&files).unwrap();
        for directory in &directories {
            issue(directory.path(), &["new.example"], (2040, 1, 1));
        }
        std::fs::write(&files[1].key, "half").unwrap();
        assert_eq!(certificates.renew().len(), 1);
        let shown = certificates.shown.0.load();
        let new: Vec<bool> = shown.iter().map(|certificate| certificate.covers("new.example")).collect();
        assert_eq!(new, [true, false, true]);
        assert!(shown[1].covers("old.example"));
    }
}
