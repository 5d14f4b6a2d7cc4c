//! How often a gateway may try again: when everything fails, retries must not multiply the load that made it fail.

use scheduler::Moment;

/// Retries of one request, at most. A refusal of a node that did nothing yet costs nothing and is not counted.
pub const RETRIES_MAX: u32 = 2;

/// A retry for so many requests.
const REQUESTS_PER_RETRY: u32 = 10;
/// In units of a tenth of a retry: what a gateway that served little may spend. As much as a node has under way when it
/// dies, so that a gateway that has just started loses nothing with it.
const START: u32 = 10 * REQUESTS_PER_RETRY;
/// A long quiet spell must not pay for a storm.
const SAVED_MAX: u32 = 100 * REQUESTS_PER_RETRY;

/// One gateway's, for all its requests.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    saved: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { saved: START }
    }
}

impl Budget {
    /// A request came in.
    pub(crate) fn earn(&mut self) {
        self.saved = (self.saved + 1).min(SAVED_MAX);
    }

    /// Whether a request that was tried again `retries` times may be so once more; it is charged for it then.
    pub(crate) fn spend(&mut self, retries: u32, now: Moment, deadline: Option<Moment>) -> bool {
        let late = deadline.is_some_and(|deadline| now >= deadline);
        if late || retries >= RETRIES_MAX || self.saved < REQUESTS_PER_RETRY {
            return false;
        }
        self.saved -= REQUESTS_PER_RETRY;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn where_all_fail_retries_stay_a_tenth_of_the_requests() {
        let mut budget = Budget::default();
        let mut retries = 0;
        for _ in 0..1000 {
            budget.earn();
            let mut own = 0;
            while budget.spend(own, Moment::default(), None) {
                own += 1;
            }
            assert!(own <= RETRIES_MAX);
            retries += own;
        }
        assert!((100..=110).contains(&retries), "{retries}");
    }

    #[test]
    fn a_gateway_that_served_one_request_may_still_retry_it() {
        let mut budget = Budget::default();
        budget.earn();
        assert!(budget.spend(0, Moment::default(), None) && budget.spend(1, Moment::default(), None));
        assert!(!budget.spend(2, Moment::default(), None));
    }

    #[test]
    fn a_quiet_day_does_not_pay_for_a_storm() {
        let mut budget = Budget::default();
        (0..1_000_000).for_each(|_| budget.earn());
        let storm = (0..10_000).filter(|_| budget.spend(0, Moment::default(), None)).count();
        assert_eq!(storm, 100);
    }

    #[test]
    fn nothing_is_tried_again_once_nobody_waits() {
        let deadline = Moment::since_start(Duration::from_secs(5));
        let mut budget = Budget::default();
        assert!(!budget.spend(0, deadline, Some(deadline)));
        assert!(budget.spend(0, Moment::since_start(Duration::from_secs(4)), Some(deadline)));
    }
}
