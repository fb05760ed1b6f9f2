//! Where secrets are, instead of what they are.
//!
//! **Promises** that a [`KeyReference`] never holds a key, and that printing a reference shows no credential.

use std::fmt;
use std::str::FromStr;

use http::Uri;

/// Where a private key is found: `env:NAME`, `file:PATH`, `keystore:PATH` or, on a development chain, `dev:NAME`.
///
/// Checked in form only; the key is read where it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyReference(String);

/// Why a text refers to no key. None of these repeats the text, which may be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyReferenceError {
    /// A key, where a reference belongs.
    #[error(
        "this is a private key, and config files are read by many; put the key in an environment variable or a file"
    )]
    Literal,
    /// Not one of the known forms.
    #[error("a key is named, not written: \"env:NAME\", \"file:PATH\" or \"keystore:PATH\"")]
    Form,
    /// The name of the environment variable is none.
    #[error("\"env:\" is followed by the name of an environment variable: letters, digits and underscores")]
    Name,
    /// There is no such development key.
    #[error("\"dev:\" is followed by gas, authorizer, receiver, agent or a digit")]
    Dev,
}

/// Digits of a private key in hex.
const KEY_DIGITS: usize = 64;
/// What can stand behind `dev:` beside the digits `0` to `9`.
const DEV_NAMES: [&str; 4] = ["gas", "authorizer", "receiver", "agent"];

impl KeyReference {
    /// The reference as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyReference {
    type Err = KeyReferenceError;

    fn from_str(text: &str) -> Result<Self, KeyReferenceError> {
        if holds_a_key(text) {
            return Err(KeyReferenceError::Literal);
        }
        let (form, rest) = text.split_once(':').ok_or(KeyReferenceError::Form)?;
        if rest.trim().is_empty() || rest.contains(char::is_control) {
            return Err(KeyReferenceError::Form);
        }
        match form {
            "env" if !is_variable_name(rest) => return Err(KeyReferenceError::Name),
            "dev" if !DEV_NAMES.contains(&rest) && !matches!(rest.as_bytes(), [b'0'..=b'9']) => {
                return Err(KeyReferenceError::Dev);
            }
            "env" | "dev" | "file" | "keystore" => {}
            _ => return Err(KeyReferenceError::Form),
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for KeyReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a chain's node is: a URL, or the environment variable that holds one, because these URLs often hold API keys.
#[derive(Clone, PartialEq, Eq)]
pub enum RpcReference {
    /// The URL itself.
    Url(String),
    /// The name of the variable that holds it.
    Env(String),
}

/// Why there is no RPC URL. None of these repeats the URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcReferenceError {
    /// Neither a URL nor a variable.
    #[error(
        "an RPC endpoint is a URL that begins with http:// or https://, or \"env:NAME\" for a variable that holds one"
    )]
    Form,
    /// The name of the environment variable is none.
    #[error("\"env:\" is followed by the name of an environment variable: letters, digits and underscores")]
    Name,
    /// The variable is not set.
    #[error("the environment variable {0} is not set; it should hold the URL of the chain's RPC endpoint")]
    Unset(String),
    /// The variable holds something else.
    #[error("the environment variable {0} does not hold a URL that begins with http:// or https://")]
    NotAUrl(String),
}

impl RpcReference {
    /// The URL, from the environment if that is where it is. It may hold an API key: never print it.
    pub fn resolve(&self) -> Result<String, RpcReferenceError> {
        self.resolve_with(|name| std::env::var(name).ok())
    }

    /// The same with another environment.
    pub fn resolve_with(&self, lookup: impl Fn(&str) -> Option<String>) -> Result<String, RpcReferenceError> {
        match self {
            Self::Url(url) => Ok(url.clone()),
            Self::Env(name) => {
                let url = lookup(name).filter(|value| !value.trim().is_empty());
                let url = url.ok_or_else(|| RpcReferenceError::Unset(name.clone()))?;
                let url = url.trim();
                if is_http_url(url) { Ok(url.to_owned()) } else { Err(RpcReferenceError::NotAUrl(name.clone())) }
            }
        }
    }
}

impl FromStr for RpcReference {
    type Err = RpcReferenceError;

    fn from_str(text: &str) -> Result<Self, RpcReferenceError> {
        if let Some(name) = text.strip_prefix("env:") {
            return if is_variable_name(name) { Ok(Self::Env(name.to_owned())) } else { Err(RpcReferenceError::Name) };
        }
        if is_http_url(text) { Ok(Self::Url(text.to_owned())) } else { Err(RpcReferenceError::Form) }
    }
}

/// Scheme and host only: the rest of an RPC URL is often an API key.
impl fmt::Display for RpcReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::Url(url) => f.write_str(&without_secrets(url)),
        }
    }
}

impl fmt::Debug for RpcReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A URL's scheme, host and port; what else it has is shown as `…`.
pub(crate) fn without_secrets(url: &str) -> String {
    let Ok(uri) = url.parse::<Uri>() else { return "…".to_owned() };
    let scheme = uri.scheme_str().unwrap_or("http");
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    let plain = uri.path_and_query().is_none_or(|rest| rest == "/");
    let user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    let more = if plain && !user { "" } else { "/…" };
    format!("{scheme}://{host}{port}{more}")
}

/// A key with or without `0x`, alone or behind one of the prefixes.
fn holds_a_key(text: &str) -> bool {
    let last = text.rsplit(':').next().unwrap_or(text).trim();
    let digits = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X")).unwrap_or(last);
    digits.len() == KEY_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_http_url(text: &str) -> bool {
    let scheme = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https"));
    text.parse::<Uri>().is_ok_and(|uri| scheme(&uri) && uri.host().is_some_and(|host| !host.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_and_never_written() {
        let key = "ab".repeat(32);
        let good = ["env:A", "env:_x9", "file:/run/key", "file:key.hex", "keystore:a b.json", "dev:receiver", "dev:9"];
        for good in good {
            assert_eq!(good.parse::<KeyReference>().unwrap().to_string(), good);
        }
        let cases = [
            (key.as_str(), KeyReferenceError::Literal),
            (&format!("0x{key}"), KeyReferenceError::Literal),
            (&format!("env:{key}"), KeyReferenceError::Literal),
            (&format!("file:0x{key}"), KeyReferenceError::Literal),
            (&format!(" 0X{key} "), KeyReferenceError::Literal),
            (&key[1..], KeyReferenceError::Form),
            ("file: ", KeyReferenceError::Form),
            ("dev:", KeyReferenceError::Form),
            ("dev:10", KeyReferenceError::Dev),
            ("dev:nobody", KeyReferenceError::Dev),
            ("", KeyReferenceError::Form),
            ("env:", KeyReferenceError::Form),
            ("vault:x", KeyReferenceError::Form),
            ("Env:X", KeyReferenceError::Form),
            ("file:a\nb", KeyReferenceError::Form),
            ("env:A-B", KeyReferenceError::Name),
            ("env:1A", KeyReferenceError::Name),
            ("env:$A", KeyReferenceError::Name),
        ];
        for (bad, expected) in cases {
            assert_eq!(bad.parse::<KeyReference>(), Err(expected), "{bad}");
        }
    }

    #[test]
    fn an_rpc_url_is_shown_without_its_secrets() {
        let cases = [
            ("https://node.example/v2/s3cret", "https://node.example/…"),
            ("https://user:s3cret@node.example:8545", "https://node.example:8545/…"),
            ("https://node.example/?key=s3cret", "https://node.example/…"),
            ("http://127.0.0.1:8545", "http://127.0.0.1:8545"),
            ("http://127.0.0.1:8545/", "http://127.0.0.1:8545"),
            ("http://[::1]:8545", "http://[::1]:8545"),
            ("env:RPC", "env:RPC"),
        ];
        for (text, shown) in cases {
            let reference: RpcReference = text.parse().unwrap();
            assert_eq!((format!("{reference}"), format!("{reference:?}")), (shown.to_owned(), shown.to_owned()));
        }
    }

    #[test]
    fn an_rpc_url_comes_from_the_file_or_the_environment() {
        for bad in ["", "ws://x", "node.example", "https://", "env", "file:/x"] {
            assert_eq!(bad.parse::<RpcReference>(), Err(RpcReferenceError::Form), "{bad}");
        }
        assert_eq!("env:A B".parse::<RpcReference>(), Err(RpcReferenceError::Name));
        let named: RpcReference = "env:RPC".parse().unwrap();
        let set = |value: &'static str| move |name: &str| (name == "RPC").then(|| value.to_owned());
        assert_eq!(named.resolve_with(set(" https://node.example/k\n")), Ok("https://node.example/k".to_owned()));
        assert_eq!(named.resolve_with(|_| None), Err(RpcReferenceError::Unset("RPC".to_owned())));
        assert_eq!(named.resolve_with(set("")), Err(RpcReferenceError::Unset("RPC".to_owned())));
        assert_eq!(named.resolve_with(set("nonsense")), Err(RpcReferenceError::NotAUrl("RPC".to_owned())));
    }
}
