//! Where an Ollama listens, in the forms people write it.

use std::fmt;
use std::str::FromStr;

/// Ollama's own.
const PORT: u16 = 11434;

/// A host and a port. Only plain HTTP: an Ollama speaks nothing else by itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseEndpointError {
    #[error("an Ollama is spoken to by `http`, not by `{0}`")]
    Scheme(String),
    #[error("a host and a port are needed, such as `http://127.0.0.1:11434`, and nothing behind them")]
    Form,
}

impl Endpoint {
    /// Where an Ollama is by itself.
    pub fn local() -> Self {
        Self { host: "127.0.0.1".to_owned(), port: PORT }
    }

    /// A name or an address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// As it stands in a `Host` header.
    pub fn authority(&self) -> String {
        let Self { host, port } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    /// `http://host:port`, `host:port` or `host`, as `OLLAMA_HOST` may say. An address that means "everywhere" where a
    /// server listens means this machine where it is asked.
    fn from_str(text: &str) -> Result<Self, ParseEndpointError> {
        let (scheme, rest) = text.trim().split_once("://").unwrap_or(("http", text.trim()));
        if scheme != "http" {
            return Err(ParseEndpointError::Scheme(scheme.chars().take(20).collect()));
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[').map(|inside| inside.split_once(']')) {
            Some(Some((host, port))) => (host, port.strip_prefix(':')),
            Some(None) => return Err(ParseEndpointError::Form),
            // More colons than one and no brackets: an IPv6 address alone.
            None if rest.matches(':').count() > 1 => (rest, None),
            None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        let fit = |letter: char| letter.is_ascii_alphanumeric() || ".-_:".contains(letter);
        if host.chars().count() > 253 || !host.chars().all(fit) {
            return Err(ParseEndpointError::Form);
        }
        let port = match port {
            None => PORT,
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or(ParseEndpointError::Form)?,
        };
        let host = if matches!(host, "" | "0.0.0.0" | "::") { "127.0.0.1" } else { host };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_people_write_is_understood() {
        for (text, shown) in [
            ("http://10.0.0.7:8080", "http://10.0.0.7:8080"),
            ("http://attic/", "http://attic:11434"),
            ("attic:1", "http://attic:1"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            (":9", "http://127.0.0.1:9"),
            ("[::1]:7", "http://[::1]:7"),
            ("::1", "http://[::1]:11434"),
            (" 127.0.0.1:11434\n", "http://127.0.0.1:11434"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for text in ["https://attic", "http://a/b", "a:b", "a:0", "a:99999", "a b", "[::1", "http://u@h", "a\r\nb"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
