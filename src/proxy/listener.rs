//! The listener: one port, and a thread for each core that serves it.
//!
//! **Owns** the sockets and when the threads begin and end. **Promises** a named bound for connections over all threads,
//! and an orderly end: no new connections, those at work finish, the deadline cuts off the rest. If one thread breaks, all
//! stop in the same order: half a proxy would answer half of its clients. **Does not** speak HTTP; each core does.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpSocket;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::Stack;
use super::cores::{Core, Door};
use super::peers::Peers;
use super::slow::MAX_WRITE_PAUSE;

/// How many connections are served at once, by all cores together; further ones wait in the kernel's queue, or accepted,
/// one a core.
pub const MAX_CONNECTIONS: usize = 16_384;

/// How long a client may take to send the head of a request.
pub const MAX_HEADER_TIME: Duration = Duration::from_secs(15);

/// How many connections the kernel keeps for each core until they are accepted; it may have a lower bound of its own.
const BACKLOG: u32 = 1_024;

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    /// One for each core.
    sockets: Vec<TcpListener>,
    header_time: Duration,
    write_pause: Duration,
    max_connections: usize,
    per_peer: Option<usize>,
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
        let sockets = if cores > NonZeroUsize::MIN && DEALS_OUT {
            // Sockets that share a port share it with whoever may, so the port must be found free by one that does not.
            // One that the kernel chooses is.
            if address.port() != 0 {
                drop(bind(address, false)?);
            }
            let first = listen(bind(address, true)?)?;
            // With port 0 the first one was given a port; the others want the same.
            let given = first.local_addr()?;
            let others = (1..cores.get()).map(|_| listen(bind(given, true)?));
            std::iter::once(Ok(first)).chain(others).collect::<io::Result<_>>()?
        } else {
            let only = listen(bind(address, false)?)?;
            let others = (1..cores.get()).map(|_| only.try_clone()).collect::<io::Result<Vec<_>>>()?;
            std::iter::once(only).chain(others).collect()
        };
        Ok(Self {
            sockets,
            header_time: MAX_HEADER_TIME,
            write_pause: MAX_WRITE_PAUSE,
            max_connections: MAX_CONNECTIONS,
            per_peer: None,
        })
    }

    /// Where it listens; with port 0 asked for, the port that was given.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.sockets.first().map_or_else(|| Err(io::ErrorKind::NotConnected.into()), TcpListener::local_addr)
    }

    /// How long a client may take to send the head of a request, from the moment it connects or its last answer ended;
    /// [`MAX_HEADER_TIME`] unless said.
    pub fn header_time(self, limit: Duration) -> Self {
        Self { header_time: limit, ..self }
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
            write_pause: self.write_pause,
            places: Arc::new(Semaphore::new(self.max_connections)),
            peers: self.per_peer.map_or_else(|| Peers::sharing(self.max_connections), Peers::up_to),
        };
        let mut at_work = Vec::with_capacity(self.sockets.len());
        for (number, socket) in self.sockets.into_iter().enumerate() {
            let core = Core::new(stack.apart(), door.clone(), stop.clone(), cut_off.clone());
            let (ended, end) = oneshot::channel::<()>();
            let thread = std::thread::Builder::new().name(format!("peaje-core-{number}"));
            let started = thread.spawn(move || {
                core.run(socket);
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
