//! Who is refused, with which status and in which words.

use serde_json::{Value, json};

use super::rig::{MEMORY, Rig, done, text};
use crate::Error;
use crate::runner::Ended;

async fn refused(rig: &Rig, method: &str, path: &str, body: Value) -> (u16, String) {
    let told = rig.call(method, path, &body.to_string()).await;
    assert_eq!(told.kind, "application/json; charset=utf-8", "{path} {body}");
    (told.status, told.json()["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_bad_name_is_refused_in_the_words_of_its_route() {
    let rig = Rig::new().await;
    for (path, nothing, absent) in [
        ("/api/generate", (404, "model '' not found"), "model 'x' not found"),
        ("/api/chat", (400, "model is required"), "model 'x' not found"),
        ("/api/embed", (404, "model '' not found"), r#"model "x" not found, try pulling it first"#),
        ("/api/embeddings", (400, "model is required"), r#"model "x" not found, try pulling it first"#),
        ("/api/show", (400, "model is required"), "model 'x:latest' not found"),
    ] {
        let body =
            |model: &str| json!({ "model": model, "prompt": "Hi", "messages": [{ "role": "user", "content": "Hi" }] });
        assert_eq!(refused(&rig, "POST", path, body("")).await, (nothing.0, nothing.1.to_owned()), "{path}");
        assert_eq!(refused(&rig, "POST", path, body("../x")).await, (400, "invalid model name".to_owned()), "{path}");
        assert_eq!(refused(&rig, "POST", path, body("x")).await, (404, absent.to_owned()), "{path}");
        assert_eq!(refused(&rig, "POST", path, body("x:cloud")).await.0, 403, "{path}");
    }
    for (model, status, words) in
        [("", 400, "model is required"), ("../x", 400, r#"name "../x" is invalid"#), ("x", 404, "model 'x' not found")]
    {
        assert_eq!(refused(&rig, "DELETE", "/api/delete", json!({ "model": model })).await, (status, words.to_owned()));
    }
    for (source, destination, status, words) in [
        ("a b", "y", 400, r#"source "a b" is invalid"#),
        ("x", "../y", 400, r#"destination "../y" is invalid"#),
        ("x", "y", 404, r#"model "x" not found"#),
    ] {
        let body = json!({ "source": source, "destination": destination });
        assert_eq!(refused(&rig, "POST", "/api/copy", body).await, (status, words.to_owned()));
    }
}

#[tokio::test]
async fn a_bad_request_is_refused_before_anything_is_loaded() {
    let rig = Rig::new().await;
    let chat = |more: Value| {
        let mut body = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "Hi" }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let full = "registry.ollama.ai/library/tiny:latest";
    for (more, status, words) in [
        (json!({ "top_logprobs": 21 }), 400, "top_logprobs must be between 0 and 20".to_owned()),
        (json!({ "options": { "num_ctx": "8" } }), 500, r#"option "num_ctx" must be of type integer"#.to_owned()),
        (json!({ "think": true }), 400, r#""tiny" does not support thinking"#.to_owned()),
        (json!({ "tools": [{}] }), 400, format!("{full} does not support tools")),
        (
            json!({ "messages": [{ "role": "user", "images": ["aGk="] }] }),
            400,
            format!("{full} does not support vision"),
        ),
        (json!({ "model": "vectors" }), 400, r#""vectors" does not support chat"#.to_owned()),
    ] {
        assert_eq!(refused(&rig, "POST", "/api/chat", chat(more)).await, (status, words));
    }
    let suffix = json!({ "model": "tiny", "prompt": "Hi", "suffix": "x" });
    assert_eq!(refused(&rig, "POST", "/api/generate", suffix).await, (400, format!("{full} does not support insert")));
    let vectors = json!({ "model": "vectors", "prompt": "Hi" });
    let words = r#""vectors" does not support generate"#.to_owned();
    assert_eq!(refused(&rig, "POST", "/api/generate", vectors).await, (400, words));
    let template = json!({ "model": "tiny", "prompt": "Hi", "template": "{{ .Prompt }}" });
    assert_eq!(refused(&rig, "POST", "/api/generate", template).await.0, 400);
    assert_eq!(rig.script.specs(), []);

    let words = r#"invalid format: "\"xml\""; expected "json" or a valid JSON Schema object"#.to_owned();
    assert_eq!(refused(&rig, "POST", "/api/chat", chat(json!({ "format": "xml" }))).await, (500, words));
    for (body, words) in [("", "missing request body"), ("x", "invalid character 'x' looking for beginning of value")] {
        let told = rig.call("POST", "/api/chat", body).await;
        assert_eq!((told.status, told.json()["error"].as_str()), (400, Some(words)));
    }
}

#[tokio::test]
async fn what_fails_first_decides_the_status_and_what_fails_later_ends_the_stream() {
    let rig = Rig::new().await;
    let request = |streams: bool| json!({ "model": "tiny", "prompt": "Hi", "stream": streams });
    let busy = r#"{"error":"server busy, please try again.  maximum pending requests exceeded"}"#;
    for streams in [true, false] {
        rig.script.says([Err(Error::Busy)]);
        let told = rig.post("/api/generate", &request(streams)).await;
        assert_eq!((told.status, told.text.as_str()), (503, busy));
    }
    let broken = || [text("Hel"), Err(Error::Step { reason: "out of memory".to_owned() })];
    let words = r#"{"error":"an error was encountered while running the model: out of memory"}"#;
    rig.script.says(broken());
    let told = rig.post("/api/generate", &request(true)).await;
    let lines = told.lines();
    assert_eq!((told.status, lines.len(), lines[1].as_str()), (200, 2, words));
    assert!(!told.text.contains(r#""done":true"#));
    rig.script.says(broken());
    let told = rig.post("/api/generate", &request(false)).await;
    assert_eq!((told.status, told.text.as_str()), (500, words));
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_refused_and_others_stay() {
    let rig = Rig::new().await;
    rig.script.says([done(Ended::Stop)]);
    rig.script.says([done(Ended::Stop)]);
    let ask = |model: &str, context: u64| json!({ "model": model, "prompt": "Hi", "stream": false, "options": { "num_ctx": context } });
    assert_eq!(rig.post("/api/generate", &ask("tiny", 4096)).await.status, 200);
    let words = "model requires more system memory (1.0 MiB) than is available (1.0 MiB)";
    for (path, model) in [("/api/generate", "tiny"), ("/api/embed", "vectors")] {
        let mut body = ask(model, MEMORY);
        body["input"] = "Hi".into();
        assert_eq!(refused(&rig, "POST", path, body).await, (500, words.to_owned()), "{path}");
    }
    let loaded = rig.call("GET", "/api/ps", "").await.json();
    assert_eq!(loaded["models"].as_array().map(Vec::len), Some(1), "{loaded}");
    assert_eq!(rig.post("/api/generate", &ask("tiny", 4096)).await.status, 200);
    assert_eq!(rig.script.specs().len(), 1, "it was not loaded again");
}

#[tokio::test]
async fn a_template_that_refuses_is_heard() {
    let template = "{% if messages[0].role != 'user' %}{{ raise_exception('a user begins') }}{% endif %}{{ [] + 1 }}";
    let rig = Rig::with(template, &Default::default(), 4096).await;
    let chat = |role: &str| json!({ "model": "tiny", "messages": [{ "role": role, "content": "Hi" }] });
    assert_eq!(refused(&rig, "POST", "/api/chat", chat("tool")).await, (400, "a user begins".to_owned()));
    let (status, words) = refused(&rig, "POST", "/api/chat", chat("user")).await;
    assert!(status == 500 && words.starts_with("the model's chat template failed"), "{status} {words}");
}

#[tokio::test]
async fn a_model_that_cannot_be_read_is_listed_and_refused() {
    let rig = Rig::new().await;
    let folder = rig.folder();
    let installed = folder.find(&"tiny".parse().unwrap()).unwrap();
    std::fs::write(folder.weights(&installed).unwrap(), b"GGUF, or not").unwrap();
    let (status, words) = refused(&rig, "POST", "/api/generate", json!({ "model": "tiny", "prompt": "Hi" })).await;
    assert!(status == 500 && words.starts_with("unable to load model"), "{status} {words}");
    assert_eq!(rig.call("GET", "/api/tags", "").await.json()["models"].as_array().unwrap().len(), 2);
}
