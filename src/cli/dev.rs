//! `peaje dev`: everything on this machine.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::connect::{connect_chain, open_books};
use super::orders::StopOrders;
use super::site::Site;
use super::{Exit, Failure, Outcome, Output, value};
use crate::agent::{Agent, AgentConfig, Budget, Dollars, NodeReader, PayRequest};
use crate::chain::{AlloyChain, Chain as _, KeyRef};
use crate::config::Config;
use crate::devnet::{Devnet, DevnetConfig, Mining};
use crate::protocol::x402::{self, Quote};
use crate::protocol::{Address, Amount, ChannelId};
use crate::telemetry::{LogFormat, LogLevel, LogOptions};

const MORE: &str = "\
Dev starts a development chain, a small API, the toll booth in front of it and
an agent that buys from it. Nothing leaves this machine, nothing costs anything,
and no setup is needed: keys, coins and contracts are made up on the spot. After
the agent's requests everything stays up for you to try, until Ctrl-C.

Examples:
  peaje dev
      Watch five paid requests; then, in another terminal:
  curl -i http://127.0.0.1:4020/fortune
      see the 402 that an unpaid request gets, and
  peaje pay http://127.0.0.1:4020/fortune --key dev:agent --rpc http://127.0.0.1:8545
      pay it.
  peaje dev --requests 1000 --exit --json
      Pay a thousand requests, print a summary as JSON, and end.

Environment:
  RUST_LOG   a log filter
  NO_COLOR   no colours";

/// The arguments of `peaje dev`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", super::exit::HELP))]
pub struct DevArgs {
    /// How many requests the agent buys.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 5)]
    pub requests: u64,
    /// End after the agent's requests instead of staying up.
    #[arg(long)]
    pub exit: bool,
    /// End with a summary as one line of JSON on stdout; the story goes to stderr.
    #[arg(long)]
    pub json: bool,
    /// Where the proxy listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4020")]
    pub listen: SocketAddr,
    /// Where the development chain listens; a loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8545")]
    pub rpc_listen: SocketAddr,
    /// Where the small API listens, which the proxy sells.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4021")]
    pub api_listen: SocketAddr,
    /// Where the admin listener is, which `peaje redeem` talks to; a loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9402")]
    pub admin_listen: SocketAddr,
    /// What a request costs, in dollars.
    #[arg(long, value_name = "DOLLARS", default_value = "0.002", value_parser = value::some_dollars)]
    pub price: Amount,
    /// How often the chain makes a block, such as 2s; by default as soon as there is a transaction.
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    pub block_time: Option<Duration>,
}

/// Test dollars the agent begins with, atomic units.
const AGENT_PURSE: u128 = 1_000_000_000;

/// Starts everything, tells the story, and stops it.
pub async fn run(args: DevArgs, output: &Output) -> Outcome {
    crate::telemetry::init(LogOptions { level: LogLevel::Warn, format: LogFormat::Auto })
        .map_err(|error| Failure::new(Exit::Usage, error))?;
    let say = Narrator { output, aside: args.json };
    let stage = Stage::set(&args, &say).await?;
    let summary = stage.play(&args, &say).await?;
    if args.json {
        let line = serde_json::to_string(&summary).map_err(|error| Failure::new(Exit::Failed, error))?;
        output.line(&line);
    }
    let outcome = summary.verdict(args.requests);
    if outcome.is_ok() && !args.exit {
        say.invitation(&stage);
        StopOrders::listen().next().await;
    }
    stage.strike().await;
    outcome
}

/// Everything that was started.
struct Stage {
    devnet: Devnet,
    chain: Arc<AlloyChain>,
    site: Site,
    api: tokio::task::JoinHandle<()>,
    receiver: Address,
    token: Address,
    url: String,
    /// The books are in here until the end.
    folder: tempfile::TempDir,
}

impl Stage {
    async fn set(args: &DevArgs, say: &Narrator<'_>) -> Result<Self, Failure> {
        let failed = |what: &'static str| move |error: anyhow::Error| Failure::new(Exit::Failed, error.context(what));
        let mining = args.block_time.map_or(Mining::OnDemand, Mining::Interval);
        let devnet = Devnet::start(DevnetConfig { listen: args.rpc_listen, mining, ..DevnetConfig::default() })
            .await
            .map_err(|error| failed("the development chain did not start")(error.into()))
            .map_err(|failure| failure.hint("is the port taken? --rpc-listen 127.0.0.1:0 takes any"))?;
        say.step(
            "chain",
            &format!("{}  chain {}, test dollars, on this machine only", devnet.rpc_url(), devnet.chain_id()),
        );

        let socket = tokio::net::TcpListener::bind(args.api_listen)
            .await
            .map_err(|error| failed("the sample API did not start")(error.into()))
            .map_err(|failure| failure.hint("is the port taken? --api-listen 127.0.0.1:0 takes any"))?;
        let api_address = socket.local_addr().map_err(|error| Failure::new(Exit::Failed, error))?;
        let api = tokio::spawn(sample::serve(socket));
        say.step("API", &format!("http://{api_address}  knows nothing of payments"));

        let config = Config::parse(&config_text(args, &devnet.rpc_url(), api_address), "the built-in config")?;
        let (chain, authorizer) = connect_chain(&config).await?;
        let chain = Arc::new(chain);
        // The chain is gone when this ends, and its books with it.
        let folder = tempfile::Builder::new()
            .prefix("peaje-dev-")
            .tempdir()
            .map_err(|error| failed("there is no place for the books")(error.into()))?;
        let books = open_books(folder.path(), config.chain.chain_id).await?;
        let site = Site::open(&config, authorizer, Arc::clone(&chain), books).await.map_err(|error| {
            Failure::new(Exit::Failed, error).hint("is the port taken? --listen 127.0.0.1:0 takes any")
        })?;
        let url = format!("http://{}", site.address());
        say.step("peaje", &format!("{url}  stands in front of it and sells /fortune for {}", args.price.to_price(6)));
        Ok(Self {
            devnet,
            chain,
            site,
            api,
            receiver: config.receiver.pay_to,
            token: config.chain.token.address,
            url,
            folder,
        })
    }

    /// The story: unpaid, paid, redeemed, refunded.
    async fn play(&self, args: &DevArgs, say: &Narrator<'_>) -> Result<Summary, Failure> {
        let resource = format!("{}{}", self.url, sample::FORTUNE);
        let mut summary = Summary { requests: args.requests, ..Summary::default() };
        summary.unpaid_status = self.ask_unpaid(&resource, say).await?;

        let agent = self.agent(args)?;
        let purse = self.dollars(agent.address())?;
        let mut charged = Amount::ZERO;
        let mut transactions = BTreeSet::new();
        let mut times = Vec::new();
        for number in 1..=args.requests {
            let begun = Instant::now();
            let answer = agent.pay(PayRequest::get(&resource)).await.map_err(super::pay::failure)?;
            let took = begun.elapsed();
            let status = answer.status();
            let payment = answer.payment.clone();
            let body = answer.bytes(MAX_SAMPLE_BYTES).await.map_err(super::pay::failure)?;
            let Some(payment) = payment.filter(|_| status.is_success()) else { continue };
            charged = charged.saturating_add(payment.charged);
            summary.paid += 1;
            transactions.extend(payment.transaction);
            if let Some(deposited) = payment.deposited {
                let text =
                    format!("{} into channel {}, one transaction", deposited.to_price(6), short(&payment.channel));
                say.step("deposit", &text);
            } else {
                times.push(took);
            }
            if number <= MAX_SHOWN {
                let line =
                    format!("200 for {}: {}", payment.charged.to_price(6), String::from_utf8_lossy(&body).trim());
                say.step("paid", &line);
            } else if number == MAX_SHOWN + 1 {
                say.step("paid", &format!("… and so on, up to {}", args.requests));
            }
        }
        times.sort_unstable();
        (summary.p50_us, summary.p99_us) = (percentile(&times, 50), percentile(&times, 99));
        let paid = summary.paid;
        say.step(
            "paid",
            &format!("{paid} requests, p50 {} us, p99 {} us, no further transaction", summary.p50_us, summary.p99_us),
        );

        let report = self.site.redemption().redeem().await.map_err(|error| Failure::new(Exit::Failed, error))?;
        if let Some(problem) = &report.problem {
            return Err(Failure::message(Exit::Chain, format!("redemption failed: {problem}")));
        }
        transactions.extend(report.transactions.iter().copied());
        let owed =
            self.chain.receivers(self.receiver, self.token).await.map_err(|error| Failure::new(Exit::Chain, error))?;
        summary.claimed = owed.total_claimed;
        summary.settled = owed.total_settled;
        summary.provider_received = self.dollars(self.receiver)?;
        let text = format!("{} claimed with the last voucher, settled to the provider", owed.total_claimed.to_price(6));
        say.step("redeemed", &text);

        let refunded = agent.refund(&resource, None).await.map_err(super::pay::failure)?;
        transactions.extend(refunded.transaction);
        let spent = purse.saturating_sub(self.dollars(agent.address())?);
        say.step(
            "refunded",
            &format!("{} back to the agent; it spent {}", refunded.amount.to_price(6), spent.to_price(6)),
        );
        summary.charged = charged;
        summary.agent_spent = spent;
        summary.agent_refunded = refunded.amount;
        summary.onchain_transactions = transactions.len();
        Ok(summary)
    }

    async fn ask_unpaid(&self, resource: &str, say: &Narrator<'_>) -> Result<u16, Failure> {
        let failed = |error: reqwest::Error| Failure::new(Exit::Server, error);
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(crate::tls::client_config())
            .no_proxy()
            .build()
            .map_err(failed)?;
        let response = client.get(resource).send().await.map_err(failed)?;
        let status = response.status().as_u16();
        let header = response.headers().get(x402::PAYMENT_REQUIRED).map(|value| value.as_bytes().to_vec());
        let quote: Quote = header
            .and_then(|header| x402::decode(&header).ok())
            .ok_or_else(|| Failure::message(Exit::Server, "the 402 has no readable PAYMENT-REQUIRED header"))?;
        for offer in &quote.accepts {
            let text = format!(
                "{status} PAYMENT-REQUIRED: {} {} on {}",
                offer.scheme,
                offer.amount.to_price(6),
                offer.network
            );
            say.step("unpaid", &text);
        }
        Ok(status)
    }

    fn agent(&self, args: &DevArgs) -> Result<Agent<NodeReader<AlloyChain>>, Failure> {
        let reference = "dev:agent".parse::<KeyRef>().map_err(|error| Failure::new(Exit::Failed, error))?;
        let key = reference.load(true).map_err(|error| Failure::new(Exit::Failed, error))?;
        self.devnet
            .mint_dollars(key.address().0.into(), AGENT_PURSE)
            .map_err(|error| Failure::new(Exit::Failed, error))?;
        // One deposit for the whole story and a quarter more, so that there is something to refund.
        let deposit_multiplier = u32::try_from(args.requests + args.requests / 4 + 1).unwrap_or(u32::MAX);
        let no_limit = Dollars::MAX;
        let budget = Budget {
            max_per_request: no_limit,
            max_per_host: no_limit,
            max_per_day: no_limit,
            max_deposit: no_limit,
            deposit_multiplier,
        };
        let config = AgentConfig { budget, ..AgentConfig::new(key) };
        Agent::new(config, NodeReader::new(Arc::clone(&self.chain))).map_err(super::pay::failure)
    }

    fn dollars(&self, owner: Address) -> Result<Amount, Failure> {
        let balance = self.devnet.dollar_balance(owner.0.into()).map_err(|error| Failure::new(Exit::Failed, error))?;
        Ok(Amount::new(balance))
    }

    async fn strike(self) {
        self.site.close().await;
        self.api.abort();
        self.devnet.shutdown().await;
        // Whatever cannot be removed now, the system will remove from its temporary folder.
        drop(self.folder.close());
    }
}

/// The longest answer of the sample API that is read, bytes.
const MAX_SAMPLE_BYTES: usize = 64 * 1024;

/// How many paid answers are shown one by one.
const MAX_SHOWN: u64 = 5;

fn config_text(args: &DevArgs, rpc: &str, api: SocketAddr) -> String {
    let (listen, price) = (args.listen, args.price.to_price(6));
    let receiver = DEV_RECEIVER;
    format!(
        r#"
        [server]
        listen = "{listen}"

        [upstream]
        url = "http://{api}"

        [chain]
        network = "base-sepolia"
        rpc = "{rpc}"
        poll = "100ms"

        [receiver]
        pay_to = "{receiver}"
        authorizer_key = "dev:authorizer"
        gas_key = "dev:gas"

        [admin]
        listen = "{admin}"

        [[route]]
        path = "/"
        price = "free"

        [[route]]
        path = "/fortune"
        price = "{price}"
        description = "A fortune cookie"
        mime_type = "application/json"

        [[route]]
        path = "/stream"
        price = "{price}"
        description = "Ten fortune cookies, one every 100 ms, as server-sent events"
        mime_type = "text/event-stream"
        "#,
        admin = args.admin_listen,
    )
}

/// The account of `dev:receiver`.
const DEV_RECEIVER: &str = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC";

/// What happened, in numbers. Amounts are atomic units of the test dollar.
#[derive(Debug, Default, Clone, Serialize)]
struct Summary {
    unpaid_status: u16,
    requests: u64,
    paid: u64,
    charged: Amount,
    claimed: Amount,
    settled: Amount,
    provider_received: Amount,
    agent_refunded: Amount,
    agent_spent: Amount,
    onchain_transactions: usize,
    p50_us: u128,
    p99_us: u128,
}

impl Summary {
    /// Whether every unit is where it belongs.
    fn verdict(&self, requests: u64) -> Outcome {
        let sums = [self.claimed, self.settled, self.provider_received, self.agent_spent];
        let problem = if self.unpaid_status != 402 {
            format!("an unpaid request got {}", self.unpaid_status)
        } else if self.paid != requests {
            format!("{} of {requests} requests were paid", self.paid)
        } else if sums.iter().any(|sum| *sum != self.charged) {
            format!(
                "charged {}, claimed {}, settled {}, received {}, spent {}: they should be one sum",
                self.charged, self.claimed, self.settled, self.provider_received, self.agent_spent
            )
        } else {
            return Ok(());
        };
        Err(Failure::message(Exit::Failed, problem))
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> u128 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0, Duration::as_micros)
}

fn short(id: &ChannelId) -> String {
    id.to_string().chars().take(10).collect::<String>() + "…"
}

/// Tells the story, one step a line.
struct Narrator<'a> {
    output: &'a Output,
    /// Whether stdout is for the summary alone.
    aside: bool,
}

impl Narrator<'_> {
    fn step(&self, who: &str, what: &str) {
        let paint = if self.aside { self.output.error_paint() } else { self.output.paint() };
        self.line(&format!("{} {what}", paint.bold(&format!("{who:>9}"))));
    }

    fn invitation(&self, stage: &Stage) {
        let (url, rpc) = (&stage.url, stage.devnet.rpc_url());
        self.line("\nEverything stays up until Ctrl-C. In another terminal, try");
        if let Some(path) = called_by_path() {
            self.line(&format!("  alias peaje={}", path.display()));
        }
        self.line(&format!("  curl -i {url}{}", sample::FORTUNE));
        self.line(&format!("  peaje pay {url}{} --key dev:agent --rpc {rpc}", sample::FORTUNE));
        self.line(&format!("  peaje pay {url}/stream --key dev:agent --rpc {rpc}"));
        if let Some(admin) = stage.site.admin() {
            self.line(&format!("  peaje redeem --dry-run --admin http://{admin}"));
            self.line(&format!("  peaje redeem --admin http://{admin}"));
        }
        self.line(&format!("  peaje ledger show --directory {}", stage.folder.path().display()));
    }

    fn line(&self, line: &str) {
        if self.aside { self.output.error_line(line) } else { self.output.line(line) }
    }
}

/// Where this program is, unless it was found by its name alone: then the shell finds it again.
fn called_by_path() -> Option<std::path::PathBuf> {
    let name = std::env::args_os().next()?;
    std::path::Path::new(&name).components().nth(1)?;
    std::env::current_exe().ok()
}

mod sample {
    //! The sample API: what a provider has before it has Peaje.

    use std::convert::Infallible;
    use std::time::Duration;

    use axum::response::Sse;
    use axum::response::sse::Event;
    use axum::routing::get;
    use axum::{Json, Router};
    use serde_json::{Value, json};

    pub(super) const FORTUNE: &str = "/fortune";

    const FORTUNES: [&str; 4] = [
        "A small payment will open a large door.",
        "He who signs vouchers seldom waits for blocks.",
        "Your next request will be answered.",
        "The toll is small; the road is long.",
    ];

    pub(super) async fn serve(socket: tokio::net::TcpListener) {
        let app = Router::new()
            .route("/", get(|| async { "A sample API. /fortune and /stream cost a little.\n" }))
            .route(FORTUNE, get(|| async { Json(fortune(rotating())) }))
            .route("/stream", get(stream));
        if let Err(error) = axum::serve(socket, app).await {
            tracing::error!(%error, "the sample API ended");
        }
    }

    fn rotating() -> usize {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    fn fortune(number: usize) -> Value {
        json!({"fortune": FORTUNES.get(number % FORTUNES.len())})
    }

    async fn stream() -> Sse<impl futures_util::Stream<Item = Result<Event, Infallible>>> {
        Sse::new(futures_util::stream::unfold(0, |number| async move {
            if number == 10 {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            Some((Ok(Event::default().data(fortune(number).to_string())), number + 1))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unit_astray_is_a_failure() {
        let sum = Amount::new(400);
        let good = Summary {
            unpaid_status: 402,
            paid: 2,
            charged: sum,
            claimed: sum,
            settled: sum,
            provider_received: sum,
            agent_spent: sum,
            ..Summary::default()
        };
        assert!(good.verdict(2).is_ok());
        assert!(good.verdict(3).is_err());
        let astray: [fn(&mut Summary); 6] = [
            |summary| summary.unpaid_status = 200,
            |summary| summary.charged = Amount::new(401),
            |summary| summary.claimed = Amount::new(401),
            |summary| summary.settled = Amount::new(399),
            |summary| summary.provider_received = Amount::ZERO,
            |summary| summary.agent_spent = Amount::new(401),
        ];
        for change in astray {
            let mut summary = good.clone();
            change(&mut summary);
            assert!(summary.verdict(2).is_err(), "{summary:?}");
        }
    }

    #[test]
    fn the_receiver_is_the_development_account() {
        let key = "dev:receiver".parse::<KeyRef>().unwrap().load(true).unwrap();
        assert_eq!(key.address().to_string().to_lowercase(), DEV_RECEIVER.to_lowercase());
    }
}
