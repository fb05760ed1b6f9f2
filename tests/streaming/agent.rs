//! Our own agent, and what it learns of a stream at its end.

use peaje::agent::{Agent, AgentConfig, Answer, Book, Budget, Dollars, NoChain, PayRequest, Record};
use peaje::protocol::Amount;

use super::llm::openai;
use super::stage::*;

/// An agent that knows the channel of the site's payer, and pays so many at once.
fn agent(site: &Site, ahead: u32) -> Agent<NoChain> {
    let book = Book::in_memory();
    let (zero, balance) = (Amount::ZERO, Amount::new(1_000 * MOST));
    let record = Record {
        channel: site.payer.id(),
        network: "eip155:84532".to_owned(),
        config: site.payer.config,
        decimals: 6,
        host: String::new(),
        charged: zero,
        signed_max: zero,
        counted: zero,
        top: zero,
        spent: zero,
        balance,
        pending_deposit: None,
    };
    book.save(&record).unwrap();
    let most = Dollars::from_micros(10 * MOST);
    let budget = Budget { max_per_request: most, max_per_host: most, max_per_day: most, ..Budget::default() };
    Agent::new(AgentConfig { book, budget, ahead, ..AgentConfig::new(site.payer.key.clone()) }, NoChain).unwrap()
}

/// What it has in its book: charged, and counted by the budget.
fn booked(site: &Site, agent: &Agent<NoChain>) -> (u128, u128) {
    let record = agent.book().load(site.payer.id()).unwrap().unwrap();
    (record.charged.units(), record.counted.units())
}

async fn ask(site: &Site, agent: &Agent<NoChain>) -> Answer {
    let url = format!("http://{}/tokens", site.address);
    soon(agent.pay(PayRequest::get(url))).await.unwrap()
}

/// The next answer, of so many pieces of a model's.
async fn stream(site: &Site, pieces: Vec<String>) {
    let frames = site.api.next_live(&[("content-type", "text/event-stream")]);
    tokio::spawn(async move {
        for piece in pieces {
            send(&frames, piece).await;
        }
    });
}

#[tokio::test]
async fn our_agent_books_what_a_stream_cost_at_its_end() {
    for ahead in [1, 4] {
        let site = Site::open().await;
        let agent = agent(&site, ahead);
        let (pieces, price) = openai();
        for round in 1..=3 {
            stream(&site, pieces.clone()).await;
            let mut answer = ask(&site, &agent).await;
            assert_eq!((answer.charged(), answer.body.late_payment().is_none()), (Amount::ZERO, true));
            // The first asks for the price, and none is corrected.
            assert_eq!(answer.attempts, if round == 1 { 2 } else { 1 }, "round {round}, {ahead} ahead");
            let mut body = Vec::new();
            while let Some(piece) = soon(answer.body.chunk()).await.unwrap() {
                body.extend_from_slice(&piece);
            }
            assert_eq!(body, pieces.concat().as_bytes());
            let paid = answer.body.late_payment().unwrap();
            assert_eq!((paid.charged.units(), &paid.doubt), (price, &None));
            assert_eq!(site.charged(), round * price);
            if ahead == 1 {
                assert_eq!(
                    booked(&site, &agent),
                    (round * price, round * price),
                    "what was signed above is free again"
                );
                assert_eq!(paid.remaining.units(), 1_000 * MOST - round * price);
            }
        }
    }
}

#[tokio::test]
async fn our_agent_counts_all_it_signed_for_where_it_does_not_hear_the_end() {
    let site = Site::open().await;
    let agent = agent(&site, 1);
    let (pieces, price) = openai();
    stream(&site, pieces.clone()).await;
    let mut answer = ask(&site, &agent).await;
    soon(answer.body.chunk()).await.unwrap();
    drop(answer);
    assert_eq!(booked(&site, &agent), (0, MOST));
    assert_eq!(site.charged_soon().await, price);
    // The server tells where the channel stands, and that counts.
    stream(&site, pieces).await;
    let answer = ask(&site, &agent).await;
    assert_eq!(answer.attempts, 2);
    assert_eq!(booked(&site, &agent), (price, price + MOST));
    answer.bytes(1 << 20).await.unwrap();
    assert_eq!((booked(&site, &agent), site.charged()), ((2 * price, MOST.max(2 * price)), 2 * price));
}
