//! When to dial whom. Pure: the time comes with every call.
//!
//! Members that are not connected are dialled for ever, with growing pauses. A pause ends early when a new address turns
//! up, or when somebody wants to speak with the peer and the last try is not fresh.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use libp2p::multiaddr::{Multiaddr, Protocol as Part};
use types::NodeId;

use crate::random::Random;

/// Dials under way at once; those due later wait.
const DIALS_MAX: usize = 16;
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// No wish to speak makes us dial the same peer more often than this.
const PAUSE_LEAST: Duration = Duration::from_millis(250);
/// Of two nodes that meet, one begins and the other waits so long, or they end up with two connections.
const HEAD_START: Duration = Duration::from_millis(200);
/// Addresses learned from the network and not from the registry, for one member. With one more, the oldest is forgotten.
const LEARNED_MAX: usize = 8;

#[derive(Debug)]
pub(super) struct Redial {
    local: NodeId,
    random: Random,
    peers: BTreeMap<NodeId, Peer>,
}

#[derive(Debug)]
struct Peer {
    /// From the registry.
    given: Vec<Multiaddr>,
    learned: VecDeque<Multiaddr>,
    last_good: Option<Multiaddr>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connected,
    Dialling { failures: u32, began: Duration },
    Waiting { failures: u32, last: Duration, due: Duration },
}

impl Redial {
    pub(super) fn new(local: NodeId, seed: u64) -> Self {
        Self { local, random: Random::new(seed), peers: BTreeMap::new() }
    }

    /// Takes the whole set of members to be connected with.
    pub(super) fn set(&mut self, members: BTreeMap<NodeId, Vec<Multiaddr>>, now: Duration) {
        self.peers.retain(|id, _| members.contains_key(id));
        for (id, given) in members {
            let wait = if self.local < id { Duration::ZERO } else { HEAD_START };
            let peer = self.peers.entry(id).or_insert_with(|| Peer {
                given: given.clone(),
                learned: VecDeque::new(),
                last_good: None,
                state: State::Waiting { failures: 0, last: now, due: now + wait },
            });
            if peer.given != given {
                peer.given = given;
                peer.retry_at_once(now);
            }
        }
    }

    /// Hears of an address. Only members' are kept.
    pub(super) fn learn(&mut self, id: &NodeId, address: Multiaddr, now: Duration) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.given.contains(&address) || peer.learned.contains(&address) {
            return;
        }
        peer.learned.push_back(address);
        if peer.learned.len() > LEARNED_MAX {
            peer.learned.pop_front();
        }
        peer.retry_at_once(now);
    }

    /// Whom to dial now. They count as being dialled.
    pub(super) fn due(&mut self, now: Duration) -> Vec<(NodeId, Vec<Multiaddr>)> {
        let dialling = self.peers.values().filter(|peer| matches!(peer.state, State::Dialling { .. })).count();
        let mut ready = Vec::new();
        for (id, peer) in &mut self.peers {
            match peer.state {
                State::Waiting { failures, due, .. } if due <= now && dialling + ready.len() < DIALS_MAX => {
                    if let Some(addresses) = peer.addresses() {
                        peer.state = State::Dialling { failures, began: now };
                        ready.push((*id, addresses));
                    }
                }
                _ => {}
            }
        }
        ready
    }

    /// When somebody is due. `None` while nobody is or no slot is free: the end of a dial asks again.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let dialling = self.peers.values().filter(|peer| matches!(peer.state, State::Dialling { .. })).count();
        let due = |peer: &Peer| match peer.state {
            State::Waiting { due, .. } => peer.has_address().then_some(due),
            _ => None,
        };
        if dialling < DIALS_MAX { self.peers.values().filter_map(due).min() } else { None }
    }

    /// Somebody wants to speak with the peer. Returns whether it makes sense to wait for a connection.
    pub(super) fn wanted(&mut self, id: &NodeId, now: Duration) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        match peer.state {
            State::Connected | State::Dialling { .. } => true,
            State::Waiting { failures: 0, .. } => {
                peer.retry_at_once(now);
                peer.has_address()
            }
            State::Waiting { failures, last, due } => {
                let due = due.min(last + PAUSE_LEAST).max(now);
                peer.state = State::Waiting { failures, last, due };
                due == now && peer.has_address()
            }
        }
    }

    /// `through` is the address where it was dialled, if it was.
    pub(super) fn connected(&mut self, id: &NodeId, through: Option<Multiaddr>) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.state = State::Connected;
            peer.last_good = through.or(peer.last_good.take());
        }
    }

    /// The last connection is gone. It may only have been interrupted: the first try is soon.
    pub(super) fn disconnected(&mut self, id: &NodeId, now: Duration) {
        let due = now + self.jittered(PAUSE_LEAST);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.state = State::Waiting { failures: 0, last: now, due };
        }
    }

    /// A dial came to nothing.
    pub(super) fn failed(&mut self, id: &NodeId, now: Duration) {
        let Some(Peer { state: State::Dialling { failures, .. }, .. }) = self.peers.get(id) else { return };
        let failures = failures.saturating_add(1);
        let pause = PAUSE_FIRST.saturating_mul(1 << (failures - 1).min(16)).min(PAUSE_MAX);
        let due = now + self.jittered(pause);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.state = State::Waiting { failures, last: now, due };
        }
    }

    /// Between half and the whole: nodes that lost each other at the same time do not come back at the same time.
    fn jittered(&mut self, pause: Duration) -> Duration {
        pause.mul_f64(0.5 + self.random.fraction() / 2.0)
    }
}

impl Peer {
    fn has_address(&self) -> bool {
        !(self.given.is_empty() && self.learned.is_empty())
    }

    /// In the order in which to try them: what worked last, then TCP, which costs half of what QUIC does.
    fn addresses(&self) -> Option<Vec<Multiaddr>> {
        let mut addresses: Vec<_> = self.given.iter().chain(&self.learned).cloned().collect();
        addresses.sort_by_key(|address| {
            let quic = address.iter().any(|part| matches!(part, Part::QuicV1));
            (self.last_good.as_ref() != Some(address), quic)
        });
        (!addresses.is_empty()).then_some(addresses)
    }

    fn retry_at_once(&mut self, now: Duration) {
        if let State::Waiting { last, .. } = self.state {
            self.state = State::Waiting { failures: 0, last, due: now };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: NodeId = NodeId::from_public_key([5; 32]);
    const LOWER: NodeId = NodeId::from_public_key([1; 32]);
    const HIGHER: NodeId = NodeId::from_public_key([9; 32]);

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()
    }

    fn redial(members: &[(NodeId, u16)]) -> Redial {
        let mut redial = Redial::new(LOCAL, 1);
        redial.set(members.iter().map(|(id, port)| (*id, vec![address(*port)])).collect(), Duration::ZERO);
        redial
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn dialled(redial: &mut Redial, now: Duration) -> Vec<NodeId> {
        redial.due(now).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn of_two_nodes_that_meet_one_begins() {
        let mut redial = redial(&[(LOWER, 1), (HIGHER, 2)]);
        assert_eq!(dialled(&mut redial, Duration::ZERO), [HIGHER]);
        assert_eq!(redial.next_due(), Some(HEAD_START));
        assert_eq!(dialled(&mut redial, HEAD_START), [LOWER]);
        assert_eq!(redial.next_due(), None);
    }

    #[test]
    fn a_peer_that_does_not_answer_is_dialled_for_ever_and_ever_more_rarely() {
        let mut redial = redial(&[(HIGHER, 1)]);
        let (mut now, mut pauses) = (Duration::ZERO, Vec::new());
        for _ in 0..40 {
            assert_eq!(dialled(&mut redial, now), [HIGHER]);
            redial.failed(&HIGHER, now);
            let due = redial.next_due().unwrap();
            pauses.push(due - now);
            now = due;
        }
        assert!(pauses[0] <= PAUSE_FIRST && pauses[39] >= PAUSE_MAX / 2);
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX));
    }

    #[test]
    fn a_new_address_or_a_wish_to_speak_ends_the_pause() {
        let mut redial = redial(&[(HIGHER, 1)]);
        let fail_often = |redial: &mut Redial, mut now: Duration| {
            for _ in 0..10 {
                now = redial.next_due().unwrap().max(now);
                redial.due(now);
                redial.failed(&HIGHER, now);
            }
            now
        };
        let now = fail_often(&mut redial, Duration::ZERO);
        assert!(!redial.wanted(&HIGHER, now), "it has just failed");
        assert!(redial.wanted(&HIGHER, now + PAUSE_LEAST));
        assert_eq!(dialled(&mut redial, now + PAUSE_LEAST), [HIGHER]);
        redial.failed(&HIGHER, now + PAUSE_LEAST);
        let now = fail_often(&mut redial, now);
        redial.learn(&HIGHER, address(2), now);
        assert_eq!(redial.due(now)[0].1, [address(1), address(2)]);
        redial.failed(&HIGHER, now);
        let now = fail_often(&mut redial, now);
        redial.set([(HIGHER, vec![address(3)])].into(), now);
        assert_eq!(redial.due(now)[0].1, [address(3), address(2)]);
    }

    #[test]
    fn who_is_connected_is_not_dialled_and_who_was_is_dialled_again() {
        let mut redial = redial(&[(HIGHER, 1)]);
        redial.due(Duration::ZERO);
        redial.connected(&HIGHER, None);
        assert_eq!(redial.next_due(), None);
        redial.disconnected(&HIGHER, seconds(50.0));
        assert_eq!(dialled(&mut redial, seconds(50.25)), [HIGHER]);
        redial.set(BTreeMap::new(), seconds(51.0));
        redial.failed(&HIGHER, seconds(51.0));
        assert_eq!(redial.next_due(), None, "who was removed is left alone");
    }

    #[test]
    fn what_worked_last_is_tried_first_and_tcp_before_quic() {
        let quic: Multiaddr = "/ip4/192.0.2.1/udp/1/quic-v1".parse().unwrap();
        let given = vec![quic.clone(), address(1), address(2)];
        let mut redial = Redial::new(LOCAL, 1);
        redial.set([(HIGHER, given)].into(), Duration::ZERO);
        assert_eq!(redial.due(Duration::ZERO)[0].1, [address(1), address(2), quic.clone()]);
        redial.connected(&HIGHER, Some(quic.clone()));
        redial.disconnected(&HIGHER, Duration::ZERO);
        assert_eq!(redial.due(seconds(1.0))[0].1, [quic, address(1), address(2)]);
    }

    #[test]
    fn dials_and_learned_addresses_are_bounded() {
        let ids: Vec<_> = (0..40).map(|n| NodeId::from_public_key([100 + n; 32])).collect();
        let mut redial = redial(&ids.iter().map(|id| (*id, 1)).collect::<Vec<_>>());
        assert_eq!(dialled(&mut redial, Duration::ZERO), ids[..DIALS_MAX]);
        assert_eq!(redial.next_due(), None, "no slot is free");
        redial.connected(&ids[0], None);
        assert_eq!(dialled(&mut redial, Duration::ZERO), [ids[DIALS_MAX]]);
        for port in 2..100 {
            redial.learn(&ids[30], address(port), Duration::ZERO);
        }
        assert_eq!(redial.peers[&ids[30]].learned.len(), LEARNED_MAX);
        redial.learn(&LOWER, address(1), Duration::ZERO);
        assert!(!redial.peers.contains_key(&LOWER), "a stranger's address is not kept");
    }
}
