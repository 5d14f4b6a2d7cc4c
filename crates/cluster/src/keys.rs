//! API keys as text: `omx_<id>_<secret><checksum>`. Shown once, stored as a hash.

use types::{Scopes, Secret, UnixMillis};

use crate::registry::{ApiKey, Grant, KeyHash, KeyId, KeyLimits, Registry};

const PREFIX: &str = "omx_";
const CHECKSUM_DIGITS: usize = 6;
/// Longer than any key; hashing what is longer would only serve an attacker.
const TEXT_MAX: usize = 128;

/// A key in full, just made.
#[derive(Debug, Clone)]
pub struct NewKey {
    pub id: KeyId,
    pub text: Secret<String>,
}

impl NewKey {
    pub(crate) fn from_random(random: [u8; 32], id: [u8; 6]) -> Self {
        let id = KeyId::from_bytes(id);
        let body = format!("{PREFIX}{id}_{}", bs58::encode(random).into_string());
        let sum = checksum(&body);
        Self { id, text: Secret::new(body + &sum) }
    }

    /// A key that was made before, as it stands in a file; nothing where the text is none.
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.trim();
        Some(Self { id: id_of(text)?, text: Secret::new(text.to_owned()) })
    }

    pub(crate) fn hash(&self) -> KeyHash {
        hash(self.text.expose())
    }
}

fn checksum(body: &str) -> String {
    blake3::hash(body.as_bytes()).to_hex().chars().take(CHECKSUM_DIGITS).collect()
}

fn hash(text: &str) -> KeyHash {
    KeyHash(blake3::derive_key("omx 1 api key", text.as_bytes()))
}

/// The id in a text that has the form of a key and a fitting checksum: a typing mistake is told from a wrong key
/// without looking anything up.
fn id_of(text: &str) -> Option<KeyId> {
    if text.len() > TEXT_MAX || !text.is_ascii() {
        return None;
    }
    let (body, sum) = text.split_at_checked(text.len().checked_sub(CHECKSUM_DIGITS)?)?;
    let (id, _) = body.strip_prefix(PREFIX)?.split_once('_')?;
    (checksum(body) == sum).then(|| id.parse().ok()).flatten()
}

impl Registry {
    /// What a key opens; nothing where it is unknown, wrong or expired, and the caller is not told which.
    pub fn authenticate(&self, text: &str, now: UnixMillis) -> Option<Grant> {
        let id = id_of(text)?;
        let given = blake3::Hash::from_bytes(hash(text).0);
        let nobody = ApiKey {
            name: String::new(),
            hash: KeyHash([0; 32]),
            scopes: Scopes::NONE,
            created_at: UnixMillis(0),
            expires_at: None,
            limits: KeyLimits::NONE,
        };
        // An unknown id is compared all the same, so that the time taken says nothing. `Hash` compares in constant time.
        let known = self.key(&id).unwrap_or(&nobody);
        let same = given == blake3::Hash::from_bytes(known.hash.0);
        (same && !known.expired(now)).then_some(Grant { key: id, scopes: known.scopes, limits: known.limits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_id_and_any_change_is_noticed() {
        let key = NewKey::from_random([7; 32], [1, 2, 3, 4, 5, 6]);
        let text = key.text.expose();
        assert!(text.starts_with("omx_010203040506_"), "{text}");
        assert_eq!(id_of(text), Some(key.id.clone()));
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'2' { b'3' } else { b'2' };
            assert_eq!(id_of(std::str::from_utf8(&changed).unwrap()), None, "{at}");
        }
        for text in ["", "omx_", "omx__", "ü", &"omx_".repeat(1_000)] {
            assert_eq!(id_of(text), None);
        }
    }
}
