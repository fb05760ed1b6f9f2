//! What cannot be seen from outside: steps of the schema, settings, and what a failed commit leaves.

use rusqlite::ffi;
use tempfile::TempDir;

use super::*;
use crate::ledger::{Snapshot, View};
use crate::protocol::{Address, Amount, ChannelConfig, ChannelId, Hash};
use crate::store::{Booking, ChannelEntry};

const IDENTITY: Identity = Identity { chain_id: 1, settlement: Address([9; 20]) };

fn entry(channel: u64, version: u64) -> Entry {
    let mut id = [0; 32];
    id[24..].copy_from_slice(&channel.to_be_bytes());
    let config = ChannelConfig {
        payer: Address([1; 20]),
        payer_authorizer: Address([2; 20]),
        receiver: Address([3; 20]),
        receiver_authorizer: Address([4; 20]),
        token: Address([5; 20]),
        withdraw_delay: 900,
        salt: Hash(id),
    };
    let charged = Amount::new(u128::from(version));
    let snapshot = Snapshot {
        id: ChannelId(id),
        config,
        view: View::default(),
        viewed_at: 0,
        charged,
        latest: None,
        spent_up_to: None,
        open_refund: None,
        unclaimed_since: None,
    };
    let row = ChannelRow { snapshot, version, last_deposit: None };
    let booking = Booking::Charge { route: "r".into(), amount: Amount::new(1), at: 60 };
    Entry::Channel(Box::new(ChannelEntry { row, booking }))
}

fn count(connection: &Connection, table: &str) -> u32 {
    connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

fn version(connection: &Connection) -> u32 {
    schema::version_of(connection, Path::new("here"), u32::MAX).unwrap()
}

#[test]
fn books_of_version_1_are_brought_to_the_newest() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(directory::BOOKS_FILE);
    let mut connection = Connection::open(&path).unwrap();
    schema::migrate(&mut connection, 0, &schema::MIGRATIONS[..1]).unwrap();
    assert_eq!(version(&connection), 1);
    drop(connection);
    let mut store = SqliteStore::open(directory.path(), IDENTITY).unwrap();
    store.commit(&[entry(1, 1)]).unwrap();
    assert_eq!(version(&store.connection), schema::newest(schema::MIGRATIONS));
}

/// Its rows are sealed as they were, and nothing is spent above what was charged.
#[test]
fn books_of_version_2_are_read_and_brought_to_the_newest() {
    let directory = TempDir::new().unwrap();
    let Entry::Channel(old) = entry(1, 1) else { unreachable!() };
    SqliteStore::open(directory.path(), IDENTITY).unwrap().commit(&[entry(1, 1)]).unwrap();
    let connection = Connection::open(directory.path().join(directory::BOOKS_FILE)).unwrap();
    connection.execute_batch("ALTER TABLE channels DROP COLUMN spent_up_to; PRAGMA user_version = 2;").unwrap();
    let seal: u32 = connection.query_row("SELECT seal FROM channels", [], |row| row.get(0)).unwrap();
    assert_eq!(seal, 2_052_649_853, "as version 2 sealed this row");
    drop(connection);
    let mut found = Vec::new();
    let mut keep = |row: Result<ChannelRow, StoreError>| row.map(|row| found.push(row));
    Reader::open(directory.path()).unwrap().channels_checked(&mut keep).unwrap();
    let mut store = SqliteStore::open(directory.path(), IDENTITY).unwrap();
    assert_eq!(version(&store.connection), schema::newest(schema::MIGRATIONS));
    let mut next = old.clone();
    next.row.version = 2;
    next.row.snapshot.spent_up_to = Some(Amount::new(7));
    store.commit(&[Entry::Channel(next.clone())]).unwrap();
    store
        .channels(&mut |row| {
            found.push(row);
            Ok(())
        })
        .unwrap();
    assert_eq!(found, [old.row, next.row]);
}

#[test]
fn steps_of_the_schema_are_numbered_one_after_the_other() {
    let versions: Vec<u32> = schema::MIGRATIONS.iter().map(|(version, _)| *version).collect();
    assert_eq!(versions, (1..=schema::newest(schema::MIGRATIONS)).collect::<Vec<_>>());
}

#[test]
fn a_step_is_made_whole_or_not_at_all() {
    let steps = [
        schema::MIGRATIONS[0],
        (2, "CREATE TABLE second (x) STRICT; -- not a type"),
        (3, "CREATE TABLE third (x INTEGER) STRICT"),
    ];
    let good = [steps[0], (2, "CREATE TABLE second (x INTEGER) STRICT"), steps[2]];
    let half = [steps[0], (2, "CREATE TABLE second (x INTEGER) STRICT; INSERT INTO nowhere VALUES (1)"), steps[2]];
    let mut connection = Connection::open_in_memory().unwrap();
    schema::migrate(&mut connection, 0, &steps[..1]).unwrap();
    for broken in [steps, half] {
        schema::migrate(&mut connection, 1, &broken).unwrap_err();
        assert_eq!(version(&connection), 1);
        assert!(connection.prepare("SELECT * FROM second").is_err());
    }
    schema::migrate(&mut connection, 1, &good).unwrap();
    assert_eq!((version(&connection), count(&connection, "second"), count(&connection, "third")), (3, 0, 0));
    let error = schema::version_of(&connection, Path::new("here"), 2).unwrap_err();
    assert!(matches!(error, StoreError::TooNew { found: 3, known: 2 }), "{error:?}");
}

#[test]
fn a_full_disk_is_final_and_loses_nothing() {
    let directory = TempDir::new().unwrap();
    let mut store = SqliteStore::open(directory.path(), IDENTITY).unwrap();
    store.connection.pragma_update(None, "max_page_count", 60).unwrap();
    let mut written = 0;
    let error = loop {
        match store.commit(&[entry(written, 1), entry(written, 2)]) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    // A row that fits would be refused as well.
    let again = store.commit(&[entry(0, 3)]).unwrap_err();
    assert!(matches!(again, StoreError::Full(_)), "{again:?}");
    drop(store);
    let mut store = SqliteStore::open(directory.path(), IDENTITY).unwrap();
    let mut rows = 0;
    store
        .channels(&mut |row| {
            assert_eq!(row.version, 2);
            rows += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!((rows, u64::from(count(&store.connection, "all_charges"))), (written, written));
    store.commit(&[entry(0, 3)]).unwrap();
}

#[test]
fn a_failed_commit_leaves_a_note_and_the_log_alone() {
    let directory = TempDir::new().unwrap();
    let mut store = SqliteStore::open(directory.path(), IDENTITY).unwrap();
    store.commit(&[entry(1, 1)]).unwrap();
    store.commit(&[entry(1, 9)]).unwrap_err();
    assert_eq!(count(&store.connection, "incidents"), 1);
    let pages: u32 = store.connection.pragma_query_value(None, "wal_autocheckpoint", |row| row.get(0)).unwrap();
    assert_eq!(pages, 0);
    let log = directory.path().join("books.sqlite3-wal");
    let length = std::fs::metadata(&log).unwrap().len();
    assert!(length > 0);
    drop(store);
    assert_eq!(std::fs::metadata(&log).unwrap().len(), length, "not copied at the end either");
}

#[test]
fn each_commit_is_forced_to_the_disk_and_the_log_is_copied_in_time() {
    let directory = TempDir::new().unwrap();
    let mut store = SqliteStore::open(directory.path(), IDENTITY).unwrap();
    let pragma = |store: &SqliteStore, name: &str| -> rusqlite::types::Value {
        store.connection.pragma_query_value(None, name, |row| row.get(0)).unwrap()
    };
    assert_eq!(pragma(&store, "synchronous"), rusqlite::types::Value::Integer(2));
    assert_eq!(pragma(&store, "journal_mode"), rusqlite::types::Value::Text("wal".to_owned()));
    assert_eq!(pragma(&store, "page_size"), rusqlite::types::Value::Integer(i64::from(PAGE_BYTES)));
    drop(store);
    let path = directory.path().join("other.sqlite3");
    let options = SqliteOptions { checkpoint_pages: 50, ..SqliteOptions::default() };
    store = SqliteStore::open_file(path.to_str().unwrap(), IDENTITY, &options).unwrap();
    for version in 1..=200 {
        store.commit(&[entry(1, version)]).unwrap();
    }
    let log = std::fs::metadata(directory.path().join("other.sqlite3-wal")).unwrap().len();
    assert!(log < 100 * u64::from(PAGE_BYTES), "{log}");
}

#[test]
fn an_exclusive_store_needs_no_shared_memory() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("books.sqlite3");
    let options = SqliteOptions { exclusive: true, ..SqliteOptions::default() };
    for version in 1..=2 {
        let mut store = SqliteStore::open_file(path.to_str().unwrap(), IDENTITY, &options).unwrap();
        store.commit(&[entry(1, version)]).unwrap();
        assert!(directory.path().join("books.sqlite3-wal").exists());
        assert!(!directory.path().join("books.sqlite3-shm").exists());
    }
}

#[test]
fn errors_say_what_can_be_done() {
    let error = |code: i32| rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
    let name = |error: StoreError| match error {
        StoreError::Full(_) => "full",
        StoreError::ReadOnly(_) => "read only",
        StoreError::Damaged { .. } => "damaged",
        StoreError::Path { .. } => "path",
        StoreError::Io { doing, .. } => doing,
        other => panic!("{other:?}"),
    };
    for (code, writes, opens) in [
        (ffi::SQLITE_FULL, "full", "full"),
        (ffi::SQLITE_READONLY, "read only", "read only"),
        (ffi::SQLITE_READONLY_DIRECTORY, "read only", "read only"),
        (ffi::SQLITE_CANTOPEN, "written", "path"),
        (ffi::SQLITE_PERM, "written", "path"),
        (ffi::SQLITE_CORRUPT, "damaged", "damaged"),
        (ffi::SQLITE_NOTADB, "damaged", "damaged"),
        (ffi::SQLITE_IOERR_FSYNC, "written", "opened"),
        (ffi::SQLITE_BUSY, "written", "opened"),
        (ffi::SQLITE_NOMEM, "written", "opened"),
    ] {
        assert_eq!(name(writing(error(code))), writes, "{code}");
        assert_eq!(name(opening(Path::new("here"))(error(code))), opens, "{code}");
        assert_eq!(name(repeat(&writing(error(code)))), writes, "{code}");
    }
}

/// The channel after a version, as `entry` makes it, with a view that changed with every third.
fn varied(version: u64, route: &str, at: u64) -> Entry {
    let Entry::Channel(mut entry) = entry(1, version) else { unreachable!("it is a channel's") };
    entry.row.snapshot.view.block = version / 3;
    entry.booking = Booking::Charge { route: route.into(), amount: Amount::new(1), at };
    Entry::Channel(entry)
}

#[test]
fn a_channel_that_changes_often_in_one_commit_is_as_its_last_row_says_and_adds_up() {
    let directory = TempDir::new().unwrap();
    let mut store = SqliteStore::open(directory.path(), IDENTITY).unwrap();
    let mut version = 0;
    // New, known in part (after the start below), and known whole; lines that end within a commit and between two.
    for length in [1, 5, 1, 2, 1, 1, 9, 1] {
        let entries: Vec<Entry> = (0..length)
            .map(|_| {
                version += 1;
                varied(version, if version.is_multiple_of(4) { "other" } else { "r" }, version / 5 * 60)
            })
            .collect();
        store.commit(&entries).unwrap();
        if version == 6 {
            drop(store);
            store = SqliteStore::open(directory.path(), IDENTITY).unwrap();
        }
        let Some(Entry::Channel(last)) = entries.last() else { unreachable!("a group is not empty") };
        let mut found = Vec::new();
        store
            .channels(&mut |row| {
                found.push(row);
                Ok(())
            })
            .unwrap();
        assert_eq!(found, std::slice::from_ref(&last.row));
        let sums: (i64, i64) = store
            .connection
            .query_row("SELECT sum(requests), sum(CAST(amount AS INTEGER)) FROM all_charges", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!(sums, (version.cast_signed(), version.cast_signed()));
    }
    let lines: u32 = store
        .connection
        .query_row("SELECT count(*) FROM (SELECT DISTINCT minute, route_number FROM all_charges)", [], |row| row.get(0))
        .unwrap();
    let expected: std::collections::BTreeSet<(u64, bool)> =
        (1..=version).map(|version| (version / 5, version.is_multiple_of(4))).collect();
    assert_eq!(usize::try_from(lines).unwrap(), expected.len());
}

#[test]
fn a_known_row_that_somebody_else_wrote_over_refuses_the_commit() {
    for version in [2_u64, 3, 4] {
        let directory = TempDir::new().unwrap();
        let mut store = SqliteStore::open(directory.path(), IDENTITY).unwrap();
        store.commit(&[entry(1, 1)]).unwrap();
        store.commit(&[entry(1, 2)]).unwrap();
        let other = Connection::open(directory.path().join(directory::BOOKS_FILE)).unwrap();
        other.execute("UPDATE channels SET version = ?1", params![version.cast_signed()]).unwrap();
        let outcome = store.commit(&[entry(1, 3), entry(1, 4)]);
        match version {
            2 => outcome.unwrap(),
            found => {
                let error = outcome.unwrap_err();
                let expected =
                    matches!(error, StoreError::Conflict { expected: 2, found: Some(there), .. } if there == found);
                assert!(expected, "{error:?}");
            }
        }
    }
}

#[test]
fn what_is_known_of_rows_is_bounded() {
    let directory = TempDir::new().unwrap();
    let mut store = SqliteStore::open(directory.path(), IDENTITY).unwrap();
    let many = u64::try_from(commit::MAX_KNOWN_ROWS).unwrap() + 10;
    let entries: Vec<Entry> = (0..many).map(|channel| entry(channel, 1)).collect();
    store.commit(&entries).unwrap();
    assert_eq!(store.known.len(), 10);
    // Forgotten, and known.
    store.commit(&[entry(0, 2), entry(many - 1, 2)]).unwrap();
}
