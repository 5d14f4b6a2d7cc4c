//! Events by hand, without a clock.

use scheduler::{Chain, ChainKey, ChainWriter, Class, Estimate, Facts, Tenant};

use super::*;

struct Table {
    desk: Desk,
    fleet: Fleet,
    now: Moment,
}

fn node(id: u8) -> NodeId {
    NodeId::from_public_key([id; 32])
}

fn work() -> Work {
    Work {
        model: ModelKey::from_bytes([1; 16]),
        chain: Chain::default(),
        prompt: 100,
        output: 100,
        context: None,
        class: Class::Interactive,
        tenant: Tenant::ANONYMOUS,
        deadline: Some(Duration::from_secs(60)),
    }
}

fn promise(wait: f32) -> Promise {
    let estimate = Estimate { wait: Seconds::new(wait), decode: Seconds::new(1.0), ..Estimate::default() };
    Promise { estimate, free_slots: 1 }
}

impl Table {
    /// Nodes 1 to `hosts` hold the model.
    fn new(hosts: u8) -> Self {
        let facts = Facts {
            resident: Some(4096),
            slots: 1,
            free_slots: 1,
            wait: Seconds::ZERO,
            load: Seconds::new(8.0),
            prefill_rate: 1000.0,
            step: Seconds::new(0.01),
        };
        let (mut fleet, now) = (Fleet::default(), Moment::default());
        (1..=hosts).for_each(|id| fleet.hear(node(id), facts, Seconds::ZERO, now));
        Self { desk: Desk::new(None, 5), fleet, now }
    }

    fn begin(&mut self) -> (Attempt, Effect) {
        self.begin_with(work())
    }

    fn begin_with(&mut self, work: Work) -> (Attempt, Effect) {
        let attempt = Attempt::new(RequestId::from_bytes([1; 16]), work, true, self.now);
        self.on(attempt, Event::Begin)
    }

    fn on(&mut self, attempt: Attempt, event: Event) -> (Attempt, Effect) {
        let Self { desk, fleet, now } = self;
        attempt.on(&mut Sight { desk, fleet, now: *now }, event)
    }

    fn pass(&mut self, seconds: f32) {
        self.now = self.now + Duration::from_secs_f32(seconds);
    }

    /// Each of these nodes promises to begin after that many seconds, until one is chosen.
    fn promised(&mut self, (mut attempt, mut effect): (Attempt, Effect), waits: &[(u8, f32)]) -> (Attempt, NodeId) {
        let Effect::Probe(_) = effect else { panic!("{effect:?}") };
        for (id, wait) in waits {
            (attempt, effect) = self.on(attempt, Event::Answered(node(*id), Ok(promise(*wait))));
        }
        let Effect::Send { node, .. } = effect else { panic!("{effect:?}") };
        (attempt, node)
    }
}

/// Work of a conversation.
fn spoken() -> Work {
    let mut writer = ChainWriter::new(&ChainKey::derive(b"mesh"), work().model);
    writer.push(b"what is a mesh");
    Work { chain: writer.finish(None), ..work() }
}

fn broken() -> Failure {
    Failure::Broken("reset".into())
}

#[test]
fn the_node_that_promises_most_gets_it_and_its_answer_is_the_clients() {
    let mut table = Table::new(2);
    let begun = table.begin();
    let (attempt, chosen) = table.promised(begun, &[(1, 5.0), (2, 1.0)]);
    assert_eq!(chosen, node(2));
    let (attempt, effect) = table.on(attempt, Event::FirstByte { well: true });
    assert!(matches!(effect, Effect::Deliver));
    let (_, effect) = table.on(attempt, Event::Ended);
    assert!(matches!(effect, Effect::Done) && table.desk.pulses.is_empty());
    assert_eq!(table.desk.traces.last(9).len(), 1);
}

#[test]
fn a_conversation_goes_on_where_it_was_without_a_question_and_with_one_later() {
    let mut table = Table::new(2);
    let begun = table.begin_with(spoken());
    let (attempt, chosen) = table.promised(begun, &[(1, 5.0), (2, 1.0)]);
    let (attempt, _) = table.on(attempt, Event::FirstByte { well: true });
    table.pass(30.0);
    table.on(attempt, Event::Ended);
    assert_eq!(table.desk.owners.get(spoken().chain.conversation()).map(|turn| turn.node), Some(chosen));

    table.pass(0.9);
    let (attempt, effect) = table.begin_with(spoken());
    assert!(matches!(effect, Effect::Send { node, max_wait: Some(_) } if node == chosen), "{effect:?}");
    let (attempt, effect) = table.on(attempt, Event::Failed(Failure::Refused(Refusal::Wait(promise(9.0)))));
    assert!(matches!(effect, Effect::Probe(_)), "it was not so, and all are asked: {effect:?}");
    table.on(attempt, Event::Gone);
    table.pass(1.0);
    let effect = table.begin_with(spoken()).1;
    assert!(matches!(effect, Effect::Probe(_)), "{effect:?}");
}

#[test]
fn requests_without_a_conversation_follow_nobody() {
    let mut table = Table::new(2);
    let begun = table.begin();
    let (attempt, _) = table.promised(begun, &[(1, 5.0), (2, 1.0)]);
    let (attempt, _) = table.on(attempt, Event::FirstByte { well: true });
    table.on(attempt, Event::Ended);
    let effect = table.begin().1;
    assert!(matches!(effect, Effect::Probe(_)), "{effect:?}");
}

#[test]
fn before_the_first_byte_another_node_takes_over_and_after_it_the_answer_is_cut() {
    let mut table = Table::new(2);
    let begun = table.begin();
    let (attempt, chosen) = table.promised(begun, &[(1, 5.0), (2, 1.0)]);
    assert_eq!(chosen, node(2));
    let again = table.on(attempt, Event::Failed(broken()));
    let Effect::Probe(asked) = &again.1 else { panic!("{again:?}") };
    assert!(asked.len() == 1 && asked[0].0 == node(1), "the one that broke is not asked again");
    let (attempt, _) = table.promised(again, &[(1, 5.0)]);
    let (attempt, _) = table.on(attempt, Event::FirstByte { well: true });
    let (_, effect) = table.on(attempt, Event::Failed(broken()));
    let Effect::Cut(Cut { node: cut, why: Failure::Broken(_), .. }) = effect else { panic!("{effect:?}") };
    assert!(cut == node(1) && table.desk.pulses.is_empty());
}

#[test]
fn a_refused_promise_is_asked_for_again_and_then_taken_at_any_wait() {
    let mut table = Table::new(1);
    let (attempt, effect) = table.begin();
    assert!(matches!(effect, Effect::Probe(_)));
    let (attempt, effect) = table.on(attempt, Event::Answered(node(1), Ok(promise(1.0))));
    assert!(matches!(effect, Effect::Send { max_wait: Some(_), .. }), "{effect:?}");
    let (attempt, effect) = table.on(attempt, Event::Failed(Failure::Refused(Refusal::Wait(promise(9.0)))));
    assert!(matches!(effect, Effect::Probe(_)), "{effect:?}");
    let (attempt, effect) = table.on(attempt, Event::Answered(node(1), Ok(promise(9.0))));
    assert!(matches!(effect, Effect::Send { max_wait: None, .. }), "{effect:?}");
    assert_eq!((attempt.course.retries, attempt.sends()), (0, 2), "it cost nothing");
}

#[test]
fn where_all_are_full_the_client_hears_when_to_come_again() {
    let mut table = Table::new(2);
    let (attempt, _) = table.begin();
    let full = |wait| Err(Failure::Refused(Refusal::Full { wait: Seconds::new(wait) }));
    let (attempt, effect) = table.on(attempt, Event::Answered(node(1), full(9.0)));
    assert!(matches!(effect, Effect::Nothing));
    let (_, effect) = table.on(attempt, Event::Answered(node(2), full(4.0)));
    let Effect::Fail(Error::Busy { retry_after }) = effect else { panic!("{effect:?}") };
    assert_eq!(retry_after, Seconds::new(4.0));
}

#[test]
fn what_nobody_has_is_said_at_once() {
    let effect = Table::new(0).begin().1;
    assert!(matches!(effect, Effect::Fail(Error::NoModel(_))), "{effect:?}");
    let mut table = Table::new(1);
    let (attempt, _) = table.begin();
    let effect = table.on(attempt, Event::Answered(node(1), Err(Failure::Refused(Refusal::NoModel)))).1;
    assert!(matches!(effect, Effect::Fail(Error::NoModel(_))), "{effect:?}");
}

#[test]
fn without_answers_in_time_one_is_drawn_and_nothing_is_held_against_it() {
    let mut table = Table::new(3);
    let (attempt, _) = table.begin();
    let (attempt, effect) = table.on(attempt, Event::Tick);
    assert!(matches!(effect, Effect::Nothing), "it is not time yet");
    table.pass(0.2);
    let (attempt, effect) = table.on(attempt, Event::Tick);
    assert!(matches!(effect, Effect::Send { max_wait: None, .. }), "{effect:?}");
    assert_eq!(attempt.wakes(), attempt.deadline);
}

#[test]
fn retries_of_one_request_have_an_end_and_the_last_answer_is_handed_on() {
    let mut table = Table::new(8);
    let mut step = table.begin();
    let mut sends = 0;
    let error = loop {
        step = match step {
            (attempt, Effect::Probe(asked)) => table.on(attempt, Event::Answered(asked[0].0, Ok(promise(0.0)))),
            (attempt, Effect::Nothing) => {
                table.pass(0.2);
                table.on(attempt, Event::Tick)
            }
            (attempt, Effect::Send { .. }) => {
                sends += 1;
                table.on(attempt, Event::Failed(Failure::Served { status: 500, body: "broken".into() }))
            }
            (_, Effect::Fail(error)) => break error,
            (_, effect) => panic!("{effect:?}"),
        }
    };
    let Error::Served { status: 500, body, .. } = error else { panic!("{error:?}") };
    assert!(sends == 3 && body == "broken" && table.desk.pulses.is_empty());
}

#[test]
fn much_too_late_is_left_only_for_somebody_else() {
    for (hosts, leaves) in [(2, true), (1, false)] {
        let mut table = Table::new(hosts);
        let begun = table.begin();
        let (attempt, chosen) =
            if hosts == 2 { table.promised(begun, &[(1, 9.0), (2, 1.0)]) } else { table.promised(begun, &[(1, 1.0)]) };
        let before = table.fleet.get(chosen).unwrap().ratio();
        table.pass(2.9);
        let (attempt, effect) = table.on(attempt, Event::Tick);
        assert!(matches!(effect, Effect::Nothing));
        table.pass(0.2);
        let (attempt, effect) = table.on(attempt, Event::Tick);
        assert_eq!(matches!(effect, Effect::Probe(_)), leaves, "{effect:?}");
        assert_eq!(table.fleet.get(chosen).unwrap().ratio() > before, leaves);
        let (_, effect) = table.on(attempt, Event::Gone);
        assert!(matches!(effect, Effect::Done) && table.desk.pulses.is_empty());
    }
}

#[test]
fn a_deadline_ends_it_at_any_stage_and_never_as_if_it_were_whole() {
    let mut table = Table::new(1);
    let (attempt, _) = table.begin();
    table.pass(61.0);
    let effect = table.on(attempt, Event::Tick).1;
    assert!(matches!(effect, Effect::Fail(Error::Deadline)), "{effect:?}");

    let begun = table.begin();
    let (attempt, _) = table.promised(begun, &[(1, 1.0)]);
    let (attempt, _) = table.on(attempt, Event::FirstByte { well: true });
    table.pass(61.0);
    let effect = table.on(attempt, Event::Tick).1;
    assert!(matches!(effect, Effect::Cut(Cut { why: Failure::Deadline, .. })), "{effect:?}");
    assert!(table.desk.pulses.is_empty());
}

#[test]
fn word_from_a_node_that_was_left_changes_nothing() {
    let mut table = Table::new(3);
    let (attempt, _) = table.begin();
    let (attempt, _) = table.on(attempt, Event::Answered(node(1), Ok(promise(1.0))));
    let (attempt, effect) = table.on(attempt, Event::Answered(node(1), Ok(promise(1.0))));
    assert!(matches!(effect, Effect::Nothing), "an answer counts once");
    table.pass(0.2);
    let (attempt, effect) = table.on(attempt, Event::Tick);
    assert!(matches!(effect, Effect::Send { node: chosen, .. } if chosen == node(1)));
    let (attempt, effect) = table.on(attempt, Event::Answered(node(2), Ok(promise(0.0))));
    assert!(matches!(effect, Effect::Nothing));
    let (attempt, _) = table.on(attempt, Event::Gone);
    let (_, effect) = table.on(attempt, Event::Tick);
    assert!(matches!(effect, Effect::Nothing) && table.desk.pulses.is_empty());
}

#[test]
fn a_barred_node_is_the_last_resort_and_a_frozen_one_is_none() {
    let mut table = Table::new(2);
    for _ in 0..3 {
        table.desk.breakers.failed(work().model, node(1), crate::breaker::Failure::Transport, 2, table.now);
    }
    let (attempt, effect) = table.begin();
    let Effect::Probe(asked) = effect else { panic!("{effect:?}") };
    assert!(asked.len() == 1 && asked[0].0 == node(2));
    let (_, effect) = table.on(attempt, Event::Answered(node(2), Err(Failure::Refused(Refusal::Draining))));
    let Effect::Probe(asked) = effect else { panic!("{effect:?}") };
    assert!(asked.len() == 1 && asked[0].0 == node(1));

    let mut table = Table::new(1);
    table.desk.pulses.enter(node(1), table.now);
    table.pass(4.0);
    table.desk.pulses.looked(node(1), table.now, false, true);
    let effect = table.begin().1;
    assert!(matches!(effect, Effect::Fail(Error::NobodyUp)), "{effect:?}");
}
