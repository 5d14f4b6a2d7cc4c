//! What is pushed is what another can pull.

use fakes::registry::{self as upstream, Fault, Step, Storage};
use fakes::{Config, Ollama, Registry, Release};
use serde_json::json;

use crate::client::{QUICK, ask, digests, error, holds_exactly, is_success, lines, pull, registry, status};

#[tokio::test]
async fn what_one_pushes_another_pulls() {
    for storage in [Storage::Elsewhere, Storage::Here] {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let token = Some("secret".to_owned());
        let config = upstream::Config { storage, token, ..upstream::Config::default() };
        let registry = Registry::start(config).await.unwrap();
        let release = Release::made(1, 300_000);
        let name = registry.name_of("me/mine:1b").unwrap();
        release.install(here.path(), &name).unwrap();
        let with = |folder: &tempfile::TempDir| Config {
            folder: Some(folder.path().to_owned()),
            transfer: QUICK,
            ..Config::default()
        };
        let (one, other) = (Ollama::start(with(&here)).await.unwrap(), Ollama::start(with(&there)).await.unwrap());
        let body = json!({ "model": name, "insecure": true });
        let said = lines(&one, "/api/push", &body).await;
        assert!(is_success(&said), "{said:?}");
        assert_eq!(registry.manifest("me/mine:1b").unwrap(), *release.manifest());
        let pushed = registry.asked().pushed;
        assert_eq!((pushed.uploads, pushed.manifests), (release.blobs().len() as u64, 1));
        assert!(pushed.parts > 16, "{pushed:?}");

        assert!(is_success(&lines(&one, "/api/push", &body).await));
        assert_eq!(registry.asked().pushed.uploads, pushed.uploads, "what is there is not sent again");

        assert!(is_success(&pull(&other, &name).await));
        assert!(holds_exactly(there.path(), &release));
        assert_eq!(digests(&other).await, [(name, release.digest().hex().to_owned())]);
    }
}

#[tokio::test]
async fn what_a_model_has_from_another_is_mounted_rather_than_sent() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, release, name) = registry().await;
    let config = Config { folder: Some(folder.path().to_owned()), transfer: QUICK, ..Config::default() };
    let ollama = Ollama::start(config).await.unwrap();
    assert!(is_success(&pull(&ollama, &name).await));
    let mine = registry.name_of("me/mine:1b").unwrap();
    let body = json!({ "model": mine, "from": name, "system": "Be brief." });
    assert!(is_success(&lines(&ollama, "/api/create", &body).await));
    assert!(is_success(&lines(&ollama, "/api/push", &json!({ "model": mine, "insecure": true })).await));
    let pushed = registry.asked().pushed;
    // All layers but the new one; the configuration is of nobody.
    assert_eq!((pushed.mounts, pushed.uploads), (release.blobs().len() as u64 - 1, 2));
    assert!(pushed.bytes < 1000, "{pushed:?}");
}

#[tokio::test]
async fn a_push_that_cannot_be_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(upstream::Config::default()).await.unwrap();
    let name = registry.name_of("me/mine:1b").unwrap();
    Release::made(1, 0).install(folder.path(), &name).unwrap();
    let config = Config { folder: Some(folder.path().to_owned()), transfer: QUICK, ..Config::default() };
    let ollama = Ollama::start(config).await.unwrap();
    let push = async |name: &str| lines(&ollama, "/api/push", &json!({ "model": name, "insecure": true })).await;
    let absent = push("me/absent").await;
    assert_eq!(absent[1]["status"], "couldn't retrieve manifest");
    error(&absent);
    registry.faults().next(1, Step::Push, Fault::Status { status: 503 });
    assert!(error(&push(&name).await).starts_with("503: "));
    assert_eq!(registry.manifest("me/mine:1b"), None);
    let whole = ask(&ollama, "POST /api/push", &json!({ "model": "me/absent", "stream": false })).await;
    assert_eq!(status(&whole), 500);
}
