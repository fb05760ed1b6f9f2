//! One core: a thread with a runtime of its own, its socket, its part of the stack and the connections it accepted.
//!
//! A connection stays on the core that accepted it, and so does its way to the upstream: nothing on the way of a request
//! is handed from thread to thread. **Owns** connections, HTTP/1.1 and HTTP/2 (by ALPN or prior knowledge) on the same port,
//! and what comes before HTTP: a balancer's header and the TLS handshake. **Promises** a named bound for header time and
//! header size, for what one connection of HTTP/2 may ask of us, and for connections that ask for nothing or take nothing;
//! that what had connected when the end began is served; and that a core whose own work panics still lets its requests end
//! in order. **Does not** decide when to stop.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, StatusCode, Version};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulConnection;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answers::{Answers, Given, Work};
use super::listener::DEFAULT_HEADERS;
use super::peers::{Peers, Seat};
use super::preface::{self, NoPreface};
use super::slow::Taken;
use super::{Caller, Stack, Trusted};
use crate::causes::causes;

/// How many requests one HTTP/2 connection may have open, answers that its client does not take among them: as many as most
/// servers allow, and as few as any client has to expect (RFC 9113, 6.5.2).
const MAX_H2_STREAMS: u32 = 100;
/// How often a peer of HTTP/2 is asked whether it is still there; without an answer in 20 s it is not.
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// How many streams of HTTP/2 a client may reset before we have looked at them; more end the connection (rapid reset,
/// CVE-2023-44487).
const MAX_H2_PENDING_RESETS: usize = 20;
/// How many streams we may have to reset for a client's errors before the connection is ended.
const MAX_H2_ERROR_RESETS: usize = 256;
/// How much one HTTP/2 connection may hold of answers that its client has not taken, bytes a stream.
const MAX_H2_SEND_BUFFER: usize = 256 * 1024;
/// How long to wait when the system has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What connections find at the door, the same for all cores. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct Door {
    /// How long a client may take to send the head of a request.
    pub(super) header_time: Duration,
    /// How long what comes before HTTP may take.
    pub(super) handshake_time: Duration,
    /// How long an HTTP/2 connection may be without a new request.
    pub(super) idle_time: Duration,
    /// How long, from the end on, a connection of HTTP/1 is kept for one more request.
    pub(super) last_request_time: Duration,
    /// How large a head may be, bytes.
    pub(super) header_bytes: usize,
    /// How many headers it may have, on HTTP/1.
    pub(super) max_headers: usize,
    /// How long it may take nothing of what it is being written.
    pub(super) write_pause: Duration,
    /// One for each connection there may be.
    pub(super) places: Arc<Semaphore>,
    /// How many of them one peer may have.
    pub(super) peers: Peers,
    /// Who is believed about where requests come from.
    pub(super) trusted: Trusted,
    /// Whether each connection begins with a balancer's header.
    pub(super) proxy_protocol: bool,
    /// Where TLS is spoken.
    pub(super) tls: Option<Arc<ServerConfig>>,
}

/// What a core accepts from.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: std::net::TcpListener,
    /// Whether somebody else holds it as well, for whom what is not accepted yet can be left.
    pub(super) inherited: bool,
}

/// What a core is and works with.
#[derive(Debug)]
pub(super) struct Core {
    inside: Arc<Inside>,
    connections: TaskTracker,
    stop: CancellationToken,
    cut_off: CancellationToken,
}

/// A connection that has no place yet, and its peer's seat.
type Accepted = (TcpStream, SocketAddr, Option<Seat>);

/// What all connections of a core need.
#[derive(Debug)]
struct Inside {
    stack: Stack,
    http: auto::Builder<TokioExecutor>,
    door: Door,
    phase: Phase,
}

impl Core {
    /// A core that accepts until `stop`, and ends what is still there at `cut_off`.
    pub(super) fn new(stack: Stack, door: Door, stop: CancellationToken, cut_off: CancellationToken) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(door.header_time)
            .max_buf_size(door.header_bytes)
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_H2_STREAMS)
            // HTTP/1 closes what is idle by its header time; a peer of HTTP/2 that is gone without a word is only found so.
            .keep_alive_interval(H2_PING_INTERVAL)
            .max_pending_accept_reset_streams(MAX_H2_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_H2_ERROR_RESETS)
            .max_send_buf_size(MAX_H2_SEND_BUFFER)
            .max_header_list_size(u32::try_from(door.header_bytes).unwrap_or(u32::MAX));
        // The usual number has its room on the stack; any other one is allocated for each request.
        if door.max_headers != DEFAULT_HEADERS {
            http.http1().max_headers(door.max_headers);
        }
        // What a connection becomes when it stops speaking HTTP is waited for as well.
        let connections = stack.tunnels().tracker().clone();
        let inside = Arc::new(Inside { stack, http, door, phase: Phase::default() });
        Self { inside, connections, stop, cut_off }
    }

    /// Serves to the end, on this thread. Whatever ends it, the other cores are stopped.
    pub(super) fn run(self, socket: Socket) {
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

    async fn accept(&self, socket: Socket) {
        self.inside.stack.attend();
        let Socket { listener, inherited } = socket;
        let socket = match listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(%error, "a core cannot listen; the proxy stops");
                self.stop.cancel();
                return;
            }
        };
        let mut waiting = None;
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = self.accept_from(&socket, &mut waiting) => {}
        }
        if let Some((stream, peer, seat)) = waiting {
            self.take_later(stream, peer, seat);
        }
        if !inherited {
            self.accept_the_rest(socket);
        }
    }

    /// Accepts who is in the queue of a socket before it is closed: with the socket, the kernel would reset them.
    fn accept_the_rest(&self, socket: TcpListener) {
        // Without the runtime, which would have to look at the socket first.
        let Ok(socket) = socket.into_std() else { return };
        while let Ok((stream, peer)) = socket.accept() {
            if let Some(seat) = self.inside.door.seat(peer)
                && stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                match Arc::clone(&self.inside.door.places).try_acquire_owned() {
                    Ok(place) => self.take(stream, peer, (place, seat)),
                    Err(_) => self.take_later(stream, peer, seat),
                }
            }
        }
    }

    /// Accepts for ever. Who was accepted and has no place yet is `waiting`.
    async fn accept_from(&self, socket: &TcpListener, waiting: &mut Option<Accepted>) {
        loop {
            match socket.accept().await {
                Ok((stream, peer)) => {
                    // First of all, so that one peer's crowd does not make the others wait.
                    let Some(seat) = self.inside.door.seat(peer) else { continue };
                    *waiting = Some((stream, peer, seat));
                    // Its place is waited for only now: a core that waits with one for a client would keep it from
                    // another.
                    let place = Arc::clone(&self.inside.door.places).acquire_owned().await;
                    // Nobody closes the places.
                    let (Ok(place), Some((stream, peer, seat))) = (place, waiting.take()) else { return };
                    self.take(stream, peer, (place, seat));
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

    fn take(&self, stream: TcpStream, peer: SocketAddr, place: (OwnedSemaphorePermit, Option<Seat>)) {
        // Small answers leave at once.
        let _ = stream.set_nodelay(true);
        let inside = Arc::clone(&self.inside);
        if inside.door.begins_with_http() {
            let stream = Taken::within(stream, inside.door.write_pause);
            self.connections.spawn(inside.attend(stream, Caller::new(peer), place));
            return;
        }
        let cut_off = self.cut_off.clone();
        self.connections.spawn(async move {
            tokio::select! {
                biased;
                () = inside.begin(stream, peer, place) => {}
                // A connection that speaks HTTP is told by its phase; this is for what comes before.
                () = cut_off.cancelled() => {}
            }
        });
    }

    /// The same at the end, when all places are taken: with one that becomes free before the deadline.
    fn take_later(&self, stream: TcpStream, peer: SocketAddr, seat: Option<Seat>) {
        let _ = stream.set_nodelay(true);
        let (inside, cut_off) = (Arc::clone(&self.inside), self.cut_off.clone());
        self.connections.spawn(async move {
            let serving = async {
                // Nobody closes the places.
                let Ok(place) = Arc::clone(&inside.door.places).acquire_owned().await else { return };
                inside.begin(stream, peer, (place, seat)).await;
            };
            tokio::select! {
                biased;
                () = serving => {}
                () = cut_off.cancelled() => {}
            }
        });
    }

    /// Waits for the connections to end, and for what goes on for clients that have left, or for the order to end them. What
    /// goes on for others is on their cores; it is waited for as well, because it is not known whose it is.
    async fn drained(&self) {
        self.stop.cancelled().await;
        self.connections.close();
        let phase = &self.inside.phase;
        phase.begin(&phase.draining);
        let all = async {
            self.connections.wait().await;
            // Connections leave this behind, so it is complete only now.
            self.inside.stack.unfinished().await;
        };
        tokio::select! {
            () = all => return,
            () = self.cut_off.cancelled() => {
                phase.begin(&phase.cutting_off);
                self.inside.stack.tunnels().cut_off();
            }
        }
        self.connections.wait().await;
    }
}

impl Door {
    /// Whether nothing comes before HTTP.
    fn begins_with_http(&self) -> bool {
        self.tls.is_none() && !self.proxy_protocol
    }

    /// A seat for whoever has connected; one that is not counted yet where a balancer will say who it is. `None` if it is
    /// turned away.
    fn seat(&self, peer: SocketAddr) -> Option<Option<Seat>> {
        let trusted = self.trusted.includes(peer.ip());
        if self.proxy_protocol && !trusted && !self.trusted.is_nobody() {
            tracing::debug!("a connection that did not come from a trusted proxy was closed");
            return None;
        }
        if self.proxy_protocol || trusted {
            return Some(None);
        }
        self.sit(peer).map(Some)
    }

    fn sit(&self, peer: SocketAddr) -> Option<Seat> {
        let seat = self.peers.sit(peer.ip());
        if seat.is_none() {
            tracing::debug!("a connection of a peer that has too many was closed");
        }
        seat
    }
}

/// Why a connection did not get as far as HTTP.
#[derive(Debug, thiserror::Error)]
enum NotBegun {
    #[error(transparent)]
    Preface(#[from] NoPreface),
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("what comes before HTTP took too long")]
    TooLong,
    #[error("its client has too many connections")]
    Crowded,
}

impl Inside {
    /// A connection on which something comes before HTTP.
    async fn begin(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, place: (OwnedSemaphorePermit, Option<Seat>)) {
        let (place, mut seat) = place;
        let preparing = tokio::time::timeout(self.door.handshake_time, self.prepare(stream, peer, &mut seat));
        // In a box, because it is over soon and the connection is not.
        let prepared = Box::pin(preparing).await.unwrap_or(Err(NotBegun::TooLong));
        match prepared {
            Ok((stream, caller)) => {
                let stream = Taken::within(stream, self.door.write_pause);
                let Some(tls) = self.door.tls.clone().map(TlsAcceptor::from) else {
                    return self.attend(stream, caller, (place, seat)).await;
                };
                // The client's patience with itself begins anew; ours with its handshake does not.
                let shaking = Box::pin(tokio::time::timeout(self.door.handshake_time, tls.accept(stream))).await;
                match shaking {
                    Ok(Ok(stream)) => {
                        let scheme = Some(HeaderValue::from_static("https"));
                        self.attend(stream, Caller { scheme, ..caller }, (place, seat)).await;
                    }
                    Ok(Err(error)) => not_begun(&NotBegun::Tls(error)),
                    Err(_) => not_begun(&NotBegun::TooLong),
                }
            }
            Err(error) => not_begun(&error),
        }
    }

    /// Who it is, by a balancer's header if there is to be one.
    async fn prepare(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        seat: &mut Option<Seat>,
    ) -> Result<(TcpStream, Caller), NotBegun> {
        if !self.door.proxy_protocol {
            return Ok((stream, Caller::new(peer)));
        }
        let client = preface::read(&mut stream).await?;
        if let Some(client) = client.filter(|client| !self.door.trusted.includes(client.ip())) {
            *seat = Some(self.door.sit(client).ok_or(NotBegun::Crowded)?);
        }
        Ok((stream, Caller::new(client.unwrap_or(peer))))
    }

    /// Speaks HTTP on a connection until it ends.
    async fn attend<S>(self: Arc<Self>, stream: S, caller: Caller, place: (OwnedSemaphorePermit, Option<Seat>))
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let trusted = self.door.trusted.includes(caller.address);
        let line = Arc::new(Line {
            inside: Arc::clone(&self),
            caller,
            trusted,
            heard: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
            answers: Arc::default(),
        });
        let service = {
            let line = Arc::clone(&line);
            service_fn(move |mut request| {
                let line = Arc::clone(&line);
                async move {
                    let version = request.version();
                    line.hear(version);
                    let work = (version == Version::HTTP_2).then(|| Work::begin(&line.answers)).flatten();
                    let Inside { stack, phase, door, .. } = &*line.inside;
                    // Behind a balancer each request has a client of its own.
                    let named = line.trusted.then(|| door.trusted.caller(&line.caller, &mut request));
                    let mut response = stack.serve(request, named.as_ref().unwrap_or(&line.caller)).await;
                    // What switches protocols names that there, and has no further request.
                    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                    if version < Version::HTTP_2 && !switches && phase.draining.load(Ordering::Relaxed) {
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, Infallible>(response.map(|body| Given::new(body, work)))
                }
            })
        };
        let connection = self.http.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        match self.phase.attend(connection, &line, &self.door).await {
            End::Connection(Ok(())) | End::CutOff => {}
            End::Connection(Err(error)) => {
                tracing::debug!(error = %causes(&*error), "a connection ended badly");
            }
            End::Silent => tracing::debug!("a connection without a request was closed"),
            End::NotTaken => tracing::debug!("a connection whose client takes no answer was closed"),
        }
        drop(place);
    }
}

fn not_begun(error: &NotBegun) {
    tracing::debug!(error = %causes(error), "a connection was closed before its first request");
}

/// What all requests of a connection have in common.
struct Line {
    inside: Arc<Inside>,
    caller: Caller,
    /// Whether that is a proxy that says who its clients are.
    trusted: bool,
    /// Whether a request came.
    heard: AtomicBool,
    /// How many came on HTTP/2.
    streams: AtomicUsize,
    /// What became of those.
    answers: Arc<Answers>,
}

impl Line {
    fn hear(&self, version: Version) {
        if version == Version::HTTP_2 {
            self.streams.fetch_add(1, Ordering::Relaxed);
        }
        self.heard.store(true, Ordering::Relaxed);
    }
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
    /// It did not take what it had asked for.
    NotTaken,
    /// It was told to.
    CutOff,
}

impl Phase {
    fn begin(&self, phase: &AtomicBool) {
        phase.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Sees a connection to its end. It wakes for its own work nearly always, so that is all that is looked at then, but
    /// for two flags, and on HTTP/2 a timer.
    async fn attend<C: GracefulConnection>(&self, connection: C, line: &Line, door: &Door) -> End<C::Error> {
        let mut connection = pin!(connection);
        let mut changed = pin!(self.changed.notified());
        let mut waked: Option<Waker> = None;
        let mut told = false;
        let mut last_request: Option<Pin<Box<Sleep>>> = None;
        let mut idle = Idle::new(door);
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
            // What has arrived is read before the time for it is found to be up: a core that was kept from its work must not
            // close a connection on which a request waits.
            if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                return Poll::Ready(End::Connection(ended));
            }
            let knew = told;
            if !told && self.draining.load(Ordering::Acquire) {
                // HTTP/2 has a word for it that crosses no request; HTTP/1 is given one more, if it comes soon.
                let last = last_request.get_or_insert_with(|| Box::pin(tokio::time::sleep(door.last_request_time)));
                told = line.streams.load(Ordering::Relaxed) > 0 || last.as_mut().poll(context).is_ready();
            }
            match idle.look(line, context) {
                Idleness::Silent => return Poll::Ready(End::Silent),
                Idleness::NotTaken => return Poll::Ready(End::NotTaken),
                Idleness::Idle => told = true,
                Idleness::Busy => {}
            }
            if knew == told {
                return Poll::Pending;
            }
            connection.as_mut().graceful_shutdown();
            connection.as_mut().poll(context).map(End::Connection)
        };
        poll_fn(look).await
    }
}

/// The watch over a connection that asks for nothing, or takes nothing. HTTP/1 has a timer of its own once it is known to be
/// HTTP/1; before, and on HTTP/2, a client could keep its place for ever, the latter by nothing but answers to our pings, and
/// our answers with it.
struct Idle {
    timer: Option<Pin<Box<Sleep>>>,
    limit: Duration,
    /// How many streams there were when the timer was set.
    streams: usize,
    /// Once it is to end: what had become of its answers when the timer was set.
    ending: Option<Option<usize>>,
}

enum Idleness {
    /// There was no request within the time for one.
    Silent,
    /// There was none for too long, or an answer was not taken for as long.
    Idle,
    /// It is to end, and nothing that keeps it is taken.
    NotTaken,
    Busy,
}

impl Idle {
    fn new(door: &Door) -> Self {
        let timer = Some(Box::pin(tokio::time::sleep(door.header_time)));
        Self { timer, limit: door.idle_time, streams: 0, ending: None }
    }

    fn look(&mut self, line: &Line, context: &mut Context<'_>) -> Idleness {
        let Some(timer) = self.timer.as_mut() else { return Idleness::Busy };
        if !line.heard.load(Ordering::Relaxed) {
            return if timer.as_mut().poll(context).is_ready() { Idleness::Silent } else { Idleness::Busy };
        }
        let streams = line.streams.load(Ordering::Relaxed);
        if streams == 0 {
            self.timer = None;
            return Idleness::Busy;
        }
        let mut idleness = Idleness::Busy;
        // The first stream, or the time is up: from here on all that came before does not count.
        while self.streams == 0 || timer.as_mut().poll(context).is_ready() {
            let now = line.answers.at_rest();
            match self.ending.replace(now) {
                Some(before) if now.is_some() && now == before => return Idleness::NotTaken,
                // Whoever has not heard by now that it is to end goes on asking for its own reasons.
                Some(_) => line.answers.close(),
                None if self.streams == streams || line.answers.turn() => idleness = Idleness::Idle,
                None => self.ending = None,
            }
            self.streams = streams;
            let Some(deadline) = Instant::now().checked_add(self.limit) else {
                self.timer = None;
                return idleness;
            };
            timer.as_mut().reset(deadline);
        }
        idleness
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::gate::path::PathPattern;
    use crate::gate::policy::{Policy, Price, Route, Terms};
    use crate::gate::{Desk, Gate};
    use crate::proxy::{Bounds, Cors, Upstream, UpstreamSettings, stack};
    use std::io::{Read as _, Write as _};
    use std::net;
    use std::sync::mpsc;

    /// A stack in front of that upstream, with nothing but a free route.
    pub(crate) fn free(upstream: SocketAddr) -> Stack {
        let terms = Terms::sample();
        let routes = vec![Route::new(PathPattern::parse("/*").unwrap(), Price::Free)];
        let gate = Gate::new(Policy::new(terms, "http://h", routes).unwrap(), Desk::closed());
        let timeout = Duration::from_secs(10);
        let url = format!("http://{upstream}").parse().unwrap();
        let settings =
            UpstreamSettings { connect_timeout: timeout, response_timeout: timeout, ..UpstreamSettings::of(url) };
        stack(&gate, Upstream::new(&settings).unwrap(), Cors::Off, Bounds::default())
    }

    /// A door that is open to everybody for long.
    fn open_door(last_request_time: Duration) -> Door {
        let time = Duration::from_secs(10);
        Door {
            header_time: time,
            handshake_time: time,
            idle_time: time,
            last_request_time,
            header_bytes: 64 * 1024,
            max_headers: DEFAULT_HEADERS,
            write_pause: time,
            places: Arc::new(Semaphore::new(8)),
            peers: Peers::sharing(8),
            trusted: Trusted::default(),
            proxy_protocol: false,
            tls: None,
        }
    }

    fn listen() -> net::TcpListener {
        net::TcpListener::bind("127.0.0.1:0").unwrap()
    }

    /// The head of a message.
    fn head(stream: &mut net::TcpStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        String::from_utf8(head).unwrap()
    }

    const REQUEST: &[u8] = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n";

    #[test]
    fn a_last_request_that_came_in_time_is_served_by_a_core_that_was_too_busy_to_see_it() {
        let (last_request_time, busy_for) = (Duration::from_secs(2), Duration::from_secs(3));
        let (upstream, socket) = (listen(), listen());
        let address = socket.local_addr().unwrap();
        let (stop, cut_off) = (CancellationToken::new(), CancellationToken::new());
        let core = Core::new(free(upstream.local_addr().unwrap()), open_door(last_request_time), stop.clone(), cut_off);
        let works = Arc::new(Notify::new());
        let (begins, (tell, told)) = (Arc::clone(&works), mpsc::channel());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.spawn(async move {
                begins.notified().await;
                tell.send(()).unwrap();
                std::thread::sleep(busy_for);
            });
            core.run_in(&runtime, core.accept(Socket { listener: socket, inherited: false }));
        });
        std::thread::spawn(move || {
            let (mut api, _) = upstream.accept().unwrap();
            for _ in 0..2 {
                head(&mut api);
                api.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            }
        });
        let mut client = net::TcpStream::connect(address).unwrap();
        client.write_all(REQUEST).unwrap();
        assert!(head(&mut client).starts_with("HTTP/1.1 200 OK"));
        stop.cancel();
        // Until the connection knows that this is the end.
        std::thread::sleep(last_request_time / 4);
        works.notify_one();
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        client.write_all(REQUEST).unwrap();
        let answer = head(&mut client);
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("connection: close"), "{answer}");
    }

    #[test]
    fn a_core_that_breaks_stops_all_and_lets_its_requests_end() {
        let (upstream, socket) = (listen(), listen());
        let address = socket.local_addr().unwrap();
        let (stop, cut_off) = (CancellationToken::new(), CancellationToken::new());
        let door = open_door(Duration::from_millis(10));
        let core = Core::new(free(upstream.local_addr().unwrap()), door, stop.clone(), cut_off);
        let breaks = Arc::new(Notify::new());
        let broken = Arc::clone(&breaks);
        let (tell, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            core.run_in(&runtime, async {
                tokio::select! {
                    () = core.accept(Socket { listener: socket, inherited: false }) => {}
                    () = broken.notified() => panic!("a core breaks on purpose"),
                }
            });
            tell.send(()).unwrap();
        });
        let mut client = net::TcpStream::connect(address).unwrap();
        client.write_all(REQUEST).unwrap();
        let (mut api, _) = upstream.accept().unwrap();
        head(&mut api);
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
