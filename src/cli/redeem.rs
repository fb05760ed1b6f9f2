//! `peaje redeem`: claim and settle now.

use clap::Args;

use super::{ConfigArgs, Exit, Failure, Outcome, Output};

const MORE: &str = "\
A running proxy redeems by itself, every redeem.interval. This asks it to do so
now, over its admin listener, and waits for the outcome; only the running proxy
holds the vouchers, so it must be up, and on this machine.

Examples:
  peaje redeem
      Ask the proxy whose config is peaje.toml.
  peaje redeem --admin http://127.0.0.1:9402 --json
      Ask the proxy behind an address; print what was claimed as JSON.

Environment:
  PEAJE_CONFIG   the config file, where --config is not given
  NO_COLOR       no colours";

/// The arguments of `peaje redeem`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", super::exit::HELP))]
pub struct RedeemArgs {
    #[command(flatten)]
    /// Where the config is, which names the admin listener.
    pub config: ConfigArgs,
    /// The admin listener's address, instead of the one in the config.
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// Print the outcome as JSON, as is done anyway when stdout is no terminal.
    #[arg(long)]
    pub json: bool,
}

/// Asks, waits, prints.
pub async fn run(_args: RedeemArgs, _output: &Output) -> Outcome {
    Err(Failure::message(Exit::Failed, "not wired yet"))
}
