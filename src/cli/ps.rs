//! `omx ps`: what is loaded where, and what waits.

use clap::Args;
use gateway::wire::{Load, Queue};

use super::Session;
use crate::failure::Failure;
use crate::out::Out;
use crate::table::Table;

/// Show which models are loaded on which nodes, and how busy they are
///
/// As each node said it last: within moments where something changed much, else within a quarter of a minute.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  omx ps\n  omx ps --all\n  omx ps --json | jq '.nodes[] | {node, up}'")]
pub(super) struct Ps {
    /// Models that are not loaded, too
    #[arg(long)]
    all: bool,
}

impl Ps {
    pub(super) async fn run(self, session: &Session) -> Result<String, Failure> {
        let answer = session.client()?.get("/omx/v1/queue").await?;
        session.out.answer(&answer, |queue: Queue| render(&queue, self.all, &session.out))
    }
}

fn render(queue: &Queue, all: bool, out: &Out) -> String {
    let mut table = Table::new(["NODE", "MODEL", "DIGEST", "BACKEND", "STATE", "CONTEXT", "FREE", "WAIT", "TOKENS/S"]);
    for Load { node, up, backends, models } in &queue.nodes {
        for model in models.iter().filter(|model| all || model.loaded) {
            let backend = backends.get(model.backend);
            let state = match (up, backend, model.loaded) {
                (false, ..) => "node down".to_owned(),
                (true, Some(backend), _) if backend.state != "up" => backend.state.clone(),
                (true, _, true) => "loaded".to_owned(),
                (true, _, false) => "on disk".to_owned(),
            };
            table.row([
                node.clone(),
                model.name.clone(),
                model.digest.clone(),
                backend.map_or_else(String::new, |backend| backend.kind.clone()),
                state,
                model.context.map_or_else(String::new, |context| context.to_string()),
                format!("{} of {}", model.free, model.slots),
                if model.wait > 0.0 { format!("{:.1} s", model.wait) } else { String::new() },
                format!("{:.0}", model.answer_rate),
            ]);
        }
    }
    let here = format!("here: {} running, {} waiting\n", queue.running, queue.waiting);
    format!("{}{here}", table.render(out.width))
}
