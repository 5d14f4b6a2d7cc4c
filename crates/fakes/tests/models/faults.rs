//! What goes wrong on the way here leaves nothing behind that could be taken for a model.

use std::fs;
use std::path::Path;

use fakes::registry::{Fault, Step};
use fakes::{Config, Ollama};
use serde_json::json;

use crate::client::{
    LIMIT, QUICK, ask, begin, digests, error, holds_exactly, is_success, objects, pull, registry, tree,
};

async fn start(folder: &Path) -> Ollama {
    let config = Config { folder: Some(folder.to_owned()), transfer: QUICK, ..Config::default() };
    Ollama::start(config).await.unwrap()
}

#[tokio::test]
async fn a_registry_that_fails_or_lies_is_found_out() {
    let weights_end = 299_999;
    for (step, fault, words) in [
        (Step::Manifest, Fault::Status { status: 404 }, "pull model manifest: file does not exist"),
        (Step::Manifest, Fault::Status { status: 500 }, "pull model manifest: 500: "),
        (Step::Manifest, Fault::Cut { at: 100 }, "pull model manifest: "),
        (Step::Manifest, Fault::Flip { at: 0 }, "pull model manifest: "),
        (Step::Manifest, Fault::Overrun { by: 5 << 20 }, "pull model manifest: "),
        (Step::Head, Fault::Status { status: 404 }, "file does not exist"),
        (Step::Head, Fault::Status { status: 503 }, "503: "),
        (Step::Head, Fault::Announce { size: 1000 }, "digest mismatch, file must be downloaded again: want sha256:"),
        (Step::Head, Fault::Announce { size: 0 }, "digest mismatch, file must be downloaded again: want sha256:"),
        (Step::Head, Fault::Announce { size: 400_000 }, "max retries exceeded: "),
        (Step::Head, Fault::Announce { size: u64::MAX }, ""),
        (Step::Locate, Fault::Nowhere, "max retries exceeded: http: no Location header in response"),
        (Step::Locate, Fault::Status { status: 500 }, "max retries exceeded: unexpected status code 500"),
        (Step::Locate, Fault::Redirect { to: "http://169.254.169.254/latest".to_owned() }, "max retries exceeded: "),
        (Step::Locate, Fault::Redirect { to: "not a place".to_owned() }, "max retries exceeded: "),
        (Step::Data, Fault::Status { status: 500 }, "max retries exceeded: unexpected EOF"),
        (Step::Data, Fault::Flip { at: weights_end }, "digest mismatch, file must be downloaded again: want sha256:"),
        (Step::Data, Fault::Whole, "digest mismatch, file must be downloaded again: want sha256:"),
        (Step::Data, Fault::Cut { at: 0 }, "max retries exceeded: "),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (registry, release, name) = registry().await;
        let ollama = start(folder.path()).await;
        if step == Step::Head {
            registry.faults().next(1, step, fault.clone());
        } else {
            registry.faults().always(step, fault.clone());
        }
        let found = error(&pull(&ollama, &name).await);
        assert!(found.starts_with(words), "{fault:?}: {found}");
        assert!(tree(&folder.path().join("manifests")).is_empty(), "{fault:?}");
        assert!(digests(&ollama).await.is_empty(), "{fault:?}");

        registry.faults().clear();
        let mut said = pull(&ollama, &name).await;
        if fault == (Fault::Announce { size: 400_000 }) {
            // How long it was said to be is remembered with its parts, until they are deleted.
            error(&said);
            for path in tree(&folder.path().join("blobs")) {
                fs::remove_file(folder.path().join("blobs").join(path)).unwrap();
            }
            said = pull(&ollama, &name).await;
        } else if step == Step::Data && matches!(fault, Fault::Status { .. }) {
            // Words of an error are taken for bytes of the part, as in Ollama, and found out at the end.
            assert!(error(&said).starts_with("digest mismatch"), "{said:?}");
            said = pull(&ollama, &name).await;
        }
        assert!(is_success(&said), "{fault:?}: {said:?}");
        assert!(holds_exactly(folder.path(), &release), "{fault:?}");
    }
}

#[tokio::test]
async fn what_is_too_much_of_a_part_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, release, name) = registry().await;
    let ollama = start(folder.path()).await;
    registry.faults().always(Step::Data, Fault::Overrun { by: 10_000 });
    assert!(is_success(&pull(&ollama, &name).await));
    assert!(holds_exactly(folder.path(), &release));
}

#[tokio::test]
async fn hostile_manifests_are_refused_and_nothing_is_opened_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("models");
    let (registry, _, _) = registry().await;
    let ollama = start(&folder).await;
    for (number, manifest) in fakes::hostile::manifests(9).take(300).enumerate() {
        let tag = format!("hostile:m{number}");
        registry.publish_manifest(&tag, manifest.clone()).unwrap();
        let said = pull(&ollama, &registry.name_of(&tag).unwrap()).await;
        let found = error(&said);
        assert!(!found.is_empty(), "{}", String::from_utf8_lossy(&manifest));
    }
    for name in fakes::hostile::NAMES {
        let answer = ask(&ollama, "POST /api/pull", &json!({ "model": name, "insecure": true })).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{name}: {answer}");
        for (line, body) in [
            ("DELETE /api/delete", json!({ "model": name })),
            ("POST /api/copy", json!({ "source": name, "destination": name })),
            ("POST /api/create", json!({ "model": name, "from": name })),
        ] {
            assert!(ask(&ollama, line, &body).await.starts_with("HTTP/1.1 400"), "{line} {name}");
        }
    }
    assert!(tree(root.path()).is_empty());
}

#[tokio::test]
async fn a_pull_goes_wrong_as_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (_registry, release, name) = registry().await;
    let ollama = start(folder.path()).await;
    let faults = ollama.faults();

    faults.of_models(Some(1), fakes::Fault::Mismatch);
    assert!(error(&pull(&ollama, &name).await).starts_with("digest mismatch, file must be downloaded again"));
    faults.of_models(Some(1), fakes::Fault::ErrorInside { after: 2 });
    let said = pull(&ollama, &name).await;
    assert_eq!((said.len(), error(&said).as_str()), (3, "the fake was told to fail"));
    faults.of_models(Some(1), fakes::Fault::EndEarly { after: 2 });
    let said = pull(&ollama, &name).await;
    assert!(said.len() == 2 && !is_success(&said), "{said:?}");
    faults.of_models(Some(1), fakes::Fault::Cut { at: 40 });
    let body = json!({ "model": name, "insecure": true });
    let cut = ask(&ollama, "POST /api/pull", &body).await;
    assert!(!cut.ends_with("0\r\n\r\n"), "{cut}");
    faults.of_models(Some(1), fakes::Fault::HangInside { after: 1 });
    let before = ollama.counts().requests;
    let hanging = begin(&ollama, "POST /api/pull", body.to_string().as_bytes()).await;
    ollama.until(|counts| counts.requests > before, LIMIT).await.unwrap();
    drop(hanging);
    ollama.until(|counts| counts.connections_open == 0, LIMIT).await.unwrap();
    assert!(digests(&ollama).await.is_empty());

    assert_eq!(objects(&ask(&ollama, "POST /api/pull", &body).await).last(), Some(&json!({ "status": "success" })));
    assert!(holds_exactly(folder.path(), &release));
}
