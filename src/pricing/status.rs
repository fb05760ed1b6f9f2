//! Which part of a price is charged, by the answer's status.

use std::fmt;

use crate::protocol::Amount;

/// Hundredths of a percent in a whole.
const WHOLE: u16 = 10_000;

/// The most statuses that can have a share of their own: as many as there are.
pub const MAX_STATUSES: usize = 500;

/// A part of a price, in hundredths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u16);

impl Share {
    /// Nothing of it.
    pub const NONE: Self = Self(0);
    /// All of it.
    pub const ALL: Self = Self(WHOLE);

    /// So many hundredths of a percent; `None` above 100%.
    pub fn from_hundredths(hundredths: u16) -> Option<Self> {
        (hundredths <= WHOLE).then_some(Self(hundredths))
    }

    /// This part of an amount, rounded up: never more than the amount.
    pub fn of(self, amount: Amount) -> Amount {
        let (units, whole) = (amount.units(), u128::from(WHOLE));
        let share = u128::from(self.0);
        // The quotient is scaled before the rest, so that no product is larger than the amount.
        let parts = units.checked_div(whole).and_then(|each| each.checked_mul(share));
        let rest = units.checked_rem(whole).and_then(|rest| rest.checked_mul(share)).map(|rest| rest.div_ceil(whole));
        parts.zip(rest).and_then(|(parts, rest)| parts.checked_add(rest)).map_or(amount, Amount::new)
    }
}

/// As operators write it, `10%`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / 100, self.0 % 100);
        match (fraction, fraction % 10) {
            (0, _) => write!(f, "{whole}%"),
            (_, 0) => write!(f, "{whole}.{}%", fraction / 10),
            _ => write!(f, "{whole}.{fraction:02}%"),
        }
    }
}

/// Statuses that have a share together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Statuses {
    /// All of one hundred, by its first digit: 2 to 5. Those from 100 to 199 count as 2: an upgrade is a success.
    Class(u8),
    /// One.
    One(u16),
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class(digit) => write!(f, "{digit}xx"),
            Self::One(status) => write!(f, "{status}"),
        }
    }
}

/// Why a status costs nothing, whatever an operator says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NeverCharged {
    /// The upstream failed.
    #[error("a server that failed is not paid")]
    Failed,
    /// The upstream wants credentials or a payment first.
    #[error("an answer that only asks for credentials or a payment is not paid")]
    Asks,
    /// No answer has it.
    #[error("no answer has this status")]
    NoStatus,
}

/// Which part of a price is charged, by the answer's status: what is said of one status goes before what is said of its
/// class. Unless said, answers below 400 are charged in full and others not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusRule {
    success: Share,
    redirect: Share,
    client_error: Share,
    /// In order of the statuses. Empty for nearly every route.
    one_by_one: Vec<(u16, Share)>,
}

impl Default for StatusRule {
    fn default() -> Self {
        Self { success: Share::ALL, redirect: Share::ALL, client_error: Share::NONE, one_by_one: Vec::new() }
    }
}

impl StatusRule {
    /// The same with another share for some statuses.
    ///
    /// # Errors
    /// A share above nothing for statuses that are never charged.
    pub fn with(mut self, statuses: Statuses, share: Share) -> Result<Self, NeverCharged> {
        let class = match statuses {
            Statuses::Class(digit) => digit,
            Statuses::One(status) => class_of(status),
        };
        if let Statuses::One(status) = statuses
            && share > Share::NONE
            && asks(status)
        {
            return Err(NeverCharged::Asks);
        }
        let of_class = match class {
            2 => &mut self.success,
            3 => &mut self.redirect,
            4 => &mut self.client_error,
            5 if share == Share::NONE => return Ok(self),
            5 => return Err(NeverCharged::Failed),
            _ => return Err(NeverCharged::NoStatus),
        };
        match statuses {
            Statuses::Class(_) => *of_class = share,
            Statuses::One(status) => match self.one_by_one.binary_search_by_key(&status, |(known, _)| *known) {
                Ok(index) => self.one_by_one.get_mut(index).into_iter().for_each(|known| known.1 = share),
                Err(index) => self.one_by_one.insert(index, (status, share)),
            },
        }
        Ok(self)
    }

    /// Which part of its price an answer of this status is charged.
    pub fn share(&self, status: u16) -> Share {
        if asks(status) {
            return Share::NONE;
        }
        if !self.one_by_one.is_empty()
            && let Ok(index) = self.one_by_one.binary_search_by_key(&status, |(known, _)| *known)
        {
            return self.one_by_one.get(index).map_or(Share::NONE, |(_, share)| *share);
        }
        match class_of(status) {
            2 => self.success,
            3 => self.redirect,
            4 => self.client_error,
            _ => Share::NONE,
        }
    }

    /// What an answer of this status is charged, of what it costs.
    pub fn charge(&self, status: u16, cost: Amount) -> Amount {
        match self.share(status) {
            Share::ALL => cost,
            share => share.of(cost),
        }
    }
}

/// As operators write it, from the classes to single statuses.
impl fmt::Display for StatusRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { success, redirect, client_error, one_by_one } = self;
        write!(f, "2xx {success}, 3xx {redirect}, 4xx {client_error}")?;
        one_by_one.iter().try_for_each(|(status, share)| write!(f, ", {status} {share}"))
    }
}

/// The first digit of a status, 0 where no HTTP status has it. An interim or switching answer counts as a success.
fn class_of(status: u16) -> u8 {
    match status {
        100..=299 => 2,
        300..=399 => 3,
        400..=499 => 4,
        500..=599 => 5,
        _ => 0,
    }
}

/// Whether it only asks for something, and answers nothing yet.
fn asks(status: u16) -> bool {
    matches!(status, 401 | 402 | 407)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(hundredths: u16) -> Share {
        Share::from_hundredths(hundredths).unwrap()
    }

    #[test]
    fn a_share_is_rounded_up_and_never_above_its_whole() {
        let cases = [
            (0, u128::MAX, 0),
            (10_000, u128::MAX, u128::MAX),
            (1, 1, 1),
            (1, 10_000, 1),
            (1, 10_001, 2),
            (5_000, 3, 2),
            (9_999, 1, 1),
            (3_333, 0, 0),
            (5_000, u128::MAX, u128::MAX / 2 + 1),
        ];
        for (hundredths, whole, expected) in cases {
            assert_eq!(share(hundredths).of(Amount::new(whole)).units(), expected, "{hundredths} of {whole}");
        }
        assert_eq!(Share::from_hundredths(10_001), None);
    }

    #[test]
    fn a_share_is_written_as_a_percentage() {
        for (hundredths, text) in [(0, "0%"), (1, "0.01%"), (10, "0.1%"), (1_000, "10%"), (3_333, "33.33%")] {
            assert_eq!(share(hundredths).to_string(), text);
        }
    }

    #[test]
    fn unless_said_answers_below_400_are_charged() {
        let rule = StatusRule::default();
        for status in [100, 101, 200, 206, 299, 300, 304, 399] {
            assert_eq!(rule.share(status), Share::ALL, "{status}");
        }
        for status in [0, 99, 400, 401, 402, 404, 407, 499, 500, 503, 599, 600, 999] {
            assert_eq!(rule.share(status), Share::NONE, "{status}");
        }
    }

    #[test]
    fn one_status_goes_before_its_class() {
        let rule = StatusRule::default().with(Statuses::One(404), share(1_000)).unwrap();
        let rule = rule.with(Statuses::Class(4), share(5_000)).unwrap().with(Statuses::Class(3), Share::NONE).unwrap();
        let rule = rule.with(Statuses::One(304), Share::ALL).unwrap().with(Statuses::One(404), share(2_000)).unwrap();
        for (status, expected) in [(404, 2_000), (400, 5_000), (302, 0), (304, 10_000), (200, 10_000), (101, 10_000)] {
            assert_eq!(rule.share(status), share(expected), "{status}");
        }
        assert_eq!(rule.to_string(), "2xx 100%, 3xx 0%, 4xx 50%, 304 100%, 404 20%");
        assert_eq!(rule.charge(404, Amount::new(6)), Amount::new(2));
    }

    #[test]
    fn who_fails_or_only_asks_is_never_paid() {
        let rule = StatusRule::default().with(Statuses::Class(4), Share::ALL).unwrap();
        for status in [401, 402, 407] {
            assert_eq!(rule.share(status), Share::NONE);
            assert_eq!(rule.clone().with(Statuses::One(status), share(1)), Err(NeverCharged::Asks));
            assert!(rule.clone().with(Statuses::One(status), Share::NONE).is_ok());
        }
        for statuses in [Statuses::Class(5), Statuses::One(500), Statuses::One(503)] {
            assert_eq!(rule.clone().with(statuses, share(1)), Err(NeverCharged::Failed));
            assert!(rule.clone().with(statuses, Share::NONE).is_ok());
        }
        for statuses in
            [Statuses::Class(0), Statuses::Class(1), Statuses::Class(6), Statuses::One(99), Statuses::One(600)]
        {
            assert_eq!(rule.clone().with(statuses, share(1)), Err(NeverCharged::NoStatus));
        }
    }
}
