//! `[upstream]` and `[upstreams.NAME]`: what is sold.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;

use super::values::{DAY, HOUR, MINUTE, SECOND, counted, duration, plain_url, same_listener, some_text};
use crate::config::reader::{Given, Problem, Section, closest, quoted};
use crate::config::{Breaker, Channel, Health, Upstream, write_duration};
use crate::gate::Way;

/// Targets of one upstream; a request looks at all of them.
const MAX_TARGETS: usize = 64;

/// Upstreams with names.
const MAX_UPSTREAMS: usize = 100;

/// Names are shown in logs.
const MAX_NAME_CHARS: usize = 64;

/// Protocols that one route's connections may be upgraded to.
const MAX_UPGRADES: usize = 8;

/// The upstreams with names, as far as they could be read.
pub(super) struct Named<'a> {
    drafts: Vec<(String, Section<'a>, Option<Upstream>)>,
}

impl<'a> Named<'a> {
    pub(super) fn read(root: &mut Section<'a>, server: Option<SocketAddr>) -> Self {
        let read = |(name, mut section): (String, Section<'a>)| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || name.len() > MAX_NAME_CHARS || !name.chars().all(plain) {
                let problem = Problem::new(format!("{} is no name for an upstream", quoted(&name)));
                section.error("", None, problem.fix("name it like [upstreams.images]"));
            }
            let upstream = upstream(&mut section, server);
            (name, section, upstream)
        };
        let mut sections = root.named("upstreams", "[upstream]");
        if let Some((_, first)) = sections.get(MAX_UPSTREAMS) {
            first.error("", None, Problem::new(format!("there are more than {MAX_UPSTREAMS} upstreams")));
            sections.truncate(MAX_UPSTREAMS);
        }
        Self { drafts: sections.into_iter().map(read).collect() }
    }

    /// All of them, if all are whole. None has more time than an agent waits.
    pub(super) fn whole(self, channel: Option<&Channel>) -> Option<Vec<(Arc<str>, Upstream)>> {
        let mut all = Some(Vec::new());
        for (name, section, upstream) in self.drafts {
            if let (Some(upstream), Some(channel)) = (&upstream, channel)
                && channel.max_timeout <= upstream.response_timeout
            {
                let (mine, theirs) = (write_duration(upstream.response_timeout), write_duration(channel.max_timeout));
                let problem =
                    Problem::new(format!("{mine} must be shorter than [channel].max_timeout, which is {theirs}"));
                section.error("response_timeout", None, problem.fix("lower it, or raise max_timeout"));
            }
            all = all.zip(upstream).map(|(mut all, upstream)| {
                all.push((Arc::from(name), upstream));
                all
            });
        }
        all
    }

    /// What a route says of the way of its requests. Nothing was said where the answer is the default.
    pub(super) fn way(&self, route: &mut Section<'_>, usual: Option<&Upstream>) -> Option<Way> {
        let upstream = route.text("upstream", |text| {
            let known = || self.drafts.iter().map(|(name, ..)| name.as_str());
            if known().any(|name| name == text) {
                return Ok(Arc::<str>::from(text));
            }
            let problem = Problem::new(format!("there is no [upstreams.{}]", quoted(text).trim_matches('"')));
            Err(match closest(text, known()) {
                Some(name) => problem.fix(format!("did you mean \"{name}\"?")),
                None => problem.fix("add it, or leave upstream out for the one in [upstream]"),
            })
        });
        let upstream = upstream.optional();
        let upgrades = route.texts("upgrade", protocol);
        if let (Given::Value(upgrades, span), Some(upstream)) = (&upgrades, &upstream) {
            let named = upstream.as_ref().and_then(|wanted| self.drafts.iter().find(|(name, ..)| **name == **wanted));
            let chosen = named.map_or(usual, |(_, _, upstream)| upstream.as_ref());
            if !upgrades.is_empty() && chosen.is_some_and(|upstream| upstream.http2) {
                let problem = Problem::new("its upstream speaks HTTP/2, which knows no upgrade");
                let fix = "remove it, or name an upstream without http2";
                route.error("upgrade", Some(span.clone()), problem.fix(fix));
            } else if upgrades.len() > MAX_UPGRADES {
                let problem = Problem::new(format!("names more than {MAX_UPGRADES} protocols"));
                route.error("upgrade", Some(span.clone()), problem);
            }
        }
        let upgrades = upgrades.or(Vec::new());
        let upgrades = upgrades?.into_iter().map(|(protocol, _)| protocol).collect();
        Some(Way { upstream: upstream?, upgrades })
    }
}

pub(super) fn upstream(section: &mut Section<'_>, server: Option<SocketAddr>) -> Option<Upstream> {
    let urls = section.text_or_texts("url", |text| upstream_url(text, server));
    let span = urls.span();
    if let Given::Value(urls, _) = &urls {
        let twice = urls
            .iter()
            .enumerate()
            .any(|(number, url)| urls.iter().skip(number.saturating_add(1)).any(|other| other == url));
        let problem = if urls.is_empty() {
            Some(Problem::new("names nothing").fix("add one, as in url = \"http://127.0.0.1:8080\""))
        } else if urls.len() > MAX_TARGETS {
            Some(Problem::new(format!("{} are more than {MAX_TARGETS}", urls.len())))
        } else if twice {
            Some(
                Problem::new("names one of them twice")
                    .fix("the one with the fewest requests is asked, so once is enough"),
            )
        } else {
            None
        };
        if let Some(problem) = problem {
            section.error("url", span.clone(), problem);
        }
    }
    let urls = section.required("url", urls, "url = \"http://127.0.0.1:8080\"");
    let connect_timeout = duration(section, "connect_timeout", Duration::from_millis(1)..=MINUTE).or(5 * SECOND);
    let response_timeout = duration(section, "response_timeout", Duration::from_millis(1)..=HOUR).or(MINUTE);
    let idle_timeout = duration(section, "idle_timeout", Duration::from_millis(1)..=DAY).or(5 * MINUTE);
    let http2 = section.flag("http2").or(false);
    let ca = section.text("ca", file);
    let client_cert = section.text("client_cert", file);
    let client_key = section.text("client_key", file);
    let server_name = section.text("server_name", server_name);
    let encrypted = urls.as_ref().is_none_or(|urls| urls.iter().any(|url| url.scheme_str() == Some("https")));
    if !encrypted {
        let given = [
            ("ca", ca.span()),
            ("client_cert", client_cert.span()),
            ("client_key", client_key.span()),
            ("server_name", server_name.span()),
        ];
        for (key, span) in given {
            if span.is_some() {
                let problem = Problem::new("is about TLS, and no url begins with https://");
                section.error(key, span, problem.fix("write https:// in url, or remove it"));
            }
        }
    }
    match (&client_cert, &client_key) {
        (Given::Value(..), Given::Absent) => {
            section.missing("client_key", "client_key, the file of the certificate's key")
        }
        (Given::Absent, Given::Value(..)) => {
            section.missing("client_cert", "client_cert, the file of the key's certificate")
        }
        _ => {}
    }
    let health = health(section.section("health"));
    let breaker = breaker(section.section("breaker"));
    let client = client_cert.optional()?.zip(client_key.optional()?);
    Some(Upstream {
        urls: urls?,
        connect_timeout: connect_timeout?,
        response_timeout: response_timeout?,
        idle_timeout: idle_timeout?,
        http2: http2?,
        ca: ca.optional()?,
        client,
        server_name: server_name.optional()?,
        health: health?,
        breaker: breaker?,
    })
}

fn health(mut section: Section<'_>) -> Option<Option<Health>> {
    let path = section.text("path", |text| {
        let path = PathAndQuery::try_from(text).ok().filter(|_| text.starts_with('/'));
        path.ok_or_else(|| Problem::new(format!("{} is not a path", quoted(text))).fix("write it like \"/healthz\""))
    });
    let path = if section.is_there() { section.required("path", path, "path = \"/healthz\"") } else { None };
    let interval = duration(&mut section, "interval", Duration::from_millis(100)..=HOUR).or(5 * SECOND);
    let timeout = duration(&mut section, "timeout", Duration::from_millis(1)..=MINUTE).or(SECOND);
    let unhealthy_after = counted(&mut section, "unhealthy_after", 1..=100).or(2);
    let healthy_after = counted(&mut section, "healthy_after", 1..=100).or(2);
    if !section.is_there() {
        return Some(None);
    }
    Some(Some(Health {
        path: path?,
        interval: interval?,
        timeout: timeout?,
        unhealthy_after: u32::try_from(unhealthy_after?).ok()?,
        healthy_after: u32::try_from(healthy_after?).ok()?,
    }))
}

fn breaker(mut section: Section<'_>) -> Option<Option<Breaker>> {
    let failures = counted(&mut section, "failures", 1..=1_000).or(5);
    let open_for = duration(&mut section, "open_for", Duration::from_millis(1)..=HOUR).or(10 * SECOND);
    if !section.is_there() {
        return Some(None);
    }
    Some(Some(Breaker { failures: u32::try_from(failures?).ok()?, open_for: open_for? }))
}

fn file(text: &str) -> Result<PathBuf, Problem> {
    if text.contains("-----BEGIN") {
        return Err(Problem::new("this is what belongs into a file").fix("write the name of that file"));
    }
    some_text(text).map(PathBuf::from)
}

fn server_name(text: &str) -> Result<String, Problem> {
    rustls_pki_types::ServerName::try_from(text).map_err(|_| {
        Problem::new(format!("{} is no name of a server", quoted(text))).fix("write it like \"api.internal\"")
    })?;
    Ok(text.to_owned())
}

fn protocol(text: &str) -> Result<String, Problem> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&byte);
    if text.is_empty() || !text.bytes().all(token) {
        return Err(Problem::new(format!("{} is no protocol", quoted(text))).fix("write it like \"websocket\""));
    }
    let lower = text.to_ascii_lowercase();
    // What both sides would take for HTTP again is a second, unpriced way in.
    if lower == "h2c" || lower.starts_with("http/") || lower.starts_with("tls/") {
        return Err(Problem::new(format!("{} would be a way around the prices", quoted(text))).fix("leave it out"));
    }
    Ok(lower)
}

fn upstream_url(text: &str, server: Option<SocketAddr>) -> Result<Uri, Problem> {
    let uri = plain_url(text, "http://127.0.0.1:8080")?;
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let ip = if host == "localhost" { Some(std::net::Ipv4Addr::LOCALHOST.into()) } else { host.parse().ok() };
    let loops = server.zip(ip).is_some_and(|(server, ip)| same_listener(server, SocketAddr::new(ip, port)));
    if loops {
        return Err(Problem::new(format!("{} is where Peaje itself listens", quoted(text)))
            .fix("name the address of the API that is sold"));
    }
    Ok(uri)
}
