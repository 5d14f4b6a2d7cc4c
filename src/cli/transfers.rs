//! `omx transfers`: what comes in just now.

use std::time::Duration;

use clap::Args;
use gateway::wire::{Transfer, TransferSource};

use super::Session;
use super::models::progress::bar;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out::{self, Out};
use crate::sizes::bytes;
use crate::table::Table;

const EVERY: Duration = Duration::from_secs(1);

/// Show what this node is fetching: how far it is, how fast, and from whom
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  omx transfers\n  omx transfers --watch\n  omx transfers --json | jq '.[].rate'")]
pub(super) struct Transfers {
    /// Show it again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

impl Transfers {
    pub(super) async fn run(self, session: &Session) -> Result<(String, Exit), Failure> {
        let client = session.client()?;
        loop {
            let answer = client.get("/omx/v1/transfers").await?;
            let text = session.out.answer(&answer, |transfers: Vec<Transfer>| render(&transfers, &session.out))?;
            if !self.watch {
                return Ok((text, Exit::Ok));
            }
            // A terminal shows it in place of what it showed before.
            let clear = if session.out.width.is_some() { "\u{1b}[H\u{1b}[2J" } else { "" };
            if !out::offer(&format!("{clear}{text}"))? {
                return Ok((String::new(), Exit::Ok));
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}

fn render(transfers: &[Transfer], out: &Out) -> String {
    if transfers.is_empty() {
        return "nothing comes in\n".to_owned();
    }
    let mut table = Table::new(["MODEL", "BLOB", "STAGE", "", "DONE", "OF", "RATE", "FROM"]);
    for transfer in transfers {
        let Transfer { blake3, models, stage, bytes: done, total, rate, sources } = transfer;
        let from =
            |TransferSource { node, bytes: brought, .. }: &TransferSource| format!("{node} ({})", bytes(*brought));
        table.row([
            models.join(", "),
            blake3.trim_start_matches("blake3:").chars().take(12).collect(),
            stage.replace('_', " "),
            bar(*done, *total),
            bytes(*done),
            bytes(*total),
            format!("{}/s", bytes(*rate as u64)),
            sources.iter().map(from).collect::<Vec<_>>().join(", "),
        ]);
    }
    table.render(out.width)
}
