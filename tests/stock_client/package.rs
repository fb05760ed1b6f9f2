//! The npm package beside this file: the stock client, and anvil.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use crate::npm;

/// Where the package is, installed.
pub(crate) fn directory() -> PathBuf {
    static READY: OnceLock<PathBuf> = OnceLock::new();
    READY.get_or_init(|| npm::ready("tests/stock_client")).clone()
}

/// The anvil of this machine's own package.
pub(crate) fn anvil() -> PathBuf {
    let system = match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let processor = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let path = directory().join(format!("node_modules/@foundry-rs/anvil-{system}-{processor}/bin/anvil"));
    assert!(path.exists(), "there is no anvil for this machine at {}", path.display());
    path
}

/// Starts anvil on a free port, which it tells; the process and its URL.
pub(crate) fn start_anvil(chain_id: u64, more: &[&str]) -> (Child, String) {
    let mut anvil = Command::new(anvil())
        .args(["--host", "127.0.0.1", "--port", "0", "--chain-id", &chain_id.to_string()])
        .args(more)
        .env_clear()
        .env("HOME", env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("anvil runs");
    let output = BufReader::new(anvil.stdout.take().unwrap());
    let (sender, address) = mpsc::channel();
    // Goes on reading after the address, so that anvil's pipe never fills.
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some((_, address)) = line.split_once("Listening on ") {
                let _ = sender.send(address.trim().to_owned());
            }
        }
    });
    match address.recv_timeout(Duration::from_secs(30)) {
        Ok(address) => (anvil, format!("http://{address}")),
        Err(error) => {
            let _ = anvil.kill();
            panic!("anvil does not listen: {error}");
        }
    }
}
