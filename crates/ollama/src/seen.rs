//! What another Ollama answers, as far as somebody in front of it wants to know. Read forgivingly: releases differ in
//! what they say, and what is missing is as good as zero.

use std::fmt;
use std::time::Duration;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Version {
    pub version: String,
}

/// `GET /api/tags`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Tags {
    #[serde(deserialize_with = "or_default")]
    pub models: Vec<Listed>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Listed {
    pub name: String,
    /// Bare hex.
    pub digest: String,
    pub size: u64,
    /// When the name came to mean this, in milliseconds since 1970.
    #[serde(rename = "modified_at", deserialize_with = "milliseconds")]
    pub modified_at_ms: u64,
    /// Set where the model runs somewhere else, as Ollama's cloud models do.
    #[serde(deserialize_with = "or_default")]
    pub remote_host: String,
    pub details: Details,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Details {
    #[serde(deserialize_with = "or_default")]
    pub family: String,
    #[serde(deserialize_with = "or_default")]
    pub families: Vec<String>,
}

/// `GET /api/ps`: what is loaded or being loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Ps {
    #[serde(deserialize_with = "or_default")]
    pub models: Vec<Loaded>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Loaded {
    pub name: String,
    pub digest: String,
    pub size: u64,
    pub size_vram: u64,
    /// Of each slot.
    #[serde(deserialize_with = "or_default")]
    pub context_length: u32,
}

/// The line that ends an answer, or all of an answer that is not streamed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Last {
    pub done: bool,
    #[serde(deserialize_with = "nanoseconds")]
    pub total_duration: Duration,
    #[serde(deserialize_with = "nanoseconds")]
    pub load_duration: Duration,
    /// Cached tokens included.
    pub prompt_eval_count: u32,
    #[serde(deserialize_with = "nanoseconds")]
    pub prompt_eval_duration: Duration,
    pub eval_count: u32,
    #[serde(deserialize_with = "nanoseconds")]
    pub eval_duration: Duration,
}

/// Names whose models Ollama never runs itself: it hands them to its cloud.
pub fn is_cloud(name: &str) -> bool {
    name.ends_with(":cloud") || name.rsplit_once(':').is_some_and(|(_, tag)| tag.ends_with("-cloud"))
}

/// The `num_ctx` a request asks for. Reads past all else without keeping it.
pub fn num_ctx(body: &[u8]) -> Option<u64> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let options = reader.deserialize_map(Options).ok()?;
    let asked = options.get("num_ctx")?;
    asked.as_u64().or_else(|| asked.as_f64().filter(|asked| *asked >= 1.0).map(|asked| asked as u64))
}

/// The same request with this `num_ctx` and nothing else changed; `None` where it is no request.
pub fn with_num_ctx(body: &[u8], num_ctx: u32) -> Option<Vec<u8>> {
    let mut fields: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let name = fields.keys().rfind(|name| *name == "options").or_else(|| fields.keys().rfind(|name| is_options(name)));
    let name = name.cloned().unwrap_or_else(|| "options".to_owned());
    let options = fields.entry(name).or_insert(Value::Null);
    if options.is_null() {
        *options = Value::Object(Map::new());
    }
    options.as_object_mut()?.insert("num_ctx".to_owned(), num_ctx.into());
    serde_json::to_vec(&fields).ok()
}

fn is_options(name: &str) -> bool {
    name.eq_ignore_ascii_case("options")
}

/// Finds the `options` of a request as Ollama does: whatever the case, the exact spelling first.
struct Options;

impl<'de> Visitor<'de> for Options {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        let mut is_exact = false;
        while let Some(name) = fields.next_key::<std::borrow::Cow<'_, str>>()? {
            if is_options(&name) && (name == "options" || !is_exact) {
                is_exact = name == "options";
                found = fields.next_value::<Option<Map<String, Value>>>()?;
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found.unwrap_or_default())
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// Negative ones, from a clock that was set, are none.
fn nanoseconds<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let nanoseconds = Option::<i64>::deserialize(from)?.unwrap_or_default();
    Ok(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or_default()))
}

/// Of a date with its offset; one that cannot be read is as good as none.
fn milliseconds<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = Option::<String>::deserialize(from)?.unwrap_or_default();
    let moment = text.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_millisecond);
    Ok(moment.ok().and_then(|moment| u64::try_from(moment).ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_whatever_is_missing_or_new() {
        let tags: Tags = serde_json::from_str(
            r#"{"models":[{"name":"m:latest","digest":"ab","size":7,"modified_at":"2023-11-14T23:13:20+01:00","new":{},"details":{"family":"llama","families":null}},
                {"name":"big:cloud","remote_host":"https://ollama.com:443"}]}"#,
        )
        .unwrap();
        assert_eq!((tags.models[0].size, tags.models[0].details.family.as_str()), (7, "llama"));
        assert_eq!(tags.models[1].remote_host, "https://ollama.com:443");
        let none: Ps = serde_json::from_str(r#"{"models":null}"#).unwrap();
        assert!(none.models.is_empty());
    }

    #[test]
    fn the_last_line_gives_its_timings_and_others_none() {
        let last =
            br#"{"model":"m","done":true,"total_duration":5000000000,"prompt_eval_count":26,"eval_duration":-1}"#;
        let last: Last = serde_json::from_slice(last).unwrap();
        assert_eq!((last.done, last.total_duration, last.prompt_eval_count), (true, Duration::from_secs(5), 26));
        assert_eq!((last.eval_duration, last.load_duration), (Duration::ZERO, Duration::ZERO));
        assert!(!serde_json::from_str::<Last>(r#"{"embedding":[0.5]}"#).unwrap().done);
    }

    #[test]
    fn cloud_models_are_known_by_their_names() {
        assert!(is_cloud("gpt-oss:cloud") && is_cloud("gpt-oss:120b-cloud"));
        assert!(!is_cloud("cloud") && !is_cloud("my-cloud:latest") && !is_cloud("cloud:7b"));
    }

    #[test]
    fn the_context_asked_for_is_found_as_ollama_finds_it() {
        for (body, found) in [
            (r#"{"model":"m","options":{"num_ctx":8192}}"#, Some(8192)),
            (r#"{"OPTIONS":{"num_ctx":5},"prompt":"{\"options\":{\"num_ctx\":1}}"}"#, Some(5)),
            (r#"{"options":{"num_ctx":5},"Options":{"num_ctx":6}}"#, Some(5)),
            (r#"{"options":{"num_ctx":4096.0}}"#, Some(4096)),
            (r#"{"options":{"num_ctx":-1}}"#, None),
            (r#"{"options":null}"#, None),
            (r#"{"options":[]}"#, None),
            (r#"{"num_ctx":7}"#, None),
            ("[]", None),
            ("", None),
        ] {
            assert_eq!(num_ctx(body.as_bytes()), found, "{body}");
        }
    }

    #[test]
    fn a_context_is_set_and_all_else_stays() {
        for (body, set) in [
            (r#"{"model":"m","unknown":1.5}"#, r#"{"model":"m","unknown":1.5,"options":{"num_ctx":9}}"#),
            (r#"{"options":{"seed":7,"num_ctx":5},"b":[]}"#, r#"{"options":{"seed":7,"num_ctx":9},"b":[]}"#),
            (r#"{"Options":{"seed":7}}"#, r#"{"Options":{"seed":7,"num_ctx":9}}"#),
            (r#"{"options":null}"#, r#"{"options":{"num_ctx":9}}"#),
        ] {
            assert_eq!(with_num_ctx(body.as_bytes(), 9).unwrap(), set.as_bytes());
        }
        assert_eq!(with_num_ctx(b"{\"options\":3}", 9), None);
        assert_eq!(with_num_ctx(b"nonsense", 9), None);
    }
}
