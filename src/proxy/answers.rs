//! Which answers of a connection wait for its client.
//!
//! **Owns** the count for a connection of HTTP/2, on which a client keeps an answer for ever by opening no window for it.
//! **Promises** that an answer counts only while there is something of it that its client could take: not while it is waited
//! for, or for more of it. **Does not** end anything, nor see what the library beneath has taken and cannot send.

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
    #[derive(Debug)]
    pub(super) struct Given<B> {
        #[pin]
        body: B,
        // On HTTP/2.
        work: Option<Work>,
    }
}

impl<B> Given<B> {
    /// One whose head leaves now.
    pub(super) fn new(body: B, mut work: Option<Work>) -> Self {
        if let Some(work) = &mut work {
            work.give();
        }
        Self { body, work }
    }
}

impl<B: Body> Body for Given<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        if let Some(work) = &mut *this.work {
            work.go_on();
        }
        let frame = ready!(this.body.poll_frame(context));
        if let Some(work) = this.work {
            work.give();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
