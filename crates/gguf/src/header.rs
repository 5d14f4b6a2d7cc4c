//! The header: metadata, then the list of tensors. Versions 2 and 3, little-endian; what llama.cpp's own reader
//! (`gguf.cpp`) refuses is refused here too.

use std::collections::{BTreeMap, BTreeSet};

use crate::read::Reader;
use crate::{Error, Tensor, Value};

/// Beyond it a header is refused. The largest vocabularies of today make headers of about 16 MiB.
pub const HEADER_BYTES_MAX: usize = 64 << 20;
/// Real files have fewer than a hundred.
pub const METADATA_MAX: u64 = 1 << 16;
/// Files with one tensor for each expert have tens of thousands.
pub const TENSORS_MAX: u64 = 1 << 17;

/// What the format allows for a key.
const KEY_BYTES_MAX: usize = u16::MAX as usize;
const ALIGNMENT_DEFAULT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 20;

/// Borrows the file's beginning. It costs some ten bytes for each of the header's, whatever the file announces.
#[derive(Debug)]
pub struct Header<'a> {
    version: u32,
    metadata: BTreeMap<&'a str, Value<'a>>,
    tensors: Vec<Tensor<'a>>,
    alignment: u64,
    data_start: u64,
}

impl<'a> Header<'a> {
    /// `head` is the beginning of a file of `file_size` bytes. [`Error::MoreNeeded`] asks for a longer one; with
    /// [`HEADER_BYTES_MAX`] of them, or the whole file, it is not returned.
    pub fn parse(head: &'a [u8], file_size: u64) -> Result<Self, Error> {
        let whole = head.len() as u64 >= file_size;
        let head = &head[..head.len().min(HEADER_BYTES_MAX)];
        let parsed = Self::read(&mut Reader::new(head, whole && head.len() < HEADER_BYTES_MAX), file_size);
        match parsed {
            Err(Error::MoreNeeded { have: HEADER_BYTES_MAX }) => Err(Error::HeaderTooLong { max: HEADER_BYTES_MAX }),
            parsed => parsed,
        }
    }

    fn read(reader: &mut Reader<'a>, file_size: u64) -> Result<Self, Error> {
        let magic = reader.magic()?;
        if magic != *b"GGUF" {
            return Err(Error::Magic(magic));
        }
        let version = reader.u32()?;
        match version {
            2 | 3 => {}
            _ if version.trailing_zeros() >= 16 && version != 0 => return Err(Error::BigEndian),
            _ => return Err(Error::Version(version)),
        }
        let tensor_count = at_most("tensors", reader.u64()?, TENSORS_MAX)?;
        let metadata_count = at_most("metadata entries", reader.u64()?, METADATA_MAX)?;

        let mut metadata = BTreeMap::new();
        for index in 0..metadata_count {
            let key = reader.string()?;
            let fits = (1..=KEY_BYTES_MAX).contains(&key.len());
            let key = fits.then(|| std::str::from_utf8(key).ok()).flatten();
            let key = key.ok_or(Error::Name { what: "metadata entry", index, max: KEY_BYTES_MAX })?;
            if metadata.insert(key, Value::read(reader, key)?).is_some() {
                return Err(Error::Duplicate(key.to_owned()));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT_DEFAULT,
            Some(value) => value.as_u64().ok_or(Error::Alignment)?,
        };
        if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
            return Err(Error::Alignment);
        }

        let mut tensors = Vec::new();
        for index in 0..tensor_count {
            tensors.push(Tensor::read(reader, index)?);
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.name())) {
            return Err(Error::Duplicate(twice.name().to_owned()));
        }
        let data_start = (reader.position() as u64).next_multiple_of(alignment);
        check_extents(&tensors, alignment, data_start, file_size)?;
        Ok(Self { version, metadata, tensors, alignment, data_start })
    }

    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Sorted by key.
    pub const fn metadata(&self) -> &BTreeMap<&'a str, Value<'a>> {
        &self.metadata
    }

    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.metadata.get(key)
    }

    /// In the file's order.
    pub fn tensors(&self) -> &[Tensor<'a>] {
        &self.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&Tensor<'a>> {
        self.tensors.iter().find(|tensor| tensor.name() == name)
    }

    pub const fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where the tensors' bytes begin in the file.
    pub const fn data_start(&self) -> u64 {
        self.data_start
    }
}

fn at_most(what: &'static str, count: u64, max: u64) -> Result<u64, Error> {
    if count > max { Err(Error::TooMany { what, count, max }) } else { Ok(count) }
}

/// Tensors lie one behind the other, each aligned, and within the file. So none overlaps another.
fn check_extents(tensors: &[Tensor<'_>], alignment: u64, data_start: u64, file_size: u64) -> Result<(), Error> {
    let mut expected = 0u64;
    for tensor in tensors {
        if tensor.offset() != expected {
            return Err(Error::Offset { tensor: tensor.name().to_owned(), offset: tensor.offset(), expected });
        }
        let end = data_start.saturating_add(expected).saturating_add(tensor.bytes());
        if end > file_size {
            return Err(Error::OutsideFile { tensor: tensor.name().to_owned(), end, size: file_size });
        }
        let next = expected.checked_add(tensor.bytes()).and_then(|end| end.checked_next_multiple_of(alignment));
        expected = next.ok_or_else(|| Error::Shape { tensor: tensor.name().to_owned(), why: "too many bytes" })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
