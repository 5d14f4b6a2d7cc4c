//! Which models people want where, and which nodes the leader gave them to.

use std::collections::{BTreeMap, BTreeSet};

use ollama::{Digest, ModelName};
use serde::{Deserialize, Serialize};
use types::{Label, NodeId};

use super::{Refused, Registry};

/// Of either kind.
const LABELS_MAX: usize = 8;
/// No version is given to more nodes. Where more are wanted, these are enough for the others to fetch it from.
const NODES_MAX: usize = 1_024;
/// Nodes over all assignments; at the limit an assignment is refused.
const ASSIGNED_MAX: usize = 32_768;

/// Where the version behind a tag should be, whichever that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub replicas: Replicas,
    /// A node must have all of these,
    pub on: BTreeSet<Label>,
    /// and none of these.
    pub never: BTreeSet<Label>,
    /// On how many of them it is in memory before anybody asks for it.
    pub warm: u32,
    /// Copies are never given up to make room, nor are the versions the tag was on before.
    pub pin: bool,
}

/// How many copies there should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Replicas {
    /// One on each node that may have it.
    All,
    Count(u32),
}

impl Rule {
    fn check(&self) -> Result<(), Refused> {
        let bad = |why: &str| Err(Refused::BadRule { why: why.to_owned() });
        if self.on.len() > LABELS_MAX || self.never.len() > LABELS_MAX {
            return Err(Refused::Full { what: "labels of a rule".to_owned(), limit: LABELS_MAX });
        }
        let most = u32::try_from(NODES_MAX).unwrap_or(u32::MAX);
        match self.replicas {
            Replicas::Count(0) => bad("a model that should be nowhere needs no rule"),
            Replicas::Count(count) if count > most => {
                Err(Refused::Full { what: "copies".to_owned(), limit: NODES_MAX })
            }
            Replicas::Count(count) if self.warm > count => bad("more warm copies than copies"),
            Replicas::All | Replicas::Count(_) if self.warm > most => {
                Err(Refused::Full { what: "warm copies".to_owned(), limit: NODES_MAX })
            }
            Replicas::All | Replicas::Count(_) => Ok(()),
        }
    }
}

impl Registry {
    pub fn rules(&self) -> impl Iterator<Item = (&ModelName, &Rule)> {
        self.ground.rules.iter()
    }

    pub fn rule(&self, name: &ModelName) -> Option<&Rule> {
        self.ground.rules.get(name)
    }

    pub fn assignments(&self) -> impl Iterator<Item = (&Digest, &BTreeSet<NodeId>)> {
        self.ground.assignments.iter()
    }

    /// The nodes that should have a version.
    pub fn assigned(&self, version: &Digest) -> impl Iterator<Item = &NodeId> {
        self.ground.assignments.get(version).into_iter().flatten()
    }

    pub(super) fn place(&mut self, name: &ModelName, rule: &Rule) -> Result<(), Refused> {
        rule.check()?;
        let (name, _) = self.ground.tags.get_key_value(name).ok_or_else(|| Refused::UnknownTag(name.clone()))?;
        self.ground.rules.insert(name.clone(), rule.clone());
        Ok(())
    }

    pub(super) fn unplace(&mut self, name: &ModelName) -> Result<(), Refused> {
        let removed = self.ground.rules.remove(name);
        removed.map(drop).ok_or_else(|| Refused::NoRule(name.clone()))
    }

    /// Gives versions to nodes, in place of those they were given to. All or nothing: whoever decided it by an older
    /// view decides anew.
    pub(super) fn assign(&mut self, given: &[(Digest, BTreeSet<NodeId>)]) -> Result<(), Refused> {
        let mut assignments: BTreeMap<_, _> = self.ground.assignments.clone();
        for (version, nodes) in given {
            if self.version(version).is_none() {
                return Err(Refused::UnknownVersion(*version));
            }
            if let Some(stranger) = nodes.iter().find(|node| self.member(node).is_none()) {
                return Err(Refused::UnknownMember(*stranger));
            }
            if nodes.len() > NODES_MAX {
                return Err(Refused::Full { what: "nodes of an assignment".to_owned(), limit: NODES_MAX });
            }
            match nodes.is_empty() {
                true => assignments.remove(version),
                false => assignments.insert(*version, nodes.clone()),
            };
        }
        if assignments.values().map(BTreeSet::len).sum::<usize>() > ASSIGNED_MAX {
            return Err(Refused::Full { what: "nodes of all assignments".to_owned(), limit: ASSIGNED_MAX });
        }
        self.ground.assignments = assignments;
        Ok(())
    }

    /// A node that is no member has nothing to do here any more.
    pub(super) fn unassign_all(&mut self, node: &NodeId) {
        self.ground.assignments.retain(|_, nodes| {
            nodes.remove(node);
            !nodes.is_empty()
        });
    }
}
