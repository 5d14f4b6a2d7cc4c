//! What goes to stdout: JSON for scripts as the node sent it, tables for people.

use std::io::{self, IsTerminal, Write};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use types::UnixMillis;

use crate::client::Answer;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::times;

/// How this run of the program prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    pub(crate) json: bool,
    /// Of the terminal; nothing where stdout is none, so that no script gets half a name.
    pub(crate) width: Option<usize>,
    /// What times are told from.
    pub(crate) now: UnixMillis,
}

impl Out {
    pub(crate) fn new(json: bool) -> Self {
        let width = terminal_size::terminal_size().filter(|_| io::stdout().is_terminal());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { json, width: width.map(|(width, _)| usize::from(width.0)), now: UnixMillis(0).after(now) }
    }

    /// The answer's own JSON, or what it means to a person.
    pub(crate) fn answer<T: DeserializeOwned>(
        &self,
        answer: &Answer,
        for_people: impl FnOnce(T) -> String,
    ) -> Result<String, Failure> {
        match self.json {
            true => Ok(answer.text() + "\n"),
            false => Ok(for_people(answer.read()?)),
        }
    }

    pub(crate) fn ago(&self, time: UnixMillis) -> String {
        times::relative(time, self.now)
    }
}

/// What is left unread, as in `omx nodes ls | head -1`, is no failure.
pub(crate) fn print(all: &str) -> Result<(), Failure> {
    offer(all).map(|_read| ())
}

/// Whether somebody is still there to read on.
pub(crate) fn offer(all: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(all.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(Exit::General, Unwritten(error))),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("failed to write to stdout")]
struct Unwritten(#[source] io::Error);
