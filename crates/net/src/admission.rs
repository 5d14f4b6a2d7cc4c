//! Who may come in, and how much of each thing at once. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use types::{NodeId, Role};

use crate::protocol::{Allowed, Refusal, Roles};

/// A member, as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    pub role: Role,
    /// Where its mesh listener is, as multiaddresses (`/ip4/10.0.0.7/tcp/11436`).
    pub mesh: Vec<String>,
    /// Where its bulk listener is.
    pub bulk: Vec<SocketAddr>,
}

/// The members and what each peer has under way here. As many entries as members and open streams, and those are bounded
/// by the registry and by the limits below.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    members: BTreeMap<NodeId, Member>,
    under_way: BTreeMap<(&'static str, Who), usize>,
    totals: BTreeMap<&'static str, usize>,
}

/// In whose name a place is taken. A peer id costs nothing to make, so strangers count by where they come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Peer(NodeId),
    Household(IpAddr),
}

/// Whoever has one IPv6 address has 2⁶⁴ of them.
pub(crate) fn household(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

impl Admission {
    /// Takes the new set. Returns who lost something by it: those removed, and those whose role is another now.
    pub(crate) fn replace(&mut self, members: Vec<Member>) -> Vec<NodeId> {
        let members: BTreeMap<_, _> = members.into_iter().map(|member| (member.id, member)).collect();
        let before = std::mem::replace(&mut self.members, members);
        before.into_values().filter(|old| self.role(&old.id) != Some(old.role)).map(|old| old.id).collect()
    }

    pub(crate) fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    pub(crate) fn role(&self, peer: &NodeId) -> Option<Role> {
        self.members.get(peer).map(|member| member.role)
    }

    pub(crate) fn check_member(&self, peer: &NodeId, roles: Roles) -> Result<Role, Refusal> {
        match self.role(peer) {
            None => Err(Refusal::NotAMember),
            Some(role) if roles.contains(role) => Ok(role),
            Some(_) => Err(Refusal::RoleNotAllowed),
        }
    }

    /// The role under which the peer comes in; `None` for a stranger who may.
    pub(crate) fn check(&self, peer: &NodeId, allowed: Allowed) -> Result<Option<Role>, Refusal> {
        match allowed {
            Allowed::Members(roles) => self.check_member(peer, roles).map(Some),
            Allowed::Strangers => Ok(self.role(peer)),
        }
    }

    /// Takes one place; `leave` gives it back.
    pub(crate) fn enter(
        &mut self,
        name: &'static str,
        who: Who,
        per_peer_max: usize,
        total_max: usize,
    ) -> Result<(), Refusal> {
        let each_max = match who {
            Who::Peer(_) => per_peer_max,
            // Half: whoever knocks from one place alone leaves the door to others.
            Who::Household(_) => total_max.div_ceil(2),
        };
        let of_this = self.under_way.get(&(name, who)).copied().unwrap_or(0);
        let total = self.totals.get(name).copied().unwrap_or(0);
        if of_this >= each_max || total >= total_max {
            return Err(Refusal::Busy);
        }
        self.under_way.insert((name, who), of_this + 1);
        self.totals.insert(name, total + 1);
        Ok(())
    }

    pub(crate) fn leave(&mut self, name: &'static str, who: Who) {
        take_one(&mut self.under_way, &(name, who));
        take_one(&mut self.totals, &name);
    }
}

/// Counts down, and forgets what reaches zero.
fn take_one<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::from_public_key([1; 32]);
    const B: NodeId = NodeId::from_public_key([2; 32]);
    const C: NodeId = NodeId::from_public_key([3; 32]);

    fn member(id: NodeId, role: Role) -> Member {
        Member { id, role, mesh: Vec::new(), bulk: Vec::new() }
    }

    #[test]
    fn who_is_gone_or_has_another_role_has_lost_something() {
        let mut admission = Admission::default();
        let first = vec![member(A, Role::Node), member(B, Role::Node), member(C, Role::Worker)];
        assert_eq!(admission.replace(first), []);
        let second = vec![member(A, Role::Node), member(B, Role::Worker)];
        assert_eq!(admission.replace(second), [B, C]);
    }

    #[test]
    fn each_role_gets_what_is_declared_for_it_and_a_stranger_what_is_for_strangers() {
        let mut admission = Admission::default();
        admission.replace(vec![member(A, Role::Node), member(B, Role::Worker)]);
        let nodes = Allowed::Members(Roles::NODES);
        assert_eq!(admission.check(&A, nodes), Ok(Some(Role::Node)));
        assert_eq!(admission.check(&B, nodes), Err(Refusal::RoleNotAllowed));
        assert_eq!(admission.check(&C, nodes), Err(Refusal::NotAMember));
        assert_eq!(admission.check(&C, Allowed::Members(Roles::ALL)), Err(Refusal::NotAMember));
        assert_eq!(admission.check(&C, Allowed::Strangers), Ok(None));
        assert_eq!(admission.check(&B, Allowed::Strangers), Ok(Some(Role::Worker)));
    }

    #[test]
    fn places_are_limited_for_each_peer_and_for_all_and_come_back() {
        let mut admission = Admission::default();
        let [a, b, c] = [A, B, C].map(Who::Peer);
        assert_eq!(admission.enter("/x/1", a, 2, 3), Ok(()));
        assert_eq!(admission.enter("/x/1", a, 2, 3), Ok(()));
        assert_eq!(admission.enter("/x/1", a, 2, 3), Err(Refusal::Busy));
        assert_eq!(admission.enter("/x/1", b, 2, 3), Ok(()));
        assert_eq!(admission.enter("/x/1", c, 2, 3), Err(Refusal::Busy), "all places are taken");
        assert_eq!(admission.enter("/y/1", c, 2, 3), Ok(()), "another protocol has its own places");
        admission.leave("/x/1", a);
        assert_eq!(admission.enter("/x/1", c, 2, 3), Ok(()));
        for (name, peer) in [("/x/1", a), ("/x/1", b), ("/x/1", c), ("/y/1", c)] {
            admission.leave(name, peer);
        }
        assert!(admission.under_way.is_empty() && admission.totals.is_empty(), "nothing is remembered of the idle");
    }

    #[test]
    fn one_household_leaves_half_of_the_places_to_other_strangers() {
        let mut admission = Admission::default();
        let [near, far] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(|ip| Who::Household(ip.into()));
        assert!((0..4).all(|_| admission.enter("/x/1", near, 1, 8).is_ok()));
        assert_eq!(admission.enter("/x/1", near, 1, 8), Err(Refusal::Busy));
        assert_eq!(admission.enter("/x/1", far, 1, 8), Ok(()));
        admission.leave("/x/1", near);
        assert_eq!(admission.enter("/x/1", near, 1, 8), Ok(()));
    }

    #[test]
    fn an_ipv6_network_is_one_household() {
        let inside = |last: u16| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, last));
        assert_eq!(household(inside(1)), household(inside(2)));
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(household(mapped), IpAddr::from([192, 0, 2, 1]));
    }
}
