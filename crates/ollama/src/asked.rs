//! What a client asks of a model, as far as somebody in front of a backend wants to know. What is wrong with it beyond
//! that, the backend says itself.

use serde_json::{Map, Value};

use crate::wire::{self, InvalidBody};

/// A request to generate, chat, embed or show. A field of another type than it should have is as good as absent.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Whatever stands there, and nothing where nothing does.
    pub model: Value,
    pub streams: Option<bool>,
    pub options: Map<String, Value>,
    pub keep_alive: Option<Value>,
    pub system: String,
    pub template: String,
    pub prompt: String,
    pub suffix: String,
    pub images: usize,
    pub tools: Vec<Value>,
    pub messages: Vec<Value>,
    pub input: Value,
}

impl Asked {
    pub fn read(body: &[u8]) -> Result<Self, InvalidBody> {
        let mut fields = wire::fields(body)?;
        let mut field = |name: &str| fields.remove(name).unwrap_or_default();
        // Show and its like took it as `name` once.
        let model = match field("model") {
            Value::Null => field("name"),
            Value::String(empty) if empty.is_empty() => field("name"),
            model => model,
        };
        let mut text = |name| match field(name) {
            Value::String(text) => text,
            _ => String::new(),
        };
        let (system, template, prompt, suffix) = (text("system"), text("template"), text("prompt"), text("suffix"));
        let mut list = |name| match field(name) {
            Value::Array(items) => items,
            _ => Vec::new(),
        };
        let (tools, messages, images) = (list("tools"), list("messages"), list("images").len());
        let options = match field("options") {
            Value::Object(options) => options,
            _ => Map::new(),
        };
        let keep_alive = Some(field("keep_alive")).filter(|value| !value.is_null());
        let streams = field("stream").as_bool();
        let input = field("input");
        Ok(Self {
            model,
            streams,
            options,
            keep_alive,
            system,
            template,
            prompt,
            suffix,
            images,
            tools,
            messages,
            input,
        })
    }

    /// A whole number among the options.
    pub fn option(&self, name: &str) -> Option<i64> {
        let value = self.options.get(name)?;
        value.as_i64().or_else(|| value.as_f64().map(|value| value as i64))
    }

    /// Nothing is to be answered: the model is to be loaded, or unloaded.
    pub fn is_empty(&self) -> bool {
        self.prompt.is_empty() && self.messages.is_empty() && self.input.is_null()
    }

    /// The model is to be unloaded at once.
    pub fn unloads(&self) -> bool {
        let is_zero = |value: &Value| match value {
            Value::Number(seconds) => seconds.as_f64() == Some(0.0),
            Value::String(text) => matches!(text.trim(), "0" | "0s" | "0m" | "0h"),
            _ => false,
        };
        self.is_empty() && self.keep_alive.as_ref().is_some_and(is_zero)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::VALUES_MAX;

    fn read(body: &str) -> Asked {
        Asked::read(body.as_bytes()).unwrap()
    }

    #[test]
    fn fields_are_found_as_ollama_finds_them_and_wrong_ones_are_absent() {
        let asked =
            read(r#"{"Model":"m","STREAM":false,"messages":[{"role":"user"}],"options":{"num_predict":3.0},"x":1}"#);
        assert_eq!((asked.model.as_str(), asked.streams, asked.messages.len()), (Some("m"), Some(false), 1));
        assert_eq!((asked.option("num_predict"), asked.option("num_ctx")), (Some(3), None));
        let asked = read(r#"{"model":7,"stream":"no","messages":"hi","prompt":null,"options":[],"tools":{}}"#);
        assert_eq!((asked.model, asked.streams, asked.messages.len()), (Value::from(7), None, 0));
        assert!(asked.prompt.is_empty() && asked.options.is_empty() && asked.tools.is_empty());
        assert_eq!(read(r#"{"name":"old"}"#).model, "old");
        assert_eq!(read(r#"{"model":"","name":"old"}"#).model, "old");
        assert_eq!(read("{}").model, Value::Null);
        assert!(Asked::read(b"[]").is_err() && Asked::read(b"").is_err());
    }

    #[test]
    fn many_values_are_refused_before_they_take_their_memory_and_long_texts_are_not() {
        let many = format!(r#"{{"messages":[{}[]]}}"#, "[],".repeat(VALUES_MAX + 1));
        assert!(Asked::read(many.as_bytes()).is_err());
        let long = format!(r#"{{"prompt":"{}\"{}"}}"#, ",".repeat(VALUES_MAX), ",".repeat(VALUES_MAX));
        assert_eq!(read(&long).prompt.len(), 2 * VALUES_MAX + 1);
    }

    #[test]
    fn loading_and_unloading_ask_for_no_answer() {
        assert!(read(r#"{"model":"m"}"#).is_empty() && !read(r#"{"model":"m"}"#).unloads());
        assert!(read(r#"{"model":"m","messages":[],"keep_alive":0}"#).unloads());
        assert!(read(r#"{"model":"m","keep_alive":"0"}"#).unloads());
        assert!(!read(r#"{"model":"m","prompt":"hi","keep_alive":0}"#).unloads());
        assert!(!read(r#"{"model":"m","keep_alive":"5m"}"#).unloads());
    }
}
