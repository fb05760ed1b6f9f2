//! What durability costs: CPU time and time of a commit and of an entry, by how many go together and over how many
//! channels they are spread.
//!
//! `cargo bench --bench books` prints a table and, as its last line, one JSON object. No proxy runs: entries are those of
//! the hot path (a charge on a channel), made before the clock starts, and committed one group after the other by this
//! thread, whose CPU time the system counts. What its own threads do for the file system is not in it. Rounds of all
//! cases alternate, and medians are reported, because the machine may be noisy.
//!
//! * `cpu_us_GROUP_HOT`: CPU time of an entry, microseconds, in groups of GROUP over HOT channels in turn.
//! * `cpu_us_GROUP_HOT_of_million`: the same where a million idle channels lie beside them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark that cannot run should say so at once")]
#![allow(clippy::print_stdout, reason = "the result")]
#![allow(clippy::as_conversions, reason = "of counts that are small")]

use std::sync::Arc;
use std::time::Instant;

use peaje::ledger::{LatestVoucher, Snapshot, View};
use peaje::protocol::bytes::keccak256;
use peaje::protocol::contracts::SETTLEMENT;
use peaje::protocol::{Address, Amount, ChannelConfig, Hash, LocalKey, Signature};
use peaje::store::sqlite::SqliteStore;
use peaje::store::{Booking, ChannelEntry, ChannelRow, Entry, Identity, LastDeposit, LedgerStore as _};
use serde_json::{Value, json};

const PRICE: u128 = 2_000;
const CHAIN_ID: u64 = 84_532;
const MILLION: usize = 1_000_000;

/// Hot channels, and idle ones beside them. `BOOKS_MILLION=0` leaves the million out.
const BOOKS: [(usize, usize); 3] = [(32, 0), (10_000, 0), (10_000, MILLION)];
const GROUPS: [usize; 4] = [1, 16, 32, 256];
/// Commits of one round, and rounds.
const COMMITS: usize = 300;
const ROUNDS: usize = 7;

fn main() {
    let million = std::env::var("BOOKS_MILLION").is_ok_and(|wanted| wanted != "0");
    let mut all: Vec<Bench> =
        BOOKS.iter().filter(|(_, idle)| million || *idle == 0).map(|(hot, idle)| Bench::fill(*hot, *idle)).collect();
    let mut samples: Vec<[Vec<Sample>; GROUPS.len()]> = all.iter().map(|_| Default::default()).collect();
    for _ in 0..ROUNDS {
        for (bench, samples) in all.iter_mut().zip(&mut samples) {
            for (group, samples) in GROUPS.iter().zip(samples) {
                samples.push(bench.round(*group));
            }
        }
    }
    let mut line = serde_json::Map::new();
    println!(
        "{:>8} {:>8} {:>6} {:>12} {:>12} {:>12}",
        "hot", "idle", "group", "cpu/entry", "cpu/commit", "time/commit"
    );
    for (bench, samples) in all.iter().zip(&samples) {
        for (group, samples) in GROUPS.iter().zip(samples) {
            let cpu = median(samples.iter().map(|sample| sample.cpu_us));
            let time = median(samples.iter().map(|sample| sample.time_us));
            let (hot, idle) = (bench.hot.len(), bench.idle);
            println!("{hot:>8} {idle:>8} {group:>6} {:>9.2} us {cpu:>9.1} us {time:>9.1} us", cpu / *group as f64);
            let beside = if idle == 0 { "" } else { "_of_million" };
            line.insert(format!("cpu_us_{group}_{hot}{beside}"), json!(cpu / *group as f64));
        }
    }
    println!("{}", Value::Object(line));
}

/// Books, and the channels that pay.
struct Bench {
    store: SqliteStore,
    hot: Vec<ChannelRow>,
    idle: usize,
    next: usize,
    route: Arc<str>,
    _folder: tempfile::TempDir,
}

/// What one commit cost.
struct Sample {
    cpu_us: f64,
    time_us: f64,
}

impl Bench {
    fn fill(hot: usize, idle: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity { chain_id: CHAIN_ID, settlement: SETTLEMENT };
        let mut store = SqliteStore::open(folder.path(), identity).unwrap();
        let signature = LocalKey::from_bytes(&[7; 32]).unwrap().sign(keccak256(b"any"));
        let route: Arc<str> = "/paid".into();
        let every = (hot + idle) / hot;
        let mut rows = Vec::with_capacity(hot);
        let mut entries = Vec::new();
        for number in 0..hot + idle {
            let row = row(number, &signature);
            if number % every == 0 && rows.len() < hot {
                rows.push(row.clone());
            }
            let amount = row.snapshot.charged;
            entries.push(charge(row, &route, amount));
            if entries.len() == 1_024 || number + 1 == hot + idle {
                store.commit(&entries).unwrap();
                entries.clear();
            }
        }
        // In no order that the file knows.
        rows.sort_by_key(|row| keccak256(&row.snapshot.id.0).0);
        Self { store, hot: rows, idle, next: 0, route, _folder: folder }
    }

    fn round(&mut self, group: usize) -> Sample {
        let commits = COMMITS * if group < 64 { 4 } else { 1 };
        let groups: Vec<Vec<Entry>> = (0..commits).map(|_| (0..group).map(|_| self.entry()).collect()).collect();
        let (begun, cpu) = (Instant::now(), cpu_us());
        for entries in &groups {
            self.store.commit(entries).unwrap();
        }
        let each = |us: f64| us / commits as f64;
        Sample { cpu_us: each(cpu_us() - cpu), time_us: each(begun.elapsed().as_secs_f64() * 1e6) }
    }

    fn entry(&mut self) -> Entry {
        let next = self.next;
        self.next = (next + 1) % self.hot.len();
        let row = &mut self.hot[next];
        let price = Amount::new(PRICE);
        row.version += 1;
        row.snapshot.charged = row.snapshot.charged.checked_add(price).unwrap();
        let latest = row.snapshot.latest.as_mut().unwrap();
        latest.max_claimable = row.snapshot.charged;
        charge(row.clone(), &self.route, price)
    }
}

fn charge(row: ChannelRow, route: &Arc<str>, amount: Amount) -> Entry {
    let booking = Booking::Charge { route: Arc::clone(route), amount, at: 1_700_000_000 };
    Entry::Channel(Box::new(ChannelEntry { row, booking }))
}

fn row(number: usize, signature: &Signature) -> ChannelRow {
    let hash = keccak256(&(number as u64).to_be_bytes());
    let mut payer = Address::ZERO;
    payer.0.copy_from_slice(&hash.0[..20]);
    let config = ChannelConfig {
        payer,
        payer_authorizer: payer,
        receiver: Address([3; 20]),
        receiver_authorizer: Address([4; 20]),
        token: Address([5; 20]),
        withdraw_delay: 86_400,
        salt: Hash::ZERO,
    };
    let charged = Amount::new(PRICE * (1 + number as u128 % 100));
    let snapshot = Snapshot {
        id: config.id(&peaje::protocol::Domain::settlement(CHAIN_ID)),
        config,
        view: View { block: 1, balance: Amount::new(1_000_000_000), ..View::default() },
        viewed_at: 1_700_000_000,
        charged,
        latest: Some(LatestVoucher { max_claimable: charged, signature: signature.clone() }),
        open_refund: None,
        unclaimed_since: Some(1_700_000_000),
    };
    ChannelRow { snapshot, version: 1, last_deposit: Some(LastDeposit { salt: hash, charged: Amount::ZERO }) }
}

/// CPU time of this thread so far, microseconds.
fn cpu_us() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e3
}

fn median(samples: impl Iterator<Item = f64>) -> f64 {
    let mut samples: Vec<f64> = samples.collect();
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
