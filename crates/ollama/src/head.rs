//! The beginning of a file of weights.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What a first look reads; most headers are complete in it but for their vocabulary.
const FIRST_BYTES: usize = 1 << 20;

/// As many bytes as the header takes, and the size of the file they begin.
#[derive(Debug, Clone)]
pub struct Head {
    bytes: Vec<u8>,
    file_size: u64,
}

impl Head {
    /// Reads on until the header is whole, the file ends, or it is longer than any header may be.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file_size = metadata.len();
        let mut bytes = Vec::new();
        let mut wanted = FIRST_BYTES;
        loop {
            let missing = (wanted - bytes.len()) as u64;
            let read = (&mut file).take(missing).read_to_end(&mut bytes)?;
            let more = matches!(gguf::Header::parse(&bytes, file_size), Err(gguf::Error::MoreNeeded { .. }));
            if !more || read == 0 {
                return Ok(Self { bytes, file_size });
            }
            wanted = (wanted * 4).min(gguf::HEADER_BYTES_MAX);
        }
    }

    pub fn header(&self) -> Result<gguf::Header<'_>, gguf::Error> {
        gguf::Header::parse(&self.bytes, self.file_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_longer_than_the_first_look_is_read_whole() {
        let pieces: Vec<String> = (0..200_000).map(|id| format!("piece-{id}")).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let bytes = gguf::build::File::tiny_llama().texts("tokenizer.ggml.tokens", &pieces).bytes();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let head = Head::read(file.path()).unwrap();
        assert!(head.bytes.len() > FIRST_BYTES);
        assert_eq!(gguf::Facts::of(&head.header().unwrap()).unwrap().vocabulary, 200_000);
    }

    #[test]
    fn what_is_no_model_is_read_once_and_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 5 << 20]).unwrap();
        let head = Head::read(file.path()).unwrap();
        assert_eq!(head.bytes.len(), FIRST_BYTES);
        assert_eq!(head.header().unwrap_err(), gguf::Error::Magic([7; 4]));
        std::fs::write(file.path(), b"GGUF").unwrap();
        assert_eq!(Head::read(file.path()).unwrap().header().unwrap_err(), gguf::Error::Truncated);
        assert!(Head::read(Path::new("/")).is_err());
    }
}
