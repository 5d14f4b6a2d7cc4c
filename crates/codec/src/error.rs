/// Why bytes are not the value they should be, or a value cannot become bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("record is empty")]
    Empty,
    #[error("record of `{len}` bytes is longer than its limit of `{limit}`")]
    TooLong { len: usize, limit: usize },
    #[error("record has version `{found}`, this release knows `{known}`")]
    TooNew { found: u8, known: u8 },
    #[error("record has version `{found}`, which this release no longer reads")]
    TooOld { found: u8 },
    #[error("record is malformed: {reason}")]
    Malformed { reason: String },
    #[error("value has no binary form: {reason}")]
    NotEncodable { reason: String },
}

impl Error {
    /// What a person can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::TooNew { .. } => Some("update this node"),
            Error::TooOld { .. } => Some("update through a release in between"),
            _ => None,
        }
    }
}
