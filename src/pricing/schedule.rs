//! Which price is in force at which hour.
//!
//! A [`Window`] is so many days of the week and a part of the day, by the clock on the wall of its time zone. Where that
//! clock is put forward a window can be shorter, where it is put back longer: at every moment the price is that of the time
//! people there read.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::{DateTime, Weekday};
use jiff::tz::TimeZone;

/// Minutes of a day.
pub const DAY_MIN: u16 = 1_440;

/// The names of the days, from Monday.
pub const DAY_NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Seconds of a minute. Windows begin and end with a minute, and so do they in UTC: zones differ from it by whole minutes.
const MINUTE_S: u64 = 60;

/// Days of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days(u8);

impl Days {
    /// Every day.
    pub const ALL: Self = Self(0b0111_1111);

    /// No day.
    pub const NONE: Self = Self(0);

    /// These and the days from one to another, both included, across the end of the week if need be. Days count from
    /// Monday, which is 0; what is beyond Sunday begins again.
    #[must_use]
    pub fn and(self, first: u8, last: u8) -> Self {
        let (first, last) = (first % 7, last % 7);
        let length = (last + 7 - first) % 7 + 1;
        (0..length).fold(self, |days, offset| Self(days.0 | 1 << ((first + offset) % 7)))
    }

    /// Whether this one is among them, counted from Monday.
    pub fn has(self, day: u8) -> bool {
        day < 7 && self.0 >> day & 1 == 1
    }
}

/// As operators write them, `mon-fri`.
impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |day: u8| DAY_NAMES.get(usize::from(day)).copied().unwrap_or_default();
        let mut separator = "";
        let mut day = 0;
        while day < 7 {
            let length = (day..7).take_while(|day| self.has(*day)).fold(0, |length: u8, _| length + 1);
            match length {
                0 => {}
                1 => write!(f, "{separator}{}", name(day))?,
                2 => write!(f, "{separator}{},{}", name(day), name(day + 1))?,
                _ => write!(f, "{separator}{}-{}", name(day), name(day + length - 1))?,
            }
            if length > 0 {
                separator = ",";
            }
            day += length + 1;
        }
        Ok(())
    }
}

/// A part of each week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// On which days it begins. One that goes on after midnight does so on the day after each.
    pub days: Days,
    /// Its first minute of the day.
    pub from_min: u16,
    /// The minute of the day it ends before, up to [`DAY_MIN`]. Not after `from_min`: on the next day.
    pub until_min: u16,
    /// Whose clock it goes by.
    pub zone: TimeZone,
}

impl Window {
    /// Whether it is in force at this moment, Unix seconds.
    pub fn holds(&self, at_s: u64) -> bool {
        self.holds_at(local(&self.zone, at_s))
    }

    fn holds_at(&self, Local { day, minute }: Local) -> bool {
        let begun = self.from_min <= minute && self.days.has(day);
        if self.from_min < self.until_min {
            begun && minute < self.until_min
        } else {
            begun || (minute < self.until_min && self.days.has((day + 6) % 7))
        }
    }
}

/// As operators write it, `mon-fri 22:00-06:00 Europe/Madrid`.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { days, from_min, until_min, zone } = self;
        let clock = |minute: &u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        write!(f, "{days} {}-{} {}", clock(from_min), clock(until_min), zone.iana_name().unwrap_or("UTC"))
    }
}

/// What the clock on the wall says.
#[derive(Debug, Clone, Copy)]
struct Local {
    /// From Monday.
    day: u8,
    /// Of the day.
    minute: u16,
}

fn local(zone: &TimeZone, at_s: u64) -> Local {
    // Beyond the year 9999 there is no calendar; the last moment of the last one does.
    let at =
        i64::try_from(at_s).ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or(Timestamp::MAX);
    let time: DateTime = zone.to_datetime(at);
    let number = |part: i8| u16::from(part.unsigned_abs());
    let day = match time.weekday() {
        Weekday::Monday => 0,
        Weekday::Tuesday => 1,
        Weekday::Wednesday => 2,
        Weekday::Thursday => 3,
        Weekday::Friday => 4,
        Weekday::Saturday => 5,
        Weekday::Sunday => 6,
    };
    Local { day, minute: number(time.hour()) * 60 + number(time.minute()) }
}

/// What is in force in some windows instead of what is otherwise. No two hold at one moment, and all go by one clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule<T> {
    windows: Vec<(Window, T)>,
}

/// Two windows that may not stand side by side, by their places from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Overlap {
    /// There is a moment in both.
    #[error("windows {first} and {second} have a moment in common")]
    Moment {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// They go by the clocks of two zones, whose differences change with their laws.
    #[error("windows {first} and {second} are of two time zones")]
    Zones {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Self { windows: Vec::new() }
    }
}

impl<T> Schedule<T> {
    /// A schedule of these windows.
    ///
    /// # Errors
    /// The first two of which it cannot be said that at most one of them holds at any moment.
    pub fn new(windows: Vec<(Window, T)>) -> Result<Self, Overlap> {
        for (second, (later, _)) in windows.iter().enumerate() {
            for (first, (earlier, _)) in windows.iter().enumerate().take(second) {
                if earlier.zone != later.zone {
                    return Err(Overlap::Zones { first, second });
                }
                let both = |moment| earlier.holds_at(moment) && later.holds_at(moment);
                // A window that begins while another holds, or at the same moment, is the only way to overlap.
                let begins = |window: &Window| {
                    let minute = window.from_min;
                    (0..7).map(move |day| Local { day, minute })
                };
                if begins(earlier).chain(begins(later)).any(both) {
                    return Err(Overlap::Moment { first, second });
                }
            }
        }
        Ok(Self { windows })
    }

    /// Whether there is no window.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// The windows, in the order they were given in.
    pub fn windows(&self) -> &[(Window, T)] {
        &self.windows
    }

    /// The place of the window that holds at this moment, Unix seconds. Where there are no windows, no clock is read.
    pub fn index_at(&self, at_s: u64) -> Option<usize> {
        let (first, _) = self.windows.first()?;
        let moment = local(&first.zone, at_s);
        self.windows.iter().position(|(window, _)| window.holds_at(moment))
    }

    /// What is in force at this moment, Unix seconds, if any window holds.
    pub fn at(&self, at_s: u64) -> Option<&T> {
        self.windows.get(self.index_at(at_s)?).map(|(_, value)| value)
    }

    /// This moment, and of the `back_s` seconds before it the last ones at which something else was in force, from the
    /// latest back. It looks at each minute of them, unless there are no windows.
    pub fn lately(&self, at_s: u64, back_s: u64) -> impl Iterator<Item = u64> {
        let since = if self.is_empty() { at_s } else { at_s.saturating_sub(back_s) };
        let minute_ends = std::iter::successors(Some(at_s), move |moment| {
            let before = (moment - moment % MINUTE_S).checked_sub(1)?;
            (*moment > since).then(|| before.max(since))
        });
        let mut last = None;
        minute_ends.filter(move |moment| {
            let place = self.index_at(*moment);
            last.replace(place) != Some(place)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM_MON_TO_FRI: Days = Days(0b0001_1111);

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn window(days: Days, from: (u16, u16), until: (u16, u16), zone_name: &str) -> Window {
        let minute = |(hour, minute): (u16, u16)| hour * 60 + minute;
        Window { days, from_min: minute(from), until_min: minute(until), zone: zone(zone_name) }
    }

    /// The Unix second of a local time; the earlier one where there are two.
    fn at(local: &str, zone_name: &str) -> u64 {
        let time: DateTime = local.parse().unwrap();
        let zoned = zone(zone_name).to_ambiguous_zoned(time).earlier().unwrap();
        zoned.timestamp().as_second().try_into().unwrap()
    }

    #[test]
    fn days_are_named_as_operators_name_them() {
        let cases = [
            (Days::NONE, ""),
            (Days::ALL, "mon-sun"),
            (FROM_MON_TO_FRI, "mon-fri"),
            (Days::NONE.and(5, 6), "sat,sun"),
            (Days::NONE.and(4, 0), "mon,fri-sun"),
            (Days::NONE.and(0, 0).and(2, 2), "mon,wed"),
            (Days::NONE.and(3, 2), "mon-sun"),
        ];
        for (days, text) in cases {
            assert_eq!(days.to_string(), text);
        }
        assert!(!Days::ALL.has(7) && Days::ALL.has(6));
    }

    #[test]
    fn a_window_begins_with_its_first_minute_and_ends_before_its_last() {
        let day = window(FROM_MON_TO_FRI, (8, 0), (18, 30), "Europe/Madrid");
        assert_eq!(day.to_string(), "mon-fri 08:00-18:30 Europe/Madrid");
        let cases = [
            ("2026-07-06T07:59:59", false),
            ("2026-07-06T08:00:00", true),
            ("2026-07-10T18:29:59", true),
            ("2026-07-10T18:30:00", false),
            ("2026-07-11T12:00:00", false),
            ("2026-01-05T08:00:00", true),
        ];
        for (moment, expected) in cases {
            assert_eq!(day.holds(at(moment, "Europe/Madrid")), expected, "{moment}");
        }
        let to_midnight = window(Days::ALL, (18, 0), (24, 0), "UTC");
        assert!(
            to_midnight.holds(at("2026-07-06T23:59:59", "UTC")) && !to_midnight.holds(at("2026-07-07T00:00:00", "UTC"))
        );
    }

    #[test]
    fn a_night_belongs_to_the_day_it_begins_on() {
        let nights = window(FROM_MON_TO_FRI, (22, 0), (6, 0), "Europe/Madrid");
        let cases = [
            ("2026-07-05T23:00:00", false),
            ("2026-07-06T05:00:00", false),
            ("2026-07-06T21:59:59", false),
            ("2026-07-06T22:00:00", true),
            ("2026-07-07T05:59:59", true),
            ("2026-07-07T06:00:00", false),
            ("2026-07-10T23:00:00", true),
            ("2026-07-11T05:59:59", true),
            ("2026-07-11T22:00:00", false),
        ];
        for (moment, expected) in cases {
            assert_eq!(nights.holds(at(moment, "Europe/Madrid")), expected, "{moment}");
        }
        let whole_days = window(Days::NONE.and(6, 6), (12, 0), (12, 0), "UTC");
        assert!(
            whole_days.holds(at("2026-07-06T11:59:59", "UTC")) && !whole_days.holds(at("2026-07-06T12:00:00", "UTC"))
        );
    }

    #[test]
    fn the_clock_on_the_wall_decides_when_it_is_changed() {
        let small_hours = window(Days::ALL, (2, 0), (3, 0), "Europe/Madrid");
        let held = |from: &str, hours: u64| {
            let start = at(from, "Europe/Madrid");
            (0..hours * 60).filter(|minute| small_hours.holds(start + minute * 60)).count()
        };
        assert_eq!(held("2026-03-28T00:00:00", 24), 60);
        assert_eq!(held("2026-03-29T00:00:00", 23), 0, "there is no such hour");
        assert_eq!(held("2026-10-25T00:00:00", 25), 120, "there are two");
    }

    #[test]
    fn at_most_one_window_holds() {
        type Part = (Days, (u16, u16), (u16, u16));
        let week = |windows: &[Part]| {
            let windows = windows.iter().map(|(days, from, until)| (window(*days, *from, *until, "UTC"), ()));
            Schedule::new(windows.collect()).map(|_| ())
        };
        let moment = |first, second| Err(Overlap::Moment { first, second });
        let (mon, tue, sat) = (Days::NONE.and(0, 0), Days::NONE.and(1, 1), Days::NONE.and(5, 6));
        assert_eq!(week(&[(Days::ALL, (8, 0), (18, 0)), (Days::ALL, (18, 0), (8, 0))]), Ok(()));
        assert_eq!(week(&[(Days::ALL, (8, 0), (18, 1)), (Days::ALL, (18, 0), (8, 0))]), moment(0, 1));
        assert_eq!(week(&[(mon, (22, 0), (6, 0)), (tue, (6, 0), (7, 0))]), Ok(()));
        assert_eq!(week(&[(mon, (22, 0), (6, 0)), (tue, (5, 59), (7, 0))]), moment(0, 1));
        assert_eq!(week(&[(tue, (5, 0), (5, 1)), (mon, (22, 0), (6, 0))]), moment(0, 1));
        assert_eq!(week(&[(sat, (0, 0), (24, 0)), (mon, (0, 0), (24, 0)), (sat, (1, 0), (2, 0))]), moment(0, 2));
        assert_eq!(week(&[(Days::NONE.and(6, 6), (22, 0), (6, 0)), (mon, (0, 0), (1, 0))]), moment(0, 1));
        assert_eq!(week(&[(mon, (8, 0), (8, 0)), (tue, (8, 0), (8, 0))]), Ok(()));
        let two = vec![(window(mon, (1, 0), (2, 0), "UTC"), 1), (window(tue, (1, 0), (2, 0), "Europe/Madrid"), 2)];
        assert_eq!(Schedule::new(two), Err(Overlap::Zones { first: 0, second: 1 }));
    }

    #[test]
    fn what_was_in_force_lately_is_told_from_the_latest_back() {
        let windows = vec![
            (window(Days::ALL, (8, 0), (9, 0), "Asia/Kolkata"), "a"),
            (window(Days::ALL, (9, 0), (9, 1), "Asia/Kolkata"), "b"),
        ];
        let schedule = Schedule::new(windows).unwrap();
        let moment = |time: &str| at(&format!("2026-07-06T{time}"), "Asia/Kolkata");
        let lately = |time: &str, back_s| {
            schedule.lately(moment(time), back_s).map(|moment| schedule.index_at(moment)).collect::<Vec<_>>()
        };
        assert_eq!(lately("08:30:00", 60), [Some(0)]);
        assert_eq!(lately("09:00:00", 0), [Some(1)]);
        assert_eq!(lately("09:00:00", 1), [Some(1), Some(0)]);
        assert_eq!(lately("09:00:29", 29), [Some(1)]);
        assert_eq!(lately("09:00:29", 30), [Some(1), Some(0)]);
        assert_eq!(lately("09:01:10", 60), [None, Some(1)]);
        assert_eq!(lately("09:01:10", 71), [None, Some(1), Some(0)]);
        assert_eq!(schedule.at(moment("09:00:59")), Some(&"b"));
        assert_eq!(schedule.at(moment("09:01:00")), None);
        assert_eq!(Schedule::<()>::default().lately(5, 600).collect::<Vec<_>>(), [5]);
        assert_eq!(schedule.at(u64::MAX), schedule.at(Timestamp::MAX.as_second().try_into().unwrap()));
    }
}
