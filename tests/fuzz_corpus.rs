//! What the fuzz targets found worth keeping is tried with every test run, without the fuzzer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "fuzz/config_case.rs"]
mod config_case;
#[path = "support/read_payment.rs"]
mod read_payment;
#[path = "fuzz/request_case.rs"]
mod request_case;

/// The kept inputs of a target, by file name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = format!("{}/tests/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut inputs: Vec<_> = files
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 8, "{target} has a corpus");
    inputs
}

#[test]
fn kept_configs_are_read_or_refused_with_a_cause() {
    let read = corpus("config").into_iter().filter_map(|(name, text)| Some((name, String::from_utf8(text).ok()?)));
    let whole: Vec<_> = read.filter(|(_, text)| config_case::run(text)).map(|(name, _)| name).collect();
    assert!(whole.len() >= 3, "some of them are whole: {whole:?}");
    assert!(config_case::run(include_str!("../config.example.toml")));
}

#[test]
fn kept_headers_are_read_as_if_there_were_no_faster_way() {
    for (_, header) in corpus("headers") {
        read_payment::fuzz(&header);
    }
}

#[test]
fn kept_requests_harm_nobody() {
    let house = request_case::House::open();
    for (name, bytes) in corpus("request") {
        println!("{name}");
        house.run(&bytes);
    }
}
