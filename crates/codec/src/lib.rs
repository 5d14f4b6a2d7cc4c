//! Bytes on disk and wire: one binary format, one place that knows its name.
//!
//! What outlives a process or leaves it is a [`Record`]: a version byte, then the body. A release reads its own version
//! and whatever older ones it still has steps for; a newer one is refused with a hint and never guessed at.
//! [`to_bytes`] and [`from_bytes`] are for what is hashed, or lies inside something that carries a version already.
//!
//! Decoding is meant for hostile input: it never panics, and what it allocates is bounded by the length of the input,
//! whatever lengths the input claims. The format does not describe itself, so serde attributes that need to look ahead
//! (`untagged`, `flatten`, `skip_serializing_if`) do not work with it.

mod error;
mod limit;

pub use error::Error;
use serde::{Serialize, de::DeserializeOwned};

/// A value with a versioned form of its own.
pub trait Record: Serialize + DeserializeOwned {
    /// The version this release writes. Any change of the body's layout raises it.
    const VERSION: u8;

    /// The longest encoding, version byte included, that is written or accepted.
    const LIMIT: usize;

    /// Reads the body of an older version; `None` when this release no longer can.
    fn decode_older(version: u8, body: &[u8]) -> Option<Result<Self, Error>> {
        let _ = (version, body);
        None
    }
}

/// The version byte and the body. Fails when the result would be longer than a reader accepts.
pub fn encode<T: Record>(value: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![T::VERSION];
    limit::append(&mut bytes, value)?;
    match bytes.len() {
        len if len > T::LIMIT => Err(Error::TooLong { len, limit: T::LIMIT }),
        _ => Ok(bytes),
    }
}

/// Reads what [`encode`] wrote, in this or an older release. Bytes left over make it malformed.
pub fn decode<T: Record>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.len() > T::LIMIT {
        return Err(Error::TooLong { len: bytes.len(), limit: T::LIMIT });
    }
    let (&found, body) = bytes.split_first().ok_or(Error::Empty)?;
    match found.cmp(&T::VERSION) {
        std::cmp::Ordering::Equal => limit::read(body),
        std::cmp::Ordering::Greater => Err(Error::TooNew { found, known: T::VERSION }),
        std::cmp::Ordering::Less => T::decode_older(found, body).unwrap_or(Err(Error::TooOld { found })),
    }
}

/// The body alone. Equal values give equal bytes as long as they hold no map with an order of its own making.
pub fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    limit::append(&mut bytes, value)?;
    Ok(bytes)
}

/// Reads what [`to_bytes`] wrote. The caller has bounded the length of `bytes`.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    limit::read(bytes)
}
