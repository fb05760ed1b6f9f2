//! The redeem room.
