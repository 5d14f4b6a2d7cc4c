//! Every verb against a real node: its registry, its routes, its local socket. Only its disk and its peers are missing.

use std::path::Path;

use gateway::Local;
use node::test_util::Solo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::UnixMillis;

use super::*;

struct Running {
    folder: TempDir,
    solo: Solo,
    _server: JoinSet<()>,
}

impl Running {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("run/omx.sock");
        let config = gateway::Config { api: ([127, 0, 0, 1], 0).into(), ..gateway::Config::new(Local::Socket(socket)) };
        let bound = gateway::bind(config).await.unwrap();
        let api = bound.addresses().api;
        let run = serde_json::json!({
            "api": api, "mesh": [], "bulk": api, "pid": std::process::id(), "socket": "run/omx.sock",
        });
        std::fs::write(folder.path().join("run.json"), run.to_string()).unwrap();
        let solo = Solo::start().await;
        let task = bound.open(solo.api.clone(), CancellationToken::new()).unwrap();
        let mut server = JoinSet::new();
        server.spawn(task.run());
        Self { folder, solo, _server: server }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn ask(&self, line: &str) -> Result<(String, Exit), Failure> {
        let typed = parse(&format!("omx {line}")).unwrap();
        let out = Out { json: typed.globals.json, width: None, now: UnixMillis(0) };
        let session = Session { folder: self.path().to_owned(), verbose: 0, out };
        match typed.verb {
            Verb::Question(question) => question.ask(&session).await,
            other => panic!("{other:?} does not end with one answer"),
        }
    }

    /// What a person gets from a command that works.
    async fn says(&self, line: &str) -> String {
        match self.ask(line).await {
            Ok((text, Exit::Ok)) => text,
            other => panic!("`{line}`: {other:?}"),
        }
    }

    /// What a script gets.
    async fn json(&self, line: &str) -> Value {
        let text = self.says(&format!("{line} --json")).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("`{line}`: {error}: {text}"))
    }

    async fn refuses(&self, line: &str) -> Failure {
        self.ask(line).await.unwrap_err()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_nodes_tell_people_and_scripts_the_same() {
    let node = Running::start().await;
    let status = node.json("status").await;
    assert_eq!(status["leader"]["name"], "solo");
    assert_eq!(status["quorum"], true);
    assert!(node.says("status").await.contains("\nleader    solo\n"));
    let nodes = node.json("nodes ls --local").await;
    assert_eq!(nodes[0]["id"], status["node"]);
    assert!(node.says("nodes ls").await.contains("\nsolo  up "), "{}", node.says("nodes ls").await);
    let id = status["node"].as_str().unwrap();
    let shown = node.says(&format!("nodes show {id}")).await;
    assert!(shown.contains(&format!("\nid       {id}\n")), "{shown}");
    assert_eq!(node.refuses("nodes show attic").await.exit, Exit::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_and_labelled() {
    let node = Running::start().await;
    assert_eq!(node.says("nodes drain solo").await, "`solo` gets no new work\n");
    assert_eq!(node.json("nodes show solo").await["state"], "draining");
    assert_eq!(node.json("nodes undrain solo").await["state"], "up");
    assert_eq!(node.says("nodes label solo gpu=4090 room=2").await, "`solo` is labelled gpu=4090 room=2\n");
    assert_eq!(node.says("nodes label solo room-").await, "`solo` is labelled gpu=4090\n");
    assert_eq!(node.refuses("nodes remove solo --yes").await.exit, Exit::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ollama_elsewhere_is_enrolled_listed_and_taken_out() {
    let node = Running::start().await;
    let added = node.says("nodes backend add attic 10.0.0.9").await;
    assert_eq!(added, "`attic` is the Ollama at `http://10.0.0.9:11434`; `solo` stands before it\n");
    let nearby = node.json("nodes backend add den http://127.0.0.1:9 --node solo").await;
    assert_eq!(nearby["node"]["name"], "solo");
    assert!(node.says("nodes backend ls --local").await.contains("\nden    http://127.0.0.1:9     solo    solo  "));
    assert_eq!(node.says("nodes backend rm attic").await, "`attic` is used no more\n");
    assert_eq!(node.json("nodes backend ls").await.as_array().unwrap().len(), 1);
    assert_eq!(node.refuses("nodes backend rm attic").await.exit, Exit::Refused);
    assert_eq!(node.refuses("nodes backend add den http://den:1").await.exit, Exit::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_is_changed_guarded_and_taken_back() {
    let node = Running::start().await;
    assert_eq!(node.says("config get voters.max").await, "5\n");
    assert_eq!(node.json("config get voters.max").await["index"], 0);
    let first = node.json("config set voters.max 3").await["index"].as_u64().unwrap();
    let conflict = node.refuses("config set voters.max 7 --if-index 0").await;
    assert_eq!(conflict.exit, Exit::Refused);
    let second = node.says(&format!("config set voters.max 7 --if-index {first}")).await;
    assert!(second.starts_with("`voters.max` is `7` (index "), "{second}");
    let back = node.says(&format!("config rollback voters.max --to {first}")).await;
    assert!(back.starts_with("`voters.max` is `3` (index "), "{back}");
    assert_eq!(node.json("config history voters.max").await.as_array().unwrap().len(), 3);
    assert_eq!(node.json("config reset voters.max").await["value"], "5");
    assert!(node.says("config history voters.max").await.ends_with("  (default)\n"));
    assert!(node.says("config ls").await.contains("\nvoters.max "));
    let unknown = node.refuses("config get voters.maks").await;
    assert_eq!(unknown.exit, Exit::Refused);
    assert!(unknown.to_string().ends_with("hint: did you mean `voters.max`?\n"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_printed_alone_once_and_can_be_revoked() {
    let node = Running::start().await;
    let key = node.says("keys create chat --scope infer,read --ttl 1d").await;
    let key = key.strip_suffix('\n').unwrap();
    assert!(key.starts_with("omx_") && !key.contains(char::is_whitespace), "{key}");
    assert!(node.solo.api.authenticate(key).is_some());
    let keys = node.json("keys ls").await;
    assert_eq!(keys[0]["scopes"], serde_json::json!(["infer", "read"]));
    let id = keys[0]["id"].as_str().unwrap();
    assert!(node.says("keys ls").await.contains(&format!("\n{id}  chat  infer,read  -       ")));
    assert_eq!(node.says(&format!("keys revoke {id}")).await, format!("key `{id}` opens nothing any more\n"));
    assert!(node.solo.api.authenticate(key).is_none());
    assert_eq!(node.refuses(&format!("keys revoke {id}")).await.exit, Exit::Refused);
    node.says("keys create ci --scope infer --concurrent 2 --per-minute 60").await;
    let keys = node.json("keys ls").await;
    assert_eq!((&keys[0]["concurrent"], &keys[0]["per_minute"]), (&2.into(), &60.into()));
    assert!(
        node.says("keys ls").await.contains("  ci    infer   2 at once, 60/min  "),
        "{}",
        node.says("keys ls").await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_printed_alone_once_and_can_be_revoked() {
    let node = Running::start().await;
    let token = node.says("token create --role worker --uses 2 --ttl 30m").await;
    let token = token.strip_suffix('\n').unwrap();
    assert!(token.starts_with("omxt_") && !token.contains(char::is_whitespace), "{token}");
    let tokens = node.json("token ls").await;
    assert_eq!((&tokens[0]["role"], &tokens[0]["uses_left"]), (&"worker".into(), &2.into()));
    let id = tokens[0]["id"].as_str().unwrap();
    assert!(node.says("token ls").await.contains(&format!("\n{id}  worker  2 ")));
    node.says(&format!("token revoke {id}")).await;
    assert_eq!(node.json("token ls").await, serde_json::json!([]));
    assert_eq!(node.json("token create").await["uses"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_voter_cannot_leave_and_nobody_leaves_unasked() {
    let node = Running::start().await;
    assert_eq!(node.refuses("leave --yes").await.exit, Exit::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed_from_where_one_left_off() {
    let node = Running::start().await;
    let index = node.json("config set voters.max 3").await["index"].as_u64().unwrap();
    let mut events = Client::of(node.path()).unwrap().follow("/omx/v1/events", Some(index - 1)).await.unwrap();
    let first = events.next().await.unwrap().unwrap().remove(0);
    let event: Value = serde_json::from_str(&first.data).unwrap();
    assert_eq!((&event["index"], &event["type"]), (&index.into(), &"registry".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doctor_finds_a_healthy_node_healthy() {
    let node = Running::start().await;
    let (text, exit) = node.ask("doctor --json").await.unwrap();
    let checks: Vec<Value> = serde_json::from_str(&text).unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| check["verdict"] == "fail").collect();
    assert!(failed.is_empty() && exit == Exit::Ok, "{failed:?}");
    assert!(checks.len() > 7, "{text}");
}
