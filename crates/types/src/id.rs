//! Identities. Each has one text form and one binary form; both are checked on the way in.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A node for life: its ed25519 public key. As text it is the libp2p peer id of that key (`12D3KooW…`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 32]);

/// What stands before an ed25519 key in a libp2p peer id: identity multihash of length 36, then the protobuf header.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl NodeId {
    pub const fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// The peer id's bytes, as libp2p puts them on the wire.
    pub fn to_peer_id_bytes(self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&PEER_ID_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// `None` where the peer id is not one of an ed25519 key.
    pub fn from_peer_id_bytes(bytes: &[u8]) -> Option<Self> {
        let key = bytes.strip_prefix(&PEER_ID_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_peer_id_bytes()).into_string())
    }
}

/// A mesh: 128 random bits, made once with its first node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshId([u8; 16]);

/// One write to the registry, named by whoever asked for it, so that asking twice does it once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId([u8; 16]);

macro_rules! random_hex_id {
    ($name:ident) => {
        impl $name {
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// Random bits from the operating system.
            pub fn random() -> Self {
                let mut bytes = [0; 16];
                getrandom::fill(&mut bytes).expect("the operating system has a random source");
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let mut text = [0; 32];
                for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
                    pair.copy_from_slice(&[byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)]));
                }
                f.write_str(std::str::from_utf8(&text).expect("hexadecimal digits are text"))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; 16];
                if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(ParseIdError);
                }
                for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
                    let digits = std::str::from_utf8(digits).map_err(|_| ParseIdError)?;
                    *byte = u8::from_str_radix(digits, 16).map_err(|_| ParseIdError)?;
                }
                Ok(Self(bytes))
            }
        }

        text_and_bytes!($name, 16);
    };
}

/// Text where the format is for people (JSON), raw bytes where it is for machines (bincode).
macro_rules! text_and_bytes {
    ($name:ident, $len:literal) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match serializer.is_human_readable() {
                    true => serializer.collect_str(self),
                    false => self.0.serialize(serializer),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match deserializer.is_human_readable() {
                    true => String::deserialize(deserializer)?.parse().map_err(D::Error::custom),
                    false => <[u8; $len]>::deserialize(deserializer).map(Self),
                }
            }
        }
    };
}

random_hex_id!(MeshId);
random_hex_id!(RequestId);
text_and_bytes!(NodeId, 32);
pub(crate) use text_and_bytes;

impl FromStr for NodeId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        // Longer than any peer id: base58 decoding costs the square of the length.
        if text.len() > 64 {
            return Err(ParseIdError);
        }
        let bytes = bs58::decode(text).into_vec().map_err(|_| ParseIdError)?;
        Self::from_peer_id_bytes(&bytes).ok_or(ParseIdError)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id of this kind")]
pub struct ParseIdError;

/// A member's number in the consensus protocol. Given by the registry, never used twice: a node whose disk was lost
/// comes back under a new one, so that nobody counts on promises it has forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RaftId(pub u64);

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_is_the_peer_id_of_its_key() {
        let id = NodeId::from_public_key([7; 32]);
        let text = id.to_string();
        assert!(text.starts_with("12D3KooW"), "{text}");
        assert_eq!(text.parse::<NodeId>(), Ok(id));
    }

    #[test]
    fn foreign_text_is_not_an_id() {
        for text in ["", "12D3KooW", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "ü", &"1".repeat(10_000)] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
        for text in ["", "zz", "+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1", &"0".repeat(31), &"é".repeat(16)] {
            assert!(text.parse::<MeshId>().is_err(), "{text}");
        }
    }

    #[test]
    fn hex_ids_read_what_they_print() {
        let id = MeshId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}
