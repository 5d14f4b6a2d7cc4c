//! `omx leave`: this node goes for good.

use std::io::{self, BufRead, IsTerminal};

use clap::Args;
use gateway::wire::Nothing;

use super::Session;
use crate::client::Method;
use crate::exit::Exit;
use crate::failure::Failure;

/// Take this node out of its mesh for good
///
/// It hands over what it leads and votes for, and its membership ends. Its key is barred: to come back, the machine needs
/// an empty data folder and a new token. To stop a node for a while, end `omx up` instead.
#[derive(Debug, Args)]
pub(super) struct Leave {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Leave {
    pub(super) async fn run(self, session: &Session) -> Result<String, Failure> {
        let client = session.client()?;
        if !self.yes && !confirmed()? {
            return Err(Failure::new(Exit::General, "not confirmed; nothing was done"));
        }
        let answer = client.send(Method::POST, "/omx/v1/leave", &Nothing {}).await?;
        session.out.answer(&answer, |_: Nothing| "this node is no member of the mesh any more\n".to_owned())
    }
}

fn confirmed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        let hint = "give `--yes` where nobody can be asked".to_owned();
        return Err(Failure::usage("leaving a mesh must be confirmed").hint(hint));
    }
    eprint!("This node leaves its mesh and cannot come back with this data folder. Go on? [y/N] ");
    let mut typed = String::new();
    let read = io::stdin().lock().read_line(&mut typed);
    read.map_err(|error| Failure::new(Exit::General, error))?;
    Ok(is_yes(&typed))
}

fn is_yes(typed: &str) -> bool {
    matches!(typed.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        assert!(["y", "Y\n", " yes \r\n"].into_iter().all(is_yes));
        assert!(["", "\n", "n", "yep", "yy"].into_iter().all(|typed| !is_yes(typed)));
    }
}
