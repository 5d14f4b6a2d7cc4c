//! SHA-256 digests as Ollama writes them. No path is ever made of a digest's text, only of a parsed one.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// As text `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest format")]
pub struct InvalidDigest;

/// How much of a file is hashed at once.
const CHUNK_BYTES: usize = 1 << 20;

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Reads to the end, handing every chunk on; the count is what was read.
    pub fn of_all(source: &mut impl Read, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<(Self, u64)> {
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut count = 0;
        loop {
            match source.read(&mut chunk) {
                Ok(0) => return Ok((Self(hasher.finalize().into()), count)),
                Ok(read) => {
                    hasher.update(&chunk[..read]);
                    each(&chunk[..read])?;
                    count += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digits alone, as `tags` and `ps` show a model's digest.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn file_name(&self) -> String {
        format!("sha256-{}", self.hex())
    }

    fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    /// Ollama takes `sha256-` as well.
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let digits = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("sha256-"));
        digits.and_then(Self::from_hex).ok_or(InvalidDigest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text where the format is for people (JSON), raw bytes where it is for machines (bincode).
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(self),
            false => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.is_human_readable() {
            true => String::deserialize(deserializer)?.parse().map_err(D::Error::custom),
            false => <[u8; 32]>::deserialize(deserializer).map(Self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_reads_what_it_prints() {
        let empty = Digest::of(b"");
        assert_eq!(empty.to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(empty));
        assert_eq!(EMPTY.replace(':', "-").parse(), Ok(empty));
        assert_eq!(EMPTY.replace("e3b0", "E3B0").parse(), Ok(empty));
        assert_eq!(empty.file_name(), EMPTY.replace(':', "-"));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let digits = &EMPTY[7..];
        for text in [
            String::new(),
            digits.to_owned(),
            format!("sha256:{digits}0"),
            format!("sha256:{}", &digits[1..]),
            format!("sha256:../{}", &digits[3..]),
            format!("sha256:+{}", &digits[1..]),
            format!("md5:{digits}"),
            format!("sha256:{}é", &digits[2..]),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(InvalidDigest), "{text:?}");
        }
    }

    #[test]
    fn hashing_a_stream_hands_on_all_of_it() {
        let bytes: Vec<u8> = (0..3 << 20).map(|at| (at % 251) as u8).collect();
        let mut seen = Vec::new();
        let hashed = Digest::of_all(&mut bytes.as_slice(), |chunk| {
            seen.extend_from_slice(chunk);
            Ok(())
        });
        assert_eq!(hashed.unwrap(), (Digest::of(&bytes), bytes.len() as u64));
        assert_eq!(seen, bytes);
    }
}
