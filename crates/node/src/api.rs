//! What a node can be asked and told. HTTP, the command line and the dashboard are faces of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cluster::{
    Actor, Change, Cluster, Consistency, Grant, JournalEntry, KeyId, KeyLimits, Member, NewKey, Refused, Registry,
    StateHash, Token, TokenId, TokenPrefix, Verb,
};
use models::Models;
use net::{Net, PeerStatus};
use ollama::Endpoint;
use tokio::sync::broadcast;
use types::{Label, MeshId, NodeId, NodeName, RaftId, Role, Scopes, UnixMillis};

use crate::backend::{Backend, BackendInfo};
use crate::inference::Inference;
use crate::placement;

/// A node's interface to everything above it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Api(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cluster: Cluster,
    net: Net,
    log: store::Log,
    backend: Backend,
    inference: Inference,
    models: Models,
    placement: placement::Handle,
    started_at: UnixMillis,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Registry(#[from] cluster::Error),
    #[error("there is no node `{0}`")]
    UnknownNode(String),
    #[error("{0}")]
    BadRequest(String),
}

impl Error {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(error) => error.hint(),
            Self::UnknownNode(_) => Some("`omx nodes ls` lists the members".to_owned()),
            Self::BadRequest(_) => None,
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Registry(refused.into())
    }
}

#[derive(Debug, Clone)]
pub struct Status {
    pub version: &'static str,
    pub mesh: MeshId,
    pub mesh_name: String,
    pub node: NodeId,
    pub name: NodeName,
    pub role: Role,
    pub started_at: UnixMillis,
    pub leader: Option<(NodeId, NodeName)>,
    /// Whether a majority of the voters answered just now.
    pub quorum: bool,
    /// No voter this node knows votes any more: it believes nobody, and must be let in anew.
    pub estranged: bool,
    pub term: Option<u64>,
    pub applied: u64,
    pub state_hash: StateHash,
    /// Voters that cannot be reached: without a quorum, one of these must wake.
    pub absent_voters: Vec<NodeName>,
    /// No room on this node's disk.
    pub disk_low: bool,
    /// What runs models on this machine.
    pub backend: BackendInfo,
    pub members: Vec<NodeInfo>,
    /// Nodes of other meshes on the local network.
    pub strangers: Vec<(NodeId, String)>,
}

#[derive(Debug, Clone)]
pub struct NodeInfo {
    pub id: NodeId,
    pub name: NodeName,
    pub role: Role,
    pub raft: RaftId,
    pub seat: Seat,
    pub leader: bool,
    pub state: NodeState,
    pub drain: bool,
    pub labels: BTreeMap<String, String>,
    /// libp2p multiaddresses.
    pub mesh: Vec<String>,
    pub bulk: Vec<SocketAddr>,
    pub joined_at: UnixMillis,
    /// Nothing for this node itself.
    pub link: Option<Link>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    Voter,
    Learner,
    None,
}

/// As seen from this node, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    Up,
    Down,
}

#[derive(Debug, Clone)]
pub struct Link {
    pub via: Option<String>,
    pub round_trip: Option<Duration>,
    pub last_seen: Option<Duration>,
    pub score: f64,
    pub last_error: Option<String>,
}

#[derive(Debug, Clone)]
pub struct TokenInfo {
    pub id: TokenId,
    pub role: Role,
    pub uses_left: u32,
    pub created_at: UnixMillis,
    pub expires_at: UnixMillis,
}

#[derive(Debug, Clone)]
pub struct SettingInfo {
    pub key: String,
    pub value: String,
    pub default: String,
    pub about: String,
    /// Of the change that made it so; 0 for a default.
    pub index: u64,
}

#[derive(Debug, Clone)]
pub struct KeyInfo {
    pub id: KeyId,
    pub name: String,
    pub scopes: Scopes,
    pub created_at: UnixMillis,
    pub expires_at: Option<UnixMillis>,
    pub limits: KeyLimits,
}

/// An Ollama on a machine without a node.
#[derive(Debug, Clone)]
pub struct EnrolledInfo {
    pub name: NodeName,
    pub url: String,
    /// The one node that may stand before it; none where any may.
    pub node: Option<Standing>,
    /// Who stands before it now, as this node sees it.
    pub host: Option<Standing>,
    pub enrolled_at: UnixMillis,
}

/// A node before a backend.
#[derive(Debug, Clone)]
pub struct Standing {
    pub id: NodeId,
    /// None once it is no member any more.
    pub name: Option<NodeName>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The registry changed, or refused to. Its index orders these and can be resumed from.
    Registry(JournalEntry),
    Up {
        node: NodeId,
        name: NodeName,
    },
    Down {
        node: NodeId,
        name: NodeName,
    },
    Leader {
        node: Option<NodeId>,
        name: Option<NodeName>,
    },
}

/// Figures for `/metrics`, each read just now.
#[derive(Debug, Clone)]
pub struct Figures {
    pub members: usize,
    pub members_up: usize,
    pub voters: usize,
    pub is_leader: bool,
    pub term: Option<u64>,
    pub applied: u64,
    pub state_hash: StateHash,
    pub disk_free_bytes: Option<u64>,
    pub disk_low: bool,
    pub snapshots: cluster::Snapshots,
}

/// Whether a node can do its work, part by part. Every part must be well.
#[derive(Debug, Clone)]
pub struct Readiness {
    pub parts: Vec<(&'static str, Result<(), String>)>,
}

impl Readiness {
    pub fn ready(&self) -> bool {
        self.parts.iter().all(|(_, part)| part.is_ok())
    }
}

/// For taking back the drain of a node that could not leave.
const UNDRAIN_WITHIN: Duration = Duration::from_secs(3);

/// Events one listener may lag behind; then it is told how many it missed.
const EVENTS_MAX: usize = 256;

impl Api {
    pub(crate) fn new(
        cluster: Cluster,
        net: Net,
        log: store::Log,
        backend: Backend,
        inference: Inference,
        models: Models,
        placement: placement::Handle,
    ) -> Self {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        Self(Arc::new(Inner { cluster, net, log, backend, inference, models, placement, started_at: now(), events }))
    }

    /// Running models, on whichever node.
    pub fn inference(&self) -> &Inference {
        &self.0.inference
    }

    /// Bringing models to where they are wanted.
    pub fn models(&self) -> &Models {
        &self.0.models
    }

    pub(crate) fn placement(&self) -> &placement::Handle {
        &self.0.placement
    }

    /// What people call a node; its id, where it has left.
    pub fn name_of(&self, node: NodeId) -> String {
        let name = self.0.cluster.view(|registry| registry.member(&node).map(|member| member.name.to_string()));
        name.unwrap_or_else(|| node.to_string())
    }

    /// What runs models on this machine.
    pub fn backend(&self) -> &Backend {
        &self.0.backend
    }

    /// Who this node is in a command that someone at its local socket gives.
    pub fn user(&self, uid: u32) -> Actor {
        Actor::User { node: self.id(), uid }
    }

    /// A caller that showed no key, where none is needed.
    pub fn anonymous_actor(&self) -> Actor {
        Actor::Anonymous { node: self.id() }
    }

    pub fn key_holder(&self, key: KeyId) -> Actor {
        Actor::Key { node: self.id(), key }
    }

    pub fn id(&self) -> NodeId {
        self.0.cluster.id()
    }

    pub fn role(&self) -> Role {
        self.0.cluster.belonging().role
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.0.cluster
    }

    pub(crate) fn net(&self) -> &Net {
        &self.0.net
    }

    pub async fn status(&self) -> Status {
        let (status, backend) = futures::future::join(self.0.cluster.status(), self.0.backend.info()).await;
        let mut members = self.members();
        if !status.quorum {
            // Who led is not who leads.
            members.iter_mut().for_each(|member| member.leader = false);
        }
        let me = self.id();
        let name_of = |id: NodeId| members.iter().find(|member| member.id == id).map(|member| member.name.clone());
        let absent = |member: &&NodeInfo| member.seat == Seat::Voter && member.state == NodeState::Down;
        Status {
            version: env!("CARGO_PKG_VERSION"),
            mesh: self.0.cluster.mesh(),
            mesh_name: self.0.cluster.view(|registry| registry.settings().mesh_name().to_owned()),
            node: me,
            name: name_of(me).unwrap_or_else(|| NodeName::from_host("")),
            role: status.role,
            started_at: self.0.started_at,
            leader: status.leader.and_then(|id| name_of(id).map(|name| (id, name))),
            quorum: status.quorum,
            estranged: status.estranged,
            term: status.term,
            applied: status.applied,
            state_hash: status.state_hash,
            absent_voters: members.iter().filter(absent).map(|member| member.name.clone()).collect(),
            disk_low: self.0.log.space().is_ok_and(|space| space.low),
            backend,
            strangers: self.0.net.strangers_seen().into_iter().map(|found| (found.id, found.address)).collect(),
            members,
        }
    }

    /// The members by this node's own view, and how each looks from here.
    pub fn members(&self) -> Vec<NodeInfo> {
        let peers: BTreeMap<NodeId, PeerStatus> = self.0.net.peers().into_iter().map(|peer| (peer.id, peer)).collect();
        let leader = self.0.cluster.leader_seen();
        self.0.cluster.view(|registry| {
            let info = |member: &Member| self.info(registry, member, peers.get(&member.id), leader);
            registry.members().map(info).collect()
        })
    }

    fn info(
        &self,
        registry: &Registry,
        member: &Member,
        peer: Option<&PeerStatus>,
        leader: Option<NodeId>,
    ) -> NodeInfo {
        let me = member.id == self.id();
        let seats = registry.seats();
        NodeInfo {
            id: member.id,
            name: member.name.clone(),
            role: member.role,
            raft: member.raft,
            seat: match (seats.voters.contains(&member.raft), seats.learners.contains(&member.raft)) {
                (true, _) => Seat::Voter,
                (false, true) => Seat::Learner,
                (false, false) => Seat::None,
            },
            leader: leader == Some(member.id),
            // What this node cannot reach is not up for it; what is frozen stays connected, and the mesh knows.
            state: match me || peer.is_some_and(|peer| peer.connected) && self.0.inference.is_up(member.id) {
                true => NodeState::Up,
                false => NodeState::Down,
            },
            drain: member.drain,
            labels: member.labels.clone(),
            mesh: member.addresses.mesh.clone(),
            bulk: member.addresses.bulk.clone(),
            joined_at: member.joined_at,
            link: peer.map(|peer| Link {
                via: peer.via.clone(),
                round_trip: peer.round_trip,
                last_seen: peer.last_seen,
                score: peer.score,
                last_error: peer.last_error.clone(),
            }),
        }
    }

    pub async fn nodes(&self, consistency: Consistency) -> Result<Vec<NodeInfo>, Error> {
        self.0.cluster.read(consistency, |_| ()).await?;
        Ok(self.members())
    }

    /// A member by name, id, or the beginning of an id.
    pub async fn node(&self, selector: &str, consistency: Consistency) -> Result<NodeInfo, Error> {
        let nodes = self.nodes(consistency).await?;
        let unknown = || Error::UnknownNode(selector.chars().take(100).collect());
        let exact = nodes.iter().find(|node| node.name.as_str() == selector || node.id.to_string() == selector);
        if let Some(node) = exact {
            return Ok(node.clone());
        }
        // Every id begins alike; what tells them apart comes after that.
        let mut beginning = nodes
            .into_iter()
            .filter(|node| selector.len() > "12D3KooW".len() && node.id.to_string().starts_with(selector));
        let found = beginning.next().ok_or_else(unknown)?;
        if beginning.next().is_some() { Err(unknown()) } else { Ok(found) }
    }

    pub async fn set_drain(&self, by: Actor, selector: &str, drain: bool) -> Result<NodeInfo, Error> {
        self.change_node(by, selector, |node| Verb::SetDrain { node, drain }).await
    }

    pub async fn set_labels(
        &self,
        by: Actor,
        selector: &str,
        set: Vec<Label>,
        unset: Vec<String>,
    ) -> Result<NodeInfo, Error> {
        self.change_node(by, selector, |node| Verb::SetLabels { node, set, unset }).await
    }

    async fn change_node(
        &self,
        by: Actor,
        selector: &str,
        verb: impl FnOnce(NodeId) -> Verb,
    ) -> Result<NodeInfo, Error> {
        let node = self.node(selector, Consistency::Linearizable).await?;
        let done = self.0.cluster.write(by, verb(node.id)).await?;
        self.node(&node.id.to_string(), Consistency::AtLeast(done.index())).await
    }

    /// Removes a member and bars its key on all nodes. Returns the index of the change.
    pub async fn remove_node(&self, by: Actor, selector: &str) -> Result<u64, Error> {
        let node = self.node(selector, Consistency::Linearizable).await?;
        Ok(self.0.cluster.write(by, Verb::RemoveMember { node: node.id }).await?.index())
    }

    /// Takes this node out of the mesh: it takes no new work, others take over what it leads and votes for, then it is a
    /// member no more. Where that fails it works on as before, unless it is known to be removed all the same.
    pub async fn leave(&self, by: Actor, limit: Duration) -> Result<(), Error> {
        let cluster = &self.0.cluster;
        let drain = |drain| Verb::SetDrain { node: cluster.id(), drain };
        let drained_before = cluster.view(|registry| registry.member(&cluster.id()).is_some_and(|me| me.drain));
        let leaving = async {
            cluster.write(by.clone(), drain(true)).await?;
            cluster.step_aside(limit).await;
            cluster.leave(by.clone()).await
        };
        let left = leaving.await;
        if left.is_err() && !drained_before && !cluster.view(|registry| registry.is_removed(&cluster.id())) {
            // Whoever asked waits for the answer; where nobody takes writes it would not get better by waiting longer.
            match tokio::time::timeout(UNDRAIN_WITHIN, cluster.write(by, drain(false))).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "this node may stay, and be drained"),
                Err(_) => {
                    tracing::warn!("this node may stay, and be drained: nobody took it back in {UNDRAIN_WITHIN:?}")
                }
            }
        }
        Ok(left?)
    }

    pub async fn create_token(&self, by: Actor, role: Role, uses: u32, ttl: Duration) -> Result<Token, Error> {
        if uses == 0 {
            return Err(Error::BadRequest("a token is good for at least one use".to_owned()));
        }
        Ok(self.0.cluster.create_token(by, role, uses, ttl).await?)
    }

    pub async fn tokens(&self, consistency: Consistency) -> Result<Vec<TokenInfo>, Error> {
        let info = |(id, token): (&TokenId, &cluster::JoinToken)| TokenInfo {
            id: *id,
            role: token.role,
            uses_left: token.uses_left,
            created_at: token.created_at,
            expires_at: token.expires_at,
        };
        Ok(self.0.cluster.read(consistency, |registry| registry.tokens().map(info).collect()).await?)
    }

    pub async fn revoke_token(&self, by: Actor, id: &TokenPrefix) -> Result<u64, Error> {
        let found = self.0.cluster.read(Consistency::Linearizable, |registry| registry.token_beginning(id)).await?;
        let id = found.ok_or(Refused::UnknownToken)?;
        Ok(self.0.cluster.write(by, Verb::RevokeToken { id }).await?.index())
    }

    pub async fn settings(&self, consistency: Consistency) -> Result<Vec<SettingInfo>, Error> {
        let all = |registry: &Registry| {
            let keys = cluster::Settings::definitions().iter().map(|definition| definition.key);
            keys.map(|key| setting(registry, key)).collect::<Result<Vec<_>, Refused>>()
        };
        Ok(self.0.cluster.read(consistency, all).await??)
    }

    pub async fn setting(&self, key: &str, consistency: Consistency) -> Result<SettingInfo, Error> {
        Ok(self.0.cluster.read(consistency, |registry| setting(registry, key)).await??)
    }

    pub async fn setting_history(&self, key: &str, consistency: Consistency) -> Result<Vec<Change>, Error> {
        let history = |registry: &Registry| registry.settings().history(key).map(|all| all.cloned().collect());
        Ok(self.0.cluster.read(consistency, history).await??)
    }

    /// With `expect`, only where the last change of the setting has that index (0: never changed).
    pub async fn set(&self, by: Actor, key: &str, value: String, expect: Option<u64>) -> Result<SettingInfo, Error> {
        let verb = Verb::SetConfig { key: key.to_owned(), value: value.clone(), expect };
        let index = self.0.cluster.write(by, verb).await?.index();
        Ok(SettingInfo { value, index, ..default_of(key)? })
    }

    pub async fn reset(&self, by: Actor, key: &str) -> Result<SettingInfo, Error> {
        let index = self.0.cluster.write(by, Verb::ResetConfig { key: key.to_owned() }).await?.index();
        Ok(SettingInfo { index, ..default_of(key)? })
    }

    pub async fn roll_back(&self, by: Actor, key: &str, to: u64) -> Result<SettingInfo, Error> {
        let done = self.0.cluster.write(by, Verb::RollbackConfig { key: key.to_owned(), to }).await?;
        self.setting(key, Consistency::AtLeast(done.index())).await
    }

    pub async fn create_key(
        &self,
        by: Actor,
        name: String,
        scopes: Scopes,
        ttl: Option<Duration>,
        limits: KeyLimits,
    ) -> Result<NewKey, Error> {
        if scopes.is_empty() {
            return Err(Error::BadRequest("a key needs at least one scope".to_owned()));
        }
        if name.chars().count() > 100 || name.chars().any(char::is_control) {
            return Err(Error::BadRequest("a key's name has at most 100 characters, none of them control".to_owned()));
        }
        Ok(self.0.cluster.create_key(by, name, scopes, ttl, limits).await?)
    }

    /// Makes a key from a file the first of the mesh, where there is none yet.
    pub async fn adopt_first_key(&self, by: Actor, key: &NewKey) -> Result<(), Error> {
        Ok(self.0.cluster.adopt_first_key(by, key).await?)
    }

    pub async fn keys(&self, consistency: Consistency) -> Result<Vec<KeyInfo>, Error> {
        let info = |(id, key): (&KeyId, &cluster::ApiKey)| KeyInfo {
            id: id.clone(),
            name: key.name.clone(),
            scopes: key.scopes,
            created_at: key.created_at,
            expires_at: key.expires_at,
            limits: key.limits,
        };
        Ok(self.0.cluster.read(consistency, |registry| registry.keys().map(info).collect()).await?)
    }

    pub async fn revoke_key(&self, by: Actor, id: KeyId) -> Result<u64, Error> {
        Ok(self.0.cluster.write(by, Verb::RevokeKey { id }).await?.index())
    }

    pub async fn enrolled_backends(&self, consistency: Consistency) -> Result<Vec<EnrolledInfo>, Error> {
        self.0.cluster.read(consistency, |_| ()).await?;
        let members = self.members();
        let is_up = |id: &NodeId| members.iter().any(|member| member.id == *id && member.state == NodeState::Up);
        Ok(self.0.cluster.view(|registry| {
            let standing = |id| Standing { id, name: registry.member(&id).map(|member| member.name.clone()) };
            let info = |(name, backend): (&NodeName, &cluster::Enrolled)| EnrolledInfo {
                name: name.clone(),
                url: backend.url.clone(),
                node: backend.node.map(standing),
                host: registry.backend_host(name, is_up).map(standing),
                enrolled_at: backend.enrolled_at,
            };
            registry.backends().map(info).collect()
        }))
    }

    /// Has the mesh use an Ollama on a machine without a node. `selector` names the one node that may stand before it.
    pub async fn enroll_backend(
        &self,
        by: Actor,
        name: NodeName,
        at: &Endpoint,
        selector: Option<&str>,
    ) -> Result<EnrolledInfo, Error> {
        let node = match selector {
            Some(selector) => Some(self.node(selector, Consistency::Linearizable).await?.id),
            None if is_loopback(at) => {
                let message = format!("`{at}` is another machine at each node: say which one stands before it");
                return Err(Error::BadRequest(message));
            }
            None => None,
        };
        let verb = Verb::EnrollBackend { name: name.clone(), url: at.to_string(), node };
        let index = self.0.cluster.write(by, verb).await?.index();
        let all = self.enrolled_backends(Consistency::AtLeast(index)).await?;
        let found = all.into_iter().find(|backend| backend.name == name);
        // Somebody else may have been quick.
        found.ok_or_else(|| Refused::UnknownBackend(name).into())
    }

    pub async fn remove_backend(&self, by: Actor, name: NodeName) -> Result<u64, Error> {
        Ok(self.0.cluster.write(by, Verb::RemoveBackend { name }).await?.index())
    }

    /// What a key opens, by the local view: keys work without a quorum.
    pub fn authenticate(&self, text: &str) -> Option<Grant> {
        self.0.cluster.view(|registry| registry.authenticate(text, now()))
    }

    /// What callers without a key may do on loopback.
    pub fn anonymous(&self) -> Scopes {
        self.0.cluster.view(|registry| registry.settings().anonymous())
    }

    pub fn has_keys(&self) -> bool {
        self.0.cluster.view(|registry| registry.keys().next().is_some())
    }

    /// The journal after an index, then everything that happens. The first part may repeat what the second brings.
    pub fn events(&self, after: Option<u64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let receiver = self.0.events.subscribe();
        let Some(after) = after else { return (Vec::new(), receiver) };
        let missed = |registry: &Registry| {
            registry.journal().filter(|entry| entry.index > after).cloned().map(Event::Registry).collect()
        };
        (self.0.cluster.view(missed), receiver)
    }

    pub(crate) fn tell(&self, event: Event) {
        // Without a listener there is nobody to tell.
        let _ = self.0.events.send(event);
    }

    pub fn figures(&self) -> Figures {
        let members = self.members();
        let at = self.0.cluster.position();
        let space = self.0.log.space().ok();
        Figures {
            members: members.len(),
            members_up: members.iter().filter(|member| member.state == NodeState::Up).count(),
            voters: members.iter().filter(|member| member.seat == Seat::Voter).count(),
            is_leader: self.0.cluster.is_leader(),
            term: self.0.cluster.term(),
            applied: at.0,
            state_hash: at.1,
            disk_free_bytes: space.map(|space| space.free),
            disk_low: space.is_some_and(|space| space.low),
            snapshots: self.0.cluster.snapshots(),
        }
    }

    /// Whether this node can do its work: it is a member, it hears of changes, its disk takes writes.
    pub async fn readiness(&self) -> Readiness {
        let quorum = self.0.cluster.status().await.quorum;
        let disk = match (self.0.log.failure(), self.0.log.space()) {
            (Some(error), _) | (None, Err(error)) => Err(error.to_string()),
            (None, Ok(space)) if space.low => Err("no space left".to_owned()),
            (None, Ok(_)) => Ok(()),
        };
        let quorum = if quorum { Ok(()) } else { Err("no majority of the voters answers".to_owned()) };
        Readiness { parts: vec![("registry", quorum), ("disk", disk)] }
    }
}

/// Whether each machine would find itself there.
fn is_loopback(at: &Endpoint) -> bool {
    match at.host().parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => at.host().eq_ignore_ascii_case("localhost"),
    }
}

fn setting(registry: &Registry, key: &str) -> Result<SettingInfo, Refused> {
    let (value, index) = registry.settings().get(key)?;
    Ok(SettingInfo { value: value.to_owned(), index, ..default_of(key)? })
}

fn default_of(key: &str) -> Result<SettingInfo, Refused> {
    let definition = cluster::Settings::define(key)?;
    Ok(SettingInfo {
        key: definition.key.to_owned(),
        value: definition.default.to_owned(),
        default: definition.default.to_owned(),
        about: definition.about.to_owned(),
        index: 0,
    })
}

/// The wall clock. Only token and key expiry are judged by it.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
