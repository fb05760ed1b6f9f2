//! One core: a thread with a runtime of its own, its socket, its part of the stack and the connections it accepted.
//!
//! A connection stays on the core that accepted it, and so does its way to the upstream: nothing on the way of a request
//! is handed from thread to thread. **Owns** connections, HTTP/1.1 and HTTP/2 (by prior knowledge) on the same port.
//! **Promises** a named bound for header time and header size, and that a core whose own work panics still lets its
//! requests end in order. **Does not** decide when to stop.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulConnection;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::peers::{Peers, Seat};
use super::slow::Taken;
use super::{Caller, Stack};
use crate::causes::causes;

/// How large the head of a request may be, bytes: the payment header's limit and as much again three times over.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// How many requests one HTTP/2 connection may have open.
const MAX_H2_STREAMS: u32 = 256;
/// How often a peer of HTTP/2 is asked whether it is still there; without an answer in 20 s it is not.
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long to wait when the system has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What connections find at the door, the same for all cores. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct Door {
    /// How long a client may take to send the head of a request.
    pub(super) header_time: Duration,
    /// How long it may take nothing of what it is being written.
    pub(super) write_pause: Duration,
    /// One for each connection there may be.
    pub(super) places: Arc<Semaphore>,
    /// How many of them one peer may have.
    pub(super) peers: Peers,
}

/// What a core is and works with.
#[derive(Debug)]
pub(super) struct Core {
    stack: Stack,
    http: auto::Builder<TokioExecutor>,
    door: Door,
    connections: TaskTracker,
    phase: Arc<Phase>,
    stop: CancellationToken,
    cut_off: CancellationToken,
}

impl Core {
    /// A core that accepts until `stop`, and ends what is still there at `cut_off`.
    pub(super) fn new(stack: Stack, door: Door, stop: CancellationToken, cut_off: CancellationToken) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(door.header_time)
            .max_buf_size(MAX_HEADER_BYTES)
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_H2_STREAMS)
            // HTTP/1 closes what is idle by its header time; a peer of HTTP/2 that is gone without a word is only found so.
            .keep_alive_interval(H2_PING_INTERVAL)
            .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX));
        // What a connection becomes when it stops speaking HTTP is waited for as well.
        let (connections, phase) = (stack.tunnels().tracker().clone(), Arc::default());
        Self { stack, http, door, connections, phase, stop, cut_off }
    }

    /// Serves to the end, on this thread. Whatever ends it, the other cores are stopped.
    pub(super) fn run(self, socket: std::net::TcpListener) {
        let _all = self.stop.clone().drop_guard();
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "a core has no runtime; the proxy stops");
                return;
            }
        };
        self.run_in(&runtime, self.accept(socket));
        // Nothing that is still looked up or connected is waited for.
        runtime.shutdown_background();
    }

    /// Whatever becomes of `accepting`, the requests that are being served are seen to their end: to drop them would
    /// charge for what nobody gets.
    fn run_in(&self, runtime: &Runtime, accepting: impl Future<Output = ()>) {
        if catch_unwind(AssertUnwindSafe(|| runtime.block_on(accepting))).is_err() {
            tracing::error!("a core broke; the proxy stops");
            self.stop.cancel();
        }
        runtime.block_on(self.drained());
    }

    async fn accept(&self, socket: std::net::TcpListener) {
        self.stack.attend();
        let socket = match socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket)) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(%error, "a core cannot listen; the proxy stops");
                self.stop.cancel();
                return;
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = self.accept_from(&socket) => {}
        }
    }

    async fn accept_from(&self, socket: &TcpListener) {
        loop {
            match socket.accept().await {
                Ok((stream, peer)) => {
                    // First of all, so that one peer's crowd does not make the others wait.
                    let Some(seat) = self.door.peers.sit(peer.ip()) else {
                        tracing::debug!("a connection of a peer that has too many was closed");
                        continue;
                    };
                    // Its place is waited for only now: a core that waits with one for a client would keep it from
                    // another.
                    match Arc::clone(&self.door.places).acquire_owned().await {
                        Ok(place) => self.take(stream, peer, (place, seat)),
                        // Nobody closes the places.
                        Err(_) => return,
                    }
                }
                // A client that left before it was served; that is no reason to make the next one wait.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn take(&self, stream: TcpStream, peer: SocketAddr, place: (OwnedSemaphorePermit, Seat)) {
        // Small answers leave at once.
        let _ = stream.set_nodelay(true);
        let line =
            Arc::new(Line { stack: self.stack.clone(), caller: Caller::new(peer), heard: AtomicBool::new(false) });
        let service = {
            let line = Arc::clone(&line);
            service_fn(move |request| {
                let line = Arc::clone(&line);
                async move {
                    line.heard.store(true, Ordering::Relaxed);
                    Ok::<_, Infallible>(line.stack.serve(request, &line.caller).await)
                }
            })
        };
        let stream = TokioIo::new(Taken::within(stream, self.door.write_pause));
        let connection = self.http.serve_connection_with_upgrades(stream, service).into_owned();
        let (phase, header_time) = (Arc::clone(&self.phase), self.door.header_time);
        self.connections.spawn(async move {
            match phase.attend(connection, &line.heard, header_time).await {
                End::Connection(Ok(())) | End::CutOff => {}
                End::Connection(Err(error)) => {
                    tracing::debug!(error = %causes(&*error), "a connection ended badly");
                }
                End::Silent => tracing::debug!("a connection without a request was closed"),
            }
            drop(place);
        });
    }

    /// Waits for the connections to end, or for the order to end them.
    async fn drained(&self) {
        self.stop.cancelled().await;
        self.connections.close();
        self.phase.begin(&self.phase.draining);
        tokio::select! {
            () = self.connections.wait() => return,
            () = self.cut_off.cancelled() => {
                self.phase.begin(&self.phase.cutting_off);
                self.stack.tunnels().cut_off();
            }
        }
        self.connections.wait().await;
    }
}

/// What all requests of a connection have in common.
struct Line {
    stack: Stack,
    caller: Caller,
    /// Whether a request came.
    heard: AtomicBool,
}

/// How far a core is on its way down. Connections look at it whenever they are at work, and are woken by a change.
#[derive(Debug, Default)]
struct Phase {
    draining: AtomicBool,
    cutting_off: AtomicBool,
    changed: Notify,
}

/// How a connection ended.
enum End<E> {
    /// By itself.
    Connection(Result<(), E>),
    /// It never asked for anything.
    Silent,
    /// It was told to.
    CutOff,
}

impl Phase {
    fn begin(&self, phase: &AtomicBool) {
        phase.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Sees a connection to its end. It wakes for its own work nearly always, so that is all that is looked at then, but
    /// for two flags.
    async fn attend<C: GracefulConnection>(
        &self,
        connection: C,
        heard: &AtomicBool,
        header_time: Duration,
    ) -> End<C::Error> {
        let mut connection = pin!(connection);
        let mut changed = pin!(self.changed.notified());
        let mut waked: Option<Waker> = None;
        let mut told = false;
        // The protocol's own timer starts only once it is known which protocol it is, and HTTP/2 has none at all; a client
        // that sends nothing would keep its place for ever.
        let mut silence = Box::pin(Some(tokio::time::sleep(header_time)));
        let look = |context: &mut Context<'_>| {
            let draining = self.draining.load(Ordering::Acquire);
            if draining || !waked.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                while changed.as_mut().poll(context).is_ready() {
                    // Anew before the flag is read, so that no change falls between.
                    changed.set(self.changed.notified());
                }
                waked = Some(context.waker().clone());
            }
            if self.cutting_off.load(Ordering::Acquire) {
                return Poll::Ready(End::CutOff);
            }
            if !told && self.draining.load(Ordering::Acquire) {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            if heard.load(Ordering::Relaxed) {
                silence.set(None);
            } else if let Some(silence) = silence.as_mut().as_pin_mut()
                && silence.poll(context).is_ready()
            {
                return Poll::Ready(End::Silent);
            }
            connection.as_mut().poll(context).map(End::Connection)
        };
        poll_fn(look).await
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::gate::path::PathPattern;
    use crate::gate::policy::{Policy, Price, Route, Terms, TokenTerms};
    use crate::gate::{Desk, Gate};
    use crate::protocol::{Address, Network};
    use crate::proxy::{Bounds, Cors, Upstream, UpstreamSettings, stack};
    use std::io::{Read as _, Write as _};
    use std::net;
    use std::sync::mpsc;

    /// A stack in front of that upstream, with nothing but a free route.
    pub(crate) fn free(upstream: SocketAddr) -> Stack {
        let network = Network::by_name("base-sepolia").unwrap();
        let terms = Terms {
            chain_id: network.chain_id,
            token: TokenTerms::preset(network.token("usdc").unwrap()),
            pay_to: Address([1; 20]),
            receiver_authorizer: Address([2; 20]),
            withdraw_delay_s: 86_400,
            max_timeout_s: 60,
            min_deposit: None,
            max_in_flight: 1,
        };
        let routes = vec![Route::new(PathPattern::parse("/*").unwrap(), Price::Free)];
        let gate = Gate::new(Policy::new(terms, "http://h", routes).unwrap(), Desk::closed());
        let timeout = Duration::from_secs(10);
        let url = format!("http://{upstream}").parse().unwrap();
        let settings =
            UpstreamSettings { connect_timeout: timeout, response_timeout: timeout, ..UpstreamSettings::of(url) };
        stack(&gate, Upstream::new(&settings).unwrap(), Cors::Off, Bounds::default())
    }

    #[test]
    fn a_core_that_breaks_stops_all_and_lets_its_requests_end() {
        let listen = || net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (upstream, socket) = (listen(), listen());
        let address = socket.local_addr().unwrap();
        let (stop, cut_off) = (CancellationToken::new(), CancellationToken::new());
        let time = Duration::from_secs(10);
        let door = Door {
            header_time: time,
            write_pause: time,
            places: Arc::new(Semaphore::new(8)),
            peers: Peers::sharing(8),
        };
        let core = Core::new(free(upstream.local_addr().unwrap()), door, stop.clone(), cut_off);
        let breaks = Arc::new(Notify::new());
        let broken = Arc::clone(&breaks);
        let (tell, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            core.run_in(&runtime, async {
                tokio::select! {
                    () = core.accept(socket) => {}
                    () = broken.notified() => panic!("a core breaks on purpose"),
                }
            });
            tell.send(()).unwrap();
        });
        let mut client = net::TcpStream::connect(address).unwrap();
        client.write_all(b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n").unwrap();
        let (mut api, _) = upstream.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            api.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        assert!(!stop.is_cancelled());
        breaks.notify_one();
        let outside = tokio::runtime::Builder::new_current_thread().build().unwrap();
        outside.block_on(stop.cancelled());
        assert!(ended.try_recv().is_err(), "a request is being served");
        api.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok"), "{answer}");
        ended.recv_timeout(Duration::from_secs(10)).unwrap();
    }
}
