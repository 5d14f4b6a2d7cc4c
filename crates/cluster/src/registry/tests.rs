use std::num::NonZeroU32;
use std::time::Duration;

use net::Keypair;
use types::{Label, Role, Scope};

use super::members::join_statement;
use super::*;

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
const HOUR: Duration = Duration::from_secs(3_600);

struct Log {
    registry: Registry,
    index: u64,
}

fn keypair(seed: u8) -> Keypair {
    Keypair::from_seed([seed; 32])
}

fn candidate(seed: u8) -> Candidate {
    let name = "box".parse().unwrap();
    let addresses = Addresses { mesh: Vec::new(), bulk: vec!["10.0.0.1:11437".parse().unwrap()] };
    Candidate { id: keypair(seed).node_id(), name, addresses, incarnation: [seed; 16] }
}

fn user(seed: u8) -> Actor {
    Actor::User { node: keypair(seed).node_id(), uid: 1000 }
}

impl Log {
    fn founded() -> Self {
        let mut log = Self { registry: Registry::default(), index: 1 };
        let verb = Verb::Found { mesh: MeshId::from_bytes([9; 16]), member: candidate(1) };
        log.give(Actor::Node(keypair(1).node_id()), verb).unwrap();
        log
    }

    fn give(&mut self, by: Actor, verb: Verb) -> Outcome {
        self.index += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.index.to_be_bytes());
        self.registry.apply(self.index, &Command { id: RequestId::from_bytes(id), at: NOW, by, verb })
    }

    fn token(&mut self, seed: u8, role: Role, uses_left: u32) -> Keypair {
        let key = keypair(seed);
        let token = JoinToken { role, uses_left, created_at: NOW, expires_at: NOW.after(HOUR) };
        self.give(user(1), Verb::CreateToken { id: TokenId::of(key.node_id()), token }).unwrap();
        key
    }

    fn join(&mut self, token: &Keypair, joiner: Candidate) -> Outcome {
        let (acceptor, nonce) = (keypair(1).node_id(), [5; 32]);
        let mesh = self.registry.mesh().unwrap().id;
        let signature = token.sign(&join_statement(mesh, &joiner, acceptor, &nonce));
        let proof = Proof { token: TokenId::of(token.node_id()), joiner, acceptor, nonce, signature };
        self.give(Actor::Node(acceptor), Verb::AddMember(Box::new(proof)))
    }

    fn set(&mut self, key: &str, value: &str) -> Outcome {
        self.give(user(1), Verb::SetConfig { key: key.into(), value: value.into(), expect: None })
    }
}

#[test]
fn a_member_votes_under_the_index_that_added_it_and_under_a_new_one_once_it_has_lost_its_disk() {
    let mut log = Log::founded();
    let token = log.token(50, Role::Node, 1);
    let first = log.join(&token, candidate(2)).unwrap();
    assert!(matches!(first, Done::Joined { raft, .. } if raft == RaftId(log.index)));
    let reborn = Candidate { incarnation: [77; 16], ..candidate(2) };
    let second = log.join(&token, reborn).unwrap();
    assert!(matches!(second, Done::Joined { raft, .. } if raft == RaftId(log.index)), "{second:?}");
    assert_eq!(log.registry.members().count(), 2);
}

#[test]
fn a_join_repeated_by_the_same_joiner_costs_no_second_use() {
    let mut log = Log::founded();
    let token = log.token(50, Role::Node, 1);
    let Done::Joined { raft, .. } = log.join(&token, candidate(2)).unwrap() else { panic!() };
    let again = log.join(&token, candidate(2)).unwrap();
    assert!(matches!(again, Done::Joined { raft: same, .. } if same == raft));
    assert_eq!(log.join(&token, candidate(3)), Err(Refused::TokenUsedUp));
}

#[test]
fn a_name_that_is_taken_gets_a_number() {
    let mut log = Log::founded();
    let token = log.token(50, Role::Node, 2);
    log.join(&token, candidate(2)).unwrap();
    log.join(&token, candidate(3)).unwrap();
    let names: Vec<_> = log.registry.members().map(|member| member.name.to_string()).collect();
    assert!(["box", "box-2", "box-3"].iter().all(|name| names.contains(&(*name).to_owned())), "{names:?}");
}

#[test]
fn a_proof_made_for_another_joiner_or_mesh_or_acceptor_opens_nothing() {
    let mut log = Log::founded();
    let token = log.token(50, Role::Node, 9);
    let (acceptor, nonce) = (keypair(1).node_id(), [5; 32]);
    let mesh = log.registry.mesh().unwrap().id;
    let sign = |mesh, joiner: &Candidate, acceptor, nonce| token.sign(&join_statement(mesh, joiner, acceptor, nonce));
    let other = keypair(8).node_id();
    for signature in [
        sign(mesh, &candidate(3), acceptor, &nonce),
        sign(MeshId::from_bytes([0; 16]), &candidate(2), acceptor, &nonce),
        sign(mesh, &candidate(2), other, &nonce),
        sign(mesh, &candidate(2), acceptor, &[6; 32]),
        keypair(51).sign(&join_statement(mesh, &candidate(2), acceptor, &nonce)),
    ] {
        let token = TokenId::of(token.node_id());
        let proof = Proof { token, joiner: candidate(2), acceptor, nonce, signature };
        let outcome = log.give(Actor::Node(acceptor), Verb::AddMember(Box::new(proof)));
        assert_eq!(outcome, Err(Refused::TokenProof));
    }
}

#[test]
fn only_admins_of_nodes_change_the_mesh() {
    let mut log = Log::founded();
    let token = log.token(50, Role::Worker, 1);
    log.join(&token, candidate(2)).unwrap();
    let key = |scope| ApiKey {
        name: "k".into(),
        hash: KeyHash([0; 32]),
        scopes: [scope].into_iter().collect(),
        created_at: NOW,
        expires_at: None,
        limits: KeyLimits::NONE,
    };
    let (admin, reader) = (KeyId::from_bytes([1; 6]), KeyId::from_bytes([2; 6]));
    log.give(user(1), Verb::CreateKey { id: admin.clone(), key: key(Scope::Admin) }).unwrap();
    log.give(user(1), Verb::CreateKey { id: reader.clone(), key: key(Scope::Read) }).unwrap();
    let node = keypair(1).node_id();
    let verb = || Verb::SetConfig { key: "mesh.name".into(), value: "x".into(), expect: None };
    for (by, allowed) in [
        (user(1), true),
        (Actor::Key { node, key: admin.clone() }, true),
        (Actor::Key { node, key: reader }, false),
        (Actor::Key { node, key: KeyId::from_bytes([3; 6]) }, false),
        (Actor::Key { node: keypair(2).node_id(), key: admin }, false),
        (Actor::Node(node), false),
        (user(2), false),
        (user(9), false),
    ] {
        assert_eq!(log.give(by.clone(), verb()).is_ok(), allowed, "{by}");
    }
}

#[test]
fn a_removed_node_is_barred_and_the_last_node_cannot_be_removed() {
    let mut log = Log::founded();
    let token = log.token(50, Role::Node, 5);
    log.join(&token, candidate(2)).unwrap();
    let node = keypair(2).node_id();
    log.give(user(1), Verb::RemoveMember { node }).unwrap();
    assert_eq!(log.join(&token, candidate(2)), Err(Refused::Barred(node)));
    let last = keypair(1).node_id();
    assert_eq!(log.give(user(1), Verb::RemoveMember { node: last }), Err(Refused::LastVoter(last)));
}

#[test]
fn the_only_voter_of_several_members_cannot_be_removed() {
    let mut log = Log::founded();
    let token = log.token(50, Role::Node, 5);
    log.join(&token, candidate(2)).unwrap();
    let alone = Seats { voters: [RaftId(1)].into(), ..Seats::default() };
    log.registry.seat(log.index, alone);
    let node = keypair(1).node_id();
    assert_eq!(log.give(user(1), Verb::RemoveMember { node }), Err(Refused::LastVoter(node)));
    log.give(user(1), Verb::RemoveMember { node: keypair(2).node_id() }).unwrap();
}

#[test]
fn a_setting_keeps_its_history_and_rolls_back_to_any_of_it() {
    let mut log = Log::founded();
    let first = log.set("voters.max", "3").unwrap().index();
    log.set("voters.max", "7").unwrap();
    assert_eq!(log.registry.settings().voters_max(), 7);
    log.give(user(1), Verb::RollbackConfig { key: "voters.max".into(), to: first }).unwrap();
    assert_eq!(log.registry.settings().get("voters.max").unwrap(), ("3", log.index));
    log.give(user(1), Verb::RollbackConfig { key: "voters.max".into(), to: 0 }).unwrap();
    assert_eq!(log.registry.settings().voters_max(), 5);
    let missing = log.give(user(1), Verb::RollbackConfig { key: "voters.max".into(), to: 999 });
    assert_eq!(missing, Err(Refused::NoSuchChange { key: "voters.max".into(), index: 999 }));
    assert_eq!(log.registry.settings().history("voters.max").unwrap().count(), 4);
}

#[test]
fn a_setting_written_on_an_old_index_is_refused() {
    let mut log = Log::founded();
    let seen = log.set("mesh.name", "a").unwrap().index();
    log.set("mesh.name", "b").unwrap();
    let verb = Verb::SetConfig { key: "mesh.name".into(), value: "c".into(), expect: Some(seen) };
    assert!(matches!(log.give(user(1), verb), Err(Refused::Conflict { expected, .. }) if expected == seen));
    assert_eq!(log.registry.settings().mesh_name(), "b");
}

#[test]
fn unknown_settings_get_a_suggestion_and_bad_values_a_reason() {
    let mut log = Log::founded();
    let near = log.set("voter.max", "3").unwrap_err();
    assert_eq!(near, Refused::UnknownSetting { key: "voter.max".into(), suggestion: Some("voters.max".into()) });
    assert!(matches!(log.set("xyzzy", "3"), Err(Refused::UnknownSetting { suggestion: None, .. })));
    for (key, value) in [("voters.max", "4"), ("api.anonymous", "admin"), ("voters.replace_after_s", "-1")] {
        assert!(matches!(log.set(key, value), Err(Refused::BadValue { .. })), "{key} {value}");
    }
    log.set("api.anonymous", "none").unwrap();
    assert!(log.registry.settings().anonymous().is_empty());
}

#[test]
fn every_default_passes_its_own_check() {
    for definition in Settings::definitions() {
        let mut log = Log::founded();
        log.set(definition.key, definition.default).unwrap();
    }
}

#[test]
fn a_request_sent_twice_is_carried_out_once() {
    let mut log = Log::founded();
    let verb = Verb::SetConfig { key: "mesh.name".into(), value: "a".into(), expect: Some(0) };
    let command = Command { id: RequestId::from_bytes([3; 16]), at: NOW, by: user(1), verb };
    let first = log.registry.apply(10, &command);
    assert_eq!(log.registry.apply(11, &command), first);
    assert_eq!(log.registry.settings().history("mesh.name").unwrap().count(), 1);
}

#[test]
fn the_same_log_gives_the_same_hash_and_survives_its_own_bytes() {
    let run = || {
        let mut log = Log::founded();
        let token = log.token(50, Role::Node, 5);
        log.join(&token, candidate(2)).unwrap();
        log.set("mesh.name", "a").unwrap();
        let set = vec![Label { key: "gpu".into(), value: "4090".into() }];
        let node = keypair(2).node_id();
        log.give(user(1), Verb::SetLabels { node, set, unset: Vec::new() }).unwrap();
        log.registry
    };
    let registry = run();
    assert_eq!(registry.hash(), run().hash());
    let again: Registry = codec::decode(&crate::pack(&registry)).unwrap();
    assert_eq!((again.hash(), &again), (registry.hash(), &registry));
}

/// These bytes are on disks. If this test fails, the version must rise and the old form must still be read.
#[test]
fn a_command_has_the_bytes_it_always_had() {
    let by = Actor::User { node: NodeId::from_public_key([1; 32]), uid: 7 };
    let verb = Verb::SetConfig { key: "k".into(), value: "v".into(), expect: Some(3) };
    let command = Command { id: RequestId::from_bytes([2; 16]), at: UnixMillis(4), by, verb };
    let mut golden = vec![1];
    golden.extend([2; 16]);
    golden.push(4);
    golden.push(1);
    golden.extend([1; 32]);
    golden.push(7);
    golden.extend([8, 1, b'k', 1, b'v', 1, 3]);
    assert_eq!(crate::pack(&command), golden);
}

/// Keys made before keys had limits are read, and a key without limits is written as it always was.
#[test]
fn a_key_has_the_bytes_it_always_had_until_it_has_limits() {
    let (unlimited, hash) = (KeyLimits::NONE, KeyHash([5; 32]));
    let scopes: types::Scopes = [Scope::Infer, Scope::Read].into_iter().collect();
    let limits = |concurrent, per_minute| KeyLimits {
        concurrent: NonZeroU32::new(concurrent),
        per_minute: NonZeroU32::new(per_minute),
    };
    for (expires_at, limits, terms) in [
        (None, unlimited, &[0][..]),
        (Some(UnixMillis(7)), unlimited, &[1, 7]),
        (None, limits(2, 0), &[2, 0, 1, 2, 0]),
        (Some(UnixMillis(7)), limits(0, 9), &[2, 1, 7, 0, 1, 9]),
    ] {
        let key = ApiKey { name: "k".into(), hash, scopes, created_at: UnixMillis(4), expires_at, limits };
        let golden = [&[1, b'k'][..], &[5; 32], &[2, 0, 1], &[4], terms].concat();
        assert_eq!(crate::statement(&key), golden);
        assert_eq!(codec::from_bytes::<ApiKey>(&golden).unwrap(), key);
    }
    // A limit of nothing at all is no limit that was ever written.
    let zero = [&[1, b'k'][..], &[5; 32], &[0], &[4], &[2, 0, 1, 0, 0]].concat();
    assert!(codec::from_bytes::<ApiKey>(&zero).is_err());
}

#[test]
fn a_key_that_is_shown_brings_its_limits() {
    let mut log = Log::founded();
    let new = crate::NewKey::from_random([7; 32], [1; 6]);
    let limits = KeyLimits { concurrent: NonZeroU32::new(3), per_minute: None };
    let scopes = types::Scopes::NONE.with(Scope::Infer);
    let key = ApiKey { name: "k".into(), hash: new.hash(), scopes, created_at: NOW, expires_at: None, limits };
    log.give(user(1), Verb::CreateKey { id: new.id.clone(), key }).unwrap();
    let again: Registry = codec::decode(&crate::pack(&log.registry)).unwrap();
    let grant = Grant { key: new.id.clone(), scopes, limits };
    assert_eq!(again.authenticate(new.text.expose(), NOW), Some(grant));
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn enroll(text: &str, url: &str, node: Option<NodeId>) -> Verb {
    Verb::EnrollBackend { name: name(text), url: url.into(), node }
}

/// A mesh of three nodes and a worker, by seeds 1 to 4.
fn four() -> Log {
    let mut log = Log::founded();
    let (nodes, workers) = (log.token(50, Role::Node, 2), log.token(51, Role::Worker, 1));
    log.join(&nodes, candidate(2)).unwrap();
    log.join(&nodes, candidate(3)).unwrap();
    log.join(&workers, candidate(4)).unwrap();
    log
}

#[test]
fn a_backend_is_enrolled_once_and_taken_out_by_its_name() {
    let mut log = Log::founded();
    let before = log.registry.hash();
    log.give(user(1), enroll("attic", "http://10.0.0.9:11434", None)).unwrap();
    let enrolled = Enrolled { url: "http://10.0.0.9:11434".into(), node: None, enrolled_at: NOW };
    assert_eq!(log.registry.backends().collect::<Vec<_>>(), [(&name("attic"), &enrolled)]);
    assert_ne!(log.registry.hash(), before);
    for (text, url) in [("attic", "http://10.0.0.8:11434"), ("cellar", "http://10.0.0.9:11434")] {
        assert_eq!(log.give(user(1), enroll(text, url, None)), Err(Refused::BackendTaken(name("attic"))));
    }
    let stranger = keypair(9).node_id();
    let refused = log.give(user(1), enroll("den", "http://den:1", Some(stranger)));
    assert_eq!(refused, Err(Refused::UnknownMember(stranger)));
    let long = log.give(user(1), enroll("den", &"x".repeat(301), None));
    assert!(matches!(long, Err(Refused::Full { .. })));
    log.give(user(1), Verb::RemoveBackend { name: name("attic") }).unwrap();
    let gone = log.give(user(1), Verb::RemoveBackend { name: name("attic") });
    assert_eq!(gone, Err(Refused::UnknownBackend(name("attic"))));
    assert_eq!(log.registry.backends().count(), 0);
    let told: Vec<_> = log.registry.journal().map(|entry| entry.what.as_str()).collect();
    assert!(told.contains(&"enroll backend attic at http://10.0.0.9:11434"), "{told:?}");
}

#[test]
fn there_is_an_end_to_how_many_backends_a_mesh_can_enroll() {
    let mut log = Log::founded();
    for number in 0..1_024 {
        log.give(user(1), enroll(&format!("b{number}"), &format!("http://b{number}:1"), None)).unwrap();
    }
    let full = log.give(user(1), enroll("one-more", "http://one-more:1", None));
    assert!(matches!(full, Err(Refused::Full { limit: 1_024, .. })), "{full:?}");
}

#[test]
fn only_admins_enroll_backends() {
    let mut log = four();
    for by in [user(4), Actor::Node(keypair(1).node_id()), user(9)] {
        for verb in [enroll("attic", "http://attic:1", None), Verb::RemoveBackend { name: name("attic") }] {
            let refused = log.give(by.clone(), verb);
            assert!(matches!(refused, Err(Refused::Denied(..) | Refused::UnknownMember(_))), "{by}: {refused:?}");
        }
    }
}

#[test]
fn backends_are_shared_out_over_the_nodes_that_are_up_and_take_work() {
    let mut log = four();
    let names: Vec<_> = (0..60).map(|number| name(&format!("b{number}"))).collect();
    for name in &names {
        log.give(user(1), enroll(name.as_str(), &format!("http://{name}:1"), None)).unwrap();
    }
    let [first, second, third, worker] = [1, 2, 3, 4].map(|seed| keypair(seed).node_id());
    let hosts = |log: &Log, down: Option<NodeId>| -> Vec<_> {
        names.iter().map(|name| log.registry.backend_host(name, |node| Some(*node) != down)).collect()
    };
    let all = hosts(&log, None);
    for node in [first, second, third] {
        let share = all.iter().filter(|host| **host == Some(node)).count();
        assert!((8..=35).contains(&share), "{share} of 60");
    }
    assert!(!all.contains(&Some(worker)), "a worker acts on its own machine alone");
    // Whoever goes down, or is drained, gives its own to the others, and nothing else moves.
    let without = hosts(&log, Some(second));
    for (before, after) in all.iter().zip(&without) {
        assert!(after.is_some() && *after != Some(second));
        assert!(*before == Some(second) || before == after);
    }
    log.give(user(1), Verb::SetDrain { node: second, drain: true }).unwrap();
    assert_eq!(hosts(&log, None), without);
    assert_eq!(log.registry.backend_host(&names[0], |_| false), None);
    assert_eq!(log.registry.backend_host(&name("absent"), |_| true), None);
}

#[test]
fn a_backend_behind_one_node_has_no_other() {
    let mut log = four();
    let worker = keypair(4).node_id();
    log.give(user(1), enroll("attic", "http://127.0.0.1:9", Some(worker))).unwrap();
    let host = |log: &Log| log.registry.backend_host(&name("attic"), |_| true);
    assert_eq!(host(&log), Some(worker));
    assert_eq!(log.registry.backend_host(&name("attic"), |node| *node != worker), None);
    log.give(user(1), Verb::SetDrain { node: worker, drain: true }).unwrap();
    assert_eq!(host(&log), None);
    log.give(user(1), Verb::RemoveMember { node: worker }).unwrap();
    assert_eq!(host(&log), None);
}

/// A registry without backends is written as before there were any, and what was written then is read.
#[test]
fn a_registry_has_the_bytes_it_always_had_until_it_has_backends() {
    let mut log = Log::founded();
    let before = crate::pack(&log.registry);
    assert_eq!(before[..3], [1, 2, 1], "version, index, and an option that holds the mesh");
    assert_eq!(before[3..19], [9; 16]);
    assert_eq!(crate::pack(&Registry::default())[..3], [1, 0, 0]);

    log.give(user(1), enroll("den", "http://den:1", None)).unwrap();
    let after = crate::pack(&log.registry);
    assert_eq!((after[..4].to_vec(), &after[4..20]), (vec![1, 3, 2, 1], &[9; 16][..]));
    let founded_at = codec::to_bytes(&NOW).unwrap();
    let section = [&[1, 0, 1, 3][..], b"den", &[12], b"http://den:1", &[0], &founded_at, &[1]].concat();
    assert_eq!(after[20..20 + founded_at.len()], founded_at);
    assert_eq!(after[20 + founded_at.len()..][..section.len()], section);
    let again: Registry = codec::decode(&after).unwrap();
    assert_eq!((again.hash(), &again), (log.registry.hash(), &log.registry));
}

mod catalogue;
