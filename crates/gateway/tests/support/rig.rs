//! A gateway bound to a real port before a fake Ollama, and clients that say exactly what they are told to say.

#![allow(dead_code, reason = "each file of tests uses its part of it")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use fakes::Model;
use gateway::{Config, Limits, Local};
use node::test_util::Solo;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// More than anything here takes; whoever waits this long has found a bug.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const MODEL: &str = "tiny:latest";
/// Its answers outgrow whatever a system buffers.
pub(crate) const ENDLESS: &str = "endless:latest";
pub(crate) const EMBEDDER: &str = "vectors:latest";

pub(crate) struct Rig {
    pub(crate) fake: fakes::Ollama,
    pub(crate) api: SocketAddr,
    pub(crate) solo: Solo,
    _task: JoinSet<()>,
    _folder: TempDir,
}

impl Rig {
    pub(crate) async fn new(limits: Limits) -> Self {
        Self::with(|config| config.limits = limits).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let models = vec![
            Model { answer_tokens: Some(8), decode: 1e6, ..Model::completion(MODEL) },
            Model { answer_tokens: Some(200_000), decode: 1e6, context_length: 1 << 20, ..Model::completion(ENDLESS) },
            Model { prefill: 1e9, ..Model::embedding(EMBEDDER) },
        ];
        let fake = fakes::Ollama::start(fakes::Config { models, slots: 64, ..fakes::Config::default() }).await.unwrap();
        let solo = Solo::before(fake.address()).await;
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new(Local::Socket(folder.path().join("run/omx.sock")));
        config.api = (Ipv4Addr::LOCALHOST, 0).into();
        change(&mut config);
        let bound = gateway::bind(config).await.unwrap();
        let api = bound.addresses().api;
        let mut task = JoinSet::new();
        task.spawn(bound.open(solo.api.clone(), CancellationToken::new()).unwrap().run());
        Self { fake, api, solo, _task: task, _folder: folder }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.api).await.unwrap()
    }

    /// Waits until there are none but the one that asks.
    pub(crate) async fn is_alone(&self) {
        let asked = async {
            loop {
                let mut stream = self.connect().await;
                let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
                stream.write_all(request.as_bytes()).await.unwrap();
                if to_end(&mut stream).await.contains("omx_http_connections 1\n") {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("connections come to an end");
    }

    /// Whether whoever asks properly is answered as always.
    pub(crate) async fn is_well(&self) -> bool {
        let mut stream = self.connect().await;
        let body = format!(r#"{{"model":"{MODEL}","prompt":"?","stream":false}}"#);
        stream.write_all(post("/api/generate", &body).as_bytes()).await.unwrap();
        let said = to_end(&mut stream).await;
        said.starts_with("HTTP/1.1 200 OK\r\n") && said.contains(r#""done":true"#)
    }
}

/// A good request, on a connection that ends with it.
pub(crate) fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

/// What the server says until it closes the connection.
pub(crate) async fn to_end(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut said = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("the connection is closed");
    match read {
        Ok(_) => {}
        // Closed with something of ours unread, or, under TLS, without a word.
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => {}
        Err(error) => panic!("{error}"),
    }
    String::from_utf8_lossy(&said).into_owned()
}
