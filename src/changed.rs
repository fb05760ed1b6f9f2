//! How it is noticed that a file was changed, and that somebody says so.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What tells a file that was rewritten or replaced from one that was not, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Mark {
    /// Nothing, where there is no such file.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Some(Self { modified: metadata.modified().ok(), length: metadata.len(), inode })
    }
}

/// A file that is read, and what it was like before that: what changes while it is read is a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    path: PathBuf,
    mark: Option<Mark>,
}

impl Seen {
    /// To be asked for before the file is read.
    pub(crate) fn before_reading(path: PathBuf) -> Self {
        Self { mark: Mark::of(&path), path }
    }

    /// The same file as it is now.
    pub(crate) fn again(&self) -> Self {
        Self::before_reading(self.path.clone())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// SIGHUP, by which a terminal that closes and an operator that says `reload` ask for the same. Where somebody listens,
/// neither ends the process.
pub(crate) struct Hangups {
    #[cfg(unix)]
    signals: Option<tokio::signal::unix::Signal>,
}

impl Hangups {
    pub(crate) fn listen() -> Self {
        Self {
            #[cfg(unix)]
            signals: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok(),
        }
    }

    /// Waits for one; for ever, where there is no such thing.
    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        if let Some(signals) = &mut self.signals
            && signals.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}
