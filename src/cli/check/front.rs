//! The listener: its certificates, and whom it believes.

use super::Finding;
use crate::causes::causes;
use crate::cli::Exit;
use crate::cli::site::certificate_files;
use crate::config::Server;
use crate::proxy::{Certificate, CertificateFiles};

/// How long before its end a certificate is warned about, seconds. Those who renew by themselves do so earlier.
const ENDS_SOON_S: i64 = 14 * 86_400;

const WHAT: &str = "tls";

pub(super) fn findings(server: &Server, now: u64) -> Vec<Finding> {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let mut findings = Vec::new();
    let mut covered = server.tls.is_empty();
    let host = host_of(&server.public_url);
    for files in certificate_files(server) {
        match Certificate::read(&files) {
            Ok(certificate) => {
                covered |= host.as_deref().is_none_or(|host| certificate.covers(host));
                findings.push(end_finding(&files, certificate.ends_at(), now));
                findings.extend(key_finding(&files, certificate.others_can_read_the_key()));
            }
            Err(error) => findings.push(Finding::error(Exit::Config, WHAT, causes(&error)).fix("see [server].tls")),
        }
    }
    if let Some(host) = host.filter(|_| !covered) {
        let detail = format!("no certificate is for {host}, the host of public_url");
        findings.push(Finding::warning(WHAT, detail).fix("get one for it, or set server.public_url to what it is for"));
    }
    if !server.tls.is_empty() && !server.public_url.starts_with("https:") {
        let detail = format!("agents are shown {}, and the listener speaks TLS only", server.public_url);
        findings.push(Finding::warning("public_url", detail).fix("begin server.public_url with https://"));
    }
    if server.trusted_proxies.iter().any(|network| network.prefix_len() == 0) {
        let detail = "everybody is believed about where a request came from, so limits for a peer hold for nobody";
        findings.push(Finding::warning("trusted_proxies", detail).fix("name the networks of your proxies only"));
    }
    if server.proxy_protocol && server.trusted_proxies.is_empty() {
        let detail = "whoever can connect can say who it is";
        let fix = "name your load balancers in server.trusted_proxies, or let nobody else reach the port";
        findings.push(Finding::warning("proxy_protocol", detail).fix(fix));
    }
    findings
}

fn host_of(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    Some(uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned())
}

fn end_finding(files: &CertificateFiles, ends_at: Option<i64>, now: i64) -> Finding {
    let file = files.cert.display();
    let Some(ends_at) = ends_at else {
        return Finding::warning(WHAT, format!("{file} does not say until when it is good in a way that can be read"));
    };
    let day = jiff::Timestamp::from_second(ends_at).map_or_else(|_| "an unknown day".to_owned(), |end| end.to_string());
    if ends_at <= now {
        return Finding::error(Exit::Config, WHAT, format!("{file} ended on {day}")).fix("renew it");
    }
    if ends_at.saturating_sub(now) <= ENDS_SOON_S {
        return Finding::warning(WHAT, format!("{file} ends on {day}"))
            .fix("renew it; the new files are read by themselves");
    }
    Finding::fine(WHAT, format!("{file} is good until {day}"))
}

fn key_finding(files: &CertificateFiles, others_can_read: bool) -> Option<Finding> {
    let key = files.key.display();
    others_can_read.then(|| {
        Finding::warning(WHAT, format!("every account of this machine can read {key}")).fix(format!("chmod o-r {key}"))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Severity;
    use super::*;
    use crate::config::Config;

    const NOW: u64 = 1_900_000_000;

    fn judged(server: &str, names: &[&str], ends_at: u64) -> Vec<(Severity, String)> {
        let directory = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_after =
            std::time::SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(ends_at)).unwrap().into();
        let [cert_file, key_file] = ["cert.pem", "key.pem"].map(|name| directory.path().join(name));
        fs::write(&cert_file, params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        #[cfg(unix)]
        fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let text = include_str!("../../../config.example.toml");
        let tls = format!("[server]\ntls = {{ cert = {cert_file:?}, key = {key_file:?} }}\n{server}\n");
        let config = Config::parse(&text.replace("[server]\n", &tls), "c.toml").unwrap();
        let findings = findings(&config.server, NOW);
        findings.into_iter().map(|finding| (finding.severity, finding.detail)).collect()
    }

    const OURS: &str = "public_url = \"https://api.example.com/v1\"";

    #[test]
    fn a_certificate_must_be_good_for_a_while_and_for_the_public_host() {
        let ours = ["api.example.com"];
        let day = 86_400;
        let worst = |found: &[(Severity, String)]| found.iter().map(|(severity, _)| *severity).collect::<Vec<_>>();
        assert_eq!(worst(&judged(OURS, &ours, NOW + 15 * day)), [Severity::Fine]);
        assert_eq!(worst(&judged(OURS, &ours, NOW + 14 * day)), [Severity::Warning]);
        assert_eq!(worst(&judged(OURS, &ours, NOW + 1)), [Severity::Warning]);
        assert_eq!(worst(&judged(OURS, &ours, NOW)), [Severity::Error(Exit::Config)]);
        let other = judged(OURS, &["other.example.com"], NOW + 15 * day);
        assert_eq!(worst(&other), [Severity::Fine, Severity::Warning]);
        assert!(other.iter().any(|(_, detail)| detail.contains("no certificate is for api.example.com")), "{other:?}");
        let plain = judged("public_url = \"http://api.example.com\"", &ours, NOW + 15 * day);
        assert_eq!(worst(&plain), [Severity::Fine, Severity::Warning]);
    }

    #[test]
    fn whoever_believes_everybody_is_told() {
        let names = ["api.example.com"];
        let count = |server: &str| judged(&format!("{OURS}\n{server}"), &names, NOW * 2).len();
        assert_eq!(count("trusted_proxies = [\"10.0.0.0/8\"]"), 1);
        assert_eq!(count("trusted_proxies = [\"10.0.0.0/8\", \"0.0.0.0/0\"]"), 2);
        assert_eq!(count("trusted_proxies = [\"::/0\"]"), 2);
    }

    #[test]
    fn files_that_cannot_be_used_are_errors() {
        let text = include_str!("../../../config.example.toml");
        let tls = "[server]\ntls = { cert = \"/nowhere/cert.pem\", key = \"/nowhere/key.pem\" }\n";
        let config = Config::parse(&text.replace("[server]\n", tls), "c.toml").unwrap();
        let found = findings(&config.server, NOW);
        assert_eq!(found.first().unwrap().severity, Severity::Error(Exit::Config));
    }
}
