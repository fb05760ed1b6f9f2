//! The npm package beside this file: installed when it is missing or not what the lock file says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Set to `1`, the tests of this file are skipped.
const SKIP_ENV: &str = "PEAJE_SKIP_NODE_TESTS";

/// The oldest Node that the stock client runs on.
const MIN_NODE: u32 = 20;

pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stock_client")
}

/// Whether the tests were told not to run.
pub(crate) fn skipped() -> bool {
    std::env::var_os(SKIP_ENV).is_some_and(|value| value == "1")
}

/// Where `node_modules` is, complete. Installs it once a process, and in one process at a time.
pub(crate) fn node_modules() -> PathBuf {
    static READY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let ready = READY.get_or_init(|| {
        check_node()?;
        install()?;
        Ok(directory().join("node_modules"))
    });
    ready.clone().unwrap_or_else(|problem| panic!("{problem}"))
}

fn check_node() -> Result<(), String> {
    let help = format!(
        "these tests run the official x402 client and need Node {MIN_NODE} or later with npm; install it, or skip them \
         with {SKIP_ENV}=1"
    );
    let version_of = |tool: &str| match Command::new(tool).arg("--version").output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Ok(output) => Err(format!("{tool} does not run ({}): {help}", output.status)),
        Err(error) => Err(format!("{tool} does not run ({error}): {help}")),
    };
    let node = version_of("node")?;
    let major = node.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < MIN_NODE) {
        return Err(format!("node is {node}: {help}"));
    }
    version_of("npm").map(drop)
}

/// The stamp is written last, so what was interrupted is done again.
fn install() -> Result<(), String> {
    let directory = directory();
    let lock_file = directory.join("package-lock.json");
    let stamp = directory.join("node_modules/.installed-lock.json");
    let lock = File::open(&lock_file).expect("package-lock.json is in the repository");
    lock.lock().expect("the lock file can be locked");
    let wanted = fs::read(&lock_file).unwrap();
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    // Install scripts are not needed: what they would fetch comes as a package of its own.
    let output = Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"])
        .current_dir(&directory)
        .output()
        .expect("npm runs");
    if !output.status.success() {
        return Err(format!("npm ci failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    fs::write(&stamp, wanted).unwrap();
    Ok(())
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
    let path = node_modules().join(format!("@foundry-rs/anvil-{system}-{processor}/bin/anvil"));
    assert!(path.exists(), "there is no anvil for this machine at {}", path.display());
    path
}
