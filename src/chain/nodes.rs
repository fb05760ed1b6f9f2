//! Several nodes as one.
//!
//! **Owns** which node is asked, and what is believed where they differ. **Promises** that questions go to the first node
//! that is not known to fail, in the order of the config, and to the next where that one fails; that what money hangs on is
//! read from two nodes at one block and compared ([`Nodes::agree`]); and that a transaction goes to all of them. What
//! cannot be compared, like a price, is the middle of what all say where there are three or more. **Does not** know what is
//! asked.
//!
//! One node that lies is found out by a second and outvoted by a third. Two that lie the same way are believed. Where one
//! answers and no other, its word is taken: a second node must not make things worse than having one.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use super::broadcast::{Broadcast, Verdict};
use super::error::ChainError;
use super::node::{Node, Standing};
use super::types::{Head, NodeHealth, SignedTransaction};
use super::url::RpcUrl;

/// How long the other nodes may take to receive a transaction once one has accepted it.
const BROADCAST_GRACE: Duration = Duration::from_secs(2);
/// How many blocks two nodes may be apart and still be compared, at the lower one's. One that is further behind would show
/// a state that is long gone, which the other may not keep any more (most keep 128); it counts as failed.
const MAX_BLOCKS_APART: u64 = 32;

/// The nodes of one chain, in the order of preference; at least one.
#[derive(Debug)]
pub(super) struct Nodes {
    list: Vec<Node>,
    chain_id: u64,
}

impl Nodes {
    /// Asks all nodes for their chain id. Those that answer must agree, and one must answer; those that do not are held to
    /// it when they do.
    pub(super) async fn open(urls: Vec<RpcUrl>, max_lag: Option<Duration>) -> Result<Self, ChainError> {
        let several = urls.len() > 1;
        let list = urls.into_iter().map(|url| Node::new(url, max_lag, several)).collect::<Result<Vec<_>, _>>()?;
        let ids = join_all(list.iter().map(Node::chain_id)).await;
        let (mut known, mut failure): (Vec<(&Node, u64)>, _) = (Vec::new(), None);
        for (node, id) in list.iter().zip(ids) {
            match id {
                Ok(id) => known.push((node, id)),
                Err(error) => {
                    node.strike(&error);
                    failure.get_or_insert(error);
                }
            }
        }
        let Some((first, chain_id)) = known.first().copied() else {
            return Err(failure.unwrap_or(ChainError::decode("at least one chain node")));
        };
        let others: Vec<_> = known.iter().filter(|(_, id)| *id != chain_id).map(|(node, _)| *node).collect();
        if !others.is_empty() {
            let nodes = [first].into_iter().chain(others).map(|node| node.name().to_owned()).collect();
            return Err(ChainError::Disagreement { what: "the chain id", nodes });
        }
        Ok(Self { list, chain_id })
    }

    pub(super) fn chain_id(&self) -> u64 {
        self.chain_id
    }

    pub(super) fn are_several(&self) -> bool {
        self.list.len() > 1
    }

    /// Whether there are enough for one that is wrong to be outvoted.
    pub(super) fn can_outvote(&self) -> bool {
        self.list.len() > 2
    }

    /// What is known of each, in the order of preference.
    pub(super) fn health(&self) -> Vec<NodeHealth> {
        let first = self.list.iter().position(Node::is_good).unwrap_or(0);
        self.list.iter().enumerate().map(|(place, node)| node.health(place == first)).collect()
    }

    fn candidates(&self) -> Candidates<'_> {
        Candidates { nodes: self, place: 0, avoided: VecDeque::new(), failure: None }
    }

    /// Asks one node, and the next where it fails. A revert is an answer. A refusal counts against a node only if another
    /// one answers: then it was not the question's fault.
    pub(super) async fn read<'a, T, F, Fut>(&'a self, read: F) -> Result<T, ChainError>
    where
        F: Fn(&'a Node) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        let mut candidates = self.candidates();
        let mut refused = Vec::new();
        while let Some(node) = candidates.next(refused.is_empty()).await {
            match read(node).await {
                Err(error @ ChainError::Refused { .. }) => refused.push((node, error)),
                Err(error) if fails_over(&error) => candidates.failed(node, error),
                answer => {
                    node.answered();
                    for (node, error) in refused {
                        candidates.failed(node, error);
                    }
                    return answer;
                }
            }
        }
        // What a node said is more to the point than that another could not be reached.
        match refused.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Err(candidates.into_failure()),
        }
    }

    /// Asks one node after the other until one knows: a node that is behind, or keeps silent, is not the last word. Nothing
    /// is what those say that can be reached.
    pub(super) async fn search<'a, T, F, Fut>(&'a self, look: F) -> Result<Option<T>, ChainError>
    where
        F: Fn(&'a Node) -> Fut,
        Fut: Future<Output = Result<Option<T>, ChainError>>,
    {
        let mut candidates = self.candidates();
        let mut answered = false;
        while let Some(node) = candidates.next(!answered).await {
            match look(node).await {
                Ok(found) => {
                    node.answered();
                    if found.is_some() {
                        return Ok(found);
                    }
                    answered = true;
                }
                Err(error) => candidates.failed(node, error),
            }
        }
        if answered { Ok(None) } else { Err(candidates.into_failure()) }
    }

    /// Asks all nodes that are not known to fail; the answers of those that give one, at least one.
    pub(super) async fn ask_all<'a, T, F, Fut>(&'a self, ask: F) -> Result<Vec<T>, ChainError>
    where
        F: Fn(&'a Node) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        let mut candidates = self.candidates();
        let mut answers = Vec::new();
        while answers.is_empty() {
            let mut asked = Vec::new();
            while let Some(node) = candidates.next(asked.is_empty()).await {
                asked.push(node);
            }
            if asked.is_empty() {
                return Err(candidates.into_failure());
            }
            for (node, answer) in asked.iter().copied().zip(join_all(asked.iter().map(|node| ask(node))).await) {
                match answer {
                    Ok(answer) => {
                        node.answered();
                        answers.push(answer);
                    }
                    Err(error) => candidates.failed(node, error),
                }
            }
        }
        Ok(answers)
    }

    /// The newest block that two nodes have, or the only one that answers: what happened in it, [`Nodes::agree`] can show.
    pub(super) async fn head(&self) -> Result<Head, ChainError> {
        let mut pair = Vec::new();
        let head = self.candidates().meet(&mut pair).await?;
        for (node, _) in pair {
            node.answered();
        }
        Ok(head)
    }

    /// Reads from two nodes at the newest block that both have, and compares; where they differ, a third decides. With one
    /// node, or one that answers, its word is taken.
    ///
    /// # Errors
    /// [`ChainError::Disagreement`] where there is no third, or it says something else again.
    pub(super) async fn agree<'a, T, F, Fut>(&'a self, what: &'static str, read: F) -> Result<T, ChainError>
    where
        T: PartialEq,
        F: Fn(&'a Node, u64) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        let mut candidates = self.candidates();
        let mut pair = Vec::new();
        // Each time around, nodes are left out that cannot be asked, of which there are only so many.
        loop {
            let block = candidates.meet(&mut pair).await?.number;
            let answers = join_all(pair.iter().map(|(node, _)| read(node, block))).await;
            if answers.iter().all(|answer| matches!(answer, Err(ChainError::Reverted { .. }))) {
                // They agree that it is the question's fault.
                pair.iter().for_each(|(node, _)| node.answered());
                return answers.into_iter().next().unwrap_or(Err(ChainError::Reverted { name: None }));
            }
            let mut stories: Vec<(&Node, T)> = Vec::new();
            let mut complete = true;
            for ((node, _), answer) in pair.clone().into_iter().zip(answers) {
                match answer {
                    Ok(story) => stories.push((node, story)),
                    Err(error) => {
                        complete = false;
                        candidates.failed(node, error);
                        pair.retain(|(kept, _)| !std::ptr::eq(*kept, node));
                    }
                }
            }
            if !complete {
                continue;
            }
            return self.compare(what, &mut candidates, stories, |node| read(node, block), block).await;
        }
    }

    async fn compare<'a, T, F, Fut>(
        &'a self,
        what: &'static str,
        candidates: &mut Candidates<'a>,
        mut stories: Vec<(&'a Node, T)>,
        read: F,
        block: u64,
    ) -> Result<T, ChainError>
    where
        T: PartialEq,
        F: Fn(&'a Node) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        let Some((node, story)) = stories.pop() else { return Err(ChainError::decode("an answer of a chain node")) };
        let Some((other, other_story)) = stories.pop() else {
            node.answered();
            if self.are_several() {
                node.alone();
            }
            return Ok(story);
        };
        if story == other_story {
            for node in [node, other] {
                node.answered();
                node.confirmed();
            }
            return Ok(story);
        }
        let name = |node: &Node| node.name().to_owned();
        while let Some(judge) = candidates.next(false).await {
            let verdict = match judge.newest().await {
                Ok(newest) if newest.number.to::<u64>() >= block => read(judge).await,
                Ok(_) => Err(ChainError::decode("a block that the other nodes have")),
                Err(error) => Err(error),
            };
            let (right, wrong) = match verdict {
                Ok(verdict) if verdict == story => (node, other),
                Ok(verdict) if verdict == other_story => (other, node),
                Ok(_) => {
                    judge.disputed(what, &[name(node), name(other)]);
                    node.disputed(what, &[name(other), name(judge)]);
                    other.disputed(what, &[name(node), name(judge)]);
                    return Err(ChainError::Disagreement { what, nodes: vec![name(other), name(node), name(judge)] });
                }
                Err(error) => {
                    candidates.failed(judge, error);
                    continue;
                }
            };
            tracing::warn!(what, node = wrong.name(), "a chain node is outvoted by two others");
            wrong.outvoted(what, &[name(right), name(judge)]);
            for node in [right, judge] {
                node.answered();
                node.confirmed();
            }
            return Ok(if std::ptr::eq(right, node) { story } else { other_story });
        }
        node.disputed(what, &[name(other)]);
        other.disputed(what, &[name(node)]);
        Err(ChainError::Disagreement { what, nodes: vec![name(other), name(node)] })
    }

    /// Sends a transaction to all nodes. Once one has accepted it, the others that are not known to fail have
    /// [`BROADCAST_GRACE`] to receive it too.
    pub(super) async fn broadcast(&self, signed: &SignedTransaction) -> Result<(), Broadcast> {
        let native = || self.list.iter().filter(|node| !node.is_foreign(self.chain_id));
        let mut hopeful = native().filter(|node| node.is_good()).count();
        let mut waiting: FuturesUnordered<_> = native()
            .map(|node| {
                let good = node.is_good();
                async move { (node, good, node.broadcast(signed).await) }
            })
            .collect();
        let mut verdict = Verdict::default();
        let mut deadline: Option<Instant> = None;
        loop {
            let next = match deadline {
                None => waiting.next().await,
                Some(_) if hopeful == 0 => None,
                Some(deadline) => tokio::time::timeout_at(deadline, waiting.next()).await.ok().flatten(),
            };
            let Some((node, good, answer)) = next else { break };
            if good {
                hopeful = hopeful.saturating_sub(1);
            }
            match &answer {
                Ok(()) => {
                    deadline.get_or_insert_with(|| Instant::now() + BROADCAST_GRACE);
                }
                Err(no) if no.is_silence() => node.strike(no.error()),
                Err(_) => {}
            }
            verdict.hears(answer);
        }
        verdict.into_result()
    }
}

/// The nodes that one question may go to, in the order in which they are tried.
struct Candidates<'a> {
    nodes: &'a Nodes,
    /// The next in the list.
    place: usize,
    /// Those that were passed over because they failed just now.
    avoided: VecDeque<&'a Node>,
    /// What went wrong first.
    failure: Option<ChainError>,
}

impl<'a> Candidates<'a> {
    /// The next node to ask: the next that is not known to fail, and with `even_avoided`, where there is none, one that is.
    async fn next(&mut self, even_avoided: bool) -> Option<&'a Node> {
        loop {
            let node = match self.nodes.list.get(self.place) {
                Some(node) => {
                    self.place = self.place.saturating_add(1);
                    // There is nobody to ask instead of an only node.
                    let standing = if self.nodes.are_several() { node.standing() } else { Standing::Good };
                    match standing {
                        Standing::Good => node,
                        Standing::Due => match node.probe().await {
                            Ok(()) => node,
                            Err(error) => {
                                self.failed(node, error);
                                continue;
                            }
                        },
                        Standing::Avoided => {
                            self.avoided.push_back(node);
                            continue;
                        }
                    }
                }
                None if even_avoided => self.avoided.pop_front()?,
                None => return None,
            };
            match node.admit(self.nodes.chain_id).await {
                Ok(()) => return Some(node),
                Err(error) => self.failed(node, error),
            }
        }
    }

    /// The newest block that two nodes have, or one where no other is left that is not known to fail. `pair` holds them, each
    /// with its own newest block.
    async fn meet(&mut self, pair: &mut Vec<(&'a Node, Head)>) -> Result<Head, ChainError> {
        loop {
            self.fill(pair).await;
            match *pair.as_slice() {
                [] => return Err(self.failure.take().unwrap_or(ChainError::decode("a chain node that can be asked"))),
                [(_, head)] => return Ok(head),
                [(one, head), (other, other_head), ..] => {
                    let (late, lower) = if head.number < other_head.number { (one, head) } else { (other, other_head) };
                    if head.number.abs_diff(other_head.number) <= MAX_BLOCKS_APART {
                        return Ok(lower);
                    }
                    self.failed(late, ChainError::decode("a newest block like that of the other nodes"));
                    pair.retain(|(node, _)| !std::ptr::eq(*node, late));
                }
            }
        }
    }

    /// Asks for newest blocks until there are two nodes, or nobody is left who is not known to fail.
    async fn fill(&mut self, pair: &mut Vec<(&'a Node, Head)>) {
        loop {
            let mut asked = Vec::new();
            while pair.len().saturating_add(asked.len()) < 2 {
                let nobody_yet = pair.is_empty() && asked.is_empty();
                let Some(node) = self.next(nobody_yet).await else { break };
                asked.push(node);
            }
            if asked.is_empty() {
                return;
            }
            for (node, newest) in asked.iter().copied().zip(join_all(asked.iter().map(|node| node.newest())).await) {
                match newest {
                    Ok(newest) => pair.push((node, newest.head())),
                    Err(error) => self.failed(node, error),
                }
            }
        }
    }

    fn failed(&mut self, node: &Node, error: ChainError) {
        node.strike(&error);
        self.failure.get_or_insert(error);
    }

    fn into_failure(self) -> ChainError {
        self.failure.unwrap_or(ChainError::decode("a chain node that can be asked"))
    }
}

/// Whether another node may do better.
fn fails_over(error: &ChainError) -> bool {
    matches!(
        error,
        ChainError::Unreachable { .. }
            | ChainError::Decode { .. }
            | ChainError::Behind { .. }
            | ChainError::Disagreement { .. }
    )
}
