//! How a command ends, told to whoever started it by one number. Scripts rely on these: a number is never given a
//! second meaning.

use std::process::ExitCode;

/// Every exit code of `omx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok,
    General,
    Usage,
    NotRunning,
    Refused,
    NoQuorum,
    FolderInUse,
    Damaged,
    NewerFormat,
    PortTaken,
    JoinRefused,
    NotPermitted,
    Unknown,
}

impl Exit {
    pub(crate) const ALL: [Self; 13] = [
        Self::Ok,
        Self::General,
        Self::Usage,
        Self::NotRunning,
        Self::Refused,
        Self::NoQuorum,
        Self::FolderInUse,
        Self::Damaged,
        Self::NewerFormat,
        Self::PortTaken,
        Self::JoinRefused,
        Self::NotPermitted,
        Self::Unknown,
    ];

    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "it worked",
            Self::General => "it failed in a way that has no number of its own",
            Self::Usage => "a flag, a setting or an argument is wrong",
            Self::NotRunning => "no node is running on this data folder",
            Self::Refused => "the node or the registry said no: unknown name, bad value, conflict, limit reached",
            Self::NoQuorum => "the registry is read-only: no leader, or no majority of the voters",
            Self::FolderInUse => "another node runs on this data folder",
            Self::Damaged => "what is stored in the data folder is damaged",
            Self::NewerFormat => "the data folder was written by a newer omx",
            Self::PortTaken => "an address to listen on is taken",
            Self::JoinRefused => "the mesh did not let this node in, or has removed it",
            Self::NotPermitted => "not permitted: file modes, another user's node, or missing rights",
            Self::Unknown => "no answer in time: it is not known whether it was done",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The table at the end of `omx --help`.
pub(crate) fn help() -> String {
    let row = |exit: Exit| format!("  {:>2}  {}\n", exit.code(), exit.meaning());
    Exit::ALL.into_iter().map(row).fold("Exit codes:\n".to_owned(), |text, row| text + &row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones_in_order() {
        let page = include_str!("../docs/config.md");
        for (number, exit) in (0..).zip(Exit::ALL) {
            assert_eq!(exit.code(), number, "{exit:?}");
            let row = format!("| {number} | {} |", exit.meaning());
            assert!(page.contains(&row), "docs/config.md has no row `{row}`");
        }
        let rows =
            page.lines().filter(|line| line.strip_prefix("| ").is_some_and(|rest| rest.starts_with(char::is_numeric)));
        assert_eq!(rows.count(), Exit::ALL.len(), "docs/config.md has rows for codes that do not exist");
    }

    #[test]
    fn help_names_every_code() {
        let help = help();
        for exit in Exit::ALL {
            assert!(help.contains(&format!(" {}  {}", exit.code(), exit.meaning())), "{exit:?}");
        }
    }
}
