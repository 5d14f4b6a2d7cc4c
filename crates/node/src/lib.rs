//! One node: its parts, built and started in order and stopped in reverse, behind one facade.

mod api;

pub use api::{
    Api, Error, Event, Figures, KeyInfo, Link, NodeInfo, NodeState, Readiness, Seat, SettingInfo, Status, TokenInfo,
};
pub use cluster::{
    Actor, Change, Consistency, JournalEntry, KeyId, NewKey, Refused, StateHash, Token, TokenId, TokenPrefix,
};
