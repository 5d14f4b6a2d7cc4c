//! Other programs that move a file from here to here, each as its own documents have it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testnet::wait_until;

use crate::{Taken, argument, child, process};

pub(crate) enum Other {
    /// Within one file system, the least there is.
    Cp,
    /// From its daemon, unencrypted; it compares a checksum of the whole.
    Rsync { program: PathBuf },
    /// Unencrypted, and nothing is compared.
    Curl { program: PathBuf, nginx: PathBuf },
    /// iroh-blobs as its own command has it: QUIC and BLAKE3, and out of its store to the file.
    Sendme { program: PathBuf },
}

/// Where the times of a process stand, and of its children that have ended.
const OWN: Range<usize> = 11..13;
const ENDED: Range<usize> = 13..15;
/// For a server to listen, and a program that was asked to end, to end.
const START_LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn all() -> Result<Vec<Other>> {
    let program = |name| argument(name).map(PathBuf::from);
    let mut all = vec![Other::Cp];
    all.extend(program("rsync").map(|program| Other::Rsync { program }));
    if let Some(nginx) = program("nginx") {
        all.push(Other::Curl { program: program("curl").unwrap_or_else(|| "curl".into()), nginx });
    }
    all.extend(program("sendme").map(|program| Other::Sendme { program }));
    Ok(all)
}

impl Other {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Cp => "cp",
            Self::Rsync { .. } => "rsync daemon",
            Self::Curl { .. } => "nginx and curl",
            Self::Sendme { .. } => "sendme (iroh-blobs)",
        }
    }

    pub(crate) fn copy(&self, file: &Path, to: &Path) -> Result<Taken> {
        let folder = file.parent().context("the file lies in a folder")?;
        let scratch = tempfile::tempdir_in(folder)?;
        let taken = match self {
            Self::Cp => timed(None, Command::new("cp").arg(file).arg(to), to),
            Self::Rsync { program } => {
                let port = free_port()?;
                let config = scratch.path().join("rsyncd.conf");
                let module = format!("[files]\npath = {}\nuse chroot = no\nread only = yes\n", folder.display());
                fs::write(&config, format!("{module}uid = {}\ngid = {}\n", owner(folder)?.0, owner(folder)?.1))?;
                let mut daemon = Command::new(program);
                daemon.args(["--daemon", "--no-detach", "--address", "127.0.0.1", "--port", &port.to_string()]);
                let server = Server::start(daemon.arg(format!("--config={}", config.display())), port)?;
                let name = file.file_name().context("the file has a name")?.to_string_lossy();
                let from = format!("rsync://127.0.0.1:{port}/files/{name}");
                timed(Some(&server), Command::new(program).args(["--whole-file", &from]).arg(to), to)
            }
            Self::Curl { program, nginx } => {
                let port = free_port()?;
                let config = scratch.path().join("nginx.conf");
                fs::write(&config, nginx_config(scratch.path(), folder, port))?;
                let mut daemon = Command::new(nginx);
                let server = Server::start(daemon.arg("-c").arg(&config).arg("-p").arg(scratch.path()), port)?;
                let name = file.file_name().context("the file has a name")?.to_string_lossy();
                let from = format!("http://127.0.0.1:{port}/{name}");
                timed(Some(&server), Command::new(program).args(["-sf", &from, "-o"]).arg(to), to)
            }
            Self::Sendme { program } => {
                let sends = scratch.path().join("sends");
                fs::create_dir(&sends)?;
                let mut sender = Command::new(program);
                sender.args(["send", "--no-progress", "--relay", "disabled"]).arg(file).current_dir(&sends);
                let mut sender = sender.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
                let said = sender.stdout.take().context("its output is piped")?;
                let server = Server(sender);
                let ticket = ticket(BufReader::new(said)).context("`sendme send` tells no ticket")?;
                let receives = scratch.path().join("receives");
                fs::create_dir(&receives)?;
                let mut receiver = Command::new(program);
                receiver.args(["receive", "--no-progress", "--relay", "disabled", &ticket]).current_dir(&receives);
                let name = file.file_name().context("the file has a name")?;
                timed(Some(&server), &mut receiver, &receives.join(name))
            }
        }?;
        if to.exists() {
            fs::remove_file(to)?;
        }
        Ok(taken)
    }
}

/// Ended with its children when it is dropped.
struct Server(Child);

impl Server {
    fn start(command: &mut Command, port: u16) -> Result<Self> {
        let server = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let is_there = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("nobody listens yet").map(drop);
        wait_until("a server that listens", START_LIMIT, is_there)?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        child::end(&mut self.0);
    }
}

/// From its start to its end, and to the last byte on the disk, with what it and the server took.
fn timed(server: Option<&Server>, program: &mut Command, to: &Path) -> Result<Taken> {
    let server = server.map(|server| server.0.id());
    let before = cpu_seconds(server)?;
    let start = Instant::now();
    let status = program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let there = start.elapsed();
    ensure!(status.success(), "{program:?} failed: {status}");
    File::open(to)?.sync_data()?;
    let lasting = start.elapsed();
    if let Some(pid) = server {
        // One that serves each client by a process of its own knows what that took once it has ended.
        let is_settled = || {
            let idle = process::summed(&child::family(pid)?, OWN.start..ENDED.end)?;
            std::thread::sleep(Duration::from_millis(100));
            let later = process::summed(&child::family(pid)?, OWN.start..ENDED.end)?;
            ensure!(later <= idle, "it still works");
            Ok(())
        };
        wait_until("a server that rests", START_LIMIT, is_settled)?;
    }
    Ok(Taken { there, lasting, cpu_seconds: cpu_seconds(server)? - before })
}

/// Of the server with its children, and of all children of ours that have ended.
fn cpu_seconds(server: Option<u32>) -> Result<f64> {
    let of_server = server.map_or(Ok(0.0), |pid| process::summed(&child::family(pid)?, OWN.start..ENDED.end))?;
    Ok(of_server + process::summed(&[std::process::id()], ENDED)?)
}

/// Asked of the system, so that it is free now; nobody else here looks for one.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(unix)]
fn owner(folder: &Path) -> Result<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    let about = folder.metadata()?;
    Ok((about.uid(), about.gid()))
}

#[cfg(not(unix))]
fn owner(_: &Path) -> Result<(u32, u32)> {
    anyhow::bail!("rsync's daemon is measured on Unix alone")
}

fn nginx_config(scratch: &Path, files: &Path, port: u16) -> String {
    let (scratch, files) = (scratch.display(), files.display());
    let user = match fs::metadata("/root").is_ok_and(|_| fs::read_dir("/root").is_ok()) {
        true => "user root;\n",
        false => "",
    };
    format!(
        "{user}daemon off;\nworker_processes auto;\npid {scratch}/nginx.pid;\nerror_log /dev/null;\n\
         events {{}}\nhttp {{\n  access_log off;\n  sendfile on;\n  client_body_temp_path {scratch}/body;\n\
         proxy_temp_path {scratch}/proxy;\n  fastcgi_temp_path {scratch}/fastcgi;\n  uwsgi_temp_path {scratch}/uwsgi;\n\
         scgi_temp_path {scratch}/scgi;\n  server {{\n    listen 127.0.0.1:{port};\n    root {files};\n  }}\n}}\n"
    )
}

/// The word behind `sendme receive`, where the sender says how to receive.
fn ticket(said: impl BufRead) -> Option<String> {
    said.lines().map_while(Result::ok).find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "receive");
        words.next()?;
        words.next().map(str::to_owned)
    })
}
