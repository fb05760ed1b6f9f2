//! TLS, load balancers, and a restart that costs no request.
//!
//! # TLS
//!
//! `[server] tls = { cert = "fullchain.pem", key = "key.pem" }` speaks TLS 1.2 and 1.3 on the port, HTTP/2 for those that
//! offer it, and nothing else on the same port. The files are looked at every few seconds and on SIGHUP. A renewal is often
//! two writes: between them the pair does not fit, which is logged, and the old one is shown until it does; other pairs are
//! renewed meanwhile. `peaje check` says when a certificate ends, whether one is for the public URL's host, and who else
//! can read the key.
//!
//! # Who the client is
//!
//! Limits for a peer (connections, requests, deposits, bad signatures) are worth what the peer's address is worth. Behind a
//! balancer there are two ways to learn the client's:
//!
//! | balancer | says it by | config |
//! |---|---|---|
//! | one that reads HTTP | `X-Forwarded-For`, or `Forwarded` | `trusted_proxies`, perhaps `forwarded_header` |
//! | one that passes TCP on | a header of the PROXY protocol | `proxy_protocol = true`, and `trusted_proxies` |
//!
//! Each hop appends whom it had the request from, so the list is read from its end: what the last trusted proxy wrote is the
//! client, and what stands before that is the client's own word. Only the header that was named is read, because a proxy
//! passes the other one on as the client sent it.
//!
//! # A restart without a failed request
//!
//! One process at a time has the books, so a successor can listen before it can serve. Meanwhile connections wait in the
//! kernel's queue.
//!
//! - **A supervisor holds the socket** (`LISTEN_FDS`; `deploy/systemd/peaje.socket`). What one process does not accept is
//!   there for the next one.
//! - **`peaje serve --take-over`** listens beside the process that runs (`SO_REUSEPORT`), tells it to stop, waits for its
//!   books, and goes on. The old one sees that its port is taken and leaves redemption to the successor. A handshake of TCP
//!   that is under way in the moment in which the old sockets close is lost, unless Linux hands it on:
//!   `sysctl net.ipv4.tcp_migrate_req=1`.
//!
//! The process that ends accepts whatever had connected, serves what was asked, answers one more request of each connection
//! of HTTP/1 with `Connection: close`, if it comes within a second, and tells HTTP/2 to go away (GOAWAY).
