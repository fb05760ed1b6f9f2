//! Certificates the listener shows, as their files hold them.
//!
//! **Owns** reading a certificate and its key, and what an operator wants to know of them: until when they are good and for
//! which names. **Promises** that a key which is not the certificate's is refused, and that no error holds anything of a
//! key. **Does not** judge who issued a certificate: clients do.

use std::fs;
use std::path::{Path, PathBuf};

use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

/// The largest certificate or key file that is read, bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where a certificate and its key are, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, followed by those between it and a root.
    pub cert: PathBuf,
    /// Its private key: PKCS #8, PKCS #1 or SEC1.
    pub key: PathBuf,
}

/// Why a certificate cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{} cannot be read", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {what} in PEM", .path.display())]
    NotPem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The key is another one's, or of a kind nobody can sign with.
    #[error("{} and {} do not make a pair that can be used", .files.cert.display(), .files.key.display())]
    NoPair {
        /// Which.
        files: CertificateFiles,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    pub(super) key: std::sync::Arc<CertifiedKey>,
    others_can_read_the_key: bool,
}

impl Certificate {
    /// Reads a pair of files.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn read(files: &CertificateFiles) -> Result<Self, CertificateError> {
        let CertificateFiles { cert, key } = files;
        let not_pem = |path: &Path, what| CertificateError::NotPem { path: path.to_owned(), what };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes_of(cert)?)
            .collect::<Result<_, _>>()
            .map_err(|_| not_pem(cert, "certificate"))?;
        if chain.is_empty() {
            return Err(not_pem(cert, "certificate"));
        }
        let private = zeroize::Zeroizing::new(bytes_of(key)?);
        let private = PrivateKeyDer::from_pem_slice(&private).map_err(|_| not_pem(key, "private key"))?;
        let pair = CertifiedKey::from_der(chain, private, &rustls::crypto::ring::default_provider())
            .map_err(|source| CertificateError::NoPair { files: files.clone(), source })?;
        Ok(Self { key: pair.into(), others_can_read_the_key: others_can_read(key) })
    }

    /// Whether it is for this host: a name or an address, without a port.
    pub fn covers(&self, host: &str) -> bool {
        ServerName::try_from(host).is_ok_and(|name| self.is_for(&name))
    }

    /// The same for a name that was read already.
    pub(super) fn is_for(&self, name: &ServerName<'_>) -> bool {
        let parsed = self.key.end_entity_cert().and_then(ParsedCertificate::try_from);
        parsed.is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
    }

    /// When it ends, Unix seconds; `None` where that cannot be read.
    pub fn ends_at(&self) -> Option<i64> {
        not_after(self.key.end_entity_cert().ok()?)
    }

    /// Whether every account of this machine can read its key.
    pub fn others_can_read_the_key(&self) -> bool {
        self.others_can_read_the_key
    }
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, CertificateError> {
    use std::io::Read as _;

    let unreadable = |source| CertificateError::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(unreadable)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

#[cfg(unix)]
fn others_can_read(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;

    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
fn others_can_read(_path: &Path) -> bool {
    false
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The end of a certificate's validity (RFC 5280, 4.1), Unix seconds. Nothing else of it is looked at.
fn not_after(certificate: &[u8]) -> Option<i64> {
    let (SEQUENCE, certificate, _) = element(certificate)? else { return None };
    let (SEQUENCE, mut fields, _) = element(certificate)? else { return None };
    // Before the validity: a version (or none), the serial number, the signature's algorithm, the issuer.
    if let (VERSION, _, rest) = element(fields)? {
        fields = rest;
    }
    for expected in [INTEGER, SEQUENCE, SEQUENCE] {
        let (tag, _, rest) = element(fields)?;
        if tag != expected {
            return None;
        }
        fields = rest;
    }
    let (SEQUENCE, validity, _) = element(fields)? else { return None };
    let (_, _, rest) = element(validity)?;
    let (tag, time, _) = element(rest)?;
    unix_seconds(tag, std::str::from_utf8(time).ok()?)
}

/// The first element of DER: its tag, its contents, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..0x80 => (usize::from(first), rest),
        _ => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits.iter().try_fold(0_usize, |length, digit| {
                length.checked_mul(256).and_then(|length| length.checked_add(usize::from(*digit)))
            })?;
            (length, rest)
        }
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`; years of two digits are from 1950 to 2049 (RFC 5280, 4.1.2.5).
fn unix_seconds(tag: u8, text: &str) -> Option<i64> {
    let digits = text.strip_suffix('Z').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let (year, rest) = match tag {
        UTC_TIME if digits.len() == 12 => {
            let (year, rest) = digits.split_at(2);
            let year: i16 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME if digits.len() == 14 => {
            let (year, rest) = digits.split_at(4);
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2)?.parse::<i8>().ok();
    let time = jiff::civil::DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0).ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A certificate for these names that ends then, and its key, as files in a directory.
    pub(crate) fn issue(directory: &Path, names: &[&str], ends: (i32, u8, u8)) -> CertificateFiles {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(ends.0, ends.1, ends.2);
        let files = CertificateFiles { cert: directory.join("cert.pem"), key: directory.join("key.pem") };
        fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn a_certificate_says_until_when_and_for_whom_it_is_good() {
        let directory = tempfile::tempdir().unwrap();
        for (ends, expected) in
            [((2031, 5, 17), 1_936_742_400), ((2049, 12, 31), 2_524_521_600), ((2075, 1, 1), 3_313_526_400)]
        {
            let files = issue(directory.path(), &["api.example.com", "*.wild.example", "192.0.2.1"], ends);
            let certificate = Certificate::read(&files).unwrap();
            assert_eq!(certificate.ends_at(), Some(expected));
            for (host, covered) in [
                ("api.example.com", true),
                ("API.example.com", true),
                ("a.wild.example", true),
                ("192.0.2.1", true),
                ("192.0.2.2", false),
                ("wild.example", false),
                ("a.b.wild.example", false),
                ("example.com", false),
                ("", false),
            ] {
                assert_eq!(certificate.covers(host), covered, "{host}");
            }
        }
    }

    #[test]
    fn what_is_no_pair_is_refused() {
        let [one, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let first = issue(one.path(), &["a.example"], (2040, 1, 1));
        let second = issue(other.path(), &["a.example"], (2040, 1, 1));
        assert!(Certificate::read(&first).is_ok());
        let mixed = CertificateFiles { key: second.key.clone(), ..first.clone() };
        assert!(matches!(Certificate::read(&mixed), Err(CertificateError::NoPair { .. })));
        let turned = CertificateFiles { cert: first.key.clone(), key: first.cert.clone() };
        assert!(matches!(Certificate::read(&turned), Err(CertificateError::NotPem { what: "certificate", .. })));
        let twice = CertificateFiles { key: first.cert.clone(), ..first.clone() };
        assert!(matches!(Certificate::read(&twice), Err(CertificateError::NotPem { what: "private key", .. })));
        let gone = CertificateFiles { key: one.path().join("none"), ..first };
        assert!(matches!(Certificate::read(&gone), Err(CertificateError::Unreadable { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_all_can_read_is_noticed() {
        use std::os::unix::fs::PermissionsExt as _;

        let directory = tempfile::tempdir().unwrap();
        let files = issue(directory.path(), &["a.example"], (2040, 1, 1));
        for (mode, noticed) in [(0o600, false), (0o640, false), (0o644, true)] {
            fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Certificate::read(&files).unwrap().others_can_read_the_key(), noticed, "{mode:o}");
        }
    }

    #[test]
    fn no_bytes_are_a_certificate_by_accident() {
        assert_eq!(not_after(&[]), None);
        for length in 0..64 {
            for byte in [0x00, 0x30, 0x80, 0x84, 0xff] {
                assert_eq!(not_after(&vec![byte; length]), None);
            }
        }
        for (tag, text, expected) in [
            (UTC_TIME, "500101000000Z", Some(-631_152_000)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "491231235960Z", None),
            (UTC_TIME, "4912312359Z", None),
            (UTC_TIME, "491231235959", None),
            (UTC_TIME, "20491231235959Z", None),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "20501301000000Z", None),
            (GENERALIZED_TIME, "2050+101000000Z", None),
        ] {
            assert_eq!(unix_seconds(tag, text), expected, "{text}");
        }
    }
}
