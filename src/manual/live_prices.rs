//! What a change of the config does, and how to know beforehand.
//!
//! # Before
//!
//! `peaje check --offline --config new.toml` says whether it is a config. `peaje diff peaje.toml new.toml` says what would
//! change, `peaje explain "POST /v1/x" --config new.toml` what a request would cost and why, and `peaje replay
//! access.jsonl --config new.toml` what the new prices would have made of the requests of an access log (`log.access`), with
//! what the log does not tell: who would have stayed away, and what no route looked at then.
//!
//! # When
//!
//! The file is watched, and its directory with it: an editor that writes in place, a deployment that puts another file in
//! its place, and a link that is swapped are all seen, a moment after the last of it. Where nobody tells of changes (a file
//! system of another machine) it is looked at every two seconds. SIGHUP, `systemctl reload`, reads it at once, and opens the
//! access log anew.
//!
//! # What
//!
//! All of the file or nothing: one with an error changes nothing, and the log has every error with its place and its fix,
//! as has `GET /status` of the admin listener. Routes, prices, what is shown of them, the terms of new quotes, limits, CORS
//! and the log's level are in force at once. Lists of payers and an OpenAPI document are files beside it: each is looked at
//! every two seconds, and where one was changed all of it is read again, one that had been refused included. What only a start
//! can change ([`KEYS`](crate::config::KEYS) is the list, and `peaje diff` marks it) goes on as it is, and is named with what
//! runs and what the file says. A file that names another token or chain is
//! refused as a whole: its dollars would be other units. So is one whose routes go to an upstream that was not there, or
//! upgrade connections to one that runs with `http2`.
//!
//! # For agents
//!
//! Each price list has a number, 1 for that of the start. A request is judged, held and charged by one list from its
//! beginning to its end; the receipt (`extra.priceGeneration`), the log's line and the access record name it.
//!
//! An agent pays against the quote it has, which may be from before the change. For `server.quote_grace` after a list was
//! replaced its quotes hold: a payment that echoes one is judged by the list that made it, for the route that list has for
//! the request, and a corrective repeats that offer, because clients sign their second try for it. Afterwards such a
//! payment gets a 402 with the offer in force. What is not sold any more is 404 at once, and what is free now is free.
//!
//! Former lists share with their successors what did not change, those that say the same are one, and at most
//! [`MAX_FORMER`](crate::gate::MAX_FORMER) are kept.
