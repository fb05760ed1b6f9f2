//! Why a request costs what it costs, for operators.
//!
//! **Owns** the words. **Promises** that the decision is the one the gate would make: it is made by the same code. **Does
//! not** know who will pay, nor what was used up so far: what depends on that is told as a rule.

use std::time::Duration;

use http::Method;
use serde::Serialize;

use super::matching::{BodySeen, Doubt, HostPattern, Place, Seen};
use super::path::CleanPath;
use super::people::{By, Cap, Free, OwnPrice, Payers, Rules};
use super::policy::{Asked, Policy, Price, Route, Verdict};
use super::quota::Rate;
use crate::duration::write_duration;
use crate::protocol::Amount;

/// What becomes of a request, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `paid`, `free`, `refused`, or `depends` where the body decides and was not given.
    pub decision: &'static str,
    /// The status it is refused with; 402 until it is paid.
    pub status: Option<u16>,
    /// The stable code it is refused with.
    pub code: Option<&'static str>,
    /// What that means.
    pub message: Option<String>,
    /// The route that decides.
    pub route: Option<String>,
    /// The most the request costs, atomic units.
    pub price: Option<Amount>,
    /// What the route makes of who asks.
    pub rules: Vec<String>,
    /// All routes, the most specific first.
    pub considered: Vec<Considered>,
}

/// One route, and whether it is the one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Considered {
    /// Its name.
    pub route: String,
    /// Its host, if it has one.
    pub host: Option<String>,
    /// Its path.
    pub path: String,
    /// Its methods; all, if there are none.
    pub methods: Vec<String>,
    /// Its conditions.
    pub conditions: Vec<String>,
    /// The most it costs, atomic units; nothing where it is free.
    pub price: Option<Amount>,
    /// Whether it decides.
    pub decides: bool,
    /// Whether it would decide about some bodies, where the body was not given.
    pub may_decide: bool,
    /// Why, or why not.
    pub why: String,
}

impl Policy {
    /// What the price list says of a request with this body.
    pub fn judge_whole(&self, asked: &Asked<'_>, body: Option<&[u8]>) -> Verdict<'_> {
        self.judge_with(asked, self.seen(asked, body).as_ref())
    }

    fn seen(&self, asked: &Asked<'_>, body: Option<&[u8]>) -> Option<Result<BodySeen, Doubt>> {
        body.and_then(|body| Some(self.body_looks(asked)?.in_the_body(asked.headers, body)))
    }

    /// What becomes of a request, and why. Without a body, one whose price depends on it is not decided.
    pub fn explain(&self, asked: &Asked<'_>, body: Option<&[u8]>) -> Explanation {
        let seen = self.seen(asked, body);
        let verdict = self.judge_with(asked, seen.as_ref());
        let deciding = verdict.route();
        let path = CleanPath::parse(asked.path).ok();
        let considered = self.explained(asked, seen.as_ref(), |route, is_beside, seen| {
            let decides = deciding.is_some_and(|deciding| std::ptr::eq(deciding, route));
            let may_decide = matches!(verdict, Verdict::BodyNeeded)
                && is_beside
                && route.takes(asked.method)
                && may_hold(route, seen);
            let why = if decides {
                "the most specific that matches".to_owned()
            } else {
                why_not(route, asked, path.as_ref(), is_beside, seen)
            };
            Considered {
                route: route.name.to_string(),
                host: route.host.as_ref().map(ToString::to_string),
                path: route.pattern.to_string(),
                methods: route.methods.iter().map(ToString::to_string).collect(),
                conditions: route.conditions.iter().map(|(place, pattern)| format!("{place} = {pattern}")).collect(),
                price: route.price_at(asked.at).most(),
                decides,
                may_decide,
                why,
            }
        });
        let refused = |status, code, message: String| (Some(status), Some(code), Some(message));
        let (decision, (status, code, message)) = match &verdict {
            Verdict::Paid(_) if asked.method == Method::OPTIONS => ("free", (None, None, None)),
            Verdict::Paid(listing) if listing.route.is_shadow() => ("free", (None, None, None)),
            Verdict::Paid(_) => ("paid", (Some(402), None, None)),
            Verdict::Free(_) => ("free", (None, None, None)),
            Verdict::Watched(_, code) => {
                ("free", (None, Some(*code), Some("the path's routes only watch; else it were refused".to_owned())))
            }
            Verdict::OtherMethods(methods) => {
                let mut sold: Vec<_> = methods.iter().map(Method::as_str).collect();
                sold.sort_unstable();
                sold.dedup();
                ("refused", refused(405, super::answer::METHOD_NOT_ALLOWED, format!("sold for {}", sold.join(", "))))
            }
            Verdict::Unknown => ("refused", refused(404, "unknown_route", "no route names the path".to_owned())),
            Verdict::Unclear(error) => ("refused", refused(400, "unclear_path", error.to_string())),
            Verdict::NoneMet => {
                let message = "the path is sold on conditions, and none is met".to_owned();
                ("refused", refused(404, super::answer::NO_CONDITION_MET, message))
            }
            Verdict::BodyNeeded => {
                let message = "depends on the body, give it with --body '{…}'".to_owned();
                ("depends", (None, Some("body_needed"), Some(message)))
            }
            Verdict::Doubtful(doubt) => {
                let (status, code) = Doubt::code(doubt);
                ("refused", refused(status.as_u16(), code, doubt.to_string()))
            }
        };
        Explanation {
            decision,
            status,
            code,
            message,
            route: deciding.map(|route| route.name.to_string()),
            price: deciding.and_then(|route| route.price_at(asked.at).most()),
            rules: deciding
                .and_then(|route| route.rules.as_deref())
                .map(|rules| told(rules, self.terms().token.decimals))
                .unwrap_or_default(),
            considered,
        }
    }
}

/// Whether its conditions hold for some bodies.
fn may_hold(route: &Route, seen: Option<&Seen<'_>>) -> bool {
    // What the head says comes before what the body does.
    let unmet = seen.and_then(|seen| route.conditions.first_unmet(seen));
    seen.is_some() && unmet.is_none_or(|(place, _)| matches!(place, Place::Body(_)))
}

fn why_not(
    route: &Route,
    asked: &Asked<'_>,
    path: Option<&CleanPath<'_>>,
    is_beside: bool,
    seen: Option<&Seen<'_>>,
) -> String {
    let matches_host = |own: &HostPattern| asked.host.is_some_and(|host| own.matches(host));
    if !route.host.as_ref().is_none_or(matches_host) {
        return "its host is another".to_owned();
    }
    if !path.is_some_and(|path| route.pattern.matches(path)) {
        return "its path does not match".to_owned();
    }
    if !is_beside {
        return "another route's host or path is more specific".to_owned();
    }
    if !route.takes(asked.method) {
        return format!("it is not for {}", asked.method);
    }
    match seen.and_then(|seen| route.conditions.first_unmet(seen)) {
        Some((place @ Place::Body(_), pattern)) if !seen.is_some_and(Seen::has_body) => {
            format!("{place} = {pattern} is not known without the body")
        }
        Some((place, pattern)) => format!("{place} = {pattern} is not met"),
        None => "another route asks for more".to_owned(),
    }
}

/// A route's rules in words, for a token with so many `decimals`.
fn told(rules: &Rules, decimals: u8) -> Vec<String> {
    let time = |per_s: u64| write_duration(Duration::from_secs(per_s));
    let Rules { allow, deny, prices, free, cap, per_payer, unpaid, own_rates, shadow } = rules;
    let names = |lists: &[std::sync::Arc<Payers>]| {
        lists.iter().map(|list| format!("{} ({})", list.name, list.members.len())).collect::<Vec<_>>().join(", ")
    };
    let mut told = Vec::new();
    if !allow.is_empty() {
        told.push(format!("only {} may pay", names(allow)));
    }
    if !deny.is_empty() {
        told.push(format!("{} may not pay", names(deny)));
    }
    for OwnPrice { payers, price } in prices {
        let price = match price {
            Price::Free => "nothing".to_owned(),
            price => price.describe(decimals),
        };
        told.push(format!("{} are charged {price}", names(payers)));
    }
    if let Some(Free { requests, per_s, by }) = free {
        let whose = match by {
            By::Payer => "each payer",
            By::Network => "each network",
        };
        told.push(format!("{requests} requests of {whose} are free in {}", time(*per_s)));
    }
    if let Some(Cap { payer, per_s }) = cap {
        told.push(format!("a payer is charged at most {} in {}", payer.to_price(decimals), time(*per_s)));
    }
    let whose = if *own_rates { "on this route" } else { "on all routes without rates of their own" };
    if let Some(Rate { count, per }) = per_payer {
        told.push(format!("a payer is served {count} requests in {}, {whose}", write_duration(*per)));
    }
    if let Some(Rate { count, per }) = unpaid {
        told.push(format!("a network is told the price {count} times in {}, {whose}", write_duration(*per)));
    }
    if *shadow {
        told.push("shadow: nothing is refused, and nothing charged".to_owned());
    }
    told
}
