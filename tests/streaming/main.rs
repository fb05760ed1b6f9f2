//! Answers that are charged at their end: what they cost, when their head and their pieces leave, and who pays for one that
//! does not come to its end. Real sockets on both sides; the books are asked what was charged.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    reason = "a test that cannot go on should say so at once"
)]

mod aborted;
mod agent;
mod dues;
#[path = "../support/least.rs"]
mod least;
mod llm;
mod memory;
#[path = "../support/npm.rs"]
mod npm;
#[path = "../support/payer.rs"]
mod payer;
mod stage;
mod stock;
#[allow(dead_code, reason = "a toolbox: not every test needs every tool")]
#[path = "../stock_client/client.rs"]
mod stock_client;
mod tunnel;
mod when;

/// As `stock_client` has it.
mod package {
    use std::path::PathBuf;

    /// Where the npm package is, installed.
    pub(crate) fn directory() -> PathBuf {
        crate::npm::ready("tests/stock_client")
    }
}
