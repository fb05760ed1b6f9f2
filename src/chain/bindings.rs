//! The contracts' interfaces, and how our types become theirs.
//!
//! Written from the deployed contracts' ABI; the tests hold selectors and topics against the published values.
#![allow(missing_docs, reason = "generated from the Solidity below, whose names are the contract's")]

use alloy::primitives::{Address as EvmAddress, B256, Bytes, U256, aliases::U40};
use alloy::sol_types::SolValue as _;

use crate::protocol::claim::ClaimRow;
use crate::protocol::deposit::{Authorization, Permit2Authorization, TokenPermit};
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
        function allowance(address owner, address spender) external view returns (uint256);
        function nonces(address owner) external view returns (uint256);
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
    interface Permit2 {
        function nonceBitmap(address owner, uint256 word) external view returns (uint256);

        error SignatureExpired(uint256 signatureDeadline);
        error InvalidNonce();
        error InvalidSigner();
        error InvalidContractSignature();
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

    #[derive(Debug)]
    interface DataFeeOracle {
        function getL1FeeUpperBound(uint256 unsignedTxSize) external view returns (uint256);
        function getL1Fee(bytes data) external view returns (uint256);
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

/// What the Permit2 collector expects: `abi.encode(nonce, deadline, signature, eip2612)`.
pub(super) fn permit2_collector_data(authorization: &Permit2Authorization) -> Bytes {
    let fields = (
        U256::from_be_bytes(authorization.nonce.0),
        U256::from(authorization.deadline),
        bytes_of(&authorization.signature),
        authorization.permit.as_ref().and_then(permit_data).unwrap_or_default(),
    );
    fields.abi_encode_params().into()
}

/// `abi.encode(value, deadline, v, r, s)`; nothing where the signature has no such parts, which no token takes.
fn permit_data(permit: &TokenPermit) -> Option<Bytes> {
    let (v, r, s) = permit.signature.parts()?;
    // A word each: the `uint8` of v is encoded like any number.
    let fields = (U256::from(permit.amount.units()), U256::from(permit.deadline), U256::from(v), word(r), word(s));
    Some(fields.abi_encode_params().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::hex;
    use alloy::sol_types::{SolCall, SolEvent};

    /// The published selectors of the deployed contract.
    #[test]
    fn selectors_are_the_published_ones() {
        let published = [
            (Settlement::depositCall::SELECTOR, "140f1e75"),
            (Settlement::claimCall::SELECTOR, "29237b0c"),
            (Settlement::claimWithSignatureCall::SELECTOR, "e43ce1f2"),
            (Settlement::settleCall::SELECTOR, "9db32a8f"),
            (Settlement::initiateWithdrawCall::SELECTOR, "cf5cf3dc"),
            (Settlement::finalizeWithdrawCall::SELECTOR, "e88377b1"),
            (Settlement::refundWithSignatureCall::SELECTOR, "b77433e9"),
            (Settlement::multicallCall::SELECTOR, "ac9650d8"),
            (Settlement::channelsCall::SELECTOR, "7a7ebd7b"),
            (Settlement::pendingWithdrawalsCall::SELECTOR, "b7f06ebe"),
            (Settlement::refundNonceCall::SELECTOR, "f0dc792e"),
            (Settlement::receiversCall::SELECTOR, "21ff6389"),
            (Wallet::isValidSignatureCall::SELECTOR, "1626ba7e"),
            (Permit2::nonceBitmapCall::SELECTOR, "4fe02b44"),
            (Token::allowanceCall::SELECTOR, "dd62ed3e"),
            (Token::noncesCall::SELECTOR, "7ecebe00"),
            (Multicall3::aggregate3Call::SELECTOR, "82ad56cb"),
            (DataFeeOracle::getL1FeeUpperBoundCall::SELECTOR, "f1c7a58b"),
            (DataFeeOracle::getL1FeeCall::SELECTOR, "49948e0e"),
            (Token::authorizationStateCall::SELECTOR, "e94a0102"),
            (Token::DOMAIN_SEPARATORCall::SELECTOR, "3644e515"),
            (Token::eip712DomainCall::SELECTOR, "84b0196e"),
        ];
        for (selector, expected) in published {
            assert_eq!(hex::encode(selector), expected);
        }
    }

    #[test]
    fn topics_are_the_published_ones() {
        let published = [
            (
                Settlement::ChannelCreated::SIGNATURE_HASH,
                "69d8248d5566bdb2ebc4d218970710d8378a2ff9b709a999e052b71970f808fa",
            ),
            (
                Settlement::ChannelClosed::SIGNATURE_HASH,
                "8d5942f197f362dfd44dfdc1b0b7a9721c9151b67f55817c83349271d3c08d37",
            ),
            (Settlement::Deposited::SIGNATURE_HASH, "6c2a09353b5e75e70d0b9778b80a413809bb235d46c211811c474b3346791d89"),
            (Settlement::Claimed::SIGNATURE_HASH, "36bd546bb573e8921fdbfd934bbed62d872796b01792cd240cce27f79dd3eddd"),
            (Settlement::Settled::SIGNATURE_HASH, "7337b4386b690fdb8ba66905b92b9d45d33bc6626ee2620c905fb150ec0cc47d"),
            (Settlement::Refunded::SIGNATURE_HASH, "a84286cf8ebc7903a663c77c8d99aa92b600d4c2fcca872a5d4a663db4eb394b"),
            (
                Settlement::WithdrawInitiated::SIGNATURE_HASH,
                "e4280d0d903c7f258f62b07c62f262377cbaa23f7791d78126e6446e0f0e3c23",
            ),
            (
                Settlement::WithdrawFinalized::SIGNATURE_HASH,
                "546ce1e2242cd930c196bd08b894443562d709b4fffe4f028a75a6d233efc6e3",
            ),
        ];
        for (topic, expected) in published {
            assert_eq!(hex::encode(topic), expected);
        }
    }

    #[test]
    fn errors_are_the_published_ones() {
        let published = [
            ("ea3a9a39", "InvalidChannel"),
            ("56316e87", "ZeroDeposit"),
            ("1132981b", "DepositOverflow"),
            ("8baa579f", "InvalidSignature"),
            ("f5e2237d", "NotReceiverAuthorizer"),
            ("defb7069", "NotAuthorizedToClaim"),
            ("7864f008", "NotAuthorizedToRefund"),
            ("f1789775", "ClaimExceedsCeiling"),
            ("7d8242b6", "ClaimExceedsBalance"),
            ("a2aed0f0", "WithdrawalAlreadyPending"),
            ("3a0a1ca6", "WithdrawalNotPending"),
            ("15f969d5", "NotAuthorizedToFinalizeWithdraw"),
            ("f3965827", "WithdrawDelayNotElapsed"),
            ("d0d04f60", "NothingToWithdraw"),
            ("6d3d5764", "WithdrawAmountExceedsAvailable"),
            ("4574fab6", "WithdrawDelayOutOfRange"),
            ("c2e5347d", "EmptyBatch"),
            ("eb43592c", "DepositCollectionFailed"),
            ("18b1afd4", "InvalidCollector"),
            ("164f1afe", "InvalidRefundNonce"),
            ("d758525c", "ZeroRefund"),
            ("f645eedf", "ECDSAInvalidSignature"),
            ("fce698f7", "ECDSAInvalidSignatureLength"),
            ("d78bce0c", "ECDSAInvalidSignatureS"),
        ];
        for (selector, name) in published {
            let selector = hex::decode_to_array::<_, 4>(selector).unwrap();
            assert_eq!(Settlement::SettlementErrors::name_by_selector(selector), Some(name));
        }
    }

    #[test]
    fn terms_survive_the_way_there_and_back() {
        let address = |byte| Address([byte; 20]);
        let config = ChannelConfig {
            payer: address(1),
            payer_authorizer: address(2),
            receiver: address(3),
            receiver_authorizer: address(4),
            token: address(5),
            withdraw_delay: (1 << 40) - 1,
            salt: Hash([6; 32]),
        };
        assert_eq!(config_of(&terms(&config)), config);
        let beyond = ChannelConfig { withdraw_delay: 1 << 40, ..config };
        assert_eq!(config_of(&terms(&beyond)), config, "cut off");
    }

    #[test]
    fn the_permit2_collector_gets_a_permit_in_words_or_nothing() {
        let signature = Signature::from_bytes([7; 65]).unwrap();
        let permit = TokenPermit {
            owner: Address([1; 20]),
            token: Address([2; 20]),
            spender: Address([3; 20]),
            amount: crate::protocol::Amount::new(9),
            nonce: Hash([4; 32]),
            deadline: 11,
            signature: signature.clone(),
        };
        let authorization = |permit| Permit2Authorization {
            from: Address([1; 20]),
            token: Address([2; 20]),
            amount: crate::protocol::Amount::new(9),
            spender: Address([3; 20]),
            nonce: Hash([5; 32]),
            deadline: 10,
            channel: crate::protocol::ChannelId([6; 32]),
            signature: signature.clone(),
            permit,
        };
        let bare = permit2_collector_data(&authorization(None));
        // Four heads, 65 bytes with their length, and the length of nothing.
        assert_eq!(bare.len(), 32 * (4 + 1 + 3 + 1));
        assert_eq!(bare[..32], [5; 32]);
        assert_eq!(bare[63], 10);
        let data = permit2_collector_data(&authorization(Some(permit)));
        assert_eq!(data.len(), bare.len() + 32 * 5);
        assert_eq!(data[..bare.len() - 32], bare[..bare.len() - 32]);
        let (length, permit) = data[bare.len() - 32..].split_at(32);
        assert_eq!(length[31], 160);
        assert_eq!((permit[31], permit[63], permit[95]), (9, 11, 7));
        assert_eq!(permit[96..], [7; 64]);
    }

    #[test]
    fn the_collector_gets_four_fields() {
        let authorization = Authorization {
            valid_after: 0,
            valid_before: 1_770_000_000,
            salt: Hash([0x5a; 32]),
            signature: Signature::from_bytes([7; 65]).unwrap(),
        };
        let data = collector_data(&authorization);
        // Three words, the place of the bytes, their length, and 65 bytes padded to three words.
        assert_eq!(data.len(), 32 * (4 + 1 + 3));
        assert_eq!(data[32 + 28..64], 1_770_000_000u32.to_be_bytes());
        assert_eq!(data[64..96], [0x5a; 32]);
        assert_eq!((data[127], data[159]), (128, 65));
    }
}
