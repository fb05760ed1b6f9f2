//! A development chain inside the process: an EVM, its blocks, and a JSON-RPC listener on the loopback interface.
//!
//! Owns everything a test or `peaje dev` needs in place of a public L2: the stand-in contracts at their canonical
//! addresses, prefunded accounts, and controls over mining, time and reorganisations. Promises the JSON-RPC behaviour
//! stock clients rely on, that reads change nothing, and that nothing outside this machine can reach it.
//!
//! It does not keep anything on disk, talk to other nodes, charge an L1 data fee, hold a state trie (there are no
//! proofs), or carry blobs. It is no place for real money: every key in it is public.
//!
//! ```no_run
//! # async fn example() -> Result<(), peaje::devnet::DevnetError> {
//! use peaje::devnet::{Devnet, DevnetConfig};
//!
//! let devnet = Devnet::start(DevnetConfig::default()).await?;
//! let payer = devnet.dev_signer(1).address();
//! devnet.mint_dollars(payer, 5_000_000)?;
//! assert_eq!(devnet.dollar_balance(payer)?, 5_000_000);
//! devnet.shutdown().await;
//! # Ok(())
//! # }
//! ```

mod chain;
mod control;
mod eth;
mod execute;
mod filters;
pub mod genesis;
mod pool;
mod rpc;
mod rpc_types;
mod state;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use chain::{Chain, ChainError};
use rpc::Node;

/// How long [`Devnet::shutdown`] waits for requests in flight.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// The shortest interval between blocks.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

mod abi {
    alloy::sol! {
        function mint(address to, uint256 value) external;
        function balanceOf(address account) external view returns (uint256);
    }
}

/// How blocks come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mining {
    /// Each transaction that can run gets a block at once.
    OnDemand,
    /// One block every so often, with or without transactions. Less than 10 ms is taken as 10 ms.
    Interval(Duration),
    /// Only when asked ([`Devnet::mine`], `evm_mine`).
    Manual,
}

/// How to start a [`Devnet`].
#[derive(Clone, Debug)]
pub struct DevnetConfig {
    /// Where to listen; a loopback address. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The chain's id. The default is Base Sepolia's, 84532, so that stock clients know its USDC.
    pub chain_id: u64,
    /// How blocks come about.
    pub mining: Mining,
    /// Unix seconds of the genesis block, from which the chain's clock runs on. The default is now.
    pub genesis_time: Option<u64>,
    /// How many blocks the `safe` and `finalized` tags lag behind the head.
    pub finality_depth: u64,
}

impl Default for DevnetConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            chain_id: 84_532,
            mining: Mining::OnDemand,
            genesis_time: None,
            finality_depth: 0,
        }
    }
}

/// Why the devnet did not start, or refused a control.
#[derive(Debug, thiserror::Error)]
pub enum DevnetError {
    /// The chain mints money for anyone and must not be reachable from elsewhere.
    #[error("a development chain listens on loopback addresses only, not on {0}")]
    NotLoopback(SocketAddr),
    /// The listener could not be opened.
    #[error("cannot listen on {addr}")]
    Listen {
        /// Where it was asked to listen.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A control asked for something the chain cannot do.
    #[error("the development chain refused: {0}")]
    Refused(String),
}

impl From<ChainError> for DevnetError {
    fn from(error: ChainError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// A running development chain. Dropping it stops the listener and the miner.
#[derive(Debug)]
pub struct Devnet {
    node: Arc<Node>,
    addr: SocketAddr,
    chain_id: u64,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Devnet {
    /// Starts a chain at genesis and its listener, on the current Tokio runtime.
    ///
    /// # Errors
    /// [`DevnetError::NotLoopback`] for an address others could reach, [`DevnetError::Listen`] when it is taken.
    ///
    /// # Cancellation
    /// Nothing runs until the listener is open, after which this does not wait again.
    pub async fn start(config: DevnetConfig) -> Result<Self, DevnetError> {
        let DevnetConfig { listen, chain_id, mining, genesis_time, finality_depth } = config;
        if !listen.ip().is_loopback() {
            return Err(DevnetError::NotLoopback(listen));
        }
        let listening = |source| DevnetError::Listen { addr: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(listening)?;
        let addr = listener.local_addr().map_err(listening)?;

        let node = Arc::new(Node::new(Chain::new(chain_id, mining, genesis_time, finality_depth)));
        let stop = CancellationToken::new();
        let server =
            axum::serve(listener, rpc::router(node.clone())).with_graceful_shutdown(stop.clone().cancelled_owned());
        let serve = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the development chain's listener failed");
            }
        });
        let miner = tokio::spawn(mine_at_intervals(node.clone(), stop.clone()));
        Ok(Self { node, addr, chain_id, stop, tasks: vec![serve, miner] })
    }

    /// URL of the JSON-RPC endpoint.
    pub fn rpc_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The chain's id.
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// The `index`th prefunded development account (there are ten; the index wraps around). Its key is public.
    pub fn dev_signer(&self, index: usize) -> PrivateKeySigner {
        let signers = genesis::dev_signers();
        signers.iter().cycle().nth(index % signers.len()).cloned().expect("a cycle over ten accounts does not end")
    }

    /// Stops the listener and the miner, and waits (2 s at most) for requests in flight.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        for mut task in std::mem::take(&mut self.tasks) {
            if tokio::time::timeout(SHUTDOWN_GRACE, &mut task).await.is_err() {
                task.abort();
            }
        }
    }

    // ---- money

    /// Wei an account holds.
    pub fn balance(&self, who: Address) -> U256 {
        self.node.chain().state().balance(who)
    }

    /// Sets what an account holds, in wei.
    pub fn set_balance(&self, who: Address, wei: U256) {
        self.node.chain().edit(|state| state.set_balance(who, wei));
    }

    /// Adds `wei` to what an account holds.
    pub fn fund(&self, who: Address, wei: U256) {
        self.node.chain().edit(|state| state.set_balance(who, state.balance(who).saturating_add(wei)));
    }

    /// Mints test dollars, in atomic units (millionths). Takes effect at once, without a block or a log.
    ///
    /// # Errors
    /// [`DevnetError::Refused`] if the dollar was replaced by something that does not mint.
    pub fn mint_dollars(&self, to: Address, amount: u128) -> Result<(), DevnetError> {
        self.mint(genesis::DOLLAR, to, amount)
    }

    /// The same for any token that anybody may mint, such as [`genesis::PLAIN_DOLLAR`].
    ///
    /// # Errors
    /// [`DevnetError::Refused`] if there is no such token at this address.
    pub fn mint(&self, token: Address, to: Address, amount: u128) -> Result<(), DevnetError> {
        let call = abi::mintCall { to, value: U256::from(amount) }.abi_encode();
        self.node.chain().own_call(to, token, call.into())?;
        Ok(())
    }

    /// Test dollars an account holds, in atomic units.
    ///
    /// # Errors
    /// [`DevnetError::Refused`] if the dollar was replaced by something that is no token.
    pub fn dollar_balance(&self, who: Address) -> Result<u128, DevnetError> {
        self.token_balance(genesis::DOLLAR, who)
    }

    /// The same for any token.
    ///
    /// # Errors
    /// [`DevnetError::Refused`] if there is no token at this address.
    pub fn token_balance(&self, token: Address, who: Address) -> Result<u128, DevnetError> {
        let call = abi::balanceOfCall { account: who }.abi_encode();
        let output = self.node.chain().own_read(who, token, call.into())?;
        let balance =
            abi::balanceOfCall::abi_decode_returns(&output).map_err(|error| DevnetError::Refused(error.to_string()))?;
        Ok(balance.saturating_to())
    }

    /// Installs runtime code at an address, leaving its storage and balance.
    ///
    /// # Errors
    /// [`DevnetError::Refused`] if the bytes are not code.
    pub fn set_code(&self, who: Address, code: Bytes) -> Result<(), DevnetError> {
        Ok(self.node.chain().set_code(who, code)?)
    }

    // ---- blocks and time

    /// Number of the newest block.
    pub fn block_number(&self) -> u64 {
        self.node.chain().head().number()
    }

    /// Hash of a block that is still kept.
    pub fn block_hash(&self, number: u64) -> Option<B256> {
        self.node.chain().blocks().at(number).map(|block| block.hash())
    }

    /// The chain's clock, in Unix seconds: the time the next block would carry, unless one was set.
    pub fn now(&self) -> u64 {
        self.node.chain().clock()
    }

    /// Transactions that wait for a block.
    pub fn pending_transactions(&self) -> Vec<B256> {
        self.node.chain().pool().hashes().collect()
    }

    /// Drops a waiting transaction. False when none of that hash waits.
    pub fn drop_transaction(&self, hash: B256) -> bool {
        self.node.chain().drop_transaction(hash)
    }

    /// Mines `count` blocks now; the first takes every transaction that is ready.
    ///
    /// # Errors
    /// [`DevnetError::Refused`] above 10 000 blocks.
    pub fn mine(&self, count: u64) -> Result<(), DevnetError> {
        Ok(self.node.chain().mine_many(count, None)?)
    }

    /// Changes how blocks come about.
    pub fn set_mining(&self, mining: Mining) {
        self.node.set_mining(mining);
    }

    /// Moves the chain's clock forward. The next block shows it.
    pub fn increase_time(&self, by: Duration) {
        self.node.chain().increase_time(by.as_secs());
    }

    /// Sets the time of the next block, in Unix seconds; the clock goes on from there.
    ///
    /// # Errors
    /// [`DevnetError::Refused`] if the newest block is later.
    pub fn set_next_block_timestamp(&self, timestamp: u64) -> Result<(), DevnetError> {
        Ok(self.node.chain().set_next_timestamp(timestamp)?)
    }

    /// Sets the base fee of the next block, wei a unit of gas. Later ones follow from it as they always do: down by an
    /// eighth with each empty block.
    pub fn set_next_base_fee(&self, wei: u64) {
        self.node.chain().set_next_base_fee(wei);
    }

    // ---- going back

    /// Remembers the whole chain, waiting transactions and clock included. The oldest of more than 64 is forgotten.
    pub fn snapshot(&self) -> u64 {
        self.node.chain().snapshot()
    }

    /// Returns to a snapshot, using it and every later one up. False when there is none of that id.
    pub fn revert(&self, snapshot: u64) -> bool {
        self.node.chain().revert(snapshot)
    }

    /// Replaces the newest `depth` blocks with empty ones, as a reorganisation would. Their transactions are gone unless
    /// they are sent again; returns their hashes, oldest first.
    ///
    /// # Errors
    /// [`DevnetError::Refused`] beyond genesis or beyond the 1 024 blocks whose state is kept.
    pub fn reorg(&self, depth: u64) -> Result<Vec<B256>, DevnetError> {
        Ok(self.node.chain().reorg(depth)?)
    }
}

impl Drop for Devnet {
    fn drop(&mut self) {
        self.stop.cancel();
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn mine_at_intervals(node: Arc<Node>, stop: CancellationToken) {
    let mut mining = node.watch_mining();
    loop {
        let now = *mining.borrow_and_update();
        let tick = async {
            match now {
                Mining::Interval(every) => tokio::time::sleep(every.max(MIN_INTERVAL)).await,
                Mining::OnDemand | Mining::Manual => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = mining.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tick => {
                node.chain().mine();
            }
        }
    }
}
