//! The messages of a conversation, from OpenAI's form to Ollama's.

use std::collections::HashMap;

use ollama::wire::{Message, ToolCall, ToolFunction};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::options::go_type;
use crate::{Error, base64};

/// In bytes. Each part of a message repeats its role, and each answer to a call the call's name; more of it than a
/// conversation can have is refused, lest a small request become a huge one.
const REPEATED_MAX: usize = 8 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Incoming {
    role: Option<String>,
    content: Option<Value>,
    reasoning: Option<String>,
    tool_calls: Option<Vec<Call>>,
    name: Option<String>,
    tool_call_id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Call {
    id: Option<String>,
    function: Option<Function>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Function {
    name: Option<String>,
    /// JSON within a text.
    arguments: Option<String>,
}

/// What says who speaks, the same in each part of a message.
struct Speaker {
    role: String,
    tool_name: String,
    tool_call_id: String,
}

/// A text, or an image or a sound in base64; the native API takes both under one name.
#[derive(Default)]
struct Part {
    text: String,
    media: Option<String>,
}

pub(super) fn translate(incoming: Vec<Incoming>) -> Result<Vec<Message>, Error> {
    let names = names_of_calls(&incoming);
    let mut messages = Vec::with_capacity(incoming.len());
    let mut repeated = 0;
    for message in incoming {
        message.translate(&names, &mut repeated, &mut messages)?;
    }
    Ok(messages)
}

/// From the id of a call to what it called. The last message that has an id counts.
fn names_of_calls(messages: &[Incoming]) -> HashMap<String, String> {
    let calls = messages.iter().filter_map(|message| message.tool_calls.as_ref());
    let named = |call: &Call| {
        let name = call.function.as_ref()?.name.clone()?;
        Some((call.id.clone()?, name))
    };
    calls.flat_map(|calls| calls.iter().rev()).filter_map(named).collect()
}

impl Incoming {
    /// Each part becomes a message of its own, as Ollama has it. Thoughts and calls belong to the last one; that every
    /// one of them keeps the name and id of the call it answers goes beyond Ollama, which drops them in parts.
    fn translate(
        self,
        names: &HashMap<String, String>,
        repeated: &mut usize,
        messages: &mut Vec<Message>,
    ) -> Result<(), Error> {
        let may_say_nothing = self.tool_calls.is_some();
        let calls = self.tool_calls.unwrap_or_default();
        let calls = calls.into_iter().map(Call::translate).collect::<Result<Vec<_>, _>>()?;
        let mut parts = match self.content {
            Some(Value::String(text)) => vec![Part { text, media: None }],
            Some(Value::Array(parts)) => parts.into_iter().map(Part::read).collect::<Result<_, _>>()?,
            _ if may_say_nothing => vec![Part::default()],
            other => {
                let found = go_type(other.as_ref());
                return Err(Error::request(format!("invalid message content type: {found}")));
            }
        };
        if parts.is_empty() && !calls.is_empty() {
            parts.push(Part::default());
        }
        let speaker = Speaker::new(self.role, self.name, self.tool_call_id, names);
        *repeated = repeated.saturating_add(speaker.repeated(parts.len()));
        if *repeated > REPEATED_MAX {
            return Err(Error::request("too many messages"));
        }
        let first = messages.len();
        messages.extend(parts.into_iter().map(|part| speaker.says(part)));
        if let Some(last) = messages[first..].last_mut() {
            last.thinking = self.reasoning.unwrap_or_default();
            last.tool_calls = calls;
        }
        Ok(())
    }
}

impl Speaker {
    fn new(
        role: Option<String>,
        name: Option<String>,
        tool_call_id: Option<String>,
        names: &HashMap<String, String>,
    ) -> Self {
        let role = role.unwrap_or_default().to_lowercase();
        let tool_call_id = tool_call_id.unwrap_or_default();
        let said = name.filter(|name| !name.is_empty());
        let known = || names.get(&tool_call_id).filter(|_| !tool_call_id.is_empty()).cloned();
        let tool_name = if role == "tool" { said.or_else(known).unwrap_or_default() } else { String::new() };
        Self { role, tool_name, tool_call_id }
    }

    /// Bytes that so many parts have beyond those of the request: the name mostly stands with the call alone.
    fn repeated(&self, parts: usize) -> usize {
        let own = self.role.len() + self.tool_call_id.len();
        own.saturating_mul(parts.saturating_sub(1)).saturating_add(self.tool_name.len().saturating_mul(parts))
    }

    fn says(&self, part: Part) -> Message {
        Message {
            role: self.role.clone(),
            content: part.text,
            images: part.media.into_iter().collect(),
            tool_name: self.tool_name.clone(),
            tool_call_id: self.tool_call_id.clone(),
            ..Message::default()
        }
    }
}

impl Call {
    fn translate(self) -> Result<ToolCall, Error> {
        let function = self.function.unwrap_or_default();
        let arguments: Option<Map<String, Value>> = serde_json::from_str(&function.arguments.unwrap_or_default())
            .map_err(|_| Error::request("invalid tool call arguments"))?;
        Ok(ToolCall {
            id: self.id.unwrap_or_default(),
            function: ToolFunction {
                index: 0,
                name: function.name.unwrap_or_default(),
                arguments: arguments.unwrap_or_default(),
            },
        })
    }
}

impl Part {
    fn read(part: Value) -> Result<Self, Error> {
        let invalid = || Error::request("invalid message format");
        let Value::Object(mut part) = part else {
            return Err(invalid());
        };
        match part.get("type").and_then(Value::as_str) {
            Some("text") => match part.remove("text") {
                Some(Value::String(text)) => Ok(Self { text, media: None }),
                _ => Err(invalid()),
            },
            Some("image_url") => {
                let url = match part.remove("image_url") {
                    Some(Value::Object(mut image)) => image.remove("url"),
                    other => other,
                };
                let Some(Value::String(url)) = url else {
                    return Err(invalid());
                };
                Ok(Self { text: String::new(), media: Some(image(&url)?) })
            }
            Some("input_audio") => {
                let Some(Value::Object(mut audio)) = part.remove("input_audio") else {
                    return Err(Error::request("invalid input_audio format"));
                };
                let Some(Value::String(data)) = audio.remove("data") else {
                    return Err(Error::request("invalid input_audio format: missing data"));
                };
                let data = base64::checked(data).map_err(|at| {
                    let what = "invalid input_audio base64 data: illegal base64 data at input byte";
                    Error::request(format!("{what} {at}"))
                })?;
                Ok(Self { text: String::new(), media: Some(data) })
            }
            _ => Err(invalid()),
        }
    }
}

/// Base64, as the native API takes it. Nothing is fetched: an address could be anybody's.
fn image(url: &str) -> Result<String, Error> {
    if url.starts_with("http://") || url.starts_with("https://") {
        let what = "image URLs are not currently supported, please use base64 encoded data instead";
        return Err(Error::request(what));
    }
    let invalid = || Error::request("invalid image input");
    let (kind, data) = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")).ok_or_else(invalid)?;
    if !matches!(kind, "" | "image/jpeg" | "image/jpg" | "image/png" | "image/webp") {
        return Err(invalid());
    }
    base64::checked(data.to_owned()).map_err(|_| invalid())
}
