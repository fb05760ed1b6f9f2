//! The terms many channels have in common.

use std::sync::{Arc, Mutex, PoisonError};

use crate::protocol::{Address, ChannelConfig, Hash};

/// The part of a channel's terms that is the provider's, and so the same for nearly all channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SharedTerms {
    receiver: Address,
    receiver_authorizer: Address,
    token: Address,
    withdraw_delay: u64,
}

impl SharedTerms {
    pub(super) fn of(config: &ChannelConfig) -> Self {
        let ChannelConfig { receiver, receiver_authorizer, token, withdraw_delay, .. } = *config;
        Self { receiver, receiver_authorizer, token, withdraw_delay }
    }

    /// Seconds.
    pub(super) fn withdraw_delay(&self) -> u64 {
        self.withdraw_delay
    }

    pub(super) fn config_of(&self, payer: Address, payer_authorizer: Address, salt: Hash) -> ChannelConfig {
        let Self { receiver, receiver_authorizer, token, withdraw_delay } = *self;
        ChannelConfig { payer, payer_authorizer, receiver, receiver_authorizer, token, withdraw_delay, salt }
    }
}

/// How many different terms are kept for sharing. A provider changes them a few times in its life; channels with terms
/// beyond these have their own copy.
const MAX_POOLED: usize = 64;

/// Where channels find others with the same terms, so that a million of them hold those once.
#[derive(Debug, Default)]
pub struct TermsPool(Mutex<Vec<Arc<SharedTerms>>>);

impl TermsPool {
    pub(super) fn share(&self, terms: Arc<SharedTerms>) -> Arc<SharedTerms> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = pool.iter().find(|known| **known == terms) {
            return Arc::clone(known);
        }
        if pool.len() < MAX_POOLED {
            pool.push(Arc::clone(&terms));
        }
        terms
    }
}
