//! Who may do what.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a member may do in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May become a voter and forward what its users ask.
    Node,
    /// Serves inference and holds models; never votes, never forwards an admin command.
    Worker,
}

/// One thing a caller of the API may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Ask models.
    Infer,
    /// See the mesh.
    Read,
    /// Change which models there are.
    Models,
    /// Change the mesh.
    Admin,
}

/// A set of scopes. `Admin` includes the others.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<Scope>", into = "Vec<Scope>")]
pub struct Scopes(u8);

impl Scope {
    pub const ALL: [Self; 4] = [Self::Infer, Self::Read, Self::Models, Self::Admin];

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl Scopes {
    pub const NONE: Self = Self(0);

    pub const fn all() -> Self {
        Self(0b1111)
    }

    pub const fn with(self, scope: Scope) -> Self {
        Self(self.0 | scope.bit())
    }

    pub const fn allows(self, scope: Scope) -> bool {
        self.0 & (scope.bit() | Scope::Admin.bit()) != 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.0 & scope.bit() != 0)
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        scopes.into_iter().fold(Self::NONE, Self::with)
    }
}

impl From<Vec<Scope>> for Scopes {
    fn from(scopes: Vec<Scope>) -> Self {
        scopes.into_iter().collect()
    }
}

impl From<Scopes> for Vec<Scope> {
    fn from(scopes: Scopes) -> Self {
        scopes.iter().collect()
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Infer => "infer",
            Self::Read => "read",
            Self::Models => "models",
            Self::Admin => "admin",
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Worker => "worker",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is none of {known}")]
pub struct ParseAccessError {
    found: String,
    known: &'static str,
}

impl FromStr for Scope {
    type Err = ParseAccessError;

    fn from_str(text: &str) -> Result<Self, ParseAccessError> {
        let known = "`infer`, `read`, `models`, `admin`";
        let same = |scope: &Self| scope.to_string() == text;
        Self::ALL
            .into_iter()
            .find(same)
            .ok_or_else(|| ParseAccessError { found: text.chars().take(40).collect(), known })
    }
}

impl FromStr for Role {
    type Err = ParseAccessError;

    fn from_str(text: &str) -> Result<Self, ParseAccessError> {
        match text {
            "node" => Ok(Self::Node),
            "worker" => Ok(Self::Worker),
            _ => Err(ParseAccessError { found: text.chars().take(40).collect(), known: "`node`, `worker`" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_includes_every_scope_and_no_other_scope_includes_another() {
        for held in Scope::ALL {
            for asked in Scope::ALL {
                let allowed = Scopes::NONE.with(held).allows(asked);
                assert_eq!(allowed, held == asked || held == Scope::Admin, "{held} {asked}");
            }
        }
        assert!(Scope::ALL.into_iter().all(|scope| !Scopes::NONE.allows(scope)));
    }

    #[test]
    fn scopes_and_roles_read_what_they_print() {
        for scope in Scope::ALL {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        for role in [Role::Node, Role::Worker] {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("root".parse::<Scope>().is_err());
    }
}
