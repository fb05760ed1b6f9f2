//! Transactions that wait for a block.
//!
//! Promises one transaction a nonce, standard refusals, and a bound on how many wait. Does not execute anything.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use alloy::consensus::transaction::Recovered;
use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::primitives::{Address, B256, U256};

use super::state::State;

/// Transactions that may wait at once.
pub(super) const MAX_PENDING: usize = 8_192;

/// By how much both fees of a replacement must exceed the fees it replaces, in percent.
const REPLACEMENT_BUMP_PERCENT: u128 = 10;

/// Why a transaction was not taken. The wording is that of public nodes: clients match on it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum PoolError {
    #[error("already known")]
    AlreadyKnown,
    #[error("nonce too low: next nonce {next}, tx nonce {nonce}")]
    NonceTooLow { next: u64, nonce: u64 },
    #[error("replacement transaction underpriced")]
    ReplacementUnderpriced,
    #[error("insufficient funds for gas * price + value: balance {balance}, tx cost {cost}")]
    InsufficientFunds { balance: U256, cost: U256 },
    #[error("txpool is full")]
    Full,
}

#[derive(Clone, Debug)]
struct Waiting {
    tx: Arc<Recovered<TxEnvelope>>,
    /// Order of arrival, which is the order across senders.
    arrival: u64,
}

/// The waiting transactions, by sender and nonce.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    senders: HashMap<Address, BTreeMap<u64, Waiting>>,
    hashes: HashMap<B256, (Address, u64)>,
    arrivals: u64,
}

impl Pool {
    pub(super) fn get(&self, hash: B256) -> Option<&Arc<Recovered<TxEnvelope>>> {
        let (sender, nonce) = self.hashes.get(&hash)?;
        Some(&self.senders.get(sender)?.get(nonce)?.tx)
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = B256> {
        let mut waiting: Vec<_> = self.senders.values().flat_map(BTreeMap::values).collect();
        waiting.sort_by_key(|waiting| waiting.arrival);
        waiting.into_iter().map(|waiting| *waiting.tx.tx_hash())
    }

    /// Takes a transaction in, or replaces one of the same nonce that pays clearly less.
    pub(super) fn insert(&mut self, tx: Recovered<TxEnvelope>, state: &State) -> Result<(), PoolError> {
        let (hash, sender, nonce) = (*tx.tx_hash(), tx.signer(), tx.nonce());
        if self.hashes.contains_key(&hash) {
            return Err(PoolError::AlreadyKnown);
        }
        let next = state.nonce(sender);
        if nonce < next {
            return Err(PoolError::NonceTooLow { next, nonce });
        }
        let cost =
            U256::from(tx.max_fee_per_gas()).saturating_mul(U256::from(tx.gas_limit())).saturating_add(tx.value());
        let balance = state.balance(sender);
        if cost > balance {
            return Err(PoolError::InsufficientFunds { balance, cost });
        }
        let replaced = self.senders.get(&sender).and_then(|waiting| waiting.get(&nonce));
        if let Some(replaced) = replaced {
            if !outbids(&tx, &replaced.tx) {
                return Err(PoolError::ReplacementUnderpriced);
            }
        } else if self.hashes.len() >= MAX_PENDING {
            return Err(PoolError::Full);
        }
        let arrival = self.arrivals;
        self.arrivals += 1;
        let old = self.senders.entry(sender).or_default().insert(nonce, Waiting { tx: Arc::new(tx), arrival });
        if let Some(old) = old {
            self.hashes.remove(old.tx.tx_hash());
        }
        self.hashes.insert(hash, (sender, nonce));
        Ok(())
    }

    pub(super) fn remove(&mut self, hash: B256) -> bool {
        let Some((sender, nonce)) = self.hashes.remove(&hash) else { return false };
        if let Some(waiting) = self.senders.get_mut(&sender) {
            waiting.remove(&nonce);
            if waiting.is_empty() {
                self.senders.remove(&sender);
            }
        }
        true
    }

    /// Drops what a block has made impossible: nonces already used.
    pub(super) fn forget_used(&mut self, state: &State) {
        let Self { senders, hashes, .. } = self;
        senders.retain(|sender, waiting| {
            let usable = waiting.split_off(&state.nonce(*sender));
            for used in waiting.values() {
                hashes.remove(used.tx.tx_hash());
            }
            *waiting = usable;
            !waiting.is_empty()
        });
    }

    /// The first arrival among those whose nonce is next and whose fee covers `base_fee`, leaving out what `skip` says.
    pub(super) fn next_ready(
        &self,
        state: &State,
        base_fee: u64,
        skip: impl Fn(&B256) -> bool,
    ) -> Option<&Arc<Recovered<TxEnvelope>>> {
        self.senders
            .iter()
            .filter_map(|(sender, waiting)| waiting.get(&state.nonce(*sender)))
            .filter(|waiting| waiting.tx.max_fee_per_gas() >= u128::from(base_fee))
            .filter(|waiting| !skip(waiting.tx.tx_hash()))
            .min_by_key(|waiting| waiting.arrival)
            .map(|waiting| &waiting.tx)
    }

    /// The nonce a sender's next transaction should carry, counting the unbroken run that waits here.
    pub(super) fn next_nonce(&self, sender: Address, state: &State) -> u64 {
        let mut next = state.nonce(sender);
        if let Some(waiting) = self.senders.get(&sender) {
            while waiting.contains_key(&next) {
                next += 1;
            }
        }
        next
    }
}

fn outbids(new: &TxEnvelope, old: &TxEnvelope) -> bool {
    let enough = |new: u128, old: u128| new >= old.saturating_add(old.saturating_mul(REPLACEMENT_BUMP_PERCENT) / 100);
    let tip = |tx: &TxEnvelope| tx.max_priority_fee_per_gas().unwrap_or_else(|| tx.max_fee_per_gas());
    new.max_fee_per_gas() > old.max_fee_per_gas()
        && tip(new) > tip(old)
        && enough(new.max_fee_per_gas(), old.max_fee_per_gas())
        && enough(tip(new), tip(old))
}
