//! `peaje ledger show`: the channels, or one of them.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::books::{Books, BooksArgs, counted, damaged, money};
use super::channel::{ChannelName, Dossier, find};
use super::table::{Side, aligned, short};
use super::time::iso;
use crate::cli::output::Paint;
use crate::cli::{Exit, Failure, Outcome, Output};
use crate::ledger::{Channel, Violation};
use crate::protocol::{Address, Amount, ChannelId};
use crate::store::{ChannelRow, StoreError};

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

/// A channel in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) id: ChannelId,
    payer: Address,
    token: Address,
    pub(super) charged: Amount,
    pub(super) claimed: Amount,
    pub(super) balance: Amount,
    /// Charged, not claimed, and not covered once all that is leaving has left.
    pub(super) at_risk: Amount,
    /// Of a withdrawal that was announced: how much, and when it can be taken.
    leaving: Option<(Amount, u64)>,
    pub(super) viewed_at: u64,
    violation: Option<Violation>,
}

impl Line {
    pub(super) fn of(row: &ChannelRow) -> Self {
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

    pub(super) fn unclaimed(&self) -> Amount {
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

    pub(super) fn to_json(self) -> Value {
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

    pub(super) fn remark(&self, decimals: Option<u8>) -> String {
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
        let add = |sum: &mut Amount, amount| *sum = sum.saturating_add(amount);
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
        let dossier = Dossier::read(&books, find(&books, name)?, args.limit)?;
        if as_json {
            output.json(&dossier.to_json(&books));
        } else {
            output.text(&dossier.in_words(&books, output.paint()));
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
            spent_up_to: None,
            open_refund: None,
            unclaimed_since: None,
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
}
