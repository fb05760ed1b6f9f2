//! The audit: whether the books are true in themselves.
//!
//! **Owns** what must hold between the rows, and what a finding means. **Promises** to read everything, to go on after a
//! finding, and to change nothing. **Does not** ask the chain: whether the books agree with it is for the caller to
//! compare, and so are the vouchers that only a wallet can judge ([`Audit::wallets`]).
//!
//! # What must hold
//!
//! * The pages of the file are whole, and every row is as it was written.
//! * A channel's id follows from its terms; its sums keep the invariants of [`Channel`]; its voucher was signed by the
//!   key that signs for it.
//! * Charges and adjustments add up to what the channel was charged in all, to the unit.
//! * What transactions of these books claimed of a channel is at most what it was charged. It need not be what the chain
//!   says was claimed in all: that may hold claims from before the books were opened, and claims of others. It can be
//!   above what the channel's row says was claimed, for the moment between a claim and the next look at the chain.
//! * Money is moved by transactions that the books know as mined, and belongs to channels that they know.
//!
//! Nothing can be said about deposits and refunds against a balance: payers deposit and withdraw past us.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::sqlite::Reader;
use super::{
    AdjustmentLine, ChannelRow, ChargeLine, Filter, Identity, MovementLine, StoreError, Transaction, TransactionLine,
};
use crate::causes::causes;
use crate::ledger::{Channel, Snapshot};
use crate::protocol::channel::Authorizer;
use crate::protocol::voucher::{PayerEvidence, VoucherError};
use crate::protocol::{Address, Amount, ChannelId, Domain, Hash, SignedVoucher};

/// How many findings are kept; more are counted.
pub const MAX_FINDINGS: usize = 1_000;

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Whose books these are.
    pub identity: Identity,
    /// How much was read.
    pub counts: Counts,
    /// What it adds up to, for each token of the channels.
    pub sums: BTreeMap<Address, Sums>,
    /// What is wrong or worth a word, in the order it was found; at most [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// How many findings are problems, those left out included.
    pub problems: u64,
    /// How many findings are notes, those left out included.
    pub notes: u64,
    /// Transactions whose end is not known, oldest first.
    pub unfinished: Vec<Transaction>,
    /// Channels whose latest voucher only their payer's wallet can judge, and so only the chain.
    pub wallets: Vec<ChannelId>,
}

impl Audit {
    /// Of books in which nothing was read yet.
    pub(crate) fn of(identity: Identity) -> Self {
        Self {
            identity,
            counts: Counts::default(),
            sums: BTreeMap::new(),
            findings: Vec::new(),
            problems: 0,
            notes: 0,
            unfinished: Vec::new(),
            wallets: Vec::new(),
        }
    }

    /// Whether there is no problem.
    pub fn is_clean(&self) -> bool {
        self.problems == 0
    }

    /// Whether a copy of these books is worth keeping: nothing is wrong, or nothing but claims that count twice, as a
    /// reorganisation leaves them.
    pub fn is_sound(&self) -> bool {
        let twice = self.findings.iter().filter(|finding| finding.fault == Fault::Claims).count();
        self.problems == count(twice)
    }

    /// How many findings were not kept.
    pub fn left_out(&self) -> u64 {
        self.problems.saturating_add(self.notes).saturating_sub(count(self.findings.len()))
    }
}

/// How much an audit read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Channels.
    pub channels: u64,
    /// Signatures of vouchers that were checked.
    pub signatures: u64,
    /// Requests that were charged.
    pub requests: u64,
    /// Lines of charges.
    pub charges: u64,
    /// Adjustments.
    pub adjustments: u64,
    /// Transactions.
    pub transactions: u64,
    /// Movements of money.
    pub movements: u64,
}

/// What the books of one token add up to, in its atomic units. What belongs to a channel without a row is in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// What the channels were charged in all.
    pub charged: Amount,
    /// What the lines of charges add up to.
    pub charges: Amount,
    /// What adjustments added.
    pub adjusted_up: Amount,
    /// What adjustments took away.
    pub adjusted_down: Amount,
    /// What was claimed in all, as the chain last said.
    pub claimed: Amount,
    /// Of that, what transactions of these books claimed.
    pub claimed_here: Amount,
    /// What was charged and not claimed.
    pub unclaimed: Amount,
    /// What was settled by transactions of these books.
    pub settled_here: Amount,
}

/// Something an audit found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub fault: Fault,
    /// In which channel, if in one.
    pub channel: Option<ChannelId>,
    /// The particulars. No signature is in them.
    pub detail: String,
}

/// What can be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The file's pages are damaged.
    Pages,
    /// A row is not as it was written.
    Row,
    /// A channel's id is not that of its terms.
    ChannelId,
    /// A channel's sums cannot be true.
    Invariant,
    /// A voucher was not signed by the key that signs for its channel.
    Signature,
    /// Charges and adjustments do not add up to what was charged.
    Sum,
    /// More was claimed than was charged, or is about to be.
    Claims,
    /// A row belongs to a channel or a transaction that the books do not have.
    Stray,
    /// Only the chain can judge a voucher.
    Wallet,
    /// The chain has not been looked at since a claim.
    Behind,
}

impl Fault {
    /// Every one.
    pub const ALL: [Self; 10] = [
        Self::Pages,
        Self::Row,
        Self::ChannelId,
        Self::Invariant,
        Self::Signature,
        Self::Sum,
        Self::Claims,
        Self::Stray,
        Self::Wallet,
        Self::Behind,
    ];

    /// Whether something is wrong, and not just worth a word.
    pub fn is_problem(self) -> bool {
        !matches!(self, Self::Wallet | Self::Behind)
    }

    /// Its name for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pages => "pages",
            Self::Row => "row",
            Self::ChannelId => "channel_id",
            Self::Invariant => "invariant",
            Self::Signature => "signature",
            Self::Sum => "sum",
            Self::Claims => "claims",
            Self::Stray => "stray",
            Self::Wallet => "wallet",
            Self::Behind => "behind",
        }
    }

    /// What to do about it, for people.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Pages | Self::Row => {
                "the disk or another program changed the file: restore the latest backup, and look at the system's log"
            }
            Self::ChannelId | Self::Invariant => {
                "peaje does not start on these books: restore the latest backup that verifies"
            }
            Self::Signature => {
                "what was charged since the last claim cannot be claimed with this voucher; restore the latest backup \
                 that verifies, or let the payer call again, which brings a new voucher"
            }
            Self::Sum => {
                "a charge or an adjustment is missing or was changed: the channel's own sum decides what is claimed, \
                 the lines do not; compare them with an earlier export or backup"
            }
            Self::Claims => {
                "a row was changed, or a claim that a reorganisation dropped was made again and counts twice; compare \
                 with the chain: peaje ledger verify --chain"
            }
            Self::Stray => "rows are missing or were changed; compare with an earlier export or backup",
            Self::Wallet => "run peaje ledger verify --chain, which asks the wallet",
            Self::Behind => "the next look at the chain brings it up to date; no money is affected",
        }
    }
}

/// How far an audit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The file's pages.
    Pages,
    /// Channels and their vouchers.
    Channels,
    /// Charges.
    Charges,
    /// Adjustments.
    Adjustments,
    /// Transactions.
    Transactions,
    /// Movements of money.
    Movements,
}

impl Step {
    /// What is being read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pages => "pages",
            Self::Channels => "channels",
            Self::Charges => "charges",
            Self::Adjustments => "adjustments",
            Self::Transactions => "transactions",
            Self::Movements => "movements",
        }
    }
}

/// Audits books. `settlement` is the domain that vouchers of their chain are signed under. `progress` is told each step
/// and how many rows of it were read.
///
/// Some 400 bytes are kept for each channel while it runs.
///
/// # Errors
/// Only where the books cannot be read at all. What is damaged is a finding.
pub fn audit(reader: &Reader, settlement: &Domain, progress: &mut dyn FnMut(Step, u64)) -> Result<Audit, StoreError> {
    let mut auditor = Auditor::new(reader.identity()?, *settlement);
    progress(Step::Pages, 0);
    for problem in reader.page_problems()? {
        auditor.found(Fault::Pages, None, problem);
    }
    let all = Filter::default();

    progress(Step::Channels, 0);
    let read = reader.channels_checked(&mut |row| {
        auditor.row(row)?;
        progress(Step::Channels, auditor.audit.counts.channels);
        Ok(())
    });
    let channels = auditor.whole("channels", read)?;

    progress(Step::Charges, 0);
    let read = reader.charges(&all, &mut |line| {
        auditor.charge(&line);
        progress(Step::Charges, auditor.audit.counts.charges);
        Ok(())
    });
    let charges = auditor.whole("charges", read)?;

    progress(Step::Adjustments, 0);
    let read = reader.adjustments(&all, &mut |line| {
        auditor.adjustment(&line);
        progress(Step::Adjustments, auditor.audit.counts.adjustments);
        Ok(())
    });
    let adjustments = auditor.whole("adjustments", read)?;

    progress(Step::Transactions, 0);
    let read = reader.transactions(&all, &mut |line| {
        auditor.transaction(&line);
        progress(Step::Transactions, auditor.audit.counts.transactions);
        Ok(())
    });
    let transactions = auditor.whole("transactions", read)?;

    progress(Step::Movements, 0);
    let read = reader.movements(&all, &mut |line| {
        auditor.movement(&line);
        progress(Step::Movements, auditor.audit.counts.movements);
        Ok(())
    });
    let movements = auditor.whole("movements", read)?;

    match reader.unfinished() {
        Ok(unfinished) => auditor.unfinished(unfinished),
        Err(error) => {
            auditor.whole("unfinished transactions", Err(error))?;
        }
    }
    let whole = Whole { channels, bookings: charges && adjustments, transactions, movements };
    Ok(auditor.finish(whole))
}

/// Which parts could be read to their end; sums over others mean nothing.
#[derive(Debug, Clone, Copy)]
struct Whole {
    channels: bool,
    bookings: bool,
    transactions: bool,
    movements: bool,
}

/// What is known of one channel.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    /// Whether its row could be read.
    known: bool,
    /// Of which token.
    token: Option<Address>,
    charged: Amount,
    claimed: Amount,
    up: Amount,
    down: Amount,
    claimed_here: Amount,
    /// The most that an unfinished transaction claims of it in all.
    claiming: Amount,
}

#[derive(Debug)]
struct Auditor {
    settlement: Domain,
    audit: Audit,
    tallies: HashMap<ChannelId, Tally>,
    /// Channels in the order they were read, so that findings come in that order.
    order: Vec<ChannelId>,
    mined: HashSet<Hash>,
    /// Transactions of movements, with what they are said to have moved.
    movers: HashMap<Hash, Amount>,
    /// Whether a channel's row could not be read; what belongs to it is then left over, and that is no news.
    unreadable: bool,
}

impl Auditor {
    fn new(identity: Identity, settlement: Domain) -> Self {
        let audit = Audit::of(identity);
        Self {
            settlement,
            audit,
            tallies: HashMap::new(),
            order: Vec::new(),
            mined: HashSet::new(),
            movers: HashMap::new(),
            unreadable: false,
        }
    }

    fn found(&mut self, fault: Fault, channel: Option<ChannelId>, detail: impl Into<String>) {
        let counter = if fault.is_problem() { &mut self.audit.problems } else { &mut self.audit.notes };
        *counter = counter.saturating_add(1);
        if self.audit.findings.len() < MAX_FINDINGS {
            self.audit.findings.push(Finding { fault, channel, detail: detail.into() });
        }
    }

    /// Whether a part was read to its end. Damage that ended the reading is a finding; anything else ends the audit.
    fn whole(&mut self, part: &str, read: Result<(), StoreError>) -> Result<bool, StoreError> {
        match read {
            Ok(()) => Ok(true),
            Err(error @ (StoreError::Damaged { .. } | StoreError::Impossible { .. })) => {
                self.found(Fault::Row, None, format!("the {part} cannot be read to their end: {}", causes(&error)));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn row(&mut self, row: Result<ChannelRow, StoreError>) -> Result<(), StoreError> {
        self.audit.counts.channels = self.audit.counts.channels.saturating_add(1);
        match row {
            Ok(row) => self.channel(row.snapshot),
            Err(StoreError::Impossible { channel, violation }) => {
                // Its sums are not to be trusted, so nothing is compared with them.
                self.tallies.entry(channel).or_default().known = true;
                self.found(Fault::Invariant, Some(channel), violation.to_string());
            }
            Err(error @ StoreError::Damaged { .. }) => {
                self.unreadable = true;
                self.found(Fault::Row, None, causes(&error));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn channel(&mut self, snapshot: Snapshot) {
        let (id, charged, claimed) = (snapshot.id, snapshot.charged, snapshot.view.total_claimed);
        let tally = self.tallies.entry(id).or_default();
        let token = snapshot.config.token;
        (tally.known, tally.token, tally.charged, tally.claimed) = (true, Some(token), charged, claimed);
        self.order.push(id);
        let sums = self.audit.sums.entry(token).or_default();
        add(&mut sums.charged, charged);
        add(&mut sums.claimed, claimed);
        add(&mut sums.unclaimed, charged.saturating_sub(claimed));
        let follows = snapshot.config.id(&self.settlement);
        if follows != id {
            self.found(Fault::ChannelId, Some(id), format!("its terms are those of channel {follows}"));
        } else {
            // A voucher of another channel than the terms say proves nothing either way.
            self.voucher(&snapshot);
        }
        if let Err(violation) = Channel::restore(snapshot) {
            self.found(Fault::Invariant, Some(id), violation.to_string());
        }
    }

    fn voucher(&mut self, snapshot: &Snapshot) {
        let Some(latest) = &snapshot.latest else { return };
        self.audit.counts.signatures = self.audit.counts.signatures.saturating_add(1);
        let (id, config) = (snapshot.id, &snapshot.config);
        let signed =
            SignedVoucher { channel: id, max_claimable: latest.max_claimable, signature: latest.signature.clone() };
        // A payer that signs for itself is taken for a key as long as that explains the signature.
        match (signed.verify_by_payer(&self.settlement, config, PayerEvidence::NoCode), config.authorizer()) {
            (Ok(_), _) => {}
            (Err(_), Authorizer::Payer(payer)) => {
                self.audit.wallets.push(id);
                let detail =
                    format!("the voucher for {} is no key's: the wallet {payer} decides", latest.max_claimable);
                self.found(Fault::Wallet, Some(id), detail);
            }
            (Err(error), Authorizer::Key(signer)) => {
                let why = match error {
                    VoucherError::OtherSigner => format!("is not signed by {signer}"),
                    other => format!("proves nothing: {other}"),
                };
                self.found(Fault::Signature, Some(id), format!("the voucher for {} {why}", latest.max_claimable));
            }
        }
    }

    fn charge(&mut self, line: &ChargeLine) {
        let counts = &mut self.audit.counts;
        counts.charges = counts.charges.saturating_add(1);
        counts.requests = counts.requests.saturating_add(line.requests);
        let tally = self.tallies.entry(line.channel).or_default();
        add(&mut tally.up, line.amount);
        if let Some(token) = tally.token {
            add(&mut self.audit.sums.entry(token).or_default().charges, line.amount);
        }
    }

    fn adjustment(&mut self, line: &AdjustmentLine) {
        self.audit.counts.adjustments = self.audit.counts.adjustments.saturating_add(1);
        let (up, down) = (line.to.saturating_sub(line.from), line.from.saturating_sub(line.to));
        let tally = self.tallies.entry(line.channel).or_default();
        add(&mut tally.up, up);
        add(&mut tally.down, down);
        if let Some(token) = tally.token {
            let sums = self.audit.sums.entry(token).or_default();
            add(&mut sums.adjusted_up, up);
            add(&mut sums.adjusted_down, down);
        }
    }

    fn transaction(&mut self, line: &TransactionLine) {
        self.audit.counts.transactions = self.audit.counts.transactions.saturating_add(1);
        if line.state == "mined" {
            self.mined.insert(line.hash);
        }
    }

    fn movement(&mut self, line: &MovementLine) {
        self.audit.counts.movements = self.audit.counts.movements.saturating_add(1);
        add(self.movers.entry(line.transaction).or_default(), line.amount);
        match (line.kind.as_str(), line.channel) {
            ("claimed", Some(channel)) => {
                let tally = self.tallies.entry(channel).or_default();
                add(&mut tally.claimed_here, line.amount);
                if let Some(token) = tally.token {
                    add(&mut self.audit.sums.entry(token).or_default().claimed_here, line.amount);
                }
            }
            ("settled", _) => {
                if let Some(token) = line.token {
                    add(&mut self.audit.sums.entry(token).or_default().settled_here, line.amount);
                }
            }
            // A deposit may be of a channel that nobody has paid from yet, and a refund follows a claim.
            _ => {}
        }
    }

    fn unfinished(&mut self, transactions: Vec<Transaction>) {
        for row in transactions.iter().flat_map(|transaction| transaction.purpose.rows()) {
            let tally = self.tallies.entry(row.channel).or_default();
            tally.claiming = tally.claiming.max(row.total_claimed);
        }
        self.audit.unfinished = transactions;
    }

    fn finish(mut self, whole: Whole) -> Audit {
        for id in std::mem::take(&mut self.order) {
            let Some(tally) = self.tallies.remove(&id) else { continue };
            self.compare(id, &tally, whole);
        }
        if whole.channels && !self.unreadable {
            self.strays();
        }
        if whole.transactions && whole.movements {
            let mut movers: Vec<_> = self.movers.drain().filter(|(hash, _)| !self.mined.contains(hash)).collect();
            movers.sort_unstable();
            for (hash, amount) in movers {
                let detail = format!("transaction {hash} moved {amount}, and is not in the books as mined");
                self.found(Fault::Stray, None, detail);
            }
        }
        self.audit
    }

    fn compare(&mut self, id: ChannelId, tally: &Tally, whole: Whole) {
        let Tally { charged, claimed, up, down, claimed_here, claiming, .. } = *tally;
        if whole.bookings && up.checked_sub(down) != Some(charged) {
            let detail = match up.checked_sub(down) {
                Some(booked) => format!("{charged} was charged in all, but charges and adjustments add up to {booked}"),
                None => format!("{charged} was charged in all, but adjustments took {down} of {up}"),
            };
            self.found(Fault::Sum, Some(id), detail);
        }
        if claiming > charged {
            let detail = format!("a transaction claims {claiming} in all, and only {charged} was charged");
            self.found(Fault::Claims, Some(id), detail);
        }
        if whole.movements && claimed_here > charged {
            let detail = format!("transactions claimed {claimed_here}, and only {charged} was charged");
            self.found(Fault::Claims, Some(id), detail);
        } else if whole.movements && claimed_here > claimed {
            let detail = format!("transactions claimed {claimed_here}, and the chain's last word was {claimed}");
            self.found(Fault::Behind, Some(id), detail);
        }
    }

    /// What is left belongs to channels whose rows were not read.
    fn strays(&mut self) {
        let mut strays: Vec<_> = self.tallies.drain().filter(|(_, tally)| !tally.known).collect();
        strays.sort_unstable_by_key(|(id, _)| *id);
        for (id, Tally { up, claimed_here, claiming, .. }) in strays {
            if !(up.is_zero() && claimed_here.is_zero() && claiming.is_zero()) {
                let detail = format!("{up} was booked and {claimed_here} claimed, and the channel has no row");
                self.found(Fault::Stray, Some(id), detail);
            }
        }
    }
}

/// A sum that does not fit cannot be true, and stays wrong at the largest value.
fn add(sum: &mut Amount, amount: Amount) {
    *sum = sum.saturating_add(amount);
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{LatestVoucher, View};
    use crate::protocol::{Address, ChannelConfig, LocalKey, Signature, Voucher};
    use crate::store::{Adjustment, ClaimedRow, Purpose};

    const WHOLE: Whole = Whole { channels: true, bookings: true, transactions: true, movements: true };

    fn settlement() -> Domain {
        Domain::settlement(84_532)
    }

    fn key() -> LocalKey {
        LocalKey::from_bytes(&[2; 32]).unwrap()
    }

    fn auditor() -> Auditor {
        Auditor::new(Identity { chain_id: 84_532, settlement: Address([4; 20]) }, settlement())
    }

    /// A channel whose books are in order: charged 500, of which 200 is claimed.
    fn snapshot(salt: u8) -> Snapshot {
        let config = ChannelConfig {
            payer: key().address(),
            payer_authorizer: key().address(),
            receiver: Address([3; 20]),
            receiver_authorizer: Address([4; 20]),
            token: Address([5; 20]),
            withdraw_delay: 900,
            salt: Hash([salt; 32]),
        };
        signed(config, &key())
    }

    fn signed(config: ChannelConfig, signer: &LocalKey) -> Snapshot {
        let id = config.id(&settlement());
        let voucher = Voucher { channel: id, max_claimable: Amount::new(600) }.sign(&settlement(), signer);
        Snapshot {
            id,
            config,
            view: View { balance: Amount::new(1_000), total_claimed: Amount::new(200), ..View::default() },
            viewed_at: 0,
            charged: Amount::new(500),
            latest: Some(LatestVoucher { max_claimable: voucher.max_claimable, signature: voucher.signature }),
            spent_up_to: None,
            open_refund: None,
            unclaimed_since: Some(1),
        }
    }

    fn charge(id: ChannelId, amount: u128) -> ChargeLine {
        let amount = Amount::new(amount);
        ChargeLine { minute: 0, channel: id, payer: Address([1; 20]), route: "r".to_owned(), requests: 2, amount }
    }

    fn adjustment(id: ChannelId, from: u128, to: u128) -> AdjustmentLine {
        AdjustmentLine { at: 0, channel: id, from: Amount::new(from), to: Amount::new(to), why: Adjustment::Opened }
    }

    fn mined(byte: u8, state: &str) -> TransactionLine {
        TransactionLine {
            hash: Hash([byte; 32]),
            purpose: "claim".to_owned(),
            sender: Address([9; 20]),
            nonce: 0,
            signed_at: 0,
            state: state.to_owned(),
            ended_at: None,
            block: None,
            gas_used: None,
            fee_wei: None,
        }
    }

    fn claimed(byte: u8, id: ChannelId, amount: u128) -> MovementLine {
        let amount = Amount::new(amount);
        MovementLine {
            at: 0,
            transaction: Hash([byte; 32]),
            kind: "claimed".to_owned(),
            channel: Some(id),
            amount,
            token: None,
        }
    }

    fn faults(audit: &Audit) -> Vec<Fault> {
        audit.findings.iter().map(|finding| finding.fault).collect()
    }

    /// What is found in one channel with its 500 booked in full.
    fn faults_of(snapshot: Snapshot) -> Vec<Fault> {
        let mut auditor = auditor();
        let (id, charged) = (snapshot.id, snapshot.charged.units());
        auditor.channel(snapshot);
        auditor.charge(&charge(id, charged));
        faults(&auditor.finish(WHOLE))
    }

    #[test]
    fn books_in_order_have_no_findings() {
        let mut auditor = auditor();
        let id = snapshot(1).id;
        auditor.row(Ok(ChannelRow { snapshot: snapshot(1), version: 1, last_deposit: None })).unwrap();
        auditor.adjustment(&adjustment(id, 0, 150));
        auditor.charge(&charge(id, 350));
        auditor.charge(&charge(id, 10));
        auditor.adjustment(&adjustment(id, 510, 500));
        auditor.transaction(&mined(7, "mined"));
        auditor.movement(&claimed(7, id, 50));
        let audit = auditor.finish(WHOLE);
        assert_eq!(audit.findings, []);
        assert!(audit.is_clean());
        let expected = Sums {
            charged: Amount::new(500),
            charges: Amount::new(360),
            adjusted_up: Amount::new(150),
            adjusted_down: Amount::new(10),
            claimed: Amount::new(200),
            claimed_here: Amount::new(50),
            unclaimed: Amount::new(300),
            settled_here: Amount::ZERO,
        };
        assert_eq!(audit.sums, BTreeMap::from([(snapshot(1).config.token, expected)]));
        let counts = audit.counts;
        assert_eq!((counts.channels, counts.signatures, counts.requests, counts.charges), (1, 1, 4, 2));
        assert_eq!((counts.adjustments, counts.transactions, counts.movements), (2, 1, 1));
    }

    #[test]
    fn each_damage_of_a_channel_has_its_name() {
        let good = snapshot(1);
        assert_eq!(faults_of(good.clone()), []);

        let mut spent = good.clone();
        spent.spent_up_to = Some(spent.charged);
        assert_eq!(faults_of(spent), [Fault::Invariant]);

        let mut other_terms = good.clone();
        other_terms.config.withdraw_delay = 901;
        assert_eq!(faults_of(other_terms), [Fault::ChannelId]);

        let mut above_voucher = good.clone();
        above_voucher.charged = Amount::new(601);
        assert_eq!(faults_of(above_voucher), [Fault::Invariant]);
        let mut at_voucher = good.clone();
        at_voucher.charged = Amount::new(600);
        assert_eq!(faults_of(at_voucher), []);

        let mut below_claimed = good.clone();
        below_claimed.charged = Amount::new(199);
        assert_eq!(faults_of(below_claimed), [Fault::Invariant]);

        let mut no_voucher = good.clone();
        no_voucher.latest = None;
        assert_eq!(faults_of(no_voucher), [Fault::Invariant]);

        let mut larger_voucher = good.clone();
        larger_voucher.latest.as_mut().unwrap().max_claimable = Amount::new(700);
        assert_eq!(faults_of(larger_voucher), [Fault::Signature]);

        let mut short = good.clone();
        short.latest.as_mut().unwrap().signature = Signature::from_bytes([1; 64]).unwrap();
        assert_eq!(faults_of(short), [Fault::Signature]);

        let stranger = LocalKey::from_bytes(&[3; 32]).unwrap();
        assert_eq!(faults_of(signed(good.config, &stranger)), [Fault::Signature]);
    }

    #[test]
    fn a_wallets_voucher_is_left_to_the_chain_and_a_keys_is_not() {
        let mut config = snapshot(1).config;
        config.payer_authorizer = Address::ZERO;
        assert_eq!(faults_of(signed(config, &key())), []);

        let stranger = LocalKey::from_bytes(&[3; 32]).unwrap();
        let mut auditor = auditor();
        let wallet = signed(config, &stranger);
        auditor.channel(wallet.clone());
        auditor.charge(&charge(wallet.id, 500));
        let audit = auditor.finish(WHOLE);
        assert_eq!((faults(&audit), audit.wallets.clone()), (vec![Fault::Wallet], vec![wallet.id]));
        assert!(audit.is_clean() && audit.notes == 1);
    }

    #[test]
    fn bookings_add_up_to_the_unit_or_are_found() {
        let id = snapshot(1).id;
        for (bookings, found) in [
            (vec![(true, 0, 500)], false),
            (vec![(true, 0, 499)], true),
            (vec![(true, 0, 501)], true),
            (vec![], true),
            (vec![(false, 0, 600), (false, 600, 500)], false),
            (vec![(false, 500, 0)], true),
            (vec![(true, 0, u128::MAX), (true, 0, u128::MAX)], true),
        ] {
            let mut auditor = auditor();
            auditor.channel(snapshot(1));
            for (is_charge, from, to) in &bookings {
                if *is_charge {
                    auditor.charge(&charge(id, *to));
                } else {
                    auditor.adjustment(&adjustment(id, *from, *to));
                }
            }
            let audit = auditor.finish(WHOLE);
            let expected = if found { vec![Fault::Sum] } else { vec![] };
            assert_eq!(faults(&audit), expected, "{bookings:?}");
        }
        // Bookings that could not all be read are not held against the channels.
        let mut auditor = auditor();
        auditor.channel(snapshot(1));
        assert_eq!(faults(&auditor.finish(Whole { bookings: false, ..WHOLE })), []);
    }

    #[test]
    fn claims_stay_within_what_was_charged() {
        for (amount, fault) in
            [(200, None), (201, Some(Fault::Behind)), (500, Some(Fault::Behind)), (501, Some(Fault::Claims))]
        {
            let mut auditor = auditor();
            let id = snapshot(1).id;
            auditor.channel(snapshot(1));
            auditor.charge(&charge(id, 500));
            auditor.transaction(&mined(7, "mined"));
            auditor.movement(&claimed(7, id, amount));
            assert_eq!(faults(&auditor.finish(WHOLE)), Vec::from_iter(fault), "{amount}");
        }
    }

    #[test]
    fn a_transaction_on_its_way_claims_no_more_than_was_charged() {
        for (total, found) in [(500, false), (501, true)] {
            let mut auditor = auditor();
            let channel = snapshot(1).id;
            auditor.channel(snapshot(1));
            auditor.charge(&charge(channel, 500));
            let rows = vec![ClaimedRow { channel, total_claimed: Amount::new(total) }];
            auditor.unfinished(vec![Transaction {
                hash: Hash([7; 32]),
                sender: Address([9; 20]),
                nonce: 1,
                raw: Vec::new(),
                signed_at: 0,
                purpose: Purpose::Claim { rows },
            }]);
            let audit = auditor.finish(WHOLE);
            assert_eq!(audit.unfinished.len(), 1);
            assert_eq!(!audit.is_clean(), found, "{total}: {audit:?}");
        }
    }

    #[test]
    fn what_belongs_to_nothing_is_found() {
        let mut auditor = auditor();
        let (id, stranger) = (snapshot(1).id, snapshot(2).id);
        auditor.channel(snapshot(1));
        auditor.charge(&charge(id, 500));
        auditor.charge(&charge(stranger, 1));
        auditor.transaction(&mined(7, "mined"));
        auditor.transaction(&mined(8, "reverted"));
        for transaction in [7, 8, 9] {
            auditor.movement(&claimed(transaction, id, 1));
        }
        let audit = auditor.finish(WHOLE);
        assert_eq!(faults(&audit), [Fault::Stray; 3]);
        assert_eq!(audit.findings[0].channel, Some(stranger));
        assert!(audit.findings[1].detail.contains("0808") && audit.findings[2].detail.contains("0909"));
    }

    #[test]
    fn findings_beyond_the_limit_are_counted() {
        let mut auditor = auditor();
        for number in 0..=MAX_FINDINGS {
            auditor.found(Fault::Row, None, number.to_string());
        }
        auditor.found(Fault::Wallet, None, "");
        let audit = auditor.finish(WHOLE);
        assert_eq!((audit.findings.len(), audit.problems, audit.notes, audit.left_out()), (1_000, 1_001, 1, 2));
    }

    #[test]
    fn damaged_rows_are_listed_and_other_errors_end_the_audit() {
        let damaged = || StoreError::Damaged { what: "row 7".to_owned(), source: None };
        let mut auditor = auditor();
        auditor.row(Err(damaged())).unwrap();
        auditor.row(Err(damaged())).unwrap();
        assert!(!auditor.whole("charges", Err(damaged())).unwrap());
        assert!(auditor.whole("charges", Ok(())).unwrap());
        // What was booked on a row that cannot be read has lost its channel, which is said already.
        auditor.charge(&charge(snapshot(1).id, 1));
        let full = || StoreError::ReadOnly("no".into());
        assert!(auditor.row(Err(full())).is_err() && auditor.whole("charges", Err(full())).is_err());
        assert_eq!(faults(&auditor.finish(WHOLE)), [Fault::Row; 3]);
    }
}
