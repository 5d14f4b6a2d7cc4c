use super::*;

const AFTER: Duration = Duration::from_secs(600);
const GIB: u64 = 1 << 30;

fn id(number: usize) -> NodeId {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&mix(number as u64).to_le_bytes());
    NodeId::from_public_key(key)
}

fn version(number: u8) -> VersionId {
    VersionId([number; 32])
}

fn label(text: &str) -> Label {
    text.parse().unwrap()
}

fn member(number: usize) -> Member {
    let told = Told { disk_free: 100 * GIB, memory: 64 * GIB, ..Told::default() };
    Member {
        id: id(number),
        labels: BTreeMap::new(),
        zone: None,
        presence: Presence::Up,
        draining: false,
        told: Some(told),
    }
}

fn members(count: usize) -> Vec<Member> {
    (0..count).map(member).collect()
}

fn told(member: &mut Member) -> &mut Told {
    member.told.as_mut().unwrap()
}

fn wish(number: u8, copies: u32) -> Wish {
    let copies = Copies::AtLeast(copies);
    let (on, never) = (BTreeSet::new(), BTreeSet::new());
    Wish { version: version(number), bytes: 10 * GIB, copies, on, never, pin: false }
}

fn plan(wishes: &[Wish], members: &[Member], before: &Assignments) -> Plan {
    wanted(wishes, &Demand::new(), members, before, AFTER)
}

/// The places of those that should have a version.
fn places(plan: &Plan, number: u8) -> Vec<usize> {
    let nodes = plan.wanted.get(&version(number)).cloned().unwrap_or_default();
    (0..100).filter(|place| nodes.contains(&id(*place))).collect()
}

/// Everybody that is up has fetched what it should have.
fn fetch(members: &mut [Member], plan: &Plan, bytes: &BTreeMap<VersionId, u64>) {
    for member in members.iter_mut().filter(|member| member.presence == Presence::Up) {
        let Some(told) = &mut member.told else { continue };
        for (version, _) in plan.wanted.iter().filter(|(_, nodes)| nodes.contains(&member.id)) {
            if told.holds.insert(*version) {
                let there = told.partial.remove(version).unwrap_or_default();
                told.disk_free = told.disk_free.checked_sub(bytes[version] - there).expect("it was said to fit");
            }
        }
    }
}

#[test]
fn whoever_has_a_model_keeps_it() {
    let mut mesh = members(5);
    told(&mut mesh[3]).holds.insert(version(1));
    let plan = plan(&[wish(1, 1)], &mesh, &Assignments::new());
    assert_eq!((places(&plan, 1), plan.unmet), (vec![3], vec![]));
}

#[test]
fn copies_are_spread_over_zones_as_they_are_made() {
    let mut mesh = members(6);
    for (place, member) in mesh.iter_mut().enumerate() {
        member.zone = Some(["cellar", "attic"][place / 3].to_owned());
    }
    for number in 1..20 {
        let chosen = places(&plan(&[wish(number, 2)], &mesh, &Assignments::new()), number);
        assert!(chosen.len() == 2 && chosen[0] < 3 && chosen[1] >= 3, "{chosen:?}");
    }
    // Two in one zone stay there: a copy is not moved for its zone.
    for place in [0, 1] {
        told(&mut mesh[place]).holds.insert(version(1));
    }
    assert_eq!(places(&plan(&[wish(1, 2)], &mesh, &Assignments::new()), 1), [0, 1]);
    let three = places(&plan(&[wish(1, 3)], &mesh, &Assignments::new()), 1);
    assert!(three.len() == 3 && three[2] >= 3, "{three:?}");
}

#[test]
fn a_rules_labels_are_kept() {
    let mut mesh = members(4);
    for (place, text) in [(0, "gpu=4090"), (1, "gpu=4090"), (2, "gpu=3060")] {
        let label = label(text);
        mesh[place].labels.insert(label.key, label.value);
    }
    mesh[1].labels.insert("disk".to_owned(), "slow".to_owned());
    let rule = Wish { on: [label("gpu=4090")].into(), never: [label("disk=slow")].into(), ..wish(1, 2) };
    let short = plan(&[rule], &mesh, &Assignments::new());
    assert_eq!(places(&short, 1), [0]);
    let why = Short { labels: 3, ..Short::default() };
    assert_eq!(short.unmet, [Unmet { wish: 0, missing: 1, why }]);
}

#[test]
fn a_rule_that_cannot_be_met_says_why() {
    let mut mesh = members(7);
    mesh[0].labels.insert("a".to_owned(), "b".to_owned());
    mesh[1].draining = true;
    mesh[2].presence = Presence::Down(Duration::ZERO);
    mesh[3].told = None;
    told(&mut mesh[4]).memory = 10 * GIB;
    told(&mut mesh[5]).disk_free = 10 * GIB;
    let rule = Wish { never: [label("a=b")].into(), ..wish(1, 5) };
    let why = Short { labels: 1, draining: 1, down: 1, unheard: 1, memory: 1, disk: 1 };
    let short = plan(std::slice::from_ref(&rule), &mesh, &Assignments::new());
    assert_eq!((places(&short, 1), short.unmet), (vec![6], vec![Unmet { wish: 0, missing: 4, why }]));
    // Of all, those are missing that should have it and cannot; who is away gets it when it is back.
    let all = Wish { copies: Copies::All, ..rule };
    let short = plan(&[all], &mesh, &Assignments::new());
    assert_eq!((places(&short, 1), short.unmet), (vec![6], vec![Unmet { wish: 0, missing: 3, why }]));
}

#[test]
fn a_disk_is_not_promised_twice() {
    let mut mesh = members(1);
    told(&mut mesh[0]).disk_free = 25 * GIB;
    let wishes = [wish(1, 1), wish(2, 1), wish(3, 1)];
    let both = plan(&wishes, &mesh, &Assignments::new());
    assert_eq!((both.wanted.len(), both.unmet.len(), both.unmet[0].wish), (2, 1, 2));
    // What is under way comes before what is new, wherever it stands among the wishes.
    let before = [(version(3), [id(0)].into())].into();
    told(&mut mesh[0]).disk_free = 19 * GIB;
    told(&mut mesh[0]).partial.insert(version(3), 6 * GIB);
    let kept = plan(&wishes, &mesh, &before);
    assert_eq!((places(&kept, 3), kept.wanted.len()), (vec![0], 2));
    // Two rules that mean one version take its room once.
    let same = plan(&[wish(1, 1), wish(1, 1)], &mesh, &Assignments::new());
    assert_eq!((places(&same, 1), same.unmet), (vec![0], vec![]));
}

#[test]
fn a_laptop_that_comes_and_goes_moves_nothing_after_the_first_time() {
    let wishes = [wish(1, 2)];
    let bytes = [(version(1), 10 * GIB)].into();
    let mut mesh = members(5);
    let first = plan(&wishes, &mesh, &Assignments::new());
    fetch(&mut mesh, &first, &bytes);
    let laptop = places(&first, 1)[0];

    mesh[laptop].presence = Presence::Down(AFTER - Duration::from_secs(1));
    assert_eq!(plan(&wishes, &mesh, &first.wanted), first, "it may be back any moment");
    mesh[laptop].presence = Presence::Down(AFTER);
    let second = plan(&wishes, &mesh, &first.wanted);
    let replaced: Vec<_> = places(&second, 1).into_iter().filter(|place| !places(&first, 1).contains(place)).collect();
    assert_eq!((places(&second, 1).len(), replaced.len()), (2, 1));

    // Back before its place was taken: nothing is fetched that nobody needs.
    mesh[laptop].presence = Presence::Up;
    assert_eq!(places(&plan(&wishes, &mesh, &second.wanted), 1), places(&first, 1));
    // Back when the other one is nearly there: then that is brought to its end, so that it is the last time.
    told(&mut mesh[replaced[0]]).partial.insert(version(1), 6 * GIB);
    assert_eq!(places(&plan(&wishes, &mesh, &second.wanted), 1), places(&second, 1));

    told(&mut mesh[replaced[0]]).partial.clear();
    fetch(&mut mesh, &second, &bytes);
    for presence in [Presence::Up, Presence::Down(AFTER), Presence::Up, Presence::Down(AFTER * 9)] {
        mesh[laptop].presence = presence;
        assert_eq!(plan(&wishes, &mesh, &second.wanted), second, "{presence:?}");
    }
    // Its copy is still good when another one goes.
    mesh[laptop].presence = Presence::Up;
    mesh[replaced[0]].presence = Presence::Down(AFTER);
    assert_eq!(places(&plan(&wishes, &mesh, &second.wanted), 1), places(&first, 1));
}

#[test]
fn a_copy_is_given_up_only_once_another_is_there() {
    let wishes = [wish(1, 1)];
    let bytes = [(version(1), 10 * GIB)].into();
    let mut mesh = members(3);
    let first = plan(&wishes, &mesh, &Assignments::new());
    fetch(&mut mesh, &first, &bytes);
    let from = places(&first, 1)[0];
    mesh[from].draining = true;
    let both = plan(&wishes, &mesh, &first.wanted);
    assert_eq!(places(&both, 1).len(), 2);
    assert_eq!(plan(&wishes, &mesh, &both.wanted), both);
    fetch(&mut mesh, &both, &bytes);
    let last = places(&plan(&wishes, &mesh, &both.wanted), 1);
    assert!(last.len() == 1 && last[0] != from, "{last:?}");
}

#[test]
fn what_is_held_fast_stays_though_it_is_more_than_wanted() {
    let bytes = [(version(1), 10 * GIB)].into();
    let mut mesh = members(5);
    let four = plan(&[wish(1, 4)], &mesh, &Assignments::new());
    fetch(&mut mesh, &four, &bytes);
    assert_eq!(places(&plan(&[wish(1, 2)], &mesh, &four.wanted), 1).len(), 2);
    let pinned = plan(&[Wish { pin: true, ..wish(1, 2) }], &mesh, &four.wanted);
    assert_eq!(pinned.wanted, four.wanted);
}

#[test]
fn where_all_should_have_it_one_that_is_away_is_not_replaced() {
    let rule = [Wish { copies: Copies::All, ..wish(1, 0) }];
    let bytes = [(version(1), 10 * GIB)].into();
    let mut mesh = members(4);
    let all = plan(&rule, &mesh, &Assignments::new());
    assert_eq!(places(&all, 1), [0, 1, 2, 3]);
    fetch(&mut mesh, &all, &bytes);
    mesh[2].presence = Presence::Down(AFTER * 100);
    assert_eq!(plan(&rule, &mesh, &all.wanted), all);
    mesh.push(member(4));
    assert_eq!(places(&plan(&rule, &mesh, &all.wanted), 1), [0, 1, 2, 3, 4]);
}

#[test]
fn demand_asks_for_more_than_a_rule_does() {
    let mesh = members(6);
    let demand = [(version(1), 4), (version(2), 1), (version(9), 3)].into();
    let plan = wanted(&[wish(1, 2), wish(2, 2)], &demand, &mesh, &Assignments::new(), AFTER);
    assert_eq!((places(&plan, 1).len(), places(&plan, 2).len(), plan.wanted.len()), (4, 2, 2));
}

/// Dice that give the same throws for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = mix(self.0);
        self.0 % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

struct World {
    mesh: Vec<Member>,
    wishes: Vec<Wish>,
    bytes: BTreeMap<VersionId, u64>,
    before: Assignments,
}

impl World {
    fn thrown(dice: &mut Dice) -> Self {
        let versions = 1 + dice.below(8);
        let bytes: BTreeMap<_, _> =
            (0..versions).map(|number| (version(number as u8), (1 + dice.below(40)) * GIB)).collect();
        let mesh = (0..1 + dice.below(14) as usize).map(|number| Self::machine(dice, number, &bytes)).collect();
        let wishes = (0..dice.below(10)).map(|_| Self::rule(dice, versions, &bytes)).collect();
        Self { mesh, wishes, bytes, before: Assignments::new() }
    }

    fn machine(dice: &mut Dice, number: usize, bytes: &BTreeMap<VersionId, u64>) -> Member {
        let mut member = member(number);
        member.zone = [None, Some("a".to_owned()), Some("b".to_owned())][dice.below(3) as usize].clone();
        for key in ["x", "y"] {
            if dice.one_in(2) {
                member.labels.insert(key.to_owned(), ["1", "2"][dice.below(2) as usize].to_owned());
            }
        }
        let holds = bytes.keys().filter(|_| dice.one_in(5)).copied().collect();
        let (disk_free, memory) = (dice.below(150) * GIB, (4 + dice.below(60)) * GIB);
        member.told = Some(Told { disk_free, memory, holds, partial: BTreeMap::new() });
        member
    }

    fn rule(dice: &mut Dice, versions: u64, bytes: &BTreeMap<VersionId, u64>) -> Wish {
        let version = version(dice.below(versions) as u8);
        let copies = if dice.one_in(6) { Copies::All } else { Copies::AtLeast(1 + dice.below(4) as u32) };
        let labels = |dice: &mut Dice| match dice.below(4) {
            0 => [label("x=1")].into(),
            _ => BTreeSet::new(),
        };
        let (on, never) = (labels(dice), if dice.one_in(4) { [label("y=2")].into() } else { BTreeSet::new() });
        Wish { version, bytes: bytes[&version], copies, on, never, pin: dice.one_in(6) }
    }

    fn plan(&self) -> Plan {
        plan(&self.wishes, &self.mesh, &self.before)
    }

    /// Something happens that nobody planned.
    fn disturb(&mut self, dice: &mut Dice) {
        let place = dice.below(self.mesh.len() as u64) as usize;
        let member = &mut self.mesh[place];
        match dice.below(8) {
            0 => member.presence = Presence::Down(AFTER / 2),
            1 | 2 => member.presence = Presence::Down(AFTER * 2),
            3 | 4 => member.presence = Presence::Up,
            5 => member.draining = !member.draining,
            6 => drop(member.labels.insert("x".to_owned(), ["1", "2"][dice.below(2) as usize].to_owned())),
            _ => {
                let Some(told) = &mut member.told else { return };
                told.disk_free = dice.below(150) * GIB;
                let lost = told.holds.iter().next().copied().filter(|_| dice.one_in(2));
                lost.map(|version| told.holds.remove(&version));
            }
        }
    }

    /// What must hold of every plan.
    fn check(&self, plan: &Plan) {
        for member in &self.mesh {
            let told = member.told.as_ref().unwrap();
            let mut fetched = 0;
            for version in
                plan.wanted.iter().filter(|(_, nodes)| nodes.contains(&member.id)).map(|(version, _)| version)
            {
                let wishes = || self.wishes.iter().filter(|wish| wish.version == *version);
                assert!(wishes().next().is_some(), "nobody wished for it");
                let given = self.before.get(version).is_some_and(|nodes| nodes.contains(&member.id));
                let holds = told.holds.contains(version);
                if !given && !holds {
                    assert_eq!((member.presence, member.draining), (Presence::Up, false));
                    assert!(wishes().any(|wish| may(wish, member)));
                    assert!(told.memory >= with_margin(self.bytes[version]));
                }
                if !holds && member.presence == Presence::Up {
                    fetched += with_margin(self.bytes[version]);
                }
            }
            assert!(fetched <= told.disk_free, "it does not fit");
        }
        for (place, wish) in self.wishes.iter().enumerate() {
            let nodes = plan.wanted.get(&wish.version);
            let granted = |member: &&Member| {
                let gone = matches!(member.presence, Presence::Down(span) if span >= AFTER);
                nodes.is_some_and(|nodes| nodes.contains(&member.id)) && may(wish, member) && !member.draining && !gone
            };
            let granted = self.mesh.iter().filter(granted).count();
            let missing = plan.unmet.iter().find(|unmet| unmet.wish == place).map_or(0, |unmet| unmet.missing);
            if let Copies::AtLeast(copies) = wish.copies {
                assert!(granted + missing >= copies as usize, "{granted} and {missing} of {copies}");
            }
        }
    }

    /// Copies that are made by this plan, and that were not on their way before.
    fn moves(&self, plan: &Plan) -> usize {
        let new = |version: &VersionId, node: &NodeId| {
            let given = self.before.get(version).is_some_and(|nodes| nodes.contains(node));
            let holds = |member: &Member| member.told.as_ref().is_some_and(|told| told.holds.contains(version));
            !given && !self.mesh.iter().any(|member| member.id == *node && holds(member))
        };
        plan.wanted.iter().map(|(version, nodes)| nodes.iter().filter(|node| new(version, node)).count()).sum()
    }

    /// At most so many copies have to be made, whatever is known of the nodes: what is wanted, less what is there.
    fn missing(&self) -> usize {
        let missing = |wish: &Wish| {
            let there = |member: &&Member| {
                let here = match member.presence {
                    Presence::Up => member.told.as_ref().is_some_and(|told| told.holds.contains(&wish.version)),
                    Presence::Down(span) => {
                        span < AFTER && self.before.get(&wish.version).is_some_and(|nodes| nodes.contains(&member.id))
                    }
                };
                let fits = member.told.as_ref().is_some_and(|told| told.memory >= with_margin(wish.bytes));
                here && fits && may(wish, member) && !member.draining
            };
            let there = self.mesh.iter().filter(there).count();
            match wish.copies {
                Copies::All => self.mesh.len() - there,
                Copies::AtLeast(copies) => (copies as usize).saturating_sub(there),
            }
        };
        self.wishes.iter().map(missing).sum()
    }
}

/// Thousands of meshes in which nodes come, go, fill up and lose what they had, while plans are made, carried out, and
/// made anew before they are.
#[test]
fn whatever_happens_plans_are_sound_move_no_more_than_they_must_and_come_to_rest() {
    let (mut met, mut moved) = (0, 0);
    for seed in 0..3_000 {
        let mut dice = Dice(seed);
        let mut world = World::thrown(&mut dice);
        for turn in 0..12 {
            let plan = world.plan();
            world.check(&plan);
            let moves = world.moves(&plan);
            assert!(moves <= world.missing(), "seed {seed}, turn {turn}: {moves} copies for {}", world.missing());
            moved += moves;
            world.before = plan.wanted.clone();
            assert_eq!(world.plan(), plan, "seed {seed}, turn {turn}: decided again, otherwise");
            if dice.one_in(2) {
                fetch(&mut world.mesh, &plan, &world.bytes);
            }
            world.disturb(&mut dice);
        }
        // Nothing happens any more: it comes to rest, and no copy is made after those that are on their way.
        for round in 0.. {
            assert!(round < 4, "seed {seed} does not come to rest");
            let plan = world.plan();
            let rests = plan.wanted == world.before;
            assert!(round == 0 || world.moves(&plan) == 0, "seed {seed}, round {round}");
            world.before = plan.wanted.clone();
            fetch(&mut world.mesh, &plan, &world.bytes);
            if rests && world.plan().wanted == plan.wanted {
                met += world.wishes.len() - plan.unmet.len();
                break;
            }
        }
    }
    // Or nothing was shown.
    assert!(met > 5_000 && moved > 10_000, "{met} wishes met, {moved} copies made");
}
