//! Why books cannot be opened or written.

use std::path::PathBuf;

use crate::ledger::Violation;
use crate::protocol::ChannelId;

/// Why books cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the directory.
    #[error("the books in {} are in use by {}", directory.display(), owner(*.by))]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// The other process, where it left its number.
        by: Option<u32>,
    },
    /// The directory or a file in it cannot be used.
    #[error("cannot use {}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No room is left on the disk.
    #[error("the disk is full")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The file or its directory may only be read.
    #[error("the books may only be read")]
    ReadOnly(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The disk fails, or the database cannot do what it was asked.
    #[error("the books cannot be {doing}")]
    Io {
        /// What was tried: "read", "written", "opened".
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What is on disk is not what was written.
    #[error("the books are damaged: {what}")]
    Damaged {
        /// Where, and how it shows.
        what: String,
        /// What the database says, if it noticed.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A row is whole and cannot be true.
    #[error("the books of channel {channel} are damaged")]
    Impossible {
        /// The channel.
        channel: ChannelId,
        /// The invariant it breaks.
        #[source]
        violation: Violation,
    },
    /// The books are of another chain or contract.
    #[error("these are the books of {found}, not of {expected}")]
    OtherBooks {
        /// Whose they are.
        found: String,
        /// Whose they should be.
        expected: String,
    },
    /// A later version of this program wrote them.
    #[error("these books have schema version {found}; this program knows up to {known}")]
    TooNew {
        /// The version on disk.
        found: u32,
        /// The highest known.
        known: u32,
    },
    /// A channel's row is not the one that an entry builds on: somebody else writes here.
    #[error("channel {channel} was changed by somebody else: version {expected} was expected, {found:?} is there")]
    Conflict {
        /// The channel.
        channel: ChannelId,
        /// The version the entry builds on; 0 stands for no row.
        expected: u64,
        /// The version that is there.
        found: Option<u64>,
    },
}

impl StoreError {
    /// What to do about it, for people.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::InUse { .. } => {
                "one process owns a directory of books; stop the other one, or give this one a store.directory of its own"
            }
            Self::Path { .. } | Self::ReadOnly(_) => {
                "the directory must exist or be creatable, and belong to the user peaje runs as; see store.directory"
            }
            Self::Full(_) => {
                "make room on the disk that store.directory is on, then start again; nothing acknowledged is lost"
            }
            Self::Io { .. } => {
                "look at the system's log for disk errors; nothing acknowledged is lost as long as the disk is not"
            }
            Self::Damaged { .. } | Self::Impossible { .. } => {
                "do not delete anything: run `peaje ledger verify` for the whole list, and restore the latest backup \
                 (`peaje ledger backup`) or copy of the directory; without one, move the directory away and start anew: \
                 what was claimed on chain is the base then, and vouchers since the last claim are lost"
            }
            Self::OtherBooks { .. } => "give each chain a store.directory of its own",
            Self::TooNew { .. } => "run the newer version of peaje that wrote them",
            Self::Conflict { .. } => "make sure that only one peaje writes to these books, then start again",
        }
    }
}

fn owner(by: Option<u32>) -> String {
    by.map_or_else(|| "another process".to_owned(), |id| format!("process {id}"))
}
