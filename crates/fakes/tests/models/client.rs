//! Requests as tests make them, and what is in a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fakes::{Ollama, Registry, Release, Transfer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// As quick as tests want it, and in parts though blobs are small. A machine that is busy is no registry that stalls, or
/// what was counted would have come twice.
pub(crate) const QUICK: Transfer =
    Transfer { part_bytes_min: 4096, part_bytes_max: 1 << 30, stall: LIMIT, retry: Duration::from_millis(1) };

/// `line` is a method and a path. What comes is read to the end of the connection, whatever end that is.
pub(crate) async fn send(ollama: &Ollama, line: &str, body: &[u8]) -> String {
    let mut stream = begin(ollama, line, body).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

pub(crate) async fn ask(ollama: &Ollama, line: &str, body: &Value) -> String {
    send(ollama, line, body.to_string().as_bytes()).await
}

/// Only sent; dropped, the client is gone.
pub(crate) async fn begin(ollama: &Ollama, line: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(ollama.address()).await.unwrap();
    let head =
        format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // Whoever refuses a request may not read its body.
    let _ = stream.write_all(body).await;
    stream
}

pub(crate) fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// What a stream says, line by line.
pub(crate) async fn lines(ollama: &Ollama, path: &str, body: &Value) -> Vec<Value> {
    objects(&ask(ollama, &format!("POST {path}"), body).await)
}

/// The only object of an answer, or the last line of a stream.
pub(crate) async fn last(ollama: &Ollama, line: &str, body: &Value) -> Value {
    objects(&ask(ollama, line, body).await).pop().unwrap()
}

pub(crate) fn objects(answer: &str) -> Vec<Value> {
    let objects = answer.lines().filter(|line| line.starts_with('{'));
    objects.map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) async fn pull(ollama: &Ollama, name: &str) -> Vec<Value> {
    lines(ollama, "/api/pull", &json!({ "model": name, "insecure": true })).await
}

pub(crate) fn is_success(lines: &[Value]) -> bool {
    lines.last().is_some_and(|line| *line == json!({ "status": "success" }))
}

/// The words of the error a stream ended in.
pub(crate) fn error(lines: &[Value]) -> String {
    lines.last().and_then(|line| line["error"].as_str()).unwrap_or_else(|| panic!("no error: {lines:?}")).to_owned()
}

/// Name and digest of each model that is listed, by name.
pub(crate) async fn digests(ollama: &Ollama) -> Vec<(String, String)> {
    let tags = last(ollama, "GET /api/tags", &Value::Null).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let models = tags["models"].as_array().unwrap().iter();
    let mut listed: Vec<_> = models.map(|model| (text(&model["name"]), text(&model["digest"]))).collect();
    listed.sort();
    listed
}

/// All files below, by their paths from there.
pub(crate) fn tree(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path.strip_prefix(root).unwrap().to_owned()) }
        }
    }
    files.sort();
    files
}

/// Every blob of it lies in the folder, byte for byte, and nothing else does.
pub(crate) fn holds_exactly(folder: &Path, release: &Release) -> bool {
    let mut expected: Vec<PathBuf> = release.blobs().iter().map(|blob| blob.digest.file_name().into()).collect();
    expected.sort();
    let same = |blob: &fakes::Blob| {
        let bytes = fs::read(folder.join("blobs").join(blob.digest.file_name())).unwrap();
        bytes == blob.content.read(0, usize::MAX >> 1)
    };
    tree(&folder.join("blobs")) == expected && release.blobs().iter().all(same)
}

/// A registry with one model of some hundred kilobytes.
pub(crate) async fn registry() -> (Registry, Release, String) {
    let registry = Registry::start(fakes::registry::Config::default()).await.unwrap();
    let release = Release::made(1, 300_000);
    registry.publish("tiny:1b", &release).unwrap();
    let name = registry.name_of("tiny:1b").unwrap();
    (registry, release, name)
}
