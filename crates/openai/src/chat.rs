//! `/v1/chat/completions`, by `/api/chat`.

mod answer;
mod messages;
#[cfg(test)]
mod tests;

use ollama::wire::{Message, decode, encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::native::Answer;
use crate::options::{Options, StreamOptions, TEMPERATURE, TOP_P, is_false, is_zero, stop};
use crate::stream::Retold;
use crate::{Error, Ids, Stream};

pub(crate) use answer::Chunks;

#[derive(Debug)]
pub struct Request {
    native: Native,
    include_usage: bool,
}

/// The body of `/api/chat`.
#[derive(Debug, Serialize)]
struct Native {
    model: String,
    messages: Vec<Message>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Value>,
    /// As they came: whoever answers passes over what it does not know in them, and says what is wrong with them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Value>,
    options: Options,
    #[serde(skip_serializing_if = "Option::is_none")]
    think: Option<Value>,
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
    messages: Option<Vec<messages::Incoming>>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    seed: Option<i64>,
    stop: Option<Value>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    response_format: Option<ResponseFormat>,
    tools: Option<Vec<Value>>,
    reasoning: Option<Reasoning>,
    reasoning_effort: Option<String>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    #[serde(rename = "_debug_render_only")]
    debug_render_only: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: Option<String>,
    json_schema: Option<JsonSchema>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JsonSchema {
    schema: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reasoning {
    effort: Option<String>,
}

impl Request {
    pub fn read(body: &[u8]) -> Result<Self, Error> {
        let body: Body = decode(body)?;
        let messages = body.messages.unwrap_or_default();
        if messages.is_empty() {
            return Err(Error::request("[] is too short - 'messages'"));
        }
        let messages = messages::translate(messages)?;
        let options = Options {
            frequency_penalty: body.frequency_penalty,
            num_predict: body.max_tokens,
            presence_penalty: body.presence_penalty,
            seed: body.seed,
            stop: stop(body.stop, |_| Ok(()))?,
            temperature: body.temperature.unwrap_or(TEMPERATURE),
            top_p: body.top_p.unwrap_or(TOP_P),
        };
        // The one that is an object wins, whatever it says.
        let effort = body.reasoning.map_or(body.reasoning_effort, |reasoning| reasoning.effort);
        let debug_render_only = body.debug_render_only.unwrap_or(false);
        let native = Native {
            model: body.model.unwrap_or_default(),
            messages,
            // What only renders is one answer, never a stream.
            stream: body.stream.unwrap_or(false) && !debug_render_only,
            format: body.response_format.and_then(ResponseFormat::native),
            tools: body.tools.unwrap_or_default(),
            options,
            think: think(effort.as_deref().unwrap_or_default())?,
            debug_render_only,
            logprobs: body.logprobs.unwrap_or(false),
            top_logprobs: body.top_logprobs.unwrap_or(0),
        };
        Ok(Self { native, include_usage: StreamOptions::include_usage(body.stream_options) })
    }

    /// What to ask `/api/chat`.
    pub fn native(&self) -> Vec<u8> {
        encode(&self.native)
    }

    /// Whether the answer is to be told by [`Self::stream`], else by [`Self::whole`].
    pub fn streams(&self) -> bool {
        self.native.stream
    }

    /// Retells a native answer that has come whole.
    pub fn whole(&self, native: &[u8], ids: &Ids) -> Result<Vec<u8>, Error> {
        Answer::read(native).map(|answer| answer::whole(&answer, ids))
    }

    /// Retells a native answer as it comes.
    pub fn stream(&self, ids: &Ids) -> Stream {
        Stream::new(Retold::Chat(Chunks::new(ids, self.include_usage)))
    }
}

impl ResponseFormat {
    fn native(self) -> Option<Value> {
        match self.kind.unwrap_or_default().trim().to_lowercase().as_str() {
            "json_object" => Some(Value::from("json")),
            "json_schema" => self.json_schema?.schema,
            _ => None,
        }
    }
}

/// OpenAI's scale reaches beyond Ollama's on both sides, and clients have added to it: the nearest step is taken.
fn think(effort: &str) -> Result<Option<Value>, Error> {
    Ok(Some(match effort {
        "" => return Ok(None),
        "none" => Value::from(false),
        "minimal" => Value::from("low"),
        "low" | "medium" | "high" | "max" => Value::from(effort),
        "xhigh" | "ultra" => Value::from("max"),
        _ => {
            let known = r#"must be "minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none""#;
            return Err(Error::request(format!("invalid reasoning value: {effort:?} ({known})")));
        }
    }))
}
