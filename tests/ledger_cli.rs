//! `peaje ledger`, the real binary on real books.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use peaje::ledger::{LatestVoucher, Snapshot, View, Withdrawal};
use peaje::protocol::contracts::SETTLEMENT;
use peaje::protocol::{Address, Amount, ChannelConfig, ChannelId, Domain, Hash, LocalKey, Voucher};
use peaje::store::sqlite::SqliteStore;
use peaje::store::{
    Adjustment, Booking, ChannelEntry, ChannelRow, ClaimedRow, Entry, Fate, Identity, LedgerStore as _, Moved, Outcome,
    Purpose, Transaction,
};
use serde_json::Value;

const CHAIN: u64 = 84_532;
/// 2026-11-22T10:00:00Z.
const TEN: u64 = 1_795_341_600;
const PAYER: &str = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C";

/// Runs the binary in an environment of its own.
fn peaje(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peaje")).args(arguments).env_clear().output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output))
        .unwrap_or_else(|error| panic!("{error}: {}{}", stdout(output), stderr(output)))
}

fn key(byte: u8) -> LocalKey {
    LocalKey::from_bytes(&[byte; 32]).unwrap()
}

fn settlement() -> Domain {
    Domain::settlement(CHAIN)
}

fn usdc() -> Address {
    "0x036CbD53842c5426634e7929541eC2318f3dCF7e".parse().unwrap()
}

fn units(value: &Value) -> u128 {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).parse().unwrap()
}

/// A channel as its next row will be written.
#[derive(Debug, Clone)]
struct Account {
    row: ChannelRow,
    signer: LocalKey,
}

impl Account {
    /// A channel with a million units on it, whose payer signs with the key of this number.
    fn new(number: u8) -> Self {
        let signer = key(number);
        let config = ChannelConfig {
            payer: signer.address(),
            payer_authorizer: signer.address(),
            receiver: PAYER.parse().unwrap(),
            receiver_authorizer: key(99).address(),
            token: usdc(),
            withdraw_delay: 900,
            salt: Hash([number; 32]),
        };
        Self::of(config, signer)
    }

    fn of(config: ChannelConfig, signer: LocalKey) -> Self {
        let snapshot = Snapshot {
            id: config.id(&settlement()),
            config,
            view: View { block: 7, balance: Amount::new(1_000_000), ..View::default() },
            viewed_at: TEN,
            charged: Amount::ZERO,
            latest: None,
            spent_up_to: None,
            open_refund: None,
            unclaimed_since: None,
        };
        Self { row: ChannelRow { snapshot, version: 0, last_deposit: None }, signer }
    }

    fn id(&self) -> ChannelId {
        self.row.snapshot.id
    }

    fn signature(&self) -> String {
        let bytes = self.row.snapshot.latest.as_ref().unwrap().signature.as_bytes();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn entry(&mut self, booking: Booking) -> Entry {
        self.row.version += 1;
        Entry::Channel(Box::new(ChannelEntry { row: self.row.clone(), booking }))
    }

    fn charge(&mut self, route: &str, amount: u128, at: u64) -> Entry {
        let amount = Amount::new(amount);
        let charged = self.row.snapshot.charged.checked_add(amount).unwrap();
        let voucher = Voucher { channel: self.id(), max_claimable: charged }.sign(&settlement(), &self.signer);
        self.row.snapshot.charged = charged;
        self.row.snapshot.latest = Some(LatestVoucher { max_claimable: charged, signature: voucher.signature });
        self.entry(Booking::Charge { route: Arc::from(route), amount, at })
    }

    /// Opens the books of a channel of which so much was claimed before.
    fn opened(&mut self, claimed: u128) -> Entry {
        let to = Amount::new(claimed);
        (self.row.snapshot.charged, self.row.snapshot.view.total_claimed) = (to, to);
        self.entry(Booking::Adjustment { from: Amount::ZERO, to, at: TEN, why: Adjustment::Opened })
    }

    /// The chain has so much claimed.
    fn claimed(&mut self, total: u128) -> Entry {
        self.row.snapshot.view.total_claimed = Amount::new(total);
        self.entry(Booking::Nothing)
    }
}

fn signed(byte: u8, purpose: Purpose) -> Entry {
    Entry::Signed(Box::new(Transaction {
        hash: Hash([byte; 32]),
        sender: key(98).address(),
        nonce: u64::from(byte),
        raw: vec![byte; 100],
        signed_at: TEN + 60,
        purpose,
    }))
}

fn mined(byte: u8, moved: Vec<Moved>) -> Entry {
    let fate = Fate::Mined { block: 9, success: true, gas_used: 60_000, fee_wei: Some(1_500_000_000_000), moved };
    Entry::Ended(Box::new(Outcome { hash: Hash([byte; 32]), at: TEN + 62, fate }))
}

/// Books in a directory, with their writer open, and a config that names them.
struct World {
    folder: tempfile::TempDir,
    store: Option<SqliteStore>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "[upstream]\nurl = \"http://127.0.0.1:8080\"\n[chain]\nnetwork = \"base-sepolia\"\nrpc = \
             \"http://127.0.0.1:1\"\n[receiver]\npay_to = \"{PAYER}\"\nauthorizer_key = \
             \"dev:authorizer\"\n[[route]]\npath = \"/v1/*\"\nprice = \"$0.002\"\n"
        );
        std::fs::write(folder.path().join("peaje.toml"), text).unwrap();
        let identity = Identity { chain_id: CHAIN, settlement: SETTLEMENT };
        let store = SqliteStore::open(&folder.path().join("books"), identity).unwrap();
        Self { folder, store: Some(store) }
    }

    /// Three channels: one in use for two routes and claimed once by a transaction, one that was claimed from before the
    /// books were opened and whose payer is leaving, and one that never paid.
    fn with_books() -> (Self, [Account; 3]) {
        let mut world = Self::new();
        let [mut busy, mut leaving, mut idle] = [1, 2, 3].map(Account::new);
        let mut entries = vec![
            busy.entry(Booking::Nothing),
            busy.charge("/v1/*", 2_000, TEN),
            busy.charge("/v1/*", 2_000, TEN + 59),
            busy.charge("=cmd|' /C calc'!A0", 500, TEN + 60),
        ];
        let rows = vec![ClaimedRow { channel: busy.id(), total_claimed: Amount::new(4_500) }];
        entries.push(signed(1, Purpose::Claim { rows }));
        entries.push(mined(1, vec![Moved::Claimed(busy.id(), Amount::new(4_500))]));
        entries.push(busy.claimed(4_500));
        entries.push(busy.charge("/v1/*", 2_000, TEN + 3_600));
        entries.push(signed(2, Purpose::Settle { receiver: PAYER.parse().unwrap(), token: usdc() }));
        entries.push(leaving.opened(30_000));
        entries.push(leaving.charge("/v1/*", 7_000, TEN + 86_400));
        let withdrawal = Withdrawal { amount: Amount::new(968_000), initiated_at: TEN };
        leaving.row.snapshot.view.withdrawal = Some(withdrawal);
        entries.push(leaving.entry(Booking::Nothing));
        entries.push(idle.entry(Booking::Nothing));
        world.commit(&entries);
        (world, [busy, leaving, idle])
    }

    fn commit(&mut self, entries: &[Entry]) {
        self.store.as_mut().unwrap().commit(entries).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ledger(&self, arguments: &[&str]) -> Output {
        let config = self.path("peaje.toml");
        let (command, rest) = arguments.split_first().unwrap();
        peaje(&[&["ledger", command, "--config", config.to_str().unwrap()], rest].concat())
    }

    /// The document that a command prints, which must succeed.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ledger(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        json(&output)
    }

    /// Changes the books behind their writer's back.
    fn tamper(&mut self, sql: &str) {
        self.store = None;
        let connection = rusqlite::Connection::open(self.path("books/books.sqlite3")).unwrap();
        assert!(connection.execute(sql, []).unwrap() > 0, "{sql} changed nothing");
    }

    /// What verify finds, and its exit code.
    fn verify(&self) -> (Option<i32>, Vec<(String, Option<String>)>) {
        findings(&self.ledger(&["verify"]))
    }
}

fn findings(output: &Output) -> (Option<i32>, Vec<(String, Option<String>)>) {
    let report = json(output);
    assert_eq!(report["ok"], output.status.code() == Some(0), "{report}");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().all(|finding| text(&finding["detail"]).is_some() && text(&finding["fix"]).is_some()));
    (
        output.status.code(),
        findings.iter().map(|finding| (text(&finding["what"]).unwrap(), text(&finding["channel"]))).collect(),
    )
}

fn whats(found: &[(String, Option<String>)]) -> Vec<&str> {
    found.iter().map(|(what, _)| what.as_str()).collect()
}

/// The fields of CSV without quotes or line ends in them.
fn records(csv: &str) -> Vec<BTreeMap<String, String>> {
    let mut lines = csv.split("\r\n");
    let names: Vec<_> = lines.next().unwrap().split(',').collect();
    let record =
        |line: &str| names.iter().map(|name| (*name).to_owned()).zip(line.split(',').map(str::to_owned)).collect();
    lines.filter(|line| !line.is_empty()).map(record).collect()
}

mod help {
    use super::*;

    #[test]
    fn every_help_teaches() {
        for command in
            [&["ledger"][..], &["ledger", "show"], &["ledger", "verify"], &["ledger", "export"], &["ledger", "backup"]]
        {
            let output = peaje(&[command, &["--help"]].concat());
            assert!(output.status.success());
            let help = stdout(&output);
            for part in ["Usage:", "Examples:", "Environment:", "Exit codes:", "NO_COLOR", "PEAJE_CONFIG"] {
                assert!(help.contains(part), "{command:?}: {part}");
            }
            assert!(help.matches(&format!("peaje {}", command.join(" "))).count() >= 3, "{command:?}");
            assert!(help.lines().all(|line| line.chars().count() <= 100), "{command:?}");
        }
        let backup = stdout(&peaje(&["ledger", "backup", "--help"]));
        assert!(backup.contains("To restore") && backup.contains("as books.sqlite3") && backup.contains("is lost"));
        assert!(stdout(&peaje(&["--help"])).contains("peaje ledger show"));
    }

    #[test]
    fn a_wrong_command_line_ends_with_2() {
        for arguments in [
            &["ledger"][..],
            &["ledger", "show", "--sort", "colour"],
            &["ledger", "show", "0x12"],
            &["ledger", "show", "0x1234", "--unclaimed"],
            &["ledger", "show", "--file", "a", "--directory", "b"],
            &["ledger", "export", "--since", "yesterday"],
            &["ledger", "export", "--format", "xml"],
            &["ledger", "backup"],
        ] {
            assert_eq!(peaje(arguments).status.code(), Some(2), "{arguments:?}");
        }
    }
}

mod opening {
    use super::*;

    #[test]
    fn books_that_are_not_there_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("nowhere");
        for command in ["show", "verify", "export"] {
            let output = peaje(&["ledger", command, "--directory", missing.to_str().unwrap()]);
            assert_eq!(output.status.code(), Some(7), "{command}: {}", stderr(&output));
            assert!(stderr(&output).contains("there are no books at") && stderr(&output).contains("nowhere"));
            assert!(stderr(&output).contains("try: ") && stderr(&output).contains("store.directory"));
            assert!(output.stdout.is_empty());
        }
        let output = peaje(&["ledger", "show", "--file", missing.to_str().unwrap(), "--json"]);
        let error: Value = serde_json::from_str(&stderr(&output)).unwrap();
        assert_eq!((output.status.code(), &error["exit_code"]), (Some(7), &7.into()));
        assert!(!missing.exists(), "looking makes nothing");
    }

    #[test]
    fn without_books_or_config_the_config_is_missed() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("none.toml");
        let output = peaje(&["ledger", "show", "--config", config.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(3));
        assert!(stderr(&output).contains("none.toml"));
    }

    #[test]
    fn another_programs_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("other.sqlite3");
        rusqlite::Connection::open(&file).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        let text = folder.path().join("text");
        std::fs::write(&text, "no database at all, but long enough to look like one".repeat(100)).unwrap();
        for file in [&file, &text] {
            let output = peaje(&["ledger", "show", "--file", file.to_str().unwrap()]);
            assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
        }
    }

    #[test]
    fn books_are_found_by_config_and_by_directory() {
        let (world, _) = World::with_books();
        let by_config = world.json(&["show"]);
        let directory = world.path("books");
        let by_directory = peaje(&["ledger", "show", "--directory", directory.to_str().unwrap()]);
        assert_eq!(json(&by_directory), by_config);
        assert_eq!(by_config["identity"]["network"], "eip155:84532");
    }

    #[test]
    fn books_are_read_beside_their_writer_and_are_fresh_each_time() {
        let (mut world, [mut busy, ..]) = World::with_books();
        let before = units(&world.json(&["show"])["totals"]["charged"]);
        let entry = busy.charge("/v1/*", 11, TEN);
        world.commit(&[entry]);
        assert_eq!(units(&world.json(&["show"])["totals"]["charged"]), before + 11);
        assert_eq!(world.verify(), (Some(0), vec![]));
    }
}

mod show {
    use super::*;

    fn listed(document: &Value) -> Vec<String> {
        let channels = document["channels"].as_array().unwrap();
        channels.iter().map(|channel| channel["channel"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn channels_are_listed_and_added_up() {
        let (world, [busy, leaving, idle]) = World::with_books();
        let document = world.json(&["show"]);
        // The largest debt first.
        let ids = [leaving.id(), busy.id(), idle.id()].map(|id| id.to_string());
        assert_eq!(listed(&document), ids);
        let first = &document["channels"][0];
        assert_eq!(first["payer"], leaving.signer.address().to_string());
        let amounts =
            ["charged", "claimed", "unclaimed", "balance", "at_risk", "shortfall"].map(|name| units(&first[name]));
        assert_eq!(amounts, [37_000, 30_000, 7_000, 1_000_000, 5_000, 0]);
        assert_eq!(first["withdrawing"], true);
        assert_eq!(first["withdrawal"]["possible_at"], "2026-11-22T10:15:00Z");
        let totals = &document["totals"];
        assert_eq!((&totals["channels"], &totals["withdrawing"]), (&3.into(), &1.into()));
        let sums = ["charged", "claimed", "unclaimed", "balance", "at_risk"].map(|name| units(&totals[name]));
        assert_eq!(sums, [43_500, 34_500, 9_000, 3_000_000, 5_000]);
        assert_eq!(document["tokens"][0]["decimals"], 6);
        assert_eq!(document["left_out"], 0);
    }

    #[test]
    fn filters_and_the_limit_choose_and_totals_are_of_all_chosen() {
        let (world, [busy, leaving, idle]) = World::with_books();
        let show = |arguments: &[&str]| {
            let document = world.json(&[&["show"], arguments].concat());
            let totals = &document["totals"];
            (listed(&document), totals["channels"].as_u64().unwrap(), document["left_out"].as_u64().unwrap())
        };
        let [busy_id, leaving_id, idle_id] = [&busy, &leaving, &idle].map(|account| account.id().to_string());
        assert_eq!(show(&["--unclaimed"]), (vec![leaving_id.clone(), busy_id.clone()], 2, 0));
        assert_eq!(show(&["--withdrawing"]), (vec![leaving_id.clone()], 1, 0));
        let payer = busy.signer.address().to_string();
        assert_eq!(show(&["--payer", &payer]), (vec![busy_id.clone()], 1, 0));
        assert_eq!(show(&["--payer", &payer, "--withdrawing"]), (vec![], 0, 0));
        assert_eq!(show(&["--limit", "1"]), (vec![leaving_id.clone()], 3, 2));
        assert_eq!(show(&["--limit", "0"]), (vec![], 3, 3));
        let mut sorted = vec![busy_id, leaving_id, idle_id];
        sorted.sort();
        assert_eq!(show(&["--sort", "id"]).0, sorted);
    }

    #[test]
    fn one_channel_shows_all_that_is_known_of_it() {
        let (world, [busy, ..]) = World::with_books();
        let document = world.json(&["show", &busy.id().to_string()]);
        let channel = &document["channel"];
        assert_eq!(channel["terms"]["receiver"], PAYER);
        assert_eq!(units(&channel["voucher"]["max_claimable"]), 6_500);
        assert_eq!(channel["version"], 6);
        let routes = document["routes"].as_array().unwrap();
        let route = |name: &str| routes.iter().find(|route| route["route"] == name).unwrap();
        assert_eq!((units(&route("/v1/*")["amount"]), &route("/v1/*")["requests"]), (6_000, &3.into()));
        assert_eq!(route("/v1/*")["first"], "2026-11-22T10:00:00Z");
        assert_eq!(route("/v1/*")["last"], "2026-11-22T11:00:00Z");
        assert_eq!(units(&document["charges"]), 6_500);
        let transactions = document["transactions"].as_array().unwrap();
        assert_eq!((transactions.len(), &transactions[0]["state"]), (1, &"mined".into()));
        assert_eq!(units(&document["movements"][0]["amount"]), 4_500);
        assert_eq!(document["adjustments"].as_array().unwrap().len(), 0);
    }

    #[test]
    fn a_channel_is_found_by_its_short_form() {
        let (world, [busy, ..]) = World::with_books();
        let id = busy.id().to_string();
        for name in [id.clone(), format!("{}…{}", &id[..10], &id[62..]), id[..12].to_owned()] {
            assert_eq!(world.json(&["show", &name])["channel"]["channel"], id, "{name}");
        }
        let unknown = world.ledger(&["show", &format!("0x{}", "00".repeat(32))]);
        assert_eq!(unknown.status.code(), Some(1));
        assert!(stderr(&unknown).contains("no such channel"));
    }

    #[test]
    fn signatures_are_shown_nowhere() {
        let (world, [busy, leaving, _]) = World::with_books();
        let backup = world.path("copy.sqlite3");
        let commands: [&[&str]; 8] = [
            &["show"],
            &["show", &busy.id().to_string()],
            &["verify"],
            &["export"],
            &["export", "--what", "adjustments", "--format", "jsonl"],
            &["export", "--what", "transactions"],
            &["export", "--what", "movements"],
            &["backup", backup.to_str().unwrap()],
        ];
        for command in commands {
            let output = world.ledger(command);
            assert!(output.status.success(), "{command:?}");
            let all = format!("{}{}", stdout(&output), stderr(&output)).to_lowercase();
            for secret in [busy.signature(), leaving.signature()] {
                assert!(!all.contains(&secret[..40]), "{command:?}");
            }
            // Nor the bytes of a transaction, which anybody could send.
            assert!(!all.contains(&"02".repeat(40)) && !all.contains("\"raw\""), "{command:?}");
        }
    }

    #[test]
    fn damaged_rows_hide_no_others() {
        let (mut world, [busy, ..]) = World::with_books();
        world.tamper(&format!(
            "UPDATE channels SET charged = '1' WHERE hex(id) = '{}'",
            &busy.id().to_string()[2..].to_uppercase()
        ));
        let output = world.ledger(&["show"]);
        assert_eq!(output.status.code(), Some(7));
        let document = json(&output);
        assert_eq!((listed(&document).len(), &document["damaged"]), (2, &1.into()));
        assert!(stderr(&output).contains("peaje ledger verify"));
    }
}

mod export {
    use super::*;

    fn csv(world: &World, arguments: &[&str]) -> Vec<BTreeMap<String, String>> {
        let output = world.ledger(&[&["export"], arguments].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(output.stderr.is_empty(), "nobody reads stderr here");
        records(&stdout(&output))
    }

    fn sum(records: &[BTreeMap<String, String>], column: &str) -> i128 {
        records.iter().map(|record| record[column].parse::<i128>().unwrap()).sum()
    }

    #[test]
    fn exports_add_up_to_what_show_says() {
        let (world, accounts) = World::with_books();
        let charges = csv(&world, &[]);
        assert_eq!(charges.len(), 4);
        let adjustments = csv(&world, &["--what", "adjustments"]);
        let totals = world.json(&["show"])["totals"].clone();
        let booked = sum(&charges, "amount") + sum(&adjustments, "change");
        assert_eq!(u128::try_from(booked).unwrap(), units(&totals["charged"]));
        assert_eq!(sum(&charges, "requests"), 5);
        for account in &accounts {
            let id = account.id().to_string();
            let of_it = ["--channel", &id];
            let booked = sum(&csv(&world, &of_it), "amount")
                + sum(&csv(&world, &[&["--what", "adjustments"][..], &of_it].concat()), "change");
            assert_eq!(u128::try_from(booked).unwrap(), account.row.snapshot.charged.units());
            let payer = account.signer.address().to_string();
            assert_eq!(csv(&world, &["--payer", &payer]), csv(&world, &of_it));
        }
        let verified = world.json(&["verify"]);
        assert_eq!(verified["sums"][0]["charged"], totals["charged"]);
        assert_eq!(i128::try_from(units(&verified["sums"][0]["charges"])).unwrap(), sum(&charges, "amount"));
    }

    #[test]
    fn a_line_has_its_minute_and_its_dollars() {
        let (world, [busy, ..]) = World::with_books();
        let lines = csv(&world, &[]);
        let first = &lines[0];
        assert_eq!((first["minute"].as_str(), first["requests"].as_str()), ("2026-11-22T10:00:00Z", "2"));
        assert_eq!((first["amount"].as_str(), first["dollars"].as_str()), ("4000", "0.004"));
        assert_eq!(first["channel"], busy.id().to_string());
        assert_eq!(first["payer"], busy.signer.address().to_string());
    }

    #[test]
    fn no_route_is_a_formula() {
        let (world, _) = World::with_books();
        let output = stdout(&world.ledger(&["export"]));
        assert!(output.contains(",'=cmd|' /C calc'!A0,1,500,"), "{output}");
        let jsonl = stdout(&world.ledger(&["export", "--format", "jsonl"]));
        assert!(jsonl.contains("\"route\":\"=cmd|' /C calc'!A0\""), "JSON has it as it is");
    }

    #[test]
    fn spans_are_cut_without_gap_or_overlap() {
        let (world, _) = World::with_books();
        let all = csv(&world, &[]).len();
        for at in [
            "2026-11-22T10:01:00Z",
            "2026-11-22T11:00:00Z",
            "2026-11-22T11:30:00+00:30",
            "1795341600",
            "2026-11-23",
            "1h",
        ] {
            let (before, after) = (csv(&world, &["--until", at]), csv(&world, &["--since", at]));
            assert_eq!(before.len() + after.len(), all, "{at}");
        }
        assert_eq!(csv(&world, &["--since", "2026-11-22T10:01:00Z", "--until", "2026-11-22T11:00:00Z"]).len(), 1);
        assert_eq!(csv(&world, &["--until", "2026-11-23"]).len(), 3);
        assert_eq!(csv(&world, &["--route", "/v1/*"]).len(), 3);
        assert_eq!(csv(&world, &["--route", "/v1"]).len(), 0);
    }

    #[test]
    fn transactions_and_movements_are_exported_too() {
        let (world, [busy, ..]) = World::with_books();
        let transactions = csv(&world, &["--what", "transactions"]);
        let of = |purpose: &str| transactions.iter().find(|line| line["purpose"] == purpose).unwrap();
        assert_eq!((of("claim")["state"].as_str(), of("claim")["fee_wei"].as_str()), ("mined", "1500000000000"));
        assert_eq!((of("claim")["ended_at"].as_str(), of("settle")["ended_at"].as_str()), ("2026-11-22T10:01:02Z", ""));
        assert_eq!(of("settle")["state"], "open");
        let movements = csv(&world, &["--what", "movements", "--channel", &busy.id().to_string()]);
        assert_eq!(
            (movements.len(), movements[0]["kind"].as_str(), movements[0]["amount"].as_str()),
            (1, "claimed", "4500")
        );
    }

    #[test]
    fn json_lines_have_the_columns_of_csv() {
        let (world, _) = World::with_books();
        for what in ["charges", "adjustments", "transactions", "movements"] {
            let csv = csv(&world, &["--what", what]);
            let jsonl = stdout(&world.ledger(&["export", "--what", what, "--format", "jsonl"]));
            let lines: Vec<Value> = jsonl.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(lines.len(), csv.len());
            assert!(!lines.is_empty(), "{what}");
            for (line, record) in lines.iter().zip(&csv) {
                let object = line.as_object().unwrap();
                assert_eq!(object.keys().collect::<Vec<_>>().len(), record.len());
                for (name, value) in record {
                    let text = match &object[name] {
                        Value::Null => String::new(),
                        Value::String(text) => text.clone(),
                        other => other.to_string(),
                    };
                    assert_eq!(text, value.strip_prefix('\'').unwrap_or(value), "{what}: {name}");
                }
            }
        }
    }

    #[test]
    fn a_file_says_what_it_got() {
        let (world, _) = World::with_books();
        let file = world.path("charges.jsonl");
        let report = world.json(&["export", "--out", file.to_str().unwrap()]);
        assert_eq!(
            (&report["format"], &report["lines"], units(&report["amount"])),
            (&"jsonl".into(), &4.into(), 13_500)
        );
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 4);
        let nowhere = world.ledger(&["export", "--out", world.path("no/such/file").to_str().unwrap()]);
        assert_eq!(nowhere.status.code(), Some(1));
        assert!(stderr(&nowhere).contains("cannot write"));
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        let (world, _) = World::with_books();
        for arguments in [
            &["export", "--since", "2026-11-23", "--until", "2026-11-22"][..],
            &["export", "--what", "movements", "--route", "/v1/*"],
            &["export", "--what", "transactions", "--payer", PAYER],
        ] {
            let output = world.ledger(arguments);
            assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{arguments:?}");
            assert!(stderr(&output).contains("try: "), "{arguments:?}");
        }
    }

    #[test]
    fn damage_ends_an_export_with_7() {
        let (mut world, _) = World::with_books();
        world.tamper("UPDATE charges SET amount = 'many' WHERE amount = '500'");
        let output = world.ledger(&["export"]);
        assert_eq!(output.status.code(), Some(7));
        assert!(stderr(&output).contains("damaged"));
    }
}

mod verify {
    use super::*;

    #[test]
    fn true_books_pass() {
        let (world, _) = World::with_books();
        let report = world.json(&["verify"]);
        assert_eq!((&report["ok"], &report["problems"], &report["notes"]), (&true.into(), &0.into(), &0.into()));
        let read = |name: &str| report["read"][name].as_u64().unwrap();
        assert_eq!((read("channels"), read("signatures"), read("charges"), read("adjustments")), (3, 2, 4, 1));
        assert_eq!((read("requests"), read("transactions"), read("movements")), (5, 2, 1));
        assert_eq!(units(&report["sums"][0]["claimed_here"]), 4_500);
        assert_eq!(
            (report["unfinished"].as_array().unwrap().len(), &report["unfinished"][0]["purpose"]),
            (1, &"settle".into())
        );
        assert_eq!(report["chain"], Value::Null);
    }

    #[test]
    fn every_flipped_value_is_found() {
        for (sql, expected) in [
            ("UPDATE channels SET charged = '37001' WHERE charged = '37000'", "row"),
            ("UPDATE channels SET max_claimable = '37001' WHERE charged = '37000'", "row"),
            ("UPDATE channels SET signature = zeroblob(65) WHERE charged = '37000'", "row"),
            ("UPDATE channels SET balance = '2000000' WHERE charged = '37000'", "row"),
            ("UPDATE channels SET salt = zeroblob(32) WHERE charged = '37000'", "row"),
            ("UPDATE channels SET withdrawal_amount = NULL, withdrawal_at = NULL WHERE charged = '37000'", "row"),
            ("UPDATE channels SET version = version + 1 WHERE charged = '37000'", "row"),
            ("UPDATE terms SET withdraw_delay = 901", "row"),
            ("UPDATE charges SET amount = '501' WHERE amount = '500'", "sum"),
            ("UPDATE charges SET amount = 'x' WHERE amount = '500'", "row"),
            ("DELETE FROM charges WHERE amount = '500'", "sum"),
            ("UPDATE adjustments SET sum_after = '30001'", "sum"),
            ("DELETE FROM adjustments", "sum"),
            ("UPDATE adjustments SET why = 'because'", "row"),
            ("UPDATE movements SET amount = '6501'", "claims"),
            ("UPDATE transactions SET state = 'never_sent' WHERE state = 'mined'", "stray"),
            ("UPDATE transactions SET raw = zeroblob(100) WHERE state = 'open'", "row"),
        ] {
            let (mut world, _) = World::with_books();
            world.tamper(sql);
            let (code, found) = world.verify();
            assert_eq!(code, Some(7), "{sql}");
            assert!(whats(&found).contains(&expected), "{sql}: {found:?}");
            // One flip is not told as a hundred.
            assert!(found.len() <= 3, "{sql}: {found:?}");
        }
    }

    #[test]
    fn findings_name_their_channel() {
        let (mut world, [busy, ..]) = World::with_books();
        world.tamper("UPDATE charges SET amount = '501' WHERE amount = '500'");
        assert_eq!(world.verify().1, [("sum".to_owned(), Some(busy.id().to_string()))]);
    }

    #[test]
    fn rows_that_were_written_wrong_are_found_behind_their_seal() {
        let stranger = key(50);
        type Change = fn(&mut Account, &LocalKey);
        let cases: [(&str, Change); 4] = [
            ("signature", |account, stranger| {
                let voucher = Voucher { channel: account.id(), max_claimable: Amount::new(2_000) };
                let signature = voucher.sign(&settlement(), stranger).signature;
                account.row.snapshot.latest = Some(LatestVoucher { max_claimable: Amount::new(2_000), signature });
            }),
            ("invariant", |account, _| account.row.snapshot.view.total_claimed = Amount::new(2_001)),
            ("sum", |account, _| {
                account.charge("r", 5, TEN);
            }),
            ("channel_id", |account, _| account.row.snapshot.config.salt = Hash([77; 32])),
        ];
        for (expected, change) in cases {
            let mut world = World::new();
            let mut account = Account::new(9);
            let entry = account.charge("r", 2_000, TEN);
            world.commit(&[entry]);
            assert_eq!(world.verify(), (Some(0), vec![]));
            let version = account.row.version;
            change(&mut account, &stranger);
            account.row.version = version;
            let entry = account.entry(Booking::Nothing);
            world.commit(&[entry]);
            let (code, found) = world.verify();
            assert_eq!((code, whats(&found)), (Some(7), vec![expected]));
            assert_eq!(found[0].1, Some(account.id().to_string()));
        }
    }

    #[test]
    fn a_wallets_voucher_is_a_note_without_a_chain() {
        let mut world = World::new();
        let config = ChannelConfig { payer_authorizer: Address::ZERO, ..Account::new(9).row.snapshot.config };
        let mut wallet = Account::of(config, key(51));
        let entry = wallet.charge("r", 2_000, TEN);
        world.commit(&[entry]);
        let (code, found) = world.verify();
        assert_eq!((code, whats(&found)), (Some(0), vec!["wallet"]));
        // A key that is the payer's own needs no chain.
        let mut own = Account::of(ChannelConfig { salt: Hash([8; 32]), ..config }, key(9));
        let entry = own.charge("r", 2_000, TEN);
        world.commit(&[entry]);
        assert_eq!(world.verify().1.len(), 1);
    }

    #[test]
    fn a_file_with_a_hole_is_found() {
        let (mut world, _) = World::with_books();
        let mut entries = Vec::new();
        for number in 10..60 {
            entries.push(Account::new(number).charge("r", 7, TEN));
        }
        world.commit(&entries);
        world.store = None;
        let path = world.path("books/books.sqlite3");
        let whole = std::fs::read(&path).unwrap();
        let (mut found, pages) = (0, whole.len() / 4_096);
        for page in 1..pages {
            let mut bytes = whole.clone();
            bytes[page * 4_096..page * 4_096 + 4_096].fill(0);
            std::fs::write(&path, &bytes).unwrap();
            let output = world.ledger(&["verify"]);
            match output.status.code() {
                Some(7) => found += 1,
                Some(0) => {}
                other => panic!("page {page}: {other:?} {}", stderr(&output)),
            }
        }
        // A page that nothing is on yet can be emptied without harm; there are few of those.
        assert!(found >= pages - 4 && pages > 10, "{found} of {pages}");
    }

    #[test]
    fn the_chain_needs_its_config_and_its_node() {
        let (world, _) = World::with_books();
        let directory = world.path("books");
        let no_config = world.path("none.toml");
        let arguments = ["--directory", directory.to_str().unwrap(), "--config", no_config.to_str().unwrap()];
        let output = peaje(&[&["ledger", "verify", "--chain"][..], &arguments].concat());
        assert_eq!(output.status.code(), Some(3));
        assert!(stderr(&output).contains("--chain needs a config"), "{}", stderr(&output));
        assert_eq!(world.ledger(&["verify", "--chain"]).status.code(), Some(4), "nobody listens on port 1");
    }
}

mod backup {
    use super::*;

    fn copy(world: &World, to: &Path) -> Output {
        world.ledger(&["backup", to.to_str().unwrap()])
    }

    #[test]
    fn a_copy_holds_the_books_of_its_moment() {
        let (mut world, [mut busy, ..]) = World::with_books();
        let file = world.path("copy.sqlite3");
        let report = json(&copy(&world, &file));
        let before = world.json(&["show"]);
        assert_eq!((&report["channels"], &report["verified"]), (&3.into(), &true.into()));
        assert_eq!(report["sums"][0]["charged"], before["totals"]["charged"]);
        assert_eq!(report["bytes"], std::fs::metadata(&file).unwrap().len());
        let entry = busy.charge("/v1/*", 1, TEN);
        world.commit(&[entry]);
        let of_copy = peaje(&["ledger", "show", "--file", file.to_str().unwrap()]);
        assert_eq!(json(&of_copy), before);
        assert_ne!(world.json(&["show"]), before);
        assert_eq!(peaje(&["ledger", "verify", "--file", file.to_str().unwrap()]).status.code(), Some(0));
        let mut left: Vec<_> =
            std::fs::read_dir(world.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["books", "copy.sqlite3", "peaje.toml"]);
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_may_read_a_copy() {
        use std::os::unix::fs::PermissionsExt as _;
        let (world, _) = World::with_books();
        let file = world.path("copy.sqlite3");
        assert!(copy(&world, &file).status.success());
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_written_over() {
        let (world, _) = World::with_books();
        let file = world.path("copy.sqlite3");
        std::fs::write(&file, "something else").unwrap();
        let output = copy(&world, &file);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("is there already"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "something else");
        let nowhere = copy(&world, &world.path("no/such/copy"));
        assert_eq!(nowhere.status.code(), Some(7));
        assert!(stderr(&nowhere).contains("cannot write"));
    }

    #[test]
    fn a_damaged_copy_is_not_kept() {
        let (mut world, _) = World::with_books();
        world.tamper("UPDATE charges SET amount = '501' WHERE amount = '500'");
        let file = world.path("copy.sqlite3");
        let output = copy(&world, &file);
        assert_eq!(output.status.code(), Some(7));
        assert!(stderr(&output).contains("1 problem") && !file.exists());
        assert_eq!(std::fs::read_dir(world.folder.path()).unwrap().count(), 2, "no leftovers");
    }

    #[test]
    fn a_copy_is_restored_as_the_help_says() {
        let (mut world, [mut busy, ..]) = World::with_books();
        let file = world.path("copy.sqlite3");
        assert!(copy(&world, &file).status.success());
        let before = world.json(&["show"]);
        let entry = busy.charge("/v1/*", 1, TEN);
        world.commit(&[entry]);
        world.store = None;
        std::fs::rename(world.path("books"), world.path("away")).unwrap();
        std::fs::create_dir(world.path("books")).unwrap();
        std::fs::rename(&file, world.path("books/books.sqlite3")).unwrap();
        assert_eq!(world.json(&["show"]), before);
        // And it can be written again.
        let identity = Identity { chain_id: CHAIN, settlement: SETTLEMENT };
        world.store = Some(SqliteStore::open(&world.path("books"), identity).unwrap());
        let mut idle = Account::new(77);
        let entry = idle.charge("/v1/*", 9, TEN);
        world.commit(&[entry]);
        assert_eq!(world.json(&["show"])["totals"]["channels"], 4);
        assert_eq!(world.verify().0, Some(0));
    }
}

mod chain {
    //! `peaje ledger verify --chain` against a chain in this process.

    use std::time::Duration;

    use peaje::chain::{AlloyChain, Call, Chain as _, KeyRef};
    use peaje::devnet::{Devnet, DevnetConfig};
    use peaje::protocol::claim::{ClaimRow, claim_batch_digest};
    use peaje::protocol::deposit::Authorization;

    use super::*;

    /// Books, and a chain on which one channel has a million units, of which so much is claimed.
    struct Stage {
        world: World,
        devnet: Devnet,
        chain: AlloyChain,
        authorizer: LocalKey,
        account: Account,
    }

    fn dev(name: &str) -> LocalKey {
        format!("dev:{name}").parse::<KeyRef>().unwrap().load(true).unwrap()
    }

    impl Stage {
        async fn set() -> Self {
            let devnet = Devnet::start(DevnetConfig { chain_id: CHAIN, ..DevnetConfig::default() }).await.unwrap();
            let chain = AlloyChain::connect(devnet.rpc_url().parse().unwrap(), Some(dev("gas"))).await.unwrap();
            let payer = dev("agent");
            devnet.mint_dollars(payer.address().0.into(), 5_000_000).unwrap();
            let authorizer = dev("authorizer");
            let config = ChannelConfig {
                payer: payer.address(),
                payer_authorizer: payer.address(),
                receiver_authorizer: authorizer.address(),
                ..Account::new(1).row.snapshot.config
            };
            let world = World::new();
            let stage = Self { account: Account::of(config, payer), world, devnet, chain, authorizer };
            stage.point_config_at(&stage.devnet.rpc_url());
            stage.deposit(1_000_000).await;
            stage
        }

        fn point_config_at(&self, url: &str) {
            let path = self.world.path("peaje.toml");
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, text.replace("http://127.0.0.1:1", url)).unwrap();
        }

        async fn send(&self, call: &Call) {
            let hash = self.chain.send(call).await.unwrap();
            let mined = self.chain.await_receipt(hash, Duration::from_secs(10), Duration::from_millis(20)).await;
            assert!(mined.unwrap().unwrap().success);
        }

        async fn deposit(&self, amount: u128) {
            let (config, amount) = (self.account.row.snapshot.config, Amount::new(amount));
            let salt = Hash([0x5a; 32]);
            let nonce = Authorization::nonce(config.id(&settlement()), salt);
            let valid_before = self.devnet.now() + 300;
            let token = Domain::new("USDC", "2", CHAIN, usdc());
            let digest = Authorization::digest(&token, config.payer, amount, 0, valid_before, nonce);
            let signature = self.account.signer.sign(digest);
            let authorization = Authorization { valid_after: 0, valid_before, salt, signature };
            self.send(&Call::Deposit { config, amount, authorization: authorization.into(), payment: None }).await;
        }

        async fn claim(&self, total: u128) {
            let latest = self.account.row.snapshot.latest.clone().unwrap();
            let rows = vec![ClaimRow {
                config: self.account.row.snapshot.config,
                max_claimable: latest.max_claimable,
                signature: latest.signature,
                total_claimed: Amount::new(total),
            }];
            let signature = self.authorizer.sign(claim_batch_digest(&settlement(), &rows));
            self.send(&Call::ClaimWithSignature { rows, signature }).await;
        }

        fn write(&mut self, entries: Vec<Entry>) {
            self.world.commit(&entries);
        }

        async fn verify(&self) -> Output {
            let config = self.world.path("peaje.toml").to_str().unwrap().to_owned();
            let run = move || peaje(&["ledger", "verify", "--chain", "--config", &config]);
            tokio::task::spawn_blocking(run).await.unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn books_that_agree_with_the_chain_pass() {
        let mut stage = Stage::set().await;
        stage.account.row.snapshot.view.block = 1;
        let charge = stage.account.charge("/v1/*", 9_000, TEN);
        stage.write(vec![charge]);
        assert_eq!(findings(&stage.verify().await), (Some(0), vec![]));
        stage.claim(9_000).await;
        // The books have not seen the claim yet; the chain is ahead of them, and not of what was charged.
        let output = stage.verify().await;
        assert_eq!(findings(&output), (Some(0), vec![]));
        let chain = &json(&output)["chain"];
        assert_eq!(chain["channels"], 1);
        let receiver = &chain["receivers"][0];
        assert_eq!(
            ["claimed", "credited", "settled", "due"].map(|name| units(&receiver[name])),
            [9_000, 9_000, 0, 9_000]
        );
        let seen = stage.account.claimed(9_000);
        stage.write(vec![seen]);
        assert_eq!(findings(&stage.verify().await), (Some(0), vec![]));
        // Export, show and chain are one and the same sum.
        let totals = stage.world.json(&["show"])["totals"].clone();
        let exported = records(&stdout(&stage.world.ledger(&["export"])));
        assert_eq!((units(&totals["claimed"]), units(&totals["charged"])), (9_000, 9_000));
        assert_eq!(exported.iter().map(|line| line["amount"].as_str()).collect::<Vec<_>>(), ["9000"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn books_older_than_the_last_claim_are_found() {
        let mut stage = Stage::set().await;
        let charge = stage.account.charge("/v1/*", 9_000, TEN);
        let id = stage.account.id().to_string();
        stage.write(vec![charge]);
        drop(stage.account.charge("/v1/*", 1, TEN));
        stage.claim(9_001).await;
        let (code, found) = findings(&stage.verify().await);
        assert_eq!((code, found), (Some(7), vec![("chain_claimed_more".to_owned(), Some(id))]));
        assert_eq!(stage.world.verify(), (Some(0), vec![]), "in themselves they are true");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn claims_and_cover_that_the_chain_does_not_have_are_found() {
        let mut stage = Stage::set().await;
        stage.account.row.snapshot.view.block = 0;
        stage.account.row.snapshot.view.balance = Amount::new(2_000_000);
        let charge = stage.account.charge("/v1/*", 1_000_001, TEN);
        let claimed = stage.account.claimed(5);
        stage.write(vec![charge, claimed]);
        let (code, found) = findings(&stage.verify().await);
        assert_eq!((code, whats(&found)), (Some(7), vec!["chain_claimed_less", "shortfall"]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_that_cannot_claim_is_a_note() {
        let mut stage = Stage::set().await;
        let config = ChannelConfig { receiver_authorizer: key(9).address(), ..stage.account.row.snapshot.config };
        let mut account = Account::of(config, dev("agent"));
        account.row.snapshot.view.block = 1;
        let charge = account.charge("/v1/*", 2_000, TEN);
        stage.write(vec![charge]);
        let (code, found) = findings(&stage.verify().await);
        // There is no such channel on this chain, so nothing covers it either.
        assert_eq!((code, whats(&found)), (Some(0), vec!["shortfall", "other_authorizer"]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_voucher_that_only_the_payer_can_judge_is_judged() {
        let mut stage = Stage::set().await;
        let config = ChannelConfig { payer_authorizer: Address::ZERO, ..stage.account.row.snapshot.config };
        let mut account = Account::of(config, key(50));
        account.row.snapshot.view.block = 1;
        let charge = account.charge("/v1/*", 2_000, TEN);
        stage.write(vec![charge]);
        assert_eq!(whats(&stage.world.verify().1), ["wallet"]);
        let output = stage.verify().await;
        let (code, found) = findings(&output);
        assert_eq!((code, whats(&found)), (Some(7), vec!["shortfall", "signature"]));
        assert_eq!((&json(&output)["problems"], &json(&output)["notes"]), (&1.into(), &1.into()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_of_another_chain_is_not_believed() {
        let stage = Stage::set().await;
        let other = Devnet::start(DevnetConfig { chain_id: 31_337, ..DevnetConfig::default() }).await.unwrap();
        let path = stage.world.path("peaje.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(&stage.devnet.rpc_url(), &other.rpc_url())).unwrap();
        let output = stage.verify().await;
        assert_eq!(output.status.code(), Some(4));
        assert!(stderr(&output).contains("chain 31337"), "{}", stderr(&output));
    }
}
