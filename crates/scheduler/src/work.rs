//! What decides where a request should run, and nothing of its text.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Chain, Seconds};

/// One request as the scheduler sees it. It is also what a probe carries to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    pub model: ModelKey,
    pub chain: Chain,
    /// Tokens of the prompt, roughly: a quarter of its bytes where nobody counted.
    pub prompt: u32,
    /// Tokens of the answer that are expected, at most what the client allows.
    pub output: u32,
    /// The window it needs. A backend that loaded the model with a smaller one must load again; `None` runs in any.
    pub context: Option<u32>,
    pub class: Class,
    pub tenant: Tenant,
    /// When its caller has no use for an answer any more, counted from the moment it is asked.
    pub deadline: Option<Duration>,
}

/// Model bytes that answer alike: a manifest's digest, in short. Nodes that hold another manifest under the same name
/// hold another model.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ModelKey([u8; 16]);

impl ModelKey {
    /// `digest`: the SHA-256 of the manifest. Half of it cannot be forged to collide with less than 2^64 work, and
    /// whoever can put a manifest here can run models anyway.
    pub fn of_manifest(digest: &[u8; 32]) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Self(key)
    }

    pub const fn from_bytes(key: [u8; 16]) -> Self {
        Self(key)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ModelKey {
    /// As short as people write digests.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How much somebody waits for the answer. The order is that of queues: the first goes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// A voice or a keystroke waits.
    Realtime,
    /// A person reads along.
    #[default]
    Interactive,
    /// A program waits for the whole.
    Batch,
    /// Nobody waits.
    Background,
}

impl Class {
    pub const ALL: [Self; 4] = [Self::Realtime, Self::Interactive, Self::Batch, Self::Background];

    /// How much a second before the first token counts beyond a second of the whole.
    pub const fn impatience(self) -> f32 {
        match self {
            Self::Realtime | Self::Interactive => 3.0,
            Self::Batch | Self::Background => 0.0,
        }
    }

    /// The value of an estimate for this class: time to the whole answer, with the wait for its beginning counted again
    /// as often as it hurts, and doubt on top.
    pub fn score(self, ttft: Seconds, decode: Seconds, deviation: Seconds) -> Seconds {
        ttft + decode + ttft * self.impatience() + deviation
    }
}

/// Who is charged for the work, in a form that tells nobody who it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tenant(u64);

impl Tenant {
    /// Everybody without a key, together.
    pub const ANONYMOUS: Self = Self(0);

    /// The same on every node, so that shares can be compared.
    pub fn of_key(id: &[u8]) -> Self {
        let hash = blake3::derive_key("omx tenant 1", id);
        Self(u64::from_le_bytes(hash[..8].try_into().expect("eight bytes")).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_charged_to_the_anonymous() {
        assert_ne!(Tenant::of_key(b""), Tenant::ANONYMOUS);
        assert_ne!(Tenant::of_key(b"a"), Tenant::of_key(b"b"));
        assert_eq!(Tenant::of_key(b"a"), Tenant::of_key(b"a"));
    }

    #[test]
    fn a_reader_minds_the_first_token_and_a_batch_the_last() {
        let (early, late) = (Seconds::new(1.0), Seconds::new(5.0));
        let quick_start = |class: Class| class.score(early, Seconds::new(20.0), Seconds::ZERO);
        let quick_end = |class: Class| class.score(late, Seconds::new(12.0), Seconds::ZERO);
        assert!(quick_start(Class::Interactive) < quick_end(Class::Interactive));
        assert!(quick_start(Class::Batch) > quick_end(Class::Batch));
    }
}
