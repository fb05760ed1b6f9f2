//! What load balancers say of a client, for those that are believed.
//!
//! **Owns** which addresses are believed, and reading the headers in which they say where a request came from.
//! **Promises** that a client's own claims are never taken for a balancer's: of a list of hops only those count that a
//! trusted one wrote, and a header is read only if it is the one the operator named. **Does not** remove the headers: what
//! goes upstream is written anew for every request.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{FORWARDED, HOST};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use ipnet::IpNet;

use super::Caller;

/// How many hops are looked at, from the nearest on.
const MAX_HOPS: usize = 32;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The header in which trusted proxies name the client. A balancer writes one of them and passes the other on as the
/// client sent it, so only one can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, with `X-Forwarded-Proto` and `X-Forwarded-Host` beside it.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// The proxies that are believed. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct Trusted {
    networks: Arc<[IpNet]>,
    header: ForwardedHeader,
}

impl Trusted {
    /// Those in these networks.
    pub fn new(networks: &[IpNet], header: ForwardedHeader) -> Self {
        Self { networks: networks.into(), header }
    }

    /// Whether nobody is believed.
    pub(super) fn is_nobody(&self) -> bool {
        self.networks.is_empty()
    }

    pub(super) fn includes(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Who sent a request that came through a trusted proxy, which is `through`. The request is for the host that the
    /// proxy says it was for.
    pub(super) fn caller<B>(&self, through: &Caller, request: &mut Request<B>) -> Caller {
        let said = match self.header {
            ForwardedHeader::XForwardedFor => self.by_x_forwarded(request.headers()),
            ForwardedHeader::Forwarded => self.by_forwarded(request.headers()),
        };
        if let Some(host) = said.host {
            address_to(request, host);
        }
        let address = said.client.unwrap_or(through.address);
        let scheme = said.scheme.map(HeaderValue::from_static).or_else(|| through.scheme.clone());
        let caller = Caller::new(SocketAddr::new(address, 0));
        Caller { scheme, stands_for_many: caller.stands_for_many || self.includes(address), ..caller }
    }

    fn by_x_forwarded(&self, headers: &HeaderMap) -> Said {
        let mut said = Said::default();
        for hop in from_the_nearest(headers, &X_FORWARDED_FOR) {
            if !said.pass(self, address_of(hop)) {
                break;
            }
        }
        let nearest = |name| from_the_nearest(headers, name).next();
        said.scheme = nearest(&X_FORWARDED_PROTO).and_then(scheme_of);
        said.host = nearest(&X_FORWARDED_HOST).and_then(host_of);
        said
    }

    /// Host and scheme are those of the nearest hop that names them and that a trusted proxy wrote.
    fn by_forwarded(&self, headers: &HeaderMap) -> Said {
        let mut said = Said::default();
        for hop in from_the_nearest(headers, &FORWARDED) {
            let parameter = |name: &str| {
                let pairs = hop.split(';').filter_map(|pair| pair.split_once('='));
                let mut values = pairs.filter(|(key, _)| key.trim().eq_ignore_ascii_case(name));
                values.next().map(|(_, value)| value.trim().trim_matches('"'))
            };
            said.scheme = said.scheme.or_else(|| parameter("proto").and_then(scheme_of));
            said.host = said.host.or_else(|| parameter("host").and_then(host_of));
            if !said.pass(self, parameter("for").and_then(address_of)) {
                break;
            }
        }
        said
    }
}

/// What was said of a request by those that are believed.
#[derive(Debug, Default)]
struct Said {
    client: Option<IpAddr>,
    scheme: Option<&'static str>,
    host: Option<Authority>,
}

impl Said {
    /// Takes note of whom the last hop had its request from; whether that one is believed in its turn. Who is unknown, or
    /// hides, is not.
    fn pass(&mut self, trusted: &Trusted, address: Option<IpAddr>) -> bool {
        self.client = address.or(self.client);
        address.is_some_and(|address| trusted.includes(address))
    }
}

/// The elements of a list header, the last first: each hop appends what it knows. A quoted comma ends an element, which
/// makes two that mean nothing of it.
fn from_the_nearest<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let mut values: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
    values.reverse();
    // A line that is no text is a hop that means nothing.
    let texts = values.into_iter().map(|value| value.to_str().unwrap_or_default());
    texts.flat_map(|text| text.rsplit(',')).map(str::trim).take(MAX_HOPS)
}

/// An address as proxies write it: alone, with a port, in brackets, in quotes.
fn address_of(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches('"');
    let bare = || text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text).parse().ok();
    let address: Option<IpAddr> = bare().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address| address.to_canonical())
}

fn scheme_of(text: &str) -> Option<&'static str> {
    ["https", "http"].into_iter().find(|scheme| text.eq_ignore_ascii_case(scheme))
}

fn host_of(text: &str) -> Option<Authority> {
    text.parse().ok().filter(|host: &Authority| !host.as_str().contains('@'))
}

/// Makes a request one for this host. One that names several is left as it is, and refused later.
fn address_to<B>(request: &mut Request<B>, host: Authority) {
    if request.headers().get_all(HOST).iter().nth(1).is_some() {
        return;
    }
    if let Ok(value) = HeaderValue::try_from(host.as_str()) {
        request.headers_mut().insert(HOST, value);
    }
    if request.uri().authority().is_some() {
        let mut parts = request.uri().clone().into_parts();
        parts.authority = Some(host);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(header: ForwardedHeader) -> Trusted {
        let networks: Vec<IpNet> = ["10.0.0.0/8", "2001:db8:1::/48"].iter().map(|text| text.parse().unwrap()).collect();
        Trusted::new(&networks, header)
    }

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri("/x").header("host", "lb.example");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    fn seen(header: ForwardedHeader, headers: &[(&str, &str)]) -> (String, Option<String>, String) {
        let through = Caller::new("10.0.0.1:5".parse().unwrap());
        let mut request = request(headers);
        let caller = trusted(header).caller(&through, &mut request);
        let scheme = caller.scheme.map(|scheme| scheme.to_str().unwrap().to_owned());
        assert_eq!(caller.name, caller.address.to_string());
        (caller.address.to_string(), scheme, request.headers()[HOST].to_str().unwrap().to_owned())
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_not_believed() {
        let cases: &[(&[&str], &str)] = &[
            (&["192.0.2.7"], "192.0.2.7"),
            (&["192.0.2.7:4711"], "192.0.2.7"),
            (&["[2001:db8:2::1]:4711"], "2001:db8:2::1"),
            (&["2001:db8:2::1"], "2001:db8:2::1"),
            (&["::ffff:192.0.2.7"], "192.0.2.7"),
            // What the client says of itself is on the left.
            (&["6.6.6.6, 192.0.2.7"], "192.0.2.7"),
            (&["6.6.6.6, 192.0.2.7, 10.1.1.1"], "192.0.2.7"),
            (&["6.6.6.6", "192.0.2.7", "10.1.1.1,2001:db8:1::2"], "192.0.2.7"),
            (&["10.9.9.9, 192.0.2.7"], "192.0.2.7"),
            // All of them are ours: it began there.
            (&["10.3.3.3, 10.1.1.1"], "10.3.3.3"),
            // Whoever hides is behind the last that is known.
            (&["unknown"], "10.0.0.1"),
            (&["192.0.2.7, unknown"], "10.0.0.1"),
            (&["192.0.2.7, nonsense, 10.1.1.1"], "10.1.1.1"),
            (&["192.0.2.7, , 10.1.1.1"], "10.1.1.1"),
            (&["", "10.1.1.1"], "10.1.1.1"),
            (&[], "10.0.0.1"),
        ];
        for (values, expected) in cases {
            let headers: Vec<_> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();
            assert_eq!(seen(ForwardedHeader::XForwardedFor, &headers).0, *expected, "{values:?}");
        }
        let endless = vec!["10.2.2.2"; 10_000].join(",");
        assert_eq!(seen(ForwardedHeader::XForwardedFor, &[("x-forwarded-for", &endless)]).0, "10.2.2.2");
    }

    #[test]
    fn scheme_and_host_are_what_the_nearest_proxy_says() {
        fn of(headers: &[(&str, &str)]) -> (Option<String>, String) {
            let (_, scheme, host) = seen(ForwardedHeader::XForwardedFor, headers);
            (scheme, host)
        }
        let lb = || "lb.example".to_owned();
        assert_eq!(of(&[]), (None, lb()));
        let both = [("x-forwarded-proto", "HTTPS"), ("x-forwarded-host", "api.example:8443")];
        assert_eq!(of(&both), (Some("https".to_owned()), "api.example:8443".to_owned()));
        assert_eq!(of(&[("x-forwarded-proto", "https, http")]), (Some("http".to_owned()), lb()));
        for (name, value) in [
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-host", "user@api.example"),
            ("x-forwarded-host", "a b"),
            ("x-forwarded-host", ""),
            ("forwarded", "host=other.example;proto=https"),
        ] {
            assert_eq!(of(&[(name, value)]), (None, lb()), "{name}: {value}");
        }
        let mut absolute =
            Request::get("http://lb.example/x?y").header("x-forwarded-host", "api.example").body(()).unwrap();
        trusted(ForwardedHeader::XForwardedFor).caller(&Caller::new("10.0.0.1:5".parse().unwrap()), &mut absolute);
        assert_eq!(absolute.uri(), "http://api.example/x?y");
    }

    #[test]
    fn only_the_header_that_was_named_is_read() {
        let forwarded = |text| seen(ForwardedHeader::Forwarded, &[("forwarded", text), ("x-forwarded-for", "6.6.6.6")]);
        for (text, client, scheme, host) in [
            ("for=192.0.2.7", "192.0.2.7", None, "lb.example"),
            ("For=\"[2001:db8:2::1]:80\";Proto=https;Host=api.example", "2001:db8:2::1", Some("https"), "api.example"),
            (
                "for=6.6.6.6;host=evil.example, for=192.0.2.7, for=10.1.1.1;proto=https",
                "192.0.2.7",
                Some("https"),
                "lb.example",
            ),
            ("for=6.6.6.6, for=_hidden", "10.0.0.1", None, "lb.example"),
            ("for=6.6.6.6, for=unknown;proto=http", "10.0.0.1", Some("http"), "lb.example"),
            ("proto=https", "10.0.0.1", Some("https"), "lb.example"),
        ] {
            assert_eq!(forwarded(text), (client.to_owned(), scheme.map(str::to_owned), host.to_owned()), "{text}");
        }
        let other = seen(ForwardedHeader::XForwardedFor, &[("forwarded", "for=6.6.6.6")]);
        assert_eq!(other.0, "10.0.0.1");
    }

    #[test]
    fn who_is_believed_is_a_matter_of_networks() {
        let trusted = trusted(ForwardedHeader::default());
        for (address, believed) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("::ffff:10.0.0.1", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("2001:db8:1:ffff::", true),
            ("2001:db8:2::", false),
        ] {
            assert_eq!(trusted.includes(address.parse().unwrap()), believed, "{address}");
        }
        assert!(Trusted::default().is_nobody() && !Trusted::default().includes("10.0.0.1".parse().unwrap()));
    }
}
