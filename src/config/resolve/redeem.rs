//! `[redeem]` and `[facilitator]`: when vouchers become money, and who sends the transactions.

use http::Uri;

use super::values::{DAY, HOUR, MINUTE, SECOND, amount, duration, plain_url};
use crate::config::keys::write_fee;
use crate::config::reader::{Given, Problem, Report, Section, quoted};
use crate::config::{Chain, Channel, Facilitator, Redeem, write_duration};
use crate::local::is_this_machine;
use crate::protocol::{Amount, Network};

/// A transaction of more claims is larger than nodes accept (128 KiB).
const MAX_CLAIM_ROWS: u64 = 272;

/// The most that is paid for a unit of gas on a chain without a preset, wei.
const DEFAULT_MAX_FEE_WEI: u128 = 50 * WEI_PER_GWEI;

/// How many times as much is paid for what is urgent, where nothing is said.
const URGENT_TIMES: u128 = 10;

/// A whole coin for a unit of gas is certainly a mistake.
const MAX_FEE_WEI: u128 = 1_000_000_000_000_000_000;

/// Wei in a gwei.
const WEI_PER_GWEI: u128 = 1_000_000_000;

/// Nothing, if something was refused; no facilitator, if none was named.
pub(super) fn facilitator(mut section: Section<'_>, permit2: bool) -> Option<Option<Facilitator>> {
    let url = section.text("url", facilitator_url);
    let timeout = duration(&mut section, "timeout", SECOND..=HOUR).or(90 * SECOND);
    if !section.is_there() {
        return Some(None);
    }
    let span = url.span();
    let url = section.required("url", url, "url = \"https://…\", the facilitator's address");
    if let (true, Some(span)) = (permit2, span) {
        let problem = Problem::new("cannot be used with transfer = \"permit2\": no deposit would be relayed");
        section.error("url", Some(span), problem.fix("remove [facilitator], and name receiver.gas_key"));
    }
    Some(Some(Facilitator { url: url?, timeout: timeout? }))
}

pub(super) fn redeem(mut section: Section<'_>, chain: Option<&Chain>, channel: Option<&Channel>) -> Option<Redeem> {
    let decimals = chain.map(|chain| chain.token.decimals);
    let interval = duration(&mut section, "interval", SECOND..=30 * DAY);
    let span = interval.span();
    let interval = interval.or(10 * MINUTE);
    let max_rows = section.number("max_rows", |rows| match usize::try_from(rows) {
        Ok(small) if (1..=MAX_CLAIM_ROWS).contains(&rows) => Ok(small),
        _ => Err(Problem::new(format!(
            "{rows} is not between 1 and {MAX_CLAIM_ROWS}, which is what one transaction holds"
        ))),
    });
    let max_rows = max_rows.or(200);
    let on_shutdown = section.flag("on_shutdown").or(true);
    let mut threshold = |key| section.text(key, |text| threshold(text, decimals)).optional();
    let max_unclaimed = threshold("max_unclaimed");
    let max_unclaimed_per_channel = threshold("max_unclaimed_per_channel");
    let max_unclaimed_per_payer = threshold("max_unclaimed_per_payer");
    let max_age = duration(&mut section, "max_age", SECOND..=30 * DAY).optional();
    let share = section.text("max_gas_share", percent);
    let coin_price = section.text("coin_price", |text| coin_price(text, decimals));
    let chain_says = chain.is_none_or(|chain| chain.coin_price.is_some());
    if let (Given::Value(_, span), Given::Absent, false) = (&share, &coin_price, chain_says) {
        let problem = Problem::new("says nothing while nobody knows what gas costs in dollars");
        let fix = "add coin_price = \"$3000\", what one of the chain's own coins is worth";
        section.error("max_gas_share", Some(span.clone()), problem.fix(fix));
    }
    let usual_fee = chain.map_or(DEFAULT_MAX_FEE_WEI, |chain| usual_max_fee_wei(chain.chain_id));
    let max_fee = section.text("max_fee", fee).or(usual_fee);
    let urgent = section.text("urgent_max_fee", fee);
    let (urgent_span, urgent_is_said) = (urgent.span(), !matches!(urgent, Given::Absent));
    let urgent_max_fee = urgent.or(usual_fee.saturating_mul(URGENT_TIMES));
    // What the chain says goes before both.
    let chain_bids = chain.is_some_and(|chain| chain.max_fee_wei.or(chain.urgent_max_fee_wei).is_some());
    if let (Some(max_fee), Some(urgent_max_fee)) = (max_fee, urgent_max_fee)
        && urgent_max_fee < max_fee
        && !chain_bids
    {
        let problem =
            Problem::new(format!("{} is less than max_fee, {}", write_fee(urgent_max_fee), write_fee(max_fee)));
        section.error("urgent_max_fee", urgent_span, problem.fix(NOT_LESS));
    }
    let bump_after = duration(&mut section, "bump_after", SECOND..=HOUR).or(30 * SECOND);
    let stuck_after = duration(&mut section, "stuck_after", MINUTE..=30 * DAY).or(HOUR);
    let sweep_interval = duration(&mut section, "sweep_interval", SECOND..=DAY).or(10 * MINUTE);
    if let (Some(interval), Some(channel)) = (interval, channel)
        && interval >= channel.withdraw_delay
    {
        let delay = write_duration(channel.withdraw_delay);
        let problem =
            Problem::new(format!("{} is not below [channel].withdraw_delay, {delay}", write_duration(interval)));
        section.error("interval", span, problem.fix("redeem more often than a payer can withdraw"));
    }
    Some(Redeem {
        interval: interval?,
        max_unclaimed: max_unclaimed?,
        max_unclaimed_per_channel: max_unclaimed_per_channel?,
        max_unclaimed_per_payer: max_unclaimed_per_payer?,
        max_age: max_age?,
        max_gas_share_bps: share.optional()?,
        coin_price: coin_price.optional()?,
        max_rows: max_rows?,
        on_shutdown: on_shutdown?,
        max_fee_wei: max_fee?,
        urgent_max_fee_wei: urgent_max_fee?,
        urgent_is_said,
        bump_after: bump_after?,
        stuck_after: stuck_after?,
        sweep_interval: sweep_interval?,
    })
}

const NOT_LESS: &str = "raise it, or lower max_fee: what is urgent must not bid less";

/// What is paid at most for a unit of gas on a chain, where nothing is said, wei.
pub(in crate::config) fn usual_max_fee_wei(chain_id: u64) -> u128 {
    Network::by_chain_id(chain_id).map_or(DEFAULT_MAX_FEE_WEI, |preset| preset.max_fee_wei)
}

/// The same for what is urgent: a low `max_fee` of the chain's own is no reason to lose money, and a high one is to be
/// outbid.
pub(in crate::config) fn usual_urgent_fee_wei(chain_id: u64, max_fee_wei: Option<u128>) -> u128 {
    let usual = usual_max_fee_wei(chain_id);
    max_fee_wei.unwrap_or(usual).max(usual).saturating_mul(URGENT_TIMES)
}

/// Refuses urgent fees that are less than a chain's usual ones. `chains` are all of them, in the file's order.
pub(super) fn check_fees(report: &Report<'_>, root: &mut Section<'_>, redeem: &Redeem, chains: &[Chain]) {
    let mut place = |number: usize, key: &str| {
        let chain = root.entry("chain")?;
        chain.items().map_or_else(|| chain.place_of(key), |items| items.get(number)?.place_of(key))
    };
    for (number, chain) in chains.iter().enumerate() {
        let usual = if number == 0 { redeem.max_fee_wei } else { usual_max_fee_wei(chain.chain_id) };
        let max_fee = chain.max_fee_wei.unwrap_or(usual);
        let said = redeem.urgent_is_said.then_some(redeem.urgent_max_fee_wei);
        let Some(urgent) = chain.urgent_max_fee_wei.or(said).filter(|urgent| *urgent < max_fee) else { continue };
        if chain.urgent_max_fee_wei.is_some() {
            let problem = Problem::new(format!("{} is less than max_fee, {}", write_fee(urgent), write_fee(max_fee)));
            report.error(place(number, "urgent_max_fee"), "[chain].urgent_max_fee", problem.fix(NOT_LESS));
        } else if number > 0 || chain.max_fee_wei.is_some() {
            let name = chain.network.map_or_else(|| format!("chain {}", chain.chain_id), str::to_owned);
            let problem = Problem::new(format!(
                "{} of [redeem].urgent_max_fee is less than what is paid on {name} without haste, {}",
                write_fee(urgent),
                write_fee(max_fee)
            ));
            let fix = "give this chain an urgent_max_fee of its own, or lower its max_fee";
            let place = place(number, "max_fee").or_else(|| place(number, "network"));
            report.error(place, "[chain].urgent_max_fee", problem.fix(fix));
        }
    }
}

/// What a coin is worth.
pub(super) fn coin_price(text: &str, decimals: Option<u8>) -> Result<Amount, Problem> {
    match amount(text, decimals)? {
        Amount::ZERO => Err(Problem::new("a coin that is worth nothing makes gas free").fix("leave coin_price out")),
        price => Ok(price),
    }
}

/// A sum above which something happens.
fn threshold(text: &str, decimals: Option<u8>) -> Result<Amount, Problem> {
    match amount(text, decimals)? {
        Amount::ZERO => Err(Problem::new("would claim every voucher by itself, which costs more than it brings")
            .fix("write what may be unclaimed, \"$5\" say")),
        amount => Ok(amount),
    }
}

/// A part of a whole, in hundredths of a percent.
fn percent(text: &str) -> Result<u32, Problem> {
    let problem =
        |what: &str| Problem::new(format!("{} {what}", quoted(text))).fix("write it like \"10%\" or \"0.25%\"");
    let number = text.strip_suffix('%').ok_or_else(|| problem("is not a percentage"))?;
    let share = decimal(number, 2).ok_or_else(|| problem("is not a percentage of at most two decimal places"))?;
    match u32::try_from(share) {
        Ok(share @ 1..=10_000) => Ok(share),
        _ => Err(problem("is not above 0% and at most 100%")),
    }
}

/// The price of a unit of gas, in wei.
pub(super) fn fee(text: &str) -> Result<u128, Problem> {
    let problem = |what: &str| {
        Problem::new(format!("{} {what}", quoted(text))).fix("write it like \"50 gwei\", \"0.05 gwei\" or \"1000 wei\"")
    };
    let (number, places) = match (text.strip_suffix("gwei"), text.strip_suffix("wei")) {
        (Some(number), _) => (number, 9),
        (None, Some(number)) => (number, 0),
        (None, None) => return Err(problem("is not a price of gas: it needs a unit, wei or gwei")),
    };
    let number = number.strip_suffix(' ').unwrap_or(number);
    match decimal(number, places) {
        Some(0) => Err(problem("buys no gas")),
        Some(wei) if wei <= MAX_FEE_WEI => Ok(wei),
        Some(_) => Err(problem("is more than a whole coin for a unit of gas")),
        None => Err(problem("is not a price of gas: a number of whole wei, then wei or gwei")),
    }
}

/// `12.5` as a number of its last decimal places: 1250 with two places. `None` if it is none or too fine.
pub(super) fn decimal(text: &str, places: u8) -> Option<u128> {
    Amount::from_price(&format!("${text}"), places).ok().map(Amount::units)
}

fn facilitator_url(text: &str) -> Result<Uri, Problem> {
    let uri = plain_url(text, "https://facilitator.example.com")?;
    if uri.scheme_str() == Some("https") || is_this_machine(uri.host().unwrap_or_default()) {
        return Ok(uri);
    }
    Err(Problem::new("is not encrypted, so what it says about payments can be forged on the way")
        .fix("write https, or use one on this machine"))
}
