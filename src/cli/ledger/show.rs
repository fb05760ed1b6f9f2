//! `peaje ledger show`: the channels, or one of them.

use std::collections::{BTreeMap, VecDeque};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::books::{Books, BooksArgs, counted, damaged, money};
use super::lines;
use super::table::{Side, aligned, short};
use super::time::iso;
use crate::cli::output::Paint;
use crate::cli::{Exit, Failure, Outcome, Output};
use crate::ledger::{Channel, Violation};
use crate::protocol::{Address, Amount, ChannelId};
use crate::store::{AdjustmentLine, ChannelRow, Filter, MovementLine, StoreError, TransactionLine};

const MORE: &str = "\
One line a channel: what it was charged in all, what of that is claimed on
chain and what is not, its balance (deposits less refunds and withdrawals), and
what is at risk: charged, not claimed, and not covered once a withdrawal or a
refund that is on its way has taken its part. The totals are of every channel
that the filters let through, those beyond the limit included.

On a terminal amounts are dollars where the token's decimals are known; in JSON
they are always atomic units, as text. Signatures are never shown.

Examples:
  peaje ledger show
      A table of the channels that owe most, and the totals.
  peaje ledger show 0x4f233bde…93bc
      Everything about one channel. The short form that the table shows will
      do, and so will the first few digits.
  peaje ledger show --withdrawing --sort risk
      Who is leaving, and what that puts at risk.
  peaje ledger show --json | jq .totals
      The sums for programs; stdout is JSON whenever it is no terminal.
  peaje ledger show --file peaje-2026-11-22.sqlite3
      What a backup holds.

Environment:
  PEAJE_CONFIG   the config file, where --config is not given
  NO_COLOR       no colours";

/// The arguments of `peaje ledger show`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", crate::cli::exit::HELP))]
pub struct ShowArgs {
    /// One channel, with all that is known of it: its id, its short form, or its first digits.
    #[arg(value_name = "CHANNEL", conflicts_with_all = ["payer", "unclaimed", "withdrawing", "sort"])]
    pub channel: Option<ChannelName>,
    #[command(flatten)]
    /// Where the books are.
    pub books: BooksArgs,
    /// Channels of this payer only.
    #[arg(long, value_name = "ADDRESS")]
    pub payer: Option<Address>,
    /// Channels that owe something only.
    #[arg(long)]
    pub unclaimed: bool,
    /// Channels whose payer announced a withdrawal only.
    #[arg(long)]
    pub withdrawing: bool,
    /// What comes first.
    #[arg(long, value_enum, value_name = "BY", default_value_t = Sort::Unclaimed)]
    pub sort: Sort,
    /// How many channels to list at most, or of one channel how many of its latest transactions; 0 for totals only.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: usize,
    /// Print JSON, as is done anyway when stdout is no terminal.
    #[arg(long)]
    pub json: bool,
}

/// In which order channels are listed; always the largest first, and by id where that is equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// What was charged and is not claimed.
    Unclaimed,
    /// What was charged in all.
    Charged,
    /// What is on the channel.
    Balance,
    /// What is at risk.
    Risk,
    /// When the chain was last asked, the latest first.
    Viewed,
    /// Their ids only.
    Id,
}

/// How a channel is asked for: by its id, or by as much of it as tells it apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelName {
    start: String,
    end: String,
}

/// Fewer digits are asked for by mistake only.
const MIN_DIGITS: usize = 4;
const ID_DIGITS: usize = 64;

impl FromStr for ChannelName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "expected a channel's id: 0x and 64 hex digits, the first few of them, or 0x1234…cdef".to_owned();
        let digits = text.strip_prefix("0x").ok_or_else(form)?;
        let (start, end) = digits.split_once('…').or_else(|| digits.split_once("...")).unwrap_or((digits, ""));
        let count = start.len().saturating_add(end.len());
        let all_hex = start.chars().chain(end.chars()).all(|digit| digit.is_ascii_hexdigit());
        if !all_hex || start.len() < MIN_DIGITS || count > ID_DIGITS {
            return Err(form());
        }
        Ok(Self { start: format!("0x{}", start.to_ascii_lowercase()), end: end.to_ascii_lowercase() })
    }
}

impl ChannelName {
    fn whole(&self) -> Option<ChannelId> {
        self.start.parse().ok().filter(|_| self.end.is_empty())
    }

    fn names(&self, id: &ChannelId) -> bool {
        let text = id.to_string();
        text.starts_with(&self.start) && text.ends_with(&self.end)
    }
}

/// A channel in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    id: ChannelId,
    payer: Address,
    token: Address,
    charged: Amount,
    claimed: Amount,
    balance: Amount,
    /// Charged, not claimed, and not covered once all that is leaving has left.
    at_risk: Amount,
    /// Of a withdrawal that was announced: how much, and when it can be taken.
    leaving: Option<(Amount, u64)>,
    viewed_at: u64,
    violation: Option<Violation>,
}

impl Line {
    fn of(row: &ChannelRow) -> Self {
        let snapshot = &row.snapshot;
        let (view, config) = (&snapshot.view, &snapshot.config);
        let unclaimed = snapshot.charged.saturating_sub(view.total_claimed);
        let restored = Channel::restore(snapshot.clone());
        let at_risk = match &restored {
            Ok(channel) => channel.charged().saturating_sub(channel.ceiling()).min(unclaimed),
            // What cannot be true covers nothing.
            Err(_) => unclaimed,
        };
        let ready = |initiated_at: u64| initiated_at.saturating_add(config.withdraw_delay);
        Self {
            id: snapshot.id,
            payer: config.payer,
            token: config.token,
            charged: snapshot.charged,
            claimed: view.total_claimed,
            balance: view.balance,
            at_risk,
            leaving: view.withdrawal.map(|withdrawal| (withdrawal.amount, ready(withdrawal.initiated_at))),
            viewed_at: snapshot.viewed_at,
            violation: restored.err(),
        }
    }

    fn unclaimed(&self) -> Amount {
        self.charged.saturating_sub(self.claimed)
    }

    fn shortfall(&self) -> Amount {
        self.charged.saturating_sub(self.balance)
    }

    /// What a list is sorted by; smaller comes first.
    fn rank(&self, sort: Sort) -> (std::cmp::Reverse<u128>, ChannelId) {
        let size = match sort {
            Sort::Unclaimed => self.unclaimed().units(),
            Sort::Charged => self.charged.units(),
            Sort::Balance => self.balance.units(),
            Sort::Risk => self.at_risk.units(),
            Sort::Viewed => u128::from(self.viewed_at),
            Sort::Id => 0,
        };
        (std::cmp::Reverse(size), self.id)
    }

    fn to_json(self) -> Value {
        json!({
            "channel": self.id,
            "payer": self.payer,
            "token": self.token,
            "charged": self.charged,
            "claimed": self.claimed,
            "unclaimed": self.unclaimed(),
            "balance": self.balance,
            "at_risk": self.at_risk,
            "shortfall": self.shortfall(),
            "withdrawing": self.leaving.is_some(),
            "withdrawal": self.leaving.map(|(amount, at)| json!({"amount": amount, "possible_at": iso(at)})),
            "viewed_at": iso(self.viewed_at),
            "violation": self.violation.map(|violation| violation.to_string()),
        })
    }

    fn remark(&self, decimals: Option<u8>) -> String {
        if let Some(violation) = self.violation {
            return format!("damaged: {violation}");
        }
        let leaving =
            self.leaving.map(|(amount, at)| format!("withdrawing {} from {}", money(amount, decimals), iso(at)));
        let short = Some(self.shortfall()).filter(|short| !short.is_zero());
        let short = short.map(|short| format!("{} not covered", money(short, decimals)));
        leaving.into_iter().chain(short).collect::<Vec<_>>().join(", ")
    }
}

/// Sums over channels of one token, or of several where units are all that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Totals {
    channels: u64,
    charged: Amount,
    claimed: Amount,
    unclaimed: Amount,
    balance: Amount,
    at_risk: Amount,
    withdrawing: u64,
}

impl Totals {
    fn add(&mut self, line: &Line) {
        let add = |sum: &mut Amount, amount| *sum = sum.checked_add(amount).unwrap_or(Amount::MAX);
        self.channels = self.channels.saturating_add(1);
        add(&mut self.charged, line.charged);
        add(&mut self.claimed, line.claimed);
        add(&mut self.unclaimed, line.unclaimed());
        add(&mut self.balance, line.balance);
        add(&mut self.at_risk, line.at_risk);
        self.withdrawing = self.withdrawing.saturating_add(u64::from(line.leaving.is_some()));
    }

    fn to_json(self) -> Value {
        json!({
            "channels": self.channels,
            "charged": self.charged,
            "claimed": self.claimed,
            "unclaimed": self.unclaimed,
            "balance": self.balance,
            "at_risk": self.at_risk,
            "withdrawing": self.withdrawing,
        })
    }

    fn in_words(&self, decimals: Option<u8>) -> String {
        let money = |amount| money(amount, decimals);
        format!(
            "{}: charged {}, claimed {}, unclaimed {}, balance {}, at risk {}",
            counted(self.channels, "channel"),
            money(self.charged),
            money(self.claimed),
            money(self.unclaimed),
            money(self.balance),
            money(self.at_risk)
        )
    }
}

/// The first channels of a list in its order, however long it is; and the sums of all.
#[derive(Debug)]
struct List {
    limit: usize,
    sort: Sort,
    lines: Vec<Line>,
    totals: Totals,
    by_token: BTreeMap<Address, Totals>,
    damaged: u64,
}

impl List {
    fn new(limit: usize, sort: Sort) -> Self {
        Self { limit, sort, lines: Vec::new(), totals: Totals::default(), by_token: BTreeMap::new(), damaged: 0 }
    }

    fn add(&mut self, line: Line) {
        self.totals.add(&line);
        self.by_token.entry(line.token).or_default().add(&line);
        self.lines.push(line);
        // Sorting now and then costs less than keeping the order, and far less than keeping everything.
        if self.lines.len() > self.limit.saturating_mul(2).saturating_add(1_024) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.lines.sort_unstable_by_key(|line| line.rank(self.sort));
        self.lines.truncate(self.limit);
    }

    fn left_out(&self) -> u64 {
        self.totals.channels.saturating_sub(u64::try_from(self.lines.len()).unwrap_or(u64::MAX))
    }
}

/// Reads and prints.
pub(super) fn run(args: &ShowArgs, output: &Output) -> Outcome {
    let books = args.books.open()?;
    let as_json = output.json_result(args.json);
    if let Some(name) = &args.channel {
        let file = File::read(&books, find(&books, name)?, args.limit)?;
        if as_json {
            output.json(&file.to_json(&books));
        } else {
            output.text(&file.in_words(&books, output.paint()));
        }
        return Ok(());
    }
    let list = list(&books, args)?;
    if as_json {
        output.json(&list_json(&books, &list));
    } else {
        output.text(&list_in_words(&books, &list, output.paint()));
    }
    if list.damaged == 0 {
        return Ok(());
    }
    let rows = counted(list.damaged, "row");
    Err(Failure::message(Exit::Books, format!("{rows} of channels cannot be read and are in no sum"))
        .hint("peaje ledger verify lists what is damaged"))
}

fn list(books: &Books, args: &ShowArgs) -> Result<List, Failure> {
    let mut list = List::new(args.limit, args.sort);
    let wanted = |line: &Line| {
        args.payer.is_none_or(|payer| line.payer == payer)
            && (!args.unclaimed || !line.unclaimed().is_zero())
            && (!args.withdrawing || line.leaving.is_some())
    };
    let read = books.reader.channels_checked(&mut |row| {
        match row {
            Ok(row) => {
                let line = Line::of(&row);
                if wanted(&line) {
                    list.add(line);
                }
            }
            Err(StoreError::Damaged { .. } | StoreError::Impossible { .. }) => {
                list.damaged = list.damaged.saturating_add(1);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    });
    read.map_err(damaged)?;
    list.cut();
    Ok(list)
}

fn list_json(books: &Books, list: &List) -> Value {
    let tokens = list.by_token.iter().map(|(token, totals)| {
        let mut value = totals.to_json();
        if let Some(object) = value.as_object_mut() {
            object.insert("token".to_owned(), json!(token));
            object.insert("decimals".to_owned(), json!(books.decimals(*token)));
        }
        value
    });
    json!({
        "identity": books.identity_json(),
        "channels": list.lines.iter().map(|line| line.to_json()).collect::<Vec<_>>(),
        "left_out": list.left_out(),
        "damaged": list.damaged,
        "totals": list.totals.to_json(),
        "tokens": tokens.collect::<Vec<_>>(),
    })
}

const SIDES: [Side; 8] =
    [Side::Left, Side::Left, Side::Right, Side::Right, Side::Right, Side::Right, Side::Right, Side::Left];
const HEADINGS: [&str; 8] = ["CHANNEL", "PAYER", "CHARGED", "CLAIMED", "UNCLAIMED", "BALANCE", "AT RISK", ""];

fn list_in_words(books: &Books, list: &List, paint: Paint) -> String {
    let mut out = books.heading(paint);
    if list.totals.channels == 0 {
        out.push_str("no channels\n");
        return out;
    }
    if !list.lines.is_empty() {
        out.push('\n');
        let cells = list.lines.iter().map(|line| {
            let decimals = books.decimals(line.token);
            let money = |amount| money(amount, decimals);
            vec![
                short(&line.id.to_string()),
                short(&line.payer.to_string()),
                money(line.charged),
                money(line.claimed),
                money(line.unclaimed()),
                money(line.balance),
                money(line.at_risk),
                line.remark(decimals),
            ]
        });
        let rows: Vec<_> = std::iter::once(HEADINGS.map(str::to_owned).to_vec()).chain(cells).collect();
        let mut text = aligned(&SIDES, &rows).into_iter();
        out.extend(text.next().map(|heading| format!("{}\n", paint.bold(&heading))));
        for (text, line) in text.zip(&list.lines) {
            let text = match (line.violation, line.at_risk.is_zero()) {
                (Some(_), _) => paint.red(&text),
                (None, false) => paint.yellow(&text),
                (None, true) => text,
            };
            out.push_str(&format!("{text}\n"));
        }
    }
    if list.left_out() > 0 {
        let more = format!("… and {} that are not listed (--limit)", counted(list.left_out(), "channel"));
        out.push_str(&format!("{}\n", paint.dim(&more)));
    }
    out.push('\n');
    for (token, totals) in &list.by_token {
        // Sums of two tokens have nothing in common, so each has its own.
        let of = if list.by_token.len() > 1 { format!("token {}, ", short(&token.to_string())) } else { String::new() };
        out.push_str(&format!("{of}{}\n", paint.bold(&totals.in_words(books.decimals(*token)))));
    }
    out
}

// One channel.

/// How many channels are named where a name is not enough.
const MAX_NAMED: usize = 5;

pub(super) fn find(books: &Books, name: &ChannelName) -> Result<ChannelRow, Failure> {
    let unknown = || Failure::message(Exit::Failed, "there is no such channel in these books");
    if let Some(id) = name.whole() {
        return books.reader.channel(&id).map_err(damaged)?.ok_or_else(unknown);
    }
    let mut found: Vec<ChannelRow> = Vec::new();
    let read = books.reader.channels_checked(&mut |row| {
        if let Some(row) = row.ok().filter(|row| found.len() <= MAX_NAMED && name.names(&row.snapshot.id)) {
            found.push(row);
        }
        Ok(())
    });
    read.map_err(damaged)?;
    if found.len() > 1 {
        let ids: Vec<_> = found.iter().take(MAX_NAMED).map(|row| row.snapshot.id.to_string()).collect();
        let more = if found.len() > MAX_NAMED { ", and more" } else { "" };
        return Err(Failure::message(Exit::Failed, format!("that names several channels: {}{more}", ids.join(", ")))
            .hint("write more of its digits"));
    }
    found.pop().ok_or_else(unknown)
}

/// What a channel was charged on one route.
#[derive(Debug, Clone, Copy, Default)]
struct RouteSum {
    requests: u64,
    amount: Amount,
    first: Option<u64>,
    last: Option<u64>,
}

/// The latest of many lines.
#[derive(Debug)]
struct Latest<L> {
    limit: usize,
    lines: VecDeque<L>,
    left_out: u64,
}

impl<L> Latest<L> {
    fn new(limit: usize) -> Self {
        Self { limit, lines: VecDeque::new(), left_out: 0 }
    }

    fn add(&mut self, line: L) {
        self.lines.push_back(line);
        if self.lines.len() > self.limit {
            self.lines.pop_front();
            self.left_out = self.left_out.saturating_add(1);
        }
    }
}

/// All that is known of a channel.
#[derive(Debug)]
struct File {
    row: ChannelRow,
    line: Line,
    routes: BTreeMap<String, RouteSum>,
    adjustments: Latest<AdjustmentLine>,
    transactions: Latest<TransactionLine>,
    movements: Latest<MovementLine>,
}

impl File {
    fn read(books: &Books, row: ChannelRow, limit: usize) -> Result<Self, Failure> {
        let id = row.snapshot.id;
        let mut file = Self {
            line: Line::of(&row),
            row,
            routes: BTreeMap::new(),
            adjustments: Latest::new(limit),
            transactions: Latest::new(limit),
            movements: Latest::new(limit),
        };
        let of_it = Filter { channel: Some(id), ..Filter::default() };
        let reader = &books.reader;
        let read = reader.charges(&of_it, &mut |charge| {
            let sum = file.routes.entry(charge.route).or_default();
            sum.requests = sum.requests.saturating_add(charge.requests);
            sum.amount = sum.amount.checked_add(charge.amount).unwrap_or(Amount::MAX);
            sum.first = Some(sum.first.map_or(charge.minute, |first| first.min(charge.minute)));
            sum.last = sum.last.max(Some(charge.minute));
            Ok(())
        });
        read.map_err(damaged)?;
        let read = reader.adjustments(&of_it, &mut |line| {
            file.adjustments.add(line);
            Ok(())
        });
        read.map_err(damaged)?;
        let read = reader.transactions(&of_it, &mut |line| {
            file.transactions.add(line);
            Ok(())
        });
        read.map_err(damaged)?;
        let read = reader.movements(&of_it, &mut |line| {
            file.movements.add(line);
            Ok(())
        });
        read.map_err(damaged)?;
        Ok(file)
    }
}

impl File {
    fn charges(&self) -> Amount {
        self.routes.values().fold(Amount::ZERO, |sum, route| sum.checked_add(route.amount).unwrap_or(Amount::MAX))
    }

    fn to_json(&self, books: &Books) -> Value {
        let snapshot = &self.row.snapshot;
        let (config, view) = (&snapshot.config, &snapshot.view);
        let mut channel = self.line.to_json();
        if let Some(object) = channel.as_object_mut() {
            let more = json!({
                "decimals": books.decimals(config.token),
                "terms": config,
                "view_block": view.block,
                "refund_nonce": view.refund_nonce.to_string(),
                // Its signature is worth this much, and is not shown.
                "voucher": snapshot.latest.as_ref().map(|latest| json!({"max_claimable": latest.max_claimable})),
                "open_refund": snapshot.open_refund
                    .map(|refund| json!({"nonce": refund.nonce.to_string(), "amount": refund.amount})),
                "last_deposit": self.row.last_deposit
                    .map(|deposit| json!({"salt": deposit.salt, "charged": deposit.charged})),
                "version": self.row.version,
            });
            object.extend(more.as_object().cloned().unwrap_or_default());
        }
        let routes = self.routes.iter().map(|(route, sum)| {
            json!({
                "route": route, "requests": sum.requests, "amount": sum.amount,
                "first": sum.first.map(iso), "last": sum.last.map(iso),
            })
        });
        json!({
            "identity": books.identity_json(),
            "channel": channel,
            "routes": routes.collect::<Vec<_>>(),
            "charges": self.charges(),
            "adjustments": self.adjustments.lines.iter().map(lines::adjustment).collect::<Vec<_>>(),
            "transactions": self.transactions.lines.iter().map(lines::transaction).collect::<Vec<_>>(),
            "movements": self.movements.lines.iter().map(lines::movement).collect::<Vec<_>>(),
            "left_out": {
                "adjustments": self.adjustments.left_out,
                "transactions": self.transactions.left_out,
                "movements": self.movements.left_out,
            },
        })
    }

    fn in_words(&self, books: &Books, paint: Paint) -> String {
        let snapshot = &self.row.snapshot;
        let (config, view, line) = (&snapshot.config, &snapshot.view, &self.line);
        let decimals = books.decimals(config.token);
        let money = |amount| money(amount, decimals);
        let mut out = format!("{}\n", paint.bold(&format!("channel {}", line.id)));
        let mut fact =
            |name: &str, value: String| out.push_str(&format!("  {} {value}\n", paint.dim(&format!("{name:>12}"))));
        fact("payer", line.payer.to_string());
        fact(
            "vouchers by",
            if config.payer_authorizer.is_zero() {
                "the payer".to_owned()
            } else {
                config.payer_authorizer.to_string()
            },
        );
        fact("receiver", config.receiver.to_string());
        fact("claims by", config.receiver_authorizer.to_string());
        fact("token", config.token.to_string());
        fact(
            "withdrawals",
            format!(
                "{} after they are announced",
                crate::config::write_duration(std::time::Duration::from_secs(config.withdraw_delay))
            ),
        );
        fact("charged", money(line.charged));
        fact("claimed", money(line.claimed));
        fact("unclaimed", money(line.unclaimed()));
        fact("balance", money(line.balance));
        fact("at risk", money(line.at_risk));
        match &snapshot.latest {
            Some(latest) => fact("voucher", format!("covers {}", money(latest.max_claimable))),
            None => fact("voucher", "none that is not claimed".to_owned()),
        }
        if let Some(refund) = snapshot.open_refund {
            fact("refund", format!("{} was signed and may still be paid", money(refund.amount)));
        }
        let remark = line.remark(decimals);
        if !remark.is_empty() {
            fact("note", remark);
        }
        fact("chain read", format!("{}, block {}", iso(line.viewed_at), view.block));

        let mut section = |title: &str, left_out: u64, sides: &[Side], rows: Vec<Vec<String>>| {
            if rows.is_empty() {
                return;
            }
            out.push_str(&format!("\n{}\n", paint.bold(title)));
            out.extend(aligned(sides, &rows).iter().map(|row| format!("  {row}\n")));
            if left_out > 0 {
                out.push_str(&format!("  {}\n", paint.dim(&format!("… and {left_out} before these (--limit)"))));
            }
        };
        let routes = self.routes.iter().map(|(route, sum)| {
            vec![
                printable(route),
                counted(sum.requests, "request"),
                money(sum.amount),
                sum.last.map(|last| format!("last {}", iso(last))).unwrap_or_default(),
            ]
        });
        section("charges", 0, &[Side::Left, Side::Right, Side::Right, Side::Left], routes.collect());
        let adjustments = self.adjustments.lines.iter().map(|line| {
            vec![iso(line.at), money(line.from), "→".to_owned(), money(line.to), line.why.as_str().to_owned()]
        });
        let sides = [Side::Left, Side::Right, Side::Left, Side::Right, Side::Left];
        section("adjustments", self.adjustments.left_out, &sides, adjustments.collect());
        let movements = self.movements.lines.iter().map(|line| {
            vec![iso(line.at), line.kind.clone(), money(line.amount), short(&line.transaction.to_string())]
        });
        let sides = [Side::Left, Side::Left, Side::Right, Side::Left];
        section("movements", self.movements.left_out, &sides, movements.collect());
        let transactions = self
            .transactions
            .lines
            .iter()
            .map(|line| vec![iso(line.signed_at), line.purpose.clone(), line.state.clone(), line.hash.to_string()]);
        let sides = [Side::Left; 4];
        section("transactions", self.transactions.left_out, &sides, transactions.collect());
        out
    }
}

/// A name for a terminal: what would steer it is shown as what it is.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{LatestVoucher, SentRefund, Snapshot, View, Withdrawal};
    use crate::protocol::{ChannelConfig, Hash, Signature};

    /// A channel with 1000 on it, charged 500, of which 200 is claimed.
    fn row(number: u8) -> ChannelRow {
        let config = ChannelConfig {
            payer: Address([number; 20]),
            payer_authorizer: Address([number; 20]),
            receiver: Address([3; 20]),
            receiver_authorizer: Address([4; 20]),
            token: Address([5; 20]),
            withdraw_delay: 900,
            salt: Hash([number; 32]),
        };
        let latest =
            LatestVoucher { max_claimable: Amount::new(600), signature: Signature::from_bytes([1; 65]).unwrap() };
        let view = View { balance: Amount::new(1_000), total_claimed: Amount::new(200), ..View::default() };
        let snapshot = Snapshot {
            id: ChannelId([number; 32]),
            config,
            view,
            viewed_at: 1_795_341_600,
            charged: Amount::new(500),
            latest: Some(latest),
            open_refund: None,
        };
        ChannelRow { snapshot, version: 1, last_deposit: None }
    }

    #[test]
    fn what_is_leaving_puts_the_unclaimed_at_risk() {
        let risk = |change: &dyn Fn(&mut Snapshot)| {
            let mut row = row(1);
            change(&mut row.snapshot);
            Line::of(&row).at_risk.units()
        };
        let withdraw = |amount| Some(Withdrawal { amount: Amount::new(amount), initiated_at: 0 });
        let refund = |amount| Some(SentRefund { nonce: 0, amount: Amount::new(amount) });
        assert_eq!(risk(&|_| {}), 0);
        assert_eq!(risk(&|snapshot| snapshot.view.withdrawal = withdraw(500)), 0);
        assert_eq!(risk(&|snapshot| snapshot.view.withdrawal = withdraw(501)), 1);
        assert_eq!(risk(&|snapshot| snapshot.view.withdrawal = withdraw(800)), 300);
        assert_eq!(risk(&|snapshot| snapshot.view.withdrawal = withdraw(1_000)), 300);
        assert_eq!(risk(&|snapshot| snapshot.open_refund = refund(600)), 100);
        assert_eq!(risk(&|snapshot| snapshot.view.balance = Amount::new(400)), 100);
        assert_eq!(risk(&|snapshot| snapshot.latest = None), 300);
    }

    #[test]
    fn a_list_keeps_the_first_and_adds_up_all() {
        let line = |number: u8| {
            let mut row = row(number);
            row.snapshot.charged = Amount::new(200 + u128::from(number));
            Line::of(&row)
        };
        let mut list = List::new(3, Sort::Unclaimed);
        for number in (1..=200).chain(201..=250) {
            list.add(line(number));
        }
        list.cut();
        let ids: Vec<_> = list.lines.iter().map(|line| line.id.0[0]).collect();
        assert_eq!(ids, [250, 249, 248]);
        assert_eq!((list.totals.channels, list.left_out()), (250, 247));
        assert_eq!(list.totals.unclaimed, Amount::new((1..=250).sum()));
        assert_eq!(list.totals.claimed, Amount::new(250 * 200));
        // Equal ones are in the order of their ids, and a limit of nothing lists nothing.
        let mut by_id = List::new(2, Sort::Balance);
        [3, 1, 2].into_iter().for_each(|number| by_id.add(line(number)));
        by_id.cut();
        assert_eq!(by_id.lines.iter().map(|line| line.id.0[0]).collect::<Vec<_>>(), [1, 2]);
        let mut none = List::new(0, Sort::Id);
        (0..3_000_u32).for_each(|_| none.add(line(1)));
        none.cut();
        assert_eq!((none.lines.len(), none.left_out(), none.totals.channels), (0, 3_000, 3_000));
    }

    #[test]
    fn a_channel_is_named_by_what_tells_it_apart() {
        let id: ChannelId = format!("0x{}", "0123456789abcdef".repeat(4)).parse().unwrap();
        let names = |text: &str| text.parse::<ChannelName>().map(|name| (name.names(&id), name.whole().is_some()));
        assert_eq!(names(&id.to_string()), Ok((true, true)));
        assert_eq!(names(&id.to_string().to_uppercase().replace("0X", "0x")), Ok((true, true)));
        assert_eq!(names(&short(&id.to_string())), Ok((true, false)));
        assert_eq!(names("0x0123...cdef"), Ok((true, false)));
        assert_eq!(names("0x0123"), Ok((true, false)));
        assert_eq!(names("0x0124"), Ok((false, false)));
        assert_eq!(names("0x0123…cdee"), Ok((false, false)));
        for bad in ["", "0x", "0x012", "0123", "0x01…cdef", "0x012g", "0x0123…xyz", &format!("{id}0")] {
            assert!(names(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_latest_are_kept() {
        let mut latest = Latest::new(2);
        (0..5).for_each(|number| latest.add(number));
        assert_eq!((Vec::from(latest.lines), latest.left_out), (vec![3, 4], 3));
    }

    #[test]
    fn no_name_steers_the_terminal() {
        assert_eq!(printable("/v1\u{1b}[2J\n"), "/v1\\u{1b}[2J\\n");
    }
}
