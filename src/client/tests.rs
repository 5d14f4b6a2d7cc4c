use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::{io::Read, io::Write, thread};

use super::*;

/// A data folder with a node that gives one answer, word for word, and returns what it was asked.
struct FakeNode {
    folder: tempfile::TempDir,
    asked: thread::JoinHandle<String>,
}

impl FakeNode {
    fn answering(answer: &'static str) -> Self {
        let folder = folder();
        let listener = UnixListener::bind(folder.path().join("omx.sock")).unwrap();
        let asked = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = read_request(&mut stream);
            stream.write_all(answer.as_bytes()).unwrap();
            request
        });
        Self { folder, asked }
    }

    fn client(&self) -> Client {
        Client::of(self.folder.path()).unwrap()
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let run = r#"{"api":"127.0.0.1:1","mesh":[],"bulk":"127.0.0.1:2","pid":7,"socket":"omx.sock"}"#;
    fs::write(folder.path().join("run.json"), run).unwrap();
    folder
}

/// Headers and, where they promise one, the body.
fn read_request(stream: &mut UnixStream) -> String {
    let mut read = Vec::new();
    let mut byte = [0];
    let mut missing = None;
    while missing != Some(0) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "the client hung up");
        read.push(byte[0]);
        missing = match missing {
            Some(missing) => Some(missing - 1),
            None if read.ends_with(b"\r\n\r\n") => {
                let head = String::from_utf8_lossy(&read).to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                Some(length.unwrap_or(0_usize))
            }
            None => None,
        };
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn a_question_and_its_answer() {
    let node = FakeNode::answering("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"index\": 7}");
    let body = gateway::wire::SetValue { value: "3".to_owned(), expect: None };
    let answer = node.client().send(Method::PUT, "/omx/v1/config/voters.max", &body).await.unwrap();
    assert_eq!(answer.text(), "{\"index\": 7}");
    assert_eq!(answer.read::<gateway::wire::Done>().unwrap().index, 7);
    assert!(matches!(answer.read::<gateway::wire::Token>(), Err(Error::Answer { .. })));
    let asked = node.asked.join().unwrap();
    assert!(asked.starts_with("PUT /omx/v1/config/voters.max HTTP/1.1\r\nhost: localhost\r\n"), "{asked}");
    assert!(asked.contains("content-type: application/json\r\n") && asked.ends_with("{\"value\":\"3\"}"), "{asked}");
}

#[tokio::test]
async fn a_refusal_keeps_the_nodes_words_and_advice() {
    let node = FakeNode::answering(
        "HTTP/1.1 503 Service Unavailable\r\n\r\n\
         {\"error\": {\"code\": \"no_leader\", \"message\": \"read-only\", \"hint\": \"wake one of: attic\"}}",
    );
    let error = node.client().get("/omx/v1/nodes").await.unwrap_err();
    assert_eq!(error.exit(), Exit::NoQuorum);
    assert_eq!(Failure::from(error).to_string(), "error: read-only\nhint: wake one of: attic\n");
}

#[tokio::test]
async fn a_refusal_without_words_is_told_by_its_status() {
    let node = FakeNode::answering("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
    let error = node.client().get("/omx/v1/nodes").await.unwrap_err();
    assert_eq!(error.exit(), Exit::NotPermitted);
    assert!(error.to_string().contains("403"), "{error}");
}

#[tokio::test]
async fn a_folder_without_a_node_says_how_to_start_one() {
    let empty = tempfile::tempdir().unwrap();
    let never_ran = Client::of(empty.path()).unwrap_err();
    let killed = folder();
    drop(UnixListener::bind(killed.path().join("omx.sock")).unwrap());
    let gone = Client::of(killed.path()).unwrap().get("/").await.unwrap_err();
    for error in [never_ran, gone] {
        assert_eq!(error.exit(), Exit::NotRunning, "{error:?}");
        let shown = Failure::from(error).to_string();
        assert!(shown.starts_with("error: no node is running on `"), "{shown}");
        assert!(shown.contains("hint: start one with `omx --data-dir "), "{shown}");
    }
}

#[tokio::test]
async fn an_answer_cut_short_may_have_been_carried_out() {
    let node = FakeNode::answering("HTTP/1.1 200 OK\r\ncontent-le");
    let error = node.client().delete("/omx/v1/nodes/attic").await.unwrap_err();
    assert_eq!(error.exit(), Exit::Unknown, "{error:?}");
}

#[tokio::test]
async fn events_come_one_by_one_until_the_node_ends_them() {
    let node = FakeNode::answering(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: hello\n\nevent: up\ndata: {}\n\nevent: down\ndata: {}\n\n",
    );
    let mut events = node.client().follow("/omx/v1/events", Some(17)).await.unwrap();
    let mut kinds = Vec::new();
    while let Some(some) = events.next().await.unwrap() {
        kinds.extend(some.into_iter().map(|event| event.kind));
    }
    assert_eq!(kinds, ["up", "down"]);
    assert!(node.asked.join().unwrap().contains("last-event-id: 17\r\n"));
}

#[test]
fn a_file_that_is_no_run_file_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("run.json"), "{}").unwrap();
    assert!(matches!(Client::of(folder.path()), Err(Error::RunFile(_))));
}

#[test]
fn a_segment_is_one_segment_whatever_it_holds() {
    assert_eq!(segment("voters.max"), "voters.max");
    assert_eq!(segment("../nodes?x#y z%ü"), "..%2Fnodes%3Fx%23y%20z%25%C3%BC");
}

#[test]
fn refusals_have_their_exit_codes() {
    let cases = [
        (503, "no_leader", Exit::NoQuorum),
        (504, "unknown_outcome", Exit::Unknown),
        (504, "deadline", Exit::Unknown),
        (401, "key", Exit::NotPermitted),
        (403, "denied", Exit::NotPermitted),
        (404, "unknown_node", Exit::Refused),
        (409, "conflict", Exit::Refused),
        (400, "bad_value", Exit::Refused),
        (507, "no_space", Exit::Refused),
        (429, "slow_down", Exit::General),
        (500, "internal", Exit::General),
    ];
    for (status, code, expected) in cases {
        assert_eq!(exit_of(StatusCode::from_u16(status).unwrap(), code), expected, "{status} {code}");
    }
}
