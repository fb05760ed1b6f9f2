//! The processes under test, and the CPU time they take.
//!
//! **Owns** every process and directory the bench makes. **Promises** that they are gone when it ends, also by a panic or
//! a signal, and that nothing is ended but by the id it was started with. CPU time is what the system says of a process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a process may take until it answers; with a million channels in its books it takes some seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long it may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// Clock ticks a second in `/proc`: the same on every Linux that runs this.
const TICKS_PER_SECOND: f64 = 100.0;

/// What was started and not stopped yet, for the signal that ends the bench.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
static ROOT: OnceLock<PathBuf> = OnceLock::new();

fn running() -> std::sync::MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory on disk for everything; it goes when this is dropped.
pub(crate) fn root() -> TempDir {
    // Not the system's temporary directory, which is in memory on some machines: there, durable costs nothing.
    let root = tempfile::Builder::new().prefix("line-rate-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    ROOT.set(root.path().to_owned()).unwrap();
    root
}

/// Ends everything and the bench with it, when it is told to stop.
pub(crate) async fn end_when_told() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let mut hangup = signal(SignalKind::hangup()).unwrap();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    for process in running().iter() {
        tell(*process, "TERM");
    }
    std::thread::sleep(Duration::from_millis(500));
    for process in running().iter() {
        tell(*process, "KILL");
    }
    if let Some(root) = ROOT.get() {
        let _ = fs::remove_dir_all(root);
    }
    std::process::exit(130);
}

fn tell(process: u32, signal: &str) {
    // The shell's own `kill`, which every system has.
    let told = Command::new("sh").args(["-c", &format!("kill -{signal} {process}")]).stderr(Stdio::null()).status();
    drop(told);
}

/// A process that does not outlive the bench.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    /// Whose CPU time counts.
    counted: Vec<u32>,
    pub(crate) address: SocketAddr,
}

impl Running {
    fn start(command: &mut Command, address: SocketAddr) -> Self {
        let child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        running().insert(child.id());
        Self { counted: vec![child.id()], child, address }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// CPU time so far.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for process in &self.counted {
            usage.add(*process);
        }
        usage
    }

    /// Bytes resident.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() * 1024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        tell(self.id(), "TERM");
        let begun = Instant::now();
        while begun.elapsed() < GRACE && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        running().remove(&self.child.id());
    }
}

/// CPU time, microseconds.
#[derive(Debug, Default, Clone)]
pub(crate) struct Usage {
    pub(crate) total_us: f64,
    /// By the names of threads, without their numbers; only of threads that live.
    pub(crate) threads_us: BTreeMap<String, f64>,
}

impl Usage {
    fn add(&mut self, process: u32) {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("the process lives");
        // The name before may hold spaces; user and system time are the 12th and 13th fields behind it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
        self.total_us += (ticks(11) + ticks(12)) / TICKS_PER_SECOND * 1e6;
        for task in fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            let spent = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let nanos = spent.split_whitespace().next().and_then(|nanos| nanos.parse::<f64>().ok());
            let name = name.trim().trim_end_matches(|end: char| end.is_ascii_digit() || end == '-');
            *self.threads_us.entry(name.to_owned()).or_default() += nanos.unwrap_or_default() / 1e3;
        }
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        let of = |name: &String| before.threads_us.get(name).copied().unwrap_or_default();
        let threads_us = self.threads_us.iter().map(|(name, spent)| (name.clone(), spent - of(name)));
        Self { total_us: self.total_us - before.total_us, threads_us: threads_us.collect() }
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Asks until the answer has a status below 400.
fn until_it_answers(running: &mut Running, path: &str, log: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let begun = Instant::now();
    let request = super::wire::get(path, &[]);
    let answers = || {
        let ask = async {
            let mut connection = super::wire::Connection::open(running.address, super::load::HERE).await.ok()?;
            connection.exchange(&request).await.ok()
        };
        runtime.block_on(ask).is_some_and(|status| status < 400)
    };
    while !answers() {
        let ended = running.child.try_wait().unwrap();
        let said = || fs::read_to_string(log).unwrap_or_default();
        assert!(ended.is_none(), "it has ended: {ended:?}\n{}", said());
        assert!(begun.elapsed() < PATIENCE, "no answer after {PATIENCE:?}\n{}", said());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `peaje serve`, as it is released, on a config in this directory. A build whose config cannot say how many threads serve
/// is told through its runtime.
pub(crate) fn peaje(directory: &Path, address: SocketAddr, threads: Option<usize>) -> Running {
    let log = directory.join("log");
    let out = fs::File::create(&log).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_peaje"));
    command.args(["serve", "--config"]).arg(directory.join("peaje.toml")).current_dir(directory).env_clear();
    command.stdout(out.try_clone().unwrap()).stderr(out);
    if let Some(threads) = threads {
        command.env("TOKIO_WORKER_THREADS", threads.to_string());
    }
    let mut running = Running::start(&mut command, address);
    until_it_answers(&mut running, "/free", &log);
    running
}

/// nginx in front of the same upstream; `None` where it is not installed.
pub(crate) fn nginx(directory: &Path, upstream: SocketAddr, workers: usize) -> Option<Running> {
    let program = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx", "/usr/local/bin/nginx"];
    let program = program.iter().find(|program| Path::new(program).exists())?;
    fs::create_dir_all(directory).unwrap();
    let (address, log, config) = (free_port(), directory.join("log"), directory.join("nginx.conf"));
    fs::write(&config, nginx_config(directory, address, upstream, workers)).unwrap();
    let mut command = Command::new(program);
    command.arg("-e").arg(&log).arg("-p").arg(directory).arg("-c").arg(&config);
    command.stdout(Stdio::null()).stderr(fs::File::create(directory.join("err")).unwrap());
    let mut running = Running::start(&mut command, address);
    until_it_answers(&mut running, "/free", &log);
    let workers_of_it = children(running.id());
    assert_eq!(workers_of_it.len(), workers, "nginx has other workers than it was told");
    running.counted = workers_of_it;
    Some(running)
}

fn nginx_config(directory: &Path, address: SocketAddr, upstream: SocketAddr, workers: usize) -> String {
    let here = directory.display();
    format!(
        "daemon off;
worker_processes {workers};
pid {here}/pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {here}/body;
    proxy_temp_path {here}/proxy;
    fastcgi_temp_path {here}/fastcgi;
    uwsgi_temp_path {here}/uwsgi;
    scgi_temp_path {here}/scgi;
    keepalive_requests 1000000000;
    client_header_buffer_size 8k;
    large_client_header_buffers 8 32k;
    upstream api {{
        server {upstream};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {address} reuseport;
        location / {{
            proxy_pass http://api;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }}
    }}
}}
"
    )
}

/// The processes a process has started.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |id: &u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        behind_name.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    ids.filter(is_child).collect()
}

/// A process of this very binary, as friendly to others as the system knows: what it takes is what nobody else wants.
pub(crate) fn friendly_self(arguments: &[String], log: &Path) -> Running {
    let this = std::env::current_exe().unwrap();
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(this).args(arguments).env_clear();
    command.stdout(fs::File::create(log).unwrap()).stderr(Stdio::inherit());
    Running::start(&mut command, SocketAddr::from(([127, 0, 0, 1], 0)))
}
