//! A chain whose transactions a facilitator sends.
//!
//! **Owns** what the facilitator was asked and has not been seen done, called *intents*. An intent takes the place of a
//! transaction: its hash is that of what is written down, its nonce is made up, in the order things were asked. What has
//! that hash is no transaction on chain; [`Mined::on_chain`] names the one that the facilitator sent.
//!
//! **Promises** that an intent counts as mined only where the provider's own node shows a transaction with its effect,
//! newer than the intent; that one that reverted is said to have, and one that was refused before anything was sent is
//! said to be replaced; and that all others are asked for again when they are resent, unless the chain shows that they
//! are done. Asking twice does no harm: a voucher is claimed once, an authorization is used once, a refund has a nonce.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::client::{About, Client, FacilitatorError, Refusal, Settled};
use super::wanted::Wanted;
use super::wire::Request;
use super::{DepositTerms, FacilitatorSettings};
use crate::chain::{
    AlloyChain, Bid, Call, Chain, ChainError, ChannelEvent, Counting, GasPrice, Head, Mined, NodeHealth, Nonces, Owed,
    Replacement, Resent, SendError, SignedTransaction, TokenDomain, View, Witness,
};
use crate::clock;
use crate::protocol::bytes::keccak256;
use crate::protocol::voucher::PayerEvidence;
use crate::protocol::{Address, Amount, ChannelId, Domain, Hash, Signature};

/// Who calls are tried from: any account may send what a facilitator sends.
const NEUTRAL_SENDER: Address = Address::ZERO;
/// Who "sent" an intent.
const NOBODY: Address = Address::ZERO;

/// How long sending waits for a refusal, unless said. One is given before anything is sent, so it comes soon; what comes
/// later is found out when the intent is followed.
const REFUSAL_WAIT: Duration = Duration::from_secs(3);
/// How many requests are with the facilitator at once. More wait for their turn.
const MAX_AT_ONCE: usize = 64;
/// How soon the facilitator is asked again at most, where nobody knows what it did.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long a deposit or a refund is waited for that cannot be delivered, unless said. What was delivered has left for
/// good.
const DELIVERY_WAIT: Duration = Duration::from_millis(300);
/// How long our node may not know a transaction that the facilitator named, before that is asked again.
const NAMED_WAIT: Duration = Duration::from_secs(60);
/// How many intents that are over are remembered. One that is forgotten is found on chain when it is resent.
const MAX_REMEMBERED: usize = 1_024;
/// How many blocks before an intent its transaction may be, because a reorganisation can bring an earlier block.
const REORG_DEPTH: u64 = 16;
/// How many blocks are searched for a transaction that the facilitator did not name.
const MAX_BLOCKS_SEARCHED: u64 = 20_000;

/// A chain that is read through the provider's own node and written to through a facilitator.
pub struct FacilitatedChain {
    inner: AlloyChain,
    client: Client,
    terms: Vec<DepositTerms>,
    table: Arc<Mutex<Table>>,
    turns: Arc<Semaphore>,
    refusal_wait: Duration,
    delivery_wait: Duration,
}

/// What is written down: what is asked, and from which block on its effect is looked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// Unix milliseconds; makes two records of one request different.
    made_at_ms: u64,
    nonce: u64,
    since_block: u64,
    request: Request,
}

/// Something the facilitator was asked for.
#[derive(Debug, Clone)]
struct Intent {
    nonce: u64,
    since_block: u64,
    wanted: Arc<Wanted>,
    standing: Standing,
    /// Something may have been sent for it, so that a refusal says nothing of its end.
    may_be_sent: bool,
    /// Its end was told.
    is_over: bool,
}

/// How far an intent has come, as the facilitator says.
#[derive(Debug, Clone, Copy)]
enum Standing {
    /// It is being asked.
    Asked,
    /// It named this transaction, then.
    Named(Hash, Instant),
    /// It says that it sent nothing.
    Refused,
    /// Nobody knows, since then; never asked by this process, if none.
    Unknown(Option<Instant>),
}

/// All intents, by the hash they are known by.
#[derive(Debug, Default)]
struct Table {
    intents: BTreeMap<Hash, Intent>,
    next_nonce: u64,
}

impl Table {
    /// The lowest nonce whose intent is not over.
    fn mined(&self) -> u64 {
        let open = self.intents.values().filter(|intent| !intent.is_over).map(|intent| intent.nonce);
        open.min().unwrap_or(self.next_nonce)
    }

    fn takes(&self, nonce: u64) -> bool {
        nonce >= self.mined() && self.intents.values().all(|intent| intent.is_over || intent.nonce != nonce)
    }

    fn add(&mut self, hash: Hash, intent: Intent) {
        self.next_nonce = self.next_nonce.max(intent.nonce.saturating_add(1));
        self.intents.insert(hash, intent);
        let over = self.intents.iter().filter(|(_, intent)| intent.is_over);
        if over.clone().count() > MAX_REMEMBERED {
            let oldest = over.min_by_key(|(_, intent)| intent.nonce).map(|(hash, _)| *hash);
            oldest.map(|hash| self.intents.remove(&hash));
        }
    }

    /// An intent that came to nothing. Its nonce is free, unless later ones were given out meanwhile: those were not
    /// waiting for it.
    fn remove(&mut self, hash: &Hash) {
        if let Some(intent) = self.intents.remove(hash)
            && intent.nonce.checked_add(1) == Some(self.next_nonce)
        {
            self.next_nonce = intent.nonce;
        }
    }

    fn set(&mut self, hash: Hash, standing: Standing) {
        if let Some(intent) = self.intents.get_mut(&hash) {
            intent.may_be_sent |= matches!(standing, Standing::Named(..) | Standing::Unknown(_));
            intent.standing = standing;
        }
    }

    /// The facilitator answered, or will not. What was found on chain meanwhile counts more than what names nothing.
    fn answered(&mut self, hash: Hash, standing: Standing) {
        let is_found = self.intents.get(&hash).is_some_and(|it| matches!(it.standing, Standing::Named(..)));
        if !is_found || matches!(standing, Standing::Named(..)) {
            self.set(hash, standing);
        }
    }

    /// The facilitator says that it sent nothing. Of a deposit that is believed the first time only: asked again, it may
    /// mean that what it sent before has taken effect.
    fn refuse(&mut self, hash: Hash) {
        let Some(intent) = self.intents.get(&hash) else { return };
        let is_deposit = matches!(*intent.wanted, Wanted::Deposit { .. });
        let standing = match is_deposit && intent.may_be_sent {
            true => Standing::Unknown(Some(Instant::now())),
            false => Standing::Refused,
        };
        self.answered(hash, standing);
    }
}

/// What the sender of an intent hears at once.
enum Word {
    /// It is on its way, or its fate is not known.
    Go,
    /// It certainly does nothing.
    No(ChainError),
}

/// What our node shows of an intent.
enum Sight {
    /// It is done, by this transaction.
    By(Hash),
    /// It is done, by a transaction that is not found.
    Somehow,
    /// It is not done.
    Not,
}

/// Keeps an intent's nonce while its witness thinks. Whatever interrupts that, the intent can be resent.
struct Reserved {
    table: Arc<Mutex<Table>>,
    hash: Hash,
    withheld: bool,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if self.withheld {
            table.remove(&self.hash);
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FacilitatedChain {
    /// Puts a facilitator in front of a chain that is only read, and asks whether it sends on that chain.
    ///
    /// One that cannot be asked at the moment is taken as it is: vouchers are good without it, and it may be back when it
    /// is needed. `terms` has each token that is deposited.
    ///
    /// # Errors
    /// It answers, and does not do what we need.
    pub async fn open(
        inner: AlloyChain,
        settings: FacilitatorSettings,
        terms: Vec<DepositTerms>,
    ) -> Result<Self, FacilitatorError> {
        let client = Client::new(settings)?;
        match client.supported(inner.chain_id()).await {
            Ok(supported) => {
                if let Some(authorizer) = supported.authorizer {
                    tracing::info!(%authorizer, "the facilitator's own authorizer is not used; ours signs");
                }
            }
            Err(error) if error.is_temporary() => {
                let cause = crate::causes::causes(&error);
                tracing::warn!(error = cause, "the facilitator cannot be asked what it supports");
            }
            Err(error) => return Err(error),
        }
        Ok(Self {
            inner,
            client,
            terms,
            table: Arc::default(),
            turns: Arc::new(Semaphore::new(MAX_AT_ONCE)),
            refusal_wait: REFUSAL_WAIT,
            delivery_wait: DELIVERY_WAIT,
        })
    }

    /// How long sending waits for a refusal, whatever is sent; three seconds unless said, and less for deposits and refunds,
    /// for which others wait.
    pub fn refusal_wait(self, limit: Duration) -> Self {
        Self { refusal_wait: limit, delivery_wait: limit, ..self }
    }

    /// The facilitator.
    pub fn client(&self) -> &Client {
        &self.client
    }

    fn settlement(&self) -> Domain {
        Domain::settlement(self.inner.chain_id())
    }

    fn intent(&self, hash: &Hash) -> Option<Intent> {
        lock(&self.table).intents.get(hash).cloned()
    }

    /// Gives an intent a nonce and a place in the table.
    fn reserve(
        &self,
        request: &Request,
        since_block: u64,
        chosen: Option<u64>,
    ) -> Result<(SignedTransaction, Reserved), ChainError> {
        let mut table = lock(&self.table);
        let nonce = chosen.unwrap_or(table.next_nonce);
        if !table.takes(nonce) {
            return Err(ChainError::NonceUsed { nonce });
        }
        let record = Record { made_at_ms: clock::now_ms(), nonce, since_block, request: request.clone() };
        let raw = serde_json::to_vec(&record).map_err(|_| ChainError::decode("a request that is JSON"))?;
        let hash = keccak256(&raw);
        let wanted = Arc::new(Wanted::of(request, &self.settlement()));
        let standing = Standing::Unknown(None);
        table.add(hash, Intent { nonce, since_block, wanted, standing, may_be_sent: false, is_over: false });
        let reserved = Reserved { table: Arc::clone(&self.table), hash, withheld: true };
        Ok((SignedTransaction { hash, sender: NOBODY, nonce, raw }, reserved))
    }

    /// Asks the facilitator, in a task of its own: it answers only when the transaction is mined.
    fn ask(&self, hash: Hash, wanted: Arc<Wanted>, request: &Request) -> Result<oneshot::Receiver<Word>, ChainError> {
        let body = serde_json::to_vec(request).map_err(|_| ChainError::decode("a request that is JSON"))?;
        {
            let mut table = lock(&self.table);
            table.set(hash, Standing::Asked);
            if let Some(intent) = table.intents.get_mut(&hash) {
                intent.is_over = false;
            }
        }
        let (word, heard) = oneshot::channel();
        let asking = Asking {
            client: self.client.clone(),
            table: Arc::clone(&self.table),
            turns: Arc::clone(&self.turns),
            delivery_wait: self.delivery_wait,
            hash,
            wanted,
        };
        tokio::spawn(asking.run(body, word));
        Ok(heard)
    }

    /// Whether the chain shows an effect, whoever brought it about.
    async fn is_done(&self, wanted: &Wanted) -> Result<bool, ChainError> {
        let claimed = async |claims: &[(ChannelId, Amount)]| {
            let ids: Vec<_> = claims.iter().map(|(id, _)| *id).collect();
            let views = self.inner.channels(&ids).await?;
            Ok::<_, ChainError>(views.iter().zip(claims).all(|(view, (_, total))| view.total_claimed >= *total))
        };
        match wanted {
            Wanted::Deposit { token, payer, nonce, .. } => self.inner.authorization_used(*token, *payer, *nonce).await,
            Wanted::Claim(claims) => claimed(claims).await,
            Wanted::Settle { receiver, token } => Ok(self.inner.receivers(*receiver, *token).await?.due().is_zero()),
            Wanted::Refund { channel, nonce, .. } => Ok(self.inner.channel(*channel).await?.refund_nonce > *nonce),
        }
    }

    /// Looks for an intent's effect on chain, and for the transaction that brought it about.
    async fn look(&self, intent: &Intent) -> Result<Sight, ChainError> {
        if !self.is_done(&intent.wanted).await? {
            return Ok(Sight::Not);
        }
        let head = self.inner.head().await?.number;
        let from = intent.since_block.max(head.saturating_sub(MAX_BLOCKS_SEARCHED));
        let events = self.inner.events(from, head).await?;
        let found = events.iter().rev().find(|event| intent.wanted.is_shown_by(&event.what));
        Ok(found.map_or(Sight::Somehow, |event| Sight::By(event.at.transaction)))
    }

    /// What our own node says of the transaction that the facilitator named.
    async fn judge(&self, hash: Hash, intent: &Intent, named: Hash) -> Result<Option<Mined>, ChainError> {
        let Some(mined) = self.inner.receipt(named).await? else { return Ok(None) };
        let ours = |event: &ChannelEvent| event.at.block >= intent.since_block && intent.wanted.has(&event.what);
        let events: Vec<_> = mined.events.iter().filter(|event| ours(event)).cloned().collect();
        // Somebody else pays for it.
        let mined = Mined { hash, fee_wei: Some(0), events, ..mined };
        if !mined.success {
            tracing::warn!(intent = %hash, transaction = %named, "the facilitator's transaction reverted");
            return Ok(Some(self.over(mined)));
        }
        // What is owed grows again with the next claim, so a settlement's event stands for itself.
        let is_shown = mined.events.iter().any(|event| intent.wanted.is_shown_by(&event.what));
        let settled = matches!(*intent.wanted, Wanted::Settle { .. }) && is_shown;
        match (is_shown, settled || self.is_done(&intent.wanted).await?) {
            (true, true) => {
                tracing::info!(intent = %hash, transaction = %named, purpose = intent.wanted.as_str(), "the facilitator sent it");
                Ok(Some(self.over(mined)))
            }
            // What answered the second question is behind what answered the first.
            (true, false) => Ok(None),
            (false, true) => Ok(self.done_by_another(hash, intent, named).await?.then(|| self.over(mined))),
            (false, false) => {
                self.lied(hash, intent, named);
                Ok(None)
            }
        }
    }

    /// It is done, and not by the transaction that was named: whether that is all that can be said.
    async fn done_by_another(&self, hash: Hash, intent: &Intent, named: Hash) -> Result<bool, ChainError> {
        match self.look(intent).await? {
            Sight::By(other) if other != named => {
                lock(&self.table).set(hash, Standing::Named(other, Instant::now()));
                Ok(false)
            }
            // Whoever deposits asks the authorization itself.
            Sight::By(_) | Sight::Somehow => Ok(!matches!(*intent.wanted, Wanted::Deposit { .. })),
            Sight::Not => Ok(false),
        }
    }

    /// The facilitator named a transaction that does not do what it was asked. A claim is made anew; what a deposit comes
    /// to is said by nobody but the chain.
    fn lied(&self, hash: Hash, intent: &Intent, named: Hash) {
        tracing::error!(
            intent = %hash, transaction = %named, purpose = intent.wanted.as_str(),
            "the facilitator reports success, and its transaction does not do it"
        );
        let standing = match *intent.wanted {
            Wanted::Deposit { .. } => Standing::Unknown(Some(Instant::now())),
            _ => Standing::Refused,
        };
        lock(&self.table).set(hash, standing);
    }

    fn over(&self, mined: Mined) -> Mined {
        if let Some(intent) = lock(&self.table).intents.get_mut(&mined.hash) {
            intent.is_over = true;
        }
        mined
    }

    fn replaced(&self, hash: &Hash) -> Resent {
        if let Some(intent) = lock(&self.table).intents.get_mut(hash) {
            intent.is_over = true;
        }
        Resent::Replaced
    }

    /// Finds an intent that is in the books, or puts it back into the table.
    fn recall(&self, transaction: &SignedTransaction) -> Result<(Intent, Record), ChainError> {
        let record: Record = serde_json::from_slice(&transaction.raw)
            .map_err(|error| ChainError::decode_from("what a facilitator was asked", error))?;
        let mut table = lock(&self.table);
        if let Some(intent) = table.intents.get(&transaction.hash) {
            return Ok((intent.clone(), record));
        }
        let intent = Intent {
            nonce: transaction.nonce,
            since_block: record.since_block,
            wanted: Arc::new(Wanted::of(&record.request, &self.settlement())),
            standing: Standing::Unknown(None),
            may_be_sent: true,
            is_over: false,
        };
        table.add(transaction.hash, intent.clone());
        Ok((intent, record))
    }
}

/// A request on its way to the facilitator.
struct Asking {
    client: Client,
    table: Arc<Mutex<Table>>,
    turns: Arc<Semaphore>,
    delivery_wait: Duration,
    hash: Hash,
    wanted: Arc<Wanted>,
}

impl Asking {
    async fn run(self, body: Vec<u8>, word: oneshot::Sender<Word>) {
        // Nobody closes it.
        let _turn = self.turns.acquire().await;
        let mut word = Some(word);
        if let Wanted::Deposit { .. } = *self.wanted {
            // Asked first, it can say no before it has anything to do; where it cannot be asked, it is asked to settle.
            match self.client.verify(body.clone()).await {
                Ok(Err(refusal)) => return self.refused(refusal, word),
                Ok(Ok(())) => {}
                Err(trouble) => {
                    tracing::debug!(intent = %self.hash, trouble, "the facilitator could not be asked first")
                }
            }
        }
        let purpose = self.wanted.as_str();
        let mut settled = std::pin::pin!(self.client.settle(body));
        let settled = match *self.wanted {
            // Others wait for these, and a payer's request for what is sent after them.
            Wanted::Deposit { .. } | Wanted::Refund { .. } => {
                match tokio::time::timeout(self.delivery_wait, &mut settled).await {
                    Ok(settled) => settled,
                    Err(_) => {
                        self.tell(&mut word, Word::Go);
                        settled.await
                    }
                }
            }
            Wanted::Claim(_) | Wanted::Settle { .. } => settled.await,
        };
        match settled {
            Settled::Named(transaction) => {
                tracing::debug!(intent = %self.hash, %transaction, purpose, "the facilitator names a transaction");
                self.set(Standing::Named(transaction, Instant::now()));
                self.tell(&mut word, Word::Go);
            }
            Settled::Refused(refusal) => self.refused(refusal, word),
            Settled::Undelivered(trouble) => {
                tracing::warn!(intent = %self.hash, purpose, trouble, "the facilitator cannot be reached");
                self.set(Standing::Unknown(Some(Instant::now())));
                let source = trouble.into();
                self.tell(&mut word, Word::No(ChainError::Unreachable { source }));
            }
            Settled::Unknown(trouble) => {
                tracing::warn!(intent = %self.hash, purpose, trouble, "nobody knows what the facilitator did");
                self.set(Standing::Unknown(Some(Instant::now())));
                self.tell(&mut word, Word::Go);
            }
        }
    }

    fn refused(&self, Refusal { reason, about }: Refusal, mut word: Option<oneshot::Sender<Word>>) {
        tracing::warn!(intent = %self.hash, purpose = self.wanted.as_str(), reason, "the facilitator declined");
        lock(&self.table).refuse(self.hash);
        let heard = match (&*self.wanted, about) {
            // Its signature is in somebody's hands, who may use it for as long as the nonce is good.
            (Wanted::Refund { .. }, _) => Word::Go,
            // The room that claims halves what reverts.
            (_, About::Request) | (Wanted::Claim(_), About::Size) => {
                Word::No(ChainError::Reverted { name: Some(reason) })
            }
            (_, About::Itself | About::Size) => Word::No(ChainError::Declined { reason }),
        };
        self.tell(&mut word, heard);
    }

    fn set(&self, standing: Standing) {
        lock(&self.table).answered(self.hash, standing);
    }

    /// The first word counts; nobody may be listening any more.
    fn tell(&self, to: &mut Option<oneshot::Sender<Word>>, word: Word) {
        if let Some(to) = to.take() {
            drop(to.send(word));
        }
    }
}

impl Chain for FacilitatedChain {
    fn chain_id(&self) -> u64 {
        self.inner.chain_id()
    }

    /// Nobody of ours.
    fn sender(&self) -> Option<Address> {
        None
    }

    fn deposits_count_after(&self) -> Counting {
        self.inner.deposits_count_after()
    }

    fn nodes(&self) -> Vec<NodeHealth> {
        self.inner.nodes()
    }

    /// The nonces of intents, as if an account made them.
    async fn nonces(&self) -> Result<Nonces, ChainError> {
        let table = lock(&self.table);
        Ok(Nonces { mined: table.mined(), pending: table.next_nonce })
    }

    /// Nothing: the facilitator pays.
    async fn gas_price(&self) -> Result<GasPrice, ChainError> {
        let GasPrice { block_gas_limit, .. } = self.inner.gas_price().await?;
        Ok(GasPrice { block_gas_limit, ..GasPrice::default() })
    }

    async fn block(&self, number: u64) -> Result<Option<Head>, ChainError> {
        self.inner.block(number).await
    }

    async fn head(&self) -> Result<Head, ChainError> {
        self.inner.head().await
    }

    async fn channel(&self, id: ChannelId) -> Result<View, ChainError> {
        self.inner.channel(id).await
    }

    async fn channels(&self, ids: &[ChannelId]) -> Result<Vec<View>, ChainError> {
        self.inner.channels(ids).await
    }

    async fn payer_evidence(
        &self,
        payer: Address,
        digest: Hash,
        signature: &Signature,
    ) -> Result<PayerEvidence, ChainError> {
        self.inner.payer_evidence(payer, digest, signature).await
    }

    async fn has_code(&self, address: Address) -> Result<bool, ChainError> {
        self.inner.has_code(address).await
    }

    async fn token_balance(&self, token: Address, owner: Address) -> Result<Amount, ChainError> {
        self.inner.token_balance(token, owner).await
    }

    async fn authorization_used(&self, token: Address, payer: Address, nonce: Hash) -> Result<bool, ChainError> {
        self.inner.authorization_used(token, payer, nonce).await
    }

    async fn token_domain(&self, token: Address) -> Result<TokenDomain, ChainError> {
        self.inner.token_domain(token).await
    }

    async fn gas_balance(&self, address: Address) -> Result<u128, ChainError> {
        self.inner.gas_balance(address).await
    }

    async fn allowance(&self, token: Address, owner: Address, spender: Address) -> Result<Amount, ChainError> {
        self.inner.allowance(token, owner, spender).await
    }

    async fn permit_nonce(&self, token: Address, owner: Address) -> Result<Option<Hash>, ChainError> {
        self.inner.permit_nonce(token, owner).await
    }

    async fn permit2_nonce_used(&self, payer: Address, nonce: Hash) -> Result<bool, ChainError> {
        self.inner.permit2_nonce_used(payer, nonce).await
    }

    async fn receivers(&self, receiver: Address, token: Address) -> Result<Owed, ChainError> {
        self.inner.receivers(receiver, token).await
    }

    /// On our own node, from an account that is nobody's: what a facilitator sends, anybody may.
    async fn simulate(&self, call: &Call) -> Result<u64, ChainError> {
        self.inner.simulate_from(NEUTRAL_SENDER, call).await
    }

    async fn send_witnessed<W: Witness>(
        &self,
        call: &Call,
        _: Bid,
        nonce: Option<u64>,
        witness: &W,
    ) -> Result<Hash, SendError> {
        let declined = |reason: &str| SendError::Refused(ChainError::Declined { reason: reason.to_owned() });
        let request = Request::of(call, self.chain_id(), &self.terms).map_err(declined)?;
        self.simulate(call).await.map_err(SendError::Refused)?;
        let since_block = self.inner.head().await.map_err(SendError::Refused)?.number.saturating_sub(REORG_DEPTH);

        let (intent, mut reserved) = self.reserve(&request, since_block, nonce).map_err(SendError::Refused)?;
        witness.sees(&intent).await.map_err(SendError::Withheld)?;
        let wanted = self.intent(&intent.hash).expect("what is reserved is in the table").wanted;
        let heard = self.ask(intent.hash, wanted, &request).map_err(SendError::Refused)?;
        reserved.withheld = false;
        match tokio::time::timeout(self.refusal_wait, heard).await {
            Ok(Ok(Word::No(error))) => {
                lock(&self.table).remove(&intent.hash);
                Err(SendError::Refused(error))
            }
            Ok(Ok(Word::Go) | Err(_)) | Err(_) => Ok(intent.hash),
        }
    }

    /// A facilitator sees to it by itself that its transactions are mined.
    async fn replace_witnessed<W: Witness>(
        &self,
        _: &SignedTransaction,
        _: Bid,
        _: &W,
    ) -> Result<Replacement, SendError> {
        Ok(Replacement::AtCeiling)
    }

    async fn resend(&self, transaction: &SignedTransaction) -> Result<Resent, ChainError> {
        // From before the books were kept with a facilitator. Broadcasting takes no key.
        if transaction.sender != NOBODY {
            return self.inner.resend(transaction).await;
        }
        let hash = transaction.hash;
        let (intent, Record { request, .. }) = self.recall(transaction)?;
        match intent.standing {
            Standing::Asked => return Ok(Resent::Known),
            Standing::Unknown(Some(since)) if since.elapsed() < ASK_AGAIN_AFTER => return Ok(Resent::Known),
            // One that was seen in a block and is in none any more went with that block.
            Standing::Named(_, since) if !intent.is_over && since.elapsed() < NAMED_WAIT => return Ok(Resent::Known),
            Standing::Named(named, _) if self.inner.receipt(named).await?.is_some() => return Ok(Resent::Known),
            Standing::Named(..) | Standing::Unknown(_) | Standing::Refused => {}
        }
        // Before the question what was done, so that nothing is done in between.
        let now_s = self.inner.head().await?.timestamp;
        match (self.look(&intent).await?, &*intent.wanted) {
            (Sight::By(transaction), _) => {
                lock(&self.table).set(hash, Standing::Named(transaction, Instant::now()));
                Ok(Resent::Known)
            }
            // Whoever deposits asks the authorization itself.
            (Sight::Somehow, Wanted::Deposit { .. }) => Ok(Resent::Known),
            (Sight::Somehow, _) => Ok(self.replaced(&hash)),
            // Nobody can make this deposit any more.
            (Sight::Not, Wanted::Deposit { valid_before, .. }) if now_s >= *valid_before => Ok(self.replaced(&hash)),
            (Sight::Not, _) if matches!(intent.standing, Standing::Refused) => Ok(self.replaced(&hash)),
            (Sight::Not, _) => {
                tracing::info!(intent = %hash, purpose = intent.wanted.as_str(), "the facilitator is asked again");
                self.ask(hash, Arc::clone(&intent.wanted), &request)?;
                Ok(Resent::Known)
            }
        }
    }

    async fn receipt(&self, transaction: Hash) -> Result<Option<Mined>, ChainError> {
        let Some(intent) = self.intent(&transaction) else { return self.inner.receipt(transaction).await };
        let named = match intent.standing {
            Standing::Named(named, _) => named,
            Standing::Refused | Standing::Unknown(None) => return Ok(None),
            // An answer may be lost or late, and what it is about done.
            Standing::Asked | Standing::Unknown(Some(_)) => match self.look(&intent).await? {
                Sight::By(found) => {
                    lock(&self.table).set(transaction, Standing::Named(found, Instant::now()));
                    found
                }
                Sight::Somehow | Sight::Not => return Ok(None),
            },
        };
        self.judge(transaction, &intent, named).await
    }

    async fn events(&self, from_block: u64, to_block: u64) -> Result<Vec<ChannelEvent>, ChainError> {
        self.inner.events(from_block, to_block).await
    }

    /// The same, but what was refused is not waited for.
    async fn await_receipt(
        &self,
        transaction: Hash,
        timeout: Duration,
        poll: Duration,
    ) -> Result<Option<Mined>, ChainError> {
        let deadline = Instant::now() + timeout;
        loop {
            let answer = self.receipt(transaction).await;
            let next = Instant::now() + poll;
            let refused = self.intent(&transaction).is_some_and(|it| matches!(it.standing, Standing::Refused));
            match answer {
                Ok(Some(mined)) => return Ok(Some(mined)),
                unfinished if refused || next >= deadline => return unfinished,
                _ => tokio::time::sleep_until(next).await,
            }
        }
    }
}

impl fmt::Debug for FacilitatedChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FacilitatedChain")
            .field("inner", &self.inner)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(intents: &[(u8, u64)]) -> Table {
        let mut table = Table::default();
        for (number, nonce) in intents {
            let wanted = Arc::new(Wanted::Settle { receiver: Address([*number; 20]), token: Address::ZERO });
            let (standing, since_block) = (Standing::Asked, 0);
            let intent = Intent { nonce: *nonce, since_block, wanted, standing, may_be_sent: false, is_over: false };
            table.add(Hash([*number; 32]), intent);
        }
        table
    }

    fn end(table: &mut Table, number: u8) {
        table.intents.get_mut(&Hash([number; 32])).unwrap().is_over = true;
    }

    #[test]
    fn intents_count_like_an_accounts_transactions() {
        assert_eq!((table(&[]).mined(), table(&[]).next_nonce), (0, 0));
        let mut table = table(&[(1, 0), (2, 1), (3, 2)]);
        assert_eq!((table.mined(), table.next_nonce), (0, 3));
        end(&mut table, 2);
        assert_eq!(table.mined(), 0, "the lowest is not over");
        end(&mut table, 1);
        assert_eq!(table.mined(), 2);
        assert_eq!([1, 2, 3, 9].map(|nonce| table.takes(nonce)), [false, false, true, true]);
        end(&mut table, 3);
        assert_eq!((table.mined(), table.next_nonce), (3, 3));
        table.remove(&Hash([3; 32]));
        assert_eq!((table.mined(), table.next_nonce, table.takes(2)), (2, 2, true), "what came to nothing used none");
    }

    #[test]
    fn what_another_process_left_goes_on_with_its_nonces() {
        let table = table(&[(1, 5), (2, 7)]);
        assert_eq!((table.mined(), table.next_nonce), (5, 8));
        assert_eq!([4, 5, 6, 7].map(|nonce| table.takes(nonce)), [false, false, true, false]);
    }

    #[test]
    fn what_is_over_is_forgotten_before_what_is_not() {
        let numbers: Vec<_> = (0..=u8::MAX).map(|number| (number, u64::from(number))).collect();
        let mut table = table(&numbers);
        table.intents.values_mut().skip(1).for_each(|intent| intent.is_over = true);
        let over = table.intents[&Hash([9; 32])].clone();
        for extra in 0..MAX_REMEMBERED {
            let hash = keccak256(&extra.to_be_bytes());
            table.add(hash, Intent { nonce: 1_000 + u64::try_from(extra).unwrap(), ..over.clone() });
        }
        assert_eq!(table.intents.len(), MAX_REMEMBERED + 1);
        assert_eq!(table.mined(), 0, "the one that is not over is there");
    }

    #[test]
    fn a_deposit_that_may_be_sent_is_not_refused_any_more() {
        let hash = Hash([1; 32]);
        let with = |wanted: Wanted, before: Standing| {
            let mut table = table(&[(1, 0)]);
            table.intents.get_mut(&hash).unwrap().wanted = Arc::new(wanted);
            table.set(hash, before);
            table.set(hash, Standing::Asked);
            table.refuse(hash);
            table.intents[&hash].standing
        };
        let (channel, nonce) = (ChannelId([2; 32]), Hash::ZERO);
        let (token, payer) = (Address::ZERO, Address::ZERO);
        let deposit = || Wanted::Deposit { channel, amount: Amount::new(1), token, payer, nonce, valid_before: 0 };
        let unknown = Standing::Unknown(Some(Instant::now()));
        assert!(matches!(with(deposit(), Standing::Asked), Standing::Refused));
        assert!(matches!(with(deposit(), unknown), Standing::Unknown(Some(_))));
        assert!(matches!(with(deposit(), Standing::Named(hash, Instant::now())), Standing::Unknown(Some(_))));
        assert!(matches!(with(Wanted::Claim(Vec::new()), unknown), Standing::Refused));
    }

    #[test]
    fn what_was_found_on_chain_outlives_an_answer_that_names_nothing() {
        let hash = Hash([1; 32]);
        let mut table = table(&[(1, 0)]);
        table.set(hash, Standing::Named(Hash([7; 32]), Instant::now()));
        table.refuse(hash);
        table.answered(hash, Standing::Unknown(Some(Instant::now())));
        assert!(matches!(table.intents[&hash].standing, Standing::Named(found, _) if found == Hash([7; 32])));
        table.answered(hash, Standing::Named(Hash([8; 32]), Instant::now()));
        assert!(matches!(table.intents[&hash].standing, Standing::Named(named, _) if named == Hash([8; 32])));
    }
}
