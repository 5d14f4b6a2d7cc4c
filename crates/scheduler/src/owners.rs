//! Who answered a conversation's last turn, as far as one gateway remembers.

use std::collections::HashMap;

use types::NodeId;

/// Forgets what was not used for longest, in halves: whatever is used comes into the young one, and where that is full
/// it becomes the old one, whose content is gone then. Two lookups, and no list to keep in order.
#[derive(Debug)]
pub struct Owners {
    young: HashMap<u64, NodeId>,
    old: HashMap<u64, NodeId>,
    half: usize,
}

impl Owners {
    /// At least half of `capacity` conversations are remembered, the last ones used.
    pub fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (capacity / 2).max(1) }
    }

    pub fn get(&mut self, conversation: u64) -> Option<NodeId> {
        let owner = self.young.get(&conversation).or_else(|| self.old.get(&conversation)).copied()?;
        self.set(conversation, owner);
        Some(owner)
    }

    pub fn set(&mut self, conversation: u64, owner: NodeId) {
        if self.young.len() >= self.half && !self.young.contains_key(&conversation) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(conversation, owner);
    }

    pub fn forget(&mut self, node: NodeId) {
        self.young.retain(|_, owner| *owner != node);
        self.old.retain(|_, owner| *owner != node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidates::tests::node;

    #[test]
    fn the_last_used_are_remembered_and_no_more_than_may_be() {
        let mut owners = Owners::new(100);
        owners.set(7, node(7));
        for conversation in 1000..2000 {
            owners.set(conversation, node(1));
            assert_eq!(owners.get(7), Some(node(7)), "it is used all the time");
            assert!(owners.young.len() + owners.old.len() <= 100);
        }
        assert_eq!((owners.get(1000), owners.get(1999)), (None, Some(node(1))));
    }

    #[test]
    fn the_last_turn_counts_and_who_left_owns_nothing() {
        let mut owners = Owners::new(2);
        owners.set(1, node(1));
        owners.set(2, node(2));
        owners.set(1, node(3));
        assert_eq!(owners.get(1), Some(node(3)));
        owners.forget(node(3));
        assert_eq!((owners.get(1), owners.get(2)), (None, Some(node(2))));
    }
}
