//! Keeps the engine's process running: starts it, waits until it serves, looks whether it still does, and starts it
//! again when it does not.
//!
//! Node and engine talk over the child's pipes before they talk over HTTP. Down stdin goes the secret of this start, and
//! then nothing: its end tells the child that the node is gone, however that came about. Up stdout comes the address
//! it serves on; up stderr, lines for the log.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ollama::{Endpoint, client};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::serve::{SECRET_HEADER, Secret};

/// What is run, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub file: PathBuf,
    pub arguments: Vec<OsString>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Starting,
    Serving(Arc<Serving>),
    /// It ended or could not be started; it is tried again by itself.
    Waiting {
        why: String,
    },
    /// The node is going down.
    Stopped,
}

/// How the child of this start is spoken to.
#[derive(Debug, PartialEq, Eq)]
pub struct Serving {
    pub at: Endpoint,
    pub secret: Secret,
    pub pid: u32,
}

/// Knows how the engine is. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(watch::Receiver<State>);

#[derive(Debug)]
pub struct Task {
    program: Program,
    state: watch::Sender<State>,
}

/// Variables the child may see: how programs and their libraries are found, where there is room, and what concerns
/// graphics cards. Nothing else: the node's own variables hold tokens and keys.
const VARIABLES: [&str; 10] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SystemRoot",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
];

/// From the start to the address. Nothing is loaded by then.
const START_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Looks in a row without an answer: it hangs.
const MISSED_MAX: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// After so long a service the next start comes quickly again.
const STEADY: Duration = Duration::from_secs(60);
/// For what runs to finish when the node goes down.
const FINISH_MAX: Duration = Duration::from_secs(5);
/// The longest line taken from the child; what is longer comes in pieces.
const LINE_BYTES_MAX: u64 = 4 << 10;

impl Handle {
    pub fn state(&self) -> State {
        self.0.borrow().clone()
    }

    /// Returns once the engine serves, or the limit has passed. May be dropped at any time.
    pub async fn serving(&mut self, limit: Duration) -> Option<Arc<Serving>> {
        let serves = |state: &State| matches!(state, State::Serving(_) | State::Stopped);
        match timeout(limit, self.0.wait_for(serves)).await {
            Ok(Ok(state)) => match &*state {
                State::Serving(serving) => Some(serving.clone()),
                State::Starting | State::Waiting { .. } | State::Stopped => None,
            },
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

pub fn new(program: Program) -> (Handle, Task) {
    let (state, seen) = watch::channel(State::Starting);
    (Handle(seen), Task { program, state })
}

/// A child and the pipe whose end it waits for.
struct Running {
    child: Child,
    stdin: ChildStdin,
    stderr: BufReader<ChildStderr>,
    serving: Arc<Serving>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("`{}` could not be started: {source}", .file.display())]
    Start { file: PathBuf, source: io::Error },
    #[error("it ended before it served ({0})")]
    Ended(ExitStatus),
    #[error("it did not serve within {START_MAX:?}")]
    Late,
    #[error("it said something else than where it serves")]
    Gibberish,
    #[error("it died ({0})")]
    Died(ExitStatus),
    #[error("it hung: no answer to {MISSED_MAX} looks in a row")]
    Hung,
    #[error("its pipes failed: {0}")]
    Pipe(io::Error),
}

impl Task {
    /// Runs until the stop, then ends the child in good order. Dropping the future kills the child.
    pub async fn run(self, stop: CancellationToken) {
        let mut pause = PAUSE_MIN;
        while !stop.is_cancelled() {
            self.state.send_replace(State::Starting);
            let started = stop.run_until_cancelled(start(&self.program)).await;
            let begun = Instant::now();
            let why = match started {
                None => break,
                Some(Ok(running)) => {
                    tracing::info!(pid = running.serving.pid, at = %running.serving.at, "the engine serves");
                    self.state.send_replace(State::Serving(running.serving.clone()));
                    match watch(running, &stop).await {
                        None => break,
                        Some(why) => why,
                    }
                }
                Some(Err(why)) => why,
            };
            pause = if begun.elapsed() >= STEADY { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
            tracing::warn!(%why, next_start = ?pause, "the engine is down");
            self.state.send_replace(State::Waiting { why: why.to_string() });
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
        self.state.send_replace(State::Stopped);
    }
}

async fn start(program: &Program) -> Result<Running, Failure> {
    let mut command = Command::new(&program.file);
    command.args(&program.arguments).env_clear();
    command.envs(VARIABLES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    // At an abort llama.cpp would start a debugger on itself, which takes seconds and writes to stdout.
    command.env("GGML_NO_BACKTRACE", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|source| Failure::Start { file: program.file.clone(), source })?;
    let missing = || Failure::Pipe(io::ErrorKind::BrokenPipe.into());
    let mut stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let mut stderr = BufReader::new(child.stderr.take().ok_or_else(missing)?);
    let pid = child.id().ok_or_else(missing)?;
    let secret = Secret::random();
    let line = {
        let greeted = async {
            // Where it has ended already its exit says more than the pipe.
            let _ = stdin.write_all(format!("{}\n", secret.expose()).as_bytes()).await;
            let mut line = String::new();
            BufReader::new(stdout.take(LINE_BYTES_MAX)).read_line(&mut line).await.map_err(Failure::Pipe)?;
            Ok::<_, Failure>(line)
        };
        let mut greeted = std::pin::pin!(timeout(START_MAX, greeted));
        loop {
            tokio::select! {
                biased;
                line = &mut greeted => break line.map_err(|_| Failure::Late)??,
                () = pass_on(&mut stderr) => {}
            }
        }
    };
    if line.is_empty() {
        drain(&mut stderr).await;
        let status = timeout(FINISH_MAX, child.wait()).await.map_err(|_| Failure::Gibberish)?;
        return Err(Failure::Ended(status.map_err(Failure::Pipe)?));
    }
    let address: SocketAddr = line.trim().parse().map_err(|_| Failure::Gibberish)?;
    let at = address.to_string().parse().map_err(|_| Failure::Gibberish)?;
    let serving = Arc::new(Serving { at, secret, pid });
    Ok(Running { child, stdin, stderr, serving })
}

/// Looks after a child until it is to be started again; `None` where it has ended because it was told to.
async fn watch(running: Running, stop: &CancellationToken) -> Option<Failure> {
    let Running { mut child, stdin, mut stderr, serving } = running;
    let mut missed = 0;
    let mut looks = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looking = std::pin::pin!(async {
        loop {
            looks.tick().await;
            let header = Some((SECRET_HEADER, serving.secret.expose()));
            let answered = client::version(&serving.at, header, LOOK_MAX).await.is_ok();
            missed = if answered { 0 } else { missed + 1 };
            if missed == MISSED_MAX {
                return;
            }
        }
    });
    let ended = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break None,
            status = child.wait() => {
                drain(&mut stderr).await;
                break Some(status.map_or_else(Failure::Pipe, Failure::Died));
            }
            () = &mut looking => break Some(Failure::Hung),
            () = pass_on(&mut stderr) => {}
        }
    };
    drop(stdin);
    if ended.is_some() || timeout(FINISH_MAX, child.wait()).await.is_err() {
        // It is gone already, or has had its time.
        let _ = child.kill().await;
    }
    ended
}

/// Puts one line of the child's into the log. Never returns once there are no more: others end the wait.
async fn pass_on(stderr: &mut BufReader<ChildStderr>) {
    match next_line(stderr).await {
        Some(line) => tracing::info!(target: "engine", "{line}"),
        None => std::future::pending().await,
    }
}

/// What it said last, within reason: why it died, usually.
async fn drain(stderr: &mut BufReader<ChildStderr>) {
    let all = async {
        while let Some(line) = next_line(stderr).await {
            tracing::warn!(target: "engine", "{line}");
        }
    };
    let _ = timeout(Duration::from_millis(200), all).await;
}

/// May lose the beginning of a line when dropped, which costs the log half a line.
async fn next_line(stderr: &mut BufReader<ChildStderr>) -> Option<String> {
    let mut bytes = Vec::new();
    let read = stderr.take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).await;
    let text = String::from_utf8_lossy(&bytes).trim_end().chars().filter(|letter| !letter.is_control()).collect();
    matches!(read, Ok(1..)).then_some(text)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        Program { file: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()] }
    }

    #[tokio::test]
    async fn a_program_that_cannot_run_or_says_nothing_of_use_says_why() {
        let none = Program { file: "/no/such/program".into(), arguments: Vec::new() };
        assert!(matches!(start(&none).await, Err(Failure::Start { .. })));
        assert!(matches!(start(&shell("exit 3")).await, Err(Failure::Ended(status)) if status.code() == Some(3)));
        assert!(matches!(start(&shell("echo hello; exec cat")).await, Err(Failure::Gibberish)));
    }

    #[tokio::test]
    async fn the_child_gets_its_secret_by_the_pipe_a_scrubbed_environment_and_no_descriptors() {
        let scratch = tempfile::tempdir().unwrap();
        let told = scratch.path().join("told");
        // What this process has opened. Other tests have llama.cpp open files here, which it lets children inherit.
        let held = std::fs::File::create(scratch.path().join("held-open")).unwrap();
        let script = format!(
            "read secret; {{ echo $secret; env | cut -d= -f1 | sort; readlink /proc/$$/fd/* | tr '\\n' ' '; }} > '{}'; \
             echo 127.0.0.1:1; exec cat > /dev/null",
            told.display()
        );
        let running = start(&shell(&script)).await.unwrap();
        let told = std::fs::read_to_string(told).unwrap();
        let mut lines = told.lines();
        assert_eq!(lines.next(), Some(running.serving.secret.expose()));
        assert_eq!(running.serving.at.to_string(), "http://127.0.0.1:1");
        let allowed = |name: &str| {
            VARIABLES.contains(&name) || ["PWD", "SHLVL", "_", "OLDPWD", "GGML_NO_BACKTRACE"].contains(&name)
        };
        let mut seen: Vec<_> = lines.collect();
        if cfg!(target_os = "linux") {
            let inherited = seen.pop().unwrap();
            assert!(inherited.contains("pipe:") && !inherited.contains("held-open"), "{inherited}");
        }
        assert!(seen.iter().all(|name| allowed(name)), "{seen:?}");
        drop(held);
    }

    #[tokio::test]
    async fn a_child_that_dies_is_started_again_and_one_that_is_told_to_ends_by_the_end_of_its_pipe() {
        let scratch = tempfile::tempdir().unwrap();
        let (count, ended) = (scratch.path().join("count"), scratch.path().join("ended"));
        let script = format!(
            "echo x >> '{count}'; echo 127.0.0.1:1; [ $(wc -l < '{count}') -gt 1 ] || exit 7; cat > /dev/null; : > '{ended}'",
            count = count.display(),
            ended = ended.display()
        );
        let (handle, task) = new(shell(&script));
        let stop = CancellationToken::new();
        let running = std::pin::pin!(task.run(stop.clone()));
        let looking = async {
            let mut states = handle.0.clone();
            let died = |state: &State| matches!(state, State::Waiting { why } if why.contains("died"));
            states.wait_for(died).await.unwrap();
            states.wait_for(|state| matches!(state, State::Serving(_))).await.unwrap();
            stop.cancel();
        };
        timeout(Duration::from_secs(60), async { tokio::join!(running, looking) }).await.expect("it ends");
        assert_eq!(handle.state(), State::Stopped);
        assert!(ended.exists(), "the end of its pipe was not seen");
    }
}
