//! What an answer turned out to be.

use std::sync::Arc;

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// Whole.
    Complete,
    /// The payer left before its end.
    PayerLeft,
    /// The upstream broke it off.
    UpstreamFailed,
    /// We stopped.
    Stopped,
}

/// What an answer turned out to be, as far as a tariff may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// The answer's HTTP status.
    pub status: u16,
    /// Bytes of the request's body that were passed on.
    pub request_bytes: u64,
    /// Bytes of the answer's body that were passed on, as they came: compressed ones count compressed.
    pub response_bytes: u64,
    /// From the moment the upstream was asked to the end, milliseconds.
    pub elapsed_ms: u64,
    /// Server-sent events.
    pub events: u64,
    /// What a model says it used, if it has said so.
    pub tokens: Option<Tokens>,
    /// Counts the upstream reported in headers or trailers, by lower-case name.
    pub reported: Vec<(Arc<str>, u64)>,
    /// How it ended.
    pub end: End,
}

impl Measured {
    /// Nothing was counted.
    pub fn nothing(status: u16, end: End) -> Self {
        Self {
            status,
            request_bytes: 0,
            response_bytes: 0,
            elapsed_ms: 0,
            events: 0,
            tokens: None,
            reported: Vec::new(),
            end,
        }
    }
}

/// What a model says it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tokens {
    /// Tokens it read, cached ones not included.
    pub input: u64,
    /// Tokens it read from its cache.
    pub cached_input: u64,
    /// Tokens it wrote to its cache.
    pub cache_write: u64,
    /// Tokens it wrote, those of its reasoning included.
    pub output: u64,
}
