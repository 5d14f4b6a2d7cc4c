//! Which registries models may be fetched from, as an operator writes them.

use std::fmt;
use std::str::FromStr;

/// Where a registry is reached. Without a scheme it is `https`; plain `http` has to be written out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    plain: bool,
    host: String,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseOriginError {
    #[error("a registry is spoken to by `https` or `http`, not by `{0}`")]
    Scheme(String),
    #[error("`{0}` is no registry: write a host such as `registry.ollama.ai`, or `http://10.0.0.7:5000`")]
    Form(String),
}

impl Origin {
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// A name or an address, without brackets, in lower case.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether this is what the first part of a model's name means: a host, and a port where it is not the usual one.
    pub fn is_named(&self, by: &str) -> bool {
        let usual = if self.plain { 80 } else { 443 };
        let (host, port) = match by.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => (host, port.parse().ok()),
            _ => (by, Some(usual)),
        };
        self.host.eq_ignore_ascii_case(host) && port == Some(self.port)
    }

    /// As it stands in a `Host` header.
    pub fn authority(&self) -> String {
        let usual = if self.plain { 80 } else { 443 };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }
}

impl FromStr for Origin {
    type Err = ParseOriginError;

    fn from_str(text: &str) -> Result<Self, ParseOriginError> {
        let cut = |text: &str| text.chars().take(100).collect::<String>();
        let form = || ParseOriginError::Form(cut(text));
        let (scheme, rest) = text.trim().split_once("://").unwrap_or(("https", text.trim()));
        let plain = match scheme {
            "https" => false,
            "http" => true,
            other => return Err(ParseOriginError::Scheme(cut(other))),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[').map(|inside| inside.split_once(']')) {
            Some(Some((host, ""))) => (host, None),
            Some(Some((host, port))) => (host, Some(port.strip_prefix(':').ok_or_else(form)?)),
            Some(None) => return Err(form()),
            None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            None if plain => 80,
            None => 443,
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(form)?,
        };
        let word = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(word) {
            return Err(form());
        }
        Ok(Self { plain, host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.plain { "http" } else { "https" }, self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_written_as_people_write_it() {
        for (text, shown) in [
            ("registry.ollama.ai", "https://registry.ollama.ai"),
            ("https://HF.co/", "https://hf.co"),
            ("http://10.0.0.7:5000", "http://10.0.0.7:5000"),
            ("http://nas", "http://nas"),
            ("https://[fd00::1]:8443", "https://[fd00::1]:8443"),
        ] {
            let origin: Origin = text.parse().unwrap();
            assert_eq!(origin.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(origin));
        }
        for text in ["", "ftp://x", "http://", "x/y", "http://u@h", "h:0", "h:99999", "http://[::1", "a b", "h?x", "é"]
        {
            assert!(text.parse::<Origin>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_models_name_means_a_registry_by_host_and_port() {
        let origin = |text: &str| text.parse::<Origin>().unwrap();
        assert!(origin("registry.ollama.ai").is_named("Registry.ollama.ai"));
        assert!(origin("http://127.0.0.1:5000").is_named("127.0.0.1:5000"));
        assert!(origin("http://nas").is_named("nas") && origin("http://nas").is_named("nas:80"));
        assert!(!origin("http://nas:81").is_named("nas") && !origin("https://nas").is_named("nas:80"));
    }
}
