//! The transactions this house sends, as data.

use alloy::primitives::{Bytes, U256};
use alloy::sol_types::SolCall as _;

use super::bindings::{Settlement, bytes_of, claims, collector_data, evm, permit2_collector_data, terms};
use super::client::decode_transaction;
use crate::protocol::claim::ClaimRow;
use crate::protocol::contracts::{ERC3009_COLLECTOR, PERMIT2_COLLECTOR};
use crate::protocol::deposit::Permission;
use crate::protocol::{Address, Amount, ChannelConfig, Signature, SignedVoucher};

/// A call of the settlement contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Brings a payer's money into its channel through the collector that takes its permission. Anybody may send it.
    Deposit {
        /// The channel's terms.
        config: ChannelConfig,
        /// How much, atomic units; exactly what the authorization was signed for.
        amount: Amount,
        /// What the payer signed.
        authorization: Permission,
        /// What the deposit is made for, where that is known. The contract does not want it; a facilitator does.
        payment: Option<FirstPayment>,
    },
    /// Claims for a sender that is receiver or receiver authorizer of every row.
    Claim {
        /// One row a channel. A single bad row reverts all of them.
        rows: Vec<ClaimRow>,
    },
    /// Claims for a receiver authorizer that only signed; anybody may send it. All rows have the same authorizer.
    ClaimWithSignature {
        /// One row a channel. A single bad row reverts all of them.
        rows: Vec<ClaimRow>,
        /// The authorizer's signature over the batch, in this order.
        signature: Signature,
    },
    /// Pays a receiver what claims have credited. Anybody may send it; without anything due it succeeds and does
    /// nothing.
    Settle {
        /// Who is paid.
        receiver: Address,
        /// In which token.
        token: Address,
    },
    /// Claims and refunds in one atomic transaction, both only signed by the receiver authorizer.
    ClaimAndRefund {
        /// What to claim first; empty to refund only.
        rows: Vec<ClaimRow>,
        /// The authorizer's signature over the rows; unused where there are none.
        claim_signature: Signature,
        /// The terms of the channel to refund.
        config: ChannelConfig,
        /// How much, atomic units; the contract gives back at most what is available.
        amount: Amount,
        /// The channel's live refund nonce.
        nonce: u128,
        /// The authorizer's signature over the refund.
        refund_signature: Signature,
    },
    /// Announces a withdrawal. The sender is the payer or its authorizer.
    InitiateWithdraw {
        /// The channel's terms.
        config: ChannelConfig,
        /// How much, atomic units.
        amount: Amount,
    },
    /// Takes out an announced withdrawal once the delay has passed. The sender is the payer or its authorizer.
    FinalizeWithdraw {
        /// The channel's terms.
        config: ChannelConfig,
    },
}

/// The payment that a deposit came with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstPayment {
    /// Its voucher.
    pub voucher: SignedVoucher,
    /// What the request costs at most, atomic units.
    pub price: Amount,
}

impl Call {
    /// The transaction's data; it goes to the settlement contract, without any coin.
    pub(super) fn calldata(&self) -> Bytes {
        let data = match self {
            Self::Deposit { config, amount, authorization, payment: _ } => {
                let (collector, data) = match authorization {
                    Permission::Erc3009(authorization) => (ERC3009_COLLECTOR, collector_data(authorization)),
                    Permission::Permit2(authorization) => (PERMIT2_COLLECTOR, permit2_collector_data(authorization)),
                };
                Settlement::depositCall {
                    config: terms(config),
                    amount: amount.units(),
                    collector: evm(collector),
                    collectorData: data,
                }
                .abi_encode()
            }
            Self::Claim { rows } => Settlement::claimCall { voucherClaims: claims(rows) }.abi_encode(),
            Self::ClaimWithSignature { rows, signature } => claim_with_signature(rows, signature),
            Self::Settle { receiver, token } => {
                Settlement::settleCall { receiver: evm(*receiver), token: evm(*token) }.abi_encode()
            }
            Self::ClaimAndRefund { rows, claim_signature, config, amount, nonce, refund_signature } => {
                let refund = Settlement::refundWithSignatureCall {
                    config: terms(config),
                    amount: amount.units(),
                    nonce: U256::from(*nonce),
                    authorizerSignature: bytes_of(refund_signature),
                };
                // An empty claim reverts, and would take the refund with it.
                let claim = (!rows.is_empty()).then(|| claim_with_signature(rows, claim_signature));
                let data = claim.into_iter().chain([refund.abi_encode()]).map(Bytes::from).collect();
                Settlement::multicallCall { data }.abi_encode()
            }
            Self::InitiateWithdraw { config, amount } => {
                Settlement::initiateWithdrawCall { config: terms(config), amount: amount.units() }.abi_encode()
            }
            Self::FinalizeWithdraw { config } => {
                Settlement::finalizeWithdrawCall { config: terms(config) }.abi_encode()
            }
        };
        data.into()
    }
}

/// Whether a signed transaction is a deposit through Permit2. The books keep its bytes, and those say it.
pub fn through_permit2(raw: &[u8]) -> bool {
    let deposit = decode_transaction(raw).ok().and_then(|sent| Settlement::depositCall::abi_decode(&sent.input).ok());
    deposit.is_some_and(|deposit| deposit.collector == evm(PERMIT2_COLLECTOR))
}

fn claim_with_signature(rows: &[ClaimRow], signature: &Signature) -> Vec<u8> {
    Settlement::claimWithSignatureCall { voucherClaims: claims(rows), authorizerSignature: bytes_of(signature) }
        .abi_encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Hash;

    fn config() -> ChannelConfig {
        ChannelConfig {
            payer: Address([1; 20]),
            payer_authorizer: Address([2; 20]),
            receiver: Address([3; 20]),
            receiver_authorizer: Address([4; 20]),
            token: Address([5; 20]),
            withdraw_delay: 900,
            salt: Hash::ZERO,
        }
    }

    fn signature(byte: u8) -> Signature {
        Signature::from_bytes([byte; 65]).unwrap()
    }

    fn rows(count: usize) -> Vec<ClaimRow> {
        let row = ClaimRow {
            config: config(),
            max_claimable: Amount::new(5),
            signature: signature(1),
            total_claimed: Amount::new(4),
        };
        vec![row; count]
    }

    /// The scheme's documents give 228 bytes and 480 more a row for a claim with a 65-byte signature.
    #[test]
    fn a_claim_is_as_long_as_the_documents_say() {
        for count in [1, 25, 100] {
            let call = Call::ClaimWithSignature { rows: rows(count), signature: signature(2) };
            assert_eq!(call.calldata().len(), 228 + 480 * count);
        }
    }

    #[test]
    fn a_refund_alone_claims_nothing() {
        let call = |rows| Call::ClaimAndRefund {
            rows,
            claim_signature: signature(2),
            config: config(),
            amount: Amount::new(9),
            nonce: 3,
            refund_signature: signature(4),
        };
        let steps = |rows| {
            let data = call(rows).calldata();
            let steps = Settlement::multicallCall::abi_decode_validate(&data).unwrap().data;
            steps.iter().map(|step| step.first_chunk::<4>().copied().unwrap()).collect::<Vec<_>>()
        };
        let refund = Settlement::refundWithSignatureCall::SELECTOR;
        assert_eq!(steps(rows(2)), [Settlement::claimWithSignatureCall::SELECTOR, refund]);
        assert_eq!(steps(Vec::new()), [refund]);
    }
}
