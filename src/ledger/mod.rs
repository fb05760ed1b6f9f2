//! The channel state machine.
//!
//! **Owns** what a channel has: its mirror of the chain, what was charged, the voucher that covers the charges, and the
//! requests being served on credit of it. **Promises** (I1..I5 on [`Channel`]) hold after every event, in release builds
//! too; [`Channel::decide`] is pure and total, [`Channel::evolve`] cannot fail. **Does not** know clocks, locks, disks,
//! HTTP or prices, and never talks to anyone.
//!
//! Money moves in two phases: a request that is let through *holds* its price; a served one *posts* what it really cost,
//! at most what was held; a failed one *voids*. What the chain says is observed as a whole ([`View`]), never as a
//! difference, so observing it twice, late or out of order does no harm.

mod channel;
mod flight;
mod terms;

pub use channel::{
    Channel, Command, Event, LatestVoucher, Limits, Reject, SentRefund, Snapshot, View, Violation, Withdrawal,
};
pub use flight::{HoldNumber, MAX_SPENT_SEGMENTS, OpenHold};
pub use terms::TermsPool;
