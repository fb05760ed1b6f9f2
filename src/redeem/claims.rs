//! Claims: a batch's rows, brought into blocks as far as the contract takes them.
//!
//! **Promises** that a row which the contract refuses does not keep the others from being claimed in the same round, and
//! that finding it costs simulations, not gas, as long as the contract does when a claim is mined what it did when it was
//! tried. **Does not** choose what to claim.
//!
//! One bad row reverts a whole batch. A batch that fails its simulation is halved, by simulation alone, until its bad rows
//! are known; they go into quarantine, and the others are claimed together. One that passes and reverts when it is mined
//! is read and tried again: a row whose state moved shows itself. Where none does, it is sent again once, and halved for
//! real after that.

use super::Office;
use super::plan::Claimant;
use super::quarantine::{Quarantine, Refusal};
use super::record::{CallError, rows_of};
use super::round::{Report, TokenSums};
use crate::chain::{Call, Chain, ChainError, Happening, Mined};
use crate::clock;
use crate::gate::Statement;
use crate::protocol::claim::{ClaimRow, claim_batch_digest};
use crate::protocol::{Amount, ChannelId};
use crate::store::Purpose;

/// How many claims of a batch may lose their nonce to somebody else's transactions before the round ends.
const MAX_LOST: usize = 3;

/// What a round has done so far.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) report: Report,
    pub(super) quarantine: &'a mut Quarantine,
    /// The newest block that has a claim of this round.
    pub(super) block: u64,
}

/// Rows that are to be claimed together.
struct Try {
    rows: Vec<ClaimRow>,
    /// Whether they failed a simulation, or passed one after others were sorted out.
    sifted: bool,
    /// Whether they reverted when they were mined.
    reverted: bool,
}

/// In whose name claims are made.
pub(super) fn claimant<C: Chain>(office: &Office<C>) -> Claimant {
    Claimant { authorizer: office.authorizer.address(), sender: office.chain.sender() }
}

/// Claims rows; those the contract refuses are found, reported and left out for a while.
pub(super) async fn claim<C: Chain>(
    office: &Office<C>,
    rows: Vec<ClaimRow>,
    urgent: bool,
    work: &mut Work<'_>,
) -> Result<(), CallError> {
    let mut waiting = vec![Try { rows, sifted: false, reverted: false }];
    let mut lost = 0;
    while let Some(Try { rows, sifted, reverted }) = waiting.pop() {
        office.may_sign()?;
        let purpose = Purpose::Claim { rows: rows_of(&rows, &office.settlement()) };
        match office.carry_out(&claim_call(office, &rows), purpose, urgent).await {
            Ok(mined) if mined.success => note_claims(office, &mined, work),
            Ok(mined) => {
                tracing::warn!(transaction = %mined.hash, rows = rows.len(), "a claim reverted when it was mined");
                waiting.extend(after_revert(office, rows, reverted, &mined, work).await?);
            }
            Err(CallError::Chain(ChainError::Reverted { .. })) if !sifted => {
                let good = sift(office, rows, work).await?;
                waiting.extend(good.into_iter().rev().map(|rows| Try { rows, sifted: true, reverted }));
            }
            // It passed a moment ago, so its state moves or the node wavers.
            Err(CallError::Chain(ChainError::Reverted { .. })) if rows.len() > 1 => {
                waiting.extend(halves(&rows).map(|rows| Try { rows, sifted, reverted }));
            }
            Err(CallError::Chain(error @ ChainError::Reverted { .. })) => {
                rows.iter().for_each(|row| refuse(office, row, &error, false, work));
            }
            Err(CallError::Lost { transaction }) if lost < MAX_LOST => {
                lost += 1;
                tracing::warn!(%transaction, "a claim is made anew, as far as its rows are not claimed by others");
                let settlement = office.settlement();
                let channels: Vec<_> = rows.iter().map(|row| (row.config.id(&settlement), row.config)).collect();
                office.refresh_since(&channels, 0).await?;
                let rows = still_due(office, rows);
                if !rows.is_empty() {
                    waiting.push(Try { rows, sifted, reverted });
                }
            }
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// What is left to try of rows that reverted when they were mined.
async fn after_revert<C: Chain>(
    office: &Office<C>,
    rows: Vec<ClaimRow>,
    again: bool,
    mined: &Mined,
    work: &mut Work<'_>,
) -> Result<Vec<Try>, CallError> {
    let rows = still_due(office, rows);
    let count = rows.len();
    let good = sift(office, rows, work).await?;
    let passed = good.iter().map(Vec::len).sum::<usize>() == count;
    let tries = |rows: Vec<Vec<ClaimRow>>| {
        rows.into_iter().rev().map(|rows| Try { rows, sifted: true, reverted: true }).collect()
    };
    match &good[..] {
        // Whatever it does when it is tried, sending it costs gas for nothing.
        [rows] if passed && count == 1 => {
            let hash = mined.hash;
            let error = ChainError::Reverted { name: Some(format!("it passes when tried, and reverted in {hash}")) };
            rows.iter().for_each(|row| refuse(office, row, &error, true, work));
            Ok(Vec::new())
        }
        [rows] if passed && again => Ok(tries(halves(rows).into_iter().rev().collect())),
        _ => Ok(tries(good)),
    }
}

/// The rows that still claim something, by what the chain said last; after a claim was mined, its pilot has booked that.
fn still_due<C: Chain>(office: &Office<C>, rows: Vec<ClaimRow>) -> Vec<ClaimRow> {
    let settlement = office.settlement();
    let due = |mut row: ClaimRow| {
        let view = office.accounts().statement(&row.config.id(&settlement))?.view;
        row.total_claimed = row.total_claimed.min(view.balance);
        (row.total_claimed > view.total_claimed).then_some(row)
    };
    rows.into_iter().filter_map(due).collect()
}

/// Sorts out the rows that the contract refuses, by simulation alone. The others, together if they pass together, else in
/// the groups in which they passed.
async fn sift<C: Chain>(
    office: &Office<C>,
    rows: Vec<ClaimRow>,
    work: &mut Work<'_>,
) -> Result<Vec<Vec<ClaimRow>>, CallError> {
    let mut good: Vec<Vec<ClaimRow>> = Vec::new();
    let mut waiting = if rows.is_empty() { Vec::new() } else { vec![rows] };
    while let Some(rows) = waiting.pop() {
        office.may_sign()?;
        match office.chain.simulate(&claim_call(office, &rows)).await {
            Ok(_) => good.push(rows),
            Err(ChainError::Reverted { .. }) if rows.len() > 1 => waiting.extend(halves(&rows)),
            Err(error @ ChainError::Reverted { .. }) => {
                rows.iter().for_each(|row| refuse(office, row, &error, false, work));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if good.len() < 2 {
        return Ok(good);
    }
    let together = good.concat();
    match office.chain.simulate(&claim_call(office, &together)).await {
        Ok(_) => Ok(vec![together]),
        Err(ChainError::Reverted { .. }) => Ok(good),
        Err(error) => Err(error.into()),
    }
}

/// Both halves of a batch, as a stack takes them: the first is on top.
fn halves(rows: &[ClaimRow]) -> [Vec<ClaimRow>; 2] {
    let (first, second) = rows.split_at(rows.len() / 2);
    [second.to_vec(), first.to_vec()]
}

/// The receiver and its authorizer may claim by themselves, which is cheaper; anybody else shows the authorizer's
/// signature.
fn claim_call<C: Chain>(office: &Office<C>, rows: &[ClaimRow]) -> Call {
    let claimant = claimant(office);
    if rows.iter().all(|row| claimant.sends_for(row)) {
        Call::Claim { rows: rows.to_vec() }
    } else {
        let signature = office.authorizer.sign(claim_batch_digest(&office.settlement(), rows));
        Call::ClaimWithSignature { rows: rows.to_vec(), signature }
    }
}

/// Reports a row and puts its channel into quarantine.
fn refuse<C: Chain>(office: &Office<C>, row: &ClaimRow, error: &ChainError, at_a_price: bool, work: &mut Work<'_>) {
    let channel: ChannelId = row.config.id(&office.settlement());
    let books = office.accounts().statement(&channel);
    let reason = reason(row, books.as_ref(), error);
    if let Some(books) = books {
        let unexplained = is_unexplained(row, error);
        let refusal = Refusal { reason: reason.clone(), claims: row.total_claimed, at_a_price, unexplained };
        work.quarantine.put(&books, refusal, clock::now_s());
    }
    work.report.fail(channel, reason);
}

/// Whether no payer can bring such a refusal about. A wallet may change its mind, and money may go out of a channel while
/// its claim is made; but a key's signature was checked here, and stays what it is.
fn is_unexplained(row: &ClaimRow, error: &ChainError) -> bool {
    let drained = error.revert_name().is_some_and(|name| name.starts_with("ClaimExceedsBalance"));
    !row.config.payer_authorizer.is_zero() && !drained
}

/// Why a row is refused, for people.
fn reason(row: &ClaimRow, books: Option<&Statement>, error: &ChainError) -> String {
    let Some(name) = error.revert_name() else { return error.to_string() };
    let balance = books.map_or(Amount::ZERO, |books| books.view.balance);
    let (claims, max) = (row.total_claimed, row.max_claimable);
    let bare = name.split('(').next().unwrap_or(name);
    match bare {
        "ClaimExceedsBalance" => {
            format!(
                "the deposit is gone: {claims} units are claimed in all, and the channel's balance is {balance} at most"
            )
        }
        "ClaimExceedsCeiling" => format!("{claims} units are claimed in all, and the voucher allows {max}"),
        "InvalidSignature" | "ECDSAInvalidSignature" | "ECDSAInvalidSignatureLength" | "ECDSAInvalidSignatureS"
            if row.config.payer_authorizer.is_zero() =>
        {
            format!("the payer's wallet {} does not approve its voucher any more ({name})", row.config.payer)
        }
        "InvalidSignature" | "ECDSAInvalidSignature" | "ECDSAInvalidSignatureLength" | "ECDSAInvalidSignatureS" => {
            format!("the contract does not take the voucher's signature, or that of the receiver authorizer ({name})")
        }
        "NotReceiverAuthorizer" | "NotAuthorizedToClaim" => {
            format!("only {} may claim it ({name})", row.config.receiver_authorizer)
        }
        _ => error.to_string(),
    }
}

/// Adds what the events say.
fn note_claims<C: Chain>(office: &Office<C>, mined: &Mined, work: &mut Work<'_>) {
    work.block = work.block.max(mined.block);
    work.report.transactions.push(mined.on_chain());
    for event in &mined.events {
        if let Happening::Claimed { channel, amount, .. } = event.what
            && let Some(token) = office.token_of(&channel)
        {
            work.report.channels += 1;
            let claimed = |sums: &mut TokenSums| sums.claimed = sums.claimed.saturating_add(amount);
            work.report.count(token, office.dollars(), claimed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Address, ChannelConfig, Hash, LocalKey};

    #[test]
    fn a_refusal_is_told_in_words_of_its_row() {
        let row = |payer_authorizer| ClaimRow {
            config: ChannelConfig {
                payer: Address([9; 20]),
                payer_authorizer,
                receiver: Address([1; 20]),
                receiver_authorizer: Address([2; 20]),
                token: Address([3; 20]),
                withdraw_delay: 900,
                salt: Hash::ZERO,
            },
            max_claimable: Amount::new(70),
            signature: LocalKey::from_bytes(&[9; 32]).unwrap().sign(Hash::ZERO),
            total_claimed: Amount::new(60),
        };
        let (key, wallet) = (row(Address([9; 20])), row(Address::ZERO));
        let said = |row, name: &str| reason(row, None, &ChainError::Reverted { name: Some(name.to_owned()) });
        assert!(said(&key, "ClaimExceedsBalance").contains("60 units are claimed in all"));
        assert!(said(&key, "ClaimExceedsCeiling").contains("the voucher allows 70"));
        assert!(said(&key, "InvalidSignature").contains("does not take the voucher's signature"));
        let payer = Address([9; 20]).to_string();
        assert!(said(&wallet, "InvalidSignature").contains(&payer), "{}", said(&wallet, "InvalidSignature"));
        assert!(said(&key, "NotReceiverAuthorizer").contains(&Address([2; 20]).to_string()));
        let strange =
            |row, name: Option<&str>| is_unexplained(row, &ChainError::Reverted { name: name.map(str::to_owned) });
        assert!(strange(&key, Some("InvalidSignature")) && strange(&key, None));
        assert!(!strange(&key, Some("ClaimExceedsBalance")), "its payer may have been faster");
        assert!(!strange(&wallet, Some("InvalidSignature")) && !strange(&wallet, None), "wallets change their minds");
        assert_eq!(said(&key, "Whatever"), "the contract reverted: Whatever");
        assert_eq!(
            reason(&key, None, &ChainError::Reverted { name: None }),
            "the contract reverted: it gave no reason"
        );
    }
}
