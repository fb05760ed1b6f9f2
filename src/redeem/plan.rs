//! What to claim: a pure function from books to batches.

use std::time::Duration;

use crate::gate::Statement;
use crate::protocol::claim::ClaimRow;
use crate::protocol::{Address, Amount, ChannelId};

/// The rows of one claim transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The rows, most urgent first.
    pub rows: Vec<ClaimRow>,
}

/// When to claim, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Between two rounds, if nothing calls for one earlier.
    pub interval: Duration,
    /// Unclaimed in all: a round begins once it is more, atomic units.
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
    /// What one of the chain's own coins (10^18 wei) is worth, in atomic units of the token.
    pub units_per_coin: Option<u128>,
    /// Channels in one claim transaction, at most.
    pub max_rows: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(3_600),
            max_unclaimed: None,
            max_unclaimed_per_channel: None,
            max_unclaimed_per_payer: None,
            max_age: None,
            max_gas_share_bps: None,
            units_per_coin: None,
            max_rows: 200,
        }
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

/// What a round does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The claims, in order.
    pub batches: Vec<Batch>,
    /// What is due and cannot be claimed from here.
    pub foreign: Vec<Foreign>,
}

/// A channel with something to claim for which there is no key here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign {
    /// The channel.
    pub channel: ChannelId,
    /// Whose key it takes.
    pub authorizer: Address,
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

/// Plans a round: one row for each channel with something to claim, channels whose payer is withdrawing first, then by
/// value; `max_rows` to a batch.
///
/// A row whose voucher the payer's own account approves (its wallet, or a key that can become one at any time) goes
/// alone. Such an account can approve when it is asked and refuse, or burn the gas, when it is mined; in a batch it would
/// take the others with it, round after round.
///
/// A channel that was drained below what it owes is claimed up to its balance: a row above it would revert the batch.
///
/// Books that last outlive the config they were begun under. A channel opened for another authorizer's key cannot be
/// claimed with ours, and would revert the batch it is in.
pub fn plan(books: &[Statement], claimant: Claimant, max_rows: usize) -> Plan {
    let mut rows: Vec<_> = books.iter().filter_map(|statement| Some((statement, claimable(statement)?))).collect();
    rows.sort_by_key(|(statement, row)| {
        let due = row.total_claimed.saturating_sub(statement.view.total_claimed);
        (statement.view.withdrawal.is_none(), std::cmp::Reverse(due), statement.id)
    });
    let (mut signed, mut sent, mut alone, mut foreign) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (statement, row) in rows {
        match (claimant.signs_for(&row), claimant.sends_for(&row)) {
            (false, false) => {
                foreign.push(Foreign { channel: statement.id, authorizer: row.config.receiver_authorizer });
            }
            _ if row.config.payer_authorizer.is_zero() => alone.push(row),
            (true, _) => signed.push(row),
            (false, true) => sent.push(row),
        }
    }
    let max_rows = max_rows.max(1);
    // What may cost a transaction for nothing waits for what cannot.
    let batches = signed.chunks(max_rows).chain(sent.chunks(max_rows)).chain(alone.chunks(1));
    Plan { batches: batches.map(|rows| Batch { rows: rows.to_vec() }).collect(), foreign }
}

fn claimable(statement: &Statement) -> Option<ClaimRow> {
    let mut row = statement.row.clone()?;
    row.total_claimed = row.total_claimed.min(statement.view.balance);
    (row.total_claimed > statement.view.total_claimed).then_some(row)
}

/// What a batch adds to what was claimed before, by these books.
pub(super) fn due(books: &[Statement]) -> Amount {
    books.iter().fold(Amount::ZERO, |sum, statement| {
        let due = claimable(statement)
            .map_or(Amount::ZERO, |row| row.total_claimed.saturating_sub(statement.view.total_claimed));
        sum.checked_add(due).unwrap_or(Amount::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{View, Withdrawal};
    use crate::protocol::{ChannelConfig, Hash, LocalKey};

    /// One channel: balance, claimed, charged, whether a withdrawal is pending.
    fn statement(number: u8, balance: u128, claimed: u128, charged: u128, leaving: bool) -> Statement {
        let config = ChannelConfig {
            payer: Address([number; 20]),
            payer_authorizer: Address([number; 20]),
            receiver: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            token: Address([3; 20]),
            withdraw_delay: 900,
            salt: Hash::ZERO,
        };
        let signature = LocalKey::from_bytes(&[9; 32]).unwrap().sign(Hash::ZERO);
        let view = View {
            block: 1,
            balance: Amount::new(balance),
            total_claimed: Amount::new(claimed),
            withdrawal: leaving.then_some(Withdrawal { amount: Amount::new(1), initiated_at: 1 }),
            refund_nonce: 0,
        };
        let charged = Amount::new(charged);
        let row = (charged > view.total_claimed).then_some(ClaimRow {
            config,
            max_claimable: charged,
            signature,
            total_claimed: charged,
        });
        Statement {
            id: ChannelId([number; 32]),
            config,
            view,
            charged,
            unclaimed: charged.saturating_sub(view.total_claimed),
            unclaimed_since: (charged > view.total_claimed).then_some(1),
            row,
            shortfall: charged.saturating_sub(view.balance),
        }
    }

    const OURS: Claimant = Claimant { authorizer: Address([2; 20]), sender: None };

    #[test]
    fn a_channel_of_another_authorizer_is_in_no_batch_of_ours() {
        let of = |mut statement: Statement, receiver: u8, authorizer: u8| {
            let config = &mut statement.row.as_mut().unwrap().config;
            (config.receiver, config.receiver_authorizer) = (Address([receiver; 20]), Address([authorizer; 20]));
            statement
        };
        let books = || {
            vec![
                of(statement(1, 100, 0, 40, true), 1, 5),
                of(statement(2, 100, 0, 30, false), 1, 2),
                of(statement(3, 100, 0, 20, false), 7, 5),
                of(statement(4, 100, 0, 10, false), 1, 2),
            ]
        };
        let foreign = |number| Foreign { channel: ChannelId([number; 32]), authorizer: Address([5; 20]) };
        let planned = plan(&books(), OURS, 9);
        assert_eq!(
            (shape(&planned.batches), planned.foreign),
            (vec![vec![(2, 30), (4, 10)]], vec![foreign(1), foreign(3)])
        );
        // A sender that is the receiver needs no authorizer, but a batch of its own.
        let planned = plan(&books(), Claimant { sender: Some(Address([7; 20])), ..OURS }, 9);
        assert_eq!(shape(&planned.batches), [vec![(2, 30), (4, 10)], vec![(3, 20)]]);
        assert_eq!(planned.foreign, [foreign(1)]);
        // And so does one that is the authorizer.
        let planned = plan(&books(), Claimant { sender: Some(Address([5; 20])), ..OURS }, 9);
        assert_eq!(shape(&planned.batches), [vec![(2, 30), (4, 10)], vec![(1, 40), (3, 20)]]);
        assert_eq!(planned.foreign, []);
    }

    /// The payer's number and the claimed sum of each row, batch by batch.
    fn shape(batches: &[Batch]) -> Vec<Vec<(u8, u128)>> {
        let row = |row: &ClaimRow| (row.config.payer.0[0], row.total_claimed.units());
        batches.iter().map(|batch| batch.rows.iter().map(row).collect()).collect()
    }

    #[test]
    fn a_row_that_a_wallet_approves_goes_alone_and_last() {
        let wallet = |mut statement: Statement| {
            statement.config.payer_authorizer = Address::ZERO;
            statement.row.as_mut().unwrap().config.payer_authorizer = Address::ZERO;
            statement
        };
        let books = vec![
            wallet(statement(1, 100, 0, 90, true)),
            statement(2, 100, 0, 50, false),
            wallet(statement(3, 100, 0, 40, false)),
            statement(4, 100, 0, 30, false),
            statement(5, 100, 0, 20, false),
        ];
        assert_eq!(
            shape(&plan(&books, OURS, 2).batches),
            [vec![(2, 50), (4, 30)], vec![(5, 20)], vec![(1, 90)], vec![(3, 40)]]
        );
    }

    #[test]
    fn plans_read_like_a_table() {
        let table = [
            ("nothing is due", vec![statement(1, 100, 50, 50, false)], vec![]),
            ("one row", vec![statement(1, 100, 0, 50, false)], vec![vec![(1, 50)]]),
            (
                "the largest first",
                vec![statement(1, 100, 0, 5, false), statement(2, 100, 10, 50, false)],
                vec![vec![(2, 50), (1, 5)]],
            ),
            (
                "a withdrawal before all",
                vec![statement(1, 100, 0, 50, false), statement(2, 100, 0, 5, true)],
                vec![vec![(2, 5), (1, 50)]],
            ),
            ("a drained channel up to its balance", vec![statement(1, 30, 20, 50, false)], vec![vec![(1, 30)]]),
            ("a drained channel with nothing left", vec![statement(1, 30, 30, 50, false)], vec![]),
            (
                "batches have an end",
                vec![statement(1, 9, 0, 3, false), statement(2, 9, 0, 2, false), statement(3, 9, 0, 1, false)],
                vec![vec![(1, 3), (2, 2)], vec![(3, 1)]],
            ),
        ];
        for (name, books, expected) in table {
            assert_eq!(shape(&plan(&books, OURS, 2).batches), expected, "{name}");
        }
    }
}
