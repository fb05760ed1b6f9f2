//! Changes of the config while the proxy runs.
//!
//! **Owns** the watch over the config file, and what is done when it changes. **Promises** all or nothing: a file with an
//! error changes nothing, and the log has every error with its place and its fix; what only a restart can change is named,
//! with what runs and what the file says; and that half a file, written by an editor in place, is not read. **Does not**
//! stop or start anything.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{EventKind, ModifyKind};
use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::changed::{Hangups, Seen};
use crate::config::diff::{Diff, KeyChange};
use crate::config::{Config, ConfigErrors, NotNow, Reloads};
use crate::gate::Gate;
use crate::protocol::Address;
use crate::proxy::Stack;
use crate::telemetry::access::AccessLog;

/// A file that was changed is read once nothing has happened to it for so long.
const SETTLED: Duration = Duration::from_millis(50);

/// A file that is changed on and on is read nevertheless.
const MAX_SETTLING: Duration = Duration::from_secs(1);

/// How often the file is looked at by whoever is told nothing: file systems of other machines tell of no change.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How many changed prices are told in the log one by one.
const MAX_TOLD: usize = 20;

/// What of a running proxy can be changed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Live {
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    gate: Gate,
    stack: Stack,
    authorizer: Address,
    access: Option<Arc<AccessLog>>,
    running: Mutex<Config>,
    reloads: Reloads,
}

/// Why a config is not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// It cannot be put in force while peaje runs.
    #[error(transparent)]
    NotNow(#[from] NotNow),
    /// Two routes are equal; the config's own check finds that first.
    #[error("two routes match the same requests")]
    Routes,
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// What is in force now and was not.
    pub diff: Diff,
    /// What the file says and only a restart puts in force: what runs is the old.
    pub needs_restart: Vec<KeyChange>,
}

impl Live {
    pub(super) fn new(
        config: &Config,
        gate: Gate,
        stack: Stack,
        authorizer: Address,
        access: Option<Arc<AccessLog>>,
    ) -> Self {
        let (running, reloads) = (Mutex::new(config.clone()), Reloads::default());
        Self { parts: Arc::new(Parts { gate, stack, authorizer, access, running, reloads }) }
    }

    /// How reloads have gone so far.
    pub fn reloads(&self) -> &Reloads {
        &self.parts.reloads
    }

    /// Puts in force what can be changed live of a config. Everything that can fail comes before anything is changed.
    ///
    /// # Errors
    /// See [`NotTaken`]; nothing is changed then.
    pub fn apply(&self, next: &Config) -> Result<Taken, NotTaken> {
        let Parts { gate, stack, authorizer, running, reloads, .. } = &*self.parts;
        let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
        let mixed = running.applying(next)?;
        let policy = mixed.policy(*authorizer).map_err(|_| NotTaken::Routes)?;
        let taken = Taken { diff: Diff::between(&running, &mixed), needs_restart: mixed.changes(next) };
        let loading = reloads.loading();
        gate.set_limits(super::site::limits(&mixed));
        gate.replace_policy(policy, mixed.server.quote_grace);
        stack.set_cors(super::site::cors(&mixed.cors));
        if mixed.log.level != running.log.level {
            crate::telemetry::set_level(mixed.log.level);
        }
        *running = mixed;
        loading.loaded(!taken.diff.is_empty(), taken.needs_restart.clone());
        Ok(taken)
    }

    /// Reads the text of a file and puts it in force, and tells the log what came of it. The files that were read with it.
    fn take(&self, path: &Path, text: Result<&str, ConfigErrors>) -> Vec<Seen> {
        let config = text.and_then(|text| Config::load_text(path, text));
        let beside = match &config {
            Ok(config) => config.beside.clone(),
            Err(errors) => errors.files().to_vec(),
        };
        let outcome = config.map_err(refusals).and_then(|config| {
            self.apply(&config).map_err(|error| vec![format!("error: {}: {error}", path.display())])
        });
        match outcome {
            Ok(taken) => self.tell(&taken),
            Err(errors) => {
                for error in &errors {
                    tracing::error!("{error}");
                }
                tracing::error!(errors = errors.len(), "the changed config is refused; what was in force stays so");
                self.parts.reloads.refused(errors);
            }
        }
        beside
    }

    fn tell(&self, Taken { diff, needs_restart }: &Taken) {
        let policy = self.parts.gate.policy();
        for route in diff.routes.iter().take(MAX_TOLD) {
            let (old, new) = (route.old.as_deref().unwrap_or("nothing"), route.new.as_deref().unwrap_or("nothing"));
            tracing::info!(route = route.route, requests = route.requests, old, new, "a route has changed");
        }
        for change in &diff.keys {
            tracing::info!(key = change.key, old = change.old, new = change.new, "a key has changed");
        }
        for change in needs_restart {
            let message = "only a restart changes this; it runs on as it is";
            tracing::warn!(key = change.key, runs = change.old, file = change.new, "{message}");
        }
        let (generation, prices, routes) = (policy.generation(), policy.digest(), diff.routes.len());
        if diff.is_empty() {
            tracing::info!(generation, prices, "the config was read again; nothing is new");
        } else {
            tracing::info!(generation, prices, routes, keys = diff.keys.len(), "the config was read again");
        }
    }

    /// Follows a config file for ever: whenever it changes, and on SIGHUP, it is read again. `text` is what was read at
    /// start; no change after `file` was seen is missed.
    ///
    /// # Cancellation
    /// A reload that has begun goes on to its end.
    pub(super) async fn follow(self, mut file: Seen, mut text: String, mut hangups: Hangups) {
        let (changed, mut changes) = mpsc::channel(1);
        let watcher = watch(file.path(), changed.clone());
        if let Err(error) = &watcher {
            let every_s = LOOK_EVERY.as_secs();
            tracing::warn!(%error, every_s, "nobody tells of changes of the config file, so it is looked at now and then");
        }
        // What was read with the text. Only a change of that can be the cure where it is refused.
        let mut beside = self.parts.running.lock().unwrap_or_else(PoisonError::into_inner).beside.clone();
        loop {
            let ordered = tokio::select! {
                () = hangups.next() => true,
                _ = changes.recv() => tokio::select! {
                    () = hangups.next() => true,
                    () = settle(&mut changes) => false,
                },
                () = tokio::time::sleep(LOOK_EVERY) => {
                    let looked = (file.again(), again(&beside));
                    if looked.0 == file && looked.1 == beside {
                        continue;
                    }
                    // Somebody may be writing one of them just now. Then it is looked at again.
                    tokio::time::sleep(SETTLED).await;
                    if (file.again(), again(&beside)) != looked {
                        continue;
                    }
                    false
                }
            };
            if ordered && let Some(access) = &self.parts.access {
                access.reopen();
            }
            file = file.again();
            let is_new = ordered || again(&beside) != beside;
            let (live, path, last) = (self.clone(), file.path().to_owned(), text.clone());
            match tokio::task::spawn_blocking(move || live.reload(&path, &last, is_new)).await {
                Ok(Some(read)) => (text, beside) = read,
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "a reload broke; what was in force stays so"),
            }
        }
    }

    /// Reads the file if it says something else than last time, or if it has to be read anyway. What it says, and what was
    /// read with it; nothing, if there was nothing to do.
    fn reload(&self, path: &Path, last: &str, anyway: bool) -> Option<(String, Vec<Seen>)> {
        let read = Config::read(path);
        let text = read.as_deref().unwrap_or_default().to_owned();
        (anyway || text != last).then(|| {
            super::supervisor::reloading();
            let beside = self.take(path, read.as_deref().map_err(Clone::clone));
            super::supervisor::ready();
            (text, beside)
        })
    }
}

/// The same files as they are now.
fn again(files: &[Seen]) -> Vec<Seen> {
    files.iter().map(Seen::again).collect()
}

/// The errors of a file, one text each.
fn refusals(errors: ConfigErrors) -> Vec<String> {
    let each = |rendered: &str| rendered.trim_end().to_owned();
    let rendered = errors.render(false);
    let mut texts: Vec<String> = Vec::new();
    for line in rendered.lines() {
        match texts.last_mut() {
            _ if line.starts_with("error: ") => texts.push(line.to_owned()),
            // The source line and its mark.
            Some(text) if line.starts_with("  ") => {
                text.push('\n');
                text.push_str(line);
            }
            _ => {}
        }
    }
    texts.iter().map(|text| each(text)).collect()
}

/// Tells of changes in the file's directory: an editor or a deployment puts a new file in the place of the old one, and
/// Kubernetes swaps a link to a directory.
fn watch(path: &Path, changed: mpsc::Sender<()>) -> notify::Result<notify::RecommendedWatcher> {
    let name = path.file_name().map(ToOwned::to_owned);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let concerns = |event: &notify::Event| match event.kind {
            // Other files are written in that directory, the access log for one.
            EventKind::Access(_) => false,
            EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => {
                event.paths.iter().any(|path| path.file_name() == name.as_deref())
            }
            _ => true,
        };
        if event.as_ref().map_or(true, concerns) {
            // One that waits is enough.
            let _ = changed.try_send(());
        }
    })?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Waits until nothing happens any more.
async fn settle(changes: &mut mpsc::Receiver<()>) {
    let begun = Instant::now();
    while begun.elapsed() < MAX_SETTLING && timeout(SETTLED, changes.recv()).await.is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until the watcher tells of something, for at most a few seconds.
    async fn told(changes: &mut mpsc::Receiver<()>) -> bool {
        let told = timeout(Duration::from_secs(5), changes.recv()).await.is_ok();
        settle(changes).await;
        told
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_is_written_replaced_or_linked_anew_is_noticed_and_its_neighbours_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("peaje.toml"), "a").unwrap();
        std::fs::write(at("access.jsonl"), "a").unwrap();
        let (changed, mut changes) = mpsc::channel(1);
        let _watcher = watch(&at("peaje.toml"), changed).unwrap();
        // First, so that no late word of another change is taken for one of this.
        std::fs::write(at("access.jsonl"), "more").unwrap();
        assert!(timeout(Duration::from_millis(300), changes.recv()).await.is_err(), "a neighbour");
        std::fs::write(at("peaje.toml"), "b").unwrap();
        assert!(told(&mut changes).await, "written in place");
        std::fs::write(at("new"), "c").unwrap();
        assert!(told(&mut changes).await);
        std::fs::rename(at("new"), at("peaje.toml")).unwrap();
        assert!(told(&mut changes).await, "replaced");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("elsewhere", at("..data_tmp")).unwrap();
            assert!(told(&mut changes).await);
            std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
            assert!(told(&mut changes).await, "linked anew");
        }
    }

    #[test]
    fn every_error_of_a_file_is_a_text_of_its_own_with_its_place() {
        let errors = Config::parse("[server]\nlisten = 7\nnope = 1\n", "c.toml").unwrap_err();
        let texts = refusals(errors.clone());
        assert_eq!(texts.len(), errors.errors().len());
        assert!(texts[0].starts_with("error: c.toml:2:10 ") && texts[0].contains("^"), "{texts:#?}");
        let missing = Config::read(Path::new("/no/such/peaje.toml")).unwrap_err();
        assert_eq!(refusals(missing).len(), 1);
    }
}
