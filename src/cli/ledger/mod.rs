//! `peaje ledger`: the books on disk, read by people and programs.
//!
//! **Owns** what is shown, audited, exported and copied of them, and in which form. **Promises** to change nothing in
//! the books, to work beside a running proxy, and to print no signature: a voucher's is worth what it covers. **Does
//! not** decide what is true; the store's audit and the chain do.

mod backup;
mod books;
mod channel;
mod export;
mod lines;
mod show;
mod table;
mod time;
mod verify;

use clap::{Args, Subcommand};

use super::{Outcome, Output};

pub use backup::BackupArgs;
pub use books::BooksArgs;
pub use channel::ChannelName;
pub use export::{ExportArgs, Format, What};
pub use show::{ShowArgs, Sort};
pub(super) use table::{Side, aligned};
pub use time::Moment;
pub use verify::VerifyArgs;

const MORE: &str = "\
The books are the file books.sqlite3 in store.directory: every channel, what it
was charged and the voucher that covers it. All of this reads them, beside a
running proxy too; nothing here writes to them.

  peaje ledger show        what is there, one line a channel, and the totals
  peaje ledger verify      whether it is true: every sum, every signature, the chain
  peaje ledger export      charges and the rest as CSV or JSON lines, for accountants
  peaje ledger backup      a copy that can be restored, made while peaje runs

The same sums run through all of it: what export lists adds up to what show
says was charged, and what is claimed of that is what the chain says.

Examples:
  peaje ledger show --unclaimed
      The channels that owe, the largest debt first.
  peaje ledger verify --chain
      Audit everything, and compare it with the contract.
  peaje ledger export --since 2026-11-01 --until 2026-12-01 > november.csv
      November, one line a minute, channel and route.
  peaje ledger backup /var/backups/peaje-$(date +%F).sqlite3
      A copy for the night.

Environment:
  PEAJE_CONFIG   the config file, where --config is not given
  NO_COLOR       no colours";

/// The arguments of `peaje ledger`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", super::exit::HELP))]
pub struct LedgerArgs {
    /// What to do with the books.
    #[command(subcommand)]
    pub command: LedgerCommand,
}

/// What can be done with the books.
#[derive(Debug, Clone, Subcommand)]
pub enum LedgerCommand {
    /// Shows the channels, or one of them with all that is known.
    ///
    /// One line a channel with what it was charged, what is claimed and what is owed, and the totals of all; or, for one
    /// channel, everything the books know of it but its signature.
    Show(ShowArgs),
    /// Audits the books.
    ///
    /// Reads all of it and says whether it is true: that the file is whole, that each channel keeps the invariants,
    /// that each voucher was signed by the right key, that all sums add up, and, when asked, that the chain agrees.
    Verify(VerifyArgs),
    /// Writes the books as CSV or JSON lines.
    ///
    /// For accountants and programs: charges by minute, channel and route, or the adjustments, transactions and
    /// movements of money.
    Export(ExportArgs),
    /// Copies the books while they are in use.
    ///
    /// Makes one file with everything that was durable at one moment, audits it, and puts it where it was asked for;
    /// the proxy goes on meanwhile.
    Backup(BackupArgs),
}

/// Does it.
pub async fn run(args: LedgerArgs, output: &Output) -> Outcome {
    match args.command {
        LedgerCommand::Show(args) => show::run(&args, output),
        LedgerCommand::Verify(args) => verify::run(&args, output).await,
        LedgerCommand::Export(args) => export::run(&args, output),
        LedgerCommand::Backup(args) => backup::run(&args, output),
    }
}

impl LedgerArgs {
    /// Whether failures should be told in JSON.
    pub fn json(&self) -> bool {
        match &self.command {
            LedgerCommand::Show(args) => args.json,
            LedgerCommand::Verify(args) => args.json,
            LedgerCommand::Export(_) => false,
            LedgerCommand::Backup(args) => args.json,
        }
    }
}
