//! The listener: connections in, HTTP/1.1 and HTTP/2 (by prior knowledge) on the same port.
//!
//! **Promises** a named bound for connections, header time and header size, and an orderly end: no new connections,
//! those at work finish, the deadline cuts off the rest.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceBuilder;

use super::peers::Peers;
use super::slow::{MAX_WRITE_PAUSE, Taken};
use super::{Peer, Stack};
use crate::causes::causes;
use crate::gate;

/// How many connections are served at once; further ones wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 16_384;

/// How long a client may take to send the head of a request.
pub const MAX_HEADER_TIME: Duration = Duration::from_secs(15);
/// How large the head of a request may be, bytes: the payment header's limit and as much again three times over.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// How many requests one HTTP/2 connection may have open.
const MAX_H2_STREAMS: u32 = 256;
/// How often a peer of HTTP/2 is asked whether it is still there; without an answer in 20 s it is not.
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long to wait when the system has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    header_time: Duration,
    write_pause: Duration,
    max_connections: usize,
    per_peer: Option<usize>,
}

impl Listener {
    /// Binds the port.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        Ok(Self {
            socket,
            header_time: MAX_HEADER_TIME,
            write_pause: MAX_WRITE_PAUSE,
            max_connections: MAX_CONNECTIONS,
            per_peer: None,
        })
    }

    /// Where it listens; with port 0 asked for, the port that was given.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// How long a client may take to send the head of a request, from the moment it connects or its last answer ended;
    /// [`MAX_HEADER_TIME`] unless said.
    pub fn header_time(self, limit: Duration) -> Self {
        Self { header_time: limit, ..self }
    }

    /// How many connections are served at once; [`MAX_CONNECTIONS`] unless said.
    pub fn max_connections(self, limit: usize) -> Self {
        Self { max_connections: limit, ..self }
    }

    /// How many connections one peer may have; a quarter of all unless said, and this machine any number. Further ones are
    /// closed as they come.
    pub fn connections_per_peer(self, limit: usize) -> Self {
        Self { per_peer: Some(limit), ..self }
    }

    /// How long a client may take nothing of what it is being written before its connection is ended;
    /// [`MAX_WRITE_PAUSE`] unless said.
    pub fn write_pause(self, limit: Duration) -> Self {
        Self { write_pause: limit, ..self }
    }

    /// Serves until `stop`, then lets requests in progress finish for `drain` at most. `at_deadline` is called when
    /// some did not, before they are cut off.
    pub async fn serve(self, stack: Stack, stop: CancellationToken, drain: Duration, at_deadline: impl FnOnce()) {
        let connections = Arc::new(Semaphore::new(self.max_connections));
        let peers = self.per_peer.map_or_else(|| Peers::sharing(self.max_connections), Peers::up_to);
        let graceful = GracefulShutdown::new();
        let cut_off = CancellationToken::new();
        let tasks = TaskTracker::new();
        loop {
            let next = async {
                let permit = Arc::clone(&connections).acquire_owned().await;
                (permit, self.socket.accept().await)
            };
            let (permit, (stream, peer)) = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                (permit, accepted) = next => match accepted {
                    Ok(accepted) => (permit, accepted),
                    // A client that left before it was served; that is no reason to make the next one wait.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let Some(seat) = peers.sit(peer.ip()) else {
                tracing::debug!("a connection of a peer that has too many was closed");
                continue;
            };
            let watcher = graceful.watcher();
            let (stack, cut_off, header_time) = (stack.clone(), cut_off.clone(), self.header_time);
            // Small answers leave at once.
            let _ = stream.set_nodelay(true);
            let stream = Taken::within(stream, self.write_pause);
            tasks.spawn(async move {
                let heard = Arc::new(AtomicBool::new(false));
                let silent = still_silent(header_time, Arc::clone(&heard));
                let connection = watcher.watch(connection(stream, peer, stack, header_time, heard));
                tokio::select! {
                    ended = connection => if let Err(error) = ended {
                        tracing::debug!(error = %causes(&*error), "a connection ended badly");
                    },
                    () = silent => tracing::debug!("a connection without a request was closed"),
                    () = cut_off.cancelled() => {}
                }
                drop((permit, seat));
            });
        }
        drop(self.socket);
        tasks.close();
        if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
            at_deadline();
            cut_off.cancel();
        }
        tasks.wait().await;
    }
}

/// Ends if no request was heard in time. The protocol's own timer starts only once it is known which protocol it is, and
/// HTTP/2 has none at all; a client that sends nothing would keep its place for ever.
async fn still_silent(header_time: Duration, heard: Arc<AtomicBool>) {
    tokio::time::sleep(header_time).await;
    if heard.load(Ordering::Relaxed) {
        std::future::pending().await
    }
}

fn connection(
    stream: Taken<TcpStream>,
    peer: SocketAddr,
    stack: Stack,
    header_time: Duration,
    heard: Arc<AtomicBool>,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = Box<dyn std::error::Error + Send + Sync>> {
    let service = ServiceBuilder::new()
        .map_request(move |mut request: Request<Incoming>| {
            heard.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(Peer(peer));
            request.extensions_mut().insert(gate::Peer(peer.ip()));
            request
        })
        .service(stack);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_time)
        .max_buf_size(MAX_HEADER_BYTES)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_H2_STREAMS)
        // HTTP/1 closes what is idle by its header time; a peer of HTTP/2 that is gone without a word is only found so.
        .keep_alive_interval(H2_PING_INTERVAL)
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX));
    builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).into_owned()
}
