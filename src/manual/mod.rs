//! The manual: how the rooms play together, for those who read code and those who run it.
//!
//! 1. [`a_paid_request`]: from the 402 to the receipt
//! 2. [`what_is_charged`]: every way a request can end
//! 3. [`when_it_is_refused`]: what bad payments get
//! 4. [`money_on_chain`]: deposits, claims, settlements, refunds, withdrawals
//! 5. [`when_it_is_claimed`]: what calls for a round, what waits, and how an operator sees it
//! 6. [`what_is_kept`]: the books on disk, and what a commit is
//! 7. [`what_is_lost`]: what a restart, a dead disk, a lost client and a lost answer cost
//! 8. [`without_gas`]: a facilitator instead of a gas key
//! 9. [`side_by_side`]: many requests of one channel at once
//! 10. [`what_it_costs`]: how prices are written, and how a charge is made of them
//! 11. [`metering`]: requests that cost what they use, and streams that do not come to their end
//! 12. [`routes`]: which price is whose, and who may pay
//! 13. [`live_prices`]: what a change of the config does, and how to know beforehand
//! 14. [`at_the_door`]: TLS, load balancers, and a restart that costs no request
//! 15. [`behind_it`]: upstreams, what happens when one fails, gRPC and WebSocket
//! 16. [`twice`]: a payment that comes again

pub mod at_the_door;
pub mod behind_it;
pub mod live_prices;
pub mod metering;
pub mod routes;
pub mod twice;
pub mod what_it_costs;

pub mod a_paid_request {
    //! From the 402 to the receipt.
    //!
    //! A request comes down the stack of [`proxy::stack`](crate::proxy::stack): id, log, CORS, panic, crowd, payment,
    //! upstream.
    //! In the payment layer ([`gate`](crate::gate)):
    //!
    //! 1. One snapshot of the price list serves the whole request. The path is read
    //!    ([`CleanPath`](crate::gate::path::CleanPath)); one that two servers could read differently is refused.
    //! 2. The most specific route decides. Free routes go straight through, unknown paths are 404.
    //! 3. Without a `PAYMENT-SIGNATURE` header the answer is the quote. The body is not read, unless the
    //!    price depends on it ([`routes`](super::routes)); the upstream is not asked.
    //! 4. With one, it must echo the offer, and the channel's terms must be the offer's. The channel's id is computed
    //!    from them, never believed.
    //! 5. The voucher must be for exactly what was charged so far plus the price, within the balance (where others of the
    //!    channel are being served, see [`side_by_side`](super::side_by_side)). Then its signature is checked, as strictly as
    //!    the contract does it.
    //! 6. The price is *held* on the channel. From now on nobody else can spend it.
    //! 7. The request goes upstream without payment headers and with `X-Peaje-Payer`, `-Channel` and `-Charged`.
    //! 8. An answer below 400 is *posted*: charged, at most what was held. Everything else is *voided*.
    //! 9. The charge is queued for the disk while the channel is still locked, and waited for without a lock.
    //! 10. Once it is durable the head leaves with the receipt in `PAYMENT-RESPONSE`; the body streams.
    //!
    //! Each step hands a proof to the next, which can be made nowhere else: a
    //! [`SignedVoucher`](crate::protocol::SignedVoucher) becomes a [`VerifiedVoucher`](crate::protocol::VerifiedVoucher)
    //! by its signature, that becomes a [`Hold`](crate::gate::accounts::Hold) by the books, only a hold can be charged,
    //! and only a charge that is on disk makes a receipt.
}

pub mod what_is_charged {
    //! Every way a request can end.
    //!
    //! | ended by | before it went upstream | sent, no head yet | head seen |
    //! |---|---|---|---|
    //! | a complete answer below 400 | | | the price, or what the upstream reported |
    //! | an answer of 400 or above, or a gRPC call that failed at once | | | nothing |
    //! | the client leaves | nothing | the price | it was charged with the head |
    //! | the client breaks off its own body | nothing | nothing: the upstream had half a request | |
    //! | the upstream fails or times out | nothing | nothing | it was charged with the head |
    //! | we stop or panic | nothing | nothing | it was charged with the head |
    //! | the books cannot be written | nothing | nothing | nothing, and instead of the answer a 503 |
    //! | we are killed, or the power is cut | nothing | nothing | what was on disk stands |
    //!
    //! A client that leaves while the upstream works for it pays, because leaving early would otherwise be free. A
    //! deposit that came with a request which then fails stays on the channel; the answer says so.
    //!
    //! An upstream reports a lower charge with a `Settlement-Overrides` header (see [`gate::meter`](crate::gate::meter)).
    //! It is never more than the quote, and the client never sees the header.
    //!
    //! What costs by what it uses is charged at its end, by a table of its own: [`metering`](super::metering).
}

pub mod when_it_is_refused {
    //! What bad payments get. None of them reaches the upstream or costs anything, and the channel stays as it was.
    //!
    //! | payment | answer |
    //! |---|---|
    //! | not base64, not JSON, two headers | 400 `malformed_payment`, `duplicate_payment_header` |
    //! | a header above 16 KiB | 431 `payment_header_too_large` |
    //! | another protocol version | 402 `Unsupported x402 version: 3` |
    //! | another offer | 402 `No matching payment requirements` |
    //! | terms, signatures, amounts | 402 with the scheme's code, see [`Code`](crate::protocol::Code) |
    //! | a voucher out of step | 402 `…cumulative_amount_mismatch` with the true state, which stock clients recover from |
    //! | one whose turn does not come | 402 `…channel_busy` with `Retry-After` |
    //! | the chain cannot be asked | 503 with `Retry-After`; vouchers of channels we know go on working |
    //! | a voucher close to the end of a withdrawal | 402 `channel_withdrawing` |
    //! | more than is risked on a payer whose wallet approves | 402 `wallet_exposure_limit`, until it is claimed |
    //! | more deposits than are relayed in an hour | 429 `deposit_rate_limited` with `Retry-After` |
    //! | more forged vouchers, or channels without a deposit, than one peer may send in a minute | 429 `payment_rate_limited` with `Retry-After` |
    //! | more requests than are served at once | 503 `overloaded` with `Retry-After` |
    //! | a body that pauses for too long | 408 `body_timeout`, and the connection ends |
    //! | a deposit whose fate is open | 503 `settlement_pending`; it is followed until its fate is known |
    //! | a payment's name that stands for another one, or whose answer is gone | 409, see [`twice`](super::twice) |
    //! | the books cannot be written | 503 `books_unavailable`, and the proxy ends |
    //!
    //! A corrective shows the channel's last voucher, so it is only given to somebody who just signed for the channel. A
    //! voucher above the balance gets the corrective too, not `…cumulative_exceeds_balance`: a client that believes in a
    //! balance which is gone can only be helped by being made to read the chain.
}

pub mod in_a_crowd {
    //! What floods and slow clients can take, and what they cannot.
    //!
    //! | flood | what bounds it |
    //! |---|---|
    //! | connections | `limits.max_connections`, a quarter of it for one peer; this machine's own are not counted for it |
    //! | heads that do not come | `limits.header_timeout`; after its first request a connection of HTTP/2 is asked whether its client is there, and kept as long as that answers |
    //! | bodies that do not come | `limits.body_timeout`, then 408; half a request is void |
    //! | answers that are not taken | [`MAX_WRITE_PAUSE`](crate::proxy::MAX_WRITE_PAUSE), for a connection and for a stream of HTTP/2 |
    //! | requests | `limits.max_requests`, of which the last quarter is for those that pay; those that wait for their channel's turn count too, so payers with many channels can fill it |
    //! | forged vouchers, channels without a deposit | `limits.bad_signatures_per_minute` for a peer; its refusals are held back for a second |
    //! | deposits, refunds | `[deposits]`, for a peer and in all |
    //! | questions to the chain | [`desk::MAX_WAITING`](crate::gate::desk::MAX_WAITING), then 503 |
    //! | charges that wait for the disk | [`MAX_UNWRITTEN_CHARGES`](crate::store::MAX_UNWRITTEN_CHARGES), then 503 |
    //!
    //! A peer is an address, or a network of version 6 (/64). Behind a load balancer that is not believed all clients are one. So the channels that
    //! paid from a peer in the last hour are served whatever else comes from there, unless their own vouchers are forged
    //! there as well. Whatever is refused here was not charged, and the same voucher is good afterwards.
}

pub mod side_by_side {
    //! Many requests of one channel at once.
    //!
    //! The protocol's text serialises: a server serves one request of a channel after the other, and a voucher is for what
    //! was charged so far plus the price. With `channel.max_in_flight = 1` Peaje does just that. Above 1 it serves so many
    //! side by side, and what the rule is for holds all the same: nothing is charged that no voucher covers, and no voucher
    //! pays twice. A voucher with the ceiling M for a price p stands for the piece of the channel's line from M - p to M;
    //! each piece pays for one request, the pieces in use do not overlap, and each charge is at most its piece. So the sum
    //! of all charges stays below the highest ceiling, which the provider holds, whichever of the requests fail
    //! ([`ledger`](crate::ledger)). What is lost is that a payer's highest ceiling says what it was charged: where requests
    //! fail, or cost less than their price, it has signed for more. The receipts say what was charged, claims are for that,
    //! and a refund returns the rest.
    //!
    //! **Stock clients** sign one voucher at a time, and do not know of each other's calls: those made side by side come with
    //! one and the same voucher. One is served, the others are told the base by a corrective, one after the other: whoever
    //! was told has two seconds to come back, and only when its new voucher is held is the next one told. The
    //! base is then what is reached by the requests in flight, shown with the payer's own voucher for it, so that handlers
    //! run side by side. With `max_in_flight = 1` the next one is told when the request before it is served. Each call needs
    //! one corrective, which is all that a stock client follows. A first deposit is waited for in the same way: of several
    //! that were signed side by side one is relayed. What a client was told stays good although a request before it fails.
    //!
    //! `channel.max_waiting` may wait on a channel for `channel.max_wait`; the others get `…channel_busy` and `Retry-After`.
    //! A voucher that fits never waits for one that does not, and nobody waits, or is told anything, before its signature
    //! was checked.
    //!
    //! **Clients that know Peaje** (`peaje pay --repeat 500 --parallel 32`) find `maxInFlight` in the offer's `extra`, which
    //! others ignore, and sign ahead: each voucher the price above the one before, without waiting for its answer, with
    //! `"signedAhead": true` in the payload. These may come in any order, and are served as they come, each once; at most
    //! `maxInFlight - 1` prices beyond the highest that is known. What fails gives its piece back, for the same voucher or
    //! another for the same piece. A piece that is used, or lies below what the channel has gone past, gets the corrective.
    //! Where answers cost less than their price the ceilings run ahead of the charges: the agent holds all that could be
    //! claimed against its budget and the balance, whatever the receipts say, so there it pays to sign in turn.
}

pub mod money_on_chain {
    //! Deposits, claims, settlements, refunds, withdrawals.
    //!
    //! What only a chain can do is asked at the gate's [`desk`](crate::gate::desk) and answered by
    //! [`redeem::Teller`](crate::redeem::Teller). A question outlives the request that asked it: who hangs up while a
    //! deposit is being mined finds it booked later.
    //!
    //! * **Deposit.** Tried, sent, mined, booked, and only then is the request served. One is on its way for each payer, so
    //!   many in an hour are relayed for each peer and for all (`[deposits]`). It counts after `chain.confirmations`; up
    //!   to `deposits.instant` at once.
    //! * **Claim.** [`redeem::plan()`](crate::redeem::plan()) makes one row for each channel with something to claim,
    //!   payers that are withdrawing first; [`when_it_is_claimed`](super::when_it_is_claimed) says when. Of a batch that
    //!   the contract would refuse, the bad rows are found by trying halves of it, without sending any; the rest is
    //!   claimed together. A bad row is left out for ten minutes, then twice as long each time, until its channel has a
    //!   new voucher or a deposit.
    //! * **Settle.** What `receivers()` says is owed, so a crash between claim and settlement costs nothing.
    //! * **Refund.** Claim and refund in one transaction, signed with the channel's live nonce.
    //! * **Withdrawal.** A payer can take its money back alone after the channel's delay. The follower sees the
    //!   announcement, claims at once, and from then on only vouchers are taken that the rest covers; from
    //!   `channel.withdraw_margin` before the withdrawal can be finished, none. An event that a node left out is found by
    //!   a sweep over all open channels, every `redeem.sweep_interval`.
    //! * **Reorganisation.** The hashes of the newest blocks that were read are remembered. Where the chain has others, the
    //!   channels that had events there are read again: what was taken back there is taken back here.
    //!
    //! Every transaction is in the books, bytes and purpose, before it leaves, and has one nonce for good. While no block
    //! has it, it is sent again, and replaced at that nonce by one that pays more, up to a ceiling; a higher one where a
    //! payer is withdrawing. What it claims is not claimed under a second nonce meanwhile. A process that starts takes up
    //! what the last one left in the same way, before it signs anything new; books what landed; and writes each one's end
    //! down. So a crash at any moment forgets nothing that was sent, and pays for nothing twice.
    //!
    //! The books move by what the chain says after a transaction is mined, never by what was sent. A view of a channel is
    //! trusted for a third of its withdraw delay, 30 s at least and 300 s at most; then it is read again.
}

pub mod without_gas {
    //! A facilitator instead of a gas key.
    //!
    //! Who has no coin for gas lets a [`facilitator`](crate::facilitator) send deposits, claims, settlements and refunds.
    //! It is a carrier, not an authority: vouchers are verified here, claims and refunds are signed here with our own
    //! receiver authorizer, and balances, receipts and events are read from the provider's own node. Channels do not know
    //! of it, so it can be changed, or replaced by a gas key, at any time.
    //!
    //! What it is asked is in the books first, as a transaction would be: what is asked in place of signed bytes, and an
    //! invented hash and nonce. It counts as mined where our node shows its effect, in the transaction that the
    //! facilitator names or in another. What became of it otherwise:
    //!
    //! | the facilitator | what follows |
    //! |---|---|
    //! | cannot be reached | nothing was sent; deposits are refused with a 503, claims wait |
    //! | says no before it sends | nothing was sent; a claim that its node rejects, or that is too large, is halved |
    //! | says no to a refund | the channel reckons with it until its nonce is used: the signature was shown |
    //! | does not answer, or says nothing that counts | the chain is looked at, and it is asked again |
    //! | answers that it is not mined yet | the transaction it names is followed |
    //! | names a transaction that does not do it | an error in the log; a claim is made anew, a deposit is asked for again |
    //! | is replaced, or we restart | what is open is looked for on chain, then asked for again, word for word |
    //!
    //! Asking twice does no harm: a voucher is claimed once, an authorization used once, a refund has a nonce. The
    //! worst a facilitator can do is nothing; then a gas key claims. Which deposits it takes is its own decision, so it is
    //! asked to verify one before it is asked to settle it. Some take only so many rows in a claim (25, say): set
    //! `redeem.max_rows` to that, because not all of them say that this was the reason.
}

pub mod when_it_is_claimed {
    //! What calls for a round, what waits, and how an operator sees it.
    //!
    //! | a round begins | key |
    //! |---|---|
    //! | every so often | `redeem.interval` |
    //! | once more is unclaimed: in all, on a channel, on a payer's channels | `redeem.max_unclaimed`, `…_per_channel`, `…_per_payer` |
    //! | once something was unclaimed for longer | `redeem.max_age` |
    //! | when a payer announces a withdrawal of what it owes | always |
    //! | on the way down | `redeem.on_shutdown` |
    //! | when somebody says so | `peaje redeem` |
    //!
    //! Thresholds are "more than", and what a round left on purpose counts only as far as it grew or became old since, so
    //! rounds never spin.
    //!
    //! [`redeem::plan()`](crate::redeem::plan()) decides what a round does, from the books, the price of gas and the rules
    //! alone. Channels whose payer is withdrawing are claimed first, in small transactions; then the others, the largest
    //! first; last those whose voucher the payer's own account approves, each alone. A transaction holds as many channels
    //! as `redeem.max_rows`, its length of 128 KiB, its 2^24 gas and half a block allow, and transactions are of even size.
    //!
    //! A channel waits where `redeem.max_gas_share` and `redeem.coin_price` are set and its gas, with its part of what the
    //! transaction takes anyway, would be a larger part of the claim. It is claimed once it has grown or gas is cheaper;
    //! once it is older than `redeem.max_age`, if it is at least worth its gas; and when its payer withdraws, if it is
    //! worth more. What waits is in the books, in every report and in the dry run, with its reason.
    //!
    //! * `peaje redeem --dry-run` shows the plan, its cost and what it leaves ([`Preview`](crate::redeem::Preview)). It
    //!   asks the chain for the price of gas and nothing else.
    //! * `peaje redeem --status` shows the [`Vitals`](crate::redeem::Vitals): what is unclaimed and since when, the last
    //!   claim, the gas and how long it lasts, the chain's lag, what is in quarantine and why, what is on its way.
    //! * Readiness fails once rounds have failed for `redeem.stuck_after`, and says what is at risk. A row that the
    //!   contract refuses is its payer's affair and does not do that.
}

pub mod what_is_kept {
    //! The books on disk, and what a commit is.
    //!
    //! The books are an SQLite file, `books.sqlite3`, in the directory `store.directory`, which belongs to one process at
    //! a time ([`store::sqlite`](crate::store::sqlite)). In it are all channels with their latest vouchers, what they were
    //! charged by route and minute, what the chain changed past us, every transaction we signed and what became of it,
    //! and how far the chain was followed. Holds are not in it: nothing is promised before an answer leaves.
    //!
    //! One thread writes ([`store::Journal`](crate::store::Journal)). It takes all that waits, makes one transaction of
    //! it, waits for one fsync, and then tells everybody who waited. Under load a commit carries dozens of charges; an
    //! agent that is alone waits for its own.
    //!
    //! A channel's row carries a version and a seal. The version must be one above that of the row it replaces, so two
    //! writers cannot mix; the seal is a checksum, so a bit that flips at rest is noticed when the row is read. At every
    //! commit a channel's charges and adjustments add up to what it was charged in all; `peaje ledger verify` adds them.
    //!
    //! Before a transaction is sent, its signed bytes are written; before a refund is signed, its channel's row reckons
    //! with it. So after a crash the next process sends the same bytes again, or finds them mined.
    //!
    //! A commit that fails is the last one. Whoever waited for it gets a 503 and is not charged; readiness fails; no paid
    //! work is taken; the process ends with code 7. The next start decides by what is on disk.
}

pub mod what_is_lost {
    //! What a restart, a dead disk, a lost client and a lost answer cost.
    //!
    //! * **We restart, crash, or are killed.** Nothing. Charges that were acknowledged are in the books with the vouchers
    //!   that cover them, and are claimed by the next process. A request that was being served may have been charged
    //!   without its answer getting out, as when an answer is lost.
    //! * **The disk dies.** The vouchers since the last claim are gone, and with a backup those since it. A channel's books
    //!   are opened again from what the chain says was claimed, never from what its payer says; a client that believes in
    //!   more is corrected and goes on.
    //! * **A backup is put back.** It is like losing what came after it: payers are corrected with an older voucher of their
    //!   own or by the chain, whichever is further.
    //! * **The client restarts.** It reads the chain, signs from there, and is corrected with its own last voucher.
    //! * **The answer is lost.** A client that named its payment sends it again and gets the answer ([`twice`](super::twice)).
    //!   Otherwise the charge stands; the client's next voucher is one behind and is corrected.
    //! * **A deposit's receipt is late.** Nobody says it failed. The client is told to come back, and finds it booked.
}
