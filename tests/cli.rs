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
        assert!(!help.starts_with("The arguments") && help.lines().nth(2).unwrap().len() > 40, "{command}");
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

mod check {
    //! `peaje check` against a chain and an upstream in this process.

    use std::net::SocketAddr;
    use std::path::PathBuf;

    use peaje::devnet::{Devnet, DevnetConfig};
    use serde_json::Value;

    use super::{peaje, stdout};

    /// What a config names, and the directory it is in.
    struct World {
        devnet: Devnet,
        upstream: SocketAddr,
        dir: tempfile::TempDir,
    }

    impl World {
        async fn new(chain_id: u64) -> Self {
            let devnet = Devnet::start(DevnetConfig { chain_id, ..DevnetConfig::default() }).await.expect("it starts");
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
            let upstream = listener.local_addr().expect("it is bound");
            tokio::spawn(async move { axum::serve(listener, axum::Router::new()).await });
            Self { devnet, upstream, dir: tempfile::tempdir().expect("a directory can be made") }
        }

        /// The code and the findings for a config in which one text was replaced.
        async fn check(&self, from: &str, to: &str) -> (Option<i32>, Vec<Value>) {
            let text = format!(
                "[upstream]\nurl = \"http://{}\"\n[chain]\nnetwork = \"base-sepolia\"\nrpc = \"{}\"\n[receiver]\n\
                 pay_to = \"0x209693Bc6afc0C5328bA36FaF03C514EF312287C\"\nauthorizer_key = \"dev:authorizer\"\n\
                 gas_key = \"dev:gas\"\n[[route]]\npath = \"/v1/*\"\nprice = \"$0.002\"\n[[route]]\npath = \
                 \"/health\"\n\
                 price = \"free\"\n",
                self.upstream,
                self.devnet.rpc_url()
            );
            assert!(text.contains(from));
            let path: PathBuf = self.dir.path().join("peaje.toml");
            std::fs::write(&path, text.replace(from, to)).expect("the directory is ours");
            let path = path.to_str().expect("the path is text").to_owned();
            let output = tokio::task::spawn_blocking(move || peaje(&["check", "--config", &path]))
                .await
                .expect("the process runs");
            let report: Value = serde_json::from_str(&stdout(&output)).expect("a pipe gets JSON");
            let part = |key: &str| report.get(key).cloned().unwrap_or_default();
            assert_eq!(part("ok"), output.status.code() == Some(0));
            (output.status.code(), part("findings").as_array().expect("a list of findings").clone())
        }
    }

    /// What was found that is not fine.
    fn complaints(findings: &[Value]) -> Vec<(&str, &str)> {
        fn text<'v>(finding: &'v Value, key: &str) -> &'v str {
            finding.get(key).and_then(Value::as_str).unwrap_or_default()
        }
        findings
            .iter()
            .map(|finding| (text(finding, "severity"), text(finding, "what")))
            .filter(|(severity, _)| *severity != "ok")
            .collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_good_config_passes() {
        let world = World::new(84_532).await;
        let (code, findings) = world.check("", "").await;
        assert_eq!((code, complaints(&findings)), (Some(0), vec![]), "{findings:#?}");
        let looked_at: Vec<_> = findings.iter().filter_map(|finding| finding["what"].as_str()).collect();
        let expected = [
            "config",
            "free routes",
            "books",
            "keys",
            "chain",
            "settlement contract",
            "deposit collector",
            "token",
            "gas",
            "upstream",
        ];
        assert_eq!(looked_at, expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn everything_wrong_is_found_at_once() {
        let world = World::new(84_532).await;
        let cases = [
            ("\"dev:gas\"", "\"file:/no/such/key\"", 3, vec![("error", "gas_key")]),
            ("\"dev:authorizer\"", "\"env:PEAJE_TEST_UNSET\"", 3, vec![("error", "authorizer_key")]),
            (
                "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
                "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
                0,
                vec![("warning", "pay_to")],
            ),
            (
                "rpc = ",
                "token = { address = \"0x036CbD53842c5426634e7929541eC2318f3dCF7e\", decimals = 6, domain_name = \
                 \"USD Coin\", \
                 domain_version = \"2\" }\nrpc = ",
                4,
                vec![("error", "token")],
            ),
            (
                "rpc = ",
                "token = { address = \"0x5555555555555555555555555555555555555555\", decimals = 6, domain_name = \
                 \"X\", \
                 domain_version = \"2\" }\nrpc = ",
                4,
                vec![("error", "token")],
            ),
            ("\"base-sepolia\"", "\"base\"", 4, vec![("error", "chain")]),
            ("[chain]\n", "connect_timeout = \"1s\"\n[chain]\n", 0, vec![]),
            (
                "\"/v1/*\"\nprice = \"$0.002\"",
                "\"/v1/*\"\nprice = \"free\"",
                0,
                vec![("warning", "free routes"), ("warning", "prices")],
            ),
        ];
        for (from, to, code, expected) in cases {
            let (found_code, findings) = world.check(from, to).await;
            assert_eq!((found_code, complaints(&findings)), (Some(code), expected), "{to}: {findings:#?}");
        }
        let nobody = format!("http://{}", world.upstream);
        let (code, findings) = world.check(&nobody, "http://127.0.0.1:1").await;
        assert_eq!((code, complaints(&findings)), (Some(6), vec![("error", "upstream")]));
        let rpc = world.devnet.rpc_url();
        let (code, findings) = world.check(&rpc, "http://127.0.0.1:1").await;
        assert_eq!((code, complaints(&findings)), (Some(4), vec![("error", "rpc")]));
        let (code, findings) = world.check(&rpc, "env:PEAJE_TEST_UNSET").await;
        assert_eq!((code, complaints(&findings)), (Some(3), vec![("error", "rpc")]));
        let (code, findings) = world.check("$0.002", "0.002").await;
        assert_eq!((code, complaints(&findings)), (Some(3), vec![("error", "[[route]].price")]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_empty_gas_account_is_an_error() {
        let world = World::new(84_532).await;
        let gas = world.devnet.dev_signer(0).address();
        world.devnet.set_balance(gas, Default::default());
        let (code, findings) = world.check("", "").await;
        assert_eq!((code, complaints(&findings)), (Some(4), vec![("error", "gas")]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn offline_asks_nobody() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let path = dir.path().join("peaje.toml");
        std::fs::write(&path, super::MINIMAL).expect("the directory is ours");
        let output = peaje(&["check", "--offline", "--config", path.to_str().expect("the path is text")]);
        assert_eq!(output.status.code(), Some(0));
    }
}
