//! How tokens are chosen and when they end, as both ways of asking say it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Error;

/// As the native API takes them.
#[derive(Debug, Serialize)]
pub(crate) struct Options {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) frequency_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) num_predict: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) presence_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<i64>,
    /// An empty list would take the model's own from it; so none is sent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) stop: Vec<String>,
    pub(crate) temperature: f64,
    pub(crate) top_p: f64,
}

/// Where nothing else is asked for; a model's own defaults do not count behind `/v1`.
pub(crate) const TEMPERATURE: f64 = 1.0;
pub(crate) const TOP_P: f64 = 1.0;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamOptions {
    include_usage: Option<bool>,
}

impl StreamOptions {
    pub(crate) fn include_usage(asked: Option<Self>) -> bool {
        asked.and_then(|asked| asked.include_usage).unwrap_or(false)
    }
}

/// One text or several. What is neither is as good as absent; what is no text in a list is the error given.
pub(crate) fn stop(asked: Option<Value>, odd: impl Fn(&Value) -> Result<(), Error>) -> Result<Vec<String>, Error> {
    match asked {
        Some(Value::String(text)) => Ok(vec![text]),
        Some(Value::Array(items)) => {
            let mut texts = Vec::with_capacity(items.len());
            for item in items {
                match item {
                    Value::String(text) => texts.push(text),
                    other => odd(&other)?,
                }
            }
            Ok(texts)
        }
        _ => Ok(Vec::new()),
    }
}

/// What Go calls it in an error.
pub(crate) fn go_type(value: Option<&Value>) -> &'static str {
    match value {
        None | Some(Value::Null) => "<nil>",
        Some(Value::Bool(_)) => "bool",
        Some(Value::Number(_)) => "float64",
        Some(Value::String(_)) => "string",
        Some(Value::Array(_)) => "[]interface {}",
        Some(Value::Object(_)) => "map[string]interface {}",
    }
}

/// For `#[serde(skip_serializing_if)]`, as the next.
pub(crate) fn is_zero(number: &i64) -> bool {
    *number == 0
}

pub(crate) fn is_false(flag: &bool) -> bool {
    !flag
}
