//! `/api/embed`, and `/api/embeddings` for those who still use it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::KeepAlive;
use super::json::or_default;
use super::value::nanoseconds;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct EmbedRequest {
    #[serde(deserialize_with = "or_default")]
    pub model: String,
    input: Option<Value>,
    pub truncate: Option<bool>,
    #[serde(deserialize_with = "or_default")]
    pub dimensions: i64,
    pub keep_alive: Option<KeepAlive>,
    #[serde(deserialize_with = "or_default")]
    pub options: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid input type")]
pub struct InvalidInput;

#[derive(Debug, Clone, Serialize)]
pub struct EmbedResponse {
    pub model: String,
    pub embeddings: Vec<Vec<f32>>,
    #[serde(serialize_with = "nanoseconds", skip_serializing_if = "Duration::is_zero")]
    pub total_duration: Duration,
    #[serde(serialize_with = "nanoseconds", skip_serializing_if = "Duration::is_zero")]
    pub load_duration: Duration,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_eval_count: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct EmbeddingsRequest {
    #[serde(deserialize_with = "or_default")]
    pub model: String,
    #[serde(deserialize_with = "or_default")]
    pub prompt: String,
    pub keep_alive: Option<KeepAlive>,
    #[serde(deserialize_with = "or_default")]
    pub options: Map<String, Value>,
}

#[derive(Debug, Clone, Serialize)]
pub struct EmbeddingsResponse {
    pub embedding: Vec<f32>,
}

impl EmbedRequest {
    /// The texts asked for: a single empty one, like none, asks for nothing.
    pub fn inputs(&self) -> Result<Vec<String>, InvalidInput> {
        match &self.input {
            None => Ok(Vec::new()),
            Some(Value::String(text)) if text.is_empty() => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(items)) => {
                items.iter().map(|item| item.as_str().map(str::to_owned).ok_or(InvalidInput)).collect()
            }
            Some(_) => Err(InvalidInput),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{decode, encode};
    use super::*;

    #[test]
    fn input_is_one_text_or_several() {
        let inputs = |body: &str| decode::<EmbedRequest>(body.as_bytes()).unwrap().inputs();
        assert_eq!(inputs(r#"{"input":"a"}"#), Ok(vec!["a".to_owned()]));
        assert_eq!(inputs(r#"{"input":["a",""]}"#), Ok(vec!["a".to_owned(), String::new()]));
        for nothing in ["{}", r#"{"input":null}"#, r#"{"input":""}"#, r#"{"input":[]}"#] {
            assert_eq!(inputs(nothing), Ok(Vec::new()), "{nothing}");
        }
        for wrong in [r#"{"input":7}"#, r#"{"input":["a",7]}"#, r#"{"input":{}}"#] {
            assert_eq!(inputs(wrong), Err(InvalidInput), "{wrong}");
        }
    }

    #[test]
    fn nothing_asked_for_is_answered_by_an_empty_list() {
        let nothing = EmbedResponse {
            model: "m".to_owned(),
            embeddings: Vec::new(),
            total_duration: Duration::ZERO,
            load_duration: Duration::ZERO,
            prompt_eval_count: None,
        };
        assert_eq!(encode(&nothing), br#"{"model":"m","embeddings":[]}"#);
    }
}
