//! The codes a refused payment is answered with.
//!
//! **Owns** the closed list of refusals, each with its stable text and its HTTP status. **Promises** that the texts are
//! those of the `batch-settlement` specification where it has one: clients compare them letter by letter.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident => $text:literal, $status:literal;)*) => {
        /// Why a payment was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable text, as clients see it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The HTTP status it is answered with.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }
        }
    };
}

codes! {
    // The scheme's own codes.
    /// The channel's receiver authorizer is not the one offered.
    ReceiverAuthorizerMismatch => "invalid_batch_settlement_evm_receiver_authorizer_mismatch", 402;
    /// Another request of this channel is being served.
    ChannelBusy => "invalid_batch_settlement_evm_channel_busy", 402;
    /// The channel id is not 32 bytes of hex.
    ChannelIdInvalid => "invalid_batch_settlement_evm_channel_id_invalid", 402;
    /// The channel id does not follow from the channel's terms on this chain.
    ChannelIdMismatch => "invalid_batch_settlement_evm_channel_id_mismatch", 402;
    /// The channel has no deposit.
    ChannelNotFound => "invalid_batch_settlement_evm_channel_not_found", 402;
    /// The chain could not be asked about the channel.
    ChannelStateReadFailed => "invalid_batch_settlement_evm_channel_state_read_failed", 503;
    /// The voucher is not for what was charged plus the price.
    CumulativeAmountMismatch => "invalid_batch_settlement_evm_cumulative_amount_mismatch", 402;
    /// The voucher is not above what was already claimed on chain.
    CumulativeBelowClaimed => "invalid_batch_settlement_evm_cumulative_below_claimed", 402;
    /// The voucher is above what the channel can pay.
    CumulativeExceedsBalance => "invalid_batch_settlement_evm_cumulative_exceeds_balance", 402;
    /// The deposit is below the offer's minimum.
    DepositBelowMinDeposit => "invalid_batch_settlement_evm_deposit_below_min_deposit", 402;
    /// The deposit part of the payload is malformed.
    DepositPayload => "invalid_batch_settlement_evm_deposit_payload", 402;
    /// The chain would refuse the deposit.
    DepositSimulationFailed => "invalid_batch_settlement_evm_deposit_simulation_failed", 402;
    /// The deposit was mined and reverted, or can no longer be mined.
    DepositTransactionFailed => "invalid_batch_settlement_evm_deposit_transaction_failed", 402;
    /// The EIP-2612 permit is for another amount than the deposit.
    Eip2612AmountMismatch => "invalid_batch_settlement_evm_eip2612_amount_mismatch", 402;
    /// The EIP-2612 permit is of another token.
    Eip2612AssetMismatch => "invalid_batch_settlement_evm_eip2612_asset_mismatch", 402;
    /// The EIP-2612 permit expires too soon.
    Eip2612DeadlineExpired => "invalid_batch_settlement_evm_eip2612_deadline_expired", 402;
    /// The EIP-2612 permit is malformed.
    Eip2612InvalidFormat => "invalid_batch_settlement_evm_eip2612_invalid_format", 402;
    /// The EIP-2612 permit is not signed by the payer, or over something else.
    Eip2612InvalidSignature => "invalid_batch_settlement_evm_eip2612_invalid_signature", 402;
    /// The EIP-2612 permit is of somebody else than the payer.
    Eip2612OwnerMismatch => "invalid_batch_settlement_evm_eip2612_owner_mismatch", 402;
    /// The EIP-2612 permit allows somebody else than Permit2.
    Eip2612SpenderMismatch => "invalid_batch_settlement_evm_eip2612_spender_mismatch", 402;
    /// The offer's token is deposited by ERC-3009 only.
    Erc3009AuthorizationRequired => "invalid_batch_settlement_evm_erc3009_authorization_required", 402;
    /// The payer has fewer tokens than it deposits.
    InsufficientBalance => "invalid_batch_settlement_evm_insufficient_balance", 402;
    /// The deposit authorization is not valid yet.
    PayloadAuthorizationValidAfter => "invalid_batch_settlement_evm_payload_authorization_valid_after", 402;
    /// The deposit authorization expires too soon.
    PayloadAuthorizationValidBefore => "invalid_batch_settlement_evm_payload_authorization_valid_before", 402;
    /// The payload has no known type.
    PayloadType => "invalid_batch_settlement_evm_payload_type", 402;
    /// The deposit authorization is not signed by the payer, for this token, amount and channel.
    ReceiveAuthorizationSignature => "invalid_batch_settlement_evm_receive_authorization_signature", 402;
    /// The payer has not allowed Permit2 to move so much, and sends no EIP-2612 permit that would.
    Permit2AllowanceRequired => "invalid_batch_settlement_evm_permit2_allowance_required", 402;
    /// The Permit2 authorization is for another amount than the deposit.
    Permit2AmountMismatch => "invalid_batch_settlement_evm_permit2_amount_mismatch", 402;
    /// The offer's token is deposited through Permit2 only.
    Permit2AuthorizationRequired => "invalid_batch_settlement_evm_permit2_authorization_required", 402;
    /// The Permit2 authorization expires too soon.
    Permit2DeadlineExpired => "invalid_batch_settlement_evm_permit2_deadline_expired", 402;
    /// The Permit2 authorization is not signed by the payer, or over something else.
    Permit2InvalidSignature => "invalid_batch_settlement_evm_permit2_invalid_signature", 402;
    /// The Permit2 authorization is for somebody else than the deposit collector.
    Permit2InvalidSpender => "invalid_batch_settlement_evm_permit2_invalid_spender", 402;
    /// The channel pays somebody else.
    ReceiverMismatch => "invalid_batch_settlement_evm_receiver_mismatch", 402;
    /// The refund's amount is not a number above zero.
    RefundAmountInvalid => "invalid_batch_settlement_evm_refund_amount_invalid", 402;
    /// There is nothing left to refund.
    RefundNoBalance => "invalid_batch_settlement_evm_refund_no_balance", 402;
    /// The refund payload is malformed.
    RefundPayload => "invalid_batch_settlement_evm_refund_payload", 402;
    /// The chain would refuse the refund.
    RefundSimulationFailed => "invalid_batch_settlement_evm_refund_simulation_failed", 402;
    /// The refund was mined and reverted, or paid nothing.
    RefundTransactionFailed => "invalid_batch_settlement_evm_refund_transaction_failed", 402;
    /// The chain could not be read.
    RpcReadFailed => "invalid_batch_settlement_evm_rpc_read_failed", 503;
    /// The channel holds another token.
    TokenMismatch => "invalid_batch_settlement_evm_token_mismatch", 402;
    /// The voucher part of the payload is malformed.
    VoucherPayload => "invalid_batch_settlement_evm_voucher_payload", 402;
    /// The voucher's signature is not one the contract would accept.
    VoucherSignature => "invalid_batch_settlement_evm_voucher_signature", 402;
    /// The channel's withdraw delay is not the one offered.
    WithdrawDelayMismatch => "invalid_batch_settlement_evm_withdraw_delay_mismatch", 402;
    /// The withdraw delay is one the contract refuses.
    WithdrawDelayOutOfRange => "invalid_batch_settlement_evm_withdraw_delay_out_of_range", 402;

    // The protocol's.
    /// A transaction was sent and its fate is open; nothing was charged yet.
    SettlementPending => "settlement_pending", 503;
    /// An advertised extension came back without something it was advertised with.
    ExtensionEchoMismatch => "extension_echo_mismatch", 402;
    /// The payment answers another offer.
    NoMatchingRequirements => "No matching payment requirements", 402;

    // Ours, where the protocol is silent.
    /// The payment header is not base64 of JSON of the expected shape.
    MalformedPayment => "malformed_payment", 400;
    /// More than one payment header came.
    DuplicatePayment => "duplicate_payment_header", 400;
    /// The payment header is too long.
    PaymentTooLarge => "payment_header_too_large", 431;
    /// The books cannot be written at the moment; nothing was charged.
    BooksUnavailable => "books_unavailable", 503;
    /// A payment has to carry an identifier, and has none.
    IdentifierRequired => "payment_identifier_required", 400;
    /// A payment's identifier is not one of the specification's form.
    IdentifierInvalid => "payment_identifier_invalid", 400;
    /// A payment's identifier was sent before with another payment, or for another request.
    IdentifierConflict => "payment_identifier_conflict", 409;
    /// The same payment was charged before, and its answer is not here any more.
    AnswerNotKept => "answer_not_kept", 409;
    /// Refunds of this channel were asked too often.
    RefundTooOften => "refund_rate_limited", 429;
    /// Too many deposits were relayed, for this peer or for all together. Nothing was sent. Not a 402, which would ask for
    /// a payment at once: the next one would be refused too.
    DepositRateLimited => "deposit_rate_limited", 429;
    /// Too many payments of this peer came to nothing in the last minute: somebody else had signed them, or no channel was
    /// behind them. Its signatures are not looked at, except those of channels that paid from there lately.
    PaymentRateLimited => "payment_rate_limited", 429;
    /// The route is not for this payer.
    PayerNotAllowed => "payer_not_allowed", 403;
    /// This payer's requests come faster than the route serves them. Nothing was charged; the same payment is good again.
    PayerRateLimited => "payer_rate_limited", 429;
    /// Too many requests without a payment came from this network. Not a 402, which would be one more quote.
    UnpaidRateLimited => "unpaid_rate_limited", 429;
    /// A withdrawal of the channel can be finished too soon to serve anything more on it. Stock clients pass this code on
    /// to the application: they neither sign again nor deposit, and find the way back by themselves once the withdrawal is
    /// finished.
    ChannelWithdrawing => "channel_withdrawing", 402;
    /// Too much of the channel waits to be claimed to trust its payer's own account with more. Stock clients pass this
    /// code on to the application.
    WalletExposed => "wallet_exposure_limit", 402;
}

impl Code {
    /// Seconds after which the very same request may succeed, for codes that are about the moment.
    pub fn retry_after_s(self) -> Option<u64> {
        match self {
            Self::ChannelBusy => Some(1),
            Self::SettlementPending | Self::RpcReadFailed | Self::ChannelStateReadFailed | Self::BooksUnavailable => {
                Some(5)
            }
            Self::RefundTooOften | Self::DepositRateLimited | Self::PaymentRateLimited => Some(60),
            // A claim is on its way.
            Self::WalletExposed => Some(30),
            _ => None,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn texts_are_distinct_and_statuses_are_refusals() {
        let texts: HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| (400..600).contains(&code.status())));
    }

    #[test]
    fn what_may_pass_by_itself_says_when_to_retry() {
        for code in Code::ALL {
            assert!(code.status() != 503 || code.retry_after_s().is_some(), "{code}");
        }
    }
}
