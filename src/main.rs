//! The `peaje` binary.

fn main() {}
