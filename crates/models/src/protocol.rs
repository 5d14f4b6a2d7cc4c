//! What nodes ask each other about models.

use std::collections::BTreeMap;
use std::time::Duration;

use net::{Allowed, Protocol, RequestSpec, Roles, StreamSpec};
use ollama::client::Progress;
use ollama::{Digest, ModelName};
use serde::{Deserialize, Serialize};

/// "What do you have?"
pub(crate) const HOLDINGS: RequestSpec = RequestSpec {
    protocol: Protocol::new("/omx/holdings/1"),
    roles: Roles::ALL,
    request_bytes_max: 64,
    response_bytes_max: Holdings::BYTES_MAX,
    deadline: Duration::from_secs(5),
    concurrency_per_peer: 4,
};

/// "May I fetch this from its registry?", and how far whoever may is.
pub(crate) const TURN: StreamSpec = StreamSpec {
    protocol: Protocol::new("/omx/pull/1"),
    allowed: Allowed::Members(Roles::ALL),
    concurrency_per_peer: 64,
    concurrency_total: 1024,
};
pub(crate) const TURN_BYTES_MAX: usize = 4 << 10;

/// "Read all you have of this again."
pub(crate) const VERIFY: StreamSpec = StreamSpec {
    protocol: Protocol::new("/omx/verify/1"),
    allowed: Allowed::Members(Roles::NODES),
    concurrency_per_peer: 2,
    concurrency_total: 4,
};
pub(crate) const VERIFY_BYTES_MAX: usize = 4 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VerifyAsked {
    pub(crate) version: Digest,
    pub(crate) repair: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VerifyTold(pub(crate) Result<Verified, String>);

/// What a look at all files of a version found on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    pub bytes: u64,
    /// Chunks that were not what they should be.
    pub damaged: u64,
    /// All of them are right again.
    pub repaired: bool,
}

/// How a node has a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HolderState {
    /// All of it lies there, checked, and a backend there lists it: this counts.
    Verified,
    /// All of it lies there, checked; no backend there lists it.
    Stored,
    /// It comes in.
    Fetching { bytes: u64, total: u64 },
    /// A backend there lists it; nobody could look at the files, or not yet.
    Listed,
    /// Something of it is not what it should be.
    Damaged,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    pub versions: BTreeMap<Digest, HolderState>,
    /// Bytes free where models go.
    pub disk_free: u64,
    /// Of the machine, in bytes.
    pub memory: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Turn {
    /// Asked once.
    Wanted(ModelName),
    /// Both ways: of whoever has the turn.
    Progress { status: String, digest: String, total: u64, completed: u64 },
    /// It is yours as long as this stream is open.
    Yours,
}

impl Holdings {
    /// All versions a registry can hold.
    pub(crate) const BYTES_MAX: usize = 512 << 10;
}

impl codec::Record for Holdings {
    const VERSION: u8 = 1;
    const LIMIT: usize = Self::BYTES_MAX;
}

impl codec::Record for VerifyAsked {
    const VERSION: u8 = 1;
    const LIMIT: usize = VERIFY_BYTES_MAX;
}

impl codec::Record for VerifyTold {
    const VERSION: u8 = 1;
    const LIMIT: usize = VERIFY_BYTES_MAX;
}

impl codec::Record for Turn {
    const VERSION: u8 = 1;
    const LIMIT: usize = TURN_BYTES_MAX;
}

impl HolderState {
    /// Whether others can fetch from there.
    pub fn is_source(self) -> bool {
        matches!(self, Self::Verified | Self::Stored | Self::Fetching { .. })
    }

    /// Whether it is a copy to be counted on.
    pub fn counts(self) -> bool {
        self == Self::Verified
    }
}

impl From<Progress> for Turn {
    fn from(progress: Progress) -> Self {
        let Progress { status, digest, total, completed, .. } = progress;
        let cut = |text: String| text.chars().take(200).collect();
        Self::Progress { status: cut(status), digest: cut(digest), total, completed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_reads_as_it_was_written() {
        let state = HolderState::Fetching { bytes: 3, total: 9 };
        let versions = BTreeMap::from([(Digest::of(b"x"), state)]);
        let holdings = Holdings { versions, disk_free: 1 << 40, memory: 1 << 35 };
        assert_eq!(codec::decode::<Holdings>(&codec::encode(&holdings).unwrap()).unwrap(), holdings);
        let bytes = codec::encode(&Turn::Wanted("m".parse().unwrap())).unwrap();
        assert_eq!(bytes, [&[1, 0, 8][..], b"m:latest"].concat());
        let versions = (0..8192u32).map(|n| (Digest::of(&n.to_be_bytes()), state)).collect();
        let full = Holdings { versions, ..holdings };
        assert!(codec::encode(&full).is_ok(), "twice as many versions as there can be");
    }
}
