//! Connections that stop speaking HTTP: WebSocket and whatever else a route allows.
//!
//! **Owns** who may ask for another protocol, the copying afterwards, and the bound on how many do so. **Promises** that a
//! connection becomes a tunnel only if a `GET` of HTTP/1.1 without a body asked for one protocol that its route allows, it
//! was let through the gate, and the upstream switched to just that protocol; everything else stays plain HTTP, so nothing
//! can be hidden behind a switch that only one side believes in. A tunnel ends when either side closes it, when nothing
//! moves for the upstream's idle timeout, when what was paid for is used up, and at the deadline of a shutdown. **Does
//! not** look into what is said: it counts bytes.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::balance::Load;
use super::peers::{Peers, Seat};
use super::{Caller, headers};
use crate::causes::causes;
use crate::gate::Way;
use crate::gate::metered::Metering;
use crate::listed;
use crate::pricing::End;

/// How many tunnels there are at once, unless said.
pub const MAX_TUNNELS: usize = 1_024;

/// How long the two sides have to switch once the answer left.
const MAX_SWITCH_TIME: Duration = Duration::from_secs(15);

/// What a tunnel's bytes are counted by.
pub(super) trait Toll: Send + Sync + 'static {
    /// So many bytes came from the client.
    fn count_up(&self, bytes: u64);
    /// So many bytes came from the upstream.
    fn count_down(&self, bytes: u64);
    /// Done when nothing more is paid for.
    fn exhausted(&self) -> impl Future<Output = ()> + Send;
    /// It is over.
    fn finish(self, end: End);
}

/// Where the handshake was paid for, what follows costs nothing, and there is no metering.
impl Toll for Option<Metering> {
    fn count_up(&self, bytes: u64) {
        if let Some(metering) = self {
            metering.count_up(length(bytes));
        }
    }

    fn count_down(&self, bytes: u64) {
        if let Some(metering) = self {
            metering.count_down(length(bytes));
        }
    }

    async fn exhausted(&self) {
        match self {
            Some(metering) => metering.exhausted().await,
            None => std::future::pending().await,
        }
    }

    fn finish(self, end: End) {
        if let Some(metering) = self {
            metering.finish(end);
        }
    }
}

/// What passes at once has room in the memory.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// A client wants its connection to speak another protocol. Made before the headers that say so are removed, and found among
/// the request's extensions.
#[derive(Debug, Clone)]
pub(super) struct Wish(HeaderValue);

impl Wish {
    /// What this request wishes for, if it may.
    pub(super) fn note<B: http_body::Body>(request: &mut Request<B>) {
        // The server puts this there for HTTP/1.1 with an `Upgrade`, and mostly it is not.
        if request.extensions().get::<OnUpgrade>().is_none() {
            return;
        }
        let headers = request.headers();
        let bodiless = !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING);
        let plain = request.method() == Method::GET && request.version() == Version::HTTP_11;
        if let Some(protocol) = only_upgrade(headers).filter(|_| plain && bodiless && request.body().is_end_stream()) {
            let protocol = protocol.clone();
            request.extensions_mut().insert(Self(protocol));
        }
    }

    /// The wish of this request, if its route allows it.
    pub(super) fn granted<B>(request: &mut Request<B>) -> Option<(Self, OnUpgrade)> {
        let wish = request.extensions_mut().remove::<Self>()?;
        let way = request.extensions().get::<Arc<Way>>()?;
        if !wish.0.to_str().is_ok_and(|protocol| way.upgrades_to(protocol)) {
            return None;
        }
        let client = request.extensions_mut().remove::<OnUpgrade>()?;
        Some((wish, client))
    }

    /// Says it to the upstream.
    pub(super) fn say(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.0.clone());
    }

    /// Whether an answer switches to what was wished for.
    pub(super) fn is_met<B>(&self, answer: &Response<B>) -> bool {
        let same = |protocol: &HeaderValue| protocol.as_bytes().eq_ignore_ascii_case(self.0.as_bytes());
        answer.status() == StatusCode::SWITCHING_PROTOCOLS && only_upgrade(answer.headers()).is_some_and(same)
    }
}

/// The one protocol that `Upgrade` names, where `Connection` names `Upgrade`.
fn only_upgrade(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let protocol = protocols.next().filter(|_| protocols.next().is_none())?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&byte);
    let single = !protocol.is_empty() && protocol.as_bytes().iter().copied().all(token);
    (single && listed::has(headers, CONNECTION, "upgrade")).then_some(protocol)
}

/// Both ends of what is about to become a tunnel. The answer that says so carries it; where that answer is replaced, the
/// upstream's connection ends with this.
#[derive(Debug, Clone)]
pub(super) struct Switch(Arc<std::sync::Mutex<Option<Ends>>>);

#[derive(Debug)]
struct Ends {
    wish: Wish,
    client: OnUpgrade,
    upstream: OnUpgrade,
    /// What it takes up for as long as it lasts.
    taken: (Place, Option<Load>),
    max_pause: Duration,
}

impl Switch {
    pub(super) fn new(
        wish: Wish,
        client: OnUpgrade,
        upstream: OnUpgrade,
        taken: (Place, Option<Load>),
        max_pause: Duration,
    ) -> Self {
        Self(Arc::new(std::sync::Mutex::new(Some(Ends { wish, client, upstream, taken, max_pause }))))
    }

    /// Opens the tunnel behind an answer with these headers, which is about to leave.
    pub(super) fn open(&self, headers: &mut HeaderMap, tunnels: &Tunnels, id: &HeaderValue, toll: impl Toll) {
        let Some(ends) = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() else { return };
        ends.wish.say(headers);
        let (id, cut_off) = (id.clone(), tunnels.cut_off.clone());
        tunnels.open.spawn(async move {
            let id = headers::text(&id);
            let switched = async { tokio::try_join!(ends.client, ends.upstream) };
            let (client, upstream) = match tokio::time::timeout(MAX_SWITCH_TIME, switched).await {
                Ok(Ok(both)) => both,
                Ok(Err(error)) => {
                    tracing::debug!(request = id, error = %causes(&error), "a connection did not switch protocols");
                    return toll.finish(End::PayerLeft);
                }
                Err(_) => {
                    tracing::debug!(request = id, "a connection did not switch protocols in time");
                    return toll.finish(End::PayerLeft);
                }
            };
            let end = carry(client, upstream, ends.max_pause, &cut_off, &toll).await;
            tracing::debug!(request = id, ?end, "a tunnel ended");
            toll.finish(end);
            drop(ends.taken);
        });
    }
}

/// Copies both ways until one of the reasons to end.
async fn carry(
    client: Upgraded,
    upstream: Upgraded,
    max_pause: Duration,
    cut_off: &CancellationToken,
    toll: &impl Toll,
) -> End {
    let moved = AtomicU64::new(0);
    let mut client = Counted { inner: TokioIo::new(client), moved: &moved, failed: false, count: |n| toll.count_up(n) };
    let mut upstream =
        Counted { inner: TokioIo::new(upstream), moved: &moved, failed: false, count: |n| toll.count_down(n) };
    let end = {
        let mut copying = pin!(tokio::io::copy_bidirectional(&mut client, &mut upstream));
        tokio::select! {
            biased;
            () = cut_off.cancelled() => Some(End::Stopped),
            () = toll.exhausted() => Some(End::Complete),
            copied = &mut copying => copied.is_ok().then_some(End::Complete),
            () = stands_still(&moved, max_pause) => Some(End::Complete),
        }
    };
    // Whose fault it is that something could not be copied shows in which of the two failed.
    end.unwrap_or(if upstream.failed { End::UpstreamFailed } else { End::PayerLeft })
}

/// Done once nothing has moved for so long.
async fn stands_still(moved: &AtomicU64, limit: Duration) {
    let (mut before, mut since) = (moved.load(Ordering::Relaxed), Instant::now());
    // Looked at four times as often, so that a pause is at most a quarter longer than it may be.
    let look = (limit / 4).max(Duration::from_millis(1));
    loop {
        tokio::time::sleep(look).await;
        let now = moved.load(Ordering::Relaxed);
        if now != before {
            (before, since) = (now, Instant::now());
        } else if since.elapsed() >= limit {
            return;
        }
    }
}

/// One side of a tunnel. What is read from it is counted.
struct Counted<'a, T, C> {
    inner: T,
    moved: &'a AtomicU64,
    failed: bool,
    count: C,
}

impl<T, C> Counted<'_, T, C> {
    fn watch<R>(&mut self, polled: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        self.failed |= matches!(polled, Poll::Ready(Err(_)));
        polled
    }
}

impl<T: AsyncRead + Unpin, C: FnMut(u64) + Unpin> AsyncRead for Counted<'_, T, C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        let read = u64::try_from(buffer.filled().len().saturating_sub(before)).unwrap_or(u64::MAX);
        if read > 0 {
            self.moved.fetch_add(read, Ordering::Relaxed);
            (self.count)(read);
        }
        self.watch(polled)
    }
}

impl<T: AsyncWrite + Unpin, C: Unpin> AsyncWrite for Counted<'_, T, C> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watch(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(context);
        self.watch(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(context);
        self.watch(polled)
    }
}

/// The tunnels of one core, and how many all cores have.
#[derive(Debug)]
pub(super) struct Tunnels {
    count: Arc<AtomicUsize>,
    most: usize,
    peers: Peers,
    /// What this core serves: its connections, and the tunnels they became.
    open: TaskTracker,
    cut_off: CancellationToken,
}

/// A tunnel's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    count: Arc<AtomicUsize>,
    seat: Option<Seat>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tunnels {
    /// So many at once, a quarter of them for one peer.
    pub(super) fn up_to(most: usize) -> Self {
        let (open, cut_off) = (TaskTracker::new(), CancellationToken::new());
        Self { count: Arc::default(), most, peers: Peers::sharing(most), open, cut_off }
    }

    /// Those of another core, which count together with these.
    pub(super) fn apart(&self) -> Self {
        let Self { count, most, peers, .. } = self;
        let (open, cut_off) = (TaskTracker::new(), CancellationToken::new());
        Self { count: Arc::clone(count), most: *most, peers: peers.clone(), open, cut_off }
    }

    /// A place for one more, if there is room.
    pub(super) fn enter(&self, caller: &Caller) -> Option<Place> {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        // From here on it is counted, and no longer once this is dropped.
        let mut place = Place { count: Arc::clone(&self.count), seat: None };
        place.seat = (before < self.most).then(|| self.peers.sit(caller.address)).flatten();
        place.seat.is_some().then_some(place)
    }

    /// Counts what the core serves; tunnels are spawned here.
    pub(super) fn tracker(&self) -> &TaskTracker {
        &self.open
    }

    /// Ends them.
    pub(super) fn cut_off(&self) {
        self.cut_off.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(lines: &[(&str, &str)]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(http::HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        only_upgrade(&headers).map(|protocol| protocol.to_str().unwrap().to_owned())
    }

    #[test]
    fn one_protocol_is_asked_for_and_both_headers_say_so() {
        let asked = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        assert_eq!(wish(&asked).as_deref(), Some("websocket"));
        let refused: &[&[(&str, &str)]] = &[
            &[("upgrade", "websocket")],
            &[("connection", "keep-alive"), ("upgrade", "websocket")],
            &[("connection", "upgrade")],
            &[("connection", "upgrade"), ("upgrade", "websocket, h2c")],
            &[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")],
            &[("connection", "upgrade"), ("upgrade", "")],
        ];
        for lines in refused {
            assert_eq!(wish(lines), None, "{lines:?}");
        }
    }

    #[test]
    fn there_are_no_more_tunnels_than_said_on_all_cores_together() {
        let one = Tunnels::up_to(2);
        let other = one.apart();
        let caller = Caller::new("127.0.0.1:1".parse().unwrap());
        let places = [one.enter(&caller).unwrap(), other.enter(&caller).unwrap()];
        assert!(one.enter(&caller).is_none() && other.enter(&caller).is_none());
        drop(places);
        assert!(one.enter(&caller).is_some());
        let far = Caller::new("192.0.2.1:1".parse().unwrap());
        let _its_share = one.enter(&far).unwrap();
        assert!(one.enter(&far).is_none(), "one of two is more than a quarter already");
        assert!(one.enter(&caller).is_some());
    }

    #[tokio::test]
    async fn what_stands_still_is_over_and_what_moves_is_not() {
        let moved = AtomicU64::new(0);
        let limit = Duration::from_millis(200);
        let begun = Instant::now();
        let moving = async {
            for _ in 0..4 {
                tokio::time::sleep(limit / 2).await;
                moved.fetch_add(1, Ordering::Relaxed);
            }
        };
        tokio::join!(moving, stands_still(&moved, limit));
        assert!(begun.elapsed() >= 3 * limit);
    }
}
