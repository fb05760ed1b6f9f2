//! `[limits]`: what a crowd may take.

use super::values::{MINUTE, SECOND, counted, duration};
use crate::config::reader::{Problem, Section, quoted};
use crate::config::{Limits, parse_size};

/// What the tables of hot keys may take, for those who do not say.
const DEFAULT_HOT_KEYS_BYTES: usize = 384 << 20;

/// Requests at once: as many as may wait for their charges to be written.
const MAX_REQUESTS: u64 = 16_384;

pub(super) fn limits(mut section: Section<'_>) -> Option<Limits> {
    let connections = counted(&mut section, "max_connections", 1..=1_000_000).or(16_384);
    let requests = counted(&mut section, "max_requests", 1..=MAX_REQUESTS).or(4_096);
    let header_timeout = duration(&mut section, "header_timeout", SECOND..=5 * MINUTE).or(15 * SECOND);
    let body_timeout = duration(&mut section, "body_timeout", SECOND..=5 * MINUTE).or(30 * SECOND);
    let tunnels = counted(&mut section, "max_tunnels", 1..=1_000_000).or(1_024);
    let bad_signatures = counted(&mut section, "bad_signatures_per_minute", 1..=1_000_000).or(60);
    let memory = section.text("hot_keys_memory", |text| {
        parse_size(text).map_err(|error| Problem::new(format!("{} is no size: {error}", quoted(text))))
    });
    Some(Limits {
        max_connections: usize::try_from(connections?).ok()?,
        max_requests: usize::try_from(requests?).ok()?,
        header_timeout: header_timeout?,
        body_timeout: body_timeout?,
        max_tunnels: usize::try_from(tunnels?).ok()?,
        bad_signatures_per_minute: u32::try_from(bad_signatures?).ok()?,
        hot_keys_bytes: memory.or(DEFAULT_HOT_KEYS_BYTES)?,
    })
}
