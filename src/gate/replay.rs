//! The same payment again: its answer is given again, and nothing is charged.
//!
//! **Owns** the answers that are kept for payments that may come again, and what is known of the requests they answered.
//! **Promises** that an answer is given again only for the very bytes of the payment that paid for it, which none but its
//! sender has, and only for the same request: method, target, host and body. That no payment is served twice side by side:
//! one that comes again meanwhile waits for the first. And that what is kept stays within its bounds of memory and age.
//! **Does not** outlive the process, keep an answer that is larger than its bound, or know what a payment is worth.
//!
//! # What is kept
//!
//! Answers that are paid for, mostly those below status 400: after any other the same payment is good again, and serves
//! anew.
//! A payment with an identifier ([`super::identifier`]) has its answer kept whatever becomes of it. Of one without, the
//! answer is kept only if it is known not to have arrived ([`Idempotency::unidentified`]): clients that send the same
//! request several times at once sign the same voucher for all, and want an answer for each, not one for all.
//!
//! # Cancellation
//!
//! A request whose answer is kept goes on when its client leaves: the upstream's work is charged as if it had stayed, and
//! is there when it comes back. At most [`MAX_FINISHING`] do so at once; beyond, leaving is what it always is.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use sha3::{Digest as _, Keccak256};
use tokio::sync::watch;

use super::answer::Refusal;
use super::background::Background;
use super::body::Whole;
use super::identifier::Identifiers;
use super::served::is_served;
use crate::pricing::StatusRule;
use crate::protocol::x402::{Action, Payment};
use crate::protocol::{Amount, ChannelId, Code};

/// How many requests whose clients have left are finished at once.
pub const MAX_FINISHING: usize = 1_024;

/// How long the rest of an answer may take whose client has left.
pub const MAX_FINISHING_TIME: Duration = Duration::from_secs(300);

/// The longest a payment that came again waits for its first answer, unless the offer promises one sooner.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(90);

/// What an entry takes beside its texts, bytes: a generous guess.
const ENTRY_BYTES: usize = 1_024;

/// On an answer that was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Which answers are kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idempotency {
    /// How long after its end an answer is kept.
    pub window: Duration,
    /// How many bytes all of them may take; the oldest go first. With none nothing is kept.
    pub memory: usize,
    /// The longest body that is kept, bytes.
    pub max_answer: usize,
    /// Whether answers to payments without an identifier are kept as well, where they are known not to have arrived.
    pub unidentified: bool,
}

impl Default for Idempotency {
    fn default() -> Self {
        Self { window: Duration::from_secs(300), memory: 64 << 20, max_answer: 256 << 10, unidentified: false }
    }
}

/// A request's body, as far as requests are compared by it.
pub(crate) trait Content: Send {
    /// Lets `heard` hear what is read of it.
    fn overheard(&mut self, heard: &Arc<Heard>);

    /// Reads all of it. Whether that is what was heard.
    fn is(&mut self, heard: &Heard) -> impl Future<Output = bool> + Send;
}

/// A body that cannot be listened to: requests are the same whatever theirs are.
#[derive(Debug)]
pub(super) struct Unheard<B>(pub(super) B);

impl<B: Send> Content for Unheard<B> {
    fn overheard(&mut self, heard: &Arc<Heard>) {
        heard.end();
    }

    async fn is(&mut self, _heard: &Heard) -> bool {
        true
    }
}

/// What was heard of a request's body.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<Ear>);

#[derive(Debug, Default)]
struct Ear {
    digest: Keccak256,
    whole: bool,
}

impl Heard {
    /// The next piece.
    pub(crate) fn hear(&self, piece: &[u8]) {
        self.ear().digest.update(piece);
    }

    /// There is no more.
    pub(crate) fn end(&self) {
        self.ear().whole = true;
    }

    /// Whether both were heard to their end, and the same.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        let of = |ear: &Ear| ear.whole.then(|| ear.digest.clone().finalize());
        let (mine, theirs) = (of(&self.ear()), of(&other.ear()));
        mine.is_some() && mine == theirs
    }

    fn ear(&self) -> MutexGuard<'_, Ear> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By what a payment is found again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// The channel and the name the client gave. Two payers may choose the same name.
    Named(ChannelId, Box<str>),
    /// The channel and its voucher's ceiling, where there is no name.
    Voucher(ChannelId, Amount),
}

/// What makes one request the same as another, but for the body.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    /// The payment's header, byte for byte.
    payment: HeaderValue,
    method: Method,
    target: Option<PathAndQuery>,
    host: Option<HeaderValue>,
}

impl Asked {
    /// The same in buffers of its own: it came in pieces of a large one, which is not to be kept for it.
    fn on_its_own(self) -> Self {
        let target = self.target.map(|target| target.as_str().parse().unwrap_or(target));
        Self {
            payment: on_its_own(&self.payment),
            method: self.method,
            target,
            host: self.host.as_ref().map(on_its_own),
        }
    }
}

fn on_its_own(value: &HeaderValue) -> HeaderValue {
    let mut own = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
    own.set_sensitive(value.is_sensitive());
    own
}

/// What is needed to find a payment's answer again, and to keep it.
#[derive(Debug)]
pub(super) struct Slip {
    key: Key,
    asked: Asked,
}

/// What became of a payment.
#[derive(Debug, Clone)]
enum State {
    /// It is being served.
    Serving,
    /// This was answered.
    Kept(Arc<Stored>),
    /// It was charged, and its answer is not here.
    Gone,
    /// It was not charged, and is as new.
    Void,
}

/// An answer, whole.
#[derive(Debug)]
struct Stored {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

/// One payment that may come again.
#[derive(Debug)]
pub(super) struct Entry {
    asked: Asked,
    heard: Arc<Heard>,
    state: watch::Sender<State>,
}

/// The answers that are kept.
#[derive(Debug, Clone)]
pub(super) struct Replays(Arc<Shelf>);

#[derive(Debug)]
struct Shelf {
    rules: Idempotency,
    places: Mutex<Places>,
    /// How many entries there are, so that nobody need lock to learn that there are none.
    count: AtomicUsize,
    finishing: Background,
}

#[derive(Debug, Default)]
struct Places {
    entries: HashMap<Key, Arc<Entry>>,
    /// Those that have ended, the oldest first.
    ended: VecDeque<Ended>,
    /// What all of them take, and what has passed so far of answers that may be kept.
    bytes: usize,
}

#[derive(Debug)]
struct Ended {
    key: Key,
    entry: Arc<Entry>,
    at: Instant,
    bytes: usize,
}

impl Replays {
    /// Whose unfinished work is waited for together with what else goes on.
    pub(super) fn new(rules: Idempotency, beside: &Background) -> Self {
        let finishing = beside.beside(MAX_FINISHING);
        Self(Arc::new(Shelf { rules, places: Mutex::default(), count: AtomicUsize::new(0), finishing }))
    }

    /// What a payment may be found again by. Nothing for most: it has no identifier, and such are not kept.
    pub(super) fn slip<B>(
        &self,
        identifiers: Identifiers,
        payment: &Payment<'_>,
        header: &HeaderValue,
        request: &Request<B>,
    ) -> Result<Option<Slip>, Refusal> {
        if matches!(payment.action, Action::Refund(_)) {
            return Ok(None);
        }
        let id = identifiers.read(&payment.extensions)?;
        let Idempotency { memory, unidentified, .. } = self.0.rules;
        let voucher = &payment.voucher;
        let key = match id {
            _ if memory == 0 => return Ok(None),
            Some(id) => Key::Named(voucher.channel, id.into()),
            None if unidentified => Key::Voucher(voucher.channel, voucher.max_claimable),
            None => return Ok(None),
        };
        let asked = Asked {
            payment: header.clone(),
            method: request.method().clone(),
            target: request.uri().path_and_query().cloned(),
            host: host_of(request),
        };
        Ok(Some(Slip { key, asked }))
    }

    /// What is known of a payment that came before.
    pub(super) fn find(&self, slip: &Slip) -> Option<Arc<Entry>> {
        if self.0.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut places = self.places();
        self.expire(&mut places);
        places.entries.get(&slip.key).cloned()
    }

    /// Begins with a payment that was admitted.
    pub(super) fn begin(&self, slip: Slip) -> Result<Serving, Refusal> {
        let Slip { key, asked } = slip;
        let (state, _) = watch::channel(State::Serving);
        let entry = Arc::new(Entry { asked: asked.on_its_own(), heard: Arc::default(), state });
        let place = Place { replays: self.clone(), key, entry, is_known: AtomicBool::new(false) };
        if matches!(place.key, Key::Named(..)) && !place.make_known() {
            return Err(conflict());
        }
        Ok(Serving { place: Arc::new(place), is_over: false })
    }

    fn expire(&self, places: &mut Places) {
        let Idempotency { window, memory, .. } = self.0.rules;
        while let Some(oldest) = places.ended.front()
            && (places.bytes > memory || oldest.at.elapsed() >= window)
        {
            let Some(Ended { key, entry, bytes, .. }) = places.ended.pop_front() else { break };
            places.bytes = places.bytes.saturating_sub(bytes);
            self.remove(places, &key, &entry);
        }
    }

    /// Takes room for so many more bytes of an answer that passes, from the oldest that are kept if need be. Whether there
    /// was any.
    fn take_room(&self, bytes: usize) -> bool {
        let mut places = self.places();
        places.bytes = places.bytes.saturating_add(bytes);
        self.expire(&mut places);
        let has_room = places.bytes <= self.0.rules.memory;
        if !has_room {
            places.bytes = places.bytes.saturating_sub(bytes);
        }
        has_room
    }

    fn remove(&self, places: &mut Places, key: &Key, entry: &Arc<Entry>) {
        if places.entries.get(key).is_some_and(|known| Arc::ptr_eq(known, entry)) {
            places.entries.remove(key);
        }
        self.0.count.store(places.entries.len(), Ordering::Release);
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a payment gets that may have come before.
pub(super) enum Again {
    /// The answer it had.
    Answer(Box<Response<Whole>>),
    /// It is judged as if it were new.
    Anew,
    /// The same, but its request's body was read: it cannot be served.
    Read,
}

impl Entry {
    /// What the same payment gets, once the first one's answer is there. `longest` is how long that may take.
    pub(super) async fn again<B: Content>(
        &self,
        slip: &Slip,
        request: &mut Request<B>,
        longest: Duration,
    ) -> Result<Again, Refusal> {
        let is_named = matches!(slip.key, Key::Named(..));
        if self.asked != slip.asked {
            return if is_named { Err(conflict()) } else { Ok(Again::Anew) };
        }
        let mut states = self.state.subscribe();
        let over = states.wait_for(|state| !matches!(state, State::Serving));
        let state = match tokio::time::timeout(longest.min(MAX_WAIT), over).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) => State::Void,
            Err(_) => return Err(Refusal::from(Code::ChannelBusy).with_detail("this payment is being served")),
        };
        match state {
            State::Kept(stored) => match request.body_mut().is(&self.heard).await {
                true => Ok(Again::Answer(Box::new(stored.response()))),
                false if is_named => Err(conflict()),
                false => Ok(Again::Read),
            },
            State::Gone if is_named => {
                let detail = "this payment was charged, and its answer could not be kept; to pay again takes a new id";
                Err(Refusal::from(Code::AnswerNotKept).with_detail(detail))
            }
            State::Gone | State::Void | State::Serving => Ok(Again::Anew),
        }
    }
}

fn host_of<B>(request: &Request<B>) -> Option<HeaderValue> {
    match request.uri().authority() {
        Some(authority) => HeaderValue::try_from(authority.as_str()).ok(),
        None => request.headers().get(HOST).cloned(),
    }
}

fn conflict() -> Refusal {
    Refusal::from(Code::IdentifierConflict)
        .with_detail("the id was sent before with another payment or request; it names one, and the same again")
}

impl Stored {
    fn response(&self) -> Response<Whole> {
        let mut response = Response::new(Whole::new(self.body.clone(), self.trailers.clone()));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        response
    }

    fn bytes(&self) -> usize {
        let of = |headers: &HeaderMap| -> usize {
            headers.iter().map(|(name, value)| name.as_str().len().saturating_add(value.len())).sum()
        };
        let heads = of(&self.headers).saturating_add(self.trailers.as_ref().map_or(0, of));
        heads.saturating_add(self.body.len())
    }
}

/// Where a payment stands among those that may come again.
#[derive(Debug)]
pub(super) struct Place {
    replays: Replays,
    key: Key,
    entry: Arc<Entry>,
    /// Whether it can be found. One without a name cannot, as long as all goes well with it.
    is_known: AtomicBool,
}

impl Place {
    /// Lets it be found from now on. Whether it can be: another one may have its name.
    fn make_known(&self) -> bool {
        let mut places = self.replays.places();
        if self.is_known.load(Ordering::Acquire) {
            return true;
        }
        if places.entries.contains_key(&self.key) {
            return false;
        }
        places.entries.insert(self.key.clone(), Arc::clone(&self.entry));
        self.replays.0.count.store(places.entries.len(), Ordering::Release);
        self.is_known.store(true, Ordering::Release);
        true
    }

    fn end(&self, state: State) {
        let mut places = self.replays.places();
        if !self.is_known.load(Ordering::Acquire) {
            return;
        }
        match &state {
            State::Void | State::Serving => self.replays.remove(&mut places, &self.key, &self.entry),
            State::Kept(_) | State::Gone => {
                let answer = if let State::Kept(stored) = &state { stored.bytes() } else { 0 };
                let bytes = answer.saturating_add(self.entry.asked.payment.len()).saturating_add(ENTRY_BYTES);
                places.bytes = places.bytes.saturating_add(bytes);
                let (key, entry) = (self.key.clone(), Arc::clone(&self.entry));
                places.ended.push_back(Ended { key, entry, at: Instant::now(), bytes });
                self.replays.expire(&mut places);
            }
        }
        drop(places);
        self.entry.state.send_replace(state);
    }
}

/// A payment that is being served. Dropped without a word, it was charged and its answer is lost.
#[derive(Debug)]
pub(super) struct Serving {
    place: Arc<Place>,
    is_over: bool,
}

impl Serving {
    /// What hears the request's body.
    pub(super) fn heard(&self) -> Arc<Heard> {
        Arc::clone(&self.place.entry.heard)
    }

    /// Does the work to its end, and keeps its answer where that is paid for by this `rule`. `work` goes on should this be
    /// dropped.
    pub(super) fn see_to_it<B, E>(
        self,
        rule: StatusRule,
        work: impl Future<Output = Result<Response<B>, E>> + Send + 'static,
    ) -> Finish<Result<Response<Kept<B>>, E>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        E: Send + 'static,
    {
        let place = Arc::clone(&self.place);
        let work = Box::pin(async move {
            // Taken in, so that it is told what becomes of the work.
            let serving = self;
            match work.await {
                Ok(response) => Ok(serving.tape(&rule, response)),
                Err(error) => {
                    serving.void();
                    Err(error)
                }
            }
        });
        Finish { work: Some(work), place }
    }

    /// Keeps what passes of an answer.
    fn tape<B: Body<Data = Bytes> + Send + 'static>(
        mut self,
        rule: &StatusRule,
        response: Response<B>,
    ) -> Response<Kept<B>> {
        let (status, is_served) = (response.status(), is_served(rule, &response));
        let keeps = is_served && !status.is_informational();
        let tape = if keeps {
            let room = Room { replays: self.place.replays.clone(), bytes: 0 };
            let (headers, body) = (response.headers().clone(), BytesMut::new());
            Some(Tape { status, headers, body, trailers: None, room, serving: self })
        } else {
            if is_served {
                self.end(State::Gone);
            } else {
                self.void();
            }
            None
        };
        response.map(|body| Kept { body: Some(Box::pin(body)), tape, finish })
    }

    /// Nothing was charged.
    fn void(mut self) {
        self.end(State::Void);
    }

    fn end(&mut self, state: State) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.place.end(state);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // A panic is our failure, and voids.
        self.end(if std::thread::panicking() { State::Void } else { State::Gone });
    }
}

/// Work that goes on when nobody waits for it any more.
pub(super) struct Finish<T: Send + 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    place: Arc<Place>,
}

impl<T: Send + 'static> Future for Finish<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let done = work.as_mut().poll(context);
        if done.is_ready() {
            self.work = None;
        }
        done
    }
}

impl<T: Send + 'static> Drop for Finish<T> {
    fn drop(&mut self) {
        // Work that panicked has none left to do.
        let Some(work) = self.work.take().filter(|_| !std::thread::panicking()) else { return };
        self.place.make_known();
        go_on(&self.place.replays, async move { drop(work.await) });
    }
}

/// Does something in the background, if there is room for it and time left.
fn go_on(replays: &Replays, work: impl Future<Output = ()> + Send + 'static) {
    let Some(place) = replays.0.finishing.enter() else { return };
    place.go_on(async move { drop(tokio::time::timeout(MAX_FINISHING_TIME, work).await) });
}

/// What the part of an answer takes that has passed.
#[derive(Debug)]
struct Room {
    replays: Replays,
    bytes: usize,
}

impl Room {
    /// Whether there is room for so much more.
    fn grow(&mut self, bytes: usize) -> bool {
        let grown = self.bytes.saturating_add(bytes);
        let has_room = grown <= self.replays.0.rules.max_answer && self.replays.take_room(bytes);
        if has_room {
            self.bytes = grown;
        }
        has_room
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut places = self.replays.places();
        places.bytes = places.bytes.saturating_sub(self.bytes);
    }
}

/// What has passed of an answer.
#[derive(Debug)]
struct Tape {
    status: StatusCode,
    headers: HeaderMap,
    /// Copied, because its pieces belong to larger buffers.
    body: BytesMut,
    trailers: Option<HeaderMap>,
    room: Room,
    serving: Serving,
}

impl Tape {
    /// Another piece; nothing is left if there is no room for it.
    fn hear(mut self, frame: &Frame<Bytes>) -> Option<Self> {
        if let Some(data) = frame.data_ref() {
            if !self.room.grow(data.len()) {
                return None;
            }
            self.body.extend_from_slice(data);
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
        Some(self)
    }

    fn end(self) {
        let Self { status, headers, body, trailers, room, mut serving } = self;
        // From here on it counts as one that is kept, or not at all.
        drop(room);
        // Nobody will look for one without a name that has arrived.
        if !serving.place.is_known.load(Ordering::Acquire) {
            return serving.void();
        }
        // No larger than it is counted: what it grew in, and what its headers came in, has room to spare.
        let own = |headers: HeaderMap| headers.iter().map(|(name, value)| (name.clone(), on_its_own(value))).collect();
        let (body, headers) = (Bytes::copy_from_slice(&body), own(headers));
        serving.end(State::Kept(Arc::new(Stored { status, headers, body, trailers: trailers.map(own) })));
    }
}

/// An answer's body that is kept while it passes. When nobody takes the rest of it, that is read in the background.
pub(super) struct Kept<B> {
    body: Option<Pin<Box<B>>>,
    tape: Option<Tape>,
    finish: fn(Pin<Box<B>>, Tape),
}

impl<B> fmt::Debug for Kept<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("tape", &self.tape).finish_non_exhaustive()
    }
}

impl<B: Body<Data = Bytes>> Kept<B> {
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body: Some(body), tape, .. } = self else { return Poll::Ready(None) };
        let polled = body.as_mut().poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                *tape = tape.take().and_then(|tape| tape.hear(frame));
                if body.is_end_stream()
                    && let Some(tape) = tape.take()
                {
                    tape.end();
                }
            }
            Poll::Ready(None) => {
                if let Some(tape) = tape.take() {
                    tape.end();
                }
            }
            // It broke off, and is not whole.
            Poll::Ready(Some(Err(_))) => *tape = None,
            Poll::Pending => {}
        }
        polled
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), |body| body.size_hint())
    }
}

impl<B> Drop for Kept<B> {
    fn drop(&mut self) {
        if let (Some(body), Some(tape)) = (self.body.take(), self.tape.take()) {
            (self.finish)(body, tape);
        }
    }
}

/// What is done with an answer that its client has left, or has taken without asking whether there is more.
fn finish<B: Body<Data = Bytes> + Send + 'static>(mut body: Pin<Box<B>>, tape: Tape) {
    if body.is_end_stream() {
        return tape.end();
    }
    tape.serving.place.make_known();
    let replays = tape.serving.place.replays.clone();
    go_on(&replays, async move {
        let mut tape = tape;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return };
            let Some(longer) = tape.hear(&frame) else { return };
            tape = longer;
        }
        tape.end();
    });
}
