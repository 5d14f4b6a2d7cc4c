//! What registries send, and what becomes of it on this disk.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use fakes::registry::{Config, Fault, Step, Storage};
use models::upstream::{Error, Upstream};
use ollama::folder::Folder;
use ollama::{Digest, ModelName, Origin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Every file below a folder, with its bytes.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}

/// All sides of the same bits, over and over.
fn mix(seed: u64) -> u64 {
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_ignores_ranges_is_listened_to_once() {
    let config = Config { storage: Storage::Here, ..Config::default() };
    let registry = fakes::Registry::start(config).await.unwrap();
    let release = fakes::Release::made(1, 160 << 20);
    registry.publish("library/m:1b", &release).unwrap();
    registry.faults().always(Step::Data, Fault::Whole);
    // Twice it breaks off on the way.
    registry.faults().next(2, Step::Data, Fault::Cut { at: 30 << 20 });
    let name: ModelName = registry.name_of("library/m:1b").unwrap().parse().unwrap();
    let allowed: [Origin; 1] = [registry.url().parse().unwrap()];
    let scratch = tempfile::tempdir().unwrap();
    let upstream = Upstream::default();
    let offered = upstream.manifest(&name, &allowed).await.unwrap();
    let layer = offered.manifest.blobs().max_by_key(|layer| layer.size).unwrap();
    assert_eq!(upstream.missing(layer, scratch.path()), layer.size);
    let told = Mutex::new(0);
    let tell = |bytes| *told.lock().unwrap() = bytes;
    let path = upstream.layer(&name, layer, &allowed, scratch.path(), &tell).await.unwrap();
    assert_eq!(Digest::of_all(&mut fs::File::open(path).unwrap(), |_| Ok(())).unwrap(), (layer.digest, layer.size));
    assert_eq!(*told.lock().unwrap(), layer.size);
    let taken = registry.taken(&release.weights().digest).bytes;
    assert!(taken < 2 * layer.size, "{taken} bytes for {}", layer.size);
}

/// A registry that answers to each tag with the manifest of that number, and has blobs of zeros.
struct Hostile {
    port: u16,
    _serving: JoinSet<()>,
}

const MANIFESTS: usize = 10_000;

impl Hostile {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let manifests: Vec<Vec<u8>> = fakes::hostile::manifests(7).take(MANIFESTS).collect();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Whoever asks has one connection at a time, and it is no matter if it goes.
                let _ = answer(stream, &manifests).await;
            }
        });
        Self { port, _serving: serving }
    }

    fn name(&self, number: usize) -> ModelName {
        format!("127.0.0.1:{}/library/m:{number}", self.port).parse().unwrap()
    }
}

async fn answer(mut stream: TcpStream, manifests: &[Vec<u8>]) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let (status, headers, body) = if let Some((_, tag)) = path.split_once("/manifests/") {
        let number: usize = tag.parse().unwrap_or_default();
        // Half of them are wrong in what they are made of, half in what they say of it.
        let manifest = match number % 2 {
            0 => manifests[number].clone(),
            _ => untrue(number),
        };
        ("200 OK", String::new(), manifest)
    } else {
        let range = head.split_once("range: bytes=").and_then(|(_, rest)| rest.lines().next()).unwrap_or_default();
        let (start, last) = range.split_once('-').unwrap_or_default();
        let (start, last): (u64, u64) = (start.parse().unwrap_or(0), last.trim().parse().unwrap_or(0));
        match mix(last) % 5 {
            0 => ("307 Temporary Redirect", "location: file:///etc/passwd\r\n".to_owned(), Vec::new()),
            1 => ("307 Temporary Redirect", "location: ../../../etc/passwd\r\n".to_owned(), Vec::new()),
            2 => ("206 Partial Content", "content-range: bytes 0-18446744073709551615/1\r\n".to_owned(), vec![0; 9]),
            _ if last - start < 1 << 20 => {
                let said = format!("content-range: bytes {start}-{last}/{}\r\n", last + 1);
                ("206 Partial Content", said, vec![0; usize::try_from(last - start + 1).unwrap()])
            }
            _ => ("404 Not Found", String::new(), b"../../etc/passwd".to_vec()),
        }
    };
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await
}

/// Good to read, with sizes that lie and layers that come more than once.
fn untrue(number: usize) -> Vec<u8> {
    let roll = |n: u64| mix(mix(number as u64) ^ n);
    let layer = |n: u64| {
        let size = [0, 1, 77, 70_000, 1 << 40, 5 << 40, u64::MAX][usize::try_from(roll(n) % 7).unwrap()];
        let digest = Digest::of(&roll(n / 2).to_le_bytes());
        format!(r#"{{"mediaType":"application/vnd.ollama.image.model","digest":"{digest}","size":{size}}}"#)
    };
    let layers: Vec<String> = (1..=1 + roll(99) % 3).map(layer).collect();
    format!(r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#, layer(0), layers.join(",")).into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_hostile_manifests_open_nothing_outside_the_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("a/b/c/incoming");
    fs::create_dir_all(&root).unwrap();
    for canary in ["etc/passwd", "a/etc/passwd", "a/b/passwd", "a/b/c/blobs"] {
        let canary = scratch.path().join(canary);
        fs::create_dir_all(canary.parent().unwrap()).unwrap();
        fs::write(canary, "canary").unwrap();
    }
    let before = files(scratch.path());
    let registry = Hostile::start().await;
    let allowed: [Origin; 1] = [format!("http://127.0.0.1:{}", registry.port).parse().unwrap()];
    let upstream = Upstream::default();
    let (mut refused, mut looked_at, mut large) = (0, 0, 0);
    for number in 0..MANIFESTS {
        let name = registry.name(number);
        let Ok(offered) = upstream.manifest(&name, &allowed).await else {
            refused += 1;
            continue;
        };
        for layer in offered.manifest.blobs() {
            // A file of a terabyte of nothing takes no room and some time.
            large += usize::from(layer.size > 1 << 30);
            if layer.size > 1 << 30 && large > 20 {
                continue;
            }
            looked_at += 1;
            let failed = upstream.layer(&name, layer, &allowed, &root, &|_| ()).await.unwrap_err();
            assert!(!matches!(failed, Error::Disk { .. }), "{failed:?}");
            let _ = fs::remove_dir_all(root.join(layer.digest.hex()));
        }
    }
    assert!(refused > MANIFESTS / 2 && looked_at > 100 && large > 20, "{refused} {looked_at} {large}");
    assert_eq!(files(scratch.path()), before);
}

#[test]
fn hostile_names_and_digests_stay_in_the_folder_or_are_none() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("a/b/models");
    let folder = Folder::of_another(&root);
    let blob = folder.add_bytes(b"{}").unwrap();
    let manifest =
        format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{blob}","size":2}},"layers":[]}}"#);
    assert!(fakes::hostile::NAMES.iter().all(|name| name.parse::<ModelName>().is_err()));
    let pieces = ["..", ".", "/", "\\", ":", "a", "B", "-", "_", "~", "\0", " ", "%2e", "\u{2215}", "C:", "m"];
    let (mut good, mut digests) = (0, 0);
    for number in 0..10_000_u64 {
        let mut seed = mix(number + 1);
        let mut text = String::new();
        for _ in 0..=seed % 9 {
            seed = mix(seed ^ number);
            text.push_str(pieces[usize::try_from(seed % pieces.len() as u64).unwrap()]);
        }
        if let Ok(name) = text.parse::<ModelName>() {
            good += 1;
            folder.put(&name, manifest.as_bytes()).unwrap();
            assert_eq!(folder.find(&name).unwrap().name, name);
        }
        let digest = format!("sha256{}{}{text}", if seed.is_multiple_of(2) { ":" } else { "-" }, "ab".repeat(32));
        let cut = digest.char_indices().nth(71 - usize::try_from(seed % 3).unwrap()).map_or(digest.len(), |(at, _)| at);
        if let Ok(digest) = digest[..cut].parse::<Digest>() {
            digests += 1;
            assert_eq!(folder.blob(&digest).parent(), Some(root.join("blobs").as_path()));
        }
    }
    assert!(good > 50 && digests > 50, "{good} {digests}");
    let outside: Vec<_> = files(scratch.path()).into_keys().filter(|path| !path.starts_with(&root)).collect();
    assert!(outside.is_empty(), "{outside:?}");
}
