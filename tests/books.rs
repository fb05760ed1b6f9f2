//! What the gate promises about its books, over a store that can be slow, fail, and be opened again.
//!
//! The store is the naive one: maps in memory, every rule of [`LedgerStore`] asserted. That SQLite keeps the same rules
//! is `tests/store.rs`' business.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/payer.rs"]
mod payer;

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use peaje::gate::desk::Question;
use peaje::gate::path::PathPattern;
use peaje::gate::policy::{Policy, Price, Route, Terms};
use peaje::gate::{Accounts, AnswerBody, Desk, Gate};
use peaje::ledger::{SentRefund, View, Violation};
use peaje::protocol::x402::{PAYMENT_RESPONSE, PAYMENT_SIGNATURE};
use peaje::protocol::{Amount, ChannelId};
use peaje::store::{
    Booking, ChannelEntry, ChannelRow, Cursor, Entry, LedgerStore, MAX_ENTRIES_PER_COMMIT, StoreError, Transaction,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::{Layer as _, ServiceExt as _, service_fn};

use payer::{Payer, Payment, usual_terms};

const PRICE: u128 = 2_000;
const DEPOSIT: u128 = 1_000_000_000;

/// A store whose disk is a map that outlives it.
#[derive(Clone, Default)]
struct Naive(Arc<Shared>);

#[derive(Default)]
struct Shared {
    disk: Mutex<Disk>,
    /// Commits wait while this is set.
    stalled: Mutex<bool>,
    moved: Condvar,
    /// Commits fail from this one on.
    fails_from: Mutex<Option<usize>>,
}

#[derive(Default, Clone)]
struct Disk {
    rows: BTreeMap<ChannelId, ChannelRow>,
    /// By channel, minute and route: requests and their sum.
    charges: BTreeMap<(ChannelId, u64, String), (u64, u128)>,
    adjusted: BTreeMap<ChannelId, i128>,
    commits: Vec<usize>,
}

impl Naive {
    fn stall(&self, stalled: bool) {
        *self.0.stalled.lock().unwrap() = stalled;
        self.0.moved.notify_all();
    }

    fn fail_from_now_on(&self) {
        let commits = self.disk().commits.len();
        *self.0.fails_from.lock().unwrap() = Some(commits);
    }

    fn disk(&self) -> Disk {
        self.0.disk.lock().unwrap().clone()
    }

    fn charged(&self, channel: &ChannelId) -> u128 {
        self.disk().rows[channel].snapshot.charged.units()
    }

    /// Charges and adjustments of every channel are what it was charged in all.
    fn assert_adds_up(&self) {
        let disk = self.disk();
        for (id, row) in &disk.rows {
            let charges: u128 =
                disk.charges.iter().filter(|((channel, ..), _)| channel == id).map(|(_, (_, sum))| sum).sum();
            let adjusted = disk.adjusted.get(id).copied().unwrap_or_default();
            let sum = i128::try_from(charges).unwrap() + adjusted;
            assert_eq!(sum, i128::try_from(row.snapshot.charged.units()).unwrap(), "channel {id}");
        }
    }
}

impl LedgerStore for Naive {
    fn channels(&mut self, each: &mut dyn FnMut(ChannelRow) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.disk().rows.into_values().try_for_each(each)
    }

    fn unfinished(&mut self) -> Result<Vec<Transaction>, StoreError> {
        Ok(Vec::new())
    }

    fn cursor(&mut self) -> Result<Option<Cursor>, StoreError> {
        Ok(None)
    }

    fn commit(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let mut stalled = self.0.stalled.lock().unwrap();
        while *stalled {
            stalled = self.0.moved.wait(stalled).unwrap();
        }
        drop(stalled);
        let mut disk = self.0.disk.lock().unwrap();
        if self.0.fails_from.lock().unwrap().is_some_and(|from| disk.commits.len() >= from) {
            return Err(StoreError::Full("no room".into()));
        }
        assert!(!entries.is_empty() && entries.len() <= MAX_ENTRIES_PER_COMMIT);
        for entry in entries {
            let Entry::Channel(entry) = entry else { continue };
            let ChannelEntry { row, booking } = &**entry;
            let id = row.snapshot.id;
            let before = disk.rows.insert(id, row.clone());
            let version = before.as_ref().map_or(0, |row| row.version);
            assert_eq!(row.version, version + 1, "order on disk is order in memory");
            match booking {
                Booking::Nothing => {
                    assert_eq!(before.map_or(Amount::ZERO, |row| row.snapshot.charged), row.snapshot.charged);
                }
                Booking::Charge { route, amount, at } => {
                    let sums = disk.charges.entry((id, at / 60 * 60, route.to_string())).or_default();
                    *sums = (sums.0 + 1, sums.1 + amount.units());
                }
                Booking::Adjustment { from, to, .. } => {
                    let delta = i128::try_from(to.units()).unwrap() - i128::try_from(from.units()).unwrap();
                    *disk.adjusted.entry(id).or_default() += delta;
                }
            }
        }
        disk.commits.push(entries.len());
        Ok(())
    }
}

/// A gate over a naive store, and an upstream that counts its calls.
struct Booth {
    store: Naive,
    gate: Gate,
    terms: Terms,
    calls: Arc<AtomicUsize>,
}

impl Booth {
    fn open(store: Naive) -> Self {
        Self::open_at(store, Desk::closed())
    }

    fn open_at(store: Naive, desk: Desk) -> Self {
        let terms = usual_terms();
        let routes = vec![Route::new(PathPattern::parse("/paid").unwrap(), Price::Fixed(Amount::new(PRICE)))];
        let policy = Policy::new(terms.clone(), "https://api.example.com", routes).unwrap();
        let (accounts, _) = Accounts::open(store.clone()).unwrap();
        let gate = Gate::with_accounts(policy, desk, accounts);
        Self { store, gate, terms, calls: Arc::default() }
    }

    /// A payer with a deposit; the same number is the same payer.
    fn payer(&self, number: u8) -> Payer {
        let payer = Payer::new(number, &self.terms, PRICE);
        let view = View { block: 1, balance: Amount::new(DEPOSIT), ..View::default() };
        if !self.gate.accounts().knows(&payer.id()) {
            self.gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
        }
        payer
    }

    /// Asks, with a voucher up to `ceiling` if there is a payer. The upstream charges what `overrides` says.
    fn ask(
        &self,
        payment: Option<Payment>,
        overrides: Option<u128>,
    ) -> impl Future<Output = Response<AnswerBody<Full<Bytes>>>> + use<> {
        let calls = Arc::clone(&self.calls);
        let upstream = service_fn(move |_: Request<()>| {
            calls.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::task::yield_now().await;
                let mut response = Response::new(Full::new(Bytes::from_static(b"served")));
                if let Some(units) = overrides {
                    let report = json!({"amount": units.to_string()}).to_string();
                    response.headers_mut().insert("settlement-overrides", report.parse().unwrap());
                }
                Ok::<_, Infallible>(response)
            }
        });
        let mut request = Request::builder().method(Method::GET).uri("/paid");
        if let Some(payment) = payment {
            request = request.header(PAYMENT_SIGNATURE, payment.header());
        }
        let service = self.gate.layer().layer(upstream);
        let request = request.body(()).unwrap();
        async move { service.oneshot(request).await.unwrap() }
    }

    fn pay(&self, payer: &Payer, ceiling: u128) -> impl Future<Output = Response<AnswerBody<Full<Bytes>>>> + use<> {
        self.ask(Some(payer.voucher(ceiling)), None)
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Everything queued is on disk, or never will be.
    fn close(self) -> Naive {
        self.gate.accounts().journal().close();
        self.store
    }
}

async fn error_of(response: Response<AnswerBody<Full<Bytes>>>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    body["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_head_of_a_paid_answer_leaves_only_after_its_commit() {
    let booth = Booth::open(Naive::default());
    let payer = booth.payer(1);
    booth.store.stall(true);
    let mut answer = tokio::spawn(booth.pay(&payer, PRICE));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut answer).await;
    assert!(early.is_err(), "the commit has not happened");
    assert_eq!(booth.calls(), 1, "the upstream has answered long ago");
    booth.store.stall(false);
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.headers().contains_key(PAYMENT_RESPONSE));
    assert_eq!(booth.store.charged(&payer.id()), PRICE, "what was acknowledged is on disk");
}

#[tokio::test]
async fn a_failed_commit_charges_nobody_and_ends_paid_work() {
    let booth = Booth::open(Naive::default());
    let payer = booth.payer(1);
    assert_eq!(booth.pay(&payer, PRICE).await.status(), StatusCode::OK);
    booth.store.fail_from_now_on();
    let answer = booth.pay(&payer, 2 * PRICE).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!answer.headers().contains_key(PAYMENT_RESPONSE), "nothing was charged, so there is no receipt");
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(error_of(answer).await, "books_unavailable");
    assert_eq!(booth.calls(), 2, "it was served and thrown away");

    let latched = tokio::time::timeout(Duration::from_secs(5), booth.gate.accounts().journal().latched()).await;
    assert!(latched.unwrap().reason().contains("the disk is full: no room"));
    for ceiling in [2 * PRICE, 3 * PRICE] {
        let answer = booth.pay(&payer, ceiling).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(error_of(answer).await, "books_unavailable");
    }
    assert_eq!(booth.calls(), 2, "no more paid work is taken");
    assert_eq!(booth.ask(None, None).await.status(), StatusCode::PAYMENT_REQUIRED);

    // The same voucher that was refused is good again once the books are.
    let store = booth.close();
    *store.0.fails_from.lock().unwrap() = None;
    let booth = Booth::open(store);
    assert_eq!(booth.store.charged(&payer.id()), PRICE);
    assert_eq!(booth.pay(&payer, 2 * PRICE).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_waits_together_is_committed_together() {
    let booth = Booth::open(Naive::default());
    let payers: Vec<_> = (1..=40).map(|number| booth.payer(number)).collect();
    let first = booth.pay(&payers[0], PRICE).await;
    assert_eq!(first.status(), StatusCode::OK);
    let before = booth.store.disk().commits.len();
    booth.store.stall(true);
    let answers: Vec<_> = payers.iter().skip(1).map(|payer| tokio::spawn(booth.pay(payer, PRICE))).collect();
    while booth.calls() < payers.len() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // All have been served; the last of them may not have queued its charge yet.
    tokio::time::sleep(Duration::from_millis(100)).await;
    booth.store.stall(false);
    for answer in answers {
        assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
    }
    let commits = booth.store.disk().commits.split_off(before);
    assert!(commits.len() <= 2, "one that was on its way, and one for all the others: {commits:?}");
    assert_eq!(commits.iter().sum::<usize>(), 39);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn order_on_disk_is_order_in_memory() {
    let booth = Arc::new(Booth::open(Naive::default()));
    let tasks: Vec<_> = (1..=16u8)
        .map(|number| {
            let (booth, payer) = (Arc::clone(&booth), booth.payer(number));
            tokio::spawn(async move {
                for ceiling in 1..=25u64 {
                    // The chain is observed in between, by others.
                    let view = View {
                        block: 1 + ceiling,
                        balance: Amount::new(DEPOSIT + u128::from(ceiling)),
                        ..View::default()
                    };
                    booth.gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
                    let answer = booth.pay(&payer, u128::from(ceiling) * PRICE).await;
                    assert_eq!(answer.status(), StatusCode::OK);
                    assert!(booth.store.charged(&payer.id()) >= u128::from(ceiling) * PRICE);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let store = Arc::into_inner(booth).unwrap().close();
    store.assert_adds_up();
    assert!(store.disk().rows.values().all(|row| row.snapshot.charged == Amount::new(25 * PRICE)));
    let requests: u64 = store.disk().charges.values().map(|(requests, _)| requests).sum();
    assert_eq!(requests, 16 * 25);
}

#[tokio::test]
async fn a_client_that_leaves_is_in_the_books_too() {
    let booth = Booth::open(Naive::default());
    let payer = booth.payer(1);
    let mut asking = Box::pin(booth.pay(&payer, PRICE));
    while booth.calls() == 0 {
        assert!(futures_util::poll!(&mut asking).is_pending());
    }
    drop(asking);
    let store = booth.close();
    assert_eq!(store.charged(&payer.id()), PRICE);
    store.assert_adds_up();
}

#[tokio::test]
async fn a_refund_is_on_disk_before_it_may_be_signed() {
    let (desk, mut questions) = Desk::new();
    let booth = Booth::open_at(Naive::default(), desk);
    let payer = booth.payer(1);
    assert_eq!(booth.pay(&payer, PRICE).await.status(), StatusCode::OK);
    let asked = tokio::spawn(booth.ask(Some(payer.refund(PRICE, None)), None));
    let Some(Question::Refund { mut ticket, amount, reply, .. }) = questions.recv().await else {
        panic!("the desk is asked for a refund")
    };
    let open = |store: &Naive| store.disk().rows[&payer.id()].snapshot.open_refund;
    let refund = SentRefund { nonce: 0, amount };
    booth.store.stall(true);
    {
        let mut signing = Box::pin(ticket.sign(refund));
        let early = tokio::time::timeout(Duration::from_millis(100), &mut signing).await;
        assert!(early.is_err() && open(&booth.store).is_none());
        booth.store.stall(false);
        signing.await.unwrap();
    }
    assert_eq!(open(&booth.store), Some(refund), "a crash from here on reckons with the refund");

    // Refused before anybody saw it: the channel is as it was.
    ticket.not_sent();
    drop((ticket, reply));
    drop(asked.await);
    assert_eq!(booth.pay(&payer, 2 * PRICE).await.status(), StatusCode::OK);
    assert_eq!(open(&booth.store), None);

    booth.store.fail_from_now_on();
    let _asked = tokio::spawn(booth.ask(Some(payer.refund(2 * PRICE, None)), None));
    let Some(Question::Refund { mut ticket, .. }) = questions.recv().await else { panic!("a refund") };
    assert!(ticket.sign(refund).await.is_err(), "what cannot be written may not be signed");
}

#[test]
fn a_row_that_breaks_an_invariant_stops_the_start() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (store, id) = runtime.block_on(async {
        let booth = Booth::open(Naive::default());
        let payer = booth.payer(1);
        assert_eq!(booth.pay(&payer, PRICE).await.status(), StatusCode::OK);
        (booth.close(), payer.id())
    });
    assert!(Accounts::open(store.clone()).is_ok());
    store.0.disk.lock().unwrap().rows.get_mut(&id).unwrap().snapshot.charged = Amount::new(PRICE + 1);
    match Accounts::open(store) {
        Err(StoreError::Impossible { channel, violation }) => {
            assert_eq!((channel, violation), (id, Violation::ChargedAboveVoucher));
        }
        other => panic!("{other:?}"),
    }
}

/// What happens to one of three channels.
#[derive(Debug, Clone)]
enum Step {
    Pay {
        payer: u8,
        charge: u128,
    },
    Deposit {
        payer: u8,
        amount: u128,
    },
    /// The chain says that so many units more than we charged were claimed, or fewer.
    Claimed {
        payer: u8,
        skew: i64,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u8..4, 0..=PRICE).prop_map(|(payer, charge)| Step::Pay { payer, charge }),
        2 => (1u8..4, 1..100_000u128).prop_map(|(payer, amount)| Step::Deposit { payer, amount }),
        2 => (1u8..4, -5_000i64..5_000).prop_map(|(payer, skew)| Step::Claimed { payer, skew }),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn books_open_again_as_they_were_and_add_up(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut booth = Booth::open(Naive::default());
            let mut block = 1;
            let mut seen = HashSet::new();
            for step in steps {
                match step {
                    Step::Pay { payer, charge } => {
                        let payer = booth.payer(payer);
                        seen.insert(payer.id());
                        let base = booth.gate.accounts().statement(&payer.id()).unwrap().charged.units();
                        let payment = payer.voucher(base + PRICE);
                        let answer = booth.ask(Some(payment), Some(charge)).await;
                        assert_eq!(answer.status(), StatusCode::OK);
                        assert_eq!(booth.store.charged(&payer.id()), base + charge);
                    }
                    Step::Deposit { payer, amount } => {
                        let payer = booth.payer(payer);
                        seen.insert(payer.id());
                        block += 1;
                        let view = booth.gate.accounts().statement(&payer.id()).unwrap().view;
                        let balance = view.balance.checked_add(Amount::new(amount)).unwrap();
                        let view = View { block, balance, ..view };
                        booth.gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
                        booth.gate.accounts().note_deposit(&payer.id(), peaje::protocol::Hash([payer.id().0[0]; 32]));
                    }
                    Step::Claimed { payer, skew } => {
                        let payer = booth.payer(payer);
                        seen.insert(payer.id());
                        block += 1;
                        let books = booth.gate.accounts().statement(&payer.id()).unwrap();
                        let claimed = books.charged.units().saturating_add_signed(i128::from(skew));
                        let view = View { block, total_claimed: Amount::new(claimed), ..books.view };
                        booth.gate.accounts().observe(payer.id(), &payer.config, view).unwrap();
                    }
                    Step::Reopen => {
                        let before = booth.gate.accounts().statements();
                        let store = booth.close();
                        booth = Booth::open(store);
                        let after = booth.gate.accounts().statements();
                        assert_eq!(by_id(before), by_id(after));
                    }
                }
            }
            let store = booth.close();
            store.assert_adds_up();
            assert_eq!(store.disk().rows.len(), seen.len());
        });
    }
}

/// What must not change when books are opened again, by channel.
fn by_id(statements: Vec<peaje::gate::Statement>) -> BTreeMap<ChannelId, String> {
    statements
        .into_iter()
        .map(|mut books| {
            // A view that only grew older is not written.
            books.view.block = 0;
            (books.id, format!("{books:?}"))
        })
        .collect()
}
