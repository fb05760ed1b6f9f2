//! What a chain tells: plain values, already checked and decoded.

use serde::{Deserialize, Serialize};

use crate::protocol::{Address, Amount, ChannelConfig, ChannelId, Hash};

pub use crate::ledger::{View, Withdrawal};

/// The newest block a node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// Its hash; two heads of one number and different hashes are a reorganisation.
    pub hash: Hash,
    /// Its Unix time, seconds.
    pub timestamp: u64,
}

/// From when on money that comes into a channel counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counting {
    /// How many blocks must have been built on a state, its own included, before a deposit in it counts; 0 is taken as 1.
    /// With 1 a deposit counts as soon as a block has it. Nodes that are no archives keep the states of some 128 blocks.
    pub confirmations: u64,
    /// What counts at once all the same, a channel, atomic units.
    pub instant: Amount,
}

/// A deposit counts as soon as a block has it.
impl Default for Counting {
    fn default() -> Self {
        Self { confirmations: 1, instant: Amount::ZERO }
    }
}

impl Counting {
    /// The block whose balances count while `newest` is the newest.
    pub(super) fn settled_block(&self, newest: u64) -> u64 {
        newest.saturating_sub(self.confirmations.saturating_sub(1))
    }

    /// A channel as it counts: what came in since its balance was `earlier` counts up to the instant allowance. What went
    /// out since is gone at once. What was claimed counts always: the contract paid it, so it was there.
    pub(super) fn counted(&self, newest: View, earlier: Amount) -> View {
        let sure = earlier.saturating_add(self.instant);
        View { balance: newest.balance.min(sure).max(newest.total_claimed), ..newest }
    }
}

/// What is known of a node, for operators. It was learnt when the node was last asked something; nothing is asked for this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHealth {
    /// Scheme, host and port; never the path, which providers put keys into.
    pub name: String,
    /// Whether questions go to this one first at the moment.
    pub preferred: bool,
    /// Whether its answers are taken at the moment.
    pub ok: bool,
    /// How old its newest block was when that was last asked for, seconds by our clock.
    pub lag_s: Option<u64>,
    /// The number of that block.
    pub head: Option<u64>,
    /// What is wrong with it, or with relying on it.
    pub problem: Option<String>,
}

/// A receiver's account with the settlement contract, in one token. Both sums only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// Credited by claims, atomic units.
    pub total_claimed: Amount,
    /// Of that, already paid out by settlements, atomic units.
    pub total_settled: Amount,
}

impl Owed {
    /// What a settlement would pay now, atomic units.
    pub fn due(&self) -> Amount {
        self.total_claimed.saturating_sub(self.total_settled)
    }
}

/// How a token names itself in EIP-712 signatures. The separator decides; the texts help to explain a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenDomain {
    /// The domain's name, or the token's where it does not tell its domain (EIP-5267).
    pub name: String,
    /// The domain's version, if the token tells it.
    pub version: Option<String>,
    /// The token's own domain separator.
    pub separator: Hash,
    /// Decimal places.
    pub decimals: u8,
}

/// How many transactions an account has made, which is the nonce of its next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonces {
    /// In blocks.
    pub mined: u64,
    /// With those that wait for a block, as far as the node knows of them.
    pub pending: u64,
}

/// What is offered for a place in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bid {
    /// The most that may be paid for a unit of gas, tip included, wei.
    pub ceiling_wei: u128,
    /// Whether to tip more than usual: something is lost if it comes late.
    pub urgent: bool,
}

/// Any price, without hurry.
impl Default for Bid {
    fn default() -> Self {
        Self { ceiling_wei: u128::MAX, urgent: false }
    }
}

/// What gas costs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GasPrice {
    /// What the next block takes for a unit of gas at least, and burns, wei.
    pub base_wei: u128,
    /// The tip that is usual, wei a unit of gas.
    pub tip_wei: u128,
    /// What a layer 2 takes beside gas for a byte of a transaction's data, wei; 0 where it takes nothing or is none.
    pub data_wei_per_byte: u128,
    /// The most gas a block has.
    pub block_gas_limit: u64,
}

/// What became of a wish to replace a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replacement {
    /// This one was sent in its place. Either may land.
    Sent(Hash),
    /// It bids as much as it may; nothing was signed.
    AtCeiling,
    /// The nonce is used: one of them, or another, is in a block. Ask for receipts.
    NonceUsed,
}

/// A transaction as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedTransaction {
    /// Its hash.
    pub hash: Hash,
    /// The account that pays for it.
    pub sender: Address,
    /// Its nonce.
    pub nonce: u64,
    /// The signed bytes.
    pub raw: Vec<u8>,
}

/// What a node makes of a transaction that it is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resent {
    /// It has it, mined or waiting.
    Known,
    /// It knows another one with the same nonce in a block, and not this one. Said twice, with time in between for a node
    /// that is behind, that means that no block will ever have this one.
    Replaced,
}

/// A transaction that a block has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mined {
    /// The transaction.
    pub hash: Hash,
    /// The block's number.
    pub block: u64,
    /// The block's hash.
    pub block_hash: Hash,
    /// Whether it was carried out; one that reverted is mined, paid for, and without effect.
    pub success: bool,
    /// Gas it took.
    pub gas_used: u64,
    /// What it cost its sender, wei, with what a layer 2 adds for its data; nothing where the node does not say.
    pub fee_wei: Option<u128>,
    /// What the settlement contract did in it, in order. Empty where it reverted or did nothing.
    pub events: Vec<ChannelEvent>,
}

impl Mined {
    /// The transaction as people find it on chain. Where a facilitator sends for us, [`Mined::hash`] names what it was
    /// asked, which no block has, and the events name what it sent.
    pub fn on_chain(&self) -> Hash {
        self.events.first().map_or(self.hash, |event| event.at.transaction)
    }
}

/// Something the settlement contract did, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelEvent {
    /// Where.
    pub at: LogPosition,
    /// What.
    pub what: Happening,
}

/// Where in the chain a log is. Positions order as the logs happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// The block's number.
    pub block: u64,
    /// The log's index in the block.
    pub log_index: u64,
    /// The block's hash.
    pub block_hash: Hash,
    /// The transaction.
    pub transaction: Hash,
}

/// What the settlement contract did. Amounts are atomic units of the channel's token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// A channel has its first balance.
    Created {
        /// The channel.
        channel: ChannelId,
        /// Its terms.
        config: ChannelConfig,
    },
    /// A channel has nothing left and was never claimed from.
    Closed {
        /// The channel.
        channel: ChannelId,
    },
    /// Somebody put money into a channel.
    Deposited {
        /// The channel.
        channel: ChannelId,
        /// How much came in.
        amount: Amount,
        /// The balance after it.
        new_balance: Amount,
    },
    /// The receiver was credited.
    Claimed {
        /// The channel.
        channel: ChannelId,
        /// How much this claim added.
        amount: Amount,
        /// Everything ever claimed, after it.
        new_total_claimed: Amount,
    },
    /// The receiver gave money back to the payer.
    Refunded {
        /// The channel.
        channel: ChannelId,
        /// How much.
        amount: Amount,
    },
    /// The payer announced that it will take money out.
    WithdrawInitiated {
        /// The channel.
        channel: ChannelId,
        /// How much.
        amount: Amount,
        /// The Unix time from which it can, seconds.
        finalize_after: u64,
    },
    /// The payer took money out.
    WithdrawFinalized {
        /// The channel.
        channel: ChannelId,
        /// How much.
        amount: Amount,
    },
    /// A receiver was paid what claims had credited.
    Settled {
        /// The receiver.
        receiver: Address,
        /// The token.
        token: Address,
        /// How much.
        amount: Amount,
    },
}

impl Happening {
    /// The channel it happened to; a settlement is about none.
    pub fn channel(&self) -> Option<ChannelId> {
        match *self {
            Self::Created { channel, .. }
            | Self::Closed { channel }
            | Self::Deposited { channel, .. }
            | Self::Claimed { channel, .. }
            | Self::Refunded { channel, .. }
            | Self::WithdrawInitiated { channel, .. }
            | Self::WithdrawFinalized { channel, .. } => Some(channel),
            Self::Settled { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deposit_counts_late_and_what_goes_out_counts_at_once() {
        // Newest balance, claimed, balance some blocks ago, allowance; what counts.
        let cases = [
            (100, 0, 0, 0, 0),
            (100, 0, 0, 99, 99),
            (100, 0, 0, 100, 100),
            (100, 0, 0, 101, 100),
            (100, 0, 60, 0, 60),
            (100, 0, 60, 10, 70),
            (100, 0, 100, 0, 100),
            // A refund or a withdrawal went out.
            (40, 0, 100, 0, 40),
            (40, 10, 100, 1_000, 40),
            // More was claimed than would count: the claim itself shows that it was there.
            (100, 80, 60, 10, 80),
            (u128::MAX, 0, u128::MAX, u128::MAX, u128::MAX),
        ];
        for (balance, claimed, earlier, instant, expected) in cases {
            let counting = Counting { confirmations: 3, instant: Amount::new(instant) };
            let newest = View {
                balance: Amount::new(balance),
                total_claimed: Amount::new(claimed),
                block: 7,
                refund_nonce: 4,
                withdrawal: Some(Withdrawal { amount: Amount::new(1), initiated_at: 5 }),
            };
            let counted = counting.counted(newest, Amount::new(earlier));
            assert_eq!(counted, View { balance: Amount::new(expected), ..newest }, "{balance} {claimed} {earlier}");
        }
    }

    #[test]
    fn confirmations_count_the_block_itself() {
        let settled = |confirmations, newest| Counting { confirmations, ..Counting::default() }.settled_block(newest);
        assert_eq!([settled(0, 9), settled(1, 9), settled(2, 9), settled(10, 9), settled(11, 9)], [9, 9, 8, 0, 0]);
    }
}
