//! `peaje pay`: the paying side of one call.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, Method};
use tokio::task::JoinSet;

use serde_json::json;

use super::connect;
use super::value::{self, AllowedToken, ChainName, KeyArgument, RpcArgument};
use super::{Exit, Failure, Outcome, Output};
use crate::agent::{
    Agent, AgentConfig, AgentError, Answer, Book, Budget, ChainReader, Dollars, KnownToken, MAX_AHEAD, NodeReader,
    PayRequest, Terms,
};
use crate::chain::{AlloyChain, Chain as _, RpcUrl};
use crate::protocol::Amount;
use crate::telemetry::{LogFormat, LogLevel, LogOptions};

/// The longest request body, bytes. It is held in memory, because an unpaid request is sent a second time.
const MAX_BODY_BYTES: u64 = 64 << 20;

const MORE: &str = "\
Pay sends the request. Where the server answers 402 with an x402 quote, and the
price is within your limits, it opens a channel with a deposit (the first time),
signs a voucher and sends the request again. Later calls only sign: no
transaction, no gas. You need a key, and dollars in the token the server takes;
you need no other coin, because the server sends the deposit for you.

What is not spent stays yours: --refund gets it back.

Examples:
  export PEAJE_AGENT_KEY=0x...
  peaje pay https://api.example.com/v1/weather
  peaje pay https://api.example.com/v1/chat -d @question.json \\
      -H 'Content-Type: application/json' --max-price 0.05
      POST a file, and pay at most five cents.
  peaje pay https://api.example.com/v1/weather --repeat 500 --parallel 32
      Five hundred calls, up to 32 at a time. Their vouchers are signed ahead
      of the answers, where the quote says maxInFlight; the limits count every
      one that is signed. Answers come in the order in which they are ready.
  peaje pay https://api.example.com/v1/weather --refund
      Get back what is left in the channel with this server.

The answer goes to stdout, or to the file named by --output. What was paid goes
to stderr: a line for you, or JSON with --json or where stderr is no terminal.
The channels are remembered in the state directory. Losing it loses no money as
long as --rpc names a node to find the channels again.

Environment:
  PEAJE_AGENT_KEY            the key (64 hex digits), where --key is not given
  PEAJE_RPC                  the chain's RPC URL, where --rpc is not given
  PEAJE_KEYSTORE_PASSWORD    the password of a keystore
  XDG_STATE_HOME             where the state directory is, by default
                             ~/.local/state
  NO_COLOR                   no colours";

/// The arguments of `peaje pay`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = format!("{MORE}\n\n{}", super::exit::HELP))]
pub struct PayArgs {
    /// What to call.
    pub url: String,
    /// The method; by default GET, or POST where there is a body.
    #[arg(short = 'X', long, value_name = "METHOD", help_heading = "Request")]
    pub method: Option<Method>,
    /// A header to send, as "Name: value"; can be repeated.
    #[arg(short = 'H', long = "header", value_name = "HEADER", help_heading = "Request")]
    pub headers: Vec<String>,
    /// The body to send: the text itself, @FILE for a file's content, or - for stdin.
    #[arg(short, long, value_name = "DATA", help_heading = "Request")]
    pub data: Option<String>,
    /// How many times to send it, one after the other unless --parallel says more; every time is paid.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "Request"
    )]
    pub repeat: u64,
    /// How many of them to send at once, where the server allows that many at a time on one channel; otherwise they are
    /// sent one after the other all the same.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_AHEAD)),
        requires = "repeat",
        help_heading = "Request"
    )]
    pub parallel: u32,

    /// The key that owns the money: env:NAME, file:PATH, keystore:PATH, or dev:agent on a development chain.
    #[arg(long, value_name = "KEY", default_value = "env:PEAJE_AGENT_KEY", help_heading = "Payment")]
    pub key: KeyArgument,
    /// A key that only signs vouchers, named the same way, so that the other can be put away after the deposit.
    #[arg(long, value_name = "KEY", help_heading = "Payment")]
    pub voucher_key: Option<KeyArgument>,
    /// The chain's RPC URL, or env:NAME. Only needed to find channels again that were forgotten.
    #[arg(long, value_name = "URL", env = "PEAJE_RPC", hide_env_values = true, help_heading = "Payment")]
    pub rpc: Option<RpcArgument>,
    /// Only pay on this network, by its name or chain id; can be repeated. The default is that of --rpc, or any.
    #[arg(long, value_name = "NETWORK", help_heading = "Payment")]
    pub network: Vec<ChainName>,
    /// Where channels are remembered; by default peaje in the user's state directory.
    #[arg(long, value_name = "DIR", help_heading = "Payment")]
    pub state: Option<PathBuf>,
    /// Also pay with this token: CHAIN_ID:ADDRESS:DECIMALS:NAME:VERSION, the last two from its EIP-712 domain; can be
    /// repeated.
    #[arg(long = "allow-token", value_name = "TOKEN", help_heading = "Payment")]
    pub allow_tokens: Vec<AllowedToken>,

    /// The most one request may cost, in dollars.
    #[arg(long, value_name = "DOLLARS", default_value = "1", value_parser = value::dollars, help_heading = "Limits")]
    pub max_price: Amount,
    /// The most this server may be paid in a day, in dollars.
    #[arg(long, value_name = "DOLLARS", default_value = "10", value_parser = value::dollars, help_heading = "Limits")]
    pub max_total: Amount,
    /// The most one deposit may lock up, in dollars.
    #[arg(long, value_name = "DOLLARS", default_value = "5", value_parser = value::dollars, help_heading = "Limits")]
    pub max_deposit: Amount,
    /// How many requests a deposit should pay for, where the server asks for no more.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Limits"
    )]
    pub deposit_multiplier: u32,

    /// Get back what is left in the channel with this server, instead of buying.
    #[arg(long, conflicts_with_all = ["data", "method", "repeat", "parallel"], help_heading = "Refund")]
    pub refund: bool,
    /// Only so many dollars of it.
    #[arg(
        long,
        value_name = "DOLLARS",
        requires = "refund",
        value_parser = value::some_dollars,
        help_heading = "Refund"
    )]
    pub amount: Option<Amount>,

    /// Write the answer's body to a file instead of stdout.
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Print the answer's status and headers before its body.
    #[arg(short, long, help_heading = "Output")]
    pub include: bool,
    /// Print what was paid as JSON, as is done anyway when stderr is no terminal.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Say what happens on the way; twice for more.
    #[arg(short, long, action = clap::ArgAction::Count, help_heading = "Output")]
    pub verbose: u8,
}

impl PayArgs {
    /// The method that was asked for, or the one that goes with the body.
    pub fn method(&self) -> Method {
        let natural = if self.data.is_some() { Method::POST } else { Method::GET };
        self.method.clone().unwrap_or(natural)
    }

    /// The headers to send.
    pub fn headers(&self) -> Result<HeaderMap, Failure> {
        value::headers(&self.headers)
    }

    /// The body to send, from wherever it is. Reads files and stdin, up to a limit; blocks meanwhile, so call it before
    /// anything else runs.
    pub fn body(&self) -> Result<Bytes, Failure> {
        match self.data.as_deref() {
            None => Ok(Bytes::new()),
            Some("-") => read_body(std::io::stdin().lock(), "stdin"),
            Some(data) => match data.strip_prefix('@') {
                None => Ok(Bytes::copy_from_slice(data.as_bytes())),
                Some(path) => {
                    let file = std::fs::File::open(path).map_err(|error| unreadable(path, error))?;
                    read_body(file, path)
                }
            },
        }
    }

    /// The directory of the books.
    pub fn state_dir(&self) -> Result<PathBuf, Failure> {
        self.state.clone().or_else(value::default_state_dir).ok_or_else(|| {
            Failure::message(Exit::Usage, "there is no home directory to keep the channels in").hint("pass --state DIR")
        })
    }
}

fn read_body(source: impl std::io::Read, name: &str) -> Result<Bytes, Failure> {
    let mut body = Vec::new();
    // One byte more than allowed tells a body that is just small enough from one that is too large.
    let mut limited = source.take(MAX_BODY_BYTES.saturating_add(1));
    limited.read_to_end(&mut body).map_err(|error| unreadable(name, error))?;
    if u64::try_from(body.len()).is_ok_and(|length| length <= MAX_BODY_BYTES) {
        Ok(body.into())
    } else {
        let limit = MAX_BODY_BYTES >> 20;
        Err(Failure::message(Exit::Usage, format!("{name} is larger than {limit} MiB, which is more than is sent")))
    }
}

fn unreadable(name: &str, error: std::io::Error) -> Failure {
    Failure::new(Exit::Usage, anyhow::Error::new(error).context(format!("cannot read {name}")))
}

/// How long to wait for another `peaje pay` with the same state directory.
const BOOK_PATIENCE: Duration = Duration::from_secs(60);

/// Calls, pays, prints.
pub async fn run(args: PayArgs, output: &Output) -> Outcome {
    let level = match args.verbose {
        0 => LogLevel::Warn,
        1 => LogLevel::Info,
        2 => LogLevel::Debug,
        _ => LogLevel::Trace,
    };
    crate::telemetry::init(LogOptions { level, format: LogFormat::Auto })
        .map_err(|error| Failure::new(Exit::Usage, error))?;
    let request =
        PayRequest { method: args.method(), url: args.url.clone(), headers: args.headers()?, body: args.body()? };
    let agent = agent(&args).await?;
    if args.refund {
        return refund(&args, &agent, output).await;
    }
    // The first finds out the price and opens the channel; what follows can be sent side by side.
    let answer = agent.pay(request.clone()).await.map_err(failure)?;
    deliver(&args, answer, output).await?;
    let mut left = args.repeat.saturating_sub(1);
    let at_once = usize::try_from(args.parallel).unwrap_or(1);
    let mut calls = JoinSet::new();
    let mut outcome = Ok(());
    loop {
        // After a failure nothing more is bought; what is on its way is paid for, so it is delivered.
        while left > 0 && calls.len() < at_once && outcome.is_ok() {
            let (agent, request) = (agent.clone(), request.clone());
            calls.spawn(async move { agent.pay(request).await });
            left = left.saturating_sub(1);
        }
        let Some(answer) = calls.join_next().await else { return outcome };
        let delivered = match answer {
            Ok(Ok(answer)) => deliver(&args, answer, output).await,
            Ok(Err(error)) => Err(failure(error)),
            Err(error) => Err(Failure::new(Exit::Failed, error)),
        };
        outcome = outcome.and(delivered);
    }
}

async fn agent(args: &PayArgs) -> Result<Agent<Option<NodeReader<AlloyChain>>>, Failure> {
    let rpc = match &args.rpc {
        Some(rpc) => Some(rpc.url()?.parse::<RpcUrl>().map_err(|error| Failure::new(Exit::Usage, error))?),
        None => None,
    };
    // Without a node there is no chain to be sure of, so development keys are refused.
    let loopback = rpc.as_ref().is_some_and(RpcUrl::is_loopback);
    let reference = args.key.reference()?;
    let development = reference.as_str().starts_with("dev:");
    let key = connect::key("--key", reference, loopback).map_err(|failure| match development && !loopback {
        true => failure.hint("name the development chain: --rpc http://127.0.0.1:8545"),
        false => failure,
    })?;
    let voucher_key = match &args.voucher_key {
        Some(key) => Some(connect::key("--voucher-key", key.reference()?, loopback)?),
        None => None,
    };
    let chain = match rpc {
        Some(url) => {
            let chain = AlloyChain::connect(url, None).await.map_err(|error| Failure::new(Exit::Chain, error))?;
            Some((chain.chain_id(), NodeReader::new(Arc::new(chain))))
        }
        None => None,
    };
    let named: Vec<_> = args.network.iter().map(|ChainName(chain_id)| *chain_id).collect();
    // Elsewhere a channel that was forgotten could not be found again.
    let of_node = chain.as_ref().map(|(chain_id, _)| *chain_id).into_iter().collect();
    let chains = if named.is_empty() { of_node } else { named };
    let chain = chain.map(|(_, reader)| reader);
    let dollars = |amount: Amount| Dollars::from_micros(amount.units());
    let config = AgentConfig {
        voucher_key,
        budget: Budget {
            max_per_request: dollars(args.max_price),
            max_per_host: dollars(args.max_total),
            max_per_day: Dollars::MAX,
            max_deposit: dollars(args.max_deposit),
            deposit_multiplier: args.deposit_multiplier,
        },
        terms: Terms { tokens: args.allow_tokens.iter().map(known_token).collect(), chains, ..Terms::default() },
        ahead: args.parallel,
        book: Book::open(&args.state_dir()?, BOOK_PATIENCE).map_err(|error| Failure::new(Exit::Failed, error))?,
        ..AgentConfig::new(key)
    };
    Agent::new(config, chain).map_err(failure)
}

fn known_token(token: &AllowedToken) -> KnownToken {
    KnownToken {
        chain_id: token.chain_id,
        address: token.address,
        decimals: token.decimals,
        domain_name: token.domain_name.clone(),
        domain_version: token.domain_version.clone(),
    }
}

async fn refund<R: ChainReader>(args: &PayArgs, agent: &Agent<R>, output: &Output) -> Outcome {
    let refunded = agent.refund(&args.url, args.amount).await.map_err(failure)?;
    if output.json_result(args.json) {
        output.json(&json!({
            "refunded": refunded.amount,
            "transaction": refunded.transaction,
            "channel": refunded.channel,
            "network": refunded.network,
            "remaining": refunded.remaining,
        }));
    } else {
        let (amount, left) =
            (refunded.amount.to_price(refunded.decimals), refunded.remaining.to_price(refunded.decimals));
        output.line(&format!("refunded {amount}, {left} left in channel {}", refunded.channel));
    }
    Ok(())
}

/// The body to stdout or a file as it comes, what was paid to stderr.
async fn deliver(args: &PayArgs, mut answer: Answer, output: &Output) -> Outcome {
    let mut sink: Box<dyn std::io::Write + Send> = match &args.output {
        Some(path) => Box::new(std::fs::File::create(path).map_err(|error| {
            Failure::new(Exit::Failed, anyhow::Error::new(error).context(format!("cannot write {}", path.display())))
        })?),
        None => Box::new(std::io::stdout()),
    };
    let mut write = |bytes: &[u8]| match sink.write_all(bytes).and_then(|()| sink.flush()) {
        // A reader that has seen enough is no failure; the rest is drained so that the connection ends well.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, anyhow::Error::new(error).context("cannot write the answer")))
        }
        _ => Ok(()),
    };
    let status = answer.status();
    if args.include {
        let mut head = format!("{:?} {status}\n", answer.head.version);
        for (name, value) in answer.headers() {
            head.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
        }
        head.push('\n');
        write(head.as_bytes())?;
    }
    let mut last = None;
    while let Some(chunk) = answer.body.chunk().await.map_err(failure)? {
        last = chunk.last().copied().or(last);
        write(&chunk)?;
    }
    if args.output.is_none() && output.stdout_is_terminal() && last.is_some_and(|byte| byte != b'\n') {
        write(b"\n")?;
    }
    tell(args, &answer, output);
    if status.is_client_error() || status.is_server_error() {
        let exit = if status == http::StatusCode::PAYMENT_REQUIRED { Exit::Payment } else { Exit::Server };
        return Err(Failure::message(exit, format!("the server answered {status}")));
    }
    Ok(())
}

fn tell(args: &PayArgs, answer: &Answer, output: &Output) {
    let status = answer.status().as_u16();
    let payment = answer.body.late_payment().or(answer.payment.as_ref());
    if output.json_summary(args.json) {
        let summary = json!({
            "status": status,
            "charged": payment.map(|payment| payment.charged),
            "deposited": payment.and_then(|payment| payment.deposited),
            "transaction": payment.and_then(|payment| payment.transaction),
            "channel": payment.map(|payment| payment.channel),
            "network": payment.map(|payment| payment.network.clone()),
            "remaining": payment.map(|payment| payment.remaining),
            "requests_sent": answer.attempts,
        });
        output.error_line(&summary.to_string());
    } else {
        let line = payment.map_or_else(|| "free: nothing was paid".to_owned(), ToString::to_string);
        output.error_line(&output.error_paint().dim(&line));
    }
}

/// Whose turn it is after an agent's error.
pub(super) fn failure(error: AgentError) -> Failure {
    let exit = match &error {
        AgentError::Url(_) => Exit::Usage,
        AgentError::Budget(_)
        | AgentError::NoOffer(_)
        | AgentError::Quote(_)
        | AgentError::Refused { .. }
        | AgentError::SettlementPending { .. }
        | AgentError::DepositOpen { .. }
        | AgentError::NeedsAllowance { .. }
        | AgentError::Corrective(_)
        | AgentError::NotForSale { .. }
        | AgentError::NothingToRefund(_)
        | AgentError::RefundUnconfirmed(_) => Exit::Payment,
        AgentError::NeedsChain { .. } | AgentError::Chain(_) => Exit::Chain,
        AgentError::Http(_) | AgentError::Timeout(_) => Exit::Server,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    fn parse(arguments: &[&str]) -> PayArgs {
        let line = ["peaje", "pay", "http://h/"].iter().chain(arguments);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Pay(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_body_is_posted() {
        assert_eq!(parse(&[]).method(), Method::GET);
        assert_eq!(parse(&["-d", "x"]).method(), Method::POST);
        assert_eq!(parse(&["-X", "PUT", "-d", "x"]).method(), Method::PUT);
    }

    #[test]
    fn a_body_is_text_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("body");
        std::fs::write(&path, "from a file").unwrap();
        assert_eq!(parse(&[]).body().unwrap(), "");
        assert_eq!(parse(&["-d", "a text"]).body().unwrap(), "a text");
        assert_eq!(parse(&["-d", &format!("@{}", path.display())]).body().unwrap(), "from a file");
        assert_eq!(parse(&["-d", "@/no/such/file"]).body().unwrap_err().exit(), Exit::Usage);
    }

    #[test]
    fn limits_are_dollars() {
        let args = parse(&["--max-price", "0.01", "--max-total", "$2", "--max-deposit", "0.5"]);
        assert_eq!((args.max_price, args.max_total), (Amount::new(10_000), Amount::new(2_000_000)));
        assert_eq!(args.max_deposit, Amount::new(500_000));
        for bad in [&["--repeat", "0"][..], &["--amount", "1"], &["--refund", "-d", "x"], &["--max-price", "cheap"]] {
            assert!(Cli::try_parse_from(["peaje", "pay", "http://h/"].iter().chain(bad)).is_err(), "{bad:?}");
        }
    }
}
