//! `omx nodes`: the members, one by one.

use std::str::FromStr;

use clap::Subcommand;
use gateway::wire::{ChangeLabels, Done, Link, Node, Nothing};
use types::{Label, ParseNameError};

use super::confirm::confirm;
use super::status::{state, vote};
use super::{Freshness, Session};
use crate::client::{Method, segment};
use crate::failure::Failure;
use crate::out::Out;
use crate::table::{Table, facts};

mod backend;

const PATH: &str = "/omx/v1/nodes";

/// Look after the members: ls, show, drain, undrain, label, remove, backend
///
/// A node is named by its name, its id, or the beginning of its id.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  omx nodes ls\n  omx nodes drain attic\n  omx nodes label tower gpu=4090 room-\n  \
    omx nodes backend add attic http://10.0.0.9:11434"
)]
pub(super) enum Nodes {
    /// List the members and how they are reached from here
    Ls(Freshness),
    /// Show all there is to know about one member
    Show {
        node: String,
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Give a member no new work; what it runs is finished
    Drain { node: String },
    /// Give a member work again
    Undrain { node: String },
    /// Put labels on a member (KEY=VALUE) or take them off (KEY-)
    Label {
        node: String,
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        changes: Vec<LabelChange>,
    },
    /// Remove a member for good: its key is barred on all nodes
    ///
    /// A machine that shall come back needs an empty data folder and a new token.
    Remove {
        node: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Look after Ollamas on machines without a node: add, ls, rm
    #[command(subcommand)]
    Backend(backend::Backend),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LabelChange {
    Set(Label),
    Unset(String),
}

impl FromStr for LabelChange {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        match text.strip_suffix('-').filter(|_| !text.contains('=')) {
            // A key alone is checked as part of a label with any value.
            Some(key) => format!("{key}=x").parse().map(|label: Label| Self::Unset(label.key)),
            None => text.parse().map(Self::Set),
        }
    }
}

impl Nodes {
    pub(super) async fn run(self, session: &Session) -> Result<String, Failure> {
        let (client, out) = (session.client()?, &session.out);
        match self {
            Self::Ls(freshness) => {
                let answer = client.get(&freshness.of(PATH)).await?;
                out.answer(&answer, |nodes: Vec<Node>| list(&nodes, out))
            }
            Self::Show { node, freshness } => {
                let answer = client.get(&freshness.of(&path(&node))).await?;
                out.answer(&answer, |node: Node| show(&node, out))
            }
            Self::Drain { node } => {
                let answer = client.send(Method::POST, &format!("{}/drain", path(&node)), &Nothing {}).await?;
                out.answer(&answer, |node: Node| format!("`{}` gets no new work\n", node.member.name))
            }
            Self::Undrain { node } => {
                let answer = client.send(Method::POST, &format!("{}/undrain", path(&node)), &Nothing {}).await?;
                out.answer(&answer, |node: Node| format!("`{}` gets work again\n", node.member.name))
            }
            Self::Label { node, changes } => {
                let answer = client.send(Method::PATCH, &format!("{}/labels", path(&node)), &body(changes)).await?;
                out.answer(&answer, |node: Node| format!("`{}` is labelled {}\n", node.member.name, labels(&node)))
            }
            Self::Remove { node, yes } => {
                confirm(yes, &format!("`{node}` loses its membership for good."))?;
                let answer = client.delete(&path(&node)).await?;
                out.answer(&answer, |_: Done| format!("`{node}` is no member any more, and its key is barred\n"))
            }
            Self::Backend(backend) => backend.run(session).await,
        }
    }
}

fn path(node: &str) -> String {
    format!("{PATH}/{}", segment(node))
}

fn body(changes: Vec<LabelChange>) -> ChangeLabels {
    let mut body = ChangeLabels::default();
    for change in changes {
        match change {
            LabelChange::Set(label) => drop(body.set.insert(label.key, label.value)),
            LabelChange::Unset(key) => body.unset.push(key),
        }
    }
    body
}

fn list(nodes: &[Node], out: &Out) -> String {
    let mut table = Table::new(["NAME", "STATE", "ROLE", "VOTE", "ROUND TRIP", "LABELS", "ID"]);
    for node in nodes {
        let member = &node.member;
        table.row([
            member.name.to_string(),
            state(member.state).to_owned(),
            member.role.to_string(),
            vote(member).to_owned(),
            node.link.as_ref().map_or_else(|| "(here)".to_owned(), round_trip),
            labels(node),
            member.id.to_string(),
        ]);
    }
    table.render(out.width)
}

fn show(node: &Node, out: &Out) -> String {
    let member = &node.member;
    let mut rows = vec![
        ("name", member.name.to_string()),
        ("id", member.id.to_string()),
        ("state", state(member.state).to_owned()),
        ("role", member.role.to_string()),
        ("vote", vote(member).to_owned()),
        ("seat", member.seat.to_string()),
        ("joined", out.ago(member.joined_at.0)),
        ("labels", labels(node)),
    ];
    rows.extend(member.addresses.iter().map(|address| ("address", address.clone())));
    if let Some(link) = &node.link {
        rows.extend(link.via.iter().map(|via| ("reached by", via.clone())));
        rows.push(("round trip", round_trip(link)));
        rows.extend(link.last_seen_s.map(|seconds| ("last seen", format!("{seconds:.0} s ago"))));
        rows.push(("score", format!("{:.1}", link.score)));
        rows.extend(link.last_error.iter().map(|error| ("last error", error.clone())));
    }
    facts(&rows)
}

fn round_trip(link: &Link) -> String {
    link.round_trip_ms.map_or_else(String::new, |ms| format!("{ms:.1} ms"))
}

fn labels(node: &Node) -> String {
    let labels = node.member.labels.iter().map(|(key, value)| format!("{key}={value}"));
    labels.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use types::UnixMillis;

    use super::*;

    fn node(link: serde_json::Value) -> Node {
        let node = serde_json::json!({
            "id": types::NodeId::from_public_key([7; 32]), "name": "attic", "role": "worker", "voter": false,
            "leader": false, "state": "draining", "addresses": ["10.0.0.7:11437"], "labels": {"gpu": "4090", "room": "2"},
            "joined_at": "2026-11-20T15:00:00Z", "seat": 4, "link": link,
        });
        serde_json::from_value(node).unwrap()
    }

    fn out() -> Out {
        Out { json: false, width: None, now: UnixMillis(1_795_188_600_000) }
    }

    #[test]
    fn labels_are_set_and_taken_off_in_one_line() {
        let changes: Vec<LabelChange> = ["gpu=4090", "room-", "tier=a-"].map(|text| text.parse().unwrap()).to_vec();
        let body = body(changes);
        assert_eq!(
            body.set.into_iter().collect::<Vec<_>>(),
            [("gpu".to_owned(), "4090".to_owned()), ("tier".to_owned(), "a-".to_owned())]
        );
        assert_eq!(body.unset, ["room"]);
        for wrong in ["gpu", "-", "=4090", "GPU=1", "ro om-"] {
            assert!(wrong.parse::<LabelChange>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_list_tells_this_node_from_those_it_reaches() {
        let far = serde_json::json!({"via": "/ip4/10.0.0.7/tcp/11436", "round_trip_ms": 0.42, "last_seen_s": 0.2,
            "score": 0.0, "last_error": null});
        let shown = list(&[node(serde_json::Value::Null), node(far)], &out());
        assert!(shown.contains("attic  draining  worker  -     (here)      gpu=4090 room=2  12D3KooW"), "{shown}");
        assert!(shown.contains("attic  draining  worker  -     0.4 ms      gpu=4090 room=2  12D3KooW"), "{shown}");
    }

    #[test]
    fn what_a_peer_says_cannot_steer_the_terminal() {
        let far = serde_json::json!({"via": null, "round_trip_ms": null, "last_seen_s": 61.0, "score": -3.0,
            "last_error": "refused\u{1b}[2J"});
        let shown = show(&node(far), &out());
        assert!(shown.contains("last error  refused\\u{1b}[2J\n"), "{shown}");
        assert!(shown.contains("last seen   61 s ago\n"), "{shown}");
    }
}
