//! The format itself, and how much memory reading it may take.

use bincode::config::{self, Configuration, LittleEndian, Varint};
use serde::{Serialize, de::DeserializeOwned};

use crate::Error;

/// The longest input decoded at all. No record comes near it; models are moved as chunks, never as records.
const INPUT_MAX: usize = 64 << 20;

pub(crate) fn append<T: Serialize + ?Sized>(bytes: &mut Vec<u8>, value: &T) -> Result<(), Error> {
    bincode::serde::encode_into_std_write(value, bytes, config::standard())
        .map(drop)
        .map_err(|cause| Error::NotEncodable { reason: cause.to_string() })
}

/// The decoder reserves what a length prefix claims before it looks at the bytes, so the only guard is its own budget,
/// and that budget is a constant of its type. Hence steps: the smallest that the input could honestly need. An integer
/// is charged at its size in memory, at most sixteen times its size on the wire.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match bytes.len().saturating_mul(16) {
        0..=0x400 => read_within::<T, 0x400>(bytes),
        0x401..=0x1000 => read_within::<T, 0x1000>(bytes),
        0x1001..=0x4000 => read_within::<T, 0x4000>(bytes),
        0x4001..=0x1_0000 => read_within::<T, 0x1_0000>(bytes),
        0x1_0001..=0x4_0000 => read_within::<T, 0x4_0000>(bytes),
        0x4_0001..=0x10_0000 => read_within::<T, 0x10_0000>(bytes),
        0x10_0001..=0x40_0000 => read_within::<T, 0x40_0000>(bytes),
        0x40_0001..=0x100_0000 => read_within::<T, 0x100_0000>(bytes),
        0x100_0001..=0x400_0000 => read_within::<T, 0x400_0000>(bytes),
        0x400_0001..=0x1000_0000 => read_within::<T, 0x1000_0000>(bytes),
        0x1000_0001..=0x4000_0000 => read_within::<T, 0x4000_0000>(bytes),
        _ => Err(Error::TooLong { len: bytes.len(), limit: INPUT_MAX }),
    }
}

fn read_within<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, Error> {
    let config: Configuration<LittleEndian, Varint, config::Limit<LIMIT>> = config::standard().with_limit::<LIMIT>();
    let (value, read) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|cause| Error::Malformed { reason: cause.to_string() })?;
    match bytes.len() - read {
        0 => Ok(value),
        left => Err(Error::Malformed { reason: format!("`{left}` bytes left over") }),
    }
}
