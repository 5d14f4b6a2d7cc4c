//! What became of the last requests, and why: for people who ask.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use scheduler::{Class, ModelKey, Moment, Reason, Seconds, Why};
use types::{NodeId, RequestId};

/// Of further steps only the last is kept: the end is worth more than the middle.
const STEPS_MAX: usize = 64;
/// The oldest goes first.
const TRACES_MAX: usize = 1024;

#[derive(Debug, Clone)]
pub struct Trace {
    pub id: RequestId,
    pub model: ModelKey,
    pub class: Class,
    /// On the clock of [`crate::Handle`].
    pub begun: Moment,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub struct Step {
    /// From the beginning.
    pub at: Duration,
    pub what: What,
}

#[derive(Debug, Clone)]
pub enum What {
    /// A candidate, and what it was thought to cost by what was heard of it earlier.
    Asked {
        node: NodeId,
        why: Why,
        stale: Seconds,
    },
    /// It answered with a promise.
    Promised {
        node: NodeId,
        score: Seconds,
    },
    /// It answered that it will not, or could not be asked.
    Declined {
        node: NodeId,
        why: String,
    },
    Sent {
        node: NodeId,
        reason: Reason,
        score: Seconds,
        max_wait: Option<Duration>,
    },
    /// What was sent came to nothing there.
    Failed {
        node: NodeId,
        why: String,
    },
    /// From here on the answer is that node's.
    FirstByte {
        node: NodeId,
    },
    /// It broke off there after its first byte, and the rest is asked of another node.
    Lost {
        node: NodeId,
        why: String,
    },
    Ended,
    /// Told to the client, before or after the first byte.
    GaveUp {
        why: String,
    },
    /// The client left.
    Cancelled,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Asking and deciding, all attempts together.
    pub choosing: Duration,
    /// On nodes that then failed or refused.
    pub lost: Duration,
    /// On the node that answered, until its first byte.
    pub waiting: Duration,
    pub streaming: Duration,
}

impl Trace {
    pub(crate) fn new(id: RequestId, model: ModelKey, class: Class, begun: Moment) -> Self {
        Self { id, model, class, begun, steps: Vec::new() }
    }

    pub(crate) fn note(&mut self, now: Moment, what: What) {
        if self.steps.len() == STEPS_MAX {
            self.steps.pop();
        }
        self.steps.push(Step { at: now.since(self.begun), what });
    }

    /// Times it was sent somewhere.
    pub fn sent(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step.what, What::Sent { .. })).count()
    }

    pub fn phases(&self) -> Phases {
        let mut phases = Phases::default();
        let mut since = Duration::ZERO;
        let mut stage = Stage::Choosing;
        for Step { at, what } in &self.steps {
            let (phase, next) = match (what, stage) {
                (What::Asked { .. } | What::Promised { .. } | What::Declined { .. }, _) => continue,
                (What::FirstByte { .. }, _) => (&mut phases.waiting, Stage::Streaming),
                (What::Sent { .. }, _) => (&mut phases.choosing, Stage::Trying),
                (_, Stage::Choosing) => (&mut phases.choosing, Stage::Choosing),
                (_, Stage::Trying) => (&mut phases.lost, Stage::Choosing),
                (_, Stage::Streaming) => (&mut phases.streaming, Stage::Choosing),
            };
            *phase += at.saturating_sub(since);
            (since, stage) = (*at, next);
        }
        phases
    }
}

#[derive(Clone, Copy)]
enum Stage {
    Choosing,
    Trying,
    Streaming,
}

/// The last ones that have ended.
#[derive(Debug, Default)]
pub(crate) struct Traces(VecDeque<Arc<Trace>>);

impl Traces {
    pub(crate) fn keep(&mut self, trace: Trace) {
        if self.0.len() == TRACES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Arc::new(trace));
    }

    pub(crate) fn find(&self, id: RequestId) -> Option<Arc<Trace>> {
        self.0.iter().rev().find(|trace| trace.id == id).cloned()
    }

    /// The last one first.
    pub(crate) fn last(&self, count: usize) -> Vec<Arc<Trace>> {
        self.0.iter().rev().take(count).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_public_key([1; 32]);

    fn trace(id: u8, steps: impl IntoIterator<Item = (u64, What)>) -> Trace {
        let begun = Moment::since_start(Duration::from_secs(9));
        let mut trace = Trace::new(RequestId::from_bytes([id; 16]), ModelKey::from_bytes([1; 16]), Class::Batch, begun);
        steps.into_iter().for_each(|(at, what)| trace.note(begun + Duration::from_millis(at), what));
        trace
    }

    fn sent() -> What {
        What::Sent { node: NODE, reason: Reason::Best, score: Seconds::ZERO, max_wait: None }
    }

    fn failed() -> What {
        What::Failed { node: NODE, why: String::new() }
    }

    #[test]
    fn each_moment_belongs_to_one_phase() {
        let millis = Duration::from_millis;
        let steps = [(3, sent()), (100, failed()), (107, sent()), (300, What::FirstByte { node: NODE })];
        let whole = trace(1, steps.into_iter().chain([(1000, What::Ended)]));
        let phases = Phases { choosing: millis(10), lost: millis(97), waiting: millis(193), streaming: millis(700) };
        assert_eq!((whole.phases(), whole.sent()), (phases, 2));
        let left = trace(1, [(3, sent()), (100, What::Cancelled)]);
        assert_eq!(left.phases(), Phases { choosing: millis(3), lost: millis(97), ..Phases::default() });
        let gave_up = trace(1, [(3, sent()), (100, failed()), (104, What::GaveUp { why: String::new() })]);
        assert_eq!(gave_up.phases(), Phases { choosing: millis(7), lost: millis(97), ..Phases::default() });
    }

    #[test]
    fn the_last_traces_are_kept_and_the_last_of_their_steps() {
        let mut traces = Traces::default();
        (0..TRACES_MAX + 3).for_each(|at| traces.keep(trace((at % 251) as u8, [])));
        assert_eq!(traces.0.len(), TRACES_MAX);
        let last = traces.last(2);
        let id = ((TRACES_MAX + 2) % 251) as u8;
        assert!(last.len() == 2 && last[0].id == RequestId::from_bytes([id; 16]));
        assert!(traces.find(last[1].id).is_some() && traces.find(RequestId::from_bytes([255; 16])).is_none());

        let long = trace(1, (0..100).map(|_| (1, failed())).chain([(2, What::Ended)]));
        assert!(long.steps.len() == STEPS_MAX && matches!(long.steps[STEPS_MAX - 1].what, What::Ended));
    }
}
