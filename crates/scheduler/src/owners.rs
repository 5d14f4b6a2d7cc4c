//! Who answered a conversation's last turn, as far as one gateway remembers.

use std::collections::HashMap;

use types::NodeId;

use crate::Moment;

/// A conversation's last turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub node: NodeId,
    /// Of its prompt: what the node's cache holds as long as nothing pushed it out.
    pub tokens: u32,
    /// When the node last answered something of it.
    pub heard: Moment,
}

/// Forgets what was not used for longest, in halves: whatever is used comes into the young one, and where that is full
/// it becomes the old one, whose content is gone then. Two lookups, and no list to keep in order.
#[derive(Debug)]
pub struct Owners {
    young: HashMap<u64, Turn>,
    old: HashMap<u64, Turn>,
    half: usize,
}

impl Owners {
    /// At least half of `capacity` conversations are remembered, the last ones used.
    pub fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (capacity / 2).max(1) }
    }

    pub fn get(&mut self, conversation: u64) -> Option<Turn> {
        let turn = self.young.get(&conversation).or_else(|| self.old.get(&conversation)).copied()?;
        self.set(conversation, turn);
        Some(turn)
    }

    pub fn set(&mut self, conversation: u64, turn: Turn) {
        if self.young.len() >= self.half && !self.young.contains_key(&conversation) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(conversation, turn);
    }

    pub fn forget(&mut self, node: NodeId) {
        self.young.retain(|_, turn| turn.node != node);
        self.old.retain(|_, turn| turn.node != node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidates::tests::node;

    fn turn(id: u16) -> Turn {
        Turn { node: node(id), tokens: 100, heard: Moment::default() }
    }

    #[test]
    fn the_last_used_are_remembered_and_no_more_than_may_be() {
        let mut owners = Owners::new(100);
        owners.set(7, turn(7));
        for conversation in 1000..2000 {
            owners.set(conversation, turn(1));
            assert_eq!(owners.get(7), Some(turn(7)), "it is used all the time");
            assert!(owners.young.len() + owners.old.len() <= 100);
        }
        assert_eq!((owners.get(1000), owners.get(1999)), (None, Some(turn(1))));
    }

    #[test]
    fn the_last_turn_counts_and_who_left_owns_nothing() {
        let mut owners = Owners::new(2);
        owners.set(1, turn(1));
        owners.set(2, turn(2));
        owners.set(1, turn(3));
        assert_eq!(owners.get(1), Some(turn(3)));
        owners.forget(node(3));
        assert_eq!((owners.get(1), owners.get(2)), (None, Some(turn(2))));
    }
}
