//! `/v1/completions`, by `/api/generate`: the model's template is applied, and what it thinks is not told.

use ollama::wire::{decode, encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::native::{Answer, Usage};
use crate::options::{Options, StreamOptions, TEMPERATURE, TOP_P, go_type, is_false, is_zero, stop};
use crate::stream::{Retold, event};
use crate::{Error, FINGERPRINT, Ids, Stream, written};

#[derive(Debug)]
pub struct Request {
    native: Native,
    include_usage: bool,
}

/// The body of `/api/generate`.
#[derive(Debug, Serialize)]
struct Native {
    model: String,
    prompt: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    suffix: String,
    stream: bool,
    options: Options,
    #[serde(rename = "_debug_render_only", skip_serializing_if = "is_false")]
    debug_render_only: bool,
    #[serde(skip_serializing_if = "is_false")]
    logprobs: bool,
    #[serde(skip_serializing_if = "is_zero")]
    top_logprobs: i64,
}

/// What is heeded of a request. `null` is as good as absent, and what is not named here is passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    model: Option<String>,
    prompt: Option<String>,
    suffix: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    seed: Option<i64>,
    stop: Option<Value>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    logprobs: Option<i64>,
    #[serde(rename = "_debug_render_only")]
    debug_render_only: Option<bool>,
}

#[derive(Serialize)]
struct Whole<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: [Choice<'a>; 1],
    usage: Usage,
}

/// Not in the order of the whole answer's fields, in Ollama neither.
#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    choices: &'a [Choice<'a>],
    model: &'a str,
    system_fingerprint: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct Choice<'a> {
    text: &'a str,
    index: u32,
    finish_reason: Option<&'a str>,
}

impl Request {
    pub fn read(body: &[u8]) -> Result<Self, Error> {
        let body: Body = decode(body)?;
        let odd_stop = |item: &Value| {
            let found = go_type(Some(item));
            Err(Error::request(format!("invalid type for 'stop' field: {found}")))
        };
        let options = Options {
            // Nought where nothing is asked for, whatever the model's own is.
            frequency_penalty: Some(body.frequency_penalty.unwrap_or(0.0)),
            num_predict: body.max_tokens,
            presence_penalty: Some(body.presence_penalty.unwrap_or(0.0)),
            seed: body.seed,
            stop: stop(body.stop, odd_stop)?,
            temperature: body.temperature.unwrap_or(TEMPERATURE),
            top_p: body.top_p.filter(|top_p| *top_p != 0.0).unwrap_or(TOP_P),
        };
        let top_logprobs = body.logprobs.unwrap_or(0).max(0);
        let debug_render_only = body.debug_render_only.unwrap_or(false);
        let native = Native {
            model: body.model.unwrap_or_default(),
            prompt: body.prompt.unwrap_or_default(),
            suffix: body.suffix.unwrap_or_default(),
            // What only renders is one answer, never a stream.
            stream: body.stream.unwrap_or(false) && !debug_render_only,
            options,
            debug_render_only,
            logprobs: top_logprobs > 0,
            top_logprobs,
        };
        Ok(Self { native, include_usage: StreamOptions::include_usage(body.stream_options) })
    }

    /// What to ask `/api/generate`.
    pub fn native(&self) -> Vec<u8> {
        encode(&self.native)
    }

    /// Whether the answer is to be told by [`Self::stream`], else by [`Self::whole`].
    pub fn streams(&self) -> bool {
        self.native.stream
    }

    /// Retells a native answer that has come whole.
    pub fn whole(&self, native: &[u8], ids: &Ids) -> Result<Vec<u8>, Error> {
        let answer = Answer::read(native)?;
        Ok(written(&Whole {
            id: &name(ids),
            object: OBJECT,
            created: ids.created,
            model: &answer.model,
            system_fingerprint: FINGERPRINT,
            choices: [Choice::of(&answer)],
            usage: answer.usage(),
        }))
    }

    /// Retells a native answer as it comes.
    pub fn stream(&self, ids: &Ids) -> Stream {
        let chunks = Chunks { id: name(ids), created: ids.created, include_usage: self.include_usage };
        Stream::new(Retold::Completion(chunks))
    }
}

const OBJECT: &str = "text_completion";

fn name(ids: &Ids) -> String {
    format!("cmpl-{}", ids.id)
}

impl<'a> Choice<'a> {
    fn of(answer: &'a Answer) -> Self {
        let finish_reason = Some(answer.done_reason.as_str()).filter(|reason| !reason.is_empty());
        Self { text: &answer.response, index: 0, finish_reason }
    }
}

#[derive(Debug)]
pub(crate) struct Chunks {
    id: String,
    created: i64,
    include_usage: bool,
}

impl Chunks {
    pub(crate) fn retell(&self, answer: &Answer, events: &mut Vec<u8>) {
        // Where usage is asked for every chunk has it, nought until the end.
        let none_yet = self.include_usage.then(Usage::default);
        event(&self.chunk(answer, &[Choice::of(answer)], none_yet), events);
        if answer.done && self.include_usage {
            event(&self.chunk(answer, &[], Some(answer.usage())), events);
        }
    }

    fn chunk<'a>(&'a self, answer: &'a Answer, choices: &'a [Choice<'a>], usage: Option<Usage>) -> Chunk<'a> {
        Chunk {
            id: &self.id,
            object: OBJECT,
            created: self.created,
            choices,
            model: &answer.model,
            system_fingerprint: FINGERPRINT,
            usage,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(body: &Value) -> Request {
        Request::read(body.to_string().as_bytes()).unwrap()
    }

    fn native(body: &Value) -> Value {
        serde_json::from_slice(&request(body).native()).unwrap()
    }

    fn ids() -> Ids {
        Ids { id: "7".to_owned(), created: 1_700_000_000 }
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_prompt_alone_gets_openai_s_defaults() {
        let expected = json!({
            "model": "m", "prompt": "hi", "stream": false,
            "options": { "frequency_penalty": 0.0, "presence_penalty": 0.0, "temperature": 1.0, "top_p": 1.0 },
        });
        assert_eq!(native(&json!({ "model": "m", "prompt": "hi", "best_of": 3, "echo": true, "user": "u" })), expected);
        let nulls = json!({ "model": "m", "prompt": "hi", "suffix": null, "stream": null, "stream_options": null,
            "max_tokens": null, "seed": null, "stop": null, "temperature": null, "top_p": null, "logprobs": null,
            "frequency_penalty": null, "presence_penalty": null });
        assert_eq!(native(&nulls), expected);
        assert_eq!(native(&json!({ "model": "m", "prompt": "hi", "top_p": 0, "logprobs": 0, "stop": [] })), expected);
    }

    #[test]
    fn what_is_asked_for_reaches_the_native_request() {
        let body = json!({ "model": "m", "prompt": "def f(", "suffix": "return", "stream": true, "max_tokens": 5,
            "seed": 1, "stop": "\n", "temperature": 0, "top_p": 0.5, "frequency_penalty": 0.1,
            "presence_penalty": 0.2, "logprobs": 3 });
        let expected = json!({
            "model": "m", "prompt": "def f(", "suffix": "return", "stream": true,
            "options": { "frequency_penalty": 0.1, "num_predict": 5, "presence_penalty": 0.2, "seed": 1,
                "stop": ["\n"], "temperature": 0.0, "top_p": 0.5 },
            "logprobs": true, "top_logprobs": 3,
        });
        assert_eq!(native(&body), expected);
        let rendered = json!({ "prompt": "hi", "stream": true, "_debug_render_only": true });
        assert_eq!(native(&rendered)["stream"], json!(false));
        assert!(!request(&rendered).streams() && request(&body).streams());
    }

    #[test]
    fn what_cannot_be_asked_for_is_refused() {
        for (body, words) in [
            ("", "EOF"),
            ("{", "unexpected EOF"),
            (r#"{"stop":["a",7]}"#, "invalid type for 'stop' field: float64"),
            (r#"{"stop":[null]}"#, "invalid type for 'stop' field: <nil>"),
            (r#"{"stop":[{}]}"#, "invalid type for 'stop' field: map[string]interface {}"),
        ] {
            let error = Request::read(body.as_bytes()).unwrap_err();
            assert_eq!((error.status(), error.to_string().as_str()), (400, words), "{body}");
        }
        assert!(Request::read(br#"{"prompt":["a","b"]}"#).is_err());
    }

    #[test]
    fn a_whole_answer_is_a_text_completion() {
        let answer = br#"{"model":"m","created_at":"2024-01-01T00:00:00Z","response":"<b>","thinking":"hm","done":true,
            "done_reason":"length","context":[1],"prompt_eval_count":4,"eval_count":3}"#;
        let expected = concat!(
            r#"{"id":"cmpl-7","object":"text_completion","created":1700000000,"model":"m","system_fingerprint":"fp_ollama","#,
            r#""choices":[{"text":"\u003cb\u003e","index":0,"finish_reason":"length"}],"#,
            r#""usage":{"prompt_tokens":4,"completion_tokens":3,"total_tokens":7}}"#,
            "\n",
        );
        assert_eq!(text(request(&json!({})).whole(answer, &ids()).unwrap()), expected);
    }

    #[test]
    fn a_stream_s_last_text_comes_with_the_reason() {
        let mut stream = request(&json!({ "stream": true })).stream(&ids());
        let native = concat!(
            r#"{"model":"m","created_at":"2024-01-01T00:00:00Z","response":"a","done":false}"#,
            "\n",
            r#"{"model":"m","response":"","done":true,"done_reason":"stop","prompt_eval_count":4,"eval_count":3}"#,
            "\n",
        );
        let start = r#"data: {"id":"cmpl-7","object":"text_completion","created":1700000000,"choices":"#;
        let model = r#","model":"m","system_fingerprint":"fp_ollama""#;
        let first = format!(r#"{start}[{{"text":"a","index":0,"finish_reason":null}}]{model}"#);
        let last = format!(r#"{start}[{{"text":"","index":0,"finish_reason":"stop"}}]{model}"#);
        let expected = format!("{first}}}\n\n{last}}}\n\ndata: [DONE]\n\n");
        assert_eq!(text(stream.feed(native.as_bytes())), expected);
        assert_eq!(text(stream.end()), "");

        let asked = json!({ "stream": true, "stream_options": { "include_usage": true } });
        let none_yet = r#","usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}"#;
        let usage = r#","usage":{"prompt_tokens":4,"completion_tokens":3,"total_tokens":7}}"#;
        let expected = format!("{first}{none_yet}\n\n{last}{none_yet}\n\n{start}[]{model}{usage}\n\ndata: [DONE]\n\n");
        assert_eq!(text(request(&asked).stream(&ids()).feed(native.as_bytes())), expected);
    }
}
