//! What is to be done on this node, from what it has and what all agree on. Pure: it is asked again and again, and once
//! nothing is left to do it says so.
//!
//! What a user does with the Ollama beside us stays, with two exceptions: a name that means what the mesh's tag has meant
//! once moves with the tag, whoever gave it, and one that was there before the mesh deleted it goes.

use std::collections::{BTreeMap, BTreeSet};

use ollama::{Digest, ModelName};
use types::{Role, UnixMillis};

/// A name in one of the stores beside us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its place among the node's stores.
    pub store: usize,
    pub name: ModelName,
    pub digest: Digest,
    /// When it came to mean this, by this machine's clock.
    pub since: UnixMillis,
}

/// What this node saw under a name while the mesh had a tag of that name. What is there after the tag is deleted, just
/// as it was, is from before; this no clock has to tell.
pub type Seen = BTreeMap<ModelName, BTreeSet<(usize, Digest, UnixMillis)>>;

/// No member's clock is further off: it would not have been let in. For names of which nobody saw since when they are.
const SKEW_MAX_MS: u64 = 10 * 60 * 1000;

/// What is on this node.
#[derive(Debug, Clone, Default)]
pub struct Local {
    pub listed: Vec<Listed>,
    /// Stores that answered; nothing is concluded from the silence of the others.
    pub stores: BTreeSet<usize>,
    /// Stores whose files can be read.
    pub readable: BTreeSet<usize>,
    /// Stores, of those that answered, that models can be put into.
    pub takes: BTreeSet<usize>,
    pub seen: Seen,
    /// Versions whose every blob lies here and is known by both hashes.
    pub whole: BTreeSet<Digest>,
    /// Versions of which something here is not what it should be. Reading them again changes nothing.
    pub damaged: BTreeSet<Digest>,
    /// Those of them that some other node has.
    pub mendable: BTreeSet<Digest>,
    /// Versions that could not be read, fetched or put in a moment ago.
    pub deferred: BTreeSet<Digest>,
}

/// What all agree on, as far as this node is concerned.
#[derive(Debug, Clone, Default)]
pub struct Agreed {
    pub tags: BTreeMap<ModelName, Tag>,
    pub deleted: BTreeMap<ModelName, Deleted>,
    /// Names that stand for others, and are no tags.
    pub aliases: BTreeSet<ModelName>,
    /// All that are known.
    pub versions: BTreeSet<Digest>,
    /// Those this node is to have.
    pub assigned: BTreeSet<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    pub version: Digest,
    /// What it meant before, as far back as is remembered.
    pub past: BTreeSet<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    pub at: UnixMillis,
    /// All that it has meant.
    pub meant: BTreeSet<Digest>,
}

/// Steps of different models may be taken side by side.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Hash what a store has, and tell the others that it is here; under this name where nothing has it.
    Notice { store: usize, name: ModelName, digest: Digest },
    /// Bring it here from other nodes.
    Fetch { version: Digest },
    /// Put it into a store under this name, in place of what the name means there.
    Publish { store: usize, name: ModelName, version: Digest },
    /// Take a name away that the mesh has deleted.
    Unname { store: usize, name: ModelName },
    /// Fetch what is damaged of it, and put it in place of what is wrong in the stores.
    Repair { version: Digest },
}

/// All that can be done now, in no order. Some steps lead to others, which are found when asked again.
pub fn steps(local: &Local, agreed: &Agreed, role: Role) -> BTreeSet<Step> {
    let mut steps = BTreeSet::new();
    // What runs here under one of its names runs under all of them.
    let held = local.listed.iter().map(|listed| listed.digest).filter(|digest| local.whole.contains(digest));
    let mut wanted: BTreeSet<Digest> =
        agreed.assigned.iter().filter(|version| agreed.versions.contains(*version)).copied().chain(held).collect();
    for listed in &local.listed {
        let Listed { store, name, digest, .. } = listed.clone();
        match (agreed.tags.get(&name), agreed.deleted.get(&name)) {
            // A stale name: what it meant here is what the tag meant once.
            (Some(tag), _) if tag.version != digest && tag.past.contains(&digest) => {
                wanted.insert(tag.version);
                if local.whole.contains(&tag.version) && local.takes.contains(&store) {
                    steps.insert(Step::Publish { store, name: name.clone(), version: tag.version });
                }
            }
            (None, Some(deleted)) if deleted.meant.contains(&digest) && is_from_before(local, listed, deleted) => {
                steps.insert(Step::Unname { store, name: name.clone() });
                continue;
            }
            _ => {}
        }
        let is_known = agreed.versions.contains(&digest);
        let is_tagged = agreed.tags.contains_key(&name) || agreed.aliases.contains(&name) || role == Role::Worker;
        let unknown = !local.whole.contains(&digest) || !is_known || !is_tagged;
        let is_hopeless = is_known && local.damaged.contains(&digest);
        if unknown && local.readable.contains(&store) && !is_hopeless {
            steps.insert(Step::Notice { store, name, digest });
        }
    }
    let mendable = local.mendable.iter().filter(|version| agreed.versions.contains(*version));
    steps.extend(mendable.map(|version| Step::Repair { version: *version }));
    // Where nothing can be put in, bytes are of no use; one that is silent may answer again.
    let is_useless = !local.stores.is_empty() && local.takes.is_empty();
    for version in wanted {
        if !local.whole.contains(&version) && !is_listed(local, version) {
            if !is_useless {
                steps.insert(Step::Fetch { version });
            }
            continue;
        }
        let names = agreed.tags.iter().filter(|(_, tag)| tag.version == version).map(|(name, _)| name);
        for name in names {
            let there = |listed: &&Listed| listed.name == *name;
            // Something else of that name is the user's own, or was dealt with above.
            if local.listed.iter().any(|listed| there(&listed)) {
                continue;
            }
            if let (Some(store), true) = (local.takes.first(), local.whole.contains(&version)) {
                steps.insert(Step::Publish { store: *store, name: name.clone(), version });
            }
        }
    }
    let waits = |step: &Step| step.version().is_some_and(|version| local.deferred.contains(&version));
    steps.retain(|step| !waits(step));
    steps
}

impl Step {
    /// The version that is not touched again for a while when the step fails.
    pub fn version(&self) -> Option<Digest> {
        match self {
            Self::Notice { digest, .. } => Some(*digest),
            Self::Fetch { version } | Self::Publish { version, .. } | Self::Repair { version } => Some(*version),
            Self::Unname { .. } => None,
        }
    }
}

/// Whether a name was given before the mesh deleted it, and not by somebody who wants it anew.
fn is_from_before(local: &Local, listed: &Listed, deleted: &Deleted) -> bool {
    let as_it_is = (listed.store, listed.digest, listed.since);
    match local.seen.get(&listed.name) {
        Some(seen) if seen.contains(&as_it_is) => true,
        Some(_) => listed.since <= deleted.at,
        // This node was not there when it happened. Who deletes a name can restore it; what comes back by itself cannot
        // be told from what was wanted.
        None => listed.since.0 <= deleted.at.0.saturating_add(SKEW_MAX_MS),
    }
}

/// Whether a store has it, whatever we may read there.
fn is_listed(local: &Local, version: Digest) -> bool {
    local.listed.iter().any(|listed| listed.digest == version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000;

    fn name(text: &str) -> ModelName {
        text.parse().unwrap()
    }

    fn version(of: u8) -> Digest {
        Digest::of(&[of])
    }

    fn listed(text: &str, of: u8) -> Listed {
        Listed { store: 0, name: name(text), digest: version(of), since: UnixMillis(DAY) }
    }

    fn tag(of: u8, past: &[u8]) -> Tag {
        Tag { version: version(of), past: past.iter().map(|of| version(*of)).collect() }
    }

    /// One store that answers and can be read.
    fn local(listed: Vec<Listed>, whole: &[u8]) -> Local {
        let one = BTreeSet::from([0]);
        let whole = whole.iter().map(|of| version(*of)).collect();
        Local { listed, stores: one.clone(), readable: one.clone(), takes: one, whole, ..Local::default() }
    }

    fn agreed(tags: &[(&str, Tag)], versions: &[u8], assigned: &[u8]) -> Agreed {
        Agreed {
            tags: tags.iter().map(|(text, tag)| (name(text), tag.clone())).collect(),
            deleted: BTreeMap::new(),
            aliases: BTreeSet::new(),
            versions: versions.iter().map(|of| version(*of)).collect(),
            assigned: assigned.iter().map(|of| version(*of)).collect(),
        }
    }

    fn only(steps: BTreeSet<Step>) -> Step {
        assert_eq!(steps.len(), 1, "{steps:?}");
        steps.into_iter().next().unwrap()
    }

    #[test]
    fn a_model_that_appears_is_noticed_once() {
        let local_before = local(vec![listed("m", 1)], &[]);
        let found = steps(&local_before, &agreed(&[], &[], &[]), Role::Node);
        assert_eq!(only(found), Step::Notice { store: 0, name: name("m"), digest: version(1) });
        let after = agreed(&[("m", tag(1, &[]))], &[1], &[]);
        assert!(steps(&local(vec![listed("m", 1)], &[1]), &after, Role::Node).is_empty());
        // A worker gives no names: that nobody has given one is no reason to look again.
        assert!(steps(&local(vec![listed("m", 1)], &[1]), &agreed(&[], &[1], &[]), Role::Worker).is_empty());
    }

    #[test]
    fn what_is_assigned_is_fetched_and_then_named() {
        let agreed = agreed(&[("m", tag(1, &[]))], &[1], &[1]);
        assert_eq!(only(steps(&local(vec![], &[]), &agreed, Role::Worker)), Step::Fetch { version: version(1) });
        let publish = Step::Publish { store: 0, name: name("m"), version: version(1) };
        assert_eq!(only(steps(&local(vec![], &[1]), &agreed, Role::Worker)), publish);
        assert!(steps(&local(vec![listed("m", 1)], &[1]), &agreed, Role::Worker).is_empty());
        // What an Ollama has that nobody may look into is there all the same.
        let closed = Local { readable: BTreeSet::new(), ..local(vec![listed("m", 1)], &[]) };
        assert!(steps(&closed, &agreed, Role::Worker).is_empty());
        let silent = |whole: &[u8]| Local { stores: BTreeSet::new(), takes: BTreeSet::new(), ..local(vec![], whole) };
        assert!(steps(&silent(&[1]), &agreed, Role::Worker).is_empty(), "there is nowhere to put it");
        assert_eq!(only(steps(&silent(&[]), &agreed, Role::Worker)), Step::Fetch { version: version(1) });
        // One that answers and takes nothing will not take it later either.
        for whole in [vec![], vec![1]] {
            let elsewhere = Local { takes: BTreeSet::new(), ..local(vec![], &whole) };
            assert!(steps(&elsewhere, &agreed, Role::Worker).is_empty());
            let stale = Local { takes: BTreeSet::new(), ..local(vec![listed("m", 2)], &whole) };
            let moved = steps(&stale, &super::tests::agreed(&[("m", tag(1, &[1, 2]))], &[1, 2], &[]), Role::Worker);
            assert!(moved.iter().all(|step| matches!(step, Step::Notice { .. })), "{moved:?}");
        }
    }

    #[test]
    fn a_name_follows_its_tag_forth_and_back() {
        for (now, before) in [(2, 1), (1, 2)] {
            let agreed = agreed(&[("m", tag(now, &[1, 2]))], &[1, 2], &[]);
            let stale = vec![listed("m", before)];
            let fetch = steps(&local(stale.clone(), &[before]), &agreed, Role::Node);
            assert_eq!(only(fetch), Step::Fetch { version: version(now) });
            let publish = steps(&local(stale, &[1, 2]), &agreed, Role::Node);
            assert_eq!(only(publish), Step::Publish { store: 0, name: name("m"), version: version(now) });
        }
    }

    #[test]
    fn what_runs_under_one_name_runs_under_all() {
        let agreed = agreed(&[("m", tag(1, &[])), ("copy", tag(1, &[]))], &[1], &[]);
        let publish = Step::Publish { store: 0, name: name("copy"), version: version(1) };
        assert_eq!(only(steps(&local(vec![listed("m", 1)], &[1]), &agreed, Role::Node)), publish);
    }

    #[test]
    fn what_a_user_has_under_a_name_of_the_meshs_stays() {
        let agreed = agreed(&[("m", tag(1, &[]))], &[1, 9], &[1]);
        assert!(steps(&local(vec![listed("m", 9)], &[1, 9]), &agreed, Role::Node).is_empty());
    }

    #[test]
    fn a_deleted_name_goes_and_one_that_was_given_since_stays() {
        let mut agreed = agreed(&[], &[1], &[]);
        let meant = BTreeSet::from([version(1)]);
        agreed.deleted.insert(name("m"), Deleted { at: UnixMillis(2 * DAY), meant });
        let unname = Step::Unname { store: 0, name: name("m") };
        assert_eq!(only(steps(&local(vec![listed("m", 1)], &[1]), &agreed, Role::Node)), unname);
        let since = Listed { since: UnixMillis(3 * DAY), ..listed("m", 1) };
        let noticed = steps(&local(vec![since], &[1]), &agreed, Role::Node);
        assert_eq!(only(noticed), Step::Notice { store: 0, name: name("m"), digest: version(1) });
        let other = steps(&local(vec![listed("m", 7)], &[7]), &agreed, Role::Node);
        assert_eq!(only(other), Step::Notice { store: 0, name: name("m"), digest: version(7) });
    }

    #[test]
    fn no_clock_is_asked_about_a_name_that_was_seen_when_it_was_deleted() {
        let mut agreed = agreed(&[], &[1], &[]);
        let (at, meant) = (UnixMillis(2 * DAY), BTreeSet::from([version(1)]));
        agreed.deleted.insert(name("m"), Deleted { at, meant });
        let seen =
            |entries: &[(usize, Digest, UnixMillis)]| Seen::from([(name("m"), entries.iter().copied().collect())]);
        let step =
            |listed: Listed, seen: Seen| only(steps(&Local { seen, ..local(vec![listed], &[1]) }, &agreed, Role::Node));
        let unname = Step::Unname { store: 0, name: name("m") };
        let notice = Step::Notice { store: 0, name: name("m"), digest: version(1) };
        let listed_at = |since| Listed { since: UnixMillis(since), ..listed("m", 1) };
        // This machine's clock is a day ahead: the name is from before all the same.
        let ahead = listed_at(3 * DAY);
        assert_eq!(step(ahead.clone(), seen(&[(0, version(1), ahead.since)])), unname);
        // The same model, given anew after the deletion.
        assert_eq!(step(ahead, seen(&[(0, version(1), UnixMillis(DAY))])), notice);
        assert_eq!(step(listed_at(2 * DAY + 1), seen(&[])), notice);
        // Nobody saw it: the clocks of members may differ by minutes.
        assert_eq!(step(listed_at(2 * DAY + SKEW_MAX_MS), Seen::new()), unname);
        assert_eq!(step(listed_at(2 * DAY + SKEW_MAX_MS + 1), Seen::new()), notice);
    }

    #[test]
    fn what_is_damaged_is_mended_as_soon_as_another_node_has_it() {
        let agreed = agreed(&[("m", tag(1, &[]))], &[1], &[]);
        let damaged = Local { damaged: BTreeSet::from([version(1)]), ..local(vec![listed("m", 1)], &[]) };
        assert!(steps(&damaged, &agreed, Role::Node).is_empty(), "there is nowhere to have it from");
        let mendable = Local { mendable: damaged.damaged.clone(), ..damaged };
        assert_eq!(only(steps(&mendable, &agreed, Role::Node)), Step::Repair { version: version(1) });
        let waits = Local { deferred: mendable.mendable.clone(), ..mendable.clone() };
        assert!(steps(&waits, &agreed, Role::Node).is_empty());
        let unknown = steps(&mendable, &Agreed::default(), Role::Node);
        assert!(
            !unknown.contains(&Step::Repair { version: version(1) }),
            "nobody knows what it should be: {unknown:?}"
        );
    }

    #[test]
    fn what_cannot_get_better_by_reading_is_not_read_again() {
        let agreed_on = agreed(&[("m", tag(1, &[]))], &[1], &[]);
        let damaged = Local { damaged: BTreeSet::from([version(1)]), ..local(vec![listed("m", 1)], &[]) };
        assert!(steps(&damaged, &agreed_on, Role::Node).is_empty());
        let mut aliased = agreed(&[("m", tag(1, &[]))], &[1], &[]);
        aliased.aliases.insert(name("q"));
        assert!(steps(&local(vec![listed("m", 1), listed("q", 1)], &[1]), &aliased, Role::Node).is_empty());
    }

    #[test]
    fn what_failed_a_moment_ago_waits() {
        let agreed = agreed(&[("m", tag(1, &[]))], &[1], &[1]);
        for whole in [vec![], vec![1]] {
            let waiting = Local { deferred: BTreeSet::from([version(1)]), ..local(vec![], &whole) };
            assert!(steps(&waiting, &agreed, Role::Node).is_empty());
        }
        let waiting = Local { deferred: BTreeSet::from([version(1)]), ..local(vec![listed("m", 1)], &[]) };
        assert!(steps(&waiting, &Agreed::default(), Role::Node).is_empty());
    }
}
