//! `peaje ledger backup`: a copy of the books that was looked at.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use tempfile::TempPath;

use super::books::{BooksArgs, Ticker, counted, damaged, identity_json, money};
use super::time::iso;
use crate::cli::{Exit, Failure, Outcome, Output};
use crate::store::audit::{Audit, audit};
use crate::store::sqlite::Reader;

const MORE: &str = "\
The copy holds everything that was durable at one moment, in one file, and the
proxy goes on charging meanwhile. It is audited like peaje ledger verify does
it, and only a copy without a problem gets its name; a file that is there
already is never written over. Keep it where only you can read it: it holds
vouchers, which are worth money to whoever has the authorizer's key.

To restore one:
  1. Stop peaje.
  2. Move what is in store.directory away, all of it: books.sqlite3 and the
     files beside it whose names begin with books.sqlite3-.
  3. Put the copy there as books.sqlite3.
  4. Run peaje ledger verify --chain, then start peaje.

What came after the copy is lost, except for what the chain knows: claims made
since are taken from it, and booked as adjustments. A voucher newer than the
copy is not known any more, so what it covered beyond the last claim is lost;
clients find the way back by themselves, from the older sum. So copy often, and
redeem before you restore if you still can.

Examples:
  peaje ledger backup /var/backups/peaje-$(date +%F).sqlite3
      One copy a night, from cron.
  peaje ledger backup before-upgrade.sqlite3 && systemctl restart peaje
      Only go on when there is a good copy.
  peaje ledger backup --directory /srv/peaje/books copy.sqlite3
      Books that no config at hand names.

Environment:
  PEAJE_CONFIG   the config file, where --config is not given
  NO_COLOR       no colours";

/// The arguments of `peaje ledger backup`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", crate::cli::exit::HELP))]
pub struct BackupArgs {
    /// The file to make; it must not be there yet.
    #[arg(value_name = "FILE")]
    pub to: PathBuf,
    #[command(flatten)]
    /// Where the books are.
    pub books: BooksArgs,
    /// Print what was copied as JSON, as is done anyway when stdout is no terminal.
    #[arg(long)]
    pub json: bool,
}

/// Copies, audits, names.
pub(super) fn run(args: &BackupArgs, output: &Output) -> Outcome {
    let to = std::path::absolute(&args.to).map_err(|error| unusable(&args.to, error))?;
    let shown = args.to.display();
    if to.symlink_metadata().is_ok() {
        return Err(Failure::message(Exit::Usage, format!("{shown} is there already, and is not written over"))
            .hint("name a file that is not there yet"));
    }
    let folder = to.parent().ok_or_else(|| Failure::message(Exit::Usage, format!("{shown} is no file's name")))?;
    let books = args.books.open()?;
    let made_at = crate::clock::now_s();

    // In a directory of its own, which only its owner can look into, and on the disk it will stay on.
    let workshop =
        tempfile::Builder::new().prefix(".peaje-backup-").tempdir_in(folder).map_err(|error| unusable(&to, error))?;
    let copy = workshop.path().join("books.sqlite3");
    let mut ticker = Ticker::new(output);
    books
        .reader
        .backup(&copy, &mut |done, all| ticker.show(|| format!("copying: {done} of {all} pages")))
        .map_err(damaged)?;
    let reader = Reader::open_file(&copy).map_err(damaged)?;
    let audit = audit(&reader, &books.settlement(), &mut |step, done| {
        ticker.show(|| format!("auditing the copy: {} {done}", step.as_str()));
    });
    let audit = audit.map_err(damaged)?;
    drop((reader, ticker));
    if !audit.is_sound() {
        let message = format!("the copy has {}, as the books have; it is not kept", counted(audit.problems, "problem"));
        return Err(Failure::message(Exit::Books, message).hint(
            "peaje ledger verify lists them; to keep damaged books, stop peaje and copy the directory as it is",
        ));
    }
    let bytes = std::fs::metadata(&copy).map_err(|error| unusable(&to, error))?.len();
    let copy = TempPath::try_from_path(copy).map_err(|error| unusable(&to, error))?;
    copy.persist_noclobber(&to).map_err(|error| unusable(&to, error.error))?;
    sync(folder).map_err(|error| unusable(&to, error))?;

    if output.json_result(args.json) {
        output.json(&report(&to, bytes, made_at, &audit));
    } else {
        let channels = counted(audit.counts.channels, "channel");
        let sums = audit.sums.iter().map(|(token, sums)| {
            let money = |amount| money(amount, books.decimals(*token));
            let of = if audit.sums.len() > 1 { format!(" of {token}") } else { String::new() };
            format!("{}{of} charged, {} unclaimed, ", money(sums.charged), money(sums.unclaimed))
        });
        let sums: String = sums.collect();
        output.line(&format!("{shown}: {channels}, {sums}{bytes} bytes, verified"));
    }
    Ok(())
}

fn report(to: &Path, bytes: u64, made_at: u64, audit: &Audit) -> Value {
    let tokens = audit.sums.iter().map(|(token, sums)| {
        json!({"token": token, "charged": sums.charged, "claimed": sums.claimed, "unclaimed": sums.unclaimed})
    });
    json!({
        "file": to.display().to_string(),
        "bytes": bytes,
        "made_at": iso(made_at),
        "verified": true,
        "identity": identity_json(&audit.identity),
        "channels": audit.counts.channels,
        "sums": tokens.collect::<Vec<_>>(),
        "notes": audit.notes,
    })
}

/// Makes the name durable, where the system can.
fn sync(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) { std::fs::File::open(folder)?.sync_all() } else { Ok(()) }
}

fn unusable(path: &Path, error: std::io::Error) -> Failure {
    let error = anyhow::Error::new(error).context(format!("cannot write {}", path.display()));
    Failure::new(Exit::Books, error).hint("its directory must exist, be writable, and have room for the copy")
}
