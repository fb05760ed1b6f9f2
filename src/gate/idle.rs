//! Giving back what is left on a channel, unasked.

use super::Gate;
use super::accounts;
use super::desk::{RefundError, RefundSent};
use crate::protocol::{Amount, ChannelId};

impl Gate {
    /// Claims what was charged on a channel and gives the rest back to its payer, in one transaction; the same way a refund
    /// goes that a payer asks for. Nothing is served on the channel meanwhile. `None` where nothing was begun: the channel
    /// is in use, or has no more than `worth` left, or its payer withdraws.
    ///
    /// # Cancellation
    /// A refund that was begun goes on.
    pub(crate) async fn give_back(&self, id: &ChannelId, worth: Amount) -> Option<Result<RefundSent, RefundError>> {
        if self.desk.depositing(id) {
            return None;
        }
        let (ticket, amount) = self.accounts.begin_return(id)?.ok()?;
        if amount <= worth {
            return None;
        }
        let (config, row) = self.accounts.read(id, |channel| (channel.config(), accounts::claim_row(channel)))?;
        let sent = self.desk.refund(config, row, amount, ticket).await.unwrap_or(Err(RefundError::Unreachable));
        // What the chain refuses today it will refuse tomorrow; it is tried again after as long a time.
        if sent != Err(RefundError::Unreachable) {
            self.accounts.touch(id);
        }
        Some(sent)
    }
}
