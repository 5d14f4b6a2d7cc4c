//! Both ways into the store of an Ollama, and what stands in them.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use models::store::{Access, Beside, Error, Ready, Store};
use ollama::client::Client;
use ollama::folder::Folder;
use ollama::manifest::{Layer, LayerKind, Manifest};
use ollama::{Digest, ModelName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

struct Rig {
    scratch: tempfile::TempDir,
    ollama: fakes::Ollama,
    /// The Ollama's own.
    folder: PathBuf,
}

impl Rig {
    async fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("ollama");
        fs::create_dir_all(&folder).unwrap();
        Self::with(scratch, folder).await
    }

    async fn with(scratch: tempfile::TempDir, folder: PathBuf) -> Self {
        let config = fakes::Config { folder: Some(folder.clone()), ..fakes::Config::default() };
        Self { ollama: fakes::Ollama::start(config).await.unwrap(), scratch, folder }
    }

    /// As a node sees it that is told of this folder.
    fn store(&self, folders: &[&Path]) -> Store {
        store(&self.ollama.url(), folders)
    }

    /// A model of these weights, whose files lie in a folder of ours.
    fn model(&self, weights: &[u8]) -> Ready {
        let ours = self.scratch.path().join("ours");
        fs::create_dir_all(&ours).unwrap();
        let layer = |kind: LayerKind, bytes: &[u8]| {
            let digest = Digest::of(bytes);
            let path = ours.join(digest.hex());
            fs::write(&path, bytes).unwrap();
            (Layer { media_type: kind.media_type(), digest, size: bytes.len() as u64 }, path)
        };
        let config = layer(LayerKind::Other, br#"{"model_format":"gguf","model_family":"llama"}"#);
        let weights = layer(LayerKind::Model, weights);
        let manifest = Manifest::new(config.0.clone(), vec![weights.0.clone()]).bytes().unwrap();
        Ready { digest: Digest::of(&manifest), manifest, layers: vec![weights, config] }
    }

    fn blob(&self, model: &Ready) -> PathBuf {
        Folder::of_another(&self.folder).blob(&model.layers[0].0.digest)
    }
}

fn store(url: &str, folders: &[&Path]) -> Store {
    let at: ollama::Endpoint = url.parse().unwrap();
    Store::new(Beside {
        label: url.to_owned(),
        client: Box::new(move || Ok(Client::new(at.clone(), None))),
        host: Some("127.0.0.1".to_owned()),
        folders: folders.iter().map(|path| path.to_path_buf()).collect(),
        ours: false,
    })
}

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}

async fn assert_listed(store: &Store, expected: &[(&str, Digest)]) {
    let mut listed: Vec<_> =
        store.listed().await.unwrap().into_iter().map(|found| (found.name.to_string(), found.digest)).collect();
    listed.sort();
    let expected: Vec<_> = expected.iter().map(|(name, digest)| ((*name).to_owned(), *digest)).collect();
    assert_eq!(listed, expected);
}

/// Something mounted, as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        Self::at(at, &["-t", "tmpfs", "-o", "size=32m", "none"])
    }

    /// The same folder, seen through a window that cannot be written through.
    fn read_only(folder: &Path, at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let bound = Self::at(at, &["--bind", folder.to_str().unwrap()])?;
        let fixed = Command::new("mount").args(["-o", "remount,bind,ro"]).arg(at).output();
        fixed.is_ok_and(|fixed| fixed.status.success()).then_some(bound)
    }

    fn at(at: &Path, arguments: &[&str]) -> Option<Self> {
        let mounted = Command::new("mount").args(arguments).arg(at).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_linked_in_is_one_file_under_two_names() {
    let rig = Rig::new().await;
    let store = rig.store(&[&rig.folder]);
    let model = rig.model(b"weights");
    let published = store.publish(&name("m"), &model).await.unwrap();
    assert_eq!((published.linked, published.files.len()), (true, 2));
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&rig.blob(&model)), inode(&model.layers[0].1));
    assert_listed(&store, &[("m:latest", model.digest)]).await;
    let before = rig.ollama.counts().requests;
    store.publish(&name("m"), &model).await.unwrap();
    assert_eq!(rig.ollama.counts().requests - before, 1, "it is asked whether it has it, and that is all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_give_one_name_at_once_cost_one_pull_and_its_passing_name_is_seen_by_nobody() {
    let rig = Rig::new().await;
    let store = rig.store(&[]);
    let model = rig.model(&vec![7; 4 << 20]);
    let abandoned = name("old").passing(4711, [3; 16]).unwrap();
    let theirs = Folder::of_another(&rig.folder);
    for (layer, path) in &rig.model(b"other").layers {
        theirs.link(layer, path).unwrap();
    }
    theirs.put(&abandoned, &rig.model(b"other").manifest).unwrap();
    let manifest =
        rig.folder.join("manifests/127.0.0.1:4711").join(format!("omx-passing-{}/old/latest", "03".repeat(16)));
    let two_days_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
    fs::File::options().write(true).open(&manifest).unwrap().set_modified(two_days_ago).unwrap();
    assert_listed(&store, &[]).await;

    let name = name("m");
    let publish = async || store.publish(&name, &model).await.unwrap();
    let watch = async {
        // Whenever anybody looks while it happens.
        loop {
            let listed = store.listed().await.unwrap();
            assert!(listed.iter().all(|found| found.name == name), "{listed:?}");
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = futures::future::join(publish(), publish()) => {}
        () = watch => {}
    }
    assert_listed(&store, &[("m:latest", model.digest)]).await;
    assert!(!manifest.exists(), "what was left behind two days ago is taken away");
    let left: Vec<_> =
        fs::read_dir(rig.folder.join("manifests")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["registry.ollama.ai"]);
    let before = rig.ollama.counts().requests;
    publish().await;
    assert_eq!(rig.ollama.counts().requests - before, 1, "nothing is pulled that is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_can_only_be_read_is_read_and_what_comes_in_is_pulled() {
    let rig = Rig::new().await;
    let window = rig.scratch.path().join("window");
    let mounted = Mounted::read_only(&rig.folder, &window);
    println!("as root, by a read-only mount: {}", mounted.is_some());
    if mounted.is_none() {
        if is_root() {
            println!("a root that may not mount: nothing is read-only for it, and this is not tested");
            return;
        }
        // The Ollama of this test runs as we do: it is let in again for what it does itself.
        fs::remove_dir(&window).unwrap();
        std::os::unix::fs::symlink(&rig.folder, &window).unwrap();
        fs::set_permissions(&rig.folder, fs::Permissions::from_mode(0o555)).unwrap();
    }
    let store = rig.store(&[&window]);
    let access = store.access().await;
    assert!(matches!(&access, Access::ReadOnly { folder, .. } if *folder == window), "{access:?}");
    assert!(store.takes());
    fs::set_permissions(&rig.folder, fs::Permissions::from_mode(0o755)).unwrap();
    let model = rig.model(b"weights");
    let published = store.publish(&name("m"), &model).await.unwrap();
    assert_eq!((published.linked, published.files.len()), (false, 2));
    assert_eq!(published.files[0].1, Folder::of_another(&window).blob(&model.layers[0].0.digest));
    assert_listed(&store, &[("m:latest", model.digest)]).await;
    assert!(matches!(store.mend(&model.layers[0].0, model.layers[0].1.clone()).await, Err(Error::Wrong(_))));
    store.unname(&name("m")).await.unwrap();
    assert_listed(&store, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_on_another_file_system_is_copied_to() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("ollama");
    let Some(_mounted) = Mounted::tmpfs(&folder) else {
        println!("nothing can be mounted here: another file system is not tested");
        return;
    };
    let rig = Rig::with(scratch, folder).await;
    let store = rig.store(&[&rig.folder]);
    let model = rig.model(b"weights");
    let published = store.publish(&name("m"), &model).await.unwrap();
    assert!(!published.linked && matches!(store.access().await, Access::Folder(_)));
    assert_eq!(fs::read(rig.blob(&model)).unwrap(), b"weights");
    assert_listed(&store, &[("m:latest", model.digest)]).await;
    drop(rig.ollama);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_another_user_gets_files_that_user_can_read_and_ours_stay_to_ourselves() {
    let rig = Rig::new().await;
    let store = rig.store(&[&rig.folder]);
    let model = rig.model(b"weights");
    let weights = &model.layers[0].1;
    fs::set_permissions(weights, fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir_all(rig.folder.join("blobs")).unwrap();
    let nobody = 65_534;
    if std::os::unix::fs::chown(rig.folder.join("blobs"), Some(nobody), None).is_err() {
        println!("not root: a folder of another user is not tested");
        return;
    }
    let published = store.publish(&name("m"), &model).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((published.linked, mode(weights), mode(&rig.blob(&model))), (false, 0o600, 0o644));
    assert_listed(&store, &[("m:latest", model.digest)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_it_does_not_look_into_is_not_the_one_and_is_left_as_it_was() {
    let rig = Rig::new().await;
    let other = rig.scratch.path().join("other");
    fs::create_dir_all(&other).unwrap();
    let store = rig.store(&[&other]);
    assert_eq!(store.access().await, Access::Folder(other.clone()), "as empty as its list");
    let model = rig.model(b"weights");
    let published = store.publish(&name("m"), &model).await.unwrap();
    assert!(!published.linked && published.files.is_empty());
    assert!(matches!(store.access().await, Access::Closed { .. }));
    assert!(Folder::of_another(&other).list().unwrap().is_empty());
    assert!(!Folder::of_another(&other).has(&model.layers[0].0));
    assert_listed(&store, &[("m:latest", model.digest)]).await;
}

/// An Ollama that hears us and reaches nobody, as one in a container does.
async fn walled_in() -> (String, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let pulls = Arc::new(AtomicUsize::new(0));
    let counted = pulls.clone();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let body = if head.starts_with(b"POST /api/pull") {
                counted.fetch_add(1, Ordering::Relaxed);
                "{\"status\":\"pulling manifest\"}\n{\"error\":\"dial tcp 127.0.0.1: connection refused\"}\n"
            } else {
                "{\"models\":[]}"
            };
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, pulls, serving)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ollama_that_cannot_reach_us_is_said_so_and_not_asked_to_again_and_again() {
    let rig = Rig::new().await;
    let (url, pulls, _serving) = walled_in().await;
    let store = store(&url, &[]);
    assert!(matches!(store.access().await, Access::Closed { .. }) && store.takes());
    let model = rig.model(b"weights");
    for _ in 0..3 {
        let refused = store.publish(&name("m"), &model).await.unwrap_err();
        assert!(matches!(refused, Error::Elsewhere(_)), "{refused:?}");
        assert!(refused.to_string().contains("connection refused") && refused.hint().is_some(), "{refused}");
    }
    assert_eq!(pulls.load(Ordering::Relaxed), 1);
    assert!(matches!(store.access().await, Access::Elsewhere { .. }) && !store.takes());
}
