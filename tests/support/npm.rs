//! The npm packages of this repository: installed when they are missing or not what their lock file says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set to `1`, the tests that need Node are skipped.
const SKIP_ENV: &str = "PEAJE_SKIP_NODE_TESTS";

/// The oldest Node that the stock client and the compiler run on.
const MIN_NODE: u32 = 20;

/// Whether the tests were told not to run.
pub(crate) fn skipped() -> bool {
    std::env::var_os(SKIP_ENV).is_some_and(|value| value == "1")
}

/// A package's directory, with its `node_modules` complete. Installs them once, in one process at a time.
pub(crate) fn ready(package: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(package);
    check_node().and_then(|()| install(&directory)).unwrap_or_else(|problem| panic!("{package}: {problem}"));
    directory
}

fn check_node() -> Result<(), String> {
    let help = format!(
        "this test runs the official x402 client or the Solidity compiler and needs Node {MIN_NODE} or later with npm; \
         install it, or skip such tests with {SKIP_ENV}=1"
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
fn install(directory: &Path) -> Result<(), String> {
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
        .current_dir(directory)
        .output()
        .expect("npm runs");
    if !output.status.success() {
        return Err(format!("npm ci failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    fs::write(&stamp, wanted).unwrap();
    Ok(())
}
