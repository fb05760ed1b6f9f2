//! Any text as a config file.

#![no_main]

#[path = "../config_case.rs"]
mod config_case;

libfuzzer_sys::fuzz_target!(|text: &str| {
    config_case::run(text);
});
