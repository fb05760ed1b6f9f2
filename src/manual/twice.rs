//! A payment that comes twice: when it gets the answer it had, when it is judged anew, and what that costs.
//!
//! An answer can be lost after it was charged. Its client does not know, signs for the same base again, and is told by a
//! corrective that it is one payment behind: it pays twice for one request. So an answer can be kept for a while, and given
//! again to the same payment ([`gate::Idempotency`](crate::gate::Idempotency), `[idempotency]` in the config).
//!
//! # With a name
//!
//! A quote offers the extension `payment-identifier` (`idempotency.identifier`, or `identifier` of a route). A client
//! gives its payment a name, 16 to 128 letters, digits, hyphens and underscores, and sends *the same payment, byte for byte*,
//! when it does not know what became of the first one. Names belong to a channel.
//!
//! | what comes | what it gets |
//! |---|---|
//! | a new name | it is judged, served and charged as any payment |
//! | the same name, payment and request | the answer the first one had, its receipt included, and `Idempotent-Replayed: true` |
//! | the same while the first is being served | the same, once it is there; after 90 seconds `…channel_busy` |
//! | the same name with another payment or request | 409 `payment_identifier_conflict` |
//! | the same, where the answer was too long to keep, or broke off | 409 `answer_not_kept`: it was charged, and is not charged again unasked |
//! | no name where one is required, a bad one | 400 `payment_identifier_required`, `payment_identifier_invalid` |
//! | the same after an answer of 400 or above, or a refusal | nothing was charged: it is judged anew |
//! | the same after the window, or a restart | its name is forgotten, and its voucher spent: a corrective |
//!
//! The same request is one with the same method, target, host and body; other headers are not compared. What is known of a
//! payment goes before its verification, because it was spent the first time. That gives nothing away: only who has the
//! very bytes of the payment, signature included, is answered, and it gets what it paid for.
//!
//! A client that leaves early is served to the end: the upstream's work goes on, is charged by what it answers, and is there
//! when the client comes back. (Without a name leaving ends the work, and costs the price: see
//! [`what_is_charged`](super::what_is_charged).) At most [`MAX_FINISHING`](crate::gate::MAX_FINISHING) requests are finished
//! so, each within [`MAX_FINISHING_TIME`](crate::gate::MAX_FINISHING_TIME). A proxy that stops waits for them as for any
//! other request: what the upstream answers within `server.shutdown_timeout` is charged, and what it does not is not.
//!
//! # Without one
//!
//! The same voucher for the same request is no proof that an answer was lost. Clients that ask for the same thing several
//! times at once sign the same voucher for all, since none knows of the others; each is to be served, and each to be paid.
//! So such a payment gets a corrective, from which stock clients go on by themselves. Only where it is *known* that the
//! first answer did not arrive, because its connection ended before the answer was taken, can the answer be given again:
//! with `idempotency.unidentified = true`. What is known is what the proxy sees: that a client left while the upstream
//! worked, or while the body was on its way. An answer that went into a socket and was lost behind it looks like any other.
//!
//! # What it takes
//!
//! A request that is not named costs nothing of this. Of a named one the body passes as it comes, and is kept beside; the
//! request's body is hashed as it passes. Bodies above `idempotency.max_answer` are let go, as is the oldest answer when all
//! together, those still on their way among them, are above `idempotency.memory`, or when its `idempotency.window` is over.
//! An answer for which there is no room at all is not kept. All is in memory only.
