//! How much gas a transaction may take.
//!
//! **Promises** that no estimate of a node and no wallet of a payer makes us pay for more than a bound. **Does not** know what
//! gas costs.

use super::call::Call;
use super::error::ChainError;

/// The gas a payer's wallet may take to judge a signature, transaction overhead included. Every claim pays for that
/// again, so a wallet that needs more is refused; checking a passkey in Solidity takes about a third of this.
pub(super) const WALLET_GAS: u64 = 1_000_000;

/// The part of a gas estimate that is added to it: a quarter. The state may have moved when the transaction is mined.
const GAS_HEADROOM_DIVISOR: u64 = 4;
/// The gas of a settlement. Not estimated: a node that has not seen the claim before it yet estimates the path where
/// nothing is due, and the transaction would run out of gas. Real settlements take 45,000 to 90,000.
const SETTLE_GAS: u64 = 120_000;
/// The most gas one transaction may have (EIP-7825).
const MAX_TRANSACTION_GAS: u64 = 1 << 24;
/// The most a call that runs a wallet may take beside its rows and wallets. Deposits and refunds measure at a tenth of
/// this; the rest is for chains that charge for their data in gas.
const CALL_GAS: u64 = 2_000_000;
/// The most a claimed row may take beside its payer's wallet, in such a call.
const ROW_GAS: u64 = 60_000;
/// The gas a call may take at most. A wallet is somebody else's code that runs at our expense, and one that takes what
/// the other rows of its batch need must be found out here, not when it is mined.
pub(super) fn gas_allowance(call: &Call) -> u64 {
    let (rows, wallets) = match call {
        // The token asks the payer's account, which may be a wallet.
        Call::Deposit { .. } => (0, 1),
        Call::Claim { rows } | Call::ClaimWithSignature { rows, .. } | Call::ClaimAndRefund { rows, .. } => {
            (rows.len(), rows.iter().filter(|row| row.config.payer_authorizer.is_zero()).count())
        }
        Call::Settle { .. } | Call::InitiateWithdraw { .. } | Call::FinalizeWithdraw { .. } => (0, 0),
    };
    if wallets == 0 {
        return MAX_TRANSACTION_GAS;
    }
    let times = |gas: u64, count: usize| gas.saturating_mul(u64::try_from(count).unwrap_or(u64::MAX));
    CALL_GAS.saturating_add(times(ROW_GAS, rows)).saturating_add(times(WALLET_GAS, wallets)).min(MAX_TRANSACTION_GAS)
}

/// Whether a node means that a call takes more than it was allowed. The same words with another number speak of its
/// sender's balance.
pub(super) fn says_too_much_gas(message: &str, allowance: u64) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("exceeds allowance") && message.contains(&allowance.to_string())
}

/// It is the call's fault, as a revert is: trying the same again gives the same.
pub(super) fn too_much_gas(allowance: u64) -> ChainError {
    ChainError::Reverted { name: Some(format!("it takes more than {allowance} gas")) }
}

pub(super) fn gas_limit(call: &Call, estimate: u64) -> u64 {
    let roomy = estimate.saturating_add(estimate.div_euclid(GAS_HEADROOM_DIVISOR)).min(MAX_TRANSACTION_GAS);
    match call {
        Call::Settle { .. } => roomy.max(SETTLE_GAS),
        _ => roomy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Address, Amount, Hash, Signature};

    #[test]
    fn a_wallet_has_its_allowance_and_a_batch_no_more_than_a_transaction() {
        let row = |payer_authorizer| crate::protocol::claim::ClaimRow {
            config: crate::protocol::ChannelConfig {
                payer: Address([1; 20]),
                payer_authorizer,
                receiver: Address([2; 20]),
                receiver_authorizer: Address([3; 20]),
                token: Address([4; 20]),
                withdraw_delay: 900,
                salt: Hash::ZERO,
            },
            max_claimable: Amount::new(1),
            signature: Signature::from_bytes([0; 65]).unwrap(),
            total_claimed: Amount::new(1),
        };
        let (key, wallet) = (row(Address([1; 20])), row(Address::ZERO));
        let claim = |rows: &[&crate::protocol::claim::ClaimRow]| Call::Claim {
            rows: rows.iter().map(|row| (*row).clone()).collect(),
        };
        assert_eq!(gas_allowance(&claim(&[&key; 100])), MAX_TRANSACTION_GAS);
        assert_eq!(gas_allowance(&claim(&[&key, &wallet])), CALL_GAS + 2 * ROW_GAS + WALLET_GAS);
        assert_eq!(gas_allowance(&claim(&[&wallet; 272])), MAX_TRANSACTION_GAS);
        assert!(says_too_much_gas("gas required exceeds allowance (460000)", 460_000));
        assert!(says_too_much_gas("Out of gas: gas required exceeds allowance: 460000", 460_000));
        assert!(!says_too_much_gas("gas required exceeds allowance (0)", 460_000), "an empty gas account");
    }

    #[test]
    fn gas_has_headroom_and_a_ceiling_and_a_settlement_its_own_floor() {
        let claim = Call::Claim { rows: Vec::new() };
        let settle = Call::Settle { receiver: Address::ZERO, token: Address::ZERO };
        assert_eq!(gas_limit(&claim, 100_000), 125_000);
        assert_eq!(gas_limit(&claim, u64::MAX), MAX_TRANSACTION_GAS);
        assert_eq!(gas_limit(&settle, 25_000), SETTLE_GAS);
        assert_eq!(gas_limit(&settle, 200_000), 250_000);
    }
}
