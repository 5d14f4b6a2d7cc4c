//! `/v1/embeddings`, by `/api/embed`.

use ollama::wire::{decode, encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, base64, written};

#[derive(Debug)]
pub struct Request {
    native: Native,
    encoding: Encoding,
}

/// The body of `/api/embed`.
#[derive(Debug, Serialize)]
struct Native {
    model: String,
    input: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<i64>,
}

#[derive(Debug, Clone, Copy)]
enum Encoding {
    Float,
    /// Of little-endian 32-bit floats; what OpenAI's own clients ask for unless told otherwise.
    Base64,
}

/// What is heeded of a request. `null` is as good as absent, and what is not named here is passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    model: Option<String>,
    input: Option<Value>,
    dimensions: Option<i64>,
    encoding_format: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    embeddings: Vec<Vec<f32>>,
    #[serde(default)]
    prompt_eval_count: u64,
}

#[derive(Serialize)]
struct Whole<'a> {
    object: &'static str,
    data: Vec<Embedding<'a>>,
    /// As it was asked for.
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Embedding<'a> {
    object: &'static str,
    embedding: Vector<'a>,
    index: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector<'a> {
    Float(&'a [f32]),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

impl Request {
    pub fn read(body: &[u8]) -> Result<Self, Error> {
        let body: Body = decode(body)?;
        let encoding = Encoding::read(body.encoding_format.as_deref().unwrap_or_default())?;
        // Whatever else it is the native API judges, such as tokens in place of texts.
        let input = match body.input {
            None => return Err(Error::request("invalid input")),
            Some(Value::Array(items)) if items.is_empty() => return Err(Error::request("invalid input")),
            // The native API takes an empty text alone for none.
            Some(Value::String(text)) if text.is_empty() => Value::from(vec![""]),
            Some(input) => input,
        };
        let dimensions = body.dimensions.filter(|dimensions| *dimensions != 0);
        Ok(Self { native: Native { model: body.model.unwrap_or_default(), input, dimensions }, encoding })
    }

    /// What to ask `/api/embed`.
    pub fn native(&self) -> Vec<u8> {
        encode(&self.native)
    }

    pub fn whole(&self, native: &[u8]) -> Result<Vec<u8>, Error> {
        let answer: Answer = serde_json::from_slice(native).map_err(Error::Answer)?;
        let vectors = answer.embeddings.iter().map(|floats| self.encoding.vector(floats));
        let data = vectors.enumerate().map(|(index, embedding)| Embedding { object: "embedding", embedding, index });
        Ok(written(&Whole {
            object: "list",
            data: data.collect(),
            model: &self.native.model,
            usage: Usage { prompt_tokens: answer.prompt_eval_count, total_tokens: answer.prompt_eval_count },
        }))
    }
}

impl Encoding {
    fn read(name: &str) -> Result<Self, Error> {
        match name.to_ascii_lowercase().as_str() {
            "" | "float" => Ok(Self::Float),
            "base64" => Ok(Self::Base64),
            _ => Err(Error::request(format!(
                "Invalid value for 'encoding_format' = {name}. Supported values: ['float', 'base64']."
            ))),
        }
    }

    fn vector(self, floats: &[f32]) -> Vector<'_> {
        match self {
            Self::Float => Vector::Float(floats),
            Self::Base64 => {
                let bytes: Vec<u8> = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
                Vector::Base64(base64::encode(&bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn native(body: &Value) -> Value {
        serde_json::from_slice(&Request::read(body.to_string().as_bytes()).unwrap().native()).unwrap()
    }

    fn whole(encoding_format: &str, answer: &str) -> Result<String, String> {
        let body = json!({ "model": "M", "input": "a", "encoding_format": encoding_format });
        let whole = Request::read(body.to_string().as_bytes()).unwrap().whole(answer.as_bytes());
        whole.map(|body| String::from_utf8(body).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn one_text_or_several_are_passed_on() {
        assert_eq!(native(&json!({ "model": "m", "input": "a", "user": "u" })), json!({ "model": "m", "input": "a" }));
        assert_eq!(native(&json!({ "model": "m", "input": ["a", ""] })), json!({ "model": "m", "input": ["a", ""] }));
        assert_eq!(native(&json!({ "model": "m", "input": "" })), json!({ "model": "m", "input": [""] }));
        assert_eq!(native(&json!({ "input": [1, 2] })), json!({ "model": "", "input": [1, 2] }));
        let sized = json!({ "model": "m", "input": "a", "dimensions": 8, "encoding_format": "BASE64" });
        assert_eq!(native(&sized), json!({ "model": "m", "input": "a", "dimensions": 8 }));
    }

    #[test]
    fn nothing_to_embed_is_refused() {
        let error = |body: &str| Request::read(body.as_bytes()).unwrap_err().to_string();
        for nothing in ["{}", r#"{"input":null}"#, r#"{"input":[]}"#] {
            assert_eq!(error(nothing), "invalid input", "{nothing}");
        }
        let words = "Invalid value for 'encoding_format' = hex. Supported values: ['float', 'base64'].";
        assert_eq!(error(r#"{"input":"a","encoding_format":"hex"}"#), words);
        assert_eq!(error(""), "EOF");
    }

    #[test]
    fn embeddings_are_told_as_numbers_or_in_base64() {
        let answer = r#"{"model":"m:latest","embeddings":[[1,-0.5],[0.1]],"total_duration":5,"prompt_eval_count":4}"#;
        let told = |first: &str, second: &str| {
            format!(
                concat!(
                    r#"{{"object":"list","data":[{{"object":"embedding","embedding":{},"index":0}},"#,
                    r#"{{"object":"embedding","embedding":{},"index":1}}],"#,
                    r#""model":"M","usage":{{"prompt_tokens":4,"total_tokens":4}}}}"#,
                    "\n",
                ),
                first, second
            )
        };
        assert_eq!(whole("float", answer).unwrap(), told("[1.0,-0.5]", "[0.1]"));
        assert_eq!(whole("", answer), whole("float", answer));
        assert_eq!(whole("base64", answer).unwrap(), told(r#""AACAPwAAAL8=""#, r#""zczMPQ==""#));
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for wrong in ["", "{}", r#"{"error":"x"}"#, r#"{"embeddings":null}"#, r#"{"embeddings":[["a"]]}"#] {
            assert_eq!(whole("float", wrong).unwrap_err(), "failed to read the answer of the model's host", "{wrong}");
        }
    }
}
