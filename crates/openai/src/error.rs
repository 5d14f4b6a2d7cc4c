//! What failed, in the shape OpenAI's clients expect.

use ollama::wire::{InvalidBody, encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::LINE_MAX;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client's mistake, in Ollama's words.
    #[error("{0}")]
    Request(String),
    /// What the native API answered instead of an answer.
    #[error("{message}")]
    Native { status: u16, message: String },
    #[error("failed to read the answer of the model's host")]
    Answer(#[source] serde_json::Error),
    #[error("a line of the answer is longer than {LINE_MAX} bytes")]
    LineTooLong,
    /// What was said until then is not the whole answer.
    #[error("the answer ended before it was complete")]
    Cut,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Told<'a>,
}

#[derive(Serialize)]
struct Told<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: (),
    code: (),
}

impl Error {
    /// What a native route told with a status other than 200. What is no error of Ollama's is told as it came.
    pub fn of_native(status: u16, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Native {
            error: Option<String>,
        }
        let message = serde_json::from_slice::<Native>(body)
            .map_or_else(|_| String::from_utf8_lossy(body).into_owned(), |body| body.error.unwrap_or_default());
        Self::told(status, message)
    }

    /// What stands in the `error` of a line whose status promised an answer.
    pub(crate) fn of_line(error: &Value) -> Self {
        Self::told(500, error.as_str().map_or_else(|| error.to_string(), str::to_owned))
    }

    fn told(status: u16, message: String) -> Self {
        let wordless = message.is_empty();
        let message =
            if wordless { "something went wrong, please see the server logs for details".to_owned() } else { message };
        Self::Native { status, message }
    }

    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::Request(message.into())
    }

    /// Of the answer that tells it, where no other was begun.
    pub fn status(&self) -> u16 {
        match self {
            Self::Request(_) => 400,
            Self::Native { status, .. } => *status,
            Self::Answer(_) | Self::LineTooLong | Self::Cut => 502,
        }
    }

    pub fn body(&self) -> Vec<u8> {
        let kind = match self.status() {
            400 => "invalid_request_error",
            404 => "not_found_error",
            _ => "api_error",
        };
        encode(&Body { error: Told { message: &self.to_string(), kind, param: (), code: () } })
    }

    /// The same with the end of line that all has which went through Ollama's translation.
    pub fn line(&self) -> Vec<u8> {
        let mut line = self.body();
        line.push(b'\n');
        line
    }
}

impl From<InvalidBody> for Error {
    fn from(invalid: InvalidBody) -> Self {
        Self::Request(match invalid {
            InvalidBody::Missing => "EOF".to_owned(),
            InvalidBody::Malformed(why) => why,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, body: &str) -> String {
        String::from_utf8(Error::of_native(status, body.as_bytes()).body()).unwrap()
    }

    #[test]
    fn an_error_of_the_native_api_keeps_its_words_and_gets_the_type_of_its_status() {
        for (status, kind) in [
            (400, "invalid_request_error"),
            (404, "not_found_error"),
            (401, "api_error"),
            (429, "api_error"),
            (500, "api_error"),
            (503, "api_error"),
        ] {
            let expected =
                format!(r#"{{"error":{{"message":"model 'x' not found","type":"{kind}","param":null,"code":null}}}}"#);
            assert_eq!(told(status, r#"{"error":"model 'x' not found","signin_url":"u"}"#), expected);
            assert_eq!(Error::of_native(status, b"{}").status(), status);
        }
    }

    #[test]
    fn what_is_no_error_of_ollama_s_is_told_as_it_came() {
        let message = |body: &str| Error::of_native(502, body.as_bytes()).to_string();
        assert_eq!(message("404 page not found"), "404 page not found");
        assert_eq!(message(r#"{"error":{"code":7}}"#), r#"{"error":{"code":7}}"#);
        for wordless in ["", "{}", r#"{"error":""}"#, r#"{"error":null}"#] {
            assert!(message(wordless).starts_with("something went wrong"), "{wordless}");
        }
        assert_eq!(Error::of_native(500, b"\xff").to_string(), "\u{fffd}");
    }

    #[test]
    fn an_error_within_an_answer_keeps_its_words() {
        assert_eq!(Error::of_line(&Value::from("out of memory")).to_string(), "out of memory");
        assert_eq!(Error::of_line(&serde_json::json!({ "code": 7 })).to_string(), r#"{"code":7}"#);
        assert_eq!(Error::of_line(&Value::from("x")).status(), 500);
    }
}
