//! The accounts of the chain at one moment, cheap to keep one of for every block.
//!
//! Promises that a clone shares everything until one side writes. Knows nothing of blocks or transactions.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use alloy::primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256};
use revm::DatabaseRef;
use revm::bytecode::Bytecode;
use revm::state::{AccountInfo, EvmState};

use super::chain::Blocks;

/// Into how many maps an account's storage is split, so that a block copies only the slots' neighbours it writes.
const STORAGE_SHARDS: usize = 64;

/// All accounts.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    accounts: HashMap<Address, Arc<Account>>,
}

#[derive(Clone, Debug, Default)]
struct Account {
    info: AccountInfo,
    /// Empty until the first write, then [`STORAGE_SHARDS`] maps.
    storage: Vec<Arc<HashMap<U256, U256>>>,
}

impl State {
    pub(super) fn balance(&self, address: Address) -> U256 {
        self.accounts.get(&address).map_or(U256::ZERO, |account| account.info.balance)
    }

    pub(super) fn nonce(&self, address: Address) -> u64 {
        self.accounts.get(&address).map_or(0, |account| account.info.nonce)
    }

    pub(super) fn code(&self, address: Address) -> Bytes {
        self.accounts
            .get(&address)
            .and_then(|account| account.info.code.as_ref())
            .map_or_else(Bytes::new, Bytecode::original_bytes)
    }

    pub(super) fn slot(&self, address: Address, key: U256) -> U256 {
        self.accounts.get(&address).map_or(U256::ZERO, |account| account.slot(key))
    }

    pub(super) fn set_balance(&mut self, address: Address, balance: U256) {
        self.account(address).info.balance = balance;
    }

    pub(super) fn set_nonce(&mut self, address: Address, nonce: u64) {
        self.account(address).info.nonce = nonce;
    }

    /// Installs runtime code. Storage and balance stay.
    ///
    /// # Errors
    /// Returns the reason when the bytes are not code the EVM can hold.
    pub(super) fn set_code(&mut self, address: Address, code: Bytes) -> Result<(), String> {
        let info = &mut self.account(address).info;
        if code.is_empty() {
            info.code_hash = KECCAK256_EMPTY;
            info.code = Some(Bytecode::default());
        } else {
            let code = Bytecode::new_raw_checked(code).map_err(|error| error.to_string())?;
            info.code_hash = code.hash_slow();
            info.code = Some(code);
        }
        Ok(())
    }

    pub(super) fn set_slot(&mut self, address: Address, key: U256, value: U256) {
        self.account(address).set_slot(key, value);
    }

    /// Applies what a transaction changed.
    pub(super) fn commit(&mut self, changes: EvmState) {
        for (address, changed) in changes {
            if !changed.is_touched() {
                continue;
            }
            // EIP-161: an account without code, nonce and balance does not exist.
            if changed.is_selfdestructed() || changed.info.is_empty() {
                self.accounts.remove(&address);
                continue;
            }
            let fresh = changed.is_created();
            let account = self.account(address);
            if fresh {
                account.storage.clear();
            }
            let code = changed.info.code.clone().or_else(|| account.info.code.take());
            account.info = changed.info;
            account.info.code = code;
            for (key, slot) in changed.storage {
                if slot.is_changed() {
                    account.set_slot(key, slot.present_value());
                }
            }
        }
    }

    /// Applies only what changed at one address: a development control must not leave traces elsewhere.
    pub(super) fn commit_only(&mut self, address: Address, mut changes: EvmState) {
        changes.retain(|changed, _| *changed == address);
        self.commit(changes);
    }

    fn account(&mut self, address: Address) -> &mut Account {
        Arc::make_mut(self.accounts.entry(address).or_default())
    }
}

impl Account {
    fn slot(&self, key: U256) -> U256 {
        self.storage.get(shard(key)).and_then(|shard| shard.get(&key)).copied().unwrap_or_default()
    }

    fn set_slot(&mut self, key: U256, value: U256) {
        if self.storage.is_empty() {
            self.storage.resize_with(STORAGE_SHARDS, Arc::default);
        }
        let shard = self.storage.get_mut(shard(key)).expect("the shard index is below the number of shards");
        let shard = Arc::make_mut(shard);
        if value.is_zero() {
            shard.remove(&key);
        } else {
            shard.insert(key, value);
        }
    }
}

fn shard(key: U256) -> usize {
    usize::from(key.byte(0)) % STORAGE_SHARDS
}

/// A state as the EVM reads it, with the hashes of the blocks before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) state: &'a State,
    pub(super) blocks: &'a Blocks,
}

impl DatabaseRef for View<'_> {
    type Error = Infallible;

    fn basic_ref(&self, address: Address) -> Result<Option<AccountInfo>, Infallible> {
        Ok(self.state.accounts.get(&address).map(|account| account.info.clone()))
    }

    fn code_by_hash_ref(&self, _code_hash: B256) -> Result<Bytecode, Infallible> {
        // Accounts always come with their code, so the EVM never has to ask for it by hash.
        Ok(Bytecode::default())
    }

    fn storage_ref(&self, address: Address, key: U256) -> Result<U256, Infallible> {
        Ok(self.state.slot(address, key))
    }

    fn block_hash_ref(&self, number: u64) -> Result<B256, Infallible> {
        Ok(self.blocks.at(number).map_or(B256::ZERO, |block| block.hash()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_keeps_what_it_saw() {
        let who = Address::repeat_byte(1);
        let mut now = State::default();
        now.set_slot(who, U256::from(7), U256::from(1));
        now.set_balance(who, U256::from(5));
        let before = now.clone();
        now.set_slot(who, U256::from(7), U256::from(2));
        now.set_slot(who, U256::from(8), U256::from(3));
        now.set_balance(who, U256::ZERO);
        assert_eq!(before.slot(who, U256::from(7)), U256::from(1));
        assert_eq!(before.slot(who, U256::from(8)), U256::ZERO);
        assert_eq!(before.balance(who), U256::from(5));
        assert_eq!(now.slot(who, U256::from(7)), U256::from(2));
    }
}
