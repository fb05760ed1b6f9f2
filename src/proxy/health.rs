//! Asks targets how they are.
//!
//! **Owns** the check: a `GET` of a path, now and then, for each target, by one core for all. **Promises** that one answer
//! changes nothing: a target turns unhealthy, and healthy again, after so many in a row. **Does not** decide who is asked;
//! [`balance`](super::balance) does, and takes an unhealthy target where there is none better.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::uri::PathAndQuery;

use super::balance::Target;
use super::upstream::Link;

/// How targets are asked how they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// For which path; behind the target's base path. An answer below status 400 is a good one.
    pub path: PathAndQuery,
    /// How often.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// After how many bad ones in a row a target is unhealthy.
    pub unhealthy_after: u32,
    /// After how many good ones in a row it is healthy again.
    pub healthy_after: u32,
}

impl HealthCheck {
    /// Asks one target for ever.
    pub(super) async fn watch(self, link: Link, target: Arc<Target>) {
        let mut streak = Streak::default();
        loop {
            let problem = match link.look(Method::GET, &self.path, self.timeout).await {
                Ok(status) if status.as_u16() < 400 => None,
                Ok(status) => Some(format!("it answers with {}", status.as_u16())),
                Err(problem) => Some(problem),
            };
            let enough = if problem.is_none() { self.healthy_after } else { self.unhealthy_after };
            if streak.add(problem.is_none()) >= enough && target.judge_health(problem.is_none()) {
                match problem {
                    None => tracing::info!(target = %target.url, "a target of the upstream is healthy again"),
                    Some(problem) => {
                        tracing::warn!(target = %target.url, problem, "a target of the upstream is unhealthy");
                    }
                }
            }
            tokio::time::sleep(self.interval).await;
        }
    }
}

/// How often in a row the last outcome came.
#[derive(Debug, Default)]
struct Streak {
    good: bool,
    length: u32,
}

impl Streak {
    fn add(&mut self, good: bool) -> u32 {
        self.length = if good == self.good { self.length.saturating_add(1) } else { 1 };
        self.good = good;
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streak_ends_with_the_first_that_is_otherwise() {
        let mut streak = Streak::default();
        let lengths = [true, true, false, true, false, false, false].map(|good| streak.add(good));
        assert_eq!(lengths, [1, 2, 1, 1, 1, 2, 3]);
    }
}
