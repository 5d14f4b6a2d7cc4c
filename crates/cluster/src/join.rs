//! How a stranger becomes a member.
//!
//! A token carries a seed. The seed yields a key of which the registry holds the public half only, so that neither a
//! member nor a backup can mint a join. The joiner makes sure whom it speaks to before it says anything; then it signs
//! both names, the mesh and a number the other end has just made up, so that a recording is worth nothing.

mod accept;
mod token;

use std::net::SocketAddr;
use std::time::Duration;

use net::{Net, Signature, read_framed, write_framed};
use openraft::AsyncRuntime;
use serde::{Deserialize, Serialize};
use types::{MeshId, NodeId, NodeName, RaftId, Role, UnixMillis};

pub(crate) use accept::accept;
pub(crate) use token::DOORS_MAX;
pub use token::{Door, ParseTokenError, Token};

use crate::pack;
use crate::protocol::JOIN;
use crate::registry::members::join_statement;
use crate::registry::{Candidate, Refused, Registry, TokenId};
use crate::runtime::Runtime;

/// From the first byte to the answer.
pub(crate) const CONVERSATION_MAX: Duration = Duration::from_secs(10);

/// Clocks further apart than this make expiry dates meaningless.
const SKEW_MAX: Duration = Duration::from_secs(600);

/// The first message, from the member.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) mesh: MeshId,
    pub(crate) nonce: [u8; 32],
    pub(crate) clock: UnixMillis,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Knock {
    pub(crate) token: TokenId,
    pub(crate) joiner: Candidate,
    pub(crate) signature: Signature,
    /// Only ask whether the door would open.
    pub(crate) only_ask: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Welcome(Box<Welcome>),
    WouldWelcome,
    Refused(Refused),
    /// The mesh cannot take anybody now.
    NotNow(String),
}

/// What a new member is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Welcome {
    pub mesh: MeshId,
    pub raft: RaftId,
    pub role: Role,
    pub name: NodeName,
    pub registry: Registry,
}

impl codec::Record for Hello {
    const VERSION: u8 = 1;
    const LIMIT: usize = 1 << 10;
}

impl codec::Record for Knock {
    const VERSION: u8 = 1;
    const LIMIT: usize = 16 << 10;
}

impl codec::Record for Reply {
    const VERSION: u8 = 1;
    const LIMIT: usize = 80 << 20;
}

/// Why this node is not a member yet.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("none of the nodes in the token can be reached: {}", attempts(.0))]
    Unreachable(Vec<(SocketAddr, net::Error)>),
    #[error("that node belongs to mesh `{found}`, the token to mesh `{expected}`")]
    OtherMesh { expected: MeshId, found: MeshId },
    #[error("the clocks of this machine and of the mesh are {apart:?} apart")]
    Clock { apart: Duration },
    #[error("the mesh refused")]
    Refused(#[source] Refused),
    #[error("the mesh cannot take a member now: {0}")]
    NotNow(String),
    #[error("the conversation with `{address}` broke")]
    Broken { address: SocketAddr, source: std::io::Error },
    #[error("`{address}` did not answer within {CONVERSATION_MAX:?}")]
    Silent { address: SocketAddr },
    #[error("`{address}` answered in a way this version cannot read")]
    Unreadable { address: SocketAddr, source: codec::Error },
}

fn attempts(tried: &[(SocketAddr, net::Error)]) -> String {
    let line = |(address, error): &(SocketAddr, net::Error)| format!("`{address}` ({})", chain(error));
    tried.iter().map(line).collect::<Vec<_>>().join(", ")
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

impl JoinError {
    /// Whether trying again may help without anybody doing anything about it.
    pub fn retry(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::NotNow(_) | Self::Broken { .. } | Self::Silent { .. } => true,
            Self::OtherMesh { .. } | Self::Clock { .. } | Self::Refused(_) | Self::Unreadable { .. } => false,
        }
    }

    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable(_) => {
                "is that node running, and its bulk port open in its firewall? `omx doctor join TOKEN` tells more"
                    .into()
            }
            Self::OtherMesh { .. } => "make a token on a member of the mesh you mean".into(),
            Self::Clock { .. } => "set this machine's clock, best by NTP".into(),
            Self::Refused(refused) => return refused.hint(),
            Self::NotNow(_) => "it goes on by itself once most of the nodes that vote are up".into(),
            Self::Unreadable { source, .. } => return source.hint().map(str::to_owned),
            Self::Broken { .. } | Self::Silent { .. } => return None,
        })
    }
}

/// What an attempt is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Join,
    Ask,
}

/// Asks each node the token names until one answers. May be dropped at any time and tried again with the same
/// candidate: a join that was carried out unseen is found again.
pub async fn join<R: Runtime>(
    net: &Net,
    token: &Token,
    candidate: &Candidate,
    clock: UnixMillis,
) -> Result<Welcome, JoinError> {
    match knock::<R>(net, token, candidate, clock, Purpose::Join).await? {
        (_, Reply::Welcome(welcome)) => Ok(*welcome),
        (_, Reply::Refused(refused)) => Err(JoinError::Refused(refused)),
        (_, Reply::NotNow(why)) => Err(JoinError::NotNow(why)),
        (address, Reply::WouldWelcome) => Err(JoinError::Unreadable {
            address,
            source: codec::Error::Malformed { reason: "an answer to another question".to_owned() },
        }),
    }
}

/// Whether `join` would work, without using the token. Returns the address that answered.
pub async fn would_join<R: Runtime>(
    net: &Net,
    token: &Token,
    candidate: &Candidate,
    clock: UnixMillis,
) -> Result<SocketAddr, JoinError> {
    match knock::<R>(net, token, candidate, clock, Purpose::Ask).await? {
        (address, Reply::WouldWelcome) => Ok(address),
        (_, Reply::Refused(refused)) => Err(JoinError::Refused(refused)),
        (_, Reply::NotNow(why)) => Err(JoinError::NotNow(why)),
        (address, Reply::Welcome(_)) => Err(JoinError::Unreadable {
            address,
            source: codec::Error::Malformed { reason: "an answer to another question".to_owned() },
        }),
    }
}

async fn knock<R: Runtime>(
    net: &Net,
    token: &Token,
    candidate: &Candidate,
    clock: UnixMillis,
    purpose: Purpose,
) -> Result<(SocketAddr, Reply), JoinError> {
    let mut unreachable = Vec::new();
    let mut unwilling = None;
    for (door, address) in token.doors().iter().flat_map(|door| door.bulk.iter().map(move |at| (door.id, *at))) {
        let mut stream = match net.connect_stranger(address, door, JOIN).await {
            Ok(stream) => stream,
            Err(error) => {
                unreachable.push((address, error));
                continue;
            }
        };
        let talk = talk(&mut stream, token, candidate, (address, door), clock, purpose);
        let reply = <R::Async as AsyncRuntime>::timeout(CONVERSATION_MAX, talk).await;
        // What another member may do better is tried there; what the mesh has decided is final.
        match reply.unwrap_or(Err(JoinError::Silent { address })) {
            Ok(Reply::NotNow(why)) => unwilling = Some(JoinError::NotNow(why)),
            Err(error) if error.retry() => unwilling = Some(error),
            decided => return decided.map(|reply| (address, reply)),
        }
    }
    Err(unwilling.unwrap_or(JoinError::Unreachable(unreachable)))
}

async fn talk(
    stream: &mut net::ByteStream,
    token: &Token,
    candidate: &Candidate,
    (address, door): (SocketAddr, NodeId),
    clock: UnixMillis,
    purpose: Purpose,
) -> Result<Reply, JoinError> {
    let broken = |source| JoinError::Broken { address, source };
    let unreadable = |source| JoinError::Unreadable { address, source };
    let hello = read_framed(stream, <Hello as codec::Record>::LIMIT).await.map_err(broken)?;
    let Hello { mesh, nonce, clock: theirs } = codec::decode(&hello).map_err(unreadable)?;
    if mesh != token.mesh() {
        return Err(JoinError::OtherMesh { expected: token.mesh(), found: mesh });
    }
    let apart = theirs.since(clock).max(clock.since(theirs));
    if apart > SKEW_MAX {
        return Err(JoinError::Clock { apart });
    }
    let signature = token.key().sign(&join_statement(mesh, candidate, door, &nonce));
    let only_ask = purpose == Purpose::Ask;
    let knock = Knock { token: token.id(), joiner: candidate.clone(), signature, only_ask };
    write_framed(stream, &pack(&knock)).await.map_err(broken)?;
    let reply = read_framed(stream, <Reply as codec::Record>::LIMIT).await.map_err(broken)?;
    codec::decode(&reply).map_err(unreadable)
}
