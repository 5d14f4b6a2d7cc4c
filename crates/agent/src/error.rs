use std::time::Duration;

use crate::desk::Refusal;
use crate::pool;

/// Why a request came to nothing here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It never reached the backend.
    #[error("not taken")]
    Refused(#[source] Refusal),
    #[error("the backend was given up: {0}")]
    GivenUp(String),
    #[error("the backend said nothing for `{0:?}`")]
    Silent(Duration),
    #[error("the backend could not be asked")]
    Unreachable(#[source] pool::Error),
    #[error("the backend cannot be asked: {0}")]
    NoWay(String),
    #[error("the answer broke off")]
    Broken(#[source] hyper::Error),
    #[error("the backend answered what is no answer: {0}")]
    Garbage(&'static str),
}

impl Error {
    /// Whether another node may do better with the same request. Whoever has shown bytes to a client asks no more.
    pub fn may_differ_elsewhere(&self) -> bool {
        !matches!(self, Self::Refused(Refusal::Late))
    }
}
