//! The requests of a channel that are being served, and which pieces of its line are used up.
//!
//! **Owns** the geometry of ceilings: a voucher with ceiling M that pays a price p stands for the segment (M - p, M] of
//! the channel's line, and each piece of the line pays for one request at most. **Promises** that open holds and spent
//! segments are disjoint, and that what it remembers is bounded. **Does not** know what was charged, nor the chain.

use super::channel::{LatestVoucher, Violation};
use crate::protocol::Amount;
use crate::protocol::x402::Order;

/// How many spent segments of one channel are remembered above its floor; adjacent ones count once. Where there would be
/// more, the floor rises over the lowest gap: the vouchers that are still on their way to it come too late.
pub const MAX_SPENT_SEGMENTS: usize = 256;

/// Which hold of a channel; later holds have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HoldNumber(pub(super) u64);

/// A request that is being served on credit of a voucher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenHold {
    /// Which one.
    pub number: HoldNumber,
    /// The most it will be charged.
    pub price: Amount,
    /// The voucher that pays for it.
    pub voucher: LatestVoucher,
    /// How its voucher was judged.
    pub order: Order,
}

impl OpenHold {
    /// The piece of the line it stands for.
    pub(super) fn segment(&self) -> Segment {
        let end = self.voucher.max_claimable;
        Segment { start: end.saturating_sub(self.price), end }
    }
}

/// A piece of a channel's line: above `start`, up to and with `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) start: Amount,
    pub(super) end: Amount,
}

impl Segment {
    /// What of it is above `floor`; it may be empty.
    fn above(self, floor: Amount) -> Self {
        Self { start: self.start.max(floor), ..self }
    }
}

/// What is being served, or was lately and has to be remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Flight {
    /// One request whose voucher came in turn, and nothing to remember.
    Alone(OpenHold),
    /// Several, or what is left of them.
    Several(Several),
}

impl Flight {
    /// Takes up one more; `floor` is for the case that there was one alone.
    pub(super) fn join(&mut self, hold: OpenHold, floor: Amount) {
        if let Self::Several(several) = self {
            several.hold(hold);
            return;
        }
        let alone = std::mem::replace(self, Self::Several(Several::above(floor)));
        if let (Self::Several(several), Self::Alone(first)) = (self, alone) {
            several.hold(first);
            several.hold(hold);
        }
    }

    /// What is being served, the lowest ceiling first.
    pub(super) fn holds(&self) -> &[OpenHold] {
        match self {
            Self::Alone(hold) => std::slice::from_ref(hold),
            Self::Several(several) => &several.holds,
        }
    }

    /// Whether anything of the segment is held or spent, or below the floor.
    pub(super) fn uses(&self, segment: Segment) -> bool {
        match self {
            Self::Alone(hold) => meets(std::slice::from_ref(hold), OpenHold::segment, segment),
            Self::Several(several) => several.uses(segment),
        }
    }

    /// Whether segments overlap or are not where they should be.
    pub(super) fn violation(&self) -> Option<Violation> {
        match self {
            Self::Alone(_) => None,
            Self::Several(several) => several.violation(),
        }
    }
}

/// Several requests in flight, or what is left of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Several {
    /// By rising ceiling.
    holds: Vec<OpenHold>,
    /// Spent segments above the floor, none of them touching it or another: rising.
    spent: Vec<Segment>,
    /// Nothing below it is taken any more. A hold may be older than that.
    floor: Amount,
}

impl Several {
    pub(super) fn above(floor: Amount) -> Self {
        Self { holds: Vec::new(), spent: Vec::new(), floor }
    }

    pub(super) fn floor(&self) -> Amount {
        self.floor
    }

    /// The highest ceiling that is held or spent, or the floor.
    pub(super) fn top(&self) -> Amount {
        let held = self.holds.last().map_or(Amount::ZERO, |hold| hold.voucher.max_claimable);
        let spent = self.spent.last().map_or(Amount::ZERO, |segment| segment.end);
        self.floor.max(held).max(spent)
    }

    /// Whether nothing is left to remember: nothing is served, and no gap is open.
    pub(super) fn is_over(&self) -> bool {
        self.holds.is_empty() && self.spent.is_empty()
    }

    fn uses(&self, segment: Segment) -> bool {
        segment.start < self.floor
            || meets(&self.holds, OpenHold::segment, segment)
            || meets(&self.spent, |spent| *spent, segment)
    }

    pub(super) fn hold(&mut self, hold: OpenHold) {
        let ceiling = hold.voucher.max_claimable;
        let lower = self.holds.iter().rposition(|other| other.voucher.max_claimable <= ceiling);
        self.holds.insert(lower.map_or(0, |lower| lower.saturating_add(1)), hold);
    }

    /// Ends a hold. Its segment is free again until it is spent.
    pub(super) fn take(&mut self, number: HoldNumber) -> Option<OpenHold> {
        let place = self.holds.iter().position(|hold| hold.number == number)?;
        Some(self.holds.remove(place))
    }

    /// Nothing of the segment is ever taken again.
    pub(super) fn spend(&mut self, segment: Segment) {
        let segment = segment.above(self.floor);
        if segment.start >= segment.end {
            return;
        }
        let place = self.spent.partition_point(|spent| spent.end < segment.start);
        let below = self.spent.get_mut(place).filter(|spent| spent.end == segment.start);
        let grown = below.map(|spent| spent.end = segment.end).is_some();
        let above = if grown { place.saturating_add(1) } else { place };
        let next = self.spent.get(above).copied().filter(|spent| spent.start == segment.end);
        match (grown, next) {
            (true, Some(next)) => {
                self.spent.remove(above);
                if let Some(spent) = self.spent.get_mut(place) {
                    spent.end = next.end;
                }
            }
            (true, None) => {}
            (false, Some(next)) => {
                if let Some(spent) = self.spent.get_mut(place) {
                    *spent = Segment { start: segment.start, end: next.end };
                }
            }
            (false, None) => self.spent.insert(place, segment),
        }
        self.sink();
        if self.spent.len() > MAX_SPENT_SEGMENTS
            && let Some(lowest) = self.spent.first()
        {
            self.raise(lowest.start);
        }
    }

    /// The floor rises to `to`, if it is lower.
    pub(super) fn raise(&mut self, to: Amount) {
        self.floor = self.floor.max(to);
        let floor = self.floor;
        self.spent.retain(|spent| spent.end > floor);
        if let Some(lowest) = self.spent.first_mut() {
            *lowest = lowest.above(floor);
        }
        self.sink();
    }

    /// Nothing held before whose segment begins below `base` is covered any more.
    pub(super) fn drop_below(&mut self, base: Amount) {
        self.holds.retain(|hold| hold.segment().start >= base);
        self.raise(base);
    }

    /// What is spent right above the floor is part of it.
    fn sink(&mut self) {
        if let Some(lowest) = self.spent.first().copied().filter(|lowest| lowest.start <= self.floor) {
            self.floor = lowest.end;
            self.spent.remove(0);
        }
    }

    fn violation(&self) -> Option<Violation> {
        let held = self.holds.iter().map(|hold| hold.segment().above(self.floor)).filter(|held| held.start < held.end);
        let apart = self.holds.is_sorted_by(|one, next| one.segment().end <= next.segment().start)
            && self.spent.is_sorted_by(|one, next| one.end < next.start)
            && self.spent.iter().all(|spent| self.floor < spent.start && spent.start < spent.end)
            && !held.into_iter().any(|held| meets(&self.spent, |spent| *spent, held));
        (!apart).then_some(Violation::SegmentsOverlap)
    }
}

/// Whether one of `sorted` (by rising end, and disjoint) overlaps a segment.
fn meets<T>(sorted: &[T], place: impl Fn(&T) -> Segment, segment: Segment) -> bool {
    let next = sorted.partition_point(|other| place(other).end <= segment.start);
    sorted.get(next).is_some_and(|other| place(other).start < segment.end)
}
