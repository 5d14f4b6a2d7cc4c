use super::*;

const LIMITS: Limits = Limits { context: 4096, loaded_max: 3, waiting_max: 4, memory: 100 };
const MINUTE: Duration = Duration::from_secs(60);

/// A library played by hand: loads and unloads happen when the test says so.
struct Play {
    state: State,
    now: Instant,
    tickets: Ticket,
    /// Sizes by file.
    sizes: BTreeMap<&'static str, u64>,
}

impl Play {
    fn new(sizes: &[(&'static str, u64)]) -> Self {
        Self { state: State::new(LIMITS), now: Instant::now(), tickets: 0, sizes: sizes.iter().copied().collect() }
    }

    fn ask(&mut self, file: &str) -> Vec<String> {
        self.ask_with(file, LoadOptions::default(), KeepAlive::For(MINUTE))
    }

    fn ask_with(&mut self, file: &str, options: LoadOptions, keep_alive: KeepAlive) -> Vec<String> {
        self.tickets += 1;
        let spec = Spec { file: file.into(), options };
        let actions = self.state.asked(self.now, self.tickets, spec, keep_alive);
        self.told(actions)
    }

    fn loaded(&mut self, file: &str) -> Vec<String> {
        let context = self.state.shelves.get(Path::new(file)).map(|shelf| match shelf {
            Shelf::Loading { spec, .. } => spec.options.num_ctx.unwrap(),
            _ => panic!("`{file}` is not being loaded"),
        });
        let facts = Facts {
            size: self.sizes[file],
            size_gpu: 0,
            context: context.unwrap().min(8192),
            context_trained: 8192,
            slots: 1,
            only_embeds: false,
            embedding_length: 8,
        };
        let actions = self.state.loaded(self.now, Path::new(file), Ok(facts));
        self.told(actions)
    }

    fn released(&mut self, file: &str) -> Vec<String> {
        let actions = self.state.released(self.now, Path::new(file));
        self.told(actions)
    }

    fn unloaded(&mut self, file: &str) -> Vec<String> {
        let actions = self.state.unloaded(self.now, Path::new(file));
        self.told(actions)
    }

    fn wait(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        let actions = self.state.tick(self.now);
        self.told(actions)
    }

    /// Answers probes on the spot, and says the rest in words.
    fn told(&mut self, actions: Vec<Action>) -> Vec<String> {
        let mut told = Vec::new();
        for action in actions {
            match action {
                Action::Probe(ticket, spec) => {
                    let need = Need { weights: self.sizes[spec.file.to_str().unwrap()], context: 0 };
                    let actions = self.state.probed(self.now, ticket, Ok(need));
                    told.extend(self.told(actions));
                }
                Action::Load(spec) => told.push(format!("load {}", spec.file.display())),
                Action::Unload(file) => told.push(format!("unload {}", file.display())),
                Action::Grant(ticket, file) => told.push(format!("grant {ticket} {}", file.display())),
                Action::Refuse(ticket, error) => told.push(format!("refuse {ticket} {error:?}")),
            }
        }
        told
    }

    fn ready(&mut self, file: &str) {
        self.ask(file);
        self.loaded(file);
    }
}

fn context(tokens: u32) -> LoadOptions {
    LoadOptions { num_ctx: Some(tokens), ..LoadOptions::default() }
}

#[test]
fn a_model_is_loaded_once_for_all_who_ask_meanwhile() {
    let mut play = Play::new(&[("a", 10)]);
    assert_eq!(play.ask("a"), ["load a"]);
    assert!(play.ask("a").is_empty());
    assert_eq!(play.loaded("a"), ["grant 1 a", "grant 2 a"]);
    assert_eq!(play.ask("a"), ["grant 3 a"]);
}

#[test]
fn an_idle_model_goes_when_its_time_is_over_and_not_while_it_is_used() {
    let mut play = Play::new(&[("a", 10)]);
    play.ready("a");
    assert!(play.wait(10 * MINUTE).is_empty());
    assert_eq!(play.state.next_expiry(), None);
    assert!(play.released("a").is_empty());
    assert_eq!(play.state.next_expiry(), Some(play.now + MINUTE));
    assert!(play.wait(MINUTE / 2).is_empty());
    assert_eq!(play.wait(MINUTE / 2), ["unload a"]);
    assert!(play.unloaded("a").is_empty());
    assert!(play.state.shelves.is_empty());
}

#[test]
fn of_several_times_the_last_to_begin_decides() {
    let mut play = Play::new(&[("a", 10)]);
    play.ready("a");
    play.ask_with("a", LoadOptions::default(), KeepAlive::For(Duration::ZERO));
    assert!(play.released("a").is_empty());
    assert_eq!(play.released("a"), ["unload a"]);

    let mut play = Play::new(&[("a", 10)]);
    play.ready("a");
    play.ask_with("a", LoadOptions::default(), KeepAlive::Forever);
    play.released("a");
    play.released("a");
    assert!(play.wait(1_000_000 * MINUTE).is_empty());
}

#[test]
fn room_is_made_by_the_idle_one_with_the_shortest_time() {
    let mut play = Play::new(&[("a", 40), ("b", 40), ("c", 40)]);
    play.ask_with("a", LoadOptions::default(), KeepAlive::Forever);
    play.loaded("a");
    play.ready("b");
    play.released("a");
    play.released("b");
    assert_eq!(play.ask("c"), ["unload b"]);
    assert_eq!(play.unloaded("b"), ["load c"]);
    assert_eq!(play.loaded("c"), ["grant 3 c"]);
}

#[test]
fn a_used_model_is_never_dropped_for_another() {
    let mut play = Play::new(&[("a", 60), ("b", 60)]);
    play.ready("a");
    assert!(play.ask("b").is_empty());
    assert!(play.wait(MINUTE).is_empty());
    assert_eq!(play.released("a"), ["unload a"]);
    assert_eq!(play.unloaded("a"), ["load b"]);
}

#[test]
fn what_never_fits_is_refused_and_does_not_hold_up_the_rest() {
    let mut play = Play::new(&[("huge", 101), ("a", 100)]);
    let told = play.ask("huge");
    assert_eq!(told, ["refuse 1 Memory { need: 101, available: 100 }"]);
    assert_eq!(play.ask("a"), ["load a"]);
}

#[test]
fn nobody_goes_for_what_never_fits() {
    let mut play = Play::new(&[("a", 60), ("huge", 101)]);
    play.ready("a");
    play.released("a");
    assert_eq!(play.ask("huge"), ["refuse 2 Memory { need: 101, available: 100 }"]);
}

#[test]
fn only_so_many_models_at_once() {
    let mut play = Play::new(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
    for file in ["a", "b", "c"] {
        play.ready(file);
        play.released(file);
    }
    assert_eq!(play.ask("d"), ["unload a"]);
}

#[test]
fn another_context_reloads_once_nobody_uses_the_old_one() {
    let mut play = Play::new(&[("a", 10)]);
    play.ready("a");
    assert!(play.ask_with("a", context(1024), KeepAlive::default()).is_empty());
    assert_eq!(play.released("a"), ["unload a"]);
    assert_eq!(play.unloaded("a"), ["load a"]);
    assert_eq!(play.loaded("a"), ["grant 2 a"]);
}

#[test]
fn who_does_not_care_takes_what_is_there_unless_it_is_small() {
    let mut play = Play::new(&[("a", 10)]);
    play.ask_with("a", context(8192), KeepAlive::default());
    assert_eq!(play.loaded("a"), ["grant 1 a"]);
    assert_eq!(play.ask("a"), ["grant 2 a"]);
    // Beyond what the model was trained for there is nothing more to have.
    assert_eq!(play.ask_with("a", context(100_000), KeepAlive::default()), ["grant 3 a"]);

    let mut play = Play::new(&[("a", 10)]);
    play.ask_with("a", context(16), KeepAlive::default());
    play.loaded("a");
    assert!(play.ask("a").is_empty());
}

#[test]
fn a_loader_that_gives_another_context_than_was_asked_for_is_not_asked_for_ever() {
    let mut play = Play::new(&[("a", 10)]);
    play.ask_with("a", context(2), KeepAlive::default());
    let Some(Shelf::Loading { spec, .. }) = play.state.shelves.get_mut(Path::new("a")) else { panic!("no load") };
    assert_eq!(spec.options.num_ctx, Some(2));
    let facts = Facts {
        size: 10,
        size_gpu: 0,
        context: 8,
        context_trained: 64,
        slots: 1,
        only_embeds: false,
        embedding_length: 8,
    };
    let actions = play.state.loaded(play.now, Path::new("a"), Ok(facts));
    assert_eq!(play.told(actions), ["grant 1 a"]);
}

#[test]
fn a_failed_load_is_told_to_all_who_waited_for_it_and_to_nobody_else() {
    let mut play = Play::new(&[("a", 10), ("b", 10)]);
    play.ask("a");
    play.ask("a");
    play.ask("b");
    let actions = play.state.loaded(play.now, Path::new("a"), Err(Error::Load { path: "a".into() }));
    let told = play.told(actions);
    assert!(told[0].starts_with("refuse 1") && told[1].starts_with("refuse 2"), "{told:?}");
    assert_eq!(told[2..], ["load b"]);
}

#[test]
fn a_probe_that_fails_refuses_its_own() {
    let mut state = State::new(LIMITS);
    let now = Instant::now();
    state.asked(now, 1, Spec::new("a"), KeepAlive::default());
    let actions = state.probed(now, 1, Err(Error::CannotRun { reason: "no".to_owned() }));
    assert!(matches!(actions[..], [Action::Refuse(1, Error::CannotRun { .. })]));
}

#[test]
fn who_left_causes_no_load() {
    let mut play = Play::new(&[("a", 60), ("b", 60), ("c", 60)]);
    play.ready("a");
    play.ask("b");
    play.ask("c");
    play.state.left(|ticket| ticket != 2);
    assert_eq!(play.released("a"), ["unload a"]);
    assert_eq!(play.unloaded("a"), ["load c"]);
}

#[test]
fn a_waiting_load_is_passed_only_for_so_long() {
    let mut play = Play::new(&[("a", 60), ("b", 60)]);
    play.ready("a");
    play.ask("b");
    assert_eq!(play.ask("a"), ["grant 3 a"]);
    play.wait(PATIENCE);
    assert!(play.ask("a").is_empty());
    play.released("a");
    assert_eq!(play.released("a"), ["unload a"]);
    assert_eq!(play.unloaded("a"), ["load b"]);
    assert_eq!(play.loaded("b"), ["grant 2 b"]);
    assert_eq!(play.released("b"), ["unload b"]);
    assert_eq!(play.unloaded("b"), ["load a"]);
}

#[test]
fn more_than_may_wait_are_refused_and_those_who_need_no_load_are_not() {
    let mut play = Play::new(&[("a", 60), ("b", 60)]);
    play.ready("a");
    for _ in 0..LIMITS.waiting_max {
        assert!(play.ask("b").is_empty());
    }
    assert_eq!(play.ask("b"), ["refuse 6 Busy"]);
    assert_eq!(play.ask("a"), ["grant 7 a"]);
}

#[test]
fn what_shall_leave_takes_nobody_any_more() {
    let mut play = Play::new(&[("a", 10)]);
    play.ready("a");
    assert!(play.state.leave(play.now, Path::new("a")).is_empty());
    assert!(play.ask("a").is_empty());
    assert_eq!(play.released("a"), ["unload a"]);
    assert_eq!(play.unloaded("a"), ["load a"]);
}

#[test]
fn the_list_shows_the_longest_lived_first() {
    let mut play = Play::new(&[("a", 10), ("b", 10), ("c", 10)]);
    play.ready("a");
    play.ask_with("b", LoadOptions::default(), KeepAlive::Forever);
    play.loaded("b");
    play.ask_with("c", LoadOptions::default(), KeepAlive::For(2 * MINUTE));
    play.loaded("c");
    play.released("a");
    play.wait(MINUTE / 4);
    let entries = play.state.entries(play.now);
    let listed: Vec<_> = entries.iter().map(|entry| (entry.file.to_str().unwrap(), entry.expires_in)).collect();
    assert_eq!(listed, [("b", None), ("c", Some(2 * MINUTE)), ("a", Some(MINUTE * 3 / 4))]);
    assert_eq!(entries[2].users, 0);
}
