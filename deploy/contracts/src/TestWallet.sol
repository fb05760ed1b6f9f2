// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

// FOR DEVELOPMENT CHAINS ONLY: whoever calls `init` first owns it. Production wallets are somebody else's product.

import {Signatures} from "./Signatures.sol";

/// The smallest contract account that can pay: one key owns it, and it vouches for that key's signatures by ERC-1271.
contract TestWallet {
    error AlreadyInitialized();
    error NotOwner();

    address public owner;

    function init(address newOwner) external {
        if (owner != address(0)) revert AlreadyInitialized();
        owner = newOwner;
    }

    function execute(address target, bytes calldata data) external payable returns (bytes memory) {
        if (msg.sender != owner) revert NotOwner();
        (bool ok, bytes memory result) = target.call{value: msg.value}(data);
        if (!ok) {
            assembly ("memory-safe") {
                revert(add(result, 0x20), mload(result))
            }
        }
        return result;
    }

    /// ERC-1271. An owner that is itself a contract is asked in turn.
    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        if (owner != address(0) && Signatures.isValidNow(owner, digest, signature)) return this.isValidSignature.selector;
        return 0xffffffff;
    }

    receive() external payable {}
}
