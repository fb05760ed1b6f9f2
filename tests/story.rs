//! The story of the README, told by the real binary: `peaje dev`, and the commands it invites to try.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const ANY_PORTS: [&str; 8] = [
    "--listen",
    "127.0.0.1:0",
    "--rpc-listen",
    "127.0.0.1:0",
    "--api-listen",
    "127.0.0.1:0",
    "--admin-listen",
    "127.0.0.1:0",
];

fn peaje(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peaje"));
    command.args(arguments).env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

fn json_of(bytes: &[u8]) -> Value {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().rfind(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no JSON line in {text:?}"));
    serde_json::from_str(line).unwrap()
}

#[test]
fn two_hundred_requests_end_with_every_unit_where_it_belongs() {
    let output = peaje(&["dev", "--requests", "200", "--exit", "--json"]).args(ANY_PORTS).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1, "stdout is the summary alone");
    let summary = json_of(&output.stdout);
    assert_eq!(summary["unpaid_status"], 402);
    assert_eq!((&summary["requests"], &summary["paid"]), (&200.into(), &200.into()));
    for sum in ["charged", "claimed", "settled", "provider_received", "agent_spent"] {
        assert_eq!(summary[sum], "400000", "{sum}: 200 times $0.002");
    }
    assert_eq!(summary["agent_refunded"], "102000", "a deposit for 251 requests, less what was spent");
    assert_eq!(summary["onchain_transactions"], 4, "deposit, claim, settle, refund");
    assert!(summary["p50_us"].as_u64() > Some(0) && summary["p99_us"].as_u64() >= summary["p50_us"].as_u64());
}

/// Bare containers have none, and nothing of the story leaves the machine.
#[test]
fn a_system_without_certificates_can_tell_it_too() {
    let mut command = peaje(&["dev", "--requests", "2", "--exit", "--json"]);
    let output = command.args(ANY_PORTS).env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent");
    let output = output.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(json_of(&output.stdout)["provider_received"], "4000");

    let state = tempfile::tempdir().unwrap();
    let key = state.path().join("key");
    std::fs::write(&key, "07".repeat(32)).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let (key, state) = (format!("file:{}", key.display()), state.path().to_str().unwrap());
    let mut command = peaje(&["pay", "https://127.0.0.1:9/", "--key", &key, "--state", state]);
    let output = command.env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("CA certificates"), "https says what is missing");
}

#[test]
fn blocks_on_an_interval_change_nothing() {
    let arguments = ["dev", "--requests", "3", "--exit", "--json", "--block-time", "200ms", "--price", "0.01"];
    let output = peaje(&arguments).args(ANY_PORTS).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(json_of(&output.stdout)["provider_received"], "30000");
}

/// `peaje dev` that stays up. It is stopped, by its process id, when this is dropped.
struct Stage {
    child: Child,
    url: String,
    rpc: String,
    admin: String,
    books: String,
    state: tempfile::TempDir,
}

impl Stage {
    fn set() -> Self {
        let mut child = peaje(&["dev", "--requests", "1"]).args(ANY_PORTS).stdout(Stdio::piped()).spawn().unwrap();
        // The invitation is read as a person would: the lines to try hold the addresses.
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut url, mut rpc, mut admin, mut books) = (None, None, None, None);
        let mut alias = None;
        for line in lines {
            let line = line.unwrap();
            alias = alias.or(line.trim().strip_prefix("alias peaje=").map(str::to_owned));
            let words: Vec<_> = line.split_whitespace().collect();
            match words.as_slice() {
                ["peaje", "pay", target, "--key", "dev:agent", "--rpc", node] if target.ends_with("/fortune") => {
                    (url, rpc) = (Some((*target).to_owned()), Some((*node).to_owned()));
                }
                ["peaje", "redeem", "--admin", address] => admin = Some((*address).to_owned()),
                ["peaje", "ledger", "show", "--directory", directory] => {
                    books = Some((*directory).to_owned());
                    break;
                }
                _ => {}
            }
        }
        let alias = std::fs::canonicalize(alias.expect("a shell does not find what cargo built by its name")).unwrap();
        assert_eq!(alias, std::fs::canonicalize(env!("CARGO_BIN_EXE_peaje")).unwrap());
        let state = tempfile::tempdir().unwrap();
        Self { child, url: url.unwrap(), rpc: rpc.unwrap(), admin: admin.unwrap(), books: books.unwrap(), state }
    }

    fn pay(&self, more: &[&str]) -> Output {
        let state = self.state.path().to_str().unwrap();
        let arguments = ["pay", &self.url, "--key", "dev:agent", "--rpc", &self.rpc, "--state", state];
        peaje(&arguments).args(more).output().unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_commands_it_invites_to_try_work() {
    let stage = Stage::set();

    let first = stage.pay(&["--include"]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let shown = String::from_utf8(first.stdout).unwrap();
    assert!(shown.contains("200 OK") && shown.contains("payment-response: ") && shown.contains("fortune"), "{shown}");
    let summary = json_of(&first.stderr);
    assert_eq!((&summary["charged"], &summary["deposited"]), (&"2000".into(), &"10000".into()));

    let second = json_of(&stage.pay(&[]).stderr);
    assert_eq!((&second["charged"], &second["deposited"]), (&"2000".into(), &Value::Null), "a voucher and no more");
    assert_eq!(second["remaining"], "6000");

    let too_dear = stage.pay(&["--max-price", "0.001"]);
    assert_eq!(too_dear.status.code(), Some(5), "{}", String::from_utf8_lossy(&too_dear.stderr));

    let plan = json_of(&peaje(&["redeem", "--dry-run", "--admin", &stage.admin]).output().unwrap().stdout);
    assert_eq!((&plan["claims"], &plan["batches"][0]["rows"]), (&"4000".into(), &1.into()), "{plan}");

    let redeemed = peaje(&["redeem", "--admin", &stage.admin]).output().unwrap();
    assert!(redeemed.status.success());
    let report = json_of(&redeemed.stdout);
    assert_eq!(
        (&report["claimed"], &report["settled"], &report["left"]),
        (&"4000".into(), &"4000".into(), &"0".into())
    );
    assert_eq!(json_of(&peaje(&["redeem", "--admin", &stage.admin]).output().unwrap().stdout)["claimed"], "0");

    let shown = json_of(&peaje(&["ledger", "show", "--directory", &stage.books]).output().unwrap().stdout);
    assert_eq!(shown["totals"]["charged"], "6000", "{shown}: one request of the story, and two of ours");

    let refunded = stage.pay(&["--refund"]);
    assert!(refunded.status.success(), "{}", String::from_utf8_lossy(&refunded.stderr));
    assert_eq!(json_of(&refunded.stdout)["refunded"], "6000");
}

#[test]
fn a_development_key_is_refused_without_a_chain_on_this_machine() {
    for rpc in [&[][..], &["--rpc", "https://rpc.example"]] {
        let mut command = peaje(&["pay", "http://127.0.0.1:9/", "--key", "dev:agent"]);
        let output = command.args(rpc).env_remove("PEAJE_RPC").output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert!(String::from_utf8_lossy(&output.stderr).contains("development key"));
    }
}
