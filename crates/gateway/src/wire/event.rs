//! What happens, as it happens.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use types::{NodeId, NodeName};

use super::Time;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Event {
    /// The registry changed, or refused to. The stream can be resumed after its index.
    Registry {
        index: u64,
        at: Time,
        by: String,
        what: String,
        /// Why it was refused, if it was.
        refused: Option<String>,
    },
    /// This node reaches that one again.
    Up {
        #[schemars(with = "String")]
        node: NodeId,
        #[schemars(with = "String")]
        name: NodeName,
    },
    Down {
        #[schemars(with = "String")]
        node: NodeId,
        #[schemars(with = "String")]
        name: NodeName,
    },
    /// Who leads now, if anyone does.
    Leader {
        #[schemars(with = "Option<String>")]
        node: Option<NodeId>,
        #[schemars(with = "Option<String>")]
        name: Option<NodeName>,
    },
    /// The listener was too slow: so many events were not sent to it.
    Missed { count: u64 },
}

impl Event {
    /// The type's name, as in the JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Registry { .. } => "registry",
            Self::Up { .. } => "up",
            Self::Down { .. } => "down",
            Self::Leader { .. } => "leader",
            Self::Missed { .. } => "missed",
        }
    }

    /// What the stream can be resumed after.
    pub fn index(&self) -> Option<u64> {
        match self {
            Self::Registry { index, .. } => Some(*index),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_called_what_its_json_says() {
        let node = NodeId::from_public_key([1; 32]);
        let name: NodeName = "tower".parse().unwrap();
        let at = Time(types::UnixMillis(0));
        let (by, what) = ("user 0".to_owned(), "drain".to_owned());
        for event in [
            Event::Registry { index: 7, at, by, what, refused: None },
            Event::Up { node, name: name.clone() },
            Event::Down { node, name: name.clone() },
            Event::Leader { node: Some(node), name: Some(name) },
            Event::Missed { count: 3 },
        ] {
            let json = serde_json::to_value(&event).unwrap();
            assert_eq!(json["type"], event.name());
            assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
        }
    }
}
