//! Answers on their way to the client, and which of a connection wait for it.
//!
//! **Owns** the count for a connection of HTTP/2, on which a client keeps an answer for ever by opening no window for it.
//! **Promises** that an answer counts only while there is something of it that its client could take: not while it is waited
//! for, or for more of it; and that what an answer had given before it broke leaves before the connection does, as far as
//! its client takes it: it is charged. **Does not** end anything, nor see what the library beneath has taken and cannot
//! send.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

/// The answers of a connection.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// How many are being worked on, here or behind us.
    at_work: AtomicUsize,
    /// How many wait for their client since an even period, and since an odd one.
    even: AtomicUsize,
    odd: AtomicUsize,
    period: AtomicUsize,
    /// Counts whatever becomes of any of them.
    moves: AtomicUsize,
    closed: AtomicBool,
}

impl Answers {
    /// Ends a period, unless an answer has waited for its client since before it began. Whether one has.
    pub(super) fn turn(&self) -> bool {
        let next = self.period.load(Ordering::Relaxed).wrapping_add(1);
        let stuck = self.waiting_since(next).load(Ordering::Relaxed) > 0;
        if !stuck {
            self.period.store(next, Ordering::Relaxed);
        }
        stuck
    }

    /// How often any of them has moved; nothing while one is being worked on, which will.
    pub(super) fn at_rest(&self) -> Option<usize> {
        (self.at_work.load(Ordering::Relaxed) == 0).then(|| self.moves.load(Ordering::Relaxed))
    }

    /// What is asked from now on does not count: the client was told long ago to ask elsewhere.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Of two periods in a row only the later one is like this one or the next but one.
    fn waiting_since(&self, period: usize) -> &AtomicUsize {
        if period.is_multiple_of(2) { &self.even } else { &self.odd }
    }

    fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }
}

/// One answer, from its request to the last that is known of it.
#[derive(Debug)]
pub(super) struct Work {
    answers: Arc<Answers>,
    /// Since which period its client could take something of it.
    with_client: Option<usize>,
}

impl Work {
    /// A request came. Nothing, if it does not count.
    pub(super) fn begin(answers: &Arc<Answers>) -> Option<Self> {
        if answers.closed.load(Ordering::Relaxed) {
            return None;
        }
        answers.at_work.fetch_add(1, Ordering::Relaxed);
        answers.moved();
        Some(Self { answers: Arc::clone(answers), with_client: None })
    }

    /// Something was given to the client.
    fn give(&mut self) {
        if self.with_client.is_none() {
            let period = self.answers.period.load(Ordering::Relaxed);
            self.with_client = Some(period);
            self.answers.waiting_since(period).fetch_add(1, Ordering::Relaxed);
            self.answers.at_work.fetch_sub(1, Ordering::Relaxed);
        }
        self.answers.moved();
    }

    /// The client has taken that, and wants more.
    fn go_on(&mut self) {
        if let Some(period) = self.with_client.take() {
            self.answers.at_work.fetch_add(1, Ordering::Relaxed);
            self.answers.waiting_since(period).fetch_sub(1, Ordering::Relaxed);
            self.answers.moved();
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.go_on();
        self.answers.at_work.fetch_sub(1, Ordering::Relaxed);
        self.answers.moved();
    }
}

pin_project! {
    /// The body of an answer, as its client takes it.
    pub(super) struct Given<B: Body> {
        #[pin]
        body: B,
        // On HTTP/2.
        work: Option<Work>,
        // Whether something was given since the library beneath had to wait, and so had a reason to write.
        unwritten: bool,
        // How it broke, while what came before is being written.
        broken: Option<B::Error>,
    }
}

impl<B: Body> Given<B> {
    /// One whose head leaves now.
    pub(super) fn new(body: B, mut work: Option<Work>) -> Self {
        if let Some(work) = &mut work {
            work.give();
        }
        Self { body, work, unwritten: true, broken: None }
    }
}

impl<B: Body> Body for Given<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        if let Some(broken) = this.broken.take() {
            return Poll::Ready(Some(Err(broken)));
        }
        if let Some(work) = &mut *this.work {
            work.go_on();
        }
        let polled = this.body.poll_frame(context);
        let unwritten = std::mem::replace(this.unwritten, polled.is_ready());
        let frame = ready!(polled);
        if let Some(work) = this.work {
            work.give();
        }
        // A connection that breaks drops what it was given and has not written.
        if unwritten && let Some(Err(broken)) = frame {
            *this.broken = Some(broken);
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::Response;
    use http_body_util::StreamBody;
    use hyper::server::conn::{http1, http2};
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use std::convert::Infallible;
    use std::io;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A piece, and at once a failure.
    fn breaking() -> impl Body<Data = Bytes, Error = io::Error> + Send + 'static {
        let frames = [Ok(Frame::data(Bytes::from_static(b"piece"))), Err(io::Error::other("broken"))];
        StreamBody::new(futures_util::stream::iter(frames))
    }

    #[tokio::test]
    async fn what_was_given_before_an_answer_broke_reaches_its_client() {
        let (client, server) = tokio::io::duplex(1024);
        let service = service_fn(async |_| Ok::<_, Infallible>(Response::new(Given::new(breaking(), None))));
        let serving = tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(server), service));
        let (mut client, mut answer) = (client, Vec::new());
        client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        client.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("piece"), "{answer}");
        assert!(!answer.ends_with("0\r\n\r\n"), "it is not whole: {answer}");
        assert!(serving.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn so_does_it_on_http_2() {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let service = service_fn(async |_| Ok::<_, Infallible>(Response::new(Given::new(breaking(), None))));
        let server = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(server), service);
        drop(tokio::spawn(server));
        let (mut client, connection) = h2::client::handshake(client).await.unwrap();
        drop(tokio::spawn(connection));
        let (answer, _) = client.send_request(http::Request::get("http://h/").body(()).unwrap(), true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "piece");
        assert!(body.data().await.unwrap().is_err(), "it is not whole");
    }

    #[test]
    fn an_answer_that_waits_for_its_client_through_a_period_is_stuck_and_others_are_not() {
        let answers = Arc::default();
        let [mut stuck, mut moves] = [(); 2].map(|()| Work::begin(&answers).unwrap());
        assert_eq!(answers.at_rest(), None, "they are worked on");
        moves.give();
        for _ in 0..5 {
            moves.go_on();
            assert!(!answers.turn(), "one that is worked on is not the client's");
            moves.give();
        }
        stuck.give();
        assert!(!answers.turn(), "not for a whole period yet");
        moves.go_on();
        moves.give();
        assert!(answers.turn() && answers.turn());
        drop(stuck);
        assert!(!answers.turn());
        let before = answers.at_rest();
        assert!(before.is_some() && before == answers.at_rest());
        drop(moves);
        assert_ne!(answers.at_rest(), before);
        assert!((0..5).all(|_| !answers.turn()), "nothing is left");
        answers.close();
        assert!(Work::begin(&answers).is_none());
    }
}
