//! Log queries, and the filters clients poll.
//!
//! Promises bounded answers and a bounded number of filters. After a reorganisation a filter reports the replacing
//! blocks; it does not announce removed logs.

use std::collections::BTreeMap;

use alloy::primitives::B256;
use alloy::rpc::types::{BlockNumberOrTag, Filter, FilterBlockOption, Log};

use super::chain::{Blocks, Chain};
use super::rpc_types::{self, RpcError};

/// Logs one query may return.
pub(super) const MAX_LOG_RESULTS: usize = 10_000;

/// Filters that may be installed at once; one more discards the oldest.
const MAX_FILTERS: usize = 256;

#[derive(Debug)]
enum Kind {
    Blocks,
    Pending,
    Logs(Box<Filter>),
}

#[derive(Debug)]
struct Installed {
    kind: Kind,
    /// First block not reported yet.
    next_block: u64,
}

/// The installed filters.
#[derive(Debug, Default)]
pub(super) struct Filters {
    installed: BTreeMap<u64, Installed>,
    last_id: u64,
}

/// What a filter has to say.
#[derive(Debug)]
pub(super) enum Changes {
    Hashes(Vec<B256>),
    Logs(Vec<Log>),
}

impl Filters {
    pub(super) fn install_blocks(&mut self, chain: &Chain) -> u64 {
        self.install(Kind::Blocks, chain)
    }

    pub(super) fn install_pending(&mut self, chain: &Chain) -> u64 {
        self.install(Kind::Pending, chain)
    }

    pub(super) fn install_logs(&mut self, filter: Filter, chain: &Chain) -> u64 {
        self.install(Kind::Logs(Box::new(filter)), chain)
    }

    fn install(&mut self, kind: Kind, chain: &Chain) -> u64 {
        self.last_id += 1;
        self.installed.insert(self.last_id, Installed { kind, next_block: chain.head().number() + 1 });
        while self.installed.len() > MAX_FILTERS {
            self.installed.pop_first();
        }
        self.last_id
    }

    pub(super) fn uninstall(&mut self, id: u64) -> bool {
        self.installed.remove(&id).is_some()
    }

    /// Everything since the last poll.
    pub(super) fn changes(&mut self, id: u64, chain: &mut Chain) -> Result<Changes, RpcError> {
        if let Some(replaced) = chain.take_replaced() {
            for filter in self.installed.values_mut() {
                filter.next_block = filter.next_block.min(replaced);
            }
        }
        let filter = self.installed.get_mut(&id).ok_or_else(|| RpcError::server("filter not found"))?;
        let head = chain.head().number();
        let from = filter.next_block;
        let changes = match &filter.kind {
            Kind::Blocks => Changes::Hashes(
                (from..=head).filter_map(|number| chain.blocks().at(number)).map(|block| block.hash()).collect(),
            ),
            Kind::Pending => Changes::Hashes(chain.pool().hashes().collect()),
            Kind::Logs(logs) => Changes::Logs(in_range(logs, chain.blocks(), from, head)?),
        };
        filter.next_block = head + 1;
        Ok(changes)
    }

    /// All logs of a log filter's own range.
    pub(super) fn logs(&self, id: u64, chain: &Chain) -> Result<Vec<Log>, RpcError> {
        match self.installed.get(&id).map(|filter| &filter.kind) {
            Some(Kind::Logs(filter)) => query(filter, chain),
            _ => Err(RpcError::server("filter not found")),
        }
    }
}

/// Answers `eth_getLogs`.
pub(super) fn query(filter: &Filter, chain: &Chain) -> Result<Vec<Log>, RpcError> {
    let head = chain.head().number();
    let number = |tag: Option<BlockNumberOrTag>| match tag {
        None | Some(BlockNumberOrTag::Latest | BlockNumberOrTag::Pending) => head,
        Some(BlockNumberOrTag::Earliest) => 0,
        Some(BlockNumberOrTag::Safe | BlockNumberOrTag::Finalized) => chain.finalized(),
        Some(BlockNumberOrTag::Number(number)) => number,
    };
    match filter.block_option {
        FilterBlockOption::AtBlockHash(hash) => {
            let block = chain.block_by_hash(hash).ok_or_else(|| RpcError::server("unknown block"))?;
            in_range(filter, chain.blocks(), block.number(), block.number())
        }
        FilterBlockOption::Range { from_block, to_block } => {
            let (from, to) = (number(from_block), number(to_block));
            if from > to {
                return Err(RpcError::invalid_params("invalid block range params"));
            }
            in_range(filter, chain.blocks(), from, to)
        }
    }
}

fn in_range(filter: &Filter, blocks: &Blocks, from: u64, to: u64) -> Result<Vec<Log>, RpcError> {
    let mut found = Vec::new();
    let kept = from.max(blocks.first())..=to.min(blocks.head().number());
    for block in kept.filter_map(|number| blocks.at(number)) {
        if !filter.matches_bloom(block.header.logs_bloom) {
            continue;
        }
        for (index, mined) in block.txs.iter().enumerate() {
            if !mined.logs().iter().any(|log| filter.matches(log)) {
                continue;
            }
            found.extend(rpc_types::logs(block, index, mined).into_iter().filter(|log| filter.matches(&log.inner)));
            if found.len() > MAX_LOG_RESULTS {
                return Err(RpcError::limit(format!("query returned more than {MAX_LOG_RESULTS} results")));
            }
        }
    }
    Ok(found)
}
