//! Which parts of libp2p are used, and with which limits. Nothing is left to a default that bounds memory or time.

use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;

use libp2p::allow_block_list::{self, AllowedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::gossipsub::{
    self, IdentityTransform, MessageAuthenticity, TopicHash, TopicSubscriptionFilter, ValidationMode,
};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{StreamProtocol, Swarm, SwarmBuilder, identify, identity, mdns, ping, tcp, tls, yamux};

use super::codec::Codec;
use crate::config::Config;
use crate::error::Error;
use crate::protocol::{MESSAGE_BYTES_MAX, REQUEST_DEADLINE_MAX};
use crate::reception::Reception;

pub(super) const STREAM_PROTOCOL: StreamProtocol = StreamProtocol::new("/omx/stream/1");
const REQUEST_PROTOCOL: StreamProtocol = StreamProtocol::new("/omx/request/1");
const GOSSIP_PROTOCOL: &str = "/omx/gossip";
const IDENTIFY_PROTOCOL: &str = "/omx/1";

/// How long a peer may take to send one request.
pub(super) const REQUEST_READ_MAX: Duration = Duration::from_secs(10);
/// Every protocol's own deadline comes first; this only ends what slipped through.
const REQUEST_MAX: Duration = REQUEST_DEADLINE_MAX.saturating_add(REQUEST_READ_MAX);
/// Requests under way on one connection, both ways together. libp2p drops one more.
const REQUESTS_PER_CONNECTION_MAX: usize = 512;
/// Streams whose protocol is still being named, for one connection. libp2p drops one more; the opener tries again.
const NEGOTIATING_MAX: usize = 256;
/// Streams of all kinds on one connection.
const STREAMS_PER_CONNECTION_MAX: usize = 2048;

/// Connections that have not yet proven who they are. A flood of strangers can use these up; members then still reach
/// each other by the dials of the flooded node.
const PENDING_INCOMING_MAX: u32 = 64;
const PENDING_OUTGOING_MAX: u32 = 64;
/// Two nodes that dial each other at the same moment have two; the rest is for a change of networks.
const CONNECTIONS_PER_PEER_MAX: u32 = 4;

/// A peer that has vanished, or stands still, is noticed within the sum of both.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_MAX: Duration = Duration::from_secs(3);

/// How long one address may take, handshake included.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Two addresses of a peer that succeed at once would make the peer see a connection that is closed right away, and lose
/// what it has sent on it.
const ONE_BY_ONE: NonZeroU8 = NonZeroU8::MIN;

/// Members stay connected, however little they say.
const IDLE_MAX: Duration = Duration::from_secs(24 * 3600);

const GOSSIP_HEARTBEAT: Duration = Duration::from_secs(1);
/// The largest message and what gossipsub puts around it.
const GOSSIP_MESSAGE_MAX: usize = MESSAGE_BYTES_MAX + 1024;
const GOSSIP_QUEUE_MAX: usize = 256;

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    // The two that say no come first.
    pub(super) members: allow_block_list::Behaviour<AllowedPeers>,
    limits: connection_limits::Behaviour,
    pub(super) requests: request_response::Behaviour<Codec>,
    pub(super) streams: libp2p_stream::Behaviour,
    pub(super) gossip: gossipsub::Behaviour<IdentityTransform, DeclaredTopics>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

/// Peers cannot make us remember topics we do not have.
pub(crate) struct DeclaredTopics(Arc<Reception>);

impl TopicSubscriptionFilter for DeclaredTopics {
    fn can_subscribe(&mut self, topic: &TopicHash) -> bool {
        self.0.services().is_ok_and(|services| services.topic(topic.as_str()).is_some())
    }
}

pub(super) fn swarm(config: &Config, reception: &Arc<Reception>) -> Result<Swarm<Behaviour>, Error> {
    let setup = |what: &dyn std::fmt::Display| Error::Setup { what: what.to_string() };
    let mut muxer = yamux::Config::default();
    muxer.set_max_num_streams(STREAMS_PER_CONNECTION_MAX);
    let builder = SwarmBuilder::with_existing_identity(config.keypair.to_libp2p())
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), tls::Config::new, || muxer)
        .map_err(|error| setup(&error))?
        .with_quic()
        .with_behaviour(|keypair| behaviour(keypair, config, reception))
        .map_err(|error| setup(&error))?
        .with_swarm_config(|swarm| {
            swarm
                .with_idle_connection_timeout(IDLE_MAX)
                .with_max_negotiating_inbound_streams(NEGOTIATING_MAX)
                .with_dial_concurrency_factor(ONE_BY_ONE)
        })
        .with_connection_timeout(CONNECT_MAX);
    Ok(builder.build())
}

fn behaviour(
    keypair: &identity::Keypair,
    config: &Config,
    reception: &Arc<Reception>,
) -> Result<Behaviour, Box<dyn std::error::Error + Send + Sync>> {
    let limits = ConnectionLimits::default()
        .with_max_pending_incoming(Some(PENDING_INCOMING_MAX))
        .with_max_pending_outgoing(Some(PENDING_OUTGOING_MAX))
        .with_max_established(Some(config.limits.mesh_connections_max))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX));
    let requests = request_response::Config::default()
        .with_request_timeout(REQUEST_MAX)
        .with_max_concurrent_streams(REQUESTS_PER_CONNECTION_MAX);
    let gossip = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(GOSSIP_PROTOCOL)
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(GOSSIP_MESSAGE_MAX)
        .connection_handler_queue_len(GOSSIP_QUEUE_MAX)
        .heartbeat_interval(GOSSIP_HEARTBEAT)
        .build()?;
    let author = MessageAuthenticity::Signed(keypair.clone());
    let topics = DeclaredTopics(reception.clone());
    let about = identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), keypair.public())
        .with_agent_version(concat!("omx/", env!("CARGO_PKG_VERSION")).to_owned())
        .with_push_listen_addr_updates(true)
        .with_cache_size(0);
    let mdns = match config.mdns {
        true => Some(mdns::tokio::Behaviour::new(mdns::Config::default(), keypair.public().to_peer_id())?),
        false => None,
    };
    let protocols = [(REQUEST_PROTOCOL, ProtocolSupport::Full)];
    Ok(Behaviour {
        members: allow_block_list::Behaviour::default(),
        limits: connection_limits::Behaviour::new(limits),
        requests: request_response::Behaviour::with_codec(Codec::new(reception.clone()), protocols, requests),
        streams: libp2p_stream::Behaviour::new(),
        gossip: gossipsub::Behaviour::new_with_subscription_filter(author, gossip, topics)?,
        identify: identify::Behaviour::new(about),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_EVERY).with_timeout(PING_MAX)),
        mdns: mdns.into(),
    })
}
