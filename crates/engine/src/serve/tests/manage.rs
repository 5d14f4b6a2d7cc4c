//! Models: listed, shown, copied, deleted, and turned into vectors.

use ollama::folder::Texts;
use serde_json::{Value, json};

use super::rig::{Rig, TEMPLATE, done};
use crate::runner::{Ended, Overlong};

#[tokio::test]
async fn tags_lists_what_is_in_the_folder() {
    let rig = Rig::new().await;
    let json = rig.call("GET", "/api/tags", "").await.json();
    let models = json["models"].as_array().unwrap();
    let model = models.iter().find(|model| model["name"] == "tiny:latest").unwrap();
    let installed = rig.folder().find(&"tiny".parse().unwrap()).unwrap();
    assert_eq!((&model["model"], &model["digest"]), (&json!("tiny:latest"), &json!(installed.digest.hex())));
    assert_eq!((&model["size"], &model["capabilities"]), (&json!(installed.manifest.size()), &json!(["completion"])));
    let details = json!({
        "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "11K",
        "quantization_level": "F32", "context_length": 64, "embedding_length": 32,
    });
    assert_eq!(model["details"], details);
    let vectors = models.iter().find(|model| model["name"] == "vectors:latest").unwrap();
    assert_eq!(vectors["capabilities"], json!(["embedding"]));
}

#[tokio::test]
async fn ps_shows_what_is_loaded_under_the_name_it_was_asked_for() {
    let rig = Rig::new().await;
    assert_eq!(rig.call("GET", "/api/ps", "").await.text, r#"{"models":[]}"#);
    rig.post("/api/copy", &json!({ "source": "tiny", "destination": "me/Alias:v1" })).await;
    rig.post("/api/generate", &json!({ "model": "ME/alias:v1", "keep_alive": -1 })).await;
    let json = rig.call("GET", "/api/ps", "").await.json();
    let model = &json["models"][0];
    assert_eq!(
        (&model["name"], &model["size"], &model["size_vram"]),
        (&json!("me/Alias:v1"), &json!(1000), &json!(400))
    );
    assert_eq!((&model["context_length"], &model["details"]["family"]), (&json!(4096), &json!("llama")));
    let expires = model["expires_at"].as_str().unwrap();
    assert!(expires > "2200", "{expires}");
}

#[tokio::test]
async fn show_tells_all_there_is() {
    let params = json!({ "stop": ["a", "b"], "temperature": 0.5 });
    let texts = Texts {
        system: Some("be brief".to_owned()),
        licenses: vec!["one".to_owned(), "two".to_owned()],
        params: params.as_object().unwrap().clone(),
        ..Texts::default()
    };
    let rig = Rig::with(TEMPLATE, &texts, 4096).await;
    let json = rig.post("/api/show", &json!({ "name": "TINY" })).await.json();
    assert_eq!(
        (&json["license"], &json["system"], &json["template"]),
        (&json!("one\ntwo"), &json!("be brief"), &json!(TEMPLATE))
    );
    assert_eq!((&json["capabilities"], &json["details"]["family"]), (&json!(["completion"]), &json!("llama")));
    let parameters = json["parameters"].as_str().unwrap();
    assert_eq!(parameters, format!("{:<30} \"a\"\n{:<30} \"b\"\n{:<30} 0.5", "stop", "stop", "temperature"));
    let modelfile = json["modelfile"].as_str().unwrap();
    assert!(modelfile.contains("FROM tiny:latest\n") && modelfile.contains("PARAMETER stop \"b\"\n"), "{modelfile}");
    assert!(!modelfile.contains("blobs"), "{modelfile}");

    let info = &json["model_info"];
    assert_eq!((&info["general.architecture"], &info["llama.block_count"]), (&json!("llama"), &json!(1)));
    assert_eq!((&info["tokenizer.ggml.tokens"], &info["general.name"]), (&json!([]), &Value::Null));
    assert_eq!(info["general.parameter_count"], json!(11_360));
    let tensor = json!({ "name": "token_embd.weight", "type": "F32", "shape": [32, 64] });
    assert_eq!(json["tensors"][0], tensor);
    let all = rig.post("/api/show", &json!({ "model": "tiny", "verbose": true })).await.json();
    assert_eq!(all["model_info"]["tokenizer.ggml.tokens"].as_array().unwrap().len(), 64);
}

#[tokio::test]
async fn a_copy_stays_when_the_first_is_deleted_and_the_last_takes_the_weights_along() {
    let rig = Rig::new().await;
    let told = rig.post("/api/copy", &json!({ "source": "tiny", "destination": "other" })).await;
    assert_eq!((told.status, told.text.as_str()), (200, ""));
    rig.script.says([done(Ended::Stop)]);
    rig.post("/api/generate", &json!({ "model": "other", "prompt": "Hi" })).await;
    for (name, loaded) in [("tiny", 1), ("other", 0)] {
        let told = rig.call("DELETE", "/api/delete", &json!({ "model": name }).to_string()).await;
        assert_eq!((told.status, told.text.as_str()), (200, ""));
        let models = rig.call("GET", "/api/ps", "").await.json();
        assert_eq!(models["models"].as_array().unwrap().len(), loaded, "{name}");
    }
    let left = rig.call("GET", "/api/tags", "").await.json();
    assert_eq!(left["models"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn texts_become_vectors() {
    let rig = Rig::new().await;
    let embed = async |more: Value| {
        let mut body = json!({ "model": "vectors" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rig.post("/api/embed", &body).await
    };
    let told = embed(json!({ "input": ["ab", "c"], "truncate": false })).await.json();
    assert_eq!(told["embeddings"], json!([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]));
    assert_eq!((&told["model"], &told["prompt_eval_count"]), (&json!("vectors"), &json!(3)));
    assert_eq!(rig.script.embeds()[0].overlong, Overlong::Refuse);

    assert_eq!(embed(json!({ "input": "a", "dimensions": 1 })).await.json()["embeddings"], json!([[1.0]]));
    assert_eq!(embed(json!({ "input": [] })).await.text, r#"{"model":"vectors","embeddings":[]}"#);
    let told = embed(json!({ "input": 7 })).await;
    assert_eq!((told.status, told.text.as_str()), (400, r#"{"error":"invalid input type"}"#));
    let told = embed(json!({ "input": "fail" })).await;
    assert_eq!((told.status, told.text.as_str()), (400, r#"{"error":"the input length exceeds the context length"}"#));

    let told = rig.post("/api/embeddings", &json!({ "model": "vectors", "prompt": "a" })).await;
    assert_eq!(told.text, r#"{"embedding":[0.5,0.5,0.5,0.5]}"#);
    assert_eq!(rig.post("/api/embeddings", &json!({ "model": "vectors" })).await.text, r#"{"embedding":[]}"#);
    assert_eq!(rig.post("/api/embeddings", &json!({ "model": "vectors", "prompt": "fail" })).await.status, 500);
}
