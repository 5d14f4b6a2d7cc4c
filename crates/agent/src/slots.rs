//! How many requests one model of the backend takes at once.
//!
//! A backend does not say it: Ollama takes any number and lets what is too much wait inside, unseen and in its own
//! order. So the number comes from the settings, or is learned: now and then, while others wait, one request more is let
//! through, and it proves a slot when it spoke before any of the older ones had finished. Streams that start together end
//! together, so an older one is often done before the extra one had time to speak: that says nothing.

use std::time::Duration;

use scheduler::Moment;

use crate::Ticket;

/// The most that is ever learned: beyond it the memory of contexts, not our caution, is the limit.
pub const SLOTS_MAX: u16 = 32;
/// Between two trials after one that proved nothing; doubled each time up to the second.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// Silence beside an older one that counts as a wait, in parts of what the extra one then took without it.
const WAITED: u32 = 4;
/// Trials that said nothing are made again at once; after so many in a row there is a pause too, so that short answers to
/// long prompts do not keep one more inside for ever.
const UNDECIDED_MAX: u32 = 4;

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
    pause: Duration,
    /// Trials in a row that said nothing.
    undecided: u32,
}

#[derive(Debug)]
struct Trial {
    extra: Ticket,
    began: Moment,
    /// Who was inside before and has not finished: each has to be seen at work after `spoke`.
    older: Vec<Ticket>,
    spoke: Option<Moment>,
    /// When the first of the older ones was done, where that was before `spoke`: no proof can come of it any more.
    left_at: Option<Moment>,
}

impl Learning {
    const fn new(next: Moment) -> Self {
        Self { trial: None, next, pause: PAUSE_MIN, undecided: 0 }
    }

    /// The extra one spoke only after an older one was done. It waited for that one's slot if the time beside it would
    /// have been ample; else it may have been at work all along.
    fn judge(&mut self, now: Moment, began: Moment, left_at: Moment, spoke: Moment) {
        self.trial = None;
        if left_at.since(began) > spoke.since(left_at) * WAITED {
            self.next = now + self.pause;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
            self.undecided = 0;
            return;
        }
        self.undecided += 1;
        if self.undecided == UNDECIDED_MAX {
            self.next = now + self.pause;
            self.undecided = 0;
        }
    }
}

impl Slots {
    /// As the settings say, or 1 for what Ollama itself never runs in parallel. Zero would mean never: it counts as one.
    pub fn fixed(known: u16) -> Self {
        Self { known: known.max(1), running: Vec::new(), learning: None }
    }

    pub fn learned() -> Self {
        Self { known: 1, running: Vec::new(), learning: Some(Learning::new(Moment::default())) }
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
            learning.trial =
                Some(Trial { extra: ticket, began: now, older: self.running.clone(), spoke: None, left_at: None });
        }
        self.running.push(ticket);
    }

    /// Its first bytes came.
    pub fn spoke(&mut self, now: Moment, ticket: Ticket) {
        let Some(learning) = &mut self.learning else { return };
        let Some(trial) = learning.trial.as_mut().filter(|trial| trial.extra == ticket) else { return };
        match *trial {
            Trial { began, left_at: Some(left_at), .. } => learning.judge(now, began, left_at, now),
            _ => _ = trial.spoke.get_or_insert(now),
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
        let Some(until) = worked_until else {
            learning.trial = None;
            return;
        };
        match trial.spoke {
            Some(spoke) if until > spoke => {
                if trial.older.is_empty() {
                    self.known += 1;
                    *learning = Learning::new(now);
                }
            }
            Some(spoke) => {
                let began = trial.began;
                learning.judge(now, began, until, spoke);
            }
            None => _ = trial.left_at.get_or_insert(until),
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
        Moment::since_start(Duration::from_secs(seconds))
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
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
            let due = (0..2_000).find(|wait| slots.has_room(now + ms(wait * 1000))).unwrap();
            pauses.push(due);
            now = now + ms(due * 1000);
            slots.begin(now, ticket + 1);
            // In turn the older one is read to its end at once, and late by a slow reader.
            let (until, spoke) = (now + ms(9000), now + ms(10_000));
            if round % 2 == 0 {
                slots.end(until, ticket, Some(until));
            }
            slots.spoke(spoke, ticket + 1);
            slots.end(spoke, ticket, Some(until));
            now = spoke;
            slots.end(now, ticket + 1, Some(now));
        }
        assert_eq!(slots.known(), 1);
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]);
    }

    #[test]
    fn one_that_had_no_time_to_speak_beside_the_older_decides_nothing_and_is_followed_by_another() {
        let mut slots = Slots::learned();
        let mut now = at(0);
        let mut pauses = Vec::new();
        for round in 0..10 {
            let ticket = round * 2;
            slots.begin(now, ticket);
            let due = (0..2_000).find(|wait| slots.has_room(now + ms(wait * 1000))).unwrap();
            pauses.push(due);
            now = now + ms(due * 1000);
            slots.begin(now, ticket + 1);
            slots.end(now + ms(10), ticket, Some(now + ms(10)));
            now = now + ms(20);
            slots.spoke(now, ticket + 1);
            slots.end(now, ticket + 1, Some(now));
        }
        assert_eq!(pauses, [0, 0, 0, 0, 1, 0, 0, 0, 1, 0], "never twice as long");
    }

    #[test]
    fn streams_in_step_teach_all_slots_at_once() {
        let mut slots = Slots::learned();
        slots.begin(at(0), 0);
        let (mut now, mut newest) = (at(0), 0);
        for known in 1..8_u16 {
            // All but one of those inside end as the trial begins, and others take their places.
            slots.begin(now, newest + 1);
            let older: Vec<Ticket> = slots.running()[..usize::from(known)].to_vec();
            older.iter().for_each(|older| slots.end(now + ms(1), *older, Some(now + ms(1))));
            slots.spoke(now + ms(10), newest + 1);
            assert_eq!(slots.known(), known);
            newest += 1;
            while slots.free() > 0 {
                newest += 1;
                slots.begin(now + ms(10), newest);
            }
            assert!(slots.has_room(now + ms(10)), "at once, now that all are fresh");
            newest += 1;
            slots.begin(now + ms(10), newest);
            slots.spoke(now + ms(20), newest);
            now = now + ms(1000);
            let older: Vec<Ticket> = slots.running()[..usize::from(known)].to_vec();
            older.iter().for_each(|older| slots.end(now, *older, Some(now)));
            assert_eq!(slots.known(), known + 1);
            while slots.free() > 0 {
                newest += 1;
                slots.begin(now, newest);
            }
        }
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
