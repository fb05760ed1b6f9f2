//! What payers' own accounts said a moment ago.
//!
//! A channel without an authorizer's key is authorized by its payer's account, and only the chain can say what that is
//! and what it approves. **Owns** the answers of the last [`MAX_AGE`]. **Promises** that an approval is reused for the very
//! same digest and signature only, and that memory is bounded. **Does not** ask.
//!
//! Longer would be unsafe: a wallet answers by code and storage that its owner can change in any block (a new owner, a
//! revoked session key), and since EIP-7702 the account of a plain key can become a wallet, or another one, just as fast.
//! What is approved here and refused when it is claimed is served for nothing. The moment is as long as a client takes to
//! send one voucher twice (a corrective, a deposit that lands, a retry), and about as long as a block. What a wallet can
//! take by changing its mind is bounded elsewhere ([`super::Limits::max_wallet_exposure`]). A refusal is not kept: asked
//! again a moment later, the wallet may have approved.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::protocol::bytes::keccak256;
use crate::protocol::voucher::PayerEvidence;
use crate::protocol::{Address, Hash, Signature};

/// How long an answer may be reused.
pub(super) const MAX_AGE: Duration = Duration::from_secs(3);

/// How many answers are kept. The oldest is forgotten for one more.
pub(super) const MAX_ANSWERS: usize = 4_096;

/// The answers of the last moment.
#[derive(Debug, Default)]
pub(super) struct Evidence(Mutex<Answers>);

/// What an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    /// An account without code: its key decides, whatever is signed.
    Key(Address),
    /// What a wallet approved: a digest, and a signature, of which the hash is kept, because it may be long.
    Approval(Address, Hash, Hash),
}

impl Subject {
    fn approval(payer: Address, digest: Hash, signature: &Signature) -> Self {
        Self::Approval(payer, digest, keccak256(signature.as_bytes()))
    }
}

#[derive(Debug, Default)]
struct Answers {
    answers: HashMap<Subject, Instant>,
    /// In the order in which they came.
    order: VecDeque<(Instant, Subject)>,
}

impl Evidence {
    /// What the account said, if that was a moment ago.
    pub(super) fn recall(&self, payer: Address, digest: Hash, signature: &Signature) -> Option<PayerEvidence> {
        self.lock().recall(payer, digest, signature, Instant::now())
    }

    /// Keeps what the account said to a question that was asked at `asked`.
    pub(super) fn keep(
        &self,
        payer: Address,
        digest: Hash,
        signature: &Signature,
        said: PayerEvidence,
        asked: Instant,
    ) {
        self.lock().keep(payer, digest, signature, said, asked);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answers {
    fn recall(&self, payer: Address, digest: Hash, signature: &Signature, now: Instant) -> Option<PayerEvidence> {
        let fresh = |subject: &Subject| {
            self.answers.get(subject).is_some_and(|asked| now.saturating_duration_since(*asked) < MAX_AGE)
        };
        if fresh(&Subject::Key(payer)) {
            return Some(PayerEvidence::NoCode);
        }
        fresh(&Subject::approval(payer, digest, signature)).then_some(PayerEvidence::Approved)
    }

    fn keep(&mut self, payer: Address, digest: Hash, signature: &Signature, said: PayerEvidence, asked: Instant) {
        let subject = match said {
            PayerEvidence::NoCode => Subject::Key(payer),
            PayerEvidence::Approved => Subject::approval(payer, digest, signature),
            PayerEvidence::Refused => return,
        };
        // What an account approves, it has code for.
        if said == PayerEvidence::Approved {
            self.answers.remove(&Subject::Key(payer));
        }
        while self.order.len() >= MAX_ANSWERS
            || self.order.front().is_some_and(|(kept, _)| asked.saturating_duration_since(*kept) >= MAX_AGE)
        {
            let Some((kept, oldest)) = self.order.pop_front() else { break };
            if self.answers.get(&oldest) == Some(&kept) {
                self.answers.remove(&oldest);
            }
        }
        self.answers.insert(subject, asked);
        self.order.push_back((asked, subject));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::LocalKey;

    const WALLET: Address = Address([7; 20]);

    fn signature(n: u8) -> Signature {
        LocalKey::from_bytes(&[9; 32]).unwrap().sign(Hash([n; 32]))
    }

    fn recall(answers: &Answers, payer: Address, n: u8, at: Instant) -> Option<PayerEvidence> {
        answers.recall(payer, Hash([n; 32]), &signature(n), at)
    }

    fn keep(answers: &mut Answers, payer: Address, n: u8, said: PayerEvidence, at: Instant) {
        answers.keep(payer, Hash([n; 32]), &signature(n), said, at);
    }

    #[test]
    fn an_approval_is_for_its_digest_and_signature_and_for_a_moment() {
        let (mut answers, begin) = (Answers::default(), Instant::now());
        keep(&mut answers, WALLET, 1, PayerEvidence::Approved, begin);
        assert_eq!(recall(&answers, WALLET, 1, begin), Some(PayerEvidence::Approved));
        assert_eq!(recall(&answers, WALLET, 2, begin), None, "another voucher");
        assert_eq!(answers.recall(WALLET, Hash([1; 32]), &signature(2), begin), None, "another signature");
        assert_eq!(recall(&answers, Address([8; 20]), 1, begin), None, "another payer");
        let almost = begin + MAX_AGE - Duration::from_nanos(1);
        assert_eq!(recall(&answers, WALLET, 1, almost), Some(PayerEvidence::Approved));
        assert_eq!(recall(&answers, WALLET, 1, begin + MAX_AGE), None);
    }

    #[test]
    fn a_key_decides_whatever_is_signed_and_a_refusal_is_not_kept() {
        let (mut answers, begin) = (Answers::default(), Instant::now());
        keep(&mut answers, WALLET, 1, PayerEvidence::NoCode, begin);
        assert_eq!(recall(&answers, WALLET, 2, begin), Some(PayerEvidence::NoCode));
        assert_eq!(recall(&answers, WALLET, 2, begin + MAX_AGE), None);
        keep(&mut answers, Address([8; 20]), 1, PayerEvidence::Refused, begin);
        assert_eq!(recall(&answers, Address([8; 20]), 1, begin), None);
        // It became a wallet in between.
        keep(&mut answers, WALLET, 3, PayerEvidence::Approved, begin);
        assert_eq!(recall(&answers, WALLET, 2, begin), None);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut answers, begin) = (Answers::default(), Instant::now());
        let nth = |n: usize| Hash([[0; 16], u128::try_from(n).unwrap().to_be_bytes()].concat().try_into().unwrap());
        for n in 0..=MAX_ANSWERS {
            answers.keep(WALLET, nth(n), &signature(1), PayerEvidence::Approved, begin);
        }
        assert_eq!((answers.answers.len(), answers.order.len()), (MAX_ANSWERS, MAX_ANSWERS));
        assert_eq!(answers.recall(WALLET, nth(0), &signature(1), begin), None, "the oldest is forgotten");
        assert_eq!(answers.recall(WALLET, nth(1), &signature(1), begin), Some(PayerEvidence::Approved));
        keep(&mut answers, WALLET, 1, PayerEvidence::Approved, begin + MAX_AGE);
        assert_eq!((answers.answers.len(), answers.order.len()), (1, 1), "what is too old is forgotten");
    }
}
