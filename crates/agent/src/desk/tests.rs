use scheduler::{BLOCK_BYTES, Chain, ChainKey, ChainWriter, Dice};

use super::*;

/// Guessed figures of a GPU follow from it: 10 ms a token written, 0.45 ms one read, 6.5 s a load.
const SIZE: u64 = 4_500_000_000;
const LOAD: f32 = 6.5;
/// Of [`work`]: 1000 tokens read, 100 written.
const READ: f32 = 0.45;
const WRITE: f32 = 1.0;

const fn at(ms: u64) -> Moment {
    Moment::since_start(Duration::from_millis(ms))
}

fn digest(model: u8) -> String {
    format!("{model:02x}").repeat(32)
}

fn key(model: u8) -> ModelKey {
    ModelKey::of_manifest(&[model; 32])
}

fn listed(model: u8) -> seen::Listed {
    let name = format!("m{model}:latest");
    serde_json::from_value(serde_json::json!({ "name": name, "digest": digest(model), "size": SIZE })).unwrap()
}

fn loaded(model: u8, context: u32) -> seen::Loaded {
    let name = format!("m{model}:latest");
    let loaded = serde_json::json!({ "name": name, "digest": digest(model), "context_length": context });
    serde_json::from_value(loaded).unwrap()
}

/// Three models on a backend that is up, the first of them loaded.
fn desk(slots: u16, waiting_max: usize) -> Desk {
    let config = Config { waiting_max, slots: Some(slots), machine: Machine::Gpu, ..Config::default() };
    let mut desk = Desk::new(config);
    desk.listed(&[listed(1), listed(2), listed(3)]);
    assert!(desk.loaded(at(0), &[loaded(1, 4096)]).is_empty());
    assert!(desk.answered(at(0)).is_empty());
    desk
}

fn work(model: u8) -> Work {
    Work {
        model: key(model),
        chain: Chain::default(),
        prompt: 1000,
        output: 100,
        context: None,
        class: Class::Interactive,
        tenant: Tenant::ANONYMOUS,
        deadline: None,
    }
}

fn ask(work: Work) -> Ask {
    Ask { work, weight: 1.0, wait_max: None, key: None }
}

impl Desk {
    fn enters(&mut self, now: Moment, work: Work) -> (Ticket, Vec<Action>) {
        self.enter(now, ask(work), None).unwrap()
    }

    fn estimate(&self, now: Moment, work: &Work) -> Estimate {
        self.promise(now, work).unwrap().estimate
    }
}

fn started(actions: &[Action]) -> Vec<Ticket> {
    let ticket = |action: &Action| match action {
        Action::Start { ticket, .. } => Some(*ticket),
        Action::Refuse { .. } | Action::GiveUp { .. } => None,
    };
    actions.iter().filter_map(ticket).collect()
}

fn near(found: Seconds, expected: f32) {
    assert!((found.get() - expected).abs() < 0.001, "{found} is not {expected}");
}

fn done(read: (u32, u64), written: (u32, u64)) -> Ending {
    Ending::Done(seen::Last {
        done: true,
        total_duration: Duration::from_millis(read.1 + written.1),
        load_duration: Duration::ZERO,
        prompt_eval_count: read.0,
        prompt_eval_duration: Duration::from_millis(read.1),
        eval_count: written.0,
        eval_duration: Duration::from_millis(written.1),
    })
}

const CUT: Ending = Ending::Cut { written: 0 };

#[test]
fn an_idle_model_is_promised_at_what_it_costs() {
    let desk = desk(2, 8);
    let promise = desk.promise(at(0), &work(1)).unwrap();
    let estimate = promise.estimate;
    assert_eq!((promise.free_slots, estimate.wait, estimate.load), (2, Seconds::ZERO, Seconds::ZERO));
    near(estimate.prefill, READ);
    near(estimate.decode, WRITE);
    near(estimate.deviation, (READ + WRITE) / 2.0);
    near(desk.estimate(at(0), &work(2)).load, LOAD);
    assert_eq!(desk.promise(at(0), &work(9)), Err(Refusal::NoModel));
}

#[test]
fn the_wait_is_what_is_left_of_those_inside_and_all_of_those_ahead() {
    let mut desk = desk(1, 8);
    let (inside, actions) = desk.enters(at(0), work(1));
    assert_eq!(started(&actions), [inside]);
    near(desk.estimate(at(500), &work(1)).wait, READ + WRITE - 0.5);
    near(desk.estimate(at(60_000), &work(1)).wait, 0.05);
    let (_, actions) = desk.enters(at(500), work(1));
    assert!(actions.is_empty());
    near(desk.estimate(at(500), &work(1)).wait, 2.0 * (READ + WRITE) - 0.5);
    let urgent = Work { class: Class::Realtime, ..work(1) };
    near(desk.estimate(at(500), &urgent).wait, READ + WRITE - 0.5);
}

#[test]
fn each_waits_for_the_slot_that_is_free_first() {
    let mut desk = desk(2, 8);
    desk.enters(at(0), Work { output: 1000, ..work(1) });
    assert_eq!(desk.estimate(at(0), &work(1)).wait, Seconds::ZERO);
    desk.enters(at(0), work(1));
    // Beside another every token takes 1.12 times as long.
    near(desk.estimate(at(0), &work(1)).wait, READ + WRITE * 1.12);
    // A prompt waits for those that are being read.
    near(desk.estimate(at(0), &work(1)).prefill, 3.0 * READ);
    near(desk.estimate(at(400), &work(1)).prefill, 3.0 * READ - 0.8);
}

#[test]
fn what_was_promised_is_held_for_a_moment_and_taken_by_whoever_comes() {
    let mut desk = desk(1, 8);
    let hold = Duration::from_millis(210);
    assert_eq!(desk.probe(at(0), &work(1), hold).unwrap().free_slots, 1);
    let second = desk.probe(at(0), &work(1), hold).unwrap();
    assert_eq!(second.free_slots, 0);
    near(second.estimate.wait, READ + WRITE);
    assert_eq!(desk.promise(at(0), &work(2)).unwrap().free_slots, 1, "another model has its own slots");
    let impatient = Ask { wait_max: Some(Duration::from_millis(1500)), ..ask(work(1)) };
    let (_, actions) = desk.enter(at(100), impatient, None).unwrap();
    assert_eq!(started(&actions).len(), 1, "what others were promised does not keep it out");
    let promise = |desk: &Desk, now| desk.promise(now, &work(1)).unwrap().estimate.wait;
    near(promise(&desk, at(210)), 2.0 * (READ + WRITE) - 0.11);
    near(promise(&desk, at(211)), READ + WRITE - 0.111);
}

#[test]
fn a_promise_that_is_not_to_be_held_takes_no_place() {
    let mut desk = desk(1, 8);
    (0..3).for_each(|_| assert_eq!(desk.probe(at(0), &work(1), Duration::ZERO).unwrap().free_slots, 1));
}

#[test]
fn promises_are_forgotten_when_there_are_too_many() {
    let mut desk = desk(1, 8);
    for _ in 0..1000 {
        desk.probe(at(0), &work(1), Duration::from_secs(2)).unwrap();
    }
    assert_eq!(desk.reserved.len(), RESERVED_MAX);
}

#[test]
fn one_model_is_loaded_at_a_time_and_those_that_are_loaded_go_past() {
    let mut desk = desk(1, 8);
    let (cold, actions) = desk.enters(at(0), work(2));
    assert_eq!(started(&actions), [cold]);
    let (colder, actions) = desk.enters(at(0), work(3));
    assert!(actions.is_empty(), "{actions:?}");
    let (warm, actions) = desk.enters(at(0), work(1));
    assert_eq!(started(&actions), [warm]);
    assert!(desk.is_loading());
    // It is listed as loaded while it is being loaded.
    assert!(desk.loaded(at(1000), &[loaded(1, 4096), loaded(2, 0)]).is_empty());
    assert_eq!(started(&desk.spoke(at(6000), cold)), [colder]);
}

#[test]
fn a_load_is_promised_behind_those_before_it_and_shared_by_those_who_want_the_same() {
    let mut desk = desk(4, 8);
    desk.enters(at(0), work(2));
    near(desk.estimate(at(2000), &work(2)).load, LOAD - 2.0);
    near(desk.estimate(at(2000), &work(3)).load, 2.0 * LOAD - 2.0);
    desk.enters(at(2000), work(3));
    near(desk.estimate(at(2000), &work(3)).load, 2.0 * LOAD - 2.0);
}

#[test]
fn a_window_that_is_too_small_costs_a_load() {
    let desk = desk(1, 8);
    let needs = |context| desk.estimate(at(0), &Work { context: Some(context), ..work(1) }).load;
    assert_eq!(needs(4096), Seconds::ZERO);
    near(needs(4097), LOAD);
}

#[test]
fn who_will_not_wait_is_told_what_the_wait_would_be() {
    let mut desk = desk(1, 8);
    let enter = |desk: &mut Desk, model, max| {
        desk.enter(at(0), Ask { wait_max: Some(Duration::from_millis(max)), ..ask(work(model)) }, None)
    };
    assert!(matches!(enter(&mut desk, 2, 6400), Err(Refusal::Nack(promise)) if promise.estimate.load.get() > 6.4));
    assert!(enter(&mut desk, 1, 0).is_ok());
    assert!(matches!(enter(&mut desk, 1, 1400), Err(Refusal::Nack(promise)) if promise.estimate.wait.get() > 1.4));
    assert!(enter(&mut desk, 1, 1500).is_ok());
    assert_eq!((desk.running(), desk.waiting()), (1, 1));
}

#[test]
fn a_full_queue_sheds_the_lowest_and_refuses_the_rest() {
    let mut desk = desk(1, 2);
    desk.enters(at(0), work(1));
    desk.enters(at(0), work(1));
    let (batch, _) = desk.enters(at(0), Work { class: Class::Batch, ..work(1) });
    let (_, actions) = desk.enters(at(0), work(1));
    assert!(
        matches!(&actions[..], [Action::Refuse { ticket, why: Refusal::Full { .. } }] if *ticket == batch),
        "{actions:?}"
    );
    let refused = desk.enter(at(0), ask(work(1)), None);
    assert!(matches!(refused, Err(Refusal::Full { wait }) if wait.get() > 4.0), "{refused:?}");
    assert_eq!((desk.running(), desk.waiting()), (1, 2));
}

#[test]
fn what_can_no_longer_start_is_sent_away_when_its_time_has_come() {
    let mut desk = desk(1, 8);
    let (inside, _) = desk.enters(at(0), work(1));
    let deadline = Some(Duration::from_secs(5));
    let (late, _) = desk.enters(at(1000), Work { deadline, ..work(1) });
    assert_eq!(desk.care().expiry, Some(at(6000)));
    assert!(desk.tick(at(6000)).is_empty());
    assert_eq!(desk.tick(at(6001)), [Action::Refuse { ticket: late, why: Refusal::Late }]);
    assert_eq!((desk.care().expiry, desk.waiting()), (None, 0));
    assert!(desk.end(at(7000), late, &CUT).is_empty(), "it has ended already");
    assert!(desk.end(at(7000), inside, &CUT).is_empty());
    assert_eq!(desk.running(), 0);
}

#[test]
fn whoever_ends_or_gives_up_makes_room_for_the_next() {
    let mut desk = desk(1, 8);
    let (first, _) = desk.enters(at(0), work(1));
    let (second, _) = desk.enters(at(0), work(1));
    let (third, _) = desk.enters(at(0), work(1));
    assert!(desk.end(at(1), second, &CUT).is_empty(), "it only waited");
    assert_eq!(started(&desk.end(at(2), first, &CUT)), [third]);
    assert_eq!((desk.running(), desk.waiting()), (1, 0));
}

#[test]
fn a_backend_that_is_gone_gives_up_what_is_inside_and_sends_away_what_waits() {
    let mut desk = desk(1, 8);
    let (inside, _) = desk.enters(at(0), work(1));
    let (waits, _) = desk.enters(at(0), work(1));
    assert!(desk.missed(Missed::Refused("gone".to_owned())).is_empty(), "one is a suspicion");
    let gone = "gone".to_owned();
    let give_up = Action::GiveUp { ticket: inside, why: gone.clone() };
    let refuse = Action::Refuse { ticket: waits, why: Refusal::Down(gone.clone()) };
    assert_eq!(desk.missed(Missed::Refused(gone.clone())), [give_up, refuse]);
    assert_eq!(desk.promise(at(0), &work(1)), Err(Refusal::Down(gone)));
    assert_eq!(desk.waiting(), 0);
    desk.end(at(1), inside, &CUT);
    desk.answered(at(2));
    desk.answered(at(3));
    near(desk.estimate(at(3), &work(1)).load, LOAD);
    assert_eq!(desk.enters(at(3), work(1)).1.len(), 1);
}

#[test]
fn under_suspicion_nothing_starts_until_it_has_answered() {
    let mut desk = desk(1, 8);
    desk.missed(Missed::Late);
    let (ticket, actions) = desk.enters(at(0), work(1));
    assert!(actions.is_empty());
    assert_eq!(started(&desk.answered(at(1))), [ticket]);
}

#[test]
fn draining_refuses_what_comes_and_keeps_what_waits_for_its_end() {
    let mut desk = desk(1, 8);
    let (inside, _) = desk.enters(at(0), work(1));
    let (waits, _) = desk.enters(at(0), work(1));
    desk.drain(true);
    assert_eq!(desk.promise(at(0), &work(1)), Err(Refusal::Draining));
    assert!(desk.end(at(1), inside, &CUT).is_empty());
    desk.drain(false);
    assert_eq!(started(&desk.tick(at(2))), [waits]);
}

#[test]
fn promises_follow_what_requests_took_and_silence_is_judged_by_it() {
    let mut desk = desk(1, 8);
    let start = |desk: &mut Desk, now| match &desk.enters(now, work(1)).1[..] {
        [Action::Start { ticket, start }] => (*ticket, start.clone()),
        other => panic!("{other:?}"),
    };
    for round in 0..5 {
        let (ticket, start) = start(&mut desk, at(round * 10_000));
        assert_eq!(start.first_byte_max == SILENCE_UNMEASURED, round < 3, "round `{round}`: {start:?}");
        desk.end(at(round * 10_000 + 6000), ticket, &done((1000, 2000), (100, 4000)));
    }
    let estimate = desk.estimate(at(60_000), &work(1));
    near(estimate.prefill, 2.0);
    near(estimate.decode, 4.0);
}

#[test]
fn a_prompt_that_was_read_need_not_be_read_again_until_its_model_is_unloaded() {
    let mut writer = ChainWriter::new(&ChainKey::derive(b"mesh"), key(1));
    (0..3).for_each(|block| writer.push(&[block; BLOCK_BYTES]));
    let known = Work { chain: writer.finish(None), ..work(1) };
    let mut desk = desk(1, 8);
    let (ticket, _) = desk.enters(at(0), known.clone());
    assert_eq!(desk.estimate(at(0), &known).cached, 0, "it has not been read yet");
    desk.spoke(at(1), ticket);
    desk.end(at(2), ticket, &CUT);
    let estimate = desk.estimate(at(2), &known);
    assert_eq!(estimate.cached, 768);
    near(estimate.prefill, READ * 232.0 / 1000.0);
    let short = Work { prompt: 100, ..known.clone() };
    assert_eq!(desk.estimate(at(2), &short).cached, 99, "the last token is always read");
    desk.loaded(at(3), &[]);
    assert_eq!(desk.estimate(at(3), &known).cached, 0);
}

#[test]
fn a_smaller_wish_is_raised_to_what_is_loaded_and_a_larger_one_is_not() {
    let start = |asked| match &desk(1, 8).enter(at(0), ask(work(1)), asked).unwrap().1[..] {
        [Action::Start { start, .. }] => start.loaded_context.unwrap().raises(asked),
        other => panic!("{other:?}"),
    };
    assert_eq!((start(Some(2048)), start(Some(4096)), start(Some(8192))), (Some(4096), None, None));
    assert_eq!(start(None), None, "nobody knows what it would get");
}

#[test]
fn the_mesh_is_told_what_is_here() {
    let mut desk = desk(2, 8);
    desk.identified("0.32.1");
    let alias = seen::Listed { name: "alias:latest".to_owned(), ..listed(1) };
    let nameless = seen::Listed { name: "odd:latest".to_owned(), digest: "no digest".to_owned(), ..listed(1) };
    desk.listed(&[listed(1), alias, listed(2), nameless]);
    desk.enters(at(0), work(1));
    let facts = desk.facts(at(0));
    assert_eq!((facts.state, facts.version.as_deref()), (State::Up, Some("0.32.1")));
    let [first, second] = &facts.models[..] else { panic!("{:?}", facts.models) };
    assert_eq!((first.key, second.key), (key(1), key(2)));
    assert_eq!(first.names, ["alias:latest", "m1:latest"]);
    assert_eq!((first.facts.resident, second.facts.resident), (Some(4096), None));
    assert_eq!((first.facts.slots, first.facts.free_slots, second.facts.free_slots), (2, 1, 2));
    near(second.facts.load, LOAD);
    near(second.facts.step, 0.01);
    near(Seconds::new(1000.0 / second.facts.prefill_rate), READ);
    desk.enters(at(0), work(1));
    assert!(desk.facts(at(0)).models[0].facts.wait > Seconds::ZERO);
}

/// Any order of events keeps the desk's promises to itself.
#[test]
fn whatever_happens_slots_loads_and_fates_stay_in_order() {
    for seed in 0..100 {
        let mut dice = Dice::new(seed);
        let slots = 1 + dice.below(3) as u16;
        let mut desk = desk(slots, 6);
        let (mut now, mut waiting, mut inside) = (at(0), BTreeSet::new(), Vec::new());
        for _ in 0..300 {
            now = now + Duration::from_millis(dice.below(2000) as u64);
            let drawn = |dice: &mut Dice, from: &[Ticket]| (!from.is_empty()).then(|| from[dice.below(from.len())]);
            let actions = match dice.below(12) {
                0..5 => {
                    let deadline = (dice.below(3) == 0).then(|| Duration::from_secs(dice.below(20) as u64));
                    let class = Class::ALL[dice.below(4)];
                    let tenant = Tenant::of_key(&[dice.below(3) as u8]);
                    let work = Work { deadline, class, tenant, ..work(1 + dice.below(3) as u8) };
                    let entered = desk.enter(now, ask(work), None);
                    entered.map_or_else(
                        |_| Vec::new(),
                        |(ticket, actions)| {
                            assert!(waiting.insert(ticket));
                            actions
                        },
                    )
                }
                5 | 6 => drawn(&mut dice, &inside).map_or_else(Vec::new, |ticket| desk.spoke(now, ticket)),
                7 | 8 => drawn(&mut dice, &inside).map_or_else(Vec::new, |ticket| {
                    inside.retain(|other| *other != ticket);
                    desk.end(now, ticket, &done((1000, 300), (100, 900)))
                }),
                9 => drawn(&mut dice, &waiting.iter().copied().collect::<Vec<_>>()).map_or_else(Vec::new, |ticket| {
                    waiting.remove(&ticket);
                    desk.end(now, ticket, &CUT)
                }),
                10 => desk.answered(now),
                _ => desk.missed(if dice.below(2) == 0 { Missed::Late } else { Missed::Refused("gone".to_owned()) }),
            };
            for action in actions {
                match action {
                    Action::Start { ticket, .. } => {
                        assert!(waiting.remove(&ticket), "`{ticket}` waited for its start, seed `{seed}`");
                        inside.push(ticket);
                    }
                    Action::Refuse { ticket, .. } => assert!(waiting.remove(&ticket), "seed `{seed}`"),
                    Action::GiveUp { ticket, .. } => {
                        assert!(inside.contains(&ticket), "seed `{seed}`");
                        inside.retain(|other| *other != ticket);
                        assert!(
                            desk.end(now, ticket, &CUT).is_empty(),
                            "nothing starts in what is down, seed `{seed}`"
                        );
                    }
                }
            }
            assert_eq!((desk.waiting(), desk.running()), (waiting.len(), inside.len()), "seed `{seed}`");
            assert_eq!(desk.jobs.len(), waiting.len() + inside.len(), "seed `{seed}`");
            let over = desk.shelves.values().any(|shelf| shelf.slots.running().len() > usize::from(slots));
            let loading = desk.shelves.values().filter(|shelf| shelf.is_loading()).count();
            assert!(!over, "seed `{seed}`");
            assert!(loading <= 1, "seed `{seed}`");
        }
    }
}
