//! `peaje ledger verify`: the audit of the books, and their comparison with the chain.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json};

use super::books::{Books, BooksArgs, Survey, Ticker, counted, damaged, money, net};
use super::time::iso;
use crate::chain::{AlloyChain, Chain, ChainError, Owed, View};
use crate::cli::output::Paint;
use crate::cli::{Exit, Failure, Outcome, Output, connect};
use crate::config::Config;
use crate::protocol::{Address, Amount, ChannelId, Domain, SignedVoucher};
use crate::store::audit::{Audit, Fault, audit};
use crate::store::{ChannelRow, Transaction};

const MORE: &str = "\
Verify reads the books from the first page to the last and believes nothing:

  the file      its pages are whole, and every row is as it was written
  channels      each id follows from its terms, and the invariants hold: no more
                is claimed than charged, no more charged than the voucher covers
  vouchers      each was signed by the key that signs for its channel
  sums          charges and adjustments add up to what each channel was charged,
                and transactions claimed no more than that

With --chain it also reads every channel from the contract and says where the
two differ. It needs the config then, for the node; a wallet that signs for its
payer is asked about its voucher. Without --chain nobody is asked anything.

A problem means that the books, or what they say against the chain, cannot be
true; each comes with its channel and what to do. A note is worth reading and
nothing is wrong with the books. Amounts in findings are atomic units.

Examples:
  peaje ledger verify
      Audit the books of peaje.toml, beside the running proxy.
  peaje ledger verify --chain --json | jq '.findings[]'
      Compare with the chain; stdout is JSON whenever it is no terminal.
  peaje ledger verify --file /var/backups/peaje-2026-11-22.sqlite3
      Whether a backup is worth keeping.

Environment:
  PEAJE_CONFIG   the config file, where --config is not given
  NO_COLOR       no colours
  and with --chain what the config names with \"env:\", as a rule
  PEAJE_RPC and PEAJE_AUTHORIZER_KEY";

/// The arguments of `peaje ledger verify`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", crate::cli::exit::HELP))]
pub struct VerifyArgs {
    #[command(flatten)]
    /// Where the books are.
    pub books: BooksArgs,
    /// Compare with the chain behind the config too.
    #[arg(long)]
    pub chain: bool,
    /// Print JSON, as is done anyway when stdout is no terminal.
    #[arg(long)]
    pub json: bool,
}

/// How many channels the chain is asked for at once.
const CHANNELS_AT_ONCE: usize = 500;

/// How many findings of the chain's are kept; more are counted.
const MAX_FINDINGS: usize = 1_000;

/// For how many receivers and tokens the contract's accounts are compared. A provider has one or two.
const MAX_RECEIVERS: usize = 16;

/// Audits, compares, prints.
pub(super) async fn run(args: &VerifyArgs, output: &Output) -> Outcome {
    let mut books = args.books.open()?;
    // A node that cannot be reached is said before the books are read, which takes a while.
    let node = if args.chain { Some(Node::connect(&books).await?) } else { None };
    let settlement = books.settlement();
    let (audit, survey) = {
        let mut ticker = Ticker::new(output);
        let audit = audit(&books.reader, &settlement, &mut |step, done| {
            ticker.show(|| match done {
                0 => format!("reading {}", step.as_str()),
                _ => format!("reading {}: {done}", step.as_str()),
            });
        });
        (audit.map_err(damaged)?, Survey::of(&books, None).map_err(damaged)?)
    };
    let mut report = Report::new(audit);
    let compared = match &node {
        Some(node) => node.compare(&mut books, &survey.ids, &settlement, &mut report, output).await,
        None => Ok(()),
    };
    let as_json = output.json_result(args.json);
    if as_json {
        output.json(&report.to_json(&books));
    } else {
        output.text(&report.in_words(&books, output.paint()));
    }
    match (compared, report.problems) {
        (Ok(()), 0) => Ok(()),
        (Err(failure), 0) => Err(failure),
        (compared, _) => {
            if let Err(failure) = compared {
                failure.print(output, as_json);
            }
            Err(Failure::reported(Exit::Books))
        }
    }
}

/// A finding in the form it is printed in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    problem: bool,
    what: &'static str,
    channel: Option<ChannelId>,
    detail: String,
    fix: &'static str,
}

/// Where books and chain differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    /// The chain has more claimed than the books charged.
    ClaimedAboveCharged,
    /// The chain has less claimed than it had when the books last looked.
    ClaimLost,
    /// What the contract credited the receiver is less than what was claimed.
    Credit,
    /// A wallet refuses the voucher.
    WalletRefuses,
    /// The balance is below what was charged.
    Shortfall,
    /// A withdrawal would take what is not claimed.
    Leaving,
    /// The configured authorizer cannot claim.
    OtherAuthorizer,
    /// Claims pay somebody else than the configured receiver.
    OtherReceiver,
    /// The node is behind the books.
    NodeBehind,
    /// The authorizer is not known.
    NoAuthorizer,
}

impl Difference {
    fn is_problem(self) -> bool {
        matches!(self, Self::ClaimedAboveCharged | Self::ClaimLost | Self::Credit | Self::WalletRefuses)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::ClaimedAboveCharged => "chain_claimed_more",
            Self::ClaimLost => "chain_claimed_less",
            Self::Credit => "chain_credit",
            Self::WalletRefuses => "signature",
            Self::Shortfall => "shortfall",
            Self::Leaving => "leaving",
            Self::OtherAuthorizer => "other_authorizer",
            Self::OtherReceiver => "other_receiver",
            Self::NodeBehind => "node_behind",
            Self::NoAuthorizer => "authorizer",
        }
    }

    fn fix(self) -> &'static str {
        match self {
            Self::ClaimedAboveCharged => {
                "another instance has this authorizer's key, or these books are older than the last claim (a restored \
                 backup); a running proxy takes the chain's word and books the difference as an adjustment"
            }
            Self::ClaimLost => {
                "a reorganisation dropped a claim, which peaje makes again, or the node is of another chain or was \
                 reset; if this stays, compare with another node"
            }
            Self::Credit => "the node contradicts itself; compare with another node",
            Self::WalletRefuses => {
                "what was charged since the last claim cannot be claimed with this voucher; the wallet's keys may \
                 have changed"
            }
            Self::Shortfall => {
                "this much is lost unless the payer deposits again; the channel serves nobody until then"
            }
            Self::Leaving => "claim now: peaje redeem",
            Self::OtherAuthorizer => {
                "what it owes can only be claimed with the key of that account; run peaje with it as \
                 receiver.authorizer_key once, and redeem"
            }
            Self::OtherReceiver => {
                "its claims pay that account, as its payer agreed; new channels pay the configured one"
            }
            Self::NodeBehind => "ask a node that is in sync, or try again",
            Self::NoAuthorizer => "see receiver.authorizer_key in the config",
        }
    }

    fn finding(self, channel: Option<ChannelId>, detail: String) -> Finding {
        Finding { problem: self.is_problem(), what: self.as_str(), channel, detail, fix: self.fix() }
    }
}

/// The chain of a config.
struct Node {
    chain: AlloyChain,
    us: Us,
    /// Why the authorizer's account is not known.
    no_authorizer: Option<String>,
}

/// Who is to be paid, and who claims, by the config.
#[derive(Debug, Clone, Copy)]
struct Us {
    receiver: Address,
    authorizer: Option<Address>,
}

impl Node {
    async fn connect(books: &Books) -> Result<Self, Failure> {
        let expected = books.identity.chain_id;
        let Some(config) = &books.config else {
            let message = format!("--chain needs a config whose [chain] is that of the books, chain {expected}");
            return Err(Failure::message(Exit::Config, message).hint("name it with --config FILE"));
        };
        let nodes = connect::Nodes::of(&config.chain)?;
        let (shown, loopback) = (nodes.first.to_string(), nodes.is_loopback());
        let chain = nodes.open(config, None).await.map_err(|error| unreachable(&shown, error))?;
        if chain.chain_id() != expected {
            let found = chain.chain_id();
            let message = format!("the node behind {shown} is on chain {found}, the books are of chain {expected}");
            return Err(Failure::message(Exit::Chain, message).hint("correct [chain].rpc"));
        }
        let (authorizer, no_authorizer) = match authorizer(config, loopback) {
            Ok(address) => (Some(address), None),
            Err(why) => (None, Some(why)),
        };
        Ok(Self { chain, us: Us { receiver: config.receiver.pay_to, authorizer }, no_authorizer })
    }

    /// Reads every channel from the chain and then its row again: what is claimed was charged before, and that was
    /// durable before it was sent, so in this order nothing that happens meanwhile looks like a difference.
    async fn compare(
        &self,
        books: &mut Books,
        ids: &[ChannelId],
        settlement: &Domain,
        report: &mut Report,
        output: &Output,
    ) -> Outcome {
        let mut ticker = Ticker::new(output);
        let mut comparison = Comparison::default();
        let asked = |error: ChainError| {
            Failure::new(Exit::Chain, anyhow::Error::new(error).context("the chain cannot be read to the end"))
        };
        for ids in ids.chunks(CHANNELS_AT_ONCE) {
            ticker.show(|| format!("asking the chain: {} of {}", comparison.channels, report.audit.counts.channels));
            let views = self.chain.channels(ids).await.map_err(asked)?;
            // Opened anew: it shows its own moment, and the proxy's log grows for as long as one is kept.
            books.reader = books.source.open().map_err(damaged)?;
            for (id, view) in ids.iter().zip(&views) {
                // A row that cannot be read is among the findings already.
                if let Ok(Some(row)) = books.reader.channel(id) {
                    comparison.add(&row, view);
                    judge(&row, view, &self.us).into_iter().for_each(|finding| report.add(finding));
                }
            }
        }
        for id in std::mem::take(&mut report.audit.wallets) {
            let Ok(Some(row)) = books.reader.channel(&id) else { continue };
            let finding = self.ask_wallet(&row, settlement).await.map_err(asked)?;
            finding.into_iter().for_each(|finding| report.add(finding));
        }
        for (receiver, token) in comparison.claimed.keys().copied().take(MAX_RECEIVERS).collect::<Vec<_>>() {
            let owed = self.chain.receivers(receiver, token).await.map_err(asked)?;
            comparison.credited(receiver, token, owed).into_iter().for_each(|finding| report.add(finding));
        }
        if comparison.node_behind > 0 {
            let channels = counted(comparison.node_behind, "channel");
            report.add(
                Difference::NodeBehind.finding(None, format!("the node has older views of {channels} than the books")),
            );
        }
        if let Some(why) = &self.no_authorizer {
            report.add(Difference::NoAuthorizer.finding(None, format!("who can claim was not compared: {why}")));
        }
        report.settle_wallets();
        report.chain = Some(comparison);
        Ok(())
    }

    /// What is wrong with a voucher that only a wallet can judge.
    async fn ask_wallet(&self, row: &ChannelRow, settlement: &Domain) -> Result<Option<Finding>, ChainError> {
        let snapshot = &row.snapshot;
        let Some(latest) = &snapshot.latest else { return Ok(None) };
        let signed = SignedVoucher {
            channel: snapshot.id,
            max_claimable: latest.max_claimable,
            signature: latest.signature.clone(),
        };
        let digest = signed.digest(settlement);
        let evidence = self.chain.payer_evidence(snapshot.config.payer, digest, &signed.signature).await?;
        Ok(signed.verify_by_payer(settlement, &snapshot.config, evidence).err().map(|error| {
            let detail = format!("the voucher for {}: {error}", latest.max_claimable);
            Difference::WalletRefuses.finding(Some(snapshot.id), detail)
        }))
    }
}

fn authorizer(config: &Config, loopback: bool) -> Result<Address, String> {
    let reference: crate::chain::KeyRef =
        config.receiver.authorizer_key.as_str().parse().map_err(|error: crate::chain::KeyError| error.to_string())?;
    reference.load(loopback).map(|key| key.address()).map_err(|error| error.to_string())
}

fn unreachable(shown: &str, error: ChainError) -> Failure {
    let error = anyhow::Error::new(error).context(format!("the chain behind {shown} cannot be used"));
    Failure::new(Exit::Chain, error).hint("peaje check")
}

/// Where a channel's books and the chain differ. `view` was read before `row`.
fn judge(row: &ChannelRow, view: &View, us: &Us) -> Vec<Finding> {
    let snapshot = &row.snapshot;
    let (charged, known) = (snapshot.charged, &snapshot.view);
    let unclaimed = charged.saturating_sub(view.total_claimed);
    let mut findings = Vec::new();
    let mut found =
        |difference: Difference, detail: String| findings.push(difference.finding(Some(snapshot.id), detail));
    if view.total_claimed > charged {
        let detail = format!("{} is claimed on chain, and the books charged {charged}", view.total_claimed);
        found(Difference::ClaimedAboveCharged, detail);
    }
    // What an older block says is no news.
    if view.block >= known.block {
        if view.total_claimed < known.total_claimed {
            let detail = format!(
                "{} is claimed on chain at block {}; at block {} it was {}",
                view.total_claimed, view.block, known.block, known.total_claimed
            );
            found(Difference::ClaimLost, detail);
        }
        let leaving = view.withdrawal.map_or(Amount::ZERO, |withdrawal| withdrawal.amount);
        if charged > view.balance {
            let detail = format!("{charged} was charged, and the balance is {}", view.balance);
            found(Difference::Shortfall, detail);
        } else if !unclaimed.is_zero() && charged > view.balance.saturating_sub(leaving) {
            let detail = format!("a withdrawal of {leaving} was announced, and {unclaimed} is not claimed");
            found(Difference::Leaving, detail);
        }
    }
    // What is claimed in full needs nobody's signature any more.
    if !unclaimed.is_zero() {
        let config = &snapshot.config;
        if us.authorizer.is_some_and(|authorizer| authorizer != config.receiver_authorizer) {
            let detail = format!("{unclaimed} is owed, and claims must be signed by {}", config.receiver_authorizer);
            found(Difference::OtherAuthorizer, detail);
        }
        if us.receiver != config.receiver {
            found(Difference::OtherReceiver, format!("{unclaimed} is owed to {}", config.receiver));
        }
    }
    findings
}

/// What was compared.
#[derive(Debug, Default)]
struct Comparison {
    channels: u64,
    /// The newest block that was read.
    block: u64,
    node_behind: u64,
    /// By receiver and token, what the chain says was claimed of the channels, and the contract's account.
    claimed: BTreeMap<(Address, Address), (Amount, Option<Owed>)>,
}

impl Comparison {
    fn add(&mut self, row: &ChannelRow, view: &View) {
        self.channels = self.channels.saturating_add(1);
        self.block = self.block.max(view.block);
        // A proxy at work looks at newer blocks all the time; only a node that stays behind is worth a word.
        self.node_behind = self
            .node_behind
            .saturating_add(u64::from(row.snapshot.view.block > view.block.saturating_add(MAX_BLOCKS_BEHIND)));
        let config = &row.snapshot.config;
        let (claimed, _) = self.claimed.entry((config.receiver, config.token)).or_default();
        *claimed = claimed.saturating_add(view.total_claimed);
    }

    /// The contract credits a receiver with each claim, so it cannot have credited less than its channels' sum.
    fn credited(&mut self, receiver: Address, token: Address, owed: Owed) -> Option<Finding> {
        let (claimed, account) = self.claimed.entry((receiver, token)).or_default();
        *account = Some(owed);
        (owed.total_claimed < *claimed).then(|| {
            let credited = owed.total_claimed;
            let detail = format!("{claimed} is claimed of the channels, and {receiver} was credited {credited} in all");
            Difference::Credit.finding(None, detail)
        })
    }

    fn to_json(&self) -> Value {
        let receivers = self.claimed.iter().map(|((receiver, token), (claimed, owed))| {
            json!({
                "receiver": receiver,
                "token": token,
                "claimed": claimed,
                "credited": owed.map(|owed| owed.total_claimed),
                "settled": owed.map(|owed| owed.total_settled),
                "due": owed.map(|owed| owed.due()),
            })
        });
        json!({"channels": self.channels, "block": self.block, "receivers": receivers.collect::<Vec<_>>()})
    }
}

/// A node this far behind the books is behind, and not just a moment older.
const MAX_BLOCKS_BEHIND: u64 = 60;

/// All that was found.
struct Report {
    audit: Audit,
    findings: Vec<Finding>,
    problems: u64,
    notes: u64,
    chain: Option<Comparison>,
}

impl Report {
    fn new(mut audit: Audit) -> Self {
        let findings = std::mem::take(&mut audit.findings).into_iter().map(|finding| Finding {
            problem: finding.fault.is_problem(),
            what: finding.fault.as_str(),
            channel: finding.channel,
            detail: finding.detail,
            fix: finding.fault.advice(),
        });
        let findings = findings.collect();
        let (problems, notes) = (audit.problems, audit.notes);
        Self { audit, findings, problems, notes, chain: None }
    }

    fn add(&mut self, finding: Finding) {
        let counter = if finding.problem { &mut self.problems } else { &mut self.notes };
        *counter = counter.saturating_add(1);
        // Room for the chain's beside the audit's.
        if self.findings.len() < MAX_FINDINGS.saturating_mul(2) {
            self.findings.push(finding);
        }
    }

    /// The wallets were asked, so that they should be is no news any more.
    fn settle_wallets(&mut self) {
        let before = self.findings.len();
        self.findings.retain(|finding| finding.what != Fault::Wallet.as_str());
        let gone = before.saturating_sub(self.findings.len());
        self.notes = self.notes.saturating_sub(u64::try_from(gone).unwrap_or(u64::MAX));
    }

    fn left_out(&self) -> u64 {
        let kept = u64::try_from(self.findings.len()).unwrap_or(u64::MAX);
        self.problems.saturating_add(self.notes).saturating_sub(kept)
    }

    fn to_json(&self, books: &Books) -> Value {
        let Audit { counts, sums, unfinished, .. } = &self.audit;
        let findings = self.findings.iter().map(|finding| {
            json!({
                "severity": if finding.problem { "problem" } else { "note" },
                "what": finding.what,
                "channel": finding.channel,
                "detail": finding.detail,
                "fix": finding.fix,
            })
        });
        let tokens = sums.iter().map(|(token, sums)| {
            json!({
                "token": token,
                "decimals": books.decimals(*token),
                "charged": sums.charged,
                "charges": sums.charges,
                "adjusted_up": sums.adjusted_up,
                "adjusted_down": sums.adjusted_down,
                "claimed": sums.claimed,
                "claimed_here": sums.claimed_here,
                "unclaimed": sums.unclaimed,
                "settled_here": sums.settled_here,
            })
        });
        json!({
            "ok": self.problems == 0,
            "identity": books.identity_json(),
            "read": {
                "channels": counts.channels,
                "signatures": counts.signatures,
                "requests": counts.requests,
                "charges": counts.charges,
                "adjustments": counts.adjustments,
                "transactions": counts.transactions,
                "movements": counts.movements,
            },
            "sums": tokens.collect::<Vec<_>>(),
            "problems": self.problems,
            "notes": self.notes,
            "findings": findings.collect::<Vec<_>>(),
            "left_out": self.left_out(),
            "unfinished": unfinished.iter().map(on_its_way).collect::<Vec<_>>(),
            "chain": self.chain.as_ref().map(Comparison::to_json),
        })
    }

    fn in_words(&self, books: &Books, paint: Paint) -> String {
        let Audit { counts, sums, unfinished, .. } = &self.audit;
        let mut out = books.heading(paint);
        let mut fact = |text: String| out.push_str(&format!("  {} {text}\n", paint.dim("·")));
        fact(format!(
            "{}, {} of vouchers",
            counted(counts.channels, "channel"),
            counted(counts.signatures, "signature")
        ));
        let (requests, adjustments) = (counted(counts.requests, "request"), counted(counts.adjustments, "adjustment"));
        if sums.len() > 1 {
            fact(format!("{requests}, {adjustments}"));
        }
        for (token, sums) in sums {
            let decimals = books.decimals(*token);
            let money = |amount| money(amount, decimals);
            let net = net(sums.adjusted_up, sums.adjusted_down, decimals);
            let charged = format!("charged {}: {} by", money(sums.charged), money(sums.charges));
            match self.audit.sums.len() {
                1 => fact(format!("{charged} {requests}, {net} by {adjustments}")),
                _ => fact(format!("token {token}: {charged} requests, {net} by adjustments")),
            }
            fact(format!(
                "claimed {}, of it {} by transactions of these books; unclaimed {}",
                money(sums.claimed),
                money(sums.claimed_here),
                money(sums.unclaimed)
            ));
        }
        if let Some(chain) = &self.chain {
            fact(format!("compared with the chain at block {}: {}", chain.block, counted(chain.channels, "channel")));
            for ((receiver, token), (claimed, owed)) in &chain.claimed {
                let money = |amount| money(amount, books.decimals(*token));
                if let Some(owed) = owed {
                    fact(format!(
                        "claimed on chain {}; {receiver} was credited {} and paid {}",
                        money(*claimed),
                        money(owed.total_claimed),
                        money(owed.total_settled)
                    ));
                }
            }
        }
        for transaction in unfinished {
            let (purpose, hash) = (transaction.purpose.as_str(), transaction.hash);
            fact(format!("on its way: {purpose} {hash}, signed {}", iso(transaction.signed_at)));
        }
        for finding in &self.findings {
            let sign = if finding.problem { paint.red("✗") } else { paint.yellow("!") };
            let place = finding.channel.map(|channel| format!("channel {channel}: ")).unwrap_or_default();
            out.push_str(&format!("  {sign} {}: {place}{}\n", paint.bold(finding.what), finding.detail));
            out.push_str(&format!("    {} {}\n", paint.dim("→"), finding.fix));
        }
        if self.left_out() > 0 {
            out.push_str(&format!("  … and {} that are not listed\n", counted(self.left_out(), "finding")));
        }
        let verdict = match (self.problems, self.notes) {
            (0, 0) => paint.green("the books are true"),
            (0, notes) => paint.green(&format!("the books are true; {}", counted(notes, "note"))),
            (problems, 0) => paint.red(&counted(problems, "problem")),
            (problems, notes) => paint.red(&format!("{}, {}", counted(problems, "problem"), counted(notes, "note"))),
        };
        out.push_str(&format!("{verdict}\n"));
        out
    }
}

/// A transaction whose end is not known; not its bytes, which anybody could send.
fn on_its_way(transaction: &Transaction) -> Value {
    json!({
        "hash": transaction.hash,
        "purpose": transaction.purpose.as_str(),
        "sender": transaction.sender,
        "nonce": transaction.nonce,
        "signed_at": iso(transaction.signed_at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{LatestVoucher, Snapshot, Withdrawal};
    use crate::protocol::{ChannelConfig, Hash, Signature};
    use crate::store::Identity;

    const US: Us = Us { receiver: Address([3; 20]), authorizer: Some(Address([4; 20])) };

    /// 1000 on it, charged 500, 200 claimed, seen at block 10.
    fn view() -> View {
        View { block: 10, balance: Amount::new(1_000), total_claimed: Amount::new(200), ..View::default() }
    }

    fn row() -> ChannelRow {
        let config = ChannelConfig {
            payer: Address([1; 20]),
            payer_authorizer: Address([2; 20]),
            receiver: US.receiver,
            receiver_authorizer: Address([4; 20]),
            token: Address([5; 20]),
            withdraw_delay: 900,
            salt: Hash([6; 32]),
        };
        let signature = Signature::from_bytes([1; 65]).unwrap();
        let snapshot = Snapshot {
            id: ChannelId([7; 32]),
            config,
            view: view(),
            viewed_at: 0,
            charged: Amount::new(500),
            latest: Some(LatestVoucher { max_claimable: Amount::new(600), signature }),
            spent_up_to: None,
            open_refund: None,
            unclaimed_since: None,
        };
        ChannelRow { snapshot, version: 1, last_deposit: None }
    }

    /// What is found where the chain says something else than the books.
    fn found(change: impl Fn(&mut View)) -> Vec<&'static str> {
        let mut view = view();
        change(&mut view);
        judge(&row(), &view, &US).iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn claims_on_chain_are_at_most_what_was_charged() {
        assert_eq!(found(|_| {}), [""; 0]);
        assert_eq!(found(|view| view.total_claimed = Amount::new(500)), [""; 0]);
        assert_eq!(found(|view| view.total_claimed = Amount::new(501)), ["chain_claimed_more"]);
    }

    #[test]
    fn a_claim_does_not_vanish_but_an_older_block_may_not_have_it() {
        let lost = |block| {
            found(move |view| {
                view.total_claimed = Amount::new(199);
                view.block = block;
            })
        };
        assert_eq!((lost(11), lost(10), lost(9)), (vec!["chain_claimed_less"], vec!["chain_claimed_less"], vec![]));
    }

    #[test]
    fn what_is_not_covered_or_is_leaving_is_a_note() {
        let leaving = |amount| Some(Withdrawal { amount: Amount::new(amount), initiated_at: 0 });
        assert_eq!(found(|view| view.balance = Amount::new(500)), [""; 0]);
        assert_eq!(found(|view| view.balance = Amount::new(499)), ["shortfall"]);
        assert_eq!(found(|view| view.withdrawal = leaving(500)), [""; 0]);
        assert_eq!(found(|view| view.withdrawal = leaving(501)), ["leaving"]);
        let claimed = |view: &mut View| {
            view.withdrawal = leaving(800);
            view.total_claimed = Amount::new(500);
        };
        assert_eq!(found(claimed), [""; 0]);
        assert!(!Difference::Shortfall.is_problem() && !Difference::Leaving.is_problem());
        assert!(Difference::ClaimedAboveCharged.is_problem() && Difference::ClaimLost.is_problem());
    }

    #[test]
    fn who_can_claim_matters_only_while_something_is_owed() {
        let stranger = Us { receiver: Address([8; 20]), authorizer: Some(Address([9; 20])) };
        let whats =
            |us: &Us, view: View| judge(&row(), &view, us).iter().map(|finding| finding.what).collect::<Vec<_>>();
        assert_eq!(whats(&stranger, view()), ["other_authorizer", "other_receiver"]);
        assert_eq!(whats(&Us { authorizer: None, ..US }, view()), [""; 0]);
        assert_eq!(whats(&stranger, View { total_claimed: Amount::new(500), ..view() }), [""; 0]);
    }

    #[test]
    fn the_contract_credits_what_is_claimed() {
        let owed = |units| Owed { total_claimed: Amount::new(units), total_settled: Amount::ZERO };
        let credit = |units| {
            let mut comparison = Comparison::default();
            comparison.add(&row(), &view());
            comparison.credited(US.receiver, Address([5; 20]), owed(units)).map(|finding| finding.what)
        };
        assert_eq!((credit(200), credit(201), credit(199)), (None, None, Some("chain_credit")));
    }

    #[test]
    fn a_node_a_moment_behind_is_not_behind() {
        let behind = |block| {
            let mut comparison = Comparison::default();
            let mut row = row();
            row.snapshot.view.block = 1_000;
            comparison.add(&row, &View { block, ..view() });
            comparison.node_behind
        };
        assert_eq!((behind(1_000), behind(940), behind(939)), (0, 0, 1));
    }

    fn report() -> Report {
        let audit = Audit::of(Identity { chain_id: 1, settlement: Address::ZERO });
        Report::new(audit)
    }

    #[test]
    fn wallets_that_were_asked_are_no_news() {
        let mut audit = report().audit;
        let finding = |fault| crate::store::audit::Finding { fault, channel: None, detail: String::new() };
        audit.findings = vec![finding(Fault::Wallet), finding(Fault::Sum), finding(Fault::Behind)];
        (audit.problems, audit.notes) = (1, 2);
        let mut report = Report::new(audit);
        report.settle_wallets();
        assert_eq!((report.problems, report.notes, report.left_out()), (1, 1, 0));
        assert_eq!(report.findings.iter().map(|finding| finding.what).collect::<Vec<_>>(), ["sum", "behind"]);
    }
}
