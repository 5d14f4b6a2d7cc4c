//! One request on its way through its attempts, as a value: events and the time in, what to do next out.
//!
//! Until the client has seen output, a change of node is free for it. After that the rest is asked of another node where
//! that can be done honestly; else the answer breaks off in plain sight. At no time is a request with two nodes: what was begun elsewhere is dropped before the next is
//! asked.

use std::time::Duration;

use scheduler::{
    Answer, Asker, Candidates, Choice, Dice, Fleet, ModelKey, Moment, Owners, Promise, Reason, Seconds, Turn, Work,
};
use scheduler::{choose, choose_known, choose_unheard, hold, probe_timeout};
use types::{NodeId, RequestId};

use crate::breaker::Breakers;
use crate::budget::Budget;
use crate::error::{Cut, Error, Failure, Refusal};
use crate::frozen::Pulses;
use crate::trace::{Trace, Traces, What};

/// Nodes that one request is sent to, those that refused it included. Refusals are free, but a request must not wander.
const SENDS_MAX: u32 = 8;
/// Times that nodes are asked for one request: where all asked ones declined, others are asked.
const ROUNDS_MAX: u32 = 12;
/// Times that one answer is gone on with elsewhere. Nodes that keep dying are a greater trouble than this request.
const SEAMS_MAX: u32 = 8;
/// A node may take so many times what it promised, and this long at least.
const OVERDUE: f32 = 3.0;
const OVERDUE_MIN: Seconds = Seconds::new(2.0);
/// About 3 MB; a conversation beyond them finds its home by its hash.
const OWNERS: usize = 32_768;

/// What all requests of one gateway share.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) own: Option<NodeId>,
    pub(crate) breakers: Breakers,
    pub(crate) budget: Budget,
    pub(crate) pulses: Pulses,
    pub(crate) owners: Owners,
    pub(crate) traces: Traces,
    pub(crate) dice: Dice,
    pub(crate) figures: Figures,
}

/// What was, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    pub requests: u64,
    /// Times that one was sent to a node, refusals included.
    pub sends: u64,
    /// Of these, the ones charged to the budget.
    pub retries: u64,
    /// And those that went where a conversation was, without a question.
    pub unasked: u64,
    /// And those for which nobody answered in time.
    pub unheard: u64,
    /// Came to nothing before the first byte.
    pub failed: u64,
    /// Times that the rest of an answer was asked of another node.
    pub seams: u64,
    /// Broke off after it.
    pub cut: u64,
    /// Their clients left.
    pub cancelled: u64,
}

/// What one step of one request may see and change.
#[derive(Debug)]
pub(crate) struct Sight<'a> {
    pub(crate) desk: &'a mut Desk,
    /// The nodes that hold the request's model.
    pub(crate) fleet: &'a mut Fleet,
    pub(crate) now: Moment,
}

#[derive(Debug)]
pub(crate) struct Attempt {
    work: Work,
    /// The answer comes token by token; else in one piece, when it is done.
    streams: bool,
    deadline: Option<Moment>,
    course: Course,
    stage: Stage,
}

/// What the request carries through all stages.
#[derive(Debug)]
struct Course {
    /// Not asked again for this request.
    tried: Vec<NodeId>,
    rounds: u32,
    sends: u32,
    /// How many there may be.
    sends_max: u32,
    /// Times the rest was asked for. From the first on nothing can be failed any more, only cut.
    seams: u32,
    /// All that are left have been tried, and are tried once more.
    again: bool,
    /// Whom it was sent to last.
    sent_to: Option<NodeId>,
    retries: u32,
    /// A node has gone back on its promise once.
    refused: bool,
    /// The least wait among those that are too busy.
    busy: Option<Seconds>,
    last: Option<(NodeId, Failure)>,
    trace: Trace,
}

#[derive(Debug)]
enum Stage {
    Choosing,
    Probing { asked: Box<Candidates>, answers: Vec<Answer>, until: Moment },
    Waiting { on: Choice, since: Moment, overdue: Option<Moment> },
    Streaming { on: NodeId },
    Done,
}

#[derive(Debug)]
pub(crate) enum Event {
    Begin,
    /// To a probe.
    Answered(NodeId, Result<Promise, Failure>),
    /// The first byte is here. `well`: it is not the answer to a request that was wrong.
    FirstByte {
        well: bool,
    },
    /// What was sent, or the answer that is under way, came to nothing.
    Failed(Failure),
    /// The answer that is under way came to nothing, and the rest of it can be asked of somebody else.
    Lost(Failure),
    /// The answer's own end.
    Ended,
    /// Time has passed.
    Tick,
    /// The client left.
    Gone,
}

#[derive(Debug)]
pub(crate) enum Effect {
    /// Go on with what is under way.
    Nothing,
    /// Ask these at once; each is to hold a place for so long.
    Probe(Vec<(NodeId, Duration)>),
    Send {
        node: NodeId,
        max_wait: Option<Duration>,
    },
    /// The answer is the client's from here on.
    Deliver,
    Fail(Error),
    Cut(Cut),
    Done,
}

impl Desk {
    pub(crate) fn new(own: Option<NodeId>, seed: u64) -> Self {
        Self {
            own,
            breakers: Breakers::default(),
            budget: Budget::default(),
            pulses: Pulses::default(),
            owners: Owners::new(OWNERS),
            traces: Traces::default(),
            dice: Dice::new(seed),
            figures: Figures::default(),
        }
    }

    pub(crate) fn forget(&mut self, node: NodeId) {
        self.breakers.forget(node);
        self.pulses.forget(node);
        self.owners.forget(node);
    }
}

impl Attempt {
    pub(crate) fn new(id: RequestId, work: Work, streams: bool, now: Moment) -> Self {
        let trace = Trace::new(id, work.model, work.class, now);
        let course = Course {
            tried: Vec::new(),
            rounds: 0,
            sends: 0,
            sends_max: SENDS_MAX,
            seams: 0,
            again: false,
            sent_to: None,
            retries: 0,
            refused: false,
            busy: None,
            last: None,
            trace,
        };
        let deadline = work.deadline.map(|span| now + span);
        Self { work, streams, deadline, course, stage: Stage::Choosing }
    }

    /// As it is now: the deadline is counted from `now`.
    pub(crate) fn work(&self, now: Moment) -> Work {
        Work { deadline: self.deadline.map(|deadline| deadline.since(now)), ..self.work.clone() }
    }

    pub(crate) const fn sends(&self) -> u32 {
        self.course.sends
    }

    /// Times the rest of the answer was asked for elsewhere.
    pub(crate) const fn seams(&self) -> u32 {
        self.course.seams
    }

    pub(crate) const fn sent_to(&self) -> Option<NodeId> {
        self.course.sent_to
    }

    pub(crate) const fn model(&self) -> ModelKey {
        self.work.model
    }

    /// When [`Event::Tick`] is due.
    pub(crate) fn wakes(&self) -> Option<Moment> {
        let own = match &self.stage {
            Stage::Probing { until, .. } => Some(*until),
            Stage::Waiting { overdue, .. } => *overdue,
            Stage::Choosing | Stage::Streaming { .. } => None,
            Stage::Done => return None,
        };
        own.into_iter().chain(self.deadline).min()
    }

    /// The one place where it is said what may follow what.
    pub(crate) fn on(self, sight: &mut Sight<'_>, event: Event) -> (Self, Effect) {
        let now = sight.now;
        let is_late = self.deadline.is_some_and(|deadline| now >= deadline);
        let Self { work, streams, deadline, mut course, stage } = self;
        let mut step = Step { work: &work, streams, deadline, course: &mut course, sight };
        let (stage, effect) = match (stage, event) {
            (Stage::Done, _) => (Stage::Done, Effect::Nothing),
            (stage, Event::Gone) => step.gone(&stage),
            (stage, Event::Tick) if is_late => step.late(&stage),
            (Stage::Choosing, Event::Begin) => {
                step.sight.desk.budget.earn();
                step.sight.desk.figures.requests += 1;
                step.ask()
            }
            (Stage::Probing { asked, answers, until }, Event::Answered(node, answer)) => {
                step.answered(asked, answers, until, node, answer)
            }
            (Stage::Probing { asked, answers, until }, Event::Tick) if now >= until => step.decide(&asked, &answers),
            (Stage::Waiting { on, since, .. }, Event::FirstByte { well }) => step.began(&on, since, well),
            (Stage::Waiting { on, .. }, Event::Failed(failure)) => step.failed(on.node, failure),
            (Stage::Waiting { on, since, overdue: Some(end) }, Event::Tick) if now >= end => step.overdue(on, since),
            (Stage::Streaming { on }, Event::Failed(why)) => step.cut(on, why),
            (Stage::Streaming { on }, Event::Lost(why)) => step.go_on(on, why),
            (Stage::Streaming { on }, Event::Ended) => step.ended(on),
            // The clock struck for somebody else.
            (stage, Event::Tick) => (stage, Effect::Nothing),
            // Word from a node that was left meanwhile.
            (stage, Event::Answered(..)) => (stage, Effect::Nothing),
            (stage, event) => unreachable!("`{event:?}` cannot come in `{stage:?}`"),
        };
        (Self { work, streams, deadline, course, stage }, effect)
    }
}

type Next = (Stage, Effect);

/// One transition in the making.
struct Step<'a, 's> {
    work: &'a Work,
    streams: bool,
    deadline: Option<Moment>,
    course: &'a mut Course,
    sight: &'a mut Sight<'s>,
}

impl Step<'_, '_> {
    fn note(&mut self, what: What) {
        self.course.trace.note(self.sight.now, what);
    }

    /// Asks whoever may be good, or gives up.
    fn ask(&mut self) -> Next {
        self.course.rounds += 1;
        if self.course.rounds > ROUNDS_MAX || self.course.sends >= self.course.sends_max {
            return self.give_up();
        }
        if let Some(choice) = self.known() {
            return self.send(choice);
        }
        let mut asked = self.candidates();
        if asked.is_empty() && self.course.seams > 0 && !self.course.again {
            // A runner that died is back in a moment, and nobody else has the model.
            self.course.again = true;
            self.course.tried.clear();
            asked = self.candidates();
        }
        if asked.is_empty() {
            return self.give_up();
        }
        for candidate in asked.iter() {
            let stale = candidate.stale.score(self.work.class, candidate.rtt);
            self.course.trace.note(self.sight.now, What::Asked { node: candidate.node, why: candidate.why, stale });
        }
        let timeout = asked.iter().map(|candidate| probe_timeout(candidate.rtt)).max().unwrap_or_default();
        let probes = asked.iter().map(|candidate| (candidate.node, hold(candidate.rtt))).collect();
        let until = self.sight.now + timeout;
        (Stage::Probing { asked: Box::new(asked), answers: Vec::new(), until }, Effect::Probe(probes))
    }

    /// Where it goes without asking anybody, at the first attempt.
    fn known(&mut self) -> Option<Choice> {
        let turn = self.turn().filter(|_| self.course.rounds == 1 && self.course.seams == 0)?;
        let Sight { desk, fleet, now } = &*self.sight;
        let is_left = desk.pulses.is_frozen(turn.node) || !desk.breakers.admits(self.work.model, turn.node, *now);
        fleet.get(turn.node).filter(|_| !is_left).and_then(|host| choose_known(self.work, host, turn, *now))
    }

    /// What is remembered of the conversation; requests that are none have no key.
    fn turn(&mut self) -> Option<Turn> {
        let conversation = self.work.chain.conversation();
        (conversation != 0).then(|| self.sight.desk.owners.get(conversation)).flatten()
    }

    fn remember(&mut self, node: NodeId) {
        let conversation = self.work.chain.conversation();
        if conversation != 0 {
            let turn = Turn { node, tokens: self.work.prompt, heard: self.sight.now };
            self.sight.desk.owners.set(conversation, turn);
        }
    }

    fn candidates(&mut self) -> Candidates {
        let owner = self.turn().map(|turn| turn.node);
        let Self { work, course: Course { tried, .. }, sight: Sight { desk, fleet, now }, .. } = self;
        let Desk { own, breakers, pulses, dice, .. } = &mut **desk;
        let asker = Asker { own: *own, owner };
        let is_left = |node| tried.contains(&node) || pulses.is_frozen(node);
        let admits = |node| !is_left(node) && breakers.admits(work.model, node, *now);
        let asked = Candidates::choose(fleet, work, asker, *now, dice, admits);
        if !asked.is_empty() {
            return asked;
        }
        // Better one that was ill lately than none.
        Candidates::choose(fleet, work, asker, *now, dice, |node| !is_left(node))
    }

    fn answered(
        &mut self,
        mut asked: Box<Candidates>,
        mut answers: Vec<Answer>,
        until: Moment,
        node: NodeId,
        answer: Result<Promise, Failure>,
    ) -> Next {
        let candidate = asked.iter().find(|candidate| candidate.node == node).copied();
        let Some(candidate) = candidate.filter(|_| answers.iter().all(|known| known.candidate.node != node)) else {
            return (Stage::Probing { asked, answers, until }, Effect::Nothing);
        };
        match answer {
            Ok(promise) => {
                let answer = Answer { candidate, promise };
                self.note(What::Promised { node, score: answer.score(self.work) });
                answers.push(answer);
                if answer.is_ideal(self.work) {
                    return self.decide(&asked, &answers);
                }
            }
            Err(failure) => {
                self.note(What::Declined { node, why: text(&failure) });
                asked.remove(node);
                self.leave(node, failure);
            }
        }
        if answers.len() == asked.len() {
            return self.decide(&asked, &answers);
        }
        (Stage::Probing { asked, answers, until }, Effect::Nothing)
    }

    fn decide(&mut self, asked: &Candidates, answers: &[Answer]) -> Next {
        let dice = &mut self.sight.desk.dice;
        let choice =
            choose(self.work, answers, self.course.refused, dice).or_else(|| choose_unheard(self.work, asked, dice));
        match choice {
            Some(choice) => self.send(choice),
            None => self.ask(),
        }
    }

    fn send(&mut self, choice: Choice) -> Next {
        let Sight { desk, fleet, now } = &mut *self.sight;
        let Choice { node, reason, score, promised, max_wait } = choice;
        fleet.sent(node);
        desk.breakers.sent(self.work.model, node, *now);
        desk.pulses.enter(node, *now);
        desk.figures.sends += 1;
        match reason {
            Reason::Known => desk.figures.unasked += 1,
            Reason::Degraded => desk.figures.unheard += 1,
            Reason::Best | Reason::Cached | Reason::Explored => {}
        }
        let overdue = is_promise(reason).then(|| {
            let rest = if self.streams { Seconds::ZERO } else { promised.decode };
            *now + Duration::from(((promised.ttft() + rest + promised.deviation) * OVERDUE).max(OVERDUE_MIN))
        });
        let since = *now;
        self.course.sends += 1;
        self.course.sent_to = Some(node);
        self.course.tried.push(node);
        self.note(What::Sent { node, reason, score, max_wait });
        (Stage::Waiting { on: choice, since, overdue }, Effect::Send { node, max_wait })
    }

    fn began(&mut self, on: &Choice, since: Moment, well: bool) -> Next {
        let node = on.node;
        let Sight { desk, fleet, now } = &mut *self.sight;
        desk.pulses.began(node, *now);
        desk.breakers.succeeded(self.work.model, node);
        if well {
            // What was not promised, and what comes as one piece, says nothing about the promised first token.
            if is_promise(on.reason) && self.streams {
                fleet.observed(node, on.promised.ttft(), now.since(since));
            }
            self.remember(node);
        }
        self.note(What::FirstByte { node });
        (Stage::Streaming { on: node }, Effect::Deliver)
    }

    /// The client has seen nothing yet.
    fn failed(&mut self, node: NodeId, failure: Failure) -> Next {
        self.release(node, false);
        self.note(What::Failed { node, why: text(&failure) });
        let costs = failure.costs();
        if self.course.seams > 0
            && let Failure::Unable(bound) = failure
        {
            let (node, why) = self.course.last.take().expect("the answer broke off for some reason");
            return self.broken_off(Cut { node, why, bound: Some(bound) });
        }
        if let Failure::Refused(Refusal::Wait(_)) = failure {
            // It may still be the best, and what it says when asked again is true. It may not refuse again.
            self.course.refused = true;
            self.course.tried.retain(|tried| *tried != node);
        }
        self.leave(node, failure);
        // What goes on with an answer that has begun is work that was paid for: it has bounds of its own.
        if costs && self.course.seams == 0 {
            let now = self.sight.now;
            if !self.sight.desk.budget.spend(self.course.retries, now, self.deadline) {
                return self.give_up();
            }
            self.course.retries += 1;
            self.sight.desk.figures.retries += 1;
        }
        self.ask()
    }

    /// It is much too late. Left only if there is somebody else to try: else it is the best there is.
    fn overdue(&mut self, on: Choice, since: Moment) -> Next {
        let stays = (Stage::Waiting { on, since, overdue: None }, Effect::Nothing);
        let Sight { desk, fleet, now } = &mut *self.sight;
        let model = self.work.model;
        let is_free = |node| {
            !self.course.tried.contains(&node)
                && !desk.pulses.is_frozen(node)
                && desk.breakers.admits(model, node, *now)
        };
        let is_free = fleet.hosts().iter().any(|host| is_free(host.node)) && self.course.sends < self.course.sends_max;
        if !is_free {
            return stays;
        }
        if self.course.seams == 0 {
            if !desk.budget.spend(self.course.retries, *now, self.deadline) {
                return stays;
            }
            self.course.retries += 1;
            desk.figures.retries += 1;
        }
        if self.streams {
            fleet.observed(on.node, on.promised.ttft(), now.since(since));
        }
        self.release(on.node, false);
        self.note(What::Failed { node: on.node, why: text(&Failure::Overdue) });
        self.leave(on.node, Failure::Overdue);
        self.ask()
    }

    /// The node has the request no more.
    fn release(&mut self, node: NodeId, had_begun: bool) {
        self.sight.desk.pulses.leave(node, had_begun);
        self.sight.fleet.ended(node);
    }

    /// This request is through with the node, for that reason.
    fn leave(&mut self, node: NodeId, failure: Failure) {
        self.blame(node, &failure);
        if let Failure::Refused(Refusal::Full { wait }) = failure {
            self.course.busy = Some(self.course.busy.map_or(wait, |busy| busy.min(wait)));
        }
        let is_nack = matches!(failure, Failure::Refused(Refusal::Wait(_)));
        if !is_nack && !self.course.tried.contains(&node) {
            self.course.tried.push(node);
        }
        self.course.last = Some((node, failure));
    }

    fn give_up(&mut self) -> Next {
        let sent = self.course.sends;
        if self.course.seams > 0
            && let Some((node, why)) = self.course.last.take()
        {
            return self.broken_off(Cut { node, why, bound: None });
        }
        let error = match (self.course.last.take(), self.course.busy) {
            (Some((node, Failure::Served { status, body })), _) => Error::Served { node, status, body },
            (_, Some(retry_after)) => Error::Busy { retry_after },
            (Some((_, Failure::Refused(Refusal::NoModel))), _) => Error::NoModel(self.work.model),
            (Some((_, Failure::Refused(Refusal::Late))), _) => Error::Deadline,
            (Some((_, Failure::Refused(Refusal::Down | Refusal::Draining | Refusal::Denied))), _) => Error::NobodyUp,
            (Some((_, last)), _) => Error::Failed { sent, last },
            (None, None) if self.sight.fleet.is_empty() => Error::NoModel(self.work.model),
            (None, None) => Error::NobodyUp,
        };
        self.note(What::GaveUp { why: text(&error) });
        self.close(Effect::Fail(error))
    }

    fn late(&mut self, stage: &Stage) -> Next {
        match stage {
            Stage::Streaming { on } => self.cut(*on, Failure::Deadline),
            Stage::Waiting { on, .. } if self.course.seams > 0 => self.cut_waiting(on.node, Failure::Deadline),
            Stage::Probing { .. } if self.course.seams > 0 => {
                let node = self.course.sent_to.expect("the answer has begun on some node");
                self.broken_off(Cut { node, why: Failure::Deadline, bound: None })
            }
            Stage::Choosing | Stage::Probing { .. } | Stage::Waiting { .. } | Stage::Done => {
                if let Stage::Waiting { on, .. } = stage {
                    self.release(on.node, false);
                }
                self.note(What::GaveUp { why: text(&Error::Deadline) });
                self.close(Effect::Fail(Error::Deadline))
            }
        }
    }

    /// The client has seen some of it, and the rest is asked of somebody else.
    fn go_on(&mut self, node: NodeId, why: Failure) -> Next {
        if self.course.seams == SEAMS_MAX {
            return self.cut(node, why);
        }
        self.blame(node, &why);
        self.release(node, true);
        self.note(What::Lost { node, why: text(&why) });
        self.sight.desk.figures.seams += 1;
        let Course { tried, rounds, sends, sends_max, seams, again, refused, busy, last, .. } = &mut *self.course;
        (*rounds, *sends_max, *refused, *busy, *again) = (0, *sends + SENDS_MAX, false, None, false);
        *seams += 1;
        tried.clear();
        // Who only said something else is as good as any.
        if !matches!(why, Failure::Contradicted) {
            tried.push(node);
        }
        *last = Some((node, why));
        self.ask()
    }

    fn cut(&mut self, node: NodeId, why: Failure) -> Next {
        self.blame(node, &why);
        self.release(node, true);
        self.broken_off(Cut { node, why, bound: None })
    }

    /// It was to go on there.
    fn cut_waiting(&mut self, node: NodeId, why: Failure) -> Next {
        self.release(node, false);
        self.broken_off(Cut { node, why, bound: None })
    }

    fn broken_off(&mut self, cut: Cut) -> Next {
        self.note(What::GaveUp { why: text(&cut) });
        self.close(Effect::Cut(cut))
    }

    fn blame(&mut self, node: NodeId, why: &Failure) {
        let Sight { desk, fleet, now } = &mut *self.sight;
        if let Some(blame) = why.blame() {
            desk.breakers.failed(self.work.model, node, blame, fleet.len(), *now);
        }
    }

    fn ended(&mut self, node: NodeId) -> Next {
        self.release(node, true);
        if self.sight.desk.owners.get(self.work.chain.conversation()).is_some_and(|turn| turn.node == node) {
            self.remember(node);
        }
        self.note(What::Ended);
        self.close(Effect::Done)
    }

    fn gone(&mut self, stage: &Stage) -> Next {
        match stage {
            Stage::Waiting { on, .. } => self.release(on.node, false),
            Stage::Streaming { on } => self.release(*on, true),
            Stage::Choosing | Stage::Probing { .. } | Stage::Done => {}
        }
        self.sight.desk.figures.cancelled += 1;
        self.note(What::Cancelled);
        self.close(Effect::Done)
    }

    fn close(&mut self, effect: Effect) -> Next {
        let figures = &mut self.sight.desk.figures;
        match effect {
            Effect::Fail(_) => figures.failed += 1,
            Effect::Cut(_) => figures.cut += 1,
            _ => {}
        }
        let trace = &mut self.course.trace;
        let steps = std::mem::take(&mut trace.steps);
        self.sight.desk.traces.keep(Trace { steps, ..trace.clone() });
        (Stage::Done, effect)
    }
}

/// Whether the node itself has said what is expected of it.
const fn is_promise(reason: Reason) -> bool {
    !matches!(reason, Reason::Degraded | Reason::Known)
}

/// An error with its causes, for people.
fn text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
