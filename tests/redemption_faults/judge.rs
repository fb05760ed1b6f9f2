//! What must be true once the faults have stopped.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use alloy::primitives::hex;
use alloy::sol_types::SolCall as _;
use peaje::chain::View;
use peaje::gate::Statement;
use peaje::protocol::{Amount, ChannelId, Hash};
use peaje::store::Filter;
use peaje::store::audit::{Fault, audit};
use peaje::store::sqlite::Reader;

use super::gateway::Spell;
use super::node::dev;
use super::onchain::abi;
use super::trial::{Agent, Poison, Trial};

/// How long a row may be in quarantine that does not belong there.
const QUARANTINE: Duration = Duration::from_secs(2);

/// How often is looked.
const LOOK: Duration = Duration::from_millis(10);

/// Waits until what leaving payers owe is claimed. They cannot take it any more then.
pub(crate) async fn leaving_are_safe(trial: &mut Trial, patience: Duration) -> Result<(), String> {
    until(trial, patience, Scope::Leaving).await
}

/// Waits, then judges everything.
pub(crate) async fn verdict(trial: &mut Trial, patience: Duration) -> Result<(), String> {
    trial.alive().await?;
    trial.no_more_crashes();
    let begun = Instant::now();
    trial.all_have_paid(begun + patience).await?;
    trial.tally.add("milliseconds until all requests are answered", begun.elapsed().as_millis() as u64);
    until(trial, patience, Scope::All).await?;
    trial.tally.add("milliseconds from the last fault to the last settlement", begun.elapsed().as_millis() as u64);
    // Who wants to leave does, and who does not goes on paying, for as long as it is served.
    trial.time_passes().await;
    for agent in trial.agents.clone() {
        trial.pays(&agent);
    }
    trial.all_have_paid(Instant::now() + patience).await?;
    until(trial, patience, Scope::All).await?;
    let charged = charged(trial);
    if !trial.stop().await {
        return Err("redemption does not stop".to_owned());
    }
    books(trial, &charged).await?;
    gas(trial).await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    Leaving,
}

async fn until(trial: &mut Trial, patience: Duration, scope: Scope) -> Result<(), String> {
    let begun = Instant::now();
    let mut released = 0;
    loop {
        trial.alive().await?;
        trial.reap()?;
        let Err(missing) = settled(trial, scope).await else { return Ok(()) };
        let vitals = trial.life().redemption.as_ref().map(peaje::redeem::Redemption::vitals).unwrap_or_default();
        if std::env::var_os("PEAJE_VERBOSE").is_some() && begun.elapsed() > QUARANTINE {
            super::say(&format!("{:?} {scope:?}: {missing}\n{vitals:?}", begun.elapsed()));
        }
        if begun.elapsed() > patience {
            return Err(format!("{scope:?}, after {patience:?}: {missing}\n{vitals:?}"));
        }
        // A lie or a node that is behind can put a good row into quarantine, for ten minutes: in time for any withdrawal,
        // and too long for a trial. A new process begins without.
        if begun.elapsed() > QUARANTINE * (released + 1) {
            let good = |id: &ChannelId| trial.agents.iter().any(|agent| agent.id() == *id && agent.poison.is_none());
            let wrongly = vitals.quarantined.iter().filter(|row| good(&row.channel)).count();
            if wrongly > 0 {
                trial.tally.add("good rows in quarantine", wrongly as u64);
                released += 1;
                trial.restart().await?;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the books charge each channel.
fn charged(trial: &Trial) -> HashMap<ChannelId, Statement> {
    trial.life().accounts().statements().into_iter().map(|books| (books.id, books)).collect()
}

/// Whether all that can be claimed is.
async fn settled(trial: &Trial, scope: Scope) -> Result<(), String> {
    let agents = if scope == Scope::All { trial.agents.clone() } else { trial.leaving() };
    let ids: Vec<_> = agents.iter().map(|agent| agent.id()).collect();
    let views = trial.node.views(&ids).await;
    let charged = charged(trial);
    for (agent, view) in agents.iter().zip(&views) {
        let id = agent.id();
        let Some(books) = charged.get(&id) else {
            if agent.purse(|purse| purse.acknowledged) > 0 {
                return Err(format!("{id}: not in the books"));
            }
            continue;
        };
        let due = claimable(agent, books, view);
        if view.total_claimed != due {
            return Err(format!("{id}: {} claimed of {due} ({:?}; on chain {view:?})", view.total_claimed, books.view));
        }
        if scope == Scope::All && (books.view.total_claimed, books.view.balance) != (view.total_claimed, view.balance) {
            return Err(format!("{id}: the books have {:?}, the chain {view:?}", books.view));
        }
    }
    if scope == Scope::Leaving {
        return Ok(());
    }
    let due = trial.node.owed(trial.terms.pay_to).await.due();
    if !due.is_zero() {
        return Err(format!("{due} are not settled"));
    }
    let open =
        Reader::open(&trial.books()).and_then(|reader| reader.unfinished()).map_err(|error| error.to_string())?;
    match open.first() {
        Some(first) => {
            Err(format!("{} transactions are open: {} at {}", open.len(), first.purpose.as_str(), first.nonce))
        }
        None => Ok(()),
    }
}

/// What can be claimed of a channel in all.
fn claimable(agent: &Agent, books: &Statement, view: &View) -> Amount {
    match agent.poison {
        Some(Poison::BadSignature) => Amount::ZERO,
        _ => books.charged.min(view.balance),
    }
}

/// Books and chain, to the last unit.
async fn books(trial: &mut Trial, charged: &HashMap<ChannelId, Statement>) -> Result<(), String> {
    let ids: Vec<_> = trial.agents.iter().map(|agent| agent.id()).collect();
    let views = trial.node.views(&ids).await;
    let deceived = trial.gateway.read(|record| record.deceived.clone());
    let (mut sum_charged, mut sum_claimed, mut shortfalls) = (0, 0, 0);
    let mut named = 0;
    for (agent, view) in trial.agents.iter().zip(&views) {
        let id = agent.id();
        let Some(books) = charged.get(&id) else { continue };
        let (charged, claimed) = (books.charged.units(), view.total_claimed.units());
        let purse = agent.purse(|purse| purse.clone());
        if !(purse.acknowledged..=purse.acknowledged + purse.doubt).contains(&charged) {
            return Err(format!("{id}: the books charge {charged}, its payer knows {purse:?}"));
        }
        if claimed > charged {
            return Err(format!("{id}: {claimed} claimed, {charged} charged"));
        }
        let short = charged - claimed;
        let lied_to = trial.gateway.is_alone() && deceived.contains(&id);
        let excused = agent.poison.is_some() || lied_to || trial.dropped.contains(&id);
        if short > 0 && !excused {
            return Err(format!(
                "{id}: {short} of {charged} are lost, and no lie and no reorganisation says why: {view:?}"
            ));
        }
        named += u64::from(short > 0 && agent.poison.is_none());
        (sum_charged, sum_claimed, shortfalls) = (sum_charged + charged, sum_claimed + claimed, shortfalls + short);
    }
    trial.tally.add("shortfalls by lies and deep reorganisations", named);
    trial.tally.add("units claimed and settled", u64::try_from(sum_claimed).unwrap());
    let received = trial.node.dollars(trial.terms.pay_to).await;
    if received != sum_claimed || sum_claimed != sum_charged - shortfalls {
        return Err(format!("{sum_charged} charged, {shortfalls} short, {sum_claimed} claimed, {received} received"));
    }
    let reader = Reader::open(&trial.books()).map_err(|error| error.to_string())?;
    let audited = audit(&reader, &trial.terms.settlement(), &mut |_, _| ()).map_err(|error| error.to_string())?;
    let forged = |id: Option<ChannelId>| {
        let of = |agent: &&std::sync::Arc<Agent>| Some(agent.id()) == id;
        trial.agents.iter().find(of).is_some_and(|agent| agent.poison == Some(Poison::BadSignature))
    };
    for finding in &audited.findings {
        let known = match finding.fault {
            Fault::Signature => forged(finding.channel),
            // A reorganisation makes a claim count twice.
            Fault::Claims => trial.reorgs > 0,
            fault => !fault.is_problem(),
        };
        if !known {
            return Err(format!("the audit: {finding:?}"));
        }
    }
    let on_disk: u128 = audited.sums.values().map(|sums| sums.charged.units()).sum();
    if on_disk != sum_charged {
        return Err(format!("the books on disk charge {on_disk}, those in memory {sum_charged}"));
    }
    Ok(())
}

/// Nobody pays for the same twice, and nothing is sent that is not in the books.
async fn gas(trial: &mut Trial) -> Result<(), String> {
    let landed = trial.node.landed(dev("gas").address()).await;
    let reader = Reader::open(&trial.books()).map_err(|error| error.to_string())?;
    let (mut known, mut by_nonce) = (HashSet::new(), HashMap::new());
    let mut purposes: HashMap<String, u64> = HashMap::new();
    reader
        .transactions(&Filter::default(), &mut |line| {
            known.insert(line.hash);
            *by_nonce.entry(line.nonce).or_insert(0_u64) += 1;
            *purposes.entry(format!("transactions written: {} {}", line.purpose, line.state)).or_default() += 1;
            Ok(())
        })
        .map_err(|error| error.to_string())?;
    for (what, count) in purposes {
        trial.tally.add(what, count);
    }
    let (mut idle, mut reverted, mut claims) = (0_u64, 0_u64, 0_u64);
    for transaction in &landed {
        let hash = Hash(hex::decode_to_array(&transaction.hash).unwrap());
        if !known.contains(&hash) {
            return Err(format!("transaction {hash} is in a block and not in the books"));
        }
        let claim = [abi::claimCall::SELECTOR, abi::claimWithSignatureCall::SELECTOR].map(hex::encode_prefixed);
        if !claim.contains(&transaction.selector) {
            continue;
        }
        claims += 1;
        reverted += u64::from(!transaction.success);
        idle += u64::from(transaction.success && transaction.events == 0);
    }
    let replaced = by_nonce.values().map(|versions| versions - 1).sum();
    trial.tally.add("transactions mined", landed.len() as u64);
    trial.tally.add("transactions mined: claims", claims);
    trial.tally.add("transactions mined: claims that reverted", reverted);
    trial.tally.add("transactions mined: claims of nothing", idle);
    trial.tally.add("transactions signed again for a nonce", replaced);
    // Only who cannot know that it is claimed claims it again.
    let hidden: u64 = trial.gateway.read(|record| {
        let hides = record.faults.iter().filter(|(spell, _)| spell.hides_claims());
        hides.map(|(_, count)| *count).sum()
    });
    let excuses = hidden.min(3) + trial.reorgs + trial.crashes;
    if idle > excuses {
        return Err(format!("{idle} of {claims} claims claimed nothing; {excuses} would be excused"));
    }
    // A row is tried before it is sent; only what changes in between makes it revert.
    let told = |spell| trial.gateway.read(|record| record.faults.get(&spell).copied().unwrap_or(0));
    let moved = trial.reorgs * 2 + told(Spell::Behind).min(3) + trial.tally_of("withdrawals taken out");
    if reverted > moved {
        return Err(format!("{reverted} of {claims} claims reverted; {moved} would be excused"));
    }
    Ok(())
}
