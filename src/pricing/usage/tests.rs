use proptest::prelude::*;

use super::*;

fn tokens(input: u64, cached_input: u64, cache_write: u64, output: u64) -> Option<Tokens> {
    Some(Tokens { input, cached_input, cache_write, output })
}

fn of_json(text: &str) -> UsageReader {
    let mut reader = UsageReader::of_json();
    reader.read(text.as_bytes());
    reader
}

fn of_events(text: &str) -> UsageReader {
    let mut reader = UsageReader::of_events();
    reader.read(text.as_bytes());
    reader
}

/// A chat completion as a whole, and what it used.
const CHAT: &str = r#"{"id":"c1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant",
    "content":"the \"usage\": {\"prompt_tokens\": 1, \"completion_tokens\": 1} you asked for","tool_calls":[{"function":
    {"name":"f","arguments":"{\"usage\":{\"prompt_tokens\":2}}"}}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":120,
    "completion_tokens":45,"total_tokens":165,"prompt_tokens_details":{"cached_tokens":100,"audio_tokens":0},
    "completion_tokens_details":{"reasoning_tokens":30,"cached_tokens":9}}, "system_fingerprint": null}"#;

const CHAT_STREAM: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}],\"usage\":null}\n\n\
    data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":{\\\"prompt_tokens\\\":1}\"}}],\"usage\":null}\n\n\
    : a comment, data: {\"usage\":{\"prompt_tokens\":1}}\n\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":34,\"total_tokens\":46}}\n\n\
    data: [DONE]\n\n";

const RESPONSES_STREAM: &str = "event: response.created\r\n\
    data: {\"type\":\"response.created\",\"response\":{\"id\":\"r\",\"usage\":null}}\r\n\r\n\
    event: response.output_text.delta\r\n\
    data: {\"type\":\"response.output_text.delta\",\"delta\":\"usage\"}\r\n\r\n\
    event: response.completed\r\n\
    data: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"content\":[{\"usage\":{\"input_tokens\":1}}]}],\
    \"usage\":{\"input_tokens\":328,\"input_tokens_details\":{\"cached_tokens\":128},\"output_tokens\":52,\
    \"output_tokens_details\":{\"reasoning_tokens\":40},\"total_tokens\":380}}}\r\n\r\n";

const MESSAGES_STREAM: &str = "event: message_start\n\
    data: {\"type\":\"message_start\",\"message\":{\"role\":\"assistant\",\"content\":[],\"usage\":{\"input_tokens\":25,\
    \"cache_creation_input_tokens\":7,\"cache_read_input_tokens\":300,\"cache_creation\":{\"ephemeral_5m_input_tokens\":7},\
    \"output_tokens\":1,\"service_tier\":\"standard\"}}}\n\n\
    event: ping\ndata: {\"type\": \"ping\"}\n\n\
    event: content_block_delta\n\
    data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"text\":\"{\\\"usage\\\":{\\\"output_tokens\\\":0}}\"}}\n\n\
    event: message_delta\n\
    data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":9}}\n\n\
    event: message_delta\n\
    data: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":15}}\n\n\
    event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

#[test]
fn reports_are_read_from_json_bodies() {
    let cases = [
        (CHAT, tokens(20, 100, 0, 45)),
        (r#"{"object":"list","data":[],"usage":{"prompt_tokens":8,"total_tokens":8}}"#, tokens(8, 0, 0, 0)),
        (
            r#"{"type":"message","content":[{"type":"tool_use","input":{"usage":{"input_tokens":1,"output_tokens":1}}}],
               "usage":{"input_tokens":10,"cache_read_input_tokens":4,"cache_creation_input_tokens":3,"output_tokens":5}}"#,
            tokens(10, 4, 3, 5),
        ),
        (
            r#"{"usage":{"input_tokens":10,"input_tokens_details":{"cached_tokens":4},"output_tokens":5}}"#,
            tokens(6, 4, 0, 5),
        ),
        // One that writes both: what was asked with includes what came from the cache and went to it.
        (
            r#"{"usage":{"prompt_tokens":10,"cache_read_input_tokens":4,"cache_creation_input_tokens":3,
               "prompt_tokens_details":{"cached_tokens":4},"completion_tokens":5}}"#,
            tokens(3, 4, 3, 5),
        ),
        (r#"{"usage":{"prompt_tokens":1,"prompt_tokens_details":null,"completion_tokens":2}}"#, tokens(1, 0, 0, 2)),
        (r#"{"usage":{"prompt_tokens":4,"prompt_tokens_details":{"cached_tokens":9}}}"#, tokens(0, 9, 0, 0)),
    ];
    for (body, expected) in cases {
        assert_eq!(of_json(body).report(), expected, "{body}");
    }
}

#[test]
fn reports_are_read_from_streams_and_their_events_counted() {
    let chat = of_events(CHAT_STREAM);
    assert_eq!((chat.report(), chat.events()), (tokens(12, 0, 0, 34), 4));
    let responses = of_events(RESPONSES_STREAM);
    assert_eq!((responses.report(), responses.events()), (tokens(200, 128, 0, 52), 3));
    let messages = of_events(MESSAGES_STREAM);
    assert_eq!((messages.report(), messages.events()), (tokens(25, 300, 7, 15), 6));
    for ending in ["\r", "\r\n"] {
        let chat = of_events(&CHAT_STREAM.replace('\n', ending));
        assert_eq!((chat.report(), chat.events()), (tokens(12, 0, 0, 34), 4), "{ending:?}");
    }
    let mut counted = UsageReader::counting_events();
    counted.read(CHAT_STREAM.as_bytes());
    assert_eq!((counted.report(), counted.so_far(), counted.events()), (None, None, 4));
}

#[test]
fn what_is_known_at_the_beginning_is_no_report() {
    let (beginning, _) = MESSAGES_STREAM.split_once("event: ping").unwrap();
    let reader = of_events(beginning);
    assert_eq!((reader.report(), reader.so_far()), (None, tokens(25, 300, 7, 1)));
}

#[test]
fn nothing_else_is_taken_for_a_report() {
    let hostile = [
        "",
        "usage",
        "[]",
        r#""{\"usage\":{\"prompt_tokens\":1}}""#,
        r#"[{"usage":{"prompt_tokens":1}}]"#,
        r#"{"choices":[{"usage":{"prompt_tokens":1}}]}"#,
        r#"{"choices":{"usage":{"prompt_tokens":1}}}"#,
        r#"{"response":{"response":{"usage":{"prompt_tokens":1}}}}"#,
        r#"{"response":[{"usage":{"prompt_tokens":1}}]}"#,
        r#"{"text":"\",\"usage\":{\"prompt_tokens\":1}"}"#,
        r#"{"text":"\\\",\"usage\":{\"prompt_tokens\":1}"}"#,
        r#"{"usage":[{"prompt_tokens":1}]}"#,
        r#"{"usage":{"details":{"prompt_tokens":1}}}"#,
        r#"{"usage":{"prompt_tokens_details":{"cached_tokens":1}}}"#,
        r#"{"usage":{}}"#,
        r#"{"usage":null}"#,
        r#"{"usage":"prompt_tokens"}"#,
        r#"{"usage":{"total_tokens":5}}"#,
        r#"{"usages":{"prompt_tokens":1}}"#,
        r#"{"usage_":{"prompt_tokens":1}}"#,
        r#"{"us":1,"age":{"prompt_tokens":1}}"#,
        r#"{"us\u0061ge":{"prompt_tokens":1}}"#,
        r#"{"a_key_that_is_longer_than_any_that_matters_usage":{"prompt_tokens":1}}"#,
        // No whole numbers.
        r#"{"usage":{"prompt_tokens":1.0,"completion_tokens":1}}"#,
        r#"{"usage":{"prompt_tokens":1e2,"completion_tokens":1}}"#,
        r#"{"usage":{"prompt_tokens":-1,"completion_tokens":1}}"#,
        r#"{"usage":{"prompt_tokens":01,"completion_tokens":1}}"#,
        r#"{"usage":{"prompt_tokens":"1","completion_tokens":1}}"#,
        r#"{"usage":{"prompt_tokens":true,"completion_tokens":1}}"#,
        r#"{"usage":{"prompt_tokens":{},"completion_tokens":1}}"#,
        r#"{"usage":{"prompt_tokens":[1],"completion_tokens":1}}"#,
        r#"{"usage":{"prompt_tokens":1,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":"1"}}}"#,
        // A report that does not end, and texts that are none.
        r#"{"usage":{"prompt_tokens":1,"completion_tokens":1"#,
        r#"{"a":nope,"usage":{"prompt_tokens":1}}"#,
        r#"{"a":1 "usage":{"prompt_tokens":1}}"#,
        r#"{"a" 1,"usage":{"prompt_tokens":1}}"#,
        r#"{"a":1],"usage":{"prompt_tokens":1}}"#,
        r#"{,"usage":{"prompt_tokens":1}}"#,
        r#"{usage:{"prompt_tokens":1}}"#,
        "\u{1f}\u{8b}\u{8}",
    ];
    for body in hostile {
        assert_eq!(of_json(body).report(), None, "{body}");
        // The same as the data of an event, and as anything else that a line may be.
        assert_eq!(of_events(&format!("data: {body}\n\n")).report(), None, "{body}");
    }
    let report = r#"{"usage":{"prompt_tokens":1}}"#;
    assert_eq!(of_json(report).report(), tokens(1, 0, 0, 0));
    for line in ["data:", "data: ", "\u{feff}data: "] {
        assert_eq!(of_events(&format!("{line}{report}\n\n")).report(), tokens(1, 0, 0, 0), "{line}");
    }
    for line in ["", ":", "dat: ", "datas: ", "Data: ", " data: ", "event: ", "id: data: ", "\n\u{feff}data: "] {
        assert_eq!(of_events(&format!("{line}{report}\n\n")).report(), None, "{line}");
    }
    let deep = format!("{{\"a\":{}1{},\"usage\":{{\"prompt_tokens\":1}}}}", "[".repeat(127), "]".repeat(127));
    assert_eq!(of_json(&deep).report(), tokens(1, 0, 0, 0));
    let deeper = format!("{{\"a\":{}1{},\"usage\":{{\"prompt_tokens\":1}}}}", "[".repeat(128), "]".repeat(128));
    assert_eq!(of_json(&deeper).report(), None);
}

#[test]
fn the_last_report_counts_and_repairs_what_was_spoiled() {
    let usage = |text: &str| format!("data: {{\"usage\":{{{text}}}}}\n\n");
    let first = usage(r#""prompt_tokens":1,"completion_tokens":2"#);
    let cases = [
        (r#""prompt_tokens":1,"completion_tokens":7"#, tokens(1, 0, 0, 7)),
        (r#""completion_tokens":7"#, tokens(1, 0, 0, 7)),
        (r#""completion_tokens":null"#, tokens(1, 0, 0, 2)),
        (r#""completion_tokens":"7""#, None),
    ];
    for (second, expected) in cases {
        assert_eq!(of_events(&format!("{first}{}", usage(second))).report(), expected, "{second}");
        let repaired = format!("{first}{}{first}", usage(second));
        assert_eq!(of_events(&repaired).report(), tokens(1, 0, 0, 2), "{second}");
    }
    let lines = "{\"usage\":{\"prompt_tokens\":1}}\n{\"usage\":{\"prompt_tokens\":2}}\n";
    assert_eq!(of_json(lines).report(), tokens(2, 0, 0, 0));
    let twice = r#"{"usage":{"prompt_tokens":1,"prompt_tokens":2},"usage":{"completion_tokens":3}}"#;
    assert_eq!(of_json(twice).report(), tokens(2, 0, 0, 3));
}

#[test]
fn counts_are_capped() {
    for digits in ["1000000000000", "1000000000001", "18446744073709551616", &"9".repeat(5_000)] {
        let body = format!("{{\"usage\":{{\"prompt_tokens\":{digits}}}}}");
        assert_eq!(of_json(&body).report(), tokens(MAX_COUNT, 0, 0, 0), "{digits}");
    }
    assert_eq!(of_json("{\"usage\":{\"prompt_tokens\":999999999999}}").report(), tokens(MAX_COUNT - 1, 0, 0, 0));
}

#[test]
fn events_are_those_with_data_that_have_ended() {
    let cases = [
        ("", 0),
        ("data: a\n", 0),
        ("data: a\n\n", 1),
        ("data\n\n", 1),
        ("data:\n\n\n\n", 1),
        ("event: x\n\n", 0),
        (": ping\n\ndata: a\n\n", 1),
        ("data: a\ndata: b\n\ndata: c\n\n", 2),
        ("data: a\r\rdata: b\r\n\r\n", 2),
        ("\u{feff}data: a\n\n", 1),
    ];
    for (text, expected) in cases {
        assert_eq!(of_events(text).events(), expected, "{text:?}");
    }
    let split = "data: {\"usage\":\ndata: {\"prompt_tokens\":\ndata: 5}}\n\n";
    assert_eq!(of_events(split).report(), tokens(5, 0, 0, 0), "several lines are one text");
    let number = "data: {\"usage\":{\"prompt_tokens\":1\ndata: 5}}\n\n";
    assert_eq!(of_events(number).report(), None, "and a line feed is between them");
}

#[test]
fn what_is_kept_of_an_answer_is_small() {
    assert!(size_of::<UsageReader>() <= 384, "{}", size_of::<UsageReader>());
}

/// Bytes that are nearly what reports are made of.
fn soup() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\\",
        "\n",
        "\r",
        "\n\n",
        "data: ",
        "data:",
        "\"usage\":{",
        "\"response\":{",
        "\"message\":{",
        "\"prompt_tokens\":",
        "\"output_tokens\":",
        "\"input_tokens_details\":{\"cached_tokens\":",
        "12",
        "-",
        "1.5",
        "null",
        "true",
        "\u{feff}",
        " ",
        "text",
    ];
    let piece = proptest::sample::select(pieces.to_vec());
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn how_bytes_are_cut_does_not_matter(
        which in 0_usize..5, soup in soup(), cuts in proptest::collection::vec(0_usize..2_000, 0..12)
    ) {
        let known = [CHAT, CHAT_STREAM, RESPONSES_STREAM, MESSAGES_STREAM].map(str::as_bytes);
        let text = known.get(which).copied().unwrap_or(&soup);
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % (text.len() + 1)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        for make in [UsageReader::of_json, UsageReader::of_events, UsageReader::counting_events] {
            let (mut whole, mut cut, mut bytewise) = (make(), make(), make());
            whole.read(text);
            cuts.windows(2).for_each(|pair| cut.read(&text[pair[0]..pair[1]]));
            text.iter().for_each(|byte| bytewise.read(&[*byte]));
            let seen = |reader: &UsageReader| (reader.report(), reader.so_far(), reader.events());
            prop_assert_eq!(seen(&whole), seen(&cut));
            prop_assert_eq!(seen(&whole), seen(&bytewise));
        }
    }

    #[test]
    fn json_that_others_read_is_read_the_same(text in ".{0,40}", prompt in 0..=MAX_COUNT, output in 0..=MAX_COUNT) {
        let usage = serde_json::json!({"prompt_tokens": prompt, "completion_tokens": output});
        let noise = serde_json::json!({"text": text, "more": [text, {"usage": {"prompt_tokens": 1}}], "usage": usage});
        for body in [noise.to_string(), serde_json::to_string_pretty(&noise).unwrap()] {
            prop_assert_eq!(of_json(&body).report(), tokens(prompt, 0, 0, output));
        }
    }
}
