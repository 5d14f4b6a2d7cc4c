//! What the registry holds, and what is asked of it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use types::{NodeId, NodeName, Role, Scope};

use super::Time;

/// A change that has nothing to show but that it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// Of the change: any node asked with `at_least` this shows it.
    pub index: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeLabels {
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    #[serde(default)]
    pub unset: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What the new member may do. Default: `node`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// How many machines may join with it. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// How long it is good for, in seconds. Default: an hour; at most 30 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
}

/// A join token, just made. Nothing else ever shows its text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewToken {
    pub id: String,
    pub token: String,
    pub role: Role,
    pub uses: u32,
    pub ttl_s: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Token {
    pub id: String,
    pub role: Role,
    pub uses_left: u32,
    pub created_at: Time,
    pub expires_at: Time,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Setting {
    pub key: String,
    pub value: String,
    pub default: String,
    pub about: String,
    /// Of the change that made it so; 0 for a default.
    pub index: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetValue {
    pub value: String,
    /// Only where the last change of the setting has this index (0: never changed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// Index of the change whose value shall hold again; 0 for the default.
    pub to: u64,
}

/// One change of a setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    pub index: u64,
    pub at: Time,
    pub by: String,
    /// None for a return to the default.
    pub value: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    pub name: String,
    pub scopes: Vec<Scope>,
    /// How long it is good for, in seconds. Default: until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
    /// Requests to models it may have under way at once, at each node. Default: no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<NonZeroU32>,
    /// Requests to models it may start within a minute, at each node. Default: no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<NonZeroU32>,
}

/// An API key, just made. Nothing else ever shows its text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewKey {
    pub id: String,
    pub key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Key {
    pub id: String,
    pub name: String,
    pub scopes: Vec<Scope>,
    pub created_at: Time,
    pub expires_at: Option<Time>,
    /// Requests to models it may have under way at once, at each node.
    pub concurrent: Option<NonZeroU32>,
    /// Requests to models it may start within a minute, at each node.
    pub per_minute: Option<NonZeroU32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrollBackend {
    /// What people shall call it; formed as a node's name.
    #[schemars(with = "String")]
    pub name: NodeName,
    /// Where the Ollama listens: `http://host:port`.
    pub url: String,
    /// The one node that may stand before it, by name, id or the beginning of its id. Default: the nodes settle it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// An Ollama on a machine without a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnrolledBackend {
    #[schemars(with = "String")]
    pub name: NodeName,
    pub url: String,
    /// The one node that may stand before it; none where any may.
    pub node: Option<Standing>,
    /// Who stands before it now, as the node that answers sees it.
    pub host: Option<Standing>,
    pub enrolled_at: Time,
}

/// A node before a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Standing {
    #[schemars(with = "String")]
    pub id: NodeId,
    /// None once it is no member any more.
    #[schemars(with = "Option<String>")]
    pub name: Option<NodeName>,
}

impl std::fmt::Debug for NewToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_of_a_secret_does_not_print_it() {
        let token =
            NewToken { id: "a1".to_owned(), token: "canary".to_owned(), role: Role::Node, uses: 1, ttl_s: 3_600 };
        let key = NewKey { id: "b2".to_owned(), key: "canary".to_owned() };
        let printed = format!("{token:?} {key:?}");
        assert!(printed.contains("a1") && printed.contains("b2") && !printed.contains("canary"), "{printed}");
    }

    #[test]
    fn a_field_nobody_knows_is_an_error_and_not_ignored() {
        assert!(serde_json::from_str::<CreateToken>(r#"{"use": 3}"#).is_err());
        assert!(serde_json::from_str::<SetValue>(r#"{"value": "7", "expected": 3}"#).is_err());
    }
}
