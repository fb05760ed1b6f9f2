//! What to offer for a place in a block.
//!
//! **Promises** that no offer is above its bid's ceiling, and that a replacement offers what nodes ask for at least. **Does
//! not** ask anybody: prices are given.

use super::error::ChainError;
use super::types::{Bid, GasPrice};

/// A base fee can double in six full blocks; a transaction that offers twice the current one outlasts them.
const BASE_FEE_HEADROOM: u128 = 2;
/// The largest tip that is believed, wei a unit of gas: a lying node must not empty the gas account.
pub(super) const MAX_TIP_WEI: u128 = 500_000_000_000;
/// How many times the usual tip is offered where something is lost if a transaction comes late.
const URGENT_TIP_FACTOR: u128 = 3;
/// The part that a replacement must offer more than what it replaces, in fee and tip: an eighth covers the tenth that
/// nodes ask for.
const REPLACEMENT_DIVISOR: u128 = 8;
/// What a signed transaction has beside its call's data, bytes: at most, with nonce and fees of any size.
const ENVELOPE_BYTES: u128 = 160;
/// The part of the fee for data that is added to it: a quarter. Layer 1 may get dearer until the transaction is mined.
const DATA_HEADROOM_DIVISOR: u128 = 4;
/// What nodes answer where a sender cannot pay.
const INSUFFICIENT_FUNDS: i64 = -32_000;

/// What a transaction offers, wei a unit of gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fees {
    /// Tip included.
    pub(super) max_fee: u128,
    pub(super) tip: u128,
}

impl Fees {
    /// What to offer at this price: enough to outlast a rise, as far as the bid allows.
    pub(super) fn of(price: &GasPrice, bid: Bid) -> Result<Self, ChainError> {
        let usual = price.tip_wei.min(MAX_TIP_WEI);
        let tip = if bid.urgent { usual.saturating_mul(URGENT_TIP_FACTOR).min(MAX_TIP_WEI) } else { usual };
        let asked_wei = price.base_wei.saturating_add(usual);
        if asked_wei > bid.ceiling_wei {
            return Err(ChainError::TooDear { asked_wei, ceiling_wei: bid.ceiling_wei });
        }
        let roomy = price.base_wei.saturating_mul(BASE_FEE_HEADROOM).saturating_add(tip);
        let max_fee = roomy.min(bid.ceiling_wei);
        Ok(Self { max_fee, tip: tip.min(max_fee) })
    }

    /// What to offer for the nonce of a transaction with these fees: what nodes take for a replacement at least, and what
    /// gas costs now; nothing where that is more than the bid allows.
    pub(super) fn outbid(&self, price: &GasPrice, bid: Bid) -> Option<Self> {
        let raised = |fee: u128| fee.checked_add(fee.div_euclid(REPLACEMENT_DIVISOR))?.checked_add(1);
        let now = Self::of(price, bid).unwrap_or(Self { max_fee: 0, tip: 0 });
        let max_fee = raised(self.max_fee)?.max(now.max_fee);
        let tip = raised(self.tip)?.max(now.tip).min(max_fee);
        (max_fee <= bid.ceiling_wei).then_some(Self { max_fee, tip })
    }
}

/// Whether a sender with this balance, wei, can pay for so much gas and for the data of a call with so many bytes. The node
/// would say so too, but only after the transaction was shown to a witness, who writes it down; strangers could fill a disk
/// with what is never sent.
pub(super) fn can_pay(
    balance: u128,
    gas: u64,
    call_bytes: usize,
    price: &GasPrice,
    fees: &Fees,
) -> Result<(), ChainError> {
    let bytes = u128::try_from(call_bytes).unwrap_or(u128::MAX).saturating_add(ENVELOPE_BYTES);
    let data = price.data_wei_per_byte.saturating_mul(bytes);
    let data = data.saturating_add(data.div_ceil(DATA_HEADROOM_DIVISOR));
    let most = fees.max_fee.saturating_mul(u128::from(gas)).saturating_add(data);
    if balance >= most {
        return Ok(());
    }
    let message = format!("insufficient funds for gas: {most} wei may be needed, {balance} are there");
    Err(ChainError::Refused { code: INSUFFICIENT_FUNDS, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GWEI: u128 = 1_000_000_000;

    fn price(base_wei: u128, tip_wei: u128) -> GasPrice {
        GasPrice { base_wei, tip_wei, ..GasPrice::default() }
    }

    fn bid(ceiling_wei: u128, urgent: bool) -> Bid {
        Bid { ceiling_wei, urgent }
    }

    fn fees(max_fee: u128, tip: u128) -> Fees {
        Fees { max_fee, tip }
    }

    #[test]
    fn an_offer_outlasts_a_rise_and_stays_under_its_ceiling() {
        let any = u128::MAX;
        // Base fee and tip; ceiling, urgency; what is offered.
        let cases = [
            ((100, 10), (any, false), fees(210, 10)),
            ((100, 10), (any, true), fees(230, 30)),
            // Room for the rise is cut first, down to what the next block takes.
            ((100, 10), (210, false), fees(210, 10)),
            ((100, 10), (209, false), fees(209, 10)),
            ((100, 10), (110, false), fees(110, 10)),
            ((100, 10), (110, true), fees(110, 30)),
            // Nodes want no tip above the fee.
            ((0, 10), (10, true), fees(10, 10)),
            ((0, 0), (0, false), fees(0, 0)),
            ((7, 0), (any, true), fees(14, 0)),
            // A node's word is believed up to a limit.
            ((100, any), (any, false), fees(200 + MAX_TIP_WEI, MAX_TIP_WEI)),
            ((100, MAX_TIP_WEI), (any, true), fees(200 + MAX_TIP_WEI, MAX_TIP_WEI)),
            ((any, 10), (any, false), fees(any, 10)),
        ];
        for ((base, tip), (ceiling, urgent), expected) in cases {
            let offered = Fees::of(&price(base, tip), bid(ceiling, urgent)).unwrap();
            assert_eq!(offered, expected, "{base} {tip} {ceiling} {urgent}");
            assert!(offered.max_fee <= ceiling && offered.tip <= offered.max_fee);
        }
    }

    #[test]
    fn gas_above_the_ceiling_is_too_dear_however_urgent() {
        for (base, ceiling) in [(100, 109), (100, 0), (u128::MAX, u128::MAX - 1)] {
            for urgent in [false, true] {
                let error = Fees::of(&price(base, 10), bid(ceiling, urgent)).unwrap_err();
                let ChainError::TooDear { asked_wei, ceiling_wei } = error else { panic!("{error:?}") };
                assert_eq!((asked_wei, ceiling_wei), (base.saturating_add(10), ceiling));
            }
        }
    }

    #[test]
    fn a_replacement_offers_an_eighth_more_and_what_gas_costs_now() {
        let any = u128::MAX;
        let cases = [
            // The price has not moved.
            (fees(210, 10), (100, 10), (any, false), Some(fees(237, 12))),
            // Urgency wants a larger tip.
            (fees(210, 10), (100, 10), (any, true), Some(fees(237, 30))),
            // The base fee has gone up a hundred times; and down.
            (fees(210, 10), (10_000, 10), (any, false), Some(fees(20_010, 12))),
            (fees(210, 10), (1, 1), (any, false), Some(fees(237, 12))),
            // At the ceiling, and one below.
            (fees(210, 10), (100, 10), (237, false), Some(fees(237, 12))),
            (fees(210, 10), (100, 10), (236, false), None),
            // Gas above the ceiling is no reason not to come closer to it.
            (fees(210, 10), (10_000, 10), (237, false), Some(fees(237, 12))),
            (fees(210, 10), (10_000, 10), (1_000, true), Some(fees(237, 12))),
            (fees(210, 10), (900, 10), (1_000, true), Some(fees(1_000, 30))),
            (fees(0, 0), (0, 0), (any, false), Some(fees(1, 1))),
            // A tip never exceeds the fee.
            (fees(8, 8), (0, 0), (any, false), Some(fees(10, 10))),
            // What cannot be outbid.
            (fees(any, 10), (100, 10), (any, false), None),
            (fees(any - any / 9, 10), (100, 10), (any, false), None),
        ];
        for (old, (base, tip), (ceiling, urgent), expected) in cases {
            let offered = old.outbid(&price(base, tip), bid(ceiling, urgent));
            assert_eq!(offered, expected, "{old:?} {base} {tip} {ceiling} {urgent}");
        }
    }

    #[test]
    fn every_replacement_is_one_that_nodes_take() {
        let mut old = fees(1, 1);
        for _ in 0..300 {
            let new = old.outbid(&price(0, 0), Bid::default()).unwrap();
            let enough = |new: u128, old: u128| new > old && new * 10 >= old * 11;
            assert!(enough(new.max_fee, old.max_fee) && enough(new.tip, old.tip), "{old:?} {new:?}");
            old = new;
        }
        assert!(old.max_fee > GWEI);
    }

    #[test]
    fn what_can_be_paid_includes_the_data() {
        let offer = fees(10, 1);
        let free = price(5, 1);
        assert!(can_pay(1_000, 100, 500, &free, &offer).is_ok());
        assert!(matches!(can_pay(999, 100, 500, &free, &offer), Err(ChainError::Refused { .. })));
        // 500 bytes and the envelope at 2 wei, and a quarter of that.
        let dear = GasPrice { data_wei_per_byte: 2, ..free };
        let most = 1_000 + (500 + ENVELOPE_BYTES) * 2 * 5 / 4;
        assert!(can_pay(most, 100, 500, &dear, &offer).is_ok());
        assert!(can_pay(most - 1, 100, 500, &dear, &offer).is_err());
        let absurd = GasPrice { data_wei_per_byte: u128::MAX, ..free };
        assert!(can_pay(u128::MAX - 1, 100, 500, &absurd, &offer).is_err());
        assert!(can_pay(u128::MAX - 1, u64::MAX, 0, &free, &fees(u128::MAX, 0)).is_err());
    }
}
