//! This node's hold on the registry.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use net::{Keypair, Net, Services};
use openraft::async_runtime::WatchReceiver;
use openraft::{AsyncRuntime, Instant};
use serde::{Deserialize, Serialize};
use types::{MeshId, NodeId, NodeName, RaftId, RequestId, Role, Scopes, UnixMillis};

use crate::error::Error;
use crate::join::{DOORS_MAX, Door, Token};
use crate::keys::NewKey;
use crate::protocol::{
    APPENDS_SPEC, ASK, ASK_SPEC, CALLS_SPEC, FOLLOW_SPEC, JOIN_SPEC, Proposal, SNAPSHOTS_SPEC, Told, Wish, Word,
};
use crate::raft::log::LogStore;
use crate::raft::machine::Machine;
use crate::raft::network::Factory;
use crate::raft::service::Service;
use crate::raft::{LeaderId, Raft, Seat};
use crate::registry::members::FOUNDER;
use crate::registry::{Actor, Addresses, ApiKey, Candidate, Done, JoinToken, KeyLimits, Registry, StateHash, Verb};
use crate::runtime::{Live, Runtime};
use crate::shelf::Shelf;
use crate::task::Task;
use crate::view::{Changes, View};
use crate::voters::task::Watch;
use crate::{Timing, follow, join, leader, pack};

/// Between two attempts to find a leader.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(200);

/// A leader says within less whether it has committed something; whoever takes longer is asked again, or another one.
const ANSWER_MAX: Duration = Duration::from_secs(6);

/// Between two looks at whether whoever is asked still leads.
const SUPERSEDED_LOOK: Duration = Duration::from_millis(100);

/// How long a removed node is heard out.
const PARTING: Duration = Duration::from_millis(1_500);

/// How long `status` waits for word from a quorum.
const QUORUM_PROBE: Duration = Duration::from_millis(1_500);

/// The registry of a mesh, at one node. Cheap to clone.
pub struct Cluster<R: Runtime = Live>(pub(crate) Arc<Inner<R>>);

pub(crate) struct Inner<R: Runtime> {
    pub(crate) belonging: Belonging,
    pub(crate) keypair: Keypair,
    pub(crate) net: Net,
    /// Workers have none: they never vote.
    pub(crate) raft: Option<Raft<R>>,
    /// Who led, by this node's vote, and how far its log went when it started.
    pub(crate) boot: Boot,
    pub(crate) log: store::Log,
    pub(crate) shelf: Shelf,
    pub(crate) view: Arc<View<R>>,
    pub(crate) config: Config,
    outside: Outside,
    /// Who led when we last asked.
    leader_hint: Mutex<Option<NodeId>>,
    /// The latest word of a voter that this node has checked, for those who follow it in turn.
    pub(crate) word: Mutex<Option<Word>>,
    /// Members that are going down, by when they said so. Only the leader's counts; it lasts a minute.
    pub(crate) leaving: Mutex<BTreeMap<RaftId, <R::Async as AsyncRuntime>::Instant>>,
    /// Who is up, and since when. Every node looks, so that a new leader knows.
    pub(crate) watch: Mutex<Watch<R>>,
    /// Members that were taken out a moment ago, and when this node heard of it.
    parting: Mutex<Vec<(net::Member, <R::Async as AsyncRuntime>::Instant)>>,
    admitted: Mutex<Vec<net::Member>>,
    /// One change of seats at a time.
    pub(crate) seating: futures::lock::Mutex<()>,
}

/// What a node keeps of its membership beside the registry, written before it acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Belonging {
    pub mesh: MeshId,
    pub raft: RaftId,
    pub role: Role,
    pub incarnation: [u8; 16],
}

impl codec::Record for Belonging {
    const VERSION: u8 = 1;
    const LIMIT: usize = 256;
}

#[derive(Debug, Clone)]
pub struct Config {
    pub timing: Timing,
    /// How long a write or a fresh read looks for a leader. Default: 10 s.
    pub patience: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { timing: Timing::default(), patience: Duration::from_secs(10) }
    }
}

/// A leader may go on leading after its own restart, in the same term. It has forgotten then how much it had committed,
/// and a read must not take the little it remembers for all there is.
pub(crate) struct Boot {
    pub(crate) leader: Option<LeaderId>,
    pub(crate) last_index: u64,
}

/// What a cluster is built from.
#[expect(missing_debug_implementations, reason = "taken apart at once")]
pub struct Parts {
    pub keypair: Keypair,
    pub net: Net,
    pub log: store::Log,
    pub shelf: Shelf,
    pub outside: Outside,
}

/// The wall clock and the source of randomness, given from outside so that a simulation owns them.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "two functions")]
pub struct Outside {
    pub wall_clock: Arc<dyn Fn() -> UnixMillis + Send + Sync>,
    pub random: Arc<dyn Fn() -> [u8; 32] + Send + Sync>,
}

/// How a node comes to its registry.
#[derive(Debug)]
pub enum Start {
    /// Its own mesh, with itself as the first member. Safe to repeat.
    Found(Candidate),
    /// As it was told when it joined.
    Joined(Box<Registry>),
    /// As it was left.
    Resumed,
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Includes every write that was acknowledged before the read began, anywhere.
    Linearizable,
    /// Includes the log up to this index.
    AtLeast(u64),
    /// What this node has.
    Local,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub raft: RaftId,
    pub role: Role,
    pub term: Option<u64>,
    pub leader: Option<NodeId>,
    /// Whether a majority of the voters answered just now.
    pub quorum: bool,
    pub voter: bool,
    /// No voter this node knows votes any more: it believes nobody, and must be let in anew.
    pub estranged: bool,
    pub applied: u64,
    pub state_hash: StateHash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshots {
    pub built: u64,
    pub installed: u64,
}

impl<R: Runtime> Clone for Cluster<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R: Runtime> fmt::Debug for Cluster<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("belonging", &self.0.belonging).finish_non_exhaustive()
    }
}

impl<R: Runtime> Cluster<R> {
    /// Opens the registry. The network need not run yet; the task must, once it does.
    pub async fn open(
        config: Config,
        parts: Parts,
        belonging: Belonging,
        start: Start,
    ) -> Result<(Self, Task<R>), Error> {
        let Parts { keypair, net, log, shelf, outside } = parts;
        let view = Arc::new(View::new());
        match &start {
            Start::Joined(registry) => {
                follow::keep_joined(&shelf, registry).await?;
                view.followed.replace((**registry).clone());
            }
            Start::Found(_) | Start::Resumed => {
                match follow::kept(&shelf).await {
                    Ok(Some(registry)) => view.followed.replace(registry),
                    Ok(None) => {}
                    // Whoever votes has its log; it only takes longer to find the others.
                    Err(error) if belonging.role == Role::Node => {
                        tracing::warn!(%error, "the kept registry cannot be read");
                    }
                    Err(error) => return Err(Error::Kept(error)),
                }
            }
        }
        let boot = LogStore::<R>::boot(&log).map_err(Error::Kept)?;
        let raft = match belonging.role {
            Role::Worker => None,
            Role::Node => {
                let machine = Machine::open(view.clone(), shelf.clone(), log.clone()).await.map_err(Error::Kept)?;
                let (log, factory) = (LogStore::new(log.clone()), Factory::new(net.clone()));
                let raft = Raft::<R>::new(belonging.raft.0, config.timing.consensus(), factory, log, machine).await;
                Some(raft.map_err(|error| Error::Consensus(error.to_string()))?)
            }
        };
        view.announce();
        let inner = Inner {
            belonging,
            keypair,
            net,
            raft,
            boot,
            log,
            shelf,
            view,
            config,
            outside,
            leader_hint: Mutex::default(),
            word: Mutex::default(),
            leaving: Mutex::default(),
            watch: Mutex::default(),
            parting: Mutex::default(),
            admitted: Mutex::default(),
            seating: futures::lock::Mutex::new(()),
        };
        let cluster = Self(Arc::new(inner));
        cluster.admit_members();
        if let Start::Found(candidate) = start {
            cluster.found(candidate).await?;
        }
        Ok((cluster.clone(), Task::new(cluster)))
    }

    /// Makes the mesh, or what a crash left of making it.
    async fn found(&self, member: Candidate) -> Result<(), Error> {
        let fatal = |error: &dyn fmt::Display| Error::Consensus(error.to_string());
        if self.view(|registry| registry.mesh().is_some()) {
            return Ok(());
        }
        let raft = self.0.raft.as_ref().ok_or(Error::Worker)?;
        // Its log says who else votes; the mesh was founded long ago.
        if raft.metrics().borrow_watched().membership_config.voter_ids().count() > 1 {
            return Ok(());
        }
        if !raft.is_initialized().await.map_err(|error| fatal(&error))? {
            let founder = BTreeMap::from([(FOUNDER.0, Seat(self.id()))]);
            raft.initialize(founder).await.map_err(|error| fatal(&error))?;
        }
        let verb = Verb::Found { mesh: self.mesh(), member };
        match self.write(Actor::Node(self.id()), verb).await {
            Ok(_) | Err(Error::Refused(crate::Refused::AlreadyFounded)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub fn id(&self) -> NodeId {
        self.0.net.local()
    }

    pub fn mesh(&self) -> MeshId {
        self.0.belonging.mesh
    }

    pub fn belonging(&self) -> &Belonging {
        &self.0.belonging
    }

    pub(crate) fn random(&self) -> [u8; 32] {
        (self.0.outside.random)()
    }

    pub(crate) fn wall_clock(&self) -> UnixMillis {
        (self.0.outside.wall_clock)()
    }

    /// Looks at the registry as this node has it. Short: writers wait meanwhile.
    pub fn view<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        self.0.view.read(look)
    }

    pub fn changes(&self) -> Changes<R> {
        self.0.view.changes()
    }

    /// Looks at the registry once it is as fresh as asked.
    ///
    /// May be dropped at any time.
    pub async fn read<T>(&self, consistency: Consistency, look: impl FnOnce(&Registry) -> T) -> Result<T, Error> {
        let patience = self.0.config.patience;
        let index = match consistency {
            Consistency::Local => 0,
            Consistency::AtLeast(index) => index,
            Consistency::Linearizable => self.read_index(patience).await?,
        };
        let mut changes = self.changes();
        let reached = <R::Async as AsyncRuntime>::timeout(patience, changes.reach(index)).await;
        reached.map_err(|_| Error::Behind { index, waited: patience })?;
        Ok(self.view(look))
    }

    /// The index a read must include to see all that was acknowledged so far.
    async fn read_index(&self, patience: Duration) -> Result<u64, Error> {
        match self.ask_leader(&Wish::ReadIndex, patience).await? {
            Told::ReadIndex(index) => Ok(index),
            other => Err(Error::Consensus(format!("asked for an index, told {other:?}"))),
        }
    }

    /// Asks the registry for a change, through whoever leads. Returns when it is committed and this node's leader has
    /// applied it.
    ///
    /// Dropping the future does not take the change back.
    pub async fn write(&self, by: Actor, verb: Verb) -> Result<Done, Error> {
        let random = self.random();
        let id = *random.first_chunk().expect("32 is over 16");
        self.write_as(RequestId::from_bytes(id), by, verb).await
    }

    /// Like `write`, under an id of the caller's: the same id is carried out once, however often it is sent.
    pub async fn write_as(&self, id: RequestId, by: Actor, verb: Verb) -> Result<Done, Error> {
        let proposal = Proposal { mesh: self.mesh(), id, by, verb };
        let bytes = codec::encode(&proposal).map_err(|error| too_large(&error))?;
        match self.ask_leader(&Wish::Write(Box::new(proposal), bytes.into()), self.0.config.patience).await? {
            Told::Outcome(outcome) => Ok(outcome?),
            other => Err(Error::Consensus(format!("asked for a change, told {other:?}"))),
        }
    }

    /// Asks until somebody who leads has answered. Everything asked may be asked twice.
    pub(crate) async fn ask_leader(&self, wish: &Wish, patience: Duration) -> Result<Told, Error> {
        // Signed when somebody else is asked for the first time: mostly nobody is, or just one.
        let signed = OnceLock::new();
        let started = <R::Async as AsyncRuntime>::Instant::now();
        let mut pause = RETRY_MIN;
        let mut maybe_done = false;
        for attempt in 0_usize.. {
            if let Some(error) = self.0.log.failure() {
                return Err(error.into());
            }
            let waited = started.elapsed();
            if waited >= patience {
                break;
            }
            match self.ask_once(wish, &signed, attempt, patience - waited).await {
                Some(Told::NoSpace) if !maybe_done => return Err(Error::NoSpace),
                Some(Told::NoSpace) => {}
                Some(Told::NotLeader { .. }) | None => {}
                Some(Told::Unknown) => maybe_done = true,
                Some(told) => return Ok(told),
            }
            <R::Async as AsyncRuntime>::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
        match maybe_done {
            true => Err(Error::Unknown { waited: patience }),
            false => Err(Error::NoLeader { waited: patience, absent: self.absent_voters() }),
        }
    }

    /// One attempt. `None`: there was nobody to ask.
    async fn ask_once(&self, wish: &Wish, signed: &OnceLock<Bytes>, attempt: usize, limit: Duration) -> Option<Told> {
        let target = self.leader_to_ask(attempt)?;
        let asked = async {
            if target == self.id() {
                let answer = leader::grant(self, self.id(), wish.clone());
                return <R::Async as AsyncRuntime>::timeout(limit, answer).await.unwrap_or(Told::Unknown);
            }
            let body = signed.get_or_init(|| pack(&wish.sign(&self.0.keypair))).clone();
            match self.0.net.request_within(target, ASK, body, limit.min(ANSWER_MAX)).await {
                Ok(answer) => codec::decode(&answer).unwrap_or(Told::Unknown),
                Err(error) if error.maybe_done() => Told::Unknown,
                Err(_) => Told::NotLeader { leader: None },
            }
        };
        let told = match select(pin!(asked), pin!(self.superseded(target))).await {
            Either::Left((told, _)) => told,
            // It may be in the old leader's log, and that may yet be committed.
            Either::Right(((), _)) => Told::Unknown,
        };
        let hint = match &told {
            Told::NotLeader { leader } => *leader,
            Told::Unknown => None,
            _ => Some(target),
        };
        *self.0.leader_hint.lock().unwrap_or_else(PoisonError::into_inner) = hint;
        Some(told)
    }

    /// Returns once this node's own consensus has come to know another leader than whoever is asked: a machine that stands
    /// still, or is gone without a word, keeps those who wait for it longer than an election takes. The same for this
    /// node itself, once it leads no more: what it has appended is neither committed nor refused until others say so.
    async fn superseded(&self, target: NodeId) {
        let before = self.leader();
        let led = target == self.id() && self.is_leader();
        let stands = || {
            let elsewhere = self.leader().is_some_and(|leader| leader != target && Some(leader) != before);
            !elsewhere && (!led || self.is_leader())
        };
        while stands() {
            // Looked at now and then, since the consensus tells of every entry, and most answers come sooner.
            <R::Async as AsyncRuntime>::sleep(SUPERSEDED_LOOK).await;
        }
    }

    /// The consensus knows best; then what we were told; then one voter after another. Never one that is not connected:
    /// a request would wait for a dial, which takes seconds where a machine is gone, and meanwhile another one leads.
    /// The network dials again by itself.
    fn leader_to_ask(&self, attempt: usize) -> Option<NodeId> {
        let reachable = |id: &NodeId| *id == self.id() || self.0.net.is_connected(id);
        if let Some(leader) = self.leader().filter(reachable) {
            return Some(leader);
        }
        let hint = *self.0.leader_hint.lock().unwrap_or_else(PoisonError::into_inner);
        hint.filter(reachable).or_else(|| {
            let voters: Vec<_> = self.voters().into_iter().filter(reachable).collect();
            (!voters.is_empty()).then(|| voters[attempt % voters.len()])
        })
    }

    /// Who leads, as far as this node's own consensus knows.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let raft = self.0.raft.as_ref()?;
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        // Whoever is outside the group hears of a new leader last.
        let seated = metrics.membership_config.voter_ids().any(|id| id == self.0.belonging.raft.0);
        seated.then(|| metrics.membership_config.get_node(&leader).map(|seat| seat.0)).flatten()
    }

    /// Who leads, as far as this node has heard. May be out of date; `status` asks.
    pub fn leader_seen(&self) -> Option<NodeId> {
        self.leader().or(*self.0.leader_hint.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The consensus' term; nothing on a worker.
    pub fn term(&self) -> Option<u64> {
        self.0.raft.as_ref().map(|raft| raft.metrics().borrow_watched().current_term)
    }

    /// How many snapshots this node has made itself and taken from a leader, since it started.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots { built: self.0.view.built.get(), installed: self.0.view.installed.get() }
    }

    /// Index and hash of the registry as this node has it.
    pub fn position(&self) -> (u64, StateHash) {
        self.0.view.now()
    }

    pub fn is_leader(&self) -> bool {
        self.0.raft.as_ref().is_some_and(Raft::<R>::is_leader)
    }

    fn voters(&self) -> Vec<NodeId> {
        self.view(|registry| {
            let seated = registry.seats().voters.iter();
            seated.filter_map(|raft| registry.member_with(*raft)).map(|member| member.id).collect()
        })
    }

    pub(crate) fn is_voter(&self) -> bool {
        self.0.raft.is_some() && self.view(|registry| registry.seats().voters.contains(&self.0.belonging.raft))
    }

    /// For how long this node cannot be sure to have heard everything. Nearly nothing for a leader with a quorum.
    pub fn age(&self) -> Duration {
        let Some(raft) = self.0.raft.as_ref().filter(|raft| raft.is_leader()) else { return self.0.view.heard_ago() };
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.membership_config.voter_ids().count() == 1 {
            return Duration::ZERO;
        }
        metrics.last_quorum_acked.map_or(Duration::MAX, |at| at.elapsed())
    }

    /// Voters that this node cannot reach.
    fn absent_voters(&self) -> Vec<NodeName> {
        let connected: Vec<_> =
            self.0.net.peers().into_iter().filter(|peer| peer.connected).map(|peer| peer.id).collect();
        let absent = self.voters().into_iter().filter(|id| *id != self.id() && !connected.contains(id));
        let names = |id: NodeId| self.view(|registry| registry.member(&id).map(|member| member.name.clone()));
        absent.filter_map(names).collect()
    }

    pub async fn status(&self) -> Status {
        let quorum = self.read_index(QUORUM_PROBE).await.is_ok();
        let (applied, state_hash) = self.position();
        Status {
            raft: self.0.belonging.raft,
            role: self.0.belonging.role,
            term: self.term(),
            leader: self.leader_seen().filter(|_| quorum),
            quorum,
            voter: self.is_voter(),
            estranged: self.0.view.estranged.load(Ordering::Relaxed),
            applied,
            state_hash,
        }
    }

    /// Makes a join token. Its secret half exists in the answer only.
    pub async fn create_token(&self, by: Actor, role: Role, uses: u32, ttl: Duration) -> Result<Token, Error> {
        let random = self.random();
        let seed = *random.first_chunk().expect("32 is over 16");
        let token = Token::new(self.mesh(), seed, self.doors());
        let now = self.wall_clock();
        let known = JoinToken { role, uses_left: uses, created_at: now, expires_at: now.after(ttl) };
        self.write(by, Verb::CreateToken { id: token.id(), token: known }).await?;
        Ok(token)
    }

    /// Where joiners may knock: here first, then at voters that are up.
    fn doors(&self) -> Vec<Door> {
        let up: Vec<_> = self.0.net.peers().into_iter().filter(|peer| peer.connected).map(|peer| peer.id).collect();
        let others = self.voters().into_iter().filter(|id| up.contains(id));
        let ids = std::iter::once(self.id()).chain(others).take(DOORS_MAX);
        let door = |id: NodeId| {
            let bulk = self.view(|registry| registry.member(&id).map(|member| member.addresses.bulk.clone()));
            Door { id, bulk: bulk.unwrap_or_default() }
        };
        ids.map(door).filter(|door| !door.bulk.is_empty()).collect()
    }

    /// Makes an API key. Its text exists in the answer only.
    pub async fn create_key(
        &self,
        by: Actor,
        name: String,
        scopes: Scopes,
        ttl: Option<Duration>,
        limits: KeyLimits,
    ) -> Result<NewKey, Error> {
        let random = self.random();
        let id = *random.first_chunk().expect("32 is over 6");
        let new = NewKey::from_random(self.random(), id);
        let now = self.wall_clock();
        let expires_at = ttl.map(|ttl| now.after(ttl));
        let key = ApiKey { name, hash: new.hash(), scopes, created_at: now, expires_at, limits };
        self.write(by, Verb::CreateKey { id: new.id.clone(), key }).await?;
        Ok(new)
    }

    /// Takes in a key that was made elsewhere, opening everything, where there is no key yet.
    pub async fn adopt_first_key(&self, by: Actor, new: &NewKey) -> Result<(), Error> {
        if self.view(|registry| registry.keys().next().is_none()) {
            let (name, hash, scopes) = ("the first".to_owned(), new.hash(), Scopes::all());
            let (created_at, limits) = (self.wall_clock(), KeyLimits::NONE);
            let key = ApiKey { name, hash, scopes, created_at, expires_at: None, limits };
            self.write(by, Verb::CreateKey { id: new.id.clone(), key }).await?;
        }
        Ok(())
    }

    /// What this node answers to its peers.
    pub fn services(&self) -> Services {
        let me = || self.clone();
        let (asked, followed, joined) = (me(), me(), me());
        let services = Services::new()
            .on_request(ASK_SPEC, move |caller, body| {
                let cluster = asked.clone();
                Box::pin(async move {
                    let ask = codec::decode(&body).map_err(|_| net::Refusal::Malformed)?;
                    Ok(pack(&leader::answer(cluster, caller.id, ask).await))
                })
            })
            .on_stream(FOLLOW_SPEC, move |caller, stream| Box::pin(follow::serve(followed.clone(), caller, stream)))
            .on_stream(JOIN_SPEC, move |caller, stream| Box::pin(join::accept(joined.clone(), caller, stream)));
        let Some(raft) = &self.0.raft else { return services };
        let called = Service::<R>::new(raft.clone(), self.0.view.clone(), self.0.log.clone());
        let (fed, sent) = (called.clone(), called.clone());
        services
            .on_request(CALLS_SPEC, move |caller, body| Box::pin(called.clone().answer(caller, body)))
            .on_stream(APPENDS_SPEC, move |caller, stream| Box::pin(fed.clone().take_appends(caller, stream)))
            .on_stream(SNAPSHOTS_SPEC, move |caller, stream| Box::pin(sent.clone().receive_snapshot(caller, stream)))
    }

    /// Tells the network who is a member now. Who was one until a moment ago is heard out: it has to learn that it is
    /// none any more, and whoever leaves wants the answer. The registry takes nothing from it meanwhile.
    pub(crate) fn admit_members(&self) {
        let member = |member: &crate::Member| net::Member {
            id: member.id,
            role: member.role,
            mesh: member.addresses.mesh.clone(),
            bulk: member.addresses.bulk.clone(),
        };
        let same = |(known, is): (&net::Member, &crate::Member)| {
            let Addresses { mesh, bulk } = &is.addresses;
            known.id == is.id && known.role == is.role && known.mesh == *mesh && known.bulk == *bulk
        };
        let me = self.id();
        let mut admitted = self.0.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut parting = self.0.parting.lock().unwrap_or_else(PoisonError::into_inner);
        // This is asked with every batch of entries, and few are about members.
        let members = self.view(|registry| {
            let others = || registry.members().filter(|member| member.id != me);
            let unchanged = others().count() == admitted.len() && admitted.iter().zip(others()).all(same);
            (!unchanged || !parting.is_empty()).then(|| others().map(member).collect::<Vec<_>>())
        });
        let Some(members) = members else { return };
        let now = <R::Async as AsyncRuntime>::Instant::now();
        let stays = |id: NodeId| members.iter().any(|member| member.id == id);
        parting.extend(admitted.drain(..).filter(|member| !stays(member.id)).map(|member| (member, now)));
        parting.retain(|(member, since)| !stays(member.id) && now.saturating_duration_since(*since) < PARTING);
        admitted.clone_from(&members);
        let heard_out = parting.iter().map(|(member, _)| member.clone());
        self.0.net.admit(members.into_iter().chain(heard_out).collect());
    }
}

fn too_large(_: &codec::Error) -> Error {
    Error::Refused(crate::Refused::Full {
        what: "bytes of one change".to_owned(),
        limit: <Proposal as codec::Record>::LIMIT,
    })
}
