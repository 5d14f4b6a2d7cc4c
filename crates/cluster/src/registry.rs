//! What all nodes agree on: a pure function of the log.
//!
//! `Registry::apply` has no clock, no randomness and no IO: times and random ids arrive inside commands, so that the
//! same index means the same bytes on every node. Load, health and progress never come here.

mod access;
mod backends;
mod command;
mod ground;
mod journal;
mod keys;
pub(crate) mod members;
mod models;
mod placement;
mod settings;
mod tags;
mod tokens;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::{MeshId, NodeId, NodeName, RaftId, RequestId, UnixMillis};

pub use access::Actor;
pub use backends::Enrolled;
pub use command::{Command, Done, Outcome, Refused, Verb};
pub use journal::JournalEntry;
pub use keys::{ApiKey, Grant, KeyHash, KeyId, KeyLimits};
pub use members::{Addresses, Candidate, Member, Proof, Removed};
pub use models::{LAYERS_MAX, MANIFEST_BYTES_MAX, Piece, Version};
pub use placement::{Replicas, Rule};
pub use settings::{Change, Definition, Setting, Settings};
pub use tags::{DeletedTag, Expect, Moved, Tag};
pub use tokens::{JoinToken, TokenId, TokenPrefix};

/// For how long a finished request is remembered, so that a retry gets the first answer. Nobody tries for so long.
const FINISHED_FOR: Duration = Duration::from_secs(60);

/// How many are remembered at most, however quickly they come. At the limit the oldest is forgotten, and a retry that
/// comes even later is judged anew.
const FINISHED_MAX: usize = 65_536;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    applied: u64,
    ground: ground::Ground,
    members: BTreeMap<NodeId, Member>,
    removed: BTreeMap<NodeId, Removed>,
    tokens: BTreeMap<TokenId, JoinToken>,
    keys: BTreeMap<KeyId, ApiKey>,
    settings: Settings,
    seats: Seats,
    journal: VecDeque<JournalEntry>,
    finished: Finished,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    pub id: MeshId,
    pub founded_at: UnixMillis,
}

/// Who sits in the consensus group. Follows the log's membership entries, so that those outside it know whose word
/// to take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seats {
    pub voters: BTreeSet<RaftId>,
    pub learners: BTreeSet<RaftId>,
    /// A change is half done: until it is through, a majority of the voters before it must agree as well.
    pub changing: bool,
}

/// BLAKE3 over the canonical bytes of all a registry holds but its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StateHash(pub [u8; 32]);

/// The latest requests and what became of them, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Finished {
    order: VecDeque<(RequestId, UnixMillis)>,
    outcomes: BTreeMap<RequestId, Outcome>,
}

impl codec::Record for Registry {
    const VERSION: u8 = 1;
    /// Ten thousand members with their labels and addresses, and as many versions and tags as there may be, stay well
    /// below it.
    const LIMIT: usize = 64 << 20;
}

impl Registry {
    /// Index of the last log entry this state includes.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    pub fn mesh(&self) -> Option<&Mesh> {
        self.ground.mesh.as_ref()
    }

    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    pub fn member(&self, id: &NodeId) -> Option<&Member> {
        self.members.get(id)
    }

    pub fn member_named(&self, name: &NodeName) -> Option<&Member> {
        self.members().find(|member| member.name == *name)
    }

    pub fn member_with(&self, raft: RaftId) -> Option<&Member> {
        self.members().find(|member| member.raft == raft)
    }

    pub fn is_removed(&self, id: &NodeId) -> bool {
        self.removed.contains_key(id)
    }

    /// When and by whom a node was taken out.
    pub fn removed(&self, id: &NodeId) -> Option<&Removed> {
        self.removed.get(id)
    }

    pub fn tokens(&self) -> impl Iterator<Item = (&TokenId, &JoinToken)> {
        self.tokens.iter()
    }

    pub fn keys(&self) -> impl Iterator<Item = (&KeyId, &ApiKey)> {
        self.keys.iter()
    }

    pub fn key(&self, id: &KeyId) -> Option<&ApiKey> {
        self.keys.get(id)
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn seats(&self) -> &Seats {
        &self.seats
    }

    /// What was changed, by whom, oldest first; the last few hundred.
    pub fn journal(&self) -> impl DoubleEndedIterator<Item = &JournalEntry> {
        self.journal.iter()
    }

    /// Over what is agreed on, not over how far the log is: an election adds an entry and changes nothing.
    pub fn hash(&self) -> StateHash {
        let Self { applied: _, ground, members, removed, tokens, keys, settings, seats, journal, finished } = self;
        let state = (ground, members, removed, tokens, keys, settings, seats, journal, finished);
        StateHash(*blake3::hash(&crate::statement(&state)).as_bytes())
    }

    /// Carries out one command. A refusal is an outcome like any other: the log goes on.
    pub fn apply(&mut self, index: u64, command: &Command) -> Outcome {
        self.applied = index;
        if let Some(outcome) = self.finished.outcomes.get(&command.id) {
            return outcome.clone();
        }
        let outcome = self.judge(command).and_then(|()| self.carry_out(index, command));
        self.finished.remember(command.id, command.at, outcome.clone());
        self.note(index, command, &outcome);
        outcome
    }

    /// An entry of the log that carries no command.
    pub(crate) fn pass(&mut self, index: u64) {
        self.applied = index;
    }

    pub(crate) fn seat(&mut self, index: u64, seats: Seats) {
        self.applied = index;
        self.seats = seats;
    }

    fn carry_out(&mut self, index: u64, command: &Command) -> Outcome {
        let Command { at, by, verb, .. } = command;
        match verb {
            Verb::Found { mesh, member } => return self.found(*mesh, member, *at),
            Verb::AddMember(proof) => return self.add_member(index, proof, *at),
            Verb::RemoveMember { node } => self.remove_member(node, by, *at)?,
            Verb::SetAddresses { node, addresses } => self.set_addresses(node, addresses)?,
            Verb::SetLabels { node, set, unset } => self.set_labels(node, set, unset)?,
            Verb::SetDrain { node, drain } => self.set_drain(node, *drain)?,
            Verb::CreateToken { id, token } => self.create_token(*id, token, *at)?,
            Verb::RevokeToken { id } => self.tokens.remove(id).map(|_| ()).ok_or(Refused::UnknownToken)?,
            Verb::SetConfig { key, value, expect } => {
                let change = Change { value: Some(value.clone()), index, at: *at, by: by.clone() };
                self.settings.set(key, change, *expect)?
            }
            Verb::ResetConfig { key } => {
                self.settings.set(key, Change { value: None, index, at: *at, by: by.clone() }, None)?
            }
            Verb::RollbackConfig { key, to } => self.settings.roll_back(key, *to, index, *at, by)?,
            Verb::CreateKey { id, key } => self.create_key(id, key)?,
            Verb::RevokeKey { id } => {
                self.keys.remove(id).map(|_| ()).ok_or_else(|| Refused::UnknownKey(id.clone()))?
            }
            Verb::EnrollBackend { name, url, node } => {
                self.enroll_backend(name, Enrolled { url: url.clone(), node: *node, enrolled_at: *at })?
            }
            Verb::RemoveBackend { name } => self.remove_backend(name)?,
            Verb::AddVersion { manifest, layers, tag } => {
                self.add_version(index, manifest, layers, tag.as_ref(), by, *at)?
            }
            Verb::SetTag { name, version, expect } => self.set_tag(name, *version, *expect, index, *at, by)?,
            Verb::DeleteTag { name } => self.delete_tag(name, index, *at, by)?,
            Verb::RestoreTag { name } => self.restore_tag(name)?,
            Verb::PinTag { name, pinned } => self.pin_tag(name, *pinned)?,
            Verb::RollbackTag { name, to } => self.roll_back_tag(name, *to, index, *at, by)?,
            Verb::SetAlias { alias, to } => self.set_alias(alias, to)?,
            Verb::RemoveAlias { alias } => self.remove_alias(alias)?,
            Verb::Place { name, rule } => self.place(name, rule)?,
            Verb::Unplace { name } => self.unplace(name)?,
            Verb::Assign { versions } => self.assign(versions)?,
            Verb::ForgetVersions { versions } => self.forget_versions(versions)?,
        };
        Ok(Done::Changed { index })
    }
}

impl Finished {
    fn remember(&mut self, id: RequestId, at: UnixMillis, outcome: Outcome) {
        let old = |(_, then): &(RequestId, UnixMillis)| at.since(*then) > FINISHED_FOR;
        while self.order.len() >= FINISHED_MAX || self.order.front().is_some_and(old) {
            let Some((oldest, _)) = self.order.pop_front() else { break };
            self.outcomes.remove(&oldest);
        }
        self.order.push_back((id, at));
        self.outcomes.insert(id, outcome);
    }
}

impl std::fmt::Display for StateHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

#[cfg(test)]
mod tests;
