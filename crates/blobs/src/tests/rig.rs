//! A mesh of nodes that have blobs, and some that lie about them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use net::mem::Fabric;
use net::{Clock, Member, Net, Services};
use ollama::Digest;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::{BlobHash, NodeId, Role};

use crate::chunks::{self, Builder, CHUNK_BYTES, Chunks};
use crate::disk::{Disk, Os};
use crate::protocol::{Answer, QUESTION_BYTES_MAX, Question, SPEC, frame, read};
use crate::{Blobs, Config, Known, Sources, Task, Want};

pub(super) const MIB: usize = CHUNK_BYTES;

pub(super) fn id(node: u8) -> NodeId {
    NodeId::from_public_key([node + 1; 32])
}

/// The same for the same seed, and no two chunks alike.
pub(super) fn content(size: usize, seed: u64) -> Vec<u8> {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; size];
    for piece in bytes.chunks_mut(8) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
    }
    bytes
}

pub(super) fn want(bytes: &[u8]) -> Want {
    Want { hash: BlobHash::of(bytes), size: bytes.len() as u64, sha256: Digest::of(bytes) }
}

pub(super) fn sources(nodes: impl IntoIterator<Item = u8>) -> impl Sources {
    let nodes: Vec<NodeId> = nodes.into_iter().map(id).collect();
    move || nodes.clone()
}

/// Sources that are there while the switch is on.
pub(super) fn switched(nodes: impl IntoIterator<Item = u8>) -> (impl Sources, Arc<AtomicBool>) {
    let nodes: Vec<NodeId> = nodes.into_iter().map(id).collect();
    let switch = Arc::new(AtomicBool::new(false));
    let on = switch.clone();
    (move || if on.load(Ordering::Relaxed) { nodes.clone() } else { Vec::new() }, switch)
}

pub(super) struct Mesh {
    pub(super) fabric: Fabric,
    pub(super) dir: TempDir,
    nets: Vec<Net>,
    tasks: JoinSet<()>,
}

impl Mesh {
    pub(super) fn new() -> Self {
        let fabric = Fabric::new(1, Clock::tokio());
        Self { fabric, dir: tempfile::tempdir().unwrap(), nets: Vec::new(), tasks: JoinSet::new() }
    }

    pub(super) fn count(&self) -> u8 {
        self.nets.len() as u8
    }

    pub(super) fn net(&self, node: usize) -> Net {
        self.nets[node].clone()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(super) fn node(&mut self) -> Blobs {
        self.node_on(Arc::new(Os))
    }

    pub(super) fn node_on(&mut self, disk: Arc<dyn Disk>) -> Blobs {
        let config = Config::new(self.path(&format!("node-{}", self.nets.len())));
        let config = Config { young_max: Duration::ZERO, ..config };
        self.node_with(config, disk)
    }

    pub(super) fn node_with(&mut self, config: Config, disk: Arc<dyn Disk>) -> Blobs {
        let (net, task) = self.fabric.join(id(self.nets.len() as u8));
        let (blobs, carrier) = crate::handle::with_disk(config, net.clone(), disk).unwrap();
        let services = blobs.services(Services::new());
        self.start(net, task, services, Some(carrier));
        blobs
    }

    /// A node with a file that it refers to.
    pub(super) async fn holder(&mut self, bytes: &[u8]) -> Blobs {
        let path = self.file(&format!("file-{}", self.nets.len()), bytes);
        let blobs = self.node();
        blobs.refer(path, |_| {}).await.unwrap();
        blobs
    }

    pub(super) fn liar(&mut self, lie: Lie, bytes: &[u8]) {
        let (net, task) = self.fabric.join(id(self.nets.len() as u8));
        let bytes: Arc<[u8]> = bytes.into();
        let services = Services::new().on_stream(SPEC, move |_, stream| Box::pin(tell(lie, bytes.clone(), stream)));
        self.start(net, task, services, None);
    }

    fn start(&mut self, net: Net, task: net::Task, services: Services, carrier: Option<Task>) {
        self.tasks.spawn(task.run(services, CancellationToken::new()));
        if let Some(carrier) = carrier {
            self.tasks.spawn(carrier.run(CancellationToken::new()));
        }
        self.nets.push(net);
        let member = |node| Member { id: id(node), role: Role::Node, mesh: Vec::new(), bulk: Vec::new() };
        let members: Vec<Member> = (0..self.nets.len() as u8).map(member).collect();
        self.nets.iter().for_each(|net| net.admit(members.clone()));
    }
}

pub(super) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), work).await.expect("it takes too long")
}

/// Waits for a condition, not for ever.
pub(super) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, waiting).await.unwrap_or_else(|_| panic!("not so in time: {what}"));
}

pub(super) fn assert_same(path: &Path, bytes: &[u8]) {
    assert!(fs::read(path).unwrap() == bytes, "`{}` is something else", path.display());
}

/// The files below a folder, by name.
pub(super) fn walk(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(walk(&path)),
            false => found.push(path.file_name().unwrap().to_str().unwrap().to_owned()),
        }
    }
    found.sort();
    found
}

pub(super) fn known(bytes: &[u8]) -> Known {
    let Want { hash, size, sha256 } = want(bytes);
    Known { hash, sha256, size }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lie {
    /// Every chunk has a bit that is wrong.
    BadChunks,
    /// Good to begin with.
    BadFrom(u32),
    BadList,
    /// A good list for another size, with the last chunk it would have.
    BadSize,
    /// More bytes behind a chunk than it has.
    OverLong,
    /// A chunk shorter than it is.
    Short,
    OtherChunk,
    /// Chunks nobody asked for.
    Unasked,
    Garbage,
    /// No word after the list.
    Stall,
    /// Nothing at all.
    Mute,
    /// Half a chunk, again and again.
    Half,
    /// What leaves this remainder by three is not there after all.
    Withhold(u32),
    /// News without end.
    Chatter,
}

pub(super) fn list_of(bytes: &[u8]) -> Chunks {
    let mut builder = Builder::default();
    bytes.chunks(CHUNK_BYTES).for_each(|chunk| builder.push(chunk));
    builder.finish()
}

async fn tell(lie: Lie, bytes: Arc<[u8]>, mut stream: net::ByteStream) {
    // What goes wrong here is that the other end has hung up.
    let _ = answer(lie, &bytes, &mut stream).await;
}

async fn answer(lie: Lie, bytes: &[u8], stream: &mut net::ByteStream) -> std::io::Result<()> {
    let list = list_of(bytes);
    let mut sent = 0;
    while let Some(question) = read::<Question>(stream, QUESTION_BYTES_MAX).await? {
        let size = bytes.len() as u64;
        let chunk = |index: u32| {
            let at = chunks::offset(index) as usize;
            bytes[at..at + chunks::length(size, index)].to_vec()
        };
        match question {
            _ if lie == Lie::Mute => std::future::pending().await,
            Question::Open(_) if lie == Lie::Garbage => stream.write_all(&[0, 0, 0, 3, 99, 98, 97]).await?,
            Question::Open(_) => {
                let size = if lie == Lie::BadSize { size - 1 } else { size };
                stream.write_all(&frame(&Answer::Whole { size })).await?;
                if lie == Lie::Chatter {
                    loop {
                        stream.write_all(&frame(&Answer::News(vec![0; 1000]))).await?;
                        stream.flush().await?;
                    }
                }
            }
            Question::List => {
                let mut hashes = list.to_bytes().to_vec();
                let mut last = chunk(list.count() - 1);
                let mut said = size;
                match lie {
                    Lie::BadList => hashes[0] ^= 1,
                    Lie::BadSize => {
                        said -= 1;
                        last.pop();
                    }
                    _ => {}
                }
                let head = Answer::List { size: said, hashes: list.count(), last: last.len() as u32 };
                stream.write_all(&frame(&head)).await?;
                stream.write_all(&hashes).await?;
                stream.write_all(&last).await?;
            }
            Question::Chunk(_) if lie == Lie::Stall => std::future::pending().await,
            Question::Chunk(index) => {
                let mut bytes = chunk(index);
                let mut head = Answer::Chunk { index, length: bytes.len() as u32 };
                match lie {
                    Lie::BadChunks => bytes[7] ^= 1,
                    Lie::BadFrom(good) if sent >= good => bytes[7] ^= 1,
                    Lie::OverLong => {
                        bytes.extend([0; 100]);
                        head = Answer::Chunk { index, length: bytes.len() as u32 };
                    }
                    Lie::Short => {
                        bytes.truncate(bytes.len() / 2);
                        head = Answer::Chunk { index, length: bytes.len() as u32 };
                    }
                    Lie::OtherChunk => head = Answer::Chunk { index: index ^ 1, length: bytes.len() as u32 },
                    Lie::Unasked => stream.write_all(&frame(&Answer::NoChunk { index: index + 1 })).await?,
                    Lie::Withhold(rest) if index % 3 == rest => {
                        (head, bytes) = (Answer::NoChunk { index }, Vec::new());
                    }
                    Lie::Half => bytes.truncate(bytes.len() / 2),
                    _ => {}
                }
                sent += 1;
                stream.write_all(&frame(&head)).await?;
                stream.write_all(&bytes).await?;
                if lie == Lie::Half {
                    stream.flush().await?;
                    return stream.shutdown().await;
                }
            }
        }
        stream.flush().await?;
    }
    Ok(())
}
