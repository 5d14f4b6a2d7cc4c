//! Tags: which version a model's name means, which it meant before, and what else it is called.

use std::collections::{BTreeSet, VecDeque};

use ollama::{Digest, ModelName};
use serde::{Deserialize, Serialize};
use types::UnixMillis;

use super::placement::Rule;
use super::{Actor, Refused, Registry};

/// At the limit there are no new tags until some are deleted.
const TAGS_MAX: usize = 2_048;
/// Moves kept per tag; at the limit the oldest is forgotten.
const HISTORY_MAX: usize = 16;
/// At the limit the tag that was deleted first is forgotten: a deletion is never refused for want of room.
const DELETED_MAX: usize = 256;
const ALIASES_MAX: usize = 1_024;
/// Of a deleted tag; more than that do not come back with it.
const DELETED_ALIASES_MAX: usize = 16;

/// What a name means now, and meant before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// Neither moved nor deleted until somebody lets go of it; the versions of its whole history are kept.
    pub pinned: bool,
    /// Oldest first; the last one holds. Never empty, and no two neighbours are on the same version.
    history: VecDeque<Moved>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    pub version: Digest,
    pub index: u64,
    pub at: UnixMillis,
    pub by: Actor,
}

/// A tag that was deleted, with all that went with it. It can be restored until its version is forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedTag {
    pub tag: Tag,
    pub rule: Option<Rule>,
    pub aliases: BTreeSet<ModelName>,
    pub index: u64,
    pub at: UnixMillis,
    pub by: Actor,
}

/// Where a tag must be for somebody to move it, so that two who move it at once do not undo each other's work unseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    Anything,
    /// There is none.
    NoTag,
    Version(Digest),
}

impl Tag {
    pub fn version(&self) -> Digest {
        self.moved().version
    }

    /// How it came to where it is.
    pub fn moved(&self) -> &Moved {
        self.history.back().expect("a tag begins with its first move")
    }

    pub fn history(&self) -> impl DoubleEndedIterator<Item = &Moved> {
        self.history.iter()
    }

    fn push(&mut self, moved: Moved) {
        while self.history.len() >= HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(moved);
    }
}

impl Registry {
    pub fn tags(&self) -> impl Iterator<Item = (&ModelName, &Tag)> {
        self.ground.tags.iter()
    }

    pub fn tag(&self, name: &ModelName) -> Option<&Tag> {
        self.ground.tags.get(name)
    }

    pub fn deleted_tags(&self) -> impl Iterator<Item = (&ModelName, &DeletedTag)> {
        self.ground.deleted_tags.iter()
    }

    pub fn aliases(&self) -> impl Iterator<Item = (&ModelName, &ModelName)> {
        self.ground.aliases.iter()
    }

    /// The tag that a name means, whether it is its own name or an alias.
    pub fn tag_meant(&self, name: &ModelName) -> Option<(&ModelName, &Tag)> {
        let name = self.ground.aliases.get(name).unwrap_or(name);
        self.ground.tags.get_key_value(name)
    }

    /// The version that a name means.
    pub fn resolve(&self, name: &ModelName) -> Option<Digest> {
        self.tag_meant(name).map(|(_, tag)| tag.version())
    }

    /// Whether a version that comes in under a name makes a tag of it.
    pub(super) fn is_free(&self, name: &ModelName) -> bool {
        self.tag(name).is_none() && !self.ground.aliases.contains_key(name)
    }

    pub(super) fn room_for_a_tag(&self) -> Result<(), Refused> {
        match self.ground.tags.len() < TAGS_MAX {
            true => Ok(()),
            false => Err(Refused::Full { what: "tags".to_owned(), limit: TAGS_MAX }),
        }
    }

    pub(super) fn make_tag(&mut self, name: ModelName, version: Digest, index: u64, at: UnixMillis, by: &Actor) {
        let first = Moved { version, index, at, by: by.clone() };
        self.ground.tags.insert(name, Tag { pinned: false, history: [first].into() });
    }

    pub(super) fn set_tag(
        &mut self,
        name: &ModelName,
        version: Digest,
        expect: Expect,
        index: u64,
        at: UnixMillis,
        by: &Actor,
    ) -> Result<(), Refused> {
        if self.version(&version).is_none() {
            return Err(Refused::UnknownVersion(version));
        }
        let found = self.tag(name).map(Tag::version);
        if found == Some(version) {
            return Ok(());
        }
        let expected = match expect {
            Expect::Anything => found,
            Expect::NoTag => None,
            Expect::Version(version) => Some(version),
        };
        if expected != found {
            return Err(Refused::TagMoved { name: Box::new(name.clone()), found });
        }
        if self.ground.aliases.contains_key(name) {
            return Err(Refused::NameTaken(name.clone()));
        }
        match self.ground.tags.get_mut(name) {
            Some(tag) if tag.pinned => return Err(Refused::Pinned(name.clone())),
            Some(tag) => tag.push(Moved { version, index, at, by: by.clone() }),
            None => {
                self.room_for_a_tag()?;
                self.make_tag(name.clone(), version, index, at, by);
            }
        }
        Ok(())
    }

    /// Makes a tag mean again what it meant by an earlier change, or before the last one.
    pub(super) fn roll_back_tag(
        &mut self,
        name: &ModelName,
        to: Option<u64>,
        index: u64,
        at: UnixMillis,
        by: &Actor,
    ) -> Result<(), Refused> {
        let tag = self.tag(name).ok_or_else(|| Refused::UnknownTag(name.clone()))?;
        let earlier = match to {
            Some(to) => tag.history().find(|moved| moved.index == to),
            None => tag.history().rev().nth(1),
        };
        let earlier = earlier.ok_or_else(|| match to {
            Some(index) => Refused::NoSuchMove { tag: Box::new(name.clone()), index },
            None => Refused::NothingBefore(name.clone()),
        })?;
        let version = earlier.version;
        self.set_tag(name, version, Expect::Anything, index, at, by)
    }

    pub(super) fn delete_tag(
        &mut self,
        name: &ModelName,
        index: u64,
        at: UnixMillis,
        by: &Actor,
    ) -> Result<(), Refused> {
        let tag = self.tag(name).ok_or_else(|| Refused::UnknownTag(name.clone()))?;
        if tag.pinned {
            return Err(Refused::Pinned(name.clone()));
        }
        let ground = &mut self.ground;
        // The name as it was spelled goes along with it.
        let Some((name, tag)) = ground.tags.remove_entry(name) else { return Ok(()) };
        let rule = ground.rules.remove(&name);
        let mut aliases: Vec<_> = ground.aliases.extract_if(.., |_, to| *to == name).map(|(alias, _)| alias).collect();
        aliases.truncate(DELETED_ALIASES_MAX);
        let aliases = aliases.into_iter().collect();
        ground.deleted_tags.remove(&name);
        while ground.deleted_tags.len() >= DELETED_MAX {
            let oldest = ground.deleted_tags.iter().min_by_key(|(_, deleted)| deleted.index);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { break };
            ground.deleted_tags.remove(&oldest);
        }
        ground.deleted_tags.insert(name, DeletedTag { tag, rule, aliases, index, at, by: by.clone() });
        Ok(())
    }

    /// Brings back a deleted tag with its rule, and those of its aliases whose names are still free.
    pub(super) fn restore_tag(&mut self, name: &ModelName) -> Result<(), Refused> {
        if !self.ground.deleted_tags.contains_key(name) {
            return Err(Refused::UnknownTag(name.clone()));
        }
        if !self.is_free(name) {
            return Err(Refused::NameTaken(name.clone()));
        }
        self.room_for_a_tag()?;
        let ground = &mut self.ground;
        let Some((name, deleted)) = ground.deleted_tags.remove_entry(name) else { return Ok(()) };
        ground.tags.insert(name.clone(), deleted.tag);
        for alias in deleted.aliases {
            let free = !ground.tags.contains_key(&alias) && !ground.aliases.contains_key(&alias);
            if free && ground.aliases.len() < ALIASES_MAX {
                ground.aliases.insert(alias, name.clone());
            }
        }
        if let Some(rule) = deleted.rule {
            ground.rules.insert(name, rule);
        }
        Ok(())
    }

    pub(super) fn pin_tag(&mut self, name: &ModelName, pinned: bool) -> Result<(), Refused> {
        let tag = self.ground.tags.get_mut(name).ok_or_else(|| Refused::UnknownTag(name.clone()))?;
        tag.pinned = pinned;
        Ok(())
    }

    /// Has an alias mean a tag, whatever it meant before. As it must be no tag and mean one, there are neither chains of
    /// aliases nor rings.
    pub(super) fn set_alias(&mut self, alias: &ModelName, to: &ModelName) -> Result<(), Refused> {
        if self.tag(alias).is_some() {
            return Err(Refused::NameTaken(alias.clone()));
        }
        let (to, _) = self.ground.tags.get_key_value(to).ok_or_else(|| Refused::UnknownTag(to.clone()))?;
        let to = to.clone();
        if self.ground.aliases.len() >= ALIASES_MAX && !self.ground.aliases.contains_key(alias) {
            return Err(Refused::Full { what: "aliases".to_owned(), limit: ALIASES_MAX });
        }
        self.ground.aliases.insert(alias.clone(), to);
        Ok(())
    }

    pub(super) fn remove_alias(&mut self, alias: &ModelName) -> Result<(), Refused> {
        let removed = self.ground.aliases.remove(alias);
        removed.map(drop).ok_or_else(|| Refused::UnknownAlias(alias.clone()))
    }
}
