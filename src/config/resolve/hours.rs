//! `[[route.at]]`: other prices at other hours.

use jiff::tz::TimeZone;

use super::price::{Denomination, price};
use crate::config::reader::{Problem, Report, Section, closest, quoted};
use crate::gate::policy::Price;
use crate::pricing::schedule::{DAY_MIN, DAY_NAMES};
use crate::pricing::{Days, Overlap, Schedule, Window};

/// Every request of a route looks through its windows, and each has a quote of its own.
const MAX_WINDOWS: usize = 32;

pub(super) fn schedule(report: &Report<'_>, route: &mut Section<'_>, money: Denomination) -> Option<Schedule<Price>> {
    let sections = route.sections("at");
    let count = sections.len();
    if count > MAX_WINDOWS {
        let problem = Problem::new(format!("there are more than {MAX_WINDOWS} windows"));
        route.error("at", None, problem);
    }
    let spans: Vec<_> = sections.iter().map(Section::span).collect();
    let windows: Vec<_> = sections.into_iter().filter_map(|section| window(section, money)).collect();
    if windows.len() < count || count > MAX_WINDOWS {
        return None;
    }
    let line = |place: usize| spans.get(place).cloned().flatten().map_or(0, |span| report.line(&span));
    let (second, problem) = match Schedule::new(windows) {
        Ok(schedule) => return Some(schedule),
        Err(Overlap::Moment { first, second }) => {
            let problem = Problem::new(format!("holds at a time when the window in line {} does", line(first)));
            (second, problem.fix("change the days or hours of one of them: one price is in force at a time"))
        }
        Err(Overlap::Zones { first, second }) => {
            let problem = Problem::new(format!("has another zone than the window in line {}", line(first)));
            (second, problem.fix("give all windows of a route the same zone"))
        }
    };
    report.error(spans.get(second).cloned().flatten(), "[[route.at]]", problem);
    None
}

fn window(mut section: Section<'_>, money: Denomination) -> Option<(Window, Price)> {
    let days = section.text("days", days);
    let hours = section.text("hours", hours);
    let zone = section.text("zone", zone);
    let price = price(&mut section, "price", money);
    let (days, hours) = (days.optional(), hours.optional());
    if days == Some(None) && hours == Some(None) {
        let problem = Problem::new("says no time, so it would always be in force");
        section.error("hours", None, problem.fix("add days = \"mon-fri\" or hours = \"08:00-18:00\""));
        return None;
    }
    let days = days?.unwrap_or(Days::ALL);
    let (from_min, until_min) = hours?.unwrap_or((0, DAY_MIN));
    Some((Window { days, from_min, until_min, zone: zone.or(TimeZone::UTC)? }, price?))
}

/// `mon-fri`, `sat,sun`.
fn days(text: &str) -> Result<Days, Problem> {
    let day = |name: &str| DAY_NAMES.iter().position(|day| *day == name).and_then(|day| u8::try_from(day).ok());
    let read = text.split(',').try_fold(Days::NONE, |days, part| {
        let part = part.trim();
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(days.and(day(first)?, day(last)?))
    });
    read.ok_or_else(|| {
        Problem::new(format!("{} names no days", quoted(text)))
            .fix("write them like \"mon-fri\" or \"sat,sun\": mon, tue, wed, thu, fri, sat, sun")
    })
}

/// `08:00-18:00`, as minutes of the day.
fn hours(text: &str) -> Result<(u16, u16), Problem> {
    let problem = |what: &str| {
        Problem::new(format!("{} {what}", quoted(text)))
            .fix("write them like \"08:00-18:00\", or \"22:00-06:00\" over midnight; \"24:00\" is the end of a day")
    };
    let (from, until) = text.split_once('-').ok_or_else(|| problem("is no part of a day"))?;
    let from = minute(from.trim()).filter(|minute| *minute < DAY_MIN).ok_or_else(|| problem("begins at no time"))?;
    let until = minute(until.trim()).ok_or_else(|| problem("ends at no time"))?;
    if from == until {
        return Err(Problem::new(format!("{} ends when it begins", quoted(text))).fix("leave hours out for whole days"));
    }
    Ok((from, until))
}

fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |digits: &str| {
        let two = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<u16>().ok().filter(|_| two)
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    (minute < 60).then_some(hour * 60 + minute).filter(|minute| *minute <= DAY_MIN)
}

/// A time zone by its name in the tz database, which knows when its clocks are changed.
fn zone(text: &str) -> Result<TimeZone, Problem> {
    match TimeZone::get(text) {
        Ok(zone) if !zone.is_unknown() => Ok(zone),
        _ => {
            let problem = Problem::new(format!("{} is not a time zone", quoted(text)));
            let known: Vec<_> = jiff::tz::db().available().map(|name| name.as_str().to_owned()).collect();
            let lower: Vec<_> = known.iter().map(|name| name.to_ascii_lowercase()).collect();
            let meant = closest(text, lower.iter().map(String::as_str));
            let meant = meant.and_then(|meant| known.iter().find(|name| name.eq_ignore_ascii_case(meant)));
            Err(match meant {
                Some(name) => problem.fix(format!("did you mean \"{name}\"?")),
                None => problem.fix("write it like \"Europe/Madrid\" or \"UTC\""),
            })
        }
    }
}
