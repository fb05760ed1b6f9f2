//! The price list: what it says that hardly anybody means.

use std::collections::BTreeSet;

use http::Method;

use super::Finding;
use crate::config::{Config, closest};
use crate::gate::people::{Payers, Rules};
use crate::gate::policy::{Price, Route};
use crate::protocol::{Address, Amount};

/// What clients ask to have a connection upgraded to.
const KNOWN_UPGRADES: [&str; 1] = ["websocket"];

const WHAT: &str = "routes";

/// What stands in each line's way, the most dangerous first.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let Config { routes, server, .. } = config;
    let mut findings: Vec<_> =
        routes.iter().filter_map(|route| cheaper_finding(route, routes, config.chain.token.decimals)).collect();
    for route in routes {
        let rules = route.rules.as_deref();
        findings.extend(rules.and_then(|rules| nobody_finding(route, rules)));
        findings.extend(rules.map(|rules| own_price_findings(route, rules)).unwrap_or_default());
        findings.extend(unpaid_finding(route));
        findings.extend(base_finding(route));
        findings.extend(upgrade_findings(route));
    }
    findings.extend(host_finding(&server.public_url, routes));
    findings
}

fn warning(route: &Route, detail: &str) -> Finding {
    Finding::warning(WHAT, format!("{}: {detail}", route.name))
}

/// What meets no condition goes to the route without any, and whoever asks may leave a condition unmet on purpose.
fn cheaper_finding(dear: &Route, routes: &[Route], decimals: u8) -> Option<Finding> {
    let most = |route: &Route| route.price.most().unwrap_or(Amount::ZERO);
    let together = |other: &Route| {
        let shared = |method: &Method| other.methods.contains(method);
        dear.stands_beside(other)
            && (dear.methods.is_empty() || other.methods.is_empty() || dear.methods.iter().any(shared))
    };
    let is_way_out = |other: &&Route| other.conditions.is_empty() && together(other) && most(other) < most(dear);
    if dear.conditions.is_empty() {
        return None;
    }
    let cheap = routes.iter().find(is_way_out)?;
    let (pays, instead) = (cheap.price.describe(decimals), dear.price.describe(decimals));
    let conditions: Vec<_> = dear.conditions.iter().map(|(place, wanted)| format!("{place} = {wanted}")).collect();
    let detail = format!(
        "a request that an upstream serves the same without {} is {pays} by {}, not {instead}",
        conditions.join(", "),
        cheap.name
    );
    let fix = "let the route without conditions be the dearest, and give what is cheaper a condition";
    Some(warning(dear, &detail).fix(fix))
}

fn nobody_finding(route: &Route, rules: &Rules) -> Option<Finding> {
    let allowed: BTreeSet<&Address> = rules.allow.iter().flat_map(|list| &list.members).collect();
    let nobody = !allowed.is_empty() && allowed.iter().all(|payer| !rules.admit(payer));
    nobody.then(|| {
        warning(route, "nobody may pay: deny names all that allow names").fix("take them out of one of the two")
    })
}

/// The first price that names a payer decides.
fn own_price_findings(route: &Route, rules: &Rules) -> Vec<Finding> {
    let mut earlier: BTreeSet<&Address> = BTreeSet::new();
    let mut findings = Vec::new();
    for own in &rules.prices {
        let members: BTreeSet<&Address> = own.payers.iter().flat_map(|list| &list.members).collect();
        if !members.is_empty() && members.is_subset(&earlier) {
            let name = |list: &std::sync::Arc<Payers>| list.name.to_string();
            let names = own.payers.iter().map(name).collect::<Vec<_>>().join(", ");
            let detail = format!("nobody pays the later price of {names}: an earlier [[route.for]] names them all");
            findings.push(warning(route, &detail).fix("remove one of the two, or put the later one first"));
        }
        earlier.extend(members);
    }
    findings
}

fn unpaid_finding(route: &Route) -> Option<Finding> {
    const SUCCESSES: std::ops::Range<u16> = 200..300;
    let cost = Amount::new(1_000_000);
    let unpaid =
        route.is_ever_paid() && SUCCESSES.clone().all(|status| route.status_rule.charge(status, cost).is_zero());
    unpaid.then(|| {
        warning(route, "its price is never charged for an answer that succeeds: charge_on leaves 0% of it")
            .fix("write price = \"free\" if that is meant")
    })
}

fn base_finding(route: &Route) -> Option<Finding> {
    let counts_for_nothing = |price: &Price| matches!(price, Price::Metered(tariff) if tariff.base >= tariff.most);
    route.prices().any(counts_for_nothing).then(|| {
        warning(route, "what is counted changes nothing: base is the most already")
            .fix("raise most, or write the base as a fixed price")
    })
}

fn upgrade_findings(route: &Route) -> Vec<Finding> {
    let upgrades = route.way.as_ref().map(|way| way.upgrades.as_slice()).unwrap_or_default();
    if upgrades.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for unknown in upgrades.iter().filter(|name| !KNOWN_UPGRADES.contains(&name.as_str())) {
        let finding =
            warning(route, &format!("upgrade names \"{unknown}\", which is no protocol that clients ask for"));
        findings.push(match closest(unknown, KNOWN_UPGRADES.into_iter()) {
            Some(meant) => finding.fix(format!("did you mean \"{meant}\"?")),
            None => finding.fix("leave it out, unless your own clients do"),
        });
    }
    if !route.methods.is_empty() && !route.methods.contains(&Method::GET) {
        let finding = warning(route, "nothing is ever upgraded: that is asked for with GET, which methods leaves out");
        findings.push(finding.fix("add \"GET\", or leave upgrade out"));
    }
    if route.has_rate(|tariff| tariff.needs_report()) {
        let detail = "an upgraded connection always costs the most: nothing in it reports what its price counts";
        findings.push(warning(route, detail).fix("give upgrades a route with a price for time or bytes"));
    }
    findings
}

fn host_finding(public_url: &str, routes: &[Route]) -> Option<Finding> {
    let url: http::Uri = public_url.parse().ok()?;
    let host = url.host()?;
    let is_other = |route: &Route| route.host.as_ref().is_some_and(|own| !own.matches(host));
    (!routes.is_empty() && routes.iter().all(is_other)).then(|| {
        let detail = format!("agents are shown {public_url}, and no route is for {host}");
        Finding::warning("public_url", detail).fix("set server.public_url to a host of the routes, or leave host out")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[upstream]\nurl = \"http://127.0.0.1:8080\"\n[chain]\nnetwork = \"base-sepolia\"\nrpc = \"env:R\"\n\
                        [receiver]\npay_to = \"0x209693Bc6afc0C5328bA36FaF03C514EF312287C\"\nauthorizer_key = \"env:K\"\n\
                        [payers]\na = [\"0x209693Bc6afc0C5328bA36FaF03C514EF312287C\"]\n\
                        b = [\"0x000000000000000000000000000000000000dEaD\"]\n";

    fn told(routes: &str) -> Vec<String> {
        let config = Config::parse(&format!("{BASE}{routes}"), "c.toml").unwrap_or_else(|errors| panic!("{errors}"));
        findings(&config).into_iter().map(|finding| finding.detail).collect()
    }

    fn route(price: &str, lines: &str) -> String {
        format!("[[route]]\npath = \"/a\"\nprice = {price}\n{lines}\n")
    }

    #[test]
    fn a_way_around_a_condition_is_warned_about() {
        let dear = route("\"$0.09\"", "name = \"dear\"\nmatch = { body = { model = \"large\" } }");
        let found = told(&(dear.clone() + &route("\"$0.01\"", "name = \"cheap\"")));
        let expected = "dear: a request that an upstream serves the same without body.model = \"large\" is $0.01 by cheap, not $0.09";
        assert_eq!(found, [expected]);
        assert_eq!(told(&(dear.clone() + &route("\"free\"", ""))).len(), 1);
        for fine in [
            dear.clone(),
            dear.clone() + &route("\"$0.09\"", ""),
            dear.clone() + &route("\"$0.01\"", "match = { body = { model = \"small\" } }"),
            dear.clone() + &route("\"$0.01\"", "host = \"other.example\""),
            dear.replace("name =", "methods = [\"POST\"]\nname =") + &route("\"$0.01\"", "methods = [\"GET\"]"),
        ] {
            assert_eq!(told(&fine), Vec::<String>::new(), "{fine}");
        }
    }

    #[test]
    fn what_has_no_effect_or_keeps_everybody_out_is_warned_about() {
        let own = |list: &str, price: &str| format!("[[route.for]]\npayers = [\"{list}\"]\nprice = \"{price}\"\n");
        let metered =
            |base: &str| format!("{{ base = \"{base}\", response_bytes = \"$1 / 1 GiB\", most = \"$0.05\" }}");
        let tokens = "{ output_tokens = \"$1 / 1M\", most = \"$0.05\" }";
        let fixed = "\"$0.05\"";
        let cases = [
            (route(fixed, "allow = [\"a\"]\ndeny = [\"b\", \"a\"]"), Some("nobody may pay")),
            (route(fixed, "allow = [\"a\", \"b\"]\ndeny = [\"a\"]"), None),
            (
                route(fixed, &(own("a", "$0.01") + &own("b", "$0.02") + &own("a", "free"))),
                Some("nobody pays the later price of a"),
            ),
            (route(fixed, &(own("a", "$0.01") + &own("b", "$0.02"))), None),
            (route(fixed, "charge_on = { \"2xx\" = \"0%\" }"), Some("its price is never charged")),
            (route(fixed, "charge_on = { \"2xx\" = \"0%\", \"201\" = \"1%\" }"), None),
            (route(&metered("$0.05"), ""), Some("what is counted changes nothing")),
            (route(&metered("$0.049"), ""), None),
            (route(fixed, "upgrade = [\"websocket\"]"), None),
            (route(fixed, "upgrade = [\"websockets\"]"), Some("upgrade names \"websockets\"")),
            (route(fixed, "upgrade = [\"websocket\"]\nmethods = [\"POST\"]"), Some("nothing is ever upgraded")),
            (route(tokens, "upgrade = [\"websocket\"]"), Some("an upgraded connection always costs the most")),
            (route(tokens, ""), None),
            (route(fixed, "host = \"api.example.com\""), Some("agents are shown http://127.0.0.1:4020")),
            (route(fixed, "host = \"api.example.com\"") + &route(fixed, ""), None),
        ];
        for (text, expected) in cases {
            let found = told(&text);
            assert_eq!(found.len(), usize::from(expected.is_some()), "{text}: {found:?}");
            assert!(expected.is_none_or(|expected| found.concat().contains(expected)), "{found:?}");
        }
        let config = Config::parse(&format!("{BASE}{}", route(fixed, "upgrade = [\"websockets\"]")), "c.toml").unwrap();
        assert_eq!(findings(&config).remove(0).fix.as_deref(), Some("did you mean \"websocket\"?"));
    }
}
