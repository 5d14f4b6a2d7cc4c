//! API keys, as the registry knows them: a hash and what it opens.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use types::{Scopes, UnixMillis};

use super::{Refused, Registry};

const KEYS_MAX: usize = 1_024;
const NAME_CHARS_MAX: usize = 100;

/// The part of a key that is no secret: 12 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(String);

/// BLAKE3 of the whole key. A key has 256 random bits, so that no slow hash is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyHash(pub [u8; 32]);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct ApiKey {
    pub name: String,
    pub hash: KeyHash,
    pub scopes: Scopes,
    pub created_at: UnixMillis,
    pub expires_at: Option<UnixMillis>,
    pub limits: KeyLimits,
}

/// How much a key may ask of models; nothing where it has no limit of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLimits {
    /// Requests under way at once.
    pub concurrent: Option<NonZeroU32>,
    /// Requests started within any minute.
    pub per_minute: Option<NonZeroU32>,
}

/// What a key that was shown opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub key: KeyId,
    pub scopes: Scopes,
    pub limits: KeyLimits,
}

/// A key on disks and wires.
#[derive(Serialize, Deserialize)]
struct Stored {
    name: String,
    hash: KeyHash,
    scopes: Scopes,
    created_at: UnixMillis,
    terms: Terms,
}

/// The first two variants have the bytes of the `Option` that stood here before keys had limits. So each release reads
/// the keys of the other, until the first key with limits is made: an older one stops at that, as at any command it
/// does not know.
#[derive(Serialize, Deserialize)]
enum Terms {
    Unending,
    Until(UnixMillis),
    Limited { expires_at: Option<UnixMillis>, limits: KeyLimits },
}

impl KeyLimits {
    pub const NONE: Self = Self { concurrent: None, per_minute: None };
}

impl From<ApiKey> for Stored {
    fn from(key: ApiKey) -> Self {
        let ApiKey { name, hash, scopes, created_at, expires_at, limits } = key;
        let terms = match expires_at {
            _ if limits != KeyLimits::NONE => Terms::Limited { expires_at, limits },
            None => Terms::Unending,
            Some(end) => Terms::Until(end),
        };
        Self { name, hash, scopes, created_at, terms }
    }
}

impl From<Stored> for ApiKey {
    fn from(stored: Stored) -> Self {
        let Stored { name, hash, scopes, created_at, terms } = stored;
        let (expires_at, limits) = match terms {
            Terms::Unending => (None, KeyLimits::NONE),
            Terms::Until(end) => (Some(end), KeyLimits::NONE),
            Terms::Limited { expires_at, limits } => (expires_at, limits),
        };
        Self { name, hash, scopes, created_at, expires_at, limits }
    }
}

impl ApiKey {
    pub fn expired(&self, now: UnixMillis) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

impl KeyId {
    pub(crate) fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for KeyId {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let id = Self(text.chars().take(40).collect());
        let good = text.len() == 12 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(id) } else { Err(Refused::UnknownKey(id)) }
    }
}

impl Registry {
    pub(super) fn create_key(&mut self, id: &KeyId, key: &ApiKey) -> Result<(), Refused> {
        if key.name.chars().count() > NAME_CHARS_MAX {
            return Err(Refused::Full { what: "characters of a key's name".to_owned(), limit: NAME_CHARS_MAX });
        }
        if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(id) {
            return Err(Refused::Full { what: "keys".to_owned(), limit: KEYS_MAX });
        }
        self.keys.entry(id.clone()).or_insert_with(|| key.clone());
        Ok(())
    }
}
