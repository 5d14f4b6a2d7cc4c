//! What can be offered to peers and how a refusal is said. The bytes of a request or stream belong to its owner.

use std::fmt;
use std::time::Duration;

use types::Role;

/// A name and its major version: `/omx/raft/1`. Majors do not talk to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(&'static str);

/// The longest name; it travels with one byte for its length.
pub(crate) const PROTOCOL_NAME_MAX: usize = 64;

impl Protocol {
    /// # Panics
    /// Where the name is longer than 64 bytes or does not end in `/` and digits. As a `const`, it does not compile.
    pub const fn new(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        assert!(bytes.len() <= PROTOCOL_NAME_MAX, "a protocol's name has at most 64 bytes");
        let mut end = bytes.len();
        while end > 0 && bytes[end - 1].is_ascii_digit() {
            end -= 1;
        }
        let digits = bytes.len() - end;
        assert!(digits > 0 && digits < 9 && end > 1 && bytes[end - 1] == b'/', "a protocol's name ends in `/<major>`");
        Self(name)
    }

    pub const fn name(self) -> &'static str {
        self.0
    }

    /// The name without its version, and the version.
    pub(crate) fn split(name: &str) -> Option<(&str, u32)> {
        let (stem, major) = name.rsplit_once('/')?;
        Some((stem, major.parse().ok()?))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A set of roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    pub const NODES: Self = Self(0b01);
    pub const WORKERS: Self = Self(0b10);
    pub const ALL: Self = Self(0b11);

    pub const fn contains(self, role: Role) -> bool {
        let bit = match role {
            Role::Node => Self::NODES.0,
            Role::Worker => Self::WORKERS.0,
        };
        self.0 & bit != 0
    }
}

/// The longest a request's deadline can be. What takes longer is a stream.
pub(crate) const REQUEST_DEADLINE_MAX: Duration = Duration::from_secs(60);

/// The largest message of any topic.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Who may open a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    Members(Roles),
    /// Anyone, members too: what a joiner speaks. Reached through the bulk listener only.
    Strangers,
}

/// One question, one answer, both small. Over the mesh connection, so for members only.
#[derive(Debug, Clone, Copy)]
pub struct RequestSpec {
    pub protocol: Protocol,
    pub roles: Roles,
    pub request_bytes_max: usize,
    pub response_bytes_max: usize,
    /// For the caller: how long the whole may take. For the handler: when it is dropped.
    pub deadline: Duration,
    /// Requests one peer may have under way here. One more is refused as `Busy`.
    pub concurrency_per_peer: usize,
}

/// A stream of bytes each way, for as long as both want.
#[derive(Debug, Clone, Copy)]
pub struct StreamSpec {
    pub protocol: Protocol,
    pub allowed: Allowed,
    /// Streams one peer may have open here. One more is refused as `Busy`.
    pub concurrency_per_peer: usize,
    /// Streams all peers together may have open here. One more is refused as `Busy`.
    pub concurrency_total: usize,
}

/// Hints for everybody: may be lost, doubled or late.
#[derive(Debug, Clone, Copy)]
pub struct TopicSpec {
    pub name: &'static str,
    /// Whose messages count; it is the author's role that is looked at, not that of the peer that passed them on.
    pub roles: Roles,
    pub message_bytes_max: usize,
}

/// Why a peer did not do what it was asked. Nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it does not count us among its members")]
    NotAMember,
    #[error("our role may not do that")]
    RoleNotAllowed,
    #[error("it does not speak that protocol{}", .speaks.map(|major| format!(", but its version `{major}`")).unwrap_or_default())]
    UnknownProtocol {
        /// The newest major it does speak.
        speaks: Option<u32>,
    },
    #[error("the message is too large")]
    TooLarge,
    #[error("it is busy")]
    Busy,
    #[error("it could not read what we sent")]
    Malformed,
    #[error("it has cut us off for breaking rules")]
    CutOff,
    #[error("it is stopping")]
    Stopping,
    /// The handler did not end in time. What it had begun may have been done.
    #[error("it did not finish in time")]
    Late,
    /// In the handler's own words.
    #[error("{0}")]
    Failed(String),
}

/// The longest text of a refusal; the rest is cut off.
const REFUSAL_TEXT_MAX: usize = 512;

/// The status byte that stands for "done".
pub(crate) const STATUS_OK: u8 = 0;

impl Refusal {
    /// Its status byte and what follows it. Numbers are for ever; new ones are added at the end.
    pub(crate) fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Self::NotAMember => (1, Vec::new()),
            Self::RoleNotAllowed => (2, Vec::new()),
            Self::UnknownProtocol { speaks } => {
                (3, speaks.map(|major| major.to_be_bytes().to_vec()).unwrap_or_default())
            }
            Self::TooLarge => (4, Vec::new()),
            Self::Busy => (5, Vec::new()),
            Self::Malformed => (6, Vec::new()),
            Self::CutOff => (7, Vec::new()),
            Self::Stopping => (8, Vec::new()),
            Self::Late => (9, Vec::new()),
            Self::Failed(text) => {
                let end = text.floor_char_boundary(REFUSAL_TEXT_MAX);
                (10, text.as_bytes()[..end].to_vec())
            }
        }
    }

    /// A status this version does not know reads as a failure: a newer peer may have reasons we do not.
    pub(crate) fn decode(status: u8, detail: &[u8]) -> Self {
        match status {
            1 => Self::NotAMember,
            2 => Self::RoleNotAllowed,
            3 => Self::UnknownProtocol { speaks: detail.try_into().ok().map(u32::from_be_bytes) },
            4 => Self::TooLarge,
            5 => Self::Busy,
            6 => Self::Malformed,
            7 => Self::CutOff,
            8 => Self::Stopping,
            9 => Self::Late,
            10 => {
                let text: String = String::from_utf8_lossy(detail).chars().filter(|c| !c.is_control()).collect();
                Self::Failed(text.chars().take(REFUSAL_TEXT_MAX).collect())
            }
            other => Self::Failed(format!("for a reason this version does not know (`{other}`)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_arrives_as_it_was_said() {
        for refusal in [
            Refusal::NotAMember,
            Refusal::RoleNotAllowed,
            Refusal::UnknownProtocol { speaks: None },
            Refusal::UnknownProtocol { speaks: Some(2) },
            Refusal::TooLarge,
            Refusal::Busy,
            Refusal::Malformed,
            Refusal::CutOff,
            Refusal::Stopping,
            Refusal::Late,
            Refusal::Failed("the disk is full".to_owned()),
        ] {
            let (status, detail) = refusal.encode();
            assert_ne!(status, STATUS_OK);
            assert_eq!(Refusal::decode(status, &detail), refusal);
        }
    }

    #[test]
    fn a_refusals_text_is_bounded_and_cannot_move_a_terminals_cursor() {
        let (status, detail) = Refusal::Failed("ü\u{1b}[2J".repeat(1000)).encode();
        assert!(detail.len() <= REFUSAL_TEXT_MAX);
        let Refusal::Failed(text) = Refusal::decode(status, &detail) else { panic!("not a failure") };
        assert!(text.starts_with("ü[2J") && !text.contains('\u{1b}'));
        assert!(matches!(Refusal::decode(200, b"?"), Refusal::Failed(_)));
    }

    #[test]
    fn a_protocol_without_a_version_is_none() {
        assert_eq!(Protocol::split(Protocol::new("/omx/raft/12").name()), Some(("/omx/raft", 12)));
        for name in ["", "1", "/1", "/omx/raft", "/omx/raft/", "/omx/raft1"] {
            assert!(std::panic::catch_unwind(|| Protocol::new(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn roles_hold_what_their_name_says() {
        assert!(Roles::NODES.contains(Role::Node) && !Roles::NODES.contains(Role::Worker));
        assert!(Roles::WORKERS.contains(Role::Worker) && !Roles::WORKERS.contains(Role::Node));
        assert!(Roles::ALL.contains(Role::Worker) && Roles::ALL.contains(Role::Node));
    }
}
