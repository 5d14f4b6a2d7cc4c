//! JSON as Go's `encoding/json` reads and writes it, as far as Ollama's clients can tell.

use jiff::{Span, Timestamp};
use serde_json::{Map, Value};
use std::time::{Duration, SystemTime};

use crate::refusal::Refusal;

/// The fields of a request. They are found without regard to case, `null` is absent, and one of a wrong type is refused
/// in Go's words, which name the type of the request.
#[derive(Debug, Clone)]
pub(crate) struct Fields {
    kind: &'static str,
    map: Map<String, Value>,
}

impl Fields {
    pub(crate) fn read(kind: &'static str, body: &[u8]) -> Result<Self, Refusal> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Err(Refusal::bad_request("missing request body"));
        }
        // What follows the first value is never looked at.
        let value = serde_json::Deserializer::from_slice(body).into_iter::<Value>().next();
        match value {
            Some(Ok(Value::Object(map))) => Ok(Self { kind, map }),
            Some(Ok(other)) => Err(Refusal::bad_request(format!(
                "json: cannot unmarshal {} into Go value of type api.{kind}",
                go_kind(&other)
            ))),
            Some(Err(error)) => Err(Refusal::bad_request(syntax(&error, body))),
            None => Err(Refusal::bad_request("missing request body")),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Result<String, Refusal> {
        match self.get(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.wrong(name, other, "string")),
        }
    }

    /// The model a request is about, which older clients call its name.
    pub(crate) fn model(&self) -> Result<String, Refusal> {
        let model = self.text("model")?;
        if model.is_empty() { self.text("name") } else { Ok(model) }
    }

    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(name, other, "bool")),
        }
    }

    pub(crate) fn integer(&self, name: &str) -> Result<i64, Refusal> {
        match self.get(name) {
            None => Ok(0),
            Some(value) => value.as_i64().ok_or_else(|| self.wrong(name, value, "int")),
        }
    }

    pub(crate) fn object(&self, name: &str) -> Result<Map<String, Value>, Refusal> {
        match self.get(name) {
            None => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map.clone()),
            Some(other) => Err(self.wrong(name, other, "map[string]interface {}")),
        }
    }

    /// `of` is Go's type of the whole list.
    pub(crate) fn list(&self, name: &str, of: &str) -> Result<Vec<Value>, Refusal> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items.clone()),
            Some(other) => Err(self.wrong(name, other, of)),
        }
    }

    /// The same fields, as they came: an inner object of the type `kind`.
    pub(crate) fn inner(kind: &'static str, value: &Value) -> Result<Self, Refusal> {
        match value {
            Value::Object(map) => Ok(Self { kind, map: map.clone() }),
            other => Err(Refusal::bad_request(format!(
                "json: cannot unmarshal {} into Go struct field ChatRequest.messages of type api.{kind}",
                go_kind(other)
            ))),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        let folded = || self.map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        self.map.get(name).or_else(folded).filter(|value| !value.is_null())
    }

    fn wrong(&self, name: &str, value: &Value, of: &str) -> Refusal {
        let found = go_kind(value);
        Refusal::bad_request(format!(
            "json: cannot unmarshal {found} into Go struct field {}.{name} of type {of}",
            self.kind
        ))
    }
}

/// On one line. What a browser could take for markup is escaped; such characters stand in texts only.
pub(crate) fn encode(value: &Value) -> String {
    let mut text = value.to_string();
    for (character, escaped) in
        [("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u{2028}", "\\u2028"), ("\u{2029}", "\\u2029")]
    {
        if text.contains(character) {
            text = text.replace(character, escaped);
        }
    }
    text
}

pub(crate) fn now() -> String {
    Timestamp::now().to_string()
}

pub(crate) fn moment(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

/// Far away where Ollama means for ever.
pub(crate) fn in_the_future(by: Option<Duration>) -> String {
    let by = by.and_then(|by| Span::try_from(by).ok());
    by.and_then(|by| Timestamp::now().checked_add(by).ok())
        .map_or_else(|| "2318-01-01T00:00:00.000000001Z".to_owned(), |then| then.to_string())
}

/// Seconds as a number, or Go's text for a duration. Negative is for ever: `None`.
pub(crate) fn keep_alive(value: &Value) -> Result<Option<Duration>, Refusal> {
    match value {
        Value::Number(seconds) => {
            let seconds = seconds.as_f64().unwrap_or_default();
            Ok(Duration::try_from_secs_f64(seconds).ok())
        }
        Value::String(text) => go_duration(text)
            .map(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| Refusal::bad_request(format!("time: invalid duration \"{text}\""))),
        other => Err(Refusal::bad_request(format!("Unsupported type: '{}'", go_kind(other)))),
    }
}

/// In seconds: `1h30m`, `-1.5s`, `0`.
fn go_duration(text: &str) -> Option<f64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0.0);
    }
    let mut seconds = 0.0;
    while !rest.is_empty() || seconds == 0.0 {
        let digits = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|character: char| character.is_ascii_digit() || character == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = tail;
        if rest.is_empty() {
            break;
        }
    }
    Some(sign * seconds)
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Go tells an end from a wrong character, and names that; where it stood when it met it is told for a value only.
fn syntax(error: &serde_json::Error, body: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected EOF".to_owned();
    }
    let line = body.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let rest = line.get(error.column().saturating_sub(1)..).unwrap_or_default();
    let character = String::from_utf8_lossy(rest).chars().next().unwrap_or('\u{fffd}');
    let place = if error.to_string().starts_with("key must be a string") || error.to_string().starts_with("trailing") {
        "looking for beginning of object key string"
    } else {
        "looking for beginning of value"
    };
    format!("invalid character '{character}' {place}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(body: &str) -> Result<Fields, String> {
        Fields::read("ChatRequest", body.as_bytes()).map_err(|refusal| refusal.text)
    }

    #[test]
    fn fields_are_found_as_go_finds_them() {
        let read = fields(r#"{"MODEL":"m","stream":null,"x":1} {"#).unwrap();
        assert_eq!((read.text("model").unwrap().as_str(), read.flag("stream").unwrap()), ("m", None));
        let words = read.list("model", "[]api.Message").unwrap_err().text;
        assert_eq!(words, "json: cannot unmarshal string into Go struct field ChatRequest.model of type []api.Message");
    }

    #[test]
    fn bodies_that_are_none_are_refused_in_go_s_words() {
        for (body, words) in [
            ("", "missing request body"),
            ("\n", "missing request body"),
            ("{\"model\":", "unexpected EOF"),
            ("x", "invalid character 'x' looking for beginning of value"),
            ("[]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        ] {
            assert_eq!(fields(body).unwrap_err(), words, "{body}");
        }
    }

    #[test]
    fn keep_alive_is_a_number_or_a_duration() {
        let seconds = |value: Value| keep_alive(&value).map(|length| length.map(|length| length.as_secs_f64()));
        for (value, length) in [
            (json!(0), Some(0.0)),
            (json!(1.5), Some(1.5)),
            (json!(-1), None),
            (json!("5m"), Some(300.0)),
            (json!("1h30m"), Some(5400.0)),
            (json!("0"), Some(0.0)),
            (json!("-1s"), None),
        ] {
            assert_eq!(seconds(value.clone()).unwrap(), length, "{value}");
        }
        for wrong in [json!("soon"), json!("5"), json!(""), json!([])] {
            assert!(keep_alive(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn markup_is_escaped() {
        assert_eq!(encode(&json!({ "a": "<b>&\"" })), r#"{"a":"\u003cb\u003e\u0026\""}"#);
    }
}
