//! # Whose price it is
//!
//! ## Which route decides
//!
//! The most specific host first (`api.example.com`, then `*.example.com`, the longer one first, then routes without a
//! host), then the most specific path, then a route that lists the method before one that takes all, then the conditions
//! that ask for more. Only the routes of that host and path decide: a request that meets no condition of theirs is answered
//! with 404 (`no_condition_met`) and does not fall through to a wider, perhaps cheaper, path. Two routes that could both
//! decide about some request are an error of the config, unless a third is there for exactly what both ask.
//!
//! ## What is looked at must have one reading
//!
//! A header or query parameter that a route of the path looks at, and a key of the body, must come once, as it is spelled:
//! not twice, not in another case, not with brackets, not as a text where true or false is expected. A query value that
//! reads differently with `+` as a space, or up to a `;`, is refused where that makes a difference. All that is 400
//! (`unclear_request`). Bodies are looked at whatever their content type says, because many servers take JSON under any
//! name; what does not begin like a JSON object meets no condition on a body and streams through. What is looked at is held
//! up to `limits.max_matched_body` (413, `matched_body_too_large`) and must not be compressed (415,
//! `matched_body_encoded`).
//!
//! That closes the ways we know. An upstream that takes the same thing in yet another form (a form instead of JSON, a default
//! for what is left out) sells it by the route without conditions: let that one be the dearest, and conditions make cheaper.
//!
//! ## Who pays what
//!
//! The quote says the route's price, because nobody knows who will pay. A payer with a price of its own, free requests or a
//! cap signs for the quote and is charged less; what it did not spend is good for its next request. A payer is the
//! account that signs its channel's vouchers, which is also what `X-Peaje-Payer` says: whom a channel's terms name as the
//! payer anybody can write, because the contract takes deposits from everybody for everybody. So an agent that has
//! another key sign is listed by that key; a list in `deny` holds for both. Lists are checked after the signature:
//! who has signed nothing learns nothing of them.
//!
//! Free requests, caps and rates are counted in memory, for each route and payer or network; a reload keeps them, a restart
//! does not. Windows begin at whole multiples of their length since 1970, UTC. Where more payers or networks come than there
//! is room to count ([`quota`](crate::gate::quota)), those that used least are forgotten first.
//!
//! ## Shadow mode
//!
//! A route with `shadow = true` serves whatever comes, and logs what would have become of it: `paid`, `free`, or the code of
//! the refusal; `Payment required` is the quote. It sends no quotes and no receipts, charges no voucher, relays no deposit
//! and waits for nobody; a channel that would have to wait is logged as `waiting`, a deposit as `deposit`. Where all routes of a
//! path are shadows, conditions and methods refuse nothing either. Paths that no route names stay unknown.
