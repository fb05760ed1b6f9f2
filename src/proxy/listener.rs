//! The listener: one port, and a thread for each core that serves it.
//!
//! **Owns** the sockets and when the threads begin and end. **Promises** a named bound for connections over all threads,
//! and an orderly end: no new connections, those at work finish, the deadline cuts off the rest. If one thread breaks, all
//! stop in the same order: half a proxy would answer half of its clients. What had connected before the end is served, and a
//! successor on the same port ([`Listener::bind_beside`]) has the rest. **Does not** speak HTTP; each core does.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpSocket;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::cores::{Core, Door, Socket};
use super::peers::Peers;
use super::slow::MAX_WRITE_PAUSE;
use super::tls::{CERTIFICATE_POLL, Certificates};
use super::{Stack, Trusted};

/// How many connections are served at once, by all cores together; further ones wait in the kernel's queue, or accepted,
/// one a core.
pub const MAX_CONNECTIONS: usize = 16_384;

/// How long a client may take to send the head of a request.
pub const MAX_HEADER_TIME: Duration = Duration::from_secs(15);

/// How large the head of a request may be, bytes, unless said: the payment header's limit and as much again three times
/// over.
pub const DEFAULT_HEADER_BYTES: usize = 64 * 1024;

/// How many headers a request may have, unless said.
pub const DEFAULT_HEADERS: usize = 100;

/// How long an HTTP/2 connection may be without a new request before it is told to end, unless said. One of HTTP/1 has the
/// time for a head.
pub const MAX_IDLE_TIME: Duration = Duration::from_secs(180);

/// The most time there is for what comes before HTTP: a balancer's header and the TLS handshake. The time for a head, if
/// that is shorter.
pub const MAX_HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// How long, from the end on, connections of HTTP/1 are kept for one more request, whose answer tells the client that it
/// was the last. A client whose request crosses the end of its connection cannot know whether it was served.
pub const LAST_REQUEST_TIME: Duration = Duration::from_secs(1);

/// How many connections the kernel keeps for each core until they are accepted; it may have a lower bound of its own.
const BACKLOG: u32 = 1_024;

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    /// One for each core.
    sockets: Vec<TcpListener>,
    /// Whether somebody else holds the sockets as well, and will go on to.
    inherited: bool,
    header_time: Duration,
    idle_time: Duration,
    last_request_time: Duration,
    header_bytes: usize,
    max_headers: usize,
    write_pause: Duration,
    max_connections: usize,
    per_peer: Option<usize>,
    trusted: Trusted,
    proxy_protocol: bool,
    certificates: Option<(Certificates, Duration)>,
}

impl Listener {
    /// Binds the port for one core.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::bind_cores(address, NonZeroUsize::MIN).await
    }

    /// Binds the port for so many cores. Each has a socket of its own, and the kernel deals the connections out; where it
    /// does not, all accept from one.
    ///
    /// # Errors
    /// The port is taken, by another process of ours too, or not ours.
    pub async fn bind_cores(address: SocketAddr, cores: NonZeroUsize) -> io::Result<Self> {
        if DEALS_OUT {
            // Sockets that share a port share it with whoever may, so the port must be found free by one that does not.
            // One that the kernel chooses is.
            if address.port() != 0 {
                drop(bind(address, false)?);
            }
            return Self::bind_beside(address, cores).await;
        }
        let only = listen(bind(address, false)?)?;
        Ok(Self::on(shared_out(vec![only], cores)?, false))
    }

    /// Binds the port although another process of this account has it: from now on both are given connections, and once the
    /// other has closed its own sockets this one has all. What comes before it serves waits in the kernel's queue.
    ///
    /// # Errors
    /// The other does not share it, or the system deals no connections out.
    pub async fn bind_beside(address: SocketAddr, cores: NonZeroUsize) -> io::Result<Self> {
        if !DEALS_OUT {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let first = listen(bind(address, true)?)?;
        // With port 0 the first one was given a port; the others want the same.
        let given = first.local_addr()?;
        let others = (1..cores.get()).map(|_| listen(bind(given, true)?));
        let sockets = std::iter::once(Ok(first)).chain(others).collect::<io::Result<_>>()?;
        Ok(Self::on(sockets, false))
    }

    /// Listens on sockets that somebody else has bound and goes on to hold: what nobody accepts is kept there for whoever
    /// comes next. With fewer of them than cores, several cores accept from one.
    ///
    /// # Errors
    /// There are none, or the system has no room for more handles of them.
    pub fn inherit(sockets: Vec<TcpListener>, cores: NonZeroUsize) -> io::Result<Self> {
        Ok(Self::on(shared_out(sockets, cores)?, true))
    }

    fn on(sockets: Vec<TcpListener>, inherited: bool) -> Self {
        Self {
            sockets,
            inherited,
            header_time: MAX_HEADER_TIME,
            idle_time: MAX_IDLE_TIME,
            last_request_time: LAST_REQUEST_TIME,
            header_bytes: DEFAULT_HEADER_BYTES,
            max_headers: DEFAULT_HEADERS,
            write_pause: MAX_WRITE_PAUSE,
            max_connections: MAX_CONNECTIONS,
            per_peer: None,
            trusted: Trusted::default(),
            proxy_protocol: false,
            certificates: None,
        }
    }

    /// Where it listens; with port 0 asked for, the port that was given.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.sockets.first().map_or_else(|| Err(io::ErrorKind::NotConnected.into()), TcpListener::local_addr)
    }

    /// Whether it is on sockets that somebody else holds as well.
    pub fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// How long a client may take to send the head of a request, from the moment it connects or its last answer ended;
    /// [`MAX_HEADER_TIME`] unless said.
    pub fn header_time(self, limit: Duration) -> Self {
        Self { header_time: limit, ..self }
    }

    /// How long, from the end on, a connection of HTTP/1 is kept for one more request, but for half of the drain at most;
    /// [`LAST_REQUEST_TIME`] unless said.
    pub fn last_request_time(self, limit: Duration) -> Self {
        Self { last_request_time: limit, ..self }
    }

    /// How long an HTTP/2 connection may be without a new request before it is told to end; [`MAX_IDLE_TIME`] unless said.
    /// It may be up to twice as long, and what was asked before is served to its end. One on which an answer is not taken for
    /// so long is told to end too, and ended once nothing on it has been taken for that time again.
    pub fn idle_time(self, limit: Duration) -> Self {
        Self { idle_time: limit, ..self }
    }

    /// How large the head of a request may be, bytes; [`DEFAULT_HEADER_BYTES`] unless said, and not below 8 KiB.
    pub fn header_bytes(self, limit: usize) -> Self {
        Self { header_bytes: limit.max(MIN_HEADER_BYTES), ..self }
    }

    /// How many headers a request of HTTP/1 may have; [`DEFAULT_HEADERS`] unless said.
    pub fn max_headers(self, limit: usize) -> Self {
        Self { max_headers: limit, ..self }
    }

    /// Speaks TLS, and reads the certificates again when their files change.
    pub fn tls(self, certificates: Certificates) -> Self {
        self.tls_renewed_every(certificates, CERTIFICATE_POLL)
    }

    /// The same, looking at the files so often.
    pub fn tls_renewed_every(self, certificates: Certificates, poll: Duration) -> Self {
        Self { certificates: Some((certificates, poll)), ..self }
    }

    /// Believes these about where requests come from. They are balancers, so they may have any number of connections.
    pub fn trust(self, trusted: Trusted) -> Self {
        Self { trusted, ..self }
    }

    /// Wants a header of the PROXY protocol on each connection, from those that are trusted if any are; all others are
    /// closed.
    pub fn proxy_protocol(self, wanted: bool) -> Self {
        Self { proxy_protocol: wanted, ..self }
    }

    /// How many connections are served at once, by all cores together; [`MAX_CONNECTIONS`] unless said.
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

    /// Serves on threads of its own until `stop`, then lets requests in progress finish for `drain` at most. `at_deadline`
    /// is called when some did not, before they are cut off. Cancels `stop` itself if a thread breaks.
    ///
    /// # Cancellation
    /// The threads stop, and cut off what they serve.
    pub async fn serve(self, stack: Stack, stop: CancellationToken, drain: Duration, at_deadline: impl FnOnce()) {
        let cut_off = CancellationToken::new();
        let _guards = (stop.clone().drop_guard(), cut_off.clone().drop_guard());
        let door = Door {
            header_time: self.header_time,
            handshake_time: self.header_time.min(MAX_HANDSHAKE_TIME),
            idle_time: self.idle_time,
            // Never so long that what is left of the drain would not do for the request.
            last_request_time: self.last_request_time.min(drain / 2),
            header_bytes: self.header_bytes,
            max_headers: self.max_headers,
            write_pause: self.write_pause,
            places: Arc::new(Semaphore::new(self.max_connections)),
            peers: self.per_peer.map_or_else(|| Peers::sharing(self.max_connections), Peers::up_to),
            trusted: self.trusted,
            proxy_protocol: self.proxy_protocol,
            tls: self.certificates.as_ref().map(|(certificates, _)| certificates.config()),
        };
        if let Some((certificates, poll)) = self.certificates {
            tokio::spawn(certificates.follow(poll, stop.clone()));
        }
        let inherited = self.inherited;
        let mut at_work = Vec::with_capacity(self.sockets.len());
        for (number, socket) in self.sockets.into_iter().enumerate() {
            let core = Core::new(stack.apart(), door.clone(), stop.clone(), cut_off.clone());
            let (ended, end) = oneshot::channel::<()>();
            let thread = std::thread::Builder::new().name(format!("peaje-core-{number}"));
            let started = thread.spawn(move || {
                core.run(Socket { listener: socket, inherited });
                // Whoever waits is told by its end too, if this is never reached.
                drop(ended);
            });
            match started {
                Ok(_) => at_work.push(end),
                Err(error) => {
                    tracing::error!(%error, "a thread that serves could not be started; the proxy stops");
                    stop.cancel();
                    break;
                }
            }
        }
        stop.cancelled().await;
        let mut all = join_all(at_work);
        if tokio::time::timeout(drain, &mut all).await.is_err() {
            at_deadline();
            cut_off.cancel();
            all.await;
        }
    }
}

/// Whether sockets that share a port get their connections from the kernel in equal parts.
const DEALS_OUT: bool = cfg!(target_os = "linux");

/// What a payment and the usual headers need.
const MIN_HEADER_BYTES: usize = 8 * 1024;

/// Whether somebody listens there, as far as can be told without asking: the port cannot be had.
pub fn is_taken(address: SocketAddr) -> bool {
    // A runtime need not be there, so this is a socket of the standard library, which lets closed connections keep nothing.
    TcpListener::bind(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// A handle for each core, and one for each socket at least.
fn shared_out(sockets: Vec<TcpListener>, cores: NonZeroUsize) -> io::Result<Vec<TcpListener>> {
    if sockets.is_empty() {
        return Err(io::ErrorKind::NotConnected.into());
    }
    let more = cores.get().saturating_sub(sockets.len());
    let clones = sockets.iter().cycle().take(more).map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?;
    Ok(sockets.into_iter().chain(clones).collect())
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of a former process that are not quite over do not keep the port.
    socket.set_reuseaddr(true)?;
    #[cfg(unix)]
    if shared {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    Ok(socket)
}

fn listen(socket: TcpSocket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?.into_std()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    fn cores(count: usize) -> NonZeroUsize {
        NonZeroUsize::new(count).unwrap()
    }

    #[tokio::test]
    async fn all_cores_listen_on_the_port_that_was_given() {
        for count in [1, 3] {
            let listener = Listener::bind_cores(LOCAL, cores(count)).await.unwrap();
            let address = listener.address().unwrap();
            assert_ne!(address.port(), 0);
            assert_eq!(listener.sockets.len(), count);
            assert!(listener.sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
        }
    }

    #[tokio::test]
    async fn a_port_is_taken_only_once_however_many_cores_share_it() {
        for (first, second) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let listener = Listener::bind_cores(LOCAL, cores(first)).await.unwrap();
            let address = listener.address().unwrap();
            let taken = Listener::bind_cores(address, cores(second)).await.unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse, "{first} {second}");
            drop(listener);
            Listener::bind_cores(address, cores(second)).await.unwrap();
        }
    }
}
