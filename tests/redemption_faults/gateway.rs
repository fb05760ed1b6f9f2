//! What stands between redemption and its node, and does to it what nodes and networks do.
//!
//! A fault is a [`Spell`] that lasts a while; several may be at work. In calm every question and answer passes as it is.
//! A process that has crashed ([`Switch`]) gets no answer any more, and nothing it still says is heard.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy::primitives::{Bytes, U256, hex};
use alloy::sol_types::SolCall as _;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, Uri};
use peaje::devnet::genesis;
use peaje::protocol::ChannelId;
use serde_json::{Value, json};

use super::dice::Dice;
use super::node::number;

/// The longest a question is left without an answer.
const LONGEST_SILENCE: Duration = Duration::from_millis(300);

/// How far a node is behind, in blocks, at most.
const MAX_BEHIND: usize = 4;

mod abi {
    alloy::sol! {
        struct Call3 {
            address target;
            bool allowFailure;
            bytes callData;
        }
        struct Answer {
            bool success;
            bytes returnData;
        }
        function aggregate3(Call3[] calls) external payable returns (Answer[] answers);
        function channels(bytes32 channelId) external view returns (uint128 balance, uint128 totalClaimed);
    }
}

/// Something that goes wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Spell {
    /// Nobody answers.
    Down,
    /// Answers come late.
    Slow,
    /// Answers are errors, or broken.
    Errors,
    /// Transactions are delivered, and their senders never hear of it.
    AnswerLost,
    /// Transactions are accepted and dropped.
    Dropped,
    /// Transactions are accepted and reach a block much later.
    Stuck,
    /// Counts of transactions are too low.
    NonceTooLow,
    /// Counts of transactions are too high.
    NonceTooHigh,
    /// The gas account seems empty.
    NoGas,
    /// Channels seem to have more than they have.
    BalanceTooHigh,
    /// Channels seem to have less than they have.
    BalanceTooLow,
    /// Some of the nodes behind the address are behind.
    Behind,
    /// Gas costs more than anybody may pay. The chain does this one.
    FeeSpike,
    /// No block comes. The chain does this one.
    NoBlocks,
}

impl Spell {
    pub(crate) const ALL: [Self; 14] = [
        Self::Down,
        Self::Slow,
        Self::Errors,
        Self::AnswerLost,
        Self::Dropped,
        Self::Stuck,
        Self::NonceTooLow,
        Self::NonceTooHigh,
        Self::NoGas,
        Self::BalanceTooHigh,
        Self::BalanceTooLow,
        Self::Behind,
        Self::FeeSpike,
        Self::NoBlocks,
    ];

    /// Whether it meets transactions, or counts of them, and nothing else that often.
    pub(crate) fn is_of_sending(self) -> bool {
        matches!(
            self,
            Self::AnswerLost | Self::Dropped | Self::Stuck | Self::NonceTooLow | Self::NonceTooHigh | Self::NoGas
        )
    }

    /// Whether it can make an honest sender believe that a claim is not there which is.
    pub(crate) fn hides_claims(self) -> bool {
        matches!(self, Self::NonceTooLow | Self::NonceTooHigh | Self::Behind)
    }
}

/// Whether a process is alive, and when it is to die.
#[derive(Debug)]
pub(crate) struct Switch {
    dead: AtomicBool,
    requests: AtomicU64,
    commits: AtomicU64,
    death: Death,
    spared: AtomicBool,
}

/// The step at which a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    Never,
    /// At its so many-th question to the node, before it or after it is delivered.
    AtRequest(u64, When),
    /// At its so many-th commit, before it or after it is durable.
    AtCommit(u64, When),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

impl Switch {
    pub(crate) fn new(death: Death) -> Arc<Self> {
        let (dead, requests, commits, spared) = Default::default();
        Arc::new(Self { dead, requests, commits, death, spared })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    pub(crate) fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// It does not die of what it was to die of.
    pub(crate) fn spare(&self) {
        self.spared.store(true, Ordering::SeqCst);
    }

    /// Counts a commit; whether it is the one to die at.
    pub(crate) fn at_commit(&self) -> Option<When> {
        let count = self.commits.fetch_add(1, Ordering::SeqCst) + 1;
        match self.death {
            Death::AtCommit(at, when) if at == count && !self.spared.load(Ordering::SeqCst) => Some(when),
            _ => None,
        }
    }

    fn at_request(&self) -> Option<When> {
        let count = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        match self.death {
            Death::AtRequest(at, when) if at == count && !self.spared.load(Ordering::SeqCst) => Some(when),
            _ => None,
        }
    }
}

/// The gateway of a trial.
#[derive(Clone)]
pub(crate) struct Gateway(Arc<Lane>);

struct Lane {
    to: String,
    http: reqwest::Client,
    url: Mutex<String>,
    /// The process that may speak, and its number.
    life: Mutex<(u64, Arc<Switch>)>,
    /// How many nodes there seem to be. Of several only the first is at fault.
    nodes: usize,
    spells: Mutex<BTreeMap<Spell, Instant>>,
    dice: Mutex<Dice>,
    record: Mutex<Record>,
}

/// What went through.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Questions that a fault met.
    pub(crate) faults: BTreeMap<Spell, u64>,
    pub(crate) questions: u64,
    /// Channels of which somebody was told too high a balance.
    pub(crate) deceived: HashSet<ChannelId>,
}

/// What is done with an answer.
enum Reply {
    Json(Value),
    Status(StatusCode),
    Broken,
}

impl Gateway {
    pub(crate) async fn open(to: &str, nodes: usize, dice: Dice) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let nobody = Switch::new(Death::Never);
        nobody.kill();
        let (spells, record) = Default::default();
        let lane = Arc::new(Lane {
            to: to.to_owned(),
            http,
            url: Mutex::default(),
            life: Mutex::new((0, nobody)),
            nodes,
            spells,
            dice: Mutex::new(dice),
            record,
        });
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        *lane.url.lock().unwrap() = format!("http://{}", socket.local_addr().unwrap());
        let router = axum::Router::new().fallback(axum::routing::post(pass)).with_state(Arc::clone(&lane));
        tokio::spawn(async move { axum::serve(socket, router).await.unwrap() });
        Self(lane)
    }

    /// The nodes' addresses for a new process; those before it are not heard any more.
    pub(crate) fn addresses_of(&self, switch: &Arc<Switch>) -> Vec<String> {
        let mut life = self.0.life.lock().unwrap();
        *life = (life.0 + 1, Arc::clone(switch));
        let url = self.0.url.lock().unwrap();
        (0..self.0.nodes).map(|node| format!("{url}/{}/{node}", life.0)).collect()
    }

    /// Whether a lie about a balance can be believed: nobody contradicts it.
    pub(crate) fn is_alone(&self) -> bool {
        self.0.nodes == 1
    }

    pub(crate) fn begin(&self, spell: Spell, lasts: Duration) {
        let until = Instant::now() + lasts;
        self.0.spells.lock().unwrap().insert(spell, until);
    }

    /// Ends all that is going on.
    pub(crate) fn calm(&self) {
        self.0.spells.lock().unwrap().clear();
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Record) -> T) -> T {
        read(&self.0.record.lock().unwrap())
    }

    pub(crate) fn count(&self, spell: Spell) {
        self.0.count(spell);
    }
}

impl Lane {
    /// Whether a spell is at work.
    fn under(&self, spell: Spell) -> bool {
        self.spells.lock().unwrap().get(&spell).is_some_and(|until| Instant::now() < *until)
    }

    /// Whether a spell strikes this time: once in so many.
    fn strikes(&self, spell: Spell, once_in: usize) -> bool {
        let strikes = self.under(spell) && self.below(once_in) == 0;
        if strikes {
            self.count(spell);
        }
        strikes
    }

    fn count(&self, spell: Spell) {
        *self.record.lock().unwrap().faults.entry(spell).or_default() += 1;
    }

    fn below(&self, bound: usize) -> usize {
        self.dice.lock().unwrap().below(bound)
    }

    async fn silence(&self, spell: Spell) {
        let until = self.spells.lock().unwrap().get(&spell).copied();
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        tokio::time::sleep(left.min(LONGEST_SILENCE)).await;
    }

    async fn forward(&self, question: &Value) -> Value {
        self.http.post(&self.to).json(question).send().await.unwrap().json().await.unwrap()
    }

    async fn head(&self) -> u64 {
        let answer = self.forward(&json!({"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []})).await;
        number(&answer["result"])
    }

    async fn honestly(&self, question: Value) -> Reply {
        self.record.lock().unwrap().questions += 1;
        Reply::Json(self.forward(&question).await)
    }

    async fn answer(self: &Arc<Self>, question: Value) -> Reply {
        let method = question["method"].as_str().unwrap().to_owned();
        self.record.lock().unwrap().questions += 1;
        let sends = method == "eth_sendRawTransaction";
        if self.strikes(Spell::Down, 1) {
            if self.below(2) == 0 {
                self.silence(Spell::Down).await;
            }
            return Reply::Status(StatusCode::SERVICE_UNAVAILABLE);
        }
        if self.strikes(Spell::Slow, 2) {
            let ms = self.below(60);
            tokio::time::sleep(Duration::from_millis(ms as u64)).await;
        }
        if self.strikes(Spell::Errors, 3) {
            return self.error();
        }
        if sends {
            return self.send(question).await;
        }
        let answer = match self.strikes(Spell::Behind, 2) {
            true => self.as_one_behind(&method, question.clone()).await,
            false => self.forward(&question).await,
        };
        if self.strikes(Spell::AnswerLost, 4) {
            return Reply::Status(StatusCode::BAD_GATEWAY);
        }
        Reply::Json(self.lie(&method, &question, answer))
    }

    fn error(&self) -> Reply {
        let error = |code: i64, message: &str| {
            Reply::Json(json!({"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": message}}))
        };
        match self.below(7) {
            0 => error(-32000, "header not found"),
            1 => error(-32603, "internal error"),
            2 => error(-32005, "limit exceeded"),
            3 => error(-32000, "request timed out"),
            4 => Reply::Status(StatusCode::TOO_MANY_REQUESTS),
            5 => Reply::Status(StatusCode::INTERNAL_SERVER_ERROR),
            _ => Reply::Broken,
        }
    }

    /// A transaction: delivered, or not, or later; and its sender hears of it, or not.
    async fn send(self: &Arc<Self>, question: Value) -> Reply {
        let raw = hex::decode(question["params"][0].as_str().unwrap()).unwrap();
        let accepted = json!({"jsonrpc": "2.0", "id": 1, "result": alloy::primitives::keccak256(&raw)});
        if self.strikes(Spell::Dropped, 2) {
            return Reply::Json(accepted);
        }
        if self.strikes(Spell::Stuck, 2) {
            let (lane, ms) = (Arc::clone(self), 50 + self.below(350));
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(ms as u64)).await;
                lane.forward(&question).await;
            });
            return Reply::Json(accepted);
        }
        let answer = self.forward(&question).await;
        if self.strikes(Spell::AnswerLost, 2) {
            if self.below(2) == 0 {
                self.silence(Spell::AnswerLost).await;
            }
            return Reply::Status(StatusCode::BAD_GATEWAY);
        }
        Reply::Json(answer)
    }

    /// What a node says that has not seen the newest blocks.
    async fn as_one_behind(&self, method: &str, mut question: Value) -> Value {
        let behind = 1 + self.below(MAX_BEHIND) as u64;
        let newest = self.head().await.saturating_sub(behind);
        let said = |result: Value| json!({"jsonrpc": "2.0", "id": 1, "result": result});
        let missing = || json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "header not found"}});
        let at = format!("{newest:#x}");
        let place = match method {
            "eth_blockNumber" => return said(json!(at)),
            "eth_getBlockByNumber" => 0,
            "eth_call" | "eth_estimateGas" | "eth_getBalance" | "eth_getCode" | "eth_getTransactionCount" => 1,
            "eth_getLogs" => {
                let filter = &mut question["params"][0];
                if filter["fromBlock"].as_str().is_some_and(|_| number(&filter["fromBlock"]) > newest) {
                    return said(json!([]));
                }
                if filter["toBlock"].as_str().is_some_and(|to| !to.starts_with("0x"))
                    || number(&filter["toBlock"]) > newest
                {
                    filter["toBlock"] = json!(at);
                }
                return self.forward(&question).await;
            }
            "eth_getTransactionReceipt" | "eth_getTransactionByHash" => {
                let answer = self.forward(&question).await;
                let block = &answer["result"]["blockNumber"];
                let unseen = block.is_string() && number(block) > newest;
                return if unseen { said(Value::Null) } else { answer };
            }
            _ => return self.forward(&question).await,
        };
        let params = question["params"].as_array_mut().unwrap();
        if params.len() <= place {
            params.resize(place + 1, json!("latest"));
        }
        match params[place].as_str() {
            Some(tag) if !tag.starts_with("0x") => params[place] = json!(at),
            Some(_) if number(&params[place]) > newest => {
                return if place == 0 { said(Value::Null) } else { missing() };
            }
            _ => {}
        }
        self.forward(&question).await
    }

    /// Falsehoods about counts and balances.
    fn lie(&self, method: &str, question: &Value, mut answer: Value) -> Value {
        if answer["result"].is_null() {
            return answer;
        }
        match method {
            "eth_getTransactionCount" => {
                let count = number(&answer["result"]);
                if self.strikes(Spell::NonceTooLow, 2) {
                    answer["result"] = json!(format!("{:#x}", count.saturating_sub(1 + self.below(2) as u64)));
                } else if self.strikes(Spell::NonceTooHigh, 2) {
                    answer["result"] = json!(format!("{:#x}", count + 1 + self.below(3) as u64));
                }
            }
            "eth_getBalance" if self.strikes(Spell::NoGas, 2) => answer["result"] = json!("0x0"),
            "eth_call" => {
                let higher = match (self.under(Spell::BalanceTooHigh), self.under(Spell::BalanceTooLow)) {
                    (true, _) => true,
                    (false, true) => false,
                    (false, false) => return answer,
                };
                if let Some(false_answer) = self.balances(question, &answer["result"], higher) {
                    self.count(if higher { Spell::BalanceTooHigh } else { Spell::BalanceTooLow });
                    answer["result"] = json!(hex::encode_prefixed(false_answer));
                }
            }
            _ => {}
        }
        answer
    }

    /// The answer with other balances of some channels, if it is about channels.
    fn balances(&self, question: &Value, answer: &Value, higher: bool) -> Option<Vec<u8>> {
        let call = &question["params"][0];
        let data = hex::decode(call["data"].as_str().or(call["input"].as_str())?).ok()?;
        let answer = hex::decode(answer.as_str()?).ok()?;
        let to = call["to"].as_str()?.to_lowercase();
        if to == genesis::SETTLEMENT.to_string().to_lowercase() {
            return self.balance(&data, &answer, higher);
        }
        let asked = abi::aggregate3Call::abi_decode(&data).ok()?;
        let mut answers = abi::aggregate3Call::abi_decode_returns(&answer).ok()?;
        let mut lied = false;
        for (call, answer) in asked.calls.iter().zip(&mut answers) {
            if let Some(other) = self.balance(&call.callData, &answer.returnData, higher) {
                answer.returnData = Bytes::from(other);
                lied = true;
            }
        }
        lied.then(|| abi::aggregate3Call::abi_encode_returns(&answers))
    }

    fn balance(&self, data: &[u8], answer: &[u8], higher: bool) -> Option<Vec<u8>> {
        let call = abi::channelsCall::abi_decode(data).ok()?;
        let mut state = abi::channelsCall::abi_decode_returns(answer).ok()?;
        // Of some channels only, and not of those without a deposit.
        if call.channelId[0] % 4 != 0 || state.balance == 0 {
            return None;
        }
        if higher {
            self.record.lock().unwrap().deceived.insert(ChannelId(call.channelId.0));
            state.balance += 20_000;
        } else {
            // Never nothing: a channel that looks drained is not read again until its payer comes, and here nobody does.
            state.balance = state.totalClaimed + (state.balance - state.totalClaimed).div_ceil(2);
        }
        let state = (U256::from(state.balance), U256::from(state.totalClaimed));
        Some([state.0.to_be_bytes::<32>(), state.1.to_be_bytes::<32>()].concat())
    }
}

async fn pass(State(lane): State<Arc<Lane>>, uri: Uri, body: bytes::Bytes) -> Response {
    let (current, switch) = {
        let life = lane.life.lock().unwrap();
        (life.0, Arc::clone(&life.1))
    };
    let mut path = uri.path().trim_start_matches('/').split('/');
    if path.next() != Some(&current.to_string()) || switch.is_dead() {
        return std::future::pending().await;
    }
    let at_fault = path.next() == Some("0");
    let death = switch.at_request();
    if death == Some(When::Before) {
        switch.kill();
        return std::future::pending().await;
    }
    let question: Value = serde_json::from_slice(&body).unwrap();
    let reply = if at_fault { lane.answer(question).await } else { lane.honestly(question).await };
    if death == Some(When::After) {
        switch.kill();
    }
    if switch.is_dead() {
        return std::future::pending().await;
    }
    match reply {
        Reply::Json(answer) => axum::Json(answer).into_response(),
        Reply::Status(status) => status.into_response(),
        Reply::Broken => Response::new(Body::from("{\"jsonrpc\":\"2.0\",\"id\":1,\"resu")),
    }
}
