//! One process follows another while clients go on: the real binary, real sockets, a real chain for development. No request
//! may fail, and what was paid before counts afterwards.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on should say so at once"
)]
#![cfg(target_os = "linux")]

#[path = "support/front.rs"]
mod front;
#[path = "support/payer.rs"]
mod payer;
#[path = "support/raw.rs"]
mod raw;
#[path = "support/serve.rs"]
mod serve;
#[path = "support/stage.rs"]
mod stage;

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use peaje::chain::KeyRef;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use front::Authority;
use raw::soon;
use serve::Peaje;
use stage::{DEPOSIT, PRICE, Stage, ask};

/// How long a process may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(40);

/// A process of the binary that is ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn terminate(&self) {
        assert!(Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap().success());
    }

    async fn ends_well(&mut self) {
        let ended = async {
            loop {
                if let Some(status) = self.0.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let status = tokio::time::timeout(PATIENCE, ended).await.expect("it ends");
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

/// The binary with the config of a proxy that was prepared.
fn serve_command(config: &Path, log: &str) -> Command {
    let log = File::options().create(true).append(true).open(config.with_file_name(log)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_peaje"));
    command.args(["serve", "--config"]).arg(config).env_clear().env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command
}

fn config_of(peaje: &Peaje) -> PathBuf {
    peaje.books().with_file_name("peaje.toml")
}

fn address_of(peaje: &Peaje) -> SocketAddr {
    peaje.url("").strip_prefix("http://").unwrap().parse().unwrap()
}

/// A proxy with a config, and the socket that it is to listen on.
fn prepared_and_bound(settings: &serve::Settings<'_>) -> (Peaje, TcpListener) {
    for _ in 0..5 {
        let prepared = Peaje::prepare(settings);
        // Somebody else may have got the port since it was found free.
        if let Ok(held) = TcpListener::bind(address_of(&prepared)) {
            return (prepared, held);
        }
    }
    panic!("no port stays free");
}

/// Waits until a log says that it is open for the `n`th time.
async fn opens(config: &Path, log: &str) {
    let wait = async {
        while !std::fs::read_to_string(config.with_file_name(log)).unwrap_or_default().contains("open listen=") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let opened = tokio::time::timeout(PATIENCE, wait).await;
    assert!(opened.is_ok(), "{}", std::fs::read_to_string(config.with_file_name(log)).unwrap_or_default());
}

/// Clients that ask without a pause, each in its own way, until they are told to stop.
struct Crowd {
    tasks: JoinSet<()>,
    answered: Arc<AtomicUsize>,
    failures: Arc<std::sync::Mutex<Vec<String>>>,
    stop: CancellationToken,
}

impl Crowd {
    fn gather(url: &str) -> Self {
        let (answered, failures, stop) = (Arc::default(), Arc::default(), CancellationToken::new());
        let mut crowd = Self { tasks: JoinSet::new(), answered, failures, stop };
        let kept = || reqwest::Client::builder().no_proxy();
        for n in 0..8 {
            // A connection for each request; one that is kept; HTTP/2.
            let client = match n % 4 {
                0 | 1 => kept().pool_max_idle_per_host(0),
                2 => kept(),
                _ => kept().http2_prior_knowledge(),
            };
            let client = client.timeout(PATIENCE).build().unwrap();
            let (answered, failures, stop) =
                (Arc::clone(&crowd.answered), Arc::clone(&crowd.failures), crowd.stop.clone());
            let url = url.to_owned();
            crowd.tasks.spawn(async move {
                while !stop.is_cancelled() {
                    match client.get(&url).send().await {
                        // A quote is what there is to get for nothing.
                        Ok(answer) => {
                            let quoted = answer.status() == 402;
                            match answer.bytes().await {
                                Ok(_) if quoted => drop(answered.fetch_add(1, Ordering::Relaxed)),
                                other => failures.lock().unwrap().push(format!("client {n}: no quote: {other:?}")),
                            }
                        }
                        Err(error) => failures.lock().unwrap().push(format!("client {n}: {error:?}")),
                    }
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            });
        }
        crowd
    }

    /// Lets so many more be answered.
    async fn go_on(&self, count: usize) {
        let until = self.answered.load(Ordering::Relaxed) + count;
        soon(async {
            while self.answered.load(Ordering::Relaxed) < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    async fn disperse(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        let failures = self.failures.lock().unwrap();
        assert!(failures.is_empty(), "{} failed: {:#?}", failures.len(), &failures[..failures.len().min(5)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_takes_over_costs_no_request_and_goes_on_with_the_books() {
    let stage = Stage::set().await;
    let mut first = Peaje::start(&stage.settings()).await;
    let (config, url) = (config_of(&first), first.url("/thing"));
    let payer = stage.payer(&first, 7);
    assert_eq!(ask(&stage.client, &url, &payer.deposit(DEPOSIT, PRICE)).await.unwrap().status(), 200);
    let crowd = Crowd::gather(&url);
    crowd.go_on(100).await;
    let mut paid = PRICE;
    let mut successors = Vec::new();
    for n in 0..3 {
        let log = format!("log-{n}");
        successors.push(Process(serve_command(&config, &log).arg("--take-over").spawn().unwrap()));
        // Payments meanwhile: each is served once, by the one or the other.
        for _ in 0..20 {
            paid += PRICE;
            let answer = ask(&stage.client, &url, &payer.voucher(paid)).await.unwrap();
            assert_eq!(answer.status(), 200, "{answer:?}");
        }
        match successors.len().checked_sub(2) {
            None => assert_eq!(first.ended().await.code(), Some(0)),
            Some(before) => successors[before].ends_well().await,
        }
        opens(&config, &log).await;
        crowd.go_on(50).await;
    }
    crowd.disperse().await;
    assert_eq!(first.channel().await.charged.units(), paid);
    let mut last = successors.pop().unwrap();
    last.terminate();
    last.ends_well().await;
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_redeems_in_place_of_the_one_it_follows() {
    let stage = Stage::set().await;
    let settings = stage.settings();
    let settings = serve::Settings { redeem: "on_shutdown = true", ..settings };
    let mut first = Peaje::start(&settings).await;
    let (config, url) = (config_of(&first), first.url("/thing"));
    let payer = stage.payer(&first, 7);
    assert_eq!(ask(&stage.client, &url, &payer.deposit(DEPOSIT, PRICE)).await.unwrap().status(), 200);
    let mut second = Process(serve_command(&config, "log-2").arg("--take-over").spawn().unwrap());
    assert_eq!(first.ended().await.code(), Some(0));
    opens(&config, "log-2").await;
    assert_eq!(stage.received(), 0, "clients waited for the books, not for the chain");
    second.terminate();
    second.ends_well().await;
    assert_eq!(stage.received(), PRICE);
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_a_supervisor_holds_outlives_its_processes() {
    let stage = Stage::set().await;
    let (prepared, held) = prepared_and_bound(&stage.settings());
    let config = config_of(&prepared);
    // As a supervisor does it: the socket is number 3, and the process is told so.
    let start = |log: &str| {
        let command = serve_command(&config, log);
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg("exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"").arg("sh");
        shell.arg(command.get_program()).args(command.get_args()).env_clear();
        let log = File::options().create(true).append(true).open(config.with_file_name(log)).unwrap();
        shell.stdin(Stdio::from(OwnedFd::from(held.try_clone().unwrap())));
        Process(shell.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    };
    // Before there is anybody, connections wait.
    let crowd = Crowd::gather(&prepared.url("/thing"));
    let mut process = start("log-0");
    opens(&config, "log-0").await;
    for n in 1..4 {
        crowd.go_on(60).await;
        process.terminate();
        process.ends_well().await;
        let log = format!("log-{n}");
        process = start(&log);
        opens(&config, &log).await;
    }
    crowd.go_on(60).await;
    crowd.disperse().await;
    process.terminate();
    process.ends_well().await;
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_pays_over_https_with_an_authority_of_its_own() {
    let stage = Stage::set().await;
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(directory.path(), &["localhost"]);
    let trusted = authority.trusted_in(directory.path());
    let prepared = Peaje::prepare(&stage.settings());
    let config = config_of(&prepared);
    let tls =
        format!("[server]\ntls = {{ cert = \"{0}/cert.pem\", key = \"{0}/key.pem\" }}\n", directory.path().display());
    prepared.amend("[server]\n", &tls);
    let agent = "dev:agent".parse::<KeyRef>().unwrap().load(true).unwrap().address();
    stage.devnet.mint_dollars(alloy::primitives::Address::new(agent.0), DEPOSIT).unwrap();
    let mut process = Process(serve_command(&config, "log-0").spawn().unwrap());
    opens(&config, "log-0").await;
    let url = format!("https://localhost:{}/thing", address_of(&prepared).port());
    let pay = |authority: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peaje"));
        command.args(["pay", &url, "--key", "dev:agent", "--rpc", &stage.rpc, "--state"]);
        command.arg(directory.path().join("state")).env_clear().env("SSL_CERT_FILE", authority);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    for _ in 0..2 {
        let output = pay(&trusted).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, b"served");
    }
    assert_eq!(prepared.channel().await.charged.units(), 2 * PRICE);
    let stranger = tempfile::tempdir().unwrap();
    let output = pay(&Authority::new().trusted_in(stranger.path())).await.unwrap();
    assert!(!output.status.success(), "whoever is not trusted is not paid");
    assert_eq!(prepared.channel().await.charged.units(), 2 * PRICE);
    process.terminate();
    process.ends_well().await;
    stage.strike().await;
}
