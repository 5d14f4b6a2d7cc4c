//! `/api/generate` and `/api/chat`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::json::or_default;
use super::value::nanoseconds;
use super::{KeepAlive, Think, Time};

/// What both routes take.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Common {
    #[serde(deserialize_with = "or_default")]
    pub model: String,
    pub stream: Option<bool>,
    pub format: Option<Value>,
    pub keep_alive: Option<KeepAlive>,
    #[serde(deserialize_with = "or_default")]
    pub options: Map<String, Value>,
    pub think: Option<Think>,
    pub truncate: Option<bool>,
    pub shift: Option<bool>,
    #[serde(rename = "_debug_render_only", deserialize_with = "or_default")]
    pub debug_render_only: bool,
    #[serde(deserialize_with = "or_default")]
    pub logprobs: bool,
    #[serde(deserialize_with = "or_default")]
    pub top_logprobs: i64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct GenerateRequest {
    #[serde(flatten)]
    pub common: Common,
    #[serde(deserialize_with = "or_default")]
    pub prompt: String,
    #[serde(deserialize_with = "or_default")]
    pub suffix: String,
    #[serde(deserialize_with = "or_default")]
    pub system: String,
    #[serde(deserialize_with = "or_default")]
    pub template: String,
    pub context: Option<Vec<u32>>,
    #[serde(deserialize_with = "or_default")]
    pub raw: bool,
    /// As they came, in base64.
    #[serde(deserialize_with = "or_default")]
    pub images: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ChatRequest {
    #[serde(flatten)]
    pub common: Common,
    #[serde(deserialize_with = "or_default")]
    pub messages: Vec<Message>,
    /// As they came: templates show them to the model field by field.
    #[serde(deserialize_with = "or_default")]
    pub tools: Vec<Value>,
}

impl Common {
    /// Unless it says otherwise.
    pub fn streams(&self) -> bool {
        self.stream.unwrap_or(true)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    #[serde(deserialize_with = "lower_case")]
    pub role: String,
    #[serde(deserialize_with = "or_default")]
    pub content: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub tool_name: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub tool_call_id: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolCall {
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub id: String,
    pub function: ToolFunction,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolFunction {
    #[serde(deserialize_with = "or_default")]
    pub index: u64,
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// In the order they were written.
    #[serde(deserialize_with = "or_default")]
    pub arguments: Map<String, Value>,
}

/// One chunk, or all of the answer.
#[derive(Debug, Clone, Serialize)]
pub struct GenerateResponse {
    pub model: String,
    pub created_at: Time,
    pub response: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    pub done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub context: Vec<u32>,
    #[serde(flatten)]
    pub metrics: Metrics,
    #[serde(rename = "_debug_info", skip_serializing_if = "Option::is_none")]
    pub debug_info: Option<DebugInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<LogprobEntry>,
}

/// One chunk, or all of the answer.
#[derive(Debug, Clone, Serialize)]
pub struct ChatResponse {
    pub model: String,
    pub created_at: Time,
    pub message: Message,
    pub done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_reason: Option<&'static str>,
    #[serde(rename = "_debug_info", skip_serializing_if = "Option::is_none")]
    pub debug_info: Option<DebugInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<LogprobEntry>,
    #[serde(flatten)]
    pub metrics: Metrics,
}

/// What is zero is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Metrics {
    #[serde(serialize_with = "nanoseconds", skip_serializing_if = "Duration::is_zero")]
    pub total_duration: Duration,
    #[serde(serialize_with = "nanoseconds", skip_serializing_if = "Duration::is_zero")]
    pub load_duration: Duration,
    #[serde(skip_serializing_if = "is_zero")]
    pub prompt_eval_count: u32,
    #[serde(serialize_with = "nanoseconds", skip_serializing_if = "Duration::is_zero")]
    pub prompt_eval_duration: Duration,
    #[serde(skip_serializing_if = "is_zero")]
    pub eval_count: u32,
    #[serde(serialize_with = "nanoseconds", skip_serializing_if = "Duration::is_zero")]
    pub eval_duration: Duration,
}

/// The prompt as the model would see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DebugInfo {
    pub rendered_template: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub image_count: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LogprobEntry {
    #[serde(flatten)]
    pub chosen: TokenLogprob,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_logprobs: Vec<TokenLogprob>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogprob {
    pub token: String,
    pub logprob: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bytes: Vec<u8>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn lower_case<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    or_default(from).map(|text: String| text.to_lowercase())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::json;

    use super::super::{decode, encode};
    use super::*;

    fn moment() -> Time {
        Time::of(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5))
    }

    fn written<T: Serialize>(value: &T) -> String {
        String::from_utf8(encode(value)).unwrap()
    }

    fn chunk(done: bool) -> ChatResponse {
        ChatResponse {
            model: "m".to_owned(),
            created_at: moment(),
            message: Message { role: "assistant".to_owned(), content: "hi".to_owned(), ..Message::default() },
            done,
            done_reason: done.then_some("stop"),
            debug_info: None,
            logprobs: Vec::new(),
            metrics: Metrics::default(),
        }
    }

    #[test]
    fn a_chunk_has_what_ollama_s_has_in_its_order() {
        let expected = r#"{"model":"m","created_at":"2023-11-14T22:13:20.000000005Z","message":{"role":"assistant","content":"hi"},"done":false}"#;
        assert_eq!(written(&chunk(false)), expected);
    }

    #[test]
    fn the_last_chunk_has_reason_and_metrics() {
        let metrics = Metrics {
            total_duration: Duration::from_millis(12),
            load_duration: Duration::from_micros(3),
            prompt_eval_count: 26,
            prompt_eval_duration: Duration::from_nanos(7),
            eval_count: 2,
            eval_duration: Duration::from_secs(1),
        };
        let expected = r#""done":true,"done_reason":"stop","total_duration":12000000,"load_duration":3000,"prompt_eval_count":26,"prompt_eval_duration":7,"eval_count":2,"eval_duration":1000000000}"#;
        assert!(written(&ChatResponse { metrics, ..chunk(true) }).ends_with(expected));
    }

    #[test]
    fn generate_puts_context_and_thinking_where_ollama_does() {
        let response = GenerateResponse {
            model: "m".to_owned(),
            created_at: moment(),
            response: String::new(),
            thinking: "hm".to_owned(),
            done: true,
            done_reason: Some("length"),
            context: vec![1, 2],
            metrics: Metrics { eval_count: 1, ..Metrics::default() },
            debug_info: Some(DebugInfo { rendered_template: "<s>".to_owned(), image_count: 0 }),
            logprobs: vec![LogprobEntry {
                chosen: TokenLogprob { token: "a".to_owned(), logprob: -0.5, bytes: vec![97] },
                top_logprobs: vec![TokenLogprob { token: "b".to_owned(), logprob: -1.0, bytes: Vec::new() }],
            }],
        };
        let expected = concat!(
            r#"{"model":"m","created_at":"2023-11-14T22:13:20.000000005Z","response":"","thinking":"hm","done":true,"#,
            r#""done_reason":"length","context":[1,2],"eval_count":1,"_debug_info":{"rendered_template":"\u003cs\u003e"},"#,
            r#""logprobs":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[{"token":"b","logprob":-1.0}]}]}"#,
        );
        assert_eq!(written(&response), expected);
    }

    #[test]
    fn messages_come_in_many_shapes() {
        let body = json!({
            "model": "m",
            "messages": [
                { "role": "USER", "content": "hi", "images": null, "unknown": 1 },
                { "role": "assistant", "content": null, "tool_calls": [
                    { "function": { "name": "f", "arguments": { "z": 1, "a": [2] } } },
                ] },
                { "role": "tool", "tool_name": "f", "content": "3" },
            ],
            "options": null,
            "stream": false,
            "_debug_render_only": true,
        });
        let request: ChatRequest = decode(body.to_string().as_bytes()).unwrap();
        assert_eq!((request.messages[0].role.as_str(), request.common.stream), ("user", Some(false)));
        assert!(request.common.debug_render_only && request.common.options.is_empty());
        let call = &request.messages[1].tool_calls[0].function;
        assert_eq!(call.arguments.keys().collect::<Vec<_>>(), ["z", "a"]);
        let expected = r#"{"role":"assistant","content":"","tool_calls":[{"function":{"index":0,"name":"f","arguments":{"z":1,"a":[2]}}}]}"#;
        assert_eq!(written(&request.messages[1]), expected);
    }

    #[test]
    fn a_generate_request_without_anything_is_one() {
        let request: GenerateRequest = decode(br#"{"prompt":null,"raw":null,"context":[1]}"#).unwrap();
        assert_eq!((request.prompt.as_str(), request.raw, request.context), ("", false, Some(vec![1])));
        assert!(decode::<GenerateRequest>(br#"{"context":[-1]}"#).is_err());
        assert!(decode::<ChatRequest>(br#"{"messages":"hi"}"#).is_err());
    }
}
