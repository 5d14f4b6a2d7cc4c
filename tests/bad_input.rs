//! What goes wrong at the start of a node: each has an error of its own, a cause, a hint and an exit code, and leaves
//! nothing broken behind.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testnet::{Options, Testnet, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

fn omx() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_omx"))
}

fn mesh(dir: &Path, nodes: usize) -> Result<Testnet> {
    let arguments = ["--engine", "off"].map(str::to_owned).into();
    Testnet::up(omx(), dir, nodes, &Options { arguments, ..Options::default() })
}

/// `omx up` on free loopback ports, with more arguments.
fn up(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(omx());
    command.env_clear().args(["up", "--no-mdns", "--engine", "off", "--data-dir"]).arg(dir);
    for flag in ["--api", "--mesh", "--bulk"] {
        if !arguments.contains(&flag) {
            command.args([flag, "127.0.0.1:0"]);
        }
    }
    command.args(arguments);
    command
}

/// Runs a start that must fail; returns its exit code and what it said.
fn fails(mut command: Command) -> Result<(i32, String)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let ended = wait_until("a start that cannot work to end", LIMIT, || child.try_wait()?.context("it runs"));
    if ended.is_err() {
        child.kill()?;
    }
    let mut said = String::new();
    child.stderr.take().context("stderr is a pipe")?.read_to_string(&mut said)?;
    let code = ended.with_context(|| said.clone())?.code().context("it was not killed")?;
    Ok((code, said))
}

/// Ends a child that is left over when a test fails.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn expect(found: (i32, String), code: i32, words: &[&str]) -> Result<()> {
    let (found, said) = found;
    ensure!(found == code, "exit code {found}, not {code}; it said\n{said}");
    for word in words {
        ensure!(said.contains(word), "nothing about `{word}` in\n{said}");
    }
    ensure!(said.contains("error: ") && !said.contains("panicked"), "{said}");
    Ok(())
}

#[test]
fn two_nodes_on_one_data_folder() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = mesh(scratch.path(), 1)?;
    let node = testnet.node("n1")?;
    expect(fails(up(&node.dir(), &[]))?, 6, &["another node runs on data folder", "hint: "])?;
    ensure!(node.status()?["quorum"] == true, "the first node is disturbed");
    Ok(())
}

#[test]
fn a_certificate_that_does_not_serve() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("d");
    let empty = scratch.path().join("empty.pem");
    fs::write(&empty, "")?;
    let empty = empty.to_str().context("a path in UTF-8")?;
    expect(fails(up(&dir, &["--tls-cert", empty]))?, 2, &["`--tls-cert` means nothing without `--tls-key`", "hint: "])?;
    let pair = ["--tls-cert", empty, "--tls-key", empty];
    expect(fails(up(&dir, &pair))?, 2, &["empty.pem` holds no certificate in PEM", "hint: "])?;
    let pair = ["--tls-cert", "no/such/file", "--tls-key", empty];
    expect(fails(up(&dir, &pair))?, 1, &["failed to read the TLS certificate `no/such/file`", "cause: "])?;
    ensure!(!dir.exists(), "a node that cannot serve leaves nothing behind");
    Ok(())
}

#[test]
fn a_port_that_is_taken() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    let port = address.port().to_string();
    let address = address.to_string();
    for flag in ["--api", "--mesh", "--bulk"] {
        let dir = scratch.path().join(flag);
        expect(fails(up(&dir, &[flag, &address]))?, 9, &["127.0.0.1", &port, "hint: stop what listens there"])?;
        let mut again = Ends(up(&dir, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let started = wait_until("the same folder to start on free ports", LIMIT, || {
            ensure!(again.0.try_wait()?.is_none(), "it ended");
            Ok(fs::read(dir.join("run.json")).map(drop)?)
        });
        started.with_context(|| format!("after {flag} was taken"))?;
    }
    Ok(())
}

#[test]
fn a_folder_that_cannot_be_used() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("file");
    fs::write(&file, "")?;
    expect(fails(up(&file.join("below"), &[]))?, 1, &["file/below"])?;
    let foreign = scratch.path().join("letters");
    fs::create_dir(&foreign)?;
    private(&foreign)?;
    fs::write(foreign.join("letter.txt"), "dear")?;
    expect(fails(up(&foreign, &[]))?, 2, &["not a data folder", "hint: "])?;
    ensure!(fs::read_dir(&foreign)?.count() == 1, "something was left behind");
    Ok(())
}

#[test]
fn a_folder_that_is_not_writable() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    /// For whom nothing here is writable; root would write all the same.
    const NOBODY: u32 = 65_534;
    let scratch = tempfile::tempdir()?;
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o555))?;
    let dir = scratch.path().join("node");
    let mut command = up(&dir, &[]);
    if fs::create_dir(scratch.path().join("probe")).is_ok() {
        // Somewhere that nobody can run it from: the folder above the build may be closed to others.
        let copy = scratch.path().join("omx");
        fs::copy(omx(), &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o555))?;
        let mut as_nobody = Command::new(copy);
        as_nobody.env_clear().args(command.get_args()).uid(NOBODY).gid(NOBODY);
        command = as_nobody;
    }
    expect(fails(command)?, 11, &["node", "ermission denied", "hint: "])?;
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
    ensure!(!dir.exists(), "something was left behind");
    Ok(())
}

#[test]
fn a_folder_that_is_full() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let Some(disk) = SmallDisk::mount(scratch.path(), "2m") else {
        ensure!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "no file system may be mounted here");
        eprintln!("no file system may be mounted here, so a full one is not tried");
        return Ok(());
    };
    let dir = scratch.path().join("node");
    expect(fails(disk.sees(&up(&dir, &[])))?, 1, &["space", "hint: free some disk space"])?;
    disk.grow("1g")?;
    let mut node = Ends(disk.sees(&up(&dir, &[])).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    wait_until("the same folder to start once there is room", LIMIT, || {
        ensure!(node.0.try_wait()?.is_none(), "it ended");
        Ok(fs::read(disk.seen_from_here(&dir.join("run.json"))).map(drop)?)
    })
}

/// A small file system in a mount namespace of its own, for root or for whoever may be root of a user namespace. It goes
/// with the process that holds it.
struct SmallDisk {
    holder: Ends,
    mounted_at: PathBuf,
    entering: &'static [&'static str],
}

impl SmallDisk {
    fn mount(dir: &Path, size: &str) -> Option<Self> {
        let as_root = || Self::mount_in("-m", &["--mount"], dir, size);
        let as_anyone = || Self::mount_in("-Urm", &["--mount", "--user", "--preserve-credentials"], dir, size);
        as_root().or_else(as_anyone)
    }

    fn mount_in(namespaces: &str, entering: &'static [&'static str], dir: &Path, size: &str) -> Option<Self> {
        let script = r#"mount -t tmpfs -o "size=$1" tmpfs "$2" && echo mounted && exec cat"#;
        let mut command = Command::new("unshare");
        command.args([namespaces, "sh", "-c", script, "sh", size]).arg(dir);
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = Ends(pipes.spawn().ok()?);
        let mut said = String::new();
        BufReader::new(holder.0.stdout.take()?).read_line(&mut said).ok()?;
        (said == "mounted\n").then(|| Self { holder, mounted_at: dir.to_owned(), entering })
    }

    /// The same command, started where the file system is mounted.
    fn sees(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.env_clear().arg("--target").arg(self.holder.0.id().to_string()).args(self.entering);
        inside.arg("--").arg(command.get_program()).args(command.get_args());
        inside
    }

    fn seen_from_here(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.0.id()));
        root.join(path.strip_prefix("/").expect("scratch folders have absolute paths"))
    }

    fn grow(&self, size: &str) -> Result<()> {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,size={size}")]).arg(&self.mounted_at);
        ensure!(self.sees(&mount).status()?.success(), "what could be mounted can be grown");
        Ok(())
    }
}

#[test]
fn a_folder_others_may_look_into() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let scratch = tempfile::tempdir()?;
    let open = scratch.path().join("open");
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755))?;
    expect(fails(up(&open, &[]))?, 11, &["755", "hint: run `chmod 700"])
}

fn private(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;

    Ok(fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?)
}

#[test]
fn a_folder_of_a_newer_version() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = mesh(scratch.path(), 1)?;
    let node = testnet.node("n1")?;
    node.term(LIMIT)?;
    fs::write(node.dir().join("format"), "omx data 99\n")?;
    expect(fails(up(&node.dir(), &[]))?, 8, &["format 99", "hint: update"])?;
    fs::write(node.dir().join("format"), "omx data 1\n")?;
    node.start()
}

#[test]
fn an_unknown_key_in_the_settings_file() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("node");
    fs::create_dir(&dir)?;
    private(&dir)?;
    fs::write(dir.join("omx.toml"), "# mine\nnam = \"tower\"\n")?;
    expect(fails(up(&dir, &[]))?, 2, &["omx.toml", "`nam`", "`name`", "2"])
}

#[test]
fn an_unknown_setting_of_the_mesh_and_a_bad_value() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = mesh(scratch.path(), 1)?;
    let node = testnet.node("n1")?;
    for (arguments, words) in [
        (["config", "set", "voter.max", "3"], ["`voter.max`", "`voters.max`"]),
        (["config", "set", "voters.max", "4"], ["`4`", "1, 3, 5 or 7"]),
    ] {
        let output = node.cli(&arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        expect((output.status.code().context("it ended")?, said), 4, &words)?;
    }
    Ok(())
}

/// The largest file of the log: what a flipped bit would most likely hit.
fn log_file(dir: &Path) -> Result<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![dir.join("registry")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.file_type()?.is_dir() {
                true if name != "snapshots" => folders.push(entry.path()),
                true => {}
                false if name != "reserve" => files.push((entry.metadata()?.len(), entry.path())),
                false => {}
            }
        }
    }
    Ok(files.into_iter().max().context("the registry has files")?.1)
}

#[test]
fn a_damaged_log_stops_the_node_and_a_token_lets_it_back_in() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = mesh(scratch.path(), 3)?;
    testnet.node("n1")?.text(&["config", "set", "mesh.name", "before"])?;
    let damaged = testnet.node("n3")?;
    damaged.kill9()?;
    let dir = damaged.dir();
    let file = log_file(&dir)?;
    // All of it zeroed, at its length: whatever the file held, what was acknowledged is gone.
    fs::write(&file, vec![0; usize::try_from(fs::metadata(&file)?.len())?])?;
    expect(fails(up(&dir, &[]))?, 7, &["damaged", "hint: run `omx token create`"])?;
    // A token that opens nothing: what was damaged is set aside, and no mesh of its own takes its place.
    let n1 = testnet.node("n1")?;
    let revoked = n1.text(&["token", "create"])?;
    for token in n1.json(&["token", "ls"])?.as_array().context("a list")? {
        n1.text(&["token", "revoke", token["id"].as_str().context("an id")?])?;
    }
    expect(fails(up(&dir, &["--join", &revoked]))?, 10, &["revoked"])?;
    expect(fails(up(&dir, &[]))?, 7, &["registry.damaged-1", "in no mesh", "hint: run `omx token create`"])?;
    let token = testnet.node("n1")?.text(&["token", "create"])?;
    let mut child =
        Ends(up(&dir, &["--name", "n3", "--join", &token]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    is_up_again(&testnet, "n3", &mut child)?;
    ensure!(dir.join("registry.damaged-1").exists(), "the damaged registry was not kept");
    Ok(())
}

#[test]
fn a_damaged_piece_beside_the_log_counts_as_much_as_the_log() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = mesh(scratch.path(), 2)?;
    let node = testnet.node("n2")?;
    node.term(LIMIT)?;
    let belonging = node.dir().join("registry/snapshots/belonging");
    let mut bytes = fs::read(&belonging).with_context(|| format!("{}", belonging.display()))?;
    *bytes.last_mut().context("it is not empty")? ^= 1;
    fs::write(&belonging, bytes)?;
    expect(fails(up(&node.dir(), &[]))?, 7, &["belonging", "damaged", "hint: run `omx token create`"])?;
    let token = testnet.node("n1")?.text(&["token", "create"])?;
    let dir = testnet.node("n2")?.dir();
    let arguments = ["--name", "n2", "--join", &token];
    let mut child = Ends(up(&dir, &arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    is_up_again(&testnet, "n2", &mut child)
}

fn is_up_again(testnet: &Testnet, name: &str, child: &mut Ends) -> Result<()> {
    wait_until("the node to be back under a new seat", LIMIT, || {
        ensure!(child.0.try_wait()?.is_none(), "it ended");
        let shown = testnet.nodes()[0].json(&["nodes", "show", name])?;
        ensure!(shown["state"] == "up", "{shown}");
        Ok(())
    })
}

#[test]
fn tokens_that_open_nothing() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut lab = mesh(&scratch.path().join("lab"), 1)?;
    let mut other = mesh(&scratch.path().join("other"), 1)?;
    let stranger = scratch.path().join("stranger");
    expect(fails(up(&stranger, &["--join", "hello"]))?, 2, &["no join token"])?;
    let node = lab.node("n1")?;
    let token = node.text(&["token", "create"])?;
    let damaged = format!("{}x", &token[..token.len() - 1]);
    expect(fails(up(&stranger, &["--join", &damaged]))?, 2, &["damaged"])?;
    let id = node.json(&["token", "ls"])?[0]["id"].as_str().context("an id")?.to_owned();
    node.text(&["token", "revoke", &id])?;
    expect(fails(up(&stranger, &["--join", &token]))?, 10, &["revoked", "hint: make a new one"])?;
    let short = node.text(&["token", "create", "--ttl", "1s"])?;
    let made = Instant::now();
    wait_until("the token to expire", LIMIT, || {
        ensure!(made.elapsed() > Duration::from_secs(2), "it is young");
        Ok(())
    })?;
    expect(fails(up(&stranger, &["--join", &short]))?, 10, &["expired", "hint: make a new one"])?;
    let once = node.text(&["token", "create"])?;
    lab.add("n2", Some(once.clone()))?.start()?;
    expect(fails(up(&stranger, &["--join", &once]))?, 10, &["used up", "hint: make a new one"])?;
    // A token of another mesh, on a folder that belongs to this one.
    let foreign = other.node("n1")?.text(&["token", "create"])?;
    let member = lab.node("n2")?;
    member.term(LIMIT)?;
    expect(fails(up(&member.dir(), &["--join", &foreign]))?, 10, &["belongs to mesh", "hint: "])?;
    member.start()
}

#[test]
fn a_mesh_that_cannot_be_reached_is_waited_for_and_the_wait_is_explained() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = mesh(&scratch.path().join("mesh"), 1)?;
    let node = testnet.node("n1")?;
    let token = node.text(&["token", "create"])?;
    node.kill9()?;
    let (dir, said) = (scratch.path().join("joiner"), scratch.path().join("said"));
    let mut command = up(&dir, &["--join", &token]);
    let mut joiner = Ends(command.stdout(Stdio::null()).stderr(fs::File::create(&said)?).spawn()?);
    wait_until("an explanation", LIMIT, || {
        let said = fs::read_to_string(&said)?;
        ensure!(said.contains("cannot be reached") && said.contains("next try"), "{said}");
        Ok(())
    })?;
    node.start()?;
    wait_until("the joiner to get in once it can", LIMIT, || {
        ensure!(joiner.0.try_wait()?.is_none(), "it ended");
        Ok(fs::read(dir.join("run.json")).map(drop)?)
    })
}

#[test]
fn an_api_beyond_loopback_without_a_key() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("node");
    expect(fails(up(&dir, &["--api", "0.0.0.0:0"]))?, 2, &["beyond loopback", "without a key", "hint: "])?;
    let file = scratch.path().join("key");
    let path = file.to_str().context("a path in UTF-8")?;
    fs::write(&file, "hello\n")?;
    expect(fails(up(&dir, &["--api", "0.0.0.0:0", "--api-key-file", path]))?, 2, &["holds no key"])?;
    // No mesh was made meanwhile that would stand in the way of joining one.
    ensure!(!dir.join("registry").exists(), "a refused start made a mesh");
    // A key of another mesh does as well as any.
    let mut other = mesh(&scratch.path().join("other"), 1)?;
    fs::write(&file, other.node("n1")?.text(&["keys", "create", "first", "--scope", "admin"])?)?;
    let arguments = ["--api", "0.0.0.0:0", "--api-key-file", path];
    let mut node = Ends(up(&dir, &arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    wait_until("the node to open with its first key", LIMIT, || {
        ensure!(node.0.try_wait()?.is_none(), "it ended");
        Ok(fs::read(dir.join("run.json")).map(drop)?)
    })
}
