use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use serde_json::json;
use tempfile::TempDir;

use super::*;

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

fn gguf() -> Vec<u8> {
    gguf::build::File::tiny_llama().bytes()
}

fn empty() -> (TempDir, Folder) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = Folder::open(scratch.path().join("models")).unwrap();
    (scratch, folder)
}

fn install(folder: &Folder, text: &str) -> Installed {
    folder.install(&name(text), &mut gguf().as_slice(), &Texts::default()).unwrap()
}

/// Every file below a folder with its bytes, by its path in it.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.ends_with("incoming/lock") => {}
                false => drop(found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}

#[test]
fn an_installed_model_is_there_with_all_it_came_with() {
    let (_scratch, folder) = empty();
    let params = json!({ "temperature": 0, "stop": ["x"] });
    let texts = Texts {
        system: Some("be brief".to_owned()),
        licenses: vec!["one".to_owned(), "two".to_owned()],
        params: params.as_object().unwrap().clone(),
        ..Texts::default()
    };
    let installed = folder.install(&name("me/Tiny:v1"), &mut gguf().as_slice(), &texts).unwrap();
    assert_eq!(folder.find(&name("ME/tiny:V1")).unwrap(), installed);
    assert_eq!(folder.list().unwrap(), std::slice::from_ref(&installed));
    assert_eq!(fs::read(folder.weights(&installed).unwrap()).unwrap(), gguf());
    let model = folder.model(&installed).unwrap();
    assert_eq!((model.system.as_deref(), model.licenses.len()), (Some("be brief"), 2));
    assert_eq!((model.params, model.template), (texts.params.clone(), None));
    assert_eq!((model.config.model_family.as_str(), model.config.file_type.as_str()), ("llama", "F32"));
    let again = folder.install(&name("me/tiny:v1"), &mut gguf().as_slice(), &texts).unwrap();
    assert_eq!((again.digest, again.name.to_string()), (installed.digest, "me/Tiny:v1".to_owned()));
}

#[test]
fn the_layout_is_ollama_s() {
    let (_scratch, folder) = empty();
    let installed = install(&folder, "tiny");
    let files = files(&folder.root);
    let manifest = &files[Path::new("manifests/registry.ollama.ai/library/tiny/latest")];
    assert_eq!((Digest::of(manifest), manifest.last()), (installed.digest, Some(&b'\n')));
    let blobs: Vec<_> = files.iter().filter(|(path, _)| path.starts_with("blobs")).collect();
    assert_eq!((blobs.len(), files.len()), (2, 3), "{files:?}");
    for (path, bytes) in blobs {
        assert_eq!(path, &Path::new("blobs").join(Digest::of(bytes).file_name()));
    }
    let size: u64 =
        files.iter().filter(|(path, _)| path.starts_with("blobs")).map(|(_, bytes)| bytes.len() as u64).sum();
    assert_eq!(installed.manifest.size(), size);
}

#[test]
fn a_copy_is_the_same_model_and_goes_on_when_the_first_name_is_deleted() {
    let (_scratch, folder) = empty();
    let first = install(&folder, "first");
    folder.copy(&name("FIRST"), &name("hf.co/me/second:q8")).unwrap();
    let second = folder.find(&name("hf.co/me/second:q8")).unwrap();
    assert_eq!((second.digest, &second.manifest), (first.digest, &first.manifest));

    folder.delete(&name("first")).unwrap();
    assert!(matches!(folder.find(&name("first")), Err(Error::NotFound { .. })));
    assert_eq!(fs::read(folder.weights(&second).unwrap()).unwrap(), gguf());
    assert!(!folder.root.join("manifests/registry.ollama.ai").exists(), "empty folders stay");

    folder.delete(&name("hf.co/me/second:Q8")).unwrap();
    assert_eq!(files(&folder.root), BTreeMap::new());
    assert!(folder.root.join("manifests").is_dir());
    assert!(matches!(folder.delete(&name("first")), Err(Error::NotFound { .. })));
    assert!(matches!(folder.copy(&name("first"), &name("x")), Err(Error::NotFound { .. })));
}

#[test]
fn blobs_stay_while_it_is_unknown_who_needs_them() {
    let (_scratch, folder) = empty();
    let kept = install(&folder, "tiny");
    let damaged = folder.manifest_path(&name("other"));
    fs::create_dir_all(damaged.parent().unwrap()).unwrap();
    fs::write(&damaged, "{").unwrap();
    assert_eq!(folder.list().unwrap().len(), 1);
    assert!(matches!(folder.find(&name("other")), Err(Error::Json { .. })));
    folder.delete(&name("tiny")).unwrap();
    assert!(folder.weights(&kept).unwrap().exists());
}

#[test]
fn what_is_no_model_leaves_nothing_behind() {
    let (_scratch, folder) = empty();
    let torn = &gguf()[..300];
    for bytes in [b"hello".as_slice(), b"", torn] {
        let refused = folder.install(&name("x"), &mut &*bytes, &Texts::default());
        assert!(matches!(refused, Err(Error::Gguf { .. })), "{refused:?}");
        assert_eq!(files(&folder.root), BTreeMap::new());
    }
    let long = Texts { system: Some("x".repeat(TEXT_BYTES_MAX as usize + 1)), ..Texts::default() };
    assert!(matches!(folder.install(&name("x"), &mut gguf().as_slice(), &long), Err(Error::TextTooLong { .. })));
    assert!(folder.list().unwrap().is_empty());
}

#[test]
fn a_source_that_fails_leaves_nothing_behind() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("unplugged"))
        }
    }
    let (_scratch, folder) = empty();
    let whole = gguf();
    let mut source = whole[..500].chain(Failing);
    assert!(matches!(folder.install(&name("x"), &mut source, &Texts::default()), Err(Error::Io { .. })));
    assert_eq!(files(&folder.root), BTreeMap::new());
}

#[test]
fn what_a_killed_install_left_long_ago_is_swept_at_the_start() {
    let (scratch, folder) = empty();
    let kept = install(&folder, "tiny");
    for (name, age) in [("0123456789abcdef", 7200), ("fedcba9876543210", 60)] {
        let draft = File::create(folder.incoming().join(name)).unwrap();
        draft.set_modified(SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
    }
    let folder = Folder::open(scratch.path().join("models")).unwrap();
    let left: Vec<_> = files(&folder.root).into_keys().filter(|path| path.starts_with("incoming")).collect();
    assert_eq!(left, [Path::new("incoming/fedcba9876543210")], "one may still be written to");
    assert_eq!(folder.list().unwrap(), [kept]);
}

#[test]
fn the_newest_model_is_listed_first() {
    let (_scratch, folder) = empty();
    for (age, model) in [(30, "middle"), (10, "new"), (90, "old")] {
        install(&folder, model);
        let file = File::options().write(true).open(folder.manifest_path(&name(model))).unwrap();
        file.set_modified(SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
    }
    let models: Vec<_> = folder.list().unwrap().iter().map(|installed| installed.name.model().to_owned()).collect();
    assert_eq!(models, ["new", "middle", "old"]);
}

#[test]
fn strange_things_in_the_folder_are_passed_over() {
    let (_scratch, folder) = empty();
    let kept = install(&folder, "tiny");
    let manifests = folder.manifests();
    fs::write(manifests.join("stray"), "").unwrap();
    fs::create_dir_all(manifests.join("registry.ollama.ai/library/tiny/folder/deeper")).unwrap();
    fs::create_dir_all(manifests.join("registry.ollama.ai/lib.rary/dotted")).unwrap();
    fs::write(manifests.join("registry.ollama.ai/lib.rary/dotted/latest"), "{}").unwrap();
    fs::write(manifests.join("registry.ollama.ai/library/tiny/.hidden"), "{}").unwrap();
    fs::write(manifests.join("registry.ollama.ai/library/tiny/big"), vec![b' '; MANIFEST_BYTES_MAX as usize + 1])
        .unwrap();
    assert_eq!(folder.list().unwrap(), [kept]);
    assert!(matches!(folder.find(&name("tiny:folder")), Err(Error::NotFound { .. })));
    assert!(matches!(folder.find(&name("tiny:big")), Err(Error::Io { .. })));
    assert!(matches!(folder.find(&name("stray/x/y")), Err(Error::NotFound { .. })));
}

#[cfg(unix)]
#[test]
fn a_pipe_in_the_folder_blocks_nobody() {
    let (_scratch, folder) = empty();
    install(&folder, "tiny");
    let pipe = folder.manifest_path(&name("tiny:pipe"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert_eq!(folder.list().unwrap().len(), 1);
    assert!(matches!(folder.find(&name("tiny:pipe")), Err(Error::Io { .. })));
}

#[test]
fn installs_copies_and_deletes_at_once_leave_every_model_whole() {
    let (_scratch, folder) = empty();
    let folder = Arc::new(folder);
    thread::scope(|scope| {
        for worker in 0..4 {
            let folder = folder.clone();
            scope.spawn(move || {
                let (mine, copy) = (name(&format!("m{worker}")), name(&format!("c{worker}")));
                for _ in 0..20 {
                    // Another's delete may take the shared blobs away before the manifest is there: said, not hidden.
                    match folder.install(&mine, &mut gguf().as_slice(), &Texts::default()) {
                        Ok(_) => folder.copy(&mine, &copy).and_then(|()| folder.delete(&mine)).unwrap(),
                        Err(Error::Missing { .. } | Error::Io { .. }) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            });
        }
    });
    for installed in folder.list().unwrap() {
        assert_eq!(fs::read(folder.weights(&installed).unwrap()).unwrap(), gguf());
        folder.model(&installed).unwrap();
    }
}

/// Names that try to get out, and names made of the pieces such names are made of.
fn hostile_names() -> Vec<String> {
    let parts = [
        "",
        ".",
        "..",
        "...",
        "/",
        "//",
        "\\",
        "..\\..",
        "a",
        "A:",
        ":",
        "~",
        "-",
        "-rf",
        "*",
        "%2e%2e",
        "%00",
        "\0",
        "\n",
        " ",
        "é",
        "\u{202e}",
        "\u{ff0e}\u{ff0e}",
        "$HOME",
        "`id`",
        "|id",
        "C:",
        "con\u{0}",
        "sha256-",
        "@sha256:00",
        "file:///",
        "http://x",
    ];
    let mut names = Vec::new();
    for one in parts {
        for two in parts {
            names.extend([format!("{one}/{two}"), format!("{one}:{two}"), format!("../{one}/../{two}")]);
        }
    }
    names.extend(["../../../../etc/passwd", "/etc/passwd", "..:..", "a/../../b:c", "a/b/c/d/e:f"].map(str::to_owned));
    names
}

#[test]
fn thousands_of_hostile_names_open_nothing_outside_the_folder() {
    let (scratch, folder) = empty();
    fs::write(scratch.path().join("secret"), "{}").unwrap();
    let names = hostile_names();
    assert!(names.len() > 1_000, "{}", names.len());
    let mut good = 0;
    for text in names {
        let Ok(name) = text.parse::<ModelName>() else { continue };
        good += 1;
        let path = folder.manifest_path(&name);
        let inside = path.strip_prefix(folder.manifests()).unwrap();
        let plain = inside.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        assert!(plain && inside.components().count() == 4, "{text:?} is at {}", path.display());
        assert!(matches!(folder.find(&name), Err(Error::NotFound { .. })), "{text:?}");
    }
    assert!(good < 30, "{good} of them passed");
    assert_eq!(files(scratch.path()).len(), 1);
}

/// A model of `folder`, brought into another one file by file.
fn share(folder: &Folder, model: &Installed, other: &Folder) -> Vec<Came> {
    let came = model.manifest.blobs().map(|layer| other.link(layer, &folder.blob(&layer.digest)).unwrap()).collect();
    other.put(&model.name, &folder.manifest_bytes(&model.name).unwrap()).unwrap();
    came
}

#[test]
fn a_model_is_shared_without_a_second_copy_and_means_the_same() {
    let (scratch, folder) = empty();
    let model = install(&folder, "m");
    let other = Folder::of_another(scratch.path().join("other"));
    assert!(share(&folder, &model, &other).iter().all(|came| *came == Came::Linked));
    assert_eq!(other.find(&name("M")).unwrap().digest, model.digest);
    assert!(share(&folder, &model, &other).iter().all(|came| *came == Came::Known));
    let age = |folder: &Folder| fs::metadata(folder.weights(&model).unwrap()).unwrap().modified().unwrap();
    assert_eq!(age(&folder), age(&other));
}

#[test]
fn a_name_is_given_only_to_what_is_all_there() {
    let (scratch, folder) = empty();
    let model = install(&folder, "m");
    let other = Folder::of_another(scratch.path().join("other"));
    let manifest = folder.manifest_bytes(&model.name).unwrap();
    let [first, .., last] = &model.manifest.blobs().cloned().collect::<Vec<_>>()[..] else { panic!("one blob") };
    other.link(first, &folder.blob(&first.digest)).unwrap();
    assert!(matches!(other.put(&model.name, &manifest), Err(Error::Missing { digest, .. }) if digest == last.digest));
    let short = Layer { size: last.size + 1, ..last.clone() };
    assert!(matches!(other.link(&short, &folder.blob(&last.digest)), Err(Error::OtherSize { .. })));
    assert!(!other.has(last) && other.list().unwrap().is_empty());
    assert!(fs::read_dir(other.root().join("incoming")).unwrap().next().is_none());
}

#[test]
fn a_name_goes_and_its_blobs_stay_until_they_are_pruned() {
    let (_scratch, folder) = empty();
    let (model, _twin) = (install(&folder, "m"), install(&folder, "twin"));
    folder.unname(&model.name).unwrap();
    assert!(matches!(folder.find(&model.name), Err(Error::NotFound { .. })));
    let blobs = || model.manifest.blobs().map(|layer| layer.digest);
    folder.prune(blobs()).unwrap();
    assert!(model.manifest.blobs().all(|layer| folder.has(layer)), "the twin needs them");
    folder.unname(&name("twin")).unwrap();
    assert!(model.manifest.blobs().all(|layer| folder.has(layer)));
    folder.prune(blobs()).unwrap();
    assert!(!model.manifest.blobs().any(|layer| folder.has(layer)));
}
