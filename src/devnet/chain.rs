//! Blocks, and every rule by which they come and go.
//!
//! Owns the canonical chain, the state after each recent block, the waiting transactions, the clock and the snapshots.
//! Promises that each block's header commits to its parent, transactions and receipts, and that reading has no side
//! effects. Does no I/O and does not know JSON. There is no state trie: a header's state root only tells blocks apart.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use alloy::consensus::constants::{EMPTY_OMMER_ROOT_HASH, EMPTY_WITHDRAWALS};
use alloy::consensus::proofs::{calculate_receipt_root, calculate_transaction_root};
use alloy::consensus::transaction::Recovered;
use alloy::consensus::{Header, Receipt, ReceiptEnvelope, Sealable as _, Sealed, Transaction as _, TxEnvelope};
use alloy::eips::eip1559::BaseFeeParams;
use alloy::eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy::primitives::{Address, B256, Bloom, Bytes, Log, U256, keccak256};
use revm::context::BlockEnv;
use revm::context::result::{ExecutionResult, ResultAndState};

use super::Mining;
use super::execute::{self, Estimate, ExecuteError, Rules};
use super::genesis;
use super::pool::{Pool, PoolError};
use super::state::{State, View};

/// Blocks whose state can still be read, and so the deepest reorganisation.
pub(super) const STATE_HISTORY: usize = 1_024;

/// Blocks whose header, transactions and logs are kept.
const BLOCK_HISTORY: usize = 100_000;

/// Snapshots kept; taking one more discards the oldest.
const MAX_SNAPSHOTS: usize = 64;

/// Blocks one control call may mine.
pub(super) const MAX_BLOCKS_AT_ONCE: u64 = 10_000;

/// Gas a block may use.
const BLOCK_GAS_LIMIT: u64 = 60_000_000;

/// Wei per gas the base fee starts at, and never falls below: the order of magnitude of an L2.
const GENESIS_BASE_FEE: u64 = 10_000_000;
const MIN_BASE_FEE: u64 = 1_000_000;

/// A transaction in a block, with what its receipt says.
#[derive(Debug)]
pub(super) struct MinedTx {
    pub(super) tx: Arc<Recovered<TxEnvelope>>,
    pub(super) receipt: ReceiptEnvelope,
    pub(super) gas_used: u64,
    pub(super) effective_gas_price: u128,
    pub(super) created: Option<Address>,
    /// Logs of the block before this transaction's.
    pub(super) first_log: usize,
}

impl MinedTx {
    pub(super) fn logs(&self) -> &[Log] {
        self.receipt.logs()
    }
}

/// A sealed block.
#[derive(Debug)]
pub(super) struct Mined {
    pub(super) header: Sealed<Header>,
    pub(super) txs: Vec<MinedTx>,
}

impl Mined {
    pub(super) fn hash(&self) -> B256 {
        self.header.hash()
    }

    pub(super) fn number(&self) -> u64 {
        self.header.number
    }

    pub(super) fn base_fee(&self) -> u64 {
        self.header.base_fee_per_gas.unwrap_or_default()
    }
}

/// The canonical chain, oldest kept block first. Never empty.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    kept: VecDeque<Arc<Mined>>,
}

impl Blocks {
    pub(super) fn head(&self) -> &Arc<Mined> {
        self.kept.back().expect("genesis is never removed without a successor")
    }

    pub(super) fn first(&self) -> u64 {
        self.kept.front().map_or(0, |block| block.number())
    }

    pub(super) fn at(&self, number: u64) -> Option<&Arc<Mined>> {
        let index = usize::try_from(number.checked_sub(self.first())?).ok()?;
        self.kept.get(index)
    }
}

/// A place to read from: a block, or the one that would be mined now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    Mined(u64),
    Pending,
}

/// A state to read and the block it belongs to.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub(super) state: Arc<State>,
    pub(super) env: BlockEnv,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ChainError {
    #[error("historical state of block {0} is not available")]
    StateNotKept(u64),
    #[error("a chain of {head} blocks cannot be reorganised {depth} deep (at most {STATE_HISTORY})")]
    TooDeep { depth: u64, head: u64 },
    #[error("timestamp {asked} is lower than the previous block's timestamp {parent}")]
    TimestampTooLow { asked: u64, parent: u64 },
    #[error("exceeds block gas limit")]
    GasLimit,
    #[error("max priority fee per gas higher than max fee per gas")]
    TipAboveCap,
    #[error("invalid chain id for signer: have {have} want {want}")]
    WrongChain { have: u64, want: u64 },
    #[error("only replay-protected (EIP-155) transactions allowed over RPC")]
    Unprotected,
    #[error("transaction type not supported")]
    UnsupportedType,
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    #[error("cannot mine more than {MAX_BLOCKS_AT_ONCE} blocks at once")]
    TooManyBlocks,
    #[error("{0}")]
    Code(String),
    #[error("the devnet's own call failed: {0:?}")]
    OwnCall(ExecutionResult),
}

/// Everything a snapshot brings back.
#[derive(Clone, Debug)]
struct Core {
    /// After the head block and after every control applied since.
    state: Arc<State>,
    /// After each earlier block, newest last, ending with the head's parent.
    history: VecDeque<Arc<State>>,
    blocks: Blocks,
    /// Where each transaction is.
    index: HashMap<B256, (u64, usize)>,
    pool: Pool,
    /// Seconds the chain's clock is ahead of the machine's.
    clock_ahead: i64,
    next_timestamp: Option<u64>,
    next_base_fee: Option<u64>,
}

/// A block that was worked out but not attached.
struct Assembled {
    header: Header,
    txs: Vec<MinedTx>,
    /// Shared with the head until the first transaction.
    state: Arc<State>,
    /// Transactions that can no longer run, and why.
    unusable: Vec<(B256, ExecuteError)>,
    /// Logs so far.
    logs: usize,
}

impl Assembled {
    /// Appends a transaction that ran.
    fn push(&mut self, tx: Arc<Recovered<TxEnvelope>>, outcome: ResultAndState) {
        let ResultAndState { result, state } = outcome;
        Arc::make_mut(&mut self.state).commit(state);
        let gas_used = result.tx_gas_used();
        self.header.gas_used += gas_used;
        let created = result.created_address();
        let receipt = Receipt {
            status: result.is_success().into(),
            cumulative_gas_used: self.header.gas_used,
            logs: if result.is_success() { result.into_logs() } else { Vec::new() },
        };
        let emitted = receipt.logs.len();
        let receipt = ReceiptEnvelope::from_typed(tx.tx_type(), receipt.with_bloom());
        self.header.logs_bloom |= *receipt.logs_bloom();
        self.txs.push(MinedTx {
            effective_gas_price: tx.effective_gas_price(self.header.base_fee_per_gas),
            tx,
            receipt,
            gas_used,
            created,
            first_log: self.logs,
        });
        self.logs += emitted;
    }
}

/// The chain.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) chain_id: u64,
    pub(super) mining: Mining,
    pub(super) finality_depth: u64,
    core: Core,
    snapshots: BTreeMap<u64, Core>,
    next_snapshot: u64,
    /// Counts reorganisations and reverts, so that a replacement block never has the hash of the one it replaces.
    fork: u64,
    /// Lowest block replaced since a reader last asked, for the log filters.
    replaced_from: Option<u64>,
}

impl Chain {
    pub(super) fn new(chain_id: u64, mining: Mining, genesis_time: Option<u64>, finality_depth: u64) -> Self {
        let now = machine_time();
        let genesis_time = genesis_time.unwrap_or(now);
        let mut state = State::default();
        for (address, code) in genesis::contracts() {
            state.set_code(address, code).expect("the stand-in contracts are valid code");
            state.set_nonce(address, 1);
        }
        for signer in genesis::dev_signers() {
            state.set_balance(signer.address(), genesis::DEV_BALANCE);
        }
        let header = Header {
            gas_limit: BLOCK_GAS_LIMIT,
            timestamp: genesis_time,
            base_fee_per_gas: Some(GENESIS_BASE_FEE),
            ..empty_header()
        };
        let genesis = Arc::new(Mined { header: header.seal_slow(), txs: Vec::new() });
        let clock_ahead = i64::try_from(i128::from(genesis_time) - i128::from(now)).unwrap_or_default();
        Self {
            chain_id,
            mining,
            finality_depth,
            core: Core {
                state: Arc::new(state),
                history: VecDeque::new(),
                blocks: Blocks { kept: VecDeque::from([genesis]) },
                index: HashMap::new(),
                pool: Pool::default(),
                clock_ahead,
                next_timestamp: None,
                next_base_fee: None,
            },
            snapshots: BTreeMap::new(),
            next_snapshot: 1,
            fork: 0,
            replaced_from: None,
        }
    }

    // ---- reading

    pub(super) fn head(&self) -> &Arc<Mined> {
        self.core.blocks.head()
    }

    pub(super) fn blocks(&self) -> &Blocks {
        &self.core.blocks
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.core.pool
    }

    pub(super) fn state(&self) -> &State {
        &self.core.state
    }

    pub(super) fn block_by_hash(&self, hash: B256) -> Option<&Arc<Mined>> {
        // Newest first: that is what is asked for.
        self.core.blocks.kept.iter().rev().find(|block| block.hash() == hash)
    }

    pub(super) fn find_tx(&self, hash: B256) -> Option<(&Arc<Mined>, usize)> {
        let (number, index) = *self.core.index.get(&hash)?;
        Some((self.core.blocks.at(number)?, index))
    }

    pub(super) fn finalized(&self) -> u64 {
        self.head().number().saturating_sub(self.finality_depth)
    }

    /// Base fee of the next block.
    pub(super) fn next_base_fee(&self) -> u64 {
        self.core.next_base_fee.unwrap_or_else(|| base_fee_after(self.head()))
    }

    /// The state at `point`, and the block a call there sees.
    ///
    /// A call at the head of a chain that mines on demand sees the clock's time, not the last block's: such a chain
    /// stands still between transactions, and a simulation must see the time the transaction itself would see.
    pub(super) fn moment(&self, point: Point) -> Result<Moment, ChainError> {
        let head = self.head();
        match point {
            Point::Pending => {
                let pending = self.assemble(true);
                Ok(Moment { env: execute::block_env(&pending.header), state: pending.state })
            }
            Point::Mined(number) if number == head.number() => {
                let mut env = execute::block_env(&head.header);
                if self.mining == Mining::OnDemand {
                    env.timestamp = env.timestamp.max(U256::from(self.clock()));
                }
                Ok(Moment { env, state: self.core.state.clone() })
            }
            Point::Mined(number) => {
                let behind = head.number().checked_sub(number).ok_or(ChainError::StateNotKept(number))?;
                let state = usize::try_from(behind)
                    .ok()
                    .and_then(|behind| self.core.history.len().checked_sub(behind))
                    .and_then(|index| self.core.history.get(index))
                    .ok_or(ChainError::StateNotKept(number))?;
                let block = self.core.blocks.at(number).ok_or(ChainError::StateNotKept(number))?;
                Ok(Moment { env: execute::block_env(&block.header), state: state.clone() })
            }
        }
    }

    pub(super) fn call(&self, at: &Moment, tx: revm::context::TxEnv) -> Result<ExecutionResult, ExecuteError> {
        let view = View { state: &at.state, blocks: &self.core.blocks };
        execute::transact(view, self.chain_id, at.env.clone(), tx, Rules::Call).map(|outcome| outcome.result)
    }

    pub(super) fn estimate(&self, at: &Moment, tx: &revm::context::TxEnv) -> Result<Estimate, ExecuteError> {
        let view = View { state: &at.state, blocks: &self.core.blocks };
        execute::estimate(view, self.chain_id, &at.env, tx)
    }

    /// The block that would be mined now.
    pub(super) fn pending_block(&self) -> Mined {
        let pending = self.assemble(true);
        Mined { header: pending.header.seal_slow(), txs: pending.txs }
    }

    /// The lowest block replaced since this was last asked.
    pub(super) fn take_replaced(&mut self) -> Option<u64> {
        self.replaced_from.take()
    }

    // ---- transactions

    /// Takes a signed transaction, and mines it at once when blocks come on demand.
    pub(super) fn submit(&mut self, tx: Recovered<TxEnvelope>) -> Result<B256, ChainError> {
        let hash = *tx.tx_hash();
        if tx.is_eip4844() {
            return Err(ChainError::UnsupportedType);
        }
        match tx.chain_id() {
            None => return Err(ChainError::Unprotected),
            Some(have) if have != self.chain_id => return Err(ChainError::WrongChain { have, want: self.chain_id }),
            Some(_) => {}
        }
        if tx.gas_limit() > BLOCK_GAS_LIMIT {
            return Err(ChainError::GasLimit);
        }
        if tx.max_priority_fee_per_gas().is_some_and(|tip| tip > tx.max_fee_per_gas()) {
            return Err(ChainError::TipAboveCap);
        }
        if self.core.index.contains_key(&hash) {
            return Err(PoolError::AlreadyKnown.into());
        }
        execute::require_intrinsic_gas(&execute::signed_env(&tx))?;
        self.core.pool.insert(tx, &self.core.state)?;
        match self.mine_if_on_demand().into_iter().find(|(unusable, _)| *unusable == hash) {
            Some((_, error)) => Err(error.into()),
            None => Ok(hash),
        }
    }

    pub(super) fn drop_transaction(&mut self, hash: B256) -> bool {
        self.core.pool.remove(hash)
    }

    // ---- mining

    pub(super) fn set_mining(&mut self, mining: Mining) {
        self.mining = mining;
        self.mine_if_on_demand();
    }

    /// Mines one block with every transaction that is ready.
    pub(super) fn mine(&mut self) -> Arc<Mined> {
        let assembled = self.assemble(true);
        self.attach(assembled)
    }

    /// Mines `count` blocks, `interval_secs` apart when that is given.
    pub(super) fn mine_many(&mut self, count: u64, interval_secs: Option<u64>) -> Result<(), ChainError> {
        if count > MAX_BLOCKS_AT_ONCE {
            return Err(ChainError::TooManyBlocks);
        }
        for nth in 0..count {
            if let (Some(interval), true) = (interval_secs, nth > 0) {
                self.increase_time(interval);
            }
            self.mine();
        }
        Ok(())
    }

    /// Mines while something is ready, if that is how blocks come about. Returns what turned out unable to run.
    fn mine_if_on_demand(&mut self) -> Vec<(B256, ExecuteError)> {
        let mut unusable = Vec::new();
        if self.mining != Mining::OnDemand {
            return unusable;
        }
        while self.core.pool.next_ready(&self.core.state, self.next_base_fee(), |_| false).is_some() {
            let mut block = self.assemble(true);
            for (hash, error) in std::mem::take(&mut block.unusable) {
                self.core.pool.remove(hash);
                unusable.push((hash, error));
            }
            if !block.txs.is_empty() {
                self.attach(block);
            }
        }
        unusable
    }

    /// Works out the next block: with the transactions that are ready, or empty.
    fn assemble(&self, with_pool: bool) -> Assembled {
        let parent = self.head();
        let number = parent.number() + 1;
        let mut block = Assembled {
            header: Header {
                parent_hash: parent.hash(),
                number,
                gas_limit: BLOCK_GAS_LIMIT,
                timestamp: self.next_timestamp(),
                base_fee_per_gas: Some(self.next_base_fee()),
                mix_hash: keccak256([number.to_be_bytes(), self.fork.to_be_bytes()].concat()),
                ..empty_header()
            },
            txs: Vec::new(),
            state: self.core.state.clone(),
            unusable: Vec::new(),
            logs: 0,
        };
        if with_pool {
            self.fill(&mut block);
        }
        let envelopes: Vec<&TxEnvelope> = block.txs.iter().map(|mined| mined.tx.inner()).collect();
        let receipts: Vec<ReceiptEnvelope> = block.txs.iter().map(|mined| mined.receipt.clone()).collect();
        let header = &mut block.header;
        header.transactions_root = calculate_transaction_root(&envelopes);
        header.receipts_root = calculate_receipt_root(&receipts);
        header.state_root =
            keccak256([parent.header.state_root, header.transactions_root, header.receipts_root].concat());
        block
    }

    /// Runs waiting transactions in order of arrival until none is ready or the next one does not fit.
    fn fill(&self, block: &mut Assembled) {
        let env = execute::block_env(&block.header);
        loop {
            let skip = |hash: &B256| block.unusable.iter().any(|(unusable, _)| unusable == hash);
            let Some(tx) = self.core.pool.next_ready(&block.state, env.basefee, skip).cloned() else { return };
            if block.header.gas_used.saturating_add(tx.gas_limit()) > block.header.gas_limit {
                return;
            }
            let view = View { state: &block.state, blocks: &self.core.blocks };
            let run = execute::transact(view, self.chain_id, env.clone(), execute::signed_env(&tx), Rules::Transaction);
            match run {
                Ok(outcome) => block.push(tx, outcome),
                Err(error) => block.unusable.push((*tx.tx_hash(), error)),
            }
        }
    }

    fn attach(&mut self, assembled: Assembled) -> Arc<Mined> {
        let Assembled { header, txs, state, unusable, logs: _ } = assembled;
        let block = Arc::new(Mined { header: header.seal_slow(), txs });
        let core = &mut self.core;
        if core.next_timestamp.take().is_some() {
            // The clock goes on from the time that was set.
            core.clock_ahead = i64::try_from(i128::from(block.header.timestamp) - i128::from(machine_time()))
                .unwrap_or(core.clock_ahead);
        }
        core.next_base_fee = None;
        for (hash, error) in unusable {
            tracing::debug!(%error, %hash, "a waiting transaction cannot run any more");
            core.pool.remove(hash);
        }
        for (index, mined) in block.txs.iter().enumerate() {
            core.pool.remove(*mined.tx.tx_hash());
            core.index.insert(*mined.tx.tx_hash(), (block.number(), index));
        }
        core.pool.forget_used(&state);
        core.history.push_back(std::mem::replace(&mut core.state, state));
        while core.history.len() > STATE_HISTORY {
            core.history.pop_front();
        }
        core.blocks.kept.push_back(block.clone());
        while core.blocks.kept.len() > BLOCK_HISTORY {
            let oldest = core.blocks.kept.pop_front();
            for mined in oldest.iter().flat_map(|block| &block.txs) {
                core.index.remove(mined.tx.tx_hash());
            }
        }
        block
    }

    // ---- time

    /// The chain's clock, in Unix seconds.
    pub(super) fn clock(&self) -> u64 {
        machine_time().saturating_add_signed(self.core.clock_ahead)
    }

    pub(super) fn increase_time(&mut self, secs: u64) -> i64 {
        let core = &mut self.core;
        core.clock_ahead = core.clock_ahead.saturating_add(i64::try_from(secs).unwrap_or(i64::MAX));
        core.clock_ahead
    }

    pub(super) fn set_next_timestamp(&mut self, timestamp: u64) -> Result<(), ChainError> {
        let parent = self.head().header.timestamp;
        if timestamp < parent {
            return Err(ChainError::TimestampTooLow { asked: timestamp, parent });
        }
        self.core.next_timestamp = Some(timestamp);
        Ok(())
    }

    /// Never before the parent; equal to it when blocks come faster than seconds, because the chain's clock must not
    /// run ahead of the clocks its clients sign deadlines by.
    fn next_timestamp(&self) -> u64 {
        self.core.next_timestamp.unwrap_or_else(|| self.clock()).max(self.head().header.timestamp)
    }

    /// Sets the base fee of the next block, wei a unit of gas; later ones follow from it as they always do.
    pub(super) fn set_next_base_fee(&mut self, wei: u64) {
        self.core.next_base_fee = Some(wei);
        self.mine_if_on_demand();
    }

    // ---- going back

    /// Remembers everything, waiting transactions and the clock included.
    pub(super) fn snapshot(&mut self) -> u64 {
        let id = self.next_snapshot;
        self.next_snapshot += 1;
        self.snapshots.insert(id, self.core.clone());
        while self.snapshots.len() > MAX_SNAPSHOTS {
            self.snapshots.pop_first();
        }
        id
    }

    /// Returns to a snapshot and forgets it and every later one. False when there is none of that id.
    pub(super) fn revert(&mut self, id: u64) -> bool {
        let mut from_here = self.snapshots.split_off(&id);
        let Some(core) = from_here.remove(&id) else {
            self.snapshots.append(&mut from_here);
            return false;
        };
        let fork_point = core.blocks.head().number();
        self.core = core;
        self.fork += 1;
        self.note_replaced(fork_point + 1);
        true
    }

    /// Replaces the last `depth` blocks with empty ones. Their transactions are gone unless somebody sends them again.
    /// Returns the hashes of the transactions dropped, oldest first.
    pub(super) fn reorg(&mut self, depth: u64) -> Result<Vec<B256>, ChainError> {
        let head = self.head().number();
        let too_deep = ChainError::TooDeep { depth, head };
        if usize::try_from(depth).map_or(true, |depth| depth > self.core.history.len()) {
            return Err(too_deep);
        }
        let mut dropped = Vec::new();
        for _ in 0..depth {
            let core = &mut self.core;
            let Some(state) = core.history.pop_back() else { break };
            core.state = state;
            if let Some(block) = core.blocks.kept.pop_back() {
                for mined in block.txs.iter().rev() {
                    core.index.remove(mined.tx.tx_hash());
                    dropped.push(*mined.tx.tx_hash());
                }
            }
        }
        dropped.reverse();
        self.fork += 1;
        self.note_replaced(self.head().number() + 1);
        for _ in 0..depth {
            let empty = self.assemble(false);
            self.attach(empty);
        }
        Ok(dropped)
    }

    fn note_replaced(&mut self, from: u64) {
        self.replaced_from = Some(self.replaced_from.map_or(from, |earlier| earlier.min(from)));
    }

    // ---- controls that write state without a transaction

    pub(super) fn edit<T>(&mut self, change: impl FnOnce(&mut State) -> T) -> T {
        change(Arc::make_mut(&mut self.core.state))
    }

    pub(super) fn set_code(&mut self, address: Address, code: Bytes) -> Result<(), ChainError> {
        self.edit(|state| state.set_code(address, code)).map_err(ChainError::Code)
    }

    /// Calls `to` as `from`, keeps what changed in `to` itself, and leaves no block and no logs behind.
    pub(super) fn own_call(&mut self, from: Address, to: Address, data: Bytes) -> Result<(), ChainError> {
        let outcome = self.own_run(from, to, data)?;
        self.edit(|state| state.commit_only(to, outcome.state));
        Ok(())
    }

    /// Calls `to` as `from` and keeps only the answer.
    pub(super) fn own_read(&self, from: Address, to: Address, data: Bytes) -> Result<Bytes, ChainError> {
        Ok(self.own_run(from, to, data)?.result.into_output().unwrap_or_default())
    }

    fn own_run(&self, from: Address, to: Address, data: Bytes) -> Result<ResultAndState, ChainError> {
        let moment = self.moment(Point::Mined(self.head().number()))?;
        let view = View { state: &moment.state, blocks: &self.core.blocks };
        let tx = execute::internal_call(from, to, data, self.chain_id, BLOCK_GAS_LIMIT);
        let outcome = execute::transact(view, self.chain_id, moment.env.clone(), tx, Rules::Call)?;
        if outcome.result.is_success() { Ok(outcome) } else { Err(ChainError::OwnCall(outcome.result)) }
    }
}

fn base_fee_after(parent: &Mined) -> u64 {
    parent.header.next_block_base_fee(BaseFeeParams::ethereum()).unwrap_or(GENESIS_BASE_FEE).max(MIN_BASE_FEE)
}

fn empty_header() -> Header {
    Header {
        ommers_hash: EMPTY_OMMER_ROOT_HASH,
        withdrawals_root: Some(EMPTY_WITHDRAWALS),
        blob_gas_used: Some(0),
        excess_blob_gas: Some(0),
        parent_beacon_block_root: Some(B256::ZERO),
        requests_hash: Some(EMPTY_REQUESTS_HASH),
        logs_bloom: Bloom::ZERO,
        ..Header::default()
    }
}

fn machine_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> Chain {
        Chain::new(1, Mining::Manual, None, 0)
    }

    #[test]
    fn states_are_kept_for_a_bounded_number_of_blocks() {
        let mut chain = chain();
        let history = u64::try_from(STATE_HISTORY).unwrap();
        chain.mine_many(history, None).unwrap();
        assert!(chain.moment(Point::Mined(0)).is_ok());
        chain.mine();
        assert!(matches!(chain.moment(Point::Mined(0)), Err(ChainError::StateNotKept(0))));
        assert!(chain.moment(Point::Mined(1)).is_ok());
        assert!(chain.reorg(history + 1).is_err());
        chain.reorg(history).unwrap();
        assert_eq!(chain.head().number(), history + 1);
    }

    #[test]
    fn one_call_mines_a_bounded_number_of_blocks() {
        assert!(matches!(chain().mine_many(MAX_BLOCKS_AT_ONCE + 1, None), Err(ChainError::TooManyBlocks)));
    }

    #[test]
    fn the_oldest_snapshot_makes_room() {
        let mut chain = chain();
        let first = chain.snapshot();
        let second = chain.snapshot();
        for _ in 2..=MAX_SNAPSHOTS {
            chain.snapshot();
        }
        assert!(!chain.revert(first));
        assert!(chain.revert(second));
        assert!(!chain.revert(second + 1), "a revert forgets the later ones");
    }

    #[test]
    fn time_does_not_go_back_nor_run_ahead() {
        let mut chain = chain();
        let start = chain.head().header.timestamp;
        chain.mine_many(100, None).unwrap();
        let head = chain.head().header.timestamp;
        assert!((start..start + 30).contains(&head));
        chain.set_next_timestamp(head).unwrap();
        assert!(chain.set_next_timestamp(head - 1).is_err());
    }

    #[test]
    fn a_base_fee_that_was_set_is_that_of_one_block_and_of_no_block_that_is_only_asked_about() {
        let mut chain = chain();
        let fees = |chain: &Chain| (chain.head().base_fee(), chain.next_base_fee());
        chain.set_next_base_fee(80_000_000_000);
        assert_eq!(chain.pending_block().base_fee(), 80_000_000_000);
        assert_eq!(fees(&chain), (GENESIS_BASE_FEE, 80_000_000_000));
        chain.mine();
        assert_eq!(fees(&chain), (80_000_000_000, 70_000_000_000), "an empty block takes an eighth away");
        // Below what the chain falls to by itself, too: it is a control.
        chain.set_next_base_fee(7);
        chain.mine();
        assert_eq!(fees(&chain), (7, MIN_BASE_FEE));
    }

    #[test]
    fn a_control_changes_the_present_not_the_past() {
        let mut chain = chain();
        let who = Address::repeat_byte(1);
        chain.edit(|state| state.set_balance(who, U256::from(1)));
        chain.mine();
        chain.edit(|state| state.set_balance(who, U256::from(2)));
        assert_eq!(chain.moment(Point::Mined(0)).unwrap().state.balance(who), U256::from(1));
        assert_eq!(chain.moment(Point::Mined(1)).unwrap().state.balance(who), U256::from(2));
        chain.reorg(1).unwrap();
        assert_eq!(chain.state().balance(who), U256::from(1));
    }
}
