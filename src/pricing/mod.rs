//! What a request costs: tariffs, and the arithmetic that makes a charge of what was measured.
//!
//! **Owns** tariffs, what is measured for them, which part of a price is charged by an answer's status, and which price is
//! in force at which hour. **Promises** that a charge is a pure function of the tariff and what was measured, in whole
//! atomic units; that it is never above [`Tariff::most`], which is what the quote says; and that it is exact: the rates of
//! a request are added up as fractions and the sum is rounded once, up to the next whole unit. **Does not** know routes,
//! payers, clocks or bodies; the gate measures and charges.
//!
//! # The rules of a charge
//!
//! 1. A request costs the base and, for each rate, its count through the rate's tiers: each tier's price is for the part of
//!    the count that lies in it. The sum is rounded up once, and never above the most.
//! 2. Bytes, time and events are counted by us. Tokens and reported units are known only if the upstream says so. A
//!    *complete* answer that lacks a count some rate needs costs the most, which is what the quote said. So does one whose
//!    payer left: leaving before the report must not be free.
//! 3. An answer that the upstream broke off, or that ended because we stopped, costs what was counted and reported so far:
//!    what was not reported counts as nothing.
//! 4. Tokens read from a cache cost what other tokens read cost, unless the tariff has a rate of their own for them; tokens
//!    written to a cache likewise.
//! 5. A sum that cannot be told costs the most. The sums of a tariff that [adds up](Tariff::adds_up) can always be told.
//! 6. Of all this the answer's status decides a share ([`StatusRule`]), rounded up. Nothing is charged for an answer that
//!    only asks for credentials or a payment (401, 402, 407), nor for a server's failure.

mod decimals;
pub mod measured;
pub mod schedule;
pub mod status;
mod sum;
pub mod tariff;
pub mod usage;
mod words;

pub use measured::{End, Measured, Tokens};
pub use schedule::{Days, Overlap, Schedule, Window};
pub use status::{NeverCharged, Share, StatusRule, Statuses};
pub use tariff::{Rate, Tariff, Tier, Unit};
pub use usage::UsageReader;
