//! Whether a payment pays.
//!
//! **Owns** the order of the checks: offer, extensions, terms, channel id, arithmetic, and only then the curve and the
//! chain, so that what is cheap to refuse is refused cheaply. **Promises** that a corrective with a channel's last
//! voucher goes only to somebody who just signed for that channel, as does a place among those that wait for it, and that a
//! deposit is relayed before anything is served on it. **Does not** call the upstream.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::accounts::{self, Hold, Payer};
use super::answer::Refusal;
use super::desk::{DepositEnd, Place, RefundError};
use super::patience::Look;
use super::policy::{Listing, Offered, Terms, Transfer};
use super::turns::{self, Asked, Called, Reserved, Waiting, Wants};
use super::{Gate, Peer};
use crate::clock;
use crate::ledger::{self, Channel, Reject, View};
use crate::protocol::channel::Authorizer;
use crate::protocol::contracts::{PERMIT2, PERMIT2_COLLECTOR};
use crate::protocol::deposit::{
    Authorization, MIN_AUTHORIZATION_LEFT_S, Permission, Permit2Authorization, TokenPermit,
};
use crate::protocol::voucher::{PayerEvidence, VoucherError};
use crate::protocol::x402::{Action, ChannelState, Deposit, Order, Payment, Receipt, RefundRequest};
use crate::protocol::{
    Address, Amount, BoundConfig, ChannelConfig, ChannelId, Code, Domain, Hash, Signature, SignedVoucher,
    VerifiedVoucher,
};

/// The longest a request waits for its deposit or refund to be mined, seconds, unless the offer promises an answer
/// sooner; afterwards the transaction goes on and the client is told to come back. Below the usual timeouts of HTTP
/// clients and load balancers on such a request.
const MAX_CHAIN_WAIT_S: u64 = 90;

/// How often a channel is read whose deposit has landed and does not count yet.
const COUNTING_POLL: Duration = Duration::from_millis(500);

/// A request that may be served, and how it pays.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) hold: Hold,
    pub(super) payer: Payer,
    /// The transaction and the sum, if the request came with a deposit.
    pub(super) deposited: Option<(Hash, Amount)>,
}

/// What became of a payment.
#[derive(Debug)]
pub(super) enum Admission {
    /// Serve the request.
    Serve(Admitted),
    /// It was a refund, and it was paid.
    Refunded { receipt: Receipt, state: ChannelState },
}

/// How a payment stands in line for its channel, if it has to.
#[derive(Debug, Default)]
struct Turn {
    /// Its deposit is on the way; afterwards so is its voucher.
    reserved: Option<Reserved>,
    waiting: Option<Waiting>,
}

/// What came of judging a deposit.
#[derive(Debug)]
enum Judged {
    Relay,
    /// Not now, or not at all; and what the chain says of the channel.
    Wait(Wants, View),
}

/// What a payment answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered<'a> {
    /// What is asked for, as its price list has it.
    pub(super) listing: &'a Listing,
    /// In which token.
    pub(super) offered: &'a Offered,
    /// As the list in force has it: the same, unless a former list's offer is answered.
    pub(super) in_force: &'a Listing,
}

/// A payment whose terms were checked: what the rest of the checks need.
pub(super) struct Claimed<'a> {
    terms: &'a Terms,
    settlement: &'a Domain,
    /// What the ledger has to know of the terms, in units of their token.
    pub(super) limits: ledger::Limits,
    pub(super) id: ChannelId,
    config: ChannelConfig,
    bound: BoundConfig,
    pub(super) voucher: SignedVoucher,
    pub(super) order: Order,
    /// What is paid; nothing for a refund.
    pub(super) due: Option<Amount>,
    /// What is asked for.
    listing: &'a Listing,
    /// For what, in which token.
    offered: &'a Offered,
    /// What the list in force says of the same request.
    in_force: &'a Listing,
    /// How often its sender's payments came to nothing.
    pub(super) look: Look,
    /// The request's id, for the log.
    request: Option<&'a str>,
}

impl Gate {
    /// Judges a payment that answers an offer of the route, relays what it has to relay, and holds its price.
    pub(super) async fn admit<'a>(
        &self,
        Answered { listing, offered, in_force }: Answered<'a>,
        payment: Payment<'_>,
        peer: Option<Peer>,
        request: Option<&'a str>,
    ) -> Result<Admission, Refusal> {
        let Offered { tender, price, .. } = offered;
        let (route, terms, settlement, price) = (&listing.route, &tender.terms, &tender.settlement, *price);
        // What cannot be written down cannot be charged, and a deposit would only be locked up.
        if self.accounts.journal().latch().is_some() {
            return Err(Code::BooksUnavailable.into());
        }
        let refund = matches!(payment.action, Action::Refund(_));
        check_extensions(&route.extensions, &payment.extensions)?;
        let Payment { config, voucher, order, .. } = payment;
        check_terms(terms, &config)?;
        let bound = self.accounts.bind(&voucher.channel, &config, settlement);
        let id = bound.id();
        if id != voucher.channel {
            return Err(Code::ChannelIdMismatch.into());
        }
        let (due, look) = ((!refund).then_some(price), Look::at(peer));
        let limits = self.limits().of_channels(tender);
        let claimed = Claimed {
            terms,
            settlement,
            limits,
            id,
            config,
            bound,
            voucher,
            order,
            due,
            listing,
            offered,
            in_force,
            look,
            request,
        };
        self.bear(&claimed)?;
        let outcome = match payment.action {
            Action::Pay => self.pay(&claimed, price, None, &mut Turn::default()).await.map(Admission::Serve),
            Action::DepositAndPay(deposit) => {
                // In boxes is what seldom comes, so that the rest need not make room for it.
                Box::pin(self.deposit_and_pay(&claimed, price, deposit, peer)).await.map(Admission::Serve)
            }
            Action::Refund(request) => Box::pin(self.refund(&claimed, request, peer)).await,
        };
        let outcome = outcome.and_then(|admission| self.in_good_time(&claimed, admission));
        self.looked(&claimed, &outcome);
        outcome
    }

    /// Lets go what comes too fast. Not what brought a deposit, which has a limit of its own: refused, its client would not
    /// know that it landed.
    fn in_good_time(&self, claimed: &Claimed<'_>, admission: Admission) -> Result<Admission, Refusal> {
        match &admission {
            Admission::Serve(Admitted { payer, deposited: None, .. }) => {
                self.within_rate(&claimed.listing.route, payer.account).map(|()| admission)
            }
            _ => Ok(admission),
        }
    }

    /// A voucher alone, or the voucher of a deposit that has landed.
    async fn pay<'a>(
        &self,
        claimed: &Claimed<'a>,
        price: Amount,
        deposited: Option<(Hash, Amount)>,
        turn: &mut Turn,
    ) -> Result<Admitted, Refusal> {
        let Claimed { id, voucher, .. } = claimed;
        let mut verified = None;
        let mut refreshed = false;
        if deposited.is_none() && self.desk.depositing(id) {
            // Before it may wait, as before it is told anything.
            verified = Some(self.verify(claimed).await?);
            self.until_deposited(claimed, price, turn).await?;
        }
        let limits = claimed.limits;
        let preview = |order| {
            let now = clock::now_s();
            let read = |channel: &Channel| channel.preview_hold(voucher.max_claimable, price, order, limits, now);
            self.accounts.read(id, read)
        };
        let mut first = preview(claimed.order);
        if first.is_none() {
            // A stranger has to show a good signature before it can make us ask a node.
            if verified.is_none() {
                verified = Some(self.verify(claimed).await?);
            }
            self.ask(claimed)?;
            let view = self.refresh(claimed).await?;
            refreshed = true;
            if view.balance.is_zero() {
                // One that was refunded to nothing had a deposit once, in which its client may still believe.
                let was_open = view.refund_nonce > 0;
                return Err(if was_open {
                    self.corrected(claimed, price, turn, &view).await
                } else {
                    Code::ChannelNotFound.into()
                });
            }
        }
        loop {
            let unknown = || Refusal::from(Code::ChannelNotFound);
            let mut order = claimed.order;
            let mut previewed = first.take().or_else(|| preview(order)).ok_or_else(unknown)?;
            // What we told it to sign is good, whatever has become of the requests before it.
            if previewed.is_err_and(turns::is_out_of_step) && self.accounts.turns().was_told(id, voucher.max_claimable)
            {
                order = Order::Ahead;
                previewed = preview(order).ok_or_else(unknown)?;
            }
            // From here on every answer says something about the channel, so its owner must have signed.
            let proof = match verified.take() {
                Some(proof) => proof,
                None => self.verify(claimed).await?,
            };
            let held = match previewed {
                Ok(()) => {
                    let permit = self.accounts.journal().permit().ok_or(Refusal::from(Code::BooksUnavailable))?;
                    let held = self.accounts.hold(&proof, price, order, limits, &claimed.listing.route.name, permit);
                    held.ok_or(Refusal::from(Code::ChannelNotFound))?
                }
                Err(reject) => Err(reject),
            };
            match held {
                Ok(mut hold) => {
                    hold.comes_from(claimed.look.peer());
                    let account = claimed.config.authorizer().account();
                    hold.lowered_by(self.dues(claimed.listing, claimed.offered, account));
                    let payer = Payer { address: claimed.config.payer, account, channel: *id };
                    return Ok(Admitted { hold, payer, deposited });
                }
                // The books may only be behind: a deposit made past us, or a view gone old. Ask once.
                Err(reject @ (Reject::ViewTooOld | Reject::ExceedsBalance | Reject::NoDeposit))
                    if !refreshed && (reject == Reject::ViewTooOld || self.may_ask_again(claimed)) =>
                {
                    self.refresh(claimed).await?;
                    refreshed = true;
                }
                // A client that sends a bare voucher above the balance believes in a balance that is gone (a refund or a
                // withdrawal it has not seen), in part or as a whole. The corrective is the only answer after which a
                // stock client reads the chain and tops up; "exceeds balance" and "not found" would leave it stuck for
                // good. A channel that never had a deposit is not in the books and does not come here.
                Err(reject)
                    if reject == Reject::Busy
                        || turns::is_out_of_step(reject)
                        || matches!(reject, Reject::ExceedsBalance | Reject::NoDeposit) =>
                {
                    // Whose balance is too low and who may not ask again is told so: called to ask, it would come back
                    // here at once, over and over.
                    let is_short = matches!(reject, Reject::ExceedsBalance | Reject::NoDeposit);
                    let wants = Wants::Service { looked: refreshed || is_short };
                    if let Some(corrected) = self.in_turn(claimed, price, turn, wants).await? {
                        return Err(corrected.unwrap_or_else(|| self.corrective(claimed, &View::default())));
                    }
                }
                Err(reject) => return Err(self.refusal_of(claimed, reject)),
            }
            verified = Some(proof);
        }
    }

    /// Waits until the channel may have room for a payment that was verified, or its sender is to be corrected: then with
    /// what it is told, where the books have the channel.
    async fn in_turn(
        &self,
        claimed: &Claimed<'_>,
        price: Amount,
        turn: &mut Turn,
        wants: Wants,
    ) -> Result<Option<Option<Refusal>>, Refusal> {
        // Whoever waits is not on its way.
        turn.reserved = None;
        let waiting = self.waiting(claimed, price, turn, wants)?;
        match waiting.called().await {
            Called::ToGo => Ok(None),
            Called::ToBeCorrected(correction) => {
                let refusal = correction.map(|correction| Refusal::corrective(correction.0, correction.1));
                Ok(Some(refusal))
            }
            Called::InVain => Err(Code::ChannelBusy.into()),
        }
    }

    /// The corrective for a client out of step whatever its voucher, once it is its turn.
    async fn corrected(&self, claimed: &Claimed<'_>, price: Amount, turn: &mut Turn, on_chain: &View) -> Refusal {
        match self.in_turn(claimed, price, turn, Wants::Correction).await {
            Ok(corrected) => corrected.flatten().unwrap_or_else(|| self.corrective(claimed, on_chain)),
            Err(refusal) => refusal,
        }
    }

    /// Waits until no deposit of the channel is on its way. What it brings, and what its own voucher pays for, decides
    /// about every other voucher.
    async fn until_deposited(&self, claimed: &Claimed<'_>, price: Amount, turn: &mut Turn) -> Result<(), Refusal> {
        let deadline = self.waiting(claimed, price, turn, Wants::Nothing)?.deadline();
        while let Some(wait) = self.desk.under_way(&claimed.id) {
            until(deadline, wait.end()).await.ok_or(Refusal::from(Code::ChannelBusy))?;
        }
        Ok(())
    }

    /// A place among those that wait for the channel; the one it has, if it has one.
    fn waiting<'a>(
        &self,
        claimed: &Claimed<'_>,
        price: Amount,
        turn: &'a mut Turn,
        wants: Wants,
    ) -> Result<&'a mut Waiting, Refusal> {
        let asked = Asked {
            wants,
            max: claimed.voucher.max_claimable,
            price,
            order: claimed.order,
            limits: claimed.limits,
            most: self.limits().max_waiting,
        };
        let longest = self.limits().max_wait.min(Duration::from_secs(claimed.terms.max_timeout_s));
        let deadline = Instant::now() + longest;
        match &mut turn.waiting {
            Some(waiting) => waiting.ask(asked, deadline),
            None => turn.waiting = self.accounts.turns().enter(&self.accounts, claimed.id, asked, deadline),
        }
        turn.waiting.as_mut().ok_or(Code::ChannelBusy.into())
    }

    async fn deposit_and_pay<'a>(
        &self,
        claimed: &Claimed<'a>,
        price: Amount,
        deposit: Deposit,
        peer: Option<Peer>,
    ) -> Result<Admitted, Refusal> {
        let Claimed { terms, id, config, voucher, .. } = claimed;
        check_deposit(claimed, price, &deposit)?;
        // The voucher's signature is made with nothing at stake, but it keeps strangers from making us ask a node.
        let proof = self.verify(claimed).await?;
        self.ask(claimed)?;
        // The payer's own signature, before its place is taken: anybody can name it as the payer of a channel whose
        // vouchers another key signs, and would keep it from depositing.
        self.check_authorization(claimed, &deposit).await?;
        let amount = deposit.amount;
        let salt = deposit.authorization.salt();
        let deadline = Instant::now() + longest_wait(terms);
        let turn = &mut Turn::default();
        let end = loop {
            match self.desk.place(*id, config.payer, salt) {
                // The same payload again: its deposit is in the books, only its voucher counts.
                Place::Free(place) if self.accounts.deposited_with(id, salt) => {
                    drop(place);
                    self.until_counted(claimed, deadline).await?;
                    return self.pay(claimed, price, None, turn).await;
                }
                // The place is held while the deposit is judged, so that no other one lands before it is sent. Nobody is
                // corrected meanwhile either, and until its voucher is held: the base is about to change.
                Place::Free(mut place) => {
                    turn.reserved = Some(self.accounts.turns().reserve(&self.accounts, *id, proof.max_claimable()));
                    if let Judged::Wait(wants, view) = self.judge_deposit(claimed, price, &proof, &deposit).await? {
                        // Whoever waits keeps nobody else from depositing.
                        drop(place);
                        match self.in_turn(claimed, price, turn, wants).await? {
                            None => continue,
                            Some(corrected) => {
                                return Err(corrected.unwrap_or_else(|| self.corrective(claimed, &view)));
                            }
                        }
                    }
                    // Counted last: what is refused for less costs no gas, and no budget.
                    let spent = self.deposits.spend(peer, self.limits().deposits, clock::now_s()).map_err(|seconds| {
                        let request = claimed.request;
                        tracing::warn!(request, channel = %id, seconds, "too many deposits; one more is not relayed");
                        Refusal::from(Code::DepositRateLimited).retry_after(seconds)
                    })?;
                    place.counted(spent);
                    let wait = self.desk.deposit(*config, deposit, voucher.clone(), price, place);
                    break until(deadline, wait.ok_or(Refusal::from(Code::RpcReadFailed))?.end()).await;
                }
                Place::Same(wait) => match until(deadline, wait.end()).await {
                    // The other request with this payload was refused before anything was sent, or left.
                    Some(None) => {}
                    end => break end,
                },
                // Two deposits of one channel at once are one too many: the payer's state is older than the first.
                // Once that has landed the client reads the chain and finds its money there.
                Place::Other(wait) => {
                    self.waiting(claimed, price, turn, Wants::Nothing)?;
                    if until(deadline, wait.end()).await.is_none() {
                        return Err(Code::SettlementPending.into());
                    }
                }
                // It is told to come back, and finds its deposit landed then.
                Place::Crowded => return Err(Code::ChannelBusy.into()),
                // A payer with many channels could have as many deposits tried and sent at once; they go one by one.
                // Nothing of this one was sent yet.
                Place::OtherChannel(wait) => {
                    let detail = "another deposit of this payer is on its way";
                    if until(deadline, wait.end()).await.is_none() {
                        return Err(Refusal::from(Code::ChannelBusy).with_detail(detail));
                    }
                }
            }
        };
        match end {
            Some(Some(DepositEnd::Landed { transaction, .. })) => {
                self.until_counted(claimed, deadline).await?;
                let landed = Some((transaction, amount));
                self.pay(claimed, price, landed, turn).await.map_err(|refusal| match self.state(id) {
                    // The deposit is on chain although the request is not served; not to say so would make the
                    // client deposit again.
                    Some(state) => {
                        let network = terms.network();
                        let payer = config.payer;
                        refusal.with_receipt(Receipt::deposited(
                            &network,
                            payer,
                            transaction,
                            amount,
                            Amount::ZERO,
                            &state,
                        ))
                    }
                    None => refusal,
                })
            }
            Some(Some(DepositEnd::PayerTooPoor)) => Err(Code::InsufficientBalance.into()),
            Some(Some(DepositEnd::WouldFail(why))) => {
                Err(Refusal::from(Code::DepositSimulationFailed).with_detail(why))
            }
            Some(Some(DepositEnd::Dead(why))) => {
                let code = Code::DepositTransactionFailed;
                Err(Refusal::from(code).with_receipt(Receipt::failed(&terms.network(), config.payer, code, &why)))
            }
            Some(Some(DepositEnd::Unreachable)) => Err(Code::RpcReadFailed.into()),
            // Nobody can say whether it will land, so nobody says it failed.
            Some(None) | None => {
                let (request, voucher) = (claimed.request, voucher.max_claimable);
                tracing::warn!(request, channel = %id, %voucher, "a deposit is still on its way");
                Err(Code::SettlementPending.into())
            }
        }
    }

    /// Waits until a deposit that has landed counts: a chain may let some blocks pass first. Meanwhile the books have the
    /// lower balance, which is no reason to refuse a payer whose money is there.
    async fn until_counted(&self, claimed: &Claimed<'_>, deadline: Instant) -> Result<(), Refusal> {
        let Claimed { id, voucher, .. } = claimed;
        let expects = |channel: &Channel| channel.charged() < voucher.max_claimable;
        let short = |channel: &Channel| expects(channel) && channel.ceiling() < voucher.max_claimable;
        while self.accounts.read(id, short) == Some(true) {
            if deadline.saturating_duration_since(Instant::now()) < COUNTING_POLL {
                return Err(Code::SettlementPending.into());
            }
            tokio::time::sleep(COUNTING_POLL).await;
            // A node's bad moment; the next one may be better.
            let _ = self.refresh(claimed).await;
        }
        Ok(())
    }

    /// Whether a deposit may be relayed, now that its place is taken.
    async fn judge_deposit(
        &self,
        claimed: &Claimed<'_>,
        price: Amount,
        proof: &VerifiedVoucher,
        deposit: &Deposit,
    ) -> Result<Judged, Refusal> {
        let id = &claimed.id;
        let limits = claimed.limits;
        let known = self.accounts.read(id, |channel| {
            let refused = if channel.is_full(limits) {
                Some(Reject::Busy)
            } else if channel.is_withdrawing(limits, clock::now_s()) {
                Some(Reject::Withdrawing)
            } else {
                None
            };
            (refused, channel.base(price), channel.ceiling(), channel.view())
        });
        let (base, ceiling, view, out_of_step) = match known {
            Some((Some(Reject::Busy), _, _, view)) => return Ok(Judged::Wait(Wants::Deposit, view)),
            Some((Some(reject), ..)) => return Err(self.refusal_of(claimed, reject)),
            Some((None, base, ceiling, view)) => (base, ceiling, view, Wants::Deposit),
            None => {
                let view = self.refresh(claimed).await?;
                (view.total_claimed, view.balance, view, Wants::Correction)
            }
        };
        let max = proof.max_claimable();
        if base.checked_add(price) != Some(max) {
            return Ok(Judged::Wait(out_of_step, view));
        }
        // A payer that deposits again although its last deposit is there and untouched does not know of it: it signed
        // both side by side, was told that the first is pending, or lost our answer. Corrected, it reads the chain and
        // finds its money.
        if max <= ceiling && self.accounts.deposit_untouched(id) {
            return Ok(Judged::Wait(Wants::Correction, view));
        }
        if ceiling.checked_add(deposit.amount).is_none_or(|covered| max > covered) {
            return Err(Code::CumulativeExceedsBalance.into());
        }
        // It would land, and still not be served.
        let exposed = max.saturating_sub(view.total_claimed);
        if claimed.config.payer_authorizer.is_zero() && exposed > limits.max_wallet_exposure {
            return Err(self.refusal_of(claimed, Reject::WalletExposed));
        }
        self.check_allowance(claimed, deposit).await?;
        Ok(Judged::Relay)
    }

    async fn refund<'a>(
        &self,
        claimed: &Claimed<'a>,
        request: RefundRequest,
        peer: Option<Peer>,
    ) -> Result<Admission, Refusal> {
        let Claimed { terms, id, config, .. } = claimed;
        let proof = self.verify(claimed).await?;
        if !self.accounts.knows(id) {
            self.ask(claimed)?;
            if self.refresh(claimed).await?.balance.is_zero() {
                return Err(Code::ChannelNotFound.into());
            }
        }
        if self.desk.depositing(id) {
            return Err(Code::ChannelBusy.into());
        }
        let mut refreshed = false;
        let (ticket, amount) = loop {
            match self.accounts.begin_refund(&proof, request).ok_or(Refusal::from(Code::ChannelNotFound))? {
                Ok(begun) => break begun,
                Err(Reject::ViewTooOld) if !refreshed => {
                    self.refresh(claimed).await?;
                    refreshed = true;
                }
                Err(reject) => return Err(self.refusal_of(claimed, reject)),
            }
        };
        if !self.accounts.allow_refund(id) {
            return Err(Code::RefundTooOften.into());
        }
        // A payer may have any number of channels, and ask for a unit at a time; it can always withdraw at its own cost.
        self.refunds.spend(peer, self.limits().deposits, clock::now_s()).map_err(|seconds| {
            tracing::warn!(request = claimed.request, channel = %id, seconds, "too many refunds; one more is not paid");
            Refusal::from(Code::RefundTooOften).retry_after(seconds)
        })?;
        let row = self.accounts.read(id, accounts::claim_row).flatten();
        let sent = match within(terms, self.desk.refund(*config, row, amount, ticket)).await {
            Some(Ok(Ok(sent))) => sent,
            Some(Ok(Err(RefundError::WouldFail(why)))) => {
                return Err(Refusal::from(Code::RefundSimulationFailed).with_detail(why));
            }
            Some(Ok(Err(RefundError::Failed(why)))) => {
                return Err(Refusal::from(Code::RefundTransactionFailed).with_detail(why));
            }
            Some(Ok(Err(RefundError::Unreachable)) | Err(_)) => return Err(Code::RpcReadFailed.into()),
            Some(Ok(Err(RefundError::Pending))) | None => return Err(Code::SettlementPending.into()),
        };
        let state = self.state(id).ok_or(Refusal::from(Code::ChannelNotFound))?;
        let receipt = Receipt::refunded(&terms.network(), config.payer, sent.transaction, sent.amount, &state);
        Ok(Admission::Refunded { receipt, state })
    }

    /// Whether it is signed, and by somebody who may pay. Curve work, and a question to the chain only where the payer's
    /// own account is the authorizer.
    async fn verify(&self, claimed: &Claimed<'_>) -> Result<VerifiedVoucher, Refusal> {
        let Claimed { settlement, config, bound, voucher, .. } = claimed;
        let verified = match config.authorizer() {
            Authorizer::Key(signer) => match self.hot_keys.table(signer) {
                Some(table) => voucher.verify_hot(bound, &table),
                None => {
                    let verified = voucher.verify_bound(bound);
                    // A channel that is in the books had a deposit; who has none does not get a table.
                    if verified.is_ok() && self.accounts.knows(&claimed.id) {
                        self.hot_keys.proved(signer, || (voucher.digest(settlement), voucher.signature.clone()));
                    }
                    verified
                }
            },
            Authorizer::Payer(payer) => {
                self.ask(claimed)?;
                let evidence = self.evidence(payer, voucher.digest(settlement), &voucher.signature).await?;
                voucher.verify_bound_by_payer(bound, evidence)
            }
        };
        let verified = verified
            .map_err(|error: VoucherError| Refusal::from(Code::VoucherSignature).with_detail(error.to_string()))?;
        // Who was served before has a right to its refund. A former list's offer holds for its price, and not against who
        // may pay now.
        let may_pay = |listing: &Listing| {
            let rules = listing.route.rules.as_ref();
            rules.is_none_or(|rules| rules.admit_for(&config.authorizer().account(), &config.payer))
        };
        if claimed.due.is_some() && !(may_pay(claimed.listing) && may_pay(claimed.in_force)) {
            return Err(Code::PayerNotAllowed.into());
        }
        Ok(verified)
    }

    /// The deposit's own signatures.
    async fn check_authorization(&self, claimed: &Claimed<'_>, deposit: &Deposit) -> Result<(), Refusal> {
        match &deposit.authorization {
            Permission::Erc3009(authorization) => self.check_erc3009(claimed, deposit.amount, authorization).await,
            Permission::Permit2(authorization) => self.check_permit2(claimed, deposit.amount, authorization).await,
        }
    }

    /// The payer's key, or the payer's wallet where the payer has code.
    async fn check_erc3009(
        &self,
        claimed: &Claimed<'_>,
        amount: Amount,
        authorization: &Authorization,
    ) -> Result<(), Refusal> {
        let payer = claimed.config.payer;
        let digest = Authorization::digest(
            &claimed.terms.token_domain(),
            payer,
            amount,
            authorization.valid_after,
            authorization.valid_before,
            Authorization::nonce(claimed.id, authorization.salt),
        );
        if self.signed_by_payer(payer, digest, &authorization.signature).await? {
            return Ok(());
        }
        Err(Code::ReceiveAuthorizationSignature.into())
    }

    /// The transfer's signature, and that of the permit that came along.
    async fn check_permit2(
        &self,
        claimed: &Claimed<'_>,
        amount: Amount,
        authorization: &Permit2Authorization,
    ) -> Result<(), Refusal> {
        let Claimed { terms, id, config: ChannelConfig { payer, token, .. }, .. } = claimed;
        let Permit2Authorization { nonce, deadline, signature, permit, .. } = authorization;
        let domain = Domain::permit2(terms.chain_id);
        let digest = Permit2Authorization::digest(&domain, *token, amount, *nonce, *deadline, *id);
        // To Permit2 the key of an account with code counts for nothing, so the account is asked first.
        let signed = match self.evidence(*payer, digest, signature).await? {
            PayerEvidence::NoCode => signature.recover(digest) == Ok(*payer),
            PayerEvidence::Approved => true,
            PayerEvidence::Refused => false,
        };
        if !signed {
            return Err(Code::Permit2InvalidSignature.into());
        }
        if let Some(permit) = permit {
            // An old nonce is no fault: somebody may have used this very permit, and then the allowance is there.
            // Whether it suffices is found out when the deposit is tried.
            let digest = TokenPermit::digest(&terms.token_domain(), *payer, amount, permit.nonce, permit.deadline);
            if self.signed_by_payer(*payer, digest, &permit.signature).await? {
                return Ok(());
            }
            return Err(Code::Eip2612InvalidSignature.into());
        }
        Ok(())
    }

    /// That Permit2 may move the payer's tokens: by a permit that came along, or because the payer allowed it before.
    async fn check_allowance(&self, claimed: &Claimed<'_>, deposit: &Deposit) -> Result<(), Refusal> {
        let Permission::Permit2(authorization) = &deposit.authorization else { return Ok(()) };
        if authorization.permit.is_some() {
            return Ok(());
        }
        let Claimed { config: ChannelConfig { payer, token, .. }, .. } = claimed;
        let amount = deposit.amount;
        let allowance = self.desk.allowance(*token, *payer, PERMIT2).await;
        if allowance.map_err(|_| Refusal::from(Code::RpcReadFailed))? < amount {
            return Err(Refusal::from(Code::Permit2AllowanceRequired)
                .with_detail(format!("approve Permit2 ({PERMIT2}) for {amount}, or send an EIP-2612 permit")));
        }
        Ok(())
    }

    /// Whether a token would take this for the payer's signature: its key's, or its wallet's where it has code.
    async fn signed_by_payer(&self, payer: Address, digest: Hash, signature: &Signature) -> Result<bool, Refusal> {
        if signature.recover(digest) == Ok(payer) {
            return Ok(true);
        }
        Ok(self.evidence(payer, digest, signature).await? == PayerEvidence::Approved)
    }

    async fn evidence(&self, payer: Address, digest: Hash, signature: &Signature) -> Result<PayerEvidence, Refusal> {
        if let Some(said) = self.evidence.recall(payer, digest, signature) {
            return Ok(said);
        }
        // The answer is as old as the question.
        let asked = Instant::now();
        let said = self.desk.evidence(payer, digest, signature.clone()).await;
        let said = said.map_err(|_| Refusal::from(Code::RpcReadFailed))?;
        self.evidence.keep(payer, digest, signature, said, asked);
        Ok(said)
    }

    /// Reads the channel on chain and books what it says.
    async fn refresh(&self, claimed: &Claimed<'_>) -> Result<View, Refusal> {
        let view = self.desk.view(claimed.id).await.map_err(|error| {
            tracing::warn!(request = claimed.request, channel = %claimed.id, %error, "a channel could not be read");
            Refusal::from(Code::ChannelStateReadFailed)
        })?;
        self.accounts.observe(claimed.id, &claimed.config, view).map_err(|reject| {
            tracing::error!(request = claimed.request, channel = %claimed.id, %reject, "the node's answer cannot be true");
            Refusal::from(Code::ChannelStateReadFailed)
        })?;
        Ok(view)
    }

    fn state(&self, id: &ChannelId) -> Option<ChannelState> {
        self.accounts.read(id, accounts::channel_state)
    }

    /// What a reject means to its sender, who has proven to own the channel.
    fn refusal_of(&self, claimed: &Claimed<'_>, reject: Reject) -> Refusal {
        match reject {
            Reject::Busy => Code::ChannelBusy.into(),
            Reject::AmountMismatch
            | Reject::Spent
            | Reject::TooFarAhead
            | Reject::ExceedsBalance
            | Reject::NoDeposit => self.corrective(claimed, &View::default()),
            Reject::ExceedsWithdrawal => Code::CumulativeExceedsBalance.into(),
            // Neither a corrective, after which a stock client would pay once more in vain, nor "exceeds balance".
            Reject::Withdrawing => Refusal::from(Code::ChannelWithdrawing)
                .with_detail("a withdrawal of this channel can be finished soon; finish it, or use another channel"),
            Reject::WalletExposed => {
                self.accounts.want_claim();
                let most = claimed.limits.max_wallet_exposure;
                let detail = format!("at most {most} may wait to be claimed where the payer's own account signs");
                Refusal::from(Code::WalletExposed).with_detail(detail)
            }
            Reject::NothingToRefund => Code::RefundNoBalance.into(),
            Reject::ViewTooOld | Reject::ImpossibleView => Code::ChannelStateReadFailed.into(),
            Reject::OtherChannel => Code::ChannelIdMismatch.into(),
            Reject::ZeroPrice | Reject::NoSuchHold | Reject::ChargeExceedsHold | Reject::NoRefund => {
                let request = claimed.request;
                let message = "the ledger refused what the gate should not have asked";
                tracing::error!(request, channel = %claimed.id, %reject, "{message}");
                Code::ChannelBusy.into()
            }
        }
    }

    /// The true state for a client out of step: our books, or for a channel that has none what the chain says.
    fn corrective(&self, claimed: &Claimed<'_>, on_chain: &View) -> Refusal {
        let known = self.accounts.read(&claimed.id, |channel| {
            let state = claimed
                .due
                .map_or_else(|| accounts::channel_state(channel), |price| accounts::corrective_state(channel, price));
            (state, accounts::voucher_state(channel))
        });
        let unknown = || (accounts::state_of(claimed.id, on_chain, on_chain.total_claimed), None);
        let (state, voucher) = known.unwrap_or_else(unknown);
        Refusal::corrective(state, voucher)
    }
}

/// Waits for the chain as long as a request may.
async fn within<T>(terms: &Terms, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(longest_wait(terms), future).await.ok()
}

/// The same, until a moment.
async fn until<T>(deadline: Instant, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout_at(deadline.into(), future).await.ok()
}

fn longest_wait(terms: &Terms) -> Duration {
    Duration::from_secs(MAX_CHAIN_WAIT_S.min(terms.max_timeout_s))
}

/// The terms of the channel must be the offer's.
fn check_terms(terms: &Terms, config: &ChannelConfig) -> Result<(), Refusal> {
    let refuse = |code: Code| Err(code.into());
    if config.receiver != terms.pay_to {
        return refuse(Code::ReceiverMismatch);
    }
    if config.receiver_authorizer != terms.receiver_authorizer {
        return refuse(Code::ReceiverAuthorizerMismatch);
    }
    if config.token != terms.token.address {
        return refuse(Code::TokenMismatch);
    }
    if !config.withdraw_delay_in_range() {
        return refuse(Code::WithdrawDelayOutOfRange);
    }
    if config.withdraw_delay != terms.withdraw_delay_s {
        return refuse(Code::WithdrawDelayMismatch);
    }
    Ok(())
}

/// What can be said of a deposit without curve or chain.
fn check_deposit(claimed: &Claimed<'_>, price: Amount, deposit: &Deposit) -> Result<(), Refusal> {
    let terms = claimed.terms;
    let least = terms.min_deposit.map_or(Amount::ZERO, |least| least.max(price));
    if deposit.amount < least {
        return Err(Refusal::from(Code::DepositBelowMinDeposit).with_detail(format!("at least {least}")));
    }
    let now = clock::now_s();
    match (terms.token.transfer, &deposit.authorization) {
        (Transfer::Eip3009, Permission::Erc3009(authorization)) => check_window(authorization, now),
        (Transfer::Permit2, Permission::Permit2(authorization)) => {
            check_permit2_fields(authorization, &claimed.config, claimed.id, deposit.amount, now)
        }
        (Transfer::Eip3009, Permission::Permit2(_)) => Err(Code::Erc3009AuthorizationRequired),
        (Transfer::Permit2, Permission::Erc3009(_)) => Err(Code::Permit2AuthorizationRequired),
    }
    .map_err(Refusal::from)
}

fn check_window(authorization: &Authorization, now: u64) -> Result<(), Code> {
    // The token wants its block to be later than this moment, not at it.
    if authorization.valid_after >= now {
        return Err(Code::PayloadAuthorizationValidAfter);
    }
    if authorization.valid_before < now.saturating_add(MIN_AUTHORIZATION_LEFT_S) {
        return Err(Code::PayloadAuthorizationValidBefore);
    }
    Ok(())
}

/// Everything a Permit2 transfer says, and the permit that may come along, must be what the collector will ask for: in
/// the order of the official facilitator.
fn check_permit2_fields(
    authorization: &Permit2Authorization,
    config: &ChannelConfig,
    id: ChannelId,
    amount: Amount,
    now: u64,
) -> Result<(), Code> {
    let soonest = now.saturating_add(MIN_AUTHORIZATION_LEFT_S);
    let transfer = [
        (authorization.from == config.payer, Code::Permit2InvalidSignature),
        (authorization.spender == PERMIT2_COLLECTOR, Code::Permit2InvalidSpender),
        (authorization.token == config.token, Code::TokenMismatch),
        (authorization.amount == amount, Code::Permit2AmountMismatch),
        (authorization.channel == id, Code::ChannelIdMismatch),
        (authorization.deadline >= soonest, Code::Permit2DeadlineExpired),
    ];
    let permit = authorization.permit.as_ref().map(|permit| {
        [
            (permit.owner == config.payer, Code::Eip2612OwnerMismatch),
            (permit.token == config.token, Code::Eip2612AssetMismatch),
            (permit.spender == PERMIT2, Code::Eip2612SpenderMismatch),
            (permit.deadline >= soonest, Code::Eip2612DeadlineExpired),
            (permit.amount == amount, Code::Eip2612AmountMismatch),
        ]
    });
    let mut checks = transfer.into_iter().chain(permit.into_iter().flatten());
    checks.find(|(holds, _)| !holds).map_or(Ok(()), |(_, code)| Err(code))
}

/// A client that echoes an extension must echo all it was advertised with; it may add to it.
fn check_extensions(advertised: &Map<String, Value>, echoed: &Map<String, Value>) -> Result<(), Refusal> {
    for (key, ours) in advertised {
        let Some(theirs) = echoed.get(key) else { continue };
        let (Some(Value::Object(ours)), theirs) = (ours.get("info"), theirs.get("info")) else { continue };
        let whole = ours.iter().all(|(field, value)| theirs.and_then(|info| info.get(field)) == Some(value));
        if !whole {
            return Err(Refusal::from(Code::ExtensionEchoMismatch).with_detail(format!("extension {key}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_echoed_extension_is_whole_or_refused() {
        let map = |value: Value| value.as_object().unwrap().clone();
        let advertised = map(json!({"bazaar": {"info": {"a": 1, "b": {"c": 2}}}}));
        let cases = [
            (json!({}), true),
            (json!({"other": {}}), true),
            (json!({"bazaar": {"info": {"a": 1, "b": {"c": 2}}}}), true),
            (json!({"bazaar": {"info": {"a": 1, "b": {"c": 2}, "mine": 3}}}), true),
            (json!({"bazaar": {"info": {"a": 1}}}), false),
            (json!({"bazaar": {"info": {"a": 2, "b": {"c": 2}}}}), false),
            (json!({"bazaar": {}}), false),
        ];
        for (echoed, expected) in cases {
            assert_eq!(check_extensions(&advertised, &map(echoed.clone())).is_ok(), expected, "{echoed}");
        }
    }
}
