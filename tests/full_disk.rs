//! A real disk that is full, and one that may only be read, under the real binary.
//!
//! The disk is a small tmpfs in a mount namespace of its own, which needs `unshare` and `nsenter` (util-linux) but no
//! privileges where the kernel lets users have namespaces. `PEAJE_SKIP_DISK_TESTS=1` skips where it does not.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]
#![allow(clippy::print_stdout, reason = "why a test is skipped")]

#[path = "support/payer.rs"]
mod payer;
#[path = "support/serve.rs"]
mod serve;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use peaje::chain::KeyRef;
use peaje::config::Config;
use peaje::devnet::{Devnet, DevnetConfig};
use peaje::protocol::Address;
use peaje::protocol::x402::{PAYMENT_RESPONSE, PAYMENT_SIGNATURE};
use serde_json::Value;

use payer::{Payer, Payment};
use serve::{Peaje, Settings};

const PRICE: u128 = 2_000;
const DEPOSIT: u128 = 50_000_000;
const PAY_TO: &str = "0x00000000000000000000000000000000c0ffee01";

/// Enough for the books of a few channels and their write-ahead log, whose room is taken at the start: 16.1 MiB.
const DISK_MIB: u32 = 24;

/// Payments after which a full disk must have shown: what is allocated already can still be written to.
const MAX_PAYMENTS: u128 = 10_000;

/// A disk of its own, and the process that keeps it.
struct Disk {
    keeper: Child,
    folder: tempfile::TempDir,
}

impl Disk {
    /// `None` where this is not to be tested.
    fn mount(options: &str) -> Option<Self> {
        if std::env::var_os("PEAJE_SKIP_DISK_TESTS").is_some() {
            println!("skipped: PEAJE_SKIP_DISK_TESTS is set");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let script = format!("mount -t tmpfs -o size={DISK_MIB}m,{options} peaje \"$0\" && echo mounted && exec cat");
        let mut keeper = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is there (util-linux)");
        let mut said = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "mounted\n", "this system gives no mount namespaces; PEAJE_SKIP_DISK_TESTS=1 skips");
        Some(Self { keeper, folder })
    }

    /// Where it is, for those who see it.
    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where we see it.
    fn seen_from_outside(&self) -> PathBuf {
        let below_root = self.path().strip_prefix("/").unwrap();
        Path::new("/proc").join(self.keeper.id().to_string()).join("root").join(below_root)
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut ballast = std::fs::File::create(self.seen_from_outside().join("ballast")).unwrap();
        for size in [1 << 16, 1 << 10, 1] {
            while ballast.write_all(&vec![7; size]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.seen_from_outside().join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// A chain, an API, and settings for a proxy whose books are on `disk`.
struct Stage {
    devnet: Devnet,
    api: tokio::task::JoinHandle<std::io::Result<()>>,
    upstream: std::net::SocketAddr,
    client: reqwest::Client,
}

impl Stage {
    async fn set() -> Self {
        let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = socket.local_addr().unwrap();
        let api = axum::Router::new().fallback(|| async { "served" });
        let api = tokio::spawn(async move { axum::serve(socket, api).await });
        let client = serve::http_client();
        Self { devnet, api, upstream, client }
    }

    fn settings<'a>(&self, rpc: &'a str, disk: &Disk) -> Settings<'a> {
        Settings {
            rpc,
            upstream: self.upstream,
            pay_to: PAY_TO.to_owned(),
            price: "$0.002",
            min_deposit: "$0.15",
            log: "info",
            books: Some(disk.path().join("books")),
            redeem: "on_shutdown = false",
            within: Some(disk.keeper.id()),
        }
    }

    async fn ask(&self, peaje: &Peaje, payment: &Payment) -> reqwest::Response {
        let request = self.client.get(peaje.url("/thing")).header(PAYMENT_SIGNATURE, payment.header());
        request.send().await.unwrap()
    }

    async fn strike(self) {
        self.api.abort();
        self.devnet.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_charges_nobody_ends_the_proxy_and_loses_nothing() {
    let Some(disk) = Disk::mount("mode=700") else { return };
    let stage = Stage::set().await;
    let rpc = stage.devnet.rpc_url();
    let mut peaje = Peaje::start(&stage.settings(&rpc, &disk)).await;
    let config = Config::load(&peaje.books().with_file_name("peaje.toml")).unwrap();
    let authorizer: Address = "dev:authorizer".parse::<KeyRef>().unwrap().load(true).unwrap().address();
    let payer = Payer::new(1, &config.terms(authorizer), PRICE);
    stage.devnet.mint_dollars(alloy::primitives::Address::new(payer.address().0), DEPOSIT).unwrap();
    let answer = stage.ask(&peaje, &payer.deposit(DEPOSIT, PRICE)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");

    disk.fill();
    let mut paid = 1;
    let refused = loop {
        let answer = stage.ask(&peaje, &payer.voucher((paid + 1) * PRICE)).await;
        if answer.status() != 200 {
            break answer;
        }
        paid += 1;
        assert!(paid < MAX_PAYMENTS, "a full disk is noticed");
    };
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after") && !refused.headers().contains_key(PAYMENT_RESPONSE));
    let body: Value = serde_json::from_slice(&refused.bytes().await.unwrap()).unwrap();
    assert_eq!(body["error"], "books_unavailable");
    assert_eq!(peaje.ended().await.code(), Some(7), "it ends by itself, and says that it is about the books");
    assert!(peaje.log().contains("the disk is full"), "{}", peaje.log());

    let (code, said) = peaje.fail_to_start().await;
    assert_eq!(code, Some(7), "{said}");
    assert!(said.contains("the disk is full") && said.contains("make room"), "{said}");

    disk.make_room();
    peaje.start_again().await;
    let books = peaje.channel().await;
    assert_eq!(books.charged.units(), paid * PRICE, "what was acknowledged, and nothing else");
    let answer = stage.ask(&peaje, &payer.voucher((paid + 1) * PRICE)).await;
    assert_eq!(answer.status(), 200, "the voucher that was refused is good again");
    peaje.stop().await;
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_may_only_be_read_stops_the_start_and_says_so() {
    let Some(disk) = Disk::mount("ro") else { return };
    let stage = Stage::set().await;
    let rpc = stage.devnet.rpc_url();
    let mut peaje = Peaje::prepare(&stage.settings(&rpc, &disk));
    let (code, said) = peaje.fail_to_start().await;
    assert_eq!(code, Some(7), "{said}");
    let path = disk.path().join("books").display().to_string();
    assert!(said.contains(&path) && said.contains("store.directory"), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
    stage.strike().await;
}
