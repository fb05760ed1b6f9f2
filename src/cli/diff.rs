//! `peaje diff`: what a change of the config would change.
//!
//! **Promises** that what is the same behaves the same: the configs are compared as they are understood, not as texts. **Does
//! not** ask anybody, read keys, or change anything.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::ledger::{Side, aligned};
use super::{Exit, Failure, Outcome, Output};
use crate::config::Config;
use crate::config::diff::{Diff, RouteChange};

const MORE: &str = "\
Diff reads two config files and says what would change from the one to the
other: every route that is new, gone or costs something else, with both prices,
and every other key with both values. What a running proxy would not take from
the changed file is marked: it waits for a restart. Where it would refuse the
file as a whole, all of it does, and why is said first. Comments, order and
spelling make no difference. It asks nobody and changes nothing.

It ends with 0 if nothing would change and with 1 if something would, as diff
does; with 3 if one of the files is no config.

Examples:
  peaje diff /etc/peaje/peaje.toml new.toml
      Read it, then copy new.toml over the old one: the prices are in force.
  git show HEAD:peaje.toml > old.toml; peaje diff old.toml peaje.toml
  peaje diff old.toml new.toml --json | jq '.keys[] | select(.when == \"start\")'
      What would need a restart; stdout is JSON whenever it is no terminal.

Environment:
  NO_COLOR       no colours";

/// The arguments of `peaje diff`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", super::exit::HELP))]
pub struct DiffArgs {
    /// The config as it is.
    #[arg(value_name = "OLD")]
    pub old: PathBuf,
    /// The config as it would be.
    #[arg(value_name = "NEW")]
    pub new: PathBuf,
    /// Print JSON, as is done anyway when stdout is no terminal.
    #[arg(long)]
    pub json: bool,
}

/// Compares and prints.
pub fn run(args: &DiffArgs, output: &Output) -> Outcome {
    let as_json = output.json_result(args.json);
    let (old, new) = (super::load(&args.old, as_json, output)?, super::load(&args.new, as_json, output)?);
    // Relative paths mean something else in another directory, but not in what is about to be copied over.
    let new = if old.store.directory != new.store.directory { beside(new, &args.new, &args.old) } else { new };
    let diff = Diff::foreseen(&old, &new);
    if as_json {
        output.json(&told(&diff));
    } else {
        output.text(&as_text(&diff, output));
    }
    if diff.is_empty() { Ok(()) } else { Err(Failure::reported(Exit::Failed)) }
}

/// The config as it would be in the place of the other file.
fn beside(new: Config, at: &std::path::Path, instead: &std::path::Path) -> Config {
    let again = Config::read(at).and_then(|text| Config::load_text(instead, &text));
    again.unwrap_or(new)
}

fn told(diff: &Diff) -> Value {
    json!({"same": diff.is_empty(), "routes": diff.routes, "keys": diff.keys, "not_now": diff.not_now})
}

fn as_text(diff: &Diff, output: &Output) -> String {
    if diff.is_empty() {
        return "nothing would change\n".to_owned();
    }
    let paint = output.paint();
    let mut text = String::new();
    if let Some(not_now) = &diff.not_now {
        text.push_str(&format!("{}: {not_now}\n", paint.yellow("nothing of it is taken while peaje runs")));
    }
    if !diff.routes.is_empty() {
        text.push_str(&format!("{}\n", paint.bold("routes")));
        let rows: Vec<_> = diff.routes.iter().map(route_row).collect();
        for line in aligned(&[Side::Left, Side::Left, Side::Left], &rows) {
            text.push_str(&format!("  {line}\n"));
        }
    }
    for (when, heading) in [("live", "at once"), ("start", "after a restart")] {
        let changes = diff.keys.iter().filter(|change| change.when == when);
        let rows: Vec<_> = changes.map(|change| vec![change.key.clone(), arrow(&change.old, &change.new)]).collect();
        if !rows.is_empty() {
            text.push_str(&format!("{}\n", paint.bold(heading)));
        }
        for line in aligned(&[Side::Left, Side::Left], &rows) {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}

fn route_row(change: &RouteChange) -> Vec<String> {
    let RouteChange { route, requests, old, new, also } = change;
    let (sign, price) = match (old, new) {
        (None, Some(new)) => ("+", new.clone()),
        (Some(old), None) => ("-", old.clone()),
        (Some(old), Some(new)) if old != new => ("~", arrow(old, new)),
        (_, new) => ("~", new.clone().unwrap_or_default()),
    };
    let named = if requests == route { requests.clone() } else { format!("{requests} ({route})") };
    let also = if also.is_empty() { String::new() } else { format!("also {}", also.join(", ")) };
    vec![format!("{sign} {named}"), price, also]
}

fn arrow(old: &str, new: &str) -> String {
    if old == new { format!("{new} (changed where it is not shown)") } else { format!("{old} -> {new}") }
}
