//! Moments, as they are asked for and as they are written: UTC, RFC 3339.

use std::str::FromStr;
use std::time::Duration;

use crate::config::parse_duration;

const SECONDS_A_DAY: u64 = 86_400;

/// The last second of the year 9999: what is later has no RFC 3339 form.
const LAST_SECOND: u64 = 253_402_300_799;

/// Whole numbers below this (September 2001) are more likely dates without hyphens, or numbers of days, than moments
/// at which anything was sold.
const LEAST_UNIX_TIME: u64 = 1_000_000_000;

/// A moment of the command line: Unix seconds, an RFC 3339 date or time, or how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Unix seconds.
    At(u64),
    /// So long before now.
    Ago(Duration),
}

impl Moment {
    /// As Unix seconds, where it is `now`.
    pub fn unix(self, now: u64) -> u64 {
        match self {
            Self::At(at) => at,
            Self::Ago(duration) => now.saturating_sub(duration.as_secs()),
        }
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
            return unix_seconds(text);
        }
        if let Ok(ago) = parse_duration(text) {
            return Ok(Self::Ago(ago));
        }
        match rfc3339(text) {
            Some(at) => Ok(Self::At(at)),
            None if text.contains('T') && rfc3339(&format!("{text}Z")).is_some() => {
                Err(format!("a time needs its offset; write {text}Z for UTC"))
            }
            None => Err(FORMS.to_owned()),
        }
    }
}

const FORMS: &str =
    "expected a date (2026-11-22), a time (2026-11-22T10:00:00Z), how long ago (24h, 7d), or Unix seconds";

fn unix_seconds(text: &str) -> Result<Moment, String> {
    let at: u64 = text.parse().map_err(|_| FORMS.to_owned())?;
    if at == 0 || (LEAST_UNIX_TIME..=LAST_SECOND).contains(&at) {
        return Ok(Moment::At(at));
    }
    Err(format!("as Unix seconds this is no time at which anything was sold; {FORMS}"))
}

/// Reads a date, which stands for its first second in UTC, or a time with its offset. Fractions of a second are cut off.
fn rfc3339(text: &str) -> Option<u64> {
    let (date, time) = match text.split_once(['T', 't']) {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let midnight = days(date)?.checked_mul(SECONDS_A_DAY)?;
    let Some(time) = time else { return Some(midnight) };
    let (clock, offset) = split_offset(time)?;
    let at = midnight.checked_add(seconds(clock)?)?;
    match offset {
        Offset::Behind(by) => at.checked_add(by),
        Offset::Ahead(by) => at.checked_sub(by),
    }
    .filter(|at| *at <= LAST_SECOND)
}

/// How far local time is from UTC, seconds.
enum Offset {
    Ahead(u64),
    Behind(u64),
}

fn split_offset(time: &str) -> Option<(&str, Offset)> {
    if let Some(clock) = time.strip_suffix(['Z', 'z']) {
        return Some((clock, Offset::Ahead(0)));
    }
    let at = time.rfind(['+', '-'])?;
    let (clock, offset) = time.split_at_checked(at)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let by = number(hours, 2, 23)?.checked_mul(3_600)?.checked_add(number(minutes, 2, 59)?.checked_mul(60)?)?;
    Some((clock, if offset.starts_with('+') { Offset::Ahead(by) } else { Offset::Behind(by) }))
}

/// `10:00:00`, perhaps with a fraction.
fn seconds(clock: &str) -> Option<u64> {
    let whole = match clock.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit()) => whole,
        Some(_) => return None,
        None => clock,
    };
    let mut parts = whole.split(':');
    let hours = number(parts.next()?, 2, 23)?;
    let minutes = number(parts.next()?, 2, 59)?;
    // A leap second is the first of the next minute, as in Unix time.
    let seconds = number(parts.next()?, 2, 60)?;
    if parts.next().is_some() {
        return None;
    }
    hours.checked_mul(3_600)?.checked_add(minutes.checked_mul(60)?)?.checked_add(seconds)
}

/// Days from 1970-01-01 to a date, if there is such a date.
fn days(date: &str) -> Option<u64> {
    let mut parts = date.split('-');
    let year = number(parts.next()?, 4, 9_999).filter(|year| *year >= 1970)?;
    let month = number(parts.next()?, 2, 12)?;
    let day = number(parts.next()?, 2, 31)?;
    if parts.next().is_some() || month == 0 || day == 0 || day > days_in(year, month) {
        return None;
    }
    let years: u64 = (1970..year).map(days_of_year).sum();
    let months: u64 = (1..month).map(|month| days_in(year, month)).sum();
    years.checked_add(months)?.checked_add(day)?.checked_sub(1)
}

fn number(text: &str, digits: usize, most: u64) -> Option<u64> {
    let well_formed = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    well_formed.then(|| text.parse().ok())?.filter(|number| *number <= most)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Writes a moment, `2026-11-22T10:00:00Z`; one after the year 9999 as its number.
pub(super) fn iso(unix: u64) -> String {
    if unix > LAST_SECOND {
        return unix.to_string();
    }
    let (mut day, second) = (unix / SECONDS_A_DAY, unix % SECONDS_A_DAY);
    let mut year = 1970;
    while day >= days_of_year(year) {
        day -= days_of_year(year);
        year += 1;
    }
    let mut month = 1;
    while day >= days_in(year, month) {
        day -= days_in(year, month);
        month += 1;
    }
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_795_341_600;

    fn at(text: &str) -> Result<u64, String> {
        text.parse::<Moment>().map(|moment| moment.unix(NOW))
    }

    #[test]
    fn moments_are_dates_times_seconds_or_durations_ago() {
        let cases = [
            ("0", 0),
            ("1000000000", 1_000_000_000),
            ("1795341600", NOW),
            ("2026-11-22", 1_795_305_600),
            ("2026-11-22T10:00:00Z", NOW),
            ("2026-11-22t10:00:00z", NOW),
            ("2026-11-22T10:00:00.999Z", NOW),
            ("2026-11-22T11:30:00+01:30", NOW),
            ("2026-11-21T23:00:00-11:00", NOW),
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("2016-12-31T23:59:60Z", 1_483_228_800),
            ("9999-12-31T23:59:59Z", LAST_SECOND),
            ("24h", NOW - 86_400),
            ("7d", NOW - 7 * 86_400),
            ("0s", NOW),
            ("999999d", 0),
        ];
        for (text, expected) in cases {
            assert_eq!(at(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused_and_says_why() {
        for bad in [
            "",
            " ",
            "yesterday",
            "2026",
            "20261122",
            "999999999",
            "253402300800",
            "2026-13-01",
            "2026-00-01",
            "2026-02-29",
            "1900-02-29",
            "2026-04-31",
            "2026-11-00",
            "2026-1-1",
            "1969-12-31",
            "2026-11-22-1",
            "2026-11-22T10:00Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T10:60:00Z",
            "2026-11-22T10:00:61Z",
            "2026-11-22T10:00:00.Z",
            "2026-11-22T10:00:00+1:00",
            "2026-11-22T10:00:00+24:00",
            "2026-11-22 10:00:00Z",
            "1970-01-01T00:00:00+00:01",
            "-24h",
            "1.5h",
            "24",
            "2026-11-22T",
            "١٢٣",
        ] {
            let error = at(bad).expect_err(bad);
            assert!(error.contains("2026-11-22"), "{bad}: {error}");
        }
        let hint = at("2026-11-22T10:00:00").unwrap_err();
        assert_eq!(hint, "a time needs its offset; write 2026-11-22T10:00:00Z for UTC");
    }

    #[test]
    fn moments_are_written_in_utc() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (NOW, "2026-11-22T10:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (LAST_SECOND, "9999-12-31T23:59:59Z"),
            (LAST_SECOND + 1, "253402300800"),
        ];
        for (unix, text) in cases {
            assert_eq!(iso(unix), text);
        }
    }

    proptest! {
        #[test]
        fn a_moment_survives_its_text(unix in 0..=LAST_SECOND) {
            prop_assert_eq!(iso(unix).parse(), Ok(Moment::At(unix)));
        }
    }
}
