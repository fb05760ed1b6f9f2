//! `[limits]`: what a crowd may take.

use std::ops::RangeInclusive;

use super::people::rates;
use super::values::{HOUR, MINUTE, SECOND, counted, duration};
use crate::config::reader::{Given, Problem, Section, quoted};
use crate::config::{Limits, parse_size};

/// What the tables of hot keys may take, for those who do not say.
const DEFAULT_HOT_KEYS_BYTES: usize = 384 << 20;

/// How much of a body is looked at, for those who do not say.
const DEFAULT_MATCHED_BODY: usize = 1 << 20;

/// Larger bodies are no requests to a model, and all that are looked at at once share one bound.
const MAX_MATCHED_BODY: usize = 16 << 20;

/// Requests at once: as many as may wait for their charges to be written.
const MAX_REQUESTS: u64 = 16_384;

/// A payment alone may take a quarter of the usual 64 KiB.
const HEADER_BYTES: RangeInclusive<usize> = 16 << 10..=1 << 20;

/// Fewer than browsers send would help nobody.
const HEADERS: RangeInclusive<u64> = 32..=1_000;

pub(super) fn limits(mut section: Section<'_>) -> Option<Limits> {
    let connections = counted(&mut section, "max_connections", 1..=1_000_000).or(16_384);
    let requests = counted(&mut section, "max_requests", 1..=MAX_REQUESTS).or(4_096);
    let header_timeout = duration(&mut section, "header_timeout", SECOND..=5 * MINUTE).or(15 * SECOND);
    let body_timeout = duration(&mut section, "body_timeout", SECOND..=5 * MINUTE).or(30 * SECOND);
    let idle_timeout = duration(&mut section, "idle_timeout", SECOND..=HOUR).or(3 * MINUTE);
    let header_bytes = size(&mut section, "max_header_bytes", HEADER_BYTES).or(64 << 10);
    let headers = counted(&mut section, "max_headers", HEADERS).or(100);
    let body = size(&mut section, "max_body", 0..=usize::MAX).optional();
    let tunnels = counted(&mut section, "max_tunnels", 1..=1_000_000).or(1_024);
    let bad_signatures = counted(&mut section, "bad_signatures_per_minute", 1..=1_000_000).or(60);
    let memory = size(&mut section, "hot_keys_memory", 0..=usize::MAX);
    let matched_body = size(&mut section, "max_matched_body", 0..=MAX_MATCHED_BODY);
    let rates = rates(&mut section);
    Some(Limits {
        max_connections: usize::try_from(connections?).ok()?,
        max_requests: usize::try_from(requests?).ok()?,
        header_timeout: header_timeout?,
        body_timeout: body_timeout?,
        idle_timeout: idle_timeout?,
        max_header_bytes: header_bytes?,
        max_headers: usize::try_from(headers?).ok()?,
        max_body: body?.and_then(|bytes| u64::try_from(bytes).ok()),
        max_tunnels: usize::try_from(tunnels?).ok()?,
        bad_signatures_per_minute: u32::try_from(bad_signatures?).ok()?,
        hot_keys_bytes: memory.or(DEFAULT_HOT_KEYS_BYTES)?,
        max_matched_body: matched_body.or(DEFAULT_MATCHED_BODY)?,
        per_payer: rates?.unwrap_or_default().0,
        unpaid: rates?.unwrap_or_default().1,
    })
}

/// Bytes, within limits.
fn size(section: &mut Section<'_>, key: &'static str, range: RangeInclusive<usize>) -> Given<usize> {
    section.text(key, |text| match parse_size(text) {
        Ok(bytes) if range.contains(&bytes) => Ok(bytes),
        Ok(_) => {
            let (least, most) = (range.start() >> 10, range.end() >> 10);
            Err(Problem::new(format!("{} is not between {least} KiB and {most} KiB", quoted(text))))
        }
        Err(error) => Err(Problem::new(format!("{} is no size: {error}", quoted(text)))),
    })
}
