//! `omx nodes backend`: Ollamas on machines without a node.

use clap::Subcommand;
use gateway::wire::{Done, EnrollBackend, EnrolledBackend, Standing};
use types::NodeName;

use crate::cli::{Freshness, Session};
use crate::client::{Method, segment};
use crate::failure::Failure;
use crate::out::Out;
use crate::table::Table;

const PATH: &str = "/omx/v1/backends";

#[derive(Debug, Subcommand)]
pub(crate) enum Backend {
    /// Have the mesh use the Ollama at URL, on a machine that runs no `omx`
    ///
    /// The nodes speak plain HTTP to it; keep the way there within a network you trust.
    Add {
        /// What people call it; formed as a node's name
        name: NodeName,
        /// Where it listens, such as http://10.0.0.9:11434
        url: String,
        /// The one node that may stand before it [default: the nodes settle it, and another takes over]
        #[arg(long)]
        node: Option<String>,
    },
    /// List the enrolled Ollamas and who stands before each
    Ls(Freshness),
    /// Use an enrolled Ollama no more
    Rm { name: String },
}

impl Backend {
    pub(super) async fn run(self, session: &Session) -> Result<String, Failure> {
        let (client, out) = (session.client()?, &session.out);
        match self {
            Self::Add { name, url, node } => {
                let answer = client.send(Method::POST, PATH, &EnrollBackend { name, url, node }).await?;
                out.answer(&answer, |backend: EnrolledBackend| added(&backend))
            }
            Self::Ls(freshness) => {
                let answer = client.get(&freshness.of(PATH)).await?;
                out.answer(&answer, |backends: Vec<EnrolledBackend>| list(&backends, out))
            }
            Self::Rm { name } => {
                let answer = client.delete(&format!("{PATH}/{}", segment(&name))).await?;
                out.answer(&answer, |_: Done| format!("`{name}` is used no more\n"))
            }
        }
    }
}

fn added(backend: &EnrolledBackend) -> String {
    let EnrolledBackend { name, url, host, .. } = backend;
    match host {
        Some(host) => format!("`{name}` is the Ollama at `{url}`; `{}` stands before it\n", called(host)),
        None => format!("`{name}` is the Ollama at `{url}`; no node stands before it now\n"),
    }
}

fn list(backends: &[EnrolledBackend], out: &Out) -> String {
    let mut table = Table::new(["NAME", "URL", "BEHIND", "NOW", "ENROLLED"]);
    for backend in backends {
        table.row([
            backend.name.to_string(),
            backend.url.clone(),
            backend.node.as_ref().map_or_else(|| "any".to_owned(), called),
            backend.host.as_ref().map_or_else(String::new, called),
            out.ago(backend.enrolled_at.0),
        ]);
    }
    table.render(out.width)
}

fn called(node: &Standing) -> String {
    node.name.as_ref().map_or_else(|| node.id.to_string(), NodeName::to_string)
}

#[cfg(test)]
mod tests {
    use gateway::wire::Time;
    use types::{NodeId, UnixMillis};

    use super::*;

    #[test]
    fn a_list_tells_who_may_stand_before_a_backend_from_who_does() {
        let now = UnixMillis(1_800_000_000_000);
        let gone = NodeId::from_public_key([7; 32]);
        let standing = |name: &str| Standing { id: gone, name: name.parse().ok() };
        let backend = |node, host| EnrolledBackend {
            name: "attic".parse().unwrap(),
            url: "http://10.0.0.9:11434".to_owned(),
            node,
            host,
            enrolled_at: Time(now),
        };
        let out = Out { json: false, width: None, now };
        let shown = list(&[backend(None, Some(standing("tower")))], &out);
        assert!(shown.contains("\nattic  http://10.0.0.9:11434  any     tower  now\n"), "{shown}");
        let shown = list(&[backend(Some(standing("")), None)], &out);
        assert!(shown.contains(&format!("\nattic  http://10.0.0.9:11434  {gone}  -    now\n")), "{shown}");
        assert!(added(&backend(None, None)).ends_with("; no node stands before it now\n"));
    }
}
