//! HTTP/1.1 as far as both ends of a measurement need it, over plain blocking sockets: little of the machine is to go to
//! the measuring side.

use std::io::{self, BufRead, ErrorKind};

/// The head of a request or an answer.
#[derive(Debug)]
pub(crate) struct Head {
    /// `POST /api/chat HTTP/1.1` or `HTTP/1.1 200 OK`
    pub(crate) first: String,
    pub(crate) framing: Framing,
    /// The connection ends with this message.
    pub(crate) closes: bool,
}

/// How the body says where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// By nothing but the end of the connection; a request has no body then.
    None,
}

/// `None` where the connection was closed before anything came.
pub(crate) fn read_head(from: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut head = Head { first: line.trim_end().to_owned(), framing: Framing::None, closes: false };
    loop {
        line.clear();
        if from.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let text = line.trim_end();
        if text.is_empty() {
            return Ok(Some(head));
        }
        let Some((name, value)) = text.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            head.framing = Framing::Length(value.parse().map_err(|_| broken("a length that is no number"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            head.framing = Framing::Chunked;
        } else if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
            head.closes = true;
        }
    }
}

/// Hands over the body as it comes. An end before the one that was promised is an error.
pub(crate) fn read_body(from: &mut impl BufRead, framing: Framing, mut piece: impl FnMut(&[u8])) -> io::Result<()> {
    match framing {
        Framing::Length(length) => read_exactly(from, length, &mut piece),
        Framing::None => loop {
            let bytes = from.fill_buf()?;
            if bytes.is_empty() {
                return Ok(());
            }
            piece(bytes);
            let read = bytes.len();
            from.consume(read);
        },
        Framing::Chunked => {
            let mut line = String::new();
            loop {
                line.clear();
                if from.read_line(&mut line)? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                let size = line.trim_end().split(';').next().unwrap_or_default();
                let size = u64::from_str_radix(size, 16).map_err(|_| broken("a chunk without a size"))?;
                if size > 0 {
                    read_exactly(from, size, &mut piece)?;
                }
                read_exactly(from, 2, &mut |_| ())?;
                if size == 0 {
                    return Ok(());
                }
            }
        }
    }
}

fn read_exactly(from: &mut impl BufRead, mut left: u64, piece: &mut impl FnMut(&[u8])) -> io::Result<()> {
    while left > 0 {
        let bytes = from.fill_buf()?;
        if bytes.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        piece(&bytes[..taken]);
        from.consume(taken);
        left -= taken as u64;
    }
    Ok(())
}

fn broken(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}
