//! Names people give.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// What people call a node: 1 to 63 of `a-z 0-9 - .`, beginning and ending with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeName(String);

/// `key=value`, put on a node by people, read by placement rules. Both parts are 1 to 63 of `a-z 0-9 - . _ /`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Label {
    pub key: String,
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseNameError {
    #[error("`{0}` is not a node name: 1 to 63 of `a-z 0-9 - .`, beginning and ending with a letter or digit")]
    Node(String),
    #[error("`{0}` is not a label: `key=value`, each 1 to 63 of `a-z 0-9 - . _ /`")]
    Label(String),
}

const LENGTH_MAX: usize = 63;

impl NodeName {
    /// The nearest valid name to a host's name; `node` where nothing of it is usable.
    pub fn from_host(host: &str) -> Self {
        let first = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
        let kept: String =
            first.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(LENGTH_MAX).collect();
        let trimmed = kept.trim_matches('-');
        Self(if trimmed.is_empty() { "node".to_owned() } else { trimmed.to_owned() })
    }

    /// This name with a number behind it, for when the name itself is taken.
    pub fn numbered(&self, number: u32) -> Self {
        let suffix = format!("-{number}");
        let stem: String = self.0.chars().take(LENGTH_MAX - suffix.len()).collect();
        Self(stem + &suffix)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let good = text.len() <= LENGTH_MAX
            && edge(text.chars().next())
            && edge(text.chars().last())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.');
        if good { Ok(Self(text.to_owned())) } else { Err(ParseNameError::Node(clip(text))) }
    }
}

impl FromStr for Label {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        let good = |part: &str| {
            (1..=LENGTH_MAX).contains(&part.len())
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._/".contains(c))
        };
        match text.split_once('=') {
            Some((key, value)) if good(key) && good(value) => Ok(Self { key: key.to_owned(), value: value.to_owned() }),
            _ => Err(ParseNameError::Label(clip(text))),
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Parts {
            key: String,
            value: String,
        }
        let Parts { key, value } = Parts::deserialize(deserializer)?;
        format!("{key}={value}").parse().map_err(D::Error::custom)
    }
}

/// An error repeats what was wrong, but not a megabyte of it.
fn clip(text: &str) -> String {
    text.chars().take(LENGTH_MAX + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_becomes_a_valid_node_name() {
        for (host, name) in
            [("Tower.local", "tower"), ("MacBook Pro (2)", "macbook-pro--2"), ("", "node"), ("_", "node")]
        {
            let made = NodeName::from_host(host);
            assert_eq!(made.as_str(), name);
            assert_eq!(made.as_str().parse(), Ok(made));
        }
        let long = NodeName::from_host(&"x".repeat(200)).numbered(12);
        assert_eq!(long.as_str().parse(), Ok(long));
    }

    #[test]
    fn a_name_that_could_break_a_table_or_a_path_is_refused() {
        for text in ["", "-a", "a-", "A", "a b", "a/b", "a\n", "a\u{1b}[0m", &"a".repeat(64)] {
            assert!(text.parse::<NodeName>().is_err(), "{text:?}");
        }
        for text in ["", "a", "=b", "a=", "a=b=c", "a=b c"] {
            assert!(text.parse::<Label>().is_err(), "{text:?}");
        }
    }
}
