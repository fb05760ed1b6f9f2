//! Hot keys and cold ones: the same verdict for any bytes.

#![no_main]

#[path = "../hot_case.rs"]
mod hot_case;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    hot_case::run(data);
});
