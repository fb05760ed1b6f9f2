//! What a request to a facilitator is for, so that the chain can be asked whether it is done.

use super::wire::{Payload, Request};
use crate::chain::Happening;
use crate::protocol::deposit::Authorization;
use crate::protocol::{Address, Amount, ChannelId, Domain, Hash};

/// The effect that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// So much more in a channel, by this authorization.
    Deposit { channel: ChannelId, amount: Amount, token: Address, payer: Address, nonce: Hash },
    /// So much claimed of each channel, in all.
    Claim(Vec<(ChannelId, Amount)>),
    /// A receiver paid.
    Settle { receiver: Address, token: Address },
    /// A refund with this nonce, and claims before it.
    Refund { channel: ChannelId, nonce: u128, claims: Vec<(ChannelId, Amount)> },
}

impl Wanted {
    /// What a request is for.
    pub(super) fn of(request: &Request, settlement: &Domain) -> Self {
        let totals = |rows: &[super::wire::Row]| {
            rows.iter().map(|row| (row.voucher.channel.id(settlement), row.total_claimed)).collect()
        };
        match request.payload() {
            Payload::Deposit { channel_config: config, deposit, .. } => {
                let channel = config.id(settlement);
                let salt = deposit.authorization.erc3009_authorization.salt;
                Self::Deposit {
                    channel,
                    amount: deposit.amount,
                    token: config.token,
                    payer: config.payer,
                    nonce: Authorization::nonce(channel, salt),
                }
            }
            Payload::Claim { claims, .. } => Self::Claim(totals(claims)),
            Payload::Settle { receiver, token } => Self::Settle { receiver: *receiver, token: *token },
            Payload::Refund { channel_config, refund_nonce, claims, .. } => Self::Refund {
                channel: channel_config.id(settlement),
                nonce: refund_nonce.units(),
                claims: totals(claims),
            },
        }
    }

    /// Whether what happened is part of this. Others' claims may be in the same transaction.
    pub(super) fn has(&self, what: &Happening) -> bool {
        let is_claim = |claims: &[(ChannelId, Amount)]| match what {
            Happening::Claimed { channel, new_total_claimed, .. } => claims.contains(&(*channel, *new_total_claimed)),
            _ => false,
        };
        match self {
            Self::Deposit { channel, amount, .. } => match what {
                Happening::Created { channel: of, .. } => of == channel,
                Happening::Deposited { channel: of, amount: so_much, .. } => (of, so_much) == (channel, amount),
                _ => false,
            },
            Self::Claim(claims) => is_claim(claims),
            Self::Settle { receiver, token } => {
                matches!(what, Happening::Settled { receiver: to, token: of, .. } if (to, of) == (receiver, token))
            }
            Self::Refund { channel, claims, .. } => {
                is_claim(claims) || matches!(what, Happening::Refunded { channel: of, .. } if of == channel)
            }
        }
    }

    /// Whether what happened shows that this was done: the part of it that nothing else brings about.
    pub(super) fn is_shown_by(&self, what: &Happening) -> bool {
        let decides = match self {
            Self::Deposit { .. } => matches!(what, Happening::Deposited { .. }),
            Self::Refund { .. } => matches!(what, Happening::Refunded { .. }),
            Self::Claim(_) | Self::Settle { .. } => true,
        };
        decides && self.has(what)
    }

    /// What it is called in the log.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Deposit { .. } => "deposit",
            Self::Claim(_) => "claim",
            Self::Settle { .. } => "settle",
            Self::Refund { .. } => "refund",
        }
    }
}
