//! Peaje: a reverse proxy that sells any HTTP API per request to machines.
//!
//! An unpaid request is answered with `402` and a price. A request that carries a signed voucher is checked against the
//! books of its payment channel, passed on, and charged. Now and then the latest voucher of each channel is turned into
//! money on an EVM layer 2. The protocol is x402 version 2, scheme `batch-settlement`.
//!
//! Most people want the binary (`peaje --help`). The library is for those who put the [`gate`] into an application of
//! their own, pay from a program of their own ([`agent`]), or test against a chain in their process ([`devnet`]).
//!
//! # The rooms
//!
//! Each room uses those below it and none above.
//!
//! | room | what lives there |
//! |---|---|
//! | [`cli`] | the command line, one file a subcommand |
//! | [`admin`], [`telemetry`] | what operators see: health, books, the log |
//! | [`redeem`] | deposits, refunds, claims and settlements: everything that waits for a chain |
//! | [`proxy`], [`config`], [`agent`] | the proxy around the gate, the operator's file, the paying side |
//! | [`facilitator`] | a chain that somebody else sends to for us |
//! | [`gate`], [`chain`] | whether a request is paid for, and the chain behind it |
//! | [`store`] | the books on disk, and the one writer that puts them there |
//! | [`ledger`] | what a channel has, and what may happen to it |
//! | [`pricing`] | tariffs, and what an answer costs by them |
//! | [`devnet`] | a local layer 2, for development and tests |
//! | [`protocol`] | what both sides sign and send |
//!
//! [`manual`] tells how it all plays together.

pub mod admin;
pub mod agent;
mod causes;
pub mod chain;
mod changed;
pub mod cli;
mod clock;
pub mod config;
pub mod devnet;
mod duration;
pub mod facilitator;
pub mod gate;
pub mod ledger;
mod listed;
mod local;
pub mod manual;
pub mod pricing;
pub mod protocol;
pub mod proxy;
pub mod redeem;
pub mod store;
pub mod telemetry;
mod tls;
