//! The command line: one file a subcommand.
//!
//! **Owns** the arguments, their help and the exit codes. **Promises** that results go to stdout and everything else to
//! stderr, that each `--help` is enough to start with, and that no secret is taken as an argument: keys are named, not
//! written. **Does not** hold logic of its own beyond putting the rooms together.

pub mod check;
mod connect;
pub mod dev;
pub mod diff;
pub mod exit;
pub mod explain;
pub mod ledger;
pub mod live;
mod orders;
pub mod output;
pub mod pay;
pub mod redeem;
pub mod replay;
pub mod serve;
pub mod site;
mod succession;
mod supervisor;
mod upstreams;
pub mod value;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

pub use self::exit::{Exit, Failure};
pub use self::output::Output;
use crate::config::{Config, ConfigErrors};

/// What a command leaves behind.
pub type Outcome = Result<(), Failure>;

/// The toll booth of the machine economy: sells any HTTP API per request.
///
/// Peaje stands in front of an HTTP API and asks for payment: an unpaid request is answered with 402 and a price, a
/// request with a signed voucher is passed on. Vouchers cost nothing to sign and nothing to check; now and then the
/// latest of each channel is redeemed on an EVM layer 2. It speaks x402 v2, scheme batch-settlement.
#[derive(Debug, Parser)]
#[command(name = "peaje", version, max_term_width = 100, after_long_help = TOUR)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const TOUR: &str = "\
Start here:
  peaje dev                  see it work: chain, API, toll booth and agent, all on this machine
  peaje check                validate peaje.toml and the chain behind it
  peaje serve                sell your API
  peaje pay URL              buy from one

Before a price is changed:
  peaje explain \"GET /x\"     what a request costs, and why
  peaje diff OLD NEW         what another config would change
  peaje replay LOG           yesterday's requests at other prices

And once it earns:
  peaje redeem               turn vouchers into money now; --dry-run says what that would do
  peaje redeem --status      how redemption is doing by itself
  peaje ledger show          who was charged what, and what of it is claimed
  peaje ledger verify        whether the books are true
  peaje ledger export        the books as CSV or JSON lines
  peaje ledger backup FILE   a copy that can be restored, made while peaje runs

Config: copy config.example.toml; it explains every key. Each command has its own --help.";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sells an API: runs the proxy.
    ///
    /// Stands in front of the API in upstream.url, answers unpaid requests with 402 and a price, passes paid ones on,
    /// and redeems the vouchers in batches.
    Serve(serve::ServeArgs),
    /// Validates the config and the chain behind it.
    ///
    /// Finds everything that would go wrong with this config, at once, and says how to fix it.
    Check(check::CheckArgs),
    /// Says what another config would change.
    ///
    /// Compares two config files as peaje understands them: routes and their prices, and every other key.
    Diff(diff::DiffArgs),
    /// Says what a request would cost, and why.
    ///
    /// Asks the price list of a config about one request: which route decides, the quote, the charges.
    Explain(explain::ExplainArgs),
    /// Judges recorded requests by another price list.
    ///
    /// Reads access logs and says, route by route, what other prices would have brought in and refused.
    Replay(replay::ReplayArgs),
    /// Turns vouchers into money now.
    ///
    /// Asks the running proxy to claim the latest voucher of each channel on chain and to settle what is owed to
    /// receiver.pay_to; or, changing nothing, what that would do and cost, or how redemption is doing.
    Redeem(redeem::RedeemArgs),
    /// Shows, audits, exports and copies the books.
    ///
    /// Reads the books on disk, beside a running proxy too, and changes nothing in them.
    Ledger(Box<ledger::LedgerArgs>),
    /// Calls a paid API.
    ///
    /// Like curl for APIs that answer 402: pays by payment channel, within the limits you set, and prints the answer.
    Pay(Box<pay::PayArgs>),
    /// Shows the whole thing at work on this machine.
    ///
    /// Starts a chain, an API, the proxy and an agent that pays; for trying it out and for developing against it.
    Dev(dev::DevArgs),
}

impl Command {
    /// Does it.
    pub async fn run(self, output: &Output) -> Outcome {
        match self {
            Self::Serve(args) => serve::run(args, output).await,
            Self::Check(args) => check::run(args, output).await,
            Self::Diff(args) => diff::run(&args, output),
            Self::Explain(args) => explain::run(&args, output),
            Self::Replay(args) => replay::run(&args, output),
            Self::Redeem(args) => redeem::run(args, output).await,
            Self::Ledger(args) => ledger::run(*args, output).await,
            Self::Pay(args) => pay::run(*args, output).await,
            Self::Dev(args) => dev::run(args, output).await,
        }
    }

    /// Whether failures should be told in JSON.
    pub fn json(&self) -> bool {
        match self {
            Self::Serve(_) => false,
            Self::Check(args) => args.json,
            Self::Diff(args) => args.json,
            Self::Explain(args) => args.json,
            Self::Replay(args) => args.json,
            Self::Redeem(args) => args.json,
            Self::Ledger(args) => args.json(),
            Self::Pay(args) => args.json,
            Self::Dev(args) => args.json,
        }
    }
}

/// Where the config is.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// The config file.
    #[arg(short, long, value_name = "FILE", env = "PEAJE_CONFIG", default_value = "peaje.toml")]
    pub config: PathBuf,
}

impl ConfigArgs {
    /// Reads and checks it.
    pub fn load(&self) -> Result<Config, Failure> {
        Ok(Config::load(&self.config)?)
    }
}

/// Reads and checks a config. What is wrong with it goes where the result would, if that is for programs.
fn load(path: &Path, as_json: bool, output: &Output) -> Result<Config, Failure> {
    Config::load(path).map_err(|errors| {
        if !as_json {
            return errors.into();
        }
        output.json(&errors_as_json(&path.display().to_string(), &errors));
        Failure::reported(Exit::Config)
    })
}

/// Errors of the file in the form of findings, with their place.
fn errors_as_json(file: &str, errors: &ConfigErrors) -> Value {
    let each = errors.errors().iter().map(|error| {
        json!({
            "severity": "error",
            "what": if error.key.is_empty() { "config" } else { &error.key },
            "detail": error.problem,
            "fix": error.fix,
            "line": error.place.as_ref().map(|place| place.line),
            "column": error.place.as_ref().map(|place| place.column),
        })
    });
    json!({"config": file, "ok": false, "findings": each.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_argument_is_explained() {
        fn explained(command: &clap::Command) {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(explained);
        }
        explained(&Cli::command());
    }
}
