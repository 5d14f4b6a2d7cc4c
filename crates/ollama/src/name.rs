//! Model names, parsed once at the border: inside, a [`ModelName`] is known to be good, and a path made of one stays
//! inside the folder.
//!
//! The grammar is Ollama's (`types/model/name.go`): `[[host/]namespace/]model[:tag]`. Letters keep their case, and
//! names that differ in it alone are the same name: lookups compare without it.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";

/// Compares and hashes without regard to case.
#[derive(Clone)]
pub struct ModelName {
    host: String,
    namespace: String,
    model: String,
    tag: String,
}

/// What a user asked for is told back as Ollama tells it, so this has no text of its own for the outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no model name", .0.escape_debug())]
pub struct InvalidName(String);

enum Part {
    Host,
    Namespace,
    Model,
    Tag,
}

impl Part {
    /// Every part begins with a letter, a digit or `_`: so none is `.` or `..`, hidden, or an option.
    fn admits(&self, text: &str) -> bool {
        let length_max = if matches!(self, Self::Host) { 350 } else { 80 };
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let further = |byte: u8| match byte {
            b'-' => true,
            b'.' => !matches!(self, Self::Namespace),
            b':' => matches!(self, Self::Host),
            byte => word(byte),
        };
        text.len() <= length_max
            && text.bytes().next().is_some_and(word)
            && text.bytes().skip(1).all(further)
            && !is_reserved(text)
    }
}

/// Windows takes these for devices, whatever follows the first dot, and drops a dot at the end.
fn is_reserved(text: &str) -> bool {
    let stem = text.split(['.', ':']).next().unwrap_or(text);
    let numbered = |start: &str| {
        stem.len() == 4
            && stem.get(..3).is_some_and(|name| name.eq_ignore_ascii_case(start))
            && stem.as_bytes()[3].is_ascii_digit()
    };
    let device = ["con", "prn", "aux", "nul"].iter().any(|name| stem.eq_ignore_ascii_case(name));
    cfg!(windows) && (device || numbered("com") || numbered("lpt") || text.ends_with('.') || text.contains(':'))
}

/// Nobody takes such a namespace by chance.
const PASSING: &str = "omx-passing-";

impl ModelName {
    /// From its place below `manifests/`; `None` where that is no name's place.
    pub(crate) fn from_parts(host: &str, namespace: &str, model: &str, tag: &str) -> Option<Self> {
        let good = Part::Host.admits(host)
            && Part::Namespace.admits(namespace)
            && Part::Model.admits(model)
            && Part::Tag.admits(tag);
        let [host, namespace, model, tag] = [host, namespace, model, tag].map(str::to_owned);
        good.then_some(Self { host, namespace, model, tag })
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    pub fn tag(&self) -> &str {
        &self.tag
    }

    pub fn parts(&self) -> [&str; 4] {
        [&self.host, &self.namespace, &self.model, &self.tag]
    }

    /// `host/namespace/model:tag`, as some of Ollama's error texts have it.
    pub fn full(&self) -> String {
        format!("{}/{}/{}:{}", self.host, self.namespace, self.model, self.tag)
    }

    /// Below `manifests/`.
    pub(crate) fn path(&self) -> PathBuf {
        self.parts().iter().collect()
    }

    /// What this model is called for as long as an Ollama on this machine pulls it from a port of ours. The secret is what
    /// nobody else on the machine can guess. `None` where no name can hold a port: Windows makes no folder of one.
    pub fn passing(&self, port: u16, secret: [u8; 16]) -> Option<Self> {
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        Self::from_parts(&format!("127.0.0.1:{port}"), &format!("{PASSING}{secret}"), &self.model, &self.tag)
    }

    /// Whether it is a name of that kind, of whichever node: it means nothing to anybody else, and may have been left
    /// behind by one that was cut off.
    pub fn is_passing(&self) -> bool {
        let secret = self.namespace.strip_prefix(PASSING).unwrap_or_default();
        let is_secret = secret.len() == 32 && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_secret && self.host.starts_with("127.0.0.1:")
    }

    fn folded(&self) -> impl Iterator<Item = u8> {
        // A byte no part holds keeps neighbours apart.
        let bytes = self.parts().into_iter().flat_map(|part| part.bytes().chain([b'/']));
        bytes.map(|byte| byte.to_ascii_lowercase())
    }
}

impl FromStr for ModelName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName(text.chars().take(100).collect());
        let (path, tag) = match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (text, TAG),
        };
        let mut parts = path.rsplitn(3, '/');
        let model = parts.next().unwrap_or("");
        let namespace = parts.next().unwrap_or(NAMESPACE);
        let host = parts.next().map_or(HOST, |host| host.split_once("://").map_or(host, |(_, host)| host));
        Self::from_parts(host, namespace, model, tag).ok_or_else(invalid)
    }
}

/// The shortest form that means the same; the tag always stands.
impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.host.eq_ignore_ascii_case(HOST) {
            write!(f, "{}/{}/", self.host, self.namespace)?;
        } else if !self.namespace.eq_ignore_ascii_case(NAMESPACE) {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}:{}", self.model, self.tag)
    }
}

impl fmt::Debug for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As text, in its shortest form, and checked on the way in like any other text.
impl Serialize for ModelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ModelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl PartialEq for ModelName {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ModelName {}

impl PartialOrd for ModelName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ModelName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.folded().cmp(other.folded())
    }
}

impl Hash for ModelName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.folded().for_each(|byte| state.write_u8(byte));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<[String; 4]> {
        text.parse::<ModelName>().ok().map(|name| name.parts().map(str::to_owned))
    }

    #[test]
    fn names_are_completed_and_shown_at_their_shortest() {
        for (text, full, short) in [
            ("llama3", "registry.ollama.ai/library/llama3:latest", "llama3:latest"),
            ("llama3:8b", "registry.ollama.ai/library/llama3:8b", "llama3:8b"),
            ("me/llama3", "registry.ollama.ai/me/llama3:latest", "me/llama3:latest"),
            ("library/llama3:8b", "registry.ollama.ai/library/llama3:8b", "llama3:8b"),
            ("hf.co/me/m.gguf:Q4_K_M", "hf.co/me/m.gguf:Q4_K_M", "hf.co/me/m.gguf:Q4_K_M"),
            ("https://hf.co/me/m", "hf.co/me/m:latest", "hf.co/me/m:latest"),
            ("registry.ollama.ai/library/x:y", "registry.ollama.ai/library/x:y", "x:y"),
            ("127.0.0.1:99/library/x", "127.0.0.1:99/library/x:latest", "127.0.0.1:99/library/x:latest"),
            ("_a:_b", "registry.ollama.ai/library/_a:_b", "_a:_b"),
        ] {
            let name: ModelName = text.parse().unwrap();
            assert_eq!((name.full().as_str(), name.to_string().as_str()), (full, short), "{text}");
            assert_eq!(short.parse::<ModelName>().unwrap(), name, "{text}");
        }
    }

    #[test]
    fn a_host_needs_three_parts() {
        assert_eq!(parse("localhost:5000/m"), None);
        assert_eq!(parse("localhost:5000/ns/m").unwrap()[0], "localhost:5000");
    }

    #[cfg(not(windows))]
    #[test]
    fn a_passing_name_is_known_as_one_and_no_other_is() {
        let name: ModelName = "me/m:1b".parse().unwrap();
        let passing = name.passing(4711, [0xab; 16]).unwrap();
        assert!(passing.is_passing() && passing.to_string().parse::<ModelName>().unwrap().is_passing());
        assert_eq!((passing.model(), passing.tag()), ("m", "1b"));
        let secret = "ab".repeat(16);
        for other in [
            name.to_string(),
            format!("omx-passing-{secret}/m"),
            format!("hf.co/omx-passing-{secret}/m"),
            format!("127.0.0.1:4711/{secret}/m"),
            "127.0.0.1:4711/omx-passing-/m".to_owned(),
        ] {
            assert!(!other.parse::<ModelName>().unwrap().is_passing(), "{other}");
        }
    }

    #[test]
    fn promised_parts_must_be_there() {
        for text in ["", ":", "m:", "/m", "n//m", "h//n/m", ":t", "/", "//", "///", "a/b/c/", "h/n/:t"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn parts_have_their_lengths() {
        let long = "x".repeat(80);
        assert!(parse(&format!("{long}/{long}:{long}")).is_some());
        for text in [format!("{long}x"), format!("{long}x/m"), format!("m:{long}x")] {
            assert_eq!(parse(&text), None);
        }
        assert!(parse(&format!("{}/n/m", "h".repeat(350))).is_some());
        assert!(parse(&format!("{}/n/m", "h".repeat(351))).is_none());
    }

    #[test]
    fn case_does_not_tell_names_apart_and_is_kept() {
        let (upper, lower): (ModelName, ModelName) = ("LLaMA:Q4".parse().unwrap(), "llama:q4".parse().unwrap());
        assert_eq!(upper, lower);
        assert_eq!(upper.to_string(), "LLaMA:Q4");
        assert_eq!(std::collections::HashSet::from([upper, lower]).len(), 1);
        let apart: (ModelName, ModelName) = ("a/b:c".parse().unwrap(), "a/bc:d".parse().unwrap());
        assert_ne!(apart.0, apart.1);
    }
}
