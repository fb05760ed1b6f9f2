// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

// FOR DEVELOPMENT CHAINS ONLY; production uses the canonical, audited deployments.

import {IERC1271} from "./Interfaces.sol";

/// The strict signature rules all stand-ins share: 65 bytes, low s (EIP-2), v of 27 or 28, and ERC-1271 for accounts
/// with code, a delegated account (EIP-7702) included.
library Signatures {
    error ECDSAInvalidSignature();
    error ECDSAInvalidSignatureLength(uint256 length);
    error ECDSAInvalidSignatureS(bytes32 s);

    uint256 private constant HALF_ORDER = 0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;

    enum Fault {
        None,
        Length,
        HighS,
        Unrecoverable
    }

    /// The signer, or a revert that says what is wrong with the signature.
    function recover(bytes32 digest, bytes calldata signature) internal pure returns (address) {
        (address signer, Fault fault, bytes32 s) = _tryRecover(digest, signature);
        if (fault == Fault.Length) revert ECDSAInvalidSignatureLength(signature.length);
        if (fault == Fault.HighS) revert ECDSAInvalidSignatureS(s);
        if (fault == Fault.Unrecoverable) revert ECDSAInvalidSignature();
        return signer;
    }

    /// Whether `account`, a key or a contract, stands behind `signature` at this moment.
    function isValidNow(address account, bytes32 digest, bytes calldata signature) internal view returns (bool) {
        if (account.code.length == 0) {
            (address signer, Fault fault,) = _tryRecover(digest, signature);
            return fault == Fault.None && signer == account;
        }
        (bool ok, bytes memory answer) =
            account.staticcall(abi.encodeCall(IERC1271.isValidSignature, (digest, signature)));
        return ok && answer.length >= 32 && bytes32(answer) == bytes32(IERC1271.isValidSignature.selector);
    }

    function _tryRecover(bytes32 digest, bytes calldata signature) private pure returns (address, Fault, bytes32) {
        if (signature.length != 65) return (address(0), Fault.Length, 0);
        bytes32 r = bytes32(signature[0:32]);
        bytes32 s = bytes32(signature[32:64]);
        if (uint256(s) > HALF_ORDER) return (address(0), Fault.HighS, s);
        // The precompile answers zero for any v but 27 and 28.
        address signer = ecrecover(digest, uint8(signature[64]), r, s);
        return (signer, signer == address(0) ? Fault.Unrecoverable : Fault.None, s);
    }
}
