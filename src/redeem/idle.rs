//! Idle channels: what their payers left is given back to them.
//!
//! **Owns** when and to whom. **Promises** that at most [`MAX_AT_ONCE`] channels are refunded between two looks, one after
//! the other, and that nothing is sent that costs more gas than it gives back, as far as that is known. A payer that comes
//! back later is told the channel's true state and deposits again. **Does not** touch channels whose payer is withdrawing,
//! on which a request or refund is in progress, or whose claims take another key.

use std::time::Duration;

use super::Office;
use super::plan::in_units;
use crate::chain::{Chain, GasPrice};
use crate::clock;
use crate::protocol::{Amount, ChannelConfig};

/// How many channels are refunded between two looks.
const MAX_AT_ONCE: usize = 8;

/// How often there is a look, in an idle time; and the bounds of the pause.
const LOOKS: u32 = 16;
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(3_600);

/// What claiming and refunding one channel takes, gas, rounded up from what was measured.
const REFUND_GAS: u128 = 150_000;

/// So many decimal places below a dollar is the least that is given back: a cent. Refunding costs the provider gas, and
/// anybody can leave a unit behind.
const CENT_DECIMALS: u8 = 2;

/// Looks for idle channels until told to stop.
pub(super) async fn run<C: Chain>(office: Office<C>) {
    let Some(idle) = office.settings.watch.refund_idle else { return };
    let pause = (idle / LOOKS).clamp(MIN_PAUSE, MAX_PAUSE);
    loop {
        tokio::select! {
            () = office.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        tokio::select! {
            () = office.stop.cancelled() => return,
            () = look(&office, idle) => {}
        }
    }
}

/// Refunds some idle channels.
///
/// # Cancellation
/// A refund that was asked for goes on.
async fn look<C: Chain>(office: &Office<C>, idle: Duration) {
    let unused_since = clock::now_s().saturating_sub(idle.as_secs());
    let ours = office.authorizer.address();
    let dollars = office.dollars();
    let enough = |config: &ChannelConfig, left: Amount| {
        config.receiver_authorizer == ours && left >= least(dollars.decimals_of(config.token))
    };
    let found = office.accounts().idle(unused_since, MAX_AT_ONCE, enough);
    if found.is_empty() {
        return;
    }
    let Some(worth) = worth_its_gas(office).await else { return };
    for (id, config) in found {
        // Its balance must not be older than the decision.
        if let Err(error) = office.refresh_since(&[(id, config)], 0).await {
            tracing::warn!(channel = %id, %error, "an idle channel cannot be read");
            return;
        }
        match office.gate.give_back(&id, dollars.in_token(config.token, worth)).await {
            Some(Ok(sent)) => {
                tracing::info!(channel = %id, amount = %sent.amount, transaction = %sent.transaction, "an idle channel is refunded");
            }
            Some(Err(error)) => tracing::warn!(channel = %id, %error, "an idle channel could not be refunded"),
            None => tracing::debug!(channel = %id, "an idle channel is not refunded now"),
        }
    }
}

/// A cent, atomic units.
fn least(decimals: u8) -> Amount {
    let zeros = u32::from(decimals.saturating_sub(CENT_DECIMALS));
    Amount::new(10_u128.checked_pow(zeros).unwrap_or(u128::MAX))
}

/// What the gas of a refund is worth, in dollars; nothing where the rules do not say what a coin is worth. `None` where
/// the price of gas cannot be read.
async fn worth_its_gas<C: Chain>(office: &Office<C>) -> Option<Amount> {
    let Some(units_per_coin) = office.settings.rules.units_per_coin else { return Some(Amount::ZERO) };
    match office.chain.gas_price().await {
        Ok(price) => Some(cost(price, units_per_coin)),
        Err(error) => {
            tracing::warn!(%error, "the price of gas cannot be read; no idle channel is refunded");
            None
        }
    }
}

/// Rounded up; what is too much to say is the most there is.
fn cost(GasPrice { base_wei, tip_wei, .. }: GasPrice, units_per_coin: u128) -> Amount {
    let wei = base_wei.checked_add(tip_wei).and_then(|wei| wei.checked_mul(REFUND_GAS));
    wei.map_or(Amount::MAX, |wei| in_units(wei, units_per_coin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_that_is_given_back_is_a_cent() {
        assert_eq!([6, 18, 2, 0].map(least), [10_000, 10_000_000_000_000_000, 1, 1].map(Amount::new));
        assert_eq!(least(u8::MAX), Amount::MAX);
    }

    #[test]
    fn a_refund_costs_its_gas() {
        let price = |base_wei, tip_wei| GasPrice { base_wei, tip_wei, ..GasPrice::default() };
        // 150,000 gas at 0.1 gwei are 0.000015 coins; at 3,000 dollars a coin, 4.5 cents.
        assert_eq!(cost(price(90_000_000, 10_000_000), 3_000_000_000), Amount::new(45_000));
        assert_eq!(cost(price(0, 1), 1), Amount::new(1), "rounded up");
        assert_eq!(cost(price(0, 0), 1), Amount::ZERO);
        assert_eq!(cost(price(u128::MAX, 1), 1), Amount::MAX);
    }
}
