//! What was asked, by whom, and what became of it: the registry's own short memory for people and for the audit.

use std::collections::BTreeSet;

use ollama::Digest;
use serde::{Deserialize, Serialize};
use types::{Label, UnixMillis};

use super::{Actor, Command, Outcome, Registry, Replicas, Rule, Verb};

/// At the limit the oldest entry is dropped; the audit log of a node keeps more.
const ENTRIES_MAX: usize = 256;
const TEXT_CHARS_MAX: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    pub index: u64,
    pub at: UnixMillis,
    pub by: Actor,
    /// One line for people; holds no secret.
    pub what: String,
    /// Why it was refused, if it was.
    pub refused: Option<String>,
}

impl Registry {
    pub(super) fn note(&mut self, index: u64, command: &Command, outcome: &Outcome) {
        while self.journal.len() >= ENTRIES_MAX {
            self.journal.pop_front();
        }
        let refused = outcome.as_ref().err().map(|refused| clip(&refused.to_string()));
        let what = clip(&describe(&command.verb));
        self.journal.push_back(JournalEntry { index, at: command.at, by: command.by.clone(), what, refused });
    }
}

/// What was refused may be as long as a change can be; nobody needs all of it.
fn clip(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

fn describe(verb: &Verb) -> String {
    match verb {
        Verb::Found { mesh, member } => format!("found mesh {mesh} with node {}", member.name),
        Verb::AddMember(proof) => format!("add node {} ({})", proof.joiner.name, proof.joiner.id),
        Verb::RemoveMember { node } => format!("remove node {node}"),
        Verb::SetAddresses { node, .. } => format!("new addresses of node {node}"),
        Verb::SetLabels { node, set, unset } => {
            let set = set.iter().map(ToString::to_string);
            let changes: Vec<_> = set.chain(unset.iter().map(|key| format!("-{key}"))).collect();
            format!("label node {node}: {}", changes.join(" "))
        }
        Verb::SetDrain { node, drain } => format!("{} node {node}", if *drain { "drain" } else { "undrain" }),
        Verb::CreateToken { id, token } => format!("create {} token {id} for {} uses", token.role, token.uses_left),
        Verb::RevokeToken { id } => format!("revoke token {id}"),
        Verb::SetConfig { key, value, .. } => format!("set {key} = {value}"),
        Verb::ResetConfig { key } => format!("reset {key}"),
        Verb::RollbackConfig { key, to } => format!("roll {key} back to its value at {to}"),
        Verb::CreateKey { id, key } => format!("create key {id} ({})", key.name),
        Verb::RevokeKey { id } => format!("revoke key {id}"),
        Verb::EnrollBackend { name, url, node: None } => format!("enroll backend {name} at {url}"),
        Verb::EnrollBackend { name, url, node: Some(node) } => format!("enroll backend {name} at {url} behind {node}"),
        Verb::RemoveBackend { name } => format!("remove backend {name}"),
        Verb::AddVersion { manifest, tag: None, .. } => format!("add version {}", Digest::of(manifest)),
        Verb::AddVersion { manifest, tag: Some(name), .. } => {
            format!("add version {}, as {name} if there is none", Digest::of(manifest))
        }
        Verb::SetTag { name, version, .. } => format!("tag {version} as {name}"),
        Verb::DeleteTag { name } => format!("delete tag {name}"),
        Verb::RestoreTag { name } => format!("restore tag {name}"),
        Verb::PinTag { name, pinned } => format!("{} tag {name}", if *pinned { "pin" } else { "unpin" }),
        Verb::RollbackTag { name, to: None } => format!("roll tag {name} back"),
        Verb::RollbackTag { name, to: Some(to) } => format!("roll tag {name} back to its version at {to}"),
        Verb::SetAlias { alias, to } => format!("alias {alias} for {to}"),
        Verb::RemoveAlias { alias } => format!("remove alias {alias}"),
        Verb::Place { name, rule } => format!("place {name} on {}", place(rule)),
        Verb::Unplace { name } => format!("take back the rule of {name}"),
        Verb::Assign { versions } => {
            let told = versions.iter().map(|(version, nodes)| format!("{version} to {} nodes", nodes.len()));
            format!("assign {}", told.collect::<Vec<_>>().join(", "))
        }
        Verb::ForgetVersions { versions } => {
            let told: Vec<_> = versions.iter().map(ToString::to_string).collect();
            format!("forget {}", told.join(", "))
        }
    }
}

fn place(rule: &Rule) -> String {
    let Rule { replicas, on, never, warm, pin } = rule;
    let mut told = match replicas {
        Replicas::All => "all nodes".to_owned(),
        Replicas::Count(count) => format!("{count} nodes"),
    };
    let labels = |labels: &BTreeSet<Label>| labels.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    if !on.is_empty() {
        told += &format!(" with {}", labels(on));
    }
    if !never.is_empty() {
        told += &format!(" without {}", labels(never));
    }
    if *warm > 0 {
        told += &format!(", {warm} warm");
    }
    if *pin {
        told += ", pinned";
    }
    told
}
