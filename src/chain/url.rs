//! The address of an RPC node, which is usually a secret: providers put their API keys into it.

use std::fmt;
use std::str::FromStr;

use crate::local::is_this_machine;

/// The longest message of a node that is passed on, in characters.
const MAX_MESSAGE_CHARS: usize = 300;
/// Parts of an address shorter than this are common words (`v2`, `rpc`), not secrets.
const MIN_SECRET_CHARS: usize = 8;

/// The HTTP address of a chain node. Its text form hides everything after the host.
#[derive(Clone, PartialEq, Eq)]
pub struct RpcUrl(reqwest::Url);

/// Why a text is no RPC address. The text itself is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RpcUrlError {
    /// It is no URL at all.
    #[error("not a URL; an RPC address looks like https://host/path")]
    NotAUrl,
    /// WebSocket and IPC addresses are not spoken.
    #[error("an RPC address must begin with http:// or https://")]
    Scheme,
    /// It names no host.
    #[error("the RPC address names no host")]
    NoHost,
}

impl RpcUrl {
    /// Whether the node is on this machine, so that a development key may be used with it.
    pub fn is_loopback(&self) -> bool {
        is_this_machine(self.0.host_str().unwrap_or_default())
    }

    /// Scheme, host and port, to name the node by; nothing of it is secret.
    pub fn origin(&self) -> String {
        let shown = self.to_string();
        shown.trim_end_matches('…').trim_end_matches('/').to_owned()
    }

    /// The whole address, secrets included, for the HTTP client and nobody else.
    pub(crate) fn expose(&self) -> reqwest::Url {
        self.0.clone()
    }

    /// Makes a text from a node fit to be shown: without the secret parts of this address, without control characters,
    /// and of bounded length.
    pub(crate) fn scrub(&self, text: &str) -> String {
        let url = &self.0;
        let query = url.query_pairs().map(|(_, value)| value.into_owned());
        let path = url.path_segments().into_iter().flatten().map(str::to_owned);
        let login = [url.username().to_owned(), url.password().unwrap_or_default().to_owned()];
        let secrets = path.chain(query).chain(login).filter(|part| part.len() >= MIN_SECRET_CHARS);
        let clean = secrets.fold(text.to_owned(), |text, secret| text.replace(&secret, "…"));
        clean.chars().filter(|character| !character.is_control()).take(MAX_MESSAGE_CHARS).collect()
    }
}

impl FromStr for RpcUrl {
    type Err = RpcUrlError;

    fn from_str(text: &str) -> Result<Self, RpcUrlError> {
        let url = reqwest::Url::parse(text.trim()).map_err(|_| RpcUrlError::NotAUrl)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(RpcUrlError::Scheme);
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(RpcUrlError::NoHost);
        }
        Ok(Self(url))
    }
}

impl fmt::Display for RpcUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = &self.0;
        write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        let bare = url.path().trim_matches('/').is_empty() && url.query().is_none() && url.fragment().is_none();
        f.write_str(if bare { "/" } else { "/…" })
    }
}

impl fmt::Debug for RpcUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> RpcUrl {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_shows_its_host_and_no_more() {
        let cases = [
            ("https://base.example.com/v2/abcdefgh12345678", "https://base.example.com/…"),
            ("https://user:pa55word@node.example:8443/?key=hunter2hunter2", "https://node.example:8443/…"),
            ("http://127.0.0.1:8545", "http://127.0.0.1:8545/"),
            ("http://[::1]:8545/", "http://[::1]:8545/"),
        ];
        for (text, shown) in cases {
            assert_eq!(url(text).to_string(), shown);
            assert_eq!(format!("{:?}", url(text)), shown);
            assert_eq!(url(text).origin(), shown.trim_end_matches("/…").trim_end_matches('/'));
        }
    }

    #[test]
    fn loopback_is_this_machine_only() {
        for text in [
            "http://127.0.0.1:1",
            "http://127.9.9.9",
            "http://localhost:8545",
            "http://[::1]:1",
            "http://[::ffff:127.0.0.1]",
        ] {
            assert!(url(text).is_loopback(), "{text}");
        }
        for text in [
            "http://10.0.0.1",
            "http://localhost.example.com",
            "http://0.0.0.0",
            "https://mainnet.base.org",
            "http://[::2]",
        ] {
            assert!(!url(text).is_loopback(), "{text}");
        }
    }

    #[test]
    fn only_http_is_spoken() {
        assert_eq!("ws://node".parse::<RpcUrl>(), Err(RpcUrlError::Scheme));
        assert_eq!("file:///tmp/x".parse::<RpcUrl>(), Err(RpcUrlError::Scheme));
        assert_eq!("node".parse::<RpcUrl>(), Err(RpcUrlError::NotAUrl));
        assert_eq!("http://".parse::<RpcUrl>(), Err(RpcUrlError::NotAUrl));
    }

    #[test]
    fn a_nodes_message_does_not_carry_our_secrets() {
        let url = url("https://user:pa55word@node.example/v2/abcdefgh12345678?token=0123456789");
        let said = "bad key abcdefgh12345678\n for pa55word, 0123456789 on v2";
        assert_eq!(url.scrub(said), "bad key … for …, … on v2");
        assert_eq!(url.scrub(&"x".repeat(10_000)).len(), MAX_MESSAGE_CHARS);
    }
}
