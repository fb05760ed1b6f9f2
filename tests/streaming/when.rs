//! When an answer leaves, with or without its receipt, and the end of one that was streamed.

use http::Method;

use super::stage::*;

const SMALL: usize = 256 * 1024;

#[tokio::test]
async fn a_small_answer_has_its_receipt_in_its_head_and_a_larger_one_has_not() {
    let site = Site::open().await;
    let json = ("content-type", "application/json");
    for (size, small) in [(1, true), (SMALL, true), (SMALL + 1, false)] {
        let body = vec![b'x'; size];
        let price = MOST.min(2 * size as u128);
        for version in ["h1", "h2"] {
            let before = site.charged();
            site.api.next(whole(&[json], body.clone()));
            let mut answer = if version == "h1" { site.ask("/bytes").await } else { site.ask_h2("/bytes").await };
            assert_eq!(answer.headers["content-length"], size.to_string());
            if small {
                assert_eq!(sums(answer.receipt()), Some((price, before + price)), "{size}");
            } else {
                assert_eq!(answer.receipt(), None, "{size}");
            }
            assert_eq!(answer.rest().await.len(), size);
            assert_eq!(site.charged() - before, price, "{size} {version}");
            let late = (!small && version == "h2").then_some((price, before + price));
            assert_eq!(sums(answer.late_receipt()), late, "{size} {version}");
        }
    }
}

#[tokio::test]
async fn an_answer_without_a_body_is_charged_with_its_head() {
    let site = Site::open().await;
    let mut no_content = whole(&[("x-pages", "2")], "");
    *no_content.status_mut() = http::StatusCode::NO_CONTENT;
    site.api.next(no_content);
    let mut answer = site.ask("/pages").await;
    assert_eq!((answer.status, sums(answer.receipt())), (204, Some((205, 205))));
    assert_eq!(answer.rest().await, b"");
    // What has no body may say how long it would be.
    site.api.next(whole(&[("x-pages", "3"), ("content-type", "text/event-stream")], vec![0; 1_000]));
    let mut answer = site.ask_with(site.request("/pages").method(Method::HEAD)).await;
    assert_eq!(sums(answer.receipt()), Some((305, 510)));
    assert_eq!(answer.headers["content-length"], "1000");
    assert_eq!(answer.rest().await, b"");
    // No model has said anything in it.
    site.api.next(whole(&[("content-type", "application/json")], vec![0; 1_000]));
    let answer = site.ask_with(site.request("/tokens").method(Method::HEAD)).await;
    assert_eq!(sums(answer.receipt()), Some((7, 517)));
}

#[tokio::test]
async fn a_failed_answer_costs_nothing_however_it_is_metered() {
    let site = Site::open().await;
    let payment = site.header("/fixed");
    for path in ["/tokens", "/bytes", "/seconds", "/events", "/pages", "/upload"] {
        let mut failed = whole(&[("x-pages", "9"), ("settlement-overrides", r#"{"amount":"9"}"#)], "out of order");
        *failed.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        site.api.next(failed);
        let mut answer = site.ask(path).await;
        assert_eq!((answer.status, answer.receipt()), (500, None), "{path}");
        assert_eq!(answer.rest().await, b"out of order");
    }
    assert_eq!(site.charged(), 0);
    assert_eq!(site.header("/fixed"), payment, "and the same voucher is good again");
}

#[tokio::test]
async fn an_upstream_reports_in_headers_and_in_trailers() {
    let site = Site::open().await;
    // What it announces, what it says in its head, and in its trailers; the charge; whether it is known with the head.
    let cases = [
        ("x-pages", vec![("x-pages", "4")], vec![], 405, false),
        ("x-pages", vec![], vec![("x-pages", "3")], 305, false),
        ("x-pages", vec![("x-pages", "4")], vec![("x-pages", "3")], 305, false),
        ("x-pages", vec![("x-pages", "4")], vec![("x-pages", "many")], MOST, false),
        ("x-pages", vec![], vec![], MOST, false),
        ("x-pages", vec![("x-pages", "-4")], vec![], MOST, false),
        ("x-pages", vec![("x-pages", "4.0")], vec![], MOST, false),
        ("x-pages", vec![("x-pages", "99999999999999999999999999")], vec![], MOST, false),
        ("settlement-overrides", vec![("x-pages", "4")], vec![("settlement-overrides", r#"{"amount":"9"}"#)], 9, false),
        ("settlement-overrides", vec![], vec![("settlement-overrides", r#"{"amount":"0"}"#)], 0, false),
        ("settlement-overrides", vec![], vec![("settlement-overrides", r#"{"amount":"0.01%"}"#)], 100, false),
        ("settlement-overrides", vec![], vec![("settlement-overrides", r#"{"amount":"$2"}"#)], MOST, false),
        ("x-pages", vec![("settlement-overrides", r#"{"amount":"8"}"#)], vec![("x-pages", "3")], 8, true),
    ];
    for (announced, head, trailers, expected, known) in cases {
        let before = site.charged();
        let headers: Vec<_> = [("trailer", announced)].into_iter().chain(head.clone()).collect();
        let frames = site.api.next_live(&headers);
        let sent = trailers.clone();
        tokio::spawn(async move {
            send(&frames, "a page").await;
            if !sent.is_empty() {
                send_trailers(frames, &sent).await;
            }
        });
        let mut answer = site.ask_taking_trailers("/pages").await;
        let case = format!("{head:?} {trailers:?}");
        assert_eq!(answer.rest().await, b"a page", "{case}");
        assert_eq!(site.charged() - before, expected, "{case}");
        let told = Some((expected, before + expected));
        let receipts = (sums(answer.receipt()), sums(answer.late_receipt()));
        assert_eq!(receipts, if known { (told, None) } else { (None, told) }, "{case}");
        assert!(!answer.headers.contains_key("settlement-overrides"), "{case}");
        assert!(!answer.trailers.contains_key("settlement-overrides"), "{case}");
        if announced == "x-pages" && !trailers.is_empty() {
            assert_eq!(answer.trailers["x-pages"], trailers[0].1, "its own trailers pass");
        }
    }
    assert!(site.api.seen().iter().all(|headers| headers["te"] == "trailers"), "it is asked for trailers");
}

#[tokio::test]
async fn bytes_events_and_time_are_counted() {
    let site = Site::open().await;
    let sse = [("content-type", "text/event-stream")];
    let frames = site.api.next_live(&sse);
    tokio::spawn(async move {
        for piece in ["data: a\n", "\n: ping\n\ndata: b\r\n\r", "\ndata: c\n\ndata: unfinished"] {
            send(&frames, piece).await;
        }
    });
    site.ask("/events").await.rest().await;
    assert_eq!(site.charged(), 30);
    // Events that cannot be counted.
    site.api.next(whole(&[("content-type", "text/event-stream"), ("content-encoding", "br")], "data: a\n\n"));
    site.ask("/events").await.rest().await;
    assert_eq!(site.charged(), 30 + MOST);

    let site = Site::open().await;
    let frames = site.api.next_live(&[]);
    tokio::spawn(async move {
        for piece in [vec![b'x'; 10], vec![b'y'; 20_000]] {
            send(&frames, piece).await;
        }
    });
    assert_eq!(site.ask("/bytes").await.rest().await.len(), 20_010);
    assert_eq!(site.charged(), 2 * 20_010);

    let site = Site::open().await;
    site.api.next(whole(&[], "read"));
    let mut answer = site.ask_of(site.request("/upload"), vec![b'x'; 70_000]).await;
    assert_eq!(answer.rest().await, b"read");
    assert_eq!(site.charged(), 3 * 70_000);

    let site = Site::open().await;
    let frames = site.api.next_live(&[]);
    let begun = std::time::Instant::now();
    let mut answer = site.ask("/seconds").await;
    send(&frames, "x").await;
    tokio::time::sleep(std::time::Duration::from_millis(120)).await;
    drop(frames);
    answer.rest().await;
    let most = begun.elapsed().as_millis();
    assert!((120..=most).contains(&site.charged()), "{} of {most}", site.charged());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_is_held_back_until_the_charge_is_durable_and_no_piece_is() {
    for version in ["h1", "h2"] {
        let disk = Disk::default();
        let (accounts, _) = peaje::gate::Accounts::open(disk.clone()).unwrap();
        let site = Site::with(accounts).await;
        let frames = site.api.next_live(&[]);
        let mut answer = if version == "h1" { site.ask("/bytes").await } else { site.ask_h2("/bytes").await };
        disk.stall();
        for piece in ["first", "last"] {
            send(&frames, piece).await;
            assert_eq!(answer.piece().await.unwrap().unwrap(), piece);
        }
        drop(frames);
        eventually("it is charged", || site.charged() == 18).await;
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(100), answer.piece()).await;
        assert!(waiting.is_err(), "{version}: its end was given out before its charge was durable");
        disk.go_on(false);
        assert!(answer.piece().await.is_none(), "{version}");

        // The same with a length, after which nothing comes: the last frame is what is held back.
        let body = vec![b'x'; SMALL + 1];
        site.api.next(whole(&[], body.clone()));
        // Before the question: the whole of it may be there, and charged, when its first bytes are seen.
        disk.stall();
        let mut answer = if version == "h1" { site.ask("/bytes").await } else { site.ask_h2("/bytes").await };
        let mut got = 0;
        while let Ok(Some(piece)) = tokio::time::timeout(std::time::Duration::from_millis(300), answer.piece()).await {
            got += piece.unwrap().len();
        }
        assert!(got < body.len(), "{version}: {got}");
        disk.go_on(false);
        assert_eq!(got + answer.rest().await.len(), body.len(), "{version}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_cannot_be_charged_does_not_look_whole() {
    for (version, sized) in [("h1", false), ("h2", false), ("h1", true)] {
        let disk = Disk::default();
        let (accounts, _) = peaje::gate::Accounts::open(disk.clone()).unwrap();
        let site = Site::with(accounts).await;
        disk.stall();
        if sized {
            site.api.next(whole(&[], vec![b'x'; SMALL + 1]));
        } else {
            let frames = site.api.next_live(&[]);
            tokio::spawn(async move { send(&frames, "all of it").await });
        }
        let mut answer = if version == "h1" { site.ask("/bytes").await } else { site.ask_h2("/bytes").await };
        assert_eq!((answer.status, answer.receipt()), (200, None));
        eventually("its charge waits for the disk", || site.charged() > 0).await;
        disk.go_on(true);
        let end = loop {
            match answer.piece().await {
                Some(Ok(_)) => {}
                end => break end,
            }
        };
        assert!(end.is_some_and(|end| end.is_err()), "{version}: it ended as if it were whole");
    }
}
