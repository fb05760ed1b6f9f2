//! What SQLite's errors mean to the books.

use std::path::{Path, PathBuf};

use rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
use rusqlite::{Error, ErrorCode};

use crate::store::StoreError;

/// For `map_err` of what reads.
pub(super) fn reading(error: Error) -> StoreError {
    failed("read", error)
}

/// For `map_err` of what writes.
pub(super) fn writing(error: Error) -> StoreError {
    failed("written", error)
}

/// For `map_err` of what opens the file at a path.
pub(super) fn opening(path: &Path) -> impl Fn(Error) -> StoreError {
    let path = PathBuf::from(path);
    move |error| match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied) => {
            StoreError::Path { path: path.clone(), source: std::io::Error::other(error) }
        }
        _ => failed("opened", error),
    }
}

/// An error of our own about books that can be reached and cannot do what they were asked.
pub(super) fn refused(doing: &'static str, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Io { doing, source: why.into() }
}

/// What is written there cannot have been written by this program.
pub(super) fn damaged(what: impl Into<String>) -> StoreError {
    StoreError::Damaged { what: what.into(), source: None }
}

fn failed(doing: &'static str, error: Error) -> StoreError {
    match (&error, error.sqlite_error_code()) {
        (_, Some(ErrorCode::DiskFull)) => StoreError::Full(error.into()),
        // The index of the log lies on the same disk, and has a code of its own for finding no room there.
        (Error::SqliteFailure(failure, _), _) if failure.extended_code == SQLITE_IOERR_SHMSIZE => {
            StoreError::Full(error.into())
        }
        (_, Some(ErrorCode::ReadOnly)) => StoreError::ReadOnly(error.into()),
        (_, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        | (
            Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::Utf8Error(..),
            _,
        ) => StoreError::Damaged {
            what: "the database file is not as it was written".to_owned(),
            source: Some(error.into()),
        },
        _ => StoreError::Io { doing, source: error.into() },
    }
}

/// The same refusal for whoever comes later; the original went to the first one.
pub(super) fn repeat(error: &StoreError) -> StoreError {
    let text = |source: &dyn std::error::Error| source.to_string().into();
    match error {
        StoreError::InUse { directory, by } => StoreError::InUse { directory: directory.clone(), by: *by },
        StoreError::Path { path, source } => {
            StoreError::Path { path: path.clone(), source: std::io::Error::new(source.kind(), source.to_string()) }
        }
        StoreError::Full(source) => StoreError::Full(text(source.as_ref())),
        StoreError::ReadOnly(source) => StoreError::ReadOnly(text(source.as_ref())),
        StoreError::Io { doing, source } => StoreError::Io { doing, source: text(source.as_ref()) },
        StoreError::Damaged { what, source } => {
            StoreError::Damaged { what: what.clone(), source: source.as_ref().map(|source| text(source.as_ref())) }
        }
        StoreError::Impossible { channel, violation } => {
            StoreError::Impossible { channel: *channel, violation: *violation }
        }
        StoreError::OtherBooks { found, expected } => {
            StoreError::OtherBooks { found: found.clone(), expected: expected.clone() }
        }
        StoreError::TooNew { found, known } => StoreError::TooNew { found: *found, known: *known },
        StoreError::Conflict { channel, expected, found } => {
            StoreError::Conflict { channel: *channel, expected: *expected, found: *found }
        }
    }
}
