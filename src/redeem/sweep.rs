//! The sweep: reads every open channel from time to time, in case an event was missed.
//!
//! The follower's events can be lost in more ways than one can list: a reorganisation while nobody looked, a node that
//! leaves out logs. **Owns** the order in which channels are read. **Promises** that a sweep is spread out, so many
//! channels between two looks at the chain, and that drained and silent channels cost nothing.

use tokio::time::{Duration, Instant};

use super::Office;
use crate::chain::{Chain, ChainError};
use crate::protocol::ChannelId;

/// How many channels are read at once, and between two looks.
pub(super) const MAX_CHANNELS_AT_ONCE: usize = 1_000;

/// A sweep in progress, or the wait for the next one.
#[derive(Debug)]
pub(super) struct Sweep {
    interval: Duration,
    /// When the next one begins.
    due: Instant,
    /// What is still to be read in this one.
    left: Vec<ChannelId>,
}

impl Sweep {
    /// The first one begins at once: while the last process was down, more than the newest blocks may have been replaced.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, due: Instant::now(), left: Vec::new() }
    }

    /// Begins a new one at the next step, whatever the clock says.
    pub(super) fn hurry(&mut self) {
        self.left.clear();
        self.due = Instant::now();
    }

    /// Reads the next channels, if a sweep is in progress or due; those among them whose payers announced a withdrawal.
    pub(super) async fn step<C: Chain>(&mut self, office: &Office<C>) -> Result<Vec<ChannelId>, ChainError> {
        if self.left.is_empty() {
            if Instant::now() < self.due {
                return Ok(Vec::new());
            }
            self.left = office.accounts().open_channels();
            self.due = Instant::now() + self.interval;
        }
        let rest = self.left.len().saturating_sub(MAX_CHANNELS_AT_ONCE);
        let next = self.left.get(rest..).unwrap_or_default();
        let config_of = |id: &ChannelId| office.accounts().statement(id).map(|books| (*id, books.config));
        let channels: Vec<_> = next.iter().filter_map(config_of).collect();
        let leaving = if channels.is_empty() {
            Vec::new()
        } else {
            let views = office.refresh_since(&channels, 0).await?;
            let leaving = channels.iter().zip(&views).filter(|(_, view)| view.withdrawal.is_some());
            leaving.map(|((id, _), _)| *id).collect()
        };
        // Only now: what could not be read is tried again.
        self.left.truncate(rest);
        Ok(leaving)
    }
}
