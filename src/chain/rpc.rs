//! JSON-RPC over HTTP, as much of it as this room needs.
//!
//! **Owns** the connection to the node. **Promises** that every request ends in time, that an answer has a largest
//! size, that nothing it returns names the address beyond its host, and that it tells apart what certainly never reached the
//! node from what may have: a transaction's fate hangs on that. **Does not** retry.
//!
//! alloy's own HTTP transport puts the whole address, with the provider's API key, into spans and errors, and reads an
//! answer of any length; hence this one.

use std::fmt;
use std::time::Duration;

use alloy::primitives::{Bytes, hex};
use alloy::sol_types::{Revert, SolError as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::bindings::Permit2::Permit2Errors;
use super::bindings::Settlement::SettlementErrors;
use super::error::{Cause, ChainError};
use super::url::RpcUrl;

/// From the first byte sent to the last byte read.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// For the connection alone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer that is read. The largest honest ones are event logs.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// How deep an error's data may hide in objects of the node's own making.
const MAX_REVERT_NESTING: usize = 3;

/// The JSON-RPC error code nodes give to a call that reverted.
const CODE_REVERTED: i64 = 3;

/// A node, seen through HTTP.
pub(super) struct Rpc {
    http: reqwest::Client,
    url: RpcUrl,
}

/// A request that failed, and whether the node has it all the same.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: ChainError,
    pub(super) fate: Fate,
}

/// What a node has made of a request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It never got it, or refused it unread.
    Unread,
    /// It read it and answered with an error.
    Answered,
    /// Nobody knows.
    Unclear,
}

impl From<Failure> for ChainError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

#[derive(Serialize)]
struct Request<'a, P> {
    jsonrpc: &'static str,
    id: u64,
    method: &'a str,
    params: P,
}

#[derive(Deserialize)]
struct Answer {
    result: Option<Box<RawValue>>,
    error: Option<ErrorObject>,
}

#[derive(Deserialize)]
struct ErrorObject {
    code: i64,
    #[serde(default)]
    message: String,
    data: Option<Value>,
}

#[derive(Debug, thiserror::Error)]
#[error("the node answered with HTTP status {0}")]
struct HttpStatus(u16);

impl Rpc {
    /// Makes a client; nothing is sent yet.
    pub(super) fn new(url: RpcUrl) -> Result<Self, ChainError> {
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(crate::tls::client_config())
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("peaje/", env!("CARGO_PKG_VERSION")));
        if url.is_loopback() {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(unreachable)?;
        Ok(Self { http, url })
    }

    /// Asks one question and waits so long for the answer. A `null` answer is an error unless `R` is an `Option`.
    pub(super) async fn ask<R: DeserializeOwned>(
        &self,
        method: &'static str,
        params: impl Serialize,
        timeout: Duration,
    ) -> Result<R, Failure> {
        let request = Request { jsonrpc: "2.0", id: 1, method, params };
        let sent = self.http.post(self.url.expose()).timeout(timeout).json(&request).send().await;
        let mut response = sent.map_err(|error| {
            // A connection that never came about carried nothing; anything later may have.
            let fate = if error.is_connect() || error.is_builder() { Fate::Unread } else { Fate::Unclear };
            Failure { error: unreachable(error), fate }
        })?;
        let unclear = |error| Failure { error, fate: Fate::Unclear };

        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| unclear(unreachable(error)))? {
            if body.len().saturating_add(chunk.len()) > MAX_ANSWER_BYTES {
                return Err(unclear(ChainError::decode("an answer of reasonable size")));
            }
            body.extend_from_slice(&chunk);
        }
        let answer = serde_json::from_slice::<Answer>(&body);

        // Some nodes send their errors with a status of 4xx or 5xx; the JSON says more than the status.
        if let Ok(Answer { error: Some(error), .. }) = answer {
            return Err(Failure { error: self.judge(error), fate: Fate::Answered });
        }
        if !status.is_success() {
            // 408 is a gateway's word for a node that did not answer in time.
            let unread = status.is_client_error() && status != reqwest::StatusCode::REQUEST_TIMEOUT;
            let fate = if unread { Fate::Unread } else { Fate::Unclear };
            let source = Cause::from(HttpStatus(status.as_u16()));
            return Err(Failure { error: ChainError::Unreachable { source }, fate });
        }
        let result = answer.map_err(|error| unclear(ChainError::decode_from("a JSON-RPC answer", error)))?.result;
        let text = result.as_deref().map_or("null", RawValue::get);
        serde_json::from_str(text).map_err(|error| unclear(ChainError::decode_from(method, error)))
    }

    fn judge(&self, error: ErrorObject) -> ChainError {
        let data = error.data.as_ref().and_then(|data| revert_data(data, MAX_REVERT_NESTING));
        let lower = error.message.to_ascii_lowercase();
        let reverted = error.code == CODE_REVERTED
            || lower.contains("revert")
            || data.as_ref().is_some_and(|data| !data.is_empty());
        if reverted {
            let said = error.message.split_once("reverted: ").map(|(_, reason)| reason.to_owned());
            let name = data.and_then(|data| revert_name(&data)).or(said);
            return ChainError::Reverted { name: name.map(|name| self.url.scrub(&name)) };
        }
        let message = self.url.scrub(&error.message);
        if is_halt(&lower) {
            return ChainError::Reverted { name: Some(message) };
        }
        ChainError::Refused { code: error.code, message }
    }
}

impl fmt::Debug for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rpc({})", self.url)
    }
}

/// Our HTTP client prints the address with its errors; this takes it out.
fn unreachable(error: reqwest::Error) -> ChainError {
    ChainError::Unreachable { source: error.without_url().into() }
}

/// Ways for a contract to fail without reverting. Nodes report them as plain errors, each in its own words.
fn is_halt(message: &str) -> bool {
    let halts =
        ["evm error", "opcode", "out of gas", "invalid jump", "stack underflow", "stack limit", "badinstruction"];
    halts.iter().any(|halt| message.contains(halt))
}

/// Finds the revert data in an error: most nodes give it as a hex string, some bury it in objects.
fn revert_data(data: &Value, depth: usize) -> Option<Bytes> {
    match data {
        Value::String(text) => {
            let digits = text.strip_prefix("Reverted ").unwrap_or(text);
            digits.starts_with("0x").then(|| hex::decode(digits).ok().map(Bytes::from)).flatten()
        }
        Value::Object(fields) => ["data", "originalError", "result"]
            .iter()
            .filter_map(|name| fields.get(*name))
            .find_map(|inner| revert_data(inner, depth.checked_sub(1)?)),
        _ => None,
    }
}

/// The name of a custom error, the text of `Error(string)`, or the selector of what is not known here.
fn revert_name(data: &[u8]) -> Option<String> {
    let (selector, _) = data.split_first_chunk::<4>()?;
    let known = SettlementErrors::name_by_selector(*selector).or_else(|| Permit2Errors::name_by_selector(*selector));
    if let Some(name) = known {
        return Some(name.to_owned());
    }
    match Revert::abi_decode(data) {
        Ok(revert) => Some(revert.reason),
        Err(_) => Some(hex::encode_prefixed(selector)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judge(error: Value) -> ChainError {
        super::super::install_tls();
        let rpc = Rpc::new("http://127.0.0.1:1/v2/abcdefgh12345678".parse().unwrap()).unwrap();
        rpc.judge(serde_json::from_value(error).unwrap())
    }

    fn reverted(error: Value) -> Option<String> {
        match judge(error) {
            ChainError::Reverted { name } => name,
            other => panic!("not a revert: {other:?}"),
        }
    }

    #[test]
    fn reverts_carry_the_contracts_own_name() {
        let plain = hex::encode_prefixed(Revert::from("TestDollar: no").abi_encode());
        let cases = [
            (json!({"code": 3, "message": "execution reverted", "data": "0x7d8242b6"}), Some("ClaimExceedsBalance")),
            (json!({"code": 3, "message": "execution reverted", "data": "0x756688fe"}), Some("InvalidNonce")),
            (json!({"code": -32000, "message": "execution reverted", "data": "0xd7e6bcf8"}), Some("0xd7e6bcf8")),
            (
                json!({"code": -32015, "message": "VM execution error.", "data": "Reverted 0xf1789775"}),
                Some("ClaimExceedsCeiling"),
            ),
            (
                json!({"code": -32603, "message": "x", "data": {"originalError": {"data": "0xc2e5347d"}}}),
                Some("EmptyBatch"),
            ),
            (json!({"code": 3, "message": "execution reverted", "data": plain}), Some("TestDollar: no")),
            (json!({"code": -32000, "message": "execution reverted: too late"}), Some("too late")),
            (json!({"code": 3, "message": "execution reverted", "data": "0x"}), None),
            (json!({"code": -32000, "message": "execution reverted"}), None),
            (json!({"code": -32000, "message": "invalid opcode: INVALID"}), Some("invalid opcode: INVALID")),
            (json!({"code": -32000, "message": "invalid 0xFE opcode"}), Some("invalid 0xFE opcode")),
            (json!({"code": -32603, "message": "EVM error StackUnderflow"}), Some("EVM error StackUnderflow")),
            (json!({"code": -32000, "message": "out of gas"}), Some("out of gas")),
        ];
        for (error, expected) in cases {
            assert_eq!(reverted(error.clone()).as_deref(), expected, "{error}");
        }
    }

    #[test]
    fn a_nodes_own_no_is_not_a_revert_and_leaks_nothing() {
        for message in
            ["insufficient funds for gas * price + value", "gas required exceeds allowance (0)", "nonce too low"]
        {
            let error = judge(json!({"code": -32000, "message": message}));
            assert!(
                matches!(&error, ChainError::Refused { code: -32000, message: said } if said == message),
                "{error:?}"
            );
        }
        let error = judge(json!({"code": -32001, "message": "no such project abcdefgh12345678", "data": {"see": "x"}}));
        assert!(!format!("{error} {error:?}").contains("abcdefgh"));
    }

    #[test]
    fn revert_data_is_not_dug_for_forever() {
        let mut nested = json!("0x7d8242b6");
        for _ in 0..100 {
            nested = json!({ "data": nested });
        }
        assert_eq!(revert_data(&nested, MAX_REVERT_NESTING), None);
    }
}
