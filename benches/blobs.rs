//! A blob from one node and from three, over sockets on this machine, against a plain copy over TLS with the same cipher.
//!
//!     cargo bench --bench blobs -- [mib=4096] [dir=FOLDER] [rounds=3]
//!
//! The page cache is warm: the file is written right before. Processor time is that of both ends together, since they are
//! one process here. `verified` is when every chunk was here, checked and written; `published` includes the SHA-256 behind
//! it and the last sync.

#[path = "support/machine.rs"]
mod machine;
#[path = "support/process.rs"]
mod process;

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blobs::{Blobs, Known, Want};
use net::{Keypair, Limits, Member, Net, Services};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use types::{NodeId, Role};

const MIB: usize = 1 << 20;

fn main() -> Result<()> {
    let dir = PathBuf::from(argument("dir").unwrap_or_else(|| std::env::temp_dir().display().to_string()));
    let mib: usize = argument("mib").map_or(Ok(4096), |text| text.parse()).context("`mib` is a number")?;
    let rounds: u32 = argument("rounds").map_or(Ok(3), |text| text.parse()).context("`rounds` is a number")?;
    let scratch = tempfile::Builder::new().prefix("omx-bench-").tempdir_in(&dir)?;
    println!("{}; {mib} MiB in `{}`", machine::name(), dir.display());
    println!("| | GB/s verified | GB/s published | CPU s/GB, both ends |");
    println!("|---|--:|--:|--:|");
    let file = scratch.path().join("file");
    fill(&file, mib)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for _ in 0..rounds {
        row("rustls, plain copy", mib, runtime.block_on(Box::pin(plain(&file, &scratch.path().join("copy"))))?);
        for sources in [1, 3] {
            let folder = scratch.path().join("nodes");
            let taken = runtime.block_on(Box::pin(ours(&file, &folder, sources)))?;
            row(&format!("ours, {sources} source(s)"), mib, taken);
            fs::remove_dir_all(&folder)?;
        }
        import(&runtime, &file, &scratch.path().join("import"), mib)?;
    }
    println!("load at the end {}", machine::load());
    Ok(())
}

/// `NAME=VALUE`. Cargo adds flags of its own, which are passed over.
fn argument(name: &str) -> Option<String> {
    std::env::args().skip(1).find_map(|text| text.strip_prefix(&format!("{name}=")).map(str::to_owned))
}

/// Bytes that no file system makes shorter.
fn fill(path: &Path, mib: usize) -> Result<()> {
    let mut file = File::create(path)?;
    let mut bytes = vec![0; MIB];
    let mut word = 1_u64;
    for _ in 0..mib {
        for piece in bytes.as_chunks_mut::<8>().0 {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            *piece = word.to_le_bytes();
        }
        file.write_all(&bytes)?;
    }
    Ok(())
}

struct Taken {
    verified: Duration,
    published: Duration,
    cpu_seconds: f64,
}

fn row(name: &str, mib: usize, taken: Taken) {
    let gigabytes = (mib * MIB) as f64 / 1e9;
    let rate = |time: Duration| gigabytes / time.as_secs_f64();
    let cpu = taken.cpu_seconds / gigabytes;
    println!("| {name} | {:.2} | {:.2} | {cpu:.2} |", rate(taken.verified), rate(taken.published));
}

fn cpu_seconds() -> Result<f64> {
    process::cpu_seconds(&[std::process::id()])
}

// ---- ours

struct Node {
    net: Net,
    blobs: Blobs,
}

async fn ours(file: &Path, folder: &Path, sources: u8) -> Result<Taken> {
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    let mut nodes = Vec::new();
    let mut members = Vec::new();
    for seed in 0..=sources {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let keypair = Keypair::from_seed([seed + 1; 32]);
        let config = net::Config { keypair, mesh: address, bulk: address, mdns: false, limits: Limits::default() };
        let (net, task) = Box::pin(net::new(config)).await?;
        let (blobs, carrier) = blobs::new(blobs::Config::new(folder.join(seed.to_string())), net.clone())?;
        tasks.spawn(task.run(blobs.services(Services::new()), stop.clone()));
        tasks.spawn(carrier.run(stop.clone()));
        let addresses = net.addresses();
        let (mesh, bulk) = (addresses.mesh.into_iter().collect(), addresses.bulk.into_iter().collect());
        members.push(Member { id: net.local(), role: Role::Worker, mesh, bulk });
        nodes.push(Node { net, blobs });
    }
    nodes.iter().for_each(|node| node.net.admit(members.clone()));
    let (receiver, holders) = nodes.split_last().context("there is a receiver")?;
    let mut known = None;
    for holder in holders {
        known = Some(holder.blobs.refer(file, |_| {}).await?);
    }
    let Known { hash, sha256, size } = known.context("there is a holder")?;
    let ids: Vec<NodeId> = holders.iter().map(|node| node.net.local()).collect();
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    let fetch = receiver.blobs.fetch(Want { hash, size, sha256 }, move || ids.clone());
    let mut progress = fetch.progress();
    let verified = async {
        // That it ended is told by `done`.
        let _ = progress.wait_for(|progress| progress.bytes == progress.total).await;
        start.elapsed()
    };
    let (verified, path) = tokio::join!(verified, fetch.done());
    let taken = Taken { verified, published: start.elapsed(), cpu_seconds: cpu_seconds()? - cpu };
    ensure!(path?.metadata()?.len() == size, "what came is as long as what was sent");
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    Ok(taken)
}

/// Both hashes over a file, against the slower of them alone.
fn import(runtime: &tokio::runtime::Runtime, file: &Path, folder: &Path, mib: usize) -> Result<()> {
    let start = Instant::now();
    ollama::Digest::of_all(&mut File::open(file)?, |_| Ok(()))?;
    let alone = start.elapsed();
    let start = Instant::now();
    let cpu = cpu_seconds()?;
    runtime.block_on(async {
        let (net, _task) = net::mem::Fabric::new(0, net::Clock::tokio()).join(NodeId::from_public_key([1; 32]));
        let (blobs, _carrier) = blobs::new(blobs::Config::new(folder), net)?;
        blobs.refer(file, |_| {}).await.context("failed to import")
    })?;
    let both = start.elapsed();
    fs::remove_dir_all(folder)?;
    row("import, both hashes", mib, Taken { verified: both, published: both, cpu_seconds: cpu_seconds()? - cpu });
    println!("| SHA-256 alone | {:.2} | | |", (mib * MIB) as f64 / 1e9 / alone.as_secs_f64());
    Ok(())
}

// ---- the plain copy

async fn plain(from: &Path, to: &Path) -> Result<Taken> {
    let mut provider = default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    let provider = Arc::new(provider);
    let rcgen::CertifiedKey { cert, key_pair } = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::try_from(key_pair.serialize_der()).map_err(anyhow::Error::msg)?;
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)?;
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone())?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    let source = from.to_owned();
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(socket).await?;
        let (file, mut buffer) = (File::open(source)?, vec![0; MIB]);
        loop {
            let read = std::io::Read::read(&mut &file, &mut buffer)?;
            if read == 0 {
                return stream.shutdown().await;
            }
            stream.write_all(&buffer[..read]).await?;
        }
    });
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from("localhost")?;
    let mut stream = TlsConnector::from(Arc::new(client)).connect(name, socket).await?;
    let (mut file, mut buffer) = (File::create(to)?, vec![0; MIB]);
    loop {
        let mut filled = 0;
        while filled < MIB {
            match stream.read(&mut buffer[filled..]).await? {
                0 => break,
                read => filled += read,
            }
        }
        file.write_all(&buffer[..filled])?;
        if filled < MIB {
            break;
        }
    }
    let verified = start.elapsed();
    file.sync_data()?;
    let taken = Taken { verified, published: start.elapsed(), cpu_seconds: cpu_seconds()? - cpu };
    sending.join_next().await.context("somebody sends")???;
    fs::remove_file(to)?;
    Ok(taken)
}
