//! What a failed request is told: a status, and Ollama's words.

use hyper::StatusCode;
use ollama::folder;
use ollama::wire::{InvalidBody, InvalidFormat, InvalidOption};

use crate::{Error, Fault, chat};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub status: StatusCode,
    pub message: String,
}

impl Failure {
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, message: message.into() }
    }

    pub(super) fn here(message: impl Into<String>) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message: message.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.fault() {
            Fault::Client => StatusCode::BAD_REQUEST,
            Fault::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Fault::Engine => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, message: error.to_string() }
    }
}

impl From<InvalidBody> for Failure {
    fn from(error: InvalidBody) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// 500, as Ollama has it, though it is the client's doing.
impl From<InvalidOption> for Failure {
    fn from(error: InvalidOption) -> Self {
        Self::here(error.to_string())
    }
}

/// 500, as Ollama has it, though it is the client's doing.
impl From<InvalidFormat> for Failure {
    fn from(error: InvalidFormat) -> Self {
        Self::here(error.to_string())
    }
}

impl From<chat::Error> for Failure {
    fn from(error: chat::Error) -> Self {
        match error {
            chat::Error::Template(_) => Self::here(error.to_string()),
            _ => Self::bad_request(error.to_string()),
        }
    }
}

/// What a name that is not there gets differs from route to route: they look for it first.
impl From<folder::Error> for Failure {
    fn from(error: folder::Error) -> Self {
        tracing::warn!(error = &error as &dyn std::error::Error, "the models folder failed");
        Self::here(error.to_string())
    }
}
