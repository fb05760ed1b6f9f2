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
#[path = "support/stage.rs"]
mod stage;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use peaje::protocol::x402::PAYMENT_RESPONSE;
use serde_json::Value;

use serve::{Peaje, Settings};
use stage::{DEPOSIT, PRICE, Stage, ask};

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

/// Settings of a proxy whose books are on `disk`.
fn on<'a>(disk: &Disk, stage: &'a Stage) -> Settings<'a> {
    Settings { books: Some(disk.path().join("books")), within: Some(disk.keeper.id()), ..stage.settings() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_charges_nobody_ends_the_proxy_and_loses_nothing() {
    let Some(disk) = Disk::mount("mode=700") else { return };
    let stage = Stage::set().await;
    let mut peaje = Peaje::start(&on(&disk, &stage)).await;
    let payer = stage.payer(&peaje, 1);
    let url = peaje.url("/thing");
    let answer = ask(&stage.client, &url, &payer.deposit(DEPOSIT, PRICE)).await.unwrap();
    assert_eq!(answer.status(), 200, "{answer:?}");

    disk.fill();
    let mut paid = 1;
    let refused = loop {
        let answer = ask(&stage.client, &url, &payer.voucher((paid + 1) * PRICE)).await.unwrap();
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
    let answer = ask(&stage.client, &url, &payer.voucher((paid + 1) * PRICE)).await.unwrap();
    assert_eq!(answer.status(), 200, "the voucher that was refused is good again");
    peaje.stop().await;
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_may_only_be_read_stops_the_start_and_says_so() {
    let Some(disk) = Disk::mount("ro") else { return };
    let stage = Stage::set().await;
    let mut peaje = Peaje::prepare(&on(&disk, &stage));
    let (code, said) = peaje.fail_to_start().await;
    assert_eq!(code, Some(7), "{said}");
    let path = disk.path().join("books").display().to_string();
    assert!(said.contains(&path) && said.contains("store.directory"), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
    stage.strike().await;
}
