//! SHA-256 as Ollama writes it. Paths are made of a parsed digest, never of its text.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// As text `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest format")]
pub struct InvalidDigest;

/// A digest in the making, for what is not in memory all at once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hasher(Sha256);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digits alone, as `tags` and `ps` show a model's digest.
    pub fn hex(&self) -> &str {
        &self.0
    }

    pub fn file_name(&self) -> String {
        format!("sha256-{}", self.0)
    }

    /// As progress shows it.
    pub(crate) fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        Digest(self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    /// Ollama takes `sha256-` as well.
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let digits = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("sha256-")).ok_or(InvalidDigest)?;
        let good = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        good.then(|| Self(digits.to_ascii_lowercase())).ok_or(InvalidDigest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_what_it_writes_and_nothing_else() {
        let empty = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(empty.to_string(), text);
        for good in [text.to_owned(), text.replace(':', "-"), format!("sha256:{}", &text[7..].to_uppercase())] {
            assert_eq!(good.parse(), Ok(empty.clone()), "{good}");
        }
        for wrong in ["", "sha256:", &text[7..], &text[..70], &format!("{text}0"), "sha256:../../etc/passwd"] {
            assert_eq!(wrong.parse::<Digest>(), Err(InvalidDigest), "{wrong}");
        }
    }
}
