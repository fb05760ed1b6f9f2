//! What a long stream takes: nothing that grows with it. Measured in a process of its own: the other tests of this binary
//! take memory at the same time.

use std::process::Command;

use bytes::Bytes;

use super::stage::*;

/// A gigabyte, bytes.
const LENGTH: usize = 1 << 30;
const PIECE: usize = 64 << 10;
const MAX_GROWTH: usize = 8 << 20;

/// What this process has in memory, bytes. The proxy, its upstream and its client are all in it.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() * 1024
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
fn memory_stays_flat_while_a_gigabyte_streams_by() {
    let alone = ["--exact", "memory::alone", "--ignored", "--nocapture"];
    let run = Command::new(std::env::current_exe().unwrap()).args(alone).output().unwrap();
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && told.contains("1 passed"), "{told}{}", String::from_utf8_lossy(&run.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by memory_stays_flat_while_a_gigabyte_streams_by"]
async fn alone() {
    let site = Site::open().await;
    // One event that is longer than all memory it may take, then many.
    let long = [b"data: {\"text\":\"".to_vec(), vec![b'x'; PIECE]].concat();
    let text = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "word ".repeat(200));
    let many = Bytes::from(text.repeat(PIECE / text.len()));
    let frames = site.api.next_live(&[("content-type", "text/event-stream")]);
    let writing = tokio::spawn(async move {
        send(&frames, long).await;
        let filling = Bytes::from(vec![b'y'; PIECE]);
        let mut sent = 0;
        while sent < LENGTH / 2 {
            send(&frames, filling.clone()).await;
            sent += filling.len();
        }
        send(&frames, "\"}\n\n").await;
        while sent < LENGTH {
            send(&frames, many.clone()).await;
            sent += many.len();
        }
        send(&frames, "data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n").await;
    });
    let mut answer = site.ask("/tokens").await;
    let (mut got, mut before, mut most) = (0, 0, 0);
    while let Some(piece) = answer.piece().await {
        got += piece.unwrap().len();
        // The first part sets up what stays: buffers of sockets, and of the allocator.
        if before == 0 && got > LENGTH / 16 {
            before = resident();
        } else if before > 0 && got % (1 << 20) < PIECE {
            most = most.max(resident());
        }
    }
    tokio::time::timeout(PATIENCE, writing).await.unwrap().unwrap();
    assert!(got > LENGTH);
    assert_eq!(site.charged(), price_of_tokens(1, 0, 0, 2));
    println!("{before} bytes became {most}");
    assert!(before > 0 && most < before + MAX_GROWTH, "{before} bytes became {most}");
}
