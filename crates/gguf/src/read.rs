//! A cursor that cannot leave its bytes.

use crate::Error;

#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// What running out of bytes means: the file is over, or only the part of it that is here.
    whole: bool,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8], whole: bool) -> Self {
        Self { bytes, at: 0, whole }
    }

    pub(crate) const fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn take(&mut self, count: u64) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.at..];
        match usize::try_from(count).ok().and_then(|count| rest.get(..count)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None if self.whole => Err(Error::Truncated),
            None => Err(Error::MoreNeeded { have: self.bytes.len() }),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        Ok(self.take(N as u64)?.try_into().expect("as many bytes were taken"))
    }

    pub(crate) fn magic(&mut self) -> Result<[u8; 4], Error> {
        self.array()
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length and as many bytes. Not every writer keeps to UTF-8.
    pub(crate) fn string(&mut self) -> Result<&'a [u8], Error> {
        let length = self.u64()?;
        self.take(length)
    }
}
