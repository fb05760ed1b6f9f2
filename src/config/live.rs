//! What a running process makes of a file that was changed.
//!
//! **Owns** the mixture of the config that runs and the one that was read, and the memory of how reloads went. **Promises**
//! that the mixture is a config that could have been read: what does not fit together is left as it runs, and named; and
//! that prices of another token are never taken for prices of the one that is paid. **Does not** read files, nor know who
//! listens.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::diff::KeyChange;
use super::{Chain, Channel, Config, Deposits, KEYS, Limits, LogOptions, Server};
use crate::clock;

/// Why nothing of a file can be taken while the process runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// Its amounts are of other tokens or chains than those that are paid now.
    #[error("[chain] names another token or chain, and with it every price means another amount; restart to change it")]
    OtherMoney,
    /// A route's requests would go to an upstream that is not connected.
    #[error("a route names the upstream \"{0}\", which is new; restart to add it")]
    OtherUpstream(String),
    /// A route's connections would be upgraded, which HTTP/2 does not know, and its upstream speaks that until the next
    /// start.
    #[error("the route {0} has upgrade, and its upstream runs with http2; restart to change that")]
    NoUpgrade(String),
}

impl Config {
    /// This config with all that can be changed while it runs taken from `next`.
    ///
    /// # Errors
    /// See [`NotNow`]: none of `next` can be taken.
    pub fn applying(&self, next: &Self) -> Result<Self, NotNow> {
        let of_chain =
            |chain: &Chain| (chain.chain_id, chain.tokens().map(|token| format!("{token:?}")).collect::<Vec<_>>());
        let money = |config: &Self| -> Vec<_> {
            std::iter::once(&config.chain).chain(&config.other_chains).map(of_chain).collect()
        };
        if money(self) != money(next) {
            return Err(NotNow::OtherMoney);
        }
        let known = |name: &str| self.upstreams.iter().any(|(known, _)| **known == *name);
        let named = next.routes.iter().filter_map(|route| route.way.as_ref()?.upstream.as_deref());
        if let Some(name) = named.into_iter().find(|name| !known(name)) {
            return Err(NotNow::OtherUpstream(name.to_owned()));
        }
        let upstream_of = |name: Option<&str>| {
            let named = self.upstreams.iter().find(|(known, _)| Some(&**known) == name);
            named.map_or(&self.upstream, |(_, upstream)| upstream)
        };
        let stuck = next.routes.iter().find(|route| {
            route.way.as_ref().is_some_and(|way| !way.upgrades.is_empty() && upstream_of(way.upstream.as_deref()).http2)
        });
        if let Some(route) = stuck {
            return Err(NotNow::NoUpgrade(route.name.to_string()));
        }
        let (running, next_channel) = (&self.channel, &next.channel);
        // Both were compared with values of their own file, which may not be those that run.
        let mut upstreams = std::iter::once(&self.upstream).chain(self.upstreams.iter().map(|(_, named)| named));
        let outlasts = upstreams.all(|upstream| next_channel.max_timeout > upstream.response_timeout);
        let timeout_fits = outlasts && self.facilitator.is_none();
        let margin_fits = next_channel.withdraw_margin < running.withdraw_delay;
        Ok(Self {
            server: Server { quote_grace: next.server.quote_grace, ..self.server.clone() },
            channel: Channel {
                min_deposit: next_channel.min_deposit,
                max_timeout: if timeout_fits { next_channel.max_timeout } else { running.max_timeout },
                withdraw_margin: if margin_fits { next_channel.withdraw_margin } else { running.withdraw_margin },
                max_in_flight: next_channel.max_in_flight,
                max_waiting: next_channel.max_waiting,
                max_wait: next_channel.max_wait,
                ..running.clone()
            },
            deposits: Deposits { instant: self.deposits.instant, ..next.deposits.clone() },
            limits: Limits {
                bad_signatures_per_minute: next.limits.bad_signatures_per_minute,
                max_matched_body: next.limits.max_matched_body,
                per_payer: next.limits.per_payer,
                unpaid: next.limits.unpaid,
                ..self.limits.clone()
            },
            cors: next.cors.clone(),
            discovery: next.discovery.clone(),
            beside: next.beside.clone(),
            log: LogOptions { level: next.log.level, ..self.log },
            routes: next.routes.clone(),
            ..self.clone()
        })
    }

    /// What `next` says otherwise than this config, key by key, and of upstreams each by itself; routes left out. What
    /// [`Config::applying`] made of `next` differs from it in what waits for a restart.
    pub fn changes(&self, next: &Self) -> Vec<KeyChange> {
        let changed = KEYS.iter().filter(|key| key.differs(self, next));
        changed.flat_map(|key| KeyChange::all_of(key, self, next)).collect()
    }
}

/// How the reading of the file again has gone so far. Cheap to clone; all clones are one memory.
#[derive(Debug, Clone)]
pub struct Reloads(Arc<Mutex<ReloadState>>);

/// How the reading of the file again has gone so far, as operators see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadState {
    /// When the config in force was loaded, Unix seconds.
    pub loaded_at: u64,
    /// How often another config came into force since the start.
    pub reloads: u64,
    /// How often a changed file was refused since the start.
    pub refused: u64,
    /// Why the file is not in force as it is, if it was refused the last time it was read.
    pub failure: Option<ReloadFailure>,
    /// What the file says that only a restart puts in force.
    pub needs_restart: Vec<KeyChange>,
}

/// Why a changed file was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadFailure {
    /// When, Unix seconds.
    pub at: u64,
    /// What is wrong with it, all at once.
    pub errors: Vec<String>,
}

impl Default for Reloads {
    fn default() -> Self {
        let state = ReloadState { loaded_at: clock::now_s(), ..ReloadState::default() };
        Self(Arc::new(Mutex::new(state)))
    }
}

impl Reloads {
    /// What is seen of how it has gone so far, together with what else is read meanwhile: no config comes into force before
    /// `look` is done.
    pub fn see<T>(&self, look: impl FnOnce(&ReloadState) -> T) -> T {
        look(&self.memory())
    }

    /// A config comes into force, by what is done until [`Loading::loaded`]. Nobody sees a state meanwhile, so nobody sees
    /// new prices beside the old state.
    pub fn loading(&self) -> Loading<'_> {
        Loading(self.memory())
    }

    /// A file was refused.
    pub fn refused(&self, errors: Vec<String>) {
        let mut state = self.memory();
        state.refused = state.refused.saturating_add(1);
        state.failure = Some(ReloadFailure { at: clock::now_s(), errors });
    }

    fn memory(&self) -> MutexGuard<'_, ReloadState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A config that is coming into force.
#[derive(Debug)]
#[must_use = "what is not told did not happen"]
pub struct Loading<'a>(MutexGuard<'a, ReloadState>);

impl Loading<'_> {
    /// It is in force. `is_new` where anything changed by it.
    pub fn loaded(mut self, is_new: bool, needs_restart: Vec<KeyChange>) {
        let state = &mut *self.0;
        if is_new {
            (state.loaded_at, state.reloads) = (clock::now_s(), state.reloads.saturating_add(1));
        }
        (state.failure, state.needs_restart) = (None, needs_restart);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::When;

    const EXAMPLE: &str = include_str!("../../config.example.toml");

    /// The example with every live key and many others set to something else.
    fn other() -> Config {
        let changes = [
            ("quote_grace = \"30s\"", "quote_grace = \"7s\""),
            ("max_matched_body = \"1 MiB\"", "max_matched_body = \"2 MiB\""),
            ("# rate = ", "rate = "),
            ("[discovery]\n", "[discovery]\nname = \"A\"\ndescription = \"B\"\nopenapi = \"c.json\"\n"),
            ("enabled = true", "enabled = false"),
            ("listen = \"127.0.0.1:4020\"", "listen = \"127.0.0.1:4021\""),
            ("shutdown_timeout = \"30s\"", "shutdown_timeout = \"31s\""),
            ("# cores = 4", "cores = 3"),
            ("url = \"http://127.0.0.1:8080\"", "url = \"http://127.0.0.1:8081\""),
            ("listen = \"127.0.0.1:9402\"", "listen = \"off\""),
            ("rpc = \"env:PEAJE_RPC\"", "rpc = \"https://node.example/s3cret\""),
            ("poll = \"2s\"", "poll = \"3s\""),
            ("authorizer_key = \"env:PEAJE_AUTHORIZER_KEY\"", "authorizer_key = \"file:key\""),
            ("withdraw_delay = \"1d\"", "withdraw_delay = \"2d\""),
            ("# min_deposit = \"$0.10\"", "min_deposit = \"$0.20\""),
            ("max_timeout = \"5m\"", "max_timeout = \"6m\""),
            ("withdraw_margin = \"5m\"", "withdraw_margin = \"4m\""),
            ("max_wallet_exposure = \"$1\"", "max_wallet_exposure = \"$2\""),
            ("max_in_flight = 32", "max_in_flight = 16"),
            ("max_waiting = 64", "max_waiting = 65"),
            ("max_wait = \"10s\"", "max_wait = \"9s\""),
            ("instant = \"$0\"", "instant = \"$1\""),
            ("per_peer_per_hour = 200", "per_peer_per_hour = 2"),
            ("per_hour = 1000", "per_hour = 10"),
            ("bad_signatures_per_minute = 60", "bad_signatures_per_minute = 61"),
            ("max_requests = 4096", "max_requests = 4095"),
            ("directory = \"books\"", "directory = \"other\""),
            ("interval = \"10m\"\n# Earlier", "interval = \"11m\"\n# Earlier"),
            ("allow_origins = [\"*\"]", "allow_origins = []"),
            ("level = \"info\"", "level = \"debug\""),
            ("format = \"auto\"", "format = \"json\""),
            ("# access = ", "access = "),
            ("price = \"$0.002\"", "price = \"$0.003\""),
        ];
        let text = changes.iter().fold(EXAMPLE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        });
        Config::parse(&text, "c.toml").unwrap()
    }

    #[test]
    fn what_can_be_changed_live_is_and_the_rest_waits() {
        let (running, next) = (Config::parse(EXAMPLE, "c.toml").unwrap(), other());
        let mixed = running.applying(&next).unwrap();
        for key in KEYS {
            let expected = if key.when == When::Live { &next } else { &running };
            assert!(!key.differs(&mixed, expected), "{} {}", key.section, key.name);
            if key.when == When::Live && key.shown(&running).is_some() {
                assert!(key.differs(&running, &next), "{} {} is not tried", key.section, key.name);
            }
        }
        assert_eq!(mixed.routes[0].price, next.routes[0].price);
        let waiting = mixed.changes(&next);
        assert!(waiting.iter().all(|change| change.when == "start") && waiting.len() >= 14, "{waiting:?}");
        assert!(!format!("{waiting:?}").contains("s3cret"));
        assert!(waiting.iter().any(|change| change.key == "[chain].rpc"));
    }

    #[test]
    fn the_secret_part_of_an_rpc_url_is_compared_and_not_shown() {
        let with = |key: &str| {
            let text = EXAMPLE.replace("rpc = \"env:PEAJE_RPC\"", &format!("rpc = \"https://node.example/{key}\""));
            Config::parse(&text, "c.toml").unwrap()
        };
        let changes = with("s3cret").changes(&with("0ther"));
        assert_eq!(changes.len(), 1);
        assert_eq!(
            (changes[0].old.as_str(), changes[0].new.as_str()),
            ("https://node.example/…", "https://node.example/…")
        );
        assert!(with("s3cret").changes(&with("s3cret")).is_empty());
    }

    #[test]
    fn a_route_to_an_upstream_that_is_not_connected_is_not_taken() {
        let with = |upstreams: &[&str], chosen: &str| {
            let upstreams: String =
                upstreams.iter().map(|name| format!("[upstreams.{name}]\nurl = \"http://127.0.0.1:1\"\n")).collect();
            let routes: String = upstreams_routes(chosen);
            Config::parse(&format!("{EXAMPLE}\n{upstreams}{routes}"), "c.toml").unwrap()
        };
        fn upstreams_routes(chosen: &str) -> String {
            ["a", "b"]
                .iter()
                .filter(|name| chosen.contains(**name))
                .map(|name| format!("[[route]]\npath = \"/{name}\"\nprice = \"free\"\nupstream = \"{name}\"\n"))
                .collect()
        }
        let running = with(&["a"], "a");
        assert!(running.applying(&running).is_ok());
        let refused = running.applying(&with(&["a", "b"], "ab")).err();
        assert_eq!(refused, Some(NotNow::OtherUpstream("b".to_owned())));
    }

    #[test]
    fn an_upgrade_by_an_upstream_that_runs_with_http2_is_not_taken() {
        let text = |http2: bool, lines: &str| {
            let text = EXAMPLE.replacen("http2 = false", &format!("http2 = {http2}"), 1);
            Config::parse(
                &text.replacen("price = \"$0.002\"\n", &format!("price = \"$0.002\"\n{lines}\n"), 1),
                "c.toml",
            )
            .unwrap()
        };
        let upgrade = "upgrade = [\"websocket\"]";
        let running = text(true, "");
        assert_eq!(running.applying(&text(false, upgrade)).err(), Some(NotNow::NoUpgrade("/v1/*".to_owned())));
        assert!(running.applying(&text(false, "")).is_ok() && text(false, "").applying(&text(false, upgrade)).is_ok());
    }

    #[test]
    fn prices_of_another_token_are_not_taken() {
        let running = Config::parse(EXAMPLE, "c.toml").unwrap();
        for (from, to) in [
            ("network = \"base-sepolia\"", "network = \"base\""),
            (
                "token = \"usdc\"",
                "token = { address = \"0x036CbD53842c5426634e7929541eC2318f3dCF7e\", decimals = 7, domain_name = \"USDC\", \
                 domain_version = \"2\" }",
            ),
        ] {
            let next = Config::parse(&EXAMPLE.replacen(from, to, 1), "c.toml").unwrap();
            assert_eq!(running.applying(&next).err(), Some(NotNow::OtherMoney), "{to}");
        }
        assert!(running.applying(&running).is_ok());
    }

    #[test]
    fn what_does_not_fit_what_runs_stays_as_it_runs() {
        let config = |changes: &[(&str, &str)]| {
            let text = changes.iter().fold(EXAMPLE.to_owned(), |text, (from, to)| text.replacen(from, to, 1));
            Config::parse(&text, "c.toml").unwrap()
        };
        let running = config(&[]);
        let quicker = config(&[
            ("response_timeout = \"60s\"", "response_timeout = \"20s\""),
            ("max_timeout = \"5m\"", "max_timeout = \"30s\""),
        ]);
        let mixed = running.applying(&quicker).unwrap();
        assert_eq!(mixed.channel.max_timeout, running.channel.max_timeout);
        let waiting: Vec<_> = mixed.changes(&quicker).into_iter().map(|change| change.key).collect();
        assert_eq!(waiting, ["[upstream].response_timeout", "[channel].max_timeout"]);
        let named =
            |timeout| format!("[upstreams.slow]\nurl = \"http://127.0.0.1:8082\"\nresponse_timeout = \"{timeout}\"\n");
        let slow = Config::parse(&(EXAMPLE.to_owned() + &named("4m")), "c.toml").unwrap();
        for (timeout, max_timeout) in [(240, 300), (241, 241)] {
            let next = EXAMPLE.replacen("max_timeout = \"5m\"", &format!("max_timeout = \"{timeout}s\""), 1);
            let mixed = slow.applying(&Config::parse(&(next + &named("2m")), "c.toml").unwrap()).unwrap();
            assert_eq!(mixed.channel.max_timeout.as_secs(), max_timeout, "an upstream with a name takes 240 s");
        }
        let longer = config(&[
            ("withdraw_delay = \"1d\"", "withdraw_delay = \"3d\""),
            ("withdraw_margin = \"5m\"", "withdraw_margin = \"2d\""),
        ]);
        assert_eq!(running.applying(&longer).unwrap().channel.withdraw_margin, running.channel.withdraw_margin);
    }
}
