//! The upstreams of a config, as the proxy takes them.

use crate::config::{self, Config};
use crate::proxy::{Breaker, HealthCheck, NoUpstream, Upstream, UpstreamSettings, UpstreamTls};

/// The upstreams a config names. Reads the files they name; connects to nothing.
///
/// # Errors
/// See [`NoUpstream`].
pub(super) fn upstream(config: &Config) -> Result<Upstream, NoUpstream> {
    let named: Vec<_> = config.upstreams.iter().map(|(name, upstream)| (&**name, settings(upstream))).collect();
    Upstream::new(&settings(&config.upstream))?.with_named(named.iter().map(|(name, settings)| (*name, settings)))
}

fn settings(upstream: &config::Upstream) -> UpstreamSettings {
    let config::Upstream { connect_timeout, response_timeout, idle_timeout, http2, .. } = *upstream;
    let tls = UpstreamTls {
        ca: upstream.ca.clone(),
        client: upstream.client.clone(),
        server_name: upstream.server_name.clone(),
    };
    let health = upstream.health.clone().map(|health| HealthCheck {
        path: health.path,
        interval: health.interval,
        timeout: health.timeout,
        unhealthy_after: health.unhealthy_after,
        healthy_after: health.healthy_after,
    });
    let breaker = upstream.breaker.map(|config::Breaker { failures, open_for }| Breaker { failures, open_for });
    let urls = upstream.urls.clone();
    UpstreamSettings { urls, connect_timeout, response_timeout, idle_timeout, http2, tls, health, breaker }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_the_config_says_of_an_upstream_is_what_is_done() {
        let text = "[upstreams.a]\nurl = [\"https://a.example/x\", \"https://b.example\"]\nconnect_timeout = \"1s\"\n\
                    response_timeout = \"2s\"\nidle_timeout = \"3s\"\nhttp2 = true\nca = \"ca\"\nclient_cert = \"c\"\n\
                    client_key = \"k\"\nserver_name = \"n\"\n[upstreams.a.health]\npath = \"/h\"\ninterval = \"4s\"\n\
                    timeout = \"5s\"\nunhealthy_after = 6\nhealthy_after = 7\n[upstreams.a.breaker]\nfailures = 8\n\
                    open_for = \"9s\"\n";
        let config =
            Config::parse(&format!("{}\n{text}", include_str!("../../config.example.toml")), "c.toml").unwrap();
        let UpstreamSettings { urls, connect_timeout, response_timeout, idle_timeout, http2, tls, health, breaker } =
            settings(&config.upstreams[0].1);
        let seconds = Duration::from_secs;
        assert_eq!(
            urls.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["https://a.example/x", "https://b.example/"]
        );
        assert_eq!([connect_timeout, response_timeout, idle_timeout], [1, 2, 3].map(seconds));
        assert!(http2);
        let client = Some(("c".into(), "k".into()));
        assert_eq!(tls, UpstreamTls { ca: Some("ca".into()), client, server_name: Some("n".to_owned()) });
        let health = health.unwrap();
        assert_eq!((health.path.as_str(), health.interval, health.timeout), ("/h", seconds(4), seconds(5)));
        assert_eq!((health.unhealthy_after, health.healthy_after), (6, 7));
        assert_eq!(breaker, Some(Breaker { failures: 8, open_for: seconds(9) }));
    }
}
