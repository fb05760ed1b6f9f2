//! One node, and what is known of it.
//!
//! **Owns** the connection to it, how often it failed of late, and how far it had read the chain. **Promises** that a node
//! whose newest block is too old is an error, not an answer, and that it is avoided for a while after it failed. **Does not**
//! know of other nodes.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::{B256, U64, U256};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::bindings::hash_of;
use super::error::ChainError;
use super::rpc::{Failure, REQUEST_TIMEOUT, Rpc};
use super::types::{Head, NodeHealth};
use super::url::RpcUrl;
use crate::causes::causes;
use crate::clock::now_s;

/// For how long a node is avoided after it failed once; twice as long each time it fails again.
const AVOID_FIRST: Duration = Duration::from_secs(1);
/// The longest that a node is avoided before it is tried again.
const AVOID_MOST: Duration = Duration::from_secs(60);
/// Failures in a row that are counted; more do not make the pause longer.
const MAX_STRIKES: u32 = 6;
/// How long a node may take to answer a question where there is another one to ask; else [`REQUEST_TIMEOUT`].
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a node that failed may take to show that it is back, before the next one is asked instead.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest description of a problem, in characters.
const MAX_PROBLEM_CHARS: usize = 300;

/// A block's header, as a node gives it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawHead {
    pub(super) number: U64,
    hash: B256,
    timestamp: U64,
    pub(super) base_fee_per_gas: Option<U256>,
    #[serde(default)]
    pub(super) gas_limit: U64,
}

impl RawHead {
    pub(super) fn head(&self) -> Head {
        Head { number: self.number.to::<u64>(), hash: hash_of(self.hash), timestamp: self.timestamp.to::<u64>() }
    }
}

/// A node.
pub(super) struct Node {
    pub(super) rpc: Rpc,
    name: String,
    max_lag: Option<Duration>,
    patience: Duration,
    sight: Mutex<Sight>,
    /// The id of its chain, once it told.
    chain_id: OnceCell<u64>,
    pub(super) has_multicall: OnceCell<bool>,
    pub(super) has_data_fee_oracle: OnceCell<bool>,
}

/// How a node looks from here.
#[derive(Default)]
struct Sight {
    newest: Option<Newest>,
    /// Failures since its last success.
    strikes: u32,
    avoid_until: Option<Instant>,
    /// Why it was struck last.
    problem: Option<String>,
    /// What it was compared for and differed in, or that there was nobody to compare it with.
    doubt: Option<Doubt>,
}

#[derive(Clone, Copy)]
struct Newest {
    number: u64,
    timestamp: u64,
    /// Its age when it was read, seconds.
    lag_s: u64,
}

enum Doubt {
    Disputed(String),
    Alone,
}

/// Whether a node may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It answered when it was last asked.
    Good,
    /// It failed some time ago; whoever is told this looks whether it is back, and nobody else does meanwhile.
    Due,
    /// It failed just now.
    Avoided,
}

impl Node {
    /// A node, one of several or the only one; nothing is sent yet.
    pub(super) fn new(url: RpcUrl, max_lag: Option<Duration>, several: bool) -> Result<Self, ChainError> {
        let name = url.origin();
        Ok(Self {
            rpc: Rpc::new(url)?,
            name,
            max_lag,
            patience: if several { PATIENCE } else { REQUEST_TIMEOUT },
            sight: Mutex::default(),
            chain_id: OnceCell::new(),
            has_multicall: OnceCell::new(),
            has_data_fee_oracle: OnceCell::new(),
        })
    }

    /// Scheme, host and port.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn sight(&self) -> MutexGuard<'_, Sight> {
        self.sight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one question.
    pub(super) async fn ask<R: DeserializeOwned>(
        &self,
        method: &'static str,
        params: impl Serialize,
    ) -> Result<R, Failure> {
        self.rpc.ask(method, params, self.patience).await
    }

    /// The id of its chain, which is asked for once.
    pub(super) async fn chain_id(&self) -> Result<u64, ChainError> {
        let ask = || async { Ok(self.ask::<U64>("eth_chainId", json!([])).await?.to::<u64>()) };
        self.chain_id.get_or_try_init(ask).await.copied()
    }

    /// Whether it is known to follow another chain.
    pub(super) fn is_foreign(&self, chain_id: u64) -> bool {
        self.chain_id.get().is_some_and(|id| *id != chain_id)
    }

    /// The newest block.
    pub(super) async fn newest(&self) -> Result<RawHead, ChainError> {
        let head: RawHead = self.ask("eth_getBlockByNumber", json!(["latest", false])).await?;
        let timestamp = head.timestamp.to::<u64>();
        // A clock of ours that is behind the chain's makes no node late.
        let lag_s = now_s().saturating_sub(timestamp);
        self.sight().newest = Some(Newest { number: head.number.to::<u64>(), timestamp, lag_s });
        match self.max_lag {
            Some(most) if Duration::from_secs(lag_s) > most => Err(ChainError::Behind { by_s: lag_s }),
            _ => Ok(head),
        }
    }

    /// Makes sure that it is on this chain and not behind. That asks it for something only where what it said before does
    /// not show it.
    pub(super) async fn admit(&self, chain_id: u64) -> Result<(), ChainError> {
        if self.chain_id().await? != chain_id {
            return Err(ChainError::Disagreement { what: "the chain id", nodes: vec![self.name.clone()] });
        }
        let Some(most) = self.max_lag else { return Ok(()) };
        let newest = self.sight().newest;
        let fresh = |newest: Newest| Duration::from_secs(now_s().saturating_sub(newest.timestamp)) <= most;
        if newest.is_some_and(fresh) { Ok(()) } else { self.newest().await.map(drop) }
    }

    /// Whether it may be asked; see [`Standing::Due`] for what that calls for.
    pub(super) fn standing(&self) -> Standing {
        self.standing_at(Instant::now())
    }

    fn standing_at(&self, now: Instant) -> Standing {
        let mut sight = self.sight();
        match sight.avoid_until {
            None => Standing::Good,
            Some(until) if until > now => Standing::Avoided,
            Some(_) => {
                sight.avoid_until = Some(now + pause(sight.strikes));
                Standing::Due
            }
        }
    }

    /// Whether nothing speaks against it.
    pub(super) fn is_good(&self) -> bool {
        self.sight().avoid_until.is_none()
    }

    /// Looks whether a node that failed is back.
    pub(super) async fn probe(&self) -> Result<(), ChainError> {
        match tokio::time::timeout(PROBE_TIMEOUT, self.newest()).await {
            Ok(answer) => answer.map(drop),
            Err(elapsed) => Err(ChainError::Unreachable { source: elapsed.into() }),
        }
    }

    /// It failed. Several requests that fail at the same time are one failure.
    pub(super) fn strike(&self, error: &ChainError) {
        self.strike_at(Instant::now(), error);
    }

    fn strike_at(&self, now: Instant, error: &ChainError) {
        let mut sight = self.sight();
        sight.problem = Some(told(error));
        if sight.avoid_until.is_none_or(|until| until <= now) {
            sight.avoid_until = Some(now + pause(sight.strikes));
            sight.strikes = sight.strikes.saturating_add(1).min(MAX_STRIKES);
        }
    }

    /// Most others say something else: it is avoided for as long as can be.
    pub(super) fn outvoted(&self, what: &str, by: &[String]) {
        let mut sight = self.sight();
        sight.problem = Some(format!("it is outvoted on {what} by {}", by.join(" and ")));
        sight.strikes = MAX_STRIKES;
        sight.avoid_until = Some(Instant::now() + AVOID_MOST);
    }

    /// It answered.
    pub(super) fn answered(&self) {
        let mut sight = self.sight();
        (sight.strikes, sight.avoid_until, sight.problem) = (0, None, None);
    }

    /// It was compared with others, who say the same.
    pub(super) fn confirmed(&self) {
        self.sight().doubt = None;
    }

    /// It was compared with these, who say something else, and nobody knows who is right.
    pub(super) fn disputed(&self, what: &str, with: &[String]) {
        self.sight().doubt = Some(Doubt::Disputed(format!("it disagrees on {what} with {}", with.join(" and "))));
    }

    /// Its word was taken although there was nobody to compare it with.
    pub(super) fn alone(&self) {
        self.sight().doubt = Some(Doubt::Alone);
    }

    pub(super) fn health(&self, preferred: bool) -> NodeHealth {
        let sight = self.sight();
        let good = sight.avoid_until.is_none();
        let (disputed, doubt) = match &sight.doubt {
            None => (false, None),
            Some(Doubt::Disputed(how)) => (true, Some(how.clone())),
            Some(Doubt::Alone) => (false, Some("it is taken at its word: no other node answers".to_owned())),
        };
        NodeHealth {
            name: self.name.clone(),
            preferred,
            ok: good && !disputed,
            lag_s: sight.newest.map(|newest| newest.lag_s),
            head: sight.newest.map(|newest| newest.number),
            problem: sight.problem.clone().or(doubt),
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// How long to avoid a node that failed so often before.
fn pause(strikes: u32) -> Duration {
    AVOID_FIRST.saturating_mul(2u32.saturating_pow(strikes)).min(AVOID_MOST)
}

/// An error with its causes, on one line of bounded length.
fn told(error: &ChainError) -> String {
    causes(error).chars().take(MAX_PROBLEM_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node::new("https://u:pa55word@node.example:8443/v2/abcdefgh12345678".parse().unwrap(), None, true).unwrap()
    }

    #[test]
    fn a_node_that_fails_is_avoided_for_longer_each_time_and_not_forever() {
        assert_eq!([pause(0), pause(1), pause(5)], [1, 2, 32].map(Duration::from_secs));
        assert_eq!([pause(6), pause(u32::MAX)], [AVOID_MOST; 2]);
        let failure = ChainError::Behind { by_s: 9 };
        let (node, now) = (node(), Instant::now());
        assert_eq!(node.standing_at(now), Standing::Good);
        for _ in 0..3 {
            node.strike_at(now, &failure);
        }
        assert_eq!(node.sight().strikes, 1, "what fails at once is one failure");
        let due = now + AVOID_FIRST;
        assert_eq!(node.standing_at(due - Duration::from_nanos(1)), Standing::Avoided);
        let both = [node.standing_at(due), node.standing_at(due)];
        assert_eq!(both, [Standing::Due, Standing::Avoided], "one looks, the others wait");
        node.answered();
        assert_eq!(node.standing_at(due), Standing::Good);
    }

    #[test]
    fn health_tells_operators_what_is_wrong_and_no_secret() {
        let node = node();
        let health = node.health(true);
        assert_eq!(health.name, "https://node.example:8443");
        assert_eq!((health.preferred, health.ok, health.problem.clone()), (true, true, None));
        node.strike(&ChainError::Unreachable { source: "connection refused".into() });
        node.alone();
        let health = node.health(false);
        assert_eq!((health.preferred, health.ok), (false, false));
        assert_eq!(health.problem.as_deref(), Some("the chain node cannot be reached: connection refused"));
        node.answered();
        let health = node.health(true);
        assert!(health.ok && health.problem.unwrap().contains("taken at its word"));
        node.disputed("the channels", &["http://b".to_owned()]);
        let health = node.health(true);
        assert_eq!(health.problem.as_deref(), Some("it disagrees on the channels with http://b"));
        assert!(!health.ok);
        node.confirmed();
        assert!(node.health(true).ok);
        node.outvoted("the channels", &["http://b".to_owned(), "http://c".to_owned()]);
        let text = serde_json::to_string(&node.health(true)).unwrap();
        assert!(text.contains("by http://b and http://c") && !text.contains("abcdefgh") && !text.contains("pa55word"));
    }
}
