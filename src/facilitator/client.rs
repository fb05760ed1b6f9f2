//! Talking to a facilitator over HTTP.
//!
//! **Promises** that every request ends in time, that an answer has a largest size, that no error shows the address
//! beyond its host, a signature, or more than a line of the facilitator's own words, and that it tells apart what the
//! facilitator certainly did not get, what it says it did not do, and what nobody knows. **Does not** retry, and does not
//! believe: an answer names a transaction, and what that did is the chain's to say.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::FacilitatorSettings;
use crate::chain::{RpcUrl, RpcUrlError};
use crate::protocol::x402::{SCHEME, VERSION, network_of};
use crate::protocol::{Address, Hash};

/// For the connection alone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For the answers that wait for no block.
const QUICK_TIMEOUT: Duration = Duration::from_secs(15);
/// The largest answer that is read. The largest honest ones list what is supported.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// A longer run of hex digits in a facilitator's words may be a signature. Hashes have 64.
const MAX_HEX_DIGITS: usize = 64;
/// How much of a facilitator's words is passed on, in characters.
const MAX_WORDS_CHARS: usize = 160;

/// Where a facilitator is. Its text form hides everything after the host: an API key may be there.
#[derive(Clone, PartialEq, Eq)]
pub struct FacilitatorUrl(RpcUrl);

/// Why a text is no facilitator's address. The text itself is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FacilitatorUrlError {
    /// It is no URL at all.
    #[error("not a URL; a facilitator's address looks like https://host/path")]
    NotAUrl,
    /// It is no HTTP address.
    #[error("a facilitator's address must begin with http:// or https://")]
    Scheme,
    /// It names no host.
    #[error("the facilitator's address names no host")]
    NoHost,
}

impl FromStr for FacilitatorUrl {
    type Err = FacilitatorUrlError;

    fn from_str(text: &str) -> Result<Self, FacilitatorUrlError> {
        text.parse().map(Self).map_err(|error| match error {
            RpcUrlError::NotAUrl => FacilitatorUrlError::NotAUrl,
            RpcUrlError::Scheme => FacilitatorUrlError::Scheme,
            RpcUrlError::NoHost => FacilitatorUrlError::NoHost,
        })
    }
}

impl fmt::Display for FacilitatorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for FacilitatorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FacilitatorUrl {
    /// An endpoint below it. What is after a `?` stays.
    fn endpoint(&self, name: &str) -> reqwest::Url {
        let mut url = self.0.expose();
        let path = format!("{}/{name}", url.path().trim_end_matches('/'));
        url.set_path(&path);
        url
    }

    /// A facilitator's words, fit to be shown: one line of bounded length, without our secrets and without anything as
    /// long as a signature.
    fn quote(&self, words: &str) -> String {
        let line = self.0.scrub(words.lines().next().unwrap_or_default());
        let mut shown = String::new();
        let mut digits = 0;
        for character in line.chars() {
            digits = if character.is_ascii_hexdigit() { digits + 1 } else { 0 };
            match digits.cmp(&(MAX_HEX_DIGITS + 1)) {
                std::cmp::Ordering::Less => shown.push(character),
                std::cmp::Ordering::Equal => {
                    shown.truncate(shown.len().saturating_sub(MAX_HEX_DIGITS));
                    shown.push('…');
                }
                std::cmp::Ordering::Greater => {}
            }
        }
        shown.chars().take(MAX_WORDS_CHARS).collect()
    }
}

/// Why a facilitator cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FacilitatorError {
    /// Nobody answered, or not in time, or not with success. Worth trying again.
    #[error("the facilitator at {url} cannot be reached")]
    Unreachable {
        /// Where.
        url: FacilitatorUrl,
        /// What happened on the way.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its answer makes no sense.
    #[error("the answer of the facilitator at {url} makes no sense")]
    Decode {
        /// Where.
        url: FacilitatorUrl,
        /// How.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It does not do what we need.
    #[error("the facilitator at {url} does not support x402 version {VERSION} of {SCHEME} on {network}")]
    Unsupported {
        /// Where.
        url: FacilitatorUrl,
        /// The chain, as it is called in x402.
        network: String,
    },
}

impl FacilitatorError {
    /// Whether it may be otherwise the next time.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// What a facilitator offers on our chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Supported {
    /// Its own receiver authorizer, if it offers one. We sign with ours.
    pub authorizer: Option<Address>,
    /// Protocol extensions it knows, such as those that sponsor Permit2 approvals.
    pub extensions: Vec<String>,
}

/// What a facilitator makes of a request to settle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Settled {
    /// It names a transaction. What that did, or will do, the chain tells.
    Named(Hash),
    /// It says that it sent nothing.
    Refused(Refusal),
    /// It did not get it.
    Undelivered(String),
    /// Nobody knows whether it sent something.
    Unknown(String),
}

/// Why a facilitator would not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Its code, or the HTTP status.
    pub(super) reason: String,
    /// What that is about.
    pub(super) about: About,
}

/// What a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// What it was shown, and the chain's state; as with a revert, the same again gives the same.
    Request,
    /// How much there is of it: less of the same may pass.
    Size,
    /// Nothing but the facilitator.
    Itself,
}

/// A facilitator, seen through HTTP.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    settings: FacilitatorSettings,
}

#[derive(Deserialize)]
struct SupportedAnswer {
    kinds: Vec<Kind>,
    #[serde(default)]
    extensions: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    x402_version: u64,
    scheme: String,
    network: String,
    #[serde(default)]
    extra: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VerifyAnswer {
    is_valid: bool,
    #[serde(default)]
    invalid_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SettleAnswer {
    success: bool,
    #[serde(default)]
    error_reason: Option<String>,
    #[serde(default)]
    error_message: Option<String>,
    #[serde(default)]
    transaction: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// No connection came about, so nothing was carried.
    #[error("no connection: {0}")]
    Connect(String),
    #[error("{0}")]
    Transport(String),
    #[error("HTTP status {0}")]
    Status(u16),
    #[error("an answer above {MAX_ANSWER_BYTES} bytes")]
    TooLong,
    #[error("not the JSON that was expected: {0}")]
    Shape(serde_json::Error),
}

/// An answer's status and text.
struct Answer {
    status: reqwest::StatusCode,
    body: Vec<u8>,
}

impl Answer {
    fn read<T: DeserializeOwned>(&self) -> Result<T, Trouble> {
        // Not with success, and yet what was asked for: the body says more than the status.
        serde_json::from_slice(&self.body).map_err(|error| match self.status.is_success() {
            true => Trouble::Shape(error),
            false => Trouble::Status(self.status.as_u16()),
        })
    }
}

impl Client {
    /// Makes a client; nothing is sent yet.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(settings: FacilitatorSettings) -> Result<Self, FacilitatorError> {
        crate::chain::install_tls();
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(crate::tls::client_config())
            .connect_timeout(CONNECT_TIMEOUT)
            // Whoever is asked is the one the operator named.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("peaje/", env!("CARGO_PKG_VERSION")));
        if settings.url.0.is_loopback() {
            builder = builder.no_proxy();
        }
        match builder.build() {
            Ok(http) => Ok(Self { http, settings }),
            Err(error) => Err(FacilitatorError::Unreachable { url: settings.url, source: error.without_url().into() }),
        }
    }

    /// Where it is.
    pub fn url(&self) -> &FacilitatorUrl {
        &self.settings.url
    }

    /// What it offers on a chain.
    ///
    /// # Errors
    /// [`FacilitatorError::Unsupported`] where it does not do what we need there.
    pub async fn supported(&self, chain_id: u64) -> Result<Supported, FacilitatorError> {
        let url = self.url().clone();
        let request = self.http.get(url.endpoint("supported")).timeout(QUICK_TIMEOUT);
        let answer = match self.answer(request).await {
            Ok(answer) if answer.status.is_success() => answer.read::<SupportedAnswer>(),
            Ok(answer) => Err(Trouble::Status(answer.status.as_u16())),
            Err(trouble) => Err(trouble),
        };
        let SupportedAnswer { kinds, extensions } = answer.map_err(|trouble| match trouble {
            Trouble::Shape(_) | Trouble::TooLong => {
                FacilitatorError::Decode { url: url.clone(), source: trouble.into() }
            }
            _ => FacilitatorError::Unreachable { url: url.clone(), source: trouble.into() },
        })?;
        let network = network_of(chain_id);
        let ours = |kind: &&Kind| {
            let family = kind.network == "eip155:*" || kind.network == network;
            kind.x402_version == VERSION && kind.scheme == SCHEME && family
        };
        let Some(kind) = kinds.iter().find(ours) else {
            return Err(FacilitatorError::Unsupported { url, network });
        };
        let authorizer = kind.extra.as_ref().and_then(|extra| extra.get("receiverAuthorizer"));
        let authorizer = authorizer.and_then(Value::as_str).and_then(|text| text.parse().ok());
        Ok(Supported { authorizer, extensions })
    }

    /// Whether it would take a deposit; its reason, if it would not. Nothing is done.
    ///
    /// # Errors
    /// It cannot be asked, or its answer makes no sense.
    pub(super) async fn verify(&self, body: Vec<u8>) -> Result<Result<(), Refusal>, String> {
        let trouble = |trouble: Trouble| trouble.to_string();
        let request = self.post("verify", body).timeout(QUICK_TIMEOUT.min(self.settings.timeout));
        let answer: VerifyAnswer = self.answer(request).await.and_then(|answer| answer.read()).map_err(trouble)?;
        Ok(match answer {
            VerifyAnswer { is_valid: true, .. } => Ok(()),
            VerifyAnswer { invalid_reason, .. } => {
                let reason = self.url().quote(invalid_reason.as_deref().unwrap_or("it gives no reason"));
                if is_unclear(&reason) {
                    return Err(reason);
                }
                let about = if reason.starts_with("unsupported_") { About::Itself } else { About::Request };
                Err(Refusal { reason, about })
            }
        })
    }

    /// Asks it to send what the body is for. It answers once that is mined.
    pub(super) async fn settle(&self, body: Vec<u8>) -> Settled {
        let request = self.post("settle", body).timeout(self.settings.timeout);
        match self.answer(request).await {
            Ok(answer) => self.judge(&answer),
            Err(trouble @ Trouble::Connect(_)) => Settled::Undelivered(trouble.to_string()),
            Err(trouble) => Settled::Unknown(trouble.to_string()),
        }
    }

    fn judge(&self, answer: &Answer) -> Settled {
        let status = answer.status;
        let SettleAnswer { success, error_reason, error_message, transaction } = match answer.read() {
            Ok(typed) => typed,
            // A request that was refused as such was not carried out. Those with other words are tried again: a gateway
            // that gave up waiting, a limit of requests.
            Err(_) if is_refusal(status) => {
                let reason = format!("HTTP status {}", status.as_u16());
                let too_large = status == reqwest::StatusCode::PAYLOAD_TOO_LARGE;
                return Settled::Refused(Refusal {
                    reason,
                    about: if too_large { About::Size } else { About::Itself },
                });
            }
            Err(trouble) => return Settled::Unknown(trouble.to_string()),
        };
        // Whatever it says of it: there is a transaction.
        if let Some(Ok(hash)) = transaction.map(|text| text.parse::<Hash>()) {
            return Settled::Named(hash);
        }
        let reason = self.url().quote(error_reason.as_deref().unwrap_or("it gives no reason"));
        let words = self.url().quote(error_message.as_deref().unwrap_or_default());
        if success || error_reason.is_none() || is_unclear(&reason) {
            return Settled::Unknown(if words.is_empty() { reason } else { format!("{reason}: {words}") });
        }
        let about = match reason.as_str() {
            reason if reason.ends_with("_simulation_failed") => About::Request,
            reason if is_of_size(reason) => About::Size,
            _ => About::Itself,
        };
        Settled::Refused(Refusal { reason, about })
    }

    fn post(&self, name: &str, body: Vec<u8>) -> reqwest::RequestBuilder {
        let request = self.http.post(self.url().endpoint(name));
        request.header(reqwest::header::CONTENT_TYPE, "application/json").body(body)
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Answer, Trouble> {
        let transport = |error: reqwest::Error| {
            let connect = error.is_connect() || error.is_builder();
            let words = crate::causes::causes(&error.without_url());
            if connect { Trouble::Connect(words) } else { Trouble::Transport(words) }
        };
        let mut response = request.send().await.map_err(transport)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(transport)? {
            if body.len().saturating_add(chunk.len()) > MAX_ANSWER_BYTES {
                return Err(Trouble::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.url())
    }
}

/// Whether a status alone says that a request was not carried out.
fn is_refusal(status: reqwest::StatusCode) -> bool {
    use reqwest::StatusCode as Status;
    let later = [Status::REQUEST_TIMEOUT, Status::CONFLICT, Status::TOO_EARLY, Status::TOO_MANY_REQUESTS];
    (status.is_client_error() || status.is_redirection()) && !later.contains(&status)
}

/// Whether a reason speaks of too much at once. The protocol has no code for that.
fn is_of_size(reason: &str) -> bool {
    reason.contains("too_many") || reason.contains("too_large")
}

/// Whether a facilitator that says this may have sent something all the same, or may do so when it is asked again. The
/// codes of the scheme that end in a failed transaction are also given where the node it sent to did not answer; and
/// what is not a code of the protocol's says nothing.
fn is_unclear(reason: &str) -> bool {
    let known = ["invalid_", "unsupported_", "insufficient_"].iter().any(|kind| reason.starts_with(kind));
    let later = ["_transaction_failed", "_reverted", "_receipt_failed", "_read_failed", "_state", "_unavailable"];
    !(known || is_of_size(reason)) || later.iter().any(|end| reason.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn client() -> Client {
        let url = "https://facilitator.example/v2/abcdefgh12345678".parse().unwrap();
        Client::new(FacilitatorSettings { url, timeout: Duration::from_secs(1) }).unwrap()
    }

    fn judged(status: u16, body: &Value) -> Settled {
        let status = reqwest::StatusCode::from_u16(status).unwrap();
        client().judge(&Answer { status, body: body.to_string().into_bytes() })
    }

    fn code(end: &str) -> String {
        format!("invalid_batch_settlement_evm_{end}")
    }

    #[test]
    fn a_transaction_that_is_named_is_followed_whatever_is_said_of_it() {
        let hash = Hash([7; 32]);
        for (status, success, reason) in [
            (200, true, None),
            (200, false, Some("settlement_pending".to_owned())),
            (400, false, Some(code("claim_transaction_failed"))),
            (500, false, Some(code("nothing_to_settle"))),
        ] {
            let body = json!({"success": success, "transaction": hash, "network": "x", "errorReason": reason});
            assert_eq!(judged(status, &body), Settled::Named(hash));
        }
    }

    #[test]
    fn only_a_reason_from_before_anything_was_sent_is_a_refusal() {
        let said = |status, reason: &str| {
            judged(status, &json!({"success": false, "transaction": "", "network": "x", "errorReason": reason}))
        };
        for (status, reason, about) in [
            (200, code("nothing_to_settle"), About::Itself),
            (200, code("claim_simulation_failed"), About::Request),
            (400, code("authorizer_not_configured"), About::Itself),
            (500, code("insufficient_balance"), About::Itself),
            (402, "insufficient_funds".to_owned(), About::Itself),
            (400, "unsupported_scheme".to_owned(), About::Itself),
            (400, "too_many_claims".to_owned(), About::Size),
        ] {
            assert_eq!(said(status, &reason), Settled::Refused(Refusal { reason, about }));
        }
        for reason in [
            code("deposit_transaction_failed"),
            code("claim_transaction_failed"),
            code("wait_for_receipt_failed"),
            code("transaction_reverted"),
            code("rpc_read_failed"),
            "invalid_transaction_state".to_owned(),
            "settlement_pending".to_owned(),
            "unexpected_settle_error".to_owned(),
            String::new(),
        ] {
            assert!(matches!(said(200, &reason), Settled::Unknown(_)), "{reason}");
        }
        let nothing = json!({"success": false, "transaction": null, "network": "x"});
        assert!(matches!(judged(200, &nothing), Settled::Unknown(_)));
    }

    #[test]
    fn success_without_a_transaction_is_no_success() {
        for transaction in [json!(""), json!("0x12"), Value::Null] {
            let body = json!({"success": true, "transaction": transaction, "network": "x"});
            assert!(matches!(judged(200, &body), Settled::Unknown(_)));
        }
    }

    #[test]
    fn a_status_alone_refuses_only_what_was_not_begun() {
        let body = json!({"error": "no"});
        for status in [301, 400, 401, 404, 413, 422] {
            let Settled::Refused(Refusal { about, .. }) = judged(status, &body) else { panic!("{status}") };
            assert_eq!(about == About::Size, status == 413);
        }
        for status in [200, 408, 409, 425, 429, 500, 502, 503, 504] {
            assert!(matches!(judged(status, &body), Settled::Unknown(_)), "{status}");
        }
    }

    #[test]
    fn nothing_secret_is_passed_on() {
        let url = &client().settings.url;
        assert_eq!(url.to_string(), "https://facilitator.example/…");
        let signature = "ab".repeat(65);
        let said = format!("bad key abcdefgh12345678 for 0x{signature}, tx 0x{}\nargs: secret", "12".repeat(32));
        assert_eq!(url.quote(&said), format!("bad key … for 0x…, tx 0x{}", "12".repeat(32)));
        assert_eq!(url.quote(&"x".repeat(9_000)).len(), MAX_WORDS_CHARS);
    }

    #[test]
    fn endpoints_are_below_the_address() {
        for (address, endpoint) in [
            ("https://f.example", "https://f.example/settle"),
            ("https://f.example/", "https://f.example/settle"),
            ("https://f.example/v2/?key=1", "https://f.example/v2/settle?key=1"),
        ] {
            let url: FacilitatorUrl = address.parse().unwrap();
            assert_eq!(url.endpoint("settle").as_str(), endpoint);
        }
    }
}
