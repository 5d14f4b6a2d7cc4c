//! How the backend is, from what it answered and what it left unanswered.
//!
//! A look is `GET /api/version`, which costs a backend nothing and needs no model. Bytes of a running answer are as good
//! as a look: a backend that works has no need to be polite. Silence alone means nothing, since prompts are read in
//! silence; silence and an unanswered look mean it is frozen.

use std::time::Duration;

/// What others are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Up,
    /// One look went wrong: nothing new is sent there, nothing that runs is given up.
    Suspect,
    Down(String),
    /// It finishes what it has and takes nothing new.
    Draining,
}

/// How a look went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missed {
    /// Nothing listens there: a process that is gone, not one that is slow.
    Refused(String),
    Late,
    /// What answered is none of the backends we know.
    Foreign(String),
}

#[derive(Debug)]
pub struct Health {
    condition: Condition,
    draining: bool,
}

#[derive(Debug)]
enum Condition {
    Unknown,
    Up,
    Suspect { missed: u32 },
    Down { why: String, answered: u32 },
}

/// A look that took longer than this is unanswered.
pub const LOOK_MAX: Duration = Duration::from_secs(1);
/// In a row and it is down. With [`LOOK_MAX`], and looks every second while requests run, a frozen backend is left in
/// less than five seconds.
const MISSES_MAX: u32 = 3;
/// In a row and what was down is up: one that falls over at its first request shall not be sent one every second.
const ANSWERS_MIN: u32 = 2;

impl Default for Health {
    fn default() -> Self {
        Self { condition: Condition::Unknown, draining: false }
    }
}

impl Health {
    pub fn state(&self) -> State {
        match &self.condition {
            Condition::Down { why, .. } => State::Down(why.clone()),
            Condition::Unknown => State::Down("not looked at yet".to_owned()),
            Condition::Up | Condition::Suspect { .. } if self.draining => State::Draining,
            Condition::Up => State::Up,
            Condition::Suspect { .. } => State::Suspect,
        }
    }

    /// Whether a request may be sent there now.
    pub fn takes_requests(&self) -> bool {
        matches!(self.condition, Condition::Up) && !self.draining
    }

    /// Whether what waits has a reason to go on waiting.
    pub fn is_lost(&self) -> bool {
        matches!(self.condition, Condition::Down { .. })
    }

    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// A look was answered, or a running answer brought bytes.
    pub fn answered(&mut self) {
        let next = match std::mem::replace(&mut self.condition, Condition::Unknown) {
            Condition::Down { why, answered } if answered + 1 < ANSWERS_MIN => {
                Condition::Down { why, answered: answered + 1 }
            }
            Condition::Down { .. } | Condition::Unknown | Condition::Up | Condition::Suspect { .. } => Condition::Up,
        };
        self.condition = next;
    }

    /// Returns whether it is down only now, so that what runs there has to be given up.
    pub fn missed(&mut self, how: Missed) -> bool {
        let (missed, was_down) = match &self.condition {
            Condition::Unknown | Condition::Up => (1, false),
            Condition::Suspect { missed } => (missed + 1, false),
            Condition::Down { .. } => (MISSES_MAX, true),
        };
        let is_sure = !matches!(how, Missed::Late) && missed > 1;
        let was_unknown = matches!(self.condition, Condition::Unknown);
        self.condition = if missed >= MISSES_MAX || is_sure || was_unknown {
            let why = match how {
                Missed::Refused(why) => why,
                Missed::Late => format!("no answer within {LOOK_MAX:?}, `{missed}` times"),
                Missed::Foreign(what) => format!("no backend that is known: {what}"),
            };
            Condition::Down { why, answered: 0 }
        } else {
            Condition::Suspect { missed }
        };
        self.is_lost() && !was_down
    }

    /// Set by an operator; holds whatever the looks say.
    pub fn drain(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// How long to wait before the next look. Nobody is asked for less than a look's worth of news.
    pub fn pause(&self, is_busy: bool) -> Duration {
        match self.condition {
            Condition::Unknown => Duration::ZERO,
            Condition::Suspect { .. } => Duration::from_millis(100),
            Condition::Up if is_busy => Duration::from_secs(1),
            Condition::Down { .. } => Duration::from_millis(500),
            Condition::Up => Duration::from_secs(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up() -> Health {
        let mut health = Health::default();
        health.answered();
        assert_eq!(health.state(), State::Up);
        health
    }

    #[test]
    fn one_missed_look_is_a_suspicion_and_an_answer_ends_it() {
        let mut health = up();
        assert!(!health.missed(Missed::Late));
        assert_eq!(health.state(), State::Suspect);
        assert!(!health.takes_requests() && !health.is_lost());
        health.answered();
        assert_eq!(health.state(), State::Up);
    }

    #[test]
    fn a_frozen_one_is_given_up_within_five_seconds_and_once() {
        let mut health = up();
        let mut took = health.pause(true);
        let mut given_up = 0;
        for _ in 0..5 {
            took += LOOK_MAX;
            given_up += u32::from(health.missed(Missed::Late));
            if given_up == 0 {
                took += health.pause(true);
            } else {
                break;
            }
        }
        assert_eq!(given_up, 1);
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(!health.missed(Missed::Late), "it was down already");
    }

    #[test]
    fn bytes_of_an_answer_outweigh_unanswered_looks() {
        let mut health = up();
        for _ in 0..20 {
            assert!(!health.missed(Missed::Late));
            health.answered();
        }
        assert!(health.takes_requests());
    }

    #[test]
    fn a_process_that_is_gone_is_down_at_the_second_refusal() {
        let mut health = up();
        assert!(!health.missed(Missed::Refused("nothing listens there".into())));
        assert!(health.missed(Missed::Refused("nothing listens there".into())));
        assert_eq!(health.state(), State::Down("nothing listens there".into()));
    }

    #[test]
    fn what_was_down_is_up_after_two_answers() {
        let mut health = Health::default();
        assert!(health.missed(Missed::Refused("nothing listens there".into())));
        health.answered();
        assert!(health.is_lost());
        assert!(!health.missed(Missed::Late));
        health.answered();
        health.answered();
        assert!(health.takes_requests());
    }

    #[test]
    fn draining_holds_whatever_the_looks_say() {
        let mut health = up();
        health.drain(true);
        assert_eq!(health.state(), State::Draining);
        health.answered();
        assert!(!health.takes_requests());
        health.drain(false);
        assert!(health.takes_requests());
    }
}
