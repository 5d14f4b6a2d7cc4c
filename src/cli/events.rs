//! `omx events`: what happens, as it happens.

use clap::Args;
use gateway::wire::Event;

use super::Session;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out::{self, Out};
use crate::plain::plain;

/// Follow what happens in the mesh, until interrupted
///
/// With `--json` each event is one line of JSON.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  omx events\n  omx events --after 0      from the oldest change the node remembers\n  \
    omx events --json | jq -r 'select(.type == \"down\") | .name'"
)]
pub(super) struct Events {
    /// Begin with the changes of the registry after this index
    #[arg(long, value_name = "INDEX")]
    after: Option<u64>,
}

impl Events {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let mut events = session.client()?.follow("/omx/v1/events", self.after).await?;
        while let Some(some) = events.next().await? {
            for event in some {
                let line = if session.out.json { event.data } else { render(&event.data, &session.out) };
                if !out::offer(&format!("{line}\n"))? {
                    return Ok(Exit::Ok);
                }
            }
        }
        Err(Failure::new(Exit::NotRunning, "the node has ended the stream of events: it is stopping"))
    }
}

/// One line. An event of a kind that this version does not know is shown as it came.
fn render(json: &str, out: &Out) -> String {
    let line = match serde_json::from_str(json) {
        Ok(Event::Registry { index, at, by, what, refused }) => {
            let refused = refused.map_or_else(String::new, |why| format!(" (refused: {why})"));
            format!("{index}: {what}, by {by}, {}{refused}", out.ago(at.0))
        }
        Ok(Event::Up { name, .. }) => format!("`{name}` is up"),
        Ok(Event::Down { name, .. }) => format!("`{name}` is down"),
        Ok(Event::Leader { name: Some(name), .. }) => format!("`{name}` leads"),
        Ok(Event::Leader { node: Some(node), .. }) => format!("`{node}` leads"),
        Ok(Event::Leader { .. }) => "nobody leads".to_owned(),
        Ok(Event::Missed { count }) => format!("({count} events were missed: this end was too slow)"),
        Err(_) => json.to_owned(),
    };
    plain(&line).into_owned()
}

#[cfg(test)]
mod tests {
    use types::UnixMillis;

    use super::*;

    #[test]
    fn an_event_is_one_line_known_or_not() {
        let out = Out { json: false, width: None, now: UnixMillis(1_795_188_600_000) };
        let registry = r#"{"type":"registry","index":7,"at":"2026-11-20T15:29:00Z","by":"user 0","what":"set a = b\nc",
            "refused":"no"}"#;
        assert_eq!(render(registry, &out), "7: set a = b\\nc, by user 0, 1 min ago (refused: no)");
        assert_eq!(render(r#"{"type":"leader","node":null,"name":null}"#, &out), "nobody leads");
        assert_eq!(render(r#"{"type":"eclipse"}"#, &out), r#"{"type":"eclipse"}"#);
    }
}
