//! The real books under the simulator: an adapter, and a workload of everything that is ever written.
//!
//! What must be in the books is reckoned here in plain maps, without SQL. What is there is read in two ways: by the
//! store, as a start of the proxy reads it, and row by row through a second connection, as an auditor would.

use std::collections::BTreeMap;
use std::path::Path;

use peaje::ledger::{Channel, LatestVoucher, SentRefund, Snapshot, View, Withdrawal};
use peaje::protocol::{Address, Amount, ChannelConfig, ChannelId, Domain, Hash, Signature};
use peaje::store::sqlite::{SqliteOptions, SqliteStore};
use peaje::store::{
    Adjustment, Booking, ChannelEntry, ChannelRow, ClaimedRow, Cursor, Entry, Fate, Identity, LastDeposit, LedgerStore,
    Moved, Outcome, Purpose, StoreError, Transaction,
};
use rusqlite::{Connection, OpenFlags, Row};

use crate::dice::Dice;
use crate::store::{Refusal, Store, Workload};

/// Where the books are on the disk.
pub(crate) const PATH: &str = "/books.sqlite3";

/// Whose books they are.
const IDENTITY: Identity = Identity { chain_id: 84_532, settlement: Address([0x5e; 20]) };

/// A checkpoint every few commits, so that a short run crosses many and starts its log anew after each.
const CHECKPOINT_PAGES: u32 = 40;

/// As many as make the tables deeper than one page.
const CHANNELS: usize = 40;

/// What a channel has at first.
const BALANCE: u128 = 50_000_000;

/// The length of a signed transaction.
const TRANSACTION: usize = 300;

const ROUTES: [&str; 3] = ["weather", "translate", "images"];

/// Everything in the books. Lines are what their tables hold, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    channels: BTreeMap<ChannelId, ChannelRow>,
    unfinished: Vec<Transaction>,
    cursor: Option<Cursor>,
    /// By channel, route and minute: requests and what they cost.
    charges: BTreeMap<(ChannelId, String, u64), (u64, Amount)>,
    adjustments: Vec<(ChannelId, Amount, Amount, String)>,
    /// How transactions ended.
    ends: BTreeMap<Hash, String>,
    movements: Vec<(Hash, String, Amount)>,
}

impl State {
    fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Channel(entry) => {
                let id = entry.row.snapshot.id;
                match &entry.booking {
                    Booking::Nothing => {}
                    Booking::Charge { route, amount, at } => {
                        let line = self.charges.entry((id, route.to_string(), at - at % 60)).or_default();
                        *line = (line.0 + 1, line.1.checked_add(*amount).unwrap());
                    }
                    Booking::Adjustment { from, to, why, .. } => {
                        self.adjustments.push((id, *from, *to, why.as_str().to_owned()));
                    }
                }
                self.channels.insert(id, entry.row.clone());
            }
            Entry::Signed(transaction) => self.unfinished.push((**transaction).clone()),
            Entry::Ended(outcome) => {
                self.unfinished.retain(|transaction| transaction.hash != outcome.hash);
                let end = match &outcome.fate {
                    Fate::Mined { success: true, .. } => "mined",
                    Fate::Mined { .. } => "reverted",
                    Fate::NeverSent => "never_sent",
                    Fate::Replaced => "replaced",
                    Fate::GivenUp => "given_up",
                };
                self.ends.insert(outcome.hash, end.to_owned());
                if let Fate::Mined { moved, .. } = &outcome.fate {
                    self.movements.extend(moved.iter().map(|moved| match moved {
                        Moved::Deposited(_, amount) => (outcome.hash, "deposited".to_owned(), *amount),
                        Moved::Claimed(_, amount) => (outcome.hash, "claimed".to_owned(), *amount),
                        Moved::Refunded(_, amount) => (outcome.hash, "refunded".to_owned(), *amount),
                        Moved::Settled(amount) => (outcome.hash, "settled".to_owned(), *amount),
                    }));
                }
            }
            Entry::Cursor(cursor) => self.cursor = Some(*cursor),
        }
    }

    /// What the store itself promises: every row can be true, and what was booked adds up to what was charged.
    fn check(&self) -> Result<(), String> {
        let mut booked: BTreeMap<ChannelId, u128> = BTreeMap::new();
        for (id, from, to, _) in &self.adjustments {
            let sum = booked.entry(*id).or_default();
            *sum = (*sum + to.units()).checked_sub(from.units()).ok_or("adjustments go below nothing")?;
        }
        for ((id, ..), (_, amount)) in &self.charges {
            *booked.entry(*id).or_default() += amount.units();
        }
        for (id, row) in &self.channels {
            Channel::restore(row.snapshot.clone()).map_err(|violation| format!("channel {id}: {violation}"))?;
            let (charged, booked) = (row.snapshot.charged.units(), booked.get(id).copied().unwrap_or_default());
            if charged != booked {
                return Err(format!("channel {id}: {charged} was charged and {booked} is booked"));
            }
        }
        Ok(())
    }
}

/// The store, and the way to look at its file past it.
pub(crate) struct Books {
    // Before the store, so that the store's connection is the last and closes the file as it does alone.
    auditor: Option<Connection>,
    store: SqliteStore,
    vfs: String,
}

impl Books {
    pub(crate) fn open(vfs: &str) -> Result<Self, StoreError> {
        let options =
            SqliteOptions { vfs: Some(vfs.to_owned()), checkpoint_pages: CHECKPOINT_PAGES, ..SqliteOptions::default() };
        Ok(Self { auditor: None, store: SqliteStore::open_file(PATH, IDENTITY, &options)?, vfs: vfs.to_owned() })
    }

    fn auditor(&mut self) -> rusqlite::Result<&Connection> {
        let opened = match self.auditor.take() {
            Some(auditor) => auditor,
            None => Connection::open_with_flags_and_vfs(
                Path::new(PATH),
                OpenFlags::SQLITE_OPEN_READ_ONLY,
                self.vfs.as_str(),
            )?,
        };
        Ok(self.auditor.insert(opened))
    }
}

impl Store for Books {
    type Batch = Vec<Entry>;
    type State = State;

    fn commit(&mut self, batch: &Vec<Entry>) -> Result<(), Refusal> {
        // The store promises that what failed is not in the books, as far as the disk still obeys.
        self.store.commit(batch).map_err(|_| Refusal::Undecided)
    }

    fn state(&mut self) -> Result<State, String> {
        let mut state = State::default();
        self.store
            .channels(&mut |row| {
                state.channels.insert(row.snapshot.id, row);
                Ok(())
            })
            .map_err(reasons)?;
        state.unfinished = self.store.unfinished().map_err(reasons)?;
        state.cursor = self.store.cursor().map_err(reasons)?;
        self.auditor().and_then(|auditor| read_lines(auditor, &mut state)).map_err(|error| error.to_string())?;
        Ok(state)
    }

    fn check(&mut self, state: &State) -> Result<(), String> {
        for pragma in ["PRAGMA integrity_check", "PRAGMA foreign_key_check"] {
            let problem = self.auditor().and_then(|auditor| {
                let mut statement = auditor.prepare(pragma)?;
                let mut rows = statement.query([])?;
                rows.next()?.map(|row| row.get::<_, String>(0)).transpose()
            });
            match problem.map_err(|error| format!("{pragma}: {error}"))?.as_deref() {
                None | Some("ok") => {}
                Some(problem) => return Err(format!("{pragma}: {problem}")),
            }
        }
        state.check()
    }
}

fn read_lines(auditor: &Connection, state: &mut State) -> rusqlite::Result<()> {
    let amount = |row: &Row<'_>, column: usize| -> rusqlite::Result<Amount> {
        let text: String = row.get(column)?;
        Ok(Amount::new(text.parse().expect("amounts are decimal")))
    };
    let mut lines = auditor.prepare_cached(
        "SELECT c.id, r.name, h.minute, h.requests, h.amount FROM all_charges h
         JOIN channels c ON c.number = h.channel_number JOIN routes r ON r.number = h.route_number",
    )?;
    for line in lines.query_map([], |row| {
        let (minute, requests) = (row.get::<_, i64>(2)?.cast_unsigned(), row.get::<_, i64>(3)?.cast_unsigned());
        Ok(((ChannelId(row.get(0)?), row.get(1)?, minute), (requests, amount(row, 4)?)))
    })? {
        let (key, (requests, amount)) = line?;
        // A line may be in two places, in part.
        let sums = state.charges.entry(key).or_default();
        *sums = (sums.0 + requests, sums.1.checked_add(amount).expect("sums fit"));
    }
    let mut lines = auditor.prepare_cached(
        "SELECT c.id, a.sum_before, a.sum_after, a.why FROM adjustments a
         JOIN channels c ON c.number = a.channel_number ORDER BY a.number",
    )?;
    let adjustments =
        lines.query_map([], |row| Ok((ChannelId(row.get(0)?), amount(row, 1)?, amount(row, 2)?, row.get(3)?)))?;
    state.adjustments = adjustments.collect::<Result<_, _>>()?;
    let mut lines = auditor.prepare_cached("SELECT hash, state FROM transactions WHERE state <> 'open'")?;
    let ends = lines.query_map([], |row| Ok((Hash(row.get(0)?), row.get(1)?)))?;
    state.ends = ends.collect::<Result<_, _>>()?;
    let mut lines = auditor.prepare_cached(
        "SELECT t.hash, m.kind, m.amount FROM movements m
         JOIN transactions t ON t.number = m.transaction_number ORDER BY m.number",
    )?;
    let movements = lines.query_map([], |row| Ok((Hash(row.get(0)?), row.get(1)?, amount(row, 2)?)))?;
    state.movements = movements.collect::<Result<_, _>>()?;
    Ok(())
}

fn reasons(error: StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

// ------------------------------------------------------------------------------------------------------- the workload

/// So many batches of what a proxy writes, the same for the same seed.
pub(crate) fn workload(seed: u64, batches: usize) -> Workload<Books> {
    let mut proxy = Proxy { dice: Dice::new(seed), block: 1_000, now: 1_900_000_000, nonce: 0 };
    let mut state = State::default();
    let mut workload = Workload {
        open: Box::new(|vfs| Books::open(vfs).map_err(reasons)),
        batches: Vec::new(),
        states: vec![state.clone()],
    };
    for _ in 0..batches {
        // Most commits carry one or two entries; now and then many requests waited for the disk together.
        let entries = if proxy.dice.once_in(12) { 6 + proxy.dice.below(20) } else { 1 + proxy.dice.below(3) };
        let before = state.clone();
        let mut batch = Vec::new();
        for _ in 0..entries {
            let entry = proxy.entry(&state, &before);
            state.apply(&entry);
            batch.push(entry);
        }
        assert_eq!(state.check(), Ok(()), "only what can be true is written");
        workload.batches.push(batch);
        workload.states.push(state.clone());
    }
    workload
}

/// What happens to a proxy.
struct Proxy {
    dice: Dice,
    block: u64,
    now: u64,
    nonce: u64,
}

impl Proxy {
    fn entry(&mut self, state: &State, before: &State) -> Entry {
        self.now += u64::try_from(self.dice.below(9)).unwrap();
        // Of a transaction of this very batch nothing can be told from the state before it once it has ended.
        let open = before.unfinished.first().filter(|open| state.unfinished.contains(open));
        match (self.dice.below(20), open) {
            (0, _) => {
                self.block += 1;
                Entry::Cursor(Cursor { next_block: self.block })
            }
            (1, _) => self.signed(state),
            (2, Some(transaction)) => self.ended(transaction),
            (kind, _) => {
                let config = self.config();
                match state.channels.get(&config.id(&domain())) {
                    None => self.opened(config),
                    Some(row) => self.changed(row.clone(), kind),
                }
            }
        }
    }

    fn config(&mut self) -> ChannelConfig {
        let which = u8::try_from(self.dice.below(CHANNELS)).unwrap();
        ChannelConfig {
            payer: Address([which; 20]),
            payer_authorizer: Address([which; 20]),
            receiver: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            token: Address([3; 20]),
            withdraw_delay: if which == 0 { 1_800 } else { 900 },
            salt: Hash([which; 32]),
        }
    }

    fn opened(&mut self, config: ChannelConfig) -> Entry {
        let claimed = if self.dice.once_in(4) { self.amount() } else { Amount::ZERO };
        let view = View {
            block: self.block,
            balance: Amount::new(BALANCE),
            total_claimed: claimed,
            refund_nonce: u128::MAX,
            ..View::default()
        };
        let booking = if claimed.is_zero() {
            Booking::Nothing
        } else {
            Booking::Adjustment { from: Amount::ZERO, to: claimed, at: self.now, why: Adjustment::Opened }
        };
        let (id, viewed_at) = (config.id(&domain()), self.now);
        let snapshot = Snapshot {
            id,
            config,
            view,
            viewed_at,
            charged: claimed,
            latest: None,
            spent_up_to: None,
            open_refund: None,
            unclaimed_since: None,
        };
        channel(ChannelRow { snapshot, version: 1, last_deposit: None }, booking)
    }

    fn changed(&mut self, mut row: ChannelRow, kind: usize) -> Entry {
        row.version += 1;
        let channel_of = &mut row.snapshot;
        let (view, from) = (&mut channel_of.view, channel_of.charged);
        let amount = self.amount();
        let booking = match kind {
            // The chain was read: a deposit landed, a withdrawal was announced, everything was claimed.
            3..=6 => {
                self.block += 1;
                (view.block, channel_of.viewed_at) = (self.block, self.now);
                match kind {
                    3 => {
                        view.balance = view.balance.checked_add(amount).unwrap();
                        row.last_deposit = Some(LastDeposit { salt: self.hash(), charged: from });
                    }
                    4 => view.withdrawal = Some(Withdrawal { amount, initiated_at: self.now }),
                    5 => (view.total_claimed, view.withdrawal) = (from.min(view.balance), None),
                    _ => channel_of.open_refund = Some(SentRefund { nonce: view.refund_nonce, amount }),
                }
                Booking::Nothing
            }
            // More was claimed than was charged here.
            7 => {
                let to = from.checked_add(amount).unwrap();
                (view.total_claimed, view.balance) = (to, view.balance.max(to));
                (channel_of.charged, channel_of.latest, channel_of.spent_up_to) = (to, None, None);
                Booking::Adjustment { from, to, at: self.now, why: Adjustment::ClaimedElsewhere }
            }
            _ => {
                channel_of.charged = from.checked_add(amount).unwrap();
                // Several were in flight, and one failed: its ceiling is spent.
                let several = self.dice.once_in(3);
                let failed = if several { Amount::new(1) } else { Amount::ZERO };
                let max_claimable = channel_of.charged.checked_add(failed).unwrap();
                channel_of.spent_up_to = several.then_some(max_claimable);
                channel_of.latest = Some(LatestVoucher { max_claimable, signature: self.signature() });
                let route = ROUTES[self.dice.below(ROUTES.len())].into();
                Booking::Charge { route, amount, at: self.now }
            }
        };
        channel(row, booking)
    }

    fn signed(&mut self, state: &State) -> Entry {
        self.nonce += 1;
        let channel = state.channels.values().next();
        let rows = |count: usize| -> Vec<_> {
            let claimed =
                |row: &ChannelRow| ClaimedRow { channel: row.snapshot.id, total_claimed: row.snapshot.charged };
            state.channels.values().take(count).map(claimed).collect()
        };
        let purpose = match (self.dice.below(4), channel) {
            (0, Some(row)) => Purpose::Deposit {
                config: row.snapshot.config,
                amount: self.amount(),
                salt: self.hash(),
                valid_before: self.now + 3_600,
            },
            (1, Some(row)) => {
                let nonce = row.snapshot.view.refund_nonce;
                Purpose::Refund { channel: row.snapshot.id, amount: self.amount(), nonce, rows: rows(1) }
            }
            (2, _) => Purpose::Settle { receiver: Address([1; 20]), token: Address([3; 20]) },
            _ => Purpose::Claim { rows: rows(6) },
        };
        Entry::Signed(Box::new(Transaction {
            hash: self.hash(),
            sender: Address([9; 20]),
            nonce: self.nonce,
            raw: self.noise(TRANSACTION),
            signed_at: self.now,
            purpose,
        }))
    }

    fn ended(&mut self, transaction: &Transaction) -> Entry {
        let mined = |success, moved| Fate::Mined {
            block: self.block,
            success,
            gas_used: 90_000,
            fee_wei: Some(u128::from(u64::MAX) + 1),
            moved,
        };
        let claimed = transaction.purpose.rows().iter().map(|row| Moved::Claimed(row.channel, row.total_claimed));
        let fate = match transaction.nonce % 5 {
            0 => Fate::NeverSent,
            1 => Fate::GivenUp,
            2 => mined(false, Vec::new()),
            3 => mined(true, vec![Moved::Settled(Amount::new(BALANCE))]),
            _ => mined(true, claimed.collect()),
        };
        Entry::Ended(Box::new(Outcome { hash: transaction.hash, at: self.now, fate }))
    }

    fn amount(&mut self) -> Amount {
        Amount::new(1 + u128::from(self.dice.throw() % 200_000))
    }

    fn hash(&mut self) -> Hash {
        Hash(self.noise(32).try_into().unwrap())
    }

    fn signature(&mut self) -> Signature {
        Signature::from_bytes(self.noise(65)).unwrap()
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.dice.throw().to_le_bytes()).flatten().take(length).collect()
    }
}

fn channel(row: ChannelRow, booking: Booking) -> Entry {
    Entry::Channel(Box::new(ChannelEntry { row, booking }))
}

fn domain() -> Domain {
    Domain::settlement_at(IDENTITY.chain_id, IDENTITY.settlement)
}
