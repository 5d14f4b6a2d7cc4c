//! The HTTP face before a scripted runner: shapes, statuses, and who is told what.

mod errors;
mod golden;
mod infer;
mod manage;
mod rig;
mod stream;

use serde_json::json;

use self::rig::Rig;

#[tokio::test]
async fn nobody_without_the_secret_gets_anywhere() {
    let rig = Rig::new().await;
    let paths = ["/", "/api/version", "/api/tags", "/api/ps", "/nowhere"];
    for path in paths {
        for secret in ["", "0", "wrong"] {
            let told = rig.call_with(secret, "GET", path, "").await;
            assert_eq!((told.status, told.text.as_str()), (401, r#"{"error":"unauthorized"}"#), "{path}");
        }
    }
    let told = rig.call_with("wrong", "POST", "/api/generate", r#"{"model":"tiny","prompt":"Hi"}"#).await;
    assert_eq!((told.status, rig.script.jobs().len()), (401, 0));
}

#[tokio::test]
async fn a_client_that_only_looks_sees_ollama() {
    let rig = Rig::new().await;
    let told = rig.call("GET", "/", "").await;
    assert_eq!(
        (told.status, told.kind.as_str(), told.text.as_str()),
        (200, "text/plain; charset=utf-8", "Ollama is running")
    );
    let told = rig.call("HEAD", "/", "").await;
    assert_eq!((told.status, told.text.as_str()), (200, ""));
    let told = rig.call("GET", "/api/version", "").await;
    assert_eq!(
        (told.kind.as_str(), told.json()),
        ("application/json; charset=utf-8", json!({ "version": "0.0.1-test" }))
    );
    for (method, path, status, text) in [
        ("GET", "/api/create", 404, "404 page not found"),
        ("GET", "/api/chat", 405, "405 method not allowed"),
        ("POST", "/api/delete", 405, "405 method not allowed"),
        ("DELETE", "/", 405, "405 method not allowed"),
    ] {
        let told = rig.call(method, path, "").await;
        assert_eq!((told.status, told.text.as_str()), (status, text), "{method} {path}");
    }
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let rig = Rig::new().await;
    let long = format!(r#"{{"model":"{}"}}"#, "x".repeat(super::body::MANAGE_BYTES_MAX));
    let told = rig.call("POST", "/api/show", &long).await;
    assert_eq!(told.status, 413, "{}", told.text);
}
