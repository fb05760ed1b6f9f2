//! What a change of the file would change.
//!
//! **Owns** the comparison of two configs, in words an operator reads. **Promises** that configs without a difference here
//! behave the same, that a route is compared with the one it came from (the same paths and methods, or else the same
//! name), and that no secret is shown. **Does not** apply anything.

use serde::{Deserialize, Serialize};

use super::{Config, Key, When};
use crate::gate::policy::Route;
use crate::pricing::Unit;

/// A key that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChange {
    /// Which, as in `[server].listen`.
    pub key: String,
    /// `live` or `start`: whether a running process takes it from the file, or only the next start does.
    pub when: String,
    /// What it was, in words.
    pub old: String,
    /// What it is.
    pub new: String,
}

impl KeyChange {
    pub(super) fn of(key: &Key, old: &Config, new: &Config) -> Self {
        let when = match key.when {
            When::Live => "live",
            When::Start => "start",
        };
        Self {
            key: format!("{}.{}", key.section, key.name),
            when: when.to_owned(),
            old: key.shown(old).unwrap_or_default(),
            new: key.shown(new).unwrap_or_default(),
        }
    }
}

/// A route that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteChange {
    /// Its name; the new one, where it has one.
    pub route: String,
    /// Which paths and methods, as they are now or, for one that is removed, were.
    pub requests: String,
    /// What it cost, in words; nothing where it is new.
    pub old: Option<String>,
    /// What it costs; nothing where it is removed.
    pub new: Option<String>,
    /// What else of it is different, by key.
    pub also: Vec<String>,
}

/// What a change would change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// Routes, in the order of the new file; removed ones last.
    pub routes: Vec<RouteChange>,
    /// All other keys.
    pub keys: Vec<KeyChange>,
}

impl Diff {
    /// Compares two configs.
    pub fn between(old: &Config, new: &Config) -> Self {
        Self { routes: routes(old, new), keys: old.changes(new) }
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.keys.is_empty()
    }
}

fn routes(old: &Config, new: &Config) -> Vec<RouteChange> {
    let mut left: Vec<&Route> = old.routes.iter().collect();
    let mut take = |is_it: &dyn Fn(&Route) -> bool| {
        let index = left.iter().position(|route| is_it(route))?;
        Some(left.remove(index))
    };
    // The surest pairs first: a route that was moved within the file is no other one.
    let mut pairs: Vec<_> = new.routes.iter().map(|route| (route, None)).collect();
    let ways: [fn(&Route, &Route) -> bool; 3] = [same, same_place, same_name];
    for is_pair in ways {
        for (route, former) in pairs.iter_mut().filter(|(_, former)| former.is_none()) {
            *former = take(&|other| is_pair(other, route));
        }
    }
    let (before, after) = (old.chain.token.decimals, new.chain.token.decimals);
    let changed = pairs.into_iter().filter(|(route, former)| !former.is_some_and(|former| same(former, route)));
    let mut changes: Vec<_> = changed
        .map(|(route, former)| RouteChange {
            route: route.name.to_string(),
            requests: requests(route),
            old: former.map(|former| former.price.describe(before)),
            new: Some(route.price.describe(after)),
            also: former.map(|former| other_differences(former, route)).unwrap_or_default(),
        })
        .collect();
    changes.extend(left.into_iter().map(|route| RouteChange {
        route: route.name.to_string(),
        requests: requests(route),
        old: Some(route.price.describe(before)),
        new: None,
        also: Vec::new(),
    }));
    changes
}

fn same(a: &Route, b: &Route) -> bool {
    written(a) == written(b)
}

fn same_place(a: &Route, b: &Route) -> bool {
    a.pattern == b.pattern && a.methods == b.methods
}

fn same_name(a: &Route, b: &Route) -> bool {
    a.name == b.name
}

/// All there is to a route, whatever it may have one day.
fn written(route: &Route) -> String {
    format!("{route:?}")
}

/// Which requests a route is for, in words.
pub fn requests(route: &Route) -> String {
    let methods: Vec<_> = route.methods.iter().map(http::Method::as_str).collect();
    if methods.is_empty() { route.pattern.to_string() } else { format!("{} {}", methods.join("|"), route.pattern) }
}

fn other_differences(old: &Route, new: &Route) -> Vec<String> {
    let named = [
        ("name", old.name != new.name),
        ("path", old.pattern != new.pattern),
        ("methods", old.methods != new.methods),
        ("description", old.description != new.description),
        ("mime_type", old.mime_type != new.mime_type),
        ("extensions", old.extensions != new.extensions),
        ("host", old.host != new.host),
        ("match", old.conditions != new.conditions),
        ("charge_on", old.status_rule != new.status_rule),
        ("at", old.schedule != new.schedule),
        ("who may pay and who pays less", old.rules != new.rules),
        ("upstream or upgrade", old.way != new.way),
        ("what is shown of it", old.shelf != new.shelf),
    ];
    let mut also: Vec<_> = named.iter().filter(|(_, differs)| *differs).map(|(name, _)| (*name).to_owned()).collect();
    if also.is_empty() && old.price == new.price {
        also.push("other keys".to_owned());
    }
    also
}

/// What is counted, in words.
pub fn unit_in_words(unit: &Unit) -> String {
    match unit {
        Unit::RequestBytes => "bytes sent".to_owned(),
        Unit::ResponseBytes => "bytes received".to_owned(),
        Unit::Milliseconds => "ms".to_owned(),
        Unit::Events => "events".to_owned(),
        Unit::InputTokens => "input tokens".to_owned(),
        Unit::CachedInputTokens => "cached input tokens".to_owned(),
        Unit::CacheWriteTokens => "cache write tokens".to_owned(),
        Unit::OutputTokens => "output tokens".to_owned(),
        Unit::Reported(name) => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[upstream]\nurl = \"http://127.0.0.1:8080\"\n[chain]\nnetwork = \"base-sepolia\"\nrpc = \
                        \"env:PEAJE_RPC\"\n[receiver]\npay_to = \"0x209693Bc6afc0C5328bA36FaF03C514EF312287C\"\n\
                        authorizer_key = \"env:K\"\n";

    fn config(routes: &str) -> Config {
        Config::parse(&format!("{BASE}{routes}"), "c.toml").unwrap()
    }

    fn route(path: &str, price: &str, more: &str) -> String {
        format!("[[route]]\npath = \"{path}\"\nprice = \"{price}\"\n{more}\n")
    }

    #[test]
    fn a_route_is_compared_with_the_one_it_came_from() {
        let old = config(
            &[
                route("/a", "$0.01", ""),
                route("/b", "free", "name = \"bee\""),
                route("/gone", "$1", ""),
                route("/d", "$1", "methods = [\"GET\"]"),
                route("/d", "$2", "methods = [\"POST\"]"),
            ]
            .concat(),
        );
        let new = config(
            &[
                route("/new", "$0.50", ""),
                route("/d", "$2", "methods = [\"POST\"]"),
                route("/d", "$3", "methods = [\"GET\"]"),
                route("/b2", "free", "name = \"bee\""),
                route("/a", "$0.01", "description = \"x\""),
            ]
            .concat(),
        );
        let Diff { routes, keys } = Diff::between(&old, &new);
        assert!(keys.is_empty());
        let told: Vec<_> = routes
            .iter()
            .map(|change| (&*change.requests, change.old.as_deref(), change.new.as_deref(), change.also.join(",")))
            .collect();
        let none = String::new;
        assert_eq!(
            told,
            [
                ("/new", None, Some("$0.50"), none()),
                ("GET /d", Some("$1.00"), Some("$3.00"), none()),
                ("/b2", Some("free"), Some("free"), "path".to_owned()),
                ("/a", Some("$0.01"), Some("$0.01"), "description".to_owned()),
                ("/gone", Some("$1.00"), None, none()),
            ]
        );
        assert!(Diff::between(&old, &old).is_empty() && !Diff::between(&old, &new).is_empty());
    }
}
