//! What a change of the file would change.
//!
//! **Owns** the comparison of two configs, in words an operator reads. **Promises** that configs without a difference here
//! behave the same, that a route is compared with the one it came from (the same requests, or else the same name, or the
//! same paths and methods), and that no secret is shown. **Does not** apply anything.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Config, Key, Upstream, When};
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
    /// A running process takes it from the file.
    pub const LIVE: &str = "live";
    /// Only the next start does.
    pub const START: &str = "start";

    fn of(key: &Key, old: &Config, new: &Config) -> Self {
        let when = match key.when {
            When::Live => Self::LIVE,
            When::Start => Self::START,
        };
        Self {
            key: format!("{}.{}", key.section, key.name),
            when: when.to_owned(),
            old: key.shown(old).unwrap_or_default(),
            new: key.shown(new).unwrap_or_default(),
        }
    }

    /// What a key that differs changes: one thing, or for the keys of upstreams one of each upstream that differs in it. One
    /// that is new or gone is told once.
    pub(super) fn all_of(key: &Key, old: &Config, new: &Config) -> Vec<Self> {
        if !key.section.starts_with("[upstream") {
            return vec![Self::of(key, old, new)];
        }
        let mut changes = Vec::new();
        let names: BTreeSet<_> = old.upstreams.iter().chain(&new.upstreams).map(|(name, _)| Some(name)).collect();
        for name in std::iter::once(None).chain(names) {
            let one = |config: &Config| {
                Some(Config { upstream: named(config, name)?.clone(), upstreams: Vec::new(), ..config.clone() })
            };
            let heading = |section: &str| match name {
                Some(name) => section.replacen("[upstream", &format!("[upstreams.{name}"), 1),
                None => section.to_owned(),
            };
            match (one(old), one(new)) {
                (Some(old), Some(new)) if key.differs(&old, &new) => {
                    let change = Self::of(key, &old, &new);
                    changes.push(Self { key: format!("{}.{}", heading(key.section), key.name), ..change });
                }
                (Some(_), Some(_)) => {}
                (old, new) if key.name == "url" => {
                    let shown =
                        |config: Option<Config>| config.and_then(|one| key.shown(&one)).unwrap_or("none".to_owned());
                    let (key, when) = (heading(key.section), Self::START.to_owned());
                    changes.push(Self { key, when, old: shown(old), new: shown(new) });
                }
                _ => {}
            }
        }
        changes
    }
}

/// The upstream of this name, or the one without a name.
fn named<'c>(config: &'c Config, name: Option<&Arc<str>>) -> Option<&'c Upstream> {
    match name {
        None => Some(&config.upstream),
        Some(name) => config.upstreams.iter().find(|(other, _)| other == name).map(|(_, upstream)| upstream),
    }
}

/// A route that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteChange {
    /// Its name; the new one, where it has one.
    pub route: String,
    /// Which methods, host, paths and conditions, as they are now or, for one that is removed, were.
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
    /// Why a running process takes nothing of it, if it does not: all of it waits for a restart.
    pub not_now: Option<String>,
}

impl Diff {
    /// Compares two configs.
    pub fn between(old: &Config, new: &Config) -> Self {
        Self { routes: routes(old, new), keys: old.changes(new), not_now: None }
    }

    /// Compares a config that would be running with the one that would take its place: what of it waits for a restart is
    /// what a reload would leave as it is.
    pub fn foreseen(old: &Config, new: &Config) -> Self {
        let mut diff = Self::between(old, new);
        let mixed = old.applying(new);
        let waiting = mixed.as_ref().map(|mixed| mixed.changes(new)).unwrap_or_default();
        for change in &mut diff.keys {
            let waits = mixed.is_err() || waiting.iter().any(|other| other.key == change.key);
            change.when = if waits { KeyChange::START } else { KeyChange::LIVE }.to_owned();
        }
        Self { not_now: mixed.err().filter(|_| !diff.is_empty()).map(|error| error.to_string()), ..diff }
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
    let ways = [same, same_requests, same_given_name, same_place, same_name];
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

fn same_requests(a: &Route, b: &Route) -> bool {
    same_place(a, b) && a.host == b.host && a.conditions == b.conditions
}

/// A name that an operator gave, and not the path.
fn same_given_name(a: &Route, b: &Route) -> bool {
    same_name(a, b) && *a.name != a.pattern.to_string()
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
    let Route { methods, host, pattern, conditions, .. } = route;
    let methods: Vec<_> = methods.iter().map(http::Method::as_str).collect();
    let mut words = if methods.is_empty() { String::new() } else { format!("{} ", methods.join("|")) };
    let host = host.as_ref().map(ToString::to_string).unwrap_or_default();
    words.push_str(&format!("{host}{pattern}"));
    let conditions: Vec<_> = conditions.iter().map(|(place, wanted)| format!("{place} = {wanted}")).collect();
    if !conditions.is_empty() {
        words.push_str(&format!(" with {}", conditions.join(", ")));
    }
    words
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
        let Diff { routes, keys, .. } = Diff::between(&old, &new);
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

    #[test]
    fn routes_of_one_path_are_told_apart_by_host_and_conditions() {
        let at = |host: &str, price: &str| route("/a", price, &format!("host = \"{host}\""));
        let with =
            |model: &str, price: &str| route("/c", price, &format!("match = {{ body = {{ model = \"{model}\" }} }}"));
        let changes = |old: &[String], new: &[String]| -> Vec<_> {
            let routes = Diff::between(&config(&old.concat()), &config(&new.concat())).routes;
            let change = |change: RouteChange| (change.requests, change.old, change.new, change.also.join(","));
            routes.into_iter().map(change).collect()
        };
        let change = |requests: &str, old: &str, new: &str| {
            (requests.to_owned(), Some(old.to_owned()), Some(new.to_owned()), String::new())
        };
        let old = [at("x.example", "$1"), at("y.example", "$2"), with("s", "$3"), with("l", "$4")];
        let new = [with("l", "$5"), with("s", "$3"), at("y.example", "$6"), at("x.example", "$1")];
        let expected =
            [change("/c with body.model = \"l\"", "$4.00", "$5.00"), change("y.example/a", "$2.00", "$6.00")];
        assert_eq!(changes(&old, &new), expected);
    }

    #[test]
    fn what_a_reload_refuses_or_leaves_waits_for_a_restart() {
        let text = |more: &str| format!("{BASE}{}{more}", route("/a", "$1", ""));
        let read = |text: &str| Config::parse(text, "c.toml").unwrap();
        let whens = |old: &str, new: &str| -> Vec<_> {
            let keys = Diff::foreseen(&read(old), &read(new)).keys;
            keys.into_iter().map(|change| (change.key, change.when)).collect()
        };
        let expected = |keys: &[(&str, &str)]| -> Vec<_> {
            keys.iter().map(|(key, when)| ((*key).to_owned(), (*when).to_owned())).collect()
        };
        // It would be shorter than the upstream that runs may take.
        let slow = text("[channel]\nmax_timeout = \"30s\"\n").replace("8080\"", "8080\"\nresponse_timeout = \"20s\"");
        let found = whens(&text(""), &slow);
        assert_eq!(found, expected(&[("[upstream].response_timeout", "start"), ("[channel].max_timeout", "start")]));
        assert_eq!(
            whens(&text(""), &text("[channel]\nmax_timeout = \"6m\"\n")),
            expected(&[("[channel].max_timeout", "live")])
        );
        let named = |url: &str, idle: &str| {
            format!("[upstreams.{url}]\nurl = \"http://127.0.0.1:1\"\nidle_timeout = \"{idle}\"\n")
        };
        let old = text(&(named("a", "1m") + &named("b", "1m") + &named("gone", "1m")));
        let new = text(&(named("a", "2m") + &named("b", "1m") + &named("new", "1m")));
        let keys = Diff::foreseen(&read(&old), &read(&new)).keys;
        let told: Vec<_> = keys.iter().map(|change| (&*change.key, &*change.old, &*change.new)).collect();
        let expected = [
            ("[upstreams.gone]", "http://127.0.0.1:1/", "none"),
            ("[upstreams.new]", "none", "http://127.0.0.1:1/"),
            ("[upstreams.a].idle_timeout", "1m", "2m"),
        ];
        assert_eq!(told, expected);
        let other =
            Diff::foreseen(&read(&text("")), &read(&text("[cors]\nallow_origins = []\n").replace("-sepolia", "")));
        assert!(
            other.keys.iter().all(|change| change.when == "start") && other.not_now.unwrap().contains("another token")
        );
        assert_eq!(Diff::foreseen(&read(&old), &read(&old)), Diff::default());
    }
}
