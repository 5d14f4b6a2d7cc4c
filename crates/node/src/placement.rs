//! Gives models to nodes, while this node leads: what the rules want, held against what the nodes have.
//!
//! A reconciler. Each round asks everybody anew, decides, and commits where that differs from what is agreed; then the
//! nodes do their part by themselves. What the decision is, `scheduler::placement` knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Actor, Cluster, Registry, Replicas, Verb};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use ollama::{Digest, ModelName};
use scheduler::placement::{Assignments, Copies, Demand, Member, Presence, Short, Told, VersionId, Wish, wanted};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use types::NodeId;

use crate::Inference;

/// When nobody asks for it sooner: what the nodes have changes without a word.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// However much happens.
const ROUNDS_APART: Duration = Duration::from_secs(1);
/// A node that takes longer is as if it had said again what it said before.
const ANSWER_MAX: Duration = Duration::from_secs(2);
const ASKED_AT_ONCE: usize = 32;

/// Well below what one command may hold, with one assignment more. The rest is given out in further ones.
const NODES_AT_ONCE: usize = 256;

/// What the nodes have, as far as this one can find out.
pub(crate) trait Holdings: Send + Sync {
    /// Nothing where the node does not say. May be dropped at any time.
    fn of(&self, node: NodeId) -> BoxFuture<'_, Option<Told>>;
}

/// How the last round went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Placed {
    /// Another node leads.
    #[default]
    Elsewhere,
    Decided {
        unmet: Vec<UnmetRule>,
        /// What kept it from being committed; the next round tries again.
        failed: Option<String>,
    },
}

/// A rule that cannot be met in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmetRule {
    pub tag: ModelName,
    /// Copies that no node can be given.
    pub missing: usize,
    pub why: Short,
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    nudge: Arc<Notify>,
    last: watch::Receiver<Placed>,
}

/// What runs on every node, for as long as the node does. Only the leader's does anything.
pub(crate) struct Placement {
    cluster: Cluster,
    inference: Inference,
    holdings: Arc<dyn Holdings>,
    seen: BTreeMap<NodeId, Seen>,
    nudge: Arc<Notify>,
    last: watch::Sender<Placed>,
}

/// What this node knows of another since it leads.
#[derive(Debug, Default)]
struct Seen {
    down_since: Option<Instant>,
    told: Option<Told>,
}

impl Handle {
    /// Has it look soon: somebody has a model that had none, or none that had one.
    pub(crate) fn nudge(&self) {
        self.nudge.notify_one();
    }

    pub(crate) fn last(&self) -> Placed {
        self.last.borrow().clone()
    }
}

impl Placement {
    pub(crate) fn new(cluster: Cluster, inference: Inference, holdings: Arc<dyn Holdings>) -> (Handle, Self) {
        let (last, seen) = watch::channel(Placed::default());
        let nudge = Arc::new(Notify::new());
        let handle = Handle { nudge: nudge.clone(), last: seen };
        (handle, Self { cluster, inference, holdings, seen: BTreeMap::new(), nudge, last })
    }

    /// Runs for ever; may be dropped at any time.
    pub(crate) async fn run(mut self) {
        let nudge = self.nudge.clone();
        let mut changes = self.cluster.changes();
        loop {
            let placed = self.round().await;
            self.last.send_replace(placed);
            sleep(ROUNDS_APART).await;
            tokio::select! {
                () = nudge.notified() => {}
                _ = changes.next() => {}
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn round(&mut self) -> Placed {
        if !self.cluster.is_leader() {
            // Whoever leads next counts anew who is away for how long.
            self.seen.clear();
            return Placed::Elsewhere;
        }
        self.ask_all().await;
        let now = Instant::now();
        let (tags, plan, difference) = self.cluster.view(|registry| {
            let (tags, wishes): (Vec<_>, Vec<_>) = wishes(registry).into_iter().unzip();
            let before = assigned(registry);
            let members = self.members(registry, now);
            let after = registry.settings().placement_after();
            let plan = wanted(&wishes, &Demand::new(), &members, &before, after);
            let difference = difference(&before, &plan.wanted);
            (tags, plan, difference)
        });
        let unmet = plan.unmet.iter().filter_map(|unmet| {
            let tag = tags.get(unmet.wish)?.clone();
            Some(UnmetRule { tag, missing: unmet.missing, why: unmet.why })
        });
        Placed::Decided { unmet: unmet.collect(), failed: self.commit(difference).await }
    }

    /// What keeps it from being agreed on, if anything does.
    async fn commit(&self, difference: Assignments) -> Option<String> {
        for versions in batches(difference) {
            for (version, nodes) in &versions {
                tracing::info!(%version, nodes = nodes.len(), "a model is given to nodes");
            }
            if let Err(error) = self.cluster.write(Actor::Node(self.cluster.id()), Verb::Assign { versions }).await {
                // The catalogue has moved on, or another node leads.
                tracing::debug!(%error, "assignments were not taken");
                return Some(error.to_string());
            }
        }
        None
    }

    /// Brings up to date who is up and what they have.
    async fn ask_all(&mut self) {
        let members: BTreeSet<NodeId> =
            self.cluster.view(|registry| registry.members().map(|member| member.id).collect());
        self.seen.retain(|node, _| members.contains(node));
        let now = Instant::now();
        let mut up = Vec::new();
        for node in members {
            let seen = self.seen.entry(node).or_default();
            if self.inference.is_up(node) {
                seen.down_since = None;
                up.push(node);
            } else {
                seen.down_since.get_or_insert(now);
            }
        }
        let holdings = &self.holdings;
        let answers = futures::stream::iter(up).map(|node| async move {
            let told = timeout(ANSWER_MAX, holdings.of(node)).await.ok().flatten();
            (node, told)
        });
        let answers: Vec<_> = answers.buffer_unordered(ASKED_AT_ONCE).collect().await;
        for (node, told) in answers {
            if let (Some(seen), Some(told)) = (self.seen.get_mut(&node), told) {
                seen.told = Some(told);
            }
        }
    }

    fn members(&self, registry: &Registry, now: Instant) -> Vec<Member> {
        let unknown = Seen { down_since: Some(now), told: None };
        let member = |member: &cluster::Member| {
            let Seen { down_since, told } = self.seen.get(&member.id).unwrap_or(&unknown);
            Member {
                id: member.id,
                labels: member.labels.clone(),
                zone: member.zone().map(str::to_owned),
                presence: down_since.map_or(Presence::Up, |since| Presence::Down(now.duration_since(since))),
                draining: member.drain,
                told: told.clone(),
            }
        };
        registry.members().map(member).collect()
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placement").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// What the rules want, each with its tag. What is held fast stands first: where room is short, the first is served first.
fn wishes(registry: &Registry) -> Vec<(ModelName, Wish)> {
    let mut wishes: Vec<_> = registry
        .rules()
        .filter_map(|(name, rule)| {
            let digest = registry.tag(name)?.version();
            let wish = Wish {
                version: VersionId(*digest.as_bytes()),
                bytes: registry.version(&digest)?.size(),
                copies: match rule.replicas {
                    Replicas::All => Copies::All,
                    Replicas::Count(count) => Copies::AtLeast(count),
                },
                on: rule.on.clone(),
                never: rule.never.clone(),
                pin: rule.pin,
            };
            Some((name.clone(), wish))
        })
        .collect();
    wishes.sort_by_key(|(_, wish)| !wish.pin);
    wishes
}

fn assigned(registry: &Registry) -> Assignments {
    registry.assignments().map(|(version, nodes)| (VersionId(*version.as_bytes()), nodes.clone())).collect()
}

/// What has to be said for one to become the other.
fn difference(before: &Assignments, wanted: &Assignments) -> Assignments {
    let new = wanted.iter().filter(|(version, nodes)| before.get(version) != Some(nodes));
    let gone = before.keys().filter(|version| !wanted.contains_key(version));
    let gone = gone.map(|version| (*version, BTreeSet::new()));
    new.map(|(version, nodes)| (*version, nodes.clone())).chain(gone).collect()
}

fn batches(difference: Assignments) -> Vec<Vec<(Digest, BTreeSet<NodeId>)>> {
    let mut batches: Vec<Vec<_>> = Vec::new();
    let mut nodes_in_last = usize::MAX;
    for (version, nodes) in difference {
        // An assignment weighs like a node even where it has none.
        let weight = nodes.len() + 1;
        if nodes_in_last.saturating_add(weight) > NODES_AT_ONCE {
            batches.push(Vec::new());
            nodes_in_last = 0;
        }
        nodes_in_last += weight;
        if let Some(last) = batches.last_mut() {
            last.push((Digest::from_bytes(version.0), nodes));
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use types::BlobHash;

    use super::*;
    use crate::test_util::Solo;

    const GIB: u64 = 1 << 30;

    /// One node, which says what a test has it say.
    #[derive(Default)]
    struct Said(Mutex<Option<Told>>);

    impl Holdings for Said {
        fn of(&self, _: NodeId) -> BoxFuture<'_, Option<Told>> {
            let told = self.0.lock().unwrap().clone();
            Box::pin(async move { told })
        }
    }

    struct Rig {
        solo: Solo,
        said: Arc<Said>,
        placement: Placement,
    }

    impl Rig {
        async fn start() -> Self {
            let solo = Solo::start().await;
            let said = Arc::new(Said::default());
            let (cluster, inference) = (solo.api.cluster().clone(), solo.api.inference().clone());
            let (_, placement) = Placement::new(cluster, inference, said.clone());
            Self { solo, said, placement }
        }

        async fn write(&self, verb: Verb) {
            self.solo.api.cluster().write(self.solo.api.user(0), verb).await.unwrap();
        }

        fn say(&self, disk_free: u64) {
            *self.said.0.lock().unwrap() = Some(Told { disk_free, memory: 64 * GIB, ..Told::default() });
        }

        async fn round(&mut self) -> Vec<UnmetRule> {
            match self.placement.round().await {
                Placed::Decided { unmet, failed: None } => unmet,
                other => panic!("{other:?}"),
            }
        }

        fn assigned(&self) -> usize {
            self.solo.api.cluster().view(|registry| registry.assignments().count())
        }
    }

    fn add_model() -> Verb {
        let (digest, hash) = (Digest::of(b"x"), BlobHash::of(b"x"));
        let blob = format!(r#"{{"mediaType":"x","digest":"{digest}","size":{GIB}}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{blob}}}"#).into_bytes().into();
        let layers = vec![cluster::Piece { digest, hash, size: GIB }];
        Verb::AddVersion { manifest, layers, tag: Some("a".parse().unwrap()) }
    }

    #[tokio::test]
    async fn a_rule_is_met_as_soon_as_a_node_can_and_taken_back_with_it() {
        let mut rig = Rig::start().await;
        rig.write(add_model()).await;
        let name = || "a".parse::<ModelName>().unwrap();
        let (on, never) = (BTreeSet::new(), BTreeSet::new());
        let rule = cluster::Rule { replicas: Replicas::Count(1), on, never, warm: 0, pin: false };
        rig.write(Verb::Place { name: name(), rule }).await;
        for (disk_free, why) in
            [(None, Short { unheard: 1, ..Short::default() }), (Some(GIB), Short { disk: 1, ..Short::default() })]
        {
            disk_free.into_iter().for_each(|free| rig.say(free));
            assert_eq!(rig.round().await, [UnmetRule { tag: name(), missing: 1, why }]);
            assert_eq!(rig.assigned(), 0);
        }
        rig.say(2 * GIB);
        assert_eq!(rig.round().await, []);
        assert_eq!(rig.assigned(), 1);
        // Again, it changes nothing, not even the log.
        let before = rig.solo.api.cluster().position();
        assert_eq!(rig.round().await, []);
        assert_eq!(rig.solo.api.cluster().position(), before);

        rig.write(Verb::Unplace { name: name() }).await;
        rig.round().await;
        assert_eq!(rig.assigned(), 0);
    }

    #[test]
    fn much_is_given_out_in_commands_of_a_size_that_is_taken() {
        let id = |number: u16| {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&number.to_le_bytes());
            NodeId::from_public_key(key)
        };
        let given = |number: u8| (VersionId([number; 32]), (0..u16::from(number) * 5).map(id).collect());
        let wanted: Assignments = (0..=200).map(given).collect();
        let batches = batches(difference(&[(VersionId([201; 32]), [id(1)].into())].into(), &wanted));
        for batch in &batches {
            let nodes: usize = batch.iter().map(|(_, nodes)| nodes.len() + 1).sum();
            assert!(batch.len() == 1 || nodes <= NODES_AT_ONCE, "{nodes}");
        }
        let all: Vec<_> = batches.into_iter().flatten().collect();
        assert_eq!(all.len(), 202);
        assert!(
            all.iter().all(|(version, nodes)| nodes.is_empty() == [[0; 32], [201; 32]].contains(version.as_bytes()))
        );
        assert!(difference(&wanted, &wanted).is_empty());
    }
}
