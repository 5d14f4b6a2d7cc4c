//! Listing, showing, copying and deleting models.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json::or_default;
use super::{Message, Time};
use crate::Digest;

#[derive(Debug, Clone, Serialize)]
pub struct Version {
    pub version: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct ListResponse {
    pub models: Vec<ListedModel>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ListedModel {
    pub name: String,
    pub model: String,
    pub modified_at: Time,
    pub size: u64,
    #[serde(serialize_with = "bare_hex")]
    pub digest: Digest,
    pub details: Details,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<&'static str>,
}

#[derive(Debug, Clone, Serialize)]
pub struct PsResponse {
    pub models: Vec<LoadedModel>,
}

#[derive(Debug, Clone, Serialize)]
pub struct LoadedModel {
    pub name: String,
    pub model: String,
    pub size: u64,
    #[serde(serialize_with = "bare_hex")]
    pub digest: Digest,
    pub details: Details,
    pub expires_at: Time,
    pub size_vram: u64,
    pub context_length: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Details {
    pub parent_model: String,
    pub format: String,
    pub family: String,
    /// `null` where the model's configuration has none.
    pub families: Option<Vec<String>>,
    pub parameter_size: String,
    pub quantization_level: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_length: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ShowRequest {
    #[serde(deserialize_with = "or_default")]
    model: String,
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    pub verbose: bool,
    #[serde(deserialize_with = "or_default")]
    pub system: String,
    #[serde(deserialize_with = "or_default")]
    pub options: Map<String, Value>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ShowResponse {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub license: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub modelfile: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub parameters: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub template: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub system: String,
    pub details: Details,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// Sorted, as Go writes maps.
    pub model_info: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<&'static str>,
    pub modified_at: Time,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub requires: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub shape: Vec<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CopyRequest {
    #[serde(deserialize_with = "or_default")]
    pub source: String,
    #[serde(deserialize_with = "or_default")]
    pub destination: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct DeleteRequest {
    #[serde(deserialize_with = "or_default")]
    model: String,
    #[serde(deserialize_with = "or_default")]
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PullRequest {
    #[serde(deserialize_with = "or_default")]
    model: String,
    #[serde(deserialize_with = "or_default")]
    name: String,
    stream: Option<bool>,
}

impl PullRequest {
    pub fn model(&self) -> &str {
        either(&self.model, &self.name)
    }

    /// Unless the request says otherwise.
    pub fn stream(&self) -> bool {
        self.stream.unwrap_or(true)
    }
}

impl ShowRequest {
    pub fn model(&self) -> &str {
        either(&self.model, &self.name)
    }
}

impl DeleteRequest {
    pub fn model(&self) -> &str {
        either(&self.model, &self.name)
    }
}

/// `name` is what `model` was called once.
fn either<'a>(model: &'a str, name: &'a str) -> &'a str {
    if model.is_empty() { name } else { model }
}

fn bare_hex<S: serde::Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&digest.hex())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::{decode, encode};
    use super::*;

    #[test]
    fn a_listed_model_is_written_as_ollama_writes_it() {
        let details = Details {
            format: "gguf".to_owned(),
            family: "llama".to_owned(),
            families: Some(vec!["llama".to_owned()]),
            parameter_size: "2.03M".to_owned(),
            quantization_level: "Q8_0".to_owned(),
            context_length: Some(2048),
            ..Details::default()
        };
        let listed = ListedModel {
            name: "m:latest".to_owned(),
            model: "m:latest".to_owned(),
            modified_at: Time::of(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
            size: 7,
            digest: Digest::of(b""),
            details,
            capabilities: vec!["completion"],
        };
        let expected = concat!(
            r#"{"models":[{"name":"m:latest","model":"m:latest","modified_at":"2023-11-14T22:13:20Z","size":7,"#,
            r#""digest":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","#,
            r#""details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"#,
            r#""parameter_size":"2.03M","quantization_level":"Q8_0","context_length":2048},"capabilities":["completion"]}]}"#,
        );
        assert_eq!(String::from_utf8(encode(&ListResponse { models: vec![listed] })).unwrap(), expected);
        assert_eq!(encode(&PsResponse { models: Vec::new() }), br#"{"models":[]}"#);
    }

    #[test]
    fn a_model_may_still_be_called_name() {
        for body in [r#"{"model":"m"}"#, r#"{"name":"m"}"#, r#"{"model":"m","name":"n"}"#, r#"{"model":"","name":"m"}"#]
        {
            assert_eq!(decode::<ShowRequest>(body.as_bytes()).unwrap().model(), "m", "{body}");
            assert_eq!(decode::<DeleteRequest>(body.as_bytes()).unwrap().model(), "m", "{body}");
        }
    }
}
