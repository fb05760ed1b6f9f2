//! Any bytes as what a client writes to the proxy.

#![no_main]

use std::sync::LazyLock;

#[path = "../request_case.rs"]
mod request_case;

static HOUSE: LazyLock<request_case::House> = LazyLock::new(request_case::House::open);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    HOUSE.run(bytes);
});
