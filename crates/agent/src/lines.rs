//! Cuts an answer into whole lines as they come, so that no line reaches a client in halves when its backend dies.

use bytes::{Bytes, BytesMut};

/// A longer line is no answer of a model; tool calls and log probabilities stay far below.
pub(crate) const LINE_BYTES_MAX: usize = 8 << 20;

#[derive(Debug, Default)]
pub(crate) struct Lines {
    ready: Bytes,
    /// The beginning of a line whose end has not come; [`LINE_BYTES_MAX`] at most.
    begun: BytesMut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line longer than `{LINE_BYTES_MAX}` bytes")]
pub(crate) struct TooLong;

impl Lines {
    /// Only when [`Lines::next`] has nothing left.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        debug_assert!(self.ready.is_empty(), "there were lines left");
        self.ready = bytes;
    }

    /// The next line with its end.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        if self.ready.is_empty() {
            return Ok(None);
        }
        let Some(end) = self.ready.iter().position(|byte| *byte == b'\n') else {
            let rest = std::mem::take(&mut self.ready);
            if self.begun.len() + rest.len() > LINE_BYTES_MAX {
                return Err(TooLong);
            }
            self.begun.extend_from_slice(&rest);
            return Ok(None);
        };
        let line = self.ready.split_to(end + 1);
        if self.begun.is_empty() {
            return Ok(Some(line));
        }
        if self.begun.len() + line.len() > LINE_BYTES_MAX {
            return Err(TooLong);
        }
        self.begun.extend_from_slice(&line);
        Ok(Some(self.begun.split().freeze()))
    }

    /// What stands behind the last line end, once there is no more.
    pub(crate) fn rest(&mut self) -> Option<Bytes> {
        (!self.begun.is_empty()).then(|| self.begun.split().freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in pieces {
            lines.push(Bytes::copy_from_slice(piece.as_bytes()));
            while let Some(line) = lines.next().unwrap() {
                found.push(text(line));
            }
        }
        (found, lines.rest().map(text))
    }

    #[test]
    fn lines_are_whole_wherever_the_pieces_were_cut() {
        let expected = (vec!["ab\n".to_owned(), "\n".to_owned(), "cde\n".to_owned()], Some("f".to_owned()));
        assert_eq!(cut(&["ab\n\ncde\nf"]), expected);
        assert_eq!(cut(&["a", "b", "\n", "\nc", "de\nf"]), expected);
        assert_eq!(cut(&["ab\n"]), (vec!["ab\n".to_owned()], None));
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let mut lines = Lines::default();
        for _ in 0..LINE_BYTES_MAX >> 20 {
            lines.push(Bytes::from(vec![b'x'; 1 << 20]));
            assert_eq!(lines.next(), Ok(None));
        }
        lines.push(Bytes::from_static(b"x"));
        assert_eq!(lines.next(), Err(TooLong));
        let mut lines = Lines::default();
        lines.push(Bytes::from(vec![b'x'; LINE_BYTES_MAX]));
        assert_eq!(lines.next(), Ok(None));
        lines.push(Bytes::from_static(b"x\n"));
        assert_eq!(lines.next(), Err(TooLong));
    }
}
