//! Server-sent events, from bytes that come in pieces of any size. Pure.

/// One event: what kind, and its JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerEvent {
    pub(crate) kind: String,
    pub(crate) data: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("an event has more than {LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error("an event is not UTF-8")]
    NotText,
}

/// Many times any event; a stream with a longer line is ended.
const LINE_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    event: ServerEvent,
}

impl Parser {
    /// The events completed by these bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<ServerEvent>, Error> {
        let mut complete = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + self.event.data.len() + piece.len() > LINE_BYTES_MAX {
                return Err(Error::TooLong);
            }
            self.line.extend_from_slice(piece);
            if self.line.ends_with(b"\n") {
                let line = String::from_utf8(std::mem::take(&mut self.line)).map_err(|_| Error::NotText)?;
                complete.extend(self.take(line.trim_end_matches(['\n', '\r'])));
            }
        }
        Ok(complete)
    }

    /// An empty line ends an event; one without data is none. Lines that begin with a colon keep the connection alive.
    fn take(&mut self, line: &str) -> Option<ServerEvent> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return (!event.data.is_empty()).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.kind),
            "data" => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, data: &str) -> ServerEvent {
        ServerEvent { kind: kind.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn events_are_the_same_however_the_bytes_come_in() {
        let stream =
            ": still here\n\nid: 7\nevent: registry\ndata: {\"a\":1}\n\ndata: one\r\ndata: two\r\n\r\nevent: up\n";
        let expected = vec![event("registry", "{\"a\":1}"), event("", "one\ntwo")];
        for size in 1..stream.len() {
            let mut parser = Parser::default();
            let fed = stream.as_bytes().chunks(size).map(|piece| parser.feed(piece).unwrap());
            assert_eq!(fed.flatten().collect::<Vec<_>>(), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'a'; LINE_BYTES_MAX / 2];
        assert_eq!(parser.feed(&piece), Ok(vec![]));
        assert_eq!(parser.feed(&piece), Ok(vec![]));
        assert_eq!(parser.feed(b"a"), Err(Error::TooLong));
    }

    #[test]
    fn what_is_no_text_is_refused() {
        assert_eq!(Parser::default().feed(b"data: \xff\n"), Err(Error::NotText));
    }
}
