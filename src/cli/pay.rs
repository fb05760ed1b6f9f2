//! `peaje pay`: the paying side of one call.

use std::io::Read as _;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, Method};

use super::value::{self, AllowedToken, KeyArgument, RpcArgument};
use super::{Exit, Failure, Outcome, Output};
use crate::protocol::Amount;

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
    /// How many times to send it, one after the other; every time is paid.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "Request"
    )]
    pub repeat: u64,

    /// The key that owns the money: env:NAME, file:PATH, keystore:PATH, or dev:agent on a development chain.
    #[arg(long, value_name = "KEY", default_value = "env:PEAJE_AGENT_KEY", help_heading = "Payment")]
    pub key: KeyArgument,
    /// A key that only signs vouchers, named the same way, so that the other can be put away after the deposit.
    #[arg(long, value_name = "KEY", help_heading = "Payment")]
    pub voucher_key: Option<KeyArgument>,
    /// The chain's RPC URL, or env:NAME. Only needed to find channels again that were forgotten.
    #[arg(long, value_name = "URL", env = "PEAJE_RPC", hide_env_values = true, help_heading = "Payment")]
    pub rpc: Option<RpcArgument>,
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
    #[arg(long, conflicts_with_all = ["data", "method", "repeat"], help_heading = "Refund")]
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

/// Calls, pays, prints.
pub async fn run(_args: PayArgs, _output: &Output) -> Outcome {
    Err(Failure::message(Exit::Failed, "not wired yet"))
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
