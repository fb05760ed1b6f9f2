//! The time, in Unix seconds.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now. A clock before 1970 reads as 0, which makes every view too old and every authorization early: closed, not open.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
