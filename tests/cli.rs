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
    for command in ["serve", "check", "diff", "explain", "replay", "redeem", "pay", "dev"] {
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

mod prices {
    //! What can be known of prices before they are in force: `peaje diff`, `explain` and `replay`.

    use std::path::Path;

    use serde_json::{Value, json};

    use super::{MINIMAL, peaje, stderr, stdout};

    /// Files in a directory, by their whole paths.
    fn files<const N: usize>(directory: &Path, texts: [&str; N]) -> [String; N] {
        let mut number = 0;
        texts.map(|text| {
            number += 1;
            let path = directory.join(format!("{number}.toml"));
            std::fs::write(&path, text).expect("the directory is ours");
            path.to_str().expect("the path is text").to_owned()
        })
    }

    #[test]
    fn diff_ends_with_0_where_nothing_would_change_and_with_1_where_something_would() {
        let directory = tempfile::tempdir().unwrap();
        let other = MINIMAL.replace("$0.002", "$0.003").replace("env:PEAJE_TEST_RPC", "https://node.example/s3cret");
        let other = format!("{other}[[route]]\npath = \"/new\"\nprice = \"free\"\n[server]\nquote_grace = \"1m\"\n");
        let spelled = format!("# a comment\n{MINIMAL}\n[server]\nquote_grace = \"30s\"\n");
        let [old, new, same, broken] = files(directory.path(), [MINIMAL, &other, &spelled, "[server]\nx = 1"]);

        let output = peaje(&["diff", &old, &same]);
        assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
        assert_eq!(
            stdout(&output).trim(),
            json!({"same": true, "routes": [], "keys": [], "not_now": null}).to_string()
        );

        let output = peaje(&["diff", &old, &new]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).is_empty() && !stdout(&output).contains("s3cret"));
        let diff: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let routes = json!([
            {"route": "/v1/*", "requests": "/v1/*", "old": "$0.002", "new": "$0.003", "also": []},
            {"route": "/new", "requests": "/new", "old": null, "new": "free", "also": []},
        ]);
        let keys = json!([
            {"key": "[server].quote_grace", "when": "live", "old": "30s", "new": "1m"},
            {"key": "[chain].rpc", "when": "start", "old": "env:PEAJE_TEST_RPC", "new": "https://node.example/…"},
        ]);
        assert_eq!((&diff["same"], &diff["routes"], &diff["keys"]), (&json!(false), &routes, &keys));

        assert_eq!(peaje(&["diff", &old, &broken]).status.code(), Some(3));
        assert_eq!(peaje(&["diff", &old]).status.code(), Some(2));
    }

    #[test]
    fn explain_says_which_route_decides_and_what_is_charged() {
        let directory = tempfile::tempdir().unwrap();
        let more = "[[route]]\npath = \"/v1/chat\"\nmethods = [\"POST\"]\nprice = \"$0.01\"\nname = \"chat\"\n[[route]]\n\
                    path = \"/health\"\nprice = \"free\"\n";
        let [config] = files(directory.path(), [&format!("{MINIMAL}{more}")]);
        let explain = |request: &str| {
            let output =
                peaje(&["explain", request, "--config", &config, "--header", "x-tier: gold", "--at", "2026-11-22"]);
            let told: Value = serde_json::from_str(&stdout(&output)).unwrap_or_default();
            (output.status.code(), told)
        };
        let (code, told) = explain("POST /v1/chat?x=1");
        assert_eq!((code, &told["decision"], &told["quote"]), (Some(0), &json!("paid"), &json!("10000")));
        assert_eq!(told["route"], "chat");
        let charges = [(200, "10000"), (302, "10000"), (404, "0"), (500, "0")]
            .map(|(status, charge)| json!({"answer": format!("at most, with status {status}"), "charge": charge}));
        assert_eq!(told["charges"], json!(charges));
        let why = |told: &Value| -> Vec<(String, String)> {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let routes = told["routes"].as_array().unwrap().iter();
            routes.map(|route| (text(&route["route"]), text(&route["why"]))).collect()
        };
        let mut whys = why(&told);
        whys.sort();
        let expected = [
            ("/health", "its path does not match"),
            ("/v1/*", "another route's host or path is more specific"),
            ("chat", "the most specific that matches"),
        ];
        assert_eq!(whys, expected.map(|(route, why)| (route.to_owned(), why.to_owned())));
        // Without a method it is GET, which this path is not sold for: that does not fall through to a wider route.
        let (code, told) = explain("/v1/chat");
        assert_eq!((code, &told["decision"], &told["quote"]), (Some(1), &json!("refused"), &Value::Null));
        assert_eq!(told["status"], 405);
        assert_eq!(explain("/health").1["decision"], "free");
        let (code, told) = explain("GET /nothing");
        assert_eq!((code, &told["status"]), (Some(1), &json!(404)));
        assert_eq!(explain("GET /v1/../x").0, Some(1));
        for wrong in ["", "chat", "GET chat", "G{T /x", "GET /a b"] {
            assert_eq!(explain(wrong).0, Some(2), "{wrong}");
        }
    }

    #[test]
    fn explain_reads_a_body_where_the_price_depends_on_it_and_knows_who_pays_less() {
        let directory = tempfile::tempdir().unwrap();
        let (partner, stranger) = (format!("0x{}", "11".repeat(20)), format!("0x{}", "22".repeat(20)));
        let more = format!(
            "[payers]\npartners = [\"{partner}\"]\n\
             [[route]]\npath = \"/v1/chat\"\nname = \"large\"\nprice = \"$0.01\"\nmatch = {{ body = {{ model = \"large\" }} }}\n\
             [[route.for]]\npayers = [\"partners\"]\nprice = \"$0.004\"\n\
             [[route]]\npath = \"/v1/chat\"\nname = \"small\"\nprice = \"$0.001\"\nallow = [\"partners\"]\n"
        );
        let [config] = files(directory.path(), [&format!("{MINIMAL}{more}")]);
        let explain = |more: &[&str]| {
            let output = peaje(&[&["explain", "POST /v1/chat", "--config", &config], more].concat());
            let told: Value = serde_json::from_str(&stdout(&output)).unwrap_or_default();
            (output.status.code(), told)
        };
        let (code, told) = explain(&[]);
        let decision = (&told["decision"], &told["code"], &told["status"]);
        assert_eq!(decision, (&json!("depends"), &json!("body_needed"), &Value::Null), "{told}");
        assert_eq!((code, &told["message"]), (Some(0), &json!("depends on the body, give it with --body '{…}'")));
        let candidates: Vec<_> =
            told["routes"].as_array().unwrap().iter().filter(|route| route["may_decide"] == true).collect();
        let priced: Vec<_> = candidates.iter().map(|route| (&route["route"], &route["price"])).collect();
        assert_eq!(priced, [(&json!("large"), &json!("10000")), (&json!("small"), &json!("1000"))]);
        let large = ["--body", r#"{"model": "large"}"#];
        let told = explain(&large).1;
        assert_eq!(
            (&told["route"], &told["quote"], &told["price"]),
            (&json!("large"), &json!("10000"), &json!("$0.01"))
        );
        // The quote is the same for all; what is charged is not.
        let told = explain(&[&large[..], &["--payer", &partner]].concat()).1;
        assert_eq!((&told["quote"], &told["price"]), (&json!("10000"), &json!("$0.004")));
        assert_eq!(told["charges"][0]["charge"], "4000");
        let small = ["--body", "{}", "--payer"];
        let (code, told) = explain(&[&small[..], &[&stranger]].concat());
        assert_eq!((code, &told["route"], &told["payer_may_pay"]), (Some(1), &json!("small"), &json!(false)));
        assert_eq!(explain(&[&small[..], &[&partner]].concat()).0, Some(0));
    }

    #[test]
    fn explain_speaks_as_the_config_does_and_of_the_hour_that_is_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let partner = format!("0x{}", "11".repeat(20));
        let route = |name: &str, lines: &str| {
            format!(
                "[[route]]\npath = \"/v1/chat\"\nmethods = [\"POST\"]\nname = \"{name}\"\nprice = \"$0.01\"\n{lines}\n"
            )
        };
        let rules = "cap = { payer = \"$5\", per = \"1d\" }\nfree = { requests = 10, per = \"1h\", by = \"payer\" }\n\
                     rate = { per_payer = \"20 / 1m\" }\n[[route.for]]\npayers = [\"partners\"]\nprice = \"$0.001\"\n\
                     [[route.at]]\nhours = \"22:00-23:00\"\nprice = \"$0.02\"";
        let gold = "match = { header = { x-tier = \"gold\" } }";
        let more = format!("[payers]\npartners = [\"{partner}\"]\n{}{}", route("plain", rules), route("gold", gold));
        let [config] = files(directory.path(), [&format!("{MINIMAL}{more}")]);
        let explain = |request: &str, at: &str| -> Value {
            let output = peaje(&["explain", request, "--config", &config, "--at", at]);
            serde_json::from_str(&stdout(&output)).unwrap()
        };
        let told = explain("POST /v1/chat", "2026-11-22T12:00:00Z");
        let expected = json!([
            "partners (1) are charged $0.001",
            "10 requests of each payer are free in 1h",
            "a payer is charged at most $5.00 in 1d",
            "a payer is served 20 requests in 1m, on this route",
        ]);
        assert_eq!(told["rules"], expected);
        let price = |told: &Value| {
            let routes = told["routes"].as_array().unwrap();
            routes.iter().find(|route| route["route"] == "plain").unwrap()["price"].clone()
        };
        assert_eq!(price(&told), "10000");
        let later = explain("POST /v1/chat", "2026-11-22T22:30:00Z");
        assert_eq!((&later["quote"], price(&later)), (&json!("20000"), json!("20000")));
        assert_eq!(explain("GET /v1/chat", "2026-11-22T12:00:00Z")["message"], "sold for POST");
    }

    #[test]
    fn a_config_that_is_none_is_told_to_programs_as_check_tells_it() {
        let directory = tempfile::tempdir().unwrap();
        let [good, bad, log] = files(directory.path(), [MINIMAL, "[server]\nlisten = 7", ""]);
        for arguments in [
            vec!["check", "--offline", "--config", &bad],
            vec!["explain", "/x", "--config", &bad],
            vec!["replay", &log, "--config", &bad],
            vec!["replay", &log, "--config", &good, "--old", &bad],
            vec!["diff", &good, &bad],
            vec!["diff", &bad, &good],
        ] {
            let output = peaje(&arguments);
            let told: Value = serde_json::from_str(&stdout(&output)).unwrap_or_default();
            let found = (output.status.code(), &told["config"], &told["ok"], &told["findings"][0]["what"]);
            assert_eq!(found, (Some(3), &json!(bad), &json!(false), &json!("[server].listen")), "{arguments:?}");
            assert!(stderr(&output).is_empty(), "{}", stderr(&output));
        }
    }

    #[test]
    fn replay_reads_a_log_and_passes_over_what_is_no_record() {
        let directory = tempfile::tempdir().unwrap();
        let dearer = MINIMAL.replace("$0.002", "$0.005");
        let record = json!({
            "time_ms": 1_800_000_000_000u64, "method": "GET", "path": "/v1/x", "route": "/v1/*", "outcome": "paid",
            "status": 200, "quote": "2000", "charge": "2000", "elapsed_ms": 3,
        });
        let log = format!("{record}\nnonsense\n{record}\n");
        let [old, new, log, nonsense] = files(directory.path(), [MINIMAL, &dearer, &log, "nonsense"]);
        let total = |arguments: &[&str]| {
            let output = peaje(&[&["replay", &log, "--config", &new], arguments].concat());
            assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
            let told: Value = serde_json::from_str(&stdout(&output)).unwrap();
            assert_eq!((&told["records"], &told["unreadable"]), (&json!(2), &json!(1)));
            told["total"].clone()
        };
        let expected = json!({
            "old": {"requests": 2, "revenue": "4000", "refused": 0}, "new": {"requests": 2, "revenue": "10000", "refused": 0},
        });
        assert_eq!(total(&[]), expected);
        assert_eq!(total(&["--old", &old]), expected);
        assert_eq!(peaje(&["replay", &nonsense, "--config", &new]).status.code(), Some(1));
        assert_eq!(peaje(&["replay", "/no/such/log", "--config", &new]).status.code(), Some(1));
        assert_eq!(peaje(&["replay", &log, "--config", "/no/such/config"]).status.code(), Some(3));
        assert_eq!(peaje(&["replay"]).status.code(), Some(2));
    }
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
