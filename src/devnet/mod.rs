//! The devnet room.
