//! Requests that cost what they use: what is counted, when the answer leaves, and who pays for one that is not whole.
//!
//! On a route with a tariff ([`pricing`](crate::pricing)) the quote says the most a request can cost. So much is held on the
//! channel until the answer has come to its end, then what it really cost is charged. The quote is a cap, not a cut: a
//! stream that has cost the most goes on for nothing, and what a client says of its patience does not end it. Only an
//! upgraded connection is closed then. A channel needs the most free for each request that runs at once, so a price list
//! should not quote ten times what a request usually costs.
//!
//! A payer may announce a withdrawal while it streams. The stream, or the upgraded connection, is ended
//! `channel.withdraw_margin` before the withdrawal can be finished, as if its payer had left: what it cost by then is claimed
//! in time.
//!
//! # What is counted
//!
//! * **Bytes** as they pass, compressed ones as they are. **Time** from the moment the upstream is asked. **Events** of
//!   `text/event-stream`: those with data, `[DONE]` too. **Counts that the upstream reports** in a header or trailer: digits
//!   and nothing else; the last one counts, a trailer before a header.
//! * **Tokens**, as OpenAI's and Anthropic's interfaces report them, in JSON and in streams
//!   ([`pricing::usage`](crate::pricing::usage)). What OpenAI counts as cached is not counted as read as well. An
//!   OpenAI-style stream has a report only if its client asked for one (`"stream_options": {"include_usage": true}`);
//!   without, it costs the most.
//! * `Settlement-Overrides` ([`gate::meter`](crate::gate::meter)), as a header or a trailer, wins over all of it.
//!
//! What is compressed cannot be read as it passes. Where tokens or events cost something the upstream is asked for
//! `Accept-Encoding: identity`, whatever the client asked for; an answer that is compressed all the same has reported
//! nothing. Upstreams are told that trailers are taken (`TE: trailers`).
//!
//! # When the answer leaves
//!
//! | the answer | its head | what it cost is in |
//! |---|---|---|
//! | without a body, or with `Settlement-Overrides` in its head | at once | the head's `PAYMENT-RESPONSE` |
//! | of known length up to 256 KiB, no event stream | when it is whole | the head's `PAYMENT-RESPONSE` |
//! | anything else | at once | the trailer `PAYMENT-RESPONSE`, over HTTP/2 and for clients that send `TE: trailers` |
//!
//! No piece of a stream waits for anything. Its end does: it is given out once the charge is durable. (After an answer of
//! known length nothing comes, so there it is the last piece that waits.) A client that reads no trailers learns at its next
//! request what a stream cost, by a corrective. One that deposited with the request finds its deposit in the head, with a
//! charge of nothing so far: otherwise it would deposit again.
//!
//! # Who pays for one that is not whole
//!
//! | ended by | bytes, time, events | tokens, reported counts |
//! |---|---|---|
//! | its end | all of them | what is reported; the most, if nothing is |
//! | the payer, before the head | so far | the most |
//! | the payer, after the head | so far | the upstream is read to its end, for 30 s at most, and its report counts; the most, if there is none |
//! | the upstream, before the head | nothing | nothing |
//! | the payer, by breaking its request's body off | so far | what is reported by then; the most, if nothing is |
//! | the upstream, after the head | so far | what is known by then |
//! | us, before the head | nothing | nothing |
//! | us, after the head: we stop | so far | what is known by then |
//! | us: a panic, or books that cannot be written | nothing | nothing |
//!
//! An answer that never has a body (to `HEAD`, 204, 304) has used no tokens. One of status 400 or above costs nothing.
//! One that was to be whole before its head leaves and breaks off is answered with 502 and costs nothing: nobody saw any
//! of it. A stream that cannot be charged because of the books breaks off at its end, so that nobody takes it for whole.
//! Up to [`MAX_READING_ON`](crate::gate::metered::MAX_READING_ON) answers are read on for payers that left; where there
//! is no place for one more, it has no report.
//!
//! A proxy that stops reads on until its deadline (`server.shutdown_timeout`), and takes what is known by then.
//!
//! A payer that leaves could otherwise have a model's work for nothing, and one that stays pays for what it got. What is
//! read after it left is not counted as its bytes, time or events.
//!
//! An answer may come before its request's body has come to its end. A payer that breaks that body off then, lets it pause
//! for too long, sends too much of it or frames it wrongly has left: the request is taken back from the upstream, and
//! that its answer breaks off is no failure of the upstream's.
//!
//! # Upgraded connections
//!
//! On a fixed price a WebSocket, or anything else that answers 101, is charged at the handshake. On a tariff it is charged
//! when it ends ([`Metering`](crate::gate::metered::Metering)), by bytes and time, and is closed when it has cost
//! the most. It reports nothing, so a tariff for tokens charges it the most, and `peaje check` says so. Its messages are not
//! looked for: `upgrade` beside a price for events is refused, as are free requests by network beside `upgrade` and a
//! tariff, because what needs no payment has no bill.
