//! Values that several sections have: durations, numbers, amounts, addresses, URLs, texts.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::Uri;

use crate::config::reader::{Given, Problem, Section, quoted};
use crate::config::{parse_duration, write_duration};
use crate::protocol::amount::AmountError;
use crate::protocol::bytes::HexError;
use crate::protocol::{Address, Amount};

/// Prices are checked for their form with so many decimals while the token is not known.
const UNKNOWN_TOKEN_DECIMALS: u8 = 18;

pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) const MINUTE: Duration = Duration::from_secs(60);

pub(super) const HOUR: Duration = Duration::from_secs(3_600);

pub(super) const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn duration(
    section: &mut Section<'_>,
    key: &'static str,
    range: RangeInclusive<Duration>,
) -> Given<Duration> {
    section.text(key, |text| read_duration(text, &range))
}

pub(super) fn whole_seconds(
    section: &mut Section<'_>,
    key: &'static str,
    range: RangeInclusive<Duration>,
) -> Given<Duration> {
    section.text(key, |text| {
        let duration = read_duration(text, &range)?;
        if duration.subsec_nanos() == 0 {
            Ok(duration)
        } else {
            Err(Problem::new(format!("{} is not a whole number of seconds", quoted(text))))
        }
    })
}

pub(super) fn read_duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, Problem> {
    let duration =
        parse_duration(text).map_err(|error| Problem::new(format!("{} is refused: {error}", quoted(text))))?;
    if range.contains(&duration) {
        Ok(duration)
    } else {
        let (least, most) = (write_duration(*range.start()), write_duration(*range.end()));
        Err(Problem::new(format!("{} is not between {least} and {most}", quoted(text))))
    }
}

/// A whole number within limits.
pub(super) fn counted(section: &mut Section<'_>, key: &'static str, range: RangeInclusive<u64>) -> Given<u64> {
    section.number(key, |number| {
        let (least, most) = (range.start(), range.end());
        if range.contains(&number) {
            Ok(number)
        } else {
            Err(Problem::new(format!("{number} is not between {least} and {most}")))
        }
    })
}

/// A dollar of the token.
pub(super) fn dollar(decimals: Option<u8>) -> Amount {
    Amount::from_price("$1", decimals.unwrap_or(UNKNOWN_TOKEN_DECIMALS)).unwrap_or(Amount::MAX)
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Problem> {
    text.parse().map_err(|_| {
        let problem = Problem::new(format!("{} is not an IP address and a port", quoted(text)));
        let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
        match (text, port) {
            (_, Some(port)) if text.starts_with("localhost:") || port.to_string() == text => {
                problem.fix(format!("write \"127.0.0.1:{port}\""))
            }
            (_, Some(port)) if text.starts_with(':') || text.starts_with("*:") => problem
                .fix(format!("write \"0.0.0.0:{port}\" for every interface, \"127.0.0.1:{port}\" for this machine")),
            _ => problem.fix("write it like \"127.0.0.1:4020\""),
        }
    })
}

/// Whether two listeners would ask for the same port of one address.
pub(super) fn same_listener(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && overlap
}

/// An absolute `http` or `https` URL without query, fragment or credentials.
pub(super) fn plain_url(text: &str, example: &str) -> Result<Uri, Problem> {
    let write = || format!("write it like \"{example}\"");
    if text.contains('@') {
        return Err(Problem::new("holds credentials").fix("leave user and password out of the URL"));
    }
    if text.contains(['?', '#']) {
        return Err(Problem::new("has a query or a fragment").fix("end it with the path"));
    }
    let uri: Uri = text.parse().map_err(|_| Problem::new(format!("{} is not a URL", quoted(text))).fix(write()))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(uri),
        _ => Err(Problem::new(format!("{} is not an http or https URL", quoted(text))).fix(write())),
    }
}

pub(super) fn address(text: &str) -> Result<Address, Problem> {
    let address: Address = text.parse().map_err(|error: HexError| {
        Problem::new(format!("{} is not an address: {error}", quoted(text))).fix("write 0x and 40 hex digits")
    })?;
    if address.is_zero() {
        return Err(Problem::new("is the zero address, which nobody owns"));
    }
    let mixed =
        text.chars().skip(2).any(|c| c.is_ascii_uppercase()) && text.chars().skip(2).any(|c| c.is_ascii_lowercase());
    let checksummed = address.to_string();
    if mixed && text != checksummed {
        return Err(Problem::new(format!("{} fails its checksum, so it may be mistyped", quoted(text)))
            .fix(format!("if your wallet shows the same digits, write \"{checksummed}\"")));
    }
    Ok(address)
}

pub(super) fn amount(text: &str, decimals: Option<u8>) -> Result<Amount, Problem> {
    Amount::from_price(text, decimals.unwrap_or(UNKNOWN_TOKEN_DECIMALS)).map_err(|error| match error {
        AmountError::NotExact { decimals } => {
            let least = Amount::new(1).to_price(decimals);
            Problem::new(format!("{} is finer than the token, which has {decimals} decimal places", quoted(text)))
                .fix(format!("use a multiple of {least}"))
        }
        AmountError::TooLarge => Problem::new(format!("{} is more than there can be", quoted(text))),
        AmountError::NotDecimal | AmountError::NotAPrice => {
            let problem = Problem::new(format!("{} is not a price", quoted(text)));
            let with_dollar = format!("${text}");
            match Amount::from_price(&with_dollar, u8::MAX) {
                Err(AmountError::NotAPrice | AmountError::NotDecimal) => problem.fix("write it like \"$0.002\""),
                _ => problem.fix(format!("write it with a dollar sign: {}", quoted(&with_dollar))),
            }
        }
    })
}

pub(super) fn some_text(text: &str) -> Result<String, Problem> {
    if text.is_empty() { Err(Problem::new("is empty")) } else { Ok(text.to_owned()) }
}

pub(super) fn shown_text(text: &str, max_chars: usize) -> Result<String, Problem> {
    if text.contains(char::is_control) {
        return Err(Problem::new("holds a line break or a control character").fix("write it on one line"));
    }
    if text.chars().nth(max_chars).is_some() {
        return Err(Problem::new(format!("is longer than {max_chars} characters")));
    }
    some_text(text)
}

pub(super) fn one_of<T: Copy>(text: &str, choices: &[(&'static str, T)]) -> Result<T, Problem> {
    choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let known = names(choices.iter().map(|(name, _)| *name));
        Problem::new(format!("{} is not known here", quoted(text))).fix(format!("use {known}"))
    })
}

pub(super) fn names<'n>(all: impl Iterator<Item = &'n str>) -> String {
    all.map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}
