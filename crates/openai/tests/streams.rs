//! Streams that fail, that come in pieces, that are no streams at all: what the client is told of each.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use openai::{Error, Ids, LINE_MAX, Stream, chat, completions, embeddings, models};
use serde_json::Value;

const CHAT: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"hi"},
    {"type":"image_url","image_url":{"url":"data:image/png;base64,Zm9v"}}]},
    {"role":"assistant","content":null,"tool_calls":[{"id":"1","function":{"name":"f","arguments":"{\"a\":[1]}"}}]},
    {"role":"tool","tool_call_id":"1","content":"x"}],"stream":true,"stream_options":{"include_usage":true},
    "stop":["a"],"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object"}}},
    "reasoning_effort":"low","tools":[{"type":"function","function":{"name":"f"}}]}"#;
const COMPLETION: &[u8] = br#"{"model":"m","prompt":"hi","stream":true,"stop":"a","logprobs":2}"#;
const EMBEDDING: &[u8] = br#"{"model":"m","input":["a","b"],"encoding_format":"base64","dimensions":2}"#;

const CHAT_ANSWER: &[u8] = concat!(
    r#"{"model":"m","message":{"role":"assistant","content":"","thinking":"hm"},"done":false}"#,
    "\n",
    r#"{"model":"m","message":{"role":"assistant","content":"é","tool_calls":[{"function":{"name":"f","arguments":{}}}]},"done":false}"#,
    "\n\n",
    r#"{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","eval_count":3}"#,
    "\n",
)
.as_bytes();
const COMPLETION_ANSWER: &[u8] = concat!(
    r#"{"model":"m","response":"é","done":false}"#,
    "\r\n",
    r#"{"model":"m","response":"","done":true,"done_reason":"stop","eval_count":3}"#,
    "\n",
)
.as_bytes();

fn streams() -> [(Stream, &'static [u8]); 2] {
    let ids = Ids { id: "7".to_owned(), created: 1 };
    [
        (chat::Request::read(CHAT).unwrap().stream(&ids), CHAT_ANSWER),
        (completions::Request::read(COMPLETION).unwrap().stream(&ids), COMPLETION_ANSWER),
    ]
}

fn told(stream: &mut Stream, pieces: &[&[u8]]) -> String {
    let mut events: Vec<u8> = pieces.iter().flat_map(|piece| stream.feed(piece)).collect();
    events.extend(stream.end());
    String::from_utf8(events).unwrap()
}

/// The words of the error a stream ends with.
fn error(events: &str) -> String {
    let last = events.trim_end().rsplit("\n\n").next().unwrap();
    let mut body: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(body["error"]["type"], "api_error", "{events}");
    serde_json::from_value(body["error"]["message"].take()).unwrap()
}

/// Events are JSON of one line, and only the last one is an end: `[DONE]` or an error.
fn assert_well_formed(events: &str) {
    let mut events = events.split_terminator("\n\n").peekable();
    assert!(events.peek().is_some(), "nothing was told");
    while let Some(event) = events.next() {
        let data = event.strip_prefix("data: ").unwrap();
        let ends = data == "[DONE]" || !serde_json::from_str::<Value>(data).unwrap()["error"].is_null();
        assert_eq!(ends, events.peek().is_none(), "{event}");
    }
}

#[test]
fn it_does_not_matter_where_a_stream_is_cut() {
    for (mut stream, native) in streams() {
        let expected = told(&mut stream, &[native]);
        assert!(expected.ends_with("data: [DONE]\n\n") && expected.contains('é'), "{expected}");
        assert_well_formed(&expected);
        for at in 0..native.len() {
            let (first, second) = native.split_at(at);
            for (mut stream, _) in streams().into_iter().filter(|(_, of)| *of == native) {
                assert_eq!(told(&mut stream, &[first, second]), expected, "cut at {at}");
            }
        }
        for (mut stream, _) in streams().into_iter().filter(|(_, of)| *of == native) {
            let bytes: Vec<&[u8]> = native.chunks(1).collect();
            assert_eq!(told(&mut stream, &bytes), expected);
        }
    }
}

#[test]
fn an_answer_without_an_end_of_line_is_whole_all_the_same() {
    for (mut stream, native) in streams() {
        let events = told(&mut stream, &[native.trim_ascii_end()]);
        assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    }
}

#[test]
fn an_error_on_the_way_is_told_and_nothing_after_it() {
    for (mut stream, native) in streams() {
        let first = &native[..=native.iter().position(|byte| *byte == b'\n').unwrap()];
        let events = told(&mut stream, &[first, b"{\"error\":\"the runner <crashed>\"}\n", native]);
        assert_eq!(error(&events), "the runner <crashed>");
        assert_well_formed(&events);
        assert!(events.matches("data: ").count() >= 2, "what came before it is lost: {events}");
    }
}

#[test]
fn an_end_that_is_none_is_told_as_an_error() {
    for (mut stream, native) in streams() {
        let first = &native[..=native.iter().position(|byte| *byte == b'\n').unwrap()];
        let events = told(&mut stream, &[first]);
        assert_eq!(error(&events), "the answer ended before it was complete");
        assert_well_formed(&events);
    }
    for (mut stream, _) in streams() {
        assert_eq!(error(&told(&mut stream, &[])), "the answer ended before it was complete");
    }
    for (mut stream, native) in streams() {
        let events = told(&mut stream, &[&native[..20]]);
        assert_eq!(error(&events), "failed to read the answer of the model's host");
    }
}

#[test]
fn a_line_may_be_long_but_not_endless() {
    for (mut stream, native) in streams() {
        let blanks = vec![b' '; LINE_MAX];
        assert!(stream.feed(&blanks).is_empty());
        let events = told(&mut stream, &[b"\n", native]);
        assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    }
    for (mut stream, native) in streams() {
        let blanks = vec![b' '; LINE_MAX];
        assert!(stream.feed(&blanks).is_empty());
        let events = told(&mut stream, &[b" ", b"\n", native]);
        assert_eq!(error(&events), format!("a line of the answer is longer than {LINE_MAX} bytes"));
        assert_well_formed(&events);
    }
    for (mut stream, native) in streams() {
        let line = [&vec![b' '; LINE_MAX + 1], b"\n".as_slice(), native].concat();
        assert_well_formed(&told(&mut stream, &[&line]));
    }
}

/// Numbers that are no more than scattered, the same in each run.
struct Scattered(u64);

impl Scattered {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// With some bytes replaced, left out, repeated or put elsewhere.
    fn spoilt(&mut self, good: &[u8]) -> Vec<u8> {
        const TELLING: &[u8] = b"{}[]\":,\\0-9eEtfn\n \xff\xc3\x00";
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes[at] = TELLING[self.below(TELLING.len())],
                1 => bytes.truncate(at.max(1)),
                2 => bytes.insert(at, TELLING[self.below(TELLING.len())]),
                _ => {
                    let end = at + self.below(bytes.len() - at);
                    let piece = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
            }
        }
        bytes
    }
}

#[test]
fn no_input_brings_a_panic_or_an_answer_that_is_none() {
    let ids = Ids { id: "7".to_owned(), created: 1 };
    let mut scattered = Scattered(0x9e37_79b9_7f4a_7c15);
    let mut refused = 0;
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let mut check = |told: Result<Vec<u8>, Error>| match told {
        Ok(body) => drop(json(&body)),
        Err(error) => {
            assert!((400..600).contains(&error.status()));
            assert!(json(&error.body())["error"]["message"].is_string());
            refused += 1;
        }
    };
    for _ in 0..4000 {
        check(chat::Request::read(&scattered.spoilt(CHAT)).map(|request| request.native()));
        check(completions::Request::read(&scattered.spoilt(COMPLETION)).map(|request| request.native()));
        let embedding = embeddings::Request::read(&scattered.spoilt(EMBEDDING));
        check(embedding.and_then(|request| request.whole(&scattered.spoilt(br#"{"embeddings":[[0.1,1e9],[2]]}"#))));
        let line = CHAT_ANSWER.split(|byte| *byte == b'\n').nth(1).unwrap();
        check(chat::Request::read(CHAT).unwrap().whole(&scattered.spoilt(line), &ids));
        check(models::list(&scattered.spoilt(br#"{"models":[{"name":"m","modified_at":"2023-11-14T22:13:20Z"}]}"#)));
        for (mut stream, native) in streams() {
            assert_well_formed(&told(&mut stream, &[&scattered.spoilt(native)]));
        }
    }
    assert!((2000..20_000).contains(&refused), "{refused} of 20,000 refused: that spoils too little or too much");
}
