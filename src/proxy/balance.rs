//! Which of an upstream's targets is asked, and what is known of each.
//!
//! **Owns** the load, the breaker and the health of every target, one of each for all cores. **Promises** that the target
//! with the fewest requests is asked, where several have as few one after the other; that a target whose breaker is open
//! gets one request at a time to prove itself, and no other; and that a change is logged once. **Does not** connect to
//! anything, nor ask targets how they are; [`health`](super::health) does.
//!
//! A target that only its health check holds unwell is asked all the same where there is none better: a check that is
//! wrong must not close a shop, and a request that fails costs its payer nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::{Deserialize, Serialize};

/// How many targets an upstream may have.
pub const MAX_TARGETS: usize = 64;

/// How many targets are tried for one request. Only those that could not be connected to are tried in vain.
pub(super) const MAX_TRIES: usize = 3;

/// When a target is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// After so many failures in a row: no connection, no answer in time, or an answer that says the same of somebody
    /// behind it (502, 503, 504). A 500 is an answer to one request, which its client could provoke.
    pub failures: u32,
    /// For so long; then one request may try it.
    pub open_for: Duration,
}

/// How a target stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is asked.
    Up,
    /// Its health check fails, so it is asked only if there is none better.
    Unhealthy,
    /// It failed too often and is left alone for now.
    Out,
}

/// One server of an upstream, as all cores know it.
#[derive(Debug)]
pub(super) struct Target {
    /// Where it is, for logs and operators: scheme, host, port and base path.
    pub(super) url: String,
    load: AtomicUsize,
    breaker: Option<Switch>,
    unhealthy: AtomicBool,
}

#[derive(Debug)]
struct Switch {
    settings: Breaker,
    begun: Instant,
    failures: AtomicU32,
    /// Until when it is open, milliseconds from the beginning; zero while it is closed.
    open_until_ms: AtomicU64,
}

/// One request more at a target, until it is dropped.
#[derive(Debug)]
pub(super) struct Load(Arc<Target>);

impl Load {
    pub(super) fn at(target: &Arc<Target>) -> Self {
        target.load.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(target))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Target {
    pub(super) fn new(url: String, breaker: Option<Breaker>) -> Self {
        let switch = |settings| Switch {
            settings,
            begun: Instant::now(),
            failures: AtomicU32::new(0),
            open_until_ms: AtomicU64::new(0),
        };
        Self { url, load: AtomicUsize::new(0), breaker: breaker.map(switch), unhealthy: AtomicBool::new(false) }
    }

    /// How many requests it has, bodies of answers included. Not counted where it is the only target.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    pub(super) fn standing(&self) -> Standing {
        if self.breaker.as_ref().is_some_and(|switch| switch.left().is_some()) {
            Standing::Out
        } else if self.is_unhealthy() {
            Standing::Unhealthy
        } else {
            Standing::Up
        }
    }

    fn is_unhealthy(&self) -> bool {
        self.unhealthy.load(Ordering::Relaxed)
    }

    /// What its health check found out. True if that is news.
    pub(super) fn judge_health(&self, healthy: bool) -> bool {
        self.unhealthy.swap(!healthy, Ordering::Relaxed) == healthy
    }

    /// It answered with this.
    pub(super) fn answered(&self, status: StatusCode) {
        let Some(switch) = &self.breaker else { return };
        let unwell = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
        if unwell.contains(&status) {
            self.failed();
        } else {
            // Mostly there is nothing to forget, and then nothing is written that other cores read.
            if switch.failures.load(Ordering::Relaxed) != 0 {
                switch.failures.store(0, Ordering::Relaxed);
            }
            if switch.is_open() && switch.open_until_ms.swap(0, Ordering::Relaxed) != 0 {
                tracing::info!(target = %self.url, "a target of the upstream answers again");
            }
        }
    }

    /// It could not be reached, or did not answer in time.
    pub(super) fn failed(&self) {
        let Some(switch) = &self.breaker else { return };
        let failures = switch.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let was_open = switch.is_open();
        if was_open || failures >= switch.settings.failures {
            let before = switch.open_until_ms.swap(switch.next_ms(), Ordering::Relaxed);
            if before == 0 {
                let open_for_s = switch.settings.open_for.as_secs_f64();
                tracing::warn!(target = %self.url, failures, open_for_s, "a target of the upstream is left alone");
            }
        }
    }
}

impl Switch {
    fn is_open(&self) -> bool {
        self.open_until_ms.load(Ordering::Relaxed) != 0
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn next_ms(&self) -> u64 {
        let open_for = u64::try_from(self.settings.open_for.as_millis()).unwrap_or(u64::MAX);
        self.now_ms().saturating_add(open_for).max(1)
    }

    /// For how long it is left alone yet: nothing if it is closed, zero if it may be tried.
    fn left(&self) -> Option<Duration> {
        match self.open_until_ms.load(Ordering::Relaxed) {
            0 => None,
            until => Some(Duration::from_millis(until.saturating_sub(self.now_ms()))),
        }
    }

    /// Whether this request is the one that may try it. Nobody else may for as long again, so a request that is broken off
    /// keeps it from being tried no longer than a failure would.
    fn probe(&self) -> bool {
        let until = self.open_until_ms.load(Ordering::Relaxed);
        until != 0
            && until <= self.now_ms()
            && self.open_until_ms.compare_exchange(until, self.next_ms(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// The targets that a request was sent to in vain.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tried {
    bits: u64,
    count: usize,
}

impl Tried {
    pub(super) fn add(&mut self, index: usize) {
        self.bits |= Self::bit(index);
        self.count = self.count.saturating_add(1);
    }

    pub(super) fn is_empty(self) -> bool {
        self.count == 0
    }

    fn has(self, index: usize) -> bool {
        self.bits & Self::bit(index) != 0
    }

    fn bit(index: usize) -> u64 {
        u32::try_from(index).ok().and_then(|index| 1_u64.checked_shl(index)).unwrap_or(0)
    }
}

/// Which target is asked next; `turn` counts the requests of a core, so that none is preferred. None if there is none
/// left that may be asked.
pub(super) fn pick(targets: &[Arc<Target>], turn: usize, tried: Tried) -> Option<usize> {
    if tried.count >= MAX_TRIES.min(targets.len()) {
        return None;
    }
    let first = turn.checked_rem(targets.len())?;
    let in_turn = || {
        let (before, after) = targets.split_at(first);
        let after = after.iter().enumerate().map(move |(index, target)| (index.saturating_add(first), target));
        after.chain(before.iter().enumerate()).filter(|(index, _)| !tried.has(*index))
    };
    for healthy in [true, false] {
        let eligible = || in_turn().filter(|(_, target)| target.is_unhealthy() != healthy);
        let probed = eligible().find(|(_, target)| target.breaker.as_ref().is_some_and(Switch::probe));
        let closed = || eligible().filter(|(_, target)| !target.breaker.as_ref().is_some_and(Switch::is_open));
        // Of several with as few requests, the first in turn.
        let chosen = probed.or_else(|| closed().min_by_key(|(_, target)| target.load()));
        if let Some((index, _)) = chosen {
            return Some(index);
        }
    }
    None
}

/// When one of these targets may be asked again, from now.
pub(super) fn soonest(targets: &[Arc<Target>]) -> Duration {
    let left = targets.iter().filter_map(|target| target.breaker.as_ref().and_then(Switch::left));
    left.min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets<const N: usize>(breaker: Option<Breaker>) -> [Arc<Target>; N] {
        std::array::from_fn(|n| Arc::new(Target::new(format!("http://target{n}"), breaker)))
    }

    /// A target that is left alone has been for long enough.
    fn let_time_pass(target: &Target) {
        let switch = target.breaker.as_ref().unwrap();
        switch.open_until_ms.store(1, Ordering::Relaxed);
        while switch.now_ms() < 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn none_tried() -> Tried {
        Tried::default()
    }

    #[test]
    fn the_target_with_the_fewest_requests_is_asked_and_equals_take_turns() {
        let targets = targets::<3>(None);
        let picks: Vec<_> = (0..6).map(|turn| pick(&targets, turn, none_tried()).unwrap()).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
        let _busy = [Load::at(&targets[0]), Load::at(&targets[0]), Load::at(&targets[2])];
        for turn in 0..6 {
            assert_eq!(pick(&targets, turn, none_tried()), Some(1));
        }
        let more = [Load::at(&targets[1]), Load::at(&targets[1])];
        assert_eq!(pick(&targets, 0, none_tried()), Some(2));
        drop(more);
        assert_eq!((targets[1].load(), targets[2].load()), (0, 1));
    }

    #[test]
    fn a_request_tries_no_target_twice_and_few_in_all() {
        let some = targets::<2>(None);
        let mut tried = none_tried();
        for expected in [Some(1), Some(0), None] {
            let picked = pick(&some, 1, tried);
            assert_eq!(picked, expected);
            picked.into_iter().for_each(|index| tried.add(index));
        }
        let many: Vec<_> = (0..MAX_TARGETS).map(|n| Arc::new(Target::new(n.to_string(), None))).collect();
        let mut tried = none_tried();
        for turn in [63, 63, 63] {
            tried.add(pick(&many, turn, tried).unwrap());
        }
        assert_eq!(pick(&many, 63, tried), None);
        assert!(pick(&[], 0, none_tried()).is_none());
    }

    #[test]
    fn a_breaker_opens_at_its_number_lets_one_try_and_closes_at_an_answer() {
        let open_for = Duration::from_secs(3_600);
        let [target] = &targets::<1>(Some(Breaker { failures: 3, open_for }));
        let one = std::slice::from_ref(target);
        let ask = || pick(one, 0, none_tried());
        for _ in 0..2 {
            target.failed();
        }
        // Not in a row.
        target.answered(StatusCode::OK);
        target.failed();
        target.answered(StatusCode::INTERNAL_SERVER_ERROR);
        target.failed();
        target.failed();
        assert_eq!((ask(), target.standing()), (Some(0), Standing::Up));
        target.answered(StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!((ask(), target.standing()), (None, Standing::Out));
        assert!((open_for / 2..=open_for).contains(&soonest(one)));
        let_time_pass(target);
        assert_eq!(soonest(one), Duration::ZERO);
        assert_eq!(ask(), Some(0), "one may try");
        assert_eq!(ask(), None, "and no other");
        target.failed();
        assert_eq!(ask(), None, "it failed again, and that is enough");
        let_time_pass(target);
        assert_eq!(ask(), Some(0));
        target.answered(StatusCode::NOT_FOUND);
        assert_eq!((ask(), ask(), target.standing()), (Some(0), Some(0), Standing::Up));
    }

    #[test]
    fn an_unhealthy_target_is_asked_only_if_there_is_none_better_and_an_open_breaker_is_worse() {
        let open_for = Duration::from_secs(3_600);
        let targets = targets::<2>(Some(Breaker { failures: 1, open_for }));
        assert!(targets[0].judge_health(false) && !targets[0].judge_health(false), "news is told once");
        for turn in 0..4 {
            assert_eq!(pick(&targets, turn, none_tried()), Some(1));
        }
        assert!(targets[1].judge_health(false));
        assert_eq!(pick(&targets, 1, none_tried()), Some(1), "none is better");
        targets[1].failed();
        for turn in 0..4 {
            assert_eq!(pick(&targets, turn, none_tried()), Some(0));
        }
        targets[0].failed();
        assert_eq!(pick(&targets, 0, none_tried()), None);
        assert!(targets[0].judge_health(true));
        assert_eq!(pick(&targets, 0, none_tried()), None, "health closes no breaker");
    }
}
