//! The way a route's requests take behind the gate, where it is not the usual one.
//!
//! **Owns** the words for it, no more: what they mean is for the service behind the gate, which finds the route's
//! `Arc<Way>` among the extensions of a request. A route without one costs its requests nothing.

use std::sync::Arc;

use super::policy::Verdict;

/// Where a route's requests go, and what may become of their connections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Way {
    /// The name of the upstream that serves them; none means the usual one.
    pub upstream: Option<Arc<str>>,
    /// The protocols their connections may be upgraded to, in lower case.
    pub upgrades: Vec<String>,
}

impl Way {
    /// The way, if it is another than the usual one.
    pub fn unusual(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }

    /// Whether a connection may be upgraded to what a client calls `protocol`.
    pub fn upgrades_to(&self, protocol: &str) -> bool {
        self.upgrades.iter().any(|allowed| allowed.eq_ignore_ascii_case(protocol))
    }

    /// The way of a request that was judged so.
    pub(super) fn of<'p>(verdict: &Verdict<'p>) -> Option<&'p Arc<Self>> {
        verdict.route()?.way.as_ref()
    }
}
