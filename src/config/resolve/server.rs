//! `[server]` and `[admin]`: the listeners.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::values::{HOUR, SECOND, counted, duration, one_of, plain_url, same_listener, socket_address, some_text};
use crate::config::reader::{Given, Problem, Section, quoted};
use crate::config::{Admin, ForwardedHeader, Server, TlsFiles};

/// Threads that serve; more than any machine has cores.
const MAX_CORES: u64 = 1_024;

/// A client without a name is shown the first; all others are looked through for each handshake.
const MAX_CERTIFICATES: usize = 100;

/// Each connection is looked up in them.
const MAX_TRUSTED_PROXIES: usize = 256;

pub(super) fn server(mut section: Section<'_>) -> (Option<Server>, Option<SocketAddr>) {
    let listen = section.text("listen", socket_address).or(SocketAddr::from(([127, 0, 0, 1], 4020)));
    let public_url = section.text("public_url", public_url);
    let shutdown_timeout = duration(&mut section, "shutdown_timeout", Duration::ZERO..=HOUR).or(30 * SECOND);
    let quote_grace = duration(&mut section, "quote_grace", Duration::ZERO..=HOUR).or(30 * SECOND);
    let cores = counted(&mut section, "cores", 1..=MAX_CORES).optional();
    let tls = tls(&mut section);
    let trusted = section.texts("trusted_proxies", network);
    if let Given::Value(list, span) = &trusted
        && list.len() > MAX_TRUSTED_PROXIES
    {
        let problem = Problem::new(format!("there are more than {MAX_TRUSTED_PROXIES} networks"));
        section.error("trusted_proxies", Some(span.clone()), problem);
    }
    let trusted = trusted.or(Vec::new());
    let headers = [("x-forwarded-for", ForwardedHeader::XForwardedFor), ("forwarded", ForwardedHeader::Forwarded)];
    let forwarded_header =
        section.text("forwarded_header", |text| one_of(text, &headers)).or(ForwardedHeader::XForwardedFor);
    let proxy_protocol = section.flag("proxy_protocol").or(false);
    if let (Given::Absent, Some(listen)) = (&public_url, listen)
        && listen.ip().is_unspecified()
    {
        let problem = Problem::new(format!("is missing, and agents cannot reach http://{listen}"));
        section.error(
            "public_url",
            None,
            problem.fix("add public_url = \"https://api.example.com\", as agents see it"),
        );
    }
    let scheme = if tls.as_ref().is_some_and(|tls| !tls.is_empty()) { "https" } else { "http" };
    let default_url = listen.map(|listen| format!("{scheme}://{listen}"));
    let server = (|| {
        let public_url = public_url.optional()?.or(default_url)?;
        let cores = cores?.and_then(|cores| NonZeroUsize::new(usize::try_from(cores).ok()?));
        Some(Server {
            listen: listen?,
            public_url,
            shutdown_timeout: shutdown_timeout?,
            cores,
            quote_grace: quote_grace?,
            tls: tls?,
            trusted_proxies: trusted?.into_iter().map(|(network, _)| network).collect(),
            forwarded_header: forwarded_header?,
            proxy_protocol: proxy_protocol?,
        })
    })();
    (server, listen)
}

/// One certificate, or several.
fn tls(section: &mut Section<'_>) -> Option<Vec<TlsFiles>> {
    let given = section.tables("tls");
    let span = given.span();
    let tables = given.or(Vec::new())?;
    if tables.len() > MAX_CERTIFICATES {
        section.error("tls", span, Problem::new(format!("there are more than {MAX_CERTIFICATES} certificates")));
        return None;
    }
    let all: Vec<_> = tables
        .into_iter()
        .map(|mut table| {
            let cert = table.text("cert", |text| some_text(text).map(PathBuf::from));
            let key = table.text("key", |text| some_text(text).map(PathBuf::from));
            let cert = table.required("cert", cert, "cert = \"fullchain.pem\"");
            let key = table.required("key", key, "key = \"key.pem\"");
            Some(TlsFiles { cert: cert?, key: key? })
        })
        .collect();
    all.into_iter().collect()
}

/// A network, or an address, which is a network of one.
fn network(text: &str) -> Result<IpNet, Problem> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let bad = Problem::new(format!("{} is not a network", quoted(text))).fix("write it like \"10.0.0.0/8\"");
    let network: IpNet = text.parse().map_err(|_| bad)?;
    if network == network.trunc() {
        Ok(network)
    } else {
        let problem = Problem::new(format!("{} has bits behind its prefix", quoted(text)));
        Err(problem.fix(format!("write \"{}\", or \"{}\" for one address", network.trunc(), network.addr())))
    }
}

pub(super) fn admin(mut section: Section<'_>, server: Option<SocketAddr>) -> Option<Admin> {
    let given = section.text("listen", |text| match text {
        "off" => Ok(None),
        address => match socket_address(address)? {
            address if address.ip().is_loopback() => Ok(Some(address)),
            address => {
                Err(Problem::new(format!("{address} can be reached by others, and this listener asks no password"))
                    .fix(format!("use a loopback address such as \"127.0.0.1:{}\", or \"off\"", address.port())))
            }
        },
    });
    let span = given.span();
    let listen = given.or(Some(SocketAddr::from(([127, 0, 0, 1], 9402))))?;
    if let (Some(listen), Some(server)) = (listen, server)
        && same_listener(listen, server)
    {
        let problem = Problem::new(format!("{listen} is taken by [server].listen")).fix("give it a port of its own");
        section.error("listen", span, problem);
    }
    Some(Admin { listen })
}

fn public_url(text: &str) -> Result<String, Problem> {
    plain_url(text, "https://api.example.com")?;
    Ok(text.trim_end_matches('/').to_owned())
}
