//! Upstreams: which one is asked, what happens when it fails, and what it may speak.
//!
//! **Which one.** `[upstream]` serves every route that names no other; `[upstreams.NAME]` those that say `upstream =
//! "NAME"`. Each may have several targets (`url` is a list): a request goes to the one with the fewest requests, bodies of
//! answers included, counted over all cores; equals take turns. Connections are kept a core each.
//!
//! **What is tried again.** A request of which nothing was written: its connection could not be made, or turned out to be
//! closed before the first byte. It goes to another target then, three in all at most. What was written is never written
//! again, whatever its method: the API may have done the work. Where requests share connections (HTTP/2), those that wait for
//! one which cannot be made go elsewhere together, and it counts as one failure.
//!
//! **What is left alone.** With `[upstream.breaker]` a target that failed so often in a row (no connection, no answer in
//! time, or 502, 503, 504) gets nothing for `open_for`, and then one request to prove itself. A 500 does not count: any
//! agent that found a request which provokes it could close the shop for all; nor does a request whose body its client
//! broke off. With `[upstream.health]` every target is asked for a path, by one core for all. One that is unwell gets
//! requests only where there is none better: a check that is wrong must not close a shop, and a failed request costs its
//! payer nothing. Where every breaker is open the answer is 503, `upstream_unavailable`, with `Retry-After`. `GET
//! /upstreams` of the operators' listener shows how each target stands, and each change is a line in the log.
//!
//! **How long.** `connect_timeout` is for name lookup, TCP and TLS together. `response_timeout` is for the head of the
//! answer, and begins when the upstream has taken the last of the request; while the client is the one who is waited for,
//! `limits.body_timeout` counts instead. `idle_timeout` is for pauses in the answer's body, and for upgraded connections.
//!
//! | what | answer | charged |
//! |---|---|---|
//! | no target can be connected to | 502 `upstream_unreachable` | nothing |
//! | all are left alone | 503 `upstream_unavailable` | nothing |
//! | it hangs up before the head of its answer | 502 `upstream_unreachable` | nothing |
//! | the head takes too long | 504 `upstream_timeout` | nothing |
//! | the body breaks off, is reset before its end, or pauses too long | it breaks off | what was charged with the head |
//! | there is no room for one more upgraded connection | 503 `too_many_tunnels` | nothing |
//!
//! **HTTP/2 and gRPC.** `http2 = true` speaks HTTP/2 and nothing else, over a few connections a core that requests share;
//! an answer that nobody takes keeps none of the others from coming. gRPC goes through whole: messages as they come, both
//! ways at once, trailers, deadlines, cancellation. A call pays with `payment-signature` in its metadata. One that is
//! refused keeps its HTTP status (402 with the quote, say) and has a `grpc-status` as well (9, failed precondition, for
//! 402), so that the client finds the quote in the metadata of the error instead of guessing from the HTTP status. A call
//! that fails before its first message is answered with HTTP 200 and says so in `grpc-status`: it is not charged. One that
//! fails later has been charged with its head. While a call lasts, either side may be silent for `idle_timeout`.
//!
//! **WebSocket and other upgrades.** A route says which: `upgrade = ["websocket"]`. By default none, and a handshake arrives
//! as an ordinary request: a fixed price buys a connection of any length, and that should be somebody's decision. The
//! handshake is what is paid. The connection stops being HTTP only if a `GET` of HTTP/1.1 without a body asked for one
//! protocol, and the upstream answered 101 with just that; otherwise the answer is an ordinary one. There are at most
//! `limits.max_tunnels`, a quarter of them for one peer that is not this machine. A proxy that stops lets them go on until
//! its deadline. WebSocket over HTTP/2 (RFC 8441) is not offered, and clients fall back to HTTP/1.1 by themselves.
