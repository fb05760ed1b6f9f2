//! `charge_on`: which part of a price is charged, by the answer's status.

use super::redeem::decimal;
use crate::config::reader::{Problem, Section, quoted};
use crate::pricing::{NeverCharged, Share, StatusRule, Statuses};

pub(super) fn charge_on(route: &mut Section<'_>) -> Option<StatusRule> {
    const EXAMPLE: &str = "write it like charge_on = { \"404\" = \"10%\", \"3xx\" = \"0%\" }";
    let mut rule = StatusRule::default();
    let Some(entry) = route.entry("charge_on") else { return Some(rule) };
    let Some(pairs) = entry.pairs() else {
        let problem = Problem::new(format!("expected a table of statuses and shares, found {}", entry.kind()));
        route.refuse(&entry, problem.fix(EXAMPLE));
        return None;
    };
    let mut refused = false;
    for (name, value) in pairs {
        let not_text =
            || Problem::new(format!("expected a percentage, found {}", value.kind())).fix("write it like \"10%\"");
        let changed = statuses(name).and_then(|statuses| {
            let share = share(value.as_text().ok_or_else(not_text)?)?;
            rule.clone().with(statuses, share).map_err(|never| never_charged(never, statuses))
        });
        match changed {
            Ok(changed) => rule = changed,
            Err(problem) => {
                route.refuse(&value, problem);
                refused = true;
            }
        }
    }
    (!refused).then_some(rule)
}

fn statuses(name: &str) -> Result<Statuses, Problem> {
    let problem = Problem::new(format!("{} is not a status", quoted(name)));
    let digits = name.len() == 3 && name.bytes().all(|byte| byte.is_ascii_digit());
    match (name, name.parse()) {
        ("2xx", _) => Ok(Statuses::Class(2)),
        ("3xx", _) => Ok(Statuses::Class(3)),
        ("4xx", _) => Ok(Statuses::Class(4)),
        ("5xx", _) => Ok(Statuses::Class(5)),
        ("1xx", _) => Err(problem.fix("an upgraded connection counts as 2xx")),
        (_, Ok(status)) if digits => Ok(Statuses::One(status)),
        _ => Err(problem.fix("write one status, such as \"404\", or a class: \"2xx\", \"3xx\", \"4xx\"")),
    }
}

fn share(text: &str) -> Result<Share, Problem> {
    let problem =
        |what: &str| Problem::new(format!("{} {what}", quoted(text))).fix("write it like \"10%\" or \"0.25%\"");
    let number = text.strip_suffix('%').ok_or_else(|| problem("is not a percentage"))?;
    let share = decimal(number, 2).ok_or_else(|| problem("is not a percentage of at most two decimal places"))?;
    let share = u16::try_from(share).ok().and_then(Share::from_hundredths);
    share.ok_or_else(|| problem("is more than the price"))
}

fn never_charged(never: NeverCharged, statuses: Statuses) -> Problem {
    let problem = Problem::new(format!("{statuses} cannot be charged: {never}"));
    match never {
        NeverCharged::Failed | NeverCharged::Asks => problem.fix("leave it out"),
        NeverCharged::NoStatus => problem.fix("statuses are 100 to 599"),
    }
}
