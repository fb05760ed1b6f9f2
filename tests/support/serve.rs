//! `peaje serve`, the real binary, and what an operator can ask it.
#![allow(dead_code, reason = "a toolbox: not every test needs every tool")]
#![allow(clippy::print_stdout, reason = "a log is shown where a test fails")]

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use peaje::admin::{ChannelLine, Status};
use peaje::redeem::Report;
use tempfile::TempDir;

/// How long starting or stopping may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a start is tried again because somebody else took the port in between.
const MAX_STARTS: usize = 5;

pub(crate) struct Peaje {
    directory: TempDir,
    child: Option<Child>,
    listen: SocketAddr,
    admin: SocketAddr,
    client: reqwest::Client,
    /// A process whose file systems it sees instead of ours.
    within: Option<u32>,
}

/// What the config of a test says.
pub(crate) struct Settings<'a> {
    pub(crate) rpc: &'a str,
    pub(crate) upstream: SocketAddr,
    pub(crate) pay_to: String,
    /// Such as `$0.002`.
    pub(crate) price: &'a str,
    pub(crate) min_deposit: &'a str,
    /// `debug` says what happened; `warn` keeps the log of a long test short.
    pub(crate) log: &'a str,
    /// Where the books are: beside the config, by default.
    pub(crate) books: Option<PathBuf>,
    /// Lines of `[redeem]`.
    pub(crate) redeem: &'a str,
    /// A process whose file systems the proxy sees instead of ours.
    pub(crate) within: Option<u32>,
}

impl Settings<'_> {
    fn config(&self, listen: SocketAddr, admin: SocketAddr) -> String {
        let Self { rpc, upstream, pay_to, price, min_deposit, log, books, redeem, .. } = self;
        let books = books.as_deref().unwrap_or(Path::new("books")).display();
        format!(
            r#"
            [server]
            listen = "{listen}"
            shutdown_timeout = "10s"
            [admin]
            listen = "{admin}"
            [upstream]
            url = "http://{upstream}"
            [chain]
            network = "base-sepolia"
            rpc = "{rpc}"
            poll = "50ms"
            [receiver]
            pay_to = "{pay_to}"
            authorizer_key = "dev:authorizer"
            gas_key = "dev:gas"
            [channel]
            min_deposit = "{min_deposit}"
            [store]
            directory = "{books}"
            [redeem]
            {redeem}
            [log]
            level = "{log}"
            format = "text"
            [[route]]
            path = "/*"
            price = "{price}"
            "#
        )
    }
}

impl Peaje {
    /// A proxy with a config that is not started yet.
    pub(crate) fn prepare(settings: &Settings<'_>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let client = http_client();
        let [listen, admin] = free_ports();
        let peaje = Self { directory, child: None, listen, admin, client, within: settings.within };
        peaje.configure(settings);
        peaje
    }

    fn configure(&self, settings: &Settings<'_>) {
        fs::write(self.directory.path().join("peaje.toml"), settings.config(self.listen, self.admin)).unwrap();
    }

    /// Changes what the config says, for the next start.
    pub(crate) fn amend(&self, from: &str, to: &str) {
        let path = self.directory.path().join("peaje.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    /// Starts the proxy on free ports, and waits until it is ready.
    pub(crate) async fn start(settings: &Settings<'_>) -> Self {
        let mut peaje = Self::prepare(settings);
        for _ in 0..MAX_STARTS {
            if peaje.run().await {
                return peaje;
            }
            [peaje.listen, peaje.admin] = free_ports();
            peaje.configure(settings);
        }
        panic!("peaje serve does not start");
    }

    /// Starts it again where it was.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        for _ in 0..MAX_STARTS {
            if self.run().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("peaje serve does not start again");
    }

    /// Starts it where it was, to see it end by itself: its exit code, and what it said.
    pub(crate) async fn fail_to_start(&mut self) -> (Option<i32>, String) {
        assert!(self.child.is_none(), "it runs");
        let said_before = self.log().len();
        self.spawn();
        let status = self.ended().await;
        (status.code(), self.log().split_off(said_before))
    }

    fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.directory.path().join("log")).unwrap();
        let binary = env!("CARGO_BIN_EXE_peaje");
        let mut command = match self.within {
            None => Command::new(binary),
            Some(process) => {
                let mut command = Command::new("nsenter");
                let process = process.to_string();
                command.args(["--user", "--preserve-credentials", "--mount", "--target", &process, "--", binary]);
                command
            }
        };
        // By its whole path: who enters other file systems leaves the current directory behind.
        let child = command
            .args(["serve", "--config"])
            .arg(self.directory.path().join("peaje.toml"))
            .current_dir(self.directory.path())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the binary was built for this test");
        self.child = Some(child);
    }

    /// Runs the binary until it is ready; false if it ended instead.
    async fn run(&mut self) -> bool {
        self.spawn();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                self.child = None;
                return false;
            }
            let ready = self.client.get(format!("http://{}/readyz", self.admin)).send().await;
            if ready.is_ok_and(|answer| answer.status().is_success()) {
                return true;
            }
            assert!(Instant::now() < deadline, "peaje serve is not ready after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The directory of its books, as the config says by default.
    pub(crate) fn books(&self) -> PathBuf {
        self.directory.path().join("books")
    }

    /// What it said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Another command of the binary, with the same config.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_peaje"))
            .args(arguments)
            .args(["--config", "peaje.toml"])
            .current_dir(self.directory.path())
            .env_clear()
            .output()
            .expect("the binary was built for this test")
    }

    /// The same, where it must succeed: what it printed.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.command(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output.stdout
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    /// The books, as `/channels` shows them.
    pub(crate) async fn channels(&self) -> Vec<ChannelLine> {
        let answer = self.client.get(format!("http://{}/channels", self.admin)).send().await.unwrap();
        answer.json().await.unwrap()
    }

    /// The only channel in the books.
    pub(crate) async fn channel(&self) -> ChannelLine {
        let mut channels = self.channels().await;
        assert_eq!(channels.len(), 1, "{channels:?}");
        channels.remove(0)
    }

    /// `peaje redeem --admin`, which has to succeed.
    pub(crate) fn redeem(&self) -> Report {
        let output = Command::new(env!("CARGO_BIN_EXE_peaje"))
            .args(["redeem", "--json", "--admin", &format!("http://{}", self.admin)])
            .env_clear()
            .output()
            .expect("the binary was built for this test");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("the report is JSON")
    }

    /// Tells it to stop, as a supervisor does, and does not wait.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Tells it to read its config again, and does not wait.
    pub(crate) fn hang_up(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("it runs");
        let status = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
    }

    /// What is in force, as `/status` shows it.
    pub(crate) async fn status(&self) -> Status {
        let answer = self.client.get(format!("http://{}/status", self.admin)).send().await.unwrap();
        answer.json().await.unwrap()
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                self.child = Some(child);
                panic!("peaje serve does not stop within {PATIENCE:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops it gracefully: it has to end well.
    pub(crate) async fn stop(&mut self) {
        self.terminate();
        let status = self.ended().await;
        assert_eq!(status.code(), Some(0), "{status}");
    }

    /// Ends it without warning, and does not wait.
    pub(crate) fn kill(&self) {
        self.signal("-KILL");
    }

    /// Waits until it is gone after [`Peaje::kill`].
    pub(crate) fn crash_is_over(&mut self) {
        self.child.take().expect("it was killed").wait().unwrap();
    }

    /// Ends it without warning, as a crash would.
    pub(crate) fn crash(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Its disk is gone.
    pub(crate) fn lose_books(&self) {
        fs::remove_dir_all(self.books()).unwrap();
    }
}

impl Drop for Peaje {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            println!("---- the proxy's log\n{log}----");
        }
    }
}

/// Two ports that are free now.
fn free_ports() -> [SocketAddr; 2] {
    let sockets = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    sockets.map(|socket| socket.local_addr().unwrap())
}

/// A client that goes straight to where it is told.
pub(crate) fn http_client() -> reqwest::Client {
    peaje::chain::install_tls();
    reqwest::Client::builder().no_proxy().build().unwrap()
}
