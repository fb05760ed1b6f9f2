//! The conformance cases of x402 v2 `batch-settlement`, one test a case, over real sockets.
//!
//! Each case has a world of its own: an EVM with the contracts, an upstream that records what reaches it, the proxy as
//! `peaje serve` builds it, and a client that sends and sees raw headers. Nothing is shared, nothing is mocked. The
//! number in a test's name is the number of its case in the list of cases; a case with several sides has several tests.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::indexing_slicing)]

mod extras;
mod harness;
#[path = "../support/least.rs"]
mod least;
#[path = "../support/payer.rs"]
mod payer;

mod deposit;
mod failure;
mod identity;
mod live;
mod misc;
mod once;
mod parallel;
mod permit2;
mod redeem;
mod refund;
mod shared;
mod voucher;
mod wire;
