//! The time, since 1970.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in seconds. A clock before 1970 reads as 0, which makes every view too old and every authorization early: closed,
/// not open.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Now, in milliseconds.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}
