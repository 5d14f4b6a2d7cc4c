//! Which nodes hang: connections stand, and nobody is behind them.
//!
//! Silence alone is no sign, since prompts are read in silence. A node with requests of ours from which nothing comes
//! is looked at; only a look that goes unanswered makes it suspect, and a second sign makes it frozen. Signs are of the
//! node, so there is one look at a time for all its requests.

use std::collections::BTreeMap;
use std::time::Duration;

use scheduler::Moment;
use types::NodeId;

/// So long nothing came from a node before it is looked at, and between looks.
const QUIET: Duration = Duration::from_secs(1);
/// An answer takes milliseconds, from memory. With it, a node that hangs is left after three and a half seconds, and
/// after two and a half where another sign confirms it.
pub(crate) const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Answers under way that are silent so long, all of them, are a sign.
const STALLED: Duration = Duration::from_secs(2);
const SIGNS: u8 = 2;
/// A frozen node is looked at so long after the last request left it; then it is tried again like any other.
const REMEMBERED: Duration = Duration::from_secs(30);

/// An entry for each node with a request of ours, and the frozen ones: no more than the mesh has members.
#[derive(Debug, Default)]
pub(crate) struct Pulses {
    nodes: BTreeMap<NodeId, Pulse>,
}

#[derive(Debug)]
struct Pulse {
    requests: u32,
    /// Of these, those whose answer is under way.
    streams: u32,
    heard: Moment,
    looking: bool,
    looked: Moment,
    unanswered: u8,
    frozen: Option<Moment>,
}

impl Pulses {
    /// A request goes there.
    pub(crate) fn enter(&mut self, node: NodeId, now: Moment) {
        let new =
            Pulse { requests: 0, streams: 0, heard: now, looking: false, looked: now, unanswered: 0, frozen: None };
        self.nodes.entry(node).or_insert(new).requests += 1;
    }

    /// Its answer has begun.
    pub(crate) fn began(&mut self, node: NodeId, now: Moment) {
        if let Some(pulse) = self.nodes.get_mut(&node) {
            pulse.streams += 1;
        }
        self.heard(node, now);
    }

    /// It has ended or was given up.
    pub(crate) fn leave(&mut self, node: NodeId, had_begun: bool) {
        if let Some(pulse) = self.nodes.get_mut(&node) {
            pulse.requests = pulse.requests.saturating_sub(1);
            pulse.streams = pulse.streams.saturating_sub(u32::from(had_begun));
            if pulse.requests == 0 && pulse.frozen.is_none() {
                self.nodes.remove(&node);
            }
        }
    }

    /// Something came from there, of whichever request.
    pub(crate) fn heard(&mut self, node: NodeId, now: Moment) {
        if let Some(pulse) = self.nodes.get_mut(&node) {
            (pulse.heard, pulse.unanswered, pulse.frozen) = (now, 0, None);
            if pulse.requests == 0 {
                self.nodes.remove(&node);
            }
        }
    }

    pub(crate) fn is_frozen(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|pulse| pulse.frozen.is_some())
    }

    pub(crate) fn requests(&self) -> usize {
        self.nodes.values().map(|pulse| pulse.requests as usize).sum()
    }

    /// Nobody needs looking at, now or later, until a request is sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whom to look at now. What comes of it is told to [`Self::looked`], in any case.
    pub(crate) fn due(&mut self, now: Moment) -> Vec<NodeId> {
        let kept =
            |pulse: &Pulse| pulse.requests > 0 || pulse.frozen.is_some_and(|frozen| now.since(frozen) < REMEMBERED);
        self.nodes.retain(|_, pulse| kept(pulse));
        let due = |pulse: &Pulse| {
            let pause = if pulse.unanswered > 0 { Duration::ZERO } else { QUIET };
            let pause = if pulse.frozen.is_some() { QUIET } else { pause };
            !pulse.looking && now.since(pulse.heard) >= QUIET && now.since(pulse.looked) >= pause
        };
        let nodes: Vec<NodeId> = self.nodes.iter().filter(|(_, pulse)| due(pulse)).map(|(node, _)| *node).collect();
        for node in &nodes {
            if let Some(pulse) = self.nodes.get_mut(node) {
                pulse.looking = true;
            }
        }
        nodes
    }

    /// `missed`: others have not heard of the node lately either. Returns whether it was found frozen just now.
    pub(crate) fn looked(&mut self, node: NodeId, now: Moment, answered: bool, missed: bool) -> bool {
        let Some(pulse) = self.nodes.get_mut(&node) else { return false };
        (pulse.looking, pulse.looked) = (false, now);
        if answered {
            self.heard(node, now);
            return false;
        }
        // Whatever came while the look was under way is as good as its answer.
        if now.since(pulse.heard) < LOOK_TIMEOUT {
            return false;
        }
        pulse.unanswered = pulse.unanswered.saturating_add(1);
        let stalled = pulse.streams > 0 && now.since(pulse.heard) >= STALLED;
        let signs = pulse.unanswered.saturating_add(u8::from(missed)).saturating_add(u8::from(stalled));
        if signs < SIGNS || pulse.frozen.is_some() {
            return false;
        }
        pulse.frozen = Some(now);
        true
    }

    pub(crate) fn forget(&mut self, node: NodeId) {
        if let Some(pulse) = self.nodes.get_mut(&node) {
            pulse.frozen = None;
            if pulse.requests == 0 {
                self.nodes.remove(&node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_public_key([1; 32]);

    fn at(millis: u64) -> Moment {
        Moment::since_start(Duration::from_millis(millis))
    }

    /// Looks are due on a grid of 250 ms and fail after their time-out, until the node is frozen.
    fn frozen_after(pulses: &mut Pulses, missed: bool) -> Option<u64> {
        let mut looking = None;
        for now in (0..10_000).step_by(250) {
            if looking == Some(now) {
                looking = None;
                if pulses.looked(NODE, at(now), false, missed) {
                    return Some(now);
                }
            }
            if !pulses.due(at(now)).is_empty() {
                looking = Some(now + 1000);
            }
        }
        None
    }

    #[test]
    fn who_answers_no_look_is_left_within_five_seconds_and_sooner_with_another_sign() {
        let mut pulses = Pulses::default();
        pulses.enter(NODE, at(0));
        assert_eq!(frozen_after(&mut pulses, false), Some(3000));
        let mut pulses = Pulses::default();
        pulses.enter(NODE, at(0));
        assert_eq!(frozen_after(&mut pulses, true), Some(2000));
        let mut pulses = Pulses::default();
        pulses.enter(NODE, at(0));
        pulses.began(NODE, at(0));
        assert_eq!(frozen_after(&mut pulses, false), Some(2000));
    }

    #[test]
    fn who_is_silent_and_answers_looks_is_never_frozen() {
        let mut pulses = Pulses::default();
        pulses.enter(NODE, at(0));
        pulses.began(NODE, at(0));
        let mut looks = 0;
        for now in (0..600_000).step_by(250) {
            for node in pulses.due(at(now)) {
                assert!(!pulses.looked(node, at(now + 5), true, true));
                looks += 1;
            }
        }
        assert!(!pulses.is_frozen(NODE) && (400..=600).contains(&looks), "{looks}");
    }

    #[test]
    fn bytes_of_any_request_are_as_good_as_an_answered_look() {
        let mut pulses = Pulses::default();
        pulses.enter(NODE, at(0));
        pulses.enter(NODE, at(0));
        assert_eq!(pulses.due(at(1000)), [NODE]);
        assert!(pulses.due(at(1250)).is_empty(), "one look at a time");
        pulses.heard(NODE, at(1500));
        assert!(!pulses.looked(NODE, at(2000), false, true));
        assert!(pulses.due(at(2250)).is_empty() && !pulses.is_frozen(NODE));
    }

    #[test]
    fn a_frozen_node_is_looked_at_until_it_answers_or_is_forgotten() {
        let mut pulses = Pulses::default();
        pulses.enter(NODE, at(0));
        let then = frozen_after(&mut pulses, false).unwrap();
        pulses.leave(NODE, false);
        assert!(pulses.is_frozen(NODE) && !pulses.is_empty());
        assert_eq!(pulses.due(at(then + 1000)), [NODE]);
        pulses.looked(NODE, at(then + 1001), true, false);
        assert!(!pulses.is_frozen(NODE) && pulses.is_empty());

        pulses.enter(NODE, at(0));
        let then = frozen_after(&mut pulses, false).unwrap();
        pulses.leave(NODE, false);
        assert!(pulses.due(at(then + 30_000)).is_empty() && pulses.is_empty());
    }

    #[test]
    fn nothing_is_kept_of_requests_that_left() {
        let mut pulses = Pulses::default();
        pulses.enter(NODE, at(0));
        pulses.enter(NODE, at(0));
        pulses.began(NODE, at(0));
        pulses.leave(NODE, true);
        assert!(!pulses.is_empty());
        pulses.leave(NODE, false);
        assert!(pulses.is_empty());
    }
}
