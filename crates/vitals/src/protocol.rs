//! What goes between two members. Who sends is known from the connection it comes over.

use serde::{Deserialize, Serialize};
use types::NodeId;

use crate::record::{Signed, Stamp};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// To those who watch the sender.
    Beat(Beat),
    /// To everybody, when one changes.
    Opinions(Vec<Opinion>),
    Records(Vec<Signed>),
    /// What the sender knows of some members, nothing being zero. The receiver answers with records that are newer,
    /// and, where `answer` says so, with the stamps of those that are older.
    Digest {
        entries: Vec<Entry>,
        answer: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Of the beat, not of a record.
    pub stamp: Stamp,
}

/// What a watcher says of one it watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opinion {
    pub of: NodeId,
    pub missing: bool,
    /// The greater is the newer.
    pub stamp: Stamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub node: NodeId,
    pub stamp: Stamp,
}

impl Message {
    /// Of opinions and entries.
    pub(crate) const ITEMS_MAX: usize = 512;
    /// Of records, together.
    pub(crate) const RECORD_BYTES_MAX: usize = 30 << 10;
}

impl codec::Record for Message {
    const VERSION: u8 = 1;
    /// One record may be as long as it is allowed to be, whatever else is in the message.
    const LIMIT: usize = 64 << 10;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::MODELS_MAX;
    use crate::record::tests::{facts, model, node, record, signed};
    use crate::record::{Facts, Record};

    #[test]
    fn a_beat_is_small() {
        let stamp = Stamp { incarnation: 1_790_000_000_000, sequence: 100_000 };
        assert!(codec::encode(&Message::Beat(Beat { stamp })).unwrap().len() <= 16);
    }

    #[test]
    fn the_longest_messages_can_be_sent() {
        let stamp = Stamp { incarnation: u64::MAX, sequence: u64::MAX };
        let entries = vec![Entry { node: node(1), stamp }; Message::ITEMS_MAX];
        let digest = Message::Digest { entries, answer: true };
        let opinions = Message::Opinions(vec![Opinion { of: node(1), missing: true, stamp }; Message::ITEMS_MAX]);
        let full = Facts { models: vec![model(&"x".repeat(52), true); MODELS_MAX], ..facts(&[]) };
        let longest = signed(&Record { facts: full, ..record(1, 1, 1) });
        assert!(longest.size() > 20 << 10);
        for message in [digest, opinions, Message::Records(vec![longest; 2])] {
            let bytes = codec::encode(&message).unwrap();
            assert_eq!(codec::decode::<Message>(&bytes).unwrap(), message);
        }
    }
}
