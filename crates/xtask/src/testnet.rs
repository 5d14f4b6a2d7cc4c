//! `cargo xtask testnet`: a mesh of real processes on this machine, for people.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::Value;
use testnet::{Condition, Options, Testnet};

use crate::tools::Hinted;
use crate::{build, tools};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The scratch folder; `.omx/testnet` in the checkout where none is given
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start that many nodes, `n1` first; the others join it
    Up {
        #[arg(value_parser = clap::value_parser!(u16).range(1..=100))]
        count: u16,
        /// A binary built already, instead of building what users get
        #[arg(long)]
        binary: Option<PathBuf>,
    },
    /// Show the nodes, from outside and as they see each other
    Status,
    /// Kill a node, as a power cut would
    Kill { name: String },
    /// Stop a node without its knowing, as a machine that went to sleep
    Freeze { name: String },
    /// Let a frozen node go on
    Thaw { name: String },
    /// Start a node that was killed
    Start { name: String },
    /// End all nodes and remove what they left
    Down,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let dir = arguments.dir.clone().unwrap_or_else(|| tools::workspace().join(".omx").join("testnet"));
    let open =
        || Testnet::open(&dir).context(Hinted::new("there is no testnet to work on", "cargo xtask testnet up 3"));
    match &arguments.verb {
        Verb::Up { count, binary } => {
            let binary = binary.clone().map_or_else(build::user_binary, Ok)?;
            let mut testnet = Testnet::up(&binary, &dir, usize::from(*count), &Options::default())
                .context(Hinted::new("the testnet did not come up", "cargo xtask testnet down"))?;
            print(&mut testnet)?;
            testnet.keep()
        }
        Verb::Status => print(&mut open()?),
        Verb::Kill { name } => {
            let mut testnet = open()?;
            testnet.node(name)?.kill9()?;
            testnet.save()
        }
        Verb::Freeze { name } => open()?.node(name)?.freeze(),
        Verb::Thaw { name } => open()?.node(name)?.thaw(),
        Verb::Start { name } => {
            let mut testnet = open()?;
            testnet.node(name)?.start()?;
            testnet.keep()
        }
        Verb::Down => {
            for name in open()?.down()? {
                eprintln!("node `{name}` did not stop in time and was killed");
            }
            Ok(())
        }
    }
}

/// From outside first, since that is true even when no node answers; then what one that runs says of all.
fn print(testnet: &mut Testnet) -> anyhow::Result<()> {
    let conditions: Vec<Condition> = testnet.nodes_mut().iter_mut().map(testnet::Node::condition).collect();
    let nodes = || testnet.nodes().iter().zip(&conditions);
    let status = nodes().find(|(_, condition)| **condition == Condition::Running).map(|(node, _)| node.status());
    let unanswered = Value::Null;
    let view = match &status {
        Some(Ok(status)) => status,
        Some(Err(_)) | None => &unanswered,
    };

    println!("{:<6} {:<9} {:>8}  {:<22} in the mesh", "node", "process", "pid", "api");
    for (node, condition) in nodes() {
        let process = match condition {
            Condition::Running => "running",
            Condition::Frozen => "frozen",
            Condition::Stopped => "stopped",
        };
        let live = *condition != Condition::Stopped;
        let pid = node.pid().filter(|_| live).map_or("-".to_owned(), |pid| pid.to_string());
        let api = node.run().ok().filter(|_| live).map_or("-".to_owned(), |run| run.api.to_string());
        println!("{:<6} {process:<9} {pid:>8}  {api:<22} {}", node.name(), in_the_mesh(view, node.name()));
    }
    if let Some(node) = testnet.nodes().first() {
        println!("\ntalk to one: {} --data-dir {} status", testnet.binary().display(), node.dir().display());
    }
    status.map_or(Ok(()), |status| status.map(drop))
}

/// `leader, node, up`: what the answering node says of this one, as far as it says it.
fn in_the_mesh(view: &Value, name: &str) -> String {
    let members = view["members"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(member) = members.iter().find(|member| member["name"] == name) else { return "-".to_owned() };
    let leader = (view["leader"]["name"] == name).then_some("leader");
    let voter = (member["voter"] == true).then_some("voter");
    let said = ["role", "state"].iter().filter_map(|key| member[key].as_str());
    leader.into_iter().chain(voter).chain(said).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_described_by_what_the_mesh_says_of_it() {
        let view = json!({
            "leader": { "id": "x", "name": "n1" },
            "members": [
                { "name": "n1", "role": "node", "voter": true, "state": "up" },
                { "name": "n2", "role": "worker", "voter": false, "state": "down" },
            ],
        });
        assert_eq!(in_the_mesh(&view, "n1"), "leader, voter, node, up");
        assert_eq!(in_the_mesh(&view, "n2"), "worker, down");
        assert_eq!(in_the_mesh(&view, "n3"), "-");
        assert_eq!(in_the_mesh(&Value::Null, "n1"), "-");
    }
}
