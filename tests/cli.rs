//! The command line, as it is met in a shell.

use std::process::{Command, Output};

const MINIMAL: &str = r#"[upstream]
url = "http://127.0.0.1:8080"
[chain]
network = "base-sepolia"
rpc = "env:PEAJE_TEST_RPC"
[receiver]
pay_to = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
authorizer_key = "env:PEAJE_TEST_KEY"
[[route]]
path = "/v1/*"
price = "$0.002"
"#;

/// Runs the binary in an environment of its own.
fn peaje(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peaje"))
        .args(arguments)
        .env_clear()
        .output()
        .expect("the binary was built for this test")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("the output is text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("the output is text")
}

#[test]
fn every_help_teaches() {
    for command in ["serve", "check", "redeem", "pay", "dev"] {
        let output = peaje(&[command, "--help"]);
        assert!(output.status.success());
        let help = stdout(&output);
        for part in ["Usage:", "Examples:", "Environment:", "Exit codes:", "NO_COLOR"] {
            assert!(help.contains(part), "{command}: {part}");
        }
        assert!(help.matches(&format!("peaje {command}")).count() >= 3, "{command}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{command}");
    }
    let tour = stdout(&peaje(&["--help"]));
    assert!(tour.contains("peaje dev") && tour.contains("config.example.toml"));
}

#[test]
fn help_shows_no_secret_of_the_environment() {
    let help = Command::new(env!("CARGO_BIN_EXE_peaje"))
        .args(["pay", "--help"])
        .env("PEAJE_RPC", "https://node.example/s3cret")
        .output()
        .unwrap();
    assert!(!stdout(&help).contains("s3cret"));
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for arguments in [&[][..], &["sell"], &["pay"], &["serve", "--nope"], &["pay", "http://h/", "--max-price", "x"]] {
        let output = peaje(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

#[test]
fn a_wrong_config_ends_with_3_and_all_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("peaje.toml");
    std::fs::write(&path, MINIMAL.replace("$0.002", "0.002").replace("/v1/*", "v1")).unwrap();
    let path = path.to_str().unwrap();

    let text = peaje(&["serve", "--config", path]);
    assert_eq!(text.status.code(), Some(3));
    assert!(stderr(&text).contains(":10:8 [[route]].path") && stderr(&text).contains(":11:9 [[route]].price"));
    assert!(!stderr(&text).contains('\u{1b}'), "no colours in a pipe");

    let json = peaje(&["check", "--json", "--offline", "--config", path]);
    assert_eq!(json.status.code(), Some(3));

    let missing = peaje(&["serve"]);
    assert_eq!(missing.status.code(), Some(3));
    assert!(stderr(&missing).contains("peaje.toml cannot be read"), "{}", stderr(&missing));
}
