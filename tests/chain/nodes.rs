//! Several nodes as one: each a gateway to one development chain, with faults of its own.

use super::*;
use peaje::chain::{ChainSettings, Counting, NodeHealth, Unwitnessed};
use tokio::net::TcpSocket;

/// How often something is tried for which the product leaves a second or two, and a busy machine may take longer.
const TRIES: u8 = 3;

/// What a gateway answers to a request, told the honest answer.
type Twist = fn(&Value, Value) -> Value;

#[derive(Clone, Copy)]
enum Mode {
    Honest,
    /// Answers everything with this HTTP status.
    Broken(StatusCode),
    /// Never answers.
    Hangs,
    /// Says that it has taken a transaction, and has not.
    Swallows,
    /// Says this to a transaction, which it does not pass on.
    Turns(i64, &'static str),
    Twists(Twist),
}

/// A gateway to a node, whose fault can be changed.
struct Gateway {
    url: String,
    mode: Arc<Mutex<Mode>>,
    asked: Arc<AtomicUsize>,
}

impl Gateway {
    async fn to(upstream: String) -> Self {
        peaje::chain::install_tls();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let (mode, asked) = (Arc::new(Mutex::new(Mode::Honest)), Arc::new(AtomicUsize::new(0)));
        let state = (mode.clone(), asked.clone());
        let answer = move |Json(request): Json<Value>| {
            let (client, upstream, (mode, asked)) = (client.clone(), upstream.clone(), state.clone());
            async move {
                asked.fetch_add(1, Ordering::SeqCst);
                let mode = *mode.lock().unwrap();
                let pass =
                    async || client.post(&upstream).json(&request).send().await.unwrap().json::<Value>().await.unwrap();
                let sends = request["method"] == SEND;
                let reply: Response = match mode {
                    Mode::Hangs => std::future::pending().await,
                    Mode::Broken(status) => (status, "no").into_response(),
                    Mode::Swallows if sends => {
                        let raw = alloy::primitives::hex::decode(request["params"][0].as_str().unwrap()).unwrap();
                        Json(rpc_result(json!(B256::new(keccak256(&raw).0)))).into_response()
                    }
                    Mode::Turns(code, message) if sends => Json(rpc_error(code, message)).into_response(),
                    Mode::Twists(twist) => Json(twist(&request, pass().await)).into_response(),
                    Mode::Honest | Mode::Swallows | Mode::Turns(..) => Json(pass().await).into_response(),
                };
                reply
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(axum::routing::post(answer));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, mode, asked }
    }

    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// With a secret in it, as providers have it.
    fn secret_url(&self) -> RpcUrl {
        format!("{}/v2/secret-api-key", self.url).parse().unwrap()
    }
}

fn settings(nodes: Vec<RpcUrl>) -> ChainSettings {
    ChainSettings { nodes, gas_key: Some(dev("gas")), deposits: Counting::default(), max_lag: None }
}

async fn gateways<const N: usize>(stage: &Stage) -> [Gateway; N] {
    let mut all = Vec::new();
    for _ in 0..N {
        all.push(Gateway::to(stage.devnet.rpc_url()).await);
    }
    all.try_into().unwrap_or_else(|_| unreachable!())
}

async fn over(gateways: &[Gateway]) -> AlloyChain {
    AlloyChain::open(settings(gateways.iter().map(Gateway::secret_url).collect())).await.unwrap()
}

/// A node that is not there, for as long as the socket is held.
fn closed() -> (TcpSocket, RpcUrl) {
    let (held, address) = nobody();
    (held, format!("http://{address}/v2/secret-api-key").parse().unwrap())
}

fn healths(chain: &AlloyChain) -> Vec<(bool, bool)> {
    chain.nodes().iter().map(|node| (node.preferred, node.ok)).collect()
}

/// Asks until this is what the nodes look like; a node that failed is looked at again after a second or two.
async fn until(chain: &AlloyChain, expected: impl Fn(&[NodeHealth]) -> bool) {
    let deadline = tokio::time::Instant::now() + WAIT;
    loop {
        chain.head().await.unwrap();
        if expected(&chain.nodes()) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{:?}", chain.nodes());
        tokio::time::sleep(POLL).await;
    }
}

const DEAD: Mode = Mode::Broken(StatusCode::SERVICE_UNAVAILABLE);

/// Puts another number where a balance of 100,000 is read.
fn more_balance(request: &Value, mut answer: Value) -> Value {
    if request["method"] == "eth_call"
        && let Some(data) = answer["result"].as_str()
    {
        answer["result"] = json!(data.replace(&format!("{:064x}", 100_000), &format!("{:064x}", 900_000)));
    }
    answer
}

#[tokio::test]
async fn questions_go_to_the_first_node_that_works() {
    let stage = Stage::set().await;
    let nodes = gateways::<2>(&stage).await;
    let chain = over(&nodes).await;
    let mut first_asked = nodes[0].asked();
    let mut second_asked = nodes[1].asked();
    let ask = async || chain.has_code(dev("gas").address()).await;
    ask().await.unwrap();
    assert_eq!((nodes[0].asked(), nodes[1].asked()), (first_asked + 1, second_asked), "the order is the preference");
    assert_eq!(healths(&chain), [(true, true), (false, true)]);

    let faults = [
        DEAD,
        Mode::Broken(StatusCode::TOO_MANY_REQUESTS),
        Mode::Twists(|_, _| json!({"hello": 1})),
        Mode::Twists(|_, _| rpc_error(-32005, "rate limit exceeded")),
    ];
    for fault in faults {
        let mut tries = 0..TRIES;
        loop {
            tries.next().expect("this machine is too slow for a second");
            let begun = tokio::time::Instant::now();
            nodes[0].set(fault);
            assert!(!ask().await.unwrap());
            assert_eq!(healths(&chain), [(false, false), (true, true)]);
            let problem = chain.nodes()[0].problem.clone().unwrap();
            assert!(!problem.contains("secret"), "{problem}");
            first_asked = nodes[0].asked();
            ask().await.unwrap();
            chain.head().await.unwrap();
            let asked = nodes[0].asked();
            let took = begun.elapsed();
            nodes[0].set(Mode::Honest);
            until(&chain, |nodes| nodes[0].preferred && nodes[0].ok && nodes[0].problem.is_none()).await;
            // It is left alone for a second. What takes longer shows nothing.
            if took < Duration::from_millis(900) {
                assert_eq!(asked, first_asked);
                break;
            }
        }
    }
    second_asked = nodes[1].asked();
    ask().await.unwrap();
    assert_eq!(nodes[1].asked(), second_asked, "and the first is asked again");

    // None at all: the error is the first one's, and a node that comes back is found at once, avoided or not.
    for node in &nodes {
        node.set(DEAD);
    }
    for _ in 0..2 {
        let error = chain.head().await.unwrap_err();
        assert!(matches!(error, ChainError::Unreachable { .. }), "{error:?}");
        assert!(!shown(&error).contains("secret-api-key"));
    }
    nodes[1].set(Mode::Honest);
    chain.head().await.unwrap();
}

#[tokio::test]
async fn a_node_that_hangs_holds_up_nothing_for_long() {
    let stage = Stage::set().await;
    let nodes = gateways::<2>(&stage).await;
    let chain = over(&nodes).await;
    nodes[0].set(Mode::Hangs);
    // Also where it is only asked for one side of a comparison, and where it should take a transaction.
    assert_eq!(chain.channel(stage.id(1)).await.unwrap().balance, Amount::ZERO);
    assert_eq!(healths(&chain), [(false, false), (true, true)]);
    mine(&chain, &stage.deposit(1, 100_000)).await;
    assert_eq!(chain.channel(stage.id(1)).await.unwrap().balance, Amount::new(100_000));
}

#[tokio::test]
async fn what_all_nodes_refuse_is_the_questions_fault() {
    let stage = Stage::set().await;
    let nodes = gateways::<2>(&stage).await;
    let chain = over(&nodes).await;
    let late = stage.devnet.block_number() + 1_000;
    nodes.iter().for_each(|node| {
        node.set(Mode::Twists(|request, answer| {
            if request["method"] == "eth_getBalance" { rpc_error(-32602, "what is this") } else { answer }
        }))
    });
    let error = chain.gas_balance(SETTLEMENT).await.unwrap_err();
    assert!(matches!(error, ChainError::Refused { code: -32602, .. }), "{error:?}");
    // A revert is an answer, and the second need not be asked.
    let asked = nodes[1].asked();
    assert!(matches!(chain.simulate(&stage.deposit(1, 0)).await, Err(ChainError::Reverted { .. })));
    assert_eq!(nodes[1].asked(), asked);
    assert_eq!(chain.block(late).await.unwrap(), None);
    assert_eq!(healths(&chain), [(true, true), (false, true)]);
}

#[tokio::test]
async fn nodes_of_different_chains_are_refused() {
    let stage = Stage::set().await;
    let other = Devnet::start(DevnetConfig { chain_id: 8453, ..DevnetConfig::default() }).await.unwrap();
    let [one] = gateways(&stage).await;
    let foreign = Gateway::to(other.rpc_url()).await;

    let error = AlloyChain::open(settings(vec![one.secret_url(), foreign.secret_url()])).await.unwrap_err();
    let ChainError::Disagreement { nodes, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*nodes, [one.url.clone(), foreign.url.clone()]);
    assert!(error.to_string().contains(&foreign.url) && !shown(&error).contains("secret-api-key"), "{error}");

    // One that did not answer is held to it later.
    foreign.set(DEAD);
    let chain = AlloyChain::open(settings(vec![foreign.secret_url(), one.secret_url()])).await.unwrap();
    assert_eq!(chain.chain_id(), 84532);
    foreign.set(Mode::Honest);
    until(&chain, |nodes| nodes[0].problem.as_ref().is_some_and(|problem| problem.contains("chain id"))).await;
    assert_eq!(healths(&chain), [(false, false), (true, true)]);
    mine(&chain, &stage.deposit(1, 100_000)).await;
    assert_eq!(chain.channel(stage.id(1)).await.unwrap().balance, Amount::new(100_000));
    assert_eq!(other.block_number(), 0);

    // Some answer is needed, and some node.
    let ((_held, nobody), (_held_too, no_other)) = (closed(), closed());
    let error = AlloyChain::open(settings(vec![nobody.clone(), no_other])).await.unwrap_err();
    assert!(matches!(error, ChainError::Unreachable { .. }), "{error:?}");
    assert!(AlloyChain::open(settings(Vec::new())).await.is_err());
    AlloyChain::open(settings(vec![nobody, one.secret_url()])).await.unwrap();
}

#[tokio::test]
async fn a_transaction_goes_to_every_node() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let nodes = gateways::<2>(&stage).await;
    let chain = over(&nodes).await;
    // Whether all of them get it at once. The others have two seconds once one has taken it; where one was kept from its
    // work for longer, it is sent again, for the sake of those after it.
    let is_sent_at_once = async |salt: u8| {
        let notary = Notary::of(&stage, true);
        let hash = chain.send_witnessed(&stage.deposit(salt, 1_000), Bid::default(), None, &notary).await.unwrap();
        let signed = notary.shown().pop().unwrap();
        let has = || stage.devnet.pending_transactions().contains(&B256::new(hash.0));
        let at_once = has();
        for _ in 0..TRIES {
            if !has() {
                chain.resend(&signed).await.unwrap();
            }
        }
        assert!(has(), "{salt}: it is sent again");
        at_once
    };
    let reaches_the_other = async |salt: u8| {
        for number in 0..TRIES {
            if is_sent_at_once(salt + 10 * number).await {
                return true;
            }
        }
        false
    };
    // What the first does; the second is honest.
    let faults = [
        Mode::Swallows,
        Mode::Turns(-32000, "transaction underpriced"),
        Mode::Turns(-32000, "nonce too low"),
        Mode::Turns(-32603, "internal error"),
        DEAD,
    ];
    for (salt, fault) in (1..).zip(faults) {
        nodes[0].set(fault);
        assert!(reaches_the_other(salt).await, "{salt}");
        // The other way round.
        nodes[0].set(Mode::Honest);
        nodes[1].set(fault);
        assert!(reaches_the_other(100 + salt).await, "{salt}");
        nodes[1].set(Mode::Honest);
    }
    stage.devnet.mine(1).unwrap();
    assert_eq!(chain.channel(stage.id(5)).await.unwrap().balance, Amount::new(1_000));
}

#[tokio::test]
async fn several_nodes_refuse_together_and_one_unclear_word_is_unclear() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let nodes = gateways::<2>(&stage).await;
    let chain = over(&nodes).await;
    let refuses = Mode::Turns(-32000, "transaction underpriced");
    let unclear = Mode::Turns(-32603, "internal error");
    for (modes, lost) in [([refuses, refuses], true), ([refuses, unclear], false), ([unclear, refuses], false)] {
        nodes.iter().zip(modes).for_each(|(node, mode)| node.set(mode));
        let error = chain.send(&stage.deposit(1, 1_000)).await.unwrap_err();
        assert_eq!(error.maybe_sent().is_none(), lost, "{error:?}");
    }
    // One that nobody could reach has not had it.
    let (_held, nobody) = closed();
    let alone = AlloyChain::open(settings(vec![nobody, nodes[1].secret_url()])).await.unwrap();
    nodes[1].set(refuses);
    let error = alone.send(&stage.deposit(1, 1_000)).await.unwrap_err();
    let SendError::Refused(ChainError::Refused { message, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(message, "transaction underpriced", "what was said is told, not what was not");
    assert!(stage.devnet.pending_transactions().is_empty());
}

#[tokio::test]
async fn a_node_that_lies_is_found_out_by_a_second() {
    let stage = Stage::set().await;
    stage.mine(&stage.deposit(1, 100_000)).await;
    let nodes = gateways::<2>(&stage).await;
    let chain = over(&nodes).await;
    let ids = [stage.id(1), stage.id(2)];
    let honest = chain.channels(&ids).await.unwrap();
    assert_eq!(honest[0].balance, Amount::new(100_000));
    for liar in 0..2 {
        nodes[liar].set(Mode::Twists(more_balance));
        let error = chain.channels(&ids).await.unwrap_err();
        let ChainError::Disagreement { nodes: named, .. } = &error else { panic!("{error:?}") };
        assert_eq!(named.len(), 2);
        let text = shown(&error);
        assert!(nodes.iter().all(|node| text.contains(&node.url)) && !text.contains("secret"), "{text}");
        for health in chain.nodes() {
            assert!(!health.ok && health.problem.unwrap().contains("disagrees on the channels"));
        }
        nodes[liar].set(Mode::Honest);
        assert_eq!(chain.channels(&ids).await.unwrap(), honest);
        assert_eq!(healths(&chain), [(true, true), (false, true)]);
    }
}

#[tokio::test]
async fn a_node_that_lies_is_outvoted_by_two() {
    let stage = Stage::set().await;
    stage.mine(&stage.deposit(1, 100_000)).await;
    let ids = [stage.id(1)];
    for liar in 0..3 {
        let nodes = gateways::<3>(&stage).await;
        let chain = over(&nodes).await;
        nodes[liar].set(Mode::Twists(more_balance));
        for _ in 0..3 {
            assert_eq!(chain.channels(&ids).await.unwrap()[0].balance, Amount::new(100_000), "liar {liar}");
        }
        let suspected: Vec<_> = chain.nodes().iter().map(|node| !node.ok).collect();
        // The third was not asked unless the first two differed.
        let expected = [liar == 0, liar == 1, false];
        assert_eq!(suspected, expected);
        if liar < 2 {
            let problem = chain.nodes()[liar].problem.clone().unwrap();
            assert!(problem.contains("outvoted") && problem.contains(&nodes[2].url), "{problem}");
            // Nobody asks it now.
            let asked = nodes[liar].asked();
            chain.head().await.unwrap();
            chain.channels(&ids).await.unwrap();
            assert_eq!(nodes[liar].asked(), asked);
        }
    }
    // Three stories are one too many.
    let nodes = gateways::<3>(&stage).await;
    let chain = over(&nodes).await;
    nodes[0].set(Mode::Twists(more_balance));
    nodes[1].set(Mode::Twists(|request, answer| {
        let mut answer = more_balance(request, answer);
        if let Some(data) = answer["result"].as_str() {
            answer["result"] = json!(data.replace(&format!("{:064x}", 900_000), &format!("{:064x}", 800_000)));
        }
        answer
    }));
    let error = chain.channels(&ids).await.unwrap_err();
    assert!(matches!(&error, ChainError::Disagreement { nodes, .. } if nodes.len() == 3), "{error:?}");
}

#[tokio::test]
async fn what_a_receiver_is_owed_and_whether_a_deposit_was_used_are_compared_too() {
    let stage = Stage::set().await;
    stage.mine(&stage.deposit(1, 100_000)).await;
    stage.mine(&stage.claim_with_signature(vec![stage.row(1, 100_000, 100_000)])).await;
    let nodes = gateways::<2>(&stage).await;
    let chain = over(&nodes).await;
    let receiver = stage.receiver.address();
    let (payer, nonce) = (stage.payer.address(), Authorization::nonce(stage.id(1), Hash([0x5a; 32])));
    assert_eq!(chain.receivers(receiver, dollar()).await.unwrap().due(), Amount::new(100_000));
    assert!(chain.authorization_used(dollar(), payer, nonce).await.unwrap());

    // What reverts everywhere is nobody's lie.
    let error = chain.authorization_used(SETTLEMENT, payer, nonce).await.unwrap_err();
    assert!(matches!(&error, ChainError::Reverted { .. }), "{error:?}");
    assert_eq!(healths(&chain), [(true, true), (false, true)]);

    nodes[1].set(Mode::Twists(more_balance));
    let error = chain.receivers(receiver, dollar()).await.unwrap_err();
    assert!(matches!(&error, ChainError::Disagreement { .. }), "{error:?}");
    nodes[1].set(Mode::Twists(|request, answer| {
        if request["method"] == "eth_call" { rpc_result(json!(format!("0x{:064x}", 0))) } else { answer }
    }));
    let error = chain.authorization_used(dollar(), payer, nonce).await.unwrap_err();
    assert!(matches!(&error, ChainError::Disagreement { .. }), "{error:?}");
}

#[tokio::test]
async fn the_only_node_that_answers_is_taken_at_its_word() {
    let stage = Stage::set().await;
    stage.mine(&stage.deposit(1, 100_000)).await;
    let nodes = gateways::<2>(&stage).await;
    let chain = over(&nodes).await;
    nodes[0].set(DEAD);
    nodes[1].set(Mode::Twists(more_balance));
    assert_eq!(chain.channel(stage.id(1)).await.unwrap().balance, Amount::new(900_000), "there is nobody to ask");
    let health = chain.nodes();
    assert!(!health[0].ok && health[1].ok && health[1].problem.as_ref().unwrap().contains("taken at its word"));
    nodes[0].set(Mode::Honest);
    until(&chain, |nodes| nodes[0].ok).await;
    assert!(chain.channel(stage.id(1)).await.is_err());
}

#[tokio::test]
async fn nodes_are_compared_at_a_block_that_both_have() {
    let stage = Stage::set().await;
    stage.mine(&stage.deposit(1, 100_000)).await;
    let block = stage.devnet.block_number();
    stage.devnet.mine(3).unwrap();
    stage.mine(&stage.deposit(2, 50_000)).await;
    let nodes = gateways::<2>(&stage).await;
    let chain = over(&nodes).await;
    // The second has not seen the last four blocks.
    fn four_behind(request: &Value, mut answer: Value) -> Value {
        if request["params"][0] == "latest" {
            let number = number_of(&answer["result"]["number"]) - 4;
            answer["result"]["number"] = json!(format!("{number:#x}"));
        }
        answer
    }
    nodes[1].set(Mode::Twists(four_behind));
    let views = chain.channels(&[stage.id(1), stage.id(2)]).await.unwrap();
    assert_eq!((views[0].block, views[0].balance, views[1].balance), (block, Amount::new(100_000), Amount::ZERO));
    // Nobody is told of a block whose channels could not be shown yet.
    assert_eq!(chain.head().await.unwrap().number, block);
    assert_eq!(healths(&chain), [(true, true), (false, true)]);

    // One that is far behind is left out.
    stage.devnet.mine(40).unwrap();
    let head = stage.devnet.block_number();
    nodes[1].set(Mode::Twists(|request, answer| (0..10).fold(answer, |answer, _| four_behind(request, answer))));
    let views = chain.channels(&[stage.id(1), stage.id(2)]).await.unwrap();
    assert_eq!((views[0].block, views[1].balance), (head, Amount::new(50_000)));
    assert_eq!(chain.head().await.unwrap().number, head);
    assert_eq!(healths(&chain), [(true, true), (false, false)]);
}

fn number_of(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// A node that stopped two hours ago.
fn frozen(request: &Value, mut answer: Value) -> Value {
    if request["method"] == "eth_getBlockByNumber" {
        let timestamp = number_of(&answer["result"]["timestamp"]) - 7_200;
        answer["result"]["timestamp"] = json!(format!("{timestamp:#x}"));
    }
    answer
}

#[tokio::test]
async fn a_frozen_node_does_not_look_fresh() {
    let stage = Stage::set().await;
    stage.mine(&stage.deposit(1, 100_000)).await;
    let nodes = gateways::<2>(&stage).await;
    let [one, two] = &nodes;
    one.set(Mode::Twists(frozen));
    let hour = Some(Duration::from_secs(3_600));
    let open =
        async |urls: Vec<RpcUrl>, max_lag| AlloyChain::open(ChainSettings { max_lag, ..settings(urls) }).await.unwrap();
    // Alone, everything it says is an error.
    let chain = open(vec![one.secret_url()], hour).await;
    let errors = [
        chain.head().await.unwrap_err(),
        chain.channel(stage.id(1)).await.unwrap_err(),
        chain.token_balance(dollar(), SETTLEMENT).await.unwrap_err(),
        chain.nonces().await.unwrap_err(),
        chain.events(0, 1).await.unwrap_err(),
        chain.simulate(&stage.deposit(2, 1)).await.unwrap_err(),
    ];
    for error in errors {
        let ChainError::Behind { by_s } = error else { panic!("{error:?}") };
        assert!((7_200..7_300).contains(&by_s), "{by_s}");
    }
    let health = chain.nodes().remove(0);
    assert!(!health.ok && health.lag_s.unwrap() >= 7_200 && health.head == Some(stage.devnet.block_number()));
    // It comes back by itself.
    one.set(Mode::Honest);
    chain.head().await.unwrap();
    assert!(chain.nodes()[0].ok && chain.nodes()[0].problem.is_none());
    one.set(Mode::Twists(frozen));
    // Whoever does not ask does not learn.
    open(vec![one.secret_url()], None).await.channel(stage.id(1)).await.unwrap();
    open(vec![one.secret_url()], Some(Duration::from_secs(7_300))).await.channel(stage.id(1)).await.unwrap();
    // With another, that one is asked.
    let chain = open(vec![one.secret_url(), two.secret_url()], hour).await;
    assert_eq!(chain.channel(stage.id(1)).await.unwrap().balance, Amount::new(100_000));
    assert_eq!(healths(&chain), [(false, false), (true, true)]);
    assert!(chain.nodes()[0].problem.as_ref().unwrap().contains("behind"));
    // A clock of ours that is slow makes no node late.
    stage.devnet.increase_time(Duration::from_secs(86_400));
    stage.devnet.mine(1).unwrap();
    let chain = open(vec![two.secret_url()], Some(Duration::from_secs(60))).await;
    chain.channel(stage.id(1)).await.unwrap();
    assert_eq!(chain.nodes()[0].lag_s, Some(0));
}

#[tokio::test]
async fn a_receipt_is_found_whoever_has_it() {
    let stage = Stage::set().await;
    let mined = stage.mine(&stage.deposit(1, 100_000)).await;
    let nodes = gateways::<2>(&stage).await;
    let chain = over(&nodes).await;
    let silent: Twist = |request, answer| {
        let silent = ["eth_getTransactionReceipt", "eth_getTransactionByHash", "eth_getBlockByNumber"];
        let hides = silent.iter().any(|method| request["method"] == *method) && request["params"][0] != "latest";
        if hides { rpc_result(Value::Null) } else { answer }
    };
    for fault in [Mode::Twists(silent), DEAD] {
        nodes[0].set(fault);
        assert_eq!(chain.receipt(mined.hash).await.unwrap(), Some(mined.clone()));
        assert_eq!(chain.block(mined.block).await.unwrap().unwrap().hash, mined.block_hash);
    }
    // What nobody has is nothing, as long as somebody says so.
    nodes[1].set(Mode::Twists(silent));
    assert_eq!(chain.receipt(mined.hash).await.unwrap(), None);
    nodes[1].set(DEAD);
    assert!(chain.receipt(mined.hash).await.is_err());
}

#[tokio::test]
async fn a_transaction_is_not_called_replaced_while_a_node_has_it() {
    let stage = Stage::set().await;
    let nodes = gateways::<2>(&stage).await;
    let chain = over(&nodes).await;
    let notary = Notary::of(&stage, true);
    let hash = chain.send_witnessed(&stage.deposit(1, 1_000), Bid::default(), None, &notary).await.unwrap();
    let signed = notary.shown().pop().unwrap();
    assert!(chain.await_receipt(hash, WAIT, POLL).await.unwrap().is_some());
    nodes[0].set(Mode::Twists(|request, answer| match request["method"].as_str().unwrap() {
        SEND => rpc_error(-32000, "nonce too low: next nonce 1, tx nonce 0"),
        "eth_getTransactionByHash" => rpc_result(Value::Null),
        _ => answer,
    }));
    nodes[1].set(Mode::Turns(-32000, "nonce too low: next nonce 1, tx nonce 0"));
    assert_eq!(chain.resend(&signed).await.unwrap(), Resent::Known);
}

#[tokio::test]
async fn one_wrong_nonce_of_three_changes_nothing_and_of_two_the_larger_is_taken() {
    let stage = Stage::set().await;
    for salt in 1..=3 {
        stage.mine(&stage.deposit(salt, 1_000)).await;
    }
    let low: Twist = |request, answer| {
        if request["method"] == "eth_getTransactionCount" { rpc_result(json!("0x1")) } else { answer }
    };
    let high: Twist = |request, answer| {
        if request["method"] == "eth_getTransactionCount" { rpc_result(json!("0x63")) } else { answer }
    };
    let nodes = gateways::<3>(&stage).await;
    for lie in [low, high] {
        for liar in 0..3 {
            let chain = over(&nodes).await;
            nodes[liar].set(Mode::Twists(lie));
            let nonces = chain.nonces().await.unwrap();
            assert_eq!((nonces.mined, nonces.pending), (3, 3), "liar {liar}");
            nodes[liar].set(Mode::Honest);
        }
    }
    let two = over(&nodes[..2]).await;
    nodes[0].set(Mode::Twists(low));
    assert_eq!(two.nonces().await.unwrap().mined, 3);
    // One that cannot be asked is left out.
    nodes[1].set(DEAD);
    assert_eq!(two.nonces().await.unwrap().mined, 1);
}

/// Each of these alone would keep every claim from being made.
#[tokio::test]
async fn one_wrong_price_balance_or_refusal_of_three_keeps_nothing_from_being_sent() {
    let stage = Stage::set().await;
    let dear: Twist = |request, mut answer| {
        if request["method"] == "eth_getBlockByNumber" {
            answer["result"]["baseFeePerGas"] = json!("0xffffffffffffffff");
        }
        answer
    };
    let poor: Twist = |request, answer| {
        if request["method"] == "eth_getBalance" { rpc_result(json!("0x0")) } else { answer }
    };
    let refusing: Twist = |request, answer| {
        if request["method"] == "eth_estimateGas" { rpc_error(3, "execution reverted") } else { answer }
    };
    let nodes = gateways::<3>(&stage).await;
    for (place, lie) in [dear, poor, refusing].into_iter().enumerate() {
        for (liar, node) in nodes.iter().enumerate() {
            let chain = over(&nodes).await;
            node.set(Mode::Twists(lie));
            let salt = u8::try_from(place * 3 + liar).unwrap() + 1;
            let bid = Bid { ceiling_wei: 1_000_000_000_000, urgent: false };
            let sent = chain.send_witnessed(&stage.deposit(salt, 1_000), bid, None, &Unwitnessed).await.unwrap();
            let mined = chain.await_receipt(sent, WAIT, POLL).await.unwrap().unwrap();
            assert!(mined.success, "lie {place} of {liar}");
            node.set(Mode::Honest);
        }
    }
    // What all refuse is refused, and of two the first is taken at its word.
    let chain = over(&nodes).await;
    let again = stage.deposit(1, 1_000);
    assert!(matches!(chain.simulate(&again).await, Err(ChainError::Reverted { .. })));
    let two = over(&nodes[..2]).await;
    nodes[0].set(Mode::Twists(refusing));
    assert!(matches!(two.simulate(&stage.deposit(99, 1_000)).await, Err(ChainError::Reverted { .. })));
}

#[tokio::test]
async fn logs_that_were_not_asked_for_are_an_error_and_another_node_is_asked() {
    let stage = Stage::set().await;
    stage.mine(&stage.deposit(1, 1_000)).await;
    stage.mine(&stage.deposit(2, 1_000)).await;
    let head = stage.devnet.block_number();
    let honest = stage.chain.events(1, head).await.unwrap();
    let faults: [Twist; 3] = [
        |request, mut answer| {
            if request["method"] == "eth_getLogs" {
                answer["result"][0]["address"] = json!(genesis::DOLLAR);
            }
            answer
        },
        |request, mut answer| {
            if request["method"] == "eth_getLogs" {
                answer["result"][0]["blockNumber"] = json!("0x7777");
            }
            answer
        },
        // Has not got so far, and says nothing about what it has not.
        |request, answer| match request["method"].as_str().unwrap() {
            "eth_getLogs" => rpc_result(json!([])),
            "eth_blockNumber" => rpc_result(json!("0x1")),
            _ => answer,
        },
    ];
    for (case, fault) in faults.into_iter().enumerate() {
        let nodes = gateways::<2>(&stage).await;
        nodes[0].set(Mode::Twists(fault));
        assert_eq!(over(&nodes).await.events(1, head).await.unwrap(), honest, "{case}");
        if case < 2 {
            let error = over(&nodes[..1]).await.events(1, head).await.unwrap_err();
            assert!(matches!(error, ChainError::Decode { .. }), "{error:?}");
        }
    }
}

#[tokio::test]
async fn deposits_count_when_enough_blocks_are_built_on_them() {
    let stage = Stage::set().await;
    let nodes = gateways::<2>(&stage).await;
    let counting = |confirmations, instant| Counting { confirmations, instant: Amount::new(instant) };
    let open = async |nodes: &[Gateway], deposits| {
        let urls = nodes.iter().map(Gateway::secret_url).collect();
        AlloyChain::open(ChainSettings { deposits, ..settings(urls) }).await.unwrap()
    };
    stage.mine(&stage.deposit(1, 1_000)).await;
    stage.devnet.mine(5).unwrap();
    let top_up = {
        // Another authorization for the same channel.
        let (config, amount, salt) = (stage.config(1), Amount::new(500), Hash([0x77; 32]));
        let valid_before = stage.devnet.now() + 300;
        let nonce = Authorization::nonce(stage.id(1), salt);
        let digest = Authorization::digest(&stage.token, config.payer, amount, 0, valid_before, nonce);
        let signature = stage.payer.sign(digest);
        Call::Deposit {
            config,
            amount,
            authorization: Authorization { valid_after: 0, valid_before, salt, signature }.into(),
            payment: None,
        }
    };
    stage.mine(&top_up).await;
    stage.mine(&stage.deposit(2, 300)).await;
    let ids = [stage.id(1), stage.id(2), stage.id(3)];

    // For each number of blocks on top of the last deposit: what counts of both channels, after three confirmations,
    // without an allowance, with a part, and with one that covers all.
    let expected = [
        ([1_000, 0], [1_100, 100], [1_500, 300]),
        ([1_500, 0], [1_500, 100], [1_500, 300]),
        ([1_500, 300], [1_500, 300], [1_500, 300]),
    ];
    let balances = async |chain: &AlloyChain| -> [u128; 2] {
        let views = chain.channels(&ids).await.unwrap();
        assert_eq!((views[2].balance, views[0].block), (Amount::ZERO, stage.devnet.block_number()));
        [views[0].balance.units(), views[1].balance.units()]
    };
    for (nth, (none, part, all)) in expected.into_iter().enumerate() {
        for nodes in [&nodes[..1], &nodes[..]] {
            for (instant, counts) in [(0, none), (100, part), (500, all)] {
                let chain = open(nodes, counting(3, instant)).await;
                assert_eq!(chain.deposits_count_after(), counting(3, instant));
                assert_eq!(balances(&chain).await, counts, "{nth} blocks on top, {instant} at once");
            }
            assert_eq!(balances(&open(nodes, Counting::default()).await).await, [1_500, 300]);
        }
        stage.devnet.mine(1).unwrap();
    }
    // More than the chain has blocks: nothing of it was there at the first.
    assert_eq!(balances(&open(&nodes, counting(1_000, 7)).await).await, [7, 7]);

    // The same without a Multicall3.
    stage.mine(&stage.deposit(4, 400)).await;
    stage.devnet.set_code(genesis::MULTICALL3, Bytes::new()).unwrap();
    let chain = open(&nodes, counting(2, 0)).await;
    let counts = async || chain.channel(stage.id(4)).await.unwrap().balance;
    assert_eq!(counts().await, Amount::ZERO);
    stage.devnet.mine(1).unwrap();
    assert_eq!(counts().await, Amount::new(400));
}

#[tokio::test]
async fn what_left_a_channel_is_gone_at_once_and_what_was_claimed_was_there() {
    let stage = Stage::set().await;
    let deposits = Counting { confirmations: 4, instant: Amount::ZERO };
    let url = stage.devnet.rpc_url().parse().unwrap();
    let chain = AlloyChain::open(ChainSettings { deposits, ..settings(vec![url]) }).await.unwrap();
    stage.mine(&stage.deposit(1, 1_000)).await;
    stage.mine(&stage.claim_with_signature(vec![stage.row(1, 600, 600)])).await;
    let view = chain.channel(stage.id(1)).await.unwrap();
    assert_eq!((view.balance, view.total_claimed), (Amount::new(600), Amount::new(600)), "no more and no less");
    stage.devnet.mine(4).unwrap();
    assert_eq!(chain.channel(stage.id(1)).await.unwrap().balance, Amount::new(1_000));
    stage.mine(&stage.claim_and_refund(Vec::new(), 1, 150, 0)).await;
    let view = chain.channel(stage.id(1)).await.unwrap();
    assert_eq!((view.balance, view.refund_nonce), (Amount::new(850), 1));
}

#[tokio::test]
async fn a_reorganisation_is_followed() {
    let stage = Stage::set().await;
    let nodes = gateways::<2>(&stage).await;
    let chain = over(&nodes).await;
    let mined = stage.mine(&stage.deposit(1, 1_000)).await;
    stage.devnet.mine(2).unwrap();
    let hash_at = async |number| chain.block(number).await.unwrap().unwrap().hash;
    let before = hash_at(mined.block).await;
    assert_eq!(before, mined.block_hash);
    assert_eq!(chain.channel(stage.id(1)).await.unwrap().balance, Amount::new(1_000));
    stage.devnet.reorg(3).unwrap();
    assert_ne!(hash_at(mined.block).await, before);
    assert_eq!(hash_at(mined.block - 1).await, Hash(stage.devnet.block_hash(mined.block - 1).unwrap().0));
    assert_eq!(chain.channel(stage.id(1)).await.unwrap().balance, Amount::ZERO);
    assert_eq!(chain.receipt(mined.hash).await.unwrap(), None);
    assert_eq!(chain.block(stage.devnet.block_number() + 1).await.unwrap(), None);
}
