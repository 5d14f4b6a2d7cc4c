//! The mesh, and all that the registry came to hold after the first release: its form on disks and wires.

use std::collections::{BTreeMap, BTreeSet};

use ollama::{Digest, ModelName};
use serde::{Deserialize, Serialize};
use types::{NodeId, NodeName};

use super::models::{Version, Versions};
use super::placement::Rule;
use super::tags::{DeletedTag, Tag};
use super::{Enrolled, Mesh};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub(super) struct Ground {
    /// Nothing before the first command.
    pub(super) mesh: Option<Mesh>,
    pub(super) backends: BTreeMap<NodeName, Enrolled>,
    pub(super) versions: Versions,
    pub(super) tags: BTreeMap<ModelName, Tag>,
    pub(super) deleted_tags: BTreeMap<ModelName, DeletedTag>,
    /// From an alias to a tag, never to another alias.
    pub(super) aliases: BTreeMap<ModelName, ModelName>,
    /// By tag.
    pub(super) rules: BTreeMap<ModelName, Rule>,
    /// By version; never an empty set.
    pub(super) assignments: BTreeMap<Digest, BTreeSet<NodeId>>,
}

/// On disks and wires. The first two variants have the bytes of the `Option` that stood here in the first release, and
/// are written for as long as there is nothing to put into a section. An older release stops at the third, as at any
/// command it does not know.
#[derive(Serialize, Deserialize)]
enum Stored {
    Nothing,
    Mesh(Mesh),
    Extended(Option<Mesh>, Vec<Section>),
}

/// What a release added; one that is empty is not written. Variants are only ever added at the end.
#[derive(Serialize, Deserialize)]
enum Section {
    Backends(BTreeMap<NodeName, Enrolled>),
    Versions(BTreeMap<Digest, Version>),
    Tags(BTreeMap<ModelName, Tag>),
    DeletedTags(BTreeMap<ModelName, DeletedTag>),
    Aliases(BTreeMap<ModelName, ModelName>),
    Rules(BTreeMap<ModelName, Rule>),
    Assignments(BTreeMap<Digest, BTreeSet<NodeId>>),
}

impl From<Ground> for Stored {
    fn from(ground: Ground) -> Self {
        let Ground { mesh, backends, versions, tags, deleted_tags, aliases, rules, assignments } = ground;
        let mut sections = Vec::new();
        add(&mut sections, Section::Backends, backends);
        add(&mut sections, Section::Versions, versions.into());
        add(&mut sections, Section::Tags, tags);
        add(&mut sections, Section::DeletedTags, deleted_tags);
        add(&mut sections, Section::Aliases, aliases);
        add(&mut sections, Section::Rules, rules);
        add(&mut sections, Section::Assignments, assignments);
        match mesh {
            _ if !sections.is_empty() => Self::Extended(mesh, sections),
            None => Self::Nothing,
            Some(mesh) => Self::Mesh(mesh),
        }
    }
}

fn add<K, V>(sections: &mut Vec<Section>, section: impl Fn(BTreeMap<K, V>) -> Section, map: BTreeMap<K, V>) {
    if !map.is_empty() {
        sections.push(section(map));
    }
}

impl From<Stored> for Ground {
    fn from(stored: Stored) -> Self {
        let (mesh, sections) = match stored {
            Stored::Nothing => (None, Vec::new()),
            Stored::Mesh(mesh) => (Some(mesh), Vec::new()),
            Stored::Extended(mesh, sections) => (mesh, sections),
        };
        let mut ground = Self { mesh, ..Self::default() };
        for section in sections {
            match section {
                Section::Backends(backends) => ground.backends = backends,
                Section::Versions(versions) => ground.versions = versions.into(),
                Section::Tags(tags) => ground.tags = tags,
                Section::DeletedTags(deleted_tags) => ground.deleted_tags = deleted_tags,
                Section::Aliases(aliases) => ground.aliases = aliases,
                Section::Rules(rules) => ground.rules = rules,
                Section::Assignments(assignments) => ground.assignments = assignments,
            }
        }
        ground
    }
}
