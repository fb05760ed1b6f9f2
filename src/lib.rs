//! Peaje: a reverse proxy that sells any HTTP API per request to machines.

pub mod admin;
pub mod agent;
pub mod chain;
pub mod cli;
pub mod config;
pub mod devnet;
pub mod gate;
pub mod ledger;
pub mod protocol;
pub mod proxy;
pub mod redeem;
pub mod telemetry;
