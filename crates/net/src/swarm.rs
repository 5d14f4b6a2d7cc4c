//! The mesh connection between members: requests, gossip, discovery, and streams where there is no direct way.

mod behaviour;
mod codec;
mod redial;
mod streams;
mod task;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use libp2p::PeerId;
use tokio::sync::{Notify, oneshot};
use types::NodeId;

use crate::error::Error;
use crate::handle::{Addresses, Answer, Stranger};
use crate::protocol::Protocol;

pub(crate) use streams::{open, serve};
pub(crate) use task::Task;

/// Commands that wait for the task. One more request waits for room within its deadline; one more message is refused.
pub(crate) const COMMANDS_MAX: usize = 256;

/// Strangers remembered from multicast. With one more, the oldest is forgotten.
const STRANGERS_MAX: usize = 64;

/// What the handle asks of the task.
pub(crate) enum Command {
    Request { peer: NodeId, protocol: Protocol, body: Bytes, reply: oneshot::Sender<Result<Answer, Error>> },
    Publish { topic: &'static str, body: Bytes },
}

/// What the task tells the handle.
#[derive(Default)]
pub(crate) struct Board {
    addresses: Mutex<Addresses>,
    pub(crate) addresses_changed: Notify,
    strangers: Mutex<VecDeque<Stranger>>,
}

impl Board {
    pub(crate) fn addresses(&self) -> Addresses {
        lock(&self.addresses).clone()
    }

    fn set_addresses(&self, addresses: Addresses) {
        *lock(&self.addresses) = addresses;
        self.addresses_changed.notify_waiters();
    }

    pub(crate) fn strangers(&self) -> Vec<Stranger> {
        lock(&self.strangers).iter().cloned().collect()
    }

    fn saw(&self, stranger: Stranger) {
        let mut strangers = lock(&self.strangers);
        strangers.retain(|known| known.id != stranger.id);
        strangers.push_back(stranger);
        if strangers.len() > STRANGERS_MAX {
            strangers.pop_front();
        }
    }

    fn lost_sight(&self, id: &NodeId) {
        lock(&self.strangers).retain(|known| known.id != *id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn peer_id(id: &NodeId) -> PeerId {
    PeerId::from_bytes(&id.to_peer_id_bytes()).expect("a node id is the peer id of its key")
}

/// `None` for a key of another kind than ours.
fn node_id(peer: &PeerId) -> Option<NodeId> {
    NodeId::from_peer_id_bytes(&peer.to_bytes())
}
