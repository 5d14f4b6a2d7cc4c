//! The text a new member is started with.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use net::Keypair;
use serde::{Deserialize, Serialize};
use types::{MeshId, NodeId, Secret};

use crate::registry::TokenId;

/// What stands before every token, so that people and secret scanners know one when they see it.
const PREFIX: &str = "omxt_";
const CHECKSUM_BYTES: usize = 4;
/// Three nodes with a handful of addresses each.
const TEXT_MAX: usize = 2_048;
pub(crate) const DOORS_MAX: usize = 3;

#[derive(Clone)]
pub struct Token {
    mesh: MeshId,
    seed: Secret<[u8; 16]>,
    doors: Vec<Door>,
}

/// A member that lets joiners in, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    pub id: NodeId,
    pub bulk: Vec<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    #[error("this is no join token: a token begins with `{PREFIX}`")]
    Prefix,
    #[error("the token is damaged: its checksum does not fit, a character may be missing")]
    Damaged,
    #[error("the token was made by a newer version of omx")]
    TooNew,
}

#[derive(Serialize, Deserialize)]
struct Parts {
    mesh: MeshId,
    seed: [u8; 16],
    doors: Vec<Door>,
}

impl codec::Record for Parts {
    const VERSION: u8 = 1;
    const LIMIT: usize = TEXT_MAX;
}

impl Token {
    pub(crate) fn new(mesh: MeshId, seed: [u8; 16], doors: Vec<Door>) -> Self {
        Self { mesh, seed: Secret::new(seed), doors }
    }

    pub fn mesh(&self) -> MeshId {
        self.mesh
    }

    pub fn doors(&self) -> &[Door] {
        &self.doors
    }

    pub fn id(&self) -> TokenId {
        TokenId::of(self.key().node_id())
    }

    pub(crate) fn key(&self) -> Keypair {
        Keypair::from_seed(blake3::derive_key("omx 1 join token", self.seed.expose()))
    }

    /// The token in full. Whoever has it can join.
    pub fn reveal(&self) -> String {
        let parts = Parts { mesh: self.mesh, seed: *self.seed.expose(), doors: self.doors.clone() };
        let mut bytes = crate::pack(&parts).to_vec();
        bytes.extend_from_slice(&checksum(&bytes));
        format!("{PREFIX}{}", bs58::encode(bytes).into_string())
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = blake3::hash(bytes);
    *hash.as_bytes().first_chunk().expect("a hash is longer than a checksum")
}

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).ok_or(ParseTokenError::Prefix)?;
        if body.len() > TEXT_MAX {
            return Err(ParseTokenError::Damaged);
        }
        let bytes = bs58::decode(body).into_vec().map_err(|_| ParseTokenError::Damaged)?;
        let (bytes, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(ParseTokenError::Damaged)?;
        if checksum(bytes) != *sum {
            return Err(ParseTokenError::Damaged);
        }
        let Parts { mesh, seed, doors } = codec::decode(bytes).map_err(|error| match error {
            codec::Error::TooNew { .. } => ParseTokenError::TooNew,
            _ => ParseTokenError::Damaged,
        })?;
        Ok(Self::new(mesh, seed, doors))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("mesh", &self.mesh).field("doors", &self.doors).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        let door = Door { id: NodeId::from_public_key([3; 32]), bulk: vec!["10.0.0.7:11437".parse().unwrap()] };
        Token::new(MeshId::from_bytes([1; 16]), [2; 16], vec![door])
    }

    #[test]
    fn a_token_reads_what_it_reveals_and_shows_no_secret_in_logs() {
        let text = token().reveal();
        let read: Token = format!(" {text}\n").parse().unwrap();
        assert_eq!((read.mesh(), read.id(), read.doors()), (token().mesh(), token().id(), token().doors()));
        assert!(!format!("{read:?}").contains("seed"));
    }

    #[test]
    fn a_token_with_any_character_changed_or_missing_is_damaged() {
        let text = token().reveal();
        for at in PREFIX.len()..text.len() {
            let mut changed: Vec<char> = text.chars().collect();
            changed[at] = if changed[at] == '2' { '3' } else { '2' };
            let changed: String = changed.into_iter().collect();
            assert_eq!(changed.parse::<Token>().unwrap_err(), ParseTokenError::Damaged, "{at}");
            assert!(text[..at].parse::<Token>().is_err());
        }
        assert_eq!("hello".parse::<Token>().unwrap_err(), ParseTokenError::Prefix);
    }
}
