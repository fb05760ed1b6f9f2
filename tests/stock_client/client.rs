//! The stock client in a Node process of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::package;

/// How long the client may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// The driver and its pipe. Ends with the value.
pub(crate) struct Client {
    node: Child,
    orders: ChildStdin,
    lines: mpsc::UnboundedReceiver<Line>,
    key: String,
    rpc: String,
    /// A token that it does not know and may pay with.
    asset: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Answers { answers: Vec<Answer> },
    Chunk { chunk: String },
    Failed { failed: String },
}

/// What an application sees of one request, and what went over the wire for it.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    /// The status the application got; none where the client threw, and for a refund.
    pub(crate) status: Option<u16>,
    #[serde(default)]
    pub(crate) body: String,
    pub(crate) receipt: Option<Value>,
    pub(crate) thrown: Option<String>,
    pub(crate) exchanges: Vec<Exchange>,
}

/// One HTTP request and its answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Exchange {
    /// The kind of payment: `nothing`, `voucher`, `deposit`, `refund`.
    pub(crate) sent: String,
    /// The voucher's ceiling.
    pub(crate) max: Option<String>,
    /// The deposit's amount.
    pub(crate) deposit: Option<String>,
    /// Whether an EIP-2612 permit came along.
    #[serde(default)]
    pub(crate) permit: bool,
    pub(crate) status: Option<u16>,
    /// The error of a 402.
    pub(crate) error: Option<String>,
    #[serde(default)]
    pub(crate) corrective: bool,
    #[serde(default)]
    pub(crate) voucher_shown: bool,
}

impl Exchange {
    /// The exchange in two words, such as `voucher 200` or `voucher mismatch+voucher`.
    fn in_words(&self) -> String {
        let mismatch = "invalid_batch_settlement_evm_cumulative_amount_mismatch";
        let outcome = match (self.status, self.error.as_deref()) {
            (Some(402), Some("Payment required")) => "402".to_owned(),
            (Some(402), Some(error)) if error == mismatch && self.corrective && self.voucher_shown => {
                "corrected by voucher".to_owned()
            }
            (Some(402), Some(error)) if error == mismatch && self.corrective => "corrected by chain".to_owned(),
            (Some(status), error) => format!("{status} {}", error.unwrap_or_default()).trim().to_owned(),
            (None, _) => "no answer".to_owned(),
        };
        format!("{} {outcome}", self.sent)
    }
}

impl Answer {
    /// What went over the wire, one phrase an exchange.
    pub(crate) fn story(&self) -> Vec<String> {
        self.exchanges.iter().map(Exchange::in_words).collect()
    }

    /// Asserts a 200 after exactly these exchanges.
    #[track_caller]
    pub(crate) fn served_by(&self, story: &[&str]) {
        assert_eq!(self.story(), story, "{self:#?}");
        assert_eq!(self.status, Some(200), "{self:#?}");
    }

    /// A member of the receipt, by its JSON pointer, as text.
    #[track_caller]
    pub(crate) fn receipt(&self, pointer: &str) -> &str {
        let receipt = self.receipt.as_ref().unwrap_or_else(|| panic!("no receipt: {self:#?}"));
        let member = receipt.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {receipt}"));
        member.as_str().unwrap_or_else(|| panic!("{pointer} is no text in {receipt}"))
    }

    /// The last payment that was sent.
    pub(crate) fn last(&self) -> &Exchange {
        self.exchanges.last().expect("something was sent")
    }
}

impl Client {
    /// Starts the driver and opens a client in it.
    pub(crate) async fn start(key: String, rpc: String) -> Self {
        Self::start_with(key, rpc, None).await
    }

    /// The same with a token that it does not know and may pay with.
    pub(crate) async fn start_with(key: String, rpc: String, asset: Option<String>) -> Self {
        let mut node = Command::new("node")
            .arg("driver.mjs")
            .current_dir(package::directory())
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node runs");
        let orders = node.stdin.take().unwrap();
        let output = BufReader::new(node.stdout.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line)
                    .unwrap_or_else(|error| Line::Failed { failed: format!("the driver wrote {line:?}: {error}") });
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut client = Self { node, orders, lines, key, rpc, asset };
        client.forget().await;
        client
    }

    /// Loses the client's state: a new one of the same key, with empty storage.
    pub(crate) async fn forget(&mut self) {
        let (key, rpc, asset) = (self.key.clone(), self.rpc.clone(), self.asset.clone());
        self.order(json!({"cmd": "open", "key": key, "rpc": rpc, "asset": asset}));
        self.answers().await;
    }

    /// Pays for one request.
    pub(crate) async fn pay(&mut self, url: &str) -> Answer {
        self.pay_times(url, 1).await.remove(0)
    }

    /// Pays for requests one after another.
    pub(crate) async fn pay_times(&mut self, url: &str, count: usize) -> Vec<Answer> {
        self.order(json!({"cmd": "pay", "url": url, "count": count}));
        self.answers().await
    }

    /// Pays for requests all at once.
    pub(crate) async fn pay_at_once(&mut self, url: &str, count: usize) -> Vec<Answer> {
        self.order(json!({"cmd": "parallel", "url": url, "count": count}));
        self.answers().await
    }

    /// Pays for one request, the answer to which is lost on the way back.
    pub(crate) async fn lose(&mut self, url: &str) -> Answer {
        self.order(json!({"cmd": "lose", "url": url}));
        self.answers().await.remove(0)
    }

    /// Asks for the rest of the channel, or an amount of it.
    pub(crate) async fn refund(&mut self, url: &str, amount: Option<&str>) -> Answer {
        self.order(json!({"cmd": "refund", "url": url, "amount": amount}));
        self.answers().await.remove(0)
    }

    /// Begins a request without waiting for it; [`Client::chunk`] and [`Client::answers`] tell how it goes on.
    pub(crate) fn begin_stream(&mut self, url: &str) {
        self.order(json!({"cmd": "stream", "url": url}));
    }

    /// Waits for what comes next of a stream.
    pub(crate) async fn chunk(&mut self) -> String {
        match self.line().await {
            Line::Chunk { chunk } => chunk,
            other => panic!("the stream ended before its next chunk: {other:?}"),
        }
    }

    /// Waits for the answers to the last order.
    pub(crate) async fn answers(&mut self) -> Vec<Answer> {
        loop {
            match self.line().await {
                Line::Answers { answers } => return answers,
                Line::Chunk { .. } => {}
                Line::Failed { failed } => panic!("the driver failed: {failed}"),
            }
        }
    }

    fn order(&mut self, mut order: Value) {
        if let Some(members) = order.as_object_mut() {
            members.retain(|_, value| !value.is_null());
        }
        writeln!(self.orders, "{order}").expect("the driver reads");
    }

    async fn line(&mut self) -> Line {
        let line = tokio::time::timeout(PATIENCE, self.lines.recv()).await;
        line.expect("the client answers in time").expect("the driver runs")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}
