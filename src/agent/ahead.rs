//! Payments signed ahead of the answers to those before them.
//!
//! **Owns** a channel's line: which ceilings are on their way, which came back unused. **Promises** that each ceiling is
//! used by one request at a time, that what is signed is in the book before it leaves, and that whatever needs the
//! books to hold still (a deposit, a corrective, a refund) waits until nothing is on its way. **Does not** deposit and does
//! not follow correctives: where anything is out of step, the request is paid in turn.

use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedRwLockWriteGuard, RwLock, Semaphore};

use super::answer::Answer;
use super::book::{Book, Record};
use super::budget::Dollars;
use super::error::AgentError;
use super::http::drain;
use super::judge::{self, Asked};
use super::late::{Late, comes_late};
use super::on_disk;
use super::pay::{Agent, PayRequest, Quoted, Target, answer, header, payment_made, today};
use super::payload::{self, Kind};
use super::reader::ChainReader;
use super::spending::Reservation;
use crate::protocol::x402::{PAYMENT_REQUIRED, PAYMENT_RESPONSE};
use crate::protocol::{Amount, ChannelId};

/// The most payments of one channel that are signed ahead, whatever the caller and the server agree on.
pub const MAX_AHEAD: u32 = 1_024;
/// How many unused pieces of a line are remembered to be used again. Those beyond stay unused.
const MAX_FREE: usize = 64;
/// How many ceilings are taken to be on their way: more than there can be, unless callers gave up on theirs.
const MAX_FLYING: usize = 2_048;

/// Who pays from a channel: several ahead, or one alone.
#[derive(Debug)]
pub(super) struct Lane {
    channel: Arc<RwLock<()>>,
    line: Arc<Mutex<Line>>,
    places: Arc<Semaphore>,
    width: u32,
}

/// A channel nobody else of this process pays from, until this is dropped.
pub(super) type Alone = OwnedRwLockWriteGuard<()>;

/// The pieces of a channel's line, as far as payments signed ahead are concerned.
#[derive(Debug, Default)]
struct Line {
    /// The channel's record. Nobody else changes it as long as this is in use.
    record: Option<Record>,
    /// Pieces above a start, up to an end, that were signed for and not used.
    free: Vec<(Amount, Amount)>,
    /// The ceilings that are on their way.
    flying: Vec<Amount>,
    /// The highest ceiling that was used, as far as is known.
    used: Amount,
}

/// A piece of the line that pays for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    start: Amount,
    end: Amount,
    /// It was signed for before, and the budget has counted it.
    again: bool,
}

impl Lane {
    /// A lane for so many at once.
    pub(super) fn new(width: u32) -> Self {
        let places = usize::try_from(width.max(1)).unwrap_or(1);
        let places = Arc::new(Semaphore::new(places));
        Self { channel: Arc::default(), line: Arc::default(), places, width }
    }

    /// Whether somebody pays from the channel, or something is being written down.
    pub(super) fn is_used(&self) -> bool {
        Arc::strong_count(&self.channel) > 1 || Arc::strong_count(&self.line) > 1
    }

    /// Waits until nothing is on its way and nothing is being written down.
    pub(super) async fn alone(&self) -> Alone {
        let alone = Arc::clone(&self.channel).write_owned().await;
        // Whoever pays alone may go on from anywhere; the gaps below are of no use then.
        *self.line.lock().await = Line::default();
        alone
    }
}

impl Line {
    /// The next piece for a price: one that came back, or one above all others.
    fn take(&mut self, record: &Record, price: Amount) -> Option<Piece> {
        let wide = |(start, end): &(Amount, Amount)| end.saturating_sub(*start) >= price;
        if let Some(place) = self.free.iter().position(wide) {
            let (start, end) = self.free.remove(place);
            let cut = start.checked_add(price)?;
            if cut < end {
                self.free.insert(place, (cut, end));
            }
            return Some(Piece { start, end: cut, again: true });
        }
        let start = record.top.max(record.charged);
        Some(Piece { start, end: start.checked_add(price)?, again: false })
    }

    /// A piece leaves.
    fn send(&mut self, piece: Piece) {
        // Those that were given up are taken for used in the end.
        if self.flying.len() >= MAX_FLYING {
            self.used = self.flying.drain(..).fold(self.used, Amount::max);
        }
        self.flying.push(piece.end);
    }

    /// An answer came: the piece was used, or it was not.
    fn landed(&mut self, piece: Piece, was_used: bool) {
        if let Some(place) = self.flying.iter().position(|end| *end == piece.end) {
            self.flying.swap_remove(place);
        }
        if was_used {
            self.used = self.used.max(piece.end);
        }
        let spent = self.flying.iter().copied().fold(self.used, Amount::max);
        if let Some(record) = &mut self.record {
            record.spent = spent;
        }
    }

    /// The piece is good for another request.
    fn give_back(&mut self, piece: Piece) {
        if self.free.len() < MAX_FREE {
            let place = self.free.partition_point(|(start, _)| *start < piece.start);
            self.free.insert(place, (piece.start, piece.end));
        }
    }
}

/// A payment that was sent.
struct Sent {
    piece: Piece,
    reservation: Reservation,
    /// What of the channel the reservation counts.
    fresh: Amount,
    day: u64,
}

impl<R: ChainReader> Agent<R> {
    /// Who pays from a channel.
    pub(super) fn lane(&self, channel: ChannelId, width: u32) -> Arc<Lane> {
        self.forget_idle_lanes();
        Arc::clone(&self.lanes().entry(channel).or_insert_with(|| Arc::new(Lane::new(width))))
    }

    /// How many payments for this offer may be on their way at once.
    pub(super) fn width(&self, quoted: &Quoted) -> u32 {
        self.config().ahead.min(quoted.choice.max_in_flight).clamp(1, MAX_AHEAD)
    }

    /// Pays ahead of the answers to other payments on the channel. `None`: the request was not served, and has to be paid
    /// for in turn; `attempts` says whether it was sent.
    ///
    /// # Cancellation
    /// As for [`Agent::pay`]. A ceiling that was signed for is not used again.
    pub(super) async fn pay_ahead(
        &self,
        request: &PayRequest,
        target: &Target,
        quoted: &Quoted,
        attempts: &mut u32,
    ) -> Result<Option<Answer>, AgentError> {
        let width = self.width(quoted);
        let (_, channel) = self.channel_of(&quoted.choice);
        let lane = self.lane(channel, width);
        // A server that allows fewer than it did is paid in turn.
        if width <= 1 || lane.width > width {
            return Ok(None);
        }
        let _place = lane.places.acquire().await.map_err(|_| AgentError::System("place in line"))?;
        let _not_alone = Arc::clone(&lane.channel).read_owned().await;
        let Some((sent, payment)) = self.sign_ahead(&lane, target, quoted, channel).await? else { return Ok(None) };
        *attempts = attempts.saturating_add(1);
        let response = match self.send_named(request, target, payment, quoted).await {
            Ok(response) => response,
            Err(error) => {
                drop(sent);
                self.save_day().await?;
                return Err(error);
            }
        };
        self.settle_ahead(&lane, quoted, sent, response, *attempts).await
    }

    /// Signs for the next piece of the line and writes it down.
    async fn sign_ahead(
        &self,
        lane: &Lane,
        target: &Target,
        quoted: &Quoted,
        channel: ChannelId,
    ) -> Result<Option<(Sent, HeaderValue)>, AgentError> {
        let choice = &quoted.choice;
        let price = choice.offer.amount;
        let mut line = Arc::clone(&lane.line).lock_owned().await;
        let known = match line.record.take() {
            Some(record) => Some(record),
            None => {
                let known = self.load(channel).await?;
                line.used = known.as_ref().map_or(Amount::ZERO, |record| record.spent);
                known
            }
        };
        // A channel that is not open yet, or is being topped up, is paid from in turn.
        let Some(mut record) = known.filter(|record| record.pending_deposit.is_none()) else { return Ok(None) };
        let Some(piece) = line.take(&record, price) else { return Ok(None) };
        if piece.end > record.balance {
            line.record = Some(record);
            return Ok(None);
        }
        let day = today()?;
        let in_dollars = |amount| Dollars::of(amount, choice.token.decimals);
        // Receipts may say that those before cost less than they could, and are believed as far as that is spent. Their
        // ceilings are signed all the same, so there must be room for all that could be claimed with this one.
        let counted = record.counted.max(record.charged);
        let fresh = piece.end.saturating_sub(counted);
        let reserved = self.reserve(&target.host, in_dollars(price), in_dollars(fresh), day);
        let voucher = self.voucher(&record, choice, piece.end);
        let payment = payload::header(quoted.echo(), &record.config, &voucher, Kind::Ahead);
        let (mut reservation, payment) = match (reserved, payment) {
            (Ok(reservation), Ok(payment)) => (reservation, payment),
            (Err(error), _) | (_, Err(error)) => {
                if piece.again {
                    line.give_back(piece);
                }
                line.record = Some(record);
                return Err(error);
            }
        };
        record.signed_max = record.signed_max.max(piece.end);
        record.top = record.top.max(piece.end);
        record.spent = record.spent.max(piece.end);
        record.counted = counted.max(piece.end);
        target.host.clone_into(&mut record.host);
        line.record = Some(record);
        line.send(piece);
        // From here on it counts as sent: what is written down as counted must be, whoever stops waiting for the disk.
        reservation.sent(day);
        drop(self.save_line(line).await?);
        Ok(Some((Sent { piece, reservation, fresh, day }, payment)))
    }

    /// Books what came back.
    async fn settle_ahead(
        &self,
        lane: &Lane,
        quoted: &Quoted,
        sent: Sent,
        response: Response<Incoming>,
        attempts: u32,
    ) -> Result<Option<Answer>, AgentError> {
        let choice = &quoted.choice;
        let price = choice.offer.amount;
        let Sent { piece, reservation, fresh, day } = sent;
        let verdict = judge::judge_receipt(header(&response, PAYMENT_RESPONSE), Asked { amount: price, deposit: None });
        let status = response.status();
        let mut line = Arc::clone(&lane.line).lock_owned().await;
        if let Some(charged) = verdict.charged {
            line.landed(piece, true);
            let record = line.record.as_mut().ok_or(AgentError::System("record of the channel"))?;
            record.charged = record.charged.checked_add(charged).ok_or(AgentError::Overflow)?;
            record.signed_max = record.signed_max.max(record.charged);
            // One that came back was counted in full when it was signed for first.
            let spent = if piece.again { Amount::ZERO } else { charged };
            record.counted = record.counted.saturating_sub(fresh.saturating_sub(spent)).max(record.charged);
            reservation.spend(Dollars::of(spent, choice.token.decimals), day);
            let payment = payment_made(record, charged, None, verdict);
            self.save_day().await?;
            drop(self.save_line(line).await?);
            return Ok(Some(answer(response, Some(payment), None, attempts)));
        }
        // It has our signature, so it stays counted.
        drop(reservation);
        if let Some((code, message)) = verdict.refusal.clone().filter(|_| !status.is_success()) {
            line.landed(piece, false);
            drop(self.save_line(line).await?);
            self.save_day().await?;
            drain(response.into_body()).await;
            return Err(AgentError::Refused { code, message, retry_after_s: None, deposit_until: None });
        }
        let failed = status.is_client_error() || status.is_server_error();
        let quote = judge::read_quote(header(&response, PAYMENT_REQUIRED));
        let record = line.record.as_ref();
        let payment = record.filter(|_| !failed).map(|record| payment_made(record, Amount::ZERO, None, verdict));
        line.landed(piece, !failed);
        // What the upstream itself answered was not paid for, and the piece is good again.
        if failed && quote.is_err() && status != StatusCode::PAYMENT_REQUIRED {
            line.give_back(piece);
        }
        drop(self.save_line(line).await?);
        self.save_day().await?;
        match quote {
            Ok(_) if failed => {
                drain(response.into_body()).await;
                Ok(None)
            }
            Err(fault) if status == StatusCode::PAYMENT_REQUIRED => Err(fault.into()),
            _ => {
                let late = payment.clone().filter(|_| comes_late(response.headers()));
                let late = late.map(|payment| Box::new(Late { asked: price, payment, books: None }));
                Ok(Some(answer(response, payment, late, attempts)))
            }
        }
    }

    /// Makes the line's record durable. The line stays locked until that is done, whether or not the caller waits.
    async fn save_line(&self, line: OwnedMutexGuard<Line>) -> Result<OwnedMutexGuard<Line>, AgentError> {
        let save = |book: &Book| line.record.as_ref().map_or(Ok(()), |record| book.save(record)).map(|()| line);
        on_disk(self.book(), save).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Address, ChannelConfig, Hash};

    fn record(charged: u128, top: u128) -> Record {
        let config = ChannelConfig {
            payer: Address([1; 20]),
            payer_authorizer: Address([1; 20]),
            receiver: Address([2; 20]),
            receiver_authorizer: Address([3; 20]),
            token: Address([4; 20]),
            withdraw_delay: 900,
            salt: Hash::ZERO,
        };
        Record {
            channel: ChannelId([1; 32]),
            network: "eip155:84532".to_owned(),
            config,
            decimals: 6,
            host: String::new(),
            charged: Amount::new(charged),
            signed_max: Amount::new(top),
            counted: Amount::ZERO,
            top: Amount::new(top),
            spent: Amount::ZERO,
            balance: Amount::new(1_000),
            pending_deposit: None,
        }
    }

    fn taken(line: &mut Line, record: &Record, price: u128) -> (u128, u128, bool) {
        let Piece { start, end, again } = line.take(record, Amount::new(price)).unwrap();
        (start.units(), end.units(), again)
    }

    #[test]
    fn ceilings_rise_and_what_came_back_is_used_first() {
        let mut line = Line::default();
        let record = record(5, 30);
        assert_eq!(taken(&mut line, &record, 10), (30, 40, false));
        for (start, end) in [(20, 30), (0, 10)] {
            line.give_back(Piece { start: Amount::new(start), end: Amount::new(end), again: false });
        }
        assert_eq!(taken(&mut line, &record, 11), (30, 41, false), "none is wide enough");
        assert_eq!(taken(&mut line, &record, 4), (0, 4, true));
        assert_eq!(taken(&mut line, &record, 7), (20, 27, true));
        assert_eq!(taken(&mut line, &record, 6), (4, 10, true));
        assert_eq!(taken(&mut line, &record, 3), (27, 30, true));
        assert_eq!(taken(&mut line, &record, 1), (30, 31, false));
    }

    #[test]
    fn spent_is_what_was_used_or_may_be() {
        let mut line = Line { record: Some(record(0, 0)), used: Amount::new(5), ..Line::default() };
        let piece = |end| Piece { start: Amount::ZERO, end: Amount::new(end), again: false };
        for end in [10, 20, 30] {
            line.send(piece(end));
        }
        let spent = |line: &mut Line, end, used| {
            line.landed(piece(end), used);
            line.record.as_ref().unwrap().spent.units()
        };
        assert_eq!(spent(&mut line, 10, true), 30);
        assert_eq!(spent(&mut line, 30, false), 20);
        assert_eq!(spent(&mut line, 20, false), 10);
        for end in 0..5_000 {
            line.send(piece(end));
        }
        assert!(line.flying.len() <= MAX_FLYING, "callers that give up");
        assert_eq!(spent(&mut line, 0, false), 4_999);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut line = Line::default();
        for start in 0..200 {
            line.give_back(Piece { start: Amount::new(start), end: Amount::new(start + 1), again: true });
        }
        assert_eq!(line.free.len(), MAX_FREE);
        assert!(line.take(&record(0, u128::MAX), Amount::new(2)).is_none(), "the line has an end");
    }
}
