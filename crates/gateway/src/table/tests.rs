//! Every route before every kind of caller. The expectations are written out by hand: a route that is added without a
//! line here is a failure, and so is one that changes what it needs.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use axum::http::{StatusCode, header};
use axum::response::Response;
use futures::StreamExt;
use http_body_util::BodyExt;
use node::test_util::Solo;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use types::Scopes;

use super::*;
use crate::access::Peer;
use crate::config::{Config, Local};
use crate::host::Hosts;
use crate::route::Ask;
use crate::wire;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Read,
    Infer,
    Models,
    Admin,
    Machine,
}
use Needs::{Admin, Infer, Machine, Models, Nothing, Read};

/// Method, route, a path of it, a body, what it needs, and the status of whoever gets through. Some get through to a
/// refusal of the registry's: the only voter cannot be removed, and some of what is named here is not there.
const ROWS: [(&str, &str, &str, &str, Needs, u16); 74] = [
    ("GET", "/omx/v1/status", "/omx/v1/status", "", Read, 200),
    ("GET", "/omx/v1/nodes", "/omx/v1/nodes", "", Read, 200),
    ("GET", "/omx/v1/nodes/{node}", "/omx/v1/nodes/solo", "", Read, 200),
    ("POST", "/omx/v1/nodes/{node}/drain", "/omx/v1/nodes/solo/drain", "", Admin, 200),
    ("POST", "/omx/v1/nodes/{node}/undrain", "/omx/v1/nodes/solo/undrain", "", Admin, 200),
    ("PATCH", "/omx/v1/nodes/{node}/labels", "/omx/v1/nodes/solo/labels", r#"{"set":{"gpu":"a"}}"#, Admin, 200),
    ("DELETE", "/omx/v1/nodes/{node}", "/omx/v1/nodes/solo", "", Admin, 409),
    ("GET", "/omx/v1/queue", "/omx/v1/queue", "", Read, 200),
    ("GET", "/omx/v1/traces", "/omx/v1/traces", "", Read, 200),
    ("GET", "/omx/v1/traces/{id}", "/omx/v1/traces/00000000000000000000000000000000", "", Read, 404),
    ("GET", "/omx/v1/models", "/omx/v1/models", "", Read, 200),
    ("GET", "/omx/v1/models/show", "/omx/v1/models/show?name=m", "", Read, 404),
    ("POST", "/omx/v1/models/place", "/omx/v1/models/place", r#"{"name":"m","rule":null}"#, Models, 404),
    ("POST", "/omx/v1/models/pin", "/omx/v1/models/pin", r#"{"name":"m","pinned":true}"#, Models, 404),
    ("POST", "/omx/v1/models/rollback", "/omx/v1/models/rollback", r#"{"name":"m"}"#, Models, 404),
    ("POST", "/omx/v1/models/copy", "/omx/v1/models/copy", r#"{"from":"m","to":"n"}"#, Models, 404),
    ("POST", "/omx/v1/models/remove", "/omx/v1/models/remove", r#"{"name":"m"}"#, Models, 404),
    ("POST", "/omx/v1/models/restore", "/omx/v1/models/restore", r#"{"name":"m"}"#, Models, 404),
    ("POST", "/omx/v1/models/gc", "/omx/v1/models/gc", r#"{"dry":true}"#, Admin, 200),
    // What is wrong with the file is told in the answer's lines.
    ("POST", "/omx/v1/models/import", "/omx/v1/models/import", r#"{"path":"/nowhere","name":"m"}"#, Machine, 200),
    ("POST", "/omx/v1/models/verify", "/omx/v1/models/verify", r#"{"name":"m"}"#, Models, 404),
    ("GET", "/omx/v1/transfers", "/omx/v1/transfers", "", Read, 200),
    ("GET", "/omx/v1/tokens", "/omx/v1/tokens", "", Admin, 200),
    ("POST", "/omx/v1/tokens", "/omx/v1/tokens", "{}", Admin, 201),
    ("DELETE", "/omx/v1/tokens/{id}", "/omx/v1/tokens/00000000", "", Admin, 404),
    ("GET", "/omx/v1/config", "/omx/v1/config", "", Read, 200),
    ("GET", "/omx/v1/config/{key}", "/omx/v1/config/voters.max", "", Read, 200),
    ("PUT", "/omx/v1/config/{key}", "/omx/v1/config/voters.max", r#"{"value":"3"}"#, Admin, 200),
    ("DELETE", "/omx/v1/config/{key}", "/omx/v1/config/voters.max", "", Admin, 200),
    ("GET", "/omx/v1/config/{key}/history", "/omx/v1/config/voters.max/history", "", Read, 200),
    ("POST", "/omx/v1/config/{key}/rollback", "/omx/v1/config/voters.max/rollback", r#"{"to":0}"#, Admin, 200),
    ("GET", "/omx/v1/keys", "/omx/v1/keys", "", Admin, 200),
    ("POST", "/omx/v1/keys", "/omx/v1/keys", r#"{"name":"x","scopes":["read"]}"#, Admin, 201),
    ("DELETE", "/omx/v1/keys/{id}", "/omx/v1/keys/000000000000", "", Admin, 404),
    ("GET", "/omx/v1/backends", "/omx/v1/backends", "", Read, 200),
    // Each time behind a node that is not there: it could be enrolled only once.
    ("POST", "/omx/v1/backends", "/omx/v1/backends", r#"{"name":"a","url":"a","node":"nobody"}"#, Admin, 404),
    ("DELETE", "/omx/v1/backends/{name}", "/omx/v1/backends/attic", "", Admin, 404),
    ("GET", "/omx/v1/events", "/omx/v1/events", "", Read, 200),
    ("POST", "/omx/v1/leave", "/omx/v1/leave", "", Machine, 409),
    ("GET", "/omx/v1/openapi.json", "/omx/v1/openapi.json", "", Read, 200),
    ("GET", "/", "/", "", Read, 200),
    ("GET", "/api/version", "/api/version", "", Read, 200),
    ("GET", "/api/tags", "/api/tags", "", Read, 200),
    ("GET", "/api/ps", "/api/ps", "", Read, 200),
    // Nothing runs models in this mesh of one; that is what whoever gets through is told.
    ("POST", "/api/show", "/api/show", MODEL, Read, 503),
    ("POST", "/api/generate", "/api/generate", MODEL, Infer, 503),
    ("POST", "/api/chat", "/api/chat", MODEL, Infer, 503),
    ("POST", "/api/embed", "/api/embed", MODEL, Infer, 503),
    ("POST", "/api/embeddings", "/api/embeddings", MODEL, Infer, 503),
    ("POST", "/v1/chat/completions", "/v1/chat/completions", CHAT, Infer, 503),
    ("POST", "/v1/completions", "/v1/completions", r#"{"model":"m","prompt":"p"}"#, Infer, 503),
    ("POST", "/v1/embeddings", "/v1/embeddings", r#"{"model":"m","input":"i"}"#, Infer, 503),
    ("GET", "/v1/models", "/v1/models", "", Read, 200),
    ("GET", "/v1/models/{model}", "/v1/models/m", "", Read, 503),
    ("POST", "/api/pull", "/api/pull", "{}", Models, 400),
    ("POST", "/api/push", "/api/push", "{}", Models, 501),
    ("POST", "/api/create", "/api/create", "{}", Models, 501),
    ("POST", "/api/copy", "/api/copy", "{}", Models, 400),
    ("DELETE", "/api/delete", "/api/delete", "{}", Models, 400),
    ("POST", "/api/blobs/{digest}", "/api/blobs/sha256-00", "{}", Models, 501),
    ("HEAD", "/api/blobs/{digest}", "/api/blobs/sha256-00", "", Models, 501),
    ("GET", "/api/status", "/api/status", "", Read, 501),
    ("POST", "/api/me", "/api/me", "{}", Read, 501),
    ("POST", "/api/signout", "/api/signout", "{}", Admin, 501),
    ("DELETE", "/api/user/keys/{key}", "/api/user/keys/x", "", Admin, 501),
    ("POST", "/api/experimental/web_search", "/api/experimental/web_search", "{}", Read, 501),
    ("POST", "/api/experimental/web_fetch", "/api/experimental/web_fetch", "{}", Read, 501),
    ("GET", "/api/experimental/model-recommendations", "/api/experimental/model-recommendations", "", Read, 501),
    ("POST", "/v1/responses", "/v1/responses", "{}", Infer, 501),
    ("POST", "/v1/messages", "/v1/messages", "{}", Infer, 501),
    ("POST", "/v1/audio/transcriptions", "/v1/audio/transcriptions", "{}", Infer, 501),
    ("GET", "/healthz/live", "/healthz/live", "", Nothing, 200),
    ("GET", "/healthz/ready", "/healthz/ready", "", Nothing, 200),
    ("GET", "/metrics", "/metrics", "", Read, 200),
];

const MODEL: &str = r#"{"model":"m"}"#;
const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"?"}]}"#;

struct Rig {
    solo: Solo,
    face: Arc<Face>,
    service: Service,
}

const PATIENCE: Duration = Duration::from_secs(20);

const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 11_435);

fn from(remote: impl Into<IpAddr>) -> Peer {
    Peer::Tcp { remote: (remote.into(), 40_000).into(), local: LOCAL }
}

fn loopback() -> Peer {
    from([127, 0, 0, 1])
}

fn beyond() -> Peer {
    from([203, 0, 113, 7])
}

impl Rig {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let solo = Solo::start().await;
        let mut config = Config::new(Local::Cookie("unused".into()));
        change(&mut config);
        let hosts = Hosts::new(&[]).unwrap();
        let cookie = Some(types::Secret::new("omxc_cookie".to_owned()));
        let face = Arc::new(Face::new(solo.api.clone(), hosts, cookie, &config, CancellationToken::new()));
        Self { service: service(face.clone()), face, solo }
    }

    async fn ask(&self, peer: Peer, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "192.0.2.1:11435");
        }
        self.service.answer_any(peer, request.body(Body::from(body.to_owned())).unwrap()).await
    }

    async fn key(&self, scopes: impl IntoIterator<Item = Scope>) -> String {
        self.limited_key(scopes, node::KeyLimits::NONE).await
    }

    async fn limited_key(&self, scopes: impl IntoIterator<Item = Scope>, limits: node::KeyLimits) -> String {
        let api = &self.solo.api;
        let scopes: Scopes = scopes.into_iter().collect();
        api.create_key(api.user(0), "test".to_owned(), scopes, None, limits).await.unwrap().text.expose().clone()
    }
}

async fn json(response: Response) -> Value {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {body:?}"))
}

#[tokio::test]
async fn every_route_answers_every_caller_as_written_down() {
    let written: BTreeSet<_> = ROWS.iter().map(|row| (row.0.to_owned(), row.1)).collect();
    let served: BTreeSet<_> = routes().iter().map(|route| (route.method.to_string(), route.path)).collect();
    assert_eq!(written, served, "each route has a line in this table");

    let rig = Rig::new().await;
    let wrong = format!("Bearer {}x", rig.key([Scope::Admin]).await);
    let mut keys = Vec::new();
    for scope in Scope::ALL {
        keys.push((scope, format!("Bearer {}", rig.key([scope]).await)));
    }
    for (row, (method, _, path, body, needs, through)) in ROWS.into_iter().enumerate() {
        let check = async |who: &str, peer: Peer, key: Option<&str>, expected: u16| {
            let headers: Vec<_> = key.map(|key| ("authorization", key)).into_iter().collect();
            let response = rig.ask(peer, method, path, &headers, body).await;
            assert_eq!(response.status().as_u16(), expected, "{method} {path} by {who}");
        };
        let if_needs = |open: &[Needs], otherwise: u16| if open.contains(&needs) { through } else { otherwise };
        check("nobody on loopback", loopback(), None, if_needs(&[Nothing, Read, Infer, Models], 401)).await;
        check("nobody from beyond", beyond(), None, if_needs(&[Nothing], 401)).await;
        // From somewhere else each time, so that the throttle does not answer in its place.
        let elsewhere = from([198, 51, 100, u8::try_from(row).unwrap()]);
        check("a wrong key", elsewhere, Some(&wrong), if_needs(&[Nothing], 401)).await;
        for (scope, key) in &keys {
            let open: &[Needs] = match scope {
                Scope::Infer => &[Nothing, Infer],
                Scope::Models => &[Nothing, Models],
                Scope::Read => &[Nothing, Read],
                Scope::Admin => &[Nothing, Read, Infer, Models, Admin],
            };
            check(&format!("a key with {scope}"), beyond(), Some(key), if_needs(open, 403)).await;
        }
        check("the owner at the socket", Peer::Socket { uid: 0 }, None, through).await;
        check("the owner with the cookie", loopback(), Some("Bearer omxc_cookie"), through).await;
        check("a cookie from beyond", elsewhere, Some("Bearer omxc_cookie"), if_needs(&[Nothing], 401)).await;
    }
}

#[tokio::test]
async fn a_foreign_host_or_origin_is_refused_on_every_route_and_beside_them() {
    let rig = Rig::new().await;
    let paths = ROWS.iter().map(|row| (row.0, row.2)).chain([("GET", "/nowhere"), ("OPTIONS", "/omx/v1/status")]);
    for (method, path) in paths {
        for (code, headers) in [
            ("foreign_host", [("host", "evil.example"), ("accept", "*/*")]),
            ("foreign_origin", [("host", "localhost"), ("origin", "http://evil.example")]),
            ("foreign_origin", [("host", "localhost"), ("sec-fetch-site", "cross-site")]),
            ("foreign_origin", [("host", "localhost"), ("sec-fetch-site", "same-site")]),
        ] {
            let response = rig.ask(loopback(), method, path, &headers, "").await;
            assert_eq!(response.status(), StatusCode::FORBIDDEN, "{method} {path} {headers:?}");
            let told = json(response).await;
            match crate::route::Errors::at(path) {
                crate::route::Errors::Ours => assert_eq!(told["error"]["code"], code),
                crate::route::Errors::Ollamas => assert!(told["error"].is_string(), "{method} {path}: {told}"),
                crate::route::Errors::OpenAis => {
                    assert!(told["error"]["message"].is_string(), "{method} {path}: {told}")
                }
            }
        }
    }
}

#[tokio::test]
async fn pages_of_this_machine_may_ask_for_models_as_they_may_ask_an_ollama() {
    let rig = Rig::new().await;
    let page = [("host", "localhost"), ("origin", "http://localhost:3000"), ("sec-fetch-site", "same-site")];
    let response = rig.ask(loopback(), "GET", "/v1/models", &page, "").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["access-control-allow-origin"], "http://localhost:3000");
    let asks = [page[0], page[1], ("access-control-request-method", "POST")];
    let response = rig.ask(loopback(), "OPTIONS", "/api/chat", &asks, "").await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert!(response.headers()["access-control-allow-headers"].to_str().unwrap().contains("x-stainless-os"));
    let response = rig.ask(loopback(), "OPTIONS", "/omx/v1/status", &asks, "").await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn where_no_key_is_needed_somebody_else_s_opens_as_much_as_none() {
    let rig = Rig::new().await;
    let with = |key: &'static str| [("host", "localhost"), ("authorization", key)];
    for key in ["Bearer ollama", "Bearer sk-123", "Basic b214", "Bearer"] {
        assert_eq!(rig.ask(loopback(), "GET", "/v1/models", &with(key), "").await.status(), StatusCode::OK, "{key}");
        let admin = rig.ask(loopback(), "GET", "/omx/v1/keys", &with(key), "").await;
        assert_eq!(admin.status(), StatusCode::UNAUTHORIZED, "{key}");
        let beyond = rig.ask(beyond(), "GET", "/v1/models", &[("authorization", key)], "").await;
        assert_eq!(beyond.status(), StatusCode::UNAUTHORIZED, "{key}");
    }
    let ours = rig.ask(loopback(), "GET", "/v1/models", &with("Bearer omx_mistyped"), "").await;
    assert_eq!(ours.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_is_not_in_the_table_is_refused_in_the_same_form_with_an_id() {
    let rig = Rig::new().await;
    let mut ids = BTreeSet::new();
    for (method, path, status, code) in [
        ("GET", "/omx/v1/nothing", 404, "no_route"),
        ("GET", "/omx/v2/status", 404, "no_route"),
        ("GET", "/nowhere", 404, "no_route"),
        ("DELETE", "/omx/v1/status", 405, "method_not_allowed"),
        ("OPTIONS", "/omx/v1/status", 405, "method_not_allowed"),
    ] {
        let response = rig.ask(loopback(), method, path, &[], "").await;
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        assert_eq!(response.headers().contains_key(header::ALLOW), status == 405, "{method} {path}");
        ids.insert(response.headers()["omx-request-id"].to_str().unwrap().to_owned());
        assert_eq!(json(response).await["error"]["code"], code);
    }
    assert_eq!(ids.len(), 5, "an id of ours each: {ids:?}");
    let forged = rig.ask(loopback(), "GET", "/omx/v1/status", &[("omx-request-id", "mine")], "").await;
    assert_ne!(forged.headers()["omx-request-id"], "mine");
}

#[tokio::test]
async fn a_mistake_in_what_is_sent_is_named() {
    let rig = Rig::new().await;
    let owner = Peer::Socket { uid: 0 };
    let long = format!(r#"{{"value":"{}"}}"#, "x".repeat(64 << 10));
    let set = "/omx/v1/config/voters.max";
    for (method, path, body, status, code, named) in [
        ("PUT", set, "{", 400, "bad_request", "line 1 column 1"),
        ("PUT", set, "{}", 400, "bad_request", "missing field `value`"),
        ("PUT", set, r#"{"value":3}"#, 400, "bad_request", "expected a string"),
        ("PUT", set, r#"{"value":"3","exepct":1}"#, 400, "bad_request", "`exepct`"),
        ("PUT", set, r#"{"value":"2"}"#, 400, "bad_value", "1, 3, 5 or 7"),
        ("PUT", set, r#"{"value":"3","expect":99}"#, 409, "conflict", "not 99"),
        ("PUT", set, &long, 413, "too_large", "65536"),
        ("PUT", "/omx/v1/config/voter.max", r#"{"value":"3"}"#, 404, "unknown_setting", "voter.max"),
        ("GET", "/omx/v1/config?consistency=stale", "", 400, "bad_request", "stale"),
        ("GET", "/omx/v1/config?stale=1", "", 400, "bad_request", "stale"),
        ("GET", "/omx/v1/config?consistency=local&at_least=3", "", 400, "bad_request", "exclude"),
        ("GET", "/omx/v1/status", "x", 413, "too_large", "0 bytes"),
        ("GET", "/omx/v1/nodes/nobody", "", 404, "unknown_node", "nobody"),
        ("POST", "/omx/v1/tokens", r#"{"ttl_s":0}"#, 400, "bad_request", "ttl_s"),
        ("POST", "/omx/v1/tokens", r#"{"uses":0}"#, 400, "bad_request", "one use"),
        ("POST", "/omx/v1/keys", r#"{"name":"x","scopes":[]}"#, 400, "bad_request", "scope"),
        ("POST", "/omx/v1/keys", r#"{"name":"x","scopes":["root"]}"#, 400, "bad_request", "root"),
        ("POST", "/omx/v1/keys", r#"{"name":"x","scopes":["infer"],"concurrent":0}"#, 400, "bad_request", "nonzero"),
        ("POST", "/omx/v1/backends", r#"{"name":"A","url":"http://a"}"#, 400, "bad_request", "`A` is not a node name"),
        ("POST", "/omx/v1/backends", r#"{"name":"a","url":"https://a"}"#, 400, "bad_request", "not by `https`"),
        ("POST", "/omx/v1/backends", r#"{"name":"a","url":"localhost:1"}"#, 400, "bad_request", "say which one"),
        ("POST", "/omx/v1/backends", r#"{"name":"a","url":"[::1]:1"}"#, 400, "bad_request", "say which one"),
        ("DELETE", "/omx/v1/backends/a", "", 404, "unknown_backend", "`a`"),
        ("DELETE", "/omx/v1/keys/nonsense", "", 404, "unknown_key", "nonsense"),
        ("PATCH", "/omx/v1/nodes/solo/labels", r#"{"set":{"GPU":"a b"}}"#, 400, "bad_request", "GPU=a b"),
    ] {
        let response = rig.ask(owner, method, path, &[], body).await;
        assert_eq!(response.status().as_u16(), status, "{method} {path} {body}");
        let error = json(response).await["error"].clone();
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().unwrap().contains(named), "`{named}` in {error}");
    }
}

#[tokio::test]
async fn wrong_and_unknown_keys_read_the_same_and_many_of_them_are_throttled() {
    let rig = Rig::new().await;
    let good = rig.key([Scope::Read]).await;
    let revoked = rig.key([Scope::Read]).await;
    let id = revoked.split('_').nth(1).unwrap().parse().unwrap();
    rig.solo.api.revoke_key(rig.solo.api.user(0), id).await.unwrap();
    let nonsense = ["omx_", "no key at all", "omx_000000000000_1"];
    let mut bodies = BTreeSet::new();
    for key in [revoked.as_str()].into_iter().chain(nonsense).cycle().take(10) {
        let response = rig.ask(beyond(), "GET", "/omx/v1/status", &[("x-api-key", key)], "").await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        bodies.insert(json(response).await.to_string());
    }
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    let held = rig.ask(beyond(), "GET", "/omx/v1/status", &[("x-api-key", &good)], "").await;
    assert_eq!(held.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = held.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    let other = rig.ask(from([203, 0, 113, 8]), "GET", "/omx/v1/status", &[("x-api-key", &good)], "").await;
    assert_eq!(other.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_key_that_asks_models_too_often_is_told_so_as_its_client_understands_it() {
    let rig = Rig::new().await;
    let limits = node::KeyLimits { concurrent: None, per_minute: NonZeroU32::new(2) };
    let key = rig.limited_key([Scope::Infer, Scope::Read], limits).await;
    let ask = async |method: &str, path: &str, body: &str| {
        rig.ask(beyond(), method, path, &[("x-api-key", &key)], body).await
    };
    for _ in 0..2 {
        assert_eq!(ask("POST", "/api/generate", MODEL).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    let wait = |response: &Response| -> u64 {
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        response.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap()
    };
    let native = ask("POST", "/api/chat", MODEL).await;
    assert!((1..=61).contains(&wait(&native)));
    let error = json(native).await["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("this key may start 2 requests per minute") && error.contains("Retry-After"), "{error}");
    let openai = ask("POST", "/v1/chat/completions", CHAT).await;
    assert!((1..=61).contains(&wait(&openai)));
    assert_eq!(json(openai).await["error"]["message"], error.as_str());
    // Looking at things costs nothing, and others are not held up.
    assert_eq!(ask("GET", "/omx/v1/status", "").await.status(), StatusCode::OK);
    assert_eq!(rig.ask(loopback(), "POST", "/api/chat", &[], MODEL).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let other = rig.limited_key([Scope::Infer], limits).await;
    let other = rig.ask(beyond(), "POST", "/api/chat", &[("x-api-key", &other)], MODEL).await;
    assert_eq!(other.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn an_answer_counts_as_under_way_until_its_body_is_over() {
    async fn endless(_: Ask<wire::Nothing>) -> Result<Response, Failure> {
        let piece = futures::stream::once(async { Ok::<_, std::convert::Infallible>("a") });
        Ok(Response::new(Body::from_stream(piece.chain(futures::stream::pending()))))
    }
    let rig = Rig::new().await;
    let limits = node::KeyLimits { concurrent: NonZeroU32::new(1), per_minute: None };
    let key = rig.limited_key([Scope::Infer], limits).await;
    let routes = vec![Route::other("/endless", INFER, "", Answers::Other("text/plain"), endless)];
    let rig = Rig { service: Service::new(rig.face.clone(), router(rig.face.clone(), routes)), ..rig };
    let ask = async || rig.ask(beyond(), "GET", "/endless", &[("x-api-key", &key)], "").await;
    let mut first = ask().await;
    first.body_mut().frame().await.unwrap().unwrap();
    let refused = ask().await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
    assert_eq!(json(refused).await["error"]["code"], "key_limit");
    drop(first);
    assert_eq!(ask().await.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_callers_without_a_key_may_do_is_a_setting_and_never_counts_beyond_loopback() {
    let rig = Rig::new().await;
    let api = &rig.solo.api;
    let get = async |rig: &Rig, peer| rig.ask(peer, "GET", "/omx/v1/status", &[], "").await.status().as_u16();
    assert_eq!((get(&rig, loopback()).await, get(&rig, beyond()).await), (200, 401));
    api.set(api.user(0), "api.anonymous", "infer".to_owned(), None).await.unwrap();
    assert_eq!(get(&rig, loopback()).await, 401);

    let open = Rig::with(|config| config.insecure_no_auth = true).await;
    assert_eq!(get(&open, beyond()).await, 200);
    let change = open.ask(beyond(), "PUT", "/omx/v1/config/voters.max", &[], r#"{"value":"3"}"#).await;
    assert_eq!(change.status(), StatusCode::UNAUTHORIZED, "nobody is an admin by showing nothing");
}

#[tokio::test]
async fn metrics_show_the_mesh_and_what_was_asked() {
    let rig = Rig::new().await;
    rig.ask(loopback(), "GET", "/omx/v1/config/voters.max", &[], "").await;
    rig.ask(loopback(), "GET", "/nothing", &[], "").await;
    let response = rig.ask(loopback(), "GET", "/metrics", &[], "").await;
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&text).unwrap();
    let hash = rig.solo.api.figures().state_hash;
    for line in [
        "omx_members 1",
        "omx_members_up 1",
        "omx_voters 1",
        "omx_is_leader 1",
        "omx_term ",
        "omx_applied_index ",
        &format!("omx_state_hash_info{{hash=\"{hash}\"}} 1"),
        "omx_disk_low 0",
        r#"omx_http_requests_total{route="/omx/v1/config/{key}",status="200"} 1"#,
        r#"omx_http_requests_total{route="none",status="404"} 1"#,
        "omx_http_connections 0",
        "omx_build_info{version=",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "`{line}` in {text}");
    }
}

#[tokio::test]
async fn a_stream_of_events_resumes_without_gap_or_repetition_and_ends_with_the_server() {
    let rig = Rig::new().await;
    let api = &rig.solo.api;
    let first = api.set(api.user(7), "voters.max", "3".to_owned(), None).await.unwrap().index;
    let second = api.set(api.user(7), "voters.max", "5".to_owned(), None).await.unwrap().index;
    let resume = [("last-event-id", first.to_string())];
    let headers: Vec<_> = resume.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut stream = rig.ask(loopback(), "GET", "/omx/v1/events", &headers, "").await.into_body();
    let journal = api.events(Some(second - 1)).0;
    rig.solo.tell(journal.into_iter().next().unwrap());
    rig.solo.tell(node::Event::Leader { node: None, name: None });
    // A node tells its addresses whenever it finds that they changed; that is no part of this.
    let next = async |stream: &mut Body| loop {
        let frame = stream.frame().await.unwrap().unwrap().into_data().unwrap();
        let event = String::from_utf8(frame.to_vec()).unwrap();
        if !event.contains("new addresses") {
            return event;
        }
    };
    let resumed = next(&mut stream).await;
    assert!(resumed.contains(&format!("id: {second}")) && resumed.contains("event: registry"), "{resumed}");
    assert!(resumed.contains("voters.max = 5") && resumed.contains("user 7"), "{resumed}");
    let after = next(&mut stream).await;
    assert!(after.contains("event: leader") && !after.contains("id:"), "{after}");

    for _ in 0..1_000 {
        rig.solo.tell(node::Event::Leader { node: None, name: None });
    }
    let lagging = next(&mut stream).await;
    assert!(lagging.contains("event: missed") && lagging.contains("\"count\":744"), "{lagging}");

    let key = rig.key([Scope::Read]).await;
    let id = key.split('_').nth(1).unwrap().parse().unwrap();
    let heard = rig.ask(beyond(), "GET", "/omx/v1/events", &[("x-api-key", &key)], "").await;
    assert_eq!(heard.status(), StatusCode::OK);
    api.revoke_key(api.user(7), id).await.unwrap();
    let rest = tokio::time::timeout(PATIENCE, heard.into_body().collect()).await;
    assert!(rest.is_ok_and(|rest| rest.is_ok()), "a stream ends with the key it was opened by");

    rig.face.shutdown().cancel();
    let rest = tokio::time::timeout(PATIENCE, stream.collect()).await;
    assert!(rest.is_ok_and(|rest| rest.is_ok()), "the stream ends");
    let bad = rig.ask(loopback(), "GET", "/omx/v1/events", &[("last-event-id", "x")], "").await;
    assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_node_that_stops_is_alive_and_not_ready() {
    let rig = Rig::new().await;
    rig.face.shutdown().cancel();
    for peer in [loopback(), beyond()] {
        let response = rig.ask(peer, "GET", "/healthz/ready", &[], "").await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let parts = json(response).await["parts"].clone();
        let names: Vec<_> = parts.as_array().unwrap().iter().map(|part| part["name"].clone()).collect();
        assert_eq!(names, ["registry", "disk"]);
    }
    let head = rig.ask(beyond(), "HEAD", "/healthz/live", &[], "").await;
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(head.headers()[header::CONTENT_TYPE], "application/json");
}

#[tokio::test]
async fn a_question_that_takes_too_long_is_late_and_a_change_is_not_known() {
    async fn never<I: Send>(_: Ask<I>) -> Result<wire::Nothing, Failure> {
        std::future::pending().await
    }
    let rig = Rig::new().await;
    let limit = Duration::from_millis(50);
    let routes = vec![
        Route::read("/slow", READ, "", never::<wire::Nothing>).within(limit),
        Route::change(Method::POST, "/slow", READ, "", never::<wire::Nothing>).within(limit),
    ];
    let rig = Rig { service: Service::new(rig.face.clone(), router(rig.face.clone(), routes)), ..rig };
    for (method, code) in [("GET", "deadline"), ("POST", "unknown_outcome")] {
        let response = rig.ask(loopback(), method, "/slow", &[], "").await;
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(json(response).await["error"]["code"], code);
    }
}
