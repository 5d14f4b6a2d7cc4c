//! What is pulled is what the registry holds, and comes once.

use std::fs;
use std::path::Path;
use std::time::Duration;

use fakes::registry::{self, Fault, Step, Storage};
use fakes::{Config, Ollama, Registry, Release, Transfer};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::client::{LIMIT, QUICK, begin, digests, error, holds_exactly, is_success, last, pull, registry};

async fn start(folder: &Path) -> Ollama {
    let config = Config { folder: Some(folder.to_owned()), transfer: QUICK, ..Config::default() };
    Ollama::start(config).await.unwrap()
}

fn manifest_of(folder: &Path, registry: &Registry) -> Vec<u8> {
    fs::read(folder.join("manifests").join(registry.address().to_string()).join("library/tiny/1b")).unwrap()
}

#[tokio::test]
async fn a_model_is_pulled_byte_for_byte_and_once() {
    for storage in [Storage::Elsewhere, Storage::Here] {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::start(registry::Config { storage, ..registry::Config::default() }).await.unwrap();
        let release = Release::made(1, 300_000);
        registry.publish("tiny:1b", &release).unwrap();
        let name = registry.name_of("tiny:1b").unwrap();
        let ollama = start(folder.path()).await;
        let said = pull(&ollama, &name).await;
        assert!(is_success(&said), "{said:?}");
        // Layers in the order of the manifest, each up to its end, the configuration last.
        let ends = said.iter().filter(|line| line["digest"].is_string() && line["total"] == line["completed"]);
        let ends: Vec<&str> = ends.map(|line| line["digest"].as_str().unwrap()).collect();
        let expected: Vec<String> = release.blobs().iter().map(|blob| blob.digest.to_string()).collect();
        assert_eq!(ends, expected);
        assert!(holds_exactly(folder.path(), &release));
        assert_eq!(manifest_of(folder.path(), &registry), **release.manifest());
        assert_eq!(digests(&ollama).await, [(name.clone(), release.digest().hex().to_owned())]);
        let weights = registry.taken(&release.weights().digest);
        assert_eq!((weights.parts, weights.bytes), (16, 300_000));
        let again = pull(&ollama, &name).await;
        assert_eq!((again.len(), registry.taken(&release.weights().digest).bytes), (9, 300_000));
        assert_eq!(registry.asked().heads, 5, "what is there is not asked for again");
    }
}

#[tokio::test]
async fn ollama_s_own_registry_is_whoever_answers_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let token = Some("secret".to_owned());
    let registry = Registry::start(registry::Config { token, ..registry::Config::default() }).await.unwrap();
    let release = Release::made(1, 300_000);
    registry.publish("tiny:1b", &release).unwrap();
    let upstream = Some(registry.address());
    let config = Config { folder: Some(folder.path().to_owned()), transfer: QUICK, upstream, ..Config::default() };
    let ollama = Ollama::start(config).await.unwrap();
    let body = json!({ "model": "tiny:1b", "stream": false });
    assert_eq!(last(&ollama, "POST /api/pull", &body).await, json!({ "status": "success" }));
    assert_eq!(digests(&ollama).await, [("tiny:1b".to_owned(), release.digest().hex().to_owned())]);
    assert!(holds_exactly(folder.path(), &release));
    assert!(registry.asked().strangers >= 1 && registry.asked().tokens == registry.asked().strangers);
}

#[tokio::test]
async fn without_one_that_answers_for_it_nobody_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let ollama = start(folder.path()).await;
    for name in ["tiny:1b", "example.org/library/tiny:1b", "169.254.169.254/library/tiny:1b"] {
        assert!(error(&pull(&ollama, name).await).ends_with("no such host"), "{name}");
    }
    let (_registry, _, name) = registry().await;
    let secure = crate::client::lines(&ollama, "/api/pull", &json!({ "model": name })).await;
    assert!(error(&secure).ends_with("http: server gave HTTP response to HTTPS client"));
}

#[tokio::test]
async fn parts_that_break_are_gone_on_with_where_they_broke() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, release, name) = registry().await;
    let ollama = start(folder.path()).await;
    registry.faults().next(5, Step::Data, Fault::Cut { at: 1000 });
    let said = pull(&ollama, &name).await;
    assert!(is_success(&said), "{said:?}");
    assert!(holds_exactly(folder.path(), &release));
    let weights = registry.taken(&release.weights().digest);
    assert_eq!((weights.parts, weights.bytes), (16 + 5, 300_000));
}

#[tokio::test]
async fn a_pull_whose_client_goes_is_gone_on_with_by_the_next_fake() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, release, name) = registry().await;
    let transfer = Transfer { part_bytes_min: 1 << 30, ..QUICK };
    let config = Config { folder: Some(folder.path().to_owned()), transfer, ..Config::default() };
    let ollama = Ollama::start(config.clone()).await.unwrap();
    registry.faults().next(1, Step::Data, Fault::Stall { at: 100_000 });
    let body = json!({ "model": name, "insecure": true }).to_string();
    let mut stream = begin(&ollama, "POST /api/pull", body.as_bytes()).await;
    let mut said = String::new();
    while !said.contains("\"completed\":100000}") {
        let mut chunk = [0; 4096];
        let read = tokio::time::timeout(LIMIT, stream.read(&mut chunk)).await.unwrap().unwrap();
        assert!(read > 0, "it ended: {said}");
        said += std::str::from_utf8(&chunk[..read]).unwrap();
    }
    drop(stream);
    registry.until(|asked| asked.sending == 0, LIMIT).await.unwrap();
    ollama.stop().await;
    assert!(!folder.path().join("blobs").join(release.weights().digest.file_name()).exists());

    let ollama = Ollama::start(config).await.unwrap();
    let heads = registry.asked().heads;
    let said = pull(&ollama, &name).await;
    assert!(is_success(&said), "{said:?}");
    assert!(holds_exactly(folder.path(), &release));
    assert_eq!(registry.taken(&release.weights().digest).bytes, 300_000);
    assert_eq!(registry.asked().heads - heads, 4, "how long the weights are was known");
}

#[tokio::test]
async fn two_pulls_of_one_blob_are_one_download() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, release, name) = registry().await;
    registry.publish("other:1b", &release).unwrap();
    let ollama = start(folder.path()).await;
    // Slow enough that the second comes while the first is at it.
    registry.faults().always(Step::Data, Fault::Slow { rate: 40_000 });
    let other = registry.name_of("other:1b").unwrap();
    let second = async {
        registry.until(|asked| asked.sending == 16, LIMIT).await.unwrap();
        pull(&ollama, &other).await
    };
    let (one, two) = futures::future::join(pull(&ollama, &name), second).await;
    assert!(is_success(&one) && is_success(&two), "{one:?} {two:?}");
    // As many parts as a blob has at most at once, though two asked for it.
    assert_eq!(registry.asked().sending_max, 16);
    for blob in release.blobs() {
        assert_eq!(registry.taken(&blob.digest).bytes, blob.content.size(), "{}", blob.kind);
    }
    assert_eq!(digests(&ollama).await.len(), 2);
}

#[tokio::test]
async fn one_of_two_may_go_and_the_other_still_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, release, name) = registry().await;
    let transfer = Transfer { stall: Duration::from_millis(200), ..QUICK };
    let config = Config { folder: Some(folder.path().to_owned()), transfer, ..Config::default() };
    let ollama = Ollama::start(config).await.unwrap();
    registry.faults().always(Step::Data, Fault::Stall { at: 1000 });
    let body = json!({ "model": name, "insecure": true }).to_string();
    let first = begin(&ollama, "POST /api/pull", body.as_bytes()).await;
    registry.until(|asked| asked.sending == 16, LIMIT).await.unwrap();
    let release_second = async {
        registry.until(|asked| asked.manifests == 2, LIMIT).await.unwrap();
        drop(first);
        ollama.until(|counts| counts.connections_open == 1, LIMIT).await.unwrap();
        registry.faults().clear();
    };
    let (said, ()) = futures::future::join(pull(&ollama, &name), release_second).await;
    assert!(is_success(&said), "{said:?}");
    assert!(holds_exactly(folder.path(), &release));
}

#[tokio::test]
async fn a_tag_that_moved_leaves_nothing_of_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, _, name) = registry().await;
    let ollama = start(folder.path()).await;
    assert!(is_success(&pull(&ollama, &name).await));
    let newer = Release::made(2, 300_000);
    registry.publish("tiny:1b", &newer).unwrap();
    let said = pull(&ollama, &name).await;
    let last_two: Vec<&Value> = said[said.len() - 2..].iter().map(|line| &line["status"]).collect();
    assert_eq!(last_two, [&json!("removing unused layers"), &json!("success")]);
    assert!(holds_exactly(folder.path(), &newer));
    assert_eq!(digests(&ollama).await, [(name, newer.digest().hex().to_owned())]);
}
