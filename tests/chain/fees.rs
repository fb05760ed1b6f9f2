//! What is offered for gas and data, and transactions that are replaced by ones that offer more.

use super::*;
use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::eips::Decodable2718 as _;
use peaje::chain::Replacement;

const ORACLE: EvmAddress = alloy::primitives::address!("0x420000000000000000000000000000000000000F");
/// Answers any question with three times its first argument: `getL1FeeUpperBound(uint256)` at 3 wei a byte.
const NEW_ORACLE: &str = "6004356003025f5260205ff3";
/// Answers `getL1Fee(bytes)` with five times the length of the bytes, and reverts otherwise.
const OLD_ORACLE: &str = "5f3560e01c6349948e0e146011575f5ffd5b6024356005025f5260205ff3";

fn code(text: &str) -> Bytes {
    alloy::primitives::hex::decode(text).unwrap().into()
}

/// Fee and tip of a transaction.
fn offered(signed: &SignedTransaction) -> (u128, u128) {
    let transaction = TxEnvelope::decode_2718(&mut signed.raw.as_slice()).unwrap();
    (transaction.max_fee_per_gas(), transaction.max_priority_fee_per_gas().unwrap())
}

/// Sends a deposit to a chain that mines nothing; what was sent.
async fn stuck(stage: &Stage, salt: u8) -> SignedTransaction {
    let notary = Notary::of(stage, true);
    stage.chain.send_witnessed(&stage.deposit(salt, 1_000), Bid::default(), None, &notary).await.unwrap();
    notary.shown().pop().unwrap()
}

#[tokio::test]
async fn the_fee_for_data_is_what_the_chains_oracle_says() {
    let stage = Stage::set().await;
    assert_eq!(stage.chain.gas_price().await.unwrap().data_wei_per_byte, 0, "there is none");
    let cases = [
        (NEW_ORACLE, 3),
        (OLD_ORACLE, 5),
        // Something else that happens to be there: it reverts, stops, or answers less than a word.
        ("5f5ffd", 0),
        ("00", 0),
        ("60105ff3", 0),
        // A fee that is no whole number a byte is rounded up: one wei in all.
        ("60015f5260205ff3", 1),
        // And a fee beyond 128 bits is the largest.
        ("5f195f5260205ff3", u128::MAX),
    ];
    for (text, expected) in cases {
        stage.devnet.set_code(ORACLE, code(text)).unwrap();
        let fresh = stage.chain_of(dev("gas")).await;
        assert_eq!(fresh.gas_price().await.unwrap().data_wei_per_byte, expected, "{text}");
    }
    assert_eq!(stage.chain.gas_price().await.unwrap().data_wei_per_byte, 0, "whether there is one is asked once");
}

#[tokio::test]
async fn who_cannot_pay_for_the_data_sends_nothing() {
    let stage = Stage::set().await;
    let gas = evm(dev("gas").address());
    // Each byte costs 3 * 10^14 wei: PUSH8 multiplies the size.
    stage.devnet.set_code(ORACLE, code("60043567000110d9316ec000025f5260205ff3")).unwrap();
    let chain = stage.chain_of(dev("gas")).await;
    let per_byte = chain.gas_price().await.unwrap().data_wei_per_byte;
    assert_eq!(per_byte, 300_000_000_000_000);
    // The deposit's gas is a thousandth of this; its data is about a kilobyte.
    stage.devnet.set_balance(gas, U256::from(300 * per_byte));
    let notary = Notary::of(&stage, true);
    let error = chain.send_witnessed(&stage.deposit(1, 1_000), Bid::default(), None, &notary).await.unwrap_err();
    let SendError::Refused(ChainError::Refused { message, .. }) = &error else { panic!("{error:?}") };
    assert!(message.contains("insufficient funds"), "{message}");
    assert_eq!(notary.shown(), [], "what is never sent is not written down either");
    // The gas alone could be paid.
    stage.devnet.set_code(ORACLE, Bytes::new()).unwrap();
    mine(&stage.chain_of(dev("gas")).await, &stage.deposit(1, 1_000)).await;
    stage.devnet.set_code(ORACLE, code(NEW_ORACLE)).unwrap();
    mine(&stage.chain_of(dev("gas")).await, &stage.deposit(2, 1_000)).await;
}

#[tokio::test]
async fn a_replacement_is_mined_and_what_it_replaces_never() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let old = stuck(&stage, 1).await;
    let notary = Notary::of(&stage, true);
    let replaced = stage.chain.replace_witnessed(&old, Bid::default(), &notary).await.unwrap();
    let [new] = <[_; 1]>::try_from(notary.shown()).unwrap();
    assert_eq!(replaced, Replacement::Sent(new.hash));
    assert_eq!((new.nonce, new.sender), (old.nonce, old.sender));
    let ((old_fee, old_tip), (fee, tip)) = (offered(&old), offered(&new));
    assert!(fee * 10 >= old_fee * 11 && tip * 10 >= old_tip * 11, "{old_fee} {old_tip} {fee} {tip}");
    assert_eq!(stage.devnet.pending_transactions(), [B256::new(new.hash.0)]);

    // In a hurry, and once more, from what is known of the last.
    let notary = Notary::of(&stage, true);
    let urgent = Bid { urgent: true, ..Bid::default() };
    stage.chain.replace_witnessed(&new, urgent, &notary).await.unwrap();
    let last = notary.shown().pop().unwrap();
    assert!(offered(&last).1 >= 2 * tip, "a larger tip");
    stage.devnet.mine(3).unwrap();
    assert!(stage.chain.receipt(last.hash).await.unwrap().unwrap().success);
    for lost in [&old, &new] {
        assert_eq!(stage.chain.receipt(lost.hash).await.unwrap(), None);
        assert_eq!(stage.chain.resend(lost).await.unwrap(), Resent::Replaced);
    }
    assert_eq!(stage.chain.channel(stage.id(1)).await.unwrap().balance, Amount::new(1_000));
    // The count of nonces was not touched.
    let next = stuck(&stage, 2).await;
    assert_eq!(next.nonce, old.nonce + 1);
}

#[tokio::test]
async fn a_replacement_that_offers_too_little_more_is_turned_away() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let old = stuck(&stage, 1).await;
    // Another process signs a call of its own with the same nonce at the same price: no node takes that.
    let other = stage.chain_of(dev("gas")).await;
    let error = other
        .send_witnessed(&stage.deposit(2, 1_000), Bid::default(), Some(old.nonce), &Notary::of(&stage, true))
        .await
        .unwrap_err();
    assert!(matches!(&error, SendError::Refused(ChainError::Refused { .. })), "{error:?}");
    assert!(shown(&error).contains("underpriced"));
    assert_eq!(stage.devnet.pending_transactions(), [B256::new(old.hash.0)]);
}

#[tokio::test]
async fn what_was_mined_meanwhile_cannot_be_replaced() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let old = stuck(&stage, 1).await;
    stage.devnet.mine(1).unwrap();
    let replaced = stage.chain.replace_witnessed(&old, Bid::default(), &Notary::of(&stage, true)).await.unwrap();
    assert_eq!(replaced, Replacement::NonceUsed);
    assert!(stage.devnet.pending_transactions().is_empty());
    assert!(stage.chain.receipt(old.hash).await.unwrap().unwrap().success);
}

#[tokio::test]
async fn a_transaction_is_replaced_from_its_bytes_alone() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let old = stuck(&stage, 1).await;
    // A new process, and a node that has lost it.
    assert!(stage.devnet.drop_transaction(B256::new(old.hash.0)));
    let next = stage.chain_of(dev("gas")).await;
    let Replacement::Sent(hash) =
        next.replace_witnessed(&old, Bid::default(), &Notary::of(&stage, true)).await.unwrap()
    else {
        panic!("not sent");
    };
    stage.devnet.mine(1).unwrap();
    assert!(next.receipt(hash).await.unwrap().unwrap().success);
    assert_eq!(next.resend(&old).await.unwrap(), Resent::Replaced);

    // Bytes that are none, and those of another account.
    let notary = Notary::of(&stage, true);
    let broken = SignedTransaction { raw: vec![2, 0xc0], ..old.clone() };
    assert!(matches!(
        next.replace_witnessed(&broken, Bid::default(), &notary).await,
        Err(SendError::Refused(ChainError::Decode { .. }))
    ));
    let stranger = stage.chain_of(dev("receiver")).await;
    assert!(matches!(
        stranger.replace_witnessed(&old, Bid::default(), &notary).await,
        Err(SendError::Refused(ChainError::ForeignTransaction { transaction })) if transaction == old.hash
    ));
    assert_eq!(notary.shown(), []);
}

#[tokio::test]
async fn at_its_ceiling_nothing_is_signed() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let old = stuck(&stage, 1).await;
    let (fee, _) = offered(&old);
    let needed = fee + fee / 8 + 1;
    let notary = Notary::of(&stage, true);
    let bid = |ceiling_wei| Bid { ceiling_wei, urgent: false };
    let replace = async |ceiling| stage.chain.replace_witnessed(&old, bid(ceiling), &notary).await.unwrap();
    for ceiling in [0, fee, needed - 1] {
        assert_eq!(replace(ceiling).await, Replacement::AtCeiling);
    }
    assert_eq!(notary.shown(), []);
    assert_eq!(stage.devnet.pending_transactions(), [B256::new(old.hash.0)]);
    assert!(matches!(replace(needed).await, Replacement::Sent(_)));
    assert_eq!(offered(&notary.shown()[0]).0, needed);
}

#[tokio::test]
async fn gas_above_the_ceiling_is_too_dear_and_nobody_is_shown_anything() {
    let stage = Stage::set().await;
    let price = stage.chain.gas_price().await.unwrap();
    let asked = price.base_wei + price.tip_wei;
    let notary = Notary::of(&stage, true);
    let bid = |ceiling_wei| Bid { ceiling_wei, urgent: true };
    let send = async |ceiling| stage.chain.send_witnessed(&stage.deposit(1, 1_000), bid(ceiling), None, &notary).await;
    let error = send(asked - 1).await.unwrap_err();
    let SendError::Refused(ChainError::TooDear { asked_wei, ceiling_wei }) = error else { panic!("{error:?}") };
    assert_eq!((asked_wei, ceiling_wei), (asked, asked - 1));
    assert_eq!(notary.shown(), []);
    let hash = send(asked).await.unwrap();
    assert_eq!(offered(&notary.shown()[0]).0, asked);
    assert!(stage.chain.await_receipt(hash, WAIT, POLL).await.unwrap().unwrap().success, "the next block takes it");
}

#[tokio::test]
async fn who_cannot_pay_for_a_replacement_is_shown_none() {
    let stage = Stage::set().await;
    stage.devnet.set_mining(Mining::Manual);
    let old = stuck(&stage, 1).await;
    stage.devnet.set_balance(evm(dev("gas").address()), U256::from(1));
    let notary = Notary::of(&stage, true);
    let error = stage.chain.replace_witnessed(&old, Bid::default(), &notary).await.unwrap_err();
    assert!(matches!(&error, SendError::Refused(ChainError::Refused { .. })), "{error:?}");
    assert_eq!(notary.shown(), []);
}
