//! `[channel]` and `[deposits]`: what every channel must agree to, and which deposits are relayed.

use std::time::Duration;

use super::tokens::inexact;
use super::values::{DAY, HOUR, MINUTE, SECOND, amount, counted, dollar, duration, whole_seconds};
use crate::config::reader::{Given, Problem, Section};
use crate::config::{Chain, Channel, Deposits, Upstream, write_duration};
use crate::protocol::Amount;
use crate::protocol::channel::{MAX_WITHDRAW_DELAY_S, MIN_WITHDRAW_DELAY_S};

/// How often the chain is looked at in a withdraw delay, at least: what a payer announces must be seen in time to claim.
const LOOKS_IN_A_DELAY: u32 = 3;

/// Deposits relayed in an hour, at most: more than a second's worth of any chain's blocks, and still a number that counts.
const MAX_DEPOSITS_PER_HOUR: u64 = 1_000_000;

/// A deposit must be signed, broadcast and included within the offer's timeout.
const MIN_MAX_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests of one channel at once, or waiting for it. What one payer keeps open is bounded by this.
const MAX_AT_ONCE: u64 = 1_024;

pub(super) fn channel(mut section: Section<'_>, chains: &[Chain], upstream: Option<&Upstream>) -> Option<Channel> {
    let decimals = chains.first().map(|chain| chain.token.decimals);
    let delays = Duration::from_secs(MIN_WITHDRAW_DELAY_S)..=Duration::from_secs(MAX_WITHDRAW_DELAY_S);
    let withdraw_delay = whole_seconds(&mut section, "withdraw_delay", delays);
    let span = withdraw_delay.span();
    let withdraw_delay = withdraw_delay.or(DAY);
    let slowest = chains.iter().max_by_key(|chain| chain.poll);
    if let (Some(delay), Some(chain)) = (withdraw_delay, slowest)
        && chain.poll > delay / LOOKS_IN_A_DELAY
    {
        let (mine, theirs) = (write_duration(delay), write_duration(chain.poll));
        let problem = Problem::new(format!("{mine} is too short for [chain].poll, which is {theirs}"));
        let fix = "lower poll: a withdrawal must be seen while there is time to claim";
        section.error("withdraw_delay", span, problem.fix(fix));
    }
    let min_deposit = section.text("min_deposit", |text| match amount(text, decimals)? {
        Amount::ZERO => {
            Err(Problem::new("a deposit of nothing is no limit").fix("leave min_deposit out to accept any"))
        }
        amount => Ok(amount),
    });
    if let Given::Value(amount, span) = &min_deposit
        && let Some(problem) = inexact(chains.iter().flat_map(Chain::tokens), *amount)
    {
        section.error("min_deposit", Some(span.clone()), problem);
    }
    let max_timeout = whole_seconds(&mut section, "max_timeout", MIN_MAX_TIMEOUT..=HOUR);
    let span = max_timeout.span();
    let max_timeout = max_timeout.or(5 * MINUTE);
    if let (Some(max_timeout), Some(upstream)) = (max_timeout, upstream)
        && max_timeout <= upstream.response_timeout
    {
        let (mine, theirs) = (write_duration(max_timeout), write_duration(upstream.response_timeout));
        let problem =
            Problem::new(format!("{mine} must be longer than [upstream].response_timeout, which is {theirs}"));
        let fix = "raise it, or lower response_timeout: an agent must not give up before the upstream may";
        section.error("max_timeout", span, problem.fix(fix));
    }
    let margin = duration(&mut section, "withdraw_margin", Duration::ZERO..=30 * DAY);
    let span = margin.span();
    let withdraw_margin = margin.or(5 * MINUTE);
    if let (Some(margin), Some(delay)) = (withdraw_margin, withdraw_delay)
        && margin >= delay
    {
        let (mine, theirs) = (write_duration(margin), write_duration(delay));
        let problem = Problem::new(format!("{mine} is not below withdraw_delay, {theirs}"));
        let fix = "lower it: nothing would be sold to a payer that announces a withdrawal";
        section.error("withdraw_margin", span, problem.fix(fix));
    }
    let refund_idle = duration(&mut section, "refund_idle", HOUR..=3_650 * DAY).optional();
    let exposure = section.text("max_wallet_exposure", |text| amount(text, decimals));
    let max_in_flight = counted(&mut section, "max_in_flight", 1..=MAX_AT_ONCE).or(32);
    let max_waiting = counted(&mut section, "max_waiting", 0..=MAX_AT_ONCE).or(64);
    let max_wait = duration(&mut section, "max_wait", Duration::from_millis(1)..=MINUTE).or(10 * SECOND);
    Some(Channel {
        withdraw_delay: withdraw_delay?,
        min_deposit: min_deposit.optional()?,
        max_timeout: max_timeout?,
        withdraw_margin: withdraw_margin?,
        refund_idle: refund_idle?,
        max_wallet_exposure: exposure.or(dollar(decimals))?,
        max_in_flight: u32::try_from(max_in_flight?).ok()?,
        max_waiting: usize::try_from(max_waiting?).ok()?,
        max_wait: max_wait?,
    })
}

pub(super) fn deposits(mut section: Section<'_>, chains: &[Chain]) -> Option<Deposits> {
    let decimals = chains.first().map(|chain| chain.token.decimals);
    let instant = section.text("instant", |text| amount(text, decimals));
    let mixed = |chain: &Chain| chain.tokens().any(|token| token.decimals != chain.token.decimals);
    let differ = chains.iter().any(mixed);
    if let (Given::Value(amount, span), true) = (&instant, differ)
        && !amount.is_zero()
    {
        let problem = Problem::new("cannot be said for tokens of one chain with different decimal places");
        section.error("instant", Some(span.clone()), problem.fix("leave instant out, or take tokens of one kind"));
    }
    let instant = instant.or(Amount::ZERO);
    let each = counted(&mut section, "per_peer_per_hour", 1..=MAX_DEPOSITS_PER_HOUR).or(200);
    let all = counted(&mut section, "per_hour", 1..=MAX_DEPOSITS_PER_HOUR).or(1_000);
    Some(Deposits {
        instant: instant?,
        per_peer_per_hour: u32::try_from(each?).ok()?,
        per_hour: u32::try_from(all?).ok()?,
    })
}
