//! The contracts' interfaces, and how our types become theirs.
//!
//! Written from the deployed contracts' ABI; the tests hold selectors and topics against the published values.
#![allow(missing_docs, reason = "generated from the Solidity below, whose names are the contract's")]

use alloy::primitives::{Address as EvmAddress, B256, Bytes, U256, aliases::U40};
use alloy::sol_types::SolValue as _;

use crate::protocol::claim::ClaimRow;
use crate::protocol::deposit::Authorization;
use crate::protocol::{Address, ChannelConfig, Hash, Signature};

alloy::sol! {
    #[derive(Debug)]
    interface Settlement {
        struct ChannelConfig {
            address payer;
            address payerAuthorizer;
            address receiver;
            address receiverAuthorizer;
            address token;
            uint40 withdrawDelay;
            bytes32 salt;
        }
        struct Voucher {
            ChannelConfig channel;
            uint128 maxClaimableAmount;
        }
        struct VoucherClaim {
            Voucher voucher;
            bytes signature;
            uint128 totalClaimed;
        }

        function deposit(ChannelConfig config, uint128 amount, address collector, bytes collectorData) external;
        function claim(VoucherClaim[] voucherClaims) external;
        function claimWithSignature(VoucherClaim[] voucherClaims, bytes authorizerSignature) external;
        function settle(address receiver, address token) external;
        function initiateWithdraw(ChannelConfig config, uint128 amount) external;
        function finalizeWithdraw(ChannelConfig config) external;
        function refundWithSignature(ChannelConfig config, uint128 amount, uint256 nonce, bytes authorizerSignature)
            external;
        function multicall(bytes[] data) external returns (bytes[] results);
        function channels(bytes32 channelId) external view returns (uint128 balance, uint128 totalClaimed);
        function pendingWithdrawals(bytes32 channelId) external view returns (uint128 amount, uint40 initiatedAt);
        function refundNonce(bytes32 channelId) external view returns (uint256);
        function receivers(address receiver, address token)
            external view returns (uint128 totalClaimed, uint128 totalSettled);

        event ChannelCreated(bytes32 indexed channelId, ChannelConfig config);
        event ChannelClosed(bytes32 indexed channelId, ChannelConfig config);
        event Deposited(bytes32 indexed channelId, address indexed sender, uint128 amount, uint128 newBalance);
        event Claimed(
            bytes32 indexed channelId, address indexed sender, uint128 claimAmount, uint128 newTotalClaimed
        );
        event Settled(address indexed receiver, address indexed token, address indexed sender, uint128 amount);
        event Refunded(bytes32 indexed channelId, address indexed sender, uint128 amount);
        event WithdrawInitiated(bytes32 indexed channelId, uint128 amount, uint40 finalizeAfter);
        event WithdrawFinalized(bytes32 indexed channelId, address indexed sender, uint128 amount);

        error InvalidChannel();
        error ZeroDeposit();
        error DepositOverflow();
        error InvalidSignature();
        error NotReceiverAuthorizer();
        error NotAuthorizedToClaim();
        error NotAuthorizedToRefund();
        error ClaimExceedsCeiling();
        error ClaimExceedsBalance();
        error WithdrawalAlreadyPending();
        error WithdrawalNotPending();
        error NotAuthorizedToFinalizeWithdraw();
        error WithdrawDelayNotElapsed();
        error NothingToWithdraw();
        error WithdrawAmountExceedsAvailable();
        error WithdrawDelayOutOfRange();
        error EmptyBatch();
        error DepositCollectionFailed();
        error InvalidCollector();
        error InvalidRefundNonce();
        error ZeroRefund();
        error ECDSAInvalidSignature();
        error ECDSAInvalidSignatureLength(uint256 length);
        error ECDSAInvalidSignatureS(bytes32 s);
    }

    #[derive(Debug)]
    interface Token {
        function balanceOf(address owner) external view returns (uint256);
        function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);
        function name() external view returns (string);
        function version() external view returns (string);
        function decimals() external view returns (uint8);
        function DOMAIN_SEPARATOR() external view returns (bytes32);
        function eip712Domain()
            external view
            returns (
                bytes1 fields,
                string name,
                string version,
                uint256 chainId,
                address verifyingContract,
                bytes32 salt,
                uint256[] extensions
            );
    }

    #[derive(Debug)]
    interface Wallet {
        function isValidSignature(bytes32 digest, bytes signature) external view returns (bytes4);
    }

    #[derive(Debug)]
    interface Multicall3 {
        struct Call3 {
            address target;
            bool allowFailure;
            bytes callData;
        }
        struct Result {
            bool success;
            bytes returnData;
        }

        function aggregate3(Call3[] calls) external view returns (Result[] results);
    }
}

pub(super) fn evm(address: Address) -> EvmAddress {
    EvmAddress::new(address.0)
}

pub(super) fn address_of(address: EvmAddress) -> Address {
    Address(address.into_array())
}

pub(super) fn word(hash: Hash) -> B256 {
    B256::new(hash.0)
}

pub(super) fn hash_of(word: B256) -> Hash {
    Hash(word.0)
}

pub(super) fn bytes_of(signature: &Signature) -> Bytes {
    Bytes::copy_from_slice(signature.as_bytes())
}

/// A delay beyond 40 bits exists in no channel; it is cut off, and the contract refuses such terms.
pub(super) fn terms(config: &ChannelConfig) -> Settlement::ChannelConfig {
    Settlement::ChannelConfig {
        payer: evm(config.payer),
        payerAuthorizer: evm(config.payer_authorizer),
        receiver: evm(config.receiver),
        receiverAuthorizer: evm(config.receiver_authorizer),
        token: evm(config.token),
        withdrawDelay: U40::saturating_from(config.withdraw_delay),
        salt: word(config.salt),
    }
}

pub(super) fn config_of(terms: &Settlement::ChannelConfig) -> ChannelConfig {
    ChannelConfig {
        payer: address_of(terms.payer),
        payer_authorizer: address_of(terms.payerAuthorizer),
        receiver: address_of(terms.receiver),
        receiver_authorizer: address_of(terms.receiverAuthorizer),
        token: address_of(terms.token),
        withdraw_delay: terms.withdrawDelay.to::<u64>(),
        salt: hash_of(terms.salt),
    }
}

pub(super) fn claims(rows: &[ClaimRow]) -> Vec<Settlement::VoucherClaim> {
    let claim = |row: &ClaimRow| Settlement::VoucherClaim {
        voucher: Settlement::Voucher { channel: terms(&row.config), maxClaimableAmount: row.max_claimable.units() },
        signature: bytes_of(&row.signature),
        totalClaimed: row.total_claimed.units(),
    };
    rows.iter().map(claim).collect()
}

/// What the ERC-3009 collector expects: `abi.encode(validAfter, validBefore, salt, signature)`.
pub(super) fn collector_data(authorization: &Authorization) -> Bytes {
    let fields = (
        U256::from(authorization.valid_after),
        U256::from(authorization.valid_before),
        U256::from_be_bytes(authorization.salt.0),
        bytes_of(&authorization.signature),
    );
    fields.abi_encode_params().into()
}
