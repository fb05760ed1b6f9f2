//! The shape of the books: what a file must be, and how an older one becomes it.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::failure::{opening, reading, refused, writing};
use super::row::Cells;
use crate::protocol::Address;
use crate::store::{Identity, StoreError};

/// Marks a database as Peaje's books: "peaj".
pub(super) const APPLICATION_ID: i32 = 0x7065_616a;

/// A step of the schema: the version it leads to, and how.
pub(super) type Migration = (u32, &'static str);

/// Every step, oldest first. What was released is never changed; what changes is one more step.
pub(super) const MIGRATIONS: &[Migration] = &[
    (1, include_str!("migrations/0001.sql")),
    (2, include_str!("migrations/0002.sql")),
    (3, include_str!("migrations/0003.sql")),
];

/// The highest version these steps lead to.
pub(super) fn newest(migrations: &[Migration]) -> u32 {
    migrations.iter().map(|(version, _)| *version).max().unwrap_or(0)
}

/// The schema version of a file that is Peaje's, or empty (0).
///
/// # Errors
/// [`StoreError::OtherBooks`] for another program's database, [`StoreError::TooNew`], and whatever reading meets.
pub(super) fn version_of(connection: &Connection, path: &Path, known: u32) -> Result<u32, StoreError> {
    let pragma =
        |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(opening(path));
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(opening(path))?;
    if application != i64::from(APPLICATION_ID) && (application, version, tables) != (0, 0, 0) {
        return Err(StoreError::OtherBooks {
            found: format!("another program (application id {application})"),
            expected: "peaje".to_owned(),
        });
    }
    let found = u32::try_from(version).unwrap_or(u32::MAX);
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    Ok(found)
}

/// Whose books these are, where they say so already.
pub(super) fn identity(connection: &Connection) -> Result<Option<Identity>, StoreError> {
    let mut statement = connection.prepare("SELECT chain_id, settlement FROM book").map_err(reading)?;
    let mut rows = statement.query([]).map_err(reading)?;
    let Some(found) = rows.next().map_err(reading)? else { return Ok(None) };
    let mut cells = Cells::of("the table book", found);
    Ok(Some(Identity { chain_id: cells.number("chain_id")?, settlement: Address(cells.bytes("settlement")?) }))
}

/// Refuses other books than these.
pub(super) fn check_identity(found: Option<Identity>, expected: Identity) -> Result<(), StoreError> {
    match found {
        Some(found) if found != expected => {
            Err(StoreError::OtherBooks { found: found.to_string(), expected: expected.to_string() })
        }
        _ => Ok(()),
    }
}

/// Brings a file from a version to the newest, each step whole or not at all.
pub(super) fn migrate(connection: &mut Connection, from: u32, migrations: &[Migration]) -> Result<(), StoreError> {
    for (version, sql) in migrations.iter().filter(|(version, _)| *version > from) {
        let step = |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", *version)?;
            transaction.commit()
        };
        step(connection).map_err(writing)?;
    }
    Ok(())
}

/// Writes down that the books were opened, and whose they are; the proof that they can be written.
pub(super) fn note_start(connection: &mut Connection, identity: Identity, now: u64) -> Result<(), StoreError> {
    let note = |connection: &mut Connection| {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let Identity { chain_id, settlement } = identity;
        transaction.execute(
            "INSERT OR IGNORE INTO book (only_row, chain_id, settlement, opened_at) VALUES (1, ?1, ?2, ?3)",
            params![chain_id.cast_signed(), settlement.0, now.cast_signed()],
        )?;
        transaction.execute(
            "INSERT INTO starts (at, version, process) VALUES (?1, ?2, ?3)",
            params![now.cast_signed(), env!("CARGO_PKG_VERSION"), std::process::id()],
        )?;
        transaction.commit()
    };
    note(connection).map_err(writing)
}

/// Sets a pragma that answers with what it became.
///
/// # Errors
/// It became something else.
pub(super) fn set(connection: &Connection, pragma: &'static str, value: &'static str) -> Result<(), StoreError> {
    let became: Option<String> = connection
        .query_row(&format!("PRAGMA {pragma} = {value}"), [], |row| row.get(0))
        .optional()
        .map_err(writing)?;
    match became {
        Some(became) if became.eq_ignore_ascii_case(value) => Ok(()),
        became => Err(refused("opened", format!("{pragma} is {became:?} here and cannot be {value}"))),
    }
}

/// Looks again at a pragma that was set, once something was written. The switch to a write-ahead log answers that it is
/// done before it commits, and nobody hears that the commit failed; the rollback journal that is then used instead loses
/// the last commit when power fails, because its deletion is not synced.
///
/// # Errors
/// It is something else.
pub(super) fn insist(connection: &Connection, pragma: &'static str, value: &'static str) -> Result<(), StoreError> {
    let is: String = connection.pragma_query_value(None, pragma, |row| row.get(0)).map_err(writing)?;
    if is.eq_ignore_ascii_case(value) {
        Ok(())
    } else {
        Err(refused("opened", format!("{pragma} is {is} here and cannot be {value}")))
    }
}
