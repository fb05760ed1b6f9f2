//! `peaje redeem`: claim and settle now.

use clap::Args;

use std::time::Duration;

use super::value::DOLLAR_DECIMALS;
use super::{ConfigArgs, Exit, Failure, Outcome, Output};
use crate::admin::ADMIN_HEADER;
use crate::redeem::Report;

const MORE: &str = "\
A running proxy redeems by itself, every redeem.interval. This asks it to do so
now, over its admin listener, and waits for the outcome. The books belong to the
running proxy, so it must be up, and on this machine; one that was stopped with
something unclaimed claims it after its next start.

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

/// How long a round may take: a claim and a settlement, each mined.
const PATIENCE: Duration = Duration::from_secs(600);

/// Asks, waits, prints.
pub async fn run(args: RedeemArgs, output: &Output) -> Outcome {
    let (admin, decimals) = match &args.admin {
        Some(url) => (url.trim_end_matches('/').to_owned(), DOLLAR_DECIMALS),
        None => {
            let config = args.config.load()?;
            let address = config.admin.listen.ok_or_else(|| {
                Failure::message(Exit::Config, "admin.listen is off, so the running proxy cannot be asked")
            })?;
            (format!("http://{address}"), config.chain.token.decimals)
        }
    };
    let report = order(&admin).await?;
    if output.json_result(args.json) {
        output.json(&serde_json::to_value(&report).map_err(|error| Failure::new(Exit::Failed, error))?);
    } else {
        output.text(&in_words(&report, decimals));
    }
    if report.is_complete() { Ok(()) } else { Err(Failure::reported(Exit::Chain)) }
}

async fn order(admin: &str) -> Result<Report, Failure> {
    let failed = |error: reqwest::Error| {
        let error = anyhow::Error::new(error).context(format!("no proxy answers at {admin}"));
        Failure::new(Exit::Server, error).hint("is peaje serve running, and admin.listen the same?")
    };
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(crate::tls::client_config())
        .timeout(PATIENCE)
        .no_proxy()
        .build()
        .map_err(failed)?;
    let request = client.post(format!("{admin}/redeem")).header(ADMIN_HEADER, "1");
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    if !status.is_success() {
        // It does answer, and says why not.
        let body: serde_json::Value = response.json().await.unwrap_or_default();
        let reason = ["message", "error"].iter().find_map(|key| body.get(key)?.as_str()).unwrap_or("no reason given");
        return Err(Failure::message(Exit::Server, format!("{admin} answered {status}: {reason}")));
    }
    response.json().await.map_err(failed)
}

fn in_words(report: &Report, decimals: u8) -> String {
    let mut text = if report.transactions.is_empty() && report.is_complete() {
        "nothing to redeem\n".to_owned()
    } else {
        let (claimed, settled) = (report.claimed.to_price(decimals), report.settled.to_price(decimals));
        format!("claimed {claimed} from {} channels, settled {settled}\n", report.channels)
    };
    for transaction in &report.transactions {
        text.push_str(&format!("  transaction {transaction}\n"));
    }
    for failure in &report.failures {
        text.push_str(&format!("  channel {} could not be claimed: {}\n", failure.channel, failure.reason));
    }
    if !report.left.is_zero() {
        text.push_str(&format!("  left for the next round: {}\n", report.left.to_price(decimals)));
    }
    if let Some(problem) = &report.problem {
        text.push_str(&format!("  the round ended early: {problem}\n"));
    }
    text
}
