//! What durable books cost: throughput and latency with and without them, and a million channels.
//!
//! `cargo bench --bench ledger` prints tables and, as its last line, one JSON object. The proxy, its upstream and the
//! agents run in this process and talk over loopback sockets, agents and upstream on threads of their own, as they would
//! in life; but all of them share the machine's cores. Vouchers are signed before the clock starts. Runs with and without
//! durable books alternate, and each ratio is of two neighbours: the machine may be noisy. The million channels are opened
//! by the real binary.
//!
//! * `durable_ratio_N`: paid requests a second of N agents with durable books, as a part of those without. Higher is
//!   better.
//! * `lonely_extra_p50_us`: what one agent alone waits longer, at the median.
//! * `bytes_per_channel`: resident memory of the process with a million channels less that of one with none, a channel.
//! * `million_start_ms`: from the start of the process to its first answer, with a million channels in its books.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark that cannot run should say so at once")]
#![allow(clippy::print_stdout, reason = "the result")]
#![allow(clippy::as_conversions, reason = "of counts that are small")]

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use peaje::chain::{AlloyChain, KeyRef};
use peaje::cli::site::{Books, Site};
use peaje::config::Config;
use peaje::devnet::{Devnet, DevnetConfig};
use peaje::gate::policy::Terms;
use peaje::ledger::{LatestVoucher, Snapshot, View};
use peaje::protocol::bytes::keccak256;
use peaje::protocol::contracts::SETTLEMENT;
use peaje::protocol::x402::{self, PAYMENT_SIGNATURE};
use peaje::protocol::{Address, Amount, ChannelConfig, LocalKey, Voucher};
use peaje::store::sqlite::SqliteStore;
use peaje::store::{Booking, ChannelEntry, ChannelRow, Entry, Identity, LedgerStore as _};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const PRICE: u128 = 2_000;
const CHAIN_ID: u64 = 84_532;

/// Agents at once, and paid requests of all of them together in one run.
const LOADS: [(usize, usize); 3] = [(1, 1_500), (32, 8_000), (256, 10_240)];
/// Pairs of runs for each load; medians are reported.
const PAIRS: usize = 7;

const MILLION: usize = 1_000_000;
/// Entries a commit, while the books are filled.
const FILL: usize = 1_024;
/// How long the binary may take to answer.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut line = serde_json::Map::new();
    runtime.block_on(throughput(&mut line));
    runtime.block_on(million(&mut line));
    println!("{}", Value::Object(line));
}

// ---- with and without

async fn throughput(line: &mut serde_json::Map<String, Value>) {
    let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
    let upstream = upstream().await;
    let config = Config::parse(&config_text(&devnet.rpc_url(), upstream, [0, 0], Path::new("books")), "bench").unwrap();
    println!(
        "{:>6} {:>14} {:>14} {:>7} {:>12} {:>12}",
        "agents", "durable/s", "volatile/s", "ratio", "p50 durable", "p50 volatile"
    );
    for (agents, requests) in LOADS {
        let folder = tempfile::tempdir().unwrap();
        let durable = Booth::open(&config, &devnet, books_in(folder.path()), agents).await;
        let volatile = Booth::open(&config, &devnet, Books::in_memory(), agents).await;
        let (mut durable, mut volatile) = (durable, volatile);
        durable.run(requests / 4).await;
        volatile.run(requests / 4).await;
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            // Who begins changes, so that neither has the warmer machine.
            if pair % 2 == 0 {
                with.push(durable.run(requests).await);
                without.push(volatile.run(requests).await);
            } else {
                without.push(volatile.run(requests).await);
                with.push(durable.run(requests).await);
            }
        }
        let ratio = median(with.iter().zip(&without).map(|(with, without)| with.per_second / without.per_second));
        let extra = median(with.iter().zip(&without).map(|(with, without)| with.p50_us - without.p50_us));
        let mid = |runs: &[Run], of: fn(&Run) -> f64| median(runs.iter().map(of));
        println!(
            "{agents:>6} {:>14.0} {:>14.0} {ratio:>7.2} {:>9.0} us {:>9.0} us",
            mid(&with, |run| run.per_second),
            mid(&without, |run| run.per_second),
            mid(&with, |run| run.p50_us),
            mid(&without, |run| run.p50_us),
        );
        let (commits, entries) = durable.site.gate().accounts().journal().written();
        println!("{:>6} {entries} entries in {commits} commits", "");
        line.insert(format!("durable_ratio_{agents}"), json!(ratio));
        line.insert(format!("durable_per_s_{agents}"), json!(mid(&with, |run| run.per_second)));
        if agents == 1 {
            line.insert("lonely_extra_p50_us".to_owned(), json!(extra));
        }
        durable.close().await;
        volatile.close().await;
    }
    devnet.shutdown().await;
}

/// A proxy, and agents with channels and connections of their own.
struct Booth {
    site: Site,
    terms: Terms,
    agents: Vec<Agent>,
}

struct Agent {
    key: LocalKey,
    config: ChannelConfig,
    charged: u128,
    connection: SendRequest<Empty<Bytes>>,
}

struct Run {
    per_second: f64,
    p50_us: f64,
}

impl Booth {
    async fn open(config: &Config, devnet: &Devnet, books: Books, agents: usize) -> Self {
        let key = |name: &str| name.parse::<KeyRef>().unwrap().load(true).unwrap();
        let chain = AlloyChain::connect(devnet.rpc_url().parse().unwrap(), Some(key("dev:gas"))).await.unwrap();
        let authorizer = key("dev:authorizer");
        let terms = config.terms(authorizer.address());
        let site = Site::open(config, authorizer, Arc::new(chain), books).await.unwrap();
        let mut all = Vec::new();
        for number in 0..agents {
            let key = LocalKey::from_bytes(&keccak256(&number.to_be_bytes()).0).unwrap();
            let config = terms.channel_of(key.address());
            let view = View { block: 1, balance: Amount::new(u128::MAX / 2), ..View::default() };
            site.gate().accounts().observe(config.id(&terms.settlement()), &config, view).unwrap();
            all.push(Agent {
                key,
                config,
                charged: 0,
                connection: outside().spawn(connect(site.address())).await.unwrap(),
            });
        }
        Self { site, terms, agents: all }
    }

    /// Has every agent pay its part of the requests, one after the other.
    async fn run(&mut self, requests: usize) -> Run {
        let each = requests / self.agents.len();
        let offer = json!(self.terms.offer(Amount::new(PRICE)));
        let domain = self.terms.settlement();
        let mut ready = Vec::new();
        for agent in self.agents.drain(..) {
            let headers: Vec<String> = (1..=each as u128)
                .map(|number| {
                    let max_claimable = Amount::new(agent.charged + number * PRICE);
                    let voucher =
                        Voucher { channel: agent.config.id(&domain), max_claimable }.sign(&domain, &agent.key);
                    let payload = json!({"type": "voucher", "channelConfig": agent.config, "voucher": voucher});
                    x402::encode(&json!({"x402Version": 2, "accepted": offer, "payload": payload}))
                })
                .collect();
            ready.push((agent, headers));
        }
        let begun = Instant::now();
        let tasks: Vec<_> = ready.into_iter().map(|(agent, headers)| outside().spawn(agent.spend(headers))).collect();
        let mut times = Vec::with_capacity(requests);
        for task in tasks {
            let (agent, took) = task.await.unwrap();
            self.agents.push(agent);
            times.extend(took);
        }
        let per_second = times.len() as f64 / begun.elapsed().as_secs_f64();
        times.sort_unstable();
        Run { per_second, p50_us: times[times.len() / 2].as_secs_f64() * 1e6 }
    }

    async fn close(self) {
        drop(self.agents);
        self.site.close().await;
    }
}

impl Agent {
    async fn spend(mut self, headers: Vec<String>) -> (Self, Vec<Duration>) {
        let mut times = Vec::with_capacity(headers.len());
        for header in headers {
            let request = Request::get("/paid").header("host", "bench").header(PAYMENT_SIGNATURE, header);
            let begun = Instant::now();
            let response = self.connection.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{:?}", response.headers());
            response.into_body().collect().await.unwrap();
            times.push(begun.elapsed());
            self.charged += PRICE;
        }
        (self, times)
    }
}

/// Where agents and upstream run: not on the proxy's threads.
fn outside() -> &'static Runtime {
    static OUTSIDE: LazyLock<Runtime> =
        LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap());
    &OUTSIDE
}

async fn connect(address: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// An API that answers at once.
async fn upstream() -> SocketAddr {
    let socket = outside().spawn(tokio::net::TcpListener::bind("127.0.0.1:0")).await.unwrap().unwrap();
    let address = socket.local_addr().unwrap();
    outside().spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let answer = service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"{\"answer\":42}"))))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    address
}

fn books_in(directory: &Path) -> Books {
    Books::open(SqliteStore::open(directory, identity()).unwrap()).unwrap()
}

fn identity() -> Identity {
    Identity { chain_id: CHAIN_ID, settlement: SETTLEMENT }
}

fn config_text(rpc: &str, upstream: SocketAddr, ports: [u16; 2], books: &Path) -> String {
    let [listen, admin] = ports;
    let admin = if admin == 0 { "off".to_owned() } else { format!("127.0.0.1:{admin}") };
    format!(
        r#"
        [server]
        listen = "127.0.0.1:{listen}"
        [admin]
        listen = "{admin}"
        [upstream]
        url = "http://{upstream}"
        [chain]
        network = "base-sepolia"
        rpc = "{rpc}"
        [receiver]
        pay_to = "0x00000000000000000000000000000000c0ffee01"
        authorizer_key = "dev:authorizer"
        gas_key = "dev:gas"
        [store]
        directory = "{}"
        [redeem]
        on_shutdown = false
        [log]
        level = "error"
        [[route]]
        path = "/paid"
        price = "$0.002"
        "#,
        books.display()
    )
}

// ---- a million channels

async fn million(line: &mut serde_json::Map<String, Value>) {
    let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let (empty, full) = (folder.path().join("empty"), folder.path().join("full"));
    fill(&full);
    println!("filled the books of {MILLION} channels in {:.1} s", begun.elapsed().as_secs_f64());
    let (mut starts, mut sizes) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (_, none) = start(&devnet, folder.path(), &empty).await;
        let (took, all) = start(&devnet, folder.path(), &full).await;
        println!("first answer after {:.0} ms, {} MiB resident ({} MiB without channels)", took, all >> 20, none >> 20);
        starts.push(took);
        sizes.push((all - none) as f64 / MILLION as f64);
    }
    line.insert("bytes_per_channel".to_owned(), json!(median(sizes.into_iter())));
    line.insert("million_start_ms".to_owned(), json!(median(starts.into_iter())));
    devnet.shutdown().await;
}

/// Channels that have paid and were claimed, as most are at any time.
fn fill(directory: &Path) {
    let mut store = SqliteStore::open(directory, identity()).unwrap();
    let authorizer: Address = "dev:authorizer".parse::<KeyRef>().unwrap().load(true).unwrap().address();
    let key = LocalKey::from_bytes(&[7; 32]).unwrap();
    // Nobody verifies signatures at the start; `peaje ledger verify` does.
    let signature = key.sign(keccak256(b"any"));
    let route: Arc<str> = "/paid".into();
    let domain = peaje::protocol::Domain::settlement(CHAIN_ID);
    let mut entries = Vec::with_capacity(FILL);
    for number in 0..MILLION {
        let hash = keccak256(&number.to_be_bytes());
        let mut payer = Address::ZERO;
        payer.0.copy_from_slice(&hash.0[..20]);
        let config = ChannelConfig {
            payer,
            payer_authorizer: payer,
            receiver: "0x00000000000000000000000000000000c0ffee01".parse().unwrap(),
            receiver_authorizer: authorizer,
            token: "0x036CbD53842c5426634e7929541eC2318f3dCF7e".parse().unwrap(),
            withdraw_delay: 86_400,
            salt: peaje::protocol::Hash::ZERO,
        };
        let charged = Amount::new(PRICE * (1 + number as u128 % 100));
        let view = View { block: 1, balance: Amount::new(1_000_000), total_claimed: charged, ..View::default() };
        let latest = Some(LatestVoucher { max_claimable: charged, signature: signature.clone() });
        let snapshot = Snapshot {
            id: config.id(&domain),
            config,
            view,
            viewed_at: 1,
            charged,
            latest,
            spent_up_to: None,
            open_refund: None,
            unclaimed_since: None,
        };
        let last_deposit = Some(peaje::store::LastDeposit { salt: hash, charged: Amount::ZERO });
        let row = ChannelRow { snapshot, version: 1, last_deposit };
        let booking = Booking::Charge { route: Arc::clone(&route), amount: charged, at: 1_700_000_000 };
        entries.push(Entry::Channel(Box::new(ChannelEntry { row, booking })));
        if entries.len() == FILL || number + 1 == MILLION {
            store.commit(&entries).unwrap();
            entries.clear();
        }
    }
}

/// Starts the binary on these books, asks until it answers, and stops it: milliseconds, and bytes resident.
async fn start(devnet: &Devnet, folder: &Path, books: &Path) -> (f64, u64) {
    let upstream = upstream().await;
    let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let ports = sockets.each_ref().map(|socket| socket.local_addr().unwrap().port());
    drop(sockets);
    let config = folder.join("peaje.toml");
    std::fs::write(&config, config_text(&devnet.rpc_url(), upstream, ports, books)).unwrap();
    let begun = Instant::now();
    let child = Command::new(env!("CARGO_BIN_EXE_peaje"))
        .args(["serve", "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Stopped(child);
    peaje::chain::install_tls();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://127.0.0.1:{}/paid", ports[0]);
    loop {
        if client.get(&url).send().await.is_ok_and(|answer| answer.status() == StatusCode::PAYMENT_REQUIRED) {
            break;
        }
        assert!(child.0.try_wait().unwrap().is_none(), "peaje serve has ended");
        assert!(begun.elapsed() < PATIENCE, "no answer");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let took = begun.elapsed().as_secs_f64() * 1e3;
    let resident = resident(child.0.id());
    (took, resident)
}

/// A process that does not outlive this one.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

fn median(samples: impl Iterator<Item = f64>) -> f64 {
    let mut samples: Vec<f64> = samples.collect();
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
