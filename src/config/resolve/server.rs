//! `[server]` and `[admin]`: the listeners.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::values::{HOUR, SECOND, counted, duration, plain_url, same_listener, socket_address};
use crate::config::reader::{Given, Problem, Section};
use crate::config::{Admin, Server};

/// Threads that serve; more than any machine has cores.
const MAX_CORES: u64 = 1_024;

pub(super) fn server(mut section: Section<'_>) -> (Option<Server>, Option<SocketAddr>) {
    let listen = section.text("listen", socket_address).or(SocketAddr::from(([127, 0, 0, 1], 4020)));
    let public_url = section.text("public_url", public_url);
    let shutdown_timeout = duration(&mut section, "shutdown_timeout", Duration::ZERO..=HOUR).or(30 * SECOND);
    let quote_grace = duration(&mut section, "quote_grace", Duration::ZERO..=HOUR).or(30 * SECOND);
    let cores = counted(&mut section, "cores", 1..=MAX_CORES).optional();
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
    let default_url = listen.map(|listen| format!("http://{listen}"));
    let server = (|| {
        let public_url = public_url.optional()?.or(default_url)?;
        let cores = cores?.and_then(|cores| NonZeroUsize::new(usize::try_from(cores).ok()?));
        Some(Server {
            listen: listen?,
            public_url,
            shutdown_timeout: shutdown_timeout?,
            cores,
            quote_grace: quote_grace?,
        })
    })();
    (server, listen)
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
