//! `peaje redeem`: claim and settle now; or see what that would do, or how it goes by itself.

use std::time::Duration;

use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ledger::{Side, aligned};
use super::value::{ChainName, DOLLAR_DECIMALS, chain_name};
use super::{ConfigArgs, Exit, Failure, Outcome, Output};
use crate::admin::{ADMIN_HEADER, RedemptionState};
use crate::chain::NodeHealth;
use crate::clock;
use crate::protocol::Amount;
use crate::redeem::{Foreign, InFlight, PlannedBatch, Postponed, Preview, Quarantined, Report};

const MORE: &str = "\
A running proxy redeems by itself, every redeem.interval. This asks it to do so
now, over its admin listener, and waits for the outcome. The books belong to the
running proxy, so it must be up, and on this machine; one that was stopped with
something unclaimed claims it after its next start.

--dry-run changes nothing and shows the plan instead: which transactions would
be sent, what they are expected to cost, and what would be left, and why.
--status shows how redemption is doing: what is unclaimed and for how long, what
waits, what is left out and why, and for how long the gas lasts.

Examples:
  peaje redeem
      Ask the proxy whose config is peaje.toml.
  peaje redeem --dry-run
      What that would do and cost.
  peaje redeem --status --json | jq .vitals.oldest_unclaimed_s
      How long the oldest voucher has waited, for programs.
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
    /// Only on this chain, by its name or id. The default is every chain of the config.
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<ChainName>,
    /// Show what would be claimed, what it would cost and what it would leave, and do nothing.
    #[arg(long, conflicts_with = "status")]
    pub dry_run: bool,
    /// Show how redemption is doing, and do nothing.
    #[arg(long)]
    pub status: bool,
    /// Print the outcome as JSON, as is done anyway when stdout is no terminal.
    #[arg(long)]
    pub json: bool,
}

/// How long a round may take: claims and settlements, each mined.
const PATIENCE: Duration = Duration::from_secs(600);

/// How many channels of a kind are named. JSON has all.
const MAX_NAMED: usize = 20;

/// Asks, waits, prints.
pub async fn run(args: RedeemArgs, output: &Output) -> Outcome {
    let named = args.network.map(|ChainName(chain_id)| chain_id);
    let (admin, decimals, chains) = match &args.admin {
        Some(url) => (url.trim_end_matches('/').to_owned(), DOLLAR_DECIMALS, vec![named]),
        None => {
            let config = args.config.load()?;
            let address = config.admin.listen.ok_or_else(|| {
                Failure::message(Exit::Config, "admin.listen is off, so the running proxy cannot be asked")
            })?;
            let all = config.of_each_chain().into_iter().map(|config| config.chain.chain_id);
            let meant: Vec<_> = all.filter(|chain_id| named.is_none_or(|named| named == *chain_id)).map(Some).collect();
            (format!("http://{address}"), config.chain.token.decimals, meant)
        }
    };
    if chains.is_empty() {
        return Err(Failure::message(Exit::Config, "the config has no such chain").hint("see [chain].network in it"));
    }
    let client = client(&admin)?;
    let mut results = Vec::new();
    let mut complete = true;
    for chain in chains {
        let url = |path: &str| match chain {
            Some(chain_id) => format!("{admin}{path}?chain={chain_id}"),
            None => format!("{admin}{path}"),
        };
        let (json, words) = if args.dry_run {
            let preview: Preview = answer(&admin, client.get(url("/redeem/plan"))).await?;
            (serde_json::to_value(&preview), plan_in_words(&preview, decimals))
        } else if args.status {
            let state: RedemptionState = answer(&admin, client.get(url("/redemption"))).await?;
            (serde_json::to_value(&state), state_in_words(&state, clock::now_s()))
        } else {
            let order = client.post(url("/redeem")).header(ADMIN_HEADER, "1");
            let report: Report = answer(&admin, order).await?;
            complete &= report.is_complete();
            (serde_json::to_value(&report), in_words(&report, decimals))
        };
        results.push((chain, json.map_err(|error| Failure::new(Exit::Failed, error))?, words));
    }
    print(results, args.json, output);
    if complete { Ok(()) } else { Err(Failure::reported(Exit::Chain)) }
}

/// What one chain answered, or each of several under its id.
fn print(mut results: Vec<(Option<u64>, Value, String)>, as_json: bool, output: &Output) {
    let as_json = output.json_result(as_json);
    if results.len() == 1 {
        for (_, json, words) in results {
            if as_json { output.json(&json) } else { output.text(&words) }
        }
        return;
    }
    if as_json {
        let each = results.iter_mut().map(|(chain, json, _)| {
            let id = chain.map(|id| id.to_string()).unwrap_or_default();
            (id, json.take())
        });
        output.json(&Value::Object(each.collect()));
    } else {
        for (chain, _, words) in results {
            output.text(&format!("{}:\n{words}", chain.map(chain_name).unwrap_or_default()));
        }
    }
}

fn nobody(admin: &str, error: reqwest::Error) -> Failure {
    let error = anyhow::Error::new(error).context(format!("no proxy answers at {admin}"));
    Failure::new(Exit::Server, error).hint("is peaje serve running, and admin.listen the same?")
}

fn client(admin: &str) -> Result<reqwest::Client, Failure> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(crate::tls::client_config())
        .timeout(PATIENCE)
        .no_proxy()
        .build()
        .map_err(|error| nobody(admin, error))
}

async fn answer<T: DeserializeOwned>(admin: &str, request: reqwest::RequestBuilder) -> Result<T, Failure> {
    let response = request.send().await.map_err(|error| nobody(admin, error))?;
    let status = response.status();
    if !status.is_success() {
        // It does answer, and says why not.
        let body: serde_json::Value = response.json().await.unwrap_or_default();
        let reason = ["message", "error"].iter().find_map(|key| body.get(key)?.as_str()).unwrap_or("no reason given");
        return Err(Failure::message(Exit::Server, format!("{admin} answered {status}: {reason}")));
    }
    response.json().await.map_err(|error| nobody(admin, error))
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
    text.push_str(&named(&report.postponed, |row| postponed_in_words(row, decimals)));
    if !report.left.is_zero() {
        text.push_str(&format!("  left for the next round: {}\n", report.left.to_price(decimals)));
    }
    if let Some(problem) = &report.problem {
        text.push_str(&format!("  the round ended early: {problem}\n"));
    }
    text
}

/// The plan as a table, and then what it leaves.
fn plan_in_words(preview: &Preview, decimals: u8) -> String {
    let mut text = String::new();
    if preview.batches.is_empty() {
        text.push_str("nothing would be claimed\n");
    } else {
        let headings = ["transaction", "channels", "claims", "gas", "cost"].map(str::to_owned).to_vec();
        let mut rows = vec![headings];
        rows.extend(preview.batches.iter().map(|batch| batch_cells(batch, decimals)));
        let settle_gas = preview.batches.iter().fold(preview.gas, |rest, batch| rest.saturating_sub(batch.gas));
        let settle = format!("settle x {}", preview.settlements);
        rows.push(vec![settle, String::new(), String::new(), settle_gas.to_string(), String::new()]);
        let channels = preview.batches.iter().fold(0_usize, |sum, batch| sum.saturating_add(batch.rows));
        rows.push(vec![
            "in all".to_owned(),
            channels.to_string(),
            preview.claims.to_price(decimals),
            preview.gas.to_string(),
            cost(preview.cost, preview.cost_wei, decimals),
        ]);
        let sides = [Side::Left, Side::Right, Side::Right, Side::Right, Side::Right];
        for line in aligned(&sides, &rows) {
            text.push_str(&format!("{line}\n"));
        }
    }
    if let Some(price) = preview.gas_price_wei {
        text.push_str(&format!("gas costs {} now\n", gwei(price)));
    }
    if let Some(problem) = &preview.problem {
        text.push_str(&format!("what gas costs is not known: {problem}\n"));
    }
    if preview.leaves.is_zero() {
        text.push_str("nothing would be left\n");
        return text;
    }
    text.push_str(&format!("{} would be left:\n", preview.leaves.to_price(decimals)));
    text.push_str(&named(&preview.postponed, |row| postponed_in_words(row, decimals)));
    text.push_str(&named(&preview.quarantined, |row| quarantined_in_words(row, decimals, clock::now_s())));
    text.push_str(&named(&preview.foreign, |row| {
        let Foreign { channel, authorizer, due } = row;
        format!("channel {channel}: {} take the key of its receiver authorizer {authorizer}", due.to_price(decimals))
    }));
    text
}

fn batch_cells(batch: &PlannedBatch, decimals: u8) -> Vec<String> {
    let what = if batch.urgent { "claim, urgent" } else { "claim" };
    vec![
        what.to_owned(),
        batch.rows.to_string(),
        batch.claims.to_price(decimals),
        batch.gas.to_string(),
        cost(batch.cost, batch.cost_wei, decimals),
    ]
}

/// In dollars where they are known, else in the chain's own coin.
fn cost(dollars: Option<Amount>, wei: Option<u128>, decimals: u8) -> String {
    match (dollars, wei) {
        (Some(dollars), _) => dollars.to_price(decimals),
        (None, Some(wei)) => format!("{} coins", coins(wei)),
        (None, None) => "?".to_owned(),
    }
}

fn coins(wei: u128) -> String {
    Amount::new(wei).to_price(18).trim_start_matches('$').to_owned()
}

fn gwei(wei: u128) -> String {
    format!("{} gwei", Amount::new(wei).to_price(9).trim_start_matches('$'))
}

fn postponed_in_words(row: &Postponed, decimals: u8) -> String {
    let Postponed { channel, due, cost, why } = row;
    format!("channel {channel}: {} wait, because {why}, {}", due.to_price(decimals), cost.to_price(decimals))
}

fn quarantined_in_words(row: &Quarantined, decimals: u8, now: u64) -> String {
    let Quarantined { channel, reason, until, unclaimed, .. } = row;
    let (unclaimed, again) = (unclaimed.to_price(decimals), long(until.saturating_sub(now)));
    format!("channel {channel}: {unclaimed} in quarantine for another {again}: {reason}")
}

/// One line for each, up to [`MAX_NAMED`].
fn named<T>(all: &[T], in_words: impl Fn(&T) -> String) -> String {
    let mut text: String = all.iter().take(MAX_NAMED).map(|one| format!("  {}\n", in_words(one))).collect();
    let more = all.len().saturating_sub(MAX_NAMED);
    if more > 0 {
        text.push_str(&format!("  and {more} more\n"));
    }
    text
}

/// How redemption is doing, the worst first.
fn state_in_words(state: &RedemptionState, now: u64) -> String {
    let RedemptionState { vitals, stuck, settings } = state;
    let dollars = |amount: Amount| amount.to_price(settings.decimals);
    let ago = |at: u64| format!("{} ago", long(now.saturating_sub(at)));
    let mut text = String::new();
    let mut line = |what: &str, said: String| text.push_str(&format!("{what:<12}{said}\n"));
    if let Some(since) = vitals.failing_since {
        let problem = vitals.problem.as_deref().unwrap_or("no reason is known");
        let state = if *stuck { "STUCK" } else { "failing" };
        line(state, format!("since {}: {problem}", long(now.saturating_sub(since))));
    }
    match vitals.oldest_unclaimed_s {
        None => line("unclaimed", "nothing".to_owned()),
        Some(oldest) => {
            let (sum, channels) = (dollars(vitals.unclaimed), vitals.unclaimed_channels);
            line("unclaimed", format!("{sum} on {channels} channels, the oldest for {}", long(oldest)));
        }
    }
    if !vitals.shortfall.is_zero() {
        line("lost", format!("{} are not covered by deposits any more", dollars(vitals.shortfall)));
    }
    let last =
        vitals.last_claim.map(|last| format!("{}, {}, {}", ago(last.at), dollars(last.claimed), last.transaction));
    line("last claim", last.unwrap_or_else(|| "none in this run".to_owned()));
    let round = vitals.last_complete_round.map(ago);
    line("last round", round.unwrap_or_else(|| "none in this run".to_owned()));
    line("next round", format!("every {}", long(settings.interval_s)));
    if let Some(wei) = vitals.gas_balance_wei {
        let lasts = vitals.gas_lasts_s.map(|seconds| format!(", which last {} at this pace", long(seconds)));
        line("gas", format!("{} coins{}", coins(wei), lasts.unwrap_or_default()));
    }
    let lag = vitals.chain_lag_s.map(|lag| format!(", its newest block is {} old", long(lag)));
    line("chain", format!("answered {} ago{}", long(vitals.chain_silence_s), lag.unwrap_or_default()));
    for node in &vitals.nodes {
        line("node", node_in_words(node));
    }
    if vitals.quarantined.is_empty() {
        line("quarantine", "empty".to_owned());
    } else {
        line("quarantine", format!("{} channels", vitals.quarantined.len()));
    }
    text.push_str(&named(&vitals.quarantined, |row| quarantined_in_words(row, settings.decimals, now)));
    if !vitals.in_flight.is_empty() {
        text.push_str(&format!("{:<12}{} transactions\n", "in flight", vitals.in_flight.len()));
    }
    text.push_str(&named(&vitals.in_flight, |sent| {
        let InFlight { transaction, purpose, nonce, since, replaced, block } = sent;
        let place = block.map_or_else(|| "not in a block".to_owned(), |block| format!("in block {block}"));
        format!("{purpose} {transaction}, nonce {nonce}, {}, replaced {replaced} times, {place}", ago(*since))
    }));
    text
}

/// One endpoint and what is wrong with it.
fn node_in_words(node: &NodeHealth) -> String {
    let NodeHealth { name, preferred, ok, lag_s, problem, .. } = node;
    let state = match (ok, preferred) {
        (true, true) => "asked first",
        (true, false) => "in reserve",
        (false, _) => "avoided",
    };
    let lag = lag_s.map(|lag| format!(", {} behind", long(lag))).unwrap_or_default();
    let problem = problem.as_deref().map(|problem| format!(": {problem}")).unwrap_or_default();
    format!("{name}, {state}{lag}{problem}")
}

/// A span in its two largest units: `3 d 4 h`, `5 m 6 s`, `7 s`.
fn long(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let first = UNITS.iter().position(|(size, _)| seconds >= *size).unwrap_or(UNITS.len() - 1);
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, unit) in UNITS.iter().skip(first).take(2) {
        let count = rest.checked_div(*size).unwrap_or_default();
        rest = rest.checked_rem(*size).unwrap_or_default();
        if count > 0 || parts.is_empty() {
            parts.push(format!("{count} {unit}"));
        }
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::RedemptionSettings;
    use crate::protocol::{Address, ChannelId, Hash};
    use crate::redeem::{LastClaim, Vitals, Why};

    fn node(name: &str, ok: bool, preferred: bool, problem: Option<&str>) -> NodeHealth {
        let (name, problem) = (name.to_owned(), problem.map(str::to_owned));
        NodeHealth { name, preferred, ok, lag_s: Some(2), head: Some(1), problem }
    }

    fn channel(byte: u8) -> ChannelId {
        ChannelId([byte; 32])
    }

    fn batch(rows: usize, urgent: bool, claims: u128, gas: u64, cost: Option<u128>) -> PlannedBatch {
        PlannedBatch {
            rows,
            urgent,
            claims: Amount::new(claims),
            gas,
            cost_wei: Some(u128::from(gas) * 100_000_000),
            cost: cost.map(Amount::new),
        }
    }

    fn preview(priced: bool) -> Preview {
        let dollars = |units| priced.then_some(units);
        Preview {
            batches: vec![
                batch(1, true, 2_000_000, 60_200, dollars(18_060)),
                batch(65, false, 9_000_000, 1_577_000, dollars(473_100)),
            ],
            settlements: 1,
            claims: Amount::new(11_000_000),
            gas: 1_694_200,
            cost_wei: Some(169_420_000_000_000),
            cost: dollars(508_260).map(Amount::new),
            gas_price_wei: Some(100_000_000),
            ..Preview::default()
        }
    }

    #[test]
    fn a_plan_is_a_table_with_its_cost() {
        let expected = [
            "transaction    channels  claims      gas      cost",
            "claim, urgent         1   $2.00    60200  $0.01806",
            "claim                65   $9.00  1577000   $0.4731",
            "settle x 1                         57000",
            "in all               66  $11.00  1694200  $0.50826",
            "gas costs 0.10 gwei now",
            "nothing would be left",
        ];
        assert_eq!(plan_in_words(&preview(true), 6).lines().collect::<Vec<_>>(), expected);
        let unpriced = plan_in_words(&preview(false), 6);
        assert!(unpriced.contains("0.00016942 coins"), "{unpriced}");
    }

    #[test]
    fn a_plan_tells_what_it_leaves_and_why() {
        let left = Preview {
            leaves: Amount::new(60_000),
            postponed: vec![Postponed {
                channel: channel(1),
                due: Amount::new(10_000),
                cost: Amount::new(18_060),
                why: Why::NotWorthItsGas,
            }],
            foreign: vec![Foreign { channel: channel(2), authorizer: Address([7; 20]), due: Amount::new(20_000) }],
            quarantined: vec![Quarantined {
                channel: channel(3),
                reason: "execution reverted".to_owned(),
                since: 0,
                until: u64::MAX,
                unclaimed: Amount::new(30_000),
            }],
            problem: Some("the node cannot be reached".to_owned()),
            ..Preview::default()
        };
        let text = plan_in_words(&left, 6);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[..3],
            [
                "nothing would be claimed",
                "what gas costs is not known: the node cannot be reached",
                "$0.06 would be left:",
            ]
        );
        assert!(lines[3].ends_with(": $0.01 wait, because it is not worth its gas, $0.01806"), "{text}");
        assert!(
            lines[4].contains("$0.03 in quarantine for another") && lines[4].ends_with("execution reverted"),
            "{text}"
        );
        assert!(lines[5].contains("$0.02 take the key of its receiver authorizer 0x0707"), "{text}");
    }

    #[test]
    fn long_lists_are_cut_and_counted() {
        let text = named(&[1; 23], i32::to_string);
        assert_eq!((text.lines().count(), text.lines().last()), (21, Some("  and 3 more")));
        assert_eq!(named(&[1; 20], i32::to_string).lines().count(), 20);
    }

    #[test]
    fn a_status_says_what_is_at_risk() {
        let settings = RedemptionSettings {
            decimals: 6,
            interval_s: 600,
            max_unclaimed: None,
            max_unclaimed_per_channel: None,
            max_unclaimed_per_payer: None,
            max_age_s: None,
            max_gas_share_bps: None,
            coin_price: None,
            max_rows: 200,
            confirmations: 1,
            stuck_after_s: 3_600,
        };
        let calm = RedemptionState { vitals: Vitals::default(), stuck: false, settings };
        let text = state_in_words(&calm, 100);
        let expected = [
            "unclaimed   nothing",
            "last claim  none in this run",
            "last round  none in this run",
            "next round  every 10 m",
            "chain       answered 0 s ago",
            "quarantine  empty",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        let vitals = Vitals {
            unclaimed: Amount::new(5_000_000),
            unclaimed_channels: 3,
            oldest_unclaimed_s: Some(4_000),
            shortfall: Amount::new(1_000_000),
            last_claim: Some(LastClaim { at: 10_000, transaction: Hash::ZERO, claimed: Amount::new(7) }),
            failing_since: Some(6_400),
            problem: Some("no funds".to_owned()),
            gas_balance_wei: Some(2_000_000_000_000_000_000),
            gas_lasts_s: Some(90_000),
            chain_lag_s: Some(3),
            nodes: vec![
                node("https://a.example", true, true, None),
                node("https://b.example", false, false, Some("timed out")),
            ],
            quarantined: vec![Quarantined {
                channel: channel(3),
                reason: "reverted".to_owned(),
                since: 0,
                until: 11_260,
                unclaimed: Amount::new(30_000),
            }],
            in_flight: vec![InFlight {
                transaction: Hash::ZERO,
                purpose: "claim".to_owned(),
                nonce: 4,
                since: 9_940,
                replaced: 2,
                block: None,
            }],
            ..Vitals::default()
        };
        let text = state_in_words(&RedemptionState { vitals, stuck: true, ..calm }, 10_000);
        for part in [
            "STUCK       since 1 h: no funds",
            "unclaimed   $5.00 on 3 channels, the oldest for 1 h 6 m",
            "lost        $1.00",
            "gas         2.00 coins, which last 1 d 1 h at this pace",
            "its newest block is 3 s old",
            "node        https://a.example, asked first, 2 s behind\n",
            "node        https://b.example, avoided, 2 s behind: timed out\n",
            "in quarantine for another 21 m: reverted",
            "nonce 4, 1 m ago, replaced 2 times, not in a block",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn spans_are_told_in_two_units() {
        let cases =
            [(0, "0 s"), (59, "59 s"), (60, "1 m"), (3_661, "1 h 1 m"), (90_061, "1 d 1 h"), (86_399, "23 h 59 m")];
        for (seconds, told) in cases {
            assert_eq!(long(seconds), told);
        }
    }
}
