//! What the facts mean. Pure: each check is a function from what was found to a verdict.

use std::error::Error as _;
use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use gateway::wire::{State, Status};
use serde::Serialize;

use crate::client::Error;
use crate::folder;
use crate::plain::plain;
use crate::times::rough;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) verdict: Verdict,
    pub(super) why: String,
    pub(super) hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// What a path leads to. Systems without owners and modes tell none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) is_folder: bool,
    pub(super) owner: Option<u32>,
    /// The nine bits of permissions.
    pub(super) mode: Option<u32>,
}

/// Less than this fills up within days.
const FREE_BYTES_MIN: u64 = 1024 * 1024 * 1024;

/// Before this program was written: 2026-01-01.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);
/// File times and the clock may come from different machines.
const SKEW_MAX: Duration = Duration::from_secs(60);

impl Check {
    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

pub(super) fn ok(name: &'static str, why: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Ok, why: why.into(), hint: None }
}

fn warn(name: &'static str, why: impl Into<String>) -> Check {
    Check { verdict: Verdict::Warn, ..ok(name, why) }
}

pub(super) fn fail(name: &'static str, why: impl Into<String>) -> Check {
    Check { verdict: Verdict::Fail, ..ok(name, why) }
}

pub(super) fn data_folder(path: &Path, found: &io::Result<Found>, me: Option<u32>) -> Check {
    const NAME: &str = "data folder";
    let shown = path.display();
    let found = match found {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return warn(NAME, format!("`{shown}` is not there yet")).hint("`omx up` makes it");
        }
        Err(error) => return fail(NAME, format!("`{shown}` cannot be looked at: {error}")),
    };
    if !found.is_folder {
        return fail(NAME, format!("`{shown}` is no folder")).hint("name another with `--data-dir`");
    }
    if let (Some(owner), Some(me)) = (found.owner, me)
        && owner != me
    {
        let why = format!("`{shown}` belongs to user {owner}, this is user {me}");
        return fail(NAME, why).hint("run `omx` as its owner, or name another with `--data-dir`");
    }
    let close = format!("run `chmod 700 {}`", folder::quoted(&shown.to_string()));
    match found.mode {
        Some(mode) if mode & 0o022 != 0 => {
            fail(NAME, format!("others may write into `{shown}` (mode {mode:o})")).hint(close)
        }
        Some(mode) if mode & 0o077 != 0 => {
            warn(NAME, format!("others may look into `{shown}` (mode {mode:o})")).hint(close)
        }
        _ => ok(NAME, format!("`{shown}`")),
    }
}

pub(super) fn identity(path: &Path, found: &io::Result<Found>) -> Check {
    const NAME: &str = "identity";
    let shown = path.display();
    match found {
        Ok(Found { mode: Some(mode), .. }) if mode & 0o077 != 0 => {
            let close = format!("run `chmod 600 {}`, if nobody else has read it", folder::quoted(&shown.to_string()));
            fail(NAME, format!("others may read this node's key `{shown}` (mode {mode:o})")).hint(close)
        }
        Ok(_) => ok(NAME, "nobody else can read this node's key"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => ok(NAME, "none yet; the first start makes it"),
        Err(error) => fail(NAME, format!("`{shown}` cannot be looked at: {error}")),
    }
}

pub(super) fn space(free: io::Result<u64>) -> Check {
    const NAME: &str = "free space";
    match free {
        Ok(free) if free < FREE_BYTES_MIN => warn(NAME, format!("{} MiB left", free >> 20))
            .hint("free some space, or move the data folder to another disk"),
        Ok(free) => ok(NAME, format!("{} GiB left", free >> 30)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => ok(NAME, "not asked: there is no data folder yet"),
        Err(error) => warn(NAME, format!("it cannot be found out: {error}")),
    }
}

/// Tokens and keys expire by the wall clock; everything else works without it.
pub(super) fn clock(now: SystemTime, newest_file: Option<SystemTime>) -> Check {
    const NAME: &str = "clock";
    let hint = "set the clock, best by NTP: tokens and keys expire by it";
    if now < SystemTime::UNIX_EPOCH + EARLIEST {
        return fail(NAME, "it shows a time before this program was written").hint(hint);
    }
    let ahead = newest_file.and_then(|newest| newest.duration_since(now).ok());
    match ahead {
        Some(ahead) if ahead > SKEW_MAX => {
            fail(NAME, format!("it shows a time {} before the last write to the data folder", rough(ahead))).hint(hint)
        }
        _ => ok(NAME, "it has not gone back"),
    }
}

pub(super) fn node(folder: &Path, asked: Result<Status, Error>) -> (Check, Option<Status>) {
    const NAME: &str = "node";
    let error = match asked {
        Ok(status) => return (ok(NAME, format!("`{}` runs and answers", status.name)), Some(status)),
        Err(error) => error,
    };
    let why = match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    let failed = fail(NAME, why);
    let failed = match &error {
        Error::NotRunning(_) => failed.hint(format!("start one with `omx{} up`", folder::flag(folder))),
        Error::NotPermitted { .. } => failed.hint("run the command as the user who started the node"),
        Error::Silent { .. } => failed.hint("its process is stopped or overloaded; see `log/` in the data folder"),
        _ => failed,
    };
    (failed, None)
}

pub(super) fn listeners(reached: &[(&str, SocketAddr, io::Result<()>)]) -> Check {
    const NAME: &str = "listeners";
    let closed = reached.iter().filter_map(|(name, address, reached)| {
        reached.as_ref().err().map(|error| format!("{name} `{address}`: {error}"))
    });
    let closed: Vec<_> = closed.collect();
    if !closed.is_empty() {
        return fail(NAME, format!("not reached from here: {}", closed.join("; ")))
            .hint("does a firewall on this machine stand between? Else restart the node");
    }
    let open = reached.iter().map(|(name, address, _)| format!("{name} `{address}`"));
    ok(NAME, open.collect::<Vec<_>>().join(", "))
}

pub(super) fn quorum(status: &Status) -> Check {
    const NAME: &str = "registry";
    if status.estranged {
        return fail(NAME, "of those this node knows as voters none votes any more, so it believes nobody").hint(
            "run `omx token create` on another member, and start here with an empty `--data-dir` and `--join TOKEN`",
        );
    }
    match (status.quorum, &status.leader) {
        (true, Some(leader)) => ok(NAME, format!("a majority of the voters answers, `{}` leads", leader.name)),
        (true, None) => warn(NAME, "nobody leads just now").hint("an election may be under way; look again"),
        (false, _) => {
            let absent: Vec<_> = status.absent_voters.iter().map(|name| name.as_str()).collect();
            let wake = match absent.is_empty() {
                true => "look again in a moment".to_owned(),
                false => format!("start or wake one of: {}", absent.join(", ")),
            };
            fail(NAME, "no majority of the voters answers: settings are read-only").hint(wake)
        }
    }
}

pub(super) fn members(status: &Status) -> Check {
    const NAME: &str = "members";
    let down = status.members.iter().filter(|member| member.state == State::Down);
    let down: Vec<_> = down.map(|member| member.name.as_str()).collect();
    let count = status.members.len();
    match down.as_slice() {
        [] => ok(NAME, format!("{count}, none of them down")),
        names => warn(NAME, format!("{} of {count} down: {}", names.len(), names.join(", ")))
            .hint("start them, or take those that are gone for good out with `omx nodes remove`"),
    }
}

/// What runs models here, and why it is that.
pub(super) fn models(status: &Status) -> Check {
    const NAME: &str = "models";
    let backend = &status.backend;
    match (backend.kind.as_str(), &backend.error) {
        ("none", _) => warn(NAME, format!("nothing on this node runs models: {}", backend.why)).hint(
            "start Ollama and then this node anew, name one with `--ollama URL`, or build with `cargo xtask build`",
        ),
        (kind, None) => ok(NAME, format!("{kind} answers ({})", backend.why)),
        ("ollama", Some(error)) => fail(NAME, format!("Ollama does not answer: {error} ({})", backend.why))
            .hint("start it, or look at its log"),
        (kind, Some(error)) => fail(NAME, format!("the {kind} does not answer: {error}"))
            .hint("it is started again by itself; the node's log says why it went down"),
    }
}

pub(super) fn disk(status: &Status) -> Check {
    const NAME: &str = "registry's disk";
    match status.disk_low {
        true => fail(NAME, "no room: this node takes no changes").hint("free some space; it goes on by itself"),
        false => ok(NAME, "it takes writes"),
    }
}

/// A line for each check, its hint below.
pub(super) fn render(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Check { name, verdict, why, hint } in checks {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        writeln!(text, "{verdict:<4}  {name:<width$}  {}", plain(why)).expect("a string takes everything");
        if let Some(hint) = hint {
            writeln!(text, "{:6}{:width$}  hint: {}", "", "", plain(hint)).expect("a string takes everything");
        }
    }
    text
}

#[cfg(test)]
mod tests;
