//! A lost answer costs once: our own agent, the real proxy, and something in between that cuts the first answer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/payer.rs"]
mod payer;
#[path = "support/serve.rs"]
mod serve;
#[path = "support/stage.rs"]
mod stage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use peaje::agent::{Agent, AgentConfig, AgentError, NoChain, PayRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use serve::Peaje;
use stage::{PRICE, Stage};

/// Passes everything on, but for the answers to the first so many paid requests: those it reads whole, and hangs up.
async fn cutting(to: SocketAddr, cuts: usize) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let left = Arc::new(AtomicUsize::new(cuts));
    tokio::spawn(async move {
        while let Ok((client, _)) = socket.accept().await {
            tokio::spawn(pass(client, to, Arc::clone(&left)));
        }
    });
    address
}

async fn pass(mut client: TcpStream, to: SocketAddr, left: Arc<AtomicUsize>) -> std::io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
    let mut is_paid = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                is_paid = String::from_utf8_lossy(&asked[..read]).to_ascii_lowercase().contains("payment-signature:");
                server.write_all(&asked[..read]).await?;
            }
            read = server.read(&mut answered) => {
                let read = read?;
                let one_less = |left: usize| left.checked_sub(1);
                let is_cut = is_paid && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok();
                if read == 0 || is_cut {
                    return Ok(());
                }
                client.write_all(&answered[..read]).await?;
            }
        }
    }
}

/// How often the upstream worked, and a stage where it counts that.
async fn counted() -> (Arc<AtomicUsize>, Stage) {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let api = Router::new().fallback(move || {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move { format!("answer {number}") }
    });
    (calls, Stage::set_with(api).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_costs_our_agent_once() {
    let (calls, stage) = counted().await;
    let mut peaje = Peaje::start(&stage.settings()).await;
    let payer = stage.payer(&peaje, 1);
    let agent = Agent::new(AgentConfig::new(payer.key.clone()), NoChain).unwrap();
    let direct: SocketAddr = peaje.url("").trim_start_matches("http://").parse().unwrap();
    // The first loses the answer to a deposit too, the second that to a voucher.
    for (round, cuts) in [(1_u128, 1), (2, 1), (3, 2), (4, 0)] {
        let between = cutting(direct, cuts).await;
        let answer = agent.pay(PayRequest::get(format!("http://{between}/a?round={round}"))).await.unwrap();
        let replayed = answer.headers().contains_key("idempotent-replayed");
        assert_eq!(replayed, cuts > 0, "round {round}");
        assert_eq!(answer.charged().units(), PRICE);
        let body = answer.bytes(100).await.unwrap();
        assert_eq!(body, format!("answer {}", round - 1).as_bytes());
        assert_eq!(peaje.channel().await.charged.units(), round * PRICE);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 4);
    peaje.stop().await;
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_name_a_lost_answer_is_paid_again() {
    let (calls, stage) = counted().await;
    let mut peaje = Peaje::prepare(&stage.settings());
    peaje.amend("[log]", "[idempotency]\nidentifier = \"off\"\n[log]");
    peaje.start_again().await;
    let payer = stage.payer(&peaje, 1);
    let agent = Agent::new(AgentConfig::new(payer.key.clone()), NoChain).unwrap();
    let direct = peaje.url("");
    agent.pay(PayRequest::get(format!("{direct}/a"))).await.unwrap();
    let between = cutting(direct.trim_start_matches("http://").parse().unwrap(), 1).await;
    let lost = agent.pay(PayRequest::get(format!("http://{between}/a"))).await;
    assert!(matches!(lost, Err(AgentError::Http(_))), "{lost:?}");
    agent.pay(PayRequest::get(format!("{direct}/a"))).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    assert_eq!(peaje.channel().await.charged.units(), 3 * PRICE);
    peaje.stop().await;
    stage.strike().await;
}
