//! The chain, seen through JSON-RPC nodes.
//!
//! **Owns** the gas key and the nonce: whoever sends from that key sends through here. **Promises**
//! that one nonce is not given to two different purposes, and that a transaction which may have left is reported as such.
//! **Does not** decide when to replace a transaction that is stuck, and does not wait for any.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use alloy::consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy::eips::{Decodable2718 as _, Encodable2718 as _};
use alloy::primitives::{TxKind, U256};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::bindings::{Permit2, Settlement, Token, evm, hash_of, word};
use super::broadcast::Broadcast;
use super::call::Call;
use super::error::{ChainError, SendError};
use super::fees::{Fees, can_pay};
use super::gas::gas_limit;
use super::node::Node;
use super::nodes::Nodes;
use super::types::{
    Bid, ChannelEvent, Counting, GasPrice, Head, Mined, NodeHealth, Nonces, Owed, Replacement, Resent,
    SignedTransaction, TokenDomain, View,
};
use super::url::RpcUrl;
use super::{Chain, Witness};
use crate::protocol::contracts::{PERMIT2, SETTLEMENT};
use crate::protocol::voucher::PayerEvidence;
use crate::protocol::{Address, Amount, ChannelId, Hash, LocalKey, Signature};

/// For so long after a transaction our own count of nonces is believed more than a node's, which may not have seen it
/// yet. After that the node's is right: it knows of transactions that were dropped.
const NONCE_TRUST: Duration = Duration::from_secs(30);

/// A chain behind JSON-RPC nodes, and the account that pays for what is sent to it.
pub struct AlloyChain {
    nodes: Nodes,
    gas_key: Option<LocalKey>,
    deposits: Counting,
    /// The next nonce of the gas key and when that was learnt; nothing where the nodes have to be asked.
    nonce: Mutex<Option<(u64, Instant)>>,
}

/// How to open a chain.
#[derive(Debug, Clone)]
pub struct ChainSettings {
    /// Its nodes, at least one, in the order of preference. With two, what money hangs on is compared; with three, one that
    /// lies or fails is outvoted.
    pub nodes: Vec<RpcUrl>,
    /// What pays for transactions; without it everything but sending and simulating works.
    pub gas_key: Option<LocalKey>,
    /// When deposits count.
    pub deposits: Counting,
    /// How old, by our clock, a node's newest block may be before its answers are errors; nothing believes it however old.
    pub max_lag: Option<Duration>,
}

/// Gives this process the ring provider, for clients of a caller's own that bring no settings; ours bring theirs. Doing it
/// again, or after somebody else, changes nothing.
pub fn install_tls() {
    // The error says that there is a provider already, which is all that is wanted.
    drop(rustls::crypto::ring::default_provider().install_default());
}

impl AlloyChain {
    /// Connects to a node and asks for its chain id. Without a gas key everything but sending and simulating works.
    pub async fn connect(url: RpcUrl, gas_key: Option<LocalKey>) -> Result<Self, ChainError> {
        let deposits = Counting::default();
        Self::open(ChainSettings { nodes: vec![url], gas_key, deposits, max_lag: None }).await
    }

    /// Connects to nodes and asks for their chain id.
    ///
    /// # Errors
    /// Where none answers, and where those that do are not on the same chain ([`ChainError::Disagreement`]).
    pub async fn open(settings: ChainSettings) -> Result<Self, ChainError> {
        install_tls();
        let ChainSettings { nodes, gas_key, deposits, max_lag } = settings;
        Ok(Self { nodes: Nodes::open(nodes, max_lag).await?, gas_key, deposits, nonce: Mutex::new(None) })
    }

    /// Tries a call on the newest state as if this account sent it; the gas it would take. Takes no gas key.
    pub(crate) async fn simulate_from(&self, sender: Address, call: &Call) -> Result<u64, ChainError> {
        let estimate = self.nodes.read(|node| node.estimate(sender, call)).await;
        let Err(refusal @ ChainError::Reverted { .. }) = estimate else { return estimate };
        // One that lies, or has not seen a deposit yet, must not keep a claim from being made.
        if !self.nodes.can_outvote() {
            return Err(refusal);
        }
        let vote = |node| async move {
            match Node::estimate(node, sender, call).await {
                Err(ChainError::Reverted { .. }) => Ok(None),
                estimate => estimate.map(Some),
            }
        };
        let votes = self.nodes.ask_all(vote).await?;
        let passed: Vec<u64> = votes.iter().copied().flatten().collect();
        if passed.len() > votes.len().div_euclid(2) { Ok(middle(passed).unwrap_or_default()) } else { Err(refusal) }
    }

    fn gas_key(&self) -> Result<&LocalKey, ChainError> {
        self.gas_key.as_ref().ok_or(ChainError::NoGasKey)
    }

    /// Reads at the newest block from one node, or from several at one block where there are several.
    async fn read_surely<'a, T, F, Fut>(&'a self, what: &'static str, read: F) -> Result<T, ChainError>
    where
        T: PartialEq,
        F: Fn(&'a Node, Option<u64>) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        if self.nodes.are_several() {
            self.nodes.agree(what, |node, block| read(node, Some(block))).await
        } else {
            self.nodes.read(|node| read(node, None)).await
        }
    }

    fn transaction(&self, call: &Call, nonce: u64, gas_limit: u64, fees: &Fees) -> TxEip1559 {
        TxEip1559 {
            chain_id: self.chain_id(),
            nonce,
            gas_limit,
            max_fee_per_gas: fees.max_fee,
            max_priority_fee_per_gas: fees.tip,
            to: TxKind::Call(evm(SETTLEMENT)),
            value: U256::ZERO,
            access_list: Default::default(),
            input: call.calldata(),
        }
    }

    fn sign(&self, transaction: TxEip1559) -> Result<SignedTransaction, ChainError> {
        let key = self.gas_key()?;
        let nonce = transaction.nonce;
        let signature = key.sign(hash_of(transaction.signature_hash()));
        let signature = alloy::primitives::Signature::from_raw(signature.as_bytes())
            .expect("a local key signs with 65 bytes and a recovery byte of 27 or 28");
        let signed = transaction.into_signed(signature);
        let hash = hash_of(*signed.hash());
        Ok(SignedTransaction { hash, sender: key.address(), nonce, raw: signed.encoded_2718() })
    }

    /// How many transactions the gas key has made, at a block. Nodes that are behind, or lie, say different things: of three
    /// or more the one in the middle is taken, so that one that is wrong changes nothing. Of two it is the larger: being
    /// behind is common and lying is not, and a nonce that is given twice is worse than a gap, which shows at once and which
    /// the next answer closes.
    async fn count(&self, at: &'static str) -> Result<u64, ChainError> {
        let account = self.gas_key()?.address();
        let counts = self.nodes.ask_all(|node| node.transaction_count(account, at)).await?;
        Ok(most_credible(counts))
    }

    /// The nonce for the next transaction: our own count while it is fresh, else the nodes'.
    async fn next_nonce(&self, known: Option<(u64, Instant)>) -> Result<u64, ChainError> {
        match known {
            Some((nonce, learnt)) if learnt.elapsed() < NONCE_TRUST => Ok(nonce),
            _ => self.count("pending").await,
        }
    }

    async fn knows_transaction(&self, hash: Hash) -> Result<bool, ChainError> {
        let look = |node| async move { Ok(Node::knows_transaction(node, hash).await?.then_some(())) };
        Ok(self.nodes.search(look).await?.is_some())
    }

    async fn price_and_balance(&self, payer: Address) -> Result<(GasPrice, u128), ChainError> {
        tokio::try_join!(self.gas_price(), self.gas_balance(payer))
    }
}

impl Chain for AlloyChain {
    fn chain_id(&self) -> u64 {
        self.nodes.chain_id()
    }

    fn sender(&self) -> Option<Address> {
        self.gas_key.as_ref().map(LocalKey::address)
    }

    fn deposits_count_after(&self) -> Counting {
        self.deposits
    }

    fn nodes(&self) -> Vec<NodeHealth> {
        self.nodes.health()
    }

    async fn nonces(&self) -> Result<Nonces, ChainError> {
        let (mined, pending) = tokio::try_join!(self.count("latest"), self.count("pending"))?;
        // Two requests may see two states.
        Ok(Nonces { mined, pending: pending.max(mined) })
    }

    async fn gas_price(&self) -> Result<GasPrice, ChainError> {
        if !self.nodes.can_outvote() {
            return self.nodes.read(Node::price).await;
        }
        let prices = self.nodes.ask_all(Node::price).await?;
        let of = |part: fn(&GasPrice) -> u128| prevailing(prices.iter().map(part).collect());
        Ok(GasPrice {
            base_wei: of(|price| price.base_wei),
            tip_wei: of(|price| price.tip_wei),
            data_wei_per_byte: of(|price| price.data_wei_per_byte),
            block_gas_limit: prevailing(prices.iter().map(|price| price.block_gas_limit).collect()),
        })
    }

    async fn block(&self, number: u64) -> Result<Option<Head>, ChainError> {
        self.nodes.search(|node| node.block(number)).await
    }

    async fn head(&self) -> Result<Head, ChainError> {
        self.nodes.head().await
    }

    async fn channel(&self, id: ChannelId) -> Result<View, ChainError> {
        let views = self.channels(&[id]).await?;
        views.into_iter().next().ok_or(ChainError::decode("one channel"))
    }

    async fn channels(&self, ids: &[ChannelId]) -> Result<Vec<View>, ChainError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.nodes.agree("the channels", |node, block| node.channels(ids, block, self.deposits)).await
    }

    async fn payer_evidence(
        &self,
        payer: Address,
        digest: Hash,
        signature: &Signature,
    ) -> Result<PayerEvidence, ChainError> {
        self.nodes.read(|node| node.payer_evidence(payer, digest, signature)).await
    }

    async fn has_code(&self, address: Address) -> Result<bool, ChainError> {
        Ok(!self.nodes.read(|node| node.code_at(address)).await?.is_empty())
    }

    async fn token_balance(&self, token: Address, owner: Address) -> Result<Amount, ChainError> {
        let read = |node| Node::read(node, evm(token), Token::balanceOfCall { owner: evm(owner) }, None);
        Ok(Amount::new(u128::try_from(self.nodes.read(read).await?).unwrap_or(u128::MAX)))
    }

    async fn allowance(&self, token: Address, owner: Address, spender: Address) -> Result<Amount, ChainError> {
        let question = || Token::allowanceCall { owner: evm(owner), spender: evm(spender) };
        let allowance = self.nodes.read(|node| Node::read(node, evm(token), question(), None)).await?;
        Ok(Amount::new(u128::try_from(allowance).unwrap_or(u128::MAX)))
    }

    async fn permit_nonce(&self, token: Address, owner: Address) -> Result<Option<Hash>, ChainError> {
        let question = || Token::noncesCall { owner: evm(owner) };
        let nonce = self.nodes.read(|node| node.read_optional(evm(token), question())).await?;
        Ok(nonce.map(|nonce| Hash(nonce.to_be_bytes())))
    }

    async fn permit2_nonce_used(&self, payer: Address, nonce: Hash) -> Result<bool, ChainError> {
        let nonce = U256::from_be_bytes(nonce.0);
        // A nonce is a bit of a word.
        let question = || Permit2::nonceBitmapCall { owner: evm(payer), word: nonce >> 8 };
        let word = self
            .read_surely("a deposit's authorization", |node, block| node.read(evm(PERMIT2), question(), block))
            .await?;
        Ok(word.bit(usize::from(nonce.byte(0))))
    }

    async fn authorization_used(&self, token: Address, payer: Address, nonce: Hash) -> Result<bool, ChainError> {
        let question = || Token::authorizationStateCall { authorizer: evm(payer), nonce: word(nonce) };
        self.read_surely("a deposit's authorization", |node, block| node.read(evm(token), question(), block)).await
    }

    async fn token_domain(&self, token: Address) -> Result<TokenDomain, ChainError> {
        self.nodes.read(|node| node.token_domain(token)).await
    }

    async fn gas_balance(&self, address: Address) -> Result<u128, ChainError> {
        let wei = if self.nodes.can_outvote() {
            prevailing(self.nodes.ask_all(|node| node.gas_balance(address)).await?)
        } else {
            self.nodes.read(|node| node.gas_balance(address)).await?
        };
        Ok(u128::try_from(wei).unwrap_or(u128::MAX))
    }

    async fn receivers(&self, receiver: Address, token: Address) -> Result<Owed, ChainError> {
        let question = || Settlement::receiversCall { receiver: evm(receiver), token: evm(token) };
        let read = |node, block| async move {
            let sums = Node::read(node, evm(SETTLEMENT), question(), block).await?;
            Ok(Owed { total_claimed: Amount::new(sums.totalClaimed), total_settled: Amount::new(sums.totalSettled) })
        };
        self.read_surely("the receiver's account", read).await
    }

    async fn simulate(&self, call: &Call) -> Result<u64, ChainError> {
        self.simulate_from(self.gas_key()?.address(), call).await
    }

    async fn send_witnessed<W: Witness>(
        &self,
        call: &Call,
        bid: Bid,
        chosen: Option<u64>,
        witness: &W,
    ) -> Result<Hash, SendError> {
        let estimate = self.simulate(call).await.map_err(SendError::Refused)?;
        let gas = gas_limit(call, estimate);
        let payer = self.gas_key().map_err(SendError::Refused)?.address();
        let (price, balance) = self.price_and_balance(payer).await.map_err(SendError::Refused)?;
        let fees = Fees::of(&price, bid).map_err(SendError::Refused)?;
        can_pay(balance, gas, call.calldata().len(), &price, &fees).map_err(SendError::Refused)?;

        let mut known = self.nonce.lock().await;
        // What is known is taken out first: where this future is dropped or fails, the next one asks the node.
        let mut count = known.take();
        let mut nonce = match chosen {
            Some(nonce) => nonce,
            None => self.next_nonce(count).await.map_err(SendError::Refused)?,
        };
        let mut asked_again = false;
        loop {
            let signed = self.sign(self.transaction(call, nonce, gas, &fees)).map_err(SendError::Refused)?;
            if let Err(objection) = witness.sees(&signed).await {
                *known = count;
                return Err(SendError::Withheld(objection));
            }
            let unknown = |source| SendError::Unknown { hash: signed.hash, source };
            match self.nodes.broadcast(&signed).await {
                Ok(()) => {
                    *known = Some((nonce.saturating_add(1), Instant::now()));
                    return Ok(signed.hash);
                }
                // This nonce is used: by somebody else with the same key, or by this very transaction, if a gateway on
                // the way delivered it twice.
                Err(Broadcast::NonceTooLow(source)) => {
                    if self.knows_transaction(signed.hash).await.map_err(unknown)? {
                        return Ok(signed.hash);
                    }
                    if let Some(nonce) = chosen {
                        return Err(SendError::Refused(ChainError::NonceUsed { nonce }));
                    }
                    if asked_again {
                        return Err(SendError::Refused(source));
                    }
                    asked_again = true;
                    count = None;
                    nonce = self.next_nonce(None).await.map_err(SendError::Refused)?;
                }
                Err(Broadcast::Refused(source) | Broadcast::Unread(source)) => return Err(SendError::Refused(source)),
                Err(Broadcast::Unclear(source)) => return Err(unknown(source)),
            }
        }
    }

    async fn replace_witnessed<W: Witness>(
        &self,
        transaction: &SignedTransaction,
        bid: Bid,
        witness: &W,
    ) -> Result<Replacement, SendError> {
        let before = decode_transaction(&transaction.raw).map_err(SendError::Refused)?;
        let payer = self.gas_key().map_err(SendError::Refused)?.address();
        if transaction.sender != payer || before.chain_id != self.chain_id() {
            // Signed with this key it would be another account's transaction, and both could land.
            return Err(SendError::Refused(ChainError::ForeignTransaction { transaction: transaction.hash }));
        }
        let (price, balance) = self.price_and_balance(payer).await.map_err(SendError::Refused)?;
        let old = Fees { max_fee: before.max_fee_per_gas, tip: before.max_priority_fee_per_gas };
        let Some(fees) = old.outbid(&price, bid) else { return Ok(Replacement::AtCeiling) };
        can_pay(balance, before.gas_limit, before.input.len(), &price, &fees).map_err(SendError::Refused)?;
        let next = TxEip1559 { max_fee_per_gas: fees.max_fee, max_priority_fee_per_gas: fees.tip, ..before };
        let signed = self.sign(next).map_err(SendError::Refused)?;
        // Not the count of nonces: this one was given away before.
        let _sending = self.nonce.lock().await;
        witness.sees(&signed).await.map_err(SendError::Withheld)?;
        let unknown = |source| SendError::Unknown { hash: signed.hash, source };
        match self.nodes.broadcast(&signed).await {
            Ok(()) => Ok(Replacement::Sent(signed.hash)),
            Err(Broadcast::NonceTooLow(_)) => match self.knows_transaction(signed.hash).await.map_err(unknown)? {
                true => Ok(Replacement::Sent(signed.hash)),
                false => Ok(Replacement::NonceUsed),
            },
            Err(Broadcast::Refused(source) | Broadcast::Unread(source)) => Err(SendError::Refused(source)),
            Err(Broadcast::Unclear(source)) => Err(unknown(source)),
        }
    }

    async fn resend(&self, transaction: &SignedTransaction) -> Result<Resent, ChainError> {
        // What a facilitator was asked is no transaction, and no block will ever have it.
        if transaction.sender.is_zero() {
            return Ok(Resent::Replaced);
        }
        // A key sends one at a time, and what is not in the node's count yet must not be given away meanwhile.
        let mut known = self.nonce.lock().await;
        let (error, replaced) = match self.nodes.broadcast(transaction).await {
            Ok(()) => {
                let next = transaction.nonce.saturating_add(1);
                if self.sender() == Some(transaction.sender) && known.is_none_or(|(count, _)| count < next) {
                    *known = Some((next, Instant::now()));
                }
                return Ok(Resent::Known);
            }
            Err(Broadcast::NonceTooLow(error)) => (error, true),
            Err(Broadcast::Refused(error) | Broadcast::Unread(error) | Broadcast::Unclear(error)) => (error, false),
        };
        match self.knows_transaction(transaction.hash).await? {
            true => Ok(Resent::Known),
            false if replaced => Ok(Resent::Replaced),
            false => Err(error),
        }
    }

    async fn receipt(&self, transaction: Hash) -> Result<Option<Mined>, ChainError> {
        self.nodes.search(|node| node.receipt(transaction)).await
    }

    async fn events(&self, from_block: u64, to_block: u64) -> Result<Vec<ChannelEvent>, ChainError> {
        // A single node said itself how far it is. Of several, it may have been another one.
        let several = self.nodes.are_several();
        self.nodes.read(|node| node.events(from_block, to_block, several)).await
    }
}

impl fmt::Debug for AlloyChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlloyChain").field("nodes", &self.nodes).field("gas_key", &self.gas_key).finish_non_exhaustive()
    }
}

/// What to believe of several counts of the same: the one in the middle, and of two in the middle the larger.
fn most_credible(counts: Vec<u64>) -> u64 {
    middle(counts).unwrap_or_default()
}

/// What to believe of several answers, the preferred node's first: of three or more the one in the middle, so that one
/// that is wrong changes little; of fewer the first.
fn prevailing<T: Copy + Ord + Default>(answers: Vec<T>) -> T {
    let first = answers.first().copied().unwrap_or_default();
    if answers.len() < 3 { first } else { middle(answers).unwrap_or(first) }
}

/// The one in the middle, and of two the larger.
fn middle<T: Copy + Ord>(mut answers: Vec<T>) -> Option<T> {
    answers.sort_unstable();
    answers.get(answers.len().div_euclid(2)).copied()
}

/// Reads the bytes of a transaction of ours.
pub(super) fn decode_transaction(raw: &[u8]) -> Result<TxEip1559, ChainError> {
    let what = "the bytes of a transaction that was sent";
    match TxEnvelope::decode_2718(&mut &*raw) {
        Ok(TxEnvelope::Eip1559(signed)) => Ok(signed.strip_signature()),
        Ok(_) => Err(ChainError::decode(what)),
        Err(error) => Err(ChainError::decode_from(what, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_answers_the_preferred_nodes_prevails() {
        assert_eq!(prevailing::<u64>(Vec::new()), 0);
        assert_eq!([vec![7], vec![7, 5], vec![5, 7], vec![9, 7, 1], vec![1, 7, 7]].map(prevailing), [7, 7, 5, 7, 7]);
    }

    #[test]
    fn one_wrong_count_of_three_changes_nothing() {
        let cases: [(&[u64], u64); 7] = [
            (&[7], 7),
            (&[7, 5], 7),
            (&[5, 7], 7),
            (&[7, 0, 7], 7),
            (&[1_000, 7, 7], 7),
            (&[6, 7, 8], 7),
            (&[0, 7, 7, 9], 7),
        ];
        for (counts, expected) in cases {
            assert_eq!(most_credible(counts.to_vec()), expected, "{counts:?}");
        }
    }
}
