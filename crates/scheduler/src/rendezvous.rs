//! Where requests with the same beginning meet without anybody keeping a list: weighted rendezvous hashing.
//!
//! Each node draws a number from the key and its own id; the best draw is the key's home. A node that comes or goes takes
//! or leaves only its share of the keys. To keep thousands of draws out of a decision, nodes stand in groups by their
//! id: the groups draw first, with the weight of all their nodes, then the nodes of the best group.

use types::NodeId;

/// The same on every node, and never changed by the size of the mesh, or homes would move.
const GROUPS: usize = 64;

/// Homes of one key; each is the best of another group.
pub(crate) const HOMES: usize = 3;

#[derive(Debug)]
pub(crate) struct Groups(Vec<Group>);

#[derive(Debug, Clone, Default)]
struct Group {
    weight: f32,
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    place: usize,
    hash: u64,
    weight: f32,
}

impl Default for Groups {
    fn default() -> Self {
        Self(vec![Group::default(); GROUPS])
    }
}

impl Groups {
    pub(crate) fn add(&mut self, place: usize, hash: u64, weight: f32) {
        let group = &mut self.0[hash as usize % GROUPS];
        group.weight += weight;
        group.nodes.push(Node { place, hash, weight });
    }

    /// The homes of a key, the first one first.
    pub(crate) fn homes(&self, key: u64) -> impl Iterator<Item = usize> {
        let mut best: [Option<(f32, usize)>; HOMES] = [None; HOMES];
        for (at, group) in self.0.iter().enumerate().filter(|(_, group)| !group.nodes.is_empty()) {
            let mut entry = Some((draw(key, at as u64 + 1, group.weight), at));
            for kept in &mut best {
                if kept.is_none_or(|(least, _)| entry.is_some_and(|(drawn, _)| drawn < least)) {
                    std::mem::swap(kept, &mut entry);
                }
            }
        }
        best.into_iter().flatten().filter_map(move |(_, at)| {
            let draws = self.0[at].nodes.iter().map(|node| (draw(key, node.hash, node.weight), node.place));
            draws.min_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, place)| place)
        })
    }
}

/// The time at which an event of that rate happens first: the smallest of several is each one's in proportion to its
/// weight.
fn draw(key: u64, hash: u64, weight: f32) -> f32 {
    // The upper 24 bits fill a float's mantissa; never zero, whose logarithm is none.
    let uniform = ((mix(key ^ mix(hash)) >> 40) as f32 + 0.5) / (1_u32 << 24) as f32;
    -uniform.ln() / weight
}

/// A public key is as good as random, but for those of tests.
pub(crate) fn node_hash(node: NodeId) -> u64 {
    let key: [u8; 8] = node.public_key()[..8].try_into().expect("eight bytes");
    mix(u64::from_le_bytes(key))
}

/// SplitMix64's finalizer.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(nodes: impl Iterator<Item = usize>) -> Groups {
        let mut groups = Groups::default();
        nodes.for_each(|place| groups.add(place, mix(place as u64), if place == 7 { 4.0 } else { 1.0 }));
        groups
    }

    fn first(groups: &Groups, key: u64) -> usize {
        groups.homes(key).next().unwrap()
    }

    #[test]
    fn homes_are_shared_out_by_weight() {
        let groups = groups(0..20);
        let share = (0..23_000).filter(|key| first(&groups, mix(*key)) == 7).count();
        // Four of 23 parts; the spread of such a count is about 57.
        assert!((3700..4300).contains(&share), "{share}");
    }

    #[test]
    fn who_leaves_moves_little_but_its_own() {
        let (before, after) = (groups(0..200), groups((0..200).filter(|place| *place != 11)));
        let moved = (0..20_000).map(mix).filter(|key| first(&before, *key) != first(&after, *key)).count();
        // Its own share is 100 in 20,000; the group's weight moves about as many again.
        assert!((50..400).contains(&moved), "{moved}");
    }

    #[test]
    fn homes_of_a_key_differ() {
        let groups = groups(0..100);
        for key in (0..100).map(mix) {
            let homes: Vec<usize> = groups.homes(key).collect();
            assert!(homes.len() == HOMES && homes[0] != homes[1] && homes[1] != homes[2] && homes[0] != homes[2]);
        }
    }
}
