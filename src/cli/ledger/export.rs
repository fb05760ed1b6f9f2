//! `peaje ledger export`: the books for accountants and programs.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::books::{Books, BooksArgs, Survey, counted, damaged, money, net};
use super::channel::{ChannelName, find};
use super::lines;
use super::table::Record;
use super::time::{Moment, iso};
use crate::cli::{Exit, Failure, Outcome, Output};
use crate::protocol::{Address, Amount, ChannelId};
use crate::store::{AdjustmentLine, ChargeLine, Filter, MovementLine, StoreError, TransactionLine};

const MORE: &str = "\
What is exported:
  charges        what each channel was charged, by minute and route
  adjustments    changes of what a channel was charged that are no charge: what
                 was claimed before the books were opened, or by others
  transactions   what was sent to the chain, what for, what came of it, its gas
  movements      money that those transactions moved, by the contract's events

Charges and adjustments together add up to what show says was charged, to the
unit; a line on stderr says so where a person reads it.

Amounts are whole atomic units of the token. The column dollars has the same
amount exactly, where the token's decimals are known from the config or from the
network. Times are UTC, and charges are booked in the minute they are made in.

--since and --until take a date (2026-11-22, from its first second, UTC), a time
(2026-11-22T10:00:00Z, or with another offset), how long ago (24h, 7d), or Unix
seconds. --since is included and --until is not, so months join without a gap.

CSV is as RFC 4180 has it: a line of names, then records that end with CR LF. A
text that a spreadsheet would take for a formula (it begins with = + - @ or a
tab) has an apostrophe before it, and so has one that begins with an apostrophe.
JSON lines (jsonl) are one object a line. The format is CSV unless --format says
otherwise, or the name of --out ends with .jsonl; it never depends on who reads.

Examples:
  peaje ledger export --since 2026-11-01 --until 2026-12-01 > november.csv
      What was sold in November.
  peaje ledger export --since 24h --format jsonl | jq -s 'group_by(.route)'
      The last day for programs.
  peaje ledger export --what transactions --out costs.csv
      What the chain cost, transaction by transaction.

Environment:
  PEAJE_CONFIG   the config file, where --config is not given
  NO_COLOR       no colours";

/// The arguments of `peaje ledger export`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", crate::cli::exit::HELP))]
pub struct ExportArgs {
    #[command(flatten)]
    /// Where the books are.
    pub books: BooksArgs,
    /// What to export.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = What::Charges)]
    pub what: What,
    /// In which format; CSV, unless the name of --out says otherwise.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// From this moment on: a date, a time, how long ago, or Unix seconds.
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,
    /// Before this moment.
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,
    /// Of this channel only: its id, its short form, or its first digits.
    #[arg(long, value_name = "CHANNEL")]
    pub channel: Option<ChannelName>,
    /// Of this payer's channels only.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "channel")]
    pub payer: Option<Address>,
    /// Of this route only; charges have one, nothing else has.
    #[arg(long, value_name = "NAME")]
    pub route: Option<String>,
    /// Write to a file, which is replaced if it is there, instead of stdout; print what was written.
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// What can be exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// By minute, channel and route.
    Charges,
    /// Changes that are no charge.
    Adjustments,
    /// What was sent to the chain.
    Transactions,
    /// Money that transactions moved.
    Movements,
}

impl What {
    fn as_str(self) -> &'static str {
        match self {
            Self::Charges => "charges",
            Self::Adjustments => "adjustments",
            Self::Transactions => "transactions",
            Self::Movements => "movements",
        }
    }

    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Charges => &["minute", "channel", "payer", "route", "requests", "amount", "dollars"],
            Self::Adjustments => &["at", "channel", "from", "to", "change", "dollars", "why"],
            Self::Transactions => &[
                "hash",
                "purpose",
                "sender",
                "nonce",
                "signed_at",
                "state",
                "ended_at",
                "block",
                "gas_used",
                "fee_wei",
            ],
            Self::Movements => &["at", "transaction", "kind", "channel", "amount", "dollars"],
        }
    }
}

/// In which format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For spreadsheets (RFC 4180).
    Csv,
    /// One JSON object a line.
    Jsonl,
}

impl Format {
    /// The one that was asked for, or the one that the file's name says.
    fn of(args: &ExportArgs) -> Self {
        let by_name = || {
            let extension = args.out.as_ref()?.extension()?.to_str()?;
            ["jsonl", "ndjson", "json"].contains(&extension).then_some(Self::Jsonl)
        };
        args.format.or_else(by_name).unwrap_or(Self::Csv)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Jsonl => "jsonl",
        }
    }
}

/// Reads and writes.
pub(super) fn run(args: &ExportArgs, output: &Output) -> Outcome {
    let filter = filter_of(args, crate::clock::now_s())?;
    let books = args.books.open()?;
    let channel = args.channel.as_ref().map(|name| find(&books, name)).transpose()?;
    let filter = Filter { channel: channel.map(|row| row.snapshot.id), ..filter };
    let survey = Survey::of(&books, args.payer).map_err(damaged)?;
    let mut export = Export {
        what: args.what,
        format: Format::of(args),
        decimals: survey.decimals,
        mixed: survey.mixed,
        only: args.payer.map(|_| survey.ids.into_iter().collect()),
        sink: Sink::open(args)?,
        sum: Sum::default(),
    };
    let written = export.write(&books, &filter);
    let Export { sink, sum, format, mixed, .. } = export;
    let mixed = mixed.is_some();
    match sink.finish(written) {
        Written::All => {}
        // Whoever has seen enough wants no sum either.
        Written::HungUp => return Ok(()),
        Written::Failed(error) => {
            let error = anyhow::Error::new(error).context("the export cannot be written to its end");
            return Err(Failure::new(Exit::Failed, error)
                .hint("what is there of it is not all; make room, or choose another --out"));
        }
        Written::Unread(error) => return Err(damaged(error)),
    }
    let told = Told { decimals: survey.decimals, mixed };
    tell(args, &books, told, format, &sum, &filter, output)
}

/// The filter, but for the channel, which takes the books to find.
fn filter_of(args: &ExportArgs, now: u64) -> Result<Filter, Failure> {
    if args.route.is_some() && args.what != What::Charges {
        let message = format!("{} have no route, only charges have", args.what.as_str());
        return Err(Failure::message(Exit::Usage, message).hint("leave --route away"));
    }
    if args.payer.is_some() && args.what == What::Transactions {
        let message = "a transaction claims of many payers' channels";
        return Err(Failure::message(Exit::Usage, message).hint("export movements of this payer, or name a --channel"));
    }
    let (since, until) = (args.since.map(|since| since.unix(now)), args.until.map(|until| until.unix(now)));
    if let (Some(since), Some(until)) = (since, until)
        && since >= until
    {
        let message = format!("nothing is from {} on and before {}", iso(since), iso(until));
        return Err(Failure::message(Exit::Usage, message).hint("--since must be before --until"));
    }
    Ok(Filter { since, until, channel: None, route: args.route.clone() })
}

/// Where the lines go.
struct Sink {
    to: Box<dyn Write>,
    failed: Option<std::io::Error>,
}

enum Written {
    All,
    HungUp,
    Failed(std::io::Error),
    Unread(StoreError),
}

impl Sink {
    fn open(args: &ExportArgs) -> Result<Self, Failure> {
        let to: Box<dyn Write> = match &args.out {
            None => Box::new(std::io::stdout().lock()),
            Some(path) => Box::new(File::create(path).map_err(|error| {
                let error = anyhow::Error::new(error).context(format!("cannot write {}", path.display()));
                Failure::new(Exit::Failed, error).hint("its directory must exist and be writable")
            })?),
        };
        Ok(Self { to: Box::new(BufWriter::new(to)), failed: None })
    }

    /// Writes a line; where that fails, the error that ends the reading.
    fn line(&mut self, line: &str) -> Result<(), StoreError> {
        self.to.write_all(line.as_bytes()).map_err(|error| {
            self.failed = Some(error);
            StoreError::Io { doing: "exported", source: "the output cannot be written".into() }
        })
    }

    fn finish(mut self, written: Result<(), StoreError>) -> Written {
        let failed = match (self.failed.take(), written) {
            (Some(error), _) => error,
            (None, Err(error)) => return Written::Unread(error),
            (None, Ok(())) => match self.to.flush() {
                Ok(()) => return Written::All,
                Err(error) => error,
            },
        };
        if failed.kind() == ErrorKind::BrokenPipe { Written::HungUp } else { Written::Failed(failed) }
    }
}

/// What was written adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sum {
    lines: u64,
    requests: u64,
    /// What was charged or moved, or what adjustments added.
    amount: Amount,
    /// What adjustments took away.
    less: Amount,
    fee_wei: Amount,
}

impl Sum {
    fn add(&mut self, requests: u64, amount: Amount) {
        self.lines = self.lines.saturating_add(1);
        self.requests = self.requests.saturating_add(requests);
        self.amount = self.amount.saturating_add(amount);
    }
}

/// How a sum is told.
#[derive(Debug, Clone, Copy)]
struct Told {
    decimals: Option<u8>,
    /// Units of different worth were added up, so it is not told at all.
    mixed: bool,
}

struct Export {
    what: What,
    format: Format,
    decimals: Option<u8>,
    /// Of each channel, where they differ.
    mixed: Option<HashMap<ChannelId, u8>>,
    /// Only these channels, where a payer was named.
    only: Option<HashSet<ChannelId>>,
    sink: Sink,
    sum: Sum,
}

impl Export {
    fn write(&mut self, books: &Books, filter: &Filter) -> Result<(), StoreError> {
        if self.format == Format::Csv {
            self.sink.line(&Record::of_names(self.what.columns()).finish())?;
        }
        match self.what {
            What::Charges => books.reader.charges(filter, &mut |line| self.charge(&line)),
            What::Adjustments => books.reader.adjustments(filter, &mut |line| self.adjustment(&line)),
            What::Transactions => books.reader.transactions(filter, &mut |line| self.transaction(&line)),
            What::Movements => books.reader.movements(filter, &mut |line| self.movement(&line)),
        }
    }

    fn decimals_of(&self, channel: Option<ChannelId>) -> Option<u8> {
        match &self.mixed {
            None => self.decimals,
            Some(places) => places.get(&channel?).copied(),
        }
    }

    fn wanted(&self, channel: Option<ChannelId>) -> bool {
        self.only.as_ref().is_none_or(|only| channel.is_some_and(|channel| only.contains(&channel)))
    }

    fn charge(&mut self, line: &ChargeLine) -> Result<(), StoreError> {
        if !self.wanted(Some(line.channel)) {
            return Ok(());
        }
        self.sum.add(line.requests, line.amount);
        let text = charge_in(self.format, line, self.decimals_of(Some(line.channel)));
        self.sink.line(&text)
    }

    fn adjustment(&mut self, line: &AdjustmentLine) -> Result<(), StoreError> {
        if !self.wanted(Some(line.channel)) {
            return Ok(());
        }
        self.sum.add(0, line.to.saturating_sub(line.from));
        let less = line.from.saturating_sub(line.to);
        self.sum.less = self.sum.less.saturating_add(less);
        let text = adjustment_in(self.format, line, self.decimals_of(Some(line.channel)));
        self.sink.line(&text)
    }

    fn transaction(&mut self, line: &TransactionLine) -> Result<(), StoreError> {
        self.sum.add(0, Amount::ZERO);
        let fee = line.fee_wei.map_or(Amount::ZERO, Amount::new);
        self.sum.fee_wei = self.sum.fee_wei.saturating_add(fee);
        let text = transaction_in(self.format, line);
        self.sink.line(&text)
    }

    fn movement(&mut self, line: &MovementLine) -> Result<(), StoreError> {
        if !self.wanted(line.channel) {
            return Ok(());
        }
        self.sum.add(0, line.amount);
        let text = movement_in(self.format, line, self.decimals_of(line.channel));
        self.sink.line(&text)
    }
}

// Lines.

/// The same amount in dollars, exactly: a number that spreadsheets can add.
fn dollars(amount: Amount, decimals: Option<u8>) -> Option<String> {
    Some(amount.to_price(decimals?).trim_start_matches('$').to_owned())
}

fn json_line(mut value: Value, dollars: Option<String>) -> String {
    if let (Some(object), Some(dollars)) = (value.as_object_mut(), dollars) {
        object.insert("dollars".to_owned(), json!(dollars));
    }
    format!("{value}\n")
}

fn charge_in(format: Format, line: &ChargeLine, decimals: Option<u8>) -> String {
    let dollars = dollars(line.amount, decimals);
    match format {
        Format::Csv => Record::default()
            .value(iso(line.minute))
            .value(line.channel)
            .value(line.payer)
            .text(&line.route)
            .value(line.requests)
            .value(line.amount)
            .maybe(dollars)
            .finish(),
        Format::Jsonl => {
            let value = json!({
                "minute": iso(line.minute), "channel": line.channel, "payer": line.payer, "route": line.route,
                "requests": line.requests, "amount": line.amount,
            });
            json_line(value, dollars)
        }
    }
}

fn adjustment_in(format: Format, line: &AdjustmentLine, decimals: Option<u8>) -> String {
    let dollars = match line.to.checked_sub(line.from) {
        Some(up) => dollars(up, decimals),
        None => dollars(line.from.saturating_sub(line.to), decimals).map(|down| format!("-{down}")),
    };
    match format {
        Format::Csv => Record::default()
            .value(iso(line.at))
            .value(line.channel)
            .value(line.from)
            .value(line.to)
            .value(lines::change(line))
            .maybe(dollars)
            .value(line.why.as_str())
            .finish(),
        Format::Jsonl => json_line(lines::adjustment(line), dollars),
    }
}

fn transaction_in(format: Format, line: &TransactionLine) -> String {
    match format {
        Format::Csv => Record::default()
            .value(line.hash)
            .text(&line.purpose)
            .value(line.sender)
            .value(line.nonce)
            .value(iso(line.signed_at))
            .text(&line.state)
            .maybe(line.ended_at.map(iso))
            .maybe(line.block)
            .maybe(line.gas_used)
            .maybe(line.fee_wei)
            .finish(),
        Format::Jsonl => json_line(lines::transaction(line), None),
    }
}

fn movement_in(format: Format, line: &MovementLine, decimals: Option<u8>) -> String {
    let dollars = dollars(line.amount, decimals);
    match format {
        Format::Csv => Record::default()
            .value(iso(line.at))
            .value(line.transaction)
            .text(&line.kind)
            .maybe(line.channel)
            .value(line.amount)
            .maybe(dollars)
            .finish(),
        Format::Jsonl => json_line(lines::movement(line), dollars),
    }
}

// The sum.

/// Says what was written: beside the lines to whoever reads stderr on a terminal; with `--out`, as the command's result.
fn tell(
    args: &ExportArgs,
    books: &Books,
    told: Told,
    format: Format,
    sum: &Sum,
    filter: &Filter,
    output: &Output,
) -> Outcome {
    let Some(file) = &args.out else {
        if output.stderr_is_terminal() {
            let whole = whole_story(args, books, filter, sum, told)?;
            let line = format!("{}{}", sum.in_words(args.what, told), whole.unwrap_or_default());
            output.error_line(&output.error_paint().dim(&line));
        }
        return Ok(());
    };
    if output.json_result(false) {
        let mut report = json!({
            "file": file.display().to_string(),
            "what": args.what.as_str(),
            "format": format.as_str(),
            "lines": sum.lines,
        });
        if let (Some(object), Value::Object(sums)) = (report.as_object_mut(), sum.to_json(args.what, told)) {
            object.extend(sums);
        }
        output.json(&report);
    } else {
        let whole = whole_story(args, books, filter, sum, told)?;
        let words = sum.in_words(args.what, told);
        output.line(&format!("{}: {words}{}", file.display(), whole.unwrap_or_default()));
    }
    Ok(())
}

impl Sum {
    fn to_json(self, what: What, Told { mixed, .. }: Told) -> Value {
        match what {
            What::Charges if mixed => json!({"requests": self.requests}),
            What::Adjustments if mixed => json!({}),
            What::Charges => json!({"requests": self.requests, "amount": self.amount}),
            What::Adjustments => json!({"up": self.amount, "down": self.less}),
            What::Transactions => json!({"fee_wei": self.fee_wei}),
            What::Movements => json!({}),
        }
    }

    fn in_words(self, what: What, Told { decimals, mixed }: Told) -> String {
        let lines = counted(self.lines, "line");
        match what {
            What::Charges if mixed => format!("{lines}, {}", counted(self.requests, "request")),
            What::Adjustments if mixed => lines,
            What::Charges => {
                format!("{lines}, {}, {} charged", counted(self.requests, "request"), money(self.amount, decimals))
            }
            What::Adjustments => {
                format!("{lines}, {} up, {} down", money(self.amount, decimals), money(self.less, decimals))
            }
            What::Transactions => {
                format!("{lines}, {} coins of fees", self.fee_wei.to_price(18).trim_start_matches('$'))
            }
            // Deposits, claims and settlements are the same money again and again; their sum says nothing.
            What::Movements => lines,
        }
    }
}

/// Where all charges were exported: how they add up to what show says.
fn whole_story(
    args: &ExportArgs,
    books: &Books,
    filter: &Filter,
    sum: &Sum,
    Told { decimals, mixed }: Told,
) -> Result<Option<String>, Failure> {
    if mixed || args.what != What::Charges || args.payer.is_some() || *filter != Filter::default() {
        return Ok(None);
    }
    let (mut up, mut down, mut charged) = (Amount::ZERO, Amount::ZERO, Amount::ZERO);
    let add = |sum: &mut Amount, amount| *sum = sum.saturating_add(amount);
    let read = books.reader.adjustments(filter, &mut |line| {
        add(&mut up, line.to.saturating_sub(line.from));
        add(&mut down, line.from.saturating_sub(line.to));
        Ok(())
    });
    read.map_err(damaged)?;
    let read = books.reader.channels(&mut |row| {
        add(&mut charged, row.snapshot.charged);
        Ok(())
    });
    read.map_err(damaged)?;
    let booked = sum.amount.checked_add(up).and_then(|sum| sum.checked_sub(down));
    let money = |amount| money(amount, decimals);
    Ok(Some(if booked == Some(charged) {
        let adjusted = net(up, down, decimals);
        match (up.is_zero(), down.is_zero()) {
            (true, true) => "; show says the same".to_owned(),
            _ => format!("; with {adjusted} of adjustments that is {}, as show says", money(charged)),
        }
    } else {
        format!("; show says {}, and they do not add up: peaje ledger verify", money(charged))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::store::Adjustment;
    use clap::Parser as _;

    fn parse(arguments: &[&str]) -> ExportArgs {
        let line = ["peaje", "ledger", "export"].iter().chain(arguments);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Ledger(args) => match args.command {
                super::super::LedgerCommand::Export(args) => args,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_format_is_csv_unless_somebody_says_otherwise() {
        for (arguments, format) in [
            (&[][..], Format::Csv),
            (&["--out", "a.csv"], Format::Csv),
            (&["--out", "a"], Format::Csv),
            (&["--out", "a.jsonl"], Format::Jsonl),
            (&["--out", "a.jsonl", "--format", "csv"], Format::Csv),
            (&["--format", "jsonl"], Format::Jsonl),
        ] {
            assert_eq!(Format::of(&parse(arguments)), format, "{arguments:?}");
        }
    }

    #[test]
    fn a_span_has_a_beginning_before_its_end() {
        let span = |arguments: &[&str]| {
            let filter = filter_of(&parse(arguments), 1_795_341_600).map_err(|failure| failure.exit())?;
            Ok((filter.since, filter.until))
        };
        assert_eq!(span(&[]), Ok((None, None)));
        assert_eq!(span(&["--since", "1h"]), Ok((Some(1_795_338_000), None)));
        let day = &["--since", "2026-11-22", "--until", "2026-11-23"];
        assert_eq!(span(day), Ok((Some(1_795_305_600), Some(1_795_392_000))));
        assert_eq!(span(&["--since", "2026-11-22", "--until", "2026-11-22"]), Err(Exit::Usage));
        assert_eq!(span(&["--since", "1h", "--until", "2h"]), Err(Exit::Usage));
        assert_eq!(span(&["--what", "movements", "--route", "r"]), Err(Exit::Usage));
        let payer = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C";
        assert_eq!(span(&["--what", "transactions", "--payer", payer]), Err(Exit::Usage));
    }

    #[test]
    fn a_charge_reads_the_same_in_both_formats() {
        let line = ChargeLine {
            minute: 1_795_341_600,
            channel: ChannelId([7; 32]),
            payer: Address::ZERO,
            route: "=1+\"1\"".to_owned(),
            requests: 3,
            amount: Amount::new(6_001),
        };
        let (channel, payer) = (format!("0x{}", "07".repeat(32)), format!("0x{}", "0".repeat(40)));
        let expected = format!("2026-11-22T10:00:00Z,{channel},{payer},\"'=1+\"\"1\"\"\",3,6001,0.006001\r\n");
        assert_eq!(charge_in(Format::Csv, &line, Some(6)), expected);
        assert!(charge_in(Format::Csv, &line, None).ends_with(",3,6001,\r\n"));
        let text = charge_in(Format::Jsonl, &line, Some(6));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(text.ends_with('\n') && text.matches('\n').count() == 1);
        assert_eq!((&value["route"], &value["amount"]), (&json!("=1+\"1\""), &json!("6001")));
        assert_eq!((&value["dollars"], &value["minute"]), (&json!("0.006001"), &json!("2026-11-22T10:00:00Z")));
        let keys: HashSet<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, What::Charges.columns().iter().copied().collect());
    }

    #[test]
    fn adjustments_have_their_sign() {
        let line = |from, to| AdjustmentLine {
            at: 0,
            channel: ChannelId([7; 32]),
            from: Amount::new(from),
            to: Amount::new(to),
            why: Adjustment::ClaimDropped,
        };
        let csv = |from, to| adjustment_in(Format::Csv, &line(from, to), Some(6));
        assert!(csv(100, 40).ends_with(",100,40,-60,-0.00006,claim_dropped\r\n"), "{}", csv(100, 40));
        assert!(csv(40, 100).ends_with(",40,100,60,0.00006,claim_dropped\r\n"));
        let value: Value = serde_json::from_str(&adjustment_in(Format::Jsonl, &line(100, 40), Some(6))).unwrap();
        assert_eq!((&value["change"], &value["dollars"]), (&json!("-60"), &json!("-0.00006")));
    }

    #[test]
    fn a_record_has_a_field_for_each_column() {
        let count = |text: &str| text.trim_end().split(',').count();
        let transaction = TransactionLine {
            hash: Default::default(),
            purpose: "claim".to_owned(),
            sender: Address::ZERO,
            nonce: 0,
            signed_at: 0,
            state: "open".to_owned(),
            ended_at: None,
            block: None,
            gas_used: None,
            fee_wei: Some(7),
        };
        assert_eq!(count(&transaction_in(Format::Csv, &transaction)), What::Transactions.columns().len());
        let movement = MovementLine {
            token: None,
            at: 0,
            transaction: Default::default(),
            kind: "settled".to_owned(),
            channel: None,
            amount: Amount::new(1),
        };
        assert_eq!(count(&movement_in(Format::Csv, &movement, None)), What::Movements.columns().len());
    }
}
