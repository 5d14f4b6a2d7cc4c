//! How models get into a store, found out by looking: at its folder, and at where it runs.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use ollama::folder::{Folder, Installed};

use super::Found;

/// How models get in, and whether what lies there can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Nobody has looked yet.
    Unknown,
    /// Files are linked in.
    Folder(PathBuf),
    /// What lies there can be read; what comes in is pulled.
    ReadOnly { folder: PathBuf, why: String },
    /// Its folder is not known or not ours to read: what comes in is pulled, and nothing goes out.
    Closed { why: String },
    /// Neither its folder nor its pulls can be used: nothing goes in or out. Models get there by its own `pull` alone.
    Elsewhere { why: String },
}

/// Which of the folders is the one whose models are listed. One that is empty like the list may be, as what is put there
/// first will show; but not one of which that was shown to be wrong.
pub(super) fn judge(folders: &[PathBuf], listed: &[Found], refuted: &BTreeSet<PathBuf>) -> Access {
    let mut last = "nobody said where its folder is".to_owned();
    for path in folders {
        let is_listed =
            |model: &Installed| listed.iter().any(|found| found.name == model.name && found.digest == model.digest);
        let same = |models: &[Installed]| models.len() == listed.len() && models.iter().all(is_listed);
        match readable(path) {
            Err(why) => last = format!("`{}`: {why}", path.display()),
            Ok(models) if !same(&models) => last = format!("`{}` holds other models than it lists", path.display()),
            Ok(_) if listed.is_empty() && refuted.contains(path) => {
                last = format!("it does not look into `{}`", path.display());
            }
            Ok(_) => {
                return match writable(path) {
                    Ok(()) => Access::Folder(path.clone()),
                    Err(why) => Access::ReadOnly { folder: path.clone(), why: why.to_string() },
                };
            }
        }
    }
    Access::Closed { why: last }
}

fn readable(path: &Path) -> io::Result<Vec<Installed>> {
    std::fs::read_dir(path)?;
    let models = Folder::of_another(path).list().map_err(io::Error::other)?;
    // A manifest that can be read says nothing of the blobs, which may have another owner.
    if let Some(layer) = models.iter().flat_map(|model| model.manifest.blobs()).next() {
        std::fs::File::open(Folder::of_another(path).blob(&layer.digest))?;
    }
    // The name of a pull that is under way may be there and gone again.
    Ok(models.into_iter().filter(|model| !model.name.is_passing()).collect())
}

/// Tries what publishing begins with, and leaves nothing behind.
fn writable(path: &Path) -> io::Result<()> {
    for folder in [path.join("blobs"), path.join("manifests")] {
        std::fs::create_dir_all(&folder)?;
    }
    let trial = path.join("incoming");
    std::fs::create_dir_all(&trial)?;
    let file = trial.join(format!("trial-{}", std::process::id()));
    let (from, to) = (file.clone(), path.join("blobs").join(format!("trial-{}", std::process::id())));
    std::fs::write(&file, b"")?;
    let moved = std::fs::rename(&from, &to);
    let _ = std::fs::remove_file(if moved.is_ok() { &to } else { &from });
    moved
}

/// Whether a host is this machine, so that its loopback is ours. One that cannot be found now is taken to be: a pull will
/// show.
pub(super) async fn is_this_machine(host: &str) -> bool {
    let Ok(found) = tokio::net::lookup_host((host, 0)).await else { return true };
    // Only an address of our own can be bound to.
    found.map(|at| at.ip()).any(|ip| ip.is_loopback() || UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok())
}

#[cfg(test)]
mod tests {
    use ollama::Digest;
    use types::UnixMillis;

    use super::*;

    #[tokio::test]
    async fn this_machine_is_known_by_its_addresses() {
        for here in ["localhost", "127.0.0.1", "::1"] {
            assert!(is_this_machine(here).await, "{here}");
        }
        // Set aside for documentation: no machine has it.
        assert!(!is_this_machine("192.0.2.7").await);
    }

    #[test]
    fn a_folder_is_the_right_one_if_it_holds_what_is_listed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().to_owned();
        let found = |digest| Found { name: "m".parse().unwrap(), digest, since: UnixMillis(0) };
        let judged = |listed: &[Found], refuted: &[&PathBuf]| {
            let refuted = refuted.iter().map(|path| path.to_path_buf()).collect();
            judge(std::slice::from_ref(&path), listed, &refuted)
        };
        assert_eq!(judged(&[], &[]), Access::Folder(path.clone()), "as empty as the list");
        assert!(matches!(judged(&[], &[&path]), Access::Closed { .. }));
        assert!(matches!(judged(&[found(Digest::of(b"x"))], &[]), Access::Closed { .. }));
        let folder = Folder::of_another(&path);
        let blob = folder.add_bytes(b"{}").unwrap();
        let manifest =
            format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{blob}","size":2}},"layers":[]}}"#);
        let digest = folder.put(&"m".parse().unwrap(), manifest.as_bytes()).unwrap().digest;
        folder
            .put(&"m".parse::<ollama::ModelName>().unwrap().passing(1, [1; 16]).unwrap(), manifest.as_bytes())
            .unwrap();
        // What it lists by the right digests is a better witness than an earlier trial.
        assert_eq!(judged(&[found(digest)], &[&path]), Access::Folder(path.clone()));
        assert!(matches!(judged(&[], &[]), Access::Closed { .. }));
    }
}
