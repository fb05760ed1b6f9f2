//! From what a config names to keys in memory, a connected chain and open books.

use std::path::Path;
use std::sync::Arc;

use crate::chain::{AlloyChain, Chain as _, ChainError, ChainSettings, Counting, KeyRef, RpcUrl};
use crate::config::{self, Config, KeyReference};
use crate::facilitator::{DepositTerms, FacilitatedChain, FacilitatorError, FacilitatorSettings, FacilitatorUrlError};
use crate::protocol::LocalKey;
use crate::protocol::contracts::SETTLEMENT;
use crate::store::sqlite::SqliteStore;
use crate::store::{Identity, StoreError};

use super::site::{Books, Site};
use super::{Exit, Failure, succession};

/// The addresses of a chain's nodes.
#[derive(Debug, Clone)]
pub(super) struct Nodes {
    /// The preferred one.
    pub(super) first: RpcUrl,
    /// The others, in order.
    pub(super) others: Vec<RpcUrl>,
}

impl Nodes {
    /// Reads what the config's references stand for.
    pub(super) fn of(chain: &config::Chain) -> Result<Self, NoNode> {
        let mut urls = Vec::new();
        for reference in &chain.rpc {
            urls.push(reference.resolve()?.parse::<RpcUrl>()?);
        }
        let mut urls = urls.into_iter();
        Ok(Self { first: urls.next().ok_or(NoNode::None)?, others: urls.collect() })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &RpcUrl> {
        [&self.first].into_iter().chain(&self.others)
    }

    /// Whether all of them are on this machine. Only then is the chain one for development, perhaps.
    pub(super) fn is_loopback(&self) -> bool {
        self.all().all(RpcUrl::is_loopback)
    }

    /// Connects them, with the key that pays for transactions, if there is to be one. The one place that knows how.
    pub(super) async fn open(&self, config: &Config, gas_key: Option<LocalKey>) -> Result<AlloyChain, ChainError> {
        let deposits = Counting { confirmations: config.chain.confirmations, instant: config.deposits.instant };
        let max_lag = config.chain.max_lag.limit(self.is_loopback());
        AlloyChain::open(ChainSettings { nodes: self.all().cloned().collect(), gas_key, deposits, max_lag }).await
    }
}

/// Why a node's address cannot be used. None of these repeats it.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoNode {
    #[error(transparent)]
    Reference(#[from] config::RpcReferenceError),
    #[error(transparent)]
    Url(#[from] crate::chain::RpcUrlError),
    #[error("[chain].rpc names no endpoint")]
    None,
}

impl From<NoNode> for Failure {
    fn from(error: NoNode) -> Self {
        Self::new(Exit::Config, error)
    }
}

/// Reads the key a reference stands for. `setting` names it to the operator.
pub(super) fn key(setting: &str, reference: &KeyReference, chain_is_loopback: bool) -> Result<LocalKey, Failure> {
    let failed = |error: anyhow::Error| Failure::new(Exit::Config, error.context(format!("cannot use {setting}")));
    let reference: KeyRef = reference.as_str().parse().map_err(|error| failed(anyhow::Error::new(error)))?;
    reference.load(chain_is_loopback).map_err(|error| failed(anyhow::Error::new(error)))
}

/// A connected chain, by who sends the transactions.
pub(super) enum Connection {
    /// We do, with a gas key.
    Ours(AlloyChain),
    /// A facilitator does.
    Facilitated(FacilitatedChain),
}

/// What a facilitator of the config is asked with.
pub(super) fn facilitator_settings(
    facilitator: &config::Facilitator,
) -> Result<FacilitatorSettings, FacilitatorUrlError> {
    let url = facilitator.url.to_string().parse()?;
    Ok(FacilitatorSettings { url, timeout: facilitator.timeout })
}

/// Connects the chain of a config with its gas key, if there is one, and reads the authorizer's key.
pub(super) async fn connect_chain(config: &Config) -> Result<(AlloyChain, LocalKey), Failure> {
    let nodes = Nodes::of(&config.chain)?;
    let loopback = nodes.is_loopback();
    let authorizer = key("receiver.authorizer_key", &config.receiver.authorizer_key, loopback)?;
    let gas = match config.facilitator {
        Some(_) => None,
        None => Some(key("receiver.gas_key", &config.receiver.gas_key, loopback)?),
    };
    let shown = nodes.first.to_string();
    let chain = nodes.open(config, gas).await.map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("the chain behind {shown} cannot be used"));
        Failure::new(Exit::Chain, error).hint("peaje check")
    })?;
    if chain.chain_id() != config.chain.chain_id {
        let (found, expected) = (chain.chain_id(), config.chain.chain_id);
        let message = format!("the node behind {shown} is on chain {found}, the config says {expected}");
        return Err(Failure::message(Exit::Chain, message).hint("peaje check"));
    }
    Ok((chain, authorizer))
}

/// The same, with the facilitator in front of it, if the config names one.
pub(super) async fn connect(config: &Config) -> Result<(Connection, LocalKey), Failure> {
    let (chain, authorizer) = connect_chain(config).await?;
    let Some(facilitator) = &config.facilitator else { return Ok((Connection::Ours(chain), authorizer)) };
    let terms = config.chain.tokens().map(|token| DepositTerms {
        token: token.address,
        domain_name: token.domain_name.clone(),
        domain_version: token.domain_version.clone(),
        max_timeout_s: config.channel.max_timeout.as_secs(),
    });
    let settings = facilitator_settings(facilitator).map_err(|error| Failure::new(Exit::Config, error))?;
    let shown = settings.url.to_string();
    let chain = FacilitatedChain::open(chain, settings, terms.collect()).await.map_err(|error: FacilitatorError| {
        let error = anyhow::Error::new(error).context(format!("the facilitator {shown} cannot be used"));
        Failure::new(Exit::Chain, error).hint("peaje check")
    })?;
    Ok((Connection::Facilitated(chain), authorizer))
}

/// Opens the books of a chain in a directory, for this process alone.
pub(super) async fn open_books(directory: &Path, chain_id: u64) -> Result<Books, Failure> {
    try_open_books(directory, chain_id).await?.map_err(|error| {
        let advice = error.advice();
        Failure::new(Exit::Books, error).hint(advice)
    })
}

/// The same for whoever knows what to do where that is not possible.
pub(super) async fn try_open_books(directory: &Path, chain_id: u64) -> Result<Result<Books, StoreError>, Failure> {
    let directory = directory.to_owned();
    let identity = Identity { chain_id, settlement: SETTLEMENT };
    tokio::task::spawn_blocking(move || SqliteStore::open(&directory, identity).and_then(Books::open))
        .await
        .map_err(|error| Failure::new(Exit::Failed, error))
}

/// Opens the books of every chain, connects them, and opens a site on them: on sockets that were handed over, or on the
/// config's port.
///
/// With `take_over` another process has books and port: the chains are connected first, because one that cannot be reached
/// must not stop it. Otherwise the books come first: who has them belongs to nobody else.
pub(super) async fn open_site(config: &Config, take_over: bool) -> Result<Site, Failure> {
    let of_chains = config.of_each_chain();
    let mut listener = succession::inherited(config)?;
    let (mut books, mut connected) = (Vec::new(), Vec::new());
    if take_over {
        for config in &of_chains {
            connected.push(connect(config).await?);
        }
        if listener.is_none() {
            listener = Some(succession::beside(config).await?);
        }
        for config in &of_chains {
            books.push(succession::books_of_the_former(config).await?);
        }
    } else {
        for config in &of_chains {
            books.push(open_books(&config.store.directory, config.chain.chain_id).await?);
        }
        for config in &of_chains {
            connected.push(connect(config).await?);
        }
    }
    let (mut ours, mut facilitated, mut key) = (Vec::new(), Vec::new(), None);
    for ((chain, authorizer), books) in connected.into_iter().zip(books) {
        key.get_or_insert(authorizer);
        match chain {
            Connection::Ours(chain) => ours.push((Arc::new(chain), books)),
            Connection::Facilitated(chain) => facilitated.push((Arc::new(chain), books)),
        }
    }
    let authorizer = key.ok_or_else(|| Failure::message(Exit::Config, "the config names no chain"))?;
    // A facilitator is named for all chains or for none.
    let site = match (first_of(ours), first_of(facilitated)) {
        (Some((first, others)), _) => Site::open_on_all(listener, config, authorizer, first, others).await,
        (None, Some((first, others))) => Site::open_on_all(listener, config, authorizer, first, others).await,
        (None, None) => return Err(Failure::message(Exit::Config, "the config names no chain")),
    };
    site.map_err(|error| Failure::new(Exit::Failed, error))
}

fn first_of<T>(all: Vec<T>) -> Option<(T, Vec<T>)> {
    let mut all = all.into_iter();
    Some((all.next()?, all.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(rpc: &str) -> Result<Nodes, NoNode> {
        let text = include_str!("../../config.example.toml").replace("\"env:PEAJE_RPC\"", rpc);
        Nodes::of(&Config::parse(&text, "c.toml").unwrap().chain)
    }

    #[test]
    fn a_chain_is_of_this_machine_if_all_its_nodes_are() {
        let (here, there) = ("\"http://127.0.0.1:8545\"", "\"https://node.example/s3cret\"");
        for (rpc, loopback) in [
            (here.to_owned(), true),
            (there.to_owned(), false),
            (format!("[{here}, \"http://localhost:1\"]"), true),
            (format!("[{here}, {there}]"), false),
        ] {
            assert_eq!(nodes(&rpc).unwrap().is_loopback(), loopback, "{rpc}");
        }
    }

    #[test]
    fn the_preferred_node_is_the_first_and_each_must_be_known() {
        let both = nodes("[\"https://b.example\", \"https://a.example\"]").unwrap();
        assert_eq!(
            both.all().map(ToString::to_string).collect::<Vec<_>>(),
            ["https://b.example/", "https://a.example/"]
        );
        let unset = nodes("[\"https://b.example\", \"env:PEAJE_TEST_NEVER_SET\"]");
        assert!(matches!(unset, Err(NoNode::Reference(_))));
    }
}
