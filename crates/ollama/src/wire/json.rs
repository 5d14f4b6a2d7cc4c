//! Reading and writing JSON as Go does it.

use std::io;

use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde_json::error::Category;
use serde_json::{Map, Value};

/// Below it no body holds more than memory has room for.
const SHORT: usize = 1 << 20;
/// Of commas outside of texts: a value each, and each takes many times its byte.
pub(crate) const VALUES_MAX: usize = 1 << 20;

/// Why a body cannot be read, in Ollama's words where it has some for the case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBody {
    #[error("missing request body")]
    Missing,
    #[error("{0}")]
    Malformed(String),
}

/// Reads the first value of `body`, an object. What follows it is passed over, as is the case of its fields' names.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, InvalidBody> {
    T::deserialize(Value::Object(fields(body)?)).map_err(|error| InvalidBody::Malformed(error.to_string()))
}

/// The same where whatever stands in the fields will do. Their names are in lower case.
pub fn fields(body: &[u8]) -> Result<Map<String, Value>, InvalidBody> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(InvalidBody::Missing);
    }
    if body.len() > SHORT && values(body) > VALUES_MAX {
        return Err(InvalidBody::Malformed(format!("a request holds at most {VALUES_MAX} values")));
    }
    let malformed = |error: serde_json::Error| InvalidBody::Malformed(in_go_words(&error, body));
    let fields = Map::deserialize(&mut serde_json::Deserializer::from_slice(body)).map_err(malformed)?;
    let is_folded = fields.keys().all(|name| !name.bytes().any(|byte| byte.is_ascii_uppercase()));
    Ok(if is_folded { fields } else { fold(fields) })
}

fn values(body: &[u8]) -> usize {
    let (mut is_text, mut is_escaped, mut values) = (false, false, 0);
    for byte in body {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            b',' if !is_text => values += 1,
            _ => {}
        }
    }
    values
}

/// One line without its end. What a browser could take for markup is escaped, as Go does.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Escaping);
    value.serialize(&mut serializer).expect("what we send has text for keys and memory for a sink");
    bytes
}

/// For `#[serde(deserialize_with)]`: `null` is as good as absent.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// A name spelt exactly wins over one that differs in case.
fn fold(fields: Map<String, Value>) -> Map<String, Value> {
    let mut folded = Map::new();
    for (name, value) in fields {
        let lower = name.to_ascii_lowercase();
        if lower == name || !folded.contains_key(&lower) {
            folded.insert(lower, value);
        }
    }
    folded
}

/// Go names the character where it stopped; serde_json the line and column of it.
fn in_go_words(error: &serde_json::Error, body: &[u8]) -> String {
    let what = match error.classify() {
        Category::Eof => return "unexpected EOF".to_owned(),
        Category::Syntax => error.to_string(),
        Category::Data | Category::Io => return error.to_string(),
    };
    // From the parser's words to where Go's parser stands at that moment.
    let places = [
        ("expected value", "looking for beginning of value"),
        ("key must be a string", "looking for beginning of object key string"),
        ("trailing comma", "looking for beginning of object key string"),
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
    ];
    let place = places.iter().find(|(start, _)| what.starts_with(start)).map(|(_, place)| *place);
    match (place, found_at(error, body)) {
        (Some(place), Some(character)) => format!("invalid character '{character}' {place}"),
        _ => what,
    }
}

fn found_at(error: &serde_json::Error, body: &[u8]) -> Option<char> {
    let line = body.split(|byte| *byte == b'\n').nth(error.line().checked_sub(1)?)?;
    let rest = line.get(error.column().checked_sub(1)?..)?;
    String::from_utf8_lossy(rest).chars().next()
}

struct Escaping;

impl serde_json::ser::Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain_from = 0;
        let special = |character| matches!(character, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        for (at, found) in fragment.match_indices(special) {
            writer.write_all(&fragment.as_bytes()[plain_from..at])?;
            let code = found.chars().next().map_or(0, u32::from);
            write!(writer, "\\u{code:04x}")?;
            plain_from = at + found.len();
        }
        writer.write_all(&fragment.as_bytes()[plain_from..])
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Body {
        #[serde(default, deserialize_with = "or_default")]
        model: String,
    }

    fn model(body: &str) -> Result<String, String> {
        decode::<Body>(body.as_bytes()).map(|body| body.model).map_err(|error| error.to_string())
    }

    #[test]
    fn bodies_are_read_as_forgivingly_as_go_reads_them() {
        for body in [
            r#"{"model":"m"}"#,
            r#" {"MODEL":"m","x":[{}]} trailing"#,
            r#"{"Model":"M","model":"m"}"#,
            r#"{"model":"m","Model":"M"}"#,
        ] {
            assert_eq!(model(body).as_deref(), Ok("m"), "{body}");
        }
        assert_eq!(model(r#"{"model":null}"#).as_deref(), Ok(""));
        assert_eq!(model("{}").as_deref(), Ok(""));
    }

    #[test]
    fn what_is_wrong_is_said_in_go_s_words() {
        for (body, words) in [
            ("", "missing request body"),
            (" \n", "missing request body"),
            (r#"{"model":"#, "unexpected EOF"),
            ("x", "invalid character 'x' looking for beginning of value"),
            (r#"{"model":é}"#, "invalid character 'é' looking for beginning of value"),
            ("{\n\"a\":1,\n x}", "invalid character 'x' looking for beginning of object key string"),
            (r#"{"a":1,}"#, "invalid character '}' looking for beginning of object key string"),
            (r#"{"a" 1}"#, "invalid character '1' after object key"),
            (r#"{"a":1 "b":2}"#, "invalid character '\"' after object key:value pair"),
            (r#"{"a":[1 2]}"#, "invalid character '2' after array element"),
        ] {
            assert_eq!(model(body).unwrap_err(), words, "{body}");
        }
        assert!(model("[]").unwrap_err().contains("invalid type"));
        assert!(model(r#"{"model":7}"#).unwrap_err().contains("invalid type"));
        assert!(model(&format!("{{\"model\":{}", "[".repeat(100_000))).unwrap_err().contains("recursion"));
    }

    #[test]
    fn markup_is_escaped() {
        let text = "a<b>&\u{2028}\u{2029}\"\\\n é";
        assert_eq!(
            encode(&text),
            br#""a\u003cb\u003e\u0026\u2028\u2029\"\\\n "#.iter().chain("é\"".as_bytes()).copied().collect::<Vec<_>>()
        );
        assert_eq!(serde_json::from_slice::<String>(&encode(&text)).unwrap(), text);
    }
}
