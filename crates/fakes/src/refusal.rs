//! A request that is not served: a status, and Ollama's words for it.

use hyper::StatusCode;

use crate::name::Name;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub(crate) fn here(text: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }

    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    /// Two spaces, as Ollama has them.
    pub(crate) fn busy() -> Self {
        let text = "server busy, please try again.  maximum pending requests exceeded";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
    }

    pub(crate) fn incapable(name: &Name, of: &str) -> Self {
        Self::bad_request(format!("{} does not support {of}", name.full()))
    }

    pub(crate) fn invalid_name() -> Self {
        Self::bad_request("invalid model name")
    }
}
