//! The common half of every transport: who may come in, which handler answers, under which limits. A transport brings
//! proven identities and bytes, and carries out what is decided here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use types::{NodeId, Role};

use crate::admission::{Admission, Member, Who, household};
use crate::clock::Clock;
use crate::error::Error;
use crate::handle::PeerStatus;
use crate::protocol::{Allowed, Protocol, Refusal, RequestSpec};
use crate::score::{Offence, Scores};
use crate::services::{Caller, OnStream, Services, Verdict};
use crate::stream::{ByteStream, Carrier};

pub(crate) struct Reception {
    pub(crate) local: NodeId,
    pub(crate) clock: Clock,
    /// Set once, when the task begins to run.
    services: OnceLock<Services>,
    state: Mutex<State>,
    /// Ends with the task: every stream and every waiting call ends with it.
    closed: CancellationToken,
    /// Told at each change of who may connect. The transport compares wanted with present.
    pub(crate) changed: Notify,
}

#[derive(Default)]
struct State {
    admission: Admission,
    scores: Scores,
    /// One entry for each member.
    peers: BTreeMap<NodeId, Peer>,
}

struct Peer {
    /// Cancelled when the peer is removed or cut off.
    token: CancellationToken,
    links: u32,
    via: Option<String>,
    round_trip: Option<Duration>,
    last_seen: Option<Duration>,
    last_error: Option<String>,
}

impl Reception {
    pub(crate) fn new(local: NodeId, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            local,
            clock,
            services: OnceLock::new(),
            state: Mutex::default(),
            closed: CancellationToken::new(),
            changed: Notify::new(),
        })
    }

    /// Opens for business.
    pub(crate) fn open(&self, services: Services) {
        // A task runs once, since running consumes it.
        let _ = self.services.set(services);
    }

    /// Cuts every stream and refuses whatever comes.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    pub(crate) fn services(&self) -> Result<&Services, Error> {
        match self.services.get() {
            Some(services) if !self.closed.is_cancelled() => Ok(services),
            _ => Err(Error::NotRunning),
        }
    }

    // Members.

    /// Takes the whole new set. Whoever lost something is cut before this returns.
    pub(crate) fn admit(&self, members: Vec<Member>) {
        let mut state = self.state();
        for loser in state.admission.replace(members) {
            if let Some(peer) = state.peers.get_mut(&loser) {
                peer.cut(&self.closed);
            }
        }
        let State { admission, scores, peers } = &mut *state;
        peers.retain(|id, _| admission.members().contains_key(id));
        scores.retain(|id| admission.members().contains_key(id));
        for id in admission.members().keys() {
            peers.entry(*id).or_insert_with(|| Peer::new(&self.closed));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The members that may be connected now: all but ourselves and those cut off.
    pub(crate) fn welcome(&self) -> Vec<Member> {
        let now = self.clock.elapsed();
        let state = self.state();
        let fits = |member: &&Member| member.id != self.local && !state.scores.is_cut(&member.id, now);
        state.admission.members().values().filter(fits).cloned().collect()
    }

    /// How long until `welcome` grows by itself.
    pub(crate) fn next_return(&self) -> Option<Duration> {
        let now = self.clock.elapsed();
        self.state().scores.next_return(now).map(|at| at.saturating_sub(now))
    }

    pub(crate) fn member(&self, peer: &NodeId) -> Option<Member> {
        self.state().admission.members().get(peer).cloned()
    }

    /// Whether a member is known to be at this IP address.
    pub(crate) fn is_member_address(&self, ip: std::net::IpAddr) -> bool {
        self.state().admission.members().values().any(|member| member.bulk.iter().any(|known| known.ip() == ip))
    }

    // What comes in.

    /// Answers one request of a member, within the deadline.
    pub(crate) async fn serve(self: Arc<Self>, from: NodeId, name: &str, body: Bytes) -> Result<Bytes, Refusal> {
        let services = self.services().map_err(|_| Refusal::Stopping)?;
        let (spec, handler) = services.request(name)?;
        let allowed = Allowed::Members(spec.roles);
        let Entry { role, cut, place: _place } =
            self.enter(spec.protocol.name(), from, None, allowed, (spec.concurrency_per_peer, usize::MAX))?;
        if body.len() > spec.request_bytes_max {
            self.offended(from, Offence::Oversize);
            return Err(Refusal::TooLarge);
        }
        let answer = handler(Caller { id: from, role, address: None }, body);
        let answer = tokio::select! {
            biased;
            () = cut.cancelled() => return Err(Refusal::NotAMember),
            answer = answer => answer?,
            () = self.clock.sleep(spec.deadline) => return Err(Refusal::Late),
        };
        if answer.len() > spec.response_bytes_max {
            tracing::error!(protocol = name, bytes = answer.len(), "our answer is larger than its protocol allows");
            return Err(Refusal::Failed("the answer is too large".to_owned()));
        }
        Ok(answer)
    }

    /// Decides on a stream. The permission is used by giving it the bytes.
    pub(crate) fn accept(
        self: &Arc<Self>,
        from: NodeId,
        address: Option<SocketAddr>,
        name: &str,
    ) -> Result<Accepted, Refusal> {
        let services = self.services().map_err(|_| Refusal::Stopping)?;
        // A stranger learns nothing about what we speak.
        let unknown = |refusal| if self.member(&from).is_some() { refusal } else { Refusal::NotAMember };
        let (spec, handler) = services.stream(name).map_err(unknown)?;
        let limits = (spec.concurrency_per_peer, spec.concurrency_total);
        let Entry { role, cut, place } = self.enter(spec.protocol.name(), from, address, spec.allowed, limits)?;
        Ok(Accepted { caller: Caller { id: from, role, address }, handler: handler.clone(), cut, place })
    }

    /// Judges a message by its author; who passed it on is a member, or it would not be connected.
    pub(crate) fn gossip(&self, author: NodeId, topic: &str, body: Bytes) -> Verdict {
        let Ok(services) = self.services() else { return Verdict::Ignore };
        let Some((spec, handler)) = services.topic(topic) else {
            self.offended(author, Offence::BadGossip);
            return Verdict::Reject;
        };
        let role = match self.check(author, Allowed::Members(spec.roles)) {
            Ok(role) => role,
            // It may have been removed while its message was on its way.
            Err(Refusal::NotAMember | Refusal::CutOff) => return Verdict::Ignore,
            Err(_) => return Verdict::Reject,
        };
        if body.len() > spec.message_bytes_max {
            self.offended(author, Offence::Oversize);
            return Verdict::Reject;
        }
        let verdict = handler(Caller { id: author, role, address: None }, body);
        if verdict == Verdict::Reject {
            self.offended(author, Offence::BadGossip);
        }
        verdict
    }

    fn check(&self, from: NodeId, allowed: Allowed) -> Result<Option<Role>, Refusal> {
        let checked = self.state().check(&from, allowed, self.clock.elapsed());
        self.blame_overreach(from, &checked);
        checked
    }

    /// Checks, takes a place and the token in one step, so that a removal cannot come in between and miss them.
    fn enter(
        self: &Arc<Self>,
        name: &'static str,
        from: NodeId,
        address: Option<SocketAddr>,
        allowed: Allowed,
        (per_peer, total): (usize, usize),
    ) -> Result<Entry, Refusal> {
        let mut state = self.state();
        let checked = state.check(&from, allowed, self.clock.elapsed());
        let entered = checked.clone().and_then(|role| {
            let who = match address.filter(|_| role.is_none()) {
                Some(address) => Who::Household(household(address.ip())),
                None => Who::Peer(from),
            };
            state.admission.enter(name, who, per_peer, total)?;
            let cut = state.token(&from, &self.closed);
            Ok(Entry { role, cut, place: Place { reception: self.clone(), name, who } })
        });
        drop(state);
        self.blame_overreach(from, &checked);
        entered
    }

    fn blame_overreach(&self, from: NodeId, checked: &Result<Option<Role>, Refusal>) {
        if *checked == Err(Refusal::RoleNotAllowed) {
            self.offended(from, Offence::Forbidden);
        }
    }

    /// Counts a broken rule. What strangers do is bounded where they come in, not remembered.
    pub(crate) fn offended(&self, peer: NodeId, offence: Offence) {
        let now = self.clock.elapsed();
        let mut state = self.state();
        let State { scores, peers, .. } = &mut *state;
        let Some(known) = peers.get_mut(&peer) else { return };
        known.last_error = Some(format!("it broke a rule: {offence:?}").to_lowercase());
        let cut = scores.add(peer, offence, now);
        if cut {
            known.cut(&self.closed);
        }
        drop(state);
        tracing::warn!(%peer, ?offence, cut, "a peer broke a rule");
        if cut {
            self.changed.notify_one();
        }
    }

    // What goes out.

    /// Whether a request may go out, under which spec, and what cuts it.
    pub(crate) fn outgoing(
        &self,
        peer: NodeId,
        protocol: Protocol,
        bytes: usize,
    ) -> Result<(RequestSpec, CancellationToken), Error> {
        let spec = *self.services()?.declared(protocol).ok_or(Error::Undeclared(protocol))?;
        let max = spec.request_bytes_max;
        if bytes > max {
            return Err(Error::TooLarge { name: protocol.name(), bytes, max });
        }
        Ok((spec, self.member_token(peer)?))
    }

    /// Cancelled when the peer is removed or cut off, or when we stop. Ourselves are no peer: who calls itself has taken
    /// a wrong turn.
    pub(crate) fn member_token(&self, peer: NodeId) -> Result<CancellationToken, Error> {
        if peer == self.local {
            return Err(Error::Unreachable { peer, reason: "it is this node itself".to_owned() });
        }
        self.state().peers.get(&peer).map(|known| known.token.clone()).ok_or(Error::NotAMember { peer })
    }

    // What is known about peers, for people.

    pub(crate) fn linked(&self, peer: &NodeId, links: u32, via: String) {
        self.note(peer, |known, now| {
            known.links = links;
            known.via = Some(via);
            known.last_seen = Some(now);
        });
    }

    pub(crate) fn unlinked(&self, peer: &NodeId, links_left: u32) {
        self.note(peer, |known, _| {
            known.links = links_left;
            if links_left == 0 {
                known.via = None;
                known.round_trip = None;
            }
        });
    }

    pub(crate) fn is_linked(&self, peer: &NodeId) -> bool {
        self.state().peers.get(peer).is_some_and(|known| known.links > 0)
    }

    pub(crate) fn heard(&self, peer: &NodeId, round_trip: Option<Duration>) {
        self.note(peer, |known, now| {
            known.last_seen = Some(now);
            known.round_trip = round_trip.or(known.round_trip);
        });
    }

    pub(crate) fn failed(&self, peer: &NodeId, error: impl Into<String>) {
        self.note(peer, |known, _| known.last_error = Some(error.into()));
    }

    pub(crate) fn peers(&self) -> Vec<PeerStatus> {
        let now = self.clock.elapsed();
        let state = self.state();
        let others = state.peers.iter().filter(|(id, _)| **id != self.local);
        others
            .map(|(id, peer)| PeerStatus {
                id: *id,
                connected: peer.links > 0,
                via: peer.via.clone(),
                round_trip: peer.round_trip,
                score: state.scores.points(id, now),
                cut_off: state.scores.is_cut(id, now),
                last_seen: peer.last_seen.map(|at| now.saturating_sub(at)),
                last_error: peer.last_error.clone(),
            })
            .collect()
    }

    fn note(&self, peer: &NodeId, change: impl FnOnce(&mut Peer, Duration)) {
        let now = self.clock.elapsed();
        if let Some(known) = self.state().peers.get_mut(peer) {
            change(known, now);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn check(&self, from: &NodeId, allowed: Allowed, now: Duration) -> Result<Option<Role>, Refusal> {
        if self.scores.is_cut(from, now) {
            return Err(Refusal::CutOff);
        }
        self.admission.check(from, allowed)
    }

    /// A stranger's streams end when we stop.
    fn token(&self, peer: &NodeId, closed: &CancellationToken) -> CancellationToken {
        self.peers.get(peer).map_or_else(|| closed.child_token(), |known| known.token.clone())
    }
}

/// What someone who came in holds.
struct Entry {
    role: Option<Role>,
    cut: CancellationToken,
    place: Place,
}

impl Peer {
    fn new(closed: &CancellationToken) -> Self {
        Self { token: closed.child_token(), links: 0, via: None, round_trip: None, last_seen: None, last_error: None }
    }

    /// Ends what is under way. What begins later gets a new token.
    fn cut(&mut self, closed: &CancellationToken) {
        std::mem::replace(&mut self.token, closed.child_token()).cancel();
    }
}

/// A stream that may be served.
pub(crate) struct Accepted {
    caller: Caller,
    handler: OnStream,
    cut: CancellationToken,
    place: Place,
}

impl Accepted {
    /// Runs the handler until it ends or the peer is cut.
    pub(crate) fn serve(self, carrier: Box<dyn Carrier>) -> BoxFuture<'static, ()> {
        let Self { caller, handler, cut, place } = self;
        let work = handler(caller, ByteStream::new(carrier, &cut));
        Box::pin(async move {
            let _place = place;
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                () = work => {}
            }
        })
    }
}

/// One of the places a protocol has; given back on drop.
struct Place {
    reception: Arc<Reception>,
    name: &'static str,
    who: Who,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.reception.state().admission.leave(self.name, self.who);
    }
}
