//! `[upstream]`: what is sold.

use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;

use super::values::{HOUR, MINUTE, SECOND, duration, plain_url, same_listener};
use crate::config::Upstream;
use crate::config::reader::{Problem, Section, quoted};

pub(super) fn upstream(mut section: Section<'_>, server: Option<SocketAddr>) -> Option<Upstream> {
    let url = section.text("url", |text| upstream_url(text, server));
    let url = section.required("url", url, "url = \"http://127.0.0.1:8080\"");
    let connect_timeout = duration(&mut section, "connect_timeout", Duration::from_millis(1)..=MINUTE).or(5 * SECOND);
    let response_timeout = duration(&mut section, "response_timeout", Duration::from_millis(1)..=HOUR).or(MINUTE);
    Some(Upstream { url: url?, connect_timeout: connect_timeout?, response_timeout: response_timeout? })
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
