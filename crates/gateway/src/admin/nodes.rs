//! The mesh and its members.

use std::time::Duration;

use types::Label;

use crate::failure::Failure;
use crate::route::Ask;
use crate::wire;

/// For handing over what this node leads and votes for.
const LEAVE_WITHIN: Duration = Duration::from_secs(20);

pub(crate) async fn status(ask: Ask<wire::Nothing>) -> Result<wire::Status, Failure> {
    Ok(ask.api().status().await.into())
}

pub(crate) async fn list(ask: Ask<wire::Freshness>) -> Result<Vec<wire::Node>, Failure> {
    let nodes = ask.api().nodes(ask.consistency()?).await?;
    Ok(nodes.into_iter().map(wire::Node::from).collect())
}

pub(crate) async fn show(ask: Ask<wire::Freshness>) -> Result<wire::Node, Failure> {
    Ok(ask.api().node(ask.part("node"), ask.consistency()?).await?.into())
}

pub(crate) async fn drain(ask: Ask<wire::Nothing>) -> Result<wire::Node, Failure> {
    Ok(ask.api().set_drain(ask.actor()?, ask.part("node"), true).await?.into())
}

pub(crate) async fn undrain(ask: Ask<wire::Nothing>) -> Result<wire::Node, Failure> {
    Ok(ask.api().set_drain(ask.actor()?, ask.part("node"), false).await?.into())
}

pub(crate) async fn label(ask: Ask<wire::ChangeLabels>) -> Result<wire::Node, Failure> {
    let parse = |(key, value): (&String, &String)| format!("{key}={value}").parse::<Label>();
    let set = ask.input.set.iter().map(parse).collect::<Result<Vec<_>, _>>();
    let set = set.map_err(|error| Failure::bad_request(error.to_string()))?;
    let unset = ask.input.unset.clone();
    Ok(ask.api().set_labels(ask.actor()?, ask.part("node"), set, unset).await?.into())
}

pub(crate) async fn remove(ask: Ask<wire::Nothing>) -> Result<wire::Done, Failure> {
    let index = ask.api().remove_node(ask.actor()?, ask.part("node")).await?;
    Ok(wire::Done { index })
}

pub(crate) async fn leave(ask: Ask<wire::Nothing>) -> Result<wire::Nothing, Failure> {
    ask.api().leave(ask.actor()?, LEAVE_WITHIN).await?;
    Ok(wire::Nothing {})
}

impl From<node::Status> for wire::Status {
    fn from(status: node::Status) -> Self {
        let stranger = |(id, address)| wire::Stranger { id, address };
        Self {
            mesh_id: status.mesh,
            mesh_name: status.mesh_name,
            node: status.node,
            name: status.name,
            role: status.role,
            version: status.version.to_owned(),
            started_at: wire::Time(status.started_at),
            leader: status.leader.map(|(id, name)| wire::Leader { id, name }),
            quorum: status.quorum,
            estranged: status.estranged,
            term: status.term,
            index: status.applied,
            state_hash: status.state_hash.to_string(),
            absent_voters: status.absent_voters,
            disk_low: status.disk_low,
            backend: status.backend.into(),
            members: status.members.into_iter().map(|node| wire::Node::from(node).member).collect(),
            strangers: status.strangers.into_iter().map(stranger).collect(),
        }
    }
}

impl From<node::BackendInfo> for wire::Backend {
    fn from(backend: node::BackendInfo) -> Self {
        let node::BackendInfo { kind, address, why, answers } = backend;
        let (version, error) = (answers.clone().ok(), answers.err());
        Self { kind: kind.to_owned(), address, why, version, error }
    }
}

impl From<node::NodeInfo> for wire::Node {
    fn from(node: node::NodeInfo) -> Self {
        let bulk = node.bulk.iter().map(ToString::to_string);
        let member = wire::Member {
            id: node.id,
            name: node.name,
            role: node.role,
            voter: node.seat == node::Seat::Voter,
            leader: node.leader,
            state: match (node.state, node.drain) {
                (node::NodeState::Down, _) => wire::State::Down,
                (node::NodeState::Up, true) => wire::State::Draining,
                (node::NodeState::Up, false) => wire::State::Up,
            },
            addresses: node.mesh.into_iter().chain(bulk).collect(),
            labels: node.labels,
            joined_at: wire::Time(node.joined_at),
            seat: node.raft.0,
        };
        let link = node.link.map(|link| wire::Link {
            via: link.via,
            round_trip_ms: link.round_trip.map(|time| time.as_secs_f64() * 1e3),
            last_seen_s: link.last_seen.map(|time| time.as_secs_f64()),
            score: link.score,
            last_error: link.last_error,
        });
        Self { member, link }
    }
}
