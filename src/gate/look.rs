//! Requests whose price depends on their bodies.
//!
//! **Owns** the step before the gate: whoever holds the body asks [`Gate::wants_body`], reads as much as it is told to, and
//! puts what was seen ([`Looked`]) with the request. **Promises** that the price list that asked for the body is the one
//! that judges it, and that nothing is asked of requests whose price does not depend on it. **Does not** read bodies: the
//! gate does not know what they are made of.

use std::sync::Arc;

use http::Request;

use super::Gate;
use super::matching::{BodyKind, BodySeen, Doubt, is_encoded, says_json};
use super::policy::{Asked, Policy};

/// A body that has to be looked at before its request can be judged.
#[derive(Debug)]
pub(crate) struct BodyWanted {
    policy: Arc<Policy>,
    max_bytes: usize,
    says_json: bool,
}

/// What was seen of a body, on its request.
#[derive(Debug, Clone)]
pub(super) struct Looked {
    pub(super) policy: Arc<Policy>,
    pub(super) body: Result<BodySeen, Doubt>,
}

impl Gate {
    /// Whether a request's body has to be looked at. One that is compressed is not: it is refused.
    pub(crate) fn wants_body<B>(&self, request: &Request<B>) -> Option<BodyWanted> {
        let policy = self.policy.load();
        if !policy.needs_bodies() {
            return None;
        }
        policy.body_looks(&Asked::of(request))?;
        let (policy, max_bytes) = (Arc::clone(&policy), self.limits().max_matched_body);
        Some(BodyWanted { policy, max_bytes, says_json: says_json(request.headers()) })
    }
}

impl BodyWanted {
    /// The most that is read, bytes.
    pub(crate) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Whether a body has to be read on that begins so.
    pub(crate) fn wants_more_of(&self, kind: BodyKind) -> bool {
        self.says_json || kind != BodyKind::Other
    }

    /// Refuses a body unread whose text is hidden by a content coding; false where it has to be read.
    pub(crate) fn refuse_encoded<B>(&self, request: &mut Request<B>) -> bool {
        let is_encoded = is_encoded(request.headers());
        if is_encoded {
            let policy = Arc::clone(&self.policy);
            request.extensions_mut().insert(Looked { policy, body: Err(Doubt::Encoded) });
        }
        is_encoded
    }

    /// Puts what was read with its request: the whole body, or as much as was wanted; `None` where there is more than that.
    pub(crate) fn read<B>(self, request: &mut Request<B>, body: Option<&[u8]>) {
        let Self { policy, max_bytes, .. } = self;
        let body = match body {
            None => Err(Doubt::TooLarge(max_bytes)),
            Some(body) => match policy.body_looks(&Asked::of(request)) {
                Some(looks) => looks.in_the_body(request.headers(), body),
                None => Err(Doubt::Unread),
            },
        };
        request.extensions_mut().insert(Looked { policy, body });
    }
}
