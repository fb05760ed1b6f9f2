//! What a request costs: tariffs, and the arithmetic that makes a charge of what was measured.
//!
//! **Owns** tariffs and what is measured for them. **Promises** that a charge is a pure function of the tariff and what
//! was measured, in whole atomic units; that it is never above [`Tariff::most`], which is what the quote says; and that
//! it is exact: the rates of a request are added up as fractions and the sum is rounded once, up to the next whole unit.
//! **Does not** know routes, payers, clocks or bodies; the gate measures and charges.

pub mod measured;
pub mod tariff;
pub mod usage;

pub use measured::{End, Measured, Tokens};
pub use tariff::{Rate, Tariff, Tier, Unit};
pub use usage::UsageReader;
