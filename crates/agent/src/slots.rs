//! How many requests one model of the backend takes at once.
//!
//! A backend does not say it: Ollama takes any number and lets what is too much wait inside, unseen and in its own
//! order. So the number comes from the settings, or is learned: now and then, while others wait, one request more is let
//! through, and it proves a slot when it spoke before any of the older ones had finished.

use crate::{Moment, Ticket};

/// The most that is ever learned: beyond it the memory of contexts, not our caution, is the limit.
pub const SLOTS_MAX: u16 = 32;
/// Between two trials after one that proved nothing; doubled each time up to the second.
const PAUSE_MIN: Moment = Moment::from_secs(1);
const PAUSE_MAX: Moment = Moment::from_secs(600);

#[derive(Debug)]
pub struct Slots {
    known: u16,
    /// Who is inside the backend, at most [`SLOTS_MAX`] or the fixed number.
    running: Vec<Ticket>,
    learning: Option<Learning>,
}

/// Only where no setting and no property of the model gives the number.
#[derive(Debug)]
struct Learning {
    trial: Option<Trial>,
    next: Moment,
    pause: Moment,
}

#[derive(Debug)]
struct Trial {
    extra: Ticket,
    /// Who was inside before and has not finished: each has to be seen at work after `spoke`.
    older: Vec<Ticket>,
    spoke: Option<Moment>,
}

impl Slots {
    /// As the settings say, or 1 for what Ollama itself never runs in parallel. Zero would mean never: it counts as one.
    pub fn fixed(known: u16) -> Self {
        Self { known: known.max(1), running: Vec::new(), learning: None }
    }

    pub fn learned() -> Self {
        let learning = Learning { trial: None, next: Moment::ZERO, pause: PAUSE_MIN };
        Self { known: 1, running: Vec::new(), learning: Some(learning) }
    }

    pub fn known(&self) -> u16 {
        self.known
    }

    pub fn running(&self) -> &[Ticket] {
        &self.running
    }

    /// Slots nobody is in, trials left aside.
    pub fn free(&self) -> u16 {
        self.known.saturating_sub(u16::try_from(self.running.len()).unwrap_or(u16::MAX))
    }

    pub fn has_room(&self, now: Moment) -> bool {
        self.free() > 0 || self.may_try(now)
    }

    fn may_try(&self, now: Moment) -> bool {
        let due = |learning: &Learning| learning.trial.is_none() && now >= learning.next;
        self.running.len() == usize::from(self.known)
            && self.known < SLOTS_MAX
            && self.learning.as_ref().is_some_and(due)
    }

    /// Whoever called [`Slots::has_room`] goes in.
    pub fn begin(&mut self, now: Moment, ticket: Ticket) {
        let is_trial = self.free() == 0;
        debug_assert!(self.has_room(now), "more than `{}` at once", self.known);
        if is_trial && let Some(learning) = &mut self.learning {
            learning.trial = Some(Trial { extra: ticket, older: self.running.clone(), spoke: None });
        }
        self.running.push(ticket);
    }

    /// Its first bytes came.
    pub fn spoke(&mut self, now: Moment, ticket: Ticket) {
        if let Some(trial) = self.learning.as_mut().and_then(|learning| learning.trial.as_mut())
            && trial.extra == ticket
        {
            trial.spoke.get_or_insert(now);
        }
    }

    /// It left. `worked_until` is when the backend was done with it by its own account, which a slow reader cannot
    /// delay; `None` where it gave none, as when it was cancelled.
    pub fn end(&mut self, now: Moment, ticket: Ticket, worked_until: Option<Moment>) {
        self.running.retain(|running| *running != ticket);
        let Some(learning) = &mut self.learning else { return };
        let Some(trial) = &mut learning.trial else { return };
        if trial.extra == ticket {
            if trial.spoke.is_none() {
                learning.trial = None;
            }
            return;
        }
        let Some(at) = trial.older.iter().position(|older| *older == ticket) else { return };
        trial.older.swap_remove(at);
        match (worked_until, trial.spoke) {
            (Some(until), Some(spoke)) if until > spoke => {
                if trial.older.is_empty() {
                    self.known += 1;
                    *learning = Learning { trial: None, next: now, pause: PAUSE_MIN };
                }
            }
            // It spoke only once another had finished, or not yet: it may have waited inside.
            (Some(_), _) => {
                let pause = learning.pause;
                *learning = Learning { trial: None, next: now + pause, pause: (pause * 2).min(PAUSE_MAX) };
            }
            (None, _) => learning.trial = None,
        }
    }

    /// The backend started anew, perhaps with other settings.
    pub fn forget(&mut self) {
        if self.learning.is_some() {
            let running = std::mem::take(&mut self.running);
            *self = Self { running, ..Self::learned() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Moment {
        Moment::from_secs(seconds)
    }

    #[test]
    fn a_fixed_number_is_never_exceeded() {
        let mut slots = Slots::fixed(2);
        slots.begin(at(0), 1);
        slots.begin(at(0), 2);
        assert!(!slots.has_room(at(1_000_000)));
        slots.end(at(1), 1, Some(at(1)));
        assert!(slots.has_room(at(1)));
        assert_eq!((slots.known(), slots.free()), (2, 1));
    }

    #[test]
    fn one_that_spoke_while_the_older_were_at_work_proves_a_slot() {
        let mut slots = Slots::learned();
        slots.begin(at(0), 1);
        slots.begin(at(0), 2);
        assert!(!slots.has_room(at(0)), "one trial at a time");
        slots.spoke(at(1), 2);
        slots.end(at(3), 2, Some(at(3)));
        assert_eq!(slots.known(), 1, "the older one may have been done all along");
        slots.end(at(9), 1, Some(at(4)));
        assert_eq!(slots.known(), 2);
    }

    #[test]
    fn one_that_waited_inside_proves_nothing_and_makes_trials_rarer() {
        let mut slots = Slots::learned();
        let mut now = at(0);
        let mut pauses = Vec::new();
        for round in 0..10 {
            let ticket = round * 2;
            slots.begin(now, ticket);
            let due = (0..2_000).find(|wait| slots.has_room(now + at(*wait))).unwrap();
            pauses.push(due);
            now += at(due);
            slots.begin(now, ticket + 1);
            // A slow reader takes the end of the first after the beginning of the second.
            slots.spoke(now + at(2), ticket + 1);
            slots.end(now + at(3), ticket, Some(now + at(1)));
            now += at(3);
            slots.end(now, ticket + 1, Some(now));
        }
        assert_eq!(slots.known(), 1);
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]);
    }

    #[test]
    fn cancelled_streams_decide_nothing() {
        let mut slots = Slots::learned();
        slots.begin(at(0), 1);
        slots.begin(at(0), 2);
        slots.spoke(at(1), 2);
        slots.end(at(2), 1, None);
        assert_eq!(slots.known(), 1);
        assert!(slots.has_room(at(2)), "and cost no pause");
        slots.begin(at(2), 3);
        slots.end(at(3), 3, None);
        assert!(slots.has_room(at(3)));
    }

    #[test]
    fn what_was_learned_is_forgotten_with_the_process_that_taught_it() {
        let mut slots = Slots::learned();
        slots.begin(at(0), 1);
        slots.begin(at(0), 2);
        slots.spoke(at(1), 2);
        slots.end(at(4), 1, Some(at(4)));
        assert_eq!(slots.known(), 2);
        slots.forget();
        assert_eq!((slots.known(), slots.running().len()), (1, 1));
        let mut fixed = Slots::fixed(4);
        fixed.forget();
        assert_eq!(fixed.known(), 4);
    }
}
