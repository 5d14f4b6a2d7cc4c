//! Long work, as its lines come: one bar for each thing on a terminal, the lines themselves for scripts.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use gateway::wire::WorkLine;

use crate::client::Lines;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out::{self, Out};
use crate::plain::plain;
use crate::sizes::bytes;

const BAR_CELLS: u64 = 24;

/// Shows all there is to be told and returns what is said at the good end.
pub(super) async fn follow(mut lines: Lines, out: &Out, done: &str) -> Result<String, Failure> {
    let mut shown = Shown::new();
    let mut last = WorkLine::default();
    while let Some(line) = lines.next().await? {
        let read: WorkLine = serde_json::from_slice(&line).map_err(|error| Failure::new(Exit::General, error))?;
        if out.json && !out::offer(&(String::from_utf8_lossy(&line).into_owned() + "\n"))? {
            return Ok(String::new());
        }
        if !out.json && read.error.is_none() {
            shown.line(&read);
        }
        last = read;
    }
    shown.end();
    match (last.error, last.status.as_str()) {
        (Some(error), _) => Err(Failure::new(Exit::General, error).hint(last.hint)),
        (None, "success") if out.json => Ok(String::new()),
        (None, "success") => Ok(done.to_owned()),
        (None, _) => Err(Failure::new(Exit::Unknown, "the node broke off; what has come is kept, ask again")),
    }
}

/// What stands on the terminal. Everything goes to stderr: it is no data.
struct Shown {
    terminal: bool,
    /// What the open line is about, since when, and from how many bytes.
    about: Option<(String, Instant, u64)>,
}

impl Shown {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), about: None }
    }

    fn line(&mut self, line: &WorkLine) {
        if line.status == "success" {
            return;
        }
        let subject =
            format!("{}{}", line.node.as_deref().map_or_else(String::new, |node| format!("{node}: ")), line.status);
        let completed = line.completed.unwrap_or_default();
        let is_same = self.about.as_ref().is_some_and(|(about, ..)| *about == subject);
        if !is_same {
            self.end();
            self.about = Some((subject.clone(), Instant::now(), completed));
        }
        let text = plain(&subject).into_owned();
        match (self.terminal, line.total) {
            (true, Some(total)) => {
                let (since, from) = self.about.as_ref().map_or((Instant::now(), 0), |(_, since, from)| (*since, *from));
                let rate = completed.saturating_sub(from) as f64 / since.elapsed().as_secs_f64().max(0.001);
                // Overwrites the line as it stands.
                eprint!(
                    "\r\u{1b}[K{text}  {}  {} of {}, {}/s",
                    bar(completed, total),
                    bytes(completed),
                    bytes(total),
                    bytes(rate as u64)
                );
            }
            (true, None) => eprint!("\r\u{1b}[K{text}"),
            (false, _) if !is_same => eprintln!("{text}"),
            (false, _) => {}
        }
        let _ = io::stderr().flush();
    }

    fn end(&mut self) {
        if self.about.take().is_some() && self.terminal {
            eprintln!();
        }
    }
}

pub(in crate::cli) fn bar(done: u64, total: u64) -> String {
    let full = (u128::from(done.min(total)) * u128::from(BAR_CELLS) / u128::from(total.max(1))) as u64;
    (0..BAR_CELLS).map(|cell| if cell < full { '#' } else { '.' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_full_as_the_work_is_done() {
        assert_eq!(bar(0, 10), ".".repeat(24));
        assert_eq!(bar(5, 10), "#".repeat(12) + &".".repeat(12));
        assert_eq!(bar(11, 10), "#".repeat(24));
        assert_eq!(bar(u64::MAX, u64::MAX), "#".repeat(24));
        assert_eq!(bar(0, 0), ".".repeat(24));
    }
}
