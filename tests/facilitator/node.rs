//! The official facilitator in a process of its own.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use super::npm;

/// The account that pays for gas, of the development chain's; nobody else uses it here.
pub(crate) const KEY: usize = 6;

/// It ends when this is dropped, by its process id.
pub(crate) struct Node {
    child: Child,
    pub(crate) url: String,
}

impl Node {
    pub(crate) fn start(rpc: &str) -> Self {
        static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
        let package = PACKAGE.get_or_init(|| npm::ready("tests/stock_client"));
        let mut child = Command::new("node")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/facilitator/driver.mjs"))
            .args([package.as_os_str(), rpc.as_ref(), peaje::devnet::genesis::DEV_KEYS[KEY].to_string().as_ref()])
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the facilitator said {line:?}"));
        Self { child, url: format!("http://127.0.0.1:{}", told["port"]) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
