//! `/api/chat`.

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::body::Answer;
use crate::fault::Fault;
use crate::infer::{Ask, Face, Fake, Turn, slowness};
use crate::json::Fields;
use crate::refusal::Refusal;

#[derive(Debug)]
struct Message {
    role: String,
    content: String,
    calls: usize,
}

pub(crate) async fn chat(fake: &Fake, body: &[u8], fault: Option<Fault>) -> Result<Answer, Refusal> {
    let arrived = Instant::now();
    let fields = Fields::read("ChatRequest", body)?;
    let messages = fields.list("messages", "[]api.Message")?;
    let messages = messages.iter().map(Message::read).collect::<Result<Vec<_>, _>>()?;
    let tools = fields.list("tools", "api.Tools")?;
    if fields.text("model")?.is_empty() {
        return Err(Refusal::bad_request("model is required"));
    }
    let ask = Ask::read(fake, &fields, "chat")?;
    if !tools.is_empty() && !ask.stocked.model.tools {
        return Err(Refusal::incapable(&ask.stocked.name, "tools"));
    }
    let Some(last) = messages.last() else {
        return ask.load(fake, Face::Chat, slowness(fault.as_ref())).await;
    };
    if last.role == "assistant" && last.calls > 0 {
        return Err(llama_server("Cannot continue an assistant message that contains tool calls."));
    }
    if messages.len() > 1 && messages[messages.len() - 2..].iter().all(|message| message.role == "assistant") {
        return Err(llama_server("Cannot have 2 or more assistant messages at the end of the list."));
    }
    let begun = if last.role == "assistant" { last.content.clone() } else { String::new() };
    // Who offers tools and asks is given a call; who brings its result, or something else, an answer.
    let calls = tools.first().filter(|_| last.role == "user").map(call).into_iter().collect();
    let turn = Turn { face: Face::Chat, prompt: rendered(&messages), begun, calls };
    ask.answer(fake, turn, fault, arrived).await
}

impl Message {
    fn read(value: &Value) -> Result<Self, Refusal> {
        let fields = Fields::inner("Message", value)?;
        let calls = fields.list("tool_calls", "[]api.ToolCall")?.len();
        Ok(Self { role: fields.text("role")?.to_lowercase(), content: fields.text("content")?, calls })
    }
}

/// Its words reach the client as they are, in a string.
fn llama_server(words: &str) -> Refusal {
    let body = json!({ "error": { "code": 400, "message": words, "type": "invalid_request_error" } });
    Refusal::bad_request(body.to_string())
}

/// A last message of the assistant's is left open; an empty one, as observed, leaves no beginning of an answer at all.
fn rendered(messages: &[Message]) -> String {
    let (closed, open) = match messages.split_last() {
        Some((last, before)) if last.role == "assistant" && last.content.is_empty() => (before, String::new()),
        Some((last, before)) if last.role == "assistant" => (before, format!("<|assistant|>{}", last.content)),
        _ => (messages, "<|assistant|>".to_owned()),
    };
    let closed: String =
        closed.iter().map(|Message { role, content, .. }| format!("<|{role}|>{content}<|end|>")).collect();
    closed + &open
}

/// A call of `tool` with something of the right type for each argument it insists on.
fn call(tool: &Value) -> Value {
    let function = &tool["function"];
    let parameters = &function["parameters"];
    let required = parameters["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    let arguments: Map<String, Value> = required
        .iter()
        .filter_map(Value::as_str)
        .map(|name| {
            let value = match parameters["properties"][name]["type"].as_str() {
                Some("integer" | "number") => json!(0),
                Some("boolean") => json!(false),
                Some("array") => json!([]),
                Some("object") => json!({}),
                _ => json!("t0"),
            };
            (name.to_owned(), value)
        })
        .collect();
    json!({ "id": "call_00000000", "function": { "index": 0, "name": function["name"], "arguments": arguments } })
}
