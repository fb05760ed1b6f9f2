//! Any bytes as a payment header: read in one pass, and as if there were no faster way.

#![no_main]

#[path = "../../support/read_payment.rs"]
mod read_payment;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    read_payment::fuzz(data);
});
