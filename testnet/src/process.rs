//! One process of ours: is it still there, is it still ours, and signals to it.
//!
//! A pid alone says little: once a process has ended its number may go to a stranger. So no signal is sent before the
//! process is known to be ours, either because it is our unreaped child or because its command line names the node's
//! data folder.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::wait::{Look, look_for_end, poll};

#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    /// What no other process has in its command line.
    mark: String,
    /// There when this very process started it, absent when an earlier one did.
    child: Option<Child>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Freeze,
    Thaw,
    Term,
    Kill,
}

/// What the system tells about a live process.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    command_line: String,
    frozen: bool,
}

impl Process {
    pub(crate) fn started(child: Child, mark: String) -> Self {
        Self { pid: child.id(), mark, child: Some(child) }
    }

    /// A process that an earlier call started, if it is still there.
    pub(crate) fn found(pid: u32, mark: String) -> Option<Self> {
        let mut process = Self { pid, mark, child: None };
        process.seen().is_some().then_some(process)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether whoever holds this value also started the process.
    pub(crate) fn is_child(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => self.seen().is_some(),
        }
    }

    pub(crate) fn is_frozen(&mut self) -> bool {
        self.seen().is_some_and(|seen| seen.frozen)
    }

    pub(crate) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if !self.is_alive() {
            bail!("process {} has ended", self.pid);
        }
        send(self.pid, signal).with_context(|| format!("failed to signal process {}", self.pid))
    }

    /// Waits for its end. How it ended is told to its parent alone.
    pub(crate) fn ended(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let what = format!("the end of process {}", self.pid);
        if let Some(child) = &mut self.child {
            return poll(&what, limit, || look_for_end(child)).map(Some);
        }
        poll(&what, limit, || {
            Ok(self.seen().map_or(Look::Done(None), |seen| Look::NotYet(format!("still running: {seen:?}"))))
        })
    }

    /// None when it ended, or when its number belongs to somebody else now.
    fn seen(&mut self) -> Option<Seen> {
        see(self.pid).filter(|seen| seen.command_line.contains(&self.mark))
    }
}

fn see(pid: u32) -> Option<Seen> {
    let proc = Path::new("/proc").join(pid.to_string());
    if Path::new("/proc/self/stat").exists() {
        let arguments = fs::read(proc.join("cmdline")).ok()?;
        let stat = fs::read_to_string(proc.join("stat")).ok()?;
        read_proc(&arguments, &stat)
    } else {
        let pid = pid.to_string();
        let output = Command::new("ps").args(["-ww", "-o", "stat=", "-o", "command=", "-p", &pid]).output().ok()?;
        read_ps(&String::from_utf8_lossy(&output.stdout))
    }
}

/// `arguments` end in a zero byte each; in `stat` the state follows the name, which may hold anything, in parentheses.
fn read_proc(arguments: &[u8], stat: &str) -> Option<Seen> {
    let state = stat.rsplit_once(") ")?.1;
    read_state(state, String::from_utf8_lossy(arguments).replace('\0', " "))
}

/// `S+   /bin/sh -c true`
fn read_ps(line: &str) -> Option<Seen> {
    let (state, command_line) = line.trim().split_once(char::is_whitespace)?;
    read_state(state, command_line.trim_start().to_owned() + " ")
}

fn read_state(state: &str, command_line: String) -> Option<Seen> {
    match state.chars().next()? {
        'Z' | 'X' => None,
        letter => Some(Seen { command_line, frozen: letter == 'T' }),
    }
}

#[cfg(unix)]
fn send(pid: u32, signal: Signal) -> anyhow::Result<()> {
    use rustix::process::{Pid, Signal as Number, kill_process};

    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process has this number")?;
    let number = match signal {
        Signal::Freeze => Number::STOP,
        Signal::Thaw => Number::CONT,
        Signal::Term => Number::TERM,
        Signal::Kill => Number::KILL,
    };
    Ok(kill_process(pid, number)?)
}

#[cfg(not(unix))]
fn send(_: u32, signal: Signal) -> anyhow::Result<()> {
    bail!("this system has no signal for {signal:?}")
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn sleeper() -> Process {
        let child = Command::new("sleep").arg("61.5").stdin(Stdio::null()).spawn().unwrap();
        Process::started(child, "sleep 61.5 ".to_owned())
    }

    #[test]
    fn a_process_is_frozen_thawed_and_killed() {
        let mut process = sleeper();
        assert!(process.is_alive());
        process.signal(Signal::Freeze).unwrap();
        crate::wait_until("it is frozen", LIMIT, || process.is_frozen().then_some(()).context("it runs")).unwrap();
        process.signal(Signal::Thaw).unwrap();
        crate::wait_until("it is thawed", LIMIT, || (!process.is_frozen()).then_some(()).context("it is frozen"))
            .unwrap();
        process.signal(Signal::Kill).unwrap();
        assert!(!process.ended(LIMIT).unwrap().unwrap().success());
        assert!(process.signal(Signal::Term).is_err());
    }

    #[test]
    fn a_process_is_found_again_by_its_command_line_only() {
        let mut process = sleeper();
        crate::wait_until("it is the program itself", LIMIT, || process.seen().context("another one")).unwrap();
        let found = Process::found(process.pid(), "sleep 61.5 ".to_owned());
        let stranger = Process::found(process.pid(), "sleep 61 ".to_owned());
        process.signal(Signal::Kill).unwrap();
        process.ended(LIMIT).unwrap();
        assert!(found.is_some_and(|mut found| !found.is_child() && !found.is_alive()));
        assert!(stranger.is_none());
    }

    #[test]
    fn both_ways_of_looking_read_the_same() {
        let seen = |frozen| Some(Seen { command_line: "omx up --name n1 ".to_owned(), frozen });
        assert_eq!(read_proc(b"omx\0up\0--name\0n1\0", "7 (a) b) S 1 2"), seen(false));
        assert_eq!(read_proc(b"omx\0up\0--name\0n1\0", "7 (omx) T 1 2"), seen(true));
        assert_eq!(read_ps("  Ss+  omx up --name n1\n"), seen(false));
        assert_eq!(read_ps("T    omx up --name n1\n"), seen(true));
    }

    #[test]
    fn a_process_that_nobody_has_waited_for_yet_has_ended() {
        assert_eq!(read_proc(b"", "7 (omx) Z 1 2"), None);
        assert_eq!(read_ps("Z    (omx)\n"), None);
        assert_eq!(read_ps("\n"), None);
    }
}
