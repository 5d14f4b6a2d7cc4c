//! Join tokens, as the registry knows them: the public half of a key, so that nothing stored here can mint a join.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use types::{NodeId, Role, UnixMillis};

use super::{Refused, Registry};

const TOKENS_MAX: usize = 1_024;

/// The public half of a token's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenId([u8; 32]);

impl TokenId {
    pub(crate) fn of(key: NodeId) -> Self {
        Self(*key.public_key())
    }

    /// The id a node with this key would have; signatures are checked against it.
    pub(crate) fn as_node_id(self) -> NodeId {
        NodeId::from_public_key(self.0)
    }
}

/// Short enough to type, long enough never to meet another.
impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub role: Role,
    pub uses_left: u32,
    pub created_at: UnixMillis,
    pub expires_at: UnixMillis,
}

impl Registry {
    /// The token whose id begins so, if exactly one does.
    pub fn token_beginning(&self, text: &TokenPrefix) -> Option<TokenId> {
        let mut found = self.tokens.keys().filter(|id| id.to_string().starts_with(&text.0));
        found.next().filter(|_| found.next().is_none()).copied()
    }

    pub(super) fn create_token(&mut self, id: TokenId, token: &JoinToken, at: UnixMillis) -> Result<(), Refused> {
        self.tokens.retain(|_, token| token.expires_at > at);
        if self.tokens.contains_key(&id) {
            return Ok(());
        }
        if self.tokens.len() >= TOKENS_MAX {
            return Err(Refused::Full { what: "open tokens".to_owned(), limit: TOKENS_MAX });
        }
        self.tokens.insert(id, token.clone());
        Ok(())
    }
}

/// The beginning of a token's id, as people copy it from a table: 4 to 12 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPrefix(String);

impl FromStr for TokenPrefix {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let good = (4..=12).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if good { Ok(Self(text.to_ascii_lowercase())) } else { Err(Refused::UnknownToken) }
    }
}
