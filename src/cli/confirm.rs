//! Asks whoever types before something that cannot be taken back.

use std::io::{self, BufRead, IsTerminal};

use crate::exit::Exit;
use crate::failure::Failure;

/// Ends well only on a yes: given along as `--yes`, or typed at a terminal. Whoever pipes into a command meant its input
/// for something else.
pub(super) fn confirm(yes: bool, what_happens: &str) -> Result<(), Failure> {
    match (yes, io::stdin().is_terminal()) {
        (true, _) => Ok(()),
        (false, true) => ask(what_happens),
        (false, false) => {
            let hint = "give `--yes` where nobody can be asked".to_owned();
            Err(Failure::usage("this cannot be taken back and must be confirmed").hint(hint))
        }
    }
}

fn ask(what_happens: &str) -> Result<(), Failure> {
    eprint!("{what_happens} Go on? [y/N] ");
    let mut typed = String::new();
    let read = io::stdin().lock().read_line(&mut typed);
    read.map_err(|error| Failure::new(Exit::General, error))?;
    if is_yes(&typed) {
        return Ok(());
    }
    Err(Failure::new(Exit::General, "not confirmed; nothing was done"))
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
