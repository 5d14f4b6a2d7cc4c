//! Versions, tags, rules and assignments.

use ollama::{Digest, ModelName};
use proptest::prelude::*;
use types::BlobHash;

use super::*;
use crate::Verbatim;

/// A mesh of three nodes and a worker in which the first node votes.
fn mesh() -> Log {
    let mut log = four();
    log.registry.seat(log.index, Seats { voters: [RaftId(1)].into(), ..Seats::default() });
    log
}

fn id(seed: u8) -> NodeId {
    keypair(seed).node_id()
}

fn model(text: &str) -> ModelName {
    text.parse().unwrap()
}

fn piece(content: u8) -> Piece {
    Piece { digest: Digest::of(&[content]), hash: BlobHash::of(&[content]), size: 1 }
}

/// The manifest of these blobs, the first of which is the config.
fn manifest(pieces: &[Piece]) -> Verbatim {
    let blob = |piece: &Piece| format!(r#"{{"mediaType":"x","digest":"{}","size":{}}}"#, piece.digest, piece.size);
    let layers: Vec<_> = pieces.iter().skip(1).map(blob).collect();
    let config = blob(&pieces[0]);
    let text = format!(r#"{{"schemaVersion":2,"mediaType":"y","config":{config},"layers":[{}]}}"#, layers.join(","));
    text.into_bytes().into()
}

fn add(pieces: &[Piece], tag: Option<&str>) -> Verb {
    Verb::AddVersion { manifest: manifest(pieces), layers: pieces.to_vec(), tag: tag.map(model) }
}

/// A version made of two blobs that no other number has.
fn numbered(number: u8) -> [Piece; 2] {
    [piece(number), piece(number + 100)]
}

fn version(number: u8) -> Digest {
    Digest::of(&manifest(&numbered(number)))
}

fn set(name: &str, number: u8, expect: Expect) -> Verb {
    Verb::SetTag { name: model(name), version: version(number), expect }
}

fn rule(count: u32) -> Rule {
    let (on, never) = (["gpu=4090".parse().unwrap()].into(), ["disk=slow".parse().unwrap()].into());
    Rule { replicas: Replicas::Count(count), on, never, warm: 0, pin: false }
}

/// Versions 1 to 3, and `a` on the first of them.
fn stocked() -> Log {
    let mut log = mesh();
    for number in 1..=3 {
        log.give(user(1), add(&numbered(number), (number == 1).then_some("a"))).unwrap();
    }
    log
}

fn at(log: &Log, name: &str) -> Option<Digest> {
    log.registry.resolve(&model(name))
}

/// All that must hold whatever was asked for.
fn audit(registry: &Registry) {
    let ground = &registry.ground;
    let mut said = BTreeMap::new();
    for (digest, version) in registry.versions() {
        assert_eq!(Digest::of(&version.manifest), *digest);
        assert!(version.layers.is_sorted_by(|one, other| one.digest < other.digest));
        for layer in &version.layers {
            assert_eq!(said.entry(layer.digest).or_insert(*layer), layer, "one digest, one content");
            assert_eq!(registry.binding(&layer.digest), Some(layer));
        }
    }
    for (name, tag) in registry.tags() {
        let versions: Vec<_> = tag.history().map(|moved| moved.version).collect();
        assert!((1..=16).contains(&versions.len()) && versions.windows(2).all(|pair| pair[0] != pair[1]), "{name}");
        assert!(registry.version(&tag.version()).is_some(), "{name} is on a version that is gone");
        assert!(!ground.aliases.contains_key(name), "{name} is a tag and an alias");
    }
    for (alias, to) in registry.aliases() {
        assert!(registry.tag(to).is_some(), "{alias} means {to}, which is none");
    }
    for (name, deleted) in registry.deleted_tags() {
        assert!(registry.version(&deleted.tag.version()).is_some(), "{name} cannot be restored");
    }
    for (name, _) in registry.rules() {
        assert!(registry.tag(name).is_some(), "a rule for {name}, which is none");
    }
    for (version, nodes) in registry.assignments() {
        assert!(registry.version(version).is_some() && !nodes.is_empty(), "{version}");
        assert!(nodes.iter().all(|node| registry.member(node).is_some()), "{version}");
    }
}

#[test]
fn a_version_is_known_by_its_manifest_and_its_layers_by_both_their_names() {
    let mut log = mesh();
    let pieces = [piece(9), piece(7), piece(8), piece(7)];
    let layers = vec![piece(7), piece(9), piece(8)];
    let verb = Verb::AddVersion { manifest: manifest(&pieces), layers, tag: Some(model("Llama3:8B")) };
    log.give(user(2), verb).unwrap();
    let digest = Digest::of(&manifest(&pieces));
    let version = log.registry.version(&digest).unwrap();
    assert_eq!((&version.manifest, version.by, version.index), (&manifest(&pieces), id(2), log.index));
    assert_eq!((version.layers.len(), version.size()), (3, 3));
    assert_eq!(version.layer(&piece(8).digest), Some(&piece(8)));
    assert_eq!(log.registry.binding(&piece(7).digest), Some(&piece(7)));
    assert_eq!(log.registry.binding(&piece(6).digest), None);
    assert_eq!(at(&log, "llama3:8b"), Some(digest));
    let told: Vec<_> = log.registry.journal().map(|entry| entry.what.clone()).collect();
    assert!(told.contains(&format!("add version {digest}, as Llama3:8B if there is none")), "{told:?}");
    audit(&log.registry);
}

#[test]
fn a_version_that_is_not_what_its_manifest_says_is_refused() {
    let mut log = mesh();
    let [config, layer] = numbered(1);
    let good = manifest(&[config, layer]);
    let longer = Piece { size: 2, ..layer };
    let two_sizes = manifest(&[config, layer, longer]);
    let cases: [(Verbatim, Vec<Piece>, &str); 8] = [
        (good.clone(), vec![config], "is missing"),
        (good.clone(), vec![config, layer, piece(3)], "does not name"),
        (good.clone(), vec![config, longer], "has 2 bytes, not 1"),
        (good.clone(), vec![config, layer, layer], "comes twice"),
        (good.clone(), vec![config, layer, Piece { hash: BlobHash::of(b"x"), ..layer }], "comes twice"),
        (two_sizes, vec![config, layer], "two sizes"),
        (b"{}".to_vec().into(), vec![], "cannot be read"),
        (Vec::new().into(), vec![], "cannot be read"),
    ];
    let before = log.registry.ground.clone();
    for (manifest, layers, why) in cases {
        let refused = log.give(user(1), Verb::AddVersion { manifest, layers, tag: Some(model("a")) });
        assert!(matches!(&refused, Err(Refused::BadVersion { why: told }) if told.contains(why)), "{why}: {refused:?}");
    }
    let long = Verb::AddVersion { manifest: vec![b' '; 24 << 10 | 1].into(), layers: vec![], tag: None };
    assert!(matches!(log.give(user(1), long), Err(Refused::Full { .. })));
    let many = Verb::AddVersion { manifest: good, layers: vec![layer; 225], tag: None };
    assert!(matches!(log.give(user(1), many), Err(Refused::Full { .. })));
    assert_eq!(log.registry.ground, before);
}

/// What the log means must not change with the library that reads manifests.
#[test]
fn what_counts_as_a_manifest_stays_the_same() {
    let digest = piece(1).digest;
    let blob = format!(r#"{{"mediaType":"x","digest":"{digest}","size":1}}"#);
    let with = |change: &dyn Fn(String) -> String| {
        change(format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[{blob}]}}"#)).into_bytes()
    };
    for (good, bytes) in [
        (true, with(&|text| text)),
        (true, with(&|text| text + "\n")),
        (true, with(&|text| text + "}{ more")),
        (true, with(&|text| text.replace(&format!(",\"layers\":[{blob}]"), ""))),
        (
            true,
            with(&|text| text.replace("\"schemaVersion\"", "\"annotations\":{\"a\":[1.5e300,null]},\"schemaVersion\"")),
        ),
        (true, with(&|text| text.replace("sha256:", "sha256-"))),
        (false, with(&|text| text.replace(":2,", ":-2,"))),
        (false, with(&|text| text.replace(":2,", ":2.0,"))),
        (false, with(&|text| text.replace("\"size\":1", "\"size\":1.0"))),
        (false, with(&|text| text.replace("\"size\":1", "\"size\":\"1\""))),
        (false, with(&|text| text.replace("\"schemaVersion\":2,", ""))),
        (false, with(&|text| text.replace("\"mediaType\":\"x\",", ""))),
        (false, with(&|text| text.replace("sha256:", "sha512:"))),
        (false, with(&|text| text.replace("{\"schema", "{\"schemaVersion\":2,\"schema"))),
        (false, with(&|text| text.replace("\"x\"", "\"\u{7}\""))),
        (false, [with(&|text| text), vec![0xff]].concat().split_off(1)),
        (false, [&b"[".repeat(200)[..], b"1"].concat()),
    ] {
        let mut log = mesh();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let verb = Verb::AddVersion { manifest: bytes.into(), layers: vec![piece(1)], tag: None };
        assert_eq!(log.give(user(1), verb).is_ok(), good, "{text}");
    }
}

#[test]
fn the_first_to_bind_a_digest_is_named_to_whoever_contradicts() {
    let mut log = mesh();
    let shared = piece(50);
    log.give(Actor::Node(id(2)), add(&[piece(1), shared], None)).unwrap();
    log.give(Actor::Node(id(3)), add(&[piece(2), shared], None)).unwrap();
    let lie = Piece { hash: BlobHash::of(b"something else"), ..shared };
    let refused = log.give(Actor::Node(id(3)), add(&[piece(3), lie], Some("a")));
    assert_eq!(refused, Err(Refused::Contradicts { layer: shared.digest, by: id(2) }));
    let told = log.registry.journal().next_back().unwrap();
    assert!(told.refused.as_ref().is_some_and(|why| why.contains(&id(2).to_string())), "{told:?}");
    // The same version under other names for its layers contradicts too.
    let refused = log.give(Actor::Node(id(3)), add(&[piece(1), lie], None));
    assert_eq!(refused, Err(Refused::Contradicts { layer: shared.digest, by: id(2) }));
    // Once what the first one said is forgotten, it is the second one's word.
    let first = Digest::of(&manifest(&[piece(1), shared]));
    log.give(user(1), Verb::ForgetVersions { versions: vec![first] }).unwrap();
    let refused = log.give(Actor::Node(id(2)), add(&[piece(3), lie], None));
    assert_eq!(refused, Err(Refused::Contradicts { layer: shared.digest, by: id(3) }));
    audit(&log.registry);
}

#[test]
fn the_word_of_a_worker_does_not_stand_in_the_way_of_a_nodes() {
    let mut log = mesh();
    let shared = piece(50);
    let lie = Piece { hash: BlobHash::of(b"something else"), ..shared };
    let worker = Actor::Node(id(4));
    log.give(worker.clone(), add(&[piece(1), lie], None)).unwrap();
    log.give(worker.clone(), add(&[piece(2), lie], None)).unwrap();
    log.give(Actor::Node(id(2)), add(&[piece(1), shared], None)).unwrap();
    assert_eq!(log.registry.binding(&shared.digest), Some(&shared));
    assert_eq!(log.registry.versions().count(), 1, "what else was made of the lie went with it");
    let refused = log.give(worker.clone(), add(&[piece(2), lie], None));
    assert_eq!(refused, Err(Refused::Contradicts { layer: shared.digest, by: id(2) }));
    audit(&log.registry);

    // What people have put a tag on stays; they take it off where it was a lie.
    log.give(worker.clone(), add(&numbered(3), None)).unwrap();
    log.give(user(1), set("a", 3, Expect::NoTag)).unwrap();
    let [config, layer] = numbered(3);
    let other = Piece { hash: BlobHash::of(b"x"), ..layer };
    let refused = log.give(Actor::Node(id(2)), add(&[config, other], None));
    assert_eq!(refused, Err(Refused::Contradicts { layer: layer.digest, by: id(4) }));
    // A node that says the same vouches for it.
    log.give(Actor::Node(id(3)), add(&numbered(3), None)).unwrap();
    assert_eq!(log.registry.version(&version(3)).unwrap().by, id(3));
    audit(&log.registry);
}

#[test]
fn a_version_that_comes_in_moves_no_tag() {
    let mut log = stocked();
    let (node, first) = (Actor::Node(id(2)), version(1));
    log.give(node.clone(), add(&numbered(2), Some("A"))).unwrap();
    log.give(node.clone(), add(&numbered(9), Some("a:latest"))).unwrap();
    assert_eq!(at(&log, "a"), Some(first));
    assert!(log.registry.version(&version(9)).is_some());
    let hash = log.registry.ground.clone();
    log.give(node.clone(), add(&numbered(9), Some("a"))).unwrap();
    assert_eq!(log.registry.ground, hash, "twice is once");

    log.give(user(1), Verb::SetAlias { alias: model("b"), to: model("a") }).unwrap();
    log.give(node.clone(), add(&numbered(3), Some("b"))).unwrap();
    assert_eq!(at(&log, "b"), Some(first), "nor an alias");
    log.give(user(1), Verb::DeleteTag { name: model("a") }).unwrap();
    log.give(node, add(&numbered(3), Some("a"))).unwrap();
    assert_eq!(at(&log, "a"), Some(version(3)), "there was none");
    audit(&log.registry);
}

#[test]
fn a_tag_moves_only_from_where_it_was_expected() {
    let mut log = stocked();
    let (first, second) = (version(1), version(2));
    for (number, expect) in [(2, Expect::NoTag), (2, Expect::Version(version(3)))] {
        let refused = log.give(user(1), set("a", number, expect));
        assert_eq!(refused, Err(Refused::TagMoved { name: Box::new(model("a")), found: Some(first) }), "{expect:?}");
    }
    let refused = log.give(user(1), set("b", 2, Expect::Version(first)));
    assert_eq!(refused, Err(Refused::TagMoved { name: Box::new(model("b")), found: None }));
    log.give(user(1), set("a", 2, Expect::Version(first))).unwrap();
    log.give(user(1), set("a", 2, Expect::Version(first))).expect("it is there already");
    log.give(user(1), set("b", 2, Expect::NoTag)).unwrap();
    log.give(user(1), set("b", 3, Expect::Anything)).unwrap();
    assert_eq!((at(&log, "a"), at(&log, "b")), (Some(second), Some(version(3))));
    assert_eq!(log.give(user(1), set("a", 77, Expect::Anything)), Err(Refused::UnknownVersion(version(77))));
    assert_eq!(log.registry.tag(&model("a")).unwrap().history().count(), 2);
    audit(&log.registry);
}

#[test]
fn a_tag_rolls_back_to_any_of_its_history() {
    let mut log = stocked();
    let name = || model("a");
    let back = |to| Verb::RollbackTag { name: name(), to };
    assert_eq!(log.give(user(1), back(None)), Err(Refused::NothingBefore(name())));
    let first = log.registry.tag(&name()).unwrap().moved().index;
    for number in [2, 3] {
        log.give(user(1), set("a", number, Expect::Anything)).unwrap();
    }
    log.give(user(2), back(None)).unwrap();
    assert_eq!(at(&log, "a"), Some(version(2)));
    log.give(user(1), back(Some(first))).unwrap();
    assert_eq!(at(&log, "a"), Some(version(1)));
    assert_eq!(log.give(user(1), back(Some(999))), Err(Refused::NoSuchMove { tag: Box::new(name()), index: 999 }));
    log.give(user(1), Verb::ForgetVersions { versions: vec![version(2), version(3)] }).unwrap();
    assert_eq!(log.give(user(1), back(None)), Err(Refused::UnknownVersion(version(2))));
    let unknown = Verb::RollbackTag { name: model("z"), to: None };
    assert_eq!(log.give(user(1), unknown), Err(Refused::UnknownTag(model("z"))));
    let history: Vec<_> =
        log.registry.tag(&name()).unwrap().history().map(|moved| (moved.version, &moved.by)).collect();
    assert_eq!(history.len(), 5);
    assert_eq!(history[3], (version(2), &user(2)));
    audit(&log.registry);
}

#[test]
fn a_tag_remembers_its_last_moves() {
    let mut log = stocked();
    for turn in 0..40 {
        log.give(user(1), set("a", 2 + turn % 2, Expect::Anything)).unwrap();
    }
    let tag = log.registry.tag(&model("a")).unwrap();
    assert_eq!((tag.history().count(), tag.moved().index), (16, log.index));
    audit(&log.registry);
}

#[test]
fn a_pinned_tag_stays_and_so_does_what_it_was_before() {
    let mut log = stocked();
    log.give(user(1), set("a", 2, Expect::Anything)).unwrap();
    let (name, forget) = (|| model("a"), |number| Verb::ForgetVersions { versions: vec![version(number)] });
    log.give(user(1), Verb::PinTag { name: name(), pinned: true }).unwrap();
    for verb in
        [set("a", 3, Expect::Anything), Verb::RollbackTag { name: name(), to: None }, Verb::DeleteTag { name: name() }]
    {
        assert_eq!(log.give(user(1), verb), Err(Refused::Pinned(name())));
    }
    log.give(user(1), set("a", 2, Expect::Anything)).expect("it is there already");
    for number in [1, 2] {
        let refused = log.give(user(1), forget(number));
        assert_eq!(refused, Err(Refused::InUse { version: version(number), tag: Box::new(name()) }));
    }
    log.give(user(1), Verb::PinTag { name: name(), pinned: false }).unwrap();
    log.give(user(1), forget(1)).unwrap();
    assert!(log.registry.version(&version(1)).is_none());
    audit(&log.registry);

    // A rule that holds on to its copies does the same for their versions.
    log.give(user(1), set("a", 3, Expect::Anything)).unwrap();
    log.give(user(1), Verb::Place { name: name(), rule: Rule { pin: true, ..rule(1) } }).unwrap();
    assert_eq!(log.give(user(1), forget(2)), Err(Refused::InUse { version: version(2), tag: Box::new(name()) }));
    assert_eq!(
        log.give(user(1), Verb::PinTag { name: model("z"), pinned: true }),
        Err(Refused::UnknownTag(model("z")))
    );
}

#[test]
fn a_deleted_tag_comes_back_with_all_that_was_its_own_until_its_version_is_forgotten() {
    let mut log = stocked();
    let name = || model("a");
    log.give(user(1), set("a", 2, Expect::Anything)).unwrap();
    log.give(user(1), Verb::SetAlias { alias: model("b"), to: name() }).unwrap();
    log.give(user(1), Verb::SetAlias { alias: model("c"), to: name() }).unwrap();
    log.give(user(1), Verb::Place { name: name(), rule: rule(2) }).unwrap();
    let before = log.registry.tag(&name()).unwrap().clone();
    log.give(user(2), Verb::DeleteTag { name: model("A") }).unwrap();
    assert_eq!((at(&log, "a"), at(&log, "b"), log.registry.rules().count()), (None, None, 0));
    let (_, deleted) = log.registry.deleted_tags().next().unwrap();
    assert_eq!((&deleted.by, deleted.index), (&user(2), log.index));
    audit(&log.registry);

    log.give(user(1), set("c", 3, Expect::NoTag)).unwrap();
    log.give(user(1), Verb::RestoreTag { name: name() }).unwrap();
    assert_eq!(log.registry.tag(&name()), Some(&before));
    assert_eq!((at(&log, "b"), at(&log, "c")), (Some(version(2)), Some(version(3))));
    assert_eq!(log.registry.rule(&name()), Some(&rule(2)));
    assert_eq!(log.registry.deleted_tags().count(), 0);
    audit(&log.registry);

    log.give(user(1), Verb::DeleteTag { name: name() }).unwrap();
    log.give(user(1), set("a", 3, Expect::NoTag)).unwrap();
    assert_eq!(log.give(user(1), Verb::RestoreTag { name: name() }), Err(Refused::NameTaken(name())));
    log.give(user(1), Verb::ForgetVersions { versions: vec![version(2)] }).unwrap();
    assert_eq!(log.give(user(1), Verb::RestoreTag { name: name() }), Err(Refused::UnknownTag(name())));
    assert_eq!(log.give(user(1), Verb::DeleteTag { name: model("z") }), Err(Refused::UnknownTag(model("z"))));
    audit(&log.registry);
}

#[test]
fn an_alias_means_a_tag_and_nothing_else() {
    let mut log = stocked();
    let alias = |alias: &str, to: &str| Verb::SetAlias { alias: model(alias), to: model(to) };
    log.give(user(1), alias("fast", "a")).unwrap();
    log.give(user(1), set("b", 2, Expect::NoTag)).unwrap();
    assert_eq!(at(&log, "FAST"), Some(version(1)));
    log.give(user(1), alias("fast", "B")).unwrap();
    assert_eq!(at(&log, "fast"), Some(version(2)));
    assert_eq!(log.give(user(1), alias("a", "b")), Err(Refused::NameTaken(model("a"))), "it hides a tag");
    assert_eq!(log.give(user(1), alias("a", "a")), Err(Refused::NameTaken(model("a"))));
    assert_eq!(log.give(user(1), alias("faster", "fast")), Err(Refused::UnknownTag(model("fast"))), "a chain");
    assert_eq!(log.give(user(1), alias("x", "x")), Err(Refused::UnknownTag(model("x"))), "a ring");
    let taken = log.give(user(1), set("fast", 1, Expect::Anything));
    assert_eq!(taken, Err(Refused::NameTaken(model("fast"))));
    log.give(user(1), Verb::RemoveAlias { alias: model("fast") }).unwrap();
    assert_eq!(
        log.give(user(1), Verb::RemoveAlias { alias: model("fast") }),
        Err(Refused::UnknownAlias(model("fast")))
    );
    audit(&log.registry);
}

#[test]
fn a_rule_belongs_to_a_tag_and_says_something_that_can_be() {
    let mut log = stocked();
    let place = |name: &str, rule: Rule| Verb::Place { name: model(name), rule };
    log.give(user(1), place("a", rule(2))).unwrap();
    log.give(user(1), place("A", rule(3))).unwrap();
    assert_eq!(log.registry.rules().collect::<Vec<_>>(), [(&model("a"), &rule(3))]);
    assert_eq!(log.give(user(1), place("b", rule(2))), Err(Refused::UnknownTag(model("b"))));
    let labels = (0..9).map(|number| format!("l{number}=x").parse().unwrap()).collect();
    for (bad, full) in [
        (rule(0), false),
        (Rule { warm: 3, ..rule(2) }, false),
        (rule(1_025), true),
        (Rule { warm: 1_025, replicas: Replicas::All, ..rule(1) }, true),
        (Rule { on: labels, ..rule(1) }, true),
    ] {
        let refused = log.give(user(1), place("a", bad)).unwrap_err();
        assert_eq!(matches!(refused, Refused::Full { .. }), full, "{refused}");
        assert_eq!(matches!(refused, Refused::BadRule { .. }), !full, "{refused}");
    }
    log.give(user(1), Verb::Unplace { name: model("a") }).unwrap();
    assert_eq!(log.give(user(1), Verb::Unplace { name: model("a") }), Err(Refused::NoRule(model("a"))));
    audit(&log.registry);
}

#[test]
fn versions_are_given_to_members_all_at_once_or_not_at_all() {
    let mut log = stocked();
    let leader = Actor::Node(id(1));
    let assign = |versions: &[(u8, &[u8])]| {
        let given = |(number, nodes): &(u8, &[u8])| (version(*number), nodes.iter().map(|seed| id(*seed)).collect());
        Verb::Assign { versions: versions.iter().map(given).collect() }
    };
    let assigned = |log: &Log, number| log.registry.assigned(&version(number)).copied().collect::<BTreeSet<_>>();
    log.give(leader.clone(), assign(&[(1, &[1, 2, 4]), (2, &[2])])).unwrap();
    assert_eq!(assigned(&log, 1), [id(1), id(2), id(4)].into());
    let refused = log.give(leader.clone(), assign(&[(1, &[]), (77, &[1])]));
    assert_eq!(refused, Err(Refused::UnknownVersion(version(77))));
    let refused = log.give(leader.clone(), assign(&[(1, &[]), (2, &[9])]));
    assert_eq!(refused, Err(Refused::UnknownMember(id(9))));
    assert_eq!(assigned(&log, 1).len(), 3);
    log.give(user(1), Verb::RemoveMember { node: id(2) }).unwrap();
    assert_eq!((assigned(&log, 1), assigned(&log, 2)), ([id(1), id(4)].into(), BTreeSet::new()));
    audit(&log.registry);
    log.give(leader.clone(), assign(&[(1, &[]), (3, &[1])])).unwrap();
    log.give(leader, Verb::ForgetVersions { versions: vec![version(3)] }).unwrap();
    assert_eq!(log.registry.assignments().count(), 0);
    audit(&log.registry);
}

#[test]
fn only_what_nobody_needs_is_forgotten() {
    let mut log = stocked();
    let forget =
        |numbers: &[u8]| Verb::ForgetVersions { versions: numbers.iter().map(|number| version(*number)).collect() };
    let refused = log.give(user(1), forget(&[2, 1]));
    assert_eq!(refused, Err(Refused::InUse { version: version(1), tag: Box::new(model("a")) }));
    assert_eq!(log.registry.versions().count(), 3, "all or nothing");
    log.give(user(1), forget(&[2, 77])).unwrap();
    assert_eq!(log.registry.versions().count(), 2);
    audit(&log.registry);
}

#[test]
fn there_is_an_end_to_versions_tags_and_aliases() {
    let mut log = mesh();
    // Each as long as may be, from a worker: its share ends long before everybody's.
    let padded = |number: u32| {
        let mut text = manifest(&numbered(1)).to_vec();
        let width = 24 * 1024 - text.len();
        text.extend(format!("{number:>width$}").bytes());
        Verb::AddVersion { manifest: text.into(), layers: numbered(1).to_vec(), tag: None }
    };
    let mut outcomes = (0..400).map(|number| log.give(Actor::Node(id(4)), padded(number)));
    assert!(matches!(outcomes.find(Result::is_err), Some(Err(Refused::Full { limit: 524_288, .. }))));
    let taken = log.registry.versions().count();
    assert_eq!(taken, 21);
    let mut outcomes = (400..1_000).map(|number| log.give(Actor::Node(id(2)), padded(number)));
    assert!(matches!(outcomes.find(Result::is_err), Some(Err(Refused::Full { limit: 8_388_608, .. }))));

    let mut log = stocked();
    let mut outcomes = (0..3_000).map(|number| log.give(user(1), set(&format!("t{number}"), 1, Expect::Anything)));
    assert!(matches!(outcomes.find(Result::is_err), Some(Err(Refused::Full { limit: 2_048, .. }))));
    let refused = log.give(user(1), add(&numbered(9), Some("z")));
    assert!(matches!(refused, Err(Refused::Full { .. })) && log.registry.version(&version(9)).is_none(), "{refused:?}");
    let alias = |number| Verb::SetAlias { alias: model(&format!("x{number}")), to: model("a") };
    let mut outcomes = (0..2_000).map(|number| log.give(user(1), alias(number)));
    assert!(matches!(outcomes.find(Result::is_err), Some(Err(Refused::Full { limit: 1_024, .. }))));
    // A deletion is never refused, and keeps what was deleted last.
    for number in 0..300 {
        log.give(user(1), Verb::DeleteTag { name: model(&format!("t{number}")) }).unwrap();
    }
    assert_eq!(log.registry.deleted_tags().count(), 256);
    assert!(log.registry.deleted_tags().all(|(name, _)| *name != model("t0")));
    audit(&log.registry);
}

/// The longest thing a node may ask for: it fits into every frame on its way, the log's included.
#[test]
fn the_longest_version_fits_into_every_message() {
    let mut pieces: Vec<_> = (0..=u8::MAX).map(piece).take(224).collect();
    pieces.iter_mut().for_each(|piece| piece.size = u64::MAX);
    let mut text = manifest(&pieces[..150]).to_vec();
    text.resize(24 << 10, b' ');
    let host = "h".repeat(350);
    let part = "n".repeat(80);
    let tag = Some(model(&format!("{host}/{part}/{part}:{part}")));
    let verb = Verb::AddVersion { manifest: text.into(), layers: pieces, tag };
    let by = Actor::User { node: id(1), uid: u32::MAX };
    let mesh = MeshId::from_bytes([255; 16]);
    let proposal =
        crate::protocol::Proposal { mesh, id: RequestId::from_bytes([255; 16]), by: by.clone(), verb: verb.clone() };
    let proposal = crate::pack(&proposal);
    let signature = keypair(1).sign(&proposal);
    let ask = crate::pack(&crate::protocol::Ask::Write { proposal: Verbatim(proposal), signature });
    assert!(ask.len() < crate::protocol::ASK_SPEC.request_bytes_max);
    let command = Command { id: RequestId::from_bytes([255; 16]), at: UnixMillis(u64::MAX), by, verb };
    assert_eq!(codec::decode::<Command>(&crate::pack(&command)).unwrap(), command);
}

/// Every verb of the catalogue by everybody who could ask for it.
#[test]
fn who_may_change_the_catalogue() {
    let key = |scope| ApiKey {
        name: "k".into(),
        hash: KeyHash([0; 32]),
        scopes: [scope].into_iter().collect(),
        created_at: NOW,
        expires_at: None,
        limits: KeyLimits::NONE,
    };
    let keyed = || {
        let mut log = stocked();
        for (number, scope) in (1..).zip(Scope::ALL) {
            log.give(user(1), Verb::CreateKey { id: KeyId::from_bytes([number; 6]), key: key(scope) }).unwrap();
        }
        log
    };
    let holder = |seed, scope| {
        let number = (1..).zip(Scope::ALL).find(|(_, known)| *known == scope).unwrap().0;
        Actor::Key { node: id(seed), key: KeyId::from_bytes([number; 6]) }
    };
    let actors = [
        ("user", user(1)),
        ("models key", holder(1, Scope::Models)),
        ("admin key", holder(2, Scope::Admin)),
        ("anyone", Actor::Anonymous { node: id(1) }),
        ("voter", Actor::Node(id(1))),
        ("node", Actor::Node(id(2))),
        ("worker", Actor::Node(id(4))),
        ("user of a worker", user(4)),
        ("anyone at a worker", Actor::Anonymous { node: id(4) }),
        ("admin key at a worker", holder(4, Scope::Admin)),
        ("infer key", holder(1, Scope::Infer)),
        ("read key", holder(1, Scope::Read)),
        ("unknown key", Actor::Key { node: id(1), key: KeyId::from_bytes([99; 6]) }),
        ("stranger", Actor::Node(id(9))),
        ("user of a stranger", user(9)),
    ];
    let people = ["user", "models key", "admin key"];
    let ollamas = ["user", "models key", "admin key", "anyone"];
    let a = || model("a");
    let verbs: [(Verb, &[&str]); 13] = [
        (
            add(&numbered(9), None),
            &["user", "models key", "admin key", "anyone", "voter", "node", "worker", "user of a worker"],
        ),
        (add(&numbered(9), Some("z")), &["user", "models key", "admin key", "anyone", "voter", "node"]),
        (set("a", 2, Expect::Anything), &ollamas),
        (Verb::DeleteTag { name: a() }, &ollamas),
        (Verb::RestoreTag { name: model("gone") }, &people),
        (Verb::PinTag { name: a(), pinned: true }, &people),
        (Verb::RollbackTag { name: a(), to: None }, &people),
        (Verb::SetAlias { alias: model("b"), to: a() }, &people),
        (Verb::RemoveAlias { alias: model("old") }, &people),
        (Verb::Place { name: a(), rule: rule(1) }, &people),
        (Verb::Unplace { name: a() }, &people),
        (Verb::Assign { versions: vec![(version(1), [id(1)].into())] }, &["voter"]),
        (Verb::ForgetVersions { versions: vec![version(3)] }, &["user", "models key", "admin key", "voter", "node"]),
    ];
    for (verb, allowed) in &verbs {
        for (who, by) in &actors {
            let mut log = keyed();
            let before = log.registry.ground.clone();
            let outcome = log.give(by.clone(), verb.clone());
            let denied =
                matches!(outcome, Err(Refused::Denied(..) | Refused::UnknownKey(_) | Refused::UnknownMember(_)));
            assert_eq!(!denied, allowed.contains(who), "{who}: {verb:?}: {outcome:?}");
            assert!(!denied || log.registry.ground == before, "{who}: {verb:?}");
        }
    }
    let mut log = keyed();
    log.set("api.anonymous", "infer,read").unwrap();
    let anyone = Actor::Anonymous { node: id(1) };
    assert!(matches!(log.give(anyone.clone(), set("a", 2, Expect::Anything)), Err(Refused::Denied(..))));
    // Nor does it open anything else that its node may do for itself.
    for verb in [Verb::SetDrain { node: id(1), drain: true }, Verb::RemoveMember { node: id(1) }] {
        assert!(matches!(log.give(anyone.clone(), verb), Err(Refused::Denied(..))));
    }
}

/// Catalogues are new: without one a registry is written as before, and with one it reads what it wrote.
#[test]
fn a_registry_has_the_bytes_it_always_had_until_it_has_a_catalogue() {
    let mut log = mesh();
    assert_eq!(crate::pack(&log.registry)[2], 1, "an option that holds the mesh");
    log.give(user(1), add(&numbered(1), Some("a"))).unwrap();
    log.give(user(1), Verb::Place { name: model("a"), rule: rule(2) }).unwrap();
    log.give(user(1), Verb::SetAlias { alias: model("b"), to: model("a") }).unwrap();
    log.give(Actor::Node(id(1)), Verb::Assign { versions: vec![(version(1), [id(1)].into())] }).unwrap();

    let ground = crate::statement(&log.registry.ground);
    let [at, index] = [codec::to_bytes(&NOW).unwrap(), vec![u8::try_from(log.index).unwrap() - 3]];
    let manifest = manifest(&numbered(1));
    let mut sorted = numbered(1);
    sorted.sort();
    let pieces =
        sorted.iter().flat_map(|piece| [&piece.digest.as_bytes()[..], &piece.hash.as_bytes()[..], &[1]].concat());
    let length = u16::try_from(manifest.len()).unwrap().to_le_bytes();
    let user = [&[1][..], id(1).public_key(), &[251, 0xe8, 0x03]].concat();
    let (first, node) = (version(1), id(1));
    let golden = [
        &[2, 1][..],
        &[9; 16],
        &at,
        &[5],
        // versions
        &[1, 1],
        first.as_bytes(),
        &[251],
        &length,
        &manifest,
        &[2],
        &pieces.collect::<Vec<_>>(),
        &index,
        &at,
        node.public_key(),
        // tags
        &[2, 1, 8],
        b"a:latest",
        &[0, 1],
        first.as_bytes(),
        &index,
        &at,
        &user,
        // aliases
        &[4, 1, 8],
        b"b:latest",
        &[8],
        b"a:latest",
        // rules
        &[5, 1, 8],
        b"a:latest",
        &[1, 2, 1, 3],
        b"gpu",
        &[4],
        b"4090",
        &[1, 4],
        b"disk",
        &[4],
        b"slow",
        &[0, 0],
        // assignments
        &[6, 1],
        first.as_bytes(),
        &[1],
        node.public_key(),
    ];
    assert_eq!(ground, golden.concat());
    let again: Registry = codec::decode(&crate::pack(&log.registry)).unwrap();
    assert_eq!((again.hash(), &again), (log.registry.hash(), &log.registry));
}

/// These bytes are on disks. If this test fails, the version must rise and the old form must still be read.
#[test]
fn the_verbs_of_the_catalogue_have_the_bytes_they_always_had() {
    let (name, digest) = (|| model("a"), Digest::from_bytes([7; 32]));
    let named = |start: &[u8], end: &[u8]| [start, &[8], b"a:latest", end].concat();
    let manifest: Verbatim = b"{}".to_vec().into();
    let layers = vec![Piece { digest, hash: BlobHash::from_bytes([8; 32]), size: 5 }];
    let by = |expect| Verb::SetTag { name: name(), version: digest, expect };
    let set = |end: &[u8]| named(&[16], &[&[7; 32][..], end].concat());
    let small = Rule { replicas: Replicas::All, on: BTreeSet::new(), never: BTreeSet::new(), warm: 3, pin: true };
    for (verb, golden) in [
        (
            Verb::AddVersion { manifest, layers, tag: Some(name()) },
            [&[15, 2][..], b"{}", &[1], &[7; 32], &[8; 32], &[5, 1, 8], b"a:latest"].concat(),
        ),
        (by(Expect::Anything), set(&[0])),
        (by(Expect::NoTag), set(&[1])),
        (by(Expect::Version(digest)), set(&[&[2][..], &[7; 32]].concat())),
        (Verb::DeleteTag { name: name() }, named(&[17], &[])),
        (Verb::RestoreTag { name: name() }, named(&[18], &[])),
        (Verb::PinTag { name: name(), pinned: true }, named(&[19], &[1])),
        (Verb::RollbackTag { name: name(), to: Some(4) }, named(&[20], &[1, 4])),
        (Verb::SetAlias { alias: name(), to: name() }, named(&named(&[21], &[]), &[])),
        (Verb::RemoveAlias { alias: name() }, named(&[22], &[])),
        (Verb::Place { name: name(), rule: small }, named(&[23], &[0, 0, 0, 3, 1])),
        (Verb::Unplace { name: name() }, named(&[24], &[])),
        (
            Verb::Assign { versions: vec![(digest, [NodeId::from_public_key([9; 32])].into())] },
            [&[25, 1][..], &[7; 32], &[1], &[9; 32]].concat(),
        ),
        (Verb::ForgetVersions { versions: vec![digest] }, [&[26, 1][..], &[7; 32]].concat()),
    ] {
        assert_eq!(crate::statement(&verb), golden, "{verb:?}");
        assert_eq!(codec::from_bytes::<Verb>(&golden).unwrap(), verb);
    }
}

fn any_verb() -> impl Strategy<Value = (Actor, Verb)> {
    let name = || prop_oneof!["[ab]", "[ab]:[xy]", "[AB]"].prop_map(|text| model(&text));
    let number = 1_u8..6;
    let content = (number.clone(), number.clone(), any::<bool>()).prop_map(|(config, layer, honest)| {
        let told = if honest { layer } else { layer + 50 };
        [piece(config), Piece { hash: BlobHash::of(&[told]), ..piece(layer + 100) }]
    });
    // Of the same two blobs, so that versions share layers.
    let version =
        || (1_u8..6, 1_u8..6).prop_map(|(config, layer)| Digest::of(&manifest(&[piece(config), piece(layer + 100)])));
    let expect = prop_oneof![Just(Expect::Anything), Just(Expect::NoTag), version().prop_map(Expect::Version)];
    let nodes = proptest::collection::btree_set((1_u8..5).prop_map(id), 0..4);
    let rules = (0_u32..4, 0_u32..3, any::<bool>());
    let verb = prop_oneof![
        6 => (content, proptest::option::of(name())).prop_map(|(pieces, tag)| Verb::AddVersion {
            manifest: manifest(&pieces),
            layers: pieces.to_vec(),
            tag,
        }),
        3 => (name(), version(), expect).prop_map(|(name, version, expect)| Verb::SetTag { name, version, expect }),
        2 => name().prop_map(|name| Verb::DeleteTag { name }),
        2 => name().prop_map(|name| Verb::RestoreTag { name }),
        1 => (name(), any::<bool>()).prop_map(|(name, pinned)| Verb::PinTag { name, pinned }),
        2 => (name(), proptest::option::of(0_u64..60)).prop_map(|(name, to)| Verb::RollbackTag { name, to }),
        2 => (name(), name()).prop_map(|(alias, to)| Verb::SetAlias { alias, to }),
        1 => name().prop_map(|alias| Verb::RemoveAlias { alias }),
        1 => (name(), rules).prop_map(|(name, (count, warm, pin))| Verb::Place {
            name,
            rule: Rule { warm, pin, ..rule(count) },
        }),
        1 => name().prop_map(|name| Verb::Unplace { name }),
        2 => (version(), nodes).prop_map(|(version, nodes)| Verb::Assign { versions: vec![(version, nodes)] }),
        2 => proptest::collection::vec(version(), 1..4).prop_map(|versions| Verb::ForgetVersions { versions }),
        1 => Just(Verb::RemoveMember { node: id(3) }),
    ];
    let by = prop_oneof![
        4 => (1_u8..4).prop_map(user),
        2 => (1_u8..5).prop_map(|seed| Actor::Node(id(seed))),
        1 => Just(Actor::Anonymous { node: id(1) }),
    ];
    (by, verb)
}

proptest! {
    /// Whatever is asked in whatever order: what must hold holds, a refusal changes nothing, no worker moves a tag, and
    /// the same log gives the same registry, also to one that was read from its bytes half-way.
    #[test]
    fn no_order_of_changes_breaks_the_catalogue(verbs in proptest::collection::vec(any_verb(), 1..80)) {
        let (mut log, mut twin) = (mesh(), mesh());
        let half = verbs.len() / 2;
        for (turn, (by, verb)) in verbs.into_iter().enumerate() {
            let before = log.registry.ground.clone();
            let outcome = log.give(by.clone(), verb.clone());
            prop_assert_eq!(&outcome, &twin.give(by.clone(), verb));
            if turn == half {
                twin.registry = codec::decode(&crate::pack(&twin.registry)).unwrap();
            }
            prop_assert!(outcome.is_ok() || log.registry.ground == before);
            prop_assert!(by.node() != id(4) || log.registry.ground.tags == before.tags);
            audit(&log.registry);
        }
        prop_assert_eq!(log.registry.hash(), twin.registry.hash());
        prop_assert_eq!(log.registry, twin.registry);
    }
}
