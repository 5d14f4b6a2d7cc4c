//! The whole gateway from outside, on real sockets, before a real registry.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]
#![cfg(unix)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use gateway::{Config, Error, Local, wire};
use node::test_util::Solo;
use serde::de::DeserializeOwned;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::{Role, Scope};

const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    api: SocketAddr,
    socket: PathBuf,
    shutdown: CancellationToken,
    task: JoinSet<()>,
    solo: Solo,
    _folder: TempDir,
}

fn config(folder: &TempDir) -> Config {
    let socket = folder.path().join("run/omx.sock");
    Config { api: (Ipv4Addr::LOCALHOST, 0).into(), ..Config::new(Local::Socket(socket)) }
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (solo, shutdown) = (Solo::start().await, CancellationToken::new());
        let bound = gateway::bind(config(&folder)).await.unwrap();
        let addresses = bound.addresses();
        let Local::Socket(socket) = addresses.local else { panic!("a socket was asked for") };
        let mut task = JoinSet::new();
        task.spawn(bound.open(solo.api.clone(), shutdown.clone()).unwrap().run());
        Self { api: addresses.api, socket, shutdown, task, solo, _folder: folder }
    }

    async fn owner<T: DeserializeOwned>(&self, method: &str, path: &str, body: &str) -> (u16, T) {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        ask(stream, method, path, "", body).await
    }

    async fn tcp<T: DeserializeOwned>(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, T) {
        let stream = TcpStream::connect(self.api).await.unwrap();
        ask(stream, method, path, headers, body).await
    }
}

async fn ask<T: DeserializeOwned>(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, T) {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut said)).await.unwrap().unwrap();
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {said}")))
}

#[tokio::test]
async fn the_owner_sees_and_changes_the_mesh_through_the_socket() {
    let server = Server::start().await;
    let (_, status): (_, wire::Status) = server.owner("GET", "/omx/v1/status", "").await;
    assert!(status.quorum && status.index > 0 && status.absent_voters.is_empty(), "{status:?}");
    assert_eq!((status.node, status.name.as_str()), (server.solo.api.id(), "solo"));
    assert_eq!(status.leader.as_ref().map(|leader| leader.id), Some(status.node));
    let [member] = status.members.as_slice() else { panic!("{status:?}") };
    assert!(member.voter && member.leader && member.state == wire::State::Up && member.seat == 1, "{member:?}");

    let set = json!({ "value": "3", "expect": 0 }).to_string();
    let (code, done): (_, wire::Setting) = server.owner("PUT", "/omx/v1/config/voters.max", &set).await;
    assert_eq!((code, done.value.as_str(), done.default.as_str()), (200, "3", "5"));
    let path = format!("/omx/v1/config/voters.max?at_least={}", done.index);
    let (_, read): (_, wire::Setting) = server.owner("GET", &path, "").await;
    assert_eq!(read, done);
    let (code, conflict): (_, wire::Failed) = server.owner("PUT", "/omx/v1/config/voters.max", &set).await;
    assert_eq!((code, conflict.error.code.as_str()), (409, "conflict"));
    assert!(conflict.error.hint.is_some());
    let (_, _): (_, wire::Setting) = server.owner("PUT", "/omx/v1/config/voters.max", r#"{"value":"7"}"#).await;
    let back = json!({ "to": done.index }).to_string();
    let (_, back): (_, wire::Setting) = server.owner("POST", "/omx/v1/config/voters.max/rollback", &back).await;
    assert_eq!(back.value, "3");
    let (_, reset): (_, wire::Setting) = server.owner("DELETE", "/omx/v1/config/voters.max", "").await;
    assert_eq!(reset.value, "5");
    let (_, history): (_, Vec<wire::Change>) = server.owner("GET", "/omx/v1/config/voters.max/history", "").await;
    let values: Vec<_> = history.iter().map(|change| change.value.as_deref()).collect();
    assert_eq!(values, [Some("3"), Some("7"), Some("3"), None]);
    assert!(history[0].by.starts_with("user "), "{history:?}");

    let labels = json!({ "set": { "gpu": "4090", "zone": "a" } }).to_string();
    let (_, labelled): (_, wire::Node) = server.owner("PATCH", "/omx/v1/nodes/solo/labels", &labels).await;
    assert_eq!(labelled.member.labels.get("gpu").map(String::as_str), Some("4090"));
    let (_, unset): (_, wire::Node) = server.owner("PATCH", "/omx/v1/nodes/solo/labels", r#"{"unset":["gpu"]}"#).await;
    assert_eq!(unset.member.labels.len(), 1);
    let (_, drained): (_, wire::Node) = server.owner("POST", "/omx/v1/nodes/solo/drain", "").await;
    assert_eq!(drained.member.state, wire::State::Draining);
    let (_, nodes): (_, Vec<wire::Node>) = server.owner("GET", "/omx/v1/nodes?consistency=local", "").await;
    assert_eq!(nodes, [drained]);
}

#[tokio::test]
async fn tokens_and_keys_are_shown_once_and_work_until_they_are_revoked() {
    let server = Server::start().await;
    let wish = json!({ "role": "worker", "uses": 3, "ttl_s": 60 }).to_string();
    let (code, made): (_, wire::NewToken) = server.owner("POST", "/omx/v1/tokens", &wish).await;
    assert_eq!((code, made.role, made.uses), (201, Role::Worker, 3));
    assert_eq!(made.token.parse::<node::Token>().unwrap().id().to_string(), made.id);
    let (_, tokens): (_, Vec<wire::Token>) = server.owner("GET", "/omx/v1/tokens", "").await;
    assert_eq!((tokens.len(), tokens[0].id.as_str(), tokens[0].uses_left), (1, made.id.as_str(), 3));
    assert_eq!(tokens[0].expires_at.0.since(tokens[0].created_at.0), Duration::from_secs(60));
    let (code, _): (_, wire::Done) = server.owner("DELETE", &format!("/omx/v1/tokens/{}", &made.id[..6]), "").await;
    assert_eq!(code, 200);

    let wish = json!({ "name": "chat", "scopes": ["infer", "admin"] }).to_string();
    let (code, key): (_, wire::NewKey) = server.owner("POST", "/omx/v1/keys", &wish).await;
    assert_eq!(code, 201);
    let bearer = format!("authorization: Bearer {}\r\n", key.key);
    let (_, keys): (_, Vec<wire::Key>) = server.tcp("GET", "/omx/v1/keys", &bearer, "").await;
    assert_eq!((keys.len(), keys[0].id.as_str(), keys[0].expires_at), (1, key.id.as_str(), None));
    assert_eq!(keys[0].scopes, [Scope::Infer, Scope::Admin]);
    assert_eq!((keys[0].concurrent, keys[0].per_minute), (None, None));
    let wish = json!({ "name": "ci", "scopes": ["infer"], "concurrent": 2, "per_minute": 60 }).to_string();
    let (_, limited): (_, wire::NewKey) = server.owner("POST", "/omx/v1/keys", &wish).await;
    let (_, keys): (_, Vec<wire::Key>) = server.owner("GET", "/omx/v1/keys", "").await;
    let shown = keys.iter().find(|key| key.id == limited.id).unwrap();
    assert_eq!((shown.concurrent.map(u32::from), shown.per_minute.map(u32::from)), (Some(2), Some(60)));
    let (_, set): (_, wire::Setting) =
        server.tcp("PUT", "/omx/v1/config/mesh.name", &bearer, r#"{"value":"lab"}"#).await;
    assert_eq!(set.value, "lab");
    let (_, changes): (_, Vec<wire::Change>) = server.tcp("GET", "/omx/v1/config/mesh.name/history", "", "").await;
    assert!(changes[0].by.starts_with(&format!("key {}", key.id)), "{changes:?}");

    let (code, _): (_, wire::Done) = server.owner("DELETE", &format!("/omx/v1/keys/{}", key.id), "").await;
    assert_eq!(code, 200);
    let (code, gone): (_, wire::Failed) = server.tcp("GET", "/omx/v1/keys", &bearer, "").await;
    assert_eq!((code, gone.error.code.as_str()), (401, "wrong_key"));
}

#[tokio::test]
async fn an_ollama_elsewhere_is_enrolled_and_taken_out() {
    let server = Server::start().await;
    let wish = json!({ "name": "attic", "url": "10.0.0.9" }).to_string();
    let (code, made): (_, wire::EnrolledBackend) = server.owner("POST", "/omx/v1/backends", &wish).await;
    assert_eq!((code, made.url.as_str(), &made.node), (201, "http://10.0.0.9:11434", &None));
    let solo = wire::Standing { id: server.solo.api.id(), name: Some("solo".parse().unwrap()) };
    assert_eq!(made.host.as_ref(), Some(&solo), "who else");
    let (code, taken): (_, wire::Failed) = server.owner("POST", "/omx/v1/backends", &wish).await;
    assert_eq!((code, taken.error.code.as_str()), (409, "backend_taken"));
    let here = json!({ "name": "here", "url": "http://127.0.0.1:9", "node": "solo" }).to_string();
    let (_, here): (_, wire::EnrolledBackend) = server.owner("POST", "/omx/v1/backends", &here).await;
    assert_eq!((here.node.as_ref(), here.host.as_ref()), (Some(&solo), Some(&solo)));
    let (_, all): (_, Vec<wire::EnrolledBackend>) = server.tcp("GET", "/omx/v1/backends", "", "").await;
    assert_eq!(all, [made, here]);
    let (_, _): (_, wire::Node) = server.owner("POST", "/omx/v1/nodes/solo/drain", "").await;
    let (_, all): (_, Vec<wire::EnrolledBackend>) = server.tcp("GET", "/omx/v1/backends", "", "").await;
    assert!(all.iter().all(|backend| backend.host.is_none()), "{all:?}");
    let (code, _): (_, wire::Done) = server.owner("DELETE", "/omx/v1/backends/attic", "").await;
    assert_eq!(code, 200);
    let (_, all): (_, Vec<wire::EnrolledBackend>) = server.tcp("GET", "/omx/v1/backends", "", "").await;
    assert_eq!(all.len(), 1);
}

#[tokio::test]
async fn at_the_end_the_sockets_are_gone() {
    let mut server = Server::start().await;
    let (code, readiness): (_, wire::Readiness) = server.tcp("GET", "/healthz/ready", "", "").await;
    assert!(code == 200 && readiness.ready, "{readiness:?}");
    server.shutdown.cancel();
    tokio::time::timeout(PATIENCE, server.task.join_next()).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(server.api).await.is_err());
    assert!(!server.socket.exists());
}

#[tokio::test]
async fn a_taken_port_is_named_with_what_to_do() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bound = gateway::bind(config(&first)).await.unwrap();
    let api = bound.addresses().api;
    let error = gateway::bind(Config { api, ..config(&second) }).await.unwrap_err();
    assert!(matches!(error, Error::Taken { address } if address == api), "{error:?}");
    assert!(error.to_string().contains(&api.port().to_string()));
    assert!(error.hint().is_some_and(|hint| hint.contains("--api")));
}

#[tokio::test]
async fn beyond_loopback_the_api_opens_with_a_key_or_a_word_that_it_shall_not_need_one() {
    let solo = Solo::start().await;
    let open = async |insecure_no_auth| {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { api: (Ipv4Addr::UNSPECIFIED, 0).into(), insecure_no_auth, ..config(&folder) };
        let bound = gateway::bind(config).await.unwrap();
        bound.open(solo.api.clone(), CancellationToken::new()).map(drop)
    };
    let refused = open(false).await.unwrap_err();
    assert!(matches!(refused, Error::NoKey { .. }), "{refused:?}");
    assert!(refused.hint().is_some_and(|hint| hint.contains("omx keys create")));
    open(true).await.unwrap();
    let api = &solo.api;
    let scopes = [Scope::Infer].into_iter().collect();
    api.create_key(api.user(0), "first".to_owned(), scopes, None, node::KeyLimits::NONE).await.unwrap();
    open(false).await.unwrap();
}
