// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

// FOR DEVELOPMENT CHAINS ONLY. Production uses the canonical, audited deployment at the same address.

import {IDepositCollector, IERC2612} from "./Interfaces.sol";
import {Permit2} from "./Permit2.sol";

/// Pulls a deposit through Permit2, for tokens without ERC-3009. The channel is the witness of what the payer signed,
/// so a signature made for one channel cannot fund another. The payer's allowance for Permit2 may come along as an
/// EIP-2612 permit.
contract Permit2DepositCollector is IDepositCollector {
    /// Where the settlement and Permit2 live on every chain.
    address public constant SETTLEMENT = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003;
    Permit2 public constant PERMIT2 = Permit2(0x000000000022D473030F116dDEE9F6B43aC78BA3);

    string private constant WITNESS_TYPE =
        "DepositWitness witness)DepositWitness(bytes32 channelId)TokenPermissions(address token,uint256 amount)";
    bytes32 private constant WITNESS_TYPEHASH = keccak256("DepositWitness(bytes32 channelId)");

    /// The token did not take the permit. Somebody may have used it before, and the allowance may be there.
    event Eip2612PermitFailed(address indexed token, address indexed owner, bytes reason);

    error OnlySettlement();
    error PermitAmountMismatch();

    /// `collectorData` is `abi.encode(uint256 nonce, uint256 deadline, bytes signature, bytes eip2612)`, and `eip2612`
    /// is empty or `abi.encode(uint256 value, uint256 deadline, uint8 v, bytes32 r, bytes32 s)`.
    function collect(address payer, address token, uint256 amount, bytes32 channelId, bytes calldata collectorData)
        external
    {
        if (msg.sender != SETTLEMENT) revert OnlySettlement();
        (uint256 nonce, uint256 deadline, bytes memory signature, bytes memory eip2612) =
            abi.decode(collectorData, (uint256, uint256, bytes, bytes));
        if (eip2612.length != 0) _permit(payer, token, amount, eip2612);
        PERMIT2.permitWitnessTransferFrom(
            Permit2.PermitTransferFrom(Permit2.TokenPermissions(token, amount), nonce, deadline),
            Permit2.SignatureTransferDetails(SETTLEMENT, amount),
            payer,
            keccak256(abi.encode(WITNESS_TYPEHASH, channelId)),
            WITNESS_TYPE,
            signature
        );
    }

    /// Whether there is an allowance is found out by the transfer, not here.
    function _permit(address payer, address token, uint256 amount, bytes memory eip2612) private {
        (uint256 value, uint256 deadline, uint8 v, bytes32 r, bytes32 s) =
            abi.decode(eip2612, (uint256, uint256, uint8, bytes32, bytes32));
        if (value != amount) revert PermitAmountMismatch();
        (bool ok, bytes memory reason) =
            token.call(abi.encodeCall(IERC2612.permit, (payer, address(PERMIT2), value, deadline, v, r, s)));
        if (!ok) emit Eip2612PermitFailed(token, payer, reason);
    }
}
