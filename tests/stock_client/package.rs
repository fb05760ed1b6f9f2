//! The npm package beside this file: the stock client, and anvil.

use std::path::PathBuf;
use std::sync::OnceLock;

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
