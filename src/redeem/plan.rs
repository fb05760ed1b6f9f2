//! What to claim: a pure function from books, the price of gas and rules to batches.
//!
//! **Owns** which rows go into which transaction, which of them wait and why, and what that is expected to cost.
//! Tokens are counted together as dollars ([`Rules::dollars`]), rounded down where one is finer; rows are exact.
//! **Promises** that every row with something to claim is in exactly one place ([`Plan`]'s four lists), that no
//! transaction is larger than a chain takes, and that a row which waits is told with its reason. **Does not** ask or send
//! anything: the gas it counts with is an estimate, and only what the chain says is booked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::chain::GasPrice;
use crate::gate::Statement;
use crate::protocol::claim::ClaimRow;
use crate::protocol::{Address, Amount, ChannelId, Dollars};

// What a claim takes, as measured on the deployed bytecode with signatures of keys (`benches/gas.rs`), rounded up.

/// Gas of a claim transaction beside its rows.
pub const CLAIM_GAS: u64 = 37_500;
/// Gas of a row whose voucher a key signed.
pub const ROW_GAS: u64 = 22_690;
/// What a row takes more for each row that is in its transaction: memory costs more the more there is of it.
const CROWD_GAS: u64 = 10;
/// What a row takes more where the payer's own account approves the voucher: a call of foreign code, so a guess.
pub const WALLET_GAS: u64 = 40_000;
/// Gas of a settlement, which follows the claims of a round; a token behind a proxy included.
pub const SETTLE_GAS: u64 = 57_000;
/// Bytes of a claim transaction beside its rows: the call, and the signed envelope around it.
const CLAIM_BYTES: u64 = 228 + ENVELOPE_BYTES;
/// Bytes of a row.
const ROW_BYTES: u64 = 480;
/// Bytes of a settlement.
const SETTLE_BYTES: u64 = 68 + ENVELOPE_BYTES;
/// Bytes of a signed transaction without its data.
const ENVELOPE_BYTES: u64 = 120;

// What a chain takes.

/// The largest transaction that nodes pass on, bytes.
const MAX_TRANSACTION_BYTES: u64 = 128 * 1024;
/// Room left in it.
const SPARE_BYTES: u64 = 1_024;
/// The most gas a transaction may ask for (EIP-7825).
const MAX_TRANSACTION_GAS: u64 = 1 << 24;
/// How much of the gas that there is rows are planned for, in fifths: estimates are estimates, and gas limits are set with
/// a margin.
const PLANNED_FIFTHS: u64 = 4;
/// How many rows are in a batch at most, where rules and chain allow more. Larger ones save no gas, because rows take more
/// the more there are ([`CROWD_GAS`]). By that reckoning some sixty are cheapest; a hundred take less than a percent more,
/// and half as many transactions to wait for.
const PREFERRED_ROWS: usize = 100;
/// Rows that a payer is about to take go in batches of at most so many: a small transaction finds room in a full block,
/// and if one of them is bad, the others are soon found.
const MAX_URGENT_ROWS: usize = 25;

/// Wei in one of the chain's own coins.
const WEI_PER_COIN: u128 = 1_000_000_000_000_000_000;
/// A whole, in hundredths of a percent.
const WHOLE_BPS: u128 = 10_000;

/// The rows of one claim transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The rows, most urgent first; never none.
    pub rows: Vec<ClaimRow>,
    /// Whether a payer is withdrawing what these rows claim.
    pub urgent: bool,
    /// What they add to what was claimed before, by these books, in dollars.
    pub claims: Amount,
}

/// When to claim, and what. Sums are dollars, in units of the preferred token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// How dollars are counted, which the gate's policy says and [`super::Redemption::start`] puts here.
    pub dollars: Dollars,
    /// Between two rounds, if nothing calls for one earlier.
    pub interval: Duration,
    /// Unclaimed in all: a round begins once it is more.
    pub max_unclaimed: Option<Amount>,
    /// The same for one channel.
    pub max_unclaimed_per_channel: Option<Amount>,
    /// The same for the channels of one payer together.
    pub max_unclaimed_per_payer: Option<Amount>,
    /// A round begins once something was not claimed for longer.
    pub max_age: Option<Duration>,
    /// Rows whose gas costs a larger part of what they claim wait until they are worth more, in hundredths of a percent.
    /// It takes [`Rules::units_per_coin`].
    pub max_gas_share_bps: Option<u32>,
    /// What one of the chain's own coins (10^18 wei) is worth.
    pub units_per_coin: Option<u128>,
    /// The most that may be unclaimed on a wallet's channel: the gate's
    /// [`crate::gate::Limits::max_wallet_exposure`], which [`super::Redemption::start`] puts here.
    pub max_wallet_exposure: Amount,
    /// Channels in one claim transaction, at most. What a transaction has room for is a limit too.
    pub max_rows: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            dollars: Dollars::default(),
            interval: Duration::from_secs(3_600),
            max_unclaimed: None,
            max_unclaimed_per_channel: None,
            max_unclaimed_per_payer: None,
            max_age: None,
            max_gas_share_bps: None,
            units_per_coin: None,
            max_wallet_exposure: crate::ledger::Limits::default().max_wallet_exposure,
            max_rows: 200,
        }
    }
}

impl Rules {
    /// What so much of the chain's coin is worth, dollars, rounded up; nothing where no price is known.
    pub fn worth(&self, wei: u128) -> Option<Amount> {
        self.units_per_coin.map(|units_per_coin| in_units(wei, units_per_coin))
    }

    /// Whether something was unclaimed for longer than it should.
    pub(super) fn is_old(&self, books: &Statement, now: u64) -> bool {
        let waited = books.unclaimed_since.map(|since| now.saturating_sub(since));
        self.max_age.zip(waited).is_some_and(|(max_age, waited)| waited > max_age.as_secs())
    }
}

/// In whose name claims are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimant {
    /// Whose key signs claims.
    pub authorizer: Address,
    /// Who sends them. As a channel's receiver or receiver authorizer it needs nobody's signature.
    pub sender: Option<Address>,
}

/// What a round does, and what it leaves. A channel with something to claim is in exactly one of the lists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The claims, in order.
    pub batches: Vec<Batch>,
    /// What is due and cannot be claimed from here.
    pub foreign: Vec<Foreign>,
    /// What is not worth its gas yet.
    pub postponed: Vec<Postponed>,
    /// What is left out for a while because the contract refuses it.
    pub quarantined: Vec<Due>,
}

/// What is due on a channel, in dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// The channel.
    pub channel: ChannelId,
    /// How much.
    pub due: Amount,
}

/// A channel with something to claim for which there is no key here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// The channel.
    pub channel: ChannelId,
    /// Whose key it takes.
    pub authorizer: Address,
    /// What is due, in dollars.
    pub due: Amount,
}

/// A channel whose claim waits. Sums are dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postponed {
    /// The channel.
    pub channel: ChannelId,
    /// What is due.
    pub due: Amount,
    /// What claiming it now would cost, its share of a whole transaction included.
    pub cost: Amount,
    /// Why it waits.
    pub why: Why,
}

/// Why a claim waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Gas would take a larger part of it than it may. It is claimed once it has grown, gas is cheaper, or it is old.
    GasShare,
    /// Gas would take all of it. It is claimed once it has grown or gas is cheaper.
    NotWorthItsGas,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GasShare => "gas would take too large a part of it",
            Self::NotWorthItsGas => "it is not worth its gas",
        })
    }
}

impl Claimant {
    /// Whether the authorizer's signature claims this row.
    fn signs_for(&self, row: &ClaimRow) -> bool {
        row.config.receiver_authorizer == self.authorizer
    }

    /// Whether the sender may claim this row by itself.
    pub(super) fn sends_for(&self, row: &ClaimRow) -> bool {
        self.sender.is_some_and(|sender| sender == row.config.receiver || sender == row.config.receiver_authorizer)
    }
}

impl Batch {
    /// The gas it is expected to take.
    pub fn gas(&self) -> u64 {
        let of_row = |row: &ClaimRow| row_gas(is_wallets(row));
        let rows = u64::try_from(self.rows.len()).unwrap_or(u64::MAX);
        let crowd = CROWD_GAS.saturating_mul(rows).saturating_mul(rows);
        self.rows.iter().map(of_row).fold(CLAIM_GAS.saturating_add(crowd), u64::saturating_add)
    }

    /// What it is expected to cost, wei.
    pub fn cost(&self, price: &GasPrice) -> u128 {
        let rows = u64::try_from(self.rows.len()).unwrap_or(u64::MAX);
        cost(self.gas(), CLAIM_BYTES.saturating_add(ROW_BYTES.saturating_mul(rows)), price)
    }
}

impl Plan {
    /// What it claims, in dollars.
    pub fn claims(&self) -> Amount {
        sum(self.batches.iter().map(|batch| batch.claims))
    }

    /// How many settlements follow: one for each receiver and token.
    pub fn settlements(&self) -> usize {
        let rows = self.batches.iter().flat_map(|batch| &batch.rows);
        rows.map(|row| (row.config.receiver, row.config.token)).collect::<BTreeSet<_>>().len()
    }

    /// The gas all of it is expected to take, settlements included.
    pub fn gas(&self) -> u64 {
        let settlements = SETTLE_GAS.saturating_mul(u64::try_from(self.settlements()).unwrap_or(u64::MAX));
        self.batches.iter().map(Batch::gas).fold(settlements, u64::saturating_add)
    }

    /// What all of it is expected to cost, settlements included, wei.
    pub fn cost(&self, price: &GasPrice) -> u128 {
        let settlement = cost(SETTLE_GAS, SETTLE_BYTES, price);
        let settlements = settlement.saturating_mul(u128::try_from(self.settlements()).unwrap_or(u128::MAX));
        self.batches.iter().map(|batch| batch.cost(price)).fold(settlements, u128::saturating_add)
    }

    /// What is due and not claimed by it, in dollars.
    pub fn leaves(&self) -> Amount {
        let foreign = self.foreign.iter().map(|foreign| foreign.due);
        let postponed = self.postponed.iter().map(|postponed| postponed.due);
        sum(foreign.chain(postponed).chain(self.quarantined.iter().map(|row| row.due)))
    }
}

/// Plans a round: one row for each channel with something to claim, channels whose payer is withdrawing first and in small
/// batches of their own, then by value.
///
/// A batch holds as many rows as are worth their gas together (`PREFERRED_ROWS`), or as the rules and a transaction on
/// this chain allow, and batches are of even size: two of 65 find room more easily than one of 100 and one of 30, and cost
/// no more.
///
/// A row whose voucher the payer's own account approves (its wallet, or a key that can become one at any time) goes
/// alone, and last. Such an account can approve when it is asked and refuse, or burn the gas, when it is mined; in a batch
/// it would take the others with it, round after round.
///
/// A channel that was drained below what it owes is claimed up to its balance: a row above it would revert the batch.
///
/// Books that last outlive the config they were begun under. A channel opened for another authorizer's key cannot be
/// claimed with ours, and would revert the batch it is in.
///
/// Where a share of gas is set and the `price` is known, a row waits whose gas, with its part of what a transaction takes
/// anyway, is more than that share of what it claims; the settlement that follows is not counted. One that is old, or
/// whose payer is withdrawing, or of a wallet with half of what may be unclaimed on it, is claimed if only it is worth its
/// gas: waiting would not make it better. Without a price
/// nothing waits. `quarantined` names channels that are left out.
pub fn plan(
    books: &[Statement],
    claimant: Claimant,
    rules: &Rules,
    price: Option<&GasPrice>,
    quarantined: &dyn Fn(&ChannelId) -> bool,
    now: u64,
) -> Plan {
    let mut plan = Plan::default();
    let mut groups: BTreeMap<Group, Vec<Claim>> = BTreeMap::new();
    for statement in books {
        let Some(row) = claimable(statement) else { continue };
        let due = due_on(statement, &rules.dollars);
        let (channel, urgent) = (statement.id, statement.view.withdrawal.is_some());
        let (signs, sends) = (claimant.signs_for(&row), claimant.sends_for(&row));
        if !signs && !sends {
            plan.foreign.push(Foreign { channel, authorizer: row.config.receiver_authorizer, due });
        } else if quarantined(&channel) {
            plan.quarantined.push(Due { channel, due });
        } else {
            let bears = bearable(statement, due, rules, now);
            let group = Group { wallets: is_wallets(&row), calm: !urgent, only_sent: !signs };
            groups.entry(group).or_default().push(Claim { channel, row, due, bears });
        }
    }
    let gas_rule = rules.max_gas_share_bps.and(rules.units_per_coin).zip(price);
    let max_rows = rows_per_transaction(rules.max_rows, price);
    for (group, claims) in groups {
        let max_rows = match group {
            Group { wallets: true, .. } => 1,
            Group { calm: false, .. } => max_rows.min(MAX_URGENT_ROWS),
            Group { .. } => max_rows,
        };
        let mut claims = match gas_rule {
            None => claims,
            Some((units_per_coin, price)) => {
                let pricing = Pricing { wallets: group.wallets, max_rows, units_per_coin, price };
                pricing.worthwhile(claims, &mut plan.postponed)
            }
        };
        claims.sort_by_key(|claim| (std::cmp::Reverse(claim.due), claim.channel));
        plan.batches.extend(evenly(claims, max_rows).map(|claims| Batch {
            claims: sum(claims.iter().map(|claim| claim.due)),
            rows: claims.into_iter().map(|claim| claim.row).collect(),
            urgent: !group.calm,
        }));
    }
    plan.foreign.sort_by_key(|foreign| (std::cmp::Reverse(foreign.due), foreign.channel));
    plan.postponed.sort_by_key(|postponed| (std::cmp::Reverse(postponed.due), postponed.channel));
    plan.quarantined.sort_by_key(|row| (std::cmp::Reverse(row.due), row.channel));
    plan
}

/// What each of so many channels costs to claim, if all are claimed together, in dollars; nothing where no coin's price
/// is known. The settlement is not counted.
pub fn claim_cost(rows: usize, rules: &Rules, price: &GasPrice) -> Option<Amount> {
    let max_rows = rows_per_transaction(rules.max_rows, Some(price));
    let pricing = Pricing { wallets: false, max_rows, units_per_coin: rules.units_per_coin?, price };
    Some(pricing.of_each(rows))
}

/// Rows that may share a transaction. The order is the order of claims: what may cost a transaction for nothing waits for
/// what cannot, and what can wait for what cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    wallets: bool,
    calm: bool,
    /// The authorizer's signature does not help here; the sender is the receiver.
    only_sent: bool,
}

/// A row that can be claimed.
struct Claim {
    channel: ChannelId,
    row: ClaimRow,
    due: Amount,
    /// The highest cost at which it is claimed, in dollars.
    bears: Amount,
}

fn bearable(statement: &Statement, due: Amount, rules: &Rules, now: u64) -> Amount {
    if statement.view.withdrawal.is_some() {
        return due.saturating_sub(Amount::new(1));
    }
    // A wallet's channel is refused once its exposure is reached, so it cannot grow until it bears its share.
    let is_full = statement.config.payer_authorizer.is_zero()
        && due.checked_add(due).is_none_or(|twice| twice >= rules.max_wallet_exposure);
    match rules.max_gas_share_bps {
        Some(share_bps) if !is_full && !rules.is_old(statement, now) => part(due, share_bps),
        _ => due,
    }
}

/// So many hundredths of a percent, rounded down.
fn part(due: Amount, share_bps: u32) -> Amount {
    let (units, share) = (due.units(), u128::from(share_bps));
    let wholes = units.checked_div(WHOLE_BPS).and_then(|wholes| wholes.checked_mul(share)).unwrap_or(u128::MAX);
    let rest = units.checked_rem(WHOLE_BPS).and_then(|rest| rest.checked_mul(share)).unwrap_or_default();
    Amount::new(wholes.saturating_add(rest.checked_div(WHOLE_BPS).unwrap_or_default()))
}

/// What claims of one group cost.
struct Pricing<'a> {
    wallets: bool,
    max_rows: usize,
    units_per_coin: u128,
    price: &'a GasPrice,
}

impl Pricing<'_> {
    /// The claims that bear their cost; the others are postponed. What a transaction takes beside its rows is shared by
    /// those that are claimed, so the fewer there are, the more each must bear: it is the largest number that can.
    fn worthwhile(&self, mut claims: Vec<Claim>, postponed: &mut Vec<Postponed>) -> Vec<Claim> {
        claims.sort_by_key(|claim| (std::cmp::Reverse(claim.bears), claim.channel));
        let bears = |(before, claim): &(usize, &Claim)| claim.bears >= self.of_each(before.saturating_add(1));
        let kept = claims.iter().enumerate().rev().find(bears).map_or(0, |(before, _)| before.saturating_add(1));
        let cost = self.of_each(kept.saturating_add(1));
        postponed.extend(claims.drain(kept..).map(|Claim { channel, due, .. }| {
            let why = if due > cost { Why::GasShare } else { Why::NotWorthItsGas };
            Postponed { channel, due, cost, why }
        }));
        claims
    }

    /// What each of so many costs, in dollars, rounded up.
    fn of_each(&self, count: usize) -> Amount {
        let transactions = count.div_ceil(self.max_rows.max(1));
        let wide = |number: usize| u128::try_from(number).unwrap_or(u128::MAX);
        let shared = cost(CLAIM_GAS, CLAIM_BYTES, self.price).saturating_mul(wide(transactions));
        let crowd = u64::try_from(count.div_ceil(transactions.max(1))).unwrap_or(u64::MAX).saturating_mul(CROWD_GAS);
        let own = cost(row_gas(self.wallets).saturating_add(crowd), ROW_BYTES, self.price);
        in_units(own.saturating_add(shared.div_ceil(wide(count.max(1)))), self.units_per_coin)
    }
}

/// How many rows of keys are put into one transaction.
fn rows_per_transaction(max_rows: usize, price: Option<&GasPrice>) -> usize {
    max_rows.min(PREFERRED_ROWS).min(room_for_rows(price)).max(1)
}

/// How many rows of keys a transaction on this chain has room for.
fn room_for_rows(price: Option<&GasPrice>) -> usize {
    // No more than half a block: who needs a whole one waits for an empty one.
    let half_a_block = price.map(|price| price.block_gas_limit).filter(|gas| *gas > 0).map(|gas| gas / 2);
    let gas = half_a_block.map_or(MAX_TRANSACTION_GAS, |gas| gas.min(MAX_TRANSACTION_GAS));
    let planned = gas / 5 * PLANNED_FIFTHS;
    let by_bytes = (MAX_TRANSACTION_BYTES - SPARE_BYTES - CLAIM_BYTES) / ROW_BYTES;
    let by_gas = planned.saturating_sub(CLAIM_GAS) / (ROW_GAS + CROWD_GAS * by_bytes);
    usize::try_from(by_gas.min(by_bytes)).unwrap_or(usize::MAX)
}

/// Cut into as few pieces as there can be of at most so many, none more than one longer than another.
fn evenly<T>(items: Vec<T>, max: usize) -> impl Iterator<Item = Vec<T>> {
    let pieces = items.len().div_ceil(max.max(1));
    let least = items.len().checked_div(pieces).unwrap_or_default();
    let longer = items.len().checked_rem(pieces).unwrap_or_default();
    let mut items = items.into_iter();
    (0..pieces).map(move |piece| items.by_ref().take(least + usize::from(piece < longer)).collect())
}

fn is_wallets(row: &ClaimRow) -> bool {
    row.config.payer_authorizer.is_zero()
}

fn row_gas(wallets: bool) -> u64 {
    if wallets { ROW_GAS.saturating_add(WALLET_GAS) } else { ROW_GAS }
}

/// What gas and data cost, wei.
fn cost(gas: u64, bytes: u64, price: &GasPrice) -> u128 {
    let of_gas = u128::from(gas).saturating_mul(price.base_wei.saturating_add(price.tip_wei));
    of_gas.saturating_add(u128::from(bytes).saturating_mul(price.data_wei_per_byte))
}

/// What wei are worth, rounded up. Beyond 128 bits in between, less exactly and never too little.
pub(super) fn in_units(wei: u128, units_per_coin: u128) -> Amount {
    const HALF_WAY: u128 = 1_000_000_000;
    let exact = wei.checked_mul(units_per_coin).map(|product| product.div_ceil(WEI_PER_COIN));
    let coarse = || wei.div_ceil(HALF_WAY).checked_mul(units_per_coin).map(|product| product.div_ceil(HALF_WAY));
    Amount::new(exact.or_else(coarse).unwrap_or(u128::MAX))
}

fn sum(amounts: impl Iterator<Item = Amount>) -> Amount {
    amounts.fold(Amount::ZERO, Amount::saturating_add)
}

fn claimable(statement: &Statement) -> Option<ClaimRow> {
    let total_claimed = claims_in_all(statement)?;
    let row = statement.row.clone()?;
    (total_claimed > statement.view.total_claimed).then_some(ClaimRow { total_claimed, ..row })
}

/// What a channel's row claims in all: what was charged, as far as it is still there. Nothing where it has no row.
pub(super) fn claims_in_all(statement: &Statement) -> Option<Amount> {
    statement.row.as_ref().map(|row| row.total_claimed.min(statement.view.balance))
}

/// What can be claimed of a channel, by these books, in dollars.
pub(super) fn due_on(statement: &Statement, dollars: &Dollars) -> Amount {
    let due = claims_in_all(statement).map_or(Amount::ZERO, |total| total.saturating_sub(statement.view.total_claimed));
    dollars.of(statement.config.token, due)
}

/// The same of all channels.
pub(super) fn due(books: &[Statement], dollars: &Dollars) -> Amount {
    sum(books.iter().map(|statement| due_on(statement, dollars)))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::{View, Withdrawal};
    use crate::protocol::{ChannelConfig, Hash, LocalKey, Signature};

    /// One channel: balance, claimed, charged, whether a withdrawal is pending. Unclaimed since the second 1.
    pub(in crate::redeem) fn statement(
        number: u8,
        balance: u128,
        claimed: u128,
        charged: u128,
        leaving: bool,
    ) -> Statement {
        numbered(number.into(), balance, claimed, charged, leaving)
    }

    fn numbered(number: u16, balance: u128, claimed: u128, charged: u128, leaving: bool) -> Statement {
        let [high, low] = number.to_be_bytes();
        let payer = if high == 0 { Address([low; 20]) } else { Address([high, low].repeat(10).try_into().unwrap()) };
        let config = ChannelConfig {
            payer,
            payer_authorizer: payer,
            receiver: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            token: Address([3; 20]),
            withdraw_delay: 900,
            salt: Hash::ZERO,
        };
        let view = View {
            block: 1,
            balance: Amount::new(balance),
            total_claimed: Amount::new(claimed),
            withdrawal: leaving.then_some(Withdrawal { amount: Amount::new(1), initiated_at: 1 }),
            refund_nonce: 0,
        };
        let charged = Amount::new(charged);
        let row = (charged > view.total_claimed).then(|| ClaimRow {
            config,
            max_claimable: charged,
            signature: signature(),
            total_claimed: charged,
        });
        let mut id = [low; 32];
        id[0] = if high == 0 { low } else { high };
        Statement {
            id: ChannelId(id),
            config,
            view,
            charged,
            unclaimed: charged.saturating_sub(view.total_claimed),
            unclaimed_since: (charged > view.total_claimed).then_some(1),
            row,
            shortfall: charged.saturating_sub(view.balance),
        }
    }

    fn signature() -> Signature {
        static ONE: std::sync::LazyLock<Signature> =
            std::sync::LazyLock::new(|| LocalKey::from_bytes(&[9; 32]).unwrap().sign(Hash::ZERO));
        ONE.clone()
    }

    /// The same, unclaimed since then.
    pub(in crate::redeem) fn since(mut statement: Statement, since: u64) -> Statement {
        statement.unclaimed_since = Some(since);
        statement
    }

    /// The same of a payer whose account approves its vouchers.
    fn wallet(mut statement: Statement) -> Statement {
        statement.config.payer_authorizer = Address::ZERO;
        if let Some(row) = &mut statement.row {
            row.config.payer_authorizer = Address::ZERO;
        }
        statement
    }

    /// The same for another receiver and authorizer.
    fn of(mut statement: Statement, receiver: u8, authorizer: u8) -> Statement {
        for config in [&mut statement.config].into_iter().chain(statement.row.as_mut().map(|row| &mut row.config)) {
            (config.receiver, config.receiver_authorizer) = (Address([receiver; 20]), Address([authorizer; 20]));
        }
        statement
    }

    pub(in crate::redeem) const OURS: Claimant = Claimant { authorizer: Address([2; 20]), sender: None };
    const NOW: u64 = 1_001;

    fn nobody(_: &ChannelId) -> bool {
        false
    }

    fn of_rows(max_rows: usize) -> Rules {
        Rules { max_rows, ..Rules::default() }
    }

    /// Nobody in quarantine, gas for nothing.
    fn plainly(books: &[Statement], claimant: Claimant, max_rows: usize) -> Plan {
        plan(books, claimant, &of_rows(max_rows), None, &nobody, NOW)
    }

    /// The payer's number and the claimed sum of each row, batch by batch.
    fn shape(batches: &[Batch]) -> Vec<Vec<(u8, u128)>> {
        let row = |row: &ClaimRow| (row.config.payer.0[0], row.total_claimed.units());
        batches.iter().map(|batch| batch.rows.iter().map(row).collect()).collect()
    }

    #[test]
    fn a_channel_of_another_authorizer_is_in_no_batch_of_ours() {
        let books = [
            of(statement(1, 100, 0, 40, true), 1, 5),
            of(statement(2, 100, 0, 30, false), 1, 2),
            of(statement(3, 100, 0, 20, false), 7, 5),
            of(statement(4, 100, 0, 10, false), 1, 2),
        ];
        let foreign = |number, due| Foreign {
            channel: ChannelId([number; 32]),
            authorizer: Address([5; 20]),
            due: Amount::new(due),
        };
        let planned = plainly(&books, OURS, 9);
        assert_eq!(
            (shape(&planned.batches), planned.foreign),
            (vec![vec![(2, 30), (4, 10)]], vec![foreign(1, 40), foreign(3, 20)])
        );
        // A sender that is the receiver needs no authorizer, but a batch of its own.
        let planned = plainly(&books, Claimant { sender: Some(Address([7; 20])), ..OURS }, 9);
        assert_eq!(shape(&planned.batches), [vec![(2, 30), (4, 10)], vec![(3, 20)]]);
        assert_eq!(planned.foreign, [foreign(1, 40)]);
        // And so does one that is the authorizer.
        let planned = plainly(&books, Claimant { sender: Some(Address([5; 20])), ..OURS }, 9);
        assert_eq!(shape(&planned.batches), [vec![(1, 40)], vec![(2, 30), (4, 10)], vec![(3, 20)]]);
        assert_eq!(planned.foreign, []);
    }

    /// A unit of gas costs a wei and a coin is worth 10^18 units: a unit of the token is a unit of gas.
    const GAS: GasPrice = GasPrice { base_wei: 1, tip_wei: 0, data_wei_per_byte: 0, block_gas_limit: 0 };

    /// Gas takes at most a tenth.
    fn a_tenth() -> Rules {
        let (max_gas_share_bps, units_per_coin) = (Some(1_000), Some(WEI_PER_COIN));
        Rules { max_gas_share_bps, units_per_coin, max_wallet_exposure: Amount::MAX, ..Rules::default() }
    }

    /// What one row costs alone.
    const ALONE: u128 = 60_200;
    /// What each of two costs.
    const OF_TWO: u128 = 41_460;

    /// What is in which batch, and what waits.
    type Shape = (Vec<Vec<(u8, u128)>>, Vec<(u8, Why)>);

    /// Its name, the books, the rules, the price of gas, and what comes of it.
    type Case = (&'static str, Vec<Statement>, Rules, Option<GasPrice>, Shape);

    #[test]
    fn plans_read_like_a_table() {
        let due = |number, units| statement(number, u128::MAX, 0, units, false);
        let leaving = |number, units| statement(number, u128::MAX, 0, units, true);
        let two = || of_rows(2);
        let aged = |seconds| Rules { max_age: Some(Duration::from_secs(seconds)), ..a_tenth() };
        let exposed = |units| Rules { max_wallet_exposure: Amount::new(units), ..a_tenth() };
        let block = |gas| Some(GasPrice { block_gas_limit: gas, ..GAS });
        let data = Some(GasPrice { data_wei_per_byte: 10, ..GAS });
        let tip = Some(GasPrice { tip_wei: 1, ..GAS });
        let (share, worth) = (Why::GasShare, Why::NotWorthItsGas);
        let big = ALONE * 10;
        #[rustfmt::skip]
        let table: Vec<Case> = vec![
            // Who is in it, in which order.
            ("no books", vec![], two(), None, (vec![], vec![])),
            ("nothing is due", vec![statement(1, 100, 50, 50, false)], two(), None, (vec![], vec![])),
            ("one row", vec![due(1, 50)], two(), None, (vec![vec![(1, 50)]], vec![])),
            ("the largest first", vec![statement(1, 100, 0, 5, false), statement(2, 100, 10, 50, false)], two(), None,
                (vec![vec![(2, 50), (1, 5)]], vec![])),
            ("by what is due, not by the total", vec![statement(1, 100, 90, 95, false), due(2, 6)], two(), None,
                (vec![vec![(2, 6), (1, 95)]], vec![])),
            ("equals by their ids", vec![due(2, 5), due(1, 5)], two(), None, (vec![vec![(1, 5), (2, 5)]], vec![])),
            ("a withdrawal alone and before all", vec![due(1, 50), leaving(2, 5)], two(), None,
                (vec![vec![(2, 5)], vec![(1, 50)]], vec![])),
            ("withdrawals together, the largest first", vec![leaving(1, 5), leaving(2, 6)], two(), None,
                (vec![vec![(2, 6), (1, 5)]], vec![])),
            ("a drained channel up to its balance", vec![statement(1, 30, 20, 50, false)], two(), None,
                (vec![vec![(1, 30)]], vec![])),
            ("a drained channel with nothing left", vec![statement(1, 30, 30, 50, false)], two(), None,
                (vec![], vec![])),
            ("a wallet alone and last", vec![wallet(due(1, 9)), due(2, 1)], two(), None,
                (vec![vec![(2, 1)], vec![(1, 9)]], vec![])),
            ("wallets are never together", vec![wallet(due(1, 9)), wallet(due(2, 8))], two(), None,
                (vec![vec![(1, 9)], vec![(2, 8)]], vec![])),
            ("a wallet that withdraws before one that does not", vec![wallet(due(1, 9)), wallet(leaving(2, 8))], two(), None,
                (vec![vec![(2, 8)], vec![(1, 9)]], vec![])),
            // How many are in one.
            ("batches have an end", vec![due(1, 3), due(2, 2), due(3, 1)], two(), None,
                (vec![vec![(1, 3), (2, 2)], vec![(3, 1)]], vec![])),
            ("and are even", vec![due(1, 4), due(2, 3), due(3, 2), due(4, 1)], of_rows(3), None,
                (vec![vec![(1, 4), (2, 3)], vec![(3, 2), (4, 1)]], vec![])),
            ("a limit of nothing is one row", vec![due(1, 2), due(2, 1)], of_rows(0), None,
                (vec![vec![(1, 2)], vec![(2, 1)]], vec![])),
            ("half a small block is a limit", vec![due(1, 3), due(2, 2)], of_rows(9), block(260_000),
                (vec![vec![(1, 3), (2, 2)]], vec![])),
            ("to the last row", vec![due(1, 3), due(2, 2)], of_rows(9), block(209_000),
                (vec![vec![(1, 3)], vec![(2, 2)]], vec![])),
            ("a block that is too small for anything", vec![due(1, 3)], of_rows(9), block(1),
                (vec![vec![(1, 3)]], vec![])),
            // What waits.
            ("a tenth, exactly", vec![due(1, big)], a_tenth(), Some(GAS), (vec![vec![(1, big)]], vec![])),
            ("a tenth, one less", vec![due(1, big - 1)], a_tenth(), Some(GAS), (vec![], vec![(1, share)])),
            ("without a price nothing waits", vec![due(1, 1)], a_tenth(), None, (vec![vec![(1, 1)]], vec![])),
            ("without a share nothing waits", vec![due(1, 1)],
                Rules { max_gas_share_bps: None, ..a_tenth() }, Some(GAS), (vec![vec![(1, 1)]], vec![])),
            ("without a coin's price nothing waits", vec![due(1, 1)],
                Rules { units_per_coin: None, ..a_tenth() }, Some(GAS), (vec![vec![(1, 1)]], vec![])),
            ("two share a transaction", vec![due(1, OF_TWO * 10), due(2, OF_TWO * 10)], a_tenth(), Some(GAS),
                (vec![vec![(1, OF_TWO * 10), (2, OF_TWO * 10)]], vec![])),
            ("and neither bears it alone", vec![due(1, OF_TWO * 10), due(2, OF_TWO * 10 - 1)], a_tenth(), Some(GAS),
                (vec![], vec![(1, share), (2, share)])),
            ("one that bears it does not wait for another", vec![due(1, big), due(2, 9)], a_tenth(), Some(GAS),
                (vec![vec![(1, big)]], vec![(2, worth)])),
            ("a wallet's row costs more", vec![wallet(due(1, big))], a_tenth(), Some(GAS), (vec![], vec![(1, share)])),
            ("a wallet's that cannot grow much", vec![wallet(due(1, big))], exposed(2 * big), Some(GAS),
                (vec![vec![(1, big)]], vec![])),
            ("a wallet's that can", vec![wallet(due(1, big))], exposed(2 * big + 1), Some(GAS),
                (vec![], vec![(1, share)])),
            ("a wallet's that cannot, and is not worth its gas", vec![wallet(due(1, ALONE))], exposed(1), Some(GAS),
                (vec![], vec![(1, worth)])),
            ("a key's can grow", vec![due(1, big - 1)], exposed(1), Some(GAS), (vec![], vec![(1, share)])),
            ("a tip is a part of the price", vec![due(1, big)], a_tenth(), tip, (vec![], vec![(1, share)])),
            ("and so is its data", vec![due(1, big)], a_tenth(), data, (vec![], vec![(1, share)])),
            ("all of it", vec![due(1, ALONE)], a_tenth(), Some(GAS), (vec![], vec![(1, worth)])),
            ("nearly all of it", vec![due(1, ALONE + 1)], a_tenth(), Some(GAS), (vec![], vec![(1, share)])),
            ("a withdrawal that is worth more than its gas", vec![leaving(1, ALONE + 1)], a_tenth(), Some(GAS),
                (vec![vec![(1, ALONE + 1)]], vec![])),
            ("a withdrawal that is not", vec![leaving(1, ALONE)], a_tenth(), Some(GAS), (vec![], vec![(1, worth)])),
            ("not old yet", vec![due(1, ALONE)], aged(1_000), Some(GAS), (vec![], vec![(1, worth)])),
            ("old, and worth its gas", vec![due(1, ALONE)], aged(999), Some(GAS), (vec![vec![(1, ALONE)]], vec![])),
            ("old, and not", vec![due(1, ALONE - 1)], aged(999), Some(GAS), (vec![], vec![(1, worth)])),
            ("an old one shares with a large one", vec![due(1, big), due(2, OF_TWO)], aged(999), Some(GAS),
                (vec![vec![(1, big), (2, OF_TWO)]], vec![])),
        ];
        assert!(table.len() >= 25);
        for (name, books, rules, price, (batches, waiting)) in table {
            let planned = plan(&books, OURS, &rules, price.as_ref(), &nobody, NOW);
            let waits: Vec<_> = planned.postponed.iter().map(|row| (row.channel.0[0], row.why)).collect();
            assert_eq!((shape(&planned.batches), waits), (batches, waiting), "{name}");
        }
    }

    #[test]
    fn batches_are_of_even_size() {
        let sizes = |count: usize, max| evenly(vec![(); count], max).map(|piece| piece.len()).collect::<Vec<_>>();
        assert_eq!(sizes(130, 100), [65, 65]);
        assert_eq!(sizes(100, 100), [100]);
        assert_eq!(sizes(101, 100), [51, 50]);
        assert!(sizes(0, 100).is_empty());
        assert_eq!(sizes(3, 0), [1, 1, 1]);
    }

    #[test]
    fn an_estimate_is_what_was_measured_and_a_little_more() {
        let books: Vec<_> = (1..=200).map(|number| numbered(number, 100, 0, 50, false)).collect();
        let rows: Vec<_> = books.iter().filter_map(claimable).collect();
        for (count, measured) in [(1, 59_932), (25, 24_395), (100, 24_010), (200, 24_813)] {
            let batch = Batch { rows: rows[..count].to_vec(), urgent: false, claims: Amount::ZERO };
            let estimate = batch.gas() / u64::try_from(count).unwrap();
            assert!(estimate >= measured && estimate < measured + measured / 200, "{count}: {estimate}");
            let of_each = claim_cost(count, &Rules { max_gas_share_bps: None, ..a_tenth() }, &GAS).unwrap().units();
            assert!(count > PREFERRED_ROWS || of_each.abs_diff(estimate.into()) <= 1, "{count}: {of_each}");
        }
    }

    #[test]
    fn batches_are_no_larger_than_saves_gas() {
        let books: Vec<_> = (1..=201).map(|number| numbered(number, 100, 0, 50, false)).collect();
        let sizes = |count: usize, max| {
            let planned = plainly(&books[..count], OURS, max);
            planned.batches.iter().map(|batch| batch.rows.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(100, 200), [100]);
        assert_eq!(sizes(101, 200), [51, 50]);
        assert_eq!(sizes(200, 200), [100, 100]);
        assert_eq!(sizes(201, 272), [67, 67, 67]);
        assert_eq!(sizes(100, 99), [50, 50], "the rules may want fewer");
        let gas = |max| plainly(&books[..200], OURS, max).gas();
        assert!(gas(200) < gas(20) && gas(200) - gas(60) < gas(200) / 100);
    }

    #[test]
    fn a_transaction_has_room_for_so_many_rows() {
        let in_blocks_of = |gas| room_for_rows(Some(&GasPrice { block_gas_limit: gas, ..GAS }));
        // 128 KiB.
        assert_eq!(room_for_rows(None), 270);
        assert_eq!(in_blocks_of(400_000_000), 270);
        const { assert!(CLAIM_BYTES + 270 * ROW_BYTES < MAX_TRANSACTION_BYTES) };
        // What the node does not say is no limit.
        assert_eq!(in_blocks_of(0), 270);
        assert_eq!(in_blocks_of(10_000_000), 156);
        assert_eq!(in_blocks_of(1), 0);
        assert_eq!(rows_per_transaction(9, Some(&GasPrice { block_gas_limit: 1, ..GAS })), 1);
        // The gas of a transaction is none before its length, with rows of keys.
        const { assert!(CLAIM_GAS + 270 * (ROW_GAS + 270 * CROWD_GAS) < MAX_TRANSACTION_GAS / 5 * PLANNED_FIFTHS) };
    }

    #[test]
    fn urgent_rows_go_in_small_batches_that_say_so() {
        let books: Vec<_> = (1..=40).map(|number| statement(number, 100, 0, 50, number <= 30)).collect();
        let planned = plainly(&books, OURS, 200);
        let batches: Vec<_> = planned.batches.iter().map(|batch| (batch.rows.len(), batch.urgent)).collect();
        assert_eq!(batches, [(15, true), (15, true), (10, false)]);
    }

    #[test]
    fn what_is_in_quarantine_is_told_and_left() {
        let books =
            [statement(1, 100, 0, 50, false), statement(2, 100, 0, 7, true), of(statement(3, 9, 0, 5, false), 1, 9)];
        let out = |channel: &ChannelId| channel.0[0] >= 2;
        let planned = plan(&books, OURS, &of_rows(9), None, &out, NOW);
        assert_eq!(shape(&planned.batches), [vec![(1, 50)]]);
        assert_eq!(planned.quarantined, [Due { channel: ChannelId([2; 32]), due: Amount::new(7) }]);
        assert_eq!(planned.foreign.len(), 1, "whoever has its key claims it, in quarantine or not");
        assert_eq!((planned.claims(), planned.leaves()), (Amount::new(50), Amount::new(12)));
    }

    #[test]
    fn a_plan_tells_what_it_costs() {
        let books =
            [statement(1, 100, 0, 50, false), statement(2, 100, 0, 7, true), wallet(statement(3, 9, 0, 5, false))];
        let planned = plainly(&books, OURS, 9);
        let gas: Vec<_> = planned.batches.iter().map(Batch::gas).collect();
        assert_eq!(gas, [60_200, 60_200, 100_200]);
        assert_eq!((planned.settlements(), planned.gas()), (1, 277_600));
        assert_eq!(planned.cost(&GAS), 277_600);
        let data = GasPrice { base_wei: 0, data_wei_per_byte: 1, ..GAS };
        assert_eq!(planned.cost(&data), 3 * (228 + 120 + 480) + 68 + 120);
        assert_eq!((Plan::default().gas(), Plan::default().cost(&GAS)), (0, 0));
        let dear = GasPrice { base_wei: u128::MAX, tip_wei: u128::MAX, ..GAS };
        assert_eq!(planned.cost(&dear), u128::MAX);
    }

    #[test]
    fn wei_are_worth_so_much_rounded_up() {
        // A dollar of six decimals, $3000 a coin.
        let usd = |wei| in_units(wei, 3_000_000_000).units();
        assert_eq!([usd(0), usd(1), usd(333_333_333), usd(333_333_334)], [0, 1, 1, 2]);
        assert_eq!(usd(WEI_PER_COIN), 3_000_000_000);
        // With 18 decimals a hundred coins are beyond 128 bits in between.
        let fine = |wei| in_units(wei, 3_000 * WEI_PER_COIN).units();
        assert_eq!(fine(100 * WEI_PER_COIN), 300_000 * WEI_PER_COIN);
        assert!(fine(100 * WEI_PER_COIN + 1) >= 300_000 * WEI_PER_COIN + 3_000);
        assert_eq!(in_units(u128::MAX, u128::MAX), Amount::MAX);
        assert_eq!(part(Amount::new(u128::MAX), 10_000), Amount::MAX);
        assert_eq!(part(Amount::new(99), 100), Amount::ZERO);
        assert_eq!(part(Amount::new(100), 100), Amount::new(1));
    }

    /// Books of all kinds, with what is in quarantine.
    pub(in crate::redeem) fn some_books() -> impl Strategy<Value = Vec<(Statement, bool)>> {
        let sums = prop_oneof![0u128..100, 0u128..5_000_000];
        let kind = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.2));
        let one = (sums, 0u128..50, 0u128..50, 0u64..2_000, kind);
        proptest::collection::vec(one, 0..120).prop_map(|all| {
            let each = all.into_iter().enumerate().map(|(number, (due, claimed, short, begun, kind))| {
                let number = u16::try_from(number).unwrap() + 256;
                let (leaving, wallets, foreign, out) = kind;
                let (charged, short) = (claimed + due, short % 4);
                let books = numbered(number, (charged.saturating_sub(short)).max(claimed), claimed, charged, leaving);
                let books = if wallets { wallet(books) } else { books };
                let books = if foreign { of(books, 1, 9) } else { books };
                (since(books, begun), out)
            });
            each.collect()
        })
    }

    pub(in crate::redeem) fn some_rules() -> impl Strategy<Value = Rules> {
        let limits = (0usize..300, prop::option::of(1u32..=10_000), prop::option::of(1u128..=WEI_PER_COIN));
        (limits, prop::option::of(0u64..2_000)).prop_map(|((max_rows, share, units_per_coin), age)| Rules {
            max_rows,
            max_gas_share_bps: share,
            units_per_coin,
            max_age: age.map(Duration::from_secs),
            max_wallet_exposure: Amount::MAX,
            ..Rules::default()
        })
    }

    pub(in crate::redeem) fn some_price() -> impl Strategy<Value = Option<GasPrice>> {
        let price = (0u128..9, 0u128..9, 0u128..9, prop_oneof![0u64..9_000_000, Just(0), Just(400_000_000)]);
        prop::option::of(price.prop_map(|(base_wei, tip_wei, data_wei_per_byte, block_gas_limit)| GasPrice {
            base_wei,
            tip_wei,
            data_wei_per_byte,
            block_gas_limit,
        }))
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_place_and_no_batch_is_too_large(
            books in some_books(),
            rules in some_rules(),
            price in some_price(),
        ) {
            let (books, quarantine): (Vec<_>, Vec<_>) = books.into_iter().unzip();
            let ids: BTreeSet<_> =
                books.iter().zip(&quarantine).filter(|(_, out)| **out).map(|(books, _)| books.id).collect();
            let planned = plan(&books, OURS, &rules, price.as_ref(), &|channel| ids.contains(channel), NOW);

            let by_config: BTreeMap<_, _> = books.iter().map(|books| (books.config.payer, books)).collect();
            let rows = || planned.batches.iter().flat_map(|batch| &batch.rows);
            let mut found: Vec<_> = rows().map(|row| by_config[&row.config.payer].id).collect();
            found.extend(planned.foreign.iter().map(|row| row.channel));
            found.extend(planned.postponed.iter().map(|row| row.channel));
            found.extend(planned.quarantined.iter().map(|row| row.channel));
            found.sort();
            let mut expected: Vec<_> =
                books.iter().filter(|books| !due_on(books, &rules.dollars).is_zero()).map(|books| books.id).collect();
            expected.sort();
            prop_assert_eq!(found, expected, "each once, and nothing else");
            prop_assert_eq!(due(&books, &rules.dollars), planned.claims().checked_add(planned.leaves()).unwrap());

            if rules.max_gas_share_bps.is_none() || rules.units_per_coin.is_none() || price.is_none() {
                prop_assert!(planned.postponed.is_empty(), "without a gas rule nothing waits");
            }
            for batch in &planned.batches {
                prop_assert!(!batch.rows.is_empty());
                prop_assert!(batch.rows.len() <= rules.max_rows.max(1));
                prop_assert!(!batch.urgent || batch.rows.len() <= MAX_URGENT_ROWS);
                let block = price.map_or(0, |price| price.block_gas_limit);
                let too_much = batch.gas() > MAX_TRANSACTION_GAS || (block > 0 && batch.gas() > block / 2);
                prop_assert!(!too_much || batch.rows.len() == 1);
                let wallets = batch.rows.iter().filter(|row| is_wallets(row)).count();
                prop_assert!(wallets == 0 || batch.rows.len() == 1);
                for row in &batch.rows {
                    let books = by_config[&row.config.payer];
                    prop_assert!(row.total_claimed <= books.view.balance && row.total_claimed <= row.max_claimable);
                    prop_assert_eq!(batch.urgent, books.view.withdrawal.is_some());
                }
            }
            let urgency: Vec<_> =
                planned.batches.iter().map(|batch| (is_wallets(&batch.rows[0]), !batch.urgent)).collect();
            prop_assert!(urgency.is_sorted(), "{:?}", urgency);
        }

        #[test]
        fn what_is_claimed_bears_its_share_of_what_is_sent(
            books in some_books(),
            rules in some_rules(),
            price in some_price(),
        ) {
            let books: Vec<_> = books.into_iter().map(|(books, _)| books).collect();
            let planned = plan(&books, OURS, &rules, price.as_ref(), &nobody, NOW);
            let (Some(share), Some(units_per_coin), Some(price)) = (rules.max_gas_share_bps, rules.units_per_coin, price)
            else {
                return Ok(());
            };
            let groups: BTreeSet<_> =
                planned.batches.iter().map(|batch| (batch.urgent, is_wallets(&batch.rows[0]))).collect();
            for (urgent, wallets) in groups {
                let of_group = |batch: &&Batch| batch.urgent == urgent && is_wallets(&batch.rows[0]) == wallets;
                let wei = planned.batches.iter().filter(of_group).fold(0, |sum, batch| sum + batch.cost(&price));
                let claims = sum(planned.batches.iter().filter(of_group).map(|batch| batch.claims)).units();
                let spent = wei / WEI_PER_COIN * units_per_coin + wei % WEI_PER_COIN * units_per_coin / WEI_PER_COIN;
                prop_assert!(spent <= claims, "never more gas than money");
                if !urgent && rules.max_age.is_none() {
                    prop_assert!(spent <= claims * u128::from(share) / WHOLE_BPS + 1, "{} of {}", spent, claims);
                }
            }
        }
    }
}
