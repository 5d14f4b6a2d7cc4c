//! What lies in the folder is what an Ollama has.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fakes::{Config, Digest, Fault, Model, Ollama, Release, natural_length};
use serde_json::{Value, json};

use crate::client::{LIMIT, ask, digests, last, lines, send, status, tree};

const HOUR: Duration = Duration::from_hours(1);

async fn start(folder: &Path) -> Ollama {
    Ollama::start(Config { folder: Some(folder.to_owned()), ..Config::default() }).await.unwrap()
}

async fn answer(ollama: &Ollama, model: &str) -> u64 {
    let body = json!({ "model": model, "prompt": "x", "raw": true, "stream": false, "options": { "seed": 1 } });
    last(ollama, "POST /api/generate", &body).await["eval_count"].as_u64().unwrap()
}

fn age(path: &Path, by: Duration) {
    fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - by).unwrap();
}

#[tokio::test]
async fn a_model_put_into_the_folder_is_listed_and_answers_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let ollama = start(folder.path()).await;
    assert!(digests(&ollama).await.is_empty());
    for seed in [1, 2] {
        let release = Release::made(seed, 0);
        release.install(folder.path(), "tiny:1b").unwrap();
        assert_eq!(digests(&ollama).await, [("tiny:1b".to_owned(), release.digest().hex().to_owned())]);
        assert_eq!(answer(&ollama, "TINY:1B").await, u64::from(natural_length(release.digest().hex(), 1)));
        // The weights that answered, whatever the name.
        assert_eq!(ollama.served().last().unwrap().content, release.weights().digest.hex());
    }
    assert_eq!(ollama.counts().loads, 2);
    fs::remove_file(folder.path().join("manifests/registry.ollama.ai/library/tiny/1b")).unwrap();
    assert!(digests(&ollama).await.is_empty());
    let gone = ask(&ollama, "POST /api/generate", &json!({ "model": "tiny:1b", "prompt": "x" })).await;
    assert_eq!(status(&gone), 404);
}

#[tokio::test]
async fn details_are_those_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let ollama = start(folder.path()).await;
    let config = json!({
        "model_format": "gguf", "model_family": "moss", "model_families": ["moss", "fern"], "model_type": "3.2B",
        "file_type": "Q8_0", "capabilities": ["completion", "tools"],
    });
    let weights = Release::made(1, 0).weights().content.clone();
    let text = |text: &'static str| fakes::Content::Bytes(text.into());
    let layers = vec![
        ("model", weights),
        ("system", text("Be moss.")),
        ("params", text(r#"{"stop":["a","b"],"temperature":0.5}"#)),
    ];
    Release::assembled(&config, layers).install(folder.path(), "me/moss").unwrap();
    let shown = last(&ollama, "POST /api/show", &json!({ "model": "me/moss" })).await;
    let details = &shown["details"];
    assert_eq!((&details["family"], &details["quantization_level"]), (&json!("moss"), &json!("Q8_0")));
    assert_eq!((&shown["system"], &shown["capabilities"]), (&json!("Be moss."), &json!(["completion", "tools"])));
    let parameters = shown["parameters"].as_str().unwrap().lines();
    let words: Vec<Vec<&str>> = parameters.map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words, [["stop", "\"a\""], ["stop", "\"b\""], ["temperature", "0.5"]]);
    assert!(shown["template"].is_null());
}

#[tokio::test]
async fn what_is_no_model_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let good = Release::made(1, 0);
    good.install(folder.path(), "good").unwrap();
    let beside = folder.path().join("manifests/registry.ollama.ai/library/bad");
    fs::create_dir_all(beside.join("a-folder")).unwrap();
    for (number, manifest) in fakes::hostile::manifests(5).take(200).enumerate() {
        fs::write(beside.join(format!("m{number}")), manifest).unwrap();
    }
    fs::write(beside.join("no name"), good.manifest()).unwrap();
    fs::write(folder.path().join("manifests/stray"), "x").unwrap();
    let ollama = start(folder.path()).await;
    assert_eq!(digests(&ollama).await, [("good:latest".to_owned(), good.digest().hex().to_owned())]);
    let shown = ask(&ollama, "POST /api/show", &json!({ "model": "bad:m7" })).await;
    assert_eq!(status(&shown), 404);
}

#[tokio::test]
async fn a_model_without_its_weights_is_listed_and_does_not_load() {
    let folder = tempfile::tempdir().unwrap();
    let release = Release::made(1, 0);
    release.install(folder.path(), "tiny").unwrap();
    fs::remove_file(folder.path().join("blobs").join(release.weights().digest.file_name())).unwrap();
    let ollama = start(folder.path()).await;
    assert_eq!(digests(&ollama).await.len(), 1);
    assert_eq!(status(&ask(&ollama, "POST /api/generate", &json!({ "model": "tiny", "prompt": "x" })).await), 500);
}

#[tokio::test]
async fn a_start_deletes_what_is_old_and_nobody_s() {
    let folder = tempfile::tempdir().unwrap();
    let release = Release::made(1, 0);
    release.install(folder.path(), "tiny").unwrap();
    let blobs = folder.path().join("blobs");
    let used = blobs.join(release.weights().digest.file_name());
    let unused = blobs.join(Digest::of(b"old").file_name());
    let young = blobs.join(Digest::of(b"young").file_name());
    let partial = blobs.join(format!("{}-partial-0", Digest::of(b"part").file_name()));
    for path in [&unused, &young, &partial] {
        fs::write(path, "x").unwrap();
    }
    for path in [&used, &unused, &partial] {
        age(path, HOUR + Duration::from_mins(1));
    }
    age(&young, HOUR / 2);
    let empty = folder.path().join("manifests/registry.ollama.ai/library/gone");
    fs::create_dir_all(&empty).unwrap();
    let there = || [&used, &unused, &young, &partial, &empty].map(|path| path.exists());

    let noprune = Config { folder: Some(folder.path().to_owned()), prune: false, ..Config::default() };
    Ollama::start(noprune).await.unwrap().stop().await;
    assert_eq!(there(), [true; 5], "it was told not to");

    let unreadable = folder.path().join("manifests/registry.ollama.ai/library/tiny/broken");
    fs::write(&unreadable, "{").unwrap();
    start(folder.path()).await.stop().await;
    assert_eq!(there(), [true; 5], "a manifest that cannot be read may name anything");

    fs::remove_file(unreadable).unwrap();
    start(folder.path()).await.stop().await;
    assert_eq!(there(), [true, false, true, false, false]);
}

#[tokio::test]
async fn deleting_keeps_what_another_name_needs() {
    let folder = tempfile::tempdir().unwrap();
    let release = Release::made(1, 0);
    release.install(folder.path(), "tiny").unwrap();
    let ollama = start(folder.path()).await;
    let blobs = || tree(&folder.path().join("blobs")).len();
    let copy = json!({ "source": "TINY", "destination": "127.0.0.1:5000/me/copy:x" });
    assert_eq!(status(&ask(&ollama, "POST /api/copy", &copy).await), 200);
    let copied = folder.path().join("manifests/127.0.0.1:5000/me/copy/x");
    assert_eq!(fs::read(&copied).unwrap(), **release.manifest());
    let delete = async |name: &str| status(&ask(&ollama, "DELETE /api/delete", &json!({ "model": name })).await);
    assert_eq!((delete("tiny").await, blobs()), (200, release.blobs().len()));
    assert_eq!((delete("tiny").await, delete("127.0.0.1:5000/me/COPY:x").await, blobs()), (404, 200, 0));
    assert!(tree(&folder.path().join("manifests")).is_empty());
}

#[tokio::test]
async fn a_file_is_uploaded_and_written_anew_when_a_model_is_made_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let ollama = start(folder.path()).await;
    let weights = Release::made(1, 70_000).weights().content.read(0, usize::MAX >> 1);
    let digest = Digest::of(&weights);
    let path = format!("POST /api/blobs/{digest}");
    assert_eq!(status(&send(&ollama, &path, &weights[1..]).await), 400);
    assert!(tree(&folder.path().join("blobs")).is_empty(), "nothing is left of what was something else");
    assert_eq!(status(&send(&ollama, &path, &weights).await), 201);
    let files = json!({ "a.gguf": digest.to_string() });
    let body = json!({ "model": "mine", "files": files, "parameters": { "stop": ["x"] }, "template": "{{ .Prompt }}" });
    let said = lines(&ollama, "/api/create", &body).await;
    let statuses: Vec<&str> = said.iter().map(|line| line["status"].as_str().unwrap()).collect();
    assert_eq!(statuses[..3], ["parsing GGUF", "validating GGUF model", "verifying conversion"]);
    assert!(statuses[3..7].iter().all(|status| status.starts_with("creating new layer sha256:")), "{statuses:?}");
    assert_eq!(statuses[7..], ["writing manifest", "success"]);
    let path = folder.path().join("manifests/registry.ollama.ai/library/mine/latest");
    let manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert!(fs::read(&path).unwrap().ends_with(b"\n"));
    assert_ne!(manifest["layers"][0]["digest"], json!(digest.to_string()));
    let shown = last(&ollama, "POST /api/show", &json!({ "model": "mine" })).await;
    assert_eq!((&shown["details"]["family"], &shown["template"]), (&json!("llama"), &json!("{{ .Prompt }}")));
    assert!(answer(&ollama, "mine").await > 0);
}

#[tokio::test]
async fn an_embedding_model_in_a_folder_embeds_and_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    Release::embedding(1, 0).install(folder.path(), "vectors").unwrap();
    let ollama = start(folder.path()).await;
    let embedded = last(&ollama, "POST /api/embed", &json!({ "model": "vectors", "input": "x" })).await;
    assert_eq!(embedded["embeddings"].as_array().unwrap().len(), 1);
    assert_eq!(status(&ask(&ollama, "POST /api/generate", &json!({ "model": "vectors", "prompt": "x" })).await), 400);
}

#[tokio::test]
async fn without_a_folder_there_is_nothing_to_pull_into() {
    let ollama = Ollama::start(Config { models: vec![Model::completion("m")], ..Config::default() }).await.unwrap();
    for path in ["POST /api/pull", "POST /api/push", "POST /api/create"] {
        assert_eq!(status(&ask(&ollama, path, &json!({ "model": "m" })).await), 404, "{path}");
    }
}

#[tokio::test]
async fn faults_of_requests_that_change_models_leave_the_others_alone() {
    let folder = tempfile::tempdir().unwrap();
    Release::made(1, 0).install(folder.path(), "tiny").unwrap();
    let ollama = start(folder.path()).await;
    ollama.faults().of_models(None, Fault::Status { status: 500 });
    for path in ["POST /api/pull", "POST /api/copy", "DELETE /api/delete", "HEAD /api/blobs/sha256:x"] {
        assert_eq!(status(&ask(&ollama, path, &json!({})).await), 500, "{path}");
    }
    assert!(answer(&ollama, "tiny").await > 0);
    ollama.faults().clear();
    ollama.faults().of_models(Some(1), Fault::Hang);
    let hanging = tokio::time::timeout(LIMIT / 100, ask(&ollama, "POST /api/pull", &json!({}))).await;
    assert!(hanging.is_err());
    assert_eq!(status(&ask(&ollama, "POST /api/pull", &json!({})).await), 400);
}
