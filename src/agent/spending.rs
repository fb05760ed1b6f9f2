//! What was spent, and what is being spent, held against the budget.
//!
//! **Owns** the counters: per host since the agent was made, per host and in all today. **Promises** that payments in
//! flight count in full, so parallel ones cannot overrun a limit together, and that one that was sent stays counted until
//! a receipt says that it cost less. What was on its way when a process died is counted in its channel's record, and not in
//! that day. **Does not** decide when the day is written down; the agent does after each payment ([`Spending::save`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blocking;
use super::book::{Book, DaySpend};
use super::budget::{Budget, BudgetRefusal, Dollars, Limit};
use super::error::AgentError;

/// The counters of one agent.
#[derive(Debug, Default)]
pub(super) struct Spending {
    counters: Mutex<Counters>,
    /// Held by who writes them down.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Counters {
    since_start: HashMap<String, Dollars>,
    today: DaySpend,
    in_flight: Dollars,
    in_flight_by_host: HashMap<String, Dollars>,
}

/// Room in the budget for one payment. Dropped, the room is free again, unless the payment was sent: whoever has it can
/// claim it, whatever was answered or not.
#[derive(Debug)]
pub(super) struct Reservation {
    spending: Arc<Spending>,
    host: String,
    held: Dollars,
    sent_on: Option<u64>,
}

impl Spending {
    /// Goes on from what the book knows of a day.
    pub(super) fn resume(today: DaySpend) -> Arc<Self> {
        let counters = Mutex::new(Counters { today, ..Counters::default() });
        Arc::new(Self { counters, writing: Mutex::default() })
    }

    /// Makes room for a payment of at most `asked` to `host` on `day` (days since 1970, UTC), of which `fresh` is not
    /// counted yet.
    pub(super) fn reserve(
        self: &Arc<Self>,
        budget: &Budget,
        host: &str,
        asked: Dollars,
        fresh: Dollars,
        day: u64,
    ) -> Result<Reservation, BudgetRefusal> {
        let mut counters = self.counters();
        counters.turn_to(day);
        let of = |map: &HashMap<String, Dollars>| map.get(host).copied().unwrap_or_default();
        let held_by_host = of(&counters.in_flight_by_host);
        let host_today = counters.today.hosts.get(host).copied().unwrap_or_default();
        let host_spent = of(&counters.since_start).max(host_today).saturating_add(held_by_host);
        let day_spent = counters.today.total.saturating_add(counters.in_flight);
        let checks = [
            (Limit::Request, asked, budget.max_per_request, Dollars::ZERO),
            (Limit::Host, fresh, budget.max_per_host, host_spent),
            (Limit::Day, fresh, budget.max_per_day, day_spent),
        ];
        for (limit, more, allowed, spent) in checks {
            if spent.saturating_add(more) > allowed {
                return Err(BudgetRefusal { limit, asked, allowed, spent });
            }
        }
        counters.in_flight = counters.in_flight.saturating_add(fresh);
        counters.in_flight_by_host.insert(host.to_owned(), held_by_host.saturating_add(fresh));
        Ok(Reservation { spending: Arc::clone(self), host: host.to_owned(), held: fresh, sent_on: None })
    }

    /// Counts money that turned out to be spent.
    pub(super) fn count(&self, host: &str, spent: Dollars, day: u64) {
        let mut counters = self.counters();
        counters.turn_to(day);
        let since_start = counters.since_start.entry(host.to_owned()).or_default();
        *since_start = since_start.saturating_add(spent);
        let today = counters.today.hosts.entry(host.to_owned()).or_default();
        *today = today.saturating_add(spent);
        counters.today.total = counters.today.total.saturating_add(spent);
    }

    /// Takes back what was counted on a day and turned out not to be spent.
    pub(super) fn take_back(&self, host: &str, counted: Dollars, day: u64) {
        let mut counters = self.counters();
        let less = |of: &mut Dollars| *of = of.saturating_sub(counted);
        counters.since_start.get_mut(host).map(less);
        if counters.today.day == day {
            counters.today.hosts.get_mut(host).map(less);
            less(&mut counters.today.total);
        }
    }

    /// Writes the latest day down, beside the event loop where that means a disk.
    pub(super) async fn save(self: &Arc<Self>, book: &Book) -> Result<(), AgentError> {
        if !book.is_on_disk() {
            return Ok(());
        }
        let (book, spending) = (book.share(), Arc::clone(self));
        blocking(move || {
            let _one_writer = spending.writing.lock().unwrap_or_else(PoisonError::into_inner);
            book.save_day(&spending.today())
        })
        .await
    }

    fn today(&self) -> DaySpend {
        self.counters().today.clone()
    }

    /// A panic elsewhere cannot leave the counters half changed in a way that matters: every step is one addition.
    fn counters(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counters {
    /// A clock that goes back does not empty the counters.
    fn turn_to(&mut self, day: u64) {
        if day > self.today.day {
            self.today = DaySpend { day, ..DaySpend::default() };
        }
    }
}

impl Reservation {
    /// The payment is about to leave.
    pub(super) fn sent(&mut self, day: u64) {
        self.sent_on = Some(day);
    }

    /// The payment cost so much; the rest is free again.
    pub(super) fn spend(mut self, charged: Dollars, day: u64) {
        self.sent_on = None;
        self.spending.count(&self.host, charged, day);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(day) = self.sent_on {
            self.spending.count(&self.host, self.held, day);
        }
        let mut counters = self.spending.counters();
        counters.in_flight = counters.in_flight.saturating_sub(self.held);
        let left = counters.in_flight_by_host.get(&self.host).copied().unwrap_or_default().saturating_sub(self.held);
        if left == Dollars::ZERO {
            counters.in_flight_by_host.remove(&self.host);
        } else {
            counters.in_flight_by_host.insert(self.host.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Budget {
        Budget {
            max_per_request: Dollars::from_micros(10),
            max_per_host: Dollars::from_micros(15),
            max_per_day: Dollars::from_micros(20),
            ..Budget::default()
        }
    }

    fn reserve(spending: &Arc<Spending>, host: &str, asked: u128, day: u64) -> Result<Reservation, BudgetRefusal> {
        let asked = Dollars::from_micros(asked);
        spending.reserve(&budget(), host, asked, asked, day)
    }

    fn refused(result: Result<Reservation, BudgetRefusal>) -> Option<(Limit, u128)> {
        result.err().map(|refusal| (refusal.limit, refusal.spent.micros()))
    }

    #[test]
    fn each_limit_is_inclusive_and_says_its_name() {
        let spending = Spending::resume(DaySpend::default());
        let micros = Dollars::from_micros;
        assert_eq!(refused(reserve(&spending, "a", 11, 1)), Some((Limit::Request, 0)));
        reserve(&spending, "a", 10, 1).unwrap().spend(micros(10), 1);
        assert_eq!(refused(reserve(&spending, "a", 6, 1)), Some((Limit::Host, 10)));
        reserve(&spending, "a", 5, 1).unwrap().spend(micros(5), 1);
        assert_eq!(refused(reserve(&spending, "b", 6, 1)), Some((Limit::Day, 15)));
        assert_eq!(refused(reserve(&spending, "b", 5, 1)), None);
    }

    #[test]
    fn payments_in_flight_count_in_full_and_what_was_not_charged_is_free_again() {
        let spending = Spending::resume(DaySpend::default());
        let micros = Dollars::from_micros;
        let first = reserve(&spending, "a", 10, 1).unwrap();
        assert_eq!(refused(reserve(&spending, "a", 10, 1)), Some((Limit::Host, 10)));
        first.spend(micros(1), 1);
        assert_eq!(refused(reserve(&spending, "a", 10, 1)), None, "dropped at once");
        assert_eq!(spending.today().total, micros(1));
    }

    #[test]
    fn a_payment_that_was_sent_is_spent_unless_a_receipt_says_less() {
        let spending = Spending::resume(DaySpend::default());
        let micros = Dollars::from_micros;
        let mut sent = reserve(&spending, "a", 10, 1).unwrap();
        sent.sent(1);
        drop(sent);
        assert_eq!(spending.today().total, micros(10));
        // The same ceiling once more costs nothing more.
        let again = spending.reserve(&budget(), "a", micros(10), micros(0), 1);
        assert_eq!(refused(again), None);
        let mut served = reserve(&spending, "a", 5, 1).unwrap();
        served.sent(1);
        served.spend(micros(1), 1);
        assert_eq!(spending.today().total, micros(11));
    }

    #[test]
    fn a_new_day_empties_the_day_and_not_the_host_since_the_start() {
        let spending = Spending::resume(DaySpend::default());
        let micros = Dollars::from_micros;
        for day in [1, 2] {
            spending.count("a", micros(7), day);
        }
        assert_eq!(spending.today().total, micros(7));
        assert_eq!(refused(reserve(&spending, "a", 2, 3)), Some((Limit::Host, 14)));
        assert_eq!(refused(reserve(&spending, "b", 2, 1)), None, "a clock may go back");
        assert_eq!(spending.today().day, 3);
    }
}
