//! The chain room.
