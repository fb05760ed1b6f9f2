//! `peaje serve`: the proxy.

use clap::Args;

use super::connect::open_site;
use super::orders::Orders;
use super::{ConfigArgs, Exit, Failure, Outcome, Output, supervisor};
use crate::config::{Config, Seen};
use crate::protocol::Amount;

const MORE: &str = "\
Serve reads the config, opens the books, connects to the chain, and listens. It
runs until it is told to stop (SIGTERM, or Ctrl-C): then it accepts no more,
lets requests in flight finish within server.shutdown_timeout, redeems what is
left if redeem.on_shutdown says so, and ends. A second signal ends it at once.

The config file is watched: a change of prices, and of whatever else needs no
restart, is in force at once, as it is on SIGHUP. A file with errors changes
nothing, and the log says what is wrong with it. An agent that was quoted the old
price pays it for another server.quote_grace. `peaje diff` says beforehand what a
change would do.

Every charge is on disk before its answer leaves, so a crash, a kill or a power
cut loses nothing: start it again and it goes on. If the books cannot be written
any more (a full disk, say), it charges nothing, takes no paid work, and ends
with code 7.

A new version, or a config that needs a restart, can follow without a request
that fails: with --take-over, serve listens beside the process that runs, tells
it to stop, and goes on where it ended; connections wait meanwhile, and the new
process redeems. Start it as the same user. Where a supervisor holds the socket
(LISTEN_FDS, as systemd's socket units do), a plain restart does the same.

Examples:
  peaje check && peaje serve
      Validate first: check finds what serve would only find in production.
  peaje serve --config /etc/peaje/peaje.toml
  RUST_LOG=peaje::gate=debug,info peaje serve
      Say more about payments.

Environment:
  PEAJE_CONFIG   the config file, where --config is not given
  RUST_LOG       a log filter; wins over log.level
  NO_COLOR       no colours
  and whatever the config names with \"env:\", as a rule
  PEAJE_RPC, PEAJE_AUTHORIZER_KEY and PEAJE_GAS_KEY";

/// The arguments of `peaje serve`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", super::exit::HELP))]
pub struct ServeArgs {
    #[command(flatten)]
    /// Where the config is.
    pub config: ConfigArgs,

    /// Follow the process that has the port and the books: listen beside it, tell it to stop, go on.
    #[arg(long)]
    pub take_over: bool,
}

/// Runs until it is told to stop, or cannot go on.
pub async fn run(args: ServeArgs, _output: &Output) -> Outcome {
    let file = Seen::before_reading(args.config.config);
    let text = Config::read(file.path())?;
    let config = Config::load_text(file.path(), &text)?;
    crate::telemetry::init(config.log).map_err(|error| Failure::new(Exit::Usage, error))?;
    let mut orders = Orders::listen();
    let site = tokio::select! {
        site = open_site(&config, args.take_over) => site?,
        () = orders.stop.next() => {
            tracing::info!("stopping before anything was served");
            return Ok(());
        }
    };
    let admin = site.admin().map_or_else(|| "off".to_owned(), |address| address.to_string());
    tracing::info!(
        listen = %site.address(),
        admin,
        public_url = config.server.public_url,
        chain = config.chain.chain_id,
        routes = config.routes.len(),
        prices = site.gate().policy().digest(),
        books = %config.store.directory.display(),
        chains = site.gate().tills().count(),
        channels = site.gate().tills().map(|till| till.accounts().len()).sum::<usize>(),
        "open"
    );
    let reloads = tokio::spawn(site.live().clone().follow(file, text, orders.reload));
    supervisor::ready();
    let mut broken = false;
    tokio::select! {
        () = orders.stop.next() => tracing::info!("stopping; a second signal ends at once"),
        _ = site.latched() => tracing::error!("stopping, because the books cannot be written"),
        () = site.broken() => {
            broken = true;
            tracing::error!("stopping, because a thread that serves has broken");
        }
    }
    supervisor::stopping();
    reloads.abort();
    let gate = site.gate().clone();
    let closed = tokio::select! {
        reports = site.close_all() => Some(reports),
        () = orders.stop.next() => {
            // What is being served ends with the process: it is we who end it.
            gate.tills().for_each(|till| till.accounts().abandon());
            None
        }
    };
    // However it came to the end: the books may also have failed on the way there.
    if let Some(latched) = gate.tills().find_map(|till| till.accounts().journal().latch()) {
        return Err(Failure::new(Exit::Books, latched.clone()).hint(latched.advice()));
    }
    if broken {
        return Err(Failure::message(Exit::Failed, "a thread that serves has broken; the log says how")
            .hint("the books are whole; start again"));
    }
    match closed {
        None => {
            Err(Failure::message(Exit::Failed, "ended at once; unclaimed vouchers are in the books for the next start"))
        }
        Some(reports) if reports.iter().flatten().any(|report| !report.is_complete()) => {
            let left = reports.iter().flatten().map(|report| report.left);
            let left = left.fold(Amount::ZERO, Amount::saturating_add).to_price(config.chain.token.decimals);
            let message = format!("stopped with {left} of vouchers not claimed");
            Err(Failure::message(Exit::Chain, message).hint("they are in the books; the next start claims them"))
        }
        Some(_) => Ok(()),
    }
}
