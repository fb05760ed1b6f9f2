//! `peaje dev`: everything on this machine.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::{Exit, Failure, Outcome, Output, value};
use crate::protocol::Amount;

const MORE: &str = "\
Dev starts a development chain, a small API, the toll booth in front of it and
an agent that buys from it. Nothing leaves this machine, nothing costs anything,
and no setup is needed: keys, coins and contracts are made up on the spot. After
the agent's requests everything stays up for you to try, until Ctrl-C.

Examples:
  peaje dev
      Watch five paid requests; then, in another terminal:
  curl -i http://127.0.0.1:4020/
      see the 402 that an unpaid request gets, and
  peaje pay http://127.0.0.1:4020/ --key dev:agent --rpc http://127.0.0.1:8545
      pay it.
  peaje dev --requests 1000 --exit --json
      Pay a thousand requests, print a summary as JSON, and end.

Environment:
  RUST_LOG   a log filter
  NO_COLOR   no colours";

/// The arguments of `peaje dev`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", super::exit::HELP))]
pub struct DevArgs {
    /// How many requests the agent buys.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 5)]
    pub requests: u64,
    /// End after the agent's requests instead of staying up.
    #[arg(long)]
    pub exit: bool,
    /// Print what happens as JSON, one object a line.
    #[arg(long)]
    pub json: bool,
    /// Where the proxy listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4020")]
    pub listen: SocketAddr,
    /// Where the development chain listens; a loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8545")]
    pub rpc_listen: SocketAddr,
    /// Where the small API listens, which the proxy sells.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4021")]
    pub api_listen: SocketAddr,
    /// What a request costs, in dollars.
    #[arg(long, value_name = "DOLLARS", default_value = "0.002", value_parser = value::some_dollars)]
    pub price: Amount,
    /// How often the chain makes a block, such as 2s; by default as soon as there is a transaction.
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    pub block_time: Option<Duration>,
}

/// Starts everything, and stops it.
pub async fn run(_args: DevArgs, _output: &Output) -> Outcome {
    Err(Failure::message(Exit::Failed, "not wired yet"))
}
