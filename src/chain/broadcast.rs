//! What nodes say to a transaction that they are sent.
//!
//! **Promises** that a transaction is called refused only where every node that got it said so, and unclear where one may
//! have passed it on. **Does not** choose the nodes.

use alloy::primitives::{B256, hex};
use serde_json::json;

use super::bindings::hash_of;
use super::error::ChainError;
use super::node::Node;
use super::rpc::{Failure, Fate, REQUEST_TIMEOUT};
use super::types::SignedTransaction;

/// Why a broadcast did not simply succeed.
#[derive(Debug)]
pub(super) enum Broadcast {
    /// Another transaction of the sender with this nonce is in a block, or this very one.
    NonceTooLow(ChainError),
    /// The node has it not, and said why.
    Refused(ChainError),
    /// It never got to the node.
    Unread(ChainError),
    /// The node may have it.
    Unclear(ChainError),
}

impl Broadcast {
    pub(super) fn error(&self) -> &ChainError {
        match self {
            Self::NonceTooLow(error) | Self::Refused(error) | Self::Unread(error) | Self::Unclear(error) => error,
        }
    }

    /// Whether the node did not answer, rather than say no.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self.error(), ChainError::Unreachable { .. })
    }

    /// How much this outweighs what other nodes say: that it may be on its way counts more than any no, and any no more
    /// than silence.
    fn weight(&self) -> u8 {
        match self {
            Self::Unclear(_) => 3,
            Self::NonceTooLow(_) => 2,
            Self::Refused(_) => 1,
            Self::Unread(_) => 0,
        }
    }
}

/// What several nodes say together.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    accepted: bool,
    no: Option<Broadcast>,
}

impl Verdict {
    pub(super) fn hears(&mut self, answer: Result<(), Broadcast>) {
        match answer {
            Ok(()) => self.accepted = true,
            Err(no) if self.no.as_ref().is_none_or(|before| before.weight() < no.weight()) => self.no = Some(no),
            Err(_) => {}
        }
    }

    /// One that has it is enough.
    pub(super) fn into_result(self) -> Result<(), Broadcast> {
        match self.no {
            _ if self.accepted => Ok(()),
            Some(no) => Err(no),
            None => Err(Broadcast::Unread(ChainError::decode("a chain node to send to"))),
        }
    }
}

impl Node {
    pub(super) async fn broadcast(&self, signed: &SignedTransaction) -> Result<(), Broadcast> {
        let params = json!([hex::encode_prefixed(&signed.raw)]);
        match self.rpc.ask::<B256>("eth_sendRawTransaction", params, REQUEST_TIMEOUT).await {
            Ok(hash) if hash_of(hash) == signed.hash => Ok(()),
            Ok(_) => Err(Broadcast::Unclear(ChainError::decode("the hash of the transaction that was sent"))),
            Err(failure) => Err(judge(failure)),
        }
    }
}

/// What an error of `eth_sendRawTransaction` says about the transaction.
fn judge(failure: Failure) -> Broadcast {
    let Failure { error, fate } = failure;
    match (fate, &error) {
        (Fate::Unread, _) => Broadcast::Unread(error),
        (Fate::Unclear, _) => Broadcast::Unclear(error),
        (Fate::Answered, ChainError::Refused { code, message }) => {
            let message = message.to_ascii_lowercase();
            let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
            if says(&["nonce too low", "nonce is too low"]) {
                Broadcast::NonceTooLow(error)
            } else if says(&[
                "already known",
                "known transaction",
                "already imported",
                "already exists",
                // What a gateway says of the node behind it, or a layer 2's node of the sequencer it forwards to.
                "timeout",
                "timed out",
                "deadline",
                "forward",
                "sequencer",
                "connection",
                "eof",
                "unavailable",
                "try again",
                "internal error",
            ]) || !is_verdict(*code)
            {
                Broadcast::Unclear(error)
            } else {
                Broadcast::Refused(error)
            }
        }
        (Fate::Answered, _) => Broadcast::Refused(error),
    }
}

/// Whether an error with this code is about the transaction or the request, so that the node did not pass it on. An
/// internal error (-32603) may come from a gateway whose node did.
fn is_verdict(code: i64) -> bool {
    matches!(code, -32000 | -32003 | -32005 | -32010 | -32600 | -32601 | -32602 | -32700)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: i64, message: &str) -> Broadcast {
        let error = ChainError::Refused { code, message: message.to_owned() };
        judge(Failure { error, fate: Fate::Answered })
    }

    #[test]
    fn only_a_verdict_of_the_node_is_a_refusal() {
        for (code, message) in [
            (-32000, "insufficient funds for gas * price + value"),
            (-32000, "replacement transaction underpriced"),
            (-32003, "transaction rejected"),
            (-32601, "method not found"),
            (-32005, "rate limit exceeded"),
        ] {
            assert!(matches!(answered(code, message), Broadcast::Refused(_)), "{message}");
        }
        for (code, message) in [
            (-32000, "already known"),
            (-32000, "AlreadyKnown: known transaction: 0x12"),
            (-32000, "request timed out"),
            (-32000, "failed to forward tx to sequencer, please try again. Error message: 'context deadline exceeded'"),
            (-32000, "Post: EOF"),
            (-32603, "internal error"),
            (429, "what is this"),
        ] {
            assert!(matches!(answered(code, message), Broadcast::Unclear(_)), "{message}");
        }
        assert!(matches!(answered(-32000, "nonce too low: next nonce 5"), Broadcast::NonceTooLow(_)));

        let lost = |fate| judge(Failure { error: ChainError::decode("x"), fate });
        assert!(matches!(lost(Fate::Unread), Broadcast::Unread(_)));
        assert!(matches!(lost(Fate::Unclear), Broadcast::Unclear(_)));
    }

    fn heard(answers: &[&str]) -> &'static str {
        let mut verdict = Verdict::default();
        for answer in answers {
            let error = ChainError::decode("x");
            verdict.hears(match *answer {
                "accepted" => Ok(()),
                "low" => Err(Broadcast::NonceTooLow(error)),
                "refused" => Err(Broadcast::Refused(error)),
                "unread" => Err(Broadcast::Unread(error)),
                _ => Err(Broadcast::Unclear(error)),
            });
        }
        match verdict.into_result() {
            Ok(()) => "accepted",
            Err(Broadcast::NonceTooLow(_)) => "low",
            Err(Broadcast::Refused(_)) => "refused",
            Err(Broadcast::Unread(_)) => "unread",
            Err(Broadcast::Unclear(_)) => "unclear",
        }
    }

    #[test]
    fn several_nodes_have_one_verdict() {
        let all = ["accepted", "unclear", "low", "refused", "unread"];
        // Each outweighs those after it, in whatever order they are heard.
        for (place, strongest) in all.iter().enumerate() {
            for weaker in &all[place..] {
                assert_eq!(heard(&[strongest, weaker]), *strongest);
                assert_eq!(heard(&[weaker, strongest]), *strongest);
            }
        }
        assert_eq!(heard(&["refused", "unclear", "low"]), "unclear");
        assert_eq!(heard(&[]), "unread");
    }
}
