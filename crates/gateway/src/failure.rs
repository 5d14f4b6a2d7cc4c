//! What a caller is told when it does not get what it asked for. One table: from what went wrong to status and code.

use std::fmt;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use node::{ModelError, Refused, RegistryError};

use crate::access::{Denied, Need};
use crate::host::Foreign;
use crate::quota::Exceeded;
use crate::wire;

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: Option<String>,
    retry_after: Option<Duration>,
    /// More that the head of the answer says.
    about: Option<Box<HeaderMap>>,
    /// For the log, where the caller is told less.
    cause: Option<String>,
}

/// Of what a backend says went wrong.
const BACKEND_TEXT_MAX: usize = 4_000;

impl Failure {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), hint: None, retry_after: None, about: None, cause: None }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }

    pub(crate) fn about(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.about.get_or_insert_default().insert(name, value.into());
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(crate) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no_route", "there is no such route")
            .hint("`/omx/v1/openapi.json` describes all there are")
    }

    pub(crate) fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route has no such method")
    }

    /// Where the body ends is a matter of opinion.
    pub(crate) fn framing() -> Self {
        Self::bad_request("of the transfer codings this node reads `chunked` alone")
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than this route takes, {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(crate) fn slow_body(limit: Duration) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "slow_body", format!("the body did not arrive within {limit:?}"))
    }

    pub(crate) fn broken_body() -> Self {
        Self::bad_request("the body broke off")
    }

    /// A question was not answered in time.
    pub(crate) fn late(limit: Duration) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline", format!("there was no answer within {limit:?}"))
    }

    /// A change was not confirmed in time.
    pub(crate) fn unknown(limit: Duration) -> Self {
        let message = format!("it is not known whether this was done: no answer within {limit:?}");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "unknown_outcome", message)
            .hint("look whether the change is there before asking again")
    }

    /// What a model's backend answered that was no success: one text, in Ollama's shape.
    pub(crate) fn of_backend(status: StatusCode, body: &[u8]) -> Self {
        let told = serde_json::from_slice::<serde_json::Value>(body).ok();
        let error = told.as_ref().and_then(|told| told["error"].as_str().map(str::to_owned));
        let error = error.or_else(|| beginning_of_error(body));
        let unknown = || format!("the backend answered with status {}", status.as_u16());
        let text = |error: String| error.chars().take(BACKEND_TEXT_MAX).collect();
        Self::new(status, "backend", error.map_or_else(unknown, text))
    }

    /// `cause` goes to the log; the caller learns that it is there.
    pub(crate) fn internal(cause: impl fmt::Display) -> Self {
        let message = "this node failed to answer";
        let failure = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
            .hint("the node's log says more under the `omx-request-id` of this answer");
        Self { cause: Some(cause.to_string()), ..failure }
    }
}

/// Of an answer in Ollama's shape that was too long to be taken whole: an error may tell back all it was sent.
fn beginning_of_error(body: &[u8]) -> Option<String> {
    /// A character beyond the first 65,536, as two escapes.
    const ESCAPE_BYTES_MAX: usize = 12;
    let text = body.strip_prefix(b"{\"error\":\"")?;
    let kept = &text[..text.len().min(BACKEND_TEXT_MAX)];
    // It may have been cut within a character or an escape.
    (0..=ESCAPE_BYTES_MAX.min(kept.len())).find_map(|cut| {
        let quoted = [b"\"", &kept[..kept.len() - cut], b"\""].concat();
        serde_json::from_slice(&quoted).ok()
    })
}

impl Failure {
    /// In Ollama's shape, for its routes: one text.
    pub(crate) fn into_ollamas(self) -> Response {
        self.with_body(HeaderValue::from_static("application/json; charset=utf-8"), |_, native| native.into())
    }

    /// In OpenAI's shape, for its routes.
    pub(crate) fn into_openais(self) -> Response {
        let kind = HeaderValue::from_static("application/json");
        self.with_body(kind, |status, native| {
            openai::Error::of_native(status.as_u16(), native.as_bytes()).line().into()
        })
    }

    /// The same head before another body, made of Ollama's.
    fn with_body(mut self, kind: HeaderValue, body: impl FnOnce(StatusCode, String) -> Body) -> Response {
        let text = match self.hint.take() {
            Some(hint) => format!("{} ({hint})", self.message),
            None => self.message.clone(),
        };
        let body = body(self.status, serde_json::json!({ "error": text }).to_string());
        let (mut head, _) = self.into_response().into_parts();
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.insert(header::CONTENT_TYPE, kind);
        Response::from_parts(head, body)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        if let Some(cause) = &self.cause {
            tracing::error!(cause, code = self.code, "a request failed");
        }
        let problem = wire::Problem { code: self.code.to_owned(), message: self.message, hint: self.hint };
        let mut response = (self.status, Json(wire::Failed { error: problem })).into_response();
        if let Some(about) = self.about {
            response.headers_mut().extend(*about);
        }
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0));
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Foreign> for Failure {
    fn from(foreign: Foreign) -> Self {
        match foreign {
            Foreign::Host => Self::new(StatusCode::FORBIDDEN, "foreign_host", "this node is not called that")
                .hint("ask for `localhost`, its name or its address, or start it with `--allow-host NAME`"),
            Foreign::Origin => {
                Self::new(StatusCode::FORBIDDEN, "foreign_origin", "pages of other origins may not ask this node")
            }
        }
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::NoKey(need) => {
                Self::new(StatusCode::UNAUTHORIZED, "no_key", format!("this needs {}", needed(need)))
                    .hint("send `Authorization: Bearer omx_…`, or use the command line on the node's machine")
            }
            Denied::WrongKey => Self::new(StatusCode::UNAUTHORIZED, "wrong_key", "the key opens nothing here")
                .hint("it may be mistyped, revoked or expired; `omx keys ls` lists the keys"),
            Denied::Throttled { wait } => {
                let failure =
                    Self::new(StatusCode::TOO_MANY_REQUESTS, "throttled", "too many wrong keys came from there");
                Self { retry_after: Some(wait), ..failure }
            }
            Denied::Lacking(need) => {
                Self::new(StatusCode::FORBIDDEN, "forbidden", format!("this needs {}", needed(need)))
            }
        }
    }
}

impl From<Exceeded> for Failure {
    fn from(exceeded: Exceeded) -> Self {
        let (message, hint) = match exceeded {
            Exceeded::Concurrent { limit } => {
                let message = format!("this key may have {limit} requests under way at once, and has them");
                (message, "send the next one when an answer is over, or use a key with a higher `--concurrent`")
            }
            Exceeded::PerMinute { limit, .. } => {
                let message = format!("this key may start {limit} requests per minute, and has started them");
                (message, "wait as long as `Retry-After` says, or use a key with a higher `--per-minute`")
            }
        };
        Self::new(StatusCode::TOO_MANY_REQUESTS, "key_limit", message).hint(hint).retry_after(exceeded.wait())
    }
}

fn needed(need: Need) -> String {
    match need {
        Need::Nothing => "nothing".to_owned(),
        Need::Scope(scope) => format!("a key with the scope `{scope}`"),
        Need::Machine => "the command line on the node's own machine".to_owned(),
    }
}

impl From<node::Error> for Failure {
    fn from(error: node::Error) -> Self {
        let hint = error.hint();
        let failure = match error {
            node::Error::Registry(error) => registry(error),
            node::Error::UnknownNode(_) => Self::new(StatusCode::NOT_FOUND, "unknown_node", error.to_string()),
            node::Error::BadRequest(message) => Self::bad_request(message),
        };
        Self { hint: hint.or(failure.hint), ..failure }
    }
}

impl From<node::ModelsError> for Failure {
    fn from(error: node::ModelsError) -> Self {
        let (hint, message) = match &error {
            node::ModelsError::Models(error) => (error.hint(), node::chain(error)),
            node::ModelsError::Registry(error) => (error.hint(), String::new()),
        };
        let failure = match error {
            node::ModelsError::Registry(error) => registry(error),
            node::ModelsError::Models(ModelError::Registry(error)) => registry(*error),
            node::ModelsError::Models(ModelError::UnknownModel(_) | ModelError::UnknownVersion(_)) => {
                Self::new(StatusCode::NOT_FOUND, "unknown_model", message)
            }
            node::ModelsError::Models(ModelError::Pinned(_)) => Self::new(StatusCode::CONFLICT, "pinned", message),
            node::ModelsError::Models(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "model", message),
        };
        Self { hint: hint.or(failure.hint), ..failure }
    }
}

fn registry(error: RegistryError) -> Failure {
    let message = error.to_string();
    let soon = Some(Duration::from_secs(1));
    match error {
        RegistryError::Refused(refused) => {
            let (status, code) = refusal(&refused);
            Failure::new(status, code, message)
        }
        RegistryError::NoLeader { .. } => {
            Failure { retry_after: soon, ..Failure::new(StatusCode::SERVICE_UNAVAILABLE, "no_leader", message) }
        }
        RegistryError::Behind { .. } => {
            Failure { retry_after: soon, ..Failure::new(StatusCode::SERVICE_UNAVAILABLE, "behind", message) }
        }
        RegistryError::Unknown { .. } => Failure::new(StatusCode::GATEWAY_TIMEOUT, "unknown_outcome", message),
        RegistryError::NoSpace => Failure::new(StatusCode::INSUFFICIENT_STORAGE, "no_space", message),
        RegistryError::Stopped => Failure::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message),
        RegistryError::Worker => Failure::new(StatusCode::FORBIDDEN, "worker", message),
        RegistryError::NotAMember(_) => Failure::new(StatusCode::CONFLICT, "not_a_member", message),
        RegistryError::Store(_) | RegistryError::Kept(_) | RegistryError::Consensus(_) => {
            Failure::internal(chain(&error))
        }
    }
}

/// The registry was asked and said no.
fn refusal(refused: &Refused) -> (StatusCode, &'static str) {
    match refused {
        Refused::Denied(..) => (StatusCode::FORBIDDEN, "denied"),
        Refused::Barred(_) => (StatusCode::FORBIDDEN, "barred"),
        Refused::UnknownMember(_) => (StatusCode::NOT_FOUND, "unknown_node"),
        Refused::UnknownToken => (StatusCode::NOT_FOUND, "unknown_token"),
        Refused::UnknownSetting { .. } => (StatusCode::NOT_FOUND, "unknown_setting"),
        Refused::UnknownKey(_) => (StatusCode::NOT_FOUND, "unknown_key"),
        Refused::UnknownBackend(_) => (StatusCode::NOT_FOUND, "unknown_backend"),
        Refused::BackendTaken(_) => (StatusCode::CONFLICT, "backend_taken"),
        Refused::NoSuchChange { .. } => (StatusCode::NOT_FOUND, "unknown_change"),
        Refused::BadValue { .. } => (StatusCode::BAD_REQUEST, "bad_value"),
        Refused::Conflict { .. } => (StatusCode::CONFLICT, "conflict"),
        Refused::Full { .. } => (StatusCode::CONFLICT, "full"),
        Refused::LastVoter(_) => (StatusCode::CONFLICT, "last_voter"),
        Refused::QuorumAtRisk(_) => (StatusCode::CONFLICT, "quorum_at_risk"),
        Refused::AlreadyFounded => (StatusCode::CONFLICT, "already_founded"),
        Refused::TokenExpired => (StatusCode::CONFLICT, "token_expired"),
        Refused::TokenUsedUp => (StatusCode::CONFLICT, "token_used_up"),
        Refused::TokenProof => (StatusCode::FORBIDDEN, "token_proof"),
        Refused::BadVersion { .. } => (StatusCode::BAD_REQUEST, "bad_version"),
        Refused::Contradicts { .. } => (StatusCode::CONFLICT, "contradicts"),
        Refused::UnknownVersion(_) => (StatusCode::NOT_FOUND, "unknown_version"),
        Refused::InUse { .. } => (StatusCode::CONFLICT, "in_use"),
        Refused::UnknownTag(_) => (StatusCode::NOT_FOUND, "unknown_tag"),
        Refused::TagMoved { .. } => (StatusCode::CONFLICT, "tag_moved"),
        Refused::Pinned(_) => (StatusCode::CONFLICT, "pinned"),
        Refused::NoSuchMove { .. } => (StatusCode::NOT_FOUND, "unknown_change"),
        Refused::NothingBefore(_) => (StatusCode::NOT_FOUND, "nothing_before"),
        Refused::NameTaken(_) => (StatusCode::CONFLICT, "name_taken"),
        Refused::UnknownAlias(_) => (StatusCode::NOT_FOUND, "unknown_alias"),
        Refused::NoRule(_) => (StatusCode::NOT_FOUND, "no_rule"),
        Refused::BadRule { .. } => (StatusCode::BAD_REQUEST, "bad_rule"),
    }
}

/// An error and what caused it, for the log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(failure: impl Into<Failure>) -> (u16, &'static str, Option<Duration>) {
        let failure = failure.into();
        (failure.status.as_u16(), failure.code, failure.retry_after)
    }

    fn refused(refused: Refused) -> node::Error {
        node::Error::Registry(refused.into())
    }

    #[test]
    fn an_error_that_was_cut_short_still_says_what_it_begins_with() {
        let said = |body: &[u8]| Failure::of_backend(StatusCode::INTERNAL_SERVER_ERROR, body).message;
        let whole = serde_json::json!({ "error": format!("invalid format: \"é\u{1f600}{}\"", "a".repeat(1 << 20)) })
            .to_string();
        assert!(said(&whole.as_bytes()[..64 << 10]).starts_with("invalid format: \"é\u{1f600}aaa"));
        let escaped = br#"{"error":"bad \u00e9 \ud83d\ude00 end"#;
        for end in br#"{"error":"bad "#.len()..escaped.len() {
            assert!(said(&escaped[..end]).starts_with("bad "), "{end}");
        }
        for foreign in [&b"<html>"[..], b"", b"{\"message\":\"x"] {
            assert_eq!(said(foreign), "the backend answered with status 500");
        }
    }

    #[test]
    fn a_failure_says_whether_to_try_again_and_what_is_not_known() {
        let waited = Duration::from_secs(10);
        let no_leader = RegistryError::NoLeader { waited, absent: vec!["nas".parse().unwrap()] };
        let failure = Failure::from(node::Error::Registry(no_leader));
        assert!(failure.hint.as_ref().is_some_and(|hint| hint.contains("nas")));
        assert_eq!(told(failure), (503, "no_leader", Some(Duration::from_secs(1))));
        assert_eq!(told(node::Error::Registry(RegistryError::Unknown { waited })), (504, "unknown_outcome", None));
        assert_eq!(told(node::Error::Registry(RegistryError::NoSpace)), (507, "no_space", None));
        assert_eq!(told(node::Error::Registry(RegistryError::Stopped)), (503, "stopping", None));
        assert_eq!(told(node::Error::Registry(RegistryError::Worker)), (403, "worker", None));
    }

    #[test]
    fn a_refusal_has_the_status_its_reason_deserves() {
        let key = || "voters.max".to_owned();
        let denied = Refused::Denied(node::Actor::Node(types::NodeId::from_public_key([1; 32])), String::new());
        assert_eq!(told(refused(denied)), (403, "denied", None));
        let bad = Refused::BadValue { key: key(), value: "2".to_owned(), why: String::new() };
        assert_eq!(told(refused(bad)), (400, "bad_value", None));
        assert_eq!(told(refused(Refused::Conflict { key: key(), expected: 1, found: 2 })), (409, "conflict", None));
        assert_eq!(told(refused(Refused::UnknownToken)), (404, "unknown_token", None));
        assert_eq!(told(refused(Refused::Full { what: key(), limit: 1 })), (409, "full", None));
        assert_eq!(told(node::Error::UnknownNode("x".to_owned())), (404, "unknown_node", None));
        assert_eq!(told(node::Error::BadRequest("x".to_owned())), (400, "bad_request", None));
    }

    #[test]
    fn what_is_inside_stays_inside() {
        let source = std::io::Error::other("/secret/path");
        let failure = Failure::from(node::Error::Registry(RegistryError::Kept(source)));
        assert!(failure.cause.as_ref().is_some_and(|cause| cause.contains("/secret/path")));
        assert!(!failure.message.contains("secret") && !failure.hint.clone().unwrap_or_default().contains("secret"));
        assert_eq!(told(failure), (500, "internal", None));
    }
}
