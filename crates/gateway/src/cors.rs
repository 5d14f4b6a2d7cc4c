//! Which pages of other origins may ask for models: those Ollama lets ask by default, at the paths it has too. None of
//! them may look at the mesh itself.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::response::Response;

/// Of pages that come from this machine, whatever port serves them.
const HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "0.0.0.0"];
/// Of programs that show pages of their own, and of a browser's extensions.
const SCHEMES: [&str; 8] = [
    "app://",
    "file://",
    "tauri://",
    "vscode-webview://",
    "vscode-file://",
    "chrome-extension://",
    "moz-extension://",
    "safari-web-extension://",
];
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS");
/// What OpenAI's own client sends is among them.
const HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, user-agent, accept, x-requested-with, openai-beta, x-stainless-lang, \
     x-stainless-package-version, x-stainless-os, x-stainless-arch, x-stainless-retry-count, x-stainless-runtime, \
     x-stainless-runtime-version, x-stainless-async, x-stainless-helper-method, x-stainless-poll-helper, \
     x-stainless-custom-poll-interval, x-stainless-timeout",
);
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "omx-node, omx-request-id, omx-attempts, omx-options, omx-queue-place, omx-expected-wait, retry-after",
);
/// Twelve hours, as Ollama has it.
const AGE: HeaderValue = HeaderValue::from_static("43200");

/// A page of another origin that may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Friend(HeaderValue);

impl Friend {
    /// Whose page sends a request with these headers to this path, where it is a friend's.
    pub(crate) fn of(path: &str, headers: &HeaderMap) -> Option<Self> {
        let is_ollamas = path == "/" || path.starts_with("/api/") || path.starts_with("/v1/");
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let origin = origins.next().filter(|_| is_ollamas && origins.next().is_none())?;
        let text = origin.to_str().ok()?.to_ascii_lowercase();
        let here = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).is_some_and(|rest| {
            let (host, port) = rest.split_once(':').unwrap_or((rest, "0"));
            HOSTS.contains(&host) && port.parse::<u16>().is_ok()
        });
        let is_friend = here || SCHEMES.iter().any(|scheme| text.starts_with(scheme));
        is_friend.then(|| Self(origin.clone()))
    }

    /// The answer to a browser that asks whether it may ask.
    pub(crate) fn preflight(&self, request: &Request<Body>) -> Option<Response> {
        let asks = request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        (request.method() == Method::OPTIONS && asks).then(|| {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, AGE);
            self.may_read(response)
        })
    }

    /// Lets the browser show the page the answer.
    pub(crate) fn may_read(&self, mut response: Response) -> Response {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.0.clone());
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_friend(path: &str, origin: &str) -> bool {
        Friend::of(path, &HeaderMap::from_iter([(header::ORIGIN, origin.parse().unwrap())])).is_some()
    }

    #[test]
    fn pages_of_this_machine_may_ask_for_models_and_nobody_else_s() {
        for origin in ["http://localhost:3000", "https://LOCALHOST", "http://127.0.0.1:8080", "app://obsidian.md"] {
            assert!(is_friend("/api/chat", origin) && is_friend("/v1/models", origin), "{origin}");
            assert!(!is_friend("/omx/v1/status", origin) && !is_friend("/metrics", origin), "{origin}");
        }
        for origin in [
            "http://evil.example",
            "http://localhost.evil.example",
            "http://localhost:3000.evil.example",
            "http://localhost@evil.example",
            "http://127.0.0.1.evil.example:80",
            "ftp://localhost",
            "null",
            "",
        ] {
            assert!(!is_friend("/api/chat", origin), "{origin}");
        }
        let two = [(header::ORIGIN, "http://localhost"), (header::ORIGIN, "http://evil.example")];
        let mut headers = HeaderMap::new();
        two.into_iter().for_each(|(name, value)| _ = headers.append(name, value.parse().unwrap()));
        assert_eq!(Friend::of("/api/chat", &headers), None);
    }
}
