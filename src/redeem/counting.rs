//! Whether a deposit that was mined counts yet.
//!
//! A chain may let some blocks pass before it shows a deposit in a channel's balance ([`crate::ledger::View::balance`]).
//! Until then the deposit must not be published as landed: its request would be refused for want of balance, and its payer
//! would deposit once more.

use crate::chain::{Happening, Mined};
use crate::ledger::View;
use crate::protocol::ChannelId;

/// After how many blocks a deposit that the balance does not show is not waited for any more. Nodes that are no archives
/// know the states of about as many, so no chain lets more pass: something went out of the channel again.
const MAX_UNCOUNTED_BLOCKS: u64 = 128;

/// Whether a view has the deposit in it that was mined at `block`, or will never have it. `mined` is its receipt, if it was
/// ours; `known` is whether the books have the channel at all, which they have once something of its balance counts.
pub(super) fn counts(channel: ChannelId, block: u64, mined: Option<&Mined>, view: &View, known: bool) -> bool {
    let after = |what: &Happening| match what {
        Happening::Deposited { channel: into, new_balance, .. } if *into == channel => Some(*new_balance),
        _ => None,
    };
    let events = mined.map_or(&[][..], |mined| &mined.events);
    let balance = events.iter().filter_map(|event| after(&event.what)).next_back();
    let counts = known && balance.is_none_or(|balance| view.balance >= balance);
    counts || view.block >= block.saturating_add(MAX_UNCOUNTED_BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{ChannelEvent, LogPosition};
    use crate::protocol::{Amount, Hash};

    const CHANNEL: ChannelId = ChannelId([1; 32]);

    fn deposited(balances: &[(u8, u128)]) -> Mined {
        let at = LogPosition { block: 50, log_index: 0, block_hash: Hash::ZERO, transaction: Hash::ZERO };
        let event = |(channel, balance): &(u8, u128)| ChannelEvent {
            at,
            what: Happening::Deposited {
                channel: ChannelId([*channel; 32]),
                amount: Amount::new(1),
                new_balance: Amount::new(*balance),
            },
        };
        Mined {
            hash: Hash::ZERO,
            block: 50,
            block_hash: Hash::ZERO,
            success: true,
            gas_used: 0,
            fee_wei: None,
            events: balances.iter().map(event).collect(),
        }
    }

    #[test]
    fn a_deposit_counts_once_the_balance_shows_it_or_never_will() {
        let ours = deposited(&[(1, 70), (1, 100), (2, 500)]);
        // The view's block and balance, whether the books have the channel, the receipt; whether it counts.
        let cases = [
            (50, 99, true, Some(&ours), false),
            (50, 100, true, Some(&ours), true),
            (51, 101, true, Some(&ours), true),
            (51, 100, false, Some(&ours), false),
            (177, 0, false, Some(&ours), false),
            (178, 0, false, Some(&ours), true),
            // Somebody else relayed it, and the receipt is not known.
            (50, 1, true, None, true),
            (50, 0, false, None, false),
            (178, 0, false, None, true),
        ];
        for (block, balance, known, mined, expected) in cases {
            let view = View { block, balance: Amount::new(balance), ..View::default() };
            assert_eq!(counts(CHANNEL, 50, mined, &view, known), expected, "{block} {balance} {known}");
        }
    }
}
