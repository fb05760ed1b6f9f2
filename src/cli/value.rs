//! Values of the command line.
//!
//! **Promises** that a value that may hold a secret (a key in the wrong place, an RPC URL, a header) is not repeated in
//! an error, which is why such values are read after parsing and not while.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::exit::{Exit, Failure};
use crate::config::{KeyReference, RpcReference, parse_duration};
use crate::protocol::x402::chain_id_of;
use crate::protocol::{Address, Amount, Network};

/// Decimal places of the dollars on the command line.
pub const DOLLAR_DECIMALS: u8 = 6;

/// Reads dollars, as millionths. `$` can be left out, because shells have their own idea of `$0`.
pub(super) fn dollars(text: &str) -> Result<Amount, String> {
    let number = text.strip_prefix('$').unwrap_or(text);
    Amount::from_price(&format!("${number}"), DOLLAR_DECIMALS)
        .map_err(|_| "expected dollars, such as 0.002, with at most six decimal places".to_owned())
}

/// As [`dollars`], but not nothing.
pub(super) fn some_dollars(text: &str) -> Result<Amount, String> {
    match dollars(text)? {
        Amount::ZERO => Err("expected more than nothing".to_owned()),
        amount => Ok(amount),
    }
}

/// Reads a duration such as `2s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

/// A chain on the command line, as its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainName(pub u64);

impl FromStr for ChainName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Network::by_name(text).map(|network| network.chain_id);
        let id = named.or_else(|| chain_id_of(text)).or_else(|| text.parse().ok()).filter(|id| *id > 0);
        id.map(Self).ok_or_else(|| "expected a network such as base, or a chain's id".to_owned())
    }
}

/// What people call a chain.
pub(super) fn chain_name(chain_id: u64) -> String {
    Network::by_chain_id(chain_id).map_or_else(|| format!("chain {chain_id}"), |network| network.name.to_owned())
}

/// A reference on the command line. What was refused is told only to whoever needs it.
#[derive(Debug, Clone)]
pub struct Argument<T>(Result<T, String>);

/// A key reference that was not read yet.
pub type KeyArgument = Argument<KeyReference>;

/// An RPC reference that was not read yet.
pub type RpcArgument = Argument<RpcReference>;

impl<T: FromStr<Err: Display>> FromStr for Argument<T> {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.parse().map_err(|error: T::Err| error.to_string())))
    }
}

impl KeyArgument {
    /// The reference.
    pub fn reference(&self) -> Result<&KeyReference, Failure> {
        self.0.as_ref().map_err(|problem| {
            Failure::message(Exit::Usage, format!("the key reference is refused: {problem}"))
                .hint("export PEAJE_AGENT_KEY, or pass --key file:PATH")
        })
    }
}

impl RpcArgument {
    /// The URL, which may hold an API key.
    pub fn url(&self) -> Result<String, Failure> {
        let reference = self.0.as_ref().map_err(|problem| Failure::message(Exit::Usage, problem))?;
        reference.resolve().map_err(|error| Failure::new(Exit::Usage, error))
    }
}

/// A token that may be paid with although it is not built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedToken {
    /// The chain's id.
    pub chain_id: u64,
    /// Where it is.
    pub address: Address,
    /// Decimal places of a dollar.
    pub decimals: u8,
    /// The `name` of its EIP-712 domain.
    pub domain_name: String,
    /// The `version` of its EIP-712 domain.
    pub domain_version: String,
}

impl FromStr for AllowedToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "expected CHAIN_ID:ADDRESS:DECIMALS:NAME:VERSION, as in 84532:0x036C…CF7e:6:USDC:2".to_owned();
        let parts: Vec<_> = text.split(':').collect();
        let [chain_id, address, decimals, name, version] = parts.as_slice() else { return Err(form()) };
        if name.is_empty() || version.is_empty() {
            return Err(form());
        }
        Ok(Self {
            chain_id: chain_id.parse().map_err(|_| form())?,
            address: address.parse().map_err(|error| format!("the token's address: {error}"))?,
            decimals: decimals.parse().ok().filter(|decimals| *decimals <= 30).ok_or_else(form)?,
            domain_name: (*name).to_owned(),
            domain_version: (*version).to_owned(),
        })
    }
}

/// Reads `Name: value` lines.
pub(super) fn headers(lines: &[String]) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for (index, line) in lines.iter().enumerate() {
        let read = || {
            let (name, value) = line.split_once(':')?;
            let name: HeaderName = name.parse().ok()?;
            Some((name, HeaderValue::from_str(value.trim()).ok()?))
        };
        let Some((name, value)) = read() else {
            let which = index.saturating_add(1);
            return Err(Failure::message(Exit::Usage, format!("header {which} is not of the form \"Name: value\"")));
        };
        headers.append(name, value);
    }
    Ok(headers)
}

/// Where an agent's books are by default: `$XDG_STATE_HOME/peaje`, or `~/.local/state/peaje`.
pub fn default_state_dir() -> Option<PathBuf> {
    state_dir(|name| std::env::var_os(name).map(PathBuf::from))
}

fn state_dir(lookup: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    // Relative paths are to be ignored, says the base directory specification.
    let absolute = |name: &str| lookup(name).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("peaje"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_do_without_their_sign() {
        for text in ["0.002", "$0.002", "0.0020"] {
            assert_eq!(dollars(text), Ok(Amount::new(2_000)));
        }
        for bad in ["", "$", "$$1", "-1", "1e3", "0.0000001", "0,2", " 1"] {
            assert!(dollars(bad).is_err(), "{bad}");
        }
        assert!(dollars("0").is_ok() && some_dollars("0.00").is_err());
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        let key = "ab".repeat(32);
        let argument: KeyArgument = key.parse().unwrap();
        assert!(!format!("{argument:?} {:?}", argument.reference().unwrap_err()).contains("abab"));
        let argument: RpcArgument = "wss://node.example/s3cret".parse().unwrap();
        assert!(!format!("{argument:?} {:?}", argument.url().unwrap_err()).contains("s3cret"));
        let failure = headers(&["A: b".to_owned(), "Bearer s3cret".to_owned()]).unwrap_err();
        assert!(!format!("{failure:?}").contains("s3cret") && format!("{failure:?}").contains("header 2"));
    }

    #[test]
    fn headers_read_as_in_http() {
        let read = headers(&["Accept: text/html".to_owned(), "X-Time:12:00".to_owned(), "accept:*/*".to_owned()]);
        let read = read.unwrap();
        assert_eq!(read.get_all("accept").iter().count(), 2);
        assert_eq!(read["x-time"], "12:00");
        for bad in ["", ":", "a b: c", "A\n: b", "A: b\r\nC: d"] {
            assert!(headers(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_token_is_allowed_with_all_its_parts() {
        let token: AllowedToken = "7:0x036CbD53842c5426634e7929541eC2318f3dCF7e:6:My Coin:2".parse().unwrap();
        assert_eq!((token.chain_id, token.decimals, token.domain_name.as_str()), (7, 6, "My Coin"));
        for bad in [
            "",
            "7",
            "7:0x0:6:A:1",
            "x:0x036CbD53842c5426634e7929541eC2318f3dCF7e:6:A:1",
            "7:0x036CbD53842c5426634e7929541eC2318f3dCF7e:6::1",
        ] {
            assert!(bad.parse::<AllowedToken>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_books_lie_where_state_lies() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| PathBuf::from(value))
        };
        assert_eq!(state_dir(env(&[("HOME", "/home/me")])), Some("/home/me/.local/state/peaje".into()));
        assert_eq!(state_dir(env(&[("HOME", "/h"), ("XDG_STATE_HOME", "/s")])), Some("/s/peaje".into()));
        assert_eq!(state_dir(env(&[("HOME", "/h"), ("XDG_STATE_HOME", "s")])), Some("/h/.local/state/peaje".into()));
        assert_eq!(state_dir(env(&[])), None);
    }
}
