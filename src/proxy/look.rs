//! Bodies that are read before their requests are judged, because the price depends on them.
//!
//! **Owns** the reading, and the memory it may take. **Promises** that what was read goes on to the upstream unchanged,
//! that nothing is read beyond what decides, and that all such bodies together never take more than [`MAX_HELD_BYTES`], and
//! one peer's no more than its share of that, however many are sent unpaid. **Does not** judge what was read, nor touch any
//! other request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;

use super::body::{BodyBroken, RequestBody};
use super::shares::{Account, Shares};
use super::{Caller, crowd};
use crate::gate::{BodyKind, BodyWanted, Gate, kind_of_body, refusal};

/// How much memory all bodies may take that are held until they can be sent on.
const MAX_HELD_BYTES: usize = 256 << 20;

/// How long one may take to come, however steadily.
const MAX_READING_TIME: Duration = Duration::from_secs(30);

/// The memory that is left. All its clones count together.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Held>);

/// What is held, in all and of each peer, bytes.
#[derive(Debug)]
struct Held {
    all: AtomicUsize,
    shares: Shares,
}

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Held { all: AtomicUsize::new(0), shares: Shares::of(MAX_HELD_BYTES) }))
    }
}

/// A part of it, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    room: Room,
    account: Account,
    bytes: usize,
}

impl Share {
    fn of(room: &Room, caller: &Caller) -> Self {
        Self { room: room.clone(), account: room.0.shares.account(caller), bytes: 0 }
    }

    /// Whether there was room for so much more, in all and for this peer.
    fn grow(&mut self, more: usize) -> bool {
        let Held { all, shares } = &*self.room.0;
        if !shares.add(self.account, more) {
            return false;
        }
        let add = |held: usize| held.checked_add(more).filter(|held| *held <= MAX_HELD_BYTES);
        let has_grown = all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok();
        if has_grown {
            self.bytes += more;
        } else {
            shares.take_back(self.account, more);
        }
        has_grown
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Held { all, shares } = &*self.room.0;
        all.fetch_sub(self.bytes, Ordering::Relaxed);
        shares.take_back(self.account, self.bytes);
    }
}

/// Reads the request's body if its price depends on that, and tells the gate what was seen. Answers where the body does not
/// come.
///
/// # Cancellation
/// Nothing was decided yet, so nothing is lost.
pub(super) async fn look(
    gate: &Gate,
    room: &Room,
    caller: &Caller,
    mut request: Request<RequestBody>,
) -> Result<Request<RequestBody>, Response<Bytes>> {
    let Some(wanted) = gate.wants_body(&request) else { return Ok(request) };
    if request.body().is_end_stream() {
        wanted.read(&mut request, Some(Bytes::new()));
        return Ok(request);
    }
    if wanted.refuse_encoded(&mut request) {
        return Ok(request);
    }
    // In a box, so that other requests have no room for it.
    let reading = Box::pin(read(request.body_mut(), &wanted, Share::of(room, caller)));
    let Ok(read) = tokio::time::timeout(MAX_READING_TIME, reading).await else { return Err(too_slow()) };
    let front = read?;
    wanted.read(&mut request, front.is_enough.then(|| front.bytes.clone()));
    request.body_mut().put_back(front);
    Ok(request)
}

/// What was read of a body, to be sent on before the rest.
#[derive(Debug)]
pub(super) struct Front {
    bytes: Bytes,
    trailers: Option<HeaderMap>,
    is_enough: bool,
    _share: Share,
}

impl Front {
    /// How many bytes are left of it.
    pub(super) fn len(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }

    /// Whether trailers follow, which nothing can say the length of.
    pub(super) fn has_trailers(&self) -> bool {
        self.trailers.is_some()
    }

    /// The next frame of it.
    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() { self.trailers.take().map(Frame::trailers) } else { Some(Frame::data(bytes)) }
    }

    pub(super) fn is_over(&self) -> bool {
        self.bytes.is_empty() && self.trailers.is_none()
    }
}

/// Reads as much of a body as its request's price depends on.
async fn read(body: &mut RequestBody, wanted: &BodyWanted, mut share: Share) -> Result<Front, Response<Bytes>> {
    // Most come in one piece, which need not be copied.
    let mut pieces = Pieces::default();
    let (mut trailers, mut is_enough, mut kind) = (None, true, BodyKind::Empty);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|broken| match broken {
            BodyBroken::Off(_) => refusal(StatusCode::BAD_REQUEST, "body_broken", "the request's body broke off"),
            BodyBroken::Paused => too_slow(),
            BodyBroken::TooLarge => super::too_large(),
        })?;
        match frame.into_data() {
            Ok(data) => {
                if !share.grow(data.len()) {
                    return Err(crowd::overloaded());
                }
                // Only blanks came before, so what is new decides.
                if kind == BodyKind::Empty {
                    kind = kind_of_body(&data);
                }
                pieces.add(data);
            }
            Err(other) => trailers = other.into_trailers().ok(),
        }
        if !wanted.wants_more_of(kind) {
            break;
        }
        // What is announced to be too large need not come first.
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if pieces.as_slice().len().saturating_add(announced) > wanted.max_bytes() {
            is_enough = false;
            break;
        }
    }
    Ok(Front { bytes: pieces.joined(), trailers, is_enough, _share: share })
}

/// What came so far, as one.
#[derive(Debug, Default)]
struct Pieces {
    first: Bytes,
    /// The first and all others, once there are others.
    joined: BytesMut,
}

impl Pieces {
    fn add(&mut self, data: Bytes) {
        if self.first.is_empty() && self.joined.is_empty() {
            self.first = data;
        } else {
            let first = std::mem::take(&mut self.first);
            self.joined.extend_from_slice(&first);
            self.joined.extend_from_slice(&data);
        }
    }

    fn as_slice(&self) -> &[u8] {
        if self.joined.is_empty() { &self.first } else { &self.joined }
    }

    fn joined(self) -> Bytes {
        if self.joined.is_empty() { self.first } else { self.joined.freeze() }
    }
}

fn too_slow() -> Response<Bytes> {
    refusal(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the request's body took too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_has_a_quarter_of_the_memory_and_others_have_theirs() {
        let room = Room::default();
        let caller = |text: &str| Caller::new(text.parse().unwrap());
        let mut one = Share::of(&room, &caller("192.0.2.1:1"));
        let mut same = Share::of(&room, &caller("192.0.2.1:2"));
        assert!(one.grow(MAX_HELD_BYTES / 4 - 1) && same.grow(1));
        assert!(!one.grow(1) && !same.grow(1));
        let mut many = Share::of(&room, &caller("127.0.0.1:1"));
        assert!(many.grow(MAX_HELD_BYTES / 4 * 3) && !many.grow(1), "all the rest");
        let mut other = Share::of(&room, &caller("192.0.2.2:1"));
        assert!(!other.grow(1));
        drop(one);
        assert!(other.grow(1) && same.grow(1), "what was not grown by was not counted");
        drop((same, many, other));
        assert_eq!(room.0.all.load(Ordering::Relaxed), 0);
    }
}
