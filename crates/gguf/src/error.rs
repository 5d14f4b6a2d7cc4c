//! Why a header cannot be read.

/// All but [`Error::MoreNeeded`] are faults of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The header goes on where the bytes at hand end: come back with more of the file.
    #[error("the header is longer than the {have} bytes at hand")]
    MoreNeeded { have: usize },
    #[error("the file ends within its header")]
    Truncated,
    #[error("no GGUF file: it begins with `{0:02x?}`")]
    Magic([u8; 4]),
    #[error("GGUF version {0} is not one of 2 and 3")]
    Version(u32),
    #[error("the file is for big-endian machines")]
    BigEndian,
    #[error("the header is longer than {max} bytes")]
    HeaderTooLong { max: usize },
    #[error("the file announces {count} {what}, more than {max}")]
    TooMany { what: &'static str, count: u64, max: u64 },
    #[error("the name of {what} {index} is empty, longer than {max} bytes, or no text")]
    Name { what: &'static str, index: u64, max: usize },
    #[error("`{0}` stands twice in the header")]
    Duplicate(String),
    #[error("`{key}` is of the unknown type {kind}")]
    Kind { key: String, kind: u32 },
    #[error("`{0}` is an array of arrays")]
    Nested(String),
    #[error("`general.alignment` is no power of two")]
    Alignment,
    #[error("tensor `{tensor}` is of the unknown type {kind}")]
    TensorType { tensor: String, kind: u32 },
    #[error("tensor `{tensor}` has a shape that cannot be: {why}")]
    Shape { tensor: String, why: &'static str },
    #[error("tensor `{tensor}` begins at {offset}, {expected} was due")]
    Offset { tensor: String, offset: u64, expected: u64 },
    #[error("tensor `{tensor}` ends at byte {end} of a file of {size}")]
    OutsideFile { tensor: String, end: u64, size: u64 },
}
