//! The loop of the mesh. It only moves events: whatever takes time runs in a task of its own.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance, PublishError};
use libp2p::multiaddr::{Multiaddr, Protocol as Part};
use libp2p::request_response::{self, InboundFailure, Message, OutboundFailure, OutboundRequestId, ResponseChannel};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{DialError, SwarmEvent};
use libp2p::{PeerId, Swarm, TransportError, identify, mdns, ping};
use libp2p_stream::{Control, IncomingStreams};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::NodeId;

use super::behaviour::{self, Behaviour, BehaviourEvent, STREAM_PROTOCOL};
use super::codec::Request;
use super::redial::Redial;
use super::{Board, Command};
use crate::config::Config;
use crate::error::Error;
use crate::handle::{Addresses, Answer, Stranger};
use crate::protocol::{Protocol, Refusal};
use crate::reception::Reception;
use crate::score::Offence;
use crate::services::Verdict;

/// Requests that wait for an answer. One more is refused as `Busy`.
const ASKED_MAX: usize = 4096;
/// How long the sockets may take to say where they listen.
const LISTEN_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Task {
    swarm: Swarm<Behaviour>,
    reception: Arc<Reception>,
    board: Arc<Board>,
    commands: mpsc::Receiver<Command>,
    redial: Redial,
    /// Where the bulk listener is bound; what it publishes depends on the interfaces this task hears of.
    bulk: SocketAddr,
    asked: HashMap<OutboundRequestId, Asked>,
    answers: JoinSet<(ResponseChannel<Answer>, Answer)>,
}

struct Asked {
    peer: NodeId,
    protocol: Protocol,
    reply: oneshot::Sender<Result<Answer, Error>>,
}

impl Task {
    /// Binds the sockets and waits until they say where they listen.
    pub(crate) async fn bind(
        config: &Config,
        reception: Arc<Reception>,
        board: Arc<Board>,
        commands: mpsc::Receiver<Command>,
        bulk: SocketAddr,
    ) -> Result<(Self, Control, IncomingStreams), Error> {
        let mut swarm = behaviour::swarm(config, &reception)?;
        let address = config.mesh;
        let bind = |source| Error::Bind { address, what: "mesh", source };
        // libp2p sets SO_REUSEPORT, with which two nodes would share one port and each get half of the connections.
        drop(TcpListener::bind(address).map_err(bind)?);
        let ip = Multiaddr::from(address.ip());
        let tcp = ip.clone().with(Part::Tcp(address.port()));
        let quic = ip.with(Part::Udp(address.port())).with(Part::QuicV1);
        for listen in [tcp, quic] {
            swarm.listen_on(listen).map_err(|error| match error {
                TransportError::Other(source) => bind(source),
                TransportError::MultiaddrNotSupported(_) => bind(io::ErrorKind::Unsupported.into()),
            })?;
        }
        let mut control = swarm.behaviour().streams.new_control();
        let incoming = control.accept(STREAM_PROTOCOL).map_err(|error| Error::Setup { what: error.to_string() })?;
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).expect("the operating system has a random source");
        let redial = Redial::new(reception.local, u64::from_ne_bytes(seed));
        let (asked, answers) = (HashMap::new(), JoinSet::new());
        let mut task = Self { swarm, reception, board, commands, redial, bulk, asked, answers };
        let listening = tokio::time::timeout(LISTEN_MAX, task.until_listening()).await;
        listening.map_err(|_| bind(io::ErrorKind::TimedOut.into()))?;
        Ok((task, control, incoming))
    }

    async fn until_listening(&mut self) {
        let both = |swarm: &Swarm<Behaviour>| {
            let over = |part: fn(&Part<'_>) -> bool| swarm.listeners().any(|address| address.iter().any(|p| part(&p)));
            over(|part| matches!(part, Part::Tcp(_))) && over(|part| matches!(part, Part::QuicV1))
        };
        while !both(&self.swarm) {
            let event = self.swarm.select_next_some().await;
            self.on_event(event);
        }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        for topic in self.reception.clone().services().into_iter().flat_map(|services| services.topics()) {
            if let Err(error) = self.swarm.behaviour_mut().gossip.subscribe(&IdentTopic::new(topic.name)) {
                tracing::error!(topic = topic.name, %error, "failed to subscribe");
            }
        }
        loop {
            let pause = self.pause();
            tokio::select! {
                () = shutdown.cancelled() => return,
                event = self.swarm.select_next_some() => self.on_event(event),
                Some(command) = self.commands.recv() => self.on_command(command),
                Some(ended) = self.answers.join_next() => self.on_answer(ended),
                () = self.reception.changed.notified() => self.reconcile(),
                () = tokio::time::sleep(pause) => self.reconcile(),
            }
            self.dial();
        }
    }

    /// Brings connections in line with who is welcome.
    fn reconcile(&mut self) {
        let now = self.reception.clock.elapsed();
        let welcome: BTreeMap<_, _> = self.reception.welcome().into_iter().map(|member| (member.id, member)).collect();
        let members = &mut self.swarm.behaviour_mut().members;
        let unwelcome = |peer: &&PeerId| super::node_id(peer).is_none_or(|id| !welcome.contains_key(&id));
        for peer in members.allowed_peers().iter().filter(unwelcome).copied().collect::<Vec<_>>() {
            // Closes its connections too.
            members.disallow_peer(peer);
        }
        for id in welcome.keys() {
            members.allow_peer(super::peer_id(id));
        }
        let usable = |address: &String| address.parse::<Multiaddr>().ok();
        let given = welcome.iter().map(|(id, member)| (*id, member.mesh.iter().filter_map(usable).collect()));
        self.redial.set(given.collect(), now);
        for stranger in self.board.strangers() {
            if welcome.contains_key(&stranger.id) {
                self.board.lost_sight(&stranger.id);
                self.learn(&stranger.id, stranger.address.parse().ok());
            }
        }
    }

    fn dial(&mut self) {
        let now = self.reception.clock.elapsed();
        for (id, addresses) in self.redial.due(now) {
            let options = DialOpts::peer_id(super::peer_id(&id))
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .addresses(addresses)
                .build();
            if let Err(error) = self.swarm.dial(options) {
                self.on_dial_failed(&id, &error);
            }
        }
    }

    /// How long nothing is due.
    fn pause(&self) -> Duration {
        /// The loop looks after itself now and then, whatever it may have missed.
        const PAUSE_MAX: Duration = Duration::from_secs(60);
        let now = self.reception.clock.elapsed();
        let dial = self.redial.next_due().map(|due| due.saturating_sub(now));
        dial.into_iter().chain(self.reception.next_return()).min().unwrap_or(PAUSE_MAX).min(PAUSE_MAX)
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Request { peer, protocol, body, reply } => {
                let refusal = if self.asked.len() >= ASKED_MAX {
                    Some(Error::Busy { peer })
                } else if !self.redial.wanted(&peer, self.reception.clock.elapsed()) {
                    Some(Error::Unreachable { peer, reason: "there is no connection".to_owned() })
                } else {
                    None
                };
                if let Some(error) = refusal {
                    // Nobody waits any more where this fails.
                    let _ = reply.send(Err(error));
                    return;
                }
                // While the peer is being dialled libp2p keeps the request, and fails it with the dial.
                self.dial();
                let request = Request { name: protocol.name().to_owned(), body: Ok(body), room: None };
                let id = self.swarm.behaviour_mut().requests.send_request(&super::peer_id(&peer), request);
                self.asked.insert(id, Asked { peer, protocol, reply });
            }
            Command::Publish { topic, body } => {
                match self.swarm.behaviour_mut().gossip.publish(IdentTopic::new(topic), body) {
                    // Alone, or said already: as good as done, for a hint.
                    Ok(_) | Err(PublishError::NoPeersSubscribedToTopic | PublishError::Duplicate) => {}
                    Err(error) => tracing::debug!(topic, %error, "gossip was not sent"),
                }
            }
        }
    }

    fn on_answer(&mut self, ended: Result<(ResponseChannel<Answer>, Answer), tokio::task::JoinError>) {
        match ended {
            // Where this fails the connection is gone, and who asked knows.
            Ok((channel, answer)) => drop(self.swarm.behaviour_mut().requests.send_response(channel, answer)),
            Err(error) => tracing::error!(%error, "the handler of a request failed"),
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Requests(event)) => self.on_request_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(event)) => self.on_gossip(event),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => self.on_identified(event),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.on_ping(event),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(event)) => self.on_seen(event),
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, num_established, .. } => {
                if let Some(id) = super::node_id(&peer_id) {
                    let through = endpoint.is_dialer().then(|| plain(endpoint.get_remote_address()));
                    self.redial.connected(&id, through);
                    self.reception.linked(&id, num_established.get(), endpoint.get_remote_address().to_string());
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established, cause, .. } => {
                let Some(id) = super::node_id(&peer_id) else { return };
                if let Some(cause) = cause {
                    self.reception.failed(&id, format!("its connection closed: {cause}"));
                }
                self.reception.unlinked(&id, num_established);
                if num_established == 0 {
                    self.redial.disconnected(&id, self.reception.clock.elapsed());
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                if let Some(id) = super::node_id(&peer) {
                    self.on_dial_failed(&id, &error);
                }
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(address = %send_back_addr, %error, "an incoming mesh connection failed");
            }
            SwarmEvent::NewListenAddr { .. } | SwarmEvent::ExpiredListenAddr { .. } => self.publish_addresses(),
            SwarmEvent::ListenerClosed { reason: Err(error), .. } => {
                tracing::error!(%error, "a mesh listener closed");
                self.publish_addresses();
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a mesh listener failed to accept"),
            _ => {}
        }
    }

    fn on_dial_failed(&mut self, id: &NodeId, error: &DialError) {
        if self.swarm.is_connected(&super::peer_id(id)) {
            return self.redial.connected(id, None);
        }
        // Not a try of its own: another one is under way.
        if !matches!(error, DialError::DialPeerConditionFalse(_)) {
            self.reception.failed(id, format!("it cannot be dialled: {error}"));
        }
        self.redial.failed(id, self.reception.clock.elapsed());
    }

    fn on_request_event(&mut self, event: request_response::Event<Request, Answer>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                Message::Request { request, channel, .. } => {
                    if let Some(from) = super::node_id(&peer) {
                        self.reception.heard(&from, None);
                        self.answers.spawn(answer(self.reception.clone(), from, request, channel));
                    }
                }
                Message::Response { request_id, response } => {
                    if let Some(asked) = self.asked.remove(&request_id) {
                        let _ = asked.reply.send(Ok(response));
                    }
                }
            },
            request_response::Event::OutboundFailure { request_id, error, .. } => {
                if let Some(asked) = self.asked.remove(&request_id) {
                    let failed = self.failed(asked.peer, asked.protocol, error);
                    let _ = asked.reply.send(failed);
                }
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                if let (Some(id), InboundFailure::Io(error)) = (super::node_id(&peer), &error) {
                    match error.kind() {
                        io::ErrorKind::InvalidData => self.reception.offended(id, Offence::Malformed),
                        io::ErrorKind::TimedOut => self.reception.offended(id, Offence::Silent),
                        _ => {}
                    }
                }
                tracing::debug!(%peer, %error, "a request was not answered");
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }

    fn failed(&self, peer: NodeId, protocol: Protocol, failure: OutboundFailure) -> Result<Answer, Error> {
        match failure {
            OutboundFailure::DialFailure => Err(Error::Unreachable { peer, reason: "it cannot be dialled".to_owned() }),
            OutboundFailure::UnsupportedProtocols => Ok(Err(Refusal::UnknownProtocol { speaks: None })),
            OutboundFailure::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.reception.offended(peer, Offence::Malformed);
                Err(Error::Malformed { peer, protocol, what: error.to_string() })
            }
            other => Err(Error::Broken { peer, reason: other.to_string() }),
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        let gossipsub::Event::Message { propagation_source, message_id, message } = event else { return };
        // The author signed it; who passed it on is only a messenger.
        let verdict = match message.source.as_ref().and_then(super::node_id) {
            Some(author) => self.reception.gossip(author, message.topic.as_str(), Bytes::from(message.data)),
            None => Verdict::Reject,
        };
        let acceptance = match verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Ignore => MessageAcceptance::Ignore,
            Verdict::Reject => MessageAcceptance::Reject,
        };
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        gossip.report_message_validation_result(&message_id, &propagation_source, acceptance);
    }

    fn on_identified(&mut self, event: identify::Event) {
        let identify::Event::Received { peer_id, info, .. } = event else { return };
        let Some(id) = super::node_id(&peer_id) else { return };
        // Its loopback is not ours; a peer on this machine is known by the registry.
        for address in info.listen_addrs.into_iter().filter(|address| !is_loopback(address)) {
            self.learn(&id, Some(address));
        }
    }

    fn on_ping(&mut self, event: ping::Event) {
        let Some(id) = super::node_id(&event.peer) else { return };
        match event.result {
            Ok(round_trip) => self.reception.heard(&id, Some(round_trip)),
            Err(ping::Failure::Unsupported) => {}
            // It has vanished or stands still. A connection that is kept would swallow requests until their deadline.
            Err(failure) => {
                self.reception.failed(&id, format!("it does not answer pings: {failure}"));
                self.swarm.close_connection(event.connection);
            }
        }
    }

    fn on_seen(&mut self, event: mdns::Event) {
        match event {
            mdns::Event::Discovered(seen) => {
                for (peer, address) in seen {
                    let Some(id) = super::node_id(&peer) else { continue };
                    if self.reception.member(&id).is_some() {
                        self.learn(&id, Some(address));
                    } else {
                        self.board.saw(Stranger { id, address: address.to_string() });
                    }
                }
            }
            mdns::Event::Expired(gone) => {
                for id in gone.iter().filter_map(|(peer, _)| super::node_id(peer)) {
                    self.board.lost_sight(&id);
                }
            }
        }
    }

    fn learn(&mut self, id: &NodeId, address: Option<Multiaddr>) {
        let now = self.reception.clock.elapsed();
        if let Some(address) = address {
            self.redial.learn(id, plain(&address), now);
        }
    }

    fn publish_addresses(&self) {
        let listening: Vec<_> = self.swarm.listeners().collect();
        // Where there is any other address, loopback leads nobody here.
        let only_loopback = listening.iter().all(|address| is_loopback(address));
        let reachable = listening.into_iter().filter(|address| only_loopback || !is_loopback(address));
        let reachable: Vec<_> = reachable.collect();
        let port = self.bulk.port();
        let bulk = match self.bulk.ip().is_unspecified() {
            true => reachable.iter().filter_map(|address| ip(address)).map(|ip| (ip, port).into()).collect(),
            false => [self.bulk].into(),
        };
        self.board
            .set_addresses(Addresses { mesh: reachable.iter().map(|address| address.to_string()).collect(), bulk });
    }
}

async fn answer(
    reception: Arc<Reception>,
    from: NodeId,
    request: Request,
    channel: ResponseChannel<Answer>,
) -> (ResponseChannel<Answer>, Answer) {
    let Request { name, body, room } = request;
    let answer = match body {
        Ok(body) => reception.serve(from, &name, body).await,
        Err(refusal) => {
            if refusal == Refusal::TooLarge {
                reception.offended(from, Offence::Oversize);
            }
            Err(refusal)
        }
    };
    drop(room);
    (channel, answer)
}

/// Without the id at its end, with which the same address would count as two.
fn plain(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Part::P2p(_))).collect()
}

fn ip(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Part::Ip4(ip) => Some(ip.into()),
        Part::Ip6(ip) => Some(ip.into()),
        _ => None,
    })
}

fn is_loopback(address: &Multiaddr) -> bool {
    ip(address).is_some_and(|ip| ip.is_loopback())
}
