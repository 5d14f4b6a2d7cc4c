//! Ten thousand bad requests, made from what each route says it takes: none is answered with a fault of ours, none
//! brings anything down, and whoever sent it is told what was wrong in the shape its client knows.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]
#![cfg(unix)]

#[path = "support/random.rs"]
mod random;
#[path = "support/rig.rs"]
mod rig;
#[path = "support/wild.rs"]
mod wild;

use std::collections::BTreeMap;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use gateway::Limits;
use random::Random;
use rig::{PATIENCE, Rig};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use types::Scopes;
use wild::{Flaw, Schemas, Wild};

const SEED: u64 = 0x0b5e_55ed;
const REQUESTS: u64 = 10_000;
const AT_ONCE: usize = 24;
/// Of an answer: whatever is wrong with it shows before.
const ANSWER_MAX: usize = 4 << 20;

/// How Ollama explains a 500 that is its client's fault.
const THEIRS: [&str; 2] = [r#"option \""#, "invalid format: "];

/// A path's errors are shaped as its clients know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    Ours,
    Ollamas,
    OpenAis,
}

#[derive(Debug)]
struct Said {
    status: u16,
    /// Made by a route or what stands before it, not by what reads heads.
    ours: bool,
    kind: String,
    body: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_the_senders_fault_and_are_told_so() {
    eprintln!("seed {SEED:#x}");
    let panics = Arc::new(AtomicUsize::new(0));
    let counted = panics.clone();
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        counted.fetch_add(1, Ordering::Relaxed);
        before(info);
    }));
    let limits = Limits { body: Duration::from_millis(200), ..Limits::default() };
    let rig = Rig::new(limits).await;
    let api = &rig.solo.api;
    let key =
        api.create_key(api.user(0), "test".to_owned(), Scopes::all(), None, node::KeyLimits::default()).await.unwrap();
    let key = key.text.expose().clone();
    // What is asked for at random is not asked of anybody else.
    api.set(api.user(0), "registries.allow", "none".to_owned(), None).await.unwrap();
    let document: Value = {
        let said =
            ask(&rig, format!("GET /omx/v1/openapi.json HTTP/1.1\r\n{}\r\n", head(&key)).as_bytes(), false).await;
        serde_json::from_slice(&said.unwrap().body).unwrap()
    };
    let schemas = Schemas::new(&document);
    let routes = schemas.routes();
    assert!(routes.len() > 40, "{}", routes.len());

    let mut statuses: BTreeMap<(Shape, u16), u64> = BTreeMap::new();
    let (rig, schemas, routes, key) = (&rig, &schemas, &routes, &key);
    let mut asked = futures::stream::iter(0..REQUESTS)
        .map(|number| async move {
            let mut random = Random::new(SEED, number);
            let route = &routes[usize::try_from(number).unwrap() % routes.len()];
            let wild = schemas.wild(route, &mut random);
            let said = ask(rig, &wild.bytes(&head(key)), wild.flaw == Flaw::BrokenOff).await;
            judge(&wild, said).map_err(|wrong| {
                format!("seed {SEED:#x}, request {number}: {wrong}\n{}", String::from_utf8_lossy(&shown(&wild)))
            })
        })
        .buffer_unordered(AT_ONCE);
    let mut wrong = Vec::new();
    while let Some(judged) = asked.next().await {
        match judged {
            Ok(Some(status)) => *statuses.entry(status).or_default() += 1,
            Ok(None) => {}
            Err(found) => wrong.push(found),
        }
    }
    eprintln!("{statuses:?}");
    assert!(
        wrong.is_empty(),
        "{} wrong answers, among them\n{}",
        wrong.len(),
        wrong[..wrong.len().min(8)].join("\n\n")
    );
    assert_eq!(panics.load(Ordering::Relaxed), 0, "something panicked");
    // They went as deep as they were meant to.
    for shape in [Shape::Ours, Shape::Ollamas, Shape::OpenAis] {
        for status in [200, 400, 403, 404, 405, 408, 413] {
            assert!(statuses.contains_key(&(shape, status)), "{shape:?} was never answered {status}: {statuses:?}");
        }
    }
    assert!(rig.is_well().await);
}

fn head(key: &str) -> String {
    format!("host: localhost\r\nconnection: close\r\nauthorization: Bearer {key}\r\n")
}

/// For a failure's message: what came, as far as anybody would read it.
fn shown(wild: &Wild) -> Vec<u8> {
    let mut bytes = wild.bytes("");
    bytes.truncate(600);
    bytes
}

/// One request on a connection of its own. `leaves` is whether the client goes away once it has said it.
async fn ask(rig: &Rig, request: &[u8], leaves: bool) -> Option<Said> {
    let asked = async {
        let mut stream = rig.connect().await;
        // The server may have answered, and closed, before it has read all.
        let _ = stream.write_all(request).await;
        if leaves {
            let _ = stream.shutdown().await;
        }
        let mut said = Vec::new();
        let mut some = vec![0; 64 << 10];
        loop {
            match stream.read(&mut some).await {
                Ok(0) | Err(_) => break,
                Ok(count) => said.extend_from_slice(&some[..count]),
            }
            if said.len() > ANSWER_MAX || is_endless(&said) {
                break;
            }
        }
        said
    };
    read(&tokio::time::timeout(PATIENCE, asked).await.expect("every request comes to an end"))
}

/// A stream of events may go on for as long as anybody listens; its head says what there is to say.
fn is_endless(said: &[u8]) -> bool {
    let head = said.windows(4).position(|part| part == b"\r\n\r\n");
    head.is_some_and(|end| String::from_utf8_lossy(&said[..end]).contains("text/event-stream"))
}

fn read(said: &[u8]) -> Option<Said> {
    let end = said.windows(4).position(|part| part == b"\r\n\r\n")?;
    let head = String::from_utf8(said[..end].to_vec()).unwrap().to_ascii_lowercase();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let rest = &said[end + 4..];
    let chunked = field("transfer-encoding").is_some_and(|coding| coding == "chunked");
    Some(Said {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        ours: field("omx-request-id").is_some(),
        kind: field("content-type").unwrap_or_default().to_owned(),
        body: if chunked { unchunked(rest) } else { rest.to_vec() },
    })
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(line) = rest.windows(2).position(|part| part == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        let data = &rest[line + 2..];
        body.extend_from_slice(&data[..size.min(data.len())]);
        rest = data.get(size + 2..).unwrap_or_default();
    }
    body
}

/// The shape and status of a good answer, nothing where none was due, or what is wrong with it.
fn judge(wild: &Wild, said: Option<Said>) -> Result<Option<(Shape, u16)>, String> {
    let Some(said) = said else {
        return if wild.flaw == Flaw::BrokenOff { Ok(None) } else { Err("it was not answered".to_owned()) };
    };
    let text = || String::from_utf8_lossy(&said.body[..said.body.len().min(300)]).into_owned();
    let shape = shape(&wild.path);
    let told = (shape, said.status);
    if !said.ours {
        // No route has seen it; what reads heads says no more than a status.
        let heads = matches!(wild.flaw, Flaw::Head | Flaw::Path);
        return match heads && (400..500).contains(&said.status) {
            true => Ok(None),
            false => Err(format!("answered {} before any route, flaw {:?}", said.status, wild.flaw)),
        };
    }
    // A route that is not there yet says so.
    if said.status >= 500 && said.status != 501 {
        // Ollama has no better word for these.
        let theirs = said.status == 500 && THEIRS.iter().any(|words| text().contains(words));
        return if theirs { Ok(Some(told)) } else { Err(format!("{told:?}: {}", text())) };
    }
    if said.status < 400 || wild.method == "HEAD" {
        return Ok(Some(told));
    }
    // As Ollama's router says it, which knows no JSON.
    if shape != Shape::Ours && said.kind == "text/plain" && matches!(said.status, 404 | 405) {
        return Ok(Some(told));
    }
    let body: Value = match serde_json::from_slice(&said.body) {
        Ok(body) if said.kind.starts_with("application/json") => body,
        _ => return Err(format!("{told:?} is no JSON, but `{}`: {}", said.kind, text())),
    };
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let error = &body["error"];
    let fits = match shape {
        Shape::Ours => is_text(&error["code"]) && is_text(&error["message"]),
        Shape::Ollamas => is_text(error),
        Shape::OpenAis => is_text(&error["message"]) && is_text(&error["type"]),
    };
    if fits { Ok(Some(told)) } else { Err(format!("{told:?} is not in the shape of its route: {}", text())) }
}

fn shape(path: &str) -> Shape {
    let path = path.split('?').next().unwrap();
    if path.starts_with("/v1/") {
        Shape::OpenAis
    } else if path.starts_with("/api/") || path == "/" {
        Shape::Ollamas
    } else {
        Shape::Ours
    }
}
