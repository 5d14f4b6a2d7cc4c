//! Waiting for a state, with a limit; never for a time.

use std::io::{self, Read};
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How often a state is looked at. Short against what is waited for, long against what a look costs.
const PAUSE: Duration = Duration::from_millis(20);

/// What one look at a state tells.
#[derive(Debug)]
pub(crate) enum Look<T> {
    Done(T),
    /// Why not yet, for the error should it never be.
    NotYet(String),
}

/// Looks until `look` succeeds, for `limit` at most. Its last error tells what was there instead.
pub fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    poll(what, limit, || {
        Ok(match look() {
            Ok(seen) => Look::Done(seen),
            Err(error) => Look::NotYet(format!("{error:#}")),
        })
    })
}

/// Like `wait_until`, for looks that can also find that waiting is in vain: an error ends it at once.
pub(crate) fn poll<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<Look<T>>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        match look()? {
            Look::Done(seen) => return Ok(seen),
            Look::NotYet(instead) if begun.elapsed() >= limit => {
                bail!("waited {limit:?} for {what}; last seen: {instead}")
            }
            Look::NotYet(_) => thread::sleep(PAUSE),
        }
    }
}

/// Like `Command::output`, but a process that does not end within `limit` is killed.
pub fn output_within(command: &mut Command, limit: Duration) -> anyhow::Result<Output> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdout = drain(child.stdout.take().expect("stdout is a pipe, as set above"));
    let stderr = drain(child.stderr.take().expect("stderr is a pipe, as set above"));
    let ended = poll("its end", limit, || look_for_end(&mut child));
    if ended.is_err() {
        // It may have ended by itself in between, which is as good.
        child.kill().context("failed to kill it")?;
        child.wait().context("failed to wait for it")?;
    }
    let collect = |reader: JoinHandle<io::Result<Vec<u8>>>| reader.join().expect("reading does not panic");
    let (stdout, stderr) = (collect(stdout)?, collect(stderr)?);
    let status = ended.with_context(|| format!("it said `{}`", String::from_utf8_lossy(&stderr).trim_end()))?;
    Ok(Output { status, stdout, stderr })
}

pub(crate) fn look_for_end(child: &mut Child) -> anyhow::Result<Look<std::process::ExitStatus>> {
    let status = child.try_wait().context("failed to look after a child process")?;
    Ok(status.map_or_else(|| Look::NotYet("still running".to_owned()), Look::Done))
}

/// Reads in a thread of its own, so that a process never stops at a full pipe while we look at the other one.
fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<io::Result<Vec<u8>>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).map(|_| bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_true_later_is_waited_for() {
        let mut looks = 0;
        let seen = wait_until("the third look", Duration::from_secs(10), || {
            looks += 1;
            anyhow::ensure!(looks == 3, "only look {looks}");
            Ok(looks)
        });
        assert_eq!(seen.unwrap(), 3);
    }

    #[test]
    fn what_never_comes_true_is_named_with_what_was_there_instead() {
        let error = wait_until("a leader", Duration::ZERO, || -> anyhow::Result<()> { bail!("two candidates") });
        let text = error.unwrap_err().to_string();
        assert!(text.contains("for a leader") && text.contains("two candidates"), "{text}");
    }

    #[test]
    fn waiting_in_vain_ends_at_once() {
        let mut looks = 0;
        let error = poll("anything", Duration::from_secs(60), || -> anyhow::Result<Look<()>> {
            looks += 1;
            bail!("it is dead")
        });
        assert_eq!((looks, error.unwrap_err().to_string()), (1, "it is dead".to_owned()));
    }

    #[test]
    fn a_command_that_does_not_end_is_killed() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo here >&2; exec sleep 60"]);
        let begun = Instant::now();
        let error = output_within(&mut command, Duration::from_millis(300)).unwrap_err();
        assert!(format!("{error:#}").contains("it said `here`"), "{error:#}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn more_output_than_a_pipe_holds_is_read() {
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done",
        ]);
        let output = output_within(&mut command, Duration::from_secs(30)).unwrap();
        assert_eq!((output.status.success(), output.stdout.len()), (true, 3000 * 41));
    }
}
