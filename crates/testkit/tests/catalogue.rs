//! The catalogue of models on its way through a mesh: as long as it may be, from wherever it comes.

use std::collections::BTreeSet;
use std::time::Duration;

use cluster::{Actor, Error, Expect, Piece, Refused, Verb};
use ollama::{Digest, ModelName};
use testkit::{World, on_seeds, sleep};
use types::{BlobHash, Role};

/// As long as a manifest may be; each of its own content.
fn longest(number: u32) -> (Digest, Vec<u8>, Vec<Piece>) {
    let piece = |layer: u32| {
        let content = [number.to_be_bytes(), layer.to_be_bytes()].concat();
        Piece { digest: Digest::of(&content), hash: BlobHash::of(&content), size: u64::from(layer) }
    };
    let pieces: Vec<_> = (0..180).map(piece).collect();
    let blob = |piece: &Piece| format!(r#"{{"mediaType":"x","digest":"{}","size":{}}}"#, piece.digest, piece.size);
    let layers: Vec<_> = pieces.iter().skip(1).map(blob).collect();
    let config = blob(&pieces[0]);
    let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(","));
    let width = 24 << 10;
    let manifest = format!("{text:<width$}").into_bytes();
    (Digest::of(&manifest), manifest, pieces)
}

fn add(number: u32, tag: Option<&str>) -> Verb {
    let (_, manifest, layers) = longest(number);
    Verb::AddVersion { manifest: manifest.into(), layers, tag: tag.map(model) }
}

fn model(text: &str) -> ModelName {
    text.parse().expect("these tests' names are good")
}

fn by_itself(world: &World, number: usize) -> Actor {
    Actor::Node(world.nodes[&number].id)
}

/// Sixty of the longest versions are more than a follower is sent in steps, more than one message between voters, and a larger
/// snapshot than any before. They come from whoever leads, from whoever votes, from others and from a worker.
#[test]
fn the_longest_versions_reach_every_node_and_come_back_with_it() {
    on_seeds(1, async |world| {
        world.mesh(4).await;
        world.join(4, Role::Worker).await;
        for number in 0..60_u32 {
            let from = number as usize % 4;
            let tag = format!("m:{number}");
            world.cluster(from).write(by_itself(world, from), add(number, Some(&tag))).await.unwrap();
        }
        world.cluster(4).write(by_itself(world, 4), add(60, None)).await.unwrap();
        world.converge().await;
        for number in 0..5 {
            world.kill(number).await;
            sleep(Duration::from_secs(3)).await;
            world.start(number).await;
        }
        world.converge().await;
        for number in 0..5 {
            let seen = world.cluster(number).view(|registry| (registry.versions().count(), registry.tags().count()));
            assert_eq!(seen, (61, 60), "node {number}");
            let (digest, manifest, pieces) = longest(42);
            world.cluster(number).view(|registry| {
                let version = registry.version(&digest).expect("it was added");
                assert_eq!((&version.manifest[..], version.layers.len()), (&manifest[..], 180));
                assert_eq!(registry.binding(&pieces[7].digest), Some(&pieces[7]));
                assert_eq!(registry.resolve(&model("M:42")), Some(digest));
            });
        }
    });
}

#[test]
fn a_worker_has_no_say_in_what_a_name_means() {
    on_seeds(1, async |world| {
        world.mesh(3).await;
        world.join(3, Role::Worker).await;
        let (worker, me) = (world.cluster(3), world.nodes[&3].id);
        world.cluster(0).write(by_itself(world, 0), add(1, Some("llama3"))).await.unwrap();
        worker.write(Actor::Node(me), add(2, None)).await.expect("it says what it has");
        let (name, version) = (|| model("llama3"), longest(2).0);
        for by in [Actor::Node(me), Actor::User { node: me, uid: 0 }, Actor::Anonymous { node: me }, world.admin(0)] {
            for verb in [
                add(3, Some("new")),
                Verb::SetTag { name: name(), version, expect: Expect::Anything },
                Verb::DeleteTag { name: name() },
                Verb::RestoreTag { name: name() },
                Verb::RollbackTag { name: name(), to: None },
                Verb::SetAlias { alias: model("alias"), to: name() },
                Verb::PinTag { name: name(), pinned: true },
                Verb::Assign { versions: vec![(version, BTreeSet::from([me]))] },
                Verb::ForgetVersions { versions: vec![version] },
            ] {
                let refused = worker.write(by.clone(), verb.clone()).await;
                assert!(matches!(refused, Err(Error::Refused(Refused::Denied(..)))), "{by}: {verb:?}: {refused:?}");
            }
        }
        world.converge().await;
        for number in 0..4 {
            let means = world.cluster(number).view(|registry| registry.resolve(&name()));
            assert_eq!(means, Some(longest(1).0), "node {number}");
        }
    });
}

/// The leader gives models to nodes, on its own account; who does not vote does not.
#[test]
fn assignments_come_from_those_who_vote() {
    on_seeds(1, async |world| {
        world.mesh(4).await;
        world.cluster(0).write(by_itself(world, 0), add(1, Some("a"))).await.unwrap();
        let nodes = BTreeSet::from([world.nodes[&2].id, world.nodes[&3].id]);
        let assign = || Verb::Assign { versions: vec![(longest(1).0, nodes.clone())] };
        let voters = world.voters();
        for number in 0..4 {
            let outcome = world.cluster(number).write(by_itself(world, number), assign()).await;
            assert_eq!(outcome.is_ok(), voters.contains(&number), "node {number}: {outcome:?}");
        }
        world.converge().await;
        for number in 0..4 {
            let given: BTreeSet<_> =
                world.cluster(number).view(|registry| registry.assigned(&longest(1).0).copied().collect());
            assert_eq!(given, nodes, "node {number}");
        }
    });
}
