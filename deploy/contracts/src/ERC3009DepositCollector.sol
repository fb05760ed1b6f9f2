// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

// FOR DEVELOPMENT CHAINS ONLY. Production uses the canonical, audited deployment at the same address.

import {IDepositCollector, IERC20, IERC3009} from "./Interfaces.sol";

/// Pulls a deposit by an ERC-3009 authorization. The authorization's nonce is derived from the channel, so a signature
/// made for one channel cannot fund another.
contract ERC3009DepositCollector is IDepositCollector {
    /// Where the settlement lives on every chain.
    address public constant SETTLEMENT = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003;

    error OnlySettlement();
    error TransferFailed();

    /// `collectorData` is `abi.encode(uint256 validAfter, uint256 validBefore, uint256 salt, bytes signature)`.
    function collect(address payer, address token, uint256 amount, bytes32 channelId, bytes calldata collectorData)
        external
    {
        if (msg.sender != SETTLEMENT) revert OnlySettlement();
        (uint256 validAfter, uint256 validBefore, uint256 salt, bytes memory signature) =
            abi.decode(collectorData, (uint256, uint256, uint256, bytes));
        bytes32 nonce = keccak256(abi.encode(channelId, salt));
        IERC3009(token)
            .receiveWithAuthorization(payer, address(this), amount, validAfter, validBefore, nonce, signature);
        if (!IERC20(token).transfer(SETTLEMENT, amount)) revert TransferFailed();
    }
}
