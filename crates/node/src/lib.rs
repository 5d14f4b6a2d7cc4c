//! One node: its parts, built and started in order and stopped in reverse, behind one facade.

mod api;
mod backend;
mod catalogue;
mod events;
mod folder;
mod inference;
mod parts;
mod placement;
mod start;
#[cfg(feature = "test-util")]
pub mod test_util;

pub use agent::slots::SLOTS_MAX;
pub use agent::{Route, Waited};
pub use api::{
    Api, EnrolledInfo, Error, Event, Figures, KeyInfo, Link, NodeInfo, NodeState, Readiness, Seat, SettingInfo,
    Standing, Status, TokenInfo, now,
};
pub use backend::{Backend, BackendInfo, EngineWanted, FIRST_MODEL, OllamaWanted, Unavailable, Wanted, Way};
pub use blobs::{Collected as CollectedBlob, SourceInfo, Stage, TransferInfo};
pub use catalogue::{ModelInfo, ModelsError, replicas};
pub use cluster::Error as RegistryError;
pub use cluster::{
    Actor, Change, Consistency, Grant, JournalEntry, KeyId, KeyLimits, Moved, NewKey, Piece, Refused, Replicas, Rule,
    StateHash, Token, TokenId, TokenPrefix, Verb,
};
pub use cluster::{End, JoinError, ParseTokenError};
pub use dispatch::{Error as InferError, Reason, Trace, Unanswered, What, Why};
pub use engine::keeper::Program;
pub use folder::{Error as FolderError, Folder, RunInfo};
pub use inference::{Failover, Infer, InferFigures, Inference, Inferred, List, NotShown};
pub use models::upstream::Error as UpstreamError;
pub use models::{Error as ModelError, HolderState, Imported, Verified, chain};
pub use ollama::compose::Texts;
pub use ollama::{Endpoint, ParseEndpointError};
pub use parts::PartEnded;
pub use placement::{Placed, UnmetRule};
pub use scheduler::Tenant;
pub use start::{Config, Ended, Node, Progress, StartError, would_join};
pub use vitals::{Backend as BackendFacts, Facts as NodeFacts, Model as ModelFacts};
