//! One channel: how it is asked for, and all that is known of it.

use std::collections::{BTreeMap, VecDeque};
use std::str::FromStr;

use serde_json::{Value, json};

use super::books::{Books, counted, damaged, money};
use super::lines;
use super::show::Line;
use super::table::{Side, aligned, short};
use super::time::iso;
use crate::cli::output::Paint;
use crate::cli::{Exit, Failure};
use crate::protocol::{Amount, ChannelId};
use crate::store::{AdjustmentLine, ChannelRow, Filter, MovementLine, TransactionLine};

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
pub(super) struct Dossier {
    row: ChannelRow,
    line: Line,
    routes: BTreeMap<String, RouteSum>,
    adjustments: Latest<AdjustmentLine>,
    transactions: Latest<TransactionLine>,
    movements: Latest<MovementLine>,
}

impl Dossier {
    pub(super) fn read(books: &Books, row: ChannelRow, limit: usize) -> Result<Self, Failure> {
        let id = row.snapshot.id;
        let mut dossier = Self {
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
            let sum = dossier.routes.entry(charge.route).or_default();
            sum.requests = sum.requests.saturating_add(charge.requests);
            sum.amount = sum.amount.saturating_add(charge.amount);
            sum.first = Some(sum.first.map_or(charge.minute, |first| first.min(charge.minute)));
            sum.last = sum.last.max(Some(charge.minute));
            Ok(())
        });
        read.map_err(damaged)?;
        let read = reader.adjustments(&of_it, &mut |line| {
            dossier.adjustments.add(line);
            Ok(())
        });
        read.map_err(damaged)?;
        let read = reader.transactions(&of_it, &mut |line| {
            dossier.transactions.add(line);
            Ok(())
        });
        read.map_err(damaged)?;
        let read = reader.movements(&of_it, &mut |line| {
            dossier.movements.add(line);
            Ok(())
        });
        read.map_err(damaged)?;
        Ok(dossier)
    }
}

impl Dossier {
    fn charges(&self) -> Amount {
        self.routes.values().fold(Amount::ZERO, |sum, route| sum.saturating_add(route.amount))
    }

    pub(super) fn to_json(&self, books: &Books) -> Value {
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
                // Vouchers up to here are not taken again, although less was charged.
                "spent_up_to": snapshot.spent_up_to,
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

    pub(super) fn in_words(&self, books: &Books, paint: Paint) -> String {
        let snapshot = &self.row.snapshot;
        let (config, view, line) = (&snapshot.config, &snapshot.view, &self.line);
        let decimals = books.decimals(config.token);
        let money = |amount| money(amount, decimals);
        let mut out = format!("{}\n", paint.bold(&format!("channel {}", line.id)));
        let mut fact =
            |name: &str, value: String| out.push_str(&format!("  {} {value}\n", paint.dim(&format!("{name:>12}"))));
        fact("payer", config.payer.to_string());
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
        if let Some(spent) = snapshot.spent_up_to {
            fact("spent", format!("vouchers up to {} are not taken again", money(spent)));
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
