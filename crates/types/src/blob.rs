//! The name of a piece of content.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{ParseIdError, text_and_bytes};

/// The BLAKE3 root of some bytes, wherever they lie. As text `blake3:` and 64 lower-case hexadecimal digits; no path is
/// made of any other text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobHash([u8; 32]);

const PREFIX: &str = "blake3:";

impl BlobHash {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Of bytes that are in memory anyway.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digits alone: what files are named by.
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

impl fmt::Display for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.hex())
    }
}

impl FromStr for BlobHash {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let digits = text.strip_prefix(PREFIX).ok_or(ParseIdError)?;
        if digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ParseIdError);
        }
        blake3::Hash::from_hex(digits).map(|hash| Self(*hash.as_bytes())).map_err(|_| ParseIdError)
    }
}

text_and_bytes!(BlobHash, 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_reads_what_it_prints() {
        let hash = BlobHash::of(b"weights");
        assert!(hash.to_string().starts_with(PREFIX) && hash.hex().len() == 64);
        assert_eq!(hash.to_string().parse(), Ok(hash));
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        let digits = BlobHash::of(b"").hex();
        for text in [
            String::new(),
            digits.clone(),
            format!("blake3:{digits}0"),
            format!("blake3:{}", &digits[1..]),
            format!("blake3:../{}", &digits[3..]),
            format!("blake3:{}", digits.to_uppercase()),
            format!("blake3:+{}", &digits[1..]),
            format!("blake3:{}é", &digits[2..]),
            format!("sha256:{digits}"),
        ] {
            assert_eq!(text.parse::<BlobHash>(), Err(ParseIdError), "{text:?}");
        }
    }
}
