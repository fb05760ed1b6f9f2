//! The committed contract artifacts are what the committed Solidity compiles to.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[path = "support/npm.rs"]
mod npm;

use std::process::Command;

#[test]
fn the_artifacts_are_what_the_sources_compile_to() {
    if npm::skipped() {
        return;
    }
    let directory = npm::ready("deploy/contracts");
    let output = Command::new("node").args(["build.mjs", "--check"]).current_dir(directory).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\nnode build.mjs in deploy/contracts writes them anew");
}
