//! Models: sample servers that answer as OpenAI's and Anthropic's do.

use std::time::{Duration, Instant};

use serde_json::json;

use super::stage::*;

/// The answer of an OpenAI-style server in pieces, and what `/tokens` charges for it.
pub(crate) fn openai() -> (Vec<String>, u128) {
    let chunk = |text: &str| {
        let chunk =
            json!({"object": "chat.completion.chunk", "choices": [{"delta": {"content": text}}], "usage": null});
        format!("data: {chunk}\n\n")
    };
    let mut pieces: Vec<_> = (0..40).map(|number| chunk(&format!("word{number} "))).collect();
    pieces.push(chunk("the \"usage\": {\"prompt_tokens\": 1, \"completion_tokens\": 1}\n\ndata: {\"usage\":{}}"));
    let usage =
        json!({"prompt_tokens": 1_000, "completion_tokens": 321, "prompt_tokens_details": {"cached_tokens": 601}});
    pieces.push(format!("data: {}\n\n", json!({"choices": [], "usage": usage})));
    pieces.push("data: [DONE]\n\n".to_owned());
    (pieces, price_of_tokens(399, 601, 0, 321))
}

/// The same of an Anthropic-style server.
pub(crate) fn anthropic() -> (Vec<String>, u128) {
    let event = |name: &str, data: serde_json::Value| format!("event: {name}\r\ndata: {data}\r\n\r\n");
    let usage = json!({"input_tokens": 90, "cache_read_input_tokens": 80, "cache_creation_input_tokens": 7, "output_tokens": 1});
    let mut pieces = vec![event("message_start", json!({"type": "message_start", "message": {"usage": usage}}))];
    let text = |text: &str| {
        event(
            "content_block_delta",
            json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}),
        )
    };
    pieces.extend((0..40).map(|number| text(&format!("word{number} "))));
    pieces.push(text("{\"type\":\"message_delta\",\"usage\":{\"output_tokens\":2}}"));
    for output in [40, 44] {
        let delta = json!({"type": "message_delta", "delta": {}, "usage": {"output_tokens": output}});
        pieces.push(event("message_delta", delta));
    }
    pieces.push(event("message_stop", json!({"type": "message_stop"})));
    (pieces, price_of_tokens(90, 80, 7, 44))
}

const SSE: &[(&str, &str)] = &[("content-type", "text/event-stream; charset=utf-8")];

/// Cuts a text anywhere, by a sequence that depends on the seed alone.
fn cut(text: &str, seed: u64) -> Vec<Vec<u8>> {
    let (mut state, mut rest, mut pieces) = (seed | 1, text.as_bytes(), Vec::new());
    while !rest.is_empty() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let length = usize::try_from(state >> 33).unwrap() % 97 + 1;
        let (piece, left) = rest.split_at(length.min(rest.len()));
        pieces.push(piece.to_vec());
        rest = left;
    }
    pieces
}

#[tokio::test]
async fn streams_pass_byte_for_byte_and_are_charged_by_their_reports() {
    let site = Site::open().await;
    for seed in 0..8 {
        for (pieces, price) in [openai(), anthropic()] {
            let (text, before) = (pieces.concat(), site.charged());
            let frames = site.api.next_live(SSE);
            let pieces = cut(&text, seed);
            let writing = tokio::spawn(async move {
                for piece in pieces {
                    send(&frames, piece).await;
                }
            });
            let mut answer = site.ask("/tokens").await;
            assert_eq!((answer.status, answer.receipt()), (200, None), "nothing is known at the head");
            assert_eq!(answer.headers["cache-control"], "private");
            assert_eq!(String::from_utf8(answer.rest().await).unwrap(), text, "seed {seed}");
            assert_eq!(site.charged() - before, price, "seed {seed}: it is charged when its end is seen");
            soon(writing).await.unwrap();
        }
    }
    assert!(site.api.seen().iter().all(|headers| headers["accept-encoding"] == "identity"));
}

#[tokio::test]
async fn a_client_that_takes_trailers_finds_its_receipt_there() {
    let site = Site::open().await;
    let (pieces, price) = openai();
    for (turn, version) in (1..).zip(["h1", "h1 with trailers", "h2"]) {
        let frames = site.api.next_live(SSE);
        let text = pieces.concat();
        tokio::spawn(async move { send(&frames, text).await });
        let mut answer = match version {
            "h1" => site.ask("/tokens").await,
            "h2" => site.ask_h2("/tokens").await,
            _ => site.ask_taking_trailers("/tokens").await,
        };
        assert_eq!(answer.rest().await, pieces.concat().into_bytes());
        let expected = (version != "h1").then_some((price, turn * price));
        assert_eq!((sums(answer.receipt()), sums(answer.late_receipt())), (None, expected), "{version}");
        assert_eq!(answer.headers.contains_key("trailer"), version != "h1");
    }
}

/// How long each event of an answer is on its way to its client. An event is written once the one before was read, so
/// whoever kept one back until there is more would keep it for ever.
async fn delays(frames: Frames, mut answer: Answer) -> Vec<Duration> {
    let mut delays = Vec::new();
    for number in 0..6 {
        let event = format!("data: {{\"number\":{number}}}\n\n");
        let sent = Instant::now();
        send(&frames, event.clone()).await;
        let piece = answer.piece().await.unwrap().unwrap();
        delays.push(sent.elapsed());
        assert_eq!(piece, event);
    }
    send(&frames, "data: {\"usage\":{\"prompt_tokens\":1}}\n\n").await;
    drop(frames);
    answer.rest().await;
    delays
}

/// The head and every event after it are given on at once. A busy machine delays what does not pass the proxy as well,
/// so both are measured, in turns, and the way through the proxy may take five milliseconds more. The median of many counts, in the best of several tries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_arrives_within_five_milliseconds() {
    const LIMIT: Duration = Duration::from_millis(5);
    const TRIES: usize = 10;
    let site = Site::open().await;
    let median = |mut delays: Vec<Duration>| {
        delays.sort_unstable();
        delays[delays.len() / 2]
    };
    let mut tries = Vec::new();
    for _ in 0..TRIES {
        // Of the first events, and of those after them.
        let mut direct = [Vec::new(), Vec::new()];
        let mut proxied = [Vec::new(), Vec::new()];
        for _ in 0..15 {
            let frames = site.api.next_live(SSE);
            let to_the_api = delays(frames, site.ask_the_api("/tokens").await).await;
            let frames = site.api.next_live(SSE);
            let to_the_proxy = delays(frames, site.ask("/tokens").await).await;
            for (all, delays) in [(&mut direct, to_the_api), (&mut proxied, to_the_proxy)] {
                all[0].push(delays[0]);
                all[1].extend_from_slice(&delays[1..]);
            }
        }
        let medians = [direct.map(median), proxied.map(median)];
        let [direct, proxied] = medians;
        if direct.iter().zip(proxied).all(|(direct, proxied)| proxied < *direct + LIMIT) {
            return;
        }
        tries.push(medians);
    }
    panic!("first bytes and events are late; past the proxy and through it: {tries:?}");
}

#[tokio::test]
async fn what_cannot_be_read_or_says_nothing_costs_the_most() {
    let site = Site::open().await;
    let usage = r#"{"usage":{"prompt_tokens":10,"completion_tokens":1}}"#;
    let json = ("content-type", "application/json");
    let price = price_of_tokens(10, 0, 0, 1);
    for (headers, body, expected) in [
        (vec![json], usage, price),
        (vec![json, ("content-encoding", "identity")], usage, price),
        (vec![], usage, price),
        (vec![json, ("content-encoding", "gzip")], usage, MOST),
        (vec![json], r#"{"choices":[{"usage":{"prompt_tokens":1}}]}"#, MOST),
        (vec![json], r#"{"usage":{"prompt_tokens":10.5,"completion_tokens":1}}"#, MOST),
        (vec![json], r#"{"usage":{"prompt_tokens":99999999999999999999999}}"#, MOST),
        (vec![("content-type", "text/event-stream")], usage, MOST),
        (vec![("content-type", "text/event-stream")], "data: {\"usage\":{\"prompt_tokens\":0}}\n\n", 7),
        (vec![("content-type", "text/html")], "<p>usage</p>", MOST),
    ] {
        let before = site.charged();
        site.api.next(whole(&headers, body));
        let mut answer = site.ask("/tokens").await;
        assert_eq!(answer.rest().await, body.as_bytes());
        assert_eq!(site.charged() - before, expected, "{headers:?} {body}");
    }
}
