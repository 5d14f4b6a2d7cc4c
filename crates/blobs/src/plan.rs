//! Which chunk from whom: the pure part of a fetch. Events and the time go in, actions come out.
//!
//! Whole sources alone are read front to back, so that the disk and the SHA-256 that runs behind see chunks in order. As
//! soon as somebody else fetches the same, the rarest come first, and those equally rare from a place that differs from
//! node to node: so that nodes which start together take different chunks from the origin and the rest from each other.
//!
//! Whoever has all of it is then asked only for what none of them has, one chunk at a time: what it sends twice it could have
//! sent once, and the others have lines of their own.
//!
//! A link is asked for a few chunks beyond the one it sends. When nothing is left to ask for, what takes too long at one
//! link is asked of another as well. A peer that was proven to lie is not spoken to again; one that fails or stalls is
//! tried again after a while.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use types::NodeId;

use crate::bits::Bits;
use crate::protocol::Held;

#[cfg(test)]
mod tests;

/// One stream to a peer. Numbers are not used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link(pub(crate) u32);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Who may have it, all of them, the best first.
    Sources(Vec<NodeId>),
    /// The first answer on a link: what the peer has, and what size it gives it.
    Opened {
        link: Link,
        size: u64,
        held: Held,
    },
    /// What has come to the peer since.
    News {
        link: Link,
        chunks: Vec<u32>,
    },
    /// The list of chunks is here, with the last chunk, which proves it.
    Listed {
        link: Link,
    },
    NoList {
        link: Link,
    },
    /// A chunk is here and is what it should be.
    Got {
        link: Link,
        chunk: u32,
    },
    NoChunk {
        link: Link,
        chunk: u32,
    },
    Down {
        link: Link,
        why: Why,
    },
    /// A chunk that was here could not be kept.
    Lost {
        chunk: u32,
    },
    /// There is no room on the disk: nothing more is asked for until there is.
    Full,
    Room,
    /// Time has passed.
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// It could not be reached, or the link broke.
    Broken,
    /// It takes no more streams from us now. Those that are open are good.
    Busy,
    /// It has nothing of the blob.
    Nothing,
    /// It was asked and sent nothing.
    Stalled,
    Lied(Lie),
}

/// What only a peer that breaks the rules can send: it checks what it has before it sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// A chunk that is not what the list says.
    Chunk,
    /// A list, or a last chunk, that does not lead to the blob's name.
    List,
    /// Another size than the one that is proven.
    Size,
    /// An answer to another question, too long, or unreadable.
    Rules,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Dial {
        link: Link,
        peer: NodeId,
    },
    AskList {
        link: Link,
    },
    Ask {
        link: Link,
        chunk: u32,
    },
    HangUp {
        link: Link,
    },
    /// It was proven to lie; its links are hung up.
    Shun {
        peer: NodeId,
        lie: Lie,
    },
}

/// Peers that are linked at once.
const PEERS_MAX: usize = 16;
/// Links to one peer: to the only one, and to one of several. A link keeps about one core busy at either end.
const LINKS_ALONE_MAX: usize = 4;
const LINKS_MAX: usize = 2;
/// Chunks asked for on one link and not yet here: before anything is known of it, and at most.
const DEPTH_FIRST: usize = 2;
const DEPTH_MAX: usize = 8;
/// A link is asked for what it sends in this time, and one more.
const DEPTH: Duration = Duration::from_millis(250);
/// What a link has not sent after this time, another may be asked for too.
const LATE: Duration = Duration::from_secs(1);
/// A link whose oldest question is older than this, while others do better, is left.
const SLOW: Duration = Duration::from_secs(20);
/// Peers that have a part, from which on whoever has all is spared.
const SPARED_FROM: usize = 3;
/// With so few left to ask for nobody is spared any more.
const SPARED_UNTIL: u32 = 8;
/// Chunks looked at for the rarest: enough to choose well, few enough to be quick.
const LOOKED_AT_MAX: usize = 4096;
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Plan {
    size: u64,
    /// Differs from node to node, so that nodes choose differently where it makes no difference.
    salt: u64,
    /// Neither here nor asked for.
    wanted: Bits,
    here: Bits,
    /// Links that were asked for a chunk which is not here yet; rarely more than one.
    asked: BTreeMap<u32, Vec<Link>>,
    /// How many of the peers that have a part have this chunk.
    rarity: Vec<u16>,
    listed: bool,
    full: bool,
    candidates: Vec<NodeId>,
    peers: BTreeMap<NodeId, Peer>,
    links: BTreeMap<Link, State>,
    next: u32,
}

#[derive(Debug, Default)]
struct Peer {
    links: BTreeSet<Link>,
    /// Known while there is a link.
    held: Option<Held>,
    size: u64,
    has_no_list: bool,
    /// It has sent a good chunk; until then one link has to do.
    proven: bool,
    /// It took no more links than this.
    links_max: Option<usize>,
    failures: u32,
    not_before: Duration,
    liar: bool,
}

#[derive(Debug)]
struct State {
    peer: NodeId,
    opened: bool,
    asked_list: bool,
    /// In the order of asking, with the time.
    asked: VecDeque<(u32, Duration)>,
    last_got: Duration,
    /// Time a chunk takes, smoothed.
    pace: Option<Duration>,
}

impl Plan {
    /// `here`: what is there already. `size` is what the blob is said to have.
    pub(crate) fn new(size: u64, here: Bits, listed: bool, salt: u64) -> Self {
        let len = here.len();
        let mut wanted = Bits::none(len);
        Bits::all(len).without(&here).for_each(|chunk| _ = wanted.put(chunk));
        Self {
            size,
            salt,
            wanted,
            here,
            asked: BTreeMap::new(),
            rarity: vec![0; len as usize],
            listed,
            full: false,
            candidates: Vec::new(),
            peers: BTreeMap::new(),
            links: BTreeMap::new(),
            next: 0,
        }
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.listed && self.here.is_full()
    }

    /// Whether somebody was asked for something, or is being dialled.
    pub(crate) fn has_sources(&self) -> bool {
        !self.asked.is_empty() || self.links.values().any(|state| !state.opened || state.asked_list)
    }

    pub(crate) fn peer_of(&self, link: Link) -> Option<NodeId> {
        self.links.get(&link).map(|state| state.peer)
    }

    /// `now` is the time since any fixed start.
    pub(crate) fn on(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Sources(candidates) => self.candidates = candidates,
            Event::Opened { link, size, held } => self.opened(link, size, held, &mut actions),
            Event::News { link, chunks } => self.news(link, &chunks),
            Event::Listed { link } => self.on_listed(now, link, &mut actions),
            Event::NoList { link } => self.no_list(link),
            Event::Got { link, chunk } => self.got(now, link, chunk),
            Event::NoChunk { link, chunk } => self.no_chunk(link, chunk),
            Event::Down { link, why } => self.down(now, link, why, &mut actions),
            Event::Lost { chunk } => {
                if self.here.take(chunk) {
                    self.wanted.put(chunk);
                }
            }
            Event::Full => self.full = true,
            Event::Room => self.full = false,
            Event::Tick => self.leave_slow(now, &mut actions),
        }
        if !self.is_complete() && !self.full {
            self.dial(now, &mut actions);
            self.ask(now, &mut actions);
        }
        actions
    }

    fn opened(&mut self, link: Link, size: u64, held: Held, actions: &mut Vec<Action>) {
        let Some(state) = self.links.get_mut(&link) else { return };
        state.opened = true;
        let id = state.peer;
        if self.listed && size != self.size {
            return self.shun(id, Lie::Size, actions);
        }
        self.forget_held(id);
        if let (Held::Part(bits), true) = (&held, size == self.size) {
            bits.iter().for_each(|chunk| self.rarity[chunk as usize] += 1);
        }
        let peer = self.peers.entry(id).or_default();
        (peer.held, peer.size, peer.has_no_list) = (Some(held), size, false);
    }

    fn news(&mut self, link: Link, chunks: &[u32]) {
        let Some(peer) = self.links.get(&link).and_then(|state| self.peers.get_mut(&state.peer)) else { return };
        peer.has_no_list = false;
        let (Some(Held::Part(bits)), true) = (&mut peer.held, peer.size == self.size) else { return };
        for chunk in chunks {
            if bits.put(*chunk) {
                self.rarity[*chunk as usize] += 1;
            }
        }
    }

    /// The size is proven with the list: whoever says another is lying.
    fn on_listed(&mut self, now: Duration, link: Link, actions: &mut Vec<Action>) {
        self.listed = true;
        self.got(now, link, self.here.len() - 1);
        self.links.values_mut().for_each(|state| state.asked_list = false);
        let is_liar = |peer: &&NodeId| {
            let peer = &self.peers[*peer];
            peer.held.is_some() && peer.size != self.size
        };
        let liars: Vec<NodeId> = self.peers.keys().filter(is_liar).copied().collect();
        liars.into_iter().for_each(|peer| self.shun(peer, Lie::Size, actions));
    }

    fn no_list(&mut self, link: Link) {
        let Some(state) = self.links.get_mut(&link) else { return };
        state.asked_list = false;
        self.peers.entry(state.peer).or_default().has_no_list = true;
    }

    fn got(&mut self, now: Duration, link: Link, chunk: u32) {
        if let Some(state) = self.links.get_mut(&link) {
            if let Some(at) = state.asked.iter().position(|(asked, _)| *asked == chunk) {
                let (_, asked) = state.asked.remove(at).expect("it was just found");
                let took = now.saturating_sub(asked.max(state.last_got));
                state.pace = Some(state.pace.map_or(took, |pace| (pace * 7 + took) / 8));
            }
            state.last_got = now;
            let peer = self.peers.entry(state.peer).or_default();
            (peer.proven, peer.failures) = (true, 0);
        }
        self.asked.remove(&chunk);
        self.wanted.take(chunk);
        self.here.put(chunk);
    }

    /// No lie: it may have been damaged or removed since.
    fn no_chunk(&mut self, link: Link, chunk: u32) {
        let Some(state) = self.links.get_mut(&link) else { return };
        state.asked.retain(|(asked, _)| *asked != chunk);
        let id = state.peer;
        self.release(link, chunk);
        let len = self.here.len();
        let peer = self.peers.entry(id).or_default();
        if peer.size != self.size {
            return;
        }
        match &mut peer.held {
            Some(Held::Part(bits)) => self.rarity[chunk as usize] -= u16::from(bits.take(chunk)),
            Some(held @ Held::Whole) => {
                let mut bits = Bits::all(len);
                bits.take(chunk);
                bits.iter().for_each(|chunk| self.rarity[chunk as usize] += 1);
                *held = Held::Part(bits);
            }
            None => {}
        }
    }

    fn down(&mut self, now: Duration, link: Link, why: Why, actions: &mut Vec<Action>) {
        let Some(id) = self.drop_link(link) else { return };
        let peer = self.peers.entry(id).or_default();
        match why {
            Why::Lied(lie) => return self.shun(id, lie, actions),
            // One link more than it takes.
            Why::Busy if !peer.links.is_empty() => peer.links_max = Some(peer.links.len()),
            Why::Busy | Why::Broken | Why::Nothing | Why::Stalled => {
                let factor = 1 << peer.failures.min(5);
                peer.failures = peer.failures.saturating_add(1);
                peer.not_before = now + (BACK_OFF * factor).min(BACK_OFF_MAX);
                if why == Why::Stalled {
                    // What its other links were asked for would have to wait as long.
                    let links: Vec<Link> = peer.links.iter().copied().collect();
                    for link in links {
                        self.drop_link(link);
                        actions.push(Action::HangUp { link });
                    }
                }
            }
        }
        if self.peers[&id].links.is_empty() {
            self.forget_held(id);
        }
    }

    fn shun(&mut self, id: NodeId, lie: Lie, actions: &mut Vec<Action>) {
        self.forget_held(id);
        let peer = self.peers.entry(id).or_default();
        if !peer.liar {
            actions.push(Action::Shun { peer: id, lie });
        }
        peer.liar = true;
        for link in std::mem::take(&mut peer.links) {
            self.drop_link(link);
            actions.push(Action::HangUp { link });
        }
    }

    /// Takes back what it was asked for.
    fn drop_link(&mut self, link: Link) -> Option<NodeId> {
        let state = self.links.remove(&link)?;
        for (chunk, _) in state.asked {
            self.release(link, chunk);
        }
        self.peers.entry(state.peer).or_default().links.remove(&link);
        Some(state.peer)
    }

    fn release(&mut self, link: Link, chunk: u32) {
        let Some(links) = self.asked.get_mut(&chunk) else { return };
        links.retain(|other| *other != link);
        if links.is_empty() {
            self.asked.remove(&chunk);
            self.wanted.put(chunk);
        }
    }

    fn forget_held(&mut self, id: NodeId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let (Some(Held::Part(bits)), true) = (peer.held.take(), peer.size == self.size) {
            bits.iter().for_each(|chunk| self.rarity[chunk as usize] -= 1);
        }
    }

    fn leave_slow(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let lively = |state: &State| state.pace.is_some() && now.saturating_sub(state.last_got) < SLOW / 2;
        if !self.links.values().any(lively) {
            return;
        }
        let is_slow = |state: &State| state.asked.front().is_some_and(|(_, at)| now.saturating_sub(*at) > SLOW);
        let slow: Vec<Link> = self.links.iter().filter(|(_, state)| is_slow(state)).map(|(link, _)| *link).collect();
        for link in slow {
            actions.push(Action::HangUp { link });
            self.down(now, link, Why::Broken, actions);
        }
    }

    // ---- dialling

    fn dial(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let mut linked = self.peers.values().filter(|peer| !peer.links.is_empty()).count();
        let mut order: Vec<NodeId> = self.candidates.clone();
        if order.len() > PEERS_MAX {
            order.sort_by_key(|id| mix(self.salt, id));
        }
        for id in order {
            let peer = self.peers.entry(id).or_default();
            if linked >= PEERS_MAX {
                break;
            }
            if peer.links.is_empty() && !peer.liar && peer.not_before <= now {
                self.open(now, id, actions);
                linked += 1;
            }
        }
        if self.wanted.count() == 0 {
            return;
        }
        let links_max = if linked == 1 { LINKS_ALONE_MAX } else { LINKS_MAX };
        let takes_more = |peer: &Peer| peer.proven && peer.links.len() < peer.links_max.unwrap_or(links_max);
        let more: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.links.is_empty() && takes_more(peer) && peer.not_before <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in more {
            // One at a time: the next when this one has opened.
            if self.peers[&id].links.iter().all(|link| self.links[link].opened) {
                self.open(now, id, actions);
            }
        }
    }

    fn open(&mut self, now: Duration, peer: NodeId, actions: &mut Vec<Action>) {
        let link = Link(self.next);
        self.next += 1;
        let state = State { peer, opened: false, asked_list: false, asked: VecDeque::new(), last_got: now, pace: None };
        self.links.insert(link, state);
        self.peers.entry(peer).or_default().links.insert(link);
        actions.push(Action::Dial { link, peer });
    }

    // ---- asking

    fn ask(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if !self.listed {
            return self.ask_list(actions);
        }
        // In turns, so that one link does not take what another is waiting for.
        let mut hungry: Vec<Link> =
            self.links.iter().filter(|(_, state)| state.opened).map(|(link, _)| *link).collect();
        while !hungry.is_empty() {
            hungry.retain(|link| {
                let state = &self.links[link];
                let is_full = match self.spares(state.peer) {
                    true => self.peers[&state.peer].links.iter().any(|link| !self.links[link].asked.is_empty()),
                    false => state.is_full(),
                };
                if is_full {
                    return false;
                }
                let Some(chunk) = self.pick(*link).or_else(|| self.pick_late(now, *link)) else { return false };
                self.wanted.take(chunk);
                self.asked.entry(chunk).or_default().push(*link);
                let state = self.links.get_mut(link).expect("it is one of ours");
                state.asked.push_back((chunk, now));
                actions.push(Action::Ask { link: *link, chunk });
                true
            });
        }
    }

    /// One is asked at a time, those first that give the blob the size we were told.
    fn ask_list(&mut self, actions: &mut Vec<Action>) {
        if self.links.values().any(|state| state.asked_list) {
            return;
        }
        let may = |state: &State| {
            let peer = &self.peers[&state.peer];
            state.opened && peer.held.is_some() && !peer.has_no_list
        };
        let best = self.links.iter().filter(|(_, state)| may(state)).min_by_key(|(link, state)| {
            let peer = &self.peers[&state.peer];
            (peer.size != self.size, !matches!(peer.held, Some(Held::Whole)), **link)
        });
        if let Some(link) = best.map(|(link, _)| *link) {
            self.links.get_mut(&link).expect("it was just found").asked_list = true;
            actions.push(Action::AskList { link });
        }
    }

    /// The rarest of what its peer has and nobody was asked for.
    fn pick(&self, link: Link) -> Option<u32> {
        if self.wanted.count() == 0 {
            return None;
        }
        let swarm = self.parts() > 0;
        let len = self.wanted.len();
        let spares = self.spares(self.links[&link].peer);
        let from = match swarm {
            // Each time somewhere else: two that read on from where they are meet, and ask the same from then on.
            true if spares => (scattered(self.salt ^ u64::from(self.here.count())) % u64::from(len)) as u32,
            true => (self.salt % u64::from(len)) as u32,
            false => 0,
        };
        let rarest = |candidates: &mut dyn Iterator<Item = u32>| match swarm {
            true => candidates.take(LOOKED_AT_MAX).min_by_key(|chunk| self.rarity[*chunk as usize]),
            false => candidates.next(),
        };
        let held = match self.peers[&self.links[&link].peer].held.as_ref()? {
            Held::Whole => &self.wanted,
            Held::Part(bits) => bits,
        };
        let behind = held.both_from(&self.wanted, from);
        let before = held.both_from(&self.wanted, 0).take_while(|chunk| *chunk < from);
        let mut all = behind.chain(before);
        match spares {
            true => all.take(LOOKED_AT_MAX).find(|chunk| self.rarity[*chunk as usize] == 0),
            false => rarest(&mut all),
        }
    }

    /// Peers that have a part of it.
    fn parts(&self) -> usize {
        self.peers.values().filter(|peer| matches!(peer.held, Some(Held::Part(_)))).count()
    }

    /// It has all, and enough others have some.
    fn spares(&self, peer: NodeId) -> bool {
        let is_whole = self.peers.get(&peer).is_some_and(|peer| matches!(peer.held, Some(Held::Whole)));
        is_whole && self.wanted.count() > SPARED_UNTIL && self.parts() >= SPARED_FROM
    }

    /// What another link was asked for and has not sent, where this one has nothing else to do and is quicker.
    fn pick_late(&self, now: Duration, link: Link) -> Option<u32> {
        let state = &self.links[&link];
        if self.wanted.count() > 0 || !state.asked.is_empty() {
            return None;
        }
        let held = self.peers[&state.peer].held.as_ref()?;
        let late = LATE.max(state.pace.unwrap_or(LATE) * 2);
        let is_late = |chunk: u32, links: &[Link]| {
            let [other] = links else { return false };
            let asked = self.links[other].asked.iter().find(|(asked, _)| *asked == chunk);
            asked.is_some_and(|(_, at)| now.saturating_sub(*at) > late)
        };
        let has = |chunk: u32| match held {
            Held::Whole => true,
            Held::Part(bits) => bits.has(chunk),
        };
        self.asked.iter().find(|(chunk, links)| has(**chunk) && is_late(**chunk, links)).map(|(chunk, _)| *chunk)
    }
}

impl State {
    fn is_full(&self) -> bool {
        let depth = match self.pace {
            None => DEPTH_FIRST,
            Some(pace) => {
                let sent = DEPTH.as_nanos() / pace.as_nanos().max(1);
                (sent as usize + 1).clamp(DEPTH_FIRST, DEPTH_MAX)
            }
        };
        self.asked.len() >= depth
    }
}

/// An order of the peers that differs from node to node.
fn mix(salt: u64, peer: &NodeId) -> u64 {
    let key = peer.public_key();
    let word = u64::from_le_bytes(key[..8].try_into().expect("a key has 32 bytes"));
    scattered(word ^ salt)
}

fn scattered(word: u64) -> u64 {
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}
