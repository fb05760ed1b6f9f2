//! Requests whose price depends on their bodies.
//!
//! **Owns** the step before the gate: whoever holds the body asks [`Gate::wants_body`], reads as much as it is told to, and
//! puts what was seen ([`Looked`]) with the request. **Promises** that the price list that asked for the body is the one
//! that judges it, that a list whose quotes still hold can look at it too, and that nothing is asked of requests whose
//! price does not depend on it. **Does not** read bodies: the gate does not know what they are made of.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request};

use super::Gate;
use super::matching::{BodyKind, BodySeen, Doubt, Looks, is_encoded, says_json};
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
    /// The list in force.
    pub(super) policy: Arc<Policy>,
    /// What that sees of it, if it looks at any.
    pub(super) body: Option<Result<BodySeen, Doubt>>,
    /// As it was read, for lists that were in force before and look at something else.
    read: Result<Bytes, Doubt>,
}

impl Looked {
    fn new<B>(policy: Arc<Policy>, read: Result<Bytes, Doubt>, request: &Request<B>) -> Self {
        let mut looked = Self { body: None, read, policy };
        let seen = looked.policy.body_looks(&Asked::of(request)).map(|looks| looked.seen_by(looks, request.headers()));
        looked.body = seen;
        looked
    }

    /// What these see of it, where its request has these headers.
    pub(super) fn seen_by(&self, looks: &Looks, headers: &HeaderMap) -> Result<BodySeen, Doubt> {
        match &self.read {
            Ok(body) => looks.in_the_body(headers, body),
            Err(doubt) => Err(doubt.clone()),
        }
    }
}

impl Gate {
    /// Whether a request's body has to be looked at. One that is compressed is not: it is refused.
    pub(crate) fn wants_body<B>(&self, request: &Request<B>) -> Option<BodyWanted> {
        let policy = self.policy.load();
        let is_wanted = policy.needs_bodies() && policy.body_looks(&Asked::of(request)).is_some();
        // Who was quoted a price that depends on it pays that one, although it does not any more.
        if !is_wanted && !self.former.wants_body(request) {
            return None;
        }
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
            let looked = Looked::new(Arc::clone(&self.policy), Err(Doubt::Encoded), request);
            request.extensions_mut().insert(looked);
        }
        is_encoded
    }

    /// Puts what was read with its request: the whole body, or as much as was wanted; `None` where there is more than that.
    pub(crate) fn read<B>(self, request: &mut Request<B>, body: Option<Bytes>) {
        let Self { policy, max_bytes, .. } = self;
        let looked = Looked::new(policy, body.ok_or(Doubt::TooLarge(max_bytes)), request);
        request.extensions_mut().insert(looked);
    }
}
