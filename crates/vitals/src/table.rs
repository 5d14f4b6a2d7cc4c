//! What is known of each member: its newest record, and when that came.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use types::{MeshId, NodeId};

use crate::record::{Record, RecordError, Signature, Signed, Stamp};

/// The newest record of each member. Bounded by the members: who is none has no place in it.
#[derive(Debug, Default)]
pub struct Table {
    members: BTreeSet<NodeId>,
    known: BTreeMap<NodeId, Known>,
}

#[derive(Debug, Clone)]
pub struct Known {
    pub record: Record,
    /// By the receiver's clock.
    pub heard: Duration,
    pub(crate) signed: Signed,
}

/// Why a record was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("node `{node}` is no member")]
    NotAMember { node: NodeId },
    /// A copy, a replay or a rollback: which of them cannot be told, and makes no difference.
    #[error("a record of node `{node}` is not newer than the one that is known")]
    NotNewer { node: NodeId },
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Table {
    /// What is known of those that left is forgotten.
    pub fn set_members(&mut self, members: BTreeSet<NodeId>) {
        self.known.retain(|node, _| members.contains(node));
        self.members = members;
    }

    pub fn members(&self) -> &BTreeSet<NodeId> {
        &self.members
    }

    pub fn get(&self, node: NodeId) -> Option<&Known> {
        self.known.get(&node)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Known> {
        self.known.values()
    }

    /// The newest that is known; zero where nothing is.
    pub fn stamp(&self, node: NodeId) -> Stamp {
        self.known.get(&node).map(|known| known.record.stamp).unwrap_or_default()
    }

    /// Takes a record that is newer than the one there is. What is cheap is checked before the signature.
    pub fn take(
        &mut self,
        now: Duration,
        signed: Signed,
        mesh: MeshId,
        verify: impl Fn(NodeId, &[u8], &Signature) -> bool,
    ) -> Result<&Known, Refused> {
        let claimed = signed.peek()?;
        let node = claimed.node;
        if !self.members.contains(&node) {
            return Err(Refused::NotAMember { node });
        }
        if claimed.stamp <= self.stamp(node) {
            return Err(Refused::NotNewer { node });
        }
        let record = signed.open(mesh, verify)?;
        let known = Known { record, heard: now, signed };
        Ok(self.known.entry(node).insert_entry(known).into_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{mesh, node, record, signed, sum};

    fn table() -> Table {
        let mut table = Table::default();
        table.set_members([1, 2].map(node).into());
        table
    }

    fn take(table: &mut Table, signed: Signed) -> Result<Stamp, Refused> {
        let verify = |node: NodeId, bytes: &[u8], signature: &Signature| sum(node, bytes) == *signature;
        table.take(Duration::ZERO, signed, mesh(), verify).map(|known| known.record.stamp)
    }

    #[test]
    fn only_what_is_newer_is_taken() {
        let mut table = table();
        assert!(take(&mut table, signed(&record(1, 2, 5))).is_ok());
        let not_newer = Err(Refused::NotNewer { node: node(1) });
        for (incarnation, sequence) in [(2, 5), (2, 4), (1, 900)] {
            assert_eq!(take(&mut table, signed(&record(1, incarnation, sequence))), not_newer);
        }
        assert!(take(&mut table, signed(&record(1, 2, 6))).is_ok());
        assert!(take(&mut table, signed(&record(1, 3, 1))).is_ok());
        assert_eq!(table.stamp(node(1)), Stamp { incarnation: 3, sequence: 1 });
    }

    #[test]
    fn strangers_and_forgeries_leave_no_trace() {
        let mut table = table();
        assert_eq!(take(&mut table, signed(&record(3, 1, 1))), Err(Refused::NotAMember { node: node(3) }));
        let theirs = record(1, 9, 9);
        let forged = Signed::new(&theirs, mesh(), |bytes| sum(node(2), bytes)).unwrap();
        assert!(matches!(take(&mut table, forged), Err(Refused::Record(RecordError::Forged { .. }))));
        assert_eq!((table.iter().count(), table.stamp(node(1))), (0, Stamp::default()));
    }

    #[test]
    fn who_leaves_is_forgotten() {
        let mut table = table();
        take(&mut table, signed(&record(1, 1, 1))).unwrap();
        take(&mut table, signed(&record(2, 1, 1))).unwrap();
        table.set_members([2].map(node).into());
        assert!(table.get(node(1)).is_none() && table.get(node(2)).is_some());
        assert_eq!(take(&mut table, signed(&record(1, 1, 2))), Err(Refused::NotAMember { node: node(1) }));
    }
}
